//! Notices that a configuration file or one of its lists may have changed.
//!
//! An event only ever means "look again": nothing is concluded from its kind but whether somebody is still writing. File
//! events can fail in many ways (limits, overflow, file systems without them, a file mounted by itself), so contents are
//! compared at intervals beside them, and failing events are told, never deafness.

mod inotify;
mod places;
mod poll;
mod settle;

use super::read::Hash;
use crate::{
    api::WatcherReport,
    config::{Config, Watch, units::Span},
};
use inotify::Events;
use places::Places;
use poll::Comparison;
use settle::Settle;
use std::{
    future::poll_fn,
    path::PathBuf,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

/// Watches a set of files.
pub struct Watcher {
    wanted: Settings,
    files: Vec<(PathBuf, Option<Hash>)>,
    places: Arc<Places>,
    events: Option<Events>,
    comparison: Option<Comparison>,
    settle: Settle,
    /// Why there are no file events though they are wanted.
    deaf: Option<Deaf>,
}

/// The part of `[reload]` that says how to watch, and how old a list may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub watch: Watch,
    /// Quiet time before a change counts as complete.
    pub settle: Duration,
    /// Between two comparisons of content.
    pub interval: Duration,
}

impl Settings {
    /// `acl.refresh` bounds how long a change of a list may go unseen, so it shortens the interval.
    pub fn of(config: &Config) -> Settings {
        let refresh = config
            .keys
            .get("acl.refresh")
            .and_then(|refresh| refresh.value.as_str()?.parse().ok());
        let Span(refresh) = refresh.unwrap_or(Span(config.reload.poll_interval));
        Settings {
            watch: config.reload.watch,
            settle: config.reload.settle,
            interval: config.reload.poll_interval.min(refresh),
        }
    }
}

/// One way to notice changes.
trait Notices: Send {
    /// Watches exactly this from now on. `files` come with the content that was last looked at, if there was one to read.
    fn watch(
        &mut self,
        places: &Arc<Places>,
        files: &[(PathBuf, Option<Hash>)],
    ) -> Result<(), Deaf>;

    fn poll_notice(&mut self, cx: &mut Context<'_>) -> Poll<Notice>;
}

#[derive(Debug)]
enum Notice {
    /// Look again.
    Touched { writing: bool },
    /// Compared, and nothing has changed.
    Same,
    /// There will be no further notices.
    Deaf(Deaf),
}

/// Why notices do not arrive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
struct Deaf(String);

impl Deaf {
    fn new(error: notify::Error) -> Deaf {
        let path = error
            .paths
            .first()
            .map(|path| format!(" at {}", path.display()))
            .unwrap_or_default();
        Deaf(match error.kind {
            notify::ErrorKind::MaxFilesWatch => {
                "no inotify watch is left for this user; raise fs.inotify.max_user_watches"
                    .to_owned()
            }
            // EMFILE of inotify_init(2): too many instances of the user, or file descriptors of the process.
            notify::ErrorKind::Io(error) if error.raw_os_error() == Some(24) => {
                "no inotify instance is left for this user; raise fs.inotify.max_user_instances"
                    .to_owned()
            }
            notify::ErrorKind::Io(error) => format!("file events fail{path}: {error}"),
            _ => format!("file events fail{path}: {error}"),
        })
    }
}

impl Watcher {
    pub fn new(wanted: Settings) -> Watcher {
        let mut watcher = Watcher {
            wanted,
            files: Vec::new(),
            places: Arc::default(),
            events: None,
            comparison: None,
            settle: Settle::default(),
            deaf: None,
        };
        watcher.arrange();
        watcher
    }

    /// Follows `[reload]` live.
    pub fn configure(&mut self, wanted: Settings) {
        if self.wanted != wanted {
            self.wanted = wanted;
            self.arrange();
        }
    }

    /// Watches exactly these files, given as absolute paths with the content last looked at. To be called before and after
    /// every look: before, so that no change falls between reading and watching; after, because a link may lead elsewhere and
    /// another list may be named.
    pub fn follow(&mut self, files: Vec<(PathBuf, Option<Hash>)>) {
        self.files = files;
        if self.wanted.watch == Watch::Off {
            return;
        }
        let places = Arc::new(Places::of(
            self.files.iter().map(|(path, _)| path.as_path()),
        ));
        let elsewhere = self.places.targets != places.targets;
        self.places = places;
        self.listen();
        if elsewhere {
            // Between the reading and this there was no watch on the new place.
            self.settle.notice(false, now());
        }
    }

