//! What holds for every token, block and message; and that no bytes whatever make a reader panic.

use edgevpn::{
    id::UnixTime,
    wire::{
        Block, Bounds, Entry, Rotation, SealKey, Storage, Token, open, open_bytes, seal,
        seal_bytes,
        value::{self, Machine, Offer, User},
    },
};
use proptest::prelude::*;

fn rotation() -> impl Strategy<Value = Rotation> {
    (1..=u64::MAX >> 1, secret(), 0..=44_usize).prop_map(|(interval, key, length)| Rotation {
        interval,
        key: format!("k{key}"),
        length,
    })
}

/// Any text, and above all what YAML could take for something else.
fn secret() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[-+.:eExob_0-9]{0,12}",
        "[-?: #,&*!|>'\"%@`{}\\[\\]~a\n\t\r\u{85}\u{2028}\u{feff}]{0,12}",
        "(null|true|yes|no|on|off|y|N|\\.inf|\\.NaN|<<|=|---|\\.\\.\\.)[ :#a]{0,2}",
    ]
}

fn token() -> impl Strategy<Value = Token> {
    (
        rotation(),
        rotation(),
        secret(),
        secret(),
        secret(),
        1..=u64::MAX >> 1,
    )
        .prop_map(
            |(dht, crypto, room, rendezvous, mdns, max_message_size)| Token {
                dht,
                crypto,
                room,
                rendezvous,
                mdns,
                max_message_size,
            },
        )
}

fn entry() -> impl Strategy<Value = Entry> {
    let signed = (
        any::<String>(),
        "[a-zA-Z0-9]{1,60}",
        any::<u64>(),
        any::<i64>(),
        any::<bool>(),
        prop::collection::vec(any::<u8>(), 0..80),
    )
        .prop_map(
            |(value, owner, version, updated_at, deleted, signature)| Entry {
                value,
                owner,
                version,
                updated_at,
                deleted,
                signature,
            },
        );
    let legacy = any::<String>().prop_map(|value| Entry {
        value,
        ..Entry::default()
    });
    prop_oneof![signed, legacy]
}

fn block() -> impl Strategy<Value = Block> {
    let bucket = prop::collection::btree_map(any::<String>(), entry(), 0..4);
    let storage = prop::collection::btree_map(any::<String>(), bucket, 0..4);
    (
        any::<i64>(),
        any::<String>(),
        storage,
        any::<String>(),
        any::<String>(),
    )
        .prop_map(
            |(index, timestamp, storage, hash, previous_hash): (_, _, Storage, _, _)| Block {
                index,
                timestamp,
                storage,
                hash,
                previous_hash,
            },
        )
}

