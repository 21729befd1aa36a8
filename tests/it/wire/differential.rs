//! Two programs that were written apart from each other, on the same random inputs: this one and
//! `tests/vectors/wire-vectors.py`.

use crate::support::skip::skip;
use edgevpn::{
    id::UnixTime,
    wire::{
        Block, Bounds, Entry, Rotation, SealKey, Token, leader::weight, open, seal, seal_bytes,
    },
};
use libp2p::identity::Keypair;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// Rounds of every question. Another seed finds other inputs; this one makes failures come back.
const ROUNDS: usize = 150;
const SEED: u64 = 20_260_805;

#[test]
fn a_second_program_agrees_on_random_inputs() {
    let Some(mut python) = Python::start("a_second_program_agrees_on_random_inputs") else {
        return;
    };
    let mut random = StdRng::seed_from_u64(SEED);
    for _ in 0..ROUNDS {
        derivations(&mut python, &mut random);
        sealing(&mut python, &mut random);
        entries(&mut python, &mut random);
        messages(&mut python, &mut random);
    }
}

fn derivations(python: &mut Python, random: &mut StdRng) {
    let mut token = Token::generate(random.random_range(1..100_000), |bytes| random.fill(bytes));
    token.dht = Rotation {
        interval: random.random_range(1..100_000),
        length: random.random_range(0..=44),
        key: if random.random_bool(0.1) {
            String::new()
        } else {
            token.dht.key
        },
    };
    token.crypto.length = random.random_range(0..=44);
    let now = random.random_range(0..10_000_000_000_u64);
    let net = json!({
        "dht_interval": token.dht.interval, "dht_key": token.dht.key, "dht_length": token.dht.length,
        "crypto_interval": token.crypto.interval, "crypto_key": token.crypto.key,
        "crypto_length": token.crypto.length, "room": token.room, "rendezvous": token.rendezvous,
        "mdns": token.mdns, "max_message_size": token.max_message_size,
    });
    let now_here = UnixTime::from_secs(now);
    let window = token.window(now_here);
    let rendezvous = token.rendezvous(token.dht_window(now_here));

    let theirs = python.ask(&json!({"ask": "derive", "now": now, "net": net}));
    assert_eq!(theirs["window"], window.0);
    assert_eq!(theirs["topic"], token.topic(window));
    assert_eq!(theirs["topic_public"], token.public_topic(window));
    assert_eq!(theirs["rendezvous"], rendezvous);
    assert_eq!(
        theirs["provider_key_multihash_hex"],
        hex(&Token::provider_key(&rendezvous))
    );
    assert!(super::seal_key_text(&theirs["seal_key_ascii"]) == token.seal_key(window));

    if !token.dht.key.is_empty() {
        let theirs = python.ask(&json!({"ask": "token", "net": net}));
        assert_eq!(theirs["token"], token.to_base64());
        assert_eq!(Token::parse(token.to_base64().as_bytes()), Ok(token));
    }
}

fn sealing(python: &mut Python, random: &mut StdRng) {
    let (key, nonce) = (random.random::<[u8; 32]>(), random.random::<[u8; 12]>());
    let (plain, context) = (bytes(random, 3000), bytes(random, 40));
    let theirs = python.ask(&json!({
        "ask": "seal", "key": hex(&key), "nonce": hex(&nonce), "plain": hex(&plain), "context": hex(&context),
    }));
    let ours = seal_bytes(&plain, &SealKey::new(key), nonce, &context);
    assert_eq!(theirs["sealed"], hex(&ours));
}

fn entries(python: &mut Python, random: &mut StdRng) {
    let seed: [u8; 32] = random.random();
    let (bucket, key) = (text(random), text(random));
    let mut entry = entry(random);
    let theirs = python.ask(&json!({
        "ask": "entry", "seed": hex(&seed), "bucket": bucket, "key": key,
        "entry": {
            "Value": entry.value, "Version": entry.version, "UpdatedAt": entry.updated_at, "Deleted": entry.deleted,
        },
    }));
    let keypair = Keypair::ed25519_from_bytes(seed).expect("a seed");
    entry.sign(&bucket, &key, &keypair).expect("signed");
    assert_eq!(theirs["owner"], entry.owner);
    assert_eq!(theirs["canonical"], hex(&entry.canonical(&bucket, &key)));
    assert_eq!(theirs["signature"], hex(&entry.signature));
    assert!(entry.verify(&bucket, &key).is_ok());
    let weighed = python.ask(&json!({"ask": "weight", "text": entry.owner}));
    assert_eq!(weighed["weight"], weight(&entry.owner));
}

