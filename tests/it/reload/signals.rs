//! SIGHUP, one and many.

use super::{start, unwatched, write};
use crate::support::status::{applied, outcome};
use rustix::process::Signal;
use std::time::{Duration, Instant};

#[test]
fn a_hangup_applies_the_file() {
    let node = start(&unwatched("1", ""));
    let text = unwatched("2", "");
    write(&node, &text);
    node.signal(Signal::HUP);
    let status = node.until("it is applied", applied(&text));
    assert_eq!(status["last_attempt"]["trigger"], "signal");
}

#[test]
fn a_flood_of_hangups_harms_nobody() {
    let node = start(&unwatched("1", ""));
    let until = Instant::now() + Duration::from_secs(3);
    let mut sent = 0_u32;
    let mut circuits = 1_u32;
    let mut slowest = Duration::ZERO;
    while Instant::now() < until {
        node.signal(Signal::HUP);
        sent += 1;
        if sent.is_multiple_of(50) {
            circuits += 1;
            let text = if circuits.is_multiple_of(3) {
                "not valid".to_owned()
            } else {
                unwatched(&circuits.to_string(), "")
            };
            write(&node, text);
            let asked = Instant::now();
            node.status().expect("the node answers");
            slowest = slowest.max(asked.elapsed());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let last = unwatched("99", "");
    write(&node, &last);
    node.signal(Signal::HUP);
    let status = node.until("the last content is in force", applied(&last));
    // Hangups that were still under way may have found it in force already.
    assert!(
        ["applied", "unchanged"].contains(&outcome(&status)),
        "{status:#}"
    );
    assert_eq!(status["node"]["panics"], 0);
    assert!(sent > 500, "{sent} signals are no flood");
    assert!(
        slowest < Duration::from_secs(1),
        "a status took {slowest:?}"
    );
}
