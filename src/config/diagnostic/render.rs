//! Diagnostics as text: for people, for editors, for programs, for a build service.

use std::{fmt::Write, ops::Range};

use annotate_snippets::{
    AnnotationKind, Element, Group, Level, Origin, Patch, Renderer, Snippet,
    normalize_untrusted_str, renderer::DecorStyle,
};
use serde::Serialize;

use super::{Diagnostic, Excerpt, Format, Location, Severity};
use crate::config::{Checked, Summary, shape::grouped};

/// Lines are cut to this many columns.
const WIDTH: usize = 100;

/// The verdicts as one text, which ends in a newline.
pub fn render(checked: &[Checked], format: Format, colour: bool) -> String {
    match format {
        Format::Json => json(checked),
        Format::Human => checked
            .iter()
            .map(|checked| verdict(checked, colour))
            .collect(),
        Format::Short | Format::Github => checked
            .iter()
            .map(|checked| findings(&checked.diagnostics, format, colour))
            .collect(),
    }
}

/// Findings without a summary.
pub fn findings(diagnostics: &[Diagnostic], format: Format, colour: bool) -> String {
    let mut text = String::new();
    for diagnostic in diagnostics {
        match format {
            Format::Human => text.push_str(&human(diagnostic, colour)),
            Format::Short => text.push_str(&one_line(&diagnostic.short())),
            Format::Github => text.push_str(&github(diagnostic)),
            Format::Json => text.push_str(&serde_json::to_string(diagnostic).unwrap_or_default()),
        }
        text.push_str(if format == Format::Human {
            "\n\n"
        } else {
            "\n"
        });
    }
    text
}

/// `edgevpn.toml: valid (version 1, 41 keys)`, or how many findings there are.
pub fn summary(checked: &Checked) -> String {
    let count = |severity: Severity| {
        checked
            .diagnostics
            .iter()
            .filter(|found| found.severity == severity)
            .count()
    };
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let warned = match warnings {
        0 => String::new(),
        _ => format!(", {}", counted(warnings, "warning")),
    };
    if checked.config.is_none() {
        return format!(
            "{}: invalid ({}{warned})",
            checked.name,
            counted(errors, "error")
        );
    }
    let Summary {
        keys,
        list_files,
        list_entries,
        policy_tests,
    } = checked.summary;
    let mut facts = format!("version 1, {}", counted(keys, "key"));
    if list_files > 0 {
        let lists = counted(list_files, "list file");
        let entries = if list_entries == 1 {
            "entry"
        } else {
            "entries"
        };
        let _ = write!(facts, ", {lists} with {} {entries}", number(list_entries));
    }
    if policy_tests > 0 {
        let _ = write!(facts, ", {} passed", counted(policy_tests, "policy test"));
    }
    format!("{}: valid ({facts}){warned}", checked.name)
}

fn verdict(checked: &Checked, colour: bool) -> String {
    let findings = findings(&checked.diagnostics, Format::Human, colour);
    format!("{findings}{}\n", summary(checked))
}

fn counted(count: usize, what: &str) -> String {
    format!(
        "{} {what}{}",
        number(count),
        if count == 1 { "" } else { "s" }
    )
}

fn number(count: usize) -> String {
    grouped(i64::try_from(count).unwrap_or(i64::MAX))
}

fn json(checked: &[Checked]) -> String {
    #[derive(Serialize)]
    struct Report<'a> {
        valid: bool,
        files: Vec<File<'a>>,
    }
    #[derive(Serialize)]
    struct File<'a> {
        name: &'a str,
        valid: bool,
        summary: &'a Summary,
        diagnostics: &'a [Diagnostic],
    }
    let files: Vec<File<'_>> = checked
        .iter()
        .map(|checked| File {
            name: &checked.name,
            valid: checked.config.is_some(),
            summary: &checked.summary,
            diagnostics: &checked.diagnostics,
        })
        .collect();
    let report = Report {
        valid: files.iter().all(|file| file.valid),
        files,
    };
    // Strings and numbers under string keys: writing them cannot fail.
    let mut text = serde_json::to_string_pretty(&report).unwrap_or_default();
    text.push('\n');
    text
}

/// A workflow command: the line of the file gets the message as an annotation.
fn github(diagnostic: &Diagnostic) -> String {
    let data = |text: &str| {
        text.replace('%', "%25")
            .replace('\r', "%0D")
            .replace('\n', "%0A")
    };
    let property = |text: &str| data(text).replace(':', "%3A").replace(',', "%2C");
    let mut text = format!("::{} ", diagnostic.severity);
    if let Some(Location {
        file, line, column, ..
    }) = &diagnostic.location
    {
        let _ = write!(text, "file={},", property(file));
        if *line > 0 {
            let _ = write!(text, "line={line},col={column},");
        }
    }
    let mut message = diagnostic.message.clone();
    for part in diagnostic
        .location
        .iter()
        .map(|at| &at.label)
        .filter(|label| !label.is_empty())
    {
        let _ = write!(message, ": {part}");
    }
    if let Some(expected) = &diagnostic.expected {
        let _ = write!(message, "\nexpected: {expected}");
    }
    for note in &diagnostic.notes {
        let _ = write!(message, "\nnote: {note}");
    }
    if let Some(help) = &diagnostic.help {
        let fix: Vec<_> = help
            .patches
            .iter()
            .map(|patch| patch.text.trim_end())
            .collect();
        let fix = if fix.is_empty() {
            String::new()
        } else {
            format!(": {}", fix.join(" "))
        };
        let _ = write!(message, "\nhelp: {}{fix}", help.message);
    }
    let _ = write!(text, "title={}::{}", diagnostic.code, data(&message));
    text
}

