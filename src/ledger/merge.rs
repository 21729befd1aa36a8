//! Which incoming entries are taken: the rules of EdgeVPN (wire.md 6.5 and 6.6), bounded.
//!
//! Ours beyond them: nothing dated more than [`CLOCK_SKEW`] ahead (a version of the far future would lock its key for ever,
//! a heartbeat of the far future would never lapse), quotas for each author, caps on everything, nothing that every node
//! has forgotten already, and cheap rules before the signature.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    sync::Arc,
};

use super::{
    Ledger, Ownership,
    bucket::{Bucket, OwnerIs, Policy},
    liveness::{CLOCK_SKEW, NotMember},
    node::Node,
    quota::Account,
    record::{Id, Record},
};
use crate::{
    id::UnixTime,
    wire::{Block, Entry, Storage},
};

/// Signatures that one message may make us check, 0.2 s of one core. What is left comes again with the next message.
const MAX_CHECKS: u32 = 4_096;

/// How far the index of a block may run ahead of ours where blocks replace one another (`off`): so far at once, so far for
/// each second since the last one, and so far at most the first block of all. No network writes so often; without the
/// bounds one message could take the index to its end, and nothing could be written ever after.
const MAX_INDEX_STEP: i64 = 1 << 20;
const MAX_INDEX_RATE: i64 = 1 << 10;
const MAX_FIRST_INDEX: i64 = 1 << 48;

/// What a merge did.
#[derive(Debug, Default)]
pub struct Merged {
    /// Entries that are new or replaced others; an entry that disappeared (`off`) comes as it was.
    pub changed: Vec<Arc<Record>>,
    /// How many entries were not taken, by reason. With ownership `observe`, those that break a rule and were taken.
    pub rejected: BTreeMap<Rejection, u32>,
    /// The first few of them, for the log.
    pub samples: Vec<Sample>,
    /// Entries of this node that somebody else has replaced with a newer version in other copies of the ledger;
    /// [`Ledger::reassert`] writes them anew.
    pub contested: Vec<Arc<Record>>,
}

/// Lines that one merge may give to the log.
const MAX_SAMPLES: usize = 4;

/// An entry that broke a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub bucket: Bucket,
    /// Key and owner, cut to 80 characters.
    pub key: String,
    pub owner: String,
    pub reason: Rejection,
}

impl Merged {
    fn reject(&mut self, record: &Record, reason: Rejection) {
        let count = self.rejected.entry(reason).or_default();
        *count = count.saturating_add(1);
        if self.samples.len() < MAX_SAMPLES {
            let cut = |text: &str| text.chars().take(80).collect();
            self.samples.push(Sample {
                bucket: record.bucket().clone(),
                key: cut(record.key()),
                owner: cut(&record.entry().owner),
                reason,
            });
        }
    }
}

/// Why an entry was not taken. Each is one label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rejection {
    /// In a bucket with owners: no signature.
    Unsigned,
    BadSignature,
    /// The key or the value names another owner than the author.
    ForeignOwner,
    /// The key belongs to a peer that is alive.
    LiveOwner,
    /// A tombstone by somebody else for an entry whose owner is alive.
    ForeignTombstone,
    UnknownTombstone,
    StaleTombstone,
    /// An older version than the one held.
    Rollback,
    /// In a bucket without owners: not newer than what is held.
    NotNewer,
    /// Not newer than the tombstone in its place.
    StaleClaim,
    LostTie,
    /// Version, date or heartbeat is ahead of our clock.
    Future,
    /// So old that every node has forgotten it.
    Outdated,
    /// The value is not what the bucket holds.
    BadValue,
    TooLarge,
    TooManyBuckets,
    /// The ledger is full.
    Full,
    OverQuota,
    /// The author writes faster than its quota allows.
    TooFast,
    /// The message holds more signatures than are checked at once.
    Busy,
    /// The index of a block is too far ahead.
    IndexJump,
}

