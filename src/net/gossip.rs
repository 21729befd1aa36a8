//! Gossip with every node of a network, ours and EdgeVPN's: the library's gossipsub, in the rooms that follow from the
//! tokens and the clock, and kept alive where the library gives up.
//!
//! An EdgeVPN node throws its router away at each rotation and starts another on the same connections; the new one knows
//! nobody. Two rules bridge that. *Re-hello*: a new stream from a peer that had one before means that it has forgotten us,
//! so we drop what we hold of it and say hello on a new stream. The library is shown this as the end of a connection and the
//! beginning of another, with a fresh handler, which also lifts its cap of five streams. *Three windows*: we are in the
//! previous, the current and the next room at any time, and publish where somebody is.
#![allow(clippy::disallowed_methods, reason = "gossip follows the clock")]

use std::{
    collections::{HashMap, HashSet, VecDeque},
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

use futures::{FutureExt, StreamExt};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol,
    core::{ConnectedPoint, Endpoint, transport::PortUse},
    gossipsub::{
        self, IdentTopic, IdentityTransform, MessageAcceptance, MessageAuthenticity, PublishError,
        TopicHash, TopicSubscriptionFilter, ValidationMode,
    },
    identity::Keypair,
    multiaddr::Protocol,
    swarm::{
        ConnectionClosed, ConnectionDenied, ConnectionHandler, ConnectionId, FromSwarm,
        NetworkBehaviour, NotifyHandler, THandlerInEvent, ToSwarm,
        behaviour::ConnectionEstablished,
    },
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Sleep, sleep},
};

use super::{Changes, changes};
use crate::{
    config::Snapshot,
    id::UnixTime,
    wire::{Fingerprint, Token, Window},
};
use handler::{Handler, Inner, Offer, Order, Report, Role};
pub use libp2p::gossipsub::MessageId;
use peer::{Arrival, Link, Parked, Peer, Waiting};
use rooms::{Audience, Moves, Rooms};
pub use rooms::{Outlet, Outlets};

mod handler;
mod peer;
mod rooms;

/// Nodes of this program offer this protocol, and keep what they know of a peer when a stream of it ends.
const OURS: StreamProtocol = StreamProtocol::new("/edgevpn/ledger/1.0.0");

/// The library compares its whole read buffer with the limit of one message; the buffer may hold the beginning of the next.
const FRAME_SLACK: u64 = 64 * 1024;

/// What EdgeVPN writes into its tokens. The router is made for at least this, so that it need not be made anew when a token
/// is exchanged.
const USUAL_MESSAGE: u64 = 20 * 1024 * 1024;

/// No token makes us buffer more than this for a peer.
const LARGEST_MESSAGE: u64 = 64 * 1024 * 1024;

/// Bytes of subscriptions and control messages in one frame. An EdgeVPN node may announce 5000 messages at once, which is
/// 230 KiB; twice that.
const CONTROL_BYTES: usize = 512 * 1024;

/// How long EdgeVPN remembers what it has seen.
const REMEMBERED: Duration = Duration::from_secs(120);

/// Messages waiting for one peer. The library's 5000 would hold 5000 states of the whole ledger for a peer that does not
/// read.
const WAITING_FOR_PEER: usize = 256;

/// The clock is looked at this often, or at the end of a window if that comes first: a clock that steps is followed.
const LOOK: Duration = Duration::from_secs(1);

/// A message that nobody was there for is tried again for this long, if the window has just begun: peers move within a
/// second, and a hello takes its time.
const RETRY: Duration = Duration::from_secs(2);

/// Messages that wait so.
const HELD: usize = 8;

/// Verdicts and messages on their way to the network task. As many verdicts as messages may wait for the ledger.
const COMMANDS: usize = 1024;

/// The library's router with our filter.
pub type Router = gossipsub::Behaviour<IdentityTransform, Allowed>;

/// What the calendar says.
pub type Clock = Arc<dyn Fn() -> UnixTime + Send + Sync>;

/// Something somebody of a network has published. Not yet judged: it is passed on to others after [`Control::judge`].
#[derive(Clone, Debug)]
pub struct Message {
    pub id: MessageId,
    /// Who has signed it.
    pub author: PeerId,
    /// Who has brought it.
    pub forwarder: PeerId,
    pub network: Fingerprint,
    /// The window of the room it was published in. It may be sealed for a neighbouring one.
    pub window: Window,
    pub data: Vec<u8>,
}

