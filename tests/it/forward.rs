//! The packet pump: real connections, devices whose kernel is the test.

use std::{
    net::IpAddr,
    os::unix::net::UnixDatagram,
    sync::Arc,
    time::{Duration, Instant},
};

use edgevpn::{
    config::Peer,
    device::{self, Device},
    id::PeerId,
    node::forward::{Carrier, Forward, PeerReport, Reach},
    overlay::{
        checksum::Sum,
        coalesce::Takes,
        packet::Header,
        router::Drop,
        virtio::{self, Offload, Segmentation, SumLeft},
    },
};

use crate::support::net::{NetUnderTest, config, token};

const DEADLINE: Duration = Duration::from_secs(30);
/// No direct datagrams.
const STREAMS: Option<u16> = None;
const DIRECT: Option<u16> = Some(0);
const ALL: Takes = Takes {
    tcp: true,
    udp: true,
};

/// A node with a pump, and the machine on the other side of its device.
struct Machine {
    net: NetUnderTest,
    forward: Forward,
    far: UnixDatagram,
    own: IpAddr,
    _device: Arc<Device>,
}

impl Machine {
    async fn start(own: &str, takes: Takes, listen: &[&str], carrier: Option<u16>) -> Self {
        let net = NetUnderTest::start(config(&token(60)), listen).await;
        let forward =
            Forward::start(net.id(), net.handle.streams().clone(), carrier).expect("starts");
        let (device, far) = device::pair("memory", takes).expect("a pair");
        far.0.set_read_timeout(Some(DEADLINE)).expect("set");
        let device = Arc::new(device);
        forward.set_device(Some(device.clone()));
        Self {
            net,
            forward,
            far: far.0,
            own: own.parse().expect("an address"),
            _device: device,
        }
    }

    fn knows(&self, others: &[(&Machine, &[&str])]) {
        let reach = |(other, prefixes): &(&Machine, &[&str])| Reach {
            peer: other.net.id(),
            prefixes: prefixes
                .iter()
                .map(|prefix| prefix.parse().expect("a prefix"))
                .collect(),
        };
        let members: Vec<Reach> = others.iter().map(reach).collect();
        self.forward.publish(&[self.own], &[], &members);
    }

    fn sends(&self, offload: Offload, packet: &[u8]) {
        let given = [&offload.encode(0)[..], packet].concat();
        self.far.send(&given).expect("the device takes it");
    }

    /// The next packet the device hands over.
    async fn receives(&self) -> (Offload, Vec<u8>) {
        let far = self.far.try_clone().expect("a clone");
        let received = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; device::MOST];
            let length = far.recv(&mut buffer).expect("a packet within the deadline");
            buffer.truncate(length);
            buffer
        });
        let bytes = received.await.expect("received");
        let (header, packet) = bytes
            .split_first_chunk::<{ virtio::HEADER }>()
            .expect("a header");
        (
            Offload::decode(header).expect("a header we know"),
            packet.to_vec(),
        )
    }

    async fn dropped(&self, reason: Drop, count: u64) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let report = self.forward.report();
            let found = report.dropped.iter().find(|(found, _)| *found == reason);
            if found.is_some_and(|(_, found)| *found == count) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "never {count} of {reason:?}: {report:?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn two(takes: Takes, carrier: Option<u16>) -> (Machine, Machine) {
    let one = Machine::start("10.1.0.1", takes, &["/ip4/127.0.0.1/tcp/0"], carrier).await;
    let mut other = Machine::start("10.1.0.2", takes, &[], carrier).await;
    connect(&mut other, &one).await;
    one.knows(&[(&other, &["10.1.0.2/32"])]);
    other.knows(&[(&one, &["10.1.0.1/32"])]);
    (one, other)
}

async fn connect(from: &mut Machine, to: &Machine) {
    let (id, address) = (to.net.id(), to.net.address().await);
    from.net.apply(|config| {
        config.peers.push(Peer {
            id,
            addresses: vec![address],
        });
    });
    from.net.until_connected(&to.net).await;
}

