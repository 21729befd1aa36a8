//! Bytes to text to a tree with spans. Everything that is wrong with the text itself is found here, all of it at once.

use std::{
    borrow::Cow,
    ops::{Range, RangeInclusive},
    sync::Arc,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Source,
    diagnostic::{Code, Diagnostic, Excerpt, Help, Location, Patch},
    literal::nearest,
};

pub mod conceal;

/// A file larger than this is refused: 8 MiB, which a list file can hold instead.
pub const LARGEST_FILE: usize = 8 << 20;

/// A line longer than this is shown in part, in bytes.
const LONGEST_EXCERPT: usize = 240;
/// How much of a long line is shown before the place that matters.
const EXCERPT_LEAD: usize = 60;

/// The text of a file, and where its lines begin.
#[derive(Clone, Debug)]
pub struct Text {
    pub name: Arc<str>,
    text: String,
    /// Bytes before `text` that are not part of it: a byte order mark.
    base: usize,
    line_starts: Vec<usize>,
    /// What is never shown.
    secrets: Vec<Range<usize>>,
}

impl Text {
    /// Decodes a file. UTF-8 with or without byte order mark; anything else is a finding.
    pub fn read(source: Source) -> Result<Text, Box<Diagnostic>> {
        let name: Arc<str> = source.name.into();
        let bytes = source.bytes;
        if bytes.len() > LARGEST_FILE {
            let message = format!("the file is {} bytes long", bytes.len());
            let finding = Diagnostic::new(Code::TooLarge, message)
                .in_file(&*name)
                .expected("at most 8 MiB")
                .help("move long lists of peers into files of their own: [[acl.list]]");
            return Err(Box::new(finding));
        }
        if let Some(encoding) = other_encoding(&bytes) {
            let start = Location {
                excerpt: None,
                ..Text::of(name, String::new(), 0).location(0..0)
            };
            let finding = Diagnostic::new(Code::Encoding, format!("the file is {encoding}"))
                .at(start)
                .expected("UTF-8")
                .help("save the file as UTF-8");
            return Err(Box::new(finding));
        }
        let base = if bytes.starts_with(&[0xef, 0xbb, 0xbf]) {
            3
        } else {
            0
        };
        let text = match String::from_utf8(bytes) {
            Ok(mut text) => {
                text.drain(..base);
                Text::of(name, text, base)
            }
            Err(error) => return Err(Box::new(not_utf8(name, error, base))),
        };
        match text.text.find('\0') {
            None => Ok(text),
            Some(at) => Err(Box::new(
                Diagnostic::new(Code::Encoding, "a NUL byte in the file")
                    .at(text.label(at..at + 1, "here"))
                    .expected("text")
                    .help("the file is damaged, or was cut while it was written: write it again"),
            )),
        }
    }

    fn of(name: Arc<str>, text: String, base: usize) -> Text {
        let newlines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let line_starts = std::iter::once(0)
            .chain(newlines.map(|(at, _)| at + 1))
            .collect();
        Text {
            secrets: conceal::secrets(&text),
            name,
            text,
            base,
            line_starts,
        }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn slice(&self, span: Range<usize>) -> &str {
        self.text.get(span).unwrap_or_default()
    }

    /// The line of a byte, from 1.
    pub fn line(&self, at: usize) -> u32 {
        let line = self.line_starts.partition_point(|start| *start <= at);
        u32::try_from(line).unwrap_or(u32::MAX)
    }

    /// The place of a span, shown up to the end of its first line.
    pub fn location(&self, span: Range<usize>) -> Location {
        let start = self.boundary(span.start);
        let line = self.line(start);
        let line_start = self
            .line_starts
            .get((line as usize).saturating_sub(1))
            .copied()
            .unwrap_or_default();
        let line_text = self
            .text
            .get(line_start..)
            .unwrap_or_default()
            .split('\n')
            .next()
            .unwrap_or_default();
        let line_text = line_text.strip_suffix('\r').unwrap_or(line_text);
        let line_end = line_start + line_text.len();
        let end = self.boundary(span.end).min(line_end).max(start);
        let column = self.slice(line_start..start).chars().count() + 1;
        let (from, to) = if line_text.len() <= LONGEST_EXCERPT {
            (line_start, line_end)
        } else {
            let from = self.boundary(start.saturating_sub(EXCERPT_LEAD).max(line_start));
            (from, self.boundary((from + LONGEST_EXCERPT).min(line_end)))
        };
        Location {
            file: self.name.to_string(),
            line,
            column: u32::try_from(column).unwrap_or(u32::MAX),
            start: start + self.base,
            end: end + self.base,
            label: String::new(),
            excerpt: Some(Excerpt {
                text: conceal::masked(&self.text, from..to.max(from), &self.secrets),
                offset: from + self.base,
            }),
        }
    }

    pub fn label(&self, span: Range<usize>, label: impl Into<String>) -> Location {
        Location {
            label: label.into(),
            ..self.location(span)
        }
    }

    /// Replaces `span`; nothing if that would show a secret.
    pub fn fix(
        &self,
        message: impl Into<String>,
        span: Range<usize>,
        text: impl Into<String>,
    ) -> Help {
        let shows = |secret: &Range<usize>| secret.start < span.end && span.start < secret.end;
        let patch = (!self.secrets.iter().any(shows)).then(|| self.patch(span.clone(), text));
        Help {
            message: message.into(),
            patches: patch.into_iter().collect(),
        }
    }

    /// Replaces `span`.
    pub fn patch(&self, span: Range<usize>, text: impl Into<String>) -> Patch {
        Patch {
            start: span.start + self.base,
            end: span.end + self.base,
            text: text.into(),
        }
    }

    /// The nearest place at or before `at` where a character begins.
    fn boundary(&self, at: usize) -> usize {
        let mut at = at.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        at
    }
}

/// What a text says, as far as it can be understood.
pub struct Document<'a> {
    pub root: DeTable<'a>,
    pub findings: Vec<Diagnostic>,
    /// Lines on which nothing else is worth a finding. None: the text is TOML.
    pub broken: Vec<RangeInclusive<u32>>,
}

