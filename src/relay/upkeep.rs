//! On which relays this node holds a reservation, and which it tries next. Decides only: the caller dials, reserves,
//! releases and reports back.
//!
//! ```text
//! candidate → dialling → dialled → reserving → active
//!     ↑           └─────────────────────┴──────────┴→ resting (until) ─┐
//!     └────────────────────────────────────────────────────────────────┘
//! ```

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    time::{Duration, Instant},
};

use crate::id::PeerId;

mod pause;
mod report;

pub use report::{Entry, Report, Stage};

/// Reservations to hold. With two, the death of a relay leaves an address at which this node is still reached.
pub const TARGET: usize = 2;

/// Discovered relays that are remembered. Enough to find two that admit, few enough to be searched at every step.
pub const MOST_CANDIDATES: usize = 20;

/// With so many relays found there is a choice, and the start-up delay is over.
pub const ENOUGH_CANDIDATES: usize = 4;

/// How long a node looks around before it asks a relay that it merely came across. The first ones met are those that
/// everybody meets first.
pub const BOOT_DELAY: Duration = Duration::from_secs(180);

/// A candidate that has not been heard of for this long is forgotten.
pub const CANDIDATE_AGE: Duration = Duration::from_secs(30 * 60);

/// Between two attempts at relays that were come across: a network of many small relays is asked at leisure.
pub const FOUND_INTERVAL: Duration = Duration::from_secs(30);

/// Between two attempts at relays of members, who are few and meant to be asked.
pub const MEMBER_INTERVAL: Duration = Duration::from_secs(2);

/// A dial or a reservation without a word for this long has failed. Above the client's own minute for a reservation.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(75);

/// So long must a node be publicly reachable before it gives its reservations back: one probe may be mistaken.
pub const PUBLIC_PATIENCE: Duration = Duration::from_secs(60);

pub struct Upkeep {
    terms: Terms,
    /// Differs from node to node: spreads nodes over relays and their attempts over time.
    seed: u64,
    started: Instant,
    reachability: Reachability,
    public_since: Option<Instant>,
    relays: BTreeMap<PeerId, Relay>,
    /// The last attempt at a discovered relay.
    last_found: Option<Instant>,
}

/// What the configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    pub enabled: bool,
    /// Static relays. Those that are connected are asked first, then in this order.
    pub fixed: Vec<PeerId>,
    pub static_only: bool,
    /// This node is becoming known as a member of a network: a relay that denies it now may admit it in seconds.
    pub joining: bool,
}

/// Whether others reach this node without a relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reachability {
    #[default]
    Unknown,
    Public,
    Private,
}

/// How a relay came to be known; an earlier one is preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// `relay.peers`.
    Static,
    /// A member that announces the service.
    Member,
    /// Come across, in the hash table or by a connection.
    Found,
}

/// From where a relay can be dialled; an earlier one is preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// From everywhere, as far as its address tells.
    Public,
    /// From its own network.
    Private,
}

/// What the caller has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Connect to the relay directly, then report [`Upkeep::handle_connected`] or [`Upkeep::handle_failed`].
    Dial(PeerId),
    /// Ask for a reservation over the connection there is.
    Reserve(PeerId),
    /// Give the reservation back, or stop asking for it.
    Release(PeerId),
}

/// Why a reservation was not made or has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// No connection to the relay came about.
    Unreachable,
    /// PERMISSION_DENIED.
    Denied,
    /// The relay is full or asked too often.
    Refused,
    /// The relay does not speak the protocol, or not as it should.
    Unsupported,
    /// No answer in time.
    TimedOut,
    /// The connection that carried the reservation is gone.
    Lost,
}

struct Relay {
    /// Its place among the static ones.
    fixed: Option<usize>,
    /// How else it is known.
    discovered: Option<Discovered>,
    connected: bool,
    /// It was a static relay until the file changed; what is held there goes.
    dismissed: bool,
    /// Failures since the last success.
    failures: u32,
    last_failure: Option<Failure>,
    state: State,
}

#[derive(Clone, Copy)]
struct Discovered {
    source: Source,
    scope: Scope,
    heard: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Candidate,
    Dialling {
        until: Instant,
    },
    /// Connected because we dialled; asked as soon as there is a place.
    Dialled,
    Reserving {
        until: Instant,
    },
    Active {
        since: Instant,
        renewed: Instant,
        /// From the pace of renewals; unknown before the first.
        expires: Option<Instant>,
    },
    Resting {
        until: Instant,
    },
}

