//! What a neighbour with the token and bad intentions can send, and what comes of it.

use edgevpn::{ledger::Ownership, wire::Entry};

use super::{Author, NOW, blocks};

#[test]
fn an_author_takes_no_more_than_its_quota_and_nobody_elses() {
    let (us, flooder, neighbour) = (Author::new(0), Author::new(1), Author::new(2));
    let mut ledger = us.ledger(Ownership::Enforce);
    let keys: Vec<String> = (0..100_000).map(|n| format!("flood-{n}")).collect();
    // One signature for all: the quota is looked at before the signature would be.
    let value = format!(r#"{{"PeerID":"{}"}}"#, flooder.name);
    let flood = blocks(keys.iter().enumerate().map(|(nth, key)| {
        let entry = match nth {
            0..1000 => flooder.entry("services", key, &value, NOW),
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
