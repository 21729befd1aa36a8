//! What a running node says about itself: the body of `GET /v1/status`, and the source of every metric.

use crate::relay;
use serde::{Deserialize, Serialize};

/// How often a trigger led to an outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadCount {
    pub trigger: String,
    pub result: String,
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
