//! What a token derives from the time: topics, the sealing key, the rendezvous. All of it changes at the end of a window.

use super::{Rotation, Token};
use crate::id::UnixTime;
use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::STANDARD};
use md5::{Digest, Md5};
use sha2::Sha256;
use zeroize::Zeroize;

/// The number of a window: whole intervals since 1970. Windows of `otp.crypto` and of `otp.dht` count apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Window(pub u64);

impl Window {
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    pub fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl Token {
    /// The window of topics and sealing keys.
    pub fn window(&self, now: UnixTime) -> Window {
        window(&self.crypto, now)
    }

    /// When topic and sealing key change next.
    pub fn next_rotation(&self, now: UnixTime) -> UnixTime {
        end(&self.crypto, now)
    }

    /// The gossip topic of the ledger.
    pub fn topic(&self, window: Window) -> String {
        md5_hex(&self.room_text(window))
    }

    /// The gossip topic of PeerGuardian challenges.
    pub fn public_topic(&self, window: Window) -> String {
        md5_hex(&(self.room_text(window) + "public"))
    }

    fn room_text(&self, window: Window) -> String {
        totp(&self.room, window, self.crypto.length)
    }

    /// The key that seals ledger messages.
    pub fn seal_key(&self, window: Window) -> SealKey {
        let mut text = md5_hex(&totp(&self.crypto.key, window, self.crypto.length));
        let mut key = [0; 32];
        for (to, from) in key.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        text.zeroize();
        SealKey(key)
    }

    /// The window of rendezvous texts.
    pub fn dht_window(&self, now: UnixTime) -> Window {
        window(&self.dht, now)
    }

    /// When the rendezvous changes next; `None` when it never does.
    pub fn next_rendezvous(&self, now: UnixTime) -> Option<UnixTime> {
        (!self.dht.key.is_empty()).then(|| end(&self.dht, now))
    }

    /// The text under which members find each other in the DHT. Without `otp.dht.key` it is `rendezvous`, for ever.
    pub fn rendezvous(&self, dht_window: Window) -> String {
        if self.dht.key.is_empty() {
            return self.rendezvous.clone();
        }
        let length = match self.dht.length {
            0 => RENDEZVOUS_LENGTH,
            length => length,
        };
        md5_hex(&totp(&self.dht.key, dht_window, length))
    }

    /// The key of the provider record of a rendezvous: a SHA-256 multihash.
    pub fn provider_key(rendezvous: &str) -> [u8; 34] {
        let mut key = [0; 34];
        let hash = Sha256::digest(rendezvous);
        for (to, from) in key.iter_mut().zip(SHA2_256.into_iter().chain(hash)) {
            *to = from;
        }
        key
    }
}

/// A key that seals messages. It shows itself to nobody and leaves no copy behind.
#[derive(Clone, PartialEq, Eq)]
pub struct SealKey([u8; 32]);

impl SealKey {
    pub fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Drop for SealKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Multihash code and length of a SHA-256, <https://github.com/multiformats/multicodec/blob/master/table.csv>.
const SHA2_256: [u8; 2] = [0x12, 0x20];

/// What a length of 0 means for the rendezvous, and for everything else.
const RENDEZVOUS_LENGTH: usize = 12;
const DEFAULT_LENGTH: usize = 6;

fn window(rotation: &Rotation, now: UnixTime) -> Window {
    Window(now.as_secs() / rotation.interval.max(1))
}

fn end(rotation: &Rotation, now: UnixTime) -> UnixTime {
    let next = window(rotation, now).next();
    UnixTime::from_secs(next.0.saturating_mul(rotation.interval.max(1)))
}

/// HMAC-SHA256 of the window number (8 bytes, big endian) under the secret as it is written, as base64, cut to `length`
/// characters. Neither the base32 nor the truncation of RFC 6238 takes part.
pub fn totp(secret: &str, window: Window, length: usize) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let mut text = STANDARD.encode(hmac::sign(&key, &window.0.to_be_bytes()));
    text.truncate(match length {
        0 => DEFAULT_LENGTH,
        length => length,
    });
    text
}

fn md5_hex(text: &str) -> String {
    data_encoding::HEXLOWER.encode(&Md5::digest(text))
}
