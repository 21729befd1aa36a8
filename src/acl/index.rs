//! Finding one subject among a million entries: a hash table for peers, sorted ranges for networks.

use std::{
    cmp::Reverse,
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use super::{
    Action,
    entries::{Entries, PeerKey, Row},
};
use crate::id::PeerId;

/// All subjects of one action.
pub(super) struct Subjects {
    peers: Slots,
    others: HashMap<PeerId, usize>,
    four: Ranges<Ipv4Addr>,
    six: Ranges<Ipv6Addr>,
}

impl Subjects {
    pub(super) fn of(entries: &Entries, action: Action, hasher: &RandomState) -> Self {
        let mut others = HashMap::new();
        for (at, peer) in entries.others(action) {
            others.entry(*peer).or_insert(at);
        }
        Self {
            peers: Slots::of(entries, action, hasher),
            others,
            four: Ranges::of(entries.networks(action).filter_map(|(at, net)| match net {
                IpNet::V4(net) => Some((net.network(), net.broadcast(), at)),
                IpNet::V6(_) => None,
            })),
            six: Ranges::of(entries.networks(action).filter_map(|(at, net)| match net {
                IpNet::V4(_) => None,
                IpNet::V6(net) => Some((net.network(), net.broadcast(), at)),
            })),
        }
    }

    /// The entry that names this peer or a network around its address; `address` must be canonical.
    pub(super) fn find(
        &self,
        entries: &Entries,
        peer: &Sought,
        address: Option<IpAddr>,
    ) -> Option<Row> {
        self.find_peer(entries, peer).or_else(|| match address? {
            IpAddr::V4(address) => self.four.find(address).map(Row::Network),
            IpAddr::V6(address) => self.six.find(address).map(Row::Network),
        })
    }

    pub(super) fn find_peer(&self, entries: &Entries, peer: &Sought) -> Option<Row> {
        match peer {
            Sought::Key { key, hash } => self.peers.find(entries, key, *hash).map(Row::Peer),
            Sought::Other(peer) => self.others.get(peer).copied().map(Row::Other),
        }
    }

    /// An entry whose network holds all of this one.
    pub(super) fn find_around(&self, network: IpNet) -> Option<Row> {
        match network {
            IpNet::V4(net) => self.four.around(net.network(), net.broadcast()),
            IpNet::V6(net) => self.six.around(net.network(), net.broadcast()),
        }
        .map(Row::Network)
    }

    /// Whether both hold the same peers and the same ranges of addresses, wherever they are written.
    pub(super) fn same(&self, entries: &Entries, other: &Self, its: &Entries) -> bool {
        self.peers.count == other.peers.count
            && self.others.len() == other.others.len()
            && self
                .others
                .keys()
                .all(|peer| other.others.contains_key(peer))
            && self.four.same(&other.four)
            && self.six.same(&other.six)
            && self.peers.all(entries, |key| other.peers.holds(its, key))
    }
}

/// A peer to look for, hashed once for several tables.
pub(super) enum Sought {
    Key { key: PeerKey, hash: u64 },
    Other(PeerId),
}

impl Sought {
    pub(super) fn new(peer: &PeerId, hasher: &RandomState) -> Self {
        match PeerKey::of(peer) {
            Some(key) => Self::Key {
                hash: hasher.hash_one(key),
                key,
            },
            None => Self::Other(*peer),
        }
    }
}

/// An open-addressing table of positions in `Entries`, at most half full. A slot holds 24 bits of the hash beside the
/// position, so that a search for an absent key touches one cache line and no entry. The hash is keyed: whoever makes
/// keys to be put on a list cannot make them collide.
struct Slots {
    slots: Vec<u64>,
    count: usize,
    hasher: RandomState,
}

/// A slot that is free. No real one looks like it: positions are below 2^40 - 1.
const FREE: u64 = u64::MAX;
const POSITION: u64 = (1 << 40) - 1;

impl Slots {
    fn of(entries: &Entries, action: Action, hasher: &RandomState) -> Self {
        let wanted = entries.peers(action).count();
        let size = if wanted == 0 {
            0
        } else {
            wanted.saturating_mul(2).next_power_of_two()
        };
        let mut table = Self {
            slots: vec![FREE; size],
            count: 0,
            hasher: hasher.clone(),
        };
        for (at, key) in entries.peers(action) {
            table.insert(entries, at, key);
        }
        table
    }

    fn insert(&mut self, entries: &Entries, at: usize, key: &PeerKey) {
        let hash = self.hasher.hash_one(key);
        if self.find(entries, key, hash).is_some() {
            return;
        }
        let probe = self.probe(hash);
        for place in probe {
            if let Some(slot) = self.slots.get_mut(place)
                && *slot == FREE
            {
                *slot = hash & !POSITION | at as u64 & POSITION;
                self.count += 1;
                return;
            }
        }
    }

    fn find(&self, entries: &Entries, key: &PeerKey, hash: u64) -> Option<usize> {
        for place in self.probe(hash) {
            let slot = *self.slots.get(place)?;
            if slot == FREE {
                return None;
            }
            let at = (slot & POSITION) as usize;
            if (slot ^ hash) & !POSITION == 0 && entries.peer(at) == Some(key) {
                return Some(at);
            }
        }
        None
    }

    fn holds(&self, entries: &Entries, key: &PeerKey) -> bool {
        self.find(entries, key, self.hasher.hash_one(key)).is_some()
    }

    fn all(&self, entries: &Entries, holds: impl Fn(&PeerKey) -> bool) -> bool {
        let taken = self.slots.iter().filter(|slot| **slot != FREE);
        taken
            .filter_map(|slot| entries.peer((slot & POSITION) as usize))
            .all(holds)
    }

    /// Every place once, from the one the low bits of the hash name.
    fn probe(&self, hash: u64) -> impl Iterator<Item = usize> + use<> {
        let mask = self.slots.len().wrapping_sub(1);
        let start = hash as usize;
        (0..self.slots.len()).map(move |step| start.wrapping_add(step) & mask)
    }
}

/// Address ranges that do not overlap, in order. Networks nest or are disjoint, so the outermost ones say it all.
struct Ranges<A> {
    first: Vec<A>,
    last: Vec<A>,
    rows: Vec<usize>,
}

impl<A: Copy + Ord> Ranges<A> {
    fn of(networks: impl Iterator<Item = (A, A, usize)>) -> Self {
        let mut all: Vec<_> = networks.collect();
        all.sort_unstable_by_key(|(first, last, at)| (*first, Reverse(*last), *at));
        let mut ranges = Self {
            first: Vec::new(),
            last: Vec::new(),
            rows: Vec::new(),
        };
        for (first, last, at) in all {
            if ranges.last.last().is_none_or(|end| *end < first) {
                ranges.first.push(first);
                ranges.last.push(last);
                ranges.rows.push(at);
            }
        }
        ranges
    }

    fn find(&self, address: A) -> Option<usize> {
        self.around(address, address)
    }

    fn around(&self, first: A, last: A) -> Option<usize> {
        let at = self
            .first
            .partition_point(|start| *start <= first)
            .checked_sub(1)?;
        self.last.get(at).filter(|end| last <= **end)?;
        self.rows.get(at).copied()
    }

    fn same(&self, other: &Self) -> bool {
        self.first == other.first && self.last == other.last
    }
}