/// Parses as much as can be understood.
pub fn parse(text: &Text) -> Document<'_> {
    let (root, errors) = DeTable::parse_recoverable(text.as_str());
    if errors.is_empty() {
        return Document {
            root: root.into_inner(),
            findings: Vec::new(),
            broken: Vec::new(),
        };
    }
    let mut open = Vec::new();
    root.get_ref()
        .values()
        .for_each(|value| unclosed(text, value, &mut open));
    let mut findings: Vec<Diagnostic> = open
        .iter()
        .take(super::MOST_DIAGNOSTICS)
        .map(|span| {
            let what = if text.slice(span.clone()).starts_with('[') {
                ("list", "]")
            } else {
                ("table", "}")
            };
            Diagnostic::new(Code::Syntax, format!("a {} is never closed", what.0))
                .at(text.label(span.start..span.start + 1, "opened here"))
                .expected(format!("`{}` after the last entry", what.1))
        })
        .collect();
    let mut errors: Vec<_> = errors
        .iter()
        .map(|error| (error.span().unwrap_or_default(), error.message()))
        // What follows an open bracket was read as if it were inside.
        .filter(|(at, _)| {
            !open
                .iter()
                .any(|open| open.start <= at.start && at.start <= open.end)
        })
        .collect();
    errors.sort_by_key(|(span, _)| span.start);
    let mut broken: Vec<RangeInclusive<u32>> = open
        .iter()
        .map(|open| text.line(open.start)..=text.line(open.end))
        .collect();
    let mut last_line = 0;
    for (span, message) in errors {
        let line = text.line(span.start);
        // One slip makes several errors on its line; the first one says it.
        if line == last_line {
            continue;
        }
        last_line = line;
        // Without the name of its section, what follows belongs nowhere.
        let nameless =
            message.starts_with("unclosed table") || message.starts_with("unclosed array table");
        broken.push(line..=if nameless { u32::MAX } else { line });
        findings.push(describe(text, span, message));
        if findings.len() > super::MOST_DIAGNOSTICS {
            break;
        }
    }
    Document {
        root: root.into_inner(),
        findings,
        broken,
    }
}

/// The outermost lists and inline tables that run to where the parser gave up.
fn unclosed(text: &Text, value: &Spanned<DeValue<'_>>, found: &mut Vec<Range<usize>>) {
    let written = text.slice(value.span());
    let open = |begin: char, end: char| written.starts_with(begin) && !written.ends_with(end);
    if found.len() >= super::MOST_DIAGNOSTICS {
        return;
    }
    match value.get_ref() {
        DeValue::Array(_) if open('[', ']') => found.push(value.span()),
        DeValue::Table(_) if open('{', '}') => found.push(value.span()),
        DeValue::Array(values) => values.iter().for_each(|value| unclosed(text, value, found)),
        DeValue::Table(table) => table
            .values()
            .for_each(|value| unclosed(text, value, found)),
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => {}
    }
}

