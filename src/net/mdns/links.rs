//! The links of this host: which there are, and sockets that speak multicast DNS on one of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::Arc,
};

use futures::{Stream, StreamExt, TryStreamExt, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::NetlinkMessage,
    packet_route::{RouteNetlinkMessage, address::AddressAttribute},
    sys::SocketAddr as NetlinkAddress,
};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockRef, Socket, Type};
use tokio::net::UdpSocket;

use super::room::LinkId;
use crate::task::{self, Task};

/// <https://www.rfc-editor.org/rfc/rfc6762#section-3>
const PORT: u16 = 5353;
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);

/// Only packets of the same link arrive with this, and RFC 6762 §11 wants it.
const TTL: u32 = 255;

/// Larger packets are cut, and then not read as DNS. RFC 6762 §17 allows no more.
const LARGEST_PACKET: usize = 9000;

/// What the kernel says about interfaces.
pub struct Interfaces {
    handle: Handle,
    news: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, NetlinkAddress)>,
    _connection: Task,
}

impl Interfaces {
    pub fn watch() -> io::Result<Self> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ];
        let (connection, handle, news) = rtnetlink::new_multicast_connection(&groups)?;
        Ok(Self {
            handle,
            news,
            _connection: task::spawn("mdns, interfaces", connection),
        })
    }

    /// Waits until an interface or an address has come or gone. Several at once count as one.
    pub async fn changed(&mut self) {
        if self.news.next().await.is_none() {
            futures::future::pending::<()>().await;
        }
        while self.news.try_recv().is_ok() {}
    }

    /// The addresses of every interface.
    pub async fn addresses(&self) -> Result<BTreeMap<LinkId, BTreeSet<IpAddr>>, rtnetlink::Error> {
        let mut links: BTreeMap<LinkId, BTreeSet<IpAddr>> = BTreeMap::new();
        let mut messages = self.handle.address().get().execute();
        while let Some(message) = messages.try_next().await? {
            // On a point-to-point interface `Address` is the other end, and `Local` this one.
            let local = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Local(ip) => Some(*ip),
                    _ => None,
                });
            let address = local.or_else(|| {
                message
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        AddressAttribute::Address(ip) => Some(*ip),
                        _ => None,
                    })
            });
            links
                .entry(message.header.index)
                .or_default()
                .extend(address);
        }
        Ok(links)
    }
}

/// One link, in the families it has.
pub struct Sockets {
    v4: Option<Arc<UdpSocket>>,
    v6: Option<Arc<UdpSocket>>,
    link: LinkId,
}

impl Sockets {
    /// Joins the groups on the link. Fails if no family can be used.
    pub fn open(link: LinkId, addresses: &BTreeSet<IpAddr>) -> io::Result<Self> {
        let v4 = addresses.iter().find_map(|address| match address {
            IpAddr::V4(ip) => Some(open_v4(link, *ip)),
            IpAddr::V6(_) => None,
        });
        let v6 = addresses.iter().any(IpAddr::is_ipv6).then(|| open_v6(link));
        let (v4, v6) = match (v4, v6) {
            (Some(Err(error)), None | Some(Err(_))) | (None, Some(Err(error))) => {
                return Err(error);
            }
            (v4, v6) => (v4.and_then(Result::ok), v6.and_then(Result::ok)),
        };
        Ok(Self {
            v4: v4.map(Arc::new),
            v6: v6.map(Arc::new),
            link,
        })
    }

    /// Sends to everybody on the link. What the kernel does not take is lost, as any datagram may be.
    pub fn send(&self, packet: &[u8]) {
        let group_v6 = SocketAddrV6::new(GROUP_V6, PORT, 0, self.link);
        let groups = [
            (&self.v4, SocketAddr::from((GROUP_V4, PORT))),
            (&self.v6, SocketAddr::V6(group_v6)),
        ];
        for (socket, group) in groups {
            let Some(socket) = socket else { continue };
            // Past tokio, which believes a new socket not to be writable until it has polled it.
            if let Err(cause) = SockRef::from(&**socket).send_to(packet, &group.into()) {
                tracing::debug!(link = self.link, %group, %cause, "mDNS packet not sent");
            }
        }
    }

    /// What arrives on the link, for as long as its sockets work.
    pub fn packets(&self) -> impl Stream<Item = (LinkId, Vec<u8>)> + Send + use<> {
        let link = self.link;
        let sockets = [self.v4.clone(), self.v6.clone()];
        let streams = sockets.into_iter().flatten().map(|socket| {
            let packets = futures::stream::unfold(socket, async |socket| {
                let mut packet = vec![0; LARGEST_PACKET];
                let (length, _) = socket.recv_from(&mut packet).await.ok()?;
                packet.truncate(length);
                Some((packet, socket))
            });
            packets.boxed()
        });
        futures::stream::select_all(streams).map(move |packet| (link, packet))
    }
}

fn open_v4(link: LinkId, address: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = shared_socket(Domain::IPV4)?;
    socket.set_multicast_all_v4(false)?;
    socket.set_multicast_loop_v4(true)?;
    socket.set_multicast_ttl_v4(TTL)?;
    socket.set_multicast_if_v4(&address)?;
    // Bound to the group, it takes no answer away that is meant for the resolver of this host.
    socket.bind(&SocketAddr::from((GROUP_V4, PORT)).into())?;
    socket.join_multicast_v4_n(&GROUP_V4, &InterfaceIndexOrAddress::Index(link))?;
    UdpSocket::from_std(socket.into())
}

fn open_v6(link: LinkId) -> io::Result<UdpSocket> {
    let socket = shared_socket(Domain::IPV6)?;
    socket.set_only_v6(true)?;
    socket.set_multicast_all_v6(false)?;
    socket.set_multicast_loop_v6(true)?;
    socket.set_multicast_hops_v6(TTL)?;
    socket.set_multicast_if_v6(link)?;
    let group = SocketAddr::V6(SocketAddrV6::new(GROUP_V6, PORT, 0, link));
    socket.bind(&group.into())?;
    socket.join_multicast_v6(&GROUP_V6, link)?;
    UdpSocket::from_std(socket.into())
}

/// Other programs and other nodes of this host speak mDNS too.
fn shared_socket(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    Ok(socket)
}
