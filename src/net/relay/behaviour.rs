//! The relay service in the swarm: asks the admission, carries out what it says, and owns the circuits.
#![allow(clippy::disallowed_methods, reason = "gives the admission its clock")]

use super::{
    addresses::Addresses,
    circuit::{self, Consent, Control, End, Opening},
    handler::{self, Answer, Common, Fault, Handler, Order, Timeouts},
    proto::{self, Request},
    terms::Terms,
    voucher,
};
use crate::{
    acl::Operation,
    config::{Config, Snapshot},
    id::Generation,
    relay::{
        Admission, Bytes, CircuitId, CircuitLimits, ConnectionKey, Limit, Refusal, Report, Status,
        admission::{Cut, Effect, Ended, Impact, Policy, Settled},
    },
};
use futures::{FutureExt, future::BoxFuture};
use libp2p::{
    Multiaddr, PeerId,
    core::{ConnectedPoint, Endpoint, transport::PortUse},
    identity::Keypair,
    multiaddr::Protocol,
    swarm::{
        CloseConnection, ConnectionClosed, ConnectionDenied, ConnectionId, FromSwarm,
        NetworkBehaviour, NotifyHandler, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
        behaviour::ConnectionEstablished,
    },
};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{Sleep, sleep_until},
};

/// What the relay service tells the rest of the program.
#[derive(Clone, Debug)]
pub enum Event {
    Reserved {
        peer: PeerId,
        renewed: bool,
    },
    ReservationEnded {
        peer: PeerId,
        why: Ended,
    },
    Refused {
        peer: PeerId,
        operation: Operation,
        refusal: Refusal,
    },
    /// A hop stream that brought no request.
    Faulty {
        peer: PeerId,
        fault: Fault,
    },
    CircuitOpened {
        circuit: CircuitId,
        source: PeerId,
        destination: PeerId,
    },
    CircuitEnded {
        circuit: CircuitId,
        source: PeerId,
        destination: PeerId,
        end: End,
        bytes: Bytes,
    },
    /// From here on requests are judged by this generation, and what it no longer allows has been told to stop.
    PolicyApplied {
        generation: Generation,
        settled: Settled,
    },
}

pub struct Behaviour {
    key: Keypair,
    addresses: Addresses,
    live: watch::Receiver<Arc<Snapshot>>,
    /// Resolves when `live` has something new. `None` once its sender is gone.
    news: Option<BoxFuture<'static, bool>>,
    admission: Admission,
    common: Arc<Common>,
    terms: Arc<Terms>,
    connections: HashMap<ConnectionId, ConnectionKey>,
    links: HashMap<ConnectionKey, Link>,
    next_key: u64,
    peers: HashMap<PeerId, Vec<ConnectionId>>,
    circuits: HashMap<CircuitId, Running>,
    /// One task a circuit, so never more than the admission admits. Dropping the behaviour ends them.
    tasks: JoinSet<(CircuitId, End)>,
    consents: mpsc::UnboundedReceiver<Consent>,
    consented: mpsc::UnboundedSender<Consent>,
    ended: BTreeMap<&'static str, u64>,
    faults: BTreeMap<&'static str, u64>,
    /// Wakes for the admission's next deadline.
    alarm: Pin<Box<Sleep>>,
    /// At most a few for each thing that happened since the last poll.
    queue: VecDeque<ToSwarm<Event, Order>>,
}

/// A connection as the swarm knows it.
#[derive(Clone, Copy)]
struct Link {
    peer: PeerId,
    connection: ConnectionId,
}

/// A circuit that has a task.
struct Running {
    source: PeerId,
    destination: PeerId,
    control: Arc<Control>,
}

impl Behaviour {
    /// Must be called within a tokio runtime.
    pub fn new(key: Keypair, live: watch::Receiver<Arc<Snapshot>>) -> Self {
        Self::with_timeouts(key, live, Timeouts::default())
    }

