//! How our own nodes keep their ledgers alike: changes are pushed along few links, and sums find what got lost.
//!
//! *Changes.* What is new is pushed at once to every neighbour but the one it came from. A neighbour that had it from
//! somebody else already asks for no more pushes while more than three links push, and after a few changes few links do:
//! each change comes to each node about twice.
//!
//! *Loss.* On connecting, and every `ledger.sync_interval`, less and less often while all is well, neighbours compare one
//! number, the sum over everything that has settled. If it differs, they walk down the tree of sums to what differs and
//! send each other that, and the link that knew better pushes again. Sums cost the same however much there is. While
//! things change, each node compares with one neighbour an interval, in turn: a node that no push reaches finds out.
//!
//! [`Exchange`] only decides. The caller
//! - calls [`Exchange::connected`] for each stream to a neighbour that is ready to carry messages, also again for a new
//!   stream to the same one, and [`Exchange::disconnected`];
//! - opens frames, decodes with [`Message::decode`], calls [`Exchange::handle`], and treats [`Handled::merged`] like any
//!   other merge;
//! - calls [`Exchange::spread`] with everything that changed otherwise: own writes, what gossip brought;
//! - calls [`Exchange::poll`] when [`Exchange::next_deadline`] has come;
//! - encodes, seals and sends what each of them returns, in order. A message that cannot be sent may be dropped.
//!
//! With ownership `off` there is nothing to exchange (whole blocks replace one another); everything here does nothing then.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Ledger, Merged, Ownership, Record, codec,
    tree::{FAN, Prefix},
};
use crate::id::{PeerId, UnixTime};

mod message;

pub use message::{Branch, DecodeError, Item, Listing, MAX_MESSAGE, Message, Why};

use message::{MAX_BRANCHES, MAX_ITEMS, MAX_WANTS, Packet, pack};

/// Below so many entries a node of the tree is listed and not split: a listing of them takes 800 bytes, the sums one level
/// down 130 and a round trip more.
const LISTED: usize = 32;

/// While sums agree, the pause between two comparisons doubles up to so many intervals.
const MOST_INTERVALS: u32 = 8;

/// Bytes of answers that a neighbour may draw at once and each second; more than a network of 10,000 members holds in
/// half a minute. A neighbour that asks for more, for the same again and again, is not answered.
const ANSWER_BURST: u64 = 4 << 20;
const ANSWER_RATE: u64 = 1 << 20;

/// Messages that one message is answered with at most. The rest is found at the next comparison.
const MAX_ANSWERS: usize = 8;

/// Nodes of the tree that one message may make us look at.
const MAX_OPENED: usize = 1_024;

/// While answers keep coming from one neighbour, nothing is asked of others: they would send the same.
const CATCHING_UP: Duration = Duration::from_secs(2);

/// When both sides compare at once, the one with the lower id goes on.
const BOTH_SPOKE: Duration = Duration::from_secs(2);

/// A change is looked for in the sums until so long after it: it settles after 20 s at most, and then once more.
const LOOK_AFTER: Duration = Duration::from_secs(30);

/// Links that push, at least, at each node that has so many neighbours. With one, the links are a tree in the end, but
/// changes of different authors come twice at different places of one cycle, each place takes its link out, and the network
/// is in pieces until sums find it: with 1,000 nodes all the time (docs/scale.md). Random links, three at each node, connect
/// everybody, and one lost message does no harm. Each change comes to each node twice, not once.
const KEPT: usize = 3;

/// No more than one link is taken out in this time: if all links that bring something second were taken out at
/// once, different ones for changes of different authors, the network would be in pieces.
const PRUNE_PAUSE: Duration = Duration::from_secs(1);

/// News that are remembered, to tell a neighbour that they came twice.
const RECENT: usize = 512;

/// Entries that the ledger refused are not asked for again until so many others have been refused.
const REFUSED: usize = 1_024;

/// Neighbours at most, as many as there are streams for.
const MAX_NEIGHBOURS: usize = 1_024;

/// The exchange of one node with its neighbours.
#[derive(Debug)]
pub struct Exchange {
    local: PeerId,
    interval: Duration,
    neighbours: HashMap<PeerId, Neighbour>,
    /// Hashes of entries that came as news.
    recent: Recent,
    /// Hashes of entries that the ledger does not take.
    refused: Recent,
    catching_up: Option<(PeerId, Instant)>,
    /// When something last changed here.
    changed: Option<Instant>,
    /// When the next neighbour's turn is, while things change.
    turn: Option<Instant>,
    pruned: Option<Instant>,
    random: u64,
}

