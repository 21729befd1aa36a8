//! Real nodes on loopback, made of a configuration and the network task alone.

use std::{sync::Arc, time::Duration};

use edgevpn::{
    acl::{Acl, Audience, Entries, Membership, Mode, Rules},
    config::{Config, Peer, Snapshot},
    id::{Generation, Origin, PeerId},
    net::{self, Heard, reach, streams::Link},
    relay::{Limit, upkeep::Stage},
};
use libp2p::{Multiaddr, identity::Keypair, multiaddr::Protocol};
use tokio::sync::{mpsc, watch};

/// How long a test waits before it says what it waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often a report is read while a test waits.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

pub struct Node {
    pub id: PeerId,
    pub address: Multiaddr,
    pub net: net::Handle,
    live: watch::Sender<Arc<Snapshot>>,
    members: watch::Sender<Arc<Membership>>,
    _heard: mpsc::Receiver<Heard>,
}

impl Node {
    /// A node that listens on one TCP port, with what `change` makes of the configuration.
    pub async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let key = Keypair::generate_ed25519();
        let mut config = plain();
        change(&mut config);
        let (live, followed) = watch::channel(snapshot(1, config));
        let (members, followed_members) = watch::channel(Arc::default());
        let (net, heard) = net::start(&key, followed, followed_members).expect("starts");
        let any: Multiaddr = "/ip4/127.0.0.1/tcp/0".parse().expect("an address");
        net.listen(&any, &[]).await.expect("listens");
        let listening = net.report().await.listening;
        let id = key.public().to_peer_id();
        Self {
            id,
            address: listening.first().expect("listens").clone(),
            net,
            live,
            members,
            _heard: heard,
        }
    }

    /// One that relays for anyone.
    pub async fn relay() -> Self {
        Self::start(serve(Audience::Anyone)).await
    }

    /// One that holds reservations on these, the first ones first.
    pub async fn client_of(relays: &[&Node]) -> Self {
        let peers: Vec<Peer> = relays.iter().map(|relay| relay.peer()).collect();
        Self::start(|config| config.relay_client.peers = peers).await
    }

    pub fn edit(&self, change: impl FnOnce(&mut Config)) {
        let before = self.live.borrow().clone();
        let mut config = Config::clone(&before.config);
        change(&mut config);
        self.live
            .send_replace(snapshot(before.generation.0 + 1, config));
    }

    /// Refuses every connection of `other` from now on, and closes those there are.
    pub fn hide(&self, other: &Node) {
        let other = other.id;
        self.edit(|config| {
            config.transport.block.peers.insert(other);
        });
    }

    /// Lets everybody connect again.
    pub fn show(&self) {
        self.edit(|config| config.transport.block.peers.clear());
    }

    pub fn has_members(&self, members: &[&Node]) {
        let mut membership = Membership::default();
        for member in members {
            let now = edgevpn::id::UnixTime::from_secs(1);
            membership.members.insert(member.id, now);
        }
        self.members.send_replace(Arc::new(membership));
    }

    /// As `[[peer]]` and `relay.peers` name it.
    pub fn peer(&self) -> Peer {
        Peer {
            id: self.id,
            addresses: vec![self.address.clone()],
        }
    }

    /// The same, through relays.
    pub fn through(&self, relays: &[&Node]) -> Peer {
        let circuit = |relay: &&Node| {
            relay
                .address
                .clone()
                .with(Protocol::P2p(relay.id))
                .with(Protocol::P2pCircuit)
        };
        Peer {
            id: self.id,
            addresses: relays.iter().map(circuit).collect(),
        }
    }

    pub async fn until(&self, what: &str, holds: impl Fn(&reach::Report) -> bool) -> reach::Report {
        let look = async {
            loop {
                let report = self.net.report().await.reach;
                if holds(&report) {
                    return report;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        match tokio::time::timeout(PATIENCE, look).await {
            Ok(report) => report,
            Err(_) => panic!("never: {what}; {:#?}", self.net.report().await.reach),
        }
    }

    /// Waits until reservations are held on exactly these.
    pub async fn holds(&self, relays: &[&Node]) -> reach::Report {
        let mut wanted: Vec<PeerId> = relays.iter().map(|relay| relay.id).collect();
        wanted.sort();
        self.until("the reservations", |report| held(report) == wanted)
            .await
    }

    /// Waits until the connections to `peer` are as wanted.
    pub async fn linked(&self, peer: PeerId, holds: impl Fn(&[Link]) -> bool) -> Vec<Link> {
        let mut changes = self.net.streams().changes();
        let look = async {
            loop {
                let links = self.net.streams().links(peer);
                if holds(&links) {
                    return links;
                }
                changes.recv().await.expect("the network task runs");
            }
        };
        match tokio::time::timeout(PATIENCE, look).await {
            Ok(links) => links,
            Err(_) => panic!("never: {:#?}", self.net.streams().links(peer)),
        }
    }
}

/// The relays on which reservations are held, in the order of their ids.
pub fn held(report: &reach::Report) -> Vec<PeerId> {
    report
        .relays
        .iter()
        .filter(|relay| matches!(relay.entry.stage, Stage::Active { .. }))
        .map(|relay| relay.entry.relay)
        .collect()
}

pub fn serve(reserve: Audience) -> impl FnOnce(&mut Config) {
    move |config| {
        config.relay.service = true;
        config.acl = Arc::new(Acl::compile(Rules {
            reserve,
            connect: Audience::Anyone,
            reserve_origin: Origin::Default,
            connect_origin: Origin::Default,
            bootstrap_origin: Origin::Default,
            mode: Mode::Enforce,
            entries: Entries::default(),
            tests: Vec::new(),
        }));
    }
}

/// No service, a client without static relays, and limits that no test meets.
fn plain() -> Config {
    let mut config = Config::empty();
    config.limits.connections = 100;
    config.limits.connections_per_peer = 8;
    config.limits.pending = 100;
    config.limits.memory = u64::MAX;
    config.relay_client.enabled = true;
    let resources = &mut config.relay.resources;
    resources.max_data = Limit::Unlimited;
    resources.max_duration = Limit::Unlimited;
    resources.max_circuits = 100;
    resources.reservation_ttl = Duration::from_secs(3600);
    resources.buffer_size = 64 * 1024;
    resources.max_reservations = 100;
    resources.max_reservations_per_ip = 100;
    resources.max_circuits_total = 100;
    resources.max_buffers = 256 << 20;
    config
}

fn snapshot(generation: u64, config: Config) -> Arc<Snapshot> {
    Arc::new(Snapshot {
        generation: Generation(generation),
        config: Arc::new(config),
    })
}
