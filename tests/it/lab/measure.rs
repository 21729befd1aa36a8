//! What a network costs at rest and how soon it is there: the figures of docs/benchmarks.md. Run by hand, on a quiet machine:
//!
//!     cargo test --release --test it lab::measure -- --ignored --nocapture --test-threads 1

use std::{
    fs,
    io::Write,
    thread,
    time::{Duration, Instant},
};

use super::{
    member::{GoMember, Manner},
    network::{Network, knows, members},
    world::{Host, Lab, Nat, PORT},
};
use crate::{peers::counterparty::Answer, support::node::NodeUnderTest};

const SIZES: [usize; 3] = [5, 20, 50];

/// Two heartbeats of two minutes, and 24 broadcasts of ten seconds.
const SPAN: Duration = Duration::from_secs(240);

/// After the last member is known to all: what a start still causes has ended.
const SETTLES: Duration = Duration::from_secs(45);

#[test]
#[ignore = "measures for a quarter of an hour"]
fn an_idle_network_of_ours() {
    for size in SIZES {
        let Some(lab) = Lab::new("the idle network") else {
            return;
        };
        let network = Network::new(360);
        let hosts: Vec<Host> = (0..size).map(|_| lab.public()).collect();
        let mut first = Vec::new();
        let mut nodes = Vec::new();
        for host in &hosts {
            let node = host.node(&network.member_at_rest(&first));
            first.extend(first.is_empty().then(|| host.dial(&node)));
            nodes.push(node);
        }
        for node in &nodes {
            node.until("all know all", |status| members(status) + 1 == size as u64);
        }
        let processes: Vec<u32> = nodes.iter().map(NodeUnderTest::id).collect();
        Idle::measure(&hosts, &processes).print("ours", size);
    }
}

#[test]
#[ignore = "measures for a quarter of an hour"]
fn an_idle_network_that_broadcasts() {
    for size in SIZES {
        let test = "the idle network of Go members";
        let Some(lab) = Lab::new(test) else { return };
        let network = Network::new(360);
        let hosts: Vec<Host> = (0..size).map(|_| lab.public()).collect();
        let mut addresses = Vec::new();
        let mut all = Vec::new();
        for host in &hosts {
            let address = host.address.expect("public");
            // Everybody is connected to everybody, as the discovery of EdgeVPN makes it.
            let manner = Manner {
                listen: vec![format!("/ip4/{address}/tcp/{PORT}")],
                peers: addresses.clone(),
                pace: Some((Duration::from_secs(120), Duration::from_secs(10))),
                machine: Some(format!("10.1.0.{}", addresses.len() + 1)),
                ..Manner::default()
            };
            let token = network.token_file();
            let Some(member) = GoMember::start(&token, &manner, &host.wrapper(), test) else {
                return;
            };
            addresses.push(member.address());
            all.push(member);
        }
        let deadline = Instant::now() + Duration::from_secs(180);
        let known = |member: &mut GoMember| {
            let known = member.known();
            known
                .entries
                .iter()
                .filter(|seen| seen.bucket == "healthcheck")
                .count()
        };
        while !all.iter_mut().all(|member| known(member) == size) {
            assert!(Instant::now() < deadline, "not all know all");
            wait(Duration::from_secs(1));
        }
        let processes: Vec<u32> = all.iter().map(GoMember::id).collect();
        Idle::measure(&hosts, &processes).print("broadcast", size);
    }
}

struct Idle {
    /// Per node and second.
    bytes: f64,
    packets: f64,
    /// Per node, of one core.
    cpu: f64,
    resident_mib: f64,
}

impl Idle {
    fn measure(hosts: &[Host], processes: &[u32]) -> Self {
        wait(SETTLES);
        let sent = || {
            hosts
                .iter()
                .map(Host::sent)
                .fold((0, 0), |(bytes, packets), (b, p)| (bytes + b, packets + p))
        };
        let busy = || processes.iter().map(|id| cpu(*id)).sum::<Duration>();
        let (sent_before, busy_before, began) = (sent(), busy(), Instant::now());
        wait(SPAN);
        let (sent_after, busy_after, took) = (sent(), busy(), began.elapsed().as_secs_f64());
        let nodes = hosts.len() as f64;
        Self {
            bytes: (sent_after.0 - sent_before.0) as f64 / took / nodes,
            packets: (sent_after.1 - sent_before.1) as f64 / took / nodes,
            cpu: (busy_after - busy_before).as_secs_f64() / took / nodes,
            resident_mib: processes.iter().map(|id| resident_kib(*id)).sum::<u64>() as f64
                / 1024.0
                / nodes,
        }
    }

