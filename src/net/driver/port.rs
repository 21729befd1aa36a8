//! Ports: which listeners want the same one, and whether somebody else has it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use libp2p::{Multiaddr, multiaddr::Protocol};
use socket2::{Domain, Socket, Type};

use super::ListenError;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Port {
    Tcp(u16),
    Udp(u16),
}

/// Whether one socket on each of these addresses would want the same port of the same interface.
pub fn overlap(one: &Multiaddr, other: &Multiaddr) -> bool {
    let (Some((ip, port)), Some((other_ip, other_port))) = (port_of(one), port_of(other)) else {
        return false;
    };
    port == other_port
        && port.number() != 0
        && ip.is_ipv4() == other_ip.is_ipv4()
        && (ip == other_ip || ip.is_unspecified() || other_ip.is_unspecified())
}

/// Whether `asked` names the same interface as `address` and leaves the port to the system. A wildcard does not: its
/// socket has more addresses than one.
pub fn only_leaves_open(asked: &Multiaddr, address: &Multiaddr) -> bool {
    let (Some((asked, port)), Some((ip, _))) = (port_of(asked), port_of(address)) else {
        return false;
    };
    port.number() == 0 && asked == ip && !ip.is_unspecified()
}

/// Two listeners of this process can have the same TCP port while one replaces the other: libp2p listens with
/// `SO_REUSEPORT`. UDP sockets of QUIC cannot.
pub fn can_be_shared(address: &Multiaddr) -> bool {
    matches!(port_of(address), Some((_, Port::Tcp(_))))
}

/// Binds the address for a moment, without `SO_REUSEPORT`: with it two nodes of one user would share a port without a
/// word, and each get half of the connections. The system's own error is also clearer than what the transports make of it.
pub fn probe(address: &Multiaddr) -> Result<(), ListenError> {
    let Some((ip, port)) = port_of(address) else {
        return Ok(());
    };
    bind(SocketAddr::new(ip, port.number()), port).map_err(|error| {
        let address = address.clone();
        match error.kind() {
            io::ErrorKind::AddrInUse => ListenError::InUse { address },
            _ if lacks_family(&error, ip) => ListenError::NoFamily { address },
            io::ErrorKind::PermissionDenied => ListenError::Privileged { address },
            _ => ListenError::Bind {
                address,
                cause: error.to_string(),
            },
        }
    })
}

fn bind(address: SocketAddr, port: Port) -> io::Result<()> {
    let kind = match port {
        Port::Tcp(_) => Type::STREAM,
        Port::Udp(_) => Type::DGRAM,
    };
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if matches!(port, Port::Tcp(_)) {
        // Connections of a node that has just stopped do not count.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address.into())?;
    match port {
        Port::Tcp(_) => socket.listen(1),
        Port::Udp(_) => Ok(()),
    }
}

fn lacks_family(error: &io::Error, ip: IpAddr) -> bool {
    let is = |errno: rustix::io::Errno| error.raw_os_error() == Some(errno.raw_os_error());
    let everywhere = ip.is_unspecified() || ip.is_loopback();
    is(rustix::io::Errno::AFNOSUPPORT) || (everywhere && is(rustix::io::Errno::ADDRNOTAVAIL))
}

impl Port {
    fn number(self) -> u16 {
        match self {
            Port::Tcp(port) | Port::Udp(port) => port,
        }
    }
}

fn port_of(address: &Multiaddr) -> Option<(IpAddr, Port)> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => IpAddr::from(ip),
        Protocol::Ip6(ip) => IpAddr::from(ip),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some((ip, Port::Tcp(port))),
        Protocol::Udp(port) => Some((ip, Port::Udp(port))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Multiaddr {
        text.parse().expect("an address")
    }

    #[test]
    fn addresses_of_one_port_overlap_when_their_interfaces_do() {
        let narrow = address("/ip4/127.0.0.1/tcp/4501");
        assert!(overlap(&narrow, &address("/ip4/0.0.0.0/tcp/4501")));
        assert!(overlap(&narrow, &address("/ip4/127.0.0.1/tcp/4501/ws")));
        assert!(!overlap(&narrow, &address("/ip4/127.0.0.2/tcp/4501")));
        assert!(!overlap(&narrow, &address("/ip6/::/tcp/4501")));
        assert!(!overlap(
            &narrow,
            &address("/ip4/127.0.0.1/udp/4501/quic-v1")
        ));
        assert!(!overlap(
            &address("/ip4/0.0.0.0/tcp/0"),
            &address("/ip4/0.0.0.0/tcp/0")
        ));
    }

    #[test]
    fn a_port_of_the_systems_choice_can_be_written_down_later() {
        let bound = address("/ip4/127.0.0.1/udp/4501/quic-v1");
        assert!(only_leaves_open(
            &address("/ip4/127.0.0.1/udp/0/quic-v1"),
            &bound
        ));
        assert!(!only_leaves_open(
            &address("/ip4/0.0.0.0/udp/0/quic-v1"),
            &bound
        ));
        assert!(!only_leaves_open(
            &address("/ip4/0.0.0.0/udp/4501/quic-v1"),
            &bound
        ));
    }

    #[test]
    fn a_port_somebody_else_has_is_found_out() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("binds");
        let port = socket.local_addr().expect("bound").port();
        let taken = address(&format!("/ip4/127.0.0.1/udp/{port}/quic-v1"));
        assert!(matches!(probe(&taken), Err(ListenError::InUse { .. })));
        drop(socket);
        assert!(probe(&taken).is_ok());
    }
}
