//! Which addresses are dialled at all. Whoever starts a dial, it passes here, so that no protocol in which peers name
//! addresses (the DHT, identify, hole punching, dial-backs) can be used to knock at doors only this host reaches.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arc_swap::ArcSwap;
use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use tokio::sync::watch;

use super::scope;
use crate::{
    acl::Membership,
    config::{Config, Snapshot},
    net::{discovery, ip_of},
};

/// Addresses heard on a link, which may be any that the neighbour uses there.
pub type OnLinks = Arc<ArcSwap<BTreeMap<PeerId, BTreeSet<Multiaddr>>>>;

#[derive(Clone)]
pub struct Dials {
    live: watch::Receiver<Arc<Snapshot>>,
    membership: watch::Receiver<Arc<Membership>>,
    on_links: OnLinks,
}

impl Dials {
    pub fn new(
        live: watch::Receiver<Arc<Snapshot>>,
        membership: watch::Receiver<Arc<Membership>>,
        on_links: OnLinks,
    ) -> Self {
        Self {
            live,
            membership,
            on_links,
        }
    }

    /// A public address is anybody's to name, and so is one in the scopes of the operator's own DHT. All others, and names
    /// that may stand for them, are for peers the operator has named, for members, and for neighbours on a link.
    pub fn permit(&self, address: &Multiaddr) -> bool {
        // The way to the relay is a dial of its own.
        if address.iter().any(|part| part == Protocol::P2pCircuit) {
            return true;
        }
        let config = self.live.borrow().config.clone();
        // Members announce the addresses of all their interfaces.
        if ip_of(address).is_some_and(|ip| config.vpn.holds(ip)) {
            return false;
        }
        let anybody =
            scope::of(address).is_some_and(|scope| discovery::scopes(&config).contains(&scope));
        let Some(Protocol::P2p(peer)) = address.iter().last() else {
            return anybody;
        };
        anybody
            || is_named(&config, &peer)
            || self.membership.borrow().members.contains_key(&peer)
            || self.is_on_a_link(peer, address)
    }

    fn is_on_a_link(&self, peer: PeerId, address: &Multiaddr) -> bool {
        let plain: Multiaddr = address
            .iter()
            .filter(|part| !matches!(part, Protocol::P2p(_)))
            .collect();
        self.on_links
            .load()
            .get(&peer)
            .is_some_and(|heard| heard.contains(&plain))
    }
}

fn is_named(config: &Config, peer: &PeerId) -> bool {
    let entrances = discovery::bootstrap_peers(config);
    config
        .peers
        .iter()
        .chain(&config.relay_client.peers)
        .chain(entrances.iter())
        .any(|named| named.id == *peer || leads_through(&named.addresses, peer))
}