#[derive(Debug)]
pub enum Event {
    Heard(Message),
}

/// What became of a message, as the ledger sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Passed on to others.
    Accept,
    /// Not passed on, and nobody's fault.
    Ignore,
    /// Not passed on; no honest node forwards it.
    Reject,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unpublished {
    #[error("the room of network {0} in that window is not one we are in")]
    NotInRoom(Fingerprint),
    #[error("{size} bytes are more than the {max} that the token of network {network} allows")]
    TooLarge {
        network: Fingerprint,
        size: usize,
        max: u64,
    },
    #[error("nobody is in the room")]
    NobodyThere,
    #[error("every peer in the room is behind with what was sent before")]
    QueuesFull,
    #[error("it could not be signed")]
    Unsigned,
    #[error("the network task has stopped")]
    Stopped,
}

/// Gossip, as the ledger uses it.
#[derive(Clone)]
pub struct Control {
    commands: mpsc::Sender<Command>,
    outlets: watch::Receiver<Arc<Outlets>>,
}

enum Command {
    Publish {
        network: Fingerprint,
        window: Window,
        data: Vec<u8>,
        reply: oneshot::Sender<Result<(), Unpublished>>,
    },
    Judge {
        id: MessageId,
        forwarder: PeerId,
        verdict: Verdict,
    },
}

impl Control {
    /// Where to publish, network by network. Empty without `[network]`.
    pub fn outlets(&self) -> watch::Receiver<Arc<Outlets>> {
        self.outlets.clone()
    }

    /// Signs `data`, sealed for `window`, and sends it to everybody in the room of that window.
    pub async fn publish(
        &self,
        network: Fingerprint,
        window: Window,
        data: Vec<u8>,
    ) -> Result<(), Unpublished> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Publish {
            network,
            window,
            data,
            reply,
        };
        let sent = self.commands.send(command).await;
        sent.map_err(|_| Unpublished::Stopped)?;
        answer.await.unwrap_or(Err(Unpublished::Stopped))
    }

    /// Says what to do with a message that was heard. One that is never judged, or whose verdict finds no room, is not
    /// passed on.
    pub fn judge(&self, id: MessageId, forwarder: PeerId, verdict: Verdict) {
        let command = Command::Judge {
            id,
            forwarder,
            verdict,
        };
        if self.commands.try_send(command).is_err() {
            tracing::debug!("a verdict on a message is lost: the network task is behind");
        }
    }
}

/// Follows `[network]` of the snapshots; without it nothing of gossip is spoken.
pub struct Behaviour {
    keypair: Keypair,
    live: watch::Receiver<Arc<Snapshot>>,
    changes: Changes,
    clock: Clock,
    look: Pin<Box<Sleep>>,
    router: Option<Router>,
    /// Bytes of the largest message the router takes.
    capacity: u64,
    allowed: Allowed,
    offer: Offer,
    rooms: Rooms,
    tokens: Vec<Arc<Token>>,
    peers: HashMap<PeerId, Peer>,
    orders: VecDeque<ToSwarm<Event, Order>>,
    commands: mpsc::Receiver<Command>,
    control: Control,
    outlets: watch::Sender<Arc<Outlets>>,
    /// Peers have moved since the outlets were published.
    moved: bool,
    held: VecDeque<Held>,
}

/// A message that waits for somebody to publish it to.
struct Held {
    topic: TopicHash,
    data: Vec<u8>,
    until: Instant,
}

impl Behaviour {
    pub fn new(keypair: Keypair, live: watch::Receiver<Arc<Snapshot>>) -> Self {
        Self::with_clock(keypair, live, Arc::new(calendar))
    }

    /// One that believes another calendar; tests set clocks apart with it.
    pub fn with_clock(
        keypair: Keypair,
        live: watch::Receiver<Arc<Snapshot>>,
        clock: Clock,
    ) -> Self {
        let (outlets, outlets_seen) = watch::channel(Arc::default());
        let (send, commands) = mpsc::channel(COMMANDS);
        Self {
            keypair,
            commands,
            control: Control {
                commands: send,
                outlets: outlets_seen,
            },
            changes: changes(live.clone()),
            live,
            clock,
            look: Box::pin(sleep(LOOK)),
            router: None,
            capacity: 0,
            allowed: Allowed::default(),
            offer: Offer::default(),
            rooms: Rooms::default(),
            tokens: Vec::new(),
            peers: HashMap::new(),
            orders: VecDeque::new(),
            outlets,
            moved: false,
            held: VecDeque::new(),
        }
    }

