//! Signed entries: the bytes under a signature, and which signatures count. The accept set is exactly that of EdgeVPN's Go
//! libraries, because a node that accepts more or less ends with another ledger than its neighbours.

use super::Entry;
use crate::id::{PeerId, parse_peer_id};
use libp2p::identity::{KeyType, Keypair, PublicKey};

impl Entry {
    /// The bytes under the signature: bucket, key and owner with their lengths, version, time, tombstone, value with its length.
    pub fn canonical(&self, bucket: &str, key: &str) -> Vec<u8> {
        let texts = [bucket, key, &self.owner, &self.value];
        let length = texts.iter().map(|text| text.len() + 8).sum::<usize>() + 17;
        let mut bytes = Vec::with_capacity(length);
        let mut put = |text: &str| {
            bytes.extend((text.len() as u64).to_be_bytes());
            bytes.extend(text.as_bytes());
        };
        put(bucket);
        put(key);
        put(&self.owner);
        bytes.extend(self.version.to_be_bytes());
        bytes.extend(self.updated_at.to_be_bytes());
        bytes.push(u8::from(self.deleted));
        bytes.extend((self.value.len() as u64).to_be_bytes());
        bytes.extend(self.value.as_bytes());
        bytes
    }

    /// Makes `keypair` the owner and signs the entry as it stands. Kinds of keys whose ids do not hold them own nothing: who
    /// reads the entry could not check it.
    pub fn sign(
        &mut self,
        bucket: &str,
        key: &str,
        keypair: &Keypair,
    ) -> Result<(), SignatureError> {
        let owner = keypair.public().to_peer_id();
        if embedded_key(&owner).is_none() {
            return Err(SignatureError::NoKey);
        }
        self.owner = owner.to_base58();
        self.signature = keypair
            .sign(&self.canonical(bucket, key))
            .map_err(|_| SignatureError::NoKey)?;
        Ok(())
    }

    /// Whose entry this is, if its signature proves it.
    pub fn verify(&self, bucket: &str, key: &str) -> Result<PeerId, SignatureError> {
        if self.signature.is_empty() || self.owner.is_empty() {
            return Err(SignatureError::Unsigned);
        }
        // The same id as a CID is refused: the owner is compared as text everywhere.
        if !(self.owner.starts_with('1') || self.owner.starts_with("Qm")) {
            return Err(SignatureError::NotAPeer);
        }
        let owner = parse_peer_id(&self.owner).map_err(|_| SignatureError::NotAPeer)?;
        let public = embedded_key(&owner).ok_or(SignatureError::NoKey)?;
        let message = self.canonical(bucket, key);
        let valid = match public.key_type() {
            // The reference accepts both signatures (r, s) and (r, -s); the library at hand only the one with the lower s.
            KeyType::Secp256k1 => match lower_s(&self.signature) {
                Some(signature) => public.verify(&message, &signature),
                None => public.verify(&message, &self.signature),
            },
            // Cofactorless, R compared as bytes, S below the group order, any encoding of A.
            _ => public.verify(&message, &self.signature),
        };
        valid.then_some(owner).ok_or(SignatureError::Wrong)
    }
}

/// Why a signature does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("the entry is not signed")]
    Unsigned,
    #[error("the owner is no peer id in base58")]
    NotAPeer,
    #[error("the owner's id holds no public key")]
    NoKey,
    #[error("the signature is not the owner's")]
    Wrong,
}

/// The key inside an id; short keys (Ed25519, secp256k1) are there as they are, long ones only as a hash.
fn embedded_key(peer: &PeerId) -> Option<PublicKey> {
    let multihash = peer.as_ref();
    (multihash.code() == IDENTITY)
        .then(|| PublicKey::try_decode_protobuf(multihash.digest()).ok())
        .flatten()
}

/// Multihash code of bytes that are not hashed.
const IDENTITY: u64 = 0x00;

/// The order of secp256k1, <https://www.secg.org/sec2-v2.pdf> section 2.4.1.
const SECP256K1_ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe,
    0xba, 0xae, 0xdc, 0xe6, 0xaf, 0x48, 0xa0, 0x3b, 0xbf, 0xd2, 0x5e, 0x8c, 0xd0, 0x36, 0x41, 0x41,
];

/// Rewrites a DER signature (r, s) as (r, n - s) when that is the lower one; `None` when there is nothing to rewrite.
fn lower_s(signature: &[u8]) -> Option<Vec<u8>> {
    let [SEQUENCE, length, INTEGER, r_length, rest @ ..] = signature else {
        return None;
    };
    if usize::from(*length) != signature.len().checked_sub(2)? {
        return None;
    }
    let (r, rest) = rest.split_at_checked(usize::from(*r_length))?;
    let [INTEGER, s_length, s @ ..] = rest else {
        return None;
    };
    // DER has one way to write a number: no sign, and a leading zero only where a sign bit would stand otherwise.
    let canonical = match s {
        [0, second, ..] => *second >= 0x80,
        [first, ..] => (1..0x80).contains(first),
        [] => false,
    };
    if usize::from(*s_length) != s.len() || !canonical {
        return None;
    }
    let s = s.strip_prefix(&[0]).unwrap_or(s);
    let mut wide = [0; 32];
    wide.get_mut(32_usize.checked_sub(s.len())?..)?
        .copy_from_slice(s);
    let lower = complement(&wide).filter(|lower| *lower < wide)?;
    let digits = lower.iter().position(|byte| *byte != 0)?;
    let digits = lower.get(digits..)?;
    let mut body = vec![INTEGER, *r_length];
    body.extend(r);
    let sign = usize::from(digits.first().is_some_and(|byte| *byte >= 0x80));
    body.extend([INTEGER, u8::try_from(digits.len() + sign).ok()?]);
    body.extend(std::iter::repeat_n(0, sign));
    body.extend(digits);
    let mut rewritten = vec![SEQUENCE, u8::try_from(body.len()).ok()?];
    rewritten.extend(body);
    Some(rewritten)
}

/// ASN.1 tags.
const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;

/// n - s; `None` unless s < n.
fn complement(s: &[u8; 32]) -> Option<[u8; 32]> {
    let mut difference = [0; 32];
    let mut borrow = false;
    for ((to, n), s) in difference.iter_mut().zip(SECP256K1_ORDER).zip(s).rev() {
        let (once, under) = n.overflowing_sub(*s);
        let (twice, under_again) = once.overflowing_sub(u8::from(borrow));
        *to = twice;
        borrow = under || under_again;
    }
    (!borrow).then_some(difference)
}
