//! Changes that are undone unless somebody confirms them.

use super::{codes, keys, start, unwatched, write};
use crate::support::{
    files::{Style, file},
    node::NodeUnderTest,
    relay::Client,
    status::{applied, outcome, reload, sha256},
};

fn confirming(circuits: &str, within: &str) -> String {
    unwatched(circuits, &format!("confirm = \"{within}\"\n"))
}

fn state(node: &NodeUnderTest) -> String {
    node.status().expect("a status")["state"]
        .as_str()
        .expect("a state")
        .to_owned()
}

#[test]
fn a_change_that_nobody_confirms_is_undone_and_stays_undone() {
    let first = file("1", "confirm = \"1s\"\n");
    let second = file("2", "confirm = \"1s\"\n");
    let node = start(&first);
    Style::RenamedOver.write(node.folder.path(), &second);
    let status = node.until("it waits", |status| status["state"] == "pending_confirm");
    assert_eq!(status["applied_sha256"], sha256(&second));
    assert!(status["confirm_within_s"].is_number());
    let status = node.until("it is undone", |status| status["state"] == "rolled_back");
    assert_eq!(status["applied_sha256"], sha256(&first));
    assert_eq!(status["generation"], 3);
    assert_eq!(outcome(&status), "rolled_back");
    assert_eq!(status["last_attempt"]["trigger"], "timer");
    assert_eq!(
        keys(&status["last_attempt"]),
        ["relay.resources.max_circuits"]
    );

    // The file still says what was undone; it is not tried again in a circle.
    let verdict = reload(&node, "read");
    assert_eq!(verdict["outcome"], "rolled_back", "{verdict:#}");
    assert_eq!(verdict["generation"], 3);
    assert_eq!(reload(&node, "force")["outcome"], "applied");
    assert_eq!(state(&node), "pending_confirm");
    assert_eq!(reload(&node, "confirm")["outcome"], "unchanged");
    assert_eq!(state(&node), "in_sync");

    let third = file("3", "");
    Style::RenamedOver.write(node.folder.path(), &third);
    let status = node.until("another file is applied", applied(&third));
    assert_eq!(status["state"], "in_sync");
}

#[test]
fn a_confirmed_change_stays() {
    let node = start(&confirming("1", "2s"));
    write(&node, confirming("2", "2s"));
    assert_eq!(reload(&node, "read")["outcome"], "applied");
    assert_eq!(state(&node), "pending_confirm");
    let verdict = reload(&node, "confirm");
    assert_eq!(
        (verdict["outcome"].as_str(), verdict["generation"].as_u64()),
        (Some("unchanged"), Some(2))
    );
    std::thread::sleep(std::time::Duration::from_millis(2500));
    let status = node.status().expect("a status");
    assert_eq!(
        (status["state"].as_str(), status["generation"].as_u64()),
        (Some("in_sync"), Some(2))
    );
}

#[test]
fn several_unconfirmed_changes_are_undone_together() {
    let first = confirming("1", "5m");
    let node = start(&first);
    for circuits in ["2", "3"] {
        write(&node, confirming(circuits, "5m"));
        assert_eq!(reload(&node, "read")["outcome"], "applied");
    }
    let verdict = reload(&node, "rollback");
    assert_eq!(verdict["outcome"], "rolled_back");
    assert_eq!(verdict["applied_sha256"], sha256(&first));
    assert_eq!(state(&node), "rolled_back");
}

#[test]
fn without_a_change_that_waits_a_rollback_goes_one_generation_back() {
    let (first, second) = (unwatched("1", ""), unwatched("2", ""));
    let node = start(&first);
    let verdict = reload(&node, "rollback");
    assert_eq!(verdict["outcome"], "failed", "{verdict:#}");
    assert!(codes(&verdict).is_empty() && verdict["cause"].is_string());
    assert_eq!(state(&node), "in_sync");

    write(&node, &second);
    assert_eq!(reload(&node, "read")["outcome"], "applied");
    let verdict = reload(&node, "rollback");
    assert_eq!(verdict["outcome"], "rolled_back");
    assert_eq!(verdict["applied_sha256"], sha256(&first));
    // Editing the file back says the same as the rollback did.
    write(&node, &first);
    assert_eq!(reload(&node, "read")["outcome"], "unchanged");
    assert_eq!(state(&node), "in_sync");
}

#[tokio::test]
async fn a_change_after_which_a_peer_is_still_connected_is_confirmed_by_that() {
    let listening = |circuits: &str| {
        confirming(circuits, "1s").replace("listen = []", "listen = [\"/ip4/127.0.0.1/tcp/0\"]")
    };
    let node = start(&listening("1"));
    let mut client = Client::by_hand();
    client
        .dial(&node.address("tcp").parse().expect("an address"))
        .await
        .expect("connects");
    node.until("it is connected", |status| {
        status["node"]["connections"]["peers"] == 1
    });
    write(&node, listening("2"));
    assert_eq!(reload(&node, "read")["outcome"], "applied");
    let status = node.until("it is confirmed", |status| {
        status["state"] != "pending_confirm"
    });
    assert_eq!(
        (status["state"].as_str(), status["generation"].as_u64()),
        (Some("in_sync"), Some(2))
    );
    drop(client);
}
