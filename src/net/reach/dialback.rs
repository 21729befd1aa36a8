//! AutoNAT v2 as a server: whom this node dials back, and how often.
#![allow(clippy::disallowed_methods, reason = "reads the clock")]

use std::{
    collections::{HashSet, VecDeque},
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId, autonat,
    swarm::{ConnectionDenied, ConnectionId, ToSwarm},
};

use super::guarded::{Guard, Wish};
use crate::net::{
    gate::scope::{self, Scope},
    ip_of,
    streams::Control,
};

/// Dial-backs in [`PERIOD`], all peers together: two a second, which a small node does not feel.
const MOST: usize = 120;

/// Of one peer. A client asks for each of its addresses once, and it has a handful.
const MOST_OF_ONE: usize = 12;

const PERIOD: Duration = Duration::from_secs(60);

pub struct DialBack {
    streams: Control,
    dials: HashSet<ConnectionId>,
    recent: VecDeque<(Instant, PeerId)>,
}

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{address} is neither public nor where {peer} is seen")]
    Elsewhere { peer: PeerId, address: Multiaddr },
    #[error("too many dial-backs, or too many for {peer}")]
    TooMany { peer: PeerId },
}

impl DialBack {
    pub fn new(streams: Control) -> Self {
        Self {
            streams,
            dials: HashSet::new(),
            recent: VecDeque::new(),
        }
    }

    /// The public internet has its own protection in the protocol: the client pays with bytes for an address that is not
    /// the one it is seen at. Inside a private network only that one is dialled.
    fn may_try(&self, peer: PeerId, address: &Multiaddr) -> bool {
        match scope::of(address) {
            Some(Scope::Public) => true,
            Some(Scope::Site | Scope::Link) => {
                let seen = self.streams.links(peer);
                let mut seen = seen.iter().filter(|link| !link.relayed);
                seen.any(|link| ip_of(&link.address) == ip_of(address))
            }
            Some(Scope::Loopback | Scope::Nowhere) | None => false,
        }
    }

    fn has_room(&mut self, peer: PeerId, now: Instant) -> bool {
        let old = |at: Instant| now.saturating_duration_since(at) >= PERIOD;
        while self.recent.front().is_some_and(|(at, _)| old(*at)) {
            self.recent.pop_front();
        }
        let of_peer = self.recent.iter().filter(|(_, other)| *other == peer);
        let room = self.recent.len() < MOST && of_peer.count() < MOST_OF_ONE;
        if room {
            self.recent.push_back((now, peer));
        }
        room
    }
}

impl Guard<autonat::v2::server::Behaviour> for DialBack {
    fn pass(
        &mut self,
        wish: Wish<autonat::v2::server::Behaviour>,
    ) -> Option<Wish<autonat::v2::server::Behaviour>> {
        if let ToSwarm::Dial { opts } = &wish {
            self.dials.insert(opts.connection_id());
        }
        Some(wish)
    }

    fn may_dial(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
    ) -> Result<(), ConnectionDenied> {
        let (true, Some(peer)) = (self.dials.remove(&connection), peer) else {
            return Ok(());
        };
        if let Some(address) = addresses
            .iter()
            .find(|address| !self.may_try(peer, address))
        {
            let address = address.clone();
            return Err(ConnectionDenied::new(Refused::Elsewhere { peer, address }));
        }
        if !self.has_room(peer, Instant::now()) {
            return Err(ConnectionDenied::new(Refused::TooMany { peer }));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::streams;

    #[test]
    fn only_public_addresses_and_where_the_client_is_seen_are_dialled() {
        let guard = DialBack::new(streams::Behaviour::new().control());
        let may = |address: &str| {
            let address = address.parse().expect("an address");
            guard.may_try(PeerId::random(), &address)
        };
        assert!(may("/ip4/203.0.113.9/tcp/1"));
        assert!(!may("/ip4/10.0.0.1/tcp/22"));
        assert!(!may("/ip4/127.0.0.1/tcp/22"));
        assert!(!may("/dns4/inner.example.org/tcp/22"));
    }

    #[test]
    fn one_peer_cannot_use_up_what_is_for_all() {
        let mut guard = DialBack::new(streams::Behaviour::new().control());
        let (peer, now) = (PeerId::random(), Instant::now());
        let granted = (0..100).filter(|_| guard.has_room(peer, now)).count();
        assert_eq!(granted, MOST_OF_ONE);
        assert!(guard.has_room(PeerId::random(), now));
        let granted = (0..1000)
            .filter(|_| guard.has_room(PeerId::random(), now))
            .count();
        assert_eq!(granted, MOST - MOST_OF_ONE - 1);
        assert!(guard.has_room(peer, now + PERIOD));
    }
}
