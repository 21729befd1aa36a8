//! Hole punching (DCUtR) as the file and the addresses allow it.
//!
//! The other side names the addresses to dial. A stranger's must be public; a member's or a configured peer's may lie in
//! private networks, and on this host only if nothing of this node listens elsewhere.

use std::{collections::HashSet, sync::Arc};

use libp2p::{
    Multiaddr, PeerId, dcutr,
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, ListenAddresses, THandler, ToSwarm,
        derive_prelude::Either, dummy,
    },
};
use tokio::sync::watch;

use super::guarded::{Guard, Wish};
use crate::{
    acl::Membership,
    config::Snapshot,
    net::gate::scope::{self, Scope},
};

/// Addresses one attempt may dial; more are an attempt at something else.
const MOST_ADDRESSES: usize = 32;

pub struct Punch {
    live: watch::Receiver<Arc<Snapshot>>,
    membership: watch::Receiver<Arc<Membership>>,
    listening: ListenAddresses,
    /// Dials of this behaviour that the swarm has not asked about yet.
    dials: HashSet<ConnectionId>,
}

#[derive(Debug, thiserror::Error)]
#[error("{peer} asks for a dial to {address}, where it cannot be meant")]
struct NotThere {
    peer: PeerId,
    address: Multiaddr,
}

impl Punch {
    pub fn new(
        live: watch::Receiver<Arc<Snapshot>>,
        membership: watch::Receiver<Arc<Membership>>,
    ) -> Self {
        Self {
            live,
            membership,
            listening: ListenAddresses::default(),
            dials: HashSet::new(),
        }
    }

    /// The narrowest scope in which `peer` may send this node.
    fn allowed(&self, peer: &PeerId) -> Scope {
        let config = self.live.borrow().config.clone();
        let mut configured = config.peers.iter().chain(&config.relay_client.peers);
        let known = self.membership.borrow().members.contains_key(peer)
            || configured.any(|configured| configured.id == *peer);
        let only_here = self
            .listening
            .iter()
            .all(|address| scope::of(address).is_none_or(|scope| scope <= Scope::Loopback));
        match (known, only_here) {
            (true, true) => Scope::Loopback,
            (true, false) => Scope::Link,
            (false, _) => Scope::Public,
        }
    }
}

impl Guard<dcutr::Behaviour> for Punch {
    fn hear(&mut self, event: &FromSwarm<'_>) {
        self.listening.on_swarm_event(event);
    }

    fn pass(&mut self, wish: Wish<dcutr::Behaviour>) -> Option<Wish<dcutr::Behaviour>> {
        if let ToSwarm::Dial { opts } = &wish {
            self.dials.insert(opts.connection_id());
        }
        Some(wish)
    }

    fn may_dial(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
    ) -> Result<(), ConnectionDenied> {
        let (true, Some(peer)) = (self.dials.remove(&connection), peer) else {
            return Ok(());
        };
        let allowed = self.allowed(&peer);
        let forbidden = addresses
            .iter()
            .find(|address| scope::of(address).is_none_or(|scope| scope < allowed))
            .or_else(|| addresses.get(MOST_ADDRESSES));
        match forbidden {
            None => Ok(()),
            Some(address) => Err(ConnectionDenied::new(NotThere {
                peer,
                address: address.clone(),
            })),
        }
    }

    /// With `transport.hole_punch = false` a relayed connection stays what it is.
    fn stand_in(&mut self, relayed: bool) -> Option<THandler<dcutr::Behaviour>> {
        let wanted = self.live.borrow().config.transport.hole_punch;
        (relayed && !wanted).then_some(Either::Right(dummy::ConnectionHandler))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Config, Peer},
        id::Generation,
    };

    fn punch(known: PeerId) -> Punch {
        let mut config = Config::empty();
        config.peers.push(Peer {
            id: known,
            addresses: Vec::new(),
        });
        let snapshot = Snapshot {
            generation: Generation::default(),
            config: Arc::new(config),
        };
        let (_, live) = watch::channel(Arc::new(snapshot));
        let (_, membership) = watch::channel(Arc::default());
        let mut punch = Punch::new(live, membership);
        punch.hear(&FromSwarm::NewListenAddr(libp2p::swarm::NewListenAddr {
            listener_id: libp2p::core::transport::ListenerId::next(),
            addr: &"/ip4/192.168.1.9/tcp/1".parse().expect("an address"),
        }));
        punch
    }

    fn dials(punch: &mut Punch, peer: PeerId, address: &str) -> bool {
        let connection = ConnectionId::new_unchecked(1);
        punch.dials.insert(connection);
        let public = "/ip4/203.0.113.7/tcp/1".parse().expect("an address");
        let address = address.parse().expect("an address");
        punch
            .may_dial(connection, Some(peer), &[public, address])
            .is_ok()
    }

    #[test]
    fn a_stranger_cannot_send_us_into_our_own_network() {
        let (known, stranger) = (PeerId::random(), PeerId::random());
        let mut punch = punch(known);
        assert!(dials(&mut punch, stranger, "/ip4/203.0.113.8/tcp/1"));
        assert!(!dials(&mut punch, stranger, "/ip4/192.168.1.1/tcp/22"));
        assert!(!dials(
            &mut punch,
            stranger,
            "/dns4/router.example.org/tcp/1"
        ));
        assert!(dials(&mut punch, known, "/ip4/192.168.1.1/tcp/22"));
        assert!(!dials(&mut punch, known, "/ip4/127.0.0.1/tcp/22"));
    }

    #[test]
    fn dials_of_others_are_none_of_its_business() {
        let mut punch = punch(PeerId::random());
        let inner = ["/ip4/127.0.0.1/tcp/22".parse().expect("an address")];
        let connection = ConnectionId::new_unchecked(9);
        assert!(
            punch
                .may_dial(connection, Some(PeerId::random()), &inner)
                .is_ok()
        );
    }
}
