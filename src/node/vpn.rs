//! `[vpn]` at work: the device with its addresses, the pump, and who has which address.
//!
//! What can fail is done in [`Vpn::prepare`]: a new device is opened beside the old one, new addresses and routes are added
//! to those there are. What is gone goes after the commit.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use ipnet::IpNet;
use tokio::sync::{Mutex as AsyncMutex, watch};

use super::{
    forward::{Count, Forward, PeerReport, Reach},
    sync::Machines,
};
use crate::{
    api::{VpnPeer, VpnReport, VpnTraffic},
    config::{self, Snapshot},
    device::{
        self, Device,
        interface::{Interface, InterfaceError, Settings},
    },
    id::PeerId,
    net,
    overlay::router::Drop as Dropped,
    task::{self, Task},
};

#[derive(Debug, thiserror::Error)]
pub enum VpnError {
    #[error(transparent)]
    Device(#[from] device::OpenError),
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    #[error("cannot use the UDP port {port} for direct datagrams; change `vpn.port`")]
    Port { port: u16, source: io::Error },
}

/// The overlay of this node; off until a configuration turns it on.
pub struct Vpn {
    net: net::Handle,
    running: Option<Running>,
    /// The pump that [`follow`] feeds.
    pump: watch::Sender<Option<Arc<Forward>>>,
    /// Reported beside the pump: whose addresses were claimed twice.
    conflicts: Arc<Mutex<Vec<String>>>,
    _follow: Task,
}

/// A device with its interface and pump.
struct Running {
    settings: config::Vpn,
    device: Arc<Device>,
    interface: Arc<AsyncMutex<Interface>>,
    forward: Arc<Forward>,
    /// The last change of the interface, on its way.
    _settling: Option<Task>,
}

/// What a configuration needs, open and followed by nobody. Dropped, it is undone.
pub enum Prepared {
    Keep,
    Off,
    /// A device of its own.
    New(Box<Opened>),
    /// The same device with other addresses, MTU or routes.
    Changed(Extended),
}

pub struct Opened {
    settings: config::Vpn,
    device: Arc<Device>,
    interface: Interface,
    forward: Option<Arc<Forward>>,
}

/// An interface that has both the old and the new settings.
pub struct Extended {
    settings: config::Vpn,
    interface: Arc<AsyncMutex<Interface>>,
    back: Settings,
    committed: bool,
}

impl Vpn {
    pub fn new(
        net: net::Handle,
        live: watch::Receiver<Arc<Snapshot>>,
        machines: watch::Receiver<Arc<Machines>>,
    ) -> Self {
        let (pump, pumped) = watch::channel(None);
        let conflicts = Arc::<Mutex<Vec<String>>>::default();
        let follow = follow(net.local_peer, pumped, live, machines, conflicts.clone());
        Self {
            net,
            running: None,
            pump,
            conflicts,
            _follow: task::spawn("overlay routes", follow),
        }
    }

    /// Opens and sets what `wanted` needs beside what there is.
    pub async fn prepare(&self, wanted: &config::Vpn) -> Result<Prepared, VpnError> {
        let running = self.running.as_ref();
        if !wanted.enabled {
            return Ok(match running {
                Some(_) => Prepared::Off,
                None => Prepared::Keep,
            });
        }
        if let Some(running) = running
            && running.settings.interface == wanted.interface
            && running.settings.port == wanted.port
        {
            return if running.settings == *wanted {
                Ok(Prepared::Keep)
            } else {
                extend(running, wanted).await
            };
        }
        let same_port = running.filter(|running| running.settings.port == wanted.port);
        let forward = match same_port {
            Some(_) => None,
            None => Some(self.pump_on(wanted.port)?),
        };
        let same_device = running.filter(|running| running.settings.interface == wanted.interface);
        let device = match same_device {
            Some(running) => running.device.clone(),
            None => Arc::new(device::open(&wanted.interface)?),
        };
        let mut interface = Interface::of(device.name()).await?;
        interface.change(&settings(wanted)).await?;
        Ok(Prepared::New(Box::new(Opened {
            settings: wanted.clone(),
            device,
            interface,
            forward,
        })))
    }

    fn pump_on(&self, port: u16) -> Result<Arc<Forward>, VpnError> {
        let streams = self.net.streams().clone();
        Forward::start(self.net.local_peer, streams, Some(port))
            .map(Arc::new)
            .map_err(|source| VpnError::Port { port, source })
    }

