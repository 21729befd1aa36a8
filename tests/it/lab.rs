//! Between machines: nodes on hosts of their own, behind the routers that people have.

mod clock;
mod cluster;
mod measure;
pub mod member;
mod members;
pub mod network;
mod reach;
mod rotation;
mod vpn;
pub mod world;

use crate::peers::counterparty::{Answer, Counterparty};
use world::{Host, Lab, Place, Program};

/// Enough for every first write of a library to be followed by more.
const BYTES: usize = 64 * 1024;

#[test]
fn a_host_behind_a_hard_nat_reaches_one_behind_an_easy_nat_through_a_public_relay() {
    let test = "a relay between two NATs";
    let Some(lab) = Lab::new(test) else { return };
    let hub = lab.public();
    let home = lab.place(Place::Easy);
    let office = lab.place(Place::Hard);
    let relay = hub.node("[acl]\nreserve = \"anyone\"\n");
    let address = hub.dial(&relay);

    let Some(mut waits) = go_at(&home, test) else {
        return;
    };
    let Some(mut calls) = go_at(&office, test) else {
        return;
    };
    let answer = waits.reserve(&address);
    assert!(matches!(answer, Answer::Reserved(_)), "{answer:?}");
    let answer = calls.echo(&address, &waits.peer_id, BYTES);
    let Answer::Echoed(echoed) = answer else {
        panic!("{answer:?}")
    };
    assert_eq!(echoed.bytes, BYTES);
}

/// Answers each datagram with where it came from, and once more from a port that nobody has written to.
const MIRROR: &str = r#"
import socket
asked, other = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
asked.bind(("0.0.0.0", 7))
print("ready", flush=True)
while True:
    _, source = asked.recvfrom(100)
    asked.sendto(b"%d" % source[1], source)
    other.sendto(b"unasked", source)
"#;

/// Asks each mirror from one port, until it answers, and prints what has arrived.
const ASK: &str = r#"
import socket, sys
asks = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asks.bind(("0.0.0.0", 5555))
asks.settimeout(0.1)
heard = []
for mirror in sys.argv[1:]:
    before = len(heard)
    for _ in range(3):
        asks.sendto(b"?", (mirror, 7))
        try:
            while True: heard.append(asks.recv(100).decode())
        except TimeoutError: pass
        if len(heard) > before: break
print(" ".join(heard))
"#;

#[test]
fn routers_translate_as_they_are_told() {
    let Some(lab) = Lab::new("the routers of the lab") else {
        return;
    };
    let mirrors = Mirrors::start(&lab);
    let seen_from = |host: &Host| mirrors.ask(host);

    let at_home = ["5555", "5555"];
    let easy = lab.place(Place::Easy);
    assert_eq!(
        seen_from(&easy),
        at_home,
        "one port for all, and nobody else comes in"
    );
    assert_eq!(seen_from(&lab.place(Place::CarrierGrade)), at_home);
    let hard = seen_from(&lab.place(Place::Hard));
    assert_eq!(hard.len(), 2, "{hard:?}");
    assert_ne!(hard[0], hard[1], "a port for each");
    let open = seen_from(&lab.place(Place::OneToOne));
    let unasked = open.iter().filter(|word| *word == "unasked").count();
    assert_eq!(unasked, 2, "{open:?}");
    assert!(seen_from(&lab.place(Place::UdpBlocked)).is_empty());
}

#[test]
fn a_parted_internet_carries_nothing_across_until_it_is_healed() {
    let Some(lab) = Lab::new("a partition of the lab") else {
        return;
    };
    let mirrors = Mirrors::start(&lab);
    let home = lab.place(Place::Easy);
    assert_eq!(mirrors.ask(&home).len(), 2);
    lab.part(&[&home], &[&mirrors.hosts[0]]);
    assert_eq!(
        mirrors.ask(&home).len(),
        1,
        "the other mirror is on this side"
    );
    lab.heal();
    assert_eq!(mirrors.ask(&home).len(), 2);
    lab.lose(100);
    assert!(mirrors.ask(&home).is_empty());
}

struct Mirrors {
    hosts: [Host; 2],
    _running: Vec<Program>,
}

impl Mirrors {
    fn start(lab: &Lab) -> Self {
        let hosts = [lab.public(), lab.public()];
        let mut running: Vec<Program> = hosts
            .iter()
            .map(|host| Program::start(host, "python3", &["-c", MIRROR]))
            .collect();
        for mirror in &mut running {
            assert_eq!(mirror.line(), "ready");
        }
        Self {
            hosts,
            _running: running,
        }
    }

    /// What `host` hears when it asks both from one port.
    fn ask(&self, host: &Host) -> Vec<String> {
        let addresses = self.hosts.iter().filter_map(|mirror| mirror.address);
        let mut words = vec!["-c".to_owned(), ASK.to_owned()];
        words.extend(addresses.map(|address| address.to_string()));
        let line = Program::start(host, "python3", &words).line();
        line.split_whitespace().map(str::to_owned).collect()
    }
}

fn go_at(host: &Host, test: &str) -> Option<Counterparty> {
    Counterparty::start_by("go", test, &host.wrapper())
}
