//! Cutting a super-packet into packets that fit the wire: each with headers, lengths and checksums of its own.

use super::{
    checksum::{Sum, put},
    packet::{Header, Malformed, TCP, UDP},
    virtio::{Offload, Segmentation},
};

/// Whether packets leave with their transport checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sums {
    /// It is there.
    Complete,
    /// Where the kernel left it out, it stays out: a carrier that authenticates every byte needs no other sum, and the
    /// receiver tells its kernel so.
    Left,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSuperPacket {
    #[error(transparent)]
    Packet(#[from] Malformed),
    #[error("its transport header is not inside the packet")]
    Transport,
    #[error("it is to be cut into segments of no bytes")]
    NoSegment,
    #[error("the kernel asks for a kind of segments the packet is not of")]
    Kind,
}

/// The packets of one super-packet, written one by one.
pub struct Segments<'a> {
    packet: &'a [u8],
    header: Header,
    cut: Cut,
    sums: Sums,
    /// Payload written so far, and by how many packets.
    at: usize,
    written: u16,
    done: bool,
}

/// What the kernel asks for.
#[derive(Clone, Copy)]
enum Cut {
    /// The packet is whole; its checksum may be left to do, at this place, over what begins there.
    Whole {
        sum: Option<(usize, usize)>,
    },
    Tcp(Layout),
    Udp(Layout),
}

#[derive(Clone, Copy)]
struct Layout {
    /// Where the transport header begins.
    transport: usize,
    /// Where the payload begins.
    payload: usize,
    /// Bytes of payload of every packet but the last.
    size: usize,
}

/// RFC 9293 §3.1 and RFC 768: places in the transport header.
const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 13;
const TCP_SUM: usize = 16;
const TCP_HEADER: usize = 20;
const UDP_LENGTH: usize = 4;
const UDP_SUM: usize = 6;
const UDP_HEADER: usize = 8;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