    /// Looks again after the quiet time, though nothing was noticed: what was read is not trusted yet.
    pub fn suspect(&mut self) {
        self.settle.notice(false, now());
    }

    /// Waits until a change has settled. Cancel safe.
    pub async fn changed(&mut self) {
        loop {
            let due = self.settle.due(self.wanted.settle, self.wanted.interval);
            let notice = poll_fn(|cx| self.poll_notice(cx));
            let notice = match due {
                None => notice.await,
                Some(due) => match tokio::time::timeout_at(due.into(), notice).await {
                    Ok(notice) => notice,
                    Err(_) => {
                        self.settle.looked();
                        return;
                    }
                },
            };
            match notice {
                Notice::Touched { writing } => self.settle.notice(writing, now()),
                Notice::Same => self.recover(),
                Notice::Deaf(deaf) => {
                    self.degrade(deaf);
                    // Whatever was lost is found by looking.
                    self.settle.notice(false, now());
                }
            }
        }
    }

    /// What was noticed until now is dealt with by a look that was asked for otherwise.
    pub fn looked(&mut self) {
        self.settle.looked();
    }

    pub fn report(&self) -> WatcherReport {
        let method = match (&self.events, &self.comparison) {
            (_, None) => "off".to_owned(),
            (None, Some(comparison)) => format!("{:?} poll", comparison.interval()),
            (Some(_), Some(comparison)) => format!("inotify and {:?} poll", comparison.interval()),
        };
        WatcherReport {
            method,
            files: self
                .files
                .iter()
                .map(|(path, _)| path.display().to_string())
                .collect(),
            healthy: self.deaf.is_none(),
            problem: self.deaf.as_ref().map(|deaf| deaf.to_string()),
        }
    }

    fn poll_notice(&mut self, cx: &mut Context<'_>) -> Poll<Notice> {
        if let Some(events) = &mut self.events
            && let Poll::Ready(notice) = events.poll_notice(cx)
        {
            return Poll::Ready(notice);
        }
        match &mut self.comparison {
            Some(comparison) => comparison.poll_notice(cx),
            None => Poll::Pending,
        }
    }

    /// Sets up what the settings ask for.
    fn arrange(&mut self) {
        match self.wanted.watch {
            Watch::Auto => {
                if self.comparison.as_ref().map(Comparison::interval) != Some(self.wanted.interval)
                {
                    self.comparison = Some(Comparison::new(self.wanted.interval));
                }
                if self.events.is_none() {
                    match Events::new() {
                        Ok(events) => self.events = Some(events),
                        Err(deaf) => self.degrade(deaf),
                    }
                }
            }
            Watch::Poll => {
                self.comparison = Some(Comparison::new(self.wanted.interval));
                self.events = None;
                self.deaf = None;
            }
            Watch::Off => {
                self.comparison = None;
                self.events = None;
                self.deaf = None;
                self.settle.looked();
            }
        }
        let files = std::mem::take(&mut self.files);
        self.follow(files);
    }

    fn listen(&mut self) {
        if let Some(comparison) = &mut self.comparison {
            // Comparing needs nothing that can be missing.
            let _ = comparison.watch(&self.places, &self.files);
        }
        if let Some(events) = &mut self.events
            && let Err(deaf) = events.watch(&self.places, &self.files)
        {
            self.degrade(deaf);
        }
    }

    fn degrade(&mut self, deaf: Deaf) {
        self.events = None;
        if self.deaf.as_ref() != Some(&deaf) {
            tracing::warn!(
                cause = %deaf,
                every = ?self.wanted.interval,
                "file events do not arrive; comparing contents instead"
            );
        }
        self.deaf = Some(deaf);
    }

    /// Tries events again, at the pace of the comparisons.
    fn recover(&mut self) {
        if self.wanted.watch != Watch::Auto || self.events.is_some() {
            return;
        }
        let Ok(mut events) = Events::new() else {
            return;
        };
        if events.watch(&self.places, &self.files).is_err() {
            return;
        }
        self.events = Some(events);
        self.deaf = None;
        tracing::info!("file events arrive again");
        // What changed between the comparison and now.
        self.settle.notice(false, now());
    }
}

#[allow(clippy::disallowed_methods, reason = "a timer at the edge")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reload::read;
    use std::{
        fs::{self, File},
        io::Write as _,
        os::unix::fs::symlink,
        path::Path,
    };

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A watcher whose events must do the work: contents are compared once a minute only.
    struct Watched {
        _keep: tempfile::TempDir,
        root: PathBuf,
        file: PathBuf,
        watcher: Watcher,
    }

