//! Every way to write a file × valid, invalid and unchanged content, on the real program; and events that do not arrive.

use crate::support::{
    files::{Layout, Style, file, run},
    node::NodeUnderTest,
    skip::{root_for, skip},
    status::{applied, attempts, outcome, sha256},
};
use std::{
    fs,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

/// Longer than the node needs to notice something, settle and look.
const LONG_ENOUGH: Duration = Duration::from_millis(500);

fn start(layout: Layout, text: &str) -> NodeUnderTest {
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    layout.arrange(folder.path(), text);
    let node = NodeUnderTest::start_in(folder, &[]);
    node.until("the first file is applied", applied(text));
    node
}

/// Nothing is attempted because of what `write` does.
fn nothing_follows(node: &NodeUnderTest, write: impl FnOnce()) {
    let attempts_before = attempts(&node.status().expect("a status"));
    write();
    std::thread::sleep(LONG_ENOUGH);
    let status = node.status().expect("a status");
    assert_eq!(
        attempts(&status),
        attempts_before,
        "{status:#?}\n{}",
        node.log_text()
    );
}

fn is_followed(style: Style) {
    let node = start(style.layout(), &file("1", ""));
    let folder = node.folder.path().to_owned();
    for round in 2..5 {
        let valid = file(&round.to_string(), "");
        style.write(&folder, &valid);
        let status = node.until("the valid file is applied", applied(&valid));
        let generation = &status["generation"];

        nothing_follows(&node, || style.write(&folder, &valid));

        let invalid = file(&format!("\"{round}\""), "");
        style.write(&folder, &invalid);
        let status = node.until("the invalid file is rejected", |status| {
            outcome(status) == "rejected" && status["last_attempt"]["sha256"] == sha256(&invalid)
        });
        assert_eq!(&status["generation"], generation, "{status:#?}");
        assert_eq!(status["applied_sha256"], sha256(&valid));
        assert_eq!(status["state"], "rejected");
    }
    let status = node.status().expect("a status");
    assert_eq!(status["watcher"]["healthy"], true, "{status:#?}");
    assert_eq!(status["generation"], 4);
}

#[test]
fn a_file_renamed_over_is_followed() {
    is_followed(Style::RenamedOver);
}

#[test]
fn a_file_written_in_place_is_followed() {
    is_followed(Style::InPlace);
}

#[test]
fn a_file_written_slowly_is_read_when_it_is_complete() {
    is_followed(Style::InParts);
}

#[test]
fn a_copied_file_is_followed() {
    is_followed(Style::Copied);
}

#[test]
fn a_file_edited_by_sed_is_followed() {
    is_followed(Style::Sed);
}

#[test]
fn a_file_deleted_and_made_again_is_followed() {
    is_followed(Style::MadeAgain);
}

#[test]
fn a_file_written_by_another_name_is_followed() {
    is_followed(Style::ByAnotherName);
}

#[test]
fn a_kubernetes_volume_is_followed() {
    is_followed(Style::VolumeSwapped);
}

#[test]
fn a_git_worktree_is_followed() {
    is_followed(Style::WorktreeSwapped);
}

#[test]
fn a_replaced_directory_is_followed() {
    is_followed(Style::DirectoryReplaced);
}

#[test]
fn a_replaced_directory_above_is_followed() {
    is_followed(Style::DirectoryAboveReplaced);
}

#[test]
fn a_hundred_volume_swaps_are_all_followed() {
    let node = start(Layout::Kubernetes, &file("1", ""));
    for round in 2..=101 {
        let text = file(&round.to_string(), "");
        Style::VolumeSwapped.write(node.folder.path(), &text);
        node.until("the swap is applied", applied(&text));
    }
}

#[test]
fn touch_and_chmod_are_no_changes() {
    let node = start(Layout::Plain, &file("1", ""));
    let path = node.path("edgevpn.toml");
    nothing_follows(&node, || run(Command::new("touch").arg(&path)));
    nothing_follows(&node, || run(Command::new("chmod").arg("600").arg(&path)));
}

#[test]
fn a_list_file_is_followed_like_the_file_itself() {
    let list = "\n[[acl.list]]\nname = \"ops\"\naction = \"deny\"\nfile = \"deny.d/ops.txt\"\n";
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    fs::create_dir(folder.path().join("deny.d")).expect("created");
    let path = folder.path().join("deny.d/ops.txt");
    fs::write(&path, "192.0.2.0/24\n").expect("written");
    Layout::Plain.arrange(folder.path(), &file("1", list));
    let node = NodeUnderTest::start_in(folder, &[]);
    node.until("the file is applied", applied(&file("1", list)));

    for round in 1..4 {
        fs::write(
            &path,
            format!("192.0.2.0/24 # round {round}\n198.51.{round}.0/24\n"),
        )
        .expect("written");
        let status = node.until("the list is applied", |status| {
            status["generation"] == round + 1
        });
        let change = &status["last_attempt"]["changes"][0];
        assert_eq!(change["key"], "acl.list.ops");
        assert_eq!(
            change["added"]["first"][0]["entry"],
            format!("198.51.{round}.0/24")
        );

        // A comment changes nothing that counts.
        let before = fs::read(&path).expect("readable");
        fs::write(&path, [&before[..], b"# a comment\n"].concat()).expect("written");
        node.until("the comment is seen", |status| {
            outcome(status) == "unchanged"
        });

        fs::write(&path, "not an entry\n").expect("written");
        let status = node.until("the list is rejected", |status| {
            outcome(status) == "rejected"
        });
        assert_eq!(status["generation"], round + 1);
    }
}

#[test]
fn a_storm_of_writes_causes_few_reloads_and_its_last_content_wins() {
    let node = start(Layout::Plain, &file("1", ""));
    let until = Instant::now() + Duration::from_secs(3);
    let mut number = 2;
    while Instant::now() < until {
        let style = if number % 2 == 0 {
            Style::RenamedOver
        } else {
            Style::InPlace
        };
        style.write(node.folder.path(), &file(&number.to_string(), ""));
        number += 1;
    }
    let last = file(&number.to_string(), "");
    Style::RenamedOver.write(node.folder.path(), &last);
    let status = node.until("the last content is applied", applied(&last));
    assert!(number > 100, "{number} writes are no storm");
    assert!(attempts(&status) <= 20, "{status:#?}");
}

#[test]
fn how_to_watch_follows_the_file() {
    let node = start(Layout::Plain, &file("1", ""));
    let polled = file("2", "").replace(
        "poll_interval = \"10m\"",
        "poll_interval = \"100ms\"\nwatch = \"poll\"",
    );
    Style::RenamedOver.write(node.folder.path(), &polled);
    let status = node.until("polling is applied", applied(&polled));
    let method = status["watcher"]["method"].as_str().expect("a method");
    assert!(
        !method.contains("inotify") && method.contains("poll"),
        "{method}"
    );

    let off = polled.replace("\"poll\"", "\"off\"");
    Style::RenamedOver.write(node.folder.path(), &off);
    node.until("polling sees that it is off", applied(&off));
    nothing_follows(&node, || {
        Style::RenamedOver.write(node.folder.path(), &file("3", ""))
    });
    node.signal(rustix::process::Signal::HUP);
    node.until("a signal is enough", applied(&file("3", "")));
    Style::RenamedOver.write(node.folder.path(), &file("4", ""));
    node.until("events are back", applied(&file("4", "")));
}

#[test]
fn a_file_mounted_by_itself_is_told_apart() {
    if !root_for("a file mounted by itself") {
        return;
    }
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    let outside = folder.path().join("outside.toml");
    fs::write(&outside, file("1", "")).expect("written");
    Layout::Plain.arrange(folder.path(), "");
    let mount = Mount::bind(&outside, &folder.path().join("edgevpn.toml"));
    let node = NodeUnderTest::start_in(folder, &[]);
    node.until("the mounted file is applied", applied(&file("1", "")));

    fs::write(&outside, file("2", "")).expect("written");
    node.until(
        "writing in place is seen through the mount",
        applied(&file("2", "")),
    );

    let beside = node.path("beside");
    fs::write(&beside, file("3", "")).expect("written");
    fs::rename(beside, &outside).expect("renamed");
    let status = node.until("the node says why it cannot see more", |status| {
        status["state"] == "watch_degraded"
    });
    let problem = status["watcher"]["problem"].as_str().expect("a problem");
    assert!(problem.contains("mount the directory"), "{problem}");
    drop(node);
    drop(mount);
}

#[test]
fn a_mounted_directory_is_followed() {
    if !root_for("a mounted directory") {
        return;
    }
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    let outside = folder.path().join("outside");
    fs::create_dir(&outside).expect("created");
    fs::create_dir(folder.path().join("inside")).expect("created");
    fs::write(outside.join("edgevpn.toml"), file("1", "")).expect("written");
    std::os::unix::fs::symlink("inside/edgevpn.toml", folder.path().join("edgevpn.toml"))
        .expect("linked");
    let mount = Mount::bind(&outside, &folder.path().join("inside"));
    let node = NodeUnderTest::start_in(folder, &[]);
    node.until("the mounted file is applied", applied(&file("1", "")));
    for style in [Style::RenamedOver, Style::InPlace, Style::MadeAgain] {
        let text = file(&format!("{}", 10 + style as u32), "");
        style.write(&outside, &text);
        node.until("a change on the other side is applied", applied(&text));
    }
    drop(node);
    drop(mount);
}

/// A node in a user namespace of its own, where a count of inotify can be limited without harm to the machine.
struct Limited {
    node: NodeUnderTest,
    limit: &'static str,
}

impl Limited {
    fn start(limit: &'static str, value: u32) -> Option<Limited> {
        let probe = format!("echo {value} > /proc/sys/user/{limit}");
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "sh", "-c", &probe]);
        if !unshare.output().is_ok_and(|output| output.status.success()) {
            skip("limits of inotify", "needs user namespaces");
            return None;
        }
        let folder = Arc::new(tempfile::tempdir().expect("a folder"));
        Layout::Plain.arrange(folder.path(), &quick("1"));
        let script = format!("{probe} && exec \"$0\" \"$@\"");
        let node = NodeUnderTest::start_by(
            folder,
            &["unshare", "--user", "--map-root-user", "sh", "-c", &script],
        );
        node.until("the first file is applied", applied(quick("1")));
        Some(Limited { node, limit })
    }

    fn lift(&self) {
        let script = format!("echo 1000 > /proc/sys/user/{}", self.limit);
        let id = self.node.id().to_string();
        run(Command::new("nsenter").args([
            "-U",
            "--preserve-credentials",
            "-t",
            &id,
            "sh",
            "-c",
            &script,
        ]));
    }
}

