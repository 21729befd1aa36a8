//! The network part of a node, in this process: started with a configuration made by hand, changed, asked.
#![allow(dead_code, reason = "each test module uses its part")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use edgevpn::{
    acl::Membership,
    config::{Config, Limits, Network, Snapshot},
    id::{Generation, PeerId},
    net::{self, Handle, NetReport},
    wire::{Rotation, Token},
};
use libp2p::{Multiaddr, identity::Keypair};
use tokio::sync::watch;

/// Generous, so that a busy machine does not fail a test; a test that waits this long has failed.
const DEADLINE: Duration = Duration::from_secs(30);

/// How often a report is asked for.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

pub struct NetUnderTest {
    pub handle: Handle,
    pub config: Config,
    live: watch::Sender<Arc<Snapshot>>,
    pub membership: watch::Sender<Arc<Membership>>,
    heard: tokio::sync::mpsc::Receiver<net::Heard>,
}

impl NetUnderTest {
    pub async fn start(config: Config, listen: &[&str]) -> Self {
        let keypair = Keypair::generate_ed25519();
        let generation = Generation(1);
        let (live, follow) = watch::channel(Arc::new(Snapshot {
            generation,
            config: Arc::new(config.clone()),
        }));
        let (membership, members) = watch::channel(Arc::default());
        let (handle, heard) = net::start(&keypair, follow, members).expect("starts");
        for address in listen {
            let address: Multiaddr = address.parse().expect("an address");
            handle.listen(&address, &[]).await.expect("listens");
        }
        Self {
            handle,
            config,
            live,
            membership,
            heard,
        }
    }

    pub fn id(&self) -> PeerId {
        self.handle.local_peer
    }

    pub fn apply(&mut self, change: impl FnOnce(&mut Config)) {
        change(&mut self.config);
        let generation = self.live.borrow().generation.next();
        self.live.send_replace(Arc::new(Snapshot {
            generation,
            config: Arc::new(self.config.clone()),
        }));
    }

    pub async fn address(&self) -> Multiaddr {
        let report = self.handle.report().await;
        report.listening.first().expect("listens").clone()
    }

    pub async fn until(&self, what: &str, holds: impl Fn(&NetReport) -> bool) -> NetReport {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let report = self.handle.report().await;
            if holds(&report) {
                return report;
            }
            assert!(Instant::now() < deadline, "never: {what}\n{report:#?}");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    pub async fn until_connected(&self, other: &NetUnderTest) {
        self.until(&format!("connected with {}", other.id()), |report| {
            report.peers.contains(&other.id())
        })
        .await;
    }
}

/// Nothing but room for connections, and one network.
pub fn config(token: &Arc<Token>) -> Config {
    let mut config = Config::empty();
    config.limits = Limits {
        connections: 100,
        connections_per_peer: 8,
        pending: 64,
        memory: u64::MAX,
    };
    config.network = Some(Network {
        token: token.clone(),
        accepted: Vec::new(),
    });
    config
}

/// A network of its own for each test.
pub fn token(interval: u64) -> Arc<Token> {
    let secret = || {
        let random = PeerId::random().to_base58();
        random.chars().rev().take(43).collect::<String>()
    };
    let rotation = || Rotation {
        interval,
        key: secret(),
        length: 43,
    };
    Arc::new(Token {
        dht: rotation(),
        crypto: rotation(),
        room: secret(),
        rendezvous: secret(),
        mdns: secret(),
        max_message_size: 20 << 20,
    })
}
