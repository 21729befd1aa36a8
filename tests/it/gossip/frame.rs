//! The frames of pubsub, by hand: <https://github.com/libp2p/specs/tree/master/pubsub>.

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::identity::Keypair;
use prost::Message as _;
use std::io;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Rpc {
    #[prost(message, repeated, tag = "1")]
    pub subscriptions: Vec<Subscription>,
    #[prost(message, repeated, tag = "2")]
    pub publish: Vec<Publication>,
    #[prost(message, optional, tag = "3")]
    pub control: Option<Control>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Subscription {
    #[prost(bool, optional, tag = "1")]
    pub subscribe: Option<bool>,
    #[prost(string, optional, tag = "2")]
    pub topic: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Publication {
    #[prost(bytes = "vec", optional, tag = "1")]
    pub from: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub data: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "3")]
    pub seqno: Option<Vec<u8>>,
    #[prost(string, optional, tag = "4")]
    pub topic: Option<String>,
    #[prost(bytes = "vec", optional, tag = "5")]
    pub signature: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Control {
    #[prost(message, repeated, tag = "1")]
    pub ihave: Vec<Ihave>,
    #[prost(message, repeated, tag = "2")]
    pub iwant: Vec<Ids>,
    #[prost(message, repeated, tag = "3")]
    pub graft: Vec<Topic>,
    #[prost(message, repeated, tag = "5")]
    pub idontwant: Vec<Ids>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Topic {
    #[prost(string, optional, tag = "1")]
    pub topic: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Ihave {
    #[prost(string, optional, tag = "1")]
    pub topic: Option<String>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub ids: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Ids {
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub ids: Vec<Vec<u8>>,
}

impl Rpc {
    pub fn hello<'a>(topics: impl IntoIterator<Item = &'a String>) -> Self {
        let subscribe = |topic: &String| Subscription {
            subscribe: Some(true),
            topic: Some(topic.clone()),
        };
        Self {
            subscriptions: topics.into_iter().map(subscribe).collect(),
            ..Self::default()
        }
    }

    pub fn graft(topic: &str) -> Self {
        let graft = vec![Topic {
            topic: Some(topic.to_owned()),
        }];
        Self::control(Control {
            graft,
            ..Control::default()
        })
    }

    pub fn control(control: Control) -> Self {
        Self {
            control: Some(control),
            ..Self::default()
        }
    }

    pub fn publish(publication: Publication) -> Self {
        Self {
            publish: vec![publication],
            ..Self::default()
        }
    }

    /// With its length before it.
    pub fn framed(&self) -> Vec<u8> {
        self.encode_length_delimited_to_vec()
    }
}

impl Publication {
    pub fn signed(keypair: &Keypair, seqno: u64, topic: &str, data: &[u8]) -> Self {
        let mut message = Self {
            from: Some(keypair.public().to_peer_id().to_bytes()),
            data: Some(data.to_vec()),
            seqno: Some(seqno.to_be_bytes().to_vec()),
            topic: Some(topic.to_owned()),
            signature: None,
        };
        let mut text = b"libp2p-pubsub:".to_vec();
        text.extend(message.encode_to_vec());
        message.signature = Some(keypair.sign(&text).expect("signs"));
        message
    }
}

/// The next frame; `None` at the end of the stream.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Rpc>> {
    let mut length = 0_usize;
    for shift in (0..).step_by(7) {
        let mut byte = [0];
        if stream.read(&mut byte).await? == 0 {
            return Ok(None);
        }
        length |= usize::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            break;
        }
    }
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame).await?;
    Rpc::decode(frame.as_slice())
        .map(Some)
        .map_err(io::Error::other)
}

pub async fn write(stream: &mut (impl AsyncWrite + Unpin), rpc: &Rpc) -> io::Result<()> {
    stream.write_all(&rpc.framed()).await?;
    stream.flush().await
}
