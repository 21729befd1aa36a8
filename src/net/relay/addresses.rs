//! Which addresses of this relay a reservation hands out.

use libp2p::{
    Multiaddr, PeerId,
    multiaddr::Protocol,
    swarm::{ExternalAddresses, FromSwarm, ListenAddresses},
};

/// Follows the swarm's addresses and keeps the list ready, for it changes rarely and is asked for often.
pub struct Addresses {
    relay: PeerId,
    external: ExternalAddresses,
    listen: ListenAddresses,
    chosen: Vec<Multiaddr>,
}

impl Addresses {
    pub fn new(relay: PeerId) -> Self {
        let mut addresses = Self {
            relay,
            external: ExternalAddresses::default(),
            listen: ListenAddresses::default(),
            chosen: Vec::new(),
        };
        addresses.choose();
        addresses
    }

    pub fn relay(&self) -> PeerId {
        self.relay
    }

    /// The best kind there is: confirmed external ones, else listen addresses, else loopback. Never empty, for clients
    /// take an empty list for an error: a relay that listens nowhere gives its bare name.
    pub fn for_reservations(&self) -> &[Multiaddr] {
        &self.chosen
    }

    pub fn on_swarm_event(&mut self, event: &FromSwarm<'_>) {
        let external = self.external.on_swarm_event(event);
        let listen = self.listen.on_swarm_event(event);
        if external || listen {
            self.choose();
        }
    }

    fn choose(&mut self) {
        let external: Vec<&Multiaddr> = self.external.iter().collect();
        let listen: Vec<&Multiaddr> = self.listen.iter().filter(|at| !is_relayed(at)).collect();
        let reachable: Vec<&Multiaddr> = listen
            .iter()
            .copied()
            .filter(|at| !is_loopback(at))
            .collect();
        let best = [external, reachable, listen]
            .into_iter()
            .find(|addresses| !addresses.is_empty())
            .unwrap_or_default();
        let mut chosen: Vec<Multiaddr> = best.into_iter().map(|at| named(at, self.relay)).collect();
        if chosen.is_empty() {
            chosen.push(Protocol::P2p(self.relay).into());
        }
        self.chosen = chosen;
    }
}

fn named(address: &Multiaddr, relay: PeerId) -> Multiaddr {
    match address.iter().last() {
        Some(Protocol::P2p(_)) => address.clone(),
        _ => address.clone().with(Protocol::P2p(relay)),
    }
}

fn is_relayed(address: &Multiaddr) -> bool {
    address
        .iter()
        .any(|protocol| protocol == Protocol::P2pCircuit)
}

fn is_loopback(address: &Multiaddr) -> bool {
    address.iter().any(|protocol| match protocol {
        Protocol::Ip4(ip) => ip.is_loopback(),
        Protocol::Ip6(ip) => ip.is_loopback(),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p::{
        core::transport::ListenerId,
        swarm::{NewListenAddr, behaviour::ExternalAddrConfirmed},
    };

    fn addresses(listen: &[&str], external: &[&str]) -> (PeerId, Vec<String>) {
        let relay = PeerId::random();
        let mut addresses = Addresses::new(relay);
        for at in listen {
            addresses.on_swarm_event(&FromSwarm::NewListenAddr(NewListenAddr {
                listener_id: ListenerId::next(),
                addr: &at.parse().unwrap(),
            }));
        }
        for at in external {
            addresses.on_swarm_event(&FromSwarm::ExternalAddrConfirmed(ExternalAddrConfirmed {
                addr: &at.parse().unwrap(),
            }));
        }
        let chosen = addresses.for_reservations();
        (relay, chosen.iter().map(Multiaddr::to_string).collect())
    }

    const LOOPBACK: &str = "/ip4/127.0.0.1/tcp/1";
    const LAN: &str = "/ip4/192.0.2.1/tcp/1";
    const PUBLIC: &str = "/ip4/203.0.113.1/tcp/1";

    #[test]
    fn confirmed_addresses_come_before_listen_addresses_and_those_before_loopback() {
        let (relay, chosen) = addresses(&[LOOPBACK, LAN], &[PUBLIC]);
        assert_eq!(chosen, [format!("{PUBLIC}/p2p/{relay}")]);
        let (relay, chosen) = addresses(&[LOOPBACK, LAN], &[]);
        assert_eq!(chosen, [format!("{LAN}/p2p/{relay}")]);
        let (relay, chosen) = addresses(&[LOOPBACK], &[]);
        assert_eq!(chosen, [format!("{LOOPBACK}/p2p/{relay}")]);
    }

    #[test]
    fn a_relay_that_listens_nowhere_still_has_a_name() {
        let (relay, chosen) = addresses(&[], &[]);
        assert_eq!(chosen, [format!("/p2p/{relay}")]);
    }
}
