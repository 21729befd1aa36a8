//! One log line, as text or JSON, switched while spans are open.
//!
//! Written here because the formats of tracing-subscriber keep what they know of a span in a type of their own: after a
//! switch the JSON one looks for fields that the text one has written, and panics.

use super::Format;
use serde_json::{Map, Value};
use std::{
    fmt::{self, Write as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields, FormattedFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

/// The format in force.
pub(super) struct Current(AtomicBool);

impl Current {
    pub(super) fn new(format: Format) -> Self {
        Self(AtomicBool::new(format == Format::Json))
    }

    pub(super) fn set(&self, format: Format) {
        self.0.store(format == Format::Json, Ordering::Relaxed);
    }

    fn load(&self) -> Format {
        if self.0.load(Ordering::Relaxed) {
            Format::Json
        } else {
            Format::Text
        }
    }
}

/// Writes events in the current format.
pub(super) struct Line {
    current: Arc<Current>,
    colour: bool,
}

impl Line {
    pub(super) fn new(current: Arc<Current>, colour: bool) -> Self {
        Self { current, colour }
    }
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut spans = Vec::new();
        for span in context
            .event_scope()
            .into_iter()
            .flat_map(|scope| scope.from_root())
        {
            let extensions = span.extensions();
            let written = extensions
                .get::<FormattedFields<N>>()
                .map_or("", |fields| fields.fields.as_str());
            spans.push(match written {
                "" => span.name().to_owned(),
                fields => format!("{}{{{fields}}}", span.name()),
            });
        }
        match self.current.load() {
            Format::Text => text(writer, self.colour, event, &fields, &spans),
            Format::Json => json(writer, event, fields, spans),
        }
    }
}

fn text(
    mut writer: Writer<'_>,
    colour: bool,
    event: &Event<'_>,
    fields: &Fields,
    spans: &[String],
) -> fmt::Result {
    SystemTime.format_time(&mut writer)?;
    let level = *event.metadata().level();
    let (before, after) = if colour {
        (ansi(level), "\x1b[0m")
    } else {
        ("", "")
    };
    write!(writer, " {before}{level:>5}{after}")?;
    // Our own lines name their subject in the message; a line of a dependency needs its origin.
    if !event.metadata().target().starts_with("edgevpn") {
        write!(writer, " {}:", event.metadata().target())?;
    }
    if !fields.message.is_empty() {
        write!(writer, " {}", printable(&fields.message))?;
    }
    for (name, value) in &fields.rest {
        match value {
            Value::String(text) if text.chars().any(needs_quotes) || text.is_empty() => {
                write!(writer, " {name}={text:?}")?
            }
            Value::String(text) => write!(writer, " {name}={text}")?,
            other => write!(writer, " {name}={other}")?,
        }
    }
    for span in spans {
        write!(writer, " in {}", printable(span))?;
    }
    writeln!(writer)
}

fn json(
    mut writer: Writer<'_>,
    event: &Event<'_>,
    fields: Fields,
    spans: Vec<String>,
) -> fmt::Result {
    let mut time = String::new();
    SystemTime.format_time(&mut Writer::new(&mut time))?;
    let mut line = Map::new();
    line.insert("time".into(), time.into());
    line.insert("level".into(), event.metadata().level().as_str().into());
    line.insert("target".into(), event.metadata().target().into());
    line.insert("message".into(), fields.message.into());
    for (name, value) in fields.rest {
        // A field that bears one of the names above must not shadow it.
        let name = if line.contains_key(name) {
            format!("field.{name}")
        } else {
            name.to_owned()
        };
        line.insert(name, value);
    }
    if !spans.is_empty() {
        line.insert("spans".into(), spans.into());
    }
    writeln!(writer, "{}", Value::Object(line))
}

fn ansi(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        _ => "\x1b[2m",
    }
}

fn needs_quotes(character: char) -> bool {
    character.is_whitespace() || character.is_control() || matches!(character, '"' | '=')
}

/// Names and messages can carry what a peer sent; a control character must not reach the operator's terminal.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// The fields of one event: the message apart, the rest in the order of the call.
#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(&'static str, Value)>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // Writing into a String cannot fail.
            let _ = write!(self.message, "{value:?}");
        } else {
            self.rest.push((field.name(), format!("{value:?}").into()));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            self.rest.push((field.name(), value.into()));
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.rest.push((field.name(), value.into()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.rest.push((field.name(), value.into()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.rest.push((field.name(), value.into()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.rest.push((field.name(), value.into()));
    }
}