    /// Puts what was prepared in place; what is gone closes by itself.
    pub fn commit(&mut self, prepared: Prepared) {
        match prepared {
            Prepared::Keep => {}
            Prepared::Off => {
                self.running = None;
                self.pump.send_replace(None);
            }
            Prepared::New(opened) => {
                let Opened {
                    settings,
                    device,
                    interface,
                    forward,
                } = *opened;
                let kept = self.running.take().map(|running| running.forward);
                // Without a new pump there is an old one.
                let Some(forward) = forward.or(kept) else {
                    return;
                };
                forward.set_device(Some(device.clone()));
                tracing::info!(
                    interface = device.name(),
                    udp_segments = device.takes().udp,
                    tcp_segments = device.takes().tcp,
                    port = forward.direct_port(),
                    "overlay device is up"
                );
                self.running = Some(Running {
                    settings,
                    device,
                    interface: Arc::new(AsyncMutex::new(interface)),
                    forward: forward.clone(),
                    _settling: None,
                });
                self.pump.send_replace(Some(forward));
            }
            Prepared::Changed(mut extended) => {
                extended.committed = true;
                let Some(running) = &mut self.running else {
                    return;
                };
                running.settings = extended.settings.clone();
                let (interface, wanted) =
                    (extended.interface.clone(), settings(&extended.settings));
                running._settling = Some(task::spawn("overlay interface", async move {
                    if let Err(error) = interface.lock().await.change(&wanted).await {
                        tracing::error!(cause = %error, "the interface keeps what it no longer should have");
                    }
                }));
            }
        }
    }

    /// `None`: `vpn.enabled` is off.
    pub fn report(&self, machines: &Machines) -> Option<VpnReport> {
        let running = self.running.as_ref()?;
        let pump = running.forward.report();
        let peer = |peer: &PeerReport| {
            let hosts = machines.iter().filter(|(_, owner)| **owner == peer.peer);
            VpnPeer {
                peer: peer.peer.to_string(),
                addresses: hosts.map(|(host, _)| host.to_string()).collect(),
                carrier: peer.carrier.as_str().to_owned(),
                remote: peer.remote.map(|remote| remote.to_string()),
                rtt_ms: peer.rtt_micros.map(|rtt| f64::from(rtt) / 1e3),
                datagram: peer.datagram.map(|bytes| bytes as u64),
                sent: traffic(peer.sent),
                received: traffic(peer.received),
                queued_bytes: peer.queued_bytes as u64,
                dropped: by_label(&peer.dropped),
            }
        };
        Some(VpnReport {
            interface: running.device.name().to_owned(),
            addresses: running
                .settings
                .addresses
                .iter()
                .map(IpNet::to_string)
                .collect(),
            mtu: running.settings.mtu,
            port: running.forward.direct_port(),
            peers: pump.peers.iter().map(peer).collect(),
            dropped: by_label(&pump.dropped),
            conflicts: self
                .conflicts
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        })
    }
}

fn traffic(count: Count) -> VpnTraffic {
    VpnTraffic {
        packets: count.packets,
        bytes: count.bytes,
    }
}

fn by_label(dropped: &[(Dropped, u64)]) -> BTreeMap<String, u64> {
    let labels = dropped
        .iter()
        .map(|(reason, count)| (reason.label().to_owned(), *count));
    labels.collect()
}

/// Adds what is new to the interface.
async fn extend(running: &Running, wanted: &config::Vpn) -> Result<Prepared, VpnError> {
    let mut interface = running.interface.lock().await;
    let back = interface.settings().clone();
    let both = back.with(&settings(wanted));
    interface.change(&both).await?;
    Ok(Prepared::Changed(Extended {
        settings: wanted.clone(),
        interface: running.interface.clone(),
        back,
        committed: false,
    }))
}

impl Drop for Extended {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        let (interface, back) = (self.interface.clone(), std::mem::take(&mut self.back));
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            if let Err(error) = interface.lock().await.change(&back).await {
                tracing::error!(cause = %error, "cannot undo a change of the interface");
            }
        });
    }
}

