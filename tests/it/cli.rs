//! The commands as an operator runs them: the real binary, its output and its exit codes.

mod running;

use crate::support::engine::{report, verdict};
use edgevpn::{
    api::{Handle, Planned, Request, Server, StatusReport},
    config::{Class, Code, Diagnostic, Summary, diagnostic::Location},
    id::Generation,
    plan::{Acknowledgement, Change, Entries, Item, Outcome, Plan, Settled, State, Trigger},
    relay::{Bytes, PeerReport},
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::SystemTime,
};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinSet};

const PEER: &str = "12D3KooWGRaWSh6fpVfAsRBY5QYUhHFEZtNyXjRjTfHhVcLWF3xE";

#[tokio::test]
async fn status_tells_what_a_node_in_sync_does() {
    let node = FakeNode::with_status(busy()).await;
    let shown = node.run(&["status"]).await;
    assert_eq!(shown.code, 0, "{}", shown.err);
    assert_eq!(
        shown.out,
        "\
edge-7  12D3KooWGRaW…  in sync  generation 13 (4f1c9e, 2 min ago, by watch)  up 3 d 4 h
peer id   12D3KooWGRaWSh6fpVfAsRBY5QYUhHFEZtNyXjRjTfHhVcLWF3xE
watching  edgevpn.toml and 2 more files, inotify and 10 s poll, healthy
listening /ip4/192.0.2.7/tcp/4501  /ip4/192.0.2.7/udp/4501/quic-v1
announced /dns4/edge-7.example.org/tcp/4501
relay     57 of 128 reservations · 112 circuits (41 draining) · 18.2 MB carried
refused   14 requests:  11 denied  3 node full
connected 60 of 512 connections to 58 peers, 2 in their handshake

PEER           ADDRESS                                  RESERVED    CIRCUITS     CARRIED
12D3KooWGRaW…  198.51.100.4                             59 min      3            1.2 GB
12D3KooWQx9…   203.0.113.9                              no          1            8.0 MB
and 55 more peers
"
    );
    assert!(shown.out.lines().all(|line| line.chars().count() <= 100));
}

#[tokio::test]
async fn a_code_and_a_key_are_explained_without_a_node() {
    let home = TempDir::new().unwrap();
    let shown = edgevpn(&["explain", "ev0302"], home.path()).await;
    assert_eq!(shown.code, 0);
    assert!(
        shown
            .out
            .starts_with("EV0302  error: a token is not kept from others\n\n")
    );
    let shown = edgevpn(&["explain", "max_duration"], home.path()).await;
    assert_eq!(shown.code, 0);
    let expected = [
        "relay.resources.max_duration",
        "value     a duration such as \"30m\", or \"unlimited\", from 1s to 365d",
        "default   \"30m\"",
        "change    live: in force at once, and nothing is cut that is still allowed",
        "env       EDGEVPN_RELAY_MAX_DURATION",
        "example   max_duration = \"2m\"",
    ];
    for line in expected {
        assert!(
            shown.out.lines().any(|told| told == line),
            "{line}\n{}",
            shown.out
        );
    }
    let shown = edgevpn(&["explain", "[acl]"], home.path()).await;
    assert!(
        shown.out.contains("\nbootstrap  With `\"members\"`"),
        "{}",
        shown.out
    );
    let shown = edgevpn(&["explain", "listen"], home.path()).await;
    assert_eq!(shown.code, 2);
    assert!(
        shown.err.contains("`transport.listen` or `api.listen`"),
        "{}",
        shown.err
    );
    assert_eq!(edgevpn(&["explain"], home.path()).await.code, 2);
}

