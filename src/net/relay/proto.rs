//! The messages of circuit relay v2 as protobuf, and their frames: a varint length, then so many bytes.
//!
//! <https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#the-protocol>. Fields that the specification calls
//! `required` are optional here, for a message without its type is malformed and must not be read as RESERVE (number 0).
//! The addresses that a peer may put beside a peer id are not even decoded: they are never dialled.

use crate::relay::Status;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use prost::Message;
use std::io;

pub const HOP: StreamProtocol = StreamProtocol::new("/libp2p/circuit/relay/0.2.0/hop");
pub const STOP: StreamProtocol = StreamProtocol::new("/libp2p/circuit/relay/0.2.0/stop");

/// Longest message that is read or written, in bytes, without its length prefix. The specification advises every
/// implementation to accept this much and no more.
pub const MAX_MESSAGE: usize = 4096;

/// Bytes of the longest length prefix that can be right: two groups of seven bits hold 4096.
const MAX_PREFIX: u32 = 2;

/// What a peer asks of the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Reserve,
    Connect { destination: PeerId },
}

/// Why bytes are not a request; each is answered with one status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    #[error("not a message of this protocol")]
    Malformed,
    #[error("a message that does not belong here")]
    Unexpected,
}

impl BadMessage {
    pub fn status(self) -> Status {
        match self {
            BadMessage::Malformed => Status::MalformedMessage,
            BadMessage::Unexpected => Status::UnexpectedMessage,
        }
    }
}

/// Reads the body of a frame that arrived on a hop stream.
pub fn decode_request(body: &[u8]) -> Result<Request, BadMessage> {
    let message = HopMessage::decode(body).map_err(|_| BadMessage::Malformed)?;
    match message.kind {
        Some(HopMessage::RESERVE) => Ok(Request::Reserve),
        Some(HopMessage::CONNECT) => {
            let id = message.peer.ok_or(BadMessage::Malformed)?.id;
            let destination = PeerId::from_bytes(&id).map_err(|_| BadMessage::Malformed)?;
            Ok(Request::Connect { destination })
        }
        Some(HopMessage::STATUS) => Err(BadMessage::Unexpected),
        Some(_) | None => Err(BadMessage::Malformed),
    }
}

/// Reads the body of a frame that a destination sent on its stop stream: the number of its status.
pub fn decode_stop_answer(body: &[u8]) -> Result<i32, BadMessage> {
    let message = StopMessage::decode(body).map_err(|_| BadMessage::Malformed)?;
    match message.kind {
        Some(StopMessage::STATUS) => message.status.ok_or(BadMessage::Malformed),
        Some(StopMessage::CONNECT) => Err(BadMessage::Unexpected),
        Some(_) | None => Err(BadMessage::Malformed),
    }
}

/// What a circuit may use, as announced to both ends. `None` where nothing is limited: peers treat a circuit with any
/// limit message as a *limited* connection and open no application streams on it.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Limit {
    /// Seconds.
    #[prost(uint32, optional, tag = "1")]
    pub duration: Option<u32>,
    /// Bytes in each direction.
    #[prost(uint64, optional, tag = "2")]
    pub data: Option<u64>,
}

/// An answer to RESERVE or CONNECT that grants nothing, or that opens the circuit.
pub fn status_frame(status: Status, limit: Option<Limit>) -> Vec<u8> {
    frame(&HopMessage {
        kind: Some(HopMessage::STATUS),
        peer: None,
        reservation: None,
        limit,
        status: Some(status as i32),
    })
}

/// The answer to RESERVE that grants it.
///
/// `expire` is in seconds of unix time. Addresses that would make the message longer than [`MAX_MESSAGE`] are left out,
/// the last ones first.
pub fn reservation_frame(
    expire: u64,
    addresses: &[Multiaddr],
    voucher: Option<Vec<u8>>,
    limit: Option<Limit>,
) -> Vec<u8> {
    let mut message = HopMessage {
        kind: Some(HopMessage::STATUS),
        peer: None,
        reservation: Some(Reservation {
            expire: Some(expire),
            addrs: addresses.iter().map(Multiaddr::to_vec).collect(),
            voucher,
        }),
        limit,
        status: Some(Status::Ok as i32),
    };
    while message.encoded_len() > MAX_MESSAGE {
        let left_out = message
            .reservation
            .as_mut()
            .and_then(|reservation| reservation.addrs.pop());
        if left_out.is_none() {
            break;
        }
    }
    frame(&message)
}

