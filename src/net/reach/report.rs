//! What `status` shows about being reached.

use std::time::Instant;

use libp2p::Multiaddr;

use super::Reach;
use crate::relay::upkeep::{self, Stage};

/// How this node is reached, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub reachability: upkeep::Reachability,
    /// Whether reservations are wanted now.
    pub wanted: bool,
    /// Reservations to hold.
    pub target: usize,
    /// Every relay that is known.
    pub relays: Vec<Relay>,
    /// In how long something is tried next.
    pub next_in: Option<std::time::Duration>,
}

/// One relay and what this node has of it.
#[derive(Clone, Debug)]
pub struct Relay {
    pub entry: upkeep::Entry,
    /// The circuit addresses others may dial; empty without a reservation.
    pub addresses: Vec<Multiaddr>,
}

impl Reach {
    pub fn report(&self) -> Report {
        let upkeep = self.upkeep.report(Instant::now());
        let relays = upkeep.relays.into_iter().map(|entry| {
            let held = matches!(entry.stage, Stage::Active { .. });
            let slots = self.slots.values();
            let addresses = slots
                .filter(|slot| held && slot.relay == entry.relay && !slot.leaving)
                .flat_map(|slot| slot.addresses.iter().cloned())
                .collect();
            Relay { entry, addresses }
        });
        Report {
            reachability: upkeep.reachability,
            wanted: upkeep.wanted,
            target: upkeep.target,
            relays: relays.collect(),
            next_in: upkeep.next_in,
        }
    }

    /// How many reservations are held.
    pub fn held(&self) -> usize {
        self.slots
            .values()
            .filter(|slot| slot.granted && !slot.leaving)
            .count()
    }
}
