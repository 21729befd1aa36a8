//! The header the kernel puts before a packet on a TUN device with `IFF_VNET_HDR`: what is left to be done with the packet.
//!
//! <https://docs.oasis-open.org/virtio/virtio/v1.2/virtio-v1.2.html> §5.1.6; ten bytes, in the byte order of the machine.

/// Bytes before each packet.
pub const HEADER: usize = 10;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    pub segmentation: Segmentation,
    /// Bytes of payload of each segment but the last; 0 without segmentation.
    pub segment: u16,
    /// Where the transport header begins, and the place of its checksum from there. `None`: the checksum is complete, or
    /// there is none.
    pub sum: Option<SumLeft>,
}

/// A checksum that is left to be completed: it holds the sum of the pseudo-header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SumLeft {
    pub start: u16,
    pub offset: u16,
}

/// Which kind of packet is to be cut into segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Segmentation {
    #[default]
    None,
    Tcp4,
    Tcp6,
    /// UDP, either family.
    Udp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a virtio header this program asks the kernel for")]
pub struct Unknown;

const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// The segments of this packet carry ECN marks; changes nothing for us.
const GSO_ECN: u8 = 0x80;

impl Offload {
    pub fn decode(bytes: &[u8; HEADER]) -> Result<Self, Unknown> {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let segmentation = match bytes[1] & !GSO_ECN {
            0 => Segmentation::None,
            GSO_TCPV4 => Segmentation::Tcp4,
            GSO_TCPV6 => Segmentation::Tcp6,
            GSO_UDP_L4 => Segmentation::Udp,
            _ => return Err(Unknown),
        };
        let sum = (bytes[0] & NEEDS_CSUM != 0).then(|| SumLeft {
            start: word(6),
            offset: word(8),
        });
        Ok(Self {
            segmentation,
            segment: word(4),
            sum,
        })
    }

    /// `headers` are the bytes before the payload, which the kernel wants to know of packets that it is to cut.
    pub fn encode(&self, headers: u16) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[1] = match self.segmentation {
            Segmentation::None => 0,
            Segmentation::Tcp4 => GSO_TCPV4,
            Segmentation::Tcp6 => GSO_TCPV6,
            Segmentation::Udp => GSO_UDP_L4,
        };
        bytes[2..4].copy_from_slice(&headers.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.segment.to_ne_bytes());
        if let Some(sum) = self.sum {
            bytes[0] = NEEDS_CSUM;
            bytes[6..8].copy_from_slice(&sum.start.to_ne_bytes());
            bytes[8..10].copy_from_slice(&sum.offset.to_ne_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        for segmentation in [
            Segmentation::None,
            Segmentation::Tcp4,
            Segmentation::Tcp6,
            Segmentation::Udp,
        ] {
            for sum in [
                None,
                Some(SumLeft {
                    start: 20,
                    offset: 16,
                }),
            ] {
                let offload = Offload {
                    segmentation,
                    segment: 1_380,
                    sum,
                };
                assert_eq!(Offload::decode(&offload.encode(40)), Ok(offload));
            }
        }
        assert_eq!(
            Offload::decode(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0]),
            Err(Unknown)
        );
    }
}
