//! Peers of the relay: by hand, or with the unmodified client of rust-libp2p.

use super::{
    IDLE, PATIENCE, RelayUnderTest, Running, TALK, identify_behaviour, message, plain, swarm_as,
};
use edgevpn::net::relay::proto;
use futures::AsyncReadExt;
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol, identify,
    identity::Keypair,
    multiaddr::Protocol,
    swarm::{
        ConnectionId, NetworkBehaviour, SwarmEvent,
        behaviour::toggle::Toggle,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use message::{Hop, Stop};
use std::io;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

/// A peer of the relay: speaks hop and stop by hand, or with the unmodified client of rust-libp2p.
pub struct Client {
    pub peer: PeerId,
    swarm: Running<ClientBehaviour>,
    accepted: mpsc::UnboundedReceiver<plain::Accepted>,
}

#[derive(NetworkBehaviour)]
pub struct ClientBehaviour {
    plain: plain::Behaviour,
    identify: identify::Behaviour,
    relay: Toggle<libp2p::relay::client::Behaviour>,
}

/// A refused request: the status, or 0 when the relay reset the stream instead of answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(pub i32);

impl Client {
    /// Speaks the relay's protocols by hand.
    pub fn by_hand() -> Self {
        Self::new(&[proto::STOP, TALK], false)
    }

    /// The same under a key that is known elsewhere.
    pub fn by_hand_as(key: Keypair, accepts: &[StreamProtocol]) -> Self {
        Self::with_key(key, &[&[proto::STOP, TALK], accepts].concat(), false)
    }

    /// Speaks hop by hand and understands no stop.
    pub fn deaf() -> Self {
        Self::new(&[TALK], false)
    }

    /// Leaves the relay's protocols to rust-libp2p.
    pub fn upstream() -> Self {
        Self::new(&[TALK], true)
    }

    fn new(accepts: &[StreamProtocol], upstream: bool) -> Self {
        Self::with_key(Keypair::generate_ed25519(), accepts, upstream)
    }

    fn with_key(key: Keypair, accepts: &[StreamProtocol], upstream: bool) -> Self {
        let (plain, accepted) = plain::Behaviour::new(accepts);
        let swarm = swarm_as(key, IDLE, |key, client| ClientBehaviour {
            plain,
            identify: identify_behaviour(key),
            relay: upstream.then_some(client).into(),
        });
        Self {
            peer: *swarm.local_peer_id(),
            swarm: Running::start(swarm),
            accepted,
        }
    }

    /// A client by hand that is connected to the relay.
    pub async fn of(relay: &RelayUnderTest) -> Self {
        let mut client = Self::by_hand();
        client.dial(&relay.address()).await.expect("connects");
        client
    }

    /// One that has a reservation besides.
    pub async fn reserved(relay: &RelayUnderTest) -> Self {
        let client = Self::of(relay).await;
        client.reserve(relay.peer).await.expect("reserves");
        client
    }

    /// Opens another connection, whether there is one or not.
    pub async fn dial(&mut self, address: &Multiaddr) -> Result<ConnectionId, String> {
        let dial = DialOpts::from(address.clone());
        let dial = match dial.get_peer_id() {
            Some(peer) => DialOpts::peer_id(peer)
                .addresses(vec![address.clone()])
                .condition(PeerCondition::Always)
                .build(),
            None => dial,
        };
        let dialled = dial.connection_id();
        self.swarm
            .call(|swarm| swarm.dial(dial).map_err(|error| error.to_string()))
            .await?;
        self.event(|event| match event {
            SwarmEvent::ConnectionEstablished { connection_id, .. }
                if *connection_id == dialled =>
            {
                Some(Ok(dialled))
            }
            SwarmEvent::OutgoingConnectionError {
                connection_id,
                error,
                ..
            } if *connection_id == dialled => Some(Err(format!("{error:?}"))),
            _ => None,
        })
        .await
    }

    /// Waits until the last connection to `peer` is closed.
    pub async fn disconnected_from(&mut self, peer: PeerId) {
        self.event(|event| match event {
            SwarmEvent::ConnectionClosed {
                peer_id,
                num_established: 0,
                ..
            } if *peer_id == peer => Some(()),
            _ => None,
        })
        .await;
    }

    /// Waits until the relay says that it speaks `protocol`, or no longer.
    pub async fn announced(&mut self, protocol: StreamProtocol, expected: bool) {
        self.event(|event| match event {
            SwarmEvent::Behaviour(ClientBehaviourEvent::Identify(identify::Event::Received {
                info,
                ..
            })) if info.protocols.contains(&protocol) == expected => Some(()),
            _ => None,
        })
        .await;
    }

    /// Closes all connections to `peer`.
    pub async fn leave(&self, peer: PeerId) {
        let gone = self.swarm.call(move |swarm| swarm.disconnect_peer_id(peer));
        gone.await.expect("was connected");
    }

    pub async fn close(&self, connection: ConnectionId) {
        self.swarm
            .call(move |swarm| swarm.close_connection(connection))
            .await;
    }

    pub async fn event<R>(
        &mut self,
        pick: impl Fn(&SwarmEvent<ClientBehaviourEvent>) -> Option<R>,
    ) -> R {
        self.swarm.event(pick).await
    }

    /// Listens through the relay, with rust-libp2p's client. The text is its reason for having failed.
    pub async fn listen_through(&mut self, relay: &Multiaddr) -> Result<(), String> {
        let address = relay.clone().with(Protocol::P2pCircuit);
        let listener = self
            .swarm
            .call(|swarm| swarm.listen_on(address))
            .await
            .expect("a relay address");
        self.event(|event| match event {
            SwarmEvent::Behaviour(ClientBehaviourEvent::Relay(
                libp2p::relay::client::Event::ReservationReqAccepted { .. },
            )) => Some(Ok(())),
            SwarmEvent::ListenerClosed {
                listener_id,
                reason,
                ..
            } if *listener_id == listener => Some(Err(format!("{reason:?}"))),
            _ => None,
        })
        .await
    }

    /// Opens a circuit with rust-libp2p's client, and a connection over it.
    pub async fn dial_through(
        &mut self,
        relay: &Multiaddr,
        destination: PeerId,
    ) -> Result<ConnectionId, String> {
        let address = relay
            .clone()
            .with(Protocol::P2pCircuit)
            .with(Protocol::P2p(destination));
        self.dial(&address).await
    }

    /// Neither reads nor writes a socket until `over` says something or is dropped. Needs a runtime
    /// of several threads.
    pub async fn stand_still(&self, over: std::sync::mpsc::Receiver<()>) {
        let wait = move || over.recv();
        // Dropped is as good as said.
        let _ = self.swarm.call(|_| tokio::task::block_in_place(wait)).await;
    }

    pub async fn open(&self, peer: PeerId, protocol: StreamProtocol) -> io::Result<Stream> {
        self.open_on(None, peer, protocol).await
    }

    pub async fn open_on(
        &self,
        connection: Option<ConnectionId>,
        peer: PeerId,
        protocol: StreamProtocol,
    ) -> io::Result<Stream> {
        let (reply, stream) = oneshot::channel();
        self.swarm
            .call(move |swarm| {
                let plain = &mut swarm.behaviour_mut().plain;
                plain.open(peer, connection, protocol, reply);
            })
            .await;
        within("a stream", stream)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::NotConnected.into()))
    }

    /// The next stream that somebody opens here.
    pub async fn accept(&mut self) -> plain::Accepted {
        within("an inbound stream", self.accepted.recv())
            .await
            .expect("the swarm runs")
    }

    /// Writes `request` on a new hop stream and reads the answer.
    pub async fn ask(&self, relay: PeerId, request: &[u8]) -> Result<(Stream, Hop), Refused> {
        let mut stream = self.open(relay, proto::HOP).await.map_err(|_| Refused(0))?;
        message::write(&mut stream, request)
            .await
            .map_err(|_| Refused(0))?;
        let answer = answer(&mut stream).await?;
        Ok((stream, answer))
    }

    pub async fn reserve(&self, relay: PeerId) -> Result<Hop, Refused> {
        let (_, answer) = self.ask(relay, &message::reserve()).await?;
        Ok(answer)
    }

    /// Asks for a circuit. The destination has to accept it meanwhile.
    pub async fn connect(&self, relay: PeerId, destination: PeerId) -> Result<Stream, Refused> {
        let request = message::connect(destination);
        let (stream, _) = self.ask(relay, &request).await?;
        Ok(stream)
    }

    /// The next circuit that is offered here, before it is answered.
    pub async fn accept_stop(&mut self) -> (Stream, Stop) {
        let mut accepted = self.accept().await;
        assert_eq!(accepted.protocol, proto::STOP);
        let offer = within("a stop message", message::read(&mut accepted.stream))
            .await
            .expect("a stop message");
        (accepted.stream, offer)
    }

    /// Takes the next circuit.
    pub async fn accept_circuit(&mut self) -> Stream {
        let (mut stream, _) = self.accept_stop().await;
        message::write(&mut stream, &message::stop_status(message::OK))
            .await
            .expect("the relay listens");
        stream
    }
}

