//! The configuration file: text in, a [`Config`] or all diagnostics out.
//!
//! ```text
//! bytes → document (UTF-8, TOML, spans) → check (against the schema of `file`) → environment → file → resolve → Config
//! ```
//!
//! List files are read by the caller between [`parse`] and [`Draft::resolve`], so that nothing here touches a disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use libp2p::Multiaddr;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    acl::{Acl, Action, Audience, Entries, Mode, Rules},
    id::{Generation, Origin, PeerId},
    ledger::Ownership,
    relay::{self, Limit},
    wire::Token,
};

mod check;
pub mod diagnostic;
mod document;
mod environment;
pub mod file;
mod keys;
mod list;
pub mod literal;
pub mod manual;
pub mod names;
mod policy;
mod resolve;
mod rules;
pub mod schema;
mod secret;
mod shape;
pub mod units;

pub use diagnostic::{Code, Diagnostic, Format, Severity};
pub use document::LARGEST_FILE;
pub use document::conceal::{with_token_of, without_secrets};
pub use list::MOST_LINES;
pub use names::LONGEST_TOKEN;
pub use resolve::{Draft, parse};
pub use schema::class_of;

/// More findings than this about one file are left out.
const MOST_DIAGNOSTICS: usize = 100;

/// What a node runs. An invalid one cannot be built from a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub node: Node,
    pub transport: Transport,
    pub peers: Vec<Peer>,
    pub relay: relay::Settings,
    pub acl: Arc<Acl>,
    pub access: Access,
    /// `None`: this node is in no network; there is no gossip, no ledger and there are no members.
    pub network: Option<Network>,
    pub discovery: Discovery,
    pub ledger: Ledger,
    pub relay_client: RelayClient,
    pub vpn: Vpn,
    pub limits: Limits,
    pub api: Api,
    pub log: Log,
    pub reload: Reload,
    /// Every effective key, for comparing two configurations and for saying where a value comes from.
    pub keys: Keys,
}

/// One configuration in force, with its number. Whoever reads live values holds a receiver of it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub generation: Generation,
    pub config: Arc<Config>,
}

/// `[node]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub state_dir: PathBuf,
    /// Joined with `state_dir`.
    pub key_file: PathBuf,
}

/// `[transport]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transport {
    pub listen: Vec<Multiaddr>,
    /// Empty: the addresses of the listeners.
    pub announce: Vec<Multiaddr>,
    pub dial_timeout: Duration,
    /// UPnP.
    pub port_mapping: bool,
    /// DCUtR.
    pub hole_punch: bool,
    pub block: Block,
}

/// `transport.block`: neither dialled nor accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    pub peers: BTreeSet<PeerId>,
    pub networks: Vec<IpNet>,
}

/// `[[peer]]`: always dialled and kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub id: PeerId,
    /// Without a trailing `/p2p/<id>`.
    pub addresses: Vec<Multiaddr>,
}

/// The files behind `acl`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Slowest re-read of members and list files.
    pub refresh: Duration,
    /// With `reserve = "members"`: how long strangers are admitted before a member is known.
    pub bootstrap: Duration,
    pub lists: Vec<AccessList>,
}

/// `[[acl.list]]`. Its entries are in the compiled `acl`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessList {
    pub name: Arc<str>,
    pub action: Action,
    pub path: PathBuf,
    /// How long its last content may stand in for a file that cannot be read.
    pub max_stale: Duration,
}

/// `[network]`.
#[derive(Clone, PartialEq, Eq)]
pub struct Network {
    pub token: Arc<Token>,
    /// Read and announced in as well, while a rotation is under way.
    pub accepted: Vec<Arc<Token>>,
}

/// `[discovery]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// Empty: those of the public IPFS network.
    pub bootstrap_peers: Vec<Peer>,
    pub mdns: bool,
    pub dht: bool,
    pub dht_interval: Duration,
}

/// `[ledger]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    pub ownership: Ownership,
    pub heartbeat: Duration,
    /// Per author, all buckets together.
    pub quota_entries: u32,
    /// Bytes, likewise.
    pub quota_bytes: u64,
    pub ownership_ttl: Duration,
    pub announce_interval: Duration,
    pub sync_interval: Duration,
}

/// `relay.client`, `relay.peers` and `relay.static_only`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayClient {
    pub enabled: bool,
    /// Static relays.
    pub peers: Vec<Peer>,
    pub static_only: bool,
}

