//! The access decision: who may reserve a slot and who may open a circuit.
//!
//! One pure function for every caller: deny entry → refuse; allow entry → admit; `anyone` → admit; `members` and a live
//! member → admit; `members` and an open bootstrap window → admit as a guest; otherwise refuse.
//! Peers are compared as canonical bytes, addresses as prefixes (an IPv4-mapped IPv6 address is IPv4; an IPv6 network
//! that merely contains the mapped range, like `::/0`, is about IPv6 only).

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use crate::id::{Origin, PeerId, UnixTime};
use ipnet::IpNet;

mod entries;
mod index;
mod rule;

pub use entries::Entries;
pub use rule::{Decision, RuleKey, RuleRef};

use entries::{Note, PeerKey, Sources};
use index::{Networks, Peers};

/// The compiled policy. Two are equal when they admit the same, wherever their entries are written.
pub struct Acl {
    reserve: Audience,
    connect: Audience,
    reserve_origin: Origin,
    connect_origin: Origin,
    bootstrap_origin: Origin,
    mode: Mode,
    tests: Vec<Test>,
    sources: Sources,
    peers: Peers,
    /// Peers whose ids have unusual forms.
    others: Vec<(PeerId, Note)>,
    find_other: HashMap<(Action, PeerId), Note>,
    networks: Vec<(IpNet, Note)>,
    denied: Networks,
    allowed: Networks,
}

impl Acl {
    /// Sorts the entries into indices; afterwards a decision hardly depends on how many there are.
    pub fn compile(rules: Rules) -> Acl {
        let Entries {
            peers,
            others,
            networks,
            sources,
        } = rules.entries;
        let of = |wanted| {
            let all = networks.iter().copied();
            Networks::of(all.filter(|(_, note)| sources.action(*note) == Some(wanted)))
        };
        let (denied, allowed) = (of(Action::Deny), of(Action::Allow));
        let mut find_other = HashMap::new();
        for (peer, note) in &others {
            if let Some(action) = sources.action(*note) {
                find_other.entry((action, *peer)).or_insert(*note);
            }
        }
        Acl {
            reserve: rules.reserve,
            connect: rules.connect,
            reserve_origin: rules.reserve_origin,
            connect_origin: rules.connect_origin,
            bootstrap_origin: rules.bootstrap_origin,
            mode: rules.mode,
            tests: rules.tests,
            peers: Peers::of(&peers, |note| sources.action(note)),
            denied,
            allowed,
            others,
            find_other,
            networks,
            sources,
        }
    }

    /// Whether the rules admit this peer, and the rule that says so. `mode` is not asked: whoever enforces does that.
    ///
    /// `address` is where the peer is connected from; `None` (over a relay, or not connected) matches no network entry.
    /// `standing` is what the peer is to the network at this moment.
    pub fn decide(
        &self,
        operation: Operation,
        peer: &PeerId,
        address: Option<IpAddr>,
        standing: Standing,
    ) -> Decision {
        self.by_entry(peer, address)
            .unwrap_or_else(|| self.by_audience(operation, standing))
    }

    /// What would decide if the entry that does were not there: the answer to "and otherwise?". `None`: no entry decides.
    pub fn otherwise(
        &self,
        operation: Operation,
        peer: &PeerId,
        address: Option<IpAddr>,
        standing: Standing,
    ) -> Option<Decision> {
        let decided = self.by_entry(peer, address)?;
        let allowed = || {
            let address = address.map(|address| address.to_canonical());
            let named = self.find_entry(Action::Allow, peer);
            let note = named.or_else(|| self.allowed.find(address?))?;
            let rule = self.sources.rule(note)?;
            Some(Decision { admit: true, rule })
        };
        let allowed = if decided.admit { None } else { allowed() };
        Some(allowed.unwrap_or_else(|| self.by_audience(operation, standing)))
    }

    /// The answer of an entry that names the peer or a network around it.
    fn by_entry(&self, peer: &PeerId, address: Option<IpAddr>) -> Option<Decision> {
        let address = address.map(|address| address.to_canonical());
        let within = |networks: &Networks| networks.find(address?);
        let (admit, note) = match self.find_peer(peer) {
            Some((Action::Deny, note)) => (false, note),
            named => within(&self.denied).map(|note| (false, note)).or_else(|| {
                let allowed = named.map(|(_, note)| note);
                Some((true, allowed.or_else(|| within(&self.allowed))?))
            })?,
        };
        let rule = self.sources.rule(note)?;
        Some(Decision { admit, rule })
    }

