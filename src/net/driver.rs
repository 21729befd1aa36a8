//! The only loop that drives the swarm. Others talk to it through [`Handle`].

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::ConnectedPoint,
    identify,
    identity::Keypair,
    multiaddr::Protocol,
    noise, ping,
    swarm::{self, ConnectionId, ListenError as IncomingError, SwarmEvent},
};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    behaviour::{Behaviour, BehaviourEvent, connection_limits},
    boxed::Boxed,
    discovery::Dht,
    exchange::{self, Exchange},
    gate::dials::{Dials, OnLinks},
    heard::{Ears, Heard},
    peers::Found,
    reach::{self as reaching, Reach},
    relay, streams, transport,
};
use listeners::Listeners;

use crate::{
    acl::Membership,
    config::{Config, Snapshot},
    id::Generation,
    plan::Settled,
    relay::{
        Report,
        admission::{Account, Impact},
    },
    task::{self, Task},
};

mod finding;
mod gossip;
mod listeners;
mod port;
mod reach;
mod record;

/// Questions waiting for the driver. Every one comes from this process, one at a time from the node or the API.
const COMMANDS: usize = 64;

/// A connection nobody uses is closed after this. Long enough for a client that identifies first and reserves after
/// a human-scale pause, short enough that idle strangers do not fill `limits.connections`.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Panics within [`STUMBLE_AGE`] after which the network task ends. A race strikes once; what strikes at every turn does
/// not heal by going on.
const MOST_STUMBLES: usize = 16;
const STUMBLE_AGE: Duration = Duration::from_secs(60);

/// The swarm, as everybody else sees it. Clones are the same swarm; it stops when the last one is gone.
#[derive(Clone)]
pub struct Handle {
    pub local_peer: PeerId,
    commands: mpsc::Sender<Command>,
    membership: watch::Receiver<Arc<Membership>>,
    settled: watch::Receiver<(Generation, Settled)>,
    streams: streams::Control,
    exchange: Exchange,
    gossip: super::gossip::Control,
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
    /// What peers said and the ledger was too busy to hear, since the start.
    pub missed: u64,
    pub relay: Report,
    pub gossip: super::gossip::Tally,
    pub found: Found,
    pub reach: reaching::Report,
    /// `None` while the DHT is not used.
    pub dht: Option<Dht>,
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
    #[error(
        "cannot listen on {address}: ports below 1024 need a privilege; add CAP_NET_BIND_SERVICE or choose a higher port"
    )]
    Privileged { address: Multiaddr },
    #[error(
        "cannot listen on {address} now: {connections} QUIC connections hold the port of the listener it replaces; choose another port, or wait until they have ended"
    )]
    HeldByConnections {
        address: Multiaddr,
        connections: usize,
    },
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
    Addresses(oneshot::Sender<Vec<Multiaddr>>),
    Impact(Arc<Config>, oneshot::Sender<Impact>),
    Account(PeerId, oneshot::Sender<Account>),
    Learnt(Vec<(PeerId, Vec<Multiaddr>)>),
    Drain,
    Idle(oneshot::Sender<()>),
}

