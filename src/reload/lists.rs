//! What stands in for a list file that cannot be read.
//!
//! Its last content, until that is older than the list's `max_stale`. From then on an allow list counts as empty and a deny
//! list keeps its last content: an error never admits anybody.

use super::{
    read::Content,
    sight::{Sight, Subject},
};
use crate::{
    acl::Action,
    config::{AccessList, Checked, Code, Diagnostic, Severity},
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// The list files in force, by absolute path.
#[derive(Clone, Debug, Default)]
pub struct Lists(BTreeMap<PathBuf, List>);

#[derive(Clone, Debug)]
struct List {
    content: Arc<Content>,
    unreadable_since: Option<Instant>,
}

/// A verdict, and what it rests on.
#[derive(Clone, Debug)]
pub struct Judged {
    pub checked: Checked,
    /// The content of every list, what stands in for an unreadable one included.
    pub contents: BTreeMap<PathBuf, Arc<Content>>,
    /// When a list becomes too old next.
    pub stale_at: Option<Instant>,
}

impl Lists {
    /// Checks the files of a look, with stand-ins for lists that could be read before.
    pub fn judge(&self, subject: &Subject, sight: &Sight, now: Instant) -> Judged {
        let missing: BTreeMap<&PathBuf, &List> = sight
            .lists
            .iter()
            .filter(|(_, content)| content.is_err())
            .filter_map(|(path, _)| self.0.get_key_value(path))
            .collect();
        let mut instead: BTreeMap<PathBuf, Vec<u8>> = missing
            .iter()
            .map(|(path, list)| ((*path).clone(), list.content.bytes.clone()))
            .collect();
        let mut checked = sight.check(subject, &instead);

        let mut stale_at = None;
        let mut findings = Vec::new();
        if let Some(config) = &checked.config {
            for (path, list) in missing {
                let lists = config.access.lists.iter();
                let uses: Vec<&AccessList> = lists.filter(|list| list.path == *path).collect();
                let age = list
                    .unreadable_since
                    .map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
                let bound = uses.iter().map(|list| list.max_stale).min();
                let empty = bound.is_some_and(|bound| age >= bound)
                    && uses.iter().all(|list| list.action == Action::Allow);
                if empty {
                    instead.insert(path.clone(), Vec::new());
                } else if let Some(bound) = bound.filter(|bound| age < *bound) {
                    let due = now + (bound - age);
                    stale_at = Some(stale_at.map_or(due, |earlier: Instant| earlier.min(due)));
                }
                findings.push(finding(sight, path, &uses, empty));
            }
        }
        if instead.values().any(Vec::is_empty) {
            checked = sight.check(subject, &instead);
        }
        checked.diagnostics.append(&mut findings);
        let contents = sight.lists.iter().filter_map(|(path, content)| {
            let content = content
                .as_ref()
                .ok()
                .or_else(|| self.0.get(path).map(|list| &list.content))?;
            Some((path.clone(), content.clone()))
        });
        Judged {
            contents: contents.collect(),
            checked,
            stale_at,
        }
    }

    /// Notes which of the lists in force can be read.
    pub fn looked(&mut self, sight: &Sight, now: Instant) {
        for (path, content) in &sight.lists {
            if let Some(list) = self.0.get_mut(path) {
                list.unreadable_since = match content {
                    Ok(_) => None,
                    Err(_) => list.unreadable_since.or(Some(now)),
                };
            }
        }
    }

    /// These contents are in force from now on.
    pub fn adopt(&mut self, contents: &BTreeMap<PathBuf, Arc<Content>>) {
        let mut before = std::mem::take(&mut self.0);
        self.0 = contents
            .iter()
            .map(|(path, content)| {
                let unreadable_since = before.remove(path).and_then(|list| list.unreadable_since);
                let content = content.clone();
                (
                    path.clone(),
                    List {
                        content,
                        unreadable_since,
                    },
                )
            })
            .collect();
    }

    pub fn unreadable(&self) -> impl Iterator<Item = &Path> {
        let unreadable = self
            .0
            .iter()
            .filter(|(_, list)| list.unreadable_since.is_some());
        unreadable.map(|(path, _)| path.as_path())
    }
}

fn finding(sight: &Sight, path: &Path, uses: &[&AccessList], empty: bool) -> Diagnostic {
    let names: Vec<_> = uses.iter().map(|list| format!("`{}`", list.name)).collect();
    let reason = match sight.lists.get(path) {
        Some(Err(unreadable)) => unreadable.to_string(),
        _ => "unreadable".to_owned(),
    };
    let consequence = if empty {
        "it is older than `max_stale` and counts as empty"
    } else {
        "its last content stays in force"
    };
    let message = format!(
        "list {} cannot be read: {reason}; {consequence}",
        names.join(" and ")
    );
    let mut finding = Diagnostic::new(Code::ListUnreadable, message)
        .in_file(path.display().to_string())
        .help("make the file readable again, or remove its [[acl.list]]");
    // The node goes on with what it has, which a file that is checked for the first time cannot.
    finding.severity = Severity::Warning;
    finding
}
