//! Allow and deny entries, packed: a million of them take about 45 MB where plain structs would take 120 MB.

use std::{collections::HashMap, sync::Arc};

use ipnet::IpNet;
use libp2p::multihash::Multihash;

use super::{Action, Counts, Entry, RuleKey, RuleRef, Subject};
use crate::id::{Origin, PeerId};

/// What `allow`, `deny` and the lists hold, in the order it is pushed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Entries {
    peers: Vec<(PeerKey, Note)>,
    others: Vec<(PeerId, Note)>,
    networks: Vec<(IpNet, Note)>,
    sources: Vec<Source>,
    known: HashMap<Source, u32>,
}

impl Entries {
    pub fn push(&mut self, action: Action, entry: Entry) {
        let note = self.note(action, entry.list, entry.origin);
        match entry.subject {
            Subject::Peer(peer) => match PeerKey::of(&peer) {
                Some(key) => self.peers.push((key, note)),
                None => self.others.push((peer, note)),
            },
            Subject::Network(network) => self.networks.push((canonical(network), note)),
        }
    }

    pub fn len(&self) -> usize {
        self.peers.len() + self.others.len() + self.networks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Peers first, then networks, each in the order they were pushed.
    pub fn iter(&self) -> impl Iterator<Item = (Action, Entry)> + '_ {
        self.rows().filter_map(|row| self.entry(row))
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = Row> + use<> {
        let peers = (0..self.peers.len()).map(Row::Peer);
        let others = (0..self.others.len()).map(Row::Other);
        let networks = (0..self.networks.len()).map(Row::Network);
        peers.chain(others).chain(networks)
    }

    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for row in self.rows() {
            match self.action(row) {
                Some(Action::Allow) => counts.allow += 1,
                Some(Action::Deny) => counts.deny += 1,
                None => {}
            }
        }
        counts
    }

    pub(super) fn peers(&self, action: Action) -> impl Iterator<Item = (usize, &PeerKey)> + '_ {
        of_action(&self.peers, &self.sources, action)
    }

    pub(super) fn others(&self, action: Action) -> impl Iterator<Item = (usize, &PeerId)> + '_ {
        of_action(&self.others, &self.sources, action)
    }

    pub(super) fn networks(&self, action: Action) -> impl Iterator<Item = (usize, &IpNet)> + '_ {
        of_action(&self.networks, &self.sources, action)
    }

    pub(super) fn peer(&self, at: usize) -> Option<&PeerKey> {
        self.peers.get(at).map(|(key, _)| key)
    }

    pub(super) fn network(&self, row: Row) -> Option<IpNet> {
        match row {
            Row::Peer(_) | Row::Other(_) => None,
            Row::Network(at) => self.networks.get(at).map(|(network, _)| *network),
        }
    }

    pub(super) fn action(&self, row: Row) -> Option<Action> {
        self.source(row).map(|(source, _)| source.action)
    }

    pub(super) fn rule(&self, row: Row) -> Option<RuleRef> {
        let (source, line) = self.source(row)?;
        let key = match (&source.list, source.action) {
            (Some(name), _) => RuleKey::List(name.clone()),
            (None, Action::Allow) => RuleKey::Allow,
            (None, Action::Deny) => RuleKey::Deny,
        };
        Some(RuleRef {
            key,
            origin: source.place.at(line),
        })
    }

    pub(super) fn entry(&self, row: Row) -> Option<(Action, Entry)> {
        let (source, line) = self.source(row)?;
        let subject = match row {
            Row::Peer(at) => Subject::Peer(self.peer(at)?.peer()?),
            Row::Other(at) => Subject::Peer(self.others.get(at)?.0),
            Row::Network(_) => Subject::Network(self.network(row)?),
        };
        let entry = Entry {
            subject,
            list: source.list.clone(),
            origin: source.place.at(line),
        };
        Some((source.action, entry))
    }

    fn source(&self, row: Row) -> Option<(&Source, u32)> {
        let note = match row {
            Row::Peer(at) => self.peers.get(at)?.1,
            Row::Other(at) => self.others.get(at)?.1,
            Row::Network(at) => self.networks.get(at)?.1,
        };
        let source = self.sources.get(usize::try_from(note.source).ok()?)?;
        Some((source, note.line))
    }

    /// Entries come in runs from one file, so that the last source is nearly always the right one.
    fn note(&mut self, action: Action, list: Option<Arc<str>>, origin: Origin) -> Note {
        let (place, line) = Place::of(origin);
        let source = Source {
            action,
            list,
            place,
        };
        if self.sources.last() == Some(&source) {
            let last = self.sources.len() - 1;
            return Note::new(last, line);
        }
        let next = self.sources.len();
        let at = match self.known.get(&source) {
            Some(at) => *at as usize,
            None => {
                self.known
                    .insert(source.clone(), u32::try_from(next).unwrap_or(u32::MAX));
                self.sources.push(source);
                next
            }
        };
        Note::new(at, line)
    }
}