impl<'a> Segments<'a> {
    /// Nothing of `offload` is believed that the packet does not bear out.
    pub fn of(offload: &Offload, packet: &'a [u8], sums: Sums) -> Result<Self, BadSuperPacket> {
        let header = Header::parse(packet)?;
        Ok(Self {
            packet,
            header,
            cut: Cut::of(offload, &header, packet)?,
            sums,
            at: 0,
            written: 0,
            done: false,
        })
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes of the largest packet to come.
    pub fn largest(&self) -> usize {
        match self.cut {
            Cut::Whole { .. } => self.packet.len(),
            Cut::Tcp(layout) | Cut::Udp(layout) => {
                self.packet.len().min(layout.payload + layout.size)
            }
        }
    }

    /// Bytes before the payload; of a packet that is not cut, those of its IP header.
    pub fn headers(&self) -> usize {
        match self.cut {
            Cut::Whole { .. } => self.header.length,
            Cut::Tcp(layout) | Cut::Udp(layout) => layout.payload,
        }
    }

    /// Whether the packets leave without their transport checksum.
    pub fn leaves_sums(&self) -> bool {
        match (self.sums, self.cut) {
            (Sums::Complete, _) | (Sums::Left, Cut::Whole { sum: None }) => false,
            (Sums::Left, _) => true,
        }
    }

    /// Writes the next packet and says how long it is. `None`: there is none, or `out` is shorter than
    /// [`largest`](Self::largest).
    pub fn write_next(&mut self, out: &mut [u8]) -> Option<usize> {
        if self.done {
            return None;
        }
        match self.cut {
            Cut::Whole { sum } => self.write_whole(sum, out),
            Cut::Tcp(layout) => self.write_segment(layout, TCP, out),
            Cut::Udp(layout) => self.write_segment(layout, UDP, out),
        }
    }

    fn write_whole(&mut self, sum: Option<(usize, usize)>, out: &mut [u8]) -> Option<usize> {
        self.done = true;
        let out = out.get_mut(..self.packet.len())?;
        out.copy_from_slice(self.packet);
        if let (Some((start, place)), Sums::Complete) = (sum, self.sums) {
            // The field holds the sum of the pseudo-header already, and is summed with the rest.
            let sum = Sum::default().over(out.get(start..)?).complete();
            put(out, place, never_zero(sum, self.header.protocol))?;
        }
        Some(out.len())
    }

    fn write_segment(&mut self, layout: Layout, protocol: u8, out: &mut [u8]) -> Option<usize> {
        let rest = self.packet.get(layout.payload + self.at..)?;
        let payload = rest.get(..layout.size).unwrap_or(rest);
        let last = payload.len() == rest.len();
        let length = layout.payload + payload.len();
        let out = out.get_mut(..length)?;
        let (headers, body) = out.split_at_mut_checked(layout.payload)?;
        headers.copy_from_slice(self.packet.get(..layout.payload)?);
        body.copy_from_slice(payload);
        self.write_ip(headers, length)?;
        let transport = headers.get_mut(layout.transport..)?;
        let place = if protocol == TCP {
            self.write_tcp(transport, last)?;
            TCP_SUM
        } else {
            put(
                transport,
                UDP_LENGTH,
                u16::try_from(length - layout.transport).ok()?,
            )?;
            UDP_SUM
        };
        put(transport, place, 0)?;
        if self.sums == Sums::Complete {
            let covered = u32::try_from(length - layout.transport).ok()?;
            let sum = Sum::pseudo_header(
                self.header.source,
                self.header.destination,
                protocol,
                covered,
            )
            .over(out.get(layout.transport..)?)
            .complete();
            put(out, layout.transport + place, never_zero(sum, protocol))?;
        }
        self.at += payload.len();
        self.written = self.written.wrapping_add(1);
        self.done = last;
        Some(length)
    }

    fn write_ip(&self, headers: &mut [u8], length: usize) -> Option<()> {
        if self.header.source.is_ipv4() {
            put(headers, 2, u16::try_from(length).ok()?)?;
            // RFC 6864 wants ids of fragmentable packets to differ; the kernel counts them up as well.
            let id = u16::from_be_bytes(*headers.get(4..6)?.first_chunk()?);
            put(headers, 4, id.wrapping_add(self.written))?;
            put(headers, 10, 0)?;
            let sum = Sum::default()
                .over(headers.get(..self.header.length)?)
                .complete();
            put(headers, 10, sum)
        } else {
            put(
                headers,
                4,
                u16::try_from(length.checked_sub(self.header.length)?).ok()?,
            )
        }
    }

    fn write_tcp(&self, transport: &mut [u8], last: bool) -> Option<()> {
        let sequence: &mut [u8; 4] = transport.get_mut(TCP_SEQUENCE..)?.first_chunk_mut()?;
        let first = u32::from_be_bytes(*sequence);
        *sequence = first
            .wrapping_add(u32::try_from(self.at).ok()?)
            .to_be_bytes();
        let flags = transport.get_mut(TCP_FLAGS)?;
        if !last {
            *flags &= !(FIN | PSH);
        }
        if self.written > 0 {
            *flags &= !CWR;
        }
        Some(())
    }
}

impl Cut {
    fn of(offload: &Offload, header: &Header, packet: &[u8]) -> Result<Self, BadSuperPacket> {
        let sum = match offload.sum {
            Some(left) => {
                let start = usize::from(left.start);
                let place = start + usize::from(left.offset);
                if start < header.length || place + 2 > packet.len() {
                    return Err(BadSuperPacket::Transport);
                }
                Some((start, place))
            }
            None => None,
        };
        let v4 = header.source.is_ipv4();
        match offload.segmentation {
            Segmentation::None => return Ok(Cut::Whole { sum }),
            Segmentation::Tcp4 if v4 && header.protocol == TCP => {}
            Segmentation::Tcp6 if !v4 => {}
            Segmentation::Udp if !v4 || header.protocol == UDP => {}
            _ => return Err(BadSuperPacket::Kind),
        }
        if header.fragment {
            return Err(BadSuperPacket::Kind);
        }
        // Extension headers of IPv6 stand between: the kernel says where the transport header is.
        let transport = sum.map_or(header.length, |(start, _)| start);
        let rest = packet.get(transport..).ok_or(BadSuperPacket::Transport)?;
        let udp = offload.segmentation == Segmentation::Udp;
        let length = if udp {
            UDP_HEADER
        } else {
            let words = rest.get(12).ok_or(BadSuperPacket::Transport)? >> 4;
            usize::from(words) * 4
        };
        let least = if udp { UDP_HEADER } else { TCP_HEADER };
        if length < least || length > rest.len() {
            return Err(BadSuperPacket::Transport);
        }
        let layout = Layout {
            transport,
            payload: transport + length,
            size: usize::from(offload.segment),
        };
        if layout.size == 0 {
            return Err(BadSuperPacket::NoSegment);
        }
        Ok(if udp {
            Cut::Udp(layout)
        } else {
            Cut::Tcp(layout)
        })
    }
}

/// A sum of zero means "no checksum" in UDP (RFC 768); the other form of zero stands for it.
fn never_zero(sum: u16, protocol: u8) -> u16 {
    if sum == 0 && protocol == UDP {
        0xffff
    } else {
        sum
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::overlay::virtio::SumLeft;
    use proptest::prelude::*;
    use std::net::IpAddr;

    /// A TCP or UDP packet as the kernel hands it over: lengths of the whole, checksum left.
    pub fn kernel_packet(v4: bool, tcp: bool, options: usize, payload: &[u8]) -> Vec<u8> {
        let transport = if tcp { 20 + options } else { 8 };
        let ip = if v4 { 20 } else { 40 };
        let mut packet = vec![0; ip];
        let total = ip + transport + payload.len();
        let protocol = if tcp { TCP } else { UDP };
        if v4 {
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&u16::try_from(total).unwrap().to_be_bytes());
            packet[4..6].copy_from_slice(&0xfffe_u16.to_be_bytes());
            packet[6] = 0x40;
            packet[8] = 64;
            packet[9] = protocol;
            packet[12..16].copy_from_slice(&[10, 1, 0, 1]);
            packet[16..20].copy_from_slice(&[10, 1, 0, 2]);
            let sum = Sum::default().over(&packet).complete();
            put(&mut packet, 10, sum).unwrap();
        } else {
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&u16::try_from(total - 40).unwrap().to_be_bytes());
            packet[6] = protocol;
            packet[7] = 64;
            packet[23] = 1;
            packet[39] = 2;
        }
        let start = packet.len();
        packet.extend([0x13, 0x88, 0x14, 0x51]);
        if tcp {
            packet.extend(0xffff_ff00_u32.to_be_bytes());
            packet.extend(7_u32.to_be_bytes());
            packet.extend([
                ((20 + options) / 4 * 16) as u8,
                0x10 | PSH | CWR,
                0x20,
                0,
                0,
                0,
                0,
                0,
            ]);
            packet.extend(std::iter::repeat_n(1, options));
        } else {
            packet.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
            packet.extend([0, 0]);
        }
        packet.extend(payload);
        let header = Header::parse(&packet).unwrap();
        let covered = u32::try_from(packet.len() - start).unwrap();
        let partial =
            Sum::pseudo_header(header.source, header.destination, protocol, covered).partial();
        put(
            &mut packet,
            start + if tcp { TCP_SUM } else { UDP_SUM },
            partial,
        )
        .unwrap();
        packet
    }

