//! What keys demand of each other.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    path::Path,
};

use libp2p::multiaddr::Protocol;

use super::{
    diagnostic::{Code, Diagnostic},
    file::{ActionFile, AudienceFile, OperationFile},
    names::trailing_peer,
    resolve::View,
};
use crate::acl::Subject;

/// What the kernel takes in `sun_path`, less the final NUL.
const LONGEST_SOCKET_PATH: usize = 107;

/// Runs every rule. Unless each value by itself is `sound`, those are left out that would judge a default which stands
/// in for a bad value.
pub fn check(view: &View<'_>, sound: bool) -> Vec<Diagnostic> {
    let mut found = Found::default();
    peers(view, &mut found);
    listeners(view, &mut found);
    relays(view, &mut found);
    names(view, &mut found);
    if sound {
        members(view, &mut found);
        ledger(view, &mut found);
        vpn(view, &mut found);
        tests(view, &mut found);
        resources(view, &mut found);
        access(view, &mut found);
        repeated(view, &mut found);
    }
    found.0
}

/// Findings, up to what anybody reads.
#[derive(Default)]
struct Found(Vec<Diagnostic>);

impl Found {
    fn push(&mut self, diagnostic: Diagnostic) {
        self.0.push(diagnostic);
    }

    fn is_full(&self) -> bool {
        self.0.len() > super::MOST_DIAGNOSTICS
    }
}

/// The whole path of the API socket must fit into its address.
pub fn check_socket(view: &View<'_>, socket: Option<&Path>) -> Option<Diagnostic> {
    let length = socket?.as_os_str().len();
    if length <= LONGEST_SOCKET_PATH {
        return None;
    }
    let diagnostic = Diagnostic::new(
        Code::OutOfRange,
        format!("the path of the API socket has {length} bytes"),
    )
    .key("api.listen")
    .expected(format!(
        "at most {LONGEST_SOCKET_PATH} bytes, directory included"
    ))
    .help("set `api.listen` to a shorter absolute path, as in \"unix:/run/edgevpn/api.sock\"");
    Some(view.mark(diagnostic, "api.listen", "too long"))
}

impl View<'_> {
    /// Points the diagnostic at the value of a key, if the file sets it.
    pub(super) fn mark(&self, diagnostic: Diagnostic, path: &str, label: &str) -> Diagnostic {
        match self.index.spot(path) {
            Some(spot) => diagnostic.at(self.text.label(spot.value.clone(), label)),
            None => diagnostic,
        }
    }

    pub(super) fn mark_related(
        &self,
        diagnostic: Diagnostic,
        path: &str,
        label: &str,
    ) -> Diagnostic {
        match self.index.spot(path) {
            Some(spot) => diagnostic.related(self.text.label(spot.value.clone(), label)),
            None => diagnostic,
        }
    }

    /// Two tables of an array, or two values of a list, have the same identity.
    fn twice(&self, message: String, first: &str, second: &str) -> Diagnostic {
        let diagnostic = Diagnostic::new(Code::DuplicateName, message).key(second);
        let diagnostic = self.mark(diagnostic, second, "again");
        self.mark_related(diagnostic, first, "first here")
            .help("keep one of the two, or rename one")
    }
}

