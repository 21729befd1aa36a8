//! Strings with a grammar of their own. Each kind states once what it accepts, for people, for editors and for the
//! check: [`Literal`].

use std::{fmt, str::FromStr};

/// A value that the file writes as a string.
pub trait Literal: FromStr<Err = Fault> + fmt::Display {
    /// Its name in the schema (`x-edgevpn-kind`).
    const KIND: &'static str;
    /// With its article, for "… is not a duration".
    const NOUN: &'static str;
    /// What to write, as the end of "expected …".
    const EXPECTED: &'static str;
    /// Everything it accepts matches this (ECMA 262).
    const PATTERN: &'static str;

    /// For comparing with a range; `None` where there is nothing to compare.
    fn magnitude(&self) -> Option<u128> {
        None
    }
}

/// Why a string is not such a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// A few words for under the caret.
    pub label: String,
    /// What was probably meant.
    pub fix: Option<String>,
}

impl Fault {
    pub fn new(label: impl Into<String>) -> Self {
        Self {
            label: label.into(),
            fix: None,
        }
    }

    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

/// A kind of literal, for code that meets only its name.
#[derive(Clone, Copy)]
pub struct Kind {
    pub name: &'static str,
    pub noun: &'static str,
    pub expected: &'static str,
    /// The magnitude of a valid string.
    pub check: fn(&str) -> Result<Option<u128>, Fault>,
    /// The one way to write this value; `None` if it is not valid.
    pub canonical: fn(&str) -> Option<String>,
}

impl Kind {
    pub const fn of<T: Literal>() -> Self {
        Self {
            name: T::KIND,
            noun: T::NOUN,
            expected: T::EXPECTED,
            check: check::<T>,
            canonical: |text| text.parse::<T>().ok().map(|value| value.to_string()),
        }
    }
}

fn check<T: Literal>(text: &str) -> Result<Option<u128>, Fault> {
    text.parse::<T>().map(|value| value.magnitude())
}

/// The known word that was probably meant.
pub fn nearest<'a>(written: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    /// Below this two words have little in common; "max_data" and "max_duration" reach 0.86.
    const LIKENESS: f64 = 0.8;
    let lower = written.to_ascii_lowercase().replace('-', "_");
    known
        .map(|word| (strsim::jaro_winkler(&lower, word), word))
        .filter(|(likeness, _)| *likeness >= LIKENESS)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, word)| word)
}

/// Lets a literal appear in the file, in the schema and among the canonical values.
macro_rules! literal {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl schemars::JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                <$type as $crate::config::literal::Literal>::KIND.into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "type": "string",
                    "pattern": <$type as $crate::config::literal::Literal>::PATTERN,
                    "x-edgevpn-kind": <$type as $crate::config::literal::Literal>::KIND,
                })
            }
        }
    };
}
pub(crate) use literal;
