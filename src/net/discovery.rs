//! Members find each other through a distributed hash table: each announces itself under a key that only holders of the
//! token can compute, and that changes with time.
//!
//! When and under which keys is decided by the [`schedule`]; libp2p's Kademlia asks and answers; the [`store`] holds what
//! others entrust to this node. What strangers say passes through here before anybody is dialled.
#![allow(clippy::disallowed_methods, reason = "reads both clocks")]

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

use futures::{FutureExt, StreamExt};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol,
    core::{Endpoint, transport::PortUse},
    identify,
    kad::{
        self, BucketInserts, GetProvidersOk, InboundRequest, Mode, QueryId, QueryResult, RecordKey,
        StoreInserts,
    },
    multiaddr::Protocol,
    swarm::{
        ConnectionDenied, ConnectionId, ExternalAddrExpired, ExternalAddresses, FromSwarm,
        ListenAddresses, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
        behaviour::ExternalAddrConfirmed,
    },
};
use rand::Rng;
use tokio::sync::watch;

use super::{
    Changes, changes,
    gate::scope::{self, Scope},
};
use crate::{
    config::{Config, Peer, Snapshot},
    id::UnixTime,
    wire::Token,
};
use schedule::{Key, Schedule, Task};
use store::Store;

mod schedule;
mod store;

/// Go servers answer with up to twenty peers and all their addresses, which can be more than the 16 KiB libp2p would take.
const LARGEST_MESSAGE: usize = 64 * 1024;

/// Addresses of one server put into the routing table, and so told to others.
const MOST_SERVER_ADDRESSES: usize = 5;

/// Peers found and not heard of since are forgotten after this many intervals, and there are never more of them.
const FOUND_INTERVALS: u32 = 4;
const MOST_FOUND: usize = 256;

/// The routing table is refreshed this often.
const REFRESH: Duration = Duration::from_secs(10 * 60);

pub struct Behaviour {
    kad: kad::Behaviour<Store>,
    live: watch::Receiver<Arc<Snapshot>>,
    changes: Changes,
    /// `None` while the DHT is not used: nothing is asked, answered or told.
    terms: Option<Terms>,
    listening: ListenAddresses,
    external: ExternalAddresses,
    /// The addresses under which this node announces itself.
    told: BTreeSet<Multiaddr>,
    queries: HashMap<QueryId, Query>,
    found: BTreeMap<PeerId, Instant>,
    connected: BTreeMap<PeerId, BTreeSet<ConnectionId>>,
    events: VecDeque<Event>,
    looked: Option<Instant>,
    refreshed: Option<Instant>,
    wake: Option<(Instant, Pin<Box<tokio::time::Sleep>>)>,
}

/// What the file says about the DHT, while it is used.
struct Terms {
    tokens: Vec<Arc<Token>>,
    interval: Duration,
    bootstrap: BTreeMap<PeerId, Vec<Multiaddr>>,
    /// Whether the operator has named the entrances: a DHT of his own.
    private: bool,
    /// Where this DHT lives: strangers may send us to these scopes and no others.
    scopes: BTreeSet<Scope>,
    schedule: Schedule,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Query {
    Announce(Key),
    Look(Key),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody has announced itself as a member; nobody vouches for it. The addresses are ones a stranger may name.
    Found {
        peer: PeerId,
        addresses: Vec<Multiaddr>,
    },
    /// It has not announced itself for a long time.
    Lost(PeerId),
}

/// What `status` says about the DHT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dht {
    /// Whether this node answers others; if not, it only asks.
    pub server: bool,
    /// Servers in the routing table.
    pub routing: usize,
    /// Keys and provider records kept for others.
    pub keys_held: usize,
    pub records_held: usize,
    /// Addresses announced.
    pub addresses: usize,
    pub next_announce: Duration,
    /// How long ago the last look has ended.
    pub last_look: Option<Duration>,
}

impl Behaviour {
    pub fn new(local: PeerId, live: watch::Receiver<Arc<Snapshot>>) -> Self {
        let mut config = kad::Config::new(kad::PROTOCOL_NAME);
        config
            .set_record_filtering(StoreInserts::FilterBoth)
            .set_kbucket_inserts(BucketInserts::Manual)
            .set_max_packet_size(LARGEST_MESSAGE)
            // The schedule does these.
            .set_periodic_bootstrap_interval(None)
            .set_provider_publication_interval(None)
            .set_publication_interval(None)
            .set_replication_interval(None);
        let mut kad = kad::Behaviour::with_config(local, Store::new(local), config);
        kad.set_mode(Some(Mode::Client));
        Self {
            kad,
            changes: changes(live.clone()),
            live,
            terms: None,
            listening: ListenAddresses::default(),
            external: ExternalAddresses::default(),
            told: BTreeSet::new(),
            queries: HashMap::new(),
            found: BTreeMap::new(),
            connected: BTreeMap::new(),
            events: VecDeque::new(),
            looked: None,
            refreshed: None,
            wake: None,
        }
    }

