//! Joining packets of one flow into super-packets, so that many cross into the kernel at once. The reverse of
//! [`segment`](super::segment).

use super::{
    MOST_PACKET,
    checksum::{Sum, put},
    packet::{Header, TCP, UDP},
    segment::Sums,
    virtio::{Offload, Segmentation, SumLeft},
};

/// What is written at once: the first packet whole, with headers that speak for all, and of each other one its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bundle {
    pub offload: Offload,
    /// Bytes of the headers; what the packets after the first leave out.
    pub headers: usize,
    pub first: usize,
    last: usize,
    count: usize,
    total: usize,
    shape: Option<Shape>,
    open: bool,
}

/// Joins the packets of one batch. Kept from batch to batch for its room only.
#[derive(Debug, Default)]
pub struct Coalescer {
    bundles: Vec<Bundle>,
    /// For each packet the next one of its bundle.
    next: Vec<usize>,
}

/// What this kernel takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Takes {
    pub tcp: bool,
    /// Linux 6.2 and later.
    pub udp: bool,
}

/// What of a packet decides whether it can be joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    protocol: u8,
    v4: bool,
    /// Where the transport header begins.
    transport: usize,
    headers: usize,
    payload: usize,
    sequence: u32,
    /// Nothing is joined after it.
    push: bool,
}

/// Bundles looked through for one packet: more flows at once in a batch are rare, and a miss costs a syscall, no more.
const OPEN: usize = 16;

/// The largest number of segments the kernel takes in one UDP packet (`UDP_MAX_SEGMENTS`).
const UDP_SEGMENTS: usize = 64;

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const NONE: usize = usize::MAX;

impl Coalescer {
    /// Puts the packets, each whole and checked, into bundles, in the order of their first packets; packets of one flow
    /// stay in order. With [`Sums::Left`] they came without transport checksum, from a carrier that proves every byte.
    pub fn join<P: AsRef<[u8]> + AsMut<[u8]>>(
        &mut self,
        packets: &mut [P],
        takes: Takes,
        sums: Sums,
    ) -> &[Bundle] {
        self.bundles.clear();
        self.next.clear();
        self.next.resize(packets.len(), NONE);
        for at in 0..packets.len() {
            let Some(packet) = packets.get(at).map(AsRef::as_ref) else {
                continue;
            };
            let flow = Shape::with_sum(packet);
            let shape = flow.filter(|shape| {
                shape.can_be_joined(packet)
                    && if shape.protocol == TCP {
                        takes.tcp
                    } else {
                        takes.udp
                    }
            });
            let joined = shape.and_then(|shape| self.join_one(packets, at, &shape, sums));
            if joined.is_none() {
                if let (None, Some(flow)) = (shape, flow)
                    && let Some(bundle) = newest_of(&mut self.bundles, packets, &flow, packet)
                {
                    // What comes after must not overtake it.
                    bundle.open = false;
                }
                self.bundles.push(Bundle::alone(at, packet.len(), shape));
            }
        }
        for bundle in &mut self.bundles {
            if let Some(packet) = packets.get_mut(bundle.first) {
                bundle.finish(packet.as_mut(), sums);
            }
        }
        &self.bundles
    }

    /// What the last [`join`](Self::join) has made.
    pub fn bundles(&self) -> &[Bundle] {
        &self.bundles
    }

    /// The packets of a bundle, first to last.
    pub fn members(&self, bundle: &Bundle) -> impl Iterator<Item = usize> + '_ {
        std::iter::successors(Some(bundle.first), |at| {
            self.next.get(*at).copied().filter(|next| *next != NONE)
        })
    }

    /// Puts packet `at` behind the last of its flow, if the flow's newest bundle takes it.
    fn join_one<P: AsRef<[u8]>>(
        &mut self,
        packets: &[P],
        at: usize,
        shape: &Shape,
        sums: Sums,
    ) -> Option<()> {
        let packet = packets.get(at)?.as_ref();
        let bundle = newest_of(&mut self.bundles, packets, shape, packet)?;
        let first = bundle.shape?;
        let fits = bundle.open
            && shape.payload <= first.payload
            && bundle.total + shape.payload <= MOST_PACKET
            && first.continues(packets.get(bundle.first)?.as_ref(), bundle, shape, packet)
            && (sums == Sums::Left
                || (sum_holds(packet, shape)
                    && (bundle.count > 1
                        || sum_holds(packets.get(bundle.first)?.as_ref(), &first))));
        if !fits {
            bundle.open = false;
            return None;
        }
        *self.next.get_mut(bundle.last)? = at;
        bundle.last = at;
        bundle.count += 1;
        bundle.total += shape.payload;
        let full = shape.protocol == UDP && bundle.count == UDP_SEGMENTS;
        bundle.open = shape.payload == first.payload && !shape.push && !full;
        if shape.push
            && let Some(first) = &mut bundle.shape
        {
            first.push = true;
        }
        Some(())
    }
}

