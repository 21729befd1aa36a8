//! Circuits: counted for both their peers and for the node once established, and against a budget of their own while
//! their destination has not answered.

use std::{net::IpAddr, time::Instant};

use super::{Admission, CircuitId, ConnectionKey, Ticket, peer::Peer};
use crate::{
    acl::{Decision, Operation},
    id::PeerId,
    relay::Refusal,
};

/// Circuits of one source that wait for their destinations to answer. A client that opens 64 at once, `max_circuits`
/// by default, is served; what a source can pin at silent destinations is bounded by it.
pub const MAX_HANDSHAKES_OF_SOURCE: u32 = 64;

/// Circuits to one destination that it has not answered. A popular peer answers within a round trip: 256 in flight are
/// some 2,500 circuits a second at 100 ms. A silent one blocks a quarter of the node's budget and nobody else.
pub const MAX_HANDSHAKES_TO_DESTINATION: u32 = 256;

/// Circuits of the whole node that wait for their destinations, at about 30 KiB each: 30 MiB.
pub const MAX_HANDSHAKES: u32 = 1024;

#[derive(Clone, Debug)]
pub(super) struct Circuit {
    pub phase: Phase,
    pub source: End,
    pub destination: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Handshake,
    Established,
}

/// One end of a circuit, as it was when the circuit was admitted.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub peer: PeerId,
    pub connection: ConnectionKey,
    pub address: IpAddr,
}

impl Circuit {
    pub fn ends(&self) -> [&End; 2] {
        [&self.source, &self.destination]
    }
}

impl Admission {
    pub(super) fn decide_connect(
        &mut self,
        source: PeerId,
        source_connection: ConnectionKey,
        destination: PeerId,
        now: Instant,
    ) -> Result<Ticket, Refusal> {
        let source_address = self.open_to(&source, source_connection)?;
        if source == destination {
            return Err(Refusal::ToItself);
        }
        let held = self
            .peers
            .get(&destination)
            .and_then(|peer| peer.reservation.as_ref())
            .filter(|held| held.expires > now)
            .map(|held| (held.connection, held.address));
        let of_source = self
            .policy
            .acl
            .decide(Operation::Connect, &source, Some(source_address));
        let shadow_of_source = self.enforce(of_source)?;
        let of_destination =
            self.decide_destination(&destination, held.map(|(_, address)| address));
        let shadow = shadow_of_source.or(self.enforce(of_destination)?);

        let rate = self.policy.settings.resources.circuit_rate;
        let state = self.peers.get_mut(&source).ok_or(Refusal::Gone)?;
        state
            .pace
            .connect
            .take(rate, now)
            .map_err(|retry_after| Refusal::TooFast {
                operation: Operation::Connect,
                retry_after,
            })?;
        let (destination_connection, destination_address) = held.ok_or(Refusal::NoReservation)?;
        self.room_for_circuit(&source, &destination)?;
        self.room_for_handshake(&source, &destination)?;

        let source = End {
            peer: source,
            connection: source_connection,
            address: source_address,
        };
        let destination = End {
            peer: destination,
            connection: destination_connection,
            address: destination_address,
        };
        Ok(Ticket {
            circuit: self.start_handshake(source, destination),
            destination_connection,
            limits: self.policy.settings.resources.circuit(),
            shadow,
        })
    }

    pub(super) fn decide_established(&mut self, id: CircuitId) -> Result<(), Refusal> {
        let circuit = self.circuits.get(&id).ok_or(Refusal::Gone)?;
        if circuit.phase == Phase::Established {
            return Ok(());
        }
        let (source, destination) = (circuit.source.peer, circuit.destination.peer);
        self.room_for_circuit(&source, &destination)?;
        self.leave_handshake(&source, &destination);
        self.established = self.established.saturating_add(1);
        for peer in [source, destination] {
            if let Some(state) = self.peers.get_mut(&peer) {
                state.established = state.established.saturating_add(1);
            }
        }
        if let Some(circuit) = self.circuits.get_mut(&id) {
            circuit.phase = Phase::Established;
        }
        Ok(())
    }

