//! Reloads under circuits: none is lost, no connection is made anew, and what is denied is cut.

use super::{start, unwatched, write};
use crate::support::{
    node::NodeUnderTest,
    relay::{Client, within},
    status::{reload, sha256},
};
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::{Multiaddr, PeerId, Stream};

const SOURCES: usize = 4;
const CIRCUITS_EACH: usize = 10;
const SWAPS: usize = 100;

fn listening(circuits: &str, more: &str) -> String {
    unwatched(circuits, more)
        .replace("listen = []", "listen = [\"/ip4/127.0.0.1/tcp/0\"]")
        .replace(
            "[acl]",
            "reservation_rate = \"unlimited\"\ncircuit_rate = \"unlimited\"\n[acl]",
        )
}

async fn connected(node: &NodeUnderTest) -> (Client, PeerId) {
    let address: Multiaddr = node.address("tcp").parse().expect("an address");
    let mut client = Client::by_hand();
    client.dial(&address).await.expect("connects");
    (client, node.peer_id().parse().expect("a peer id"))
}

async fn echoes(near: &mut Stream, far: &mut Stream, text: &[u8]) {
    let mut heard = vec![0; text.len()];
    within("a byte through", async {
        near.write_all(text).await?;
        near.flush().await?;
        far.read_exact(&mut heard).await
    })
    .await
    .expect("the circuit lives");
    assert_eq!(heard, text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_swaps_lose_no_circuit_and_no_connection() {
    let texts = [listening("64", ""), listening("200", "")];
    let node = start(&texts[1]);
    let (mut destination, relay) = connected(&node).await;
    destination.reserve(relay).await.expect("reserves");
    let mut sources = Vec::new();
    let mut circuits = Vec::new();
    for _ in 0..SOURCES {
        let (source, _) = connected(&node).await;
        for _ in 0..CIRCUITS_EACH {
            let (near, far) = tokio::join!(
                source.connect(relay, destination.peer),
                destination.accept_circuit()
            );
            circuits.push((near.expect("a circuit"), far));
        }
        sources.push(source);
    }
    for swap in 1..=SWAPS {
        let text = &texts[(swap + 1) % 2];
        write(&node, text);
        let verdict = reload(&node, "read");
        assert_eq!(
            (verdict["outcome"].as_str(), verdict["generation"].as_u64()),
            (Some("applied"), Some(swap as u64 + 1))
        );
        assert_eq!(verdict["applied_sha256"], sha256(text));
        let (near, far) = &mut circuits[swap % (SOURCES * CIRCUITS_EACH)];
        echoes(near, far, format!("swap {swap}").as_bytes()).await;
        // A reply is wholly of one generation: the limits it tells never change here.
        let answer = destination.reserve(relay).await.expect("renews");
        assert!(answer.limit.is_some());
    }
    for (near, far) in &mut circuits {
        echoes(near, far, b"to the end").await;
    }
    let status = node.status().expect("a status");
    let relay = &status["node"]["relay"];
    assert_eq!(relay["circuits"], SOURCES * CIRCUITS_EACH, "{relay:#}");
    assert_eq!(relay["circuits_total"], SOURCES * CIRCUITS_EACH);
    assert_eq!(status["node"]["connections"]["established"], SOURCES + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_peer_is_cut_and_the_verdict_counts_it() {
    let node = start(&listening("64", ""));
    let (mut destination, relay) = connected(&node).await;
    destination.reserve(relay).await.expect("reserves");
    let (mut denied, _) = connected(&node).await;
    let (bystander, _) = connected(&node).await;
    denied.reserve(relay).await.expect("reserves");
    let (near, far) = tokio::join!(
        bystander.connect(relay, destination.peer),
        destination.accept_circuit()
    );
    let (mut near, mut far) = (near.expect("a circuit"), far);
    let (cut, _far) = tokio::join!(
        denied.connect(relay, destination.peer),
        destination.accept_circuit()
    );
    let _cut = cut.expect("a circuit");

    let text = listening("64", "").replace(
        "refresh = \"10m\"",
        &format!("refresh = \"10m\"\ndeny = [\"{}\"]", denied.peer),
    );
    write(&node, text);
    let verdict = reload(&node, "read");
    assert_eq!(verdict["outcome"], "applied", "{verdict:#}");
    assert_eq!(verdict["changes"][0]["key"], "acl.deny");
    assert_eq!(verdict["settled"]["reservations_ended"], 1, "{verdict:#}");
    assert_eq!(verdict["settled"]["circuits_cut"], 1);
    within("the denied peer learns", denied.disconnected_from(relay)).await;
    echoes(&mut near, &mut far, b"nobody else notices").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_node_admits_nobody_lets_circuits_end_and_says_so() {
    let mut node = start(&listening("64", ""));
    let (mut destination, relay) = connected(&node).await;
    destination.reserve(relay).await.expect("reserves");
    let (source, _) = connected(&node).await;
    let (near, mut far) = tokio::join!(
        source.connect(relay, destination.peer),
        destination.accept_circuit()
    );
    let mut near = near.expect("a circuit");
    let (newcomer, _) = connected(&node).await;

    node.signal(rustix::process::Signal::TERM);

    let status = node.until("it says that it stops", |status| {
        status["node"]["relay"]["stopping"] == true
    });
    assert_eq!(status["node"]["relay"]["circuits"], 1);
    newcomer
        .reserve(relay)
        .await
        .expect_err("nobody is admitted any more");
    echoes(&mut near, &mut far, b"still here").await;
    near.close().await.expect("closes");
    far.close().await.expect("closes");
    assert_eq!(node.wait().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_the_node_at_once() {
    let mut node = start(&listening("64", ""));
    let (mut destination, relay) = connected(&node).await;
    destination.reserve(relay).await.expect("reserves");
    let (source, _) = connected(&node).await;
    let (near, _far) = tokio::join!(
        source.connect(relay, destination.peer),
        destination.accept_circuit()
    );
    let _near = near.expect("a circuit");
    node.signal(rustix::process::Signal::TERM);
    node.until("it says that it stops", |status| {
        status["node"]["relay"]["stopping"] == true
    });

    node.signal(rustix::process::Signal::TERM);

    assert_eq!(node.wait().code(), Some(0));
}
