//! When to announce this node in the DHT, when to look for others, and under which keys. Two clocks in, tasks out.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    id::UnixTime,
    wire::{Token, Window},
};

/// While nobody is found, the pause between two looks begins with this and doubles up to `dht_interval`: nodes that start
/// together announce themselves while the first look of the other is under way.
const FIRST_PAUSE: Duration = Duration::from_millis(600);

/// However often there is a reason, announcements come no faster: each costs requests to twenty servers.
const ANNOUNCE_PACE: Duration = Duration::from_secs(2);

/// At a change of keys all nodes would act in the same second. They spread over this part of it.
const WIDEST_SPREAD: Duration = Duration::from_secs(5);
const SPREAD_PART: u32 = 20;

/// The calendar may be set while we sleep; it is looked at this often.
const CALENDAR_PACE: Duration = Duration::from_secs(30);

/// A key of provider records: the multihash of a rendezvous.
pub type Key = [u8; 34];

pub struct Schedule {
    tokens: Vec<Arc<Token>>,
    interval: Duration,
    /// Between 0 and 1: which part of the spread is ours.
    share: f64,
    announced: BTreeSet<Key>,
    last_announce: Option<Instant>,
    announce_due: Instant,
    look_due: Instant,
    pause: Duration,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Task {
    /// Announce under these keys, and under no others any more.
    Announce(BTreeSet<Key>),
    Look(BTreeSet<Key>),
}

impl Schedule {
    pub fn new(tokens: Vec<Arc<Token>>, interval: Duration, share: f64, now: Instant) -> Self {
        Self {
            tokens,
            interval,
            share,
            announced: BTreeSet::new(),
            last_announce: None,
            announce_due: now,
            look_due: now,
            pause: FIRST_PAUSE,
        }
    }

    /// What is due. The keys of the last window are announced too, for those whose clock is behind ours; the next one's are
    /// looked up too, for those whose clock is ahead.
    pub fn poll(&mut self, now: Instant, calendar: UnixTime) -> Option<Task> {
        let keys = self.announced_keys(calendar);
        if !self.announced.is_empty() && keys != self.announced {
            let at = now + self.spread();
            self.announced.clear();
            self.announce_due = self.announce_due.min(at);
            self.look_due = self.look_due.min(at);
        }
        if self.announce_due <= now && !keys.is_empty() {
            self.announce_due = now + self.interval;
            self.last_announce = Some(now);
            self.announced.clone_from(&keys);
            return Some(Task::Announce(keys));
        }
        if self.look_due <= now && !keys.is_empty() {
            self.look_due = now + self.pause;
            self.pause = self.pause.saturating_mul(2).min(self.interval);
            return Some(Task::Look(keys_of(&self.tokens, calendar)));
        }
        None
    }

    /// There is a new server, or this node has other addresses.
    pub fn announce_soon(&mut self, now: Instant) {
        let paced = self.last_announce.map_or(now, |last| last + ANNOUNCE_PACE);
        self.announce_due = self.announce_due.min(paced.max(now));
    }

    /// Nobody is connected who was found, or there is somebody new to ask.
    pub fn look_soon(&mut self, now: Instant) {
        self.look_due = self.look_due.min(now);
        self.pause = FIRST_PAUSE;
    }

    /// Somebody is connected who was found: no hurry.
    pub fn found(&mut self, now: Instant) {
        self.pause = self.interval;
        self.look_due = self.look_due.max(now + FIRST_PAUSE.min(self.interval));
    }

    pub fn next_announce(&self) -> Instant {
        self.announce_due
    }

    /// When to poll again.
    pub fn next_deadline(&self, now: Instant, calendar: UnixTime) -> Instant {
        let rotation = self
            .tokens
            .iter()
            .filter_map(|token| token.next_rendezvous(calendar))
            .min()
            .map_or(CALENDAR_PACE, |rotation| rotation.since(calendar));
        self.announce_due
            .min(self.look_due)
            .min(now + rotation.min(CALENDAR_PACE))
    }

    /// Of the last and of this window.
    fn announced_keys(&self, calendar: UnixTime) -> BTreeSet<Key> {
        let keys = self.tokens.iter().flat_map(|token| {
            let window = token.dht_window(calendar);
            [window.previous(), window].map(|window| key(token, window))
        });
        keys.collect()
    }