/// Contents are compared often, for there are no events.
fn quick(circuits: &str) -> String {
    file(circuits, "").replace("poll_interval = \"10m\"", "poll_interval = \"1s\"")
}

fn is_followed_without_events_and_with_them_again(limit: &'static str, value: u32, reason: &str) {
    let Some(limited) = Limited::start(limit, value) else {
        return;
    };
    let node = &limited.node;
    let status = node.until("it says so", |status| status["state"] == "watch_degraded");
    let problem = status["watcher"]["problem"].as_str().expect("a problem");
    assert!(problem.contains(reason), "{problem}");
    assert!(
        !status["watcher"]["method"]
            .as_str()
            .expect("a method")
            .contains("inotify")
    );
    assert!(
        node.until_logged(&["file events do not arrive"])
            .contains("WARN")
    );
    for circuits in ["2", "3"] {
        Style::RenamedOver.write(node.folder.path(), &quick(circuits));
        node.until("a change is applied all the same", applied(quick(circuits)));
    }
    limited.lift();
    let status = node.until("events are back", |status| status["state"] == "in_sync");
    assert!(
        status["watcher"]["method"]
            .as_str()
            .expect("a method")
            .contains("inotify")
    );
    assert_eq!(
        node.log_text().matches("file events do not arrive").count(),
        1,
        "{}",
        node.log_text()
    );
}

