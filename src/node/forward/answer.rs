//! ICMP towards this machine: at most so many a second, so that a flood of packets to nowhere is not doubled.

use std::{
    io::IoSlice,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use super::{Shared, Table};
use crate::overlay::{
    icmp::{Problem, answer},
    packet::Header,
    virtio,
};

/// Answers a second, as many at once: the default of Linux (`icmp_msgs_per_sec`) is 1000 for the whole machine.
const RATE: f64 = 100.0;

/// What is left of this second's answers.
pub struct Answers(Mutex<(f64, Option<Instant>)>);

impl Default for Answers {
    fn default() -> Self {
        Self(Mutex::new((RATE, None)))
    }
}

impl Answers {
    fn take(&self, now: Instant) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, last) = &mut *state;
        if let Some(last) = last.replace(now) {
            *left = RATE.min(*left + now.saturating_duration_since(last).as_secs_f64() * RATE);
        }
        let some = *left >= 1.0;
        if some {
            *left -= 1.0;
        }
        some
    }
}

impl Shared {
    /// Tells the sender of `packet`, a program of this machine, what is wrong with it.
    pub(super) fn answer(
        &self,
        table: &Table,
        packet: &[u8],
        header: &Header,
        problem: Problem,
        now: Instant,
    ) {
        let family = header.source.is_ipv4();
        let from = table.own.iter().find(|address| address.is_ipv4() == family);
        let Some(reply) = from.and_then(|from| answer(packet, header, problem, *from)) else {
            return;
        };
        if let Some(device) = self.device.load().as_ref()
            && self.answers.take(now)
        {
            // A device that takes nothing now loses an answer, as a network would.
            let nothing_left = [0; virtio::HEADER];
            let _ = device.send(&[IoSlice::new(&nothing_left), IoSlice::new(&reply)]);
        }
    }
}