impl Bundle {
    fn alone(at: usize, length: usize, shape: Option<Shape>) -> Self {
        Self {
            offload: Offload::default(),
            headers: shape.map_or(length, |shape| shape.headers),
            first: at,
            last: at,
            count: 1,
            total: length,
            open: shape.is_some_and(|shape| !shape.push),
            shape,
        }
    }

    /// Bytes of the super-packet.
    pub fn length(&self) -> usize {
        self.total
    }

    /// Writes the headers of the first packet so that they speak for all.
    fn finish(&mut self, packet: &mut [u8], sums: Sums) {
        let shape = match (self.shape, sums) {
            (Some(shape), Sums::Left) => shape,
            (Some(shape), Sums::Complete) if self.count > 1 => shape,
            (None, Sums::Left) => match Shape::with_sum(packet) {
                Some(shape) => shape,
                None => return,
            },
            _ => return,
        };
        if self.write(packet, &shape).is_none() {
            return;
        }
        self.offload.sum = Some(SumLeft {
            start: shape.transport as u16,
            offset: shape.sum_offset() as u16,
        });
        if self.count > 1 {
            self.offload.segment = shape.payload as u16;
            self.offload.segmentation = match (shape.protocol, shape.v4) {
                (TCP, true) => Segmentation::Tcp4,
                (TCP, false) => Segmentation::Tcp6,
                _ => Segmentation::Udp,
            };
        }
    }

    fn write(&self, packet: &mut [u8], shape: &Shape) -> Option<()> {
        let header = Header::parse(packet).ok()?;
        let transport = u16::try_from(self.total.checked_sub(shape.transport)?).ok()?;
        if self.count > 1 {
            if shape.v4 {
                put(packet, 2, u16::try_from(self.total).ok()?)?;
                put(packet, 10, 0)?;
                let sum = Sum::default()
                    .over(packet.get(..shape.transport)?)
                    .complete();
                put(packet, 10, sum)?;
            } else {
                put(packet, 4, transport)?;
            }
            if shape.protocol == UDP {
                put(packet, shape.transport + 4, transport)?;
            } else if shape.push {
                *packet.get_mut(shape.transport + 13)? |= PSH;
            }
        }
        let partial = Sum::pseudo_header(
            header.source,
            header.destination,
            shape.protocol,
            transport.into(),
        );
        put(
            packet,
            shape.transport + shape.sum_offset(),
            partial.partial(),
        )
    }
}

impl Shape {
    /// Whether it is one of a series, and not a packet that is handed over by itself.
    fn can_be_joined(&self, packet: &[u8]) -> bool {
        let plain = if self.protocol == TCP {
            packet
                .get(self.transport + 13)
                .is_some_and(|flags| flags & !PSH == ACK)
        } else {
            let length = packet
                .get(self.transport + 4..)
                .and_then(|from| from.first_chunk::<2>());
            length.is_some_and(|length| {
                usize::from(u16::from_be_bytes(*length)) == packet.len() - self.transport
            })
        };
        plain && self.payload > 0
    }

    /// A whole TCP or UDP packet without IP options or extension headers.
    fn with_sum(packet: &[u8]) -> Option<Self> {
        let header = Header::parse(packet).ok()?;
        let v4 = header.source.is_ipv4();
        if header.fragment || (v4 && header.length != 20) {
            return None;
        }
        let transport = header.length;
        let (length, sequence, push) = match header.protocol {
            TCP => {
                let fixed: &[u8; 20] = packet.get(transport..)?.first_chunk()?;
                let length = usize::from(fixed[12] >> 4) * 4;
                let sequence = u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
                (length.max(20), sequence, fixed[13] & PSH != 0)
            }
            UDP => {
                packet.get(transport..transport + 8)?;
                (8, 0, false)
            }
            _ => return None,
        };
        let headers = transport + length;
        Some(Self {
            protocol: header.protocol,
            v4,
            transport,
            headers,
            payload: packet.len().checked_sub(headers)?,
            sequence,
            push,
        })
    }

