//! Ledger messages: block → JSON → gzip → AES-256-GCM → hexadecimal → an envelope in JSON, and back within bounds.

use super::{
    Block, BlockError, Bounds, SealKey,
    json::{Excess, Member, Skip},
};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use std::{
    borrow::Cow,
    cell::Cell,
    fmt,
    io::{Read, Write},
};

/// Seals a block into the `data` of a gossip message. No two messages under one key may share a nonce: draw it at random.
pub fn seal(block: &Block, key: &SealKey, nonce: [u8; NONCE_LEN]) -> Vec<u8> {
    let sealed = seal_bytes(&deflate(block.to_json().as_bytes()), key, nonce, &[]);
    envelope(&sealed)
}

/// Opens the `data` of a gossip message with the first key that fits.
pub fn open(data: &[u8], keys: &[SealKey], bounds: &Bounds) -> Result<Block, OpenError> {
    let sealed = open_envelope(data)?;
    let compressed = open_bytes(&sealed, keys, &[])?;
    drop(sealed);
    let json = inflate(&compressed, bounds)?;
    Ok(Block::from_json(&json, bounds)?)
}

/// Seals bytes: nonce, ciphertext, tag. `context` is not sent; both sides must name the same.
pub fn seal_bytes(plain: &[u8], key: &SealKey, nonce: [u8; NONCE_LEN], context: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(NONCE_LEN + plain.len() + AES_256_GCM.tag_len());
    sealed.extend(nonce);
    sealed.extend(plain);
    let body = sealed.get_mut(NONCE_LEN..).unwrap_or_default();
    let tag = cipher(key).and_then(|cipher| {
        cipher
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(context),
                body,
            )
            .ok()
    });
    match tag {
        Some(tag) => sealed.extend(tag.as_ref()),
        // Only more than 64 GiB of plaintext gets here; nothing leaves unsealed.
        None => sealed.clear(),
    }
    sealed
}

/// Opens what [`seal_bytes`] sealed, with the first key that fits.
pub fn open_bytes(sealed: &[u8], keys: &[SealKey], context: &[u8]) -> Result<Vec<u8>, OpenError> {
    let (nonce, body) = sealed
        .split_first_chunk::<NONCE_LEN>()
        .ok_or(OpenError::Short)?;
    let length = body
        .len()
        .checked_sub(AES_256_GCM.tag_len())
        .ok_or(OpenError::Short)?;
    let (ciphertext, tag) = body.split_at_checked(length).ok_or(OpenError::Short)?;
    let mut plain = vec![0; length];
    for cipher in keys.iter().filter_map(cipher) {
        let opened = cipher.open_separate_gather(
            Nonce::assume_unique_for_key(*nonce),
            Aad::from(context),
            ciphertext,
            tag,
            &mut plain,
        );
        if opened.is_ok() {
            return Ok(plain);
        }
    }
    Err(OpenError::Key)
}

/// Why a message was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("not the JSON of an envelope")]
    Envelope,
    #[error("the sealed bytes are not hexadecimal")]
    Hex,
    #[error("too short to be sealed")]
    Short,
    #[error("sealed with none of the known keys")]
    Key,
    #[error("not gzip")]
    Gzip,
    #[error("inflates to too much")]
    Bomb,
    #[error(transparent)]
    Block(#[from] BlockError),
}

impl OpenError {
    /// The reason in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Envelope => "envelope",
            Self::Hex => "hex",
            Self::Short => "short",
            Self::Key => "sealed",
            Self::Gzip => "gzip",
            Self::Bomb => "bomb",
            Self::Block(error) => error.label(),
        }
    }
}

fn cipher(key: &SealKey) -> Option<LessSafeKey> {
    let key = UnboundKey::new(&AES_256_GCM, key.as_bytes()).ok()?;
    Some(LessSafeKey::new(key))
}

/// Inflated bytes that are always allowed, so that the ratio judges no small message.
const FREE_INFLATED: usize = 1 << 20;

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    // Writing into memory does not fail.
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default()
}

