//! The relay service in a swarm of its own, and peers to use and to abuse it, on loopback sockets.

pub mod message;
pub mod plain;

use edgevpn::{
    acl::{Acl, Action, Audience, Entries, Entry, Mode, Rules, Subject},
    config::{Config, Snapshot},
    id::{Generation, Origin},
    net::relay::{self, proto},
    relay::{Bytes, Limit, OnShrink, Report, Resources, Settings},
};
use futures::{AsyncReadExt, StreamExt};
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol, Swarm, SwarmBuilder, identify,
    identity::Keypair,
    multiaddr::Protocol,
    noise,
    swarm::{
        ConnectionId, NetworkBehaviour, SwarmEvent,
        behaviour::toggle::Toggle,
        dial_opts::{DialOpts, PeerCondition},
    },
    tcp, yamux,
};
use message::{Hop, Stop};
use std::{fmt, io, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

/// How long a test waits for what it expects before it says so.
const PATIENCE: Duration = Duration::from_secs(20);

/// No test lasts so long that an idle connection is closed.
const IDLE: Duration = Duration::from_secs(60);

/// What peers say over a circuit or a direct connection in these tests.
pub const TALK: StreamProtocol = StreamProtocol::new("/test/talk");

/// What the tests change of a configuration.
#[derive(Clone)]
pub struct Setup {
    pub service: bool,
    pub on_shrink: OnShrink,
    pub resources: Resources,
    pub reserve: Audience,
    pub connect: Audience,
    pub allow: Vec<Subject>,
    pub deny: Vec<Subject>,
    pub mode: Mode,
}

impl Default for Setup {
    /// Anyone, and limits that no test meets by accident.
    fn default() -> Self {
        Self {
            service: true,
            on_shrink: OnShrink::Drain,
            resources: Resources {
                max_data: Limit::At(1 << 30),
                max_duration: Limit::At(Duration::from_secs(1800)),
                max_circuits: 1000,
                reservation_ttl: Duration::from_secs(3600),
                buffer_size: 64 * 1024,
                max_reservations: 1000,
                max_reservations_per_ip: 1000,
                max_circuits_total: 1000,
                reservation_rate: Limit::Unlimited,
                circuit_rate: Limit::Unlimited,
                bandwidth: Limit::Unlimited,
                bandwidth_per_circuit: Limit::Unlimited,
                max_buffers: 256 << 20,
            },
            reserve: Audience::Anyone,
            connect: Audience::Anyone,
            allow: Vec::new(),
            deny: Vec::new(),
            mode: Mode::Enforce,
        }
    }
}

impl Setup {
    fn snapshot(&self, generation: u64) -> Arc<Snapshot> {
        let mut entries = Entries::default();
        let subjects = [(Action::Allow, &self.allow), (Action::Deny, &self.deny)];
        for (action, subjects) in subjects {
            for subject in subjects {
                let entry = Entry {
                    subject: *subject,
                    list: None,
                    origin: Origin::Default,
                };
                entries.push(action, entry);
            }
        }
        let mut config = Config::empty();
        config.relay = Settings {
            service: self.service,
            on_shrink: self.on_shrink,
            resources: self.resources.clone(),
        };
        config.acl = Arc::new(Acl::compile(Rules {
            reserve: self.reserve,
            connect: self.connect,
            reserve_origin: Origin::Default,
            connect_origin: Origin::Default,
            mode: self.mode,
            entries,
            tests: Vec::new(),
        }));
        Arc::new(Snapshot {
            generation: Generation(generation),
            config: Arc::new(config),
        })
    }
}

/// The relay.
pub struct RelayUnderTest {
    pub peer: PeerId,
    pub tcp: Multiaddr,
    pub quic: Multiaddr,
    setup: Setup,
    generation: u64,
    live: watch::Sender<Arc<Snapshot>>,
    swarm: Running<RelayBehaviour>,
}

#[derive(NetworkBehaviour)]
pub struct RelayBehaviour {
    pub relay: relay::Behaviour,
    identify: identify::Behaviour,
    client: libp2p::relay::client::Behaviour,
}

impl RelayUnderTest {
    pub async fn start(change: impl FnOnce(&mut Setup)) -> Self {
        Self::with_timeouts(relay::Timeouts::default(), change).await
    }

    pub async fn with_timeouts(timeouts: relay::Timeouts, change: impl FnOnce(&mut Setup)) -> Self {
        Self::launch(timeouts, IDLE, change).await
    }

    /// One that closes connections on which nothing runs.
    pub async fn idle_after(idle: Duration, change: impl FnOnce(&mut Setup)) -> Self {
        Self::launch(relay::Timeouts::default(), idle, change).await
    }

    async fn launch(
        timeouts: relay::Timeouts,
        idle: Duration,
        change: impl FnOnce(&mut Setup),
    ) -> Self {
        let mut setup = Setup::default();
        change(&mut setup);
        let (live, receiver) = watch::channel(setup.snapshot(1));
        let mut swarm = swarm(idle, |key, client| RelayBehaviour {
            relay: relay::Behaviour::with_timeouts(key.clone(), receiver, timeouts),
            identify: identify_behaviour(key),
            client,
        });
        let peer = *swarm.local_peer_id();
        let tcp = listen(&mut swarm, "/ip4/127.0.0.1/tcp/0").await;
        let quic = listen(&mut swarm, "/ip4/127.0.0.1/udp/0/quic-v1").await;
        Self {
            peer,
            tcp,
            quic,
            setup,
            generation: 1,
            live,
            swarm: Running::start(swarm),
        }
    }

    /// Publishes another configuration and waits until it judges.
    pub async fn publish(&mut self, change: impl FnOnce(&mut Setup)) {
        change(&mut self.setup);
        self.generation += 1;
        self.live.send_replace(self.setup.snapshot(self.generation));
        let published = Generation(self.generation);
        self.event(|event| match event {
            relay::Event::PolicyApplied { generation, .. } if *generation == published => Some(()),
            _ => None,
        })
        .await;
    }

    /// Waits for something that the relay tells.
    pub async fn event<R>(&mut self, pick: impl Fn(&relay::Event) -> Option<R>) -> R {
        self.swarm
            .event(|event| match event {
                SwarmEvent::Behaviour(RelayBehaviourEvent::Relay(event)) => pick(event),
                _ => None,
            })
            .await
    }

    /// Waits for the end of a circuit: how, and what it has carried.
    pub async fn circuit_end(&mut self) -> (relay::End, Bytes) {
        self.event(|event| match event {
            relay::Event::CircuitEnded { end, bytes, .. } => Some((*end, *bytes)),
            _ => None,
        })
        .await
    }

    /// Waits for the end of a reservation.
    pub async fn reservation_end(&mut self) {
        self.event(|event| match event {
            relay::Event::ReservationEnded { .. } => Some(()),
            _ => None,
        })
        .await;
    }

    /// Waits until a connection of `peer` is closed and `remaining` are not.
    pub async fn connection_closed(&mut self, peer: PeerId, remaining: u32) {
        self.swarm
            .event(|event| match event {
                SwarmEvent::ConnectionClosed {
                    peer_id,
                    num_established,
                    ..
                } if *peer_id == peer && *num_established == remaining => Some(()),
                _ => None,
            })
            .await;
    }

    /// Makes this relay reachable through another one.
    pub async fn listen_through(&self, other: &RelayUnderTest) {
        let address = other.address().with(Protocol::P2pCircuit);
        let listened = self.with(|swarm| swarm.listen_on(address)).await;
        listened.expect("a relay address");
        other.until(|report| report.reservations == 1).await;
    }

    pub async fn report(&self) -> Report {
        self.with(|swarm| swarm.behaviour().relay.report()).await
    }

    /// Asks until the report is as expected.
    pub async fn until(&self, expected: impl Fn(&Report) -> bool) {
        let look = async {
            while !expected(&self.report().await) {
                tokio::task::yield_now().await;
            }
        };
        if timeout(PATIENCE, look).await.is_err() {
            panic!("still {:#?}", self.report().await);
        }
    }

    pub async fn with<R: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Swarm<RelayBehaviour>) -> R + Send + 'static,
    ) -> R {
        self.swarm.call(call).await
    }

    /// The relay's address as others name it.
    pub fn address(&self) -> Multiaddr {
        self.tcp.clone().with(Protocol::P2p(self.peer))
    }
}

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

    /// Speaks hop by hand and understands no stop.
    pub fn deaf() -> Self {
        Self::new(&[TALK], false)
    }

    /// Leaves the relay's protocols to rust-libp2p.
    pub fn upstream() -> Self {
        Self::new(&[TALK], true)
    }

    fn new(accepts: &[StreamProtocol], upstream: bool) -> Self {
        let (plain, accepted) = plain::Behaviour::new(accepts);
        let swarm = swarm(IDLE, |key, client| ClientBehaviour {
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

    pub async fn with<R: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Swarm<ClientBehaviour>) -> R + Send + 'static,
    ) -> R {
        self.swarm.call(call).await
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

/// A swarm in a task of its own.
struct Running<B: NetworkBehaviour> {
    calls: mpsc::UnboundedSender<Call<B>>,
    events: mpsc::UnboundedReceiver<SwarmEvent<B::ToSwarm>>,
    task: JoinHandle<()>,
}

type Call<B> = Box<dyn FnOnce(&mut Swarm<B>) + Send>;

impl<B: NetworkBehaviour<ToSwarm: fmt::Debug> + Send> Running<B> {
    fn start(mut swarm: Swarm<B>) -> Self {
        let (calls, mut called) = mpsc::unbounded_channel::<Call<B>>();
        let (tell, events) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    event = swarm.select_next_some() => drop(tell.send(event)),
                    call = called.recv() => match call {
                        Some(call) => call(&mut swarm),
                        None => return,
                    },
                }
            }
        });
        Self {
            calls,
            events,
            task,
        }
    }

    async fn call<R: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Swarm<B>) -> R + Send + 'static,
    ) -> R {
        let (reply, result) = oneshot::channel();
        let call = Box::new(move |swarm: &mut Swarm<B>| drop(reply.send(call(swarm))));
        assert!(self.calls.send(call).is_ok(), "the swarm runs");
        result.await.expect("the swarm runs")
    }

    async fn event<R>(&mut self, pick: impl Fn(&SwarmEvent<B::ToSwarm>) -> Option<R>) -> R {
        let mut seen = Vec::new();
        let look = async {
            loop {
                let event = self.events.recv().await.expect("the swarm runs");
                if let Some(found) = pick(&event) {
                    return found;
                }
                seen.push(event);
            }
        };
        match timeout(PATIENCE, look).await {
            Ok(found) => found,
            Err(_) => panic!("waited {PATIENCE:?} for an event and saw {seen:#?}"),
        }
    }
}

impl<B: NetworkBehaviour> Drop for Running<B> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn swarm<B: NetworkBehaviour>(
    idle: Duration,
    behaviour: impl FnOnce(&Keypair, libp2p::relay::client::Behaviour) -> B,
) -> Swarm<B> {
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(
            tcp::Config::default().nodelay(true),
            noise::Config::new,
            yamux::Config::default,
        )
        .expect("noise")
        .with_quic()
        .with_relay_client(noise::Config::new, yamux::Config::default)
        .expect("noise")
        .with_behaviour(|key, client| behaviour(key, client))
        .expect("no error to have")
        .with_swarm_config(|config| config.with_idle_connection_timeout(idle))
        .build()
}

async fn listen<B: NetworkBehaviour<ToSwarm: fmt::Debug>>(
    swarm: &mut Swarm<B>,
    address: &str,
) -> Multiaddr {
    swarm
        .listen_on(address.parse().expect("an address"))
        .expect("loopback");
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            return address;
        }
    }
}

fn identify_behaviour(key: &Keypair) -> identify::Behaviour {
    let config = identify::Config::new("edgevpn/test".to_owned(), key.public());
    identify::Behaviour::new(config.with_push_listen_addr_updates(true))
}
