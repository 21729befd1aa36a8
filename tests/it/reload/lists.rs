//! List files that cannot be read: the last content holds, and an error never admits anybody.

use super::{start, unwatched};
use crate::support::{
    files::file,
    node::NodeUnderTest,
    status::{outcome, reload},
};
use serde_json::{Value, json};
use std::{fs, sync::Arc};

fn list(action: &str, max_stale: &str) -> String {
    format!(
        "[[acl.list]]\nname = \"ops\"\naction = \"{action}\"\nfile = \"ops.txt\"\nmax_stale = \"{max_stale}\"\n"
    )
}

fn start_with(list: &str) -> NodeUnderTest {
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    fs::write(folder.path().join("ops.txt"), "192.0.2.0/24\n").expect("written");
    fs::write(folder.path().join("edgevpn.toml"), file("1", list)).expect("written");
    let node = NodeUnderTest::start_in(folder, &[]);
    node.until("the file is applied", |status| status["generation"] == 1);
    node
}

fn warns(status: &Value, word: &str) -> bool {
    let findings = status["last_attempt"]["diagnostics"]
        .as_array()
        .expect("findings");
    findings.iter().any(|finding| {
        finding["severity"] == "warning"
            && finding["message"]
                .as_str()
                .is_some_and(|message| message.contains(word))
    })
}

#[test]
fn an_unreadable_allow_list_holds_until_it_is_too_old_and_then_is_empty() {
    let node = start_with(&list("allow", "2s"));
    fs::remove_file(node.path("ops.txt")).expect("removed");
    let status = node.until("it is noticed", |status| {
        status["state"] == "watch_degraded"
    });
    assert_eq!(status["generation"], 1, "{status:#}");
    assert!(warns(&status, "last content"), "{status:#}");

    let status = node.until("it is too old", |status| status["generation"] == 2);
    let verdict = &status["last_attempt"];
    assert_eq!(verdict["trigger"], "timer");
    assert_eq!(
        verdict["changes"][0]["removed"]["first"][0]["entry"],
        "192.0.2.0/24"
    );
    assert!(warns(&status, "counts as empty"), "{status:#}");

    fs::write(node.path("ops.txt"), "192.0.2.0/24\n").expect("written");
    let status = node.until("it is back", |status| status["generation"] == 3);
    assert_eq!(status["state"], "in_sync", "{status:#}");
    assert_eq!(
        status["last_attempt"]["changes"][0]["added"]["first"][0]["entry"],
        "192.0.2.0/24"
    );
}

#[test]
fn an_unreadable_deny_list_holds_for_ever() {
    let node = start_with(&list("deny", "1s"));
    fs::remove_file(node.path("ops.txt")).expect("removed");
    node.until("it is noticed", |status| {
        status["state"] == "watch_degraded"
    });
    let status = node.until("its time is up", |status| {
        status["last_attempt"]["trigger"] == "timer"
    });
    assert_eq!(status["generation"], 1, "{status:#}");
    assert_eq!(outcome(&status), "unchanged");
    assert!(warns(&status, "last content"));
}

#[test]
fn other_changes_apply_while_a_list_is_unreadable() {
    let node = start_with(&list("deny", "1h"));
    fs::remove_file(node.path("ops.txt")).expect("removed");
    fs::write(node.path("edgevpn.toml"), file("2", &list("deny", "1h"))).expect("written");
    let status = node.until("the file is applied", |status| status["generation"] == 2);
    let changes = status["last_attempt"]["changes"]
        .as_array()
        .expect("changes");
    assert_eq!(changes.len(), 1, "{changes:#?}");
    assert_eq!(status["state"], "watch_degraded");
}

#[test]
fn a_list_that_was_never_read_does_not_start_a_node_nor_a_change() {
    let node = start(&unwatched("1", ""));
    fs::write(
        node.path("edgevpn.toml"),
        unwatched("2", &list("deny", "1h")),
    )
    .expect("written");
    let verdict = reload(&node, "read");
    assert_eq!(verdict["outcome"], "rejected", "{verdict:#}");
    assert_eq!(verdict["generation"], json!(1));
}

#[test]
fn a_list_that_is_emptied_is_held_back_and_one_that_says_it_is_empty_is_applied() {
    let node = start_with(&list("deny", "1h"));
    fs::write(node.path("ops.txt"), "").expect("written");
    let status = node.until("it is held back", |status| outcome(status) == "rejected");
    assert_eq!(status["generation"], 1, "{status:#}");
    assert_eq!(status["last_attempt"]["diagnostics"][0]["code"], "EV0203");
    fs::write(node.path("ops.txt"), "# nobody any more\n").expect("written");
    let status = node.until("it is applied", |status| status["generation"] == 2);
    assert_eq!(status["last_attempt"]["changes"][0]["removed"]["total"], 1);

    fs::write(node.path("ops.txt"), "192.0.2.0/24\n").expect("written");
    node.until("it is denied again", |status| status["generation"] == 3);
    fs::write(node.path("ops.txt"), "").expect("written");
    node.until("it is held back", |status| outcome(status) == "rejected");
    assert_eq!(reload(&node, "force")["outcome"], "applied");
}
