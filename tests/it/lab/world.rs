//! Machines on one machine: hosts in network namespaces, on an internet of their own or behind routers that translate,
//! filter, lose packets and part.
#![allow(dead_code, reason = "each test module uses its part")]

use std::{
    cell::{Cell, RefCell},
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Lines, Write},
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        Arc, Once,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::support::{
    node::NodeUnderTest,
    skip::{root_for, skip},
};

/// Begins the name of each namespace of ours, followed by the process that made it.
const PREFIX: &str = "edgevpn-lab-";

/// The one port that nodes listen on. A namespace is a machine of its own, so nobody else has it.
pub const PORT: u16 = 4001;

/// The first two numbers of every public address: a range for experiments that is neither private nor set apart for
/// documentation, so that nothing takes it for unreachable.
const INTERNET: [u8; 2] = [44, 128];

/// How a router stands between its hosts and the internet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Nat {
    /// Keeps the source port where it can, for all destinations: holes can be punched.
    Easy,
    /// A new random port for each destination.
    Hard,
    /// All that arrives goes to its one host.
    OneToOne,
    /// Easy, and forwards no UDP.
    UdpBlocked,
    /// Easy, and its hosts are routers of others: carrier-grade NAT.
    Carrier,
}

/// Where a host stands: the rows and columns of the reachability grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Place {
    Public,
    OneToOne,
    Easy,
    Hard,
    /// Behind an easy router that is behind a carrier's.
    CarrierGrade,
    UdpBlocked,
    V6Only,
}

/// One internet and all that is connected to it. Everything of it ends with it.
pub struct Lab {
    name: String,
    internet: String,
    namespaces: RefCell<Vec<String>>,
    /// Numbers the networks, from 1: the third number of their addresses.
    networks: Cell<u8>,
}

/// A machine that runs programs.
pub struct Host {
    namespace: String,
    pub address: Option<Ipv4Addr>,
    pub address_v6: Option<Ipv6Addr>,
    /// What others see it come from.
    pub seen_as: Vec<String>,
}

pub struct Router {
    namespace: String,
    nat: Nat,
    network: u8,
    hosts: Cell<u8>,
    seen_as: Ipv4Addr,
}

