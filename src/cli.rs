//! The commands: arguments in, text and an exit code out.
//!
//! Results go to standard output, everything about how it went to standard error. Exit codes are part of the contract with
//! scripts; each command lists its own.

mod explain;
mod find;
mod plan;
mod reload;
mod run;
mod schema;
mod status;
mod text;
mod token;
mod validate;

use crate::{
    config::{Diagnostic, Format, diagnostic::findings},
    telemetry::colour_wanted,
};
use clap::{Parser, Subcommand};
use std::{
    error::Error,
    future::Future,
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

/// A relay for libp2p peers that follows its configuration file while it runs.
#[derive(Debug, Parser)]
#[command(name = "edgevpn", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Explain(explain::Args),
    Reload(reload::Args),
    Schema(schema::Args),
    Status(status::Args),
    Plan(plan::Args),
    Token(token::Args),
    Validate(validate::Args),
}

/// Runs the command of this process's arguments. Wrong arguments end the process with 2, as every command means by it that it
/// could not do its work.
pub fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run(args) => run::run(args),
        Command::Explain(args) => asking(explain::run(args)),
        Command::Reload(args) => asking(reload::run(args)),
        Command::Schema(args) => schema::run(args),
        Command::Status(args) => asking(status::run(args)),
        Command::Plan(args) => asking(plan::run(args)),
        Command::Token(args) => token::run(args),
        Command::Validate(args) => validate::run(args),
    }
}

/// Runs a command that asks a node: one thread is enough for one question.
fn asking(command: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => complain(2, &format!("cannot start: {error}")),
    }
}

/// Prints a result. Whoever reads it may stop reading: that is no failure.
fn print(text: &str) {
    let _ = io::stdout().lock().write_all(text.as_bytes());
}

/// Says on standard error why there is no result.
fn complain(code: u8, message: &str) -> ExitCode {
    let _ = writeln!(io::stderr().lock(), "error: {message}");
    ExitCode::from(code)
}

/// An error and what caused it, unless it has said so itself.
fn why(error: &dyn Error) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |&error| error.source()) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(&format!(": {cause}"));
        }
    }
    text
}

/// Shows what is wrong with a file, on standard error.
fn complain_of(diagnostics: &[Diagnostic]) {
    let mut stderr = io::stderr().lock();
    let colour = colour_wanted(stderr.is_terminal());
    let _ = stderr.write_all(findings(diagnostics, Format::Human, colour).as_bytes());
}

/// How results look where standard output goes.
fn paint() -> text::Paint {
    text::Paint::new(colour_wanted(io::stdout().is_terminal()))
}

/// A result for programs.
fn json(value: &impl serde::Serialize) -> String {
    match serde_json::to_string_pretty(value) {
        Ok(text) => text + "\n",
        // Our own reports have string keys and finite numbers only.
        Err(error) => format!("{{\"error\": \"{error}\"}}\n"),
    }
}
