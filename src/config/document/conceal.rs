//! Keeps tokens out of what is shown of a file: what stands behind the key `token`, whatever becomes of the rest of its
//! line, and whatever looks like a token, under whatever key somebody wrote it.

use std::ops::Range;

use crate::{config::secret::TOKEN_START, wire::Token};

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

/// The text of a file with its tokens replaced by a name for the own one, to be kept where secrets do not belong. `None`: there
/// is none in it.
pub fn without_secrets(text: &str, fingerprint: &str) -> Option<String> {
    let secrets = in_order(secrets(text));
    if secrets.is_empty() {
        return None;
    }
    let mut kept = String::with_capacity(text.len());
    let mut from = 0;
    for secret in secrets {
        kept.push_str(text.get(from..secret.start)?);
        kept.push_str(STANDS_FOR);
        kept.push_str(fingerprint);
        from = secret.end;
    }
    kept.push_str(text.get(from..)?);
    Some(kept)
}

/// A text that [`without_secrets`] made, with its token back in place, if another file has that one. `None`: no token was
/// left out, or the other file has none or another one.
pub fn with_token_of(kept: &str, other: &str) -> Option<String> {
    let (before, after) = kept.split_once(STANDS_FOR)?;
    let end = after.bytes().take_while(u8::is_ascii_hexdigit).count();
    let (fingerprint, after) = after.split_at_checked(end)?;
    let is_it = |token: &&str| {
        let plain = token.bytes().all(is_base64);
        plain
            && Token::parse(token.as_bytes())
                .is_ok_and(|token| token.fingerprint().to_string() == fingerprint)
    };
    let mut tokens = secrets(other).into_iter().filter_map(|at| other.get(at));
    let token = tokens.find(is_it)?;
    Some(format!("{before}{token}{after}"))
}

/// Before the fingerprint of a token that was left out.
const STANDS_FOR: &str = "fingerprint:";

/// What overlaps, as one; from the start of the text on.
fn in_order(mut secrets: Vec<Range<usize>>) -> Vec<Range<usize>> {
    secrets.retain(|secret| !secret.is_empty());
    secrets.sort_by_key(|secret| secret.start);
    let mut apart: Vec<Range<usize>> = Vec::new();
    for secret in secrets {
        match apart.last_mut() {
            Some(last) if secret.start <= last.end => last.end = last.end.max(secret.end),
            Some(_) | None => apart.push(secret),
        }
    }
    apart
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
    fn a_file_is_kept_without_its_token_and_gets_it_back_from_another() {
        let random = |bytes: &mut [u8]| bytes.fill(7);
        let token = Token::generate(360, random);
        let (text, name) = (token.to_base64(), token.fingerprint());
        let whole = format!("[network]\ntoken = \"{text}\" # ours\nx = 1\n");
        let kept = without_secrets(&whole, &name.to_string()).expect("a token");
        let named = format!("[network]\ntoken = \"fingerprint:{name}\" # ours\nx = 1\n");
        assert_eq!(kept, named);
        let broken = format!("[network\ntoken = \"{text}\"\n");
        assert_eq!(with_token_of(&kept, &broken), Some(whole));
        assert_eq!(with_token_of(&kept, "version = 1"), None);
        let other = Token::generate(60, random).to_base64();
        assert_eq!(with_token_of(&kept, &broken.replace(&text, &other)), None);
        assert_eq!(without_secrets("version = 1", "1a2b3c4d"), None);
    }

    #[test]
    fn other_keys_are_shown() {
        let text = "token_file = \"/etc/edgevpn/token\"\nmy-token = 1\n# the token\n";
        assert_eq!(shown(text), text);
    }
}
