//! Every connection of the swarm: whose it is, whether it goes through a relay, and over what it travels.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use libp2p::{Multiaddr, PeerId, core::ConnectedPoint, multiaddr::Protocol, swarm::ConnectionId};
use tokio::sync::broadcast;

use super::{OpenError, Route, lane::Lane};

/// Changes a receiver may be behind before it has to look at the whole. A burst of a few hundred peers is a network
/// coming back; looking at all of them then is no more work.
const CHANGES: usize = 256;

pub struct Registry {
    connections: RwLock<Connections>,
    changes: broadcast::Sender<Change>,
}

/// `[limits]` bounds how many there are.
#[derive(Default)]
struct Connections {
    by_id: HashMap<ConnectionId, Arc<Lane>>,
    /// In the order of their coming.
    by_peer: HashMap<PeerId, Vec<Arc<Lane>>>,
}

/// One connection as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub connection: ConnectionId,
    pub peer: PeerId,
    pub relayed: bool,
    pub transport: Transport,
    /// The peer's end, as far as it is known: behind a circuit only its id.
    pub address: Multiaddr,
    /// This side has opened the connection.
    pub dialled: bool,
    /// Streams opened or accepted here that live, and those that are being opened.
    pub streams: u32,
    /// The last measured round trip.
    pub rtt: Option<Duration>,
}

/// Over what a connection travels; for a relayed one, what is known of the way to the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    Tcp,
    Quic,
    WebSocket,
    Unknown,
}

/// A connection has come or gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub peer: PeerId,
    pub connection: ConnectionId,
    pub relayed: bool,
    pub step: Step,
    /// Connections of the peer after this.
    pub direct: usize,
    pub through_relays: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Appeared,
    Gone,
}

impl Registry {
    pub fn new() -> Self {
        Self {
            connections: RwLock::default(),
            changes: broadcast::channel(CHANGES).0,
        }
    }

    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    pub fn add(&self, lane: Arc<Lane>) {
        {
            let mut connections = self.write();
            let of_peer = connections.by_peer.entry(lane.peer).or_default();
            of_peer.push(lane.clone());
            connections.by_id.insert(lane.connection, lane.clone());
        }
        self.tell(&lane, Step::Appeared);
    }

    pub fn remove(&self, connection: ConnectionId) {
        let removed = {
            let mut connections = self.write();
            let removed = connections.by_id.remove(&connection);
            if let Some(lane) = &removed
                && let Some(of_peer) = connections.by_peer.get_mut(&lane.peer)
            {
                of_peer.retain(|other| other.connection != connection);
                if of_peer.is_empty() {
                    connections.by_peer.remove(&lane.peer);
                }
            }
            removed
        };
        if let Some(lane) = removed {
            lane.close();
            self.tell(&lane, Step::Gone);
        }
    }

    fn tell(&self, lane: &Lane, step: Step) {
        let of_peer = self.of(lane.peer);
        let direct = of_peer.iter().filter(|lane| !lane.relayed).count();
        // Nobody listens: nobody has to be told.
        let _ = self.changes.send(Change {
            peer: lane.peer,
            connection: lane.connection,
            relayed: lane.relayed,
            step,
            direct,
            through_relays: of_peer.len().saturating_sub(direct),
        });
    }

    /// The connections that `route` allows, the best first; never empty.
    pub fn lanes(&self, peer: PeerId, route: Route) -> Result<Vec<Arc<Lane>>, OpenError> {
        let lanes = match route {
            Route::Via(connection) => {
                let lane = self.read().by_id.get(&connection).cloned();
                return lane
                    .filter(|lane| lane.peer == peer)
                    .map(|lane| vec![lane])
                    .ok_or(OpenError::Lost { peer });
            }
            Route::Direct | Route::PreferDirect => self.of(peer),
        };
        if lanes.is_empty() {
            return Err(OpenError::NotConnected { peer });
        }
        let allowed: Vec<_> = lanes
            .into_iter()
            .filter(|lane| route == Route::PreferDirect || !lane.relayed)
            .collect();
        if allowed.is_empty() {
            return Err(OpenError::OnlyRelayed { peer });
        }
        Ok(allowed)
    }

    pub fn links(&self, peer: PeerId) -> Vec<Link> {
        self.of(peer).iter().map(|lane| Link::of(lane)).collect()
    }

    pub fn all(&self) -> Vec<Link> {
        let connections = self.read();
        connections
            .by_id
            .values()
            .map(|lane| Link::of(lane))
            .collect()
    }

    pub fn every_lane(&self) -> Vec<Arc<Lane>> {
        self.read().by_id.values().cloned().collect()
    }

    pub fn measured(&self, connection: ConnectionId, rtt: Duration) {
        if let Some(lane) = self.read().by_id.get(&connection) {
            lane.measured(rtt);
        }
    }

