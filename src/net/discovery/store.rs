//! Provider records this node keeps: its own, and those that others entrust to a server of the DHT.
//!
//! Values are not kept: membership needs none, and strangers would fill them with theirs.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet, hash_map::Entry},
    iter,
    time::Instant,
};

use libp2p::{
    Multiaddr, PeerId,
    kad::{
        ProviderRecord, Record, RecordKey,
        store::{Error, RecordStore, Result},
    },
};
use rand::seq::SliceRandom;

/// Keys of others. At a few hundred bytes a record and [`MOST_PROVIDERS`] of them, strangers take 10 MiB at most, and in
/// practice one record a key.
const MOST_KEYS: usize = 1024;

/// Providers remembered for one key. A private network may be larger than the 20 of the specification; an answer still
/// names 20 of them, drawn anew each time, so that all are found.
const MOST_PROVIDERS: usize = 64;

/// Addresses remembered of a provider, and their bytes: 20 providers and 20 closer peers fit one answer of 16 KiB.
const MOST_ADDRESSES: usize = 6;
const MOST_ADDRESS_BYTES: usize = 360;

pub struct Store {
    local: PeerId,
    /// Records by which this node announces itself.
    own: HashMap<RecordKey, ProviderRecord>,
    /// Keys of our own networks: what is known about them is not given up for strangers.
    ours: HashSet<RecordKey>,
    others: HashMap<RecordKey, Providers>,
}

struct Providers {
    records: Vec<ProviderRecord>,
    touched: Instant,
}

impl Store {
    pub fn new(local: PeerId) -> Self {
        Self {
            local,
            own: HashMap::new(),
            ours: HashSet::new(),
            others: HashMap::new(),
        }
    }

    pub fn set_ours(&mut self, ours: HashSet<RecordKey>) {
        self.ours = ours;
    }

    /// Keeps what another node says of itself. In a full store, the key that was not heard of for the longest time goes.
    pub fn entrust(&mut self, mut record: ProviderRecord, now: Instant) {
        let mut room = MOST_ADDRESS_BYTES;
        record.addresses.retain(|address| {
            let fits = address.len() <= room;
            if fits {
                room = room.saturating_sub(address.len());
            }
            fits
        });
        record.addresses.truncate(MOST_ADDRESSES);
        if record.addresses.is_empty() || record.provider == self.local {
            return;
        }
        if self.others.len() >= MOST_KEYS && !self.others.contains_key(&record.key) {
            self.evict(now);
        }
        let full = self.others.len() >= MOST_KEYS;
        let providers = match self.others.entry(record.key.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if full => return,
            Entry::Vacant(room) => room.insert(Providers {
                records: Vec::new(),
                touched: now,
            }),
        };
        providers.touched = now;
        providers
            .records
            .retain(|known| known.provider != record.provider && !known.is_expired(now));
        if providers.records.len() >= MOST_PROVIDERS {
            // The first is the one that has not announced itself for the longest time.
            providers.records.remove(0);
        }
        providers.records.push(record);
    }

    fn evict(&mut self, now: Instant) {
        self.others.retain(|_, providers| {
            providers
                .records
                .iter()
                .any(|record| !record.is_expired(now))
        });
        if self.others.len() < MOST_KEYS {
            return;
        }
        let oldest = self
            .others
            .iter()
            .filter(|(key, _)| !self.ours.contains(*key))
            .min_by_key(|(_, providers)| providers.touched)
            .map(|(key, _)| key.clone());
        if let Some(key) = oldest {
            self.others.remove(&key);
        }
    }

    /// Forgets everything, as a node does that leaves the DHT.
    pub fn clear(&mut self) {
        self.own.clear();
        self.others.clear();
    }

    pub fn addresses(&self, key: &RecordKey, provider: &PeerId) -> Vec<Multiaddr> {
        self.others
            .get(key)
            .and_then(|known| {
                known
                    .records
                    .iter()
                    .find(|record| record.provider == *provider)
            })
            .map(|record| record.addresses.clone())
            .unwrap_or_default()
    }

    /// Keys and records held for others.
    pub fn held(&self) -> (usize, usize) {
        let records = self.others.values().map(|known| known.records.len()).sum();
        (self.others.len(), records)
    }
}

