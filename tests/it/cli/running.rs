//! The commands against a node that really runs.

use super::{Shown, edgevpn, program};
use edgevpn::{api::StatusReport, id::Generation, plan::Trigger};
use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Stdio},
    sync::Arc,
};
use tempfile::TempDir;

#[tokio::test]
async fn a_first_run_says_who_it_is_where_to_dial_and_how_to_go_on_and_stops_cleanly() {
    let mut node = Running::with("").await;
    let id = node.status().await.node.peer_id;
    let address = &node.status().await.node.listening[0];
    assert_eq!(
        node.said,
        format!(
            "edgevpn {}  {id}  (new key in {}/state/node.key)\n\
             offers a relay at:\n  {address}/p2p/{id}\n\
             edit e.toml and watch this terminal; stop with Ctrl-C\n",
            env!("CARGO_PKG_VERSION"),
            node.home.path().display()
        )
    );
    assert_eq!(node.ask(&["status"]).await.code, 0);
    assert_eq!(node.ended_by("TERM"), 0);
    assert!(!node.home.path().join("run/api.sock").exists());
    for line in node.log().lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("no terminal: JSON");
        assert!(
            line["level"].is_string() && line["message"].is_string(),
            "{line}"
        );
    }
    let again = Running::in_home(node.home.clone(), "").await;
    assert!(!again.said.contains("new key"), "{}", again.said);
    assert!(again.said.contains(&id), "the key is kept: {}", again.said);
}

#[tokio::test]
async fn an_edit_is_applied_a_broken_one_rejected_and_the_next_good_one_applied() {
    let node = Running::with("").await;
    node.write("[relay.resources]\nmax_circuits = 16\n");
    let shown = node.ask(&["reload", "--wait"]).await;
    assert_eq!(shown.code, 0, "{}", shown.err);
    assert!(
        shown.out.starts_with("applied generation 2 in "),
        "{}",
        shown.out
    );
    assert!(
        shown.out.contains("1 change, highest class live"),
        "{}",
        shown.out
    );
    let shown = node.ask(&["reload", "--wait"]).await;
    assert_eq!(shown.code, 0);
    assert!(
        shown.out.starts_with("unchanged: generation 2 "),
        "{}",
        shown.out
    );

    node.write("[relay.resources]\nmax_circuit = 16\n");
    let shown = node.ask(&["reload", "--wait"]).await;
    assert_eq!(shown.code, 1);
    assert!(shown.out.contains("EV0101"), "{}", shown.out);
    let shown = node.ask(&["status"]).await;
    assert_eq!(shown.code, 3);
    assert!(
        shown
            .out
            .starts_with("e.toml is not in force: generation 2 "),
        "{}",
        shown.out
    );
    assert!(shown.out.contains("EV0101"), "{}", shown.out);

    node.write("[relay.resources]\nmax_circuits = 17\n");
    assert_eq!(node.ask(&["reload", "--wait"]).await.code, 0);
    assert_eq!(node.ask(&["status"]).await.code, 0);
}

#[tokio::test]
async fn what_needs_a_restart_is_refused_and_what_cannot_be_bound_fails() {
    let node = Running::with("").await;
    node.write_whole(&Running::text("").replace("\"state\"", "\"elsewhere\""));
    let shown = node.ask(&["reload", "--wait"]).await;
    assert_eq!(shown.code, 4, "{}{}", shown.out, shown.err);
    assert!(shown.out.contains("node.state_dir"), "{}", shown.out);

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics = format!("metrics = \"{}\"\n", taken.local_addr().unwrap());
    node.write(&format!("[api]\n{metrics}"));
    let shown = node.ask(&["reload", "--wait"]).await;
    assert_eq!(shown.code, 1, "{}", shown.out);
    assert!(shown.out.starts_with("failed"), "{}", shown.out);
    assert!(
        shown.out.contains("cannot listen on 127.0.0.1:"),
        "{}",
        shown.out
    );
    assert_eq!(node.status().await.generation, Generation(1));
}

#[tokio::test]
async fn a_plan_against_a_running_node_changes_nothing() {
    let node = Running::with("").await;
    for (tail, code) in [
        ("", 0),
        ("[relay.resources]\nmax_circuits = 16\n", 3),
        ("[api]\nlisten = \"unix:other.sock\"\n", 4),
        ("[relay.resources]\nmax_circuit = 16\n", 1),
    ] {
        fs::write(node.home.path().join("new.toml"), Running::text(tail)).unwrap();
        let shown = node.ask(&["plan", "new.toml", "--exit-code"]).await;
        assert_eq!(shown.code, code, "{tail}: {}{}", shown.out, shown.err);
    }
    assert_eq!(node.status().await.generation, Generation(1));
}

