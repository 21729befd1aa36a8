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
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_what_the_shares_hold_and_dropping_gives_back() {
        let buffers = Buffers::default();
        let (mut one, mut two) = (buffers.share(), buffers.share());
        one.set(10);
        two.set(5);
        one.set(3);
        assert_eq!((buffers.held(), one.held()), (8, 3));
        drop(one);
        assert_eq!(buffers.held(), 5);
        two.set(0);
        assert_eq!(buffers.held(), 0);
    }
}
