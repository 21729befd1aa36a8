//! The access decision: who may reserve a slot and who may open a circuit.
//!
//! One pure function for every caller: deny entry → refuse; allow entry → admit; `anyone` → admit; otherwise refuse.
//! Peers are compared as canonical bytes, addresses as prefixes (an IPv4-mapped IPv6 address is IPv4; an IPv6 network
//! that merely contains the mapped range, like `::/0`, is about IPv6 only).

use std::{collections::HashSet, fmt, hash::RandomState, net::IpAddr, sync::Arc};

use crate::id::{Origin, PeerId};
use ipnet::IpNet;

mod entries;
mod index;
mod rule;

pub use entries::Entries;
pub use rule::{Decision, RuleKey, RuleRef};

use entries::Row;
use index::{Sought, Subjects};

/// The compiled policy. Two are equal when they admit the same, wherever their entries are written.
pub struct Acl {
    reserve: Audience,
    connect: Audience,
    reserve_origin: Origin,
    connect_origin: Origin,
    mode: Mode,
    tests: Vec<Test>,
    entries: Entries,
    hasher: RandomState,
    denied: Subjects,
    allowed: Subjects,
}

impl Acl {
    /// Sorts the entries into indices; afterwards a decision does not depend on how many there are.
    pub fn compile(rules: Rules) -> Acl {
        let hasher = RandomState::new();
        let entries = rules.entries;
        Acl {
            reserve: rules.reserve,
            connect: rules.connect,
            reserve_origin: rules.reserve_origin,
            connect_origin: rules.connect_origin,
            mode: rules.mode,
            tests: rules.tests,
            denied: Subjects::of(&entries, Action::Deny, &hasher),
            allowed: Subjects::of(&entries, Action::Allow, &hasher),
            hasher,
            entries,
        }
    }

    /// Whether the rules admit this peer, and the rule that says so. `mode` is not asked: whoever enforces does that.
    ///
    /// `address` is where the peer is connected from; `None` (over a relay, or not connected) matches no network entry.
    pub fn decide(&self, operation: Operation, peer: &PeerId, address: Option<IpAddr>) -> Decision {
        let sought = Sought::new(peer, &self.hasher);
        let address = address.map(|address| address.to_canonical());
        for (subjects, admit) in [(&self.denied, false), (&self.allowed, true)] {
            let found = subjects.find(&self.entries, &sought, address);
            if let Some(rule) = found.and_then(|row| self.entries.rule(row)) {
                return Decision { admit, rule };
            }
        }
        let (audience, origin) = match operation {
            Operation::Reserve => (self.reserve, &self.reserve_origin),
            Operation::Connect => (self.connect, &self.connect_origin),
        };
        Decision {
            admit: audience == Audience::Anyone,
            rule: RuleRef {
                key: RuleKey::Audience(operation),
                origin: origin.clone(),
            },
        }
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// How many entries allow and how many deny, as written: duplicates count.
    pub fn entry_counts(&self) -> Counts {
        self.entries.counts()
    }

    /// All entries as written; peers first, then networks, each in file order.
    pub fn entries(&self) -> impl Iterator<Item = (Action, Entry)> + '_ {
        self.entries.iter()
    }

    /// Runs `[[acl.test]]` against these rules and returns what failed.
    pub fn run_tests(&self) -> Vec<FailedTest> {
        let mut failed = Vec::new();
        for test in &self.tests {
            let allow = test.allow.iter().map(|operation| (*operation, true));
            let deny = test.deny.iter().map(|operation| (*operation, false));
            for (operation, expected) in allow.chain(deny) {
                let decision = self.decide(operation, &test.peer, test.address);
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
        self.entries.iter().filter_map(|(action, allow)| {
            let over = match (action, allow.subject) {
                (Action::Deny, _) => return None,
                (Action::Allow, Subject::Peer(peer)) => self.find_peer(&self.denied, &peer),
                (Action::Allow, Subject::Network(network)) => self.denied.find_around(network),
            }?;
            let (_, deny) = self.entries.entry(over)?;
            Some((allow, deny))
        })
    }

    /// What `newer` adds to these entries and what it removes, by what they say and not by where they say it.
    /// Lists the first `most` of each and counts the rest.
    pub fn difference(&self, newer: &Acl, most: usize) -> Difference {
        Difference {
            added: newer.beyond(self, most),
            removed: self.beyond(newer, most),
        }
    }

    /// Entries of `self` that `other` does not have.
    fn beyond(&self, other: &Acl, most: usize) -> Changed {
        let networks: HashSet<(Action, IpNet)> = other
            .entries
            .rows()
            .filter_map(|row| Some((other.entries.action(row)?, other.entries.network(row)?)))
            .collect();
        let mut changed = Changed::default();
        for (action, entry) in self.entries.iter() {
            let known = match (action, entry.subject) {
                (Action::Deny, Subject::Peer(peer)) => {
                    other.find_peer(&other.denied, &peer).is_some()
                }
                (Action::Allow, Subject::Peer(peer)) => {
                    other.find_peer(&other.allowed, &peer).is_some()
                }
                (action, Subject::Network(network)) => networks.contains(&(action, network)),
            };
            if !known {
                changed.total += 1;
                if changed.first.len() < most {
                    changed.first.push((action, entry));
                }
            }
        }
        changed
    }

    fn find_peer(&self, subjects: &Subjects, peer: &PeerId) -> Option<Row> {
        subjects.find_peer(&self.entries, &Sought::new(peer, &self.hasher))
    }
}

impl PartialEq for Acl {
    fn eq(&self, other: &Self) -> bool {
        let same = |mine: &Subjects, its: &Subjects| mine.same(&self.entries, its, &other.entries);
        self.reserve == other.reserve
            && self.connect == other.connect
            && self.mode == other.mode
            && same(&self.denied, &other.denied)
            && same(&self.allowed, &other.allowed)
    }
}

impl fmt::Debug for Acl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acl")
            .field("reserve", &self.reserve)
            .field("connect", &self.connect)
            .field("mode", &self.mode)
            .field("entries", &self.entries)
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
    Listed,
    Anyone,
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

/// How many entries there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub allow: usize,
    pub deny: usize,
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