fn inflate(compressed: &[u8], bounds: &Bounds) -> Result<Vec<u8>, OpenError> {
    let limit = compressed
        .len()
        .saturating_mul(bounds.ratio)
        .max(FREE_INFLATED)
        .min(bounds.inflated);
    let mut bytes = Vec::new();
    let mut decoder = MultiGzDecoder::new(compressed).take(limit as u64);
    decoder
        .read_to_end(&mut bytes)
        .map_err(|_| OpenError::Gzip)?;
    // One byte more, or a checksum that does not fit.
    let mut rest = decoder.into_inner();
    match rest.read(&mut [0]) {
        Ok(0) => Ok(bytes),
        Ok(_) => Err(OpenError::Bomb),
        Err(_) => Err(OpenError::Gzip),
    }
}

fn envelope(sealed: &[u8]) -> Vec<u8> {
    let mut data = Vec::with_capacity(sealed.len().saturating_mul(2).saturating_add(64));
    data.extend(b"{\"Message\":\"");
    data.extend(data_encoding::HEXLOWER.encode(sealed).as_bytes());
    data.extend(b"\",\"SenderID\":\"\",\"Annotations\":null}");
    data
}

/// The sealed bytes of an envelope. Whom it names as its sender is not looked at: anybody can write that.
fn open_envelope(data: &[u8]) -> Result<Vec<u8>, OpenError> {
    let broken = Cell::new(None);
    let mut json = serde_json::Deserializer::from_slice(data);
    let message = Envelope { broken: &broken }
        .deserialize(&mut json)
        .map_err(|_| match broken.get() {
            None => OpenError::Envelope,
            excess => OpenError::Block(BlockError::of(excess)),
        })?;
    json.end().map_err(|_| OpenError::Envelope)?;
    data_encoding::HEXLOWER_PERMISSIVE
        .decode(message.as_bytes())
        .map_err(|_| OpenError::Hex)
}

#[derive(Clone, Copy)]
enum EnvelopeMember {
    Message,
    SenderId,
    Annotations,
}

const ENVELOPE: &[(&str, EnvelopeMember)] = &[
    ("Message", EnvelopeMember::Message),
    ("SenderID", EnvelopeMember::SenderId),
    ("Annotations", EnvelopeMember::Annotations),
];

struct Envelope<'a> {
    broken: &'a Cell<Option<Excess>>,
}

impl<'de> DeserializeSeed<'de> for Envelope<'_> {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Envelope<'_> {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an envelope")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut message = Cow::Borrowed("");
        while let Some(member) = members.next_key_seed(Member(ENVELOPE))? {
            match member {
                Some(EnvelopeMember::Message) => {
                    if let Some(text) = members.next_value_seed(BorrowedText)? {
                        message = text;
                    }
                }
                Some(EnvelopeMember::SenderId) => {
                    members.next_value_seed(BorrowedText)?;
                }
                Some(EnvelopeMember::Annotations) => {
                    members.next_value_seed(Annotations {
                        broken: self.broken,
                    })?;
                }
                None => members.next_value_seed(Skip::new(self.broken))?,
            }
        }
        Ok(message)
    }
}

/// A text that stays where it is, if it can; `None` for `null`.
struct BorrowedText;

impl<'de> DeserializeSeed<'de> for BorrowedText {
    type Value = Option<Cow<'de, str>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for BorrowedText {
    type Value = Option<Cow<'de, str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Some(Cow::Borrowed(text)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(Cow::Owned(text.to_owned())))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// An object or `null`; only PeerGuardian looks inside.
struct Annotations<'a> {
    broken: &'a Cell<Option<Excess>>,
}

impl<'de> DeserializeSeed<'de> for Annotations<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Annotations<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("annotations")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while members.next_key::<IgnoredAny>()?.is_some() {
            members.next_value_seed(Skip::new(self.broken))?;
        }
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }
}
