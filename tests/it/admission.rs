//! Caps hold under any sequence of requests, expiries, disconnects and changes of policy: `Admission` and `Acl` are
//! compared with naive versions that look at everything each time.

mod model;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use edgevpn::{
    acl::{
        Acl, Action, Audience, Entries, Entry, Membership, Mode, Operation, Rules, Standing,
        Subject, Window,
    },
    id::{Generation, Origin, PeerId, UnixTime},
    relay::{
        Admission, Bucket, CircuitId, ConnectionKey, Limit, OnShrink, Rate, Refusal, Resources,
        Settings,
        admission::{Effect, Policy, Settled},
    },
};
use proptest::prelude::*;

use model::Model;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn admission_agrees_with_a_naive_model_and_leaks_nothing(
        first in file(),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut both = Both::new(first);
        for step in steps {
            both.take(step);
        }
        both.end();
    }

    /// Likewise, with few peers of which much is told.
    #[test]
    fn admission_follows_the_members_as_the_model_does(
        steps in prop::collection::vec(member_step(), 1..60),
    ) {
        let mut both = Both::new(generous());
        both.take(Step::Edit(vec![Change::Reserve(Audience::Members)]));
        for number in 0..FEW {
            both.take(Step::Join(number, Some([192, 0, 2, number].into())));
        }
        for step in steps {
            both.take(step);
        }
        both.end();
    }

    #[test]
    fn a_decision_is_what_a_linear_search_says(
        reserve in audience(),
        connect in audience(),
        entries in prop::collection::vec((action(), subject()), 0..30),
        questions in prop::collection::vec((0..PEERS, place(), standing()), 1..40),
    ) {
        let written = Written { reserve, connect, mode: Mode::Enforce, entries };
        let acl = written.compile();
        for (number, place, standing) in questions {
            for operation in [Operation::Reserve, Operation::Connect] {
                let decision = acl.decide(operation, &peer(number), place, standing);
                prop_assert_eq!(
                    decision.admit,
                    written.admits(operation, number, place, standing),
                    "{:?} {} {:?} by {}", operation, number, place, decision.rule
                );
            }
        }
        let again = written.compile();
        prop_assert_eq!(acl.difference(&again, 9).added.total, 0);
        prop_assert_eq!(acl, again);
    }

    #[test]
    fn a_bucket_never_gives_more_than_its_rate_and_nothing_less(
        count in 1..20_u32,
        per in 1..1_000_000_u64,
        waits in prop::collection::vec(0..200_000_u64, 1..100),
    ) {
        let rate = Rate { count, per: Duration::from_nanos(per) };
        let start = now();
        let (mut bucket, mut at) = (Bucket::default(), 0);
        let full = f64::from(count);
        let mut tokens = full;
        for wait in waits {
            at += wait;
            tokens = (tokens + wait as f64 * full / per as f64).min(full);
            let taken = bucket.take(Limit::At(rate), start + Duration::from_nanos(at));
            let close = (tokens - 1.0).abs() < 1e-6;
            prop_assert!(close || taken.is_ok() == (tokens > 1.0), "{} tokens: {:?}", tokens, taken);
            match taken {
                Ok(()) => tokens -= 1.0,
                Err(wait) => {
                    let expected = (1.0 - tokens) * per as f64 / full;
                    prop_assert!((wait.as_nanos() as f64 - expected).abs() < 1.5);
                }
            }
        }
    }
}

/// The real thing and the model, fed alike and compared after each step.
struct Both {
    admission: Admission,
    model: Model,
    now: Instant,
    next_connection: u64,
}

impl Both {
    fn new(file: File) -> Self {
        Self {
            admission: Admission::new(file.policy()),
            model: Model::new(file),
            now: now(),
            next_connection: 0,
        }
    }

