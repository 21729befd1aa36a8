//! Streams by connection: over loopback sockets and a relay of ours.

use std::time::Duration;

use edgevpn::net::streams::{self, Control, Inbound, OpenError, Route, Step};
use futures::{AsyncReadExt, AsyncWriteExt, future::join_all};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, identify,
    multiaddr::Protocol,
    swarm::{
        ConnectionId, NetworkBehaviour, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::time::timeout;

use crate::support::relay::{IDLE, RelayUnderTest, Running, identify_behaviour, listen, swarm};

const TALK: StreamProtocol = StreamProtocol::new("/test/reach/talk");
const OTHER: StreamProtocol = StreamProtocol::new("/test/reach/other");

const PATIENCE: Duration = Duration::from_secs(20);

struct Peer {
    id: PeerId,
    address: Multiaddr,
    control: Control,
    swarm: Running<PeerBehaviour>,
}

#[derive(NetworkBehaviour)]
struct PeerBehaviour {
    streams: streams::Behaviour,
    identify: identify::Behaviour,
    client: libp2p::relay::client::Behaviour,
}

impl Peer {
    async fn start() -> Self {
        let mut swarm = swarm(IDLE, |key, client| PeerBehaviour {
            streams: streams::Behaviour::new(),
            identify: identify_behaviour(key),
            client,
        });
        let id = *swarm.local_peer_id();
        let address = listen(&mut swarm, "/ip4/127.0.0.1/tcp/0").await;
        Self {
            id,
            address: address.with(Protocol::P2p(id)),
            control: swarm.behaviour().streams.control(),
            swarm: Running::start(swarm),
        }
    }

    fn accept(&self, protocol: StreamProtocol) -> Inbound {
        self.control.accept(protocol, 64).expect("not accepted yet")
    }

    async fn listen_through(&self, relay: &RelayUnderTest) -> Multiaddr {
        let through = relay.address().with(Protocol::P2pCircuit);
        let address = through.clone();
        let listening = self.swarm.call(|swarm| swarm.listen_on(address)).await;
        listening.expect("a relay address");
        relay.until(|report| report.reservations == 1).await;
        through.with(Protocol::P2p(self.id))
    }

    async fn dial(&mut self, address: &Multiaddr) -> ConnectionId {
        let Some(Protocol::P2p(peer)) = address.iter().last() else {
            panic!("{address} names nobody");
        };
        let dial = DialOpts::peer_id(peer)
            .addresses(vec![address.clone()])
            .condition(PeerCondition::Always)
            .build();
        let dialled = dial.connection_id();
        let called = self.swarm.call(|swarm| swarm.dial(dial)).await;
        called.expect("dials");
        self.swarm
            .event(|event| match event {
                SwarmEvent::ConnectionEstablished { connection_id, .. } => {
                    (*connection_id == dialled).then_some(())
                }
                _ => None,
            })
            .await;
        dialled
    }

    async fn close(&mut self, connection: ConnectionId) {
        let mut changes = self.control.changes();
        self.swarm
            .call(move |swarm| swarm.close_connection(connection))
            .await;
        while changes.recv().await.expect("a change").connection != connection {}
    }

    /// Waits until a peer announces, or no longer announces, a protocol to this one.
    async fn told(&mut self, protocol: StreamProtocol, spoken: bool) {
        self.swarm
            .event(|event| match event {
                SwarmEvent::Behaviour(PeerBehaviourEvent::Identify(
                    identify::Event::Received { info, .. },
                )) => (info.protocols.contains(&protocol) == spoken).then_some(()),
                _ => None,
            })
            .await;
    }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_never_goes_through_the_relay_while_there_is_a_direct_connection() {
    let relay = RelayUnderTest::start(|_| {}).await;
    let (mut source, destination) = (Peer::start().await, Peer::start().await);
    let mut talks = destination.accept(TALK);
    let through_relay = destination.listen_through(&relay).await;
    let relayed = source.dial(&through_relay).await;
    let open = |route| source.control.open(destination.id, TALK, route);

    let refused = within(open(Route::Direct)).await;
    assert!(matches!(refused, Err(OpenError::OnlyRelayed { .. })));
    let first = within(open(Route::PreferDirect)).await.expect("opens");
    assert!(first.relayed());
    assert!(within(talks.next()).await.expect("comes").relayed);

    let direct = source.dial(&destination.address).await;
    let open = |route| source.control.open(destination.id, TALK, route);
    for _ in 0..50 {
        let stream = within(open(Route::PreferDirect)).await.expect("opens");
        assert_eq!(stream.connection(), direct);
        assert!(!within(talks.next()).await.expect("comes").relayed);
    }
    let chosen = within(open(Route::Via(relayed))).await.expect("opens");
    assert_eq!(chosen.connection(), relayed);
    assert!(within(talks.next()).await.expect("comes").relayed);

    source.close(direct).await;
    let back = within(
        source
            .control
            .open(destination.id, TALK, Route::PreferDirect),
    )
    .await;
    assert_eq!(back.expect("opens").connection(), relayed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_carries_bytes_both_ways_and_counts_as_live_until_it_is_dropped() {
    let (mut source, destination) = (Peer::start().await, Peer::start().await);
    let mut talks = destination.accept(TALK);
    source.dial(&destination.address).await;

    let stream = source.control.open(destination.id, TALK, Route::Direct);
    let mut stream = within(stream).await.expect("opens");
    stream.write_all(b"question").await.expect("writes");
    stream.close().await.expect("closes");
    let mut incoming = within(talks.next()).await.expect("comes");
    let mut heard = Vec::new();
    within(incoming.stream.read_to_end(&mut heard))
        .await
        .expect("reads");
    assert_eq!(heard, b"question");
    incoming.stream.write_all(b"answer").await.expect("writes");
    incoming.stream.close().await.expect("closes");
    let mut heard = Vec::new();
    within(stream.read_to_end(&mut heard)).await.expect("reads");
    assert_eq!(heard, b"answer");

    let live = |peer: &Peer, of: PeerId| {
        peer.control
            .links(of)
            .iter()
            .map(|link| link.streams)
            .sum::<u32>()
    };
    assert_eq!(live(&source, destination.id), 1);
    assert_eq!(live(&destination, source.id), 1);
    drop((stream, incoming));
    assert_eq!(live(&source, destination.id), 0);
    assert_eq!(live(&destination, source.id), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_resets_the_newest_stream_and_counts_it() {
    let (mut source, destination) = (Peer::start().await, Peer::start().await);
    let mut talks = destination.control.accept(TALK, 2).expect("accepts");
    source.dial(&destination.address).await;
    let mut held = Vec::new();
    for number in 0..3_u8 {
        let open = source.control.open(destination.id, TALK, Route::Direct);
        let mut stream = within(open).await.expect("opens");
        // Its reset may have arrived before this.
        let _ = stream.write_all(&[number]).await;
        held.push(stream);
    }

    let turned_away = held.last_mut().expect("three");
    let mut nothing = [0; 1];
    let read = within(turned_away.read(&mut nothing)).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    for number in 0..2 {
        let mut incoming = within(talks.next()).await.expect("comes");
        let mut heard = [9; 1];
        within(incoming.stream.read_exact(&mut heard))
            .await
            .expect("reads");
        assert_eq!(heard, [number]);
    }
    let counted = destination.control.report().accepted["/test/reach/talk"];
    assert_eq!((counted.handed_over, counted.turned_away), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_cannot_fill_an_inbox() {
    let (mut greedy, mut modest) = (Peer::start().await, Peer::start().await);
    let destination = Peer::start().await;
    let mut talks = destination.control.accept(TALK, 128).expect("accepts");
    greedy.dial(&destination.address).await;
    modest.dial(&destination.address).await;

    let mut held = Vec::new();
    for _ in 0..100 {
        let open = greedy.control.open(destination.id, TALK, Route::Direct);
        held.push(within(open).await.expect("opens"));
    }
    let open = modest.control.open(destination.id, TALK, Route::Direct);
    held.push(within(open).await.expect("opens"));

    let mut of_greedy = 0;
    loop {
        let incoming = within(talks.next()).await.expect("comes");
        if incoming.peer == modest.id {
            break;
        }
        of_greedy += 1;
    }
    assert_eq!(of_greedy, 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn identify_follows_what_is_accepted() {
    let (mut source, destination) = (Peer::start().await, Peer::start().await);
    source.dial(&destination.address).await;
    let open = source.control.open(destination.id, TALK, Route::Direct);
    let refused = within(open).await;
    assert!(matches!(refused, Err(OpenError::Unsupported { .. })));

    let talks = destination.accept(TALK);
    source.told(TALK, true).await;
    assert!(destination.control.accept(TALK, 1).is_err(), "one receiver");
    let open = source.control.open(destination.id, TALK, Route::Direct);
    within(open).await.expect("opens");

    let others = destination.accept(OTHER);
    source.told(OTHER, true).await;
    drop(talks);
    source.told(TALK, false).await;
    let open = source.control.open(destination.id, TALK, Route::Direct);
    let refused = within(open).await;
    assert!(matches!(refused, Err(OpenError::Unsupported { .. })));
    drop(others);
    destination.accept(TALK);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_negotiate_at_once_and_a_flood_is_told_so() {
    let (mut source, destination) = (Peer::start().await, Peer::start().await);
    let mut talks = destination.control.accept(TALK, 256).expect("accepts");
    let taking = tokio::spawn(async move { while talks.next().await.is_some() {} });
    source.dial(&destination.address).await;

    let opening = (0..100).map(|_| source.control.open(destination.id, TALK, Route::Direct));
    let opened = within(join_all(opening)).await;
    assert!(opened.iter().all(Result::is_ok));
    drop(opened);

    let opening = (0..300).map(|_| source.control.open(destination.id, TALK, Route::Direct));
    let opened = within(join_all(opening)).await;
    let busy = |result: &Result<_, OpenError>| matches!(result, Err(OpenError::Busy { .. }));
    assert!(opened.iter().any(busy));
    assert!(opened.iter().all(|result| result.is_ok() || busy(result)));
    assert!(source.control.report().failed["busy"] > 0);
    taking.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_leaves_nothing_behind() {
    let (mut source, destination) = (Peer::start().await, Peer::start().await);
    let _talks = destination.accept(TALK);
    let mut changes = destination.control.changes();
    let connection = source.dial(&destination.address).await;
    let appeared = within(changes.recv()).await.expect("a change");
    assert_eq!((appeared.peer, appeared.step), (source.id, Step::Appeared));
    assert_eq!((appeared.direct, appeared.through_relays), (1, 0));

    source.close(connection).await;
    let gone = within(changes.recv()).await.expect("a change");
    assert_eq!(
        (gone.peer, gone.step, gone.direct),
        (source.id, Step::Gone, 0)
    );
    assert!(destination.control.all_links().is_empty());
    assert!(source.control.all_links().is_empty());
    let open = |route| source.control.open(destination.id, TALK, route);
    assert!(matches!(
        within(open(Route::PreferDirect)).await,
        Err(OpenError::NotConnected { .. })
    ));
    assert!(matches!(
        within(open(Route::Via(connection))).await,
        Err(OpenError::Lost { .. })
    ));
}
