//! The only loop that drives the swarm. Others talk to it through [`Handle`].

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm, TransportError,
    core::transport::ListenerId,
    identity::Keypair,
    multiaddr::Protocol,
    noise, ping,
    swarm::{self, ConnectionId, ListenError as IncomingError, SwarmEvent},
};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    behaviour::{Behaviour, BehaviourEvent, connection_limits},
    relay, transport,
};
use crate::{
    config::{Config, Snapshot},
    id::Generation,
    plan::Settled,
    relay::{Report, admission::Impact},
    task::{self, Task},
};

mod record;

/// Questions waiting for the driver. Every one comes from this process, one at a time from the node or the API.
const COMMANDS: usize = 64;

/// A connection nobody uses is closed after this. Long enough for a client that identifies first and reserves after
/// a human-scale pause, short enough that idle strangers do not fill `limits.connections`.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a new listener may take to learn the addresses of its interfaces. It is bound already; what comes later is
/// only not in the first answer.
const ADDRESS_WAIT: Duration = Duration::from_secs(1);

/// The swarm, as everybody else sees it. Clones are the same swarm; it stops when the last one is gone.
#[derive(Clone)]
pub struct Handle {
    pub local_peer: PeerId,
    commands: mpsc::Sender<Command>,
    settled: watch::Receiver<(Generation, Settled)>,
    _driver: Arc<Task>,
}

/// The network's part of a node report.
#[derive(Clone, Debug, Default)]
pub struct NetReport {
    pub listening: Vec<Multiaddr>,
    pub established: u32,
    pub pending: u32,
    pub peers: BTreeSet<PeerId>,
    /// Connections refused by `[limits]` or `transport.block` since the start.
    pub refused: u64,
    pub relay: Report,
}

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on {address}: {cause}")]
    Bind { address: Multiaddr, cause: String },
    #[error(
        "cannot listen on {address}: something else listens there; stop it or change `transport.listen`"
    )]
    InUse { address: Multiaddr },
    #[error("cannot listen on {address}: this address family is not available on this machine")]
    NoFamily { address: Multiaddr },
    #[error("the network task has stopped")]
    Stopped,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot set up encryption with the node's key: {0}")]
    Encryption(#[from] noise::Error),
}

enum Command {
    Listen {
        address: Multiaddr,
        replaces: Vec<Multiaddr>,
        reply: oneshot::Sender<Result<(), ListenError>>,
    },
    Close(Vec<Multiaddr>),
    Undo(Vec<Multiaddr>),
    Report(oneshot::Sender<NetReport>),
    Impact(Arc<Config>, oneshot::Sender<Impact>),
    Drain,
    Idle(oneshot::Sender<()>),
}

/// Starts the swarm without listeners. Everything else it needs follows from the snapshots in `live`.
pub fn start(
    keypair: &Keypair,
    live: watch::Receiver<Arc<Snapshot>>,
) -> Result<Handle, StartError> {
    let (connections, relay_client) = transport::build(keypair, &live)?;
    let behaviour = Behaviour::new(keypair, relay_client, live.clone());
    let local_peer = keypair.public().to_peer_id();
    let config = swarm::Config::with_tokio_executor()
        .with_smart_dial()
        .with_idle_connection_timeout(IDLE_TIMEOUT);
    let (commands, received) = mpsc::channel(COMMANDS);
    let (settling, settled) = watch::channel((Generation::default(), Settled::default()));
    let driver = Driver {
        swarm: Swarm::new(connections, behaviour, local_peer, config),
        live,
        announced: BTreeSet::new(),
        listeners: HashMap::new(),
        refused: 0,
        settling,
        idle: Vec::new(),
    };
    let driver = task::spawn("network", driver.run(received));
    Ok(Handle {
        local_peer,
        commands,
        settled,
        _driver: Arc::new(driver),
    })
}

