//! `max_buffers`: the bytes that all circuits together really hold, counted where they are held.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// The node's sum. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Buffers(Arc<AtomicU64>);

impl Buffers {
    /// Bytes held by all shares.
    pub fn held(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// The part of one circuit; gives back what it holds when it is dropped.
    pub fn share(&self) -> Share {
        Share {
            sum: self.clone(),
            held: 0,
        }
    }
}

/// What one circuit holds.
#[derive(Debug)]
pub struct Share {
    sum: Buffers,
    held: u64,
}

impl Share {
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Says how many bytes are held now, whatever the cap: they are there.
    pub fn set(&mut self, bytes: u64) {
        if bytes >= self.held {
            self.sum.0.fetch_add(bytes - self.held, Ordering::Relaxed);
        } else {
            self.sum.0.fetch_sub(self.held - bytes, Ordering::Relaxed);
        }
        self.held = bytes;
    }

    /// Asks for `more` bytes; `false` when the sum would go above `cap`, and then nothing is taken.
    pub fn try_grow(&mut self, more: u64, cap: u64) -> bool {
        let grown = self
            .sum
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |sum| {
                sum.checked_add(more).filter(|sum| *sum <= cap)
            });
        if grown.is_ok() {
            self.held = self.held.saturating_add(more);
        }
        grown.is_ok()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}