/// `[vpn]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vpn {
    pub enabled: bool,
    pub interface: String,
    /// Each with the length of its prefix.
    pub addresses: Vec<IpNet>,
    /// Bytes.
    pub mtu: u16,
    /// UDP port of direct datagrams; 0 is the system's choice.
    pub port: u16,
    pub routes: Vec<VpnRoute>,
    /// Prefixes this node routes for others.
    pub advertise: Vec<IpNet>,
}

/// `vpn.routes`: a prefix behind a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VpnRoute {
    pub to: IpNet,
    pub via: IpAddr,
}

/// `[limits]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub connections: u32,
    pub connections_per_peer: u32,
    pub pending: u32,
    /// Bytes.
    pub memory: u64,
}

/// `[api]`. `None` is off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    pub socket: Option<PathBuf>,
    pub metrics: Option<SocketAddr>,
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Directives of tracing-subscriber, checked.
    pub level: String,
    pub format: LogFormat,
}

/// `log.format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[reload]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reload {
    pub watch: Watch,
    pub settle: Duration,
    pub poll_interval: Duration,
    pub max_impact: Class,
    /// `None`: a reload needs no confirmation.
    pub confirm: Option<Duration>,
    pub history: u32,
}

/// `reload.watch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Watch {
    /// File events, with polling behind them.
    Auto,
    /// Contents are compared every `poll_interval`.
    Poll,
    /// Not at all.
    Off,
}

/// What changing a key costs a running node; a later one costs more.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// A swap in place; nothing is cut that the new file still allows.
    Live,
    /// One listener is made anew, new before old.
    Rebind,
    /// The node leaves one network and joins another.
    Rejoin,
    /// Refused while running.
    Restart,
}

/// Every effective key path with its value. Tables of an array go by identity: `peer.<id>.addresses`,
/// `acl.list.<name>.file`, `acl.test.<name>.allow`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Keys(BTreeMap<String, Effective>);

/// One effective value and who set it.
#[derive(Clone, Debug, PartialEq)]
pub struct Effective {
    /// As the file would write it, in canonical form: `"1h30m"`, never `"90m"`.
    pub value: serde_json::Value,
    pub origin: Origin,
}

impl Config {
    /// What runs before the first file is applied: nothing. Start-up is a change from it.
    pub fn empty() -> Config {
        let rules = Rules {
            reserve: Audience::Listed,
            connect: Audience::Listed,
            reserve_origin: Origin::Default,
            connect_origin: Origin::Default,
            bootstrap_origin: Origin::Default,
            mode: Mode::Enforce,
            entries: Entries::default(),
            tests: Vec::new(),
        };
        Config {
            node: Node {
                name: String::new(),
                state_dir: PathBuf::new(),
                key_file: PathBuf::new(),
            },
            transport: Transport {
                listen: Vec::new(),
                announce: Vec::new(),
                dial_timeout: Duration::from_secs(15),
                port_mapping: false,
                hole_punch: false,
                block: Block::default(),
            },
            peers: Vec::new(),
            relay: relay::Settings {
                service: false,
                on_shrink: relay::OnShrink::Drain,
                resources: relay::Resources {
                    max_data: Limit::At(0),
                    max_duration: Limit::At(Duration::ZERO),
                    max_circuits: 0,
                    reservation_ttl: Duration::from_secs(1),
                    buffer_size: 0,
                    max_reservations: 0,
                    max_reservations_per_ip: 0,
                    max_circuits_total: 0,
                    reservation_rate: Limit::Unlimited,
                    circuit_rate: Limit::Unlimited,
                    bandwidth: Limit::Unlimited,
                    bandwidth_per_circuit: Limit::Unlimited,
                    max_buffers: 0,
                },
            },
            acl: Arc::new(Acl::compile(rules)),
            access: Access {
                refresh: Duration::from_secs(30),
                bootstrap: Duration::ZERO,
                lists: Vec::new(),
            },
            network: None,
            discovery: Discovery {
                bootstrap_peers: Vec::new(),
                mdns: false,
                dht: false,
                dht_interval: Duration::from_secs(180),
            },
            ledger: Ledger {
                ownership: Ownership::Enforce,
                heartbeat: Duration::from_secs(120),
                quota_entries: 256,
                quota_bytes: 64 * 1024,
                ownership_ttl: Duration::from_secs(480),
                announce_interval: Duration::from_secs(10),
                sync_interval: Duration::from_secs(10),
            },
            relay_client: RelayClient {
                enabled: false,
                peers: Vec::new(),
                static_only: false,
            },
            vpn: Vpn {
                enabled: false,
                interface: String::new(),
                addresses: Vec::new(),
                mtu: 1420,
                port: 0,
                routes: Vec::new(),
                advertise: Vec::new(),
            },
            limits: Limits {
                connections: 0,
                connections_per_peer: 0,
                pending: 0,
                memory: 0,
            },
            api: Api {
                socket: None,
                metrics: None,
            },
            log: Log {
                level: "info".to_owned(),
                format: LogFormat::Auto,
            },
            reload: Reload {
                watch: Watch::Off,
                settle: Duration::ZERO,
                poll_interval: Duration::from_secs(10),
                max_impact: Class::Restart,
                confirm: None,
                history: 0,
            },
            keys: Keys::default(),
        }
    }
}

