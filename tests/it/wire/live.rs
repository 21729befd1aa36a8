//! What EdgeVPN nodes really sent, and what they made of what they were sent.

use super::{at, hex, parse, seal_key_text, text};
use crate::{
    gossip::frame::{Publication, Rpc},
    support::relay::message::Hop,
};
use edgevpn::{
    id::UnixTime,
    net::relay::proto::{Limit, reservation_frame, status_frame},
    relay::Status,
    wire::{
        Block, BlockError, Bounds, Rotation, SealKey, Storage, Token, Window, leader::leader, open,
        open_bytes, seal, seal_bytes, totp,
    },
};
use flate2::read::GzDecoder;
use libp2p::{Multiaddr, identity::PublicKey};
use prost::Message;
use serde_json::Value;
use std::{collections::BTreeMap, io::Read, sync::LazyLock, time::Duration};

static LIVE: LazyLock<BTreeMap<String, Vec<Value>>> = LazyLock::new(|| {
    let file = parse(include_str!("../../vectors/wire-vectors-live.json"));
    let mut groups: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for vector in file["vectors"].as_array().expect("vectors") {
        let kind = text(&vector["kind"]).to_owned();
        groups.entry(kind).or_default().push(vector.clone());
    }
    groups
});

fn vectors(kind: &str) -> &'static [Value] {
    &LIVE[kind]
}

/// Where each group is looked at, and how many vectors it has.
const GROUPS: &[(&str, usize, &str)] = &[
    ("block", 12, "here"),
    ("decode-block", 12, "here"),
    ("derive", 4, "here"),
    ("ecdsa-keys", 1, "not built: keys of PeerGuardian"),
    ("gossip", 16, "here"),
    ("hop", 9, "here"),
    ("http-path", 1, "not built: the HTTP API of EdgeVPN"),
    ("leader", 3, "here"),
    (
        "merge",
        100,
        "codec and signatures here, decisions: ledger/vectors.rs",
    ),
    ("merge-off", 6, "decisions: ledger/vectors.rs"),
    ("raw-pubsub", 19, "here"),
    ("seal", 3, "here"),
    ("seal-odd-key", 2, "here"),
    ("token", 1, "here"),
    ("totp", 8, "here"),
    ("yaml", 37, "here"),
];

#[test]
fn no_group_of_live_vectors_is_left_unlooked_at() {
    let found: Vec<(&str, usize)> = LIVE
        .iter()
        .map(|(kind, vectors)| (kind.as_str(), vectors.len()))
        .collect();
    let known: Vec<(&str, usize)> = GROUPS
        .iter()
        .map(|(kind, count, _)| (*kind, *count))
        .collect();
    assert_eq!(found, known);
}

/// The tokens of these vectors hold one text only. What a token must have is put in before they are read.
fn completed(yaml: &str) -> String {
    yaml.replace("interval: 0", "interval: 360")
        .replace("max_message_size: 0", "max_message_size: 1")
        .replacen(
            "key: \"\"\n    length: 0\nroom",
            "key: k\n    length: 0\nroom",
            1,
        )
}

#[test]
fn every_text_is_quoted_as_go_quotes_it() {
    for vector in vectors("yaml") {
        let nothing = || Rotation {
            interval: 0,
            key: String::new(),
            length: 0,
        };
        let token = Token {
            dht: nothing(),
            crypto: nothing(),
            room: text(&vector["room"]).to_owned(),
            rendezvous: String::new(),
            mdns: String::new(),
            max_message_size: 0,
        };
        assert_eq!(token.to_yaml(), text(&vector["yaml"]));
        assert_eq!(token.to_base64(), text(&vector["token"]));

        let read = Token::parse(completed(text(&vector["yaml"])).as_bytes()).expect("a token");
        assert_eq!(read.room, text(&vector["room"]));
    }
}

#[test]
fn a_generated_token_is_read_and_written_back() {
    for vector in vectors("token") {
        let token = Token::parse(text(&vector["token"]).as_bytes()).expect("a token");
        assert_eq!(token.to_yaml(), text(&vector["yaml"]));
        assert_eq!(token.to_base64(), text(&vector["token"]));
    }
}

