//! Finding one subject among a million entries: a hash table for peers, sorted ranges for networks. Both keep what a
//! search compares in one place, so that it waits for memory once or twice.

use std::{
    cmp::Reverse,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use super::{
    Action,
    entries::{Note, PeerKey},
};

/// An open-addressing table, at most three quarters full. A byte of the hash stands for each slot: those stay in the
/// cache, so that a search for an absent peer hardly ever waits for a slot. The hash is keyed: whoever makes keys to be
/// put on a list cannot make them collide.
pub(super) struct Peers {
    tags: Vec<u8>,
    slots: Vec<Option<Slot>>,
    /// The places of the slots, in the order in which they were written.
    written: Vec<usize>,
    hasher: RandomState,
}

/// The tag of a free slot; none of a taken one.
const FREE: u8 = 0;

#[derive(Clone, Copy)]
struct Slot {
    key: PeerKey,
    action: Action,
    note: Note,
}

impl Peers {
    /// What is written twice counts once, where it stands first.
    pub fn of(entries: &[(PeerKey, Note)], action: impl Fn(Note) -> Option<Action>) -> Self {
        let size = entries.len().div_ceil(3).saturating_mul(4);
        let mut table = Self {
            tags: vec![FREE; size],
            slots: vec![None; size],
            written: Vec::with_capacity(entries.len()),
            hasher: RandomState::new(),
        };
        let mut places = vec![None; entries.len()];
        // Deny entries go in first, so that a search meets them first.
        for wanted in [Action::Deny, Action::Allow] {
            for ((key, note), place) in entries.iter().zip(&mut places) {
                if action(*note) == Some(wanted) {
                    *place = table.insert(Slot {
                        key: *key,
                        action: wanted,
                        note: *note,
                    });
                }
            }
        }
        table.written.extend(places.into_iter().flatten());
        table
    }

    /// The entry that decides on this peer: a deny entry if there is one.
    pub fn find(&self, key: &PeerKey) -> Option<(Action, Note)> {
        let slot = self.chain(key).find(|slot| slot.key == *key)?;
        Some((slot.action, slot.note))
    }

    /// The entry of one action.
    pub fn find_of(&self, action: Action, key: &PeerKey) -> Option<Note> {
        let meant = |slot: &&Slot| slot.key == *key && slot.action == action;
        self.chain(key).find(meant).map(|slot| slot.note)
    }

    pub fn holds(&self, action: Action, key: &PeerKey) -> bool {
        self.find_of(action, key).is_some()
    }

    pub fn iter(&self) -> impl Iterator<Item = (Action, &PeerKey, Note)> + '_ {
        let slots = self
            .written
            .iter()
            .filter_map(|place| self.slots.get(*place));
        slots
            .flatten()
            .map(|slot| (slot.action, &slot.key, slot.note))
    }

    pub fn same(&self, other: &Self) -> bool {
        self.written.len() == other.written.len()
            && self.iter().all(|(action, key, _)| other.holds(action, key))
    }

    /// Where it is now, unless it was there before.
    fn insert(&mut self, slot: Slot) -> Option<usize> {
        if self.holds(slot.action, &slot.key) {
            return None;
        }
        let (start, tag) = self.start(&slot.key);
        let (place, _) = self.around(start).find(|(_, tag)| *tag == FREE)?;
        *self.tags.get_mut(place)? = tag;
        *self.slots.get_mut(place)? = Some(slot);
        Some(place)
    }

    /// The slots where a key can be: those of its tag, up to the first free one.
    fn chain(&self, key: &PeerKey) -> impl Iterator<Item = &Slot> + '_ {
        let (start, wanted) = self.start(key);
        self.around(start)
            .take_while(|(_, tag)| *tag != FREE)
            .filter(move |(_, tag)| *tag == wanted)
            .filter_map(|(place, _)| self.slots.get(place)?.as_ref())
    }

    /// All places with their tags, from this one on.
    fn around(&self, start: usize) -> impl Iterator<Item = (usize, u8)> + '_ {
        let (before, from) = self.tags.split_at_checked(start).unwrap_or_default();
        let tags = from.iter().chain(before);
        let places = (start..self.tags.len()).chain(0..start);
        places.zip(tags.copied())
    }

    /// Where to look for a key first, from the upper bits of its hash, and its tag, from the lowest. Half of the key is
    /// enough to hash: nobody finds two keys, let alone many, that share 128 bits of it.
    fn start(&self, key: &PeerKey) -> (usize, u8) {
        let hash = self.hasher.hash_one(key.half());
        let wide = u128::from(hash) * self.slots.len() as u128;
        let [.., lowest] = hash.to_be_bytes();
        ((wide >> u64::BITS) as usize, lowest.max(FREE + 1))
    }
}

