//! What the node speaks: the relay service and what every libp2p node needs beside it.

use std::{sync::Arc, time::Duration};

use libp2p::{
    autonat,
    connection_limits::{self, ConnectionLimits},
    dcutr, identify,
    identity::Keypair,
    ping, relay,
    swarm::NetworkBehaviour,
};
use tokio::sync::watch;

use super::{
    discovery, gate, gossip, mdns, peers,
    reach::{
        claims::Claims, dialback::DialBack, guarded::Guarded, mapping, observed::Sieve,
        punch::Punch,
    },
    streams,
};
use crate::{
    acl::Membership,
    config::{Limits, Snapshot},
};

/// What identify tells others this program is.
const AGENT: &str = concat!("edgevpn/", env!("CARGO_PKG_VERSION"));

/// The version string of the public libp2p network; peers show it and decide nothing by it.
const PROTOCOL_VERSION: &str = "ipfs/0.1.0";

/// The order is the order of questions: who may connect comes first, so that nothing else keeps state of a refused
/// connection.
#[derive(NetworkBehaviour)]
pub struct Behaviour {
    pub gate: gate::Behaviour,
    pub limits: connection_limits::Behaviour,
    pub identify: Guarded<identify::Behaviour, Sieve>,
    pub ping: ping::Behaviour,
    pub relay: super::relay::Behaviour,
    pub relay_client: relay::client::Behaviour,
    pub peers: peers::Behaviour,
    pub streams: streams::Behaviour,
    pub dcutr: Guarded<dcutr::Behaviour, Punch>,
    pub autonat_v1: Guarded<autonat::Behaviour, Claims>,
    pub autonat_v2: autonat::v2::client::Behaviour,
    pub autonat_v2_server: Guarded<autonat::v2::server::Behaviour, DialBack>,
    pub mapping: mapping::Behaviour,
    pub mdns: mdns::Behaviour,
    pub gossip: gossip::Behaviour,
    pub discovery: discovery::Behaviour,
}

impl Behaviour {
    pub fn new(
        keypair: &Keypair,
        relay_client: relay::client::Behaviour,
        live: watch::Receiver<Arc<Snapshot>>,
        membership: watch::Receiver<Arc<Membership>>,
        on_links: gate::dials::OnLinks,
    ) -> Self {
        let local = keypair.public().to_peer_id();
        let identify =
            identify::Config::new_with_signed_peer_record(PROTOCOL_VERSION.to_owned(), keypair)
                .with_agent_version(AGENT.to_owned())
                .with_push_listen_addr_updates(true)
                // What strangers say about themselves is dialled only after `peers` has judged it.
                .with_cache_size(0);
        let limits =
            connection_limits::Behaviour::new(connection_limits(&live.borrow().config.limits));
        let streams = streams::Behaviour::new();
        Self {
            gate: gate::Behaviour::new(live.clone()),
            limits,
            identify: Guarded {
                inner: identify::Behaviour::new(identify),
                guard: Sieve::default(),
            },
            ping: ping::Behaviour::default(),
            relay: super::relay::Behaviour::new(keypair.clone(), live.clone(), membership.clone()),
            relay_client,
            peers: peers::Behaviour::new(local, live.clone(), membership.clone(), on_links),
            dcutr: Guarded {
                inner: dcutr::Behaviour::new(local),
                guard: Punch::new(live.clone(), membership),
            },
            autonat_v1: Guarded {
                inner: autonat::Behaviour::new(local, autonat_v1()),
                guard: Claims::default(),
            },
            autonat_v2: autonat::v2::client::Behaviour::default(),
            autonat_v2_server: Guarded {
                inner: autonat::v2::server::Behaviour::default(),
                guard: DialBack::new(streams.control()),
            },
            mapping: mapping::Behaviour::new(live.clone()),
            streams,
            mdns: mdns::Behaviour::new(local, live.clone()),
            gossip: gossip::Behaviour::new(keypair.clone(), live.clone()),
            discovery: discovery::Behaviour::new(local, live),
        }
    }
}

/// AutoNAT v1, which Go nodes ask for. It dials back, and asks, only peers seen at global addresses: what a neighbour
/// behind the same NAT can dial says nothing about the world, and would make a node give its reservations back. In a
/// network of private addresses the answer stays unknown, and reservations are held where there are relays.
///
/// Its limits are those of EdgeVPN's nodes: ten dial-backs a minute, for one peer or for all.
fn autonat_v1() -> autonat::Config {
    autonat::Config {
        only_global_ips: true,
        throttle_clients_global_max: 10,
        throttle_clients_peer_max: 10,
        throttle_clients_period: Duration::from_secs(60),
        ..autonat::Config::default()
    }
}

/// `[limits]` as the library counts them. Lowering one closes nothing: it admits nobody until the load fits.
pub fn connection_limits(limits: &Limits) -> ConnectionLimits {
    ConnectionLimits::default()
        .with_max_established(Some(limits.connections))
        .with_max_established_per_peer(Some(limits.connections_per_peer))
        .with_max_pending_incoming(Some(limits.pending))
        .with_max_pending_outgoing(Some(limits.pending))
}
