//! What `status` shows about being reached.

use std::time::{Duration, Instant};

use libp2p::{Multiaddr, PeerId};

use super::{Reach, Verdict, mapping};
use crate::relay::upkeep::{self, Stage};

/// How this node is reached, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Whether others reach this node without a relay, and who says so.
    pub verdict: Verdict,
    /// Whether reservations are wanted now.
    pub wanted: bool,
    /// Reservations to hold.
    pub target: usize,
    /// Every relay that is known.
    pub relays: Vec<Relay>,
    /// In how long something is tried next.
    pub next_in: Option<Duration>,
    /// Addresses that count as ours beyond the listeners: confirmed, mapped, of circuits.
    pub external: Vec<Multiaddr>,
    /// What has come of `transport.port_mapping`.
    pub mapping: mapping::Stage,
    /// The last hole punching with each peer.
    pub punches: Vec<Punched>,
}

/// How hole punching with a peer went.
#[derive(Clone, Debug)]
pub struct Punched {
    pub peer: PeerId,
    pub ago: Duration,
    /// `None`: a direct connection came of it.
    pub failure: Option<String>,
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
        let now = Instant::now();
        let upkeep = self.upkeep.report(now);
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
            verdict: self.evidence.verdict(),
            wanted: upkeep.wanted,
            target: upkeep.target,
            relays: relays.collect(),
            next_in: upkeep.next_in,
            external: Vec::new(),
            mapping: mapping::Stage::default(),
            punches: self
                .punches
                .iter()
                .map(|(peer, punch)| Punched {
                    peer: *peer,
                    ago: now.saturating_duration_since(punch.at),
                    failure: punch.failure.clone(),
                })
                .collect(),
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
