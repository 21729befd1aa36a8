//! A relay without a network, for the tests of this module.
#![cfg(test)]
#![allow(clippy::disallowed_methods)] // Tests start their own clock.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Admission, CircuitId, ConnectionKey, Effect, Policy, Reserved, Settled, Ticket};
use crate::{
    acl::{Acl, Action, Audience, Entry, Membership, Mode, Rules, Subject, Window},
    id::{Generation, Origin, PeerId, UnixTime},
    relay::{Limit, OnShrink, Refusal, Resources, Settings, Status},
};

/// Peers are small numbers, time moves when told to, and the sums are checked after
/// each step.
pub struct Relay {
    pub admission: Admission,
    pub now: Instant,
    pub file: File,
    membership: Membership,
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
            membership: Membership::default(),
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

    /// Something has changed among the members.
    pub fn ledger(&mut self, change: impl FnOnce(&mut Membership)) -> Vec<Effect> {
        change(&mut self.membership);
        let membership = Arc::new(self.membership.clone());
        let effects = self.admission.set_membership(membership, self.now);
        self.admission.check_invariants();
        effects
    }

    /// A peer has a live heartbeat: the window closes.
    pub fn beat(&mut self, number: u8) -> Vec<Effect> {
        self.ledger(|known| {
            known.window = Window::Closed;
            known.withdrawn.remove(&peer(number));
            known.members.insert(peer(number), UnixTime::from_secs(1));
        })
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
            bootstrap_origin: Origin::Default,
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
