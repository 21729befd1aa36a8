//! One connection as its users see it: what they ask its handler for, and how many of its streams live.
//!
//! Requests go straight to the handler and not through the swarm's loop, so that a busy loop delays no stream.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Waker},
    time::Duration,
};

use futures::{channel::oneshot, task::AtomicWaker};
use libp2p::{Multiaddr, PeerId, StreamProtocol, core::ConnectedPoint, swarm::ConnectionId};

use super::{OpenError, Stream, Transport};

/// Streams of one connection that may be negotiating or waiting for it. A caller beyond that is told at once; the other
/// side takes 128 at a time, and so many packets of Go peers may each bring a stream of their own.
const MOST_OPENING: u32 = 128;

/// How long the other side may take to agree. Several round trips over a satellite, with retransmissions.
pub const NEGOTIATION_TIMEOUT: Duration = Duration::from_secs(10);

/// Inbound streams of one connection that may wait in the inboxes, all protocols together. A quarter of what an inbox
/// usually has, so that one peer cannot fill it.
const MOST_WAITING: u32 = 64;

pub struct Lane {
    pub peer: PeerId,
    pub connection: ConnectionId,
    pub relayed: bool,
    pub transport: Transport,
    pub address: Multiaddr,
    pub dialled: bool,
    /// Live streams of ours on this connection, both directions.
    pub streams: AtomicU32,
    /// Inbound ones among them that nobody has taken yet.
    waiting: AtomicU32,
    /// Round trip, microseconds; zero is unknown.
    rtt: AtomicU64,
    opening: AtomicU32,
    open: AtomicBool,
    requests: Mutex<VecDeque<Request>>,
    handler: AtomicWaker,
}

/// A stream somebody waits for.
pub struct Request {
    pub protocol: StreamProtocol,
    pub reply: oneshot::Sender<Result<Stream, OpenError>>,
}

/// What became of all requests.
#[derive(Default)]
pub struct Counts {
    pub opened: AtomicU64,
    failed: Mutex<BTreeMap<&'static str, u64>>,
}

impl Lane {
    pub fn new(peer: PeerId, connection: ConnectionId, endpoint: &ConnectedPoint) -> Self {
        Self {
            peer,
            connection,
            relayed: endpoint.is_relayed(),
            transport: Transport::of(endpoint),
            address: endpoint.get_remote_address().clone(),
            dialled: endpoint.is_dialer(),
            streams: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            rtt: AtomicU64::new(0),
            opening: AtomicU32::new(0),
            open: AtomicBool::new(true),
            requests: Mutex::default(),
            handler: AtomicWaker::new(),
        }
    }

    pub fn ask(&self, request: Request) -> Result<(), OpenError> {
        let peer = self.peer;
        let taken = self
            .opening
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |opening| {
                (opening < MOST_OPENING).then_some(opening + 1)
            });
        if taken.is_err() {
            return Err(OpenError::Busy { peer });
        }
        {
            let mut requests = self.requests();
            // Under the lock: `close` empties the queue under it and nothing may enter after.
            if !self.open.load(Ordering::Relaxed) {
                return Err(OpenError::Lost { peer });
            }
            requests.push_back(request);
        }
        self.handler.wake();
        Ok(())
    }

    /// The next request that somebody still waits for.
    pub fn next(&self, cx: &mut Context<'_>) -> Option<Request> {
        self.register(cx.waker());
        let mut requests = self.requests();
        while let Some(request) = requests.pop_front() {
            if !request.reply.is_canceled() {
                return Some(request);
            }
            self.decided();
        }
        None
    }

    fn register(&self, waker: &Waker) {
        self.handler.register(waker);
    }

    /// One request has had its answer.
    pub fn decided(&self) {
        self.opening.fetch_sub(1, Ordering::Relaxed);
    }

    /// The connection is gone; whoever waits is told by the dropped sender.
    pub fn close(&self) {
        let mut requests = self.requests();
        self.open.store(false, Ordering::Relaxed);
        requests.clear();
    }

    /// Streams of ours that live or are being opened.
    pub fn in_use(&self) -> u32 {
        let opening = self.opening.load(Ordering::Relaxed);
        self.streams.load(Ordering::Relaxed).saturating_add(opening)
    }

    /// Takes one of the places for inbound streams that wait.
    pub fn may_wait(&self) -> bool {
        self.waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
                (waiting < MOST_WAITING).then_some(waiting + 1)
            })
            .is_ok()
    }

    pub fn waited(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn measured(&self, rtt: Duration) {
        let micros = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX).max(1);
        self.rtt.store(micros, Ordering::Relaxed);
    }

    pub fn rtt(&self) -> Option<Duration> {
        match self.rtt.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }

    fn requests(&self) -> MutexGuard<'_, VecDeque<Request>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    pub fn failed(&self, error: &OpenError) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failed.entry(error.label()).or_default();
        *count = count.saturating_add(1);
    }

    pub fn failures(&self) -> BTreeMap<&'static str, u64> {
        self.failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
