//! A relay client as small as it can be: one connection, the hop and stop protocols by hand. It keeps the load's own cost
//! low and nearly equal for whichever server is measured, and shares no code with either of them.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::{
    Multiaddr, PeerId, Transport,
    core::{
        Endpoint,
        muxing::{StreamMuxerBox, StreamMuxerExt, SubstreamBox},
        transport::{DialOpts, PortUse},
        upgrade::Version,
    },
    identity::Keypair,
    noise, tcp, yamux,
};
use tokio::sync::{
    Mutex,
    mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    oneshot,
};

const MULTISTREAM: &str = "/multistream/1.0.0";
const HOP: &str = "/libp2p/circuit/relay/0.2.0/hop";
const STOP: &str = "/libp2p/circuit/relay/0.2.0/stop";

/// Status OK of the specification.
const OK: u64 = 100;

pub struct Client {
    pub peer: PeerId,
    open: UnboundedSender<oneshot::Sender<SubstreamBox>>,
    accepted: Mutex<UnboundedReceiver<SubstreamBox>>,
    closed: Arc<AtomicBool>,
}

impl Client {
    pub async fn connect(relay: &Multiaddr) -> io::Result<Self> {
        let key = Keypair::generate_ed25519();
        let mut transport = tcp::tokio::Transport::new(tcp::Config::default())
            .upgrade(Version::V1Lazy)
            .authenticate(noise::Config::new(&key).map_err(io::Error::other)?)
            .multiplex(yamux::Config::default())
            .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
            .boxed();
        let options = DialOpts {
            role: Endpoint::Dialer,
            port_use: PortUse::New,
        };
        let (_, muxer) = transport
            .dial(relay.clone(), options)
            .map_err(io::Error::other)?
            .await?;

        let (open, wanted) = unbounded_channel();
        let (accept, accepted) = unbounded_channel();
        let closed = Arc::new(AtomicBool::new(false));
        tokio::spawn(drive(muxer, wanted, accept, closed.clone()));
        Ok(Self {
            peer: key.public().to_peer_id(),
            open,
            accepted: Mutex::new(accepted),
            closed,
        })
    }

    /// A reservation, or its renewal.
    pub async fn reserve(&self) -> io::Result<()> {
        let mut stream = self.request(&[0x08, 0x00]).await?;
        stream.close().await
    }

    /// A circuit to `destination`, at its source.
    pub async fn dial(&self, destination: PeerId) -> io::Result<SubstreamBox> {
        let id = destination.to_bytes();
        let mut message = vec![0x08, 0x01, 0x12, id.len() as u8 + 2, 0x0a, id.len() as u8];
        message.extend(id);
        self.request(&message).await
    }

