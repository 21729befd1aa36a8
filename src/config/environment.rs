//! What the environment contributes: values for keys that the file leaves unset, under the names EdgeVPN documents, and
//! the directories of state and sockets.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::{
    Surroundings,
    check::{Tree, beyond},
    diagnostic::{Code, Diagnostic},
    document::Text,
    names::TokenText,
    schema,
    shape::Shape,
};

/// Variables and the keys they fill: defaults < environment < file.
const VARIABLES: &[(&str, &str)] = &[
    ("EDGEVPN_RELAY_SERVICE", "relay.service"),
    (NETWORK_ONLY, "acl.reserve"),
    ("EDGEVPN_RELAY_SERVICE_ACL_REFRESH", "acl.refresh"),
    ("EDGEVPN_RELAY_MAX_DATA", "relay.resources.max_data"),
    ("EDGEVPN_RELAY_MAX_DURATION", "relay.resources.max_duration"),
    ("EDGEVPN_RELAY_MAX_CIRCUITS", "relay.resources.max_circuits"),
    (
        "EDGEVPN_RELAY_RESERVATION_TTL",
        "relay.resources.reservation_ttl",
    ),
    ("EDGEVPN_RELAY_BUFFER_SIZE", "relay.resources.buffer_size"),
];

/// The token itself, for a file that names none.
pub const TOKEN: &str = "EDGEVPNTOKEN";

/// True: members of a network only. False: anyone.
const NETWORK_ONLY: &str = "EDGEVPN_RELAY_SERVICE_NETWORK_ONLY";

/// Key paths that the environment fills, with the variable.
pub type Filled = BTreeMap<&'static str, &'static str>;

/// Fills unset keys of the tree.
pub fn fill(tree: &mut Tree, text: &Text, surroundings: &Surroundings) -> Filled {
    let mut filled = Filled::new();
    fill_token(tree, surroundings, &mut filled);
    for (variable, key) in VARIABLES {
        let Some(written) = surroundings
            .env
            .get(*variable)
            .filter(|value| !value.is_empty())
        else {
            continue;
        };
        let node = schema::leaf(key).unwrap_or(&Value::Null);
        let value = match read(variable, written, node, is_in_network(tree)) {
            Ok(value) => value,
            Err(_) if tree.index.is_set(key) => {
                tree.diagnostics
                    .push(overridden(tree, text, variable, key, written));
                continue;
            }
            Err(diagnostic) => {
                tree.diagnostics.push(diagnostic.key(*key));
                continue;
            }
        };
        if tree.index.is_set(key) {
            let same = lookup(&tree.values, key).is_none_or(|set| equal(set, &value, node));
            if !same {
                tree.diagnostics
                    .push(overridden(tree, text, variable, key, written));
            }
        } else {
            insert(&mut tree.values, key, value);
            filled.insert(key, variable);
        }
    }
    fill_reserve(tree);
    filled
}

/// The environment names the token when the file does not.
fn fill_token(tree: &mut Tree, surroundings: &Surroundings, filled: &mut Filled) {
    if is_in_network(tree) {
        return;
    }
    let Some(token) = surroundings
        .env
        .get(TOKEN)
        .filter(|token| !token.is_empty())
    else {
        return;
    };
    match token.parse::<TokenText>() {
        Ok(TokenText(token)) => {
            insert(&mut tree.values, "network.token", Value::from(token));
            filled.insert("network.token", TOKEN);
        }
        Err(fault) => {
            let message = format!("{TOKEN} is not a network token: {fault}");
            let diagnostic = Diagnostic::new(Code::EnvironmentValue, message)
                .expected("a token as `edgevpn token new` prints it")
                .help(format!(
                    "correct or unset {TOKEN}, or set `network.token_file`, which wins"
                ));
            tree.diagnostics.push(diagnostic.key("network.token"));
        }
    }
}

/// `acl.reserve` is for members where there are any, unless somebody says otherwise.
fn fill_reserve(tree: &mut Tree) {
    if is_in_network(tree)
        && lookup(&tree.values, "acl.reserve").is_none()
        && !tree.index.is_set("acl.reserve")
    {
        insert(&mut tree.values, "acl.reserve", Value::from("members"));
    }
}

/// Whether something names a token, in whatever way.
fn is_in_network(tree: &Tree) -> bool {
    let network = tree.values.get("network").and_then(Value::as_object);
    let named = |key: &str| network?.get(key)?.as_str().filter(|text| !text.is_empty());
    ["token_file", "token_credential", "token_env", "token"]
        .into_iter()
        .any(|key| named(key).is_some())
}