    fn sum_offset(&self) -> usize {
        if self.protocol == TCP { 16 } else { 6 }
    }

    fn same_flow(&self, mine: &[u8], other: &Shape, packet: &[u8]) -> bool {
        let addresses = if self.v4 { 12..20 } else { 8..40 };
        let ports = self.transport..self.transport + 4;
        self.protocol == other.protocol
            && self.v4 == other.v4
            && mine.get(ports.clone()) == packet.get(ports)
            && mine.get(addresses.clone()) == packet.get(addresses)
    }

    /// Whether `packet` is what cutting the bundle, with it at the end, would give.
    fn continues(&self, mine: &[u8], bundle: &Bundle, other: &Shape, packet: &[u8]) -> bool {
        let same = |range: std::ops::Range<usize>| mine.get(range.clone()) == packet.get(range);
        let ip = if self.v4 {
            // Class; flags, time to live and protocol; ids that count up, unless fragmenting is forbidden.
            let id = |packet: &[u8]| Some(u16::from_be_bytes(*packet.get(4..6)?.first_chunk()?));
            let unfragmentable = mine.get(6).is_some_and(|flags| flags & 0x40 != 0);
            let counted = id(mine).map(|id| id.wrapping_add(bundle.count as u16)) == id(packet);
            same(0..2) && same(6..10) && (unfragmentable || counted)
        } else {
            same(0..4) && same(6..8)
        };
        if !ip || self.headers != other.headers {
            return false;
        }
        let at = self.transport;
        if self.protocol == TCP {
            let carried = (bundle.total - self.headers) as u32;
            self.sequence.wrapping_add(carried) == other.sequence
                && same(at + 8..at + 13)
                && same(at + 14..at + 16)
                && same(at + 18..self.headers)
        } else {
            true
        }
    }
}

/// The newest bundle of a flow, open or not.
fn newest_of<'a, P: AsRef<[u8]>>(
    bundles: &'a mut [Bundle],
    packets: &[P],
    flow: &Shape,
    packet: &[u8],
) -> Option<&'a mut Bundle> {
    bundles.iter_mut().rev().take(OPEN).find(|bundle| {
        let head = packets.get(bundle.first).map(AsRef::as_ref);
        bundle
            .shape
            .zip(head)
            .is_some_and(|(first, head)| first.same_flow(head, flow, packet))
    })
}

