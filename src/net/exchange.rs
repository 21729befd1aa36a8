//! The way between the ledgers of our own nodes: one long-lived stream in each direction, frames of sealed bytes on it.
//!
//! Nothing here knows what is in a frame. A frame that came in waits for its [`Receipt`] before the next one of the same
//! peer is read, so a peer that writes faster than the ledger reads is slowed down and takes no room from others. Until
//! one frame of a peer has been accepted, that is until it has shown that it holds the token, it may send small ones only.
//!
//! ```text
//! frame = length (4 bytes, big endian) ‖ sealed bytes
//! ```

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use libp2p::{PeerId, StreamProtocol};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::{heard::Ears, streams};
use crate::{
    config::Snapshot,
    ledger::MAX_MESSAGE,
    task::{self, Task},
};

mod frames;
mod pump;

/// Spoken by our own nodes that are in a network.
pub const PROTOCOL: StreamProtocol = StreamProtocol::new("/edgevpn/ledger/1.0.0");

/// Bytes of a frame at most: the largest message, and what sealing adds (a byte, a nonce of 12 and a tag of 16).
pub const LARGEST_FRAME: usize = MAX_MESSAGE + 29;

/// Bytes that wait for one neighbour at most. A neighbour that is further behind is dropped, and begins anew with a digest
/// once it reads again.
const BEHIND: usize = 16 * LARGEST_FRAME;

/// Frames likewise.
const FRAMES_BEHIND: usize = 256;

/// Neighbours at most. Beyond a relay in the middle of a network nobody has nearly as many connections.
const NEIGHBOURS: usize = 1024;

/// Starts speaking the protocol whenever the node is in a network, and stops when it is not. Clones are the same.
#[derive(Clone)]
pub struct Exchange {
    shared: Arc<Shared>,
    speakers: mpsc::Sender<PeerId>,
    neighbours: watch::Receiver<Neighbours>,
    _task: Arc<Task>,
}

/// Peers that frames can be sent to. The number grows with each new stream to the same peer: whoever sees it grow tells the
/// peer again where the ledger stands.
pub type Neighbours = Arc<HashMap<PeerId, u64>>;

/// A frame that a peer has sent.
#[derive(Debug)]
pub struct Frame {
    pub peer: PeerId,
    pub bytes: Vec<u8>,
    pub receipt: Receipt,
}

/// Says to whoever reads from the peer that the frame is dealt with. Dropped, the stream goes on as after [`Self::give`],
/// but the peer has proved nothing.
#[derive(Debug)]
pub struct Receipt(oneshot::Sender<Verdict>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It could be opened: the peer holds the token.
    Good,
    /// It could not, or made no sense.
    Bad,
}

impl Receipt {
    pub fn give(self, verdict: Verdict) {
        // Gone with the stream.
        let _ = self.0.send(verdict);
    }
}

/// What the exchange has come to since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub neighbours: usize,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub frames_in: u64,
    pub frames_out: u64,
    /// Streams that were ended, frames that were not sent: by reason.
    pub refused: BTreeMap<&'static str, u64>,
}

/// What the handle, the pump and its streams have in common.
#[derive(Default)]
struct Shared {
    lanes: Mutex<HashMap<PeerId, Lane>>,
    counts: Counts,
    /// Something queued has been written, or will never be.
    written: Notify,
}

/// The queue of one neighbour.
struct Lane {
    queue: mpsc::Sender<Vec<u8>>,
    /// Bytes in it.
    behind: Arc<AtomicUsize>,
    number: u64,
    relayed: bool,
}

#[derive(Default)]
struct Counts {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    frames_in: AtomicU64,
    frames_out: AtomicU64,
    refused: Mutex<BTreeMap<&'static str, u64>>,
}

impl Exchange {
    pub fn start(
        streams: streams::Control,
        live: watch::Receiver<Arc<Snapshot>>,
        ears: Ears,
    ) -> Exchange {
        let shared = Arc::<Shared>::default();
        let (publish, neighbours) = watch::channel(Neighbours::default());
        let (speakers, speaking) = mpsc::channel(NEIGHBOURS);
        let pump = pump::Pump::new(streams, live, ears, shared.clone(), publish);
        Exchange {
            shared,
            speakers,
            neighbours,
            _task: Arc::new(task::spawn("exchange", pump.run(speaking))),
        }
    }

    /// A peer that is connected says that it speaks the protocol.
    pub fn speaks(&self, peer: PeerId) {
        // Full only while a thousand peers connect at once; the next identify of this one comes.
        let _ = self.speakers.try_send(peer);
    }

    pub fn neighbours(&self) -> watch::Receiver<Neighbours> {
        self.neighbours.clone()
    }

    /// Queues a frame. `false`: the peer is no neighbour, or so slow that it ceases to be one.
    pub fn send(&self, peer: &PeerId, frame: Vec<u8>) -> bool {
        let mut lanes = self.shared.lanes();
        let Some(lane) = lanes.get(peer) else {
            return false;
        };
        let length = frame.len();
        let behind = lane.behind.fetch_add(length, Ordering::Relaxed);
        let fits = length <= LARGEST_FRAME && behind.saturating_add(length) <= BEHIND;
        if fits && lane.queue.try_send(frame).is_ok() {
            return true;
        }
        // Its queue ends with it, and with the queue the stream.
        lanes.remove(peer);
        drop(lanes);
        self.shared.counts.refuse("slow_neighbour");
        false
    }

    /// Waits until everything that was queued has been written.
    pub async fn flushed(&self) {
        loop {
            let written = self.shared.written.notified();
            let behind = |lane: &Lane| lane.behind.load(Ordering::Relaxed) > 0;
            if !self.shared.lanes().values().any(behind) {
                return;
            }
            written.await;
        }
    }

    pub fn report(&self) -> Report {
        let counts = &self.shared.counts;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Report {
            neighbours: self.shared.lanes().len(),
            bytes_in: read(&counts.bytes_in),
            bytes_out: read(&counts.bytes_out),
            frames_in: read(&counts.frames_in),
            frames_out: read(&counts.frames_out),
            refused: counts.refused().clone(),
        }
    }
}

impl Shared {
    fn lanes(&self) -> MutexGuard<'_, HashMap<PeerId, Lane>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn refuse(&self, reason: &'static str) {
        let mut refused = self.refused();
        let count = refused.entry(reason).or_default();
        *count = count.saturating_add(1);
    }

    fn refused(&self) -> MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
