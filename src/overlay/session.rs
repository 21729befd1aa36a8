//! The direct carrier between two nodes as keys and datagrams: what they offer each other over an authenticated stream, the
//! keys that follow, and sealing and opening with them.
//!
//! ```text
//! u8 kind | u8 epoch | u8 flags | 0 | u32 receiver index | u64 counter | ciphertext | 16 bytes of tag
//! ```
//!
//! Integers are big-endian; the sixteen bytes before the ciphertext are authenticated with it. The counter is the nonce,
//! and each direction has a key of its own.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, MAX_TAG_LEN, Nonce, UnboundKey},
    agreement::{self, UnparsedPublicKey, X25519},
    digest, hkdf,
};

use super::{replay::Replay, router::Drop};
use crate::id::PeerId;

/// Bytes a datagram has beside its payload.
pub const OVERHEAD: usize = HEADER + MAX_TAG_LEN;

/// Bytes before the payload.
pub const HEADER: usize = 16;

/// Sealed with one key at most; WireGuard's limit is 2^60, a new key is due after 2^32.
const MOST_SEALED: u64 = 1 << 48;

/// Where a node may be reached; more are cut off.
pub const MOST_CANDIDATES: usize = 16;

/// Version of this format.
const VERSION: u8 = 1;

/// What one side tells the other before keys are made. Sent over a stream that proves its peer id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// X25519.
    pub public: [u8; 32],
    /// What datagrams to this side begin with.
    pub index: u32,
    pub epoch: u8,
    pub ciphers: Ciphers,
    /// The UDP port of its datagrams, for the addresses that the other side sees it at.
    pub port: u16,
    pub candidates: Vec<SocketAddr>,
}

/// Which ciphers a node is fast at; it can do both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ciphers {
    /// The processor has instructions for AES.
    pub aes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OfferError {
    #[error("an offer of version {0}; this node speaks {VERSION}")]
    Version(u8),
    #[error("an offer that is cut off or too long")]
    Length,
    #[error("an address family that does not exist")]
    Family,
    #[error("a public key that is none")]
    Key,
}

/// The secret half of [`Offer::public`].
pub struct Secret(agreement::PrivateKey);

impl Secret {
    /// `random` must be just that.
    pub fn of(random: &[u8; 32]) -> Option<Self> {
        agreement::PrivateKey::from_private_key(&X25519, random)
            .ok()
            .map(Self)
    }

    pub fn public(&self) -> Option<[u8; 32]> {
        self.0.compute_public_key().ok()?.as_ref().try_into().ok()
    }
}

impl Offer {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION, self.epoch, u8::from(self.ciphers.aes)];
        bytes.extend(self.port.to_be_bytes());
        bytes.extend(self.index.to_be_bytes());
        bytes.extend(self.public);
        let candidates = self
            .candidates
            .get(..MOST_CANDIDATES)
            .unwrap_or(&self.candidates);
        bytes.push(candidates.len() as u8);
        for candidate in candidates {
            match candidate.ip() {
                IpAddr::V4(ip) => {
                    bytes.push(4);
                    bytes.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.push(6);
                    bytes.extend(ip.octets());
                }
            }
            bytes.extend(candidate.port().to_be_bytes());
        }
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, OfferError> {
        let mut from = Reader(bytes);
        let [version] = from.take()?;
        if version != VERSION {
            return Err(OfferError::Version(version));
        }
        let [epoch, aes] = from.take()?;
        let port = u16::from_be_bytes(from.take()?);
        let index = u32::from_be_bytes(from.take()?);
        let public = from.take()?;
        let [count] = from.take()?;
        if usize::from(count) > MOST_CANDIDATES {
            return Err(OfferError::Length);
        }
        let mut candidates = Vec::new();
        for _ in 0..count {
            let ip: IpAddr = match from.take()? {
                [4] => from.take::<4>()?.into(),
                [6] => from.take::<16>()?.into(),
                _ => return Err(OfferError::Family),
            };
            candidates.push(SocketAddr::new(ip, u16::from_be_bytes(from.take()?)));
        }
        if !from.0.is_empty() {
            return Err(OfferError::Length);
        }
        Ok(Self {
            public,
            index,
            epoch,
            ciphers: Ciphers { aes: aes & 1 != 0 },
            port,
            candidates,
        })
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], OfferError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(OfferError::Length)?;
        self.0 = rest;
        Ok(*taken)
    }
}

/// One side of a session: seals what goes to the peer and opens what comes from it.
pub struct Session {
    seal: LessSafeKey,
    open: LessSafeKey,
    /// Where the peer finds this session.
    remote_index: u32,
    epoch: u8,
    next: AtomicU64,
    replay: Mutex<Replay>,
}

/// What a datagram is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One IP packet.
    Packet,
    /// Asks for an [`Echo`](Kind::Echo): proves the path for datagrams of its size.
    Probe,
    /// The token of a probe, and the address it came from.
    Echo,
}

/// The transport checksum of the packet is left out: the tag of the datagram proves every byte.
pub const SUM_LEFT: u8 = 1;

