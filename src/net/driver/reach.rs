//! What the swarm tells about being reached, handed to [`crate::net::reach`].

use libp2p::{Multiaddr, dcutr, identify, multiaddr::Protocol, ping, relay, swarm::SwarmEvent};

use super::Driver;
use crate::net::{behaviour::BehaviourEvent, reach};

impl Driver {
    /// Takes note of an event before it is handled otherwise.
    pub(super) fn reach_event(&mut self, event: &SwarmEvent<BehaviourEvent>) {
        let reach = &mut self.reach;
        match event {
            SwarmEvent::ConnectionEstablished {
                peer_id, endpoint, ..
            } => reach.connected(*peer_id, endpoint.is_relayed()),
            SwarmEvent::ConnectionClosed {
                peer_id,
                connection_id,
                ..
            } => {
                reach.connection_closed(*connection_id);
                reach.disconnected(*peer_id);
            }
            SwarmEvent::OutgoingConnectionError {
                peer_id: Some(peer),
                ..
            } => reach.not_reached(*peer),
            SwarmEvent::NewListenAddr {
                listener_id,
                address,
            } => reach.has_address(*listener_id, address),
            SwarmEvent::ExpiredListenAddr {
                listener_id,
                address,
            } => reach.lost_address(*listener_id, address),
            SwarmEvent::ListenerClosed {
                listener_id,
                reason,
                ..
            } => reach.listener_closed(*listener_id, reason),
            SwarmEvent::ExternalAddrConfirmed { address } => self.learnt_address(address),
            SwarmEvent::ExternalAddrExpired { address } => reach.address_expired(address),
            SwarmEvent::Behaviour(event) => self.reach_behaviour(event),
            _ => {}
        }
    }

    fn reach_behaviour(&mut self, event: &BehaviourEvent) {
        let (reach, swarm) = (&mut self.reach, &mut self.swarm);
        match event {
            BehaviourEvent::Identify(identify::Event::Received {
                connection_id,
                peer_id,
                info,
            }) => {
                reach.proven(*peer_id, *connection_id);
                reach.identified(*peer_id, *connection_id, info);
            }
            BehaviourEvent::Ping(ping::Event {
                peer,
                connection,
                result: Ok(_),
            }) => reach.proven(*peer, *connection),
            BehaviourEvent::RelayClient(relay::client::Event::ReservationReqAccepted {
                relay_peer_id,
                ..
            }) => reach.granted(swarm, *relay_peer_id),
            BehaviourEvent::Dcutr(dcutr::Event {
                remote_peer_id,
                result,
            }) => reach.punched(
                *remote_peer_id,
                result.as_ref().err().map(ToString::to_string),
            ),
            BehaviourEvent::AutonatV1(event) => reach.autonat_v1(event),
            BehaviourEvent::AutonatV2(event) => {
                reach.tested(&event.tested_addr, event.server, event.result.is_ok());
            }
            _ => {}
        }
    }

    /// `transport.announce` says all there is to say; without it what is learnt counts. Circuits count always: they are
    /// what the reservations are for.
    fn learnt_address(&mut self, address: &Multiaddr) {
        let relayed = address.iter().any(|part| part == Protocol::P2pCircuit);
        if !relayed && !self.announced.is_empty() && !self.announced.contains(address) {
            self.swarm.remove_external_address(address);
        }
    }

    pub(super) fn reach_report(&self) -> reach::Report {
        let behaviour = self.swarm.behaviour();
        reach::Report {
            external: self.swarm.external_addresses().cloned().collect(),
            mapping: behaviour.mapping.stage(),
            ..self.reach.report()
        }
    }
}
