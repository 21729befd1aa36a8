//! What the check says, and the edit it offers where only one thing can have been meant.

use std::ops::Range;

use serde_json::Value;
use toml::de::DeValue;

use super::{Checker, join};
use crate::config::{
    MOST_DIAGNOSTICS,
    diagnostic::{Code, Diagnostic, Help},
    literal::nearest,
    schema,
    shape::Shape,
    units,
};

impl Checker<'_> {
    /// What was meant, where only one thing can have been.
    pub(super) fn repair(
        &self,
        path: &str,
        value: &DeValue<'_>,
        span: Range<usize>,
        shape: &Shape<'_>,
    ) -> Option<Help> {
        let written = self.text.slice(span.clone());
        let help = |message: &str, text: String| Some(self.text.fix(message, span.clone(), text));
        match (shape, value) {
            (Shape::Literal(kind), DeValue::Integer(number)) => {
                let number = u64::from_str_radix(number.as_str(), number.radix()).ok()?;
                if number == 0 {
                    let unlimited = (kind.check)("unlimited").is_ok();
                    return unlimited.then(|| Help {
                        message: "0 could mean none or unlimited; for no bound write \"unlimited\""
                            .to_owned(),
                        patches: Vec::new(),
                    });
                }
                help(
                    "write the unit",
                    format!("{:?}", units::with_unit(kind.name, number)?),
                )
            }
            (Shape::Whole(_), DeValue::String(text)) => {
                let number: i64 = text.trim().parse().ok()?;
                help("write it without quotes", number.to_string())
            }
            (Shape::Whole(_), DeValue::Float(number)) => {
                let whole = number.as_str().strip_suffix(".0")?;
                help("write a whole number", whole.to_owned())
            }
            (Shape::Switch, DeValue::String(text)) => {
                let on = match text.to_ascii_lowercase().as_str() {
                    "true" | "yes" | "on" | "1" => true,
                    "false" | "no" | "off" | "0" => false,
                    _ => return None,
                };
                help("write it without quotes", on.to_string())
            }
            (Shape::Switch, DeValue::Integer(number)) => match number.as_str() {
                "0" => help("write instead", "false".to_owned()),
                "1" => help("write instead", "true".to_owned()),
                _ => None,
            },
            (Shape::List(_), DeValue::String(_)) => help("write a list", format!("[{written}]")),
            (Shape::Tables(_), DeValue::Table(_)) if written.starts_with('[') => {
                help("one table each, in double brackets", format!("[[{path}]]"))
            }
            (Shape::Table, DeValue::Array(_)) if written.starts_with("[[") => {
                help("a section is in single brackets", format!("[{path}]"))
            }
            _ => None,
        }
    }

    pub(super) fn unknown(&mut self, path: &str, name: &str, span: Range<usize>, schema: &Value) {
        if self.found.len() > MOST_DIAGNOSTICS {
            return;
        }
        let full = join(path, name);
        let known = || {
            let properties = schema.get("properties").and_then(Value::as_object);
            properties
                .into_iter()
                .flatten()
                .map(|(key, _)| key.as_str())
        };
        let mut diagnostic =
            Diagnostic::new(Code::UnknownKey, format!("unknown key `{full}`")).key(&full);
        if let Some(near) = nearest(name, known()) {
            diagnostic = diagnostic.at(self
                .text
                .label(span.clone(), format!("nearest known key: `{near}`")));
            diagnostic.help = Some(self.text.fix("write instead", span, near.to_owned()));
        } else {
            diagnostic = diagnostic.at(self.text.label(span, "not known"));
            let elsewhere = schema::paths_of(name);
            diagnostic = match elsewhere.as_slice() {
                [] => diagnostic.expected(format!("one of {}", listed(known()))),
                paths => diagnostic.help(format!(
                    "it exists as {}",
                    paths
                        .iter()
                        .map(|path| format!("`{path}`"))
                        .collect::<Vec<_>>()
                        .join(", ")
                )),
            };
        }
        self.push(diagnostic);
    }

    pub(super) fn missing(&mut self, path: &str, name: &str, span: Range<usize>, schema: &Value) {
        if !self.broken.is_empty() {
            return;
        }
        if path.is_empty() && name == "version" {
            let empty = self.text.as_str().trim().is_empty();
            let mut diagnostic = Diagnostic::new(
                Code::NoVersion,
                if empty {
                    "the file is empty"
                } else {
                    "`version` is missing"
                },
            )
            .key(name)
            .at(self.text.location(0..0))
            .note(
                "the version is mandatory, so that a truncated or empty file is never a valid one",
            );
            diagnostic.help = Some(self.text.fix(
                "begin the file with the version",
                0..0,
                "version = 1\n",
            ));
            self.push(diagnostic);
            return;
        }
        let below = join(path, name);
        let message = format!("`{name}` is missing");
        let of = schema::property(schema, name).unwrap_or(&Value::Null);
        let diagnostic = self
            .finding(Code::MissingKey, message, &below, span, "in this table", of)
            .help(format!("add `{name} = …` to the table"));
        self.push(diagnostic);
    }

    pub(super) fn unsupported_version(&mut self, span: Range<usize>) {
        let written = self.text.slice(span.clone()).to_owned();
        let mut diagnostic = Diagnostic::new(
            Code::UnsupportedVersion,
            format!("version {written} of the format is not supported"),
        )
        .key("version")
        .at(self
            .text
            .label(span.clone(), "this program reads version 1"));
        diagnostic.help = Some(self.text.fix("write instead", span, "1"));
        self.push(diagnostic);
    }

    pub(super) fn report(
        &mut self,
        code: Code,
        message: String,
        path: &str,
        span: Range<usize>,
        label: impl Into<String>,
        schema: &Value,
    ) {
        let diagnostic = self.finding(code, message, path, span, label, schema);
        self.push(diagnostic);
    }

    pub(super) fn finding(
        &self,
        code: Code,
        message: String,
        path: &str,
        span: Range<usize>,
        label: impl Into<String>,
        schema: &Value,
    ) -> Diagnostic {
        Diagnostic::new(code, message)
            .key(path)
            .at(self.text.label(span, label))
            .expected(Shape::of(schema).expected(schema))
    }

    pub(super) fn push(&mut self, diagnostic: Diagnostic) {
        let line = diagnostic
            .location
            .as_ref()
            .map_or(0, |location| location.line);
        if !self.broken.iter().any(|lines| lines.contains(&line)) {
            self.found.push(diagnostic);
        }
    }
}

fn listed<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words
        .map(|word| format!("`{word}`"))
        .collect::<Vec<_>>()
        .join(", ")
}
