//! Peers that mean harm get the right status or a reset, and nobody else notices.

use crate::support::{
    node::NodeUnderTest,
    relay::{Client, Refused, RelayUnderTest, answer, circuit, message, read_to_end, within},
};
use edgevpn::net::relay::{Timeouts, proto};
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt, future, stream};
use libp2p::{Multiaddr, PeerId};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use prost::Message;
use std::{fs, time::Duration};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn half_open_circuits_take_no_place_from_others_and_are_all_given_back() {
    const SOURCES: usize = 10;
    const EACH: usize = 8;
    let timeouts = Timeouts {
        request: 3 * SECOND,
        ..Timeouts::default()
    };
    let relay = RelayUnderTest::with_timeouts(timeouts, |_| {}).await;
    let silent = Client::reserved(&relay).await;
    let attack = future::join_all((0..SOURCES).map(|_| async {
        let source = Client::of(&relay).await;
        let asked = (0..EACH).map(|_| source.connect(relay.peer, silent.peer));
        future::join_all(asked).await
    }));
    let healthy = async {
        relay.until(|report| report.handshakes >= 40).await;
        let mut destination = Client::reserved(&relay).await;
        let source = Client::of(&relay).await;
        for _ in 0..10 {
            let started = Instant::now();
            circuit(&relay, &source, &mut destination).await;
            assert!(started.elapsed() < SECOND);
        }
    };
    let (refused, ()) = tokio::join!(attack, healthy);
    for near in refused.iter().flatten() {
        assert_eq!(near.as_ref().err(), Some(&Refused(203)));
    }
    relay
        .until(|report| report.handshakes == 0 && report.circuits == 0)
        .await;
}

#[tokio::test]
async fn half_sent_requests_block_only_their_own_connection_and_are_cut() {
    let timeouts = Timeouts {
        header: 2 * SECOND,
        ..Timeouts::default()
    };
    let relay = RelayUnderTest::with_timeouts(timeouts, |_| {}).await;
    let attackers = future::join_all((0..16).map(|_| Client::of(&relay))).await;
    let mut slow = Vec::new();
    for attacker in &attackers {
        for _ in 0..10 {
            let mut stream = attacker.open(relay.peer, proto::HOP).await.unwrap();
            message::write(&mut stream, &[2]).await.unwrap();
            slow.push(stream);
        }
        // The eleventh at once is one too many.
        let eleventh = attacker.reserve(relay.peer).await;
        assert_eq!(eleventh.err(), Some(Refused(0)));
    }
    let started = Instant::now();
    for _ in 0..20 {
        let asked = Instant::now();
        Client::reserved(&relay).await;
        assert!(asked.elapsed() < SECOND);
    }
    // A byte now and then does not help.
    for stream in &mut slow {
        let _ = stream.write_all(&[8]).await;
        let _ = stream.flush().await;
    }
    for stream in &mut slow {
        assert!(read_to_end(stream).await.is_empty());
    }
    assert!(started.elapsed() < 4 * SECOND, "{:?}", started.elapsed());
    let report = relay.report().await;
    assert_eq!(report.refused["header_timeout"], 160);
    assert_eq!(report.refused["busy"], 16);
    attackers[0]
        .reserve(relay.peer)
        .await
        .expect("a place again");
}

/// A relay of its own process, for what only the system can say of one: anyone may reserve, as often as they like.
fn node_for_anyone() -> (NodeUnderTest, Multiaddr, PeerId) {
    let node = NodeUnderTest::start(
        r#"
[relay]
service = true
[relay.resources]
max_reservations_per_ip = 128
reservation_rate = "unlimited"
circuit_rate = "unlimited"
[acl]
reserve = "anyone"
"#,
    );
    let address = node.address("tcp").parse().expect("an address");
    let peer = node.peer_id().parse().expect("a peer id");
    (node, address, peer)
}

fn open_files(node: &NodeUnderTest) -> usize {
    let files = fs::read_dir(format!("/proc/{}/fd", node.id()));
    files.expect("a process").count()
}

