//! The file, exactly as it is written. The documentation of a field is the manual: it goes into the schema, and from
//! there into editors and diagnostics.
//!
//! A key is added here, in `resolve`, and where it is used; tests say what was forgotten. Every leaf states what a
//! change of it costs (`x-edgevpn-reload`, see [`Class`](super::Class)) and its range (`range`, or
//! `x-edgevpn-minimum` and `x-edgevpn-maximum` for quantities with a unit).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use validator::Validate;

use super::{
    names::{ListenAddress, PeerAddress, PeerName, PeerOrNetwork, PublicAddress},
    units::Span,
};
use std::time::Duration;

mod access;
mod network;
mod operation;
mod relay;
mod vpn;

pub use access::{
    AccessFile, ActionFile, AudienceFile, ListFile, ModeFile, OperationFile, TestFile,
};
pub use network::{DiscoveryFile, LedgerFile, NetworkFile};
pub use operation::{ApiFile, LimitsFile, LogFile, ReloadFile};
pub use relay::{OnShrinkFile, RelayFile, ResourcesFile};
pub use vpn::{RouteFile, VpnFile};

/// An edgevpn node. Sections and keys may be left out; what is there must be known. Durations, sizes, rates and
/// bandwidths are strings with a unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Version of this format. Mandatory, so that a truncated or empty file is never a valid one.
    ///
    /// Example: `version = 1`.
    #[validate(range(min = 1, max = 1))]
    #[schemars(extend("x-edgevpn-reload" = "restart"))]
    pub version: u32,

    /// Who this node is and where it keeps its state.
    #[serde(default)]
    #[validate(nested)]
    pub node: NodeFile,

    /// The private network this node is a member of. Without this section it is in none: there are no members and no
    /// ledger.
    #[serde(default)]
    #[validate(nested)]
    pub network: NetworkFile,

    /// Connections: where to listen, what to tell others, whom to keep away.
    #[serde(default)]
    #[validate(nested)]
    pub transport: TransportFile,

    /// How members find each other.
    #[serde(default)]
    #[validate(nested)]
    pub discovery: DiscoveryFile,

    /// Peers that are always dialled and kept. One `[[peer]]` table each; an id appears once.
    #[serde(default)]
    #[validate(length(max = 10000))]
    #[validate(nested)]
    pub peer: Vec<PeerFile>,

    /// The virtual private network: carrying IP packets between members.
    #[serde(default)]
    #[validate(nested)]
    pub vpn: VpnFile,

    /// Circuit relay v2: carrying connections between peers that cannot reach each other.
    #[serde(default)]
    #[validate(nested)]
    pub relay: RelayFile,

    /// Who may use this node as a relay. A deny entry wins over everything, then an allow entry admits, then
    /// `reserve` or `connect` decides.
    #[serde(default)]
    #[validate(nested)]
    pub acl: AccessFile,

    /// The shared ledger: what members tell each other, and how long it counts.
    #[serde(default)]
    #[validate(nested)]
    pub ledger: LedgerFile,

    /// What this node spends on connections.
    #[serde(default)]
    #[validate(nested)]
    pub limits: LimitsFile,

    /// How this node is asked: by the commands `status`, `reload` and `plan`, and by Prometheus.
    #[serde(default)]
    #[validate(nested)]
    pub api: ApiFile,

    /// What is logged, and how.
    #[serde(default)]
    #[validate(nested)]
    pub log: LogFile,

    /// How changes of this file are noticed and applied.
    #[serde(default)]
    #[validate(nested)]
    pub reload: ReloadFile,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct NodeFile {
    /// Name of this node in logs and in `status`. Empty: the host name. It says nothing to other peers.
    ///
    /// Example: `name = "edge-7"`.
    #[validate(length(max = 253))]
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub name: String,

    /// Directory for the key and for what this node remembers; created with mode 0700. A relative path starts at
    /// the directory of this file. Empty: `$STATE_DIRECTORY` (set by systemd), else `/var/lib/edgevpn` for root, else
    /// `$XDG_STATE_HOME/edgevpn`, else `$HOME/.local/state/edgevpn`.
    ///
    /// Example: `state_dir = "/var/lib/edgevpn"`.
    #[validate(length(max = 4096))]
    #[schemars(pattern("^[^\\u0000]*$"), extend("x-edgevpn-reload" = "restart"))]
    pub state_dir: String,

    /// Private key of this node: Ed25519, in the protobuf form of libp2p. A relative path starts at `state_dir`. It is
    /// made on the first run with mode 0600; a key that others can read is refused. The peer id follows from it.
    ///
    /// Example: `key_file = "/etc/edgevpn/node.key"`.
    #[validate(length(min = 1, max = 4096))]
    #[schemars(pattern("^[^\\u0000]*$"), extend("x-edgevpn-reload" = "restart"))]
    pub key_file: String,
}