fn human(diagnostic: &Diagnostic, colour: bool) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let title = level
        .primary_title(&diagnostic.message)
        .id(diagnostic.code.as_str());
    let mut main = Group::with_title(title);
    let mut pieces: Vec<Piece<'_>> = Vec::new();
    for location in diagnostic.location.iter().chain(&diagnostic.related) {
        match pieces.iter_mut().find(|piece| piece.shows(location)) {
            Some(piece) => piece.also(location),
            None => pieces.push(Piece::of(location)),
        }
    }
    for (at, piece) in pieces.iter().enumerate() {
        main = main.element(piece.element(at == 0));
    }
    if let Some(expected) = &diagnostic.expected {
        main = main.element(message("expected", expected));
    }
    for note in &diagnostic.notes {
        main = main.element(message("note", note));
    }
    let mut groups = vec![main];
    if let Some(help) = &diagnostic.help {
        let patched = diagnostic
            .location
            .as_ref()
            .and_then(|location| patched(location, &help.patches));
        match patched {
            Some(patched) => {
                let title = Level::HELP.secondary_title(normalize_untrusted_str(&help.message));
                groups.push(title.element(patched));
            }
            None => {
                if let Some(main) = groups.pop() {
                    groups.push(main.element(message("help", &help.message)));
                }
            }
        }
    }
    let renderer = if colour {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    let text = renderer
        .term_width(WIDTH)
        .decor_style(DecorStyle::Ascii)
        .render(&groups);
    pieces.iter().fold(text, |text, piece| piece.correct(text))
}

fn message<'a>(name: &'a str, text: &'a str) -> Element<'a> {
    Level::NOTE
        .with_name(name)
        .message(normalize_untrusted_str(text))
        .into()
}

/// One line of a file and the places on it.
struct Piece<'a> {
    location: &'a Location,
    text: String,
    places: Vec<(Range<usize>, &'a str)>,
}

impl<'a> Piece<'a> {
    fn of(location: &'a Location) -> Self {
        let (text, span) = match &location.excerpt {
            Some(excerpt) => cut(location, excerpt),
            None => Default::default(),
        };
        Piece {
            location,
            text,
            places: vec![(span, &location.label)],
        }
    }

    fn shows(&self, location: &Location) -> bool {
        self.location.file == location.file
            && self.location.line == location.line
            && self.location.excerpt.is_some()
            && self.location.excerpt == location.excerpt
    }

    fn also(&mut self, location: &'a Location) {
        if let Some(excerpt) = &location.excerpt {
            self.places
                .push((cut(location, excerpt).1, &location.label));
        }
    }

    fn element(&self, primary: bool) -> Element<'_> {
        let path = self.location.file.as_str();
        if self.location.excerpt.is_none() {
            let origin = Origin::path(path);
            return match self.location.line {
                0 => origin.into(),
                line => origin
                    .line(line as usize)
                    .char_column(self.location.column as usize)
                    .into(),
            };
        }
        let mut snippet = Snippet::source(self.text.as_str())
            .path(path)
            .line_start(self.location.line as usize);
        for (at, (span, label)) in self.places.iter().enumerate() {
            let kind = if primary && at == 0 {
                AnnotationKind::Primary
            } else {
                AnnotationKind::Context
            };
            let label = Some(*label).filter(|label| !label.is_empty());
            snippet = snippet.annotation(kind.span(span.clone()).label(label));
        }
        snippet.into()
    }

    /// The renderer counts columns in what it shows; of a line that is cut it cannot know more.
    fn correct(&self, text: String) -> String {
        let Some((span, _)) = self.places.first() else {
            return text;
        };
        let Location {
            file, line, column, ..
        } = self.location;
        let shown = self
            .text
            .get(..span.start)
            .unwrap_or_default()
            .chars()
            .count()
            + 1;
        if shown == *column as usize || self.location.excerpt.is_none() {
            return text;
        }
        text.replacen(
            &format!("{file}:{line}:{shown}"),
            &format!("{file}:{line}:{column}"),
            1,
        )
    }
}

/// The excerpt with a sign where it was cut, and the span within it. A diagnostic may come over a socket: whatever it
/// says, the span is one of the text.
fn cut(location: &Location, excerpt: &Excerpt) -> (String, Range<usize>) {
    let within = |at: usize| {
        let mut at = at.saturating_sub(excerpt.offset).min(excerpt.text.len());
        while !excerpt.text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let start = within(location.start);
    let end = within(location.end).max(start);
    let before = excerpt
        .text
        .get(..start)
        .unwrap_or_default()
        .chars()
        .count();
    let lead = if before + 1 < location.column as usize {
        "…"
    } else {
        ""
    };
    (
        format!("{lead}{}", excerpt.text),
        start + lead.len()..end + lead.len(),
    )
}

/// The line as it should be, if the edits are within what is shown.
fn patched<'a>(
    location: &'a Location,
    patches: &'a [super::Patch],
) -> Option<Snippet<'a, Patch<'a>>> {
    let excerpt = location.excerpt.as_ref()?;
    let mut snippet = Snippet::source(excerpt.text.as_str()).line_start(location.line as usize);
    if patches.is_empty() {
        return None;
    }
    for patch in patches {
        let start = patch.start.checked_sub(excerpt.offset)?;
        let end = patch.end.checked_sub(excerpt.offset)?;
        excerpt.text.get(start..end)?;
        snippet = snippet.patch(Patch::new(start..end, patch.text.as_str()));
    }
    Some(snippet)
}

fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
