//! Bandwidth as bookings: whoever asks gets a place in time, so that circuits that share a rate are served in turn.

use std::time::{Duration, Instant};

/// Unused bandwidth is kept for so long and may then be used at once. A tenth of a second evens out how a stream's bytes
/// arrive and stays far below what a meter on the line would show.
const WINDOW: Duration = Duration::from_millis(100);

/// A flow of so many bytes per second.
#[derive(Clone, Debug)]
pub struct Pace {
    /// At least one.
    bytes_per_second: u64,
    /// Everything booked so far is through by then.
    booked_until: Instant,
}

/// So many bytes, from `at` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Booking {
    pub bytes: usize,
    pub at: Instant,
}

impl Pace {
    pub fn new(bytes_per_second: u64, now: Instant) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            booked_until: now,
        }
    }

    /// Books at most `want` bytes; fewer where so many would keep the others waiting for longer than a moment.
    pub fn book(&mut self, want: usize, now: Instant) -> Booking {
        let moment = usize::try_from(self.bytes_per_second / 50).unwrap_or(usize::MAX);
        let bytes = want.min(moment.max(1));
        let oldest = now.checked_sub(WINDOW).unwrap_or(now);
        let at = self.booked_until.max(oldest);
        self.booked_until = at.checked_add(self.time(bytes)).unwrap_or(at);
        Booking { bytes, at }
    }

    /// Gives back what was booked and not used.
    pub fn refund(&mut self, bytes: usize) {
        let earlier = self.booked_until.checked_sub(self.time(bytes));
        self.booked_until = earlier.unwrap_or(self.booked_until);
    }

    fn time(&self, bytes: usize) -> Duration {
        let nanoseconds = bytes as u128 * 1_000_000_000 / u128::from(self.bytes_per_second);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "a start for the clock of the tests"
)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Bytes that one greedy circuit moves in `time`.
    fn moved(pace: &mut Pace, mut now: Instant, time: Duration) -> usize {
        let end = now + time;
        let mut moved = 0;
        loop {
            let booking = pace.book(64 * 1024, now);
            now = now.max(booking.at);
            if now >= end {
                return moved;
            }
            moved += booking.bytes;
        }
    }

    #[test]
    fn a_greedy_circuit_gets_the_rate_and_no_more() {
        let start = Instant::now();
        for rate in [1, 999, 10_000, 1_000_000, 125_000_000] {
            let moved = moved(&mut Pace::new(rate, start), start, 10 * SECOND) as u64;
            let (least, most) = (rate * 10, rate * 10 + rate / 4 + 1);
            assert!((least..=most).contains(&moved), "{moved} at {rate}/s");
        }
    }

    #[test]
    fn what_is_not_used_lasts_for_a_moment_only() {
        let start = Instant::now();
        let mut pace = Pace::new(1_000, start);
        let later = start + 60 * SECOND;
        assert!((1_000..=1_200).contains(&moved(&mut pace, later, SECOND)));
    }

    #[test]
    fn circuits_that_share_a_pace_are_served_in_turn() {
        let start = Instant::now();
        let mut pace = Pace::new(100_000, start);
        let first: Vec<_> = (0..10).map(|_| pace.book(65_536, start).at).collect();
        assert!(first.is_sorted());
        let second = pace.book(65_536, start).at;
        assert!(second > first[9]);
    }

    #[test]
    fn a_refund_makes_room_again() {
        let start = Instant::now();
        let mut pace = Pace::new(1_000, start);
        let booking = pace.book(20, start);
        pace.refund(booking.bytes);
        assert_eq!(pace.book(20, start), booking);
    }
}
