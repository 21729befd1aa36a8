//! One network on the links of this host: when to ask, when to answer, and who was found. Packets and `now` in, actions out.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId};
use rand::Rng;

use super::packet::{ANSWER_TTL, Offer, Packet, Service};

/// The second question comes this long after the first: who started at the same moment has its listeners by then. The
/// pause doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(4);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// On one link, one answer in this time: the pace of RFC 6762 §6, whatever is asked.
const ANSWER_PACE: Duration = Duration::from_secs(1);

/// An answer is held back for a random part of this, so that the nodes of a link do not all answer in the same instant.
const ANSWER_SPREAD: Duration = Duration::from_millis(30);

/// Peers remembered. A link with more members is served too: who is heard again later takes the place of who is not.
pub const MOST_FOUND: usize = 256;

/// Characters of an instance name. Go nodes draw 32 to 63.
const INSTANCE_LENGTH: std::ops::RangeInclusive<usize> = 32..=63;

/// Number of an interface, as the kernel counts.
pub type LinkId = u32;

pub struct Room {
    service: Service,
    local: PeerId,
    /// Marks our questions, which come back from the link as everybody's do.
    id: u16,
    spread: Duration,
    links: BTreeMap<LinkId, Link>,
    found: BTreeMap<PeerId, Found>,
    actions: VecDeque<Action>,
}

/// What this host offers on one link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Presence {
    pub loopback: bool,
    pub hosts: Vec<IpAddr>,
    /// Listen addresses a neighbour on the link can dial.
    pub addresses: Vec<Multiaddr>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// A packet for everybody on the link.
    Send { link: LinkId, packet: Vec<u8> },
    /// A peer that was not known, or has other addresses now.
    Found {
        peer: PeerId,
        addresses: Vec<Multiaddr>,
    },
    /// Nobody has spoken for this peer for as long as its answer was good, or it took its answer back.
    Lost(PeerId),
}

struct Link {
    presence: Presence,
    instance: String,
    answered: Option<Instant>,
    answer_due: Option<Instant>,
    next_question: Instant,
    pause: Duration,
}

#[derive(Default)]
struct Found {
    by_link: BTreeMap<LinkId, (Vec<Multiaddr>, Instant)>,
    heard: Option<Instant>,
}

impl Room {
    pub fn new(service: Service, local: PeerId, rng: &mut impl Rng) -> Self {
        Self {
            service,
            local,
            id: rng.random(),
            spread: ANSWER_SPREAD.mul_f64(rng.random_range(0.0..=1.0)),
            links: BTreeMap::new(),
            found: BTreeMap::new(),
            actions: VecDeque::new(),
        }
    }

    /// Takes over the links as they are now. One that is new or offers something else gets a new instance, because a Go
    /// node remembers an instance with the addresses it saw first; and it is announced, and everybody asked, at once.
    pub fn set_links(
        &mut self,
        links: BTreeMap<LinkId, Presence>,
        now: Instant,
        rng: &mut impl Rng,
    ) {
        self.links.retain(|id, _| links.contains_key(id));
        for (id, presence) in links {
            let known = self.links.get(&id);
            if known.is_some_and(|link| link.presence == presence) {
                continue;
            }
            let answered = known.and_then(|link| link.answered);
            if let Some(goodbye) = known.and_then(|link| self.answer(link, Duration::ZERO)) {
                self.send(id, Some(goodbye));
            }
            let mut link = Link {
                presence,
                instance: instance(rng),
                answered,
                answer_due: None,
                next_question: now,
                pause: FIRST_PAUSE,
            };
            link.answer_not_before(now);
            self.links.insert(id, link);
        }
    }

