//! Reservations: one for a peer, counted in total and by the prefix it was first made from.

use std::{net::IpAddr, time::Instant};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Admission, ConnectionKey, Effect, Ended, GUEST_TTL, Reserved, peer::Reservation};
use crate::{
    acl::{Mode, Operation, RuleKey, Standing},
    id::PeerId,
    relay::Refusal,
};

impl Admission {
    pub(super) fn decide_reserve(
        &mut self,
        peer: PeerId,
        connection: ConnectionKey,
        now: Instant,
    ) -> Result<Reserved, Refusal> {
        let address = self.open_to(&peer, connection)?;
        let standing = self.standing(Operation::Reserve, &peer);
        let decision = self
            .policy
            .acl
            .decide(Operation::Reserve, &peer, Some(address), standing);
        let guest =
            decision.rule.key == RuleKey::Bootstrap && self.policy.acl.mode() == Mode::Enforce;
        let shadow = self.enforce(decision)?;
        let rate = self.policy.settings.resources.reservation_rate;
        let state = self.peers.get_mut(&peer).ok_or(Refusal::Gone)?;
        state
            .pace
            .reserve
            .take(rate, now)
            .map_err(|retry_after| Refusal::TooFast {
                operation: Operation::Reserve,
                retry_after,
            })?;

        let ttl = self.policy.settings.resources.reservation_ttl;
        let ttl = if guest { ttl.min(GUEST_TTL) } else { ttl };
        let expires = now.checked_add(ttl).unwrap_or(now);
        if guest {
            self.room_for_guest(&peer, now)?;
        }
        let state = self.peers.get_mut(&peer).ok_or(Refusal::Gone)?;
        let renewed = match &mut state.reservation {
            Some(held) if held.expires > now => {
                self.deadlines.extend(held, peer, expires);
                held.connection = connection;
                held.address = address;
                held.standing = standing;
                true
            }
            Some(_) | None => {
                if self.end_reservation(&peer) {
                    self.pending.push_back(Effect::EndReservation {
                        peer,
                        why: Ended::Expired,
                    });
                }
                self.room_for_reservation(address, now)?;
                let place = Place {
                    connection,
                    address,
                };
                self.start_reservation(peer, place, standing, expires);
                false
            }
        };
        if guest {
            self.guests.insert(peer);
        } else {
            self.guests.remove(&peer);
        }
        Ok(Reserved {
            expires_in: ttl,
            renewed,
            limits: self.policy.settings.resources.circuit(),
            shadow,
        })
    }

    fn room_for_reservation(&mut self, address: IpAddr, now: Instant) -> Result<(), Refusal> {
        let Err(refusal) = self.below_caps(address) else {
            return Ok(());
        };
        // Expired ones are none, swept or not.
        let mut expired = false;
        while let Some(effect) = self.expire_next(now) {
            self.pending.push_back(effect);
            expired = true;
        }
        if expired {
            self.below_caps(address)
        } else {
            Err(refusal)
        }
    }

    fn below_caps(&self, address: IpAddr) -> Result<(), Refusal> {
        let resources = &self.policy.settings.resources;
        if self.reservations >= resources.max_reservations {
            return Err(Refusal::NodeFull {
                cap: resources.max_reservations,
            });
        }
        let prefix = prefix_of(address);
        let from_there = self.prefixes.get(&prefix).copied().unwrap_or(0);
        if from_there >= resources.max_reservations_per_ip {
            return Err(Refusal::AddressFull {
                prefix,
                cap: resources.max_reservations_per_ip,
            });
        }
        Ok(())
    }

    fn start_reservation(
        &mut self,
        peer: PeerId,
        Place {
            connection,
            address,
        }: Place,
        standing: Standing,
        expires: Instant,
    ) {
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        let prefix = prefix_of(address);
        let age = self.next_reservation;
        self.next_reservation = age.saturating_add(1);
        self.deadlines.arm(expires, age, peer);
        state.reservation = Some(Reservation {
            expires,
            armed: expires,
            age,
            connection,
            address,
            standing,
            prefix,
        });
        self.reservations = self.reservations.saturating_add(1);
        let from_there = self.prefixes.entry(prefix).or_insert(0);
        *from_there = from_there.saturating_add(1);
    }

