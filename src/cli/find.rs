//! Which socket to ask: the one the arguments name, else the places where nodes put theirs.
#![allow(
    clippy::disallowed_methods,
    reason = "this command's own environment says where sockets are"
)]

use crate::{
    api::Client,
    config::{self, Source, Surroundings},
    reload::read::{self, FILE_CAP},
};
use std::{
    env, fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::net::UnixStream;
use toml::de::{DeTable, DeValue};

/// Where a node that the system starts has its socket.
const SYSTEM: &str = "/run/edgevpn";

/// The name of `api.listen`, if the file does not say it.
const SOCKET: &str = "api.sock";

/// Which node is meant.
#[derive(Debug, clap::Args)]
pub(super) struct Find {
    /// Socket of the node's API
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Configuration file of the node; its `[api]` and `state_dir` say where the socket is
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Nobody can be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotFound {
    #[error("no node answers; tried {}; name its socket with --socket, or its file with -c", Tried(.0))]
    Nowhere(Vec<(PathBuf, io::Error)>),
    #[error("{} switches the API off (`api.listen = \"\"`), so that its node cannot be asked", .0.display())]
    Off(PathBuf),
    #[error(transparent)]
    Unreadable(#[from] read::Unreadable),
}

impl Find {
    /// A client of the first place where something answers.
    pub(super) async fn client(&self, deadline: Duration) -> Result<Client, NotFound> {
        let mut tried = Vec::new();
        for place in self.places()? {
            match UnixStream::connect(&place).await {
                Ok(_) => return Ok(Client::new(place, deadline)),
                Err(error) => tried.push((place, error)),
            }
        }
        Err(NotFound::Nowhere(tried))
    }

    fn places(&self) -> Result<Vec<PathBuf>, NotFound> {
        if let Some(socket) = &self.socket {
            return Ok(vec![socket.clone()]);
        }
        let Some(file) = &self.config else {
            let runtime = env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
            let user = env::var_os("XDG_RUNTIME_DIR").map(|user| Path::new(&user).join("edgevpn"));
            let directories = [runtime, Some(SYSTEM.into()), user].into_iter().flatten();
            return Ok(distinct(
                directories.map(|directory| directory.join(SOCKET)),
            ));
        };
        let content = read::read(file, FILE_CAP)?;
        let text = String::from_utf8_lossy(&content.bytes);
        match places_in(&text, &surroundings(file)) {
            Some(places) => Ok(places),
            None => Err(NotFound::Off(file.clone())),
        }
    }
}

/// Where the node of this file has its socket, also if the file is invalid: that is when it is asked most. `None`: it has none.
fn places_in(text: &str, surroundings: &Surroundings) -> Option<Vec<PathBuf>> {
    let (table, _) = DeTable::parse_recoverable(text);
    let said = |section: &str, key: &str| match table.get_ref().get(section)?.get_ref() {
        DeValue::Table(section) => Some(section.get(key)?.get_ref().as_str()?.to_owned()),
        _ => None,
    };
    let (listen, state_dir) = (said("api", "listen"), said("node", "state_dir"));
    let resolved = |listen: Option<&str>, state_dir: Option<&str>| {
        let mut text = "version = 1\n".to_owned();
        for (key, value) in [("api.listen", listen), ("node.state_dir", state_dir)] {
            if let Some(value) = value {
                // A JSON string is a TOML string.
                text.push_str(&format!("{key} = {}\n", serde_json::Value::from(value)));
            }
        }
        let source = Source {
            name: String::new(),
            bytes: text.into_bytes(),
        };
        let checked = config::parse(source, surroundings).resolve(Vec::new());
        Some(checked.config?.api.socket)
    };
    // What the file says may be wrong in itself; then the node runs with what it said before, most likely the default.
    let socket = resolved(listen.as_deref(), state_dir.as_deref())
        .or_else(|| resolved(None, state_dir.as_deref()))
        .or_else(|| resolved(None, None))??;
    // A member of the socket's group asks for the system's node without the environment that the system gave it.
    let name = listen
        .as_deref()
        .and_then(|listen| listen.strip_prefix("unix:"));
    let system = Path::new(SYSTEM).join(name.unwrap_or(SOCKET));
    Some(distinct([socket, system]))
}

fn distinct(places: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut distinct = Vec::new();
    for place in places {
        if !distinct.contains(&place) {
            distinct.push(place);
        }
    }
    distinct
}

/// What the node of this file would be given, if this process started it.
fn surroundings(file: &Path) -> Surroundings {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    Surroundings {
        // What fills keys says nothing of places, and may not fit a file that is not read whole.
        env: env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| !name.starts_with("EDGEVPN"))
            .collect(),
        host_name: String::new(),
        directory: file.parent().unwrap_or(Path::new("/")).to_owned(),
        root: rustix::process::geteuid().is_root(),
    }
}

struct Tried<'a>(&'a [(PathBuf, io::Error)]);

impl fmt::Display for Tried<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (place, error)) in self.0.iter().enumerate() {
            let between = if index > 0 { ", " } else { "" };
            let why = match error.kind() {
                io::ErrorKind::NotFound => "does not exist".to_owned(),
                io::ErrorKind::ConnectionRefused => "nobody listens".to_owned(),
                io::ErrorKind::PermissionDenied => "not permitted".to_owned(),
                _ => error.to_string(),
            };
            write!(f, "{between}{} ({why})", place.display())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(text: &str) -> Option<Vec<String>> {
        let surroundings = Surroundings {
            env: [("XDG_RUNTIME_DIR".to_owned(), "/run/user/7".to_owned())].into(),
            directory: "/etc/edgevpn".into(),
            ..Surroundings::default()
        };
        let shown = |place: PathBuf| place.display().to_string();
        Some(
            places_in(text, &surroundings)?
                .into_iter()
                .map(shown)
                .collect(),
        )
    }

    fn usual() -> Option<Vec<String>> {
        Some(vec![
            "/run/user/7/edgevpn/api.sock".to_owned(),
            "/run/edgevpn/api.sock".to_owned(),
        ])
    }

    #[test]
    fn a_file_that_says_nothing_of_its_socket_leads_to_the_usual_places() {
        assert_eq!(places("version = 1"), usual());
        assert_eq!(places(""), usual());
        assert_eq!(places("[api]\nlisten = 7"), usual());
    }

    #[test]
    fn an_absolute_socket_is_the_only_place() {
        let text = "[api]\nlisten = \"unix:/srv/x.sock\"";
        assert_eq!(places(text), Some(vec!["/srv/x.sock".to_owned()]));
    }

    #[test]
    fn a_broken_file_still_says_where_its_node_is() {
        let text = "[node]\nname = \n[api]\nlisten = \"unix:x.sock\"\n[relay]\nmax = = 1\n";
        assert_eq!(places(text).unwrap()[0], "/run/user/7/edgevpn/x.sock");
    }

    #[test]
    fn an_api_that_is_off_is_known() {
        assert_eq!(places("[api]\nlisten = \"\""), None);
    }
}
