//! Messages made to hurt: each is refused with its own label, soon, and within a few dozen MiB.

use edgevpn::wire::{
    Block, BlockError, Bounds, OpenError, SealKey, Token, open, open_bytes, seal, seal_bytes,
};
use flate2::{Compression, write::GzEncoder};
use std::{
    fmt::Write as _,
    io::Write as _,
    process::Command,
    time::{Duration, Instant},
};

fn key() -> SealKey {
    SealKey::new([7; 32])
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("in memory");
    encoder.finish().expect("in memory")
}

/// A message that is honest down to what is compressed.
fn message_of(compressed: &[u8]) -> Vec<u8> {
    let sealed = seal_bytes(compressed, &key(), [1; 12], &[]);
    let hex = data_encoding::HEXLOWER.encode(&sealed);
    format!(r#"{{"Message":"{hex}","SenderID":"","Annotations":null}}"#).into_bytes()
}

fn message(json: &str) -> Vec<u8> {
    message_of(&gzip(json.as_bytes()))
}

fn refusal(data: &[u8]) -> &'static str {
    match open(data, &[key()], &Bounds::default()) {
        Ok(_) => "opened",
        Err(error) => error.label(),
    }
}

/// 10 MiB that inflate to 10 GiB: one member after the other, as Go reads them too.
fn bomb() -> Vec<u8> {
    let member = gzip(&vec![0; 10 << 20]);
    member.repeat((10 << 20) / member.len())
}

/// The same in one member: the header, then one flushed piece over and over.
fn seamless_bomb() -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&vec![0; 10 << 20]).expect("in memory");
    encoder.flush().expect("in memory");
    let piece = encoder.get_ref().get(10..).expect("a header").to_vec();
    let header = encoder.get_ref().get(..10).expect("a header").to_vec();
    [header, piece.repeat((10 << 20) / piece.len())].concat()
}

/// Letters that hardly compress: 64 KiB of them over and over, twice as far apart as gzip looks back.
fn noise(length: usize) -> String {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let piece: String = (0..64 << 10)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            char::from(b'a' + (state % 26) as u8)
        })
        .collect();
    piece.repeat(length.div_ceil(piece.len()))
}

fn many(count: usize, item: impl Fn(usize) -> String) -> String {
    let mut text = String::new();
    for nth in 0..count {
        let comma = if nth == 0 { "" } else { "," };
        let _ = write!(text, "{comma}{}", item(nth));
    }
    text
}

