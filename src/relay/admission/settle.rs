//! A change of policy: what the new one no longer allows of what exists.
//!
//! Weighed first, without touching anything, so that `plan` tells what a reload then does.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    Admission, CircuitId, Cut, Effect, Ended, Policy,
    circuits::{Circuit, Phase},
    peer::Reservation,
};
use crate::{
    acl::{Acl, Mode, Operation, RuleRef},
    id::PeerId,
    relay::OnShrink,
};

/// What a policy does to what exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Impact {
    pub reservations_ended: u32,
    pub circuits_cut: u32,
    /// Peers whose connections are closed, once.
    pub peers_closed: u32,
    /// Reservations above a cap that stay until they end.
    pub reservations_draining: u32,
    /// Circuits above a cap, or of a service that is off, that run until they end.
    pub circuits_draining: u32,
}

/// A policy has been adopted; the effects are still to be carried out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    pub effects: Vec<Effect>,
    pub impact: Impact,
}

impl Admission {
    /// Adopts a policy: from here on nobody is judged by the old one.
    pub fn set_policy(&mut self, policy: Policy, now: Instant) -> Settled {
        let losses = self.weigh(&policy);
        self.policy = policy;
        let impact = losses.impact();
        let mut effects = Vec::new();
        for (peer, why) in losses.reservations {
            self.end_reservation(&peer);
            effects.push(Effect::EndReservation { peer, why });
        }
        for (circuit, why) in losses.circuits {
            self.release(circuit, now);
            effects.push(Effect::CutCircuit { circuit, why });
        }
        for peer in losses.close {
            effects.push(Effect::CloseConnections { peer });
        }
        Settled { effects, impact }
    }

    /// What `set_policy` would do.
    pub fn impact(&self, policy: &Policy) -> Impact {
        self.weigh(policy).impact()
    }

    /// Circuits that the caps in force would not admit, or whose service is off.
    pub(super) fn draining(&self) -> u32 {
        let mut losses = Losses::default();
        self.weigh_service_and_caps(&self.policy, &mut losses);
        losses.circuits_draining
    }

    fn weigh(&self, new: &Policy) -> Losses {
        let mut losses = Losses::default();
        if !Arc::ptr_eq(&self.policy.acl, &new.acl) {
            self.weigh_access(&self.policy.acl, &new.acl, &mut losses);
        }
        self.weigh_service_and_caps(new, &mut losses);
        self.weigh_connections(&mut losses);
        losses
    }

    /// Finds what the old rules admitted and the new ones refuse. What the old ones refused as well is here for another
    /// reason (it came in shadow mode, or its membership flickers) and stays.
    fn weigh_access(&self, old: &Acl, new: &Acl, losses: &mut Losses) {
        for (peer, held) in self.held() {
            let Some(rule) = newly_refused(old, new, Operation::Reserve, peer, held.address) else {
                continue;
            };
            let circuits = self.peers.get(peer).map(|state| &state.circuits);
            for circuit in circuits.into_iter().flatten() {
                losses.circuits.insert(*circuit, Cut::Denied(rule.clone()));
            }
            losses.reservations.insert(*peer, Ended::Denied(rule));
            losses.told.insert(*peer);
        }
        for (id, circuit) in &self.circuits {
            for (operation, end) in [
                (Operation::Connect, &circuit.source),
                (Operation::Reserve, &circuit.destination),
            ] {
                if let Some(rule) = newly_refused(old, new, operation, &end.peer, end.address) {
                    losses.circuits.insert(*id, Cut::Denied(rule));
                    losses.told.insert(end.peer);
                }
            }
        }
    }

    fn weigh_service_and_caps(&self, new: &Policy, losses: &mut Losses) {
        let evict = match new.settings.on_shrink {
            OnShrink::Drain => false,
            OnShrink::Evict => true,
        };
        if !new.settings.service {
            for (peer, _) in self.held() {
                let ended = losses.reservations.entry(*peer);
                ended.or_insert(Ended::ServiceOff);
            }
            let remaining: Vec<CircuitId> = self
                .circuits
                .keys()
                .filter(|id| !losses.circuits.contains_key(id))
                .copied()
                .collect();
            if evict {
                let cut = remaining.into_iter().map(|id| (id, Cut::ServiceOff));
                losses.circuits.extend(cut);
            } else {
                losses.circuits_draining = count(remaining.len());
            }
            return;
        }
        let reservations = self.surplus_reservations(new, losses);
        let circuits = self.surplus_circuits(new, losses);
        if evict {
            for peer in reservations {
                losses.reservations.insert(peer, Ended::Evicted);
                losses.told.insert(peer);
            }
            let cut = circuits.into_iter().map(|id| (id, Cut::Evicted));
            losses.circuits.extend(cut);
        } else {
            losses.reservations_draining = count(reservations.len());
            losses.circuits_draining = count(circuits.len());
        }
    }

