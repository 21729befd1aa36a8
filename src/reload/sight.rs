//! What one look at a configuration file and its list files finds, and what `config` makes of it.

use super::read::{self, Content, Hash, Unreadable};
use crate::config::{
    self, Checked, Code, Diagnostic, ListFile, Secret, SecretFault, SecretFile, Source, Summary,
    Surroundings,
};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

/// A configuration file by name.
#[derive(Clone, Debug)]
pub struct Subject {
    /// As the operator wrote it; diagnostics show it.
    pub name: String,
    /// Absolute; links are followed anew at every look.
    pub path: PathBuf,
    pub surroundings: Arc<Surroundings>,
}

impl Subject {
    /// The file at `path`, with the environment and the rights of this process.
    pub fn new(path: &Path) -> Subject {
        Subject::meant_for(path, path)
    }

    /// The file at `path`, checked as if it lay at `place`: relative paths in it start there.
    pub fn meant_for(path: &Path, place: &Path) -> Subject {
        let place = absolute(place);
        let host = rustix::system::uname();
        Subject {
            name: path.display().to_string(),
            path: absolute(path),
            surroundings: Arc::new(Surroundings {
                env: std::env::vars_os().filter_map(in_utf8).collect(),
                host_name: host.nodename().to_string_lossy().into_owned(),
                directory: place.parent().unwrap_or(Path::new("/")).to_owned(),
                root: rustix::process::geteuid().is_root(),
            }),
        }
    }

    fn parse(&self, bytes: Vec<u8>) -> config::Draft {
        let source = Source {
            name: self.name.clone(),
            bytes,
        };
        config::parse(source, &self.surroundings)
    }
}

/// The files as one look found them. To look blocks.
#[derive(Clone, Debug)]
pub struct Sight {
    pub file: Result<Arc<Content>, Unreadable>,
    /// By absolute path.
    pub lists: BTreeMap<PathBuf, Result<Arc<Content>, Unreadable>>,
    /// Token files, by absolute path. They are read anew at every look and kept nowhere.
    secrets: BTreeMap<PathBuf, Result<Secret, SecretFault>>,
}

impl Sight {
    pub fn of(subject: &Subject) -> Sight {
        match read::read(&subject.path, read::FILE_CAP) {
            Ok(content) => Sight::around(subject, content),
            Err(unreadable) => Sight::without_file(unreadable),
        }
    }

    /// The same for a file that has been read already, or has come over the API.
    pub fn around(subject: &Subject, content: Content) -> Sight {
        let draft = subject.parse(content.bytes.clone());
        let lists = draft.list_files().into_iter().map(|path| {
            let content = read::read(&path, read::LIST_CAP).map(Arc::new);
            (path, content)
        });
        Sight {
            lists: lists.collect(),
            secrets: secrets(&draft),
            file: Ok(Arc::new(content)),
        }
    }

    /// Files as they were once, with the tokens that are there today.
    pub fn kept(subject: &Subject, file: Arc<Content>, lists: &[(PathBuf, Arc<Content>)]) -> Sight {
        Sight {
            secrets: secrets(&subject.parse(file.bytes.clone())),
            file: Ok(file),
            lists: lists
                .iter()
                .map(|(path, content)| (path.clone(), Ok(content.clone())))
                .collect(),
        }
    }

    /// A look that found nothing, and why.
    pub fn failed(subject: &Subject, reason: &str) -> Sight {
        Sight::without_file(Unreadable::Failed {
            path: subject.path.clone(),
            reason: reason.to_owned(),
        })
    }

    fn without_file(unreadable: Unreadable) -> Sight {
        Sight {
            file: Err(unreadable),
            lists: BTreeMap::new(),
            secrets: BTreeMap::new(),
        }
    }

    pub fn fingerprint(&self) -> Fingerprint {
        let hash = |content: &Result<Arc<Content>, Unreadable>| {
            content.as_ref().ok().map(|content| content.hash)
        };
        Fingerprint {
            file: hash(&self.file),
            lists: self
                .lists
                .iter()
                .map(|(path, content)| (path.clone(), hash(content)))
                .collect(),
            secrets: self
                .secrets
                .iter()
                .map(|(path, content)| (path.clone(), known(path, content)))
                .collect(),
        }
    }

