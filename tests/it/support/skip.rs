//! Tests that cannot run everywhere.

use std::io::Write;

/// Says that a test does not run here. In CI everything is there that a test can need, so it is a failure.
pub fn skip(test: &str, why: &str) {
    assert!(std::env::var_os("CI").is_none(), "cannot run {test}: {why}");
    // Past the capture of the test harness, so that a run shows what it has not tested.
    let _ = writeln!(std::io::stderr(), "\nskipped: {test}: {why}");
}

/// Whether a test that needs root can run; says so if not.
pub fn root_for(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip(test, "needs root");
    }
    root
}
