//! What a running node says about its overlay.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `[vpn]` at work.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VpnReport {
    pub interface: String,
    /// With the length of their prefixes.
    pub addresses: Vec<String>,
    pub mtu: u16,
    /// UDP port of direct datagrams.
    pub port: Option<u16>,
    pub peers: Vec<VpnPeer>,
    /// Packets that went no further, by reason; those of peers included.
    pub dropped: BTreeMap<String, u64>,
    /// What does not work: addresses that are taken.
    pub conflicts: Vec<String>,
}

/// A member that has an address.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VpnPeer {
    pub peer: String,
    pub addresses: Vec<String>,
    /// `direct`, `stream`, `relayed stream`, `edgevpn`, or `none` while nothing was sent.
    pub carrier: String,
    /// Where its datagrams go.
    pub remote: Option<String>,
    /// Round trip of the last probe of a direct path.
    pub rtt_ms: Option<f64>,
    /// The largest datagram that is known to go through.
    pub datagram: Option<u64>,
    pub sent: VpnTraffic,
    pub received: VpnTraffic,
    pub queued_bytes: u64,
    pub dropped: BTreeMap<String, u64>,
}

/// Since the peer was first known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VpnTraffic {
    /// As carried: a super-packet in a stream counts as one.
    pub packets: u64,
    pub bytes: u64,
}
