//! Who may hold a slot here, who may open a circuit, and how much of it. No clock and no sockets: the caller passes
//! `now`, feeds connections and requests, and carries the [`Effect`]s out.
//!
//! Every request is answered in constant time but for the ordered structures (logarithmic), however many reservations
//! are held: nothing here walks through them except a change of policy and a report.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;

use crate::{
    acl::{Acl, Decision, Membership, Mode, Operation, RuleRef},
    id::{Generation, PeerId, PeerMap},
    relay::{Buffers, CircuitLimits, Refusal, Settings},
};

mod audit;
mod circuits;
mod deadlines;
mod departed;
mod effect;
mod guests;
mod harness;
mod peer;
mod reservations;
mod seen;
mod settle;

pub use circuits::{MAX_HANDSHAKES, MAX_HANDSHAKES_OF_SOURCE, MAX_HANDSHAKES_TO_DESTINATION};
pub use effect::{Cut, Effect, Ended};
pub use guests::{GUEST_TTL, MAX_GUESTS};
pub use seen::{Account, Requests};
pub use settle::{Impact, Settled};

use circuits::Circuit;
use deadlines::Deadlines;
use departed::Departed;
use peer::{Connection, Peer};

/// What decides: one generation of the rules and of the settings.
#[derive(Clone, Debug)]
pub struct Policy {
    pub generation: Generation,
    pub acl: Arc<Acl>,
    pub settings: Settings,
}

/// A connection of the swarm; the number is the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionKey(pub u64);

/// Later circuits have higher numbers; none is used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CircuitId(pub u64);

/// An admitted RESERVE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    pub expires_in: Duration,
    /// It replaces one that was held.
    pub renewed: bool,
    pub limits: CircuitLimits,
    /// `acl.mode = "shadow"`: the rule that refuses this, were it enforced.
    pub shadow: Option<RuleRef>,
}

/// An admitted CONNECT. The caller does the STOP handshake over `destination_connection` and then calls
/// [`Admission::established`]; whatever happens, it calls [`Admission::closed`] once the circuit is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    pub circuit: CircuitId,
    pub destination_connection: ConnectionKey,
    pub limits: CircuitLimits,
    /// `acl.mode = "shadow"`: the rule that refuses this, were it enforced.
    pub shadow: Option<RuleRef>,
}

/// The state of the relay service.
#[derive(Debug)]
pub struct Admission {
    policy: Policy,
    membership: Arc<Membership>,
    stopping: bool,
    /// Peers with a connection or a circuit. Boxed, so that a table that grows moves little.
    peers: PeerMap<Box<Peer>>,
    /// Reservations by the prefix they were made from.
    prefixes: HashMap<IpNet, u32>,
    reservations: u32,
    /// Holders that are admitted by the bootstrap window alone.
    guests: BTreeSet<PeerId>,
    deadlines: Deadlines,
    circuits: BTreeMap<CircuitId, Circuit>,
    established: u32,
    handshakes: u32,
    departed: Departed,
    buffers: Buffers,
    /// Found while something else was asked.
    pending: VecDeque<Effect>,
    counters: audit::Counters,
    next_circuit: u64,
    next_reservation: u64,
}

