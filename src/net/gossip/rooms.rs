//! Which topics a node is in: three windows of each token, and where in them the others are.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use libp2p::gossipsub::TopicHash;

use crate::{
    id::UnixTime,
    wire::{Fingerprint, Token, Window},
};

/// Windows around the own one in which we remember who is there. A peer whose clock is a window ahead is in rooms that we
/// reach later, and says so once; one that is behind leaves rooms after us, and we should understand that it does.
const BEHIND: u64 = 4;
const AHEAD: u64 = 3;

/// The rooms of all tokens, as of the last look at the clock.
#[derive(Default)]
pub struct Rooms {
    rooms: Vec<Room>,
    places: HashMap<TopicHash, Place>,
}

struct Room {
    token: Arc<Token>,
    network: Fingerprint,
    window: Window,
    /// Previous, current and next; fewer at the beginning of time.
    topics: BTreeMap<Window, TopicHash>,
    /// Those that others may be in.
    known: Vec<TopicHash>,
}

/// What a topic stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub network: Fingerprint,
    pub window: Window,
}

/// What to subscribe to and what to leave. Joined first, so that no moment is without a room.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Moves {
    pub join: Vec<TopicHash>,
    pub leave: Vec<TopicHash>,
}

/// For each network, what to seal for.
pub type Outlets = BTreeMap<Fingerprint, Outlet>;

/// Where the others of one network are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlet {
    /// The window to seal for and to publish in: the own one if somebody is there, else the previous, else the next.
    pub window: Window,
    /// Windows to publish in as well: those who are there are not in `window`. Mostly none; some during the seconds in
    /// which not everybody has moved.
    pub also: Vec<Window>,
    /// Peers in any window.
    pub subscribers: usize,
    /// Those among them that are not known to be nodes of this program; they understand nothing but broadcasts.
    pub strangers: usize,
}

/// One peer's subscriptions, as [`Rooms::outlets`] wants them.
pub struct Audience<'a> {
    pub topics: &'a HashSet<TopicHash>,
    pub ours: bool,
}

impl Rooms {
    /// Follows the tokens and the clock, wherever that has gone.
    pub fn follow(&mut self, tokens: &[Arc<Token>], now: UnixTime) -> Moves {
        let mut rooms: Vec<Room> = Vec::new();
        for token in tokens {
            let network = token.fingerprint();
            if rooms.iter().all(|room| room.network != network) {
                rooms.push(Room::new(token.clone(), network, now));
            }
        }
        self.rooms = rooms;
        self.settle()
    }

    /// Moves to the windows of `now`. Cheap when nothing has changed.
    pub fn turn(&mut self, now: UnixTime) -> Moves {
        let mut turned = false;
        for room in &mut self.rooms {
            if room.token.window(now) != room.window {
                *room = Room::new(room.token.clone(), room.network, now);
                turned = true;
            }
        }
        if turned {
            self.settle()
        } else {
            Moves::default()
        }
    }

    fn settle(&mut self) -> Moves {
        let mut places = HashMap::new();
        for room in &self.rooms {
            for (window, topic) in &room.topics {
                let place = Place {
                    network: room.network,
                    window: *window,
                };
                // Two tokens with one room: the own one comes first.
                places.entry(topic.clone()).or_insert(place);
            }
        }
        let absent_in =
            |topic: &TopicHash, other: &HashMap<TopicHash, Place>| !other.contains_key(topic);
        let join = places.keys().filter(|topic| absent_in(topic, &self.places));
        let leave = self.places.keys().filter(|topic| absent_in(topic, &places));
        let moves = Moves {
            join: join.cloned().collect(),
            leave: leave.cloned().collect(),
        };
        self.places = places;
        moves
    }

    pub fn place(&self, topic: &TopicHash) -> Option<Place> {
        self.places.get(topic).copied()
    }

    pub fn topic(&self, network: Fingerprint, window: Window) -> Option<&TopicHash> {
        let room = self.rooms.iter().find(|room| room.network == network)?;
        room.topics.get(&window)
    }

    /// The topics we are in.
    pub fn topics(&self) -> impl Iterator<Item = &TopicHash> {
        self.places.keys()
    }

    /// The topics in which we remember who is there: ours and some before and after.
    pub fn known(&self) -> HashSet<TopicHash> {
        let known = self.rooms.iter().flat_map(|room| &room.known);
        known.cloned().collect()
    }

    /// How long until some room changes.
    pub fn until_rotation(&self, now: UnixTime) -> Option<Duration> {
        let ends = self.rooms.iter().map(|room| room.token.next_rotation(now));
        ends.min().map(|end| end.since(now))
    }

    /// How long ago the window of `network` began.
    pub fn since_rotation(&self, network: Fingerprint, now: UnixTime) -> Option<Duration> {
        let room = self.rooms.iter().find(|room| room.network == network)?;
        let begin = room.token.crypto.interval.saturating_mul(room.window.0);
        Some(now.since(UnixTime::from_secs(begin)))
    }

    /// Where the peers are, network by network.
    pub fn outlets<'a>(&self, peers: impl Iterator<Item = Audience<'a>> + Clone) -> Outlets {
        let outlet = |room: &Room| (room.network, room.outlet(peers.clone()));
        self.rooms.iter().map(outlet).collect()
    }
}

impl Room {
    fn new(token: Arc<Token>, network: Fingerprint, now: UnixTime) -> Self {
        let window = token.window(now);
        let windows = [window.previous(), window, window.next()];
        let topic = |window| TopicHash::from_raw(token.topic(window));
        let topics = windows.map(|window| (window, topic(window)));
        let around = window.0.saturating_sub(BEHIND)..=window.0.saturating_add(AHEAD);
        let known = around.map(|window| topic(Window(window))).collect();
        Self {
            token,
            network,
            window,
            topics: topics.into(),
            known,
        }
    }

