//! What a peer has asked lately: for whoever wonders why it is not served.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::Admission;
use crate::{
    acl::Operation,
    id::PeerId,
    relay::{Refusal, Status},
};

/// Requests older than this are forgotten: what matters is what happens now.
pub(super) const MEMORY: Duration = Duration::from_secs(3600);

/// The requests of one peer within an hour, as a count with a beginning and the last one in full.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    first: Instant,
    count: u32,
    last: Last,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    at: Instant,
    operation: Operation,
    status: Status,
}

/// What a peer has asked, for a report. Spans count back from now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Requests {
    pub count: u32,
    /// Seconds within which they came, an hour at most.
    pub within_s: u64,
    /// Seconds since the last one.
    pub last_s: u64,
    /// `reserve` or `connect`.
    pub operation: String,
    /// Status code of the answer to the last one.
    pub status: u16,
    /// Its name: `PERMISSION_DENIED`.
    pub answer: String,
}

impl Seen {
    /// Counts a request; one that comes an hour after the first begins anew.
    pub fn count(seen: &mut Option<Seen>, operation: Operation, status: Status, now: Instant) {
        let last = Last {
            at: now,
            operation,
            status,
        };
        match seen {
            Some(seen) if now.saturating_duration_since(seen.first) < MEMORY => {
                seen.count = seen.count.saturating_add(1);
                seen.last = last;
            }
            Some(_) | None => {
                *seen = Some(Seen {
                    first: now,
                    count: 1,
                    last,
                });
            }
        }
    }

    pub fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last.at) < MEMORY
    }

    fn report(&self, now: Instant) -> Requests {
        let since = |at| now.saturating_duration_since(at).as_secs();
        Requests {
            count: self.count,
            within_s: since(self.first),
            last_s: since(self.last.at),
            operation: self.last.operation.to_string(),
            status: self.last.status as u16,
            answer: self.last.status.name().to_owned(),
        }
    }
}

/// What the relay knows of one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Where it reserved from, or is connected from.
    pub address: Option<IpAddr>,
    /// Until its reservation expires.
    pub reserved_for: Option<Duration>,
    /// As source and as destination, handshakes included.
    pub circuits: u32,
    pub requests: Option<Requests>,
}

impl Admission {
    pub fn account_of(&self, peer: &PeerId, now: Instant) -> Account {
        let requests = self.requests_of(peer, now);
        let Some(state) = self.peers.get(peer) else {
            return Account {
                requests,
                ..Account::default()
            };
        };
        let held = state.reservation.as_ref();
        let held = held.filter(|held| held.expires > now);
        Account {
            address: held
                .map(|held| held.address)
                .or_else(|| Some(state.direct()?.1)),
            reserved_for: held.map(|held| held.expires.saturating_duration_since(now)),
            circuits: u32::try_from(state.circuits.len()).unwrap_or(u32::MAX),
            requests,
        }
    }

    /// What the peer has asked within the last hour, connected or not.
    pub fn requests_of(&self, peer: &PeerId, now: Instant) -> Option<Requests> {
        let here = self.peers.get(peer).map(|state| &state.pace);
        let pace = here.or_else(|| self.departed.get(peer))?;
        let seen = pace.seen.filter(|seen| seen.is_fresh(now))?;
        Some(seen.report(now))
    }

    pub(super) fn see<T>(
        &mut self,
        peer: &PeerId,
        operation: Operation,
        decided: &Result<T, Refusal>,
        now: Instant,
    ) {
        if let Some(state) = self.peers.get_mut(peer) {
            let status = match decided {
                Ok(_) => Status::Ok,
                Err(refusal) => refusal.status(),
            };
            Seen::count(&mut state.pace.seen, operation, status, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::harness::{Relay, named, peer};
    use super::*;

    #[test]
    fn what_a_peer_asked_is_remembered_for_an_hour_also_when_it_has_left() {
        let mut relay = Relay::with(|file| file.deny = vec![named(1)]);
        let key = relay.join(1);
        assert_eq!(relay.admission.requests_of(&peer(1), relay.now), None);
        let _ = relay.reserve(1);
        relay.now += Duration::from_secs(40);
        let _ = relay.reserve(1);
        relay.leave(1, key);
        relay.now += Duration::from_secs(2);
        let requests = relay
            .admission
            .requests_of(&peer(1), relay.now)
            .expect("it asked");
        assert_eq!(
            (requests.count, requests.within_s, requests.last_s),
            (2, 42, 2)
        );
        assert_eq!(requests.answer, "PERMISSION_DENIED");
        relay.now += MEMORY;
        assert_eq!(relay.admission.requests_of(&peer(1), relay.now), None);
    }

    #[test]
    fn after_an_hour_counting_begins_anew() {
        let mut relay = Relay::new();
        relay.join(1);
        let _ = relay.reserve(1);
        relay.now += MEMORY;
        let _ = relay.reserve(1);
        let requests = relay.admission.requests_of(&peer(1), relay.now);
        assert_eq!(requests.map(|requests| requests.count), Some(1));
    }
}
