//! Files that are rejected or warned about, with what is said about them: `tests/invalid/NAME.toml` and `NAME.stderr`.
//! `EDGEVPN_BLESS=1 cargo test --test it invalid::` writes the texts anew; read the difference.
//!
//! The first lines of a file may say `# env: NAME=value`, `# secret mode: 644` for the token files in `secrets/` (600
//! otherwise), and `# schema: accepts` where JSON Schema cannot express what is wrong. Every other file must be rejected by
//! the schema too.

mod command;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use edgevpn::config::{
    Checked, Code, Diagnostic, Format, ListFile, Secret, SecretFault, SecretFile, Severity, Source,
    Surroundings,
    diagnostic::render,
    parse,
    schema::{self, Draft},
};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use serde_json::Value;

const CASES: &str = "tests/invalid";

/// Codes that need a running node or a file that is none; the tests of `reload` show them.
const ELSEWHERE: &[Code] = &[
    Code::Unreadable,
    Code::TooLarge,
    Code::HeldBack,
    Code::AboveMaxImpact,
    Code::NeedsRestart,
    Code::ApplyFailed,
];

#[test]
fn every_invalid_file_is_told_as_written_down() {
    let bless = std::env::var_os("EDGEVPN_BLESS").is_some();
    let mut stale = Vec::new();
    for case in cases() {
        let checked = case.checked();
        assert!(
            !checked.diagnostics.is_empty(),
            "{}: nothing is wrong",
            case.name
        );
        let told = render(&[checked], Format::Human, false);
        let golden = Path::new(CASES).join(&case.name).with_extension("stderr");
        if bless {
            fs::write(&golden, &told).expect("writable");
        }
        if fs::read_to_string(&golden).ok().as_deref() != Some(told.as_str()) {
            stale.push(format!("--- {}\n{told}", golden.display()));
        }
    }
    assert!(
        stale.is_empty(),
        "not as written down:\n{}",
        stale.join("\n")
    );
}

#[test]
fn there_is_a_file_for_every_code() {
    let mut seen: BTreeSet<Code> = ELSEWHERE.iter().copied().collect();
    let cases = cases();
    assert!(cases.len() >= 60, "{} files", cases.len());
    for case in cases {
        seen.extend(
            case.checked()
                .diagnostics
                .iter()
                .map(|diagnostic| diagnostic.code),
        );
    }
    let missing: Vec<_> = Code::ALL
        .iter()
        .filter(|code| !seen.contains(code))
        .collect();
    assert!(missing.is_empty(), "no file in {CASES} shows {missing:?}");
}

#[test]
fn codes_are_unique_and_belong_to_their_hundred() {
    let numbers: BTreeSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(numbers.len(), Code::ALL.len());
    for code in Code::ALL {
        let number = code.as_str().strip_prefix("EV0").expect("EV0xxx");
        assert!(
            number.len() == 3 && number.starts_with(['0', '1', '2', '3', '4', '5', '6', '7', '8']),
            "{code}"
        );
        assert!(!code.summary().is_empty());
    }
}

#[test]
fn the_schema_rejects_what_it_can_express() {
    let schema: Value = serde_json::from_str(&schema::document(Draft::Draft07)).expect("JSON");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    for case in cases() {
        let Some(json) = case.as_json() else { continue };
        assert_eq!(
            validator.is_valid(&json),
            case.schema_accepts,
            "{}: correct the file, or what it says about the schema",
            case.name
        );
    }
}

#[test]
fn every_error_says_what_to_do() {
    for case in cases() {
        for found in case.checked().diagnostics {
            let told = found.help.is_some() || found.expected.is_some();
            assert!(told, "{}: {}", case.name, found.short());
            assert!(
                found.location.is_some() || found.code.as_str().starts_with("EV06"),
                "{}: {} has no place",
                case.name,
                found.short()
            );
        }
    }
}