    /// Whether the file or a list is mounted by itself, which hides every later version of it.
    pub fn orphan(&self, subject: &Subject) -> Option<PathBuf> {
        let orphaned = |content: &Result<Arc<Content>, Unreadable>| {
            content.as_ref().is_ok_and(|content| content.orphaned)
        };
        if orphaned(&self.file) {
            return Some(subject.path.clone());
        }
        let mut lists = self.lists.iter();
        lists
            .find(|(_, content)| orphaned(content))
            .map(|(path, _)| path.clone())
    }

    /// The verdict on these files. A list that cannot be read counts as `instead` says, if it says so.
    pub fn check(&self, subject: &Subject, instead: &BTreeMap<PathBuf, Vec<u8>>) -> Checked {
        let content = match &self.file {
            Ok(content) => content,
            Err(unreadable) => return unreadable_file(subject, unreadable),
        };
        let lists = self.lists.iter().map(|(path, content)| ListFile {
            path: path.clone(),
            content: match (content, instead.get(path)) {
                (Ok(content), _) => Ok(content.bytes.clone()),
                (Err(_), Some(bytes)) => Ok(bytes.clone()),
                (Err(unreadable), None) => Err(unreadable.to_string()),
            },
        });
        let secrets = self.secrets.iter().map(|(path, content)| SecretFile {
            path: path.clone(),
            content: content.clone(),
        });
        subject
            .parse(content.bytes.clone())
            .with_secrets(secrets.collect())
            .resolve(lists.collect())
    }
}

/// What distinguishes two looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// `None`: not readable.
    pub file: Option<Hash>,
    pub lists: BTreeMap<PathBuf, Option<Hash>>,
    /// Token files. One that is not kept from others goes by its permissions: correcting them is something new.
    pub secrets: BTreeMap<PathBuf, Option<Hash>>,
}

impl Fingerprint {
    /// What to hand to [`super::watcher::Watcher::follow`].
    pub fn watched(&self, subject: &Subject) -> Vec<(PathBuf, Option<Hash>)> {
        let others = self.lists.iter().chain(&self.secrets);
        std::iter::once((subject.path.clone(), self.file))
            .chain(others.map(|(path, hash)| (path.clone(), *hash)))
            .collect()
    }
}

/// Everything that can be said about a file without a running node. `path` may be `-` for standard input; `as_path` is where
/// the file is meant to lie, if that is elsewhere.
pub fn check(path: &Path, as_path: Option<&Path>) -> Checked {
    let subject = Subject::meant_for(path, as_path.unwrap_or(path));
    if path.as_os_str() != "-" {
        return Sight::of(&subject).check(&subject, &BTreeMap::new());
    }
    let subject = Subject {
        name: "<stdin>".to_owned(),
        ..subject
    };
    let mut bytes = Vec::new();
    let cap = read::FILE_CAP;
    match io::stdin()
        .lock()
        .take(cap.saturating_add(1))
        .read_to_end(&mut bytes)
    {
        Ok(length) if length as u64 > cap => {
            let path = PathBuf::from(&subject.name);
            unreadable_file(&subject, &Unreadable::TooLarge { path, cap })
        }
        Ok(_) => Sight::around(&subject, Content::from(bytes)).check(&subject, &BTreeMap::new()),
        Err(error) => {
            let finding = Diagnostic::new(
                Code::Unreadable,
                format!("standard input cannot be read: {error}"),
            );
            rejected(&subject, finding)
        }
    }
}

fn unreadable_file(subject: &Subject, unreadable: &Unreadable) -> Checked {
    rejected(subject, unreadable.diagnostic(&subject.name))
}

fn rejected(subject: &Subject, finding: Diagnostic) -> Checked {
    Checked {
        name: subject.name.clone(),
        config: None,
        diagnostics: vec![finding],
        summary: Summary::default(),
    }
}

fn secrets(draft: &config::Draft) -> BTreeMap<PathBuf, Result<Secret, SecretFault>> {
    let files = draft.secret_files().into_iter();
    files
        .map(|path| {
            let content = read::read_secret(&path);
            (path, content)
        })
        .collect()
}

fn known(path: &Path, content: &Result<Secret, SecretFault>) -> Option<Hash> {
    let secret = content.as_ref().ok()?;
    Some(match secret.exposure(path) {
        None => Hash::of(&secret.bytes),
        Some(fault) => Hash::of(fault.reason.as_bytes()),
    })
}

/// The absolute form of a path, its links not followed.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn in_utf8((name, value): (OsString, OsString)) -> Option<(String, String)> {
    Some((name.into_string().ok()?, value.into_string().ok()?))
}
