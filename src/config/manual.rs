//! What the program can tell of a key or a diagnostic without a file: the pages of `edgevpn explain`.

use serde_json::Value;

use super::{
    diagnostic::Code,
    literal::nearest,
    schema::{self, class_of},
    shape::Shape,
};

/// What there is to know about one key or section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Key path: `relay.resources.max_data`; a key of an array of tables without its identity: `acl.list.file`.
    pub path: String,
    pub text: String,
    /// What may stand there: form, range. Empty for sections.
    pub expected: String,
    /// As the file would write it; `None`: it must be set, or is a section.
    pub default: Option<String>,
    /// `live`, `rebind`, `rejoin` or `restart`.
    pub class: &'static str,
    /// The environment variable that fills it.
    pub variable: Option<String>,
    pub example: Option<String>,
    /// The words it can be, with what each means.
    pub choices: Vec<(String, String)>,
    /// With a section: its keys, each with its first sentence.
    pub below: Vec<(String, String)>,
}

/// A word that is neither a code nor a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// Keys that may be meant.
    pub meant: Vec<String>,
}

/// The diagnostic with this number, written in any case and with or without its `EV`.
pub fn code(word: &str) -> Option<Code> {
    let word = word.to_ascii_uppercase();
    let digits = word.strip_prefix("EV").unwrap_or(&word);
    let meant = |code: &&Code| code.as_str().strip_prefix("EV") == Some(digits);
    Code::ALL.iter().find(meant).copied()
}

/// The page of a key or section, by its path or by a name that only one key has.
pub fn key(word: &str) -> Result<Page, Unknown> {
    let word = word.trim_matches(['[', ']']);
    if let Some(node) = find(word) {
        return Ok(page(word, node));
    }
    match schema::paths_of(word).as_slice() {
        [path] => find(path).map(|node| page(path, node)).ok_or_else(|| {
            // A path that the schema lists leads somewhere.
            Unknown { meant: Vec::new() }
        }),
        [] => {
            let paths: Vec<String> = schema::leaves().into_iter().map(|(path, _)| path).collect();
            let last = word.rsplit('.').next().unwrap_or(word);
            let names = paths.iter().filter_map(|path| path.rsplit('.').next());
            let near = nearest(word, paths.iter().map(String::as_str));
            let meant = match near {
                Some(path) => vec![path.to_owned()],
                None => nearest(last, names).map_or_else(Vec::new, schema::paths_of),
            };
            Err(Unknown { meant })
        }
        paths => Err(Unknown {
            meant: paths.to_vec(),
        }),
    }
}

/// The schema at a path, through arrays of tables as well.
fn find(path: &str) -> Option<&'static Value> {
    let root = schema::root();
    path.split('.').try_fold(root, |node, name| {
        schema::property(schema::element(node).unwrap_or(node), name)
    })
}

fn page(path: &str, node: &'static Value) -> Page {
    let text = |node: &Value, name: &str| {
        let text = node.get(name).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let description = text(node, "description");
    let (words, example) = part(&description, "Example: ");
    let (words, variable) = part(&words, "Environment: ");
    let table = schema::element(node).unwrap_or(node);
    let below: Vec<(String, String)> = table
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(name, node)| (name.clone(), text(node, "title")))
        .collect();
    let shape = Shape::of(node);
    let choices = match &shape {
        Shape::Choice(choices) => choices
            .iter()
            .map(|choice| (choice.word.to_owned(), choice.meaning.to_owned()))
            .collect(),
        _ => Vec::new(),
    };
    let default = node.get("default").filter(|_| below.is_empty());
    Page {
        path: path.to_owned(),
        text: words,
        expected: if below.is_empty() {
            shape.form(node)
        } else {
            String::new()
        },
        default: default.map(Value::to_string),
        class: class_of(path).as_str(),
        variable,
        example,
        choices,
        below,
    }
}

/// The text before a part that is marked, and the code that the part holds.
fn part(text: &str, mark: &str) -> (String, Option<String>) {
    let Some((before, after)) = text.split_once(mark) else {
        return (text.to_owned(), None);
    };
    let code = after.split('`').nth(1).map(str::to_owned);
    (before.trim_end().to_owned(), code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_page_under_its_path() {
        for (path, _) in schema::leaves() {
            let page = key(&path).expect(&path);
            assert!(!page.text.is_empty() && !page.expected.is_empty(), "{path}");
            assert!(!page.text.contains("Example"), "{path}");
            assert!(page.example.is_some(), "{path}");
        }
    }

    #[test]
    fn a_page_tells_type_range_default_class_and_variable() {
        let page = key("relay.resources.max_duration").expect("a key");
        assert!(page.expected.contains("from 1s to 365d"), "{page:?}");
        assert_eq!(page.default.as_deref(), Some("\"30m\""));
        assert_eq!(page.class, "live");
        assert_eq!(page.variable.as_deref(), Some("EDGEVPN_RELAY_MAX_DURATION"));
        assert_eq!(page.example.as_deref(), Some("max_duration = \"2m\""));
    }

    #[test]
    fn a_name_that_one_key_has_is_enough_and_others_are_listed() {
        assert_eq!(
            key("max_duration").expect("unique").path,
            "relay.resources.max_duration"
        );
        let unknown = key("listen").expect_err("there are two");
        assert_eq!(unknown.meant, ["transport.listen", "api.listen"]);
        assert_eq!(
            key("max_durations").expect_err("misspelt").meant,
            ["relay.resources.max_duration"]
        );
        assert_eq!(key("zzz").expect_err("nothing").meant, Vec::<String>::new());
    }

    #[test]
    fn a_section_lists_its_keys() {
        let page = key("[acl]").expect("a section");
        assert!(page.below.iter().any(|(name, _)| name == "bootstrap"));
        assert!(
            key("acl.list")
                .expect("tables")
                .below
                .iter()
                .any(|(name, _)| name == "file")
        );
    }

    #[test]
    fn a_code_is_found_however_it_is_written() {
        assert_eq!(code("EV0102"), Some(Code::WrongType));
        assert_eq!(code("ev0102"), Some(Code::WrongType));
        assert_eq!(code("0102"), Some(Code::WrongType));
        assert_eq!(code("EV9999"), None);
    }
}