    fn spread(&self) -> Duration {
        let shortest = self.tokens.iter().map(|token| token.dht.interval).min();
        let part = Duration::from_secs(shortest.unwrap_or(0)) / SPREAD_PART;
        part.min(WIDEST_SPREAD).mul_f64(self.share.clamp(0.0, 1.0))
    }
}

/// The keys members may be found under at this moment: of the last, this and the next window.
pub fn keys_of(tokens: &[Arc<Token>], calendar: UnixTime) -> BTreeSet<Key> {
    let keys = tokens.iter().flat_map(|token| {
        let window = token.dht_window(calendar);
        [window.previous(), window, window.next()].map(|window| key(token, window))
    });
    keys.collect()
}

fn key(token: &Token, window: Window) -> Key {
    Token::provider_key(&token.rendezvous(window))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Rotation;

    const INTERVAL: u64 = 360;
    const DHT_INTERVAL: Duration = Duration::from_secs(180);
    /// The first second of a window.
    const START: u64 = 1_785_931_200;

    struct Bench {
        schedule: Schedule,
        start: Instant,
        elapsed: Duration,
    }

    fn token(interval: u64, key: &str) -> Arc<Token> {
        let rotation = Rotation {
            interval,
            key: key.to_owned(),
            length: 43,
        };
        Arc::new(Token {
            dht: rotation.clone(),
            crypto: rotation,
            room: String::new(),
            rendezvous: "static".to_owned(),
            mdns: String::new(),
            max_message_size: 1,
        })
    }

    impl Bench {
        fn new(tokens: Vec<Arc<Token>>) -> Self {
            let start = Instant::now();
            Self {
                schedule: Schedule::new(tokens, DHT_INTERVAL, 0.5, start),
                start,
                elapsed: Duration::ZERO,
            }
        }

        fn now(&self) -> (Instant, UnixTime) {
            let calendar = UnixTime::from_secs(START).saturating_add(self.elapsed);
            (self.start + self.elapsed, calendar)
        }

        fn tasks(&mut self) -> Vec<Task> {
            let (now, calendar) = self.now();
            std::iter::from_fn(|| self.schedule.poll(now, calendar)).collect()
        }

        /// Runs until `end` and gives what was done when.
        fn run(&mut self, end: Duration) -> Vec<(Duration, Task)> {
            let mut done = Vec::new();
            while self.elapsed < end {
                let tasks = self.tasks();
                done.extend(tasks.into_iter().map(|task| (self.elapsed, task)));
                let (now, calendar) = self.now();
                let next = self.schedule.next_deadline(now, calendar);
                assert!(next > now, "comes to rest");
                self.elapsed += next.duration_since(now);
            }
            done
        }
    }

    fn announces(done: &[(Duration, Task)]) -> Vec<(f64, &BTreeSet<Key>)> {
        done.iter()
            .filter_map(|(at, task)| match task {
                Task::Announce(keys) => Some((at.as_secs_f64(), keys)),
                Task::Look(_) => None,
            })
            .collect()
    }

    #[test]
    fn every_window_is_announced_in_soon_after_it_begins() {
        let token = token(INTERVAL, "key");
        let mut bench = Bench::new(vec![token.clone()]);
        let done = bench.run(Duration::from_secs(10 * INTERVAL));
        for number in 0..10 {
            let begins = number * INTERVAL;
            let calendar = UnixTime::from_secs(START + begins);
            let current = key(&token, token.dht_window(calendar));
            let at = announces(&done)
                .into_iter()
                .find(|(_, keys)| keys.contains(&current))
                .map(|(at, _)| at - begins as f64);
            assert!(at.is_some_and(|at| (0.0..=5.0).contains(&at)), "{at:?}");
        }
    }

    #[test]
    fn last_and_current_are_announced_and_last_current_and_next_looked_up() {
        let token = token(INTERVAL, "key");
        let mut bench = Bench::new(vec![token.clone()]);
        let window = token.dht_window(bench.now().1);
        let of = |windows: &[Window]| windows.iter().map(|window| key(&token, *window)).collect();
        assert_eq!(
            bench.tasks(),
            [
                Task::Announce(of(&[window.previous(), window])),
                Task::Look(of(&[window.previous(), window, window.next()]))
            ]
        );
    }

    #[test]
    fn every_token_is_served_and_one_that_does_not_rotate_has_one_key() {
        let mut bench = Bench::new(vec![
            token(INTERVAL, "key"),
            token(60, "other"),
            token(60, ""),
        ]);
        let numbers: Vec<usize> = bench
            .tasks()
            .into_iter()
            .map(|task| match task {
                Task::Announce(keys) | Task::Look(keys) => keys.len(),
            })
            .collect();
        assert_eq!(numbers, [5, 7]);
    }

    #[test]
    fn a_lonely_node_looks_often_at_first_and_rarely_later() {
        let mut bench = Bench::new(vec![token(100_000, "key")]);
        let done = bench.run(Duration::from_secs(1000));
        let looks: Vec<f64> = done
            .iter()
            .filter(|(_, task)| matches!(task, Task::Look(_)))
            .map(|(at, _)| at.as_secs_f64())
            .collect();
        assert_eq!(looks[..4], [0.0, 0.6, 1.8, 4.2]);
        let last = looks[looks.len() - 1] - looks[looks.len() - 2];
        assert_eq!(last, DHT_INTERVAL.as_secs_f64());
    }

    #[test]
    fn who_has_found_somebody_looks_at_the_interval_and_who_lost_them_at_once() {
        let mut bench = Bench::new(vec![token(100_000, "key")]);
        bench.tasks();
        let (now, _) = bench.now();
        bench.schedule.found(now);
        bench.elapsed = Duration::from_secs(1);
        assert_eq!(bench.tasks().len(), 1);
        bench.elapsed = Duration::from_secs(170);
        assert_eq!(bench.tasks(), []);
        let (now, _) = bench.now();
        bench.schedule.look_soon(now);
        assert_eq!(bench.tasks().len(), 1);
    }

    #[test]
    fn a_thousand_reasons_to_announce_are_one_in_two_seconds() {
        let mut bench = Bench::new(vec![token(100_000, "key")]);
        let mut announced = 0;
        for _ in 0..1000 {
            let (now, _) = bench.now();
            bench.schedule.announce_soon(now);
            let done: Vec<_> = bench.tasks().into_iter().map(|task| (now, task)).collect();
            announced += done
                .iter()
                .filter(|(_, task)| matches!(task, Task::Announce(_)))
                .count();
            bench.elapsed += Duration::from_millis(10);
        }
        assert_eq!(announced, 5);
    }

    #[test]
    fn a_clock_that_is_set_is_followed() {
        let token = token(INTERVAL, "key");
        let mut bench = Bench::new(vec![token.clone()]);
        bench.tasks();
        let (now, _) = bench.now();
        let later = UnixTime::from_secs(START + 100 * INTERVAL);
        bench.schedule.poll(now, later);
        let soon = now + WIDEST_SPREAD;
        let window = token.dht_window(later);
        let keys = [window.previous(), window].map(|window| key(&token, window));
        assert_eq!(
            bench.schedule.poll(soon, later),
            Some(Task::Announce(keys.into()))
        );
    }
}