impl Handle {
    /// Binds one address of `transport.listen`. Where a listener on one of `replaces` is in the way, it is closed first and
    /// bound again if the new one fails or is undone.
    pub async fn listen(
        &self,
        address: &Multiaddr,
        replaces: &[Multiaddr],
    ) -> Result<(), ListenError> {
        let (address, replaces) = (address.clone(), replaces.to_vec());
        self.ask(|reply| Command::Listen {
            address,
            replaces,
            reply,
        })
        .await
        .unwrap_or(Err(ListenError::Stopped))
    }

    /// Stops listening there; connections that came in that way stay.
    pub fn close(&self, addresses: Vec<Multiaddr>) {
        self.tell(Command::Close(addresses));
    }

    /// Takes [`Self::listen`] back: closes these and opens again what had to make way for them.
    pub fn undo(&self, addresses: Vec<Multiaddr>) {
        self.tell(Command::Undo(addresses));
    }

    pub async fn report(&self) -> NetReport {
        self.ask(Command::Report).await.unwrap_or_default()
    }

    /// What publishing `config` would do to the load of the relay.
    pub async fn impact(&self, config: Arc<Config>) -> Option<Impact> {
        self.ask(|reply| Command::Impact(config, reply)).await
    }

    /// Waits until the snapshot of `generation` has been carried out.
    pub async fn settled(&self, generation: Generation) -> Option<Settled> {
        let mut settled = self.settled.clone();
        settled
            .wait_for(|(newest, _)| *newest >= generation)
            .await
            .ok()
            .map(|newest| newest.1)
    }

    /// From now on nobody reserves and no circuit is opened.
    pub async fn drain(&self) {
        let _ = self.commands.send(Command::Drain).await;
    }

    /// Waits until no circuit runs.
    pub async fn idle(&self) {
        self.ask(Command::Idle).await;
    }

    fn tell(&self, command: Command) {
        if self.commands.try_send(command).is_err() {
            tracing::error!("the network task does not take commands");
        }
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(question(reply)).await.ok()?;
        answer.await.ok()
    }
}

struct Driver {
    swarm: Swarm<Behaviour>,
    live: watch::Receiver<Arc<Snapshot>>,
    announced: BTreeSet<Multiaddr>,
    listeners: HashMap<ListenerId, Bound>,
    refused: u64,
    settling: watch::Sender<(Generation, Settled)>,
    idle: Vec<oneshot::Sender<()>>,
}

/// A listener and the addresses it turned out to have.
struct Bound {
    asked: Multiaddr,
    addresses: BTreeSet<Multiaddr>,
    /// Listeners that had to be closed for this one.
    displaced: Vec<Multiaddr>,
    waiting: Option<oneshot::Sender<Result<(), ListenError>>>,
    bound_at: tokio::time::Instant,
}

impl Bound {
    fn new(asked: Multiaddr) -> Self {
        Self {
            asked,
            addresses: BTreeSet::new(),
            displaced: Vec::new(),
            waiting: None,
            bound_at: now(),
        }
    }
}

