//! Entries as bytes, for the exchange and for the state file. An EdgeVPN block spends 285 bytes on a signed entry before it
//! doubles them in hexadecimal; here a heartbeat takes 137: known buckets are one byte, an Ed25519 owner its 32 bytes, and a
//! key that repeats the owner none.
//!
//! ```text
//! record    = flags (1) bucket [owner] [key] value version (8, big endian) updated_at (8) signature
//! bucket    = code (1) | 255 text
//! owner     = key of an Ed25519 peer (32) | text            absent when there is none
//! key       = text                                          absent when it is the owner
//! signature = 64 bytes | length (1) bytes
//! text      = length (variable, seven bits a byte, low first) UTF-8
//! ```

use std::sync::Arc;

use super::{
    Bucket,
    quota::{MAX_KEY, MAX_SIGNATURE, MAX_VALUE},
    record::Record,
};
use crate::{id::PeerId, wire::Entry};

const DELETED: u8 = 1;
const KEY_IS_OWNER: u8 = 1 << 1;
const NO_OWNER: u8 = 1 << 2;
const ED25519_OWNER: u8 = 1 << 3;
const SIGNATURE_64: u8 = 1 << 4;
const ALL_FLAGS: u8 = (1 << 5) - 1;

/// Stands for a bucket that is spelt out.
const NAMED: u8 = 255;

/// An Ed25519 peer id: identity multihash (0x00) of 36 bytes, a protobuf with key type 1 and 32 bytes of key.
/// <https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md>
const ED25519_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

pub(super) fn write(out: &mut Vec<u8>, record: &Record) {
    let entry = record.entry();
    let mut flags = 0;
    let ed25519 = ed25519_key(&entry.owner);
    let flag = |condition: bool, flag: u8| if condition { flag } else { 0 };
    flags |= flag(entry.deleted, DELETED);
    flags |= flag(record.key() == entry.owner, KEY_IS_OWNER);
    flags |= flag(entry.owner.is_empty(), NO_OWNER);
    flags |= flag(ed25519.is_some(), ED25519_OWNER);
    flags |= flag(entry.signature.len() == 64, SIGNATURE_64);
    out.push(flags);
    match record.bucket().code() {
        Some(code) => out.push(code),
        None => {
            out.push(NAMED);
            put_text(out, record.bucket().name());
        }
    }
    match ed25519 {
        Some(key) => out.extend(key),
        None if entry.owner.is_empty() => {}
        None => put_text(out, &entry.owner),
    }
    if flags & KEY_IS_OWNER == 0 {
        put_text(out, record.key());
    }
    put_text(out, &entry.value);
    out.extend(entry.version.to_be_bytes());
    out.extend(entry.updated_at.to_be_bytes());
    if flags & SIGNATURE_64 == 0 {
        put_length(out, entry.signature.len());
    }
    out.extend(&entry.signature);
}

/// What it takes at most, without being written.
pub(super) fn length(record: &Record) -> usize {
    usize::try_from(record.bytes())
        .unwrap_or(usize::MAX)
        .saturating_add(40)
}

pub(super) fn read(bytes: &mut Bytes<'_>) -> Option<Arc<Record>> {
    let flags = bytes.byte()?;
    if flags & !ALL_FLAGS != 0 {
        return None;
    }
    let has = |flag: u8| flags & flag != 0;
    let bucket = match bytes.byte()? {
        NAMED => Bucket::named(bytes.text(MAX_KEY)?),
        code => Bucket::from_code(code)?,
    };
    let owner = match (has(ED25519_OWNER), has(NO_OWNER)) {
        (true, true) => return None,
        (true, false) => ed25519_owner(bytes.take(32)?)?,
        (false, true) => String::new(),
        (false, false) => bytes.text(MAX_KEY)?.to_owned(),
    };
    let key = match has(KEY_IS_OWNER) {
        true => owner.clone(),
        false => bytes.text(MAX_KEY)?.to_owned(),
    };
    let entry = Entry {
        value: bytes.text(MAX_VALUE)?.to_owned(),
        owner,
        version: bytes.number()?,
        updated_at: i64::from_be_bytes(bytes.number()?.to_be_bytes()),
        deleted: has(DELETED),
        signature: {
            let length = match has(SIGNATURE_64) {
                true => 64,
                false => bytes.length(MAX_SIGNATURE)?,
            };
            bytes.take(length)?.to_vec()
        },
    };
    Some(Record::new(bucket, &key, entry))
}