impl Lab {
    /// `None`, after saying so, where this machine cannot; in CI that is a failure.
    pub fn new(test: &str) -> Option<Self> {
        if !root_for(test) {
            return None;
        }
        for tool in ["ip", "nft", "setpriv"] {
            if !is_installed(tool) {
                skip(test, &format!("{tool} is not installed, run tests/install"));
                return None;
            }
        }
        static SWEPT: Once = Once::new();
        SWEPT.call_once(sweep);
        static LABS: AtomicU32 = AtomicU32::new(0);

        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let mut lab = Self {
            name: format!("{PREFIX}{}-{number}", std::process::id()),
            internet: String::new(),
            namespaces: RefCell::default(),
            networks: Cell::new(0),
        };
        lab.internet = lab.namespace();
        forward(&lab.internet);
        filter(
            &lab.internet,
            "table inet lab {
                chain loss { type filter hook forward priority -20; }
                chain parted { type filter hook forward priority -10; }
            }",
        );
        Some(lab)
    }

    /// A host at `place`, with the routers it takes.
    pub fn place(&self, place: Place) -> Host {
        match place {
            Place::Public => self.public(),
            Place::V6Only => self.v6_only(),
            Place::OneToOne => self.behind(&self.router(Nat::OneToOne)),
            Place::Easy => self.behind(&self.router(Nat::Easy)),
            Place::Hard => self.behind(&self.router(Nat::Hard)),
            Place::UdpBlocked => self.behind(&self.router(Nat::UdpBlocked)),
            Place::CarrierGrade => {
                self.behind(&self.router_behind(&self.router(Nat::Carrier), Nat::Easy))
            }
        }
    }

    /// A host with an IPv4 and an IPv6 address that everybody reaches.
    pub fn public(&self) -> Host {
        let (namespace, network) = self.uplink("eth0");
        let [v4, gateway] = [internet_v4(network, 2), internet_v4(network, 1)];
        configure(
            &namespace,
            &format!("addr add {v4}/24 dev eth0\nroute add default via {gateway}"),
        );
        let address_v6 = self.give_v6(&namespace, network);
        Host {
            namespace,
            address: Some(v4),
            address_v6: Some(address_v6),
            seen_as: vec![v4.to_string(), address_v6.to_string()],
        }
    }

    /// A public host without an IPv4 address.
    pub fn v6_only(&self) -> Host {
        let (namespace, network) = self.uplink("eth0");
        let address = self.give_v6(&namespace, network);
        Host {
            namespace,
            address: None,
            address_v6: Some(address),
            seen_as: vec![address.to_string()],
        }
    }

    /// A router on the internet, with a local network behind it.
    pub fn router(&self, nat: Nat) -> Router {
        let (namespace, network) = self.uplink("wan");
        let address = internet_v4(network, 2);
        configure(
            &namespace,
            &format!(
                "addr add {address}/24 dev wan\nroute add default via {}",
                internet_v4(network, 1)
            ),
        );
        self.open_router(namespace, nat, network, address)
    }

    /// A router in the local network of another one.
    pub fn router_behind(&self, outer: &Router, nat: Nat) -> Router {
        let (namespace, address) = self.join(outer, "wan");
        let mut router = self.open_router(namespace, nat, self.next_network(), address);
        router.seen_as = outer.seen_as;
        router
    }

    /// A host in the local network of `router`.
    pub fn behind(&self, router: &Router) -> Host {
        let (namespace, address) = self.join(router, "eth0");
        Host {
            namespace,
            address: Some(address),
            address_v6: None,
            seen_as: vec![router.seen_as.to_string()],
        }
    }

    /// Lets nothing pass between two sides of the internet any more. Hosts of one local network are not parted.
    pub fn part(&self, left: &[&Host], right: &[&Host]) {
        let mut rules = String::new();
        for left in left.iter().flat_map(|host| &host.seen_as) {
            for right in right.iter().flat_map(|host| &host.seen_as) {
                if left.contains(':') != right.contains(':') {
                    continue;
                }
                let family = if left.contains(':') { "ip6" } else { "ip" };
                for (from, to) in [(left, right), (right, left)] {
                    rules += &format!(
                        "add rule inet lab parted {family} saddr {from} {family} daddr {to} drop\n"
                    );
                }
            }
        }
        filter(&self.internet, &rules);
    }

    /// Ends every partition.
    pub fn heal(&self) {
        filter(&self.internet, "flush chain inet lab parted");
    }

    /// From now on so many of a hundred packets that cross the internet are lost: 1 to 100.
    pub fn lose(&self, percent: u8) {
        filter(
            &self.internet,
            &format!(
                "flush chain inet lab loss\nadd rule inet lab loss numgen random mod 100 <= {} drop",
                percent - 1
            ),
        );
    }

    /// A namespace that is connected to the internet by `device`, and the number of its network.
    fn uplink(&self, device: &str) -> (String, u8) {
        let (namespace, network) = (self.namespace(), self.next_network());
        let port = format!("net{network}");
        connect(&self.internet, &port, &namespace, device);
        configure(
            &self.internet,
            &format!("addr add {}/24 dev {port}", internet_v4(network, 1)),
        );
        (namespace, network)
    }

    fn give_v6(&self, namespace: &str, network: u8) -> Ipv6Addr {
        configure(
            &self.internet,
            &format!(
                "addr add {}/64 dev net{network} nodad",
                internet_v6(network, 1)
            ),
        );
        let address = internet_v6(network, 2);
        configure(
            namespace,
            &format!(
                "addr add {address}/64 dev eth0 nodad\nroute add ::/0 via {}",
                internet_v6(network, 1)
            ),
        );
        address
    }

    fn open_router(&self, namespace: String, nat: Nat, network: u8, seen_as: Ipv4Addr) -> Router {
        let router = Router {
            namespace,
            nat,
            network,
            hosts: Cell::new(1),
            seen_as,
        };
        configure(
            &router.namespace,
            &format!(
                "link add lan type bridge\nlink set lan up\naddr add {}/24 dev lan",
                router.local(1)
            ),
        );
        forward(&router.namespace);
        filter(&router.namespace, &router.rules());
        router
    }

    /// A namespace in the local network of `router`, connected to it by `device`, and its address there.
    fn join(&self, router: &Router, device: &str) -> (String, Ipv4Addr) {
        let namespace = self.namespace();
        let number = router.hosts.get() + 1;
        router.hosts.set(number);
        let port = format!("lan{number}");
        connect(&router.namespace, &port, &namespace, device);
        configure(&router.namespace, &format!("link set {port} master lan"));
        let address = router.local(number);
        configure(
            &namespace,
            &format!(
                "addr add {address}/24 dev {device}\nroute add default via {}",
                router.local(1)
            ),
        );
        (namespace, address)
    }

    fn namespace(&self) -> String {
        let mut all = self.namespaces.borrow_mut();
        let name = format!("{}-{}", self.name, all.len());
        run(Command::new("ip").args(["netns", "add", &name]), "");
        all.push(name.clone());
        configure(&name, "link set lo up");
        name
    }

    fn next_network(&self) -> u8 {
        let number = self
            .networks
            .get()
            .checked_add(1)
            .expect("fewer networks than addresses");
        self.networks.set(number);
        number
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in self.namespaces.borrow().iter() {
            remove(namespace);
        }
    }
}

