//! Token files: watched like the configuration, refused when others can read them, and never shown.

use super::{start, write};
use crate::support::{
    files::file,
    node::{NodeUnderTest, command},
};
use edgevpn::wire::Token;
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

/// Members nowhere but here: nothing is looked for on the networks of this machine.
const ALONE: &str = "[discovery]\nmdns = false\ndht = false\n";

fn token() -> Token {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let seed = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut count = seed;
    Token::generate(360, |bytes| {
        for byte in bytes {
            count = count.wrapping_mul(31).wrapping_add(seed);
            *byte = count;
        }
    })
}

/// Replaces the file, as `install -m` does.
fn put(path: &Path, token: &str, mode: u32) {
    let beside = path.with_extension("new");
    fs::write(&beside, token).expect("written");
    fs::set_permissions(&beside, fs::Permissions::from_mode(mode)).expect("set");
    fs::rename(&beside, path).expect("renamed");
}

fn in_network(name: &str) -> String {
    format!("[network]\ntoken_file = \"{name}\"\n{ALONE}")
}

fn member(token: &Token) -> NodeUnderTest {
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    put(&folder.path().join("site.token"), &token.to_base64(), 0o600);
    let text = file("1", &in_network("site.token"));
    fs::write(folder.path().join("edgevpn.toml"), text).expect("written");
    let node = NodeUnderTest::start_in(folder, &[]);
    node.until("the file is applied", |status| status["generation"] == 1);
    node
}

/// Whether a part of the token that no other text has is somewhere in what can be read.
fn shows(text: &str, token: &Token) -> bool {
    let base64 = token.to_base64();
    let parts = [&token.room, &token.dht.key, &token.crypto.key];
    text.contains(&base64[20..60]) || parts.iter().any(|part| text.contains(part.as_str()))
}

fn changed(status: &Value) -> &Value {
    &status["last_attempt"]["changes"][0]
}

#[test]
fn a_token_that_changes_is_a_change_of_network() {
    let (first, second) = (token(), token());
    let node = member(&first);
    put(&node.path("site.token"), &second.to_base64(), 0o600);
    let status = node.until("the new token", |status| status["generation"] == 2);
    let change = changed(&status);
    assert_eq!(change["key"], "network.token");
    assert_eq!(change["class"], "rejoin");
    assert_eq!(change["old"], first.fingerprint().to_string());
    assert_eq!(change["new"], second.fingerprint().to_string());
    assert_eq!(status["state"], "in_sync");
}

#[test]
fn a_token_that_goes_bad_is_told_and_the_node_stays_in_its_network() {
    let token = token();
    let node = member(&token);
    let path = node.path("site.token");
    let rejected = |code: &str| {
        let status = node.until(code, |status| {
            status["last_attempt"]["diagnostics"][0]["code"] == code
        });
        assert_eq!(status["last_attempt"]["outcome"], "rejected", "{status:#}");
        assert_eq!(status["generation"], 1);
        assert!(!shows(&status.to_string(), &token));
    };
    put(&path, &token.to_base64()[..200], 0o600);
    rejected("EV0303");
    fs::remove_file(&path).expect("removed");
    rejected("EV0301");
    put(&path, &token.to_base64(), 0o644);
    rejected("EV0302");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
    node.until("it is well again", |status| status["state"] == "in_sync");
}

#[test]
fn another_place_for_the_same_token_changes_nothing() {
    let token = token();
    let node = member(&token);
    put(&node.path("other.token"), &token.to_yaml(), 0o600);
    write(&node, file("1", &in_network("other.token")));
    let status = node.until("it is looked at", |status| {
        status["last_attempt"]["outcome"] == "unchanged"
    });
    assert_eq!(status["generation"], 1);
    let watched = status["watcher"]["files"].to_string();
    assert!(watched.contains("other.token") && !watched.contains("site.token"));
}

#[test]
fn a_network_that_costs_more_than_allowed_is_not_left() {
    let (first, second) = (token(), token());
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    put(&folder.path().join("site.token"), &first.to_base64(), 0o600);
    let text = file(
        "1",
        &format!("max_impact = \"rebind\"\n{}", in_network("site.token")),
    );
    fs::write(folder.path().join("edgevpn.toml"), text).expect("written");
    let node = NodeUnderTest::start_in(folder, &[]);
    node.until("the file is applied", |status| status["generation"] == 1);
    put(&node.path("site.token"), &second.to_base64(), 0o600);
    let status = node.until("it is refused", |status| {
        status["last_attempt"]["outcome"] == "refused"
    });
    assert_eq!(status["last_attempt"]["refused_keys"][0], "network.token");
    assert_eq!(status["generation"], 1);
}