#[tokio::test]
async fn a_node_explains_what_it_answers_to_a_peer() {
    let node = FakeNode::with_status(busy()).await;
    let shown = node.run(&["explain", "--why", PEER, "reserve"]).await;
    assert_eq!(shown.code, 0, "{}", shown.err);
    let mut lines = shown.out.lines();
    let verdict = "12D3KooWGRaW… may, in shadow mode only, reserve on edge-7 (generation 13)";
    assert_eq!(lines.next(), Some(verdict));
    assert_eq!(
        lines.next(),
        Some("  refused by   edgevpn.toml:52   acl.deny")
    );
    let shown = node
        .run(&["explain", "--why", PEER, "reserve", "--json"])
        .await;
    let answer: serde_json::Value = serde_json::from_str(&shown.out).expect("JSON");
    assert_eq!(answer["rule"], "acl.deny");
    for wrong in [&["hub", "reserve"], &[PEER, "dance"]] {
        let shown = node.run(&["explain", "--why", wrong[0], wrong[1]]).await;
        assert_eq!(shown.code, 2, "{}", shown.out);
    }
}

#[tokio::test]
async fn status_of_a_node_that_is_not_in_sync_begins_with_the_diagnostic_and_exits_3() {
    let mut status = busy();
    status.state = State::Rejected;
    status.last_attempt = Some(rejected());
    let node = FakeNode::with_status(status).await;
    let shown = node.run(&["status"]).await;
    assert_eq!(shown.code, 3);
    let mut lines = shown.out.lines();
    assert_eq!(
        lines.next(),
        Some("edgevpn.toml is not in force: generation 13 (4f1c9e) stays in force")
    );
    assert_eq!(lines.next(), Some(""));
    assert_eq!(
        lines.next(),
        Some("error[EV0102]: `max_duration` is not a duration")
    );
    assert_eq!(lines.next(), Some("--> edgevpn.toml:31:16"));
    assert_eq!(lines.next(), Some(""));
    assert!(lines.next().unwrap().contains("not in sync  generation 13"));
}

#[tokio::test]
async fn every_state_but_in_sync_exits_3() {
    for state in [
        State::PendingConfirm,
        State::Rejected,
        State::RolledBack,
        State::LastKnownGood,
        State::WatchDegraded,
    ] {
        let node = FakeNode::with_status(StatusReport { state, ..busy() }).await;
        assert_eq!(node.run(&["status"]).await.code, 3, "{state}");
    }
}

#[tokio::test]
async fn status_as_json_is_the_report_whole() {
    let node = FakeNode::with_status(busy()).await;
    let shown = node.run(&["status", "--json"]).await;
    assert_eq!(shown.code, 0);
    let read: StatusReport = serde_json::from_str(&shown.out).unwrap();
    assert_eq!(read, node.status);
}

#[tokio::test]
async fn an_attempt_is_told_in_one_line_and_an_exit_code() {
    let cuts = Settled {
        reservations_ended: 1,
        circuits_cut: 2,
        circuits_draining: 41,
    };
    let mut applied = verdict(Outcome::Applied);
    applied.class = Some(Class::Rebind);
    applied.changes = changes();
    applied.settled = Some(cuts);
    let mut refused = verdict(Outcome::Refused);
    refused.refused_keys = vec!["node.key_file".into(), "node.state_dir".into()];
    let mut failed = verdict(Outcome::Failed);
    failed.cause = Some("cannot listen on /ip4/192.0.2.7/tcp/4501: address in use".into());
    for (verdict, code, text) in [
        (
            applied,
            0,
            "applied generation 13 in 11 ms (sha256 4f1c9e…): 4 changes, highest class rebind; \
             1 reservation ended; 2 circuits cut; 41 circuits draining\n",
        ),
        (
            verdict(Outcome::Unchanged),
            0,
            "unchanged: generation 13 (4f1c9e) stays in force\n",
        ),
        (
            rejected(),
            1,
            "rejected (sha256 91ab02…): generation 13 (4f1c9e) stays in force\n\n\
             error[EV0102]: `max_duration` is not a duration\n--> edgevpn.toml:31:16\n",
        ),
        (
            failed,
            1,
            "failed (sha256 4f1c9e…): generation 13 (4f1c9e) stays in force\n\
             cannot listen on /ip4/192.0.2.7/tcp/4501: address in use\n",
        ),
        (
            verdict(Outcome::RolledBack),
            3,
            "rolled back: generation 13 (4f1c9e) stays in force\n",
        ),
        (
            refused,
            4,
            "refused (sha256 4f1c9e…): generation 13 (4f1c9e) stays in force\n\
             refused: node.key_file, node.state_dir\n",
        ),
    ] {
        let node = FakeNode::with_verdict(verdict.clone()).await;
        let shown = node.run(&["reload", "--wait"]).await;
        assert_eq!(
            (shown.code, shown.out.as_str()),
            (code, text),
            "{}",
            shown.err
        );
        let shown = node.run(&["reload", "--json"]).await;
        assert_eq!(shown.code, code);
        assert_eq!(
            serde_json::from_str::<Acknowledgement>(&shown.out).unwrap(),
            verdict
        );
    }
}

