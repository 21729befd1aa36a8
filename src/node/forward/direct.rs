//! The direct carrier: sealed datagrams on a UDP port of our own, in trains the kernel cuts and joins.
//!
//! Keys and addresses are agreed over a libp2p stream ([`link`]), which proves who the peer is. A path is used once a
//! probe over it was answered, for datagrams as large as the probe was, and given up when probes stay unanswered; until then
//! and after that packets take the stream.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use quinn_udp::{Transmit, UdpSocketState};

use crate::overlay::{
    router::Drop as Dropped,
    segment::Segments,
    session::{HEADER, Kind, OVERHEAD, SUM_LEFT},
};

pub mod link;
mod path;
mod receive;

pub use path::Path;
pub use receive::run as receive;

use super::{peer::Drops, wake::Wake};

/// Bytes of socket buffer in each direction: 9.6 Gb/s with 1.1 ms of delay under load, where 256 KiB gave 7.4 Gb/s and 4 MiB
/// more delay (docs of the data plane). Beyond the system's limit only with CAP_NET_ADMIN.
const SOCKET_BUFFER: usize = 1 << 20;

/// The largest train: what fits a UDP packet before the kernel cuts it.
const TRAIN: usize = 65_000;

/// The UDP socket with its sessions.
pub struct Direct {
    socket: UdpSocket,
    udp: UdpSocketState,
    port: u16,
    /// Both families on one socket: IPv4 addresses are written in their IPv6 form.
    dual: bool,
    /// By receiver index.
    paths: ArcSwap<HashMap<u32, Arc<Path>>>,
    changing: Mutex<()>,
    next_index: AtomicU32,
    /// Where members have seen our datagrams come from.
    observed: Mutex<Vec<SocketAddr>>,
    /// Of datagrams that belong to no session.
    pub drops: Drops,
    pub wake: Wake,
    started: Instant,
}

/// Addresses kept in [`Direct::observed`]: two families, two networks.
const OBSERVED: usize = 4;