#[test]
fn every_mechanical_fix_fixes() {
    let mut fixed = 0;
    for case in cases() {
        let before = case.checked();
        for (at, found) in before.diagnostics.iter().enumerate() {
            let Some(help) = found.help.as_ref().filter(|help| !help.patches.is_empty()) else {
                continue;
            };
            let mut bytes = case.bytes.clone();
            for patch in &help.patches {
                bytes.splice(patch.start..patch.end, patch.text.bytes());
            }
            let after = Case {
                bytes,
                ..case.clone()
            }
            .checked();
            let same =
                |other: &Diagnostic| other.code == found.code && other.location == found.location;
            assert!(
                !after.diagnostics.iter().any(same),
                "{}: finding {at} is still there after its fix: {}",
                case.name,
                found.short()
            );
            fixed += 1;
        }
    }
    assert!(fixed >= 30, "{fixed} fixes");
}

#[test]
fn a_diagnostic_survives_the_way_over_a_socket() {
    for case in cases() {
        let checked = case.checked();
        let json = serde_json::to_string(&checked.diagnostics).expect("JSON");
        let again: Vec<Diagnostic> = serde_json::from_str(&json).expect("diagnostics");
        assert_eq!(again, checked.diagnostics, "{}", case.name);
    }
}

#[test]
fn what_a_list_file_says_is_not_told_unless_it_is_an_entry() {
    let case = cases()
        .into_iter()
        .find(|case| case.name == "list_of_secrets")
        .expect("the case");
    for format in [Format::Human, Format::Short, Format::Json, Format::Github] {
        let told = render(&[case.checked()], format, false);
        assert!(!told.contains("verysecret"), "{told}");
        assert!(!told.contains("two words"), "{told}");
    }
}

#[test]
fn every_format_tells_every_finding() {
    let case = cases()
        .into_iter()
        .find(|case| case.name == "everything_at_once")
        .expect("the case");
    let checked = [case.checked()];
    let short = render(&checked, Format::Short, false);
    assert_eq!(
        short.lines().next(),
        Some(
            "everything_at_once.toml:4:16: error[EV0102]: `relay.resources.max_duration` is not a duration"
        )
    );
    assert_eq!(short.lines().count(), 4);
    let github = render(&checked, Format::Github, false);
    assert!(
        github.starts_with("::error file=everything_at_once.toml,line=4,col=16,title=EV0102::"),
        "{github}"
    );
    assert_eq!(github.lines().count(), 4);
    let json: Value = serde_json::from_str(&render(&checked, Format::Json, false)).expect("JSON");
    assert_eq!(
        json["files"][0]["diagnostics"].as_array().map(Vec::len),
        Some(4)
    );
    assert!(
        render(&checked, Format::Human, true).contains('\u{1b}'),
        "no colour"
    );
}

#[test]
fn a_file_cut_at_any_byte_is_told_and_never_taken_for_another() {
    let whole = fs::read("examples/reference.toml").expect("the reference");
    let directory = PathBuf::from("examples");
    let lists = [directory.join("allow.d/ops.txt")];
    let verdict = |bytes: &[u8]| {
        check(
            "reference.toml",
            bytes,
            &directory,
            &BTreeMap::new(),
            &lists,
        )
    };
    let complete = verdict(&whole).config.expect("valid");
    let mut valid = 0;
    for length in 0..whole.len() {
        let cut = &whole[..length];
        let checked = verdict(cut);
        assert_eq!(
            checked.config.is_none(),
            checked.diagnostics.iter().any(is_error),
            "at byte {length}"
        );
        let Some(config) = checked.config else {
            continue;
        };
        valid += 1;
        // Valid TOML that lost its end: it must say what is written in it, and nothing else.
        let text = std::str::from_utf8(cut).expect("UTF-8");
        assert!(text.contains("version = 1"), "at byte {length}");
        for (key, effective) in config.keys.iter() {
            let one_of_two = complete.keys.get(key).expect("the key");
            let is_cut = effective.value != one_of_two.value;
            let last_line = text.lines().next_back().unwrap_or_default();
            let name = key.rsplit('.').next().expect("a name");
            assert!(
                !is_cut || last_line.starts_with(name),
                "at byte {length}: {key} is {} in {last_line:?}",
                effective.value
            );
        }
    }
    assert!(valid > 0, "no prefix is a file");
}

