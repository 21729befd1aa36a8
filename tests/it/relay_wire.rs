//! The relay service on the wire: every status of circuit relay v2, vouchers, addresses, and who is told what.

use crate::support::relay::{
    Client, Refused, RelayUnderTest, TALK, answer, circuit, message, within,
};
use edgevpn::{
    acl::{Audience, Mode, Subject},
    net::relay::{End, Timeouts, proto, voucher},
    relay::{Limit, Rate},
};
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::{Multiaddr, PeerId, core::SignedEnvelope, multiaddr::Protocol};
use prost::Message;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;

const REFUSED: Refused = Refused(200);
const LIMIT_EXCEEDED: Refused = Refused(201);
const DENIED: Refused = Refused(202);
const FAILED: Refused = Refused(203);
const NO_RESERVATION: Refused = Refused(204);
const MALFORMED: Refused = Refused(400);
const UNEXPECTED: Refused = Refused(401);

#[tokio::test]
async fn two_upstream_clients_talk_through_the_relay() {
    let relay = RelayUnderTest::start(|_| {}).await;
    for at in [
        relay.address(),
        relay.quic.clone().with(Protocol::P2p(relay.peer)),
    ] {
        let mut destination = Client::upstream();
        destination.listen_through(&at).await.expect("reserves");

        let mut source = Client::upstream();
        let through = source
            .dial_through(&at, destination.peer)
            .await
            .expect("a circuit");
        let mut near = source
            .open_on(Some(through), destination.peer, TALK)
            .await
            .expect("a stream");
        near.write_all(b"hello").await.unwrap();
        near.close().await.unwrap();

        let mut far = destination.accept().await.stream;
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"hello");
    }
}

#[tokio::test]
async fn a_circuit_carries_bytes_both_ways_and_passes_a_half_close_on() {
    let mut relay = RelayUnderTest::start(|_| {}).await;
    let mut destination = Client::reserved(&relay).await;
    let source = Client::of(&relay).await;
    let (mut near, mut far) = circuit(&relay, &source, &mut destination).await;

    near.write_all(b"question").await.unwrap();
    near.close().await.unwrap();
    let mut heard = Vec::new();
    far.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"question");

    far.write_all(b"the answer").await.unwrap();
    far.close().await.unwrap();
    let mut heard = Vec::new();
    near.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"the answer");

    let (end, bytes) = relay.circuit_end().await;
    assert_eq!(end, End::Closed);
    assert_eq!((bytes.to_destination, bytes.to_source), (8, 10));
}

#[tokio::test]
async fn bytes_right_behind_connect_and_right_behind_the_consent_belong_to_the_circuit() {
    let relay = RelayUnderTest::start(|_| {}).await;
    let mut destination = Client::reserved(&relay).await;
    let source = Client::of(&relay).await;

    let mut near = source.open(relay.peer, proto::HOP).await.unwrap();
    let mut request = message::connect(destination.peer);
    request.extend_from_slice(b"early");
    message::write(&mut near, &request).await.unwrap();

    let (mut far, _) = destination.accept_stop().await;
    let mut consent = message::stop_status(message::OK);
    consent.extend_from_slice(b"early too");
    message::write(&mut far, &consent).await.unwrap();

    answer(&mut near).await.expect("a circuit");
    let (mut there, mut here) = ([0; 5], [0; 9]);
    within("both", async {
        far.read_exact(&mut there).await.unwrap();
        near.read_exact(&mut here).await.unwrap();
    })
    .await;
    assert_eq!((&there, &here), (b"early", b"early too"));
}

#[tokio::test]
async fn whom_the_rules_refuse_gets_permission_denied() {
    let mut relay = RelayUnderTest::start(|_| {}).await;
    let destination = Client::reserved(&relay).await;
    let (stranger, source) = (Client::of(&relay).await, Client::of(&relay).await);
    relay
        .publish(|setup| {
            setup.reserve = Audience::Listed;
            setup.allow = vec![Subject::Peer(destination.peer)];
            setup.deny = vec![Subject::Peer(stranger.peer)];
        })
        .await;

    assert_eq!(stranger.reserve(relay.peer).await, Err(DENIED));
    assert_eq!(source.reserve(relay.peer).await, Err(DENIED));
    // The rules come before the reservation is looked up: a stranger cannot tell who is here.
    for peer in [destination.peer, PeerId::random()] {
        assert_eq!(stranger.connect(relay.peer, peer).await.err(), Some(DENIED));
    }
    assert_eq!(
        source.connect(relay.peer, stranger.peer).await.err(),
        Some(DENIED)
    );
    relay
        .publish(|setup| setup.deny = vec![Subject::Peer(destination.peer)])
        .await;
    assert_eq!(
        source.connect(relay.peer, destination.peer).await.err(),
        Some(DENIED)
    );
}