/// Who names a circuit names its relay.
fn leads_through(addresses: &[Multiaddr], relay: &PeerId) -> bool {
    let relay = Protocol::P2p(*relay);
    addresses
        .iter()
        .any(|address| address.iter().any(|part| part == relay))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Network, Peer},
        id::{Generation, UnixTime},
        wire::{Rotation, Token},
    };

    struct Bench {
        live: watch::Sender<Arc<Snapshot>>,
        membership: watch::Sender<Arc<Membership>>,
        on_links: OnLinks,
        dials: Dials,
    }

    impl Bench {
        fn new() -> Self {
            let (live, follow) = watch::channel(Arc::new(Snapshot {
                generation: Generation::default(),
                config: Arc::new(Config::empty()),
            }));
            let (membership, members) = watch::channel(Arc::default());
            let on_links = OnLinks::default();
            Self {
                live,
                membership,
                dials: Dials::new(follow, members, on_links.clone()),
                on_links,
            }
        }

        fn configure(&self, change: impl FnOnce(&mut Config)) {
            let mut config = Config::empty();
            change(&mut config);
            self.live.send_replace(Arc::new(Snapshot {
                generation: Generation(1),
                config: Arc::new(config),
            }));
        }

        fn permits(&self, address: &str, peer: PeerId) -> bool {
            self.dials.permit(&to(address, peer))
        }
    }

    fn to(address: &str, peer: PeerId) -> Multiaddr {
        format!("{address}/p2p/{peer}").parse().expect("an address")
    }

    fn peer_at(id: PeerId, address: &str) -> Peer {
        Peer {
            id,
            addresses: vec![address.parse().expect("an address")],
        }
    }

    fn network() -> Network {
        let rotation = Rotation {
            interval: 360,
            key: String::new(),
            length: 43,
        };
        let token = Token {
            dht: rotation.clone(),
            crypto: rotation,
            room: String::new(),
            rendezvous: String::new(),
            mdns: String::new(),
            max_message_size: 1,
        };
        Network {
            token: Arc::new(token),
            accepted: Vec::new(),
        }
    }

    const INNER: [&str; 6] = [
        "/ip4/127.0.0.1/tcp/22",
        "/ip4/10.0.0.1/tcp/22",
        "/ip4/100.64.0.1/udp/1/quic-v1",
        "/ip6/fe80::1/tcp/22",
        "/ip6/::ffff:192.168.0.1/tcp/22",
        "/dns4/localhost/tcp/22",
    ];

    #[test]
    fn nobody_is_dialled_at_an_address_of_our_own_overlay() {
        let bench = Bench::new();
        let member = PeerId::random();
        let membership = Membership {
            members: [(member, UnixTime::from_secs(1))].into(),
            ..Membership::default()
        };
        bench.membership.send_replace(Arc::new(membership));
        bench.configure(|config| {
            config.peers.push(peer_at(member, "/ip4/10.7.0.2/tcp/4001"));
            config.vpn.enabled = true;
            config.vpn.addresses = vec!["10.7.0.1/24".parse().expect("an address")];
        });
        assert!(!bench.permits("/ip4/10.7.0.2/tcp/4001", member));
        assert!(bench.permits("/ip4/10.8.0.2/tcp/4001", member));
        bench.configure(|config| config.peers.push(peer_at(member, "/ip4/10.7.0.2/tcp/4001")));
        assert!(
            bench.permits("/ip4/10.7.0.2/tcp/4001", member),
            "there is no overlay"
        );
    }

    #[test]
    fn a_stranger_is_dialled_in_public_only() {
        let bench = Bench::new();
        let stranger = PeerId::random();
        assert!(bench.permits("/ip4/192.0.2.1/tcp/1", stranger));
        for address in INNER {
            assert!(!bench.permits(address, stranger), "{address}");
            let unknown: Multiaddr = address.parse().expect("an address");
            assert!(!bench.dials.permit(&unknown), "{address} of nobody");
        }
    }

    #[test]
    fn who_the_file_names_and_who_is_a_member_is_dialled_anywhere() {
        let bench = Bench::new();
        let [named, relay, member, between] = [(); 4].map(|()| PeerId::random());
        bench.configure(|config| {
            let circuit = format!("/ip4/10.0.0.1/tcp/1/p2p/{between}/p2p-circuit");
            config.peers = vec![peer_at(named, &circuit)];
            config.relay_client.peers = vec![peer_at(relay, "/dns4/hub.example.org/tcp/1")];
        });
        let mut membership = Membership::default();
        membership.members.insert(member, UnixTime::default());
        bench.membership.send_replace(Arc::new(membership));
        for peer in [named, relay, member, between] {
            for address in INNER {
                assert!(bench.permits(address, peer), "{address}");
            }
        }
    }

    #[test]
    fn a_neighbour_is_dialled_where_it_was_heard_and_nowhere_else() {
        let bench = Bench::new();
        let (neighbour, other) = (PeerId::random(), PeerId::random());
        let heard = "/ip4/10.0.0.1/tcp/22".parse().expect("an address");
        let links = BTreeMap::from([(neighbour, BTreeSet::from([heard]))]);
        bench.on_links.store(Arc::new(links));
        assert!(bench.permits("/ip4/10.0.0.1/tcp/22", neighbour));
        assert!(!bench.permits("/ip4/10.0.0.1/tcp/23", neighbour));
        assert!(!bench.permits("/ip4/10.0.0.1/tcp/22", other));
    }

    #[test]
    fn a_dht_of_the_operator_opens_the_scopes_it_lives_in() {
        let bench = Bench::new();
        let stranger = PeerId::random();
        bench.configure(|config| {
            config.network = Some(network());
            config.discovery.dht = true;
            config.discovery.bootstrap_peers =
                vec![peer_at(PeerId::random(), "/ip4/10.0.0.9/tcp/1")];
        });
        assert!(bench.permits("/ip4/192.168.1.1/tcp/1", stranger));
        assert!(!bench.permits("/ip4/127.0.0.1/tcp/1", stranger));
        assert!(!bench.permits("/ip4/169.254.1.1/tcp/1", stranger));
    }
}
