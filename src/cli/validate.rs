//! `edgevpn validate`: every check of a reload, offline and without privileges.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use crate::{
    config::{
        Checked, Format,
        diagnostic::{render, summary},
    },
    reload::read,
    telemetry::colour_wanted,
};

/// Check configuration files: all that a reload checks, offline and without privileges
///
/// Findings go to standard error, in every other format than human to standard output.
///
/// Exit codes:
///   0  every file is valid
///   1  a file is invalid; with --deny warnings: or warned about
///   2  could not run
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Args {
    /// Files of any name; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Resolve relative paths and list files as if the file lay here
    #[arg(long = "as", value_name = "PATH")]
    place: Option<PathBuf>,
    /// Fail on warnings too
    #[arg(long, value_enum, value_name = "WHAT")]
    deny: Option<Deny>,
    /// How to report [default: human, or github where GITHUB_ACTIONS=true]
    #[arg(long, value_enum)]
    format: Option<FormatName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Deny {
    Warnings,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum FormatName {
    /// With the line and a caret
    Human,
    /// One line each: `file:line:col: error[EV0102]: …`
    Short,
    /// One document
    Json,
    /// Annotations of a workflow run
    Github,
}

pub(super) fn run(args: Args) -> ExitCode {
    let format = match args.format {
        Some(FormatName::Human) => Format::Human,
        Some(FormatName::Short) => Format::Short,
        Some(FormatName::Json) => Format::Json,
        Some(FormatName::Github) => Format::Github,
        None if runs_on_github() => Format::Github,
        None => Format::Human,
    };
    if args
        .files
        .iter()
        .filter(|file| file.as_os_str() == "-")
        .count()
        > 1
    {
        return super::complain(2, "standard input can be read once only");
    }
    let checked: Vec<Checked> = args
        .files
        .iter()
        .map(|file| read::check(file, args.place.as_deref()))
        .collect();
    report(&checked, format);
    let failed = |checked: &Checked| {
        checked.config.is_none()
            || (args.deny == Some(Deny::Warnings) && !checked.diagnostics.is_empty())
    };
    if checked.iter().any(failed) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Findings for people go to standard error and the good news to standard output; what programs read is a result.
fn report(checked: &[Checked], format: Format) {
    if format != Format::Human {
        super::print(&render(checked, format, false));
        return;
    }
    let colour = colour_wanted(io::stderr().is_terminal());
    for file in checked {
        if file.diagnostics.is_empty() {
            super::print(&format!("{}\n", summary(file)));
        } else {
            let text = render(std::slice::from_ref(file), format, colour);
            let _ = io::stderr().lock().write_all(text.as_bytes());
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "the command line is where the environment enters"
)]
fn runs_on_github() -> bool {
    std::env::var("GITHUB_ACTIONS").is_ok_and(|value| value == "true")
}
