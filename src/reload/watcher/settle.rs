//! When a change has settled: the pure part of the watcher.

use std::time::{Duration, Instant};

/// Turns notices into one moment to look. Quiet time counts from the last notice; while a writer holds a file open nothing is
/// quiet; and there is a longest wait, so that a file under constant change, or a writer that never closes, is looked at too.
#[derive(Debug, Default)]
pub struct Settle {
    /// First and last notice since the last look.
    unsettled: Option<(Instant, Instant)>,
    writing: bool,
}

/// The longest wait, in multiples of the quiet time: long enough for an editor that writes in several steps, and for a storm to
/// cause a few looks instead of thousands.
const LONGEST: u32 = 10;

impl Settle {
    /// Something may have changed; `writing`: and a writer still has a file open.
    pub fn notice(&mut self, writing: bool, now: Instant) {
        let first = self.unsettled.map_or(now, |(first, _)| first);
        self.unsettled = Some((first, now));
        self.writing = writing;
    }

    /// When to look, if there is anything to look for. `backstop` is how long a change may go unseen in any case.
    pub fn due(&self, quiet: Duration, backstop: Duration) -> Option<Instant> {
        let (first, last) = self.unsettled?;
        let longest = first + backstop.max(quiet.saturating_mul(LONGEST));
        if self.writing {
            Some(longest)
        } else {
            Some(longest.min(last + quiet))
        }
    }

    /// A look begins: what was noticed until now is dealt with by it.
    pub fn looked(&mut self) {
        *self = Settle::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Duration = Duration::from_millis(200);
    const BACKSTOP: Duration = Duration::from_secs(10);

    fn start() -> Instant {
        #[allow(clippy::disallowed_methods, reason = "any instant will do")]
        Instant::now()
    }

    #[test]
    fn nothing_is_due_without_a_notice() {
        assert_eq!(Settle::default().due(QUIET, BACKSTOP), None);
    }

    #[test]
    fn every_notice_starts_the_quiet_time_anew() {
        let (mut settle, start) = (Settle::default(), start());
        settle.notice(false, start);
        assert_eq!(settle.due(QUIET, BACKSTOP), Some(start + QUIET));
        let later = start + Duration::from_millis(150);
        settle.notice(false, later);
        assert_eq!(settle.due(QUIET, BACKSTOP), Some(later + QUIET));
    }

    #[test]
    fn an_open_writer_is_waited_for_but_not_for_ever() {
        let (mut settle, start) = (Settle::default(), start());
        settle.notice(true, start);
        assert_eq!(settle.due(QUIET, BACKSTOP), Some(start + BACKSTOP));
        let closed = start + Duration::from_secs(1);
        settle.notice(false, closed);
        assert_eq!(settle.due(QUIET, BACKSTOP), Some(closed + QUIET));
    }

    #[test]
    fn a_storm_is_looked_at_in_the_end() {
        let (mut settle, start) = (Settle::default(), start());
        for millisecond in 0..60_000 {
            settle.notice(false, start + Duration::from_millis(millisecond));
        }
        assert_eq!(settle.due(QUIET, BACKSTOP), Some(start + BACKSTOP));
    }

    #[test]
    fn a_look_settles_everything() {
        let mut settle = Settle::default();
        settle.notice(true, start());
        settle.looked();
        assert_eq!(settle.due(QUIET, BACKSTOP), None);
    }
}
