//! The ledger with what it is told and what it tells: frames and messages in, frames and verdicts out. Blocks for as long
//! as signatures take; the task that owns it lends it to a thread that may.
#![allow(clippy::disallowed_methods, reason = "gives the exchange its clock")]

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry as Slot},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, gossipsub::MessageId, identity::Keypair, multiaddr::Protocol};

use super::{
    budget::Budget,
    networks::{NONCE, Networks, Opened, Way},
};
use crate::{
    acl::{Membership, Window},
    api,
    id::{PeerId, UnixTime, parse_peer_id},
    ledger::{Bucket, Exchange, Ledger, Merged, Message, Node, Outgoing, Record, Terms},
    net::{
        Heard,
        exchange::{self, Neighbours},
        gossip,
    },
    wire::{self, Bounds, Fingerprint, OpenError, Window as SealWindow, value::Machine},
};

/// Peers that have greeted us and to whom no stream is open, at most; beyond it they greet again.
const GREETED: usize = 4096;

pub struct Book {
    keypair: Keypair,
    local: PeerId,
    networks: Networks,
    ledger: Ledger,
    exchange: Exchange,
    /// Peers that have shown that they hold a token of ours, and the first of ours that they hold.
    greeted: HashMap<PeerId, Fingerprint>,
    /// Streams to neighbours, by number.
    lanes: Neighbours,
    /// Of those who broadcast.
    budget: Budget,
}

/// What follows from a piece of work.
#[derive(Debug, Default)]
pub struct Outcome {
    /// To send, in order.
    pub frames: Vec<(PeerId, Vec<u8>)>,
    /// For gossip.
    pub judged: Vec<(MessageId, PeerId, gossip::Verdict)>,
    /// The ledger is not what it was.
    pub changed: bool,
    /// This node has said something new.
    pub said: bool,
    /// Entries taken over from others.
    pub merged: u64,
    /// What was not taken, by reason.
    pub rejected: BTreeMap<&'static str, u64>,
    /// For the log: who sent what was not taken.
    pub complaints: Vec<(PeerId, String)>,
    /// Where members say that they can be dialled, as far as that has changed.
    pub addresses: Vec<(PeerId, Vec<Multiaddr>)>,
    /// Messages and bytes that gossip has brought.
    pub gossip: api::Traffic,
}

impl Outcome {
    /// Takes in what another piece of work by this node itself has led to.
    fn and(&mut self, other: Outcome) {
        self.frames.extend(other.frames);
        self.changed |= other.changed;
        self.said |= other.said;
    }

    fn reject(&mut self, reason: &'static str, count: u64) {
        let total = self.rejected.entry(reason).or_default();
        *total = total.saturating_add(count);
    }
}

/// What this node says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    name: String,
    addresses: Vec<Multiaddr>,
    /// `ledger.heartbeat`.
    heartbeat: Duration,
    /// Addresses in the overlay.
    hosts: Vec<IpAddr>,
}

impl Own {
    pub fn new(
        name: String,
        addresses: Vec<Multiaddr>,
        heartbeat: Duration,
        hosts: Vec<IpAddr>,
    ) -> Own {
        Own {
            name,
            addresses: addresses.into_iter().filter(is_worth_dialling).collect(),
            heartbeat,
            hosts,
        }
    }
}

/// Whether somebody on another machine may reach it. Private addresses may be on the same link.
fn is_worth_dialling(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => {
            !(ip.is_loopback() || ip.is_unspecified() || ip.is_link_local() || ip.is_multicast())
        }
        Some(Protocol::Ip6(ip)) => {
            !(ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_unicast_link_local()
                || ip.is_multicast())
        }
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_)) => {
            true
        }
        _ => false,
    }
}

