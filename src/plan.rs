//! What a new configuration changes, what that costs, and how an attempt to apply it ended.
//!
//! A change is data: [`Plan::between`] compares the effective keys of two configurations, so that start-up is the plan from
//! [`Config::empty`], and an edited comment is no change at all.

use crate::{
    config::{Class, Config, Diagnostic, Effective, class_of},
    id::Generation,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// Entries of one change that are listed by name. A list file may change by a million lines; what an operator reads, and what
/// an acknowledgement carries, stays one page. The totals are exact.
const LISTED: usize = 100;

/// Everything that differs between two configurations, in key order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub changes: Vec<Change>,
}

impl Plan {
    /// What turns `old` into `new`. Empty exactly if both have the same effective values and admit the same.
    pub fn between(old: &Config, new: &Config) -> Plan {
        let before: BTreeMap<&str, &Effective> = old.keys.iter().collect();
        let after: BTreeMap<&str, &Effective> = new.keys.iter().collect();
        let keys: BTreeSet<&str> = before.keys().chain(after.keys()).copied().collect();
        let mut changes: BTreeMap<String, Change> = keys
            .into_iter()
            .filter_map(|key| {
                let (was, is) = (before.get(key).copied(), after.get(key).copied());
                let change = Change::of_key(key, was, is)?;
                Some((change.key.clone(), change))
            })
            .collect();
        for (added, entry) in new
            .acl
            .beyond(&old.acl)
            .map(|(_, entry)| (true, entry))
            .chain(old.acl.beyond(&new.acl).map(|(_, entry)| (false, entry)))
        {
            // Entries of `acl.allow` and `acl.deny` are compared as values of these keys.
            let Some(list) = entry.list else {
                continue;
            };
            let key = format!("acl.list.{list}");
            let class = class_of(&key);
            let change = changes
                .entry(key)
                .or_insert_with_key(|key| Change::new(key.clone(), class));
            let entries = if added {
                &mut change.added
            } else {
                &mut change.removed
            };
            entries.push(entry.subject, entry.origin);
        }
        Plan {
            changes: changes.into_values().collect(),
        }
    }

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
    /// What sets the new value: `edgevpn.toml:31`, `env NAME` or `default`. Absent with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// For keys that hold many: what is new among them.
    #[serde(default, skip_serializing_if = "Entries::is_empty")]
    pub added: Entries,
    #[serde(default, skip_serializing_if = "Entries::is_empty")]
    pub removed: Entries,
    /// What it does to those who use the node now, in words; filled in by the running node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<String>,
}

impl Change {
    fn new(key: String, class: Class) -> Self {
        Change {
            key,
            class,
            old: None,
            new: None,
            origin: None,
            added: Entries::default(),
            removed: Entries::default(),
            effect: None,
        }
    }

    fn of_key(key: &str, was: Option<&Effective>, is: Option<&Effective>) -> Option<Self> {
        let (old, new) = (was.map(|e| &e.value), is.map(|e| &e.value));
        if old == new {
            return None;
        }
        let mut change = Change::new(key.to_owned(), class_of(key));
        let (left, joined) = (items(was), items(is));
        change.added =
            Entries::listing(joined.iter().filter(|(item, _)| !left.contains_key(*item)));
        change.removed =
            Entries::listing(left.iter().filter(|(item, _)| !joined.contains_key(*item)));
        change.old = old.cloned();
        change.new = new.cloned();
        change.origin = is.map(|effective| effective.origin.to_string());
        Some(change)
    }
}

