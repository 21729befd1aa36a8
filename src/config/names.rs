//! Strings that name something: peers, networks, addresses, log directives.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use ipnet::IpNet;
use libp2p::{Multiaddr, multiaddr::Protocol};

mod overlay;
mod secret;

pub use overlay::{HostAddress, InterfaceAddress, InterfaceName, Prefix};

pub use secret::{CredentialName, LONGEST_TOKEN, PathName, TokenText, VariableName};

use crate::{
    acl::Subject,
    config::literal::{Fault, Literal, literal, nearest},
    id::{PeerId, PeerIdError, parse_peer_id},
};

/// A peer id, in base58 or as a CIDv1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerName(pub PeerId);

/// A peer id, an IP address or a CIDR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerOrNetwork(pub Subject);

/// An address this node can listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAddress(pub Multiaddr);

/// An address under which others reach this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicAddress(pub Multiaddr);

/// An address of a peer; it may end in `/p2p/<id>` of that peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress(pub Multiaddr);

/// An IP address, or `""` for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MaybeAddress(pub Option<IpAddr>);

/// An IP address with a port, or `""` for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MaybeSocket(pub Option<SocketAddr>);

/// `unix:NAME`, or `""` for off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiAddress(pub Option<String>);

/// Log directives: `info`, `warn,edgevpn::relay=debug`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directives(pub String);

/// An address of a peer that ends in its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerWithAddress(pub Multiaddr);

const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];

impl Literal for PeerName {
    const KIND: &'static str = "peer-id";
    const NOUN: &'static str = "a peer id";
    const EXPECTED: &'static str = "a peer id, in base58 (\"12D3KooW…\") or as a CIDv1 (\"bafz…\")";
    const PATTERN: &'static str = "^\\S{20,600}$";
}

impl FromStr for PeerName {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let trimmed = text.trim();
        match parse_peer_id(trimmed) {
            Ok(_) if trimmed.len() != text.len() => Err(Fault::new("no spaces here").fix(trimmed)),
            Ok(peer) => Ok(PeerName(peer)),
            Err(error) => Err(why_no_peer(error)),
        }
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Literal for PeerOrNetwork {
    const KIND: &'static str = "peer-or-network";
    const NOUN: &'static str = "a peer, an address or a network";
    const EXPECTED: &'static str =
        "a peer id (\"12D3KooW…\"), an IP address or a CIDR (\"203.0.113.0/24\")";
    const PATTERN: &'static str =
        "^(\\S{20,600}|[0-9.]{7,15}(/[0-9]{1,2})?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(/[0-9]{1,3})?)$";
}

impl FromStr for PeerOrNetwork {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let trimmed = text.trim();
        if trimmed.len() != text.len() {
            let fault = Fault::new("no spaces here");
            return Err(match trimmed.parse::<Self>() {
                Ok(_) => fault.fix(trimmed),
                Err(_) => fault,
            });
        }
        if text.is_empty() {
            return Err(Fault::new("empty"));
        }
        if text == "*" {
            return Err(Fault::new(
                "there is no wildcard; see `acl.reserve` and `acl.connect`",
            ));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(PeerOrNetwork(Subject::Network(
                address.to_canonical().into(),
            )));
        }
        if text.contains('/') {
            return network(text).map(|network| PeerOrNetwork(Subject::Network(network)));
        }
        match parse_peer_id(text) {
            Ok(peer) => Ok(PeerOrNetwork(Subject::Peer(peer))),
            Err(_) if text.contains([':', '.']) => Err(Fault::new("not an IP address")),
            Err(error) => Err(why_no_peer(error)),
        }
    }
}

fn why_no_peer(error: PeerIdError) -> Fault {
    Fault::new(match error {
        PeerIdError::Empty => "empty",
        PeerIdError::TooLong { .. } => "too long for a peer id",
        PeerIdError::NotAPeerId => "not a peer id",
        PeerIdError::NotAKey => "a CID of something else than a libp2p key",
        PeerIdError::BadKey => "no public key is behind it: cut or mistyped?",
    })
}

/// Host bits must be zero: `10.0.0.7/8` is refused rather than widened to sixteen million addresses.
fn network(text: &str) -> Result<IpNet, Fault> {
    let network: IpNet = text.parse().map_err(|_| Fault::new("not a CIDR"))?;
    if network.addr() != network.network() {
        return Err(Fault::new("bits are set beyond the prefix").fix(network.trunc().to_string()));
    }
    let IpNet::V6(six) = network else {
        return Ok(network);
    };
    match six.addr().to_ipv4_mapped() {
        None => Ok(network),
        Some(four) if six.prefix_len() >= 96 => {
            let length = six.prefix_len().saturating_sub(96);
            let plain = ipnet::Ipv4Net::new(four, length).map_err(|_| Fault::new("not a CIDR"))?;
            Ok(IpNet::V4(plain))
        }
        Some(_) => Ok(network),
    }
}

