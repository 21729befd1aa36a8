//! The swarm's side: keeps the registry in step with the connections, and tells them when other protocols are accepted.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{ConnectedPoint, Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm,
    },
};

use super::{
    Control, Shared,
    handler::{Announce, Handler},
    inbox::Inboxes,
    lane::{Counts, Lane},
    registry::Registry,
};

pub struct Behaviour {
    shared: Arc<Shared>,
    /// Connections that another behaviour may still refuse.
    coming: HashMap<ConnectionId, Arc<Lane>>,
    /// At most one for each connection.
    announcing: VecDeque<(PeerId, ConnectionId)>,
}

impl Behaviour {
    pub fn new() -> Self {
        let shared = Shared {
            registry: Registry::new(),
            inboxes: Inboxes::new(),
            counts: Counts::default(),
        };
        Self {
            shared: Arc::new(shared),
            coming: HashMap::new(),
            announcing: VecDeque::new(),
        }
    }

    pub fn control(&self) -> Control {
        Control {
            shared: self.shared.clone(),
        }
    }

    fn handler(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        endpoint: &ConnectedPoint,
    ) -> Handler {
        let lane = Arc::new(Lane::new(peer, connection, endpoint));
        self.coming.insert(connection, lane.clone());
        Handler::new(lane, self.shared.clone())
    }
}

impl Default for Behaviour {
    fn default() -> Self {
        Self::new()
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let endpoint = ConnectedPoint::Listener {
            local_addr: local.clone(),
            send_back_addr: remote.clone(),
        };
        Ok(self.handler(connection, peer, &endpoint))
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role_override: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let endpoint = ConnectedPoint::Dialer {
            address: address.clone(),
            role_override,
            port_use,
        };
        Ok(self.handler(connection, peer, &endpoint))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(opened) => {
                if let Some(lane) = self.coming.remove(&opened.connection_id) {
                    self.shared.registry.add(lane);
                }
            }
            FromSwarm::ConnectionClosed(closed) => {
                self.shared.registry.remove(closed.connection_id);
            }
            FromSwarm::DialFailure(failed) => drop(self.coming.remove(&failed.connection_id)),
            FromSwarm::ListenFailure(failed) => drop(self.coming.remove(&failed.connection_id)),
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
        if self.shared.inboxes.poll_changed(cx).is_ready() {
            let lanes = self.shared.registry.every_lane();
            self.announcing = lanes
                .iter()
                .map(|lane| (lane.peer, lane.connection))
                .collect();
        }
        match self.announcing.pop_front() {
            Some((peer_id, connection)) => Poll::Ready(ToSwarm::NotifyHandler {
                peer_id,
                handler: NotifyHandler::One(connection),
                event: Announce,
            }),
            None => Poll::Pending,
        }
    }
}
