//! The loop between the links and the rooms.
#![allow(clippy::disallowed_methods, reason = "reads the clock")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use futures::{
    StreamExt,
    stream::{BoxStream, SelectAll},
};
use libp2p::PeerId;
use tokio::sync::{mpsc, watch};

use super::{
    Event, Wanted,
    links::{Interfaces, Sockets},
    packet::Service,
    room::{Action, LinkId, Presence, Room},
};

/// After a change of interfaces the kernel reports several more; this is when it has come to rest.
const SETTLE: Duration = Duration::from_millis(200);

/// Where the kernel does not say which interfaces there are, it is asked again after this.
const RETRY: Duration = Duration::from_secs(60);

/// Packets read in [`PERIOD`]. A link of a thousand nodes sends less; a flood costs what reading these costs, the rest is
/// dropped by the kernel.
const PACE: u32 = 200;
const PERIOD: Duration = Duration::from_millis(100);

/// A host with more links that we listen on speaks on the first ones.
const MOST_LINKS: usize = 64;

/// Speaks for the networks of `wanted` until the behaviour is gone.
pub async fn run(local: PeerId, mut wanted: watch::Receiver<Wanted>, events: mpsc::Sender<Event>) {
    loop {
        // While mDNS is off there is no socket, not even towards the kernel.
        if wanted
            .wait_for(|wanted| !wanted.tags.is_empty())
            .await
            .is_err()
        {
            return;
        }
        let interfaces = match Interfaces::watch() {
            Ok(interfaces) => interfaces,
            Err(cause) => {
                tracing::warn!(%cause, "cannot see network interfaces: nobody is found by mDNS");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let mut links = Links {
            local,
            interfaces,
            sockets: BTreeMap::new(),
            packets: SelectAll::new(),
            rooms: BTreeMap::new(),
            left_behind: BTreeSet::new(),
        };
        if links.serve(&mut wanted, &events).await.is_none() {
            return;
        }
    }
}

struct Links {
    local: PeerId,
    interfaces: Interfaces,
    sockets: BTreeMap<LinkId, (BTreeSet<IpAddr>, Sockets)>,
    packets: SelectAll<BoxStream<'static, (LinkId, Vec<u8>)>>,
    rooms: BTreeMap<String, Room>,
    /// Found in rooms that were left.
    left_behind: BTreeSet<PeerId>,
}

impl Links {
    /// Returns when mDNS is switched off; `None` when the behaviour is gone.
    async fn serve(
        &mut self,
        wanted: &mut watch::Receiver<Wanted>,
        events: &mpsc::Sender<Event>,
    ) -> Option<()> {
        let mut now = wanted.borrow_and_update().clone();
        self.take_over(&now).await;
        let mut budget = PACE;
        let mut refill = Instant::now() + PERIOD;
        loop {
            self.carry_out(events).await?;
            let due = self.rooms.values().filter_map(Room::next_deadline).min();
            tokio::select! {
                changed = wanted.changed() => {
                    changed.ok()?;
                    now = wanted.borrow_and_update().clone();
                    self.take_over(&now).await;
                    if now.tags.is_empty() {
                        self.carry_out(events).await?;
                        return Some(());
                    }
                }
                () = self.interfaces.changed() => {
                    tokio::time::sleep(SETTLE).await;
                    // A membership does not survive that its interface loses its last address, even for a moment.
                    self.sockets.clear();
                    self.take_over(&now).await;
                }
                Some((link, packet)) = self.packets.next(), if budget > 0 => {
                    budget = budget.saturating_sub(1);
                    for room in self.rooms.values_mut() {
                        room.receive(link, &packet, Instant::now());
                    }
                }
                () = tokio::time::sleep_until(refill.into()), if budget < PACE => {
                    budget = PACE;
                    refill = Instant::now() + PERIOD;
                }
                () = sleep_until(due) => {}
                () = events.closed() => return None,
            }
        }
    }

    /// Opens and closes sockets and rooms as `wanted` says.
    async fn take_over(&mut self, wanted: &Wanted) {
        let leaving: Vec<String> = self
            .rooms
            .keys()
            .filter(|tag| !wanted.tags.contains(*tag))
            .cloned()
            .collect();
        for tag in leaving {
            let Some(room) = self.rooms.remove(&tag) else {
                continue;
            };
            for (link, packet) in room.goodbyes() {
                self.send(link, &packet);
            }
            self.left_behind.extend(room.found());
        }
        for tag in &wanted.tags {
            if !self.rooms.contains_key(tag) {
                match Service::of_tag(tag) {
                    Ok(service) => {
                        let room = Room::new(service, self.local, &mut rand::rng());
                        self.rooms.insert(tag.clone(), room);
                    }
                    Err(cause) => tracing::warn!(%cause, "mDNS left out"),
                }
            }
        }
        let presences = self.open_links(wanted).await;
        for room in self.rooms.values_mut() {
            room.set_links(presences.clone(), Instant::now(), &mut rand::rng());
        }
    }

    /// A link is spoken on if this node listens there.
    async fn open_links(&mut self, wanted: &Wanted) -> BTreeMap<LinkId, Presence> {
        let addresses = match self.interfaces.addresses().await {
            Ok(addresses) => addresses,
            Err(cause) => {
                tracing::warn!(%cause, "cannot list network interfaces: nobody is found by mDNS");
                return BTreeMap::new();
            }
        };
        let mut presences = BTreeMap::new();
        for (link, hosts) in addresses {
            let reachable: Vec<_> = wanted
                .addresses
                .iter()
                .filter(|address| super::host_of(address).is_some_and(|ip| hosts.contains(&ip)))
                .cloned()
                .collect();
            if reachable.is_empty() || presences.len() >= MOST_LINKS {
                continue;
            }
            let open = self.sockets.get(&link).is_some_and(|(of, _)| *of == hosts);
            if !open {
                match Sockets::open(link, &hosts) {
                    Ok(sockets) => drop(self.sockets.insert(link, (hosts.clone(), sockets))),
                    Err(cause) => {
                        tracing::debug!(link, %cause, "no mDNS on this link");
                        continue;
                    }
                }
            }
            let presence = Presence {
                loopback: hosts.iter().any(IpAddr::is_loopback),
                hosts: hosts.into_iter().collect(),
                addresses: reachable,
            };
            presences.insert(link, presence);
        }
        self.sockets.retain(|link, _| presences.contains_key(link));
        self.packets = self
            .sockets
            .values()
            .map(|(_, sockets)| sockets.packets().boxed())
            .collect();
        presences
    }

    async fn carry_out(&mut self, events: &mpsc::Sender<Event>) -> Option<()> {
        let mut tags: Vec<String> = self.rooms.keys().cloned().collect();
        while let Some(tag) = tags.last() {
            let action = self
                .rooms
                .get_mut(tag)
                .and_then(|room| room.poll(Instant::now()));
            match action {
                None => drop(tags.pop()),
                Some(Action::Send { link, packet }) => self.send(link, &packet),
                Some(Action::Found { peer, addresses }) => {
                    events.send(Event::Found { peer, addresses }).await.ok()?;
                }
                Some(Action::Lost(peer)) => drop(self.left_behind.insert(peer)),
            }
        }
        for peer in std::mem::take(&mut self.left_behind) {
            let elsewhere = self
                .rooms
                .values()
                .any(|room| room.found().any(|found| *found == peer));
            if !elsewhere {
                events.send(Event::Lost(peer)).await.ok()?;
            }
        }
        Some(())
    }

    fn send(&self, link: LinkId, packet: &[u8]) {
        if let Some((_, sockets)) = self.sockets.get(&link) {
            sockets.send(packet);
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => futures::future::pending().await,
    }
}
