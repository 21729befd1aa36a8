//! Files in `state_dir`: there completely or not at all, and set aside when they are not what was written.
#![allow(clippy::disallowed_methods, reason = "reads the state directory")]

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};

/// Writes a file that is there completely or not at all, stays there when the power fails, and is for its owner only.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = path.with_extension("tmp");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if let Err(error) = written.and_then(|()| fs::rename(&unfinished, path)) {
        // A full disk should not be filled further by what failed to fit on it.
        let _ = fs::remove_file(&unfinished);
        return Err(error);
    }
    sync_directory_of(path)
}

/// Reads a regular file of at most `most` bytes without following a symbolic link or waiting for a writer. `None`: there is
/// nothing.
pub fn read_whole(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    if about.len() > most {
        return Err(io::Error::from(io::ErrorKind::FileTooLarge));
    }
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Moves a damaged file out of the way, to `<name>.corrupt`, where it replaces an earlier one. Gives the new place.
pub fn quarantine(path: &Path) -> io::Result<PathBuf> {
    let mut name = path.as_os_str().to_owned();
    name.push(".corrupt");
    let aside = PathBuf::from(name);
    fs::rename(path, &aside)?;
    sync_directory_of(path)?;
    Ok(aside)
}

/// A rename is durable once its directory is.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::fsync(rustix::fs::open(directory, flags, Mode::empty())?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn what_is_written_is_read_back_and_is_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        assert_eq!(read_whole(&path, 10).unwrap(), None);
        write_whole(&path, b"first").unwrap();
        write_whole(&path, b"second").unwrap();
        assert_eq!(read_whole(&path, 10).unwrap().unwrap(), b"second");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(read_whole(&path, 5).is_err());
    }

    #[test]
    fn what_is_no_file_of_ours_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read_whole(folder.path(), 10).is_err());
        fs::write(folder.path().join("real"), "real").unwrap();
        symlink(folder.path().join("real"), folder.path().join("link")).unwrap();
        assert!(read_whole(&folder.path().join("link"), 10).is_err());
    }

    #[test]
    fn a_damaged_file_is_set_aside_for_whoever_wants_to_look() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.state");
        fs::write(&path, "damaged").unwrap();
        let aside = quarantine(&path).unwrap();
        assert_eq!(aside, folder.path().join("ledger.state.corrupt"));
        assert_eq!(fs::read(aside).unwrap(), b"damaged");
        assert!(!path.exists());
    }
}
