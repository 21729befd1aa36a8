//! Reservations: one for a peer, counted in total and by the prefix it was first made from.

use std::{net::IpAddr, time::Instant};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Admission, ConnectionKey, Effect, Ended, Reserved, peer::Reservation};
use crate::{acl::Operation, id::PeerId, relay::Refusal};

impl Admission {
    pub(super) fn decide_reserve(
        &mut self,
        peer: PeerId,
        connection: ConnectionKey,
        now: Instant,
    ) -> Result<Reserved, Refusal> {
        let address = self.open_to(&peer, connection)?;
        let decision = self
            .policy
            .acl
            .decide(Operation::Reserve, &peer, Some(address));
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
        let expires = now.checked_add(ttl).unwrap_or(now);
        let renewed = match &mut state.reservation {
            Some(held) if held.expires > now => {
                self.deadlines.extend(held, peer, expires);
                held.connection = connection;
                held.address = address;
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
                self.start_reservation(peer, connection, address, expires);
                false
            }
        };
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
        connection: ConnectionKey,
        address: IpAddr,
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

/// What shares a cap: an IPv4 address, or the /64 that one IPv6 subscriber is given at least. `address` is canonical.
fn prefix_of(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(address) => IpNet::V4(Ipv4Net::from(address)),
        IpAddr::V6(address) => IpNet::V6(
            Ipv6Net::new(address, 64).map_or_else(|_| Ipv6Net::from(address), |net| net.trunc()),
        ),
    }
}
