//! What holds whatever is merged, in a hundred thousand random cases each from a fixed seed.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use edgevpn::ledger::{Bucket, Ledger, Ownership, Record};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

use super::{Author, NOW, after};

const CASES: u64 = 100_000;

/// Entries of three authors for few keys, all signed, no two with the same version.
static POOL: LazyLock<Vec<Arc<Record>>> = LazyLock::new(|| {
    let mut pool = Vec::new();
    for number in 0..3_u32 {
        let author = Author::new(number + 1);
        let value = format!(r#"{{"PeerID":"{}"}}"#, author.name);
        for (bucket, key) in [("machines", "10.1.0.1"), ("services", "web"), ("dns", "x")] {
            for version in 0..5_u32 {
                for deleted in [false, true] {
                    let at = before_now(version * 12 + number * 4 + u32::from(deleted));
                    let entry = match deleted {
                        true => author.tombstone(bucket, key, at),
                        false => author.entry(bucket, key, &value, at),
                    };
                    pool.push(Record::new(Bucket::named(bucket), key, entry));
                }
            }
        }
    }
    pool
});

fn before_now(seconds: u32) -> edgevpn::id::UnixTime {
    super::before(u64::from(seconds) + 1)
}

fn some(random: &mut StdRng, from: &[Arc<Record>]) -> Vec<Arc<Record>> {
    let count = random.random_range(1..8);
    (0..count)
        .map(|_| from[random.random_range(0..from.len())].clone())
        .collect()
}

/// What is alive, by place.
fn alive(ledger: &Ledger) -> BTreeMap<(Bucket, String), u64> {
    ledger
        .iter()
        .filter(|record| !record.entry().deleted)
        .map(|record| {
            let place = (record.bucket().clone(), record.key().to_owned());
            (place, record.entry().version)
        })
        .collect()
}

#[test]
fn merging_twice_is_merging_once_and_no_version_ever_falls() {
    let us = Author::new(0);
    for case in 0..CASES {
        let mut random = StdRng::seed_from_u64(case);
        let mut ledger = us.ledger(Ownership::Enforce);
        let mut versions: BTreeMap<(Bucket, String), u64> = BTreeMap::new();
        for record in some(&mut random, &POOL) {
            ledger.merge_records(vec![record.clone()], NOW);
            let again = ledger.merge_records(vec![record], NOW);
            assert!(again.changed.is_empty(), "case {case}");
            for held in ledger.iter() {
                let place = (held.bucket().clone(), held.key().to_owned());
                let version = held.entry().version;
                let before = versions.insert(place, version).unwrap_or(0);
                assert!(before <= version, "case {case}: {before} fell to {version}");
            }
        }
        let own: Vec<_> = ledger.iter().cloned().collect();
        assert!(
            ledger.merge_records(own, NOW).changed.is_empty(),
            "case {case}: a ledger merged with itself"
        );
    }
}

/// Merging what was sent in any order, as often as it is sent again, ends the same, as long as policy has no first claim to
/// protect: each key has one author, or its authors are dead.
#[test]
fn any_order_ends_the_same_where_nobody_contests_the_living() {
    let us = Author::new(0);
    for case in 0..CASES {
        let mut random = StdRng::seed_from_u64(case);
        let records = some(&mut random, &POOL);
        let mut shuffled = records.clone();
        shuffled.shuffle(&mut random);
        let end = |records: &[Arc<Record>]| {
            let mut ledger = us.ledger(Ownership::Enforce);
            for _ in 0..2 {
                ledger.merge_records(records.to_vec(), NOW);
            }
            alive(&ledger)
        };
        assert_eq!(end(&records), end(&shuffled), "case {case}");
    }
}

/// Three copies, two keys, expiry, tombstones and reclaims: every sequence of six steps of this model ends with copies that
/// are equal once they have told each other everything, and nothing deleted comes back.
#[test]
fn three_copies_agree_after_every_short_history() {
    let [us, one, other] = [0, 1, 2].map(Author::new);
    let authors = [&one, &other];
    let keys = ["10.1.0.1", "10.1.0.2"];
    // A step: who writes or deletes which key (its own or, with the owner dead, the other's), or two copies meet.
    let steps = 2 * 2 * 2 + 3;
    let depth = 4;
    let mut ended = 0;
    for history in 0..(steps as u32).pow(depth) {
        let mut copies: Vec<Ledger> = (0..3).map(|_| us.ledger(Ownership::Enforce)).collect();
        let (mut rest, mut clock) = (history, 0);
        for _ in 0..depth {
            let step = rest % steps as u32;
            rest /= steps as u32;
            clock += 1;
            let now = after(clock);
            if step < 8 {
                let (author, key) = ((step & 1) as usize, ((step >> 1) & 1) as usize);
                // Each author writes into a copy of its own.
                let block = match step >> 2 {
                    0 => authors[author].machine(keys[key], now),
                    _ => {
                        let tombstone = authors[author].tombstone("machines", keys[key], now);
                        super::block("machines", keys[key], tombstone)
                    }
                };
                copies[author].merge(&block, now);
            } else {
                meet(
                    &mut copies,
                    (step - 8) as usize,
                    (step - 7) as usize % 3,
                    now,
                );
            }
        }
        let now = after(clock + 1);
        for _ in 0..3 {
            for (left, right) in [(0, 1), (1, 2), (2, 0)] {
                meet(&mut copies, left, right, now);
                meet(&mut copies, right, left, now);
            }
        }
        let first = alive(&copies[0]);
        for copy in &copies {
            assert_eq!(alive(copy), first, "history {history}");
        }
        ended += 1;
    }
    assert_eq!(ended, 14_641);
}

/// One copy tells another everything.
fn meet(copies: &mut [Ledger], from: usize, to: usize, now: edgevpn::id::UnixTime) {
    let told: Vec<_> = copies[from].iter().cloned().collect();
    copies[to].merge_records(told, now);
}