#[test]
fn a_file_that_lost_its_network_is_held_back() {
    let node = member(&token());
    write(&node, file("1", ""));
    let status = node.until("it is held back", |status| {
        status["last_attempt"]["diagnostics"][0]["code"] == "EV0203"
    });
    assert_eq!(status["generation"], 1);
}

/// An inline token is the worst case: it stands in the very text that is checked, kept and shown.
#[test]
fn no_token_reaches_the_log_the_status_the_history_or_a_plan() {
    let (first, second) = (token(), token());
    let inline = |token: &Token, more: &str| {
        let token = token.to_base64();
        file(
            "1",
            &format!("[network]\ntoken = \"{token}\"{more}\n{ALONE}"),
        )
    };
    let node = start(&inline(&first, ""));
    write(&node, inline(&second, ""));
    node.until("the new token", |status| status["generation"] == 2);
    write(&node, inline(&first, " token = \"again\""));
    let broken = node.until("it is rejected", |status| {
        status["last_attempt"]["outcome"] == "rejected"
    });
    fs::write(node.path("plan.toml"), inline(&first, "")).expect("written");
    let folder = node.folder.clone();
    let mut told = vec![
        broken.to_string(),
        run(&node, &["status", "--socket", "run/api.sock"]),
        run(&node, &["plan", "--socket", "run/api.sock", "plan.toml"]),
        run(&node, &["validate", "edgevpn.toml", "plan.toml"]),
        run(&node, &["reload", "--wait", "--socket", "run/api.sock"]),
        node.log_text(),
    ];
    assert!(node.stop().success());
    let kept = everything_below(&folder.path().join("state/history"));
    let name = second.fingerprint().to_string();
    assert!(kept.contains(&name), "the applied file is kept: {kept}");
    told.push(kept);
    told.push(everything_below(&folder.path().join("state")));
    for text in told {
        assert!(!text.is_empty());
        for token in [&first, &second] {
            assert!(!shows(&text, token), "{text}");
        }
    }
}

#[test]
fn the_last_good_file_comes_back_with_the_token_that_stands_in_the_broken_one() {
    let token = token();
    let text = file(
        "1",
        &format!("[network]\ntoken = \"{}\"\n{ALONE}", token.to_base64()),
    );
    let node = start(&text);
    let folder = node.folder.clone();
    assert!(node.stop().success(), "what is kept is written by then");
    fs::write(
        folder.path().join("edgevpn.toml"),
        text.replace("max_circuits = 1", "max_circuits = "),
    )
    .expect("written");
    let node = NodeUnderTest::start_in(folder, &["--on-invalid=lkg"]);
    let status = node.until("it runs", |status| status["state"] == "last_known_good");
    let name = token.fingerprint().to_string();
    assert_eq!(status["node"]["network"]["fingerprint"], name, "{status:#}");
}

#[test]
fn a_credential_of_systemd_and_a_variable_name_the_token() {
    let token = token();
    let folder = tempfile::tempdir().expect("a folder");
    put(
        &folder.path().join("edgevpn.token"),
        &token.to_base64(),
        0o400,
    );
    let check = |section: &str, variable: (&str, &str)| {
        fs::write(folder.path().join("edgevpn.toml"), file("1", section)).expect("written");
        let mut program = command(folder.path());
        program
            .args(["validate", "edgevpn.toml"])
            .env(variable.0, variable.1);
        program
            .output()
            .expect("the program starts")
            .status
            .success()
    };
    let credentials = folder.path().display().to_string();
    let section = "[network]\ntoken_credential = \"edgevpn.token\"\n";
    assert!(check(section, ("CREDENTIALS_DIRECTORY", &credentials)));
    assert!(!check(section, ("CREDENTIALS_DIRECTORY", "")));
    let section = "[network]\ntoken_env = \"SITE_TOKEN\"\n";
    assert!(check(section, ("SITE_TOKEN", &token.to_base64())));
    assert!(check("", ("EDGEVPNTOKEN", &token.to_base64())));
    assert!(!check("", ("EDGEVPNTOKEN", "nonsense")));
}

fn run(node: &NodeUnderTest, arguments: &[&str]) -> String {
    let output = command(node.folder.path())
        .args(arguments)
        .output()
        .expect("the program starts");
    let [out, err] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    out + &err
}

fn everything_below(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).expect("readable").flatten() {
        let path = entry.path();
        if path.is_dir() {
            text.push_str(&everything_below(&path));
        } else {
            text.push_str(&String::from_utf8_lossy(
                &fs::read(&path).expect("readable"),
            ));
        }
    }
    text
}