fn peers(view: &View<'_>, found: &mut Found) {
    let mut seen = HashMap::new();
    let blocked: HashMap<_, _> = view
        .file
        .transport
        .block
        .iter()
        .enumerate()
        .filter_map(|(at, entry)| match entry.0 {
            Subject::Peer(peer) => Some((peer, at)),
            Subject::Network(_) => None,
        })
        .collect();
    for (at, peer) in view.file.peer.iter().enumerate() {
        if found.is_full() {
            return;
        }
        let id = format!("peer[{at}].id");
        if let Some(first) = seen.get(&peer.id) {
            let first = format!("peer[{first}].id");
            found.push(view.twice(
                format!("the peer {} is declared twice", peer.id),
                &first,
                &id,
            ));
        } else {
            seen.insert(peer.id, at);
        }
        if let Some(at) = blocked.get(&peer.id.0) {
            let diagnostic = Diagnostic::new(
                Code::WithoutEffect,
                "this peer is never dialled: it is blocked",
            )
            .key(&id)
            .help("remove it from `transport.block`, or remove the peer");
            let diagnostic = view.mark(diagnostic, &id, "blocked");
            found.push(view.mark_related(
                diagnostic,
                &format!("transport.block[{at}]"),
                "blocked here",
            ));
        }
        for (number, address) in peer.addresses.iter().enumerate() {
            let path = format!("peer[{at}].addresses[{number}]");
            let Some(other) = trailing_peer(&address.0).filter(|other| *other != peer.id.0) else {
                continue;
            };
            let diagnostic = Diagnostic::new(
                Code::Contradiction,
                "this address ends in the id of another peer",
            )
            .key(&path)
            .note(format!(
                "the address leads to {other}, the table is about {}",
                peer.id
            ))
            .help("correct the id or the address; the address may leave /p2p/<id> away");
            let diagnostic = view.mark(diagnostic, &path, "another peer");
            found.push(view.mark_related(diagnostic, &id, "this one is meant"));
        }
    }
}

/// Two listeners cannot share a port of one address and protocol.
fn listeners(view: &View<'_>, found: &mut Found) {
    let mut seen: HashMap<(IpAddr, bool, u16), String> = HashMap::new();
    for (at, address) in view.file.transport.listen.iter().enumerate() {
        let path = format!("transport.listen[{at}]");
        let mut parts = address.0.iter();
        let ip = match parts.next() {
            Some(Protocol::Ip4(ip)) => IpAddr::V4(ip),
            Some(Protocol::Ip6(ip)) => IpAddr::V6(ip),
            _ => continue,
        };
        let socket = match parts.next() {
            Some(Protocol::Tcp(port)) if port > 0 => (ip, true, port),
            Some(Protocol::Udp(port)) if port > 0 => (ip, false, port),
            _ => continue,
        };
        match seen.get(&socket) {
            Some(first) => {
                let diagnostic =
                    Diagnostic::new(Code::Contradiction, "two listeners want the same port")
                        .key(&path)
                        .help("give one of them another port");
                let diagnostic = view.mark(diagnostic, &path, "the port is taken");
                found.push(view.mark_related(diagnostic, first, "taken here"));
            }
            None => {
                seen.insert(socket, path);
            }
        }
    }
    if let Some(metrics) = view.file.api.metrics.0
        && metrics.port() > 0
        && let Some(first) = seen.get(&(metrics.ip(), true, metrics.port()))
    {
        let diagnostic =
            Diagnostic::new(Code::Contradiction, "metrics want the port of a listener")
                .key("api.metrics")
                .help("give one of them another port");
        let diagnostic = view.mark(diagnostic, "api.metrics", "the port is taken");
        found.push(view.mark_related(diagnostic, first, "taken here"));
    }
}

/// A relay refuses reservations that come over another relay.
fn relays(view: &View<'_>, found: &mut Found) {
    for (at, relay) in view.file.relay.peers.iter().enumerate() {
        if relay.0.iter().any(|part| part == Protocol::P2pCircuit) {
            let path = format!("relay.peers[{at}]");
            let diagnostic = Diagnostic::new(
                Code::Contradiction,
                "a slot is not reserved through another relay",
            )
            .key(&path)
            .help("name an address at which this relay is reached directly");
            found.push(view.mark(diagnostic, &path, "leads through a relay"));
        }
    }
    let relay = &view.file.relay;
    if relay.static_only && relay.client && relay.peers.is_empty() {
        let diagnostic = Diagnostic::new(
            Code::WithoutEffect,
            "this node reserves nowhere: only relays in `relay.peers` are used, and there are none",
        )
        .key("relay.static_only")
        .help("name relays in `relay.peers`, or set relay.client = false");
        found.push(view.mark(diagnostic, "relay.static_only", "no relay is named"));
    }
}

