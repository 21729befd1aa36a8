//! The shared ledger: buckets of entries that every member holds a copy of, merged without coordination.
//!
//! [`Ledger`] is one copy: it merges what others send, writes what this node says, knows who is a member, and forgets what
//! is long dead. [`Exchange`] keeps the copies of our own nodes alike at a cost that depends on what changes and not on how
//! much there is. Both are pure: `now` is an argument, messages go in and come out.
//!
//! The rules are EdgeVPN's (design notes, wire.md 6 and 7), so that a copy held here and a copy held by a Go node agree.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use libp2p::identity::Keypair;
use serde::{Deserialize, Serialize};

use crate::{
    id::{PeerId, UnixTime},
    wire::{Block, Entry, Storage},
};

mod bucket;
mod codec;
mod exchange;
mod liveness;
mod merge;
mod node;
mod quota;
mod record;
mod state;
mod tree;

pub use bucket::Bucket;
pub use exchange::{DecodeError, Exchange, Handled, MAX_MESSAGE, Message, Outgoing};
pub use liveness::{CLOCK_SKEW, NotMember};
pub use merge::{Merged, Rejection, Sample};
pub use node::{MAX_ADDRESSES, Node};
pub use quota::{MAX_BYTES, MAX_ENTRIES, MAX_KEY, MAX_OTHER_BUCKETS, MAX_VALUE};
pub use record::Record;
pub use state::StateError;

use bucket::Policy;
use liveness::Roster;
use quota::Usage;
use record::Id;
use tree::Tree;

/// `ledger.ownership`: what is asked of an entry before it is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ownership {
    /// Nothing; whole blocks replace one another.
    Off,
    /// Rules are evaluated and reported, never enforced.
    Observe,
    /// What breaks a rule is not merged.
    Enforce,
}

/// What the ledger goes by; from `[ledger]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    pub ownership: Ownership,
    /// How long a heartbeat keeps its peer alive.
    pub ttl: Duration,
    /// For each author, all buckets together, tombstones included.
    pub quota_entries: u32,
    /// Bytes, likewise.
    pub quota_bytes: u64,
}

/// How long something dead is kept: a tombstone after it was written, entries of a peer after its last heartbeat. As long
/// as that a partition may last without anything deleted coming back; every node forgets at the same full minute, so that
/// nobody hands back what others just forgot.
pub const KEPT: Duration = Duration::from_secs(3 * 3600);

/// Seconds between two looks for what can be forgotten.
const SWEEP: u64 = 60;

/// An own entry that others overwrote is not written anew within this of its last writing, so that nobody can make us write
/// without end.
const REASSERT_PAUSE: Duration = Duration::from_secs(10);

/// One copy of the ledger.
#[derive(Debug)]
pub struct Ledger {
    local: PeerId,
    /// `local` as entries write it.
    local_text: String,
    terms: Terms,
    items: BTreeMap<Id, Arc<Record>>,
    usage: Usage,
    roster: Roster,
    tree: Tree,
    /// The block that was last written or, with ownership `off`, adopted.
    envelope: Envelope,
    /// Something changed since.
    unsealed: bool,
    adopted_at: Option<UnixTime>,
    /// Why heartbeats were not taken.
    refused: HashMap<Id, NotMember>,
    /// The latest time anybody told us.
    clock: UnixTime,
    swept: u64,
}

impl Ledger {
    pub fn new(local: PeerId, terms: Terms) -> Self {
        Self {
            local,
            local_text: local.to_base58(),
            terms,
            items: BTreeMap::new(),
            usage: Usage::default(),
            roster: Roster::default(),
            tree: Tree::default(),
            envelope: Envelope::genesis(),
            unsealed: false,
            adopted_at: None,
            refused: HashMap::new(),
            clock: UnixTime::default(),
            swept: 0,
        }
    }

    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Holds from now on; what was merged under the old terms stays.
    pub fn set_terms(&mut self, terms: Terms, now: UnixTime) {
        self.advance(now);
        if self.terms == terms {
            return;
        }
        self.terms = terms;
        let mut usage = Usage::default();
        for record in self.items.values() {
            usage.add(self.account(record), record);
        }
        self.usage = usage;
        self.rebuild_roster(now);
    }

