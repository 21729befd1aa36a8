//! The real program in a folder of its own: started, edited, asked and stopped.
#![allow(dead_code, reason = "each test module uses its part")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{net::UnixStream, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    time::{Duration, Instant},
};

use serde_json::Value;

/// Generous, so that a busy machine does not fail a test; a test that waits this long has failed.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// How often the status is read while no log line says that something happened.
const LOOK_AGAIN: Duration = Duration::from_millis(25);

pub struct NodeUnderTest {
    child: Child,
    pub folder: Arc<tempfile::TempDir>,
    log: Receiver<String>,
    lines: Arc<Mutex<Vec<String>>>,
}

/// The parts of a configuration that keep a node under test to itself: its folder, loopback, a port of the system's choice.
pub const PRIVATE: &str = r#"
version = 1
[node]
state_dir = "state"
[transport]
listen = ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0/ws"]
[api]
listen = "unix:api.sock"
[log]
format = "json"
[reload]
settle = "20ms"
poll_interval = "1s"
"#;

impl NodeUnderTest {
    /// Starts a node with [`PRIVATE`] and `more`, and waits until it has applied its file.
    pub fn start(more: &str) -> Self {
        let folder = Arc::new(tempfile::tempdir().expect("a folder"));
        fs::write(
            folder.path().join("edgevpn.toml"),
            format!("{PRIVATE}{more}"),
        )
        .expect("written");
        let node = Self::start_in(folder, &[]);
        node.until("ready", |status| status["generation"].as_u64() >= Some(1));
        node
    }

    /// Starts the program on `edgevpn.toml` in a folder that exists, without waiting.
    pub fn start_in(folder: Arc<tempfile::TempDir>, arguments: &[&str]) -> Self {
        let mut program = command(folder.path());
        program.args(["run", "-c", "edgevpn.toml"]).args(arguments);
        Self::spawn(folder, program)
    }

    /// The same through another program, which takes the program and its arguments as its last ones.
    pub fn start_by(folder: Arc<tempfile::TempDir>, wrapper: &[&str]) -> Self {
        let plain = command(folder.path());
        let mut program = Command::new(wrapper.first().expect("a program"));
        program
            .args(wrapper.iter().skip(1))
            .arg(plain.get_program())
            .args(["run", "-c", "edgevpn.toml"])
            .current_dir(folder.path())
            .env_clear()
            .envs(
                plain
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            );
        Self::spawn(folder, program)
    }

