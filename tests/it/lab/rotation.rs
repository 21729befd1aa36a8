//! Our node among members that throw their router away at each rotation.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{
    member::{GoMember, Manner},
    network::{Network, known},
};
use crate::support::node::NodeUnderTest;

/// How old a heartbeat may get at a peer. They are renewed every second here.
const FRESH: Duration = Duration::from_secs(5);

/// How often members are asked what they know.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

#[test]
fn a_node_heals_members_that_have_lost_each_other() {
    let test = "healing a network of Go members";
    let network = Network::new(4);
    let mut members: Vec<GoMember> = Vec::new();
    // Not quite in step, as on machines of their own: who rotates first loses the others.
    for skew in [0, 250, 500] {
        let manner = Manner {
            peers: members.iter().map(GoMember::address).collect(),
            skew,
            ..Manner::on_loopback(TCP)
        };
        let Some(member) = GoMember::start(&network.token_file(), &manner, &[], test) else {
            return;
        };
        members.push(member);
    }
    let mut all: Vec<String> = members
        .iter()
        .map(|member| member.peer_id.clone())
        .collect();
    until(&mut members, "alone they lose each other", |members| {
        oldest(members, &all) > FRESH
    });

    let addresses: Vec<String> = members.iter().map(GoMember::address).collect();
    let node = NodeUnderTest::start(&network.member(&addresses));
    all.push(node.peer_id());
    until(&mut members, "all hear all", |members| {
        oldest(members, &all) < FRESH
    });
    rotate(&mut members, 3);
    for member in &mut members {
        expect_fresh(member, &all);
    }
}

#[test]
fn members_over_tcp_and_quic_in_and_out_of_step_hear_each_other_through_a_node() {
    let test = "rotations with Go members";
    let network = Network::new(5);
    let node = NodeUnderTest::start(&network.member(&[]));
    let mut members = Vec::new();
    for (transport, skew) in [(TCP, 0), (QUIC, 0), (TCP, 1500), (QUIC, -1500)] {
        let Some(member) = GoMember::start(
            &network.token_file(),
            &Manner {
                peers: vec![node.address(transport)],
                skew,
                ..Manner::on_loopback(transport)
            },
            &[],
            test,
        ) else {
            return;
        };
        members.push(member);
    }
    let mut all: Vec<String> = members
        .iter()
        .map(|member| member.peer_id.clone())
        .collect();
    all.push(node.peer_id());
    until(&mut members, "all hear all", |members| {
        oldest(members, &all) < FRESH
    });

    // One that writes without a pause across the rotations, and loses nothing.
    let author = members[0].peer_id.clone();
    let value = format!("{{\"PeerID\":\"{author}\",\"Name\":\"web\"}}");
    let mut written = 0;
    for member in &mut members {
        member.reset();
    }
    until(&mut members, "they rotate", |members| {
        members[0].put("services", &format!("web-{written}"), &value);
        written += 1;
        have_rotated(members, 3)
    });
    for member in &mut members {
        expect_fresh(member, &all);
    }
    until(&mut members, "every entry arrives everywhere", |members| {
        members.iter_mut().all(|member| {
            let known = member.known();
            (0..written).all(|number| {
                let seen = known.entry("services", &format!("web-{number}"));
                seen.is_some_and(|seen| seen.value == value && seen.owner == author)
            })
        })
    });
    members[0].delete("services", "web-0");
    until(&mut members, "and its end", |members| {
        members.iter_mut().all(|member| {
            let known = member.known();
            known
                .entry("services", "web-0")
                .is_some_and(|seen| seen.deleted)
        })
    });
}

/// Windows, and how long each is, in the long run.
const ROTATIONS: (u32, u64) = (20, 20);

