//! Keeps tokens out of what is shown of a file: what stands behind the key `token`, whatever becomes of the rest of its
//! line, and whatever looks like a token, under whatever key somebody wrote it.

use std::ops::Range;

use crate::config::secret::TOKEN_START;

/// Where secrets stand in a text, which may be no TOML at all.
pub fn secrets(text: &str) -> Vec<Range<usize>> {
    let named = text
        .match_indices("token")
        .filter_map(|(at, word)| value_of(text, at, at + word.len()));
    let alike = text.match_indices(TOKEN_START).map(|(at, _)| {
        let tail = text.get(at..).unwrap_or_default();
        let length = tail.bytes().take_while(|byte| is_base64(*byte)).count();
        at..at + length
    });
    named.chain(alike).collect()
}

/// A part of the text with stars for what is secret in it; every byte stays in its place.
pub fn masked(text: &str, part: Range<usize>, secrets: &[Range<usize>]) -> String {
    let shown = text.get(part.clone()).unwrap_or_default();
    let mut masked = String::with_capacity(shown.len());
    for (at, letter) in shown.char_indices() {
        let at = part.start + at;
        if secrets.iter().any(|secret| secret.contains(&at)) {
            masked.extend(std::iter::repeat_n('*', letter.len_utf8()));
        } else {
            masked.push(letter);
        }
    }
    masked
}

/// What the key between `start` and `end` is set to, if it is a key: up to its closing quote, or else to the end of the line.
fn value_of(text: &str, start: usize, end: usize) -> Option<Range<usize>> {
    let before = text.get(..start)?.bytes().next_back();
    if before.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-') {
        return None;
    }
    let tail = text.get(end..)?;
    let value = tail
        .trim_start_matches(['"', '\''])
        .trim_start_matches([' ', '\t'])
        .strip_prefix('=')?
        .trim_start_matches([' ', '\t']);
    let from = text.len().checked_sub(value.len())?;
    for quote in ["\"\"\"", "'''"] {
        if let Some(inside) = value.strip_prefix(quote) {
            let length = inside.find(quote).unwrap_or(inside.len());
            return Some(from + quote.len()..from + quote.len() + length);
        }
    }
    let line = value.split('\n').next().unwrap_or_default();
    for quote in ['"', '\''] {
        if let Some(inside) = line.strip_prefix(quote) {
            let length = inside.find(quote).unwrap_or(inside.len());
            return Some(from + 1..from + 1 + length);
        }
    }
    Some(from..from + line.len())
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+/=_-".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        masked(text, 0..text.len(), &secrets(text))
    }

    #[test]
    fn the_value_of_a_token_is_starred_however_it_is_written() {
        for (written, told) in [
            ("token = \"secret\"  # mine", "token = \"******\"  # mine"),
            ("network.token='secret'", "network.token='******'"),
            ("\"token\" = \"secret", "\"token\" = \"******"),
            ("token = secret # x", "token = **********"),
            ("{ token = \"süß\", a = 1 }", "{ token = \"*****\", a = 1 }"),
            (
                "token = \"\"\"a\nb\"\"\" # x",
                "token = \"\"\"***\"\"\" # x",
            ),
        ] {
            assert_eq!(shown(written), told);
        }
    }

    #[test]
    fn what_looks_like_a_token_is_starred_under_any_key() {
        assert_eq!(shown("tokn = \"b3RwOgogIGRo\""), "tokn = \"************\"");
    }

    #[test]
    fn other_keys_are_shown() {
        let text = "token_file = \"/etc/edgevpn/token\"\nmy-token = 1\n# the token\n";
        assert_eq!(shown(text), text);
    }
}
