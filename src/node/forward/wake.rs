//! How a thread that waits for a device or a socket is woken: by a change of what it waits for, or to end.

use std::{
    io,
    os::fd::OwnedFd,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    fd::{AsFd, BorrowedFd},
    io::{Errno, read, write},
};

pub struct Wake {
    event: OwnedFd,
    stopping: AtomicBool,
}

/// What a wait has ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// There is something to read.
    Ready,
    /// Look again at what to wait for.
    Changed,
    Stop,
}

impl Wake {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stopping: AtomicBool::new(false),
        })
    }

    pub fn wake(&self) {
        // It fails when the counter is full: then it is awake anyway.
        let _ = write(&self.event, &1_u64.to_ne_bytes());
    }

    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Waits until `what` can be read, or for somebody to call.
    pub fn wait(&self, what: Option<BorrowedFd<'_>>) -> Woken {
        let mut both = vec![PollFd::new(&self.event, PollFlags::IN)];
        both.extend(what.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        match poll(&mut both, None) {
            Ok(_) | Err(Errno::INTR) => {}
            // Out of memory, at worst: what is looked at next says more.
            Err(_) => return Woken::Changed,
        }
        let called = both
            .first()
            .is_some_and(|event| !event.revents().is_empty());
        drop(both);
        if called {
            let mut count = [0; 8];
            let _ = read(self.event.as_fd(), &mut count);
        }
        match (self.stopping.load(Ordering::SeqCst), called) {
            (true, _) => Woken::Stop,
            (false, true) => Woken::Changed,
            (false, false) => Woken::Ready,
        }
    }
}
