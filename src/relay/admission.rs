//! Who may hold a slot here, who may open a circuit, and how much of it. No clock and no sockets: the caller passes
//! `now`, feeds connections and requests, and carries the [`Effect`]s out.
//!
//! Every request is answered in constant time but for the ordered structures (logarithmic), however many reservations
//! are held: nothing here walks through them except a change of policy and a report.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;

use crate::{
    acl::{Acl, Decision, Mode, RuleRef},
    id::{Generation, PeerId},
    relay::{Buffers, CircuitLimits, Refusal, Settings},
};

mod audit;
mod circuits;
mod deadlines;
mod departed;
mod peer;
mod reservations;
mod settle;

pub use circuits::{MAX_HANDSHAKES, MAX_HANDSHAKES_OF_SOURCE, MAX_HANDSHAKES_TO_DESTINATION};
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

/// What the caller has to carry out. The state here is already without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    EndReservation {
        peer: PeerId,
        why: Ended,
    },
    /// Reset both ends, whether the circuit is established or in its handshake.
    CutCircuit {
        circuit: CircuitId,
        why: Cut,
    },
    /// Close what connections the peer has, once, so that it learns. It may come back.
    CloseConnections {
        peer: PeerId,
    },
}

/// Why a reservation ended before the peer gave it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    Expired,
    /// The peer's last direct connection is gone.
    Disconnected,
    Denied(RuleRef),
    ServiceOff,
    /// Surplus over a lowered cap, with `on_shrink = "evict"`.
    Evicted,
}

/// Why a circuit is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// One of the two connections it runs over is gone.
    Disconnected,
    Denied(RuleRef),
    ServiceOff,
    /// Surplus over a lowered cap, with `on_shrink = "evict"`.
    Evicted,
}

/// The state of the relay service.
#[derive(Debug)]
pub struct Admission {
    policy: Policy,
    stopping: bool,
    /// Peers with a connection or a circuit.
    peers: HashMap<PeerId, Peer>,
    /// Reservations by the prefix they were made from.
    prefixes: HashMap<IpNet, u32>,
    reservations: u32,
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
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            stopping: false,
            peers: HashMap::new(),
            prefixes: HashMap::new(),
            reservations: 0,
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
            .or_insert_with(|| Peer::new(departed.take(&peer)))
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
#[allow(clippy::disallowed_methods)] // Tests start their own clock.
pub(super) mod tests {
    use super::*;
    use crate::{
        acl::{Action, Audience, Entry, Rules, Subject},
        id::Origin,
        relay::{Limit, OnShrink, Resources, Status},
    };

    /// A relay without a network: peers are small numbers, time moves when told to, and the sums are checked after
    /// each step.
    pub struct Relay {
        pub admission: Admission,
        pub now: Instant,
        pub file: File,
        connections: HashMap<u8, Vec<ConnectionKey>>,
        next_connection: u64,
    }

    /// What the operator wrote.
    #[derive(Clone)]
    pub struct File {
        pub settings: Settings,
        pub reserve: Audience,
        pub connect: Audience,
        pub mode: Mode,
        pub allow: Vec<Subject>,
        pub deny: Vec<Subject>,
    }

    impl Relay {
        /// Everybody is admitted and nothing is full.
        pub fn new() -> Self {
            Self::with(|_| {})
        }

        pub fn with(edit: impl FnOnce(&mut File)) -> Self {
            let mut file = File {
                settings: Settings {
                    service: true,
                    on_shrink: OnShrink::Drain,
                    resources: Resources {
                        max_data: Limit::At(1 << 30),
                        max_duration: Limit::At(Duration::from_secs(1800)),
                        max_circuits: 64,
                        reservation_ttl: HOUR,
                        buffer_size: 65_536,
                        max_reservations: 128,
                        max_reservations_per_ip: 128,
                        max_circuits_total: 1024,
                        reservation_rate: Limit::Unlimited,
                        circuit_rate: Limit::Unlimited,
                        bandwidth: Limit::Unlimited,
                        bandwidth_per_circuit: Limit::Unlimited,
                        max_buffers: 1 << 28,
                    },
                },
                reserve: Audience::Anyone,
                connect: Audience::Anyone,
                mode: Mode::Enforce,
                allow: Vec::new(),
                deny: Vec::new(),
            };
            edit(&mut file);
            Self {
                admission: Admission::new(file.policy()),
                now: Instant::now(),
                file,
                connections: HashMap::new(),
                next_connection: 0,
            }
        }