fn names(view: &View<'_>, found: &mut Found) {
    let lists = view.file.acl.list.iter().map(|list| list.name.as_str());
    let tests = view.file.acl.test.iter().map(|test| test.name.as_str());
    unique(view, "acl.list", "list", lists, found);
    unique(view, "acl.test", "policy test", tests, found);
}

fn unique<'a>(
    view: &View<'_>,
    array: &str,
    what: &str,
    names: impl Iterator<Item = &'a str>,
    found: &mut Found,
) {
    let mut seen = HashMap::new();
    for (at, name) in names.enumerate() {
        if found.is_full() {
            return;
        }
        if let Some(first) = seen.get(name) {
            let (first, second) = (
                format!("{array}[{first}].name"),
                format!("{array}[{at}].name"),
            );
            found.push(view.twice(
                format!("two entries are the {what} {name:?}"),
                &first,
                &second,
            ));
        } else {
            seen.insert(name, at);
        }
    }
}

fn tests(view: &View<'_>, found: &mut Found) {
    for (at, test) in view.file.acl.test.iter().enumerate() {
        if found.is_full() {
            return;
        }
        let table = format!("acl.test[{at}]");
        if test.allow.is_empty() && test.deny.is_empty() {
            let diagnostic = Diagnostic::new(
                Code::TestConflict,
                format!("the policy test {:?} tests nothing", test.name),
            )
            .key(&table)
            .help("say what the peer must be allowed or denied: allow = [\"connect\"], deny = [\"reserve\"]");
            found.push(view.mark(diagnostic, &table, "neither `allow` nor `deny`"));
        }
        let both: HashSet<OperationFile> = test.allow.iter().copied().collect();
        for operation in test
            .deny
            .iter()
            .filter(|operation| both.contains(operation))
        {
            let operation = super::policy::operation(*operation);
            let path = format!("{table}.deny");
            let diagnostic = Diagnostic::new(
                Code::TestConflict,
                format!(
                    "the policy test {:?} wants {operation} both ways",
                    test.name
                ),
            )
            .key(&path)
            .help("keep one of the two");
            let diagnostic = view.mark(diagnostic, &path, "denied here");
            found.push(view.mark_related(diagnostic, &format!("{table}.allow"), "allowed here"));
        }
    }
}

fn resources(view: &View<'_>, found: &mut Found) {
    let resources = &view.file.relay.resources;
    let at = |key: &str| format!("relay.resources.{key}");
    if resources.max_buffers.0 < resources.buffer_size.0.saturating_mul(2) {
        let diagnostic = Diagnostic::new(
            Code::Contradiction,
            "`relay.resources.max_buffers` does not hold the buffers of one circuit",
        )
        .key(at("max_buffers"))
        .expected(format!(
            "at least twice `buffer_size` ({}), one for each direction",
            resources.buffer_size
        ))
        .help("raise `max_buffers` or lower `buffer_size`");
        let both = view.index.is_set(&at("max_buffers"));
        let (first, second) = if both {
            (at("max_buffers"), at("buffer_size"))
        } else {
            (at("buffer_size"), at("max_buffers"))
        };
        let diagnostic = view.mark(
            diagnostic,
            &first,
            if both { "too little" } else { "too much" },
        );
        found.push(view.mark_related(diagnostic, &second, "one of these for each direction"));
    }
    let pairs = [
        (
            "max_reservations_per_ip",
            resources.max_reservations_per_ip,
            "max_reservations",
            resources.max_reservations,
        ),
        (
            "max_circuits",
            resources.max_circuits,
            "max_circuits_total",
            resources.max_circuits_total,
        ),
    ];
    for (part, partial, whole, total) in pairs {
        // A default that is not reached is nobody's mistake.
        if partial > total && view.index.is_set(&at(part)) {
            let diagnostic = Diagnostic::new(
                Code::WithoutEffect,
                format!("`{}` has no effect: `{whole}` is reached first", at(part)),
            )
            .key(at(part))
            .note(format!("`{whole}` is {total}"))
            .help(format!("lower `{part}` or raise `{whole}`"));
            let diagnostic = view.mark(diagnostic, &at(part), "never reached");
            found.push(view.mark_related(diagnostic, &at(whole), "reached first"));
        }
    }
}

