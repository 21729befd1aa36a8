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
    acl::{Acl, Mode, Operation, RuleRef, Standing},
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
        let other_rules = !Arc::ptr_eq(&self.policy.acl, &policy.acl);
        self.policy = policy;
        let impact = losses.impact();
        let effects = self.lose(losses, now);
        if other_rules {
            self.count_guests();
        }
        Settled { effects, impact }
    }

    /// Ends what is lost, and says what the caller has to carry out.
    pub(super) fn lose(&mut self, losses: Losses, now: Instant) -> Vec<Effect> {
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
        effects
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

    /// Finds what the old rules admitted and the new ones refuse, each peer taken for what it was when it was admitted or has
    /// become since. What the old ones refused as well is here for another reason (it came in shadow mode) and stays.
    fn weigh_access(&self, old: &Acl, new: &Acl, losses: &mut Losses) {
        for (peer, held) in self.held() {
            let standing = self.standing_at_best(peer, held.standing);
            let asked = (Operation::Reserve, peer, held.address, standing);
            let Some(rule) = newly_refused(old, new, asked) else {
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
                let standing = self.standing_at_best(&end.peer, end.standing);
                let asked = (operation, &end.peer, end.address, standing);
                if let Some(rule) = newly_refused(old, new, asked) {
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
            for (id, circuit) in &self.circuits {
                if losses.circuits.contains_key(id) {
                    continue;
                }
                match circuit.phase {
                    Phase::Established if !evict => {
                        losses.circuits_draining = losses.circuits_draining.saturating_add(1);
                    }
                    // A handshake is a request that nobody has answered yet.
                    Phase::Established | Phase::Handshake => {
                        losses.circuits.insert(*id, Cut::ServiceOff);
                    }
                }
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
    pub(super) fn weigh_connections(&self, losses: &mut Losses) {
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

    pub(super) fn held(&self) -> impl Iterator<Item = (&PeerId, &Reservation)> {
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
pub(super) struct Losses {
    pub reservations: BTreeMap<PeerId, Ended>,
    pub circuits: BTreeMap<CircuitId, Cut>,
    /// Peers that lose something and may have to be told.
    pub told: BTreeSet<PeerId>,
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
    (operation, peer, address, standing): (Operation, &PeerId, IpAddr, Standing),
) -> Option<RuleRef> {
    let refused = |acl: &Acl| match acl.mode() {
        Mode::Shadow => None,
        Mode::Enforce => {
            let decision = acl.decide(operation, peer, Some(address), standing);
            (!decision.admit).then_some(decision.rule)
        }
    };
    let rule = refused(new)?;
    refused(old).is_none().then_some(rule)
}

fn count(many: usize) -> u32 {
    u32::try_from(many).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::harness::{HOUR, Relay, address, named, peer, status};
    use super::*;
    use crate::{
        acl::{Audience, Subject},
        relay::{Refusal, Status},
    };

    /// 2 and 4 hold reservations, 1 has a circuit to each.
    fn busy() -> (Relay, [CircuitId; 2]) {
        let mut relay = Relay::new();
        for number in 1..=4 {
            relay.join(number);
        }
        relay.reserve(2).expect("room");
        relay.reserve(4).expect("room");
        let circuits = [2, 4].map(|number| relay.circuit(1, number).expect("room"));
        (relay, circuits)
    }

    fn ended(settled: &Settled) -> Vec<PeerId> {
        let ended = |effect: &Effect| match effect {
            Effect::EndReservation { peer, .. } => Some(*peer),
            Effect::CutCircuit { .. } | Effect::CloseConnections { .. } => None,
        };
        settled.effects.iter().filter_map(ended).collect()
    }

    fn cut(settled: &Settled) -> Vec<CircuitId> {
        let cut = |effect: &Effect| match effect {
            Effect::CutCircuit { circuit, .. } => Some(*circuit),
            Effect::EndReservation { .. } | Effect::CloseConnections { .. } => None,
        };
        settled.effects.iter().filter_map(cut).collect()
    }

    fn closed(settled: &Settled) -> Vec<PeerId> {
        let closed = |effect: &Effect| match effect {
            Effect::CloseConnections { peer } => Some(*peer),
            Effect::EndReservation { .. } | Effect::CutCircuit { .. } => None,
        };
        settled.effects.iter().filter_map(closed).collect()
    }

    #[test]
    fn a_newly_denied_peer_loses_everything_and_its_neighbours_nothing() {
        let (mut relay, [to_2, to_4]) = busy();
        let settled = relay.edit(|file| file.deny = vec![named(2)]);
        assert_eq!(ended(&settled), [peer(2)]);
        assert_eq!(cut(&settled), [to_2]);
        assert_eq!(closed(&settled), [peer(2)]);
        assert_eq!(relay.report().circuits, 1);
        assert_eq!(status(relay.reserve(2)), Status::PermissionDenied);
        assert_eq!(status(relay.connect(1, 2)), Status::PermissionDenied);
        relay.closed(to_4);
        relay.edit(|file| file.deny.clear());
        assert_eq!(status(relay.reserve(2)), Status::Ok);
    }

    #[test]
    fn a_denied_network_counts_where_the_peer_is() {
        let (mut relay, [to_2, _]) = busy();
        let place = Subject::Network(address(2).into());
        let settled = relay.edit(|file| file.deny = vec![place]);
        assert_eq!(
            (ended(&settled), cut(&settled)),
            (vec![peer(2)], vec![to_2])
        );
    }

    #[test]
    fn a_newly_denied_source_loses_its_circuits_and_the_holders_stay() {
        let (mut relay, circuits) = busy();
        let settled = relay.edit(|file| file.deny = vec![named(1)]);
        assert_eq!(ended(&settled), []);
        assert_eq!(cut(&settled), circuits);
        assert_eq!(closed(&settled), [peer(1)]);
    }

    #[test]
    fn a_tightened_connect_leaves_the_reservations_of_the_same_peers_alone() {
        let (mut relay, _) = busy();
        let between_holders = relay.circuit(2, 4).expect("room");
        let settled = relay.edit(|file| {
            file.connect = Audience::Listed;
            file.allow = vec![named(1)];
        });
        assert_eq!(cut(&settled), [between_holders]);
        assert_eq!((ended(&settled), closed(&settled)), (vec![], vec![]));
    }

    #[test]
    fn a_tightened_reserve_ends_what_the_unlisted_hold() {
        let (mut relay, [_, to_4]) = busy();
        let settled = relay.edit(|file| {
            file.reserve = Audience::Listed;
            file.allow = vec![named(2)];
        });
        assert_eq!(ended(&settled), [peer(4)]);
        assert_eq!(cut(&settled), [to_4]);
        assert_eq!(closed(&settled), [peer(4)]);
        let settled = relay.edit(|file| file.allow.clear());
        assert_eq!(ended(&settled), [peer(2)], "removed from the list");
    }

    #[test]
    fn who_loses_a_reservation_loses_the_circuits_it_opened_as_well() {
        let (mut relay, _) = busy();
        let opened = relay.circuit(4, 2).expect("room");
        let settled = relay.edit(|file| {
            file.reserve = Audience::Listed;
            file.allow = vec![named(2)];
        });
        assert!(cut(&settled).contains(&opened), "{settled:?}");
        assert_eq!(closed(&settled), [peer(4)]);
    }

    #[test]
    fn a_reservation_is_judged_by_the_place_of_the_connection_that_is_left() {
        let mut relay = Relay::new();
        let old = relay.join_from(2, Some(address(20)));
        relay.reserve(2).expect("room");
        relay.join_from(2, Some(address(21)));
        relay.leave(2, old);
        let place = |number| Subject::Network(address(number).into());
        let settled = relay.edit(|file| file.deny = vec![place(20)]);
        assert_eq!(settled, Settled::default());
        let settled = relay.edit(|file| file.deny = vec![place(21)]);
        assert_eq!(ended(&settled), [peer(2)]);
    }

    #[test]
    fn what_is_denied_makes_room_for_what_would_be_surplus() {
        let (mut relay, [to_2, to_4]) = busy();
        let settled = relay.edit(|file| {
            file.settings.on_shrink = OnShrink::Evict;
            file.settings.resources.max_reservations = 1;
            file.settings.resources.max_circuits_total = 1;
            file.deny = vec![named(2)];
        });
        assert_eq!(
            (ended(&settled), cut(&settled)),
            (vec![peer(2)], vec![to_2])
        );
        relay.closed(to_4);
    }

    #[test]
    fn handshakes_of_a_denied_peer_do_not_come_about() {
        let (mut relay, _) = busy();
        let shaking = relay.connect(3, 2).expect("room").circuit;
        let settled = relay.edit(|file| file.deny = vec![named(3)]);
        assert_eq!(cut(&settled), [shaking]);
        assert_eq!(relay.established(shaking), Err(Refusal::Gone));
    }

    #[test]
    fn what_the_old_policy_refused_as_well_is_not_cut_by_the_new_one() {
        let (mut relay, _) = busy();
        relay.edit(|file| file.mode = Mode::Shadow);
        relay.edit(|file| file.deny = vec![named(2), named(1)]);
        let settled = relay.edit(|file| file.mode = Mode::Enforce);
        assert_eq!(settled.impact.reservations_ended, 1, "shadow let it pass");
        assert_eq!(settled.impact.circuits_cut, 2);
        let settled = relay.edit(|file| file.deny.push(named(9)));
        assert_eq!(settled, Settled::default());
    }

    #[test]
    fn going_to_shadow_cuts_nobody() {
        let (mut relay, _) = busy();
        let settled = relay.edit(|file| {
            file.mode = Mode::Shadow;
            file.reserve = Audience::Listed;
            file.deny = vec![named(1)];
        });
        assert_eq!(settled, Settled::default());
    }

    #[test]
    fn the_same_policy_twice_does_nothing() {
        let (mut relay, _) = busy();
        relay.edit(|file| {
            file.settings.on_shrink = OnShrink::Evict;
            file.settings.resources.max_circuits_total = 1;
            file.settings.resources.max_reservations = 1;
            file.deny = vec![named(3)];
        });
        assert_eq!(relay.edit(|_| {}), Settled::default());
    }

    #[test]
    fn lowering_max_circuits_drains_and_admits_nobody_until_the_load_fits() {
        let (mut relay, [first, second]) = busy();
        let settled = relay.edit(|file| file.settings.resources.max_circuits = 1);
        assert_eq!(settled.effects, []);
        assert_eq!(settled.impact.circuits_draining, 1);
        assert_eq!(relay.report().draining, 1);
        relay.closed(second);
        assert_eq!(relay.report().draining, 0);
        assert!(relay.connect(1, 4).is_err(), "still at its cap");
        relay.closed(first);
        relay.circuit(1, 4).expect("the load fits");
    }

    #[test]
    fn evicting_cuts_the_newest_surplus_of_each_peer_and_of_the_node() {
        let (mut relay, [first, second]) = busy();
        let third = relay.circuit(3, 4).expect("room");
        let settled = relay.edit(|file| {
            file.settings.on_shrink = OnShrink::Evict;
            file.settings.resources.max_circuits = 1;
        });
        assert_eq!(cut(&settled), [second], "peer 1 has two");
        assert_eq!(closed(&settled), []);
        let settled = relay.edit(|file| file.settings.resources.max_circuits_total = 1);
        assert_eq!(cut(&settled), [third]);
        relay.closed(first);
    }

    #[test]
    fn evicting_ends_the_newest_reservations_and_tells_those_who_keep_nothing() {
        let (mut relay, [_, to_4]) = busy();
        relay.reserve(3).expect("room");
        let settled = relay.edit(|file| {
            file.settings.on_shrink = OnShrink::Evict;
            file.settings.resources.max_reservations = 1;
        });
        let mut gone = ended(&settled);
        gone.sort_unstable();
        assert_eq!(gone, [peer(3), peer(4)]);
        assert_eq!(closed(&settled), [peer(3)], "peer 4 has a circuit");
        assert_eq!(relay.report().circuits, 2);
        relay.closed(to_4);
    }

    #[test]
    fn a_lowered_cap_on_reservations_drains_by_default() {
        let (mut relay, _) = busy();
        let settled = relay.edit(|file| file.settings.resources.max_reservations_per_ip = 0);
        assert_eq!(settled.effects, []);
        assert_eq!(settled.impact.reservations_draining, 2);
        assert!(relay.reserve(2).expect("a renewal").renewed);
        assert_eq!(status(relay.reserve(3)), Status::ReservationRefused);
    }

    #[test]
    fn a_service_switched_off_ends_reservations_and_lets_circuits_run_out() {
        let (mut relay, circuits) = busy();
        let settled = relay.edit(|file| file.settings.service = false);
        assert_eq!(ended(&settled).len(), 2);
        assert_eq!((cut(&settled), closed(&settled)), (vec![], vec![]));
        assert_eq!(settled.impact.circuits_draining, 2);
        assert_eq!(status(relay.reserve(2)), Status::PermissionDenied);
        let settled = relay.edit(|file| file.settings.on_shrink = OnShrink::Evict);
        assert_eq!(cut(&settled), circuits);
    }

    #[test]
    fn a_service_switched_off_cuts_what_its_destination_has_not_answered() {
        let (mut relay, _) = busy();
        let shaking = relay.connect(3, 2).expect("room").circuit;
        let settled = relay.edit(|file| file.settings.service = false);
        assert_eq!(cut(&settled), [shaking]);
        assert_eq!(settled.impact.circuits_draining, 2);
        assert_eq!(relay.established(shaking), Err(Refusal::Gone));
    }

    #[test]
    fn a_held_reservation_keeps_its_expiry_and_a_renewal_sees_the_new_one() {
        let (mut relay, _) = busy();
        relay.edit(|file| file.settings.resources.reservation_ttl = Duration::from_secs(60));
        relay.now += HOUR - Duration::from_secs(1);
        assert!(relay.admission.holds_reservation(&peer(2), relay.now));
        let renewed = relay.reserve(2).expect("a renewal");
        assert_eq!(renewed.expires_in, Duration::from_secs(60));
        relay.now += Duration::from_secs(1);
        assert_eq!(relay.expired().len(), 1, "peer 4");
        relay.now += Duration::from_secs(58);
        assert!(relay.expired().is_empty());
        relay.now += Duration::from_secs(1);
        assert_eq!(relay.expired().len(), 1, "peer 2");
    }

    #[test]
    fn a_renewal_under_a_shorter_time_to_live_expires_earlier_than_promised_before() {
        let (mut relay, _) = busy();
        relay.edit(|file| file.settings.resources.reservation_ttl = Duration::from_secs(60));
        relay.reserve(2).expect("a renewal");
        relay.now += Duration::from_secs(60);
        assert_eq!(relay.expired().len(), 1);
        assert!(!relay.admission.holds_reservation(&peer(2), relay.now));
    }
}
