//! How a node starts: the first attempt, against nothing.

use super::{
    Applied, Engine, Standing,
    account::{self, Account},
    history::{History, Keeper},
    lists::{Judged, Lists},
    read::Content,
    sight::{Sight, Subject},
    watcher::{Settings, Watcher},
};
use crate::{
    config::{self, Checked, Config, Diagnostic},
    device::OpenError,
    net::{ListenError, identity::KeyFileError},
    node::{self, Node},
    plan::{Acknowledgement, Outcome, Plan, Trigger},
    telemetry::Log,
};
use std::{collections::BTreeMap, error::Error, io, path::PathBuf, sync::Arc};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};
use toml::de::DeTable;

/// Requests of the API that may wait. A status is answered in about a millisecond; whoever comes beyond these waits in the
/// server, which has a bound of its own.
const REQUESTS: usize = 64;

/// What `run` was told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub file: PathBuf,
    pub on_invalid: OnInvalid,
}

/// What a start does with an invalid file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnInvalid {
    /// It fails.
    #[default]
    Fail,
    /// It takes the last file that was applied, and says so until the present one is valid.
    LastKnownGood,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartFailure {
    #[error("{} is not a valid configuration", .0.name)]
    Invalid(Box<Checked>),
    #[error("{} is not a valid configuration, and no earlier one that is valid is kept", .0.name)]
    NothingGood(Box<Checked>),
    #[error(transparent)]
    Node(#[from] node::StartError),
    #[error(transparent)]
    Prepare(#[from] node::PrepareError),
    #[error("signals cannot be received: {0}")]
    Signals(io::Error),
}

impl StartFailure {
    /// What `run` exits with: 77 without a right it needs, 78 for a configuration or key that cannot be used, 69 for
    /// everything else that keeps it from serving (sysexits(3)).
    pub fn exit_code(&self) -> u8 {
        const UNAVAILABLE: u8 = 69;
        const NO_PERMISSION: u8 = 77;
        const CONFIGURATION: u8 = 78;
        match self {
            StartFailure::Invalid(_) | StartFailure::NothingGood(_) => CONFIGURATION,
            // A key that cannot be used is the operator's; one that the disk does not give or take may be there next time.
            StartFailure::Node(node::StartError::Key(
                KeyFileError::TooOpen { .. }
                | KeyFileError::ForeignOwner { .. }
                | KeyFileError::NotAKey { .. }
                | KeyFileError::NotAFile { .. },
            )) => CONFIGURATION,
            StartFailure::Node(error) if is_forbidden(error) => NO_PERMISSION,
            StartFailure::Prepare(node::PrepareError::Listen(ListenError::Privileged {
                ..
            })) => NO_PERMISSION,
            StartFailure::Prepare(node::PrepareError::Vpn(node::VpnError::Device(
                OpenError::Privilege { .. },
            ))) => NO_PERMISSION,
            StartFailure::Prepare(error) if is_forbidden(error) => NO_PERMISSION,
            StartFailure::Node(_) | StartFailure::Prepare(_) | StartFailure::Signals(_) => {
                UNAVAILABLE
            }
        }
    }
}

/// Whether a right is missing somewhere beneath.
fn is_forbidden(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

impl Engine {
    /// Reads, checks and applies the file for the first time.
    pub async fn start(options: Options, log: Log) -> Result<Engine, StartFailure> {
        let began = super::now();
        // Before anything else: without a handler SIGHUP ends the process.
        let signals = Signals::new().map_err(StartFailure::Signals)?;
        let subject = Subject::new(&options.file);
        let sight = Sight::of(&subject);
        let judged = Lists::default().judge(&subject, &sight, began);
        let looked = sight.fingerprint();
        let (applied, standing, findings) = first(&subject, sight, judged, options.on_invalid)?;

        let (asking, requests) = mpsc::channel(REQUESTS);
        let mut node = Node::start(&applied.config, asking, log)?;
        let prepared = node.prepare(applied.config.clone()).await?;
        let settled = node.commit(prepared).settled().await;

        let plan = Plan::between(&Config::empty(), &applied.config);
        let mut lists = Lists::default();
        lists.adopt(&applied.lists);
        let mut engine = Engine {
            watcher: Watcher::new(Settings::of(&applied.config)),
            keeper: Keeper::new(History::of(&applied.config.node.state_dir)),
            subject,
            node,
            requests,
            signals,
            applied,
            earlier: None,
            unconfirmed: None,
            undone: None,
            looked,
            lists,
            stale_at: None,
            orphan: None,
            standing,
            account: Account::default(),
            started: began,
        };
        engine.watcher.follow(engine.watched());
        if standing != Standing::LastKnownGood {
            engine.keep();
        }
        let verdict = Acknowledgement {
            outcome: match standing {
                Standing::LastKnownGood => Outcome::Rejected,
                Standing::InSync | Standing::Rejected | Standing::RolledBack => Outcome::Applied,
            },
            changes: plan.changes,
            diagnostics: findings,
            settled,
            ..engine.acknowledge(Trigger::Start, &engine.looked)
        };
        engine.close(verdict, began);
        Ok(engine)
    }
}

/// The configuration to start with, how it stands to the file, and what was found in the file.
fn first(
    subject: &Subject,
    sight: Sight,
    judged: Judged,
    on_invalid: OnInvalid,
) -> Result<(Applied, Standing, Vec<Diagnostic>), StartFailure> {
    let Judged {
        checked, contents, ..
    } = judged;
    let (config, file) = match (checked.config.clone(), &sight.file) {
        (Some(config), Ok(file)) => (config, file.clone()),
        _ => {
            let invalid = Box::new(checked);
            if on_invalid == OnInvalid::Fail {
                return Err(StartFailure::Invalid(invalid));
            }
            let Some(applied) = last_known_good(subject, &sight) else {
                return Err(StartFailure::NothingGood(invalid));
            };
            return Ok((applied, Standing::LastKnownGood, invalid.diagnostics));
        }
    };
    let applied = Applied {
        fingerprint: sight.fingerprint(),
        config: Arc::new(config),
        file,
        lists: contents,
        at: account::now(),
        by: Trigger::Start,
    };
    Ok((applied, Standing::InSync, checked.diagnostics))
}

/// The newest kept file that is valid today.
fn last_known_good(subject: &Subject, broken: &Sight) -> Option<Applied> {
    let state_dir = state_dir(subject, broken)?;
    History::of(&state_dir).newest_first().find_map(|record| {
        let subject = Subject {
            name: format!(
                "{} (kept from generation {})",
                subject.name, record.generation
            ),
            ..subject.clone()
        };
        let file = with_its_token(&record.file, broken);
        let sight = Sight::kept(&subject, file.clone(), &record.lists);
        let config = sight.check(&subject, &BTreeMap::new()).config?;
        Some(Applied {
            config: Arc::new(config),
            fingerprint: sight.fingerprint(),
            file,
            lists: record.lists.into_iter().collect(),
            at: account::now(),
            by: Trigger::Start,
        })
    })
}

/// A kept file whose own token was left out, with the one of the broken file. If that is another one, the file of then does
/// not come back in another network.
fn with_its_token(kept: &Arc<Content>, broken: &Sight) -> Arc<Content> {
    let Ok(broken) = &broken.file else {
        return kept.clone();
    };
    let [text, other] = [&kept.bytes, &broken.bytes].map(|bytes| String::from_utf8_lossy(bytes));
    let whole = config::with_token_of(&text, &other);
    whole.map_or_else(
        || kept.clone(),
        |whole| Arc::new(Content::from(whole.into_bytes())),
    )
}

/// Where the broken file says the state is, as far as it can be understood, and else where it is without it.
fn state_dir(subject: &Subject, broken: &Sight) -> Option<PathBuf> {
    // What fills keys says nothing of places, and may not fit a file that is not read whole.
    let mut surroundings = (*subject.surroundings).clone();
    surroundings
        .env
        .retain(|name, _| !name.starts_with("EDGEVPN"));
    let subject = &Subject {
        surroundings: Arc::new(surroundings),
        ..subject.clone()
    };
    let resolved = |text: String| {
        let sight = Sight::kept(subject, Arc::new(Content::from(text.into_bytes())), &[]);
        let config = sight.check(subject, &BTreeMap::new()).config?;
        Some(config.node.state_dir)
    };
    let said = broken.file.as_ref().ok().and_then(|file| {
        let text = String::from_utf8_lossy(&file.bytes);
        let (table, _) = DeTable::parse_recoverable(&text);
        let state_dir = table
            .get_ref()
            .get("node")?
            .get_ref()
            .get("state_dir")?
            .get_ref()
            .as_str()?
            .to_owned();
        // A JSON string is a TOML string.
        resolved(format!(
            "version = 1\nnode.state_dir = {}\n",
            serde_json::Value::from(state_dir)
        ))
    });
    said.or_else(|| resolved("version = 1\n".to_owned()))
}

/// What the service manager and the terminal send.
pub struct Signals {
    /// SIGHUP: look at the file. Many at once count as one.
    pub hangup: Signal,
    pub end: End,
}

/// SIGTERM and SIGINT.
pub struct End {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            end: End {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
            },
        })
    }
}

impl End {
    pub async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::identity::StateDirError;

    #[test]
    fn a_missing_right_is_told_from_what_is_not_to_be_had() {
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let address: libp2p::Multiaddr = "/ip4/127.0.0.1/tcp/80".parse().unwrap();
        let code = |failure: StartFailure| failure.exit_code();
        let privileged = ListenError::Privileged {
            address: address.clone(),
        };
        assert_eq!(code(node::PrepareError::from(privileged).into()), 77);
        let taken = ListenError::InUse { address };
        assert_eq!(code(node::PrepareError::from(taken).into()), 69);
        let path = PathBuf::from("/var/lib/edgevpn");
        let state = StateDirError::Unusable {
            path,
            source: denied(),
        };
        assert_eq!(code(node::StartError::from(state).into()), 77);
        assert_eq!(code(StartFailure::Signals(denied())), 69);
    }
}