#[derive(Debug)]
struct Neighbour {
    /// Whether changes are pushed to it.
    push: bool,
    /// When sums are compared next.
    due: Instant,
    pause: Duration,
    /// When we last sent our sum, unless an answer came.
    spoke: Option<Instant>,
    /// When either side last sent its sum.
    compared: Instant,
    /// Bytes of answers left, as of then.
    allowance: (u64, Instant),
}

/// A message to send.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub to: PeerId,
    pub message: Message,
}

/// What came of a message.
#[derive(Debug, Default)]
pub struct Handled {
    pub merged: Merged,
    pub outgoing: Vec<Outgoing>,
}

impl Exchange {
    /// `seed` spreads the comparisons of many nodes over time; it need not be secret.
    pub fn new(local: PeerId, interval: Duration, seed: u64) -> Self {
        Self {
            local,
            interval,
            neighbours: HashMap::new(),
            recent: Recent::new(RECENT),
            refused: Recent::new(REFUSED),
            catching_up: None,
            changed: None,
            turn: None,
            pruned: None,
            random: seed,
        }
    }

    /// `ledger.sync_interval`, from the next comparison on.
    pub fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }

    pub fn connected(
        &mut self,
        peer: PeerId,
        ledger: &mut Ledger,
        now: UnixTime,
        at: Instant,
    ) -> Vec<Outgoing> {
        let is_known = self.neighbours.contains_key(&peer);
        if peer == self.local || (!is_known && self.neighbours.len() >= MAX_NEIGHBOURS) {
            return Vec::new();
        }
        self.neighbours.insert(
            peer,
            Neighbour {
                push: true,
                due: at,
                pause: self.interval,
                spoke: None,
                compared: at,
                allowance: (ANSWER_BURST, at),
            },
        );
        let mut outgoing = Vec::new();
        self.compare(peer, ledger, now, at, &mut outgoing);
        // What has not settled is in no sum yet, and went out before this neighbour was there to hear it.
        if ledger.terms.ownership != Ownership::Off {
            let is_young =
                |record: &&Arc<Record>| !ledger.tree.is_settled(record.entry().updated_at);
            let young = ledger.items.values().filter(is_young).cloned();
            for message in pack(young, Why::Answer) {
                self.send_answer(peer, message, at, &mut outgoing);
            }
        }
        outgoing
    }

    pub fn disconnected(&mut self, peer: &PeerId, at: Instant) {
        let Some(gone) = self.neighbours.remove(peer) else {
            return;
        };
        if gone.push {
            // It may have been our only way to hear of changes.
            self.compare_soon(None, at);
        }
    }

    /// Tells neighbours of what changed otherwise than through [`Exchange::handle`].
    pub fn spread(
        &mut self,
        changed: &[Arc<Record>],
        ledger: &Ledger,
        at: Instant,
    ) -> Vec<Outgoing> {
        let mut outgoing = Vec::new();
        if ledger.terms.ownership != Ownership::Off {
            self.pass_on(changed, None, ledger, at, &mut outgoing);
        }
        outgoing
    }

    /// Compares sums with the neighbours whose turn it is.
    pub fn poll(&mut self, ledger: &mut Ledger, now: UnixTime, at: Instant) -> Vec<Outgoing> {
        let mut outgoing = Vec::new();
        if self.turn.is_some_and(|turn| turn <= at) {
            self.take_turn(at);
        }
        let due: Vec<PeerId> = self
            .neighbours
            .iter()
            .filter(|(_, neighbour)| neighbour.due <= at)
            .map(|(peer, _)| *peer)
            .collect();
        if self.neighbours().1 == 0 {
            // The neighbours that had asked for pushes are gone.
            let all: Vec<PeerId> = self.neighbours.keys().copied().collect();
            for peer in all {
                self.set_push(peer, true, &mut outgoing);
            }
        }
        for peer in due {
            self.compare(peer, ledger, now, at, &mut outgoing);
        }
        outgoing
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.neighbours
            .values()
            .map(|neighbour| neighbour.due)
            .chain(self.turn)
            .min()
    }

    /// Neighbours, and to how many of them changes are pushed.
    pub fn neighbours(&self) -> (usize, usize) {
        let pushed = |neighbour: &&Neighbour| neighbour.push;
        (
            self.neighbours.len(),
            self.neighbours.values().filter(pushed).count(),
        )
    }

    pub fn handle(
        &mut self,
        from: PeerId,
        message: Message,
        ledger: &mut Ledger,
        now: UnixTime,
        at: Instant,
    ) -> Handled {
        let mut handled = Handled::default();
        let out = &mut handled.outgoing;
        // The last words of a neighbour that is gone are heard, not answered.
        let is_heard =
            self.neighbours.contains_key(&from) || matches!(message, Message::Entries { .. });
        if ledger.terms.ownership == Ownership::Off || !is_heard {
            return handled;
        }
        ledger.advance(now);
        match message {
            Message::Summary { step, root } => {
                if ledger.tree.root_at(step) == root {
                    self.agree(&from, at);
                } else if self.may_ask(&from, at) {
                    self.open(from, vec![Prefix::ROOT], ledger, at, out);
                }
            }
            Message::Branches(branches) => {
                if self.may_ask(&from, at) {
                    let differing = branches.iter().flat_map(|branch| differing(branch, ledger));
                    let differing = differing.take(MAX_OPENED).collect();
                    self.open(from, differing, ledger, at, out);
                }
            }
            Message::Listings(listings) => self.answer(from, &listings, ledger, at, out),
            Message::Want(ids) => {
                let records = ids.iter().filter_map(|id| ledger.by_short_id(*id).cloned());
                for message in pack(records, Why::Answer).into_iter().take(MAX_ANSWERS) {
                    self.send_answer(from, message, at, out);
                }
            }
            Message::Fetch { below, from: first } => {
                let message = fetch(ledger, below, first);
                self.send_answer(from, message, at, out);
            }
            Message::Entries { entries, why, next } => {
                handled.merged = self.take(from, entries, why, ledger, now, at, out);
                if let Some((below, first)) = next
                    && self.neighbours.contains_key(&from)
                {
                    let message = Message::Fetch { below, from: first };
                    out.push(Outgoing { to: from, message });
                }
            }
            Message::Push(true) => {
                if let Some(neighbour) = self.neighbours.get_mut(&from) {
                    neighbour.push = true;
                }
            }
            Message::Push(false) => {
                let others = |(peer, one): &(&PeerId, &Neighbour)| **peer != from && one.push;
                let is_needed = self.neighbours.iter().filter(others).count() < KEPT;
                if is_needed {
                    // Without this link too few would hear of our changes.
                    self.set_push(from, true, out);
                } else if let Some(neighbour) = self.neighbours.get_mut(&from) {
                    neighbour.push = false;
                }
            }
        }
        handled
    }

    /// While things change: makes the neighbour due that was not compared with for the longest time.
    fn take_turn(&mut self, at: Instant) {
        let changing = self
            .changed
            .is_some_and(|changed| at < changed + LOOK_AFTER);
        let spread = self.draw();
        self.turn = changing.then(|| at + jittered(self.interval, spread));
        let next = self
            .neighbours
            .values_mut()
            .min_by_key(|neighbour| neighbour.compared);
        if let Some(neighbour) = next {
            neighbour.due = at;
        }
    }

    /// Sends our sum and says when to do so again.
    fn compare(
        &mut self,
        peer: PeerId,
        ledger: &mut Ledger,
        now: UnixTime,
        at: Instant,
        out: &mut Vec<Outgoing>,
    ) {
        ledger.advance(now);
        let most = self.interval.saturating_mul(MOST_INTERVALS);
        let spread = self.draw();
        let Some(neighbour) = self.neighbours.get_mut(&peer) else {
            return;
        };
        neighbour.due = at + jittered(neighbour.pause, spread);
        // No answer means agreement.
        neighbour.pause = neighbour.pause.saturating_mul(2).min(most);
        neighbour.spoke = Some(at);
        neighbour.compared = at;
        if ledger.terms.ownership != Ownership::Off {
            out.push(Outgoing {
                to: peer,
                message: Message::Summary {
                    step: ledger.tree.step(),
                    root: ledger.tree.root(),
                },
            });
        }
    }

    /// The neighbour holds what we hold; it has just said so, we need not.
    fn agree(&mut self, peer: &PeerId, at: Instant) {
        let most = self.interval.saturating_mul(MOST_INTERVALS);
        let spread = self.draw();
        if let Some(neighbour) = self.neighbours.get_mut(peer) {
            neighbour.due = at + jittered(neighbour.pause, spread);
            neighbour.pause = neighbour.pause.saturating_mul(2).min(most);
            neighbour.compared = at;
        }
    }

    /// The neighbour holds something else. Whether to look into that now.
    fn may_ask(&mut self, peer: &PeerId, at: Instant) -> bool {
        let (interval, spread) = (self.interval, self.draw());
        let busy = self
            .catching_up
            .is_some_and(|(with, since)| with != *peer && at < since + CATCHING_UP);
        let local = self.local;
        let Some(neighbour) = self.neighbours.get_mut(peer) else {
            return false;
        };
        neighbour.pause = interval;
        if busy {
            neighbour.due = at + CATCHING_UP + jittered(CATCHING_UP, spread);
            return false;
        }
        let both = neighbour
            .spoke
            .take()
            .is_some_and(|spoke| at < spoke + BOTH_SPOKE);
        !(both && *peer < local)
    }

    /// Shows the neighbour what we hold below these nodes: everything where that is little, else the sums one level down.
    fn open(
        &mut self,
        to: PeerId,
        prefixes: Vec<Prefix>,
        ledger: &Ledger,
        at: Instant,
        out: &mut Vec<Outgoing>,
    ) {
        let (mut branches, mut listings) = (Vec::new(), Vec::new());
        for prefix in prefixes {
            let few = ledger.below(prefix, 0).take(LISTED + 1).count() <= LISTED;
            match ledger.tree.children(prefix) {
                Some(sums) if !few => branches.push(Branch { at: prefix, sums }),
                _ => listings.push(Listing {
                    at: prefix,
                    items: ledger.below(prefix, 0).take(MAX_ITEMS).map(item).collect(),
                }),
            }
        }
        for chunk in branches.chunks(MAX_BRANCHES) {
            self.send_answer(to, Message::Branches(chunk.to_vec()), at, out);
        }
        for message in pack_listings(listings) {
            self.send_answer(to, message, at, out);
        }
    }

    /// Compares the neighbour's listings with what we hold: sends what it lacks, asks for what we lack.
    fn answer(
        &mut self,
        to: PeerId,
        listings: &[Listing],
        ledger: &Ledger,
        at: Instant,
        out: &mut Vec<Outgoing>,
    ) {
        let mut wants = Vec::new();
        let mut packet = Packet::default();
        let mut packets = Vec::new();
        let mut next = None;
        for listing in listings.iter().take(MAX_OPENED) {
            let mut theirs: HashMap<u64, &Item> =
                listing.items.iter().map(|item| (item.id, item)).collect();
            for record in ledger.all_below(listing.at, 0) {
                let id = record.id().short();
                let give = match theirs.remove(&id) {
                    // A tombstone matters to those only that hold what it buries.
                    None => !record.entry().deleted,
                    Some(_) if record.entry().deleted => true,
                    Some(item) if item.hash == super::living_hash(record) => false,
                    Some(item) => {
                        let ours = record.entry().version;
                        if ours <= item.version && !self.refused.has(item.hash) {
                            wants.push(id);
                        }
                        ours >= item.version
                    }
                };
                if !give {
                    continue;
                }
                if !packet.fits(record) {
                    if packets.len() + 1 >= MAX_ANSWERS {
                        next = next.or(Some((listing.at, id)));
                        break;
                    }
                    packets.push(std::mem::take(&mut packet));
                }
                packet.add(record.clone());
            }
            wants.extend(
                theirs
                    .into_values()
                    .filter(|item| !self.refused.has(item.hash))
                    .map(|item| item.id),
            );
        }
        if !packet.is_empty() {
            packets.push(packet);
        }
        let last = packets.len().saturating_sub(1);
        for (nth, packet) in packets.into_iter().enumerate() {
            let next = next.filter(|_| nth == last);
            self.send_answer(to, packet.into_message(Why::Answer, next), at, out);
        }
        for chunk in wants.chunks(MAX_WANTS).take(MAX_ANSWERS) {
            out.push(Outgoing {
                to,
                message: Message::Want(chunk.to_vec()),
            });
        }
    }

    /// Merges entries, passes on what was new, and learns which links bring news first.
    #[expect(
        clippy::too_many_arguments,
        reason = "all of them are what one message is about"
    )]
    fn take(
        &mut self,
        from: PeerId,
        entries: Vec<Arc<Record>>,
        why: Why,
        ledger: &mut Ledger,
        now: UnixTime,
        at: Instant,
        out: &mut Vec<Outgoing>,
    ) -> Merged {
        let hashes: Vec<u64> = entries.iter().map(|record| record.hash()).collect();
        let merged = ledger.merge_records(entries.clone(), now);
        let new: HashSet<u64> = merged.changed.iter().map(|record| record.hash()).collect();
        match why {
            Why::News if new.is_empty() => {
                let twice = !hashes.is_empty() && hashes.iter().all(|hash| self.recent.has(*hash));
                // The last links that push are kept, whatever comes over them.
                let is_pushed = |peer| self.neighbours.get(peer).is_some_and(|one| one.push);
                let rested = self.pruned.is_none_or(|pruned| at >= pruned + PRUNE_PAUSE);
                if twice && rested && is_pushed(&from) && self.neighbours().1 > KEPT {
                    self.pruned = Some(at);
                    self.set_push(from, false, out);
                }
            }
            Why::News => {}
            Why::Answer if new.is_empty() => {}
            Why::Answer => {
                self.catching_up = Some((from, at));
                if let Some(neighbour) = self.neighbours.get_mut(&from)
                    && !neighbour.push
                {
                    self.set_push(from, true, out);
                }
            }
        }
        for record in &entries {
            if new.contains(&record.hash()) {
                self.recent.add(record.hash());
            } else if ledger.is_settled_against(record) {
                self.refused.add(super::living_hash(record));
            }
        }
        self.pass_on(&merged.changed, Some(from), ledger, at, out);
        merged
    }

    /// Sends what is on its way to settling; for what is older, compares sums with the others soon.
    fn pass_on(
        &mut self,
        changed: &[Arc<Record>],
        except: Option<PeerId>,
        ledger: &Ledger,
        at: Instant,
        out: &mut Vec<Outgoing>,
    ) {
        if changed.is_empty() {
            return;
        }
        self.changed = Some(at);
        if self.turn.is_none() {
            let spread = self.draw();
            self.turn = Some(at + jittered(self.interval, spread));
        }
        let is_old = |record: &&Arc<Record>| ledger.tree.is_settled(record.entry().updated_at);
        if changed.iter().any(|record| is_old(&record)) {
            self.compare_soon(except, at);
        }
        let news: Vec<_> = changed
            .iter()
            .filter(|record| !is_old(record))
            .cloned()
            .collect();
        if news.is_empty() {
            return;
        }
        let messages = pack(news, Why::News);
        let to_all = self.neighbours().1 == 0;
        for (peer, neighbour) in &self.neighbours {
            if (neighbour.push || to_all) && Some(*peer) != except {
                out.extend(messages.iter().map(|message| Outgoing {
                    to: *peer,
                    message: message.clone(),
                }));
            }
        }
    }

    /// Within a second, but not again before an interval has passed.
    fn compare_soon(&mut self, except: Option<PeerId>, at: Instant) {
        let interval = self.interval;
        let mut random = self.random;
        for (peer, neighbour) in &mut self.neighbours {
            if Some(*peer) == except {
                continue;
            }
            random = next_random(random);
            let soon = at + jittered(Duration::from_millis(500), random);
            let rested = neighbour.spoke.map_or(soon, |spoke| spoke + interval);
            neighbour.pause = interval;
            neighbour.due = neighbour.due.min(soon.max(rested));
        }
        self.random = random;
    }

    fn set_push(&mut self, peer: PeerId, on: bool, out: &mut Vec<Outgoing>) {
        if let Some(neighbour) = self.neighbours.get_mut(&peer) {
            neighbour.push = on;
            out.push(Outgoing {
                to: peer,
                message: Message::Push(on),
            });
        }
    }

    /// Sends if the neighbour has not drawn too much.
    fn send_answer(&mut self, to: PeerId, message: Message, at: Instant, out: &mut Vec<Outgoing>) {
        let cost = weight(&message);
        let Some(neighbour) = self.neighbours.get_mut(&to) else {
            return;
        };
        let (left, since) = neighbour.allowance;
        let passed = u64::try_from(at.saturating_duration_since(since).as_millis());
        let refilled = passed.unwrap_or(u64::MAX).saturating_mul(ANSWER_RATE) / 1000;
        let left = left.saturating_add(refilled).min(ANSWER_BURST);
        neighbour.allowance = match left.checked_sub(cost) {
            Some(left) => {
                out.push(Outgoing { to, message });
                (left, at)
            }
            None => (left, at),
        };
    }

    fn draw(&mut self) -> u64 {
        self.random = next_random(self.random);
        self.random
    }
}