impl Direct {
    /// Binds the port; 0 lets the system choose.
    pub fn bind(port: u16) -> io::Result<Self> {
        let (socket, dual) = match bind(Ipv6Addr::UNSPECIFIED.into(), port) {
            Ok(socket) => (socket, true),
            // A machine without IPv6.
            Err(_) => (bind(IpAddr::from([0, 0, 0, 0]), port)?, false),
        };
        let udp = UdpSocketState::new((&socket).into())?;
        // Less than asked for costs throughput, not function.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER)
            .map_err(io::Error::from)
            .or_else(|_| udp.set_recv_buffer_size((&socket).into(), SOCKET_BUFFER));
        let _ = udp.set_send_buffer_size((&socket).into(), SOCKET_BUFFER);
        Ok(Self {
            port: socket.local_addr()?.port(),
            socket,
            udp,
            dual,
            paths: ArcSwap::default(),
            changing: Mutex::default(),
            // Not from zero: a datagram of an earlier life of this node should find nobody.
            next_index: AtomicU32::new(rand::random()),
            observed: Mutex::default(),
            drops: Drops::default(),
            wake: Wake::new()?,
            started: now(),
        })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sessions are found under these; one of [`Self::add`] is not in use.
    fn new_index(&self) -> u32 {
        self.next_index.fetch_add(1, Ordering::Relaxed)
    }

    fn add(&self, index: u32, path: Arc<Path>) {
        self.change(|paths| drop(paths.insert(index, path.clone())));
    }

    fn remove(&self, index: u32) {
        self.change(|paths| drop(paths.remove(&index)));
    }

    fn change(&self, change: impl Fn(&mut HashMap<u32, Arc<Path>>)) {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut paths = HashMap::clone(&self.paths.load());
        change(&mut paths);
        self.paths.store(Arc::new(paths));
    }

    /// Where a member says it sees us.
    fn seen_at(&self, address: SocketAddr) {
        let mut observed = self.observed.lock().unwrap_or_else(PoisonError::into_inner);
        if !observed.contains(&address) {
            observed.insert(0, address);
            observed.truncate(OBSERVED);
        }
    }

    fn observed(&self) -> Vec<SocketAddr> {
        self.observed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Milliseconds since the start; never 0, which stands for never.
    fn millis(&self) -> u64 {
        let millis = now().duration_since(self.started).as_millis();
        u64::try_from(millis).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// Sends one datagram that is not part of a train.
    fn send_control(&self, path: &Path, kind: Kind, payload: &[u8], to: SocketAddr) {
        let mut datagram = vec![0; payload.len() + OVERHEAD];
        if let Some(place) = datagram.get_mut(HEADER..HEADER + payload.len()) {
            place.copy_from_slice(payload);
        }
        if let Some(length) = path.session.seal(kind, 0, &mut datagram, payload.len()) {
            // A lost probe is repeated.
            let _ = self.send(datagram.get(..length).unwrap_or_default(), None, to);
        }
    }

    fn send(&self, contents: &[u8], segment_size: Option<usize>, to: SocketAddr) -> io::Result<()> {
        let destination = match to.ip() {
            IpAddr::V4(ip) if self.dual => SocketAddr::new(ip.to_ipv6_mapped().into(), to.port()),
            _ => to,
        };
        let transmit = Transmit {
            destination,
            ecn: None,
            contents,
            segment_size,
            src_ip: None,
        };
        self.udp.try_send((&self.socket).into(), &transmit)
    }
}

fn bind(address: IpAddr, port: u16) -> io::Result<UdpSocket> {
    let address = SocketAddr::new(address, port);
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::DGRAM.cloexec(),
        Some(socket2::Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Datagrams of one size to one peer, sent at once. The last one may be shorter.
pub struct Train {
    buffer: Vec<u8>,
    path: Option<Arc<Path>>,
    size: usize,
    used: usize,
    count: usize,
}

impl Train {
    pub fn new() -> Self {
        Self {
            buffer: vec![0; TRAIN + 2 * OVERHEAD + crate::overlay::MOST_PACKET],
            path: None,
            size: 0,
            used: 0,
            count: 0,
        }
    }

    /// Adds the packets of one super-packet, sending what is full.
    pub fn add(&mut self, direct: &Direct, path: &Arc<Path>, mut segments: Segments<'_>) {
        let largest = segments.largest();
        let flags = if segments.leaves_sums() { SUM_LEFT } else { 0 };
        if !self
            .path
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, path))
        {
            self.send(direct);
            self.path = Some(path.clone());
        }
        loop {
            if self.used + largest + OVERHEAD > TRAIN.max(largest + OVERHEAD) {
                self.send(direct);
                self.path = Some(path.clone());
            }
            let start = self.used;
            let Some(room) = self.buffer.get_mut(start..start + largest + OVERHEAD) else {
                return;
            };
            let Some(length) = room
                .get_mut(HEADER..)
                .and_then(|room| segments.write_next(room))
            else {
                return;
            };
            let Some(sealed) = path.session.seal(Kind::Packet, flags, room, length) else {
                return path.peer.drops.count(Dropped::NoPath);
            };
            if self.count > 0 && sealed > self.size {
                // It begins a train of its own, behind the one that is sent first.
                let new = start..start + sealed;
                self.send(direct);
                self.buffer.copy_within(new, 0);
                self.path = Some(path.clone());
            }
            if self.count == 0 {
                self.size = sealed;
            }
            self.used += sealed;
            self.count += 1;
            path.peer.count_sent(1, length);
            if sealed < self.size || self.count >= direct.udp.max_gso_segments() {
                self.send(direct);
                self.path = Some(path.clone());
            }
        }
    }

    /// Sends what has been added.
    pub fn send(&mut self, direct: &Direct) {
        let Some(path) = self.path.take() else { return };
        let train = self.buffer.get(..self.used).unwrap_or_default();
        let (count, size) = (self.count, self.size);
        (self.used, self.count) = (0, 0);
        let (Some(to), 1..) = (path.remote(), count) else {
            return;
        };
        path.has_sent(direct.millis());
        let segment = (count > 1).then_some(size);
        let sent = match direct.send(train, segment, to) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // The socket's buffer is full for as long as the wire takes for a part of it.
                direct.wait_for_room();
                direct.send(train, segment, to)
            }
            // A kernel or a card that cannot cut trains after all; the socket state has taken note.
            Err(_) if count > 1 => train
                .chunks(size)
                .try_for_each(|one| direct.send(one, None, to)),
            other => other,
        };
        if sent.is_err() {
            path.peer.drops.count(Dropped::QueueFull);
        }
    }
}

impl Direct {
    fn wait_for_room(&self) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut socket = [PollFd::new(&self.socket, PollFlags::OUT)];
        let patience = Timespec {
            tv_sec: 0,
            tv_nsec: 10_000_000,
        };
        // In time or not, the second attempt tells.
        let _ = poll(&mut socket, Some(&patience));
    }
}

#[allow(clippy::disallowed_methods, reason = "the clock of the paths")]
fn now() -> Instant {
    Instant::now()
}
