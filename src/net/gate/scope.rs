//! How far an address reaches. What a stranger says may make this node dial the internet, never its own host or its
//! neighbours.

use std::net::{Ipv4Addr, Ipv6Addr};

use libp2p::{Multiaddr, multiaddr::Protocol};

/// From where an address can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Nothing listens there: unspecified, multicast, reserved.
    Nowhere,
    /// This host.
    Loopback,
    /// One link.
    Link,
    /// One site or one provider's customers: private, unique-local and shared (CGNAT) addresses, benchmarking networks.
    Site,
    Public,
}

/// The narrowest scope of the addresses in `address`; a circuit has the one of its relay too. `None` where a name hides
/// the address: it may stand for anything.
pub fn of(address: &Multiaddr) -> Option<Scope> {
    let mut narrowest = None;
    for part in address.iter() {
        let scope = match part {
            Protocol::Ip4(ip) => of_v4(ip),
            Protocol::Ip6(ip) => of_v6(ip),
            Protocol::Dns(_)
            | Protocol::Dns4(_)
            | Protocol::Dns6(_)
            | Protocol::Dnsaddr(_)
            | Protocol::Unix(_)
            | Protocol::Memory(_) => return None,
            _ => continue,
        };
        narrowest = Some(narrowest.map_or(scope, |before: Scope| before.min(scope)));
    }
    narrowest
}

/// Whether a stranger may make us dial this.
pub fn is_public(address: &Multiaddr) -> bool {
    of(address) == Some(Scope::Public)
}

/// <https://www.iana.org/assignments/iana-ipv4-special-registry>. Documentation networks count as public: no machine
/// has such an address, and laboratories like them.
fn of_v4(ip: Ipv4Addr) -> Scope {
    match ip.octets() {
        [0, ..] | [224..=255, ..] => Scope::Nowhere,
        [127, ..] => Scope::Loopback,
        [169, 254, ..] => Scope::Link,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Scope::Site,
        // Shared between a provider and its customers; protocol assignments (DS-Lite); benchmarking.
        [100, 64..=127, ..] | [192, 0, 0, _] | [198, 18..=19, ..] => Scope::Site,
        _ => Scope::Public,
    }
}

/// <https://www.iana.org/assignments/iana-ipv6-special-registry>. An address that carries an IPv4 address reaches as far as
/// that one.
fn of_v6(ip: Ipv6Addr) -> Scope {
    if let Some(v4) = ip.to_ipv4_mapped() {
        return of_v4(v4);
    }
    match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => Scope::Loopback,
        [0, 0, 0, 0, 0, 0, ..] | [0xff00..=0xffff, ..] => Scope::Nowhere,
        [0xfe80..=0xfebf, ..] => Scope::Link,
        [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => Scope::Site,
        // NAT64, of the well-known prefix and of one site.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => of_v4(embedded(high, low)),
        [0x64, 0xff9b, ..] => Scope::Site,
        // 6to4.
        [0x2002, high, low, ..] => of_v4(embedded(high, low)),
        [0x2000..=0x3fff, ..] => Scope::Public,
        _ => Scope::Nowhere,
    }
}

fn embedded(high: u16, low: u16) -> Ipv4Addr {
    let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
    Ipv4Addr::new(a, b, c, d)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn scope(text: &str) -> Option<Scope> {
        of(&text.parse().expect("an address"))
    }

    #[test]
    fn every_way_to_write_an_inner_address_is_an_inner_address() {
        for (ip, expected) in [
            ("127.0.0.1", Scope::Loopback),
            ("127.255.255.254", Scope::Loopback),
            ("::1", Scope::Loopback),
            ("::ffff:127.0.0.1", Scope::Loopback),
            ("64:ff9b::7f00:1", Scope::Loopback),
            ("2002:7f00:1::1", Scope::Loopback),
            ("169.254.169.254", Scope::Link),
            ("fe80::1", Scope::Link),
            ("10.0.0.1", Scope::Site),
            ("172.31.255.255", Scope::Site),
            ("192.168.0.1", Scope::Site),
            ("100.64.0.1", Scope::Site),
            ("100.127.255.255", Scope::Site),
            ("198.18.0.1", Scope::Site),
            ("fd00::1", Scope::Site),
            ("fec0::1", Scope::Site),
            ("64:ff9b::a00:1", Scope::Site),
            ("2002:c0a8:1::1", Scope::Site),
            ("0.0.0.0", Scope::Nowhere),
            ("0.1.2.3", Scope::Nowhere),
            ("::", Scope::Nowhere),
            ("::127.0.0.1", Scope::Nowhere),
            ("224.0.0.1", Scope::Nowhere),
            ("255.255.255.255", Scope::Nowhere),
            ("ff02::fb", Scope::Nowhere),
            ("4000::1", Scope::Nowhere),
            ("172.32.0.1", Scope::Public),
            ("100.128.0.1", Scope::Public),
            ("8.8.8.8", Scope::Public),
            ("2606:4700::1111", Scope::Public),
            ("64:ff9b::808:808", Scope::Public),
        ] {
            let found = match ip.parse().expect("an address") {
                IpAddr::V4(ip) => of_v4(ip),
                IpAddr::V6(ip) => of_v6(ip),
            };
            assert_eq!(found, expected, "{ip}");
        }
    }

    #[test]
    fn a_circuit_reaches_as_far_as_its_relay() {
        let relay = "12D3KooWJ1TsijH7H5F74hfAD5XishQz3sxrmAtVY37GtNd9CqYf";
        let through = |host: &str| scope(&format!("{host}/tcp/1/p2p/{relay}/p2p-circuit"));
        assert_eq!(through("/ip4/8.8.8.8"), Some(Scope::Public));
        assert_eq!(through("/ip4/127.0.0.1"), Some(Scope::Loopback));
        assert_eq!(
            scope("/ip4/8.8.8.8/tcp/1/ip4/10.0.0.1/tcp/22"),
            Some(Scope::Site),
            "whichever of them a transport may take"
        );
    }

    #[test]
    fn a_name_is_not_known_to_be_public() {
        for address in [
            "/dns4/localhost/tcp/22",
            "/dnsaddr/example.org",
            "/p2p-circuit",
        ] {
            assert_eq!(scope(address), None, "{address}");
            assert!(!is_public(&address.parse().expect("an address")));
        }
    }
}
