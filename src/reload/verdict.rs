//! What is to become of a candidate, before anything is touched.

use super::{Applied, Guard, Judged, Sight, account, guard, sight::Fingerprint};
use crate::{
    config::{Class, Code, Config, Diagnostic},
    id::Origin,
    node::PrepareError,
    plan::{Plan, Trigger},
};
use std::{path::Path, sync::Arc};

pub enum Verdict {
    /// The file has errors; they are among its findings.
    Rejected,
    /// The file says what is in force already.
    Unchanged(Applied),
    Changes(Box<Changes>),
}

pub struct Changes {
    pub plan: Plan,
    pub candidate: Applied,
    /// `None`: nothing speaks against applying it.
    pub obstacle: Option<Obstacle>,
}

/// Why a valid file is not applied.
pub enum Obstacle {
    HalfWritten(Diagnostic),
    /// It has been in force and was undone.
    Undone,
    /// These keys cost more than allowed.
    TooCostly {
        keys: Vec<String>,
        finding: Diagnostic,
    },
}

impl Verdict {
    /// The verdict on a look, against what is in force and what was undone.
    pub fn on(
        sight: &Sight,
        judged: &Judged,
        applied: &Applied,
        undone: Option<&Fingerprint>,
        guard: Guard,
    ) -> Verdict {
        let (Some(config), Ok(file)) = (&judged.checked.config, &sight.file) else {
            return Verdict::Rejected;
        };
        let candidate = Applied {
            config: Arc::new(config.clone()),
            file: file.clone(),
            lists: judged.contents.clone(),
            fingerprint: sight.fingerprint(),
            at: account::now(),
            by: Trigger::Watch,
        };
        let plan = Plan::between(&applied.config, &candidate.config);
        if plan.is_empty() {
            return Verdict::Unchanged(candidate);
        }
        let name = &judged.checked.name;
        let suspicious = || match guard {
            Guard::Off => None,
            Guard::On if undone == Some(&candidate.fingerprint) => Some(Obstacle::Undone),
            Guard::On => {
                let lost = guard::lost(&applied.config.keys, &candidate.config.keys);
                let emptied = guard::emptied(&applied.lists, &candidate.lists);
                lost.map(|lost| half_written(name, &lost))
                    .or_else(|| emptied.map(half_written_list))
                    .map(Obstacle::HalfWritten)
            }
        };
        let obstacle = suspicious().or_else(|| {
            let max_impact = applied.config.reload.max_impact;
            too_costly(name, &plan, &candidate.config, max_impact)
        });
        Verdict::Changes(Box::new(Changes {
            plan,
            candidate,
            obstacle,
        }))
    }
}

fn half_written(name: &str, lost: &guard::Lost) -> Diagnostic {
    Diagnostic::new(
        Code::HeldBack,
        format!("the file looks half-written: {lost}"),
    )
    .in_file(name)
    .help("complete the file; if it is meant so, run: edgevpn reload --force")
}

fn half_written_list(path: &Path) -> Diagnostic {
    Diagnostic::new(
        Code::HeldBack,
        "the list looks half-written: it had entries and has no byte now",
    )
    .in_file(path.display().to_string())
    .help("write a comment into a list that is meant to be empty, or run: edgevpn reload --force")
}

fn too_costly(name: &str, plan: &Plan, new: &Config, max_impact: Class) -> Option<Obstacle> {
    let restart = plan.keys_above(Class::Rejoin);
    if !restart.is_empty() {
        let message = format!("{} cannot change while the node runs", restart.join(", "));
        let finding = Diagnostic::new(Code::NeedsRestart, message)
            .in_line(name, line_of(&restart, new))
            .help("set the old value again, or restart the node with this file");
        return Some(Obstacle::TooCostly {
            keys: restart,
            finding,
        });
    }
    let keys = plan.keys_above(max_impact);
    if keys.is_empty() {
        return None;
    }
    let message = format!(
        "{} costs more than `reload.max_impact = \"{max_impact}\"` permits",
        keys.join(", ")
    );
    let finding = Diagnostic::new(Code::AboveMaxImpact, message)
        .in_line(name, line_of(&keys, new))
        .help(
            "raise `reload.max_impact` in a change of its own, or restart the node with this file",
        );
    Some(Obstacle::TooCostly { keys, finding })
}

/// The first line that sets one of `keys`; `None` if they are left out of the file, which is what changed then.
fn line_of(keys: &[String], new: &Config) -> Option<u32> {
    let lines = keys
        .iter()
        .filter_map(|key| match &new.keys.get(key)?.origin {
            Origin::File { line, .. } => Some(*line),
            Origin::Env(_) | Origin::Default => None,
        });
    lines.min()
}

/// The finding about a valid file that this machine cannot carry out.
pub fn cannot_prepare(error: PrepareError) -> Diagnostic {
    Diagnostic::new(Code::ApplyFailed, error.to_string())
}
