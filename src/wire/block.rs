//! Blocks as JSON: decoded exactly as far as the reference does, within bounds it does not have; encoded byte for byte.

use super::{
    Block, Entry, Storage,
    json::{Bytes, Excess, Member, Note, Skip, Text, put_text},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};
use sha2::{Digest, Sha256};
use std::{cell::Cell, collections::BTreeMap, fmt, fmt::Write};

/// What a message may ask of a node. The defaults hold the largest ledger that fits into a message of 20 MiB, about 70,000
/// signed entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of a block after inflating.
    pub inflated: usize,
    /// Inflated bytes for each compressed one, beyond the first MiB. Real blocks stay under 20, a bomb has 1,000.
    pub ratio: usize,
    /// Entries, each bucket counted as one more.
    pub entries: usize,
    /// Bytes of a bucket name, key, owner, hash or time.
    pub key: usize,
    /// Bytes of a value.
    pub value: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            inflated: 32 << 20,
            ratio: 100,
            entries: 100_000,
            key: 1024,
            value: 64 << 10,
        }
    }
}

/// Why bytes are no block, or none that is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    #[error("not the JSON of a block")]
    NotABlock,
    #[error("JSON nested too deep")]
    Depth,
    #[error("too many entries")]
    Entries,
    #[error("a key, bucket, owner or hash is too long")]
    Key,
    #[error("a value or signature is too long")]
    Value,
}

impl BlockError {
    pub(super) fn of(broken: Option<Excess>) -> Self {
        match broken {
            None => Self::NotABlock,
            Some(Excess::Depth) => Self::Depth,
            Some(Excess::Entries) => Self::Entries,
            Some(Excess::Key) => Self::Key,
            Some(Excess::Value) => Self::Value,
        }
    }

    /// The reason in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::NotABlock => "json",
            Self::Depth => "depth",
            Self::Entries => "entries",
            Self::Key => "key",
            Self::Value => "value",
        }
    }
}

impl Block {
    /// Reads a block. One entry that the reference could not read makes it refuse the whole block, here too. Only halves of
    /// surrogate pairs and bytes that are no UTF-8 are refused where Go puts a replacement character: no encoder writes them.
    pub fn from_json(bytes: &[u8], bounds: &Bounds) -> Result<Block, BlockError> {
        let reader = Reader {
            bounds,
            entries: Cell::new(0),
            broken: Cell::new(None),
        };
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let block = BlockReader(&reader)
            .deserialize(&mut json)
            .map_err(|_| BlockError::of(reader.broken.get()))?;
        json.end().map_err(|_| BlockError::NotABlock)?;
        Ok(block)
    }

    pub fn to_json(&self) -> String {
        let mut out = String::with_capacity(256);
        let _ = write!(out, "{{\"Index\":{},\"Timestamp\":", self.index);
        put_text(&mut out, &self.timestamp);
        out.push_str(",\"Storage\":{");
        for (nth, (bucket, entries)) in self.storage.iter().enumerate() {
            put_key(&mut out, nth, bucket);
            out.push('{');
            for (nth, (key, entry)) in entries.iter().enumerate() {
                put_key(&mut out, nth, key);
                put_entry(&mut out, entry);
            }
            out.push('}');
        }
        out.push_str("},\"Hash\":");
        put_text(&mut out, &self.hash);
        out.push_str(",\"PrevHash\":");
        put_text(&mut out, &self.previous_hash);
        out.push('}');
        out
    }