impl Admission {
    /// Nobody is a member until [`set_membership`](Self::set_membership) says otherwise.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            membership: Arc::default(),
            stopping: false,
            peers: PeerMap::default(),
            prefixes: HashMap::new(),
            reservations: 0,
            guests: BTreeSet::new(),
            deadlines: Deadlines::default(),
            circuits: BTreeMap::new(),
            established: 0,
            handshakes: 0,
            departed: Departed::default(),
            buffers: Buffers::default(),
            pending: VecDeque::new(),
            counters: audit::Counters::default(),
            next_circuit: 0,
            next_reservation: 0,
        }
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Where circuits count the bytes they hold.
    pub fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// `address` is `None` for a relayed connection: it carries no requests and keeps no reservation.
    pub fn connected(&mut self, peer: PeerId, connection: ConnectionKey, address: Option<IpAddr>) {
        let departed = &mut self.departed;
        self.peers
            .entry(peer)
            .or_insert_with(|| Box::new(Peer::new(departed.take(&peer))))
            .connect(Connection {
                key: connection,
                address: address.map(|address| address.to_canonical()),
            });
    }

    /// Ends what ran over this connection: its circuits, and the reservation when it was the last direct one.
    pub fn disconnected(
        &mut self,
        peer: &PeerId,
        connection: ConnectionKey,
        now: Instant,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        let Some(state) = self.peers.get_mut(peer) else {
            return effects;
        };
        state.disconnect(connection);
        let homeless = state.rehome_reservation().is_err();
        let circuits: Vec<CircuitId> = state.circuits.iter().copied().collect();
        if homeless {
            self.end_reservation(peer);
            effects.push(Effect::EndReservation {
                peer: *peer,
                why: Ended::Disconnected,
            });
        }
        for id in circuits {
            if self.circuits.get(&id).is_some_and(|circuit| {
                circuit
                    .ends()
                    .iter()
                    .any(|end| end.peer == *peer && end.connection == connection)
            }) {
                self.release(id, now);
                effects.push(Effect::CutCircuit {
                    circuit: id,
                    why: Cut::Disconnected,
                });
            }
        }
        self.forget_if_idle(peer, now);
        effects
    }

    /// Decides a RESERVE. A renewal passes the access decision and its rate, and is never refused for capacity.
    pub fn reserve(
        &mut self,
        peer: PeerId,
        connection: ConnectionKey,
        now: Instant,
    ) -> Result<Reserved, Refusal> {
        let decided = self.decide_reserve(peer, connection, now);
        self.see(&peer, Operation::Reserve, &decided, now);
        match &decided {
            Ok(reserved) => self.counters.reserved(reserved),
            Err(refusal) => self.counters.refused(refusal),
        }
        decided
    }

    /// Decides a CONNECT. The access decision comes before the destination's reservation is looked up, so that a
    /// stranger learns nothing.
    pub fn connect(
        &mut self,
        source: PeerId,
        source_connection: ConnectionKey,
        destination: PeerId,
        now: Instant,
    ) -> Result<Ticket, Refusal> {
        let decided = self.decide_connect(source, source_connection, destination, now);
        self.see(&source, Operation::Connect, &decided, now);
        match &decided {
            Ok(ticket) => self.counters.ticket(ticket),
            Err(refusal) => self.counters.refused(refusal),
        }
        decided
    }

    /// The destination has taken the circuit. Counts it against the caps, which other handshakes may have reached
    /// first: on a refusal the circuit is over, and both ends have to be reset.
    #[must_use = "a refused circuit must not be relayed"]
    pub fn established(&mut self, circuit: CircuitId, now: Instant) -> Result<(), Refusal> {
        let decided = self.decide_established(circuit);
        match &decided {
            Ok(()) => self.counters.established(),
            Err(refusal) => {
                self.counters.refused(refusal);
                self.release(circuit, now);
            }
        }
        decided
    }

    /// The circuit is over, in whatever phase it was. Unknown ones (cut before) are ignored.
    pub fn closed(&mut self, circuit: CircuitId, now: Instant) {
        self.release(circuit, now);
    }

    /// The node stops: nobody is admitted any more, renewals included; circuits run on.
    pub fn drain(&mut self) {
        self.stopping = true;
    }

    /// Counts a refusal that was decided elsewhere (a malformed message, a destination that did not answer).
    pub fn count_refusal(&mut self, refusal: &Refusal) {
        self.counters.refused(refusal);
    }

    /// The next effect that is due. Call it until it returns `None`, then again at [`next_deadline`](Self::next_deadline).
    pub fn poll_expired(&mut self, now: Instant) -> Option<Effect> {
        while let Some(effect) = self.pending.pop_front() {
            // The peer may have reserved anew since its old reservation was found expired.
            let stale = match &effect {
                Effect::EndReservation { peer, .. } => self.holds_reservation(peer, now),
                Effect::CutCircuit { .. } | Effect::CloseConnections { .. } => false,
            };
            if !stale {
                return Some(effect);
            }
        }
        self.expire_next(now)
    }

    /// When `poll_expired` may have something; it may also turn out that a renewal came in between.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    /// Whether the peer holds a reservation that has not expired.
    pub fn holds_reservation(&self, peer: &PeerId, now: Instant) -> bool {
        self.peers
            .get(peer)
            .and_then(|peer| peer.reservation.as_ref())
            .is_some_and(|held| held.expires > now)
    }

    /// Whether nothing is relayed and nobody is about to be.
    pub fn is_idle(&self) -> bool {
        self.circuits.is_empty()
    }

    /// Refuses what is refused to everybody, and what comes over a relay. Returns where the request comes from.
    fn open_to(&self, peer: &PeerId, connection: ConnectionKey) -> Result<IpAddr, Refusal> {
        let connection = self
            .peers
            .get(peer)
            .and_then(|peer| peer.connection(connection))
            .ok_or(Refusal::Gone)?;
        let address = connection.address.ok_or(Refusal::Relayed)?;
        if self.stopping {
            return Err(Refusal::Stopping);
        }
        if !self.policy.settings.service {
            return Err(Refusal::ServiceOff);
        }
        Ok(address)
    }

    /// In shadow mode a refusal becomes a remark.
    fn enforce(&self, decision: Decision) -> Result<Option<RuleRef>, Refusal> {
        match (decision.admit, self.policy.acl.mode()) {
            (true, _) => Ok(None),
            (false, Mode::Shadow) => Ok(Some(decision.rule)),
            (false, Mode::Enforce) => Err(Refusal::Denied(decision.rule)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::harness::{Relay, address, named, peer, status};
    use super::*;
    use crate::relay::Status;

    #[test]
    fn a_relayed_connection_may_neither_reserve_nor_connect() {
        let mut relay = Relay::new();
        relay.join(2);
        relay.reserve(2).expect("direct");
        relay.join_from(1, None);
        assert_eq!(relay.reserve(1), Err(Refusal::Relayed));
        assert_eq!(status(relay.connect(1, 2)), Status::PermissionDenied);
    }

    #[test]
    fn a_service_that_is_off_denies_everything() {
        let mut relay = Relay::with(|file| file.settings.service = false);
        relay.join(1);
        assert_eq!(relay.reserve(1), Err(Refusal::ServiceOff));
        assert_eq!(status(relay.connect(1, 2)), Status::PermissionDenied);
    }

    #[test]
    fn a_stopping_node_admits_nobody_and_lets_circuits_run() {
        let mut relay = Relay::new();
        relay.join(1);
        relay.join(2);
        relay.reserve(2).expect("open");
        let circuit = relay.circuit(1, 2).expect("open");
        let shaking = relay.connect(1, 2).expect("open").circuit;
        relay.admission.drain();
        assert_eq!(relay.established(shaking), Err(Refusal::Stopping));
        assert_eq!(relay.reserve(2), Err(Refusal::Stopping));
        assert_eq!(relay.connect(1, 2), Err(Refusal::Stopping));
        assert!(!relay.admission.is_idle());
        relay.closed(circuit);
        assert!(relay.admission.is_idle());
    }

    #[test]
    fn refusals_are_counted_by_label() {
        let mut relay = Relay::with(|file| file.deny = vec![named(1)]);
        relay.join(1);
        let _ = relay.reserve(1);
        let _ = relay.reserve(1);
        relay.admission.count_refusal(&Refusal::Malformed);
        let refused = relay.report().refused;
        assert_eq!(refused.get("denied"), Some(&2));
        assert_eq!(refused.get("malformed"), Some(&1));
    }

    #[test]
    fn shadow_mode_reports_what_it_would_refuse_and_admits_it() {
        let mut relay = Relay::with(|file| {
            file.mode = Mode::Shadow;
            file.deny = vec![named(2)];
        });
        relay.join(1);
        relay.join(2);
        let reserved = relay.reserve(2).expect("shadow");
        let rule = reserved.shadow.expect("a remark").to_string();
        assert_eq!(rule, "edgevpn.toml:1 acl.deny");
        let ticket = relay.connect(1, 2).expect("shadow");
        assert!(ticket.shadow.is_some(), "the destination is remarked on");
        assert_eq!(relay.report().shadow_refused, 2);
        assert!(relay.report().refused.is_empty());
    }

    #[test]
    fn a_request_over_a_connection_that_is_gone_is_over() {
        let mut relay = Relay::new();
        let key = relay.join(1);
        relay.leave(1, key);
        let decided = relay.admission.reserve(peer(1), key, relay.now);
        assert_eq!(decided, Err(Refusal::Gone));
    }

    #[test]
    fn a_connection_told_twice_is_one_and_where_it_was_said_last() {
        let mut relay = Relay::new();
        let key = relay.join(1);
        relay.admission.connected(peer(1), key, Some(address(9)));
        relay.reserve(1).expect("room");
        let report = relay.report();
        let place = report.peers.first().map(|peer| peer.address.as_str());
        assert_eq!(place, Some("192.0.2.9"));
        assert_eq!(relay.leave(1, key).len(), 1, "its reservation");
        assert!(relay.report().peers.is_empty());
    }

    #[test]
    fn a_report_lists_the_busiest_peers_and_counts_the_rest() {
        let mut relay = Relay::with(|file| file.settings.resources.max_reservations = 1000);
        for number in 0..=255 {
            relay.join(number);
            relay.reserve(number).expect("room");
        }
        let circuit = relay.circuit(9, 200).expect("room");
        let report = relay.admission.report(relay.now, |id| crate::relay::Bytes {
            to_destination: if id == circuit { 70 } else { 0 },
            to_source: 7,
        });
        assert_eq!(report.peers.len(), 256);
        assert_eq!(report.peers_omitted, 0);
        let busy: Vec<_> = report.peers.iter().take(2).collect();
        assert!(busy.iter().all(|peer| peer.bytes.to_destination == 70));
        assert!(busy.iter().any(|peer| peer.circuits_as_source == 1));
        assert_eq!(busy.first().and_then(|p| p.reserved_for_s), Some(3600));
    }
}
