//! The calendar as the ledger reads it: steady where the system clock jumps.
//!
//! Heartbeats are judged by the calendar, so a clock that is set forward by an hour would end every membership at once. A
//! step is therefore held back: time goes on from where it was, for as long as members can be alive by it, and at most for
//! one time to live. Nobody becomes a member by that who was none, and after a step for good the others' next heartbeats
//! are judged by the new time.

use std::time::{Duration, Instant};

use crate::id::UnixTime;

/// Differences up to this are drift and are followed at once: the tolerance that heartbeats of others have.
const DRIFT: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct Clock {
    /// What the calendar said at some moment of the clock that nobody sets.
    anchor: (UnixTime, Instant),
    /// When the present step was seen first.
    stepped: Option<Instant>,
    steps: u64,
}

impl Clock {
    pub fn new(system: UnixTime, now: Instant) -> Self {
        Self {
            anchor: (system, now),
            stepped: None,
            steps: 0,
        }
    }

    /// The time to judge by. `patience` bounds how long a step is held back.
    pub fn read(&mut self, system: UnixTime, now: Instant, patience: Duration) -> UnixTime {
        let (anchor, then) = self.anchor;
        let steady = anchor.saturating_add(now.saturating_duration_since(then));
        if apart(steady, system) <= DRIFT {
            self.stepped = None;
            self.anchor = (system, now);
            return system;
        }
        let since = *self.stepped.get_or_insert_with(|| {
            self.steps = self.steps.saturating_add(1);
            now
        });
        if now.saturating_duration_since(since) < patience {
            return steady;
        }
        self.follow(system, now);
        system
    }

    /// Gives in to a step: there is nobody whom holding it back protects.
    pub fn follow(&mut self, system: UnixTime, now: Instant) {
        self.anchor = (system, now);
        self.stepped = None;
    }

    /// Whether a step is held back at this moment.
    pub fn holds(&self) -> bool {
        self.stepped.is_some()
    }

    /// Steps of more than 30 s since the start.
    pub fn steps(&self) -> u64 {
        self.steps
    }
}

fn apart(one: UnixTime, other: UnixTime) -> Duration {
    one.since(other).max(other.since(one))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(480);
    const HOUR: Duration = Duration::from_secs(3600);

    /// A clock that starts at noon of some day, and a way to read it later with the system clock set wrong.
    struct Bench {
        clock: Clock,
        noon: UnixTime,
        began: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let (noon, began) = (UnixTime::from_secs(1_800_000_000), Instant::now());
            Self {
                clock: Clock::new(noon, began),
                noon,
                began,
            }
        }

        /// Seconds past noon that the clock shows `after` seconds of real time.
        fn reads(&mut self, after: u64, ahead: Duration, behind: Duration) -> i64 {
            let after = Duration::from_secs(after);
            let system = self.noon.saturating_add(after + ahead);
            let system = system.saturating_sub(behind);
            let read = self.clock.read(system, self.began + after, TTL);
            read.as_secs().cast_signed() - self.noon.as_secs().cast_signed()
        }
    }

    #[test]
    fn drift_is_followed() {
        let mut bench = Bench::new();
        assert_eq!(bench.reads(10, Duration::from_secs(20), Duration::ZERO), 30);
        assert_eq!(bench.reads(20, Duration::from_secs(45), Duration::ZERO), 65);
        assert!(!bench.clock.holds());
    }

    #[test]
    fn steps_to_and_fro_move_nothing() {
        let mut bench = Bench::new();
        for step in 1..=10 {
            let (ahead, behind) = match step % 2 {
                0 => (HOUR, Duration::ZERO),
                _ => (Duration::ZERO, HOUR),
            };
            assert_eq!(
                bench.reads(step * 10, ahead, behind),
                10 * step.cast_signed()
            );
            assert!(bench.clock.holds());
        }
        assert_eq!(bench.reads(200, Duration::ZERO, Duration::ZERO), 200);
        assert!(!bench.clock.holds());
        assert_eq!(bench.clock.steps(), 1);
    }

    #[test]
    fn a_step_for_good_is_followed_after_one_time_to_live() {
        let mut bench = Bench::new();
        assert_eq!(bench.reads(10, HOUR, Duration::ZERO), 10);
        assert_eq!(bench.reads(489, HOUR, Duration::ZERO), 489);
        assert_eq!(bench.reads(490, HOUR, Duration::ZERO), 4090);
        assert_eq!(bench.reads(491, HOUR, Duration::ZERO), 4091);
        assert!(!bench.clock.holds());
    }

    #[test]
    fn a_machine_that_learns_the_date_after_its_start_follows_it_when_nobody_loses_by_it() {
        let mut bench = Bench::new();
        let year = HOUR * 24 * 365;
        assert_eq!(bench.reads(5, year, Duration::ZERO), 5);
        let now = bench.began + Duration::from_secs(5);
        let system = bench.noon.saturating_add(year);
        bench.clock.follow(system, now);
        assert_eq!(
            bench.reads(6, year, Duration::ZERO),
            6 + year.as_secs().cast_signed()
        );
    }
}
