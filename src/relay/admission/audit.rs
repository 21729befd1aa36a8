//! Counting: what has been decided, what is held, and whether the sums agree.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    time::Instant,
};

use super::{
    Admission, CircuitId, Reserved, Ticket,
    circuits::{Circuit, Phase},
};
use crate::{
    id::PeerId,
    relay::{Bytes, PeerReport, Refusal, Report},
};

#[derive(Debug, Default)]
pub(super) struct Counters {
    reservations: u64,
    renewals: u64,
    circuits: u64,
    shadow_refused: u64,
    /// By label; the set of labels is fixed.
    refused: BTreeMap<&'static str, u64>,
}

impl Counters {
    pub fn reserved(&mut self, reserved: &Reserved) {
        increase(if reserved.renewed {
            &mut self.renewals
        } else {
            &mut self.reservations
        });
        if reserved.shadow.is_some() {
            increase(&mut self.shadow_refused);
        }
    }

    pub fn ticket(&mut self, ticket: &Ticket) {
        if ticket.shadow.is_some() {
            increase(&mut self.shadow_refused);
        }
    }

    pub fn established(&mut self) {
        increase(&mut self.circuits);
    }

    pub fn refused(&mut self, refusal: &Refusal) {
        increase(self.refused.entry(refusal.label()).or_insert(0));
    }
}

fn increase(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}

impl Admission {
    /// All it knows; `bytes` says what a circuit has carried. Totals of bytes and reasons of ends are the caller's.
    pub fn report(&self, now: Instant, bytes: impl Fn(CircuitId) -> Bytes) -> Report {
        let resources = &self.policy.settings.resources;
        let (busiest, omitted) = self.busiest_peers();
        let refused = self.counters.refused.iter();
        Report {
            service: self.policy.settings.service,
            stopping: self.stopping,
            reservations: self.reservations,
            guests: u32::try_from(self.guests.len()).unwrap_or(u32::MAX),
            max_reservations: resources.max_reservations,
            circuits: self.established,
            max_circuits: resources.max_circuits_total,
            draining: self.draining(),
            handshakes: self.handshakes,
            reservations_total: self.counters.reservations,
            renewals_total: self.counters.renewals,
            circuits_total: self.counters.circuits,
            refused: refused
                .map(|(label, count)| ((*label).to_owned(), *count))
                .collect(),
            shadow_refused: self.counters.shadow_refused,
            buffered: self.buffers.held(),
            max_buffers: resources.max_buffers,
            peers: busiest
                .into_iter()
                .filter_map(|peer| self.report_peer(peer, now, &bytes))
                .collect(),
            peers_omitted: omitted,
            ..Report::default()
        }
    }

    /// Most circuits first, and how many more there are.
    fn busiest_peers(&self) -> (Vec<&PeerId>, u32) {
        let mut peers: Vec<(Reverse<usize>, &PeerId)> = self
            .peers
            .iter()
            .filter(|(_, state)| state.reservation.is_some() || !state.circuits.is_empty())
            .map(|(peer, state)| (Reverse(state.circuits.len()), peer))
            .collect();
        let omitted = peers.len().saturating_sub(Report::MAX_PEERS);
        if omitted > 0 {
            peers.select_nth_unstable(Report::MAX_PEERS);
            peers.truncate(Report::MAX_PEERS);
        }
        peers.sort_unstable();
        let peers = peers.into_iter().map(|(_, peer)| peer).collect();
        (peers, u32::try_from(omitted).unwrap_or(u32::MAX))
    }

    fn report_peer(
        &self,
        peer: &PeerId,
        now: Instant,
        bytes: impl Fn(CircuitId) -> Bytes,
    ) -> Option<PeerReport> {
        let state = self.peers.get(peer)?;
        let held = state.reservation.as_ref();
        let address = held
            .map(|held| held.address)
            .or_else(|| Some(state.direct()?.1));
        let mut report = PeerReport {
            peer: peer.to_string(),
            address: address
                .map(|address| address.to_string())
                .unwrap_or_default(),
            reserved_for_s: held.map(|held| held.expires.saturating_duration_since(now).as_secs()),
            ..PeerReport::default()
        };
        for id in &state.circuits {
            let Some(circuit) = self.circuits.get(id) else {
                continue;
            };
            if circuit.phase == Phase::Handshake {
                continue;
            }
            let role = if circuit.source.peer == *peer {
                &mut report.circuits_as_source
            } else {
                &mut report.circuits_as_destination
            };
            *role = role.saturating_add(1);
            let carried = bytes(*id);
            let sum = &mut report.bytes;
            sum.to_source = sum.to_source.saturating_add(carried.to_source);
            sum.to_destination = sum.to_destination.saturating_add(carried.to_destination);
        }
        Some(report)
    }

    /// For tests: every sum agrees with what it sums up. Panics otherwise.
    pub fn check_invariants(&self) {
        let mut reservations = 0;
        let mut prefixes = HashMap::new();
        for (peer, state) in &self.peers {
            assert!(!state.is_idle(), "{peer} is kept for nothing");
            if let Some(held) = &state.reservation {
                reservations += 1;
                *prefixes.entry(held.prefix).or_insert(0) += 1;
                assert!(held.armed <= held.expires, "{peer} would expire too late");
                let home = state.connection(held.connection);
                assert!(
                    home.is_some(),
                    "{peer} reserved over a connection that is gone"
                );
            }
            let in_role = |phase, role: fn(&Circuit) -> PeerId| {
                let known = state.circuits.iter().map(|id| &self.circuits[id]);
                known
                    .filter(|circuit| circuit.phase == phase && role(circuit) == *peer)
                    .count()
            };
            let source = |phase| in_role(phase, |circuit| circuit.source.peer);
            let destination = |phase| in_role(phase, |circuit| circuit.destination.peer);
            let (shaking, running) = (Phase::Handshake, Phase::Established);
            assert_eq!(state.load.handshakes_as_source as usize, source(shaking));
            assert_eq!(
                state.load.handshakes_as_destination as usize,
                destination(shaking)
            );
            assert_eq!(
                state.load.established as usize,
                source(running) + destination(running)
            );
        }
        for peer in &self.guests {
            let held = self.peers.get(peer).map(|state| &state.reservation);
            assert!(
                matches!(held, Some(Some(_))),
                "{peer} is a guest of nothing"
            );
        }
        assert_eq!(self.reservations as usize, reservations);
        assert_eq!(self.deadlines.len(), reservations);
        assert_eq!(self.prefixes, prefixes);
        let in_phase = |phase| {
            let circuits = self.circuits.values();
            circuits.filter(|circuit| circuit.phase == phase).count()
        };
        assert_eq!(self.established as usize, in_phase(Phase::Established));
        assert_eq!(self.handshakes as usize, in_phase(Phase::Handshake));
        for (id, circuit) in &self.circuits {
            for end in circuit.ends() {
                let state = self.peers.get(&end.peer).expect("both ends are known");
                assert!(state.circuits.contains(id), "{id:?} is unknown to its end");
                let connection = state.connection(end.connection);
                assert!(
                    connection.is_some(),
                    "{id:?} runs over a connection that is gone"
                );
            }
        }
    }
}
