//! `edgevpn plan`: what a file would change, against another file or against a running node.

use super::{complain, complain_of, find::Find, json, paint, print, text::*, why};
use crate::{
    api::{Candidate, Planned},
    config::{Class, Diagnostic, Format, diagnostic::findings},
    id::{Generation, parse_peer_id},
    plan::{Change, Entries, Plan},
    reload::read::{self, FILE_CAP},
};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

/// A plan resolves the file and looks at every circuit.
const DEADLINE: Duration = Duration::from_secs(60);

/// Columns for the widest key that others are aligned with.
const KEY: usize = 40;

/// So many entries are shown one by one; more are counted.
const NAMED: usize = 3;

/// Places that are named for entries that are counted.
const PLACES: usize = 6;

/// Show what a file would change, against another file or against a running node
///
/// Exit codes:
///   0  printed; with --exit-code: nothing changes
///   1  a file is invalid
///   2  could not run
///   3  with --exit-code: the costliest change is live
///   4  with --exit-code: it re-binds a listener, or joins another network
///   5  with --exit-code: it needs a restart
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    override_usage = "edgevpn plan [OPTIONS] [OLD] <NEW>"
)]
pub(super) struct Args {
    /// The file to plan; two files are compared without a node
    #[arg(value_name = "FILE", num_args = 1..=2, required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    find: Find,
    /// Resolve relative paths of NEW as if it were this file [default: the file of the node]
    #[arg(long = "as", value_name = "PATH")]
    as_path: Option<PathBuf>,
    /// Say the costliest class in the exit code
    #[arg(long)]
    exit_code: bool,
    /// Print the changes as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> ExitCode {
    let planned = match args.files.as_slice() {
        [old, new] => between(old, new),
        [new] => against_node(&args, new).await,
        // clap admits one or two.
        _ => return complain(2, "one or two files are compared"),
    };
    let (title, planned) = match planned {
        Ok(planned) => planned,
        Err(code) => return code,
    };
    let invalid = planned.diagnostics.iter().any(Diagnostic::is_error);
    if args.json {
        print(&json(&planned));
    } else if invalid {
        complain_of(&planned.diagnostics);
    } else {
        print(&lines(&title, &planned, paint()));
    }
    if invalid {
        return ExitCode::from(1);
    }
    if !args.exit_code {
        return ExitCode::SUCCESS;
    }
    ExitCode::from(match planned.plan.class() {
        None => 0,
        Some(Class::Live) => 3,
        Some(Class::Rebind | Class::Rejoin) => 4,
        Some(Class::Restart) => 5,
    })
}

type Titled = Result<(String, Planned), ExitCode>;

/// Both files, offline. An invalid one has no plan, only diagnostics.
fn between(old: &Path, new: &Path) -> Titled {
    let title = format!("{} → {}", old.display(), new.display());
    let (old, new) = (read::check(old, None), read::check(new, None));
    let (plan, diagnostics) = match (&old.config, &new.config) {
        (None, _) => (Plan::default(), old.diagnostics),
        (Some(_), None) => (Plan::default(), new.diagnostics),
        (Some(old), Some(config)) => (Plan::between(old, config), new.diagnostics),
    };
    let planned = Planned {
        generation: Generation::default(),
        plan,
        diagnostics,
        held_back: None,
        summary: new.summary,
    };
    Ok((title, planned))
}

/// The file against what a node has applied. The node reads the list files, and says what each change would do.
async fn against_node(args: &Args, new: &Path) -> Titled {
    let content = read::read(new, FILE_CAP).map_err(could_not)?;
    let client = args.find.client(DEADLINE).await.map_err(could_not)?;
    let as_path = args.as_path.as_deref().map(std::path::absolute).transpose();
    let candidate = Candidate {
        name: new.display().to_string(),
        text: String::from_utf8(content.bytes).map_err(could_not)?,
        as_path: as_path.map_err(could_not)?,
    };
    let planned = client.plan(&candidate).await.map_err(could_not)?;
    let generation = planned.generation;
    let title = format!(
        "{}: generation {generation} → {}",
        new.display(),
        generation.next()
    );
    Ok((title, planned))
}

