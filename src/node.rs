//! A running node: start, prepare, commit, stop. It owns every task and every socket.
//!
//! Values are published, resources are changed: what a request or packet needs to know is in one immutable [`Snapshot`]
//! behind one `watch`; what has to be opened is opened in [`Node::prepare`], which can fail without effect, and what is
//! gone is closed after [`Node::commit`], which cannot fail.

use std::{path::PathBuf, sync::Arc, time::Duration};

use libp2p::Multiaddr;
use tokio::sync::{mpsc, watch};

use crate::{
    acl::Membership,
    api,
    config::{Config, Snapshot},
    id::{Generation, Origin, PeerId},
    net::{
        self,
        identity::{self, KeyFileError, StateDirError, StateLock},
    },
    plan::{Plan, Settled},
    task,
    telemetry::{Log, LogError, PreparedLog},
};

mod bootstrap;
mod clock;
pub mod disk;
mod effect;
mod explain;
pub mod forward;
mod report;
mod sync;
mod vpn;

use vpn::Vpn;
pub use vpn::VpnError;

/// Everything that can fail before a commit is done within this, or the attempt fails. Binding takes milliseconds; what
/// takes longer is a disk or a resolver that hangs, and the operator should hear of it.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(10);

/// A commit is carried out within milliseconds; an acknowledgement does not wait longer than this to say what it cut.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);

