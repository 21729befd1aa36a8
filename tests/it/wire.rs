//! The wire format against what was computed by hand (`tests/vectors/wire-vectors.json`, made by the script beside it) and
//! what EdgeVPN nodes really sent (`wire-vectors-live.json`).

mod command;
mod differential;
mod hostile;
mod live;
mod properties;
mod signatures;

use crate::gossip::frame::{Publication, Rpc};
use edgevpn::{
    id::UnixTime,
    wire::{
        Block, Bounds, Entry, Rotation, SealKey, SignatureError, Token, TokenError,
        leader::{leader, weight},
        open, open_bytes, seal_bytes, totp,
    },
};
use libp2p::identity::Keypair;
use serde_json::Value;
use sha2::Digest;
use std::sync::LazyLock;

static COMPUTED: LazyLock<Value> =
    LazyLock::new(|| parse(include_str!("../vectors/wire-vectors.json")));

fn parse(text: &str) -> Value {
    serde_json::from_str(text).expect("vectors are JSON")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("a text: {value}"))
}

fn hex(value: &Value) -> Vec<u8> {
    data_encoding::HEXLOWER
        .decode(text(value).as_bytes())
        .expect("hexadecimal")
}

fn at(unix: &Value) -> UnixTime {
    UnixTime::from_secs(unix.as_u64().expect("seconds"))
}

fn token() -> Token {
    Token::parse(text(&COMPUTED["token"]).as_bytes()).expect("the token of the vectors")
}

/// The key of the vectors: seed 01 02 … 20.
fn keypair() -> Keypair {
    Keypair::ed25519_from_bytes(hex(&COMPUTED["ed25519_seed_hex"])).expect("a seed")
}

#[test]
fn a_token_is_read_in_both_forms_and_written_back_byte_for_byte() {
    let (base64, yaml) = (text(&COMPUTED["token"]), text(&COMPUTED["yaml"]));
    assert_eq!(Token::parse(yaml.as_bytes()), Ok(token()));
    assert_eq!(token().to_base64(), base64);
    assert_eq!(token().to_yaml(), yaml);
    assert_eq!(token().max_message_size, 20 << 20);
}

#[test]
fn a_token_survives_what_mail_and_shells_do_to_it() {
    let plain = text(&COMPUTED["token"]);
    let url_safe = plain.replace('+', "-").replace('/', "_");
    let unpadded = plain.trim_end_matches('=');
    let folded = plain
        .as_bytes()
        .chunks(64)
        .map(|line| format!("  {}\t\r\n", String::from_utf8_lossy(line)))
        .collect::<String>();
    for form in [&url_safe, unpadded, &folded, &format!("\u{feff}{plain}\n")] {
        assert_eq!(Token::parse(form.as_bytes()), Ok(token()), "{form}");
    }
}

#[test]
fn derived_values_follow_the_window() {
    for name in ["at_T0", "at_T0_plus_359", "at_T0_minus_1", "at_T0_plus_360"] {
        let expected = &COMPUTED[name];
        let now = at(&expected["unix"]);
        let (token, window) = (token(), token().window(now));
        assert_eq!(window.0, expected["window"].as_u64().expect("a number"));
        assert_eq!(token.topic(window), text(&expected["topic"]));
        assert_eq!(token.public_topic(window), text(&expected["topic_public"]));
        assert!(token.seal_key(window) == seal_key(&expected["seal_key_bytes_hex"]));
        assert!(token.seal_key(window) == seal_key_text(&expected["seal_key_ascii"]));
        let rendezvous = token.rendezvous(token.dht_window(now));
        assert_eq!(rendezvous, text(&expected["rendezvous"]));
        assert_eq!(
            Token::provider_key(&rendezvous).to_vec(),
            hex(&expected["provider_key_multihash_hex"])
        );
        assert_eq!(cid(&rendezvous), text(&expected["cid"]));
        assert_eq!(
            sha2::Sha256::digest(Token::provider_key(&rendezvous)).to_vec(),
            hex(&expected["kad_xor_key_hex"])
        );
        for (secret, name) in [
            (&token.dht.key, "totp_dht"),
            (&token.room, "totp_room"),
            (&token.crypto.key, "totp_seal"),
        ] {
            assert_eq!(totp(secret, window, 43), text(&expected[name]));
        }
    }
    let t0 = at(&COMPUTED["at_T0"]["unix"]);
    assert_eq!(token().next_rotation(t0).since(t0).as_secs(), 360);
}