    /// A peer's connections: direct ones first, and of each kind the newest first, which is the likeliest to be alive.
    fn of(&self, peer: PeerId) -> Vec<Arc<Lane>> {
        let connections = self.read();
        let mut lanes: Vec<_> = connections
            .by_peer
            .get(&peer)
            .into_iter()
            .flatten()
            .rev()
            .cloned()
            .collect();
        lanes.sort_by_key(|lane| lane.relayed);
        lanes
    }

    fn read(&self) -> RwLockReadGuard<'_, Connections> {
        self.connections
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Connections> {
        self.connections
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    fn of(lane: &Lane) -> Self {
        Self {
            connection: lane.connection,
            peer: lane.peer,
            relayed: lane.relayed,
            transport: lane.transport,
            address: lane.address.clone(),
            dialled: lane.dialled,
            streams: lane.in_use(),
            rtt: lane.rtt(),
        }
    }
}

impl Transport {
    pub fn of(endpoint: &ConnectedPoint) -> Self {
        let address = match endpoint {
            ConnectedPoint::Dialer { address, .. } => address,
            ConnectedPoint::Listener { local_addr, .. } => local_addr,
        };
        let mut transport = Transport::Unknown;
        for part in address
            .iter()
            .take_while(|part| *part != Protocol::P2pCircuit)
        {
            match part {
                Protocol::Tcp(_) => transport = Transport::Tcp,
                Protocol::Quic | Protocol::QuicV1 => transport = Transport::Quic,
                Protocol::Ws(_) | Protocol::Wss(_) => transport = Transport::WebSocket,
                _ => {}
            }
        }
        transport
    }

    /// As multiaddresses name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Quic => "quic",
            Transport::WebSocket => "ws",
            Transport::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(peer: PeerId, connection: usize, address: &str) -> Arc<Lane> {
        let endpoint = ConnectedPoint::Listener {
            local_addr: address.parse().expect("an address"),
            send_back_addr: "/ip4/192.0.2.1/tcp/1".parse().expect("an address"),
        };
        let connection = ConnectionId::new_unchecked(connection);
        Arc::new(Lane::new(peer, connection, &endpoint))
    }

    const DIRECT: &str = "/ip4/192.0.2.9/udp/1/quic-v1";
    const RELAYED: &str =
        "/ip4/192.0.2.9/tcp/1/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA/p2p-circuit";

    #[test]
    fn direct_comes_before_relayed_and_new_before_old() {
        let (registry, peer) = (Registry::new(), PeerId::random());
        registry.add(lane(peer, 1, DIRECT));
        registry.add(lane(peer, 2, RELAYED));
        registry.add(lane(peer, 3, DIRECT));
        registry.add(lane(peer, 4, RELAYED));
        let order: Vec<_> = registry
            .links(peer)
            .iter()
            .map(|link| link.connection)
            .collect();
        assert_eq!(order, [3, 1, 4, 2].map(ConnectionId::new_unchecked));
    }

    #[test]
    fn a_route_is_never_bent() {
        let (registry, peer) = (Registry::new(), PeerId::random());
        let of = |route| registry.lanes(peer, route).map(|lanes| lanes.len());
        assert!(matches!(
            of(Route::PreferDirect),
            Err(OpenError::NotConnected { .. })
        ));
        registry.add(lane(peer, 2, RELAYED));
        assert!(matches!(
            of(Route::Direct),
            Err(OpenError::OnlyRelayed { .. })
        ));
        assert!(matches!(of(Route::PreferDirect), Ok(1)));
        let other = PeerId::random();
        registry.add(lane(other, 7, DIRECT));
        let foreign = Route::Via(ConnectionId::new_unchecked(7));
        assert!(matches!(of(foreign), Err(OpenError::Lost { .. })));
    }

    #[test]
    fn what_is_gone_leaves_nothing_behind() {
        let (registry, peer) = (Registry::new(), PeerId::random());
        let mut changes = registry.changes();
        registry.add(lane(peer, 1, DIRECT));
        registry.add(lane(peer, 2, RELAYED));
        registry.remove(ConnectionId::new_unchecked(1));
        registry.remove(ConnectionId::new_unchecked(2));
        registry.remove(ConnectionId::new_unchecked(2));
        let mut told = Vec::new();
        while let Ok(change) = changes.try_recv() {
            told.push((change.step, change.direct, change.through_relays));
        }
        let (appeared, gone) = (Step::Appeared, Step::Gone);
        assert_eq!(
            told,
            [
                (appeared, 1, 0),
                (appeared, 1, 1),
                (gone, 0, 1),
                (gone, 0, 0)
            ]
        );
        assert!(registry.read().by_peer.is_empty());
        assert!(registry.read().by_id.is_empty());
    }

    #[test]
    fn the_transport_is_read_from_the_address() {
        let of = |address| lane(PeerId::random(), 1, address).transport;
        assert_eq!(of(DIRECT), Transport::Quic);
        assert_eq!(of(RELAYED), Transport::Tcp);
        assert_eq!(of("/ip4/192.0.2.9/tcp/1/ws"), Transport::WebSocket);
        assert_eq!(of("/memory/1"), Transport::Unknown);
    }
}
