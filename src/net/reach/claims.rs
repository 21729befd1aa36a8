//! AutoNAT v1 with its answers taken for what they are: a stranger's word. It may say that one of our addresses is
//! reached, not that another's is ours.

use std::collections::HashSet;

use libp2p::{
    Multiaddr, autonat,
    multiaddr::Protocol,
    swarm::{FromSwarm, ListenAddresses, ToSwarm},
};

use super::guarded::{Guard, Wish};

/// Addresses at which others have seen this node. What is observed has passed a sieve already; this is its first filling.
const MOST_SEEN: usize = 64;

#[derive(Default)]
pub struct Claims {
    listening: ListenAddresses,
    seen: HashSet<Multiaddr>,
}

impl Claims {
    fn is_ours(&self, address: &Multiaddr) -> bool {
        let address = without_peer(address);
        self.seen.contains(&address)
            || self
                .listening
                .iter()
                .any(|ours| without_peer(ours) == address)
    }
}

impl Guard<autonat::Behaviour> for Claims {
    fn hear(&mut self, event: &FromSwarm<'_>) {
        self.listening.on_swarm_event(event);
        if let FromSwarm::NewExternalAddrCandidate(candidate) = event
            && self.seen.len() < MOST_SEEN
        {
            self.seen.insert(without_peer(candidate.addr));
        }
    }

    fn pass(&mut self, wish: Wish<autonat::Behaviour>) -> Option<Wish<autonat::Behaviour>> {
        match &wish {
            ToSwarm::ExternalAddrConfirmed(address) => self.is_ours(address).then_some(wish),
            _ => Some(wish),
        }
    }
}

fn without_peer(address: &Multiaddr) -> Multiaddr {
    address
        .iter()
        .filter(|part| !matches!(part, Protocol::P2p(_)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p::swarm::NewExternalAddrCandidate;

    #[test]
    fn an_address_nobody_has_seen_us_at_is_not_taken_for_ours() {
        let mut claims = Claims::default();
        let seen: Multiaddr = "/ip4/203.0.113.5/tcp/4501".parse().expect("an address");
        claims.hear(&FromSwarm::NewExternalAddrCandidate(
            NewExternalAddrCandidate { addr: &seen },
        ));
        let confirmed = |address: Multiaddr| ToSwarm::ExternalAddrConfirmed(address);
        let named = seen.with(Protocol::P2p(libp2p::PeerId::random()));
        assert!(claims.pass(confirmed(named)).is_some());
        let foreign = "/ip4/203.0.113.6/tcp/4501".parse().expect("an address");
        assert!(claims.pass(confirmed(foreign)).is_none());
    }
}