    /// Writes an entry of this node, signed unless ownership is `off`. False when nothing changed: it stands there already, or
    /// others would not take it from us (the key belongs to a peer that is alive, a quota is full).
    pub fn put(
        &mut self,
        bucket: &str,
        key: &str,
        value: &str,
        keypair: &Keypair,
        now: UnixTime,
    ) -> bool {
        self.advance(now);
        let bucket = Bucket::named(bucket);
        let held = self.items.get(&Id::of(&bucket, key));
        let unchanged = held.is_some_and(|held| {
            let entry = held.entry();
            let signed = match self.terms.ownership {
                Ownership::Off => true,
                Ownership::Observe | Ownership::Enforce => {
                    entry.owner == self.local_text && !entry.signature.is_empty()
                }
            };
            signed && !entry.deleted && entry.value == value
        });
        !unchanged && self.write(bucket, key, Some(value), keypair, now).is_some()
    }

    /// Deletes an entry of this node. False when there is none.
    pub fn delete(&mut self, bucket: &str, key: &str, keypair: &Keypair, now: UnixTime) -> bool {
        self.advance(now);
        let bucket = Bucket::named(bucket);
        let id = Id::of(&bucket, key);
        let Some(held) = self.items.get(&id).filter(|held| !held.entry().deleted) else {
            return false;
        };
        if self.terms.ownership == Ownership::Off {
            return self.remove(id).is_some();
        }
        held.owner() == self.local_text && self.write(bucket, key, None, keypair, now).is_some()
    }

    /// Deletes everything this node has written: it is about to stop.
    pub fn withdraw(&mut self, keypair: &Keypair, now: UnixTime) -> Vec<Arc<Record>> {
        self.advance(now);
        let own: Vec<_> = self
            .items
            .values()
            .filter(|held| held.entry().owner == self.local_text && !held.entry().deleted)
            .cloned()
            .collect();
        own.into_iter()
            .filter_map(|held| self.write(held.bucket().clone(), held.key(), None, keypair, now))
            .collect()
    }

    /// Writes entries of [`Merged::contested`] anew, with a version above what others hold in their place.
    pub fn reassert(
        &mut self,
        contested: &[Arc<Record>],
        keypair: &Keypair,
        now: UnixTime,
    ) -> Vec<Arc<Record>> {
        self.advance(now);
        let mut written = Vec::new();
        for record in contested {
            let updated = u64::try_from(record.entry().updated_at).unwrap_or(0);
            let rested = now.since(UnixTime::from_secs(updated)) >= REASSERT_PAUSE;
            let stands = self
                .items
                .get(&record.id())
                .is_some_and(|held| held.entry() == record.entry() && !held.entry().deleted);
            if rested && stands {
                let bucket = record.bucket().clone();
                let value = Some(record.entry().value.as_str());
                written.extend(self.write(bucket, record.key(), value, keypair, now));
            }
        }
        written
    }

    /// Forgets what is long dead and lets heartbeats begin and lapse. Returns what was forgotten. Due at
    /// [`Ledger::next_deadline`]; later is harmless.
    pub fn maintain(&mut self, now: UnixTime) -> Vec<Arc<Record>> {
        self.advance(now);
        let minute = now.as_secs() / SWEEP;
        if minute == self.swept {
            return Vec::new();
        }
        self.swept = minute;
        let mut forgotten = Vec::new();
        // Heartbeats first: entries of their owners live as long as they do.
        for heartbeats in [true, false] {
            let due: Vec<Id> = self
                .items
                .values()
                .filter(|record| (*record.bucket() == Bucket::Healthcheck) == heartbeats)
                .filter(|record| {
                    is_forgotten(record, now, |owner| {
                        self.items
                            .contains_key(&Id::of(&Bucket::Healthcheck, owner))
                    })
                })
                .map(|record| record.id())
                .collect();
            forgotten.extend(due.into_iter().filter_map(|id| self.remove(id)));
        }
        forgotten
    }

    /// When [`Ledger::maintain`] has something to do.
    pub fn next_deadline(&self) -> Option<UnixTime> {
        let sweep = (!self.items.is_empty())
            .then(|| UnixTime::from_secs(self.swept.saturating_add(1).saturating_mul(SWEEP)));
        [self.roster.next_deadline(), sweep]
            .into_iter()
            .flatten()
            .min()
    }

    /// What EdgeVPN peers are sent: everything but our own bucket `nodes`, which they do not know.
    pub fn block(&mut self, now: UnixTime) -> Block {
        self.advance(now);
        self.seal(now);
        Block {
            index: self.envelope.index,
            timestamp: self.envelope.timestamp.clone(),
            storage: self.storage(),
            hash: self.envelope.hash.clone(),
            previous_hash: self.envelope.previous_hash.clone(),
        }
    }

