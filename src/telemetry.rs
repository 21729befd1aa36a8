//! What the program tells an operator while it runs: log lines on standard error, as text or as JSON.
//!
//! Level and format follow `[log]` live. A new filter is compiled in [`Log::prepare`], which can fail, and put in place by
//! [`Log::commit`], which cannot.

mod line;

use crate::config;
use line::Line;
use std::{
    io::{self, IsTerminal},
    sync::Arc,
};
use tracing_subscriber::{
    EnvFilter, Registry,
    layer::SubscriberExt,
    reload::{self, Handle},
    util::SubscriberInitExt,
};

/// The log of this process. Clones are the same log.
#[derive(Clone)]
pub struct Log {
    filter: Handle<EnvFilter, Registry>,
    format: Arc<line::Current>,
}

/// A checked `[log]` section, not in force yet.
#[derive(Debug)]
pub struct PreparedLog {
    filter: EnvFilter,
    format: Format,
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For eyes: time, level, message, `key=value`.
    Text,
    /// For machines: one object a line.
    Json,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(
        "log level \"{directives}\" is not understood: {reason}; write for example \"info,edgevpn::relay=debug\""
    )]
    Level { directives: String, reason: String },
    #[error("the log of this process is already set up")]
    AlreadyInstalled,
}

impl Log {
    /// Starts logging to standard error at `info`, in the format that suits it, until a configuration says otherwise.
    /// Once a process.
    pub fn install() -> Result<Log, LogError> {
        let (log, layers) = Log::layers(Format::suited_to_stderr());
        layers.try_init().map_err(|_| LogError::AlreadyInstalled)?;
        Ok(log)
    }

    /// A log that changes like the real one but writes nowhere: for nodes inside tests, of which a process has many.
    pub fn detached() -> Log {
        Log::layers(Format::Text).0
    }

    fn layers(format: Format) -> (Log, impl tracing::Subscriber + Send + Sync) {
        let (filter, handle) = reload::Layer::new(EnvFilter::new("info"));
        let format = Arc::new(line::Current::new(format));
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(false) // `Line` colours by itself; the field formatter must not, its text also ends up in JSON
            .event_format(Line::new(
                format.clone(),
                colour_wanted(io::stderr().is_terminal()),
            ));
        let layers = tracing_subscriber::registry().with(filter).with(lines);
        (
            Log {
                filter: handle,
                format,
            },
            layers,
        )
    }

    /// Checks a `[log]` section. Nothing changes yet.
    pub fn prepare(&self, section: &config::Log) -> Result<PreparedLog, LogError> {
        let filter = EnvFilter::builder()
            .parse(&section.level)
            .map_err(|error| LogError::Level {
                directives: section.level.clone(),
                reason: error.to_string(),
            })?;
        let format = match section.format {
            config::LogFormat::Auto => Format::suited_to_stderr(),
            config::LogFormat::Text => Format::Text,
            config::LogFormat::Json => Format::Json,
        };
        Ok(PreparedLog { filter, format })
    }

    /// Puts a prepared section in force for every line from here on.
    pub fn commit(&self, prepared: PreparedLog) {
        // Fails only when the subscriber is gone: nobody is listening then, and nothing is lost.
        let _ = self.filter.reload(prepared.filter);
        self.format.set(prepared.format);
    }
}

impl Format {
    fn suited_to_stderr() -> Format {
        if io::stderr().is_terminal() {
            Format::Text
        } else {
            Format::Json
        }
    }
}

/// Colour only on a terminal, and not for those who said no (<https://no-color.org>: set and not empty).
#[allow(
    clippy::disallowed_methods,
    reason = "the terminal's wish, not configuration"
)]
pub fn colour_wanted(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