/// Children whose sums differ from ours.
fn differing(branch: &Branch, ledger: &Ledger) -> Vec<Prefix> {
    let Some(ours) = ledger.tree.children(branch.at) else {
        return Vec::new();
    };
    (0..FAN as u16)
        .zip(ours.iter().zip(&branch.sums))
        .filter(|(_, (ours, theirs))| ours != theirs)
        .filter_map(|(digit, _)| branch.at.child(digit))
        .collect()
}

/// One message full of what lives below a node of the tree, from an id on.
fn fetch(ledger: &Ledger, below: Prefix, from: u64) -> Message {
    let mut packet = Packet::default();
    for record in ledger.below(below, from) {
        if !packet.fits(record) {
            let next = Some((below, record.id().short()));
            return packet.into_message(Why::Answer, next);
        }
        packet.add(record.clone());
    }
    packet.into_message(Why::Answer, None)
}

fn item(record: &Arc<Record>) -> Item {
    Item {
        id: record.id().short(),
        version: record.entry().version,
        hash: super::living_hash(record),
    }
}

/// Listings as messages, each within its bounds.
fn pack_listings(listings: Vec<Listing>) -> Vec<Message> {
    let mut messages = Vec::new();
    let (mut chunk, mut items) = (Vec::new(), 0);
    for listing in listings {
        // A listing counts as an item more: it has a head.
        let size = listing.items.len() + 1;
        if items + size > MAX_ITEMS && !chunk.is_empty() {
            messages.push(Message::Listings(std::mem::take(&mut chunk)));
            items = 0;
        }
        items += size;
        chunk.push(listing);
    }
    if !chunk.is_empty() {
        messages.push(Message::Listings(chunk));
    }
    messages
}