impl Router {
    fn local(&self, host: u8) -> Ipv4Addr {
        match self.nat {
            Nat::Carrier => Ipv4Addr::new(100, 64, self.network, host),
            _ => Ipv4Addr::new(192, 168, self.network, host),
        }
    }

    fn rules(&self) -> String {
        let masquerade = match self.nat {
            Nat::Hard => "masquerade fully-random",
            _ => "masquerade",
        };
        // What nobody asked for is dropped without a word, as home routers do: an answer would end a hole punch.
        let unasked = match self.nat {
            Nat::OneToOne => "",
            _ => "iifname wan ct state new drop",
        };
        let inward = match self.nat {
            Nat::OneToOne => format!("iifname wan dnat ip to {}", self.local(2)),
            _ => String::new(),
        };
        let blocked = match self.nat {
            Nat::UdpBlocked => "meta l4proto udp drop",
            _ => "",
        };
        format!(
            "table inet lab {{
                chain inbound {{ type filter hook input priority 0; {unasked}; }}
                chain through {{ type filter hook forward priority 0; {blocked}; {unasked}; }}
                chain inward {{ type nat hook prerouting priority -100; {inward}; }}
                chain outward {{ type nat hook postrouting priority 100; oifname wan {masquerade}; }}
            }}"
        )
    }
}

impl Host {
    /// What comes before a command so that it runs here and ends with the thread that has started it.
    pub fn wrapper(&self) -> Vec<&str> {
        let mut words = vec!["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec"];
        words.push(&self.namespace);
        words
    }

    /// Starts the program with `more` beside what every node of a lab has, and waits until it has applied its file.
    pub fn node(&self, more: &str) -> NodeUnderTest {
        let folder = Arc::new(tempfile::tempdir().expect("a folder"));
        fs::write(
            folder.path().join("edgevpn.toml"),
            format!("{}{more}", self.base()),
        )
        .expect("written");
        let node = NodeUnderTest::start_by(folder, &self.wrapper());
        node.until("ready", |status| status["generation"].as_u64() >= Some(1));
        node
    }

    /// The part of a configuration that every node of a lab has.
    pub fn base(&self) -> String {
        let listen: Vec<String> = [
            self.address.map(|_| "/ip4/0.0.0.0"),
            self.address_v6.map(|_| "/ip6/::"),
        ]
        .into_iter()
        .flatten()
        .flat_map(|any| {
            [
                format!("\"{any}/tcp/{PORT}\""),
                format!("\"{any}/udp/{PORT}/quic-v1\""),
            ]
        })
        .collect();
        format!(
            r#"version = 1
[node]
state_dir = "state"
[transport]
listen = [{}]
port_mapping = false
[api]
listen = "unix:api.sock"
[log]
format = "json"
level = "info,edgevpn=debug"
[reload]
settle = "20ms"
poll_interval = "1s"
"#,
            listen.join(", ")
        )
    }

