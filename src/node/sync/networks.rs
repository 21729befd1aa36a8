//! The tokens this node holds: its own and those it accepts while a network moves from one to the next.

use std::sync::Arc;

use crate::{
    config,
    id::{PeerId, UnixTime},
    wire::{Fingerprint, OpenError, SealKey, Token, Window, open_bytes, seal_bytes},
};

/// Tells our frames from anything else sealed under the same keys.
const FRAME: &[u8] = b"edgevpn ledger frame 1";

/// Bytes of one greeting: two sealed ones.
const GREETING: usize = NONCE + 2 + TAG;

/// Of AES-GCM, in bytes.
pub const NONCE: usize = 12;
const TAG: usize = 16;

/// The first byte of a frame.
const HELLO: u8 = 0;
const MESSAGE: u8 = 1;

/// What a greeting seals: the version of what follows, and whether it wants to be answered.
const VERSION: u8 = 1;

/// The own network first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Networks(Vec<(Fingerprint, Arc<Token>)>);

/// A frame, opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The peer holds the token of this network, the first of ours that it holds.
    Hello {
        network: Fingerprint,
        /// It does not know which of them we hold, or has forgotten.
        asks: bool,
    },
    /// Of the exchange.
    Message(Vec<u8>),
}

/// From whom to whom a frame goes: no third party can pass it on as its own.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub from: PeerId,
    pub to: PeerId,
}

impl Networks {
    pub fn of(network: &config::Network) -> Networks {
        let mut networks: Vec<(Fingerprint, Arc<Token>)> = Vec::new();
        for token in std::iter::once(&network.token).chain(&network.accepted) {
            let fingerprint = token.fingerprint();
            if networks.iter().all(|(known, _)| *known != fingerprint) {
                networks.push((fingerprint, token.clone()));
            }
        }
        Networks(networks)
    }

    pub fn own(&self) -> Option<Fingerprint> {
        self.0.first().map(|(fingerprint, _)| *fingerprint)
    }

    pub fn accepted(&self) -> impl Iterator<Item = Fingerprint> {
        self.0.iter().skip(1).map(|(fingerprint, _)| *fingerprint)
    }

    pub fn token(&self, network: Fingerprint) -> Option<&Arc<Token>> {
        let found = self.0.iter().find(|(known, _)| *known == network)?;
        Some(&found.1)
    }

    /// Whether this is the same private network under other tokens: one token was held before and after.
    pub fn continues(&self, before: &Networks) -> bool {
        self.0
            .iter()
            .any(|(fingerprint, _)| before.token(*fingerprint).is_some())
    }

    /// The next change of topics and keys.
    pub fn next_rotation(&self, now: UnixTime) -> Option<UnixTime> {
        self.0
            .iter()
            .map(|(_, token)| token.next_rotation(now))
            .min()
    }

    /// The keys that a message published in `window` may be sealed with: an EdgeVPN node changes its key up to a second
    /// before its topic.
    pub fn keys(&self, network: Fingerprint, window: Window) -> Vec<SealKey> {
        let token = self.token(network);
        token.map_or_else(Vec::new, |token| keys(token, window))
    }

    /// Shows a neighbour which of its tokens this node holds too, and nothing of the others.
    pub fn greet(
        &self,
        way: Way,
        asks: bool,
        now: UnixTime,
        mut nonce: impl FnMut() -> [u8; NONCE],
    ) -> Vec<u8> {
        let mut frame = vec![HELLO];
        for (_, token) in &self.0 {
            let key = token.seal_key(token.window(now));
            let plain = [VERSION, asks.into()];
            frame.extend(seal_bytes(&plain, &key, nonce(), &context(way, HELLO)));
        }
        frame
    }

    /// `None` if the network is none of ours.
    pub fn seal(
        &self,
        network: Fingerprint,
        message: &[u8],
        way: Way,
        now: UnixTime,
        nonce: [u8; NONCE],
    ) -> Option<Vec<u8>> {
        let token = self.token(network)?;
        let key = token.seal_key(token.window(now));
        let sealed = seal_bytes(message, &key, nonce, &context(way, MESSAGE));
        let mut frame = Vec::with_capacity(sealed.len().saturating_add(1));
        frame.push(MESSAGE);
        frame.extend(sealed);
        Some(frame)
    }

    pub fn open(&self, frame: &[u8], way: Way, now: UnixTime) -> Result<Opened, OpenError> {
        match frame.split_first() {
            Some((&HELLO, greetings)) => self.open_hello(greetings, way, now),
            Some((&MESSAGE, sealed)) => {
                let keys: Vec<SealKey> = self
                    .0
                    .iter()
                    .flat_map(|(_, token)| keys(token, token.window(now)))
                    .collect();
                open_bytes(sealed, &keys, &context(way, MESSAGE)).map(Opened::Message)
            }
            _ => Err(OpenError::Short),
        }
    }

