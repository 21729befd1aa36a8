//! The JSON Schema of the file, generated from its types, and what the program itself reads from it: which keys there
//! are, their ranges, and what a change of each costs.

use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Class, file::File};

/// A URN, since the schema is identified and not downloaded.
const ID: &str = "urn:edgevpn:schema:v1";

const RELOAD: &str = "x-edgevpn-reload";

/// Which dialect of JSON Schema to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Draft {
    /// What editors understand.
    #[default]
    Draft07,
    Draft2020,
}

/// The schema as a document. Ends in a newline.
pub fn document(draft: Draft) -> String {
    // A tree of strings, numbers and maps with string keys: writing it cannot fail.
    let mut text = serde_json::to_string_pretty(&generate(draft)).unwrap_or_default();
    text.push('\n');
    text
}

/// The schema that files are checked against.
pub(super) fn root() -> &'static Value {
    static ROOT: LazyLock<Value> = LazyLock::new(|| generate(Draft::Draft2020));
    &ROOT
}

/// What a change of `key` costs: a leaf, a section (then its most expensive leaf) or a table of an array, as
/// `acl.list.ops`. An unknown key costs a restart.
pub fn class_of(key: &str) -> Class {
    let mut node = root();
    let mut rest = key;
    while !rest.is_empty() {
        let (segment, tail) = rest.split_once('.').unwrap_or((rest, ""));
        if let Some(next) = property(node, segment) {
            node = next;
        } else if let Some(table) = element(node) {
            // The identity of the table may itself contain dots; a leaf never does.
            let leaf = rest.rsplit('.').next().unwrap_or_default();
            node = property(table, leaf).unwrap_or(table);
            break;
        } else {
            return Class::Restart;
        }
        rest = tail;
    }
    highest(node).unwrap_or(Class::Restart)
}

/// The schema of one key of a table.
pub(super) fn property<'a>(table: &'a Value, key: &str) -> Option<&'a Value> {
    table.get("properties")?.get(key)
}

/// The schema of the tables of an array of tables.
pub(super) fn element(array: &Value) -> Option<&Value> {
    array
        .get("items")
        .filter(|items| items.get("properties").is_some())
}

/// The schema of the key at a path.
pub(super) fn leaf(path: &str) -> Option<&'static Value> {
    path.split('.')
        .try_fold(root(), |node, key| property(node, key))
}

/// Every leaf with its path: `relay.resources.max_data`, `peer.addresses`.
pub fn leaves() -> Vec<(String, &'static Value)> {
    fn walk(path: &str, node: &'static Value, leaves: &mut Vec<(String, &'static Value)>) {
        let below = element(node).unwrap_or(node);
        match below.get("properties").and_then(Value::as_object) {
            None => leaves.push((path.to_owned(), node)),
            Some(properties) => {
                for (key, node) in properties {
                    let path = if path.is_empty() {
                        key.clone()
                    } else {
                        format!("{path}.{key}")
                    };
                    walk(&path, node, leaves);
                }
            }
        }
    }
    let mut found = Vec::new();
    walk("", root(), &mut found);
    found
}

/// The leaves of this name, wherever they are.
pub(super) fn paths_of(name: &str) -> Vec<String> {
    let is_it = |path: &String| path.rsplit('.').next() == Some(name);
    leaves()
        .into_iter()
        .map(|(path, _)| path)
        .filter(is_it)
        .collect()
}

fn highest(node: &Value) -> Option<Class> {
    if let Some(class) = node.get(RELOAD) {
        return Class::deserialize(class).ok();
    }
    let below = element(node).unwrap_or(node);
    below
        .get("properties")?
        .as_object()?
        .values()
        .filter_map(highest)
        .max()
}

