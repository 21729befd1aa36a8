//! Opens a stream to every neighbour, takes those that neighbours open, and begins again what has broken.
#![allow(clippy::disallowed_methods, reason = "measures how long streams last")]

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant},
};

use futures::{
    FutureExt, StreamExt,
    future::{AbortHandle, Abortable, BoxFuture},
    stream::FuturesUnordered,
};
use libp2p::PeerId;
use tokio::{
    sync::{broadcast, mpsc, watch},
    time::sleep,
};

use super::{
    FRAMES_BEHIND, Lane, NEIGHBOURS, Neighbours, PROTOCOL, Shared,
    frames::{self, End},
};
use crate::{
    config::Snapshot,
    net::{
        heard::Ears,
        streams::{self, Inbound, Incoming, OpenError, Route, Step, Stream},
    },
};

/// Streams of peers that wait to be taken. They are taken at once; more is an attack.
const INBOX: usize = 64;

/// After a stream that broke the next one is opened after this, after each further one after twice the time before.
const RETRY: Duration = Duration::from_millis(500);

/// And at most after this.
const SLOWEST_RETRY: Duration = Duration::from_secs(60);

/// A stream that lasted this long was a good one: the next is opened soon again.
const LASTING: Duration = Duration::from_secs(60);

/// No stream of a peer is taken for this long after one that did not hold the token.
const SHUNNED: Duration = Duration::from_secs(10);

/// What a node that leaves its network has to say goes out within this.
const FAREWELL: Duration = Duration::from_secs(2);

pub struct Pump {
    streams: streams::Control,
    live: watch::Receiver<Arc<Snapshot>>,
    ears: Ears,
    shared: Arc<Shared>,
    publish: watch::Sender<Neighbours>,
    /// While the node is in a network.
    inbound: Option<Inbound>,
    /// Peers that speak the protocol and are connected: a stream to each is open, being opened, or about to be.
    wanted: HashMap<PeerId, Attempts>,
    /// Peers that have sent what was not ours, and when.
    shunned: HashMap<PeerId, Instant>,
    /// One a peer.
    readers: HashMap<PeerId, AbortHandle>,
    /// Reading, writing, opening and waiting, all in this task.
    work: FuturesUnordered<BoxFuture<'static, Done>>,
    numbers: u64,
}

#[derive(Default)]
struct Attempts {
    failures: u32,
    opened: Option<Instant>,
}

/// What a piece of work has come to.
enum Done {
    Waited(PeerId),
    Opened(PeerId, Result<Stream, OpenError>),
    /// The stream with this number takes nothing any more.
    Written(PeerId, u64),
    Read(PeerId, End),
    /// The node is in no network any more, and has said so.
    Farewell,
    /// Replaced by a newer stream of the same peer, or no longer wanted.
    Aborted,
}

impl Pump {
    pub fn new(
        streams: streams::Control,
        live: watch::Receiver<Arc<Snapshot>>,
        ears: Ears,
        shared: Arc<Shared>,
        publish: watch::Sender<Neighbours>,
    ) -> Self {
        Self {
            streams,
            live,
            ears,
            shared,
            publish,
            inbound: None,
            wanted: HashMap::new(),
            shunned: HashMap::new(),
            readers: HashMap::new(),
            work: FuturesUnordered::new(),
            numbers: 0,
        }
    }

