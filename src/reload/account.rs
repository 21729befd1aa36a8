//! What is remembered and told about attempts: counts for the metrics, the last verdict for `status`, one line for the log.

use super::{read::Hash, sight::Fingerprint};
use crate::{
    api::ReloadCount,
    id::Generation,
    plan::{Acknowledgement, Outcome, Trigger},
};
use std::{collections::HashMap, time::SystemTime};

/// Keys in one log line; a change of hundreds is read in `plan`, not in the log.
const KEYS_IN_LOG: usize = 20;

#[derive(Debug, Default)]
pub struct Account {
    counts: HashMap<(Trigger, Outcome), u64>,
    last: Option<Acknowledgement>,
    last_success: Option<SystemTime>,
    /// The latest file that did not come into force and was told so.
    complained: Option<(Fingerprint, Outcome)>,
}

impl Account {
    /// Books an attempt and tells it once.
    pub fn settle(&mut self, verdict: &Acknowledgement, fingerprint: &Fingerprint) {
        let count = self
            .counts
            .entry((verdict.trigger, verdict.outcome))
            .or_default();
        *count = count.saturating_add(1);
        let complaint = (fingerprint.clone(), verdict.outcome);
        let repeated = self.complained.as_ref() == Some(&complaint);
        self.complained = if verdict.outcome.is_success() {
            self.last_success = Some(now());
            None
        } else {
            Some(complaint)
        };
        tell(verdict, repeated);
        self.last = Some(verdict.clone());
    }

    pub fn counts(&self) -> Vec<ReloadCount> {
        let mut counts: Vec<_> = self
            .counts
            .iter()
            .map(|((trigger, result), count)| ReloadCount {
                trigger: *trigger,
                result: *result,
                count: *count,
            })
            .collect();
        counts.sort_by_key(|count| (count.trigger.as_str(), count.result.as_str()));
        counts
    }

    pub fn last(&self) -> Option<&Acknowledgement> {
        self.last.as_ref()
    }

    pub fn last_success(&self) -> Option<SystemTime> {
        self.last_success
    }
}

/// One line. A verdict that was told already, or that changes nothing, is for those who debug.
fn tell(verdict: &Acknowledgement, repeated: bool) {
    let Generation(generation) = verdict.generation;
    let sha256 = verdict.sha256.get(..6).unwrap_or("none");
    let trigger = verdict.trigger.as_str();
    let took = format!("{:.0}ms", verdict.took_ms);
    match verdict.outcome {
        Outcome::Applied => {
            let settled = verdict.settled.unwrap_or_default();
            tracing::info!(
                generation,
                sha256,
                took,
                changes = verdict.changes.len(),
                class = verdict.class.map(|class| class.as_str()),
                trigger,
                keys = keys(verdict),
                reservations_ended =
                    (settled.reservations_ended > 0).then_some(settled.reservations_ended),
                circuits_cut = (settled.circuits_cut > 0).then_some(settled.circuits_cut),
                circuits_draining =
                    (settled.circuits_draining > 0).then_some(settled.circuits_draining),
                "config applied"
            );
            for warning in &verdict.diagnostics {
                tracing::warn!(finding = warning.short(), "config warning");
            }
        }
        Outcome::Unchanged => {
            tracing::debug!(generation, sha256, took, trigger, "config unchanged")
        }
        Outcome::RolledBack if repeated => {
            tracing::debug!(generation, sha256, trigger, "config stays rolled back")
        }
        Outcome::RolledBack => tracing::warn!(
            generation,
            sha256,
            trigger,
            cause = verdict.cause.as_deref(),
            keys = keys(verdict),
            "config rolled back"
        ),
        outcome @ (Outcome::Rejected | Outcome::Refused | Outcome::Failed) => {
            let errors = verdict
                .diagnostics
                .iter()
                .filter(|finding| finding.is_error())
                .count();
            let first = verdict
                .diagnostics
                .iter()
                .find(|finding| finding.is_error())
                .map(|finding| finding.short());
            let keeps = generation;
            if repeated {
                tracing::debug!(
                    keeps,
                    sha256,
                    errors,
                    first,
                    trigger,
                    "config {outcome} again"
                );
            } else {
                tracing::warn!(keeps, sha256, errors, first, trigger, "config {outcome}");
            }
        }
    }
}

fn keys(verdict: &Acknowledgement) -> String {
    let mut keys: Vec<&str> = verdict
        .changes
        .iter()
        .take(KEYS_IN_LOG)
        .map(|change| change.key.as_str())
        .collect();
    if verdict.changes.len() > KEYS_IN_LOG {
        keys.push("…");
    }
    keys.join(",")
}

/// Hexadecimal, or empty for a file that could not be read.
pub fn written(hash: Option<Hash>) -> String {
    hash.map(|hash| hash.to_string()).unwrap_or_default()
}

#[allow(
    clippy::disallowed_methods,
    reason = "the time of day at the edge, for people"
)]
pub fn now() -> SystemTime {
    SystemTime::now()
}
