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
    filter::LevelFilter,
    fmt::MakeWriter,
    layer::SubscriberExt,
    reload::{self, Handle},
    util::SubscriberInitExt,
};

/// How loud the libraries are, unless the file names one. At `info` the swarm greets with a line that says less than ours;
/// gossipsub warns of each forged message, and so lets a stranger write the log.
const LIBRARIES: &str = "libp2p_swarm=warn,libp2p_gossipsub=error";

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
        let (log, layers) = Log::layers(Format::suited_to_stderr(), io::stderr);
        layers.try_init().map_err(|_| LogError::AlreadyInstalled)?;
        Ok(log)
    }

    /// A log that changes like the real one but writes nowhere: for nodes inside tests, of which a process has many.
    pub fn detached() -> Log {
        Log::layers(Format::Text, io::sink).0
    }

    fn layers<W>(format: Format, writer: W) -> (Log, impl tracing::Subscriber + Send + Sync)
    where
        W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
    {
        let (filter, handle) = reload::Layer::new(EnvFilter::new(format!("{LIBRARIES},info")));
        let format = Arc::new(line::Current::new(format));
        let colour = colour_wanted(io::stderr().is_terminal());
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(writer)
            // `Line` colours by itself. The field formatter must not: what it writes also ends up in JSON.
            .with_ansi(false)
            .event_format(Line::new(format.clone(), colour));
        let layers = tracing_subscriber::registry().with(filter).with(lines);
        let log = Log {
            filter: handle,
            format,
        };
        (log, layers)
    }

    /// Checks a `[log]` section. Nothing changes yet.
    pub fn prepare(&self, section: &config::Log) -> Result<PreparedLog, LogError> {
        let level = &section.level;
        let understood = |directives: &str| {
            EnvFilter::builder()
                .parse(directives)
                .map_err(|error| LogError::Level {
                    directives: level.clone(),
                    reason: error.to_string(),
                })
        };
        let mut filter = understood(level)?;
        if filter.max_level_hint() <= Some(LevelFilter::INFO) && !level.contains("libp2p") {
            filter = understood(&format!("{LIBRARIES},{level}"))?;
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Write, sync::Mutex};

    /// A writer that a test can read.
    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Page {
        fn take(&self) -> String {
            let bytes = std::mem::take(&mut *self.0.lock().unwrap());
            String::from_utf8(bytes).unwrap()
        }
    }

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Runs `body` with a log of its own that begins as text.
    fn logged(body: impl FnOnce(&Log, &Page)) {
        let page = Page::default();
        let writer = page.clone();
        let (log, layers) = Log::layers(Format::Text, move || writer.clone());
        tracing::subscriber::with_default(layers, || body(&log, &page));
    }

    fn section(level: &str, format: config::LogFormat) -> config::Log {
        config::Log {
            level: level.into(),
            format,
        }
    }

    #[test]
    fn a_line_of_text_is_time_level_message_and_fields() {
        logged(|_, page| {
            tracing::info!(generation = 13, took = "11 ms", keys = "", "config applied");
            let line = page.take();
            let (_, rest) = line.split_once(' ').unwrap();
            assert_eq!(
                rest,
                " INFO config applied generation=13 took=\"11 ms\" keys=\"\"\n"
            );
        });
    }

    #[test]
    fn what_a_peer_sends_cannot_write_to_the_terminal() {
        logged(|_, page| {
            let agent = "kubo\n\x1b[2J";
            tracing::info!(agent, quoted = %agent, "{agent}");
            let line = page.take();
            assert_eq!(line.matches('\n').count(), 1, "{line:?}");
            assert!(!line.contains('\x1b'), "{line:?}");
        });
    }

    #[test]
    fn a_line_of_json_is_one_object_and_no_field_shadows_another() {
        logged(|log, page| {
            log.commit(
                log.prepare(&section("info", config::LogFormat::Json))
                    .unwrap(),
            );
            tracing::warn!(
                level = "mine",
                errors = 2,
                ok = false,
                "config \"rejected\"\n"
            );
            let line = page.take();
            let read: serde_json::Value = serde_json::from_str(line.trim_end()).unwrap();
            assert_eq!(read["level"], "WARN");
            assert_eq!(read["field.level"], "mine");
            assert_eq!(read["errors"], 2);
            assert_eq!(read["ok"], false);
            assert_eq!(read["message"], "config \"rejected\"\n");
        });
    }

    #[test]
    fn the_format_changes_while_a_span_is_open() {
        logged(|log, page| {
            let span = tracing::info_span!("reload", trigger = "watch").entered();
            tracing::info!("before");
            log.commit(
                log.prepare(&section("info", config::LogFormat::Json))
                    .unwrap(),
            );
            tracing::info!("after");
            drop(span);
            let text = page.take();
            let (before, after) = text.split_once('\n').unwrap();
            assert!(before.contains("before in reload{trigger="), "{before}");
            let after: serde_json::Value = serde_json::from_str(after).unwrap();
            assert_eq!(after["spans"][0], "reload{trigger=\"watch\"}");
        });
    }

    #[test]
    fn the_level_follows_the_section_from_commit_on() {
        logged(|log, page| {
            let prepared = log
                .prepare(&section("warn", config::LogFormat::Text))
                .unwrap();
            tracing::info!("still");
            log.commit(prepared);
            tracing::info!("silent");
            tracing::warn!("loud");
            let text = page.take();
            assert!(text.contains("still") && text.contains("loud"), "{text}");
            assert!(!text.contains("silent"), "{text}");
        });
    }

    #[test]
    fn at_info_a_dependency_does_not_greet_and_who_asks_for_more_gets_it() {
        logged(|log, page| {
            let greet = || tracing::info!(target: "libp2p_swarm", "hello");
            greet();
            log.commit(
                log.prepare(&section("info", config::LogFormat::Text))
                    .unwrap(),
            );
            greet();
            assert_eq!(page.take(), "");
            for wordy in [
                "debug",
                "info,libp2p_swarm=info",
                "info,edgevpn::relay=trace",
            ] {
                log.commit(
                    log.prepare(&section(wordy, config::LogFormat::Text))
                        .unwrap(),
                );
                greet();
                assert!(page.take().contains("hello"), "{wordy}");
            }
        });
    }

    #[test]
    fn directives_that_are_none_are_named() {
        let wrong = Log::detached().prepare(&section("info,x=nonsense", config::LogFormat::Text));
        let error = wrong.unwrap_err().to_string();
        assert!(error.contains("\"info,x=nonsense\""), "{error}");
    }
}