impl Book {
    /// `interval`: `ledger.sync_interval`.
    pub fn new(keypair: Keypair, networks: Networks, ledger: Ledger, interval: Duration) -> Book {
        let local = keypair.public().to_peer_id();
        Book {
            local,
            keypair,
            networks,
            ledger,
            exchange: Exchange::new(local, interval, rand::random()),
            greeted: HashMap::new(),
            lanes: Neighbours::default(),
            budget: Budget::default(),
        }
    }

    pub fn local(&self) -> PeerId {
        self.local
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub fn networks(&self) -> &Networks {
        &self.networks
    }

    pub fn exchange_deadline(&self) -> Option<Instant> {
        self.exchange.next_deadline()
    }

    pub fn membership(&self, window: Window, now: UnixTime) -> Membership {
        let (members, withdrawn) = self.ledger.membership(now);
        Membership {
            members,
            withdrawn,
            window,
        }
    }

    pub fn set_terms(&mut self, terms: Terms, interval: Duration, now: UnixTime) {
        self.ledger.set_terms(terms, now);
        self.exchange.set_interval(interval);
    }

    /// The same network goes on under other tokens: every neighbour is greeted with them.
    pub fn set_networks(&mut self, networks: Networks, now: UnixTime) -> Outcome {
        self.networks = networks;
        let mut outcome = Outcome::default();
        let peers: Vec<PeerId> = self.lanes.keys().copied().collect();
        for peer in peers {
            self.greet(peer, true, now, &mut outcome);
        }
        let held = |network: &Fingerprint| self.networks.token(*network).is_some();
        let lost: Vec<PeerId> = self
            .greeted
            .iter()
            .filter(|(_, network)| !held(network))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in lost {
            self.part(&peer);
        }
        outcome
    }

    /// Streams to neighbours have come and gone.
    pub fn set_lanes(&mut self, lanes: Neighbours, now: UnixTime) -> Outcome {
        let before = std::mem::replace(&mut self.lanes, lanes);
        let mut outcome = Outcome::default();
        for peer in before.keys() {
            if !self.lanes.contains_key(peer) {
                self.exchange.disconnected(peer, Instant::now());
            }
        }
        let fresh: Vec<PeerId> = self
            .lanes
            .iter()
            .filter(|(peer, number)| before.get(peer) != Some(number))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in fresh {
            self.greet(peer, true, now, &mut outcome);
            if self.greeted.contains_key(&peer) {
                self.begin(peer, now, &mut outcome);
            }
        }
        if self.greeted.len() > GREETED {
            let lanes = self.lanes.clone();
            self.greeted.retain(|peer, _| lanes.contains_key(peer));
        }
        outcome
    }

    fn greet(&self, peer: PeerId, asks: bool, now: UnixTime, outcome: &mut Outcome) {
        let frame = self.networks.greet(self.way_to(peer), asks, now, nonce);
        outcome.frames.push((peer, frame));
    }

    /// Both sides know that they are in one network, and there is a way to the other.
    fn begin(&mut self, peer: PeerId, now: UnixTime, outcome: &mut Outcome) {
        let at = Instant::now();
        let outgoing = self.exchange.connected(peer, &mut self.ledger, now, at);
        self.send(outgoing, now, outcome);
    }

    fn part(&mut self, peer: &PeerId) {
        self.greeted.remove(peer);
        self.exchange.disconnected(peer, Instant::now());
    }

    /// What peers have said.
    pub fn hear(&mut self, heard: Vec<Heard>, now: UnixTime) -> Outcome {
        let mut outcome = Outcome::default();
        for heard in heard {
            match heard {
                Heard::Exchange(frame) => self.hear_frame(frame, now, &mut outcome),
                Heard::Gossip(message, _waiting) => {
                    self.hear_message(message, now, &mut outcome);
                }
            }
        }
        outcome
    }

    fn hear_frame(&mut self, frame: exchange::Frame, now: UnixTime, outcome: &mut Outcome) {
        let peer = frame.peer;
        let way = Way {
            from: peer,
            to: self.local,
        };
        let verdict = match self.networks.open(&frame.bytes, way, now) {
            Ok(Opened::Hello { network, asks }) => {
                let news = match self.greeted.entry(peer) {
                    Slot::Occupied(mut known) => known.insert(network) != network,
                    Slot::Vacant(new) => {
                        new.insert(network);
                        true
                    }
                };
                if self.lanes.contains_key(&peer) {
                    if asks {
                        self.greet(peer, false, now, outcome);
                    }
                    if asks || news {
                        self.begin(peer, now, outcome);
                    }
                }
                exchange::Verdict::Good
            }
            Ok(Opened::Message(bytes)) => match Message::decode(&bytes) {
                Ok(message) => {
                    let at = Instant::now();
                    let handled = self
                        .exchange
                        .handle(peer, message, &mut self.ledger, now, at);
                    self.send(handled.outgoing, now, outcome);
                    self.merged(handled.merged, peer, false, now, outcome);
                    exchange::Verdict::Good
                }
                Err(error) => {
                    outcome.reject("exchange_message", 1);
                    outcome.complaints.push((peer, error.to_string()));
                    exchange::Verdict::Bad
                }
            },
            Err(error) => {
                outcome.reject("exchange_sealed", 1);
                outcome.complaints.push((peer, error.to_string()));
                exchange::Verdict::Bad
            }
        };
        frame.receipt.give(verdict);
    }

    fn hear_message(&mut self, heard: gossip::Message, now: UnixTime, outcome: &mut Outcome) {
        outcome.gossip.messages_in = outcome.gossip.messages_in.saturating_add(1);
        let length = u64::try_from(heard.data.len()).unwrap_or(u64::MAX);
        outcome.gossip.bytes_in = outcome.gossip.bytes_in.saturating_add(length);
        let began = Instant::now();
        if !self.budget.covers(&heard.author, began) {
            outcome.reject("too_much", 1);
            let ignored = (heard.id, heard.forwarder, gossip::Verdict::Ignore);
            outcome.judged.push(ignored);
            return;
        }
        let keys = self.networks.keys(heard.network, heard.window);
        let verdict = match wire::open(&heard.data, &keys, &Bounds::default()) {
            Ok(block) => {
                let merged = self.ledger.merge(&block, now);
                self.merged(merged, heard.author, true, now, outcome);
                gossip::Verdict::Accept
            }
            Err(error) => {
                outcome.reject(error.label(), 1);
                outcome.complaints.push((heard.author, error.to_string()));
                match error {
                    // Sealed by a clock that is far off, or by somebody without the key: whoever forwards cannot know.
                    OpenError::Key => gossip::Verdict::Ignore,
                    _ => gossip::Verdict::Reject,
                }
            }
        };
        let ended = Instant::now();
        self.budget
            .spend(heard.author, ended.saturating_duration_since(began), ended);
        outcome.judged.push((heard.id, heard.forwarder, verdict));
    }

    /// `spread`: the neighbours have not been told yet.
    fn merged(
        &mut self,
        merged: Merged,
        from: PeerId,
        spread: bool,
        now: UnixTime,
        outcome: &mut Outcome,
    ) {
        for (reason, count) in &merged.rejected {
            outcome.reject(reason.label(), u64::from(*count));
        }
        for sample in &merged.samples {
            let what = format!(
                "entry {}/{} of {}: {}",
                sample.bucket.name(),
                sample.key,
                sample.owner,
                sample.reason
            );
            outcome.complaints.push((from, what));
        }
        if !merged.changed.is_empty() {
            outcome.changed = true;
            let count = u64::try_from(merged.changed.len()).unwrap_or(u64::MAX);
            outcome.merged = outcome.merged.saturating_add(count);
            self.note_addresses(&merged.changed, now, outcome);
            if spread {
                self.spread(&merged.changed, now, outcome);
            }
        }
        if !merged.contested.is_empty() {
            let written = self.ledger.reassert(&merged.contested, &self.keypair, now);
            self.said(&written, now, outcome);
        }
    }

    /// Members that tell anew where they are. Those that become members are told of when that is published.
    fn note_addresses(&self, changed: &[Arc<Record>], now: UnixTime, outcome: &mut Outcome) {
        let peers = changed
            .iter()
            .filter(|record| *record.bucket() == Bucket::Nodes)
            .filter_map(|record| parse_peer_id(record.key()).ok());
        for peer in peers {
            if self.ledger.why_not_member(&peer, now).is_none() {
                let addresses = self.ledger.node(&peer).map(|node| node.addresses);
                outcome
                    .addresses
                    .push((peer, addresses.unwrap_or_default()));
            }
        }
    }

    /// Says that this node is alive.
    pub fn beat(&mut self, now: UnixTime) -> Outcome {
        let value = wire::value::heartbeat(now);
        self.put(Bucket::Healthcheck, &value, now)
    }

    /// Says who this node is and where, and sees to it that its heartbeat stands and is not dated wrongly.
    pub fn announce(&mut self, own: &Own, now: UnixTime) -> Outcome {
        let node = Node {
            peer: self.local,
            name: own.name.clone(),
            addresses: own.addresses.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let mut outcome = self.put(Bucket::Nodes, &node.value(), now);
        if !self.beats(own.heartbeat, now) {
            outcome.and(self.beat(now));
        }
        self.claim(own, now, &mut outcome);
        outcome
    }

    /// Says which addresses of the overlay are this node's, and withdraws those that are no longer. One that a member has
    /// already stays that member's.
    fn claim(&mut self, own: &Own, now: UnixTime, outcome: &mut Outcome) {
        let mut written = Vec::new();
        let bucket = Bucket::Machines.name();
        for host in &own.hosts {
            let key = host.to_string();
            let machine = Machine {
                peer_id: self.local.to_base58(),
                hostname: own.name.clone(),
                os: GO_OS.to_owned(),
                arch: go_arch().to_owned(),
                address: key.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            };
            let value = machine.to_text();
            if self.ledger.put(bucket, &key, &value, &self.keypair, now) {
                written.extend(self.ledger.get(bucket, &key).cloned());
            }
        }
        let local = self.local.to_base58();
        let is_stale = |record: &&Arc<Record>| {
            let host = record.key().parse().ok();
            *record.bucket() == Bucket::Machines
                && !record.entry().deleted
                && record.entry().owner == local
                && !host.is_some_and(|host: IpAddr| own.hosts.contains(&host))
        };
        let stale: Vec<String> = self
            .ledger
            .iter()
            .filter(is_stale)
            .map(|record| record.key().to_owned())
            .collect();
        for key in stale {
            if self.ledger.delete(bucket, &key, &self.keypair, now) {
                written.extend(self.ledger.get(bucket, &key).cloned());
            }
        }
        self.said(&written, now, outcome);
    }

    /// Addresses in the overlay, each with the member that has it; this node's own included.
    pub fn machines(&self, now: UnixTime) -> BTreeMap<IpAddr, PeerId> {
        let machine = |record: &Arc<Record>| {
            let entry = record.entry();
            if *record.bucket() != Bucket::Machines || entry.deleted {
                return None;
            }
            let host: IpAddr = record.key().parse().ok()?;
            let peer = parse_peer_id(&Machine::read(&entry.value)?.peer_id).ok()?;
            // Without ownership nobody signs, and the value is all there is.
            let owned = entry.owner.is_empty() || entry.owner == peer.to_base58();
            let alive = peer == self.local || self.ledger.why_not_member(&peer, now).is_none();
            (owned && alive).then_some((host, peer))
        };
        self.ledger.iter().filter_map(machine).collect()
    }

    /// Whether the heartbeat of this node is in its place, and neither older than two pauses nor dated ahead.
    fn beats(&self, heartbeat: Duration, now: UnixTime) -> bool {
        let held = self
            .ledger
            .get(Bucket::Healthcheck.name(), &self.local.to_base58());
        let Some(entry) = held.map(|record| record.entry()) else {
            return false;
        };
        let ours = !entry.deleted && entry.owner == self.local.to_base58();
        let said = wire::value::read_heartbeat(&entry.value);
        ours && said.is_some_and(|said| {
            now.since(said) <= heartbeat.saturating_mul(2)
                && said.since(now) <= Duration::from_secs(1)
        })
    }

    fn put(&mut self, bucket: Bucket, value: &str, now: UnixTime) -> Outcome {
        let mut outcome = Outcome::default();
        let key = self.local.to_base58();
        let put = self
            .ledger
            .put(bucket.name(), &key, value, &self.keypair, now);
        if put && let Some(record) = self.ledger.get(bucket.name(), &key).cloned() {
            self.said(&[record], now, &mut outcome);
        }
        outcome
    }

    /// Deletes what this node has written, before it leaves.
    pub fn withdraw(&mut self, now: UnixTime) -> Outcome {
        let mut outcome = Outcome::default();
        let written = self.ledger.withdraw(&self.keypair, now);
        self.said(&written, now, &mut outcome);
        outcome
    }

    fn said(&mut self, written: &[Arc<Record>], now: UnixTime, outcome: &mut Outcome) {
        if !written.is_empty() {
            outcome.changed = true;
            outcome.said = true;
            self.spread(written, now, outcome);
        }
    }

    fn spread(&mut self, records: &[Arc<Record>], now: UnixTime, outcome: &mut Outcome) {
        let outgoing = self.exchange.spread(records, &self.ledger, Instant::now());
        self.send(outgoing, now, outcome);
    }

    /// Compares with the neighbours whose turn it is.
    pub fn exchange(&mut self, now: UnixTime) -> Outcome {
        let mut outcome = Outcome::default();
        let outgoing = self.exchange.poll(&mut self.ledger, now, Instant::now());
        self.send(outgoing, now, &mut outcome);
        outcome
    }

    /// Lets heartbeats lapse and forgets the dead.
    pub fn maintain(&mut self, now: UnixTime) -> Outcome {
        Outcome {
            changed: !self.ledger.maintain(now).is_empty(),
            ..Outcome::default()
        }
    }

    /// The whole ledger as EdgeVPN's nodes take it, for each of these rooms.
    pub fn blocks(
        &mut self,
        rooms: &[(Fingerprint, SealWindow)],
        now: UnixTime,
    ) -> Vec<(Fingerprint, SealWindow, Vec<u8>)> {
        let block = self.ledger.block(now);
        rooms
            .iter()
            .filter_map(|(network, window)| {
                let key = self.networks.token(*network)?.seal_key(*window);
                Some((*network, *window, wire::seal(&block, &key, nonce())))
            })
            .collect()
    }

    fn send(&self, outgoing: Vec<Outgoing>, now: UnixTime, outcome: &mut Outcome) {
        for Outgoing { to, message } in outgoing {
            let Some(network) = self.greeted.get(&to) else {
                continue;
            };
            let (way, message) = (self.way_to(to), message.encode());
            let sealed = self.networks.seal(*network, &message, way, now, nonce());
            outcome.frames.extend(sealed.map(|frame| (to, frame)));
        }
    }

    fn way_to(&self, peer: PeerId) -> Way {
        Way {
            from: self.local,
            to: peer,
        }
    }
}

/// As Go names it, for the nodes that read it.
const GO_OS: &str = "linux";

/// Go has names of its own for some processors.
fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

/// Drawn at random: keys are used for one window by few nodes, far below where twelve random bytes repeat.
fn nonce() -> [u8; NONCE] {
    rand::random()
}
