//! From what the file says to what a node runs: [`parse`], the list files, then [`Draft::resolve`].

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use validator::Validate;

use super::{
    Access, AccessList, Api, Block, Checked, Config, Discovery, Ledger, Limits, ListFile, Log,
    Node, Peer, RelayClient, Reload, SecretFile, Source, Summary, Surroundings, Transport, Vpn,
    VpnRoute,
    check::{self, Tree},
    diagnostic::{Code, Diagnostic},
    document::{self, Text},
    environment::{self, Filled},
    file::{ActionFile, File, OnShrinkFile, RelayFile, VpnFile},
    keys,
    names::{PeerOrNetwork, PeerWithAddress, without_peer},
    policy, rules, secret,
    units::{Bandwidth, PerSpan, Size, Span, SpanOrOff},
};
use crate::{
    acl::{Action, Subject},
    relay::{self, Limit},
};

/// A file that has been read and checked by itself, but whose list files have not been read yet.
#[derive(Clone, Debug)]
pub struct Draft {
    name: String,
    text: Option<Text>,
    tree: Tree,
    filled: Filled,
    /// Present when all values are usable; some may still contradict each other.
    file: Option<File>,
    secrets: Vec<SecretFile>,
    surroundings: Surroundings,
}

/// Checks a file by itself. Never fails: what is wrong is reported by [`Draft::resolve`].
pub fn parse(source: Source, surroundings: &Surroundings) -> Draft {
    let mut draft = Draft {
        name: source.name.clone(),
        text: None,
        tree: Tree::default(),
        filled: Filled::new(),
        file: None,
        secrets: Vec::new(),
        surroundings: surroundings.clone(),
    };
    let text = match Text::read(source) {
        Ok(text) => text,
        Err(diagnostic) => {
            draft.tree.diagnostics.push(*diagnostic);
            return draft;
        }
    };
    let document = document::parse(&text);
    draft.tree = check::check(&text, &document.root, &document.broken);
    draft.tree.diagnostics.extend(document.findings);
    if document.broken.is_empty() {
        draft.filled = environment::fill(&mut draft.tree, &text, surroundings);
        draft.file = typed(&mut draft.tree, &text);
    }
    draft.text = Some(text);
    draft
}

/// The tree as types. What the check lets through fits them and their rules; should it not, that is a finding too.
fn typed(tree: &mut Tree, text: &Text) -> Option<File> {
    let (code, cause) = match serde_json::from_value::<File>(tree.values.clone().into()) {
        Ok(file) => match file.validate() {
            Ok(()) => return Some(file),
            Err(errors) => (Code::OutOfRange, errors.to_string()),
        },
        Err(error) => (Code::WrongType, error.to_string()),
    };
    if !tree.diagnostics.iter().any(Diagnostic::is_error) {
        let diagnostic = Diagnostic::new(code, cause);
        tree.diagnostics.push(diagnostic.at(text.location(0..0)));
    }
    None
}

impl Draft {
    /// The list files to read, as absolute as the directory of the file is.
    pub fn list_files(&self) -> Vec<PathBuf> {
        let lists = self.file.iter().flat_map(|file| &file.acl.list);
        let mut paths: Vec<PathBuf> = lists
            .map(|list| self.surroundings.directory.join(&list.file))
            .collect();
        paths.sort();
        paths.dedup();
        paths
    }

    /// The files that hold tokens. What is in them must not be shown to anybody.
    pub fn secret_files(&self) -> Vec<PathBuf> {
        let file = self.file.as_ref();
        file.map_or_else(Vec::new, |file| secret::files(file, &self.surroundings))
    }

    /// Takes the contents of [`Draft::secret_files`].
    pub fn with_secrets(self, secrets: Vec<SecretFile>) -> Draft {
        Draft { secrets, ..self }
    }

