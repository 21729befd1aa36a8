//! Nodes of one network, each the real program in a folder of its own: who becomes a member, who does not, and what that
//! opens.

use crate::support::{
    node::{NodeUnderTest, get},
    relay::{Client, Refused},
};
use edgevpn::{id::PeerId, net::relay::proto, wire::Token};
use libp2p::{Multiaddr, identity::Keypair};
use serde_json::Value;
use std::{fs, time::Duration};

/// PERMISSION_DENIED.
const DENIED: Refused = Refused(202);

/// A network of its own.
fn token() -> String {
    Token::generate(3600, |bytes| rand::fill(bytes)).to_base64()
}

/// A node that finds others through `[[peer]]` alone. Heartbeats are rare: what is seen in time was told at once.
fn member(token: &str, more: &str) -> String {
    format!(
        r#"
[network]
token = "{token}"
[discovery]
mdns = false
dht = false
[relay]
service = true
{more}"#
    )
}

fn peer_of(node: &NodeUnderTest) -> String {
    let address = node.address("tcp");
    let (address, id) = address.rsplit_once("/p2p/").expect("an address with an id");
    format!("[[peer]]\nid = \"{id}\"\naddresses = [\"{address}\"]\n")
}

fn address_of(node: &NodeUnderTest) -> (PeerId, Multiaddr) {
    let id = node.peer_id().parse().expect("a peer id");
    (id, node.address("tcp").parse().expect("an address"))
}

fn members(status: &Value) -> u64 {
    status["node"]["network"]["members"].as_u64().unwrap_or(0)
}

/// What a status says of one peer.
fn about<'a>(status: &'a Value, peer: &str) -> Option<&'a Value> {
    let peers = status["node"]["network"]["peers"].as_array()?;
    peers.iter().find(|known| known["peer"] == peer)
}

#[test]
fn two_nodes_with_one_token_are_members_of_each_other() {
    let token = token();
    let hub = NodeUnderTest::start(&member(&token, ""));
    let other = NodeUnderTest::start(&member(&token, &peer_of(&hub)));
    other.until("the hub is a member", |status| members(status) == 1);
    let seen = hub.until("the other is a member", |status| members(status) == 1);
    let known = about(&seen, &other.peer_id()).expect("known");
    assert_eq!(known["path"], "direct");
    assert_eq!(known["member"], true);
    let status = other.until("the hub has told about itself", |status| {
        about(status, &hub.peer_id()).is_some_and(|hub| hub["version"] == env!("CARGO_PKG_VERSION"))
    });
    assert!(status["node"]["network"]["ledger"]["entries"].as_u64() >= Some(4));
}