    /// A peer has said which protocols it speaks and where it listens: one that serves the DHT may join the routing table.
    pub fn identified(&mut self, peer: PeerId, info: &identify::Info) {
        let Some(terms) = &mut self.terms else {
            return;
        };
        if !serves(&info.protocols) {
            return;
        }
        let named = terms.bootstrap.get(&peer);
        let own_words = info
            .listen_addrs
            .iter()
            .filter(|address| is_direct(address) && is_in(&terms.scopes, address));
        let addresses: Vec<Multiaddr> = named
            .into_iter()
            .flatten()
            .chain(own_words)
            .take(MOST_SERVER_ADDRESSES)
            .cloned()
            .collect();
        for address in addresses {
            self.kad.add_address(&peer, address);
        }
        if named.is_some() {
            // An entrance that was away has forgotten us.
            let now = Instant::now();
            terms.schedule.announce_soon(now);
            terms.schedule.look_soon(now);
        }
    }

    pub fn report(&mut self) -> Option<Dht> {
        let now = Instant::now();
        let (keys_held, records_held) = self.kad.store_mut().held();
        let routing = self.routing();
        let terms = self.terms.as_ref()?;
        Some(Dht {
            server: self.kad.mode() == Mode::Server,
            routing,
            keys_held,
            records_held,
            addresses: self.told.len(),
            next_announce: terms.schedule.next_announce().duration_since(now),
            last_look: self.looked.map(|looked| now.duration_since(looked)),
        })
    }

    fn routing(&mut self) -> usize {
        self.kad.kbuckets().map(|bucket| bucket.num_entries()).sum()
    }

    fn follow_the_file(&mut self) {
        let config = self.live.borrow().config.clone();
        let wanted = Terms::of(&config);
        let same = match (&self.terms, &wanted) {
            (None, None) => true,
            (Some(now), Some(wanted)) => now.equals(wanted),
            (None, Some(_)) | (Some(_), None) => false,
        };
        if same {
            return;
        }
        let stays = self
            .terms
            .as_ref()
            .zip(wanted.as_ref())
            .is_some_and(|(now, wanted)| now.bootstrap == wanted.bootstrap);
        if !stays {
            self.leave();
        }
        // Members of a network this node has left are nobody to it; the others are found again at once.
        self.events
            .extend(std::mem::take(&mut self.found).into_keys().map(Event::Lost));
        self.terms = wanted;
        self.tell_where_we_are();
    }

    /// Forgets one DHT before another is entered, or none.
    fn leave(&mut self) {
        for (id, _) in std::mem::take(&mut self.queries) {
            if let Some(mut query) = self.kad.query_mut(&id) {
                query.finish();
            }
        }
        let servers: Vec<PeerId> = self
            .kad
            .kbuckets()
            .flat_map(|bucket| {
                bucket
                    .iter()
                    .map(|entry| *entry.node.key.preimage())
                    .collect::<Vec<_>>()
            })
            .collect();
        for server in servers {
            self.kad.remove_peer(&server);
        }
        self.kad.store_mut().clear();
        self.refreshed = None;
    }

    /// Announces the addresses others can use, and serves if there are such.
    fn tell_where_we_are(&mut self) {
        let wanted = self
            .terms
            .as_ref()
            .map(|terms| terms.addresses(&self.listening, &self.external))
            .unwrap_or_default();
        let serves = self.terms.is_some() && wanted.iter().any(is_direct);
        let mode = if serves { Mode::Server } else { Mode::Client };
        if self.kad.mode() != mode {
            self.kad.set_mode(Some(mode));
        }
        if wanted == self.told {
            return;
        }
        for addr in self.told.difference(&wanted) {
            let expired = FromSwarm::ExternalAddrExpired(ExternalAddrExpired { addr });
            self.kad.on_swarm_event(expired);
        }
        for addr in wanted.difference(&self.told) {
            let confirmed = FromSwarm::ExternalAddrConfirmed(ExternalAddrConfirmed { addr });
            self.kad.on_swarm_event(confirmed);
        }
        self.told = wanted;
        if let Some(terms) = &mut self.terms {
            terms.schedule.announce_soon(Instant::now());
        }
    }

