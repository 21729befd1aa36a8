//! The queue towards one peer: bounded in bytes, and kept short by CoDel (RFC 8289), which marks packets that understand
//! congestion marks (RFC 3168) and drops others before delay builds up.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{checksum::Sum, router::Drop};

/// A delay that is accepted as long as it lasts less than [`INTERVAL`]. Both are RFC 8289 §4.4's for the Internet.
const TARGET: Duration = Duration::from_millis(5);
const INTERVAL: Duration = Duration::from_millis(100);

/// While no more than this waits, nothing is dropped for its delay: one super-packet takes that long on a slow path.
const SPARED: usize = 64 * 1024;

/// Packets on their way to one carrier.
#[derive(Debug)]
pub struct Queue {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    limit: usize,
    /// Since when the delay is above the target, plus one interval.
    above_until: Option<Instant>,
    /// While it drops: when the next one goes, and how many have gone.
    dropping: Option<(Instant, u32)>,
    last_count: u32,
}

#[derive(Debug)]
struct Waiting {
    frame: Vec<u8>,
    /// Where in the frame the packet begins.
    packet: usize,
    since: Instant,
}

impl Queue {
    /// `limit` in bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            bytes: 0,
            limit,
            above_until: None,
            dropping: None,
            last_count: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Puts a frame at the end; its packet begins at `packet`. An empty queue takes a frame of any size.
    pub fn push(&mut self, frame: Vec<u8>, packet: usize, now: Instant) -> Result<(), Drop> {
        if !self.waiting.is_empty() && self.bytes.saturating_add(frame.len()) > self.limit {
            return Err(Drop::QueueFull);
        }
        self.bytes += frame.len();
        self.waiting.push_back(Waiting {
            frame,
            packet,
            since: now,
        });
        Ok(())
    }

    /// The next frame to be sent. `late` is told of each that is dropped for its delay.
    pub fn pop(&mut self, now: Instant, mut late: impl FnMut()) -> Option<Vec<u8>> {
        loop {
            let mut next = self.waiting.pop_front()?;
            self.bytes = self.bytes.saturating_sub(next.frame.len());
            let slow = self.is_slow(now.saturating_duration_since(next.since), now);
            if !self.is_due(slow, now) {
                return Some(next.frame);
            }
            if next.frame.get_mut(next.packet..).is_some_and(mark) {
                return Some(next.frame);
            }
            late();
        }
    }

    /// Whether the delay has been above the target for a whole interval.
    fn is_slow(&mut self, delay: Duration, now: Instant) -> bool {
        if delay < TARGET || self.bytes <= SPARED {
            self.above_until = None;
            return false;
        }
        match self.above_until {
            Some(until) => now >= until,
            None => {
                self.above_until = Some(now + INTERVAL);
                false
            }
        }
    }

    /// The control law: the longer the delay lasts, the more packets go.
    fn is_due(&mut self, slow: bool, now: Instant) -> bool {
        match self.dropping {
            Some(_) if !slow => {
                self.dropping = None;
                false
            }
            Some((next, count)) if now >= next => {
                let count = count.saturating_add(1);
                self.dropping = Some((next + spacing(count), count));
                self.last_count = count;
                true
            }
            Some(_) => false,
            None if slow => {
                // A state left not long ago goes on where it was.
                let count = self.last_count.saturating_sub(2).max(1);
                self.dropping = Some((now + spacing(count), count));
                self.last_count = count;
                true
            }
            None => false,
        }
    }
}

fn spacing(count: u32) -> Duration {
    INTERVAL.div_f64(f64::from(count).sqrt())
}

/// Marks "congestion experienced", if sender and receiver understand it.
fn mark(packet: &mut [u8]) -> bool {
    match packet {
        [first, class, ..] if *first >> 4 == 4 => {
            let header = usize::from(*first & 0x0f) * 4;
            if *class & 0b11 == 0 {
                return false;
            }
            *class |= 0b11;
            let Some(header) = packet.get_mut(..header) else {
                return false;
            };
            let Some(sum) = header.get_mut(10..12) else {
                return false;
            };
            sum.fill(0);
            let complete = Sum::default().over(header).complete();
            if let Some(sum) = header.get_mut(10..12) {
                sum.copy_from_slice(&complete.to_be_bytes());
            }
            true
        }
        [first, second, ..] if *first >> 4 == 6 => {
            let understood = *second & 0b0011_0000 != 0;
            if understood {
                *second |= 0b0011_0000;
            }
            understood
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::{
        packet::Header,
        segment::tests::{kernel_packet, sums_hold},
    };

    const LIMIT: usize = 256 * 1024;

    /// A producer that never stops against a consumer of so many bytes a second: the longest delay of what is sent, after a
    /// second, and what was marked and dropped.
    fn overload(packet: &[u8], bytes_per_second: usize) -> (Duration, usize, usize) {
        let start = Instant::now();
        let mut queue = Queue::new(LIMIT);
        let (mut worst, mut marked, mut dropped) = (Duration::ZERO, 0, 0);
        let step = Duration::from_secs_f64(packet.len() as f64 / bytes_per_second as f64);
        for turn in 0_u32..20_000 {
            let now = start + step * turn;
            while queue.bytes() < LIMIT / 2 {
                let mut frame = turn.to_be_bytes().to_vec();
                frame.extend(packet);
                queue.push(frame, 4, now).expect("room");
            }
            let Some(frame) = queue.pop(now, || dropped += 1) else {
                continue;
            };
            let pushed = u32::from_be_bytes(*frame.first_chunk().expect("four bytes"));
            marked += usize::from(frame[5] & 0b11 == 0b11);
            assert!(
                sums_hold(&frame[4..]) || frame[13] != 6,
                "marking keeps the checksum"
            );
            if now.duration_since(start) > Duration::from_secs(1) {
                worst = worst.max(step * (turn - pushed));
            }
        }
        (worst, marked, dropped)
    }

    #[test]
    fn a_full_queue_takes_nothing_more_and_an_empty_one_anything() {
        let now = Instant::now();
        let mut queue = Queue::new(1_000);
        assert_eq!(queue.push(vec![0; 60_000], 0, now), Ok(()));
        assert_eq!(queue.push(vec![0; 1], 0, now), Err(Drop::QueueFull));
        assert_eq!(queue.pop(now, || ()).map(|frame| frame.len()), Some(60_000));
        assert_eq!(queue.push(vec![0; 600], 0, now), Ok(()));
        assert_eq!(queue.push(vec![0; 401], 0, now), Err(Drop::QueueFull));
        assert_eq!(queue.bytes(), 600);
    }

    #[test]
    fn packets_that_understand_marks_are_marked_and_others_dropped() {
        let mut packet = kernel_packet(true, false, 0, &[0; 1_200]);
        let (_, marked, dropped) = overload(&packet, 4_000_000);
        assert_eq!(marked, 0);
        assert!(dropped > 20, "{dropped} dropped");
        packet[1] = 0b10;
        let (_, marked, dropped) = overload(&packet, 4_000_000);
        assert_eq!(dropped, 0);
        assert!(marked > 20, "{marked} marked");
        assert!(Header::parse(&packet).is_ok());
    }

    #[test]
    fn a_queue_that_drains_in_time_loses_nothing() {
        let packet = kernel_packet(true, false, 0, &[0; 1_200]);
        let (_, _, dropped) = overload(&packet, 200_000_000);
        assert_eq!(dropped, 0);
    }
}