/// How logs of Go nodes name a provider key: version 1, codec raw.
fn cid(rendezvous: &str) -> String {
    let bytes = [&[0x01, 0x55], &Token::provider_key(rendezvous)[..]].concat();
    multibase::encode(multibase::Base::Base32Lower, bytes)
}

fn seal_key(hexadecimal: &Value) -> SealKey {
    SealKey::new(hex(hexadecimal).try_into().expect("32 bytes"))
}

fn seal_key_text(ascii: &Value) -> SealKey {
    SealKey::new(text(ascii).as_bytes().try_into().expect("32 bytes"))
}

#[test]
fn a_derived_text_is_cut_where_the_token_says() {
    let token = token();
    let window = token.window(at(&COMPUTED["at_T0"]["unix"]));
    assert_eq!(
        totp(&token.crypto.key, window, 44),
        text(&COMPUTED["totp_len44"])
    );
    assert_eq!(
        totp(&token.crypto.key, window, 0),
        text(&COMPUTED["totp_len0"])
    );
    let slow = Token {
        crypto: Rotation {
            interval: 9000,
            ..token.crypto.clone()
        },
        ..token
    };
    let window = slow.window(at(&COMPUTED["at_T0"]["unix"]));
    assert_eq!(
        totp(&slow.crypto.key, window, 43),
        text(&COMPUTED["totp_interval_9000"])
    );
}

#[test]
fn entries_are_signed_over_the_same_bytes() {
    let (bucket, key) = ("machines", "10.1.0.11");
    let mut entry = Entry {
        value: text(&COMPUTED["machine_value"]).to_owned(),
        version: 1_785_931_200_000_000_001,
        updated_at: 1_785_931_200,
        ..Entry::default()
    };
    entry.sign(bucket, key, &keypair()).expect("signed");
    assert_eq!(entry.owner, text(&COMPUTED["peer_id"]));
    assert_eq!(
        entry.canonical(bucket, key),
        hex(&COMPUTED["canonical_hex"])
    );
    assert_eq!(base64(&entry.signature), text(&COMPUTED["entry_sig_b64"]));
    assert_eq!(
        entry.verify(bucket, key),
        Ok(keypair().public().to_peer_id())
    );
    assert_eq!(entry.verify("dns", key), Err(SignatureError::Wrong));

    let mut tombstone = Entry {
        version: entry.version + 1,
        updated_at: entry.updated_at + 1,
        deleted: true,
        ..Entry::default()
    };
    tombstone.sign(bucket, key, &keypair()).expect("signed");
    assert_eq!(
        tombstone.canonical(bucket, key),
        hex(&COMPUTED["tombstone_canonical_hex"])
    );
    assert_eq!(
        base64(&tombstone.signature),
        text(&COMPUTED["tombstone_sig_b64"])
    );
    assert!(tombstone.verify(bucket, key).is_ok());
}

fn base64(bytes: &[u8]) -> String {
    data_encoding::BASE64.encode(bytes)
}

#[test]
fn a_token_that_would_break_the_reference_is_refused() {
    let yaml = text(&COMPUTED["yaml"]);
    let with = |from: &str, to: &str| Token::parse(yaml.replacen(from, to, 1).as_bytes());
    assert_eq!(
        with("interval: 360", "interval: 0"),
        Err(TokenError::Interval {
            key: "otp.dht.interval",
            value: 0
        })
    );
    assert_eq!(
        with("length: 43\nroom", "length: 45\nroom"),
        Err(TokenError::Length {
            key: "otp.crypto.length",
            value: 45
        })
    );
    assert_eq!(
        with("max_message_size: 20971520\n", ""),
        Err(TokenError::MessageSize { value: 0 })
    );
    assert_eq!(
        with(
            "key: cryptoKEY0123456789abcdefghijklmnopqrstuvwx",
            "key: ''"
        ),
        Err(TokenError::NoSecret)
    );
    assert!(with("length: 43", "length: 44").is_ok());
}

#[test]
fn bytes_are_sealed_and_enveloped_exactly() {
    let key = seal_key(&COMPUTED["at_T0"]["seal_key_bytes_hex"]);
    let nonce = hex(&COMPUTED["seal_nonce_hex"])
        .try_into()
        .expect("a nonce");
    let plain = text(&COMPUTED["seal_plain"]).as_bytes();
    let sealed = seal_bytes(plain, &key, nonce, &[]);
    assert_eq!(sealed, hex(&COMPUTED["sealed_hex"]));
    assert_eq!(
        open_bytes(&sealed, std::slice::from_ref(&key), &[]),
        Ok(plain.to_vec())
    );
    // What this envelope holds is no gzip: the layers above are peeled.
    let opened = open(
        text(&COMPUTED["envelope_json"]).as_bytes(),
        &[key],
        &Bounds::default(),
    );
    assert_eq!(opened.map_err(edgevpn::wire::OpenError::label), Err("gzip"));
}