    /// The verdict, given the contents of [`Draft::list_files`].
    pub fn resolve(self, lists: Vec<ListFile>) -> Checked {
        let Draft {
            name,
            text,
            tree,
            filled,
            file,
            secrets,
            surroundings,
        } = self;
        let Tree {
            index,
            mut diagnostics,
            ..
        } = tree;
        let mut summary = Summary::default();
        let mut config = None;
        if let (Some(text), Some(file)) = (text, file) {
            let view = View {
                text: &text,
                index: &index,
                file: &file,
            };
            let is_sound =
                |diagnostics: &[Diagnostic]| !diagnostics.iter().any(Diagnostic::is_error);
            diagnostics.extend(rules::check(&view, is_sound(&diagnostics)));
            let is_sound =
                |diagnostics: &[Diagnostic]| !diagnostics.iter().any(Diagnostic::is_error);
            diagnostics.extend(rules::check(&view, is_sound(&diagnostics)));
            let origins = keys::Origins {
                view,
                filled: &filled,
            };
            let (secrets, findings) =
                secret::find(&origins, &surroundings, &secrets, is_sound(&diagnostics));
            diagnostics.extend(findings);
            if let Some(network) = &secrets.network {
                diagnostics.extend(secret::overridden(&origins, &surroundings, network));
            }
            let directory = &surroundings.directory;
            let sound = is_sound(&diagnostics);
            let policy = policy::compile(&origins, directory, &lists, sound);
            diagnostics.extend(policy.diagnostics);
            let place = Place::of(&file, &surroundings);
            diagnostics.extend(rules::check_socket(&view, place.socket.as_deref()));
            summary = policy.summary;
            let keys = keys::effective(&origins, &place, &secrets);
            summary.keys = keys.set_in_file();
            config = Some(Config {
                keys,
                acl: Arc::new(policy.acl),
                network: secrets.network,
                ..assemble(&file, place, directory)
            });
        }
        if diagnostics.iter().any(Diagnostic::is_error) {
            config = None;
        }
        Checked {
            config,
            diagnostics: in_order(diagnostics, &name),
            summary,
            name,
        }
    }
}

/// The file with the places of its keys.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub text: &'a Text,
    pub index: &'a check::Index,
    pub file: &'a File,
}

/// What the file leaves to the host: name and directories.
pub struct Place {
    pub name: String,
    pub state_dir: PathBuf,
    pub state_dir_variable: Option<&'static str>,
    pub socket: Option<PathBuf>,
}

impl Place {
    fn of(file: &File, surroundings: &Surroundings) -> Place {
        let (state_dir, state_dir_variable) =
            environment::state_dir(&file.node.state_dir, surroundings);
        let runtime_dir = environment::runtime_dir(&state_dir, surroundings);
        let name = match file.node.name.as_str() {
            "" => surroundings.host_name.clone(),
            name => name.to_owned(),
        };
        let socket = file
            .api
            .listen
            .0
            .as_ref()
            .map(|path| runtime_dir.join(path));
        Place {
            name,
            state_dir,
            state_dir_variable,
            socket,
        }
    }
}

fn assemble(file: &File, place: Place, directory: &Path) -> Config {
    let limits = &file.limits;
    let reload = &file.reload;
    Config {
        node: Node {
            key_file: place.state_dir.join(&file.node.key_file),
            name: place.name,
            state_dir: place.state_dir,
        },
        transport: Transport {
            listen: file
                .transport
                .listen
                .iter()
                .map(|address| address.0.clone())
                .collect(),
            announce: file
                .transport
                .announce
                .iter()
                .map(|address| address.0.clone())
                .collect(),
            dial_timeout: file.transport.dial_timeout.0,
            port_mapping: file.transport.port_mapping,
            hole_punch: file.transport.hole_punch,
            block: block(&file.transport.block),
        },
        peers: file
            .peer
            .iter()
            .map(|peer| Peer {
                id: peer.id.0,
                addresses: peer
                    .addresses
                    .iter()
                    .map(|address| without_peer(&address.0))
                    .collect(),
            })
            .collect(),
        relay: relay_settings(&file.relay),
        access: Access {
            refresh: file.acl.refresh.0,
            bootstrap: file.acl.bootstrap.0,
            lists: file
                .acl
                .list
                .iter()
                .map(|list| AccessList {
                    name: list.name.as_str().into(),
                    action: action(list.action),
                    path: directory.join(&list.file),
                    max_stale: list.max_stale.0,
                })
                .collect(),
        },
        discovery: Discovery {
            bootstrap_peers: by_peer(&file.discovery.bootstrap_peers),
            mdns: file.discovery.mdns,
            dht: file.discovery.dht,
            dht_interval: file.discovery.dht_interval.0,
        },
        ledger: Ledger {
            ownership: file.ledger.ownership,
            heartbeat: file.ledger.heartbeat.0,
            quota_entries: file.ledger.quota_entries,
            quota_bytes: file.ledger.quota_bytes.0,
            ownership_ttl: file.ledger.ownership_ttl.0,
            announce_interval: file.ledger.announce_interval.0,
            sync_interval: file.ledger.sync_interval.0,
        },
        relay_client: RelayClient {
            enabled: file.relay.client,
            peers: by_peer(&file.relay.peers),
            static_only: file.relay.static_only,
        },
        vpn: vpn(&file.vpn),
        limits: Limits {
            connections: limits.connections,
            connections_per_peer: limits.connections_per_peer,
            pending: limits.pending,
            memory: limits.memory.0,
        },
        api: Api {
            socket: place.socket,
            metrics: file.api.metrics.0,
        },
        log: Log {
            level: file.log.level.0.clone(),
            format: file.log.format,
        },
        reload: Reload {
            watch: reload.watch,
            settle: reload.settle.0,
            poll_interval: reload.poll_interval.0,
            max_impact: reload.max_impact,
            confirm: match reload.confirm {
                SpanOrOff::Off => None,
                SpanOrOff::After(Span(time)) => Some(time),
            },
            history: reload.history,
        },
        ..Config::empty()
    }
}

