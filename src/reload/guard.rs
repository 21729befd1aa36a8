//! Tells a half-written file from an edited one, as far as that can be told.
//!
//! A truncated TOML file is very often valid TOML, and what it lacks would open the node: no `[acl]`, no `[limits]`. Such a
//! file is held back until it changes again or somebody insists.

use super::read::Content;
use crate::{config::Keys, id::Origin};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Sections without which a node is more open or harder to correct. Whoever wants to be rid of one says so with `--force`.
const SECTIONS: [&str; 4] = ["acl", "network", "limits", "reload"];

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

/// A list file that had content and has not a single byte now: what a writer leaves that has only begun, or whose disk is
/// full. An emptied deny list would admit everybody on it. A list that is meant to be empty says so in a comment.
pub fn emptied<'a>(
    applied: &BTreeMap<PathBuf, Arc<Content>>,
    candidate: &'a BTreeMap<PathBuf, Arc<Content>>,
) -> Option<&'a Path> {
    let had_content = |path: &PathBuf| {
        applied
            .get(path)
            .is_some_and(|content| !content.bytes.is_empty())
    };
    candidate
        .iter()
        .find(|(path, content)| content.bytes.is_empty() && had_content(path))
        .map(|(path, _)| path.as_path())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn keys(text: &str) -> Keys {
        Config::from_toml(&format!("version = 1\n{text}"))
            .unwrap()
            .keys
    }

    const WHOLE: &str = "node.name = \"hub\"\n[limits]\nconnections = 64\npending = 8\n[acl]\nreserve = \"anyone\"\n";

    #[test]
    fn an_edited_file_passes() {
        for edited in [
            WHOLE.to_owned(),
            WHOLE.replace("64", "65"),
            WHOLE.replace("pending = 8\n", ""),
            WHOLE
                .replace("pending = 8\n", "")
                .replace("node.name = \"hub\"\n", ""),
            format!("{WHOLE}mode = \"shadow\"\n[log]\nlevel = \"debug\"\n"),
        ] {
            assert_eq!(lost(&keys(WHOLE), &keys(&edited)), None, "{edited}");
        }
    }

    #[test]
    fn a_vanished_section_is_noticed() {
        let without = keys(&WHOLE.replace(
            "[acl]\nreserve = \"anyone\"\n",
            "[log]\nlevel = \"debug\"\n",
        ));
        let lost = lost(&keys(WHOLE), &without).unwrap();
        assert_eq!(lost.sections, ["acl"]);
        assert!(
            lost.to_string()
                .starts_with("[acl] gone from the file; 1 of the "),
            "{lost}"
        );
    }

    #[test]
    fn a_section_that_was_not_there_need_not_be() {
        let few = "node.name = \"hub\"\nlog.level = \"debug\"\nlog.format = \"json\"\n";
        assert_eq!(
            lost(
                &keys(few),
                &keys(&few.replace("log.format = \"json\"\n", ""))
            ),
            None
        );
    }

    #[test]
    fn a_list_without_a_byte_is_noticed_unless_it_was_so_before() {
        let lists = |text: &str| {
            let content = Arc::new(Content::from(text.as_bytes().to_vec()));
            BTreeMap::from([(PathBuf::from("/etc/edgevpn/ops.txt"), content)])
        };
        assert_eq!(
            emptied(&lists("192.0.2.1\n"), &lists("")),
            Some(Path::new("/etc/edgevpn/ops.txt"))
        );
        assert_eq!(emptied(&lists("192.0.2.1\n"), &lists("# nobody\n")), None);
        assert_eq!(emptied(&lists(""), &lists("")), None);
        assert_eq!(emptied(&BTreeMap::new(), &lists("")), None);
    }

    #[test]
    fn more_than_half_of_the_keys_are_too_many_to_lose() {
        let four = "node.name = \"hub\"\nlog.level = \"debug\"\nlog.format = \"json\"\ntransport.listen = []\n";
        let rest = |gone: usize| {
            four.lines()
                .skip(gone)
                .fold(String::new(), |text, line| text + line + "\n")
        };
        assert_eq!(lost(&keys(four), &keys(&rest(2))), None);
        let lost = lost(&keys(four), &keys(&rest(3))).unwrap();
        assert_eq!((lost.keys, lost.sections.len()), (3, 0));
    }
}
