//! A packet from a peer on its way into this machine: its lengths, its source, its destination, and then the device.

use std::io::IoSlice;

use super::{Shared, Table, peer::Peer};
use crate::{
    device::Device,
    overlay::{
        coalesce::Coalescer,
        packet::{Header, TCP, UDP},
        router::Drop as Dropped,
        segment::{Segments, Sums},
        virtio::{self, Offload, Segmentation},
    },
};

impl Shared {
    /// Delivers a packet, or counts why not.
    pub(super) fn deliver(&self, table: &Table, peer: &Peer, offload: &Offload, packet: &[u8]) {
        match self.check_and_deliver(table, peer, offload, packet) {
            Ok(()) => peer.count_received(packet.len()),
            Err(reason) => peer.drops.count(reason),
        }
    }

    /// Delivers neighbouring packets of one peer, joined to as few super-packets as they make.
    pub(super) fn deliver_joined(
        &self,
        table: &Table,
        peer: &Peer,
        mut packets: Vec<&mut [u8]>,
        sums: Sums,
        coalescer: &mut Coalescer,
    ) {
        packets.retain(|packet| {
            let header = Header::parse(packet).map_err(|_| Dropped::Malformed);
            match header.and_then(|header| table.router.incoming(&header, peer.key)) {
                Ok(()) => true,
                Err(reason) => {
                    peer.drops.count(reason);
                    false
                }
            }
        });
        let device = self.device.load();
        let Some(device) = device.as_ref() else {
            return packets
                .iter()
                .for_each(|_| peer.drops.count(Dropped::Device));
        };
        coalescer.join(&mut packets, device.takes(), sums);
        for bundle in coalescer.bundles() {
            let Some(first) = packets.get(bundle.first) else {
                continue;
            };
            let sent =
                if takes(device, &bundle.offload) {
                    let virtio = bundle.offload.encode(bundle.headers as u16);
                    let mut parts = vec![IoSlice::new(&virtio), IoSlice::new(first)];
                    let others = coalescer.members(bundle).skip(1);
                    parts.extend(others.filter_map(|at| {
                        Some(IoSlice::new(packets.get(at)?.get(bundle.headers..)?))
                    }));
                    device.send(&parts).map_err(|_| Dropped::Device)
                } else {
                    send_segments(device, &bundle.offload, first)
                };
            match sent {
                Ok(()) => peer.count_received(bundle.length()),
                Err(reason) => peer.drops.count(reason),
            }
        }
    }

    fn check_and_deliver(
        &self,
        table: &Table,
        peer: &Peer,
        offload: &Offload,
        packet: &[u8],
    ) -> Result<(), Dropped> {
        let header = Header::parse(packet).map_err(|_| Dropped::Malformed)?;
        table.router.incoming(&header, peer.key)?;
        let headers = check_offload(offload, &header, packet)?;
        let device = self.device.load();
        let device = device.as_ref().ok_or(Dropped::Device)?;
        if !takes(device, offload) {
            return send_segments(device, offload, packet);
        }
        let virtio = offload.encode(headers);
        device
            .send(&[IoSlice::new(&virtio), IoSlice::new(packet)])
            .map_err(|_| Dropped::Device)
    }
}

/// What a peer says is left to be done must fit the packet: the kernel does it without asking again. Gives the bytes before
/// the payload.
fn check_offload(offload: &Offload, header: &Header, packet: &[u8]) -> Result<u16, Dropped> {
    if let Some(sum) = offload.sum {
        let place = match header.protocol {
            TCP => 16,
            UDP => 6,
            // IPv6 extension headers stand between.
            _ if header.source.is_ipv6() && matches!(sum.offset, 6 | 16) => sum.offset,
            _ => return Err(Dropped::Malformed),
        };
        if sum.offset != place
            || (header.source.is_ipv4() && usize::from(sum.start) != header.length)
        {
            return Err(Dropped::Malformed);
        }
    }
    let segments = Segments::of(offload, packet, Sums::Left).map_err(|_| Dropped::Malformed)?;
    u16::try_from(segments.headers()).map_err(|_| Dropped::Malformed)
}

fn takes(device: &Device, offload: &Offload) -> bool {
    let takes = device.takes();
    match offload.segmentation {
        Segmentation::None => offload.sum.is_none() || takes.tcp,
        Segmentation::Tcp4 | Segmentation::Tcp6 => takes.tcp,
        Segmentation::Udp => takes.udp,
    }
}

/// For a kernel without this offload.
fn send_segments(device: &Device, offload: &Offload, packet: &[u8]) -> Result<(), Dropped> {
    let mut segments =
        Segments::of(offload, packet, Sums::Complete).map_err(|_| Dropped::Malformed)?;
    let mut one = vec![0; segments.largest()];
    let nothing_left = [0; virtio::HEADER];
    while let Some(length) = segments.write_next(&mut one) {
        let segment = one.get(..length).unwrap_or_default();
        device
            .send(&[IoSlice::new(&nothing_left), IoSlice::new(segment)])
            .map_err(|_| Dropped::Device)?;
    }
    Ok(())
}
