//! Why a peer may or may not use the relay at this moment.

use std::net::IpAddr;

use super::Node;
use crate::{
    acl::{Mode, Operation},
    api::Explanation,
    id::PeerId,
};

impl Node {
    /// `address` is where the peer would come from; without it, where it is connected from.
    pub async fn explain(
        &self,
        peer: PeerId,
        operation: Operation,
        address: Option<IpAddr>,
    ) -> Explanation {
        let snapshot = self.snapshot();
        let relay = self.net.report().await.relay;
        let name = peer.to_string();
        let known = relay.peers.iter().find(|known| known.peer == name);
        let seen = known.and_then(|known| known.address.parse().ok());
        let acl = &snapshot.config.acl;
        let standing = self.net.membership().standing(&peer);
        let decision = acl.decide(operation, &peer, address.or(seen), standing);
        let links = self.net.streams().links(peer);
        Explanation {
            node: snapshot.config.node.name.clone(),
            generation: snapshot.generation,
            peer: name,
            operation: operation.to_string(),
            admitted: decision.admit,
            enforced: acl.mode() == Mode::Enforce,
            rule: decision.rule.key.to_string(),
            origin: decision.rule.origin.to_string(),
            because: self.ledger.why(peer).await,
            addresses: address
                .or(seen)
                .map(|address| address.to_string())
                .into_iter()
                .collect(),
            path: links.first().map(|link| {
                let path = if link.relayed { "relayed" } else { "direct" };
                path.to_owned()
            }),
            reserved_for_s: known.and_then(|known| known.reserved_for_s),
            circuits: known.map_or(0, |known| {
                known
                    .circuits_as_source
                    .saturating_add(known.circuits_as_destination)
            }),
            standing: standing.to_string(),
        }
    }
}