    impl Watched {
        fn new(
            watch: Watch,
            interval: Duration,
            arrange: impl FnOnce(&Path) -> PathBuf,
        ) -> Watched {
            let keep = tempfile::tempdir().unwrap();
            let root = keep.path().canonicalize().unwrap();
            let file = root.join(arrange(&root));
            let watcher = Watcher::new(Settings {
                watch,
                settle: Duration::from_millis(20),
                interval,
            });
            let mut watched = Watched {
                _keep: keep,
                root,
                file,
                watcher,
            };
            watched.look();
            watched
        }

        fn by_events(arrange: impl FnOnce(&Path) -> PathBuf) -> Watched {
            Watched::new(Watch::Auto, Duration::from_secs(60), arrange)
        }

        fn look(&mut self) -> String {
            let found = read::read(&self.file, read::FILE_CAP).ok();
            let hash = found.as_ref().map(|found| found.hash);
            self.watcher.follow(vec![(self.file.clone(), hash)]);
            found.map_or("nothing".to_owned(), |found| {
                String::from_utf8(found.bytes).unwrap()
            })
        }

        /// Waits to be told of this content; nobody looks without a reason.
        async fn until(&mut self, content: &str) {
            let seen = tokio::time::timeout(PATIENCE, async {
                loop {
                    self.watcher.changed().await;
                    if self.look() == content {
                        return;
                    }
                }
            });
            seen.await
                .unwrap_or_else(|_| panic!("{content} is never seen"));
            self.rest().await;
        }

        /// Lets the looks that follow from the last one pass.
        async fn rest(&mut self) {
            while tokio::time::timeout(Duration::from_millis(100), self.watcher.changed())
                .await
                .is_ok()
            {
                self.look();
            }
        }
    }

    fn plain(root: &Path) -> PathBuf {
        fs::write(root.join("a.toml"), "old").unwrap();
        "a.toml".into()
    }

    #[tokio::test]
    async fn every_plain_way_to_write_is_noticed_again_and_again() {
        let mut watched = Watched::by_events(plain);
        watched.rest().await;
        for round in 0..5 {
            let file = watched.file.clone();
            let text = |style: &str| format!("{style} {round}");
            fs::write(&file, text("in place")).unwrap();
            watched.until(&text("in place")).await;

            fs::write(watched.root.join("tmp"), text("renamed over")).unwrap();
            fs::rename(watched.root.join("tmp"), &file).unwrap();
            watched.until(&text("renamed over")).await;

            fs::remove_file(&file).unwrap();
            watched.until("nothing").await;
            fs::write(&file, text("made again")).unwrap();
            watched.until(&text("made again")).await;

            fs::rename(&file, watched.root.join("aside")).unwrap();
            watched.until("nothing").await;
            fs::rename(watched.root.join("aside"), &file).unwrap();
            watched.until(&text("made again")).await;
        }
    }

    #[tokio::test]
    async fn writing_through_another_name_is_noticed() {
        let mut watched = Watched::by_events(plain);
        let other = tempfile::tempdir_in(watched.root.parent().unwrap()).unwrap();
        fs::hard_link(&watched.file, other.path().join("other")).unwrap();
        watched.rest().await;
        fs::write(other.path().join("other"), "by the other name").unwrap();
        watched.until("by the other name").await;
    }

    #[tokio::test]
    async fn a_volume_swap_is_noticed_every_time() {
        let mut watched = Watched::by_events(|root| {
            fs::create_dir(root.join("..0")).unwrap();
            fs::write(root.join("..0/a.toml"), "old").unwrap();
            symlink("..0", root.join("..data")).unwrap();
            symlink("..data/a.toml", root.join("a.toml")).unwrap();
            "a.toml".into()
        });
        watched.rest().await;
        for round in 1..20 {
            let version = watched.root.join(format!("..{round}"));
            fs::create_dir(&version).unwrap();
            fs::write(version.join("a.toml"), format!("round {round}")).unwrap();
            symlink(format!("..{round}"), watched.root.join("..tmp")).unwrap();
            fs::rename(watched.root.join("..tmp"), watched.root.join("..data")).unwrap();
            fs::remove_dir_all(watched.root.join(format!("..{}", round - 1))).unwrap();
            watched.until(&format!("round {round}")).await;
        }
    }