    /// Gives its slot back; says whether there was one.
    pub(super) fn end_reservation(&mut self, peer: &PeerId) -> bool {
        let Some(held) = self
            .peers
            .get_mut(peer)
            .and_then(|state| state.reservation.take())
        else {
            return false;
        };
        self.deadlines.disarm(&held);
        self.guests.remove(peer);
        self.reservations = self.reservations.saturating_sub(1);
        if let Some(from_there) = self.prefixes.get_mut(&held.prefix) {
            *from_there = from_there.saturating_sub(1);
            if *from_there == 0 {
                self.prefixes.remove(&held.prefix);
            }
        }
        true
    }

    /// Ends the reservation that expired longest ago.
    pub(super) fn expire_next(&mut self, now: Instant) -> Option<Effect> {
        loop {
            let peer = self.deadlines.due(now)?;
            match self
                .peers
                .get_mut(&peer)
                .and_then(|state| state.reservation.as_mut())
            {
                Some(held) if held.expires > now => self.deadlines.rearm(held, peer),
                Some(_) | None => {
                    self.end_reservation(&peer);
                    return Some(Effect::EndReservation {
                        peer,
                        why: Ended::Expired,
                    });
                }
            }
        }
    }
}

/// Where a reservation is made.
struct Place {
    connection: ConnectionKey,
    address: IpAddr,
}

