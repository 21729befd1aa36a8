//! The apply engine: one attempt at a time, from a look at the file to a verdict.
//!
//! ```text
//! look → parse → lists → resolve → guard → plan → class → prepare → commit → acknowledgement
//! ```
//!
//! Whatever ends an attempt before commit leaves the node as it was, and the next attempt is compared with what is applied,
//! never with what was tried last. Start-up is an attempt against [`Config::empty`].

mod account;
mod confirm;
mod guard;
mod history;
mod lists;
pub mod read;
mod report;
mod sight;
mod start;
mod systemd;
mod verdict;
pub mod watcher;

use crate::{
    api::{Order, Request},
    config::{self, Config, Diagnostic},
    id::Generation,
    node::Node,
    plan::{Acknowledgement, Outcome, Settled, Trigger},
};
use account::Account;
use confirm::Unconfirmed;
use futures::future::Either;
use history::{Keeper, Record};
use lists::{Judged, Lists};
use read::Content;
use sight::{Fingerprint, Sight, Subject};
pub use start::{OnInvalid, Options, StartFailure};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::mpsc;
use verdict::{Changes, Obstacle, Verdict};
use watcher::Watcher;

/// Reading the file and its lists takes longer than this only on a disk or network mount that hangs.
const READ_PATIENCE: Duration = Duration::from_secs(10);

/// Circuits that run when the node is told to stop get this long to end by themselves. systemd kills after 90 s.
const DRAIN_PATIENCE: Duration = Duration::from_secs(30);

/// Applies one file to one node, again and again.
pub struct Engine {
    subject: Subject,
    node: Node,
    requests: mpsc::Receiver<Request>,
    signals: start::Signals,
    watcher: Watcher,
    applied: Applied,
    /// What was in force before the present generation, for `reload --rollback`.
    earlier: Option<Applied>,
    unconfirmed: Option<Unconfirmed>,
    /// A file that was undone; it is not applied again until it changes or somebody insists.
    undone: Option<Fingerprint>,
    /// What the latest look found.
    looked: Fingerprint,
    lists: Lists,
    stale_at: Option<Instant>,
    /// A file or list that is mounted by itself.
    orphan: Option<PathBuf>,
    standing: Standing,
    account: Account,
    keeper: Keeper,
    started: Instant,
}

/// A configuration in force, with the files it came from.
#[derive(Clone, Debug)]
struct Applied {
    config: Arc<Config>,
    file: Arc<Content>,
    lists: BTreeMap<PathBuf, Arc<Content>>,
    fingerprint: Fingerprint,
    at: SystemTime,
    by: Trigger,
}

impl Applied {
    /// The file as it may be kept: a token that stands in it is told by its fingerprint.
    fn without_secrets(&self) -> Arc<Content> {
        let network = self.config.network.as_ref();
        let fingerprint = network.map(|network| network.token.fingerprint().to_string());
        let text = String::from_utf8_lossy(&self.file.bytes);
        match config::without_secrets(&text, &fingerprint.unwrap_or_default()) {
            Some(kept) => Arc::new(Content::from(kept.into_bytes())),
            None => self.file.clone(),
        }
    }
}

/// Two readings that agree, and what they say.
struct Look {
    sight: Sight,
    judged: Judged,
    /// A file that is mounted by itself and has been replaced on the other side.
    orphan: Option<PathBuf>,
}

impl Look {
    /// Blocks. `None`: the readings differ, somebody is writing.
    fn twice(subject: &Subject, lists: &Lists, now: Instant) -> Option<Look> {
        let (first, second) = (Sight::of(subject), Sight::of(subject));
        (first.fingerprint() == second.fingerprint()).then(|| Look {
            judged: lists.judge(subject, &second, now),
            // A file that was replaced between opening it and asking about it looks the same, once.
            orphan: first.orphan(subject).and(second.orphan(subject)),
            sight: second,
        })
    }
}

/// How the node stands to its file, confirmations and the watcher aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    InSync,
    Rejected,
    RolledBack,
    LastKnownGood,
}

/// Whether the guard against half-written files is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guard {
    On,
    Off,
}