    /// What belongs into `hash`: SHA-256, in hexadecimal, of the block's fields as Go prints them.
    pub fn checksum(&self) -> String {
        let mut record = format!("{}{}map[", self.index, self.timestamp);
        for (nth, (bucket, entries)) in self.storage.iter().enumerate() {
            let space = if nth == 0 { "" } else { " " };
            let _ = write!(record, "{space}{bucket}:map[");
            for (nth, (key, entry)) in entries.iter().enumerate() {
                let space = if nth == 0 { "" } else { " " };
                let _ = write!(
                    record,
                    "{space}{key}:{{{} {} {} {} {} [",
                    entry.value, entry.owner, entry.version, entry.updated_at, entry.deleted
                );
                for (nth, byte) in entry.signature.iter().enumerate() {
                    let space = if nth == 0 { "" } else { " " };
                    let _ = write!(record, "{space}{byte}");
                }
                record.push_str("]}");
            }
            record.push(']');
        }
        record.push(']');
        record.push_str(&self.previous_hash);
        data_encoding::HEXLOWER.encode(&Sha256::digest(record))
    }
}

fn put_key(out: &mut String, nth: usize, key: &str) {
    if nth > 0 {
        out.push(',');
    }
    put_text(out, key);
    out.push(':');
}

/// An entry without owner, version and signature is its value alone; nodes before v0.35 know nothing else.
fn put_entry(out: &mut String, entry: &Entry) {
    let legacy = entry.owner.is_empty()
        && entry.signature.is_empty()
        && !entry.deleted
        && entry.version == 0;
    if legacy {
        return put_text(out, &entry.value);
    }
    out.push_str("{\"Value\":");
    put_text(out, &entry.value);
    out.push_str(",\"Owner\":");
    put_text(out, &entry.owner);
    let _ = write!(
        out,
        ",\"Version\":{},\"UpdatedAt\":{},\"Deleted\":{},\"Sig\":",
        entry.version, entry.updated_at, entry.deleted
    );
    if entry.signature.is_empty() {
        out.push_str("null}");
    } else {
        out.push('"');
        STANDARD.encode_string(&entry.signature, out);
        out.push_str("\"}");
    }
}

/// Bytes of a signature; the longest that counts, a secp256k1 one in DER, has 72.
const MAX_SIGNATURE: usize = 256;

struct Reader<'a> {
    bounds: &'a Bounds,
    entries: Cell<usize>,
    broken: Cell<Option<Excess>>,
}

impl Reader<'_> {
    fn key(&self) -> Text<'_> {
        Text {
            limit: self.bounds.key,
            excess: Excess::Key,
            broken: &self.broken,
        }
    }

    fn value(&self) -> Text<'_> {
        Text {
            limit: self.bounds.value,
            excess: Excess::Value,
            broken: &self.broken,
        }
    }

    fn count<E: Error>(&self) -> Result<(), E> {
        let entries = self.entries.get().saturating_add(1);
        if entries > self.bounds.entries {
            return Err(self.broken.note(Excess::Entries));
        }
        self.entries.set(entries);
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum BlockMember {
    Index,
    Timestamp,
    Storage,
    Hash,
    PrevHash,
}

const BLOCK: &[(&str, BlockMember)] = &[
    ("Index", BlockMember::Index),
    ("Timestamp", BlockMember::Timestamp),
    ("Storage", BlockMember::Storage),
    ("Hash", BlockMember::Hash),
    ("PrevHash", BlockMember::PrevHash),
];

struct BlockReader<'a>(&'a Reader<'a>);

impl<'de> DeserializeSeed<'de> for BlockReader<'_> {
    type Value = Block;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Block, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for BlockReader<'_> {
    type Value = Block;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a block")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Block, A::Error> {
        let mut block = Block::default();
        let text = |to: &mut String, text: Option<String>| {
            if let Some(text) = text {
                *to = text;
            }
        };
        while let Some(member) = members.next_key_seed(Member(BLOCK))? {
            match member {
                Some(BlockMember::Index) => {
                    block.index = members.next_value::<Option<i64>>()?.unwrap_or(block.index);
                }
                Some(BlockMember::Timestamp) => {
                    text(&mut block.timestamp, members.next_value_seed(self.0.key())?)
                }
                Some(BlockMember::Storage) => members.next_value_seed(StorageReader {
                    reader: self.0,
                    storage: &mut block.storage,
                })?,
                Some(BlockMember::Hash) => {
                    text(&mut block.hash, members.next_value_seed(self.0.key())?)
                }
                Some(BlockMember::PrevHash) => text(
                    &mut block.previous_hash,
                    members.next_value_seed(self.0.key())?,
                ),
                None => members.next_value_seed(Skip::new(&self.0.broken))?,
            }
        }
        Ok(block)
    }
}

