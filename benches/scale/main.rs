//! What the shared ledger costs at sizes that no one machine can run for real: a simulation of the pure ledger and its
//! exchange, and the same figures for EdgeVPN's form (everybody broadcasts everything) from blocks of real size.
//!
//! `cargo bench --bench scale -- nodes=100,1000,5000`
#![allow(clippy::disallowed_methods)] // It measures time and its own memory.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::{HashMap, HashSet},
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use edgevpn::{
    id::UnixTime,
    ledger::{Ledger, Node, Ownership, Record, Terms},
    wire::{Token, seal, value::heartbeat},
};
use libp2p::identity::Keypair;
use rand::{Rng, SeedableRng, rngs::StdRng};

mod network;

use network::{BEGIN, Network, Settings};

/// Neighbours of a node, about.
const DEGREE: usize = 8;

/// Seconds between two broadcasts of an EdgeVPN node. Gossipsub brings each message more than once; one copy is counted, in
/// favour of the broadcast.
const BROADCAST_INTERVAL: f64 = 10.0;

/// Seconds for which gossipsub keeps whole messages: five of its heartbeats.
const MESSAGE_CACHE: f64 = 5.0;

/// Bytes of a gossipsub message beside its data: author, sequence number, topic, signature and key (about 210), and what
/// every message takes.
const GOSSIP_ENVELOPE: u64 = 210 + network::ENVELOPE;

fn main() {
    let sizes: Vec<usize> = std::env::args()
        .find_map(|argument| Some(argument.strip_prefix("nodes=")?.to_owned()))
        .unwrap_or_else(|| "100,1000".to_owned())
        .split(',')
        .map(|size| size.parse().expect("nodes=100,1000,5000"))
        .collect();
    for size in sizes {
        simulate(size);
    }
}

fn terms() -> Terms {
    Terms {
        ownership: Ownership::Enforce,
        ttl: Duration::from_secs(480),
        quota_entries: 256,
        quota_bytes: 64 << 10,
    }
}

fn settings() -> Settings {
    Settings {
        terms: terms(),
        heartbeat: Duration::from_secs(120),
        sync_interval: Duration::from_secs(10),
        latency: (Duration::from_millis(5), Duration::from_millis(80)),
        loss: 0,
        repeated: 0,
    }
}

/// A network of this size: formed, with heartbeats, with churn and loss, divided, and at rest.
fn simulate(size: usize) {
    println!("\n{size} nodes, 3 entries each, about {DEGREE} neighbours, 5 to 80 ms a hop");
    let started = Instant::now();
    let lap = |what: &str| {
        let seconds = started.elapsed().as_secs_f64();
        println!("    {what} after {seconds:.0} s of real time");
    };
    memory(size);
    broadcast(size);
    let mut network = Network::new(settings(), size as u64);
    formed(&mut network, size);
    lap("formed");
    // Simulated seconds: each heartbeat comes to each node, so the work grows with the square of the size.
    let seconds = match size {
        0..500 => 1800,
        500..2000 => 240,
        _ => 130,
    };
    beating(&mut network, seconds);
    lap("done");
    churning(&mut network, seconds);
    lap("done");
    if size <= 1000 {
        divided(&mut network);
        lap("done");
    }
    at_rest(&mut network);
    lap("done");
}

/// Everybody holds everything; each node has written a heartbeat, a node entry and a machine.
fn formed(network: &mut Network, size: usize) {
    for _ in 0..size {
        network.add();
    }
    let mut records = Vec::new();
    for number in 0..size {
        let node = &mut network.nodes[number];
        write_own(&mut node.ledger, &node.keypair, number, BEGIN);
        records.extend(node.ledger.iter().cloned());
    }
    for node in &mut network.nodes {
        node.ledger.merge_records(records.clone(), BEGIN);
        assert_eq!(node.ledger.size().entries, 3 * size);
    }
    network.link_at_random(DEGREE);
    for node in 0..size {
        network.start_heartbeat(node, true);
    }
    // The first changes find the tree.
    let warm_up = if size < 2000 { 120 } else { 60 };
    network.run_until(Duration::from_secs(warm_up));
}

