//! The apply engine, on the real program: what becomes of a file, and what never becomes of it.

mod circuits;
mod confirm;
mod crash;
mod disk;
mod lists;
mod rejected;
mod signals;
mod start;
mod tokens;
mod validate;

use crate::support::{
    files::{Style, file},
    node::NodeUnderTest,
    status::{applied, post, reload, sha256},
};
use serde_json::{Value, json};
use std::{fs, sync::Arc};

/// A node on this very file.
fn start(text: &str) -> NodeUnderTest {
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    fs::write(folder.path().join("edgevpn.toml"), text).expect("written");
    let node = NodeUnderTest::start_in(folder, &[]);
    node.until("the first file is applied", applied(text));
    node
}

/// The same under another program, which runs the node in circumstances of its own.
fn start_by(text: &str, wrapper: &[&str]) -> NodeUnderTest {
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    fs::write(folder.path().join("edgevpn.toml"), text).expect("written");
    let node = NodeUnderTest::start_by(folder, wrapper);
    node.until("the first file is applied", applied(text));
    node
}

/// Puts a text in the place of the file at once; nobody is told.
fn write(node: &NodeUnderTest, text: impl AsRef<[u8]>) {
    fs::write(node.path("beside"), text).expect("written");
    fs::rename(node.path("beside"), node.path("edgevpn.toml")).expect("renamed");
}

/// A file that is followed only when somebody asks, so that a test knows which verdict is whose.
fn unwatched(circuits: &str, more: &str) -> String {
    file(circuits, &format!("watch = \"off\"\n{more}"))
}

