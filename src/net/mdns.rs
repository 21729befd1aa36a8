//! Members on the same link find each other without anybody's help: EdgeVPN's form of multicast DNS.
//!
//! packets ([`packet`]) → what to say and who was found, of one network ([`room`]) → sockets of every link ([`task`]).

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::Arc,
    task::{Context, Poll},
};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    multiaddr::Protocol,
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, ListenAddresses, NetworkBehaviour, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm, dummy,
    },
};
use tokio::sync::{mpsc, watch};

use super::{Changes, changes};
use crate::{config::Snapshot, task::Task};

mod links;
mod packet;
mod room;
mod task;

/// Findings on their way to the swarm. The task waits when they are many: what is not read from a socket is dropped by the
/// kernel, and asked for again.
const EVENTS: usize = 64;

pub struct Behaviour {
    live: watch::Receiver<Arc<Snapshot>>,
    changes: Changes,
    listening: ListenAddresses,
    wanted: watch::Sender<Wanted>,
    events: mpsc::Receiver<Event>,
    _task: Task,
}

/// What the links are told about: which networks, and where this node listens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    tags: BTreeSet<String>,
    addresses: BTreeSet<Multiaddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Found {
        peer: PeerId,
        addresses: Vec<Multiaddr>,
    },
    Lost(PeerId),
}

impl Behaviour {
    pub fn new(local: PeerId, live: watch::Receiver<Arc<Snapshot>>) -> Self {
        let (wanted, follow) = watch::channel(Wanted::default());
        let (tell, events) = mpsc::channel(EVENTS);
        Self {
            changes: changes(live.clone()),
            live,
            listening: ListenAddresses::default(),
            wanted,
            events,
            _task: crate::task::spawn("mdns", task::run(local, follow, tell)),
        }
    }

    fn follow(&self) {
        let config = self.live.borrow().config.clone();
        let network = config.network.as_ref().filter(|_| config.discovery.mdns);
        let tags = network
            .into_iter()
            .flat_map(|network| std::iter::once(&network.token).chain(&network.accepted))
            .map(|token| token.mdns.clone())
            .collect();
        let addresses = self
            .listening
            .iter()
            .filter(|address| packet::is_plain(address))
            .cloned()
            .collect();
        let wanted = Wanted { tags, addresses };
        self.wanted.send_if_modified(|before| {
            let changed = *before != wanted;
            *before = wanted;
            changed
        });
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if self.listening.on_swarm_event(&event) {
            self.follow();
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

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        while let Poll::Ready(Some(())) = self.changes.poll_next_unpin(context) {
            self.follow();
        }
        match self.events.poll_recv(context) {
            Poll::Ready(Some(event)) => Poll::Ready(ToSwarm::GenerateEvent(event)),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

/// The IP address a plain address begins with; an IPv4 address written as IPv6 is IPv4.
fn host_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(IpAddr::from(ip).to_canonical()),
        _ => None,
    }
}
