//! Port mapping (UPnP) as `transport.port_mapping` has it now.
//!
//! The search for a gateway begins with the first address that a gateway could be behind: a node on public or loopback
//! addresses never asks its network.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::ListenerId, transport::PortUse},
    multiaddr::Protocol,
    swarm::{
        ConnectionDenied, ConnectionId, ExpiredListenAddr, FromSwarm, NetworkBehaviour,
        NewListenAddr, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm, dummy,
    },
    upnp,
};
use tokio::sync::watch;

use crate::{
    config::Snapshot,
    net::{Changes, changes},
};

pub struct Behaviour {
    live: watch::Receiver<Arc<Snapshot>>,
    changes: Changes,
    wanted: bool,
    /// Where the node listens and a gateway could lead to.
    mappable: HashSet<(ListenerId, Multiaddr)>,
    active: Option<upnp::tokio::Behaviour>,
    /// Switched off; it still takes its mappings back.
    retiring: Option<upnp::tokio::Behaviour>,
    mapped: BTreeSet<Multiaddr>,
    stage: Stage,
    queue: VecDeque<ToSwarm<Infallible, Infallible>>,
}

/// What has come of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// `transport.port_mapping = false`.
    #[default]
    Off,
    /// No private IPv4 address to map to.
    NotNeeded,
    Searching,
    NoGateway,
    /// The gateway has no public address itself.
    NotRoutable,
    Mapped,
}

impl Stage {
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Off => "off",
            Stage::NotNeeded => "not needed",
            Stage::Searching => "searching",
            Stage::NoGateway => "no gateway",
            Stage::NotRoutable => "gateway not public",
            Stage::Mapped => "mapped",
        }
    }
}

impl Behaviour {
    pub fn new(live: watch::Receiver<Arc<Snapshot>>) -> Self {
        Self {
            changes: changes(live.clone()),
            live,
            wanted: false,
            mappable: HashSet::new(),
            active: None,
            retiring: None,
            mapped: BTreeSet::new(),
            stage: Stage::Off,
            queue: VecDeque::new(),
        }
    }

    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// The outer addresses that a gateway leads to this node.
    pub fn mapped(&self) -> &BTreeSet<Multiaddr> {
        &self.mapped
    }

    fn follow_the_file(&mut self) {
        let wanted = self.live.borrow().config.transport.port_mapping;
        if wanted != std::mem::replace(&mut self.wanted, wanted) {
            if wanted {
                self.stage = Stage::NotNeeded;
                self.start();
            } else {
                self.stop();
            }
        }
    }

    fn start(&mut self) {
        if !self.wanted || self.active.is_some() || self.mappable.is_empty() {
            return;
        }
        let mut active = upnp::tokio::Behaviour::default();
        for (listener_id, addr) in &self.mappable {
            active.on_swarm_event(FromSwarm::NewListenAddr(NewListenAddr {
                listener_id: *listener_id,
                addr,
            }));
        }
        self.active = Some(active);
        self.stage = Stage::Searching;
    }

    fn stop(&mut self) {
        self.stage = Stage::Off;
        for address in std::mem::take(&mut self.mapped) {
            self.queue.push_back(ToSwarm::ExternalAddrExpired(address));
        }
        let Some(mut active) = self.active.take() else {
            return;
        };
        for (listener_id, addr) in &self.mappable {
            active.on_swarm_event(FromSwarm::ExpiredListenAddr(ExpiredListenAddr {
                listener_id: *listener_id,
                addr,
            }));
        }
        self.retiring = Some(active);
    }

    fn listens(&mut self, listener_id: ListenerId, addr: &Multiaddr) {
        if !is_mappable(addr) || !self.mappable.insert((listener_id, addr.clone())) {
            return;
        }
        // A new address is a new network, which may have a gateway.
        if matches!(self.stage, Stage::NoGateway | Stage::NotRoutable) {
            self.active = None;
        }
        match &mut self.active {
            Some(active) => active.on_swarm_event(FromSwarm::NewListenAddr(NewListenAddr {
                listener_id,
                addr,
            })),
            None => self.start(),
        }
    }

    fn no_longer_listens(&mut self, listener_id: ListenerId, addr: &Multiaddr) {
        if self.mappable.remove(&(listener_id, addr.clone()))
            && let Some(active) = &mut self.active
        {
            active.on_swarm_event(FromSwarm::ExpiredListenAddr(ExpiredListenAddr {
                listener_id,
                addr,
            }));
        }
    }

    fn poll_active(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Infallible, Infallible>> {
        let Some(active) = &mut self.active else {
            return Poll::Pending;
        };
        while let Poll::Ready(wish) = active.poll(cx) {
            match wish {
                ToSwarm::ExternalAddrConfirmed(address) => {
                    self.stage = Stage::Mapped;
                    self.mapped.insert(address.clone());
                    tracing::info!(%address, "port mapped");
                    return Poll::Ready(ToSwarm::ExternalAddrConfirmed(address));
                }
                ToSwarm::ExternalAddrExpired(address) => {
                    self.mapped.remove(&address);
                    return Poll::Ready(ToSwarm::ExternalAddrExpired(address));
                }
                ToSwarm::GenerateEvent(upnp::Event::GatewayNotFound) => {
                    self.stage = Stage::NoGateway;
                }
                ToSwarm::GenerateEvent(upnp::Event::NonRoutableGateway) => {
                    self.stage = Stage::NotRoutable;
                }
                _ => {}
            }
        }
        Poll::Pending
    }
}

/// A gateway leads to private IPv4 addresses only, and never to a circuit.
fn is_mappable(address: &Multiaddr) -> bool {
    let relayed = address.iter().any(|part| part == Protocol::P2pCircuit);
    !relayed && matches!(address.iter().next(), Some(Protocol::Ip4(ip)) if ip.is_private())
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

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
        match event {
            FromSwarm::NewListenAddr(new) => self.listens(new.listener_id, new.addr),
            FromSwarm::ExpiredListenAddr(gone) => {
                self.no_longer_listens(gone.listener_id, gone.addr);
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

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        while let Poll::Ready(Some(())) = self.changes.poll_next_unpin(cx) {
            self.follow_the_file();
        }
        if let Some(retiring) = &mut self.retiring {
            // What it says about addresses was said when it was switched off.
            while retiring.poll(cx).is_ready() {}
        }
        match self.queue.pop_front() {
            Some(wish) => Poll::Ready(wish),
            None => self.poll_active(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_private_addresses_of_listeners_are_worth_a_gateway() {
        let mappable = |text: &str| is_mappable(&text.parse().expect("an address"));
        assert!(mappable("/ip4/192.168.1.2/tcp/4501"));
        assert!(mappable("/ip4/10.0.0.2/udp/4501/quic-v1"));
        assert!(!mappable("/ip4/127.0.0.1/tcp/4501"));
        assert!(!mappable("/ip4/203.0.113.2/tcp/4501"));
        assert!(!mappable("/ip6/fd00::2/tcp/4501"));
    }
}