    fn take(&mut self, step: Step) {
        let before = self.model.load();
        let capped = !matches!(step, Step::Edit(_));
        match step {
            Step::Join(number, place) => {
                let key = self.next_connection;
                self.next_connection += 1;
                self.admission
                    .connected(peer(number), ConnectionKey(key), place);
                self.model.connected(number, key, place);
            }
            Step::Leave(at) => {
                self.sweep();
                if let Some((number, key)) = self.model.connection(at) {
                    let effects =
                        self.admission
                            .disconnected(&peer(number), ConnectionKey(key), self.now);
                    assert_eq!(told(&effects), self.model.disconnected(number, key));
                }
            }
            Step::Reserve(at) => {
                if let Some((number, key)) = self.model.connection(at) {
                    let decided =
                        self.admission
                            .reserve(peer(number), ConnectionKey(key), self.now);
                    let decided = decided.map(|reserved| reserved.renewed);
                    let expected = self.model.reserve(number, key, self.now);
                    assert_eq!(decided.map_err(|refusal| refusal.label()), expected);
                }
            }
            Step::Connect(at, to) => {
                if let Some((number, key)) = self.model.connection(at) {
                    let decided = self.admission.connect(
                        peer(number),
                        ConnectionKey(key),
                        peer(to),
                        self.now,
                    );
                    let decided =
                        decided.map(|ticket| (ticket.circuit.0, ticket.destination_connection.0));
                    let expected = self.model.connect(number, key, to, self.now);
                    assert_eq!(decided.map_err(|refusal| refusal.label()), expected);
                }
            }
            Step::Establish(at) => {
                if let Some(id) = self.model.circuit(at) {
                    let decided = self.admission.established(CircuitId(id), self.now);
                    let expected = self.model.established(id);
                    assert_eq!(decided.map_err(|refusal| refusal.label()), expected);
                }
            }
            Step::Close(at) => {
                if let Some(id) = self.model.circuit(at) {
                    self.admission.closed(CircuitId(id), self.now);
                    self.model.closed(id);
                }
            }
            Step::Wait(seconds) => self.now += Duration::from_secs(seconds),
            Step::Sweep => self.sweep(),
            Step::Edit(changes) => self.edit(edited(self.model.file(), &changes)),
            Step::Ledger(news) => self.follow(&news),
        }
        self.compare();
        if capped {
            self.model.assert_nothing_grew_beyond_its_cap(&before);
        }
    }

    fn edit(&mut self, file: File) {
        self.sweep();
        let policy = file.policy();
        let foreseen = self.admission.impact(&policy);
        let settled = self.admission.set_policy(policy.clone(), self.now);
        assert_eq!(foreseen, settled.impact, "plan and reload agree");
        let effects = told(&settled.effects);
        assert_eq!(effects.len(), settled.effects.len(), "each is told once");
        assert_eq!(effects, self.model.set_file(file));
        self.compare();
        let again = self.admission.set_policy(policy, self.now);
        assert_eq!(again.effects, [], "the same policy twice is no change");
        if self.model.evicts() {
            self.model.assert_caps_hold();
            assert_eq!(again, Settled::default(), "nothing is left to drain");
        }
    }

    /// Something has happened among the members.
    fn follow(&mut self, news: &[News]) {
        self.sweep();
        let mut members = self.model.members().clone();
        for news in news {
            match *news {
                News::Beat(number) => {
                    members.live.insert(number);
                    members.withdrawn.remove(&number);
                    members.open = false;
                }
                News::Silence(number) => {
                    members.live.remove(&number);
                }
                News::Withdraw(number) => {
                    members.live.remove(&number);
                    members.withdrawn.insert(number);
                }
                News::TimeIsUp => members.open = false,
                News::Start => members.open = members.live.is_empty(),
            }
        }
        let membership = Arc::new(Membership {
            members: members
                .live
                .iter()
                .map(|number| (peer(*number), UnixTime::from_secs(1)))
                .collect(),
            withdrawn: members
                .withdrawn
                .iter()
                .map(|number| peer(*number))
                .collect(),
            window: match members.open {
                true => Window::Open,
                false => Window::Closed,
            },
        });
        let effects = self.admission.set_membership(membership.clone(), self.now);
        assert_eq!(told(&effects).len(), effects.len(), "each is told once");
        assert_eq!(told(&effects), self.model.set_members(members));
        self.compare();
        let again = self.admission.set_membership(membership, self.now);
        assert_eq!(again, [], "the same members twice are no change");
    }