#[test]
fn nothing_in_a_file_makes_it_slow_or_panic() {
    let fill = |piece: &str| piece.repeat((1 << 20) / piece.len());
    let files = [
        (
            "nesting of lists",
            format!("version = 1\na = {}", fill("[")),
        ),
        (
            "nesting of tables",
            format!("version = 1\na = {}", fill("{b=")),
        ),
        ("dotted key", format!("version = 1\n{}b = 1", fill("a."))),
        ("one key again and again", fill("a = 1\n")),
        ("one section again and again", fill("[log]\n")),
        (
            "tables of an array",
            format!("version = 1\n{}", fill("[[peer]]\n")),
        ),
        ("brackets", fill("]\n")),
        ("quotes", fill("\"")),
        ("equals", fill("= ")),
        ("controls", fill("\u{1}")),
        ("newlines", fill("\n")),
        (
            "keys",
            (0..100_000).map(|at| format!("k{at} = 1\n")).collect(),
        ),
        ("a long key", format!("{} = 1", fill("k"))),
        (
            "a long string",
            format!("version = 1\n[node]\nname = \"{}\"", fill("x")),
        ),
        (
            "a long list",
            format!("version = 1\n[acl]\nallow = [{}]", fill("\"x\", ")),
        ),
        (
            "a long line of entries",
            format!("version = 1\n[acl]\ndeny = [{}]", fill("\"10.0.0.1\", ")),
        ),
    ];
    for (what, text) in files {
        let start = Instant::now();
        let checked = check(
            "big.toml",
            text.as_bytes(),
            Path::new(""),
            &BTreeMap::new(),
            &[],
        );
        let told = render(&[checked], Format::Human, false);
        let took = start.elapsed();
        assert!(took < Duration::from_secs(10), "{what} takes {took:?}");
        assert!(
            told.len() < 200_000,
            "{what}: {} bytes are told",
            told.len()
        );
    }
}

#[test]
fn a_file_of_eight_mebibytes_is_read_and_one_byte_more_is_refused() {
    let text = |length: usize| {
        let mut text = "version = 1\n".to_owned();
        text.push_str(&"#".repeat(length - text.len()));
        check(
            "big.toml",
            text.as_bytes(),
            Path::new(""),
            &BTreeMap::new(),
            &[],
        )
    };
    assert!(text(8 << 20).config.is_some());
    let refused = text((8 << 20) + 1);
    assert_eq!(
        refused.diagnostics.first().map(|found| found.code),
        Some(Code::TooLarge)
    );
}

#[test]
fn a_list_of_a_million_entries_is_checked() {
    let list: String = (0..1_000_000u32)
        .map(|at| format!("10.{}.{}.{}\n", at >> 16, (at >> 8) & 255, at & 255))
        .collect();
    let text =
        "version = 1\n[[acl.list]]\nname = \"many\"\naction = \"deny\"\nfile = \"many.txt\"\n";
    let source = Source {
        name: "many.toml".to_owned(),
        bytes: text.as_bytes().to_vec(),
    };
    let lists = vec![ListFile {
        path: "many.txt".into(),
        content: Ok(list.into_bytes()),
    }];
    let checked = parse(source, &Surroundings::default()).resolve(lists);
    assert_eq!(checked.diagnostics, []);
    assert_eq!(checked.summary.list_entries, 1_000_000);
}

