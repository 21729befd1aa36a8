//! The schema, the types and the reference example say the same. Files that are generated are current:
//! `EDGEVPN_BLESS=1 cargo test --test it schema::` writes them anew.

use std::{collections::BTreeSet, fmt::Write, fs, path::Path};

use edgevpn::config::{
    Config, Diagnostic, ListFile, Source, Surroundings, class_of, parse,
    schema::{self, Draft},
};
use serde_json::Value;

const SCHEMA: &str = "schema/edgevpn.v1.schema.json";
const REFERENCE: &str = "examples/reference.toml";

/// What is left out by default: the reference shows it behind a `#` without a space.
const LEFT_OUT: &[&str] = &["network", "acl.reserve", "acl.bootstrap"];

/// Written into the tables of the reference that have no defaults.
const SAMPLES: &[(&str, &str)] = &[
    ("acl.test.address", "\"203.0.113.9\""),
    ("acl.test.deny", "[\"reserve\"]"),
];

#[test]
fn the_committed_schema_is_current() {
    current(SCHEMA, &schema::document(Draft::Draft07));
}

#[test]
fn the_reference_is_current() {
    current(REFERENCE, &reference());
}

#[test]
fn every_key_says_what_it_is_what_it_takes_and_what_it_costs() {
    let leaves = schema::leaves();
    assert!(leaves.len() > 50, "{} keys", leaves.len());
    for (path, leaf) in leaves {
        let text = |name: &str| leaf.get(name).and_then(Value::as_str).unwrap_or_default();
        assert!(!text("title").is_empty(), "{path} has no title");
        let description = text("description");
        let name = path.rsplit('.').next().expect("a name");
        assert!(
            description.contains(&format!("Example: `{name} = ")),
            "{path} has no example: {description}"
        );
        assert!(class_of(&path) >= edgevpn::config::Class::Live, "{path}");
        assert!(!text("x-edgevpn-reload").is_empty(), "{path} has no class");
        assert!(
            leaf.get("default").is_some() || is_required(&path),
            "{path} has neither a default nor must it be set"
        );
        assert!(is_bounded(leaf), "{path} takes anything: {leaf}");
    }
}

#[test]
fn the_example_of_every_key_is_valid() {
    for (path, leaf) in schema::leaves() {
        let description = leaf["description"].as_str().expect("a description");
        let example = description.split("Example: `").nth(1).expect("an example");
        let line = example.trim_end_matches('.').trim_end_matches('`');
        let table: toml::Table = line
            .parse()
            .unwrap_or_else(|error| panic!("{path}: {line}: {error}"));
        let value = serde_json::to_value(table.values().next()).expect("a value");
        let mut root = serde_json::Map::from_iter([("type".to_owned(), "object".into())]);
        root.insert("properties".to_owned(), serde_json::json!({ "x": leaf }));
        let valid = jsonschema::is_valid(&root.into(), &serde_json::json!({ "x": value }));
        assert!(valid, "{path}: {line} does not match its schema");
    }
}

