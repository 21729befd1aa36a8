//! `validate` and a reload are one pipeline: the same verdict on every file.

use super::{codes, start, unwatched, write};
use crate::support::{node::command, status::reload};
use std::collections::BTreeSet;

/// Every line is at times left out, at times written wrong.
const LINES: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "version = 1",
            "version = 1",
            "version = 1",
            "version = 2",
            "",
        ],
    ),
    (
        "",
        &[
            "node.name = \"hub\"",
            "node.name = 7",
            "node.nmae = \"hub\"",
            "",
        ],
    ),
    (
        "",
        &[
            "transport.listen = []",
            "transport.listen = [\"/ip4/127.0.0.1/tcp/0\"]",
            "transport.listen = [\"nowhere\"]",
        ],
    ),
    (
        "",
        &[
            "api.listen = \"unix:api.sock\"",
            "api.listen = \"unix:api.sock\"",
        ],
    ),
    (
        "[relay]",
        &[
            "service = true",
            "service = \"yes\"",
            "on_shrink = \"evict\"",
            "on_shrink = \"shrink\"",
            "",
        ],
    ),
    (
        "[relay.resources]",
        &[
            "max_data = \"1GiB\"",
            "max_data = 0",
            "max_duration = \"30\"",
            "max_circuits = 9",
            "",
        ],
    ),
    (
        "[acl]",
        &[
            "reserve = \"anyone\"",
            "reserve = \"members\"",
            "deny = [\"192.0.2.0/33\"]",
            "deny = [\"192.0.2.7\"]",
        ],
    ),
    (
        "",
        &[
            "",
            "",
            "allow = [\"192.0.2.7\"]",
            "mode = \"shadow\"\nmode = \"enforce\"",
        ],
    ),
    (
        "[limits]",
        &[
            "connections = 64",
            "connections = 0",
            "memory = \"64MiB\"",
            "pending = 1.5",
        ],
    ),
    (
        "[reload]",
        &[
            "watch = \"off\"",
            "watch = \"off\"\nconfirm = \"1ms\"",
            "watch = \"off\"\nhistory = 3",
            "[reload",
        ],
    ),
];

/// A file for each number, mostly with a fault or two.
fn text(mut number: u64) -> String {
    let mut text = String::new();
    for (header, lines) in LINES {
        // A linear congruential step (Knuth, MMIX): the same files in every run.
        number = number
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        // Two of three lines are the first, which is good.
        let random = (number >> 33) as usize;
        let line = if !random.is_multiple_of(3) {
            lines[0]
        } else {
            lines[random / 3 % lines.len()]
        };
        text += &format!("{header}\n{line}\n");
    }
    text.replace("version = 1\n", "version = 1\nnode.state_dir = \"state\"\n")
}

#[test]
fn two_hundred_files_get_the_same_verdict_from_both() {
    let node = start(&unwatched("1", ""));
    let mut seen = BTreeSet::new();
    for number in 0..200 {
        let text = text(number);
        write(&node, &text);
        let offline = command(node.folder.path())
            .args(["validate", "--format", "json", "edgevpn.toml"])
            .output()
            .expect("the program starts");
        let verdict = reload(&node, "force");
        let outcome = verdict["outcome"].as_str().expect("an outcome");
        let expected = if outcome == "rejected" { 1 } else { 0 };
        assert_eq!(
            offline.status.code(),
            Some(expected),
            "{outcome}\n{text}\n{verdict:#}"
        );
        for code in codes(&verdict)
            .into_iter()
            .filter(|code| !code.starts_with("EV08"))
        {
            assert!(
                String::from_utf8_lossy(&offline.stdout).contains(code),
                "{code}\n{text}"
            );
        }
        seen.insert(outcome.to_owned());
    }
    assert!(
        seen.contains("applied") && seen.contains("rejected"),
        "{seen:?}"
    );
}
