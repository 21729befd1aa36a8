//! One implementation under test: a program of tests/peers behind its line protocol, or the Rust client in this process.

use serde::{Deserialize, Serialize};

use super::rust;
use crate::support::dialogue::Dialogue;

/// Starts, reserves and dials on command, and echoes what others send it.
pub struct Counterparty {
    pub name: &'static str,
    pub peer_id: String,
    way: Way,
}

enum Way {
    Program(Dialogue),
    InProcess(rust::Client),
}

#[derive(Serialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    Reserve { relay: String },
    Echo { through: String, bytes: usize },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Reserved(Reserved),
    Echoed(Echoed),
    /// The relay's status, by its name in the specification.
    Refused(String),
    Failed(String),
}

/// What a library shows of a reservation; `None` is what it does not show.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Reserved {
    /// Seconds.
    pub expires_in: Option<u64>,
    pub addresses: Option<Vec<String>>,
    pub voucher: Option<String>,
    pub limit: Option<Limit>,
}

/// Bytes and seconds of a circuit; `None` is no limit.
#[derive(Debug, Deserialize, PartialEq)]
pub struct Limit {
    pub data: Option<u64>,
    pub duration: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub struct Echoed {
    pub bytes: usize,
    /// Whether applications are told to spare the circuit; `None` where the library has no such notion.
    pub limited: Option<bool>,
}

impl Counterparty {
    /// `None`, after saying so, where tests/install has not put the program in place; in CI that is a failure.
    pub fn start(name: &'static str, test: &str) -> Option<Self> {
        Self::start_by(name, test, &[])
    }

    /// The same through another program, which takes the counterparty and its arguments as its last ones.
    pub fn start_by(name: &'static str, test: &str, wrapper: &[&str]) -> Option<Self> {
        if name == "rust" {
            let client = rust::Client::start();
            return Some(Self {
                name,
                peer_id: client.peer_id(),
                way: Way::InProcess(client),
            });
        }
        let program = Dialogue::start(name, &[""; 0], wrapper, test)?;
        Some(Self {
            name,
            peer_id: program.peer_id(),
            way: Way::Program(program),
        })
    }

    pub fn ask(&mut self, request: Request) -> Answer {
        match &mut self.way {
            Way::InProcess(client) => client.ask(request),
            Way::Program(program) => program.ask(&request),
        }
    }

    pub fn reserve(&mut self, relay: &str) -> Answer {
        self.ask(Request::Reserve {
            relay: relay.to_owned(),
        })
    }

    /// Sends `bytes` to `destination` over a new circuit and gets them back.
    pub fn echo(&mut self, relay: &str, destination: &str, bytes: usize) -> Answer {
        self.ask(Request::Echo {
            through: format!("{relay}/p2p-circuit/p2p/{destination}"),
            bytes,
        })
    }
}
