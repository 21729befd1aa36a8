//! Files that are not applied: nothing happens, it is said why, and the next good one is.

use super::{codes, start, start_by, unwatched, write};
use crate::support::{
    files::{Style, file},
    node::NodeUnderTest,
    status::{applied, is_root, outcome, reload, sha256},
};
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    process::Signal,
};
use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt, symlink},
        net::UnixListener,
    },
    path::Path,
    time::{Duration, Instant},
};

/// The next good file is applied within this.
const SOON: Duration = Duration::from_secs(2);

fn is_rejected_then_a_good_one_applies(code: &str, put: impl FnOnce(&Path)) {
    node_rejects_then_applies_a_good_one(&start(&file("1", "")), code, put);
}

/// `node` runs `file("1", "")`.
fn node_rejects_then_applies_a_good_one(node: &NodeUnderTest, code: &str, put: impl FnOnce(&Path)) {
    let path = node.path("edgevpn.toml");
    put(&path);
    let status = node.until("it is rejected", |status| outcome(status) == "rejected");
    let verdict = &status["last_attempt"];
    assert_eq!(status["state"], "rejected");
    assert_eq!(status["generation"], 1);
    assert_eq!(status["applied_sha256"], sha256(file("1", "")));
    assert!(codes(verdict).contains(&code), "{verdict:#}");
    let finding = verdict["diagnostics"][0].clone();
    assert_eq!(finding["location"]["file"], "edgevpn.toml", "{finding:#}");

    let began = Instant::now();
    let _ = fs::remove_dir(&path);
    let _ = fs::remove_file(&path);
    let good = file("2", "");
    Style::RenamedOver.write(node.folder.path(), &good);
    let status = node.until("the good one is applied", applied(&good));
    assert!(began.elapsed() < SOON, "after {:?}", began.elapsed());
    assert_eq!(
        (status["state"].as_str(), status["generation"].as_u64()),
        (Some("in_sync"), Some(2))
    );
}

fn text_is_rejected(code: &str, text: impl AsRef<[u8]>) {
    is_rejected_then_a_good_one_applies(code, |path| fs::write(path, text).expect("written"));
}

#[test]
fn an_empty_file() {
    text_is_rejected("EV0701", "");
}

#[test]
fn a_file_that_is_no_toml() {
    text_is_rejected("EV0001", file("1", "").replace("[acl]", "[acl"));
}

#[test]
fn an_unknown_key() {
    text_is_rejected("EV0101", file("1", "hsitory = 3\n"));
}

#[test]
fn a_key_set_twice() {
    text_is_rejected("EV0002", file("1", "settle = \"1s\"\n"));
}

#[test]
fn a_value_of_the_wrong_type() {
    text_is_rejected("EV0102", file("\"many\"", ""));
}

#[test]
fn a_value_out_of_range() {
    text_is_rejected("EV0103", file("-1", ""));
}

#[test]
fn bytes_that_are_no_text() {
    text_is_rejected("EV0003", [file("1", "").as_bytes(), b"# \xff\n"].concat());
}

#[test]
fn utf_16() {
    let wide: Vec<u8> = file("1", "")
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    text_is_rejected("EV0003", [&[0xff, 0xfe], &wide[..]].concat());
}

#[test]
fn a_nul_byte() {
    text_is_rejected("EV0003", file("1", "") + "# \0\n");
}

#[test]
fn ten_mebibytes() {
    text_is_rejected("EV0202", file("1", "") + &"#\n".repeat(5 << 20));
}

#[test]
fn a_list_that_does_not_exist() {
    let list = "[[acl.list]]\nname = \"ops\"\naction = \"allow\"\nfile = \"no such list\"\n";
    text_is_rejected("EV0501", file("1", list));
}

#[test]
fn a_file_that_is_gone() {
    is_rejected_then_a_good_one_applies("EV0201", |path| fs::remove_file(path).expect("removed"));
}

#[test]
fn a_directory() {
    is_rejected_then_a_good_one_applies("EV0201", |path| {
        fs::remove_file(path).expect("removed");
        fs::create_dir(path).expect("created");
    });
}

#[test]
fn a_fifo_that_nobody_writes_to() {
    is_rejected_then_a_good_one_applies("EV0201", |path| {
        fs::remove_file(path).expect("removed");
        mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("made");
    });
}

#[test]
fn a_socket() {
    is_rejected_then_a_good_one_applies("EV0201", |path| {
        fs::remove_file(path).expect("removed");
        drop(UnixListener::bind(path).expect("bound"));
    });
}

#[test]
fn a_circle_of_links() {
    is_rejected_then_a_good_one_applies("EV0201", |path| {
        fs::remove_file(path).expect("removed");
        symlink("edgevpn.toml", path).expect("linked");
    });
}

