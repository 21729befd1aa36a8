//! A behaviour of the library with somebody beside it who decides what it may do.
//!
//! The library's behaviours believe what strangers tell them: which addresses to dial, which addresses are ours. A
//! [`Guard`] sees what goes in and out and can hold it back; everything else is passed on unchanged.

use std::task::{Context, Poll};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    multiaddr::Protocol,
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
    },
};

pub struct Guarded<B, G> {
    pub inner: B,
    pub guard: G,
}

/// What a behaviour asks of the swarm.
pub type Wish<B> = ToSwarm<<B as NetworkBehaviour>::ToSwarm, THandlerInEvent<B>>;

pub trait Guard<B: NetworkBehaviour> {
    /// Sees what the swarm tells the behaviour.
    fn hear(&mut self, _: &FromSwarm<'_>) {}

    /// Lets what the behaviour wants done pass, or keeps it.
    fn pass(&mut self, wish: Wish<B>) -> Option<Wish<B>> {
        Some(wish)
    }

    /// Whether a dial may go on, now that its addresses are known. Dials of others are asked about too.
    fn may_dial(
        &mut self,
        _: ConnectionId,
        _: Option<PeerId>,
        _: &[Multiaddr],
    ) -> Result<(), ConnectionDenied> {
        Ok(())
    }

    /// A handler in place of the behaviour's own, which then does not hear of the connection.
    fn stand_in(&mut self, _relayed: bool) -> Option<THandler<B>> {
        None
    }
}

impl<B: NetworkBehaviour, G: Guard<B> + 'static> NetworkBehaviour for Guarded<B, G> {
    type ConnectionHandler = B::ConnectionHandler;
    type ToSwarm = B::ToSwarm;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.inner
            .handle_pending_inbound_connection(connection, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        if let Some(handler) = self.guard.stand_in(is_relayed(local)) {
            return Ok(handler);
        }
        self.inner
            .handle_established_inbound_connection(connection, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.guard.may_dial(connection, peer, addresses)?;
        self.inner
            .handle_pending_outbound_connection(connection, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        if let Some(handler) = self.guard.stand_in(is_relayed(address)) {
            return Ok(handler);
        }
        self.inner
            .handle_established_outbound_connection(connection, peer, address, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        self.guard.hear(&event);
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        self.inner
            .on_connection_handler_event(peer, connection, event);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            match self.inner.poll(cx) {
                Poll::Ready(wish) => {
                    if let Some(wish) = self.guard.pass(wish) {
                        return Poll::Ready(wish);
                    }
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

fn is_relayed(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}
