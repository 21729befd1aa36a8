//! Applied files, kept in `state_dir`, so that a node can start from the last good one.
//!
//! ```text
//! history/0000000013.toml   the file, byte for byte
//! history/0000000013.json   what belongs to it, written last: without it the rest is not there
//! history/lists/<sha256>    contents of list files, shared by all that name them
//! ```

use super::read::{self, Content};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::watch;

use crate::{id::Generation, node::disk::write_whole, task};

/// Between two attempts to write when the disk is full or broken. The promise is to recover within ten seconds.
const RETRY: Duration = Duration::from_secs(5);

/// How long a node that stops waits for the last file to be kept.
const LAST_WRITE: Duration = Duration::from_secs(2);

/// An applied file with everything it named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub generation: Generation,
    pub file: Arc<Content>,
    /// List files, by absolute path.
    pub lists: Vec<(PathBuf, Arc<Content>)>,
}

/// The directory. Its methods block.
#[derive(Clone, Debug)]
pub struct History {
    directory: PathBuf,
}

/// What is beside a kept file.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    generation: Generation,
    sha256: String,
    lists: Vec<KeptList>,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeptList {
    path: PathBuf,
    sha256: String,
}

impl History {
    pub fn of(state_dir: &Path) -> History {
        History {
            directory: state_dir.join("history"),
        }
    }

    /// Adds a record and removes the oldest beyond `most`. All or nothing: a record exists from the moment its manifest does.
    pub fn keep(&self, record: &Record, most: u32) -> io::Result<()> {
        let lists = self.directory.join("lists");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&lists)?;
        self.remove_leftovers(&lists)?;
        let mut manifest = Manifest {
            generation: record.generation,
            sha256: record.file.hash.to_string(),
            lists: Vec::new(),
        };
        for (path, content) in &record.lists {
            let sha256 = content.hash.to_string();
            let blob = lists.join(&sha256);
            if !blob.exists() {
                write_whole(&blob, &content.bytes)?;
            }
            manifest.lists.push(KeptList {
                path: path.clone(),
                sha256,
            });
        }
        let numbers = self.numbers();
        let number = numbers.last().map_or(1, |last| last.saturating_add(1));
        write_whole(&self.at(number, "toml"), &record.file.bytes)?;
        write_whole(
            &self.at(number, "json"),
            &serde_json::to_vec_pretty(&manifest)?,
        )?;
        self.forget(&numbers, most.saturating_sub(1) as usize)
    }

    /// Complete records, newest first. What is damaged is passed over with a warning.
    pub fn newest_first(&self) -> impl Iterator<Item = Record> + '_ {
        self.numbers().into_iter().rev().filter_map(|number| {
            self.load(number)
                .inspect_err(|cause| {
                    let file = self.at(number, "json");
                    tracing::warn!(file = %file.display(), cause, "a kept configuration is damaged");
                })
                .ok()
        })
    }

    fn load(&self, number: u64) -> Result<Record, String> {
        let manifest = self.manifest(number)?;
        let file = intact(&self.at(number, "toml"), &manifest.sha256)?;
        let lists = manifest
            .lists
            .into_iter()
            .map(|list| {
                let blob = self.directory.join("lists").join(&list.sha256);
                Ok((list.path, Arc::new(intact(&blob, &list.sha256)?)))
            })
            .collect::<Result<_, String>>()?;
        Ok(Record {
            generation: manifest.generation,
            file: Arc::new(file),
            lists,
        })
    }

    fn manifest(&self, number: u64) -> Result<Manifest, String> {
        let content = read::read(&self.at(number, "json"), read::FILE_CAP)
            .map_err(|error| error.to_string())?;
        serde_json::from_slice(&content.bytes).map_err(|error| error.to_string())
    }

    /// Removes all but the last `stay` of these, and the lists that nothing names any more.
    fn forget(&self, numbers: &BTreeSet<u64>, stay: usize) -> io::Result<()> {
        for number in numbers.iter().rev().skip(stay) {
            fs::remove_file(self.at(*number, "json"))?;
            gone(fs::remove_file(self.at(*number, "toml")))?;
        }
        let named: BTreeSet<String> = self
            .numbers()
            .into_iter()
            .filter_map(|number| self.manifest(number).ok())
            .flat_map(|manifest| manifest.lists)
            .map(|list| list.sha256)
            .collect();
        for entry in fs::read_dir(self.directory.join("lists"))? {
            let entry = entry?;
            if !entry
                .file_name()
                .to_str()
                .is_some_and(|name| named.contains(name))
            {
                gone(fs::remove_file(entry.path()))?;
            }
        }
        Ok(())
    }

    /// Removes what a node that was killed while writing left behind.
    fn remove_leftovers(&self, lists: &Path) -> io::Result<()> {
        for directory in [&self.directory, lists] {
            for entry in fs::read_dir(directory)? {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == "tmp") {
                    gone(fs::remove_file(path))?;
                }
            }
        }
        Ok(())
    }

    fn numbers(&self) -> BTreeSet<u64> {
        let entries = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten();
        entries
            .filter_map(|entry| {
                entry
                    .file_name()
                    .to_str()?
                    .strip_suffix(".json")?
                    .parse()
                    .ok()
            })
            .collect()
    }

    fn at(&self, number: u64, kind: &str) -> PathBuf {
        self.directory.join(format!("{number:010}.{kind}"))
    }
}

