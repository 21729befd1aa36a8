//! Reservations on other relays: made, lost, replaced, given back.

use std::time::{Duration, Instant};

use edgevpn::{
    acl::Audience,
    net::streams::{Link, Route},
    relay::upkeep::{Failure, Source, Stage},
};
use libp2p::StreamProtocol;

use super::bench::{Node, serve};

const TALK: StreamProtocol = StreamProtocol::new("/test/reach/talk");

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_static_relays_holds_reservations_and_is_dialled_through_them() {
    let (first, second) = (Node::relay().await, Node::relay().await);
    let node = Node::client_of(&[&first, &second]).await;
    let report = node.holds(&[&first, &second]).await;
    for relay in &report.relays {
        assert_eq!(relay.entry.source, Source::Static);
    }
    node.until("addresses to be dialled at", |report| {
        let mut relays = report.relays.iter();
        relays.all(|relay| !relay.addresses.is_empty())
    })
    .await;

    let mut talks = node.net.streams().accept(TALK, 8).expect("accepts");
    let through = node.through(&[&second]);
    let caller = Node::start(|config| config.peers = vec![through]).await;
    let links = caller.linked(node.id, |links| links.len() == 1).await;
    assert!(links.iter().all(|link| link.relayed));
    let open = caller
        .net
        .streams()
        .open(node.id, TALK, Route::PreferDirect);
    let _stream = open.await.expect("opens");
    assert!(talks.next().await.expect("comes").relayed);
}

/// G-06: a relay dies; those who are reached through it are reached through the other one within ten seconds.
#[tokio::test(flavor = "multi_thread")]
async fn when_a_relay_dies_the_second_takes_over() {
    let (first, second, third) = (
        Node::relay().await,
        Node::relay().await,
        Node::relay().await,
    );
    let node = Node::client_of(&[&first, &second]).await;
    node.holds(&[&first, &second]).await;
    let third_too = third.peer();
    node.edit(|config| config.relay_client.peers.push(third_too));
    let through = node.through(&[&first]);
    let caller = Node::start(|config| config.peers = vec![through]).await;
    let links = caller.linked(node.id, |links| links.len() == 1).await;
    let before = links[0].connection;
    let either = node.through(&[&first, &second]);
    caller.edit(|config| config.peers = vec![either]);

    drop(first);
    let died = Instant::now();

    let again = |links: &[Link]| links.iter().any(|link| link.connection != before);
    caller.linked(node.id, again).await;
    let reached_again = died.elapsed();
    assert!(reached_again < Duration::from_secs(10), "{reached_again:?}");
    node.holds(&[&second, &third]).await;
    let replaced = died.elapsed();
    assert!(replaced < Duration::from_secs(10), "{replaced:?}");
    println!("reached again after {reached_again:?}, replaced after {replaced:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_comes_back_is_asked_again() {
    let relay = Node::relay().await;
    let node = Node::client_of(&[&relay]).await;
    node.holds(&[&relay]).await;
    relay.hide(&node);
    node.holds(&[]).await;

    relay.show();

    node.holds(&[&relay]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_join_and_leave_with_the_file() {
    let (first, second) = (Node::relay().await, Node::relay().await);
    let node = Node::client_of(&[&first]).await;
    node.holds(&[&first]).await;

    node.edit(|config| config.relay_client.peers = vec![second.peer()]);
    node.holds(&[&second]).await;

    node.edit(|config| config.relay_client.peers = vec![first.peer(), second.peer()]);
    node.holds(&[&first, &second]).await;

    node.edit(|config| config.relay_client.enabled = false);
    let report = node.holds(&[]).await;
    assert!(!report.wanted);

    node.edit(|config| config.relay_client.enabled = true);
    node.holds(&[&first, &second]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_node_leaves_the_relay_alone_for_long_and_says_so() {
    let relay = Node::start(serve(Audience::Listed)).await;
    let node = Node::client_of(&[&relay]).await;

    let denied = |failure| failure == Some(Failure::Denied);
    let report = node
        .until("told no", |report| {
            report
                .relays
                .iter()
                .any(|relay| denied(relay.entry.last_failure))
        })
        .await;
    let [entry] = report.relays.as_slice() else {
        panic!("{report:?}")
    };
    let Stage::Resting { until } = entry.entry.stage else {
        panic!("{report:?}")
    };
    assert!(until > Duration::from_secs(3500), "{until:?}");
    assert_eq!(
        relay.net.report().await.relay.refused.values().sum::<u64>(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_met_on_the_way_is_asked_once_it_is_a_member() {
    let relay = Node::relay().await;
    let hub = relay.peer();
    let node = Node::start(|config| config.peers = vec![hub]).await;
    let report = node
        .until("a candidate", |report| !report.relays.is_empty())
        .await;
    assert!(matches!(
        report.relays.as_slice(),
        [only] if only.entry.source == Source::Found && only.entry.stage == Stage::Candidate
    ));

    node.has_members(&[&relay]);

    let report = node.holds(&[&relay]).await;
    assert_eq!(report.relays[0].entry.source, Source::Member);
}