impl fmt::Display for PeerOrNetwork {
    /// A network of one address is written as the address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Subject::Peer(peer) => peer.fmt(f),
            Subject::Network(network) if network.prefix_len() == network.max_prefix_len() => {
                network.addr().fmt(f)
            }
            Subject::Network(network) => network.fmt(f),
        }
    }
}

const LISTEN_FORM: &str = "/ip4 or /ip6, then /tcp/PORT, /tcp/PORT/ws or /udp/PORT/quic-v1";

impl Literal for ListenAddress {
    const KIND: &'static str = "listen-address";
    const NOUN: &'static str = "an address to listen on";
    const EXPECTED: &'static str = "an address to listen on, such as \"/ip4/0.0.0.0/tcp/4501\", \"/ip6/::/udp/4501/quic-v1\" or \"/ip4/0.0.0.0/tcp/4502/ws\"";
    const PATTERN: &'static str =
        "^/(ip4/[0-9.]+|ip6/[0-9A-Fa-f:.]+)/(tcp/[0-9]{1,5}(/ws)?|udp/[0-9]{1,5}/quic-v1)$";
}

impl FromStr for ListenAddress {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let address = multiaddr(text)?;
        let parts: Vec<Protocol<'_>> = address.iter().collect();
        match parts.as_slice() {
            [Protocol::Ip4(_) | Protocol::Ip6(_), Protocol::Tcp(_)] => {}
            [
                Protocol::Ip4(_) | Protocol::Ip6(_),
                Protocol::Udp(_),
                Protocol::QuicV1,
            ] => {}
            [
                Protocol::Ip4(_) | Protocol::Ip6(_),
                Protocol::Tcp(_),
                Protocol::Ws(path),
            ] if path == "/" => {}
            [Protocol::Ip4(_) | Protocol::Ip6(_), Protocol::Udp(_)] => {
                return Err(Fault::new("nothing speaks plain UDP").fix(format!("{text}/quic-v1")));
            }
            [.., Protocol::P2p(id)] => {
                let fix = text
                    .trim_end_matches(&id.to_string())
                    .trim_end_matches("/p2p/");
                return Err(Fault::new("one listens without a peer id").fix(fix));
            }
            _ => return Err(Fault::new(format!("cannot listen on this: {LISTEN_FORM}"))),
        }
        Ok(ListenAddress(address))
    }
}

impl Literal for PublicAddress {
    const KIND: &'static str = "public-address";
    const NOUN: &'static str = "an address of this node";
    const EXPECTED: &'static str = "an address of this node as others dial it, such as \"/dns4/hub.example.org/tcp/4501\", without /p2p/<id>";
    const PATTERN: &'static str = "^/(ip4|ip6|dns|dns4|dns6)/[^/]+/(tcp|udp)/[0-9]{1,5}(/.+)?$";
}

impl FromStr for PublicAddress {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let address = dialable(text)?;
        if address
            .iter()
            .any(|part| matches!(part, Protocol::P2p(_) | Protocol::P2pCircuit))
        {
            let plain = without_peer(&address);
            let fault = Fault::new("an address of this node has no peer id");
            return Err(
                match plain.iter().any(|part| part == Protocol::P2pCircuit) {
                    true => fault,
                    false => fault.fix(plain.to_string()),
                },
            );
        }
        Ok(PublicAddress(address))
    }
}

impl Literal for PeerAddress {
    const KIND: &'static str = "peer-address";
    const NOUN: &'static str = "an address to dial";
    const EXPECTED: &'static str =
        "an address to dial, such as \"/dns4/hub.example.org/tcp/4501\" or one through a relay";
    const PATTERN: &'static str = "^/(ip4|ip6|dns|dns4|dns6)/[^/]+/(tcp|udp)/[0-9]{1,5}(/.+)?$";
}

impl FromStr for PeerAddress {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        dialable(text).map(PeerAddress)
    }
}

impl Literal for PeerWithAddress {
    const KIND: &'static str = "peer-with-address";
    const NOUN: &'static str = "an address of a peer with its id";
    const EXPECTED: &'static str = "an address to dial that ends in /p2p/<id>, such as \"/dns4/hub.example.org/tcp/4501/p2p/12D3KooW…\"";
    const PATTERN: &'static str =
        "^/(ip4|ip6|dns|dns4|dns6|dnsaddr)/[^/]+(/(tcp|udp)/[0-9]{1,5}(/.+)?)?/p2p/[^/]+$";
}

