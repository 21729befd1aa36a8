//! Peers that are dialled, kept, and dialled again when they are lost: those the file names, and those this node has found
//! or that have become members.
//!
//! Whom to keep is decided by the [`book`]; here it is carried out.
#![allow(clippy::disallowed_methods, reason = "reads the clock")]

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, stream::BoxStream};
use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse, upgrade::DeniedUpgrade},
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, DialError,
        FromSwarm, NetworkBehaviour, NotifyHandler, SubstreamProtocol, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
        dial_opts::{DialOpts, PeerCondition},
        handler::ConnectionEvent,
    },
};
use rand::Rng;
use tokio::sync::watch;

use super::{Changes, changes, gate::dials::OnLinks};
use crate::{
    acl::Membership,
    config::{Config, Peer, Snapshot},
};
use book::Book;
pub use book::{Counts, Source};

mod book;

/// The first pause after a failed dial or a lost connection; it doubles with each failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause: a peer that comes back is connected within a minute or so, a dead one costs a dial a minute.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Dials of ours under way at once. A dial into the void takes `transport.dial_timeout`, and the other peers should not
/// have to wait for more than a few of those.
const DIALS_AT_ONCE: usize = 16;

/// Two nodes that find each other in the same moment would both dial. The one with the greater id lets the other go first.
const COURTESY: Duration = Duration::from_millis(150);

/// Membership may change a thousand times a second; the choice follows it at this pace.
const CHOICE_PACE: Duration = Duration::from_millis(250);

pub struct Behaviour {
    local: PeerId,
    live: watch::Receiver<Arc<Snapshot>>,
    changes: Changes,
    membership: watch::Receiver<Arc<Membership>>,
    membership_changes: BoxStream<'static, ()>,
    book: Book,
    /// What the gate of all dials knows of the book.
    on_links: OnLinks,
    /// The book has changed since the last choice; not before this.
    choice_due: Option<Instant>,
    chosen_at: Option<Instant>,
    kept: BTreeMap<PeerId, Kept>,
    /// Peers whose connections are told to stay: the kept ones, and members that have chosen us.
    held: BTreeSet<PeerId>,
    /// Connections to any peer: one that is chosen may be connected already.
    connections: BTreeMap<PeerId, BTreeSet<ConnectionId>>,
    actions: VecDeque<ToSwarm<Infallible, KeepAlive>>,
    wake: Option<(Instant, Pin<Box<tokio::time::Sleep>>)>,
}

#[derive(Default)]
struct Kept {
    /// No dial before this; `None` while one is under way.
    due: Option<Instant>,
}

/// What `status` says about whom this node knows and keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub known: Counts,
    pub kept: usize,
    pub connected: usize,
    pub bootstrap_connected: usize,
}

/// Told to the handlers of a peer's connections: whether the file wants them kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive(bool);

impl Behaviour {
    pub fn new(
        local: PeerId,
        live: watch::Receiver<Arc<Snapshot>>,
        membership: watch::Receiver<Arc<Membership>>,
        on_links: OnLinks,
    ) -> Self {
        Self {
            local,
            on_links,
            changes: changes(live.clone()),
            live,
            membership_changes: changes(membership.clone()),
            membership,
            book: Book::new(local),
            choice_due: None,
            chosen_at: None,
            kept: BTreeMap::new(),
            held: BTreeSet::new(),
            connections: BTreeMap::new(),
            actions: VecDeque::new(),
            wake: None,
        }
    }

    /// A peer was found, or says something new about itself.
    pub fn learn(&mut self, source: Source, peer: PeerId, addresses: Vec<Multiaddr>) {
        if self.book.learn(source, peer, addresses) {
            self.tell_the_gate(source);
            self.try_at(&peer, Instant::now());
            self.choose_soon();
        }
    }

    pub fn forget(&mut self, source: Source, peer: &PeerId) {
        self.book.forget(source, peer);
        self.tell_the_gate(source);
        self.choose_soon();
    }

    fn tell_the_gate(&self, source: Source) {
        if source == Source::Mdns {
            self.on_links.store(Arc::new(self.book.said_by(source)));
        }
    }

    pub fn report(&self) -> Found {
        let connected = |peer: &&PeerId| self.connections.contains_key(*peer);
        Found {
            known: self.book.counts(),
            kept: self.kept.len(),
            connected: self.kept.keys().filter(connected).count(),
            bootstrap_connected: self.book.of(Source::Bootstrap).filter(connected).count(),
        }
    }