#[test]
fn derivations_agree_with_running_nodes() {
    for vector in vectors("derive") {
        let token = Token::parse(text(&vector["yaml"]).as_bytes()).expect("a token");
        let now = at(&vector["unix"]);
        let window = token.window(now);
        assert_eq!(totp(&token.room, window, 43), text(&vector["totp_room"]));
        assert_eq!(token.topic(window), text(&vector["topic"]));
        assert_eq!(token.public_topic(window), text(&vector["topic_public"]));
        assert!(token.seal_key(window) == seal_key_text(&vector["seal_key_ascii"]));
        assert_eq!(
            token.rendezvous(token.dht_window(now)),
            text(&vector["rendezvous"])
        );
        let unkeyed = Token {
            dht: Rotation {
                key: String::new(),
                ..token.dht.clone()
            },
            ..token
        };
        assert_eq!(
            unkeyed.rendezvous(unkeyed.dht_window(now)),
            text(&vector["static_rendezvous_when_key_empty"])
        );
        assert_eq!(unkeyed.next_rendezvous(now), None);
    }
    for vector in vectors("totp") {
        let interval = vector["interval"].as_u64().expect("seconds");
        let window = Window(at(&vector["unix"]).as_secs() / interval);
        // A negative length, which the file may hold, becomes 0 when a token is read.
        let length = vector["length"].as_u64().unwrap_or(0);
        let length = usize::try_from(length).expect("small");
        assert_eq!(
            totp(text(&vector["key"]), window, length),
            text(&vector["text"])
        );
    }
}

#[test]
fn sealed_bytes_open_and_seal_to_the_same_bytes() {
    for vector in vectors("seal") {
        let sealed = hex(&vector["sealed"]);
        let key = seal_key_text(&vector["key"]);
        let plain = open_bytes(&sealed, std::slice::from_ref(&key), &[]).expect("opened");
        assert_eq!(plain, hex(&vector["plain_hex"]));
        let nonce = *sealed.first_chunk().expect("a nonce");
        assert_eq!(seal_bytes(&plain, &key, nonce, &[]), sealed);
    }
    // A key of another length is cut or filled with zeros; derived ones always have 32 bytes.
    for vector in vectors("seal-odd-key") {
        let mut key = [0; 32];
        for (to, from) in key.iter_mut().zip(text(&vector["key"]).bytes()) {
            *to = from;
        }
        let opened = open_bytes(&hex(&vector["sealed"]), &[SealKey::new(key)], &[]);
        assert!(opened.is_ok(), "{}", vector["key"]);
    }
}

fn block(json: &str) -> Block {
    Block::from_json(json.as_bytes(), &Bounds::default()).expect("a block")
}

#[test]
fn blocks_are_read_and_written_back_byte_for_byte() {
    for vector in vectors("block") {
        let json = text(&vector["block"]);
        let block = block(json);
        assert_eq!(block.to_json(), json);
        // The genesis carries the hash of a block without anything.
        let hashed = if block.index == 0 {
            Block::default()
        } else {
            block.clone()
        };
        assert_eq!(hashed.checksum(), block.hash);
        for (bucket, entries) in &block.storage {
            for (key, entry) in entries {
                assert_eq!(
                    entry.verify(bucket, key).is_ok(),
                    vector["signed"].as_bool().expect("a truth value"),
                    "{bucket}/{key}"
                );
            }
        }
        if vector["gzip_hex"].is_string() {
            let mut inflated = String::new();
            GzDecoder::new(&*hex(&vector["gzip_hex"]))
                .read_to_string(&mut inflated)
                .expect("gzip");
            assert_eq!(inflated, json);
        }
    }
}

