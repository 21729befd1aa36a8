//! What a running node says about itself: the body of `GET /v1/status`, and the source of every metric.

use super::{NetworkReport, ReachReport, VpnReport};
use crate::{
    id::Generation,
    plan::{Acknowledgement, Outcome, State, Trigger},
    relay,
};
use serde::{Deserialize, Serialize};

/// One moment of a node, complete: `status` prints it, the metrics are read off it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Version of the program that runs.
    pub version: String,
    pub state: State,
    pub generation: Generation,
    /// SHA-256 of the file in force, in hexadecimal.
    pub applied_sha256: String,
    /// Seconds since the epoch when the generation in force began; 0 while there is none.
    pub applied_at: f64,
    /// What brought the generation in force.
    pub applied_by: Trigger,
    /// Seconds since the epoch of the latest attempt that ended well, changed or not; 0 while there is none.
    pub last_success_at: f64,
    pub uptime_s: u64,
    /// The configuration file, as it was named at start.
    pub config_file: String,
    /// The latest attempt. When the node is not in sync it says why.
    pub last_attempt: Option<Acknowledgement>,
    /// Seconds until an unconfirmed change is undone.
    pub confirm_within_s: Option<u64>,
    /// Attempts since the start.
    pub reloads: Vec<ReloadCount>,
    pub watcher: WatcherReport,
    /// What else does not work as it should while the node serves: a state directory that takes no files.
    #[serde(default)]
    pub problems: Vec<String>,
    pub node: NodeReport,
}

/// How often a trigger led to an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadCount {
    pub trigger: Trigger,
    pub result: Outcome,
    pub count: u64,
}

/// Whether edits will be noticed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WatcherReport {
    /// How changes are seen, in words: `inotify and 10 s poll`, `10 s poll`, `off`.
    pub method: String,
    /// The configuration file and its list files.
    pub files: Vec<String>,
    pub healthy: bool,
    /// Why it is not healthy, and what to do.
    pub problem: Option<String>,
}

/// What the node itself contributes: identity, addresses, connections, relay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeReport {
    pub name: String,
    pub peer_id: String,
    /// The key file when this start has created it.
    pub new_key: Option<String>,
    /// Addresses that listeners are bound to, without `/p2p/<id>`.
    pub listening: Vec<String>,
    /// `transport.announce`, without `/p2p/<id>`.
    pub announced: Vec<String>,
    pub connections: Connections,
    pub relay: relay::Report,
    pub reach: Option<ReachReport>,
    /// Absent without `[network]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkReport>,
    /// Absent while `vpn.enabled` is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vpn: Option<VpnReport>,
    /// What does not work as it should.
    #[serde(skip)]
    pub problems: Vec<String>,
    /// Tasks that ended by a panic since the start; anything but 0 is a fault worth reporting.
    pub panics: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Connections {
    pub established: u32,
    /// Not yet through their handshake.
    pub pending: u32,
    /// Distinct peers among the established ones.
    pub peers: u32,
    /// `limits.connections`.
    pub max: u32,
    /// Refused by `[limits]` or `transport.block` since the start.
    pub refused_total: u64,
}