    fn by_audience(&self, operation: Operation, standing: Standing) -> Decision {
        let (audience, origin) = match operation {
            Operation::Reserve => (self.reserve, &self.reserve_origin),
            Operation::Connect => (self.connect, &self.connect_origin),
        };
        let (admit, key, origin) = match (audience, standing) {
            (Audience::Anyone, _) | (Audience::Members, Standing::Member) => {
                (true, RuleKey::Audience(operation), origin)
            }
            (Audience::Members, Standing::Guest) => {
                (true, RuleKey::Bootstrap, &self.bootstrap_origin)
            }
            (Audience::Members, Standing::Stranger) | (Audience::Listed, _) => {
                (false, RuleKey::Audience(operation), origin)
            }
        };
        Decision {
            admit,
            rule: RuleRef {
                key,
                origin: origin.clone(),
            },
        }
    }

    /// Whether the answer can depend on what the peer is to the network.
    pub fn asks_for_members(&self, operation: Operation) -> bool {
        let audience = match operation {
            Operation::Reserve => self.reserve,
            Operation::Connect => self.connect,
        };
        audience == Audience::Members
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Runs `[[acl.test]]` against these rules and returns what failed.
    pub fn run_tests(&self) -> Vec<FailedTest> {
        let mut failed = Vec::new();
        for test in &self.tests {
            let allow = test.allow.iter().map(|operation| (*operation, true));
            let deny = test.deny.iter().map(|operation| (*operation, false));
            for (operation, expected) in allow.chain(deny) {
                let standing = match test.member {
                    true => Standing::Member,
                    false => Standing::Stranger,
                };
                let decision = self.decide(operation, &test.peer, test.address, standing);
                if decision.admit != expected {
                    failed.push(FailedTest {
                        name: test.name.clone(),
                        origin: test.origin.clone(),
                        operation,
                        decision,
                    });
                }
            }
        }
        failed
    }

    /// Allow entries without effect, each with the deny entry that overrides it.
    pub fn ineffective(&self) -> impl Iterator<Item = (Entry, Entry)> + '_ {
        self.entries().filter_map(|(action, allow)| {
            if action == Action::Deny {
                return None;
            }
            let deny = match allow.subject {
                Subject::Peer(peer) => match self.find_peer(&peer)? {
                    (Action::Allow, _) => return None,
                    (Action::Deny, note) => self.sources.entry(allow.subject, note)?,
                },
                Subject::Network(network) => {
                    let (wider, note) = self.denied.around(network)?;
                    self.sources.entry(Subject::Network(wider), note)?
                }
            };
            Some((allow, deny))
        })
    }

    /// What `newer` adds to these entries and what it removes, by what they say and not by where they say it.
    /// Lists the first `most` of each and counts the rest.
    pub fn difference(&self, newer: &Acl, most: usize) -> Difference {
        Difference {
            added: Changed::listing(newer.beyond(self), most),
            removed: Changed::listing(self.beyond(newer), most),
        }
    }

    /// Entries that `other` does not have, by what they say and not by where they say it.
    pub fn beyond<'a>(&'a self, other: &'a Acl) -> impl Iterator<Item = (Action, Entry)> + 'a {
        let networks: HashSet<(Action, IpNet)> = other
            .networks
            .iter()
            .filter_map(|(network, note)| Some((other.sources.action(*note)?, *network)))
            .collect();
        self.entries()
            .filter(move |(action, entry)| match entry.subject {
                Subject::Peer(peer) => match PeerKey::of(&peer) {
                    Some(key) => !other.peers.holds(*action, &key),
                    None => !other.find_other.contains_key(&(*action, peer)),
                },
                Subject::Network(network) => !networks.contains(&(*action, network)),
            })
    }

