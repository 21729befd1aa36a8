//! The stream carrier: one long-lived stream to a peer and one from it, each a sequence of records (`overlay::frame`).
#![allow(
    clippy::disallowed_methods,
    reason = "reads the clock of queues and pauses"
)]

use std::{
    collections::HashMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::StreamProtocol;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::sleep,
};

use super::{
    Shared,
    peer::{Carrier, Peer},
};
use crate::{
    id::PeerId,
    net::streams::{Change, Control, OpenError, Route, Step, Stream},
    overlay::{
        frame::{self, Record},
        router::Drop as Dropped,
    },
    task::{self, Task},
};

/// Records of packets between two of our nodes.
pub const PROTOCOL: StreamProtocol = StreamProtocol::new("/edgevpn/packets/1.0.0");

/// Bytes written and flushed at once: what yamux and noise move without another copy.
const BATCH: usize = 64 * 1024;

/// What is read at once: a record and as much of the next.
const READ: usize = 128 * 1024;

/// Streams of one peer that are read at once: the present one, and one more while it moves to another path.
const READERS: usize = 2;

/// Inbound streams that wait to be taken.
const INBOX: usize = 64;

/// After a stream could not be opened; doubles with each failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Writes what the queue holds to the peer, over the best path there is.
pub async fn carry(peer: Arc<Peer>, streams: Control) {
    let mut failures = 0;
    loop {
        peer.ready.notified().await;
        match streams.open(peer.id, PROTOCOL, Route::PreferDirect).await {
            Ok(stream) => {
                failures = 0;
                peer.carried_by(if stream.relayed() {
                    Carrier::RelayedStream
                } else {
                    Carrier::Stream
                });
                if let Err(error) = write(&peer, &streams, stream).await {
                    tracing::debug!(peer = %peer.id, cause = %error, "packet stream lost");
                }
                peer.carried_by(Carrier::None);
                // What is left goes over the next one.
                peer.ready.notify_one();
            }
            Err(error) => {
                failures += 1;
                peer.give_up(Instant::now());
                tracing::debug!(peer = %peer.id, cause = %error, failures, "no packet stream");
                wait_for_a_path(&peer, &streams, &error, failures).await;
            }
        }
    }
}

/// Writes until the stream fails or a better path appears.
async fn write(peer: &Peer, streams: &Control, mut stream: Stream) -> io::Result<()> {
    let mut changes = streams.changes();
    let mut batch = Vec::new();
    loop {
        batch.clear();
        peer.take(&mut batch, BATCH, Instant::now());
        if batch.is_empty() {
            tokio::select! {
                () = peer.ready.notified() => continue,
                change = changes.recv() => match change {
                    Ok(change) if change.peer != peer.id => continue,
                    _ if is_superseded(streams, &stream) => return close(stream).await,
                    Err(RecvError::Closed) => return Ok(()),
                    _ => continue,
                },
            }
        }
        write_one(peer, &mut stream, &batch, &mut changes).await?;
        if stream.relayed() && is_superseded(streams, &stream) {
            return close(stream).await;
        }
    }
}

/// Writes one batch. A write that waits for a relay must not keep packets from a direct path that appears meanwhile.
async fn write_one(
    peer: &Peer,
    stream: &mut Stream,
    batch: &[Vec<u8>],
    changes: &mut broadcast::Receiver<Change>,
) -> io::Result<()> {
    let relayed = stream.relayed();
    let mut sent = std::pin::pin!(send(stream, batch));
    loop {
        tokio::select! {
            bytes = &mut sent => {
                peer.count_sent(batch.len(), bytes?);
                return Ok(());
            }
            change = changes.recv(), if relayed => {
                let better = |change: Change| {
                    change.peer == peer.id && !change.relayed && change.step == Step::Appeared
                };
                if change.is_ok_and(better) {
                    return Err(io::Error::other("a direct connection has appeared"));
                }
            }
        }
    }
}