    fn sweep(&mut self) {
        let now = self.now;
        let effects: Vec<_> = std::iter::from_fn(|| self.admission.poll_expired(now)).collect();
        let expected = self.model.sweep(now);
        // What the model swept on the way may have been swept by a request already.
        let effects = told(&effects);
        assert!(expected.is_subset(&effects), "{expected:?} {effects:?}");
        let next = self.admission.next_deadline();
        assert!(next.is_none_or(|at| at > now), "nothing stays due");
    }

    fn compare(&self) {
        self.admission.check_invariants();
        let report = self.admission.report(self.now, |_| Default::default());
        let load = self.model.load();
        assert_eq!(report.circuits as usize, load.circuits);
        assert_eq!(report.handshakes as usize, load.handshakes);
        // Expired guests are counted until they are swept.
        assert!(report.guests as usize >= self.model.guests());
        for number in 0..PEERS {
            assert_eq!(
                self.admission.holds_reservation(&peer(number), self.now),
                self.model.holds(number, self.now),
                "reservation of {number}"
            );
        }
    }

    /// Everybody leaves: nothing may be left behind.
    fn end(mut self) {
        while let Some((number, key)) = self.model.connection(0) {
            self.take(Step::Leave(0));
            assert_ne!(self.model.connection(0), Some((number, key)));
        }
        self.sweep();
        let report = self.admission.report(self.now, |_| Default::default());
        assert_eq!(
            (report.reservations, report.circuits, report.handshakes),
            (0, 0, 0)
        );
        assert!(report.peers.is_empty() && self.admission.is_idle());
        assert_eq!(self.admission.next_deadline(), None);
    }
}

/// Effects in a form that both sides can produce.
fn told(effects: &[Effect]) -> BTreeSet<String> {
    let tell = |effect: &Effect| match effect {
        Effect::EndReservation { peer, .. } => format!("end {peer}"),
        Effect::CutCircuit { circuit, .. } => format!("cut {}", circuit.0),
        Effect::CloseConnections { peer } => format!("close {peer}"),
    };
    effects.iter().map(tell).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Join(u8, Option<IpAddr>),
    /// By position among the connections there are, as for all the others.
    Leave(usize),
    Reserve(usize),
    Connect(usize, u8),
    Establish(usize),
    Close(usize),
    Wait(u64),
    Sweep,
    Edit(Vec<Change>),
    Ledger(Vec<News>),
}

/// What the ledger tells of the members.
#[derive(Clone, Copy, Debug)]
enum News {
    Beat(u8),
    /// No heartbeat came in time.
    Silence(u8),
    Withdraw(u8),
    /// `acl.bootstrap` is over.
    TimeIsUp,
    /// The window opens, unless a member is known.
    Start,
}

/// What the operator wrote.
#[derive(Clone, Debug)]
struct File {
    settings: Settings,
    access: Written,
}

#[derive(Clone, Debug)]
struct Written {
    reserve: Audience,
    connect: Audience,
    mode: Mode,
    entries: Vec<(Action, Subject)>,
}

impl File {
    fn policy(&self) -> Policy {
        Policy {
            generation: Generation(1),
            acl: Arc::new(self.access.compile()),
            settings: self.settings.clone(),
        }
    }
}

