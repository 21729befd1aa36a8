//! What neighbours tell each other about their ledgers, and its encoding.

use std::sync::Arc;

use crate::ledger::{
    codec::{self, Bytes, put_length},
    record::Record,
    tree::{FAN, Prefix},
};

/// Bytes of one message at most, before sealing. An entry of the largest size fits.
pub const MAX_MESSAGE: usize = 64 << 10;

/// Counts in one message at most; with their sizes they keep below [`MAX_MESSAGE`].
pub(super) const MAX_BRANCHES: usize = 256;
pub(super) const MAX_ITEMS: usize = 2_000;
pub(super) const MAX_WANTS: usize = 4_000;
const MAX_ENTRIES: usize = 1_000;

/// One message between two nodes of ours. Each can be answered knowing nothing but the ledger, so that lost, repeated and
/// reordered ones do no harm.
#[derive(Clone, Debug)]
pub enum Message {
    /// The sum over everything, once settled, and when that was. Equal sums end the conversation.
    Summary { step: u64, root: u64 },
    /// The sums below some nodes of the tree.
    Branches(Vec<Branch>),
    /// Everything alive below some nodes of the tree, by id and version.
    Listings(Vec<Listing>),
    /// Please send these.
    Want(Vec<u64>),
    /// Please send what is alive below this node of the tree, from this id on.
    Fetch { below: Prefix, from: u64 },
    Entries {
        entries: Vec<Arc<Record>>,
        why: Why,
        /// There is more; ask from here on.
        next: Option<(Prefix, u64)>,
    },
    /// Whether changes shall be pushed over this link, in both directions.
    Push(bool),
}

/// Why entries come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// They have just changed.
    News,
    /// The other side lacks them, as its sums or itself have said.
    Answer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    pub(super) at: Prefix,
    pub(super) sums: [u64; FAN],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    pub(super) at: Prefix,
    pub(super) items: Vec<Item>,
}

/// An entry without its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    pub(super) id: u64,
    pub(super) version: u64,
    pub(super) hash: u64,
}

/// The first byte of every message.
const FORMAT: u8 = 1;

const SUMMARY: u8 = 1;
const BRANCHES: u8 = 2;
const LISTINGS: u8 = 3;
const WANT: u8 = 4;
const FETCH: u8 = 5;
const ENTRIES: u8 = 6;
const PUSH: u8 = 7;

impl Message {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        match self {
            Message::Summary { step, root } => {
                out.push(SUMMARY);
                put_number(&mut out, *step);
                put_number(&mut out, *root);
            }
            Message::Branches(branches) => {
                out.push(BRANCHES);
                put_length(&mut out, branches.len());
                for branch in branches {
                    put_prefix(&mut out, branch.at);
                    for sum in branch.sums {
                        put_number(&mut out, sum);
                    }
                }
            }
            Message::Listings(listings) => {
                out.push(LISTINGS);
                put_length(&mut out, listings.len());
                for listing in listings {
                    put_prefix(&mut out, listing.at);
                    put_length(&mut out, listing.items.len());
                    for item in &listing.items {
                        put_number(&mut out, item.id);
                        put_number(&mut out, item.version);
                        put_number(&mut out, item.hash);
                    }
                }
            }
            Message::Want(ids) => {
                out.push(WANT);
                put_length(&mut out, ids.len());
                for id in ids {
                    put_number(&mut out, *id);
                }
            }
            Message::Fetch { below, from } => {
                out.push(FETCH);
                put_prefix(&mut out, *below);
                put_number(&mut out, *from);
            }
            Message::Entries { entries, why, next } => {
                out.push(ENTRIES);
                out.push(match why {
                    Why::News => 0,
                    Why::Answer => 1,
                });
                match next {
                    None => out.push(0),
                    Some((below, from)) => {
                        out.push(1);
                        put_prefix(&mut out, *below);
                        put_number(&mut out, *from);
                    }
                }
                put_length(&mut out, entries.len());
                for record in entries {
                    codec::write(&mut out, record);
                }
            }
            Message::Push(on) => out.extend([PUSH, u8::from(*on)]),
        }
        out
    }

    /// Reads what [`Message::encode`] wrote; anything else is an error.
    pub fn decode(bytes: &[u8]) -> Result<Message, DecodeError> {
        if bytes.len() > MAX_MESSAGE {
            let length = bytes.len();
            return Err(DecodeError::TooLong { length });
        }
        let mut bytes = Bytes(bytes);
        match bytes.byte() {
            Some(FORMAT) => {}
            Some(format) => return Err(DecodeError::Format { format }),
            None => return Err(DecodeError::Malformed),
        }
        let message = read(&mut bytes).ok_or(DecodeError::Malformed)?;
        match bytes.is_empty() {
            true => Ok(message),
            false => Err(DecodeError::Malformed),
        }
    }

    /// The kind, for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Message::Summary { .. } => "summary",
            Message::Branches(_) => "branches",
            Message::Listings(_) => "listings",
            Message::Want(_) => "want",
            Message::Fetch { .. } => "fetch",
            Message::Entries { why: Why::News, .. } => "news",
            Message::Entries {
                why: Why::Answer, ..
            } => "answer",
            Message::Push(_) => "push",
        }
    }
}

