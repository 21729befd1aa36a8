//! Which socket to ask: the one the arguments name, else the places where nodes put theirs.
#![allow(
    clippy::disallowed_methods,
    reason = "this command's own environment says where sockets are"
)]

use crate::{
    api::Client,
    reload::read::{self, FILE_CAP},
};
use std::{
    env, fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::net::UnixStream;
use toml::de::{DeTable, DeValue};

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
        let said = match &self.config {
            Some(file) => Said::by(file)?,
            None => Said::default(),
        };
        if said.off {
            return Err(NotFound::Off(self.config.clone().unwrap_or_default()));
        }
        let runtime = env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
        let user =
            env::var_os("XDG_RUNTIME_DIR").map(|directory| Path::new(&directory).join("edgevpn"));
        Ok(said.places(runtime, user))
    }
}

/// What a file says about the place of its node's socket, as far as it can be read: a node is asked most when its file is
/// invalid.
#[derive(Debug, Default, PartialEq)]
struct Said {
    off: bool,
    /// After `unix:`.
    name: Option<PathBuf>,
    state_dir: Option<PathBuf>,
}

impl Said {
    fn by(file: &Path) -> Result<Said, read::Unreadable> {
        let content = read::read(file, FILE_CAP)?;
        let directory = file.parent().unwrap_or(Path::new("."));
        Ok(Said::in_text(
            &String::from_utf8_lossy(&content.bytes),
            directory,
        ))
    }

    fn in_text(text: &str, directory: &Path) -> Said {
        let (table, _) = DeTable::parse_recoverable(text);
        let said = |section: &str, key: &str| match table.get_ref().get(section)?.get_ref() {
            DeValue::Table(section) => Some(section.get(key)?.get_ref().as_str()?.to_owned()),
            _ => None,
        };
        let listen = said("api", "listen");
        Said {
            off: listen.as_deref() == Some(""),
            name: listen.and_then(|listen| Some(listen.strip_prefix("unix:")?.into())),
            state_dir: said("node", "state_dir").map(|state_dir| directory.join(state_dir)),
        }
    }

    /// Most particular first: a socket in the state directory belongs to this file's node and no other.
    fn places(self, runtime: Option<PathBuf>, user: Option<PathBuf>) -> Vec<PathBuf> {
        let name = self.name.unwrap_or_else(|| "api.sock".into());
        if name.is_absolute() {
            return vec![name];
        }
        let system = Some(PathBuf::from("/run/edgevpn"));
        let mut places: Vec<PathBuf> = Vec::new();
        for directory in [self.state_dir, runtime, system, user]
            .into_iter()
            .flatten()
        {
            let place = directory.join(&name);
            if !places.contains(&place) {
                places.push(place);
            }
        }
        places
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

    fn places(text: &str) -> Vec<String> {
        Said::in_text(text, Path::new("/etc/edgevpn"))
            .places(Some("/run/e7".into()), Some("/run/user/7/edgevpn".into()))
            .into_iter()
            .map(|place| place.display().to_string())
            .collect()
    }

    #[test]
    fn a_file_that_says_nothing_leads_to_the_usual_places() {
        let usual = [
            "/run/e7/api.sock",
            "/run/edgevpn/api.sock",
            "/run/user/7/edgevpn/api.sock",
        ];
        assert_eq!(places("version = 1"), usual);
        assert_eq!(places(""), usual);
    }

    #[test]
    fn an_absolute_socket_is_the_only_place() {
        assert_eq!(
            places("[api]\nlisten = \"unix:/srv/x.sock\""),
            ["/srv/x.sock"]
        );
    }

    #[test]
    fn a_broken_file_still_says_where_its_node_is() {
        let text = "[node]\nstate_dir = \"state\"\nname = \n[api]\nlisten = \"unix:x.sock\"\n[relay]\nmax = = 1\n";
        assert_eq!(
            places(text)[..2],
            ["/etc/edgevpn/state/x.sock", "/run/e7/x.sock"]
        );
    }

    #[test]
    fn an_api_that_is_off_is_known() {
        assert!(Said::in_text("[api]\nlisten = \"\"", Path::new(".")).off);
        assert!(!Said::in_text("[api]\nlisten = 7", Path::new(".")).off);
    }
}
