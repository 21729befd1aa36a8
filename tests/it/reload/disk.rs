//! A state directory that takes nothing.

use super::{start, unwatched, write};
use crate::support::{
    files::run,
    node::NodeUnderTest,
    skip::root_for,
    status::{applied, reload},
};
use std::{fs, process::Command, sync::Arc};

fn kept(node: &NodeUnderTest) -> usize {
    let files = fs::read_dir(node.path("state/history")).expect("a directory");
    files
        .flatten()
        .filter(|file| file.path().extension().is_some_and(|kind| kind == "toml"))
        .count()
}

#[test]
fn as_many_applied_files_are_kept_as_wanted() {
    let node = start(&unwatched("1", "history = 3\n"));
    for circuits in 2..8 {
        let text = unwatched(&circuits.to_string(), "history = 3\n");
        write(&node, &text);
        assert_eq!(reload(&node, "read")["outcome"], "applied");
        let newest = || {
            let mut files: Vec<_> = fs::read_dir(node.path("state/history"))
                .into_iter()
                .flatten()
                .flatten()
                .map(|file| file.path())
                .collect();
            files.retain(|file| file.extension().is_some_and(|kind| kind == "toml"));
            files.sort();
            files.last().and_then(|file| fs::read(file).ok())
        };
        node.until("it is kept", |_| {
            newest().as_deref() == Some(text.as_bytes())
        });
    }
    node.until("the oldest are gone", |_| kept(&node) == 3);
}

#[test]
fn a_node_on_a_full_disk_stays_up_says_so_and_recovers() {
    if !root_for("a full disk") {
        return;
    }
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    let state = folder.path().join("state");
    fs::create_dir(&state).expect("created");
    run(Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
        .arg(&state));
    let _mount = Mounted(state.clone());
    fs::write(folder.path().join("edgevpn.toml"), unwatched("1", "")).expect("written");
    let node = NodeUnderTest::start_in(folder, &[]);
    node.until("the file is applied", applied(unwatched("1", "")));
    node.until("it is kept", |_| {
        state.join("history/0000000001.json").exists()
    });

    // Fills what is left, to the last byte.
    let mut size = 64 << 10;
    while size > 0 {
        let _ = fs::write(state.join(format!("ballast {size}")), vec![0; size]);
        size /= 2;
    }
    let text = unwatched("2", "");
    write(&node, &text);
    assert_eq!(reload(&node, "read")["outcome"], "applied");
    let status = node.until("it says so", |status| {
        status["problems"]
            .as_array()
            .is_some_and(|problems| !problems.is_empty())
    });
    assert_eq!(
        (status["generation"].as_u64(), status["state"].as_str()),
        (Some(2), Some("in_sync"))
    );
    assert!(
        status["problems"][0]
            .as_str()
            .expect("a text")
            .contains("free some space"),
        "{status:#}"
    );
    assert!(node.until_logged(&["cannot be kept"]).contains("WARN"));
    write(&node, unwatched("3", ""));
    assert_eq!(reload(&node, "read")["outcome"], "applied");

    for file in fs::read_dir(&state).expect("readable").flatten() {
        if file.file_name().to_string_lossy().starts_with("ballast") {
            fs::remove_file(file.path()).expect("removed");
        }
    }
    node.until("it recovers", |status| {
        status["problems"].as_array().is_some_and(Vec::is_empty)
    });
    node.until_logged(&["kept again"]);
    assert_eq!(
        node.log_text().matches("cannot be kept").count(),
        1,
        "{}",
        node.log_text()
    );
    drop(node);
}

struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(&self.0));
    }
}
