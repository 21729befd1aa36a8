//! How peers asked that have left: their rates, so that leaving and coming back gives nobody more requests, and what they
//! were told.

use std::time::{Duration, Instant};

use super::seen::{MEMORY, Seen};
use crate::{
    id::{PeerId, PeerMap},
    relay::{Bucket, Limit, Resources},
};

/// How fast one peer asks, and what it was told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    pub reserve: Bucket,
    pub connect: Bucket,
    pub seen: Option<Seen>,
}

/// In two generations, each bounded. When the young one is full or a whole period old, it becomes the old one, and the
/// old one is forgotten: after a period its buckets are full again anyway, and its requests an hour old. Whoever can fill a generation before that has
/// so many identities that a rate per peer does not bind them.
#[derive(Debug, Default)]
pub(super) struct Departed {
    young: PeerMap<Pace>,
    old: PeerMap<Pace>,
    since: Option<Instant>,
}

/// Peers in a generation, at some 300 bytes each: 5 MiB.
const MAX_DEPARTED: usize = 16_384;

impl Departed {
    pub fn take(&mut self, peer: &PeerId) -> Pace {
        self.young
            .remove(peer)
            .or_else(|| self.old.remove(peer))
            .unwrap_or_default()
    }

    pub fn get(&self, peer: &PeerId) -> Option<&Pace> {
        self.young.get(peer).or_else(|| self.old.get(peer))
    }

    pub fn keep(&mut self, peer: PeerId, pace: Pace, resources: &Resources, now: Instant) {
        let (reserve, connect) = (resources.reservation_rate, resources.circuit_rate);
        let full = pace.reserve.is_full(reserve, now) && pace.connect.is_full(connect, now);
        if full && !pace.seen.is_some_and(|seen| seen.is_fresh(now)) {
            return;
        }
        let period = [reserve, connect].map(|rate| match rate {
            Limit::Unlimited => Duration::ZERO,
            Limit::At(rate) => rate.per,
        });
        let period = period.into_iter().max().unwrap_or_default().max(MEMORY);
        let since = *self.since.get_or_insert(now);
        if self.young.len() >= MAX_DEPARTED || now.saturating_duration_since(since) > period {
            self.old = std::mem::take(&mut self.young);
            self.since = Some(now);
        }
        self.young.insert(peer, pace);
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // Tests start their own clock.
mod tests {
    use super::*;
    use crate::relay::{Rate, admission::harness::Relay};

    fn resources() -> Resources {
        let mut resources = Relay::new().file.settings.resources;
        resources.reservation_rate = Limit::At(Rate {
            count: 1,
            per: Duration::from_secs(60),
        });
        resources
    }

    fn stranger(number: u32) -> PeerId {
        let mut key = vec![0, 36, 8, 1, 18, 32];
        key.extend(number.to_be_bytes().repeat(8));
        PeerId::from_bytes(&key).expect("an Ed25519 key")
    }

    fn used(resources: &Resources, now: Instant) -> Pace {
        let mut pace = Pace::default();
        let taken = pace.reserve.take(resources.reservation_rate, now);
        taken.expect("a token");
        pace
    }

    #[test]
    fn any_number_of_identities_is_forgotten_down_to_the_bound() {
        let (resources, now) = (resources(), Instant::now());
        let mut departed = Departed::default();
        for number in 0..100_000 {
            departed.keep(stranger(number), used(&resources, now), &resources, now);
        }
        assert!(departed.young.len() + departed.old.len() <= 2 * MAX_DEPARTED);
        let pace = departed.take(&stranger(99_999));
        assert!(!pace.reserve.is_full(resources.reservation_rate, now));
    }

    #[test]
    fn a_full_bucket_is_not_kept() {
        let (resources, now) = (resources(), Instant::now());
        let mut departed = Departed::default();
        let later = now + Duration::from_secs(60);
        departed.keep(stranger(1), used(&resources, now), &resources, later);
        departed.keep(stranger(2), Pace::default(), &resources, now);
        assert!(departed.young.is_empty());
    }

    #[test]
    fn old_ones_are_forgotten_when_time_has_refilled_them() {
        let (resources, mut now) = (resources(), Instant::now());
        let mut departed = Departed::default();
        for number in 0..10 {
            departed.keep(stranger(number), used(&resources, now), &resources, now);
            now += MEMORY + Duration::from_secs(1);
        }
        assert!(departed.young.len() + departed.old.len() <= 3);
    }
}