fn write_own(ledger: &mut Ledger, keypair: &Keypair, number: usize, now: UnixTime) {
    let peer = keypair.public().to_peer_id();
    let name = peer.to_base58();
    ledger.put("healthcheck", &name, &heartbeat(now), keypair, now);
    let address = format!("10.{}.{}.{}", number >> 16, number >> 8 & 255, number & 255);
    let node = Node {
        peer,
        name: format!("node-{number}"),
        addresses: vec![
            format!("/ip4/{address}/tcp/4501")
                .parse()
                .expect("an address"),
            format!("/ip4/{address}/udp/4501/quic-v1")
                .parse()
                .expect("an address"),
        ],
        version: "0.1.0".to_owned(),
    };
    ledger.put("nodes", &name, &node.value(), keypair, now);
    let machine = edgevpn::wire::value::Machine {
        peer_id: name,
        hostname: format!("node-{number}"),
        os: "linux".to_owned(),
        arch: "amd64".to_owned(),
        address: address.clone(),
        version: "0.1.0".to_owned(),
    };
    ledger.put("machines", &address, &machine.to_text(), keypair, now);
}

fn beating(network: &mut Network, seconds: u64) {
    reset(network);
    network.arrivals = Some(Vec::new());
    let first = network.nodes.len();
    let begin = network.now;
    network.run_until(begin + Duration::from_secs(seconds));
    let (all, most) = spread(network, first);
    println!(
        "  heartbeats every 120 s, nothing lost, for {seconds} s: {}; a change reaches 99 % in {} and all in {} (median; slowest {})",
        rates(network, seconds),
        millis(quantile(&most, 0.5)),
        millis(quantile(&all, 0.5)),
        millis(quantile(&all, 1.0)),
    );
    traffic(network);
}

/// A tenth of the nodes leaves and as many come, each hour; one message of a hundred is lost.
fn churning(network: &mut Network, seconds: u64) {
    reset(network);
    network.arrivals = Some(Vec::new());
    network.settings.loss = 10;
    let first = network.nodes.len();
    let begin = network.now;
    let up = network.nodes.len();
    let every = Duration::from_secs_f64(3600.0 / (0.1 * up as f64));
    let (mut turn, mut left) = (begin + every, 0);
    let mut joined = Vec::new();
    let end = begin + Duration::from_secs(seconds);
    while turn < end {
        network.run_until(turn);
        turn += every;
        let leaver = loop {
            let node = network.random.random_range(0..network.nodes.len());
            if network.nodes[node].up {
                break node;
            }
        };
        let orphans = network.nodes[leaver].neighbours.clone();
        let cleanly = network.random.random();
        network.stop(leaver, cleanly);
        left += 1;
        for orphan in orphans {
            network.link_up(orphan, DEGREE);
        }
        let newcomer = network.add();
        let clock = network.clock();
        let node = &mut network.nodes[newcomer];
        write_own(&mut node.ledger, &node.keypair, newcomer, clock);
        network.link_up(newcomer, DEGREE);
        network.start_heartbeat(newcomer, true);
        joined.push((newcomer, network.now));
    }
    network.run_until(end);
    let known = |network: &Network, node: usize| network.nodes[node].ledger.size().entries;
    let least = joined
        .iter()
        .filter(|(node, at)| network.nodes[*node].up && network.now > *at + Duration::from_secs(10))
        .map(|(node, _)| known(network, *node))
        .min();
    let (all, most) = spread(network, first);
    println!(
        "  1 % lost, 10 % an hour leave and come ({left} each), for {seconds} s: {}; a change reaches 99 % in {} (median; 9 of 10 in {}; slowest {}) and all in {} (median; 9 of 10 in {}; slowest {}); newcomers of 10 s and more hold {:?} entries or more",
        rates(network, seconds),
        millis(quantile(&most, 0.5)),
        millis(quantile(&most, 0.9)),
        millis(quantile(&most, 1.0)),
        millis(quantile(&all, 0.5)),
        millis(quantile(&all, 0.9)),
        millis(quantile(&all, 1.0)),
        least.unwrap_or(0),
    );
    traffic(network);
    network.settings.loss = 0;
}

