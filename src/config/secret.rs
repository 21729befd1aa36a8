//! The tokens of the network: found where the file says they are, checked, and never shown.

use std::path::{Path, PathBuf};

use super::{
    Network, SecretFault, SecretFile, Surroundings,
    diagnostic::{Code, Diagnostic},
    environment::{self, Filled},
    file::{File, NetworkFile},
    keys::Origins,
    resolve::View,
};
use crate::{id::Origin, wire::Token};
use std::sync::Arc;

/// Where systemd puts the credentials of a unit.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// How every base64 text of a token begins: it is YAML whose first key is `otp`.
pub const TOKEN_START: &str = "b3RwOg";

/// The four ways to name the token of the network, as the file writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    File,
    Credential,
    Variable,
    Inline,
}

impl Way {
    const ALL: [Way; 4] = [Way::File, Way::Credential, Way::Variable, Way::Inline];

    fn key(self) -> &'static str {
        match self {
            Way::File => "network.token_file",
            Way::Credential => "network.token_credential",
            Way::Variable => "network.token_env",
            Way::Inline => "network.token",
        }
    }

    fn written(self, network: &NetworkFile) -> &str {
        match self {
            Way::File => &network.token_file,
            Way::Credential => &network.token_credential.0,
            Way::Variable => &network.token_env.0,
            Way::Inline => &network.token.0,
        }
    }
}

/// The token and the accepted ones.
pub struct Secrets {
    pub network: Option<Network>,
    /// The key that leads to the token.
    pub key: Option<&'static str>,
}

/// Whether the file, with what the environment adds, names a token.
pub fn is_in_network(network: &NetworkFile) -> bool {
    ways(network).next().is_some()
}

/// The files that hold tokens.
pub fn files(file: &File, surroundings: &Surroundings) -> Vec<PathBuf> {
    let network = &file.network;
    let accepted = network.accept_token_files.iter();
    let mut paths: Vec<PathBuf> = accepted
        .map(|path| surroundings.directory.join(&path.0))
        .collect();
    for way in ways(network) {
        paths.extend(place(way, network, surroundings));
    }
    // A token that stands where its path belongs is no path, and must not be shown as one.
    paths.retain(|path| !path.to_string_lossy().contains(TOKEN_START));
    paths.sort();
    paths.dedup();
    paths
}

/// Reads the tokens of a file whose values are all usable.
///
/// Unless the rest of the file is `sound`, a missing token is not told: its key may be among those that are misspelt.
pub fn find(
    origins: &Origins<'_>,
    surroundings: &Surroundings,
    files: &[SecretFile],
    sound: bool,
) -> (Secrets, Vec<Diagnostic>) {
    let search = Search {
        view: origins.view,
        filled: origins.filled,
        surroundings,
        files,
    };
    let network = &origins.view.file.network;
    let mut found = Vec::new();
    let ways: Vec<Way> = ways(network).collect();
    if let [first, second, ..] = ways.as_slice() {
        found.push(search.two_tokens(*first, *second));
    }
    if ways.is_empty() && sound {
        found.extend(search.no_token());
    }
    let mut own = None;
    if let [way] = ways.as_slice() {
        let token = search.own(*way);
        found.extend(token.as_ref().err().map(|error| (**error).clone()));
        own = token.ok();
        found.extend(search.inline(*way, &origins.of(way.key())));
    }
    let mut accepted: Vec<Arc<Token>> = Vec::new();
    for (at, path) in network.accept_token_files.iter().enumerate() {
        let key = format!("network.accept_token_files[{at}]");
        match search.file(&key, &surroundings.directory.join(&path.0)) {
            Ok(token) => {
                let known = own.iter().chain(&accepted).any(|known| **known == token);
                if known {
                    found.push(search.twice(&key));
                } else {
                    accepted.push(Arc::new(token));
                }
            }
            Err(diagnostic) => found.push(*diagnostic),
        }
    }
    let secrets = Secrets {
        network: own.map(|token| Network { token, accepted }),
        key: ways.first().map(|way| way.key()),
    };
    (secrets, found)
}

