//! The records of a packet stream between two of our nodes.
//!
//! ```text
//! u32 length of what follows | u8 kind | u8 segmentation | u16 segment | u16 sum start | u16 sum offset | packet
//! ```
//!
//! Integers are big-endian. A record holds one packet or super-packet with what its sender's kernel left to be done; the
//! receiver checks that against the packet before it asks its own kernel for it.

use super::{
    MOST_PACKET,
    virtio::{Offload, Segmentation, SumLeft},
};

/// Bytes before each packet.
pub const HEADER: usize = 12;

/// The length field counts what comes after it.
const AFTER_LENGTH: usize = HEADER - 4;

/// A packet. Other kinds are skipped: a later version may send some.
const PACKET: u8 = 1;

/// No sum is left: a transport header cannot begin there.
const NO_SUM: u16 = 0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    #[error("a record of {length} bytes; at most {} are possible", AFTER_LENGTH + MOST_PACKET)]
    Length { length: u32 },
    #[error("a kind of segments that does not exist: {0}")]
    Segmentation(u8),
}

/// What comes before a packet of this length.
pub fn encode(offload: &Offload, packet: usize) -> [u8; HEADER] {
    let length = (AFTER_LENGTH + packet.min(MOST_PACKET)) as u32;
    let segmentation = match offload.segmentation {
        Segmentation::None => 0,
        Segmentation::Tcp4 => 1,
        Segmentation::Tcp6 => 2,
        Segmentation::Udp => 3,
    };
    let (start, offset) = match offload.sum {
        Some(sum) => (sum.start, sum.offset),
        None => (NO_SUM, 0),
    };
    let [l0, l1, l2, l3] = length.to_be_bytes();
    let [size0, size1] = offload.segment.to_be_bytes();
    let [start0, start1] = start.to_be_bytes();
    let [offset0, offset1] = offset.to_be_bytes();
    [
        l0,
        l1,
        l2,
        l3,
        PACKET,
        segmentation,
        size0,
        size1,
        start0,
        start1,
        offset0,
        offset1,
    ]
}

/// One record at the beginning of what has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// So many bytes at least are needed before the next attempt.
    Incomplete {
        needed: usize,
    },
    Packet {
        offload: Offload,
        length: usize,
    },
    /// Of a kind this version does not know; so many bytes in all.
    Skip {
        bytes: usize,
    },
}

/// Reads the record that `bytes` begins with. Of a packet, its bytes are at [`HEADER`]`..HEADER + length`.
pub fn decode(bytes: &[u8]) -> Result<Record, BadFrame> {
    let Some(length) = bytes.first_chunk::<4>() else {
        return Ok(Record::Incomplete { needed: HEADER });
    };
    let length = u32::from_be_bytes(*length);
    let after = usize::try_from(length).unwrap_or(usize::MAX);
    if !(AFTER_LENGTH..=AFTER_LENGTH + MOST_PACKET).contains(&after) {
        return Err(BadFrame::Length { length });
    }
    let all = 4 + after;
    let Some(header) = bytes
        .get(..all)
        .and_then(|record| record.first_chunk::<HEADER>())
    else {
        return Ok(Record::Incomplete { needed: all });
    };
    if header[4] != PACKET {
        return Ok(Record::Skip { bytes: all });
    }
    let word = |high: usize, low: usize| u16::from_be_bytes([header[high], header[low]]);
    let segmentation = match header[5] {
        0 => Segmentation::None,
        1 => Segmentation::Tcp4,
        2 => Segmentation::Tcp6,
        3 => Segmentation::Udp,
        other => return Err(BadFrame::Segmentation(other)),
    };
    let start = word(8, 9);
    let sum = (start != NO_SUM).then(|| SumLeft {
        start,
        offset: word(10, 11),
    });
    Ok(Record::Packet {
        offload: Offload {
            segmentation,
            segment: word(6, 7),
            sum,
        },
        length: after - AFTER_LENGTH,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_offload() -> impl Strategy<Value = Offload> {
        let kinds = vec![
            Segmentation::None,
            Segmentation::Tcp4,
            Segmentation::Tcp6,
            Segmentation::Udp,
        ];
        let sum = prop::option::of(
            (1_u16.., any::<u16>()).prop_map(|(start, offset)| SumLeft { start, offset }),
        );
        (prop::sample::select(kinds), any::<u16>(), sum).prop_map(|(segmentation, segment, sum)| {
            Offload {
                segmentation,
                segment,
                sum,
            }
        })
    }

    proptest! {
        #[test]
        fn records_survive_any_split(packets in prop::collection::vec((any_offload(), prop::collection::vec(any::<u8>(), 0..3_000)), 1..20), pieces in prop::collection::vec(1_usize..5_000, 1..100)) {
            let mut stream = Vec::new();
            for (offload, packet) in &packets {
                stream.extend(encode(offload, packet.len()));
                stream.extend(packet);
            }
            let (mut buffer, mut got) = (Vec::new(), Vec::new());
            let mut rest = stream.as_slice();
            for size in pieces.iter().cycle() {
                let (piece, later) = rest.split_at((*size).min(rest.len()));
                buffer.extend(piece);
                rest = later;
                while let Ok(Record::Packet { offload, length }) = decode(&buffer) {
                    got.push((offload, buffer[HEADER..HEADER + length].to_vec()));
                    buffer.drain(..HEADER + length);
                }
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert!(buffer.is_empty());
            prop_assert_eq!(got, packets);
        }

        #[test]
        fn any_bytes_are_a_record_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            match decode(&bytes) {
                Ok(Record::Packet { length, .. }) => prop_assert!(HEADER + length <= bytes.len()),
                Ok(Record::Skip { bytes: all }) => prop_assert!(all <= bytes.len()),
                Ok(Record::Incomplete { needed }) => prop_assert!(needed > bytes.len()),
                Err(_) => {}
            }
        }
    }

    #[test]
    fn what_a_later_version_sends_is_skipped() {
        let mut record = encode(&Offload::default(), 3).to_vec();
        record[4] = 9;
        record.extend([1, 2, 3]);
        assert_eq!(decode(&record), Ok(Record::Skip { bytes: 15 }));
        assert_eq!(
            decode(&[0xff; 12]),
            Err(BadFrame::Length { length: u32::MAX })
        );
    }
}
