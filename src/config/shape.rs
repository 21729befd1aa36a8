//! What the schema says about one value, as the check uses it and as a diagnostic puts it into words.

use serde_json::Value;
use toml::de::DeValue;

use super::{literal::Kind, names, schema, units};
use crate::relay::Limit;

/// Every kind of string with a grammar of its own. One that is missing here is checked as plain text; a test of the
/// schema says so.
pub const KINDS: &[Kind] = &[
    Kind::of::<units::Size>(),
    Kind::of::<units::Span>(),
    Kind::of::<units::SpanOrOff>(),
    Kind::of::<Limit<units::Size>>(),
    Kind::of::<Limit<units::Span>>(),
    Kind::of::<Limit<units::Bandwidth>>(),
    Kind::of::<Limit<units::PerSpan>>(),
    Kind::of::<names::PeerName>(),
    Kind::of::<names::PeerOrNetwork>(),
    Kind::of::<names::ListenAddress>(),
    Kind::of::<names::PublicAddress>(),
    Kind::of::<names::PeerAddress>(),
    Kind::of::<names::PeerWithAddress>(),
    Kind::of::<names::PathName>(),
    Kind::of::<names::CredentialName>(),
    Kind::of::<names::VariableName>(),
    Kind::of::<names::TokenText>(),
    Kind::of::<names::MaybeAddress>(),
    Kind::of::<names::MaybeSocket>(),
    Kind::of::<names::ApiAddress>(),
    Kind::of::<names::Directives>(),
    Kind::of::<names::InterfaceAddress>(),
    Kind::of::<names::Prefix>(),
    Kind::of::<names::HostAddress>(),
    Kind::of::<names::InterfaceName>(),
];

/// The form of a value.
pub enum Shape<'a> {
    Table,
    /// An array of tables, with the schema of one.
    Tables(&'a Value),
    /// An array of values, with the schema of one.
    List(&'a Value),
    Whole(Whole),
    Switch,
    Choice(Vec<Choice<'a>>),
    Literal(&'static Kind),
    /// Any string of so many characters.
    Text {
        shortest: usize,
        longest: usize,
    },
}

/// Whole numbers from one to another, both included.
#[derive(Clone, Copy, Debug)]
pub struct Whole {
    pub least: i64,
    pub most: i64,
}

/// One of the words a key can have, and what it means.
pub struct Choice<'a> {
    pub word: &'a str,
    pub meaning: &'a str,
}

impl Whole {
    pub fn contains(self, number: i64) -> bool {
        (self.least..=self.most).contains(&number)
    }
}

impl<'a> Shape<'a> {
    pub fn of(node: &'a Value) -> Shape<'a> {
        let text = |name: &str| node.get(name).and_then(Value::as_str);
        let number = |name: &str| node.get(name).and_then(Value::as_i64);
        let length = |name: &str| {
            node.get(name)
                .and_then(Value::as_u64)
                .and_then(|n| usize::try_from(n).ok())
        };
        match text("type") {
            Some("object") => Shape::Table,
            Some("array") => match (schema::element(node), node.get("items")) {
                (Some(table), _) => Shape::Tables(table),
                (None, Some(element)) => Shape::List(element),
                (None, None) => Shape::List(&Value::Null),
            },
            Some("integer") => Shape::Whole(Whole {
                least: number("minimum").unwrap_or(0),
                most: number("maximum").unwrap_or(i64::MAX),
            }),
            Some("boolean") => Shape::Switch,
            _ => match node.get("oneOf").and_then(Value::as_array) {
                Some(choices) => Shape::Choice(choices.iter().filter_map(Choice::of).collect()),
                None => match text("x-edgevpn-kind").and_then(kind) {
                    Some(kind) => Shape::Literal(kind),
                    None => Shape::Text {
                        shortest: length("minLength").unwrap_or(0),
                        longest: length("maxLength").unwrap_or(usize::MAX),
                    },
                },
            },
        }
    }

    /// For "… is not a duration".
    pub fn noun(&self) -> &'static str {
        match self {
            Shape::Table => "a table",
            Shape::Tables(_) => "an array of tables",
            Shape::List(_) => "a list",
            Shape::Whole(_) => "a whole number",
            Shape::Switch => "true or false",
            Shape::Choice(_) | Shape::Text { .. } => "a string",
            Shape::Literal(kind) => kind.noun,
        }
    }

    /// What may be written, with range and default, to follow "expected: ".
    pub fn expected(&self, node: &Value) -> String {
        let text = self.form(node);
        match node.get("default") {
            Some(Value::Array(_)) | None => text,
            Some(default) => format!("{text} (default {default})"),
        }
    }

    /// What may be written, with its range.
    pub fn form(&self, node: &Value) -> String {
        match self {
            Shape::Table => "a table of keys".to_owned(),
            Shape::Tables(_) => "tables in double brackets".to_owned(),
            Shape::List(element) => {
                format!(
                    "a list{}; each is {}",
                    count(node),
                    Shape::of(element).expected(element)
                )
            }
            Shape::Whole(Whole { least, most }) if least == most => least.to_string(),
            Shape::Whole(Whole { least, most }) => {
                format!(
                    "a whole number from {} to {}",
                    grouped(*least),
                    grouped(*most)
                )
            }
            Shape::Switch => "true or false".to_owned(),
            Shape::Choice(choices) => choices
                .iter()
                .map(|choice| format!("\"{}\"", choice.word))
                .collect::<Vec<_>>()
                .join(" or "),
            Shape::Literal(kind) => format!("{}{}", kind.expected, range(node)),
            Shape::Text {
                shortest: 0,
                longest,
            } => format!(
                "a string of at most {} characters",
                grouped(*longest as i64)
            ),
            Shape::Text { shortest, longest } => format!(
                "a string of {shortest} to {} characters",
                grouped(*longest as i64)
            ),
        }
    }
}

impl<'a> Choice<'a> {
    fn of(node: &'a Value) -> Option<Choice<'a>> {
        let word = node.get("const")?.as_str()?;
        let meaning = node
            .get("description")
            .and_then(Value::as_str)
            .unwrap_or_default();
        Some(Choice { word, meaning })
    }
}

fn kind(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}

fn range(node: &Value) -> String {
    let bound = |name: &str| node.get(name).and_then(Value::as_str);
    match (bound("x-edgevpn-minimum"), bound("x-edgevpn-maximum")) {
        (Some(least), Some(most)) => format!(", from {least} to {most}"),
        (Some(least), None) => format!(", at least {least}"),
        (None, Some(most)) => format!(", at most {most}"),
        (None, None) => String::new(),
    }
}

fn count(node: &Value) -> String {
    let bound = |name: &str| node.get(name).and_then(Value::as_i64);
    match (bound("minItems"), bound("maxItems")) {
        (Some(least), Some(most)) => format!(" of {least} to {} entries", grouped(most)),
        (None, Some(most)) => format!(" of at most {} entries", grouped(most)),
        (Some(least), None) => format!(" of at least {least} entries"),
        (None, None) => String::new(),
    }
}

/// What stands there instead, for under the caret.
pub fn found(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or a time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// `1,000,000`.
pub fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::from(if number < 0 { "-" } else { "" });
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