fn could_not(error: impl std::error::Error) -> ExitCode {
    complain(2, &why(&error))
}

fn lines(title: &str, planned: &Planned, paint: Paint) -> String {
    let changes = &planned.plan.changes;
    let mut text = String::new();
    text.push_str(&findings(
        &planned.diagnostics,
        Format::Human,
        paint.colour(),
    ));
    if changes.is_empty() {
        return text + &format!("{title}: nothing changes\n");
    }
    text.push_str(&format!("{title}\n\n"));
    let widest = changes
        .iter()
        .map(|change| change.key.chars().count())
        .max()
        .unwrap_or(0)
        .min(KEY);
    for change in changes {
        let class = format!("{:<7}", change.class);
        let class = match change.class {
            Class::Live => paint.good(&class),
            Class::Rebind | Class::Rejoin => paint.warn(&class),
            Class::Restart => paint.bad(&class),
        };
        let column = 2 + 7 + 1 + widest + 2;
        text.push_str(&format!(
            "  {class} {:<widest$}  {}\n",
            change.key,
            wrapped(column, &difference(change))
        ));
        if let Some(effect) = &change.effect {
            text.push_str(&format!("{:column$}{effect}\n", ""));
        }
    }
    text.push('\n');
    if let Some(why) = &planned.held_back {
        text.push_str(&format!(
            "{}: {why}\n",
            paint.bad("a reload would not apply it")
        ));
    }
    match planned.summary.policy_tests {
        0 => {}
        tests => text.push_str(&format!("{} passed. ", count(tests as u64, "policy test"))),
    }
    text.push_str(match planned.plan.class() {
        Some(Class::Restart) => "What is marked restart is refused while the node runs.\n",
        _ => "Nothing needs a restart.\n",
    });
    text
}

/// `64 → 16`, or what came and went.
fn difference(change: &Change) -> Vec<String> {
    let (added, removed) = (&change.added, &change.removed);
    if added.total + removed.total > NAMED {
        let numbers = format!(
            "{} added, {} removed",
            count(added.total as u64, "entry"),
            removed.total
        );
        return vec![numbers, format!("({})", places(added, removed))];
    }
    if added.total + removed.total > 0 {
        let came = added
            .first
            .iter()
            .map(|item| format!("+ {}", entry(&item.entry)));
        let went = removed
            .first
            .iter()
            .map(|item| format!("- {}", entry(&item.entry)));
        return came.chain(went).collect();
    }
    match (&change.old, &change.new) {
        (Some(old), Some(new)) => vec![format!("{} → {}", value(old), value(new))],
        (None, Some(new)) => vec![format!("+ {}", value(new))],
        (Some(old), None) => vec![format!("- {}", value(old))],
        (None, None) => Vec::new(),
    }
}

/// Where entries stand: `allow.d/ops.txt:17`, and only `:18` for the next of the same file.
fn places(added: &Entries, removed: &Entries) -> String {
    let mut file = "";
    let mut places = Vec::new();
    for item in added.first.iter().chain(&removed.first).take(PLACES) {
        match item.origin.rsplit_once(':') {
            Some((same, line)) if same == file => places.push(format!(":{line}")),
            place => {
                file = place.map_or("", |(file, _)| file);
                places.push(item.origin.clone());
            }
        }
    }
    if added.total + removed.total > places.len() {
        places.push("…".to_owned());
    }
    places.join(", ")
}

/// Peer ids are cut, anything else stands as it is.
fn entry(entry: &str) -> String {
    match parse_peer_id(entry) {
        Ok(_) => short_peer(entry),
        Err(_) => entry.to_owned(),
    }
}

fn value(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => "\"\"".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