    /// Peers first, then networks, each in file order; a peer that is named twice comes once.
    fn entries(&self) -> impl Iterator<Item = (Action, Entry)> + '_ {
        let peers = self.peers.iter().map(|(_, key, note)| (key, note));
        self.sources.entries(peers, &self.others, &self.networks)
    }

    /// The entry that names this peer; a deny entry if there is one.
    fn find_peer(&self, peer: &PeerId) -> Option<(Action, Note)> {
        if let Some(key) = PeerKey::of(peer) {
            return self.peers.find(&key);
        }
        [Action::Deny, Action::Allow]
            .into_iter()
            .find_map(|action| Some((action, *self.find_other.get(&(action, *peer))?)))
    }

    /// The entry of this action that names this peer.
    fn find_entry(&self, action: Action, peer: &PeerId) -> Option<Note> {
        match PeerKey::of(peer) {
            Some(key) => self.peers.find_of(action, &key),
            None => self.find_other.get(&(action, *peer)).copied(),
        }
    }
}

impl PartialEq for Acl {
    fn eq(&self, other: &Self) -> bool {
        self.reserve == other.reserve
            && self.connect == other.connect
            && self.mode == other.mode
            && self.peers.same(&other.peers)
            && self.find_other.len() == other.find_other.len()
            && self
                .find_other
                .keys()
                .all(|said| other.find_other.contains_key(said))
            && self.denied.same(&other.denied)
            && self.allowed.same(&other.allowed)
    }
}

impl fmt::Debug for Acl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acl")
            .field("reserve", &self.reserve)
            .field("connect", &self.connect)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

/// `[acl]`, its lists and its tests as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    pub reserve: Audience,
    pub connect: Audience,
    /// Where `acl.reserve` and `acl.connect` are set: a decision that rests on them names it.
    pub reserve_origin: Origin,
    pub connect_origin: Origin,
    /// Where `acl.bootstrap` is set: what admits a guest.
    pub bootstrap_origin: Origin,
    pub mode: Mode,
    /// Allow and deny entries together, in file order.
    pub entries: Entries,
    pub tests: Vec<Test>,
}

/// What a peer asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    Reserve,
    Connect,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::Reserve => "reserve",
            Operation::Connect => "connect",
        })
    }
}

/// Who is admitted without an entry of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    Members,
    Listed,
    Anyone,
}

/// What a peer is to the network at this moment, beside what the file says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Has a valid, live heartbeat in the ledger.
    Member,
    /// Not a member, and the bootstrap window is open.
    Guest,
    Stranger,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Standing::Member => "member",
            Standing::Guest => "guest",
            Standing::Stranger => "stranger",
        })
    }
}

/// Who is a member: one immutable view, published anew whenever the ledger changes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Live members without this node itself, each with the time of its heartbeat.
    pub members: HashMap<PeerId, UnixTime>,
    /// Members whose heartbeat was withdrawn by a tombstone: their reservations end, where a member that merely went
    /// silent keeps what it holds.
    pub withdrawn: HashSet<PeerId>,
    /// Whether strangers are admitted because no member is known yet.
    pub window: Window,
}

/// `acl.bootstrap` at work. Once closed it stays closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Window {
    Open,
    #[default]
    Closed,
}

impl Membership {
    pub fn standing(&self, peer: &PeerId) -> Standing {
        match self.window {
            _ if self.members.contains_key(peer) => Standing::Member,
            Window::Open => Standing::Guest,
            Window::Closed => Standing::Stranger,
        }
    }
}

/// `[acl] mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Enforce,
    /// Evaluate and report, never refuse.
    Shadow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Allow,
    Deny,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    Peer(PeerId),
    Network(IpNet),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Peer(peer) => peer.fmt(f),
            Subject::Network(network) => network.fmt(f),
        }
    }
}

/// One line that somebody wrote, in `allow`, `deny` or a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub subject: Subject,
    /// The name of the `[[acl.list]]` it stands in; `None`: `acl.allow` or `acl.deny`.
    pub list: Option<Arc<str>>,
    pub origin: Origin,
}

/// `[[acl.test]]`: what the policy must answer to one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    pub name: String,
    pub peer: PeerId,
    /// `None`: as over a relay.
    pub address: Option<IpAddr>,
    /// Whether it is a member of the network; the bootstrap window is closed.
    pub member: bool,
    pub allow: Vec<Operation>,
    pub deny: Vec<Operation>,
    pub origin: Origin,
}

/// A test that got another answer than it wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedTest {
    pub name: String,
    pub origin: Origin,
    pub operation: Operation,
    /// The answer it got.
    pub decision: Decision,
}

impl fmt::Display for FailedTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (got, wanted) = if self.decision.admit {
            ("admitted", "deny")
        } else {
            ("refused", "allow")
        };
        write!(
            f,
            "test \"{}\" wants {wanted} {}, but the peer is {got} by {}",
            self.name, self.operation, self.decision.rule
        )
    }
}