#[test]
fn the_schema_has_no_null_and_no_reference() {
    fn walk(path: &str, node: &Value) {
        match node {
            Value::Null => panic!("{path} is null"),
            Value::Array(nodes) => nodes.iter().for_each(|node| walk(path, node)),
            Value::Object(nodes) => {
                for (key, node) in nodes {
                    assert!(!key.starts_with("$ref"), "{path} refers");
                    walk(&format!("{path}/{key}"), node);
                }
            }
            Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    for draft in [Draft::Draft07, Draft::Draft2020] {
        let schema: Value = serde_json::from_str(&schema::document(draft)).expect("JSON");
        assert_eq!(schema["$id"], "urn:edgevpn:schema:v1");
        walk("", &schema);
        assert!(
            jsonschema::meta::is_valid(&schema),
            "{draft:?} is no JSON Schema"
        );
    }
}

#[test]
fn the_reference_sets_every_key_and_no_other_to_its_default() {
    let file: Value = toml_as_json(&with_all(&read(REFERENCE)));
    let mut written = BTreeSet::new();
    collect("", &file, &mut written);
    let known: BTreeSet<String> = schema::leaves().into_iter().map(|(path, _)| path).collect();
    assert_eq!(written, known);

    let config = examined(Path::new(REFERENCE));
    let default = Config::from_toml("version = 1").expect("valid");
    for (key, effective) in default.keys.iter() {
        let set = config.keys.get(key).expect("set");
        assert_eq!(
            set.value, effective.value,
            "{key} is not at its default in the reference"
        );
    }
}

#[test]
fn every_example_is_valid_and_matches_the_schema() {
    let schema: Value = serde_json::from_str(&read(SCHEMA)).expect("JSON");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let mut count = 0;
    for entry in fs::read_dir("examples").expect("examples") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        count += 1;
        examined(&path);
        let json = toml_as_json(&read(&path));
        let errors: Vec<_> = validator
            .iter_errors(&json)
            .map(|error| error.to_string())
            .collect();
        assert!(errors.is_empty(), "{}: {errors:?}", path.display());
    }
    assert!(count >= 3, "{count} examples");
}

#[test]
fn a_value_survives_being_written_and_read_again() {
    let config = examined(Path::new(REFERENCE));
    for (key, effective) in config.keys.iter() {
        let Some((section, name)) = key.rsplit_once('.') else {
            continue;
        };
        let elsewhere = ["api.listen", "acl.bootstrap"];
        let in_table = ["peer", "acl.", "network", "vpn.routes"]
            .iter()
            .any(|table| section.starts_with(table));
        if in_table || elsewhere.contains(&key) {
            continue;
        }
        let value = &effective.value;
        let text = format!("version = 1\n[{section}]\n{name} = {value}\n");
        let again =
            Config::from_toml(&text).unwrap_or_else(|rejected| panic!("{text}: {rejected}"));
        assert_eq!(
            again.keys.get(key).expect("the key").value,
            effective.value,
            "{key}"
        );
    }
}

/// An editor must not mark what the program takes.
#[test]
fn the_schema_accepts_every_string_that_the_program_accepts() {
    let schema: Value = serde_json::from_str(&read(SCHEMA)).expect("JSON");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let token = read("tests/invalid/secrets/site.token");
    let mut accepted = 0;
    for (path, leaf) in schema::leaves() {
        let list = leaf["type"] == "array";
        let kind = if list {
            &leaf["items"]["x-edgevpn-kind"]
        } else {
            &leaf["x-edgevpn-kind"]
        };
        let in_table = ["peer.", "acl.list.", "acl.test.", "network.", "vpn.routes."]
            .iter()
            .any(|table| path.starts_with(table));
        if kind.is_null() || in_table {
            continue;
        }
        let mut taken = 0;
        for text in STRINGS {
            let value = if list {
                format!("[{text:?}]")
            } else {
                format!("{text:?}")
            };
            let file = format!("version = 1\nnetwork.token = {token:?}\n{path} = {value}\n");
            if Config::from_toml(&file).is_ok() {
                taken += 1;
                assert!(validator.is_valid(&toml_as_json(&file)), "{path} = {value}");
            }
        }
        assert!(taken >= 2, "{path} takes {taken} of the strings");
        accepted += taken;
    }
    assert!(accepted > 100, "{accepted}");
}

/// Every way to write a quantity or a name, and some that are none.
const STRINGS: &[&str] = &[
    "",
    "unlimited",
    "off",
    "0s",
    "1s",
    "30s",
    "90m",
    "1h30m",
    "1h0m0s",
    "2d",
    "1w",
    "500ms",
    "0B",
    "1B",
    "20MB",
    "64KiB",
    "1024KiB",
    "32MiB",
    "1GiB",
    "1TB",
    "1kB",
    "30/2m",
    "1/1h30m",
    "8kbit/s",
    "200Mbit/s",
    "25MiB/s",
    "10MB/s",
    "1000000B/s",
    "80000bit/s",
    "info",
    "trace",
    "warn,edgevpn::relay=debug",
    "libp2p_swarm=off,debug",
    "unix:api.sock",
    "unix:/run/edgevpn/a b.sock",
    "127.0.0.1:9477",
    "[::1]:9477",
    "0.0.0.0:0",
    "[fe80::1%3]:9477",
    "10.0.0.1",
    "10.0.0.0/8",
    "0.0.0.0/0",
    "::/0",
    "::1",
    "2001:db8::/32",
    "10.7.0.2/24",
    "fd00:1::11/64",
    "192.168.10.0/24",
    "::ffff:192.0.2.1",
    "::ffff:192.0.2.0/120",
    "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN",
    "f01720024080112203b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29",
    "000000001011100100000000000100100000010000000000100010010001000000011101101101010001001111011110011001110101101101010010000101101011000101010001110101000110100000010101001101111000011010111001101100101001100100001010101110111000111011110001001000011101001100011101011000000010010001010000110001011010110011101101000101001",
    "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
    "bafzbeie5745rpv2m6tjyuugywy4d5ewrqgqqhfnf445he3omzpjbx5xqxe",
    "k51qzi5uqu5dhb6l8spkdx7yxafegfkee5by8h7lmjh2ehc2sgg34z7c15vzqs",
    "/ip4/0.0.0.0/tcp/4501",
    "/ip4/127.0.0.1/tcp/0",
    "/ip6/::/udp/4501/quic-v1",
    "/ip6/::1/tcp/4502/ws",
    "/ip4/192.0.2.7/tcp/4501",
    "/dns/hub.example.org/tcp/4501",
    "/dns4/hub.example.org/udp/4501/quic-v1",
    "/dns6/hub.example.org/tcp/443/ws",
    "/ip4/0.0.0.0/tcp/04501",
    "/ip6/fe80::1/tcp/4501",
    "/ip6/::ffff:192.0.2.1/tcp/4501",
    "/ip4/192.0.2.7/tcp/4501/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN",
    "/dns4/hub.example.org/udp/4501/quic-v1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
    "/dnsaddr/bootstrap.example.org/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN",
    "*",
    "loud",
    "10 s",
    "/unix/x",
];

/// The configuration of a file without any finding.
fn examined(path: &Path) -> Config {
    let directory = path.parent().expect("a directory");
    let surroundings = Surroundings {
        directory: directory.to_owned(),
        ..Surroundings::default()
    };
    let source = Source {
        name: path.display().to_string(),
        bytes: read(path).into_bytes(),
    };
    let draft = parse(source, &surroundings);
    let lists = draft.list_files().into_iter().map(|path| ListFile {
        content: fs::read(&path).map_err(|error| error.to_string()),
        path,
    });
    let checked = {
        let lists = lists.collect();
        draft.resolve(lists)
    };
    let found: Vec<_> = checked.diagnostics.iter().map(Diagnostic::short).collect();
    assert!(found.is_empty(), "{found:#?}");
    checked.config.expect("valid")
}

fn current(path: &str, generated: &str) {
    if std::env::var_os("EDGEVPN_BLESS").is_some() {
        fs::write(path, generated).expect("writable");
    }
    assert!(
        fs::read_to_string(path).is_ok_and(|committed| committed == generated),
        "{path} is stale; write it anew with EDGEVPN_BLESS=1 cargo test --test it schema::"
    );
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path.as_ref())
        .unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

/// The reference with what it leaves out.
fn with_all(text: &str) -> String {
    let shown = |line: &str| {
        let hidden = line.strip_prefix('#');
        let hidden = hidden.filter(|line| !line.is_empty() && !line.starts_with([' ', ':']));
        hidden.unwrap_or(line).to_owned() + "\n"
    };
    text.lines().map(shown).collect()
}

fn toml_as_json(text: &str) -> Value {
    let table: toml::Table = text.parse().expect("TOML");
    serde_json::to_value(table).expect("JSON")
}

fn collect(path: &str, value: &Value, leaves: &mut BTreeSet<String>) {
    match value {
        Value::Object(table) => {
            for (key, value) in table {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                collect(&path, value, leaves);
            }
        }
        Value::Array(tables) if tables.iter().any(Value::is_object) => {
            tables.iter().for_each(|table| collect(path, table, leaves));
        }
        _ => {
            leaves.insert(path.to_owned());
        }
    }
}

fn is_required(path: &str) -> bool {
    let schema: Value = serde_json::from_str(&schema::document(Draft::Draft07)).expect("JSON");
    let mut node = &schema;
    let mut segments = path.split('.').peekable();
    while let Some(segment) = segments.next() {
        let table = if node.get("items").is_some() {
            &node["items"]
        } else {
            node
        };
        if segments.peek().is_none() {
            return table["required"]
                .as_array()
                .is_some_and(|keys| keys.iter().any(|key| key == segment));
        }
        node = &table["properties"][segment];
    }
    false
}

/// Whether a leaf says which values it takes: a range, choices, a length, a grammar.
fn is_bounded(leaf: &Value) -> bool {
    let has = |name: &str| leaf.get(name).is_some();
    match leaf["type"].as_str() {
        Some("integer") => has("minimum") && has("maximum"),
        Some("array") => has("maxItems"),
        Some("boolean") => true,
        Some("string") => has("pattern") || has("maxLength"),
        _ => has("oneOf"),
    }
}

/// Every key with its documentation and its default.
fn reference() -> String {
    let mut text = "#:schema ../schema/edgevpn.v1.schema.json\n#\n".to_owned();
    for line in [
        "Every key of an edgevpn configuration, with its default and, in brackets, what a change of it costs a running node.",
        "Sections and keys may be left out. Durations (\"500ms\", \"1h30m\", \"7d\"), sizes (\"64KiB\", \"20MB\"), rates (\"30/2m\") \
         and bandwidths (\"200Mbit/s\", \"25MiB/s\") are strings with a unit; without bound is \"unlimited\", never 0.",
        "Tables in double brackets have no default: what stands in them here is an example. What stands behind a # without a \
         space is left out by default, and shown with an example.",
    ] {
        comment(line, &mut text);
    }
    let schema: Value = serde_json::from_str(&schema::document(Draft::Draft07)).expect("JSON");
    table("", &schema, &mut text);
    text
}

fn table(path: &str, node: &Value, text: &mut String) {
    let properties = node["properties"].as_object().expect("properties");
    let inner = |node: &Value| {
        node.get("properties").is_some() || node["items"].get("properties").is_some()
    };
    for (key, leaf) in properties.iter().filter(|(_, node)| !inner(node)) {
        let path = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        text.push('\n');
        comment(&documentation(leaf), text);
        let mark = mark(&path);
        writeln!(text, "{mark}{key} = {}", sample(&path, leaf)).expect("written");
    }
    for (key, node) in properties.iter().filter(|(_, node)| inner(node)) {
        let path = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        text.push('\n');
        comment(node["description"].as_str().expect("a description"), text);
        if node.get("properties").is_some() {
            writeln!(text, "{}[{path}]", mark(&path)).expect("written");
            table(&path, node, text);
        } else {
            writeln!(text, "[[{path}]]").expect("written");
            table(&path, &node["items"], text);
        }
    }
}

fn mark(path: &str) -> &'static str {
    let left_out = LEFT_OUT.iter().any(|key| {
        path.strip_prefix(key)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    });
    if left_out { "#" } else { "" }
}