async fn send(stream: &mut Stream, batch: &[Vec<u8>]) -> io::Result<usize> {
    let whole;
    let bytes = match batch {
        [one] => one.as_slice(),
        many => {
            whole = many.concat();
            &whole
        }
    };
    stream.write_all(bytes).await?;
    stream.flush().await?;
    Ok(bytes.len())
}

/// Whether a stream opened now would take a better path.
fn is_superseded(streams: &Control, stream: &Stream) -> bool {
    stream.relayed()
        && streams
            .links(stream.peer())
            .first()
            .is_some_and(|best| !best.relayed)
}

async fn close(mut stream: Stream) -> io::Result<()> {
    stream.close().await
}

async fn wait_for_a_path(peer: &Peer, streams: &Control, error: &OpenError, failures: u32) {
    let pause = FIRST_PAUSE
        .saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX))
        .min(LONGEST_PAUSE);
    let mut changes = streams.changes();
    let connected = async {
        loop {
            match changes.recv().await {
                Ok(change) if change.peer != peer.id || change.step == Step::Gone => {}
                Ok(_) | Err(RecvError::Lagged(_)) => return,
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    };
    match error {
        // Nothing helps but a connection, and packets in the meantime are lost at once.
        OpenError::NotConnected { .. } => {
            tokio::select! { () = connected => {}, () = sleep(LONGEST_PAUSE) => {} }
        }
        _ => sleep(pause).await,
    }
}

/// Takes the streams of members and reads them.
pub async fn accept(shared: Arc<Shared>, streams: Control) {
    let mut inbound = match streams.accept(PROTOCOL, INBOX) {
        Ok(inbound) => inbound,
        Err(error) => {
            tracing::error!(cause = %error, "packets cannot be received");
            return;
        }
    };
    let mut readers: HashMap<PeerId, Vec<Task>> = HashMap::new();
    while let Some(incoming) = inbound.next().await {
        let table = shared.table.load();
        readers.retain(|peer, _| table.by_id.contains_key(peer));
        let Some(peer) = table.by_id.get(&incoming.peer).cloned() else {
            // No address is known to be its: whatever it sends would be dropped. It tries again.
            shared.drops.count(Dropped::Spoofed);
            continue;
        };
        let of_peer = readers.entry(incoming.peer).or_default();
        if of_peer.len() >= READERS {
            of_peer.remove(0);
        }
        let reading = read(shared.clone(), peer, incoming.stream);
        of_peer.push(task::spawn("packets from a peer", reading));
    }
}

async fn read(shared: Arc<Shared>, peer: Arc<Peer>, mut stream: Stream) {
    let mut buffer = vec![0; READ];
    let (mut from, mut to) = (0, 0);
    loop {
        // All that is complete goes to the device, judged by one table.
        let table = shared.table.load_full();
        let needed = loop {
            let bytes = buffer.get(from..to).unwrap_or_default();
            match frame::decode(bytes) {
                Ok(Record::Packet { offload, length }) => {
                    let end = frame::HEADER + length;
                    shared.deliver(
                        &table,
                        &peer,
                        &offload,
                        bytes.get(frame::HEADER..end).unwrap_or_default(),
                    );
                    from += end;
                }
                Ok(Record::Skip { bytes }) => from += bytes,
                Ok(Record::Incomplete { needed }) => break needed,
                Err(error) => {
                    peer.drops.count(Dropped::Malformed);
                    tracing::debug!(peer = %peer.id, cause = %error, "packet stream ended");
                    return;
                }
            }
        };
        if from == to {
            (from, to) = (0, 0);
        } else if buffer.len() - from < needed {
            buffer.copy_within(from..to, 0);
            (from, to) = (0, to - from);
        }
        let Some(room) = buffer.get_mut(to..) else {
            return;
        };
        match stream.read(room).await {
            Ok(0) | Err(_) => return,
            Ok(read) => to += read,
        }
    }
}