fn messages(python: &mut Python, random: &mut StdRng) {
    let mut block = Block {
        index: random.random_range(0..1_000_000),
        timestamp: text(random),
        previous_hash: text(random),
        ..Block::default()
    };
    for _ in 0..random.random_range(0..4) {
        let bucket = block.storage.entry(text(random)).or_default();
        for _ in 0..random.random_range(0..5) {
            let entry = match random.random_bool(0.3) {
                true => Entry {
                    value: text(random),
                    ..Entry::default()
                },
                false => entry(random),
            };
            bucket.insert(text(random), entry);
        }
    }
    block.hash = block.checksum();
    let key: [u8; 32] = random.random();
    let sealed = seal(&block, &SealKey::new(key), random.random());
    let theirs = python.ask(&json!({
        "ask": "message", "key": hex(&key), "data": String::from_utf8(sealed).expect("text"),
    }));
    assert_eq!(theirs["checksum"], block.hash);
    assert_eq!(theirs["block"], super::parse(&block.to_json()));
    let data = theirs["data"].as_str().expect("a message").as_bytes();
    assert_eq!(
        open(data, &[SealKey::new(key)], &Bounds::default()),
        Ok(block)
    );
}

fn entry(random: &mut StdRng) -> Entry {
    let length = random.random_range(0..80);
    Entry {
        value: text(random),
        owner: format!("o{}", text(random)),
        version: random.random(),
        updated_at: random.random(),
        deleted: random.random(),
        signature: (0..length).map(|_| random.random()).collect(),
    }
}

/// Texts with what encoders treat apart: quotes, controls, HTML, separators, letters beyond the basic plane.
fn text(random: &mut StdRng) -> String {
    let length = random.random_range(0..12);
    (0..length)
        .map(|_| match random.random_range(0..4) {
            0 => random.random_range('a'..='z'),
            1 => *pick(
                random,
                &[
                    '"', '\\', '<', '>', '&', '\u{2028}', '\n', '\0', '\u{7f}', '/',
                ],
            ),
            _ => random.random(),
        })
        .collect()
}

fn pick<'a, T>(random: &mut StdRng, from: &'a [T]) -> &'a T {
    &from[random.random_range(0..from.len())]
}

fn bytes(random: &mut StdRng, most: usize) -> Vec<u8> {
    let length = random.random_range(0..most);
    (0..length).map(|_| random.random()).collect()
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// The script, answering line by line until it is dropped.
struct Python {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Python {
    /// With the interpreter of `tests/install`, else with any that has what the script needs.
    fn start(test: &str) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let installed = root.join("target/peers/venv/bin/python");
        let interpreter = [installed.as_path(), Path::new("python3")]
            .into_iter()
            .find(|interpreter| {
                Command::new(interpreter)
                    .args(["-c", "import cryptography"])
                    .stderr(Stdio::null())
                    .status()
                    .is_ok_and(|status| status.success())
            });
        let Some(interpreter) = interpreter else {
            skip(test, "no Python has `cryptography`, run tests/install");
            return None;
        };
        let mut child = Command::new(interpreter)
            .arg(root.join("tests/vectors/wire-vectors.py"))
            .arg("--answer")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        Some(Self {
            questions: child.stdin.take().expect("piped"),
            answers: BufReader::new(child.stdout.take().expect("piped")),
            child,
        })
    }

    fn ask(&mut self, question: &Value) -> Value {
        writeln!(self.questions, "{question}").expect("the script reads");
        let mut line = String::new();
        self.answers
            .read_line(&mut line)
            .expect("the script answers");
        serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{error}: {line:?} to {question}"))
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
