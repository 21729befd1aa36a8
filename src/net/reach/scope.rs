//! From where an address can be dialled, as far as it tells by itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libp2p::{Multiaddr, multiaddr::Protocol};

use crate::relay::upkeep::Scope;

/// A name counts as public: whoever writes one down expects others to resolve it.
pub fn scope_of(address: &Multiaddr) -> Scope {
    let public = match address.iter().next() {
        Some(Protocol::Ip4(ip)) => is_global(ip.into()),
        Some(Protocol::Ip6(ip)) => is_global(ip.into()),
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_)) => {
            true
        }
        _ => false,
    };
    if public {
        Scope::Public
    } else {
        Scope::Private
    }
}

/// Whether the address is neither private, shared (RFC 6598), link-local, loopback, multicast nor unspecified. Ranges for
/// documentation and benchmarks count as global: nobody announces them but laboratories.
pub fn is_global(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(ip) => is_global_v4(ip),
        IpAddr::V6(ip) => is_global_v6(ip),
    }
}

fn is_global_v4(ip: Ipv4Addr) -> bool {
    let [first, second, ..] = ip.octets();
    let shared = first == 100 && (64..128).contains(&second);
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_unspecified()
        || ip.is_multicast()
        || ip.is_broadcast()
        || first == 0
        || shared)
}

fn is_global_v6(ip: Ipv6Addr) -> bool {
    !(ip.is_loopback()
        || ip.is_unspecified()
        || ip.is_multicast()
        || ip.is_unique_local()
        || ip.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_ranges_are_not_global() {
        for ip in [
            "10.1.2.3",
            "192.168.0.1",
            "172.16.9.9",
            "127.0.0.1",
            "100.64.0.1",
            "169.254.1.1",
            "0.0.0.0",
            "224.0.0.251",
            "255.255.255.255",
            "::1",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(!is_global(ip.parse().expect("an address")), "{ip}");
        }
        for ip in [
            "203.0.113.9",
            "100.63.0.1",
            "100.128.0.1",
            "8.8.8.8",
            "2001:db8::1",
        ] {
            assert!(is_global(ip.parse().expect("an address")), "{ip}");
        }
    }

    #[test]
    fn a_name_is_public() {
        let address = "/dns4/hub.example.org/tcp/4501"
            .parse()
            .expect("an address");
        assert_eq!(scope_of(&address), Scope::Public);
        let address = "/ip4/192.168.1.2/tcp/4501".parse().expect("an address");
        assert_eq!(scope_of(&address), Scope::Private);
    }
}
