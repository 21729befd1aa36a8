//! Rates of requests: a token bucket that reads its rate at each call, so that a live change keeps what was used.

use std::time::{Duration, Instant};

use super::{Limit, Rate};

/// Requests of one peer: `count` may come at once, then one every `per / count`. Exact: integers only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// `None`: full.
    used: Option<Used>,
}

/// What is used up and comes back with time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Used {
    /// A token has as many units as `per` has nanoseconds: each nanosecond gives back `count` of them.
    units: u128,
    since: Instant,
    rate: Rate,
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

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // Tests start their own clock.
mod tests {
    use super::*;

    const fn rate(count: u32, per: Duration) -> Limit<Rate> {
        Limit::At(Rate { count, per })
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_bucket_gives_its_count_at_once_and_then_one_in_each_share() {
        let seven_a_minute = rate(7, 60 * SECOND);
        let (mut bucket, mut now) = (Bucket::default(), Instant::now());
        for _ in 0..7 {
            bucket.take(seven_a_minute, now).expect("a token");
        }
        let share = Duration::from_nanos(8_571_428_572);
        for _ in 0..3 {
            let wait = bucket.take(seven_a_minute, now).expect_err("empty");
            assert!(wait <= share && wait + Duration::from_nanos(3) >= share);
            now += wait;
            bucket.take(seven_a_minute, now).expect("after the wait");
        }
    }

    #[test]
    fn asking_while_empty_costs_nothing() {
        let one = rate(1, SECOND);
        let (mut bucket, now) = (Bucket::default(), Instant::now());
        bucket.take(one, now).expect("a token");
        for _ in 0..1000 {
            assert_eq!(bucket.take(one, now), Err(SECOND));
        }
        bucket.take(one, now + SECOND).expect("a token");
    }

    #[test]
    fn a_bucket_is_full_after_its_period() {
        let rate = rate(30, 120 * SECOND);
        let (mut bucket, now) = (Bucket::default(), Instant::now());
        for _ in 0..30 {
            bucket.take(rate, now).expect("a token");
        }
        assert!(!bucket.is_full(rate, now + 119 * SECOND));
        assert!(bucket.is_full(rate, now + 120 * SECOND));
    }

    #[test]
    fn a_changed_rate_keeps_what_was_used() {
        let (mut bucket, now) = (Bucket::default(), Instant::now());
        for _ in 0..10 {
            bucket.take(rate(10, 10 * SECOND), now).expect("a token");
        }
        assert!(bucket.take(rate(10, 100 * SECOND), now).is_err());
        bucket.take(rate(12, 10 * SECOND), now).expect("two more");
        bucket.take(rate(12, 10 * SECOND), now).expect("two more");
        assert!(bucket.take(rate(12, 10 * SECOND), now).is_err());
    }

    #[test]
    fn a_lowered_rate_locks_nobody_out_for_longer_than_its_period() {
        let (mut bucket, now) = (Bucket::default(), Instant::now());
        for _ in 0..1000 {
            bucket.take(rate(1000, SECOND), now).expect("a token");
        }
        let hourly = rate(1, 3600 * SECOND);
        assert_eq!(bucket.take(hourly, now), Err(3600 * SECOND));
        bucket.take(hourly, now + 3600 * SECOND).expect("a token");
    }

    #[test]
    fn extreme_rates_and_clocks_that_run_backwards_are_no_panic() {
        let now = Instant::now() + 10 * SECOND;
        for rate in [
            rate(0, Duration::ZERO),
            rate(u32::MAX, Duration::MAX),
            rate(u32::MAX, Duration::ZERO),
            rate(1, Duration::MAX),
        ] {
            let mut bucket = Bucket::default();
            let _ = bucket.take(rate, now);
            let _ = bucket.take(rate, now - 10 * SECOND);
            let _ = bucket.take(rate, now + SECOND);
        }
    }
}