fn keys(verdict: &Value) -> Vec<&str> {
    let changes = verdict["changes"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    changes
        .iter()
        .filter_map(|change| change["key"].as_str())
        .collect()
}

fn codes(verdict: &Value) -> Vec<&str> {
    let findings = verdict["diagnostics"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    findings
        .iter()
        .filter_map(|finding| finding["code"].as_str())
        .collect()
}

#[test]
fn a_verdict_says_everything() {
    let node = start(&unwatched("1", ""));
    let text = unwatched("2", "history = 3\n").replace("connections = 64", "connections = 65");
    write(&node, &text);
    let verdict = reload(&node, "read");
    assert_eq!(verdict["outcome"], "applied", "{verdict:#}");
    assert_eq!(verdict["generation"], 2);
    assert_eq!(verdict["sha256"], sha256(&text));
    assert_eq!(verdict["applied_sha256"], sha256(&text));
    assert_eq!(verdict["trigger"], "command");
    assert_eq!(verdict["class"], "live");
    assert!(verdict["took_ms"].as_f64() > Some(0.0));
    assert_eq!(
        keys(&verdict),
        [
            "limits.connections",
            "relay.resources.max_circuits",
            "reload.history"
        ]
    );
    assert_eq!(verdict["changes"][1]["old"], 1);
    assert_eq!(verdict["changes"][1]["new"], 2);

    let line = node.until_logged(&["config applied", "\"generation\":2"]);
    for field in [
        "\"level\":\"INFO\"",
        "\"changes\":3",
        "\"class\":\"live\"",
        "\"trigger\":\"command\"",
        "\"keys\":\"limits.connections,relay.resources.max_circuits,reload.history\"",
        &format!("\"sha256\":\"{}\"", &sha256(&text)[..6]),
    ] {
        assert!(line.contains(field), "{field} in {line}");
    }
    assert_eq!(
        node.log_text().matches("config applied").count(),
        2,
        "{}",
        node.log_text()
    );
}

#[test]
fn a_comment_is_no_change_but_its_file_is_the_one_in_force() {
    let node = start(&unwatched("1", ""));
    let text = format!("# a word of explanation\n{}", unwatched("1", ""));
    write(&node, &text);
    let verdict = reload(&node, "read");
    assert_eq!(verdict["outcome"], "unchanged", "{verdict:#}");
    assert_eq!(verdict["generation"], 1);
    assert_eq!(verdict["applied_sha256"], sha256(&text));
    let status = node.status().expect("a status");
    assert_eq!(status["state"], "in_sync");
    assert_eq!(node.log_text().matches("config applied").count(), 1);
}

#[test]
fn what_needs_a_restart_refuses_the_whole_change() {
    let node = start(&unwatched("1", ""));
    write(
        &node,
        unwatched("2", "").replace("\"state\"", "\"elsewhere\""),
    );
    let verdict = reload(&node, "read");
    assert_eq!(verdict["outcome"], "refused", "{verdict:#}");
    assert_eq!(verdict["class"], "restart");
    let refused = verdict["refused_keys"].as_array().expect("keys");
    assert!(refused.contains(&json!("node.state_dir")), "{refused:?}");
    assert!(
        !refused.contains(&json!("relay.resources.max_circuits")),
        "{refused:?}"
    );
    assert_eq!(codes(&verdict), ["EV0802"]);
    let status = node.status().expect("a status");
    assert_eq!(
        (&status["state"], &status["generation"]),
        (&json!("rejected"), &json!(1))
    );

    write(&node, unwatched("3", ""));
    let verdict = reload(&node, "read");
    assert_eq!(verdict["outcome"], "applied");
    assert_eq!(
        verdict["changes"][0]["old"], 1,
        "compared with what is applied: {verdict:#}"
    );
    let origin = verdict["changes"][0]["origin"].as_str().expect("an origin");
    assert!(origin.starts_with("edgevpn.toml:"), "{origin}");
}

#[test]
fn what_costs_more_than_max_impact_refuses_the_whole_change() {
    let node = start(&unwatched("1", "max_impact = \"live\"\n"));
    let rebind = |more: &str| {
        unwatched("2", more).replace("listen = []", "listen = [\"/ip4/127.0.0.1/tcp/0\"]")
    };
    write(&node, rebind("max_impact = \"live\"\n"));
    let verdict = reload(&node, "read");
    assert_eq!(verdict["outcome"], "refused", "{verdict:#}");
    assert_eq!(verdict["refused_keys"], json!(["transport.listen"]));
    assert_eq!(codes(&verdict), ["EV0801"]);
    let line = rebind("")
        .lines()
        .position(|line| line.contains("listen = [\""))
        .expect("a line")
        + 1;
    assert_eq!(
        verdict["diagnostics"][0]["location"]["line"], line,
        "{verdict:#}"
    );
    // Not by a file that raises the bound for itself either.
    write(&node, rebind(""));
    assert_eq!(reload(&node, "read")["outcome"], "refused");

    write(&node, unwatched("2", ""));
    assert_eq!(reload(&node, "read")["outcome"], "applied");
    write(&node, rebind(""));
    let verdict = reload(&node, "read");
    assert_eq!(verdict["outcome"], "applied", "{verdict:#}");
    assert_eq!(verdict["class"], "rebind");
}

#[test]
fn an_address_that_is_taken_fails_the_whole_change() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let node = start(&unwatched("1", ""));
    let text = unwatched("2", "").replace(
        "listen = []",
        &format!("listen = [\"/ip4/127.0.0.1/tcp/0\", \"/ip4/127.0.0.1/tcp/{port}\"]"),
    );
    write(&node, &text);
    let verdict = reload(&node, "read");
    assert_eq!(verdict["outcome"], "failed", "{verdict:#}");
    assert!(
        verdict["cause"]
            .as_str()
            .expect("a cause")
            .contains(&port.to_string())
    );
    let status = node.status().expect("a status");
    assert_eq!(status["generation"], 1);
    assert_eq!(
        status["node"]["listening"],
        json!([]),
        "nothing is left of the attempt"
    );

    drop(taken);
    let verdict = reload(&node, "read");
    assert_eq!(verdict["outcome"], "applied", "{verdict:#}");
    assert_eq!(
        keys(&verdict),
        ["relay.resources.max_circuits", "transport.listen"]
    );
}

#[test]
fn a_plan_says_what_a_reload_would_do_and_does_nothing() {
    let node = start(&unwatched("1", ""));
    let plan = |text: &str| {
        post(
            &node,
            "/v1/plan",
            &json!({ "name": "new.toml", "text": text }),
        )
    };
    let planned = plan(&unwatched("2", ""));
    assert_eq!(
        planned["plan"]["changes"][0]["key"], "relay.resources.max_circuits",
        "{planned:#}"
    );
    assert_eq!(planned["held_back"], Value::Null);
    assert!(plan(&unwatched("2", "").replace("\"state\"", "\"other\""))["held_back"].is_string());
    assert!(
        plan("version = 1\n")["held_back"]
            .as_str()
            .expect("a reason")
            .contains("half-written")
    );
    let planned = plan("version = 2\n");
    assert_eq!(planned["diagnostics"][0]["code"], "EV0702", "{planned:#}");
    assert_eq!(planned["diagnostics"][0]["location"]["file"], "new.toml");
    assert_eq!(plan(&unwatched("1", ""))["plan"]["changes"], json!([]));
    assert_eq!(node.status().expect("a status")["generation"], 1);
}

#[test]
fn a_thousand_swaps_are_a_thousand_generations() {
    let node = start(&unwatched("1", ""));
    let texts = [unwatched("1", ""), unwatched("2", "")];
    let mut slowest: Vec<f64> = Vec::new();
    for swap in 1..=1000 {
        let text = &texts[swap % 2];
        write(&node, text);
        let verdict = reload(&node, "read");
        assert_eq!(verdict["outcome"], "applied", "{verdict:#}");
        assert_eq!(verdict["generation"], swap + 1);
        assert_eq!(verdict["applied_sha256"], sha256(text));
        slowest.push(verdict["took_ms"].as_f64().expect("a time"));
    }
    slowest.sort_by(f64::total_cmp);
    eprintln!("99 of 100 swaps took at most {:.1} ms", slowest[989]);
    Style::RenamedOver.write(node.folder.path(), &texts[1]);
}