#[tokio::test]
async fn a_rollback_that_was_asked_for_is_a_success() {
    let node = FakeNode::with_verdict(verdict(Outcome::RolledBack)).await;
    assert_eq!(node.run(&["reload", "--wait", "--rollback"]).await.code, 0);
}

#[tokio::test]
async fn reload_without_wait_only_tells_the_node() {
    let node = FakeNode::with_verdict(rejected()).await;
    let shown = node.run(&["reload"]).await;
    assert_eq!((shown.code, shown.out.as_str()), (0, ""));
}

#[tokio::test]
async fn a_verdict_that_does_not_come_in_time_is_exit_5() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("api.sock");
    let (requests, _engine) = mpsc::channel(4);
    let _server = Server::bind(&path).await.unwrap().serve(requests);
    let socket = path.display().to_string();
    let shown = edgevpn(
        &["reload", "--wait", "--timeout=1", "--socket", &socket],
        home.path(),
    )
    .await;
    assert_eq!(shown.code, 5);
    assert!(
        shown.err.contains("did not answer within 1 s"),
        "{}",
        shown.err
    );
}

#[tokio::test]
async fn where_no_node_answers_the_places_that_were_tried_are_named_and_the_code_is_2() {
    let home = TempDir::new().unwrap();
    fs::write(
        home.path().join("e.toml"),
        "version = 1\n[node]\nstate_dir = \"state\"\n",
    )
    .unwrap();
    for command in ["status", "reload"] {
        let shown = edgevpn(&[command, "-c", "e.toml"], home.path()).await;
        assert_eq!(shown.code, 2, "{command}");
        for place in [
            "/run/edgevpn/api.sock (does not exist)",
            "run/api.sock (does not exist)",
            "--socket",
        ] {
            assert!(shown.err.contains(place), "{place} in {}", shown.err);
        }
        let shown = edgevpn(&[command, "-c", "none.toml"], home.path()).await;
        assert_eq!(shown.code, 2);
        assert!(
            shown.err.contains("none.toml does not exist"),
            "{}",
            shown.err
        );
    }
}

#[tokio::test]
async fn an_api_that_the_file_switches_off_is_said_to_be_off() {
    let home = TempDir::new().unwrap();
    fs::write(
        home.path().join("e.toml"),
        "version = 1\n[api]\nlisten = \"\"\n",
    )
    .unwrap();
    let shown = edgevpn(&["status", "-c", "e.toml"], home.path()).await;
    assert_eq!(shown.code, 2);
    assert!(
        shown.err.contains("e.toml switches the API off"),
        "{}",
        shown.err
    );
}

#[tokio::test]
async fn a_node_is_found_by_its_file_even_when_the_file_is_broken() {
    let node = FakeNode::with_status(busy()).await;
    let text = format!(
        "[api]\nlisten = \"unix:{}\"\n[relay\nservice = maybe\n",
        node.socket.display()
    );
    fs::write(node.home.path().join("e.toml"), text).unwrap();
    let shown = edgevpn(&["status", "-c", "e.toml"], node.home.path()).await;
    assert_eq!(shown.code, 0, "{}", shown.err);
}

#[tokio::test]
async fn a_node_is_found_in_its_runtime_directory() {
    let node = FakeNode::with_status(busy()).await;
    fs::create_dir(node.home.path().join("run")).unwrap();
    fs::hard_link(&node.socket, node.home.path().join("run/api.sock")).unwrap();
    let shown = edgevpn(&["status"], node.home.path()).await;
    assert_eq!(shown.code, 0, "{}", shown.err);
}