impl FromStr for PeerWithAddress {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let address = multiaddr(text)?;
        // A name that leads to addresses of this very peer (`_dnsaddr.` records).
        let by_name = match address.iter().collect::<Vec<_>>().as_slice() {
            [Protocol::Dnsaddr(_), Protocol::P2p(_)] => true,
            [Protocol::Dnsaddr(_), ..] => return Err(Fault::new("no /p2p/<id> after the name")),
            _ => false,
        };
        let address = if by_name { address } else { dialable(text)? };
        match trailing_peer(&address) {
            Some(_) => Ok(PeerWithAddress(address)),
            None => Err(Fault::new("no /p2p/<id> at the end")),
        }
    }
}

impl PeerWithAddress {
    /// The peer and the address without it.
    pub fn parts(&self) -> Option<(PeerId, Multiaddr)> {
        Some((trailing_peer(&self.0)?, without_peer(&self.0)))
    }
}

fn multiaddr(text: &str) -> Result<Multiaddr, Fault> {
    if text.is_empty() {
        return Err(Fault::new("empty"));
    }
    if let Ok(socket) = text.parse::<SocketAddr>() {
        let family = if socket.is_ipv4() { "ip4" } else { "ip6" };
        return Err(Fault::new("not a multiaddr").fix(format!(
            "/{family}/{}/tcp/{}",
            socket.ip(),
            socket.port()
        )));
    }
    if !text.starts_with('/') {
        return Err(Fault::new("a multiaddr starts with `/`"));
    }
    text.parse().map_err(|_| Fault::new("not a multiaddr"))
}

fn dialable(text: &str) -> Result<Multiaddr, Fault> {
    let address = multiaddr(text)?;
    let mut parts = address.iter();
    let host = parts.next();
    if !matches!(
        host,
        Some(
            Protocol::Ip4(_)
                | Protocol::Ip6(_)
                | Protocol::Dns(_)
                | Protocol::Dns4(_)
                | Protocol::Dns6(_)
        )
    ) {
        return Err(Fault::new("starts with /ip4, /ip6, /dns, /dns4 or /dns6"));
    }
    match (parts.next(), parts.next()) {
        (Some(Protocol::Tcp(0) | Protocol::Udp(0)), _) => {
            Err(Fault::new("port 0 cannot be dialled"))
        }
        (Some(Protocol::Tcp(_)), None | Some(Protocol::Ws(_) | Protocol::P2p(_))) => Ok(address),
        (Some(Protocol::Udp(_)), Some(Protocol::QuicV1)) => Ok(address),
        (Some(Protocol::Udp(_)), None) => {
            Err(Fault::new("nothing speaks plain UDP").fix(format!("{text}/quic-v1")))
        }
        _ => Err(Fault::new(
            "after the host: /tcp/PORT, /tcp/PORT/ws or /udp/PORT/quic-v1",
        )),
    }
}

/// The peer that `address` ends in.
pub fn trailing_peer(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

/// `address` without the `/p2p/<id>` it may end in.
pub fn without_peer(address: &Multiaddr) -> Multiaddr {
    let mut plain = address.clone();
    if trailing_peer(address).is_some() {
        plain.pop();
    }
    plain
}

impl Literal for MaybeAddress {
    const KIND: &'static str = "ip-address-or-none";
    const NOUN: &'static str = "an IP address";
    const EXPECTED: &'static str = "an IP address, or \"\" for none";
    const PATTERN: &'static str = "^([0-9]{1,3}(\\.[0-9]{1,3}){3}|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)?$";
}

impl FromStr for MaybeAddress {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        if text.is_empty() {
            return Ok(MaybeAddress(None));
        }
        match text.parse::<IpAddr>() {
            Ok(address) => Ok(MaybeAddress(Some(address.to_canonical()))),
            Err(_) => Err(match text.parse::<IpNet>() {
                Ok(network) => {
                    Fault::new("one address, not a network").fix(network.addr().to_string())
                }
                Err(_) => Fault::new("not an IP address"),
            }),
        }
    }
}

impl Literal for MaybeSocket {
    const KIND: &'static str = "socket-address-or-none";
    const NOUN: &'static str = "an address and a port";
    const EXPECTED: &'static str =
        "an IP address and a port such as \"127.0.0.1:9477\", or \"\" for off";
    const PATTERN: &'static str =
        "^([0-9]{1,3}(\\.[0-9]{1,3}){3}:[0-9]{1,5}|\\[[0-9A-Fa-f:.]+(%[0-9]+)?\\]:[0-9]{1,5})?$";
}