proptest! {
    #[test]
    fn a_token_is_read_as_it_was_written(token in token()) {
        prop_assert_eq!(&Token::parse(token.to_yaml().as_bytes()), &Ok(token.clone()), "{}", token.to_yaml());
        prop_assert_eq!(Token::parse(token.to_base64().as_bytes()), Ok(token));
    }

    #[test]
    fn a_block_is_read_as_it_was_written(block in block()) {
        let json = block.to_json();
        prop_assert_eq!(Block::from_json(json.as_bytes(), &Bounds::default()), Ok(block.clone()));
        // Other readers agree that it is JSON.
        let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        prop_assert_eq!(&value["Timestamp"], &block.timestamp);
    }

    #[test]
    fn a_sealed_block_opens_and_no_bit_of_it_may_change(block in block(), nonce: [u8; 12], flip: prop::sample::Index) {
        let key = SealKey::new([9; 32]);
        let data = seal(&block, &key, nonce);
        prop_assert_eq!(open(&data, std::slice::from_ref(&key), &Bounds::default()), Ok(block));

        let mut sealed = seal_bytes(b"plain", &key, nonce, b"context");
        let at = flip.index(sealed.len() * 8);
        sealed[at / 8] ^= 1 << (at % 8);
        prop_assert!(open_bytes(&sealed, &[key], b"context").is_err());
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), text: String) {
        let key = SealKey::new([9; 32]);
        let bounds = Bounds::default();
        let _ = Token::parse(&bytes);
        let _ = Token::parse(text.as_bytes());
        let _ = Token::parse(format!("otp: {text}").as_bytes());
        let _ = Block::from_json(&bytes, &bounds);
        let _ = Block::from_json(text.as_bytes(), &bounds);
        let _ = open(&bytes, std::slice::from_ref(&key), &bounds);
        let _ = open_bytes(&bytes, std::slice::from_ref(&key), &bytes);
        // Behind the seal as well.
        let hex = data_encoding::HEXLOWER.encode(&seal_bytes(&bytes, &key, [0; 12], &[]));
        let _ = open(format!("{{\"message\":\"{hex}\"}}").as_bytes(), &[key], &bounds);
        for text in [&text, &format!("{{\"PeerID\":{text}}}"), &format!("\"{text}\"")] {
            let _ = Machine::read(text);
            let _ = User::read(text);
            let _ = Offer::read(text);
            let _ = value::read_heartbeat(text);
        }
        let entry = Entry { owner: text, signature: bytes, ..Entry::default() };
        let _ = entry.verify("b", "k");
    }

    #[test]
    fn every_window_derives_and_ends(token in token(), seconds: u64) {
        let now = UnixTime::from_secs(seconds);
        let window = token.window(now);
        prop_assert_eq!(token.topic(window).len(), 32);
        // Short texts repeat by chance.
        let turns = token.crypto.length >= 20 && window != window.next();
        prop_assert!(!turns || token.topic(window) != token.topic(window.next()));
        prop_assert!(token.next_rotation(now) > now || seconds > u64::MAX >> 1);
        let _ = token.rendezvous(token.dht_window(now));
        let _ = token.seal_key(window);
        let _ = token.public_topic(window.previous());
        let _ = value::heartbeat(now);
    }

    #[test]
    fn a_forged_signature_is_never_believed(entry in entry(), bucket: String, key: String) {
        prop_assert!(entry.verify(&bucket, &key).is_err());
        let keypair = super::keypair();
        let mut signed = entry;
        signed.sign(&bucket, &key, &keypair).expect("signed");
        prop_assert_eq!(signed.verify(&bucket, &key), Ok(keypair.public().to_peer_id()));
        // Nothing under the signature may change, not even what stands beside each other.
        let moved = (format!("{bucket}x"), key.clone());
        prop_assert!(signed.verify(&moved.0, &moved.1).is_err());
        let older = Entry { updated_at: signed.updated_at ^ 1, ..signed.clone() };
        prop_assert!(older.verify(&bucket, &key).is_err());
        let revived = Entry { deleted: !signed.deleted, ..signed };
        prop_assert!(revived.verify(&bucket, &key).is_err());
    }
}

#[path = "../../../fuzz/targets/wire_bytes.rs"]
mod wire_bytes;

#[test]
fn the_corpus_of_the_fuzz_targets_holds_whole_cut_and_broken() {
    type Check = fn(&[u8]);
    let targets: [(&str, Check); 3] = [
        ("wire_token", wire_bytes::token),
        ("wire_block", wire_bytes::block),
        ("wire_message", wire_bytes::message),
    ];
    for (target, holds) in targets {
        let corpus = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        let files: Vec<_> = std::fs::read_dir(corpus).expect("a corpus").collect();
        assert!(files.len() >= 12, "{target} has lost its corpus");
        for file in files {
            let mut bytes = std::fs::read(file.expect("a file").path()).expect("readable");
            holds(&bytes);
            for at in (0..bytes.len()).step_by(3) {
                holds(&bytes[..at]);
                let whole = bytes[at];
                for other in [0, whole ^ 1, whole ^ 0x80, b'"', b':'] {
                    bytes[at] = other;
                    holds(&bytes);
                }
                bytes[at] = whole;
            }
        }
    }
}