    /// Starts what is due. Without a server to ask, everything stays due.
    fn act(&mut self) {
        if self.terms.is_none() || self.routing() == 0 {
            return;
        }
        let (now, calendar) = (Instant::now(), calendar());
        if self
            .refreshed
            .is_none_or(|refreshed| refreshed + REFRESH <= now)
        {
            self.refreshed = Some(now);
            // Fails without servers only.
            let _ = self.kad.bootstrap();
        }
        while let Some(task) = self
            .terms
            .as_mut()
            .and_then(|terms| terms.schedule.poll(now, calendar))
        {
            match task {
                Task::Announce(keys) => self.announce(&keys, calendar),
                Task::Look(keys) => keys.into_iter().for_each(|key| self.look(key)),
            }
        }
        self.forget_silent(now);
    }

    fn announce(&mut self, keys: &BTreeSet<Key>, calendar: UnixTime) {
        if let Some(terms) = &self.terms {
            let ours = schedule::keys_of(&terms.tokens, calendar);
            let ours = ours.iter().map(RecordKey::new).collect();
            self.kad.store_mut().set_ours(ours);
        }
        let old: Vec<RecordKey> = {
            use kad::store::RecordStore;
            let wanted: HashSet<RecordKey> = keys.iter().map(RecordKey::new).collect();
            let provided = self.kad.store_mut().provided();
            let old = provided.filter(|record| !wanted.contains(&record.key));
            old.map(|record| record.key.clone()).collect()
        };
        for key in &old {
            self.kad.stop_providing(key);
        }
        // A server of the public DHT refuses a provider without addresses.
        if self.told.is_empty() {
            return;
        }
        for key in keys {
            if !self
                .queries
                .values()
                .any(|query| *query == Query::Announce(*key))
            {
                match self.kad.start_providing(RecordKey::new(key)) {
                    Ok(id) => drop(self.queries.insert(id, Query::Announce(*key))),
                    Err(cause) => tracing::warn!(%cause, "this node is not announced in the DHT"),
                }
            }
        }
    }

    fn look(&mut self, key: Key) {
        if !self
            .queries
            .values()
            .any(|query| *query == Query::Look(key))
        {
            let id = self.kad.get_providers(RecordKey::new(&key));
            self.queries.insert(id, Query::Look(key));
        }
    }

    fn forget_silent(&mut self, now: Instant) {
        let Some(terms) = &self.terms else { return };
        let patience = terms.interval.saturating_mul(FOUND_INTERVALS);
        let events = &mut self.events;
        let connected = &self.connected;
        self.found.retain(|peer, heard| {
            let keep = *heard + patience > now || connected.contains_key(peer);
            if !keep {
                events.push_back(Event::Lost(*peer));
            }
            keep
        });
    }

    fn notice(&mut self, event: kad::Event) {
        match event {
            kad::Event::InboundRequest {
                request:
                    InboundRequest::AddProvider {
                        record: Some(record),
                    },
            } if self.kad.mode() == Mode::Server => {
                self.kad.store_mut().entrust(record, Instant::now());
            }
            kad::Event::OutboundQueryProgressed {
                id, result, step, ..
            } => {
                if let QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders {
                    key,
                    providers,
                })) = &result
                {
                    for provider in providers {
                        self.found(key, *provider);
                    }
                }
                if let QueryResult::GetProviders(Err(error)) = &result {
                    tracing::debug!(cause = %error, "look-up in the DHT cut short");
                }
                if step.last && matches!(self.queries.remove(&id), Some(Query::Look(_))) {
                    self.looked = Some(Instant::now());
                }
            }
            _ => {}
        }
    }

    /// Its addresses are known while the query runs, or to our own store.
    fn found(&mut self, key: &RecordKey, peer: PeerId) {
        let now = Instant::now();
        let Some(terms) = &mut self.terms else { return };
        if self.connected.contains_key(&peer) {
            terms.schedule.found(now);
        }
        let mut addresses = self
            .kad
            .handle_pending_outbound_connection(
                ConnectionId::new_unchecked(0),
                Some(peer),
                &[],
                Endpoint::Dialer,
            )
            .unwrap_or_default();
        addresses.extend(self.kad.store_mut().addresses(key, &peer));
        for address in &mut addresses {
            if address.iter().last() == Some(Protocol::P2p(peer)) && is_direct(address) {
                address.pop();
            }
        }
        addresses.retain(|address| is_in(&terms.scopes, address));
        if addresses.is_empty() && !self.connected.contains_key(&peer) {
            tracing::debug!(%peer, "found in the DHT without an address to dial");
            return;
        }
        if self.found.len() >= MOST_FOUND && !self.found.contains_key(&peer) {
            return;
        }
        self.found.insert(peer, now);
        self.events.push_back(Event::Found { peer, addresses });
    }

    fn sleep_until_due(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let ready = self.routing() > 0;
        let Some(terms) = self.terms.as_ref().filter(|_| ready) else {
            return Poll::Pending;
        };
        let next = terms.schedule.next_deadline(Instant::now(), calendar());
        if self.wake.as_ref().is_none_or(|(set, _)| *set != next) {
            self.wake = Some((next, Box::pin(tokio::time::sleep_until(next.into()))));
        }
        self.wake
            .as_mut()
            .map_or(Poll::Pending, |(_, sleep)| sleep.poll_unpin(context))
    }
}