impl Driver {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        self.live.mark_changed();
        loop {
            let patience = self.patience();
            tokio::select! {
                // A published snapshot comes before whatever a peer may ask next.
                biased;
                changed = self.live.changed() => match changed {
                    Ok(()) => self.follow_the_file(),
                    Err(_) => return,
                },
                command = commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                event = self.swarm.select_next_some() => self.notice(event),
                () = tokio::time::sleep_until(patience.unwrap_or_else(far_future)), if patience.is_some() => self.answer_waiting(),
            }
            self.release_idle();
        }
    }

    fn follow_the_file(&mut self) {
        let config = self.live.borrow_and_update().config.clone();
        *self.swarm.behaviour_mut().limits.limits_mut() = connection_limits(&config.limits);
        let wanted: BTreeSet<Multiaddr> = config.transport.announce.iter().cloned().collect();
        for gone in self.announced.difference(&wanted) {
            self.swarm.remove_external_address(gone);
        }
        for new in wanted.difference(&self.announced) {
            self.swarm.add_external_address(new.clone());
        }
        self.announced = wanted;
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Listen {
                address,
                replaces,
                reply,
            } => self.listen(address, &replaces, reply),
            Command::Close(addresses) => addresses
                .iter()
                .for_each(|address| drop(self.close(address))),
            Command::Undo(addresses) => addresses.iter().for_each(|address| self.undo(address)),
            Command::Report(reply) => drop(reply.send(self.report())),
            Command::Impact(config, reply) => {
                // Gone if the asker gave up.
                let _ = reply.send(self.swarm.behaviour().relay.impact(&config));
            }
            Command::Drain => self.swarm.behaviour_mut().relay.drain(),
            Command::Idle(reply) => self.idle.push(reply),
        }
    }

    fn listen(
        &mut self,
        address: Multiaddr,
        replaces: &[Multiaddr],
        reply: oneshot::Sender<Result<(), ListenError>>,
    ) {
        let mut displaced = Vec::new();
        match self.bind(&address, replaces, &mut displaced) {
            Ok(id) => {
                let bound = Bound {
                    displaced,
                    waiting: Some(reply),
                    ..Bound::new(address)
                };
                self.listeners.insert(id, bound);
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn bind(
        &mut self,
        address: &Multiaddr,
        replaces: &[Multiaddr],
        displaced: &mut Vec<Multiaddr>,
    ) -> Result<ListenerId, ListenError> {
        let in_the_way: Vec<Multiaddr> = self
            .listeners
            .values()
            .map(|bound| &bound.asked)
            .filter(|asked| overlap(asked, address))
            .cloned()
            .collect();
        let stays = in_the_way.iter().any(|asked| !replaces.contains(asked));
        if stays || (in_the_way.is_empty() && tcp_port_is_taken(address)) {
            return Err(ListenError::InUse {
                address: address.clone(),
            });
        }
        match self.swarm.listen_on(address.clone()) {
            Err(error) if is_in_use(&error) && !in_the_way.is_empty() => {
                // UDP sockets cannot share a port: the old goes first, and comes back if the new one cannot be had.
                in_the_way.iter().for_each(|asked| drop(self.close(asked)));
                let bound = self.swarm.listen_on(address.clone());
                match bound {
                    Ok(_) => *displaced = in_the_way,
                    Err(_) => in_the_way.into_iter().for_each(|asked| self.reopen(asked)),
                }
                bound.map_err(|error| listen_error(address, &error))
            }
            bound => bound.map_err(|error| listen_error(address, &error)),
        }
    }

    fn close(&mut self, address: &Multiaddr) -> Option<Bound> {
        let id = *self
            .listeners
            .iter()
            .find(|(_, bound)| bound.asked == *address)?
            .0;
        self.swarm.remove_listener(id);
        self.listeners.remove(&id)
    }

    fn undo(&mut self, address: &Multiaddr) {
        if let Some(bound) = self.close(address) {
            bound
                .displaced
                .into_iter()
                .for_each(|asked| self.reopen(asked));
        }
    }

    fn reopen(&mut self, asked: Multiaddr) {
        match self.swarm.listen_on(asked.clone()) {
            Ok(id) => drop(self.listeners.insert(id, Bound::new(asked))),
            Err(error) => tracing::error!(address = %asked, cause = %error, "listener lost"),
        }
    }

    fn report(&self) -> NetReport {
        let info = self.swarm.network_info();
        let counters = info.connection_counters();
        let listening: BTreeSet<Multiaddr> = self
            .listeners
            .values()
            .flat_map(|bound| bound.addresses.iter().cloned())
            .collect();
        NetReport {
            listening: listening.into_iter().collect(),
            established: counters.num_established(),
            pending: counters.num_pending(),
            peers: self.swarm.connected_peers().copied().collect(),
            refused: self.refused,
            relay: self.swarm.behaviour().relay.report(),
        }
    }

    fn notice(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::NewListenAddr {
                listener_id,
                address,
            } => self.has_address(listener_id, address),
            SwarmEvent::ExpiredListenAddr {
                listener_id,
                address,
            } => {
                if let Some(bound) = self.listeners.get_mut(&listener_id) {
                    bound.addresses.remove(&address);
                }
            }
            SwarmEvent::ListenerClosed {
                listener_id,
                reason,
                ..
            } => self.listener_closed(listener_id, reason),
            SwarmEvent::ListenerError { listener_id, error } => {
                tracing::warn!(listener = %listener_id, cause = %error, "listener reports an error");
            }
            SwarmEvent::IncomingConnectionError {
                error: IncomingError::Denied { cause },
                ..
            } => {
                self.refused = self.refused.saturating_add(1);
                tracing::debug!(%cause, "connection refused");
            }
            SwarmEvent::Behaviour(BehaviourEvent::Relay(event)) => self.relay_event(event),
            SwarmEvent::Behaviour(BehaviourEvent::Ping(ping::Event {
                peer,
                connection,
                result: Err(failure),
            })) => {
                self.ping_failed(peer, connection, &failure);
            }
            _ => {}
        }
    }

    /// A connection that carries no answers is dead, whatever TCP believes; a peer that does not speak ping is not.
    fn ping_failed(&mut self, peer: PeerId, connection: ConnectionId, failure: &ping::Failure) {
        if !matches!(failure, ping::Failure::Unsupported) {
            tracing::debug!(%peer, cause = %failure, "no answer to pings, connection closed");
            self.swarm.close_connection(connection);
        }
    }

    fn has_address(&mut self, id: ListenerId, address: Multiaddr) {
        let Some(bound) = self.listeners.get_mut(&id) else {
            return;
        };
        bound.addresses.insert(address);
        let asked = bound.asked.clone();
        // Whoever asked has given up waiting: nobody would ever close this listener.
        if bound
            .waiting
            .take()
            .is_some_and(|reply| reply.send(Ok(())).is_err())
        {
            self.undo(&asked);
        }
    }

    fn listener_closed(&mut self, id: ListenerId, reason: Result<(), io::Error>) {
        let Some(bound) = self.listeners.remove(&id) else {
            return;
        };
        let cause = reason
            .err()
            .map_or_else(|| "closed".to_owned(), |error| error.to_string());
        match bound.waiting {
            Some(reply) => drop(reply.send(Err(ListenError::Bind {
                address: bound.asked,
                cause,
            }))),
            None => tracing::error!(address = %bound.asked, cause, "listener lost"),
        }
    }

    fn relay_event(&mut self, event: relay::Event) {
        #[allow(
            irrefutable_let_patterns,
            reason = "the relay service has more events to come"
        )]
        if let relay::Event::PolicyApplied {
            generation,
            settled,
        } = &event
        {
            let settled = Settled {
                reservations_ended: settled.impact.reservations_ended.into(),
                circuits_cut: settled.impact.circuits_cut.into(),
                circuits_draining: settled.impact.circuits_draining.into(),
            };
            self.settling.send_replace((*generation, settled));
        }
        record::relay(&event);
    }

    /// When the first listener that still waits for an address has waited long enough.
    fn patience(&self) -> Option<tokio::time::Instant> {
        let waiting = self
            .listeners
            .values()
            .filter(|bound| bound.waiting.is_some());
        waiting.map(|bound| bound.bound_at + ADDRESS_WAIT).min()
    }

    fn answer_waiting(&mut self) {
        let now = now();
        let mut given_up = Vec::new();
        for bound in self
            .listeners
            .values_mut()
            .filter(|bound| bound.bound_at + ADDRESS_WAIT <= now)
        {
            if bound
                .waiting
                .take()
                .is_some_and(|reply| reply.send(Ok(())).is_err())
            {
                given_up.push(bound.asked.clone());
            }
        }
        given_up.iter().for_each(|asked| self.undo(asked));
    }

    fn release_idle(&mut self) {
        if !self.idle.is_empty() && self.swarm.behaviour().relay.idle() {
            self.idle
                .drain(..)
                .for_each(|waiting| waiting.send(()).unwrap_or(()));
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "the driver's clock")]
fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