    fn print(&self, form: &str, size: usize) {
        say(&format!(
            "{form:>10} {size:>3} nodes: {:>8.0} B/s and {:>6.2} packets/s a node, {:>9.0} B/s in all, {:.3} % of a core and {:.1} MiB a node",
            self.bytes,
            self.packets,
            self.bytes * size as f64,
            self.cpu * 100.0,
            self.resident_mib
        ));
    }
}

const ROUNDS: usize = 11;

#[test]
#[ignore = "measures"]
fn from_process_start_to_the_first_member() {
    let Some(lab) = Lab::new("the time to the first member") else {
        return;
    };
    let network = Network::new(360);

    let home = lab.router(Nat::Easy);
    let there = lab.behind(&home);
    let resident = there.node(&network.on_a_link());
    resident.until("it is ready", |status| members(status) == 0);
    let mut taken = Vec::new();
    for _ in 0..ROUNDS {
        let comes = lab.behind(&home);
        taken.push(first_member(&comes, &network.on_a_link()));
    }
    print("first member on a local network", taken);

    let center = lab.public();
    let hub = center.node(&network.member_at_rest(&[]));
    let bootstrap = [center.dial(&hub)];
    let mut taken = Vec::new();
    for _ in 0..ROUNDS {
        let comes = lab.public();
        taken.push(first_member(&comes, &network.member_at_rest(&bootstrap)));
    }
    print("first member through one address", taken);
}

fn first_member(host: &Host, more: &str) -> Duration {
    let began = Instant::now();
    let node = host.node(more);
    node.until("a member is known", |status| members(status) > 0);
    began.elapsed()
}

#[test]
#[ignore = "measures"]
fn from_a_merged_heartbeat_to_a_reservation() {
    let test = "the time to a reservation";
    let Some(lab) = Lab::new(test) else { return };
    let network = Network::new(360);
    let center = lab.public();
    let hub = center.node(&format!(
        "{}[acl]\nbootstrap = \"0s\"\n",
        network.member(&[])
    ));
    let address = center.dial(&hub);
    let mut taken = Vec::new();
    for _ in 0..ROUNDS {
        let home = lab.public();
        let manner = Manner {
            peers: vec![address.clone()],
            ..Manner::default()
        };
        let token = network.token_file();
        let Some(mut go) = GoMember::start(&token, &manner, &home.wrapper(), test) else {
            return;
        };
        hub.until("the heartbeat is merged", |status| {
            knows(status, &go.peer_id)
        });
        let merged = Instant::now();
        while !matches!(go.reserve(&address), Answer::Reserved(_)) {}
        taken.push(merged.elapsed());
    }
    print("heartbeat merged to reservation admitted", taken);
}

fn print(what: &str, mut taken: Vec<Duration>) {
    taken.sort();
    let (Some(least), Some(most)) = (taken.first(), taken.last()) else {
        return;
    };
    let median = taken[taken.len() / 2];
    say(&format!(
        "{what}: median {median:.2?}, {least:.2?} to {most:.2?} ({} rounds)",
        taken.len()
    ));
}

fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The processor time that a process has used.
fn cpu(process: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("it runs");
    // Fields are counted behind the name in parentheses; 14 and 15 of all are user and system time in ticks.
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let fields: Vec<u64> = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse().ok())
        .collect();
    let ticks = rustix::param::clock_ticks_per_second();
    Duration::from_millis(fields.iter().sum::<u64>() * 1000 / ticks)
}

fn resident_kib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .expect("a size")
}

/// A measurement lasts as long as it lasts.
#[allow(
    clippy::disallowed_methods,
    reason = "the time itself is what is wanted"
)]
fn wait(span: Duration) {
    thread::sleep(span);
}
