//! How fast a peer may talk. What it says costs time; who owes too much is not listened to until it has paid.

use std::{
    hash::{Hash, Hasher},
    time::{Duration, Instant},
};

use super::handler::InnerEvent;

/// Bytes, messages, and bytes of subscriptions and control that are free in a second. Above a network of a thousand members
/// that all write at once; below what would keep a core busy: a signature takes 50 µs, an announced id a look into a map.
pub struct Pace {
    pub bytes: f64,
    pub messages: f64,
    pub control: f64,
    /// Seconds of the above that may come at once.
    pub burst: Duration,
}

/// Of one connection, whoever wrote what it brings. The burst holds three of the largest messages that EdgeVPN sends.
pub const CONNECTION: Pace = Pace {
    bytes: 8_388_608.0,
    messages: 4_000.0,
    control: 524_288.0,
    burst: Duration::from_secs(8),
};

/// Of one author, whoever brings it.
pub const AUTHOR: Pace = Pace {
    bytes: 4_194_304.0,
    messages: 2_000.0,
    control: 524_288.0,
    burst: Duration::from_secs(16),
};

/// What somebody has said and not yet paid for with time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Debt {
    owed: Duration,
    since: Option<Instant>,
}

impl Debt {
    pub fn add(&mut self, cost: Duration, now: Instant) {
        self.owed = self.owed(now).saturating_add(cost);
        self.since = Some(now);
    }

    pub fn owed(&self, now: Instant) -> Duration {
        let paid = self.since.map(|since| now.saturating_duration_since(since));
        self.owed.saturating_sub(paid.unwrap_or_default())
    }

    /// How long until what is owed is no more than the burst.
    pub fn over(&self, pace: &Pace, now: Instant) -> Option<Duration> {
        let over = self.owed(now).saturating_sub(pace.burst);
        (!over.is_zero()).then_some(over)
    }
}

impl Pace {
    pub fn cost(&self, weight: Weight) -> Duration {
        let seconds = weight.bytes as f64 / self.bytes
            + weight.messages as f64 / self.messages
            + weight.control as f64 / self.control;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    pub bytes: usize,
    pub messages: usize,
    /// Bytes beside the messages.
    pub control: usize,
}

impl Weight {
    pub fn of_message(bytes: usize) -> Self {
        Self {
            bytes,
            messages: 1,
            control: 0,
        }
    }

    /// Of one frame.
    pub fn of(event: &InnerEvent) -> Self {
        let InnerEvent::Message {
            rpc,
            invalid_messages,
        } = event
        else {
            return Self::default();
        };
        let invalid = invalid_messages.iter().map(|(message, _)| message);
        let all = rpc.messages.iter().chain(invalid);
        let bytes = all.clone().map(|message| message.data.len()).sum();
        Self {
            bytes,
            messages: all.count(),
            control: size_of_hashed(&rpc.subscriptions)
                .saturating_add(size_of_hashed(&rpc.control_msgs)),
        }
    }
}

/// The library shows how many control messages there are, not how many ids are in them; but what it can hash it can be
/// made to count.
fn size_of_hashed(value: &impl Hash) -> usize {
    struct Bytes(usize);

    impl Hasher for Bytes {
        fn write(&mut self, bytes: &[u8]) {
            self.0 = self.0.saturating_add(bytes.len());
        }

        fn finish(&self) -> u64 {
            0
        }
    }

    let mut bytes = Bytes(0);
    value.hash(&mut bytes);
    bytes.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_what_is_above_is_paid_with_time() {
        let now = Instant::now();
        let mut debt = Debt::default();
        let second = AUTHOR.cost(Weight {
            messages: 2_000,
            ..Weight::default()
        });
        assert_eq!(second, Duration::from_secs(1));
        debt.add(AUTHOR.burst, now);
        assert_eq!(debt.over(&AUTHOR, now), None);
        debt.add(second, now);
        assert_eq!(debt.over(&AUTHOR, now), Some(second));
        assert_eq!(debt.over(&AUTHOR, now + second), None);
    }

    #[test]
    fn ids_weigh_what_they_take() {
        let ids = vec![vec![0_u8; 46]; 1000];
        assert!(size_of_hashed(&ids) >= 46_000);
    }
}
