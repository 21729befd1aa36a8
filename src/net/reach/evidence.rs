//! Whether this node is publicly reachable, from what others found out by dialling it. Pure.

use std::time::Instant;

use libp2p::{Multiaddr, PeerId};

use crate::{net::gate::scope, relay::upkeep::Reachability};

#[derive(Default)]
pub struct Evidence {
    /// `transport.announce` names a public address: the operator knows.
    declared: bool,
    /// The last that was dialled from outside with success (AutoNAT v2, proven by a secret).
    proven: Option<Finding>,
    /// The last public address that was tried in vain.
    failed: Option<Finding>,
    /// What several AutoNAT v1 servers agree on.
    v1: Option<(Reachability, Instant)>,
    /// Who has answered an AutoNAT v1 request last.
    v1_server: Option<PeerId>,
}

struct Finding {
    address: Multiaddr,
    server: PeerId,
    at: Instant,
}

/// A verdict and what it rests on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub reachability: Reachability,
    /// The address that was dialled, when one was.
    pub address: Option<Multiaddr>,
    /// Who dialled.
    pub server: Option<PeerId>,
    /// `announce`, `autonat/2`, `autonat/1` or `nobody`.
    pub source: &'static str,
}

impl Evidence {
    pub fn declare(&mut self, announced: &[Multiaddr]) {
        self.declared = announced.iter().any(is_outside);
    }

    /// AutoNAT v2 has tried one address. What a neighbour finds about a private one says nothing about the world.
    pub fn tested(&mut self, address: Multiaddr, server: PeerId, reached: bool, now: Instant) {
        if !scope::is_public(&address) {
            return;
        }
        let finding = Finding {
            address,
            server,
            at: now,
        };
        if reached {
            self.proven = Some(finding);
        } else {
            self.failed = Some(finding);
        }
    }

    pub fn answered_v1(&mut self, server: PeerId) {
        self.v1_server = Some(server);
    }

    /// AutoNAT v1 has changed its mind.
    pub fn v1_says(&mut self, reachability: Reachability, now: Instant) {
        self.v1 = Some((reachability, now));
    }

    /// An address is ours no longer.
    pub fn expired(&mut self, address: &Multiaddr) {
        if self
            .proven
            .as_ref()
            .is_some_and(|proven| proven.address == *address)
        {
            self.proven = None;
        }
    }

    /// The operator's word first; then a proof, unless AutoNAT v1, which goes on asking, has contradicted it since.
    pub fn verdict(&self) -> Verdict {
        let doubted = |proven: &Finding| matches!(self.v1, Some((Reachability::Private, since)) if since > proven.at);
        if self.declared {
            return Verdict {
                reachability: Reachability::Public,
                source: "announce",
                ..Verdict::default()
            };
        }
        if let Some(proven) = self.proven.as_ref().filter(|proven| !doubted(proven)) {
            return proven.verdict(Reachability::Public);
        }
        match (self.v1, &self.failed) {
            (Some((said @ (Reachability::Public | Reachability::Private), _)), _) => Verdict {
                reachability: said,
                server: self.v1_server,
                source: "autonat/1",
                address: None,
            },
            (_, Some(failed)) => failed.verdict(Reachability::Private),
            (_, None) => Verdict {
                source: "nobody",
                ..Verdict::default()
            },
        }
    }
}

impl Finding {
    fn verdict(&self, reachability: Reachability) -> Verdict {
        Verdict {
            reachability,
            address: Some(self.address.clone()),
            server: Some(self.server),
            source: "autonat/2",
        }
    }
}

/// A name counts: whoever announces one has set it up.
fn is_outside(address: &Multiaddr) -> bool {
    use libp2p::multiaddr::Protocol;
    let relayed = address.iter().any(|part| part == Protocol::P2pCircuit);
    let name = matches!(
        address.iter().next(),
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_))
    );
    !relayed && (name || scope::is_public(address))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PUBLIC: &str = "/ip4/203.0.113.9/tcp/4501";
    const PRIVATE: &str = "/ip4/192.168.1.9/tcp/4501";

    fn address(text: &str) -> Multiaddr {
        text.parse().expect("an address")
    }

    fn tested(evidence: &mut Evidence, text: &str, reached: bool, now: Instant) {
        evidence.tested(address(text), PeerId::random(), reached, now);
    }

    #[test]
    fn what_a_neighbour_reaches_says_nothing_about_the_world() {
        let (mut evidence, now) = (Evidence::default(), Instant::now());
        tested(&mut evidence, PRIVATE, true, now);
        assert_eq!(evidence.verdict().reachability, Reachability::Unknown);
        tested(&mut evidence, PUBLIC, false, now);
        assert_eq!(evidence.verdict().reachability, Reachability::Private);
        tested(&mut evidence, PUBLIC, true, now);
        assert_eq!(evidence.verdict().reachability, Reachability::Public);
    }

    #[test]
    fn a_proof_holds_until_it_is_contradicted_or_the_address_is_gone() {
        let (mut evidence, now) = (Evidence::default(), Instant::now());
        evidence.v1_says(Reachability::Private, now);
        let later = now + Duration::from_secs(1);
        tested(&mut evidence, PUBLIC, true, later);
        assert_eq!(evidence.verdict().source, "autonat/2");
        evidence.v1_says(Reachability::Private, later + Duration::from_secs(1));
        assert_eq!(evidence.verdict().reachability, Reachability::Private);
        evidence.v1_says(Reachability::Unknown, later + Duration::from_secs(2));
        assert_eq!(evidence.verdict().reachability, Reachability::Public);
        evidence.expired(&address(PUBLIC));
        assert_eq!(evidence.verdict().reachability, Reachability::Unknown);
    }

    #[test]
    fn who_announces_a_public_address_is_public() {
        let mut evidence = Evidence::default();
        evidence.declare(&[address(PRIVATE)]);
        assert_eq!(evidence.verdict().reachability, Reachability::Unknown);
        evidence.declare(&[address("/dns4/hub.example.org/tcp/4501")]);
        assert_eq!(evidence.verdict().reachability, Reachability::Public);
        evidence.declare(&[]);
        assert_eq!(evidence.verdict().source, "nobody");
    }
}
