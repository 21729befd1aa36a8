//! `edgevpn validate` and `edgevpn schema` as scripts and editors call them.

use std::{
    fs,
    io::Write,
    os::unix::{fs::symlink, net::UnixListener},
    path::Path,
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::node::command;

const GOOD: &str = "version = 1\n";
const BAD: &str = "version = 1\n[log]\nlevel = \"loud\"\n";
const WARNED: &str = "version = 1\n[relay]\nservice = true\n";

#[test]
fn a_valid_file_is_one_line_and_exit_0() {
    let place = holding(&[("good.toml", GOOD)]);
    let output = run(place.path(), &["validate", "good.toml"]);
    assert_eq!(
        told(&output),
        (0, "good.toml: valid (version 1, 1 key)\n", "")
    );
}

#[test]
fn findings_for_people_go_to_standard_error_and_the_code_is_1() {
    let place = holding(&[("good.toml", GOOD), ("bad.toml", BAD)]);
    let output = run(place.path(), &["validate", "bad.toml", "good.toml"]);
    let (code, out, err) = told(&output);
    assert_eq!((code, out), (1, "good.toml: valid (version 1, 1 key)\n"));
    assert!(
        err.starts_with("error[EV0102]: `log.level` is not a log level\n --> bad.toml:3:9\n"),
        "{err}"
    );
    assert!(err.ends_with("\nbad.toml: invalid (1 error)\n"), "{err}");
    assert!(!err.contains('\u{1b}'), "colour without a terminal: {err}");
}

#[test]
fn what_programs_read_goes_to_standard_output() {
    let place = holding(&[("bad.toml", BAD)]);
    let short = run(place.path(), &["validate", "--format", "short", "bad.toml"]);
    assert_eq!(
        told(&short),
        (
            1,
            "bad.toml:3:9: error[EV0102]: `log.level` is not a log level\n",
            ""
        )
    );
    let json = run(place.path(), &["validate", "--format", "json", "bad.toml"]);
    let report: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(report["valid"], false);
    assert_eq!(report["files"][0]["diagnostics"][0]["code"], "EV0102");
    let mut github = command(place.path());
    let github = github
        .args(["validate", "bad.toml"])
        .env("GITHUB_ACTIONS", "true")
        .output()
        .expect("runs");
    let (code, out, err) = told(&github);
    assert_eq!((code, err), (1, ""));
    assert!(
        out.starts_with("::error file=bad.toml,line=3,col=9,title=EV0102::"),
        "{out}"
    );
}

#[test]
fn warnings_fail_only_where_they_are_denied() {
    let place = holding(&[("warned.toml", WARNED)]);
    let (code, _, err) = told(&run(place.path(), &["validate", "warned.toml"])).owned();
    assert_eq!(code, 0);
    assert!(err.contains("warning[EV0403]"), "{err}");
    let denied = run(
        place.path(),
        &["validate", "--deny", "warnings", "warned.toml"],
    );
    assert_eq!(told(&denied).0, 1);
}

#[test]
fn standard_input_is_read_as_if_it_lay_elsewhere() {
    let place = holding(&[("lists/ops.txt", "203.0.113.9\n")]);
    let text =
        "version = 1\n[[acl.list]]\nname = \"ops\"\naction = \"allow\"\nfile = \"ops.txt\"\n";
    let (code, out, err) = piped(
        place.path(),
        &["validate", "--as", "lists/edgevpn.toml", "-"],
        text,
    );
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(
        out,
        "<stdin>: valid (version 1, 4 keys, 1 list file with 1 entry)\n"
    );
    let (code, _, err) = piped(place.path(), &["validate", "-"], text);
    assert_eq!(code, 1);
    assert!(err.contains("error[EV0501]"), "{err}");
}

#[test]
fn what_is_no_readable_file_is_told_at_once_with_a_code() {
    let place = holding(&[("big.toml", "")]);
    let at = |name: &str| place.path().join(name);
    fs::write(at("big.toml"), vec![b'#'; 10 << 20]).expect("written");
    fs::create_dir(at("directory.toml")).expect("made");
    symlink("loop.toml", at("loop.toml")).expect("linked");
    symlink("nowhere", at("dangling.toml")).expect("linked");
    let _listener = UnixListener::bind(at("socket.toml")).expect("bound");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at("fifo.toml"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .expect("made");
    for (name, code) in [
        ("big.toml", "EV0202"),
        ("directory.toml", "EV0201"),
        ("loop.toml", "EV0201"),
        ("dangling.toml", "EV0201"),
        ("socket.toml", "EV0201"),
        ("fifo.toml", "EV0201"),
        ("/dev/zero", "EV0201"),
        ("missing.toml", "EV0201"),
    ] {
        let start = Instant::now();
        let output = run(place.path(), &["validate", "--format", "short", name]);
        let (exit, out, _) = told(&output);
        assert_eq!(exit, 1, "{name}");
        assert!(
            out.starts_with(&format!("{name}: error[{code}]: ")),
            "{out}"
        );
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{name} takes {:?}",
            start.elapsed()
        );
    }
}

#[test]
fn what_cannot_be_done_is_exit_2() {
    let place = holding(&[("good.toml", GOOD)]);
    for arguments in [
        &["validate"][..],
        &["validate", "--format", "yaml", "good.toml"],
        &["validate", "-", "-"],
        &["schema", "--draft", "04"],
        &["schema", "-o", "no/such/directory/schema.json"],
    ] {
        let (code, out, err) = told(&run(place.path(), arguments)).owned();
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}");
        assert!(!err.is_empty(), "{arguments:?}");
    }
}

#[test]
fn the_schema_is_printed_or_written_in_either_dialect() {
    let place = holding(&[]);
    let printed = run(place.path(), &["schema"]);
    assert_eq!(
        printed.stdout,
        fs::read("schema/edgevpn.v1.schema.json").expect("the schema")
    );
    let written = run(
        place.path(),
        &["schema", "--draft", "2020-12", "-o", "s.json"],
    );
    assert_eq!(told(&written), (0, "", ""));
    let schema: Value =
        serde_json::from_slice(&fs::read(place.path().join("s.json")).expect("written"))
            .expect("JSON");
    assert_eq!(
        schema["$schema"],
        "https://json-schema.org/draft/2020-12/schema"
    );
}

fn holding(files: &[(&str, &str)]) -> TempDir {
    let place = TempDir::new().expect("a directory");
    for (name, text) in files {
        let path = place.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, text).expect("written");
    }
    place
}

fn run(place: &Path, arguments: &[&str]) -> Output {
    command(place)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the program runs")
}

fn piped(place: &Path, arguments: &[&str], text: &str) -> (i32, String, String) {
    let mut child = command(place)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(text.as_bytes())
        .expect("written");
    told(&child.wait_with_output().expect("ends")).owned()
}

fn told(output: &Output) -> (i32, &str, &str) {
    (
        output.status.code().expect("an exit code"),
        std::str::from_utf8(&output.stdout).expect("UTF-8"),
        std::str::from_utf8(&output.stderr).expect("UTF-8"),
    )
}

trait Owned {
    fn owned(self) -> (i32, String, String);
}

impl Owned for (i32, &str, &str) {
    fn owned(self) -> (i32, String, String) {
        (self.0, self.1.to_owned(), self.2.to_owned())
    }
}
