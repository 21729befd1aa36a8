//! Rates of requests: a token bucket that reads its rate at each call, so that a live change keeps what was used.

use std::time::{Duration, Instant};

use super::{Limit, Rate};

/// Requests of one peer: `count` may come at once, then one every `per / count`. Never gives more; what it gives less,
/// by rounding, is below a nanosecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// `None`: full.
    used: Option<Used>,
}

/// Tokens that are used up and come back with time. They stay used when the rate changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Used {
    /// In parts of a token.
    parts: u64,
    since: Instant,
}

/// Parts of a token: with so many, the largest count still fits 64 bits.
const TOKEN: u64 = 1 << 32;

impl Bucket {
    /// Takes one token, or says how long it is until there is one.
    pub fn take(&mut self, rate: Limit<Rate>, now: Instant) -> Result<(), Duration> {
        let Limit::At(rate) = rate else {
            self.used = None;
            return Ok(());
        };
        let capacity = capacity(rate);
        let parts = self.used(rate, now).saturating_add(TOKEN);
        if parts <= capacity {
            self.used = Some(Used { parts, since: now });
            return Ok(());
        }
        let missing = u128::from(parts.saturating_sub(capacity));
        let wait = missing.saturating_mul(nanoseconds(rate.per));
        let wait = wait.div_ceil(u128::from(capacity.max(TOKEN)));
        Err(Duration::from_nanos(
            u64::try_from(wait).unwrap_or(u64::MAX),
        ))
    }

    /// A full bucket need not be kept: a new one is the same.
    pub fn is_full(&self, rate: Limit<Rate>, now: Instant) -> bool {
        match rate {
            Limit::Unlimited => true,
            Limit::At(rate) => self.used(rate, now) == 0,
        }
    }

    /// Parts that are used. No more than the rate can hold: a peer that was busy under a generous one waits one `per`
    /// at most.
    fn used(&self, rate: Rate, now: Instant) -> u64 {
        let Some(used) = self.used else {
            return 0;
        };
        let elapsed = now.saturating_duration_since(used.since).as_nanos();
        let back = elapsed.saturating_mul(u128::from(capacity(rate))) / nanoseconds(rate.per);
        let back = u64::try_from(back).unwrap_or(u64::MAX);
        used.parts.min(capacity(rate)).saturating_sub(back)
    }
}

/// Parts in a full bucket.
fn capacity(rate: Rate) -> u64 {
    u64::from(rate.count).saturating_mul(TOKEN)
}

/// At least one, so that it can divide.
fn nanoseconds(duration: Duration) -> u128 {
    duration.as_nanos().max(1)
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
        assert_eq!(
            bucket.used(
                Rate {
                    count: 12,
                    per: SECOND
                },
                now
            ),
            10 * TOKEN
        );
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
