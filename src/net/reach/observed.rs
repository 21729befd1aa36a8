//! What others see as our address. Several behaviours keep every one of them for good, and a stranger can tell any number.
#![allow(clippy::disallowed_methods, reason = "reads the clock")]

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, identify, swarm::ToSwarm};

use super::guarded::{Guard, Wish};

/// Different addresses that are believed at once. A node with a few interfaces and transports behind a NAT that gives
/// each destination its own port shows some dozens.
const AT_ONCE: usize = 64;

/// Beyond that, one more in this time: a node that travels for months goes on learning, and memory grows by a few
/// megabytes a year at worst.
const ONE_MORE: Duration = Duration::from_secs(600);

/// However long the node runs, no more than these.
const AT_ALL: usize = 16 * 1024;

/// Lets an observed address pass if it is known, or new within bounds.
#[derive(Default)]
pub struct Sieve {
    known: HashSet<Multiaddr>,
    last: Option<Instant>,
}

impl Sieve {
    fn admits(&mut self, address: &Multiaddr, now: Instant) -> bool {
        if self.known.contains(address) {
            return true;
        }
        let waited = self
            .last
            .is_none_or(|last| now.saturating_duration_since(last) >= ONE_MORE);
        let room = self.known.len() < AT_ONCE || (waited && self.known.len() < AT_ALL);
        if room {
            self.known.insert(address.clone());
            self.last = Some(now);
        }
        room
    }
}

impl Guard<identify::Behaviour> for Sieve {
    fn pass(&mut self, wish: Wish<identify::Behaviour>) -> Option<Wish<identify::Behaviour>> {
        match &wish {
            ToSwarm::NewExternalAddrCandidate(address) => {
                self.admits(address, Instant::now()).then_some(wish)
            }
            _ => Some(wish),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: usize) -> Multiaddr {
        format!("/ip4/203.0.113.1/tcp/{number}")
            .parse()
            .expect("an address")
    }

    #[test]
    fn a_flood_of_observations_is_held_back_and_known_ones_pass() {
        let (mut sieve, now) = (Sieve::default(), Instant::now());
        let passed = (1..10_000)
            .filter(|number| sieve.admits(&address(*number), now))
            .count();
        assert_eq!(passed, AT_ONCE);
        assert!(sieve.admits(&address(1), now));
        assert!(!sieve.admits(&address(20_000), now));
        assert!(sieve.admits(&address(20_000), now + ONE_MORE));
        assert!(!sieve.admits(&address(20_001), now + ONE_MORE));
    }
}