fn describe(text: &Text, span: Range<usize>, message: &str) -> Diagnostic {
    if message.contains("recurs") {
        return Diagnostic::new(Code::TooDeep, "nested too deeply")
            .at(text.label(span, "here"))
            .expected("at most 80 levels");
    }
    if message.starts_with("duplicate key") {
        return set_twice(text, span);
    }
    let (what, expected) = match message.split_once(", expected ") {
        Some((what, expected)) => (what, Some(expected)),
        None => (message, None),
    };
    let at_end = text
        .slice(span.start..text.as_str().len())
        .trim_start_matches([' ', '\t'])
        .starts_with(['\r', '\n', '#'])
        || span.start >= text.as_str().len();
    let syntax = |message: &str, label: &str| {
        Diagnostic::new(Code::Syntax, message).at(text.label(span.clone(), label))
    };
    match what {
        "string values must be quoted" if span.is_empty() => {
            syntax("a value is missing", "after `=`").expected("a value, or no line at all")
        }
        "string values must be quoted" => {
            let word = text.slice(span.clone());
            let diagnostic = syntax("this is no value", "a string must be quoted");
            if let Some(word) = nearest(word, ["true", "false"].into_iter()) {
                let help = text.fix("write instead", span.clone(), word);
                return Diagnostic {
                    help: Some(help),
                    ..diagnostic
                };
            }
            if word.contains(['"', '\'', '\\', ' ', '\t', '\n']) {
                return diagnostic.expected("one value, then a new line");
            }
            let help = text.fix("quote it", span.clone(), format!("\"{word}\""));
            Diagnostic {
                help: Some(help),
                ..diagnostic
            }
        }
        "invalid basic string" | "invalid literal string" if at_end => {
            let quote = if what.contains("basic") { "\"" } else { "'" };
            let diagnostic = syntax("a string is not closed", "the quote is missing");
            let help = text.fix("close it", span.clone(), quote);
            Diagnostic {
                help: Some(help),
                ..diagnostic
            }
        }
        "invalid boolean" => {
            let diagnostic =
                syntax("this is no value", "").expected("true or false; a string must be quoted");
            match nearest(text.slice(span.clone()), ["true", "false"].into_iter()) {
                Some(word) => Diagnostic {
                    help: Some(text.fix("write instead", span.clone(), word)),
                    ..diagnostic
                },
                None => diagnostic,
            }
        }
        "missing escaped value" => syntax("a backslash begins an escape, and this is none", "")
            .expected(
                "a second backslash for a backslash itself, or single quotes around the string",
            ),
        "invalid unquoted key" if text.slice(span.clone()).starts_with("//") => {
            let diagnostic = syntax("this is no comment", "a comment begins with #");
            let slashes = span.start..span.start + 2;
            Diagnostic {
                help: Some(text.fix("write instead", slashes, "#")),
                ..diagnostic
            }
        }
        "invalid unquoted key" => syntax("a key cannot be written so", "")
            .expected("letters, digits, `-` and `_`, or quotes around the key"),
        "key with no value" => {
            syntax("a key without a value", "").expected("`=` and a value, or # before a comment")
        }
        "unclosed table" | "unclosed array table" => {
            let close = if what == "unclosed table" { "]" } else { "]]" };
            let diagnostic = syntax("the name of a section is not closed", "");
            let help = text.fix("close it", span.start..span.start, close);
            Diagnostic {
                help: Some(help),
                ..diagnostic
            }
        }
        _ => match expected {
            Some(expected) => syntax(what, "").expected(expected),
            None => syntax(what, ""),
        },
    }
}

fn set_twice(text: &Text, span: Range<usize>) -> Diagnostic {
    let key = text.slice(span.clone());
    let diagnostic = Diagnostic::new(Code::DuplicateKey, format!("`{key}` is set twice"))
        .at(text.label(span.clone(), "set again here"))
        .help("keep one of the two");
    match first_of(text, key, span.start) {
        Some(first) => diagnostic.related(text.label(first, "first set here")),
        None => diagnostic,
    }
}

/// Where `key` was set before: the nearest line above that sets it or opens its table.
fn first_of(text: &Text, key: &str, before: usize) -> Option<Range<usize>> {
    let mut end = text.text.get(..before)?.rfind('\n')?;
    loop {
        let start = text.text.get(..end)?.rfind('\n').map_or(0, |at| at + 1);
        let line = text.text.get(start..end)?;
        let lead = line.len() - line.trim_start_matches([' ', '\t', '[']).len();
        if let Some(rest) = line.get(lead..).and_then(|line| line.strip_prefix(key))
            && rest.trim_start().starts_with(['=', ']'])
        {
            return Some(start + lead..start + lead + key.len());
        }
        end = start.checked_sub(1)?;
    }
}

fn not_utf8(name: Arc<str>, error: std::string::FromUtf8Error, base: usize) -> Diagnostic {
    let at = error.utf8_error().valid_up_to();
    let bytes = error.into_bytes();
    let byte = bytes.get(at).copied().unwrap_or_default();
    let lossy = String::from_utf8_lossy(bytes.get(base..).unwrap_or_default());
    let text = Text::of(name, lossy.into_owned(), base);
    let at = at.saturating_sub(base);
    // One replacement character, three bytes, stands for what is no text.
    Diagnostic::new(
        Code::Encoding,
        format!("the file is not UTF-8: byte 0x{byte:02x} is no text"),
    )
    .at(text.label(at..at + 3, "not UTF-8"))
    .expected("UTF-8")
    .help("save the file as UTF-8")
}

/// The name of an encoding that is not UTF-8, when the first bytes give it away.
fn other_encoding(bytes: &[u8]) -> Option<Cow<'static, str>> {
    match bytes {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Some("UTF-32".into()),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("UTF-16".into()),
        [first, 0, second, 0, ..] | [0, first, 0, second, ..] if *first != 0 && *second != 0 => {
            Some("UTF-16 without a byte order mark".into())
        }
        _ => None,
    }
}
