//! Names that every part of the program shares: peers, generations, key paths and where a value came from.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, Hasher, RandomState},
    sync::Arc,
    time::Duration,
};

pub use libp2p::PeerId;

/// Reads a peer id as people write it: base58 (`12D3KooW…`, `Qm…`) or CIDv1 in any multibase (`bafz…`, `k51…`).
/// Both forms of one id give the same `PeerId`, so that comparing is comparing canonical bytes.
///
/// <https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md#string-representation>
pub fn parse_peer_id(text: &str) -> Result<PeerId, PeerIdError> {
    if text.is_empty() {
        return Err(PeerIdError::Empty);
    }
    if text.len() > MAX_TEXT {
        return Err(PeerIdError::TooLong { length: text.len() });
    }
    let bytes = if text.starts_with('1') || text.starts_with("Qm") {
        multibase::Base::Base58Btc
            .decode(text)
            .map_err(|_| PeerIdError::NotAPeerId)?
    } else {
        let (_, cid) = multibase::decode(text).map_err(|_| PeerIdError::NotAPeerId)?;
        match cid.as_slice() {
            [CID_V1, LIBP2P_KEY, multihash @ ..] => multihash.to_vec(),
            [CID_V1, ..] => return Err(PeerIdError::NotAKey),
            _ => return Err(PeerIdError::NotAPeerId),
        }
    };
    PeerId::from_bytes(&bytes).map_err(|_| PeerIdError::BadKey)
}

/// The longest id, a 64-byte digest with its headers, takes about 560 characters in base 2; decoding base58 is quadratic.
const MAX_TEXT: usize = 600;

/// Version and content type (`libp2p-key`) of a peer id written as a CID; both varints take one byte.
const CID_V1: u8 = 0x01;
const LIBP2P_KEY: u8 = 0x72;

/// Why a text is not a peer id. The caller names the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerIdError {
    #[error("a peer id is missing; it looks like 12D3KooW… and the peer prints it when it starts")]
    Empty,
    #[error("not a peer id: {length} characters are too many")]
    TooLong { length: usize },
    #[error("not a peer id; expected base58 (12D3KooW… or Qm…) or a CIDv1 (bafz… or k51…)")]
    NotAPeerId,
    #[error("a CID of something else than a libp2p key; expected content type libp2p-key (0x72)")]
    NotAKey,
    #[error("not a peer id: what it encodes is no hash of a public key; was it cut or mistyped?")]
    BadKey,
}

/// A map by peer for tables that peers fill: keyed, so that nobody can choose peers that collide, and at a third of the
/// cost of hashing a whole id.
pub type PeerMap<V> = HashMap<PeerId, V, PeerHashing>;

/// See [`PeerMap`].
#[derive(Clone, Debug, Default)]
pub struct PeerHashing(RandomState);

/// Hashes sixteen bytes out of the middle of an id. They are key or digest in every form an id takes, and finding two keys
/// that share them takes 2^64 attempts.
pub struct PeerHasher(<RandomState as BuildHasher>::Hasher);

impl BuildHasher for PeerHashing {
    type Hasher = PeerHasher;

    fn build_hasher(&self) -> PeerHasher {
        PeerHasher(self.0.build_hasher())
    }
}

impl Hasher for PeerHasher {
    fn write(&mut self, digest: &[u8]) {
        self.0.write(digest.get(16..32).unwrap_or(digest));
    }

    /// The length of the buffer, the same for all.
    fn write_usize(&mut self, _: usize) {}

    /// The kind of hash.
    fn write_u64(&mut self, _: u64) {}

    /// The length of the digest.
    fn write_u8(&mut self, _: u8) {}

    fn finish(&self) -> u64 {
        self.0.finish()
    }
}

/// The number of an applied configuration. The first one a node applies is 1; 0 means that nothing is applied yet.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A moment of the calendar, as time since 1970-01-01 UTC. What peers and files say about time is of this kind; how long
/// something takes is measured with `Instant`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(pub Duration);

impl UnixTime {
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    pub const fn as_secs(self) -> u64 {
        self.0.as_secs()
    }

