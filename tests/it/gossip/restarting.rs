//! A peer that behaves as an EdgeVPN node does: at each rotation it throws its router away and starts another on the same
//! connections. The old router's streams to others end; what others still write to it is swallowed or answered with a reset,
//! at random; the new one knows nobody until it is told (wire.md, section 5.1).

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use edgevpn::{
    net::streams::{self, Incoming, Route, Step, Stream},
    wire::Token,
};
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, identify,
    identity::Keypair,
    noise,
    swarm::{NetworkBehaviour, dial_opts::DialOpts},
    tcp, yamux,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{
    frame::{self, Publication, Rpc},
    node::{IDLE, Running, listen, skewed, within},
};

pub const MESHSUB: StreamProtocol = StreamProtocol::new("/meshsub/1.1.0");

/// How often a router opens a stream again that died.
const RESPAWNS: u32 = 4;

#[derive(NetworkBehaviour)]
struct Bare {
    streams: streams::Behaviour,
    identify: identify::Behaviour,
}

pub struct Restarting {
    pub id: PeerId,
    pub tcp: Multiaddr,
    /// For streams beside those of the router.
    pub streams: streams::Control,
    pub keypair: Keypair,
    orders: mpsc::UnboundedSender<Order>,
    dials: mpsc::UnboundedSender<(PeerId, Multiaddr)>,
    heard: mpsc::UnboundedReceiver<Heard>,
    /// Restarts so far.
    restarts: u64,
    known: watch::Receiver<Known>,
    _swarm: Running,
    _node: Running,
}

/// Who is where, as the router with this number was told.
type Known = (u64, HashMap<PeerId, HashSet<String>>);

/// A message as it arrived.
#[derive(Debug)]
pub struct Heard {
    pub author: PeerId,
    pub data: Vec<u8>,
}

enum Order {
    /// A new router, in these rooms.
    Restart(Vec<String>),
    Publish(String, Vec<u8>),
    /// Restart whenever the topic changes, by a clock that is so many milliseconds ahead, and say `words` in each beat.
    Follow(Arc<Token>, i64, Vec<u8>),
}

/// How often a peer looks at its clock and publishes.
const BEAT: Duration = Duration::from_millis(200);

impl Restarting {
    pub async fn start() -> Self {
        let keypair = Keypair::generate_ed25519();
        let id = keypair.public().to_peer_id();
        let mut swarm = SwarmBuilder::with_existing_identity(keypair.clone())
            .with_tokio()
            .with_tcp(
                tcp::Config::default().nodelay(true),
                noise::Config::new,
                yamux::Config::default,
            )
            .expect("tcp")
            .with_quic()
            .with_behaviour(|keypair| Bare {
                streams: streams::Behaviour::new(),
                identify: identify::Behaviour::new(identify::Config::new(
                    "test".to_owned(),
                    keypair.public(),
                )),
            })
            .expect("a behaviour")
            .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE))
            .build();
        let tcp = listen(&mut swarm, "/ip4/127.0.0.1/tcp/0").await;
        let control = swarm.behaviour().streams.control();
        let (dials, received) = mpsc::unbounded_channel();
        let (orders, obeyed) = mpsc::unbounded_channel();
        let (hear, heard) = mpsc::unbounded_channel();
        let (knows, known) = watch::channel(Known::default());
        let node = Node {
            keypair: keypair.clone(),
            control: control.clone(),
            current: Arc::default(),
            router: Router::default(),
            hear,
            knows,
            seqno: nanoseconds(),
        };
        Self {
            id,
            tcp,
            streams: control,
            keypair,
            orders,
            dials,
            heard,
            restarts: 0,
            known,
            _swarm: Running::spawn(drive(swarm, received)),
            _node: Running::spawn(node.run(obeyed)),
        }
    }

    pub fn dial(&self, peer: PeerId, address: &Multiaddr) {
        let _ = self.dials.send((peer, address.clone()));
    }

    pub fn restart(&mut self, topics: &[String]) {
        self.restarts += 1;
        let _ = self.orders.send(Order::Restart(topics.to_vec()));
    }

    pub fn publish(&self, topic: &str, data: &[u8]) {
        let order = Order::Publish(topic.to_owned(), data.to_vec());
        let _ = self.orders.send(order);
    }

    /// A stream to `peer` that no router knows of.
    pub async fn open(&self, peer: PeerId) -> Stream {
        within("a stream", async {
            let mut changes = self.streams.changes();
            loop {
                match self.streams.open(peer, MESHSUB, Route::Direct).await {
                    Ok(stream) => return stream,
                    Err(_) => drop(changes.recv().await),
                }
            }
        })
        .await
    }

    /// Lives by the clock from now on.
    pub fn follow(&self, token: &Arc<Token>, skew: i64, words: &[u8]) {
        let order = Order::Follow(token.clone(), skew, words.to_vec());
        let _ = self.orders.send(order);
    }

    /// Waits until the router that runs now has been told that `peer` is in the room.
    pub async fn knows(&mut self, peer: PeerId, topic: &str) {
        let restarts = self.restarts;
        let told = self.known.wait_for(|(router, known)| {
            *router == restarts
                && known
                    .get(&peer)
                    .is_some_and(|topics| topics.contains(topic))
        });
        within("the router is told who is there", told)
            .await
            .expect("the peer runs");
    }

    pub async fn next(&mut self) -> Heard {
        within("a message", self.heard.recv())
            .await
            .expect("the peer runs")
    }

    pub fn heard_so_far(&mut self) -> Vec<Heard> {
        std::iter::from_fn(|| self.heard.try_recv().ok()).collect()
    }
}

