//! Who is a member changes while the relay runs: guests of the bootstrap window, and members that come, flicker and leave.

use std::{sync::Arc, time::Instant};

use super::{Admission, Cut, Effect, Ended, settle::Losses};
use crate::{
    acl::{Membership, Mode, Operation, RuleKey, Standing, Window},
    id::PeerId,
    relay::Refusal,
};
use std::{net::IpAddr, time::Duration};

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
            if held.standing == Standing::Member && !decision.admit {
                losses.reservations.insert(*peer, Ended::Withdrawn);
                losses.told.insert(*peer);
            }
        }
    }
}