impl Rejection {
    pub const ALL: [Rejection; 21] = [
        Rejection::Unsigned,
        Rejection::BadSignature,
        Rejection::ForeignOwner,
        Rejection::LiveOwner,
        Rejection::ForeignTombstone,
        Rejection::UnknownTombstone,
        Rejection::StaleTombstone,
        Rejection::Rollback,
        Rejection::NotNewer,
        Rejection::StaleClaim,
        Rejection::LostTie,
        Rejection::Future,
        Rejection::Outdated,
        Rejection::BadValue,
        Rejection::TooLarge,
        Rejection::TooManyBuckets,
        Rejection::Full,
        Rejection::OverQuota,
        Rejection::TooFast,
        Rejection::Busy,
        Rejection::IndexJump,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Rejection::Unsigned => "unsigned",
            Rejection::BadSignature => "bad_signature",
            Rejection::ForeignOwner => "foreign_owner",
            Rejection::LiveOwner => "live_owner",
            Rejection::ForeignTombstone => "foreign_tombstone",
            Rejection::UnknownTombstone => "unknown_tombstone",
            Rejection::StaleTombstone => "stale_tombstone",
            Rejection::Rollback => "rollback",
            Rejection::NotNewer => "not_newer",
            Rejection::StaleClaim => "stale_claim",
            Rejection::LostTie => "lost_tie",
            Rejection::Future => "future",
            Rejection::Outdated => "outdated",
            Rejection::BadValue => "bad_value",
            Rejection::TooLarge => "too_large",
            Rejection::TooManyBuckets => "too_many_buckets",
            Rejection::Full => "full",
            Rejection::OverQuota => "over_quota",
            Rejection::TooFast => "too_fast",
            Rejection::Busy => "busy",
            Rejection::IndexJump => "index_jump",
        }
    }

    /// Whether the entry breaks a rule of ownership; the others are bounds, which hold in every mode.
    fn is_rule(self) -> bool {
        match self {
            Rejection::Unsigned
            | Rejection::BadSignature
            | Rejection::ForeignOwner
            | Rejection::LiveOwner
            | Rejection::ForeignTombstone
            | Rejection::UnknownTombstone
            | Rejection::StaleTombstone
            | Rejection::Rollback
            | Rejection::StaleClaim
            | Rejection::LostTie
            | Rejection::Future
            | Rejection::BadValue => true,
            Rejection::NotNewer
            | Rejection::Outdated
            | Rejection::TooLarge
            | Rejection::TooManyBuckets
            | Rejection::Full
            | Rejection::OverQuota
            | Rejection::TooFast
            | Rejection::Busy
            | Rejection::IndexJump => false,
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rejection::Unsigned => "not signed",
            Rejection::BadSignature => "the signature is not the owner's",
            Rejection::ForeignOwner => "key or value names another owner",
            Rejection::LiveOwner => "the key belongs to a live peer",
            Rejection::ForeignTombstone => "a tombstone for somebody else's live entry",
            Rejection::UnknownTombstone => "a tombstone for nothing",
            Rejection::StaleTombstone => "a tombstone older than the entry",
            Rejection::Rollback => "an older version",
            Rejection::NotNewer => "not newer than what is held",
            Rejection::StaleClaim => "a claim older than the tombstone",
            Rejection::LostTie => "lost against an equal version",
            Rejection::Future => "dated ahead of our clock",
            Rejection::Outdated => "long dead",
            Rejection::BadValue => "not a value of this bucket",
            Rejection::TooLarge => "too large",
            Rejection::TooManyBuckets => "too many buckets",
            Rejection::Full => "the ledger is full",
            Rejection::OverQuota => "over the author's quota",
            Rejection::TooFast => "over the author's rate",
            Rejection::Busy => "too many signatures at once",
            Rejection::IndexJump => "the index is too far ahead",
        })
    }
}

/// How entries came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// Whole blocks, every ten seconds: with `observe`, anything replaces anything, as in EdgeVPN.
    Block,
    /// One by one, passed on at once. With `observe` only what is newer by a fixed order is taken: two entries that
    /// replace each other would go around for ever.
    Exchange,
}

/// What one merge looks at beside the ledger.
struct Batch {
    now: UnixTime,
    /// Owners of heartbeats that come along.
    beating: HashSet<Id>,
    checks: u32,
}

impl Ledger {
    /// Takes what the rules allow from a block as EdgeVPN sends it; with ownership `off`, the whole block or nothing.
    pub fn merge(&mut self, block: &Block, now: UnixTime) -> Merged {
        self.advance(now);
        match self.terms.ownership {
            Ownership::Off => self.adopt(block, now),
            Ownership::Observe | Ownership::Enforce => {
                let fresh = self.unseen(&block.storage);
                self.take(fresh, Origin::Block, now)
            }
        }
    }