/// Bytes.
fn resident(node: &NodeUnderTest) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.id())).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next());
    kib.expect("a size").parse::<u64>().expect("a number") * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_slow_connections_are_cut_in_time_and_leave_no_file_open() {
    let (node, address, peer) = node_for_anyone();
    let mut honest = Client::by_hand();
    honest.dial(&address).await.expect("connects");
    let base = open_files(&node);

    let mut attackers = Vec::new();
    let mut slow = Vec::new();
    for _ in 0..64 {
        let mut attacker = Client::by_hand();
        attacker.dial(&address).await.expect("connects");
        for _ in 0..10 {
            let mut stream = attacker.open(peer, proto::HOP).await.expect("a stream");
            let _ = message::write(&mut stream, &[2]).await;
            slow.push(stream);
        }
        attackers.push(attacker);
    }
    let all_sent = Instant::now();
    // The base may hold a few of the API, which are gone since.
    assert!(open_files(&node) >= base + 60);

    let mut took = Vec::new();
    for _ in 0..200 {
        let asked = Instant::now();
        honest.reserve(peer).await.expect("renews");
        took.push(asked.elapsed());
    }
    took.sort_unstable();
    // A tenth of it in a release build on an idle machine.
    assert!(took[197] < SECOND, "{:?}", took[197]);

    for stream in &mut slow {
        assert!(read_to_end(stream).await.is_empty());
    }
    let limit = Timeouts::default().header + SECOND;
    assert!(all_sent.elapsed() < limit, "{:?}", all_sent.elapsed());
    drop((slow, attackers));
    within("the files of 64 connections", async {
        while open_files(&node) > base {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(node.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_malformed_requests_leaves_no_memory_behind() {
    const ROUND: usize = 2_000;
    let (node, address, peer) = node_for_anyone();
    let mut attacker = Client::by_hand();
    attacker.dial(&address).await.expect("connects");
    let right = vec![message::reserve(), message::connect(PeerId::random())];
    let messages = bad_messages(ROUND, right);
    let flood = || {
        stream::iter(&messages)
            .map(|bytes| async {
                let mut stream = attacker.open(peer, proto::HOP).await.expect("a stream");
                let _ = stream.write_all(bytes).await;
                let _ = stream.close().await;
                read_to_end(&mut stream).await;
            })
            .buffer_unordered(8)
            .for_each(|()| future::ready(()))
    };
    flood().await;
    let warm = resident(&node);
    for _ in 0..4 {
        flood().await;
    }
    let grown = resident(&node).saturating_sub(warm);
    assert!(grown < 20 << 20, "{grown} bytes more than {warm}");
    assert!(node.stop().success());
}

/// Messages near and far from right ones, the same in every run.
fn bad_messages(count: usize, right: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let seed = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), seed);
    let cut = (
        prop::sample::select(right.clone()),
        any::<prop::sample::Index>(),
    )
        .prop_map(|(message, at)| message[..at.index(message.len())].to_vec());
    let flipped = (
        prop::sample::select(right),
        any::<prop::sample::Index>(),
        1..=255_u8,
    )
        .prop_map(|(mut message, at, bits)| {
            let at = at.index(message.len());
            message[at] ^= bits;
            message
        });
    let noise = prop::collection::vec(any::<u8>(), 1..80);
    let framed = prop::collection::vec(any::<u8>(), 0..120).prop_map(|mut body| {
        body.insert(0, body.len() as u8);
        body
    });
    let length = prop::sample::select(vec![
        vec![0],
        vec![0x80, 0x20],
        vec![0x81, 0x20],
        vec![0xff; 10],
        vec![0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01],
        vec![0x80, 0x00],
    ]);
    let any = prop_oneof![cut, flipped, noise, framed, length];
    (0..count)
        .map(|_| any.new_tree(&mut runner).expect("a message").current())
        .collect()
}

#[tokio::test]
async fn a_flood_of_malformed_requests_is_answered_and_harms_nobody() {
    const MESSAGES: usize = 5_000;
    let relay = RelayUnderTest::start(|_| {}).await;
    let mut destination = Client::reserved(&relay).await;
    let bystander = Client::of(&relay).await;
    let (mut near, mut far) = circuit(&relay, &bystander, &mut destination).await;

    let peer_id = PeerId::random().to_bytes();
    let right = vec![
        message::reserve(),
        message::connect(PeerId::random()),
        message::connect_with(peer_id, vec![vec![4; 30]; 3]),
    ];
    let attackers = future::join_all((0..4).map(|_| Client::of(&relay))).await;
    let attack = bad_messages(MESSAGES, right).into_iter().enumerate();
    let statuses = stream::iter(attack.map(|(at, bytes)| {
        let attacker = &attackers[at % attackers.len()];
        let relay = relay.peer;
        async move {
            let mut stream = attacker.open(relay, proto::HOP).await.unwrap();
            let _ = stream.write_all(&bytes).await;
            let _ = stream.close().await;
            match answer(&mut stream).await {
                Ok(_) => 100,
                Err(Refused(status)) => status,
            }
        }
    }))
    .buffer_unordered(16)
    .collect::<Vec<i32>>();
    let statuses = within("all answers", statuses).await;

    let of = |status| statuses.iter().filter(|found| **found == status).count();
    let expected = [0, 100, 202, 204, 400, 401];
    assert!(statuses.iter().all(|status| expected.contains(status)));
    assert!(of(400) > MESSAGES / 2, "{} of 400", of(400));
    // Streams without a byte, and those that found no place, get no answer.
    let silent = relay.report().await;
    let unanswered =
        silent.refused.get("gone").unwrap_or(&0) + silent.refused.get("busy").unwrap_or(&0);
    assert_eq!(of(0) as u64, unanswered);

    near.write_all(b"well").await.unwrap();
    far.read_exact(&mut [0; 4]).await.unwrap();
    assert_eq!(relay.report().await.ended.get("panicked"), None);
}

#[tokio::test]
async fn a_flood_of_malformed_consents_fails_those_circuits_only() {
    const MESSAGES: usize = 2_000;
    let timeouts = Timeouts {
        request: 10 * SECOND,
        ..Timeouts::default()
    };
    let relay = RelayUnderTest::with_timeouts(timeouts, |_| {}).await;
    let mut destination = Client::reserved(&relay).await;
    let hostile = destination.peer;
    let mut friend = Client::reserved(&relay).await;
    let source = Client::of(&relay).await;

    let connect = message::Stop {
        kind: Some(message::STOP_CONNECT),
        ..Default::default()
    };
    let right = vec![
        message::stop_status(202),
        connect.encode_length_delimited_to_vec(),
    ];
    let answers = bad_messages(MESSAGES, right);
    let attack = async {
        for bytes in answers {
            let (mut stream, _) = destination.accept_stop().await;
            let _ = stream.write_all(&bytes).await;
            let _ = stream.close().await;
        }
    };
    let victims = stream::iter(0..MESSAGES)
        .map(|_| source.connect(relay.peer, hostile))
        .buffer_unordered(8)
        .map(|near| near.err())
        .collect::<Vec<_>>();
    let ((), refused) = within("all refusals", async { tokio::join!(attack, victims) }).await;
    let failed = refused.iter().filter(|why| **why == Some(Refused(203)));
    // A handful of the messages are consents by chance.
    assert!(failed.count() > MESSAGES * 95 / 100);
    relay.until(|report| report.handshakes == 0).await;

    let (mut near, mut far) = circuit(&relay, &source, &mut friend).await;
    near.write_all(b"well").await.unwrap();
    far.read_exact(&mut [0; 4]).await.unwrap();
    assert_eq!(relay.report().await.ended.get("panicked"), None);
}

#[tokio::test]
async fn streams_that_are_opened_and_dropped_leave_nothing_behind() {
    let relay = RelayUnderTest::start(|_| {}).await;
    let client = Client::reserved(&relay).await;
    for _ in 0..500 {
        drop(client.open(relay.peer, proto::HOP).await.unwrap());
    }
    client.reserve(relay.peer).await.expect("renews");
}

#[path = "../../fuzz/targets/frames.rs"]
mod frames;

#[test]
fn the_corpus_of_the_fuzz_targets_holds() {
    type Check = fn(&[u8]);
    let targets: [(&str, Check); 2] = [("hop_frame", frames::hop), ("stop_frame", frames::stop)];
    for (target, holds) in targets {
        let corpus = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        let files: Vec<_> = fs::read_dir(corpus).expect("a corpus").collect();
        assert!(files.len() >= 10, "{target} has lost its corpus");
        for file in files {
            let bytes = fs::read(file.expect("a file").path()).expect("readable");
            holds(&bytes);
            for cut in 0..bytes.len() {
                holds(&bytes[..cut]);
            }
        }
    }
}