    pub fn offload(v4: bool, tcp: bool, segment: u16) -> Offload {
        Offload {
            segmentation: match (tcp, v4) {
                (true, true) => Segmentation::Tcp4,
                (true, false) => Segmentation::Tcp6,
                (false, _) => Segmentation::Udp,
            },
            segment,
            sum: Some(SumLeft {
                start: if v4 { 20 } else { 40 },
                offset: if tcp { 16 } else { 6 },
            }),
        }
    }

    /// All packets, or the error.
    pub fn cut(
        offload: &Offload,
        packet: &[u8],
        sums: Sums,
    ) -> Result<Vec<Vec<u8>>, BadSuperPacket> {
        let mut segments = Segments::of(offload, packet, sums)?;
        let mut out = vec![0; segments.largest()];
        let mut all = Vec::new();
        while let Some(length) = segments.write_next(&mut out) {
            all.push(out[..length].to_vec());
        }
        Ok(all)
    }

    /// Whether all checksums of a packet hold, the slow way.
    pub fn sums_hold(packet: &[u8]) -> bool {
        let header = Header::parse(packet).unwrap();
        let covered = u32::try_from(packet.len() - header.length).unwrap();
        let transport =
            Sum::pseudo_header(header.source, header.destination, header.protocol, covered)
                .over(&packet[header.length..])
                .complete();
        let ip = match header.source {
            IpAddr::V4(_) => Sum::default().over(&packet[..header.length]).complete(),
            IpAddr::V6(_) => 0,
        };
        ip == 0 && transport == 0
    }

