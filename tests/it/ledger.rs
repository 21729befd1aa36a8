//! The ledger seen from outside: the decisions of running Go nodes, hostile neighbours, and copies that become one.

use std::time::Duration;

use edgevpn::{
    id::{PeerId, UnixTime},
    ledger::{Bucket, Ledger, Ownership, Record, Terms},
    wire::{Block, Entry, Storage, value::heartbeat},
};
use libp2p::identity::Keypair;

mod convergence;
mod hostile;
mod laws;
mod members;
mod state;
mod vectors;

/// The simulation that the bench runs at larger sizes.
#[allow(dead_code, reason = "the benchmark uses the rest")]
#[path = "../../benches/scale/network.rs"]
mod network;

/// 2026-11-21 09:06:40 UTC, as the vectors have it.
const NOW: UnixTime = UnixTime::from_secs(1_795_252_000);
const TTL: Duration = Duration::from_secs(480);

fn after(seconds: u64) -> UnixTime {
    NOW.saturating_add(Duration::from_secs(seconds))
}

fn before(seconds: u64) -> UnixTime {
    NOW.saturating_sub(Duration::from_secs(seconds))
}

fn terms(ownership: Ownership) -> Terms {
    Terms {
        ownership,
        ttl: TTL,
        quota_entries: 256,
        quota_bytes: 64 << 10,
    }
}

/// A peer with its key, always the same for the same number.
struct Author {
    keypair: Keypair,
    peer: PeerId,
    name: String,
}

impl Author {
    fn new(number: u32) -> Author {
        let mut seed = [7; 32];
        seed[..4].copy_from_slice(&number.to_be_bytes());
        let keypair = Keypair::ed25519_from_bytes(seed).expect("32 bytes are a key");
        let peer = keypair.public().to_peer_id();
        Author {
            keypair,
            peer,
            name: peer.to_base58(),
        }
    }

    fn ledger(&self, ownership: Ownership) -> Ledger {
        Ledger::new(self.peer, terms(ownership))
    }

    /// An entry with its signature over whatever `entry` says.
    fn sign(&self, bucket: &str, key: &str, mut entry: Entry) -> Entry {
        entry
            .sign(bucket, key, &self.keypair)
            .expect("ed25519 signs");
        entry
    }

    fn entry(&self, bucket: &str, key: &str, value: &str, at: UnixTime) -> Entry {
        let entry = Entry {
            value: value.to_owned(),
            version: at.as_nanos(),
            updated_at: at.as_secs() as i64,
            ..Entry::default()
        };
        self.sign(bucket, key, entry)
    }

    fn tombstone(&self, bucket: &str, key: &str, at: UnixTime) -> Entry {
        let entry = Entry {
            deleted: true,
            ..self.entry(bucket, key, "", at)
        };
        self.sign(bucket, key, entry)
    }

    fn beat(&self, at: UnixTime) -> Block {
        let entry = self.entry("healthcheck", &self.name, &heartbeat(at), at);
        block("healthcheck", &self.name, entry)
    }

    fn machine(&self, address: &str, at: UnixTime) -> Block {
        let value = format!(r#"{{"PeerID":"{}","Address":"{address}"}}"#, self.name);
        block(
            "machines",
            address,
            self.entry("machines", address, &value, at),
        )
    }
}

/// A block with one entry.
fn block(bucket: &str, key: &str, entry: Entry) -> Block {
    blocks([(bucket, key, entry)])
}

fn blocks<'a>(entries: impl IntoIterator<Item = (&'a str, &'a str, Entry)>) -> Block {
    let mut storage = Storage::new();
    for (bucket, key, entry) in entries {
        storage
            .entry(bucket.to_owned())
            .or_default()
            .insert(key.to_owned(), entry);
    }
    Block {
        storage,
        ..Block::default()
    }
}

/// What a record is, to compare ledgers by.
fn plain(record: &Record) -> (Bucket, String, Entry) {
    (
        record.bucket().clone(),
        record.key().to_owned(),
        record.entry().clone(),
    )
}