impl Upkeep {
    pub fn new(seed: u64, now: Instant) -> Self {
        Self {
            terms: Terms::default(),
            seed,
            started: now,
            reachability: Reachability::default(),
            public_since: None,
            relays: BTreeMap::new(),
            last_found: None,
        }
    }

    /// Takes over the configuration. A static relay that is new in it, or in it again, is tried at once.
    pub fn set_terms(&mut self, terms: Terms, now: Instant) {
        if self.terms == terms {
            return;
        }
        if terms.enabled && !self.terms.enabled {
            self.started = now;
        }
        for (peer, relay) in &mut self.relays {
            let left = relay.fixed.take().is_some() && !terms.fixed.contains(peer);
            relay.dismissed |= left && relay.is_busy();
        }
        for (place, peer) in terms.fixed.iter().enumerate() {
            let new = !self.terms.fixed.contains(peer);
            let relay = self.relays.entry(*peer).or_insert_with(Relay::new);
            relay.fixed = Some(place);
            relay.dismissed = false;
            if new {
                relay.rested();
            }
        }
        self.terms = terms;
        self.forget(now);
    }

    pub fn set_reachability(&mut self, reachability: Reachability, now: Instant) {
        self.reachability = reachability;
        self.public_since = match (reachability, self.public_since) {
            (Reachability::Public, None) => Some(now),
            (Reachability::Public, since) => since,
            _ => None,
        };
    }

    /// A peer that is connected directly announces the relay service.
    pub fn handle_found(&mut self, peer: PeerId, source: Source, scope: Scope, now: Instant) {
        self.forget(now);
        let discovered = Discovered {
            source,
            scope,
            heard: now,
        };
        if let Some(relay) = self.relays.get_mut(&peer) {
            relay.discovered = Some(discovered);
            relay.connected = true;
            return;
        }
        if self.discovered() >= MOST_CANDIDATES && !self.make_room_for(source) {
            return;
        }
        let mut relay = Relay::new();
        relay.discovered = Some(discovered);
        relay.connected = true;
        self.relays.insert(peer, relay);
    }

    /// Other peers are members now.
    pub fn set_sources(&mut self, source: impl Fn(&PeerId) -> Source) {
        for (peer, relay) in &mut self.relays {
            if let Some(found) = &mut relay.discovered {
                found.source = source(peer);
            }
        }
    }

    pub fn knows(&self, peer: &PeerId) -> bool {
        self.relays.contains_key(peer)
    }

    /// The peer no longer announces the service. A reservation that it still honours is kept.
    pub fn handle_not_a_relay(&mut self, peer: &PeerId) {
        if let Some(relay) = self.relays.get_mut(peer)
            && !relay.is_engaged()
        {
            relay.discovered = None;
        }
    }

    /// There is a direct connection to the peer.
    pub fn handle_connected(&mut self, peer: &PeerId) {
        if let Some(relay) = self.relays.get_mut(peer) {
            relay.connected = true;
            if matches!(relay.state, State::Dialling { .. }) {
                relay.state = State::Dialled;
            }
        }
    }

    /// The last direct connection to the peer is gone, and a reservation with it.
    pub fn handle_disconnected(&mut self, peer: &PeerId, now: Instant) {
        if let Some(relay) = self.relays.get_mut(peer) {
            relay.connected = false;
            if relay.state == State::Dialled || relay.is_engaged() {
                self.handle_failed(peer, Failure::Lost, now);
            }
        }
    }

    /// The relay has granted or renewed a reservation.
    pub fn handle_accepted(&mut self, peer: &PeerId, now: Instant) {
        let Some(relay) = self.relays.get_mut(peer) else {
            return;
        };
        relay.state = match relay.state {
            State::Active { since, renewed, .. } => State::Active {
                since,
                renewed: now,
                // The client renews after three quarters of what the relay has promised.
                expires: Some(now + now.saturating_duration_since(renewed).mul_f64(4.0 / 3.0)),
            },
            State::Reserving { .. } => State::Active {
                since: now,
                renewed: now,
                expires: None,
            },
            // Released meanwhile: the caller takes it back.
            other => other,
        };
        relay.failures = 0;
        relay.last_failure = None;
    }

