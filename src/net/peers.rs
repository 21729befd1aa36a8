//! The peers of `[[peer]]`: dialled, kept, and dialled again when they are lost.
#![allow(clippy::disallowed_methods, reason = "reads the clock")]

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt};
use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse, upgrade::DeniedUpgrade},
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, DialError,
        FromSwarm, NetworkBehaviour, NotifyHandler, SubstreamProtocol, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
        dial_opts::{DialOpts, PeerCondition},
        handler::ConnectionEvent,
    },
};
use rand::Rng;
use tokio::sync::watch;

use super::{Changes, changes};
use crate::config::Snapshot;

/// The first pause after a failed dial or a lost connection; it doubles with each failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause: a peer that comes back is connected within a minute or so, a dead one costs a dial a minute.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

pub struct Behaviour {
    live: watch::Receiver<Arc<Snapshot>>,
    changes: Changes,
    kept: BTreeMap<PeerId, Kept>,
    /// Connections to any peer: one that joins the file may be connected already.
    connections: BTreeMap<PeerId, BTreeSet<ConnectionId>>,
    actions: VecDeque<ToSwarm<Infallible, KeepAlive>>,
    wake: Option<(Instant, Pin<Box<tokio::time::Sleep>>)>,
}

struct Kept {
    addresses: Vec<Multiaddr>,
    failures: u32,
    /// No dial before this; `None` while one is under way.
    due: Option<Instant>,
}

/// Told to the handlers of a peer's connections: whether the file wants them kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive(bool);

impl Behaviour {
    pub fn new(live: watch::Receiver<Arc<Snapshot>>) -> Self {
        Self {
            changes: changes(live.clone()),
            live,
            kept: BTreeMap::new(),
            connections: BTreeMap::new(),
            actions: VecDeque::new(),
            wake: None,
        }
    }

    /// Takes over the peers of the current file. A peer that left the file keeps its connection for as long as
    /// something else uses it; a changed address is tried at once.
    fn follow_the_file(&mut self) {
        let config = self.live.borrow().config.clone();
        let now = Instant::now();
        let wanted: BTreeMap<PeerId, &[Multiaddr]> = config
            .peers
            .iter()
            .map(|peer| (peer.id, peer.addresses.as_slice()))
            .collect();
        let gone: Vec<PeerId> = self
            .kept
            .keys()
            .filter(|peer| !wanted.contains_key(peer))
            .copied()
            .collect();
        for peer in gone {
            self.kept.remove(&peer);
            self.tell_handlers(peer, KeepAlive(false));
        }
        for (peer, addresses) in wanted {
            if self
                .kept
                .get(&peer)
                .is_some_and(|kept| kept.addresses == addresses)
            {
                continue;
            }
            let due = self
                .kept
                .get(&peer)
                .is_none_or(|kept| kept.due.is_some())
                .then_some(now);
            self.kept.insert(
                peer,
                Kept {
                    addresses: addresses.to_vec(),
                    failures: 0,
                    due,
                },
            );
            self.tell_handlers(peer, KeepAlive(true));
        }
    }

    fn tell_handlers(&mut self, peer_id: PeerId, event: KeepAlive) {
        for connection in self.connections.get(&peer_id).into_iter().flatten() {
            let handler = NotifyHandler::One(*connection);
            self.actions.push_back(ToSwarm::NotifyHandler {
                peer_id,
                handler,
                event,
            });
        }
    }

    fn dial_what_is_due(&mut self) {
        let now = Instant::now();
        for (peer, kept) in &mut self.kept {
            if !self.connections.contains_key(peer) && kept.due.is_some_and(|due| due <= now) {
                kept.due = None;
                let dial = DialOpts::peer_id(*peer)
                    .addresses(kept.addresses.clone())
                    .condition(PeerCondition::DisconnectedAndNotDialing)
                    .build();
                self.actions.push_back(ToSwarm::Dial { opts: dial });
            }
        }
    }

