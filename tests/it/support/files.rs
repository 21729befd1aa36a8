//! A configuration file that differs from test to test in one number, and the ways people and programs write files.
#![allow(dead_code, reason = "each test module uses its part")]

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// A file whose one interesting value is `relay.resources.max_circuits`: a number is valid, everything else is not. Contents
/// are compared so rarely that events must do the work, unless `more` says otherwise.
pub fn file(circuits: &str, more: &str) -> String {
    format!(
        r#"version = 1
node.state_dir = "state"
transport.listen = []
api.listen = "unix:api.sock"
log = {{ level = "debug", format = "json" }}

[relay.resources]
max_circuits = {circuits}

[acl]
reserve = "anyone"
refresh = "10m"

[limits]
connections = 64

[reload]
settle = "100ms"
poll_interval = "10m"
{more}"#
    )
}

/// How a file comes to lie where the node looks for it.
#[derive(Clone, Copy, Debug)]
pub enum Layout {
    Plain,
    /// A ConfigMap volume: `edgevpn.toml` → `..data/edgevpn.toml`, `..data` → `..<n>`.
    Kubernetes,
    /// `edgevpn.toml` → `repo/conf/edgevpn.toml`, `repo` → `worktrees/<n>`.
    GitSync,
    /// `edgevpn.toml` → `etc/conf/edgevpn.toml`.
    Deep,
}

impl Layout {
    pub fn arrange(self, folder: &Path, text: &str) {
        let named = folder.join("edgevpn.toml");
        match self {
            Layout::Plain => fs::write(named, text).expect("written"),
            Layout::Kubernetes => {
                symlink("..data/edgevpn.toml", named).expect("linked");
                swap(folder, "", "..data", "edgevpn.toml", text);
            }
            Layout::GitSync => {
                fs::create_dir(folder.join("worktrees")).expect("created");
                symlink("repo/conf/edgevpn.toml", named).expect("linked");
                swap(folder, "worktrees/", "repo", "conf/edgevpn.toml", text);
            }
            Layout::Deep => {
                fs::create_dir_all(folder.join("etc/conf")).expect("created");
                symlink("etc/conf/edgevpn.toml", named).expect("linked");
                fs::write(folder.join("etc/conf/edgevpn.toml"), text).expect("written");
            }
        }
    }
}

/// A way to write a file.
#[derive(Clone, Copy, Debug)]
pub enum Style {
    RenamedOver,
    InPlace,
    /// In place and slowly, by one writer.
    InParts,
    Copied,
    Sed,
    MadeAgain,
    ByAnotherName,
    VolumeSwapped,
    WorktreeSwapped,
    DirectoryReplaced,
    DirectoryAboveReplaced,
}

impl Style {
    pub fn layout(self) -> Layout {
        match self {
            Style::VolumeSwapped => Layout::Kubernetes,
            Style::WorktreeSwapped => Layout::GitSync,
            Style::DirectoryReplaced | Style::DirectoryAboveReplaced => Layout::Deep,
            _ => Layout::Plain,
        }
    }

    pub fn write(self, folder: &Path, text: &str) {
        let named = folder.join("edgevpn.toml");
        let beside = folder.join("beside");
        match self {
            Style::RenamedOver => {
                fs::write(&beside, text).expect("written");
                fs::rename(beside, named).expect("renamed");
            }
            Style::InPlace => fs::write(named, text).expect("written"),
            Style::InParts => {
                let mut writer = File::create(named).expect("opened");
                for part in text.as_bytes().chunks(text.len() / 4 + 1) {
                    writer.write_all(part).expect("written");
                    std::thread::sleep(Duration::from_millis(150));
                }
            }
            Style::Copied => {
                fs::write(&beside, text).expect("written");
                run(Command::new("cp").arg(beside).arg(named));
            }
            Style::Sed => {
                let number = text
                    .lines()
                    .find(|line| line.starts_with("max_circuits"))
                    .expect("a number");
                let script = format!("s/^max_circuits = .*/{number}/");
                run(Command::new("sed").arg("-i").arg(script).arg(named));
            }
            Style::MadeAgain => {
                fs::remove_file(&named).expect("removed");
                fs::write(named, text).expect("written");
            }
            Style::ByAnotherName => {
                let other = folder.join("state/other name");
                let _ = fs::remove_file(&other);
                fs::hard_link(named, &other).expect("linked");
                fs::write(other, text).expect("written");
            }
            Style::VolumeSwapped => swap(folder, "", "..data", "edgevpn.toml", text),
            Style::WorktreeSwapped => swap(folder, "worktrees/", "repo", "conf/edgevpn.toml", text),
            Style::DirectoryReplaced => replace(
                &folder.join("etc/conf"),
                &folder.join("etc/conf/edgevpn.toml"),
                text,
            ),
            Style::DirectoryAboveReplaced => replace(
                &folder.join("etc"),
                &folder.join("etc/conf/edgevpn.toml"),
                text,
            ),
        }
    }
}

/// Writes a new version of a directory and points `link` at it in one step; then removes the old version.
fn swap(folder: &Path, versions: &str, link: &str, file: &str, text: &str) {
    let link = folder.join(link);
    let old = fs::read_link(&link).ok();
    let number: u32 = old
        .as_ref()
        .and_then(|old| old.to_str()?.rsplit('.').next()?.parse().ok())
        .unwrap_or(0);
    let version = PathBuf::from(format!("{versions}..{}", number + 1));
    let file = folder.join(&version).join(file);
    fs::create_dir_all(file.parent().expect("a parent")).expect("created");
    fs::write(file, text).expect("written");
    let beside = folder.join("..tmp");
    symlink(version, &beside).expect("linked");
    fs::rename(beside, link).expect("renamed");
    if let Some(old) = old {
        fs::remove_dir_all(folder.join(old)).expect("removed");
    }
}

/// Moves a directory away and makes it anew.
fn replace(directory: &Path, file: &Path, text: &str) {
    let aside = directory.with_extension("old");
    let _ = fs::remove_dir_all(&aside);
    fs::rename(directory, aside).expect("moved");
    fs::create_dir_all(file.parent().expect("a parent")).expect("created");
    fs::write(file, text).expect("written");
}

pub fn run(command: &mut Command) {
    let status = command.status().expect("started");
    assert!(status.success(), "{command:?} ends with {status}");
}
