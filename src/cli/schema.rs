//! `edgevpn schema`: the JSON Schema of the configuration file.
//!
//! Exit codes: 0 printed or written · 2 could not write.

use std::{path::PathBuf, process::ExitCode};

use crate::config::schema::{self, Draft};

/// Print the JSON Schema of the configuration file, for editors and for checks without this program
///
/// An editor that reads `#:schema ./edgevpn.v1.schema.json` in the first line of a file completes and checks it.
#[derive(Debug, clap::Args)]
pub struct Args {
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

pub fn run(args: Args) -> ExitCode {
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