    pub async fn run(mut self, mut speaking: mpsc::Receiver<PeerId>) {
        let mut changes = self.streams.changes();
        self.live.mark_changed();
        loop {
            tokio::select! {
                changed = self.live.changed() => match changed {
                    Ok(()) => self.follow_the_file(),
                    Err(_) => return,
                },
                Some(peer) = speaking.recv() => self.want(peer),
                Some(incoming) = received(&mut self.inbound) => self.take(incoming),
                change = changes.recv() => match change {
                    Ok(change) => self.notice(&change),
                    Err(broadcast::error::RecvError::Lagged(_)) => self.look_around(),
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                Some(done) = self.work.next() => self.go_on(done),
            }
        }
    }

    fn follow_the_file(&mut self) {
        let in_network = self.live.borrow_and_update().config.network.is_some();
        if !in_network {
            if self.inbound.take().is_some() {
                self.readers.drain().for_each(|(_, reader)| reader.abort());
                // The ledger has something to say before it leaves.
                self.work
                    .push(sleep(FAREWELL).map(|()| Done::Farewell).boxed());
            }
        } else if self.inbound.is_none() {
            match self.streams.accept(PROTOCOL, INBOX) {
                Ok(inbound) => self.inbound = Some(inbound),
                Err(error) => {
                    tracing::error!(cause = %error, "the ledger cannot be exchanged with other nodes");
                }
            }
        }
    }

    fn want(&mut self, peer: PeerId) {
        if self.inbound.is_none() || self.wanted.contains_key(&peer) {
            return;
        }
        if self.wanted.len() >= NEIGHBOURS {
            self.shared.counts.refuse("too_many_neighbours");
            return;
        }
        self.wanted.insert(peer, Attempts::default());
        self.open(peer);
    }

    fn open(&mut self, peer: PeerId) {
        let streams = self.streams.clone();
        let opening = async move {
            let opened = streams.open(peer, PROTOCOL, Route::PreferDirect).await;
            Done::Opened(peer, opened)
        };
        self.work.push(opening.boxed());
    }

    /// A neighbour has opened its stream. It speaks the protocol, whatever identify has said so far.
    fn take(&mut self, incoming: Incoming) {
        let peer = incoming.peer;
        let shunned = self.shunned.get(&peer);
        if shunned.is_some_and(|since| since.elapsed() < SHUNNED) {
            self.shared.counts.refuse("shunned");
            return;
        }
        self.want(peer);
        if !self.wanted.contains_key(&peer) {
            return;
        }
        let reading = frames::read(
            incoming.stream,
            peer,
            self.shared.clone(),
            self.ears.clone(),
        );
        let (handle, registration) = AbortHandle::new_pair();
        if let Some(older) = self.readers.insert(peer, handle) {
            older.abort();
        }
        let reading = Abortable::new(reading, registration);
        let done = async move {
            match reading.await {
                Ok(end) => Done::Read(peer, end),
                Err(_) => Done::Aborted,
            }
        };
        self.work.push(done.boxed());
    }

    fn notice(&mut self, change: &streams::Change) {
        match change.step {
            Step::Gone if change.direct == 0 && change.through_relays == 0 => {
                self.forget(&change.peer);
            }
            // The stream through the relay ends, and the next one takes the direct way.
            Step::Appeared if !change.relayed => {
                let mut lanes = self.shared.lanes();
                if lanes.get(&change.peer).is_some_and(|lane| lane.relayed) {
                    lanes.remove(&change.peer);
                }
            }
            Step::Gone | Step::Appeared => {}
        }
    }

    /// Changes were missed.
    fn look_around(&mut self) {
        let connected: HashSet<PeerId> = self
            .streams
            .all_links()
            .into_iter()
            .map(|link| link.peer)
            .collect();
        let gone: Vec<PeerId> = self
            .wanted
            .keys()
            .filter(|peer| !connected.contains(peer))
            .copied()
            .collect();
        gone.iter().for_each(|peer| self.forget(peer));
    }

    fn forget(&mut self, peer: &PeerId) {
        self.wanted.remove(peer);
        if let Some(reader) = self.readers.remove(peer) {
            reader.abort();
        }
        if self.shared.lanes().remove(peer).is_some() {
            self.announce();
        }
    }

    fn go_on(&mut self, done: Done) {
        match done {
            Done::Opened(peer, Ok(stream)) => self.write(peer, stream),
            Done::Opened(peer, Err(OpenError::Unsupported { .. })) => self.forget(&peer),
            Done::Opened(peer, Err(error)) => {
                tracing::debug!(%peer, cause = %error, "no stream for the ledger");
                self.retry(peer);
            }
            Done::Written(peer, number) => {
                let mut lanes = self.shared.lanes();
                if lanes.get(&peer).is_some_and(|lane| lane.number == number) {
                    lanes.remove(&peer);
                }
                drop(lanes);
                self.shared.written.notify_waiters();
                self.announce();
                self.retry(peer);
            }
            Done::Waited(peer) if self.wanted.contains_key(&peer) => self.open(peer),
            Done::Read(peer, end) => {
                if let Some(reason) = end.label() {
                    self.shared.counts.refuse(reason);
                    tracing::debug!(%peer, reason, "the stream of a neighbour was ended");
                    self.shunned.retain(|_, since| since.elapsed() < SHUNNED);
                    if self.shunned.len() < NEIGHBOURS {
                        self.shunned.insert(peer, Instant::now());
                    }
                }
                self.readers.remove(&peer);
            }
            Done::Farewell if self.inbound.is_none() => {
                self.wanted.clear();
                self.shared.lanes().clear();
                self.announce();
            }
            Done::Waited(_) | Done::Farewell | Done::Aborted => {}
        }
    }

    fn write(&mut self, peer: PeerId, stream: Stream) {
        let Some(attempts) = self.wanted.get_mut(&peer) else {
            return;
        };
        attempts.opened = Some(Instant::now());
        self.numbers = self.numbers.saturating_add(1);
        let number = self.numbers;
        let (queue, queued) = mpsc::channel(FRAMES_BEHIND);
        let behind = Arc::<AtomicUsize>::default();
        let lane = Lane {
            queue,
            behind: behind.clone(),
            number,
            relayed: stream.relayed(),
        };
        self.shared.lanes().insert(peer, lane);
        self.announce();
        let shared = self.shared.clone();
        let writing = async move {
            if let Err(error) = frames::write(stream, queued, behind, shared).await {
                tracing::debug!(%peer, cause = %error, "a neighbour takes nothing any more");
            }
            Done::Written(peer, number)
        };
        self.work.push(writing.boxed());
    }

    fn retry(&mut self, peer: PeerId) {
        let Some(attempts) = self.wanted.get_mut(&peer) else {
            return;
        };
        let opened = attempts.opened.take();
        if opened.is_some_and(|since| since.elapsed() >= LASTING) {
            attempts.failures = 0;
        }
        let pause = RETRY
            .saturating_mul(1 << attempts.failures.min(10))
            .min(SLOWEST_RETRY);
        attempts.failures = attempts.failures.saturating_add(1);
        self.work
            .push(sleep(pause).map(move |()| Done::Waited(peer)).boxed());
    }

    fn announce(&self) {
        let neighbours = self
            .shared
            .lanes()
            .iter()
            .map(|(peer, lane)| (*peer, lane.number))
            .collect();
        self.publish.send_replace(Arc::new(neighbours));
    }
}

async fn received(inbound: &mut Option<Inbound>) -> Option<Incoming> {
    match inbound {
        Some(inbound) => inbound.next().await,
        None => std::future::pending().await,
    }
}