    /// The next circuit that somebody opened to this client.
    pub async fn accept(&self) -> io::Result<SubstreamBox> {
        self.accepted.lock().await.recv().await.ok_or_else(gone)
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// One hop request, answered with OK. What the relay sends after that is left in the stream.
    async fn request(&self, message: &[u8]) -> io::Result<SubstreamBox> {
        let (reply, opened) = oneshot::channel();
        self.open.send(reply).map_err(|_| gone())?;
        let mut stream = opened.await.map_err(|_| gone())?;

        let mut out = Vec::with_capacity(128);
        put_line(&mut out, MULTISTREAM);
        put_line(&mut out, HOP);
        put_message(&mut out, message);
        stream.write_all(&out).await?;
        stream.flush().await?;

        for expected in [MULTISTREAM, HOP] {
            expect_line(&mut stream, expected).await?;
        }
        match status_in(&read_message(&mut stream).await?) {
            Some(OK) => Ok(stream),
            status => Err(io::Error::other(format!("refused with {status:?}"))),
        }
    }
}

/// Runs a connection until it ends: opens what is wanted, answers what comes.
async fn drive(
    mut muxer: StreamMuxerBox,
    mut wanted: UnboundedReceiver<oneshot::Sender<SubstreamBox>>,
    accept: UnboundedSender<SubstreamBox>,
    closed: Arc<AtomicBool>,
) {
    let mut waiting = VecDeque::new();
    poll_fn(|context| poll_once(&mut muxer, &mut wanted, &accept, &mut waiting, context)).await;
    closed.store(true, Ordering::Relaxed);
}

fn poll_once(
    muxer: &mut StreamMuxerBox,
    wanted: &mut UnboundedReceiver<oneshot::Sender<SubstreamBox>>,
    accept: &UnboundedSender<SubstreamBox>,
    waiting: &mut VecDeque<oneshot::Sender<SubstreamBox>>,
    context: &mut Context<'_>,
) -> Poll<()> {
    loop {
        match wanted.poll_recv(context) {
            Poll::Ready(Some(reply)) => {
                waiting.push_back(reply);
                continue;
            }
            Poll::Ready(None) => return Poll::Ready(()),
            Poll::Pending => {}
        }
        if !waiting.is_empty() {
            match muxer.poll_outbound_unpin(context) {
                Poll::Ready(Ok(stream)) => {
                    // Whoever asked may have given up.
                    let _ = waiting.pop_front().map(|reply| reply.send(stream));
                    continue;
                }
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => {}
            }
        }
        match muxer.poll_inbound_unpin(context) {
            Poll::Ready(Ok(stream)) => {
                let accept = accept.clone();
                tokio::spawn(async move {
                    if let Ok(Some(circuit)) = answer(stream).await {
                        let _ = accept.send(circuit);
                    }
                });
                continue;
            }
            Poll::Ready(Err(_)) => return Poll::Ready(()),
            Poll::Pending => {}
        }
        match muxer.poll_unpin(context) {
            Poll::Ready(Ok(_)) => continue,
            Poll::Ready(Err(_)) => return Poll::Ready(()),
            Poll::Pending => return Poll::Pending,
        }
    }
}

/// Accepts a circuit; everything else a relay may want (identify, ping) is not spoken here.
async fn answer(mut stream: SubstreamBox) -> io::Result<Option<SubstreamBox>> {
    expect_line(&mut stream, MULTISTREAM).await?;
    let protocol = read_message(&mut stream).await?;
    let mut out = Vec::with_capacity(64);
    put_line(&mut out, MULTISTREAM);
    if protocol.strip_suffix(b"\n") != Some(STOP.as_bytes()) {
        put_line(&mut out, "na");
        stream.write_all(&out).await?;
        stream.close().await?;
        return Ok(None);
    }
    put_line(&mut out, STOP);
    stream.write_all(&out).await?;
    stream.flush().await?;
    read_message(&mut stream).await?;
    // type STATUS, status OK
    stream.write_all(&[4, 0x08, 0x01, 0x20, OK as u8]).await?;
    stream.flush().await?;
    Ok(Some(stream))
}

fn put_line(out: &mut Vec<u8>, line: &str) {
    out.push(line.len() as u8 + 1);
    out.extend(line.as_bytes());
    out.push(b'\n');
}

/// All messages of this client are shorter than 128 bytes: their length is one byte.
fn put_message(out: &mut Vec<u8>, message: &[u8]) {
    out.push(message.len() as u8);
    out.extend(message);
}

async fn expect_line(stream: &mut SubstreamBox, expected: &str) -> io::Result<()> {
    let line = read_message(stream).await?;
    match line.strip_suffix(b"\n") {
        Some(line) if line == expected.as_bytes() => Ok(()),
        _ => Err(io::Error::other(format!(
            "wanted {expected}, got {}",
            String::from_utf8_lossy(&line)
        ))),
    }
}

/// A message after its length, and not a byte beyond it.
async fn read_message(stream: &mut SubstreamBox) -> io::Result<Vec<u8>> {
    let mut length = 0usize;
    for shift in [0, 7, 14] {
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        length |= usize::from(byte[0] & 0x7f) << shift;
        if byte[0] < 0x80 {
            break;
        }
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Field 5 of a HopMessage.
fn status_in(mut message: &[u8]) -> Option<u64> {
    loop {
        let key = varint(&mut message)?;
        let value = varint(&mut message)?;
        match (key >> 3, key & 7) {
            (5, 0) => return Some(value),
            (_, 2) => message = message.get(usize::try_from(value).ok()?..)?,
            _ => {}
        }
    }
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn gone() -> io::Error {
    io::Error::other("the connection has closed")
}
