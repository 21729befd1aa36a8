//! Scenes of the upkeep, and its bounds under whatever may happen.
#![cfg(test)]

use std::{collections::HashMap, sync::LazyLock};

use proptest::prelude::*;

use super::*;

/// Relays that do as told, and a clock that jumps from deadline to deadline.
struct Bench {
    upkeep: Upkeep,
    now: Instant,
}

impl Bench {
    fn new(terms: Terms) -> Self {
        let now = Instant::now();
        let mut upkeep = Upkeep::new(7, now);
        upkeep.set_terms(terms, now);
        Self { upkeep, now }
    }

    fn found(&mut self, peer: PeerId, source: Source, scope: Scope) {
        self.upkeep.handle_found(peer, source, scope, self.now);
    }

    /// Does what the upkeep says: everybody is reached and grants.
    fn obey(&mut self) -> Vec<Action> {
        let mut done = Vec::new();
        while let Some(action) = self.upkeep.poll(self.now) {
            match action {
                Action::Dial(peer) => self.upkeep.handle_connected(&peer),
                Action::Reserve(peer) => self.upkeep.handle_accepted(&peer, self.now),
                Action::Release(_) => {}
            }
            done.push(action);
            assert!(done.len() < 100, "never at rest: {done:?}");
        }
        done
    }

    fn after(&mut self, span: Duration) -> &mut Self {
        self.now += span;
        self
    }

    fn held(&self) -> Vec<PeerId> {
        self.upkeep
            .relays
            .iter()
            .filter(|(_, relay)| matches!(relay.state, State::Active { .. }))
            .map(|(peer, _)| *peer)
            .collect()
    }
}

fn peers<const N: usize>() -> [PeerId; N] {
    std::array::from_fn(|_| PeerId::random())
}

fn fixed(peers: &[PeerId]) -> Terms {
    Terms {
        enabled: true,
        fixed: peers.to_vec(),
        ..Terms::default()
    }
}

fn open() -> Terms {
    fixed(&[])
}

#[test]
fn static_relays_are_asked_at_once_in_their_order_and_two_are_enough() {
    let [a, b, c] = peers();
    let mut bench = Bench::new(fixed(&[a, b, c]));
    assert_eq!(
        bench.obey(),
        [
            Action::Dial(a),
            Action::Reserve(a),
            Action::Dial(b),
            Action::Reserve(b)
        ]
    );
    assert_eq!(bench.after(BOOT_DELAY).obey(), []);
}

#[test]
fn a_lost_relay_is_replaced_by_the_next_and_dialled_again_later() {
    let [a, b, c] = peers();
    let mut bench = Bench::new(fixed(&[a, b, c]));
    bench.obey();
    bench.upkeep.handle_disconnected(&a, bench.now);
    assert_eq!(bench.obey(), [Action::Dial(c), Action::Reserve(c)]);
    bench.upkeep.handle_disconnected(&b, bench.now);
    assert_eq!(bench.obey(), [], "both rest");
    assert_eq!(bench.after(Duration::from_secs(2)).obey().len(), 2);
    assert_eq!(bench.held().len(), TARGET);
}

#[test]
fn with_static_relays_only_nobody_else_is_asked() {
    let [a, b] = peers();
    let terms = Terms {
        static_only: true,
        ..fixed(&[a])
    };
    let mut bench = Bench::new(terms);
    bench.found(b, Source::Member, Scope::Public);
    bench.after(BOOT_DELAY).obey();
    assert_eq!(bench.held(), [a]);
}

#[test]
fn a_relay_of_a_member_is_asked_at_once_a_stranger_after_a_look_around() {
    let [member, stranger] = peers();
    let mut bench = Bench::new(open());
    bench.found(stranger, Source::Found, Scope::Public);
    assert_eq!(bench.obey(), []);
    bench.found(member, Source::Member, Scope::Public);
    assert_eq!(bench.obey(), [Action::Reserve(member)]);
    bench.after(BOOT_DELAY);
    assert_eq!(bench.obey(), [Action::Reserve(stranger)]);
}