#[tokio::test]
async fn shadow_mode_refuses_nobody_and_counts() {
    let relay = RelayUnderTest::start(|setup| {
        setup.reserve = Audience::Listed;
        setup.mode = Mode::Shadow;
    })
    .await;
    Client::reserved(&relay).await;
    assert_eq!(relay.report().await.shadow_refused, 1);
}

#[tokio::test]
async fn a_relay_out_of_service_is_not_announced_and_denies_what_is_asked_all_the_same() {
    let mut relay = RelayUnderTest::start(|_| {}).await;
    let mut client = Client::of(&relay).await;
    client.announced(proto::HOP, true).await;
    client.reserve(relay.peer).await.expect("reserves");
    let mut asked_before = client.open(relay.peer, proto::HOP).await.unwrap();

    relay.publish(|setup| setup.service = false).await;
    client.announced(proto::HOP, false).await;
    message::write(&mut asked_before, &message::reserve())
        .await
        .unwrap();
    assert_eq!(answer(&mut asked_before).await.err(), Some(DENIED));
    assert_eq!(client.reserve(relay.peer).await, Err(DENIED));
    assert_eq!(
        client.connect(relay.peer, PeerId::random()).await.err(),
        Some(DENIED)
    );
    assert_eq!(relay.report().await.reservations, 0);

    relay.publish(|setup| setup.service = true).await;
    client.announced(proto::HOP, true).await;
    client.reserve(relay.peer).await.expect("reserves");
}

#[tokio::test]
async fn requests_over_a_relayed_connection_are_denied() {
    let relay = RelayUnderTest::start(|_| {}).await;
    let other = RelayUnderTest::start(|_| {}).await;
    relay.listen_through(&other).await;

    let mut client = Client::upstream();
    let through = client
        .dial_through(&other.address(), relay.peer)
        .await
        .expect("a relayed connection");
    for request in [message::reserve(), message::connect(PeerId::random())] {
        let mut stream = client
            .open_on(Some(through), relay.peer, proto::HOP)
            .await
            .unwrap();
        message::write(&mut stream, &request).await.unwrap();
        assert_eq!(answer(&mut stream).await.err(), Some(DENIED));
    }
    assert_eq!(relay.report().await.refused["relayed"], 2);
}

#[tokio::test]
async fn a_reservation_beyond_a_cap_is_refused() {
    let mut relay = RelayUnderTest::start(|setup| setup.resources.max_reservations = 1).await;
    let (first, second) = (Client::reserved(&relay).await, Client::of(&relay).await);
    assert_eq!(second.reserve(relay.peer).await, Err(REFUSED));
    relay
        .publish(|setup| {
            setup.resources.max_reservations = 2;
            setup.resources.max_reservations_per_ip = 1;
        })
        .await;
    assert_eq!(second.reserve(relay.peer).await, Err(REFUSED));
    first.reserve(relay.peer).await.expect("a renewal");
}

#[tokio::test]
async fn requests_beyond_their_rate_exceed_a_limit() {
    let once = Limit::At(Rate {
        count: 1,
        per: Duration::from_secs(3600),
    });
    let relay = RelayUnderTest::start(|setup| {
        setup.resources.reservation_rate = once;
        setup.resources.circuit_rate = once;
    })
    .await;
    let client = Client::reserved(&relay).await;
    assert_eq!(client.reserve(relay.peer).await, Err(LIMIT_EXCEEDED));
    let stranger = PeerId::random();
    let connect = || client.connect(relay.peer, stranger);
    assert_eq!(connect().await.err(), Some(NO_RESERVATION));
    assert_eq!(connect().await.err(), Some(LIMIT_EXCEEDED));
}

