//! What the swarm tells about being reached, handed to [`crate::net::reach`].

use libp2p::{identify, relay, swarm::SwarmEvent};

use super::Driver;
use crate::net::behaviour::BehaviourEvent;

impl Driver {
    /// Takes note of an event before it is handled otherwise.
    pub(super) fn reach_event(&mut self, event: &SwarmEvent<BehaviourEvent>) {
        let (reach, swarm) = (&mut self.reach, &mut self.swarm);
        match event {
            SwarmEvent::ConnectionEstablished {
                peer_id, endpoint, ..
            } => reach.connected(*peer_id, endpoint.is_relayed()),
            SwarmEvent::ConnectionClosed { peer_id, .. } => reach.disconnected(*peer_id),
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
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                connection_id,
                peer_id,
                info,
            })) => reach.identified(*peer_id, *connection_id, info),
            SwarmEvent::Behaviour(BehaviourEvent::RelayClient(
                relay::client::Event::ReservationReqAccepted { relay_peer_id, .. },
            )) => reach.granted(swarm, *relay_peer_id),
            _ => {}
        }
    }
}
