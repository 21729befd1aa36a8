//! What entries hold: small JSON documents, read and written as the reference reads and writes them.

use super::json::{Excess, Member, Skip, Text, put_text};
use crate::id::UnixTime;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use std::{cell::Cell, fmt, time::Duration};

/// A member's address in the overlay; bucket `machines`, key: the address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Base58.
    pub peer_id: String,
    pub hostname: String,
    /// As Go names it: `linux`, `darwin`, …
    pub os: String,
    /// As Go names it: `amd64`, `arm64`, …
    pub arch: String,
    /// The key once more: an address without prefix length.
    pub address: String,
    pub version: String,
}

const MACHINE: &[(&str, usize)] = &[
    ("PeerID", 0),
    ("Hostname", 1),
    ("OS", 2),
    ("Arch", 3),
    ("Address", 4),
    ("Version", 5),
];

impl Machine {
    pub fn read(text: &str) -> Option<Machine> {
        let [peer_id, hostname, os, arch, address, version] = read_texts(text, MACHINE)?;
        Some(Machine {
            peer_id,
            hostname,
            os,
            arch,
            address,
            version,
        })
    }

    pub fn to_text(&self) -> String {
        let texts = [
            &self.peer_id,
            &self.hostname,
            &self.os,
            &self.arch,
            &self.address,
            &self.version,
        ];
        write_texts(MACHINE, &texts)
    }
}

/// Somebody who may use services, files and egress; bucket `users`, key: the peer id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Base58.
    pub peer_id: String,
    /// A time in whatever form.
    pub timestamp: String,
}

const USER: &[(&str, usize)] = &[("PeerID", 0), ("Timestamp", 1)];

impl User {
    pub fn read(text: &str) -> Option<User> {
        let [peer_id, timestamp] = read_texts(text, USER)?;
        Some(User { peer_id, timestamp })
    }

    pub fn to_text(&self) -> String {
        write_texts(USER, &[&self.peer_id, &self.timestamp])
    }
}

/// Something offered under a name; buckets `services` and `files`, key: the name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Base58.
    pub peer_id: String,
    pub name: String,
}

const OFFER: &[(&str, usize)] = &[("PeerID", 0), ("Name", 1)];

impl Offer {
    pub fn read(text: &str) -> Option<Offer> {
        let [peer_id, name] = read_texts(text, OFFER)?;
        Some(Offer { peer_id, name })
    }

    pub fn to_text(&self) -> String {
        write_texts(OFFER, &[&self.peer_id, &self.name])
    }
}

