//! The loop of the ledger task: waits, lends the book to a thread, carries out what follows.
#![allow(clippy::disallowed_methods, reason = "gives the ledger its clocks")]

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    sync::mpsc,
    time::{sleep, sleep_until, timeout},
};

use super::{
    Inputs, Question,
    book::{Book, Outcome, Own},
    complaints::Complaints,
    keeper::{self, Keeper},
    networks::Networks,
    publish::Published,
    schedule::{Due, Schedule, a_little_early, spread},
};
use crate::{
    acl::Operation,
    api,
    config::{self, Config},
    id::UnixTime,
    ledger::{Ledger, Ownership, Terms},
    net::gossip::{Outlet, Outlets},
    node::{bootstrap::Bootstrap, clock::Clock},
    wire::{Fingerprint, Window as SealWindow},
};

/// What is taken from the queue at once: enough to keep up, little enough that the clock is looked at in between.
const BATCH: usize = 64;

/// A changed ledger is written to disk after this; what is written in between goes along.
const KEEP_AFTER: Duration = Duration::from_secs(2);

/// What withdrawn entries get to leave the node.
const FAREWELL: Duration = Duration::from_secs(1);

/// Likewise through gossip, which does not say when it is done.
const LAST_BROADCAST: Duration = Duration::from_millis(300);

/// With nothing else to do the clock is looked at this often.
const IDLE: Duration = Duration::from_secs(30);

pub struct Pump<'a> {
    pub(super) inputs: &'a mut Inputs,
    pub(super) bootstrap: &'a mut Bootstrap,
    pub(super) config: Arc<Config>,
    pub(super) clock: Clock,
    pub(super) joined: Option<Joined>,
    keeper: Keeper,
    pub(super) counts: Counts,
    complaints: Complaints,
    pub(super) published: Option<Published>,
    /// The ledger has changed since [`Inputs::machines`] was published.
    pub(super) machines_stale: bool,
}

/// The network this node is in.
pub struct Joined {
    /// Away while it is worked with.
    pub book: Option<Box<Book>>,
    pub schedule: Schedule,
    pub heartbeat: Option<Instant>,
    broadcast_to: usize,
}

/// Since the start.
#[derive(Default)]
pub struct Counts {
    pub merged: u64,
    pub rejected: BTreeMap<&'static str, u64>,
    pub gossip: api::Traffic,
}

/// What the pump waits for.
enum Event {
    Config(bool),
    Asked(Option<Question>),
    Lanes(bool),
    Outlets(bool),
    Heard(usize),
    Time,
}

impl<'a> Pump<'a> {
    pub fn new(inputs: &'a mut Inputs, bootstrap: &'a mut Bootstrap) -> Self {
        inputs.live.mark_changed();
        let config = inputs.live.borrow().config.clone();
        Self {
            config,
            inputs,
            bootstrap,
            clock: Clock::new(calendar(), Instant::now()),
            joined: None,
            keeper: Keeper::new(),
            counts: Counts::default(),
            complaints: Complaints::default(),
            published: None,
            machines_stale: true,
        }
    }

