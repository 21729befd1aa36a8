//! What connections report, and what follows from it.
#![allow(clippy::disallowed_methods, reason = "gossip follows the clock")]

use std::time::Instant;

use libp2p::{
    PeerId,
    core::ConnectedPoint,
    multiaddr::Protocol,
    swarm::{ConnectionClosed, ConnectionId, NetworkBehaviour, NotifyHandler, ToSwarm},
};

use super::{
    Behaviour, Event,
    guard::Refusal,
    handler::{InnerEvent, Order, Report, Role},
    peer::{Arrival, Link, Parked, Waiting},
    router::{close, establish, mint},
};

/// Connections of peers that have not proved themselves and may bring messages of any size all the same: with the 20 MiB of
/// the usual token, 320 MiB at worst.
const STRANGERS: usize = 16;

/// Peers remembered as proved; with more, all prove themselves anew.
const PROVED: usize = 16_384;

impl Behaviour {
    pub(super) fn reported(&mut self, id: PeerId, link: ConnectionId, report: Report) {
        let now = Instant::now();
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        match report {
            Report::Inner(event) => {
                let invalid = match &event {
                    InnerEvent::Message {
                        invalid_messages, ..
                    } => u64::try_from(invalid_messages.len()).unwrap_or(u64::MAX),
                    _ => 0,
                };
                let active = peer.link(link).is_some_and(|link| link.active);
                if let (true, Some(router)) = (active, &mut self.router) {
                    router.on_connection_handler_event(id, link, event);
                }
                if invalid > 0 {
                    self.refused(id, Refusal::Invalid, invalid);
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
    pub(super) fn restart(&mut self, id: PeerId, link: ConnectionId, parked: Parked) {
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
            self.tally.hellos = self.tally.hellos.saturating_add(1);
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
            self.tally.hellos = self.tally.hellos.saturating_add(1);
            peer.opened = Some(Instant::now());
            self.orders.push_back(order(id, link, Order::Reopen));
        }
    }

    pub(super) fn connected(&mut self, id: PeerId, link: ConnectionId, endpoint: &ConnectedPoint) {
        let peer = self.peers.entry(id).or_default();
        let address = endpoint.get_remote_address();
        peer.links.push(Link {
            id: link,
            relayed: address.iter().any(|part| part == Protocol::P2pCircuit),
            dialled: endpoint.is_dialer(),
            active: false,
            full: false,
        });
        self.offer(id, link);
    }

    /// Tells a connection how large a message it may bring: any, from peers that have brought or signed something true,
    /// and from the first few others. Everybody else could make us buffer the largest message of a token each.
    pub(super) fn offer(&mut self, id: PeerId, link: ConnectionId) {
        if self.router.is_none() {
            return;
        }
        let strangers = self
            .peers
            .iter()
            .filter(|(id, _)| !self.proved.contains(id));
        let strangers = strangers.flat_map(|(_, peer)| &peer.links);
        let full =
            self.proved.contains(&id) || strangers.filter(|link| link.full).count() < STRANGERS;
        let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link(link)) else {
            return;
        };
        link.full = full;
        let offer = match full {
            true => self.offers.full.clone(),
            false => self.offers.small.clone(),
        };
        self.orders
            .push_back(order(id, link.id, Order::Offer(offer)));
    }

    /// The peer has brought or signed something that only a member can.
    pub(super) fn prove(&mut self, id: PeerId) {
        if self.proved.len() >= PROVED {
            self.proved.clear();
        }
        if !self.proved.insert(id) {
            return;
        }
        let links = self.peers.get(&id).map(|peer| &peer.links);
        let small = links.into_iter().flatten().filter(|link| !link.full);
        for link in small.map(|link| link.id).collect::<Vec<_>>() {
            self.offer(id, link);
        }
    }

    pub(super) fn disconnected(&mut self, closed: ConnectionClosed<'_>) {
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

    /// Takes up what had to wait.
    pub(super) fn carry_on(&mut self) {
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
}

pub fn order(peer_id: PeerId, link: ConnectionId, event: Order) -> ToSwarm<Event, Order> {
    ToSwarm::NotifyHandler {
        peer_id,
        handler: NotifyHandler::One(link),
        event,
    }
}