/// `cargo test --test it lab::rotation -- --ignored --nocapture`
#[test]
#[ignore = "takes seven minutes"]
fn twenty_rotations_in_every_combination() {
    let test = "twenty rotations";
    let (times, span) = ROTATIONS;
    let mut trials = Vec::new();
    for transport in [TCP, QUIC] {
        for skew in [0, 5000, -5000] {
            let Some(trial) = Trial::start(transport, skew, span, test) else {
                return;
            };
            trials.push(trial);
        }
    }
    let mut members: Vec<&mut GoMember> = Vec::new();
    for trial in &mut trials {
        let all = trial.authors();
        until(&mut trial.members, "all hear all", |members| {
            oldest(members, &all) < FRESH
        });
        members.extend(&mut trial.members);
    }
    for member in &mut members {
        member.reset();
    }
    while trials.iter_mut().any(|trial| trial.rotations() < times) {
        for trial in &mut trials {
            trial.look();
        }
        pause();
    }
    let mut faults = Vec::new();
    for trial in &mut trials {
        faults.extend(trial.finish());
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

/// Our node between a Go member whose clock is off and one whose clock is right, which are not connected to each other.
struct Trial {
    name: String,
    node: NodeUnderTest,
    members: Vec<GoMember>,
    skews: [i64; 2],
    /// The oldest that each member's heartbeat has been at our node, in seconds by the member's own clock.
    oldest_here: [i64; 2],
}

impl Trial {
    fn start(transport: &str, skew: i64, span: u64, test: &str) -> Option<Self> {
        let network = Network::new(span);
        let node = NodeUnderTest::start(&network.member(&[]));
        let skews = [skew, 0];
        let members = skews.map(|skew| {
            let manner = Manner {
                peers: vec![node.address(transport)],
                skew,
                ..Manner::on_loopback(transport)
            };
            GoMember::start(&network.token_file(), &manner, &[], test)
        });
        Some(Self {
            name: format!("{transport} {:+} s", skew / 1000),
            node,
            members: members.into_iter().collect::<Option<_>>()?,
            skews,
            oldest_here: [0; 2],
        })
    }

    fn authors(&self) -> Vec<String> {
        let members = self.members.iter().map(|member| member.peer_id.clone());
        members.chain([self.node.peer_id()]).collect()
    }

    fn rotations(&mut self) -> u32 {
        let members = self.members.iter_mut();
        let counts = members.map(|member| member.known().counts.rotations);
        counts.min().unwrap_or(0)
    }

    fn look(&mut self) {
        let status = self.node.status().expect("the node answers");
        for ((member, skew), oldest) in self
            .members
            .iter()
            .zip(self.skews)
            .zip(&mut self.oldest_here)
        {
            let known = known(&status, &member.peer_id).expect("known since the start");
            let age = known["heartbeat_age_s"].as_i64().unwrap_or(i64::MAX / 2);
            *oldest = (*oldest).max(age + skew / 1000);
        }
    }

    /// Prints what was seen, and gives what should not have been.
    fn finish(&mut self) -> Vec<String> {
        let all = self.authors();
        let mut faults = Vec::new();
        for (at, member) in self.members.iter_mut().enumerate() {
            let known = member.known();
            let worst: Vec<Duration> = all
                .iter()
                .filter(|author| **author != member.peer_id)
                .map(|author| {
                    known
                        .heartbeat(author)
                        .map_or(Duration::MAX, |seen| seen.worst())
                })
                .collect();
            let line = format!(
                "{}: member {at} after {} rotations: heartbeats of the other member and of the node at most {worst:?} old, its own {} s at the node; {} messages opened, {} not",
                self.name,
                known.counts.rotations,
                self.oldest_here[at],
                known.counts.opened,
                known.counts.unopened
            );
            println!("{line}");
            if worst.iter().any(|worst| *worst > FRESH) {
                faults.push(line);
            }
        }
        faults
    }
}

pub const TCP: &str = "tcp";
pub const QUIC: &str = "quic-v1";

impl Manner {
    fn on_loopback(transport: &str) -> Self {
        let address = match transport {
            QUIC => "/ip4/127.0.0.1/udp/0/quic-v1",
            _ => "/ip4/127.0.0.1/tcp/0",
        };
        Self {
            listen: vec![address.to_owned()],
            ..Self::default()
        }
    }
}

/// Counts anew, and waits until each member has changed its room so many times.
fn rotate(members: &mut [GoMember], times: u32) {
    for member in members.iter_mut() {
        member.reset();
    }
    until(members, "they rotate", |members| {
        have_rotated(members, times)
    });
}

fn have_rotated(members: &mut [GoMember], times: u32) -> bool {
    members
        .iter_mut()
        .all(|member| member.known().counts.rotations >= times)
}

/// The age of the oldest heartbeat of `authors` at any of the members, its own left out; without end if one is missing.
fn oldest(members: &mut [GoMember], authors: &[String]) -> Duration {
    let mut oldest = Duration::ZERO;
    for member in members {
        let known = member.known();
        for author in authors.iter().filter(|author| **author != member.peer_id) {
            let age = known
                .heartbeat(author)
                .map_or(Duration::MAX, |seen| seen.age());
            oldest = oldest.max(age);
        }
    }
    oldest
}

/// Fails if since the last reset a heartbeat of `authors` was too old at this member at any time.
fn expect_fresh(member: &mut GoMember, authors: &[String]) {
    let known = member.known();
    for author in authors.iter().filter(|author| **author != member.peer_id) {
        let worst = known.heartbeat(author).map(|seen| seen.worst());
        assert!(
            worst.is_some_and(|worst| worst <= FRESH),
            "{author} was {worst:?} old at {}: {known:#?}",
            member.peer_id
        );
    }
}

fn until(members: &mut [GoMember], what: &str, mut holds: impl FnMut(&mut [GoMember]) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(40);
    while !holds(members) {
        if Instant::now() > deadline {
            let known: Vec<_> = members.iter_mut().map(GoMember::known).collect();
            panic!("never: {what}\n{known:#?}");
        }
        pause();
    }
}

/// Members tell what they know when they are asked; nothing of theirs wakes a test.
#[allow(clippy::disallowed_methods, reason = "nothing to wait for")]
fn pause() {
    thread::sleep(LOOK_AGAIN);
}