fn ways(network: &NetworkFile) -> impl Iterator<Item = Way> + '_ {
    Way::ALL
        .into_iter()
        .filter(|way| !way.written(network).is_empty())
}

/// The file that this way leads to.
fn place(way: Way, network: &NetworkFile, surroundings: &Surroundings) -> Option<PathBuf> {
    let written = way.written(network);
    match way {
        Way::File => Some(surroundings.directory.join(written)),
        Way::Credential => {
            let directory = Path::new(surroundings.env.get(CREDENTIALS)?);
            directory.is_absolute().then(|| directory.join(written))
        }
        Way::Variable | Way::Inline => None,
    }
}

struct Search<'a> {
    view: View<'a>,
    filled: &'a Filled,
    surroundings: &'a Surroundings,
    files: &'a [SecretFile],
}

impl Search<'_> {
    fn own(&self, way: Way) -> Result<Arc<Token>, Box<Diagnostic>> {
        let network = &self.view.file.network;
        let written = way.written(network);
        let token = match (way, place(way, network, self.surroundings)) {
            (Way::File | Way::Credential, Some(path)) => self.file(way.key(), &path)?,
            (Way::File | Way::Credential, None) => {
                let diagnostic = self
                    .unreadable(way.key(), "this process was given no credentials")
                    .note(format!("`${CREDENTIALS}` is not set"))
                    .help(format!(
                        "add LoadCredential={written}:PATH to the unit of the node, or name the token by `network.token_file`"
                    ));
                return Err(diagnostic.into());
            }
            (Way::Variable, _) => {
                let value = self.surroundings.env.get(written);
                let value = value.filter(|value| !value.is_empty()).ok_or_else(|| {
                    self.unreadable(way.key(), format!("the variable {written} is not set"))
                        .help(format!(
                            "set {written} for the node, or name the token by `network.token_file`"
                        ))
                })?;
                self.parse(way.key(), value.as_bytes())?
            }
            (Way::Inline, _) => self.parse(way.key(), written.as_bytes())?,
        };
        Ok(Arc::new(token))
    }

    fn file(&self, key: &str, path: &Path) -> Result<Token, Box<Diagnostic>> {
        if path.to_string_lossy().contains(TOKEN_START) {
            let diagnostic = Diagnostic::new(
                Code::SecretUnreadable,
                format!("`{key}` holds a token where the path of one belongs"),
            )
            .key(key)
            .help("write the token into a file of its own (mode 0600) and name that file here");
            return Err(self
                .view
                .mark(diagnostic, key, "a token, not a path")
                .into());
        }
        let found = self.files.iter().find(|file| file.path == path);
        let secret = match found.map(|file| &file.content) {
            Some(Ok(secret)) => secret,
            Some(Err(fault)) => {
                return Err(self
                    .unreadable(key, "cannot be read")
                    .note(fault.reason.clone())
                    .help(fault.help.clone())
                    .into());
            }
            None => {
                return Err(self
                    .unreadable(key, "was not read")
                    .help("correct the path: it starts at the directory of this file")
                    .into());
            }
        };
        if let Some(fault) = secret.exposure(path) {
            return Err(self.exposed(key, fault).into());
        }
        self.parse(key, &secret.bytes)
    }

    fn parse(&self, key: &str, bytes: &[u8]) -> Result<Token, Box<Diagnostic>> {
        Token::parse(bytes).map_err(|error| {
            if let Some(variable) = self.filled.get(key) {
                return Diagnostic::new(Code::EnvironmentValue, format!("{variable} is no token"))
                    .key(key)
                    .note(error.to_string())
                    .help(format!(
                        "correct or unset {variable}, or set `network.token_file`, which wins"
                    ))
                    .into();
            }
            let diagnostic = Diagnostic::new(Code::NotAToken, format!("`{key}` leads to no token"))
                .key(key)
                .note(error.to_string())
                .expected("a token as `edgevpn token new` writes it, or one of EdgeVPN")
                .help(
                    "copy the token again, whole; `edgevpn token inspect` says whether it is one",
                );
            self.view.mark(diagnostic, key, "no token").into()
        })
    }

    fn unreadable(&self, key: &str, label: impl Into<String>) -> Diagnostic {
        let diagnostic = Diagnostic::new(
            Code::SecretUnreadable,
            format!("the token that `{key}` names cannot be read"),
        )
        .key(key);
        self.view.mark(diagnostic, key, &label.into())
    }

    fn exposed(&self, key: &str, fault: SecretFault) -> Diagnostic {
        let diagnostic = Diagnostic::new(
            Code::SecretExposed,
            format!("the token that `{key}` names is not kept from others"),
        )
        .key(key)
        .note(fault.reason)
        .help(fault.help);
        self.view.mark(diagnostic, key, "others have access")
    }

    fn two_tokens(&self, first: Way, second: Way) -> Diagnostic {
        let diagnostic = Diagnostic::new(
            Code::TwoTokens,
            format!("`{}` and `{}` both name the token", first.key(), second.key()),
        )
        .key(second.key())
        .help("keep one of the two; a token that is accepted beside the own one goes into `network.accept_token_files`");
        let diagnostic = self.view.mark(diagnostic, second.key(), "a second token");
        self.view.mark_related(diagnostic, first.key(), "the first")
    }

    /// A section that leads to no token, or accepted tokens without an own one.
    fn no_token(&self) -> Option<Diagnostic> {
        if !self.view.index.is_set("network") {
            return None;
        }
        let diagnostic = Diagnostic::new(Code::NoToken, "the network has no token")
            .key("network")
            .expected("one of `token_file`, `token_credential`, `token_env` and `token`")
            .help("make one with `edgevpn token new` and name its file in `network.token_file`, or remove the section");
        Some(self.view.mark(diagnostic, "network", "no token"))
    }

    /// A token in the file is read by everybody who reads the file, and by its backups and its repository.
    fn inline(&self, way: Way, origin: &Origin) -> Option<Diagnostic> {
        if way != Way::Inline || !matches!(origin, Origin::File { .. }) {
            return None;
        }
        let diagnostic = Diagnostic::new(
            Code::SecretInFile,
            "the token stands in the configuration file",
        )
        .key(way.key())
        .help("move it into a file of its own (mode 0600) and name that in `network.token_file`");
        Some(self.view.mark(diagnostic, way.key(), "a secret"))
    }

    fn twice(&self, key: &str) -> Diagnostic {
        let diagnostic = Diagnostic::new(
            Code::SameToken,
            "this token is accepted already: it is the own one, or listed before",
        )
        .key(key)
        .help("remove it from `network.accept_token_files`");
        self.view.mark(diagnostic, key, "accepted twice")
    }
}

/// What the environment says about the token beside a file that names one.
pub fn overridden(
    origins: &Origins<'_>,
    surroundings: &Surroundings,
    own: &Network,
) -> Option<Diagnostic> {
    let view = origins.view;
    let way = ways(&view.file.network).next()?;
    let said = surroundings.env.get(environment::TOKEN)?;
    let meant = way == Way::Variable && view.file.network.token_env.0 == environment::TOKEN;
    let same = || Token::parse(said.as_bytes()).is_ok_and(|token| token == *own.token);
    if said.is_empty() || meant || origins.filled.contains_key(way.key()) || same() {
        return None;
    }
    let diagnostic = Diagnostic::new(
        Code::EnvironmentOverridden,
        format!(
            "`{}` names another token than {}",
            way.key(),
            environment::TOKEN
        ),
    )
    .key(way.key())
    .help(format!(
        "unset {}, or leave the token to it",
        environment::TOKEN
    ));
    Some(view.mark(diagnostic, way.key(), "the file wins"))
}
