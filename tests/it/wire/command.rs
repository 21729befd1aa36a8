//! `edgevpn token` as an operator runs it.

use edgevpn::wire::Token;
use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
};

fn token(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_edgevpn"))
        .arg("token")
        .args(arguments)
        .output()
        .expect("run")
}

fn token_reading(input: &str, arguments: &[&str]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_edgevpn"))
        .arg("token")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("written");
    drop(stdin);
    child.wait_with_output().expect("ended")
}

fn out(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("text")
}

fn err(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("text")
}

#[test]
fn a_new_token_is_one_line_and_never_the_same() {
    let (one, other) = (token(&["new"]), token(&["new", "--interval", "9000"]));
    let read = Token::parse(&one.stdout).expect("a token");
    assert_eq!(out(&one), read.to_base64() + "\n");
    assert_eq!((read.crypto.interval, read.dht.interval), (360, 360));
    assert_eq!((read.crypto.length, read.dht.length), (43, 43));
    assert_eq!(read.max_message_size, 20 << 20);
    for secret in [
        &read.crypto.key,
        &read.dht.key,
        &read.room,
        &read.rendezvous,
        &read.mdns,
    ] {
        assert_eq!(secret.len(), 43);
        assert!(secret.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    }
    let other = Token::parse(&other.stdout).expect("a token");
    assert_eq!(other.crypto.interval, 9000);
    assert_ne!(other.crypto.key, read.crypto.key);
    assert_ne!(other.fingerprint(), read.fingerprint());
}

#[test]
fn a_token_file_is_for_its_user_and_is_never_overwritten() {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("token");
    let name = path.to_str().expect("text");
    let made = token(&["new", "-o", name]);
    assert_eq!(made.status.code(), Some(0), "{}", err(&made));
    let written = fs::read(&path).expect("written");
    let fingerprint = Token::parse(&written).expect("a token").fingerprint();
    assert!(out(&made).contains(&fingerprint.to_string()));
    let mode = fs::metadata(&path).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let again = token(&["new", "-o", name]);
    assert_eq!(again.status.code(), Some(2));
    assert!(err(&again).contains("exists"), "{}", err(&again));
    assert_eq!(fs::read(&path).expect("still there"), written);
    assert_eq!(fs::read_dir(place.path()).expect("listed").count(), 1);

    let nowhere = token(&["new", "-o", &format!("{name}/x")]);
    assert_eq!(nowhere.status.code(), Some(2));
}

#[test]
fn inspecting_shows_no_secret_unless_asked() {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("token");
    let name = path.to_str().expect("text");
    token(&["new", "-o", name]);
    let read = Token::parse(&fs::read(&path).expect("written")).expect("a token");

    let shown = token(&["inspect", name]);
    assert_eq!(shown.status.code(), Some(0));
    assert!(out(&shown).starts_with(&format!("network     {}\n", read.fingerprint())));
    assert_eq!(err(&shown), "");
    for secret in [
        &read.crypto.key,
        &read.dht.key,
        &read.room,
        &read.rendezvous,
        &read.mdns,
    ] {
        assert!(!out(&shown).contains(secret.as_str()));
    }
    // Neither form of the whole token either.
    for form in ["--yaml", "--base64"] {
        assert_eq!(token(&["inspect", name, form]).status.code(), Some(2));
    }
    let all = token(&["inspect", name, "--secrets"]);
    assert!(out(&all).ends_with(&read.to_yaml()));

    // Both forms lead to each other.
    let yaml = token(&["inspect", name, "--secrets", "--yaml"]);
    assert_eq!(out(&yaml), read.to_yaml());
    let base64 = token_reading(out(&yaml), &["inspect", "-", "--secrets", "--base64"]);
    assert_eq!(out(&base64), read.to_base64() + "\n");
}

#[test]
fn a_bad_token_is_named_with_its_fault_and_without_its_text() {
    let place = tempfile::tempdir().expect("a directory");
    let good = out(&token(&["new"])).trim().to_owned();
    let cut: String = good.chars().take(200).collect();
    for (content, told) in [
        ("", "empty"),
        ("  \n", "empty"),
        ("not a token!", "neither base64 nor YAML"),
        (&*cut, "was the token cut?"),
        ("otp: [", "no YAML mapping of a network"),
        ("room: x", "otp.dht.interval 0"),
        (&*"x".repeat(70_000), "too many"),
    ] {
        let path = place.path().join("bad");
        fs::write(&path, content).expect("written");
        let shown = token(&["inspect", path.to_str().expect("text")]);
        assert_eq!(shown.status.code(), Some(1), "{content}");
        assert!(err(&shown).contains(told), "{told}: {}", err(&shown));
        assert_eq!(out(&shown), "");
    }
    let missing = token(&["inspect", "/nonexistent/token"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(err(&missing).contains("does not exist"));
    let directory = token(&["inspect", place.path().to_str().expect("text")]);
    assert_eq!(directory.status.code(), Some(2));
    let endless = token(&["inspect", "/dev/zero"]);
    assert_eq!(endless.status.code(), Some(2));
}

#[test]
fn a_token_that_others_may_read_is_shown_with_a_warning() {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("token");
    fs::write(&path, token(&["new"]).stdout).expect("written");
    open(&path, 0o644);
    let shown = token(&["inspect", path.to_str().expect("text")]);
    assert_eq!(shown.status.code(), Some(0));
    assert!(err(&shown).contains("mode 644"), "{}", err(&shown));
}

fn open(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}
