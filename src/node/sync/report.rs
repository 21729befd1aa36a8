//! What `status` says about the network.

use std::{collections::BTreeSet, time::Instant};

use super::{book::Book, pump::Pump};
use crate::{
    acl::Window,
    api::{BootstrapReport, LedgerReport, MemberReport, NetworkReport, Traffic},
    id::{PeerId, UnixTime, parse_peer_id},
    ledger::Bucket,
};

/// How the network stands, and what does not work as it should.
pub type Report = (NetworkReport, Vec<String>);

impl Pump<'_> {
    /// `None`: the node is in no network.
    pub(super) async fn report(&mut self) -> Option<Report> {
        let (mut peers, omitted) = self.lend(|book, now| known(book, now)).await?;
        let now = self.now();
        let joined = self.joined.as_ref()?;
        let book = joined.book.as_ref()?;
        for peer in &mut peers {
            self.add_path(peer);
        }
        let size = book.ledger().size();
        let exchange = self.inputs.net.exchange().report();
        let mut rejected = self.counts.rejected.clone();
        rejected.extend(exchange.refused);
        let networks = book.networks();
        let report = NetworkReport {
            fingerprint: networks
                .own()
                .map_or_else(String::new, |own| own.to_string()),
            accepted: networks.accepted().map(|other| other.to_string()).collect(),
            members: count(self.membership().map_or(0, |all| all.members.len())),
            peers,
            peers_omitted: omitted,
            neighbours: count(exchange.neighbours),
            bootstrap: self.bootstrap_report(),
            ledger: LedgerReport {
                entries: size.entries.try_into().unwrap_or(u64::MAX),
                bytes: size.bytes,
                merged_total: self.counts.merged,
            },
            gossip: self.counts.gossip,
            exchange: Traffic {
                messages_in: exchange.frames_in,
                messages_out: exchange.frames_out,
                bytes_in: exchange.bytes_in,
                bytes_out: exchange.bytes_out,
            },
            rotation_in_s: networks
                .next_rotation(now)
                .map_or(0, |at| at.since(now).as_secs()),
            heartbeat_age_s: joined.heartbeat.map(|at| at.elapsed().as_secs()),
            clock_steps: self.clock.steps(),
            rejected: rejected
                .into_iter()
                .map(|(reason, count)| (reason.to_owned(), count))
                .collect(),
        };
        let mut problems = self.problems();
        if self.clock.holds() {
            problems.push(
                "the system clock was set by more than 30 s; the ledger follows it once its members do, or after `ledger.ownership_ttl`"
                    .to_owned(),
            );
        }
        Some((report, problems))
    }

    /// What a peer is to the network, in words.
    pub(super) fn why(&mut self, peer: PeerId) -> String {
        let now = self.now();
        let book = self.joined.as_ref().and_then(|joined| joined.book.as_ref());
        let Some(book) = book else {
            return "this node is in no network".to_owned();
        };
        match book.ledger().why_not_member(&peer, now) {
            None => match heartbeat_age(book, &peer, now) {
                Some(age) => format!("a member: its heartbeat is {age} s old"),
                None => "a member".to_owned(),
            },
            Some(why) => format!("not a member: {why}"),
        }
    }

    fn add_path(&self, peer: &mut MemberReport) {
        let Ok(id) = peer.peer.parse() else { return };
        if let Some(link) = self.inputs.net.streams().links(id).first() {
            let path = if link.relayed { "relayed" } else { "direct" };
            peer.path = Some(path.to_owned());
            peer.rtt_ms = link.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0);
        }
    }

    fn bootstrap_report(&self) -> BootstrapReport {
        let open = self
            .membership()
            .is_some_and(|membership| membership.window == Window::Open);
        let closes = self.bootstrap.deadline(self.config.access.bootstrap);
        BootstrapReport {
            open,
            closes_in_s: closes
                .filter(|_| open)
                .map(|at| at.saturating_duration_since(now()).as_secs()),
            why: self.bootstrap.closed().map(ToString::to_string),
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "how long until the window closes"
)]
fn now() -> Instant {
    Instant::now()
}

/// Everybody the ledger has heard of, members first, and how many more there are than fit.
fn known(book: &Book, now: UnixTime) -> (Vec<MemberReport>, u32) {
    let mut peers: BTreeSet<(bool, PeerId)> = BTreeSet::new();
    for record in book.ledger().iter() {
        if matches!(record.bucket(), Bucket::Healthcheck | Bucket::Nodes)
            && let Ok(peer) = parse_peer_id(record.key())
            && peer != book.local()
        {
            let member = book.ledger().why_not_member(&peer, now).is_none();
            peers.insert((!member, peer));
        }
    }
    let omitted = peers.len().saturating_sub(NetworkReport::MAX_PEERS);
    let listed = peers
        .into_iter()
        .take(NetworkReport::MAX_PEERS)
        .map(|(_, peer)| about(book, peer, now));
    (listed.collect(), count(omitted))
}

fn about(book: &Book, peer: PeerId, now: UnixTime) -> MemberReport {
    let why_not = book.ledger().why_not_member(&peer, now);
    let node = book.ledger().node(&peer);
    MemberReport {
        peer: peer.to_string(),
        addresses: node
            .iter()
            .flat_map(|node| node.addresses.iter().map(ToString::to_string))
            .collect(),
        member: why_not.is_none(),
        why_not: why_not.map(|why| why.to_string()),
        heartbeat_age_s: heartbeat_age(book, &peer, now),
        version: node
            .as_ref()
            .map_or_else(String::new, |node| node.version.clone()),
        name: node.map_or_else(String::new, |node| node.name),
        path: None,
        rtt_ms: None,
    }
}

fn heartbeat_age(book: &Book, peer: &PeerId, now: UnixTime) -> Option<u64> {
    let record = book
        .ledger()
        .get(Bucket::Healthcheck.name(), &peer.to_base58())?;
    let said = crate::wire::value::read_heartbeat(&record.entry().value)?;
    Some(now.since(said).as_secs())
}

fn count(number: usize) -> u32 {
    number.try_into().unwrap_or(u32::MAX)
}