    fn spawn(folder: Arc<tempfile::TempDir>, mut program: Command) -> Self {
        let mut child = program
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let (tell, log) = channel();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let kept = lines.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                kept.lock().expect("not poisoned").push(line.clone());
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            folder,
            log,
            lines,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Replaces the file as editors do: written beside it, renamed over it.
    pub fn edit(&self, more: &str) {
        self.write(&format!("{PRIVATE}{more}"));
    }

    pub fn write(&self, text: &str) {
        let beside = self.path(".edgevpn.toml.new");
        fs::write(&beside, text).expect("written");
        fs::rename(beside, self.path("edgevpn.toml")).expect("renamed");
    }

    /// Edits and waits until the node says that it has applied the edit; gives its status.
    pub fn apply(&self, more: &str) -> Value {
        let before = self
            .status()
            .map_or(0, |status| status["generation"].as_u64().unwrap_or(0));
        self.edit(more);
        self.until("the edit is applied", |status| {
            status["generation"].as_u64() > Some(before)
        })
    }

    /// `GET /v1/status`, or `None` while nobody answers.
    pub fn status(&self) -> Option<Value> {
        get(&self.path("run/api.sock"), "/v1/status")
    }

    /// Waits until `holds`; after a deadline says what it last saw.
    pub fn until(&self, what: &str, mut holds: impl FnMut(&Value) -> bool) -> Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let status = self.status();
            if let Some(status) = status.as_ref().filter(|status| holds(status)) {
                return status.clone();
            }
            if Instant::now() > deadline {
                panic!(
                    "never: {what}\nlast status: {status:#?}\nlog:\n{}",
                    self.log_text()
                );
            }
            self.wait_for_news();
        }
    }

    /// Waits for a log line that contains all of `words`, from the first line of the log on.
    pub fn until_logged(&self, words: &[&str]) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let found = self
                .lines
                .lock()
                .expect("not poisoned")
                .iter()
                .find(|line| words.iter().all(|word| line.contains(word)))
                .cloned();
            if let Some(line) = found {
                return line;
            }
            if Instant::now() > deadline {
                panic!("never logged: {words:?}\nlog:\n{}", self.log_text());
            }
            self.wait_for_news();
        }
    }

    fn wait_for_news(&self) {
        match self.log.recv_timeout(LOOK_AGAIN) {
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            // The log has ended with the process; the next look at it says so.
            Err(RecvTimeoutError::Disconnected) => std::thread::yield_now(),
        }
    }

    pub fn log_text(&self) -> String {
        self.lines.lock().expect("not poisoned").join("\n")
    }

    pub fn peer_id(&self) -> String {
        let status = self.status().expect("the node answers");
        status["node"]["peer_id"]
            .as_str()
            .expect("a peer id")
            .to_owned()
    }

    /// The address to dial over `transport`: `tcp`, `quic-v1` or `ws`; with the peer id.
    pub fn address(&self, transport: &str) -> String {
        let status = self.status().expect("the node answers");
        let listening = status["node"]["listening"].as_array().expect("listeners");
        let found = listening
            .iter()
            .filter_map(Value::as_str)
            .find(|address| match transport {
                "tcp" => address.contains("/tcp/") && !address.ends_with("/ws"),
                other => address.ends_with(other),
            });
        format!(
            "{}/p2p/{}",
            found.unwrap_or_else(|| panic!("no {transport} in {listening:?}")),
            self.peer_id()
        )
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let id = i32::try_from(self.child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .expect("a pid");
        // An ended process is a matter for whoever waits for it.
        let _ = rustix::process::kill_process(id, signal);
    }

    pub fn kill(mut self) -> Arc<tempfile::TempDir> {
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
        self.folder.clone()
    }

    /// Asks it to stop and waits.
    pub fn stop(mut self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.wait()
    }

    /// Waits until `holds` or the process has ended, whichever is first, and says whether it has ended.
    pub fn until_ended_or(&mut self, what: &str, holds: impl Fn(&Value) -> bool) -> bool {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if self.child.try_wait().expect("waitable").is_some() {
                return true;
            }
            if self.status().is_some_and(|status| holds(&status)) {
                return false;
            }
            assert!(
                Instant::now() < deadline,
                "never: {what}, nor an end\nlog:\n{}",
                self.log_text()
            );
            self.wait_for_news();
        }
    }

    /// Waits until the process has ended by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.child.try_wait().expect("waitable") {
                Some(status) => return status,
                None if Instant::now() > deadline => {
                    panic!("does not end\nlog:\n{}", self.log_text())
                }
                None => self.wait_for_news(),
            }
        }
    }
}

impl Drop for NodeUnderTest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("log of the node:\n{}", self.log_text());
        }
    }
}

/// The program, with nothing of the caller's environment that a configuration would look at.
pub fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgevpn"));
    command
        .current_dir(folder)
        .env_clear()
        .env("RUNTIME_DIRECTORY", folder.join("run"))
        .env("HOME", folder);
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command
}

/// One HTTP request on a unix socket, answered with JSON.
pub fn get(socket: &Path, path: &str) -> Option<Value> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    serde_json::from_str(body).ok()
}

/// Whether a process was ended by a signal rather than by itself.
pub fn signalled(status: ExitStatus) -> bool {
    status.signal().is_some()
}
