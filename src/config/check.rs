//! The tree against the schema: unknown and missing keys, types, ranges, choices. Finds everything at once, and leaves
//! a tree in which every value has its type.

use std::{
    collections::HashMap,
    ops::{Range, RangeInclusive},
};

use serde_json::{Map, Value};
use toml::de::{DeArray, DeTable, DeValue};

use super::{
    diagnostic::{Code, Diagnostic},
    document::Text,
    literal::{Fault, Kind, nearest},
    schema,
    shape::{Choice, Shape, Whole, found, grouped},
    units,
};

mod finding;

/// Where a key and its value stand.
#[derive(Clone, Debug)]
pub struct Spot {
    pub key: Range<usize>,
    pub value: Range<usize>,
}

/// Key paths to places. Elements of an array are `listen[0]`, tables of one are `peer[0].id`.
#[derive(Clone, Debug, Default)]
pub struct Index(HashMap<String, Spot>);

impl Index {
    pub fn spot(&self, path: &str) -> Option<&Spot> {
        self.0.get(path)
    }

    pub fn is_set(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }
}

/// What the file says, as far as it has the right types.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    pub values: Map<String, Value>,
    pub index: Index,
    pub diagnostics: Vec<Diagnostic>,
}

/// Checks a whole file. With `broken` the text did not parse: then what is missing is not reported, and neither is
/// anything on the given lines.
pub fn check(text: &Text, root: &DeTable<'_>, broken: &[RangeInclusive<u32>]) -> Tree {
    let mut checker = Checker {
        text,
        index: Index::default(),
        found: Vec::new(),
        broken,
    };
    let values = checker.table("", root, 0..0, schema::root());
    Tree {
        values,
        index: checker.index,
        diagnostics: checker.found,
    }
}

struct Checker<'a> {
    text: &'a Text,
    index: Index,
    found: Vec<Diagnostic>,
    broken: &'a [RangeInclusive<u32>],
}