    /// Members with the times of their heartbeats, and peers that withdrew theirs. A member has a heartbeat that it signed and
    /// did not delete, whose own time and `UpdatedAt` are younger than the TTL and at most [`CLOCK_SKEW`] ahead. Never this
    /// node itself.
    pub fn membership(&self, now: UnixTime) -> (HashMap<PeerId, UnixTime>, HashSet<PeerId>) {
        self.roster.members(&self.local, self.terms.ttl, now)
    }

    /// Differs from before when somebody became a member, ceased to be one or withdrew; renewed heartbeats do not count.
    /// Time passes only with the `now` of other calls.
    pub fn membership_revision(&self) -> u64 {
        self.roster.revision()
    }

    /// `None`: it is a member.
    pub fn why_not_member(&self, peer: &PeerId, now: UnixTime) -> Option<NotMember> {
        if *peer == self.local {
            return Some(NotMember::Itself);
        }
        let id = Id::of(&Bucket::Healthcheck, &peer.to_base58());
        let Some(record) = self.items.get(&id) else {
            return Some(self.refused.get(&id).copied().unwrap_or(NotMember::Unknown));
        };
        let entry = record.entry();
        if entry.signature.is_empty() {
            return Some(NotMember::Unsigned);
        }
        let is_own = entry.owner == record.key();
        match (record.is_signed(), entry.deleted) {
            (true, true) if is_own => return Some(NotMember::Withdrawn),
            (true, true) => return Some(NotMember::Buried),
            (true, false) if is_own => {}
            (true | false, _) => return Some(NotMember::BadSignature),
        }
        match record.beat() {
            None => Some(NotMember::Unreadable),
            Some(beat) => beat.fault(self.terms.ttl, now),
        }
    }

    /// The entry at that place, tombstones included.
    pub fn get(&self, bucket: &str, key: &str) -> Option<&Arc<Record>> {
        self.items.get(&Id::of(&Bucket::named(bucket), key))
    }

    /// What a member tells about itself; `None` once it deleted that.
    pub fn node(&self, peer: &PeerId) -> Option<Node> {
        let record = self.get(Bucket::Nodes.name(), &peer.to_base58())?;
        if record.entry().deleted || !record.is_signed() {
            return None;
        }
        Node::read(record.key(), &record.entry().value)
    }

