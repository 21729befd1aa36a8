//! What is found goes to whoever dials: the one place where discovery and the kept peers meet.

use libp2p::{Multiaddr, PeerId, identify};

use super::Driver;
use crate::net::{discovery, mdns, peers::Source};

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

    pub(super) fn found_in_the_dht(&mut self, event: discovery::Event) {
        let peers = &mut self.swarm.behaviour_mut().peers;
        match event {
            discovery::Event::Found { peer, addresses } => {
                tracing::debug!(%peer, ?addresses, "found in the DHT");
                peers.learn(Source::Dht, peer, addresses);
            }
            discovery::Event::Lost(peer) => peers.forget(Source::Dht, &peer),
        }
    }

    pub(super) fn says_about_itself(&mut self, peer: PeerId, info: &identify::Info) {
        let behaviour = self.swarm.behaviour_mut();
        behaviour.discovery.identified(peer, info);
        let addresses = info.listen_addrs.clone();
        behaviour.peers.learn(Source::Identify, peer, addresses);
    }
}