impl Keys {
    pub fn get(&self, key: &str) -> Option<&Effective> {
        self.0.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Effective)> {
        self.0
            .iter()
            .map(|(key, effective)| (key.as_str(), effective))
    }

    /// How many keys the file itself sets.
    pub fn set_in_file(&self) -> usize {
        self.0
            .values()
            .filter(|effective| matches!(effective.origin, Origin::File { .. }))
            .count()
    }
}

impl Vpn {
    /// Whether `address` is one of the overlay. A connection over it would carry its own packets in circles.
    pub fn holds(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.enabled
            && self
                .addresses
                .iter()
                .any(|own| own.trunc().contains(&address))
    }
}

impl std::fmt::Debug for Network {
    /// Without the secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network")
            .field("accepted", &self.accepted.len())
            .finish_non_exhaustive()
    }
}

impl Block {
    /// Whether one of the networks holds `address`; an IPv4-mapped IPv6 address counts as IPv4.
    pub fn holds_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks
            .iter()
            .any(|network| network.contains(&address))
    }
}

impl Class {
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Live => "live",
            Class::Rebind => "rebind",
            Class::Rejoin => "rejoin",
            Class::Restart => "restart",
        }
    }
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// A file as its reader found it.
#[derive(Clone, Debug)]
pub struct Source {
    /// As the operator wrote it; diagnostics show it.
    pub name: String,
    pub bytes: Vec<u8>,
}

/// What a configuration depends on beside its text.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    pub env: BTreeMap<String, String>,
    pub host_name: String,
    /// Directory of the file: relative paths start there.
    pub directory: PathBuf,
    /// Whether the node runs as root, which decides where state and sockets go.
    pub root: bool,
}

/// A list file as its reader found it.
#[derive(Clone, Debug)]
pub struct ListFile {
    /// One of [`Draft::list_files`].
    pub path: PathBuf,
    /// The bytes, or why they could not be read.
    pub content: Result<Vec<u8>, String>,
}

/// A token file as its reader found it.
#[derive(Clone, Debug)]
pub struct SecretFile {
    /// One of [`Draft::secret_files`].
    pub path: PathBuf,
    pub content: Result<Secret, SecretFault>,
}

/// What a token file holds, and who can get at it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    pub bytes: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Its owner, if that is neither root nor the user of this process.
    pub foreign_owner: Option<u32>,
}

/// Why a token file is not used. Says nothing of what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretFault {
    pub reason: String,
    /// What to do.
    pub help: String,
}

impl Secret {
    /// Who but the owner has access that a secret does not bear. Its group may read it: that is how a service gets at what
    /// an administrator keeps.
    pub fn exposure(&self, path: &Path) -> Option<SecretFault> {
        const OTHERS_READ: u32 = 0o004;
        const OTHERS_WRITE: u32 = 0o022;
        let path = path.display();
        let mode = self.mode & 0o777;
        let fault = |reason: String, help: String| Some(SecretFault { reason, help });
        if let Some(owner) = self.foreign_owner {
            return fault(
                format!("{path} belongs to user {owner}, who can change it at will"),
                format!("run: chown root {path}"),
            );
        }
        if mode & OTHERS_WRITE != 0 {
            return fault(
                format!("others can write {path} (mode {mode:04o})"),
                format!("run: chmod go-w,o-r {path}"),
            );
        }
        if mode & OTHERS_READ != 0 {
            return fault(
                format!("anybody can read {path} (mode {mode:04o})"),
                format!("run: chmod o-r {path}"),
            );
        }
        None
    }
}

