//! Members on machines of their own: who is admitted, who is refused, and what a partition does.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{
    go_at,
    member::{GoMember, Manner},
    network::{Network, knows, members, path},
    world::{Host, Lab, Nat, PORT, Place},
};
use crate::{peers::counterparty::Answer, support::node::NodeUnderTest};

#[test]
fn with_a_token_and_one_address_members_are_admitted_and_a_stranger_is_refused() {
    let test = "members and a stranger behind NATs";
    let Some(lab) = Lab::new(test) else { return };
    let network = Network::new(360);
    let place = lab.public();
    let hub = place.node(&format!(
        "{}[acl]\nbootstrap = \"0s\"\n",
        network.member(&[])
    ));
    let address = place.dial(&hub);
    let Some(mut stranger) = go_at(&lab.place(Place::Easy), test) else {
        return;
    };
    expect_refused(stranger.reserve(&address));

    let homes = [lab.place(Place::Easy), lab.place(Place::Hard)];
    let nodes: Vec<NodeUnderTest> = homes
        .iter()
        .map(|home| {
            let relay = format!("[relay]\npeers = [\"{address}\"]\n");
            home.node(&(network.member(std::slice::from_ref(&address)) + &relay))
        })
        .collect();
    hub.until("both are members and hold reservations", |status| {
        members(status) == 2 && status["node"]["relay"]["reservations"] == 2
    });
    let [one, other] = [nodes[0].peer_id(), nodes[1].peer_id()];
    nodes[0].until("they reach each other", |status| {
        path(status, &other).is_some()
    });
    nodes[1].until("they reach each other", |status| {
        path(status, &one).is_some()
    });

    // A Go member, from the moment that its heartbeat is known.
    let home = lab.place(Place::Easy);
    let manner = Manner {
        peers: vec![address.clone()],
        ..Manner::default()
    };
    let token = network.token_file();
    let Some(mut go) = GoMember::start(&token, &manner, &home.wrapper(), test) else {
        return;
    };
    hub.until("the Go member is one", |status| knows(status, &go.peer_id));
    let known = Instant::now();
    let answer = go.reserve(&address);
    let Answer::Reserved(reserved) = answer else {
        panic!("{answer:?}")
    };
    assert_eq!(reserved.voucher.as_deref(), Some("verified"));
    assert!(known.elapsed() < Duration::from_secs(1));

    expect_refused(stranger.reserve(&address));
    let status = hub.status().expect("the node answers");
    assert_eq!(status["node"]["relay"]["reservations"], 3, "{status:#}");
}

fn expect_refused(answer: Answer) {
    assert!(
        matches!(&answer, Answer::Refused(status) if status == "PERMISSION_DENIED"),
        "{answer:?}"
    );
}

#[test]
fn a_go_member_and_a_node_on_one_link_find_each_other() {
    let test = "multicast DNS with a Go member";
    let Some(lab) = Lab::new(test) else { return };
    let network = Network::new(360);
    let home = lab.router(Nat::Easy);
    let places = [lab.behind(&home), lab.behind(&home)];
    let address = places[1].address.expect("a local address");
    let manner = Manner {
        listen: vec![format!("/ip4/{address}/tcp/{PORT}")],
        mdns: true,
        ..Manner::default()
    };
    let token = network.token_file();
    let Some(mut go) = GoMember::start(&token, &manner, &places[1].wrapper(), test) else {
        return;
    };
    let node = places[0].node(&network.on_a_link());
    node.until("the node hears the member", |status| {
        knows(status, &go.peer_id)
    });
    let id = node.peer_id();
    node.until("and the other way round", |_| {
        go.known().heartbeat(&id).is_some()
    });
}

#[test]
fn nodes_and_go_members_find_each_other_in_a_table_that_a_stranger_serves() {
    let test = "a distributed hash table with Go members";
    let Some(lab) = Lab::new(test) else { return };
    let (network, another) = (Network::new(360), Network::new(360));
    let manner = |host: &Host| Manner {
        listen: vec![format!("/ip4/{}/tcp/{PORT}", host.address.expect("public"))],
        dht: true,
        ..Manner::default()
    };
    let library = lab.public();
    let token = another.token_file();
    let Some(stranger) = GoMember::start(&token, &manner(&library), &library.wrapper(), test)
    else {
        return;
    };
    let entrance = stranger.address();

    let places = [lab.public(), lab.public(), lab.public()];
    let [one, other] =
        [&places[0], &places[1]].map(|host| host.node(&network.by_directory(&entrance)));
    let by_table = Manner {
        bootstrap: vec![entrance],
        ..manner(&places[2])
    };
    let token = network.token_file();
    let Some(mut go) = GoMember::start(&token, &by_table, &places[2].wrapper(), test) else {
        return;
    };
    let ids = [one.peer_id(), other.peer_id()];
    one.until("it knows both", |status| {
        knows(status, &ids[1]) && knows(status, &go.peer_id)
    });
    other.until("it knows both", |status| {
        knows(status, &ids[0]) && knows(status, &go.peer_id)
    });
    one.until("the Go member knows both", |_| {
        let known = go.known();
        ids.iter().all(|id| known.heartbeat(id).is_some())
    });
}

/// Entries that are written on each side of the partition.
const WRITES: usize = 100;

#[test]
fn both_sides_of_a_partition_write_and_agree_after_it() {
    let test = "a partition of a network";
    let Some(lab) = Lab::new(test) else { return };
    let network = Network::new(3600);
    let hosts: Vec<Host> = (0..5).map(|_| lab.public()).collect();
    let mut addresses = Vec::new();
    let mut nodes = Vec::new();
    for host in &hosts {
        let node = host.node(&network.member(&addresses));
        addresses.push(host.dial(&node));
        nodes.push(node);
    }
    let places = [lab.public(), lab.public()];
    let mut writers = Vec::new();
    for (host, address) in places.iter().zip([&addresses[0], &addresses[4]]) {
        let manner = Manner {
            peers: vec![address.clone()],
            ..Manner::default()
        };
        let token = network.token_file();
        let Some(writer) = GoMember::start(&token, &manner, &host.wrapper(), test) else {
            return;
        };
        writers.push(writer);
    }
    for node in &nodes {
        node.until("all know all", |status| members(status) == 6);
    }
    let before = entries(&nodes[0].status().expect("the node answers"));

    let left = [&hosts[0], &hosts[1], &places[0]];
    let right = [&hosts[2], &hosts[3], &hosts[4], &places[1]];
    lab.part(&left, &right);
    for (side, writer) in writers.iter_mut().enumerate() {
        let value = format!("{{\"PeerID\":\"{}\",\"Name\":\"\"}}", writer.peer_id);
        for number in 0..WRITES {
            writer.put("services", &format!("{side}-{number}"), &value);
        }
    }
    for node in &nodes {
        node.until("each side has what it wrote", |status| {
            entries(status) == before + WRITES
        });
    }

    lab.heal();
    let healed = Instant::now();
    for node in &nodes {
        node.until("all have all", |status| {
            entries(status) == before + 2 * WRITES
        });
    }
    let took = healed.elapsed();
    assert!(took < Duration::from_secs(30), "they agreed after {took:?}");
}

fn entries(status: &Value) -> usize {
    status["node"]["network"]["ledger"]["entries"]
        .as_u64()
        .and_then(|count| usize::try_from(count).ok())
        .unwrap_or(0)
}