fn far_future() -> tokio::time::Instant {
    now() + Duration::from_secs(3600)
}

fn is_in_use(error: &TransportError<io::Error>) -> bool {
    io_kind(error) == Some(io::ErrorKind::AddrInUse)
}

fn listen_error(address: &Multiaddr, error: &TransportError<io::Error>) -> ListenError {
    let address = address.clone();
    match (error, io_kind(error)) {
        (_, Some(io::ErrorKind::AddrInUse)) => ListenError::InUse { address },
        (TransportError::MultiaddrNotSupported(_), _) => {
            let cause = "no transport of this node understands it".to_owned();
            ListenError::Bind { address, cause }
        }
        (TransportError::Other(error), _) if no_family(error) => ListenError::NoFamily { address },
        (TransportError::Other(error), _) => ListenError::Bind {
            address,
            cause: error.to_string(),
        },
    }
}

/// The transports wrap their errors in each other; the system's is innermost.
fn io_kind(error: &TransportError<io::Error>) -> Option<io::ErrorKind> {
    let TransportError::Other(error) = error else {
        return None;
    };
    innermost(error).map(io::Error::kind)
}

fn no_family(error: &io::Error) -> bool {
    let code = innermost(error).and_then(io::Error::raw_os_error);
    let family = [
        rustix::io::Errno::AFNOSUPPORT,
        rustix::io::Errno::ADDRNOTAVAIL,
    ];
    code.is_some_and(|code| family.iter().any(|errno| errno.raw_os_error() == code))
}