/// The elements of an array value, each with the place that set it.
fn items(effective: Option<&Effective>) -> BTreeMap<String, String> {
    let Some(Effective {
        value: Value::Array(elements),
        origin,
    }) = effective
    else {
        return BTreeMap::new();
    };
    elements
        .iter()
        .map(|element| match element {
            Value::String(text) => (text.clone(), origin.to_string()),
            other => (other.to_string(), origin.to_string()),
        })
        .collect()
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

    fn listing<E: fmt::Display, O: fmt::Display>(
        entries: impl IntoIterator<Item = (E, O)>,
    ) -> Self {
        let mut listed = Entries::default();
        for (entry, origin) in entries {
            listed.push(entry, origin);
        }
        listed
    }

    fn push(&mut self, entry: impl fmt::Display, origin: impl fmt::Display) {
        self.total += 1;
        if self.first.len() < LISTED {
            self.first.push(Item {
                entry: entry.to_string(),
                origin: origin.to_string(),
            });
        }
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
    pub const ALL: [Outcome; 6] = [
        Outcome::Applied,
        Outcome::Unchanged,
        Outcome::Rejected,
        Outcome::Refused,
        Outcome::Failed,
        Outcome::RolledBack,
    ];

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
    pub const ALL: [Trigger; 5] = [
        Trigger::Start,
        Trigger::Watch,
        Trigger::Signal,
        Trigger::Command,
        Trigger::Timer,
    ];

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, ListFile, Source, Surroundings};
    use std::path::PathBuf;

    /// A configuration whose list `ops` holds these lines.
    fn config(text: &str, list: &str) -> Config {
        let surroundings = Surroundings {
            directory: PathBuf::from("/etc/edgevpn"),
            host_name: "edge-7".to_owned(),
            ..Surroundings::default()
        };
        let source = Source {
            name: "edgevpn.toml".to_owned(),
            bytes: format!("version = 1\n{text}").into_bytes(),
        };
        let draft = config::parse(source, &surroundings);
        let lists = draft.list_files().into_iter().map(|path| ListFile {
            path,
            content: Ok(list.as_bytes().to_vec()),
        });
        let lists = lists.collect();
        let checked = draft.resolve(lists);
        checked
            .config
            .unwrap_or_else(|| panic!("{:#?}", checked.diagnostics))
    }

    fn variants() -> Vec<Config> {
        let list = "[[acl.list]]\nname = \"ops\"\naction = \"deny\"\nfile = \"ops.txt\"\n";
        let stays = "acl.reserve = \"anyone\"\n";
        vec![
            Config::empty(),
            config("", ""),
            config("relay.resources.max_circuits = 16\n", ""),
            config(
                "transport.listen = [\"/ip4/127.0.0.1/tcp/4501\"]\nlimits.connections = 9\n",
                "",
            ),
            config("node.state_dir = \"elsewhere\"\nnode.name = \"hub\"\n", ""),
            config(&format!("acl.deny = [\"192.0.2.0/24\"]\n{stays}"), ""),
            config(&format!("{stays}{list}"), "192.0.2.0/24\n"),
            config(&format!("{stays}{list}"), "198.51.100.0/24\n192.0.2.1\n"),
        ]
    }

    #[test]
    fn nothing_lies_between_a_configuration_and_itself() {
        for config in variants() {
            assert_eq!(Plan::between(&config, &config), Plan::default());
        }
    }

    #[test]
    fn applying_what_lies_between_two_leads_from_one_to_the_other() {
        let variants = variants();
        for old in &variants {
            for new in &variants {
                let values = |config: &Config| -> BTreeMap<String, Value> {
                    config
                        .keys
                        .iter()
                        .map(|(key, effective)| (key.to_owned(), effective.value.clone()))
                        .collect()
                };
                let mut keys = values(old);
                let plan = Plan::between(old, new);
                for change in plan
                    .changes
                    .iter()
                    .filter(|change| change.old != change.new)
                {
                    assert_eq!(keys.remove(&change.key), change.old);
                    if let Some(value) = &change.new {
                        keys.insert(change.key.clone(), value.clone());
                    }
                }
                assert_eq!(keys, values(new));
                assert_eq!(
                    plan.is_empty(),
                    values(old) == values(new) && old.acl == new.acl
                );
            }
        }
    }

    #[test]
    fn the_class_of_a_plan_is_that_of_its_dearest_change() {
        let base = config("", "");
        let class = |text: &str| Plan::between(&base, &config(text, "")).class();
        assert_eq!(class(""), None);
        assert_eq!(class("limits.connections = 9\n"), Some(Class::Live));
        let listen = "transport.listen = []\nlimits.connections = 9\n";
        assert_eq!(class(listen), Some(Class::Rebind));
        assert_eq!(
            class(&format!("node.state_dir = \"x\"\n{listen}")),
            Some(Class::Restart)
        );
        let dear = Plan::between(
            &base,
            &config(&format!("node.state_dir = \"x\"\n{listen}"), ""),
        );
        assert!(
            dear.keys_above(Class::Rejoin)
                .iter()
                .all(|key| key.starts_with("node."))
        );
    }

    #[test]
    fn entries_that_come_and_go_are_named_with_their_places() {
        let list = "[[acl.list]]\nname = \"ops\"\naction = \"deny\"\nfile = \"ops.txt\"\n";
        let old = config(list, "192.0.2.0/24\n198.51.100.7\n");
        let new = config(list, "# moved down\n192.0.2.0/24\n203.0.113.0/24 # new\n");
        let plan = Plan::between(&old, &new);
        let [change] = &plan.changes[..] else {
            panic!("{plan:#?}");
        };
        assert_eq!(
            (change.key.as_str(), change.class),
            ("acl.list.ops", Class::Live)
        );
        assert_eq!((&change.old, &change.new), (&None, &None));
        let only = |entries: &Entries| {
            (
                entries.total,
                entries.first[0].entry.clone(),
                entries.first[0].origin.clone(),
            )
        };
        assert_eq!(
            only(&change.added),
            (1, "203.0.113.0/24".to_owned(), "ops.txt:3".to_owned())
        );
        assert_eq!(
            only(&change.removed),
            (1, "198.51.100.7/32".to_owned(), "ops.txt:2".to_owned())
        );
    }

    #[test]
    fn elements_of_an_array_are_named_with_the_line_of_their_key() {
        let old = config("acl.deny = [\"192.0.2.0/24\", \"198.51.100.0/24\"]\n", "");
        let new = config(
            "\nacl.deny = [\"198.51.100.0/24\", \"203.0.113.0/24\"]\n",
            "",
        );
        let plan = Plan::between(&old, &new);
        let [change] = &plan.changes[..] else {
            panic!("{plan:#?}");
        };
        assert_eq!(change.key, "acl.deny");
        assert_eq!(change.added.first[0].entry, "203.0.113.0/24");
        assert_eq!(change.added.first[0].origin, "edgevpn.toml:3");
        assert_eq!(change.removed.first[0].entry, "192.0.2.0/24");
        assert_eq!(change.removed.first[0].origin, "edgevpn.toml:2");
    }

    #[test]
    fn a_long_list_is_cut_and_counted() {
        let list = "[[acl.list]]\nname = \"ops\"\naction = \"deny\"\nfile = \"ops.txt\"\n";
        let long: String = (0..1000)
            .map(|n| format!("10.{}.{}.0/24\n", n / 250, n % 250))
            .collect();
        let plan = Plan::between(&config(list, ""), &config(list, &long));
        assert_eq!(plan.changes[0].added.total, 1000);
        assert_eq!(plan.changes[0].added.first.len(), LISTED);
    }

    #[test]
    fn a_change_below_a_section_touches_it() {
        let plan = Plan::between(
            &config("", ""),
            &config("relay.resources.max_circuits = 16\n", ""),
        );
        assert!(plan.touches("relay") && plan.touches("relay.resources.max_circuits"));
        assert!(!plan.touches("relay.resources.max") && !plan.touches("acl"));
    }

    #[test]
    fn an_acknowledgement_survives_json() {
        let acknowledgement = Acknowledgement {
            outcome: Outcome::RolledBack,
            generation: Generation(13),
            sha256: "ab".to_owned(),
            applied_sha256: "cd".to_owned(),
            trigger: Trigger::Timer,
            took_ms: 1.5,
            class: Some(Class::Rebind),
            changes: Plan::between(&Config::empty(), &config("", "")).changes,
            diagnostics: Vec::new(),
            refused_keys: vec!["node.key_file".to_owned()],
            cause: Some("nobody confirmed".to_owned()),
            settled: Some(Settled::default()),
        };
        let json = serde_json::to_string(&acknowledgement).unwrap();
        assert_eq!(
            serde_json::from_str::<Acknowledgement>(&json).unwrap(),
            acknowledgement
        );
        assert!(json.contains("\"rolled_back\"") && json.contains("\"timer\""));
    }
}