    /// Nanoseconds, as entry versions count; saturates in the year 2554.
    pub fn as_nanos(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }

    pub fn saturating_add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }

    pub fn saturating_sub(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span))
    }

    /// How long ago `earlier` was; zero when it lies ahead.
    pub fn since(self, earlier: UnixTime) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Where an effective value was set. Every refusal and every diagnostic names one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A line of a file, as the operator wrote its path; lines count from 1.
    File { file: Arc<str>, line: u32 },
    /// An environment variable.
    Env(&'static str),
    /// Nobody set it.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { file, line } => write!(f, "{file}:{line}"),
            Origin::Env(name) => write!(f, "env {name}"),
            Origin::Default => f.write_str("default"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p::multihash::Multihash;

    #[test]
    fn a_peer_map_tells_peers_of_every_kind_apart() {
        let mut map = PeerMap::default();
        for number in 0_u32..1_000 {
            let mut key = [0_u8; 32];
            key[20..24].copy_from_slice(&number.to_be_bytes());
            let hashed = Multihash::wrap(0x12, &key).expect("32 bytes fit");
            let inlined =
                Multihash::wrap(0, &[&[8, 1, 18, 32], &key[..]].concat()).expect("36 bytes fit");
            for hash in [hashed, inlined] {
                let peer = PeerId::from_multihash(hash).expect("a peer id");
                assert_eq!(map.insert(peer, number), None);
                assert_eq!(map.get(&peer), Some(&number));
            }
        }
        assert_eq!(map.len(), 2_000);
        let hashing = PeerHashing::default();
        let hashes: std::collections::HashSet<u64> =
            map.keys().map(|peer| hashing.hash_one(peer)).collect();
        assert!(
            hashes.len() > 1_900,
            "only {} hashes for 2,000 peers",
            hashes.len()
        );
    }

    const BASE58: &str = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA";

    fn cid(base: multibase::Base, codec: u8) -> String {
        let peer: PeerId = BASE58.parse().expect("a peer id");
        let mut bytes = vec![CID_V1, codec];
        bytes.extend(peer.to_bytes());
        multibase::encode(base, bytes)
    }

    #[test]
    fn every_way_to_write_an_id_gives_the_same_peer() {
        let peer = parse_peer_id(BASE58).expect("base58");
        use multibase::Base::*;
        for base in [
            Base32Lower,
            Base32Upper,
            Base36Lower,
            Base36Upper,
            Base58Btc,
            Base16Lower,
            Base64Url,
            Base2,
        ] {
            assert_eq!(parse_peer_id(&cid(base, LIBP2P_KEY)), Ok(peer), "{base:?}");
        }
    }

    #[test]
    fn the_examples_of_the_specification_are_one_peer() {
        let base58 = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N";
        let cid = "bafzbeie5745rpv2m6tjyuugywy4d5ewrqgqqhfnf445he3omzpjbx5xqxe";
        assert_eq!(parse_peer_id(cid), parse_peer_id(base58));
        assert!(parse_peer_id(cid).is_ok());
    }

    #[test]
    fn a_cid_of_something_else_is_named_as_such() {
        let dag_pb = cid(multibase::Base::Base32Lower, 0x70);
        assert_eq!(parse_peer_id(&dag_pb), Err(PeerIdError::NotAKey));
    }

    #[test]
    fn what_is_no_id_is_an_error_and_never_a_panic() {
        assert_eq!(parse_peer_id(""), Err(PeerIdError::Empty));
        assert_eq!(parse_peer_id("hub"), Err(PeerIdError::NotAPeerId));
        assert_eq!(parse_peer_id("münchen"), Err(PeerIdError::NotAPeerId));
        assert_eq!(
            parse_peer_id(BASE58.get(..40).expect("ascii")),
            Err(PeerIdError::BadKey)
        );
        let long = "1".repeat(100_000);
        assert_eq!(
            parse_peer_id(&long),
            Err(PeerIdError::TooLong { length: 100_000 })
        );
    }
}