#[test]
fn four_strangers_are_a_choice_and_they_are_asked_half_a_minute_apart() {
    let found = peers::<ENOUGH_CANDIDATES>();
    let mut bench = Bench::new(open());
    for peer in found {
        bench.found(peer, Source::Found, Scope::Public);
    }
    assert_eq!(bench.obey().len(), 1);
    assert_eq!(
        bench.after(FOUND_INTERVAL - Duration::from_secs(1)).obey(),
        []
    );
    assert_eq!(bench.after(Duration::from_secs(1)).obey().len(), 1);
}

#[test]
fn nodes_spread_over_the_relays_they_all_know() {
    let relays = peers::<8>();
    let mut chosen = HashMap::new();
    for seed in 0..64 {
        let now = Instant::now();
        let mut upkeep = Upkeep::new(seed, now);
        upkeep.set_terms(open(), now);
        for peer in relays {
            upkeep.handle_found(peer, Source::Member, Scope::Public, now);
        }
        let Some(Action::Reserve(peer)) = upkeep.poll(now) else {
            panic!("somebody is asked");
        };
        *chosen.entry(peer).or_insert(0) += 1;
    }
    assert!(chosen.len() >= 6, "{chosen:?}");
}

#[test]
fn a_publicly_reachable_node_gives_discovered_reservations_back_and_keeps_static_ones() {
    let [a, b] = peers();
    let mut bench = Bench::new(fixed(&[a]));
    bench.found(b, Source::Member, Scope::Public);
    bench.obey();
    assert_eq!(bench.held().len(), 2);
    bench
        .upkeep
        .set_reachability(Reachability::Public, bench.now);
    assert_eq!(bench.obey(), [], "one probe may be mistaken");
    bench.after(PUBLIC_PATIENCE);
    assert_eq!(bench.obey(), [Action::Release(b)]);
    assert_eq!(bench.held(), [a]);
    bench
        .upkeep
        .set_reachability(Reachability::Private, bench.now);
    bench.after(MEMBER_INTERVAL);
    assert_eq!(bench.obey(), [Action::Reserve(b)]);
}

#[test]
fn while_nobody_has_said_whether_the_node_is_reached_it_holds_reservations() {
    let [a] = peers();
    let mut bench = Bench::new(open());
    bench.found(a, Source::Member, Scope::Public);
    bench.obey();
    assert_eq!(bench.held(), [a]);
    assert_eq!(
        bench.upkeep.report(bench.now).reachability,
        Reachability::Unknown
    );
}

#[test]
fn the_switch_gives_everything_back_and_takes_it_again() {
    let [a, b] = peers();
    let mut bench = Bench::new(fixed(&[a, b]));
    bench.obey();
    let off = Terms {
        enabled: false,
        ..fixed(&[a, b])
    };
    bench.upkeep.set_terms(off, bench.now);
    let mut released = bench.obey();
    released.sort_by_key(|action| *action == Action::Release(b));
    assert_eq!(released, [Action::Release(a), Action::Release(b)]);
    bench.upkeep.set_terms(fixed(&[a, b]), bench.now);
    assert_eq!(bench.obey(), [Action::Reserve(a), Action::Reserve(b)]);
}

#[test]
fn a_relay_that_leaves_the_file_is_released_and_one_that_joins_is_asked() {
    let [a, b, c] = peers();
    let mut bench = Bench::new(fixed(&[a, b]));
    bench.obey();
    bench.found(a, Source::Found, Scope::Public);
    bench.upkeep.set_terms(fixed(&[b, c]), bench.now);
    assert_eq!(
        bench.obey(),
        [Action::Release(a), Action::Dial(c), Action::Reserve(c)]
    );
}

#[test]
fn a_denied_node_asks_again_in_an_hour_and_status_says_why() {
    let [a] = peers();
    let mut bench = Bench::new(fixed(&[a]));
    assert_eq!(bench.upkeep.poll(bench.now), Some(Action::Dial(a)));
    bench.upkeep.handle_connected(&a);
    assert_eq!(bench.upkeep.poll(bench.now), Some(Action::Reserve(a)));
    bench.upkeep.handle_failed(&a, Failure::Denied, bench.now);
    let report = bench.upkeep.report(bench.now);
    assert_eq!(report.relays[0].last_failure, Some(Failure::Denied));
    assert!(matches!(report.relays[0].stage, Stage::Resting { until } if until.as_secs() >= 3600));
    assert_eq!(bench.after(Duration::from_secs(3599)).obey(), []);
    assert_eq!(bench.after(Duration::from_secs(3601)).obey().len(), 1);
}

