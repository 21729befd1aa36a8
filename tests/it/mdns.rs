//! Nodes on one link find each other without anybody's help.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use edgevpn::{config::Config, id::PeerId, wire::Token};
use serde_json::Value;

use crate::{
    lab::{
        member::{GoMember, Manner},
        world::{Lab, Nat, PORT, Program},
    },
    support::net::{NetUnderTest, config, token},
};

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

#[tokio::test]
async fn a_new_token_leaves_the_neighbours_of_the_old_network_behind() {
    let (old, new) = (token(360), token(360));
    let before = NetUnderTest::start(on_mdns(&old), LOOPBACK).await;
    let after = NetUnderTest::start(on_mdns(&new), LOOPBACK).await;
    let mut node = NetUnderTest::start(on_mdns(&old), LOOPBACK).await;
    node.until_connected(&before).await;
    node.apply(|config| config.network.as_mut().expect("a network").token = new);
    node.until_connected(&after).await;
    node.until("one neighbour", |report| report.found.known.mdns == 1)
        .await;
    before
        .until("nobody", |report| report.found.known.mdns == 0)
        .await;
}

#[tokio::test]
async fn packets_of_anybody_keep_nobody_from_being_found() {
    let token = token(360);
    let first = NetUnderTest::start(on_mdns(&token), LOOPBACK).await;
    let flood = Flood::on_loopback(&token.mdns);
    // What comes too fast is dropped by the kernel, so it comes until some was read.
    while first.handle.report().await.found.known.mdns < 100 {
        flood.send_garbage(50);
        flood.send_questions(50);
        flood.send_names_of_nobody(50);
    }
    let second = NetUnderTest::start(on_mdns(&token), LOOPBACK).await;
    second.until_connected(&first).await;
    assert!(first.handle.report().await.found.known.mdns <= 256);
    assert_eq!(edgevpn::task::panics(), 0);
}

/// Whoever is on the link and knows the tag, which is no secret there.
struct Flood {
    socket: UdpSocket,
    tag: String,
}

impl Flood {
    fn on_loopback(tag: &str) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let multicast = socket2::SockRef::from(&socket);
        multicast
            .set_multicast_if_v4(&Ipv4Addr::LOCALHOST)
            .expect("sends there");
        Self {
            socket,
            tag: tag.to_owned(),
        }
    }

    fn send(&self, packet: &[u8]) {
        let group = SocketAddr::from((Ipv4Addr::new(224, 0, 0, 251), 5353));
        self.socket.send_to(packet, group).expect("sent");
    }

    fn name(&self) -> Vec<u8> {
        [self.tag.as_str(), "local"]
            .into_iter()
            .flat_map(|label| std::iter::once(label.len() as u8).chain(label.bytes()))
            .chain([0])
            .collect()
    }

    fn question(&self) -> Vec<u8> {
        let header = [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let class = [0, 12, 0, 1];
        [&header[..], &self.name(), &class].concat()
    }

    fn send_garbage(&self, packets: usize) {
        for number in 0..packets {
            let mut packet = self.question();
            let at = number % packet.len();
            packet[at] ^= 0xc0 | (number as u8);
            packet.truncate(12 + number % 60);
            self.send(&packet);
        }
    }

    fn send_questions(&self, packets: usize) {
        (0..packets).for_each(|_| self.send(&self.question()));
    }

    /// Each with an address where nobody listens.
    fn send_names_of_nobody(&self, packets: usize) {
        for _ in 0..packets {
            let text = format!("dnsaddr=/ip4/127.0.0.1/tcp/1/p2p/{}", PeerId::random());
            let header = [0, 0, 0x84, 0, 0, 0, 0, 1, 0, 0, 0, 0];
            let length = (text.len() + 1) as u16;
            let mut record = vec![1, b'x'];
            record.extend(self.name());
            record.extend([0, 16, 0, 1, 0, 0, 12, 128]);
            record.extend(length.to_be_bytes());
            record.push(text.len() as u8);
            record.extend(text.bytes());
            self.send(&[&header[..], &record].concat());
        }
    }
}

/// A node that looks for members on its links and nowhere else.
fn on_links_only(token: &Token) -> String {
    format!(
        "[network]\ntoken = \"{}\"\n[discovery]\ndht = false\n",
        token.to_base64()
    )
}

fn has_peers(number: u64) -> impl Fn(&Value) -> bool {
    move |status| status["node"]["connections"]["peers"].as_u64() >= Some(number)
}

#[test]
fn machines_of_a_lan_find_each_other_and_again_when_an_address_changes() {
    let Some(lab) = Lab::new("members of one LAN") else {
        return;
    };
    let router = lab.router(Nat::Easy);
    let (home, moving) = (lab.behind(&router), lab.behind(&router));
    let token = token(360);
    let first = home.node(&on_links_only(&token));
    let started = Instant::now();
    let second = moving.node(&on_links_only(&token));
    second.until("connected", has_peers(1));
    println!("from process start to a peer: {:?}", started.elapsed());
    first.until("connected", has_peers(1));

    let old = moving.address.expect("an address");
    let new = Ipv4Addr::from(u32::from(old) + 100);
    for change in [["del", &format!("{old}/24")], ["add", &format!("{new}/24")]] {
        let words = [&["addr"], &change[..], &["dev", "eth0"]].concat();
        assert_eq!(Program::start(&moving, "ip", &words).line(), "");
    }
    let address = format!("/ip4/{new}/tcp/{PORT}");
    first.until_logged(&["found by mDNS", &address]);
}

#[test]
fn a_go_member_and_a_node_find_each_other() {
    let test = "mDNS with a Go member";
    let Some(lab) = Lab::new(test) else { return };
    let router = lab.router(Nat::Easy);
    let (ours, theirs) = (lab.behind(&router), lab.behind(&router));
    let token = token(360);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    fs::write(&file, token.to_base64()).expect("written");
    let manner = Manner {
        listen: vec!["/ip4/0.0.0.0/tcp/4001".to_owned()],
        mdns: true,
        ..Manner::default()
    };
    let Some(mut go) = GoMember::start(&file, &manner, &theirs.wrapper(), test) else {
        return;
    };
    let started = Instant::now();
    let node = ours.node(&on_links_only(&token));
    node.until("connected", has_peers(1));
    println!("a Go member met after {:?}", started.elapsed());
    // Both ways: the node reads the answer of the Go member, and that one the node's.
    node.until_logged(&["found by mDNS", &go.peer_id]);
    let id = node.peer_id();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !go.known().connected.contains(&id) {
        assert!(Instant::now() < deadline, "the Go member is not connected");
    }
}