    /// Takes what the rules allow from entries that came one by one. With ownership `off` that is nothing: there, only whole
    /// blocks have a meaning.
    pub fn merge_records(&mut self, records: Vec<Arc<Record>>, now: UnixTime) -> Merged {
        self.advance(now);
        match self.terms.ownership {
            Ownership::Off => Merged::default(),
            Ownership::Observe | Ownership::Enforce => self.take(records, Origin::Exchange, now),
        }
    }

    /// Entries that differ from what is held.
    fn unseen(&self, storage: &Storage) -> Vec<Arc<Record>> {
        let mut unseen = Vec::new();
        for (name, entries) in storage {
            let bucket = Bucket::named(name);
            for (key, entry) in entries {
                let held = self.items.get(&Id::of(&bucket, key));
                if held.is_none_or(|held| held.entry() != entry) {
                    unseen.push(Record::new(bucket.clone(), key, entry.clone()));
                }
            }
        }
        unseen
    }

    fn take(&mut self, mut records: Vec<Arc<Record>>, origin: Origin, now: UnixTime) -> Merged {
        // The rules ask for the heartbeats as they were before the merge, so heartbeats come last.
        records.sort_by_key(|record| *record.bucket() == Bucket::Healthcheck);
        let mut batch = Batch {
            now,
            beating: records
                .iter()
                .filter(|record| *record.bucket() == Bucket::Healthcheck)
                .map(|record| record.id())
                .collect(),
            checks: MAX_CHECKS,
        };
        let mut merged = Merged::default();
        for record in records {
            let held = self.items.get(&record.id());
            if held.is_some_and(|held| held.entry() == record.entry()) {
                continue;
            }
            let verdict = self.judge(&record, &mut batch);
            let take = match verdict {
                Ok(()) => true,
                Err(reason) if reason.is_rule() && self.terms.ownership == Ownership::Observe => {
                    merged.reject(&record, reason);
                    origin == Origin::Block || held.is_none_or(|held| is_after(&record, held))
                }
                Err(reason) => {
                    self.refused(&record, reason, now);
                    if let Some(held) = self.items.get(&record.id())
                        && matches!(reason, Rejection::LiveOwner | Rejection::ForeignTombstone)
                        && held.entry().owner == self.local_text
                        && record.entry().version > held.entry().version
                        && record.is_signed()
                    {
                        merged.contested.push(held.clone());
                    }
                    merged.reject(&record, reason);
                    false
                }
            };
            if !take {
                continue;
            }
            match self.admit(&record, &mut batch) {
                Ok(()) => {
                    self.insert(record.clone());
                    merged.changed.push(record);
                }
                Err(reason) => {
                    self.refused(&record, reason, now);
                    merged.reject(&record, reason);
                }
            }
        }
        merged
    }

    /// The rules.
    fn judge(&self, record: &Record, batch: &mut Batch) -> Result<(), Rejection> {
        let entry = record.entry();
        let held = self.items.get(&record.id());
        if self.is_outdated(record, batch) {
            return Err(Rejection::Outdated);
        }
        if is_ahead(record, batch.now) {
            return Err(Rejection::Future);
        }
        let Policy::Owned(owner_is) = record.bucket().policy() else {
            return match held {
                Some(held) if entry.version <= held.entry().version => Err(Rejection::NotNewer),
                _ => Ok(()),
            };
        };
        if entry.signature.is_empty() || entry.owner.is_empty() {
            return Err(Rejection::Unsigned);
        }
        if entry.deleted {
            self.judge_tombstone(record, held.map(|held| &**held), batch.now)?;
        } else {
            self.judge_claim(record, owner_is, held.map(|held| &**held), batch.now)?;
        }
        batch.check(record)?;
        record
            .is_signed()
            .then_some(())
            .ok_or(Rejection::BadSignature)
    }

    fn judge_tombstone(
        &self,
        record: &Record,
        held: Option<&Record>,
        now: UnixTime,
    ) -> Result<(), Rejection> {
        let entry = record.entry();
        let held = held.ok_or(Rejection::UnknownTombstone)?;
        if held.owner() != entry.owner && !self.is_expired(held, now) {
            return Err(Rejection::ForeignTombstone);
        }
        if entry.version <= held.entry().version {
            return Err(Rejection::StaleTombstone);
        }
        Ok(())
    }

