//! `edgevpn status`: what a node runs, whether that is what its file says, and who uses it.

use super::{complain, find::Find, json, paint, print, text::*};
use crate::{
    api::StatusReport,
    config::{Format, diagnostic::findings},
    plan::{Acknowledgement, Outcome, State},
    relay,
};
use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

mod network;
mod vpn;

/// A status is a copy of counters; a node that takes longer is in trouble.
const DEADLINE: Duration = Duration::from_secs(10);

/// Peers listed; `--json` has more.
const LISTED: usize = 20;

/// Show what a running node does, and whether that is what its file says
///
/// Exit codes:
///   0  in sync with its file
///   2  no node answers
///   3  not in sync
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Args {
    #[command(flatten)]
    find: Find,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> ExitCode {
    let client = match args.find.client(DEADLINE).await {
        Ok(client) => client,
        Err(error) => return complain(2, &error.to_string()),
    };
    let report = match client.status().await {
        Ok(report) => report,
        Err(error) => return complain(2, &error.to_string()),
    };
    if args.json {
        print(&json(&report));
    } else {
        print(&lines(&report, now(), paint()));
    }
    match report.state {
        State::InSync => ExitCode::SUCCESS,
        _ => ExitCode::from(3),
    }
}

#[allow(clippy::disallowed_methods, reason = "how long ago something was")]
fn now() -> f64 {
    SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0.0, |since| since.as_secs_f64())
}

/// Everything, the trouble first.
fn lines(report: &StatusReport, now: f64, paint: Paint) -> String {
    let mut text = String::new();
    if let Some(trouble) = trouble(report, paint) {
        text.push_str(&trouble);
        text.push('\n');
    }
    let node = &report.node;
    let state = match report.state {
        State::InSync => paint.good("in sync"),
        State::PendingConfirm | State::WatchDegraded => paint.warn(state_words(report.state)),
        State::Rejected | State::RolledBack | State::LastKnownGood => {
            paint.bad(state_words(report.state))
        }
    };
    let since = (now - report.applied_at).max(0.0) as u64;
    text.push_str(&format!(
        "{}  {}  {state}  generation {} ({}, {} ago, by {})  up {}\n",
        node.name,
        short_peer(&node.peer_id),
        report.generation,
        short_hash(&report.applied_sha256),
        span(since),
        report.applied_by,
        span(report.uptime_s),
    ));
    text.push_str(&row("peer id", std::slice::from_ref(&node.peer_id)));
    text.push_str(&row("watching", &[watching(report)]));
    match node.listening.as_slice() {
        [] => text.push_str(&row("listening", &["nowhere".to_owned()])),
        addresses => text.push_str(&row("listening", addresses)),
    }
    if !node.announced.is_empty() {
        text.push_str(&row("announced", &node.announced));
    }
    text.push_str(&row("relay", &[relay_line(&node.relay)]));
    if let Some(refusals) = refusals(&node.relay) {
        text.push_str(&row("refused", &refusals));
    }
    let connections = &node.connections;
    text.push_str(&row(
        "connected",
        &[format!(
            "{} of {} to {}, {} in their handshake",
            grouped(connections.established.into()),
            count(connections.max.into(), "connection"),
            count(connections.peers.into(), "peer"),
            grouped(connections.pending.into()),
        )],
    ));
    if let Some(reach) = &node.reach {
        text.push_str(&network::reach(reach, node.network.is_some()));
    }
    if let Some(network) = &node.network {
        text.push_str(&network::lines(network, paint));
    }
    if let Some(vpn) = &node.vpn {
        text.push_str(&vpn::lines(vpn, paint));
    }
    for problem in &report.problems {
        text.push_str(&row("problem", &[paint.warn(problem)]));
    }
    if node.panics > 0 {
        let panics = format!(
            "{} in the program; please report the log line",
            count(node.panics, "panic")
        );
        text.push_str(&row("fault", &[paint.bad(&panics)]));
    }
    text.push_str(&peers(&node.relay));
    if let Some(network) = &node.network {
        text.push_str(&network::table(network));
    }
    if let Some(vpn) = &node.vpn {
        text.push_str(&vpn::table(vpn));
    }
    text
}

/// Why the node does not run what its file says, in the words of whoever found out.
fn trouble(report: &StatusReport, paint: Paint) -> Option<String> {
    let keeps = format!(
        "generation {} ({}) stays in force",
        report.generation,
        short_hash(&report.applied_sha256)
    );
    let head = match report.state {
        State::InSync => return None,
        State::WatchDegraded => paint.warn("changes of the file may be noticed late"),
        State::PendingConfirm => paint.warn(&match report.confirm_within_s {
            Some(left) => format!(
                "generation {} is undone in {} unless confirmed: edgevpn reload --confirm",
                report.generation,
                span(left)
            ),
            None => format!("generation {} waits to be confirmed", report.generation),
        }),
        State::Rejected => paint.bad(&format!("{} is not in force: {keeps}", report.config_file)),
        State::RolledBack => paint.bad(&format!("{} was undone: {keeps}", report.config_file)),
        State::LastKnownGood => paint.bad(&format!(
            "{} is not in force: started from the last good file",
            report.config_file
        )),
    };
    let mut text = head + "\n";
    if let Some(problem) = &report.watcher.problem {
        text.push_str(&format!("{problem}\n"));
    }
    if let Some(attempt) = &report.last_attempt
        && !matches!(attempt.outcome, Outcome::Applied | Outcome::Unchanged)
    {
        text.push_str(&explained(attempt, paint));
    }
    Some(text)
}

