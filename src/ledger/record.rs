//! One entry with its place, and what is worth computing only once: digests, the meaning of a heartbeat, the signature.

use std::sync::{Arc, OnceLock};

use sha2::{Digest, Sha256};

use super::Bucket;
use crate::{
    id::{PeerId, UnixTime, parse_peer_id},
    wire::{Entry, value::read_heartbeat},
};

/// An entry of the ledger. Never changes, so that ledger, outgoing messages and reports share one copy.
#[derive(Debug)]
pub struct Record {
    bucket: Bucket,
    key: Box<str>,
    entry: Entry,
    id: Id,
    author: u64,
    hash: u64,
    beat: Option<Box<Beat>>,
    signed: OnceLock<bool>,
}

impl Record {
    pub fn new(bucket: Bucket, key: &str, entry: Entry) -> Arc<Record> {
        let id = Id::of(&bucket, key);
        let mut digest = Sha256::new();
        digest.update(entry.canonical(bucket.name(), key));
        digest.update(&entry.signature);
        let beat = match bucket {
            Bucket::Healthcheck if !entry.deleted => Beat::read(key, &entry).map(Box::new),
            _ => None,
        };
        Arc::new(Record {
            id,
            author: high_bits(Sha256::new_with_prefix(&entry.owner)),
            hash: high_bits(digest),
            beat,
            signed: OnceLock::new(),
            bucket,
            key: key.into(),
            entry,
        })
    }

    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    pub(super) fn id(&self) -> Id {
        self.id
    }

    /// Differs between authors. To have the account of another, somebody would have to find a peer id with the same digest.
    pub(super) fn author(&self) -> u64 {
        self.author
    }

    /// Differs when anything in the entry differs.
    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    /// The heartbeat this is, signed or not.
    pub(super) fn beat(&self) -> Option<&Beat> {
        self.beat.as_deref()
    }

    /// Whether the owner's signature is valid; the first call checks it, which takes some 50 µs.
    pub fn is_signed(&self) -> bool {
        *self
            .signed
            .get_or_init(|| self.entry.verify(self.bucket.name(), &self.key).is_ok())
    }

    /// Whether that is known already.
    pub(super) fn is_checked(&self) -> bool {
        self.signed.get().is_some()
    }

    /// Whose entry it is: its author or, of an unsigned one, the peer that key or value name; may be empty.
    pub fn owner(&self) -> std::borrow::Cow<'_, str> {
        if !self.entry.owner.is_empty() {
            return self.entry.owner.as_str().into();
        }
        self.bucket
            .implied_owner(&self.key, &self.entry.value)
            .unwrap_or_default()
    }

    /// What it is charged with: its texts and its signature. The rest of an entry has a fixed size.
    pub(super) fn bytes(&self) -> u64 {
        [
            self.bucket.name().len(),
            self.key.len(),
            self.entry.value.len(),
            self.entry.owner.len(),
            self.entry.signature.len(),
        ]
        .iter()
        .map(|length| *length as u64)
        .sum()
    }
}

impl PartialEq for Record {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && self.entry == other.entry
    }
}

/// What a heartbeat says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Beat {
    pub peer: PeerId,
    /// The time in the value.
    pub said: UnixTime,
    /// The earlier of that time and `UpdatedAt`: how old it is.
    pub earlier: UnixTime,
    /// The later of the two: how far ahead it is.
    pub later: UnixTime,
}

impl Beat {
    fn read(key: &str, entry: &Entry) -> Option<Beat> {
        // A heartbeat takes 22 bytes; fractions and offsets make it longer, not much.
        let said = (entry.value.len() <= 128).then(|| read_heartbeat(&entry.value))??;
        let updated = UnixTime::from_secs(u64::try_from(entry.updated_at).unwrap_or(0));
        Some(Beat {
            peer: parse_peer_id(key).ok()?,
            said,
            earlier: said.min(updated),
            later: said.max(updated),
        })
    }
}

/// Names a place (bucket and key) by a digest. 128 bits: nobody finds two keys with the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Id(pub u128);

impl Id {
    pub(super) fn of(bucket: &Bucket, key: &str) -> Id {
        let mut digest = Sha256::new();
        digest.update((bucket.name().len() as u64).to_be_bytes());
        digest.update(bucket.name());
        digest.update(key);
        let digest: [u8; 32] = digest.finalize().into();
        let (high, _) = digest.split_at(16);
        Id(high.iter().fold(0, |id, byte| id << 8 | u128::from(*byte)))
    }

    /// The form that travels between nodes.
    pub(super) fn short(self) -> u64 {
        (self.0 >> 64) as u64
    }
}

fn high_bits(digest: Sha256) -> u64 {
    let digest: [u8; 32] = digest.finalize().into();
    let (high, _) = digest.split_at(8);
    high.iter()
        .fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}
