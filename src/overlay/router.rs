//! Where a packet goes, and whether whoever sent it may send it. One immutable value judges a whole batch.

use std::{collections::HashSet, net::IpAddr};

use ipnet::IpNet;

use super::{packet::Header, routes::Table};

/// Addresses and prefixes of this node and of its peers. `P` names a peer.
#[derive(Clone, Debug)]
pub struct Router<P> {
    own: HashSet<IpAddr>,
    /// Prefixes this node routes for others.
    advertised: Table<()>,
    /// Both the way to an address and whose it is: a packet from it must come from that peer.
    peers: Table<P>,
}

/// A packet that goes no further, by reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Drop {
    /// Not a packet, or its lengths lie.
    Malformed,
    /// From or to an address that no packet in an overlay can have.
    Martian,
    /// Multicast or broadcast, which the overlay does not carry.
    Multicast,
    /// The source is not an address of the peer that sent it.
    Spoofed,
    /// The destination is neither this node nor a prefix it routes.
    NotForUs,
    /// This node sends only what is its own or comes from prefixes it routes.
    NotFromUs,
    /// No peer has the destination.
    NoRoute,
    /// The destination's peer is not connected.
    NoPath,
    /// Larger than what the path takes, and not to be fragmented.
    TooBig,
    /// The queue towards the peer is full.
    QueueFull,
    /// It waited too long in the queue towards the peer.
    Late,
    /// The device took it not.
    Device,
    /// Of a sender without an account here, or one that was changed on its way.
    NotAuthentic,
    /// Seen before, or too old to tell.
    Replayed,
}

impl Drop {
    pub const ALL: [Drop; 14] = [
        Drop::Malformed,
        Drop::Martian,
        Drop::Multicast,
        Drop::Spoofed,
        Drop::NotForUs,
        Drop::NotFromUs,
        Drop::NoRoute,
        Drop::NoPath,
        Drop::TooBig,
        Drop::QueueFull,
        Drop::Late,
        Drop::Device,
        Drop::NotAuthentic,
        Drop::Replayed,
    ];

    /// For metrics; the set is fixed.
    pub fn label(self) -> &'static str {
        match self {
            Drop::Malformed => "malformed",
            Drop::Martian => "martian",
            Drop::Multicast => "multicast",
            Drop::Spoofed => "spoofed",
            Drop::NotForUs => "not_for_us",
            Drop::NotFromUs => "not_from_us",
            Drop::NoRoute => "no_route",
            Drop::NoPath => "no_path",
            Drop::TooBig => "too_big",
            Drop::QueueFull => "queue_full",
            Drop::Late => "late",
            Drop::Device => "device",
            Drop::NotAuthentic => "not_authentic",
            Drop::Replayed => "replayed",
        }
    }
}

impl<P: Copy + Eq> Router<P> {
    /// `peers`: every prefix that leads to a peer, host addresses included; of equal ones the first counts.
    pub fn new(
        own: impl IntoIterator<Item = IpAddr>,
        advertised: impl IntoIterator<Item = IpNet>,
        peers: impl IntoIterator<Item = (IpNet, P)>,
    ) -> Self {
        Self {
            own: own.into_iter().collect(),
            advertised: Table::of(advertised.into_iter().map(|prefix| (prefix, ()))),
            peers: Table::of(peers),
        }
    }

    /// The peer that a packet of this machine goes to.
    pub fn outgoing(&self, header: &Header) -> Result<P, Drop> {
        check(header)?;
        if !self.is_ours(header.source) {
            return Err(Drop::NotFromUs);
        }
        self.peers
            .find(header.destination)
            .copied()
            .ok_or(Drop::NoRoute)
    }

    /// Whether a packet that came from `peer` may enter this machine.
    pub fn incoming(&self, header: &Header, peer: P) -> Result<(), Drop> {
        check(header)?;
        if self.peers.find(header.source) != Some(&peer) {
            return Err(Drop::Spoofed);
        }
        if !self.is_ours(header.destination) {
            return Err(Drop::NotForUs);
        }
        Ok(())
    }

    pub fn peer_of(&self, address: IpAddr) -> Option<P> {
        self.peers.find(address).copied()
    }