    /// Like [`new`](Self::new), with other time-outs than the program's: for tests that wait for them.
    pub fn with_timeouts(
        key: Keypair,
        mut live: watch::Receiver<Arc<Snapshot>>,
        timeouts: Timeouts,
    ) -> Self {
        let now = Instant::now();
        let snapshot = live.borrow_and_update().clone();
        let settings = &snapshot.config.relay;
        let admission = Admission::new(policy(&snapshot));
        let terms = Terms::new(
            &settings.resources,
            admission.buffers().clone(),
            timeouts.stall,
            now,
        );
        let (consented, consents) = mpsc::unbounded_channel();
        Self {
            addresses: Addresses::new(key.public().to_peer_id()),
            key,
            news: Some(news_of(&live)),
            live,
            admission,
            common: Arc::new(Common {
                serving: settings.service.into(),
                timeouts,
            }),
            terms: Arc::new(terms),
            connections: HashMap::new(),
            links: HashMap::new(),
            next_key: 0,
            peers: HashMap::new(),
            circuits: HashMap::new(),
            tasks: JoinSet::new(),
            consents,
            consented,
            ended: BTreeMap::new(),
            faults: BTreeMap::new(),
            alarm: Box::pin(sleep_until(now.into())),
            queue: VecDeque::new(),
        }
    }

    /// The node stops: from now on every request is refused; circuits run on until they end.
    pub fn drain(&mut self) {
        self.admission.drain();
    }

    /// Whether no circuit runs and none is about to.
    pub fn idle(&self) -> bool {
        self.circuits.is_empty()
    }

    /// What applying `new` would do to what is held, without doing it.
    pub fn impact(&self, new: &Config) -> Impact {
        self.admission.impact(&Policy {
            generation: self.admission.policy().generation.next(),
            acl: new.acl.clone(),
            settings: new.relay.clone(),
        })
    }

    pub fn report(&self) -> Report {
        let carried = |circuit| match self.circuits.get(&circuit) {
            Some(running) => running.control.carried(),
            None => Bytes::default(),
        };
        let mut report = self.admission.report(Instant::now(), carried);
        report.bytes = self.terms.carried();
        report.ended = named(&self.ended).collect();
        report.refused.extend(named(&self.faults));
        report
    }

