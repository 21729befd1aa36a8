//! When the ledger task has something to do that nobody asks for.

use std::time::{Duration, Instant};

use rand::Rng as _;

/// The next moments, by the clock that nobody sets.
#[derive(Debug)]
pub struct Schedule {
    due: [Option<Instant>; Due::ALL.len()],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// The own heartbeat is written.
    Heartbeat,
    /// Own entries are looked after.
    Announce,
    /// EdgeVPN's nodes are sent the whole ledger.
    Broadcast,
    /// The exchange has something to say.
    Exchange,
    /// Heartbeats lapse, the dead are forgotten.
    Maintain,
    /// Changes of membership are published.
    Publish,
    /// The ledger is written to disk.
    Keep,
}

impl Due {
    const ALL: [Due; 7] = [
        Due::Heartbeat,
        Due::Announce,
        Due::Broadcast,
        Due::Exchange,
        Due::Maintain,
        Due::Publish,
        Due::Keep,
    ];
}

impl Schedule {
    pub fn new() -> Self {
        Self {
            due: Default::default(),
        }
    }

    pub fn set(&mut self, what: Due, at: Option<Instant>) {
        if let Some(due) = self.due.get_mut(what as usize) {
            *due = at;
        }
    }

    /// Not later than `at`.
    pub fn advance(&mut self, what: Due, at: Instant) {
        if let Some(due) = self.due.get_mut(what as usize) {
            *due = Some(due.map_or(at, |before| before.min(at)));
        }
    }

    pub fn next(&self) -> Option<Instant> {
        self.due.iter().flatten().min().copied()
    }

    /// Takes one thing that is due.
    pub fn take(&mut self, now: Instant) -> Option<Due> {
        let (what, due) = Due::ALL
            .into_iter()
            .zip(&mut self.due)
            .find(|(_, due)| due.is_some_and(|at| at <= now))?;
        *due = None;
        Some(what)
    }
}

/// A little less than `span`, so that nodes started together do not speak together, and a promise of "every" is kept.
pub fn a_little_early(span: Duration) -> Duration {
    span.mul_f64(rand::rng().random_range(0.8..1.0))
}

/// As EdgeVPN spreads its ticks (design notes, wire.md 6.8).
pub fn spread(span: Duration) -> Duration {
    span.mul_f64(rand::rng().random_range(0.5..1.5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_is_taken_once() {
        let now = Instant::now();
        let mut schedule = Schedule::new();
        assert_eq!(schedule.next(), None);
        schedule.set(Due::Keep, Some(now + Duration::from_secs(2)));
        schedule.advance(Due::Keep, now + Duration::from_secs(3));
        schedule.advance(Due::Announce, now);
        assert_eq!(schedule.next(), Some(now));
        assert_eq!(schedule.take(now), Some(Due::Announce));
        assert_eq!(schedule.take(now), None);
        assert_eq!(schedule.take(now + Duration::from_secs(2)), Some(Due::Keep));
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn spans_are_spread_within_their_bounds() {
        let span = Duration::from_secs(10);
        for _ in 0..100 {
            assert!((8..=10).contains(&a_little_early(span).as_secs()));
            assert!((5..15).contains(&spread(span).as_secs()));
        }
    }
}