    fn is_ours(&self, address: IpAddr) -> bool {
        self.own.contains(&address) || self.advertised.find(address).is_some()
    }
}

/// What no packet of an overlay has for a source or destination (RFC 6890).
fn check(header: &Header) -> Result<(), Drop> {
    if is_multicast(header.destination) {
        return Err(Drop::Multicast);
    }
    let ends = [header.source, header.destination];
    if is_multicast(header.source) || ends.into_iter().any(is_martian) {
        return Err(Drop::Martian);
    }
    Ok(())
}

fn is_multicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_multicast() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_multicast(),
    }
}

fn is_martian(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.is_loopback() || address.is_link_local() || address.octets()[0] == 0
        }
        IpAddr::V6(address) => {
            address.is_loopback()
                || address.is_unspecified()
                || address.is_unicast_link_local()
                || address.to_ipv4_mapped().is_some()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(source: &str, destination: &str) -> Header {
        Header {
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
            protocol: 17,
            length: 20,
            total: 28,
            class: 0,
            fragment: false,
        }
    }

    fn router() -> Router<u8> {
        let net = |text: &str| text.parse::<IpNet>().expect("a prefix");
        Router::new(
            ["10.1.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            [net("192.168.1.0/24")],
            [
                (net("10.1.0.2/32"), 2),
                (net("10.1.0.3/32"), 3),
                (net("192.168.0.0/16"), 2),
                (net("192.168.3.0/24"), 3),
                (net("fd00::2/128"), 2),
            ],
        )
    }

    #[test]
    fn a_packet_goes_to_the_peer_with_the_longest_prefix() {
        let sent = |to| router().outgoing(&header("10.1.0.1", to));
        assert_eq!(sent("10.1.0.2"), Ok(2));
        assert_eq!(sent("192.168.3.9"), Ok(3));
        assert_eq!(sent("192.168.9.9"), Ok(2));
        assert_eq!(sent("10.1.0.4"), Err(Drop::NoRoute));
        assert_eq!(sent("10.1.0.255"), Err(Drop::NoRoute));
        assert_eq!(sent("224.0.0.251"), Err(Drop::Multicast));
        assert_eq!(sent("255.255.255.255"), Err(Drop::Multicast));
        assert_eq!(sent("127.0.0.1"), Err(Drop::Martian));
        let routed = router().outgoing(&header("192.168.1.7", "10.1.0.3"));
        assert_eq!(routed, Ok(3), "a prefix this node routes");
        let foreign = router().outgoing(&header("192.168.2.7", "10.1.0.3"));
        assert_eq!(foreign, Err(Drop::NotFromUs));
    }

    #[test]
    fn a_source_belongs_to_the_peer_that_sent_it_or_the_packet_is_dropped() {
        let came = |from, to, peer| router().incoming(&header(from, to), peer);
        assert_eq!(came("10.1.0.2", "10.1.0.1", 2), Ok(()));
        assert_eq!(came("fd00::2", "fd00::1", 2), Ok(()));
        assert_eq!(came("10.1.0.3", "10.1.0.1", 2), Err(Drop::Spoofed));
        assert_eq!(came("192.168.3.1", "10.1.0.1", 2), Err(Drop::Spoofed));
        assert_eq!(came("192.168.4.1", "192.168.1.1", 2), Ok(()));
        assert_eq!(came("8.8.8.8", "10.1.0.1", 2), Err(Drop::Spoofed));
        assert_eq!(
            came("10.1.0.1", "10.1.0.1", 2),
            Err(Drop::Spoofed),
            "our own address"
        );
        assert_eq!(came("10.1.0.2", "10.1.0.9", 2), Err(Drop::NotForUs));
        assert_eq!(came("10.1.0.2", "10.1.0.255", 2), Err(Drop::NotForUs));
        for martian in [
            "127.0.0.1",
            "169.254.0.1",
            "0.0.0.0",
            "fe80::1",
            "::1",
            "::ffff:10.1.0.2",
        ] {
            assert_eq!(
                came(martian, "10.1.0.1", 2),
                Err(Drop::Martian),
                "{martian}"
            );
        }
        assert_eq!(came("224.0.0.1", "10.1.0.1", 2), Err(Drop::Martian));
    }
}
