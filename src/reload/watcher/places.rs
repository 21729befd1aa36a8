//! Where a change of a file can show: every directory on the way to it, through every symbolic link.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    ffi::OsString,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

/// Links on the way to one file; the kernel gives up at the same number (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// What to watch to notice a change of some files.
///
/// A link can be pointed elsewhere, a directory can be replaced, at every step of the way; each shows in the directory that
/// holds the step, under its name. The way is walked without links, so that every directory appears under its true path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// What to put a watch on, by true path.
    pub targets: BTreeMap<PathBuf, Target>,
    /// The paths whose events matter; a busy directory has many others.
    relevant: HashSet<PathBuf>,
    /// One directory can be on the way under two paths, by a bind mount. The kernel has one watch for both, and its events
    /// come under the first.
    first_path: HashMap<Identity, PathBuf>,
}

/// Device and inode: a path may lead to another directory tomorrow.
pub type Identity = (u64, u64);

/// A directory on the way, or a file at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub identity: Identity,
    pub role: Role,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A directory further up: shows only that a directory was replaced.
    Ancestor,
    /// The file itself: shows writing through another name of it, or through a mount of it.
    File,
    /// Holds the file or a link to it. Without a watch on it edits go unnoticed.
    Parent,
}

impl Places {
    /// The places of all `files`, which are absolute paths. Files that do not exist are waited for where they would appear.
    pub fn of<'a>(files: impl IntoIterator<Item = &'a Path>) -> Places {
        let mut places = Places::default();
        for file in files {
            places.walk(file);
        }
        places
    }

    pub fn concerns(&self, path: &Path) -> bool {
        self.relevant.contains(path)
    }

    fn walk(&mut self, file: &Path) {
        let mut here = PathBuf::from("/");
        let mut ahead: VecDeque<OsString> = names(file);
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            if name == ".." {
                here.pop();
                continue;
            }
            let step = here.join(&name);
            let found = fs::symlink_metadata(&step);
            let is_link = found.as_ref().is_ok_and(|found| found.is_symlink());
            let role = if is_link || ahead.is_empty() {
                Role::Parent
            } else {
                Role::Ancestor
            };
            let watched = self.add(&here, role, fs::metadata(&here));
            self.relevant.insert(watched.join(&name));
            match found {
                Ok(_) if is_link => {
                    links += 1;
                    let Ok(target) = fs::read_link(&step) else {
                        return;
                    };
                    if links > MOST_LINKS {
                        return;
                    }
                    if target.is_absolute() {
                        here = PathBuf::from("/");
                    }
                    for name in names(&target).into_iter().rev() {
                        ahead.push_front(name);
                    }
                }
                Ok(found) if found.is_dir() => here = step,
                Ok(found) => {
                    // Opening a FIFO or a device to watch it could disturb it, and it is no configuration file anyway.
                    if ahead.is_empty() && found.is_file() {
                        self.add(&step, Role::File, Ok(found));
                    }
                    return;
                }
                Err(_) => {
                    // Whatever comes next of the way comes into being here.
                    self.add(&here, Role::Parent, fs::metadata(&here));
                    return;
                }
            }
        }
    }

    /// Adds a target, and returns the path under which its events come.
    fn add(&mut self, path: &Path, role: Role, found: io::Result<fs::Metadata>) -> PathBuf {
        let Ok(found) = found else {
            return path.to_owned();
        };
        let identity = (found.dev(), found.ino());
        let first = self
            .first_path
            .entry(identity)
            .or_insert_with(|| path.to_owned())
            .clone();
        let target = self
            .targets
            .entry(first.clone())
            .or_insert(Target { identity, role });
        target.role = target.role.max(role);
        self.relevant.insert(first.clone());
        first
    }
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeSet, os::unix::fs::symlink};

    /// A directory under its true path.
    fn place() -> (tempfile::TempDir, PathBuf) {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().canonicalize().unwrap();
        (place, path)
    }

    fn parents(places: &Places) -> BTreeSet<&Path> {
        let parents = places
            .targets
            .iter()
            .filter(|(_, target)| target.role == Role::Parent);
        parents.map(|(path, _)| path.as_path()).collect()
    }

    #[test]
    fn a_plain_file_is_watched_with_its_directory_and_all_above() {
        let (_keep, root) = place();
        fs::write(root.join("a.toml"), "").unwrap();
        let places = Places::of([root.join("a.toml").as_path()]);
        assert_eq!(parents(&places), BTreeSet::from([root.as_path()]));
        assert_eq!(places.targets[&root.join("a.toml")].role, Role::File);
        for above in root.ancestors().skip(1) {
            assert_eq!(places.targets[above].role, Role::Ancestor, "{above:?}");
        }
        assert!(places.concerns(&root.join("a.toml")));
        assert!(!places.concerns(&root.join("b.toml")));
    }

    #[test]
    fn a_kubernetes_volume_is_watched_at_every_hop() {
        let (_keep, root) = place();
        fs::create_dir(root.join("..v1")).unwrap();
        fs::write(root.join("..v1/a.toml"), "").unwrap();
        symlink("..v1", root.join("..data")).unwrap();
        symlink("..data/a.toml", root.join("a.toml")).unwrap();
        let places = Places::of([root.join("a.toml").as_path()]);
        let parents = parents(&places);
        assert!(parents.contains(root.as_path()));
        assert!(parents.contains(root.join("..v1").as_path()));
        for step in ["a.toml", "..data", "..v1", "..v1/a.toml"] {
            assert!(places.concerns(&root.join(step)), "{step}");
        }
    }

    #[test]
    fn links_with_parents_and_absolute_targets_are_followed() {
        let (_keep, root) = place();
        fs::create_dir_all(root.join("git/worktrees/abc")).unwrap();
        fs::create_dir(root.join("etc")).unwrap();
        fs::write(root.join("git/worktrees/abc/a.toml"), "").unwrap();
        symlink("worktrees/abc", root.join("git/current")).unwrap();
        symlink(root.join("git/current/a.toml"), root.join("etc/link.toml")).unwrap();
        symlink("../etc/link.toml", root.join("git/back.toml")).unwrap();
        let places = Places::of([root.join("git/back.toml").as_path()]);
        for step in [
            "git/back.toml",
            "etc/link.toml",
            "git/current",
            "git/worktrees/abc/a.toml",
        ] {
            assert!(places.concerns(&root.join(step)), "{step}");
        }
    }

    #[test]
    fn a_missing_directory_is_waited_for_where_it_would_appear() {
        let (_keep, root) = place();
        let places = Places::of([root.join("gone/conf/a.toml").as_path()]);
        assert_eq!(parents(&places), BTreeSet::from([root.as_path()]));
        assert!(places.concerns(&root.join("gone")));
    }

    #[test]
    fn a_circle_of_links_ends() {
        let (_keep, root) = place();
        symlink("b", root.join("a")).unwrap();
        symlink("a", root.join("b")).unwrap();
        let places = Places::of([root.join("a").as_path()]);
        assert!(places.concerns(&root.join("b")));
    }
}
