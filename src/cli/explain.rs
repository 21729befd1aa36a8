//! `edgevpn explain`: what a diagnostic, a key or a decision means.

use super::{complain, find::Find, json, paint, print, text::*};
use crate::{
    acl::Operation,
    api::{Explanation, Otherwise},
    config::{
        Code, Severity,
        manual::{self, Page, Unknown},
    },
    id::parse_peer_id,
};
use std::{net::IpAddr, process::ExitCode, time::Duration};

/// A decision is made in microseconds; a node that takes longer is in trouble.
const DEADLINE: Duration = Duration::from_secs(10);

/// Explain a diagnostic, a key, or why a peer may or may not use the relay
///
/// Examples:
///   edgevpn explain EV0102
///   edgevpn explain relay.resources.max_data
///   edgevpn explain --why 12D3KooW… reserve
///
/// Exit codes:
///   0  explained
///   2  there is no such code or key, or no node answers
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Args {
    /// A code such as EV0102, a key or a section
    #[arg(
        value_name = "CODE|KEY",
        required_unless_present = "why",
        conflicts_with = "why"
    )]
    what: Option<String>,
    /// Ask a running node what it answers to this peer, and by which rule
    #[arg(long, num_args = 2, value_names = ["PEER", "reserve|connect"])]
    why: Option<Vec<String>>,
    /// Where the peer would come from, if not from where it is connected
    #[arg(long, value_name = "ADDRESS", requires = "why")]
    from: Option<IpAddr>,
    #[command(flatten)]
    find: Find,
    /// Print the answer of the node as JSON
    #[arg(long, requires = "why")]
    json: bool,
}

pub(super) async fn run(args: Args) -> ExitCode {
    match (&args.what, args.why.as_deref()) {
        (_, Some([peer, operation])) => why(&args, peer, operation).await,
        (Some(word), _) => what(word),
        (None, _) => complain(2, "name a code or a key, or ask with --why PEER reserve"),
    }
}

fn what(word: &str) -> ExitCode {
    if let Some(code) = manual::code(word) {
        print(&of_code(code));
        return ExitCode::SUCCESS;
    }
    match manual::key(word) {
        Ok(page) => {
            print(&of_key(&page));
            ExitCode::SUCCESS
        }
        Err(Unknown { meant }) if meant.is_empty() => complain(
            2,
            &format!("there is no code and no key {word:?}; `edgevpn schema` lists all keys"),
        ),
        Err(Unknown { meant }) => {
            let meant: Vec<_> = meant.iter().map(|key| format!("`{key}`")).collect();
            complain(
                2,
                &format!(
                    "there is no key {word:?}; meant may be {}",
                    meant.join(" or ")
                ),
            )
        }
    }
}

fn of_code(code: Code) -> String {
    let severity = match code.severity() {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    format!(
        "{code}  {severity}: {}\n\n{}",
        code.summary(),
        filled(code.remedy())
    )
}

fn of_key(page: &Page) -> String {
    let mut text = match page.below.is_empty() {
        true => format!("{}\n\n", page.path),
        false => format!("[{}]\n\n", page.path),
    };
    for paragraph in page.text.split("\n\n").filter(|words| !words.is_empty()) {
        text.push_str(&filled(paragraph));
    }
    text.push('\n');
    let mut fact = |label: &str, value: Option<&str>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            text.push_str(&row(label, &[value.to_owned()]));
        }
    };
    fact("value", Some(&page.expected));
    for (word, meaning) in &page.choices {
        fact("", Some(&format!("\"{word}\": {meaning}")));
    }
    if page.below.is_empty() {
        fact(
            "default",
            Some(page.default.as_deref().unwrap_or("none: it must be set")),
        );
        fact("change", Some(cost(page.class)));
    }
    fact("env", page.variable.as_deref());
    fact("example", page.example.as_deref());
    let widest = page.below.iter().map(|(name, _)| name.len()).max();
    for (name, title) in &page.below {
        text.push_str(&format!(
            "{name:<width$}  {title}\n",
            width = widest.unwrap_or(0)
        ));
    }
    text
}

fn cost(class: &str) -> &str {
    match class {
        "live" => "live: in force at once, and nothing is cut that is still allowed",
        "rebind" => "rebind: one listener is made anew, new before old",
        "rejoin" => "rejoin: the node leaves one network and joins the other",
        "restart" => "restart: refused while the node runs",
        other => other,
    }
}

/// Text in lines no longer than the screen.
fn filled(words: &str) -> String {
    let words: Vec<&str> = words.split_whitespace().collect();
    let mut text = String::new();
    let mut column = 0;
    for word in words {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > WIDTH {
            text.push('\n');
            column = 0;
        } else if column > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += length;
    }
    text + "\n"
}

