//! A program of tests/peers behind its line protocol: one JSON object a line, each request answered.

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

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{node::DEADLINE, skip::skip};

/// The program, from its introduction on until it is dropped.
pub struct Dialogue {
    name: String,
    /// What it said of itself when it was ready.
    pub ready: Value,
    child: Child,
    requests: ChildStdin,
    answers: Receiver<String>,
    complaints: Arc<Mutex<Vec<String>>>,
}

impl Dialogue {
    /// Starts `go`, `js` or `py` through `wrapper`, which takes the program and its arguments as its last ones. `None`, after
    /// saying so, where tests/install has not put it in place; in CI that is a failure.
    pub fn start(
        name: &str,
        arguments: &[impl AsRef<OsStr>],
        wrapper: &[&str],
        test: &str,
    ) -> Option<Self> {
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
        let run = root.join("tests/peers/run");
        let mut words: Vec<&OsStr> = wrapper.iter().map(OsStr::new).collect();
        words.extend([run.as_os_str(), OsStr::new(name)]);
        words.extend(arguments.iter().map(AsRef::as_ref));
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
        let mut dialogue = Self {
            name: name.to_owned(),
            ready: Value::Null,
            child,
            requests,
            answers,
            complaints,
        };
        let mut first: Value = dialogue.hear("its start");
        dialogue.ready = first["ready"].take();
        Some(dialogue)
    }

    pub fn ask<Answer: DeserializeOwned>(&mut self, request: &impl Serialize) -> Answer {
        let request = serde_json::to_string(request).expect("serializable");
        writeln!(self.requests, "{request}").expect("the program reads");
        self.hear(&request)
    }

    /// Of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn peer_id(&self) -> String {
        self.ready["peer"].as_str().expect("a peer id").to_owned()
    }

    fn hear<Answer: DeserializeOwned>(&mut self, after: &str) -> Answer {
        let answer = self
            .answers
            .recv_timeout(DEADLINE)
            .unwrap_or_else(|_| panic!("{} says nothing after {after}", self.name));
        serde_json::from_str(&answer)
            .unwrap_or_else(|error| panic!("{}: {error} in {answer}", self.name))
    }
}

impl Drop for Dialogue {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let complaints = self.complaints.lock().expect("not poisoned").join("\n");
            eprintln!("{} said:\n{complaints}", self.name);
        }
    }
}
