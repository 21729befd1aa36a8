//! Reads a configuration file and its list files: regular files only, bounded, never waiting for a writer.

pub use super::sight::check;
use crate::config::{Code, Diagnostic, LONGEST_TOKEN, Secret, SecretFault, units::Size};
use rustix::{
    fs::{FileType, Mode, OFlags, Stat},
    io::Errno,
};
use sha2::{Digest, Sha256};
use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

/// The most bytes a configuration file may have. A thousand peers with ten addresses each are under 1 MiB; whatever is eight
/// times that is not a configuration file.
pub const FILE_CAP: u64 = 8 << 20;

/// The most bytes a list file may have: a million peer ids with a comment each.
pub const LIST_CAP: u64 = 128 << 20;

/// A file as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub bytes: Vec<u8>,
    pub hash: Hash,
    /// No directory holds the file any more (`st_nlink` is 0), though its path leads to it: the file itself is mounted there,
    /// and an editor on the other side has replaced it.
    pub orphaned: bool,
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        Content {
            hash: Hash::of(&bytes),
            bytes,
            orphaned: false,
        }
    }
}

/// SHA-256 of a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash([u8; 32]);

impl Hash {
    pub fn of(bytes: &[u8]) -> Hash {
        Hash(Sha256::digest(bytes).into())
    }

    /// The first six hexadecimal digits, for people.
    pub fn short(&self) -> String {
        self.to_string().chars().take(6).collect()
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Why a file cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("{} does not exist", .0.display())]
    Missing(PathBuf),
    #[error("{} is {kind}, not a regular file", .path.display())]
    NotAFile { path: PathBuf, kind: &'static str },
    #[error("{} leads round in a circle of symbolic links", .0.display())]
    Loop(PathBuf),
    #[error("{} may not be read by this user", .0.display())]
    Denied(PathBuf),
    #[error("{} is larger than {}", .path.display(), Size(*.cap))]
    TooLarge { path: PathBuf, cap: u64 },
    #[error("{} cannot be read: {reason}", .path.display())]
    Failed { path: PathBuf, reason: String },
}

impl Unreadable {
    fn new(path: &Path, errno: Errno) -> Self {
        let path = path.to_owned();
        match errno {
            Errno::NOENT | Errno::NOTDIR => Unreadable::Missing(path),
            Errno::LOOP => Unreadable::Loop(path),
            Errno::ACCESS | Errno::PERM => Unreadable::Denied(path),
            Errno::ISDIR => Unreadable::NotAFile {
                path,
                kind: "a directory",
            },
            // What open(2) answers for a socket, and for a device without a driver.
            Errno::NXIO => Unreadable::NotAFile {
                path,
                kind: "a socket or device",
            },
            other => Unreadable::Failed {
                path,
                reason: io::Error::from(other).to_string(),
            },
        }
    }

    /// The finding to show when this is the configuration file; `name` is the path as the operator wrote it.
    pub fn diagnostic(&self, name: &str) -> Diagnostic {
        let finding = match self {
            Unreadable::TooLarge { .. } => Diagnostic::new(Code::TooLarge, self.to_string()),
            _ => Diagnostic::new(Code::Unreadable, self.to_string()),
        };
        finding.in_file(name).help(self.remedy())
    }

