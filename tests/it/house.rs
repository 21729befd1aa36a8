//! The house rules that a compiler does not check: which way imports go, what pure code may not touch, which
//! dependency versions are too old.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The modules of `src/`, top down. A module may use those of a later row, and `sideways` ones of its own row.
const FLOORS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["reload"],
    &["node"],
    &["net", "device", "task", "telemetry", "api"],
    &["plan"],
    &["config"],
    &["relay", "acl", "ledger", "wire", "overlay"],
    &["id"],
];

/// Uses inside one row that are meant: every IO module may spawn named tasks and count into metrics.
const SIDEWAYS: &[(&str, &str)] = &[
    ("net", "task"),
    ("device", "task"),
    ("api", "task"),
    ("net", "telemetry"),
    ("api", "telemetry"),
    ("relay", "acl"),
    ("ledger", "wire"),
];

/// From this row on everything is pure.
const FIRST_PURE: &str = "plan";

/// What pure code may not name, and what it takes instead.
const IMPURE: &[(&str, &str)] = &[
    ("tokio::", "futures belong to the edge"),
    ("std::fs", "text comes in as an argument"),
    ("std::env", "the environment comes in as `Surroundings`"),
    ("std::process", "exit codes belong to cli"),
    ("std::thread", "threads belong to the edge"),
    ("Instant::now", "`now` is an argument"),
    ("SystemTime", "`now` is an argument"),
    ("TcpStream", "sockets belong to net"),
    ("UdpSocket", "sockets belong to net"),
    ("notify::", "watching belongs to reload"),
    ("rand::", "randomness comes in as an argument"),
];

#[test]
fn imports_go_down_only() {
    let mut faults = Vec::new();
    for file in sources() {
        let Some(floor) = floor_of(&file.module) else {
            if file.module != "lib" {
                faults.push(format!(
                    "{}: module `{}` has no floor",
                    file.name, file.module
                ));
            }
            continue;
        };
        for (line, used) in file.uses() {
            if used == file.module {
                continue;
            }
            let Some(below) = floor_of(&used) else {
                continue;
            };
            let sideways = SIDEWAYS.contains(&(file.module.as_str(), used.as_str()));
            if below < floor || (below == floor && !sideways) {
                faults.push(format!(
                    "{}:{line}: `{}` may not use `{used}`",
                    file.name, file.module
                ));
            }
        }
    }
    assert!(
        faults.is_empty(),
        "imports go down only (see the map in src/lib.rs):\n{}",
        faults.join("\n")
    );
}

#[test]
fn the_core_is_pure() {
    let first = floor_of(FIRST_PURE).expect("a floor");
    let mut faults = Vec::new();
    for file in sources() {
        if floor_of(&file.module).is_none_or(|floor| floor < first) {
            continue;
        }
        for (number, line) in file.code() {
            for (word, instead) in IMPURE {
                if line.contains(word) {
                    faults.push(format!(
                        "{}:{number}: `{word}` in pure code: {instead}",
                        file.name
                    ));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn nothing_unfinished_is_committed() {
    let mut faults = Vec::new();
    for file in sources() {
        for (number, line) in file.code() {
            for word in ["todo!(", "unimplemented!(", "dbg!("] {
                if line.contains(word) {
                    faults.push(format!("{}:{number}: `{word}`", file.name));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_upstream_relay_server_is_not_used() {
    for file in sources() {
        for (number, line) in file.code() {
            assert!(
                !line.contains("libp2p::relay::Behaviour")
                    && !line.contains("libp2p::relay::Config"),
                "{}:{number}: the hop server is `net::relay`; libp2p's is here for its client only",
                file.name
            );
        }
    }
}

#[test]
fn locked_dependencies_are_above_their_floors() {
    let deny: toml::Table = read("deny.toml").parse().expect("deny.toml parses");
    let lock: toml::Table = read("Cargo.lock").parse().expect("Cargo.lock parses");
    let mut locked: BTreeMap<&str, Vec<[u64; 3]>> = BTreeMap::new();
    for package in lock["package"].as_array().expect("packages") {
        let version = version(package["version"].as_str().expect("a version"));
        locked
            .entry(package["name"].as_str().expect("a name"))
            .or_default()
            .push(version);
    }
    let rules = deny["bans"]["deny"].as_array().expect("bans.deny");
    assert!(rules.len() >= 10, "deny.toml has lost its floors");
    for rule in rules {
        let rule = rule["crate"].as_str().expect("crate:<version");
        let (name, floor) = rule.split_once(":<").expect("crate:<version");
        for found in locked.get(name).into_iter().flatten() {
            assert!(
                *found >= version(floor),
                "{name} {found:?} is below its floor {floor}"
            );
        }
    }
}

struct SourceFile {
    name: String,
    module: String,
    text: String,
}

impl SourceFile {
    /// Lines that are neither comments nor tests, with their numbers.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .take_while(|line| !line.starts_with("#[cfg(test)]") && *line != "#![cfg(test)]")
            .enumerate()
            .map(|(at, line)| (at + 1, line.split("//").next().unwrap_or("")))
    }

    /// The modules named by `crate::…`, one by one, also inside `crate::{…}`.
    fn uses(&self) -> Vec<(usize, String)> {
        let code: Vec<_> = self.code().collect();
        let mut found = Vec::new();
        for (at, (number, line)) in code.iter().enumerate() {
            for (start, _) in line.match_indices("crate::") {
                let rest = &line[start + "crate::".len()..];
                if let Some(group) = rest.strip_prefix('{') {
                    let tail: String = std::iter::once(group)
                        .chain(code[at + 1..].iter().map(|(_, line)| *line))
                        .take(40)
                        .collect();
                    found.extend(group_heads(&tail).into_iter().map(|name| (*number, name)));
                } else {
                    found.push((*number, ident(rest)));
                }
            }
        }
        found
    }
}

/// The first identifiers of a brace group's members: `a::{b, c}, d}` gives `a` and `d`.
fn group_heads(text: &str) -> Vec<String> {
    let (mut depth, mut heads, mut member) = (0, Vec::new(), String::new());
    for letter in text.chars() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.push(std::mem::take(&mut member)),
            _ if depth == 0 => member.push(letter),
            _ => {}
        }
    }
    heads.push(member);
    heads
        .iter()
        .map(|head| ident(head.trim()))
        .filter(|head| !head.is_empty())
        .collect()
}

fn ident(text: &str) -> String {
    text.chars()
        .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
        .collect()
}

fn floor_of(module: &str) -> Option<usize> {
    FLOORS.iter().position(|row| row.contains(&module))
}

fn sources() -> Vec<SourceFile> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut files) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("src is readable") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                files.push(source(&root, path));
            }
        }
    }
    assert!(files.len() > 8, "src has sources");
    files
}

fn source(root: &Path, path: PathBuf) -> SourceFile {
    let inside = path.strip_prefix(root).expect("below src");
    let first = inside
        .components()
        .next()
        .expect("a name")
        .as_os_str()
        .to_string_lossy();
    SourceFile {
        name: format!("src/{}", inside.display()),
        module: first.trim_end_matches(".rs").to_owned(),
        text: fs::read_to_string(&path).expect("a source is UTF-8"),
    }
}

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).expect(name)
}

fn version(text: &str) -> [u64; 3] {
    let core = text.split(['-', '+']).next().unwrap_or("");
    let mut parts = core.split('.').map(|part| part.parse().expect("a number"));
    std::array::from_fn(|_| parts.next().unwrap_or(0))
}