/// Two halves for two minutes, and the time until they are one again.
fn divided(network: &mut Network) {
    reset(network);
    network.arrivals = None;
    let half = network.nodes.len() / 2;
    let across: Vec<_> = network
        .links
        .iter()
        .filter(|(one, other)| (*one < half) != (*other < half))
        .copied()
        .collect();
    for (one, other) in &across {
        network.unlink(*one, *other);
    }
    let begin = network.now;
    network.run_until(begin + Duration::from_secs(120));
    reset(network);
    for (one, other) in across {
        if network.nodes[one].up && network.nodes[other].up {
            network.link(one, other);
        }
    }
    let healed = network.now;
    // Heartbeats go on, so "equal" is: everybody has every heartbeat that was written before the end of the partition.
    let until: HashMap<String, u64> = network
        .nodes
        .iter()
        .filter(|node| node.up)
        .filter_map(|node| {
            let record = node.ledger.get("healthcheck", &node.name)?;
            Some((node.name.clone(), record.entry().version))
        })
        .collect();
    let behind = |network: &Network| {
        network.nodes.iter().filter(|node| node.up).any(|node| {
            until.iter().any(|(name, version)| {
                node.ledger
                    .get("healthcheck", name)
                    .is_none_or(|record| record.entry().version < *version)
            })
        })
    };
    while behind(network) && network.now < healed + Duration::from_secs(120) {
        let next = network.now + Duration::from_millis(250);
        network.run_until(next);
    }
    let took = network.now - healed;
    let bytes: u64 = network.nodes.iter().map(|node| node.bytes_out).sum();
    let up = network.nodes.iter().filter(|node| node.up).count();
    println!(
        "  halves apart for 120 s: one again after {:.1} s, {:.0} kB a node",
        took.as_secs_f64(),
        bytes as f64 / up as f64 / 1000.0
    );
}

/// No heartbeats, nothing written, and nothing grows too old meanwhile.
fn at_rest(network: &mut Network) {
    const REST: u64 = 300;
    network.stop_heartbeats();
    let clock = network.clock();
    let patient = Terms {
        ttl: Duration::from_secs(7200),
        ..terms()
    };
    for node in &mut network.nodes {
        node.ledger.set_terms(patient.clone(), clock);
    }
    // Pauses between comparisons have doubled as often as they do.
    let begin = network.now + Duration::from_secs(REST);
    network.run_until(begin);
    reset(network);
    network.run_until(begin + Duration::from_secs(REST));
    println!("  nothing changes: {}", rates(network, REST));
}

/// Times from writing to the last node, and to 99 % of them. Authors and nodes are those that were there all the time: the
/// first so many, if they are up.
fn spread(network: &mut Network, first: usize) -> (Vec<Duration>, Vec<Duration>) {
    let names: HashSet<&str> = network.nodes[..first]
        .iter()
        .filter(|node| node.up)
        .map(|node| node.name.as_str())
        .collect();
    let mut arrivals: HashMap<*const Record, (Arc<Record>, Vec<Duration>)> = HashMap::new();
    for (node, at, record) in network.arrivals.take().unwrap_or_default() {
        if node < first
            && network.nodes[node].up
            && record.bucket().name() == "healthcheck"
            && names.contains(record.key())
        {
            let found = arrivals
                .entry(Arc::as_ptr(&record))
                .or_insert_with(|| (record, Vec::new()));
            found.1.push(at);
        }
    }
    let (mut all, mut most) = (Vec::new(), Vec::new());
    let others = names.len() - 1;
    for (record, mut times) in arrivals.into_values() {
        let written = Duration::from_nanos(record.entry().version - BEGIN.as_nanos());
        times.sort_unstable();
        // One that is replaced before it is everywhere never is.
        let at = |share: f64| {
            let nth = (others as f64 * share).ceil() as usize;
            times
                .get(nth - 1)
                .map_or(Duration::MAX, |at| at.saturating_sub(written))
        };
        // What was written at the very end is still on its way.
        if written + Duration::from_secs(100) < network.now || times.len() == others {
            most.push(at(0.99));
            all.push(at(1.0));
        }
    }
    all.sort_unstable();
    most.sort_unstable();
    (all, most)
}

fn quantile(sorted: &[Duration], share: f64) -> Option<Duration> {
    let nth = (sorted.len().checked_sub(1)? as f64 * share).round() as usize;
    sorted.get(nth).copied()
}

