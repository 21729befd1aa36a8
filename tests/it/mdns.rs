//! Nodes on one link find each other without anybody's help.

use std::{sync::Arc, time::Instant};

use edgevpn::{config::Config, wire::Token};

use crate::support::net::{NetUnderTest, config, token};

const LOOPBACK: &[&str] = &["/ip4/127.0.0.1/tcp/0"];

fn on_mdns(token: &Arc<Token>) -> Config {
    let mut config = config(token);
    config.discovery.mdns = true;
    config
}

#[tokio::test]
async fn three_nodes_of_one_host_find_each_other() {
    let token = token(360);
    let started = Instant::now();
    let first = NetUnderTest::start(on_mdns(&token), LOOPBACK).await;
    let second = NetUnderTest::start(on_mdns(&token), LOOPBACK).await;
    first.until_connected(&second).await;
    println!("two nodes: {:?}", started.elapsed());
    let third = NetUnderTest::start(on_mdns(&token), LOOPBACK).await;
    third.until_connected(&first).await;
    third.until_connected(&second).await;
}

#[tokio::test]
async fn nodes_of_other_networks_stay_apart() {
    let (one, other) = (token(360), token(360));
    let first = NetUnderTest::start(on_mdns(&one), LOOPBACK).await;
    let second = NetUnderTest::start(on_mdns(&one), LOOPBACK).await;
    let stranger = NetUnderTest::start(on_mdns(&other), LOOPBACK).await;
    let last = NetUnderTest::start(on_mdns(&one), LOOPBACK).await;
    last.until_connected(&first).await;
    last.until_connected(&second).await;
    assert!(stranger.handle.report().await.peers.is_empty());
}

#[tokio::test]
async fn the_file_switches_mdns_on_and_off_while_the_node_runs() {
    let token = token(360);
    let first = NetUnderTest::start(on_mdns(&token), LOOPBACK).await;
    let mut second = NetUnderTest::start(config(&token), LOOPBACK).await;
    let third = NetUnderTest::start(on_mdns(&token), LOOPBACK).await;
    third.until_connected(&first).await;
    assert!(second.handle.report().await.peers.is_empty());
    second.apply(|config| config.discovery.mdns = true);
    second.until_connected(&first).await;
    second.until_connected(&third).await;
}
