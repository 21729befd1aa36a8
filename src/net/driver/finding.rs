//! What is found goes to whoever dials: the one place where discovery and the kept peers meet.

use libp2p::{Multiaddr, PeerId};

use super::Driver;
use crate::net::{mdns, peers::Source};

impl Driver {
    pub(super) fn learnt(&mut self, members: Vec<(PeerId, Vec<Multiaddr>)>) {
        let peers = &mut self.swarm.behaviour_mut().peers;
        for (peer, addresses) in members {
            peers.learn(Source::Ledger, peer, addresses);
        }
    }

    pub(super) fn found_on_a_link(&mut self, event: mdns::Event) {
        let peers = &mut self.swarm.behaviour_mut().peers;
        match event {
            mdns::Event::Found { peer, addresses } => {
                tracing::debug!(%peer, ?addresses, "found by mDNS");
                peers.learn(Source::Mdns, peer, addresses);
            }
            mdns::Event::Lost(peer) => peers.forget(Source::Mdns, &peer),
        }
    }
}