    proptest! {
        #[test]
        fn segments_carry_the_payload_in_order_with_sums_that_hold(
            v4: bool, tcp: bool, options in 0_usize..4, size in 1_u16..2_000, payload in prop::collection::vec(any::<u8>(), 1..20_000),
        ) {
            let options = options * 4;
            let packet = kernel_packet(v4, tcp, options, &payload);
            let all = cut(&offload(v4, tcp, size), &packet, Sums::Complete).unwrap();
            prop_assert_eq!(all.len(), payload.len().div_ceil(usize::from(size)));
            let headers = packet.len() - payload.len();
            let mut joined: Vec<u8> = Vec::new();
            for (number, segment) in all.iter().enumerate() {
                prop_assert!(sums_hold(segment), "segment {}", number);
                let last = number + 1 == all.len();
                prop_assert!(last || segment.len() == headers + usize::from(size));
                let transport = &segment[if v4 { 20 } else { 40 }..];
                if tcp {
                    let sequence = u32::from_be_bytes(transport[4..8].try_into().unwrap());
                    prop_assert_eq!(sequence, 0xffff_ff00_u32.wrapping_add(u32::try_from(joined.len()).unwrap()));
                    prop_assert_eq!(transport[13] & PSH != 0, last);
                    prop_assert_eq!(transport[13] & CWR != 0, number == 0);
                }
                if v4 {
                    let id = u16::from_be_bytes([segment[4], segment[5]]);
                    prop_assert_eq!(id, 0xfffe_u16.wrapping_add(u16::try_from(number).unwrap()));
                }
                joined.extend(&segment[headers..]);
            }
            prop_assert_eq!(joined, payload);
        }

        #[test]
        fn a_checksum_left_by_the_kernel_is_completed(v4: bool, tcp: bool, payload in prop::collection::vec(any::<u8>(), 0..1_500)) {
            let packet = kernel_packet(v4, tcp, 0, &payload);
            let mut offload = offload(v4, tcp, 0);
            offload.segmentation = Segmentation::None;
            let all = cut(&offload, &packet, Sums::Complete).unwrap();
            prop_assert_eq!(all.len(), 1);
            prop_assert!(sums_hold(&all[0]));
            prop_assert_eq!(cut(&offload, &packet, Sums::Left).unwrap(), vec![packet]);
        }

        #[test]
        fn any_header_with_any_packet_is_cut_or_refused(
            header: [u8; 10], start in prop::collection::vec(any::<u8>(), 0..80), version in prop::sample::select(vec![0x45_u8, 0x46, 0x60, 0x00]),
        ) {
            let mut packet = start;
            if let Some(first) = packet.first_mut() {
                *first = version;
            }
            let length = u16::try_from(packet.len()).unwrap();
            if packet.len() > 5 {
                let (at, value) = if version == 0x60 { (4, length.saturating_sub(40)) } else { (2, length) };
                put(&mut packet, at, value).unwrap();
            }
            if let Ok(offload) = Offload::decode(&header) {
                let _ = cut(&offload, &packet, Sums::Complete);
                let _ = cut(&offload, &packet, Sums::Left);
            }
        }
    }
}
