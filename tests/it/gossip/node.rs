//! A node that does nothing but gossip, in a swarm of its own.

use std::{future::Future, sync::Arc, time::Duration};

use edgevpn::{
    config::{Config, Network, Snapshot},
    id::{Generation, UnixTime},
    net::gossip::{self, Message, Outlet, Outlets, Verdict},
    wire::{Fingerprint, Rotation, Token, Window},
};
use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, identify,
    identity::Keypair,
    noise,
    swarm::{NetworkBehaviour, SwarmEvent, dial_opts::DialOpts},
    tcp, yamux,
};
use std::time::SystemTime;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

/// How long a test waits for what it expects before it says so.
const PATIENCE: Duration = Duration::from_secs(20);

/// No test lasts so long that an idle connection is closed.
pub const IDLE: Duration = Duration::from_secs(60);

#[derive(NetworkBehaviour)]
pub struct Gossiping {
    gossip: gossip::Behaviour,
    identify: identify::Behaviour,
}

type Job = Box<dyn FnOnce(&mut Swarm<Gossiping>) + Send>;

/// A node and its ends: what it hears, and where the others are.
pub struct Member {
    pub id: PeerId,
    pub tcp: Multiaddr,
    pub quic: Multiaddr,
    network: Fingerprint,
    control: gossip::Control,
    outlets: watch::Receiver<Arc<Outlets>>,
    live: watch::Sender<Arc<Snapshot>>,
    jobs: mpsc::UnboundedSender<Job>,
    heard: mpsc::UnboundedReceiver<Message>,
    /// Messages that nobody asked for.
    pub passed_over: u64,
    _running: Running,
}

pub struct Running(JoinHandle<()>);

impl Running {
    pub fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(future))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A network whose windows last `interval` seconds.
pub fn token(interval: u64) -> Arc<Token> {
    let rotation = |key: &str| Rotation {
        interval,
        key: key.to_owned(),
        length: 43,
    };
    Arc::new(Token {
        dht: rotation("dht"),
        crypto: rotation("crypto"),
        room: format!("room {}", PeerId::random()),
        rendezvous: "rendezvous".to_owned(),
        mdns: "mdns".to_owned(),
        max_message_size: 20 << 20,
    })
}

pub fn snapshot(generation: u64, tokens: &[Arc<Token>]) -> Arc<Snapshot> {
    let mut config = Config::empty();
    config.network = tokens.split_first().map(|(token, accepted)| Network {
        token: token.clone(),
        accepted: accepted.to_vec(),
    });
    Arc::new(Snapshot {
        generation: Generation(generation),
        config: Arc::new(config),
    })
}

impl Member {
    pub async fn start(token: &Arc<Token>) -> Self {
        Self::with_skew(token, 0).await
    }

