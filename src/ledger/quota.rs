//! How much of the ledger each author takes, and how fast.
//!
//! The author is who signed. Entries without a valid signature name nobody who could be held to account (anybody can write
//! somebody else's name into them), so those of a known bucket share one account, and those of all other buckets another.

use std::collections::HashMap;

use super::{Bucket, Rejection, Terms, record::Record};
use crate::id::UnixTime;

/// Unsigned entries of one known bucket: as many members as a network without signatures is expected to have.
const UNSIGNED_ENTRIES: u32 = 16_384;
/// 512 bytes for each of them.
const UNSIGNED_BYTES: u64 = 8 << 20;

/// All entries together, 26 for each of 10,000 members.
pub const MAX_ENTRIES: usize = 262_144;
/// Bytes of all texts and signatures together.
pub const MAX_BYTES: u64 = 96 << 20;

/// Buckets beside those known by name. Anybody can invent one, so they are few.
pub const MAX_OTHER_BUCKETS: usize = 32;

/// Bytes. Known keys are peer ids, addresses and names; a DNS pattern may be longer.
pub const MAX_KEY: usize = 1024;
/// Bytes. Half of what an author may have by default, and small enough to travel in one frame.
pub const MAX_VALUE: usize = 32 << 10;
/// Bytes. An Ed25519 signature takes 64, one of secp256k1 up to 72.
pub const MAX_SIGNATURE: usize = 128;

/// The time in which an author may write its whole quota anew.
const REFILL_SECONDS: u64 = 60;

/// What is held, by account.
#[derive(Debug, Default)]
pub(super) struct Usage {
    accounts: HashMap<Account, Held>,
    entries: usize,
    bytes: u64,
    others: HashMap<Box<str>, u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Account {
    /// [`Record::author`].
    Author(u64),
    /// Of a bucket with a name of its own.
    Unsigned(u8),
    UnsignedElsewhere,
}

impl Account {
    pub fn of_unsigned(bucket: &Bucket) -> Account {
        bucket
            .code()
            .map_or(Account::UnsignedElsewhere, Account::Unsigned)
    }

    fn max_entries(self, terms: &Terms) -> u32 {
        match self {
            Account::Author(_) | Account::UnsignedElsewhere => terms.quota_entries,
            Account::Unsigned(_) => UNSIGNED_ENTRIES,
        }
    }

    fn max_bytes(self, terms: &Terms) -> u64 {
        match self {
            Account::Author(_) | Account::UnsignedElsewhere => terms.quota_bytes,
            Account::Unsigned(_) => UNSIGNED_BYTES,
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Held {
    entries: u32,
    bytes: u64,
    /// Writes spent of the allowance, as of `since`.
    spent: u32,
    /// Unix time in seconds.
    since: u64,
}

impl Usage {
    pub fn entries(&self) -> usize {
        self.entries
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether `record` may take the place of `replaced`.
    pub fn admit(
        &self,
        account: Account,
        record: &Record,
        replaced: Option<(Account, &Record)>,
        terms: &Terms,
    ) -> Result<(), Rejection> {
        let entry = record.entry();
        if record.key().len() > MAX_KEY
            || record.bucket().name().len() > MAX_KEY
            || entry.value.len() > MAX_VALUE
            || entry.owner.len() > MAX_KEY
            || entry.signature.len() > MAX_SIGNATURE
        {
            return Err(Rejection::TooLarge);
        }
        let before = replaced.map_or(0, |(_, record)| record.bytes());
        if replaced.is_none() {
            if self.entries >= MAX_ENTRIES {
                return Err(Rejection::Full);
            }
            if let Bucket::Other(name) = record.bucket()
                && self.others.len() >= MAX_OTHER_BUCKETS
                && !self.others.contains_key(name)
            {
                return Err(Rejection::TooManyBuckets);
            }
        }
        if self
            .bytes
            .saturating_sub(before)
            .saturating_add(record.bytes())
            > MAX_BYTES
        {
            return Err(Rejection::Full);
        }
        let held = self.accounts.get(&account).copied().unwrap_or_default();
        let (own, own_bytes) = match replaced {
            Some((paid, record)) if paid == account => (1, record.bytes()),
            _ => (0, 0),
        };
        let entries = held.entries.saturating_sub(own).saturating_add(1);
        let bytes = held
            .bytes
            .saturating_sub(own_bytes)
            .saturating_add(record.bytes());
        if entries > account.max_entries(terms) || bytes > account.max_bytes(terms) {
            return Err(Rejection::OverQuota);
        }
        Ok(())
    }

    /// Takes one write from an author's allowance: its quota at once, and as much again each minute.
    pub fn spend(
        &mut self,
        account: Account,
        terms: &Terms,
        now: UnixTime,
    ) -> Result<(), Rejection> {
        let most = account.max_entries(terms);
        // An account that holds nothing is not remembered; it has its whole allowance.
        let Some(held) = self.accounts.get_mut(&account) else {
            return Ok(());
        };
        let passed = now.as_secs().saturating_sub(held.since).min(REFILL_SECONDS);
        let refilled = passed.saturating_mul(u64::from(most)) / REFILL_SECONDS;
        if refilled > 0 || now.as_secs() < held.since {
            held.spent = held
                .spent
                .saturating_sub(u32::try_from(refilled).unwrap_or(u32::MAX));
            held.since = now.as_secs();
        }
        if held.spent >= most {
            return Err(Rejection::TooFast);
        }
        held.spent = held.spent.saturating_add(1);
        Ok(())
    }

    pub fn add(&mut self, account: Account, record: &Record) {
        let held = self.accounts.entry(account).or_default();
        held.entries = held.entries.saturating_add(1);
        held.bytes = held.bytes.saturating_add(record.bytes());
        self.entries = self.entries.saturating_add(1);
        self.bytes = self.bytes.saturating_add(record.bytes());
        if let Bucket::Other(name) = record.bucket() {
            *self.others.entry(name.clone()).or_default() += 1;
        }
    }

    pub fn remove(&mut self, account: Account, record: &Record) {
        if let Some(held) = self.accounts.get_mut(&account) {
            held.entries = held.entries.saturating_sub(1);
            held.bytes = held.bytes.saturating_sub(record.bytes());
            if held.entries == 0 {
                self.accounts.remove(&account);
            }
        }
        self.entries = self.entries.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(record.bytes());
        if let Bucket::Other(name) = record.bucket()
            && let Some(count) = self.others.get_mut(name)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.others.remove(name);
            }
        }
    }
}