#[tokio::test]
async fn a_confirmation_that_comes_too_late_says_so_without_being_told_to_wait() {
    let node = Running::with("").await;
    let shown = node.ask(&["reload", "--confirm"]).await;
    assert_eq!((shown.code, shown.err.as_str()), (0, ""));
    assert!(
        shown.out.contains("no change waits for a confirmation"),
        "{}",
        shown.out
    );

    node.write("confirm = \"5m\"\n");
    assert_eq!(node.ask(&["reload", "--wait"]).await.code, 0);
    assert_eq!(node.ask(&["reload", "--rollback"]).await.code, 0);
    let shown = node.ask(&["reload", "--confirm"]).await;
    assert_eq!(shown.code, 3, "{}", shown.out);
    assert!(
        shown.out.contains("undone before it was confirmed"),
        "{}",
        shown.out
    );
}

#[tokio::test]
async fn a_confirmation_and_an_empty_rollback_leave_the_last_attempt_in_the_status() {
    let node = Running::with("").await;
    node.write("[relay.resources]\nmax_circuit = 16\n");
    assert_eq!(node.ask(&["reload", "--wait"]).await.code, 1);
    let before = node.status().await;
    assert_eq!(node.ask(&["reload", "--rollback"]).await.code, 1);
    assert_eq!(node.ask(&["reload", "--confirm"]).await.code, 0);
    let after = node.status().await;
    assert_eq!(after.last_attempt, before.last_attempt);
    assert_eq!(after.reloads, before.reloads);
    let shown = node.ask(&["status"]).await;
    assert!(shown.out.contains("EV0101"), "{}", shown.out);
}

#[tokio::test]
async fn a_verdict_gives_its_reason_once_and_no_hash_of_what_could_not_be_read() {
    let node = Running::with("").await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    node.write(&format!("[api]\nmetrics = \"{address}\"\n"));
    let shown = node.ask(&["reload", "--wait"]).await;
    assert_eq!(
        shown.out.matches("cannot listen on").count(),
        1,
        "{}",
        shown.out
    );

    fs::remove_file(node.home.path().join("e.toml")).unwrap();
    let socket = node.home.path().join("run/api.sock");
    let shown = node
        .ask_plainly(&["reload", "--wait", "--socket", &socket.to_string_lossy()])
        .await;
    assert!(
        shown.out.starts_with("rejected: generation 1 "),
        "{}{}",
        shown.out,
        shown.err
    );
}

#[tokio::test]
async fn a_hangup_reads_the_file_again() {
    let node = Running::with("").await;
    node.write("[relay.resources]\nmax_circuits = 16\n");
    node.signal("HUP");
    let status = node
        .until(|status| status.generation == Generation(2))
        .await;
    assert_eq!(status.applied_by, Trigger::Signal);
}

