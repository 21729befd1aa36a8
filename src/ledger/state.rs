//! The ledger as a file, so that a restart forgets nothing.
//!
//! ```text
//! file     = "edgevpn ledger" version (1) envelope count (4, big endian) record* SHA-256 of all before (32)
//! envelope = index (8) timestamp hash previous_hash          each a text
//! ```

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::{
    Envelope, Ledger, Terms,
    codec::{self, Bytes, put_text},
    quota::MAX_ENTRIES,
};
use crate::id::PeerId;

const MAGIC: &[u8] = b"edgevpn ledger";
const VERSION: u8 = 1;

/// Bytes of a digest.
const DIGEST: usize = 32;

/// Bytes of a text in the envelope. Ours have 64; a block that was adopted may bring others.
const MAX_TEXT: usize = 4096;

impl Ledger {
    /// Everything that is held, the same bytes for the same content.
    pub fn to_state(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.push(VERSION);
        out.extend(self.envelope.index.to_be_bytes());
        for text in [
            &self.envelope.timestamp,
            &self.envelope.hash,
            &self.envelope.previous_hash,
        ] {
            put_text(&mut out, cut(text));
        }
        let count = u32::try_from(self.items.len()).unwrap_or(u32::MAX);
        out.extend(count.to_be_bytes());
        for record in self.items.values() {
            codec::write(&mut out, record);
        }
        let digest: [u8; DIGEST] = Sha256::digest(&out).into();
        out.extend(digest);
        out
    }

    /// Reads what [`Ledger::to_state`] wrote. Signatures are checked again, once somebody asks for them. Call
    /// [`Ledger::maintain`] next: the clock has moved on since.
    pub fn from_state(local: PeerId, terms: Terms, bytes: &[u8]) -> Result<Ledger, StateError> {
        let content = check(bytes)?;
        let mut ledger = Ledger::new(local, terms);
        let mut bytes = Bytes(content);
        read(&mut bytes, &mut ledger)
            .filter(|()| bytes.is_empty())
            .ok_or(StateError::Malformed)?;
        Ok(ledger)
    }
}

/// The content between version and digest.
fn check(bytes: &[u8]) -> Result<&[u8], StateError> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(StateError::NotAState)?;
    let (version, _) = rest.split_first().ok_or(StateError::Cut)?;
    if *version != VERSION {
        return Err(StateError::Version { version: *version });
    }
    let end = bytes.len().checked_sub(DIGEST).ok_or(StateError::Cut)?;
    let (content, digest) = bytes.split_at_checked(end).ok_or(StateError::Cut)?;
    let expected: [u8; DIGEST] = Sha256::digest(content).into();
    if digest != expected {
        return Err(StateError::Checksum);
    }
    content.get(MAGIC.len() + 1..).ok_or(StateError::Cut)
}

fn read(bytes: &mut Bytes<'_>, ledger: &mut Ledger) -> Option<()> {
    ledger.envelope = Envelope {
        index: i64::from_be_bytes(bytes.array()?),
        timestamp: bytes.text(MAX_TEXT)?.to_owned(),
        hash: bytes.text(MAX_TEXT)?.to_owned(),
        previous_hash: bytes.text(MAX_TEXT)?.to_owned(),
    };
    let count = u32::from_be_bytes(bytes.array()?);
    if usize::try_from(count).ok()? > MAX_ENTRIES {
        return None;
    }
    for _ in 0..count {
        let record = codec::read(bytes)?;
        let is_new = !ledger.items.contains_key(&record.id());
        is_new.then(|| ledger.insert(Arc::clone(&record)))?;
    }
    // What was held is no change.
    ledger.unsealed = false;
    Some(())
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// Why bytes are not a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    #[error("not a ledger; it does not begin as one")]
    NotAState,
    #[error(
        "ledger format {version} is not known here; was it written by a newer version of edgevpn?"
    )]
    Version { version: u8 },
    #[error("the ledger is cut off")]
    Cut,
    #[error("the ledger is damaged: its checksum is wrong")]
    Checksum,
    #[error("the ledger is malformed although its checksum is right")]
    Malformed,
}
