//! `edgevpn token`: makes the token of a new network, and shows what a token says without showing its secrets.
#![allow(
    clippy::disallowed_methods,
    reason = "asks the clock when a token rotates next"
)]

use super::text;
use crate::{
    id::UnixTime,
    reload::read,
    wire::{Rotation, Token, value::heartbeat},
};
use clap::Subcommand;
use std::{
    io::{self, IsTerminal, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::SystemTime,
};

/// Make the token of a new network, or look at one
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    New(New),
    Inspect(Inspect),
}

/// Make the token of a new network
///
/// Whoever has it is a member: keep it like a key. Programs of EdgeVPN take it as it is.
///
/// Exit codes:
///   0  printed or written
///   2  could not write, or the file exists
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
struct New {
    /// How long topics, keys and the meeting point last, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 360, value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    interval: u64,
    /// Write to this new file, for this user only, instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Show what a token says: its fingerprint, when it rotates, how long its secrets are
///
/// The fingerprint names the network in logs, status and plans. Secrets are shown only with --secrets.
///
/// Exit codes:
///   0  shown
///   1  not a token
///   2  could not read
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
struct Inspect {
    /// A file with a token or the YAML inside it; `-` is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Show the secrets too
    #[arg(long)]
    secrets: bool,
    /// Print the YAML and nothing else; needs --secrets
    #[arg(long, requires = "secrets")]
    yaml: bool,
    /// Print the token in one line and nothing else; needs --secrets
    #[arg(long, requires = "secrets", conflicts_with = "yaml")]
    base64: bool,
}

pub(super) fn run(args: Args) -> ExitCode {
    match args.command {
        Command::New(new) => make(&new),
        Command::Inspect(inspect) => show(&inspect),
    }
}

fn make(args: &New) -> ExitCode {
    let mut generator = rand::rng();
    let token = Token::generate(args.interval, |bytes| {
        rand::RngCore::fill_bytes(&mut generator, bytes);
    });
    let line = token.to_base64() + "\n";
    let Some(path) = &args.output else {
        super::print(&line);
        return ExitCode::SUCCESS;
    };
    match write_new(path, &line) {
        Ok(()) => {
            let fingerprint = token.fingerprint();
            super::print(&format!(
                "{}: the token of the new network {fingerprint}\n",
                path.display()
            ));
            ExitCode::SUCCESS
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => super::complain(
            2,
            &format!(
                "{} exists; a token is never overwritten: name another file",
                path.display()
            ),
        ),
        Err(error) => super::complain(2, &format!("cannot write {}: {error}", path.display())),
    }
}

/// Written beside its place and linked into it, so that nobody ever sees half a token. Mode 0600.
fn write_new(path: &Path, line: &str) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut beside = tempfile::Builder::new()
        .prefix(".token.")
        .tempfile_in(folder)?;
    beside.write_all(line.as_bytes())?;
    beside.as_file().sync_all()?;
    beside
        .persist_noclobber(path)
        .map_err(|error| error.error)?;
    Ok(())
}

fn show(args: &Inspect) -> ExitCode {
    let name = match args.file.to_str() {
        Some("-") => "standard input".to_owned(),
        _ => args.file.display().to_string(),
    };
    let bytes = match read_bytes(&args.file) {
        Ok(bytes) => bytes,
        Err(reason) => return super::complain(2, &reason),
    };
    let token = match Token::parse(&bytes) {
        Ok(token) => token,
        Err(error) => return super::complain(1, &format!("{name}: {error}")),
    };
    if args.yaml {
        super::print(&token.to_yaml());
    } else if args.base64 {
        super::print(&(token.to_base64() + "\n"));
    } else {
        super::print(&summary(&token, now()));
        if args.secrets {
            super::print(&format!("\n{}", token.to_yaml()));
        }
    }
    if let Some(mode) = open_to_others(&args.file) {
        let _ = writeln!(
            io::stderr().lock(),
            "warning: {name} is readable by others (mode {mode:o}); run: chmod 600 {name}"
        );
    }
    ExitCode::SUCCESS
}

/// The most bytes that are read of a file: more than any token has, so that its size can be complained about.
const CAP: u64 = 128 * 1024;

fn read_bytes(file: &Path) -> Result<Vec<u8>, String> {
    if file.as_os_str() != "-" {
        return match read::read(file, CAP) {
            Ok(content) => Ok(content.bytes),
            Err(error) => Err(error.to_string()),
        };
    }
    if io::stdin().is_terminal() {
        let _ = writeln!(io::stderr().lock(), "waiting for a token, then Ctrl-D");
    }
    let mut bytes = Vec::new();
    io::stdin()
        .lock()
        .take(CAP)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("cannot read standard input: {error}"))?;
    Ok(bytes)
}