    fn judge_claim(
        &self,
        record: &Record,
        owner_is: OwnerIs,
        held: Option<&Record>,
        now: UnixTime,
    ) -> Result<(), Rejection> {
        let entry = record.entry();
        if owner_is != OwnerIs::Author
            && record
                .bucket()
                .implied_owner(record.key(), &entry.value)
                .is_none_or(|owner| owner != entry.owner)
        {
            return Err(Rejection::ForeignOwner);
        }
        if *record.bucket() == Bucket::Nodes && Node::read(record.key(), &entry.value).is_none() {
            return Err(Rejection::BadValue);
        }
        let Some(held) = held else {
            return Ok(());
        };
        if held.entry().deleted {
            return match entry.version > held.entry().version {
                true => Ok(()),
                false => Err(Rejection::StaleClaim),
            };
        }
        if held.owner() != entry.owner && !self.is_expired(held, now) {
            return Err(Rejection::LiveOwner);
        }
        let (version, before) = (entry.version, held.entry());
        if version < before.version {
            return Err(Rejection::Rollback);
        }
        let wins_tie = || {
            (entry.owner.as_str(), &entry.signature) > (before.owner.as_str(), &before.signature)
        };
        if version == before.version && !wins_tie() {
            return Err(Rejection::LostTie);
        }
        Ok(())
    }

    /// Puts an own entry in place if it could be merged anywhere else. With `observe` and `off` everything can.
    pub(super) fn accept_own(&mut self, record: &Arc<Record>, now: UnixTime) -> bool {
        let mut batch = Batch {
            now,
            beating: HashSet::from([Id::of(&Bucket::Healthcheck, &self.local_text)]),
            checks: MAX_CHECKS,
        };
        let held = self.items.get(&record.id());
        let void = held.is_some_and(|held| is_ahead(held, now));
        let allowed = self.terms.ownership != Ownership::Enforce
            || void
            || self.judge(record, &mut batch).is_ok();
        let taken = allowed && self.fits(record).is_ok();
        if taken {
            self.insert(record.clone());
        }
        taken
    }

    /// The bounds: room in the ledger, in the author's quota and in its rate.
    fn admit(&mut self, record: &Record, batch: &mut Batch) -> Result<(), Rejection> {
        // Whom to charge depends on the signature.
        if self.terms.ownership != Ownership::Off && !record.entry().signature.is_empty() {
            batch.check(record)?;
        }
        let account = self.fits(record)?;
        self.usage.spend(account, &self.terms, batch.now)
    }

    /// Whom it is charged to, if there is room.
    fn fits(&self, record: &Record) -> Result<Account, Rejection> {
        let account = self.account(record);
        let held = self.items.get(&record.id());
        let paid = held.map(|held| (self.account(held), &**held));
        self.usage.admit(account, record, paid, &self.terms)?;
        Ok(account)
    }

    pub(super) fn account(&self, record: &Record) -> Account {
        if self.terms.ownership != Ownership::Off && record.is_signed() {
            Account::Author(record.author())
        } else {
            Account::of_unsigned(record.bucket())
        }
    }

    /// Whether the owner of an entry has lost its hold on it.
    pub(super) fn is_expired(&self, record: &Record, now: UnixTime) -> bool {
        match (record.bucket(), record.bucket().policy()) {
            (_, Policy::Open) => false,
            (Bucket::Healthcheck, Policy::Owned(_)) => {
                let until = u64::try_from(record.entry().updated_at)
                    .map(|updated| UnixTime::from_secs(updated).saturating_add(self.terms.ttl));
                until.unwrap_or_default() < now
            }
            (_, Policy::Owned(_)) => !self.is_alive(&record.owner(), now),
        }
    }

    /// Whether the peer's heartbeat, signed or not, is younger than the ownership TTL.
    fn is_alive(&self, owner: &str, now: UnixTime) -> bool {
        self.items
            .get(&Id::of(&Bucket::Healthcheck, owner))
            .and_then(|record| record.beat())
            .is_some_and(|beat| {
                beat.said.saturating_add(self.terms.ttl) > now
                    && beat.said <= now.saturating_add(CLOCK_SKEW)
            })
    }

