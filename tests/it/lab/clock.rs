//! Nodes whose clocks are wrong, or are set while they run.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::network::{Network, knows, members};
use crate::support::{
    node::{NodeUnderTest, PRIVATE},
    skip::skip,
};

/// Where Debian puts the library that stands between a program and its clock; the loader fills in `$LIB`.
const LIBRARY: &str = "/usr/$LIB/faketime/libfaketimeMT.so.1";

/// A clock of a node's own: so many seconds beside the true one, for the calendar alone.
struct Clock {
    file: PathBuf,
    words: Vec<String>,
}

impl Clock {
    /// `None`, after saying so, where faketime is not installed; in CI that is a failure.
    fn new(folder: &Path, ahead: i64, test: &str) -> Option<Self> {
        if !Path::new("/usr/bin/faketime").exists() {
            skip(test, "faketime is not installed, run tests/install");
            return None;
        }
        let file = folder.join("clock");
        let clock = Self {
            words: vec![
                "env".to_owned(),
                format!("LD_PRELOAD={LIBRARY}"),
                format!("FAKETIME_TIMESTAMP_FILE={}", file.display()),
                "FAKETIME_NO_CACHE=1".to_owned(),
                "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
            ],
            file,
        };
        clock.set(ahead);
        Some(clock)
    }

    fn set(&self, ahead: i64) {
        let beside = self.file.with_extension("new");
        fs::write(&beside, format!("{ahead:+}")).expect("written");
        fs::rename(beside, &self.file).expect("renamed");
    }

    /// Starts a node that reads this clock.
    fn node(&self, more: &str) -> NodeUnderTest {
        let folder = std::sync::Arc::new(tempfile::tempdir().expect("a folder"));
        fs::write(
            folder.path().join("edgevpn.toml"),
            format!("{PRIVATE}{more}"),
        )
        .expect("written");
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        let node = NodeUnderTest::start_by(folder, &words);
        node.until("ready", |status| status["generation"].as_u64() >= Some(1));
        node
    }
}

#[test]
fn a_clock_that_is_off_by_less_than_a_window_loses_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let network = Network::new(20);
    let right = NodeUnderTest::start(&network.member(&[]));
    for ahead in [10, -10] {
        let Some(clock) = Clock::new(folder.path(), ahead, "a clock 10 s off") else {
            return;
        };
        let wrong = clock.node(&network.member(&[right.address("tcp")]));
        let (one, other) = (right.peer_id(), wrong.peer_id());
        right.until("the wrong one is a member", |status| knows(status, &other));
        wrong.until("the right one is a member", |status| knows(status, &one));
    }
}

#[test]
fn setting_the_clock_while_a_node_runs_costs_no_member() {
    let folder = tempfile::tempdir().expect("a folder");
    let network = Network::new(3600);
    let right = NodeUnderTest::start(&network.member(&[]));
    let Some(clock) = Clock::new(folder.path(), 0, "a clock that is set") else {
        return;
    };
    let set = clock.node(&network.member(&[right.address("tcp")]));
    for node in [&set, &right] {
        node.until("they know each other", |status| members(status) == 1);
    }
    for step in 0..10 {
        clock.set(if step % 2 == 0 { 3600 } else { 0 });
        let heard = heartbeats(&set);
        set.until("the step is seen, and heartbeats go on", |status| {
            assert_eq!(members(status), 1, "it loses a member by a step");
            let seen = right.status().expect("the node answers");
            assert_eq!(members(&seen), 1, "a member loses it by a step");
            status["node"]["network"]["clock_steps"].as_u64() > Some(step / 2)
                && merged(status) > heard
        });
    }
}

fn heartbeats(node: &NodeUnderTest) -> u64 {
    merged(&node.status().expect("the node answers"))
}

fn merged(status: &serde_json::Value) -> u64 {
    status["node"]["network"]["ledger"]["merged_total"]
        .as_u64()
        .unwrap_or_default()
}

/// How far a clock may be off before a node says so instead of working.
const HOPELESS: Duration = Duration::from_secs(600);

#[test]
fn a_clock_that_is_hopelessly_wrong_is_told_of() {
    let folder = tempfile::tempdir().expect("a folder");
    let network = Network::new(20);
    let right = NodeUnderTest::start(&network.member(&[]));
    let ahead = i64::try_from(HOPELESS.as_secs()).expect("small");
    let Some(clock) = Clock::new(folder.path(), ahead, "a clock 10 min off") else {
        return;
    };
    let wrong = clock.node(&network.member(&[right.address("tcp")]));
    let status = wrong.until("what it hears is rejected and counted", |status| {
        let rejected = status["node"]["network"]["rejected"].as_object();
        rejected.is_some_and(|reasons| !reasons.is_empty())
    });
    assert_eq!(members(&status), 0, "{status:#}");
}