impl std::fmt::Debug for Secret {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret")
            .field("mode", &format_args!("{:04o}", self.mode))
            .finish_non_exhaustive()
    }
}

/// The verdict on one file.
#[derive(Clone, Debug)]
pub struct Checked {
    /// As the operator wrote it.
    pub name: String,
    /// Present exactly when no diagnostic is an error.
    pub config: Option<Config>,
    /// Errors and warnings in file order.
    pub diagnostics: Vec<Diagnostic>,
    pub summary: Summary,
}

/// What a file held, for the line that reports success.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Keys the file sets.
    pub keys: usize,
    pub list_files: usize,
    /// Entries in all list files.
    pub list_entries: usize,
    /// Policy tests run, all of which passed if the file is valid.
    pub policy_tests: usize,
}

impl Config {
    /// A configuration from its text alone, as if it lay in the current directory of a host without environment. Its
    /// list files count as unreadable.
    pub fn from_toml(text: &str) -> Result<Config, Rejected> {
        let source = Source {
            name: "edgevpn.toml".to_owned(),
            bytes: text.as_bytes().to_vec(),
        };
        let mut checked = parse(source, &Surroundings::default()).resolve(Vec::new());
        checked
            .config
            .take()
            .ok_or_else(|| Rejected(Box::new(checked)))
    }
}

/// Runs any bytes through the whole pipeline, as a file and as each of its lists. What fuzzing calls.
pub fn examine(bytes: &[u8]) -> Checked {
    let source = Source {
        name: "any.toml".to_owned(),
        bytes: bytes.to_vec(),
    };
    let draft = parse(source, &Surroundings::default());
    let lists = draft.list_files().into_iter().map(|path| ListFile {
        path,
        content: Ok(bytes.to_vec()),
    });
    let lists = lists.collect();
    draft.resolve(lists)
}

