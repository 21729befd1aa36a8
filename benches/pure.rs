//! What the pure core costs: access decisions with up to a million entries, admission with up to a million
//! reservations. Prints each figure beside its target; ends with 1 when one is missed.
//!
//! Times are the median of blocks of a thousand operations, so that a busy machine does not spoil them; the mean, with
//! all that came between, stands behind.
//!
//! `cargo bench --bench pure`, or one part of it: `cargo bench --bench pure -- access|admission|members|network`
#![allow(clippy::disallowed_methods)] // It measures time and its own memory.

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use edgevpn::{
    acl::{
        Acl, Action, Audience, Entries, Entry, Membership, Mode, Operation, Rules, Standing,
        Subject, Window,
    },
    id::{Generation, Origin, PeerId, UnixTime},
    ledger::{Bucket, Ledger, Ownership, Record, Terms},
    relay::{
        Admission, ConnectionKey, Limit, OnShrink, Rate, Resources, Settings, admission::Policy,
    },
    wire,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use libp2p::identity::Keypair;

const MILLION: u32 = 1_000_000;

/// Issue text: an access decision with a million entries, its compilation, and the memory of both.
const MAX_DECISION: Duration = Duration::from_nanos(200);
const MAX_COMPILE: Duration = Duration::from_secs(2);
const MAX_MEMORY: u64 = 200 << 20;

/// Issue text: each operation of admission, with up to a million reservations.
const MAX_OPERATION: Duration = Duration::from_micros(2);

/// Issue text: with 10,000 members and 1,000 changes a second, a decision, and a change until it is in force.
const MAX_MEMBER: Duration = Duration::from_micros(1);
const MAX_MEMBERSHIP: Duration = Duration::from_millis(50);

/// The same, for a network: a message of changes until it is in force, and the memory of all.
const MEMBERS: u32 = 10_000;
const CHANGES: usize = 1_000;
const MAX_MEMBERS_MEMORY: u64 = 100 << 20;

fn main() -> ExitCode {
    let mut verdict = Verdict::default();
    let named: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let wanted = |part: &str| {
        let wanted = named.is_empty() || named.iter().any(|name| name == part);
        if wanted {
            println!("\n{part}");
        }
        wanted
    };
    println!("this machine");
    for mebibytes in [1, 64] {
        let read = random_read(mebibytes << 20).median();
        verdict.line(
            &format!("one random read of {mebibytes} MiB"),
            format!("{read:.1?}"),
            None,
        );
    }
    if wanted("access") {
        for (count, mix) in [
            (1_000, Mix::Peers),
            (MILLION, Mix::Peers),
            (1_000, Mix::All),
            (MILLION, Mix::All),
        ] {
            access(count, mix, &mut verdict);
        }
    }
    if wanted("admission") {
        for count in [1_000, 10_000, 100_000, MILLION] {
            admission(count, &mut verdict);
        }
    }
    if wanted("members") {
        members(10_000, &mut verdict);
    }
    if wanted("network") {
        network(&mut verdict);
    }
    if verdict.missed == 0 {
        println!("\nall targets are met");
        ExitCode::SUCCESS
    } else {
        println!("\n{} targets are missed", verdict.missed);
        ExitCode::FAILURE
    }
}

/// Reads of which each needs the one before: what a decision cannot do without once its table leaves the cache.
fn random_read(bytes: usize) -> Blocks {
    let lines = vec![[1_u64; 8]; bytes / 64];
    let mut last = 0;
    Blocks::time(&(0..u64::from(MILLION)).collect::<Vec<_>>(), |at| {
        let line = shuffle(last ^ at) % lines.len() as u64;
        last = black_box(lines[line as usize][0] + line);
    })
}

#[derive(Clone, Copy, Debug)]
enum Mix {
    Peers,
    /// Half peers, a quarter IPv4 and a quarter IPv6 networks, of several lengths.
    All,
}

fn access(count: u32, mix: Mix, verdict: &mut Verdict) {
    let before = resident();
    let start = Instant::now();
    let entries = entries(count, mix);
    let pushed = start.elapsed();
    let acl = Acl::compile(Rules {
        reserve: Audience::Anyone,
        connect: Audience::Anyone,
        reserve_origin: Origin::Default,
        connect_origin: Origin::Default,
        bootstrap_origin: Origin::Default,
        mode: Mode::Enforce,
        entries,
        tests: Vec::new(),
    });
    let compiled = start.elapsed();
    let memory = resident().saturating_sub(before);
    println!("  {count} entries ({mix:?})");
    verdict.time("packed", pushed, None);
    verdict.time("packed and compiled", compiled, Some(MAX_COMPILE));
    verdict.memory("resident", memory, Some(MAX_MEMORY));

    const QUESTIONS: u32 = MILLION;
    let ask = |name, verdict: &mut Verdict, question: &dyn Fn(u32) -> (PeerId, IpAddr)| {
        let questions: Vec<_> = (0..QUESTIONS).map(question).collect();
        let blocks = Blocks::time(&questions, |(peer, address)| {
            black_box(acl.decide(Operation::Connect, peer, Some(*address), Standing::Stranger));
        });
        verdict.blocks(name, blocks, MAX_DECISION);
    };
    let any = |at: u32| (shuffle(u64::from(at)) % u64::from(count)) as u32;
    ask("decide, a peer that is listed", verdict, &|at| {
        (peer(any(at)), nowhere(at))
    });
    ask("decide, a peer that is not", verdict, &|at| {
        (peer(count + at), nowhere(at))
    });
    if let Mix::All = mix {
        ask("decide, by IPv4 network", verdict, &|at| {
            (peer(count + at), IpAddr::V4(network_4(any(at)).network()))
        });
        ask("decide, by IPv6 network", verdict, &|at| {
            (peer(count + at), IpAddr::V6(network_6(any(at)).network()))
        });
        ask("decide, outside all IPv6", verdict, &|at| {
            let address = u128::from(shuffle(u64::from(at))) << 32;
            (peer(count + at), IpAddr::V6(Ipv6Addr::from_bits(address)))
        });
    }
}

fn entries(count: u32, mix: Mix) -> Entries {
    let file: Arc<str> = "deny.d/list.txt".into();
    let list: Arc<str> = "list".into();
    let entry = |number: u32| {
        let subject = match (mix, number % 4) {
            (Mix::Peers, _) | (Mix::All, 0 | 2) => Subject::Peer(peer(number)),
            (Mix::All, 1) => Subject::Network(IpNet::V4(network_4(number))),
            (Mix::All, _) => Subject::Network(IpNet::V6(network_6(number))),
        };
        let action = if number.is_multiple_of(8) {
            Action::Allow
        } else {
            Action::Deny
        };
        let entry = Entry {
            subject,
            list: Some(list.clone()),
            origin: Origin::File {
                file: file.clone(),
                line: number + 1,
            },
        };
        (action, entry)
    };
    (0..count).map(entry).collect()
}

fn admission(count: u32, verdict: &mut Verdict) {
    let peers: Vec<PeerId> = (0..count).map(peer).collect();
    let mut order: Vec<u32> = (0..count).collect();
    order.sort_unstable_by_key(|number| shuffle(u64::from(*number) + 7));
    let crowd = Crowd { peers, order };
    println!("  {count} reservations");

    let mut all: Vec<(&str, Blocks)> = Vec::new();
    let mut memory = 0;
    for _ in 0..(MILLION / count) {
        let before = resident();
        let mut admission = Admission::new(policy());
        for (at, step) in crowd.live_through(&mut admission).into_iter().enumerate() {
            match all.get_mut(at) {
                Some((_, blocks)) => blocks.0.extend(step.1.0),
                None => all.push(step),
            }
        }
        memory = memory.max(resident().saturating_sub(before));
    }
    for (what, blocks) in all {
        verdict.blocks(what, blocks, MAX_OPERATION);
    }
    verdict.memory("resident", memory, None);
}

/// So many members, all with a reservation, of which a thousand come, go silent or leave, each told by itself.
fn members(count: u32, verdict: &mut Verdict) {
    const CHANGES: u32 = BLOCK;
    let rules = Rules {
        reserve: Audience::Members,
        connect: Audience::Members,
        reserve_origin: Origin::Default,
        connect_origin: Origin::Default,
        bootstrap_origin: Origin::Default,
        mode: Mode::Enforce,
        entries: entries(1_000, Mix::All),
        tests: Vec::new(),
    };
    let policy = Policy {
        acl: Arc::new(Acl::compile(rules)),
        ..policy()
    };
    // Past the peers that the entries name.
    let peers: Vec<PeerId> = (MILLION..MILLION + count).map(peer).collect();
    let beat = UnixTime::from_secs(1);
    let mut known = Membership {
        members: peers.iter().map(|peer| (*peer, beat)).collect(),
        ..Membership::default()
    };
    let mut admission = Admission::new(policy.clone());
    let now = Instant::now();
    admission.set_membership(Arc::new(known.clone()), now);
    for (number, peer) in (0..).zip(&peers) {
        let key = ConnectionKey(number);
        admission.connected(*peer, key, Some(Ipv4Addr::from_bits(number as u32).into()));
        admission.reserve(*peer, key, now).expect("a member");
    }
    println!("  {count} members with a reservation each");
    let decided = Blocks::time(&peers, |peer| {
        let standing = known.standing(peer);
        black_box(policy.acl.decide(Operation::Reserve, peer, None, standing));
    });
    verdict.blocks("decide, a member", decided, MAX_MEMBER);
    let changes: Vec<u32> = (0..CHANGES).collect();
    let applied = Blocks::time(&changes, |at| {
        let peer = peers[shuffle(u64::from(*at)) as usize % peers.len()];
        match at % 3 {
            0 => drop(known.members.insert(peer, beat)),
            1 => drop(known.members.remove(&peer)),
            _ => {
                known.members.remove(&peer);
                known.withdrawn.insert(peer);
            }
        }
        black_box(admission.set_membership(Arc::new(known.clone()), now));
    });
    verdict.blocks("copy, publish and adopt a change", applied, MAX_MEMBERSHIP);
}

struct Crowd {
    peers: Vec<PeerId>,
    /// In which they come: not that of memory.
    order: Vec<u32>,
}

impl Crowd {
    fn live_through(&self, admission: &mut Admission) -> Vec<(&'static str, Blocks)> {
        let key = |number: u32| ConnectionKey(u64::from(number));
        let mut now = Instant::now();
        let mut tick = || {
            now += Duration::from_micros(1);
            now
        };
        let connected = self.each(|number, peer| {
            let address = Ipv4Addr::from_bits(number).into();
            admission.connected(*peer, key(number), Some(address));
        });
        let reserved = self.each(|number, peer| {
            admission.reserve(*peer, key(number), tick()).expect("room");
        });
        let renewed = self.each(|number, peer| {
            let renewed = admission.reserve(*peer, key(number), tick());
            assert!(renewed.expect("never refused").renewed);
        });
        // Block by block: as many handshakes may be in progress.
        let (mut connected_to, mut established, mut closed) = (vec![], vec![], vec![]);
        for block in self.order.chunks_exact(BLOCK as usize) {
            let mut circuits = Vec::with_capacity(block.len());
            let connect = Blocks::time(block, |number| {
                let peer = &self.peers[*number as usize];
                let to = &self.peers[(*number as usize + 1) % self.peers.len()];
                let ticket = admission.connect(*peer, key(*number), *to, tick());
                circuits.push(ticket.expect("room").circuit);
            });
            let establish = Blocks::time(&circuits, |circuit| {
                admission.established(*circuit, tick()).expect("room");
            });
            let close = Blocks::time(&circuits, |circuit| admission.closed(*circuit, tick()));
            connected_to.extend(connect.0);
            established.extend(establish.0);
            closed.extend(close.0);
        }
        let later = tick() + Duration::from_secs(3600 * 2);
        let expired = self.each(|_, _| {
            admission.poll_expired(later).expect("all are due");
        });
        let disconnected = self.each(|number, peer| {
            black_box(admission.disconnected(peer, key(number), later));
        });
        vec![
            ("connected", connected),
            ("reserve", reserved),
            ("renew", renewed),
            ("connect", Blocks(connected_to)),
            ("established", Blocks(established)),
            ("closed", Blocks(closed)),
            ("expire", expired),
            ("disconnected", disconnected),
        ]
    }

    fn each(&self, mut run: impl FnMut(u32, &PeerId)) -> Blocks {
        Blocks::time(&self.order, |number| {
            run(*number, &self.peers[*number as usize]);
        })
    }
}

/// Changes that arrive together: those of a tenth of a second.
const MESSAGE: usize = CHANGES / 10;

fn network(verdict: &mut Verdict) {
    let keys: Vec<Keypair> = (0..MEMBERS).map(keypair).collect();
    let names: Vec<String> = keys
        .iter()
        .map(|key| key.public().to_peer_id().to_base58())
        .collect();
    let start = UnixTime(Duration::from_secs(1_800_000_000));
    let at = |second: u32| start.saturating_add(Duration::from_secs(second.into()));
    // A heartbeat, or its end.
    let change = |member: usize, second: u32, deleted: bool| {
        let mut entry = wire::Entry {
            value: match deleted {
                true => String::new(),
                false => wire::value::heartbeat(at(second)),
            },
            owner: names[member].clone(),
            version: at(second).as_nanos(),
            updated_at: i64::try_from(at(second).0.as_secs()).expect("this century"),
            deleted,
            signature: Vec::new(),
        };
        let signed = entry.sign("healthcheck", &names[member], &keys[member]);
        signed.expect("an Ed25519 key signs");
        Record::new(Bucket::Healthcheck, &names[member], entry)
    };

    let before = resident();
    let mut ledger = Ledger::new(peer(0), TERMS);
    let mut admission = Admission::new(policy());
    let everybody: Vec<_> = (0..keys.len())
        .map(|member| change(member, 0, false))
        .collect();
    for some in everybody.chunks(CHANGES) {
        ledger.merge_records(some.to_vec(), at(0));
    }
    drop(everybody);
    let mut now = Instant::now();
    let mut membership = publish(&mut ledger, &mut admission, at(0), now);
    assert_eq!(membership.members.len(), keys.len());

    // Each second half of the changes are members that leave, the other half those that left a second ago and return.
    let (mut merges, mut applies) = (Vec::new(), Vec::new());
    let half = CHANGES / 2;
    let mut gone: Vec<usize> = Vec::new();
    for second in 1..=20_u32 {
        let leave: Vec<usize> = (0..half)
            .map(|step| (second as usize * half + step) % keys.len())
            .collect();
        let ends = leave.iter().map(|member| change(*member, second, true));
        let returns = gone.iter().map(|member| change(*member, second, false));
        let changes: Vec<_> = ends.chain(returns).collect();
        gone = leave;
        for message in changes.chunks(MESSAGE) {
            now += Duration::from_millis(100);
            let began = Instant::now();
            let merged = ledger.merge_records(message.to_vec(), at(second));
            merges.push(began.elapsed());
            assert_eq!(merged.changed.len(), message.len());
            let began = Instant::now();
            membership = publish(&mut ledger, &mut admission, at(second), now);
            applies.push(began.elapsed());
        }
    }
    let worst = |took: &[Duration]| took.iter().copied().max().unwrap_or_default();
    let median = |took: &mut Vec<Duration>| {
        took.sort_unstable();
        took[took.len() / 2]
    };
    println!("  {MEMBERS} members, {CHANGES} changes/s in messages of {MESSAGE}");
    verdict.time("merge of a message, median", median(&mut merges), None);
    verdict.time("apply of a message, median", median(&mut applies), None);
    verdict.time(
        "merge and apply, worst",
        worst(&merges) + worst(&applies),
        Some(MAX_MEMBERSHIP),
    );
    verdict.memory(
        "resident",
        resident().saturating_sub(before),
        Some(MAX_MEMBERS_MEMORY),
    );

    let acl = Acl::compile(Rules {
        reserve: Audience::Members,
        connect: Audience::Members,
        ..rules()
    });
    let ids: Vec<PeerId> = keys.iter().map(|key| key.public().to_peer_id()).collect();
    let questions: Vec<PeerId> = (0..MILLION)
        .map(|at| match at % 2 {
            0 => ids[(shuffle(at.into()) % u64::from(MEMBERS)) as usize],
            _ => peer(at),
        })
        .collect();
    let blocks = Blocks::time(&questions, |peer| {
        let standing = membership.standing(peer);
        black_box(acl.decide(Operation::Reserve, peer, Some(nowhere(1)), standing));
    });
    verdict.blocks("decide, members and strangers", blocks, MAX_MEMBER);
}

const TERMS: Terms = Terms {
    ownership: Ownership::Enforce,
    ttl: Duration::from_secs(480),
    quota_entries: 256,
    quota_bytes: 64 << 10,
};

/// What follows a merge: the set of members is read off and put in force.
fn publish(
    ledger: &mut Ledger,
    admission: &mut Admission,
    calendar: UnixTime,
    now: Instant,
) -> Arc<Membership> {
    let (members, withdrawn) = ledger.membership(calendar);
    let membership = Arc::new(Membership {
        members,
        withdrawn,
        window: Window::Closed,
    });
    black_box(admission.set_membership(membership.clone(), now));
    membership
}

fn keypair(number: u32) -> Keypair {
    let mut seed = [0; 32];
    seed[..4].copy_from_slice(&number.to_le_bytes());
    Keypair::ed25519_from_bytes(seed).expect("32 bytes")
}

/// How long each block of a thousand operations took.
struct Blocks(Vec<Duration>);

const BLOCK: u32 = 1_000;

impl Blocks {
    fn time<T>(operands: &[T], mut run: impl FnMut(&T)) -> Self {
        let mut took = Vec::with_capacity(operands.len() / BLOCK as usize);
        for block in operands.chunks_exact(BLOCK as usize) {
            let start = Instant::now();
            block.iter().for_each(&mut run);
            took.push(start.elapsed());
        }
        Self(took)
    }

    /// Of one operation.
    fn median(&mut self) -> Duration {
        self.0.sort_unstable();
        self.0[self.0.len() / 2] / BLOCK
    }

    fn mean(&self) -> Duration {
        self.0.iter().sum::<Duration>() / self.0.len() as u32 / BLOCK
    }
}

fn policy() -> Policy {
    let rate = Limit::At(Rate {
        count: 30,
        per: Duration::from_secs(120),
    });
    // The entries of the rules name some of the peers: they are admitted all the same, and evaluated.
    let rules = Rules {
        mode: Mode::Shadow,
        ..rules()
    };
    Policy {
        generation: Generation(1),
        acl: Arc::new(Acl::compile(rules)),
        settings: Settings {
            service: true,
            on_shrink: OnShrink::Drain,
            resources: Resources {
                max_data: Limit::Unlimited,
                max_duration: Limit::Unlimited,
                max_circuits: 64,
                reservation_ttl: Duration::from_secs(3600),
                buffer_size: 65_536,
                max_reservations: 2 * MILLION,
                max_reservations_per_ip: 8,
                max_circuits_total: 2048,
                reservation_rate: rate,
                circuit_rate: rate,
                bandwidth: Limit::Unlimited,
                bandwidth_per_circuit: Limit::Unlimited,
                max_buffers: u64::MAX,
            },
        },
    }
}

fn rules() -> Rules {
    Rules {
        reserve: Audience::Anyone,
        connect: Audience::Anyone,
        reserve_origin: Origin::Default,
        connect_origin: Origin::Default,
        bootstrap_origin: Origin::Default,
        mode: Mode::Enforce,
        entries: entries(1_000, Mix::All),
        tests: Vec::new(),
    }
}

/// Well mixed and without repetition (the finaliser of SplitMix64).
fn shuffle(number: u64) -> u64 {
    let mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn peer(number: u32) -> PeerId {
    let mut bytes = [0; 38];
    bytes[..6].copy_from_slice(&[0, 36, 8, 1, 18, 32]);
    for (at, chunk) in bytes[6..].chunks_mut(8).enumerate() {
        let part = shuffle(u64::from(number) * 4 + at as u64);
        chunk.copy_from_slice(&part.to_le_bytes());
    }
    PeerId::from_bytes(&bytes).expect("an Ed25519 key")
}

/// /24 to /32.
fn network_4(number: u32) -> Ipv4Net {
    let address = Ipv4Addr::from_bits(shuffle(u64::from(number)) as u32);
    Ipv4Net::new(address, 24 + (number % 9) as u8).expect("a length")
}

/// /32 to /64, below 2000::/3.
fn network_6(number: u32) -> Ipv6Net {
    let half = shuffle(u64::from(number)) >> 3 | 1 << 61;
    let address = Ipv6Addr::from_bits(u128::from(half) << 64);
    Ipv6Net::new(address, 32 + (number % 33) as u8).expect("a length")
}

/// In no list: below 2000::/3.
fn nowhere(number: u32) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_bits(u128::from(number)))
}

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = pages.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0_u64) * 4096
}

#[derive(Default)]
struct Verdict {
    missed: u32,
}

impl Verdict {
    fn time(&mut self, what: &str, took: Duration, target: Option<Duration>) {
        let target = target.map(|target| (took <= target, format!("{target:?}")));
        self.line(what, format!("{took:.1?}"), target);
    }

    fn blocks(&mut self, what: &str, mut blocks: Blocks, target: Duration) {
        let (median, mean) = (blocks.median(), blocks.mean());
        let target = Some((median <= target, format!("{target:?}, mean {mean:.1?}")));
        self.line(what, format!("{median:.1?}"), target);
    }

    fn memory(&mut self, what: &str, bytes: u64, target: Option<u64>) {
        let mebibytes = |bytes: u64| format!("{} MiB", bytes >> 20);
        let target = target.map(|target| (bytes <= target, mebibytes(target)));
        self.line(what, mebibytes(bytes), target);
    }

    fn line(&mut self, what: &str, figure: String, target: Option<(bool, String)>) {
        let target = target.map_or(String::new(), |(met, target)| {
            self.missed += u32::from(!met);
            format!("  {} {target}", if met { "within" } else { "MISSED" })
        });
        println!("    {what:<32}{figure:>12}{target}");
    }
}
