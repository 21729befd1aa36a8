//! `[acl]` with its lists and tests: compiled, tried out, and asked for entries that have no effect.

use std::{path::Path, sync::Arc};

use super::{
    ListFile, Summary,
    diagnostic::{Code, Diagnostic, Location},
    document::Text,
    file::{AudienceFile, ListFile as ListTable, ModeFile, OperationFile},
    keys::Origins,
    list::{self, List},
    names::PeerOrNetwork,
    resolve::{View, action},
};
use crate::{
    acl::{
        Acl, Action, Audience, Entries, Entry, FailedTest, Mode, Operation, Rules, Subject, Test,
    },
    id::Origin,
};

/// Allow entries without effect that are reported one by one.
const MOST_INEFFECTIVE: usize = 20;

pub struct Policy {
    pub acl: Acl,
    pub diagnostics: Vec<Diagnostic>,
    /// All but its keys.
    pub summary: Summary,
}

/// Compiles the access rules. Unless the rest of the file is `sound`, tests are not run: they might fail for what is
/// already reported.
pub fn compile(origins: &Origins<'_>, directory: &Path, files: &[ListFile], sound: bool) -> Policy {
    let view = origins.view;
    let access = &view.file.acl;
    let mut found = Vec::new();
    let mut entries = Entries::default();
    inline(
        origins,
        Action::Allow,
        "acl.allow",
        &access.allow,
        &mut entries,
    );
    inline(
        origins,
        Action::Deny,
        "acl.deny",
        &access.deny,
        &mut entries,
    );
    let mut list_entries = 0;
    for (at, table) in access.list.iter().enumerate() {
        match content(directory, table, files) {
            Ok(bytes) => {
                let list = List {
                    name: table.name.as_str().into(),
                    file: shown(view.text, table),
                    action: action(table.action),
                    bytes,
                };
                list_entries += list.read(&mut entries, &mut found);
            }
            Err(why) => found.push(unreadable(view, at, table, why)),
        }
    }
    let sound = sound && !found.iter().any(Diagnostic::is_error);
    let acl = Acl::compile(Rules {
        reserve: audience(access.reserve),
        connect: audience(access.connect),
        reserve_origin: origins.of("acl.reserve"),
        connect_origin: origins.of("acl.connect"),
        bootstrap_origin: origins.of("acl.bootstrap"),
        mode: match access.mode {
            ModeFile::Enforce => Mode::Enforce,
            ModeFile::Shadow => Mode::Shadow,
        },
        entries,
        tests: tests(origins),
    });
    if sound {
        found.extend(
            acl.run_tests()
                .iter()
                .map(|failed| test_failed(view, failed)),
        );
        found.extend(ineffective(view, &acl, directory, files));
    }
    let summary = Summary {
        keys: 0,
        list_files: access.list.len(),
        list_entries,
        policy_tests: access.test.len(),
    };
    Policy {
        acl,
        diagnostics: found,
        summary,
    }
}

fn inline(
    origins: &Origins<'_>,
    action: Action,
    path: &str,
    subjects: &[PeerOrNetwork],
    entries: &mut Entries,
) {
    for (at, subject) in subjects.iter().enumerate() {
        let origin = origins.of(&format!("{path}[{at}]"));
        entries.push(
            action,
            Entry {
                subject: subject.0,
                list: None,
                origin,
            },
        );
    }
}

fn tests(origins: &Origins<'_>) -> Vec<Test> {
    let tests = origins.view.file.acl.test.iter().enumerate();
    tests
        .map(|(at, test)| Test {
            name: test.name.clone(),
            peer: test.peer.0,
            address: test.address.0,
            member: test.member,
            allow: test.allow.iter().copied().map(operation).collect(),
            deny: test.deny.iter().copied().map(operation).collect(),
            origin: origins.of(&format!("acl.test[{at}]")),
        })
        .collect()
}

pub fn operation(operation: OperationFile) -> Operation {
    match operation {
        OperationFile::Reserve => Operation::Reserve,
        OperationFile::Connect => Operation::Connect,
    }
}

fn audience(audience: AudienceFile) -> Audience {
    match audience {
        AudienceFile::Members => Audience::Members,
        AudienceFile::Listed => Audience::Listed,
        AudienceFile::Anyone => Audience::Anyone,
    }
}

