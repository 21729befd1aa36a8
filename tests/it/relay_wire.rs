//! The relay service on the wire: every status of circuit relay v2, vouchers, addresses, and who is told what.

use crate::support::relay::{Client, RelayUnderTest, TALK, circuit};
use futures::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn two_upstream_clients_talk_through_the_relay() {
    let relay = RelayUnderTest::start(|_| {}).await;
    let mut destination = Client::upstream();
    destination.listen_through(&relay).await.expect("reserves");

    let mut source = Client::upstream();
    let through = source
        .dial_through(&relay, destination.peer)
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
    assert_eq!(end, edgevpn::net::relay::End::Closed);
    assert_eq!((bytes.to_destination, bytes.to_source), (8, 10));
}
