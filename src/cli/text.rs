//! How numbers, times and names read on a terminal: with units, and aloud.

/// Columns of a terminal that output is laid out for.
pub(super) const WIDTH: usize = 100;

/// Columns of the label that begins a row.
const LABEL: usize = 10;

/// Marks words with colour, or leaves them alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paint(bool);

impl Paint {
    pub(super) fn new(colour: bool) -> Self {
        Self(colour)
    }

    pub(super) fn colour(self) -> bool {
        self.0
    }

    pub(super) fn good(self, text: &str) -> String {
        self.sgr("32", text)
    }

    pub(super) fn warn(self, text: &str) -> String {
        self.sgr("33", text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.sgr("1;31", text)
    }

    fn sgr(self, code: &str, text: &str) -> String {
        if self.0 {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// `1 circuit`, `1,204 circuits`.
pub(super) fn count(number: u64, one: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        number => match one.strip_suffix('y') {
            Some(stem) if !stem.ends_with(['a', 'e', 'o']) => {
                format!("{} {stem}ies", grouped(number))
            }
            _ => format!("{} {one}s", grouped(number)),
        },
    }
}

/// `1,204`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `512 B`, `18.2 MB`: powers of 1000, three digits or so.
pub(super) fn bytes(number: u64) -> String {
    let mut value = number as f64;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        if value < 999.5 {
            return match unit {
                "B" => format!("{number} B"),
                _ if value < 99.95 => format!("{value:.1} {unit}"),
                _ => format!("{value:.0} {unit}"),
            };
        }
        value /= 1000.0;
    }
    format!("{value:.1} PB")
}

/// `12 s`, `2 min`, `3 h 4 min`, `5 d 6 h`: the two largest units.
pub(super) fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let two = |large: u64, large_unit, small: u64, small_unit| match small {
        0 => format!("{large} {large_unit}"),
        small => format!("{large} {large_unit} {small} {small_unit}"),
    };
    if days > 0 {
        two(days, "d", hours % 24, "h")
    } else if hours > 0 {
        two(hours, "h", minutes % 60, "min")
    } else if minutes > 0 {
        format!("{minutes} min")
    } else {
        format!("{seconds} s")
    }
}

/// `11 ms`, `0.8 ms`, `2.4 s`.
pub(super) fn took(milliseconds: f64) -> String {
    if milliseconds < 9.95 {
        format!("{milliseconds:.1} ms")
    } else if milliseconds < 999.5 {
        format!("{milliseconds:.0} ms")
    } else {
        format!("{:.1} s", milliseconds / 1000.0)
    }
}

/// The start of a hash, as much as tells it from its neighbours.
pub(super) fn short_hash(hash: &str) -> &str {
    hash.get(..6).unwrap_or(hash)
}

/// The start of a peer id: `12D3KooWJ1Ts…`. All Ed25519 ids begin with the same eight characters.
pub(super) fn short_peer(peer: &str) -> String {
    match peer.char_indices().nth(12) {
        Some((end, _)) => format!("{}…", peer.get(..end).unwrap_or(peer)),
        None => peer.to_owned(),
    }
}

/// A label and items, two spaces apart, wrapped below each other. No line passes [`WIDTH`] unless one item does.
pub(super) fn row(label: &str, items: &[String]) -> String {
    format!("{label:<LABEL$}{}\n", wrapped(LABEL, items))
}

/// The items of a row whose text begins in `column`.
pub(super) fn wrapped(column: usize, items: &[String]) -> String {
    let mut text = String::new();
    let mut reached = column;
    for (index, item) in items.iter().enumerate() {
        let length = item.chars().count();
        if index > 0 && reached + 2 + length > WIDTH {
            text.push('\n');
            text.push_str(&" ".repeat(column));
            reached = column;
        } else if index > 0 {
            text.push_str("  ");
            reached += 2;
        }
        text.push_str(item);
        reached += length;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_with_their_units() {
        assert_eq!(count(1, "circuit"), "1 circuit");
        assert_eq!(count(1204, "circuit"), "1,204 circuits");
        assert_eq!(count(0, "entry"), "0 entries");
        assert_eq!(count(2, "relay"), "2 relays");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000_000), "1,000,000");
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1000), "1.0 kB");
        assert_eq!(bytes(18_243_000), "18.2 MB");
        assert_eq!(bytes(410_000_000), "410 MB");
        assert_eq!(bytes(999_600), "1.0 MB");
        assert_eq!(bytes(u64::MAX), "18446.7 PB");
        assert_eq!(span(0), "0 s");
        assert_eq!(span(59), "59 s");
        assert_eq!(span(130), "2 min");
        assert_eq!(span(3600), "1 h");
        assert_eq!(span(3 * 86400 + 4 * 3600 + 5), "3 d 4 h");
        assert_eq!(took(0.84), "0.8 ms");
        assert_eq!(took(11.2), "11 ms");
        assert_eq!(took(2400.0), "2.4 s");
    }

    #[test]
    fn names_are_cut_only_when_they_are_longer() {
        assert_eq!(short_peer("12D3KooWJ1TsABCDEF"), "12D3KooWJ1Ts…");
        assert_eq!(short_peer("é"), "é");
        assert_eq!(short_hash("4f1c9e0a"), "4f1c9e");
        assert_eq!(short_hash(""), "");
    }

    #[test]
    fn a_row_wraps_before_the_width_is_passed() {
        let address = |index| format!("/ip4/192.0.2.{index}/udp/4501/quic-v1");
        let text = row("listening", &(0..5).map(address).collect::<Vec<_>>());
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
        assert_eq!(text.lines().count(), 3);
        let mut rest = text.lines().skip(1);
        assert!(
            rest.all(|line| line.starts_with("          /ip4")),
            "{text}"
        );
    }
}
