//! Members who share nothing but a token and one address find each other.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use edgevpn::{
    config::{Config, Peer},
    wire::Token,
};

use crate::support::net::{NetUnderTest, config, token};

const LOOPBACK: &[&str] = &["/ip4/127.0.0.1/tcp/0"];

fn on_dht(token: &Arc<Token>, entrance: &Peer) -> Config {
    let mut config = config(token);
    config.discovery.dht = true;
    config.discovery.bootstrap_peers = vec![entrance.clone()];
    config
}

/// A server of the DHT that is no member of the network under test.
async fn entrance() -> (NetUnderTest, Peer) {
    let elsewhere = Peer {
        id: edgevpn::id::PeerId::random(),
        addresses: vec!["/ip4/127.0.0.1/tcp/1".parse().expect("an address")],
    };
    let node = NetUnderTest::start(on_dht(&token(3600), &elsewhere), LOOPBACK).await;
    let peer = Peer {
        id: node.id(),
        addresses: vec![node.address().await],
    };
    (node, peer)
}

#[tokio::test]
async fn members_meet_through_one_entrance() {
    let (_entrance, at) = entrance().await;
    let token = token(360);
    let started = Instant::now();
    let first = NetUnderTest::start(on_dht(&token, &at), LOOPBACK).await;
    let second = NetUnderTest::start(on_dht(&token, &at), LOOPBACK).await;
    first.until_connected(&second).await;
    println!("two members: {:?}", started.elapsed());
    let started = Instant::now();
    let third = NetUnderTest::start(on_dht(&token, &at), LOOPBACK).await;
    third.until_connected(&first).await;
    println!("a third: {:?}", started.elapsed());
    third.until_connected(&second).await;
}

#[tokio::test]
async fn who_comes_after_a_rotation_finds_who_was_there_before() {
    const INTERVAL: Duration = Duration::from_secs(2);
    let (_entrance, at) = entrance().await;
    let token = token(INTERVAL.as_secs());
    let first = NetUnderTest::start(on_dht(&token, &at), LOOPBACK).await;
    let key = |net: &edgevpn::net::NetReport| net.dht.is_some_and(|dht| dht.last_look.is_some());
    first.until("announced", key).await;
    // Three windows on, not one of the keys is the same.
    tokio::time::sleep(3 * INTERVAL).await;
    let second = NetUnderTest::start(on_dht(&token, &at), LOOPBACK).await;
    second.until_connected(&first).await;
}

#[tokio::test]
async fn the_file_switches_the_dht_on_and_off_while_the_node_runs() {
    let (entrance, at) = entrance().await;
    let token = token(360);
    let first = NetUnderTest::start(on_dht(&token, &at), LOOPBACK).await;
    first.until_connected(&entrance).await;
    let mut second = NetUnderTest::start(config(&token), LOOPBACK).await;
    assert!(second.handle.report().await.dht.is_none());
    second.apply(|config| config.discovery = on_dht(&token, &at).discovery);
    second.until_connected(&first).await;
    second.apply(|config| config.discovery.dht = false);
    second.until("off", |report| report.dht.is_none()).await;
    let known = second.handle.report().await.found.known;
    assert_eq!((known.bootstrap, known.dht), (0, 0));
}

#[tokio::test]
async fn with_neither_dht_nor_mdns_the_peers_of_the_file_are_all_a_node_knows() {
    let token = token(360);
    let first = NetUnderTest::start(config(&token), LOOPBACK).await;
    let mut alone = config(&token);
    alone.peers = vec![Peer {
        id: first.id(),
        addresses: vec![first.address().await],
    }];
    let second = NetUnderTest::start(alone, LOOPBACK).await;
    second.until_connected(&first).await;
    let report = second.handle.report().await;
    assert_eq!(report.established, 1);
    assert_eq!((report.pending, report.found.known.file), (0, 1));
    assert!(report.dht.is_none());
}