    /// All entries, tombstones included, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.items.values()
    }

    pub fn size(&self) -> Size {
        Size {
            entries: self.usage.entries(),
            bytes: self.usage.bytes(),
        }
    }

    /// Makes an entry of ours and puts it in place. `None` as value: a tombstone.
    fn write(
        &mut self,
        bucket: Bucket,
        key: &str,
        value: Option<&str>,
        keypair: &Keypair,
        now: UnixTime,
    ) -> Option<Arc<Record>> {
        let mut entry = Entry {
            value: value.unwrap_or_default().to_owned(),
            deleted: value.is_none(),
            ..Entry::default()
        };
        if self.terms.ownership != Ownership::Off {
            let held = self.items.get(&Id::of(&bucket, key));
            // What we once wrote with a clock far ahead, nobody has taken.
            let before = held.filter(|held| !merge::is_ahead(held, now));
            entry.version = before
                .map_or(0, |held| held.entry().version.saturating_add(1))
                .max(now.as_nanos());
            entry.updated_at = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
            entry.sign(bucket.name(), key, keypair).ok()?;
            if entry.owner != self.local_text {
                return None;
            }
        }
        let record = Record::new(bucket, key, entry);
        self.accept_own(&record, now).then_some(record)
    }

    /// Puts a record in the place of whatever is there.
    fn insert(&mut self, record: Arc<Record>) {
        let id = record.id();
        let held = self.items.insert(id, record.clone());
        // In this order, so that an author's account is not forgotten in between.
        self.usage.add(self.account(&record), &record);
        if let Some(held) = &held {
            self.usage.remove(self.account(held), held);
        }
        self.tree.change(
            id,
            held.as_deref().map_or(0, living_hash),
            living_hash(&record),
            record.entry().updated_at,
        );
        if *record.bucket() == Bucket::Healthcheck {
            let ttl = self.terms.ttl;
            self.roster
                .replace(held.as_ref(), Some(&record), ttl, self.clock);
            self.refused.remove(&id);
        }
        self.unsealed = true;
    }

    fn remove(&mut self, id: Id) -> Option<Arc<Record>> {
        let held = self.items.remove(&id)?;
        self.usage.remove(self.account(&held), &held);
        self.tree.change(id, living_hash(&held), 0, 0);
        if *held.bucket() == Bucket::Healthcheck {
            let ttl = self.terms.ttl;
            self.roster.replace(Some(&held), None, ttl, self.clock);
        }
        self.unsealed = true;
        Some(held)
    }

    /// Time passes.
    fn advance(&mut self, now: UnixTime) {
        // A step back by less than a second is no step; a heartbeat does not count in finer units.
        let stepped_back = now.saturating_add(Duration::from_secs(1)) < self.clock;
        self.clock = now;
        self.tree.advance(now);
        if stepped_back {
            self.rebuild_roster(now);
        }
        self.roster.advance(self.terms.ttl, now);
    }

    fn rebuild_roster(&mut self, now: UnixTime) {
        let heartbeats = self
            .items
            .values()
            .filter(|record| *record.bucket() == Bucket::Healthcheck);
        self.roster.rebuild(heartbeats, self.terms.ttl, now);
    }

    /// Makes a new block of what changed.
    fn seal(&mut self, now: UnixTime) {
        if !self.unsealed {
            return;
        }
        self.unsealed = false;
        let block = Block {
            index: self.envelope.index.saturating_add(1),
            timestamp: timestamp(now),
            storage: self.storage(),
            previous_hash: std::mem::take(&mut self.envelope.hash),
            hash: String::new(),
        };
        self.envelope = Envelope {
            hash: block.checksum(),
            ..Envelope::of(&block)
        };
    }

    fn storage(&self) -> Storage {
        let mut storage = Storage::new();
        for record in self.items.values() {
            if *record.bucket() != Bucket::Nodes {
                storage
                    .entry(record.bucket().name().to_owned())
                    .or_default()
                    .insert(record.key().to_owned(), record.entry().clone());
            }
        }
        storage
    }
}

/// How much there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Tombstones included.
    pub entries: usize,
    /// Of texts and signatures.
    pub bytes: u64,
}

/// A block without its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Envelope {
    index: i64,
    timestamp: String,
    hash: String,
    previous_hash: String,
}

impl Envelope {
    /// Index 0 and nothing in it.
    fn genesis() -> Envelope {
        Envelope::of(&Block {
            hash: Block::default().checksum(),
            ..Block::default()
        })
    }

    fn of(block: &Block) -> Envelope {
        Envelope {
            index: block.index,
            timestamp: block.timestamp.clone(),
            hash: block.hash.clone(),
            previous_hash: block.previous_hash.clone(),
        }
    }
}

/// A tombstone is nothing that lives: a node that never had the entry does not miss it.
fn living_hash(record: &Record) -> u64 {
    match record.entry().deleted {
        true => 0,
        // Zero stands for nothing.
        false => record.hash().max(1),
    }
}

/// Whether a record is one that nobody keeps any longer: [`KEPT`] after it was written it is a tombstone, a heartbeat, or an
/// entry whose owner `beats` no more.
fn is_forgotten(record: &Record, now: UnixTime, beats: impl Fn(&str) -> bool) -> bool {
    let entry = record.entry();
    let minute = UnixTime::from_secs(now.as_secs() / SWEEP * SWEEP);
    let oldest = minute.saturating_sub(KEPT).as_secs();
    if u64::try_from(entry.updated_at).is_ok_and(|updated| updated >= oldest) {
        return false;
    }
    match (record.bucket(), record.bucket().policy()) {
        _ if entry.deleted => true,
        // Unsigned entries have no date.
        _ if entry.signature.is_empty() => false,
        (Bucket::Healthcheck, Policy::Owned(_)) => true,
        (_, Policy::Owned(_)) => !beats(&record.owner()),
        (_, Policy::Open) => false,
    }
}

/// Time as the reference writes it into blocks: UTC, nanoseconds without trailing zeros.
fn timestamp(now: UnixTime) -> String {
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let time = time::OffsetDateTime::from_unix_timestamp(seconds)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let fraction = format!("{:09}", now.0.subsec_nanos());
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}{point}{fraction} +0000 UTC",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second(),
    )
}
