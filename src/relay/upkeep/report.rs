//! What the upkeep knows, for `status`.

use std::time::{Duration, Instant};

use super::{ENOUGH_CANDIDATES, Failure, Reachability, Source, State, TARGET, Upkeep};
use crate::id::PeerId;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub reachability: Reachability,
    /// Whether reservations are wanted now: `relay.client`, and static relays or no public address.
    pub wanted: bool,
    pub target: usize,
    /// Every relay that is known, in the order of their ids.
    pub relays: Vec<Entry>,
    /// In how long something may be tried next.
    pub next_in: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub relay: PeerId,
    pub source: Source,
    pub connected: bool,
    pub stage: Stage,
    /// Since the last success.
    pub failures: u32,
    pub last_failure: Option<Failure>,
}

/// Where a relay stands; times are counted from the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Candidate,
    Dialling,
    Reserving,
    Active {
        held_for: Duration,
        renewed_ago: Duration,
        /// Unknown until the first renewal: the client does not tell what the relay has promised.
        expires_in: Option<Duration>,
    },
    /// Left alone after a failure.
    Resting {
        until: Duration,
    },
}

impl Upkeep {
    pub fn report(&self, now: Instant) -> Report {
        Report {
            reachability: self.reachability,
            wanted: self.needed(now),
            target: TARGET,
            relays: self
                .relays
                .iter()
                .map(|(peer, relay)| Entry {
                    relay: *peer,
                    source: relay.source(),
                    connected: relay.connected,
                    stage: Stage::of(relay.state, now),
                    failures: relay.failures,
                    last_failure: relay.last_failure,
                })
                .collect(),
            next_in: self
                .next_deadline(now)
                .map(|next| next.saturating_duration_since(now)),
        }
    }

    /// Whether more relays should be looked for.
    pub fn looks_for_relays(&self, now: Instant) -> bool {
        self.needed(now)
            && !self.terms.static_only
            && !self.is_public(now)
            && self.discovered() < ENOUGH_CANDIDATES
    }

    fn needed(&self, now: Instant) -> bool {
        self.terms.enabled && (!self.terms.fixed.is_empty() || !self.is_public(now))
    }
}

impl Stage {
    fn of(state: State, now: Instant) -> Self {
        match state {
            State::Candidate | State::Dialled => Stage::Candidate,
            State::Dialling { .. } => Stage::Dialling,
            State::Reserving { .. } => Stage::Reserving,
            State::Active {
                since,
                renewed,
                expires,
            } => Stage::Active {
                held_for: now.saturating_duration_since(since),
                renewed_ago: now.saturating_duration_since(renewed),
                expires_in: expires.map(|expires| expires.saturating_duration_since(now)),
            },
            State::Resting { until } => Stage::Resting {
                until: until.saturating_duration_since(now),
            },
        }
    }

    /// For metrics and `status`.
    pub fn label(&self) -> &'static str {
        match self {
            Stage::Candidate => "candidate",
            Stage::Dialling => "dialling",
            Stage::Reserving => "reserving",
            Stage::Active { .. } => "active",
            Stage::Resting { .. } => "resting",
        }
    }
}

impl Failure {
    /// What `status` says.
    pub fn as_str(self) -> &'static str {
        match self {
            Failure::Unreachable => "not reached",
            Failure::Denied => "permission denied",
            Failure::Refused => "refused: full, or asked too often",
            Failure::Unsupported => "no relay service",
            Failure::TimedOut => "no answer",
            Failure::Lost => "connection lost",
        }
    }
}

impl Source {
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Static => "static",
            Source::Member => "member",
            Source::Found => "found",
        }
    }
}

impl Reachability {
    pub fn as_str(self) -> &'static str {
        match self {
            Reachability::Unknown => "unknown",
            Reachability::Public => "public",
            Reachability::Private => "private",
        }
    }
}