#[test]
fn a_denied_node_that_is_joining_a_network_asks_again_in_seconds() {
    let [a] = peers();
    let mut bench = Bench::new(Terms {
        joining: true,
        ..fixed(&[a])
    });
    bench
        .upkeep
        .handle_found(a, Source::Member, Scope::Public, bench.now);
    assert_eq!(bench.upkeep.poll(bench.now), Some(Action::Reserve(a)));
    bench.upkeep.handle_failed(&a, Failure::Denied, bench.now);
    assert_eq!(
        bench.after(Duration::from_secs(5)).obey(),
        [Action::Reserve(a)]
    );
}

#[test]
fn a_reservation_outsiders_can_use_takes_the_place_of_one_they_cannot() {
    let [near, far, farther] = peers();
    let [other] = peers();
    let mut bench = Bench::new(open());
    bench.found(near, Source::Member, Scope::Private);
    bench.found(other, Source::Member, Scope::Private);
    bench.obey();
    bench.after(MEMBER_INTERVAL).obey();
    assert_eq!(bench.held().len(), 2);
    bench.found(far, Source::Member, Scope::Public);
    bench.found(farther, Source::Found, Scope::Public);
    bench.after(BOOT_DELAY).obey();
    bench.after(FOUND_INTERVAL).obey();
    let mut held = bench.held();
    held.sort_by_key(|peer| *peer == farther);
    assert_eq!(held, [far, farther]);
    assert_eq!(bench.after(FOUND_INTERVAL).obey(), [], "at rest");
}

#[test]
fn a_relay_that_said_no_costs_no_reservation_in_hand() {
    let [a, b, full] = peers();
    let mut bench = Bench::new(open());
    bench.found(a, Source::Member, Scope::Private);
    bench.found(b, Source::Member, Scope::Private);
    bench.obey();
    bench.after(MEMBER_INTERVAL).obey();
    bench.found(full, Source::Member, Scope::Public);
    bench.after(MEMBER_INTERVAL);
    assert!(matches!(
        bench.upkeep.poll(bench.now),
        Some(Action::Release(_))
    ));
    assert_eq!(bench.upkeep.poll(bench.now), Some(Action::Reserve(full)));
    bench
        .upkeep
        .handle_failed(&full, Failure::Refused, bench.now);
    bench.after(MEMBER_INTERVAL).obey();
    let before = bench.held();
    assert_eq!(before.len(), 2);
    assert_eq!(bench.after(Duration::from_secs(120)).obey(), []);
}

#[test]
fn what_is_not_answered_in_time_has_failed() {
    let [a] = peers();
    let mut bench = Bench::new(fixed(&[a]));
    bench.upkeep.poll(bench.now);
    bench.upkeep.handle_connected(&a);
    assert_eq!(bench.upkeep.poll(bench.now), Some(Action::Reserve(a)));
    assert_eq!(bench.upkeep.poll(bench.now), None);
    bench.after(ANSWER_TIMEOUT);
    assert_eq!(bench.upkeep.poll(bench.now), Some(Action::Release(a)));
    let entry = &bench.upkeep.report(bench.now).relays[0];
    assert_eq!(entry.last_failure, Some(Failure::TimedOut));
}

#[test]
fn when_a_reservation_ends_is_known_from_the_first_renewal_on() {
    let [a] = peers();
    let mut bench = Bench::new(fixed(&[a]));
    bench.obey();
    let expires = |bench: &Bench| match bench.upkeep.report(bench.now).relays[0].stage {
        Stage::Active { expires_in, .. } => expires_in,
        ref stage => panic!("{stage:?}"),
    };
    assert_eq!(expires(&bench), None);
    bench.after(Duration::from_secs(2700));
    bench.upkeep.handle_accepted(&a, bench.now);
    assert_eq!(expires(&bench), Some(Duration::from_secs(3600)));
}

