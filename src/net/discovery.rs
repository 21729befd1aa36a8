//! Members find each other through a distributed hash table: each announces itself under a key that only holders of the
//! token can compute, and that changes with time.

use std::borrow::Cow;

use libp2p::Multiaddr;

use crate::config::{Config, Peer};

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
