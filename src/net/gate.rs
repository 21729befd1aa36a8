//! Who may be connected at all: `transport.block` and `limits.memory`, as the file has them now; and [`dials`], where this
//! node lets itself be sent.
//!
//! The counts of `[limits]` are `libp2p::connection_limits`, which follows the file in the driver. Access to the relay
//! is not decided here: that is `acl`, and a peer refused there stays connected.
#![allow(
    clippy::disallowed_methods,
    reason = "reads the clock and this process's memory"
)]

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    net::IpAddr,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        CloseConnection, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm, dummy,
    },
};
use tokio::sync::watch;

use super::{Changes, changes, ip_of};
use crate::config::{Block, Snapshot};

pub mod dials;
pub mod scope;

/// Reading the resident size costs about ten microseconds, so a flood of connections reads it this seldom.
const MEMORY_AGE: Duration = Duration::from_millis(100);

pub struct Behaviour {
    live: watch::Receiver<Arc<Snapshot>>,
    changes: Changes,
    connections: BTreeMap<ConnectionId, (PeerId, Option<IpAddr>)>,
    closing: VecDeque<(PeerId, ConnectionId)>,
    memory: Option<(Instant, u64)>,
}

#[derive(Debug, thiserror::Error)]
pub enum Closed {
    #[error("the peer or its address is in `transport.block`")]
    Blocked,
    #[error("the connection comes through the overlay that it would carry")]
    Overlay,
    #[error("this node holds {resident} bytes, more than `limits.memory` = {limit}")]
    Memory { resident: u64, limit: u64 },
}

impl Behaviour {
    pub fn new(live: watch::Receiver<Arc<Snapshot>>) -> Self {
        Self {
            changes: changes(live.clone()),
            live,
            connections: BTreeMap::new(),
            closing: VecDeque::new(),
            memory: None,
        }
    }

    fn admit(
        &mut self,
        peer: Option<&PeerId>,
        address: Option<IpAddr>,
    ) -> Result<(), ConnectionDenied> {
        let snapshot = self.live.borrow().clone();
        if blocks(&snapshot.config.transport.block, peer, address) {
            return Err(ConnectionDenied::new(Closed::Blocked));
        }
        if address.is_some_and(|address| snapshot.config.vpn.holds(address)) {
            return Err(ConnectionDenied::new(Closed::Overlay));
        }
        Ok(())
    }

    /// Only inbound connections are refused for memory: what the operator asked us to dial is wanted.
    fn admit_memory(&mut self) -> Result<(), ConnectionDenied> {
        let limit = self.live.borrow().config.limits.memory;
        let now = Instant::now();
        let resident = match self.memory {
            Some((read, resident)) if now.duration_since(read) < MEMORY_AGE => resident,
            _ => {
                let resident = resident_bytes().unwrap_or(0);
                self.memory = Some((now, resident));
                resident
            }
        };
        if resident > limit {
            return Err(ConnectionDenied::new(Closed::Memory { resident, limit }));
        }
        Ok(())
    }

    fn close_what_is_blocked_now(&mut self) {
        let snapshot = self.live.borrow().clone();
        let block = &snapshot.config.transport.block;
        for (connection, (peer, address)) in &self.connections {
            if blocks(block, Some(peer), *address) {
                self.closing.push_back((*peer, *connection));
            }
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.admit(None, ip_of(remote))?;
        self.admit_memory()
    }

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(Some(&peer), ip_of(remote))?;
        Ok(dummy::ConnectionHandler)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.admit(peer.as_ref(), None)?;
        Ok(Vec::new())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(Some(&peer), ip_of(remote))?;
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(opened) => {
                let address = ip_of(opened.endpoint.get_remote_address());
                self.connections
                    .insert(opened.connection_id, (opened.peer_id, address));
            }
            FromSwarm::ConnectionClosed(closed) => {
                self.connections.remove(&closed.connection_id);
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
            self.close_what_is_blocked_now();
        }
        match self.closing.pop_front() {
            Some((peer_id, connection)) => Poll::Ready(ToSwarm::CloseConnection {
                peer_id,
                connection: CloseConnection::One(connection),
            }),
            None => Poll::Pending,
        }
    }
}

fn blocks(block: &Block, peer: Option<&PeerId>, address: Option<IpAddr>) -> bool {
    peer.is_some_and(|peer| block.peers.contains(peer))
        || address.is_some_and(|address| block.holds_address(address))
}

/// The second field of `/proc/self/statm`, in pages.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(rustix::param::page_size() as u64)
}
