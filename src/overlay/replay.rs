//! Which counters of a peer's datagrams have been seen: each is accepted once, and none that is too old.

/// How far a datagram may come late. WireGuard takes 8,192; a train of 64 segments on several paths needs a few hundred.
pub const WINDOW: u64 = 8_192;

const WORDS: usize = (WINDOW / 64) as usize + 1;

/// A sliding bitmap over the last [`WINDOW`] counters (RFC 6479).
#[derive(Clone, Debug)]
pub struct Replay {
    /// The highest counter seen, plus one; 0 before the first.
    next: u64,
    seen: Box<[u64; WORDS]>,
}

impl Default for Replay {
    fn default() -> Self {
        Self {
            next: 0,
            seen: Box::new([0; WORDS]),
        }
    }
}

impl Replay {
    /// Whether this counter is new and not too old. To be asked after the datagram has proved authentic: it is remembered.
    pub fn accept(&mut self, counter: u64) -> bool {
        if counter == u64::MAX {
            return false;
        }
        if counter >= self.next {
            self.slide(counter);
        } else if self.next - counter > WINDOW {
            return false;
        }
        let word = &mut self.seen[word_of(counter)];
        let bit = 1 << (counter % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Makes room up to `counter`: words that come into the window again are cleared.
    fn slide(&mut self, counter: u64) {
        let last = match self.next.checked_sub(1) {
            Some(last) => last / 64,
            None => 0,
        };
        let ahead = (counter / 64).saturating_sub(last).min(WORDS as u64);
        for step in 1..=ahead {
            self.seen[word_of((last + step) * 64)] = 0;
        }
        self.next = counter + 1;
    }
}

fn word_of(counter: u64) -> usize {
    (counter / 64 % WORDS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_counter_is_accepted_once() {
        let mut replay = Replay::default();
        for counter in [0, 1, 5, 3, 8_000, 4, 100_000, 100_000 - WINDOW + 1] {
            assert!(replay.accept(counter), "{counter} is new");
            assert!(!replay.accept(counter), "{counter} has been seen");
        }
        assert!(!replay.accept(100_000 - WINDOW), "too old");
        assert!(!replay.accept(u64::MAX), "the counter is exhausted");
    }

    proptest::proptest! {
        #[test]
        fn it_equals_a_set_of_all_seen(steps in proptest::collection::vec((0_u64..20_000, proptest::bool::ANY), 1..400)) {
            let mut replay = Replay::default();
            let mut seen = HashSet::new();
            let (mut base, mut highest) = (0_u64, None::<u64>);
            for (step, jump) in steps {
                let counter = base + step;
                let new = seen.insert(counter);
                let recent = highest.is_none_or(|highest| counter + WINDOW > highest);
                proptest::prop_assert_eq!(replay.accept(counter), new && recent, "counter {}", counter);
                highest = highest.max(Some(counter));
                if jump {
                    base += 7_000;
                }
            }
        }
    }
}