/// What changes from one policy to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    pub added: Changed,
    pub removed: Changed,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    pub total: usize,
    /// The first of them, up to the bound asked for.
    pub first: Vec<(Action, Entry)>,
}

impl Changed {
    fn listing(entries: impl Iterator<Item = (Action, Entry)>, most: usize) -> Changed {
        let mut changed = Changed::default();
        for entry in entries {
            changed.total += 1;
            if changed.first.len() < most {
                changed.first.push(entry);
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Action::{Allow, Deny};
    use Operation::{Connect, Reserve};

    fn peer(number: u8) -> PeerId {
        let mut key = vec![0, 36, 8, 1, 18, 32];
        key.extend([number; 32]);
        PeerId::from_bytes(&key).expect("an Ed25519 key")
    }

    fn entry(line: u32, action: Action, subject: &str) -> (Action, Entry) {
        let subject = match subject.parse() {
            Ok(network) => Subject::Network(network),
            Err(_) => Subject::Peer(peer(subject.parse().expect("a peer's number"))),
        };
        let origin = Origin::File {
            file: "edgevpn.toml".into(),
            line,
        };
        let entry = Entry {
            subject,
            list: None,
            origin,
        };
        (action, entry)
    }

    fn rules(entries: &[(Action, &str)]) -> Rules {
        let numbered = (1..).zip(entries);
        Rules {
            reserve: Audience::Listed,
            connect: Audience::Anyone,
            reserve_origin: Origin::Env("EDGEVPN_RELAY_SERVICE_NETWORK_ONLY"),
            connect_origin: Origin::Default,
            bootstrap_origin: Origin::Default,
            mode: Mode::Enforce,
            entries: numbered
                .map(|(line, (action, subject))| entry(line, *action, subject))
                .collect(),
            tests: Vec::new(),
        }
    }

    fn acl(entries: &[(Action, &str)]) -> Acl {
        Acl::compile(rules(entries))
    }

    fn says(acl: &Acl, operation: Operation, number: u8, address: &str) -> String {
        let address = address.parse().ok();
        let decision = acl.decide(operation, &peer(number), address, Standing::Stranger);
        let verb = if decision.admit { "admit" } else { "refuse" };
        format!("{verb}: {}", decision.rule)
    }

    #[test]
    fn deny_wins_over_allow_and_allow_over_the_audience() {
        let acl = acl(&[
            (Allow, "1"),
            (Deny, "1"),
            (Allow, "2"),
            (Deny, "10.0.0.0/8"),
            (Allow, "10.1.0.0/16"),
            (Allow, "192.0.2.0/24"),
        ]);
        let cases = [
            (1, "", "refuse: edgevpn.toml:2 acl.deny"),
            (1, "192.0.2.1", "refuse: edgevpn.toml:2 acl.deny"),
            (2, "", "admit: edgevpn.toml:3 acl.allow"),
            (2, "10.1.2.3", "refuse: edgevpn.toml:4 acl.deny"),
            (3, "10.1.2.3", "refuse: edgevpn.toml:4 acl.deny"),
            (3, "192.0.2.1", "admit: edgevpn.toml:6 acl.allow"),
            (
                3,
                "198.51.100.1",
                "refuse: env EDGEVPN_RELAY_SERVICE_NETWORK_ONLY acl.reserve",
            ),
        ];
        for (number, address, answer) in cases {
            assert_eq!(says(&acl, Reserve, number, address), answer);
        }
        assert_eq!(says(&acl, Connect, 3, ""), "admit: default acl.connect");
    }

    #[test]
    fn members_and_guests_are_admitted_where_members_are_asked_for() {
        let mut rules = rules(&[(Deny, "2"), (Allow, "3")]);
        rules.reserve = Audience::Members;
        let acl = Acl::compile(rules);
        let by = |number, standing| {
            let decision = acl.decide(Reserve, &peer(number), None, standing);
            (decision.admit, decision.rule.to_string())
        };
        let network_only = "env EDGEVPN_RELAY_SERVICE_NETWORK_ONLY acl.reserve".to_owned();
        assert_eq!(by(1, Standing::Member), (true, network_only.clone()));
        assert_eq!(
            by(1, Standing::Guest),
            (true, "default acl.bootstrap".into())
        );
        assert_eq!(by(1, Standing::Stranger), (false, network_only));
        assert_eq!(
            by(2, Standing::Member),
            (false, "edgevpn.toml:1 acl.deny".into())
        );
        assert_eq!(
            by(3, Standing::Stranger),
            (true, "edgevpn.toml:2 acl.allow".into())
        );
    }

    #[test]
    fn otherwise_is_what_stands_behind_the_entry_that_decides() {
        let acl = acl(&[(Deny, "1"), (Allow, "1"), (Deny, "10.0.0.0/8")]);
        let otherwise = |number, address: &str| {
            let address = address.parse().ok();
            let decision = acl.otherwise(Reserve, &peer(number), address, Standing::Stranger)?;
            Some((decision.admit, decision.rule.key.to_string()))
        };
        assert_eq!(otherwise(1, ""), Some((true, "acl.allow".into())));
        assert_eq!(
            otherwise(2, "10.1.1.1"),
            Some((false, "acl.reserve".into()))
        );
        assert_eq!(otherwise(2, "192.0.2.1"), None);
    }

    #[test]
    fn an_empty_policy_admits_nobody_to_reserve() {
        let decision = acl(&[]).decide(Reserve, &peer(1), None, Standing::Member);
        assert!(!decision.admit);
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address_it_maps() {
        let denied = acl(&[(Deny, "192.0.2.0/24")]);
        assert!(says(&denied, Connect, 1, "::ffff:192.0.2.7").starts_with("refuse"));
        let denied = acl(&[(Deny, "::ffff:192.0.2.0/120")]);
        assert!(says(&denied, Connect, 1, "192.0.2.7").starts_with("refuse"));
        let six = acl(&[(Deny, "::/0")]);
        assert!(says(&six, Connect, 1, "2001:db8::1").starts_with("refuse"));
        assert!(says(&six, Connect, 1, "192.0.2.7").starts_with("admit"));
    }

    #[test]
    fn a_network_is_written_with_or_without_host_bits_and_holds_its_ends() {
        let denied = acl(&[(Deny, "10.0.0.77/8"), (Deny, "2001:db8:1::/48")]);
        for inside in ["10.0.0.0", "10.255.255.255", "2001:db8:1:ffff::"] {
            assert!(
                says(&denied, Connect, 1, inside).starts_with("refuse"),
                "{inside}"
            );
        }
        for outside in ["9.255.255.255", "11.0.0.0", "2001:db8:2::", "2001:db8::"] {
            assert!(
                says(&denied, Connect, 1, outside).starts_with("admit"),
                "{outside}"
            );
        }
    }

    #[test]
    fn every_kind_of_peer_id_is_found_and_told_back() {
        let kinds = [
            (0x00, [&[8, 1, 18, 32][..], &[7; 32]].concat()),
            (0x00, [&[8, 2, 18, 33, 2][..], &[7; 32]].concat()),
            (0x00, [&[8, 2, 18, 33, 3][..], &[7; 32]].concat()),
            (0x00, [&[8, 2, 18, 33, 0][..], &[7; 32]].concat()),
            (0x00, vec![7; 9]),
            (0x12, vec![7; 32]),
            (0x12, vec![7; 20]),
        ];
        let peers = kinds.map(|(code, digest)| {
            let hash = libp2p::multihash::Multihash::wrap(code, &digest).expect("short");
            PeerId::from_multihash(hash).expect("a peer id")
        });
        for listed in peers {
            let (_, mut entry) = entry(1, Deny, "1");
            entry.subject = Subject::Peer(listed);
            let mut rules = rules(&[]);
            rules.entries.push(Deny, entry.clone());
            let acl = Acl::compile(rules);
            assert_eq!(acl.entries().collect::<Vec<_>>(), [(Deny, entry)]);
            for other in peers {
                let decision = acl.decide(Connect, &other, None, Standing::Stranger);
                assert_eq!(decision.admit, other != listed, "{listed} {other}");
            }
        }
    }

    #[test]
    fn a_list_entry_names_its_list_and_the_line_of_its_file() {
        let mut rules = rules(&[(Allow, "9")]);
        rules.entries.push(
            Allow,
            Entry {
                subject: Subject::Peer(peer(1)),
                list: Some("ops".into()),
                origin: Origin::File {
                    file: "allow.d/ops.txt".into(),
                    line: 3,
                },
            },
        );
        let acl = Acl::compile(rules);
        let answer = "admit: allow.d/ops.txt:3 acl.list.ops";
        assert_eq!(says(&acl, Reserve, 1, ""), answer);
    }

    #[test]
    fn two_policies_are_equal_when_they_admit_the_same() {
        let one = acl(&[(Allow, "1"), (Deny, "2"), (Deny, "10.0.0.0/8")]);
        let other = acl(&[
            (Deny, "10.0.0.0/8"),
            (Deny, "10.1.0.0/16"),
            (Deny, "2"),
            (Allow, "1"),
            (Allow, "1"),
        ]);
        assert_eq!(one, other);
        assert_ne!(
            one,
            acl(&[(Allow, "1"), (Allow, "2"), (Deny, "10.0.0.0/8")])
        );
        assert_ne!(one, acl(&[(Allow, "1"), (Deny, "2"), (Deny, "10.0.0.0/9")]));
        assert_ne!(one, acl(&[(Allow, "1"), (Deny, "3"), (Deny, "10.0.0.0/8")]));
        let mut open = rules(&[(Allow, "1"), (Deny, "2"), (Deny, "10.0.0.0/8")]);
        open.reserve = Audience::Anyone;
        assert_ne!(one, Acl::compile(open));
    }

    #[test]
    fn a_difference_lists_what_is_new_and_what_is_gone_and_bounds_the_list() {
        let old = acl(&[(Allow, "1"), (Deny, "10.0.0.0/8"), (Deny, "10.1.0.0/16")]);
        let new = acl(&[
            (Deny, "10.0.0.0/8"),
            (Deny, "1"),
            (Allow, "2"),
            (Allow, "3"),
        ]);
        let difference = old.difference(&new, 2);
        assert_eq!(difference.added.total, 3);
        let listed = |changed: Changed| {
            let told = |(action, entry): (Action, Entry)| {
                format!("{action:?} {} {}", entry.subject, entry.origin)
            };
            changed.first.into_iter().map(told).collect::<Vec<_>>()
        };
        let added = [(Deny, 1, 2), (Allow, 2, 3)].map(|(action, number, line)| {
            format!("{action:?} {} edgevpn.toml:{line}", peer(number))
        });
        assert_eq!(listed(difference.added), added);
        let removed = [
            format!("Allow {} edgevpn.toml:1", peer(1)),
            "Deny 10.1.0.0/16 edgevpn.toml:3".to_owned(),
        ];
        assert_eq!(listed(difference.removed), removed);
        let spelt = acl(&[(Allow, "1"), (Deny, "10.7.0.0/8"), (Deny, "10.1.2.3/16")]);
        assert_eq!(old.difference(&spelt, 9), Difference::default());
    }

    #[test]
    fn an_allow_entry_that_a_deny_entry_overrides_is_named_with_it() {
        let acl = acl(&[
            (Allow, "1"),
            (Allow, "2"),
            (Deny, "2"),
            (Allow, "10.1.0.0/16"),
            (Deny, "10.0.0.0/8"),
            (Allow, "0.0.0.0/0"),
        ]);
        let lines: Vec<_> = acl
            .ineffective()
            .map(|(allow, deny)| format!("{} {}", allow.origin, deny.origin))
            .collect();
        let expected = [
            "edgevpn.toml:2 edgevpn.toml:3",
            "edgevpn.toml:4 edgevpn.toml:5",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_policy_test_that_fails_says_what_it_wanted_and_which_rule_decided() {
        let mut rules = rules(&[(Allow, "1"), (Deny, "203.0.113.0/24")]);
        let test = |name: &str, allow: &[Operation], deny: &[Operation]| Test {
            name: name.into(),
            peer: peer(1),
            address: Some([203, 0, 113, 9].into()),
            member: false,
            allow: allow.to_vec(),
            deny: deny.to_vec(),
            origin: Origin::Default,
        };
        rules.tests = vec![
            test("the lab range cannot reserve", &[], &[Reserve, Connect]),
            test("hub may connect", &[Connect], &[]),
        ];
        let failed = Acl::compile(rules).run_tests();
        let told: Vec<_> = failed.iter().map(ToString::to_string).collect();
        let expected = "test \"hub may connect\" wants allow connect, but the peer is refused by edgevpn.toml:2 acl.deny";
        assert_eq!(told, [expected]);
    }
}
