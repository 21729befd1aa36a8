//! Who is a member changes while the relay runs: guests of the bootstrap window, and members that come, flicker and leave.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Admission, Cut, Effect, Ended, settle::Losses};
use crate::{
    acl::{Membership, Mode, Operation, RuleKey, Standing, Window},
    id::PeerId,
    relay::Refusal,
};

/// Reservations that strangers share while the window is open: enough for the first members of a network to meet, and too
/// few to be worth a crowd's while.
pub const MAX_GUESTS: u32 = 16;

/// How long a guest's reservation lasts at most, so that what a stranger got is gone soon whatever else happens.
pub const GUEST_TTL: Duration = Duration::from_secs(120);

impl Admission {
    /// Adopts a view of who is a member: from here on nobody is judged by the one before.
    ///
    /// A member that merely went silent keeps what it holds until it has to renew it. One that withdrew its heartbeat loses
    /// its reservation; its circuits run on. When the window closes, guests that are no members lose both.
    pub fn set_membership(&mut self, membership: Arc<Membership>, now: Instant) -> Vec<Effect> {
        let before = std::mem::replace(&mut self.membership, membership);
        let mut losses = Losses::default();
        match self.policy.acl.mode() {
            Mode::Shadow => {}
            Mode::Enforce => {
                if (before.window, self.membership.window) == (Window::Open, Window::Closed) {
                    self.weigh_guests(&mut losses);
                }
                self.weigh_withdrawn(&before, &mut losses);
                self.weigh_connections(&mut losses);
            }
        }
        let effects = self.lose(losses, now);
        self.promote_guests();
        effects
    }

    /// What the peer is to this decision; not looked up where it does not matter.
    pub(super) fn standing(&self, operation: Operation, peer: &PeerId) -> Standing {
        if self.policy.acl.asks_for_members(operation) {
            self.membership.standing(peer)
        } else {
            Standing::Stranger
        }
    }

    /// What a peer is to a change of policy: a member that flickers is one.
    pub(super) fn standing_at_best(&self, peer: &PeerId, when_admitted: Standing) -> Standing {
        match when_admitted {
            Standing::Member => Standing::Member,
            Standing::Guest | Standing::Stranger => self.membership.standing(peer),
        }
    }

    /// A slot among those of guests, unless the peer has one.
    pub(super) fn room_for_guest(&mut self, peer: &PeerId, now: Instant) -> Result<(), Refusal> {
        let full = |guests: usize| guests >= MAX_GUESTS as usize;
        if self.guests.contains(peer) || !full(self.guests.len()) {
            return Ok(());
        }
        // Expired ones are none, swept or not.
        while let Some(effect) = self.expire_next(now) {
            self.pending.push_back(effect);
        }
        if full(self.guests.len()) {
            return Err(Refusal::GuestsFull { cap: MAX_GUESTS });
        }
        Ok(())
    }

    /// Counts every holder anew: a policy has been adopted.
    pub(super) fn count_guests(&mut self) {
        let (acl, membership) = (&self.policy.acl, &self.membership);
        let members_only = acl.asks_for_members(Operation::Reserve);
        self.guests.clear();
        for (peer, state) in &mut self.peers {
            let Some(held) = &mut state.reservation else {
                continue;
            };
            if members_only && held.standing != Standing::Member {
                held.standing = membership.standing(peer);
            }
            let decision = acl.decide(Operation::Reserve, peer, Some(held.address), held.standing);
            if acl.mode() == Mode::Enforce && decision.rule.key == RuleKey::Bootstrap {
                self.guests.insert(*peer);
            }
        }
    }

    /// Guests that have become members need no slot of a guest any more.
    fn promote_guests(&mut self) {
        let (membership, peers) = (&self.membership, &mut self.peers);
        self.guests.retain(|peer| {
            if membership.standing(peer) != Standing::Member {
                return true;
            }
            let held = peers
                .get_mut(peer)
                .and_then(|state| state.reservation.as_mut());
            if let Some(held) = held {
                held.standing = Standing::Member;
            }
            false
        });
    }

    /// Finds what only an open window admitted.
    fn weigh_guests(&self, losses: &mut Losses) {
        for (peer, held) in self.held() {
            if self.rested_on_window(Operation::Reserve, peer, held.address, held.standing) {
                losses.reservations.insert(*peer, Ended::WindowClosed);
                losses.told.insert(*peer);
            }
        }
        for (id, circuit) in &self.circuits {
            for (operation, end) in [
                (Operation::Connect, &circuit.source),
                (Operation::Reserve, &circuit.destination),
            ] {
                if self.rested_on_window(operation, &end.peer, end.address, end.standing) {
                    losses.circuits.insert(*id, Cut::WindowClosed);
                    losses.told.insert(end.peer);
                }
            }
        }
    }