impl FromStr for MaybeSocket {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        if text.is_empty() {
            return Ok(MaybeSocket(None));
        }
        if let Ok(socket) = text.parse::<SocketAddr>() {
            return Ok(MaybeSocket(Some(socket)));
        }
        if let Some(port) = text.strip_prefix(':') {
            return Err(Fault::new("no address").fix(format!("127.0.0.1:{port}")));
        }
        if let Some(port) = text.strip_prefix("localhost:") {
            return Err(Fault::new("an IP address, not a name").fix(format!("127.0.0.1:{port}")));
        }
        Err(match text.parse::<IpAddr>() {
            Ok(_) => Fault::new("no port"),
            Err(_) => Fault::new("not an IP address and a port"),
        })
    }
}

impl Literal for ApiAddress {
    const KIND: &'static str = "api-address";
    const NOUN: &'static str = "a socket";
    const EXPECTED: &'static str = "\"unix:NAME\" or \"unix:/absolute/path\", or \"\" for off";
    const PATTERN: &'static str = "^(unix:[^\\u0000]+)?$";
}

/// What the kernel takes in `sun_path`, less the final NUL.
const LONGEST_SOCKET_PATH: usize = 107;

impl FromStr for ApiAddress {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        if text.is_empty() {
            return Ok(ApiAddress(None));
        }
        match text.strip_prefix("unix:") {
            Some("") => Err(Fault::new("no name after `unix:`").fix("unix:api.sock")),
            Some(path) if path.contains('\0') => Err(Fault::new("a NUL byte in a path")),
            Some(path) if path.len() > LONGEST_SOCKET_PATH => Err(Fault::new(format!(
                "longer than the {LONGEST_SOCKET_PATH} bytes of a socket path"
            ))),
            Some(path) => Ok(ApiAddress(Some(path.to_owned()))),
            None if text.starts_with('/') => {
                Err(Fault::new("no `unix:`").fix(format!("unix:{text}")))
            }
            None => Err(Fault::new("only unix sockets are served")),
        }
    }
}

impl Literal for Directives {
    const KIND: &'static str = "log-directives";
    const NOUN: &'static str = "a log level";
    const EXPECTED: &'static str = "off, error, warn, info, debug or trace, or directives such as \"info,edgevpn::relay=debug\"";
    const PATTERN: &'static str = "^(off|error|warn|info|debug|trace|[A-Za-z_][A-Za-z0-9_:]*=(off|error|warn|info|debug|trace))(,(off|error|warn|info|debug|trace|[A-Za-z_][A-Za-z0-9_:]*=(off|error|warn|info|debug|trace)))*$";
}

impl FromStr for Directives {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        for directive in text.split(',') {
            let (target, level) = match directive.split_once('=') {
                Some((target, level)) => (Some(target), level),
                None => (None, directive),
            };
            if target.is_some_and(|target| !is_target(target)) {
                return Err(Fault::new(format!(
                    "`{}` is not a module",
                    target.unwrap_or_default()
                )));
            }
            if !LEVELS.contains(&level) {
                let lower = level.to_ascii_lowercase();
                let fault = Fault::new(format!("`{level}` is not a level"));
                let meant = match lower.as_str() {
                    "warning" => Some("warn"),
                    "err" => Some("error"),
                    lower => nearest(lower, LEVELS.iter().copied()),
                };
                return Err(match meant {
                    Some(meant) => fault.fix(text.replacen(level, meant, 1)),
                    None => fault,
                });
            }
        }
        Ok(Directives(text.to_owned()))
    }
}

fn is_target(target: &str) -> bool {
    target.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && target
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}

macro_rules! displayed {
    ($($type:ty: |$value:ident| $text:expr;)*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let $value = &self.0;
                $text.fmt(f)
            }
        }
    )*};
}

displayed! {
    ListenAddress: |address| address;
    PublicAddress: |address| address;
    PeerAddress: |address| address;
    PeerWithAddress: |address| address;
    Directives: |text| text;
    MaybeAddress: |address| address.map(|address| address.to_string()).unwrap_or_default();
    MaybeSocket: |socket| socket.map(|socket| socket.to_string()).unwrap_or_default();
    ApiAddress: |path| path.as_ref().map(|path| format!("unix:{path}")).unwrap_or_default();
}

literal!(PeerName);
literal!(PeerOrNetwork);
literal!(ListenAddress);
literal!(PublicAddress);
literal!(PeerAddress);
literal!(PeerWithAddress);
literal!(MaybeAddress);
literal!(MaybeSocket);
literal!(ApiAddress);
literal!(Directives);
