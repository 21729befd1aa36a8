//! Merge decisions recorded from running Go nodes.

use edgevpn::{
    id::UnixTime,
    ledger::{Ledger, Ownership, Rejection},
    wire::{Block, Bounds, Storage},
};
use serde_json::{Value, json};

use super::{Author, terms};

#[test]
fn every_entry_is_judged_as_a_go_node_judged_it() {
    let mut judged = 0;
    for vector in of_kind("merge") {
        let ownership = match text(&vector, "mode").as_str() {
            "enforce" => Ownership::Enforce,
            "observe" => Ownership::Observe,
            other => panic!("mode {other}"),
        };
        let note = format!("{ownership:?}: {}", text(&vector, "note"));
        let now = UnixTime::from_secs(vector["now"].as_u64().expect("now"));
        assert_eq!(vector["ttl"], 480);

        let mut ledger = holding(&vector["have"], ownership, now);
        let incoming = read_block(&vector["in"]);
        let merged = ledger.merge(&incoming, now);

        let expected = storage(&vector["after"]);
        assert_eq!(ledger.block(now).storage, expected, "{note}");
        assert_eq!(
            !merged.changed.is_empty(),
            vector["new_block"],
            "{note}: is something new"
        );
        let warnings = vector["warn"].as_array().expect("warnings");
        let reported: u32 = merged
            .rejected
            .iter()
            .filter(|(reason, _)| **reason != Rejection::NotNewer)
            .map(|(_, count)| count)
            .sum();
        assert_eq!(reported as usize, warnings.len(), "{note}: {merged:?}");
        if let Some(warning) = warnings.first() {
            let warning = warning.as_str().expect("a text");
            let reason = reason_in(warning);
            assert!(
                merged.rejected.keys().any(|found| reason.contains(found)),
                "{note}: {warning}, not {:?}",
                merged.rejected
            );
        }
        judged += 1;
    }
    assert_eq!(judged, 100);
}

#[test]
fn with_ownership_off_the_higher_block_replaces_everything() {
    let mut judged = 0;
    for vector in of_kind("merge-off") {
        let now = UnixTime::from_secs(1_795_252_000);
        let block = |index: &str, hash: &str, value: &str| Block {
            index: vector[index].as_i64().expect("an index"),
            hash: text(&vector, hash),
            storage: storage(&json!({"b": {"k": value}})),
            ..Block::default()
        };
        let mut ledger = Author::new(0).ledger(Ownership::Off);
        ledger.merge(&block("local_index", "local_hash", "ours"), now);
        let incoming = block("in_index", "in_hash", "theirs");
        ledger.merge(&incoming, now);
        let adopted = ledger.block(now) == incoming;
        assert_eq!(adopted, vector["adopted"], "{}", text(&vector, "note"));
        judged += 1;
    }
    assert_eq!(judged, 6);
}

/// A ledger that holds this, whatever the rules say about it.
fn holding(have: &Value, ownership: Ownership, now: UnixTime) -> Ledger {
    let mut ledger = Author::new(0).ledger(Ownership::Off);
    let storage = storage(have);
    let count: usize = storage.values().map(|entries| entries.len()).sum();
    let block = Block {
        index: 1,
        storage,
        ..Block::default()
    };
    assert_eq!(ledger.merge(&block, now).changed.len(), count);
    ledger.set_terms(terms(ownership), now);
    ledger
}

/// Which of our reasons a warning of a Go node is.
fn reason_in(warning: &str) -> &'static [Rejection] {
    let reasons: [(&str, &[Rejection]); 9] = [
        (
            "invalid signature",
            &[Rejection::Unsigned, Rejection::BadSignature],
        ),
        (
            "value owner does not match signer",
            &[Rejection::ForeignOwner],
        ),
        (
            "overwrite of a live entry owned by another peer",
            &[Rejection::LiveOwner],
        ),
        ("rollback to an older version", &[Rejection::Rollback]),
        ("lost deterministic tie-break", &[Rejection::LostTie]),
        ("stale tombstone", &[Rejection::StaleTombstone]),
        (
            "tombstone by non-owner of a live entry",
            &[Rejection::ForeignTombstone],
        ),
        ("tombstone for unknown key", &[Rejection::UnknownTombstone]),
        ("stale re-claim over tombstone", &[Rejection::StaleClaim]),
    ];
    reasons
        .iter()
        .find(|(end, _)| warning.ends_with(end))
        .map(|(_, reasons)| *reasons)
        .unwrap_or_else(|| panic!("no reason of ours is {warning}"))
}

fn of_kind(kind: &'static str) -> impl Iterator<Item = Value> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/vectors/wire-vectors-live.json"
    );
    let text = std::fs::read_to_string(path).expect("the vectors");
    let all: Value = serde_json::from_str(&text).expect("JSON");
    let vectors = all["vectors"].as_array().expect("vectors").clone();
    vectors
        .into_iter()
        .filter(move |vector| vector["kind"] == kind)
}

fn read_block(json: &Value) -> Block {
    Block::from_json(json.to_string().as_bytes(), &Bounds::default()).expect("a block")
}

fn storage(json: &Value) -> Storage {
    read_block(&json!({ "Storage": json })).storage
}

fn text(vector: &Value, member: &str) -> String {
    vector[member].as_str().expect(member).to_owned()
}