#[test]
fn candidates_have_a_bound_an_age_and_members_come_first() {
    let mut bench = Bench::new(Terms {
        static_only: true,
        ..open()
    });
    for _ in 0..50 {
        bench.found(PeerId::random(), Source::Found, Scope::Public);
    }
    assert_eq!(bench.upkeep.relays.len(), MOST_CANDIDATES);
    let [member] = peers();
    bench.found(member, Source::Member, Scope::Public);
    assert_eq!(bench.upkeep.relays.len(), MOST_CANDIDATES);
    assert!(bench.upkeep.relays.contains_key(&member));
    let all: Vec<_> = bench.upkeep.relays.keys().copied().collect();
    for peer in all {
        bench.upkeep.handle_disconnected(&peer, bench.now);
    }
    bench.after(CANDIDATE_AGE).obey();
    assert!(bench.upkeep.relays.is_empty());
}

/// Something that happens to a node.
#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Found(usize, Source, Scope),
    NotARelay(usize),
    Connected(usize),
    Disconnected(usize),
    Accepted(usize),
    Failed(usize, Failure),
    Reachability(Reachability),
    Terms(Terms2),
    /// Carry out what is due.
    Poll,
}

/// [`Terms`] by the places of the peers.
#[derive(Clone, Debug)]
struct Terms2 {
    enabled: bool,
    fixed: Vec<usize>,
    static_only: bool,
    joining: bool,
}

const PEERS: usize = 30;

