//! The thread that reads the device and sends each packet on its way.
#![allow(
    clippy::disallowed_methods,
    reason = "reads the clock once for each batch"
)]

use std::{io, os::fd::AsFd, time::Instant};

use super::{Shared, Table, direct::Train, wake::Woken};
use crate::{
    device::MOST,
    overlay::{
        frame,
        icmp::Problem,
        packet::Header,
        router::Drop as Dropped,
        segment::{Segments, Sums},
        session::OVERHEAD,
        virtio::{self, Offload},
    },
};

/// Packets read before the table is looked at again.
const BATCH: usize = 64;

/// Runs until it is told to stop.
pub fn run(shared: &Shared) {
    let mut buffer = vec![0; MOST];
    let mut train = Train::new();
    loop {
        let device = shared.device.load_full();
        let waiting = device.as_ref().map(|device| device.as_fd());
        match shared.wake.wait(waiting) {
            Woken::Stop => return,
            Woken::Changed => continue,
            Woken::Ready => {}
        }
        let Some(device) = &device else { continue };
        let table = shared.table.load();
        let now = Instant::now();
        for _ in 0..BATCH {
            match device.receive(&mut buffer) {
                Ok(length) => shared.transmit(
                    &table,
                    buffer.get(..length).unwrap_or_default(),
                    &mut train,
                    now,
                ),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // Deleted or set down under us; whoever watches the interface brings another one.
                    tracing::error!(device = device.name(), cause = %error, "the device gives no packets any more");
                    shared.forget(device);
                    break;
                }
            }
        }
        if let Some(direct) = &shared.direct {
            train.send(direct);
        }
    }
}

impl Shared {
    /// Sends what the device gave: a virtio header and a packet.
    fn transmit(&self, table: &Table, given: &[u8], train: &mut Train, now: Instant) {
        let Some((header, packet)) = given.split_first_chunk::<{ virtio::HEADER }>() else {
            return self.drops.count(Dropped::Malformed);
        };
        let (Ok(offload), Ok(header)) = (Offload::decode(header), Header::parse(packet)) else {
            return self.drops.count(Dropped::Malformed);
        };
        let peer = match table.router.outgoing(&header) {
            Ok(key) => table.peers.get(&key),
            Err(reason) => {
                self.drops.count(reason);
                if reason == Dropped::NoRoute {
                    self.answer(table, packet, &header, Problem::Unreachable, now);
                }
                return;
            }
        };
        let Some(peer) = peer else {
            return self.drops.count(Dropped::NoRoute);
        };
        let Ok(segments) = Segments::of(&offload, packet, Sums::Left) else {
            return peer.drops.count(Dropped::Malformed);
        };
        if let Some(direct) = &self.direct
            && let Some(path) = peer.direct(segments.largest() + OVERHEAD)
        {
            return train.add(direct, &path, segments);
        }
        let mut frame = Vec::with_capacity(frame::HEADER + packet.len());
        frame.extend(frame::encode(&offload, packet.len()));
        frame.extend(packet);
        peer.send(frame, frame::HEADER, now);
    }

    fn forget(&self, broken: &std::sync::Arc<crate::device::Device>) {
        let current = self.device.load();
        if current
            .as_ref()
            .is_some_and(|current| std::sync::Arc::ptr_eq(current, broken))
        {
            self.device.store(None);
        }
    }
}
