//! What the network brings to those who act on it: one bounded queue from the swarm to the ledger.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use tokio::sync::mpsc;

use super::{exchange, gossip};

/// What waits for the ledger at most. A network of a thousand members fills a quarter of it in a second in which all of
/// them write; what does not fit is lost here and told again by the next digest.
const WAITING: usize = 1024;

/// Something a peer said that is not for the network task itself.
#[derive(Debug)]
pub enum Heard {
    /// Of the exchange between our own nodes.
    Exchange(exchange::Frame),
    /// Broadcast in a room. It goes on to others when [`super::gossip::Control::judge`] has said so.
    Gossip(gossip::Message, Waiting),
}

/// Bytes of broadcasts that wait at most. Three of the largest that EdgeVPN allows; usual ones have some kilobytes.
const WAITING_BYTES: usize = 64 << 20;

/// Counts among the bytes that wait until it is dropped.
#[derive(Debug)]
pub struct Waiting {
    all: Arc<AtomicUsize>,
    bytes: usize,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The network's end of the queue. Clones feed the same queue.
#[derive(Clone, Debug)]
pub struct Ears {
    queue: mpsc::Sender<Heard>,
    missed: Arc<AtomicU64>,
    /// Bytes of broadcasts in the queue.
    waiting: Arc<AtomicUsize>,
}

impl Ears {
    pub fn new() -> (Ears, mpsc::Receiver<Heard>) {
        let (queue, heard) = mpsc::channel(WAITING);
        let ears = Ears {
            queue,
            missed: Arc::default(),
            waiting: Arc::default(),
        };
        (ears, heard)
    }

    /// Passes it on, or counts it as missed when the ledger is behind. Says whether it was passed on.
    pub fn hear_broadcast(&self, message: gossip::Message) -> bool {
        let bytes = message.data.len();
        let before = self.waiting.fetch_add(bytes, Ordering::Relaxed);
        let waiting = Waiting {
            all: self.waiting.clone(),
            bytes,
        };
        let passed = before.saturating_add(bytes) <= WAITING_BYTES
            && self.queue.try_send(Heard::Gossip(message, waiting)).is_ok();
        if !passed {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
        passed
    }

    /// Passes it on once there is room; for senders that a peer waits behind.
    pub async fn hear_in_turn(&self, heard: Heard) {
        if self.queue.send(heard).await.is_err() {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How much was lost because the queue was full.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }
}
