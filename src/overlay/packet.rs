//! What the header of an IP packet says, once its lengths are known to be true.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The fields that routing and accounting need. Made by [`parse`](Self::parse) only, so the lengths hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// The transport protocol, or for IPv6 the first extension header.
    pub protocol: u8,
    /// Bytes of the IP header, options included, IPv6 extension headers not.
    pub length: usize,
    /// Bytes of header and payload.
    pub total: usize,
    /// Type of service or traffic class; the lower two bits are ECN.
    pub class: u8,
    /// A fragment that is not a whole packet.
    pub fragment: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("neither IPv4 nor IPv6")]
    Version,
    #[error("shorter than its header")]
    Short,
    #[error("its header length is below the minimum or beyond the packet")]
    HeaderLength,
    #[error("its total length is not that of the packet")]
    TotalLength,
}

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;

/// RFC 791 §3.1 and RFC 8200 §3.
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;

impl Header {
    /// `packet` is one whole packet. A total length that differs from its real one is an error in either direction: bytes
    /// behind the packet would go to the kernel with it.
    pub fn parse(packet: &[u8]) -> Result<Self, Malformed> {
        let header = Self::parse_first(packet)?;
        if header.total == packet.len() {
            Ok(header)
        } else {
            Err(Malformed::TotalLength)
        }
    }

    /// `bytes` begins with a packet; it may go on after it.
    pub fn parse_first(bytes: &[u8]) -> Result<Self, Malformed> {
        match bytes.first().map(|first| first >> 4) {
            Some(4) => Self::parse_v4(bytes),
            Some(6) => Self::parse_v6(bytes),
            Some(_) => Err(Malformed::Version),
            None => Err(Malformed::Short),
        }
    }

    fn parse_v4(bytes: &[u8]) -> Result<Self, Malformed> {
        let fixed: &[u8; V4_HEADER] = bytes.first_chunk().ok_or(Malformed::Short)?;
        let length = usize::from(fixed[0] & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        if length < V4_HEADER || length > bytes.len() {
            return Err(Malformed::HeaderLength);
        }
        if total < length || total > bytes.len() {
            return Err(Malformed::TotalLength);
        }
        // More fragments, or an offset.
        let fragment = u16::from_be_bytes([fixed[6], fixed[7]]) & 0x3fff != 0;
        Ok(Self {
            source: Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]).into(),
            destination: Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]).into(),
            protocol: fixed[9],
            length,
            total,
            class: fixed[1],
            fragment,
        })
    }

    fn parse_v6(bytes: &[u8]) -> Result<Self, Malformed> {
        let fixed: &[u8; V6_HEADER] = bytes.first_chunk().ok_or(Malformed::Short)?;
        let payload = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        let total = V6_HEADER + payload;
        if total > bytes.len() {
            return Err(Malformed::TotalLength);
        }
        let mut source = [0; 16];
        let mut destination = [0; 16];
        source.copy_from_slice(&fixed[8..24]);
        destination.copy_from_slice(&fixed[24..40]);
        Ok(Self {
            source: Ipv6Addr::from(source).into(),
            destination: Ipv6Addr::from(destination).into(),
            protocol: fixed[6],
            length: V6_HEADER,
            total,
            class: (fixed[0] << 4) | (fixed[1] >> 4),
            // RFC 8200 §4.5: the fragment header.
            fragment: fixed[6] == 44,
        })
    }
}

/// How long the packet is that `bytes` begins with, or `None` while its header is not complete: what a stream of packets
/// without frames is cut by.
pub fn length_of_first(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    let header = match bytes.first().map(|first| first >> 4) {
        None => return Ok(None),
        Some(4) => V4_HEADER,
        Some(6) => V6_HEADER,
        Some(_) => return Err(Malformed::Version),
    };
    let Some(fixed) = bytes.get(..header) else {
        return Ok(None);
    };
    let word = |at: usize| {
        Some(usize::from(u16::from_be_bytes([
            *fixed.get(at)?,
            *fixed.get(at + 1)?,
        ])))
    };
    let total = if header == V4_HEADER {
        word(2)
    } else {
        word(4).map(|payload| payload + V6_HEADER)
    };
    match total {
        Some(total) if total >= header => Ok(Some(total)),
        _ => Err(Malformed::TotalLength),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(total: u16, ihl: u8) -> Vec<u8> {
        let mut packet = vec![0; usize::from(total)];
        packet[0] = 0x40 | ihl;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[9] = UDP;
        packet[12..16].copy_from_slice(&[10, 1, 0, 1]);
        packet[16..20].copy_from_slice(&[10, 1, 0, 2]);
        packet
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        assert_eq!(Header::parse(&v4(28, 5)).map(|header| header.total), Ok(28));
        assert_eq!(Header::parse(&v4(28, 4)), Err(Malformed::HeaderLength));
        assert_eq!(Header::parse(&v4(28, 8)), Err(Malformed::HeaderLength));
        let mut longer = v4(28, 5);
        longer.push(0);
        assert_eq!(Header::parse(&longer), Err(Malformed::TotalLength));
        let mut shorter = v4(28, 5);
        shorter.pop();
        assert_eq!(Header::parse(&shorter), Err(Malformed::TotalLength));
        assert_eq!(Header::parse(&[]), Err(Malformed::Short));
        assert_eq!(Header::parse(&[0x45; 19]), Err(Malformed::Short));
        assert_eq!(Header::parse(&[0x00; 40]), Err(Malformed::Version));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_packet_or_an_error(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..100)) {
            if let Ok(header) = Header::parse(&bytes) {
                proptest::prop_assert!(header.length <= header.total && header.total == bytes.len());
                proptest::prop_assert_eq!(length_of_first(&bytes), Ok(Some(bytes.len())));
            }
            let _ = length_of_first(&bytes);
        }
    }
}
