//! How a node starts, or does not.

use super::{start, unwatched, write};
use crate::support::{
    files::file,
    node::{NodeUnderTest, command},
    status::{applied, outcome, sha256},
};
use std::{
    fs,
    os::unix::net::UnixDatagram,
    process::{Command, Output, Stdio},
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;

fn folder(text: &str) -> Arc<TempDir> {
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    fs::write(folder.path().join("edgevpn.toml"), text).expect("written");
    folder
}

fn run(folder: &TempDir, arguments: &[&str]) -> Output {
    program(folder, arguments)
        .output()
        .expect("the program starts")
}

fn program(folder: &TempDir, arguments: &[&str]) -> Command {
    let mut program = command(folder.path());
    program
        .args(["run", "-c", "edgevpn.toml"])
        .args(arguments)
        .stdin(Stdio::null());
    program
}

#[test]
fn an_invalid_file_does_not_start_a_node() {
    let folder = folder(&file("\"many\"", ""));
    let output = run(&folder, &[]);
    assert_eq!(output.status.code(), Some(78));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.contains("EV0102") && text.contains("edgevpn.toml:8:16"),
        "{text}"
    );
    assert!(
        !folder.path().join("state").exists(),
        "nothing is left behind"
    );
}

#[test]
fn a_missing_file_does_not_start_a_node() {
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    let output = run(&folder, &[]);
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("EV0201"));
}

#[test]
fn an_address_that_is_taken_does_not_start_a_node() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let text = file("1", "").replace(
        "listen = []",
        &format!("listen = [\"/ip4/127.0.0.1/tcp/{port}\"]"),
    );
    let output = run(&folder(&text), &[]);
    assert_eq!(output.status.code(), Some(69), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains(&port.to_string()));
}

#[test]
fn a_key_that_others_can_read_does_not_start_a_node() {
    use std::os::unix::fs::PermissionsExt;
    let node = start(&file("1", ""));
    let folder = node.folder.clone();
    drop(node);
    let key = folder.path().join("state/node.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("changed");
    let output = run(&folder, &[]);
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("chmod 600"));
}

#[test]
fn two_nodes_do_not_share_a_state_directory() {
    let node = start(&file("1", ""));
    let output = run(&node.folder, &[]);
    assert_eq!(output.status.code(), Some(69), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("another node"));
}

#[test]
fn a_node_starts_from_the_last_known_good_file_and_takes_the_next_good_one() {
    let node = start(&unwatched("1", ""));
    let good = unwatched("2", "");
    write(&node, &good);
    assert_eq!(
        crate::support::status::reload(&node, "read")["outcome"],
        "applied"
    );
    let folder = node.folder.clone();
    let peer_id = node.peer_id();
    assert!(node.stop().success());
    let bad = unwatched("\"many\"", "");
    fs::write(folder.path().join("edgevpn.toml"), &bad).expect("written");

    assert_eq!(
        run(&folder, &[]).status.code(),
        Some(78),
        "only if asked to"
    );
    let node = NodeUnderTest::start_in(folder, &["--on-invalid=lkg"]);
    let status = node.until("the kept file is in force", applied(&good));
    assert_eq!(status["state"], "last_known_good", "{status:#}");
    assert_eq!(status["node"]["peer_id"], peer_id);
    assert_eq!(outcome(&status), "rejected");
    assert_eq!(status["last_attempt"]["sha256"], sha256(&bad));

    let next = unwatched("3", "");
    write(&node, &next);
    assert_eq!(
        crate::support::status::reload(&node, "read")["outcome"],
        "applied"
    );
    let status = node.status().expect("a status");
    assert_eq!(status["state"], "in_sync");
}

#[test]
fn the_last_known_good_file_comes_with_its_lists() {
    let list = "[[acl.list]]\nname = \"ops\"\naction = \"deny\"\nfile = \"ops.txt\"\n";
    let folder = folder(&file("1", list));
    fs::write(folder.path().join("ops.txt"), "192.0.2.0/24\n").expect("written");
    let node = NodeUnderTest::start_in(folder.clone(), &[]);
    node.until("the file is applied", applied(file("1", list)));
    assert!(node.stop().success());
    fs::remove_file(folder.path().join("ops.txt")).expect("removed");
    fs::write(folder.path().join("edgevpn.toml"), "").expect("written");
    // The broken file does not say any more where the state is; this one does, the rest of it is wrong.
    fs::write(
        folder.path().join("edgevpn.toml"),
        "version = 7\nnode.state_dir = \"state\"\n",
    )
    .expect("written");
    let node = NodeUnderTest::start_in(folder, &["--on-invalid=lkg"]);
    let status = node.until("the kept file is in force", applied(file("1", list)));
    assert_eq!(status["state"], "last_known_good");
}

#[test]
fn without_a_last_known_good_file_nothing_starts() {
    let folder = folder(&file("\"many\"", ""));
    let output = run(&folder, &["--on-invalid=lkg"]);
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no earlier one"));
}

#[test]
fn a_change_while_nothing_ran_is_picked_up_by_the_next_start() {
    let node = start(&unwatched("1", ""));
    let folder = node.folder.clone();
    assert!(node.stop().success());
    let text = unwatched("2", "").replace("[limits]\nconnections = 64\n", "");
    fs::write(folder.path().join("edgevpn.toml"), &text).expect("written");
    let node = NodeUnderTest::start_in(folder, &[]);
    let status = node.until("it is applied", applied(&text));
    assert_eq!(
        (status["generation"].as_u64(), status["state"].as_str()),
        (Some(1), Some("in_sync"))
    );
}

#[test]
fn the_service_manager_is_told_of_start_reload_and_stop() {
    let folder = folder(&unwatched("1", ""));
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("bound");
    manager
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a time-out");
    let told = || {
        let mut buffer = [0; 4096];
        let length = manager.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let mut child = program(&folder, &[])
        .env("NOTIFY_SOCKET", &path)
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    assert_eq!(told(), "READY=1\n");
    let pid = rustix::process::Pid::from_child(&child);
    fs::write(folder.path().join("edgevpn.toml"), "not valid").expect("written");
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("sent");
    let reloading = told();
    assert!(
        reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="),
        "{reloading}"
    );
    assert_eq!(told(), "READY=1\n", "also after a bad file");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("sent");
    assert_eq!(told(), "STOPPING=1\n");
    assert!(child.wait().expect("ends").success());
}
