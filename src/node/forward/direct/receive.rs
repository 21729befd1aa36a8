//! The thread that reads the UDP socket: opens datagrams in place, checks their packets and hands them over joined.

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    os::fd::AsFd,
    sync::Arc,
};

use quinn_udp::{BATCH_SIZE, RecvMeta};

use super::{Direct, Path};
use crate::{
    node::forward::{Shared, Table, wake::Woken},
    overlay::{
        coalesce::Coalescer,
        router::Drop as Dropped,
        segment::Sums,
        session::{HEADER, Kind, OVERHEAD, SUM_LEFT, index_of},
    },
};

/// Room for one joined train.
const SLOT: usize = 65_535;

/// Reads of the socket before the table is looked at again.
const TURNS: usize = 8;

/// Bytes of a probe before its padding: its token, the size of its datagram.
pub(super) const TOKEN: usize = 10;

/// Runs until the carrier is told to stop.
pub fn run(shared: &Shared, direct: &Direct) {
    let mut slots: Vec<Vec<u8>> = vec![vec![0; SLOT]; BATCH_SIZE];
    let mut metas = [RecvMeta::default(); BATCH_SIZE];
    let mut coalescer = Coalescer::default();
    loop {
        match direct.wake.wait(Some(direct.socket.as_fd())) {
            Woken::Stop => return,
            Woken::Changed => continue,
            Woken::Ready => {}
        }
        let table = shared.table.load();
        for _ in 0..TURNS {
            let received = {
                let mut buffers: Vec<IoSliceMut<'_>> =
                    slots.iter_mut().map(|slot| IoSliceMut::new(slot)).collect();
                direct
                    .udp
                    .recv((&direct.socket).into(), &mut buffers, &mut metas)
            };
            match received {
                Ok(count) => {
                    let full = slots.iter_mut().zip(&metas).take(count);
                    Batch::new(shared, direct, &table, &mut coalescer).take(full);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An ICMP error about an earlier datagram; probes find out what it means.
                Err(_) => {}
            }
        }
    }
}

/// What one read of the socket has brought.
struct Batch<'a> {
    shared: &'a Shared,
    direct: &'a Direct,
    table: &'a Table,
    coalescer: &'a mut Coalescer,
    now: u64,
}

/// Neighbouring packets of one peer, with or without their sums.
struct Run<'d> {
    path: Arc<Path>,
    sums: Sums,
    packets: Vec<&'d mut [u8]>,
}

impl<'a> Batch<'a> {
    fn new(
        shared: &'a Shared,
        direct: &'a Direct,
        table: &'a Table,
        coalescer: &'a mut Coalescer,
    ) -> Self {
        Self {
            now: direct.millis(),
            shared,
            direct,
            table,
            coalescer,
        }
    }

    fn take<'d>(&mut self, full: impl Iterator<Item = (&'d mut Vec<u8>, &'d RecvMeta)>) {
        let paths = self.direct.paths.load();
        let mut run: Option<Run<'d>> = None;
        for (slot, meta) in full {
            let from = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
            let Some(bytes) = slot.get_mut(..meta.len) else {
                continue;
            };
            for datagram in bytes.chunks_mut(meta.stride.max(1)) {
                // A stranger's datagram ends here: before any allocation, after one look-up.
                let Some(path) = index_of(datagram).and_then(|index| paths.get(&index)) else {
                    self.direct.drops.count(Dropped::NotAuthentic);
                    continue;
                };
                let opened = match path.session.open(datagram) {
                    Ok(opened) => opened,
                    Err(reason) => {
                        path.peer.drops.count(reason);
                        continue;
                    }
                };
                path.has_received(self.now);
                let Some(payload) = datagram.get_mut(HEADER..HEADER + opened.length) else {
                    continue;
                };
                match opened.kind {
                    Kind::Packet => {
                        let sums = if opened.flags & SUM_LEFT != 0 {
                            Sums::Left
                        } else {
                            Sums::Complete
                        };
                        match &mut run {
                            Some(run) if run.sums == sums && Arc::ptr_eq(&run.path, path) => {
                                run.packets.push(payload)
                            }
                            _ => {
                                let new = Run {
                                    path: path.clone(),
                                    sums,
                                    packets: vec![payload],
                                };
                                if let Some(done) = run.replace(new) {
                                    self.deliver(done);
                                }
                            }
                        }
                    }
                    Kind::Probe => self.echo(path, payload, from),
                    Kind::Echo => self.echoed(path, payload, from),
                }
            }
        }
        if let Some(done) = run {
            self.deliver(done);
        }
    }

    fn deliver(&mut self, run: Run<'_>) {
        self.shared.deliver_joined(
            self.table,
            &run.path.peer,
            run.packets,
            run.sums,
            self.coalescer,
        );
    }

    /// Answers a probe: its token, how large it was, and where it came from.
    fn echo(&self, path: &Path, probe: &[u8], from: SocketAddr) {
        let Some(token) = probe.get(..TOKEN) else {
            return path.peer.drops.count(Dropped::Malformed);
        };
        let mut echo = token.to_vec();
        let std::net::IpAddr::V6(ip) = (match from.ip() {
            std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped().into(),
            v6 => v6,
        }) else {
            return;
        };
        echo.extend(ip.octets());
        echo.extend(from.port().to_be_bytes());
        path.learn(from);
        self.direct.send_control(path, Kind::Echo, &echo, from);
    }

    fn echoed(&self, path: &Path, echo: &[u8], from: SocketAddr) {
        let Some((token, seen)) = echo.split_first_chunk::<TOKEN>() else {
            return path.peer.drops.count(Dropped::Malformed);
        };
        let [s0, s1, sent @ ..] = *token;
        let bytes = usize::from(u16::from_be_bytes([s0, s1])).min(SLOT - OVERHEAD);
        let micros = self
            .direct
            .micros()
            .saturating_sub(u64::from_be_bytes(sent));
        path.is_proven(from, bytes, u32::try_from(micros).unwrap_or(u32::MAX));
        if let Some((ip, port)) = seen.split_first_chunk::<16>()
            && let Some(port) = port.first_chunk()
        {
            let ip = std::net::IpAddr::from(*ip).to_canonical();
            self.direct
                .seen_at(SocketAddr::new(ip, u16::from_be_bytes(*port)));
        }
    }
}

impl Direct {
    pub(super) fn micros(&self) -> u64 {
        u64::try_from(super::now().duration_since(self.started).as_micros()).unwrap_or(u64::MAX)
    }

    /// Sends a probe whose datagram has so many bytes.
    pub(super) fn probe(&self, path: &Path, to: SocketAddr, bytes: usize) {
        let mut payload = Vec::with_capacity(bytes);
        payload.extend(u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes());
        payload.extend(self.micros().to_be_bytes());
        payload.resize(bytes.saturating_sub(OVERHEAD).max(TOKEN), 0);
        self.send_control(path, Kind::Probe, &payload, to);
    }
}
