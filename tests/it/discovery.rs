//! Members who share nothing but a token and one address find each other.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use edgevpn::{
    config::{Config, Peer},
    wire::Token,
};

use crate::{
    lab::world::{Host, Lab, Place, Program},
    support::{
        net::{NetUnderTest, config, token},
        node::NodeUnderTest,
    },
};

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

/// Prints `ready`, then a line for each connection to port 22 of any address of this host.
const SENTINEL: &str = r#"
import socket
listener = socket.create_server(("0.0.0.0", 22))
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    print(connection.getsockname()[0], flush=True)
"#;

/// A node that looks for members in the DHT and nowhere else.
fn in_the_dht_only(token: &Token, entrance: &str) -> String {
    format!(
        "[network]\ntoken = \"{}\"\n[discovery]\nmdns = false\nbootstrap_peers = [\"{entrance}\"]\n",
        token.to_base64()
    )
}

#[test]
fn a_stranger_in_the_dht_makes_nobody_dial_inwards() {
    let Some(lab) = Lab::new("addresses of strangers") else {
        return;
    };
    let (hub, stranger, victim) = (lab.public(), lab.public(), lab.place(Place::Easy));
    let (network, elsewhere) = (token(360), token(360));
    let nobody = format!(
        "/ip4/44.128.250.1/tcp/1/p2p/{}",
        edgevpn::id::PeerId::random()
    );
    let entrance = hub.node(&in_the_dht_only(&elsewhere, &nobody));
    let at = hub.dial(&entrance);

    let mut inside = Program::start(&victim, "python3", &["-c", SENTINEL]);
    let mut outside = Program::start(&stranger, "python3", &["-c", SENTINEL]);
    assert_eq!(
        (inside.line(), outside.line()),
        ("ready".into(), "ready".into())
    );

    // It knows the key of the network, as each server of the DHT does that was asked for it, and says of itself what it
    // likes. The last address is one that anybody may be sent to: it shows that the victim has listened.
    let private = victim.address.expect("an address");
    let public = stranger.address.expect("an address");
    let claimed = [
        "/ip4/127.0.0.1/tcp/22".to_owned(),
        format!("/ip4/{private}/tcp/22"),
        "/ip6/::1/tcp/22".to_owned(),
        "/ip6/::ffff:127.0.0.1/tcp/22".to_owned(),
        "/dns4/localhost/tcp/22".to_owned(),
        format!("/ip4/{public}/tcp/22"),
    ];
    let announce = claimed.map(|address| format!("\"{address}\"")).join(", ");
    let lies = stranger
        .base()
        .replace(
            "[transport]",
            &format!("[transport]\nannounce = [{announce}]"),
        )
        .replace("0.0.0.0", "127.0.0.1")
        .replace("/ip6/::/", "/ip6/::1/");
    let liar = start(&stranger, &lies, &in_the_dht_only(&network, &at));
    let impatient = victim
        .base()
        .replace("[transport]", "[transport]\ndial_timeout = \"1s\"");
    let node = start(&victim, &impatient, &in_the_dht_only(&network, &at));
    node.until_logged(&["found in the DHT", &liar.peer_id()]);
    assert_eq!(outside.line(), public.to_string());
    node.until_logged(&["peer not reached", &liar.peer_id()]);
    // The end of the test is the first that the sentinel inside has seen.
    let knock = "import socket; socket.create_connection(('127.0.0.2', 22))";
    Program::start(&victim, "python3", &["-c", knock]).line();
    assert_eq!(inside.line(), "127.0.0.2");
}

fn start(host: &Host, base: &str, more: &str) -> NodeUnderTest {
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    fs::write(folder.path().join("edgevpn.toml"), format!("{base}{more}")).expect("written");
    let node = NodeUnderTest::start_by(folder, &host.wrapper());
    node.until("ready", |status| status["generation"].as_u64() >= Some(1));
    node
}