#[tokio::test]
async fn a_peer_without_a_live_reservation_has_none() {
    let mut relay = RelayUnderTest::start(|setup| {
        setup.resources.reservation_ttl = Duration::from_millis(100);
    })
    .await;
    let (source, destination) = (Client::of(&relay).await, Client::of(&relay).await);
    let peer = relay.peer;
    let connect = || source.connect(peer, destination.peer);
    assert_eq!(connect().await.err(), Some(NO_RESERVATION));
    destination.reserve(relay.peer).await.expect("reserves");
    relay.reservation_end().await;
    assert_eq!(connect().await.err(), Some(NO_RESERVATION));
    let nowhere = source.connect(relay.peer, PeerId::random()).await;
    assert_eq!(nowhere.err(), Some(NO_RESERVATION));
}

#[tokio::test]
async fn a_destination_that_does_not_consent_is_a_failed_connection_whatever_it_says() {
    let relay = RelayUnderTest::start(|_| {}).await;
    let mut destination = Client::reserved(&relay).await;
    let source = Client::of(&relay).await;
    let peer = destination.peer;
    let unexpected = message::Stop {
        kind: Some(message::STOP_CONNECT),
        ..Default::default()
    };
    for reply in [
        message::stop_status(202),
        message::stop_status(204),
        message::stop_status(0),
        unexpected.encode_length_delimited_to_vec(),
        vec![0],
        vec![3, 255, 255, 255],
        vec![0xff; 12],
        // Nothing: the stream is reset.
        Vec::new(),
    ] {
        let consent = async {
            let (mut stream, offer) = destination.accept_stop().await;
            assert_eq!(offer.peer.unwrap().id, source.peer.to_bytes());
            message::write(&mut stream, &reply).await.unwrap();
        };
        let connect = source.connect(relay.peer, peer);
        let (near, ()) = tokio::join!(connect, consent);
        assert_eq!(near.err(), Some(FAILED), "{reply:?}");
    }
    relay.until(|report| report.handshakes == 0).await;
    assert_eq!(relay.report().await.refused["unreachable"], 8);
}

#[tokio::test]
async fn a_destination_that_does_not_speak_stop_or_says_nothing_is_a_failed_connection() {
    let timeouts = Timeouts {
        request: Duration::from_secs(1),
        ..Timeouts::default()
    };
    let relay = RelayUnderTest::with_timeouts(timeouts, |_| {}).await;
    let mut deaf = Client::deaf();
    deaf.dial(&relay.address()).await.unwrap();
    deaf.reserve(relay.peer).await.expect("reserves");
    let mut silent = Client::reserved(&relay).await;
    let source = Client::of(&relay).await;

    let near = source.connect(relay.peer, deaf.peer).await;
    assert_eq!(near.err(), Some(FAILED));
    let (near, _stop) = tokio::join!(
        source.connect(relay.peer, silent.peer),
        silent.accept_stop()
    );
    assert_eq!(near.err(), Some(FAILED));
    relay.until(|report| report.handshakes == 0).await;
}

#[tokio::test]
async fn a_destination_that_leaves_during_the_handshake_is_a_failed_connection() {
    let relay = RelayUnderTest::start(|_| {}).await;
    let mut destination = Client::reserved(&relay).await;
    let source = Client::of(&relay).await;
    let peer = destination.peer;
    let leave = async {
        let offered = destination.accept_stop().await;
        destination.leave(relay.peer).await;
        drop(offered);
    };
    let (near, ()) = tokio::join!(source.connect(relay.peer, peer), leave);
    assert_eq!(near.err(), Some(FAILED));
}

#[tokio::test]
async fn what_is_no_request_is_malformed() {
    let relay = RelayUnderTest::start(|_| {}).await;
    let client = Client::of(&relay).await;
    let connect = |id| message::connect_with(id, Vec::new());
    let without_peer = message::Hop {
        kind: Some(message::CONNECT),
        ..Default::default()
    };
    for (what, request) in [
        ("an empty message", vec![0]),
        ("no type", vec![2, 0x28, 100]),
        ("an unknown type", vec![2, 8, 9]),
        ("a type of the wrong kind", vec![3, 10, 1, 0]),
        ("no protobuf", vec![4, 0xff, 0xff, 0xff, 0xff]),
        ("an overlong length", vec![0x82, 0x00, 8, 0]),
        ("a length of ten bytes", vec![0xff; 10]),
        ("a length of 4097", vec![0x81, 0x20, 8, 0]),
        (
            "connect to nobody",
            without_peer.encode_length_delimited_to_vec(),
        ),
        ("a peer id of no bytes", connect(Vec::new())),
        ("a peer id of one byte", connect(vec![1])),
        ("a peer id of 2 KiB", connect(vec![0x12; 2048])),
    ] {
        let answered = client.ask(relay.peer, &request).await;
        assert_eq!(answered.err(), Some(MALFORMED), "{what}");
    }
    // Nothing more is to come, but what came is no message.
    let mut stream = client.open(relay.peer, proto::HOP).await.unwrap();
    stream.write_all(&[9, 8, 0]).await.unwrap();
    stream.close().await.unwrap();
    assert_eq!(answer(&mut stream).await.err(), Some(MALFORMED));
}