        /// Connects a peer from an address of its own.
        pub fn join(&mut self, number: u8) -> ConnectionKey {
            self.join_from(number, Some(address(number)))
        }

        pub fn join_from(&mut self, number: u8, address: Option<IpAddr>) -> ConnectionKey {
            let key = ConnectionKey(self.next_connection);
            self.next_connection += 1;
            self.connections.entry(number).or_default().push(key);
            self.admission.connected(peer(number), key, address);
            self.admission.check_invariants();
            key
        }

        pub fn leave(&mut self, number: u8, key: ConnectionKey) -> Vec<Effect> {
            self.connections
                .entry(number)
                .or_default()
                .retain(|connection| *connection != key);
            let effects = self.admission.disconnected(&peer(number), key, self.now);
            self.admission.check_invariants();
            effects
        }

        /// Over the youngest connection.
        pub fn reserve(&mut self, number: u8) -> Result<Reserved, Refusal> {
            let key = self.connection_of(number);
            let decided = self.admission.reserve(peer(number), key, self.now);
            self.admission.check_invariants();
            decided
        }

        pub fn connect(&mut self, source: u8, destination: u8) -> Result<Ticket, Refusal> {
            let key = self.connection_of(source);
            let decided = self
                .admission
                .connect(peer(source), key, peer(destination), self.now);
            self.admission.check_invariants();
            decided
        }

        pub fn established(&mut self, circuit: CircuitId) -> Result<(), Refusal> {
            let decided = self.admission.established(circuit, self.now);
            self.admission.check_invariants();
            decided
        }

        pub fn closed(&mut self, circuit: CircuitId) {
            self.admission.closed(circuit, self.now);
            self.admission.check_invariants();
        }

        /// A circuit that carries.
        pub fn circuit(&mut self, source: u8, destination: u8) -> Result<CircuitId, Refusal> {
            let ticket = self.connect(source, destination)?;
            self.established(ticket.circuit)?;
            Ok(ticket.circuit)
        }

        pub fn edit(&mut self, edit: impl FnOnce(&mut File)) -> Settled {
            edit(&mut self.file);
            let policy = self.file.policy();
            let foreseen = self.admission.impact(&policy);
            let settled = self.admission.set_policy(policy, self.now);
            self.admission.check_invariants();
            assert_eq!(foreseen, settled.impact, "plan and reload disagree");
            settled
        }

        pub fn expired(&mut self) -> Vec<Effect> {
            let now = self.now;
            let effects = std::iter::from_fn(|| self.admission.poll_expired(now)).collect();
            self.admission.check_invariants();
            effects
        }

        pub fn report(&self) -> crate::relay::Report {
            self.admission.report(self.now, |_| Default::default())
        }

        fn connection_of(&self, number: u8) -> ConnectionKey {
            let connections = self.connections.get(&number);
            *connections.and_then(|all| all.last()).expect("joined")
        }
    }

    impl File {
        pub fn policy(&self) -> Policy {
            let entries = |action, subjects: &[Subject]| {
                let entry = |(at, subject): (usize, &Subject)| Entry {
                    subject: *subject,
                    list: None,
                    origin: Origin::File {
                        file: "edgevpn.toml".into(),
                        line: at as u32 + 1,
                    },
                };
                let all = subjects.iter().enumerate().map(entry);
                all.map(|entry| (action, entry)).collect::<Vec<_>>()
            };
            let rules = Rules {
                reserve: self.reserve,
                connect: self.connect,
                reserve_origin: Origin::Default,
                connect_origin: Origin::Default,
                mode: self.mode,
                entries: entries(Action::Allow, &self.allow)
                    .into_iter()
                    .chain(entries(Action::Deny, &self.deny))
                    .collect(),
                tests: Vec::new(),
            };
            Policy {
                generation: Generation(1),
                acl: Arc::new(Acl::compile(rules)),
                settings: self.settings.clone(),
            }
        }
    }

    pub const HOUR: Duration = Duration::from_secs(3600);

    pub fn peer(number: u8) -> PeerId {
        let mut key = vec![0, 36, 8, 1, 18, 32];
        key.extend([number; 32]);
        PeerId::from_bytes(&key).expect("an Ed25519 key")
    }

    pub fn named(number: u8) -> Subject {
        Subject::Peer(peer(number))
    }

    pub fn address(number: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, number])
    }

    pub fn status<T: std::fmt::Debug>(decided: Result<T, Refusal>) -> Status {
        decided.map_or_else(|refusal| refusal.status(), |_| Status::Ok)
    }

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
