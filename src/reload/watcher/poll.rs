//! Notices by comparing content at intervals: slow, and right on every file system.

use super::{Deaf, Notice, Notices, Places};
use crate::reload::read::{self, Hash};
use std::{
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, Sleep},
};

/// Reads all files every so often and compares them with what was last looked at.
pub struct Comparison {
    interval: Duration,
    files: Vec<(PathBuf, Option<Hash>)>,
    next: Pin<Box<Sleep>>,
    /// A reading under way, off the runtime: a list may be long and its disk slow.
    reading: Option<JoinHandle<Vec<Option<Hash>>>>,
}

impl Comparison {
    pub fn new(interval: Duration) -> Comparison {
        Comparison {
            interval,
            files: Vec::new(),
            next: Box::pin(tokio::time::sleep(interval)),
            reading: None,
        }
    }

    pub fn interval(&self) -> Duration {
        self.interval
    }
}

impl Notices for Comparison {
    fn watch(&mut self, _: &Arc<Places>, files: &[(PathBuf, Option<Hash>)]) -> Result<(), Deaf> {
        if self.files != files {
            self.files = files.to_vec();
            // It compares with what is known no more.
            self.reading = None;
        }
        Ok(())
    }

    fn poll_notice(&mut self, cx: &mut Context<'_>) -> Poll<Notice> {
        loop {
            if let Some(reading) = &mut self.reading {
                let found = ready!(Pin::new(reading).poll(cx));
                self.reading = None;
                self.next.as_mut().reset(deadline(self.interval));
                // A reading that panicked found nothing out; the next one may.
                let Ok(found) = found else {
                    continue;
                };
                let mut changed = false;
                for ((_, known), found) in self.files.iter_mut().zip(found) {
                    changed |= *known != found;
                    // Noticed once; the look that follows says what is known from then on.
                    *known = found;
                }
                return Poll::Ready(if changed {
                    Notice::Touched { writing: false }
                } else {
                    Notice::Same
                });
            }
            ready!(self.next.as_mut().poll(cx));
            let paths: Vec<PathBuf> = self.files.iter().map(|(path, _)| path.clone()).collect();
            self.reading = Some(tokio::task::spawn_blocking(move || {
                paths
                    .iter()
                    .map(|path| {
                        read::read(path, read::LIST_CAP)
                            .ok()
                            .map(|content| content.hash)
                    })
                    .collect()
            }));
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "a timer at the edge")]
fn deadline(interval: Duration) -> Instant {
    Instant::now() + interval
}
