//! Who reaches whom from which place, and on which path.

use std::time::{Duration, Instant};

use super::{
    network::{Network, path},
    world::{Host, Lab, Place},
};
use crate::support::node::NodeUnderTest;

/// One of each, and a second one of those that routers let reach each other.
const PLACES: [Place; 8] = [
    Place::Public,
    Place::OneToOne,
    Place::Easy,
    Place::Easy,
    Place::Hard,
    Place::CarrierGrade,
    Place::UdpBlocked,
    Place::V6Only,
];

/// How long a pair may take to find a path, from the start of the last node on.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn every_place_reaches_every_other_and_a_public_one_directly() {
    let Some(lab) = Lab::new("the grid of places") else {
        return;
    };
    let network = Network::new(360);
    let center = lab.public();
    let hub = center.node(&network.member(&[]));
    let address = center.dial(&hub);
    let (v4, v6) = (vec![address], vec![center.dial_v6(&hub)]);
    let homes: Vec<(Place, Host)> = PLACES.map(|place| (place, lab.place(place))).into();
    let nodes: Vec<(Place, NodeUnderTest)> = homes
        .iter()
        .map(|(place, home)| {
            let hub = if *place == Place::V6Only { &v6 } else { &v4 };
            (*place, home.node(&through(&network, hub)))
        })
        .collect();

    let began = Instant::now();
    let missing = |wanted: fn(Place, Place) -> Option<&'static str>| {
        let mut missing = Vec::new();
        for (at, (place, node)) in nodes.iter().enumerate() {
            let status = node.status().expect("the node answers");
            for (other_at, (other_place, other)) in nodes.iter().enumerate() {
                if at == other_at {
                    continue;
                }
                let found = path(&status, &other.peer_id()).map(str::to_owned);
                let fits = match wanted(*place, *other_place) {
                    None => found.is_some(),
                    Some(wanted) => found.as_deref() == Some(wanted),
                };
                if !fits {
                    missing.push(format!("{place:?} → {other_place:?}: {found:?}"));
                }
            }
        }
        missing
    };
    hub.until("every pair has a path", |_| {
        let missing = missing(|_, _| None);
        assert!(
            missing.is_empty() || began.elapsed() < PATIENCE,
            "without a path after {PATIENCE:?}: {missing:#?}"
        );
        missing.is_empty()
    });
    hub.until("and a direct one with public places", |_| {
        let missing = missing(|one, other| is_direct(one, other).then_some("direct"));
        assert!(
            missing.is_empty() || began.elapsed() < 2 * PATIENCE,
            "not direct: {missing:#?}"
        );
        missing.is_empty()
    });
}

/// Whether two places are sure of a direct path: one of them is public. Routers allow more, and nodes find some of it: holes
/// between easy NATs, one of them behind a carrier's, and a way to a one-to-one host from anywhere.
fn is_direct(one: Place, other: Place) -> bool {
    one == Place::Public || other == Place::Public
}

#[test]
#[ignore = "a fault that is known: in one run of three the pair does not dial through the second relay within 30 s"]
fn a_second_relay_takes_over_when_the_first_one_dies() {
    let Some(lab) = Lab::new("the death of a relay") else {
        return;
    };
    let network = Network::new(360);
    let centers = [lab.public(), lab.public()];
    let first = centers[0].node(&network.member(&[]));
    let mut hubs = vec![centers[0].dial(&first)];
    let second = centers[1].node(&network.member(&hubs));
    hubs.push(centers[1].dial(&second));
    let homes = [lab.place(Place::Hard), lab.place(Place::Hard)];
    let [one, other] = homes
        .each_ref()
        .map(|home| home.node(&through(&network, &hubs)));
    for hub in [&first, &second] {
        hub.until("both hold a reservation", |status| {
            status["node"]["relay"]["reservations"].as_u64() >= Some(2)
        });
    }
    let ids = [one.peer_id(), other.peer_id()];
    one.until("a path", |status| path(status, &ids[1]) == Some("relayed"));

    // Each knows the way to the other through the second relay.
    let second_id = second.peer_id();
    for (node, other) in [(&one, &ids[1]), (&other, &ids[0])] {
        node.until("the other way", |status| {
            let list = status["node"]["network"]["peers"].as_array();
            let member =
                list.and_then(|list| list.iter().find(|member| member["peer"] == other.as_str()));
            let addresses = member.and_then(|member| member["addresses"].as_array());
            addresses.is_some_and(|all| {
                let is_it =
                    |address: &str| address.contains(&second_id) && address.contains("p2p-circuit");
                all.iter().filter_map(|address| address.as_str()).any(is_it)
            })
        });
    }

    first.kill();
    let died = Instant::now();
    second.until("it carries the pair", |status| {
        status["node"]["relay"]["circuits"].as_u64() > Some(0)
    });
    one.until("a path again", |status| {
        path(status, &ids[1]) == Some("relayed")
    });
    other.until("and back", |status| {
        path(status, &ids[0]) == Some("relayed")
    });
    let took = died.elapsed();
    assert!(took < Duration::from_secs(10), "it took {took:?}");
}

/// A member that stays connected to `hubs` and reserves slots there.
fn through(network: &Network, hubs: &[String]) -> String {
    format!("{}[relay]\npeers = {hubs:?}\n", network.member(hubs))
}
