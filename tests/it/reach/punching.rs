//! From a relayed connection to a direct one.

use edgevpn::net::{
    reach::Punched,
    streams::{Link, Route},
};
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::StreamProtocol;

use super::bench::{Node, held};

const TALK: StreamProtocol = StreamProtocol::new("/test/reach/talk");

/// A node that is reached through a relay, and one that calls it there. They know each other as members.
async fn relayed_pair(punching: bool) -> (Node, Node, Node) {
    let relay = Node::relay().await;
    let node = Node::client_of(&[&relay]).await;
    node.edit(|config| config.transport.hole_punch = punching);
    node.holds(&[&relay]).await;
    let caller = Node::start(|config| config.transport.hole_punch = punching).await;
    node.has_members(&[&caller]);
    caller.has_members(&[&node]);
    // Seen by the relay first: what it observes is what the other one dials.
    let (hub, through) = (relay.peer(), node.through(&[&relay]));
    caller.edit(|config| config.peers = vec![hub]);
    caller
        .until("acquainted with the relay", |report| {
            !report.relays.is_empty()
        })
        .await;
    caller.edit(|config| config.peers.push(through));
    (relay, node, caller)
}

fn only_direct(links: &[Link]) -> bool {
    !links.is_empty() && links.iter().all(|link| !link.relayed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_circuit_gives_way_to_a_direct_connection_and_is_closed() {
    let (relay, node, caller) = relayed_pair(true).await;

    caller.linked(node.id, only_direct).await;
    node.linked(caller.id, only_direct).await;

    let with_node = |punch: &Punched| punch.peer == node.id && punch.failure.is_none();
    caller
        .until("told", |report| report.punches.iter().any(with_node))
        .await;
    assert_eq!(held(&node.net.report().await.reach), [relay.id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_hole_punching_off_a_circuit_stays_a_circuit() {
    let (_relay, node, caller) = relayed_pair(false).await;
    let links = caller.linked(node.id, |links| !links.is_empty()).await;
    assert!(links.iter().all(|link| link.relayed));

    let mut talks = node.net.streams().accept(TALK, 8).expect("accepts");
    let streams = caller.net.streams();
    assert!(streams.open(node.id, TALK, Route::Direct).await.is_err());
    let stream = streams.open(node.id, TALK, Route::PreferDirect).await;
    assert!(stream.expect("opens").relayed());
    assert!(talks.next().await.expect("comes").relayed);
    assert!(caller.net.report().await.reach.punches.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_on_a_circuit_is_not_cut_for_a_direct_connection() {
    let (_relay, node, caller) = relayed_pair(false).await;
    let mut talks = node.net.streams().accept(TALK, 8).expect("accepts");
    caller.linked(node.id, |links| !links.is_empty()).await;
    let streams = caller.net.streams();
    let stream = streams.open(node.id, TALK, Route::PreferDirect).await;
    let mut stream = stream.expect("opens");
    let mut incoming = talks.next().await.expect("comes");

    // As a relay it is wanted directly, whatever other connections there are.
    let directly = node.peer();
    caller.edit(|config| config.relay_client.peers = vec![directly]);
    let both = |links: &[Link]| {
        links.iter().any(|link| link.relayed) && links.iter().any(|link| !link.relayed)
    };
    caller.linked(node.id, both).await;
    caller
        .until("identified", |report| {
            let mut relays = report.relays.iter();
            relays.any(|relay| relay.entry.relay == node.id && relay.entry.last_failure.is_some())
        })
        .await;
    stream.write_all(b"still here").await.expect("writes");
    stream.flush().await.expect("writes");
    let mut heard = [0; 10];
    incoming.stream.read_exact(&mut heard).await.expect("reads");
    assert_eq!(&heard, b"still here");

    drop((stream, incoming));
    caller.linked(node.id, only_direct).await;
}
