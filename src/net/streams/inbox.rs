//! The protocols that are accepted, each with its bounded queue.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use futures::task::AtomicWaker;
use libp2p::{PeerId, StreamProtocol, swarm::ConnectionId};
use tokio::sync::mpsc;

use super::{Accepted, Shared, Stream, Taken, lane::Lane};

/// The receiving end of one protocol. Dropped, the protocol is no longer spoken.
pub struct Inbound {
    protocol: StreamProtocol,
    received: mpsc::Receiver<Incoming>,
    shared: Arc<Shared>,
}

/// A stream that a peer has opened.
#[derive(Debug)]
pub struct Incoming {
    pub peer: PeerId,
    pub connection: ConnectionId,
    /// Whether it came through a relay.
    pub relayed: bool,
    pub stream: Stream,
}

/// All accepted protocols. Handlers read them without a lock.
pub struct Inboxes {
    table: ArcSwap<Table>,
    writing: Mutex<()>,
    /// The table has changed since the behaviour looked.
    changed: AtomicBool,
    behaviour: AtomicWaker,
}

pub type Table = HashMap<StreamProtocol, Inbox>;

/// The sending end of one protocol.
#[derive(Clone)]
pub struct Inbox {
    send: mpsc::Sender<Incoming>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    handed_over: AtomicU64,
    turned_away: AtomicU64,
}

pub fn register(
    shared: &Arc<Shared>,
    protocol: StreamProtocol,
    capacity: usize,
) -> Result<Inbound, Taken> {
    let (send, received) = mpsc::channel(capacity.max(1));
    let inbox = Inbox {
        send,
        counts: Arc::default(),
    };
    let new = shared.inboxes.change(|table| {
        let vacant = !table.contains_key(&protocol);
        if vacant {
            table.insert(protocol.clone(), inbox);
        }
        vacant
    });
    if !new {
        return Err(Taken { protocol });
    }
    Ok(Inbound {
        protocol,
        received,
        shared: shared.clone(),
    })
}

impl Inbound {
    /// The next stream; `None` once the swarm is gone.
    pub async fn next(&mut self) -> Option<Incoming> {
        let incoming = self.received.recv().await?;
        incoming.stream.lane().waited();
        Some(incoming)
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        self.shared
            .inboxes
            .change(|table| table.remove(&self.protocol).is_some());
        self.received.close();
        while let Ok(incoming) = self.received.try_recv() {
            incoming.stream.lane().waited();
        }
    }
}

impl Inboxes {
    pub fn new() -> Self {
        Self {
            table: ArcSwap::default(),
            writing: Mutex::new(()),
            changed: AtomicBool::new(false),
            behaviour: AtomicWaker::new(),
        }
    }

    pub fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// Ready when other protocols are accepted than at the last look.
    pub fn poll_changed(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.behaviour.register(cx.waker());
        if self.changed.swap(false, Ordering::AcqRel) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Hands a stream to whoever accepts its protocol, or drops it, which resets it.
    pub fn deliver(&self, protocol: &StreamProtocol, stream: libp2p::Stream, lane: &Arc<Lane>) {
        let table = self.table.load();
        // Withdrawn while the stream was negotiated.
        let Some(inbox) = table.get(protocol) else {
            return;
        };
        let handed_over = lane.may_wait() && {
            let incoming = Incoming {
                peer: lane.peer,
                connection: lane.connection,
                relayed: lane.relayed,
                stream: Stream::new(stream, lane.clone()),
            };
            let sent = inbox.send.try_send(incoming).is_ok();
            if !sent {
                lane.waited();
            }
            sent
        };
        let count = if handed_over {
            &inbox.counts.handed_over
        } else {
            &inbox.counts.turned_away
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub fn report(&self) -> BTreeMap<String, Accepted> {
        let accepted = |inbox: &Inbox| Accepted {
            handed_over: inbox.counts.handed_over.load(Ordering::Relaxed),
            turned_away: inbox.counts.turned_away.load(Ordering::Relaxed),
        };
        self.table
            .load()
            .iter()
            .map(|(protocol, inbox)| (protocol.to_string(), accepted(inbox)))
            .collect()
    }

    fn change(&self, change: impl FnOnce(&mut Table) -> bool) -> bool {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = Table::clone(&self.table.load());
        let changed = change(&mut table);
        if changed {
            self.table.store(Arc::new(table));
            self.changed.store(true, Ordering::Release);
            self.behaviour.wake();
        }
        changed
    }
}
