//! The two servers, each in a process of its own and reached over TCP, noise and yamux on loopback.

use std::{
    fs,
    io::{self, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use futures::StreamExt;
use libp2p::{
    Multiaddr, SwarmBuilder, identify, noise, ping, relay,
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};

/// The argument that makes this program the upstream server.
pub const UPSTREAM: &str = "upstream-server";

/// More than any measurement needs, for both servers.
const PLENTY: u32 = 20_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ours,
    Upstream,
}

pub struct Server {
    child: Child,
    pub address: Multiaddr,
    folder: tempfile::TempDir,
}

impl Server {
    pub fn start(kind: Kind) -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let port = free_port()?;
        let mut command = match kind {
            Kind::Ours => {
                fs::write(
                    folder.path().join("edgevpn.toml"),
                    configuration(port, "1h"),
                )?;
                let mut command = Command::new(env!("CARGO_BIN_EXE_edgevpn"));
                command
                    .args(["run", "-c", "edgevpn.toml"])
                    .env("RUNTIME_DIRECTORY", folder.path());
                command
            }
            Kind::Upstream => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args([UPSTREAM, &port.to_string()]);
                command
            }
        };
        let child = command
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let address = format!("/ip4/127.0.0.1/tcp/{port}")
            .parse()
            .map_err(io::Error::other)?;
        let server = Self {
            child,
            address,
            folder,
        };
        server.wait_until_it_listens(port)?;
        Ok(server)
    }

    fn wait_until_it_listens(&self, port: u16) -> io::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).is_err() {
            if Instant::now() > deadline {
                return Err(io::Error::other("the server does not listen"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Bytes.
    pub fn resident(&self) -> io::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .ok_or_else(|| io::Error::other("no VmRSS"))?;
        let kib: u64 = line
            .trim()
            .trim_end_matches("kB")
            .trim()
            .parse()
            .map_err(io::Error::other)?;
        Ok(kib * 1024)
    }

    /// CPU time of all its threads so far.
    pub fn cpu(&self) -> io::Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // Fields are counted from after the command name, which may hold anything but ends with the last parenthesis.
        let after = stat.rsplit_once(") ").map_or("", |(_, after)| after);
        let ticks: u64 = after
            .split(' ')
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<u64>().ok())
            .sum();
        // Linux counts in hundredths here on every platform.
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Writes a configuration with this `max_duration`.
    pub fn edit(&self, max_duration: &str) -> io::Result<()> {
        let port = self
            .address
            .to_string()
            .rsplit('/')
            .next()
            .and_then(|port| port.parse().ok())
            .unwrap_or(0);
        let beside = self.folder.path().join("next.toml");
        fs::write(&beside, configuration(port, max_duration))?;
        fs::rename(beside, self.path("edgevpn.toml"))
    }

    /// Asks for a reload and returns the acknowledgement.
    pub fn reload(&self) -> io::Result<serde_json::Value> {
        let mut stream = UnixStream::connect(self.path("api.sock"))?;
        let request = "POST /v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
        stream.write_all(request.as_bytes())?;
        let mut reply = String::new();
        BufReader::new(stream).read_to_string(&mut reply)?;
        let (head, body) = reply
            .split_once("\r\n\r\n")
            .ok_or_else(|| io::Error::other("no answer"))?;
        serde_json::from_str(body).map_err(|_| io::Error::other(format!("{head}\n{body}")))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// Ours, with nothing in the way of a measurement. Its files are looked at only when the API asks.
fn configuration(port: u16, max_duration: &str) -> String {
    format!(
        r#"
version = 1
[node]
state_dir = "state"
[transport]
listen = ["/ip4/127.0.0.1/tcp/{port}"]
[relay.resources]
max_data = "unlimited"
max_duration = "{max_duration}"
max_circuits = 10000
max_reservations = {PLENTY}
max_reservations_per_ip = {PLENTY}
max_circuits_total = {PLENTY}
reservation_rate = "unlimited"
circuit_rate = "unlimited"
max_buffers = "1GiB"
[acl]
reserve = "anyone"
[limits]
connections = {PLENTY}
pending = {PLENTY}
memory = "8GiB"
[api]
listen = "unix:api.sock"
[log]
level = "warn"
[reload]
watch = "off"
settle = "0ms"
"#
    )
}

#[derive(NetworkBehaviour)]
struct Upstream {
    relay: relay::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

/// The server of libp2p-relay with everything as wide open as ours.
pub async fn run_upstream(port: &str) -> Result<(), Box<dyn std::error::Error>> {
    let plenty = PLENTY as usize;
    let config = relay::Config {
        max_reservations: plenty,
        max_reservations_per_peer: 16,
        reservation_rate_limiters: Vec::new(),
        max_circuits: plenty,
        max_circuits_per_peer: 10_000,
        max_circuit_duration: Duration::from_secs(3600),
        max_circuit_bytes: u64::MAX,
        circuit_src_rate_limiters: Vec::new(),
        ..relay::Config::default()
    };
    let mut swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(
            tcp::Config::default(),
            noise::Config::new,
            yamux::Config::default,
        )?
        .with_behaviour(|key| Upstream {
            relay: relay::Behaviour::new(key.public().to_peer_id(), config),
            identify: identify::Behaviour::new(identify::Config::new(
                "/ipfs/id/1.0.0".into(),
                key.public(),
            )),
            ping: ping::Behaviour::default(),
        })?
        .build();
    let address: Multiaddr = format!("/ip4/127.0.0.1/tcp/{port}").parse()?;
    // It offers relaying, and answers with an address, once it knows one that is reachable.
    swarm.add_external_address(address.clone());
    swarm.listen_on(address)?;
    loop {
        if let SwarmEvent::ListenerClosed { reason, .. } = swarm.select_next_some().await {
            reason?;
        }
    }
}