impl Terms {
    fn of(config: &Config) -> Option<Self> {
        let network = config.network.as_ref()?;
        if !config.discovery.dht {
            return None;
        }
        let tokens: Vec<Arc<Token>> = std::iter::once(&network.token)
            .chain(&network.accepted)
            .cloned()
            .collect();
        let bootstrap: BTreeMap<PeerId, Vec<Multiaddr>> = bootstrap_peers(config)
            .iter()
            .map(|peer| (peer.id, peer.addresses.clone()))
            .collect();
        let private = !config.discovery.bootstrap_peers.is_empty();
        let interval = config.discovery.dht_interval;
        let share = rand::rng().random_range(0.0..=1.0);
        Some(Self {
            schedule: Schedule::new(tokens.clone(), interval, share, Instant::now()),
            tokens,
            interval,
            bootstrap,
            private,
            scopes: scopes(config),
        })
    }

    fn equals(&self, other: &Self) -> bool {
        self.tokens == other.tokens
            && self.interval == other.interval
            && self.bootstrap == other.bootstrap
    }

    /// Confirmed addresses; in a DHT of the operator's own, also where this node listens inside of it.
    fn addresses(
        &self,
        listening: &ListenAddresses,
        external: &ExternalAddresses,
    ) -> BTreeSet<Multiaddr> {
        let own = listening
            .iter()
            .filter(|address| self.private && is_in(&self.scopes, address));
        external.iter().chain(own).cloned().collect()
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = THandler<kad::Behaviour<Store>>;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.kad
            .handle_established_inbound_connection(connection, peer, local, remote)
    }

    /// Of what strangers have told Kademlia, only what they may make us dial.
    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        let Some(terms) = &self.terms else {
            return Ok(Vec::new());
        };
        let mut known = self
            .kad
            .handle_pending_outbound_connection(connection, peer, addresses, role)?;
        known.retain(|address| is_in(&terms.scopes, address));
        Ok(known)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.kad
            .handle_established_outbound_connection(connection, peer, address, role, port_use)
    }

    /// Kademlia is told which addresses to announce in [`Self::tell_where_we_are`] and not here.
    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        let moved = self.listening.on_swarm_event(&event) | self.external.on_swarm_event(&event);
        if moved {
            self.tell_where_we_are();
        }
        match &event {
            FromSwarm::NewListenAddr(_)
            | FromSwarm::ExpiredListenAddr(_)
            | FromSwarm::ExternalAddrConfirmed(_)
            | FromSwarm::ExternalAddrExpired(_) => return,
            FromSwarm::ConnectionEstablished(opened) => {
                self.connected
                    .entry(opened.peer_id)
                    .or_default()
                    .insert(opened.connection_id);
                if let Some(terms) = &mut self.terms
                    && self.found.contains_key(&opened.peer_id)
                {
                    terms.schedule.found(Instant::now());
                }
            }
            FromSwarm::ConnectionClosed(closed) => {
                self.lost_connection(closed.peer_id, closed.connection_id)
            }
            _ => {}
        }
        self.kad.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        self.kad
            .on_connection_handler_event(peer, connection, event);
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        while let Poll::Ready(Some(())) = self.changes.poll_next_unpin(context) {
            self.follow_the_file();
        }
        loop {
            self.act();
            match self.kad.poll(context) {
                Poll::Ready(ToSwarm::GenerateEvent(event)) => {
                    self.notice(event);
                    continue;
                }
                // Where servers live is nobody else's business.
                Poll::Ready(ToSwarm::NewExternalAddrOfPeer { .. }) => continue,
                Poll::Ready(ToSwarm::Dial { .. }) if self.terms.is_none() => continue,
                Poll::Ready(ToSwarm::Dial { opts }) => return Poll::Ready(ToSwarm::Dial { opts }),
                Poll::Ready(ToSwarm::NotifyHandler {
                    peer_id,
                    handler,
                    event,
                }) => {
                    return Poll::Ready(ToSwarm::NotifyHandler {
                        peer_id,
                        handler,
                        event,
                    });
                }
                // Kademlia asks for nothing else.
                Poll::Ready(_) => continue,
                Poll::Pending => {}
            }
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(ToSwarm::GenerateEvent(event));
            }
            if self.sleep_until_due(context).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl Behaviour {
    fn lost_connection(&mut self, peer: PeerId, connection: ConnectionId) {
        let Some(open) = self.connected.get_mut(&peer) else {
            return;
        };
        open.remove(&connection);
        if !open.is_empty() {
            return;
        }
        self.connected.remove(&peer);
        let alone = !self
            .found
            .keys()
            .any(|peer| self.connected.contains_key(peer));
        if self.found.contains_key(&peer)
            && alone
            && let Some(terms) = &mut self.terms
        {
            terms.schedule.look_soon(Instant::now());
        }
    }
}