/// What a datagram has turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    pub kind: Kind,
    pub flags: u8,
    /// Bytes of payload, from [`HEADER`] on.
    pub length: usize,
}

impl Session {
    /// The session that two offers make, the same on both sides. Each side's id is proven by the stream the offers came
    /// over, and goes into the keys with both offers.
    pub fn agree(
        secret: &Secret,
        me: (&PeerId, &Offer),
        peer: (&PeerId, &Offer),
    ) -> Result<Self, OfferError> {
        let lower = me.0.to_bytes() < peer.0.to_bytes();
        let (first, second) = if lower { (me, peer) } else { (peer, me) };
        let mut transcript = digest::Context::new(&digest::SHA256);
        transcript.update(b"edgevpn direct carrier 1");
        for (id, offer) in [first, second] {
            for part in [id.to_bytes(), offer.encode()] {
                transcript.update(&(part.len() as u64).to_be_bytes());
                transcript.update(&part);
            }
        }
        let transcript = transcript.finish();
        let public = UnparsedPublicKey::new(&X25519, peer.1.public);
        agreement::agree(&secret.0, public, OfferError::Key, |shared| {
            let keys = hkdf::Salt::new(hkdf::HKDF_SHA256, transcript.as_ref()).extract(shared);
            let aes = me.1.ciphers.aes && peer.1.ciphers.aes;
            let key = |direction: &[u8]| {
                let algorithm = if aes {
                    &AES_256_GCM
                } else {
                    &CHACHA20_POLY1305
                };
                let info = [direction];
                let okm = keys.expand(&info, algorithm).map_err(|_| OfferError::Key)?;
                Ok(LessSafeKey::new(UnboundKey::from(okm)))
            };
            let (up, down) = (key(b"first to second")?, key(b"second to first")?);
            let (seal, open) = if lower { (up, down) } else { (down, up) };
            Ok(Self {
                seal,
                open,
                remote_index: peer.1.index,
                epoch: me.1.epoch,
                next: AtomicU64::new(0),
                replay: Mutex::default(),
            })
        })
    }

    /// Seals the payload at [`HEADER`]`..HEADER + length` of `buffer` in place and gives the bytes of the datagram. `None`: the
    /// buffer has no room for the tag, or the key is used up.
    pub fn seal(&self, kind: Kind, flags: u8, buffer: &mut [u8], length: usize) -> Option<usize> {
        let counter = self.next.fetch_add(1, Ordering::Relaxed);
        if counter >= MOST_SEALED {
            return None;
        }
        let total = HEADER + length + MAX_TAG_LEN;
        let (header, rest) = buffer.get_mut(..total)?.split_first_chunk_mut::<HEADER>()?;
        let [i0, i1, i2, i3] = self.remote_index.to_be_bytes();
        let [c0, c1, c2, c3, c4, c5, c6, c7] = counter.to_be_bytes();
        *header = [
            kind.code(),
            self.epoch,
            flags,
            0,
            i0,
            i1,
            i2,
            i3,
            c0,
            c1,
            c2,
            c3,
            c4,
            c5,
            c6,
            c7,
        ];
        let (payload, tag) = rest.split_at_mut_checked(length)?;
        let sealed = self
            .seal
            .seal_in_place_separate_tag(nonce(counter), Aad::from(*header), payload)
            .ok()?;
        tag.copy_from_slice(sealed.as_ref());
        Some(total)
    }

    /// Opens a datagram in place. Nothing of it is believed before its tag is proven.
    pub fn open(&self, datagram: &mut [u8]) -> Result<Opened, Drop> {
        let (header, sealed) = datagram
            .split_first_chunk_mut::<HEADER>()
            .ok_or(Drop::Malformed)?;
        let kind = Kind::of(header[0]).ok_or(Drop::Malformed)?;
        let counter = counter_of(header);
        let length = self
            .open
            .open_in_place(nonce(counter), Aad::from(*header), sealed)
            .map_err(|_| Drop::NotAuthentic)?
            .len();
        let mut replay = self.replay.lock().unwrap_or_else(PoisonError::into_inner);
        if !replay.accept(counter) {
            return Err(Drop::Replayed);
        }
        Ok(Opened {
            kind,
            flags: header[2],
            length,
        })
    }

    /// Datagrams sealed so far.
    pub fn sealed(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Kind::Packet => 1,
            Kind::Probe => 2,
            Kind::Echo => 3,
        }
    }

    fn of(code: u8) -> Option<Self> {
        [Kind::Packet, Kind::Probe, Kind::Echo]
            .into_iter()
            .find(|kind| kind.code() == code)
    }
}

/// The session a datagram is for, as it says itself. `None`: it is too short or of no kind we know.
pub fn index_of(datagram: &[u8]) -> Option<u32> {
    if datagram.len() < OVERHEAD {
        return None;
    }
    let header = datagram.first_chunk::<HEADER>()?;
    Kind::of(header[0])?;
    Some(u32::from_be_bytes([
        header[4], header[5], header[6], header[7],
    ]))
}