    #[tokio::test]
    async fn a_replaced_directory_is_noticed_at_every_height() {
        let mut watched = Watched::by_events(|root| {
            fs::create_dir_all(root.join("a/b")).unwrap();
            fs::write(root.join("a/b/c.toml"), "old").unwrap();
            "a/b/c.toml".into()
        });
        watched.rest().await;
        for (round, height) in ["a", "a/b", "a", "a/b"].into_iter().enumerate() {
            let aside = watched.root.join(format!("aside {round}"));
            fs::rename(watched.root.join(height), aside).unwrap();
            watched.until("nothing").await;
            fs::create_dir_all(watched.root.join("a/b")).unwrap();
            fs::write(&watched.file, format!("round {round}")).unwrap();
            watched.until(&format!("round {round}")).await;
        }
    }

    #[tokio::test]
    async fn what_was_moved_away_and_back_is_watched_still() {
        let mut watched = Watched::by_events(|root| {
            fs::create_dir(root.join("conf")).unwrap();
            fs::write(root.join("conf/a.toml"), "old").unwrap();
            "conf/a.toml".into()
        });
        watched.rest().await;
        let (conf, aside) = (watched.root.join("conf"), watched.root.join("aside"));
        fs::rename(&conf, &aside).unwrap();
        fs::rename(&aside, &conf).unwrap();
        watched.rest().await;
        fs::write(watched.root.join("tmp"), "new").unwrap();
        fs::rename(watched.root.join("tmp"), &watched.file).unwrap();
        watched.until("new").await;
    }

    #[tokio::test]
    async fn a_writer_is_waited_for_until_it_closes() {
        let mut watched = Watched::by_events(plain);
        watched.rest().await;
        let mut writer = File::create(&watched.file).unwrap();
        for part in ["one ", "two ", "three"] {
            writer.write_all(part.as_bytes()).unwrap();
            let early =
                tokio::time::timeout(Duration::from_millis(80), watched.watcher.changed()).await;
            assert!(early.is_err(), "looked while {part:?} was just written");
        }
        drop(writer);
        watched.watcher.changed().await;
        assert_eq!(watched.look(), "one two three");
    }

    #[tokio::test]
    async fn reading_the_file_and_writing_beside_it_cause_no_look() {
        let mut watched = Watched::by_events(plain);
        watched.rest().await;
        for _ in 0..10 {
            watched.look();
            fs::write(watched.root.join("beside"), "else").unwrap();
        }
        let look =
            tokio::time::timeout(Duration::from_millis(200), watched.watcher.changed()).await;
        assert!(look.is_err());
    }

    #[tokio::test]
    async fn comparing_contents_suffices_without_events() {
        let mut watched = Watched::new(Watch::Poll, Duration::from_millis(20), plain);
        assert_eq!(watched.watcher.report().method, "20ms poll");
        watched.rest().await;
        fs::write(&watched.file, "new").unwrap();
        watched.until("new").await;
        fs::remove_file(&watched.file).unwrap();
        watched.until("nothing").await;
        fs::write(&watched.file, "again").unwrap();
        watched.until("again").await;
    }

    #[tokio::test]
    async fn a_watch_that_is_off_notices_nothing_until_it_is_on() {
        let mut watched = Watched::new(Watch::Off, Duration::from_millis(20), plain);
        fs::write(&watched.file, "new").unwrap();
        let look =
            tokio::time::timeout(Duration::from_millis(200), watched.watcher.changed()).await;
        assert!(look.is_err());
        let wanted = Settings {
            watch: Watch::Auto,
            ..watched.watcher.wanted
        };
        watched.watcher.configure(wanted);
        watched.watcher.changed().await;
        assert_eq!(watched.look(), "new");
    }

    #[tokio::test]
    async fn lost_events_are_told_and_made_up_for() {
        let mut watched = Watched::new(Watch::Auto, Duration::from_millis(50), plain);
        watched.rest().await;
        watched.watcher.degrade(Deaf("as in the test".to_owned()));
        let report = watched.watcher.report();
        assert!(!report.healthy);
        assert_eq!(report.method, "50ms poll");
        assert_eq!(report.problem.as_deref(), Some("as in the test"));
        fs::write(&watched.file, "new").unwrap();
        watched.until("new").await;
        let healthy = async {
            while !watched.watcher.report().healthy {
                let _ = tokio::time::timeout(Duration::from_millis(100), watched.watcher.changed())
                    .await;
            }
        };
        tokio::time::timeout(PATIENCE, healthy)
            .await
            .expect("events arrive again");
    }
}