    /// Takes in a packet that arrived on `link`; anybody there may have sent it.
    pub fn receive(&mut self, link: LinkId, packet: &[u8], now: Instant) {
        let Some(here) = self.links.get_mut(&link) else {
            return;
        };
        match self.service.read(packet) {
            None => {}
            Some(Packet::Question { id }) if id == self.id => {}
            Some(Packet::Question { .. }) => {
                here.answer_not_before(now + self.spread);
                // The answers go to everybody on the link: in quiet times one question a minute serves all of them.
                if here.pause >= LONGEST_PAUSE {
                    here.next_question = now + LONGEST_PAUSE + self.spread.saturating_mul(10);
                }
            }
            Some(Packet::Answer(offers)) => {
                let loopback = here.presence.loopback;
                for offer in offers {
                    self.take(link, loopback, offer, now);
                }
            }
        }
    }

    /// The next thing to do, if anything is due.
    pub fn poll(&mut self, now: Instant) -> Option<Action> {
        if self.actions.is_empty() {
            self.ask_if_due(now);
            self.answer_if_due(now);
            self.forget_expired(now);
        }
        self.actions.pop_front()
    }

    /// When to poll again if nothing else happens.
    pub fn next_deadline(&self) -> Option<Instant> {
        let questions = self.links.values().map(|link| link.next_question);
        let answers = self.links.values().filter_map(|link| link.answer_due);
        let expiries = self
            .found
            .values()
            .flat_map(|found| found.by_link.values().map(|(_, expires)| *expires));
        questions.chain(answers).chain(expiries).min()
    }

    /// What to send when this node leaves, so that nobody dials it any more.
    pub fn goodbyes(&self) -> Vec<(LinkId, Vec<u8>)> {
        self.links
            .iter()
            .filter_map(|(id, link)| Some((*id, self.answer(link, Duration::ZERO)?)))
            .collect()
    }

    pub fn found(&self) -> impl Iterator<Item = &PeerId> {
        self.found.keys()
    }

    fn take(&mut self, link: LinkId, loopback: bool, offer: Offer, now: Instant) {
        if offer.peer == self.local {
            return;
        }
        let addresses: Vec<Multiaddr> = offer
            .addresses
            .into_iter()
            .filter(|address| is_neighbour(address, loopback))
            .collect();
        if offer.ttl.is_zero() || addresses.is_empty() {
            self.forget(offer.peer, link);
            return;
        }
        if !self.found.contains_key(&offer.peer) && self.found.len() >= MOST_FOUND {
            self.evict_longest_silent();
        }
        let found = self.found.entry(offer.peer).or_default();
        let before = found.addresses();
        found.heard = Some(now);
        found.by_link.insert(link, (addresses, now + offer.ttl));
        let addresses = found.addresses();
        if addresses != before {
            self.actions.push_back(Action::Found {
                peer: offer.peer,
                addresses: addresses.into_iter().collect(),
            });
        }
    }

    fn forget(&mut self, peer: PeerId, link: LinkId) {
        if let Some(found) = self.found.get_mut(&peer) {
            found.by_link.remove(&link);
            if found.by_link.is_empty() {
                self.found.remove(&peer);
                self.actions.push_back(Action::Lost(peer));
            }
        }
    }

    fn evict_longest_silent(&mut self) {
        let silent = self
            .found
            .iter()
            .min_by_key(|(_, found)| found.heard)
            .map(|(peer, _)| *peer);
        if let Some(peer) = silent {
            self.found.remove(&peer);
            self.actions.push_back(Action::Lost(peer));
        }
    }

    fn forget_expired(&mut self, now: Instant) {
        let actions = &mut self.actions;
        let links = &self.links;
        self.found.retain(|peer, found| {
            found
                .by_link
                .retain(|link, (_, expires)| *expires > now && links.contains_key(link));
            let alive = !found.by_link.is_empty();
            if !alive {
                actions.push_back(Action::Lost(*peer));
            }
            alive
        });
    }

    fn ask_if_due(&mut self, now: Instant) {
        let mut due = Vec::new();
        for (id, link) in &mut self.links {
            if link.next_question <= now {
                link.next_question = now + link.pause;
                link.pause = link.pause.saturating_mul(2).min(LONGEST_PAUSE);
                due.push(*id);
            }
        }
        for link in due {
            self.send(link, self.service.question(self.id));
        }
    }