    /// A dial or a reservation has failed, or a held reservation has ended.
    pub fn handle_failed(&mut self, peer: &PeerId, failure: Failure, now: Instant) {
        let (seed, joining) = (self.seed, self.terms.joining);
        let Some(relay) = self.relays.get_mut(peer) else {
            return;
        };
        if matches!(relay.state, State::Candidate | State::Resting { .. }) {
            return;
        }
        let source = relay.source();
        let spread = hash(&(seed, peer, relay.failures));
        let pause = pause::after(failure, source, joining, relay.failures, spread);
        relay.failures = relay.failures.saturating_add(1);
        relay.last_failure = Some(failure);
        relay.dismissed = false;
        relay.state = State::Resting { until: now + pause };
    }

    /// The next thing to do, until there is none.
    pub fn poll(&mut self, now: Instant) -> Option<Action> {
        self.forget(now);
        self.poll_unwanted(now)
            .or_else(|| self.poll_overdue(now))
            .or_else(|| self.poll_attempt(now))
    }

    /// When [`poll`](Self::poll) may have something new to say although nothing has happened.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let interval = |span| self.last_found.map(|last| last + span);
        let of_all = [
            self.public_since.map(|since| since + PUBLIC_PATIENCE),
            Some(self.started + BOOT_DELAY),
            interval(FOUND_INTERVAL),
            interval(MEMBER_INTERVAL),
        ];
        let of_each = self.relays.values().flat_map(|relay| {
            let state = match relay.state {
                State::Dialling { until }
                | State::Reserving { until }
                | State::Resting { until } => Some(until),
                State::Candidate | State::Dialled | State::Active { .. } => None,
            };
            let aged = relay.discovered.map(|found| found.heard + CANDIDATE_AGE);
            [state, aged]
        });
        of_each
            .chain(of_all)
            .flatten()
            .filter(|deadline| *deadline > now)
            .min()
    }

    fn poll_unwanted(&mut self, now: Instant) -> Option<Action> {
        let unwanted =
            self.find(|_, relay| relay.is_busy() && (relay.dismissed || !self.wants(relay, now)))?;
        self.release(unwanted)
    }

    fn poll_overdue(&mut self, now: Instant) -> Option<Action> {
        let is_overdue = |relay: &Relay| match relay.state {
            State::Dialling { until } | State::Reserving { until } => until <= now,
            _ => false,
        };
        let overdue = self.find(|_, relay| is_overdue(relay))?;
        self.handle_failed(&overdue, Failure::TimedOut, now);
        Some(Action::Release(overdue))
    }

    fn poll_attempt(&mut self, now: Instant) -> Option<Action> {
        let peer = self
            .relays
            .iter()
            .filter(|(_, relay)| self.wants(relay, now) && self.ready(relay, now))
            .filter(|(_, relay)| self.has_place_for(relay))
            .min_by_key(|(peer, relay)| {
                let order = (relay.fixed, hash(&(self.seed, *peer)));
                (
                    relay.class(),
                    relay.source(),
                    !relay.connected,
                    relay.failures,
                    order,
                )
            })
            .map(|(peer, _)| *peer)?;
        let engaged = self.engaged();
        let worse = self.worse_than(self.relays.get(&peer)?);
        let relay = self.relays.get_mut(&peer)?;
        if relay.source() != Source::Static && relay.state != State::Dialled {
            self.last_found = Some(now);
        }
        let until = now + ANSWER_TIMEOUT;
        if !relay.connected {
            relay.state = State::Dialling { until };
            return Some(Action::Dial(peer));
        }
        if engaged >= TARGET {
            // Its place goes to the better one at the next call.
            relay.state = State::Dialled;
            return self.release(worse?);
        }
        relay.state = State::Reserving { until };
        Some(Action::Reserve(peer))
    }

    /// Whether trying this one could lead to a reservation that is wanted.
    fn has_place_for(&self, relay: &Relay) -> bool {
        let dialling = self.count(|relay| matches!(relay.state, State::Dialling { .. }));
        let free = TARGET.saturating_sub(self.engaged());
        match relay.connected {
            true => free > 0 || (relay.may_displace() && self.worse_than(relay).is_some()),
            false => {
                dialling < free.max(1)
                    && (free > 0 || (relay.may_displace() && self.worse_than(relay).is_some()))
            }
        }
    }

    /// A relay that has a place and is of less use than this one.
    fn worse_than(&self, relay: &Relay) -> Option<PeerId> {
        self.find(|_, other| other.is_engaged() && other.class() > relay.class())
    }

    fn release(&mut self, peer: PeerId) -> Option<Action> {
        let relay = self.relays.get_mut(&peer)?;
        relay.state = State::Candidate;
        relay.dismissed = false;
        Some(Action::Release(peer))
    }

    /// Whether a reservation there is of use now.
    fn wants(&self, relay: &Relay, now: Instant) -> bool {
        let known = relay.fixed.is_some() || relay.discovered.is_some();
        self.terms.enabled
            && known
            && match relay.source() {
                Source::Static => true,
                Source::Member | Source::Found => !self.terms.static_only && !self.is_public(now),
            }
    }

    /// Whether nothing forbids to try it at this moment.
    fn ready(&self, relay: &Relay, now: Instant) -> bool {
        match relay.state {
            State::Dialled => return true,
            State::Candidate => {}
            State::Resting { until } if until <= now => {}
            _ => return false,
        }
        let since_last = |span| self.last_found.is_none_or(|last| last + span <= now);
        match relay.source() {
            Source::Static => true,
            Source::Member => since_last(MEMBER_INTERVAL),
            Source::Found => {
                let looked_around =
                    self.started + BOOT_DELAY <= now || self.discovered() >= ENOUGH_CANDIDATES;
                looked_around && since_last(FOUND_INTERVAL)
            }
        }
    }

    fn is_public(&self, now: Instant) -> bool {
        self.public_since
            .is_some_and(|since| since + PUBLIC_PATIENCE <= now)
    }

    fn engaged(&self) -> usize {
        self.count(Relay::is_engaged)
    }

    fn discovered(&self) -> usize {
        self.count(|relay| relay.fixed.is_none())
    }

    fn count(&self, which: impl Fn(&Relay) -> bool) -> usize {
        self.relays.values().filter(|relay| which(relay)).count()
    }

    fn find(&self, which: impl Fn(&PeerId, &Relay) -> bool) -> Option<PeerId> {
        self.relays
            .iter()
            .find(|(peer, relay)| which(peer, relay))
            .map(|(peer, _)| *peer)
    }

    /// Drops what is neither static nor known otherwise, and candidates that nobody has spoken of for long. One that
    /// rests is remembered until it has rested, so that meeting it again does not shorten the rest.
    fn forget(&mut self, now: Instant) {
        self.relays.retain(|_, relay| {
            if relay.fixed.is_some() || relay.is_busy() {
                return true;
            }
            let resting = matches!(relay.state, State::Resting { until } if until > now);
            let fresh = relay
                .discovered
                .is_some_and(|found| relay.connected || found.heard + CANDIDATE_AGE > now);
            resting || fresh
        });
    }

    /// Forgets one candidate of less worth than one of `source`, if there is any.
    fn make_room_for(&mut self, source: Source) -> bool {
        let victim = self
            .relays
            .iter()
            .filter(|(_, relay)| relay.state == State::Candidate && relay.source() > source)
            .min_by_key(|(_, relay)| relay.discovered.map(|found| found.heard))
            .map(|(peer, _)| *peer);
        victim.is_some_and(|peer| self.relays.remove(&peer).is_some())
    }
}