fn documentation(leaf: &Value) -> String {
    let text = |name: &str| leaf.get(name).and_then(Value::as_str);
    let mut words = text("description")
        .expect("a description")
        .split("\n\nExample:")
        .next()
        .expect("text")
        .to_owned();
    words = words
        .split(" Example:")
        .next()
        .expect("text")
        .replace("\n\n", " ");
    for choice in leaf["oneOf"].as_array().into_iter().flatten() {
        let meaning = choice["description"].as_str().expect("a meaning");
        write!(words, " {}: {}", choice["const"], meaning).expect("written");
    }
    match (text("x-edgevpn-minimum"), text("x-edgevpn-maximum")) {
        (Some(least), Some(most)) => write!(words, " From {least} to {most}."),
        (Some(least), None) => write!(words, " At least {least}."),
        _ => Ok(()),
    }
    .expect("written");
    if leaf["type"] == "integer" && leaf["minimum"] != leaf["maximum"] {
        write!(words, " From {} to {}.", leaf["minimum"], leaf["maximum"]).expect("written");
    }
    format!("{words} [{}]", text("x-edgevpn-reload").expect("a class"))
}

fn sample(path: &str, leaf: &Value) -> String {
    if let Some((_, sample)) = SAMPLES.iter().find(|(key, _)| *key == path) {
        return (*sample).to_owned();
    }
    let default = leaf.get("default").filter(|_| mark(path).is_empty());
    match default {
        // Strings, numbers and lists of them are written alike in JSON and TOML.
        Some(Value::Array(values)) => {
            let values: Vec<_> = values.iter().map(Value::to_string).collect();
            format!("[{}]", values.join(", "))
        }
        Some(default) => default.to_string(),
        None => {
            let example = leaf["description"].as_str().expect("a description");
            let line = example.split("Example: `").nth(1).expect("an example");
            let (_, value) = line
                .trim_end_matches('.')
                .trim_end_matches('`')
                .split_once(" = ")
                .expect("a value");
            value.to_owned()
        }
    }
}

/// A comment of at most 120 columns.
fn comment(words: &str, text: &mut String) {
    let mut line = "#".to_owned();
    for word in words.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > 120 {
            writeln!(text, "{line}").expect("written");
            line = "#".to_owned();
        }
        line.push(' ');
        line.push_str(word);
    }
    writeln!(text, "{line}").expect("written");
}
