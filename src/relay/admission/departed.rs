//! The rates of peers that have left, so that leaving and coming back gives nobody more requests.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::{
    id::PeerId,
    relay::{Bucket, Limit, Resources},
};

/// How fast one peer asks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    pub reserve: Bucket,
    pub connect: Bucket,
}

/// In two generations, each bounded. When the young one is full or a whole period old, it becomes the old one, and the
/// old one is forgotten: after a period its buckets are full again anyway. Whoever can fill a generation before that has
/// so many identities that a rate per peer does not bind them.
#[derive(Debug, Default)]
pub(super) struct Departed {
    young: HashMap<PeerId, Pace>,
    old: HashMap<PeerId, Pace>,
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

    pub fn keep(&mut self, peer: PeerId, pace: Pace, resources: &Resources, now: Instant) {
        let (reserve, connect) = (resources.reservation_rate, resources.circuit_rate);
        if pace.reserve.is_full(reserve, now) && pace.connect.is_full(connect, now) {
            return;
        }
        let period = [reserve, connect].map(|rate| match rate {
            Limit::Unlimited => Duration::ZERO,
            Limit::At(rate) => rate.per,
        });
        let period = period.into_iter().max().unwrap_or(Duration::ZERO);
        let since = *self.since.get_or_insert(now);
        if self.young.len() >= MAX_DEPARTED || now.saturating_duration_since(since) > period {
            self.old = std::mem::take(&mut self.young);
            self.since = Some(now);
        }
        self.young.insert(peer, pace);
    }
}