    pub fn control(&self) -> Control {
        self.control.clone()
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Publish {
                network,
                window,
                data,
                reply,
            } => {
                // Nobody may be waiting for the answer.
                let _ = reply.send(self.publish(network, window, data));
            }
            Command::Judge {
                id,
                forwarder,
                verdict,
            } => self.judge(&id, &forwarder, verdict),
        }
    }

    fn publish(
        &mut self,
        network: Fingerprint,
        window: Window,
        data: Vec<u8>,
    ) -> Result<(), Unpublished> {
        let topic = self.rooms.topic(network, window).cloned();
        let topic = topic.ok_or(Unpublished::NotInRoom(network))?;
        let max = self.max_message(network);
        if u64::try_from(data.len()).is_ok_and(|size| size > max) {
            let size = data.len();
            return Err(Unpublished::TooLarge { network, size, max });
        }
        let since_rotation = self.rooms.since_rotation(network, (self.clock)());
        let just_begun = since_rotation.is_some_and(|since| since < RETRY);
        if just_begun && self.count_on(&topic) == 0 && self.held.len() < HELD {
            let until = Instant::now() + RETRY;
            self.held.push_back(Held { topic, data, until });
            return Ok(());
        }
        self.send(topic, data)
    }

    fn max_message(&self, network: Fingerprint) -> u64 {
        let token = self
            .tokens
            .iter()
            .find(|token| token.fingerprint() == network);
        token.map_or(0, |token| token.max_message_size)
    }

    fn count_on(&self, topic: &TopicHash) -> usize {
        let on_topic = self
            .peers
            .values()
            .filter(|peer| peer.topics.contains(topic));
        on_topic.count()
    }

    fn send(&mut self, topic: TopicHash, data: Vec<u8>) -> Result<(), Unpublished> {
        let router = self.router.as_mut().ok_or(Unpublished::NobodyThere)?;
        match router.publish(topic, data) {
            Ok(_) | Err(PublishError::Duplicate) => Ok(()),
            Err(PublishError::NoPeersSubscribedToTopic) => Err(Unpublished::NobodyThere),
            Err(PublishError::AllQueuesFull(_)) => Err(Unpublished::QueuesFull),
            Err(_) => Err(Unpublished::Unsigned),
        }
    }

    /// Says what to do with a message that was heard.
    pub fn judge(&mut self, id: &MessageId, forwarder: &PeerId, verdict: Verdict) {
        let acceptance = match verdict {
            Verdict::Accept => MessageAcceptance::Accept,
            Verdict::Ignore => MessageAcceptance::Ignore,
            Verdict::Reject => MessageAcceptance::Reject,
        };
        if let Some(router) = &mut self.router {
            router.report_message_validation_result(id, forwarder, acceptance);
        }
    }

    fn follow_the_file(&mut self) {
        let config = self.live.borrow().config.clone();
        let network = config.network.as_ref();
        let own = network.iter().map(|network| network.token.clone());
        let accepted = network.iter().flat_map(|network| network.accepted.clone());
        self.tokens = own.chain(accepted).collect();
        let moves = self.rooms.follow(&self.tokens, (self.clock)());
        let largest = self.tokens.iter().map(|token| token.max_message_size).max();
        let needed = largest.map(|size| size.clamp(USUAL_MESSAGE, LARGEST_MESSAGE));
        match needed {
            None => self.stop(),
            Some(size) if self.router.is_some() && size <= self.capacity => self.shift(moves),
            Some(size) => {
                self.stop();
                self.start(size);
            }
        }
        self.look_again();
    }

    /// Starts to speak, in all rooms and to every peer that understands.
    fn start(&mut self, capacity: u64) {
        let Some((router, offer)) = router(&self.keypair, capacity, &self.allowed) else {
            return;
        };
        self.router = Some(router);
        self.capacity = capacity;
        self.offer = offer;
        let join = self.rooms.topics().cloned().collect();
        self.shift(Moves {
            join,
            leave: Vec::new(),
        });
        let peers: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in peers {
            let Some(peer) = self.peers.get(&id) else {
                continue;
            };
            let (best, gossip) = (peer.best_link(), peer.gossip);
            for link in peer.links.iter().map(|link| link.id) {
                let offer = Order::Offer(self.offer.clone());
                self.orders.push_back(order(id, link, offer));
            }
            if let (Some(link), true) = (best, gossip) {
                self.restart(id, link, Parked::Stays);
            }
        }
    }

    /// Falls silent.
    fn stop(&mut self) {
        self.offer = Offer::default();
        self.held.clear();
        self.moved = true;
        let Some(mut router) = self.router.take() else {
            return;
        };
        for topic in router.topics().cloned().collect::<Vec<_>>() {
            router.unsubscribe(&IdentTopic::new(topic.into_string()));
        }
        for (id, peer) in &mut self.peers {
            for link in &mut peer.links {
                link.active = false;
                self.orders.push_back(order(*id, link.id, Order::Withdraw));
            }
            peer.speaker = None;
            peer.heard = false;
            peer.waiting = None;
            peer.topics.clear();
        }
        self.allowed.set(HashSet::new());
    }

    /// Joins and leaves rooms.
    fn shift(&mut self, moves: Moves) {
        let Some(router) = &mut self.router else {
            return;
        };
        let known = self.rooms.known();
        for peer in self.peers.values_mut() {
            peer.topics.retain(|topic| known.contains(topic));
        }
        self.allowed.set(known);
        for topic in moves.join {
            if let Err(cause) = router.subscribe(&IdentTopic::new(topic.into_string())) {
                tracing::error!(%cause, "cannot join a room");
            }
        }
        for topic in &moves.leave {
            router.unsubscribe(&IdentTopic::new(topic.as_str()));
        }
        self.moved = true;
    }

    fn look_again(&mut self) {
        let until = self.rooms.until_rotation((self.clock)());
        let soon = until.map_or(LOOK, |until| until.min(LOOK));
        self.look = Box::pin(sleep(soon.max(Duration::from_millis(1))));
    }

    fn look_at_the_clock(&mut self) {
        let moves = self.rooms.turn((self.clock)());
        if moves != Moves::default() {
            self.shift(moves);
        }
        self.look_again();
        self.carry_on();
    }

    /// Takes up what had to wait.
    fn carry_on(&mut self) {
        let now = Instant::now();
        let mut due = Vec::new();
        for (id, peer) in &mut self.peers {
            if let Some(waiting) = peer.waiting
                && peer.may_say_hello(now)
            {
                peer.waiting = None;
                due.push((*id, waiting));
            }
        }
        for (id, waiting) in due {
            match waiting {
                Waiting::Restart(link, parked) => self.restart(id, link, parked),
                Waiting::Reopen(link) => self.reopen(id, link),
            }
        }
        self.retry_held(now);
    }

    fn retry_held(&mut self, now: Instant) {
        for held in std::mem::take(&mut self.held) {
            if self.count_on(&held.topic) > 0 {
                if let Err(cause) = self.send(held.topic, held.data) {
                    tracing::debug!(%cause, "not published");
                }
            } else if held.until > now {
                self.held.push_back(held);
            }
        }
    }

    fn reported(&mut self, id: PeerId, link: ConnectionId, report: Report) {
        let now = Instant::now();
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        match report {
            Report::Inner(event) => {
                let active = peer.link(link).is_some_and(|link| link.active);
                if let (true, Some(router)) = (active, &mut self.router) {
                    router.on_connection_handler_event(id, link, event);
                }
            }
            Report::Speaks { gossip, ours } => {
                self.moved |= ours && !peer.ours;
                peer.gossip |= gossip;
                peer.ours |= ours;
                if peer.gossip && peer.speaker.is_none() && peer.may_say_hello(now) {
                    self.restart(id, link, Parked::Stays);
                }
            }
            Report::Arrived { room } => {
                peer.gossip = true;
                match peer.arrived(link, room, now) {
                    Arrival::Take => self.orders.push_back(order(id, link, Order::Take)),
                    Arrival::Listen => self.listen(id, link),
                    Arrival::Restart => self.restart(id, link, Parked::IsTaken),
                    Arrival::Wait => peer.wait(Waiting::Restart(link, Parked::IsTaken)),
                }
            }
            Report::Lost { room } => match (room, peer.may_say_hello(now)) {
                (true, true) => self.reopen(id, link),
                (true, false) => peer.wait(Waiting::Reopen(link)),
                (false, true) => self.restart(id, link, Parked::Stays),
                (false, false) => peer.wait(Waiting::Restart(link, Parked::Stays)),
            },
        }
    }

    /// Forgets a peer and begins anew with it on one connection.
    fn restart(&mut self, id: PeerId, link: ConnectionId, parked: Parked) {
        let (Some(router), Some(peer)) = (&mut self.router, self.peers.get_mut(&id)) else {
            return;
        };
        let Some(dialled) = peer.link(link).map(|link| link.dialled) else {
            return;
        };
        if let Some(speaker) = peer.speaker.take() {
            close(router, id, speaker, 0);
        }
        for other in &mut peer.links {
            if other.active && other.id != link {
                self.orders.push_back(order(id, other.id, Order::Rest));
            }
            other.active = false;
        }
        peer.topics.clear();
        self.moved = true;
        if let Some(handler) = mint(router, id, link, dialled) {
            establish(router, id, link);
            let renew = Order::Renew {
                handler,
                role: Role::Speaker,
                take: parked == Parked::IsTaken,
            };
            self.orders.push_back(order(id, link, renew));
            peer.speaker = Some(link);
            peer.opened = Some(Instant::now());
            if let Some(link) = peer.link(link) {
                link.active = true;
            }
        }
    }

    /// Listens on a connection beside the one we speak on.
    fn listen(&mut self, id: PeerId, link: ConnectionId) {
        let (Some(router), Some(peer)) = (&mut self.router, self.peers.get_mut(&id)) else {
            return;
        };
        let Some(link) = peer.link(link) else {
            return;
        };
        if let Some(handler) = mint(router, id, link.id, link.dialled) {
            close(router, id, link.id, 1);
            link.active = true;
            let renew = Order::Renew {
                handler,
                role: Role::Listener,
                take: true,
            };
            self.orders.push_back(order(id, link.id, renew));
        }
    }

    /// The peer has lost what our stream told it: tells it again on the next, and remembers what the peer has told.
    fn reopen(&mut self, id: PeerId, link: ConnectionId) {
        let (Some(router), Some(peer)) = (&mut self.router, self.peers.get_mut(&id)) else {
            return;
        };
        if peer.speaker == Some(link) {
            establish(router, id, link);
            peer.opened = Some(Instant::now());
            self.orders.push_back(order(id, link, Order::Reopen));
        }
    }

    fn connected(&mut self, id: PeerId, link: ConnectionId, endpoint: &ConnectedPoint) {
        let peer = self.peers.entry(id).or_default();
        let address = endpoint.get_remote_address();
        peer.links.push(Link {
            id: link,
            relayed: address.iter().any(|part| part == Protocol::P2pCircuit),
            dialled: endpoint.is_dialer(),
            active: false,
        });
    }

    fn disconnected(&mut self, closed: ConnectionClosed<'_>) {
        let (id, link) = (closed.peer_id, closed.connection_id);
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.links.retain(|known| known.id != link);
        let next = peer.best_link();
        if let (Some(router), true) = (&mut self.router, peer.speaker == Some(link)) {
            match next {
                Some(next) => {
                    let dialled = peer.link(next).is_some_and(|link| link.dialled);
                    let listens = peer.link(next).is_some_and(|link| link.active);
                    // The library gets to know the peer by the other connection before it loses this one, and so keeps
                    // what it knows.
                    let handler = mint(router, id, next, dialled);
                    close(router, id, link, 1);
                    establish(router, id, next);
                    let next_order = match handler {
                        Some(_) if listens => Order::Speak,
                        Some(handler) => Order::Renew {
                            handler,
                            role: Role::Speaker,
                            take: false,
                        },
                        None => Order::Rest,
                    };
                    self.orders.push_back(order(id, next, next_order));
                    peer.speaker = Some(next);
                    peer.opened = Some(Instant::now());
                    if let Some(link) = peer.link(next) {
                        link.active = true;
                    }
                    let keep = Order::Keep(!peer.topics.is_empty());
                    self.orders.push_back(order(id, next, keep));
                }
                None => {
                    close(router, id, link, 0);
                    peer.speaker = None;
                }
            }
        }
        if next.is_none() {
            self.moved |= !peer.topics.is_empty();
            self.peers.remove(&id);
        }
    }

    fn routed(&mut self, event: gossipsub::Event) -> Option<Event> {
        match event {
            gossipsub::Event::Message {
                propagation_source,
                message_id,
                message,
            } => return self.heard(propagation_source, message_id, message),
            gossipsub::Event::Subscribed { peer_id, topic } => self.moves(peer_id, |topics| {
                topics.insert(topic);
            }),
            gossipsub::Event::Unsubscribed { peer_id, topic } => self.moves(peer_id, |topics| {
                topics.remove(&topic);
            }),
            gossipsub::Event::GossipsubNotSupported { .. } | gossipsub::Event::SlowPeer { .. } => {}
        }
        None
    }

    fn moves(&mut self, id: PeerId, change: impl FnOnce(&mut HashSet<TopicHash>)) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let stayed = !peer.topics.is_empty();
        change(&mut peer.topics);
        let stays = !peer.topics.is_empty();
        if let (true, Some(speaker)) = (stays != stayed, peer.speaker) {
            self.orders
                .push_back(order(id, speaker, Order::Keep(stays)));
        }
        self.moved = true;
    }

    fn heard(
        &mut self,
        forwarder: PeerId,
        id: MessageId,
        message: gossipsub::Message,
    ) -> Option<Event> {
        let place = self.rooms.place(&message.topic);
        let (Some(author), Some(place)) = (message.source, place) else {
            self.judge(&id, &forwarder, Verdict::Ignore);
            return None;
        };
        Some(Event::Heard(Message {
            id,
            author,
            forwarder,
            network: place.network,
            window: place.window,
            data: message.data,
        }))
    }

    fn publish_outlets(&mut self) {
        self.moved = false;
        let audience = self.peers.values().map(|peer| Audience {
            topics: &peer.topics,
            ours: peer.ours,
        });
        let outlets = self.rooms.outlets(audience);
        self.outlets.send_if_modified(|known| {
            let changed = **known != outlets;
            if changed {
                *known = Arc::new(outlets);
            }
            changed
        });
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
    ) -> Result<Handler, ConnectionDenied> {
        Ok(Handler::new(OURS, self.offer.clone()))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        Ok(Handler::new(OURS, self.offer.clone()))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(established) => self.connected(
                established.peer_id,
                established.connection_id,
                established.endpoint,
            ),
            FromSwarm::ConnectionClosed(closed) => self.disconnected(closed),
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, link: ConnectionId, report: Report) {
        self.reported(peer, link, report);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        loop {
            if let Poll::Ready(Some(())) = self.changes.poll_next_unpin(cx) {
                self.follow_the_file();
            }
            if self.look.poll_unpin(cx).is_ready() {
                self.look_at_the_clock();
                continue;
            }
            if let Some(order) = self.orders.pop_front() {
                return Poll::Ready(order);
            }
            if let Poll::Ready(Some(command)) = self.commands.poll_recv(cx) {
                self.obey(command);
                continue;
            }
            let routed = match &mut self.router {
                Some(router) => router.poll(cx),
                None => Poll::Pending,
            };
            match routed {
                Poll::Ready(ToSwarm::GenerateEvent(event)) => {
                    if let Some(event) = self.routed(event) {
                        return Poll::Ready(ToSwarm::GenerateEvent(event));
                    }
                }
                Poll::Ready(ToSwarm::NotifyHandler {
                    peer_id,
                    handler,
                    event,
                }) => {
                    return Poll::Ready(ToSwarm::NotifyHandler {
                        peer_id,
                        handler,
                        event: Order::Inner(event),
                    });
                }
                // It would dial whom a peer names; whom to dial is not gossip's affair.
                Poll::Ready(_) => {}
                Poll::Pending if self.moved => {
                    self.publish_outlets();
                    self.retry_held(Instant::now());
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

fn order(peer_id: PeerId, link: ConnectionId, event: Order) -> ToSwarm<Event, Order> {
    ToSwarm::NotifyHandler {
        peer_id,
        handler: NotifyHandler::One(link),
        event,
    }
}

/// A handler of the library. Its behaviour now counts `link` among the connections of the peer.
fn mint(
    router: &mut Router,
    peer: PeerId,
    link: ConnectionId,
    dialled: bool,
) -> Option<Box<Inner>> {
    let nowhere = Multiaddr::empty();
    let handler = if dialled {
        let (role, port) = (Endpoint::Dialer, PortUse::Reuse);
        router.handle_established_outbound_connection(link, peer, &nowhere, role, port)
    } else {
        router.handle_established_inbound_connection(link, peer, &nowhere, &nowhere)
    };
    handler.ok().map(Box::new)
}

/// Makes the library say hello.
fn establish(router: &mut Router, peer_id: PeerId, connection_id: ConnectionId) {
    router.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
        peer_id,
        connection_id,
        endpoint: &nowhere(),
        failed_addresses: &[],
        other_established: 0,
    }));
}

/// Makes the library forget a connection, and with the last one the peer.
fn close(router: &mut Router, peer_id: PeerId, connection_id: ConnectionId, remaining: usize) {
    router.on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
        peer_id,
        connection_id,
        endpoint: &nowhere(),
        cause: None,
        remaining_established: remaining,
    }));
}