async fn why(args: &Args, peer: &str, operation: &str) -> ExitCode {
    let peer = match parse_peer_id(peer) {
        Ok(peer) => peer,
        Err(error) => return complain(2, &format!("{peer}: {error}")),
    };
    let operation = match operation {
        "reserve" => Operation::Reserve,
        "connect" => Operation::Connect,
        other => return complain(2, &format!("{other:?} is neither reserve nor connect")),
    };
    let client = match args.find.client(DEADLINE).await {
        Ok(client) => client,
        Err(error) => return complain(2, &error.to_string()),
    };
    match client.explain(peer, operation, args.from).await {
        Ok(explanation) if args.json => print(&json(&explanation)),
        Ok(explanation) => print(&of_decision(&explanation, paint())),
        Err(error) => return complain(2, &error.to_string()),
    }
    ExitCode::SUCCESS
}

fn of_decision(why: &Explanation, paint: Paint) -> String {
    let may = match (why.admitted, why.enforced) {
        (true, _) => paint.good("may"),
        (false, true) => paint.bad("may not"),
        (false, false) => paint.warn("may, in shadow mode only,"),
    };
    let mut text = format!(
        "{} {may} {} on {} (generation {})\n",
        short_peer(&why.peer),
        why.operation,
        why.node,
        why.generation
    );
    let mut line = |label: &str, words: String| text.push_str(&format!("  {label:<12} {words}\n"));
    let rule = |origin: &str, key: &str, value: &Option<String>| match value {
        Some(value) => format!("{origin}   {key} = {value}"),
        None => format!("{origin}   {key}"),
    };
    let label = if why.admitted {
        "admitted by"
    } else {
        "refused by"
    };
    line(label, rule(&why.origin, &why.rule, &why.value));
    line("standing", format!("{}: {}", why.standing, why.because));
    if let Some(behind) = &why.otherwise {
        let Otherwise {
            admitted,
            rule: key,
            value,
            origin,
        } = behind;
        let verdict = if *admitted { "admitted" } else { "refused" };
        line(
            "otherwise",
            format!("{verdict} by {}", rule(origin, key, value)),
        );
    }
    let from = match why.addresses.first() {
        Some(address) => address.clone(),
        None => "nowhere: it is not connected directly".to_owned(),
    };
    let path = why.path.as_deref().unwrap_or("not connected");
    line("comes from", format!("{from} ({path})"));
    if let Some(left) = why.reserved_for_s {
        line("holds", format!("a reservation for another {}", span(left)));
    }
    if why.circuits > 0 {
        line("has", count(why.circuits.into(), "circuit"));
    }
    line(
        "seen",
        match &why.requests {
            None => "no request within the last hour".to_owned(),
            Some(requests) => format!(
                "{} within {}, the last {} ago ({}), answered {} {}",
                count(requests.count.into(), "request"),
                span(requests.within_s),
                span(requests.last_s),
                requests.operation,
                requests.status,
                requests.answer
            ),
        },
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{id::Generation, relay::admission::Requests};

    #[test]
    fn a_decision_names_its_rule_what_stands_behind_it_and_what_was_seen() {
        let why = Explanation {
            node: "edge-7".into(),
            generation: Generation(13),
            peer: "12D3KooWGRaABCDEF".into(),
            operation: "reserve".into(),
            enforced: true,
            rule: "acl.deny".into(),
            origin: "edgevpn.toml:52".into(),
            otherwise: Some(Otherwise {
                admitted: true,
                rule: "acl.reserve".into(),
                value: Some("\"members\"".into()),
                origin: "default".into(),
            }),
            standing: "member".into(),
            because: "heartbeat 12 s old".into(),
            addresses: vec!["198.51.100.4".into()],
            path: Some("direct".into()),
            requests: Some(Requests {
                count: 14,
                within_s: 3120,
                last_s: 40,
                operation: "reserve".into(),
                status: 202,
                answer: "PERMISSION_DENIED".into(),
            }),
            ..Explanation::default()
        };
        assert_eq!(
            of_decision(&why, Paint::new(false)),
            "12D3KooWGRaA… may not reserve on edge-7 (generation 13)\n  \
             refused by   edgevpn.toml:52   acl.deny\n  \
             standing     member: heartbeat 12 s old\n  \
             otherwise    admitted by default   acl.reserve = \"members\"\n  \
             comes from   198.51.100.4 (direct)\n  \
             seen         14 requests within 52 min, the last 40 s ago (reserve), answered 202 PERMISSION_DENIED\n"
        );
    }

    #[test]
    fn every_code_and_every_key_fits_a_terminal() {
        let keys = crate::config::schema::leaves()
            .into_iter()
            .map(|(path, _)| path);
        let pages = keys.chain(["acl".to_owned(), "network".to_owned()]);
        let pages = pages.map(|path| of_key(&manual::key(&path).expect(&path)));
        let codes = Code::ALL.iter().map(|code| of_code(*code));
        for text in pages.chain(codes) {
            let prose = text.split("\n\n").nth(1).unwrap_or_default();
            let widest = prose.lines().map(|line| line.chars().count()).max();
            assert!(widest.is_some_and(|widest| widest <= WIDTH), "{text}");
        }
    }
}
