//! What a node says about how it is reached and whom it has found.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How others reach this node, and how it has learnt of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReachReport {
    /// `public`, `private` or `unknown`: whether others reach this node without a relay.
    pub reachability: String,
    /// What that rests on: `announce`, `autonat/1`, `autonat/2` or `nobody`.
    pub reachability_by: String,
    /// The peer that has tried, and where, if it is known.
    pub reachability_server: Option<String>,
    pub reachability_address: Option<String>,
    /// Addresses beyond the listeners that count as this node's: announced, confirmed, mapped, of circuits; at most
    /// [`ReachReport::MAX_RELAYS`].
    pub external: Vec<String>,
    /// What has come of `transport.port_mapping`: `off`, `not needed`, `searching`, `no gateway`, `gateway not public`
    /// or `mapped`.
    pub port_mapping: String,
    /// The last hole punching with each peer, the newest first; at most [`ReachReport::MAX_RELAYS`].
    pub hole_punching: Vec<PunchReport>,
    /// Reservations this node holds on other relays, and how many it wants now.
    pub reservations: u32,
    pub reservations_wanted: u32,
    /// Relays it knows, those with a reservation first; at most [`ReachReport::MAX_RELAYS`].
    pub relays: Vec<RelayReport>,
    /// Seconds until a reservation is tried for, renewed or given back.
    pub next_in_s: Option<u64>,
    /// Peers that can be dialled, by how they were found: `file`, `bootstrap`, `relays`, `ledger`, `mdns`, `dht`.
    pub found: BTreeMap<String, u64>,
    /// Peers this node dials until they are connected, and how many of them are.
    pub kept: u64,
    pub kept_connected: u64,
    /// Absent while the distributed hash table is not used.
    pub dht: Option<DhtReport>,
}

impl ReachReport {
    pub const MAX_RELAYS: usize = 64;
}

/// How hole punching with a peer went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PunchReport {
    pub peer: String,
    pub ago_s: u64,
    /// Absent when a direct connection came of it.
    pub failure: Option<String>,
}

/// A relay this node may hold a reservation on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RelayReport {
    pub relay: String,
    /// How it is known: `static`, `member` or `found`.
    pub source: String,
    /// `candidate`, `dialling`, `reserving`, `active` or `resting`.
    pub stage: String,
    pub connected: bool,
    /// Since the last success.
    pub failures: u32,
    pub last_failure: Option<String>,
    /// How long the reservation is held, in seconds.
    pub held_for_s: Option<u64>,
    /// Seconds until it would end; known from the first renewal on.
    pub expires_in_s: Option<u64>,
    /// Seconds until a resting relay is tried again.
    pub rests_for_s: Option<u64>,
    /// Circuit addresses others may dial.
    pub addresses: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DhtReport {
    /// Whether this node answers others.
    pub server: bool,
    /// Of `discovery.bootstrap_peers` or the public ones, how many are connected.
    pub entrances_connected: u64,
    /// Servers in the routing table.
    pub routing: u64,
    /// Keys kept for others.
    pub keys_held: u64,
    pub next_announce_in_s: u64,
    /// Seconds since members were last looked for.
    pub last_look_s: Option<u64>,
}
