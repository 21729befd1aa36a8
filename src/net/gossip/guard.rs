//! What does not get to the ledger: repetitions, and authors who say too much.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::{BuildHasher, RandomState},
    time::Instant,
};

use libp2p::{
    PeerId,
    gossipsub::{MessageId, TopicHash},
};

use super::pace::{AUTHOR, Debt, Weight};

/// Messages remembered in one room. The library remembers for two minutes, a room lasts three windows: hours, with some
/// tokens. Fifty EdgeVPN nodes say 5,400 things in the three windows of six minutes. When it is full, the oldest are
/// forgotten; what then comes twice is merged twice, without effect.
const SEEN: usize = 65_536;

/// Authors whose pace is watched at once. Those who have been quiet for a while do not count.
const AUTHORS: usize = 16_384;

#[derive(Default)]
pub struct Guard {
    rooms: HashMap<TopicHash, Seen>,
    authors: HashMap<PeerId, Debt>,
    hashes: RandomState,
}

/// By hash: two of 65,536 messages meet once in ten thousand million rooms.
#[derive(Default)]
struct Seen {
    hashes: HashSet<u64>,
    order: VecDeque<u64>,
}

/// Why a message was not heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// It names no author, or is in no room of ours.
    OutOfPlace,
    Repeated,
    AuthorTooFast,
    TooManyAuthors,
    /// Its signature, its number or its size is wrong.
    Invalid,
}

impl Refusal {
    /// For metrics.
    pub fn label(self) -> &'static str {
        match self {
            Refusal::OutOfPlace => "out_of_place",
            Refusal::Repeated => "repeated",
            Refusal::AuthorTooFast => "author_too_fast",
            Refusal::TooManyAuthors => "too_many_authors",
            Refusal::Invalid => "invalid",
        }
    }
}

impl Guard {
    pub fn admit(
        &mut self,
        topic: &TopicHash,
        id: &MessageId,
        author: PeerId,
        bytes: usize,
        now: Instant,
    ) -> Result<(), Refusal> {
        if self.authors.len() >= AUTHORS && !self.authors.contains_key(&author) {
            self.authors.retain(|_, debt| !debt.owed(now).is_zero());
            if self.authors.len() >= AUTHORS {
                return Err(Refusal::TooManyAuthors);
            }
        }
        let debt = self.authors.entry(author).or_default();
        if debt.over(&AUTHOR, now).is_some() {
            return Err(Refusal::AuthorTooFast);
        }
        let hash = self.hashes.hash_one(&id.0);
        let seen = self.rooms.entry(topic.clone()).or_default();
        if !seen.insert(hash) {
            return Err(Refusal::Repeated);
        }
        debt.add(AUTHOR.cost(Weight::of_message(bytes)), now);
        Ok(())
    }

    /// Forgets what was said in rooms that we have left.
    pub fn leave(&mut self, topics: &[TopicHash]) {
        for topic in topics {
            self.rooms.remove(topic);
        }
    }
}

impl Seen {
    fn insert(&mut self, hash: u64) -> bool {
        if !self.hashes.insert(hash) {
            return false;
        }
        self.order.push_back(hash);
        if self.order.len() > SEEN
            && let Some(oldest) = self.order.pop_front()
        {
            self.hashes.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn id(number: u64) -> MessageId {
        MessageId(number.to_be_bytes().to_vec())
    }

    #[test]
    fn a_message_is_heard_once_as_long_as_its_room_is_open() {
        let mut guard = Guard::default();
        let (room, author, now) = (
            TopicHash::from_raw("room"),
            PeerId::random(),
            Instant::now(),
        );
        let hours = Duration::from_secs(7 * 3600);
        assert_eq!(guard.admit(&room, &id(1), author, 10, now), Ok(()));
        let again = guard.admit(&room, &id(1), author, 10, now + hours);
        assert_eq!(again, Err(Refusal::Repeated));
        guard.leave(std::slice::from_ref(&room));
        assert!(guard.rooms.is_empty());
    }

    #[test]
    fn one_author_too_fast_costs_no_other_a_word() {
        let mut guard = Guard::default();
        let (room, fast, now) = (
            TopicHash::from_raw("room"),
            PeerId::random(),
            Instant::now(),
        );
        let said = (0..100_000)
            .take_while(|number| guard.admit(&room, &id(*number), fast, 0, now).is_ok());
        let said = said.count();
        assert!(
            said.abs_diff(32_000) <= 1,
            "{said} in a burst of sixteen seconds"
        );
        let other = guard.admit(&room, &id(200_000), PeerId::random(), 10, now);
        assert_eq!(other, Ok(()));
        let later = now + Duration::from_secs(2);
        assert_eq!(guard.admit(&room, &id(300_000), fast, 10, later), Ok(()));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut seen = Seen::default();
        for hash in 0..200_000 {
            seen.insert(hash);
        }
        assert_eq!((seen.hashes.len(), seen.order.len()), (SEEN, SEEN));
    }

    #[test]
    fn authors_are_bounded_and_the_quiet_make_room() {
        let mut guard = Guard::default();
        let (room, now) = (TopicHash::from_raw("room"), Instant::now());
        for number in 0..AUTHORS as u64 {
            assert_eq!(
                guard.admit(&room, &id(number), PeerId::random(), 10, now),
                Ok(())
            );
        }
        let one_more = guard.admit(&room, &id(1 << 40), PeerId::random(), 10, now);
        assert_eq!(one_more, Err(Refusal::TooManyAuthors));
        let later = now + Duration::from_secs(1);
        assert_eq!(
            guard.admit(&room, &id(1 << 41), PeerId::random(), 10, later),
            Ok(())
        );
    }
}