    /// A destination is refused when the policy admits it to nothing: with `reserve = "anyone"` and a listed source it
    /// needs no entry of its own, and with `connect = "anyone"` an unlisted one looks like one without reservation.
    fn decide_destination(&self, peer: &PeerId, address: Option<IpAddr>) -> Decision {
        let acl = &self.policy.acl;
        let decision = acl.decide(Operation::Connect, peer, address);
        if decision.admit {
            return decision;
        }
        acl.decide(Operation::Reserve, peer, address)
    }

    fn room_for_circuit(&self, source: &PeerId, destination: &PeerId) -> Result<(), Refusal> {
        let resources = &self.policy.settings.resources;
        if self.established >= resources.max_circuits_total {
            return Err(Refusal::CircuitsFull {
                cap: resources.max_circuits_total,
            });
        }
        let cap = resources.max_circuits;
        let full = |peer| {
            self.peers
                .get(peer)
                .is_some_and(|state| state.established >= cap)
        };
        if full(source) {
            return Err(Refusal::SourceFull { cap });
        }
        if full(destination) {
            return Err(Refusal::DestinationFull { cap });
        }
        Ok(())
    }

    fn room_for_handshake(&self, source: &PeerId, destination: &PeerId) -> Result<(), Refusal> {
        let max_buffers = self.policy.settings.resources.max_buffers;
        if self.buffers.held() > max_buffers {
            return Err(Refusal::BuffersFull { cap: max_buffers });
        }
        let source = self.peers.get(source);
        let destination = self.peers.get(destination);
        for (has, cap) in [
            (self.handshakes, MAX_HANDSHAKES),
            (
                source.map_or(0, |peer| peer.handshakes_as_source),
                MAX_HANDSHAKES_OF_SOURCE,
            ),
            (
                destination.map_or(0, |peer| peer.handshakes_as_destination),
                MAX_HANDSHAKES_TO_DESTINATION,
            ),
        ] {
            if has >= cap {
                return Err(Refusal::HandshakesFull { cap });
            }
        }
        Ok(())
    }

    fn start_handshake(&mut self, source: End, destination: End) -> CircuitId {
        let id = CircuitId(self.next_circuit);
        self.next_circuit = self.next_circuit.saturating_add(1);
        self.handshakes = self.handshakes.saturating_add(1);
        if let Some(state) = self.peers.get_mut(&source.peer) {
            state.circuits.insert(id);
            state.handshakes_as_source = state.handshakes_as_source.saturating_add(1);
        }
        if let Some(state) = self.peers.get_mut(&destination.peer) {
            state.circuits.insert(id);
            state.handshakes_as_destination = state.handshakes_as_destination.saturating_add(1);
        }
        let circuit = Circuit {
            phase: Phase::Handshake,
            source,
            destination,
        };
        self.circuits.insert(id, circuit);
        id
    }

    fn leave_handshake(&mut self, source: &PeerId, destination: &PeerId) {
        self.handshakes = self.handshakes.saturating_sub(1);
        if let Some(state) = self.peers.get_mut(source) {
            state.handshakes_as_source = state.handshakes_as_source.saturating_sub(1);
        }
        if let Some(state) = self.peers.get_mut(destination) {
            state.handshakes_as_destination = state.handshakes_as_destination.saturating_sub(1);
        }
    }

    /// The one way out: gives back all that the circuit counts for. Once released, an id means nothing any more.
    pub(super) fn release(&mut self, id: CircuitId, now: Instant) {
        let Some(circuit) = self.circuits.remove(&id) else {
            return;
        };
        let (source, destination) = (circuit.source.peer, circuit.destination.peer);
        match circuit.phase {
            Phase::Handshake => self.leave_handshake(&source, &destination),
            Phase::Established => self.established = self.established.saturating_sub(1),
        }
        for peer in [source, destination] {
            if let Some(state) = self.peers.get_mut(&peer) {
                state.circuits.remove(&id);
                if circuit.phase == Phase::Established {
                    state.established = state.established.saturating_sub(1);
                }
            }
            self.forget_if_idle(&peer, now);
        }
    }

    /// Drops the state of a peer that is not connected and has no circuit. Its rates are kept until they are full again.
    pub(super) fn forget_if_idle(&mut self, peer: &PeerId, now: Instant) {
        if self.peers.get(peer).is_some_and(Peer::is_idle)
            && let Some(state) = self.peers.remove(peer)
        {
            let resources = &self.policy.settings.resources;
            self.departed.keep(*peer, state.pace, resources, now);
        }
    }
}