fn millis(time: Option<Duration>) -> String {
    time.map_or("-".to_owned(), |time| match time.as_millis() {
        millis @ 0..10_000 => format!("{millis} ms"),
        1_000_000.. => "never".to_owned(),
        millis => format!("{} s", millis / 1000),
    })
}

fn reset(network: &mut Network) {
    network.traffic.clear();
    for node in &mut network.nodes {
        (node.bytes_in, node.bytes_out, node.messages_out) = (0, 0, 0);
    }
}

fn rates(network: &Network, seconds: u64) -> String {
    let mut sent: Vec<u64> = network
        .nodes
        .iter()
        .filter(|node| node.up)
        .map(|node| node.bytes_out)
        .collect();
    sent.sort_unstable();
    let messages: u64 = network.nodes.iter().map(|node| node.messages_out).sum();
    let mean = sent.iter().sum::<u64>() as f64 / sent.len() as f64 / seconds as f64;
    format!(
        "{mean:.0} B/s a node sent (busiest {}), {:.2} messages/s",
        sent.last().copied().unwrap_or(0) / seconds,
        messages as f64 / sent.len() as f64 / seconds as f64,
    )
}

fn traffic(network: &Network) {
    let mut kinds: Vec<_> = network.traffic.iter().collect();
    kinds.sort();
    let kinds: Vec<_> = kinds
        .iter()
        .map(|(kind, (count, bytes))| format!("{kind} {count} ({} kB)", bytes / 1000))
        .collect();
    println!("    {}", kinds.join(", "));
}

/// EdgeVPN: everybody sends everything every ten seconds, and everybody receives that of everybody.
fn broadcast(size: usize) {
    // Heartbeats and machines: bucket `nodes` is ours and not in it.
    let block = whole(size).block(BEGIN);
    let mut random = StdRng::seed_from_u64(1);
    let token = Token::generate(360, |bytes| random.fill(bytes));
    let key = token.seal_key(token.window(BEGIN));
    let data = seal(&block, &key, [0; 12]);
    let message = data.len() as f64 + GOSSIP_ENVELOPE as f64;
    let rate = message * (size - 1) as f64 / BROADCAST_INTERVAL;
    println!(
        "  whole-state broadcast: a block of {:.1} kB, sealed {:.1} kB; {:.1} kB/s a node received, one copy of each; {:.2} MB in the message cache of gossipsub",
        block.to_json().len() as f64 / 1e3,
        data.len() as f64 / 1e3,
        rate / 1e3,
        rate * MESSAGE_CACHE / 1e6,
    );
}

/// The ledger of a network of this size.
fn whole(size: usize) -> Ledger {
    let mut random = StdRng::seed_from_u64(7);
    let mut records = Vec::new();
    for number in 0..size {
        let keypair = keypair(random.random());
        let mut own = Ledger::new(keypair.public().to_peer_id(), terms());
        write_own(&mut own, &keypair, number, BEGIN);
        records.extend(own.iter().cloned());
    }
    let mut ledger = Ledger::new(keypair([5; 32]).public().to_peer_id(), terms());
    ledger.merge_records(records, BEGIN);
    ledger
}

/// What one node holds: the ledger as read from a state file, so that nothing is shared with another.
fn memory(size: usize) {
    let ledger = whole(size);
    let (state, entries) = (ledger.to_state(), ledger.size().entries);
    drop(ledger);
    let local = keypair([5; 32]).public().to_peer_id();
    let before = in_use();
    let ledger = Ledger::from_state(local, terms(), &state).expect("just written");
    let bytes = in_use() - before;
    println!(
        "  a ledger of {entries} entries takes {:.2} MB, {} bytes an entry",
        bytes as f64 / 1e6,
        bytes / entries
    );
    drop(black_box(ledger));
}

fn keypair(seed: [u8; 32]) -> Keypair {
    Keypair::ed25519_from_bytes(seed).expect("32 bytes are a key")
}

/// Counts the bytes in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn in_use() -> usize {
    IN_USE.load(Ordering::Relaxed)
}

// SAFETY: passes everything on to the system allocator and counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(memory, layout) }
    }
}
