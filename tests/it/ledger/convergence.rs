//! Copies of the ledger become one again, whatever happens to the messages between them.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use edgevpn::ledger::Ownership;
use rand::Rng;

use super::{
    network::{Network, Settings},
    terms,
};

fn settings() -> Settings {
    let mut terms = terms(Ownership::Enforce);
    terms.quota_entries = 4096;
    terms.quota_bytes = 1 << 20;
    Settings {
        terms,
        heartbeat: Duration::from_secs(120),
        sync_interval: Duration::from_secs(10),
        latency: (Duration::from_millis(1), Duration::from_millis(80)),
        loss: 0,
        repeated: 0,
    }
}

/// What is alive, by place: what two nodes must agree on.
fn projection(network: &Network, node: usize) -> BTreeMap<(String, String), (String, u64)> {
    network.nodes[node]
        .ledger
        .iter()
        .filter(|record| !record.entry().deleted)
        .map(|record| {
            let place = (record.bucket().to_string(), record.key().to_owned());
            (
                place,
                (record.entry().value.clone(), record.entry().version),
            )
        })
        .collect()
}

fn all_equal(network: &Network) -> bool {
    let first = projection(network, 0);
    (1..network.nodes.len())
        .filter(|node| network.nodes[*node].up)
        .all(|node| projection(network, node) == first)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_change_reaches_everybody_at_once_and_nobody_much_more_than_twice() {
    let mut network = Network::new(settings(), 1);
    for _ in 0..60 {
        network.add();
    }
    network.link_at_random(8);
    for node in 0..60 {
        network.start_heartbeat(node, true);
    }
    // The first changes find the links that are kept.
    network.run_until(seconds(600));
    assert!(all_equal(&network));
    network.traffic.clear();
    network.run_until(seconds(1200));
    let (news, _) = network.traffic["news"];
    let needed = 60 * 59 * 5;
    assert!(
        news < needed * 5 / 2,
        "{news} pushes where {needed} were enough"
    );
    let answers: u64 = ["listings", "want", "answer"]
        .iter()
        .filter_map(|label| network.traffic.get(label))
        .map(|(count, _)| count)
        .sum();
    assert!(answers <= 60, "{answers} repairs where nothing was lost");

    let started = network.now;
    network.put(3, "machines", "10.1.0.3", &owned_by(&network, 3));
    network.run_until(started + seconds(1));
    for node in &network.nodes {
        let arrived = node.ledger.get("machines", "10.1.0.3").is_some();
        assert!(arrived, "a change took longer than a second");
    }
}

#[test]
fn an_idle_network_says_one_number_a_neighbour_and_ever_less_often() {
    let mut network = Network::new(settings(), 2);
    for _ in 0..40 {
        network.add();
    }
    network.link_at_random(8);
    for node in 0..40 {
        for entry in 0..50 {
            let value = owned_by(&network, node);
            network.put(node, "machines", &format!("10.{node}.0.{entry}"), &value);
        }
    }
    network.run_until(seconds(600));
    assert!(all_equal(&network));
    assert_eq!(network.nodes[0].ledger.size().entries, 2000);
    for node in &mut network.nodes {
        node.bytes_out = 0;
        node.messages_out = 0;
    }
    network.traffic.clear();
    network.run_until(seconds(1600));
    let kinds: Vec<_> = network.traffic.keys().collect();
    assert_eq!(kinds, [&"summary"], "{:?}", network.traffic);
    for node in &network.nodes {
        let rate = node.messages_out as f64 / 1000.0 / node.neighbours.len() as f64;
        assert!(rate < 0.02, "{rate} messages a second to each neighbour");
    }
}

#[test]
fn what_was_lost_repeated_or_out_of_order_is_made_good() {
    for seed in 0..5 {
        let mut network = Network::new(
            Settings {
                loss: 200,
                repeated: 200,
                latency: (Duration::from_millis(1), Duration::from_secs(3)),
                ..settings()
            },
            seed,
        );
        for _ in 0..20 {
            network.add();
        }
        network.link_at_random(5);
        for turn in 0..200 {
            let node = network.random.random_range(0..20);
            let value = owned_by(&network, node);
            let key = format!("10.{node}.0.{}", turn % 7);
            if !network.put(node, "machines", &key, &value) {
                let here = &mut network.nodes[node];
                let now = edgevpn::id::UnixTime(super::network::BEGIN.0 + network.now);
                here.ledger.delete("machines", &key, &here.keypair, now);
                // The deletion is told to nobody: sums must find it.
            }
            let next = network.now + Duration::from_millis(300);
            network.run_until(next);
        }
        network.settings.loss = 100;
        network.run_until(seconds(600));
        assert!(all_equal(&network), "seed {seed}");
    }
}

#[test]
fn two_sides_of_a_partition_agree_within_thirty_seconds_of_its_end() {
    let mut slowest = Duration::ZERO;
    for seed in 0..50 {
        let mut network = Network::new(settings(), seed);
        for _ in 0..5 {
            network.add();
        }
        network.link_at_random(4);
        for node in 0..5 {
            network.start_heartbeat(node, true);
        }
        network.run_until(seconds(30));
        part(&mut network, 2);
        for turn in 0..500 {
            for side in [0..2, 2..5] {
                let node = network.random.random_range(side);
                if turn % 2 == 0 {
                    let value = owned_by(&network, node);
                    let key = format!("10.{node}.{}.{}", turn % 3, turn % 60);
                    network.put(node, "machines", &key, &value);
                } else {
                    let owner = &network.nodes[node].name;
                    let value = format!(r#"{{"PeerID":"{owner}","Name":"{turn}"}}"#);
                    network.put(
                        node,
                        "services",
                        &format!("web-{node}-{}", turn % 9),
                        &value,
                    );
                }
            }
            let next = network.now + Duration::from_millis(240);
            network.run_until(next);
        }
        assert!(!all_equal(&network), "seed {seed}: they were apart");
        heal(&mut network);
        let healed = network.now;
        while !all_equal(&network) {
            assert!(network.now < healed + seconds(30), "seed {seed}");
            let next = network.now + Duration::from_millis(100);
            network.run_until(next);
        }
        slowest = slowest.max(network.now - healed);
    }
    assert!(slowest <= seconds(30));
}

#[test]
fn an_entry_that_was_deleted_on_one_side_does_not_come_back_from_the_other() {
    for seed in 0..10 {
        let mut network = Network::new(settings(), seed);
        for _ in 0..6 {
            network.add();
        }
        network.link_at_random(4);
        for node in 0..6 {
            network.start_heartbeat(node, true);
            let value = owned_by(&network, node);
            network.put(node, "machines", &format!("10.0.0.{node}"), &value);
        }
        network.run_until(seconds(200));
        assert!(all_equal(&network));
        part(&mut network, 3);
        for (one, other) in [(0, 1), (1, 2), (3, 4), (4, 5)] {
            network.link(one, other);
        }
        network.run_until(seconds(260));
        network.stop(1, true);
        network.run_until(seconds(300));
        heal(&mut network);
        network.run_until(seconds(360));
        assert!(all_equal(&network), "seed {seed}");
        let left = network.nodes[1].peer;
        for node in [0, 2, 3, 4, 5] {
            let ledger = &network.nodes[node].ledger;
            assert!(
                ledger
                    .get("machines", "10.0.0.1")
                    .expect("a tombstone")
                    .entry()
                    .deleted
            );
            assert!(ledger.membership(network.clock()).1.contains(&left));
        }
        // And after three hours nobody remembers it, all in the same minute.
        network.run_until(seconds(4 * 3600));
        for node in [0, 2, 3, 4, 5] {
            assert!(
                network.nodes[node]
                    .ledger
                    .get("machines", "10.0.0.1")
                    .is_none()
            );
        }
    }
}

#[test]
fn a_newcomer_is_told_everything_once() {
    let mut network = Network::new(settings(), 7);
    for _ in 0..30 {
        network.add();
    }
    network.link_at_random(6);
    for node in 0..30 {
        network.start_heartbeat(node, false);
        for entry in 0..40 {
            let value = owned_by(&network, node);
            network.put(node, "machines", &format!("10.{node}.0.{entry}"), &value);
        }
    }
    network.run_until(seconds(300));
    assert!(all_equal(&network));
    let newcomer = network.add();
    network.start_heartbeat(newcomer, false);
    let joined = network.now;
    network.run_until(joined + seconds(1));
    let content: u64 = network.nodes[0].ledger.iter().count() as u64 * 230;
    network.link_up(newcomer, 6);
    network.run_until(joined + seconds(3));
    assert!(
        projection(&network, newcomer).len() >= 1231,
        "two seconds after it connected it knows {}",
        projection(&network, newcomer).len()
    );
    network.run_until(joined + seconds(50));
    assert!(all_equal(&network));
    let told = network.nodes[newcomer].bytes_in;
    assert!(told < 7 * content, "{told} bytes for a ledger of {content}");
}

/// Cuts the nodes before `first` from the others.
fn part(network: &mut Network, first: usize) {
    let links: Vec<_> = network.links.iter().copied().collect();
    for (one, other) in links {
        if (one < first) != (other < first) {
            network.unlink(one, other);
        }
    }
    for node in first..network.nodes.len() {
        network.sides[node] = 1;
    }
}

fn heal(network: &mut Network) {
    for side in &mut network.sides {
        *side = 0;
    }
    for node in 0..network.nodes.len() {
        if network.nodes[node].up {
            network.link_up(node, 4);
        }
    }
}

fn owned_by(network: &Network, node: usize) -> String {
    let names: HashMap<_, _> = [("PeerID", &network.nodes[node].name)].into();
    serde_json::to_string(&names).expect("JSON")
}
