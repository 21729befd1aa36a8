//! When reservations expire, in order. A renewal costs nothing here: its entry stays where it is and moves when it
//! comes up.

use std::{collections::BTreeMap, time::Instant};

use super::peer::Reservation;
use crate::id::PeerId;

/// One entry for each reservation, never later than its expiry. The age makes entries of one moment distinct.
#[derive(Debug, Default)]
pub(super) struct Deadlines(BTreeMap<(Instant, u64), PeerId>);

impl Deadlines {
    pub fn arm(&mut self, expires: Instant, age: u64, peer: PeerId) {
        self.0.insert((expires, age), peer);
    }

    pub fn disarm(&mut self, held: &Reservation) {
        self.0.remove(&(held.armed, held.age));
    }

    /// Gives a reservation a new expiry, earlier or later.
    pub fn extend(&mut self, held: &mut Reservation, peer: PeerId, expires: Instant) {
        held.expires = expires;
        if expires < held.armed {
            self.disarm(held);
            self.rearm(held, peer);
        }
    }

    pub fn rearm(&mut self, held: &mut Reservation, peer: PeerId) {
        held.armed = held.expires;
        self.arm(held.armed, held.age, peer);
    }

    /// Takes out the first entry that is due; the caller ends its reservation or arms it anew.
    pub fn due(&mut self, now: Instant) -> Option<PeerId> {
        let first = self.0.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    pub fn next(&self) -> Option<Instant> {
        self.0.first_key_value().map(|((at, _), _)| *at)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}
