//! Which rule decided, so that logs, metrics and a refusal say the same thing.

use std::{fmt, sync::Arc};

use super::Operation;
use crate::id::Origin;

/// The answer to one question, and what it rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub admit: bool,
    pub rule: RuleRef,
}

/// One rule of the file. Displays as `edgevpn.toml:52 acl.deny`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RuleRef {
    pub key: RuleKey,
    pub origin: Origin,
}

/// The key a rule stands under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RuleKey {
    Allow,
    Deny,
    /// `[[acl.list]]` with this name; the origin is the line of its file.
    List(Arc<str>),
    /// `acl.reserve` or `acl.connect`: no entry named the peer.
    Audience(Operation),
    /// `acl.bootstrap`: a guest, admitted while the window is open.
    Bootstrap,
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.origin, self.key)
    }
}

impl fmt::Display for RuleKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RuleKey::Allow => f.write_str("acl.allow"),
            RuleKey::Deny => f.write_str("acl.deny"),
            RuleKey::List(name) => write!(f, "acl.list.{name}"),
            RuleKey::Audience(operation) => write!(f, "acl.{operation}"),
            RuleKey::Bootstrap => f.write_str("acl.bootstrap"),
        }
    }
}
