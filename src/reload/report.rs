//! What the engine answers: how it stands, and what a file would change.

use super::{
    Engine, Guard, Sight, Standing, Subject,
    read::Content,
    verdict::{Obstacle, Verdict},
};
use crate::{
    api::{Candidate, Planned, StatusReport, WatcherReport},
    config::{Code, Diagnostic, Summary},
    plan::{Plan, State},
};
use std::time::SystemTime;

impl Engine {
    /// One moment of the engine and its node.
    pub async fn status(&self) -> StatusReport {
        let mut node = self.node.report().await;
        let mut problems: Vec<String> = self.keeper.trouble().into_iter().collect();
        problems.append(&mut node.problems);
        let left = self
            .unconfirmed
            .as_ref()
            .map(|change| change.deadline.saturating_duration_since(super::now()));
        StatusReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: self.state(),
            generation: self.generation(),
            applied_sha256: self.applied.file.hash.to_string(),
            applied_at: since_epoch(self.applied.at),
            applied_by: self.applied.by,
            last_success_at: self.account.last_success().map_or(0.0, since_epoch),
            uptime_s: self.started.elapsed().as_secs(),
            config_file: self.subject.name.clone(),
            last_attempt: self.account.last().cloned(),
            confirm_within_s: left.map(|left| left.as_secs()),
            reloads: self.account.counts(),
            watcher: self.watching(),
            problems,
            node,
        }
    }

    fn state(&self) -> State {
        match self.standing {
            Standing::LastKnownGood => State::LastKnownGood,
            Standing::Rejected => State::Rejected,
            Standing::RolledBack => State::RolledBack,
            Standing::InSync if self.unconfirmed.is_some() => State::PendingConfirm,
            Standing::InSync if !self.watching().healthy => State::WatchDegraded,
            Standing::InSync => State::InSync,
        }
    }

    fn watching(&self) -> WatcherReport {
        let mut report = self.watcher.report();
        let mut problems: Vec<String> = report.problem.take().into_iter().collect();
        if let Some(path) = &self.orphan {
            problems.push(format!(
                "{} is mounted by itself and has been replaced on the other side, so its new content cannot be seen; \
                 mount the directory instead of the file",
                path.display()
            ));
        }
        problems.extend(
            self.lists
                .unreadable()
                .map(|path| format!("list {} cannot be read", path.display())),
        );
        report.healthy = problems.is_empty();
        report.problem = (!problems.is_empty()).then(|| problems.join("; "));
        report
    }

    /// What `candidate` would change, without changing it.
    pub(super) async fn plan(&self, candidate: Candidate) -> Planned {
        let place = candidate.as_path.as_deref().unwrap_or(&self.subject.path);
        let subject = Subject {
            name: candidate.name,
            ..Subject::meant_for(place, place)
        };
        let (lists, bytes, now) = (
            self.lists.clone(),
            candidate.text.into_bytes(),
            super::now(),
        );
        let judging = tokio::task::spawn_blocking(move || {
            let sight = Sight::around(&subject, Content::from(bytes));
            let judged = lists.judge(&subject, &sight, now);
            (sight, judged)
        });
        let generation = self.generation();
        let Ok((sight, judged)) = judging.await else {
            return Planned {
                generation,
                plan: Plan::default(),
                diagnostics: vec![Diagnostic::new(
                    Code::ApplyFailed,
                    "the check of this file has ended in a panic",
                )],
                held_back: None,
                summary: Summary::default(),
            };
        };
        let verdict = Verdict::on(
            &sight,
            &judged,
            &self.applied,
            self.undone.as_ref(),
            Guard::On,
        );
        let (mut plan, config, held_back) = match verdict {
            Verdict::Rejected | Verdict::Unchanged(_) => (Plan::default(), None, None),
            Verdict::Changes(changes) => (
                changes.plan,
                Some(changes.candidate.config),
                changes.obstacle.map(in_words),
            ),
        };
        if let Some(config) = config {
            self.node.foresee(&mut plan, &config).await;
        }
        Planned {
            generation,
            plan,
            diagnostics: judged.checked.diagnostics,
            held_back,
            summary: judged.checked.summary,
        }
    }
}

fn in_words(obstacle: Obstacle) -> String {
    match obstacle {
        Obstacle::HalfWritten(finding) | Obstacle::TooCostly { finding, .. } => finding.message,
        Obstacle::Undone => {
            "this file was undone; only `reload --force` applies it again".to_owned()
        }
    }
}

fn since_epoch(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
