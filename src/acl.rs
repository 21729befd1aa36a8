//! The access decision: who may reserve a slot and who may open a circuit.
//!
//! One pure function for every caller: deny entry → refuse; allow entry → admit; `anyone` → admit; otherwise refuse.
//! Peers are compared as canonical bytes, addresses as prefixes (an IPv4-mapped IPv6 address is IPv4).

use std::net::IpAddr;

use crate::id::{Origin, PeerId};
use ipnet::IpNet;

/// What a peer asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    Reserve,
    Connect,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Allow,
    Deny,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    Peer(PeerId),
    Network(IpNet),
}

/// One line that somebody wrote, in `allow`, `deny` or a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub subject: Subject,
    pub origin: Origin,
}

/// `[acl]`, its lists and its tests as written, allow and deny together in file order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    pub reserve: Audience,
    pub connect: Audience,
    pub mode: Mode,
    pub entries: Vec<(Action, Entry)>,
    pub tests: Vec<Test>,
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

/// The compiled policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Acl {
    rules: Rules,
}

impl Acl {
    pub fn compile(rules: Rules) -> Acl {
        Acl { rules }
    }

    pub fn mode(&self) -> Mode {
        self.rules.mode
    }
}