struct Node {
    keypair: Keypair,
    control: streams::Control,
    /// The number of the router that runs; a reader of an earlier one belongs to a dead router.
    current: Arc<AtomicU64>,
    router: Router,
    hear: mpsc::UnboundedSender<Heard>,
    knows: watch::Sender<Known>,
    seqno: u64,
}

#[derive(Default)]
struct Router {
    topics: Vec<String>,
    peers: HashMap<PeerId, Peer>,
    seen: HashSet<(Vec<u8>, Vec<u8>)>,
}

#[derive(Default)]
struct Peer {
    /// To the task that writes; its end closes the stream.
    outbound: Option<mpsc::UnboundedSender<Rpc>>,
    respawns: u32,
    /// The number of its newest stream.
    inbound: u64,
    topics: HashSet<String>,
}

enum Input {
    Frame(u64, PeerId, u64, Rpc),
    /// A stream from the peer has ended.
    Silent(u64, PeerId, u64),
    /// Our stream to the peer has died.
    Deaf(u64, PeerId),
}

impl Node {
    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let mut inbound = self.control.accept(MESHSUB, 16).expect("free");
        let mut changes = self.control.changes();
        let (inputs, mut input) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        let mut streams = 0;
        let mut following: Option<(Arc<Token>, i64, Vec<u8>)> = None;
        let mut beat = tokio::time::interval(BEAT);
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Order::Restart(topics)) => self.restart(topics, &inputs, &mut tasks),
                    Some(Order::Publish(topic, data)) => self.publish(&topic, &data),
                    Some(Order::Follow(token, skew, words)) => following = Some((token, skew, words)),
                    None => return,
                },
                _ = beat.tick(), if following.is_some() => {
                    if let Some((token, skew, words)) = &following {
                        let topic = token.topic(token.window(skewed(*skew)));
                        if !self.router.topics.contains(&topic) {
                            self.restart(vec![topic.clone()], &inputs, &mut tasks);
                        }
                        self.publish(&topic, words);
                    }
                }
                Ok(change) = changes.recv() => match change.step {
                    Step::Appeared => self.open(change.peer, &inputs, &mut tasks),
                    Step::Gone if change.direct == 0 => {
                        self.router.peers.remove(&change.peer);
                    }
                    Step::Gone => {}
                },
                Some(incoming) = inbound.next() => {
                    streams += 1;
                    self.accept(incoming, streams, &inputs, &mut tasks);
                }
                Some(input) = input.recv() => self.handle(input, &inputs, &mut tasks),
            }
            let known = self.router.peers.iter();
            let known = known.map(|(id, peer)| (*id, peer.topics.clone()));
            let router = self.current.load(Ordering::SeqCst);
            self.knows.send_replace((router, known.collect()));
        }
    }

    fn restart(
        &mut self,
        topics: Vec<String>,
        inputs: &mpsc::UnboundedSender<Input>,
        tasks: &mut JoinSet<()>,
    ) {
        self.current.fetch_add(1, Ordering::SeqCst);
        self.seqno = nanoseconds();
        self.router = Router {
            topics,
            ..Router::default()
        };
        let peers: HashSet<PeerId> = self
            .control
            .all_links()
            .iter()
            .map(|link| link.peer)
            .collect();
        for peer in peers {
            self.open(peer, inputs, tasks);
        }
    }

    fn open(
        &mut self,
        peer: PeerId,
        inputs: &mpsc::UnboundedSender<Input>,
        tasks: &mut JoinSet<()>,
    ) {
        let entry = self.router.peers.entry(peer).or_default();
        if entry.outbound.is_some() || self.router.topics.is_empty() {
            return;
        }
        let (write, queue) = mpsc::unbounded_channel();
        let _ = write.send(Rpc::hello(&self.router.topics));
        entry.outbound = Some(write);
        let router = self.current.load(Ordering::SeqCst);
        let (control, inputs) = (self.control.clone(), inputs.clone());
        tasks.spawn(async move {
            if let Ok(stream) = control.open(peer, MESHSUB, Route::Direct).await
                && write_out(stream, queue).await.is_err()
            {
                let _ = inputs.send(Input::Deaf(router, peer));
            }
        });
    }

    fn accept(
        &mut self,
        incoming: Incoming,
        number: u64,
        inputs: &mpsc::UnboundedSender<Input>,
        tasks: &mut JoinSet<()>,
    ) {
        let Incoming {
            peer, mut stream, ..
        } = incoming;
        let entry = self.router.peers.entry(peer).or_default();
        // A second stream takes the place of the first and begins with an empty set.
        entry.inbound = number;
        entry.topics.clear();
        let router = self.current.load(Ordering::SeqCst);
        let (current, inputs) = (self.current.clone(), inputs.clone());
        tasks.spawn(async move {
            while let Ok(Some(rpc)) = frame::read(&mut stream).await {
                if current.load(Ordering::SeqCst) == router {
                    let _ = inputs.send(Input::Frame(router, peer, number, rpc));
                } else if rand::random() {
                    // Dropped, the stream is reset.
                    return;
                }
            }
            let _ = inputs.send(Input::Silent(router, peer, number));
        });
    }

    fn handle(
        &mut self,
        input: Input,
        inputs: &mpsc::UnboundedSender<Input>,
        tasks: &mut JoinSet<()>,
    ) {
        let current = self.current.load(Ordering::SeqCst);
        match input {
            Input::Frame(router, id, stream, rpc) if router == current => {
                let newest = self
                    .router
                    .peers
                    .get(&id)
                    .is_some_and(|peer| peer.inbound == stream);
                if newest {
                    self.read(id, rpc);
                }
            }
            Input::Silent(router, id, stream) if router == current => {
                let peer = self.router.peers.entry(id).or_default();
                if peer.inbound == stream {
                    peer.topics.clear();
                }
            }
            Input::Deaf(router, id) if router == current => {
                let peer = self.router.peers.entry(id).or_default();
                peer.topics.clear();
                peer.outbound = None;
                peer.respawns += 1;
                if peer.respawns <= RESPAWNS {
                    self.open(id, inputs, tasks);
                }
            }
            _ => {}
        }
    }

    fn read(&mut self, from: PeerId, rpc: Rpc) {
        let Some(peer) = self.router.peers.get_mut(&from) else {
            return;
        };
        for subscription in rpc.subscriptions {
            let topic = subscription.topic.unwrap_or_default();
            if subscription.subscribe == Some(true) {
                if let (Some(outbound), true) =
                    (&peer.outbound, self.router.topics.contains(&topic))
                {
                    let _ = outbound.send(Rpc::graft(&topic));
                }
                peer.topics.insert(topic);
            } else {
                peer.topics.remove(&topic);
            }
        }
        for message in rpc.publish {
            let id = (
                message.from.clone().unwrap_or_default(),
                message.seqno.clone().unwrap_or_default(),
            );
            let topic = message.topic.clone().unwrap_or_default();
            if self.router.topics.contains(&topic) && self.router.seen.insert(id.clone()) {
                let heard = Heard {
                    author: PeerId::from_bytes(&id.0).expect("an id"),
                    data: message.data.clone().unwrap_or_default(),
                };
                let _ = self.hear.send(heard);
                self.send(message, Some(from));
            }
        }
    }

    fn publish(&mut self, topic: &str, data: &[u8]) {
        self.seqno += 1;
        let message = Publication::signed(&self.keypair, self.seqno, topic, data);
        let id = (
            message.from.clone().unwrap_or_default(),
            message.seqno.clone().unwrap_or_default(),
        );
        self.router.seen.insert(id);
        self.send(message, None);
    }

    fn send(&self, message: Publication, not_to: Option<PeerId>) {
        let topic = message.topic.clone().unwrap_or_default();
        for (id, peer) in &self.router.peers {
            if let (Some(outbound), true) = (&peer.outbound, peer.topics.contains(&topic))
                && Some(*id) != not_to
            {
                let _ = outbound.send(Rpc::publish(message.clone()));
            }
        }
    }
}

/// Writes what is queued; closes the stream when the router is gone. An error if the peer has ended it.
async fn write_out(stream: Stream, mut queue: mpsc::UnboundedReceiver<Rpc>) -> std::io::Result<()> {
    let (mut read, mut write) = stream.split();
    let mut end = [0];
    loop {
        tokio::select! {
            rpc = queue.recv() => match rpc {
                Some(rpc) => frame::write(&mut write, &rpc).await?,
                None => return write.close().await,
            },
            ended = read.read(&mut end) => {
                ended?;
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

async fn drive(mut swarm: Swarm<Bare>, mut dials: mpsc::UnboundedReceiver<(PeerId, Multiaddr)>) {
    loop {
        tokio::select! {
            dial = dials.recv() => {
                let Some((peer, address)) = dial else {
                    return;
                };
                let options = DialOpts::peer_id(peer).addresses(vec![address]).build();
                swarm.dial(options).expect("a dial begins");
            }
            _ = swarm.select_next_some() => {}
        }
    }
}

fn nanoseconds() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    u64::try_from(since.as_nanos()).expect("before 2554")
}