/// The request that announces `source` to the destination of a circuit.
pub fn stop_connect_frame(source: &PeerId, limit: Option<Limit>) -> Vec<u8> {
    frame(&StopMessage {
        kind: Some(StopMessage::CONNECT),
        peer: Some(Peer {
            id: source.to_bytes(),
        }),
        limit,
        status: None,
    })
}

fn frame(message: &impl Message) -> Vec<u8> {
    message.encode_length_delimited_to_vec()
}

/// Why no frame could be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer closed the stream before it said anything.
    #[error("closed before a message")]
    Silent,
    /// The length is wrong, or the stream ended inside the message.
    #[error("not a frame of at most {MAX_MESSAGE} bytes")]
    Malformed,
    #[error("cannot read from the stream")]
    Io(#[source] io::Error),
}

/// Reads one frame and not a byte more: what follows a CONNECT belongs to the circuit.
pub async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, FrameError> {
    let length = read_length(stream).await?;
    let mut body = vec![0; length];
    stream
        .read_exact(&mut body)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => FrameError::Malformed,
            _ => FrameError::Io(error),
        })?;
    Ok(body)
}

/// Sends a frame and sees it on its way.
pub async fn write_frame(stream: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> io::Result<()> {
    stream.write_all(frame).await?;
    stream.flush().await
}

/// Reads the length prefix byte by byte. A longer one than its number needs is malformed, as in every varint of libp2p.
async fn read_length(stream: &mut (impl AsyncRead + Unpin)) -> Result<usize, FrameError> {
    let mut length = 0;
    for group in 0..MAX_PREFIX {
        let mut byte = [0];
        if stream.read(&mut byte).await.map_err(FrameError::Io)? == 0 {
            return Err(match group {
                0 => FrameError::Silent,
                _ => FrameError::Malformed,
            });
        }
        let [byte] = byte;
        length |= usize::from(byte & 0x7f) << (7 * group);
        let last = byte & 0x80 == 0;
        let overlong = byte == 0 && group > 0;
        if last && !overlong && length <= MAX_MESSAGE {
            return Ok(length);
        }
        if last {
            break;
        }
    }
    Err(FrameError::Malformed)
}

#[derive(Clone, PartialEq, Eq, Message)]
struct HopMessage {
    #[prost(int32, optional, tag = "1")]
    kind: Option<i32>,
    #[prost(message, optional, tag = "2")]
    peer: Option<Peer>,
    #[prost(message, optional, tag = "3")]
    reservation: Option<Reservation>,
    #[prost(message, optional, tag = "4")]
    limit: Option<Limit>,
    #[prost(int32, optional, tag = "5")]
    status: Option<i32>,
}

impl HopMessage {
    const RESERVE: i32 = 0;
    const CONNECT: i32 = 1;
    const STATUS: i32 = 2;
}

#[derive(Clone, PartialEq, Eq, Message)]
struct StopMessage {
    #[prost(int32, optional, tag = "1")]
    kind: Option<i32>,
    #[prost(message, optional, tag = "2")]
    peer: Option<Peer>,
    #[prost(message, optional, tag = "3")]
    limit: Option<Limit>,
    #[prost(int32, optional, tag = "4")]
    status: Option<i32>,
}

impl StopMessage {
    const CONNECT: i32 = 0;
    const STATUS: i32 = 1;
}

#[derive(Clone, PartialEq, Eq, Message)]
struct Peer {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct Reservation {
    #[prost(uint64, optional, tag = "1")]
    expire: Option<u64>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    addrs: Vec<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "3")]
    voucher: Option<Vec<u8>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{executor::block_on, io::Cursor};

    fn read(bytes: &[u8]) -> (Result<Vec<u8>, FrameError>, u64) {
        let mut stream = Cursor::new(bytes);
        let result = block_on(read_frame(&mut stream));
        (result, stream.position())
    }

    fn body(message: &impl Message) -> Vec<u8> {
        message.encode_to_vec()
    }

    #[test]
    fn bytes_that_follow_a_frame_stay_in_the_stream() {
        let (body, taken) = read(&[3, 1, 2, 3, 9, 9, 9]);
        assert_eq!((body.unwrap(), taken), (vec![1, 2, 3], 4));
    }

    #[test]
    fn a_message_of_4096_bytes_is_read_and_one_of_4097_is_not() {
        let mut longest = vec![0x80, 0x20];
        longest.resize(2 + MAX_MESSAGE, 7);
        assert_eq!(read(&longest).0.unwrap().len(), MAX_MESSAGE);
        assert!(matches!(read(&[0x81, 0x20]).0, Err(FrameError::Malformed)));
    }

    #[test]
    fn overlong_and_endless_length_prefixes_are_malformed() {
        for prefix in [
            &[0x80, 0x00][..],
            &[0x83, 0x80, 0x00],
            &[0xff; 9],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        ] {
            assert!(
                matches!(read(prefix).0, Err(FrameError::Malformed)),
                "{prefix:?}"
            );
        }
    }

    #[test]
    fn a_frame_cut_short_is_malformed_and_an_empty_stream_is_silence() {
        assert!(matches!(read(&[5, 1, 2]).0, Err(FrameError::Malformed)));
        assert!(matches!(read(&[0x80]).0, Err(FrameError::Malformed)));
        assert!(matches!(read(&[]).0, Err(FrameError::Silent)));
    }

    #[test]
    fn an_empty_message_is_malformed_and_not_a_reserve() {
        assert_eq!(
            decode_request(&read(&[0]).0.unwrap()),
            Err(BadMessage::Malformed)
        );
        assert_eq!(decode_stop_answer(&[]), Err(BadMessage::Malformed));
    }

    #[test]
    fn a_message_with_its_type_alone_is_a_reserve() {
        assert_eq!(decode_request(&[8, 0]), Ok(Request::Reserve));
    }

    #[test]
    fn a_status_on_a_hop_stream_is_unexpected_and_an_unknown_type_malformed() {
        assert_eq!(decode_request(&[8, 2]), Err(BadMessage::Unexpected));
        assert_eq!(decode_request(&[8, 3]), Err(BadMessage::Malformed));
    }

    #[test]
    fn a_connect_needs_a_peer_with_a_valid_id() {
        let connect = |peer| {
            body(&HopMessage {
                kind: Some(HopMessage::CONNECT),
                peer,
                ..Default::default()
            })
        };
        let destination = PeerId::random();
        let good = Some(Peer {
            id: destination.to_bytes(),
        });
        assert_eq!(
            decode_request(&connect(good)),
            Ok(Request::Connect { destination })
        );
        for peer in [
            None,
            Some(Peer { id: Vec::new() }),
            Some(Peer { id: vec![0] }),
            Some(Peer { id: vec![7; 64] }),
        ] {
            assert_eq!(decode_request(&connect(peer)), Err(BadMessage::Malformed));
        }
    }

    #[test]
    fn a_stop_answer_is_any_status_and_nothing_else() {
        let answer = |kind, status| {
            decode_stop_answer(&body(&StopMessage {
                kind,
                status,
                ..Default::default()
            }))
        };
        assert_eq!(answer(Some(StopMessage::STATUS), Some(100)), Ok(100));
        assert_eq!(answer(Some(StopMessage::STATUS), Some(77)), Ok(77));
        assert_eq!(
            answer(Some(StopMessage::STATUS), None),
            Err(BadMessage::Malformed)
        );
        assert_eq!(
            answer(Some(StopMessage::CONNECT), None),
            Err(BadMessage::Unexpected)
        );
    }

    #[test]
    fn a_reservation_with_many_addresses_fits_into_one_message() {
        let address: Multiaddr = "/ip6/2001:db8::1/tcp/4001".parse().unwrap();
        let frame = reservation_frame(1, &vec![address; 1000], Some(vec![0; 200]), None);
        let (body, taken) = read(&frame);
        assert_eq!(taken, frame.len() as u64);
        let reservation = HopMessage::decode(&body.unwrap()[..])
            .unwrap()
            .reservation
            .unwrap();
        assert!(reservation.addrs.len() > 100);
        assert_eq!(reservation.voucher.unwrap().len(), 200);
    }
}
