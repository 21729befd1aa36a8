//! Rates: a token bucket for requests and one for bytes. Both read the rate at each call, so that a live change keeps
//! what was used.

use std::time::{Duration, Instant};

use super::{Limit, Rate};

/// Requests of one peer: `count` may come at once, then one every `per / count`. Exact: integers only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// `None`: full.
    used: Option<Used<Rate>>,
}

/// What is used up and comes back with time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Used<R> {
    /// In such units that time gives back whole ones: a token is `per` in nanoseconds, a byte is a thousand million.
    units: u128,
    since: Instant,
    rate: R,
}

impl Bucket {
    /// Takes one token, or says how long it is until there is one.
    pub fn take(&mut self, rate: Limit<Rate>, now: Instant) -> Result<(), Duration> {
        let Limit::At(rate) = rate else {
            self.used = None;
            return Ok(());
        };
        let token = nanoseconds(rate.per);
        let count = u128::from(rate.count);
        let capacity = token.saturating_mul(count);
        let used = self.used(rate, now);
        let with_one_more = used.saturating_add(token);
        if with_one_more <= capacity {
            self.used = Some(Used {
                units: with_one_more,
                since: now,
                rate,
            });
            return Ok(());
        }
        let missing = with_one_more.saturating_sub(capacity);
        Err(duration(missing.div_ceil(count.max(1))))
    }

    /// A full bucket need not be kept: a new one is the same.
    pub fn is_full(&self, rate: Limit<Rate>, now: Instant) -> bool {
        match rate {
            Limit::Unlimited => true,
            Limit::At(rate) => self.used(rate, now) == 0,
        }
    }

    /// Units used, of this rate. Tokens used under another rate stay used, but no more than this one can hold: a peer
    /// that was busy under a generous rate waits one `per` at most.
    fn used(&self, rate: Rate, now: Instant) -> u128 {
        let Some(used) = self.used else {
            return 0;
        };
        let token = nanoseconds(rate.per);
        let count = u128::from(rate.count);
        let units = if used.rate == rate {
            used.units
        } else {
            used.units
                .saturating_mul(token)
                .div_ceil(nanoseconds(used.rate.per))
                .min(token.saturating_mul(count))
        };
        units.saturating_sub(elapsed(used.since, now).saturating_mul(count))
    }
}

/// Bytes per second of a circuit or of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shaper {
    used: Option<Used<u64>>,
}

/// What may pass at once: a twentieth of a second of the rate smooths nothing away that a player or a shell would
/// notice, and it is more than the timer's granularity of a millisecond.
const BURST_SHARE: u64 = 20;

/// And never less than one copy buffer, else a slow rate would split each.
const MIN_BURST: u64 = 64 * 1024;

/// Units of a byte: with a rate in bytes per second, a nanosecond gives back `rate` of them.
const BYTE: u128 = 1_000_000_000;

impl Shaper {
    /// Takes `bytes` (bytes per second: `rate`), or says until when to wait and ask again; then nothing is taken.
    /// More than a burst passes when nothing is used, and is paid for afterwards.
    pub fn take(&mut self, bytes: u64, rate: Limit<u64>, now: Instant) -> Result<(), Instant> {
        let Limit::At(rate) = rate else {
            self.used = None;
            return Ok(());
        };
        let burst = u128::from((rate / BURST_SHARE).max(MIN_BURST)).saturating_mul(BYTE);
        let used = self.used(rate, burst, now);
        let with_these = used.saturating_add(u128::from(bytes).saturating_mul(BYTE));
        if with_these <= burst || used == 0 {
            self.used = Some(Used {
                units: with_these,
                since: now,
                rate,
            });
            return Ok(());
        }
        let missing = with_these.saturating_sub(burst).min(used);
        let wait = duration(missing.div_ceil(u128::from(rate).max(1)));
        Err(now.checked_add(wait).unwrap_or(now))
    }

    fn used(&self, rate: u64, burst: u128, now: Instant) -> u128 {
        let Some(used) = self.used else {
            return 0;
        };
        let units = if used.rate == rate {
            used.units
        } else {
            used.units.min(burst)
        };
        units.saturating_sub(elapsed(used.since, now).saturating_mul(u128::from(rate)))
    }
}

/// At least one, so that it can divide.
fn nanoseconds(duration: Duration) -> u128 {
    duration.as_nanos().max(1)
}

fn elapsed(since: Instant, now: Instant) -> u128 {
    now.saturating_duration_since(since).as_nanos()
}

/// Saturates at 584 years.
fn duration(nanoseconds: u128) -> Duration {
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}
