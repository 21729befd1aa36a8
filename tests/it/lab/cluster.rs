//! The example that brings up a network with one command.

use std::process::Command;

use crate::support::skip::root_for;

#[test]
fn the_cluster_example_admits_its_members_and_refuses_the_stranger() {
    if !root_for("the cluster example") {
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/cluster/run.sh");
    let done = Command::new(script)
        .env("EDGEVPN", env!("CARGO_BIN_EXE_edgevpn"))
        .output()
        .expect("the script starts");
    let said = String::from_utf8_lossy(&done.stdout);
    let complained = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}\n{complained}");
    assert!(
        said.contains("Three members, and a stranger refused."),
        "{said}"
    );
    let left = Command::new("ip")
        .args(["netns", "list"])
        .output()
        .expect("ip");
    let left = String::from_utf8_lossy(&left.stdout);
    assert!(!left.contains("edgevpn-cluster-"), "it cleans up: {left}");
}
