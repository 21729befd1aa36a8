//! Peers that are connected through a relay and directly at once, and when the relayed connection may go.

use std::collections::{BTreeSet, HashSet};

use libp2p::{PeerId, swarm::ConnectionId};

use crate::net::streams::{Control, Link};

/// `[limits]` bounds both sets.
#[derive(Default)]
pub struct Doubled {
    /// Direct connections that have carried an answer.
    proven: HashSet<ConnectionId>,
    /// Peers to look at.
    peers: BTreeSet<PeerId>,
}

impl Doubled {
    pub fn proven(&mut self, connection: ConnectionId) {
        self.proven.insert(connection);
    }

    pub fn closed(&mut self, connection: ConnectionId) {
        self.proven.remove(&connection);
    }

    pub fn look_at(&mut self, peer: PeerId) {
        self.peers.insert(peer);
    }

    /// Whether there is nobody to look at again.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// The relayed connections that nobody needs any more. One that still carries a stream of ours is kept: its owner has
    /// been told of the direct one and moves.
    pub fn retire(&mut self, streams: &Control) -> Vec<ConnectionId> {
        let mut retired = Vec::new();
        let proven = &self.proven;
        self.peers.retain(|peer| {
            let links = streams.links(*peer);
            retired.extend(superfluous(&links, proven));
            links.iter().any(|link| link.relayed && link.streams > 0)
        });
        retired
    }
}

fn superfluous<'a>(
    links: &'a [Link],
    proven: &'a HashSet<ConnectionId>,
) -> impl Iterator<Item = ConnectionId> + 'a {
    let direct = links
        .iter()
        .any(|link| !link.relayed && proven.contains(&link.connection));
    links
        .iter()
        .filter(move |link| direct && link.relayed && link.streams == 0)
        .map(|link| link.connection)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::streams::Transport;

    fn link(connection: usize, relayed: bool, streams: u32) -> Link {
        Link {
            connection: ConnectionId::new_unchecked(connection),
            peer: PeerId::random(),
            relayed,
            transport: Transport::Tcp,
            address: "/memory/1".parse().expect("an address"),
            dialled: true,
            streams,
            rtt: None,
        }
    }

    fn closed(links: &[Link], proven: &[usize]) -> Vec<ConnectionId> {
        let proven = proven
            .iter()
            .map(|proven| ConnectionId::new_unchecked(*proven))
            .collect();
        superfluous(links, &proven).collect()
    }

    #[test]
    fn a_relayed_connection_goes_only_for_a_proven_direct_one_and_when_nothing_runs_on_it() {
        let circuit = ConnectionId::new_unchecked(2);
        let idle = [link(1, false, 1), link(2, true, 0)];
        assert_eq!(closed(&idle, &[1]), [circuit]);
        assert!(closed(&idle, &[]).is_empty());
        assert!(closed(&idle, &[2]).is_empty());
        let busy = [link(1, false, 1), link(2, true, 1)];
        assert!(closed(&busy, &[1]).is_empty());
        assert!(closed(&[link(2, true, 0)], &[1]).is_empty());
    }
}