fn settings(vpn: &config::Vpn) -> Settings {
    Settings {
        mtu: u32::from(vpn.mtu),
        addresses: vpn.addresses.clone(),
        routes: vpn.routes.iter().map(|route| route.to).collect(),
    }
}

/// Tells the pump who has which address, as file and ledger have it now.
async fn follow(
    local: PeerId,
    mut pump: watch::Receiver<Option<Arc<Forward>>>,
    mut live: watch::Receiver<Arc<Snapshot>>,
    mut machines: watch::Receiver<Arc<Machines>>,
    conflicts: Arc<Mutex<Vec<String>>>,
) {
    loop {
        {
            let vpn = live.borrow_and_update().config.vpn.clone();
            let machines = machines.borrow_and_update().clone();
            if let Some(forward) = &*pump.borrow_and_update() {
                let (own, reach, twice) = directory(local, &vpn, &machines);
                forward.publish(&own, &vpn.advertise, &reach);
                let mut conflicts = conflicts.lock().unwrap_or_else(PoisonError::into_inner);
                if *conflicts != twice {
                    twice
                        .iter()
                        .for_each(|conflict| tracing::error!("{conflict}"));
                    *conflicts = twice;
                }
            }
        }
        tokio::select! {
            changed = pump.changed() => if changed.is_err() { return },
            changed = live.changed() => if changed.is_err() { return },
            changed = machines.changed() => if changed.is_err() { return },
        }
    }
}

/// Our own addresses, whom the others belong to, and which of ours somebody else has.
fn directory(
    local: PeerId,
    vpn: &config::Vpn,
    machines: &Machines,
) -> (Vec<IpAddr>, Vec<Reach>, Vec<String>) {
    let mut own = Vec::new();
    let mut twice = Vec::new();
    for address in &vpn.addresses {
        match machines.get(&address.addr()) {
            Some(holder) if *holder != local => twice.push(format!(
                "the overlay address {} belongs to {holder} already; this node does not use it: change `vpn.addresses`",
                address.addr()
            )),
            _ => own.push(address.addr()),
        }
    }
    let mut prefixes: BTreeMap<PeerId, Vec<IpNet>> = BTreeMap::new();
    let others = machines
        .iter()
        .filter(|(host, peer)| **peer != local && !own.contains(host));
    for (host, peer) in others {
        prefixes.entry(*peer).or_default().push(IpNet::from(*host));
    }
    for route in &vpn.routes {
        if let Some(of_peer) = machines
            .get(&route.via)
            .and_then(|peer| prefixes.get_mut(peer))
        {
            of_peer.push(route.to);
        }
    }
    let reach = prefixes
        .into_iter()
        .map(|(peer, prefixes)| Reach { peer, prefixes });
    (own, reach.collect(), twice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vpn(addresses: &[&str]) -> config::Vpn {
        config::Vpn {
            enabled: true,
            interface: "edgevpn0".to_owned(),
            addresses: addresses
                .iter()
                .map(|address| address.parse().expect("an address"))
                .collect(),
            mtu: 1_420,
            port: 0,
            routes: vec![config::VpnRoute {
                to: "192.168.7.0/24".parse().expect("a prefix"),
                via: "10.1.0.2".parse().expect("an address"),
            }],
            advertise: Vec::new(),
        }
    }

    #[test]
    fn a_route_leads_to_whoever_has_its_gateway_and_an_address_in_use_is_not_ours() {
        let (me, other) = (PeerId::random(), PeerId::random());
        let host = |text: &str| text.parse::<IpAddr>().expect("an address");
        let mut machines = Machines::from([(host("10.1.0.1"), me), (host("10.1.0.2"), other)]);
        let (own, reach, twice) = directory(me, &vpn(&["10.1.0.1/24"]), &machines);
        assert_eq!((own, twice.len()), (vec![host("10.1.0.1")], 0));
        let prefixes =
            ["10.1.0.2/32", "192.168.7.0/24"].map(|prefix| prefix.parse().expect("a prefix"));
        let expected = Reach {
            peer: other,
            prefixes: prefixes.to_vec(),
        };
        assert_eq!(reach, [expected]);
        machines.insert(host("10.1.0.1"), other);
        let (own, _, twice) = directory(me, &vpn(&["10.1.0.1/24"]), &machines);
        assert!(own.is_empty());
        assert!(twice[0].contains("10.1.0.1 belongs to"), "{twice:?}");
    }
}
