//! The packets of EdgeVPN's mDNS service form, as bytes: what is asked, and who answers with which addresses.
//!
//! The service is a token's tag as one label directly under `local`, without the `_udp` of RFC 6763, and Go nodes compare
//! it letter by letter; so do we.

use std::{collections::BTreeMap, net::IpAddr, str, time::Duration};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, PTR, SRV, TXT},
    },
};
use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

/// Where a service name ends.
const DOMAIN: &str = "local";

/// What go-libp2p uses when a token has no tag.
const DEFAULT_SERVICE: &str = "_p2p._udp";

/// The port in SRV records. Nobody connects to it: the addresses are in the TXT record. The value is what Go nodes send.
const SRV_PORT: u16 = 4001;

/// How long an answer may be believed, as Go nodes say it.
pub const ANSWER_TTL: Duration = Duration::from_secs(3200);

/// No answer is believed longer than this, whatever it says.
const LONGEST_TTL: Duration = Duration::from_secs(75 * 60);

/// Before each address in a TXT string.
/// <https://github.com/libp2p/specs/blob/master/discovery/mdns.md#txt-records>
const ADDRESS_KEY: &[u8] = b"dnsaddr=";

/// A TXT string has one byte of length.
const LONGEST_STRING: usize = 255;

/// Bytes of addresses in one answer: with names and the other records it fits an unfragmented packet on IPv6's smallest
/// link, 1280 bytes.
const MOST_ADDRESS_BYTES: usize = 850;

/// Answers read from one packet. Go nodes and ours send one each; the rest would be somebody filling our tables.
const MOST_OFFERS: usize = 8;

/// Addresses taken of one peer; a host with more interfaces is reachable on the first ones.
pub const MOST_ADDRESSES: usize = 16;

/// The name a network is asked for by.
#[derive(Clone, Debug)]
pub struct Service(Name);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the token's mDNS name has a part of more than 63 bytes, or is longer than a DNS name; nodes of this network cannot find each other by mDNS"
)]
pub struct BadTag;

/// A packet that concerns a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    Question {
        /// What the asker put into the header, by which it knows its own questions again.
        id: u16,
    },
    Answer(Vec<Offer>),
}

/// What one instance says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub peer: PeerId,
    /// Plain IP addresses without the peer id.
    pub addresses: Vec<Multiaddr>,
    /// Zero takes the offer back.
    pub ttl: Duration,
}

impl Service {
    /// The tag as Go nodes read it: `a.b` is two labels, and the empty one stands for libp2p's own.
    pub fn of_tag(tag: &str) -> Result<Self, BadTag> {
        let tag = tag.trim_matches('.');
        let tag = if tag.is_empty() { DEFAULT_SERVICE } else { tag };
        let labels = tag.split('.').chain([DOMAIN]).map(str::as_bytes);
        Name::from_labels(labels).map(Self).map_err(|_| BadTag)
    }

    /// A question for everybody in the service. `None` cannot happen for a name that was made; an encoder that fails sends
    /// nothing.
    pub fn question(&self, id: u16) -> Option<Vec<u8>> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(self.0.clone(), RecordType::PTR));
        message.to_vec().ok()
    }

    /// The answer of `instance` on a link where this host is `hosts`. Addresses that do not fit are left out.
    pub fn answer(
        &self,
        instance: &str,
        peer: PeerId,
        hosts: &[IpAddr],
        addresses: &[Multiaddr],
        ttl: Duration,
    ) -> Option<Vec<u8>> {
        let seconds = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
        let owner = self.0.prepend_label(instance.as_bytes()).ok()?;
        let target = Name::from_labels([instance.as_bytes(), DOMAIN.as_bytes()]).ok()?;
        let record = |name: &Name, data| Record::from_rdata(name.clone(), seconds, data);

        let strings = strings(peer, addresses);
        if strings.is_empty() && !ttl.is_zero() {
            return None;
        }
        let mut message = Message::new(0, MessageType::Response, OpCode::Query);
        message.metadata.authoritative = true;
        message.add_answer(record(&self.0, RData::PTR(PTR(owner.clone()))));
        let service = SRV::new(0, 0, SRV_PORT, target.clone());
        message.add_additional(record(&owner, RData::SRV(service)));
        message.add_additional(record(&owner, RData::TXT(TXT::new(strings))));
        for host in hosts {
            let data = match *host {
                IpAddr::V4(ip) => RData::A(A(ip)),
                IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
            };
            message.add_additional(record(&target, data));
        }
        message.to_vec().ok()
    }

    /// Reads what any host on the link may have sent. `None` if it is not about this service, or not DNS at all.
    pub fn read(&self, packet: &[u8]) -> Option<Packet> {
        let message = Message::from_vec(packet).ok()?;
        if message.metadata.op_code != OpCode::Query {
            return None;
        }
        match message.metadata.message_type {
            MessageType::Query => message
                .queries
                .iter()
                .any(|query| {
                    matches!(query.query_type(), RecordType::PTR | RecordType::ANY)
                        && query.name().eq_case(&self.0)
                })
                .then_some(Packet::Question {
                    id: message.metadata.id,
                }),
            MessageType::Response => {
                let offers = self.offers(&message);
                (!offers.is_empty()).then_some(Packet::Answer(offers))
            }
        }
    }

    /// The TXT records of instances of this service, wherever in the packet they stand.
    fn offers(&self, message: &Message) -> Vec<Offer> {
        let mut offers: BTreeMap<PeerId, Offer> = BTreeMap::new();
        for record in message.answers.iter().chain(&message.additionals) {
            let RData::TXT(text) = &record.data else {
                continue;
            };
            if !record.name.base_name().eq_case(&self.0) {
                continue;
            }
            let ttl = Duration::from_secs(record.ttl.into()).min(LONGEST_TTL);
            for (peer, address) in text.txt_data.iter().filter_map(|string| parse(string)) {
                if offers.len() >= MOST_OFFERS && !offers.contains_key(&peer) {
                    continue;
                }
                let offer = offers.entry(peer).or_insert_with(|| Offer {
                    peer,
                    addresses: Vec::new(),
                    ttl,
                });
                if offer.addresses.len() < MOST_ADDRESSES && !offer.addresses.contains(&address) {
                    offer.addresses.push(address);
                }
            }
        }
        offers.into_values().collect()
    }
}

