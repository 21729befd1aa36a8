//! What a neighbour with the token and bad intentions can send, and what comes of it.

use edgevpn::{
    ledger::{
        Bucket, Ledger, MAX_OTHER_BUCKETS, MAX_VALUE, Merged, NotMember, Ownership, Rejection,
    },
    wire::{Block, Entry, value::heartbeat},
};

use super::{Author, NOW, after, before, block, blocks, plain};

/// Everything that is held, to see that nothing changed.
fn held(ledger: &Ledger) -> Vec<(Bucket, String, Entry)> {
    ledger.iter().map(|record| plain(record)).collect()
}

fn reasons(merged: &Merged) -> Vec<(Rejection, u32)> {
    merged
        .rejected
        .iter()
        .map(|(reason, count)| (*reason, *count))
        .collect()
}

#[test]
fn an_author_takes_no_more_than_its_quota_and_nobody_elses() {
    let (us, flooder, neighbour) = (Author::new(0), Author::new(1), Author::new(2));
    let mut ledger = us.ledger(Ownership::Enforce);
    let keys: Vec<String> = (0..100_000).map(|n| format!("flood-{n:06}")).collect();
    let value = format!(r#"{{"PeerID":"{}"}}"#, flooder.name);
    let flood = blocks(keys.iter().enumerate().map(|(nth, key)| {
        let entry = match nth {
            0..1000 => flooder.entry("services", key, &value, NOW),
            // Signing them all would take longer than the test may.
            _ => Entry {
                value: value.clone(),
                owner: flooder.name.clone(),
                version: 1,
                signature: vec![0; 64],
                ..Entry::default()
            },
        };
        ("services", key.as_str(), entry)
    }));
    let merged = ledger.merge(&flood, NOW);
    assert_eq!(ledger.size().entries, 256);
    assert_eq!(merged.rejected.values().sum::<u32>(), 99_744);
    assert!(merged.samples.len() <= 10, "the log is spared");
    ledger.merge(&neighbour.beat(NOW), NOW);
    ledger.merge(&neighbour.machine("10.1.0.2", NOW), NOW);
    assert_eq!(ledger.size().entries, 258);
}

#[test]
fn one_message_makes_us_check_so_many_signatures_and_no_more() {
    let us = Author::new(0);
    let mut ledger = us.ledger(Ownership::Enforce);
    let names: Vec<Author> = (1..=5000).map(Author::new).collect();
    let forged = blocks(names.iter().map(|author| {
        let entry = Entry {
            value: heartbeat(NOW),
            owner: author.name.clone(),
            version: 1,
            updated_at: NOW.as_secs() as i64,
            signature: vec![1; 64],
            ..Entry::default()
        };
        ("healthcheck", author.name.as_str(), entry)
    }));
    let merged = ledger.merge(&forged, NOW);
    assert_eq!(
        reasons(&merged),
        [(Rejection::BadSignature, 4096), (Rejection::Busy, 904)]
    );
    assert_eq!(ledger.size().entries, 0);
}

#[test]
fn nobody_is_charged_for_what_others_write_in_its_name() {
    let (us, victim) = (Author::new(0), Author::new(1));
    let mut ledger = us.ledger(Ownership::Enforce);
    let keys: Vec<String> = (0..1000).map(|n| format!("k{n:04}")).collect();
    let forged = blocks(keys.iter().map(|key| {
        let entry = Entry {
            value: "\"x\"".to_owned(),
            owner: victim.name.clone(),
            version: 1,
            signature: vec![0; 64],
            ..Entry::default()
        };
        ("open", key.as_str(), entry)
    }));
    ledger.merge(&forged, NOW);
    assert_eq!(ledger.size().entries, 256, "one account for all of them");
    ledger.merge(&victim.beat(NOW), NOW);
    assert_eq!(ledger.why_not_member(&victim.peer, NOW), None);
}

#[test]
fn invented_buckets_are_few_and_values_small() {
    let (us, they) = (Author::new(0), Author::new(1));
    let mut ledger = us.ledger(Ownership::Enforce);
    for number in 0..100 {
        let name = format!("bucket-{number}");
        let entry = they.entry(&name, "k", "\"v\"", NOW);
        ledger.merge(&block(&name, "k", entry), NOW);
    }
    assert_eq!(ledger.size().entries, MAX_OTHER_BUCKETS);
    let large = they.entry("dhcp", "k", &"x".repeat(MAX_VALUE + 1), NOW);
    let merged = ledger.merge(&block("dhcp", "k", large), NOW);
    assert_eq!(reasons(&merged), [(Rejection::TooLarge, 1)]);
    let long = "k".repeat(5000);
    let merged = ledger.merge(
        &block("dhcp", &long, they.entry("dhcp", &long, "\"v\"", NOW)),
        NOW,
    );
    assert_eq!(reasons(&merged), [(Rejection::TooLarge, 1)]);
}

#[test]
fn an_author_writes_no_faster_than_its_quota_a_minute() {
    let (us, they) = (Author::new(0), Author::new(1));
    let mut ledger = us.ledger(Ownership::Enforce);
    let (mut taken, mut refused) = (0, 0);
    for number in 0..400 {
        let at = edgevpn::id::UnixTime(NOW.0 + std::time::Duration::from_micros(number));
        let entry = they.entry("healthcheck", &they.name, &heartbeat(NOW), at);
        let merged = ledger.merge(&block("healthcheck", &they.name, entry), NOW);
        taken += merged.changed.len();
        refused += merged.rejected.get(&Rejection::TooFast).unwrap_or(&0);
    }
    assert!((256..=258).contains(&taken), "{taken} writes at once");
    assert_eq!(taken + refused as usize, 400);
    assert_eq!(
        ledger.merge(&they.beat(after(60)), after(60)).changed.len(),
        1
    );
}

#[test]
fn no_index_poisons_a_network_without_ownership() {
    let us = Author::new(0);
    let of = |index: i64, hash: &str| Block {
        index,
        hash: hash.to_owned(),
        ..block(
            "machines",
            "10.1.0.1",
            Entry {
                value: "{}".to_owned(),
                ..Entry::default()
            },
        )
    };
    let mut ledger = us.ledger(Ownership::Off);
    for index in [i64::MAX, i64::MAX - 1, i64::MAX / 2, i64::MIN, -1] {
        let merged = ledger.merge(&of(index, "ff"), NOW);
        assert!(merged.changed.is_empty(), "{index} as the first block");
    }
    assert_eq!(ledger.merge(&of(7_000_000, "aa"), NOW).changed.len(), 1);
    for index in [i64::MAX, 7_000_000 + (1 << 20) + 1] {
        let merged = ledger.merge(&of(index, "ff"), NOW);
        assert_eq!(reasons(&merged), [(Rejection::IndexJump, 1)]);
    }
    assert_eq!(ledger.block(NOW).index, 7_000_000);
    ledger.merge(&of(7_000_100, "bb"), NOW);
    assert_eq!(ledger.block(NOW).index, 7_000_100, "the network goes on");
    ledger.put("machines", "10.1.0.2", "{}", &us.keypair, NOW);
    assert_eq!(ledger.block(NOW).index, 7_000_101, "and so do we");
}

#[test]
fn an_index_means_nothing_where_entries_have_owners() {
    let (us, they) = (Author::new(0), Author::new(1));
    for ownership in [Ownership::Enforce, Ownership::Observe] {
        let mut ledger = us.ledger(ownership);
        ledger.merge(&they.beat(NOW), NOW);
        let before = held(&ledger);
        for index in [i64::MAX, i64::MIN, -1] {
            let wipe = Block {
                index,
                hash: "ff".to_owned(),
                ..Block::default()
            };
            ledger.merge(&wipe, NOW);
        }
        assert_eq!(held(&ledger), before, "{ownership:?}");
        assert!(ledger.block(NOW).index < 10);
    }
}

#[test]
fn no_version_and_no_date_locks_a_key() {
    let (us, they) = (Author::new(0), Author::new(1));
    let mut ledger = us.ledger(Ownership::Enforce);
    let value = format!(r#"{{"PeerID":"{}"}}"#, they.name);
    let extreme = |bucket: &str, version, updated_at| {
        let entry = Entry {
            value: value.clone(),
            version,
            updated_at,
            ..Entry::default()
        };
        block(bucket, "k", they.sign(bucket, "k", entry))
    };
    let now = NOW.as_secs() as i64;
    for bucket in ["machines", "dns", "dhcp"] {
        for (version, date) in [
            (u64::MAX, now),
            (u64::MAX - 1, now),
            (after(31).as_nanos(), now),
            (NOW.as_nanos(), i64::MAX),
            (NOW.as_nanos(), now + 31),
        ] {
            let merged = ledger.merge(&extreme(bucket, version, date), NOW);
            assert_eq!(reasons(&merged), [(Rejection::Future, 1)], "{bucket}");
        }
    }
    assert_eq!(
        ledger
            .merge(&extreme("machines", 0, now), NOW)
            .changed
            .len(),
        1
    );
    ledger.merge(&they.beat(NOW), NOW);
    assert_eq!(
        reasons(&ledger.merge(&extreme("machines", 1, i64::MIN), NOW)),
        [],
        "an old date is no fault while the owner may live"
    );
    // With `observe` it is taken, and does not keep us from writing.
    let mut ledger = us.ledger(Ownership::Observe);
    ledger.merge(&extreme("machines", u64::MAX, i64::MAX), NOW);
    assert!(ledger.put("machines", "k", &value, &us.keypair, NOW));
    ledger.maintain(after(100));
    ledger.withdraw(&us.keypair, after(100));
}

#[test]
fn what_was_captured_says_nothing_when_it_comes_again() {
    let (us, they) = (Author::new(0), Author::new(1));
    let mut ledger = us.ledger(Ownership::Enforce);
    let mut captured = Vec::new();
    for minute in 0..5 {
        let now = after(60 * minute);
        captured.push(they.beat(now));
        captured.push(they.machine("10.1.0.1", now));
        captured.push(block(
            "dhcp",
            "leader",
            they.entry("dhcp", "leader", &format!("\"{minute}\""), now),
        ));
        for message in captured.iter().rev().take(3) {
            ledger.merge(message, now);
        }
    }
    let gone = after(300);
    captured.push(block(
        "machines",
        "10.1.0.1",
        they.tombstone("machines", "10.1.0.1", gone),
    ));
    ledger.merge(captured.last().expect("one"), gone);
    // A second later, in the next window of 360 s, three windows later, and when all is long forgotten.
    for later in [1, 360, 3 * 360, 4 * 3600] {
        let now = after(300 + later);
        ledger.maintain(now);
        let (before, members) = (held(&ledger), ledger.membership(now));
        for message in &captured {
            assert!(ledger.merge(message, now).changed.is_empty() || later > 3600);
        }
        assert_eq!(ledger.membership(now), members, "after {later} s");
        if later <= 3600 {
            assert_eq!(held(&ledger), before, "after {later} s");
        }
    }
}

#[test]
fn the_same_key_in_two_networks_lets_entries_cross_and_nothing_more() {
    // Signatures do not name the network (the format is EdgeVPN's): an entry is valid wherever its author's key is used.
    // So each network has a key of its own by default, and this is what happens to those who share one.
    let (us, they) = (Author::new(0), Author::new(1));
    let other_network = they.machine("10.9.0.1", NOW);
    let mut ledger = us.ledger(Ownership::Enforce);
    ledger.merge(&they.machine("10.1.0.1", NOW), NOW);
    ledger.merge(&other_network, NOW);
    assert!(ledger.get("machines", "10.9.0.1").is_some(), "it crosses");
    // It takes nothing from anybody: the address of a peer that lives stays with it.
    let third = Author::new(2);
    ledger.merge(&third.beat(NOW), NOW);
    ledger.merge(&third.machine("10.1.0.3", NOW), NOW);
    let merged = ledger.merge(&they.machine("10.1.0.3", after(1)), after(1));
    assert_eq!(reasons(&merged), [(Rejection::LiveOwner, 1)]);
}

#[test]
fn a_leader_that_was_ground_for_buries_nobody_who_lives() {
    let (us, victim) = (Author::new(0), Author::new(1));
    let weight = |author: &Author| edgevpn::wire::leader::weight(&author.name);
    let ground = (2..500)
        .map(Author::new)
        .max_by_key(weight)
        .expect("many tries");
    assert!(weight(&ground) > weight(&victim), "it leads");
    let mut ledger = us.ledger(Ownership::Enforce);
    ledger.merge(&ground.beat(NOW), NOW);
    ledger.merge(&victim.beat(NOW), NOW);
    ledger.merge(&victim.machine("10.1.0.1", NOW), NOW);
    for (bucket, key) in [("machines", "10.1.0.1"), ("healthcheck", &victim.name)] {
        for at in [1, 479] {
            let tombstone = ground.tombstone(bucket, key, after(at));
            let merged = ledger.merge(&block(bucket, key, tombstone), after(at));
            assert_eq!(reasons(&merged), [(Rejection::ForeignTombstone, 1)]);
        }
    }
    assert_eq!(ledger.why_not_member(&victim.peer, after(479)), None);
    let tombstone = ground.tombstone("machines", "10.1.0.1", after(480));
    ledger.merge(&block("machines", "10.1.0.1", tombstone), after(480));
    let held = ledger.get("machines", "10.1.0.1").expect("a tombstone");
    assert!(held.entry().deleted, "who fell silent may be cleared away");
}

#[test]
fn what_everybody_has_forgotten_is_not_handed_back() {
    let (us, they) = (Author::new(0), Author::new(1));
    let mut ledger = us.ledger(Ownership::Enforce);
    let dead = before(3 * 3600 + 60);
    let old = [they.beat(dead), they.machine("10.1.0.1", dead)];
    for message in &old {
        let merged = ledger.merge(message, NOW);
        assert_eq!(reasons(&merged), [(Rejection::Outdated, 1)]);
    }
    // An address that was announced long ago stays as long as its owner lives.
    ledger.merge(&they.beat(NOW), NOW);
    assert_eq!(ledger.merge(&old[1], NOW).changed.len(), 1);
    ledger.maintain(after(3 * 3600));
    assert_eq!(ledger.size().entries, 2);
    ledger.maintain(after(3 * 3600 + 120));
    assert_eq!(ledger.size().entries, 0);
}

#[test]
fn an_own_write_is_not_stored_where_others_would_refuse_it() {
    let (us, they) = (Author::new(0), Author::new(1));
    let mut ledger = us.ledger(Ownership::Enforce);
    ledger.merge(&they.beat(NOW), NOW);
    ledger.merge(&they.machine("10.1.0.1", NOW), NOW);
    let ours = format!(r#"{{"PeerID":"{}"}}"#, us.name);
    assert!(!ledger.put("machines", "10.1.0.1", &ours, &us.keypair, after(1)));
    assert!(ledger.put("machines", "10.1.0.2", &ours, &us.keypair, after(1)));
    assert!(!ledger.put("machines", "10.1.0.2", &ours, &us.keypair, after(9)));
    let theirs = format!(r#"{{"PeerID":"{}"}}"#, they.name);
    assert!(!ledger.put("machines", "10.1.0.3", &theirs, &us.keypair, after(1)));
    assert!(!ledger.delete("machines", "10.1.0.1", &us.keypair, after(1)));
    assert!(ledger.delete("machines", "10.1.0.2", &us.keypair, after(2)));
    assert!(!ledger.delete("machines", "10.1.0.2", &us.keypair, after(3)));
    assert!(
        ledger.put("machines", "10.1.0.1", &ours, &us.keypair, after(480)),
        "its owner has fallen silent"
    );
}

#[test]
fn a_clock_that_was_ahead_keeps_nobody_from_writing() {
    let (us, they) = (Author::new(0), Author::new(1));
    let mut theirs = they.ledger(Ownership::Enforce);
    let year = after(365 * 24 * 3600);
    theirs.put(
        "healthcheck",
        &they.name,
        &heartbeat(year),
        &they.keypair,
        year,
    );
    let mut ours = us.ledger(Ownership::Enforce);
    ours.merge(&theirs.block(year), NOW);
    assert!(matches!(
        ours.why_not_member(&they.peer, NOW),
        Some(NotMember::Future { .. })
    ));
    theirs.put(
        "healthcheck",
        &they.name,
        &heartbeat(NOW),
        &they.keypair,
        NOW,
    );
    ours.merge(&theirs.block(NOW), NOW);
    assert_eq!(ours.why_not_member(&they.peer, NOW), None);
}

#[test]
fn an_own_entry_that_others_buried_while_we_were_away_is_written_anew() {
    let (us, they) = (Author::new(0), Author::new(1));
    let mut ledger = us.ledger(Ownership::Enforce);
    let ours = format!(r#"{{"PeerID":"{}"}}"#, us.name);
    ledger.put(
        "healthcheck",
        &us.name,
        &heartbeat(after(590)),
        &us.keypair,
        after(590),
    );
    ledger.put("machines", "10.1.0.1", &ours, &us.keypair, NOW);
    let tombstone = they.tombstone("machines", "10.1.0.1", after(500));
    let merged = ledger.merge(
        &block("machines", "10.1.0.1", tombstone.clone()),
        after(600),
    );
    assert_eq!(merged.contested.len(), 1);
    let written = ledger.reassert(&merged.contested, &us.keypair, after(600));
    assert!(written[0].entry().version > tombstone.version);
    let again = ledger.merge(&block("machines", "10.1.0.1", tombstone), after(601));
    assert!(again.contested.is_empty(), "what is older contests nothing");
}