/// The networks of one action.
pub(super) struct Networks {
    four: Ranges<Ipv4Addr>,
    six: Ranges<Ipv6Addr>,
}

impl Networks {
    pub fn of(networks: impl Iterator<Item = (IpNet, Note)>) -> Self {
        let (mut four, mut six) = (Vec::new(), Vec::new());
        for (network, note) in networks {
            match network {
                IpNet::V4(net) => four.push(Range {
                    first: net.network(),
                    last: net.broadcast(),
                    note,
                }),
                IpNet::V6(net) => six.push(Range {
                    first: net.network(),
                    last: net.broadcast(),
                    note,
                }),
            }
        }
        Self {
            four: Ranges::of(four),
            six: Ranges::of(six),
        }
    }

    /// An entry around this address, which must be canonical.
    pub fn find(&self, address: IpAddr) -> Option<Note> {
        Some(match address {
            IpAddr::V4(address) => self.four.around(address, address)?.note,
            IpAddr::V6(address) => self.six.around(address, address)?.note,
        })
    }

    /// An entry whose network holds all of this one.
    pub fn around(&self, network: IpNet) -> Option<(IpNet, Note)> {
        let (first, last, note) = match network {
            IpNet::V4(net) => self.four.around(net.network(), net.broadcast())?.told(),
            IpNet::V6(net) => self.six.around(net.network(), net.broadcast())?.told(),
        };
        let wider = (0..=network.prefix_len()).find_map(|length| {
            let wider = IpNet::new(first, length).ok()?;
            (wider.network() == first && wider.broadcast() == last).then_some(wider)
        })?;
        Some((wider, note))
    }

    /// Whether both hold the same addresses, however they are written.
    pub fn same(&self, other: &Self) -> bool {
        self.four.same(&other.four) && self.six.same(&other.six)
    }
}

/// Address ranges that do not overlap, in order. Networks nest or are disjoint, so the outermost ones say it all.
struct Ranges<A> {
    /// The first address of every block: small enough to stay in the cache.
    blocks: Vec<A>,
    ranges: Vec<Range<A>>,
}

#[derive(Clone, Copy)]
struct Range<A> {
    first: A,
    last: A,
    note: Note,
}

impl<A: Copy + Into<IpAddr>> Range<A> {
    fn told(&self) -> (IpAddr, IpAddr, Note) {
        (self.first.into(), self.last.into(), self.note)
    }
}

/// Ranges in a block. Eight IPv4 ranges are two cache lines, eight IPv6 ranges five; of 250,000 IPv6 networks the starts
/// take 500 kB.
const BLOCK: usize = 8;

impl<A: Copy + Ord> Ranges<A> {
    fn of(mut all: Vec<Range<A>>) -> Self {
        // Stable, so that of two equal ones the first is named.
        all.sort_by_key(|range| (range.first, Reverse(range.last)));
        let mut ranges: Vec<Range<A>> = Vec::new();
        for range in all {
            if ranges.last().is_none_or(|outer| outer.last < range.first) {
                ranges.push(range);
            }
        }
        ranges.shrink_to_fit();
        Self {
            blocks: ranges
                .iter()
                .step_by(BLOCK)
                .map(|range| range.first)
                .collect(),
            ranges,
        }
    }

    fn around(&self, first: A, last: A) -> Option<&Range<A>> {
        let block = self
            .blocks
            .partition_point(|start| *start <= first)
            .checked_sub(1)?;
        let ranges = self.ranges.chunks(BLOCK).nth(block)?;
        let at = ranges
            .partition_point(|range| range.first <= first)
            .checked_sub(1)?;
        ranges.get(at).filter(|range| last <= range.last)
    }

    fn same(&self, other: &Self) -> bool {
        let ends = |range: &Range<A>| (range.first, range.last);
        self.ranges
            .iter()
            .map(ends)
            .eq(other.ranges.iter().map(ends))
    }
}
