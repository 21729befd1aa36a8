//! JSON as the reference reads and writes it: member names in any case, unknown members passed over, the last of equal
//! members counts, `null` leaves a value as it was; text escaped as Go's encoder does it. Every reader has its bound.

use serde::de::{
    DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor,
};
use std::{cell::Cell, fmt};

/// Which bound a document broke; the readers note it here, as an error of serde can only carry text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    Depth,
    Entries,
    Key,
    Value,
}

/// Levels of arrays and objects in members nobody knows. The deepest known one, a signature written as an array, is at 5.
const MAX_DEPTH: usize = 32;

/// A member of an object by its name, in any case. Unknown names give `None`.
pub struct Member<T: 'static>(pub &'static [(&'static str, T)]);

impl<'de, T: Copy> DeserializeSeed<'de> for Member<T> {
    type Value = Option<T>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<T: Copy> Visitor<'_> for Member<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self
            .0
            .iter()
            .find(|(known, _)| same_name(known, name))
            .map(|(_, member)| *member))
    }
}

/// Equal but for the case of letters. Two letters beyond ASCII fold into it, and Go folds them: ſ and the Kelvin sign.
fn same_name(known: &str, name: &str) -> bool {
    // A letter takes at most three bytes.
    if name.len() > 3 * known.len() {
        return false;
    }
    let folded = name.chars().map(|c| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    });
    known.chars().map(|c| c.to_ascii_lowercase()).eq(folded)
}

/// A text of at most `limit` bytes; `None` for `null`.
pub struct Text<'a> {
    pub limit: usize,
    pub excess: Excess,
    pub broken: &'a Cell<Option<Excess>>,
}

impl<'de> DeserializeSeed<'de> for Text<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Text<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        if text.len() > self.limit {
            return Err(self.broken.note(self.excess));
        }
        Ok(Some(text.to_owned()))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// Any value, thrown away; not deeper than [`MAX_DEPTH`].
pub struct Skip<'a> {
    depth: usize,
    broken: &'a Cell<Option<Excess>>,
}

impl<'a> Skip<'a> {
    pub fn new(broken: &'a Cell<Option<Excess>>) -> Self {
        Self { depth: 0, broken }
    }

    fn deeper<E: Error>(&self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(self.broken.note(Excess::Depth));
        }
        Ok(Self {
            depth: self.depth + 1,
            broken: self.broken,
        })
    }
}

impl<'de> DeserializeSeed<'de> for Skip<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Skip<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(self.deeper()?)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while members.next_key::<IgnoredAny>()?.is_some() {
            members.next_value_seed(self.deeper()?)?;
        }
        Ok(())
    }
}

/// Bytes: base64 with padding (line breaks inside are passed over), an array of numbers, or `null` for none.
pub struct Bytes<'a> {
    pub limit: usize,
    pub broken: &'a Cell<Option<Excess>>,
}

impl<'de> DeserializeSeed<'de> for Bytes<'_> {
    type Value = Vec<u8>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<u8>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bytes<'_> {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes in base64")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Vec<u8>, E> {
        let broken = text.bytes().filter(|byte| is_line_break(*byte)).count();
        if (text.len() - broken) / 4 * 3 > self.limit.saturating_add(2) {
            return Err(self.broken.note(Excess::Value));
        }
        let unbroken: Vec<u8> = text.bytes().filter(|byte| !is_line_break(*byte)).collect();
        decode_base64(&unbroken).ok_or_else(|| E::invalid_value(Unexpected::Other("text"), &self))
    }

    fn visit_unit<E: Error>(self) -> Result<Vec<u8>, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<u8>, A::Error> {
        let mut bytes = Vec::new();
        while let Some(byte) = items.next_element::<Option<u8>>()? {
            if bytes.len() == self.limit {
                return Err(self.broken.note(Excess::Value));
            }
            bytes.push(byte.unwrap_or_default());
        }
        Ok(bytes)
    }
}

fn is_line_break(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    use base64::{
        Engine,
        alphabet::STANDARD,
        engine::{GeneralPurpose, GeneralPurposeConfig},
    };
    // Bits after the last whole byte are passed over, as in Go.
    const ENGINE: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
    );
    ENGINE.decode(text).ok()
}

/// Remembers which bound was broken and makes the error that stops the reader.
pub trait Note {
    fn note<E: Error>(&self, excess: Excess) -> E;
}

impl Note for Cell<Option<Excess>> {
    fn note<E: Error>(&self, excess: Excess) -> E {
        self.set(Some(excess));
        E::custom("out of bounds")
    }
}

/// Appends a text as a JSON string, escaped as Go does: also `<`, `>`, `&` and the two line separators of Unicode.
pub fn put_text(out: &mut String, text: &str) {
    out.push('"');
    let mut plain = 0;
    for (at, c) in text.char_indices() {
        let short = match c {
            '"' => "\\\"",
            '\\' => "\\\\",
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            '\u{8}' => "\\b",
            '\u{c}' => "\\f",
            '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => "",
            _ => continue,
        };
        out.push_str(text.get(plain..at).unwrap_or_default());
        if short.is_empty() {
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            out.push_str(short);
        }
        plain = at + c.len_utf8();
    }
    out.push_str(text.get(plain..).unwrap_or_default());
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `json.Marshal` of Go 1.26 writes it.
    #[test]
    fn texts_are_escaped_as_go_escapes_them() {
        let mut out = String::new();
        put_text(
            &mut out,
            "<>&\u{2028}\u{2029}\u{8}\u{c}\0\u{1f}\u{7f}\t\n\r\"\\/é😀",
        );
        assert_eq!(
            out,
            "\"\\u003c\\u003e\\u0026\\u2028\\u2029\\b\\f\\u0000\\u001f\u{7f}\\t\\n\\r\\\"\\\\/é😀\""
        );
    }

    #[test]
    fn names_match_in_any_case_and_nothing_else_does() {
        for name in ["PeerID", "peerid", "PEERID"] {
            assert!(same_name("PeerID", name), "{name}");
        }
        assert!(same_name("Storage", "\u{17f}torage"));
        assert!(same_name("k", "\u{212a}"));
        for name in ["", "Peer", "PeerIDs", "PeerÍD", "P\u{131}erID"] {
            assert!(!same_name("PeerID", name), "{name}");
        }
        assert!(!same_name("PeerID", &"PeerID".repeat(1000)));
    }
}