/// The block of the vectors: a signed machine and a heartbeat of the time before signatures.
fn signed_block() -> Block {
    let entry = &COMPUTED["entry_json"];
    let json = format!(
        r#"{{"Index":1,"Timestamp":{},"Storage":{{"machines":{{"10.1.0.11":{}}},"healthcheck":{{{}:"\"2026-08-05T12:00:00Z\""}}}},"PrevHash":{}}}"#,
        COMPUTED["block_timestamp"],
        text(entry),
        COMPUTED["peer_id"],
        COMPUTED["genesis_hash"],
    );
    Block::from_json(json.as_bytes(), &Bounds::default()).expect("a block")
}

#[test]
fn a_block_is_hashed_as_go_prints_it() {
    assert_eq!(Block::default().checksum(), text(&COMPUTED["genesis_hash"]));
    assert_eq!(signed_block().checksum(), text(&COMPUTED["block_hash"]));
    assert!(
        signed_block()
            .to_json()
            .contains(text(&COMPUTED["entry_json"]))
    );
}

#[test]
fn leaders_are_weighed_by_the_text_of_their_id() {
    assert_eq!(
        weight(text(&COMPUTED["peer_id"])),
        COMPUTED["fnv1a32_peer"].as_u64().expect("a hash") as u32
    );
    for name in [
        "leader_of_alpha_bravo_charlie",
        "leader_of_node-01_node-02_node-03_node-04_node-05",
    ] {
        let ids = name.trim_start_matches("leader_of_").split('_');
        assert_eq!(leader(ids), COMPUTED[name].as_str());
    }
}

#[test]
fn identities_and_gossip_signatures_are_those_of_libp2p() {
    let keypair = keypair();
    let peer = keypair.public().to_peer_id();
    assert_eq!(peer.to_base58(), text(&COMPUTED["peer_id"]));
    assert_eq!(peer.to_bytes(), hex(&COMPUTED["peer_id_bytes_hex"]));
    assert_eq!(
        keypair.to_protobuf_encoding().expect("encoded"),
        hex(&COMPUTED["privkey_file_hex"])
    );
    let unsigned = hex(&COMPUTED["pubsub_unsigned_hex"]);
    let signed = [b"libp2p-pubsub:", &*unsigned].concat();
    let signature = keypair.sign(&signed).expect("signed");
    assert_eq!(signature, hex(&COMPUTED["pubsub_signature_hex"]));
    let seqno = 1_785_931_200_000_000_001_u64;
    let topic = text(&COMPUTED["at_T0"]["topic"]).to_owned();
    let data = text(&COMPUTED["envelope_json"]).as_bytes();
    let publication = Publication::signed(&keypair, seqno, &topic, data);
    assert_eq!(publication.signature, Some(signature));
    let (author, number) = (
        publication.from.expect("set"),
        publication.seqno.expect("set"),
    );
    assert_eq!(
        [author, number].concat(),
        hex(&COMPUTED["pubsub_message_id_hex"])
    );
    assert_eq!(
        Rpc::hello([&topic]).framed(),
        hex(&COMPUTED["pubsub_hello_rpc_hex"])
    );
    // The message carries the envelope of the vectors.
    let envelope = text(&COMPUTED["envelope_json"]).as_bytes();
    assert!(
        unsigned
            .windows(envelope.len())
            .any(|part| part == envelope)
    );
}

/// Every computed vector, and where it is looked at when not here.
const COMPUTED_ELSEWHERE: &[(&str, &str)] = &[
    ("dhcp_lease_filename", "not built: leases of EdgeVPN's DHCP"),
    ("dns_value", "not built: the name service"),
    ("ecdsa_prehash_ascii", "not built: PeerGuardian"),
    ("ecdsa_private_key", "not built: PeerGuardian"),
    ("ecdsa_public_key", "not built: PeerGuardian"),
    ("ecdsa_sigs_annotation", "not built: PeerGuardian"),
];

#[test]
fn no_computed_vector_is_left_unlooked_at() {
    // Named in a test above, or in the table with its reason.
    let here = include_str!("wire.rs");
    for name in COMPUTED.as_object().expect("an object").keys() {
        assert!(
            here.contains(&format!("\"{name}\"")),
            "{name} is not looked at"
        );
    }
    for (name, reason) in COMPUTED_ELSEWHERE {
        assert!(!COMPUTED[name].is_null(), "{name} ({reason}) is gone");
    }
}