/// A second `Storage` adds its buckets to those of the first; `null` empties.
struct StorageReader<'a> {
    reader: &'a Reader<'a>,
    storage: &'a mut Storage,
}

impl<'de> DeserializeSeed<'de> for StorageReader<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StorageReader<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("buckets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut buckets: A) -> Result<(), A::Error> {
        while let Some(bucket) = buckets.next_key_seed(self.reader.key())? {
            self.reader.count()?;
            let entries = buckets.next_value_seed(BucketReader(self.reader))?;
            self.storage.insert(bucket.unwrap_or_default(), entries);
        }
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.storage.clear();
        Ok(())
    }
}

struct BucketReader<'a>(&'a Reader<'a>);

impl<'de> DeserializeSeed<'de> for BucketReader<'_> {
    type Value = BTreeMap<String, Entry>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for BucketReader<'_> {
    type Value = BTreeMap<String, Entry>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("entries")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut bucket = BTreeMap::new();
        while let Some(key) = entries.next_key_seed(self.0.key())? {
            self.0.count()?;
            let entry = entries.next_value_seed(EntryReader(self.0))?;
            bucket.insert(key.unwrap_or_default(), entry);
        }
        Ok(bucket)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(BTreeMap::new())
    }
}

#[derive(Clone, Copy)]
enum EntryMember {
    Value,
    Owner,
    Version,
    UpdatedAt,
    Deleted,
    Sig,
}

const ENTRY: &[(&str, EntryMember)] = &[
    ("Value", EntryMember::Value),
    ("Owner", EntryMember::Owner),
    ("Version", EntryMember::Version),
    ("UpdatedAt", EntryMember::UpdatedAt),
    ("Deleted", EntryMember::Deleted),
    ("Sig", EntryMember::Sig),
];

/// An object, or the value alone; `null` is an empty value.
struct EntryReader<'a>(&'a Reader<'a>);

impl<'de> DeserializeSeed<'de> for EntryReader<'_> {
    type Value = Entry;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Entry, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for EntryReader<'_> {
    type Value = Entry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an entry")
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Entry, E> {
        let value = self.0.value().visit_str(value)?.unwrap_or_default();
        Ok(Entry {
            value,
            ..Entry::default()
        })
    }

    fn visit_unit<E>(self) -> Result<Entry, E> {
        Ok(Entry::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Entry, A::Error> {
        let mut entry = Entry::default();
        while let Some(member) = members.next_key_seed(Member(ENTRY))? {
            match member {
                Some(EntryMember::Value) => {
                    if let Some(value) = members.next_value_seed(self.0.value())? {
                        entry.value = value;
                    }
                }
                Some(EntryMember::Owner) => {
                    if let Some(owner) = members.next_value_seed(self.0.key())? {
                        entry.owner = owner;
                    }
                }
                Some(EntryMember::Version) => {
                    entry.version = members
                        .next_value::<Option<u64>>()?
                        .unwrap_or(entry.version);
                }
                Some(EntryMember::UpdatedAt) => {
                    entry.updated_at = members
                        .next_value::<Option<i64>>()?
                        .unwrap_or(entry.updated_at);
                }
                Some(EntryMember::Deleted) => {
                    entry.deleted = members
                        .next_value::<Option<bool>>()?
                        .unwrap_or(entry.deleted);
                }
                Some(EntryMember::Sig) => {
                    entry.signature = members.next_value_seed(Bytes {
                        limit: MAX_SIGNATURE,
                        broken: &self.0.broken,
                    })?;
                }
                None => members.next_value_seed(Skip::new(&self.0.broken))?,
            }
        }
        Ok(entry)
    }
}
