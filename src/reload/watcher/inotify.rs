//! Notices by file events of the kernel, through the crate notify.

use super::{
    Deaf, Notice, Notices, Places,
    places::{Role, Target},
};
use crate::reload::read::Hash;
use futures::task::AtomicWaker;
use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, DataChange, ModifyKind, RenameMode},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

/// Watches on the places of the files. The thread behind it only writes down that something happened.
pub struct Events {
    watcher: RecommendedWatcher,
    set: BTreeMap<PathBuf, Target>,
    seen: Arc<Seen>,
}

/// What the thread of notify has written down since the last look.
#[derive(Default)]
struct Seen {
    notes: Mutex<Notes>,
    waker: AtomicWaker,
}

#[derive(Default)]
struct Notes {
    places: Arc<Places>,
    touched: bool,
    /// Files that somebody has written to and not closed yet; only watched files get in, so it is as small as they are few.
    writing: BTreeSet<PathBuf>,
    /// notify drops a watch by itself when its path goes away, even if the path is back by now.
    dropped: bool,
    deaf: Option<Deaf>,
}

impl Events {
    pub fn new() -> Result<Events, Deaf> {
        let seen = Arc::new(Seen::default());
        let noting = seen.clone();
        let watcher = RecommendedWatcher::new(
            move |event: notify::Result<Event>| noting.note(event),
            notify::Config::default(),
        )
        .map_err(Deaf::new)?;
        Ok(Events {
            watcher,
            set: BTreeMap::new(),
            seen,
        })
    }

    fn set(&mut self, places: &Arc<Places>) -> Result<(), Deaf> {
        let dropped = {
            let mut notes = self.seen.notes();
            notes.places = places.clone();
            notes.writing.retain(|path| places.concerns(path));
            std::mem::take(&mut notes.dropped)
        };
        let kept = |path: &Path, target: &Target| {
            !dropped
                && places.targets.get(path).map(|wanted| wanted.identity) == Some(target.identity)
        };
        let (stay, go): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.set)
            .into_iter()
            .partition(|(path, target)| kept(path, target));
        self.set = stay;
        for path in go.keys() {
            // It may be gone already, together with its path.
            let _ = self.watcher.unwatch(path);
        }
        for (path, target) in &places.targets {
            if self.set.contains_key(path) {
                continue;
            }
            match self.watcher.watch(path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.set.insert(path.clone(), *target);
                }
                // Gone since the walk, or a directory above that we may pass but not list: the first shows as an event on the
                // directory before it, the second only hides that the whole directory is replaced, which polling finds.
                Err(error)
                    if is_missing(&error) || target.role == Role::Ancestor && is_denied(&error) => {
                }
                Err(error) => return Err(Deaf::new(error)),
            }
        }
        Ok(())
    }
}

impl Notices for Events {
    fn watch(&mut self, places: &Arc<Places>, _: &[(PathBuf, Option<Hash>)]) -> Result<(), Deaf> {
        // notify unwraps the channel to its thread. If the thread is gone, that is deafness and no reason to fall.
        catch_unwind(AssertUnwindSafe(|| self.set(places))).unwrap_or_else(|_| {
            Err(Deaf(
                "the thread that reads file events has ended".to_owned(),
            ))
        })
    }

    fn poll_notice(&mut self, cx: &mut Context<'_>) -> Poll<Notice> {
        self.seen.waker.register(cx.waker());
        let mut notes = self.seen.notes();
        if let Some(deaf) = notes.deaf.take() {
            return Poll::Ready(Notice::Deaf(deaf));
        }
        if std::mem::take(&mut notes.touched) {
            return Poll::Ready(Notice::Touched {
                writing: !notes.writing.is_empty(),
            });
        }
        Poll::Pending
    }
}

impl Seen {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs on the thread of notify.
    fn note(&self, event: notify::Result<Event>) {
        let mut notes = self.notes();
        match event {
            Err(error) => notes.deaf = Some(Deaf::new(error)),
            Ok(event) if event.need_rescan() => {
                notes.deaf = Some(Deaf(
                    "the kernel dropped file events because too many came at once; raise fs.inotify.max_queued_events"
                        .to_owned(),
                ));
            }
            Ok(event) => {
                let places = notes.places.clone();
                let Some(path) = event.paths.iter().find(|path| places.concerns(path)) else {
                    return;
                };
                notes.note(event.kind, path);
            }
        }
        drop(notes);
        self.waker.wake();
    }
}

impl Notes {
    fn note(&mut self, kind: EventKind, path: &Path) {
        match kind {
            // Reading, our own included.
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                self.writing.remove(path);
            }
            EventKind::Access(_) => return,
            EventKind::Modify(ModifyKind::Data(DataChange::Any)) => {
                self.writing.insert(path.to_owned());
            }
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(RenameMode::From)) => {
                self.dropped = true;
                self.writing.remove(path);
            }
            // Another file has this name now; whoever still writes to the old one does not matter.
            EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(_)) => {
                self.writing.remove(path);
            }
            EventKind::Modify(_) | EventKind::Any | EventKind::Other => {}
        }
        self.touched = true;
    }
}

fn is_missing(error: &notify::Error) -> bool {
    match &error.kind {
        notify::ErrorKind::PathNotFound => true,
        notify::ErrorKind::Io(error) => error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

fn is_denied(error: &notify::Error) -> bool {
    matches!(&error.kind, notify::ErrorKind::Io(error) if error.kind() == std::io::ErrorKind::PermissionDenied)
}
