//! What the parts of a node say about themselves, as the API tells it.

use std::cmp::Reverse;

use libp2p::Multiaddr;

use super::Node;
use crate::{
    api::{self, DhtReport, PunchReport, ReachReport, RelayReport},
    net::NetReport,
    relay::upkeep::Stage,
    task,
};

impl Node {
    pub async fn report(&self) -> api::NodeReport {
        let snapshot = self.snapshot();
        let net = self.net.report().await;
        let (network, problems) = self.ledger.report().await.unzip();
        let texts = |addresses: &[Multiaddr]| addresses.iter().map(Multiaddr::to_string).collect();
        api::NodeReport {
            name: snapshot.config.node.name.clone(),
            peer_id: self.net.local_peer.to_string(),
            new_key: self.new_key.as_ref().map(|path| path.display().to_string()),
            listening: texts(&net.listening),
            announced: texts(&snapshot.config.transport.announce),
            connections: api::Connections {
                established: net.established,
                pending: net.pending,
                peers: count(net.peers.len()),
                max: snapshot.config.limits.connections,
                refused_total: net.refused,
            },
            reach: Some(reach(&net)),
            relay: net.relay,
            network: network.map(|mut network| {
                if net.missed > 0 {
                    network.rejected.insert("behind".to_owned(), net.missed);
                }
                network
            }),
            vpn: self.vpn.report(&self.machines.borrow()),
            problems: problems.unwrap_or_default(),
            panics: task::panics(),
        }
    }
}

fn reach(net: &NetReport) -> ReachReport {
    let mut relays: Vec<_> = net.reach.relays.iter().collect();
    let is_active = |stage: &Stage| matches!(stage, Stage::Active { .. });
    let held = relays
        .iter()
        .filter(|relay| is_active(&relay.entry.stage))
        .count();
    relays.sort_by_key(|relay| Reverse(is_active(&relay.entry.stage)));
    let verdict = &net.reach.verdict;
    let mut punches: Vec<_> = net.reach.punches.iter().collect();
    punches.sort_by_key(|punch| punch.ago);
    let known = &net.found.known;
    let found = [
        ("file", known.file),
        ("bootstrap", known.bootstrap),
        ("relays", known.relays),
        ("ledger", known.ledger),
        ("mdns", known.mdns),
        ("dht", known.dht),
    ];
    ReachReport {
        reachability: verdict.reachability.as_str().to_owned(),
        reachability_by: verdict.source.to_owned(),
        reachability_server: verdict.server.map(|server| server.to_string()),
        reachability_address: verdict.address.as_ref().map(Multiaddr::to_string),
        external: net
            .reach
            .external
            .iter()
            .take(ReachReport::MAX_RELAYS)
            .map(Multiaddr::to_string)
            .collect(),
        port_mapping: net.reach.mapping.as_str().to_owned(),
        hole_punching: punches
            .into_iter()
            .take(ReachReport::MAX_RELAYS)
            .map(|punch| PunchReport {
                peer: punch.peer.to_string(),
                ago_s: punch.ago.as_secs(),
                failure: punch.failure.clone(),
            })
            .collect(),
        reservations: count(held),
        reservations_wanted: match net.reach.wanted {
            true => count(net.reach.target),
            false => 0,
        },
        relays: relays
            .into_iter()
            .take(ReachReport::MAX_RELAYS)
            .map(|relay| RelayReport {
                relay: relay.entry.relay.to_string(),
                source: relay.entry.source.as_str().to_owned(),
                stage: relay.entry.stage.label().to_owned(),
                connected: relay.entry.connected,
                failures: relay.entry.failures,
                last_failure: relay
                    .entry
                    .last_failure
                    .map(|failure| failure.as_str().to_owned()),
                held_for_s: match relay.entry.stage {
                    Stage::Active { held_for, .. } => Some(held_for.as_secs()),
                    _ => None,
                },
                expires_in_s: match relay.entry.stage {
                    Stage::Active { expires_in, .. } => expires_in.map(|span| span.as_secs()),
                    _ => None,
                },
                rests_for_s: match relay.entry.stage {
                    Stage::Resting { until } => Some(until.as_secs()),
                    Stage::Candidate
                    | Stage::Dialling
                    | Stage::Reserving
                    | Stage::Active { .. } => None,
                },
                addresses: relay.addresses.iter().map(Multiaddr::to_string).collect(),
            })
            .collect(),
        next_in_s: net.reach.next_in.map(|next| next.as_secs()),
        found: found
            .into_iter()
            .map(|(source, peers)| (source.to_owned(), long(peers)))
            .collect(),
        kept: long(net.found.kept),
        kept_connected: long(net.found.connected),
        dht: net.dht.as_ref().map(|dht| DhtReport {
            server: dht.server,
            entrances_connected: long(net.found.bootstrap_connected),
            routing: long(dht.routing),
            keys_held: long(dht.keys_held),
            next_announce_in_s: dht.next_announce.as_secs(),
            last_look_s: dht.last_look.map(|ago| ago.as_secs()),
        }),
    }
}

fn count(number: usize) -> u32 {
    number.try_into().unwrap_or(u32::MAX)
}

fn long(number: usize) -> u64 {
    number.try_into().unwrap_or(u64::MAX)
}