fn calendar() -> UnixTime {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map(UnixTime)
        .unwrap_or_default()
}

fn serves(protocols: &[StreamProtocol]) -> bool {
    protocols.contains(&kad::PROTOCOL_NAME)
}

fn is_direct(address: &Multiaddr) -> bool {
    !address.iter().any(|part| part == Protocol::P2pCircuit)
}

fn is_in(scopes: &BTreeSet<Scope>, address: &Multiaddr) -> bool {
    scope::of(address).is_some_and(|scope| scopes.contains(&scope))
}

/// The entrances of the public IPFS network, which EdgeVPN nodes use too.
const PUBLIC: [(&str, &str); 5] = [
    (
        "/dnsaddr/bootstrap.libp2p.io",
        "QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN",
    ),
    (
        "/dnsaddr/bootstrap.libp2p.io",
        "QmQCU2EcMqAqQPR2i9bChDtGNJchTbq5TbXJJ16u19uLTa",
    ),
    (
        "/dnsaddr/bootstrap.libp2p.io",
        "QmbLHAnMoJPWSCR5Zhtx6BHJX9KiKNN6tpvbUcqanj75Nb",
    ),
    (
        "/dnsaddr/bootstrap.libp2p.io",
        "QmcZf59bWwK5XFi76CZX8cbJ4BhTzzA3gU1ZjYZcYW3dwt",
    ),
    (
        "/ip4/104.131.131.82/tcp/4001",
        "QmaCpDMGvV2BGHeYERUEnRQAwe3N8SzbUtfsmvsqQLuvuJ",
    ),
];

/// Through whom this node enters the DHT: nobody unless it looks for members there.
pub fn bootstrap_peers(config: &Config) -> Cow<'_, [Peer]> {
    let discovery = &config.discovery;
    if config.network.is_none() || !discovery.dht {
        Cow::Borrowed(&[])
    } else if discovery.bootstrap_peers.is_empty() {
        Cow::Owned(public())
    } else {
        Cow::Borrowed(&discovery.bootstrap_peers)
    }
}

/// Where strangers may send this node: everywhere in public, and where the entrances are that the operator has named.
pub fn scopes(config: &Config) -> BTreeSet<Scope> {
    let mut scopes = BTreeSet::from([Scope::Public]);
    let discovery = &config.discovery;
    if config.network.is_some() && discovery.dht {
        let named = discovery.bootstrap_peers.iter();
        scopes.extend(named.flat_map(|peer| &peer.addresses).filter_map(scope::of));
        scopes.remove(&Scope::Nowhere);
    }
    scopes
}

fn public() -> Vec<Peer> {
    PUBLIC
        .iter()
        .filter_map(|(address, id)| {
            Some(Peer {
                id: id.parse().ok()?,
                addresses: vec![address.parse::<Multiaddr>().ok()?],
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_entrances_are_read() {
        assert_eq!(public().len(), PUBLIC.len());
    }
}