    /// One whose clock is `skew` milliseconds ahead.
    pub async fn with_skew(token: &Arc<Token>, skew: i64) -> Self {
        let keypair = Keypair::generate_ed25519();
        let id = keypair.public().to_peer_id();
        let (live, follow) = watch::channel(snapshot(1, std::slice::from_ref(token)));
        let clock = Arc::new(move || skewed(skew));
        let gossip = gossip::Behaviour::with_clock(keypair.clone(), follow, clock);
        let control = gossip.control();
        let mut swarm = SwarmBuilder::with_existing_identity(keypair)
            .with_tokio()
            .with_tcp(
                tcp::Config::default().nodelay(true),
                noise::Config::new,
                yamux::Config::default,
            )
            .expect("tcp")
            .with_quic()
            .with_behaviour(|keypair| Gossiping {
                gossip,
                identify: identify::Behaviour::new(identify::Config::new(
                    "test".to_owned(),
                    keypair.public(),
                )),
            })
            .expect("a behaviour")
            .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE))
            .build();
        let tcp = listen(&mut swarm, "/ip4/127.0.0.1/tcp/0").await;
        let quic = listen(&mut swarm, "/ip4/127.0.0.1/udp/0/quic-v1").await;
        let (jobs, received) = mpsc::unbounded_channel();
        let (hear, heard) = mpsc::unbounded_channel();
        let running = Running::spawn(run(swarm, received, hear));
        Self {
            id,
            tcp,
            quic,
            network: token.fingerprint(),
            outlets: control.outlets(),
            control,
            live,
            jobs,
            heard,
            passed_over: 0,
            _running: running,
        }
    }

    /// Follows other tokens from now on.
    pub fn follow(&mut self, tokens: &[Arc<Token>]) {
        let generation = self.live.borrow().generation.next();
        self.live.send_replace(snapshot(generation.0, tokens));
        if let Some(token) = tokens.first() {
            self.network = token.fingerprint();
        }
    }

    /// Connects over TCP and waits until the two are in one room.
    pub async fn dial(&mut self, other: &Member) {
        let (peer, address) = (other.id, other.tcp.clone());
        self.dial_address(peer, address);
        self.until("the room fills", |outlet| outlet.subscribers > 0)
            .await;
    }

    pub fn dial_address(&self, peer: PeerId, address: Multiaddr) {
        self.run(move |swarm| {
            let options = DialOpts::peer_id(peer).addresses(vec![address]).build();
            swarm.dial(options).expect("a dial begins");
        });
    }

    /// Publishes where the outlets say, and returns the window.
    pub async fn say(&mut self, words: &[u8]) -> Window {
        let outlet = self.outlet().expect("a network");
        for window in std::iter::once(outlet.window).chain(outlet.also) {
            self.say_in(window, words).await.expect("published");
        }
        outlet.window
    }

    pub async fn say_in(
        &mut self,
        window: Window,
        words: &[u8],
    ) -> Result<(), gossip::Unpublished> {
        let published = self.control.publish(self.network, window, words.to_vec());
        within("published", published).await
    }

    /// The next message with these words; others before it are passed over.
    pub async fn hear(&mut self, words: &[u8]) -> Message {
        let text = String::from_utf8_lossy(words).into_owned();
        within(&format!("{text:?} is heard"), async {
            loop {
                let message = self.heard.recv().await.expect("the node runs");
                if message.data == words {
                    return message;
                }
                self.passed_over += 1;
            }
        })
        .await
    }

    pub async fn tally(&self) -> gossip::Tally {
        let (reply, answer) = oneshot::channel();
        self.run(move |swarm| {
            let _ = reply.send(swarm.behaviour().gossip.tally());
        });
        within("a tally", answer).await.expect("the node runs")
    }

    pub fn outlet(&self) -> Option<Outlet> {
        self.outlets.borrow().get(&self.network).cloned()
    }

    pub async fn until(&mut self, what: &str, wanted: impl Fn(&Outlet) -> bool) -> Outlet {
        let network = self.network;
        let reached = self
            .outlets
            .wait_for(|outlets| outlets.get(&network).is_some_and(&wanted));
        let outlets = within(what, reached).await.expect("the node runs");
        outlets.get(&network).cloned().expect("just seen")
    }

    /// Waits until the node has moved to a later window.
    pub async fn window_after(&mut self, window: Window) -> Window {
        let outlet = self
            .until("a later window", |outlet| outlet.window > window)
            .await;
        outlet.window
    }

    pub fn run(&self, job: impl FnOnce(&mut Swarm<Gossiping>) + Send + 'static) {
        let _ = self.jobs.send(Box::new(job));
    }
}

async fn run(
    mut swarm: Swarm<Gossiping>,
    mut jobs: mpsc::UnboundedReceiver<Job>,
    hear: mpsc::UnboundedSender<Message>,
) {
    loop {
        tokio::select! {
            job = jobs.recv() => match job {
                Some(job) => job(&mut swarm),
                None => return,
            },
            event = swarm.select_next_some() => {
                let SwarmEvent::Behaviour(GossipingEvent::Gossip(gossip::Event::Heard(message))) = event else {
                    continue;
                };
                let gossip = &mut swarm.behaviour_mut().gossip;
                gossip.judge(&message.id, &message.forwarder, Verdict::Accept);
                let _ = hear.send(message);
            }
        }
    }
}

pub async fn listen<B: NetworkBehaviour>(swarm: &mut Swarm<B>, address: &str) -> Multiaddr {
    swarm
        .listen_on(address.parse().expect("an address"))
        .expect("a listener");
    within("a listener", async {
        loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                return address;
            }
        }
    })
    .await
}

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, future).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not within {} s", PATIENCE.as_secs()),
    }
}

pub fn skewed(milliseconds: i64) -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = UnixTime(since.expect("after 1970"));
    let skew = Duration::from_millis(milliseconds.unsigned_abs());
    if milliseconds < 0 {
        now.saturating_sub(skew)
    } else {
        now.saturating_add(skew)
    }
}