/// `dnsaddr=<address>/p2p/<peer>` for as many addresses as fit.
fn strings(peer: PeerId, addresses: &[Multiaddr]) -> Vec<String> {
    let mut room = MOST_ADDRESS_BYTES;
    addresses
        .iter()
        .filter(|address| is_plain(address))
        .map(|address| format!("dnsaddr={address}/p2p/{peer}"))
        .filter(|string| string.len() <= LONGEST_STRING)
        .take_while(|string| {
            let fits = string.len() < room;
            room = room.saturating_sub(string.len().saturating_add(1));
            fits
        })
        .take(MOST_ADDRESSES)
        .collect()
}

fn parse(string: &[u8]) -> Option<(PeerId, Multiaddr)> {
    let text = str::from_utf8(string.strip_prefix(ADDRESS_KEY)?).ok()?;
    let mut address: Multiaddr = text.parse().ok()?;
    let Some(Protocol::P2p(peer)) = address.pop() else {
        return None;
    };
    is_plain(&address).then_some((peer, address))
}

/// An IP address with TCP or QUIC: what go-libp2p announces, and all that a link needs.
pub fn is_plain(address: &Multiaddr) -> bool {
    let parts: Vec<Protocol<'_>> = address.iter().collect();
    matches!(
        parts.as_slice(),
        [Protocol::Ip4(_) | Protocol::Ip6(_), Protocol::Tcp(_)]
            | [
                Protocol::Ip4(_) | Protocol::Ip6(_),
                Protocol::Udp(_),
                Protocol::QuicV1
            ]
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TAG: &str = "mdnsTAG0123456789abcdefghijklmnopqrstuvwxyz";
    const INSTANCE: &str = "abcdefghijklmnopqrstuvwxyz0123456789";

    fn peer() -> PeerId {
        "12D3KooWJ1TsijH7H5F74hfAD5XishQz3sxrmAtVY37GtNd9CqYf"
            .parse()
            .expect("a peer id")
    }

    fn addresses(texts: &[&str]) -> Vec<Multiaddr> {
        texts
            .iter()
            .map(|text| text.parse().expect("an address"))
            .collect()
    }

    fn service() -> Service {
        Service::of_tag(TAG).expect("a tag")
    }

    #[test]
    fn an_answer_is_read_as_it_was_meant() {
        let offered = addresses(&["/ip4/192.168.1.7/tcp/4501", "/ip6/fd00::7/udp/9/quic-v1"]);
        let hosts = ["192.168.1.7".parse().expect("an address")];
        let packet = service()
            .answer(INSTANCE, peer(), &hosts, &offered, ANSWER_TTL)
            .expect("encodes");
        let read = Packet::Answer(vec![Offer {
            peer: peer(),
            addresses: offered,
            ttl: ANSWER_TTL,
        }]);
        assert_eq!(service().read(&packet), Some(read));
    }

    #[test]
    fn an_answer_has_the_records_a_go_node_insists_on() {
        let hosts = ["192.168.1.7", "fd00::7"].map(|host| host.parse().expect("an address"));
        let packet = service()
            .answer(
                INSTANCE,
                peer(),
                &hosts,
                &addresses(&["/ip4/192.168.1.7/tcp/1"]),
                ANSWER_TTL,
            )
            .expect("encodes");
        let message = Message::from_vec(&packet).expect("decodes");
        let owner = format!("{INSTANCE}.{TAG}.local.");
        let target = format!("{INSTANCE}.local.");
        let seen: Vec<(String, String)> = message
            .all_sections()
            .map(|record| (record.name.to_ascii(), record.record_type().to_string()))
            .collect();
        let expected = [
            (format!("{TAG}.local."), "PTR"),
            (owner.clone(), "SRV"),
            (owner.clone(), "TXT"),
            (target.clone(), "A"),
            (target.clone(), "AAAA"),
        ];
        assert_eq!(
            seen,
            expected.map(|(name, kind)| (name, kind.to_owned())),
            "in this order, letters as they are"
        );
        for record in message.all_sections() {
            assert_eq!(record.ttl, 3200);
            match &record.data {
                RData::PTR(pointer) => assert_eq!(pointer.0.to_ascii(), owner),
                RData::SRV(service) => {
                    assert_eq!(service.target.to_ascii(), target);
                    assert_eq!(service.port, 4001);
                }
                _ => {}
            }
        }
    }

    #[test]
    fn a_question_is_for_one_service_letter_by_letter() {
        let packet = service().question(7).expect("encodes");
        assert_eq!(service().read(&packet), Some(Packet::Question { id: 7 }));
        let other = Service::of_tag(&TAG.to_lowercase()).expect("a tag");
        assert_eq!(other.read(&packet), None);
    }

    #[test]
    fn a_tag_with_dots_is_several_labels_and_none_is_the_default() {
        let name = |tag: &str| Service::of_tag(tag).map(|service| service.0.to_ascii());
        assert_eq!(name("a.B"), Ok("a.B.local.".to_owned()));
        assert_eq!(name(""), Ok("_p2p._udp.local.".to_owned()));
        assert_eq!(name("."), Ok("_p2p._udp.local.".to_owned()));
        assert_eq!(name(&"x".repeat(64)), Err(BadTag));
        assert_eq!(name("a..b"), Err(BadTag));
        assert_eq!(name(&"x.".repeat(200)), Err(BadTag));
    }

    #[test]
    fn addresses_that_need_more_than_a_link_are_neither_sent_nor_believed() {
        let relayed = format!("/ip4/10.0.0.1/tcp/1/p2p/{}/p2p-circuit", peer());
        let odd = addresses(&[
            &relayed,
            "/dns4/hub.example.org/tcp/1",
            "/ip4/10.0.0.1/tcp/1/ws",
        ]);
        assert_eq!(
            service().answer(INSTANCE, peer(), &[], &odd, ANSWER_TTL),
            None
        );
        for address in &odd {
            let string = format!("dnsaddr={address}/p2p/{}", peer());
            assert_eq!(parse(string.as_bytes()), None, "{string}");
        }
    }

    #[test]
    fn what_does_not_fit_an_unfragmented_packet_is_left_out() {
        let many: Vec<Multiaddr> = (0..200)
            .map(|port| format!("/ip6/fd00::1234:5678:9abc/udp/{port}/quic-v1"))
            .map(|text| text.parse().expect("an address"))
            .collect();
        let packet = service()
            .answer(
                &"x".repeat(63),
                peer(),
                &["fd00::7".parse().expect("an address")],
                &many,
                ANSWER_TTL,
            )
            .expect("encodes");
        assert!(packet.len() <= 1232, "{} bytes", packet.len());
        let Some(Packet::Answer(offers)) = service().read(&packet) else {
            panic!("no answer")
        };
        assert!(offers[0].addresses.len() >= 5, "{offers:?}");
    }

    #[test]
    fn a_packet_of_many_peers_gives_a_few() {
        let mut message = Message::new(0, MessageType::Response, OpCode::Query);
        for _ in 0..100 {
            let string = format!("dnsaddr=/ip4/10.0.0.1/tcp/1/p2p/{}", PeerId::random());
            let owner = service().0.prepend_label("x").expect("a label");
            let text = TXT::new(vec![string]);
            message.add_answer(Record::from_rdata(owner, 1, RData::TXT(text)));
        }
        let packet = message.to_vec().expect("encodes");
        let Some(Packet::Answer(offers)) = service().read(&packet) else {
            panic!("no answer")
        };
        assert_eq!(offers.len(), MOST_OFFERS);
    }

    #[test]
    fn a_loop_of_compressed_names_is_not_followed() {
        let mut packet = service().question(7).expect("encodes");
        // The name of the question points at itself.
        packet.splice(12.., [0xc0, 0x0c, 0, 12, 0, 1]);
        assert_eq!(service().read(&packet), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = service().read(&bytes);
        }

        #[test]
        fn an_answer_changed_anywhere_is_read_without_a_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let offered = addresses(&["/ip4/192.168.1.7/tcp/4501"]);
            let hosts = ["192.168.1.7".parse().expect("an address")];
            let mut packet = service()
                .answer(INSTANCE, peer(), &hosts, &offered, ANSWER_TTL)
                .expect("encodes");
            for (at, byte) in changes {
                let at = at.index(packet.len());
                packet[at] = byte;
            }
            packet.truncate(cut.index(packet.len()) + 1);
            if let Some(Packet::Answer(offers)) = service().read(&packet) {
                prop_assert!(offers.len() <= MOST_OFFERS);
                prop_assert!(offers.iter().all(|offer| offer.addresses.len() <= MOST_ADDRESSES));
            }
        }
    }
}
