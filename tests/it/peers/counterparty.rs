//! One implementation under test: a program of tests/peers behind its line protocol, or the Rust client in this process.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, channel},
    },
    thread,
};

use serde::{Deserialize, Serialize};

use super::rust;
use crate::support::{node::DEADLINE, skip::skip};

/// Starts, reserves and dials on command, and echoes what others send it.
pub struct Counterparty {
    pub name: &'static str,
    pub peer_id: String,
    way: Way,
}

enum Way {
    Program {
        child: Child,
        requests: ChildStdin,
        answers: Receiver<String>,
        complaints: Arc<Mutex<Vec<String>>>,
    },
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

#[derive(Deserialize)]
struct Ready {
    ready: Introduction,
}

#[derive(Deserialize)]
struct Introduction {
    peer: String,
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
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let program = root.join("target/peers").join(match name {
            "go" => "go-peer",
            "js" => "node",
            _ => "venv/requirements.installed",
        });
        if !program.exists() {
            skip(test, &format!("{name} is not installed, run tests/install"));
            return None;
        }
        let mut words: Vec<&OsStr> = wrapper.iter().map(OsStr::new).collect();
        let run = root.join("tests/peers/run");
        words.extend([run.as_os_str(), OsStr::new(name)]);
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let requests = child.stdin.take().expect("piped");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        let errors = BufReader::new(child.stderr.take().expect("piped"));
        let complaints = Arc::new(Mutex::new(Vec::new()));
        let kept = complaints.clone();
        thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                kept.lock().expect("not poisoned").push(line);
            }
        });
        let (tell, answers) = channel();
        thread::spawn(move || {
            lines
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| tell.send(line))
        });

        let first = answers
            .recv_timeout(DEADLINE)
            .unwrap_or_else(|_| panic!("{name} does not start"));
        let Ready { ready } = serde_json::from_str(&first).expect("an introduction");
        Some(Self {
            name,
            peer_id: ready.peer,
            way: Way::Program {
                child,
                requests,
                answers,
                complaints,
            },
        })
    }

    pub fn ask(&mut self, request: Request) -> Answer {
        match &mut self.way {
            Way::InProcess(client) => client.ask(request),
            Way::Program {
                requests, answers, ..
            } => {
                let request = serde_json::to_string(&request).expect("serializable");
                writeln!(requests, "{request}").expect("the program reads");
                let answer = answers
                    .recv_timeout(DEADLINE)
                    .unwrap_or_else(|_| panic!("{} does not answer {request}", self.name));
                serde_json::from_str(&answer)
                    .unwrap_or_else(|error| panic!("{}: {error} in {answer}", self.name))
            }
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

impl Drop for Counterparty {
    fn drop(&mut self) {
        if let Way::Program {
            child, complaints, ..
        } = &mut self.way
        {
            let _ = child.kill();
            let _ = child.wait();
            if thread::panicking() {
                let complaints = complaints.lock().expect("not poisoned").join("\n");
                eprintln!("{} said:\n{complaints}", self.name);
            }
        }
    }
}
