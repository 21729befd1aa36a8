//! Circuits: counted for both their peers and for the node once established, and against a budget of their own while
//! their destination has not answered.

use std::{net::IpAddr, time::Instant};

use super::{Admission, CircuitId, ConnectionKey, Ticket, peer::Load};
use crate::{
    acl::{Decision, Operation, Standing},
    id::PeerId,
    relay::Refusal,
};

/// Circuits of one source that wait for their destinations to answer, over all its connections, of which each has ten
/// requests in progress at most. A client that opens 64 so, `max_circuits` by default, is served; what a source can pin at silent destinations is bounded by it.
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

/// On which side of a circuit a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Source,
    Destination,
}

impl Role {
    /// In the order of [`Circuit::ends`].
    const BOTH: [Role; 2] = [Role::Source, Role::Destination];
}

/// One end of a circuit, as it was when the circuit was admitted.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub peer: PeerId,
    pub connection: ConnectionKey,
    pub address: IpAddr,
    /// What the peer was to the network: the source when it asked, the destination when it reserved.
    pub standing: Standing,
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
        let destination_state = self.peers.get(&destination);
        let at_destination = destination_state.map_or(Load::default(), |state| state.load);
        let held = destination_state
            .and_then(|state| state.reservation.as_ref())
            .filter(|held| held.expires > now)
            .map(|held| (held.connection, held.address, held.standing));
        let source_standing = self.standing(Operation::Connect, &source);
        let of_source = self.policy.acl.decide(
            Operation::Connect,
            &source,
            Some(source_address),
            source_standing,
        );
        let shadow_of_source = self.enforce(of_source)?;
        let of_destination =
            self.decide_destination(&destination, held.map(|(_, address, _)| address));
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
        let at_source = state.load;
        let (destination_connection, destination_address, destination_standing) =
            held.ok_or(Refusal::NoReservation)?;
        self.room_for_circuit(at_source, at_destination)?;
        self.room_for_handshake(at_source, at_destination)?;

        let source = End {
            peer: source,
            connection: source_connection,
            address: source_address,
            standing: source_standing,
        };
        let destination = End {
            peer: destination,
            connection: destination_connection,
            address: destination_address,
            standing: destination_standing,
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
        if self.stopping {
            return Err(Refusal::Stopping);
        }
        let loads = circuit.ends().map(|end| {
            let state = self.peers.get(&end.peer);
            state.map_or(Load::default(), |state| state.load)
        });
        let [at_source, at_destination] = loads;
        self.room_for_circuit(at_source, at_destination)?;
        if let Some(circuit) = self.circuits.get_mut(&id) {
            circuit.phase = Phase::Established;
            for (end, role) in circuit.ends().into_iter().zip(Role::BOTH) {
                if let Some(state) = self.peers.get_mut(&end.peer) {
                    state.load.leave(Phase::Handshake, role);
                    state.load.enter(Phase::Established, role);
                }
            }
        }
        self.handshakes = self.handshakes.saturating_sub(1);
        self.established = self.established.saturating_add(1);
        Ok(())
    }

    /// A destination is refused when the policy admits it to nothing: with `reserve = "anyone"` and a listed source it
    /// needs no entry of its own, and with `connect = "anyone"` an unlisted one looks like one without reservation.
    fn decide_destination(&self, peer: &PeerId, address: Option<IpAddr>) -> Decision {
        let decide = |operation| {
            let standing = self.standing(operation, peer);
            self.policy.acl.decide(operation, peer, address, standing)
        };
        let decision = decide(Operation::Connect);
        if decision.admit {
            return decision;
        }
        decide(Operation::Reserve)
    }

    fn room_for_circuit(&self, at_source: Load, at_destination: Load) -> Result<(), Refusal> {
        let resources = &self.policy.settings.resources;
        if self.established >= resources.max_circuits_total {
            return Err(Refusal::CircuitsFull {
                cap: resources.max_circuits_total,
            });
        }
        let cap = resources.max_circuits;
        if at_source.established >= cap {
            return Err(Refusal::SourceFull { cap });
        }
        if at_destination.established >= cap {
            return Err(Refusal::DestinationFull { cap });
        }
        Ok(())
    }

    fn room_for_handshake(&self, at_source: Load, at_destination: Load) -> Result<(), Refusal> {
        let max_buffers = self.policy.settings.resources.max_buffers;
        if self.buffers.held() > max_buffers {
            return Err(Refusal::BuffersFull { cap: max_buffers });
        }
        for (has, cap) in [
            (self.handshakes, MAX_HANDSHAKES),
            (at_source.handshakes_as_source, MAX_HANDSHAKES_OF_SOURCE),
            (
                at_destination.handshakes_as_destination,
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
        for (end, role) in [&source, &destination].into_iter().zip(Role::BOTH) {
            if let Some(state) = self.peers.get_mut(&end.peer) {
                state.circuits.insert(id);
                state.load.enter(Phase::Handshake, role);
            }
        }
        let circuit = Circuit {
            phase: Phase::Handshake,
            source,
            destination,
        };
        self.circuits.insert(id, circuit);
        id
    }

    /// The one way out: gives back all that the circuit counts for. Once released, an id means nothing any more.
    pub(super) fn release(&mut self, id: CircuitId, now: Instant) {
        let Some(circuit) = self.circuits.remove(&id) else {
            return;
        };
        let total = match circuit.phase {
            Phase::Handshake => &mut self.handshakes,
            Phase::Established => &mut self.established,
        };
        *total = total.saturating_sub(1);
        for (end, role) in circuit.ends().into_iter().zip(Role::BOTH) {
            if let Some(state) = self.peers.get_mut(&end.peer) {
                state.circuits.remove(&id);
                state.load.leave(circuit.phase, role);
                if state.is_idle() {
                    self.forget_if_idle(&end.peer, now);
                }
            }
        }
    }

    /// Drops the state of a peer that is not connected and has no circuit. Its rates are kept until they are full again.
    pub(super) fn forget_if_idle(&mut self, peer: &PeerId, now: Instant) {
        if self.peers.get(peer).is_some_and(|state| state.is_idle())
            && let Some(state) = self.peers.remove(peer)
        {
            let resources = &self.policy.settings.resources;
            self.departed.keep(*peer, state.pace, resources, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{
        Cut, Effect,
        harness::{HOUR, Relay, address, named, peer, status},
    };
    use super::*;
    use crate::{
        acl::{Audience, Subject},
        relay::{Limit, Rate, Status},
    };

    /// Peers 1 to `count`, all connected, the even ones with a reservation.
    fn crowd(relay: &mut Relay, count: u8) {
        for number in 1..=count {
            relay.join(number);
            if number % 2 == 0 {
                relay.reserve(number).expect("room");
            }
        }
    }

    #[test]
    fn a_circuit_goes_to_a_peer_with_a_reservation_only() {
        let mut relay = Relay::new();
        crowd(&mut relay, 3);
        assert_eq!(status(relay.connect(1, 2)), Status::Ok);
        assert_eq!(status(relay.connect(1, 3)), Status::NoReservation);
        assert_eq!(status(relay.connect(1, 99)), Status::NoReservation);
        assert_eq!(relay.connect(2, 2), Err(Refusal::ToItself));
    }

    #[test]
    fn a_denied_source_learns_nothing_about_reservations() {
        let mut relay = Relay::with(|file| file.deny = vec![named(1)]);
        crowd(&mut relay, 3);
        assert_eq!(status(relay.connect(1, 2)), Status::PermissionDenied);
        assert_eq!(status(relay.connect(1, 99)), Status::PermissionDenied);
    }

    #[test]
    fn a_denied_destination_is_refused_whether_it_is_here_or_not() {
        let mut relay = Relay::with(|file| file.deny = vec![named(2), named(98)]);
        relay.join(1);
        relay.join(2);
        assert_eq!(status(relay.connect(1, 2)), Status::PermissionDenied);
        assert_eq!(status(relay.connect(1, 98)), Status::PermissionDenied);
    }

    #[test]
    fn a_destination_is_judged_by_where_it_is() {
        let place = Subject::Network(address(2).into());
        let mut relay = Relay::with(|file| {
            file.mode = crate::acl::Mode::Shadow;
            file.deny = vec![place];
        });
        crowd(&mut relay, 4);
        assert!(relay.connect(1, 2).expect("shadow").shadow.is_some());
        assert!(relay.connect(1, 4).expect("open").shadow.is_none());
    }

    #[test]
    fn a_listed_source_reaches_any_holder_and_an_unlisted_one_none() {
        let mut relay = Relay::with(|file| {
            file.connect = Audience::Listed;
            file.allow = vec![named(1)];
        });
        crowd(&mut relay, 3);
        assert_eq!(status(relay.connect(1, 2)), Status::Ok);
        assert_eq!(status(relay.connect(3, 2)), Status::PermissionDenied);
        let mut relay = Relay::with(|file| {
            file.reserve = Audience::Listed;
            file.allow = vec![named(2)];
        });
        crowd(&mut relay, 3);
        assert_eq!(status(relay.connect(1, 2)), Status::Ok);
        assert_eq!(
            status(relay.connect(1, 3)),
            Status::NoReservation,
            "who is listed is nobody's business"
        );
    }

    #[test]
    fn max_circuits_counts_a_peer_as_source_and_as_destination() {
        let mut relay = Relay::with(|file| file.settings.resources.max_circuits = 2);
        crowd(&mut relay, 6);
        relay.circuit(1, 2).expect("one");
        let last = relay.circuit(2, 4).expect("two of peer 2");
        let full = Refusal::DestinationFull { cap: 2 };
        assert_eq!(relay.connect(3, 2), Err(full.clone()));
        assert_eq!(full.status(), Status::ResourceLimitExceeded);
        assert_eq!(relay.connect(2, 6), Err(Refusal::SourceFull { cap: 2 }));
        relay.join(2);
        assert!(relay.connect(2, 6).is_err(), "over all its connections");
        relay.closed(last);
        relay.circuit(3, 2).expect("a place is free");
    }

    #[test]
    fn the_node_admits_max_circuits_total_and_refuses_the_next() {
        let mut relay = Relay::with(|file| file.settings.resources.max_circuits_total = 3);
        crowd(&mut relay, 2);
        for _ in 0..3 {
            relay.circuit(1, 2).expect("room");
        }
        let refused = relay.connect(1, 2);
        assert_eq!(refused, Err(Refusal::CircuitsFull { cap: 3 }));
    }

    #[test]
    fn handshakes_do_not_use_up_circuits_and_their_completion_does() {
        let mut relay = Relay::with(|file| file.settings.resources.max_circuits = 1);
        crowd(&mut relay, 4);
        let first = relay.connect(1, 2).expect("room").circuit;
        let second = relay.connect(1, 2).expect("still room").circuit;
        relay.established(second).expect("room");
        let late = relay.established(first);
        assert_eq!(late, Err(Refusal::SourceFull { cap: 1 }));
        assert_eq!(relay.established(first), Err(Refusal::Gone));
        assert_eq!(relay.report().circuits, 1);
        assert_eq!(relay.report().handshakes, 0);
    }

    #[test]
    fn half_open_circuits_to_a_silent_peer_leave_others_alone_and_come_back() {
        let mut relay = Relay::with(|file| file.settings.resources.max_circuits_total = 8);
        crowd(&mut relay, 60);
        let silent = 2;
        let mut held = Vec::new();
        for source in (1..60).step_by(2) {
            for _ in 0..10 {
                held.extend(relay.connect(source, silent).map(|ticket| ticket.circuit));
            }
        }
        assert_eq!(held.len() as u32, MAX_HANDSHAKES_TO_DESTINATION);
        let refused = relay.connect(1, silent).expect_err("its budget is used up");
        assert_eq!(refused.status(), Status::ResourceLimitExceeded);
        relay.circuit(1, 4).expect("others are served");
        for circuit in held {
            relay.closed(circuit);
        }
        assert_eq!(relay.report().handshakes, 0);
        relay.circuit(3, silent).expect("all budget is back");
    }

    #[test]
    fn one_source_cannot_take_all_handshakes() {
        let mut relay = Relay::new();
        crowd(&mut relay, 40);
        let admitted = (0..200_u8)
            .filter(|round| relay.connect(1, 2 + 2 * (round % 20)).is_ok())
            .count();
        assert_eq!(admitted as u32, MAX_HANDSHAKES_OF_SOURCE);
        assert_eq!(status(relay.connect(3, 2)), Status::Ok);
    }

    #[test]
    fn full_buffers_refuse_new_circuits_until_they_are_below_the_budget() {
        let mut relay = Relay::with(|file| file.settings.resources.max_buffers = 1000);
        crowd(&mut relay, 2);
        let mut share = relay.admission.buffers().share();
        share.set(1000);
        relay.circuit(1, 2).expect("not above it");
        share.set(1001);
        let refused = relay.connect(1, 2).expect_err("above it");
        assert_eq!(refused, Refusal::BuffersFull { cap: 1000 });
        assert_eq!(refused.status(), Status::ResourceLimitExceeded);
        drop(share);
        relay.circuit(1, 2).expect("given back");
    }

    #[test]
    fn circuits_end_with_either_connection_and_others_do_not() {
        let mut relay = Relay::new();
        crowd(&mut relay, 4);
        let first = relay.join(1);
        let over_first = relay.circuit(1, 2).expect("room");
        let second = relay.join(1);
        let over_second = relay.connect(1, 4).expect("room").circuit;
        let cut = |circuit| Effect::CutCircuit {
            circuit,
            why: Cut::Disconnected,
        };
        assert_eq!(relay.leave(1, first), [cut(over_first)]);
        assert_eq!(relay.leave(1, second), [cut(over_second)]);
        assert_eq!(relay.report().handshakes, 0);
        relay.closed(over_first);
        assert!(relay.admission.is_idle());
    }

    #[test]
    fn a_circuit_outlives_the_reservation_it_came_by() {
        let mut relay = Relay::new();
        crowd(&mut relay, 2);
        let circuit = relay.circuit(1, 2).expect("room");
        relay.now += HOUR;
        assert_eq!(relay.expired().len(), 1);
        assert_eq!(relay.report().circuits, 1);
        relay.closed(circuit);
    }

    #[test]
    fn sources_have_a_rate_of_their_own() {
        let rate = Rate {
            count: 1,
            per: Duration::from_secs(4),
        };
        let mut relay = Relay::with(|file| file.settings.resources.circuit_rate = Limit::At(rate));
        crowd(&mut relay, 4);
        relay.connect(1, 2).expect("first");
        let refused = relay.connect(1, 99).expect_err("too fast");
        assert_eq!(refused.label(), "too_fast");
        relay.connect(3, 2).expect("another source");
        relay.now += rate.per;
        relay.connect(1, 2).expect("after the wait");
    }

    #[test]
    fn a_circuit_is_closed_once_however_often_that_is_said() {
        let mut relay = Relay::new();
        crowd(&mut relay, 2);
        let circuit = relay.circuit(1, 2).expect("room");
        relay.established(circuit).expect("it is");
        relay.closed(circuit);
        relay.closed(circuit);
        relay.closed(CircuitId(9999));
        assert_eq!(relay.report().circuits, 0);
        assert!(!relay.admission.holds_reservation(&peer(1), relay.now));
    }
}