fn innermost(error: &io::Error) -> Option<&io::Error> {
    let mut found = error;
    let mut next: Option<&(dyn std::error::Error + 'static)> =
        error.get_ref().map(|inner| inner as _);
    while let Some(inner) = next {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            found = io;
            next = io
                .get_ref()
                .map(|inner| inner as _)
                .or_else(|| inner.source());
        } else {
            next = inner.source();
        }
    }
    Some(found)
}

/// libp2p listens with `SO_REUSEPORT`, so that two nodes of one user would share a port without a word and each get half
/// of the connections. A socket without that option finds out.
fn tcp_port_is_taken(address: &Multiaddr) -> bool {
    let Some(address) = tcp_address(address).filter(|address| address.port() != 0) else {
        return false;
    };
    let bind = || -> io::Result<()> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::STREAM,
            None,
        )?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(1)
    };
    matches!(bind(), Err(error) if error.kind() == io::ErrorKind::AddrInUse)
}

fn tcp_address(address: &Multiaddr) -> Option<SocketAddr> {
    match port_of(address)? {
        (ip, Port::Tcp(port)) => Some(SocketAddr::new(ip, port)),
        (_, Port::Udp(_)) => None,
    }
}

/// Whether one socket on each of these addresses would want the same port of the same interface.
fn overlap(one: &Multiaddr, other: &Multiaddr) -> bool {
    let (Some((ip, port)), Some((other_ip, other_port))) = (port_of(one), port_of(other)) else {
        return false;
    };
    port == other_port
        && port.number() != 0
        && ip.is_ipv4() == other_ip.is_ipv4()
        && (ip == other_ip || ip.is_unspecified() || other_ip.is_unspecified())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Port {
    Tcp(u16),
    Udp(u16),
}

impl Port {
    fn number(self) -> u16 {
        match self {
            Port::Tcp(port) | Port::Udp(port) => port,
        }
    }
}

fn port_of(address: &Multiaddr) -> Option<(IpAddr, Port)> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => IpAddr::from(ip),
        Protocol::Ip6(ip) => IpAddr::from(ip),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some((ip, Port::Tcp(port))),
        Protocol::Udp(port) => Some((ip, Port::Udp(port))),
        _ => None,
    }
}