fn access(view: &View<'_>, found: &mut Found) {
    let access = &view.file.acl;
    let open = access.reserve == AudienceFile::Anyone && access.connect == AudienceFile::Anyone;
    let allowing = |list: &super::file::ListFile| list.action == ActionFile::Allow;
    if open {
        let mut paths: Vec<String> = Vec::new();
        if !access.allow.is_empty() {
            paths.push("acl.allow".to_owned());
        }
        let lists = access
            .list
            .iter()
            .enumerate()
            .filter(|(_, list)| allowing(list));
        paths.extend(lists.map(|(at, _)| format!("acl.list[{at}].name")));
        for path in paths {
            let diagnostic = Diagnostic::new(
                Code::WithoutEffect,
                "these allow entries have no effect: anyone may reserve and connect",
            )
            .key(&path)
            .help("remove them, or set `acl.reserve` or `acl.connect` to \"listed\"");
            let diagnostic = view.mark(diagnostic, &path, "nobody needs these");
            found.push(view.mark_related(diagnostic, "acl.reserve", "anyone"));
        }
    }
    let nobody = access.reserve == AudienceFile::Listed
        && access.allow.is_empty()
        && !access.list.iter().any(allowing);
    // With `service` left at its default the file does not claim to be a relay.
    if nobody && view.file.relay.service && view.index.is_set("relay.service") {
        let diagnostic = Diagnostic::new(
            Code::WithoutEffect,
            "nobody may reserve on this relay: nobody is listed",
        )
        .key("relay.service")
        .help("list peers in `acl.allow` or in an [[acl.list]], or set acl.reserve = \"anyone\"");
        let diagnostic = view.mark(diagnostic, "relay.service", "on, but for nobody");
        found.push(view.mark_related(diagnostic, "acl.reserve", "only those who are listed"));
    }
}

/// There are members in a network only, and guests where members are asked for.
fn members(view: &View<'_>, found: &mut Found) {
    let access = &view.file.acl;
    let in_network = super::secret::is_in_network(&view.file.network);
    let for_members = [
        ("acl.reserve", access.reserve),
        ("acl.connect", access.connect),
    ]
    .map(|(key, audience)| (key, audience == AudienceFile::Members));
    for (key, wanted) in for_members {
        if !wanted || in_network || !view.index.is_set(key) {
            continue;
        }
        let diagnostic = Diagnostic::new(
            Code::Contradiction,
            format!("`{key}` is for members, and this node is in no network"),
        )
        .key(key)
        .help("name the token of the network: [network] token_file = \"/etc/edgevpn/token\"; or set \"listed\" or \"anyone\"");
        found.push(view.mark(diagnostic, key, "there are no members"));
    }
    if !view.index.is_set("acl.bootstrap") {
        return;
    }
    if !in_network {
        let diagnostic = Diagnostic::new(
            Code::Contradiction,
            "`acl.bootstrap` waits for members, and this node is in no network",
        )
        .key("acl.bootstrap")
        .help("name the token of the network: [network] token_file = \"/etc/edgevpn/token\"; or remove the key");
        found.push(view.mark(diagnostic, "acl.bootstrap", "there are no members"));
    } else if for_members.iter().all(|(_, wanted)| !wanted) {
        let diagnostic = Diagnostic::new(
            Code::WithoutEffect,
            "`acl.bootstrap` has no effect: neither `acl.reserve` nor `acl.connect` asks for members",
        )
        .key("acl.bootstrap")
        .help("remove it, or set acl.reserve = \"members\"");
        let diagnostic = view.mark(diagnostic, "acl.bootstrap", "nobody waits for members");
        found.push(view.mark_related(diagnostic, "acl.reserve", "not for members"));
    }
}