/// A sign of life; bucket `healthcheck`, key: the peer id. Whole seconds.
pub fn heartbeat(now: UnixTime) -> String {
    let days = now.as_secs() / DAY;
    let second = now.as_secs() % DAY;
    let (year, month, day) = date(days);
    format!(
        "\"{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z\"",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// The time of a sign of life. `None` when it is none, or before 1970.
pub fn read_heartbeat(text: &str) -> Option<UnixTime> {
    let text: String = serde_json::from_str(text).ok()?;
    read_time(&text)
}

const DAY: u64 = 24 * 60 * 60;

/// RFC 3339 with the liberties Go takes: an hour of one digit, a comma before the fraction, offsets up to 24:60.
fn read_time(text: &str) -> Option<UnixTime> {
    let mut rest = Digits(text.as_bytes());
    let year = rest.number(4)?;
    rest.literal(b'-')?;
    let month = rest.number(2)?;
    rest.literal(b'-')?;
    let day = rest.number(2)?;
    rest.literal(b'T')?;
    let hour = rest.number(2).or_else(|| rest.number(1))?;
    rest.literal(b':')?;
    let minute = rest.number(2)?;
    rest.literal(b':')?;
    let second = rest.number(2)?;
    let nanoseconds = rest.fraction();
    let east = match rest.next()? {
        b'Z' => 0,
        sign @ (b'+' | b'-') => {
            let hours = rest.number(2)?;
            rest.literal(b':')?;
            let minutes = rest.number(2)?;
            if hours > 24 || minutes > 60 {
                return None;
            }
            let offset = i64::try_from(hours * 3600 + minutes * 60).ok()?;
            if sign == b'-' { -offset } else { offset }
        }
        _ => return None,
    };
    let valid = rest.0.is_empty()
        && (1..=12).contains(&month)
        && (1..=days_in(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !valid {
        return None;
    }
    let clock = i64::try_from(hour * 3600 + minute * 60 + second).ok()?;
    let seconds = days_since_1970(year, month, day)?
        .checked_mul(i64::try_from(DAY).ok()?)?
        .checked_add(clock)?
        .checked_sub(east)?;
    let seconds = u64::try_from(seconds).ok()?;
    Some(UnixTime(Duration::new(seconds, nanoseconds)))
}

/// The unread part of a time.
struct Digits<'a>(&'a [u8]);

impl Digits<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn literal(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    /// Exactly so many digits; nothing is taken otherwise.
    fn number(&mut self, digits: usize) -> Option<u64> {
        let (number, rest) = self.0.split_at_checked(digits)?;
        if !number.iter().all(u8::is_ascii_digit) {
            return None;
        }
        self.0 = rest;
        Some(
            number
                .iter()
                .fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')),
        )
    }

    /// Nanoseconds behind a point or comma; digits after the ninth are passed over. A point without digits stays.
    fn fraction(&mut self) -> u32 {
        let [b'.' | b',', digits @ ..] = self.0 else {
            return 0;
        };
        let length = digits
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        if length == 0 {
            return 0;
        }
        self.0 = digits.get(length..).unwrap_or_default();
        digits
            .iter()
            .take(length)
            .chain(std::iter::repeat(&b'0'))
            .take(9)
            .fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'))
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the Gregorian calendar; `year` below 10,000.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<i64> {
    // Days before the year, counted from the year 0.
    let before =
        |year: u64| year * 365 + year.div_ceil(4) - year.div_ceil(100) + year.div_ceil(400);
    let months: u64 = (1..month).map(|month| days_in(year, month)).sum();
    let days = i64::try_from(before(year) + months + day - 1).ok()?;
    days.checked_sub(i64::try_from(before(1970)).ok()?)
}

/// Year, month and day of a day since 1970-01-01.
fn date(days: u64) -> (u64, u64, u64) {
    // 400 years always have as many days; counted from 1600-01-01 so that every such span begins alike.
    const SPAN: u64 = 400 * 365 + 97;
    const FROM_1600: u64 = 370 * 365 + 90;
    let days = days.saturating_add(FROM_1600);
    let mut year = 1600 + days / SPAN * 400;
    let mut rest = days % SPAN;
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if rest < length {
            break;
        }
        rest -= length;
        year += 1;
    }
    let mut month = 1;
    while rest >= days_in(year, month) {
        rest -= days_in(year, month);
        month += 1;
    }
    (year, month, rest + 1)
}

/// Reads an object of texts; missing ones are empty, names match in any case, unknown members are passed over.
fn read_texts<const N: usize>(
    text: &str,
    names: &'static [(&'static str, usize)],
) -> Option<[String; N]> {
    let broken = Cell::new(None);
    let mut json = serde_json::Deserializer::from_str(text);
    let reader = Texts {
        names,
        broken: &broken,
    };
    let texts = reader.deserialize(&mut json).ok()?;
    json.end().ok()?;
    Some(texts)
}

struct Texts<'a, const N: usize> {
    names: &'static [(&'static str, usize)],
    broken: &'a Cell<Option<Excess>>,
}

impl<'de, const N: usize> DeserializeSeed<'de> for Texts<'_, N> {
    type Value = [String; N];

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, const N: usize> Visitor<'de> for Texts<'_, N> {
    type Value = [String; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of texts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut texts = std::array::from_fn(|_| String::new());
        while let Some(member) = members.next_key_seed(Member(self.names))? {
            let Some(place) = member.and_then(|at| texts.get_mut(at)) else {
                members.next_value_seed(Skip::new(self.broken))?;
                continue;
            };
            // Values have been measured with the block they came in.
            let text = members.next_value_seed(Text {
                limit: usize::MAX,
                excess: Excess::Value,
                broken: self.broken,
            })?;
            if let Some(text) = text {
                *place = text;
            }
        }
        Ok(texts)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(std::array::from_fn(|_| String::new()))
    }
}