    /// The newest reservations above the caps for a prefix and in total.
    fn surplus_reservations(&self, new: &Policy, losses: &Losses) -> Vec<PeerId> {
        let resources = &new.settings.resources;
        let total_cap = resources.max_reservations;
        let prefix_cap = resources.max_reservations_per_ip;
        if self.reservations <= total_cap && self.prefixes.values().all(|has| *has <= prefix_cap) {
            return Vec::new();
        }
        let mut oldest_first: Vec<_> = self
            .held()
            .filter(|(peer, _)| !losses.reservations.contains_key(peer))
            .map(|(peer, held)| (held.age, held.prefix, *peer))
            .collect();
        oldest_first.sort_unstable_by_key(|(age, ..)| *age);
        let mut kept_by_prefix: HashMap<IpNet, u32> = HashMap::new();
        let mut kept = 0_u32;
        let mut surplus = Vec::new();
        for (_, prefix, peer) in oldest_first {
            let from_there = kept_by_prefix.entry(prefix).or_insert(0);
            if kept < total_cap && *from_there < prefix_cap {
                kept = kept.saturating_add(1);
                *from_there = from_there.saturating_add(1);
            } else {
                surplus.push(peer);
            }
        }
        surplus
    }

    /// The newest established circuits above the caps for a peer and in total.
    fn surplus_circuits(&self, new: &Policy, losses: &Losses) -> Vec<CircuitId> {
        let resources = &new.settings.resources;
        let total_cap = resources.max_circuits_total;
        let peer_cap = resources.max_circuits;
        let mut kept_by_peer: HashMap<PeerId, u32> = HashMap::new();
        let mut kept = 0_u32;
        let mut surplus = Vec::new();
        for (id, circuit) in self.established_circuits() {
            if losses.circuits.contains_key(id) {
                continue;
            }
            let ends = circuit.ends().map(|end| end.peer);
            let room = |peer| kept_by_peer.get(peer).is_none_or(|has| *has < peer_cap);
            if kept < total_cap && peer_cap > 0 && ends.iter().all(room) {
                kept = kept.saturating_add(1);
                for peer in ends {
                    let has = kept_by_peer.entry(peer).or_insert(0);
                    *has = has.saturating_add(1);
                }
            } else {
                surplus.push(*id);
            }
        }
        surplus
    }

    /// A peer that lost its reservation has no other way to learn it. One that keeps something the new policy allows
    /// keeps its connections: its circuits were reset, which tells it.
    fn weigh_connections(&self, losses: &mut Losses) {
        for peer in &losses.told {
            let Some(state) = self.peers.get(peer) else {
                continue;
            };
            let keeps_reservation =
                state.reservation.is_some() && !losses.reservations.contains_key(peer);
            let keeps_circuit = state
                .circuits
                .iter()
                .any(|id| !losses.circuits.contains_key(id));
            if !keeps_reservation && !keeps_circuit {
                losses.close.push(*peer);
            }
        }
    }

    fn held(&self) -> impl Iterator<Item = (&PeerId, &Reservation)> {
        self.peers
            .iter()
            .filter_map(|(peer, state)| Some((peer, state.reservation.as_ref()?)))
    }

    /// Oldest first.
    fn established_circuits(&self) -> impl Iterator<Item = (&CircuitId, &Circuit)> {
        self.circuits
            .iter()
            .filter(|(_, circuit)| circuit.phase == Phase::Established)
    }
}

/// What goes, and what stays for now. Ordered, so that the effects of one change always come in one order.
#[derive(Default)]
struct Losses {
    reservations: BTreeMap<PeerId, Ended>,
    circuits: BTreeMap<CircuitId, Cut>,
    /// Peers that lose something and may have to be told.
    told: BTreeSet<PeerId>,
    close: Vec<PeerId>,
    reservations_draining: u32,
    circuits_draining: u32,
}

impl Losses {
    fn impact(&self) -> Impact {
        Impact {
            reservations_ended: count(self.reservations.len()),
            circuits_cut: count(self.circuits.len()),
            peers_closed: count(self.close.len()),
            reservations_draining: self.reservations_draining,
            circuits_draining: self.circuits_draining,
        }
    }
}

/// The rule by which the new policy refuses what the old one let pass.
fn newly_refused(
    old: &Acl,
    new: &Acl,
    operation: Operation,
    peer: &PeerId,
    address: IpAddr,
) -> Option<RuleRef> {
    let refused = |acl: &Acl| match acl.mode() {
        Mode::Shadow => None,
        Mode::Enforce => {
            let decision = acl.decide(operation, peer, Some(address));
            (!decision.admit).then_some(decision.rule)
        }
    };
    let rule = refused(new)?;
    refused(old).is_none().then_some(rule)
}

fn count(many: usize) -> u32 {
    u32::try_from(many).unwrap_or(u32::MAX)
}
