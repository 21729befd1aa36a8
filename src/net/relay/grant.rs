//! What a granted request says: until when, where, how much, and the proof of it.
#![allow(
    clippy::disallowed_methods,
    reason = "reservations expire in unix time"
)]

use super::{addresses::Addresses, proto, voucher};
use crate::relay::{CircuitLimits, Limit, admission::Reserved};
use libp2p::{PeerId, identity::Keypair};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The frame that grants `peer` a reservation.
pub fn reservation(
    key: &Keypair,
    addresses: &Addresses,
    peer: PeerId,
    reserved: &Reserved,
) -> Vec<u8> {
    let expire = unix_seconds_in(reserved.expires_in);
    let voucher = voucher::issue(key, addresses.relay(), peer, expire);
    let addresses = addresses.for_reservations();
    proto::reservation_frame(expire, addresses, voucher, limit(reserved.limits))
}

/// What both ends are told; nothing where nothing is limited.
pub fn limit(limits: CircuitLimits) -> Option<proto::Limit> {
    let data = match limits.data {
        Limit::At(bytes) => Some(bytes),
        Limit::Unlimited => None,
    };
    let duration = match limits.duration {
        // Zero would read as unlimited.
        Limit::At(duration) => {
            let seconds = duration.as_millis().div_ceil(1000).max(1);
            Some(u32::try_from(seconds).unwrap_or(u32::MAX))
        }
        Limit::Unlimited => None,
    };
    (data.is_some() || duration.is_some()).then_some(proto::Limit { duration, data })
}

/// Seconds of unix time, rounded down: a reservation is never promised for longer than it is held.
fn unix_seconds_in(duration: Duration) -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.saturating_add(duration).as_secs()
}