impl Relay {
    fn new() -> Self {
        Self {
            fixed: None,
            discovered: None,
            connected: false,
            dismissed: false,
            failures: 0,
            last_failure: None,
            state: State::Candidate,
        }
    }

    fn source(&self) -> Source {
        match (self.fixed, self.discovered) {
            (Some(_), _) => Source::Static,
            (None, Some(found)) => found.source,
            (None, None) => Source::Found,
        }
    }

    /// Of how much use its reservation is; less is more.
    fn class(&self) -> u8 {
        match (self.fixed, self.discovered.map(|found| found.scope)) {
            (Some(_), _) => 0,
            (None, Some(Scope::Public)) => 1,
            (None, Some(Scope::Private) | None) => 2,
        }
    }

    /// Holds, or asks for, one of the [`TARGET`] reservations.
    fn is_engaged(&self) -> bool {
        matches!(self.state, State::Reserving { .. } | State::Active { .. })
    }

    fn is_busy(&self) -> bool {
        self.is_engaged() || matches!(self.state, State::Dialling { .. } | State::Dialled)
    }

    /// A reservation in hand is given up only for a relay that has not said no.
    fn may_displace(&self) -> bool {
        match self.last_failure {
            None | Some(Failure::Unreachable | Failure::TimedOut | Failure::Lost) => true,
            Some(Failure::Denied | Failure::Refused | Failure::Unsupported) => false,
        }
    }

    /// Earlier failures do not count any more.
    fn rested(&mut self) {
        self.failures = 0;
        if matches!(self.state, State::Resting { .. }) {
            self.state = State::Candidate;
        }
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