/// What an attempt that did not apply has to say.
pub(super) fn explained(attempt: &Acknowledgement, paint: Paint) -> String {
    let shown = findings(&attempt.diagnostics, Format::Human, paint.colour());
    let mut text = match shown.trim_end() {
        "" => String::new(),
        shown => format!("\n{shown}\n"),
    };
    if let Some(cause) = &attempt.cause
        && !attempt
            .diagnostics
            .iter()
            .any(|finding| finding.message == *cause)
    {
        text.push_str(&format!("{cause}\n"));
    }
    if attempt.diagnostics.is_empty() && !attempt.refused_keys.is_empty() {
        text.push_str(&format!("refused: {}\n", attempt.refused_keys.join(", ")));
    }
    text
}

fn state_words(state: State) -> &'static str {
    match state {
        State::InSync => "in sync",
        State::PendingConfirm => "waits to be confirmed",
        State::Rejected => "not in sync",
        State::RolledBack => "rolled back",
        State::LastKnownGood => "runs the last good file",
        State::WatchDegraded => "watch degraded",
    }
}

fn watching(report: &StatusReport) -> String {
    let watcher = &report.watcher;
    let more = match watcher.files.len() {
        0 | 1 => String::new(),
        files => format!(" and {}", count(files as u64 - 1, "more file")),
    };
    let health = if watcher.healthy {
        "healthy"
    } else {
        "degraded"
    };
    format!("{}{more}, {}, {health}", report.config_file, watcher.method)
}

fn relay_line(relay: &relay::Report) -> String {
    if !relay.service && relay.circuits == 0 {
        return "off (`relay.service = false`)".to_owned();
    }
    let draining = match relay.draining {
        0 => String::new(),
        draining => format!(" ({} draining)", grouped(draining.into())),
    };
    let mut parts = vec![
        format!(
            "{} of {}{}",
            grouped(relay.reservations.into()),
            count(relay.max_reservations.into(), "reservation"),
            match relay.guests {
                0 => String::new(),
                guests => format!(" ({} of guests)", grouped(guests.into())),
            }
        ),
        format!("{}{draining}", count(relay.circuits.into(), "circuit")),
        format!(
            "{} carried",
            bytes(
                relay
                    .bytes
                    .to_destination
                    .saturating_add(relay.bytes.to_source)
            )
        ),
    ];
    if relay.shadow_refused > 0 {
        parts.push(format!(
            "{} only in the shadow",
            grouped(relay.shadow_refused)
        ));
    }
    if relay.stopping {
        parts.push("stopping".to_owned());
    }
    parts.join(" · ")
}

/// Refusals, the most frequent reason first.
fn refusals(relay: &relay::Report) -> Option<Vec<String>> {
    let mut reasons: Vec<_> = relay
        .refused
        .iter()
        .filter(|(_, count)| **count > 0)
        .collect();
    reasons.sort_by_key(|(reason, count)| (std::cmp::Reverse(**count), *reason));
    let all = reasons
        .iter()
        .fold(0u64, |sum, (_, count)| sum.saturating_add(**count));
    let words = |(reason, count): (&String, &u64)| {
        format!("{} {}", grouped(*count), reason.replace('_', " "))
    };
    let mut items = vec![format!("{}:", count(all, "request"))];
    items.extend(reasons.into_iter().map(words));
    (all > 0).then_some(items)
}

fn peers(relay: &relay::Report) -> String {
    if relay.peers.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "\n{:<14} {:<40} {:<11} {:<12} {}\n",
        "PEER", "ADDRESS", "RESERVED", "CIRCUITS", "CARRIED"
    );
    for peer in relay.peers.iter().take(LISTED) {
        let reserved = peer.reserved_for_s.map_or("no".to_owned(), span);
        let circuits = u64::from(peer.circuits_as_source) + u64::from(peer.circuits_as_destination);
        let carried = peer
            .bytes
            .to_destination
            .saturating_add(peer.bytes.to_source);
        text.push_str(&format!(
            "{:<14} {:<40} {reserved:<11} {:<12} {}\n",
            short_peer(&peer.peer),
            peer.address,
            grouped(circuits),
            bytes(carried),
        ));
    }
    let listed = relay.peers.len().min(LISTED);
    let rest = (relay.peers.len() - listed) as u64 + u64::from(relay.peers_omitted);
    if rest > 0 {
        text.push_str(&format!("and {}\n", count(rest, "more peer")));
    }
    text
}
