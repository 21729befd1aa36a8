//! Bucket `nodes`: how members learn each other's names and addresses.

use libp2p::Multiaddr;
use serde::{Deserialize, Serialize};

use crate::id::{PeerId, parse_peer_id};

/// What a member tells about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub peer: PeerId,
    /// At most 63 printable characters; may be empty.
    pub name: String,
    /// Where it can be dialled, [`MAX_ADDRESSES`] at most. They are what the member claims, so a dialler asks first
    /// whether it wants to go there.
    pub addresses: Vec<Multiaddr>,
    /// Of the program.
    pub version: String,
}

/// A machine has a few interfaces, two transports and two address families, and a few relays.
pub const MAX_ADDRESSES: usize = 16;
/// Characters of a DNS label.
const MAX_NAME: usize = 63;
/// Characters.
const MAX_VERSION: usize = 64;
/// Characters. A circuit through a relay with a domain name takes about 200.
const MAX_ADDRESS: usize = 512;

#[derive(Serialize, Deserialize)]
struct Json<'a> {
    #[serde(rename = "PeerID")]
    peer: String,
    #[serde(rename = "Name", default)]
    name: std::borrow::Cow<'a, str>,
    #[serde(rename = "Addresses", default)]
    addresses: Vec<String>,
    #[serde(rename = "Version", default)]
    version: std::borrow::Cow<'a, str>,
}

impl Node {
    /// The value of the entry; the key is the peer id in base58. Addresses beyond [`MAX_ADDRESSES`] are left out.
    pub fn value(&self) -> String {
        let json = Json {
            peer: self.peer.to_base58(),
            name: printable(&self.name, MAX_NAME).into(),
            addresses: self
                .addresses
                .iter()
                .map(Multiaddr::to_string)
                .filter(|address| address.len() <= MAX_ADDRESS)
                .take(MAX_ADDRESSES)
                .collect(),
            version: printable(&self.version, MAX_VERSION).into(),
        };
        // Texts and lists of texts always serialise.
        serde_json::to_string(&json).unwrap_or_default()
    }

    /// `None` for anything that no node of ours writes: another peer than the key says, an address that is none, too much
    /// of anything.
    pub fn read(key: &str, value: &str) -> Option<Node> {
        let json: Json = serde_json::from_str(value).ok()?;
        let fits = json.peer == key
            && json.addresses.len() <= MAX_ADDRESSES
            && json.addresses.iter().all(|one| one.len() <= MAX_ADDRESS)
            && json.name == printable(&json.name, MAX_NAME)
            && json.version == printable(&json.version, MAX_VERSION);
        if !fits {
            return None;
        }
        Some(Node {
            peer: parse_peer_id(key).ok()?,
            name: json.name.into_owned(),
            addresses: json
                .addresses
                .iter()
                .map(|address| address.parse().ok())
                .collect::<Option<_>>()?,
            version: json.version.into_owned(),
        })
    }
}

/// Names end up on terminals and in logs.
fn printable(text: &str, most: usize) -> String {
    text.chars()
        .filter(|letter| !letter.is_control() && !is_format(*letter))
        .take(most)
        .collect()
}

/// Characters that turn the direction of a line or hide in it.
fn is_format(letter: char) -> bool {
    matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA";

    fn node() -> Node {
        Node {
            peer: PEER.parse().expect("a peer id"),
            name: "gate".to_owned(),
            addresses: vec!["/ip4/192.0.2.1/tcp/4501".parse().expect("an address")],
            version: "0.1.0".to_owned(),
        }
    }

    #[test]
    fn what_a_node_writes_is_read_back() {
        assert_eq!(Node::read(PEER, &node().value()), Some(node()));
    }

    #[test]
    fn no_more_addresses_than_a_machine_has() {
        let mut many = node();
        many.addresses = vec![many.addresses[0].clone(); 17];
        let value = many.value();
        assert_eq!(
            Node::read(PEER, &value).expect("cut").addresses.len(),
            MAX_ADDRESSES
        );
        let one_more = value.replacen('[', "[\"/ip4/192.0.2.9/tcp/1\",", 1);
        assert_eq!(Node::read(PEER, &one_more), None);
    }

    #[test]
    fn what_no_node_of_ours_writes_is_not_read() {
        let good = node().value();
        for bad in [
            good.replace(PEER, "12D3KooWHbsqZXbx7emT3G2Nf8YqrjuuczQXWsvw8c2iWcR4DRuT"),
            good.replace("/ip4/192.0.2.1/tcp/4501", "http://192.0.2.1"),
            good.replace("gate", "ga\\u001b[31mte"),
            good.replace("gate", &"x".repeat(64)),
            good.replace("0.1.0", &"1".repeat(65)),
            "\"ok\"".to_owned(),
            String::new(),
        ] {
            assert_eq!(Node::read(PEER, &bad), None, "{bad}");
        }
    }
}