fn step() -> impl Strategy<Value = Step> {
    let peer = || 0..PEERS;
    let source = prop_oneof![Just(Source::Member), Just(Source::Found)];
    let scope = prop_oneof![Just(Scope::Public), Just(Scope::Private)];
    let failure = prop_oneof![
        Just(Failure::Unreachable),
        Just(Failure::Denied),
        Just(Failure::Refused),
        Just(Failure::Unsupported),
        Just(Failure::Lost),
    ];
    let reachability = prop_oneof![
        Just(Reachability::Unknown),
        Just(Reachability::Public),
        Just(Reachability::Private),
    ];
    let terms = (
        prop::bool::weighted(0.8),
        prop::collection::vec(0..4_usize, 0..4),
        prop::bool::weighted(0.2),
        any::<bool>(),
    )
        .prop_map(|(enabled, mut fixed, static_only, joining)| {
            fixed.sort_unstable();
            fixed.dedup();
            Terms2 {
                enabled,
                fixed,
                static_only,
                joining,
            }
        });
    prop_oneof![
        3 => (0..400_u64).prop_map(Step::Wait),
        1 => (0..4000_u64).prop_map(Step::Wait),
        4 => (peer(), source, scope).prop_map(|(peer, source, scope)| Step::Found(peer, source, scope)),
        1 => peer().prop_map(Step::NotARelay),
        3 => peer().prop_map(Step::Connected),
        2 => peer().prop_map(Step::Disconnected),
        4 => peer().prop_map(Step::Accepted),
        3 => (peer(), failure).prop_map(|(peer, failure)| Step::Failed(peer, failure)),
        1 => reachability.prop_map(Step::Reachability),
        1 => terms.prop_map(Step::Terms),
        6 => Just(Step::Poll),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_happens_the_bounds_hold(steps in prop::collection::vec(step(), 1..80)) {
        let ids = &*IDS;
        let mut bench = Bench::new(open());
        for step in steps {
            let now = bench.now;
            let upkeep = &mut bench.upkeep;
            match step {
                Step::Wait(seconds) => bench.now += Duration::from_secs(seconds),
                Step::Found(peer, source, scope) => upkeep.handle_found(ids[peer], source, scope, now),
                Step::NotARelay(peer) => upkeep.handle_not_a_relay(&ids[peer]),
                Step::Connected(peer) => upkeep.handle_connected(&ids[peer]),
                Step::Disconnected(peer) => upkeep.handle_disconnected(&ids[peer], now),
                Step::Accepted(peer) => upkeep.handle_accepted(&ids[peer], now),
                Step::Failed(peer, failure) => upkeep.handle_failed(&ids[peer], failure, now),
                Step::Reachability(reachability) => upkeep.set_reachability(reachability, now),
                Step::Terms(terms) => upkeep.set_terms(
                    Terms {
                        enabled: terms.enabled,
                        fixed: terms.fixed.iter().map(|place| ids[*place]).collect(),
                        static_only: terms.static_only,
                        joining: terms.joining,
                    },
                    now,
                ),
                Step::Poll => drain(&mut bench)?,
            }
            check(&bench)?;
        }
        drain(&mut bench)?;
        let wanted = |relay: &Relay| relay.is_busy() && !bench.upkeep.wants(relay, bench.now);
        prop_assert_eq!(bench.upkeep.count(wanted), 0, "what is not wanted is given back");
        let next = bench.upkeep.next_deadline(bench.now);
        prop_assert!(next.is_none_or(|next| next > bench.now));
    }

    #[test]
    fn with_willing_relays_the_target_is_reached(
        found in prop::collection::vec((0..PEERS, any::<bool>(), any::<bool>()), 0..12),
        fixed_relays in 0..4_usize,
        reachability in prop_oneof![Just(Reachability::Unknown), Just(Reachability::Private)],
    ) {
        let ids = &*IDS;
        let mut bench = Bench::new(fixed(&ids[..fixed_relays]));
        bench.upkeep.set_reachability(reachability, bench.now);
        let mut known: Vec<usize> = (0..fixed_relays).collect();
        for (peer, member, public) in found {
            let source = if member { Source::Member } else { Source::Found };
            let scope = if public { Scope::Public } else { Scope::Private };
            bench.found(ids[peer], source, scope);
            known.push(peer);
        }
        known.sort_unstable();
        known.dedup();
        for _ in 0..20 {
            bench.obey();
            let Some(next) = bench.upkeep.next_deadline(bench.now) else { break };
            bench.now = next;
        }
        prop_assert_eq!(bench.held().len(), known.len().min(TARGET));
        let static_held = bench.held().iter().filter(|peer| ids[..fixed_relays].contains(peer)).count();
        prop_assert_eq!(static_held, fixed_relays.min(TARGET), "static ones first");
    }
}

static IDS: LazyLock<Vec<PeerId>> = LazyLock::new(|| (0..PEERS).map(id).collect());

fn id(number: usize) -> PeerId {
    let bytes = [u8::try_from(number).expect("few"); 32];
    let key = libp2p::identity::ed25519::SecretKey::try_from_bytes(bytes).expect("a key");
    let key = libp2p::identity::ed25519::Keypair::from(key);
    libp2p::identity::PublicKey::from(key.public()).to_peer_id()
}

/// Polls to the end and looks at every action.
fn drain(bench: &mut Bench) -> Result<(), TestCaseError> {
    for _ in 0..200 {
        let states: HashMap<PeerId, State> = bench
            .upkeep
            .relays
            .iter()
            .map(|(peer, relay)| (*peer, relay.state))
            .collect();
        let Some(action) = bench.upkeep.poll(bench.now) else {
            return Ok(());
        };
        if let Action::Dial(peer) | Action::Reserve(peer) = action {
            let rests = matches!(states[&peer], State::Resting { until } if until > bench.now);
            prop_assert!(!rests, "back-off respected");
            let relay = &bench.upkeep.relays[&peer];
            prop_assert!(bench.upkeep.wants(relay, bench.now));
            prop_assert_eq!(matches!(action, Action::Reserve(_)), relay.connected);
        }
        check(bench)?;
    }
    Err(TestCaseError::fail("never at rest"))
}

fn check(bench: &Bench) -> Result<(), TestCaseError> {
    let upkeep = &bench.upkeep;
    prop_assert!(upkeep.engaged() <= TARGET, "never more than the target");
    let dialling = upkeep.count(|relay| matches!(relay.state, State::Dialling { .. }));
    prop_assert!(dialling <= TARGET);
    prop_assert!(upkeep.relays.len() <= MOST_CANDIDATES + 8);
    Ok(())
}
