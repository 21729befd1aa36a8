//! The library's router: how it is set up, and how it is shown connections that begin and end when we say so.
#![allow(
    clippy::disallowed_methods,
    reason = "it looks whether there is a calendar"
)]

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{ConnectedPoint, Endpoint, transport::PortUse},
    gossipsub::{
        self, IdentityTransform, MessageAuthenticity, MessageId, TopicHash,
        TopicSubscriptionFilter, ValidationMode,
    },
    identity::Keypair,
    swarm::{
        ConnectionClosed, ConnectionHandler, ConnectionId, FromSwarm, NetworkBehaviour,
        behaviour::ConnectionEstablished,
    },
};

use super::handler::{Inner, Offer, Speech};

/// The library compares its whole read buffer with the limit of one message; the buffer may hold the beginning of the next.
const FRAME_SLACK: u64 = 64 * 1024;

/// Bytes of the largest message of a peer that has not proved itself and comes when others like it are here: a state of
/// 3,600 entries.
const SMALL_MESSAGE: u64 = 1024 * 1024;

/// Bytes of subscriptions and control messages in one frame. An EdgeVPN node may announce 5000 messages at once, which is
/// 230 KiB; twice that.
const CONTROL_BYTES: usize = 512 * 1024;

/// How long EdgeVPN remembers what it has seen.
const REMEMBERED: Duration = Duration::from_secs(120);

/// Messages waiting for one peer. The library's 5000 would hold 5000 states of the whole ledger for a peer that does not
/// read.
const WAITING_FOR_PEER: usize = 256;

/// The library's router with our filter.
pub type Router = gossipsub::Behaviour<IdentityTransform, Allowed>;

/// A handler of the library. Its behaviour now counts `link` among the connections of the peer.
pub fn mint(
    router: &mut Router,
    peer: PeerId,
    link: ConnectionId,
    dialled: bool,
) -> Option<Box<Inner>> {
    let nowhere = Multiaddr::empty();
    let handler = if dialled {
        let (role, port) = (Endpoint::Dialer, PortUse::Reuse);
        router.handle_established_outbound_connection(link, peer, &nowhere, role, port)
    } else {
        router.handle_established_inbound_connection(link, peer, &nowhere, &nowhere)
    };
    handler.ok().map(Box::new)
}

/// Makes the library say hello.
pub fn establish(router: &mut Router, peer_id: PeerId, connection_id: ConnectionId) {
    router.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
        peer_id,
        connection_id,
        endpoint: &nowhere(),
        failed_addresses: &[],
        other_established: 0,
    }));
}

/// Makes the library forget a connection, and with the last one the peer.
pub fn close(router: &mut Router, peer_id: PeerId, connection_id: ConnectionId, remaining: usize) {
    router.on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
        peer_id,
        connection_id,
        endpoint: &nowhere(),
        cause: None,
        remaining_established: remaining,
    }));
}

/// The library looks at addresses for its scores, which are not in use.
fn nowhere() -> ConnectedPoint {
    ConnectedPoint::Listener {
        local_addr: Multiaddr::empty(),
        send_back_addr: Multiaddr::empty(),
    }
}

/// What connections offer: streams for messages of any size, and streams for small ones only.
#[derive(Clone, Default)]
pub struct Offers {
    pub full: Offer,
    pub small: Offer,
}

/// A router for messages of `capacity` bytes, and what its connections offer.
pub fn make(keypair: &Keypair, capacity: u64, allowed: &Allowed) -> Option<(Router, Offers)> {
    if SystemTime::now() < SystemTime::UNIX_EPOCH {
        tracing::error!("the clock stands before 1970: no gossip until it is set");
        return None;
    }
    let made = router(keypair, capacity, allowed).and_then(|made| {
        // Two more, to see what a connection offers before there is one.
        let full = router(keypair, capacity, allowed)?;
        let small = router(keypair, SMALL_MESSAGE, allowed)?;
        Ok((made, speech(full, keypair), speech(small, keypair)))
    });
    match made {
        Ok((router, full, small)) => {
            let (full, small) = (full?, small?);
            let offers = Offers {
                small: Offer::new(small, full.clone()),
                full: Offer::new(full.clone(), full),
            };
            Some((router, offers))
        }
        Err(cause) => {
            tracing::error!(%cause, "no gossip");
            None
        }
    }
}

fn router(keypair: &Keypair, capacity: u64, allowed: &Allowed) -> Result<Router, String> {
    let frame = usize::try_from(capacity.saturating_add(FRAME_SLACK)).unwrap_or(usize::MAX);
    let config = gossipsub::ConfigBuilder::default()
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        .message_id_fn(message_id)
        .max_transmit_size(frame)
        .max_control_message_size(CONTROL_BYTES)
        .duplicate_cache_time(REMEMBERED)
        .flood_publish(true)
        .connection_handler_queue_len(WAITING_FOR_PEER)
        .heartbeat_initial_delay(Duration::from_secs(1))
        .build()
        .map_err(|cause| cause.to_string())?;
    let authenticity = MessageAuthenticity::Signed(keypair.clone());
    Router::new_with_subscription_filter(authenticity, config, allowed.clone())
        .map_err(str::to_owned)
}

fn speech(mut model: Router, keypair: &Keypair) -> Option<Speech> {
    let somebody = keypair.public().to_peer_id();
    let handler = mint(&mut model, somebody, ConnectionId::new_unchecked(0), false)?;
    let (upgrade, ()) = handler.listen_protocol().into_upgrade();
    upgrade.left()
}

/// Who has signed the message with this id.
pub fn author_of(id: &MessageId) -> Option<PeerId> {
    let (author, _) = id.0.split_last_chunk::<8>()?;
    PeerId::from_bytes(author).ok()
}

/// The id EdgeVPN gives a message: author and sequence number, so that ours are the same.
fn message_id(message: &gossipsub::Message) -> MessageId {
    let mut id = message.source.map_or_else(Vec::new, PeerId::to_bytes);
    id.extend(message.sequence_number.unwrap_or_default().to_be_bytes());
    MessageId(id)
}

/// The topics whose subscribers we remember: nobody may make us keep others.
#[derive(Clone, Default)]
pub struct Allowed(Arc<RwLock<HashSet<TopicHash>>>);

impl Allowed {
    pub fn set(&self, topics: HashSet<TopicHash>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = topics;
    }
}

impl TopicSubscriptionFilter for Allowed {
    fn can_subscribe(&mut self, topic: &TopicHash) -> bool {
        let allowed = self.0.read().unwrap_or_else(PoisonError::into_inner);
        allowed.contains(topic)
    }
}
