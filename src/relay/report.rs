//! What the relay service holds and has done, as numbers: for `status`, the metrics and whoever asks over the API.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One moment of the relay service. Counters (`*_total`, `refused`, `bytes`) count since the node started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// `relay.service`.
    pub service: bool,
    /// No new reservations or circuits: the node is stopping.
    pub stopping: bool,
    pub reservations: u32,
    /// Those among them that only the bootstrap window admits.
    pub guests: u32,
    /// `relay.resources.max_reservations`.
    pub max_reservations: u32,
    /// Established circuits, those that drain included.
    pub circuits: u32,
    /// `relay.resources.max_circuits_total`.
    pub max_circuits: u32,
    /// Circuits that run on although the caps in force would not admit them.
    pub draining: u32,
    /// Circuits whose destination has not answered yet.
    pub handshakes: u32,
    pub reservations_total: u64,
    pub renewals_total: u64,
    pub circuits_total: u64,
    /// Circuits that ended, by reason (`closed`, `max_data`, `max_duration`, `cut`, …).
    pub ended: BTreeMap<String, u64>,
    /// Requests that were refused, by `Refusal::label`.
    pub refused: BTreeMap<String, u64>,
    /// Requests that `acl.mode = "shadow"` admitted although the rules refuse them.
    pub shadow_refused: u64,
    pub bytes: Bytes,
    /// Bytes that circuits hold for slow readers right now.
    pub buffered: u64,
    /// `relay.resources.max_buffers`, in bytes.
    pub max_buffers: u64,
    /// The busiest peers, at most [`Report::MAX_PEERS`], most circuits first.
    pub peers: Vec<PeerReport>,
    /// Peers beyond those listed.
    pub peers_omitted: u32,
}

impl Report {
    /// A status answer stays below 64 KiB with so many peers, whatever the node holds.
    pub const MAX_PEERS: usize = 256;
}

/// Bytes carried, by the direction seen from the peer that opened the circuit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bytes {
    pub to_destination: u64,
    pub to_source: u64,
}

/// A peer that holds a reservation or a circuit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerReport {
    pub peer: String,
    /// Where it is connected from; empty when that is not known.
    pub address: String,
    /// Seconds until its reservation expires; absent when it holds none.
    pub reserved_for_s: Option<u64>,
    pub circuits_as_source: u32,
    pub circuits_as_destination: u32,
    /// Carried by the circuits it has now.
    pub bytes: Bytes,
}
