//! What holds for all circuits right now: the limits in force, and what they use together.
//!
//! A circuit keeps a copy of the limits and compares one number per turn; the lock is taken only after a change.

use super::pace::{Booking, Pace};
use crate::relay::{self, Buffers, Resources, Share};
use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

#[derive(Debug)]
pub struct Terms {
    version: AtomicU64,
    current: Mutex<Current>,
    stall: Duration,
    /// Bytes kept for slow readers, by all circuits together.
    buffers: Buffers,
    max_buffers: AtomicU64,
    to_destination: AtomicU64,
    to_source: AtomicU64,
}

#[derive(Debug)]
struct Current {
    resources: Resources,
    /// `bandwidth`, shared by all.
    node: Option<Pace>,
}

impl Terms {
    pub fn new(resources: &Resources, buffers: Buffers, stall: Duration, now: Instant) -> Self {
        Self {
            version: AtomicU64::new(0),
            current: Mutex::new(Current {
                resources: resources.clone(),
                node: pace(resources.bandwidth, now),
            }),
            stall,
            buffers,
            max_buffers: AtomicU64::new(resources.max_buffers),
            to_destination: AtomicU64::new(0),
            to_source: AtomicU64::new(0),
        }
    }

    /// Puts new limits in force. False if they are the same.
    pub fn publish(&self, resources: &Resources, now: Instant) -> bool {
        let mut current = self.lock();
        if current.resources == *resources {
            return false;
        }
        if current.resources.bandwidth != resources.bandwidth {
            current.node = pace(resources.bandwidth, now);
        }
        current.resources = resources.clone();
        self.max_buffers
            .store(resources.max_buffers, Ordering::Relaxed);
        self.version.fetch_add(1, Ordering::Release);
        true
    }

    pub fn limits(&self, now: Instant) -> Limits {
        let version = self.version.load(Ordering::Acquire);
        let resources = &self.lock().resources;
        Limits {
            version,
            max_data: match resources.max_data {
                relay::Limit::At(bytes) => bytes,
                relay::Limit::Unlimited => u64::MAX,
            },
            max_duration: match resources.max_duration {
                relay::Limit::At(duration) => Some(duration),
                relay::Limit::Unlimited => None,
            },
            buffer_size: usize::try_from(resources.buffer_size).unwrap_or(usize::MAX),
            own: pace(resources.bandwidth_per_circuit, now),
            shares: resources.bandwidth != relay::Limit::Unlimited,
        }
    }

    /// Brings a copy up to date.
    pub fn refresh(&self, limits: &mut Limits, now: Instant) {
        if self.version.load(Ordering::Acquire) != limits.version {
            *limits = self.limits(now);
        }
    }

    /// How long bytes may wait for a reader that takes none.
    pub fn stall(&self) -> Duration {
        self.stall
    }

    /// The part of one lane in what all circuits hold.
    pub fn share(&self) -> Share {
        self.buffers.share()
    }

    pub fn buffers_are_full(&self) -> bool {
        self.buffers.held() >= self.max_buffers.load(Ordering::Relaxed)
    }

    pub fn add_carried(&self, to_destination: u64, to_source: u64) {
        if to_destination > 0 {
            self.to_destination
                .fetch_add(to_destination, Ordering::Relaxed);
        }
        if to_source > 0 {
            self.to_source.fetch_add(to_source, Ordering::Relaxed);
        }
    }

    /// Bytes carried by all circuits since the start.
    pub fn carried(&self) -> relay::Bytes {
        relay::Bytes {
            to_destination: self.to_destination.load(Ordering::Relaxed),
            to_source: self.to_source.load(Ordering::Relaxed),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One circuit's copy of the limits.
#[derive(Debug)]
pub struct Limits {
    pub version: u64,
    /// Bytes in each direction; `u64::MAX` when unlimited.
    pub max_data: u64,
    pub max_duration: Option<Duration>,
    /// Bytes in each direction that may wait for a slow reader.
    pub buffer_size: usize,
    /// `bandwidth_per_circuit`.
    own: Option<Pace>,
    /// There is a `bandwidth` to share.
    shares: bool,
}

impl Limits {
    /// Books bandwidth for at most `want` bytes. `None` when there is no need to.
    pub fn book(&mut self, want: usize, now: Instant, terms: &Terms) -> Option<Booking> {
        if self.own.is_none() && !self.shares {
            return None;
        }
        let mut booking = Booking {
            bytes: want,
            at: now,
        };
        if let Some(own) = &mut self.own {
            booking = own.book(booking.bytes, now);
        }
        if self.shares
            && let Some(node) = &mut terms.lock().node
        {
            let shared = node.book(booking.bytes, now);
            if let Some(own) = &mut self.own {
                own.refund(booking.bytes.saturating_sub(shared.bytes));
            }
            booking = Booking {
                bytes: shared.bytes,
                at: booking.at.max(shared.at),
            };
        }
        Some(booking)
    }

    /// Gives back what was booked and not used.
    pub fn refund(&mut self, bytes: usize, terms: &Terms) {
        if bytes == 0 {
            return;
        }
        if let Some(own) = &mut self.own {
            own.refund(bytes);
        }
        if self.shares
            && let Some(node) = &mut terms.lock().node
        {
            node.refund(bytes);
        }
    }
}

fn pace(bandwidth: relay::Limit<u64>, now: Instant) -> Option<Pace> {
    match bandwidth {
        relay::Limit::At(bytes_per_second) => Some(Pace::new(bytes_per_second, now)),
        relay::Limit::Unlimited => None,
    }
}
