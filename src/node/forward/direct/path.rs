//! One session with a peer as its datagrams have shown it: where it is, how large they may be, and when the last one came.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

use crate::{node::forward::peer::Peer, overlay::session::Session};

pub struct Path {
    pub peer: Arc<Peer>,
    pub session: Session,
    /// Later sessions with a peer have higher numbers.
    pub number: u64,
    remote: Mutex<Option<SocketAddr>>,
    /// The largest datagram that came through and was answered; 0 while none was.
    proven: AtomicUsize,
    /// Milliseconds of the carrier's clock; 0 is never.
    sent: AtomicU64,
    received: AtomicU64,
    /// Of the latest probe, microseconds.
    rtt: AtomicU32,
    /// Addresses its probes came from.
    learnt: Mutex<Vec<SocketAddr>>,
    /// Something was learnt.
    pub news: Notify,
}

/// Addresses learnt from probes; a peer behind a NAT has one or two.
const LEARNT: usize = 4;

impl Path {
    pub fn new(peer: Arc<Peer>, session: Session, number: u64) -> Self {
        Self {
            peer,
            session,
            number,
            remote: Mutex::default(),
            proven: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            rtt: AtomicU32::new(0),
            learnt: Mutex::default(),
            news: Notify::new(),
        }
    }

    pub fn remote(&self) -> Option<SocketAddr> {
        *self.remote.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether datagrams of so many bytes go through.
    pub fn takes(&self, bytes: usize) -> bool {
        bytes <= self.proven.load(Ordering::Relaxed)
    }

    pub fn proven(&self) -> usize {
        self.proven.load(Ordering::Relaxed)
    }

    pub fn rtt_micros(&self) -> u32 {
        self.rtt.load(Ordering::Relaxed)
    }

    pub fn has_sent(&self, now: u64) {
        self.sent.store(now, Ordering::Relaxed);
    }

    /// An authentic datagram has come.
    pub fn has_received(&self, now: u64) {
        self.received.store(now, Ordering::Relaxed);
    }

    pub fn last_sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub fn last_received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// A probe of so many bytes was answered from there. The first answer decides on the address: it came the fastest way.
    pub fn is_proven(&self, from: SocketAddr, bytes: usize, rtt_micros: u32) {
        {
            let mut remote = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
            match *remote {
                Some(current) if current != from && self.proven() > 0 => return,
                _ => *remote = Some(from),
            }
        }
        self.rtt.store(rtt_micros, Ordering::Relaxed);
        if self.proven.fetch_max(bytes, Ordering::Relaxed) < bytes {
            self.news.notify_one();
        }
    }

    /// Probes stay unanswered: nothing is believed of the path any more.
    pub fn is_lost(&self) {
        self.proven.store(0, Ordering::Relaxed);
        *self.remote.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A probe came from there, so an answer may go there.
    pub fn learn(&self, address: SocketAddr) {
        let mut learnt = self.learnt.lock().unwrap_or_else(PoisonError::into_inner);
        if !learnt.contains(&address) {
            learnt.insert(0, address);
            learnt.truncate(LEARNT);
            self.news.notify_one();
        }
    }

    pub fn learnt(&self) -> Vec<SocketAddr> {
        self.learnt
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