#[test]
fn odd_blocks_are_taken_and_refused_as_go_does() {
    for vector in vectors("decode-block") {
        let decoded = Block::from_json(text(&vector["in"]).as_bytes(), &Bounds::default());
        if text(&vector["err"]) == "<nil>" {
            let after = text(&vector["after"])
                // Two things that Go tells apart and the ledger does not.
                .replace("\"Storage\":null", "\"Storage\":{}")
                .replace("{\"a\":null}", "{\"a\":{}}")
                // An object without owner, version and signature is written as its value alone.
                .replace(
                    "{\"Value\":\"v\",\"Owner\":\"\",\"Version\":0,\"UpdatedAt\":0,\"Deleted\":false,\"Sig\":null}",
                    "\"v\"",
                );
            assert_eq!(decoded.expect("a block").to_json(), after);
        } else {
            assert_eq!(decoded, Err(BlockError::NotABlock), "{}", vector["in"]);
        }
    }
}

#[test]
fn gossip_of_running_nodes_is_opened_and_can_be_made_again() {
    for vector in vectors("gossip") {
        let token = Token::parse(text(&vector["yaml"]).as_bytes()).expect("a token");
        let window = |name: &str| Window(vector[name].as_u64().expect("a window"));
        assert_eq!(token.topic(window("topic_window")), text(&vector["topic"]));
        let key = token.seal_key(window("key_window"));
        let data = text(&vector["envelope"]).as_bytes();

        let opened = open(data, std::slice::from_ref(&key), &Bounds::default()).expect("opened");
        assert_eq!(opened, block(text(&vector["block"])));
        assert_eq!(opened.to_json(), text(&vector["block"]));
        // Some of these blocks were made by a probe, which takes no checksum, and passed on by Go.
        if opened.timestamp != "probe" {
            assert_eq!(opened.checksum(), opened.hash);
        }
        let enforced = text(&vector["mode"]) == "enforce";
        for (bucket, entries) in &opened.storage {
            for (key, entry) in entries {
                assert_eq!(
                    entry.verify(bucket, key).is_ok(),
                    enforced,
                    "{bucket}/{key}"
                );
            }
        }

        let envelope = parse(text(&vector["envelope"]));
        let sealed = hex(&envelope["Message"]);
        let nonce = *sealed.first_chunk().expect("a nonce");
        let compressed = hex(&vector["gzip_hex"]);
        assert_eq!(seal_bytes(&compressed, &key, nonce, &[]), sealed);

        // With neighbouring keys in front, as a node tries them.
        let others = [
            token.seal_key(window("key_window").previous()),
            token.seal_key(window("key_window").next()),
            key.clone(),
        ];
        let ours = seal(&opened, &key, nonce);
        assert_eq!(open(&ours, &others, &Bounds::default()), Ok(opened));
        assert_eq!(
            parse(std::str::from_utf8(&ours).expect("text"))["Annotations"],
            Value::Null
        );
    }
}

#[test]
fn what_a_go_node_writes_on_its_stream_is_signed_and_opens() {
    let yaml = text(&vectors("gossip")[0]["yaml"]);
    let every = |seconds: u64| {
        let yaml = yaml.replace("interval: 20", &format!("interval: {seconds}"));
        Token::parse(yaml.as_bytes()).expect("a token")
    };
    // The node that was followed over a rotation turned every 20 s, the one that published every 360 s.
    let (fast, slow) = (every(20), every(360));
    let (mut greeted, mut grafted, mut announced, mut opened) = (0, 0, Vec::new(), 0);
    for vector in vectors("raw-pubsub") {
        let now = UnixTime(Duration::from_secs_f64(
            vector["unix"].as_f64().expect("seconds"),
        ));
        let topics = [&fast, &slow].map(|token| token.topic(token.window(now)));
        let bytes = hex(&vector["hex"]);
        let mut rest = &*bytes;
        while !rest.is_empty() {
            // The end of a large frame would be in the next read.
            let frame = Rpc::decode_length_delimited(&mut rest).expect("a whole frame");
            for subscription in frame.subscriptions {
                assert_eq!(subscription.subscribe, Some(true));
                assert!(topics.contains(&subscription.topic.expect("a topic")));
                greeted += 1;
            }
            let control = frame.control.unwrap_or_default();
            grafted += control.graft.len();
            announced.extend(control.idontwant.into_iter().flat_map(|ids| ids.ids));
            for message in frame.publish {
                assert_signed(&message);
                let id = [
                    message.from.expect("an author"),
                    message.seqno.expect("a number"),
                ];
                assert!(
                    announced.contains(&id.concat()),
                    "an id is author and number"
                );
                let window = slow.window(now);
                assert_eq!(message.topic, Some(slow.topic(window)));
                let data = message.data.expect("data");
                let block = open(&data, &[slow.seal_key(window)], &Bounds::default());
                let block = block.expect("opened");
                assert_eq!(block.checksum(), block.hash);
                opened += 1;
            }
        }
    }
    assert_eq!((greeted, grafted), (5, 1));
    assert!(opened >= 3, "{opened} messages");
}