fn intact(path: &Path, sha256: &str) -> Result<Content, String> {
    let content = read::read(path, read::LIST_CAP).map_err(|error| error.to_string())?;
    if content.hash.to_string() == sha256 {
        Ok(content)
    } else {
        Err(format!("{} is not what was written", path.display()))
    }
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Keeps records beside the work of the engine, so that no reload waits for the disk. When records come faster than the disk
/// takes them, the newest is kept.
pub struct Keeper {
    newest: watch::Sender<Option<(Arc<Record>, u32)>>,
    trouble: Trouble,
    task: task::Task,
}

/// Why the last record is not kept.
type Trouble = Arc<Mutex<Option<String>>>;

impl Keeper {
    pub fn new(history: History) -> Keeper {
        let (newest, records) = watch::channel(None);
        let trouble = Trouble::default();
        let task = task::spawn("history", write_records(history, records, trouble.clone()));
        Keeper {
            newest,
            trouble,
            task,
        }
    }

    pub fn keep(&self, record: Record, most: u32) {
        self.newest.send_replace(Some((Arc::new(record), most)));
    }

    pub fn trouble(&self) -> Option<String> {
        self.trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until the last record is kept, if the disk lets it.
    pub async fn finish(self) {
        drop(self.newest);
        // What has not been written by then is not worth holding up the end of the node.
        let _ = tokio::time::timeout(LAST_WRITE, self.task.ended()).await;
    }
}

async fn write_records(
    history: History,
    mut records: watch::Receiver<Option<(Arc<Record>, u32)>>,
    trouble: Trouble,
) {
    let set = |text| *trouble.lock().unwrap_or_else(PoisonError::into_inner) = text;
    let mut failing = false;
    while records.changed().await.is_ok() {
        let Some((record, most)) = records.borrow_and_update().clone() else {
            continue;
        };
        loop {
            let (history, record) = (history.clone(), record.clone());
            let directory = history.directory.clone();
            let kept = tokio::task::spawn_blocking(move || history.keep(&record, most)).await;
            let Err(error) = kept.unwrap_or_else(|fault| Err(io::Error::other(fault))) else {
                if std::mem::take(&mut failing) {
                    tracing::info!(directory = %directory.display(), "applied files are kept again");
                }
                set(None);
                break;
            };
            if !std::mem::replace(&mut failing, true) {
                tracing::warn!(
                    directory = %directory.display(),
                    cause = %error,
                    "the applied file cannot be kept; the node runs on, and tries again every {RETRY:?}"
                );
            }
            set(Some(format!(
                "the applied file cannot be kept in {}: {error}; free some space, or check its permissions",
                directory.display()
            )));
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                newer = records.changed() => {
                    if newer.is_err() {
                        return;
                    }
                    records.mark_changed();
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn content(text: &str) -> Arc<Content> {
        Arc::new(Content::from(text.as_bytes().to_vec()))
    }

    fn record(generation: u64, list: &str) -> Record {
        Record {
            generation: Generation(generation),
            file: content(&format!("version = 1 # {generation}")),
            lists: vec![("/etc/edgevpn/ops.txt".into(), content(list))],
        }
    }

    #[test]
    fn records_come_back_newest_first_and_only_as_many_as_wanted() {
        let place = tempfile::tempdir().unwrap();
        let history = History::of(place.path());
        for generation in 1..=5 {
            history
                .keep(&record(generation, &format!("list {}", generation / 4)), 3)
                .unwrap();
        }
        let kept: Vec<_> = history.newest_first().collect();
        assert_eq!(
            kept,
            [
                record(5, "list 1"),
                record(4, "list 1"),
                record(3, "list 0")
            ]
        );
        let lists = fs::read_dir(place.path().join("history/lists"))
            .unwrap()
            .count();
        assert_eq!(lists, 2);
    }

    #[test]
    fn only_the_owner_may_read_them() {
        let place = tempfile::tempdir().unwrap();
        History::of(place.path())
            .keep(&record(1, "list"), 3)
            .unwrap();
        let mode = |name: &str| {
            fs::metadata(place.path().join(name))
                .unwrap()
                .permissions()
                .mode()
                & 0o777
        };
        assert_eq!(mode("history"), 0o700);
        assert_eq!(mode("history/0000000001.toml"), 0o600);
        assert_eq!(mode("history/0000000001.json"), 0o600);
    }

    #[test]
    fn a_damaged_record_is_passed_over() {
        let place = tempfile::tempdir().unwrap();
        let history = History::of(place.path());
        for generation in 1..=3 {
            history.keep(&record(generation, "list"), 9).unwrap();
        }
        fs::write(place.path().join("history/0000000003.toml"), "version = 1").unwrap();
        fs::write(place.path().join("history/0000000002.json"), "{").unwrap();
        let kept: Vec<_> = history.newest_first().collect();
        assert_eq!(kept, [record(1, "list")]);
        fs::remove_dir_all(place.path().join("history/lists")).unwrap();
        assert_eq!(history.newest_first().count(), 0);
    }

    #[test]
    fn what_a_killed_writer_left_is_removed() {
        let place = tempfile::tempdir().unwrap();
        let history = History::of(place.path());
        history.keep(&record(1, "list"), 9).unwrap();
        fs::write(place.path().join("history/0000000002.tmp"), "half").unwrap();
        fs::write(place.path().join("history/lists/abc.tmp"), "half").unwrap();
        fs::write(place.path().join("history/0000000002.toml"), "no manifest").unwrap();
        assert_eq!(history.newest_first().count(), 1);
        history.keep(&record(2, "list"), 9).unwrap();
        assert_eq!(history.newest_first().next(), Some(record(2, "list")));
        assert!(!place.path().join("history/0000000002.tmp").exists());
    }

    #[tokio::test]
    async fn a_disk_that_takes_nothing_is_told_and_the_newest_record_is_kept_later() {
        let place = tempfile::tempdir().unwrap();
        // A file where the directory belongs: nothing can be kept, not even by root.
        fs::write(place.path().join("history"), "").unwrap();
        let keeper = Keeper::new(History::of(place.path()));
        keeper.keep(record(1, "list"), 9);
        let told = async {
            while keeper.trouble().is_none() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), told)
            .await
            .expect("trouble is told");
        fs::remove_file(place.path().join("history")).unwrap();
        keeper.keep(record(2, "list"), 9);
        keeper.finish().await;
        let kept: Vec<_> = History::of(place.path()).newest_first().collect();
        assert_eq!(kept, [record(2, "list")]);
    }
}
