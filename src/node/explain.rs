//! Why a peer may or may not use the relay at this moment.

use std::net::IpAddr;

use super::Node;
use crate::{
    acl::{Decision, Mode, Operation, RuleKey},
    api::{Explanation, Otherwise},
    config::Config,
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
        let config = &snapshot.config;
        let account = self.net.account_of(peer).await.unwrap_or_default();
        let address = address.or(account.address);
        let standing = self.net.membership().standing(&peer);
        let decision = config.acl.decide(operation, &peer, address, standing);
        let otherwise = config.acl.otherwise(operation, &peer, address, standing);
        let links = self.net.streams().links(peer);
        Explanation {
            node: config.node.name.clone(),
            generation: snapshot.generation,
            peer: peer.to_string(),
            operation: operation.to_string(),
            admitted: decision.admit,
            enforced: config.acl.mode() == Mode::Enforce,
            rule: decision.rule.key.to_string(),
            value: value(config, &decision),
            origin: decision.rule.origin.to_string(),
            otherwise: otherwise.map(|behind| Otherwise {
                admitted: behind.admit,
                rule: behind.rule.key.to_string(),
                value: value(config, &behind),
                origin: behind.rule.origin.to_string(),
            }),
            standing: standing.to_string(),
            because: self.ledger.why(peer).await,
            addresses: address
                .map(|address| address.to_string())
                .into_iter()
                .collect(),
            path: links.first().map(|link| {
                let path = if link.relayed { "relayed" } else { "direct" };
                path.to_owned()
            }),
            reserved_for_s: account.reserved_for.map(|left| left.as_secs()),
            circuits: account.circuits,
            requests: account.requests,
        }
    }
}

/// What the key of the deciding rule is set to; a list of entries is not repeated.
fn value(config: &Config, decision: &Decision) -> Option<String> {
    match &decision.rule.key {
        RuleKey::Allow | RuleKey::Deny | RuleKey::List(_) => None,
        key @ (RuleKey::Audience(_) | RuleKey::Bootstrap) => {
            Some(config.keys.get(&key.to_string())?.value.to_string())
        }
    }
}
