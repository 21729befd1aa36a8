//! Named tasks: aborted with their handle, and a panic in one is counted and reported, never fatal to another.
#![allow(clippy::disallowed_methods, reason = "the one place that spawns")]

use std::{
    future::Future,
    sync::atomic::{AtomicU64, Ordering},
};

use futures::FutureExt;

/// Panics of tasks since the process started. Zero is the only good value; `status` and metrics show it.
static PANICS: AtomicU64 = AtomicU64::new(0);

pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Ends its task when dropped.
#[derive(Debug)]
pub struct Task {
    name: &'static str,
    handle: tokio::task::JoinHandle<()>,
}

/// Runs `future` until it ends or its [`Task`] is dropped.
pub fn spawn(name: &'static str, future: impl Future<Output = ()> + Send + 'static) -> Task {
    let contained = async move {
        // Counted and reported where it was caught.
        let _ = contained(name, future).await;
    };
    Task {
        name,
        handle: tokio::spawn(contained),
    }
}

/// A panic, counted and reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panicked;

/// Runs `future` within the present task. Whoever calls decides whether what panicked begins again.
pub async fn contained<T>(
    name: &'static str,
    future: impl Future<Output = T>,
) -> Result<T, Panicked> {
    let caught = std::panic::AssertUnwindSafe(future).catch_unwind().await;
    caught.map_err(|panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        tracing::error!(
            task = name,
            cause = cause(panic.as_ref()),
            "a task panicked and was ended"
        );
        Panicked
    })
}

impl Task {
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Waits for the task to end by itself.
    pub async fn ended(mut self) {
        // An abort cannot happen while `self` is here, and a panic was reported where it was caught.
        let _ = (&mut self.handle).await;
    }
}

/// A thread of its own, for work that waits for devices and sockets; joined when dropped, so whoever holds one must have told
/// it to end.
#[derive(Debug)]
pub struct Thread(Option<std::thread::JoinHandle<()>>);

/// Runs `work` on a thread. A panic in it is counted and reported like that of a task.
pub fn thread(name: &'static str, work: impl FnOnce() + Send + 'static) -> std::io::Result<Thread> {
    let contained = move || {
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
            PANICS.fetch_add(1, Ordering::Relaxed);
            tracing::error!(
                thread = name,
                cause = cause(panic.as_ref()),
                "a thread panicked and was ended"
            );
        }
    };
    let builder = std::thread::Builder::new().name(name.to_owned());
    Ok(Thread(Some(builder.spawn(contained)?)))
}

impl Drop for Thread {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // A panic was reported where it was caught.
            let _ = thread.join();
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

fn cause(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_counted_and_contained() {
        let before = panics();
        spawn("falls", async { panic!("as planned") }).ended().await;
        assert!(panics() > before);
    }

    #[tokio::test]
    async fn whoever_runs_something_contained_learns_of_its_panic() {
        assert_eq!(contained("goes on", async { 7 }).await, Ok(7));
        let fallen = contained("falls", async { panic!("as planned") });
        assert_eq!(fallen.await, Err::<(), _>(Panicked));
    }

    #[tokio::test]
    async fn a_dropped_handle_ends_its_task() {
        let (alive, mut ended) = tokio::sync::mpsc::channel::<()>(1);
        let task = spawn("waits", async move {
            std::future::pending::<()>().await;
            drop(alive);
        });
        drop(task);
        assert_eq!(ended.recv().await, None);
    }
}
