//! What a new configuration changes, what that costs, and how an attempt to apply it ended.
//!
//! A change is data, so that start-up is a change from the empty configuration, and an edited comment is none.

use crate::{
    config::{Class, Diagnostic},
    id::Generation,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// Everything that differs between two configurations, in key order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub changes: Vec<Change>,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The most that any change costs; `None` if nothing changes.
    pub fn class(&self) -> Option<Class> {
        self.changes.iter().map(|change| change.class).max()
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.changes.iter().map(|change| change.key.as_str())
    }

    /// The keys that cost more than `limit`.
    pub fn keys_above(&self, limit: Class) -> Vec<String> {
        self.changes
            .iter()
            .filter(|change| change.class > limit)
            .map(|change| change.key.clone())
            .collect()
    }

    /// Whether a change touches `key` or a key below it.
    pub fn touches(&self, key: &str) -> bool {
        self.keys().any(|changed| {
            changed
                .strip_prefix(key)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }
}

/// One key that gets another value, or one list whose entries change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// A key path as `relay.resources.max_circuits`, or `acl.list.<name>` when the content of the list file changed.
    pub key: String,
    pub class: Class,
    /// Absent: the key was not there. Values are in canonical form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<Value>,
    /// Absent: the key is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<Value>,
    /// For keys that hold many: what is new among them.
    #[serde(default, skip_serializing_if = "Entries::is_empty")]
    pub added: Entries,
    #[serde(default, skip_serializing_if = "Entries::is_empty")]
    pub removed: Entries,
    /// What it does to those who use the node now, in words; filled in by the running node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<String>,
}

/// Entries that came or went: how many, and the first hundred of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Entries {
    pub total: usize,
    pub first: Vec<Item>,
}

/// One entry, and where it stands or stood: `allow.d/ops.txt:17`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    pub entry: String,
    pub origin: String,
}

impl Entries {
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }
}

/// How an attempt to apply a file ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The file is in force under a new generation.
    Applied,
    /// The file says what is in force already.
    Unchanged,
    /// The file has errors, or looks half-written. Nothing happened.
    Rejected,
    /// The file is valid, but a change costs more than allowed. Nothing happened.
    Refused,
    /// The file is valid, but could not be carried out: an address is taken. Nothing happened.
    Failed,
    /// What was applied before is in force again, because nobody confirmed.
    RolledBack,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Applied => "applied",
            Outcome::Unchanged => "unchanged",
            Outcome::Rejected => "rejected",
            Outcome::Refused => "refused",
            Outcome::Failed => "failed",
            Outcome::RolledBack => "rolled_back",
        }
    }

    /// Whether the file is in force after it.
    pub fn is_success(self) -> bool {
        match self {
            Outcome::Applied | Outcome::Unchanged => true,
            Outcome::Rejected | Outcome::Refused | Outcome::Failed | Outcome::RolledBack => false,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What made the node look at its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// The node starts.
    Start,
    /// The file or one of its list files changed.
    Watch,
    /// SIGHUP.
    Signal,
    /// `edgevpn reload`.
    Command,
    /// A time-out: nobody confirmed, or an unreadable list became too old.
    Timer,
}

impl Trigger {
    pub fn as_str(self) -> &'static str {
        match self {
            Trigger::Start => "start",
            Trigger::Watch => "watch",
            Trigger::Signal => "signal",
            Trigger::Command => "command",
            Trigger::Timer => "timer",
        }
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The verdict on one attempt, for programs: what `reload --wait` prints and `status --json` repeats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Acknowledgement {
    pub outcome: Outcome,
    /// In force after the attempt.
    pub generation: Generation,
    /// SHA-256 of the file this attempt read, in hexadecimal; empty if it could not be read.
    pub sha256: String,
    /// SHA-256 of the file in force.
    pub applied_sha256: String,
    pub trigger: Trigger,
    /// Milliseconds from the decision to read until here.
    pub took_ms: f64,
    /// The most that a change of this file costs; absent if nothing changes or the file is invalid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<Diagnostic>,
    /// With `refused`: the keys that cost too much.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused_keys: Vec<String>,
    /// With `failed` and `rolled_back`: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What the change ended, once the node has ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled: Option<Settled>,
}

/// What a new policy ended or will let run out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    pub reservations_ended: u64,
    pub circuits_cut: u64,
    /// Above a lowered cap, left to end by themselves.
    pub circuits_draining: u64,
}

/// How the node stands to its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The file is in force.
    InSync,
    /// The file is in force and will be undone unless confirmed.
    PendingConfirm,
    /// The file was rejected, refused or failed; an earlier one is in force.
    Rejected,
    /// The file was in force and was undone.
    RolledBack,
    /// The node started from the last good file because the present one is invalid.
    LastKnownGood,
    /// The file is in force, but changes of it or of a list may be noticed late or not at all.
    WatchDegraded,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            State::InSync => "in_sync",
            State::PendingConfirm => "pending_confirm",
            State::Rejected => "rejected",
            State::RolledBack => "rolled_back",
            State::LastKnownGood => "last_known_good",
            State::WatchDegraded => "watch_degraded",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