pub struct Node {
    publish: watch::Sender<Arc<Snapshot>>,
    net: net::Handle,
    listeners: Vec<Multiaddr>,
    api: Served,
    metrics: Served,
    vpn: Vpn,
    machines: watch::Receiver<Arc<sync::Machines>>,
    requests: mpsc::Sender<api::Request>,
    log: Log,
    /// The key file, if this start has made it.
    new_key: Option<PathBuf>,
    ledger: sync::Handle,
    _state: StateLock,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Key(#[from] KeyFileError),
    #[error(transparent)]
    State(#[from] StateDirError),
    #[error(transparent)]
    Network(#[from] net::StartError),
}

#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error(transparent)]
    Listen(#[from] net::ListenError),
    #[error(transparent)]
    Api(#[from] api::BindError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Vpn(#[from] VpnError),
    #[error("not ready within {} s", PREPARE_TIMEOUT.as_secs())]
    TimedOut,
}

/// A configuration whose resources are open and which nobody follows yet. Dropped, it closes them again.
pub struct Prepared {
    config: Arc<Config>,
    opened: Opened,
    closing: Vec<Multiaddr>,
    api: Rebind<api::Bound>,
    metrics: Rebind<api::Bound>,
    vpn: vpn::Prepared,
    log: PreparedLog,
}

/// What becomes of a server when a configuration is committed.
enum Rebind<B> {
    Keep,
    Stop,
    Start(B),
}

/// A server, and the one before while it still answers: the reload that moves a socket was asked for through the old one.
#[derive(Default)]
struct Served {
    server: Option<api::Handle>,
    retiring: Option<task::Task>,
}

impl Served {
    fn replace(&mut self, rebind: Rebind<api::Bound>, requests: &mpsc::Sender<api::Request>) {
        let successor = match rebind {
            Rebind::Keep => return,
            Rebind::Stop => None,
            Rebind::Start(bound) => Some(bound.serve(requests.clone())),
        };
        let old = std::mem::replace(&mut self.server, successor);
        self.retiring = old.map(|old| task::spawn("api, retiring", old.stop()));
    }
}

/// New listeners, closed again unless they are committed.
struct Opened {
    net: net::Handle,
    listeners: Vec<Multiaddr>,
}

/// What [`Node::commit`] leaves to wait for.
pub struct Committed {
    pub generation: Generation,
    net: net::Handle,
}

impl Node {
    /// Takes the state directory and the key, and starts the swarm. Nothing listens and nobody is served until the first
    /// configuration is committed.
    pub fn start(
        config: &Config,
        requests: mpsc::Sender<api::Request>,
        log: Log,
    ) -> Result<Node, StartError> {
        let state = identity::lock_state_dir(&config.node.state_dir)?;
        let identity = identity::load_or_create(&config.node.key_file)?;
        let nothing = Snapshot {
            generation: Generation::default(),
            config: Arc::new(Config::empty()),
        };
        let (publish, live) = watch::channel(Arc::new(nothing));
        let (members, membership) = watch::channel(Arc::<Membership>::default());
        let (net, heard) = net::start(&identity.keypair, live.clone(), membership)?;
        let (claims, machines) = watch::channel(Arc::default());
        let vpn = Vpn::new(net.clone(), live.clone(), machines.clone());
        let ledger = sync::Handle::start(sync::Inputs {
            keypair: identity.keypair,
            state_dir: config.node.state_dir.clone(),
            net: net.clone(),
            heard,
            live,
            members,
            machines: claims,
        });
        Ok(Node {
            net,
            ledger,
            publish,
            listeners: Vec::new(),
            api: Served::default(),
            metrics: Served::default(),
            vpn,
            machines,
            requests,
            log,
            new_key: identity.new.then(|| config.node.key_file.clone()),
            _state: state,
        })
    }

    pub fn peer_id(&self) -> PeerId {
        self.net.local_peer
    }

    /// What is in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.publish.borrow().clone()
    }

    /// Opens everything `config` needs beside what is open already. On any error nothing has changed, with one exception
    /// that UDP forces on us: a QUIC listener that overlaps the one it replaces comes back under its old address.
    pub async fn prepare(&self, config: Arc<Config>) -> Result<Prepared, PrepareError> {
        tokio::time::timeout(PREPARE_TIMEOUT, self.open(config))
            .await
            .map_err(|_| PrepareError::TimedOut)?
    }

    async fn open(&self, config: Arc<Config>) -> Result<Prepared, PrepareError> {
        let applied = self.snapshot().config.clone();
        let log = self.log.prepare(&config.log)?;
        let api = match &config.api.socket {
            same if *same == applied.api.socket => Rebind::Keep,
            None => Rebind::Stop,
            Some(path) => Rebind::Start(api::Server::bind(path).await?),
        };
        let metrics = match config.api.metrics {
            same if same == applied.api.metrics => Rebind::Keep,
            None => Rebind::Stop,
            Some(address) => Rebind::Start(api::Server::bind_metrics(address).await?),
        };
        let wanted = &config.transport.listen;
        let closing: Vec<Multiaddr> = self
            .listeners
            .iter()
            .filter(|address| !wanted.contains(address))
            .cloned()
            .collect();
        let mut opened = Opened {
            net: self.net.clone(),
            listeners: Vec::new(),
        };
        for address in wanted {
            if !self.listeners.contains(address)
                && self.listen(address, &closing, by_default(&config)).await?
            {
                opened.listeners.push(address.clone());
            }
        }
        let vpn = self.vpn.prepare(&config.vpn).await?;
        Ok(Prepared {
            vpn,
            config,
            opened,
            closing,
            api,
            metrics,
            log,
        })
    }

    /// Whether the address is bound now. The default addresses name both families; a machine that has only one of them is
    /// not misconfigured.
    async fn listen(
        &self,
        address: &Multiaddr,
        replaces: &[Multiaddr],
        by_default: bool,
    ) -> Result<bool, net::ListenError> {
        match self.net.listen(address, replaces).await {
            Ok(()) => Ok(true),
            Err(error @ net::ListenError::NoFamily { .. }) if by_default => {
                tracing::warn!(%address, cause = %error, "default listener left out");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Publishes the configuration under the next generation and closes what it no longer wants. Requests that arrive
    /// after this are judged by it.
    pub fn commit(&mut self, prepared: Prepared) -> Committed {
        let Prepared {
            config,
            mut opened,
            closing,
            api,
            metrics,
            vpn,
            log,
        } = prepared;
        let generation = self.publish.borrow().generation.next();
        self.publish
            .send_replace(Arc::new(Snapshot { generation, config }));
        self.log.commit(log);
        self.listeners
            .retain(|listener| !closing.contains(listener));
        self.listeners.append(&mut opened.listeners);
        self.net.close(closing);
        self.api.replace(api, &self.requests);
        self.metrics.replace(metrics, &self.requests);
        self.vpn.commit(vpn);
        Committed {
            generation,
            net: self.net.clone(),
        }
    }

    /// Puts a configuration of the same keys in place: comments and line numbers changed, or the same entries stand in
    /// other lines.
    pub fn republish(&self, config: Arc<Config>) {
        let generation = self.publish.borrow().generation;
        self.publish
            .send_replace(Arc::new(Snapshot { generation, config }));
    }

    /// Says in words what `plan` would do to those who use the node now.
    pub async fn foresee(&self, plan: &mut Plan, new: &Config) {
        let applied = self.snapshot().config.clone();
        for section in effect::Section::ALL {
            if section.change_in(plan).is_none() {
                continue;
            }
            let alone = Arc::new(section.taken_over(&applied, new));
            if let (Some(impact), Some(change)) =
                (self.net.impact(alone).await, section.change_in(plan))
            {
                change.effect = effect::in_words(&impact);
            }
        }
        let membership = self.net.membership();
        for change in &mut plan.changes {
            if let Some(effect) = effect::on_members(&change.key, &applied, new, &membership) {
                change.effect = Some(effect);
            }
        }
    }

    /// Peers connected at this moment.
    pub async fn connected(&self) -> std::collections::BTreeSet<PeerId> {
        self.net.report().await.peers
    }

    /// Admits nobody from now on, and waits until the last circuit has ended or `patience` is over. Reports go on.
    pub fn drain(&self, patience: Duration) -> impl Future<Output = ()> + use<> {
        let net = self.net.clone();
        async move {
            net.drain().await;
            if tokio::time::timeout(patience, net.idle()).await.is_err() {
                let circuits = net.report().await.relay.circuits;
                tracing::warn!(circuits, patience = ?patience, "circuits cut at the end of the drain time-out");
            }
        }
    }

    /// Leaves the network and closes everything. Answers under way are finished.
    pub async fn stop(self) {
        self.ledger.leave().await;
        for served in [self.api, self.metrics] {
            if let Some(server) = served.server {
                server.stop().await;
            }
        }
    }
}

impl Committed {
    /// Waits until the relay has carried the new policy out, and says what that ended. `None` if it did not within two
    /// seconds; it goes on all the same.
    pub async fn settled(self) -> Option<Settled> {
        tokio::time::timeout(SETTLE_TIMEOUT, self.net.settled(self.generation))
            .await
            .ok()
            .flatten()
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if !self.listeners.is_empty() {
            self.net.undo(std::mem::take(&mut self.listeners));
        }
    }
}

fn by_default(config: &Config) -> bool {
    config
        .keys
        .get("transport.listen")
        .is_none_or(|listen| listen.origin == Origin::Default)
}
