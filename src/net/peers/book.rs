//! Who is known under which addresses, and whom to keep connected. Sources and `now` in, a choice out.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry},
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use libp2p::{Multiaddr, PeerId};

use crate::acl::Membership;

/// Members a node keeps direct connections to. In a network of this size everybody is everybody's neighbour; in a larger
/// one, 32 random neighbours each leave no part of the network cut off, whoever fails.
pub const MEMBERS_KEPT: usize = 32;

/// Peers dialled that nobody vouches for yet: found by multicast or through the DHT and not a member so far.
pub const UNPROVEN_KEPT: usize = 32;

/// Connections with members beyond those we chose are held open too: they have chosen us. As many as choose one node of a
/// large network, and half as many again.
pub const MEMBERS_HELD: usize = 3 * MEMBERS_KEPT;

/// Peers remembered with addresses: more than the largest network is meant to have.
const MOST_KNOWN: usize = 16_384;

/// Addresses remembered of one peer and source.
const MOST_ADDRESSES: usize = 16;

/// A peer nobody vouches for, found in the DHT, is forgotten after this many dials in vain; it may be found again.
pub const DHT_PATIENCE: u32 = 6;

/// Where addresses come from. The order is the order of trust, and of what is tried first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// `[[peer]]`.
    File,
    /// `discovery.bootstrap_peers`, or the public ones.
    Bootstrap,
    /// `relay.peers`.
    Relay,
    /// A member said so in the ledger.
    Ledger,
    /// Heard on a link.
    Mdns,
    /// A record of the DHT; its addresses were judged by whoever brings them here.
    Dht,
    /// What a connected peer says about itself.
    Identify,
}

impl Source {
    /// Whether the operator named the peer, so that it is kept whoever it is.
    fn is_configured(self) -> bool {
        matches!(self, Source::File | Source::Bootstrap | Source::Relay)
    }
}

pub struct Book {
    local: PeerId,
    known: HashMap<PeerId, Known>,
    membership: Arc<Membership>,
    /// Keyed at random: a stranger cannot choose a peer id that ranks first here.
    rank: RandomState,
}

#[derive(Default)]
struct Known {
    by_source: BTreeMap<Source, Vec<Multiaddr>>,
    /// Dials in vain since it was last connected or found.
    failures: u32,
}

/// How many peers each source has brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub file: usize,
    pub bootstrap: usize,
    pub relays: usize,
    pub ledger: usize,
    pub mdns: usize,
    pub dht: usize,
}

impl Book {
    pub fn new(local: PeerId) -> Self {
        Self {
            local,
            known: HashMap::new(),
            membership: Arc::default(),
            rank: RandomState::new(),
        }
    }

    pub fn set_membership(&mut self, membership: Arc<Membership>) {
        self.membership = membership;
    }

    pub fn is_member(&self, peer: &PeerId) -> bool {
        self.membership.members.contains_key(peer)
    }

    /// Replaces all that one source has said. Gives the peers of which it says something else now.
    pub fn set(&mut self, source: Source, peers: BTreeMap<PeerId, Vec<Multiaddr>>) -> Vec<PeerId> {
        let gone: Vec<PeerId> = self
            .of(source)
            .filter(|peer| !peers.contains_key(peer))
            .copied()
            .collect();
        for peer in gone {
            self.forget(source, &peer);
        }
        let mut changed = Vec::new();
        for (peer, addresses) in peers {
            if self.learn(source, peer, addresses) {
                changed.push(peer);
            }
        }
        changed
    }

