//! What the author of a file is told: a code, what is wrong, where, and what to write instead.
//!
//! A diagnostic carries the piece of text it points at, so that it can be shown anywhere: next to the file, in the
//! answer of a running node, in the log of a build.

use std::fmt;

mod render;

pub use render::{findings, render, summary};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Declares every code once: variant, number, severity, summary.
macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal $severity:ident $summary:literal;)*) => {
        /// What a diagnostic is about. The number is stable, texts are not.
        ///
        /// EV00xx syntax, 01xx keys and types, 02xx files, 03xx secrets, 04xx several keys together, 05xx acl, 06xx environment,
        /// 07xx version, 08xx applying.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code { $($(#[$doc])* #[doc = $summary] $name,)* }

        impl Code {
            pub const ALL: &[Code] = &[$(Code::$name,)*];

            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $number,)* }
            }

            pub fn severity(self) -> Severity {
                match self { $(Code::$name => Severity::$severity,)* }
            }

            /// What the code means, in one line.
            pub fn summary(self) -> &'static str {
                match self { $(Code::$name => $summary,)* }
            }
        }
    };
}

codes! {
    Syntax = "EV0001" Error "the file is not valid TOML";
    DuplicateKey = "EV0002" Error "a key is set twice";
    Encoding = "EV0003" Error "the file is not UTF-8 text";
    TooDeep = "EV0004" Error "tables or keys are nested too deeply";
    TooMany = "EV0005" Error "the rest of the findings is left out";

    UnknownKey = "EV0101" Error "a key does not exist";
    WrongType = "EV0102" Error "a value has the wrong type or form";
    OutOfRange = "EV0103" Error "a value is outside of its range";
    UnknownValue = "EV0104" Error "a value is not one of the choices";
    MissingKey = "EV0105" Error "a mandatory key is missing";

    Unreadable = "EV0201" Error "a file cannot be read";
    TooLarge = "EV0202" Error "a file is too large";
    HeldBack = "EV0203" Error "the file looks half-written";

    SecretUnreadable = "EV0301" Error "a token cannot be read";
    SecretExposed = "EV0302" Error "a token is not kept from others";
    NotAToken = "EV0303" Error "what should be a token is none";
    TwoTokens = "EV0304" Error "two keys name the token of the network";
    NoToken = "EV0305" Error "a network has no token";
    SecretInFile = "EV0306" Warning "a token stands in the configuration file";
    SameToken = "EV0307" Warning "a token is accepted twice";

    DuplicateName = "EV0401" Error "two entries have the same identity";
    Contradiction = "EV0402" Error "two keys contradict each other";
    WithoutEffect = "EV0403" Warning "a value has no effect";

    ListUnreadable = "EV0501" Error "a list file cannot be read";
    ListEntry = "EV0502" Error "a line of a list file is no entry";
    TestFailed = "EV0503" Error "a policy test fails";
    TestConflict = "EV0504" Error "a policy test expects both answers";
    AllowIneffective = "EV0507" Warning "an allow entry is overridden by a deny entry";

    EnvironmentValue = "EV0601" Error "an environment variable has a wrong value";
    EnvironmentOverridden = "EV0602" Warning "an environment variable and the file disagree";
    EnvironmentUnsupported = "EV0603" Error "an environment variable asks for what the file does not provide";

    NoVersion = "EV0701" Error "the version is missing";
    UnsupportedVersion = "EV0702" Error "the version is not supported";

    AboveMaxImpact = "EV0801" Error "a change costs more than `reload.max_impact` permits";
    NeedsRestart = "EV0802" Error "a change needs a restart";
    ApplyFailed = "EV0803" Error "a change could not be applied";
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Error,
    Warning,
}

/// How diagnostics are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// With the line and a caret, for people.
    Human,
    /// One line each, for editors.
    Short,
    /// One document, for programs.
    Json,
    /// Workflow commands, for annotations on GitHub.
    Github,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    pub code: Code,
    pub severity: Severity,
    pub message: String,
    /// The key path it is about, as `relay.resources.max_data`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Absent when no place in a file can be named, as for an environment variable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
    /// A second place that matters, such as the first of two equal keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub related: Vec<Location>,
    /// What may stand there instead: form, range, default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// What else to know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<Help>,
}