#[tokio::test]
async fn a_message_that_does_not_belong_here_is_unexpected() {
    let relay = RelayUnderTest::start(|_| {}).await;
    let client = Client::of(&relay).await;
    let status = message::Hop {
        kind: Some(message::STATUS),
        status: Some(message::OK),
        ..Default::default()
    };
    let answered = client
        .ask(relay.peer, &status.encode_length_delimited_to_vec())
        .await;
    assert_eq!(answered.err(), Some(UNEXPECTED));
}

#[tokio::test]
async fn a_reservation_says_until_when_where_and_how_much_and_proves_it() {
    let relay = RelayUnderTest::start(|setup| {
        setup.resources.max_data = Limit::At(4096);
        setup.resources.max_duration = Limit::At(Duration::from_millis(1500));
        setup.resources.reservation_ttl = Duration::from_secs(120);
    })
    .await;
    let client = Client::of(&relay).await;
    let answer = client.reserve(relay.peer).await.expect("reserves");

    let reservation = answer.reservation.expect("a reservation");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let expected = now.as_secs() + 120;
    assert!((expected - 1..=expected).contains(&reservation.expire));

    let addresses: Vec<Multiaddr> = reservation
        .addrs
        .into_iter()
        .map(|address| Multiaddr::try_from(address).unwrap())
        .collect();
    assert!(addresses.contains(&relay.address()), "{addresses:?}");

    let limit = answer.limit.expect("a limit");
    assert_eq!((limit.data, limit.duration), (Some(4096), Some(2)));

    let envelope = reservation.voucher.expect("a voucher");
    let envelope = SignedEnvelope::from_protobuf_encoding(&envelope).unwrap();
    let (payload, signer) = envelope
        .payload_and_signing_key(voucher::DOMAIN.to_owned(), &[0x03, 0x02])
        .unwrap();
    assert_eq!(signer.to_peer_id(), relay.peer);
    let voucher = message::Voucher::decode(payload).unwrap();
    assert_eq!(voucher.relay, relay.peer.to_bytes());
    assert_eq!(voucher.peer, client.peer.to_bytes());
    assert_eq!(voucher.expiration, reservation.expire);
}

#[tokio::test]
async fn without_any_limit_none_is_announced_to_either_end() {
    let mut relay = RelayUnderTest::start(|setup| {
        setup.resources.max_data = Limit::Unlimited;
        setup.resources.max_duration = Limit::Unlimited;
    })
    .await;
    let mut destination = Client::of(&relay).await;
    let answered = destination.reserve(relay.peer).await.expect("reserves");
    assert_eq!(answered.limit, None);

    let source = Client::of(&relay).await;
    let request = message::connect(destination.peer);
    let (near, offer) = tokio::join!(source.ask(relay.peer, &request), async {
        let (mut stream, offer) = destination.accept_stop().await;
        message::write(&mut stream, &message::stop_status(message::OK))
            .await
            .unwrap();
        offer
    });
    assert_eq!((near.unwrap().1.limit, offer.limit), (None, None));

    relay
        .publish(|setup| setup.resources.max_data = Limit::At(7))
        .await;
    let (_, offer) = tokio::join!(source.ask(relay.peer, &request), async {
        let (_reset, offer) = destination.accept_stop().await;
        offer
    });
    let limit = offer.limit.expect("a limit");
    assert_eq!((limit.data, limit.duration), (Some(7), None));
}