/// A member that misses one heartbeat must not drop out.
fn ledger(view: &View<'_>, found: &mut Found) {
    let ledger = &view.file.ledger;
    if ledger.ownership_ttl.0 >= ledger.heartbeat.0.saturating_mul(2) {
        return;
    }
    let diagnostic = Diagnostic::new(
        Code::Contradiction,
        "`ledger.ownership_ttl` is shorter than two heartbeats: a member that is late once drops out",
    )
    .key("ledger.ownership_ttl")
    .expected(format!("at least twice `heartbeat` ({}); four times is usual", ledger.heartbeat))
    .help("raise `ownership_ttl`, in the whole network, or lower `heartbeat`");
    let [first, second] = match view.index.is_set("ledger.ownership_ttl") {
        true => ["ledger.ownership_ttl", "ledger.heartbeat"],
        false => ["ledger.heartbeat", "ledger.ownership_ttl"],
    };
    let diagnostic = view.mark(diagnostic, first, "two of these do not fit");
    found.push(view.mark_related(diagnostic, second, "the other one"));
}

/// The overlay is of the members of a network, and a machine without an address is not in it.
fn vpn(view: &View<'_>, found: &mut Found) {
    let vpn = &view.file.vpn;
    if !vpn.enabled {
        return;
    }
    let broken = if !super::secret::is_in_network(&view.file.network) {
        Some((
            "`vpn.enabled` carries packets between members, and this node is in no network",
            "there are no members",
            "name the token of the network: [network] token_file = \"/etc/edgevpn/token\"; or remove the key",
        ))
    } else if vpn.addresses.is_empty() {
        Some((
            "`vpn.enabled` without an address: nobody could send a packet here",
            "this machine has no address in the overlay",
            "give it one: [vpn] addresses = [\"10.1.0.11/24\"]",
        ))
    } else {
        None
    };
    if let Some((message, label, help)) = broken {
        let diagnostic = Diagnostic::new(Code::Contradiction, message)
            .key("vpn.enabled")
            .help(help);
        found.push(view.mark(diagnostic, "vpn.enabled", label));
    }
    let mut seen = std::collections::BTreeMap::new();
    for (at, route) in vpn.routes.iter().enumerate() {
        let here = format!("vpn.routes[{at}].to");
        if let Some(first) = seen.insert(route.to.to_string(), here.clone()) {
            found.push(view.twice(
                format!("the prefix {} is routed twice", route.to),
                &first,
                &here,
            ));
        }
    }
}

/// An entry that stands in a list twice was meant to be another one, or is a leftover.
fn repeated(view: &View<'_>, found: &mut Found) {
    let file = view.file;
    let lists = [
        ("acl.allow", &file.acl.allow),
        ("acl.deny", &file.acl.deny),
        ("transport.block", &file.transport.block),
    ];
    for (path, entries) in lists {
        let mut seen = HashMap::new();
        for (at, entry) in entries.iter().enumerate() {
            if found.is_full() {
                return;
            }
            let here = format!("{path}[{at}]");
            if let Some(first) = seen.get(entry) {
                let diagnostic =
                    Diagnostic::new(Code::WithoutEffect, format!("{entry} is in `{path}` twice"))
                        .key(&here)
                        .help("remove one of the two");
                let diagnostic = view.mark(diagnostic, &here, "again");
                found.push(view.mark_related(
                    diagnostic,
                    &format!("{path}[{first}]"),
                    "first here",
                ));
            } else {
                seen.insert(*entry, at);
            }
        }
    }
}