impl Default for NodeFile {
    fn default() -> Self {
        Self {
            name: String::new(),
            state_dir: String::new(),
            key_file: "node.key".to_owned(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct TransportFile {
    /// Addresses to listen on: `/ip4` or `/ip6`, then `/tcp/PORT`, `/tcp/PORT/ws` (WebSocket) or `/udp/PORT/quic-v1`.
    /// Port 0 lets the system choose. Empty: this node is not reachable. A change binds new addresses before it
    /// leaves old ones; connections stay.
    ///
    /// Example: `listen = ["/ip4/0.0.0.0/tcp/4501", "/ip4/0.0.0.0/udp/4501/quic-v1"]`.
    #[validate(length(max = 64))]
    #[schemars(extend("x-edgevpn-reload" = "rebind", "uniqueItems" = true))]
    pub listen: Vec<ListenAddress>,

    /// Addresses under which others reach this node, if they differ from those it listens on: behind a port
    /// forwarding or a load balancer, or by name. They go into `identify` and into every reservation. Empty: those it listens on.
    ///
    /// Example: `announce = ["/dns4/hub.example.org/tcp/4501"]`.
    #[validate(length(max = 64))]
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub announce: Vec<PublicAddress>,

    /// Ask the router of this site to forward the ports of the listeners (UPnP), and announce what it opened.
    ///
    /// Example: `port_mapping = false`.
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub port_mapping: bool,

    /// Turn connections that go through a relay into direct ones where the routers between allow it (DCUtR).
    ///
    /// Example: `hole_punch = false`.
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub hole_punch: bool,

    /// How long an outgoing connection may take until it is secured and multiplexed.
    ///
    /// Example: `dial_timeout = "5s"`.
    #[schemars(extend("x-edgevpn-reload" = "live", "x-edgevpn-minimum" = "1s", "x-edgevpn-maximum" = "5m"))]
    pub dial_timeout: Span,

    /// Peer ids, IP addresses and CIDRs that are neither dialled nor accepted, at connection level; existing
    /// connections of a newly blocked peer are closed. To keep a peer from relaying only, see `acl.deny`.
    ///
    /// Example: `block = ["203.0.113.0/24"]`.
    #[validate(length(max = 100000))]
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub block: Vec<PeerOrNetwork>,
}

impl Default for TransportFile {
    fn default() -> Self {
        let listen = [
            "/ip4/0.0.0.0/tcp/0",
            "/ip4/0.0.0.0/udp/0/quic-v1",
            "/ip6/::/tcp/0",
            "/ip6/::/udp/0/quic-v1",
        ];
        Self {
            listen: listen
                .iter()
                .filter_map(|address| address.parse().ok())
                .collect(),
            announce: Vec::new(),
            port_mapping: true,
            hole_punch: true,
            dial_timeout: Span(Duration::from_secs(15)),
            block: Vec::new(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct PeerFile {
    /// Peer id, in base58 or as a CIDv1.
    ///
    /// Example: `id = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"`.
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub id: PeerName,

    /// Addresses to dial it at, in any order; each may end in `/p2p/<id>` of this very peer. A circuit through a
    /// relay is an address too: `/dns4/hub.example.org/tcp/4501/p2p/<relay>/p2p-circuit`.
    ///
    /// Example: `addresses = ["/dns4/hub.example.org/tcp/4501"]`.
    #[validate(length(min = 1, max = 64))]
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub addresses: Vec<PeerAddress>,
}
