//! IP packets between members, over real devices: behind NATs, over a relay, and while the file is edited.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    network::Network,
    world::{Host, Lab, Nat, Place},
};
use crate::support::node::NodeUnderTest;

const PATIENCE: Duration = Duration::from_secs(40);

/// Listens on an address, and sends back the length and a digest of what each connection brings.
const SERVE: &str = r#"
import hashlib, socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
server = socket.socket(family, socket.SOCK_STREAM)
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND: the address may come later
server.bind((sys.argv[1], 8000))
server.listen()
print("ready", flush=True)
while True:
    connection, _ = server.accept()
    digest, length = hashlib.sha256(), 0
    while data := connection.recv(1 << 20):
        digest.update(data)
        length += len(data)
    connection.sendall(f"{length} {digest.hexdigest()}".encode())
    connection.close()
"#;

/// Sends so many bytes and checks what is said of them.
const SEND: &str = r#"
import hashlib, os, socket, sys
data = os.urandom(int(sys.argv[2]))
with socket.create_connection((sys.argv[1], 8000), timeout=2) as connection:
    connection.settimeout(20)
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)
    answer = b""
    while part := connection.recv(100):
        answer += part
assert answer.decode() == f"{len(data)} {hashlib.sha256(data).hexdigest()}", answer
"#;

/// A python program that ends with its host.
struct Server(std::process::Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn python(host: &Host, program: &str, arguments: &[&str]) -> Command {
    let wrapper = host.wrapper();
    let mut command = Command::new(wrapper[0]);
    command
        .args(&wrapper[1..])
        .args(["python3", "-c", program])
        .args(arguments);
    command
}

fn serve(host: &Host, address: &str) -> Server {
    use std::io::{BufRead, BufReader};
    let mut command = python(host, SERVE, &[address]);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped"))
        .read_line(&mut line)
        .expect("a line");
    assert_eq!(line.trim(), "ready");
    Server(child)
}

fn sends(host: &Host, to: &str, bytes: usize) -> bool {
    let mut command = python(host, SEND, &[to, &bytes.to_string()]);
    command
        .stderr(Stdio::null())
        .status()
        .expect("python3 starts")
        .success()
}

/// Until bytes get through.
fn reaches(host: &Host, to: &str, bytes: usize) -> Duration {
    let began = Instant::now();
    while !sends(host, to, bytes) {
        assert!(began.elapsed() < PATIENCE, "never reached {to}");
    }
    began.elapsed()
}

fn vpn(addresses: &str) -> String {
    format!("[vpn]\nenabled = true\ninterface = \"ov0\"\naddresses = [{addresses}]\n")
}

fn carrier<'a>(status: &'a Value, address: &str) -> Option<&'a str> {
    let peers = status["node"]["vpn"]["peers"].as_array()?;
    let has = |peer: &&Value| {
        peer["addresses"]
            .as_array()
            .is_some_and(|all| all.iter().any(|one| one == address))
    };
    peers.iter().find(has)?["carrier"].as_str()
}

fn has_interface(host: &Host, name: &str) -> bool {
    let wrapper = host.wrapper();
    let mut command = Command::new(wrapper[0]);
    command
        .args(&wrapper[1..])
        .args(["ip", "link", "show", name])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().expect("ip starts").success()
}

#[test]
fn members_exchange_packets_and_every_key_is_edited_meanwhile() {
    let test = "a VPN between members";
    let Some(lab) = Lab::new(test) else { return };
    let network = Network::new(360);
    let (here, there) = (lab.public(), lab.public());
    let hub = here.node(&(network.member(&[]) + &vpn("\"10.7.0.1/24\", \"fd07::1/64\"")));
    let peers = [here.dial(&hub)];
    let with = |addresses: &str| network.member(&peers) + &vpn(addresses);
    let other = there.node(&with("\"10.7.0.2/24\", \"fd07::2/64\""));
    let servers = ["10.7.0.1", "fd07::1", "10.7.0.9"].map(|address| serve(&here, address));

    reaches(&there, "10.7.0.1", 4 << 20);
    reaches(&there, "fd07::1", 4 << 20);
    let direct = |status: &Value| carrier(status, "10.7.0.1") == Some("direct");
    other.until("the path is direct", direct);
    reaches(&there, "10.7.0.1", 32 << 20);

    // Another address, another MTU: the device stays, and the old address is gone from the ledger.
    hub.write(&(here.base() + &(network.member(&[]) + &vpn("\"10.7.0.9/24\"") + "mtu = 1300\n")));
    reaches(&there, "10.7.0.9", 1 << 20);
    other.until("the old address is nobody's", |status| {
        carrier(status, "10.7.0.1").is_none()
    });

    // Another interface: new before old.
    let renamed = with("\"10.7.0.2/24\"").replace("ov0", "ov1");
    other.write(&(there.base() + &renamed));
    other.until("the new interface is up", |status| {
        status["node"]["vpn"]["interface"] == "ov1"
    });
    reaches(&there, "10.7.0.9", 1 << 20);
    assert!(has_interface(&there, "ov1") && !has_interface(&there, "ov0"));

    // An address that is taken is not used, and both files stay in force.
    other.write(&(there.base() + &with("\"10.7.0.9/24\"").replace("ov0", "ov1")));
    other.until("the conflict is told", |status| {
        status["node"]["vpn"]["conflicts"]
            .as_array()
            .is_some_and(|all| !all.is_empty())
    });

    other.write(&(there.base() + &network.member(&peers)));
    other.until("it is off", |status| status["node"]["vpn"].is_null());
    assert!(!has_interface(&there, "ov1"));
    drop(servers);
}

#[test]
fn two_members_behind_nats_reach_each_other_through_a_relay_and_then_directly() {
    let test = "a VPN behind NATs";
    let Some(lab) = Lab::new(test) else { return };
    let network = Network::new(360);
    let public = lab.public();
    let hub = public.node(&(network.member(&[]) + &vpn("\"10.7.0.1/24\"")));
    let address = public.dial(&hub);
    let relay = format!("[relay]\npeers = [\"{address}\"]\n");
    let member = |place: &Host, own: &str| -> NodeUnderTest {
        place.node(
            &(network.member(std::slice::from_ref(&address))
                + &vpn(&format!("\"{own}/24\""))
                + &relay),
        )
    };
    let homes = [lab.place(Place::Easy), lab.behind(&lab.router(Nat::Hard))];
    let one = member(&homes[0], "10.7.0.2");
    let other = member(&homes[1], "10.7.0.3");
    let _server = serve(&homes[1], "10.7.0.3");
    let took = reaches(&homes[0], "10.7.0.3", 1 << 20);
    assert!(took < Duration::from_secs(20), "took {took:?}");
    for (node, address) in [(&one, "10.7.0.3"), (&other, "10.7.0.2")] {
        node.until("it says how", |status| {
            carrier(status, address).is_some_and(|carrier| carrier != "none")
        });
    }
}