    /// Takes in what `source` says of one peer, in place of what it said before. Says whether it is different.
    pub fn learn(&mut self, source: Source, peer: PeerId, mut addresses: Vec<Multiaddr>) -> bool {
        if peer == self.local {
            return false;
        }
        let full = self.known.len() >= MOST_KNOWN;
        let known = match self.known.entry(peer) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if full && !source.is_configured() => return false,
            Entry::Vacant(room) => room.insert(Known::default()),
        };
        if !source.is_configured() {
            addresses.truncate(MOST_ADDRESSES);
        }
        let before = known.by_source.insert(source, addresses);
        let changed = before.as_ref() != known.by_source.get(&source);
        if changed {
            known.failures = 0;
        }
        changed
    }

    pub fn forget(&mut self, source: Source, peer: &PeerId) {
        if let Some(known) = self.known.get_mut(peer) {
            known.by_source.remove(&source);
            if known.by_source.is_empty() {
                self.known.remove(peer);
            }
        }
    }

    /// What a peer says about itself is good for as long as it is connected, or a member.
    pub fn disconnected(&mut self, peer: &PeerId) {
        if !self.is_member(peer) {
            self.forget(Source::Identify, peer);
        }
    }

    pub fn connected(&mut self, peer: &PeerId) {
        if let Some(known) = self.known.get_mut(peer) {
            known.failures = 0;
        }
    }

    /// Counts a dial in vain and gives how many there were before it.
    pub fn failed(&mut self, peer: &PeerId) -> u32 {
        let member = self.is_member(peer);
        let Some(known) = self.known.get_mut(peer) else {
            return 0;
        };
        let before = known.failures;
        known.failures = before.saturating_add(1);
        if !member && known.failures >= DHT_PATIENCE {
            self.forget(Source::Dht, peer);
        }
        before
    }

    /// Where to dial `peer`: the words of more trusted sources first, each address once.
    pub fn addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        let Some(known) = self.known.get(peer) else {
            return Vec::new();
        };
        let member = self.is_member(peer);
        let mut seen = HashSet::new();
        known
            .by_source
            .iter()
            .flat_map(|(source, addresses)| addresses.iter().map(move |address| (source, address)))
            .filter(|(source, address)| {
                member
                    || **source != Source::Identify
                    || crate::net::gate::scope::is_public(address)
            })
            .map(|(_, address)| address)
            .filter(|address| seen.insert(*address))
            .cloned()
            .collect()
    }

    /// Whom to dial until connected: whom the operator named, some members, and some who may become members.
    pub fn chosen(&self) -> BTreeSet<PeerId> {
        let mut chosen = BTreeSet::new();
        let (mut members, mut unproven) = (Vec::new(), Vec::new());
        for (peer, known) in &self.known {
            if known.by_source.keys().any(|source| source.is_configured()) {
                chosen.insert(*peer);
            } else if self.is_member(peer) {
                members.push((self.rank.hash_one(peer), *peer));
            } else if known
                .by_source
                .keys()
                .any(|source| matches!(source, Source::Mdns | Source::Dht))
            {
                // Who has failed often makes room for who was not tried yet.
                unproven.push((known.failures / 2, self.rank.hash_one(peer), *peer));
            }
        }
        members.sort_unstable();
        unproven.sort_unstable();
        chosen.extend(members.iter().take(MEMBERS_KEPT).map(|(_, peer)| *peer));
        chosen.extend(
            unproven
                .iter()
                .take(UNPROVEN_KEPT)
                .map(|(_, _, peer)| *peer),
        );
        chosen
    }

    /// Of these connected peers, the members to hold on to beside the chosen ones.
    pub fn held<'a>(&self, connected: impl Iterator<Item = &'a PeerId>) -> BTreeSet<PeerId> {
        let mut members: Vec<(u64, PeerId)> = connected
            .filter(|peer| self.is_member(peer))
            .map(|peer| (self.rank.hash_one(peer), *peer))
            .collect();
        members.sort_unstable();
        members
            .into_iter()
            .take(MEMBERS_HELD)
            .map(|(_, peer)| peer)
            .collect()
    }

    /// Whether nobody we trust has named this peer: it may be anybody.
    pub fn is_of_anybody(&self, peer: &PeerId) -> bool {
        !self.is_member(peer)
            && self
                .known
                .get(peer)
                .is_none_or(|known| !known.by_source.keys().any(|source| source.is_configured()))
    }

    /// The peers `source` has named.
    pub fn of(&self, source: Source) -> impl Iterator<Item = &PeerId> {
        self.known
            .iter()
            .filter(move |(_, known)| known.by_source.contains_key(&source))
            .map(|(peer, _)| peer)
    }

    /// What `source` has said, peer by peer.
    pub fn said_by(&self, source: Source) -> BTreeMap<PeerId, BTreeSet<Multiaddr>> {
        self.known
            .iter()
            .filter_map(|(peer, known)| {
                let addresses = known.by_source.get(&source)?;
                Some((*peer, addresses.iter().cloned().collect()))
            })
            .collect()
    }

    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for source in self.known.values().flat_map(|known| known.by_source.keys()) {
            let count = match source {
                Source::File => &mut counts.file,
                Source::Bootstrap => &mut counts.bootstrap,
                Source::Relay => &mut counts.relays,
                Source::Ledger => &mut counts.ledger,
                Source::Mdns => &mut counts.mdns,
                Source::Dht => &mut counts.dht,
                Source::Identify => continue,
            };
            *count = count.saturating_add(1);
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::UnixTime;

    fn address(text: &str) -> Multiaddr {
        text.parse().expect("an address")
    }

    fn book_with_members(members: &[PeerId]) -> Book {
        let mut book = Book::new(PeerId::random());
        let members = members.iter().map(|peer| (*peer, UnixTime::default()));
        book.set_membership(Arc::new(Membership {
            members: members.collect(),
            ..Membership::default()
        }));
        book
    }

    fn peers(number: usize) -> Vec<PeerId> {
        (0..number).map(|_| PeerId::random()).collect()
    }

    #[test]
    fn of_a_large_network_a_node_keeps_some_members_and_always_the_same() {
        let members = peers(500);
        let mut book = book_with_members(&members);
        for peer in &members {
            book.learn(Source::Ledger, *peer, vec![address("/ip4/192.0.2.1/tcp/1")]);
        }
        let chosen = book.chosen();
        assert_eq!(chosen.len(), MEMBERS_KEPT);
        book.learn(
            Source::Ledger,
            members[0],
            vec![address("/ip4/192.0.2.2/tcp/1")],
        );
        assert_eq!(book.chosen(), chosen);
    }

    #[test]
    fn in_a_small_network_everybody_is_kept() {
        let members = peers(MEMBERS_KEPT);
        let mut book = book_with_members(&members);
        for peer in &members {
            book.learn(Source::Ledger, *peer, vec![address("/ip4/192.0.2.1/tcp/1")]);
        }
        assert_eq!(book.chosen(), members.into_iter().collect());
    }

    #[test]
    fn who_is_found_and_nobody_vouches_for_takes_no_place_of_a_member() {
        let members = peers(MEMBERS_KEPT);
        let mut book = book_with_members(&members);
        for peer in peers(1000) {
            book.learn(Source::Mdns, peer, vec![address("/ip4/10.0.0.1/tcp/1")]);
        }
        for peer in &members {
            book.learn(Source::Ledger, *peer, vec![address("/ip4/192.0.2.1/tcp/1")]);
        }
        let chosen = book.chosen();
        assert!(members.iter().all(|peer| chosen.contains(peer)));
        assert_eq!(chosen.len(), MEMBERS_KEPT + UNPROVEN_KEPT);
    }

    #[test]
    fn who_never_answers_makes_room_for_who_was_not_tried() {
        let mut book = book_with_members(&[]);
        for peer in peers(UNPROVEN_KEPT) {
            book.learn(Source::Mdns, peer, vec![address("/ip4/10.0.0.1/tcp/1")]);
            book.failed(&peer);
            book.failed(&peer);
        }
        let answers = PeerId::random();
        book.learn(Source::Mdns, answers, vec![address("/ip4/10.0.0.2/tcp/1")]);
        assert!(book.chosen().contains(&answers));
    }

    #[test]
    fn who_the_file_names_is_kept_whoever_else_is_there() {
        let mut book = book_with_members(&[]);
        let named = PeerId::random();
        for peer in peers(MOST_KNOWN) {
            book.learn(Source::Dht, peer, vec![address("/ip4/192.0.2.1/tcp/1")]);
        }
        assert_eq!(book.known.len(), MOST_KNOWN);
        let file = BTreeMap::from([(named, vec![address("/ip4/10.0.0.1/tcp/1")])]);
        assert_eq!(book.set(Source::File, file.clone()), [named]);
        assert!(book.chosen().contains(&named));
        assert_eq!(book.set(Source::File, file), []);
        book.set(Source::File, BTreeMap::new());
        assert!(!book.chosen().contains(&named));
    }

    #[test]
    fn what_a_stranger_says_of_itself_counts_where_anybody_may_send_us() {
        let (stranger, member) = (PeerId::random(), PeerId::random());
        let mut book = book_with_members(&[member]);
        let (inner, public) = (
            address("/ip4/10.0.0.1/tcp/1"),
            address("/ip4/192.0.2.1/tcp/1"),
        );
        for peer in [stranger, member] {
            book.learn(Source::Identify, peer, vec![inner.clone(), public.clone()]);
        }
        assert_eq!(book.addresses(&stranger), std::slice::from_ref(&public));
        assert_eq!(book.addresses(&member), [inner, public]);
        book.disconnected(&stranger);
        book.disconnected(&member);
        assert_eq!(book.addresses(&stranger), Vec::<Multiaddr>::new());
        assert_eq!(book.addresses(&member).len(), 2);
    }

    #[test]
    fn a_peer_of_the_dht_that_never_answers_is_forgotten() {
        let mut book = book_with_members(&[]);
        let (dead, on_link) = (PeerId::random(), PeerId::random());
        book.learn(Source::Dht, dead, vec![address("/ip4/192.0.2.1/tcp/1")]);
        book.learn(Source::Mdns, on_link, vec![address("/ip4/10.0.0.1/tcp/1")]);
        for _ in 0..DHT_PATIENCE {
            book.failed(&dead);
            book.failed(&on_link);
        }
        assert_eq!(book.chosen(), BTreeSet::from([on_link]));
    }

    #[test]
    fn a_node_never_keeps_itself() {
        let local = PeerId::random();
        let mut book = Book::new(local);
        assert!(!book.learn(Source::File, local, vec![address("/ip4/192.0.2.1/tcp/1")]));
        assert_eq!(book.chosen(), BTreeSet::new());
    }
}
