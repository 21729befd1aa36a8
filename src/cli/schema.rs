//! `edgevpn schema`: the JSON Schema of the configuration file.

use std::{path::PathBuf, process::ExitCode};

use crate::config::schema::{self, Draft};

/// Print the JSON Schema of the configuration file, for editors and for checks without this program
///
/// An editor completes and checks a file that begins with: #:schema ./edgevpn.v1.schema.json
///
/// Exit codes:
///   0  printed or written
///   2  could not write
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Args {
    /// Dialect of JSON Schema
    #[arg(long, value_enum, default_value = "07", value_name = "DRAFT")]
    draft: Dialect,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Dialect {
    /// What editors understand
    #[value(name = "07")]
    Draft07,
    #[value(name = "2020-12")]
    Draft2020,
}

pub(super) fn run(args: Args) -> ExitCode {
    let document = schema::document(match args.draft {
        Dialect::Draft07 => Draft::Draft07,
        Dialect::Draft2020 => Draft::Draft2020,
    });
    match args.output {
        None => super::print(&document),
        Some(path) => {
            if let Err(error) = std::fs::write(&path, document) {
                return super::complain(2, &format!("cannot write {}: {error}", path.display()));
            }
        }
    }
    ExitCode::SUCCESS
}