#[tokio::test]
async fn a_reader_that_stops_reading_is_no_failure() {
    let node = FakeNode::with_status(busy()).await;
    let script = format!(
        "{} status --json --socket {} | true; exit ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_edgevpn"),
        node.socket.display()
    );
    let mut command = Command::new("bash");
    command.arg("-c").arg(script);
    let shown = Shown::of(command).await;
    assert_eq!((shown.code, shown.err.as_str()), (0, ""));
}

#[tokio::test]
async fn help_fits_the_width_and_names_every_exit_code() {
    let home = TempDir::new().unwrap();
    for (command, codes) in [
        ("run", &["0", "69", "77", "78"][..]),
        ("reload", &["0", "1", "2", "3", "4", "5"]),
        ("status", &["0", "2", "3"]),
        ("plan", &["0", "1", "2", "3", "4", "5"]),
        ("validate", &["0", "1", "2"]),
        ("schema", &["0", "2"]),
    ] {
        let shown = edgevpn(&[command, "--help"], home.path()).await;
        assert_eq!(shown.code, 0);
        for line in shown.out.lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
        for code in codes {
            let names = |line: &str| line.trim_start().starts_with(&format!("{code}  "));
            assert!(shown.out.lines().any(names), "{command} {code}");
        }
    }
}

#[tokio::test]
async fn wrong_arguments_are_exit_2_with_the_usage() {
    let home = TempDir::new().unwrap();
    for arguments in [
        &["statsu"][..],
        &["reload", "--confirm", "--rollback"],
        &["status", "extra"],
        &[],
    ] {
        let shown = edgevpn(arguments, home.path()).await;
        assert_eq!(shown.code, 2, "{arguments:?}");
        assert!(shown.err.contains("Usage:"), "{}", shown.err);
    }
}

#[tokio::test]
async fn a_plan_against_a_node_shows_each_change_with_its_class_and_effect() {
    let node = FakeNode::with_status(busy()).await;
    fs::write(node.home.path().join("edgevpn.toml"), "version = 1\n").unwrap();
    let shown = node.run(&["plan", "edgevpn.toml"]).await;
    assert_eq!(shown.code, 0, "{}", shown.err);
    assert_eq!(
        shown.out,
        "\
edgevpn.toml: generation 12 → 13

  live    acl.deny                      + 12D3KooWGRaW…
                                        holds a reservation and 2 circuits: cut within 2 s
  live    acl.list.ops                  3 entries added, 1 removed
                                        (allow.d/ops.txt:17, :18, :19, :9)
  live    relay.resources.max_circuits  64 → 16
                                        3 peers above the new cap: 41 circuits drain, longest 22 min
  rebind  transport.listen              + /ip4/0.0.0.0/udp/4501/quic-v1
                                        nobody is disconnected

3 policy tests passed. Nothing needs a restart.
"
    );
    assert!(shown.out.lines().all(|line| line.chars().count() <= 100));
    assert_eq!(
        node.run(&["plan", "--exit-code", "edgevpn.toml"])
            .await
            .code,
        4
    );
    let shown = node.run(&["plan", "--json", "edgevpn.toml"]).await;
    assert_eq!(
        serde_json::from_str::<Planned>(&shown.out).unwrap(),
        planned()
    );
}

