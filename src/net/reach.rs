//! How others reach this node: directly, through holes in a NAT, or through relays.
//!
//! ```text
//! observed (identify) ─→ autonat v1, v2 ─→ evidence ─→ reachability ─→ relay::upkeep ─→ reservations
//! mapping (UPnP) ──────→ confirmed addresses ─→ identify, relay
//! circuit ─→ punch (DCUtR) ─→ direct connection, proven ─→ the relayed one is closed
//! ```
//!
//! Here are the hands of [`crate::relay::upkeep`], which decides on which relays to hold reservations.
#![allow(clippy::disallowed_methods, reason = "gives the upkeep its clock")]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId, Swarm, autonat,
    core::transport::ListenerId,
    identify,
    multiaddr::Protocol,
    swarm::{
        ConnectionId, DialError, NetworkBehaviour,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::sync::watch;

use super::{
    gate::scope,
    relay::proto,
    streams::{self, Link},
};
use crate::{
    acl::Membership,
    config::Config,
    relay::upkeep::{Action, Failure, Reachability, Scope, Source, Terms, Upkeep},
};

pub mod claims;
pub mod dialback;
mod doubled;
mod evidence;
pub mod guarded;
pub mod mapping;
pub mod observed;
pub mod punch;
mod refusal;
mod report;

pub use evidence::Verdict;
pub use report::{Punched, Relay, Report};

use doubled::Doubled;
use evidence::Evidence;

/// Addresses of one discovered relay that are kept. A node has a few for each transport and interface.
const ADDRESSES: usize = 8;

/// Peers whose last hole punching is remembered; a report is for people.
const PUNCHES: usize = 128;

/// How often a relayed connection beside a direct one is looked at while something still runs on it.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

pub struct Reach {
    upkeep: Upkeep,
    /// `relay.peers`.
    fixed: HashMap<PeerId, Vec<Multiaddr>>,
    /// Of relays the upkeep knows.
    discovered: HashMap<PeerId, Vec<Multiaddr>>,
    /// One for each reservation that is held, asked for or given back.
    slots: HashMap<ListenerId, Slot>,
    evidence: Evidence,
    doubled: Doubled,
    punches: BTreeMap<PeerId, Punch>,
    streams: streams::Control,
    membership: watch::Receiver<Arc<Membership>>,
    due: Option<Instant>,
    /// Something has happened since the last [`act`](Self::act).
    stirred: bool,
}

/// How hole punching with a peer went the last time.
struct Punch {
    at: Instant,
    failure: Option<String>,
}

/// A listener on a circuit address, which is how the client asks for a reservation.
struct Slot {
    relay: PeerId,
    granted: bool,
    /// Not wanted any more. The client must not lose its listener before the relay has answered, so it goes then.
    leaving: bool,
    addresses: BTreeSet<Multiaddr>,
}

impl Reach {
    pub fn new(streams: streams::Control, membership: watch::Receiver<Arc<Membership>>) -> Self {
        Self {
            upkeep: Upkeep::new(rand::random(), Instant::now()),
            fixed: HashMap::new(),
            discovered: HashMap::new(),
            slots: HashMap::new(),
            evidence: Evidence::default(),
            doubled: Doubled::default(),
            punches: BTreeMap::new(),
            streams,
            membership,
            due: None,
            stirred: true,
        }
    }

    /// Takes over `[relay]`.
    pub fn follow(&mut self, config: &Config) {
        let client = &config.relay_client;
        self.fixed = client
            .peers
            .iter()
            .map(|peer| (peer.id, peer.addresses.clone()))
            .collect();
        let terms = Terms {
            enabled: client.enabled,
            fixed: client.peers.iter().map(|peer| peer.id).collect(),
            static_only: client.static_only,
            joining: config.network.is_some(),
        };
        self.upkeep.set_terms(terms, Instant::now());
        self.evidence.declare(&config.transport.announce);
        self.weigh();
        for peer in &client.peers {
            if self.is_direct(peer.id) {
                self.upkeep.handle_connected(&peer.id);
            }
        }
        self.stirred = true;
    }

    /// Waits until there are other members.
    pub async fn members_changed(&mut self) {
        if self.membership.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Relays of members are asked before others.
    pub fn follow_members(&mut self) {
        let membership = self.membership.borrow_and_update().clone();
        self.upkeep.set_sources(|peer| source(&membership, peer));
        self.stirred = true;
    }

    pub fn connected(&mut self, peer: PeerId, relayed: bool) {
        if !relayed {
            self.upkeep.handle_connected(&peer);
            self.stirred = true;
        }
    }

    pub fn disconnected(&mut self, peer: PeerId) {
        if !self.is_direct(peer) {
            self.upkeep.handle_disconnected(&peer, Instant::now());
            self.stirred = true;
        }
    }

    pub fn not_reached(&mut self, peer: PeerId) {
        if !self.is_direct(peer) {
            self.upkeep
                .handle_failed(&peer, Failure::Unreachable, Instant::now());
            self.stirred = true;
        }
    }

    /// A peer has said what it speaks and where it listens. One that offers to relay is a candidate if it can be dialled:
    /// this node has done so, or it has a public address.
    pub fn identified(&mut self, peer: PeerId, connection: ConnectionId, info: &identify::Info) {
        let links = self.streams.links(peer);
        let Some(link) = links
            .iter()
            .find(|link| link.connection == connection && !link.relayed)
        else {
            return;
        };
        if !info.protocols.contains(&proto::HOP) {
            self.upkeep.handle_not_a_relay(&peer);
            return;
        }
        let mut addresses: Vec<Multiaddr> = dialled(link).into_iter().collect();
        let public = info
            .listen_addrs
            .iter()
            .filter(|address| !is_relayed(address))
            .filter(|address| scope_of(address) == Scope::Public);
        addresses.extend(public.map(without_peer));
        addresses.truncate(ADDRESSES);
        let Some(scope) = addresses.iter().map(scope_of).min() else {
            return;
        };
        let source = source(&self.membership.borrow(), &peer);
        self.upkeep
            .handle_found(peer, source, scope, Instant::now());
        self.discovered.insert(peer, addresses);
        self.discovered.retain(|peer, _| self.upkeep.knows(peer));
        self.stirred = true;
    }

    /// The relay has granted or renewed.
    pub fn granted(&mut self, swarm: &mut Swarm<impl NetworkBehaviour>, relay: PeerId) {
        let waiting =
            |slot: &&mut (ListenerId, &mut Slot)| slot.1.relay == relay && !slot.1.granted;
        let mut slots: Vec<_> = self
            .slots
            .iter_mut()
            .map(|(id, slot)| (*id, slot))
            .collect();
        if let Some((id, slot)) = slots.iter_mut().find(waiting) {
            slot.granted = true;
            if slot.leaving {
                swarm.remove_listener(*id);
                return;
            }
        }
        self.upkeep.handle_accepted(&relay, Instant::now());
        self.stirred = true;
        tracing::debug!(%relay, "reservation held");
    }

    pub fn has_address(&mut self, listener: ListenerId, address: &Multiaddr) {
        if let Some(slot) = self.slots.get_mut(&listener) {
            slot.addresses.insert(address.clone());
        }
    }

    pub fn lost_address(&mut self, listener: ListenerId, address: &Multiaddr) {
        if let Some(slot) = self.slots.get_mut(&listener) {
            slot.addresses.remove(address);
        }
    }

    /// A listener has ended; if it stood for a reservation, that was refused or has been lost.
    pub fn listener_closed(&mut self, listener: ListenerId, reason: &Result<(), io::Error>) {
        let Some(slot) = self.slots.remove(&listener) else {
            return;
        };
        if slot.leaving {
            return;
        }
        let failure = match reason {
            Ok(()) => Failure::Lost,
            Err(error) => refusal::of(error),
        };
        tracing::info!(relay = %slot.relay, cause = failure.as_str(), "no reservation there");
        self.upkeep
            .handle_failed(&slot.relay, failure, Instant::now());
        self.stirred = true;
    }

    /// Time has passed.
    pub fn stir(&mut self) {
        self.stirred = true;
    }

    /// A direct connection carries answers.
    pub fn proven(&mut self, peer: PeerId, connection: ConnectionId) {
        self.doubled.proven(connection);
        if self.streams.links(peer).iter().any(|link| link.relayed) {
            self.doubled.look_at(peer);
            self.stirred = true;
        }
    }

    pub fn connection_closed(&mut self, connection: ConnectionId) {
        self.doubled.closed(connection);
    }

    /// Hole punching with a peer has ended.
    pub fn punched(&mut self, peer: PeerId, failure: Option<String>) {
        tracing::debug!(%peer, failure, "hole punching");
        let at = Instant::now();
        self.punches.insert(peer, Punch { at, failure });
        if self.punches.len() > PUNCHES
            && let Some(oldest) = self
                .punches
                .iter()
                .min_by_key(|(_, punch)| punch.at)
                .map(|(peer, _)| *peer)
        {
            self.punches.remove(&oldest);
        }
    }

    /// Somebody was asked to dial one of our addresses and has done so, or could not.
    pub fn tested(&mut self, address: &Multiaddr, server: PeerId, reached: bool) {
        let address = without_peer(address);
        self.evidence
            .tested(address, server, reached, Instant::now());
        self.weigh();
    }

    pub fn autonat_v1(&mut self, event: &autonat::Event) {
        match event {
            autonat::Event::OutboundProbe(autonat::OutboundProbeEvent::Response {
                peer, ..
            }) => self.evidence.answered_v1(*peer),
            autonat::Event::OutboundProbe(autonat::OutboundProbeEvent::Error {
                peer: Some(peer),
                error: autonat::OutboundProbeError::Response(_),
                ..
            }) => self.evidence.answered_v1(*peer),
            autonat::Event::StatusChanged { new, .. } => {
                let said = match new {
                    autonat::NatStatus::Public(_) => Reachability::Public,
                    autonat::NatStatus::Private => Reachability::Private,
                    autonat::NatStatus::Unknown => Reachability::Unknown,
                };
                self.evidence.v1_says(said, Instant::now());
                self.weigh();
            }
            autonat::Event::InboundProbe(_) | autonat::Event::OutboundProbe(_) => {}
        }
    }

    pub fn address_expired(&mut self, address: &Multiaddr) {
        self.evidence.expired(&without_peer(address));
        self.weigh();
    }

    fn weigh(&mut self) {
        let verdict = self.evidence.verdict();
        self.upkeep
            .set_reachability(verdict.reachability, Instant::now());
        self.stirred = true;
    }

    /// Does what the upkeep wants done, if something has happened.
    pub fn act(&mut self, swarm: &mut Swarm<impl NetworkBehaviour>) {
        if !std::mem::take(&mut self.stirred) {
            return;
        }
        let now = Instant::now();
        while let Some(action) = self.upkeep.poll(now) {
            match action {
                Action::Dial(relay) => self.dial(swarm, relay),
                Action::Reserve(relay) => self.reserve(swarm, relay),
                Action::Release(relay) => self.release(swarm, relay),
            }
        }
        for connection in self.doubled.retire(&self.streams) {
            tracing::debug!(%connection, "relayed connection closed for a direct one");
            swarm.close_connection(connection);
        }
        let look_again = (!self.doubled.is_empty()).then(|| now + LOOK_AGAIN);
        self.due = self
            .upkeep
            .next_deadline(now)
            .into_iter()
            .chain(look_again)
            .min();
    }

    /// When time alone gives the upkeep something to do. What it was after the last [`act`](Self::act): asked anew in
    /// between, a deadline that has just passed would be none.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    fn dial(&mut self, swarm: &mut Swarm<impl NetworkBehaviour>, relay: PeerId) {
        let known = self.fixed.get(&relay).or(self.discovered.get(&relay));
        let dial = DialOpts::peer_id(relay)
            .addresses(known.cloned().unwrap_or_default())
            .extend_addresses_through_behaviour()
            .condition(PeerCondition::NotDialing)
            .build();
        match swarm.dial(dial) {
            Ok(()) => {}
            // Somebody else dials it; the outcome is ours too.
            Err(DialError::DialPeerConditionFalse(_)) => {}
            Err(error) => {
                tracing::debug!(%relay, cause = %error, "relay not dialled");
                self.not_reached(relay);
            }
        }
    }

    fn reserve(&mut self, swarm: &mut Swarm<impl NetworkBehaviour>, relay: PeerId) {
        let listening = self
            .circuit_address(relay)
            .map(|address| swarm.listen_on(address));
        match listening {
            Some(Ok(listener)) => {
                let slot = Slot {
                    relay,
                    granted: false,
                    leaving: false,
                    addresses: BTreeSet::new(),
                };
                self.slots.insert(listener, slot);
            }
            Some(Err(_)) | None => {
                self.upkeep
                    .handle_failed(&relay, Failure::Unreachable, Instant::now());
            }
        }
    }

    fn release(&mut self, swarm: &mut Swarm<impl NetworkBehaviour>, relay: PeerId) {
        for (listener, slot) in &mut self.slots {
            if slot.relay == relay && !slot.leaving {
                slot.leaving = true;
                if slot.granted {
                    swarm.remove_listener(*listener);
                }
            }
        }
    }

    /// Where to listen for a reservation on `relay`. It is also what others are told to dial, so the address by which this
    /// node has reached the relay comes first.
    fn circuit_address(&self, relay: PeerId) -> Option<Multiaddr> {
        let links = self.streams.links(relay);
        let of_file = self.fixed.get(&relay).into_iter().flatten().cloned();
        let found = self.discovered.get(&relay).into_iter().flatten().cloned();
        let direct = links.iter().find_map(dialled);
        let address = direct
            .into_iter()
            .chain(of_file)
            .chain(found)
            .find(|address| !is_relayed(address))?;
        Some(
            without_peer(&address)
                .with(Protocol::P2p(relay))
                .with(Protocol::P2pCircuit),
        )
    }

    fn is_direct(&self, peer: PeerId) -> bool {
        self.streams.links(peer).iter().any(|link| !link.relayed)
    }
}

/// A name counts as public: whoever writes one down expects others to resolve it.
fn scope_of(address: &Multiaddr) -> Scope {
    match scope::of(address) {
        Some(scope::Scope::Public) | None => Scope::Public,
        Some(_) => Scope::Private,
    }
}

fn source(membership: &Membership, peer: &PeerId) -> Source {
    if membership.members.contains_key(peer) {
        Source::Member
    } else {
        Source::Found
    }
}

/// The address by which this node has reached the peer directly.
fn dialled(link: &Link) -> Option<Multiaddr> {
    (link.dialled && !link.relayed).then(|| without_peer(&link.address))
}

fn is_relayed(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

fn without_peer(address: &Multiaddr) -> Multiaddr {
    address
        .iter()
        .filter(|part| !matches!(part, Protocol::P2p(_)))
        .collect()
}