/// The library looks at addresses for its scores, which are not in use.
fn nowhere() -> ConnectedPoint {
    ConnectedPoint::Listener {
        local_addr: Multiaddr::empty(),
        send_back_addr: Multiaddr::empty(),
    }
}

/// A router for messages of `capacity` bytes, and what its connections offer.
fn router(keypair: &Keypair, capacity: u64, allowed: &Allowed) -> Option<(Router, Offer)> {
    if SystemTime::now() < SystemTime::UNIX_EPOCH {
        tracing::error!("the clock stands before 1970: no gossip until it is set");
        return None;
    }
    let frame = usize::try_from(capacity.saturating_add(FRAME_SLACK)).unwrap_or(usize::MAX);
    let make = || {
        let config = gossipsub::ConfigBuilder::default()
            .validation_mode(ValidationMode::Strict)
            .validate_messages()
            .message_id_fn(message_id)
            .max_transmit_size(frame)
            .max_control_message_size(CONTROL_BYTES)
            .duplicate_cache_time(REMEMBERED)
            .flood_publish(true)
            .connection_handler_queue_len(WAITING_FOR_PEER)
            .heartbeat_initial_delay(Duration::from_secs(1))
            .build()
            .map_err(|cause| cause.to_string())?;
        let authenticity = MessageAuthenticity::Signed(keypair.clone());
        Router::new_with_subscription_filter(authenticity, config, allowed.clone())
            .map_err(str::to_owned)
    };
    // A second one, to see what a connection offers before there is one.
    let made = make().and_then(|router| Ok((router, make()?)));
    let (router, mut model) = match made {
        Ok(made) => made,
        Err(cause) => {
            tracing::error!(%cause, "no gossip");
            return None;
        }
    };
    let somebody = keypair.public().to_peer_id();
    let handler = mint(&mut model, somebody, ConnectionId::new_unchecked(0), false)?;
    let (upgrade, ()) = handler.listen_protocol().into_upgrade();
    Some((router, Offer::new(upgrade.left()?)))
}

/// The id EdgeVPN gives a message: author and sequence number, so that ours are the same.
fn message_id(message: &gossipsub::Message) -> MessageId {
    let mut id = message.source.map_or_else(Vec::new, PeerId::to_bytes);
    id.extend(message.sequence_number.unwrap_or_default().to_be_bytes());
    MessageId(id)
}

/// The topics whose subscribers we remember: nobody may make us keep others.
#[derive(Clone, Default)]
pub struct Allowed(Arc<RwLock<HashSet<TopicHash>>>);

impl Allowed {
    fn set(&self, topics: HashSet<TopicHash>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = topics;
    }
}

impl TopicSubscriptionFilter for Allowed {
    fn can_subscribe(&mut self, topic: &TopicHash) -> bool {
        let allowed = self.0.read().unwrap_or_else(PoisonError::into_inner);
        allowed.contains(topic)
    }
}

fn calendar() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    UnixTime(since.unwrap_or_default())
}
