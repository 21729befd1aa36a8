//! One member as the pump sees it: its queue, its carrier and its account.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Instant,
};

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;

use super::direct::Path;
use crate::{
    id::PeerId,
    overlay::{queue::Queue, router::Drop as Dropped},
};

/// Names a peer in a table; never used twice in one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(pub u32);

/// Bytes that may wait for one peer: four super-packets. What a slow path needs more would be delay, not throughput.
const QUEUE: usize = 256 * 1024;

pub struct Peer {
    pub id: PeerId,
    pub key: Key,
    queue: Mutex<Queue>,
    /// Something waits in the queue.
    pub ready: Notify,
    pub drops: Drops,
    carrier: AtomicU8,
    /// The direct path in use.
    direct: ArcSwapOption<Path>,
    sent: Traffic,
    received: Traffic,
}

/// How packets travel to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// No stream is open; the next packet opens one.
    None,
    Stream,
    RelayedStream,
    /// The bare format of EdgeVPN.
    EdgeVpn,
    /// Sealed datagrams.
    Direct,
}

/// A peer's account, for `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerReport {
    pub peer: PeerId,
    pub carrier: Carrier,
    /// Of a direct path: where the peer is, the round trip, and the largest datagram.
    pub remote: Option<SocketAddr>,
    pub rtt_micros: Option<u32>,
    pub datagram: Option<usize>,
    pub sent: Count,
    pub received: Count,
    pub queued_bytes: usize,
    pub dropped: Vec<(Dropped, u64)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Super-packets count as one.
    pub packets: u64,
    pub bytes: u64,
}

#[derive(Default)]
struct Traffic {
    packets: AtomicU64,
    bytes: AtomicU64,
}

/// A counter for each reason.
pub struct Drops([AtomicU64; Dropped::ALL.len()]);

impl Peer {
    pub fn new(id: PeerId, key: Key) -> Self {
        Self {
            id,
            key,
            queue: Mutex::new(Queue::new(QUEUE)),
            ready: Notify::new(),
            drops: Drops::default(),
            carrier: AtomicU8::new(0),
            direct: ArcSwapOption::empty(),
            sent: Traffic::default(),
            received: Traffic::default(),
        }
    }

    /// Queues a frame whose packet begins at `packet`.
    pub fn send(&self, frame: Vec<u8>, packet: usize, now: Instant) {
        let pushed = self.queue().push(frame, packet, now);
        match pushed {
            Ok(()) => self.ready.notify_one(),
            Err(reason) => self.drops.count(reason),
        }
    }

    /// The next frames, up to `most` bytes but at least one; empty when nothing waits.
    pub fn take(&self, batch: &mut Vec<Vec<u8>>, most: usize, now: Instant) {
        let mut queue = self.queue();
        let mut bytes = 0;
        while bytes < most {
            let Some(frame) = queue.pop(now, || self.drops.count(Dropped::Late)) else {
                return;
            };
            bytes += frame.len();
            batch.push(frame);
        }
    }

    /// Throws away what waits: there is no way to the peer.
    pub fn give_up(&self, now: Instant) {
        let mut queue = self.queue();
        while queue
            .pop(now, || self.drops.count(Dropped::NoPath))
            .is_some()
        {
            self.drops.count(Dropped::NoPath);
        }
    }

    /// The direct path, if there is one for datagrams of so many bytes.
    pub fn direct(&self, bytes: usize) -> Option<Arc<Path>> {
        let path = self.direct.load();
        let path = path.as_ref().filter(|path| path.takes(bytes))?;
        Some(path.clone())
    }

    /// Packets take this path from now on, unless they take a later session's. Whether that is news.
    pub fn join(&self, path: &Arc<Path>) -> bool {
        let before = self.direct.rcu(|current| match current {
            Some(current) if current.number > path.number && current.proven() > 0 => {
                Some(current.clone())
            }
            _ => Some(path.clone()),
        });
        before.is_none_or(|before| before.number < path.number)
    }

    /// Packets do not take this path any more.
    pub fn leave(&self, path: &Path) {
        self.direct.rcu(|current| match current {
            Some(current) if current.number != path.number => Some(current.clone()),
            _ => None,
        });
    }

    pub fn count_sent(&self, packets: usize, bytes: usize) {
        self.sent.count(packets, bytes);
    }

    pub fn count_received(&self, bytes: usize) {
        self.received.count(1, bytes);
    }

    pub fn carried_by(&self, carrier: Carrier) {
        self.carrier.store(carrier as u8, Ordering::Relaxed);
    }

    pub fn report(&self) -> PeerReport {
        let dropped = Dropped::ALL
            .into_iter()
            .map(|reason| (reason, self.drops.of(reason)));
        let direct = self.direct.load();
        PeerReport {
            peer: self.id,
            carrier: match &*direct {
                Some(_) => Carrier::Direct,
                None => Carrier::of(self.carrier.load(Ordering::Relaxed)),
            },
            remote: direct.as_ref().and_then(|path| path.remote()),
            rtt_micros: direct.as_ref().map(|path| path.rtt_micros()),
            datagram: direct.as_ref().map(|path| path.proven()),
            sent: self.sent.read(),
            received: self.received.read(),
            queued_bytes: self.queue().bytes(),
            dropped: dropped.filter(|(_, count)| *count > 0).collect(),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Carrier {
    fn of(number: u8) -> Self {
        let all = [Carrier::Stream, Carrier::RelayedStream, Carrier::EdgeVpn];
        let found = all.into_iter().find(|carrier| *carrier as u8 == number);
        found.unwrap_or(Carrier::None)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Carrier::None => "none",
            Carrier::Stream => "stream",
            Carrier::RelayedStream => "relayed stream",
            Carrier::EdgeVpn => "edgevpn",
            Carrier::Direct => "direct",
        }
    }
}

impl Traffic {
    fn count(&self, packets: usize, bytes: usize) {
        self.packets.fetch_add(packets as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn read(&self) -> Count {
        Count {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

impl Default for Drops {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Drops {
    pub fn count(&self, reason: Dropped) {
        if let Some(counter) = self.0.get(reason as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn of(&self, reason: Dropped) -> u64 {
        self.0
            .get(reason as usize)
            .map_or(0, |counter| counter.load(Ordering::Relaxed))
    }
}
