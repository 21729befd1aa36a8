//! How two members come to a direct path and keep it: offers over a stream, probes to every address the other may have, and
//! an eye on whether they are still answered.
#![allow(clippy::disallowed_methods, reason = "waits for time-outs and pauses")]

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::StreamProtocol;
use tokio::time::{sleep, timeout};

use super::{Direct, Path};
use crate::{
    id::PeerId,
    net::streams::{Control, OpenError, Route, Stream},
    node::forward::{Shared, Table, peer::Peer},
    overlay::session::{Ciphers, MOST_CANDIDATES, Offer, Secret, Session},
    task::{self, Task},
};

/// Offers, and nothing after them: the stream stays open for as long as the session is meant to last.
pub const PROTOCOL: StreamProtocol = StreamProtocol::new("/edgevpn/direct/1.0.0");

/// Two offers and a round trip through a relay.
const PATIENCE: Duration = Duration::from_secs(10);

/// Keys are used for so long (WireGuard's REKEY_AFTER_TIME), or for so many datagrams.
const REKEY: Duration = Duration::from_secs(120);
const REKEY_DATAGRAMS: u64 = 1 << 32;

/// Datagrams under way when the keys change are still opened for so long.
const GRACE: Duration = Duration::from_secs(10);

/// Before another attempt after a stream could not be opened or broke; doubles with each failure.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const PAUSE: Duration = Duration::from_secs(5);

/// Sizes of datagrams that are probed. The first passes every path with IPv6's least MTU of 1280 (48 bytes of IPv6 and UDP),
/// the second carries a packet of MTU 1420 and passes 1500 bytes of Ethernet.
const SIZES: [usize; 2] = [1_232, 1_452];

/// A path is probed at once, three times, and then with pauses.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);
const FIRST_PROBES: u32 = 3;
const LATER_PROBES: u32 = 13;
const LATER_INTERVAL: Duration = Duration::from_secs(1);
const LAST_INTERVAL: Duration = Duration::from_secs(15);

/// With packets sent and nothing received for so long, the path is asked whether it still works.
const SILENCE: u64 = 400;
/// Without packets, to keep the mappings of NATs, of which some live 30 s.
const KEEPALIVE: u64 = 20_000;
/// Probes without an answer after which a path is given up.
const MOST_UNANSWERED: u32 = 3;

/// Inbound streams that wait to be taken.
const INBOX: usize = 64;

/// Opens a session with the peer and renews it; the peer with the higher id waits for the other's offer.
pub async fn keep(
    shared: Arc<Shared>,
    direct: Arc<Direct>,
    peer: Arc<Peer>,
    me: PeerId,
    streams: Control,
) {
    if me.to_bytes() > peer.id.to_bytes() {
        return std::future::pending().await;
    }
    let mut epoch = 0_u8;
    let mut failures = 0_u32;
    let mut changes = streams.changes();
    loop {
        match streams.open(peer.id, PROTOCOL, Route::PreferDirect).await {
            Ok(mut stream) => {
                let started = timeout(
                    PATIENCE,
                    start(&shared, &direct, &peer, me, &streams, &mut stream, epoch),
                );
                match started.await {
                    Ok(Ok(running)) => {
                        running.until_over(&mut stream).await;
                        running.retire();
                        epoch = epoch.wrapping_add(1);
                        failures = 0;
                        continue;
                    }
                    Ok(Err(error)) => {
                        tracing::debug!(peer = %peer.id, cause = %error, "no direct session")
                    }
                    Err(_) => tracing::debug!(peer = %peer.id, "no direct session: no answer"),
                }
                let doubled =
                    FIRST_PAUSE.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX));
                failures = failures.saturating_add(1);
                sleep(doubled.min(PAUSE)).await;
            }
            // A Go node, or one without a device: it will not change its mind soon.
            Err(OpenError::Unsupported { .. }) => sleep(PAUSE * 6).await,
            Err(_) => {
                tokio::select! { _ = changes.recv() => {}, () = sleep(PAUSE) => {} }
            }
        }
    }
}