#[tokio::test]
async fn two_files_are_compared_without_a_node() {
    let home = TempDir::new().unwrap();
    let write = |name: &str, text: &str| fs::write(home.path().join(name), text).unwrap();
    write(
        "old.toml",
        "version = 1\n[relay.resources]\nmax_circuits = 64\n",
    );
    write(
        "same.toml",
        "version = 1 # the same\n[relay.resources]\nmax_circuits = 64\n",
    );
    write(
        "live.toml",
        "version = 1\n[relay.resources]\nmax_circuits = 16\n",
    );
    write("rebind.toml", "version = 1\n[transport]\nlisten = []\n");
    write(
        "restart.toml",
        "version = 1\n[node]\nkey_file = \"other.key\"\n",
    );
    write(
        "broken.toml",
        "version = 1\n[relay.resources]\nmax_circuit = 16\n",
    );
    for (new, code) in [
        ("same", 0),
        ("live", 3),
        ("rebind", 4),
        ("restart", 5),
        ("broken", 1),
        ("none", 1),
    ] {
        let new = format!("{new}.toml");
        let shown = edgevpn(&["plan", "old.toml", &new, "--exit-code"], home.path()).await;
        assert_eq!(shown.code, code, "{new}: {}{}", shown.out, shown.err);
        let shown = edgevpn(&["plan", "old.toml", &new], home.path()).await;
        assert_eq!(shown.code, i32::from(code == 1), "{new}");
    }
    let shown = edgevpn(&["plan", "old.toml", "live.toml"], home.path()).await;
    assert_eq!(
        shown.out,
        "old.toml → live.toml\n\n  live    relay.resources.max_circuits  64 → 16\n\nNothing needs a restart.\n"
    );
    let shown = edgevpn(&["plan", "old.toml", "same.toml"], home.path()).await;
    assert_eq!(shown.out, "old.toml → same.toml: nothing changes\n");
    let shown = edgevpn(&["plan", "old.toml", "broken.toml"], home.path()).await;
    assert!(shown.err.contains("broken.toml:3:1"), "{}", shown.err);
    assert!(shown.err.contains("EV0101"), "{}", shown.err);
}

#[tokio::test]
async fn a_plan_without_a_node_to_ask_is_exit_2() {
    let home = TempDir::new().unwrap();
    fs::write(home.path().join("new.toml"), "version = 1\n").unwrap();
    assert_eq!(edgevpn(&["plan", "new.toml"], home.path()).await.code, 2);
    assert_eq!(edgevpn(&["plan", "none.toml"], home.path()).await.code, 2);
}

/// A socket behind which a made-up node answers.
struct FakeNode {
    home: TempDir,
    socket: PathBuf,
    status: StatusReport,
    _server: Handle,
    _engine: JoinSet<()>,
}

impl FakeNode {
    async fn with_status(status: StatusReport) -> FakeNode {
        FakeNode::new(status, verdict(Outcome::Unchanged)).await
    }

    async fn with_verdict(verdict: Acknowledgement) -> FakeNode {
        FakeNode::new(busy(), verdict).await
    }

    async fn new(status: StatusReport, verdict: Acknowledgement) -> FakeNode {
        let home = TempDir::new().unwrap();
        let socket = home.path().join("node.sock");
        let (requests, mut asked) = mpsc::channel(4);
        let server = Server::bind(&socket).await.unwrap().serve(requests);
        let mut engine = JoinSet::new();
        let known = status.clone();
        engine.spawn(async move {
            while let Some(request) = asked.recv().await {
                match request {
                    Request::Status { reply } => drop(reply.send(known.clone())),
                    Request::Reload { reply, .. } => drop(reply.send(verdict.clone())),
                    Request::Plan { reply, .. } => drop(reply.send(planned())),
                    Request::Explain { .. } => crate::support::engine::answer(request),
                }
            }
        });
        FakeNode {
            home,
            socket,
            status,
            _server: server,
            _engine: engine,
        }
    }

    async fn run(&self, arguments: &[&str]) -> Shown {
        let socket = self.socket.display().to_string();
        edgevpn(
            &[arguments, &["--socket", &socket]].concat(),
            self.home.path(),
        )
        .await
    }
}

/// What a command left behind.
struct Shown {
    code: i32,
    out: String,
    err: String,
}

