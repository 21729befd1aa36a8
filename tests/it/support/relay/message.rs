//! The messages of circuit relay v2 once more, written from the specification and not from the code under test.

use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::{PeerId, Stream};
use prost::Message;
use std::io;

pub const RESERVE: i32 = 0;
pub const CONNECT: i32 = 1;
pub const STATUS: i32 = 2;

pub const STOP_CONNECT: i32 = 0;
pub const STOP_STATUS: i32 = 1;

pub const OK: i32 = 100;

#[derive(Clone, PartialEq, Message)]
pub struct Hop {
    #[prost(int32, optional, tag = "1")]
    pub kind: Option<i32>,
    #[prost(message, optional, tag = "2")]
    pub peer: Option<Peer>,
    #[prost(message, optional, tag = "3")]
    pub reservation: Option<Reservation>,
    #[prost(message, optional, tag = "4")]
    pub limit: Option<Limit>,
    #[prost(int32, optional, tag = "5")]
    pub status: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Stop {
    #[prost(int32, optional, tag = "1")]
    pub kind: Option<i32>,
    #[prost(message, optional, tag = "2")]
    pub peer: Option<Peer>,
    #[prost(message, optional, tag = "3")]
    pub limit: Option<Limit>,
    #[prost(int32, optional, tag = "4")]
    pub status: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Peer {
    #[prost(bytes = "vec", required, tag = "1")]
    pub id: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub addrs: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Reservation {
    #[prost(uint64, required, tag = "1")]
    pub expire: u64,
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub addrs: Vec<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "3")]
    pub voucher: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Voucher {
    #[prost(bytes = "vec", required, tag = "1")]
    pub relay: Vec<u8>,
    #[prost(bytes = "vec", required, tag = "2")]
    pub peer: Vec<u8>,
    #[prost(uint64, required, tag = "3")]
    pub expiration: u64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Limit {
    #[prost(uint32, optional, tag = "1")]
    pub duration: Option<u32>,
    #[prost(uint64, optional, tag = "2")]
    pub data: Option<u64>,
}

pub fn reserve() -> Vec<u8> {
    Hop {
        kind: Some(RESERVE),
        ..Hop::default()
    }
    .encode_length_delimited_to_vec()
}

pub fn connect(destination: PeerId) -> Vec<u8> {
    connect_with(destination.to_bytes(), Vec::new())
}

pub fn connect_with(id: Vec<u8>, addrs: Vec<Vec<u8>>) -> Vec<u8> {
    Hop {
        kind: Some(CONNECT),
        peer: Some(Peer { id, addrs }),
        ..Hop::default()
    }
    .encode_length_delimited_to_vec()
}

pub fn stop_status(status: i32) -> Vec<u8> {
    Stop {
        kind: Some(STOP_STATUS),
        status: Some(status),
        ..Stop::default()
    }
    .encode_length_delimited_to_vec()
}

/// Reads one message and nothing after it.
pub async fn read<M: Message + Default>(stream: &mut Stream) -> io::Result<M> {
    let mut length = 0;
    for shift in [0, 7] {
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        length |= usize::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    M::decode(&body[..]).map_err(io::Error::other)
}

pub async fn write(stream: &mut Stream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}