/// A text that is no configuration.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{} is rejected: {}", .0.name, .0.diagnostics.iter().map(Diagnostic::short).collect::<Vec<_>>().join("; "))]
pub struct Rejected(pub Box<Checked>);

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(text: &str) -> Vec<String> {
        let Rejected(checked) = Config::from_toml(text).expect_err("it is rejected");
        checked.diagnostics.iter().map(Diagnostic::short).collect()
    }

    #[test]
    fn a_version_is_a_whole_configuration() {
        let config = Config::from_toml("version = 1\n").expect("valid");
        assert!(config.relay.service);
        assert_eq!(config.relay.resources.max_data, Limit::At(1 << 30));
        assert_eq!(config.transport.listen.len(), 4);
        assert_eq!(config.keys.set_in_file(), 1);
    }

    #[test]
    fn every_finding_is_reported_at_once() {
        let text = "version = 1\n[relay.resources]\nmax_duration = 1800\nmax_circuit = 128\n[log]\nlevel = \"loud\"\n";
        assert_eq!(
            rejected(text),
            [
                "edgevpn.toml:3:16: error[EV0102]: `relay.resources.max_duration` is not a duration",
                "edgevpn.toml:4:1: error[EV0101]: unknown key `relay.resources.max_circuit`",
                "edgevpn.toml:6:9: error[EV0102]: `log.level` is not a log level",
            ]
        );
    }

    #[test]
    fn an_empty_text_is_no_configuration() {
        assert_eq!(
            rejected(""),
            ["edgevpn.toml:1:1: error[EV0701]: the file is empty"]
        );
    }

    #[test]
    fn the_file_wins_over_the_environment_and_that_over_defaults() {
        let surroundings = Surroundings {
            env: BTreeMap::from([
                ("EDGEVPN_RELAY_MAX_DATA".to_owned(), "1048576".to_owned()),
                ("EDGEVPN_RELAY_MAX_CIRCUITS".to_owned(), "16".to_owned()),
                (
                    "EDGEVPN_RELAY_RESERVATION_TTL".to_owned(),
                    "3600s".to_owned(),
                ),
                (
                    "EDGEVPN_RELAY_SERVICE_NETWORK_ONLY".to_owned(),
                    "false".to_owned(),
                ),
            ]),
            ..Surroundings::default()
        };
        let text = "version = 1\n[relay.resources]\nmax_circuits = 32\nreservation_ttl = \"1h\"\n";
        let source = Source {
            name: "e.toml".to_owned(),
            bytes: text.as_bytes().to_vec(),
        };
        let checked = parse(source, &surroundings).resolve(Vec::new());
        let short: Vec<_> = checked.diagnostics.iter().map(Diagnostic::short).collect();
        assert_eq!(
            short,
            [
                "e.toml:3:16: warning[EV0602]: `relay.resources.max_circuits` is set here and by EDGEVPN_RELAY_MAX_CIRCUITS"
            ]
        );
        let config = checked.config.expect("valid");
        assert_eq!(config.relay.resources.max_circuits, 32);
        assert_eq!(config.relay.resources.max_data, Limit::At(1 << 20));
        let origin = |key| {
            config
                .keys
                .get(key)
                .map(|effective| effective.origin.to_string())
        };
        assert_eq!(
            origin("relay.resources.max_data").as_deref(),
            Some("env EDGEVPN_RELAY_MAX_DATA")
        );
        assert_eq!(
            origin("relay.resources.max_circuits").as_deref(),
            Some("e.toml:3")
        );
        assert_eq!(
            origin("acl.reserve").as_deref(),
            Some("env EDGEVPN_RELAY_SERVICE_NETWORK_ONLY")
        );
        assert_eq!(origin("acl.connect").as_deref(), Some("default"));
    }

    #[test]
    fn the_environment_alone_makes_a_member_of_a_network() {
        let token = Token::generate(360, |bytes: &mut [u8]| bytes.fill(7));
        let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let surroundings = Surroundings {
            env: BTreeMap::from([
                variable("EDGEVPNTOKEN", &token.to_base64()),
                variable("EDGEVPN_RELAY_SERVICE_NETWORK_ONLY", "true"),
            ]),
            ..Surroundings::default()
        };
        let source = Source {
            name: "e.toml".to_owned(),
            bytes: b"version = 1\n".to_vec(),
        };
        let checked = parse(source, &surroundings).resolve(Vec::new());
        assert_eq!(checked.diagnostics, []);
        let config = checked.config.expect("valid");
        let network = config.network.expect("a network");
        assert_eq!(network.token.fingerprint(), token.fingerprint());
        let told = |key: &str| {
            let effective = config.keys.get(key).expect(key);
            (effective.value.clone(), effective.origin.to_string())
        };
        let fingerprint = serde_json::json!(token.fingerprint().to_string());
        assert_eq!(
            told("network.token"),
            (fingerprint, "env EDGEVPNTOKEN".into())
        );
        let origin = "env EDGEVPN_RELAY_SERVICE_NETWORK_ONLY";
        assert_eq!(told("acl.reserve"), ("members".into(), origin.into()));
    }

    #[test]
    fn a_network_makes_reservations_a_matter_of_members() {
        let token = Token::generate(360, |bytes: &mut [u8]| bytes.fill(7)).to_base64();
        let config = |more: &str| {
            let text = format!("version = 1\nnetwork.token = \"{token}\"\n{more}");
            Config::from_toml(&text).expect("valid")
        };
        let reserve = |config: &Config| config.keys.get("acl.reserve").map(|set| set.value.clone());
        assert_eq!(reserve(&config("")), Some("members".into()));
        assert_eq!(
            reserve(&config("acl.reserve = \"anyone\"")),
            Some("anyone".into())
        );
        assert_eq!(config("").access.bootstrap, Duration::from_secs(120));
        let alone = Config::from_toml("version = 1").expect("valid");
        assert_eq!(reserve(&alone), Some("listed".into()));
    }

    #[test]
    fn tables_of_an_array_are_called_by_their_identity() {
        let peer = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
        let text = format!(
            "version = 1\n[[peer]]\nid = \"{peer}\"\naddresses = [\"/ip4/192.0.2.1/tcp/4501\"]\n"
        );
        let config = Config::from_toml(&text).expect("valid");
        let addresses = config
            .keys
            .get(&format!("peer.{peer}.addresses"))
            .expect("a key");
        assert_eq!(
            addresses.value,
            serde_json::json!(["/ip4/192.0.2.1/tcp/4501"])
        );
        assert_eq!(addresses.origin.to_string(), "edgevpn.toml:4");
    }
}