    fn outlet<'a>(&self, peers: impl Iterator<Item = Audience<'a>>) -> Outlet {
        let windows = [self.window, self.window.previous(), self.window.next()];
        let mut outlet = Outlet {
            window: self.window,
            also: Vec::new(),
            subscribers: 0,
            strangers: 0,
        };
        // Which combinations of windows peers are in, as bits in the order of preference.
        let mut kinds = [0_usize; 8];
        for peer in peers {
            let is_in = |window: &Window| {
                let topic = self.topics.get(window);
                topic.is_some_and(|topic| peer.topics.contains(topic))
            };
            let [own, previous, next] = windows.map(|window| is_in(&window));
            let kind = usize::from(own) | usize::from(previous) << 1 | usize::from(next) << 2;
            if kind == 0 {
                continue;
            }
            outlet.subscribers = outlet.subscribers.saturating_add(1);
            outlet.strangers = outlet.strangers.saturating_add(usize::from(!peer.ours));
            if let Some(count) = kinds.get_mut(kind) {
                *count = count.saturating_add(1);
            }
        }
        let mut reached = 0;
        for (bit, window) in windows.into_iter().enumerate() {
            let here = 1 << bit;
            let missing = kinds.iter().enumerate();
            let needed = missing
                .filter(|(kind, count)| **count > 0 && kind & reached == 0)
                .any(|(kind, _)| kind & here != 0);
            if !needed {
                continue;
            }
            if reached == 0 {
                outlet.window = window;
            } else {
                outlet.also.push(window);
            }
            reached |= here;
        }
        outlet
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Rotation;

    fn token(room: &str, interval: u64) -> Arc<Token> {
        let rotation = || Rotation {
            interval,
            key: "key".to_owned(),
            length: 43,
        };
        Arc::new(Token {
            dht: rotation(),
            crypto: rotation(),
            room: room.to_owned(),
            rendezvous: String::new(),
            mdns: String::new(),
            max_message_size: 1,
        })
    }

    fn at(seconds: u64) -> UnixTime {
        UnixTime::from_secs(seconds)
    }

    #[test]
    fn a_turn_joins_the_window_after_the_next_and_leaves_the_oldest() {
        let (mut rooms, token) = (Rooms::default(), token("room", 360));
        let first = rooms.follow(std::slice::from_ref(&token), at(3600));
        assert_eq!((first.join.len(), first.leave.len()), (3, 0));
        assert_eq!(rooms.turn(at(3959)), Moves::default());
        let topic = |window| vec![TopicHash::from_raw(token.topic(Window(window)))];
        let (join, leave) = (topic(12), topic(9));
        assert_eq!(rooms.turn(at(3960)), Moves { join, leave });
        assert_eq!(
            rooms.until_rotation(at(3960)),
            Some(Duration::from_secs(360))
        );
    }

    #[test]
    fn a_clock_that_steps_is_followed_both_ways() {
        let (mut rooms, token) = (Rooms::default(), token("room", 360));
        rooms.follow(std::slice::from_ref(&token), at(36_000));
        for now in [0, 36_000, 32_400, u64::MAX / 2, 36_360] {
            rooms.turn(at(now));
            let expected = if now == 0 { 2 } else { 3 };
            assert_eq!(rooms.topics().count(), expected, "at {now}");
        }
    }

    #[test]
    fn one_room_of_two_tokens_is_joined_once_and_belongs_to_the_own() {
        let (own, accepted) = (token("room", 360), token("room", 360));
        let other = token("other", 60);
        let mut rooms = Rooms::default();
        rooms.follow(&[own.clone(), accepted, other], at(3600));
        assert_eq!(rooms.topics().count(), 6);
        let topic = TopicHash::from_raw(own.topic(Window(10)));
        let place = rooms.place(&topic).expect("a room");
        assert_eq!(
            (place.network, place.window),
            (own.fingerprint(), Window(10))
        );
    }

    #[test]
    fn the_own_window_comes_first_then_the_previous_then_the_next_and_nobody_is_left_out() {
        let token = token("room", 360);
        let mut rooms = Rooms::default();
        rooms.follow(std::slice::from_ref(&token), at(3600));
        let outlet = |peers: &[&[u64]]| {
            let peers: Vec<HashSet<TopicHash>> = peers
                .iter()
                .map(|windows| {
                    windows
                        .iter()
                        .map(|window| TopicHash::from_raw(token.topic(Window(*window))))
                        .collect()
                })
                .collect();
            let audience = peers.iter().map(|topics| Audience {
                topics,
                ours: topics.len() > 1,
            });
            rooms
                .outlets(audience)
                .remove(&token.fingerprint())
                .expect("a network")
        };
        let ours: &[u64] = &[9, 10, 11];
        /// Which windows peers are in, the one to publish in, and further ones.
        type Case<'a> = (&'a [&'a [u64]], u64, &'a [u64]);
        let cases: [Case<'_>; 7] = [
            (&[], 10, &[]),
            (&[ours], 10, &[]),
            (&[ours, &[10]], 10, &[]),
            (&[&[9]], 9, &[]),
            (&[&[11]], 11, &[]),
            (&[ours, &[9]], 10, &[9]),
            (&[&[9], &[11]], 9, &[11]),
        ];
        for (peers, window, also) in cases {
            let outlet = outlet(peers);
            let also: Vec<Window> = also.iter().copied().map(Window).collect();
            assert_eq!(
                (outlet.window, outlet.also),
                (Window(window), also),
                "{peers:?}"
            );
        }
        let counted = outlet(&[ours, &[9], &[42]]);
        assert_eq!((counted.subscribers, counted.strangers), (2, 1));
    }
}
