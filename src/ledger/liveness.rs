//! Who is a member at this moment, kept up to date with every heartbeat that comes, lapses or is withdrawn.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use super::record::{Beat, Id, Record};
use crate::id::{PeerId, UnixTime, parse_peer_id};

/// How far a peer's clock may be ahead of ours; config.md, "Access decision".
pub const CLOCK_SKEW: Duration = Duration::from_secs(30);

/// The heartbeats with a valid signature, sorted by when their standing changes next.
#[derive(Debug, Default)]
pub(super) struct Roster {
    /// By the moment from which they count no more.
    counting: BTreeMap<(UnixTime, Id), Arc<Record>>,
    /// Dated too far ahead, by the moment from which they count.
    ahead: BTreeMap<(UnixTime, Id), Arc<Record>>,
    /// Peers that deleted their own heartbeat.
    withdrawn: HashMap<Id, PeerId>,
    revision: u64,
}

impl Roster {
    /// Grows whenever somebody becomes a member or ceases to be one, not when a heartbeat merely renews.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// A heartbeat took the place of another.
    pub fn replace(
        &mut self,
        old: Option<&Arc<Record>>,
        new: Option<&Arc<Record>>,
        ttl: Duration,
        now: UnixTime,
    ) {
        let mut counted = false;
        if let Some(old) = old {
            if let Some(beat) = old.beat() {
                counted = self
                    .counting
                    .remove(&(beat.until(ttl), old.id()))
                    .is_some_and(|_| beat.counts(ttl, now));
                self.ahead.remove(&(beat.from(), old.id()));
            }
            if self.withdrawn.remove(&old.id()).is_some() {
                self.changed();
            }
        }
        let mut counts = false;
        // What somebody else wrote in the peer's place says nothing about the peer; a tombstone of that kind buries a
        // heartbeat that had lapsed: its peer is silent, it has not left.
        if let Some(new) = new
            && new.entry().owner == new.key()
            && new.is_signed()
        {
            if let Some(beat) = new.beat() {
                counts = self.add(new, beat, ttl, now);
            } else if new.entry().deleted
                && let Ok(peer) = parse_peer_id(new.key())
            {
                self.withdrawn.insert(new.id(), peer);
                self.changed();
            }
        }
        if counted != counts {
            self.changed();
        }
    }

    fn add(&mut self, record: &Arc<Record>, beat: &Beat, ttl: Duration, now: UnixTime) -> bool {
        if now < beat.from() {
            self.ahead
                .insert((beat.from(), record.id()), record.clone());
        } else if now < beat.until(ttl) {
            self.counting
                .insert((beat.until(ttl), record.id()), record.clone());
            return true;
        }
        false
    }

    /// Begins and ends what the time begins and ends.
    pub fn advance(&mut self, ttl: Duration, now: UnixTime) {
        while let Some(first) = self.counting.first_entry()
            && first.key().0 <= now
        {
            first.remove();
            self.changed();
        }
        while let Some(first) = self.ahead.first_entry()
            && first.key().0 <= now
        {
            let record = first.remove();
            if let Some(beat) = record.beat()
                && self.add(&record, beat, ttl, now)
            {
                self.changed();
            }
        }
    }

    /// Starts again from all heartbeats: the clock was set back, or they count for another time.
    pub fn rebuild<'a>(
        &mut self,
        heartbeats: impl Iterator<Item = &'a Arc<Record>>,
        ttl: Duration,
        now: UnixTime,
    ) {
        let revision = self.revision;
        *self = Roster::default();
        for record in heartbeats {
            self.replace(None, Some(record), ttl, now);
        }
        self.revision = revision.wrapping_add(1);
    }

    pub fn next_deadline(&self) -> Option<UnixTime> {
        let lapse = self.counting.first_key_value().map(|((at, _), _)| *at);
        let begin = self.ahead.first_key_value().map(|((at, _), _)| *at);
        [lapse, begin].into_iter().flatten().min()
    }

    /// Members with the time of their heartbeat, and peers that withdrew; without `local`.
    pub fn members(
        &self,
        local: &PeerId,
        ttl: Duration,
        now: UnixTime,
    ) -> (HashMap<PeerId, UnixTime>, HashSet<PeerId>) {
        let members = self
            .counting
            .values()
            .filter_map(|record| record.beat())
            .filter(|beat| beat.peer != *local && beat.counts(ttl, now))
            .map(|beat| (beat.peer, beat.said))
            .collect();
        let withdrawn = self
            .withdrawn
            .values()
            .filter(|peer| *peer != local)
            .copied()
            .collect();
        (members, withdrawn)
    }

    fn changed(&mut self) {
        self.revision = self.revision.wrapping_add(1);
    }
}

impl Beat {
    /// From when on it counts.
    fn from(&self) -> UnixTime {
        self.later.saturating_sub(CLOCK_SKEW)
    }

    /// From when on it counts no more.
    fn until(&self, ttl: Duration) -> UnixTime {
        self.earlier.saturating_add(ttl)
    }

    pub(super) fn counts(&self, ttl: Duration, now: UnixTime) -> bool {
        self.from() <= now && now < self.until(ttl)
    }

    /// Why it does not count; `None` when it does.
    pub(super) fn fault(&self, ttl: Duration, now: UnixTime) -> Option<NotMember> {
        if now < self.from() {
            Some(NotMember::Future {
                by: self.later.since(now),
            })
        } else if self.counts(ttl, now) {
            None
        } else {
            Some(NotMember::Stale {
                age: now.since(self.earlier),
            })
        }
    }
}

/// Why a peer is not a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotMember {
    /// This node itself: its own heartbeat says nothing about others.
    Itself,
    /// Nobody has sent a heartbeat of it.
    Unknown,
    /// It deleted its heartbeat: it left.
    Withdrawn,
    /// Somebody deleted its heartbeat after it had lapsed.
    Buried,
    /// The last heartbeat is older than `ledger.ownership_ttl`.
    Stale { age: Duration },
    /// The heartbeat is dated ahead of our clock by more than is tolerated.
    Future { by: Duration },
    /// The heartbeat has no signature, as in networks with ownership off.
    Unsigned,
    /// The signature of the heartbeat is not the peer's.
    BadSignature,
    /// The heartbeat holds no time.
    Unreadable,
    /// The ledger takes no more entries of this peer, or none at all.
    NoRoom,
}

impl fmt::Display for NotMember {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotMember::Itself => f.write_str("this is the node itself"),
            NotMember::Unknown => f.write_str("no heartbeat of it has been seen"),
            NotMember::Withdrawn => f.write_str("it withdrew its heartbeat"),
            NotMember::Buried => f.write_str("its heartbeat lapsed and was removed"),
            NotMember::Stale { age } => {
                write!(f, "its last heartbeat is {} s old", age.as_secs())
            }
            NotMember::Future { by } => write!(
                f,
                "its heartbeat is dated {} s ahead; compare the clocks",
                by.as_secs()
            ),
            NotMember::Unsigned => f.write_str("its heartbeat is not signed"),
            NotMember::BadSignature => f.write_str("its heartbeat is signed by somebody else"),
            NotMember::Unreadable => f.write_str("its heartbeat holds no time"),
            NotMember::NoRoom => f.write_str("the ledger has no room for its heartbeat"),
        }
    }
}