    fn open_hello(&self, greetings: &[u8], way: Way, now: UnixTime) -> Result<Opened, OpenError> {
        let context = context(way, HELLO);
        for (fingerprint, token) in &self.0 {
            let keys = keys(token, token.window(now));
            let opened = greetings
                .chunks_exact(GREETING)
                // As many as a node can hold: `accept_token_files` takes eight.
                .take(9)
                .find_map(|greeting| open_bytes(greeting, &keys, &context).ok());
            if let Some([VERSION, asks]) = opened.as_deref() {
                return Ok(Opened::Hello {
                    network: *fingerprint,
                    asks: *asks != 0,
                });
            }
        }
        Err(OpenError::Key)
    }
}

/// This window's key first, then those of its neighbours.
fn keys(token: &Token, window: Window) -> Vec<SealKey> {
    [window, window.previous(), window.next()]
        .map(|window| token.seal_key(window))
        .into()
}

fn context(way: Way, kind: u8) -> Vec<u8> {
    let mut context = FRAME.to_vec();
    context.push(kind);
    for peer in [way.from, way.to] {
        // Every id says its own length.
        context.extend(peer.to_bytes());
    }
    context
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn token(seed: u8) -> Arc<Token> {
        Arc::new(Token::generate(60, |bytes| bytes.fill(seed)))
    }

    fn networks(own: u8, accepted: &[u8]) -> Networks {
        Networks::of(&config::Network {
            token: token(own),
            accepted: accepted.iter().map(|seed| token(*seed)).collect(),
        })
    }

    fn way() -> Way {
        Way {
            from: PeerId::random(),
            to: PeerId::random(),
        }
    }

    #[test]
    fn a_message_is_read_a_window_early_or_late_and_not_two() {
        let (networks, way) = (networks(1, &[]), way());
        let own = networks.own().expect("one");
        let frame = networks.seal(own, b"digest", way, NOW, [7; NONCE]).unwrap();
        let later = |seconds| NOW.saturating_add(std::time::Duration::from_secs(seconds));
        for seconds in [0, 60] {
            assert_eq!(
                networks.open(&frame, way, later(seconds)),
                Ok(Opened::Message(b"digest".to_vec()))
            );
        }
        assert_eq!(networks.open(&frame, way, later(120)), Err(OpenError::Key));
    }

    #[test]
    fn nobody_passes_a_frame_on_as_its_own() {
        let (networks, way) = (networks(1, &[]), way());
        let own = networks.own().expect("one");
        let frame = networks.seal(own, b"digest", way, NOW, [7; NONCE]).unwrap();
        let hello = networks.greet(way, true, NOW, || [8; NONCE]);
        for other in [
            Way {
                from: way.to,
                to: way.from,
            },
            Way {
                from: PeerId::random(),
                ..way
            },
            Way {
                to: PeerId::random(),
                ..way
            },
        ] {
            assert_eq!(networks.open(&frame, other, NOW), Err(OpenError::Key));
            assert_eq!(networks.open(&hello, other, NOW), Err(OpenError::Key));
        }
    }

    #[test]
    fn a_greeting_finds_the_token_that_both_hold() {
        let way = way();
        let greeting = networks(1, &[2]).greet(way, true, NOW, || [8; NONCE]);
        for (other, shared) in [
            (networks(1, &[]), 1),
            (networks(2, &[]), 2),
            (networks(2, &[1]), 2),
            (networks(3, &[1]), 1),
        ] {
            assert_eq!(
                other.open(&greeting, way, NOW),
                Ok(Opened::Hello {
                    network: token(shared).fingerprint(),
                    asks: true
                })
            );
        }
        assert_eq!(
            networks(3, &[4]).open(&greeting, way, NOW),
            Err(OpenError::Key)
        );
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        let networks = networks(1, &[2]);
        for frame in [
            &[][..],
            &[0],
            &[1],
            &[9; 64],
            &[0; 29],
            &[0; 100],
            &[1; 100],
        ] {
            assert!(networks.open(frame, way(), NOW).is_err(), "{frame:?}");
        }
    }

    #[test]
    fn a_network_goes_on_under_a_token_that_was_accepted_before() {
        assert!(networks(2, &[1]).continues(&networks(1, &[])));
        assert!(networks(2, &[]).continues(&networks(1, &[2])));
        assert!(!networks(2, &[]).continues(&networks(1, &[])));
    }
}