fn ed25519_key(owner: &str) -> Option<[u8; 32]> {
    let peer: PeerId = owner.parse().ok()?;
    let bytes = peer.to_bytes();
    let key = bytes.strip_prefix(&ED25519_PREFIX)?;
    // The same peer in another spelling would not come back as it was.
    (peer.to_base58() == owner)
        .then(|| key.try_into().ok())
        .flatten()
}

fn ed25519_owner(key: &[u8]) -> Option<String> {
    let mut bytes = ED25519_PREFIX.to_vec();
    bytes.extend(key);
    Some(PeerId::from_bytes(&bytes).ok()?.to_base58())
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_length(out, text.len());
    out.extend(text.as_bytes());
}

pub(super) fn put_length(out: &mut Vec<u8>, length: usize) {
    let mut rest = length;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Bytes that are read from front to back.
pub(super) struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub fn byte(&mut self) -> Option<u8> {
        let [byte] = self.array()?;
        Some(byte)
    }

    /// Eight bytes, big endian.
    pub fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    /// A length or count up to `most`, written the shortest way.
    pub fn length(&mut self, most: usize) -> Option<usize> {
        let mut length = 0_usize;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.byte()?;
            length |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                let shortest = shift == 0 || byte != 0;
                return (shortest && length <= most).then_some(length);
            }
        }
        None
    }

    pub fn text(&mut self, most: usize) -> Option<&'a str> {
        let length = self.length(most)?;
        std::str::from_utf8(self.take(length)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use libp2p::identity::Keypair;
    use proptest::prelude::*;

    use super::*;

    fn round_trip(record: &Record) -> Option<Arc<Record>> {
        let mut out = Vec::new();
        write(&mut out, record);
        assert!(out.len() <= length(record), "{} bytes", out.len());
        let mut bytes = Bytes(&out);
        let read = read(&mut bytes);
        assert!(bytes.is_empty());
        read
    }

    #[test]
    fn a_heartbeat_takes_137_bytes() {
        let keypair = Keypair::generate_ed25519();
        let key = keypair.public().to_peer_id().to_base58();
        let mut entry = Entry {
            value: "\"2026-08-05T12:00:00Z\"".to_owned(),
            version: 1_785_931_200_000_000_001,
            updated_at: 1_785_931_200,
            ..Entry::default()
        };
        entry
            .sign("healthcheck", &key, &keypair)
            .expect("ed25519 signs");
        let record = Record::new(Bucket::Healthcheck, &key, entry);
        let mut out = Vec::new();
        write(&mut out, &record);
        assert_eq!(out.len(), 137);
        let read = round_trip(&record).expect("reads");
        assert_eq!(*read, *record);
        assert!(read.is_signed());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn what_is_written_is_read(
            bucket in "[a-z]{0,12}|machines|nodes",
            key in ".{0,40}",
            owner in ".{0,40}|12D3KooWHbsqZXbx7emT3G2Nf8YqrjuuczQXWsvw8c2iWcR4DRuT",
            value in ".{0,200}",
            version: u64,
            updated_at: i64,
            deleted: bool,
            signature in prop::collection::vec(any::<u8>(), 0..80),
            same: bool,
        ) {
            let key = if same { owner.clone() } else { key };
            let entry = Entry { value, owner, version, updated_at, deleted, signature };
            let record = Record::new(Bucket::named(&bucket), &key, entry);
            prop_assert_eq!(round_trip(&record), Some(record));
        }

        #[test]
        fn arbitrary_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = read(&mut Bytes(&bytes));
        }
    }
}
