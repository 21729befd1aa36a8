//! The EdgeVPN wire format, byte for byte: tokens, what is derived from them, sealed messages, blocks and entries.
//!
//! Everything here is a codec: bytes in, values or an error out. What a value means is decided in [`crate::ledger`].

mod block;
mod entry;
mod json;
pub mod leader;
mod message;
mod otp;
mod token;
pub mod value;
mod yaml;

pub use block::{BlockError, Bounds};
pub use entry::SignatureError;
pub use message::{OpenError, open, open_bytes, seal, seal_bytes};
pub use otp::{SealKey, Window, totp};
pub use token::{Fingerprint, TokenError};

use std::collections::BTreeMap;

/// One version of one value in a bucket, by one author.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// JSON text in most buckets; kept byte for byte.
    pub value: String,
    /// Peer id of the author in base58; empty in entries of networks without ownership.
    pub owner: String,
    /// Higher wins; by convention Unix time in nanoseconds.
    pub version: u64,
    /// Unix time in seconds.
    pub updated_at: i64,
    /// A tombstone.
    pub deleted: bool,
    /// Ed25519 (or secp256k1) signature over the canonical bytes; empty when unsigned.
    pub signature: Vec<u8>,
}

/// Entries by key, by bucket.
pub type Storage = BTreeMap<String, BTreeMap<String, Entry>>;

/// What EdgeVPN calls a block: the whole ledger of one node with an envelope nobody checks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    pub index: i64,
    pub timestamp: String,
    pub storage: Storage,
    pub hash: String,
    pub previous_hash: String,
}

/// The secrets of one network, as its token carries them.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    pub dht: Rotation,
    pub crypto: Rotation,
    /// Secret behind the gossip topics.
    pub room: String,
    /// Used as it is when `dht.key` is empty.
    pub rendezvous: String,
    /// mDNS service name; empty means the default of libp2p.
    pub mdns: String,
    /// Bytes.
    pub max_message_size: u64,
}

/// A secret that changes its derived values with time.
#[derive(Clone, PartialEq, Eq)]
pub struct Rotation {
    /// Seconds; never 0.
    pub interval: u64,
    pub key: String,
    /// Characters kept of the derived text, 44 at most.
    pub length: usize,
}
