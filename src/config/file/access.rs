//! `[acl]`, `[[acl.list]]` and `[[acl.test]]`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use validator::Validate;

use crate::config::{
    names::{MaybeAddress, PeerName, PeerOrNetwork},
    units::Span,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct AccessFile {
    /// Who may hold a reservation without an entry in `allow` or in a list. Left out, it is `"members"` with `[network]`,
    /// else `"listed"`. A tightened value ends the reservations and circuits it no longer allows within two seconds.
    ///
    /// Environment: `EDGEVPN_RELAY_SERVICE_NETWORK_ONLY`. Example: `reserve = "anyone"`.
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub reserve: AudienceFile,

    /// Who may open a circuit to a peer that holds a reservation.
    ///
    /// Example: `connect = "listed"`.
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub connect: AudienceFile,

    /// Slowest re-read of members and list files; a change that is seen earlier is applied earlier.
    ///
    /// Environment: `EDGEVPN_RELAY_SERVICE_ACL_REFRESH`. Example: `refresh = "5m"`.
    #[schemars(extend("x-edgevpn-reload" = "live", "x-edgevpn-minimum" = "1s", "x-edgevpn-maximum" = "1h"))]
    pub refresh: Span,

    /// With `"members"`: how long strangers are admitted after the start while no member is known yet, so that the first
    /// members of a network can meet through this node. They share 16 reservations of at most two minutes each. The time
    /// ends for good with the first member that is known, or when it is over; `"0s"` admits no stranger ever.
    ///
    /// Example: `bootstrap = "0s"`.
    #[schemars(extend("x-edgevpn-reload" = "live", "x-edgevpn-minimum" = "0s", "x-edgevpn-maximum" = "1h"))]
    pub bootstrap: Span,

    /// Peer ids, IP addresses and CIDRs that may reserve and connect, unless an entry of `deny` says otherwise.
    ///
    /// Example: `allow = ["12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN", "198.51.100.0/24"]`.
    #[validate(length(max = 100000))]
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub allow: Vec<PeerOrNetwork>,

    /// Peer ids, IP addresses and CIDRs that may neither reserve nor connect, nor be connected to. Wins over everything.
    /// It is about relaying only: see `transport.block` for connecting at all.
    ///
    /// Example: `deny = ["203.0.113.0/24"]`.
    #[validate(length(max = 100000))]
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub deny: Vec<PeerOrNetwork>,

    /// Whether decisions bite.
    ///
    /// Example: `mode = "shadow"`.
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub mode: ModeFile,

    /// Allow and deny lists in files of their own, watched like this one.
    #[validate(length(max = 1000))]
    #[validate(nested)]
    pub list: Vec<ListFile>,

    /// Policy tests. `validate`, `plan` and every reload run them, and a failing one rejects the file.
    #[validate(length(max = 10000))]
    #[validate(nested)]
    pub test: Vec<TestFile>,
}

impl Default for AccessFile {
    fn default() -> Self {
        Self {
            reserve: AudienceFile::Listed,
            connect: AudienceFile::Anyone,
            refresh: Span(Duration::from_secs(30)),
            bootstrap: Span(Duration::from_secs(120)),
            allow: Vec::new(),
            deny: Vec::new(),
            mode: ModeFile::Enforce,
            list: Vec::new(),
            test: Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AudienceFile {
    /// Members of the network, and those with an entry in `allow` or in an allow list.
    Members,
    /// Only those with an entry in `allow` or in an allow list.
    Listed,
    /// Everybody but those with a deny entry.
    Anyone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModeFile {
    /// What is not allowed is refused.
    Enforce,
    /// Decisions are made and reported, nobody is refused.
    Shadow,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct ListFile {
    /// Name of the list in `plan`, `status` and logs. Each list has its own.
    ///
    /// Example: `name = "ops"`.
    #[validate(length(min = 1, max = 64))]
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub name: String,

    /// What an entry of the list means.
    ///
    /// Example: `action = "allow"`.
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub action: ActionFile,

    /// The list: one peer id, IP address or CIDR a line; `#` starts a comment. A relative path starts at the directory of
    /// this file. At most 1,000,000 lines.
    ///
    /// Example: `file = "allow.d/ops.txt"`.
    #[validate(length(min = 1, max = 4096))]
    #[schemars(pattern("^[^\\u0000]*$"), extend("x-edgevpn-reload" = "live"))]
    pub file: String,

    /// How long the last content of the list stays in force while the file cannot be read. After that an allow list
    /// counts as empty, a deny list keeps its last content.
    ///
    /// Example: `max_stale = "1h"`.
    #[serde(default = "a_day")]
    #[schemars(extend("x-edgevpn-reload" = "live", "x-edgevpn-minimum" = "1s", "x-edgevpn-maximum" = "365d"))]
    pub max_stale: Span,
}

fn a_day() -> Span {
    Span(Duration::from_secs(24 * 3600))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActionFile {
    /// Its entries are admitted.
    Allow,
    /// Its entries are refused.
    Deny,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct TestFile {
    /// What is tested, as a sentence. Each test has its own.
    ///
    /// Example: `name = "the lab range cannot reserve"`.
    #[validate(length(min = 1, max = 200))]
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub name: String,

    /// The peer that asks.
    ///
    /// Example: `peer = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"`.
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub peer: PeerName,

    /// The IP address it asks from. Empty: unknown.
    ///
    /// Example: `address = "203.0.113.9"`.
    #[serde(default)]
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub address: MaybeAddress,

    /// Whether it is a member of the network.
    ///
    /// Example: `member = true`.
    #[serde(default)]
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub member: bool,

    /// What it must be allowed.
    ///
    /// Example: `allow = ["connect"]`.
    #[serde(default)]
    #[validate(length(max = 2))]
    #[schemars(extend("x-edgevpn-reload" = "live", "uniqueItems" = true))]
    pub allow: Vec<OperationFile>,

    /// What it must be denied.
    ///
    /// Example: `deny = ["reserve", "connect"]`.
    #[serde(default)]
    #[validate(length(max = 2))]
    #[schemars(extend("x-edgevpn-reload" = "live", "uniqueItems" = true))]
    pub deny: Vec<OperationFile>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationFile {
    /// Hold a reservation.
    Reserve,
    /// Open a circuit.
    Connect,
}