impl Engine {
    /// Runs until SIGTERM or SIGINT, then lets circuits end.
    pub async fn run(mut self) {
        systemd::ready();
        loop {
            let deadline = match self.next_deadline() {
                Some(deadline) => Either::Left(tokio::time::sleep_until(deadline.into())),
                None => Either::Right(std::future::pending()),
            };
            tokio::select! {
                Some(request) = self.requests.recv() => self.answer(request).await,
                () = self.watcher.changed() => {
                    self.attempt(Trigger::Watch, Guard::On).await;
                }
                Some(()) = self.signals.hangup.recv() => {
                    systemd::reloading();
                    self.attempt(Trigger::Signal, Guard::On).await;
                    systemd::ready();
                }
                () = self.signals.end.asked() => break,
                () = deadline => self.overdue().await,
            }
        }
        systemd::stopping();
        tracing::info!(
            patience = ?DRAIN_PATIENCE,
            "stopping: nobody new is admitted, circuits may end; a second signal ends at once"
        );
        let mut drained = std::pin::pin!(self.node.drain(DRAIN_PATIENCE));
        loop {
            tokio::select! {
                () = &mut drained => break,
                // Whoever asks twice does not want to wait.
                () = self.signals.end.asked() => break,
                Some(request) = self.requests.recv() => self.answer_while_stopping(request).await,
            }
        }
        self.node.stop().await;
        self.keeper.finish().await;
    }

    /// A node that stops still says how it stands; whoever wants it changed is turned away by a dropped reply.
    async fn answer_while_stopping(&mut self, request: Request) {
        match request {
            Request::Status { .. } | Request::Explain { .. } => self.answer(request).await,
            Request::Plan { .. } | Request::Reload { .. } => drop(request),
        }
    }