    fn rested_on_window(
        &self,
        operation: Operation,
        peer: &PeerId,
        address: IpAddr,
        when_admitted: Standing,
    ) -> bool {
        let decide = |standing| {
            self.policy
                .acl
                .decide(operation, peer, Some(address), standing)
        };
        decide(Standing::Guest).rule.key == RuleKey::Bootstrap
            && !decide(self.standing_at_best(peer, when_admitted)).admit
    }

    /// Finds members that withdrew their heartbeats since `before`, and that nothing else admits.
    fn weigh_withdrawn(&self, before: &Membership, losses: &mut Losses) {
        for peer in self.membership.withdrawn.difference(&before.withdrawn) {
            let state = self.peers.get(peer);
            let Some(held) = state.and_then(|state| state.reservation.as_ref()) else {
                continue;
            };
            let standing = self.membership.standing(peer);
            let decision =
                self.policy
                    .acl
                    .decide(Operation::Reserve, peer, Some(held.address), standing);
            if !decision.admit {
                losses.reservations.insert(*peer, Ended::Withdrawn);
                losses.told.insert(*peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::harness::{HOUR, Relay, named, peer, status};
    use super::*;
    use crate::{acl::Audience, relay::Status};

    /// For members, and none is known yet.
    fn young() -> Relay {
        let mut relay = Relay::with(|file| file.reserve = Audience::Members);
        relay.ledger(|known| known.window = Window::Open);
        relay
    }

    /// Peer 1 is a member.
    fn settled() -> Relay {
        let mut relay = young();
        relay.beat(1);
        relay.join(1);
        relay
    }

    fn ended(effects: &[Effect]) -> Vec<PeerId> {
        let ended = |effect: &Effect| match effect {
            Effect::EndReservation { peer, .. } => Some(*peer),
            Effect::CutCircuit { .. } | Effect::CloseConnections { .. } => None,
        };
        effects.iter().filter_map(ended).collect()
    }

    #[test]
    fn a_member_is_admitted_and_a_stranger_is_not() {
        let mut relay = settled();
        relay.join(2);
        assert_eq!(relay.reserve(1).expect("a member").expires_in, HOUR);
        assert_eq!(status(relay.reserve(2)), Status::PermissionDenied);
        relay.beat(2);
        relay.reserve(2).expect("a member by now");
    }

    #[test]
    fn guests_share_sixteen_short_reservations_and_renew_them() {
        let mut relay = young();
        for number in 1..=17 {
            relay.join(number);
        }
        for number in 1..=16 {
            let reserved = relay.reserve(number).expect("room for a guest");
            assert_eq!(reserved.expires_in, GUEST_TTL);
        }
        let full = Refusal::GuestsFull { cap: MAX_GUESTS };
        assert_eq!(relay.reserve(17), Err(full.clone()));
        assert_eq!(full.status(), Status::ReservationRefused);
        assert!(relay.reserve(3).expect("a renewal").renewed);
        assert_eq!(relay.report().guests, 16);
        relay.now += GUEST_TTL;
        relay.reserve(17).expect("the others have expired");
        assert_eq!(relay.report().guests, 1);
    }

    #[test]
    fn a_listed_peer_is_no_guest() {
        let mut relay = young();
        relay.edit(|file| file.allow = vec![named(1)]);
        relay.join(1);
        assert_eq!(relay.reserve(1).expect("listed").expires_in, HOUR);
        assert_eq!(relay.report().guests, 0);
    }

    #[test]
    fn the_first_member_ends_the_stay_of_guests_that_are_none() {
        let mut relay = young();
        for number in 1..=4 {
            relay.join(number);
        }
        relay.reserve(1).expect("a guest");
        relay.reserve(2).expect("a guest");
        let to_1 = relay.circuit(3, 1).expect("connect is open to anyone");
        let to_2 = relay.circuit(3, 2).expect("likewise");
        let effects = relay.beat(1);
        assert_eq!(
            effects,
            [
                Effect::EndReservation {
                    peer: peer(2),
                    why: Ended::WindowClosed
                },
                Effect::CutCircuit {
                    circuit: to_2,
                    why: Cut::WindowClosed
                },
                Effect::CloseConnections { peer: peer(2) },
            ]
        );
        assert_eq!(relay.report().guests, 0);
        assert_eq!(status(relay.reserve(2)), Status::PermissionDenied);
        assert_eq!(relay.reserve(1).expect("a member").expires_in, HOUR);
        relay.closed(to_1);
    }

    #[test]
    fn a_source_that_only_the_window_admitted_is_cut_when_it_closes() {
        let mut relay = young();
        relay.edit(|file| file.connect = Audience::Members);
        for number in 1..=3 {
            relay.join(number);
        }
        relay.reserve(1).expect("a guest");
        let circuit = relay.circuit(3, 1).expect("a guest may connect");
        let effects = relay.beat(1);
        let cut = Effect::CutCircuit {
            circuit,
            why: Cut::WindowClosed,
        };
        assert_eq!(effects, [cut, Effect::CloseConnections { peer: peer(3) }]);
    }

    #[test]
    fn a_flicker_cuts_nothing_and_the_next_renewal_is_refused() {
        let mut relay = settled();
        relay.join(2);
        relay.reserve(1).expect("a member");
        let circuit = relay.circuit(2, 1).expect("open");
        let effects = relay.ledger(|known| known.members.clear());
        assert_eq!(effects, []);
        assert!(relay.admission.holds_reservation(&peer(1), relay.now));
        assert_eq!(status(relay.reserve(1)), Status::PermissionDenied);
        assert!(relay.admission.holds_reservation(&peer(1), relay.now));
        assert_eq!(relay.beat(1), []);
        relay.reserve(1).expect("back again");
        relay.closed(circuit);
    }

    #[test]
    fn a_withdrawn_heartbeat_ends_the_reservation_and_lets_circuits_run() {
        let mut relay = settled();
        relay.join(2);
        relay.reserve(1).expect("a member");
        let circuit = relay.circuit(2, 1).expect("open");
        let leave = |known: &mut Membership| {
            known.members.clear();
            known.withdrawn.insert(peer(1));
        };
        let end = Effect::EndReservation {
            peer: peer(1),
            why: Ended::Withdrawn,
        };
        assert_eq!(relay.ledger(leave), [end]);
        assert_eq!(relay.report().circuits, 1);
        assert_eq!(relay.ledger(|_| {}), [], "once");
        relay.closed(circuit);
    }

    #[test]
    fn a_listed_peer_that_withdraws_its_heartbeat_keeps_its_reservation() {
        let mut relay = settled();
        relay.edit(|file| file.allow = vec![named(1)]);
        relay.reserve(1).expect("a member, and listed");
        let effects = relay.ledger(|known| {
            known.members.clear();
            known.withdrawn.insert(peer(1));
        });
        assert_eq!(effects, []);
    }

    #[test]
    fn a_file_that_no_longer_admits_members_ends_what_a_flickering_one_holds() {
        let mut relay = settled();
        relay.reserve(1).expect("a member");
        relay.ledger(|known| known.members.clear());
        assert_eq!(relay.edit(|file| file.deny = vec![named(9)]).effects, []);
        let settled = relay.edit(|file| file.reserve = Audience::Listed);
        assert_eq!(ended(&settled.effects), [peer(1)]);
    }

    #[test]
    fn a_file_that_asks_for_members_leaves_strangers_as_guests_while_the_window_is_open() {
        let mut relay = young();
        relay.edit(|file| file.reserve = Audience::Anyone);
        for number in 1..=20 {
            relay.join(number);
            relay.reserve(number).expect("anyone");
        }
        assert_eq!(relay.report().guests, 0);
        let settled = relay.edit(|file| file.reserve = Audience::Members);
        assert_eq!(settled.effects, []);
        assert_eq!(relay.report().guests, 20, "nobody more until the load fits");
        relay.join(21);
        assert_eq!(status(relay.reserve(21)), Status::ReservationRefused);
        assert_eq!(ended(&relay.beat(1)).len(), 19);
    }

    #[test]
    fn shadow_mode_revokes_nobody() {
        let mut relay = young();
        relay.edit(|file| file.mode = Mode::Shadow);
        relay.join(2);
        assert_eq!(relay.reserve(2).expect("shadow").expires_in, HOUR);
        assert_eq!(relay.beat(1), []);
        assert!(relay.reserve(2).expect("shadow").shadow.is_some());
    }
}