    /// Until the node stops.
    pub async fn run(mut self, asked: &mut mpsc::Receiver<Question>) {
        let mut lanes = self.inputs.net.exchange().neighbours();
        let mut outlets = self.inputs.net.gossip().outlets();
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let wake = self.next_wake();
            let event = tokio::select! {
                // Whoever asks, and a changed file, come before whatever peers say.
                biased;
                changed = self.inputs.live.changed() => Event::Config(changed.is_ok()),
                question = asked.recv() => Event::Asked(question),
                changed = lanes.changed() => Event::Lanes(changed.is_ok()),
                changed = outlets.changed() => Event::Outlets(changed.is_ok()),
                () = sleep_until(wake.into()) => Event::Time,
                taken = self.inputs.heard.recv_many(&mut batch, BATCH) => Event::Heard(taken),
            };
            match event {
                Event::Config(true) => self.follow_the_file().await,
                Event::Asked(Some(Question::Leave(done))) => {
                    self.stop().await;
                    let _ = done.send(());
                    return;
                }
                Event::Asked(Some(question)) => self.answer(question).await,
                Event::Lanes(true) => {
                    let lanes = lanes.borrow_and_update().clone();
                    self.work(move |book, now| book.set_lanes(lanes, now)).await;
                }
                Event::Outlets(true) => self.audience(&outlets.borrow_and_update().clone()),
                Event::Heard(taken) if taken > 0 => {
                    let heard = std::mem::take(&mut batch);
                    self.work(move |book, now| book.hear(heard, now)).await;
                }
                Event::Time => {}
                // Whoever was at the other end has gone, and with it the node.
                Event::Config(false)
                | Event::Asked(None)
                | Event::Lanes(false)
                | Event::Outlets(false)
                | Event::Heard(_) => return,
            }
            self.turn().await;
        }
    }

    fn next_wake(&self) -> Instant {
        let now = Instant::now();
        let due = self
            .joined
            .as_ref()
            .and_then(|joined| joined.schedule.next());
        let window = self.bootstrap.deadline(self.config.access.bootstrap);
        [due, window, now.checked_add(IDLE)]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(now)
    }

    async fn follow_the_file(&mut self) {
        let snapshot = self.inputs.live.borrow_and_update().clone();
        if snapshot.generation.0 == 0 {
            return;
        }
        self.config = snapshot.config.clone();
        let wanted =
            self.config.network.is_some() && self.config.acl.asks_for_members(Operation::Reserve);
        let window = self.config.access.bootstrap;
        self.bootstrap.follow(wanted, window, Instant::now());

        let networks = self.config.network.as_ref().map(Networks::of);
        let terms = terms(&self.config.ledger);
        let interval = self.config.ledger.sync_interval;
        let held = self
            .joined
            .as_ref()
            .and_then(|joined| Some(joined.book.as_ref()?.networks().clone()));
        match (held, networks) {
            (None, None) => {}
            (None, Some(networks)) => self.join(networks, terms).await,
            (Some(_), None) => self.leave().await,
            (Some(held), Some(networks)) if networks.continues(&held) => {
                let tokens = (networks != held).then_some(networks);
                self.work(move |book, now| {
                    book.set_terms(terms, interval, now);
                    match tokens {
                        Some(networks) => book.set_networks(networks, now),
                        None => Outcome::default(),
                    }
                })
                .await;
                if let Some(joined) = &mut self.joined {
                    joined
                        .schedule
                        .advance(Due::Heartbeat, later(self.config.ledger.heartbeat));
                    joined.schedule.advance(Due::Announce, Instant::now());
                    joined.schedule.advance(Due::Keep, later(KEEP_AFTER));
                }
            }
            (Some(_), Some(networks)) => {
                self.leave().await;
                self.join(networks, terms).await;
            }
        }
    }

    /// Becomes a member: takes up what the last run has left, and says that this node is there.
    async fn join(&mut self, networks: Networks, terms: Terms) {
        let (local, keypair) = (self.inputs.net.local_peer, self.inputs.keypair.clone());
        let path = self.state_path(&networks);
        let loading = tokio::task::spawn_blocking(move || {
            let restored = path.and_then(|path| {
                keeper::load(&path, |state| {
                    Ledger::from_state(local, terms.clone(), state)
                })
            });
            restored.unwrap_or_else(|| Ledger::new(local, terms))
        });
        let interval = self.config.ledger.sync_interval;
        let ledger = finished(loading.await);
        tracing::info!(
            network = networks.own().map(tracing::field::display),
            entries = ledger.size().entries,
            "joined the network"
        );
        let mut schedule = Schedule::new();
        let at_once = Instant::now();
        schedule.set(Due::Heartbeat, Some(at_once));
        schedule.set(Due::Announce, Some(at_once));
        self.joined = Some(Joined {
            book: Some(Box::new(Book::new(keypair, networks, ledger, interval))),
            schedule,
            heartbeat: None,
            broadcast_to: 0,
        });
        self.published = None;
        let lanes = self.inputs.net.exchange().neighbours().borrow().clone();
        self.work(Book::maintain).await;
        self.work(move |book, now| book.set_lanes(lanes, now)).await;
        let outlets = self.inputs.net.gossip().outlets().borrow().clone();
        self.audience(&outlets);
    }

    /// Ceases to be a member: withdraws what this node has written, and gives that time to get out.
    async fn leave(&mut self) {
        self.work(Book::withdraw).await;
        self.broadcast().await;
        self.keep().await;
        let exchange = self.inputs.net.exchange().clone();
        // Neighbours that do not read keep nobody from leaving.
        let _ = timeout(FAREWELL, exchange.flushed()).await;
        let broadcast = self
            .joined
            .as_ref()
            .is_some_and(|joined| joined.broadcast_to > 0);
        if broadcast {
            sleep(LAST_BROADCAST).await;
        }
        let network = self
            .joined
            .take()
            .and_then(|joined| joined.book?.networks().own());
        tracing::info!(
            network = network.map(tracing::field::display),
            "left the network"
        );
        self.published = None;
        self.inputs.members.send_replace(Arc::default());
        self.machines_stale = true;
    }

    async fn stop(mut self) {
        if self.joined.is_some() {
            self.leave().await;
        }
        self.keeper.finish().await;
    }

    async fn answer(&mut self, question: Question) {
        match question {
            Question::Report(reply) => {
                let report = self.report().await;
                let _ = reply.send(report);
            }
            Question::Why(peer, reply) => {
                let _ = reply.send(self.why(peer));
            }
            // The loop sees to that.
            Question::Leave(_) => {}
        }
    }

    /// Lends the book to a thread that may block, and carries out what follows.
    async fn work(&mut self, work: impl FnOnce(&mut Book, UnixTime) -> Outcome + Send + 'static) {
        if let Some(outcome) = self.lend(work).await {
            self.carry_out(outcome).await;
        }
    }

    pub(super) async fn lend<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Book, UnixTime) -> T + Send + 'static,
    ) -> Option<T> {
        let now = self.now();
        let mut book = self.joined.as_mut()?.book.take()?;
        let working = tokio::task::spawn_blocking(move || {
            let done = work(&mut book, now);
            (book, done)
        });
        let (book, done) = finished(working.await);
        self.joined.as_mut()?.book = Some(book);
        Some(done)
    }

    async fn carry_out(&mut self, outcome: Outcome) {
        let net = &self.inputs.net;
        for (peer, frame) in outcome.frames {
            net.exchange().send(&peer, frame);
        }
        for (id, forwarder, verdict) in outcome.judged {
            net.gossip().judge(id, forwarder, verdict);
        }
        let counts = &mut self.counts;
        counts.merged = counts.merged.saturating_add(outcome.merged);
        for (reason, count) in outcome.rejected {
            let total = counts.rejected.entry(reason).or_default();
            *total = total.saturating_add(count);
        }
        let gossip = &mut counts.gossip;
        gossip.messages_in = gossip
            .messages_in
            .saturating_add(outcome.gossip.messages_in);
        gossip.bytes_in = gossip.bytes_in.saturating_add(outcome.gossip.bytes_in);
        for (peer, what) in outcome.complaints {
            self.complaints.about(peer, &what, Instant::now());
        }
        if !outcome.addresses.is_empty() {
            net.learnt(outcome.addresses).await;
        }
        let Some(joined) = &mut self.joined else {
            return;
        };
        if outcome.changed {
            self.machines_stale = true;
            joined.schedule.advance(Due::Keep, later(KEEP_AFTER));
        }
        if outcome.said && joined.broadcast_to > 0 {
            joined.schedule.advance(Due::Broadcast, Instant::now());
        }
    }

    /// Does what is due, and says who is a member if that has changed.
    async fn turn(&mut self) {
        while let Some(due) = self
            .joined
            .as_mut()
            .and_then(|joined| joined.schedule.take(Instant::now()))
        {
            match due {
                Due::Heartbeat => self.heartbeat().await,
                Due::Announce => self.announce().await,
                Due::Broadcast => self.broadcast().await,
                Due::Exchange => self.work(Book::exchange).await,
                Due::Maintain => self.work(Book::maintain).await,
                Due::Publish => {}
                Due::Keep => self.keep().await,
            }
        }
        self.publish().await;
        self.publish_machines();
        self.look_ahead();
    }

    async fn heartbeat(&mut self) {
        self.work(Book::beat).await;
        let every = self.config.ledger.heartbeat;
        if let Some(joined) = &mut self.joined {
            joined.heartbeat = Some(Instant::now());
            joined
                .schedule
                .set(Due::Heartbeat, Some(later(a_little_early(every))));
        }
    }

    /// Sees to it that what this node says about itself is true and stands in the ledger.
    async fn announce(&mut self) {
        let addresses = self.inputs.net.addresses().await;
        let name = self.config.node.name.clone();
        let every = self.config.ledger.announce_interval;
        let Some(joined) = &mut self.joined else {
            return;
        };
        let vpn = &self.config.vpn;
        let hosts = vpn
            .addresses
            .iter()
            .filter(|_| vpn.enabled)
            .map(|address| address.addr());
        let own = Own::new(
            name,
            addresses,
            self.config.ledger.heartbeat,
            hosts.collect(),
        );
        joined
            .schedule
            .set(Due::Announce, Some(later(a_little_early(every))));
        self.work(move |book, now| book.announce(&own, now)).await;
    }

    /// EdgeVPN's nodes may have come: they are told at once.
    fn audience(&mut self, outlets: &Outlets) {
        let Some(joined) = &mut self.joined else {
            return;
        };
        let ownership = self.config.ledger.ownership;
        let strangers = outlets
            .values()
            .map(|outlet| listeners(outlet, ownership))
            .sum();
        if strangers > joined.broadcast_to {
            joined.schedule.advance(Due::Broadcast, Instant::now());
        } else if strangers == 0 {
            joined.schedule.set(Due::Broadcast, None);
        }
        joined.broadcast_to = strangers;
    }

    /// Sends the whole ledger to the nodes that understand nothing else.
    async fn broadcast(&mut self) {
        let outlets = self.inputs.net.gossip().outlets().borrow().clone();
        let ownership = self.config.ledger.ownership;
        let rooms: Vec<(Fingerprint, SealWindow)> = outlets
            .iter()
            .filter(|(_, outlet)| listeners(outlet, ownership) > 0)
            .flat_map(|(network, outlet)| {
                let windows = std::iter::once(outlet.window).chain(outlet.also.iter().copied());
                windows.map(|window| (*network, window))
            })
            .collect();
        if rooms.is_empty() {
            return;
        }
        let messages = self.lend(move |book, now| book.blocks(&rooms, now)).await;
        for (network, window, data) in messages.unwrap_or_default() {
            let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
            let gossip = &mut self.counts.gossip;
            gossip.messages_out = gossip.messages_out.saturating_add(1);
            gossip.bytes_out = gossip.bytes_out.saturating_add(length);
            if let Err(error) = self
                .inputs
                .net
                .gossip()
                .publish(network, window, data)
                .await
            {
                tracing::debug!(%network, cause = %error, "not broadcast");
            }
        }
        let every = self.config.ledger.sync_interval;
        if let Some(joined) = &mut self.joined {
            joined
                .schedule
                .set(Due::Broadcast, Some(later(spread(every))));
        }
    }

    async fn keep(&mut self) {
        let path = self
            .joined
            .as_ref()
            .and_then(|joined| self.state_path(joined.book.as_ref()?.networks()));
        let Some(path) = path else { return };
        if let Some(state) = self.lend(|book, _| book.ledger().to_state()).await {
            self.keeper.keep(path, state);
        }
    }

    fn state_path(&self, networks: &Networks) -> Option<PathBuf> {
        Some(keeper::path(&self.inputs.state_dir, networks.own()?))
    }

    /// Sets what depends on the state of the book.
    fn look_ahead(&mut self) {
        let now = self.now();
        let instant = Instant::now();
        let Some(joined) = &mut self.joined else {
            return;
        };
        let Some(book) = &joined.book else { return };
        let at = |deadline: Option<UnixTime>| {
            deadline.and_then(|deadline| instant.checked_add(deadline.since(now)))
        };
        // A little later than due costs nothing; a deadline that keeps being now must not keep the task busy.
        let calm = |at: Instant| at.max(instant + Duration::from_millis(5));
        let (exchange, ledger) = (book.exchange_deadline(), at(book.ledger().next_deadline()));
        joined.schedule.set(Due::Exchange, exchange.map(calm));
        joined.schedule.set(Due::Maintain, ledger.map(calm));
    }

    /// The time to judge by.
    pub(super) fn now(&mut self) -> UnixTime {
        let (system, now) = (calendar(), Instant::now());
        let patience = self.config.ledger.ownership_ttl;
        let read = self.clock.read(system, now, patience);
        let nobody = self
            .published
            .as_ref()
            .is_none_or(|last| last.membership.members.is_empty());
        if self.clock.holds() && nobody {
            self.clock.follow(system, now);
            return system;
        }
        read
    }

    pub(super) fn problems(&self) -> Vec<String> {
        self.keeper.trouble().into_iter().collect()
    }
}

fn terms(ledger: &config::Ledger) -> Terms {
    Terms {
        ownership: ledger.ownership,
        ttl: ledger.ownership_ttl,
        quota_entries: ledger.quota_entries,
        quota_bytes: ledger.quota_bytes,
    }
}

/// Those in a room who understand nothing but broadcasts. With ownership `off` blocks replace one another, and there is
/// nothing that our own nodes could exchange instead.
fn listeners(outlet: &Outlet, ownership: Ownership) -> usize {
    match ownership {
        Ownership::Off => outlet.subscribers,
        Ownership::Observe | Ownership::Enforce => outlet.strangers,
    }
}

/// What a thread has come to. Its panic is ours: the supervisor counts it and begins again.
fn finished<T>(joined: Result<T, tokio::task::JoinError>) -> T {
    match joined.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(done) => done,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The runtime shuts down, and this task with it.
        Err(Err(cancelled)) => std::panic::resume_unwind(Box::new(cancelled.to_string())),
    }
}

pub(super) fn later(span: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(span).unwrap_or(now)
}

fn calendar() -> UnixTime {
    UnixTime(SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default())
}