/// A circuit from `source` to `destination`: both ends of it.
pub async fn circuit(
    relay: &RelayUnderTest,
    source: &Client,
    destination: &mut Client,
) -> (Stream, Stream) {
    let (near, far) = tokio::join!(
        source.connect(relay.peer, destination.peer),
        destination.accept_circuit()
    );
    (near.expect("a circuit"), far)
}

/// Reads the relay's answer: OK, or the status it refuses with.
pub async fn answer(stream: &mut Stream) -> Result<Hop, Refused> {
    let answer: Hop = within("an answer", message::read(stream))
        .await
        .map_err(|_| Refused(0))?;
    assert_eq!(answer.kind, Some(message::STATUS));
    match answer.status {
        Some(message::OK) => Ok(answer),
        Some(status) => Err(Refused(status)),
        None => panic!("an answer without a status: {answer:?}"),
    }
}

/// Reads until the stream ends, however it ends.
pub async fn read_to_end(stream: &mut Stream) -> Vec<u8> {
    let (mut all, mut chunk) = (Vec::new(), vec![0; 64 * 1024]);
    let read = async {
        while let Ok(bytes @ 1..) = stream.read(&mut chunk).await {
            all.extend_from_slice(&chunk[..bytes]);
        }
    };
    within("the end of a stream", read).await;
    all
}

/// A wait that fails instead of hanging.
pub async fn within<R>(what: &str, future: impl Future<Output = R>) -> R {
    match timeout(PATIENCE, future).await {
        Ok(result) => result,
        Err(_) => panic!("waited {PATIENCE:?} for {what}"),
    }
}
