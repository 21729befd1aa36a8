//! A private network that a test makes for itself.

use std::{fs::OpenOptions, io::Write, os::unix::fs::OpenOptionsExt, path::PathBuf};

use edgevpn::wire::Token;
use serde_json::Value;

pub struct Network {
    folder: tempfile::TempDir,
}

impl Network {
    /// One whose topic and keys change every `rotation` seconds.
    pub fn new(rotation: u64) -> Self {
        let token = Token::generate(rotation, rand::fill);
        let network = Self {
            folder: tempfile::tempdir().expect("a folder"),
        };
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(network.token_file())
            .expect("a new file");
        file.write_all(token.to_base64().as_bytes())
            .expect("written");
        network
    }

    pub fn token_file(&self) -> PathBuf {
        self.folder.path().join("token")
    }

    /// What a member has in its file: the token, a quick pace, and whom it stays connected to, each address with its peer id.
    /// It looks for nobody else.
    pub fn member(&self, peers: &[String]) -> String {
        let pace = "[ledger]\nheartbeat = \"1s\"\nownership_ttl = \"8m\"\nannounce_interval = \"1s\"\nsync_interval = \"1s\"\n";
        self.member_at_rest(peers) + pace
    }

    /// The same at the pace that nodes have when nobody says otherwise.
    pub fn member_at_rest(&self, peers: &[String]) -> String {
        let mut text = self.joined(false);
        for address in peers {
            let (_, id) = address.rsplit_once('/').expect("an address with an id");
            text += &format!("[[peer]]\nid = \"{id}\"\naddresses = [\"{address}\"]\n");
        }
        text
    }

    /// A member that looks for others on its link, and nowhere else.
    pub fn on_a_link(&self) -> String {
        self.joined(true)
    }

    /// A member that looks for others in the distributed hash table that it enters by `address`, and nowhere else.
    pub fn by_directory(&self, address: &str) -> String {
        format!(
            "{}[discovery]\nmdns = false\nbootstrap_peers = [\"{address}\"]\ndht_interval = \"10s\"\n",
            self.token_key()
        )
    }

    fn joined(&self, mdns: bool) -> String {
        format!(
            "{}[discovery]\nmdns = {mdns}\ndht = false\n",
            self.token_key()
        )
    }

    fn token_key(&self) -> String {
        format!("[network]\ntoken_file = {:?}\n", self.token_file())
    }
}

/// How many members a node knows, beside itself.
pub fn members(status: &Value) -> u64 {
    status["node"]["network"]["members"].as_u64().unwrap_or(0)
}

/// Whether a node knows `peer` as a member.
pub fn knows(status: &Value, peer: &str) -> bool {
    known(status, peer).is_some_and(|known| known["member"] == true)
}

/// What a node knows of `peer`.
pub fn known<'a>(status: &'a Value, peer: &str) -> Option<&'a Value> {
    let peers = status["node"]["network"]["peers"].as_array()?;
    peers.iter().find(|known| known["peer"] == peer)
}

/// The path on which a node is connected to `peer`: `direct` or `relayed`.
pub fn path<'a>(status: &'a Value, peer: &str) -> Option<&'a str> {
    known(status, peer)?["path"].as_str()
}