impl RecordStore for Store {
    type RecordsIter<'a> = iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = Box<dyn Iterator<Item = Cow<'a, ProviderRecord>> + 'a>;

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _: Record) -> Result<()> {
        Err(Error::MaxRecords)
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        iter::empty()
    }

    /// For this node's own announcements, whose number the tokens bound.
    fn add_provider(&mut self, record: ProviderRecord) -> Result<()> {
        if record.provider != self.local {
            return Err(Error::MaxProvidedKeys);
        }
        self.own.insert(record.key.clone(), record);
        Ok(())
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let others = self.others.get(key).map(|known| known.records.as_slice());
        let mut records = others.unwrap_or_default().to_vec();
        records.shuffle(&mut rand::rng());
        self.own
            .get(key)
            .cloned()
            .into_iter()
            .chain(records)
            .collect()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        Box::new(self.own.values().map(Cow::Borrowed))
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        if *provider == self.local {
            self.own.remove(key);
        } else if let Entry::Occupied(mut known) = self.others.entry(key.clone()) {
            known
                .get_mut()
                .records
                .retain(|record| record.provider != *provider);
            if known.get().records.is_empty() {
                known.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use super::*;
    use proptest::prelude::*;

    fn key(number: usize) -> RecordKey {
        RecordKey::new(&number.to_be_bytes())
    }

    fn record(number: usize, provider: PeerId) -> ProviderRecord {
        let address = "/ip4/192.0.2.1/tcp/1".parse().expect("an address");
        ProviderRecord::new(key(number), provider, vec![address])
    }

    fn store() -> Store {
        Store::new(PeerId::random())
    }

    #[test]
    fn strangers_crowd_out_neither_our_announcement_nor_our_members() {
        let (mut store, now) = (store(), Instant::now());
        let (own, member) = (store.local, PeerId::random());
        store.set_ours(HashSet::from([key(0)]));
        store.entrust(record(0, member), now);
        for number in 1..3 * MOST_KEYS {
            store.entrust(record(number, PeerId::random()), now);
        }
        assert!(store.add_provider(record(0, own)).is_ok());
        let found: Vec<PeerId> = store
            .providers(&key(0))
            .iter()
            .map(|record| record.provider)
            .collect();
        assert_eq!(found, [own, member]);
        assert_eq!(store.held().0, MOST_KEYS);
    }

    #[test]
    fn of_a_large_network_every_member_is_named_sooner_or_later() {
        let (mut store, now) = (store(), Instant::now());
        for _ in 0..MOST_PROVIDERS {
            store.entrust(record(0, PeerId::random()), now);
        }
        let mut named = BTreeSet::new();
        for _ in 0..200 {
            let answer = store.providers(&key(0)).into_iter().take(20);
            named.extend(answer.map(|record| record.provider));
        }
        assert_eq!(named.len(), MOST_PROVIDERS);
    }

    #[test]
    fn who_announces_itself_again_is_there_once() {
        let (mut store, now) = (store(), Instant::now());
        let provider = PeerId::random();
        store.entrust(record(0, provider), now);
        store.entrust(record(0, provider), now);
        assert_eq!(store.held(), (1, 1));
        store.remove_provider(&key(0), &provider);
        assert_eq!(store.held(), (0, 0));
    }

    #[test]
    fn a_record_with_a_thousand_addresses_is_cut() {
        let (mut store, now) = (store(), Instant::now());
        let provider = PeerId::random();
        let addresses = (0..1000)
            .map(|port| {
                format!("/ip4/192.0.2.1/tcp/{port}")
                    .parse()
                    .expect("an address")
            })
            .collect();
        store.entrust(ProviderRecord::new(key(0), provider, addresses), now);
        assert_eq!(store.addresses(&key(0), &provider).len(), MOST_ADDRESSES);
        store.entrust(ProviderRecord::new(key(1), provider, Vec::new()), now);
        assert_eq!(store.held(), (1, 1), "nobody can be reached nowhere");
    }

    proptest! {
        #[test]
        fn whatever_is_entrusted_the_store_is_bounded(
            entries in prop::collection::vec((0..2 * MOST_KEYS, any::<bool>(), 0u64..100), 0..3000),
        ) {
            let (mut store, start) = (store(), Instant::now());
            let one = PeerId::random();
            for (number, random, second) in entries {
                let provider = if random { PeerId::random() } else { one };
                let now = start + Duration::from_secs(second);
                let mut record = record(number, provider);
                record.expires = Some(start + Duration::from_secs(50));
                store.entrust(record, now);
                let (keys, _) = store.held();
                prop_assert!(keys <= MOST_KEYS);
            }
            prop_assert!(store.others.values().all(|known| known.records.len() <= MOST_PROVIDERS));
        }
    }
}
