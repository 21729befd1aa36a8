//! Every effective key with its canonical value and its origin.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    Effective, Keys,
    check::join,
    environment::Filled,
    resolve::{Place, View},
    secret::Secrets,
};
use crate::id::Origin;

/// Answers where a key was set.
pub struct Origins<'a> {
    pub view: View<'a>,
    pub filled: &'a Filled,
}

impl Origins<'_> {
    /// `path` is a place in the file: `relay.service`, `peer[0].addresses`.
    pub fn of(&self, path: &str) -> Origin {
        let View { text, index, .. } = self.view;
        match (index.spot(path), self.filled.get(path)) {
            (Some(spot), _) => Origin::File {
                file: text.name.clone(),
                line: text.line(spot.key.start),
            },
            (None, Some(variable)) => Origin::Env(variable),
            (None, None) => Origin::Default,
        }
    }
}

/// All keys of the file, set or not. What the file leaves to the host is filled in from `place`, and tokens are told by
/// their fingerprints: a token whose content changes is a change, and one that moves to another place is none.
pub fn effective(origins: &Origins<'_>, place: &Place, secrets: &Secrets) -> Keys {
    let mut keys = BTreeMap::new();
    // The file was made from JSON of this very form.
    let values = serde_json::to_value(origins.view.file).unwrap_or_default();
    flatten(&values, "", "", origins, &mut keys);
    let mut host = |key: &str, value: String, variable: Option<&'static str>| {
        if let Some(effective) = keys.get_mut(key) {
            effective.value = Value::from(value);
            if let Some(variable) = variable {
                effective.origin = Origin::Env(variable);
            }
        }
    };
    host("node.name", place.name.clone(), None);
    host(
        "node.state_dir",
        place.state_dir.display().to_string(),
        place.state_dir_variable,
    );
    if let Some(socket) = &place.socket {
        host("api.listen", format!("unix:{}", socket.display()), None);
    }
    conceal(origins, secrets, &mut keys);
    Keys(keys)
}

/// Puts `network.token`, the fingerprint, in the place of the four keys of which one names the token.
fn conceal(origins: &Origins<'_>, secrets: &Secrets, keys: &mut BTreeMap<String, Effective>) {
    for way in ["token_file", "token_credential", "token_env"] {
        keys.remove(&format!("network.{way}"));
    }
    let network = secrets.network.as_ref();
    let own = network.map_or_else(String::new, |network| {
        network.token.fingerprint().to_string()
    });
    let token = Effective {
        value: Value::from(own),
        origin: origins.of(secrets.key.unwrap_or("network.token")),
    };
    keys.insert("network.token".to_owned(), token);
    if let Some(accepted) = keys.get_mut("network.accept_token_files") {
        let tokens = network.into_iter().flat_map(|network| &network.accepted);
        let told = tokens.map(|token| Value::from(token.fingerprint().to_string()));
        accepted.value = told.collect();
    }
}

/// `path` is where the value stands in the file, `key` what it is called: tables of an array go by identity there.
fn flatten(
    value: &Value,
    path: &str,
    key: &str,
    origins: &Origins<'_>,
    keys: &mut BTreeMap<String, Effective>,
) {
    match value {
        Value::Object(table) => {
            for (name, value) in table {
                flatten(value, &join(path, name), &join(key, name), origins, keys);
            }
        }
        Value::Array(tables) if is_array_of_tables(path) => {
            for (at, table) in tables.iter().enumerate() {
                let identity = ["id", "name", "to"]
                    .iter()
                    .find_map(|name| table.get(name)?.as_str());
                let key = join(key, identity.unwrap_or_default());
                flatten(table, &format!("{path}[{at}]"), &key, origins, keys);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            let effective = Effective {
                value: value.clone(),
                origin: origins.of(path),
            };
            keys.insert(key.to_owned(), effective);
        }
    }
}

fn is_array_of_tables(path: &str) -> bool {
    super::schema::leaf(path)
        .and_then(super::schema::element)
        .is_some()
}