impl Written {
    fn compile(&self) -> Acl {
        let entries = self.entries.iter().map(|(action, subject)| {
            let entry = Entry {
                subject: *subject,
                list: None,
                origin: Origin::Default,
            };
            (*action, entry)
        });
        Acl::compile(Rules {
            reserve: self.reserve,
            connect: self.connect,
            reserve_origin: Origin::Default,
            connect_origin: Origin::Default,
            bootstrap_origin: Origin::Default,
            mode: self.mode,
            entries: entries.collect::<Entries>(),
            tests: Vec::new(),
        })
    }

    /// The access decision, word by word.
    fn admits(
        &self,
        operation: Operation,
        number: u8,
        place: Option<IpAddr>,
        standing: Standing,
    ) -> bool {
        let place = place.map(|place| place.to_canonical());
        let says = |wanted: Action| {
            self.entries.iter().any(|(action, subject)| {
                let meant = match subject {
                    Subject::Peer(named) => *named == peer(number),
                    Subject::Network(network) => {
                        place.is_some_and(|place| network.contains(&place))
                    }
                };
                *action == wanted && meant
            })
        };
        let by_audience = match self.audience(operation) {
            Audience::Anyone => true,
            Audience::Members => standing != Standing::Stranger,
            Audience::Listed => false,
        };
        !says(Action::Deny) && (says(Action::Allow) || by_audience)
    }

    fn audience(&self, operation: Operation) -> Audience {
        match operation {
            Operation::Reserve => self.reserve,
            Operation::Connect => self.connect,
        }
    }
}

const PEERS: u8 = 8;

/// Peers that meet each other's fate often.
const FEW: u8 = 3;

fn peer(number: u8) -> PeerId {
    let mut key = vec![0, 36, 8, 1, 18, 32];
    key.extend([number; 32]);
    PeerId::from_bytes(&key).expect("an Ed25519 key")
}

#[allow(clippy::disallowed_methods)] // Tests start their own clock.
fn now() -> Instant {
    Instant::now()
}

/// Few places, so that they collide: two IPv4 addresses, one of them mapped as well, and three of two /64.
fn place() -> impl Strategy<Value = Option<IpAddr>> {
    let places = [
        "192.0.2.1",
        "192.0.2.2",
        "::ffff:192.0.2.1",
        "2001:db8:0:1::1",
        "2001:db8:0:1:8000::",
        "2001:db8:0:2::1",
    ];
    let places = places.map(|place| Some(place.parse().expect("an address")));
    prop_oneof![9 => prop::sample::select(places.to_vec()), 1 => Just(None)]
}

