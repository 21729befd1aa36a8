//! What is known of one peer.

use std::{collections::BTreeSet, net::IpAddr, time::Instant};

use ipnet::IpNet;

use crate::acl::Standing;

use super::{
    CircuitId, ConnectionKey,
    circuits::{Phase, Role},
    departed::Pace,
};

#[derive(Debug)]
pub(super) struct Peer {
    /// In the order they came; few, the transport caps them.
    connections: Vec<Connection>,
    pub reservation: Option<Reservation>,
    /// As source and as destination, in any phase.
    pub circuits: BTreeSet<CircuitId>,
    pub load: Load,
    pub pace: Pace,
}

/// What a peer's circuits count for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    /// As source and as destination.
    pub established: u32,
    pub handshakes_as_source: u32,
    pub handshakes_as_destination: u32,
}

impl Load {
    pub fn enter(&mut self, phase: Phase, role: Role) {
        let count = self.count(phase, role);
        *count = count.saturating_add(1);
    }

    pub fn leave(&mut self, phase: Phase, role: Role) {
        let count = self.count(phase, role);
        *count = count.saturating_sub(1);
    }

    fn count(&mut self, phase: Phase, role: Role) -> &mut u32 {
        match (phase, role) {
            (Phase::Established, Role::Source | Role::Destination) => &mut self.established,
            (Phase::Handshake, Role::Source) => &mut self.handshakes_as_source,
            (Phase::Handshake, Role::Destination) => &mut self.handshakes_as_destination,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Connection {
    pub key: ConnectionKey,
    /// Canonical; `None` over a relay.
    pub address: Option<IpAddr>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Reservation {
    pub expires: Instant,
    /// Where it stands among the deadlines: at `expires`, or earlier when a renewal has moved that since.
    pub armed: Instant,
    /// Later ones are higher; a renewal keeps it.
    pub age: u64,
    /// Where circuits to the peer go: where it reserved last, as long as that is there.
    pub connection: ConnectionKey,
    pub address: IpAddr,
    /// What the peer was to the network when it was admitted last.
    pub standing: Standing,
    /// Where it counts. A renewal from elsewhere stays with it: else a peer could fill a prefix beyond its cap, since
    /// renewals are not refused.
    pub prefix: IpNet,
}

/// The last direct connection is gone.
pub(super) struct Homeless;

impl Peer {
    pub fn new(pace: Pace) -> Self {
        Self {
            connections: Vec::with_capacity(1),
            reservation: None,
            circuits: BTreeSet::new(),
            load: Load::default(),
            pace,
        }
    }

    pub fn connect(&mut self, connection: Connection) {
        self.disconnect(connection.key);
        self.connections.push(connection);
    }

    pub fn disconnect(&mut self, key: ConnectionKey) {
        self.connections.retain(|connection| connection.key != key);
    }

    pub fn connection(&self, key: ConnectionKey) -> Option<Connection> {
        self.connections
            .iter()
            .find(|connection| connection.key == key)
            .copied()
    }

    /// The youngest connection that is not relayed.
    pub fn direct(&self) -> Option<(ConnectionKey, IpAddr)> {
        self.connections
            .iter()
            .rev()
            .find_map(|connection| Some((connection.key, connection.address?)))
    }

    /// Moves a reservation whose connection is gone to another direct one.
    pub fn rehome_reservation(&mut self) -> Result<(), Homeless> {
        let Some(held) = &self.reservation else {
            return Ok(());
        };
        if self.connection(held.connection).is_some() {
            return Ok(());
        }
        let (connection, address) = self.direct().ok_or(Homeless)?;
        if let Some(held) = &mut self.reservation {
            held.connection = connection;
            held.address = address;
        }
        Ok(())
    }

    pub fn is_idle(&self) -> bool {
        self.connections.is_empty() && self.circuits.is_empty() && self.reservation.is_none()
    }
}