/// The mode of a token file that others may read.
fn open_to_others(file: &Path) -> Option<u32> {
    if file.as_os_str() == "-" {
        return None;
    }
    let mode = file.metadata().ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0).then_some(mode)
}

fn now() -> UnixTime {
    UnixTime(
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default(),
    )
}

fn summary(token: &Token, now: UnixTime) -> String {
    let window = token.window(now);
    let mut text = format!("network     {}\n", token.fingerprint());
    let mut row = |label: &str, value: String| {
        text.push_str(&format!("{label:<12}{value}\n"));
    };
    row(
        "topic, key",
        turns(&token.crypto, token.next_rotation(now), now),
    );
    row(
        "rendezvous",
        match token.next_rendezvous(now) {
            Some(next) => turns(&token.dht, next, now),
            None => "never changes".to_owned(),
        },
    );
    row(
        "window",
        format!("{} (topic {})", window.0, token.topic(window)),
    );
    row(
        "messages",
        format!("at most {}", text::bytes(token.max_message_size)),
    );
    let length = |secret: &str| secret.chars().count();
    row(
        "secrets",
        format!(
            "key {}, room {}, rendezvous key {}, rendezvous {}, mdns {} characters",
            length(&token.crypto.key),
            length(&token.room),
            length(&token.dht.key),
            length(&token.rendezvous),
            length(&token.mdns)
        ),
    );
    row(
        "kept",
        format!(
            "{} of the text behind topic and key, {} of the rendezvous",
            length_kept(&token.crypto),
            length_kept(&token.dht)
        ),
    );
    text
}

fn turns(rotation: &Rotation, next: UnixTime, now: UnixTime) -> String {
    let last = UnixTime::from_secs(next.as_secs().saturating_sub(rotation.interval));
    format!(
        "every {}: since {}, until {} ({} left)",
        text::span(rotation.interval),
        calendar(last),
        calendar(next),
        text::span(next.since(now).as_secs())
    )
}

fn calendar(time: UnixTime) -> String {
    heartbeat(time).trim_matches('"').to_owned()
}

fn length_kept(rotation: &Rotation) -> String {
    match rotation.length {
        0 => "the default part".to_owned(),
        length => text::count(length as u64, "character"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_tells_when_a_token_rotates_and_no_secret() {
        let mut byte = 0_u8;
        let token = Token::generate(360, |bytes| {
            for to in bytes {
                *to = byte;
                byte = byte.wrapping_add(37);
            }
        });
        let now = UnixTime::from_secs(1_785_931_260);
        let shown = summary(&token, now);
        assert!(
            shown.contains(
                "topic, key  every 6 min: since 2026-08-05T12:00:00Z, until 2026-08-05T12:06:00Z (5 min left)\n"
            ),
            "{shown}"
        );
        assert!(shown.starts_with(&format!("network     {}\n", token.fingerprint())));
        for secret in [
            &token.crypto.key,
            &token.dht.key,
            &token.room,
            &token.rendezvous,
            &token.mdns,
        ] {
            assert!(!shown.contains(secret.as_str()), "{shown}");
        }
        assert!(
            shown
                .lines()
                .all(|line| line.chars().count() <= text::WIDTH)
        );
    }
}
