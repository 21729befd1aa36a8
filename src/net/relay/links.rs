//! The swarm's connections under the keys by which the admission knows them.

use crate::relay::ConnectionKey;
use libp2p::{PeerId, core::ConnectedPoint, multiaddr::Protocol, swarm::ConnectionId};
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

/// All of them; `[limits]` bounds how many there are.
#[derive(Default)]
pub struct Links {
    keys: HashMap<ConnectionId, ConnectionKey>,
    links: HashMap<ConnectionKey, Link>,
    peers: HashMap<PeerId, Vec<ConnectionId>>,
    next: u64,
}

/// A connection as the swarm knows it.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub peer: PeerId,
    pub connection: ConnectionId,
}

impl Links {
    pub fn add(&mut self, link: Link) -> ConnectionKey {
        let key = ConnectionKey(self.next);
        self.next = self.next.saturating_add(1);
        self.keys.insert(link.connection, key);
        self.links.insert(key, link);
        self.peers
            .entry(link.peer)
            .or_default()
            .push(link.connection);
        key
    }

    /// Its key, if it was known.
    pub fn remove(&mut self, link: Link) -> Option<ConnectionKey> {
        let key = self.keys.remove(&link.connection)?;
        self.links.remove(&key);
        if let Some(connections) = self.peers.get_mut(&link.peer) {
            connections.retain(|connection| *connection != link.connection);
            if connections.is_empty() {
                self.peers.remove(&link.peer);
            }
        }
        Some(key)
    }

    pub fn key(&self, connection: ConnectionId) -> Option<ConnectionKey> {
        self.keys.get(&connection).copied()
    }

    pub fn get(&self, key: ConnectionKey) -> Option<Link> {
        self.links.get(&key).copied()
    }

    pub fn of(&self, peer: PeerId) -> Vec<Link> {
        let connections = self.peers.get(&peer).into_iter().flatten();
        connections
            .map(|connection| Link {
                peer,
                connection: *connection,
            })
            .collect()
    }

    pub fn all(&self) -> Vec<Link> {
        self.links.values().copied().collect()
    }
}

/// The address that counts for caps and rules; `None` for a connection through another relay. A peer that this node
/// dialled by name has none that is known here and counts as 0.0.0.0.
pub fn reached_from(endpoint: &ConnectedPoint) -> Option<IpAddr> {
    if endpoint.is_relayed() {
        return None;
    }
    let address = endpoint.get_remote_address();
    let address = address.iter().find_map(|protocol| match protocol {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    });
    address.or(Some(Ipv4Addr::UNSPECIFIED.into()))
}
