//! Changes that are undone unless somebody confirms them: for edits that could lock their author out.

use super::{Applied, Engine, Standing, now};
use crate::{
    id::PeerId,
    plan::{Acknowledgement, Outcome, Plan, Trigger},
};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// A change in force that waits for its confirmation.
#[derive(Debug)]
pub struct Unconfirmed {
    /// What was in force before the first unconfirmed change.
    pub before: Applied,
    pub deadline: Instant,
    /// Who was connected when the change came.
    witnesses: BTreeSet<PeerId>,
}

impl Unconfirmed {
    /// A further change before the confirmation starts the time anew, and all of them are undone together.
    pub fn new(
        earlier: Option<Unconfirmed>,
        before: Applied,
        witnesses: BTreeSet<PeerId>,
        within: Duration,
        now: Instant,
    ) -> Unconfirmed {
        Unconfirmed {
            before: earlier.map_or(before, |earlier| earlier.before),
            deadline: now + within,
            witnesses,
        }
    }

    /// Whether the change has proved itself at its deadline: of those who were connected when it came, somebody is connected
    /// still or again. A node without peers proves nothing.
    pub fn still_connected(&self, connected: &BTreeSet<PeerId>) -> bool {
        !self.witnesses.is_disjoint(connected)
    }
}

impl Engine {
    /// Keeps the change that waits. This is no attempt at the file: what the last one came to stays in `status` and metrics.
    pub(super) fn confirm(&mut self) -> Acknowledgement {
        let began = now();
        let mut acknowledgement = self.acknowledge(Trigger::Command, &self.looked);
        match self.unconfirmed.take() {
            Some(_) => tracing::info!(generation = self.generation().0, "config confirmed"),
            None if self.standing == Standing::RolledBack => {
                acknowledgement.outcome = Outcome::RolledBack;
                acknowledgement.cause =
                    Some("the change was undone before it was confirmed".to_owned());
            }
            None => acknowledgement.cause = Some("no change waits for a confirmation".to_owned()),
        }
        self.complete(acknowledgement, began)
    }

    /// Goes back to what was in force before the unconfirmed changes, or else before the last one.
    pub(super) async fn roll_back(&mut self, trigger: Trigger) -> Acknowledgement {
        let began = now();
        let mut acknowledgement = self.acknowledge(trigger, &self.looked);
        let Some(target) = self
            .unconfirmed
            .as_ref()
            .map(|change| &change.before)
            .or(self.earlier.as_ref())
            .cloned()
        else {
            acknowledgement.outcome = Outcome::Failed;
            acknowledgement.cause =
                Some("nothing was in force before; there is nothing to go back to".to_owned());
            return self.complete(acknowledgement, began);
        };
        let plan = Plan::between(&self.applied.config, &target.config);
        acknowledgement.class = plan.class();
        self.unconfirmed = None;
        match self.put_in_force(target.config.clone()).await {
            Ok(settled) => {
                acknowledgement.outcome = Outcome::RolledBack;
                acknowledgement.changes = plan.changes;
                acknowledgement.settled = settled;
                acknowledgement.cause = Some(match trigger {
                    Trigger::Timer => {
                        "nobody confirmed in time, and no peer is still connected".to_owned()
                    }
                    _ => "as asked".to_owned(),
                });
                self.undone = Some(self.applied.fingerprint.clone());
                self.replace_applied(target, trigger);
                self.earlier = None;
                self.standing = Standing::RolledBack;
            }
            Err(finding) => {
                acknowledgement.outcome = Outcome::Failed;
                acknowledgement.cause = Some(finding.message.clone());
                acknowledgement.diagnostics.push(finding);
                self.standing = Standing::Rejected;
            }
        }
        self.close(acknowledgement, began)
    }
}
