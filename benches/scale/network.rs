//! A simulated network of ledgers: every node is a real [`Ledger`] with a real [`Exchange`], links and clock are simulated.
//! Same seed, same run. Time is virtual: nothing waits.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use edgevpn::{
    id::{PeerId, UnixTime},
    ledger::{Exchange, Ledger, Message, Outgoing, Record, Terms},
    wire::value::heartbeat,
};
use libp2p::identity::Keypair;
use rand::{Rng, SeedableRng, rngs::StdRng};

/// When every simulation begins: a day in November 2026.
pub const BEGIN: UnixTime = UnixTime::from_secs(1_795_252_000);

/// Bytes that a message takes beside itself: nonce and tag of its seal (28), frame (4), yamux (12), noise (18), TCP and
/// IPv4 with time stamps (52).
pub const ENVELOPE: u64 = 114;

#[derive(Clone, Debug)]
pub struct Settings {
    pub terms: Terms,
    pub heartbeat: Duration,
    pub sync_interval: Duration,
    /// One way, both ends included.
    pub latency: (Duration, Duration),
    /// Messages lost of a thousand. Streams lose none; queues that overflow do.
    pub loss: u32,
    /// Messages that come twice, of a thousand.
    pub repeated: u32,
}

pub struct Network {
    pub settings: Settings,
    pub nodes: Vec<Node>,
    queue: BinaryHeap<Reverse<Event>>,
    order: u64,
    pub now: Duration,
    begin: Instant,
    pub random: StdRng,
    pub links: HashSet<(usize, usize)>,
    /// Nodes whose messages do not reach nodes with another number.
    pub sides: Vec<u8>,
    names: HashMap<PeerId, usize>,
    lengths: HashMap<*const Record, (Arc<Record>, u64)>,
    pub traffic: HashMap<&'static str, (u64, u64)>,
    /// Called with every entry that a node takes from another.
    pub arrivals: Option<Vec<(usize, Duration, Arc<Record>)>>,
}

pub struct Node {
    pub keypair: Keypair,
    pub peer: PeerId,
    pub name: String,
    pub ledger: Ledger,
    pub exchange: Exchange,
    pub neighbours: Vec<usize>,
    pub up: bool,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub messages_out: u64,
    polled_for: Duration,
}

#[derive(Debug)]
struct Event {
    at: Duration,
    order: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    Deliver {
        from: usize,
        to: usize,
        message: Message,
    },
    Poll(usize),
    Beat(usize),
    Maintain(usize),
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

impl Network {
    pub fn new(settings: Settings, seed: u64) -> Network {
        Network {
            settings,
            nodes: Vec::new(),
            queue: BinaryHeap::new(),
            order: 0,
            now: Duration::ZERO,
            begin: Instant::now(),
            random: StdRng::seed_from_u64(seed),
            links: HashSet::new(),
            sides: Vec::new(),
            names: HashMap::new(),
            lengths: HashMap::new(),
            traffic: HashMap::new(),
            arrivals: None,
        }
    }

    pub fn clock(&self) -> UnixTime {
        BEGIN.saturating_add(self.now)
    }

    fn instant(&self) -> Instant {
        self.begin + self.now
    }

    /// A node without links and without entries.
    pub fn add(&mut self) -> usize {
        let number = self.nodes.len();
        let mut seed = [9; 32];
        self.random.fill(&mut seed);
        let keypair = Keypair::ed25519_from_bytes(seed).expect("32 bytes are a key");
        let peer = keypair.public().to_peer_id();
        self.nodes.push(Node {
            ledger: Ledger::new(peer, self.settings.terms.clone()),
            exchange: Exchange::new(peer, self.settings.sync_interval, self.random.random()),
            name: peer.to_base58(),
            keypair,
            peer,
            neighbours: Vec::new(),
            up: true,
            bytes_in: 0,
            bytes_out: 0,
            messages_out: 0,
            polled_for: Duration::MAX,
        });
        self.names.insert(peer, number);
        self.sides.push(0);
        self.push(self.now + Duration::from_secs(60), What::Maintain(number));
        number
    }