/// What hurts, and the label it is refused with.
fn hostile() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let deep = |open: &str, close: &str| open.repeat(100_000) + "1" + &close.repeat(100_000);
    let long = noise(20 << 20);
    let bucket = |entries: &str| format!(r#"{{"Storage":{{"b":{{{entries}}}}}}}"#);
    vec![
        ("a bomb", message_of(&bomb()), "bomb"),
        ("a bomb in one piece", message_of(&seamless_bomb()), "bomb"),
        (
            "64 MiB of one letter",
            message(&bucket(&format!(r#""k":"{}""#, "x".repeat(64 << 20)))),
            "bomb",
        ),
        (
            "a value of 20 MiB",
            message(&bucket(&format!(r#""k":"{long}""#))),
            "value",
        ),
        (
            "a value of 20 MiB in an object",
            message(&bucket(&format!(r#""k":{{"Value":"{long}"}}"#))),
            "value",
        ),
        (
            "a signature of 20 MiB",
            message(&bucket(&format!(r#""k":{{"Sig":"{long}"}}"#))),
            "value",
        ),
        (
            "a signature of 100,000 numbers",
            message(&bucket(&format!(
                r#""k":{{"Sig":[{}]}}"#,
                many(100_000, |n| (n % 256).to_string())
            ))),
            "value",
        ),
        (
            "a key of 20 MiB",
            message(&bucket(&format!(r#""{long}":"v""#))),
            "key",
        ),
        (
            "a time of 20 MiB",
            message(&format!(r#"{{"Timestamp":"{long}"}}"#)),
            "key",
        ),
        (
            "a million keys",
            message(&bucket(&many(1_000_000, |n| format!(r#""{n}":"""#)))),
            "entries",
        ),
        (
            "200,000 buckets",
            message(&format!(
                r#"{{"Storage":{{{}}}}}"#,
                many(200_000, |n| format!(r#""{n}":null"#))
            )),
            "entries",
        ),
        (
            "arrays 100,000 deep",
            message(&format!(r#"{{"X":{}}}"#, deep("[", "]"))),
            "depth",
        ),
        (
            "objects 100,000 deep",
            message(&format!(r#"{{"X":{}}}"#, deep(r#"{"a":"#, "}"))),
            "depth",
        ),
        (
            "arrays 100,000 deep instead of buckets",
            message(&format!(r#"{{"Storage":{}}}"#, deep("[", "]"))),
            "json",
        ),
        (
            "annotations 100,000 deep",
            format!(r#"{{"Annotations":{{"a":{}}}}}"#, deep("[", "]")).into_bytes(),
            "depth",
        ),
        (
            "200,000 unknown members",
            message(&format!(
                "{{{}}}",
                many(200_000, |n| format!(r#""{n}":[]"#))
            )),
            "opened",
        ),
    ]
}

/// Set in the child that measures itself.
const MEASURED: &str = "EDGEVPN_TEST_MEASURED";

#[test]
fn hostile_messages_are_refused_by_name_within_bounded_memory_and_time() {
    if std::env::var_os(MEASURED).is_some() {
        return measure();
    }
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args([
            "--exact",
            "wire::hostile::hostile_messages_are_refused_by_name_within_bounded_memory_and_time",
        ])
        .arg("--nocapture")
        .env(MEASURED, "1")
        .output()
        .expect("run");
    let shown = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success(),
        "{shown}{}",
        String::from_utf8_lossy(&child.stderr)
    );
    assert!(shown.contains("measured a bomb"), "{shown}");
}

/// Beyond the message itself: 32 MiB of inflated JSON at most, and what lies between it and the envelope.
const MOST_MEMORY: usize = 64 << 20;

/// For a busy machine. The worst of them takes 0.5 s in a program without optimisation.
const MOST_TIME: Duration = Duration::from_secs(10);

fn measure() {
    for (name, data, label) in hostile() {
        let before = forget_peak();
        let start = Instant::now();
        assert_eq!(refusal(&data), label, "{name}");
        let took = start.elapsed();
        let grown = resident("VmHWM").saturating_sub(before);
        println!("measured {name}: {} MiB, {took:?}", grown >> 20);
        assert!(took < MOST_TIME, "{name} took {took:?}");
        assert!(grown < MOST_MEMORY, "{name} took {} MiB", grown >> 20);
    }
}

/// Lets the kernel forget the highest resident size; the present one. Where it cannot, the highest so far.
fn forget_peak() -> usize {
    match std::fs::write("/proc/self/clear_refs", "5") {
        Ok(()) => resident("VmRSS"),
        Err(_) => resident("VmHWM"),
    }
}

fn resident(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status
        .lines()
        .find(|line| line.starts_with(field))
        .expect("a field");
    let number = line.split_whitespace().nth(1).expect("a number");
    number.parse::<usize>().expect("kB") * 1024
}

#[test]
fn each_way_to_be_no_message_has_its_label() {
    let block = Block::default();
    let good = seal(&block, &key(), [2; 12]);
    assert_eq!(refusal(&good), "opened");
    let text = String::from_utf8(good.clone()).expect("text");
    let envelope = |message: &str| format!(r#"{{"Message":"{message}"}}"#).into_bytes();
    let mut compressed = gzip(b"{}");
    let cut = message_of(&compressed[..compressed.len() - 1]);
    let trailing = message_of(&[&*compressed, b"x"].concat());
    let last = compressed.len() - 5;
    compressed[last] ^= 1;
    for (name, data, label) in [
        ("nothing", Vec::new(), "envelope"),
        ("null", b"null".to_vec(), "envelope"),
        ("an array", b"[]".to_vec(), "envelope"),
        (
            "a number as sender",
            text.replace("\"\"", "5").into_bytes(),
            "envelope",
        ),
        (
            "annotations in an array",
            text.replace("null", "[]").into_bytes(),
            "envelope",
        ),
        ("two envelopes", [&*good, &*good].concat(), "envelope"),
        ("an empty envelope", b"{}".to_vec(), "short"),
        ("27 bytes", envelope(&"00".repeat(27)), "short"),
        ("28 bytes", envelope(&"00".repeat(28)), "sealed"),
        ("an odd number of digits", envelope("000"), "hex"),
        ("something else than digits", envelope("xx"), "hex"),
        ("no gzip", message_of(b"{}"), "gzip"),
        ("nothing compressed", message_of(b""), "gzip"),
        ("a cut trailer", cut, "gzip"),
        ("something behind the trailer", trailing, "gzip"),
        ("a wrong checksum", message_of(&compressed), "gzip"),
        ("no JSON", message("x"), "json"),
        (
            "an index beyond 64 bits",
            message(r#"{"Index":9223372036854775808}"#),
            "json",
        ),
        ("an invalid text", message("{\"Hash\":\"\\ud800\"}"), "json"),
    ] {
        assert_eq!(refusal(&data), label, "{name}");
    }
    // In capital letters, with a sender and annotations it is the same message.
    let shouted = text
        .replace("Message", "MESSAGE")
        .replace("null", r#"{"sigs":[1,{"a":null}]}"#)
        .replace("\"\"", "\"12D3\"")
        .to_ascii_uppercase()
        .replace("NULL", "null");
    assert_eq!(refusal(shouted.as_bytes()), "opened");
}

#[test]
fn labels_tell_the_reasons_apart() {
    let mut labels = [
        OpenError::Envelope,
        OpenError::Hex,
        OpenError::Short,
        OpenError::Key,
        OpenError::Gzip,
        OpenError::Bomb,
        BlockError::NotABlock.into(),
        BlockError::Depth.into(),
        BlockError::Entries.into(),
        BlockError::Key.into(),
        BlockError::Value.into(),
    ]
    .map(OpenError::label)
    .to_vec();
    let all = labels.len();
    labels.sort_unstable();
    labels.dedup();
    assert_eq!(labels.len(), all);
}

#[test]
fn numbers_at_the_end_of_their_range_are_kept() {
    for index in [i64::MIN, -1, 0, i64::MAX] {
        for version in [0, u64::MAX - 1, u64::MAX] {
            for updated in [i64::MIN, -1, i64::MAX] {
                let json = format!(
                    r#"{{"Index":{index},"Storage":{{"b":{{"k":{{"Owner":"o","Version":{version},"UpdatedAt":{updated}}}}}}}}}"#
                );
                let block = Block::from_json(json.as_bytes(), &Bounds::default()).expect("a block");
                let entry = &block.storage["b"]["k"];
                assert_eq!(
                    (block.index, entry.version, entry.updated_at),
                    (index, version, updated)
                );
                let again = Block::from_json(block.to_json().as_bytes(), &Bounds::default());
                assert_eq!(again, Ok(block));
            }
        }
    }
}

#[test]
fn a_message_of_another_network_window_or_purpose_stays_closed() {
    let token = |seed: u8| Token::generate(360, |bytes| bytes.fill(seed));
    let (ours, theirs) = (token(1), token(2));
    let window = ours.window(edgevpn::id::UnixTime::from_secs(1_785_931_200));
    let data = seal(&Block::default(), &ours.seal_key(window), [3; 12]);
    let opened = |keys: &[SealKey]| open(&data, keys, &Bounds::default()).map(|_| ());
    assert_eq!(opened(&[ours.seal_key(window)]), Ok(()));
    assert_eq!(
        opened(&[theirs.seal_key(window), ours.seal_key(window)]),
        Ok(())
    );
    assert_eq!(opened(&[theirs.seal_key(window)]), Err(OpenError::Key));
    assert_eq!(opened(&[ours.seal_key(window.next())]), Err(OpenError::Key));
    assert_eq!(opened(&[]), Err(OpenError::Key));

    let sealed = seal_bytes(b"frame", &key(), [4; 12], b"exchange");
    assert_eq!(
        open_bytes(&sealed, &[key()], b"exchange"),
        Ok(b"frame".to_vec())
    );
    assert_eq!(open_bytes(&sealed, &[key()], b""), Err(OpenError::Key));
}
