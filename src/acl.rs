//! The access decision: who may reserve a slot and who may open a circuit.
//!
//! One pure function for every caller: deny entry → refuse; allow entry → admit; `anyone` → admit; otherwise refuse.
//! Peers are compared as canonical bytes, addresses as prefixes (an IPv4-mapped IPv6 address is IPv4).

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