    fn answer_if_due(&mut self, now: Instant) {
        let mut due = Vec::new();
        for (id, link) in &mut self.links {
            if link.answer_due.is_some_and(|due| due <= now) {
                link.answer_due = None;
                link.answered = Some(now);
                due.push(*id);
            }
        }
        for id in due {
            let answer = self
                .links
                .get(&id)
                .and_then(|link| self.answer(link, ANSWER_TTL));
            self.send(id, answer);
        }
    }

    fn answer(&self, link: &Link, ttl: Duration) -> Option<Vec<u8>> {
        let Presence {
            hosts, addresses, ..
        } = &link.presence;
        self.service
            .answer(&link.instance, self.local, hosts, addresses, ttl)
    }

    fn send(&mut self, link: LinkId, packet: Option<Vec<u8>>) {
        if let Some(packet) = packet {
            self.actions.push_back(Action::Send { link, packet });
        }
    }
}

impl Link {
    fn answer_not_before(&mut self, wanted: Instant) {
        if self.answer_due.is_none() {
            let paced = self.answered.map(|answered| answered + ANSWER_PACE);
            self.answer_due = Some(paced.map_or(wanted, |paced| paced.max(wanted)));
        }
    }
}

impl Found {
    fn addresses(&self) -> BTreeSet<Multiaddr> {
        self.by_link
            .values()
            .flat_map(|(addresses, _)| addresses.iter().cloned())
            .collect()
    }
}

/// Whether a neighbour can mean itself by `address`. Private and link-local ones are what links are made of; loopback is
/// another host's own only if it is this host. A link-local IPv6 address says nothing without the name of the link.
fn is_neighbour(address: &Multiaddr, loopback: bool) -> bool {
    match super::host_of(address) {
        Some(ip) if ip.is_loopback() => loopback,
        Some(IpAddr::V4(ip)) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        Some(IpAddr::V6(ip)) => {
            !ip.is_unspecified() && !ip.is_multicast() && !ip.is_unicast_link_local()
        }
        None => false,
    }
}