#[test]
fn without_inotify_instances_contents_are_compared() {
    is_followed_without_events_and_with_them_again(
        "max_inotify_instances",
        0,
        "fs.inotify.max_user_instances",
    );
}

#[test]
fn without_inotify_watches_contents_are_compared() {
    is_followed_without_events_and_with_them_again(
        "max_inotify_watches",
        1,
        "fs.inotify.max_user_watches",
    );
}

#[test]
fn a_node_that_lost_events_looks_again() {
    let node = start(Layout::Plain, &quick("1"));
    node.signal(rustix::process::Signal::STOP);
    // More than fs.inotify.max_queued_events, 16,384 unless somebody raised it.
    let queue: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(16_384);
    for number in 0..=queue.min(100_000) / 4 {
        let path = node.path(&format!("beside {}", number % 7));
        fs::write(&path, "anything").expect("written");
        fs::remove_file(path).expect("removed");
    }
    Style::RenamedOver.write(node.folder.path(), &quick("2"));
    node.signal(rustix::process::Signal::CONT);
    node.until("what was lost is found", applied(quick("2")));
    assert!(
        node.until_logged(&["file events do not arrive"])
            .contains("max_queued_events")
    );
    node.until("events are back", |status| status["state"] == "in_sync");
    Style::RenamedOver.write(node.folder.path(), &quick("3"));
    node.until("and work", applied(quick("3")));
}

/// A bind mount, undone at the end.
struct Mount(std::path::PathBuf);

impl Mount {
    fn bind(what: &Path, place: &Path) -> Mount {
        run(Command::new("mount").arg("--bind").arg(what).arg(place));
        Mount(place.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run(Command::new("umount").arg(&self.0));
    }
}