/// Generated files get the same verdict from the schema with the types, and from the pipeline.
#[test]
fn the_schema_and_the_pipeline_agree_on_generated_files() {
    let schema: Value = serde_json::from_str(&schema::document(Draft::Draft2020)).expect("JSON");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let mut verdicts = [0, 0];
    let mut runner = TestRunner::deterministic();
    for _ in 0..400 {
        let file = generated_file()
            .new_tree(&mut runner)
            .expect("a file")
            .current();
        let json: Value =
            serde_json::to_value(file.parse::<toml::Table>().expect("TOML")).expect("JSON");
        let types = serde_json::from_value::<edgevpn::config::file::File>(json.clone()).is_ok();
        let valid = validator.is_valid(&json) && types;
        let checked = check(
            "generated.toml",
            file.as_bytes(),
            Path::new(""),
            &BTreeMap::new(),
            &[],
        );
        let by_itself = |found: &&Diagnostic| {
            let code = found.code.as_str();
            is_error(found) && (code.starts_with("EV01") || code.starts_with("EV07"))
        };
        let found: Vec<_> = checked
            .diagnostics
            .iter()
            .filter(by_itself)
            .map(Diagnostic::short)
            .collect();
        assert_eq!(valid, found.is_empty(), "{file}\n{found:#?}");
        verdicts[usize::from(valid)] += 1;
    }
    assert!(verdicts.iter().all(|count| *count >= 40), "{verdicts:?}");
}

/// Any bytes at all: the same as the fuzz target.
#[test]
fn the_corpus_of_the_fuzzer_does_not_panic() {
    let mut count = 0;
    for entry in fs::read_dir("fuzz/corpus/config").expect("the corpus") {
        let bytes = fs::read(entry.expect("an entry").path()).expect("readable");
        examine(&bytes);
        count += 1;
    }
    assert!(count >= 10, "{count} files");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_bytes_make_the_pipeline_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        examine(&bytes);
    }

    #[test]
    fn no_damage_to_a_good_file_makes_the_pipeline_panic(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in 0usize..40) {
        let mut bytes = fs::read("examples/reference.toml").expect("the reference");
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let end = (at + 1 + cut).min(bytes.len());
        bytes.drain(at + 1..end);
        examine(&bytes);
    }
}

/// A verdict is a configuration or at least one error, and can be shown.
fn examine(bytes: &[u8]) {
    let checked = edgevpn::config::examine(bytes);
    assert_eq!(
        checked.config.is_none(),
        checked.diagnostics.iter().any(is_error)
    );
    for format in [Format::Human, Format::Short, Format::Json, Format::Github] {
        render(std::slice::from_ref(&checked), format, false);
    }
}

#[derive(Clone)]
struct Case {
    name: String,
    bytes: Vec<u8>,
    env: BTreeMap<String, String>,
    secret_mode: u32,
    schema_accepts: bool,
}

impl Case {
    fn checked(&self) -> Checked {
        let directory = PathBuf::from(CASES);
        let lists: Vec<PathBuf> = fs::read_dir(directory.join("lists"))
            .expect("lists")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        let secrets = Secrets {
            directory: directory.join("secrets"),
            mode: self.secret_mode,
        };
        check_with(
            &format!("{}.toml", self.name),
            &self.bytes,
            &directory,
            &self.env,
            &lists,
            &secrets,
        )
    }

    /// `None` where the text is not TOML.
    fn as_json(&self) -> Option<Value> {
        let text = std::str::from_utf8(&self.bytes).ok()?;
        let table: toml::Table = text.trim_start_matches('\u{feff}').parse().ok()?;
        Some(serde_json::to_value(table).expect("JSON"))
    }
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = fs::read_dir(CASES)
        .expect("the cases")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .map(|path| {
            let bytes = fs::read(&path).expect("readable");
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let said = |prefix: &str| {
                text.lines()
                    .filter_map(|line| line.strip_prefix(prefix).map(str::to_owned))
                    .collect::<Vec<_>>()
            };
            Case {
                name: path
                    .file_stem()
                    .expect("a name")
                    .to_string_lossy()
                    .into_owned(),
                env: said("# env: ")
                    .iter()
                    .map(|line| line.split_once('=').expect("NAME=value"))
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .collect(),
                secret_mode: said("# secret mode: ")
                    .first()
                    .map_or(0o600, |mode| u32::from_str_radix(mode, 8).expect("a mode")),
                schema_accepts: said("# schema: ").iter().any(|word| word == "accepts"),
                bytes,
            }
        })
        .collect();
    cases.sort_by(|one, other| one.name.cmp(&other.name));
    cases
}