/// A place in a file, with as much of its text as may be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// As the operator wrote it.
    pub file: String,
    /// From 1; 0 when the file as a whole is meant.
    pub line: u32,
    /// From 1, in characters; 0 when the file as a whole is meant.
    pub column: u32,
    /// Bytes from the start of the file.
    pub start: usize,
    pub end: usize,
    /// What to say under the caret.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excerpt: Option<Excerpt>,
}

/// A line, or the part of a long one around the place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excerpt {
    pub text: String,
    /// Where `text` begins in the file, in bytes.
    pub offset: usize,
}

/// What to write instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Help {
    pub message: String,
    /// Edits of the file that carry it out, if it can be done without knowing what was meant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patches: Vec<Patch>,
}

/// Replaces bytes of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patch {
    pub start: usize,
    pub end: usize,
    pub text: String,
}

impl Diagnostic {
    /// A finding without a place; see [`Diagnostic::at`].
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            severity: code.severity(),
            message: message.into(),
            key: None,
            location: None,
            related: Vec::new(),
            expected: None,
            notes: Vec::new(),
            help: None,
        }
    }

    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    pub fn at(mut self, location: Location) -> Self {
        self.location = Some(location);
        self
    }

    /// The file as a whole.
    pub fn in_file(self, file: impl Into<String>) -> Self {
        self.at(Location {
            file: file.into(),
            line: 0,
            column: 0,
            start: 0,
            end: 0,
            label: String::new(),
            excerpt: None,
        })
    }

    /// A line of the file as a whole, or the file if none can be named.
    pub fn in_line(self, file: impl Into<String>, line: Option<u32>) -> Self {
        let mut diagnostic = self.in_file(file);
        if let (Some(location), Some(line)) = (&mut diagnostic.location, line) {
            location.line = line;
            location.column = 1;
        }
        diagnostic
    }

    pub fn related(mut self, location: Location) -> Self {
        self.related.push(location);
        self
    }

    pub fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    pub fn help(mut self, message: impl Into<String>) -> Self {
        self.help = Some(Help {
            message: message.into(),
            patches: Vec::new(),
        });
        self
    }

    /// Bounds every text: a key or a value that is quoted may be as long as the file.
    pub(super) fn shorten(&mut self) {
        shorten(&mut self.message);
        self.key.iter_mut().for_each(shorten);
        self.expected.iter_mut().for_each(shorten);
        self.notes.iter_mut().for_each(shorten);
        let places = self.location.iter_mut().chain(&mut self.related);
        places.for_each(|location| shorten(&mut location.label));
        if let Some(help) = &mut self.help {
            shorten(&mut help.message);
            if help
                .patches
                .iter()
                .any(|patch| patch.text.len() > LONGEST_TEXT)
            {
                help.patches.clear();
            }
        }
    }

    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// `file:line:col: error[EV0102]: …`, on one line.
    pub fn short(&self) -> String {
        let head = format!("{}[{}]: {}", self.severity, self.code, self.message);
        match &self.location {
            None => head,
            Some(Location { file, line: 0, .. }) => format!("{file}: {head}"),
            Some(Location {
                file, line, column, ..
            }) => format!("{file}:{line}:{column}: {head}"),
        }
    }
}

/// Bytes of one text of a diagnostic: three lines of a terminal, several times what our own sentences take.
const LONGEST_TEXT: usize = 400;

fn shorten(text: &mut String) {
    if text.len() > LONGEST_TEXT {
        let mut end = LONGEST_TEXT;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        })
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = String::deserialize(deserializer)?;
        Code::ALL
            .iter()
            .copied()
            .find(|code| code.as_str() == number)
            .ok_or_else(|| serde::de::Error::custom(format!("{number} is not a diagnostic code")))
    }
}
