//! The node's key: read from its file, or made on the first start.
#![allow(clippy::disallowed_methods, reason = "reads and writes the key file")]

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use libp2p::identity::Keypair;

/// A libp2p private key in protobuf form is under 2.5 KB even for RSA-4096; anything larger is another file.
const MAX_KEY_BYTES: u64 = 16 * 1024;

#[derive(Debug)]
pub struct Identity {
    pub keypair: Keypair,
    /// Made by this start; the operator is told where it lies.
    pub new: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("{} is readable by others (mode {mode:o}); run: chmod 600 {}", .path.display(), .path.display())]
    TooOpen { path: PathBuf, mode: u32 },
    #[error("{} belongs to user {owner}, not to the user {user} this node runs as; run: chown {user} {}", .path.display(), .path.display())]
    ForeignOwner {
        path: PathBuf,
        owner: u32,
        user: u32,
    },
    #[error("{} is not a libp2p private key; restore it from a backup, or remove it to get a new peer id", .path.display())]
    NotAKey { path: PathBuf },
    #[error("{} is not a regular file; `node.key_file` must name one, without a symbolic link", .path.display())]
    NotAFile { path: PathBuf },
    #[error("cannot read {}: {source}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write a new key to {}: {source}", .path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Reads the key at `path`, or makes a new Ed25519 key there with mode 0600 if nothing is there.
pub fn load_or_create(path: &Path) -> Result<Identity, KeyFileError> {
    match open(path) {
        Ok(file) => Ok(Identity {
            keypair: read(path, file)?,
            new: false,
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let keypair = Keypair::generate_ed25519();
            write(path, &keypair).map_err(|source| KeyFileError::Write {
                path: path.to_owned(),
                source,
            })?;
            Ok(Identity { keypair, new: true })
        }
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            Err(KeyFileError::NotAFile {
                path: path.to_owned(),
            })
        }
        Err(source) => Err(KeyFileError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// A symbolic link is refused: who may write its folder could swap the key. A FIFO does not block.
fn open(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
}

fn read(path: &Path, file: File) -> Result<Keypair, KeyFileError> {
    let unreadable = |source| KeyFileError::Read {
        path: path.to_owned(),
        source,
    };
    let about = file.metadata().map_err(unreadable)?;
    if !about.is_file() {
        return Err(KeyFileError::NotAFile {
            path: path.to_owned(),
        });
    }
    let mode = about.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::TooOpen {
            path: path.to_owned(),
            mode,
        });
    }
    let user = rustix::process::geteuid().as_raw();
    if about.uid() != user && about.uid() != 0 {
        return Err(KeyFileError::ForeignOwner {
            path: path.to_owned(),
            owner: about.uid(),
            user,
        });
    }
    let mut bytes = Vec::new();
    file.take(MAX_KEY_BYTES)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    Keypair::from_protobuf_encoding(&bytes).map_err(|_| KeyFileError::NotAKey {
        path: path.to_owned(),
    })
}

/// Written beside its place and renamed, so that a crash leaves either no key or a whole one.
fn write(path: &Path, keypair: &Keypair) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let bytes = keypair.to_protobuf_encoding().map_err(io::Error::other)?;
    let mut beside = tempfile::Builder::new()
        .prefix(".key.")
        .tempfile_in(folder)?; // mode 0600
    beside.write_all(&bytes)?;
    beside.as_file().sync_all()?;
    beside
        .persist_noclobber(path)
        .map_err(|failed| failed.error)?;
    File::open(folder)?.sync_all()
}

/// Makes the state directory, mode 0700, and takes its lock for as long as the result lives.
pub fn lock_state_dir(state_dir: &Path) -> Result<StateLock, StateDirError> {
    use std::os::unix::fs::DirBuilderExt;
    let broken = |source| StateDirError::Unusable {
        path: state_dir.to_owned(),
        source,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .map_err(broken)?;
    let path = state_dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(broken)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(StateLock { _file: file }),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StateDirError::InUse {
            path: state_dir.to_owned(),
        }),
        Err(error) => Err(broken(error.into())),
    }
}

/// Held while this process uses the state directory; the kernel releases it with the process.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    #[error("another node uses {}; give each node its own `node.state_dir`", .path.display())]
    InUse { path: PathBuf },
    #[error("cannot use {} as state directory: {source}; set `node.state_dir` to a directory this user may write", .path.display())]
    Unusable { path: PathBuf, source: io::Error },
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("node.key");
        let made = load_or_create(&path).expect("made");
        let again = load_or_create(&path).expect("read");
        assert!(made.new && !again.new);
        assert_eq!(made.keypair.public(), again.keypair.public());
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
    }

    #[test]
    fn a_key_others_can_read_is_refused_with_the_fix() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("node.key");
        load_or_create(&path).expect("made");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        let error = load_or_create(&path).expect_err("refused");
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_corrupt_key_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("node.key");
        load_or_create(&path).expect("made");
        for bytes in [&b""[..], b"garbage", &[8, 1, 18, 64]] {
            fs::write(&path, bytes).expect("written");
            assert!(matches!(
                load_or_create(&path),
                Err(KeyFileError::NotAKey { .. })
            ));
            assert_eq!(fs::read(&path).expect("read"), bytes);
        }
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        load_or_create(&folder.path().join("real.key")).expect("made");
        let link = folder.path().join("node.key");
        symlink(folder.path().join("real.key"), &link).expect("linked");
        assert!(matches!(
            load_or_create(&link),
            Err(KeyFileError::NotAFile { .. })
        ));
    }

    #[test]
    fn a_state_directory_serves_one_node() {
        let folder = tempfile::tempdir().expect("a folder");
        let held = lock_state_dir(folder.path()).expect("first");
        assert!(matches!(
            lock_state_dir(folder.path()),
            Err(StateDirError::InUse { .. })
        ));
        drop(held);
        lock_state_dir(folder.path()).expect("free again");
    }
}
