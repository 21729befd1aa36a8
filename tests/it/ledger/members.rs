//! Who is a member, and who is not and why.

use std::{collections::HashSet, time::Duration};

use edgevpn::{
    id::{PeerId, UnixTime},
    ledger::{Ledger, Node, NotMember, Ownership},
    wire::{Entry, value::heartbeat},
};

use super::{Author, NOW, TTL, after, before, block, terms};

fn members(ledger: &Ledger, now: UnixTime) -> HashSet<PeerId> {
    ledger.membership(now).0.into_keys().collect()
}

#[test]
fn a_signed_live_heartbeat_makes_a_member() {
    let (us, they) = (Author::new(0), Author::new(1));
    let mut ledger = us.ledger(Ownership::Enforce);
    assert_eq!(
        ledger.why_not_member(&they.peer, NOW),
        Some(NotMember::Unknown)
    );
    let revision = ledger.membership_revision();
    ledger.merge(&they.beat(NOW), NOW);
    let (members, withdrawn) = ledger.membership(NOW);
    assert_eq!(members.into_iter().collect::<Vec<_>>(), [(they.peer, NOW)]);
    assert!(withdrawn.is_empty());
    assert_ne!(ledger.membership_revision(), revision);
    assert_eq!(ledger.why_not_member(&they.peer, NOW), None);
}

#[test]
fn no_heartbeat_of_the_zoo_makes_a_member() {
    let (us, they, other) = (Author::new(0), Author::new(1), Author::new(2));
    let name = they.name.as_str();
    let year = Duration::from_secs(365 * 24 * 3600);
    let beat = |value_at: UnixTime, updated: UnixTime| {
        let entry = Entry {
            value: heartbeat(value_at),
            version: NOW.as_nanos(),
            updated_at: updated.as_secs() as i64,
            ..Entry::default()
        };
        they.sign("healthcheck", name, entry)
    };
    let unsigned = Entry {
        value: heartbeat(NOW),
        ..Entry::default()
    };
    let forged = Entry {
        signature: vec![1; 64],
        ..beat(NOW, NOW)
    };
    let borrowed = Entry {
        owner: they.name.clone(),
        ..other.entry("healthcheck", name, &heartbeat(NOW), NOW)
    };
    let foreign = other.entry("healthcheck", name, &heartbeat(NOW), NOW);
    let no_time = they.entry("healthcheck", name, "\"soon\"", NOW);
    let next_year = NOW.saturating_add(year);
    let zoo = [
        ("unsigned", unsigned, NotMember::Unsigned),
        ("forged", forged, NotMember::BadSignature),
        ("borrowed name", borrowed, NotMember::BadSignature),
        ("foreign owner", foreign, NotMember::BadSignature),
        ("no time", no_time, NotMember::Unreadable),
        (
            "stale",
            beat(before(480), before(480)),
            NotMember::Stale { age: TTL },
        ),
        (
            "old value, new date",
            beat(before(481), NOW),
            NotMember::Stale {
                age: Duration::from_secs(481),
            },
        ),
        (
            "new value, old date",
            beat(NOW, before(500)),
            NotMember::Stale {
                age: Duration::from_secs(500),
            },
        ),
        (
            "31 s ahead",
            beat(after(31), NOW),
            NotMember::Future {
                by: Duration::from_secs(31),
            },
        ),
        (
            "value a year ahead",
            beat(next_year, NOW),
            NotMember::Future { by: year },
        ),
        (
            "date a year ahead",
            beat(NOW, next_year),
            NotMember::Future { by: year },
        ),
    ];
    for ownership in [Ownership::Enforce, Ownership::Observe, Ownership::Off] {
        for (what, entry, why) in &zoo {
            let mut ledger = us.ledger(ownership);
            let mut incoming = block("healthcheck", name, entry.clone());
            incoming.index = 1;
            ledger.merge(&incoming, NOW);
            ledger.maintain(NOW);
            assert!(
                members(&ledger, NOW).is_empty(),
                "{ownership:?}: {what} is a member"
            );
            assert_eq!(
                ledger.why_not_member(&they.peer, NOW),
                Some(*why),
                "{ownership:?}: {what}"
            );
        }
    }
}

#[test]
fn a_heartbeat_counts_up_to_its_ttl_and_thirty_seconds_ahead() {
    let (us, they) = (Author::new(0), Author::new(1));
    for (written, counts) in [
        (before(480), false),
        (before(479), true),
        (after(30), true),
        (after(31), false),
    ] {
        let mut ledger = us.ledger(Ownership::Enforce);
        ledger.merge(&they.beat(written), NOW);
        assert_eq!(
            members(&ledger, NOW).contains(&they.peer),
            counts,
            "{written:?}"
        );
    }
}

#[test]
fn this_node_is_never_a_member_of_its_own() {
    let us = Author::new(0);
    let mut ledger = us.ledger(Ownership::Enforce);
    ledger.put("healthcheck", &us.name, &heartbeat(NOW), &us.keypair, NOW);
    assert!(members(&ledger, NOW).is_empty());
    assert_eq!(
        ledger.why_not_member(&us.peer, NOW),
        Some(NotMember::Itself)
    );
}