    /// Takes over the newest snapshot. Called before every decision, so that none is made by an old one.
    fn adopt(&mut self, now: Instant) {
        if !self.live.has_changed().unwrap_or(false) {
            return;
        }
        let snapshot = self.live.borrow_and_update().clone();
        let settings = &snapshot.config.relay;
        let mut settled = self.admission.set_policy(policy(&snapshot), now);
        for effect in std::mem::take(&mut settled.effects) {
            self.carry_out(effect);
        }
        if self.terms.publish(&settings.resources, now) {
            for running in self.circuits.values() {
                running.control.look_again();
            }
        }
        let served = self
            .common
            .serving
            .swap(settings.service, Ordering::Relaxed);
        if served != settings.service {
            let links: Vec<Link> = self.links.values().copied().collect();
            for link in links {
                self.order(link, Order::Announce);
            }
        }
        self.tell(Event::PolicyApplied {
            generation: snapshot.generation,
            settled,
        });
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::EndReservation { peer, why } => {
                self.hold(peer, false);
                self.tell(Event::ReservationEnded { peer, why });
            }
            Effect::CutCircuit { circuit, why } => {
                let status = match why {
                    Cut::Denied(_) | Cut::ServiceOff => Status::PermissionDenied,
                    Cut::Evicted => Status::ResourceLimitExceeded,
                    Cut::Disconnected => Status::ConnectionFailed,
                };
                if let Some(running) = self.circuits.get(&circuit) {
                    running.control.cut(status);
                }
            }
            Effect::CloseConnections { peer } => self.queue.push_back(ToSwarm::CloseConnection {
                peer_id: peer,
                connection: CloseConnection::All,
            }),
        }
    }

    fn handle_request(
        &mut self,
        link: Link,
        key: ConnectionKey,
        request: Request,
        answer: Box<Answer>,
    ) {
        let now = Instant::now();
        self.adopt(now);
        let (operation, refusal) = match request {
            Request::Reserve => match self.reserve(link, key, now) {
                Ok(frame) => return self.order(link, Order::Answer(answer, frame)),
                Err(refusal) => (Operation::Reserve, refusal),
            },
            Request::Connect { destination } => {
                match self.admission.connect(link.peer, key, destination, now) {
                    Ok(ticket) => {
                        let limit = limit(ticket.limits);
                        let destination = self.links.get(&ticket.destination_connection).copied();
                        return self.open(ticket.circuit, link, destination, answer, limit);
                    }
                    Err(refusal) => (Operation::Connect, refusal),
                }
            }
        };
        let frame = proto::status_frame(refusal.status(), None);
        self.order(link, Order::Answer(answer, frame));
        self.tell(Event::Refused {
            peer: link.peer,
            operation,
            refusal,
        });
    }

    /// The frame that grants a reservation.
    fn reserve(
        &mut self,
        link: Link,
        key: ConnectionKey,
        now: Instant,
    ) -> Result<Vec<u8>, Refusal> {
        let reserved = self.admission.reserve(link.peer, key, now)?;
        let expire = unix_seconds_in(reserved.expires_in);
        let voucher = voucher::issue(&self.key, self.addresses.relay(), link.peer, expire);
        let frame = proto::reservation_frame(
            expire,
            self.addresses.for_reservations(),
            voucher,
            limit(reserved.limits),
        );
        self.order(link, Order::Hold(true));
        self.tell(Event::Reserved {
            peer: link.peer,
            renewed: reserved.renewed,
        });
        Ok(frame)
    }

    fn open(
        &mut self,
        circuit: CircuitId,
        source: Link,
        destination: Option<Link>,
        answer: Box<Answer>,
        limit: Option<proto::Limit>,
    ) {
        let (reply, stop) = oneshot::channel();
        // Without a connection the sender is dropped here, and the circuit takes that as a no.
        if let Some(destination) = destination {
            self.order(destination, Order::OpenStop(reply));
        }
        let control = Arc::new(Control::default());
        self.circuits.insert(
            circuit,
            Running {
                source: source.peer,
                destination: destination.map_or(source.peer, |link| link.peer),
                control: control.clone(),
            },
        );
        self.tasks.spawn(circuit::run(Opening {
            circuit,
            source: source.peer,
            answer,
            stop,
            limit,
            control,
            terms: self.terms.clone(),
            consented: self.consented.clone(),
        }));
    }

    /// Both ends of a circuit agree; the caps have the last word.
    fn handle_consent(&mut self, consent: Consent) {
        let now = Instant::now();
        self.adopt(now);
        let Consent { circuit, verdict } = consent;
        let decided = self.admission.established(circuit, now);
        let Some(running) = self.circuits.get(&circuit) else {
            return;
        };
        let (source, destination) = (running.source, running.destination);
        let event = match &decided {
            Ok(()) => Event::CircuitOpened {
                circuit,
                source,
                destination,
            },
            Err(refusal) => Event::Refused {
                peer: source,
                operation: Operation::Connect,
                refusal: refusal.clone(),
            },
        };
        self.tell(event);
        // A circuit that does not listen any more ends by itself.
        let _ = verdict.send(decided.map_err(|refusal| refusal.status()));
    }

    fn handle_end(&mut self, circuit: CircuitId, end: End) {
        self.admission.closed(circuit, Instant::now());
        if end == End::NoConsent {
            self.admission.count_refusal(&Refusal::Unreachable);
        }
        count(&mut self.ended, end.label(), 1);
        if let Some(Running {
            source,
            destination,
            control,
        }) = self.circuits.remove(&circuit)
        {
            self.tell(Event::CircuitEnded {
                circuit,
                source,
                destination,
                end,
                bytes: control.carried(),
            });
        }
    }

    fn handle_connected(&mut self, event: ConnectionEstablished<'_>) {
        let key = ConnectionKey(self.next_key);
        self.next_key = self.next_key.saturating_add(1);
        let link = Link {
            peer: event.peer_id,
            connection: event.connection_id,
        };
        self.connections.insert(link.connection, key);
        self.links.insert(key, link);
        let connections = self.peers.entry(link.peer).or_default();
        connections.push(link.connection);
        let address = reached_from(event.endpoint);
        self.admission.connected(link.peer, key, address);
    }

    fn handle_disconnected(&mut self, event: ConnectionClosed<'_>) {
        let now = Instant::now();
        let (peer, connection) = (event.peer_id, event.connection_id);
        let Some(key) = self.connections.remove(&connection) else {
            return;
        };
        self.links.remove(&key);
        let remaining = match self.peers.get_mut(&peer) {
            Some(connections) => {
                connections.retain(|other| *other != connection);
                connections.len()
            }
            None => 0,
        };
        if remaining == 0 {
            self.peers.remove(&peer);
        }
        for effect in self.admission.disconnected(&peer, key, now) {
            self.carry_out(effect);
        }
        // The reservation lives on with the peer's other connections, one of which may be idle.
        if remaining > 0 && self.admission.holds_reservation(&peer, now) {
            self.hold(peer, true);
        }
    }

    /// Keeps all connections of a peer open, or lets go of them.
    fn hold(&mut self, peer: PeerId, hold: bool) {
        for connection in self.peers.get(&peer).cloned().unwrap_or_default() {
            self.order(Link { peer, connection }, Order::Hold(hold));
        }
    }

    fn order(&mut self, link: Link, order: Order) {
        self.queue.push_back(ToSwarm::NotifyHandler {
            peer_id: link.peer,
            handler: NotifyHandler::One(link.connection),
            event: order,
        });
    }

    fn tell(&mut self, event: Event) {
        self.queue.push_back(ToSwarm::GenerateEvent(event));
    }

    /// Ready when something has happened.
    fn poll_world(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(news) = &mut self.news
            && let Poll::Ready(open) = news.poll_unpin(cx)
        {
            self.news = open.then(|| news_of(&self.live));
            self.adopt(Instant::now());
            return Poll::Ready(());
        }
        // Before the ends, so that no circuit ends before it has opened.
        if let Poll::Ready(Some(consent)) = self.consents.poll_recv(cx) {
            self.handle_consent(consent);
            return Poll::Ready(());
        }
        if let Poll::Ready(Some(ended)) = self.tasks.poll_join_next(cx) {
            match ended {
                Ok((circuit, end)) => self.handle_end(circuit, end),
                // A task contains its panics and nobody aborts it while the behaviour lives.
                Err(_) => count(&mut self.ended, End::Panicked.label(), 1),
            }
            return Poll::Ready(());
        }
        let now = Instant::now();
        if let Some(effect) = self.admission.poll_expired(now) {
            self.carry_out(effect);
            return Poll::Ready(());
        }
        self.poll_alarm(cx)
    }

    fn poll_alarm(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.admission.next_deadline() else {
            return Poll::Pending;
        };
        let deadline = tokio::time::Instant::from_std(deadline);
        if self.alarm.deadline() != deadline {
            self.alarm.as_mut().reset(deadline);
        }
        self.alarm.as_mut().poll(cx)
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(self.common.clone()))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(self.common.clone()))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        self.addresses.on_swarm_event(&event);
        match event {
            FromSwarm::ConnectionEstablished(event) => self.handle_connected(event),
            FromSwarm::ConnectionClosed(event) => self.handle_disconnected(event),
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        let Some(key) = self.connections.get(&connection).copied() else {
            return;
        };
        match event {
            handler::Event::Asked(request, answer) => {
                self.handle_request(Link { peer, connection }, key, request, answer);
            }
            handler::Event::Faulty(fault, times) => {
                count(&mut self.faults, fault.label(), u64::from(times));
                self.tell(Event::Faulty { peer, fault });
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        loop {
            if let Some(next) = self.queue.pop_front() {
                return Poll::Ready(next);
            }
            if self.poll_world(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

fn policy(snapshot: &Snapshot) -> Policy {
    Policy {
        generation: snapshot.generation,
        acl: snapshot.config.acl.clone(),
        settings: snapshot.config.relay.clone(),
    }
}

fn news_of(live: &watch::Receiver<Arc<Snapshot>>) -> BoxFuture<'static, bool> {
    let mut live = live.clone();
    async move { live.changed().await.is_ok() }.boxed()
}

/// What both ends are told; nothing where nothing is limited.
fn limit(limits: CircuitLimits) -> Option<proto::Limit> {
    let data = match limits.data {
        Limit::At(bytes) => Some(bytes),
        Limit::Unlimited => None,
    };
    let duration = match limits.duration {
        // Zero would read as unlimited.
        Limit::At(duration) => {
            let seconds = duration.as_millis().div_ceil(1000).max(1);
            Some(u32::try_from(seconds).unwrap_or(u32::MAX))
        }
        Limit::Unlimited => None,
    };
    (data.is_some() || duration.is_some()).then_some(proto::Limit { duration, data })
}

/// The address that counts for caps and rules; `None` for a connection through another relay. A peer that this node
/// dialled by name has none that is known here and counts as 0.0.0.0.
fn reached_from(endpoint: &ConnectedPoint) -> Option<IpAddr> {
    if endpoint.is_relayed() {
        return None;
    }
    let address = endpoint.get_remote_address();
    let address = address.iter().find_map(|protocol| match protocol {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    });
    address.or(Some(Ipv4Addr::UNSPECIFIED.into()))
}

/// Seconds of unix time, rounded down: a reservation is never promised for longer than it is held.
fn unix_seconds_in(duration: Duration) -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.saturating_add(duration).as_secs()
}

fn count(counters: &mut BTreeMap<&'static str, u64>, label: &'static str, times: u64) {
    let counter = counters.entry(label).or_default();
    *counter = counter.saturating_add(times);
}

fn named(counters: &BTreeMap<&'static str, u64>) -> impl Iterator<Item = (String, u64)> {
    counters
        .iter()
        .map(|(label, times)| ((*label).to_owned(), *times))
}