    fn follow_the_file(&mut self) {
        let config = self.live.borrow().config.clone();
        let now = Instant::now();
        for (source, peers) in named(&config) {
            for changed in self.book.set(source, peers) {
                self.try_at(&changed, now);
            }
        }
        self.choose();
    }

    /// Dials no later than `when`, unless a dial is under way.
    fn try_at(&mut self, peer: &PeerId, when: Instant) {
        if let Some(due) = self.kept.get_mut(peer).and_then(|kept| kept.due.as_mut()) {
            *due = (*due).min(when);
        }
    }

    /// At once, unless that was done a moment ago.
    fn choose_soon(&mut self) {
        if self.choice_due.is_none() {
            let now = Instant::now();
            let paced = self.chosen_at.map_or(now, |chosen| chosen + CHOICE_PACE);
            self.choice_due = Some(paced.max(now));
        }
    }

    /// A peer that is chosen no longer keeps its connection for as long as something else uses it; changed addresses are
    /// tried at once.
    fn choose(&mut self) {
        let now = Instant::now();
        self.choice_due = None;
        self.chosen_at = Some(now);
        let chosen = self.book.chosen();
        self.kept.retain(|peer, _| chosen.contains(peer));
        for peer in chosen {
            let (local, book) = (self.local, &self.book);
            self.kept.entry(peer).or_insert_with(|| {
                let courtesy = book.is_of_anybody(&peer) && local > peer;
                let wait = if courtesy { COURTESY } else { Duration::ZERO };
                Kept {
                    due: Some(now + wait),
                }
            });
        }
        let mut held = self.book.held(self.connections.keys());
        held.extend(
            self.kept
                .keys()
                .filter(|peer| self.connections.contains_key(*peer)),
        );
        let told: Vec<(PeerId, bool)> = held
            .symmetric_difference(&self.held)
            .map(|peer| (*peer, held.contains(peer)))
            .collect();
        self.held = held;
        for (peer, keep) in told {
            self.tell_handlers(peer, KeepAlive(keep));
        }
    }

    /// Whether a new connection of `peer` stays, until the next choice.
    fn holds(&mut self, peer: PeerId) -> bool {
        let room = self.held.len() < book::MEMBERS_HELD.saturating_add(self.kept.len());
        let hold = self.kept.contains_key(&peer)
            || self.held.contains(&peer)
            || (room && self.book.is_member(&peer));
        if hold {
            self.held.insert(peer);
        }
        hold
    }

    fn tell_handlers(&mut self, peer_id: PeerId, event: KeepAlive) {
        for connection in self.connections.get(&peer_id).into_iter().flatten() {
            let handler = NotifyHandler::One(*connection);
            self.actions.push_back(ToSwarm::NotifyHandler {
                peer_id,
                handler,
                event,
            });
        }
    }

    fn dial_what_is_due(&mut self) {
        let now = Instant::now();
        let mut room = DIALS_AT_ONCE.saturating_sub(self.dialling());
        let due: Vec<PeerId> = self
            .waiting()
            .filter(|(_, due)| *due <= now)
            .map(|(peer, _)| peer)
            .collect();
        for peer in due {
            if room == 0 {
                return;
            }
            room = room.saturating_sub(1);
            let dial = DialOpts::peer_id(peer)
                .addresses(self.book.addresses(&peer))
                .condition(PeerCondition::DisconnectedAndNotDialing)
                .build();
            if let Some(kept) = self.kept.get_mut(&peer) {
                kept.due = None;
            }
            self.actions.push_back(ToSwarm::Dial { opts: dial });
        }
    }

    /// Kept peers that are not connected, and when to dial them.
    fn waiting(&self) -> impl Iterator<Item = (PeerId, Instant)> {
        self.kept
            .iter()
            .filter(|(peer, _)| !self.connections.contains_key(peer))
            .filter_map(|(peer, kept)| Some((*peer, kept.due?)))
    }

    fn dialling(&self) -> usize {
        self.kept
            .iter()
            .filter(|(peer, kept)| kept.due.is_none() && !self.connections.contains_key(peer))
            .count()
    }

    fn dial_failed(&mut self, peer: &PeerId, error: &DialError) {
        if !self.kept.contains_key(peer) {
            return;
        }
        // Somebody else dials this peer; its outcome is ours too.
        if matches!(error, DialError::DialPeerConditionFalse(_))
            && self.connections.contains_key(peer)
        {
            return;
        }
        let failures = self.book.failed(peer);
        let pause = pause_after(failures);
        if let Some(kept) = self.kept.get_mut(peer) {
            kept.due = Some(Instant::now() + pause);
        }
        if failures > 0 && self.book.is_of_anybody(peer) {
            // Others may be worth the place more.
            self.choose_soon();
        }
        tracing::debug!(%peer, cause = %error, failures, retry_in = ?pause, "peer not reached");
    }