    /// Bytes and packets that it has sent since it is there.
    pub fn sent(&self) -> (u64, u64) {
        let counters = Command::new("ip")
            .args(["netns", "exec", &self.namespace, "cat"])
            .args(
                ["bytes", "packets"]
                    .map(|what| format!("/sys/class/net/eth0/statistics/tx_{what}")),
            )
            .output()
            .expect("the command starts");
        let text = String::from_utf8_lossy(&counters.stdout);
        let mut lines = text.lines().map(|line| line.parse().expect("a number"));
        (lines.next().expect("bytes"), lines.next().expect("packets"))
    }

    /// Where others dial `node`, which runs here.
    pub fn dial(&self, node: &NodeUnderTest) -> String {
        let address = self.address.expect("an IPv4 address");
        format!("/ip4/{address}/tcp/{PORT}/p2p/{}", node.peer_id())
    }

    /// The same over IPv6.
    pub fn dial_v6(&self, node: &NodeUnderTest) -> String {
        let address = self.address_v6.expect("an IPv6 address");
        format!("/ip6/{address}/tcp/{PORT}/p2p/{}", node.peer_id())
    }
}

/// A program at a host, until it is dropped.
pub struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Program {
    pub fn start(host: &Host, program: &str, arguments: &[impl AsRef<OsStr>]) -> Self {
        let wrapper = host.wrapper();
        let mut child = Command::new(wrapper[0])
            .args(&wrapper[1..])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, lines }
    }

    /// The next line that it writes; empty when there is none any more.
    pub fn line(&mut self) -> String {
        self.lines
            .next()
            .map_or(String::new(), |line| line.expect("text"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn internet_v4(network: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(INTERNET[0], INTERNET[1], network, host)
}

fn internet_v6(network: u8, host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2600, 0x44, 0, network.into(), 0, 0, 0, host.into())
}

/// Lays a cable between two namespaces.
fn connect(left: &str, left_device: &str, right: &str, right_device: &str) {
    let words = [
        "link",
        "add",
        left_device,
        "netns",
        left,
        "type",
        "veth",
        "peer",
        "name",
        right_device,
        "netns",
        right,
    ];
    run(Command::new("ip").args(words), "");
    configure(left, &format!("link set {left_device} up"));
    configure(right, &format!("link set {right_device} up"));
}

/// Carries out commands of `ip` in a namespace, one a line.
fn configure(namespace: &str, lines: &str) {
    run(
        Command::new("ip").args(["-n", namespace, "-batch", "-"]),
        lines,
    );
}

fn filter(namespace: &str, rules: &str) {
    run(
        Command::new("ip").args(["netns", "exec", namespace, "nft", "-f", "-"]),
        rules,
    );
}

fn forward(namespace: &str) {
    let switches =
        "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding";
    run(
        Command::new("ip").args(["netns", "exec", namespace, "sh", "-c", switches]),
        "",
    );
}

fn run(command: &mut Command, input: &str) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let mut stdin = child.stdin.take().expect("piped");
    // A command that does not read its input says why when it ends.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let done = child.wait_with_output().expect("it ends");
    assert!(
        done.status.success(),
        "{command:?} with {input:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// Removes what a run that was killed has left behind.
fn sweep() {
    let Ok(entries) = fs::read_dir("/run/netns") else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix(PREFIX) else {
            continue;
        };
        let process = rest.split('-').next().unwrap_or_default();
        if !Path::new("/proc").join(process).exists() {
            remove(&name);
        }
    }
}

/// Ends every program of a namespace, then the namespace. Whatever fails was gone before.
fn remove(namespace: &str) {
    let listed = Command::new("ip")
        .args(["netns", "pids", namespace])
        .output();
    if let Ok(listed) = listed {
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            let process = line
                .trim()
                .parse()
                .ok()
                .and_then(rustix::process::Pid::from_raw);
            if let Some(process) = process {
                let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
            }
        }
    }
    let _ = Command::new("ip")
        .args(["netns", "delete", namespace])
        .stderr(Stdio::null())
        .status();
}

fn is_installed(tool: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(tool).is_file()))
}
