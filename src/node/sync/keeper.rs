//! The ledger on disk, so that a node that starts again knows its members and the tombstones of its own entries.
//!
//! One file a network, `ledger-<fingerprint>.state`. It is a cache of what the others hold: damaged, it is set aside, and
//! what was in it comes back from them. A disk that takes nothing stops nothing.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::{mpsc, watch};

use crate::{
    node::disk,
    task::{self, Task},
    wire::Fingerprint,
};

/// Bytes of a state file at most: a ledger is bounded far below it.
const LARGEST: u64 = 256 << 20;

/// Between two writes. What a crash may lose is what the neighbours still have.
const PAUSE: Duration = Duration::from_secs(5);

/// How long a node that stops waits for the last write.
const LAST_WRITE: Duration = Duration::from_secs(2);

/// Writes beside the work of the ledger, the newest state only.
pub struct Keeper {
    newest: watch::Sender<Option<State>>,
    trouble: Trouble,
    /// Dropped, the last state is written without a pause.
    stop: mpsc::Sender<()>,
    task: Task,
}

type State = (PathBuf, Arc<Vec<u8>>);

/// Why the last state is not kept.
type Trouble = Arc<Mutex<Option<String>>>;

impl Keeper {
    pub fn new() -> Keeper {
        let (newest, states) = watch::channel(None);
        let (stop, stopped) = mpsc::channel(1);
        let trouble = Trouble::default();
        let task = task::spawn("ledger state", keep(states, stopped, trouble.clone()));
        Keeper {
            newest,
            trouble,
            stop,
            task,
        }
    }

    /// Whether a state that is kept now is written at once or a little later; it is never lost but for a newer one.
    pub fn keep(&self, path: PathBuf, state: Vec<u8>) {
        self.newest.send_replace(Some((path, Arc::new(state))));
    }

    pub fn trouble(&self) -> Option<String> {
        self.trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until the last state is written, if the disk lets it.
    pub async fn finish(self) {
        drop(self.stop);
        drop(self.newest);
        let _ = tokio::time::timeout(LAST_WRITE, self.task.ended()).await;
    }
}

pub fn path(state_dir: &Path, network: Fingerprint) -> PathBuf {
    state_dir.join(format!("ledger-{network}.state"))
}

/// Reads a state and lets `restore` make something of it. What is damaged is set aside; `None` then, or if there is nothing.
/// Blocks.
pub fn load<T, E: std::fmt::Display>(
    path: &Path,
    restore: impl FnOnce(&[u8]) -> Result<T, E>,
) -> Option<T> {
    let cause = match disk::read_whole(path, LARGEST) {
        Ok(None) => return None,
        Ok(Some(bytes)) => match restore(&bytes) {
            Ok(restored) => return Some(restored),
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    match disk::quarantine(path) {
        Ok(aside) => tracing::warn!(
            file = %path.display(),
            aside = %aside.display(),
            cause,
            "the kept ledger is damaged and was set aside; it comes back from the members"
        ),
        Err(error) => tracing::warn!(
            file = %path.display(),
            cause,
            %error,
            "the kept ledger is damaged and cannot be set aside; it comes back from the members"
        ),
    }
    None
}

async fn keep(
    mut states: watch::Receiver<Option<State>>,
    mut stop: mpsc::Receiver<()>,
    trouble: Trouble,
) {
    let set = |text| *trouble.lock().unwrap_or_else(PoisonError::into_inner) = text;
    let mut failing = false;
    while states.changed().await.is_ok() {
        let Some((path, state)) = states.borrow_and_update().clone() else {
            continue;
        };
        let at = path.clone();
        let written = tokio::task::spawn_blocking(move || disk::write_whole(&at, &state)).await;
        match written.unwrap_or_else(|fault| Err(io::Error::other(fault))) {
            Ok(()) => {
                if std::mem::take(&mut failing) {
                    tracing::info!(file = %path.display(), "the ledger is kept again");
                }
                set(None);
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(
                        file = %path.display(),
                        cause = %error,
                        "the ledger cannot be kept; the node runs on, and tries again every {PAUSE:?}"
                    );
                }
                set(Some(format!(
                    "the ledger cannot be kept in {}: {error}; free some space, or check its permissions",
                    path.display()
                )));
            }
        }
        // Until then newer states replace one another. The end of the node does not wait, and does not try again.
        let stopped = tokio::time::timeout(PAUSE, stop.recv()).await.is_ok();
        if failing && !stopped {
            states.mark_changed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[tokio::test]
    async fn the_newest_state_is_written_before_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.state");
        let keeper = Keeper::new();
        for state in [b"first", b"later", b"final"] {
            keeper.keep(path.clone(), state.to_vec());
            tokio::task::yield_now().await;
        }
        keeper.finish().await;
        assert_eq!(fs::read(path).unwrap(), b"final");
    }

    #[tokio::test]
    async fn a_disk_that_takes_nothing_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let keeper = Keeper::new();
        keeper.keep(folder.path().join("gone/ledger.state"), b"state".to_vec());
        let told = async {
            while keeper.trouble().is_none() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), told)
            .await
            .expect("told");
    }

    #[test]
    fn a_damaged_state_is_set_aside_and_a_good_one_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.state");
        assert_eq!(load(&path, |_| Ok::<_, String>(())), None);
        fs::write(&path, "good").unwrap();
        let read = load(&path, |bytes| Ok::<_, String>(bytes.to_vec()));
        assert_eq!(read.unwrap(), b"good");
        assert_eq!(load(&path, |_| Err::<(), _>("cut short")), None);
        assert!(!path.exists());
        let aside = folder.path().join("ledger.state.corrupt");
        assert_eq!(fs::read(aside).unwrap(), b"good");
    }
}