fn content<'a>(
    directory: &Path,
    table: &ListTable,
    files: &'a [ListFile],
) -> Result<&'a [u8], &'a str> {
    let path = directory.join(&table.file);
    match files
        .iter()
        .find(|file| file.path == path)
        .map(|file| &file.content)
    {
        Some(Ok(bytes)) => Ok(bytes),
        Some(Err(why)) => Err(why),
        None => Err("it was not read"),
    }
}

/// The path of a list file as the operator would open it from where the configuration file was named.
fn shown(text: &Text, table: &ListTable) -> Arc<str> {
    let beside = Path::new(&*text.name).parent().unwrap_or(Path::new(""));
    beside.join(&table.file).display().to_string().into()
}

fn unreadable(view: View<'_>, at: usize, table: &ListTable, why: &str) -> Diagnostic {
    let path = format!("acl.list[{at}].file");
    let diagnostic =
        Diagnostic::new(Code::ListUnreadable, format!("the list `{}` cannot be read", table.name))
            .key(&path)
            .note(why)
            .help("correct the path (it starts at the directory of this file) or its permissions, or remove the list");
    match view.index.spot(&path) {
        Some(spot) => diagnostic.at(view.text.label(spot.value.clone(), "cannot be read")),
        None => diagnostic,
    }
}

fn test_failed(view: View<'_>, failed: &FailedTest) -> Diagnostic {
    let at = view
        .file
        .acl
        .test
        .iter()
        .position(|test| test.name == failed.name)
        .unwrap_or_default();
    let (wanted, got) = if failed.decision.admit {
        ("deny", "allowed")
    } else {
        ("allow", "denied")
    };
    let path = format!("acl.test[{at}].{wanted}");
    let diagnostic = Diagnostic::new(
        Code::TestFailed,
        format!(
            "the policy test {:?} fails: {} is {got}",
            failed.name, failed.operation
        ),
    )
    .key(&path)
    .note(format!("decided by {}", failed.decision.rule))
    .help("correct the policy, or the test if the policy is meant");
    match view.index.spot(&path) {
        Some(spot) => diagnostic.at(view.text.label(
            spot.value.clone(),
            format!("the test wants {wanted}, the policy says {got}"),
        )),
        None => diagnostic,
    }
}

fn ineffective(view: View<'_>, acl: &Acl, directory: &Path, files: &[ListFile]) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for (allow, deny) in acl.ineffective().take(MOST_INEFFECTIVE + 1) {
        if found.len() == MOST_INEFFECTIVE {
            let message = format!("more than {MOST_INEFFECTIVE} allow entries have no effect");
            found.push(Diagnostic::new(Code::AllowIneffective, message).in_file(&*view.text.name));
            break;
        }
        let key = match &deny.list {
            Some(name) => format!("acl.list.{name}"),
            None => "acl.deny".to_owned(),
        };
        let mut diagnostic =
            Diagnostic::new(Code::AllowIneffective, "this allow entry has no effect")
                .key(match &allow.list {
                    Some(name) => format!("acl.list.{name}"),
                    None => "acl.allow".to_owned(),
                })
                .help("remove the entry, or the deny entry if it is too wide");
        let label = format!("denied by {} (`{key}`), and deny wins", deny.origin);
        diagnostic = match place(view, &allow, directory, files) {
            Some(location) => diagnostic.at(Location { label, ..location }),
            None => diagnostic.note(label),
        };
        found.push(diagnostic);
    }
    found
}

/// Where an allow entry stands.
fn place(view: View<'_>, entry: &Entry, directory: &Path, files: &[ListFile]) -> Option<Location> {
    let Origin::File { file, line } = &entry.origin else {
        return None;
    };
    let Some(name) = &entry.list else {
        let same = |subject: &Subject| *subject == entry.subject;
        let mut entries = view.file.acl.allow.iter().enumerate();
        return entries.find_map(|(at, subject)| {
            let spot = view.index.spot(&format!("acl.allow[{at}]"))?;
            let here = same(&subject.0) && view.text.line(spot.value.start) == *line;
            here.then(|| view.text.location(spot.value.clone()))
        });
    };
    let table = view.file.acl.list.iter().find(|list| list.name == **name)?;
    list::place(file, content(directory, table, files).ok()?, *line)
}