fn read(
    variable: &str,
    written: &str,
    node: &Value,
    in_network: bool,
) -> Result<Value, Box<Diagnostic>> {
    let shape = Shape::of(node);
    let wrong_but = |what: String, expected: String| {
        let message = format!("{variable}={written:?} {what}");
        let help = format!("correct or unset {variable}, or set the key in the file, which wins");
        Box::new(
            Diagnostic::new(Code::EnvironmentValue, message)
                .expected(expected)
                .help(help),
        )
    };
    let wrong = |what: String| wrong_but(what, shape.expected(node));
    if variable == NETWORK_ONLY {
        return match switch(written) {
            Some(false) => Ok(Value::from("anyone")),
            Some(true) if in_network => Ok(Value::from("members")),
            Some(true) => Err(Box::new(no_members(written))),
            None => Err(wrong_but(
                "is not true or false".to_owned(),
                "true or false".to_owned(),
            )),
        };
    }
    match &shape {
        Shape::Switch => {
            let on = switch(written).ok_or_else(|| wrong("is not true or false".to_owned()))?;
            Ok(Value::from(on))
        }
        Shape::Whole(range) => {
            let number = written
                .parse()
                .map_err(|_| wrong("is not a whole number".to_owned()))?;
            if range.contains(number) {
                Ok(Value::from(number))
            } else {
                Err(wrong("is out of range".to_owned()))
            }
        }
        Shape::Literal(kind) => {
            // EdgeVPN counts sizes in bytes, without a unit.
            let bare =
                kind.name.starts_with("size") && written.bytes().all(|byte| byte.is_ascii_digit());
            let text = if bare {
                format!("{written}B")
            } else {
                written.to_owned()
            };
            match (kind.check)(&text) {
                Err(fault) => Err(wrong(format!("is not {}: {}", kind.noun, fault.label))),
                Ok(magnitude) => match beyond(magnitude, kind, node) {
                    Some(label) => Err(wrong(format!("is out of range: {label}"))),
                    None => Ok(Value::from(text)),
                },
            }
        }
        Shape::Table
        | Shape::Tables(_)
        | Shape::List(_)
        | Shape::Choice(_)
        | Shape::Text { .. } => Ok(Value::from(written)),
    }
}

fn no_members(written: &str) -> Diagnostic {
    let message =
        format!("{NETWORK_ONLY}={written:?} asks for members, and this node is in no network");
    Diagnostic::new(Code::EnvironmentUnsupported, message).help(format!(
        "name the token of the network in `network.token_file` or by {TOKEN}, or unset {NETWORK_ONLY}"
    ))
}

/// What Go's `strconv.ParseBool` accepts, since these variables come from a Go program.
fn switch(written: &str) -> Option<bool> {
    match written {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn equal(one: &Value, other: &Value, node: &Value) -> bool {
    match (Shape::of(node), one.as_str(), other.as_str()) {
        (Shape::Literal(kind), Some(one), Some(other)) => {
            (kind.canonical)(one) == (kind.canonical)(other)
        }
        _ => one == other,
    }
}

fn overridden(tree: &Tree, text: &Text, variable: &str, key: &str, written: &str) -> Diagnostic {
    let diagnostic = Diagnostic::new(
        Code::EnvironmentOverridden,
        format!("`{key}` is set here and by {variable}"),
    )
    .key(key)
    .note(format!("the environment says {variable}={written:?}"))
    .help(format!("unset {variable}, or leave `{key}` to it"));
    match tree.index.spot(key) {
        Some(spot) => diagnostic.at(text.label(spot.value.clone(), "the file wins")),
        None => diagnostic,
    }
}

fn lookup<'a>(values: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    let (first, rest) = match key.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (key, None),
    };
    match rest {
        None => values.get(first),
        Some(rest) => lookup(values.get(first)?.as_object()?, rest),
    }
}

fn insert(values: &mut Map<String, Value>, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            values.insert(key.to_owned(), value);
        }
        Some((section, rest)) => {
            let below = values
                .entry(section)
                .or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(below) = below {
                insert(below, rest, value);
            }
        }
    }
}

/// `node.state_dir`, and the variable it comes from.
pub fn state_dir(written: &str, surroundings: &Surroundings) -> (PathBuf, Option<&'static str>) {
    if !written.is_empty() {
        return (surroundings.directory.join(written), None);
    }
    if let Some(directory) = directory(surroundings, "STATE_DIRECTORY") {
        return (directory, Some("STATE_DIRECTORY"));
    }
    if surroundings.root {
        return (PathBuf::from("/var/lib/edgevpn"), None);
    }
    if let Some(home) = directory(surroundings, "XDG_STATE_HOME") {
        return (home.join("edgevpn"), Some("XDG_STATE_HOME"));
    }
    match directory(surroundings, "HOME") {
        Some(home) => (home.join(".local/state/edgevpn"), Some("HOME")),
        None => (PathBuf::from("/var/lib/edgevpn"), None),
    }
}

/// Where a relative `api.listen` starts.
pub fn runtime_dir(state_dir: &Path, surroundings: &Surroundings) -> PathBuf {
    if let Some(directory) = directory(surroundings, "RUNTIME_DIRECTORY") {
        return directory;
    }
    if surroundings.root {
        return PathBuf::from("/run/edgevpn");
    }
    match directory(surroundings, "XDG_RUNTIME_DIR") {
        Some(directory) => directory.join("edgevpn"),
        None => state_dir.to_owned(),
    }
}

/// systemd gives several directories with colons between them; the first is the main one.
fn directory(surroundings: &Surroundings, variable: &str) -> Option<PathBuf> {
    let first = surroundings.env.get(variable)?.split(':').next()?;
    let path = Path::new(first);
    path.is_absolute().then(|| path.to_owned())
}