#[tokio::test]
async fn addresses_in_a_request_are_never_dialled() {
    let relay = RelayUnderTest::start(|_| {}).await;
    let client = Client::of(&relay).await;
    let sentinel = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = sentinel.local_addr().unwrap().port();
    let absent = PeerId::random();
    let there: Multiaddr = format!("/ip4/127.0.0.1/tcp/{port}/p2p/{absent}")
        .parse()
        .unwrap();

    let request = message::connect_with(absent.to_bytes(), vec![there.to_vec(); 3]);
    let answered = client.ask(relay.peer, &request).await;
    assert_eq!(answered.err(), Some(NO_RESERVATION));
    let reserve = message::Hop {
        kind: Some(message::RESERVE),
        peer: Some(message::Peer {
            id: client.peer.to_bytes(),
            addrs: vec![there.to_vec()],
        }),
        ..Default::default()
    };
    client
        .ask(relay.peer, &reserve.encode_length_delimited_to_vec())
        .await
        .expect("reserves");

    // Were the relay dialling, it would have a pending connection now, and the sentinel a visitor.
    let pending = relay
        .with(|swarm| swarm.network_info().connection_counters().num_pending())
        .await;
    assert_eq!(pending, 0);
    let visit = futures::FutureExt::now_or_never(sentinel.accept());
    assert!(visit.is_none());
}

#[tokio::test]
async fn a_reservation_survives_the_connection_that_made_it_and_dies_with_the_last() {
    let mut relay = RelayUnderTest::start(|_| {}).await;
    let mut destination = Client::by_hand();
    let first = destination.dial(&relay.address()).await.unwrap();
    destination.reserve(relay.peer).await.expect("reserves");
    let second = destination.dial(&relay.address()).await.unwrap();

    destination.close(first).await;
    relay.connection_closed(destination.peer, 1).await;
    let source = Client::of(&relay).await;
    let circuit = circuit(&relay, &source, &mut destination).await;
    drop(circuit);

    destination.close(second).await;
    relay.reservation_end().await;
    let near = source.connect(relay.peer, destination.peer).await;
    assert_eq!(near.err(), Some(NO_RESERVATION));
}

#[tokio::test]
async fn a_circuit_outlives_the_reservation_it_was_opened_under() {
    let mut relay = RelayUnderTest::start(|setup| {
        setup.resources.reservation_ttl = Duration::from_millis(300);
    })
    .await;
    let mut destination = Client::reserved(&relay).await;
    let source = Client::of(&relay).await;
    let (mut near, mut far) = circuit(&relay, &source, &mut destination).await;
    relay.reservation_end().await;

    near.write_all(b"still here").await.unwrap();
    let mut heard = [0; 10];
    far.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"still here");
}

#[tokio::test]
async fn a_circuit_ends_with_either_connection_it_runs_over() {
    let mut relay = RelayUnderTest::start(|_| {}).await;
    for source_leaves in [true, false] {
        let mut destination = Client::reserved(&relay).await;
        let source = Client::of(&relay).await;
        let (mut near, mut far) = circuit(&relay, &source, &mut destination).await;
        if source_leaves {
            source.leave(relay.peer).await;
            assert_eq!(within("the end", far.read(&mut [0])).await.unwrap_or(0), 0);
        } else {
            destination.leave(relay.peer).await;
            assert_eq!(within("the end", near.read(&mut [0])).await.unwrap_or(0), 0);
        }
        relay.circuit_end().await;
    }
    assert_eq!(relay.report().await.circuits, 0);
}

#[tokio::test]
async fn a_connection_with_a_reservation_is_kept_open_and_let_go_afterwards() {
    // Long enough for the request to come before the connection counts as idle, and half of what it is kept for.
    let mut relay = RelayUnderTest::idle_after(Duration::from_millis(750), |setup| {
        setup.resources.reservation_ttl = Duration::from_millis(1_500);
    })
    .await;
    let mut client = Client::by_hand();
    client.dial(&relay.address()).await.unwrap();
    // A request keeps a connection open by itself; then the reservation does, until it expires.
    client.reserve(relay.peer).await.expect("reserves");
    let ended = tokio::time::Instant::now();
    relay.reservation_end().await;
    assert!(ended.elapsed() > Duration::from_millis(1_200));
    client.disconnected_from(relay.peer).await;
}

#[tokio::test]
async fn a_circuit_to_oneself_is_denied_and_one_to_the_relay_has_no_reservation() {
    let relay = RelayUnderTest::start(|_| {}).await;
    let client = Client::reserved(&relay).await;
    let to_itself = client.connect(relay.peer, client.peer).await;
    assert_eq!(to_itself.err(), Some(DENIED));
    let to_relay = client.connect(relay.peer, relay.peer).await;
    assert_eq!(to_relay.err(), Some(NO_RESERVATION));
}
