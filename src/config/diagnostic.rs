//! What the author of a file is told: a code, what is wrong, where, and what to write instead.
//!
//! A diagnostic carries the piece of text it points at, so that it can be shown anywhere: next to the file, in the
//! answer of a running node, in the log of a build.

use std::fmt;

mod render;

pub use render::{findings, render, summary};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Declares every code once: variant, number, severity, summary, and what to do about it.
macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal $severity:ident $summary:literal, $remedy:literal;)*) => {
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

            /// Why it is told, and what to do.
            pub fn remedy(self) -> &'static str {
                match self { $(Code::$name => $remedy,)* }
            }
        }
    };
}

codes! {
    Syntax = "EV0001" Error "the file is not valid TOML",
        "The text cannot be read as TOML from the marked place on. Correct the line; what follows it is checked as far as it can be understood.";
    DuplicateKey = "EV0002" Error "a key is set twice",
        "TOML allows a key once in a table, and a table once in a file. Keep one of the two.";
    Encoding = "EV0003" Error "the file is not UTF-8 text",
        "The file holds bytes that are no UTF-8 text, or a NUL. Save it as UTF-8; a byte order mark and CRLF line ends are fine.";
    TooDeep = "EV0004" Error "tables or keys are nested too deeply",
        "No key of this program is nested so deeply: the file is damaged, or not meant for it.";
    TooMany = "EV0005" Error "the rest of the findings is left out",
        "Only the first hundred findings are told. Correct these first.";

    UnknownKey = "EV0101" Error "a key does not exist",
        "Keys are never ignored, since a misspelt one would leave a default in force. Correct the name, or remove the key if it belongs to another version.";
    WrongType = "EV0102" Error "a value has the wrong type or form",
        "Durations, sizes, rates and bandwidths are strings with a unit; everything else has the type that `edgevpn explain KEY` tells.";
    OutOfRange = "EV0103" Error "a value is outside of its range",
        "The value has the right form and is too small, too large or too long. `edgevpn explain KEY` tells the range.";
    UnknownValue = "EV0104" Error "a value is not one of the choices",
        "The key takes one of a few words. They are listed with what each means.";
    MissingKey = "EV0105" Error "a mandatory key is missing",
        "The table is not complete without this key. Add it.";

    Unreadable = "EV0201" Error "a file cannot be read",
        "The file is missing, is not a regular file, or this user may not read it. Check the path and its permissions.";
    TooLarge = "EV0202" Error "a file is too large",
        "A configuration file has at most 8 MiB, a list file 128 MiB and a million lines. Move long lists of peers into [[acl.list]] files, or write networks instead of addresses.";
    HeldBack = "EV0203" Error "the file looks half-written",
        "The file has lost a section, most of its keys, or all of a list, as one does that is still being written. Complete it, or apply it as it is with `edgevpn reload --force`.";

    SecretUnreadable = "EV0301" Error "a token cannot be read",
        "The key names a file, credential or variable in which no token can be found. Check the name and that the user of the node may read it; a running node goes on with the token it has.";
    SecretExposed = "EV0302" Error "a token is not kept from others",
        "Whoever reads the token can join the network, and whoever writes it can lead the node into another one. Take the permissions away: chmod 600. The group may read it.";
    NotAToken = "EV0303" Error "what should be a token is none",
        "What was found is no token: cut, mistyped, or something else. Copy it again, whole, or make one with `edgevpn token new`.";
    TwoTokens = "EV0304" Error "two keys name the token of the network",
        "One of token_file, token_credential, token_env and token is set, and no more. Keep one; tokens that are accepted beside it go into accept_token_files.";
    NoToken = "EV0305" Error "a network has no token",
        "A [network] section names its token. Make one with `edgevpn token new` and name its file in token_file, or remove the section.";
    SecretInFile = "EV0306" Warning "a token stands in the configuration file",
        "The configuration file is copied, committed and shown more freely than a secret should be. Move the token into a file of its own and name that in token_file.";
    SameToken = "EV0307" Warning "a token is accepted twice",
        "The token is the own one, or was listed before, so that listing it changes nothing. Remove it, or check whether another one was meant.";

    DuplicateName = "EV0401" Error "two entries have the same identity",
        "Tables of an array are told apart by their id or name, and values of a list by themselves. Keep one of the two, or rename one.";
    Contradiction = "EV0402" Error "two keys contradict each other",
        "Each value is right by itself, and together they cannot be carried out. Change one of the two marked places.";
    WithoutEffect = "EV0403" Warning "a value has no effect",
        "The file says something that changes nothing, which is rarely what was meant. Remove it, or change what keeps it from having an effect.";

    ListUnreadable = "EV0501" Error "a list file cannot be read",
        "An access list is missing or cannot be read. A running node keeps its last content for max_stale; then an allow list counts as empty, and a deny list stays.";
    ListEntry = "EV0502" Error "a line of a list file is no entry",
        "A line of a list is one peer id, IP address or CIDR; # begins a comment. Correct the line, or begin it with #.";
    TestFailed = "EV0503" Error "a policy test fails",
        "The policy answers an [[acl.test]] otherwise than it wants, so that the file is not applied. Correct the policy, or the test if the policy is meant.";
    TestConflict = "EV0504" Error "a policy test expects both answers",
        "A test asks for an operation to be allowed and denied, or asks for nothing. Keep one of the two.";
    AllowIneffective = "EV0507" Warning "an allow entry is overridden by a deny entry",
        "Deny wins over allow, so that this entry admits nobody. Remove it, or narrow the deny entry.";

    EnvironmentValue = "EV0601" Error "an environment variable has a wrong value",
        "A variable fills a key that the file leaves unset, and its value does not fit. Correct or unset it, or set the key in the file, which wins.";
    EnvironmentOverridden = "EV0602" Warning "an environment variable and the file disagree",
        "The file wins over the environment. Unset the variable, or leave the key to it, so that the next reader is not misled.";
    EnvironmentUnsupported = "EV0603" Error "an environment variable asks for what the file does not provide",
        "The variable asks for members of a network, and nothing names a token. Name one in network.token_file or by EDGEVPNTOKEN, or unset the variable.";

    NoVersion = "EV0701" Error "the version is missing",
        "A file without `version = 1` is taken for truncated: an empty file must never be a valid one. Add the line at the top.";
    UnsupportedVersion = "EV0702" Error "the version is not supported",
        "This program reads version 1 of the format. Write 1, or run the program that the file is meant for.";

    AboveMaxImpact = "EV0801" Error "a change costs more than `reload.max_impact` permits",
        "The change would cost more than reload.max_impact of the file in force permits, so nothing of it was applied. Raise max_impact in a change of its own, or restart the node.";
    NeedsRestart = "EV0802" Error "a change needs a restart",
        "These keys cannot change while the node runs. Set the old value again, or restart the node with this file.";
    ApplyFailed = "EV0803" Error "a change could not be applied",
        "The file is valid, and this machine cannot carry it out: an address is taken, a right is missing. Nothing was changed; remove the cause and run `edgevpn reload`.";
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