    /// The node's heartbeat, now or spread over the interval, and from then on.
    pub fn start_heartbeat(&mut self, node: usize, spread: bool) {
        let wait = match spread {
            true => self.settings.heartbeat.mul_f64(self.random.random()),
            false => Duration::ZERO,
        };
        self.push(self.now + wait, What::Beat(node));
    }

    /// From now on nobody writes a heartbeat.
    pub fn stop_heartbeats(&mut self) {
        self.queue
            .retain(|Reverse(event)| !matches!(event.what, What::Beat(_)));
    }

    pub fn link(&mut self, one: usize, other: usize) {
        let pair = (one.min(other), one.max(other));
        if one == other || !self.links.insert(pair) {
            return;
        }
        for (here, there) in [(one, other), (other, one)] {
            let (clock, instant) = (self.clock(), self.instant());
            let peer = self.nodes[there].peer;
            let node = &mut self.nodes[here];
            node.neighbours.push(there);
            let out = node
                .exchange
                .connected(peer, &mut node.ledger, clock, instant);
            self.send(here, out);
        }
    }

    pub fn unlink(&mut self, one: usize, other: usize) {
        if !self.links.remove(&(one.min(other), one.max(other))) {
            return;
        }
        let instant = self.instant();
        for (here, there) in [(one, other), (other, one)] {
            let peer = self.nodes[there].peer;
            let node = &mut self.nodes[here];
            node.neighbours.retain(|node| *node != there);
            node.exchange.disconnected(&peer, instant);
            self.schedule(here);
        }
    }

    /// A random graph in which everybody has about `degree` neighbours, and everybody reaches everybody.
    pub fn link_at_random(&mut self, degree: usize) {
        let count = self.nodes.len();
        for node in 1..count {
            let other = self.random.random_range(0..node);
            self.link(node, other);
        }
        for node in 0..count {
            self.link_up(node, degree);
        }
    }

    /// Gives a node neighbours until it has enough.
    pub fn link_up(&mut self, node: usize, degree: usize) {
        let up = self.nodes.iter().filter(|node| node.up).count();
        for _ in 0..8 * degree {
            if self.nodes[node].neighbours.len() >= degree.min(up.saturating_sub(1)) {
                break;
            }
            let other = self.random.random_range(0..self.nodes.len());
            if self.nodes[other].up && self.nodes[other].neighbours.len() < degree + 4 {
                self.link(node, other);
            }
        }
    }

    pub fn put(&mut self, node: usize, bucket: &str, key: &str, value: &str) -> bool {
        let (clock, instant) = (self.clock(), self.instant());
        let here = &mut self.nodes[node];
        if !here.ledger.put(bucket, key, value, &here.keypair, clock) {
            return false;
        }
        let record = here.ledger.get(bucket, key).expect("just put").clone();
        let out = here.exchange.spread(&[record], &here.ledger, instant);
        self.send(node, out);
        self.schedule(node);
        true
    }

    /// Stops a node: cleanly, with its entries withdrawn, or as if its cable were cut.
    pub fn stop(&mut self, node: usize, cleanly: bool) {
        let (clock, instant) = (self.clock(), self.instant());
        let here = &mut self.nodes[node];
        if cleanly {
            let gone = here.ledger.withdraw(&here.keypair, clock);
            let out = here.exchange.spread(&gone, &here.ledger, instant);
            self.send(node, out);
        }
        self.nodes[node].up = false;
        for other in self.nodes[node].neighbours.clone() {
            self.unlink(node, other);
        }
        let local = self.nodes[node].peer;
        // What it held is not needed any more.
        self.nodes[node].ledger = Ledger::new(local, self.settings.terms.clone());
    }

    /// Lets time pass, as long as something is left to happen.
    pub fn run_until(&mut self, end: Duration) {
        while let Some(Reverse(next)) = self.queue.peek()
            && next.at <= end
        {
            let Some(Reverse(event)) = self.queue.pop() else {
                break;
            };
            self.now = event.at;
            self.happen(event.what);
        }
        self.now = end;
    }