fn udp(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
    let (from, to): (std::net::Ipv4Addr, std::net::Ipv4Addr) =
        (from.parse().unwrap(), to.parse().unwrap());
    let total = u16::try_from(28 + payload.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = Sum::default().over(&packet).complete();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend([0x13, 0x88, 0x13, 0x88]);
    packet.extend((total - 20).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    let sum = Sum::pseudo_header(from.into(), to.into(), 17, u32::from(total - 20))
        .over(&packet[20..])
        .complete();
    packet[26..28].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_and_super_packets_cross_between_two_devices() {
    let (one, other) = two(ALL, STREAMS).await;
    let there = udp("10.1.0.1", "10.1.0.2", b"there");
    one.sends(Offload::default(), &there);
    assert_eq!(other.receives().await, (Offload::default(), there));
    let back = udp("10.1.0.2", "10.1.0.1", &[7; 60_000]);
    let cut = Offload {
        segmentation: Segmentation::Udp,
        segment: 1_200,
        sum: Some(SumLeft {
            start: 20,
            offset: 6,
        }),
    };
    other.sends(cut, &back);
    assert_eq!(one.receives().await, (cut, back));
    let report = other.forward.report();
    let [peer] = report.peers.as_slice() else {
        panic!("one peer: {report:?}");
    };
    assert_eq!((peer.received.packets, peer.sent.packets), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_without_offloads_gets_the_segments_of_a_super_packet() {
    let (one, other) = two(
        Takes {
            tcp: false,
            udp: false,
        },
        STREAMS,
    )
    .await;
    let cut = Offload {
        segmentation: Segmentation::Udp,
        segment: 1_000,
        sum: Some(SumLeft {
            start: 20,
            offset: 6,
        }),
    };
    one.sends(cut, &udp("10.1.0.1", "10.1.0.2", &[7; 2_500]));
    for length in [1_028, 1_028, 528] {
        let (left, packet) = other.receives().await;
        assert_eq!((left, packet.len()), (Offload::default(), length));
        assert_eq!(
            Header::parse(&packet).map(|header| header.total),
            Ok(length)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_peer_may_not_send_never_reaches_the_device() {
    let (one, other) = two(ALL, STREAMS).await;
    // The neighbour's table says otherwise: it lets its own machine send anything.
    other.forward.publish(
        &["10.1.0.2", "10.1.0.3", "8.8.8.8"].map(|address| address.parse().unwrap()),
        &["10.0.0.0/8".parse().unwrap()],
        &[Reach {
            peer: one.net.id(),
            prefixes: vec!["0.0.0.0/0".parse().unwrap()],
        }],
    );
    for (from, to) in [
        ("10.1.0.3", "10.1.0.1"),
        ("8.8.8.8", "10.1.0.1"),
        ("10.1.0.1", "10.1.0.1"),
    ] {
        other.sends(Offload::default(), &udp(from, to, b"spoofed"));
    }
    one.dropped(Drop::Spoofed, 3).await;
    other.sends(
        Offload::default(),
        &udp("10.1.0.2", "10.1.0.9", b"elsewhere"),
    );
    one.dropped(Drop::NotForUs, 1).await;
    // What is said to be left to do does not fit the packet: it does not even leave.
    let lie = Offload {
        segmentation: Segmentation::Tcp4,
        segment: 100,
        sum: Some(SumLeft {
            start: 20,
            offset: 16,
        }),
    };
    other.sends(lie, &udp("10.1.0.2", "10.1.0.1", &[0; 500]));
    other.dropped(Drop::Malformed, 1).await;
    let honest = udp("10.1.0.2", "10.1.0.1", b"honest");
    other.sends(Offload::default(), &honest);
    assert_eq!(
        one.receives().await.1,
        honest,
        "the first packet that arrives at all"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packet_to_nobody_is_answered_with_unreachable() {
    let (one, _other) = two(ALL, STREAMS).await;
    let lost = udp("10.1.0.1", "10.1.0.77", b"anybody");
    one.sends(Offload::default(), &lost);
    let (_, answer) = one.receives().await;
    assert_eq!(answer[9], 1, "ICMP");
    assert_eq!(&answer[20..22], &[3, 1], "host unreachable");
    assert_eq!(&answer[28..28 + lost.len()], lost.as_slice());
    one.dropped(Drop::NoRoute, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_gone_or_whose_device_is_full_delays_no_other() {
    let (one, other) = two(ALL, STREAMS).await;
    let mut deaf = Machine::start("10.1.0.3", ALL, &[], STREAMS).await;
    connect(&mut deaf, &one).await;
    one.net.until_connected(&deaf.net).await;
    // Nobody reads its device.
    deaf.knows(&[(&one, &["10.1.0.1/32"])]);
    one.knows(&[(&other, &["10.1.0.2/32"]), (&deaf, &["10.1.0.3/32"])]);
    let nobody = PeerId::random();
    let gone = Reach {
        peer: nobody,
        prefixes: vec!["10.1.0.4/32".parse().unwrap()],
    };
    let reach = |machine: &Machine, prefix: &str| Reach {
        peer: machine.net.id(),
        prefixes: vec![prefix.parse().unwrap()],
    };
    one.forward.publish(
        &[one.own],
        &[],
        &[
            reach(&other, "10.1.0.2/32"),
            reach(&deaf, "10.1.0.3/32"),
            gone,
        ],
    );
    for _ in 0..400 {
        one.sends(
            Offload::default(),
            &udp("10.1.0.1", "10.1.0.3", &[3; 40_000]),
        );
        one.sends(
            Offload::default(),
            &udp("10.1.0.1", "10.1.0.4", &[4; 1_000]),
        );
    }
    let sent = Instant::now();
    let packet = udp("10.1.0.1", "10.1.0.2", b"past the crowd");
    one.sends(Offload::default(), &packet);
    assert_eq!(other.receives().await.1, packet);
    assert!(
        sent.elapsed() < Duration::from_secs(5),
        "waited {:?}",
        sent.elapsed()
    );
    let report = one.forward.report();
    let queued = report.peers.iter().map(|peer| peer.queued_bytes).max();
    assert!(queued <= Some(260 * 1024), "queues are bounded: {queued:?}");
}

/// Until both have proven the path for full-sized packets.
async fn direct(one: &Machine, other: &Machine) {
    let deadline = Instant::now() + DEADLINE;
    for machine in [one, other] {
        loop {
            let report = machine.forward.report();
            let ready =
                |peer: &PeerReport| peer.carrier == Carrier::Direct && peer.datagram >= Some(1_452);
            if report.peers.iter().all(ready) {
                break;
            }
            assert!(Instant::now() < deadline, "never direct: {report:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn super_packets_cross_as_datagrams_and_arrive_joined() {
    let (one, other) = two(ALL, DIRECT).await;
    direct(&one, &other).await;
    let packet = udp("10.1.0.1", "10.1.0.2", b"alone");
    one.sends(Offload::default(), &packet);
    assert_eq!(other.receives().await, (Offload::default(), packet));
    let payload: Vec<u8> = (0..60_000_u32).map(|at| at as u8).collect();
    let cut = Offload {
        segmentation: Segmentation::Udp,
        segment: 1_200,
        sum: Some(SumLeft {
            start: 20,
            offset: 6,
        }),
    };
    one.sends(cut, &udp("10.1.0.1", "10.1.0.2", &payload));
    let (mut joined, mut super_packets) = (Vec::<u8>::new(), 0);
    while joined.len() < payload.len() {
        let (left, packet) = other.receives().await;
        assert_eq!(left.sum, cut.sum, "the sum stays to be done");
        joined.extend(&packet[28..]);
        super_packets += 1;
    }
    assert_eq!(joined, payload);
    assert!(super_packets <= 4, "{super_packets} super-packets");
    // Probes may have come before their session was known.
    let report = one.forward.report();
    let before = report
        .dropped
        .iter()
        .find(|(reason, _)| *reason == Drop::NotAuthentic);
    let before = before.map_or(0, |(_, count)| *count);
    let stranger = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let port = one.forward.direct_port().expect("a port");
    for garbage in [&[1_u8; 100][..], &[0xff; 1_400], b"x", &[2; 31]] {
        stranger
            .send_to(garbage, ("127.0.0.1", port))
            .expect("sent");
    }
    one.dropped(Drop::NotAuthentic, before + 4).await;
}