fn instance(rng: &mut impl Rng) -> String {
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let length = rng.random_range(INSTANCE_LENGTH);
    (0..length)
        .filter_map(|_| LETTERS.get(rng.random_range(0..LETTERS.len())))
        .map(|letter| char::from(*letter))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    const LAN: LinkId = 2;

    struct Node {
        room: Room,
        rng: StdRng,
        now: Instant,
    }

    impl Node {
        fn new(seed: u64, start: Instant) -> Self {
            let mut rng = StdRng::seed_from_u64(seed);
            let service = Service::of_tag("lan").expect("a tag");
            Self {
                room: Room::new(service, PeerId::random(), &mut rng),
                rng,
                now: start,
            }
        }

        fn on_lan(seed: u64, start: Instant) -> Self {
            let mut node = Self::new(seed, start);
            node.listen(&format!("/ip4/192.168.1.{seed}/tcp/1"));
            node
        }

        fn listen(&mut self, address: &str) {
            let address: Multiaddr = address.parse().expect("an address");
            let presence = Presence {
                loopback: false,
                hosts: super::super::host_of(&address).into_iter().collect(),
                addresses: vec![address],
            };
            self.room
                .set_links(BTreeMap::from([(LAN, presence)]), self.now, &mut self.rng);
        }

        fn actions(&mut self) -> Vec<Action> {
            std::iter::from_fn(|| self.room.poll(self.now)).collect()
        }

        fn packets(&mut self) -> Vec<Vec<u8>> {
            packets(self.actions())
        }

        fn hear(&mut self, packets: &[Vec<u8>]) {
            for packet in packets {
                self.room.receive(LAN, packet, self.now);
            }
        }

        fn answer_at(&mut self, after: Duration) -> Vec<Vec<u8>> {
            self.now += after;
            self.packets()
        }
    }

    fn packets(actions: Vec<Action>) -> Vec<Vec<u8>> {
        actions
            .into_iter()
            .filter_map(|action| match action {
                Action::Send { packet, .. } => Some(packet),
                _ => None,
            })
            .collect()
    }

    /// Of somebody else.
    fn question() -> Vec<u8> {
        let service = Service::of_tag("lan").expect("a tag");
        service.question(0).expect("encodes")
    }

    fn is_question(packet: &[u8]) -> bool {
        let service = Service::of_tag("lan").expect("a tag");
        matches!(service.read(packet), Some(Packet::Question { .. }))
    }

    fn offer(peer: PeerId, address: &str, ttl: u64) -> Vec<u8> {
        let service = Service::of_tag("lan").expect("a tag");
        let address = address.parse().expect("an address");
        service
            .answer("x", peer, &[], &[address], Duration::from_secs(ttl))
            .expect("encodes")
    }

    #[test]
    fn who_starts_is_found_by_who_is_there_and_finds_it() {
        let start = Instant::now();
        let (mut old, mut new) = (Node::on_lan(1, start), Node::on_lan(2, start));
        old.packets();
        let said = new.packets();
        assert_eq!(said.len(), 2, "a question and an announcement");
        old.now += ANSWER_PACE;
        old.hear(&said);
        let heard = old.actions();
        let found = Action::Found {
            peer: new.room.local,
            addresses: vec!["/ip4/192.168.1.2/tcp/1".parse().expect("an address")],
        };
        assert!(heard.contains(&found), "{heard:?}");
        let answers = old.answer_at(ANSWER_SPREAD);
        new.hear(&answers);
        let peer = old.room.local;
        assert!(
            matches!(&new.actions()[..], [Action::Found { peer: found, .. }] if *found == peer)
        );
    }

    #[test]
    fn questions_grow_rarer_up_to_one_a_minute() {
        let start = Instant::now();
        let mut node = Node::on_lan(1, start);
        let mut asked = Vec::new();
        while asked.len() < 8 {
            let said = node.packets();
            let questions = said.iter().filter(|packet| is_question(packet));
            asked.extend(questions.map(|_| node.now.duration_since(start).as_secs()));
            node.now = node.room.next_deadline().expect("a next question");
        }
        assert_eq!(asked, [0, 4, 12, 28, 60, 120, 180, 240]);
    }

    #[test]
    fn a_flood_of_questions_gets_one_answer_a_second() {
        let mut node = Node::on_lan(1, Instant::now());
        node.packets();
        let mut answers = 0;
        for _ in 0..1000 {
            node.now += Duration::from_millis(10);
            node.hear(&[question()]);
            let said = node.packets();
            answers += said.iter().filter(|packet| !is_question(packet)).count();
        }
        assert!((8..=10).contains(&answers), "{answers} answers in 10 s");
    }

    #[test]
    fn our_own_question_comes_back_and_is_not_answered() {
        let mut node = Node::on_lan(1, Instant::now());
        let said = node.packets();
        node.now += ANSWER_PACE;
        node.hear(&said);
        assert_eq!(node.packets(), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn in_quiet_times_the_question_of_another_stands_in_for_ours() {
        let mut node = Node::on_lan(1, Instant::now());
        for _ in 0..20 {
            node.packets();
            node.now += LONGEST_PAUSE;
        }
        node.packets();
        node.now += LONGEST_PAUSE / 2;
        node.hear(&[question()]);
        let asks = |said: Vec<Vec<u8>>| said.iter().any(|packet| is_question(packet));
        assert!(!asks(node.answer_at(LONGEST_PAUSE / 2)));
        assert!(asks(node.answer_at(LONGEST_PAUSE)));
    }

    #[test]
    fn other_addresses_are_told_under_another_instance_and_the_old_one_is_taken_back() {
        let mut node = Node::on_lan(1, Instant::now());
        node.packets();
        let instance = node.room.links[&LAN].instance.clone();
        assert!(INSTANCE_LENGTH.contains(&instance.len()));
        node.now += ANSWER_PACE;
        node.listen("/ip4/192.168.1.9/tcp/1");
        assert_ne!(node.room.links[&LAN].instance, instance);
        let service = Service::of_tag("lan").expect("a tag");
        let said: Vec<(String, bool)> = node
            .packets()
            .iter()
            .filter_map(|packet| match service.read(packet) {
                Some(Packet::Answer(offers)) => offers
                    .first()
                    .map(|offer| (offer.addresses[0].to_string(), offer.ttl.is_zero())),
                _ => None,
            })
            .collect();
        assert_eq!(
            said,
            [
                ("/ip4/192.168.1.1/tcp/1".to_owned(), true),
                ("/ip4/192.168.1.9/tcp/1".to_owned(), false)
            ]
        );
    }

    #[test]
    fn a_peer_is_lost_when_its_time_is_over_or_it_says_so() {
        let mut node = Node::on_lan(1, Instant::now());
        let (silent, polite) = (PeerId::random(), PeerId::random());
        node.hear(&[
            offer(silent, "/ip4/192.168.1.2/tcp/1", 60),
            offer(polite, "/ip4/192.168.1.3/tcp/1", 600),
        ]);
        node.actions();
        node.hear(&[offer(polite, "/ip4/192.168.1.3/tcp/1", 0)]);
        assert!(node.actions().contains(&Action::Lost(polite)));
        node.now += Duration::from_secs(61);
        assert!(node.actions().contains(&Action::Lost(silent)));
        assert_eq!(node.room.found().count(), 0);
    }

    #[test]
    fn an_answer_heard_again_is_no_news() {
        let mut node = Node::on_lan(1, Instant::now());
        let packet = offer(PeerId::random(), "/ip4/192.168.1.2/tcp/1", 60);
        node.hear(std::slice::from_ref(&packet));
        node.actions();
        node.hear(&[packet]);
        assert_eq!(node.actions(), []);
    }

    #[test]
    fn nobody_makes_us_dial_ourselves_or_what_is_no_neighbour() {
        let mut node = Node::on_lan(1, Instant::now());
        node.actions();
        let own = node.room.local;
        node.hear(&[offer(own, "/ip4/192.168.1.2/tcp/1", 60)]);
        for address in [
            "/ip4/127.0.0.1/tcp/22",
            "/ip4/0.0.0.0/tcp/22",
            "/ip4/224.0.0.1/udp/1/quic-v1",
            "/ip6/::1/tcp/22",
            "/ip6/fe80::1/tcp/22",
            "/ip6/::ffff:127.0.0.1/tcp/22",
        ] {
            node.hear(&[offer(PeerId::random(), address, 60)]);
        }
        assert_eq!(node.actions(), []);
    }

    #[test]
    fn a_flood_of_names_takes_bounded_room_and_the_next_true_one_still_fits() {
        let mut node = Node::on_lan(1, Instant::now());
        for _ in 0..3 * MOST_FOUND {
            node.hear(&[offer(PeerId::random(), "/ip4/192.168.1.2/tcp/1", 60)]);
            assert!(node.room.found.len() <= MOST_FOUND);
        }
        node.actions();
        let peer = PeerId::random();
        node.hear(&[offer(peer, "/ip4/192.168.1.3/tcp/1", 60)]);
        assert!(
            node.actions().iter().any(
                |action| matches!(action, Action::Found { peer: found, .. } if *found == peer)
            )
        );
    }

    proptest! {
        #[test]
        fn whatever_arrives_tables_are_bounded_and_polls_come_to_rest(
            packets in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..100),
                    Just(question()),
                    (any::<u8>(), 0u64..100).prop_map(|(host, ttl)| offer(
                        PeerId::random(),
                        &format!("/ip4/192.168.1.{host}/tcp/1"),
                        ttl,
                    )),
                ],
                0..50,
            ),
            pauses in prop::collection::vec(0u64..100, 50),
        ) {
            let mut node = Node::on_lan(1, Instant::now());
            for (packet, pause) in packets.iter().zip(pauses) {
                node.now += Duration::from_secs(pause);
                node.hear(std::slice::from_ref(packet));
                prop_assert!(node.actions().len() < 100);
                prop_assert!(node.room.next_deadline().is_some_and(|next| next > node.now));
            }
        }
    }
}