fn read(bytes: &mut Bytes<'_>) -> Option<Message> {
    let message = match bytes.byte()? {
        SUMMARY => Message::Summary {
            step: bytes.number()?,
            root: bytes.number()?,
        },
        BRANCHES => Message::Branches(read_many(bytes, MAX_BRANCHES, |bytes| {
            let at = read_prefix(bytes)?;
            let mut sums = [0; FAN];
            for sum in &mut sums {
                *sum = bytes.number()?;
            }
            Some(Branch { at, sums })
        })?),
        LISTINGS => Message::Listings(read_many(bytes, MAX_ITEMS, |bytes| {
            Some(Listing {
                at: read_prefix(bytes)?,
                items: read_many(bytes, MAX_ITEMS, |bytes| {
                    Some(Item {
                        id: bytes.number()?,
                        version: bytes.number()?,
                        hash: bytes.number()?,
                    })
                })?,
            })
        })?),
        WANT => Message::Want(read_many(bytes, MAX_WANTS, Bytes::number)?),
        FETCH => Message::Fetch {
            below: read_prefix(bytes)?,
            from: bytes.number()?,
        },
        ENTRIES => Message::Entries {
            why: match bytes.byte()? {
                0 => Why::News,
                1 => Why::Answer,
                _ => return None,
            },
            next: match bytes.byte()? {
                0 => None,
                1 => Some((read_prefix(bytes)?, bytes.number()?)),
                _ => return None,
            },
            entries: read_many(bytes, MAX_ENTRIES, codec::read)?,
        },
        PUSH => Message::Push(match bytes.byte()? {
            0 => false,
            1 => true,
            _ => return None,
        }),
        _ => return None,
    };
    Some(message)
}

fn read_many<'a, T>(
    bytes: &mut Bytes<'a>,
    most: usize,
    read: impl Fn(&mut Bytes<'a>) -> Option<T>,
) -> Option<Vec<T>> {
    let count = bytes.length(most)?;
    // Nothing is reserved for what is merely announced.
    let mut found = Vec::new();
    for _ in 0..count {
        found.push(read(bytes)?);
    }
    Some(found)
}

fn put_number(out: &mut Vec<u8>, number: u64) {
    out.extend(number.to_be_bytes());
}

fn put_prefix(out: &mut Vec<u8>, prefix: Prefix) {
    let (depth, digits) = prefix.parts();
    out.push(depth);
    out.extend(digits.to_be_bytes());
}

fn read_prefix(bytes: &mut Bytes<'_>) -> Option<Prefix> {
    let depth = bytes.byte()?;
    Prefix::new(depth, u16::from_be_bytes(bytes.array()?))
}

/// Entries as one message after another, none larger than [`MAX_MESSAGE`].
pub(super) fn pack(records: impl IntoIterator<Item = Arc<Record>>, why: Why) -> Vec<Message> {
    let mut messages = Vec::new();
    let mut packet = Packet::default();
    for record in records {
        if !packet.fits(&record) {
            messages.push(std::mem::take(&mut packet).into_message(why, None));
        }
        packet.add(record);
    }
    if !packet.entries.is_empty() {
        messages.push(packet.into_message(why, None));
    }
    messages
}

/// A message with entries that is being filled.
#[derive(Default)]
pub(super) struct Packet {
    entries: Vec<Arc<Record>>,
    bytes: usize,
}

/// Kind, reason, where to go on, and the count.
const PACKET_HEADER: usize = 32;

impl Packet {
    pub fn fits(&self, record: &Record) -> bool {
        self.entries.len() < MAX_ENTRIES
            && PACKET_HEADER + self.bytes + codec::length(record) <= MAX_MESSAGE
    }

    pub fn add(&mut self, record: Arc<Record>) {
        self.bytes = self.bytes.saturating_add(codec::length(&record));
        self.entries.push(record);
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn into_message(self, why: Why, next: Option<(Prefix, u64)>) -> Message {
        let entries = self.entries;
        Message::Entries { entries, why, next }
    }
}

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("a message of {length} bytes is longer than {MAX_MESSAGE}")]
    TooLong { length: usize },
    #[error("message format {format} is not known here; the neighbour runs another version")]
    Format { format: u8 },
    #[error("a message that no node of ours writes")]
    Malformed,
}