/// What shares a cap: an IPv4 address, or the /64 that one IPv6 subscriber is given at least. `address` is canonical.
fn prefix_of(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(address) => IpNet::V4(Ipv4Net::from(address)),
        IpAddr::V6(address) => IpNet::V6(
            Ipv6Net::new(address, 64).map_or_else(|_| Ipv6Net::from(address), |net| net.trunc()),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::harness::{HOUR, Relay, address, peer};
    use super::*;
    use crate::relay::{Limit, Rate, Status};

    #[test]
    fn a_renewal_is_admitted_when_the_node_is_full() {
        let mut relay = Relay::with(|file| file.settings.resources.max_reservations = 2);
        for number in [1, 2, 3] {
            relay.join(number);
        }
        assert!(!relay.reserve(1).expect("room").renewed);
        relay.reserve(2).expect("room");
        let refused = relay.reserve(3).expect_err("full");
        assert_eq!(refused, Refusal::NodeFull { cap: 2 });
        assert_eq!(refused.status(), Status::ReservationRefused);
        assert!(relay.reserve(1).expect("a renewal").renewed);
        assert_eq!(relay.report().reservations, 2);
    }

    #[test]
    fn a_freed_slot_is_reusable_at_once() {
        let mut relay = Relay::with(|file| file.settings.resources.max_reservations = 1);
        let first = relay.join(1);
        relay.join(2);
        relay.reserve(1).expect("room");
        relay.leave(1, first);
        relay.reserve(2).expect("the slot is free");
    }

    #[test]
    fn an_expired_reservation_is_none_before_anybody_sweeps() {
        let mut relay = Relay::with(|file| file.settings.resources.max_reservations = 1);
        relay.join(1);
        relay.join(2);
        relay.reserve(1).expect("room");
        relay.now += HOUR;
        assert_eq!(relay.connect(2, 1), Err(Refusal::NoReservation));
        relay.reserve(2).expect("the slot is free");
        let ended = Effect::EndReservation {
            peer: peer(1),
            why: Ended::Expired,
        };
        assert_eq!(relay.expired(), [ended]);
    }

    #[test]
    fn a_reservation_made_anew_is_not_ended_by_the_expiry_of_the_old_one() {
        let mut relay = Relay::new();
        relay.join(1);
        relay.reserve(1).expect("room");
        relay.now += HOUR;
        assert!(!relay.reserve(1).expect("anew").renewed);
        assert_eq!(relay.expired(), []);
        assert!(relay.admission.holds_reservation(&peer(1), relay.now));
    }

    #[test]
    fn a_renewal_at_the_last_moment_moves_the_expiry() {
        let mut relay = Relay::new();
        relay.join(1);
        relay.reserve(1).expect("room");
        relay.now += HOUR - Duration::from_nanos(1);
        assert!(relay.reserve(1).expect("in time").renewed);
        relay.now += Duration::from_nanos(1);
        assert_eq!(relay.expired(), []);
        relay.now += HOUR;
        assert_eq!(relay.expired().len(), 1);
        assert_eq!(relay.admission.next_deadline(), None);
    }

    #[test]
    fn a_reservation_dies_with_the_last_connection_and_not_with_its_own() {
        let mut relay = Relay::new();
        relay.join_from(3, None);
        let made_it = relay.join(3);
        let other = relay.join(3);
        let admission = &mut relay.admission;
        admission
            .reserve(peer(3), made_it, relay.now)
            .expect("room");
        assert_eq!(relay.leave(3, made_it), []);
        relay.join(4);
        let ticket = relay.connect(4, 3).expect("it is still held");
        assert_eq!(ticket.destination_connection, other);
        relay.closed(ticket.circuit);
        let ended = Effect::EndReservation {
            peer: peer(3),
            why: Ended::Disconnected,
        };
        assert_eq!(relay.leave(3, other), [ended], "a relayed one is no home");
    }

    #[test]
    fn addresses_share_a_cap_by_their_prefix() {
        let mut relay = Relay::with(|file| file.settings.resources.max_reservations_per_ip = 2);
        let places = [
            (1, "192.0.2.1", true),
            (2, "::ffff:192.0.2.1", true),
            (3, "192.0.2.1", false),
            (4, "192.0.2.2", true),
            (5, "2001:db8:0:1::1", true),
            (6, "2001:db8:0:1:ffff::9", true),
            (7, "2001:db8:0:1:8000::", false),
            (8, "2001:db8:0:2::1", true),
        ];
        for (number, place, admitted) in places {
            relay.join_from(number, Some(place.parse().expect("an address")));
            let decided = relay.reserve(number);
            assert_eq!(decided.is_ok(), admitted, "{place}: {decided:?}");
        }
        let refused = relay.reserve(3).expect_err("full");
        assert_eq!(refused.status(), Status::ReservationRefused);
        assert_eq!(
            refused.to_string(),
            "2 reservations are held from 192.0.2.1/32 (relay.resources.max_reservations_per_ip)"
        );
    }

    #[test]
    fn moving_house_does_not_fill_a_prefix_beyond_its_cap() {
        let mut relay = Relay::with(|file| file.settings.resources.max_reservations_per_ip = 1);
        relay.join_from(1, Some(address(1)));
        relay.reserve(1).expect("room");
        relay.join_from(2, Some(address(2)));
        relay.reserve(2).expect("room");
        relay.join_from(2, Some(address(1)));
        assert!(relay.reserve(2).expect("never for capacity").renewed);
        relay.join_from(3, Some(address(2)));
        let refused = relay.reserve(3);
        assert!(
            matches!(refused, Err(Refusal::AddressFull { .. })),
            "peer 2 still counts where it reserved first"
        );
    }

    #[test]
    fn a_peer_that_asks_too_often_waits_and_reconnecting_does_not_help() {
        let rate = Rate {
            count: 2,
            per: Duration::from_secs(10),
        };
        let mut relay =
            Relay::with(|file| file.settings.resources.reservation_rate = Limit::At(rate));
        let key = relay.join(1);
        relay.reserve(1).expect("first");
        relay.reserve(1).expect("second");
        let refused = relay.reserve(1).expect_err("third");
        assert_eq!(refused.status(), Status::ResourceLimitExceeded);
        let retry_after = Duration::from_secs(5);
        assert_eq!(
            refused,
            Refusal::TooFast {
                operation: Operation::Reserve,
                retry_after
            }
        );
        relay.leave(1, key);
        relay.join(1);
        assert!(relay.reserve(1).is_err(), "the rate is the peer's");
        relay.now += retry_after;
        relay.reserve(1).expect("after the wait");
        assert!(relay.reserve(1).is_err());
    }

    #[test]
    fn a_time_to_live_beyond_the_clock_is_no_panic() {
        let mut relay = Relay::with(|file| file.settings.resources.reservation_ttl = Duration::MAX);
        relay.join(1);
        let _ = relay.reserve(1);
    }
}
