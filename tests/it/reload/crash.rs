//! A node that is killed in the middle of reloads starts again, with the old file or the new one and nothing between.

use super::{start, unwatched};
use crate::support::{
    node::NodeUnderTest,
    skip::skip,
    status::{applied, sha256},
};
use rustix::process::Signal;
use std::{fs, process::Command, time::Duration};

#[test]
fn whatever_moment_a_node_is_killed_at_it_starts_again_from_a_whole_file() {
    let list = "[[acl.list]]\nname = \"ops\"\naction = \"deny\"\nfile = \"ops.txt\"\n";
    let text = |round: usize| {
        unwatched(
            &format!("{}", round % 50 + 1),
            &format!("history = 3\n{list}"),
        )
    };
    let node = start(&unwatched("1", ""));
    let peer_id = node.peer_id();
    node.until("something is kept", |_| {
        node.path("state/history/0000000001.json").exists()
    });
    let mut folder = node.kill();
    for round in 0..25 {
        fs::write(folder.path().join("ops.txt"), format!("192.0.2.{round}\n")).expect("written");
        fs::write(folder.path().join("edgevpn.toml"), text(round)).expect("written");
        let node = NodeUnderTest::start_in(folder, &[]);
        let status = node.until("it starts", applied(text(round)));
        assert_eq!(status["node"]["peer_id"], peer_id);
        // Reloads follow each other until the blow; where it falls differs from round to round.
        for step in 0..(round % 5 + 1) {
            fs::write(
                node.path("ops.txt"),
                format!("192.0.2.{round}\n198.51.100.{step}\n"),
            )
            .expect("written");
            fs::write(node.path("beside"), text(round + step + 1)).expect("written");
            fs::rename(node.path("beside"), node.path("edgevpn.toml")).expect("renamed");
            node.signal(Signal::HUP);
            std::thread::sleep(Duration::from_micros(700 * round as u64));
        }
        folder = node.kill();

        // What was kept is whole: a node can start from it although the file is broken.
        fs::write(
            folder.path().join("edgevpn.toml"),
            unwatched("\"broken\"", ""),
        )
        .expect("written");
        let node = NodeUnderTest::start_in(folder, &["--on-invalid=lkg"]);
        let possible: Vec<String> = (0..=round + 6)
            .map(|round| sha256(text(round)))
            .chain([sha256(unwatched("1", ""))])
            .collect();
        let status = node.until("it starts from what was kept", |status| {
            status["state"] == "last_known_good"
        });
        let started_from = status["applied_sha256"]
            .as_str()
            .expect("a hash")
            .to_owned();
        assert!(possible.contains(&started_from), "{status:#}");
        assert!(!node.log_text().contains("damaged"), "{}", node.log_text());
        folder = node.kill();
    }
}

/// The calls that put a finished file in its place and take an old one away; a kill at any of them must leave all whole.
const CALLS: [&str; 3] = ["fsync", "rename", "unlink"];

#[test]
fn a_kill_at_any_call_that_completes_a_file_leaves_state_whole() {
    // -D: the traced program is the child, not the tracer.
    let strace = ["strace", "-D", "-f", "-qq", "-o", "/dev/null"];
    let can_trace = Command::new(strace[0])
        .args(&strace[1..])
        .arg("true")
        .status();
    if !can_trace.is_ok_and(|status| status.success()) {
        skip(
            "a kill at every call",
            "needs strace, and the right to trace",
        );
        return;
    }
    let text = |number: u32| unwatched(&number.to_string(), "history = 2\n");
    let node = start(&text(1));
    let peer_id = node.peer_id();
    node.until("something is kept", |_| {
        node.path("state/history/0000000001.json").exists()
    });
    let mut folder = node.kill();
    let mut killed = 0;
    for call in CALLS {
        for count in 1..=5 {
            fs::write(folder.path().join("edgevpn.toml"), text(2)).expect("written");
            let (trace, inject) = (
                format!("trace={call}"),
                format!("inject={call}:signal=KILL:when={count}"),
            );
            let mut wrapper = strace.to_vec();
            wrapper.extend(["-e", &trace, "-e", &inject]);
            let mut node = NodeUnderTest::start_by(folder, &wrapper);
            // It dies while it starts, while it keeps one of the files that follow, or not at all.
            let mut ended = node.until_ended_or("the start", applied(text(2)));
            for number in 3..6 {
                fs::write(node.path("beside"), text(number)).expect("written");
                fs::rename(node.path("beside"), node.path("edgevpn.toml")).expect("renamed");
                if !ended {
                    node.signal(Signal::HUP);
                    ended = node.until_ended_or("the reload", applied(text(number)));
                }
            }
            killed += u32::from(ended);
            folder = node.kill();

            fs::write(
                folder.path().join("edgevpn.toml"),
                unwatched("\"broken\"", ""),
            )
            .expect("written");
            let node = NodeUnderTest::start_in(folder, &["--on-invalid=lkg"]);
            let status = node.until("it starts from what was kept", |status| {
                status["state"] == "last_known_good"
            });
            let started_from = status["applied_sha256"].as_str().expect("a hash");
            assert!(
                (1..6).any(|number| sha256(text(number)) == started_from),
                "{call} {count}: {status:#}"
            );
            assert_eq!(status["node"]["peer_id"], peer_id);
            assert!(
                !node.log_text().contains("damaged"),
                "{call} {count}\n{}",
                node.log_text()
            );
            folder = node.kill();
        }
    }
    assert!(killed >= 8, "only {killed} kills");
}
