//! The relay service in a swarm of its own, and peers to use and to abuse it, on loopback sockets.

mod client;
pub mod message;
pub mod plain;

pub use client::{Client, Refused, answer, circuit, read_to_end, within};
use edgevpn::{
    acl::{Acl, Action, Audience, Entries, Entry, Membership, Mode, Rules, Subject},
    config::{Config, Snapshot},
    id::{Generation, Origin},
    net::relay,
    relay::{Bytes, Limit, OnShrink, Report, Resources, Settings},
};
use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, identify,
    identity::Keypair,
    multiaddr::Protocol,
    noise,
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use std::{fmt, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

/// How long a test waits for what it expects before it says so.
const PATIENCE: Duration = Duration::from_secs(20);

/// No test lasts so long that an idle connection is closed.
pub const IDLE: Duration = Duration::from_secs(60);

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
            bootstrap_origin: Origin::Default,
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
    /// Who is a member; nobody at first.
    #[allow(
        dead_code,
        reason = "held: without it the relay would see its sender gone"
    )]
    pub members: watch::Sender<Arc<Membership>>,
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
        let (members, membership) = watch::channel(Arc::default());
        let mut swarm = swarm(idle, |key, client| RelayBehaviour {
            relay: relay::Behaviour::with_timeouts(key.clone(), receiver, membership, timeouts),
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
            members,
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

/// A swarm in a task of its own.
pub struct Running<B: NetworkBehaviour> {
    calls: mpsc::UnboundedSender<Call<B>>,
    events: mpsc::UnboundedReceiver<SwarmEvent<B::ToSwarm>>,
    task: JoinHandle<()>,
}

type Call<B> = Box<dyn FnOnce(&mut Swarm<B>) + Send>;

impl<B: NetworkBehaviour<ToSwarm: fmt::Debug> + Send> Running<B> {
    pub fn start(mut swarm: Swarm<B>) -> Self {
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

    pub async fn call<R: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Swarm<B>) -> R + Send + 'static,
    ) -> R {
        let (reply, result) = oneshot::channel();
        let call = Box::new(move |swarm: &mut Swarm<B>| drop(reply.send(call(swarm))));
        assert!(self.calls.send(call).is_ok(), "the swarm runs");
        result.await.expect("the swarm runs")
    }

    pub async fn event<R>(&mut self, pick: impl Fn(&SwarmEvent<B::ToSwarm>) -> Option<R>) -> R {
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

pub fn swarm<B: NetworkBehaviour>(
    idle: Duration,
    behaviour: impl FnOnce(&Keypair, libp2p::relay::client::Behaviour) -> B,
) -> Swarm<B> {
    swarm_as(Keypair::generate_ed25519(), idle, behaviour)
}

pub fn swarm_as<B: NetworkBehaviour>(
    key: Keypair,
    idle: Duration,
    behaviour: impl FnOnce(&Keypair, libp2p::relay::client::Behaviour) -> B,
) -> Swarm<B> {
    SwarmBuilder::with_existing_identity(key)
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

pub async fn listen<B: NetworkBehaviour<ToSwarm: fmt::Debug>>(
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

pub fn identify_behaviour(key: &Keypair) -> identify::Behaviour {
    let config = identify::Config::new("edgevpn/test".to_owned(), key.public());
    identify::Behaviour::new(config.with_push_listen_addr_updates(true))
}