fn write_texts(names: &[(&str, usize)], texts: &[&String]) -> String {
    let mut out = String::from("{");
    for ((name, _), text) in names.iter().zip(texts) {
        if out.len() > 1 {
            out.push(',');
        }
        put_text(&mut out, name);
        out.push(':');
        put_text(&mut out, text);
    }
    out.push('}');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_is_a_time_in_utc() {
        let t0 = UnixTime::from_secs(1_785_931_200);
        assert_eq!(heartbeat(t0), "\"2026-08-05T12:00:00Z\"");
        assert_eq!(heartbeat(UnixTime::default()), "\"1970-01-01T00:00:00Z\"");
        for seconds in (0..8_000_000_000).step_by(86_399 * 17) {
            let time = UnixTime::from_secs(seconds);
            assert_eq!(read_heartbeat(&heartbeat(time)), Some(time), "{seconds}");
        }
        // Nobody lives then, and nobody crashes now.
        heartbeat(UnixTime::from_secs(u64::MAX));
    }

    #[test]
    fn a_time_is_read_with_the_liberties_of_go() {
        let t0 = Some(UnixTime::from_secs(1_785_931_200));
        let half = Some(UnixTime(Duration::new(1_785_931_200, 500_000_000)));
        for (text, expected) in [
            ("2026-08-05T12:00:00Z", t0),
            ("2026-08-05T14:00:00+02:00", t0),
            ("2026-08-05T06:30:00-05:30", t0),
            ("2026-08-06T12:00:00+24:00", t0),
            ("2026-08-05T12:00:00.5Z", half),
            ("2026-08-05T12:00:00,5Z", half),
            ("2026-08-05T12:00:00.50000000099Z", half),
            ("2026-08-05t12:00:00Z", None),
            ("2026-08-05T12:00:00z", None),
            ("2026-08-05 12:00:00Z", None),
            ("2026-08-05T12:00:60Z", None),
            ("2026-08-05T24:00:00Z", None),
            ("2026-08-05T12:00:00.Z", None),
            ("2026-08-05T12:00:00+2:00", None),
            ("2026-08-05T12:00:00+25:00", None),
            ("2026-08-05T12:00:00", None),
            ("2026-08-05T12:00:00ZZ", None),
            ("2026-02-29T12:00:00Z", None),
            ("2026-8-05T12:00:00Z", None),
            ("1969-12-31T23:59:59Z", None),
            ("0000-01-01T00:00:00Z", None),
            ("", None),
        ] {
            assert_eq!(read_time(text), expected, "{text}");
        }
        assert_eq!(
            read_time("2026-08-05T9:00:00Z"),
            read_time("2026-08-05T09:00:00Z")
        );
        assert!(read_time("2024-02-29T00:00:00Z").is_some());
        assert!(read_time("9999-12-31T23:59:59-24:60").is_some());
    }

    #[test]
    fn values_are_read_in_any_case_and_written_in_one() {
        let text = r#"{"PeerID":"p","Hostname":"h\u003c","OS":"linux","Arch":"amd64","Address":"10.1.0.1","Version":"v"}"#;
        let machine = Machine::read(text).expect("a machine");
        assert_eq!(machine.hostname, "h<");
        assert_eq!(machine.to_text(), text);
        let shouted = Machine::read(r#"{"PEERID":"p","addreſſ":"10.1.0.1","x":[{}],"os":null}"#);
        assert_eq!(
            shouted,
            Some(Machine {
                peer_id: "p".into(),
                address: "10.1.0.1".into(),
                ..Machine::default()
            })
        );
        assert_eq!(Machine::read(r#"{"PeerID":"p","Hostname":5}"#), None);
        assert_eq!(Machine::read("[]"), None);
        assert_eq!(Machine::read(r#"{"PeerID":"p"} x"#), None);
    }
}
