//! Log lines about what peers send, few enough to be read.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::id::PeerId;

/// Lines a minute about one peer, and about all together.
const OF_A_PEER: u32 = 10;
const IN_ALL: u32 = 60;

const MINUTE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub struct Complaints {
    since: Option<Instant>,
    lines: HashMap<PeerId, u32>,
    total: u32,
    /// Lines left out in the present minute.
    left_out: u64,
}

impl Complaints {
    /// Says it, unless enough has been said about this peer.
    pub fn about(&mut self, peer: PeerId, what: &str, now: Instant) {
        if self.may_say(peer, now) {
            tracing::warn!(%peer, cause = what, "not taken from a peer");
        }
    }

    fn may_say(&mut self, peer: PeerId, now: Instant) -> bool {
        if self
            .since
            .is_none_or(|since| now.saturating_duration_since(since) >= MINUTE)
        {
            if self.left_out > 0 {
                tracing::warn!(lines = self.left_out, "more was not taken from peers");
            }
            *self = Complaints {
                since: Some(now),
                ..Complaints::default()
            };
        }
        // One entry for each line that is written: the map is as bounded as the log.
        let lines = self.lines.get(&peer).copied().unwrap_or(0);
        if lines >= OF_A_PEER || self.total >= IN_ALL {
            self.left_out = self.left_out.saturating_add(1);
            return false;
        }
        self.lines.insert(peer, lines + 1);
        self.total += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_peer_is_ten_lines_a_minute_and_others_are_heard() {
        let (mut complaints, now) = (Complaints::default(), Instant::now());
        let (loud, other) = (PeerId::random(), PeerId::random());
        let said = (0..1000).filter(|_| complaints.may_say(loud, now)).count();
        assert_eq!(said, 10);
        assert!(complaints.may_say(other, now));
        assert!(complaints.may_say(loud, now + MINUTE));
    }

    #[test]
    fn a_thousand_peers_do_not_fill_the_log_either() {
        let (mut complaints, now) = (Complaints::default(), Instant::now());
        let said = (0..1000)
            .filter(|_| complaints.may_say(PeerId::random(), now))
            .count();
        assert_eq!(said, 60);
        assert_eq!(complaints.lines.len(), 60);
    }
}
