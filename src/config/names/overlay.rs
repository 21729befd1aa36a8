//! Addresses and prefixes of the overlay.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;

use crate::config::literal::{Fault, Literal, literal};

/// An address with the length of its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InterfaceAddress(pub IpNet);

/// What the kernel takes as the name of a device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InterfaceName(pub String);

/// A network, without host bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix(pub IpNet);

/// An address alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HostAddress(pub IpAddr);

const CIDR: &str =
    "^([0-9]{1,3}(\\.[0-9]{1,3}){3}/[0-9]{1,2}|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*/[0-9]{1,3})$";

impl Literal for InterfaceAddress {
    const KIND: &'static str = "interface-address";
    const NOUN: &'static str = "an address with a prefix length";
    const EXPECTED: &'static str =
        "an address with the length of its prefix, such as \"10.1.0.11/24\" or \"fd00:1::11/64\"";
    const PATTERN: &'static str = CIDR;
}

impl FromStr for InterfaceAddress {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let Ok(address) = text.parse::<IpNet>() else {
            return Err(match text.parse::<IpAddr>() {
                Ok(IpAddr::V4(_)) => {
                    Fault::new("an address without a prefix length").fix(format!("{text}/24"))
                }
                Ok(IpAddr::V6(_)) => {
                    Fault::new("an address without a prefix length").fix(format!("{text}/64"))
                }
                Err(_) => Fault::new("not an address with a prefix length"),
            });
        };
        let host = address.addr();
        let narrow = address.prefix_len() + 1 < address.max_prefix_len();
        let broadcast = matches!(address, IpNet::V4(net) if host == IpAddr::V4(net.broadcast()));
        if narrow && (host == address.network() || broadcast) {
            return Err(Fault::new("the network itself, not an address in it"));
        }
        usable(host).map(|()| InterfaceAddress(address))
    }
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Literal for InterfaceName {
    const KIND: &'static str = "interface-name";
    const NOUN: &'static str = "the name of a device";
    const EXPECTED: &'static str = "the name of a device: 1 to 15 letters, digits, `_`, `-` or `.`";
    const PATTERN: &'static str = "^[A-Za-z0-9_.-]{1,15}$";
}

impl FromStr for InterfaceName {
    type Err = Fault;

    /// Linux takes more, shells and rules of firewalls do not.
    fn from_str(text: &str) -> Result<Self, Fault> {
        let fits =
            |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-' | '.');
        match text {
            "" => Err(Fault::new("empty")),
            "." | ".." => Err(Fault::new("a directory, not a device")),
            _ if text.len() > 15 => Err(Fault::new("longer than 15 characters")),
            _ if !text.chars().all(fits) => {
                Err(Fault::new("only letters, digits, `_`, `-` and `.`"))
            }
            _ => Ok(InterfaceName(text.to_owned())),
        }
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Literal for Prefix {
    const KIND: &'static str = "prefix";
    const NOUN: &'static str = "a network";
    const EXPECTED: &'static str = "a network such as \"192.168.10.0/24\" or \"fd00:2::/64\"";
    const PATTERN: &'static str = CIDR;
}

impl FromStr for Prefix {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let network: IpNet = text.parse().map_err(|_| Fault::new("not a CIDR"))?;
        if network.addr() != network.network() {
            return Err(
                Fault::new("bits are set beyond the prefix").fix(network.trunc().to_string())
            );
        }
        if network.prefix_len() == 0 {
            return Ok(Prefix(network));
        }
        usable(network.addr()).map(|()| Prefix(network))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Literal for HostAddress {
    const KIND: &'static str = "host-address";
    const NOUN: &'static str = "an IP address";
    const EXPECTED: &'static str = "an IP address such as \"10.1.0.20\"";
    const PATTERN: &'static str = "^([0-9]{1,3}(\\.[0-9]{1,3}){3}|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)$";
}

impl FromStr for HostAddress {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let address: IpAddr = text.parse().map_err(|_| match text.parse::<IpNet>() {
            Ok(network) => Fault::new("one address, not a network").fix(network.addr().to_string()),
            Err(_) => Fault::new("not an IP address"),
        })?;
        usable(address).map(|()| HostAddress(address))
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// No packet of the overlay has any other (`overlay::router`).
fn usable(address: IpAddr) -> Result<(), Fault> {
    let unusable = match address {
        IpAddr::V4(ip) => {
            ip.is_loopback()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_broadcast()
                || ip.octets()[0] == 0
        }
        IpAddr::V6(ip) => {
            ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_unicast_link_local()
                || ip.to_ipv4_mapped().is_some()
        }
    };
    if unusable {
        return Err(Fault::new(
            "loopback, link-local, multicast and unspecified addresses do not travel",
        ));
    }
    Ok(())
}

literal!(InterfaceAddress);
literal!(InterfaceName);
literal!(Prefix);
literal!(HostAddress);
