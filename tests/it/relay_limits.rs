//! Caps and limits of the relay service are exact, and follow the configuration while circuits run.

use crate::support::relay::{
    Client, Refused, RelayUnderTest, answer, circuit, message, read_to_end, within,
};
use edgevpn::{
    acl::Subject,
    net::relay::{End, Timeouts, proto},
    relay::{Limit, OnShrink},
};
use futures::{AsyncReadExt, AsyncWriteExt, future};
use libp2p::{Stream, multiaddr::Protocol};
use std::time::Duration;
use tokio::time::Instant;

const REFUSED: Refused = Refused(200);
const LIMIT_EXCEEDED: Refused = Refused(201);

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn renewals_that_meet_their_own_expiry_are_all_granted() {
    const TTL: Duration = Duration::from_millis(200);
    let relay = RelayUnderTest::start(|setup| setup.resources.reservation_ttl = TTL).await;
    let renew = |late: u32| {
        let relay = &relay;
        async move {
            let client = Client::of(relay).await;
            let offset = Duration::from_micros(100) * late;
            for sweep in 0..10 {
                let asked = Instant::now();
                let granted = client.reserve(relay.peer).await;
                assert!(granted.is_ok(), "sweep {sweep}: {granted:?}");
                let expiry = asked + TTL - Duration::from_micros(1500) + offset;
                tokio::time::sleep_until(expiry).await;
            }
        }
    };
    future::join_all((0..30).map(renew)).await;
    let report = relay.report().await;
    assert_eq!(report.reservations_total + report.renewals_total, 300);
    assert!(report.refused.is_empty(), "{:?}", report.refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_reads_nothing_while_its_reservation_expires_gets_all_its_answers_later() {
    const TTL: Duration = Duration::from_millis(200);
    let mut relay = RelayUnderTest::start(|setup| setup.resources.reservation_ttl = TTL).await;
    let client = Client::of(&relay).await;
    for _ in 0..5 {
        let mut asked = Vec::new();
        for _ in 0..9 {
            let mut stream = client.open(relay.peer, proto::HOP).await.unwrap();
            let request = message::reserve();
            message::write(&mut stream, &request).await.unwrap();
            asked.push(stream);
        }
        let (go_on, over) = std::sync::mpsc::channel();
        let expires = async {
            relay.reservation_end().await;
            drop(go_on);
        };
        tokio::join!(client.stand_still(over), expires);
        for stream in &mut asked {
            answer(stream).await.expect("renews");
        }
    }
    client.reserve(relay.peer).await.expect("reserves anew");
    assert_eq!(relay.report().await.ended.get("panicked"), None);
}

#[tokio::test]
async fn a_full_relay_renews_everybody_admits_no_newcomer_and_reuses_a_freed_place() {
    for cap in [1, 8, 64] {
        let relay = RelayUnderTest::start(|setup| setup.resources.max_reservations = cap).await;
        let holders = future::join_all((0..cap).map(|_| Client::reserved(&relay))).await;
        let newcomer = Client::of(&relay).await;
        assert_eq!(newcomer.reserve(relay.peer).await, Err(REFUSED));
        let renewals = holders.iter().map(|holder| holder.reserve(relay.peer));
        for renewed in future::join_all(renewals).await {
            renewed.expect("a renewal");
        }
        assert_eq!(newcomer.reserve(relay.peer).await, Err(REFUSED));

        holders[0].leave(relay.peer).await;
        relay.until(|report| report.reservations == cap - 1).await;
        newcomer.reserve(relay.peer).await.expect("the freed place");
    }
}

#[tokio::test]
async fn so_many_circuits_a_peer_and_not_one_more_as_source_or_as_destination() {
    for cap in [1, 4, 64] {
        let relay = RelayUnderTest::start(|setup| setup.resources.max_circuits = cap).await;
        let mut destination = Client::reserved(&relay).await;
        let mut other = Client::reserved(&relay).await;
        let mut source = Client::of(&relay).await;
        let mut circuits = Vec::new();
        for _ in 0..cap {
            circuits.push(circuit(&relay, &source, &mut destination).await);
        }
        let refused = |near: Result<Stream, _>| assert_eq!(near.err(), Some(LIMIT_EXCEEDED));
        refused(source.connect(relay.peer, destination.peer).await);
        refused(source.connect(relay.peer, other.peer).await);
        refused(other.connect(relay.peer, destination.peer).await);
        // Another connection is no other peer.
        let quic = relay.quic.clone().with(Protocol::P2p(relay.peer));
        source.dial(&quic).await.expect("connects");
        refused(source.connect(relay.peer, other.peer).await);

        drop(circuits.pop());
        relay.until(|report| report.circuits == cap - 1).await;
        circuit(&relay, &source, &mut other).await;
    }
}

#[tokio::test]
async fn circuits_asked_for_at_the_same_time_do_not_pass_a_cap_together() {
    let relay = RelayUnderTest::start(|setup| setup.resources.max_circuits_total = 5).await;
    let mut destination = Client::reserved(&relay).await;
    let source = Client::of(&relay).await;
    let peer = destination.peer;

    let offers = async {
        let mut offered = Vec::new();
        for _ in 0..8 {
            offered.push(destination.accept_stop().await.0);
        }
        for stream in &mut offered {
            message::write(stream, &message::stop_status(message::OK))
                .await
                .unwrap();
        }
        offered
    };
    let asked = future::join_all((0..8).map(|_| source.connect(relay.peer, peer)));
    let (near, _far) = tokio::join!(asked, offers);
    let refused: Vec<_> = near.iter().filter_map(|near| near.as_ref().err()).collect();
    assert_eq!(refused, [&LIMIT_EXCEEDED; 3]);
    assert_eq!(relay.report().await.circuits, 5);
}

#[tokio::test]
async fn every_allowed_byte_arrives_and_one_more_ends_the_circuit() {
    let mut relay = RelayUnderTest::start(|_| {}).await;
    for limit in [1, 4 << 10, 64 << 10, (1 << 20) + 1] {
        relay
            .publish(|setup| setup.resources.max_data = Limit::At(limit as u64))
            .await;
        for to_destination in [true, false] {
            let mut destination = Client::reserved(&relay).await;
            let source = Client::of(&relay).await;
            let (near, far) = circuit(&relay, &source, &mut destination).await;
            let (mut from, mut to) = if to_destination {
                (near, far)
            } else {
                (far, near)
            };

            let bytes: Vec<u8> = (0..limit).map(|at| at as u8).collect();
            let mut heard = vec![0; limit];
            let (sent, got) = within("all that is allowed", async {
                tokio::join!(from.write_all(&bytes), to.read_exact(&mut heard))
            })
            .await;
            sent.unwrap();
            got.unwrap();
            assert!(heard == bytes, "what arrived is not what was sent");

            // The other direction has a limit of its own.
            to.write_all(b"!").await.unwrap();
            let mut echo = [0];
            from.read_exact(&mut echo).await.unwrap();

            let started = Instant::now();
            from.write_all(b"?").await.unwrap();
            assert!(read_to_end(&mut to).await.is_empty());
            assert!(read_to_end(&mut from).await.is_empty());
            let (end, carried) = relay.circuit_end().await;
            assert_eq!(end, End::MaxData);
            let carried = [carried.to_destination, carried.to_source];
            assert!(carried.contains(&(limit as u64)) && carried.contains(&1));
            assert!(started.elapsed() < SECOND);
        }
    }
}

#[tokio::test]
async fn the_last_allowed_byte_arrives_over_quic_too() {
    const LIMIT: usize = 100_000;
    let mut relay = RelayUnderTest::start(|setup| {
        setup.resources.max_data = Limit::At(LIMIT as u64);
    })
    .await;
    let quic = relay.quic.clone().with(Protocol::P2p(relay.peer));
    let (mut source, mut destination) = (Client::by_hand(), Client::by_hand());
    source.dial(&quic).await.unwrap();
    destination.dial(&quic).await.unwrap();
    destination.reserve(relay.peer).await.unwrap();
    let (mut near, mut far) = circuit(&relay, &source, &mut destination).await;

    let too_many = vec![7; LIMIT + 1];
    let (_, heard) = tokio::join!(near.write_all(&too_many), read_to_end(&mut far));
    assert_eq!(heard.len(), LIMIT);
    assert_eq!(relay.circuit_end().await.0, End::MaxData);
}

#[tokio::test]
async fn a_circuit_ends_when_its_time_is_up_idle_or_saturated() {
    let relay = RelayUnderTest::start(|setup| {
        setup.resources.max_duration = Limit::At(SECOND);
        setup.resources.max_data = Limit::Unlimited;
    })
    .await;
    let mut destination = Client::reserved(&relay).await;
    let source = Client::of(&relay).await;
    for saturated in [false, true] {
        let (mut near, mut far) = circuit(&relay, &source, &mut destination).await;
        let opened = Instant::now();
        let pump = async {
            let chunk = vec![0; 64 << 10];
            if saturated {
                while near.write_all(&chunk).await.is_ok() {}
            }
            near
        };
        tokio::join!(pump, read_to_end(&mut far));
        let lasted = opened.elapsed();
        let expected = SECOND - Duration::from_millis(50)..SECOND * 3 / 2;
        assert!(expected.contains(&lasted), "{lasted:?}");
    }
}

#[tokio::test]
async fn a_running_circuit_is_measured_against_the_limits_in_force() {
    let mut relay = RelayUnderTest::start(|setup| {
        setup.resources.max_data = Limit::At(1000);
    })
    .await;
    let mut destination = Client::reserved(&relay).await;
    let source = Client::of(&relay).await;
    let (mut near, mut far) = circuit(&relay, &source, &mut destination).await;
    let mut heard = vec![0; 1000];
    near.write_all(&heard.clone()).await.unwrap();
    far.read_exact(&mut heard).await.unwrap();

    // Raised: it goes on. Lowered to what it has used: it may stay. Lowered below: it ends.
    relay
        .publish(|setup| setup.resources.max_data = Limit::At(2000))
        .await;
    near.write_all(&heard.clone()).await.unwrap();
    far.read_exact(&mut heard).await.unwrap();
    relay
        .publish(|setup| setup.resources.max_data = Limit::At(2000))
        .await;
    far.write_all(b"still here").await.unwrap();
    near.read_exact(&mut [0; 10]).await.unwrap();
    relay
        .publish(|setup| setup.resources.max_data = Limit::At(1999))
        .await;
    let (end, carried) = relay.circuit_end().await;
    assert_eq!((end, carried.to_destination), (End::MaxData, 2000));

    let _ends = circuit(&relay, &source, &mut destination).await;
    relay
        .publish(|setup| setup.resources.max_duration = Limit::At(Duration::from_millis(1)))
        .await;
    assert_eq!(relay.circuit_end().await.0, End::MaxDuration);
}

#[tokio::test]
async fn a_lowered_cap_drains_or_evicts_the_newest() {
    let mut relay = RelayUnderTest::start(|_| {}).await;
    let mut destination = Client::reserved(&relay).await;
    let source = Client::of(&relay).await;
    let (mut oldest, mut far) = circuit(&relay, &source, &mut destination).await;
    let newer = circuit(&relay, &source, &mut destination).await;
    relay
        .publish(|setup| setup.resources.max_circuits_total = 1)
        .await;
    let report = relay.report().await;
    assert_eq!((report.circuits, report.draining), (2, 1));
    let near = source.connect(relay.peer, destination.peer).await;
    assert_eq!(near.err(), Some(LIMIT_EXCEEDED));

    relay
        .publish(|setup| setup.on_shrink = OnShrink::Evict)
        .await;
    let (mut near, mut away) = newer;
    assert!(read_to_end(&mut near).await.is_empty());
    assert!(read_to_end(&mut away).await.is_empty());
    oldest.write_all(b"!").await.unwrap();
    far.read_exact(&mut [0]).await.unwrap();
}

#[tokio::test]
async fn whom_the_new_file_denies_is_cut_and_told_once_and_its_neighbours_lose_no_byte() {
    const MEGABYTE: usize = 1 << 20;
    let mut relay = RelayUnderTest::start(|_| {}).await;
    let mut denied = Client::reserved(&relay).await;
    let mut destination = Client::reserved(&relay).await;
    let source = Client::of(&relay).await;
    let (mut near, mut far) = circuit(&relay, &source, &mut denied).await;
    let (mut here, mut there) = circuit(&relay, &source, &mut destination).await;

    let neighbour = tokio::spawn(async move {
        let bytes = vec![5; 4 * MEGABYTE];
        let send = async {
            here.write_all(&bytes).await.unwrap();
            here.close().await.unwrap();
        };
        let (_, heard) = tokio::join!(send, read_to_end(&mut there));
        heard.len()
    });
    let started = Instant::now();
    relay
        .publish(|setup| setup.deny = vec![Subject::Peer(denied.peer)])
        .await;
    read_to_end(&mut near).await;
    read_to_end(&mut far).await;
    denied.disconnected_from(relay.peer).await;
    assert!(started.elapsed() < 2 * SECOND);
    assert_eq!(neighbour.await.unwrap(), 4 * MEGABYTE);

    denied.dial(&relay.address()).await.expect("may come back");
    assert_eq!(denied.reserve(relay.peer).await, Err(Refused(202)));
}

#[tokio::test]
async fn a_stopping_relay_denies_everybody_and_lets_circuits_end() {
    let mut relay = RelayUnderTest::start(|_| {}).await;
    let mut destination = Client::reserved(&relay).await;
    let source = Client::of(&relay).await;
    let (mut near, mut far) = circuit(&relay, &source, &mut destination).await;
    relay
        .with(|swarm| swarm.behaviour_mut().relay.drain())
        .await;
    destination.announced(proto::HOP, false).await;
    assert_eq!(destination.reserve(relay.peer).await, Err(Refused(202)));
    let another = source.connect(relay.peer, destination.peer).await;
    assert_eq!(another.err(), Some(Refused(202)));

    near.write_all(b"last words").await.unwrap();
    far.read_exact(&mut [0; 10]).await.unwrap();
    assert!(!relay.with(|swarm| swarm.behaviour().relay.idle()).await);
    drop((near, far));
    relay.circuit_end().await;
    assert!(relay.with(|swarm| swarm.behaviour().relay.idle()).await);
}

#[tokio::test]
async fn a_stalled_reader_holds_its_buffer_keeps_newcomers_out_and_is_cut() {
    const BUFFER: u32 = 10_000;
    let timeouts = Timeouts {
        stall: 2 * SECOND,
        ..Timeouts::default()
    };
    let mut relay = RelayUnderTest::with_timeouts(timeouts, |setup| {
        setup.resources.buffer_size = BUFFER;
        setup.resources.max_buffers = 1;
    })
    .await;
    let mut destination = Client::reserved(&relay).await;
    let source = Client::of(&relay).await;
    let (mut near, far) = circuit(&relay, &source, &mut destination).await;
    let writer = tokio::spawn(async move {
        let chunk = vec![0; 64 << 10];
        while near.write_all(&chunk).await.is_ok() {}
    });
    relay.until(|report| report.buffered > 0).await;
    let stalled = Instant::now();
    let newcomer = source.connect(relay.peer, destination.peer).await;
    assert_eq!(newcomer.err(), Some(LIMIT_EXCEEDED));
    assert_eq!(relay.report().await.refused["buffers_full"], 1);

    let (end, _) = relay.circuit_end().await;
    assert_eq!(end, End::Stalled);
    let waited = stalled.elapsed();
    assert!(waited > SECOND && waited < 4 * SECOND, "{waited:?}");
    within("the writer's end", writer).await.unwrap();
    relay.until(|report| report.buffered == 0).await;
    drop(far);
    circuit(&relay, &source, &mut destination).await;
}

#[tokio::test]
async fn a_slow_reader_waits_in_no_more_than_its_buffer_and_is_not_cut() {
    const BUFFER: u32 = 10_000;
    let relay = RelayUnderTest::start(|setup| setup.resources.buffer_size = BUFFER).await;
    let mut destination = Client::reserved(&relay).await;
    let source = Client::of(&relay).await;
    let (mut near, mut far) = circuit(&relay, &source, &mut destination).await;
    const ALL: usize = 3 << 20;
    let writer = tokio::spawn(async move {
        near.write_all(&vec![1; ALL]).await.unwrap();
        near.close().await.unwrap();
    });
    relay.until(|report| report.buffered > 0).await;
    let mut most = 0;
    let (mut heard, mut chunk) = (0, vec![0; 32 << 10]);
    while let bytes @ 1.. = far.read(&mut chunk).await.unwrap() {
        heard += bytes;
        most = most.max(relay.report().await.buffered);
    }
    assert_eq!(heard, ALL);
    assert!(most <= u64::from(BUFFER), "{most} bytes held");
    writer.await.unwrap();
}

#[tokio::test]
async fn idle_circuits_hold_no_buffers() {
    let relay = RelayUnderTest::start(|_| {}).await;
    let mut destination = Client::reserved(&relay).await;
    let source = Client::of(&relay).await;
    let mut circuits = Vec::new();
    for _ in 0..200 {
        let (mut near, mut far) = circuit(&relay, &source, &mut destination).await;
        near.write_all(&[9; 1000]).await.unwrap();
        far.read_exact(&mut [0; 1000]).await.unwrap();
        circuits.push((near, far));
    }
    assert_eq!(relay.report().await.buffered, 0);
}

/// Bytes that arrive over each of `circuits` in `time`, when the sources send what they can.
async fn flood(circuits: Vec<(Stream, Stream)>, time: Duration) -> Vec<usize> {
    let flows = circuits.into_iter().map(|(mut near, mut far)| async move {
        let writer = tokio::spawn(async move {
            let chunk = vec![0; 16 << 10];
            while near.write_all(&chunk).await.is_ok() {}
        });
        let (mut heard, mut chunk) = (0, vec![0; 64 << 10]);
        let end = Instant::now() + time;
        while let Ok(Ok(bytes @ 1..)) = tokio::time::timeout_at(end, far.read(&mut chunk)).await {
            heard += bytes;
        }
        writer.abort();
        heard
    });
    future::join_all(flows).await
}

#[tokio::test]
async fn circuits_share_the_bandwidth_of_the_node_in_equal_parts() {
    const RATE: u64 = 1_000_000;
    let relay = RelayUnderTest::start(|setup| setup.resources.bandwidth = Limit::At(RATE)).await;
    let mut destination = Client::reserved(&relay).await;
    let source = Client::of(&relay).await;
    let mut circuits = Vec::new();
    for _ in 0..4 {
        circuits.push(circuit(&relay, &source, &mut destination).await);
    }
    let heard = flood(circuits, 2 * SECOND).await;
    let (least, most) = (RATE as usize * 14 / 10, RATE as usize * 24 / 10);
    let all: usize = heard.iter().sum();
    assert!((least..most).contains(&all), "{heard:?}");
    assert!(heard.iter().all(|part| *part > all / 8), "{heard:?}");
}

#[tokio::test]
async fn a_circuit_has_a_bandwidth_of_its_own_that_can_be_raised_while_it_runs() {
    const RATE: usize = 200_000;
    let mut relay = RelayUnderTest::start(|setup| {
        setup.resources.bandwidth_per_circuit = Limit::At(RATE as u64);
    })
    .await;
    let mut destination = Client::reserved(&relay).await;
    let source = Client::of(&relay).await;
    let one = circuit(&relay, &source, &mut destination).await;
    let other = circuit(&relay, &source, &mut destination).await;
    for heard in flood(vec![one, other], SECOND).await {
        assert!((RATE * 6 / 10..RATE * 13 / 10).contains(&heard), "{heard}");
    }

    let (mut near, mut far) = circuit(&relay, &source, &mut destination).await;
    let sent = tokio::spawn(async move {
        near.write_all(&vec![0; 20 * RATE]).await.unwrap();
        near
    });
    far.read_exact(&mut [0; 1]).await.unwrap();
    let started = Instant::now();
    relay
        .publish(|setup| setup.resources.bandwidth_per_circuit = Limit::Unlimited)
        .await;
    far.read_exact(&mut vec![0; 20 * RATE - 1]).await.unwrap();
    assert!(started.elapsed() < 10 * SECOND);
    sent.await.unwrap();
}
