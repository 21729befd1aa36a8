//! Tells a half-written file from an edited one, as far as that can be told.
//!
//! A truncated TOML file is very often valid TOML, and what it lacks would open the node: no `[acl]`, no `[limits]`. Such a
//! file is held back until it changes again or somebody insists.

use crate::{config::Keys, id::Origin};
use std::{collections::BTreeSet, fmt};

/// Sections without which a node is more open or harder to correct. Whoever wants to be rid of one says so with `--force`.
const SECTIONS: [&str; 3] = ["acl", "limits", "reload"];

/// What a candidate has lost against the applied file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Sections the applied file has and the candidate does not.
    pub sections: Vec<&'static str>,
    /// Keys that the applied file sets and the candidate does not.
    pub keys: usize,
    /// Keys that the applied file sets.
    pub of: usize,
}

/// Why `candidate` looks half-written beside `applied`, if it does.
pub fn lost(applied: &Keys, candidate: &Keys) -> Option<Lost> {
    let (before, after) = (written(applied), written(candidate));
    let has = |keys: &BTreeSet<&str>, section: &str| {
        keys.iter().any(|key| {
            key.strip_prefix(section)
                .is_some_and(|rest| rest.starts_with('.'))
        })
    };
    let sections: Vec<_> = SECTIONS
        .into_iter()
        .filter(|section| has(&before, section) && !has(&after, section))
        .collect();
    let keys = before.difference(&after).count();
    let lost = Lost {
        sections,
        keys,
        of: before.len(),
    };
    let most_are_gone = lost.keys > lost.of / 2;
    (most_are_gone || !lost.sections.is_empty()).then_some(lost)
}

/// The keys that the file itself sets. What stands in a list file is not among them.
fn written(keys: &Keys) -> BTreeSet<&str> {
    keys.iter()
        .filter(|(_, effective)| matches!(effective.origin, Origin::File { .. }))
        .map(|(key, _)| key)
        .collect()
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lost { sections, keys, of } = self;
        if !sections.is_empty() {
            let sections: Vec<_> = sections
                .iter()
                .map(|section| format!("[{section}]"))
                .collect();
            write!(f, "{} gone from the file; ", sections.join(" and "))?;
        }
        write!(f, "{keys} of the {of} keys in force are no longer set")
    }
}