fn assert_signed(message: &Publication) {
    let mut unsigned = message.clone();
    let signature = unsigned.signature.take().expect("a signature");
    let signed = [b"libp2p-pubsub:", &*unsigned.encode_to_vec()].concat();
    let author = message.from.as_deref().expect("an author");
    let key = PublicKey::try_decode_protobuf(&author[2..]).expect("an inlined key");
    assert!(key.verify(&signed, &signature));
}

#[test]
fn merged_entries_carry_the_signatures_that_go_saw() {
    for vector in vectors("merge") {
        let incoming = block(&vector["in"].to_string());
        for name in ["have", "after"] {
            let storage = format!("{{\"Storage\":{}}}", vector[name]);
            let read: Storage = block(&storage).storage;
            assert_eq!(
                block(&format!("{{\"Storage\":{}}}", storage_json(&read))).storage,
                read
            );
        }
        for warning in vector["warn"].as_array().expect("warnings") {
            let Some(place) = text(warning).strip_suffix(": invalid signature") else {
                continue;
            };
            let (_, place) = place.split_once("): ").expect("a place");
            let (place, _) = place.split_once(" from").expect("an author");
            let (bucket, key) = place.split_once('/').expect("a bucket and a key");
            let entry = &incoming.storage[bucket][key];
            assert!(entry.verify(bucket, key).is_err(), "{}", vector["note"]);
        }
    }
}

fn storage_json(storage: &Storage) -> String {
    let block = Block {
        storage: storage.clone(),
        ..Block::default()
    };
    parse(&block.to_json())["Storage"].to_string()
}

#[test]
fn our_relay_writes_the_answers_of_a_go_relay() {
    for vector in vectors("hop") {
        let theirs = hex(&vector["answer_hex"]);
        let answer = Hop::decode_length_delimited(&*theirs).expect("a whole frame");
        let (told, _) = text(&vector["decoded"]["status"])
            .split_once(' ')
            .expect("a code and its name");
        assert_eq!(answer.status, told.parse().ok());
        let limit = answer.limit.map(|limit| Limit {
            duration: limit.duration,
            data: limit.data,
        });
        let ours = match answer.reservation {
            None => status_frame(status(answer.status), limit),
            Some(reservation) => {
                let addresses: Vec<Multiaddr> = reservation
                    .addrs
                    .into_iter()
                    .map(|address| Multiaddr::try_from(address).expect("an address"))
                    .collect();
                reservation_frame(reservation.expire, &addresses, reservation.voucher, limit)
            }
        };
        assert_eq!(ours, theirs, "{}", vector["note"]);
    }
}

fn status(code: Option<i32>) -> Status {
    [
        Status::Ok,
        Status::PermissionDenied,
        Status::ConnectionFailed,
        Status::NoReservation,
    ]
    .into_iter()
    .find(|status| Some(*status as i32) == code)
    .expect("a known status")
}

#[test]
fn everybody_chooses_the_same_leader() {
    for vector in vectors("leader") {
        let ids = vector["ids"].as_array().expect("ids").iter().map(text);
        assert_eq!(leader(ids), vector["leader"].as_str());
    }
    assert_eq!(leader([]), None);
}
