//! `edgevpn run`: the node itself, from its first line to a clean stop.

use super::{complain, complain_of, print, why};
use crate::{
    api::NodeReport,
    reload::{Engine, OnInvalid, Options, StartFailure},
    telemetry::Log,
};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

/// A read of a disk that hangs must not keep a stopped node from ending.
const LEFTOVERS: Duration = Duration::from_secs(1);

/// Run a node that follows FILE until it is stopped
///
/// SIGHUP reads the file again. SIGTERM and SIGINT admit nobody any more and let circuits end;
/// a second one ends at once.
///
/// Exit codes:
///    0  stopped by SIGTERM or SIGINT
///   69  an address or the state directory cannot be had
///   77  a right is missing
///   78  the configuration or the key cannot be used
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Args {
    /// Configuration file
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// What to do when FILE is invalid at start
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
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return complain(69, &format!("cannot start threads: {error}")),
    };
    let code = runtime.block_on(serve(args));
    runtime.shutdown_timeout(LEFTOVERS);
    code
}

async fn serve(args: Args) -> ExitCode {
    let log = match Log::install() {
        Ok(log) => log,
        Err(error) => return complain(69, &why(&error)),
    };
    let options = Options {
        file: args.config.clone(),
        on_invalid: match args.on_invalid {
            Invalid::Fail => OnInvalid::Fail,
            Invalid::Lkg => OnInvalid::LastKnownGood,
        },
    };
    let engine = match Engine::start(options, log).await {
        Ok(engine) => engine,
        Err(failure) => return failed(&failure),
    };
    let status = engine.status().await;
    print(&welcome(&status.version, &status.node, &args.config));
    engine.run().await;
    ExitCode::SUCCESS
}

fn failed(failure: &StartFailure) -> ExitCode {
    match failure {
        StartFailure::Invalid(checked) | StartFailure::NothingGood(checked) => {
            complain_of(&checked.diagnostics);
        }
        StartFailure::Node(_) | StartFailure::Prepare(_) | StartFailure::Signals(_) => {}
    }
    complain(failure.exit_code(), &why(failure))
}

/// Who this is, where to reach it, and how to go on.
fn welcome(version: &str, node: &NodeReport, file: &Path) -> String {
    let key = match &node.new_key {
        Some(path) => format!("  (new key in {path})"),
        None => String::new(),
    };
    let mut text = format!("edgevpn {version}  {}{key}\n", node.peer_id);
    let addresses: Vec<&String> = node.announced.iter().chain(&node.listening).collect();
    if addresses.is_empty() {
        text.push_str("listens nowhere: set transport.listen\n");
    } else if node.relay.service {
        text.push_str("offers a relay at:\n");
    } else {
        text.push_str("offers no relay (`relay.service = false`); reachable at:\n");
    }
    for address in addresses {
        text.push_str(&format!("  {address}/p2p/{}\n", node.peer_id));
    }
    text + &format!(
        "edit {} and watch this terminal; stop with Ctrl-C\n",
        file.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_lines_say_who_where_and_how_to_go_on() {
        let mut node = NodeReport {
            peer_id: "12D3KooWJ1Ts".into(),
            new_key: Some("./.edgevpn/node.key".into()),
            listening: vec!["/ip4/127.0.0.1/tcp/4501".into()],
            ..NodeReport::default()
        };
        node.relay.service = true;
        assert_eq!(
            welcome("0.1.0", &node, Path::new("examples/relay.toml")),
            "edgevpn 0.1.0  12D3KooWJ1Ts  (new key in ./.edgevpn/node.key)\n\
             offers a relay at:\n  /ip4/127.0.0.1/tcp/4501/p2p/12D3KooWJ1Ts\n\
             edit examples/relay.toml and watch this terminal; stop with Ctrl-C\n"
        );
    }
}