/// Joined, a packet is not asked for its sum any more: a wrong one must not be hidden. UDP without a sum is not joined.
fn sum_holds(packet: &[u8], shape: &Shape) -> bool {
    let sum = || {
        let header = Header::parse(packet).ok()?;
        let covered = packet.get(shape.transport..)?;
        let length = u32::try_from(covered.len()).ok()?;
        let none = covered.get(shape.sum_offset()..)?.starts_with(&[0, 0]) && shape.protocol == UDP;
        let sum = Sum::pseudo_header(header.source, header.destination, shape.protocol, length)
            .over(covered);
        Some(!none && sum.complete() == 0)
    };
    sum().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::super::segment::tests::{cut, kernel_packet, offload, sums_hold};
    use super::*;
    use proptest::prelude::*;

    const ALL: Takes = Takes {
        tcp: true,
        udp: true,
    };

    /// What the kernel is given: super-packets with their headers.
    fn joined(packets: &[Vec<u8>], takes: Takes, sums: Sums) -> Vec<(Offload, Vec<u8>)> {
        let mut packets = packets.to_vec();
        let mut coalescer = Coalescer::default();
        let bundles = coalescer.join(&mut packets, takes, sums).to_vec();
        let whole = |bundle: &Bundle| {
            let mut members = coalescer.members(bundle);
            let mut bytes = packets[members.next().expect("a first")].clone();
            members.for_each(|at| bytes.extend(&packets[at][bundle.headers..]));
            assert_eq!(bytes.len(), bundle.length());
            (bundle.offload, bytes)
        };
        bundles.iter().map(whole).collect()
    }

    /// What the kernel makes of it.
    fn delivered(super_packets: &[(Offload, Vec<u8>)]) -> Vec<Vec<u8>> {
        let all = super_packets.iter().map(|(offload, packet)| {
            cut(offload, packet, Sums::Complete).expect("a super-packet the kernel takes")
        });
        all.flatten().collect()
    }

    proptest! {
        #[test]
        fn what_is_cut_and_joined_is_delivered_as_it_was_cut(
            v4: bool, tcp: bool, left: bool, size in 100_u16..1_500, payload in prop::collection::vec(any::<u8>(), 1..60_000),
        ) {
            let packet = kernel_packet(v4, tcp, 0, &payload);
            let sums = if left { Sums::Left } else { Sums::Complete };
            let segments = cut(&offload(v4, tcp, size), &packet, sums).unwrap();
            let super_packets = joined(&segments, ALL, sums);
            let most = if tcp { 65_000 / usize::from(size) } else { UDP_SEGMENTS };
            // The first segment of a flow that carries CWR stands alone.
            prop_assert!(super_packets.len() <= segments.len().div_ceil(most) + 1);
            let complete = cut(&offload(v4, tcp, size), &packet, Sums::Complete).unwrap();
            prop_assert_eq!(delivered(&super_packets), complete);
        }

        #[test]
        fn flows_in_any_mixture_keep_their_order_and_their_bytes(
            picks in prop::collection::vec((0_usize..5, 0_usize..3), 1..60), spoil in prop::option::of(0_usize..60),
        ) {
            let payload: Vec<u8> = (0..9_000_u32).map(|at| at as u8).collect();
            let mut flows: Vec<std::collections::VecDeque<Vec<u8>>> = Vec::new();
            for flow in 0..5_usize {
                let (v4, tcp) = (flow % 2 == 0, flow < 3);
                let mut packet = kernel_packet(v4, tcp, 0, &payload);
                let port = if v4 { 21 } else { 41 };
                packet[port] = flow as u8;
                let mut offload = offload(v4, tcp, 700);
                // The port is part of the sum the kernel left.
                offload.sum = None;
                let segments = cut(&offload, &packet, Sums::Complete).unwrap();
                flows.push(segments.into());
            }
            let mut mixed = Vec::new();
            for (flow, count) in picks {
                for _ in 0..=count {
                    mixed.extend(flows[flow].pop_front());
                }
            }
            if let Some(packet) = spoil.and_then(|at| mixed.get_mut(at)) {
                let last = packet.len() - 1;
                packet[last] ^= 1;
            }
            let got = delivered(&joined(&mixed, ALL, Sums::Complete));
            let of = |all: &[Vec<u8>], flow: u8| -> Vec<Vec<u8>> {
                let same = |packet: &&Vec<u8>| packet[if packet[0] == 0x45 { 21 } else { 41 }] == flow;
                all.iter().filter(same).cloned().collect()
            };
            for flow in 0..5 {
                prop_assert_eq!(of(&got, flow), of(&mixed, flow));
            }
            prop_assert_eq!(got.iter().filter(|packet| !sums_hold(packet)).count(), mixed.iter().filter(|packet| !sums_hold(packet)).count());
        }

        #[test]
        fn any_packets_are_joined_without_a_panic(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..90), 0..20)) {
            let mut packets = packets;
            for (at, packet) in packets.iter_mut().enumerate() {
                if let Some(first) = packet.first_mut() {
                    *first = if at % 2 == 0 { 0x45 } else { 0x60 };
                }
            }
            let _ = joined(&packets, ALL, Sums::Complete);
            let _ = joined(&packets, ALL, Sums::Left);
        }
    }

    #[test]
    fn a_kernel_without_udp_segments_gets_them_one_by_one() {
        let packet = kernel_packet(true, false, 0, &[7; 3_000]);
        let segments = cut(&offload(true, false, 1_000), &packet, Sums::Complete).unwrap();
        let takes = Takes {
            tcp: true,
            udp: false,
        };
        assert_eq!(joined(&segments, takes, Sums::Complete).len(), 3);
        assert_eq!(joined(&segments, ALL, Sums::Complete).len(), 1);
    }
}