    fn sleep_until_due(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let dial = self.waiting().map(|(_, due)| due);
        let dial = dial.filter(|_| self.dialling() < DIALS_AT_ONCE);
        let next = dial.chain(self.choice_due).min();
        let Some(next) = next else {
            return Poll::Pending;
        };
        if self.wake.as_ref().is_none_or(|(set, _)| *set != next) {
            self.wake = Some((next, Box::pin(tokio::time::sleep_until(next.into()))));
        }
        self.wake
            .as_mut()
            .map_or(Poll::Pending, |(_, sleep)| sleep.poll_unpin(context))
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler {
            keep_alive: self.holds(peer),
        })
    }

    fn handle_pending_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        Ok(peer
            .map(|peer| self.book.addresses(&peer))
            .unwrap_or_default())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler {
            keep_alive: self.holds(peer),
        })
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(opened) => {
                self.connections
                    .entry(opened.peer_id)
                    .or_default()
                    .insert(opened.connection_id);
                self.book.connected(&opened.peer_id);
                if let Some(kept) = self.kept.get_mut(&opened.peer_id) {
                    kept.due = None;
                }
            }
            FromSwarm::ConnectionClosed(closed) => {
                if let Some(open) = self.connections.get_mut(&closed.peer_id) {
                    open.remove(&closed.connection_id);
                    if open.is_empty() {
                        self.connections.remove(&closed.peer_id);
                        self.held.remove(&closed.peer_id);
                        self.book.disconnected(&closed.peer_id);
                        if let Some(kept) = self.kept.get_mut(&closed.peer_id) {
                            kept.due = Some(Instant::now() + pause_after(0));
                        }
                    }
                }
            }
            FromSwarm::DialFailure(failed) => {
                if let Some(peer) = failed.peer_id {
                    self.dial_failed(&peer, failed.error);
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        while let Poll::Ready(Some(())) = self.changes.poll_next_unpin(context) {
            self.follow_the_file();
        }
        while let Poll::Ready(Some(())) = self.membership_changes.poll_next_unpin(context) {
            let membership = self.membership.borrow().clone();
            self.book.set_membership(membership);
            self.choose_soon();
        }
        loop {
            if self.choice_due.is_some_and(|due| due <= Instant::now()) {
                self.choose();
            }
            self.dial_what_is_due();
            if let Some(action) = self.actions.pop_front() {
                return Poll::Ready(action);
            }
            if self.sleep_until_due(context).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

/// Whom the file names, source by source; the relays and the entrances of the DHT only while they are used.
fn named(config: &Config) -> [(Source, BTreeMap<PeerId, Vec<Multiaddr>>); 3] {
    let all = |peers: &[Peer]| {
        peers
            .iter()
            .map(|peer| (peer.id, peer.addresses.clone()))
            .collect()
    };
    let relays = &config.relay_client;
    let bootstrap = super::discovery::bootstrap_peers(config);
    [
        (Source::File, all(&config.peers)),
        (Source::Bootstrap, all(&bootstrap)),
        (
            Source::Relay,
            if relays.enabled {
                all(&relays.peers)
            } else {
                Default::default()
            },
        ),
    ]
}

/// Doubles from [`FIRST_PAUSE`] to [`LONGEST_PAUSE`]; a random half of it keeps many nodes that lost the same peer from
/// dialling it at the same moment.
fn pause_after(failures: u32) -> Duration {
    let longest = FIRST_PAUSE
        .saturating_mul(1u32.checked_shl(failures).unwrap_or(u32::MAX))
        .min(LONGEST_PAUSE);
    longest.mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// Speaks no protocol; its only word is whether the connection is wanted.
pub struct Handler {
    keep_alive: bool,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = KeepAlive;
    type ToBehaviour = Infallible;
    type InboundProtocol = DeniedUpgrade;
    type OutboundProtocol = DeniedUpgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<DeniedUpgrade> {
        SubstreamProtocol::new(DeniedUpgrade, ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.keep_alive
    }

    fn on_behaviour_event(&mut self, KeepAlive(keep_alive): KeepAlive) {
        self.keep_alive = keep_alive;
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<DeniedUpgrade, (), Infallible>> {
        Poll::Pending
    }

    fn on_connection_event(&mut self, _: ConnectionEvent<'_, DeniedUpgrade, DeniedUpgrade>) {}
}
