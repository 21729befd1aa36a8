//! `[network]`, `[discovery]` and `[ledger]`: the private network, how its members find each other, what they share.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use validator::Validate;

use crate::{
    config::{
        names::{CredentialName, PathName, PeerWithAddress, TokenText, VariableName},
        units::{Size, Span},
    },
    ledger::Ownership,
};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkFile {
    /// File that holds the token of the network, as `edgevpn token new` writes it. A relative path starts at the directory
    /// of this file. It is watched like this one and must be kept from others: a file that anybody can read, or that
    /// others than its owner can write, is refused. A new token in it makes the node leave one network and join the other.
    /// One of the four token keys is set, and no more.
    ///
    /// Example: `token_file = "/etc/edgevpn/token"`.
    #[validate(length(max = 4096))]
    #[schemars(pattern("^[^\\u0000]*$"), extend("x-edgevpn-reload" = "rejoin"))]
    pub token_file: String,

    /// Name of the systemd credential that holds the token: the file of this name in `$CREDENTIALS_DIRECTORY`, which
    /// `LoadCredential=` or `LoadCredentialEncrypted=` of the unit provides.
    ///
    /// Example: `token_credential = "edgevpn.token"`.
    #[schemars(extend("x-edgevpn-reload" = "rejoin"))]
    pub token_credential: CredentialName,

    /// Environment variable that holds the token. It is read when the node starts; to change the token of a running node,
    /// keep it in a file.
    ///
    /// Example: `token_env = "SITE_TOKEN"`.
    #[schemars(extend("x-edgevpn-reload" = "rejoin"))]
    pub token_env: VariableName,

    /// The token itself. Whoever reads this file can then join the network: better keep it in a file of its own.
    ///
    /// Environment: `EDGEVPNTOKEN`. Example: `token = "b3RwOgogIGRodDoK"`.
    #[schemars(length(max = 65536), extend("x-edgevpn-reload" = "rejoin"))]
    pub token: TokenText,

    /// Files with tokens that are accepted beside the own one while a network moves from one token to the next: the node
    /// listens and speaks under each of them. To rotate without losing a message, list the new token here on every node,
    /// then make it the own one and list the old one here, then empty the list.
    ///
    /// Example: `accept_token_files = ["/etc/edgevpn/next.token"]`.
    #[validate(length(max = 8))]
    #[schemars(extend("x-edgevpn-reload" = "live", "uniqueItems" = true))]
    pub accept_token_files: Vec<PathName>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct DiscoveryFile {
    /// Peers of the distributed hash table that are asked first; each address ends in `/p2p/<id>`. Empty: those of the
    /// public IPFS network.
    ///
    /// Example: `bootstrap_peers = ["/dns4/hub.example.org/tcp/4501/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"]`.
    #[validate(length(max = 64))]
    #[schemars(extend("x-edgevpn-reload" = "live", "uniqueItems" = true))]
    pub bootstrap_peers: Vec<PeerWithAddress>,

    /// Look for members on the links of this host by multicast DNS, and answer those that look. It needs a network.
    ///
    /// Example: `mdns = false`.
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub mdns: bool,

    /// Look for members through the distributed hash table, and be found there, under names that only holders of the token
    /// can derive. It needs a network. Without it and without `mdns` a node knows `[[peer]]` and whom those lead it to.
    ///
    /// Example: `dht = false`.
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub dht: bool,

    /// How often members are looked up in the distributed hash table, and this node is announced there.
    ///
    /// Example: `dht_interval = "10m"`.
    #[schemars(extend("x-edgevpn-reload" = "live", "x-edgevpn-minimum" = "10s", "x-edgevpn-maximum" = "24h"))]
    pub dht_interval: Span,
}

impl Default for DiscoveryFile {
    fn default() -> Self {
        Self {
            bootstrap_peers: Vec::new(),
            mdns: true,
            dht: true,
            dht_interval: Span(Duration::from_secs(180)),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct LedgerFile {
    /// What is asked of an entry before it is merged. It must be the same across the network.
    ///
    /// Example: `ownership = "observe"`.
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub ownership: Ownership,

    /// How often this node says that it lives.
    ///
    /// Example: `heartbeat = "30s"`.
    #[schemars(extend("x-edgevpn-reload" = "live", "x-edgevpn-minimum" = "1s", "x-edgevpn-maximum" = "1h"))]
    pub heartbeat: Span,

    /// Entries that one author may have in the ledger, all buckets together; what is beyond is not merged.
    ///
    /// Example: `quota_entries = 1024`.
    #[validate(range(min = 8, max = 1000000))]
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub quota_entries: u32,

    /// Bytes that the keys and values of one author may take, all buckets together.
    ///
    /// Example: `quota_bytes = "1MiB"`.
    #[schemars(extend("x-edgevpn-reload" = "live", "x-edgevpn-minimum" = "4KiB", "x-edgevpn-maximum" = "1GiB"))]
    pub quota_bytes: Size,

    /// How long after its last heartbeat a peer counts as a member, and how long an entry whose author has gone is kept
    /// from others: four heartbeats. At least two. It must be the same across the network.
    ///
    /// Example: `ownership_ttl = "2m"`.
    #[schemars(extend("x-edgevpn-reload" = "live", "x-edgevpn-minimum" = "2s", "x-edgevpn-maximum" = "24h"))]
    pub ownership_ttl: Span,

    /// How often own entries are compared with the ledger, and written again where somebody has changed them.
    ///
    /// Example: `announce_interval = "1m"`.
    #[schemars(extend("x-edgevpn-reload" = "live", "x-edgevpn-minimum" = "1s", "x-edgevpn-maximum" = "1h"))]
    pub announce_interval: Span,

    /// How often the ledger is compared with those of others. What changes is told at once in any case; while nothing
    /// changes, comparisons become rarer by themselves.
    ///
    /// Example: `sync_interval = "30s"`.
    #[schemars(extend("x-edgevpn-reload" = "live", "x-edgevpn-minimum" = "1s", "x-edgevpn-maximum" = "1h"))]
    pub sync_interval: Span,
}

impl Default for LedgerFile {
    fn default() -> Self {
        Self {
            ownership: Ownership::Enforce,
            heartbeat: Span(Duration::from_secs(120)),
            quota_entries: 256,
            quota_bytes: Size(64 << 10),
            ownership_ttl: Span(Duration::from_secs(480)),
            announce_interval: Span(Duration::from_secs(10)),
            sync_interval: Span(Duration::from_secs(10)),
        }
    }
}