#[test]
fn a_member_that_leaves_is_withdrawn_and_one_that_falls_silent_is_not() {
    let (us, leaves, silent) = (Author::new(0), Author::new(1), Author::new(2));
    let mut ledger = us.ledger(Ownership::Enforce);
    ledger.merge(&leaves.beat(NOW), NOW);
    ledger.merge(&silent.beat(NOW), NOW);
    let tombstone = leaves.tombstone("healthcheck", &leaves.name, after(1));
    ledger.merge(&block("healthcheck", &leaves.name, tombstone), after(1));
    let (members, withdrawn) = ledger.membership(after(1));
    assert_eq!(members.into_keys().collect::<Vec<_>>(), [silent.peer]);
    assert_eq!(withdrawn, HashSet::from([leaves.peer]));
    assert_eq!(
        ledger.why_not_member(&leaves.peer, after(1)),
        Some(NotMember::Withdrawn)
    );

    let revision = ledger.membership_revision();
    let lapse = ledger.next_deadline().expect("a heartbeat lapses");
    assert!(lapse <= after(480));
    ledger.maintain(after(480));
    assert_ne!(ledger.membership_revision(), revision, "it lapsed");
    let (members, withdrawn) = ledger.membership(after(480));
    assert!(members.is_empty());
    assert_eq!(withdrawn, HashSet::from([leaves.peer]));

    // Somebody clears away what lapsed: that is no withdrawal.
    let cleared = us.tombstone("healthcheck", &silent.name, after(481));
    ledger.merge(&block("healthcheck", &silent.name, cleared), after(481));
    assert_eq!(
        ledger.why_not_member(&silent.peer, after(481)),
        Some(NotMember::Buried)
    );
    assert_eq!(
        ledger.membership(after(481)).1,
        HashSet::from([leaves.peer])
    );

    // And it may come back.
    ledger.merge(&leaves.beat(after(490)), after(490));
    let (members, withdrawn) = ledger.membership(after(490));
    assert!(members.contains_key(&leaves.peer));
    assert!(withdrawn.is_empty());
}

#[test]
fn a_renewed_heartbeat_is_no_change_of_membership() {
    let (us, they) = (Author::new(0), Author::new(1));
    let mut ledger = us.ledger(Ownership::Enforce);
    ledger.merge(&they.beat(NOW), NOW);
    let revision = ledger.membership_revision();
    ledger.merge(&they.beat(after(120)), after(120));
    ledger.maintain(after(500));
    assert_eq!(ledger.membership_revision(), revision);
    assert_eq!(
        ledger.membership(after(500)).0.get(&they.peer),
        Some(&after(120))
    );
}

#[test]
fn a_clock_that_steps_changes_who_counts_and_forgets_nobody() {
    let (us, they) = (Author::new(0), Author::new(1));
    let mut ledger = us.ledger(Ownership::Enforce);
    ledger.merge(&they.beat(NOW), NOW);
    for _ in 0..10 {
        ledger.maintain(after(3600));
        assert!(members(&ledger, after(3600)).is_empty(), "an hour ahead");
        ledger.maintain(before(3600));
        assert!(members(&ledger, before(3600)).is_empty(), "an hour behind");
        ledger.maintain(NOW);
        assert!(members(&ledger, NOW).contains(&they.peer), "back again");
    }
    assert_eq!(ledger.size().entries, 1);
}

#[test]
fn another_ttl_counts_from_now_on() {
    let (us, they) = (Author::new(0), Author::new(1));
    let mut ledger = us.ledger(Ownership::Enforce);
    ledger.merge(&they.beat(before(100)), NOW);
    let mut shorter = terms(Ownership::Enforce);
    shorter.ttl = Duration::from_secs(60);
    ledger.set_terms(shorter, NOW);
    assert!(members(&ledger, NOW).is_empty());
    ledger.set_terms(terms(Ownership::Enforce), NOW);
    assert!(members(&ledger, NOW).contains(&they.peer));
}

#[test]
fn members_tell_their_addresses_to_each_other_and_not_to_go_nodes() {
    let (us, they) = (Author::new(0), Author::new(1));
    let node = Node {
        peer: they.peer,
        name: "gate".to_owned(),
        addresses: vec!["/ip4/192.0.2.1/tcp/4501".parse().expect("an address")],
        version: "0.1.0".to_owned(),
    };
    let mut theirs = they.ledger(Ownership::Enforce);
    assert!(theirs.put("nodes", &they.name, &node.value(), &they.keypair, NOW));
    assert!(theirs.block(NOW).storage.is_empty());

    let records = theirs.iter().cloned().collect();
    let mut ours = us.ledger(Ownership::Enforce);
    assert_eq!(ours.merge_records(records, NOW).changed.len(), 1);
    assert_eq!(ours.node(&they.peer), Some(node));

    let wrong = they.entry("nodes", &they.name, r#"{"PeerID":"x"}"#, after(1));
    ours.merge(&block("nodes", &they.name, wrong), after(1));
    assert!(
        ours.node(&they.peer).is_some(),
        "what is no node is not taken"
    );
}