    /// What to do about it.
    fn remedy(&self) -> String {
        match self {
            Unreadable::Missing(_) => {
                "check the path, and that the directory it lies in is mounted".to_owned()
            }
            Unreadable::NotAFile { .. } => {
                "name a regular file, or a symbolic link to one".to_owned()
            }
            Unreadable::Loop(path) => format!("see where it leads: namei -l {}", path.display()),
            Unreadable::Denied(path) => format!(
                "let the user of the node read it and pass every directory before it: namei -l {}",
                path.display()
            ),
            Unreadable::TooLarge { .. } => {
                "keep long lists in files of their own, named by [[acl.list]]".to_owned()
            }
            Unreadable::Failed { path, .. } => {
                format!(
                    "see what is wrong with the file or its disk: cat {}",
                    path.display()
                )
            }
        }
    }
}

/// Reads `path` if it is, or leads to, a regular file of at most `cap` bytes. Blocks for the disk, never for a FIFO, a device
/// or a lease.
pub fn read(path: &Path, cap: u64) -> Result<Content, Unreadable> {
    let (bytes, about) = whole(path, cap)?;
    Ok(Content {
        orphaned: about.st_nlink == 0,
        ..Content::from(bytes)
    })
}

/// Reads a file that holds a token, and says who else can get at it. What goes wrong is told without what is in it.
pub fn read_secret(path: &Path) -> Result<Secret, SecretFault> {
    let (bytes, about) = whole(path, LONGEST_TOKEN as u64).map_err(|unreadable| {
        let help = match &unreadable {
            Unreadable::Missing(_) => {
                format!(
                    "write the token there (mode 0600): edgevpn token new > {}",
                    path.display()
                )
            }
            Unreadable::TooLarge { .. } => {
                "name the file of a token: it has about a thousand bytes".to_owned()
            }
            other => other.remedy(),
        };
        SecretFault {
            reason: unreadable.to_string(),
            help,
        }
    })?;
    let user = rustix::process::geteuid();
    let foreign = !user.is_root() && about.st_uid != 0 && about.st_uid != user.as_raw();
    Ok(Secret {
        bytes,
        mode: about.st_mode & 0o7777,
        foreign_owner: foreign.then_some(about.st_uid),
    })
}

fn whole(path: &Path, cap: u64) -> Result<(Vec<u8>, Stat), Unreadable> {
    let refuse = |errno| Unreadable::new(path, errno);
    // Looked at before it is opened, because opening some devices has effects; and again afterwards, because it may have been
    // exchanged in between.
    let seen = rustix::fs::stat(path).map_err(refuse)?;
    regular(path, seen.st_mode)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(refuse)?;
    let opened = rustix::fs::fstat(file.as_fd()).map_err(refuse)?;
    regular(path, opened.st_mode)?;

    let mut bytes = Vec::new();
    File::from(file)
        .take(cap.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| Unreadable::Failed {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
    if bytes.len() as u64 > cap {
        return Err(Unreadable::TooLarge {
            path: path.to_owned(),
            cap,
        });
    }
    Ok((bytes, opened))
}

fn regular(path: &Path, mode: u32) -> Result<(), Unreadable> {
    let kind = match FileType::from_raw_mode(mode) {
        FileType::RegularFile => return Ok(()),
        FileType::Directory => "a directory",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Symlink | FileType::Unknown => "of an unknown kind",
    };
    Err(Unreadable::NotAFile {
        path: path.to_owned(),
        kind,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        os::unix::{fs::symlink, net::UnixListener},
    };

    #[test]
    fn a_regular_file_is_read_through_a_link() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("real"), "version = 1").unwrap();
        symlink("real", place.path().join("link")).unwrap();
        let content = read(&place.path().join("link"), FILE_CAP).unwrap();
        assert_eq!(content.bytes, b"version = 1");
        assert_eq!(content.hash, Hash::of(b"version = 1"));
        assert!(!content.orphaned);
    }

    #[test]
    fn what_is_no_regular_file_is_named_and_never_waited_for() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("fifo"),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let _listener = UnixListener::bind(at("socket")).unwrap();
        symlink("ring", at("ring")).unwrap();
        let told = |name: &str| read(&at(name), FILE_CAP).unwrap_err();
        assert!(
            told("fifo")
                .to_string()
                .ends_with("is a FIFO, not a regular file")
        );
        assert!(
            told("socket")
                .to_string()
                .ends_with("is a socket, not a regular file")
        );
        assert!(
            told("")
                .to_string()
                .ends_with("is a directory, not a regular file")
        );
        assert!(matches!(told("ring"), Unreadable::Loop(_)));
        assert!(matches!(told("nothing"), Unreadable::Missing(_)));
        let device = read(Path::new("/dev/zero"), FILE_CAP).unwrap_err();
        assert!(
            device
                .to_string()
                .ends_with("is a device, not a regular file")
        );
    }

    #[test]
    fn a_file_at_the_cap_is_read_and_one_byte_more_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("file");
        fs::write(&path, "12345678").unwrap();
        assert!(read(&path, 8).is_ok());
        let refused = read(&path, 7).unwrap_err();
        assert!(matches!(refused, Unreadable::TooLarge { .. }));
        assert_eq!(refused.diagnostic("x.toml").code, Code::TooLarge);
    }

    #[test]
    fn every_refusal_says_what_to_do() {
        let path = PathBuf::from("edgevpn.toml");
        let reason = "input/output error".to_owned();
        for refusal in [
            Unreadable::Missing(path.clone()),
            Unreadable::NotAFile {
                path: path.clone(),
                kind: "a FIFO",
            },
            Unreadable::Loop(path.clone()),
            Unreadable::Denied(path.clone()),
            Unreadable::Failed { path, reason },
        ] {
            let finding = refusal.diagnostic("edgevpn.toml");
            assert_eq!(finding.code, Code::Unreadable, "{finding:?}");
            assert!(finding.help.is_some(), "{finding:?}");
        }
    }
}
