//! What the rest of the program may ask of the network: a handle to the one task that drives the swarm.

use std::net::IpAddr;

use futures::{StreamExt, stream::BoxStream};
use libp2p::{Multiaddr, multiaddr::Protocol};
use tokio::sync::watch;

mod behaviour;
mod boxed;
mod discovery;
mod driver;
pub mod exchange;
mod gate;
pub mod gossip;
pub mod heard;
pub mod identity;
mod mdns;
mod peers;
pub mod reach;
pub mod relay;
pub mod streams;
mod transport;

pub use discovery::Dht;
pub use driver::{Handle, ListenError, NetReport, StartError, start};
pub use heard::Heard;
pub use peers::{Counts, Found};

/// Ready once at first and then once for each new value; several at once count as one. Ends with the sender.
pub(crate) type Changes = BoxStream<'static, ()>;

pub(crate) fn changes<T: Send + Sync + 'static>(mut live: watch::Receiver<T>) -> Changes {
    live.mark_changed();
    futures::stream::unfold(live, async |mut live| {
        live.changed().await.ok()?;
        Some(((), live))
    })
    .fuse()
    .boxed()
}

/// The address bytes come from. Behind a circuit that is unknown: the address names the relay.
pub(crate) fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    if address.iter().any(|part| part == Protocol::P2pCircuit) {
        return None;
    }
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(IpAddr::from(ip).to_canonical()),
        _ => None,
    }
}