    fn happen(&mut self, what: What) {
        let (clock, instant) = (self.clock(), self.instant());
        match what {
            What::Deliver { from, to, message } => {
                let pair = (from.min(to), from.max(to));
                // A message of a node that left cleanly still arrives.
                if !self.nodes[to].up
                    || (self.nodes[from].up && !self.links.contains(&pair))
                    || self.sides[from] != self.sides[to]
                {
                    return;
                }
                let length = self.length(&message);
                let sender = self.nodes[from].peer;
                let node = &mut self.nodes[to];
                node.bytes_in += length;
                let handled =
                    node.exchange
                        .handle(sender, message, &mut node.ledger, clock, instant);
                if let Some(arrivals) = &mut self.arrivals {
                    let changed = handled.merged.changed.iter().cloned();
                    arrivals.extend(changed.map(|record| (to, self.now, record)));
                }
                let mut out = handled.outgoing;
                if !handled.merged.contested.is_empty() {
                    let node = &mut self.nodes[to];
                    let written =
                        node.ledger
                            .reassert(&handled.merged.contested, &node.keypair, clock);
                    out.extend(node.exchange.spread(&written, &node.ledger, instant));
                }
                self.send(to, out);
                self.schedule(to);
            }
            What::Poll(number) => {
                let node = &mut self.nodes[number];
                if !node.up || node.polled_for != self.now {
                    return;
                }
                node.polled_for = Duration::MAX;
                let out = node.exchange.poll(&mut node.ledger, clock, instant);
                self.send(number, out);
                self.schedule(number);
            }
            What::Beat(number) => {
                if !self.nodes[number].up {
                    return;
                }
                let name = self.nodes[number].name.clone();
                self.put(number, "healthcheck", &name, &heartbeat(clock));
                self.push(self.now + self.settings.heartbeat, What::Beat(number));
            }
            What::Maintain(number) => {
                if !self.nodes[number].up {
                    return;
                }
                self.nodes[number].ledger.maintain(clock);
                self.push(self.now + Duration::from_secs(60), What::Maintain(number));
            }
        }
    }

    fn send(&mut self, from: usize, outgoing: Vec<Outgoing>) {
        for Outgoing { to, message } in outgoing {
            let to = self.names[&to];
            let length = self.length(&message);
            let (count, bytes) = self.traffic.entry(message.label()).or_default();
            *count += 1;
            *bytes += length;
            self.nodes[from].bytes_out += length;
            self.nodes[from].messages_out += 1;
            if self.random.random_range(0..1000) < self.settings.loss {
                continue;
            }
            if self.random.random_range(0..1000) < self.settings.repeated {
                self.deliver(from, to, message.clone());
            }
            self.deliver(from, to, message);
        }
        self.schedule(from);
    }

    fn deliver(&mut self, from: usize, to: usize, message: Message) {
        let (least, most) = self.settings.latency;
        let latency = least + (most - least).mul_f64(self.random.random());
        self.push(self.now + latency, What::Deliver { from, to, message });
    }

    fn schedule(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        if !node.up {
            return;
        }
        if let Some(deadline) = node.exchange.next_deadline() {
            let at = deadline
                .saturating_duration_since(self.begin)
                .max(self.now + Duration::from_millis(1));
            if at < node.polled_for || node.polled_for < self.now {
                node.polled_for = at;
                self.push(at, What::Poll(number));
            }
        }
    }

    fn push(&mut self, at: Duration, what: What) {
        self.order += 1;
        self.queue.push(Reverse(Event {
            at,
            order: self.order,
            what,
        }));
    }

    /// Bytes on the wire. An entry is encoded once, however many messages carry it.
    fn length(&mut self, message: &Message) -> u64 {
        let Message::Entries { entries, why, next } = message else {
            return message.encode().len() as u64 + ENVELOPE;
        };
        let alone = |record: &Arc<Record>| {
            let message = Message::Entries {
                entries: vec![record.clone()],
                why: *why,
                next: None,
            };
            message.encode().len() as u64 - 5
        };
        let mut length = 5 + ENVELOPE + if next.is_some() { 11 } else { 0 };
        for record in entries {
            let known = self
                .lengths
                .entry(Arc::as_ptr(record))
                .or_insert_with(|| (record.clone(), alone(record)));
            length += known.1;
        }
        if self.lengths.len() > 200_000 {
            self.lengths.clear();
        }
        length
    }
}