    async fn answer(&mut self, request: Request) {
        // Whoever asked may have gone in the meantime.
        match request {
            Request::Status { reply } => {
                let _ = reply.send(self.status().await);
            }
            Request::Explain {
                peer,
                operation,
                address,
                reply,
            } => {
                let _ = reply.send(self.node.explain(peer, operation, address).await);
            }
            Request::Plan { candidate, reply } => {
                let _ = reply.send(self.plan(candidate).await);
            }
            Request::Reload { order, reply } => {
                let verdict = match order {
                    Order::Read => self.attempt(Trigger::Command, Guard::On).await,
                    Order::Force => self.attempt(Trigger::Command, Guard::Off).await,
                    Order::Confirm => Some(self.confirm()),
                    Order::Rollback => Some(self.roll_back(Trigger::Command).await),
                };
                if let Some(verdict) = verdict {
                    let _ = reply.send(verdict);
                }
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let confirm = self.unconfirmed.as_ref().map(|change| change.deadline);
        confirm.into_iter().chain(self.stale_at).min()
    }

    /// A deadline has passed.
    async fn overdue(&mut self) {
        let now = now();
        if self
            .unconfirmed
            .as_ref()
            .is_some_and(|change| change.deadline <= now)
        {
            let connected = self.node.connected().await;
            if self
                .unconfirmed
                .as_ref()
                .is_some_and(|change| change.still_connected(&connected))
            {
                tracing::info!(
                    generation = self.generation().0,
                    "config confirmed, for a peer is still connected"
                );
                self.unconfirmed = None;
            } else {
                self.roll_back(Trigger::Timer).await;
            }
        }
        if self.stale_at.take_if(|due| *due <= now).is_some() {
            self.attempt(Trigger::Timer, Guard::On).await;
        }
    }

    /// Looks at the files and applies them if they say something new. `None`: the watcher has nothing to report.
    async fn attempt(&mut self, trigger: Trigger, guard: Guard) -> Option<Acknowledgement> {
        let began = now();
        // Before reading, so that a change after it is noticed.
        self.watcher.follow(self.looked.watched(&self.subject));
        let Look {
            sight,
            judged,
            orphan,
        } = self.look(trigger).await?;
        let fingerprint = sight.fingerprint();
        self.lists.looked(&sight, began);
        self.orphan = orphan;
        let news = fingerprint != self.looked;
        self.looked = fingerprint.clone();
        self.watcher.follow(self.watched());
        if trigger == Trigger::Watch && !news {
            tracing::debug!("nothing new in the watched files");
            return None;
        }

        self.stale_at = judged.stale_at;
        let verdict = Verdict::on(&sight, &judged, &self.applied, self.undone.as_ref(), guard);
        let mut acknowledgement = self.acknowledge(trigger, &fingerprint);
        acknowledgement.diagnostics = judged.checked.diagnostics;
        match verdict {
            Verdict::Rejected => {
                acknowledgement.outcome = Outcome::Rejected;
                self.standing = self.standing.after_failure();
            }
            Verdict::Unchanged(candidate) => {
                acknowledgement.outcome = Outcome::Unchanged;
                self.adopt_unchanged(candidate);
            }
            Verdict::Changes(changes) => {
                let Changes {
                    plan,
                    candidate,
                    obstacle,
                } = *changes;
                acknowledgement.class = plan.class();
                acknowledgement.changes = plan.changes;
                match obstacle {
                    None => self.apply(candidate, trigger, &mut acknowledgement).await,
                    Some(obstacle) => self.stop_at(obstacle, &mut acknowledgement),
                }
            }
        }
        Some(self.close(acknowledgement, began))
    }

    /// Reads until two readings agree. The watcher is sent back to wait if they do not; whoever asked is made to wait.
    async fn look(&mut self, trigger: Trigger) -> Option<Look> {
        let until = now() + READ_PATIENCE;
        loop {
            let (subject, lists, now) = (self.subject.clone(), self.lists.clone(), now());
            let reading = tokio::task::spawn_blocking(move || Look::twice(&subject, &lists, now));
            match tokio::time::timeout(READ_PATIENCE, reading).await {
                Ok(Ok(Some(look))) => return Some(look),
                Ok(Ok(None)) if trigger == Trigger::Watch => {
                    self.watcher.suspect();
                    return None;
                }
                Ok(Ok(None)) if now < until => {
                    let settle = self.applied.config.reload.settle;
                    tokio::time::sleep(settle.max(Duration::from_millis(1))).await;
                }
                Ok(Ok(None)) => return Some(self.look_in_vain("it changes all the time")),
                Ok(Err(_)) | Err(_) => {
                    return Some(self.look_in_vain("reading takes longer than 10 s"));
                }
            }
        }
    }

    fn look_in_vain(&self, reason: &str) -> Look {
        let sight = Sight::failed(&self.subject, reason);
        Look {
            judged: self.lists.judge(&self.subject, &sight, now()),
            sight,
            orphan: None,
        }
    }

    fn stop_at(&mut self, obstacle: Obstacle, acknowledgement: &mut Acknowledgement) {
        match obstacle {
            Obstacle::HalfWritten(finding) => {
                acknowledgement.outcome = Outcome::Rejected;
                acknowledgement.diagnostics.push(finding);
                self.standing = self.standing.after_failure();
            }
            Obstacle::TooCostly { keys, finding } => {
                acknowledgement.outcome = Outcome::Refused;
                acknowledgement.refused_keys = keys;
                acknowledgement.diagnostics.push(finding);
                self.standing = self.standing.after_failure();
            }
            Obstacle::Undone => {
                acknowledgement.outcome = Outcome::RolledBack;
                acknowledgement.cause = Some(
                    "this file was undone; change it, or insist with: edgevpn reload --force"
                        .to_owned(),
                );
                self.standing = Standing::RolledBack;
            }
        }
    }

    /// Puts a candidate in force, or leaves everything as it is.
    async fn apply(
        &mut self,
        candidate: Applied,
        trigger: Trigger,
        acknowledgement: &mut Acknowledgement,
    ) {
        match self.put_in_force(candidate.config.clone()).await {
            Ok(settled) => {
                let within = candidate.config.reload.confirm;
                acknowledgement.outcome = Outcome::Applied;
                acknowledgement.settled = settled;
                let before = self.replace_applied(candidate, trigger);
                if let Some(within) = within {
                    let witnesses = self.node.connected().await;
                    let change = Unconfirmed::new(
                        self.unconfirmed.take(),
                        before.clone(),
                        witnesses,
                        within,
                        now(),
                    );
                    self.unconfirmed = Some(change);
                } else {
                    self.unconfirmed = None;
                }
                self.earlier = Some(before);
                self.undone = None;
                self.standing = Standing::InSync;
            }
            Err(finding) => {
                acknowledgement.outcome = Outcome::Failed;
                acknowledgement.cause = Some(finding.message.clone());
                acknowledgement.diagnostics.push(finding);
                self.standing = self.standing.after_failure();
            }
        }
    }

    async fn put_in_force(&mut self, config: Arc<Config>) -> Result<Option<Settled>, Diagnostic> {
        let prepared = self
            .node
            .prepare(config)
            .await
            .map_err(verdict::cannot_prepare)?;
        Ok(self.node.commit(prepared).settled().await)
    }

    /// Remembers what is in force now, and returns what was before.
    fn replace_applied(&mut self, mut now_applied: Applied, trigger: Trigger) -> Applied {
        now_applied.at = account::now();
        now_applied.by = trigger;
        self.lists.adopt(&now_applied.lists);
        self.watcher
            .configure(watcher::Settings::of(&now_applied.config));
        let before = std::mem::replace(&mut self.applied, now_applied);
        self.watcher.follow(self.watched());
        self.keep();
        before
    }

    /// The same values from other bytes: comments, other lines, another order.
    fn adopt_unchanged(&mut self, candidate: Applied) {
        self.lists.adopt(&candidate.lists);
        let other_text =
            self.applied.file.hash != candidate.file.hash || self.applied.lists != candidate.lists;
        self.node.republish(candidate.config.clone());
        self.applied = Applied {
            at: self.applied.at,
            by: self.applied.by,
            ..candidate
        };
        self.watcher.follow(self.watched());
        if other_text {
            self.keep();
        }
        if self.standing != Standing::InSync {
            tracing::info!(
                generation = self.generation().0,
                "config file says again what is in force"
            );
        }
        self.standing = Standing::InSync;
    }

    fn acknowledge(&self, trigger: Trigger, fingerprint: &Fingerprint) -> Acknowledgement {
        Acknowledgement {
            outcome: Outcome::Unchanged,
            generation: self.generation(),
            sha256: account::written(fingerprint.file),
            applied_sha256: self.applied.file.hash.to_string(),
            trigger,
            took_ms: 0.0,
            class: None,
            changes: Vec::new(),
            diagnostics: Vec::new(),
            refused_keys: Vec::new(),
            cause: None,
            settled: None,
        }
    }

    /// Fills in what is in force now, and books the attempt.
    fn close(&mut self, acknowledgement: Acknowledgement, began: Instant) -> Acknowledgement {
        let acknowledgement = self.complete(acknowledgement, began);
        self.account.settle(&acknowledgement, &self.looked);
        acknowledgement
    }

    /// Fills in what is in force now.
    fn complete(&self, mut acknowledgement: Acknowledgement, began: Instant) -> Acknowledgement {
        acknowledgement.generation = self.generation();
        acknowledgement.applied_sha256 = self.applied.file.hash.to_string();
        acknowledgement.took_ms = began.elapsed().as_secs_f64() * 1000.0;
        acknowledgement
    }

    fn keep(&self) {
        let record = Record {
            generation: self.generation(),
            file: self.applied.without_secrets(),
            lists: self.applied.lists.clone().into_iter().collect(),
        };
        self.keeper.keep(record, self.applied.config.reload.history);
    }

    /// The files of the latest look, and lists in force that it did not come to because the file is broken.
    fn watched(&self) -> Vec<(PathBuf, Option<read::Hash>)> {
        let mut files = self.looked.watched(&self.subject);
        for (path, content) in &self.applied.lists {
            if !self.looked.lists.contains_key(path) {
                files.push((path.clone(), Some(content.hash)));
            }
        }
        for (path, hash) in &self.applied.fingerprint.secrets {
            if !self.looked.secrets.contains_key(path) {
                files.push((path.clone(), *hash));
            }
        }
        files
    }

    fn generation(&self) -> Generation {
        self.node.snapshot().generation
    }
}

impl Standing {
    /// A node that runs on its last known good file does so until a file is applied.
    fn after_failure(self) -> Standing {
        match self {
            Standing::LastKnownGood => Standing::LastKnownGood,
            Standing::InSync | Standing::Rejected | Standing::RolledBack => Standing::Rejected,
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "the clock of the edge")]
fn now() -> Instant {
    Instant::now()
}
