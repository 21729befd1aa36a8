//! Allow and deny entries as they are read, packed: a million of them take 44 MB where plain structs would take 120 MB.

use std::{collections::HashMap, sync::Arc};

use ipnet::IpNet;
use libp2p::multihash::Multihash;

use super::{Action, Entry, RuleKey, RuleRef, Subject};
use crate::id::{Origin, PeerId};

/// What `allow`, `deny` and the lists hold, in the order it is pushed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Entries {
    pub(super) peers: Vec<(PeerKey, Note)>,
    /// Those that need their full length.
    pub(super) others: Vec<(PeerId, Note)>,
    pub(super) networks: Vec<(IpNet, Note)>,
    pub(super) sources: Sources,
}

impl Entries {
    pub fn push(&mut self, action: Action, entry: Entry) {
        let note = self.sources.note(action, entry.list, entry.origin);
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
        let peers = self.peers.iter().map(|(key, note)| (key, *note));
        self.sources.entries(peers, &self.others, &self.networks)
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
    /// The last sixteen bytes: of a public key or of a hash, whatever the kind.
    pub(super) fn half(&self) -> u128 {
        self.0
            .last_chunk()
            .map_or(0, |half| u128::from_ne_bytes(*half))
    }

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

    pub(super) fn peer(&self) -> Option<PeerId> {
        let (kind, key) = self.0.split_first()?;
        let hash = match *kind {
            IS_SHA256 => Multihash::wrap(SHA256, key).ok()?,
            IS_ED25519 => Multihash::wrap(IDENTITY, &[ED25519, key].concat()).ok()?,
            _ => Multihash::wrap(IDENTITY, &[SECP256K1, &self.0].concat()).ok()?,
        };
        PeerId::from_multihash(hash).ok()
    }
}

/// Where an entry stands and what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Note {
    source: u32,
    line: u32,
}

/// What the entries of one file or one key have in common, each once.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Sources {
    all: Vec<Source>,
    known: HashMap<Source, u32>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Source {
    action: Action,
    list: Option<Arc<str>>,
    place: Place,
}

impl Sources {
    /// `None`: a note of other sources than these.
    pub fn action(&self, note: Note) -> Option<Action> {
        Some(self.source(note)?.action)
    }

    pub fn rule(&self, note: Note) -> Option<RuleRef> {
        let source = self.source(note)?;
        let key = match (&source.list, source.action) {
            (Some(name), _) => RuleKey::List(name.clone()),
            (None, Action::Allow) => RuleKey::Allow,
            (None, Action::Deny) => RuleKey::Deny,
        };
        Some(RuleRef {
            key,
            origin: source.place.at(note.line),
        })
    }

    pub fn entry(&self, subject: Subject, note: Note) -> Option<Entry> {
        let source = self.source(note)?;
        Some(Entry {
            subject,
            list: source.list.clone(),
            origin: source.place.at(note.line),
        })
    }

    /// Entries as they were written.
    pub fn entries<'a>(
        &'a self,
        peers: impl Iterator<Item = (&'a PeerKey, Note)> + 'a,
        others: &'a [(PeerId, Note)],
        networks: &'a [(IpNet, Note)],
    ) -> impl Iterator<Item = (Action, Entry)> + 'a {
        let peers = peers.filter_map(|(key, note)| Some((Subject::Peer(key.peer()?), note)));
        let others = others.iter();
        let others = others.map(|(peer, note)| (Subject::Peer(*peer), *note));
        let networks = networks.iter();
        let networks = networks.map(|(network, note)| (Subject::Network(*network), *note));
        let all = peers.chain(others).chain(networks);
        all.filter_map(|(subject, note)| Some((self.action(note)?, self.entry(subject, note)?)))
    }

    /// Entries come in runs from one file, so that the last source is nearly always the right one.
    fn note(&mut self, action: Action, list: Option<Arc<str>>, origin: Origin) -> Note {
        let (place, line) = Place::of(origin);
        let source = Source {
            action,
            list,
            place,
        };
        let next = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        if self.all.last() == Some(&source) {
            let source = next.saturating_sub(1);
            return Note { source, line };
        }
        if let Some(known) = self.known.get(&source) {
            return Note {
                source: *known,
                line,
            };
        }
        self.known.insert(source.clone(), next);
        self.all.push(source);
        Note { source: next, line }
    }

    fn source(&self, note: Note) -> Option<&Source> {
        self.all.get(usize::try_from(note.source).ok()?)
    }
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