fn counter_of(header: &[u8; HEADER]) -> u64 {
    let [.., c0, c1, c2, c3, c4, c5, c6, c7] = *header;
    u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7])
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    if let Some(last) = nonce.last_chunk_mut() {
        *last = counter.to_be_bytes();
    }
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p::identity::Keypair;
    use proptest::prelude::*;

    fn peer(seed: u8) -> PeerId {
        let keypair = Keypair::ed25519_from_bytes([seed; 32]).expect("a key");
        keypair.public().to_peer_id()
    }

    fn offer(seed: u8, aes: bool) -> (Secret, Offer) {
        let secret = Secret::of(&[seed; 32]).expect("a secret");
        let offer = Offer {
            public: secret.public().expect("a key"),
            index: u32::from(seed) << 8,
            epoch: 0,
            ciphers: Ciphers { aes },
            port: 4_502,
            candidates: vec![
                "192.0.2.1:4502".parse().unwrap(),
                "[2001:db8::1]:9".parse().unwrap(),
            ],
        };
        (secret, offer)
    }

    fn sessions(aes: bool) -> (Session, Session) {
        let ((one, mine), (other, theirs)) = (offer(1, aes), offer(2, true));
        let one = Session::agree(&one, (&peer(1), &mine), (&peer(2), &theirs));
        let other = Session::agree(&other, (&peer(2), &theirs), (&peer(1), &mine));
        (one.expect("agrees"), other.expect("agrees"))
    }

    fn sealed(session: &Session, payload: &[u8]) -> Vec<u8> {
        let mut buffer = vec![0; payload.len() + OVERHEAD];
        buffer[HEADER..HEADER + payload.len()].copy_from_slice(payload);
        let length = session.seal(Kind::Packet, SUM_LEFT, &mut buffer, payload.len());
        assert_eq!(length, Some(buffer.len()));
        buffer
    }

    #[test]
    fn both_sides_agree_and_read_each_other() {
        for aes in [true, false] {
            let (one, other) = sessions(aes);
            for (from, to, index) in [(&one, &other, 2 << 8), (&other, &one, 1 << 8)] {
                let mut datagram = sealed(from, b"packet");
                assert_eq!(index_of(&datagram), Some(index));
                let opened = Opened {
                    kind: Kind::Packet,
                    flags: SUM_LEFT,
                    length: 6,
                };
                let mut again = datagram.clone();
                assert_eq!(to.open(&mut datagram), Ok(opened));
                assert_eq!(&datagram[HEADER..HEADER + 6], b"packet");
                assert_eq!(to.open(&mut again), Err(Drop::Replayed));
            }
        }
    }

    /// A change of the key schedule or of the format shows here: two versions of the program must understand each other.
    #[test]
    fn the_schedule_and_the_format_are_fixed() {
        let (one, _) = sessions(true);
        let found = sealed(&one, b"packet");
        assert_eq!(
            data_encoding::HEXLOWER.encode(&found),
            include_str!("session.hex").trim()
        );
    }

    #[test]
    fn a_third_party_or_another_offer_gives_other_keys() {
        let ((one, mine), (other, theirs), (third, foreign)) =
            (offer(1, true), offer(2, true), offer(3, true));
        let session = Session::agree(&one, (&peer(1), &mine), (&peer(2), &theirs)).expect("agrees");
        let datagram = sealed(&session, b"packet");
        let mut changed = mine.clone();
        changed.candidates.clear();
        for wrong in [
            Session::agree(&third, (&peer(2), &foreign), (&peer(1), &mine)),
            Session::agree(&other, (&peer(3), &theirs), (&peer(1), &mine)),
            Session::agree(&other, (&peer(2), &theirs), (&peer(1), &changed)),
        ] {
            let opened = wrong
                .expect("agrees on something")
                .open(&mut datagram.clone());
            assert_eq!(opened, Err(Drop::NotAuthentic));
        }
    }

    proptest! {
        #[test]
        fn a_datagram_that_was_touched_anywhere_is_not_authentic(at in 0_usize..38, bit in 0_u8..8) {
            let (one, other) = sessions(true);
            let mut datagram = sealed(&one, b"packet");
            datagram[at] ^= 1 << bit;
            prop_assert!(matches!(other.open(&mut datagram), Err(Drop::NotAuthentic | Drop::Malformed)));
        }

        #[test]
        fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let (one, _) = sessions(true);
            let mut bytes = bytes;
            let _ = index_of(&bytes);
            prop_assert!(one.open(&mut bytes).is_err());
            let _ = Offer::decode(&bytes);
        }
    }

    #[test]
    fn offers_survive_the_wire_and_no_other_bytes_do() {
        let (_, offer) = offer(1, true);
        let bytes = offer.encode();
        assert_eq!(Offer::decode(&bytes), Ok(offer));
        for length in 0..bytes.len() {
            assert_eq!(Offer::decode(&bytes[..length]), Err(OfferError::Length));
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(Offer::decode(&longer), Err(OfferError::Length));
    }
}