/// About how many bytes a message takes.
fn weight(message: &Message) -> u64 {
    let bytes = match message {
        Message::Branches(branches) => branches.len() * (3 + 8 * FAN),
        Message::Listings(listings) => listings
            .iter()
            .map(|listing| 5 + 24 * listing.items.len())
            .sum(),
        Message::Entries { entries, .. } => {
            entries.iter().map(|record| codec::length(record)).sum()
        }
        Message::Summary { .. } | Message::Want(_) | Message::Fetch { .. } | Message::Push(_) => 0,
    };
    bytes as u64 + 20
}

/// Between three quarters and five quarters of it.
fn jittered(pause: Duration, random: u64) -> Duration {
    let share = u32::try_from(random >> 44).unwrap_or(0); // 20 bits
    pause.saturating_mul(3) / 4 + (pause / 2).saturating_mul(share >> 4) / (1 << 16)
}

/// Splitmix64: <https://prng.di.unimi.it/splitmix64.c>.
fn next_random(state: u64) -> u64 {
    let mut mixed = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The last so many of something.
#[derive(Debug)]
struct Recent {
    most: usize,
    order: VecDeque<u64>,
    known: HashSet<u64>,
}

impl Recent {
    fn new(most: usize) -> Self {
        Self {
            most,
            order: VecDeque::new(),
            known: HashSet::new(),
        }
    }

    fn has(&self, hash: u64) -> bool {
        self.known.contains(&hash)
    }

    fn add(&mut self, hash: u64) {
        if !self.known.insert(hash) {
            return;
        }
        if self.order.len() >= self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back(hash);
    }
}

impl Ledger {
    /// What lives below a node of the tree, from an id on, in the order of ids.
    fn below(&self, prefix: Prefix, from: u64) -> impl Iterator<Item = &Arc<Record>> {
        self.all_below(prefix, from)
            .filter(|record| !record.entry().deleted)
    }

    /// The same with tombstones.
    fn all_below(&self, prefix: Prefix, from: u64) -> impl Iterator<Item = &Arc<Record>> {
        let (first, last) = prefix.range();
        self.between(first.max(from), last)
    }

    fn by_short_id(&self, id: u64) -> Option<&Arc<Record>> {
        self.between(id, id).next()
    }

    fn between(&self, first: u64, last: u64) -> impl Iterator<Item = &Arc<Record>> {
        let first = super::Id(u128::from(first) << 64);
        let last = super::Id(u128::from(last) << 64 | u128::from(u64::MAX));
        // An empty range, where `first` lies behind `last`, is asked for by nobody honest; BTreeMap would panic at it.
        (first <= last)
            .then(|| self.items.range(first..=last))
            .into_iter()
            .flatten()
            .map(|(_, record)| record)
    }

    /// Whether this node holds something else in place of the record and will not change its mind because time passes.
    fn is_settled_against(&self, record: &Record) -> bool {
        self.items
            .get(&record.id())
            .is_none_or(|held| held.entry() != record.entry())
            && self.tree.is_settled(record.entry().updated_at)
    }
}