impl Checker<'_> {
    fn table(
        &mut self,
        path: &str,
        table: &DeTable<'_>,
        span: Range<usize>,
        schema: &Value,
    ) -> Map<String, Value> {
        let mut values = Map::new();
        for (key, value) in table.iter() {
            let name = key.get_ref().as_ref();
            let below = join(path, name);
            match schema::property(schema, name) {
                Some(schema) => {
                    let spot = Spot {
                        key: key.span(),
                        value: value.span(),
                    };
                    self.index.0.insert(below.clone(), spot);
                    if let Some(value) = self.value(&below, value.get_ref(), value.span(), schema) {
                        values.insert(name.to_owned(), value);
                    }
                }
                None => self.unknown(path, name, key.span(), schema),
            }
        }
        let required = schema.get("required").and_then(Value::as_array);
        for name in required.into_iter().flatten().filter_map(Value::as_str) {
            if !table.contains_key(name) {
                self.missing(path, name, span.clone(), schema);
            }
        }
        values
    }

    fn value(
        &mut self,
        path: &str,
        value: &DeValue<'_>,
        span: Range<usize>,
        schema: &Value,
    ) -> Option<Value> {
        if self.found.len() > super::MOST_DIAGNOSTICS {
            return None;
        }
        let shape = Shape::of(schema);
        match (&shape, value) {
            (Shape::Table, DeValue::Table(table)) => {
                Some(Value::Object(self.table(path, table, span, schema)))
            }
            (Shape::List(_) | Shape::Tables(_), DeValue::Array(array)) => {
                self.array(path, array, span, schema, &shape)
            }
            (Shape::Whole(range), DeValue::Integer(number)) => {
                let parsed = i64::from_str_radix(number.as_str(), number.radix());
                self.whole(
                    path,
                    parsed.ok(),
                    number.as_str() == "0",
                    *range,
                    span,
                    schema,
                )
            }
            (Shape::Switch, DeValue::Boolean(on)) => Some(Value::Bool(*on)),
            (Shape::Choice(choices), DeValue::String(text)) => {
                self.choice(path, text, choices, span, schema)
            }
            (Shape::Literal(kind), DeValue::String(text)) => {
                self.literal(path, text, kind, span, schema)
            }
            (Shape::Text { shortest, longest }, DeValue::String(text)) => {
                let length = text.chars().count();
                if length < *shortest || length > *longest || text.contains('\0') {
                    let label = if text.is_empty() {
                        "empty".to_owned()
                    } else if text.contains('\0') {
                        "a NUL byte".to_owned()
                    } else {
                        format!("{length} characters")
                    };
                    let message = format!("`{path}` is not usable");
                    self.report(Code::OutOfRange, message, path, span, label, schema);
                    return None;
                }
                Some(Value::String(text.to_string()))
            }
            _ => {
                self.mismatch(path, value, span, &shape, schema);
                None
            }
        }
    }

    fn array(
        &mut self,
        path: &str,
        array: &DeArray<'_>,
        span: Range<usize>,
        schema: &Value,
        shape: &Shape<'_>,
    ) -> Option<Value> {
        let bound = |name: &str| schema.get(name).and_then(Value::as_u64);
        let count = array.len() as u64;
        let few = bound("minItems").is_some_and(|least| count < least);
        let many = bound("maxItems").is_some_and(|most| count > most);
        if few || many {
            let label = if count == 0 {
                "empty".to_owned()
            } else {
                format!("{count} entries")
            };
            let what = if few {
                "needs an entry"
            } else {
                "has too many entries"
            };
            self.report(
                Code::OutOfRange,
                format!("`{path}` {what}"),
                path,
                span.clone(),
                label,
                schema,
            );
            if many {
                return None;
            }
        }
        let mut seen: HashMap<String, Range<usize>> = HashMap::new();
        let unique = schema.get("uniqueItems").and_then(Value::as_bool) == Some(true);
        let element = match shape {
            Shape::List(element) | Shape::Tables(element) => *element,
            _ => return None,
        };
        let mut values = Vec::with_capacity(array.len());
        let mut complete = true;
        for (at, item) in array.iter().enumerate() {
            let below = format!("{path}[{at}]");
            let spot = Spot {
                key: item.span(),
                value: item.span(),
            };
            self.index.0.insert(below.clone(), spot);
            let Some(value) = self.value(&below, item.get_ref(), item.span(), element) else {
                complete = false;
                continue;
            };
            if unique && let Some(text) = value.as_str() {
                if let Some(first) = seen.get(text) {
                    let diagnostic = Diagnostic::new(
                        Code::DuplicateName,
                        format!("{text:?} is in `{path}` twice"),
                    )
                    .key(path)
                    .at(self.text.label(item.span(), "again"))
                    .related(self.text.label(first.clone(), "first here"))
                    .help("remove one of the two");
                    self.push(diagnostic);
                    complete = false;
                } else {
                    seen.insert(text.to_owned(), item.span());
                }
            }
            values.push(value);
        }
        complete.then_some(Value::Array(values))
    }

    fn whole(
        &mut self,
        path: &str,
        number: Option<i64>,
        zero: bool,
        range: Whole,
        span: Range<usize>,
        schema: &Value,
    ) -> Option<Value> {
        if let Some(number) = number.filter(|number| range.contains(*number)) {
            return Some(Value::from(number));
        }
        if path == "version" {
            self.unsupported_version(span);
            return None;
        }
        let label = if zero {
            "0 could mean none or unlimited".to_owned()
        } else if number.is_some_and(|number| number < range.least) {
            format!("below {}", grouped(range.least))
        } else {
            format!("above {}", grouped(range.most))
        };
        self.report(
            Code::OutOfRange,
            format!("`{path}` is out of range"),
            path,
            span,
            label,
            schema,
        );
        None
    }

    fn choice(
        &mut self,
        path: &str,
        text: &str,
        choices: &[Choice<'_>],
        span: Range<usize>,
        schema: &Value,
    ) -> Option<Value> {
        if choices.iter().any(|choice| choice.word == text) {
            return Some(Value::String(text.to_owned()));
        }
        let message = format!("`{path}` cannot be {text:?}");
        let nearest = nearest(text, choices.iter().map(|choice| choice.word));
        let mut diagnostic =
            self.finding(Code::UnknownValue, message, path, span.clone(), "", schema);
        for Choice { word, meaning } in choices.iter().filter(|choice| !choice.meaning.is_empty()) {
            diagnostic = diagnostic.note(format!("\"{word}\": {meaning}"));
        }
        if let Some(nearest) = nearest {
            diagnostic.help = Some(self.text.fix(
                "the nearest choice",
                span,
                format!("{nearest:?}"),
            ));
        }
        self.push(diagnostic);
        None
    }

    fn literal(
        &mut self,
        path: &str,
        text: &str,
        kind: &'static Kind,
        span: Range<usize>,
        schema: &Value,
    ) -> Option<Value> {
        match (kind.check)(text) {
            Ok(magnitude) => {
                let Some(label) = beyond(magnitude, kind, schema) else {
                    return Some(Value::String(text.to_owned()));
                };
                let message = format!("`{path}` is out of range");
                self.report(Code::OutOfRange, message, path, span, label, schema);
            }
            Err(Fault { label, fix }) => {
                let message = format!("`{path}` is not {}", kind.noun);
                let mut diagnostic =
                    self.finding(Code::WrongType, message, path, span.clone(), label, schema);
                let valid = |fix: &String| {
                    (kind.check)(fix).is_ok_and(|size| beyond(size, kind, schema).is_none())
                };
                if let Some(fix) = fix.filter(valid) {
                    diagnostic.help =
                        Some(self.text.fix("write instead", span, format!("{fix:?}")));
                }
                self.push(diagnostic);
            }
        }
        None
    }

    fn mismatch(
        &mut self,
        path: &str,
        value: &DeValue<'_>,
        span: Range<usize>,
        shape: &Shape<'_>,
        schema: &Value,
    ) {
        let found = match value {
            DeValue::Integer(_) if matches!(shape, Shape::Literal(kind) if units::has_unit(kind.name)) => {
                "a number without unit"
            }
            other => found(other),
        };
        let message = format!("`{path}` is not {}", shape.noun());
        let mut diagnostic =
            self.finding(Code::WrongType, message, path, span.clone(), found, schema);
        diagnostic.help = self.repair(path, value, span, shape);
        self.push(diagnostic);
    }
}

/// Says on which side a magnitude is outside of the range in the schema.
pub fn beyond(magnitude: Option<u128>, kind: &Kind, schema: &Value) -> Option<String> {
    let magnitude = magnitude?;
    let bound = |name: &str| {
        let text = schema.get(name)?.as_str()?;
        Some((text, (kind.check)(text).ok()??))
    };
    if let Some((least, bound)) = bound("x-edgevpn-minimum")
        && magnitude < bound
    {
        return Some(if magnitude == 0 && (kind.check)("unlimited").is_ok() {
            "0 could mean none or unlimited".to_owned()
        } else {
            format!("below {least}")
        });
    }
    match bound("x-edgevpn-maximum") {
        Some((most, bound)) if magnitude > bound => Some(format!("above {most}")),
        _ => None,
    }
}

/// The path of a key of the table at `path`, quoted where TOML would.
pub fn join(path: &str, key: &str) -> String {
    let bare = !key.is_empty()
        && key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    let key = if bare {
        std::borrow::Cow::from(key)
    } else {
        format!("{key:?}").into()
    };
    if path.is_empty() {
        key.into_owned()
    } else {
        format!("{path}.{key}")
    }
}
