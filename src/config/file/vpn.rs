//! `[vpn]`: carrying IP packets between members.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use validator::Validate;

use crate::config::names::{HostAddress, InterfaceAddress, InterfaceName, Prefix};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct VpnFile {
    /// Carry IP packets between this machine and the members of the network, over a TUN device. It needs a network, an
    /// address, and CAP_NET_ADMIN.
    ///
    /// Example: `enabled = true`.
    #[schemars(extend("x-edgevpn-reload" = "rebind"))]
    pub enabled: bool,

    /// Name of the TUN device, at most 15 characters. It is made when the node starts and gone when it ends.
    ///
    /// Example: `interface = "office0"`.
    #[schemars(extend("x-edgevpn-reload" = "rebind"))]
    pub interface: InterfaceName,

    /// Addresses of this machine in the overlay, IPv4 or IPv6, each with the length of the overlay's prefix. Other members
    /// learn them from the ledger; an address belongs to one member.
    ///
    /// Example: `addresses = ["10.1.0.11/24", "fd00:1::11/64"]`.
    #[validate(length(max = 16))]
    #[schemars(extend("x-edgevpn-reload" = "live", "uniqueItems" = true))]
    pub addresses: Vec<InterfaceAddress>,

    /// Largest packet on the device, in bytes. 1420 fits a sealed datagram into 1500 bytes of Ethernet, over IPv6 too; IPv6 needs
    /// 1280 at least.
    ///
    /// Example: `mtu = 1380`.
    #[validate(range(min = 1280, max = 9000))]
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub mtu: u16,

    /// UDP port of direct datagrams between members, beside the ports of `transport.listen`. 0 lets the system choose; a fixed
    /// one can be opened in a firewall.
    ///
    /// Example: `port = 4502`.
    #[validate(range(min = 0, max = 65535))]
    #[schemars(extend("x-edgevpn-reload" = "rebind"))]
    pub port: u16,

    /// Prefixes behind other members: packets to `to` go to the member with the address `via`, and packets from there are
    /// taken from it. That member names the prefix in its `advertise`.
    #[validate(length(max = 1000))]
    #[validate(nested)]
    pub routes: Vec<RouteFile>,

    /// Prefixes behind this machine that it routes for the others. The machine forwards packets itself: see
    /// `net.ipv4.ip_forward`.
    ///
    /// Example: `advertise = ["192.168.10.0/24"]`.
    #[validate(length(max = 1000))]
    #[schemars(extend("x-edgevpn-reload" = "live", "uniqueItems" = true))]
    pub advertise: Vec<Prefix>,
}

impl Default for VpnFile {
    fn default() -> Self {
        Self {
            enabled: false,
            interface: InterfaceName("edgevpn0".to_owned()),
            addresses: Vec::new(),
            mtu: 1420,
            port: 0,
            routes: Vec::new(),
            advertise: Vec::new(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct RouteFile {
    /// The prefix. Each is named once.
    ///
    /// Example: `to = "192.168.10.0/24"`.
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub to: Prefix,

    /// Overlay address of the member behind which it is.
    ///
    /// Example: `via = "10.1.0.20"`.
    #[schemars(extend("x-edgevpn-reload" = "live"))]
    pub via: HostAddress,
}