impl Shown {
    async fn of(mut command: Command) -> Shown {
        let output: Output = tokio::task::spawn_blocking(move || command.output().unwrap())
            .await
            .unwrap();
        Shown {
            code: output.status.code().expect("no signal"),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Runs the program in `home`, away from what this machine runs.
async fn edgevpn(arguments: &[&str], home: &Path) -> Shown {
    let mut command = program(home);
    command.args(arguments);
    Shown::of(command).await
}

fn program(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgevpn"));
    command.current_dir(home);
    command
        .env_clear()
        .env("RUNTIME_DIRECTORY", home.join("run"));
    command
}

fn busy() -> StatusReport {
    let mut status = report();
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    status.applied_at = (now - 130.0).floor();
    status.uptime_s = 3 * 86400 + 4 * 3600;
    status.watcher.method = "inotify and 10 s poll".into();
    status.watcher.files = vec!["edgevpn.toml".into(), "a.txt".into(), "b.txt".into()];
    let node = &mut status.node;
    node.peer_id = PEER.into();
    node.listening = vec![
        "/ip4/192.0.2.7/tcp/4501".into(),
        "/ip4/192.0.2.7/udp/4501/quic-v1".into(),
    ];
    node.announced = vec!["/dns4/edge-7.example.org/tcp/4501".into()];
    node.connections.max = 512;
    node.connections.peers = 58;
    node.connections.pending = 2;
    let relay = &mut node.relay;
    relay.service = true;
    relay.max_reservations = 128;
    relay.draining = 41;
    relay.refused.insert("node_full".into(), 3);
    relay.bytes = Bytes {
        to_destination: 18_000_000,
        to_source: 243_000,
    };
    relay.peers_omitted = 55;
    relay.peers = vec![
        PeerReport {
            peer: PEER.into(),
            address: "198.51.100.4".into(),
            reserved_for_s: Some(3599),
            circuits_as_source: 1,
            circuits_as_destination: 2,
            bytes: Bytes {
                to_destination: 1_000_000_000,
                to_source: 200_000_000,
            },
        },
        PeerReport {
            peer: "12D3KooWQx9…".into(),
            address: "203.0.113.9".into(),
            reserved_for_s: None,
            circuits_as_source: 1,
            circuits_as_destination: 0,
            bytes: Bytes {
                to_destination: 8_000_000,
                to_source: 0,
            },
        },
    ];
    status
}

fn rejected() -> Acknowledgement {
    let place = Location {
        file: "edgevpn.toml".into(),
        line: 31,
        column: 16,
        start: 0,
        end: 0,
        label: String::new(),
        excerpt: None,
    };
    let mut rejected = verdict(Outcome::Rejected);
    rejected.sha256 = "91ab02ff".into();
    rejected.trigger = Trigger::Watch;
    rejected.diagnostics =
        vec![Diagnostic::new(Code::WrongType, "`max_duration` is not a duration").at(place)];
    rejected
}

fn planned() -> Planned {
    Planned {
        generation: Generation(12),
        plan: Plan { changes: changes() },
        diagnostics: Vec::new(),
        held_back: None,
        summary: Summary {
            policy_tests: 3,
            ..Summary::default()
        },
    }
}

/// The changes of the plan that the design sketches.
fn changes() -> Vec<Change> {
    let change = |key: &str, class, effect: Option<&str>| Change {
        key: key.into(),
        class,
        old: None,
        new: None,
        origin: None,
        added: Entries::default(),
        removed: Entries::default(),
        effect: effect.map(str::to_owned),
    };
    let entries = |items: &[(&str, &str)]| Entries {
        total: items.len(),
        first: items
            .iter()
            .map(|(entry, origin)| Item {
                entry: (*entry).into(),
                origin: (*origin).into(),
            })
            .collect(),
    };
    let mut cap = change(
        "relay.resources.max_circuits",
        Class::Live,
        Some("3 peers above the new cap: 41 circuits drain, longest 22 min"),
    );
    (cap.old, cap.new) = (Some(64.into()), Some(16.into()));
    let mut deny = change(
        "acl.deny",
        Class::Live,
        Some("holds a reservation and 2 circuits: cut within 2 s"),
    );
    deny.added = entries(&[(PEER, "edgevpn.toml:52")]);
    let mut list = change("acl.list.ops", Class::Live, None);
    list.added = entries(&[
        (PEER, "allow.d/ops.txt:17"),
        ("198.51.100.0/24", "allow.d/ops.txt:18"),
        ("203.0.113.0/24", "allow.d/ops.txt:19"),
    ]);
    list.removed = entries(&[("192.0.2.0/24", "allow.d/ops.txt:9")]);
    let mut listen = change(
        "transport.listen",
        Class::Rebind,
        Some("nobody is disconnected"),
    );
    listen.added = entries(&[("/ip4/0.0.0.0/udp/4501/quic-v1", "edgevpn.toml:9")]);
    vec![deny, list, cap, listen]
}