impl std::fmt::Debug for Entries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Entries({})", self.len())
    }
}

impl FromIterator<(Action, Entry)> for Entries {
    fn from_iter<T: IntoIterator<Item = (Action, Entry)>>(entries: T) -> Self {
        let mut all = Entries::default();
        all.extend(entries);
        all
    }
}

impl Extend<(Action, Entry)> for Entries {
    fn extend<T: IntoIterator<Item = (Action, Entry)>>(&mut self, entries: T) {
        for (action, entry) in entries {
            self.push(action, entry);
        }
    }
}

/// One entry, by kind and position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Row {
    Peer(usize),
    Other(usize),
    Network(usize),
}

/// A peer id in 33 bytes: all Ed25519 and secp256k1 keys and all SHA-256 hashes, which is every id in the wild.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PeerKey([u8; 33]);

/// What comes before the key in the protobuf of a public key: type Ed25519, 32 bytes; type secp256k1, 33 bytes.
const ED25519: &[u8] = &[0x08, 0x01, 0x12, 0x20];
const SECP256K1: &[u8] = &[0x08, 0x02, 0x12, 0x21];

/// Multihash codes a peer id may have.
const IDENTITY: u64 = 0x00;
const SHA256: u64 = 0x12;

/// The first byte of a `PeerKey`. Compressed secp256k1 keys begin with 2 or 3, which say what they are.
const IS_ED25519: u8 = 0;
const IS_SHA256: u8 = 1;

impl PeerKey {
    /// `None`: the id has some other form and needs its full length.
    pub(super) fn of(peer: &PeerId) -> Option<Self> {
        let hash: &Multihash<64> = peer.as_ref();
        let digest = hash.digest();
        let (kind, key) = match hash.code() {
            SHA256 => (IS_SHA256, digest),
            IDENTITY => {
                if let Some(key) = digest.strip_prefix(ED25519) {
                    (IS_ED25519, key)
                } else {
                    match digest.strip_prefix(SECP256K1)?.split_first()? {
                        (kind @ (2 | 3), key) => (*kind, key),
                        _ => return None,
                    }
                }
            }
            _ => return None,
        };
        let key: [u8; 32] = key.try_into().ok()?;
        let mut bytes = [kind; 33];
        bytes.last_chunk_mut::<32>()?.copy_from_slice(&key);
        Some(Self(bytes))
    }

    fn peer(&self) -> Option<PeerId> {
        let (kind, key) = self.0.split_first()?;
        let hash = match *kind {
            IS_SHA256 => Multihash::wrap(SHA256, key).ok()?,
            IS_ED25519 => Multihash::wrap(IDENTITY, &[ED25519, key].concat()).ok()?,
            _ => Multihash::wrap(IDENTITY, &[SECP256K1, &self.0].concat()).ok()?,
        };
        PeerId::from_multihash(hash).ok()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Note {
    source: u32,
    line: u32,
}

impl Note {
    fn new(source: usize, line: u32) -> Self {
        Self {
            source: u32::try_from(source).unwrap_or(u32::MAX),
            line,
        }
    }
}

/// What the entries of one file or one key have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Source {
    action: Action,
    list: Option<Arc<str>>,
    place: Place,
}

/// An `Origin` without its line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Place {
    File(Arc<str>),
    Env(&'static str),
    Default,
}

impl Place {
    fn of(origin: Origin) -> (Self, u32) {
        match origin {
            Origin::File { file, line } => (Self::File(file), line),
            Origin::Env(name) => (Self::Env(name), 0),
            Origin::Default => (Self::Default, 0),
        }
    }

    fn at(&self, line: u32) -> Origin {
        match self {
            Self::File(file) => Origin::File {
                file: file.clone(),
                line,
            },
            Self::Env(name) => Origin::Env(name),
            Self::Default => Origin::Default,
        }
    }
}

/// `10.0.0.7/8` is `10.0.0.0/8`, and `::ffff:10.0.0.0/104` is as well.
fn canonical(network: IpNet) -> IpNet {
    let network = network.trunc();
    let IpNet::V6(six) = network else {
        return network;
    };
    let four = six
        .network()
        .to_ipv4_mapped()
        .zip(six.prefix_len().checked_sub(96))
        .and_then(|(address, length)| ipnet::Ipv4Net::new(address, length).ok());
    four.map_or(network, IpNet::V4)
}

fn of_action<'a, T>(
    rows: &'a [(T, Note)],
    sources: &'a [Source],
    action: Action,
) -> impl Iterator<Item = (usize, &'a T)> + 'a {
    rows.iter()
        .enumerate()
        .filter(move |(_, (_, note))| {
            usize::try_from(note.source)
                .ok()
                .and_then(|at| sources.get(at))
                .is_some_and(|source| source.action == action)
        })
        .map(|(at, (subject, _))| (at, subject))
}