fn generate(draft: Draft) -> Value {
    let settings = match draft {
        Draft::Draft07 => SchemaSettings::draft07(),
        Draft::Draft2020 => SchemaSettings::draft2020_12(),
    };
    let settings = settings.with(|settings| settings.inline_subschemas = true);
    let mut schema = settings
        .into_generator()
        .into_root_schema_for::<File>()
        .to_value();
    tidy(&mut schema);
    let Value::Object(generated) = schema else {
        return schema;
    };
    let mut root = generated;
    root.insert("$id".to_owned(), json!(ID));
    root.insert("title".to_owned(), json!("edgevpn configuration"));
    Value::Object(ordered(root))
}

/// Gives every documented node a title, and drops what says nothing to the author of a file.
fn tidy(node: &mut Value) {
    let Value::Object(map) = node else {
        if let Value::Array(nodes) = node {
            nodes.iter_mut().for_each(tidy);
        }
        return;
    };
    if map.get("type").is_some_and(Value::is_string) {
        // `uint32` is no format of JSON Schema, and a section's default repeats those of its keys.
        map.remove("format");
        if map.get("type") == Some(&json!("object")) {
            map.remove("default");
        }
    }
    let description = map
        .get("description")
        .and_then(Value::as_str)
        .map(unwrapped);
    if let Some(description) = description {
        if !map.contains_key("title") && !map.contains_key("const") {
            map.insert("title".to_owned(), json!(first_sentence(&description)));
        }
        map.insert("description".to_owned(), json!(description));
    }
    for (key, value) in map.iter_mut() {
        if key == "properties" {
            if let Value::Object(properties) = value {
                properties.values_mut().for_each(tidy);
            }
        } else if key == "items" || key == "oneOf" {
            tidy(value);
        }
    }
    *map = ordered(std::mem::take(map));
}

/// As somebody reads it who looks a key up: what it is first, what follows from it last.
fn ordered(mut map: Map<String, Value>) -> Map<String, Value> {
    const FIRST: &[&str] = &[
        "$schema",
        "$id",
        "title",
        "description",
        "type",
        "const",
        "default",
    ];
    const LAST: &[&str] = &[
        "required",
        "additionalProperties",
        "properties",
        "items",
        "oneOf",
    ];
    let mut sorted = Map::new();
    for key in FIRST {
        sorted.extend(map.remove_entry(*key));
    }
    let last: Vec<_> = LAST
        .iter()
        .filter_map(|key| map.remove_entry(*key))
        .collect();
    let mut rest: Vec<_> = map.into_iter().collect();
    rest.sort_by(|one, other| one.0.cmp(&other.0));
    sorted.extend(rest.into_iter().chain(last));
    sorted
}

/// Joins the lines of a paragraph; an empty line stays between paragraphs.
fn unwrapped(text: &str) -> String {
    let paragraphs: Vec<String> = text
        .split("\n\n")
        .map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    paragraphs.join("\n\n")
}

/// What stands before the first stop, in the sentence or at its end.
fn first_sentence(text: &str) -> &str {
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let stops = [". ", ": ", "; "];
    let end = stops
        .iter()
        .filter_map(|stop| paragraph.find(stop))
        .min()
        .unwrap_or(paragraph.len());
    paragraph
        .get(..end)
        .unwrap_or(paragraph)
        .trim_end_matches('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_of_a_key_comes_from_the_schema() {
        assert_eq!(class_of("relay.resources.max_data"), Class::Live);
        assert_eq!(class_of("transport.listen"), Class::Rebind);
        assert_eq!(class_of("node.state_dir"), Class::Restart);
        assert_eq!(class_of("node"), Class::Restart);
        assert_eq!(class_of("acl.list.a.b.file"), Class::Live);
        assert_eq!(class_of("acl.list.ops"), Class::Live);
        assert_eq!(class_of("peer.12D3KooW.addresses"), Class::Live);
        assert_eq!(class_of("no.such.key"), Class::Restart);
    }

    #[test]
    fn a_title_is_the_first_sentence() {
        assert_eq!(first_sentence("One thing. And more."), "One thing");
        assert_eq!(first_sentence("One thing.\n\nExample."), "One thing");
    }
}