/// Answers the offers of members.
pub async fn accept(shared: Arc<Shared>, direct: Arc<Direct>, me: PeerId, streams: Control) {
    let mut inbound = match streams.accept(PROTOCOL, INBOX) {
        Ok(inbound) => inbound,
        Err(error) => {
            tracing::error!(cause = %error, "direct paths cannot be offered");
            return;
        }
    };
    let mut sessions: HashMap<PeerId, Task> = HashMap::new();
    while let Some(incoming) = inbound.next().await {
        let table = shared.table.load_full();
        sessions.retain(|peer, _| table.by_id.contains_key(peer));
        let Some(peer) = table.by_id.get(&incoming.peer).cloned() else {
            continue;
        };
        let (shared, direct, streams) = (shared.clone(), direct.clone(), streams.clone());
        let mut stream = incoming.stream;
        let answer = async move {
            let started = start(&shared, &direct, &peer, me, &streams, &mut stream, 0);
            match timeout(PATIENCE, started).await {
                Ok(Ok(running)) => {
                    running.until_over(&mut stream).await;
                    sleep(GRACE).await;
                }
                Ok(Err(error)) => {
                    tracing::debug!(peer = %peer.id, cause = %error, "no direct session")
                }
                Err(_) => {}
            }
        };
        let task = task::spawn("direct session", answer);
        if let Some(before) = sessions.insert(incoming.peer, task) {
            // Its keys are still good for what is under way.
            tokio::spawn(async move {
                sleep(GRACE).await;
                drop(before);
            });
        }
    }
}

/// A session that is in use; dropped, its datagrams are strangers'.
struct Running {
    direct: Arc<Direct>,
    path: Arc<Path>,
    index: u32,
    _watch: Task,
}

/// Exchanges offers and begins to probe.
async fn start(
    shared: &Arc<Shared>,
    direct: &Arc<Direct>,
    peer: &Arc<Peer>,
    me: PeerId,
    streams: &Control,
    stream: &mut Stream,
    epoch: u8,
) -> io::Result<Running> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let secret = Secret::of(&rand::random()).ok_or_else(unusable)?;
    let table = shared.table.load_full();
    let mine = Offer {
        public: secret.public().ok_or_else(unusable)?,
        index: direct.new_index(),
        epoch,
        ciphers: Ciphers { aes: has_aes() },
        port: direct.port(),
        candidates: candidates(direct, &table).await,
    };
    let (mut reading, mut writing) = futures::AsyncReadExt::split(&mut *stream);
    let offer = mine.encode();
    let (sent, received) = futures::join!(write(&mut writing, &offer), read(&mut reading));
    sent?;
    let theirs = Offer::decode(&received?).map_err(io::Error::other)?;
    let session =
        Session::agree(&secret, (&me, &mine), (&peer.id, &theirs)).map_err(io::Error::other)?;
    let path = Arc::new(Path::new(
        peer.clone(),
        session,
        NUMBER.fetch_add(1, Ordering::Relaxed),
    ));
    direct.add(mine.index, path.clone());
    let addresses = addresses(&theirs, peer.id, streams, &table);
    tracing::debug!(peer = %peer.id, ?addresses, "direct session agreed");
    let watch = watch(direct.clone(), path.clone(), addresses);
    Ok(Running {
        direct: direct.clone(),
        index: mine.index,
        path,
        _watch: task::spawn("direct path", watch),
    })
}

impl Running {
    /// Until new keys are due or the peer has closed its side.
    async fn until_over(&self, stream: &mut Stream) {
        let used_up = async {
            while self.path.session.sealed() < REKEY_DATAGRAMS {
                sleep(LATER_INTERVAL).await;
            }
        };
        let mut nothing = [0];
        tokio::select! {
            () = sleep(REKEY) => {}
            () = used_up => {}
            _ = stream.read(&mut nothing) => {}
        }
    }