fn subject() -> impl Strategy<Value = Subject> {
    let networks = [
        "192.0.2.0/24",
        "192.0.2.0/31",
        "192.0.2.1/32",
        "192.0.2.77/30",
        "2001:db8::/63",
        "2001:db8:0:1::/64",
        "2001:db8:0:1:8000::/65",
        "2001:db8:0:2::1/128",
        "0.0.0.0/0",
        "::/0",
    ];
    let networks = networks.map(|text| Subject::Network(text.parse().expect("a network")));
    prop_oneof![
        (0..PEERS).prop_map(|number| Subject::Peer(peer(number))),
        prop::sample::select(networks.to_vec()),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![Just(Action::Allow), Just(Action::Deny)]
}

fn audience() -> impl Strategy<Value = Audience> {
    prop_oneof![
        1 => Just(Audience::Listed),
        2 => Just(Audience::Members),
        3 => Just(Audience::Anyone),
    ]
}

fn standing() -> impl Strategy<Value = Standing> {
    prop_oneof![
        Just(Standing::Member),
        Just(Standing::Guest),
        Just(Standing::Stranger)
    ]
}

fn news(peers: u8) -> impl Strategy<Value = News> {
    prop_oneof![
        4 => (0..peers).prop_map(News::Beat),
        2 => (0..peers).prop_map(News::Silence),
        2 => (0..peers).prop_map(News::Withdraw),
        1 => Just(News::TimeIsUp),
        2 => Just(News::Start),
    ]
}

/// What happens around members: they come and go, ask, and the file changes its mind about them.
fn member_step() -> impl Strategy<Value = Step> {
    let any = 0..usize::from(FEW);
    let change = prop_oneof![
        2 => audience().prop_map(Change::Reserve),
        2 => audience().prop_map(Change::Connect),
        1 => prop_oneof![3 => Just(Mode::Enforce), 1 => Just(Mode::Shadow)].prop_map(Change::Mode),
        1 => (action(), 0..FEW)
            .prop_map(|(action, number)| Change::Add(action, Subject::Peer(peer(number)))),
        1 => Just(Change::RemoveAll),
    ];
    prop_oneof![
        6 => any.clone().prop_map(Step::Reserve),
        3 => (any.clone(), 0..FEW).prop_map(|(at, to)| Step::Connect(at, to)),
        1 => any.prop_map(Step::Establish),
        1 => prop::sample::select(vec![1, 60, 120]).prop_map(Step::Wait),
        3 => prop::collection::vec(change, 1..3).prop_map(Step::Edit),
        5 => prop::collection::vec(news(FEW), 1..3).prop_map(Step::Ledger),
    ]
}

/// A file that lets much through, so that there is something to lose.
fn file() -> impl Strategy<Value = File> {
    prop::collection::vec(change(), 0..4).prop_map(|changes| edited(&generous(), &changes))
}

fn generous() -> File {
    let settings = Settings {
        service: true,
        on_shrink: OnShrink::Drain,
        resources: Resources {
            max_data: Limit::Unlimited,
            max_duration: Limit::Unlimited,
            max_circuits: 4,
            reservation_ttl: Duration::from_secs(600),
            buffer_size: 65_536,
            max_reservations: 7,
            max_reservations_per_ip: 3,
            max_circuits_total: 8,
            reservation_rate: Limit::Unlimited,
            circuit_rate: Limit::Unlimited,
            bandwidth: Limit::Unlimited,
            bandwidth_per_circuit: Limit::Unlimited,
            max_buffers: u64::MAX,
        },
    };
    File {
        settings,
        access: Written {
            reserve: Audience::Anyone,
            connect: Audience::Anyone,
            mode: Mode::Enforce,
            entries: Vec::new(),
        },
    }
}

fn edited(file: &File, changes: &[Change]) -> File {
    changes
        .iter()
        .fold(file.clone(), |file, change| change.of(&file))
}

/// One line that the operator edits.
#[derive(Clone, Debug)]
enum Change {
    Service(bool),
    OnShrink(OnShrink),
    MaxCircuits(u32),
    MaxCircuitsTotal(u32),
    MaxReservations(u32),
    MaxReservationsPerIp(u32),
    ReservationTtl(u64),
    Reserve(Audience),
    Connect(Audience),
    Mode(Mode),
    Add(Action, Subject),
    RemoveAll,
}

impl Change {
    fn of(&self, file: &File) -> File {
        let mut new = file.clone();
        let (settings, access) = (&mut new.settings, &mut new.access);
        let resources = &mut settings.resources;
        match self {
            Change::Service(service) => settings.service = *service,
            Change::OnShrink(on_shrink) => settings.on_shrink = *on_shrink,
            Change::MaxCircuits(cap) => resources.max_circuits = *cap,
            Change::MaxCircuitsTotal(cap) => resources.max_circuits_total = *cap,
            Change::MaxReservations(cap) => resources.max_reservations = *cap,
            Change::MaxReservationsPerIp(cap) => resources.max_reservations_per_ip = *cap,
            Change::ReservationTtl(ttl) => resources.reservation_ttl = Duration::from_secs(*ttl),
            Change::Reserve(audience) => access.reserve = *audience,
            Change::Connect(audience) => access.connect = *audience,
            Change::Mode(mode) => access.mode = *mode,
            Change::Add(action, subject) => access.entries.push((*action, *subject)),
            Change::RemoveAll => access.entries.clear(),
        }
        new
    }
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        1 => prop::bool::weighted(0.8).prop_map(Change::Service),
        2 => prop_oneof![Just(OnShrink::Drain), Just(OnShrink::Evict)].prop_map(Change::OnShrink),
        2 => (0..5_u32).prop_map(Change::MaxCircuits),
        2 => (0..9_u32).prop_map(Change::MaxCircuitsTotal),
        2 => (0..8_u32).prop_map(Change::MaxReservations),
        2 => (0..4_u32).prop_map(Change::MaxReservationsPerIp),
        1 => prop::sample::select(vec![1, 60, 600]).prop_map(Change::ReservationTtl),
        1 => audience().prop_map(Change::Reserve),
        1 => audience().prop_map(Change::Connect),
        1 => prop_oneof![3 => Just(Mode::Enforce), 1 => Just(Mode::Shadow)].prop_map(Change::Mode),
        2 => (action(), subject()).prop_map(|(action, subject)| Change::Add(action, subject)),
        2 => Just(Change::RemoveAll),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let any = 0..64_usize;
    prop_oneof![
        4 => (0..PEERS, place()).prop_map(|(number, place)| Step::Join(number, place)),
        2 => any.clone().prop_map(Step::Leave),
        6 => any.clone().prop_map(Step::Reserve),
        8 => (any.clone(), 0..PEERS).prop_map(|(at, to)| Step::Connect(at, to)),
        6 => any.clone().prop_map(Step::Establish),
        2 => any.prop_map(Step::Close),
        2 => prop::sample::select(vec![0, 1, 30, 59, 60, 120, 600]).prop_map(Step::Wait),
        1 => Just(Step::Sweep),
        3 => prop::collection::vec(change(), 1..4).prop_map(Step::Edit),
        3 => prop::collection::vec(news(PEERS), 1..3).prop_map(Step::Ledger),
    ]
}

/// A refusal's label is what both sides compare; a status follows from it.
#[test]
fn every_refusal_has_the_status_that_the_table_says() {
    let rule = Written {
        reserve: Audience::Listed,
        connect: Audience::Listed,
        mode: Mode::Enforce,
        entries: Vec::new(),
    };
    let rule = rule
        .compile()
        .decide(Operation::Reserve, &peer(1), None, Standing::Stranger)
        .rule;
    let prefix = "192.0.2.1/32".parse().expect("a prefix");
    let retry_after = Duration::ZERO;
    let operation = Operation::Connect;
    let cases = [
        (Refusal::Denied(rule), 202),
        (Refusal::ServiceOff, 202),
        (Refusal::Stopping, 202),
        (Refusal::Relayed, 202),
        (Refusal::NodeFull { cap: 1 }, 200),
        (Refusal::AddressFull { prefix, cap: 1 }, 200),
        (Refusal::GuestsFull { cap: 16 }, 200),
        (
            Refusal::TooFast {
                operation,
                retry_after,
            },
            201,
        ),
        (Refusal::SourceFull { cap: 1 }, 201),
        (Refusal::DestinationFull { cap: 1 }, 201),
        (Refusal::CircuitsFull { cap: 1 }, 201),
        (Refusal::BuffersFull { cap: 1 }, 201),
        (Refusal::HandshakesFull { cap: 1 }, 201),
        (Refusal::Unreachable, 203),
        (Refusal::NoReservation, 204),
        (Refusal::Malformed, 400),
        (Refusal::Unexpected, 401),
    ];
    let labels: BTreeSet<_> = cases.iter().map(|(refusal, _)| refusal.label()).collect();
    assert_eq!(labels.len(), cases.len(), "each has a label of its own");
    for (refusal, status) in cases {
        assert_eq!(refusal.status() as u16, status, "{refusal}");
    }
}
