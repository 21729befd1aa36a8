//! `edgevpn reload`: has a running node read its file again, and brings back the verdict.

use super::{complain, find::Find, json, paint, print, status::explained, text::*};
use crate::{
    api::{ClientError, Order},
    plan::{Acknowledgement, Outcome},
};
use std::{process::ExitCode, time::Duration};

/// Telling takes no longer than a connection.
const TELLING: Duration = Duration::from_secs(10);

/// Have a running node read its file again
///
/// Exit codes with --wait:
///   0  applied or unchanged
///   1  rejected or failed: the file is invalid or cannot be carried out
///   2  no node answers
///   3  rolled back
///   4  refused: a change costs more than `reload.max_impact` permits, or needs a restart
///   5  no verdict in time
/// Without --wait it is 0 as soon as the node has been told; --confirm and --rollback always wait.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Args {
    #[command(flatten)]
    find: Find,
    /// Wait for the verdict and print it
    #[arg(long)]
    wait: bool,
    /// Apply a file that looks half-written
    #[arg(long)]
    force: bool,
    /// Keep a change that waits for `reload.confirm`
    #[arg(long, conflicts_with = "force")]
    confirm: bool,
    /// Undo a change that waits for `reload.confirm`
    #[arg(long, conflicts_with_all = ["force", "confirm"])]
    rollback: bool,
    /// Print the verdict as JSON; implies --wait
    #[arg(long)]
    json: bool,
    /// Seconds to wait for the verdict
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=60))]
    timeout: u64,
}

pub(super) async fn run(args: Args) -> ExitCode {
    let order = match (args.force, args.confirm, args.rollback) {
        (true, ..) => Order::Force,
        (_, true, _) => Order::Confirm,
        (.., true) => Order::Rollback,
        (false, false, false) => Order::Read,
    };
    // Whoever decides about a change has to know whether it still waited.
    let waits = args.wait || args.json || matches!(order, Order::Confirm | Order::Rollback);
    let deadline = if waits {
        Duration::from_secs(args.timeout)
    } else {
        TELLING
    };
    let client = match args.find.client(deadline).await {
        Ok(client) => client,
        Err(error) => return complain(2, &error.to_string()),
    };
    if !waits {
        return match client.tell_to_reload(order).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error),
        };
    }
    let verdict = match client.reload(order).await {
        Ok(verdict) => verdict,
        Err(error) => return failed(&error),
    };
    print(&if args.json {
        json(&verdict)
    } else {
        lines(&verdict, paint())
    });
    code(order, verdict.outcome)
}

fn failed(error: &ClientError) -> ExitCode {
    let code = match error {
        ClientError::TimedOut { .. } | ClientError::Refused { status: 504, .. } => 5,
        ClientError::Unreachable { .. }
        | ClientError::Broken { .. }
        | ClientError::Refused { .. }
        | ClientError::Foreign { .. } => 2,
    };
    complain(code, &error.to_string())
}

fn code(order: Order, outcome: Outcome) -> ExitCode {
    ExitCode::from(match outcome {
        Outcome::Applied | Outcome::Unchanged => 0,
        Outcome::Rejected | Outcome::Failed => 1,
        // Whoever asked for it got it.
        Outcome::RolledBack if order == Order::Rollback => 0,
        Outcome::RolledBack => 3,
        Outcome::Refused => 4,
    })
}

fn lines(verdict: &Acknowledgement, paint: Paint) -> String {
    let generation = verdict.generation;
    let took = took(verdict.took_ms);
    let hash = match short_hash(&verdict.sha256) {
        // There was nothing to read.
        "" => String::new(),
        hash => format!(" (sha256 {hash}…)"),
    };
    let keeps = format!(
        "generation {generation} ({}) stays in force",
        short_hash(&verdict.applied_sha256)
    );
    let head = match verdict.outcome {
        Outcome::Applied => {
            let mut head = format!(
                "{} generation {generation} in {took}{hash}: {}",
                paint.good("applied"),
                count(verdict.changes.len() as u64, "change")
            );
            if let Some(class) = verdict.class {
                head.push_str(&format!(", highest class {class}"));
            }
            if let Some(settled) = &verdict.settled {
                for (number, one, done) in [
                    (settled.reservations_ended, "reservation", "ended"),
                    (settled.circuits_cut, "circuit", "cut"),
                    (settled.circuits_draining, "circuit", "draining"),
                ] {
                    if number > 0 {
                        head.push_str(&format!("; {} {done}", count(number, one)));
                    }
                }
            }
            head
        }
        Outcome::Unchanged => format!("{}: {keeps}", paint.good("unchanged")),
        Outcome::Rejected => format!("{}{hash}: {keeps}", paint.bad("rejected")),
        Outcome::Refused => format!("{}{hash}: {keeps}", paint.bad("refused")),
        Outcome::Failed => format!("{}{hash}: {keeps}", paint.bad("failed")),
        Outcome::RolledBack => format!("{}: {keeps}", paint.warn("rolled back")),
    };
    head + "\n" + &explained(verdict, paint)
}
