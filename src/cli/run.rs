//! `edgevpn run`: the node.

use super::complain;
use crate::{
    reload::{Engine, OnInvalid, Options, StartFailure},
    telemetry::Log,
};
use std::{path::PathBuf, process::ExitCode};

/// Run a node from a configuration file, and follow the file
///
/// Exit codes: 0 stopped by SIGTERM or SIGINT, 69 an address or the state directory cannot be had, 77 a right is missing,
/// 78 the configuration or the key cannot be used.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// What to do when the file is invalid
    #[arg(long, value_enum, default_value_t = Invalid::Fail)]
    on_invalid: Invalid,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Invalid {
    /// Do not start
    Fail,
    /// Start from the last file that was applied
    Lkg,
}

pub(super) fn run(args: Args) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let (runtime, log) = match (runtime, Log::install()) {
        (Ok(runtime), Ok(log)) => (runtime, log),
        (Err(error), _) => return complain(69, &format!("cannot start: {error}")),
        (_, Err(error)) => return complain(69, &error.to_string()),
    };
    let options = Options {
        file: args.config,
        on_invalid: match args.on_invalid {
            Invalid::Fail => OnInvalid::Fail,
            Invalid::Lkg => OnInvalid::LastKnownGood,
        },
    };
    runtime.block_on(async {
        match Engine::start(options, log).await {
            Ok(engine) => {
                engine.run().await;
                ExitCode::SUCCESS
            }
            Err(failure) => {
                if let StartFailure::Invalid(checked) | StartFailure::NothingGood(checked) =
                    &failure
                {
                    for finding in &checked.diagnostics {
                        complain(0, &finding.short());
                    }
                }
                complain(failure.exit_code(), &failure.to_string())
            }
        }
    })
}