#[test]
fn a_file_without_permission() {
    let node = if is_root() {
        // Root reads every file, unless it has given that up.
        let without = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"];
        start_by(&file("1", ""), &without)
    } else {
        start(&file("1", ""))
    };
    node_rejects_then_applies_a_good_one(&node, "EV0201", |path| {
        fs::set_permissions(path, fs::Permissions::from_mode(0o000)).expect("changed");
    });
}

#[test]
fn a_file_that_looks_half_written() {
    for lost in [
        "[acl]\nreserve = \"anyone\"\nrefresh = \"10m\"\n",
        "[limits]\nconnections = 64\n",
    ] {
        assert!(file("1", "").contains(lost));
        text_is_rejected("EV0203", file("1", "").replace(lost, ""));
    }
    text_is_rejected(
        "EV0203",
        file("1", "").split("[reload]").next().expect("a beginning"),
    );
}

#[test]
fn whoever_insists_gets_a_file_that_looks_half_written() {
    let node = start(&unwatched("1", ""));
    let text = unwatched("1", "").replace("[limits]\nconnections = 64\n", "");
    write(&node, &text);
    let verdict = reload(&node, "read");
    assert_eq!(verdict["outcome"], "rejected");
    assert_eq!(codes(&verdict), ["EV0203"]);
    let verdict = reload(&node, "force");
    assert_eq!(verdict["outcome"], "applied", "{verdict:#}");
    assert_eq!(verdict["applied_sha256"], sha256(&text));
}

#[test]
fn a_file_cut_anywhere_is_applied_as_a_whole_or_not_at_all() {
    let whole = unwatched("64", "");
    let node = start(&whole);
    let harmless = whole.find("[reload]").expect("the last section");
    for end in 0..whole.len() {
        let cut = &whole[..end];
        write(&node, cut);
        let verdict = reload(&node, "read");
        match verdict["outcome"].as_str() {
            Some("rejected") => {
                assert_eq!(verdict["applied_sha256"], sha256(&whole), "cut at {end}")
            }
            // Past the header of the last section nothing tells a cut file from an edited one but the writer's close.
            Some("applied" | "unchanged") if end > harmless => {
                assert_eq!(verdict["applied_sha256"], sha256(cut), "cut at {end}");
                write(&node, &whole);
                let back = reload(&node, "force");
                assert_eq!(back["applied_sha256"], sha256(&whole), "{back:#}");
            }
            _ => panic!("cut at {end}: {verdict:#}"),
        }
    }
}

#[test]
fn after_a_rejected_file_another_good_one_is_applied_and_the_old_one_is_in_sync() {
    let node = start(&file("1", ""));
    let folder = node.folder.path().to_owned();
    for round in 2..5 {
        Style::RenamedOver.write(&folder, &file("\"bad\"", &format!("# {round}\n")));
        node.until("it is rejected", |status| outcome(status) == "rejected");
        let good = file(&round.to_string(), "");
        Style::RenamedOver.write(&folder, &good);
        let status = node.until("the good one is applied", applied(&good));
        assert_eq!(status["generation"], round);

        Style::RenamedOver.write(&folder, &file("\"bad\"", &format!("# {round} again\n")));
        node.until("it is rejected", |status| outcome(status) == "rejected");
        Style::RenamedOver.write(&folder, &good);
        let status = node.until("it is in sync", |status| status["state"] == "in_sync");
        assert_eq!(status["generation"], round);
    }
}

#[test]
fn a_rejection_is_told_once() {
    let node = start(&unwatched("1", ""));
    write(&node, unwatched("\"bad\"", ""));
    for _ in 0..5 {
        assert_eq!(reload(&node, "read")["outcome"], "rejected");
    }
    assert_eq!(warnings(&node), 1, "{}", node.log_text());
    write(&node, unwatched("\"worse\"", ""));
    assert_eq!(reload(&node, "read")["outcome"], "rejected");
    node.signal(Signal::HUP);
    node.until("the signal is followed", |status| {
        status["last_attempt"]["trigger"] == "signal"
    });
    assert_eq!(warnings(&node), 2, "{}", node.log_text());
    let second = sha256(unwatched("\"worse\"", ""));
    let line = node.until_logged(&["config rejected", &second[..6]]);
    for field in [
        "\"level\":\"WARN\"",
        "\"keeps\":1",
        "\"errors\":1",
        "edgevpn.toml:8:16",
        "EV0102",
    ] {
        assert!(line.contains(field), "{field} in {line}");
    }
}

fn warnings(node: &NodeUnderTest) -> usize {
    let log = node.log_text();
    log.lines()
        .filter(|line| line.contains("config rejected\"") && line.contains("WARN"))
        .count()
}
