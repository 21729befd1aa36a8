//! The relay service in the swarm: asks the admission, carries out what it says, and owns the circuits.
#![allow(clippy::disallowed_methods, reason = "gives the admission its clock")]

use super::{
    addresses::Addresses,
    circuit::{self, Consent, Control, Opening},
    end::End,
    event::Event,
    grant,
    handler::{self, Answer, Common, Handler, Order, Timeouts},
    links::{self, Link, Links},
    proto::{self, Request},
    terms::Terms,
};
use crate::{
    acl::{Membership, Operation},
    config::{Config, Snapshot},
    net::{Changes, changes},
    relay::{
        Admission, Bytes, CircuitId, ConnectionKey, Refusal, Report, Status,
        admission::{Account, Cut, Effect, Impact, Policy, Ticket},
    },
};
use futures::{StreamExt, stream::select};
use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    identity::Keypair,
    swarm::{
        CloseConnection, ConnectionClosed, ConnectionDenied, ConnectionId, FromSwarm,
        NetworkBehaviour, NotifyHandler, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
        behaviour::ConnectionEstablished,
    },
};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Instant,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{Sleep, sleep_until},
};

pub struct Behaviour {
    key: Keypair,
    addresses: Addresses,
    live: watch::Receiver<Arc<Snapshot>>,
    membership: watch::Receiver<Arc<Membership>>,
    /// Ready when one of the two has something new.
    news: Changes,
    admission: Admission,
    common: Arc<Common>,
    /// The node stops: nothing is announced any more.
    stopping: bool,
    terms: Arc<Terms>,
    links: Links,
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

/// A circuit that has a task.
struct Running {
    source: PeerId,
    destination: PeerId,
    control: Arc<Control>,
}

impl Behaviour {
    /// Must be called within a tokio runtime.
    pub fn new(
        key: Keypair,
        live: watch::Receiver<Arc<Snapshot>>,
        membership: watch::Receiver<Arc<Membership>>,
    ) -> Self {
        Self::with_timeouts(key, live, membership, Timeouts::default())
    }

    /// Like [`new`](Self::new), with other time-outs than the program's: for tests that wait for them.
    pub fn with_timeouts(
        key: Keypair,
        mut live: watch::Receiver<Arc<Snapshot>>,
        mut membership: watch::Receiver<Arc<Membership>>,
        timeouts: Timeouts,
    ) -> Self {
        let now = Instant::now();
        let snapshot = live.borrow_and_update().clone();
        let settings = &snapshot.config.relay;
        let mut admission = Admission::new(policy(&snapshot));
        // Nobody holds anything yet that this could end.
        admission.set_membership(membership.borrow_and_update().clone(), now);
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
            news: select(changes(live.clone()), changes(membership.clone())).boxed(),
            live,
            membership,
            admission,
            common: Arc::new(Common {
                serving: settings.service.into(),
                timeouts,
            }),
            stopping: false,
            terms: Arc::new(terms),
            links: Links::default(),
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
        self.stopping = true;
        self.admission.drain();
        self.announce(false);
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

    /// What is known of one peer.
    pub fn account_of(&self, peer: &PeerId) -> Account {
        self.admission.account_of(peer, Instant::now())
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

    /// Takes over the newest view of the members and the newest snapshot. Called before every decision, so that none is
    /// made by an old one.
    fn adopt(&mut self, now: Instant) {
        if self.membership.has_changed().unwrap_or(false) {
            let membership = self.membership.borrow_and_update().clone();
            for effect in self.admission.set_membership(membership, now) {
                self.carry_out(effect);
            }
        }
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
        self.announce(settings.service && !self.stopping);
        self.tell(Event::PolicyApplied {
            generation: snapshot.generation,
            settled,
        });
    }

    /// Announces the hop protocol to all peers, or no longer.
    fn announce(&mut self, serving: bool) {
        if self.common.serving.swap(serving, Ordering::Relaxed) == serving {
            return;
        }
        for link in self.links.all() {
            self.order(link, Order::Announce);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::EndReservation { peer, why } => {
                self.hold(peer, false);
                self.tell(Event::ReservationEnded { peer, why });
            }
            Effect::CutCircuit { circuit, why } => {
                let status = match why {
                    Cut::Denied(_) | Cut::ServiceOff | Cut::WindowClosed => {
                        Status::PermissionDenied
                    }
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
                Ok(frame) => return self.order(link, Order::Reserve(answer, frame)),
                Err(refusal) => (Operation::Reserve, refusal),
            },
            Request::Connect { destination } => {
                match self.admission.connect(link.peer, key, destination, now) {
                    Ok(ticket) => {
                        return self.open(ticket, link.peer, destination, answer);
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
        let frame = grant::reservation(&self.key, &self.addresses, link.peer, &reserved);
        self.tell(Event::Reserved {
            peer: link.peer,
            renewed: reserved.renewed,
        });
        Ok(frame)
    }

    fn open(&mut self, ticket: Ticket, source: PeerId, destination: PeerId, answer: Box<Answer>) {
        let circuit = ticket.circuit;
        let (reply, stop) = oneshot::channel();
        // Without a connection the sender is dropped here, and the circuit takes that as a no.
        if let Some(link) = self.links.get(ticket.destination_connection) {
            self.order(link, Order::OpenStop(reply));
        }
        let control = Arc::new(Control::default());
        let running = Running {
            source,
            destination,
            control: control.clone(),
        };
        self.circuits.insert(circuit, running);
        self.tasks.spawn(circuit::run(Opening {
            circuit,
            source,
            answer,
            stop,
            limit: grant::limit(ticket.limits),
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
        let key = self.links.add(Link {
            peer: event.peer_id,
            connection: event.connection_id,
        });
        let address = links::reached_from(event.endpoint);
        self.admission.connected(event.peer_id, key, address);
    }

    fn handle_disconnected(&mut self, event: ConnectionClosed<'_>) {
        let now = Instant::now();
        let peer = event.peer_id;
        let link = Link {
            peer,
            connection: event.connection_id,
        };
        let Some(key) = self.links.remove(link) else {
            return;
        };
        for effect in self.admission.disconnected(&peer, key, now) {
            self.carry_out(effect);
        }
        // The reservation lives on with the peer's other connections, which may all be idle.
        if self.admission.holds_reservation(&peer, now) {
            self.hold(peer, true);
        }
    }

    /// Keeps all connections of a peer open, or lets go of them.
    fn hold(&mut self, peer: PeerId, hold: bool) {
        for link in self.links.of(peer) {
            self.order(link, Order::Hold(hold));
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
        if let Poll::Ready(Some(())) = self.news.poll_next_unpin(cx) {
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
        let Some(key) = self.links.key(connection) else {
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

fn count(counters: &mut BTreeMap<&'static str, u64>, label: &'static str, times: u64) {
    let counter = counters.entry(label).or_default();
    *counter = counter.saturating_add(times);
}

fn named(counters: &BTreeMap<&'static str, u64>) -> impl Iterator<Item = (String, u64)> {
    counters
        .iter()
        .map(|(label, times)| ((*label).to_owned(), *times))
}
