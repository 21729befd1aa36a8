//! An engine that answers every request at once with a made-up truth, for tests of the server and of the commands.

use edgevpn::{
    api::{
        Explanation, NodeReport, Order, Planned, ReloadCount, Request, StatusReport, WatcherReport,
    },
    config::Summary,
    id::Generation,
    plan::{Acknowledgement, Outcome, Plan, State, Trigger},
};
use tokio::sync::mpsc;

pub async fn serve(mut engine: mpsc::Receiver<Request>) {
    while let Some(request) = engine.recv().await {
        answer(request);
    }
}

/// What the engine of these tests says. A client that has gone is none of its business.
pub fn answer(request: Request) {
    match request {
        Request::Status { reply } => drop(reply.send(report())),
        Request::Reload { order, reply } => {
            let outcome = match order {
                Order::Read => Outcome::Unchanged,
                Order::Force | Order::Confirm => Outcome::Applied,
                Order::Rollback => Outcome::RolledBack,
            };
            drop(reply.send(verdict(outcome)));
        }
        Request::Explain {
            peer,
            operation,
            reply,
            ..
        } => drop(reply.send(Explanation {
            node: "edge-7".into(),
            generation: Generation(13),
            peer: peer.to_string(),
            operation: operation.to_string(),
            rule: "acl.deny".into(),
            origin: "edgevpn.toml:52".into(),
            ..Explanation::default()
        })),
        Request::Plan { candidate, reply } => drop(reply.send(Planned {
            generation: Generation(13),
            plan: Plan::default(),
            diagnostics: Vec::new(),
            held_back: None,
            summary: Summary {
                keys: candidate.text.len(),
                ..Summary::default()
            },
        })),
    }
}

pub fn report() -> StatusReport {
    let mut node = NodeReport {
        name: "edge-7".into(),
        peer_id: "12D3KooWJ1Ts".into(),
        ..NodeReport::default()
    };
    node.connections.established = 60;
    node.relay.reservations = 57;
    node.relay.circuits = 112;
    node.relay.refused.insert("denied".into(), 11);
    node.relay.bytes.to_source = 7;
    StatusReport {
        version: "0.1.0".into(),
        state: State::InSync,
        generation: Generation(13),
        applied_sha256: "4f1c9e".into(),
        applied_at: 1_700_000_000.5,
        applied_by: Trigger::Watch,
        last_success_at: 1_700_000_000.5,
        uptime_s: 60,
        config_file: "edgevpn.toml".into(),
        last_attempt: Some(verdict(Outcome::Applied)),
        confirm_within_s: None,
        reloads: vec![ReloadCount {
            trigger: Trigger::Watch,
            result: Outcome::Rejected,
            count: 2,
        }],
        watcher: WatcherReport {
            healthy: true,
            ..WatcherReport::default()
        },
        problems: Vec::new(),
        node,
    }
}

pub fn verdict(outcome: Outcome) -> Acknowledgement {
    Acknowledgement {
        outcome,
        generation: Generation(13),
        sha256: "4f1c9e".into(),
        applied_sha256: "4f1c9e".into(),
        trigger: Trigger::Command,
        took_ms: 11.0,
        class: None,
        changes: Vec::new(),
        diagnostics: Vec::new(),
        refused_keys: Vec::new(),
        cause: None,
        settled: None,
    }
}