/// Addresses that end in an id, as peers; one that is named several times has several addresses.
fn by_peer(written: &[PeerWithAddress]) -> Vec<Peer> {
    let mut peers: Vec<Peer> = Vec::new();
    for (id, address) in written.iter().filter_map(PeerWithAddress::parts) {
        match peers.iter_mut().find(|peer| peer.id == id) {
            Some(peer) => peer.addresses.push(address),
            None => peers.push(Peer {
                id,
                addresses: vec![address],
            }),
        }
    }
    peers
}

fn vpn(file: &VpnFile) -> Vpn {
    Vpn {
        enabled: file.enabled,
        interface: file.interface.0.clone(),
        addresses: file.addresses.iter().map(|address| address.0).collect(),
        mtu: file.mtu,
        port: file.port,
        routes: file
            .routes
            .iter()
            .map(|route| VpnRoute {
                to: route.to.0,
                via: route.via.0,
            })
            .collect(),
        advertise: file.advertise.iter().map(|prefix| prefix.0).collect(),
    }
}

fn block(entries: &[PeerOrNetwork]) -> Block {
    let mut block = Block::default();
    for entry in entries {
        match entry.0 {
            Subject::Peer(peer) => {
                block.peers.insert(peer);
            }
            Subject::Network(network) => block.networks.push(network),
        }
    }
    block
}

fn relay_settings(file: &RelayFile) -> relay::Settings {
    let resources = &file.resources;
    relay::Settings {
        service: file.service,
        on_shrink: match file.on_shrink {
            OnShrinkFile::Drain => relay::OnShrink::Drain,
            OnShrinkFile::Evict => relay::OnShrink::Evict,
        },
        resources: relay::Resources {
            max_data: bound(resources.max_data, |Size(bytes)| bytes),
            max_duration: bound(resources.max_duration, |Span(time)| time),
            max_circuits: resources.max_circuits,
            reservation_ttl: resources.reservation_ttl.0,
            buffer_size: u32::try_from(resources.buffer_size.0).unwrap_or(u32::MAX),
            max_reservations: resources.max_reservations,
            max_reservations_per_ip: resources.max_reservations_per_ip,
            max_circuits_total: resources.max_circuits_total,
            reservation_rate: bound(resources.reservation_rate, |PerSpan(rate)| rate),
            circuit_rate: bound(resources.circuit_rate, |PerSpan(rate)| rate),
            bandwidth: bound(resources.bandwidth, |Bandwidth(bytes)| bytes),
            bandwidth_per_circuit: bound(resources.bandwidth_per_circuit, |Bandwidth(bytes)| bytes),
            max_buffers: resources.max_buffers.0,
        },
    }
}

fn bound<T, U>(limit: Limit<T>, of: impl FnOnce(T) -> U) -> Limit<U> {
    match limit {
        Limit::Unlimited => Limit::Unlimited,
        Limit::At(value) => Limit::At(of(value)),
    }
}

pub fn action(action: ActionFile) -> Action {
    match action {
        ActionFile::Allow => Action::Allow,
        ActionFile::Deny => Action::Deny,
    }
}

/// This file first and from top to bottom, then list files, then what has no place.
fn in_order(mut diagnostics: Vec<Diagnostic>, name: &str) -> Vec<Diagnostic> {
    diagnostics.sort_by_cached_key(|diagnostic| match &diagnostic.location {
        Some(at) if at.file == name => (0, String::new(), at.line, at.column),
        Some(at) => (1, at.file.clone(), at.line, at.column),
        None => (2, String::new(), 0, 0),
    });
    diagnostics.iter_mut().for_each(Diagnostic::shorten);
    let most = super::MOST_DIAGNOSTICS;
    if diagnostics.len() > most {
        // An error must not be among those that are left out.
        diagnostics.sort_by_key(|diagnostic| !diagnostic.is_error());
        diagnostics.truncate(most);
        let more = Diagnostic::new(Code::TooMany, format!("more than {most} findings"));
        diagnostics.push(more.in_file(name).help("correct these first"));
    }
    diagnostics
}
