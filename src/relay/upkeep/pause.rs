//! How long a relay is left alone after a failure.

use std::time::Duration;

use super::{Failure, Source};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Doubles from a first pause to a longest; `spread` takes up to half of it off, so that nodes that lost the same relay
/// do not come back to it at the same moment.
pub fn after(
    failure: Failure,
    source: Source,
    joining: bool,
    failures: u32,
    spread: u64,
) -> Duration {
    let (first, longest) = bounds(failure, source, joining);
    let whole = first
        .saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX))
        .min(longest);
    let share = f64::from(u32::try_from(spread % 1024).unwrap_or(0)) / 1024.0;
    whole.mul_f64(1.0 - share / 2.0)
}

/// The first and the longest pause.
fn bounds(failure: Failure, source: Source, joining: bool) -> (Duration, Duration) {
    match (failure, source) {
        // The heartbeat that makes this node a member may reach the relay seconds after the request.
        (Failure::Denied, Source::Static | Source::Member) if joining => (5 * SECOND, 2 * HOUR),
        // Somebody has to edit the relay's file. An hour at least, whatever is taken off.
        (Failure::Denied, _) => (2 * HOUR, 2 * HOUR),
        (Failure::Unsupported, Source::Static) => (MINUTE, HOUR),
        // The operator wants these; one that comes back is found again within a minute.
        (_, Source::Static) => (2 * SECOND, MINUTE),
        (Failure::Refused | Failure::Unsupported, Source::Member) => (MINUTE, HOUR),
        (_, Source::Member) => (5 * SECOND, 10 * MINUTE),
        (Failure::Lost, Source::Found) => (MINUTE, HOUR),
        (_, Source::Found) => (2 * HOUR, 2 * HOUR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPREADS: [u64; 4] = [0, 1, 1023, u64::MAX];

    #[test]
    fn a_denied_stranger_is_left_alone_for_an_hour_at_least() {
        for source in [Source::Static, Source::Member, Source::Found] {
            for spread in SPREADS {
                assert!(after(Failure::Denied, source, false, 0, spread) >= HOUR);
            }
        }
        assert!(after(Failure::Denied, Source::Found, true, 0, 0) >= HOUR);
    }

    #[test]
    fn one_who_joins_asks_again_in_seconds_and_ends_at_an_hour() {
        let pause = |failures| after(Failure::Denied, Source::Static, true, failures, 0);
        assert_eq!(pause(0), 5 * SECOND);
        assert_eq!(pause(1), 10 * SECOND);
        assert!(after(Failure::Denied, Source::Static, true, 40, u64::MAX) >= HOUR);
    }

    #[test]
    fn a_static_relay_is_tried_again_within_a_minute_however_often_it_failed() {
        for failures in [0, 1, 5, 31, 32, u32::MAX] {
            for failure in [Failure::Unreachable, Failure::Lost, Failure::Refused] {
                let pause = after(failure, Source::Static, false, failures, 7);
                assert!(pause <= MINUTE && pause >= SECOND, "{pause:?}");
            }
        }
    }

    #[test]
    fn nodes_come_back_at_different_times() {
        let pause = |spread| after(Failure::Lost, Source::Static, false, 4, spread);
        assert_ne!(pause(1), pause(700));
    }
}
