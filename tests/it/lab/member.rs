//! A member of a network that shares no code with ours: the Go counterparty in its second life.
#![allow(dead_code, reason = "each test module uses its part")]

use std::{path::Path, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    peers::counterparty::{Answer, Request},
    support::dialogue::Dialogue,
};

pub struct GoMember {
    pub peer_id: String,
    dialogue: Dialogue,
}

/// How a member is started.
#[derive(Clone, Default)]
pub struct Manner {
    /// What it listens on.
    pub listen: Vec<String>,
    /// Whom it stays connected to.
    pub peers: Vec<String>,
    /// How far its clock is ahead, in milliseconds.
    pub skew: i64,
    pub mdns: bool,
    /// Serves a distributed hash table, and looks for others in it.
    pub dht: bool,
    /// Where it enters the table.
    pub bootstrap: Vec<String>,
    /// How often it renews its heartbeat and sends its ledger; every second if nothing is said.
    pub pace: Option<(Duration, Duration)>,
    /// Its address in the network, if it announces one.
    pub machine: Option<String>,
}

/// What a member knows.
#[derive(Debug, Deserialize)]
pub struct Known {
    pub entries: Vec<Seen>,
    pub counts: Counts,
    pub connected: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub struct Seen {
    pub bucket: String,
    pub key: String,
    pub value: String,
    pub owner: String,
    pub deleted: bool,
    age_ms: u64,
    worst_ms: u64,
}

#[derive(Debug, Deserialize)]
pub struct Counts {
    pub rotations: u32,
    pub opened: u32,
    pub unopened: u32,
    pub rejected: u32,
    pub bytes: u64,
}

impl GoMember {
    /// `None`, after saying so, where the program is not installed; in CI that is a failure.
    pub fn start(token: &Path, manner: &Manner, wrapper: &[&str], test: &str) -> Option<Self> {
        let mut words = vec!["member".to_owned(), "--token".to_owned()];
        words.push(token.to_str().expect("text").to_owned());
        for (name, values) in [
            ("--listen", &manner.listen),
            ("--peer", &manner.peers),
            ("--bootstrap", &manner.bootstrap),
        ] {
            for value in values {
                words.extend([name.to_owned(), value.clone()]);
            }
        }
        words.push(format!("--skew={}ms", manner.skew));
        words.push(format!("--mdns={}", manner.mdns));
        words.push(format!("--dht={}", manner.dht));
        if let Some((heartbeat, sync)) = manner.pace {
            words.push(format!("--heartbeat={}s", heartbeat.as_secs()));
            words.push(format!("--sync={}s", sync.as_secs()));
        }
        if let Some(address) = &manner.machine {
            words.push(format!("--machine={address}"));
        }
        let dialogue = Dialogue::start("go", &words, wrapper, test)?;
        Some(Self {
            peer_id: dialogue.peer_id(),
            dialogue,
        })
    }

    pub fn id(&self) -> u32 {
        self.dialogue.id()
    }

    /// Where to dial it, with its peer id: the first of its addresses.
    pub fn address(&self) -> String {
        let first = self.dialogue.ready["addresses"][0].as_str();
        format!("{}/p2p/{}", first.expect("an address"), self.peer_id)
    }

    pub fn put(&mut self, bucket: &str, key: &str, value: &str) {
        self.told(&json!({ "do": "put", "bucket": bucket, "key": key, "value": value }));
    }

    pub fn delete(&mut self, bucket: &str, key: &str) {
        self.told(&json!({ "do": "delete", "bucket": bucket, "key": key }));
    }

    /// Begins to count anew.
    pub fn reset(&mut self) {
        self.told(&json!({ "do": "reset" }));
    }

    pub fn reserve(&mut self, relay: &str) -> Answer {
        self.dialogue.ask(&Request::Reserve {
            relay: relay.to_owned(),
        })
    }

    fn told(&mut self, request: &Value) {
        let answer: Value = self.dialogue.ask(request);
        assert!(answer.get("done").is_some(), "{request}: {answer}");
    }

    pub fn known(&mut self) -> Known {
        let mut answer: Value = self.dialogue.ask(&json!({ "do": "report" }));
        serde_json::from_value(answer["report"].take())
            .unwrap_or_else(|error| panic!("{error} in {answer}"))
    }
}

impl Known {
    pub fn entry(&self, bucket: &str, key: &str) -> Option<&Seen> {
        self.entries
            .iter()
            .find(|seen| seen.bucket == bucket && seen.key == key)
    }

    pub fn heartbeat(&self, peer: &str) -> Option<&Seen> {
        self.entry("healthcheck", peer)
    }
}

impl Seen {
    /// How long ago it was new here.
    pub fn age(&self) -> Duration {
        Duration::from_millis(self.age_ms)
    }

    /// The longest that it was not renewed here since the last reset.
    pub fn worst(&self) -> Duration {
        Duration::from_millis(self.worst_ms)
    }
}
