//! The packet pump: device → router → the peer's carrier, and back.
//!
//! ```text
//! device ─ transmit thread ─ router ─┬─ queue of the peer ─ its task ─ stream
//!                                    └─ sealed datagrams ─ UDP socket
//! stream ─ its task ──────────┬─ router: whose source, for us? ─ device
//! UDP socket ─ receive thread ┘
//! ```
//!
//! Every packet is judged by one immutable [`Table`]; a change of addresses, routes or members is a new one. A packet that
//! goes no further is counted by its reason.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use arc_swap::{ArcSwap, ArcSwapOption};
use ipnet::IpNet;

use crate::{
    device::Device,
    id::PeerId,
    net::streams::Control,
    overlay::router::{Drop as Dropped, Router},
    task::{self, Task, Thread},
};

mod answer;
mod deliver;
mod direct;
mod peer;
mod stream;
mod transmit;
mod wake;

pub use peer::{Carrier, Count, PeerReport};

use answer::Answers;
use direct::{Direct, link};
use peer::{Drops, Key, Peer};
use wake::Wake;

/// Moves packets until it is dropped.
pub struct Forward {
    shared: Arc<Shared>,
    streams: Control,
    local_peer: PeerId,
    /// Keys are never used twice, so that a packet under way cannot be taken for another peer's.
    next_key: AtomicU32,
    publishing: Mutex<HashMap<PeerId, Running>>,
    _tasks: Vec<Task>,
    _threads: Vec<Thread>,
}

/// A peer and the task that writes to it.
struct Running {
    peer: Arc<Peer>,
    _tasks: Vec<Task>,
}

/// What every thread and task of the pump sees.
struct Shared {
    device: ArcSwapOption<Device>,
    table: ArcSwap<Table>,
    /// Of packets that belong to no peer.
    drops: Drops,
    answers: Answers,
    wake: Wake,
    /// `None`: packets take streams only.
    direct: Option<Arc<Direct>>,
}

/// One generation of who has which address.
struct Table {
    router: Router<Key>,
    peers: HashMap<Key, Arc<Peer>>,
    by_id: HashMap<PeerId, Arc<Peer>>,
    /// Whom an ICMP answer comes from: our own address in that family.
    own: Vec<IpAddr>,
}

/// What the pump is to know of one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    pub peer: PeerId,
    /// Addresses as host prefixes, and what else it routes.
    pub prefixes: Vec<IpNet>,
}

/// What the pump has done, for `status` and metrics.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub peers: Vec<PeerReport>,
    /// By reason; those of peers included.
    pub dropped: Vec<(Dropped, u64)>,
}

impl Forward {
    /// Starts without a device and without peers. Direct datagrams have this UDP port; 0 lets the system choose, and
    /// without one packets take streams only.
    pub fn start(local_peer: PeerId, streams: Control, port: Option<u16>) -> io::Result<Self> {
        let direct = port.map(Direct::bind).transpose()?.map(Arc::new);
        let shared = Arc::new(Shared {
            device: ArcSwapOption::empty(),
            table: ArcSwap::from_pointee(Table::empty()),
            drops: Drops::default(),
            answers: Answers::default(),
            wake: Wake::new()?,
            direct: direct.clone(),
        });
        let packets = stream::accept(shared.clone(), streams.clone());
        let transmitting = shared.clone();
        let mut tasks = vec![task::spawn("packet streams", packets)];
        let mut threads = vec![task::thread("transmit", move || {
            transmit::run(&transmitting)
        })?];
        if let Some(direct) = direct {
            let offers = link::accept(shared.clone(), direct.clone(), local_peer, streams.clone());
            tasks.push(task::spawn("direct offers", offers));
            let receiving = shared.clone();
            threads.push(task::thread("receive", move || {
                direct::receive(&receiving, &direct)
            })?);
        }
        Ok(Self {
            _tasks: tasks,
            _threads: threads,
            local_peer,
            shared,
            streams,
            next_key: AtomicU32::new(0),
            publishing: Mutex::default(),
        })
    }

    /// Packets come from and go to this device from now on. The one before is closed once nobody uses it.
    pub fn set_device(&self, device: Option<Arc<Device>>) {
        self.shared.device.store(device);
        self.shared.wake.wake();
    }

    /// Who has which address from now on. Of equal prefixes the first member's counts.
    pub fn publish(&self, own: &[IpAddr], advertised: &[IpNet], members: &[Reach]) {
        let mut running = self
            .publishing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        running.retain(|id, _| members.iter().any(|member| member.peer == *id));
        for member in members {
            running
                .entry(member.peer)
                .or_insert_with(|| self.run(member.peer));
        }
        let prefixes = members.iter().flat_map(|member| {
            let key = running.get(&member.peer).map(|running| running.peer.key);
            let with_key = move |prefix: &IpNet| Some((*prefix, key?));
            member.prefixes.iter().filter_map(with_key)
        });
        let router = Router::new(own.iter().copied(), advertised.iter().copied(), prefixes);
        let peers = || running.values().map(|running| running.peer.clone());
        self.shared.table.store(Arc::new(Table {
            router,
            peers: peers().map(|peer| (peer.key, peer)).collect(),
            by_id: peers().map(|peer| (peer.id, peer)).collect(),
            own: own.to_vec(),
        }));
    }

    /// The UDP port of the direct carrier.
    pub fn direct_port(&self) -> Option<u16> {
        self.shared.direct.as_ref().map(|direct| direct.port())
    }

    pub fn report(&self) -> Report {
        let table = self.shared.table.load();
        let mut peers: Vec<PeerReport> = table.peers.values().map(|peer| peer.report()).collect();
        peers.sort_by_key(|peer| peer.peer);
        let count = |reason: Dropped| {
            let direct = self.shared.direct.as_ref();
            let direct = direct.map_or(0, |direct| direct.drops.of(reason));
            let of_peers = table.peers.values().map(|peer| peer.drops.of(reason));
            self.shared.drops.of(reason) + direct + of_peers.sum::<u64>()
        };
        Report {
            dropped: Dropped::ALL
                .into_iter()
                .map(|reason| (reason, count(reason)))
                .collect(),
            peers,
        }
    }

    fn run(&self, id: PeerId) -> Running {
        let key = Key(self.next_key.fetch_add(1, Ordering::Relaxed));
        let peer = Arc::new(Peer::new(id, key));
        let carrier = stream::carry(peer.clone(), self.streams.clone());
        let mut tasks = vec![task::spawn("packets to a peer", carrier)];
        if let Some(direct) = &self.shared.direct {
            let (shared, direct, peer) = (self.shared.clone(), direct.clone(), peer.clone());
            let link = link::keep(shared, direct, peer, self.local_peer, self.streams.clone());
            tasks.push(task::spawn("link to a peer", link));
        }
        Running {
            peer,
            _tasks: tasks,
        }
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.shared.wake.stop();
        if let Some(direct) = &self.shared.direct {
            direct.wake.stop();
        }
    }
}

impl Table {
    fn empty() -> Self {
        Self {
            router: Router::new([], [], []),
            peers: HashMap::new(),
            by_id: HashMap::new(),
            own: Vec::new(),
        }
    }
}