    fn dial_failed(&mut self, peer: &PeerId, error: &DialError) {
        let Some(kept) = self.kept.get_mut(peer) else {
            return;
        };
        // Somebody else dials this peer; its outcome is ours too.
        if matches!(error, DialError::DialPeerConditionFalse(_))
            && self.connections.contains_key(peer)
        {
            return;
        }
        let pause = pause_after(kept.failures);
        kept.failures = kept.failures.saturating_add(1);
        kept.due = Some(Instant::now() + pause);
        tracing::debug!(%peer, cause = %error, failures = kept.failures, retry_in = ?pause, "peer not reached");
    }

    fn sleep_until_due(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let next = self
            .kept
            .iter()
            .filter(|(peer, _)| !self.connections.contains_key(peer))
            .filter_map(|(_, kept)| kept.due)
            .min();
        let Some(next) = next else {
            return Poll::Pending;
        };
        if self.wake.as_ref().is_none_or(|(set, _)| *set != next) {
            self.wake = Some((next, Box::pin(tokio::time::sleep_until(next.into()))));
        }
        self.wake
            .as_mut()
            .map_or(Poll::Pending, |(_, sleep)| sleep.poll_unpin(context))
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler {
            keep_alive: self.kept.contains_key(&peer),
        })
    }

    fn handle_pending_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        let kept = peer.and_then(|peer| self.kept.get(&peer));
        Ok(kept.map(|kept| kept.addresses.clone()).unwrap_or_default())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler {
            keep_alive: self.kept.contains_key(&peer),
        })
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(opened) => {
                self.connections
                    .entry(opened.peer_id)
                    .or_default()
                    .insert(opened.connection_id);
                if let Some(kept) = self.kept.get_mut(&opened.peer_id) {
                    kept.failures = 0;
                    kept.due = None;
                }
            }
            FromSwarm::ConnectionClosed(closed) => {
                if let Some(open) = self.connections.get_mut(&closed.peer_id) {
                    open.remove(&closed.connection_id);
                    if open.is_empty() {
                        self.connections.remove(&closed.peer_id);
                        if let Some(kept) = self.kept.get_mut(&closed.peer_id) {
                            kept.due = Some(Instant::now() + pause_after(0));
                        }
                    }
                }
            }
            FromSwarm::DialFailure(failed) => {
                if let Some(peer) = failed.peer_id {
                    self.dial_failed(&peer, failed.error);
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        while let Poll::Ready(Some(())) = self.changes.poll_next_unpin(context) {
            self.follow_the_file();
        }
        loop {
            self.dial_what_is_due();
            if let Some(action) = self.actions.pop_front() {
                return Poll::Ready(action);
            }
            if self.sleep_until_due(context).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

/// Doubles from [`FIRST_PAUSE`] to [`LONGEST_PAUSE`]; a random half of it keeps many nodes that lost the same peer from
/// dialling it at the same moment.
fn pause_after(failures: u32) -> Duration {
    let longest = FIRST_PAUSE
        .saturating_mul(1u32.checked_shl(failures).unwrap_or(u32::MAX))
        .min(LONGEST_PAUSE);
    longest.mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// Speaks no protocol; its only word is whether the connection is wanted.
pub struct Handler {
    keep_alive: bool,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = KeepAlive;
    type ToBehaviour = Infallible;
    type InboundProtocol = DeniedUpgrade;
    type OutboundProtocol = DeniedUpgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<DeniedUpgrade> {
        SubstreamProtocol::new(DeniedUpgrade, ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.keep_alive
    }

    fn on_behaviour_event(&mut self, KeepAlive(keep_alive): KeepAlive) {
        self.keep_alive = keep_alive;
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<DeniedUpgrade, (), Infallible>> {
        Poll::Pending
    }

    fn on_connection_event(&mut self, _: ConnectionEvent<'_, DeniedUpgrade, DeniedUpgrade>) {}
}