    /// Whether the entry is one that every node forgets, [`super::KEPT`] after the last sign of life.
    fn is_outdated(&self, record: &Record, batch: &Batch) -> bool {
        let beats = |owner: &str| {
            let id = Id::of(&Bucket::Healthcheck, owner);
            self.items.contains_key(&id) || batch.beating.contains(&id)
        };
        super::is_forgotten(record, batch.now, beats)
    }

    /// `off`: the block with the higher index, then the higher hash, replaces everything.
    fn adopt(&mut self, block: &Block, now: UnixTime) -> Merged {
        let mut merged = Merged::default();
        self.seal(now);
        let last = &self.envelope;
        if (block.index, block.hash.as_str()) <= (last.index, last.hash.as_str()) {
            return merged;
        }
        let most = match self.adopted_at {
            None => MAX_FIRST_INDEX,
            Some(at) => i64::try_from(now.since(at).as_secs())
                .unwrap_or(i64::MAX)
                .saturating_mul(MAX_INDEX_RATE)
                .saturating_add(MAX_INDEX_STEP)
                .saturating_add(last.index),
        };
        if block.index > most {
            merged.rejected.insert(Rejection::IndexJump, 1);
            return merged;
        }
        let fresh = self.unseen(&block.storage);
        let gone: Vec<_> = self
            .items
            .values()
            .filter(|held| {
                block
                    .storage
                    .get(held.bucket().name())
                    .is_none_or(|entries| !entries.contains_key(held.key()))
            })
            .cloned()
            .collect();
        for record in gone {
            self.remove(record.id());
            merged.changed.push(record);
        }
        let mut batch = Batch {
            now,
            beating: HashSet::new(),
            checks: MAX_CHECKS,
        };
        for record in fresh {
            // A heartbeat that is signed nevertheless makes its author a member.
            let signed_beat = record.beat().is_some() && !record.entry().signature.is_empty();
            let room = if signed_beat {
                batch.check(&record)
            } else {
                Ok(())
            };
            match room.and_then(|()| self.admit(&record, &mut batch)) {
                Ok(()) => {
                    self.insert(record.clone());
                    merged.changed.push(record);
                }
                Err(reason) => merged.reject(&record, reason),
            }
        }
        self.envelope = super::Envelope::of(block);
        self.unsealed = false;
        self.adopted_at = Some(now);
        merged
    }

    /// Remembers why a peer's heartbeat was not taken.
    fn refused(&mut self, record: &Record, reason: Rejection, now: UnixTime) {
        if *record.bucket() != Bucket::Healthcheck || record.entry().deleted {
            return;
        }
        let why = match reason {
            Rejection::Unsigned => NotMember::Unsigned,
            Rejection::BadSignature | Rejection::ForeignOwner => NotMember::BadSignature,
            Rejection::Future => NotMember::Future {
                by: record
                    .beat()
                    .map_or(CLOCK_SKEW, |beat| beat.later.since(now)),
            },
            Rejection::OverQuota
            | Rejection::Full
            | Rejection::TooFast
            | Rejection::Busy
            | Rejection::TooLarge => NotMember::NoRoom,
            _ => return,
        };
        if self.refused.len() >= MAX_REFUSED && !self.refused.contains_key(&record.id()) {
            self.refused.clear();
        }
        self.refused.insert(record.id(), why);
    }
}

/// Peers whose last refused heartbeat is remembered, to say why they are no members; one too many and all are
/// forgotten.
const MAX_REFUSED: usize = 1024;

impl Batch {
    fn check(&mut self, record: &Record) -> Result<(), Rejection> {
        if record.is_checked() {
            return Ok(());
        }
        self.checks = self.checks.checked_sub(1).ok_or(Rejection::Busy)?;
        Ok(())
    }
}

/// Whether version, date or heartbeat lie further ahead than clocks differ.
pub(super) fn is_ahead(record: &Record, now: UnixTime) -> bool {
    let latest = now.saturating_add(CLOCK_SKEW);
    let entry = record.entry();
    entry.version > latest.as_nanos()
        || u64::try_from(entry.updated_at).is_ok_and(|updated| updated > latest.as_secs())
        || record.beat().is_some_and(|beat| beat.said > latest)
}

/// A fixed order of all entries for one key.
fn is_after(record: &Record, held: &Record) -> bool {
    let order = |entry: &Entry| (entry.version, entry.owner.clone(), entry.signature.clone());
    order(record.entry()) > order(held.entry())
}
