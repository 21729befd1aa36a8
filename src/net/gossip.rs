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
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

use futures::{FutureExt, StreamExt};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol,
    core::{Endpoint, transport::PortUse},
    gossipsub::{self, IdentTopic, MessageAcceptance, PublishError, TopicHash},
    identity::Keypair,
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandlerInEvent, ToSwarm,
    },
};
use tokio::{
    sync::{mpsc, watch},
    time::{Sleep, sleep},
};

use super::{Changes, changes, exchange};
use crate::{
    config::Snapshot,
    id::UnixTime,
    wire::{Fingerprint, Token, Window},
};
use control::Command;
use guard::{Guard, Refusal};
use handler::{Handler, Order, Report};
use links::order;
use peer::{Parked, Peer};
use rooms::{Audience, Moves, Rooms};
use router::{Allowed, Offers, Router};

pub use control::{Control, Unpublished, Verdict};
pub use libp2p::gossipsub::MessageId;
pub use rooms::{Outlet, Outlets};

mod control;
mod guard;
mod handler;
mod links;
mod pace;
mod peer;
mod rooms;
mod router;

/// Nodes of this program offer this protocol, and keep what they know of a peer when a stream of it ends.
const OURS: StreamProtocol = exchange::PROTOCOL;

/// What EdgeVPN writes into its tokens. The router is made for at least this, so that it need not be made anew when a token
/// is exchanged.
const USUAL_MESSAGE: u64 = 20 * 1024 * 1024;

/// No token makes us buffer more than this for a peer.
const LARGEST_MESSAGE: u64 = 64 * 1024 * 1024;

/// What a frame holds beside the data of its one message: author, number, topic and signature are 200 bytes. EdgeVPN
/// compares the frame with the limit of the token.
const AROUND_DATA: u64 = 512;

/// The clock is looked at this often, or at the end of a window if that comes first: a clock that steps is followed.
const LOOK: Duration = Duration::from_secs(1);

/// A message that nobody was there for is tried again for this long, if the window has just begun: peers move within a
/// second, and a hello takes its time.
const RETRY: Duration = Duration::from_secs(2);

/// Messages that wait so.
const HELD: usize = 8;

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

/// What gossip has come to, for `status` and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Messages and bytes given to the ledger.
    pub heard: u64,
    pub heard_bytes: u64,
    /// Messages and bytes published; each goes to every peer in the room.
    pub published: u64,
    pub published_bytes: u64,
    /// How often a peer was told anew where we are.
    pub hellos: u64,
    /// Windows entered.
    pub rotations: u64,
    /// By [`Refusal::label`].
    pub refused: BTreeMap<&'static str, u64>,
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
    offers: Offers,
    /// Peers that have brought or signed what the ledger has accepted.
    proved: HashSet<PeerId>,
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
    guard: Guard,
    tally: Tally,
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
        let (outlets, seen) = watch::channel(Arc::default());
        let (control, commands) = Control::new(seen);
        Self {
            keypair,
            commands,
            control,
            changes: changes(live.clone()),
            live,
            clock,
            look: Box::pin(sleep(LOOK)),
            router: None,
            capacity: 0,
            allowed: Allowed::default(),
            offers: Offers::default(),
            proved: HashSet::new(),
            rooms: Rooms::default(),
            tokens: Vec::new(),
            peers: HashMap::new(),
            orders: VecDeque::new(),
            outlets,
            moved: false,
            held: VecDeque::new(),
            guard: Guard::default(),
            tally: Tally::default(),
        }
    }

    pub fn control(&self) -> Control {
        self.control.clone()
    }

    pub fn tally(&self) -> Tally {
        self.tally.clone()
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
        let max = token.map_or(0, |token| token.max_message_size);
        max.min(LARGEST_MESSAGE).saturating_sub(AROUND_DATA)
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
        let bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
        match router.publish(topic, data) {
            Ok(_) | Err(PublishError::Duplicate) => {
                self.tally.published = self.tally.published.saturating_add(1);
                self.tally.published_bytes = self.tally.published_bytes.saturating_add(bytes);
                Ok(())
            }
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
        if verdict == Verdict::Accept {
            self.prove(*forwarder);
            router::author_of(id)
                .into_iter()
                .for_each(|author| self.prove(author));
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
        let Some((router, offers)) = router::make(&self.keypair, capacity, &self.allowed) else {
            return;
        };
        self.router = Some(router);
        self.capacity = capacity;
        self.offers = offers;
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
            for link in peer.links.iter().map(|link| link.id).collect::<Vec<_>>() {
                self.offer(id, link);
            }
            if let (Some(link), true) = (best, gossip) {
                self.restart(id, link, Parked::Stays);
            }
        }
    }

    /// Falls silent.
    fn stop(&mut self) {
        self.offers = Offers::default();
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
                link.full = false;
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
        self.guard.leave(&moves.leave);
        self.moved = true;
    }

    fn look_again(&mut self) {
        let until = self.rooms.until_rotation((self.clock)());
        let soon = until.map_or(LOOK, |until| until.min(LOOK));
        self.look = Box::pin(sleep(soon.max(Duration::from_millis(1))));
    }

    fn look_at_the_clock(&mut self) {
        let set_since = self.router.is_none() && SystemTime::now() >= SystemTime::UNIX_EPOCH;
        if set_since && !self.tokens.is_empty() {
            self.follow_the_file();
        }
        let moves = self.rooms.turn((self.clock)());
        if moves != Moves::default() {
            self.tally.rotations = self.tally.rotations.saturating_add(1);
            self.shift(moves);
        }
        self.look_again();
        self.carry_on();
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
            self.refused(forwarder, Refusal::OutOfPlace, 1);
            return None;
        };
        let bytes = message.data.len();
        let now = Instant::now();
        if let Err(refusal) = self.guard.admit(&message.topic, &id, author, bytes, now) {
            self.judge(&id, &forwarder, Verdict::Ignore);
            self.refused(forwarder, refusal, 1);
            return None;
        }
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.tally.heard = self.tally.heard.saturating_add(1);
        self.tally.heard_bytes = self.tally.heard_bytes.saturating_add(bytes);
        Some(Event::Heard(Message {
            id,
            author,
            forwarder,
            network: place.network,
            window: place.window,
            data: message.data,
        }))
    }

    fn refused(&mut self, forwarder: PeerId, refusal: Refusal, times: u64) {
        let count = self.tally.refused.entry(refusal.label()).or_default();
        *count = count.saturating_add(times);
        let now = Instant::now();
        let told = self.peers.get_mut(&forwarder);
        if told.is_some_and(|peer| peer.may_be_mentioned(now)) {
            let reason = refusal.label();
            tracing::info!(%forwarder, reason, "gossip not heard");
        }
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
        Ok(Handler::new(OURS, self.offers.small.clone()))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        Ok(Handler::new(OURS, self.offers.small.clone()))
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

fn calendar() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    UnixTime(since.unwrap_or_default())
}