fn check(
    name: &str,
    bytes: &[u8],
    directory: &Path,
    env: &BTreeMap<String, String>,
    lists: &[PathBuf],
) -> Checked {
    let none = Secrets {
        directory: PathBuf::from("nowhere"),
        mode: 0o600,
    };
    check_with(name, bytes, directory, env, lists, &none)
}

/// Token files: those in a directory, with one mode.
struct Secrets {
    directory: PathBuf,
    mode: u32,
}

fn check_with(
    name: &str,
    bytes: &[u8],
    directory: &Path,
    env: &BTreeMap<String, String>,
    lists: &[PathBuf],
    secrets: &Secrets,
) -> Checked {
    let surroundings = Surroundings {
        env: env.clone(),
        host_name: "host".to_owned(),
        directory: directory.to_owned(),
        root: false,
    };
    let source = Source {
        name: name.to_owned(),
        bytes: bytes.to_vec(),
    };
    let draft = parse(source, &surroundings);
    let lists = draft
        .list_files()
        .into_iter()
        .map(|path| {
            let content = match lists.contains(&path) {
                true => fs::read(&path).map_err(|error| error.to_string()),
                false => Err(format!("{} does not exist", path.display())),
            };
            ListFile { path, content }
        })
        .collect();
    let secrets = draft
        .secret_files()
        .into_iter()
        .map(|path| {
            let there = path.starts_with(&secrets.directory);
            let secret = fs::read(&path).ok().filter(|_| there).map(|bytes| Secret {
                bytes,
                mode: secrets.mode,
                foreign_owner: None,
            });
            let content = secret.ok_or_else(|| SecretFault {
                reason: format!("{} does not exist", path.display()),
                help: "write the token there".to_owned(),
            });
            SecretFile { path, content }
        })
        .collect();
    draft.with_secrets(secrets).resolve(lists)
}

fn is_error(found: &Diagnostic) -> bool {
    found.severity == Severity::Error
}

/// A few keys, each with a good or a bad value.
fn generated_file() -> impl Strategy<Value = String> {
    let leaves: Vec<(String, Value)> = schema::leaves()
        .into_iter()
        .filter(|(path, _)| {
            !path.starts_with("peer")
                && !path.starts_with("acl.list")
                && !path.starts_with("acl.test")
                && !path.starts_with("vpn.routes")
        })
        .map(|(path, leaf)| (path, leaf.clone()))
        .collect();
    let key = prop::sample::select(leaves).prop_flat_map(|(path, leaf)| {
        let value = generated_value(&leaf);
        (Just(path), value, prop::bool::weighted(0.03))
    });
    prop::collection::vec(key, 0..6).prop_map(|keys| {
        let mut file = "version = 1\n".to_owned();
        let mut seen = BTreeSet::new();
        for (path, value, misspelt) in keys {
            if path == "version" || !seen.insert(path.clone()) {
                continue;
            }
            let typo = if misspelt { "x" } else { "" };
            file.push_str(&format!("{path}{typo} = {value}\n"));
        }
        file
    })
}

fn generated_value(leaf: &Value) -> BoxedStrategy<String> {
    let default = match &leaf["default"] {
        Value::Array(values) => {
            let values: Vec<_> = values.iter().map(Value::to_string).collect();
            format!("[{}]", values.join(", "))
        }
        default => default.to_string(),
    };
    let mut good = vec![default];
    if let Some(choices) = leaf["oneOf"].as_array() {
        good.extend(choices.iter().map(|choice| choice["const"].to_string()));
    }
    for bound in [
        "minimum",
        "maximum",
        "x-edgevpn-minimum",
        "x-edgevpn-maximum",
    ] {
        good.extend(leaf.get(bound).map(Value::to_string));
    }
    let bad = [
        "0",
        "-1",
        "1000001",
        "\"\"",
        "\"loud\"",
        "true",
        "[]",
        "[7]",
        "{}",
        "\"10 s\"",
        "\"5\"",
        "1979-05-27",
    ];
    prop_oneof![
        6 => prop::sample::select(good),
        1 => prop::sample::select(bad.to_vec()).prop_map(str::to_owned),
    ]
    .boxed()
}
