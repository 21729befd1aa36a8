//! What a node says about its private network: who is a member, what the ledger holds, what it costs to keep up.

use crate::relay::admission::Requests;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One moment of the network this node is in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkReport {
    /// Names the network and tells nothing of its token.
    pub fingerprint: String,
    /// Networks that are read and spoken to as well (`network.accept_token_files`).
    pub accepted: Vec<String>,
    /// Members beside this node.
    pub members: u32,
    /// Known peers: members first, then those that are not and why; at most [`NetworkReport::MAX_PEERS`].
    pub peers: Vec<MemberReport>,
    /// Peers beyond those listed.
    pub peers_omitted: u32,
    /// Neighbours that exchange ledgers with this node directly.
    pub neighbours: u32,
    pub bootstrap: BootstrapReport,
    pub ledger: LedgerReport,
    pub gossip: Traffic,
    pub exchange: Traffic,
    /// Seconds until topics and keys change.
    pub rotation_in_s: u64,
    /// Seconds since the own heartbeat was written.
    pub heartbeat_age_s: Option<u64>,
    /// How often the system clock was set by more than 30 s since the start.
    pub clock_steps: u64,
    /// Messages and entries of peers that were not taken, by reason.
    pub rejected: BTreeMap<String, u64>,
}

impl NetworkReport {
    /// A status answer stays below 256 KiB with so many peers, whatever the ledger holds.
    pub const MAX_PEERS: usize = 256;
}

/// A peer that the ledger knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemberReport {
    pub peer: String,
    /// What it calls itself.
    pub name: String,
    pub version: String,
    /// Where it says it can be dialled.
    pub addresses: Vec<String>,
    pub member: bool,
    /// Why it is none; absent for members.
    pub why_not: Option<String>,
    /// Seconds since its last heartbeat, by its own clock.
    pub heartbeat_age_s: Option<u64>,
    /// `direct`, `relayed`; absent while it is not connected.
    pub path: Option<String>,
    pub rtt_ms: Option<f64>,
}

/// `acl.bootstrap`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BootstrapReport {
    pub open: bool,
    pub closes_in_s: Option<u64>,
    /// Why it is closed.
    pub why: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LedgerReport {
    pub entries: u64,
    /// Buckets, keys, values and signatures.
    pub bytes: u64,
    /// Entries taken over from others since the start.
    pub merged_total: u64,
}

/// What went over the wire since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    pub messages_in: u64,
    pub messages_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// Why a peer may or may not do something at this moment: the body of `GET /v1/explain`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Explanation {
    /// The name of the node that was asked.
    pub node: String,
    pub generation: crate::id::Generation,
    pub peer: String,
    /// `reserve` or `connect`.
    pub operation: String,
    pub admitted: bool,
    /// `acl.mode = "enforce"`; otherwise a refusal is only counted.
    pub enforced: bool,
    /// The key of the rule that decides: `acl.deny`, `acl.list.ops`, `acl.reserve`, `acl.bootstrap`.
    pub rule: String,
    /// What that key is set to, where it is one value: `"members"`.
    pub value: Option<String>,
    /// Where that rule stands: `edgevpn.toml:52`.
    pub origin: String,
    /// With an entry that decides: what would, were it not there.
    pub otherwise: Option<Otherwise>,
    /// `member`, `guest` or `stranger`.
    pub standing: String,
    /// What makes it so: `heartbeat 12 s old`, `tombstoned`, `never heard of`.
    pub because: String,
    /// From where the peer is connected; the decision is about the first of them.
    pub addresses: Vec<String>,
    /// `direct`, `relayed`; absent while it is not connected.
    pub path: Option<String>,
    /// Seconds until the reservation it holds expires.
    pub reserved_for_s: Option<u64>,
    /// Circuits it has, as source and as destination.
    pub circuits: u32,
    /// What it has asked within the last hour.
    pub requests: Option<Requests>,
}

/// The rule behind the one that decides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Otherwise {
    pub admitted: bool,
    pub rule: String,
    pub value: Option<String>,
    pub origin: String,
}