/// Starts the swarm without listeners. Everything else it needs follows from the snapshots in `live` and from who is a
/// member. What peers say about the ledger comes out of the receiver.
pub fn start(
    keypair: &Keypair,
    live: watch::Receiver<Arc<Snapshot>>,
    membership: watch::Receiver<Arc<Membership>>,
) -> Result<(Handle, mpsc::Receiver<Heard>), StartError> {
    let on_links = OnLinks::default();
    let dials = Dials::new(live.clone(), membership.clone(), on_links.clone());
    let (connections, relay_client) = transport::build(keypair, &live, dials)?;
    let behaviour = Boxed(Behaviour::new(
        keypair,
        relay_client,
        live.clone(),
        membership.clone(),
        on_links,
    ));
    let streams = behaviour.streams.control();
    let gossip = behaviour.gossip.control();
    let local_peer = keypair.public().to_peer_id();
    let config = swarm::Config::with_tokio_executor()
        .with_smart_dial()
        .with_idle_connection_timeout(IDLE_TIMEOUT);
    let (commands, received) = mpsc::channel(COMMANDS);
    let (settling, settled) = watch::channel((Generation::default(), Settled::default()));
    let (ears, heard) = Ears::new();
    let exchange = Exchange::start(streams.clone(), live.clone(), ears.clone());
    let driver = Driver {
        swarm: Swarm::new(connections, behaviour, local_peer, config),
        exchange: exchange.clone(),
        live,
        announced: BTreeSet::new(),
        listeners: Listeners::default(),
        quic: HashSet::new(),
        refused: 0,
        stumbles: Vec::new(),
        ears,
        reach: Reach::new(streams.clone(), membership.clone()),
        streams: streams.clone(),
        settling,
        idle: Vec::new(),
    };
    let driver = task::spawn("network", driver.run(received));
    let handle = Handle {
        local_peer,
        commands,
        membership,
        settled,
        streams,
        exchange,
        gossip,
        _driver: Arc::new(driver),
    };
    Ok((handle, heard))
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

    /// Who is a member at this moment.
    pub fn membership(&self) -> Arc<Membership> {
        self.membership.borrow().clone()
    }

    /// Carries frames between the ledgers of our own nodes.
    pub fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// Publishes in the rooms of the networks, and judges what was heard there.
    pub fn gossip(&self) -> &super::gossip::Control {
        &self.gossip
    }

    /// Opens and accepts streams of our own protocols.
    pub fn streams(&self) -> &streams::Control {
        &self.streams
    }

    /// Where this node may be reached, the surest first.
    pub async fn addresses(&self) -> Vec<Multiaddr> {
        self.ask(Command::Addresses).await.unwrap_or_default()
    }

    pub async fn report(&self) -> NetReport {
        self.ask(Command::Report).await.unwrap_or_default()
    }

    /// What publishing `config` would do to the load of the relay.
    pub async fn impact(&self, config: Arc<Config>) -> Option<Impact> {
        self.ask(|reply| Command::Impact(config, reply)).await
    }

    /// What the relay knows of one peer.
    pub async fn account_of(&self, peer: PeerId) -> Option<Account> {
        self.ask(|reply| Command::Account(peer, reply)).await
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

    /// Addresses that members have published in the ledger. They replace what a member published before.
    pub async fn learnt(&self, peers: Vec<(PeerId, Vec<Multiaddr>)>) {
        // Gone when the node stops.
        let _ = self.commands.send(Command::Learnt(peers)).await;
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
    swarm: Swarm<Boxed<Behaviour>>,
    live: watch::Receiver<Arc<Snapshot>>,
    announced: BTreeSet<Multiaddr>,
    listeners: Listeners,
    /// Connections over QUIC: while there are any, a closed listener keeps its port.
    quic: HashSet<ConnectionId>,
    refused: u64,
    /// When the swarm has panicked lately.
    stumbles: Vec<tokio::time::Instant>,
    ears: Ears,
    streams: streams::Control,
    reach: Reach,
    exchange: Exchange,
    settling: watch::Sender<(Generation, Settled)>,
    idle: Vec<oneshot::Sender<()>>,
}

impl Driver {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        self.live.mark_changed();
        loop {
            let due = self.listeners.due();
            let reach_due = self.reach.due();
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
                event = task::contained("network", self.swarm.select_next_some()) => match event {
                    Ok(event) => self.notice(event),
                    Err(task::Panicked) if self.stumbled() => return,
                    Err(task::Panicked) => {}
                },
                () = tokio::time::sleep_until(due.unwrap_or_else(far_future)), if due.is_some() => {
                    self.listeners.look_again(&mut self.swarm);
                }
                () = self.reach.members_changed() => self.reach.follow_members(),
                () = tokio::time::sleep_until(reach_due.map_or_else(far_future, Into::into)), if reach_due.is_some() => {
                    self.reach.stir();
                }
            }
            self.reach.act(&mut self.swarm);
            self.release_idle();
        }
    }

    /// A behaviour of the library has panicked: some of them assert what a race can break. What it was doing is lost, the
    /// swarm goes on. Whether it does so too often to be of use.
    fn stumbled(&mut self) -> bool {
        let now = now();
        self.stumbles
            .retain(|at| now.duration_since(*at) < STUMBLE_AGE);
        self.stumbles.push(now);
        let hopeless = self.stumbles.len() > MOST_STUMBLES;
        if hopeless {
            tracing::error!("the network task panics again and again, and ends");
        }
        hopeless
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
        self.reach.follow(&config);
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Listen {
                address,
                replaces,
                reply,
            } => {
                self.listeners
                    .open(&mut self.swarm, address, &replaces, self.quic.len(), reply);
            }
            Command::Close(addresses) => {
                addresses
                    .iter()
                    .for_each(|address| self.listeners.close(&mut self.swarm, address));
            }
            Command::Undo(addresses) => {
                addresses
                    .iter()
                    .for_each(|address| self.listeners.undo(&mut self.swarm, address));
            }
            Command::Report(reply) => drop(reply.send(self.report())),
            Command::Addresses(reply) => drop(reply.send(self.addresses())),
            Command::Account(peer, reply) => {
                let _ = reply.send(self.swarm.behaviour().relay.account_of(&peer));
            }
            Command::Impact(config, reply) => {
                // Gone if the asker gave up.
                let _ = reply.send(self.swarm.behaviour().relay.impact(&config));
            }
            Command::Learnt(peers) => self.learnt(peers),
            Command::Drain => self.swarm.behaviour_mut().relay.drain(),
            Command::Idle(reply) => self.idle.push(reply),
        }
    }

    /// Those that others have confirmed or the operator announces first, then those of the listeners.
    fn addresses(&self) -> Vec<Multiaddr> {
        let external: Vec<Multiaddr> = self.swarm.external_addresses().cloned().collect();
        let listening = self.listeners.addresses().into_iter();
        let others = listening.filter(|address| !external.contains(address));
        external.iter().cloned().chain(others).collect()
    }

    fn report(&mut self) -> NetReport {
        let info = self.swarm.network_info();
        let counters = info.connection_counters();
        NetReport {
            listening: self.listeners.addresses().into_iter().collect(),
            established: counters.num_established(),
            pending: counters.num_pending(),
            peers: self.swarm.connected_peers().copied().collect(),
            refused: self.refused,
            missed: self.ears.missed(),
            relay: self.swarm.behaviour().relay.report(),
            gossip: self.swarm.behaviour().gossip.tally(),
            found: self.swarm.behaviour().peers.report(),
            reach: self.reach_report(),
            dht: self.swarm.behaviour_mut().discovery.report(),
        }
    }

    fn notice(&mut self, event: SwarmEvent<BehaviourEvent>) {
        self.reach_event(&event);
        match event {
            SwarmEvent::NewListenAddr {
                listener_id,
                address,
            } => {
                self.listeners
                    .has_address(&mut self.swarm, listener_id, address);
            }
            SwarmEvent::ExpiredListenAddr {
                listener_id,
                address,
            } => {
                self.listeners.lost_address(listener_id, &address);
            }
            SwarmEvent::ListenerClosed {
                listener_id,
                reason,
                ..
            } => self.listeners.lost(listener_id, reason),
            SwarmEvent::ConnectionEstablished {
                connection_id,
                endpoint,
                ..
            } if is_quic(&endpoint) => {
                self.quic.insert(connection_id);
            }
            SwarmEvent::ConnectionClosed { connection_id, .. } => {
                self.quic.remove(&connection_id);
            }
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
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                peer_id,
                info,
                ..
            })) => self.identified(peer_id, &info),
            SwarmEvent::Behaviour(BehaviourEvent::Relay(event)) => self.relay_event(event),
            SwarmEvent::Behaviour(BehaviourEvent::Mdns(event)) => self.found_on_a_link(event),
            SwarmEvent::Behaviour(BehaviourEvent::Gossip(event)) => self.gossip_event(event),
            SwarmEvent::Behaviour(BehaviourEvent::Discovery(event)) => self.found_in_the_dht(event),
            SwarmEvent::Behaviour(BehaviourEvent::Ping(ping::Event {
                peer,
                connection,
                result,
            })) => match result {
                Ok(rtt) => self.streams.measured(connection, rtt),
                Err(failure) => self.ping_failed(peer, connection, &failure),
            },
            _ => {}
        }
    }

    fn identified(&mut self, peer: PeerId, info: &identify::Info) {
        if info.protocols.contains(&exchange::PROTOCOL) {
            self.exchange.speaks(peer);
        }
        self.says_about_itself(peer, info);
    }

    /// A connection that carries no answers is dead, whatever TCP believes; a peer that does not speak ping is not.
    fn ping_failed(&mut self, peer: PeerId, connection: ConnectionId, failure: &ping::Failure) {
        if !matches!(failure, ping::Failure::Unsupported) {
            tracing::debug!(%peer, cause = %failure, "no answer to pings, connection closed");
            self.swarm.close_connection(connection);
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

fn is_quic(endpoint: &ConnectedPoint) -> bool {
    let address = match endpoint {
        ConnectedPoint::Dialer { address, .. } => address,
        ConnectedPoint::Listener { local_addr, .. } => local_addr,
    };
    let direct = !address.iter().any(|part| part == Protocol::P2pCircuit);
    direct && address.iter().any(|part| part == Protocol::QuicV1)
}
