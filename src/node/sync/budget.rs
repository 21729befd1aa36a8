//! How much work one author may make: opening a message and checking what is in it costs time, and nobody gets all of it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::id::PeerId;

/// What an author may cost at once. A full ledger of 70,000 entries that is new to us takes about four seconds, in pieces
/// of 0.2 s; one that holds little news takes milliseconds.
const BURST: Duration = Duration::from_secs(5);

/// And in the long run: this part of one core.
const SHARE: f64 = 0.2;

/// Authors that are remembered. Those who have cost nothing lately are forgotten first.
const AUTHORS: usize = 4096;

#[derive(Debug, Default)]
pub struct Budget {
    spent: HashMap<PeerId, Spent>,
}

#[derive(Clone, Copy, Debug)]
struct Spent {
    time: Duration,
    at: Instant,
}

impl Spent {
    /// What is left of it by now.
    fn by(self, now: Instant) -> Duration {
        let paid = now.saturating_duration_since(self.at).mul_f64(SHARE);
        self.time.saturating_sub(paid)
    }
}

impl Budget {
    /// Whether a message of this author is looked at.
    pub fn covers(&self, author: &PeerId, now: Instant) -> bool {
        match self.spent.get(author) {
            Some(spent) => spent.by(now) < BURST,
            None => true,
        }
    }

    pub fn spend(&mut self, author: PeerId, time: Duration, now: Instant) {
        if self.spent.len() >= AUTHORS && !self.spent.contains_key(&author) {
            self.spent.retain(|_, spent| !spent.by(now).is_zero());
            if self.spent.len() >= AUTHORS {
                return;
            }
        }
        let spent = self.spent.entry(author).or_insert(Spent {
            time: Duration::ZERO,
            at: now,
        });
        *spent = Spent {
            time: spent.by(now).saturating_add(time),
            at: now,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_costs_too_much_waits_and_nobody_else_does() {
        let (mut budget, now) = (Budget::default(), Instant::now());
        let (greedy, other) = (PeerId::random(), PeerId::random());
        for _ in 0..25 {
            assert!(budget.covers(&greedy, now));
            budget.spend(greedy, Duration::from_millis(200), now);
        }
        assert!(!budget.covers(&greedy, now));
        assert!(budget.covers(&other, now));
        assert!(budget.covers(&greedy, now + Duration::from_millis(1)));
        budget.spend(greedy, Duration::from_millis(200), now);
        assert!(!budget.covers(&greedy, now + Duration::from_millis(900)));
        assert!(budget.covers(&greedy, now + Duration::from_secs(2)));
    }

    #[test]
    fn a_crowd_of_authors_takes_no_more_memory_than_is_meant() {
        let (mut budget, now) = (Budget::default(), Instant::now());
        for _ in 0..2 * AUTHORS {
            budget.spend(PeerId::random(), Duration::from_millis(1), now);
        }
        assert_eq!(budget.spent.len(), AUTHORS);
        let later = now + Duration::from_secs(1);
        budget.spend(PeerId::random(), Duration::from_millis(1), later);
        assert_eq!(budget.spent.len(), 1);
    }
}
