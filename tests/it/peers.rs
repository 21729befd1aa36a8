//! Other libp2p implementations, as released, use the relay: they reserve, reach each other through it, and feel each
//! edit of its file.

pub mod counterparty;
mod rust;

use std::time::{Duration, Instant};

use counterparty::{Answer, Counterparty, Limit};

use crate::support::node::NodeUnderTest;

/// Enough for every first write of a library to be followed by more, little enough for the limit of the circuits.
const BYTES: usize = 64 * 1024;

const RELAY: &str = r#"
[relay.resources]
max_data = "1MiB"
max_duration = "2m"
reservation_ttl = "5m"
reservation_rate = "unlimited"
circuit_rate = "unlimited"
"#;

fn relay_admitting(acl: &str) -> String {
    format!("{RELAY}[acl]\nreserve = \"anyone\"\n{acl}")
}

#[test]
fn all_implementations_reserve_and_reach_each_other_over_tcp() {
    reserve_and_reach_each_other("tcp", &["go", "js", "py", "rust"]);
}

#[test]
fn all_implementations_with_quic_reserve_and_reach_each_other_over_it() {
    reserve_and_reach_each_other("quic-v1", &["go", "rust"]);
}

#[test]
fn all_implementations_with_websockets_reserve_and_reach_each_other_over_them() {
    reserve_and_reach_each_other("ws", &["go", "js", "rust"]);
}

fn reserve_and_reach_each_other(transport: &str, names: &[&'static str]) {
    let Some(mut all) = start(names, &format!("all implementations over {transport}")) else {
        return;
    };
    let node = NodeUnderTest::start(&relay_admitting(""));
    let relay = node.address(transport);

    for peer in &mut all {
        // The second time it renews, on the connection it has.
        for _ in 0..2 {
            expect_reservation(peer, &relay);
        }
    }
    let status = node.status().expect("the node answers");
    assert_eq!(
        status["node"]["relay"]["reservations"],
        names.len(),
        "a renewal takes no second slot: {status:#}"
    );

    for source in 0..all.len() {
        for destination in 0..all.len() {
            if source != destination {
                let destination = (all[destination].name, all[destination].peer_id.clone());
                expect_echo(&mut all[source], &relay, destination);
            }
        }
    }
}

#[test]
fn a_denied_peer_is_refused_at_once_and_admitted_again_when_the_entry_is_gone() {
    let Some(mut all) = start(
        &["go", "js", "py", "rust"],
        "a denied peer of each implementation",
    ) else {
        return;
    };
    let node = NodeUnderTest::start(&relay_admitting(""));
    let relay = node.address("tcp");
    for peer in &mut all {
        expect_reservation(peer, &relay);
    }

    for denied in 0..all.len() {
        let other = (denied + 1) % all.len();
        let name = all[denied].name;

        node.edit(&relay_admitting(&format!(
            "deny = [\"{}\"]",
            all[denied].peer_id
        )));
        let edited = Instant::now();
        until_refused(&mut all[denied], edited, |peer| peer.reserve(&relay));
        let denied_id = all[denied].peer_id.clone();
        until_refused(&mut all[other], edited, |peer| {
            peer.echo(&relay, &denied_id, BYTES)
        });
        let neighbour = (all[other].name, all[other].peer_id.clone());
        until_refused(&mut all[denied], edited, |peer| {
            peer.echo(&relay, &neighbour.1, BYTES)
        });

        node.apply(&relay_admitting(""));
        expect_reservation(&mut all[denied], &relay);
        expect_echo(&mut all[other], &relay, (name, denied_id));
    }
}

#[test]
fn a_relay_without_limits_gives_circuits_that_applications_need_not_spare() {
    let Some(mut all) = start(&["go", "js"], "unlimited circuits") else {
        return;
    };
    let unlimited = relay_admitting("")
        .replace("\"1MiB\"", "\"unlimited\"")
        .replace("\"2m\"", "\"unlimited\"");
    let node = NodeUnderTest::start(&unlimited);
    let relay = node.address("tcp");
    for peer in &mut all {
        let Answer::Reserved(_) = peer.reserve(&relay) else {
            panic!("{} has no reservation", peer.name)
        };
    }
    for (source, destination) in [(0, 1), (1, 0)] {
        let destination = all[destination].peer_id.clone();
        let answer = all[source].echo(&relay, &destination, BYTES);
        let Answer::Echoed(echoed) = answer else {
            panic!("{}: {answer:?}", all[source].name)
        };
        assert_eq!(echoed.limited, Some(false), "{}", all[source].name);
    }
}

fn start(names: &[&'static str], test: &str) -> Option<Vec<Counterparty>> {
    names
        .iter()
        .map(|name| Counterparty::start(name, test))
        .collect()
}

fn expect_reservation(peer: &mut Counterparty, relay: &str) {
    let answer = peer.reserve(relay);
    let Answer::Reserved(reserved) = answer else {
        panic!("{} has no reservation: {answer:?}", peer.name)
    };
    if let Some(voucher) = reserved.voucher {
        assert_eq!(voucher, "verified", "{}", peer.name);
    }
    if let Some(expires_in) = reserved.expires_in {
        assert!(
            (295..=300).contains(&expires_in),
            "{} has {expires_in} s",
            peer.name
        );
    }
    if let Some(limit) = reserved.limit {
        assert_eq!(
            limit,
            Limit {
                data: Some(1 << 20),
                duration: Some(120)
            },
            "{}",
            peer.name
        );
    }
    if let Some(addresses) = reserved.addresses {
        assert!(!addresses.is_empty(), "{} was told no address", peer.name);
    }
}

fn expect_echo(source: &mut Counterparty, relay: &str, (name, destination): (&str, String)) {
    let answer = source.echo(relay, &destination, BYTES);
    let Answer::Echoed(echoed) = answer else {
        panic!("{} to {name}: {answer:?}", source.name)
    };
    assert_eq!(echoed.bytes, BYTES, "{} to {name}", source.name);
    assert_ne!(echoed.limited, Some(false), "{} to {name}", source.name);
}

/// Asks until the relay says no. What was asked while the old connection was being closed may fail or still be granted;
/// two seconds after the edit that is over.
fn until_refused(
    peer: &mut Counterparty,
    edited: Instant,
    mut ask: impl FnMut(&mut Counterparty) -> Answer,
) {
    loop {
        match ask(peer) {
            Answer::Refused(status) => {
                return assert_eq!(status, "PERMISSION_DENIED", "{}", peer.name);
            }
            _ if edited.elapsed() < Duration::from_secs(2) => {}
            Answer::Failed(why) => panic!("{} is not refused but: {why}", peer.name),
            granted => panic!("{} is still granted {granted:?}", peer.name),
        }
    }
}