    /// Leaves it to open what is under way.
    fn retire(self) {
        tokio::spawn(async move {
            sleep(GRACE).await;
            drop(self);
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.direct.remove(self.index);
        self.path.peer.leave(&self.path);
    }
}

/// Probes until there is a path, watches it, and begins again when it is lost.
async fn watch(direct: Arc<Direct>, path: Arc<Path>, offered: Vec<SocketAddr>) {
    let mut attempts = 0;
    let mut unanswered = 0;
    loop {
        if path.proven() > 0 {
            if path.peer.join(&path) {
                let address = path.remote().map(|address| address.to_string());
                tracing::info!(peer = %path.peer.id, address, "direct path");
            }
            attempts = 0;
            let now = direct.millis();
            let silent = now.saturating_sub(path.last_received());
            let waiting = path.last_sent() > path.last_received();
            // A path through a satellite answers when it can.
            let round_trip = Duration::from_micros(path.rtt_micros().into());
            let patience = SILENCE.max(3 * round_trip.as_millis() as u64);
            if (waiting && silent > patience) || silent > KEEPALIVE {
                if unanswered >= MOST_UNANSWERED {
                    tracing::info!(peer = %path.peer.id, "direct path lost; packets take the stream");
                    path.peer.leave(&path);
                    path.is_lost();
                    unanswered = 0;
                    continue;
                }
                unanswered += 1;
                if let Some(remote) = path.remote() {
                    direct.probe(&path, remote, SIZES[0]);
                }
                sleep(PROBE_INTERVAL.max(round_trip * 2)).await;
                continue;
            }
            if path.proven() < SIZES[1] && unanswered == 0 {
                // It may carry more: a larger probe was lost, or the path has changed.
                if let Some(remote) = path.remote() {
                    direct.probe(&path, remote, SIZES[1]);
                }
                wait(&path, LATER_INTERVAL).await;
                continue;
            }
            unanswered = 0;
            sleep(PROBE_INTERVAL).await;
            continue;
        }
        let mut all = path.learnt();
        all.extend(&offered);
        for address in all.iter().take(MOST_CANDIDATES) {
            for size in SIZES {
                direct.probe(&path, *address, size);
            }
        }
        attempts += 1;
        let pause = match attempts {
            tried if tried <= FIRST_PROBES => PROBE_INTERVAL,
            tried if tried <= LATER_PROBES => LATER_INTERVAL,
            _ => LAST_INTERVAL,
        };
        wait(&path, pause).await;
    }
}

async fn wait(path: &Path, pause: Duration) {
    tokio::select! { () = path.news.notified() => {}, () = sleep(pause) => {} }
}

/// Where we may be reached: addresses of this machine, and where others have seen us.
async fn candidates(direct: &Direct, table: &Table) -> Vec<SocketAddr> {
    let local = local_addresses()
        .await
        .into_iter()
        .map(|ip| SocketAddr::new(ip, direct.port()));
    let mut all = direct.observed();
    all.extend(local);
    all.retain(|address| is_underlay(address.ip(), table));
    all.dedup();
    all.truncate(MOST_CANDIDATES);
    all
}

/// Where the peer may be reached: what it offers, and its port at the addresses its connections come from.
fn addresses(offer: &Offer, peer: PeerId, streams: &Control, table: &Table) -> Vec<SocketAddr> {
    let connected = streams
        .links(peer)
        .into_iter()
        .filter_map(|link| crate::net::ip_of(&link.address));
    let mut all: Vec<SocketAddr> = connected
        .map(|ip| SocketAddr::new(ip, offer.port))
        .collect();
    all.extend(&offer.candidates);
    let mut seen = std::collections::HashSet::new();
    all.retain(|address| {
        address.port() != 0 && is_underlay(address.ip(), table) && seen.insert(*address)
    });
    all.truncate(MOST_CANDIDATES);
    all
}

/// An overlay in its own overlay would carry its own datagrams in circles.
fn is_underlay(address: IpAddr, table: &Table) -> bool {
    let multicast_or_none = match address {
        IpAddr::V4(ip) => ip.is_multicast() || ip.is_broadcast() || ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_multicast() || ip.is_unspecified() || ip.is_unicast_link_local(),
    };
    !multicast_or_none && !table.own.contains(&address) && table.router.peer_of(address).is_none()
}

/// Addresses of this machine's interfaces, loopback left out.
async fn local_addresses() -> Vec<IpAddr> {
    crate::device::interface::addresses()
        .await
        .unwrap_or_default()
}

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

async fn write(stream: &mut (impl AsyncWriteExt + Unpin), offer: &[u8]) -> io::Result<()> {
    let length = u16::try_from(offer.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes()[..], offer].concat())
        .await?;
    stream.flush().await
}

/// The largest offer: 42 bytes and sixteen IPv6 candidates of 19.
const MOST_OFFER: usize = 512;

async fn read(stream: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).await?;
    let length = usize::from(u16::from_be_bytes(length));
    if length > MOST_OFFER {
        return Err(io::Error::other(format!(
            "an offer of {length} bytes; at most {MOST_OFFER} are possible"
        )));
    }
    let mut offer = vec![0; length];
    stream.read_exact(&mut offer).await?;
    Ok(offer)
}

fn unusable() -> io::Error {
    io::Error::other("no key could be made")
}