#[tokio::test]
async fn the_socket_moves_while_the_verdict_comes_back_through_the_old_one() {
    let node = Running::with("").await;
    node.write("[api]\nlisten = \"unix:moved.sock\"\n");
    let old = node.home.path().join("run/api.sock").display().to_string();
    let shown = edgevpn(&["reload", "--wait", "--socket", &old], node.home.path()).await;
    assert_eq!(shown.code, 0, "{}", shown.err);
    assert!(shown.out.contains("highest class rebind"), "{}", shown.out);
    let shown = edgevpn(&["status", "-c", "e.toml"], node.home.path()).await;
    assert_eq!(shown.code, 0, "{}", shown.err);
    while Path::new(&old).exists() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_node_that_cannot_start_says_why_in_its_exit_code() {
    let broken = |text: &str| Running::text("").replace("version = 1", text);
    let home = || TempDir::new().unwrap();
    let run = async |home: &TempDir, text: &str| {
        fs::write(home.path().join("e.toml"), text).unwrap();
        edgevpn(&["run", "-c", "e.toml"], home.path()).await
    };

    let invalid = run(&home(), &broken("version = 9")).await;
    assert_eq!(invalid.code, 78);
    assert!(invalid.err.contains("EV0702"), "{}", invalid.err);
    assert_eq!(invalid.out, "");
    assert_eq!(run(&home(), "").await.code, 78, "an empty file is invalid");
    let missing = edgevpn(&["run", "-c", "none.toml"], home().path()).await;
    assert_eq!(missing.code, 78);
    assert!(
        missing.err.contains("none.toml does not exist"),
        "{}",
        missing.err
    );

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let text = Running::text("").replace("tcp/0", &format!("tcp/{port}"));
    let shown = run(&home(), &text).await;
    assert_eq!(shown.code, 69, "{}", shown.err);
    assert!(shown.err.contains(&port.to_string()), "{}", shown.err);

    let open = home();
    fs::create_dir(open.path().join("state")).unwrap();
    fs::write(open.path().join("state/node.key"), "x").unwrap();
    fs::set_permissions(
        open.path().join("state/node.key"),
        fs::Permissions::from_mode(0o644),
    )
    .unwrap();
    let shown = run(&open, &Running::text("")).await;
    assert_eq!(shown.code, 78, "{}", shown.err);
    assert!(shown.err.contains("chmod 600"), "{}", shown.err);
}

#[tokio::test]
async fn a_second_node_on_the_same_state_does_not_start() {
    let node = Running::with("").await;
    let shown = node.ask_plainly(&["run", "-c", "e.toml"]).await;
    assert_eq!(shown.code, 69, "{}", shown.err);
    assert_eq!(node.ask(&["status"]).await.code, 0, "the first one goes on");
}

#[tokio::test]
async fn a_broken_file_starts_from_the_last_good_one_only_when_told_to() {
    let mut node = Running::with("[relay.resources]\nmax_circuits = 16\n").await;
    assert_eq!(node.ended_by("INT"), 0);
    node.write("[relay.resources]\nmax_circuit = 16\n");
    assert_eq!(node.ask_plainly(&["run", "-c", "e.toml"]).await.code, 78);
    let node = Running::start(node.home.clone(), &["--on-invalid=lkg"]).await;
    let shown = node.ask(&["status"]).await;
    assert_eq!(shown.code, 3);
    assert!(
        shown.out.contains("started from the last good file"),
        "{}",
        shown.out
    );
    assert_eq!(
        node.ask_plainly(&["run", "-c", "e.toml", "--on-invalid=lgk"])
            .await
            .code,
        2
    );
}

/// A node that really runs, in a directory of its own, on a port of its own. Its file is not watched: tests say when to look.
struct Running {
    home: Arc<TempDir>,
    child: Child,
    /// What it printed before it was ready.
    said: String,
}

impl Running {
    /// A relay on loopback whose file ends with `tail`.
    fn text(tail: &str) -> String {
        format!(
            "version = 1\n[node]\nname = \"edge-7\"\nstate_dir = \"state\"\n\
             [transport]\nlisten = [\"/ip4/127.0.0.1/tcp/0\"]\n\
             [acl]\nreserve = \"anyone\"\n[reload]\nwatch = \"off\"\n{tail}"
        )
    }

    async fn with(tail: &str) -> Running {
        Running::in_home(Arc::new(TempDir::new().unwrap()), tail).await
    }

    async fn in_home(home: Arc<TempDir>, tail: &str) -> Running {
        fs::write(home.path().join("e.toml"), Running::text(tail)).unwrap();
        Running::start(home, &[]).await
    }

    async fn start(home: Arc<TempDir>, arguments: &[&str]) -> Running {
        let mut command = program(home.path());
        command.args(["run", "-c", "e.toml"]).args(arguments);
        command.stdout(Stdio::piped());
        command.stderr(fs::File::create(home.path().join("log")).unwrap());
        tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut said = String::new();
            while !said.contains("stop with Ctrl-C") {
                let Some(Ok(line)) = lines.next() else {
                    let log = fs::File::open(home.path().join("log")).map(std::io::read_to_string);
                    panic!("it ended after {said:?}: {log:?}");
                };
                said.push_str(&line);
                said.push('\n');
            }
            Running { home, child, said }
        })
        .await
        .unwrap()
    }

    fn write(&self, tail: &str) {
        self.write_whole(&Running::text(tail));
    }

    fn write_whole(&self, text: &str) {
        fs::write(self.home.path().join("e.toml"), text).unwrap();
    }

    async fn ask(&self, arguments: &[&str]) -> Shown {
        self.ask_plainly(&[arguments, &["-c", "e.toml"]].concat())
            .await
    }

    async fn ask_plainly(&self, arguments: &[&str]) -> Shown {
        edgevpn(arguments, self.home.path()).await
    }

    async fn status(&self) -> StatusReport {
        let shown = self.ask(&["status", "--json"]).await;
        serde_json::from_str(&shown.out).expect(&shown.err)
    }

    async fn until(&self, wanted: impl Fn(&StatusReport) -> bool) -> StatusReport {
        loop {
            let status = self.status().await;
            if wanted(&status) {
                return status;
            }
        }
    }

    fn signal(&self, name: &str) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let signal = match name {
            "HUP" => rustix::process::Signal::HUP,
            "INT" => rustix::process::Signal::INT,
            _ => rustix::process::Signal::TERM,
        };
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn ended_by(&mut self, signal: &str) -> i32 {
        self.signal(signal);
        // Blocks this test only: nothing else runs on its thread.
        let status = self.child.wait();
        status.unwrap().code().expect("an exit code")
    }

    fn log(&self) -> String {
        std::io::read_to_string(fs::File::open(self.home.path().join("log")).unwrap()).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
