//! rust-libp2p's relay client, as released, on a thread of its own.

use std::{pin::pin, sync::mpsc, thread, time::Duration};

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt, future::join};
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol, Swarm, SwarmBuilder,
    core::transport::ListenerId,
    identify,
    multiaddr::Protocol,
    noise, ping, relay,
    swarm::{
        ConnectionId, NetworkBehaviour, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
    tcp, yamux,
};
use tokio::sync::{
    mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    oneshot,
};

use super::counterparty::{Answer, Echoed, Limit, Request, Reserved};
use crate::support::{node::DEADLINE, relay::plain};

const ECHO: StreamProtocol = StreamProtocol::new("/edgevpn-test/echo/1");

/// Every request ends within this, so that a test fails with an answer and not with its own deadline.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// No test lasts so long that an idle connection is closed.
const IDLE: Duration = Duration::from_secs(60);

pub struct Client {
    peer_id: PeerId,
    requests: UnboundedSender<Request>,
    answers: mpsc::Receiver<Answer>,
}

impl Client {
    pub fn start() -> Self {
        let (requests, asked) = unbounded_channel();
        let (tell, answers) = mpsc::channel();
        let (introduce, introduced) = mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async move {
                let client = Running::new().await;
                introduce
                    .send(*client.swarm.local_peer_id())
                    .expect("the test waits");
                client.serve(asked, tell).await;
            });
        });
        Self {
            peer_id: introduced
                .recv_timeout(DEADLINE)
                .expect("the client starts"),
            requests,
            answers,
        }
    }

    pub fn peer_id(&self) -> String {
        self.peer_id.to_string()
    }

    pub fn ask(&mut self, request: Request) -> Answer {
        self.requests.send(request).expect("the client runs");
        self.answers
            .recv_timeout(DEADLINE)
            .expect("the client answers")
    }
}

#[derive(NetworkBehaviour)]
struct Behaviour {
    relay: relay::client::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    streams: plain::Behaviour,
}

type Event = SwarmEvent<BehaviourEvent>;

struct Running {
    swarm: Swarm<Behaviour>,
}

impl Running {
    /// It listens nowhere, so that nobody reaches it but through a relay.
    async fn new() -> Self {
        let (streams, accepted) = plain::Behaviour::new(&[ECHO]);
        tokio::spawn(echo_back(accepted));
        let swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(
                tcp::Config::default(),
                noise::Config::new,
                yamux::Config::default,
            )
            .expect("tcp")
            .with_quic()
            .with_dns()
            .expect("dns")
            .with_websocket(noise::Config::new, yamux::Config::default)
            .await
            .expect("websocket")
            .with_relay_client(noise::Config::new, yamux::Config::default)
            .expect("relay client")
            .with_behaviour(|key, relay| Behaviour {
                relay,
                identify: identify::Behaviour::new(identify::Config::new(
                    "/edgevpn-test/1".into(),
                    key.public(),
                )),
                ping: ping::Behaviour::default(),
                streams,
            })
            .expect("behaviour")
            .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE))
            .build();
        Self { swarm }
    }

    async fn serve(
        mut self,
        mut requests: UnboundedReceiver<Request>,
        answers: mpsc::Sender<Answer>,
    ) {
        loop {
            let request = tokio::select! {
                request = requests.recv() => request,
                _ = self.swarm.select_next_some() => continue,
            };
            let Some(request) = request else { return };
            let answer = tokio::time::timeout(REQUEST_TIMEOUT, self.answer(request)).await;
            if answers
                .send(answer.unwrap_or_else(|_| Answer::Failed("timed out".into())))
                .is_err()
            {
                return;
            }
        }
    }

    async fn answer(&mut self, request: Request) -> Answer {
        let done = match request {
            Request::Reserve { relay } => self.reserve(&relay).await,
            Request::Echo { through, bytes } => self.echo(&through, bytes).await,
        };
        done.unwrap_or_else(|error| match status_in(&error) {
            Some(status) => Answer::Refused(status),
            None => Answer::Failed(error),
        })
    }

    /// Listening on a relay reserves there; listening once more renews.
    async fn reserve(&mut self, relay: &str) -> Result<Answer, String> {
        let address = parse(relay)?.with(Protocol::P2pCircuit);
        let listener = self
            .swarm
            .listen_on(address)
            .map_err(|error| format!("{error:?}"))?;
        let limit = self.next(|event| reservation(event, listener)).await?;
        // The library keeps expiry, addresses and voucher to itself.
        Ok(Answer::Reserved(Reserved {
            limit: Some(limit),
            ..Reserved::default()
        }))
    }

    async fn echo(&mut self, through: &str, size: usize) -> Result<Answer, String> {
        let through = parse(through)?;
        let Some(Protocol::P2p(destination)) = through.iter().last() else {
            return Err("no destination".into());
        };
        let dial = DialOpts::peer_id(destination)
            .condition(PeerCondition::Always)
            .addresses(vec![through])
            .build();
        let connection = dial.connection_id();
        self.swarm
            .dial(dial)
            .map_err(|error| format!("{error:?}"))?;
        self.next(|event| dialled(event, connection)).await?;

        let (reply, opened) = oneshot::channel();
        self.swarm
            .behaviour_mut()
            .streams
            .open(destination, Some(connection), ECHO, reply);
        let stream = self
            .during(opened)
            .await
            .map_err(|_| "the circuit closed".to_owned())?
            .map_err(|error| error.to_string())?;
        let sent: Vec<u8> = (0..size).map(|i| (i * 31) as u8).collect();
        let received = self
            .during(send_and_receive(stream, &sent))
            .await
            .map_err(|error| error.to_string())?;
        self.swarm.close_connection(connection);
        if received != sent {
            return Err(format!(
                "sent {size} bytes, got {} that differ",
                received.len()
            ));
        }
        Ok(Answer::Echoed(Echoed {
            bytes: received.len(),
            limited: None,
        }))
    }

    /// Waits until `found` makes something of an event.
    async fn next<T>(
        &mut self,
        mut found: impl FnMut(&Event) -> Option<Result<T, String>>,
    ) -> Result<T, String> {
        loop {
            let event = self.swarm.select_next_some().await;
            if let Some(result) = found(&event) {
                return result;
            }
        }
    }

    /// Waits for something that needs the swarm to run meanwhile.
    async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = self.swarm.select_next_some() => {}
            }
        }
    }
}

fn reservation(event: &Event, listener: ListenerId) -> Option<Result<Limit, String>> {
    match event {
        SwarmEvent::Behaviour(BehaviourEvent::Relay(
            relay::client::Event::ReservationReqAccepted { limit, .. },
        )) => Some(Ok(Limit {
            data: limit.as_ref().and_then(|limit| limit.data_in_bytes()),
            duration: limit
                .as_ref()
                .and_then(|limit| limit.duration())
                .map(|duration| duration.as_secs()),
        })),
        SwarmEvent::ListenerClosed {
            listener_id,
            reason,
            ..
        } if *listener_id == listener => Some(Err(format!("{reason:?}"))),
        _ => None,
    }
}

fn dialled(event: &Event, connection: ConnectionId) -> Option<Result<(), String>> {
    match event {
        SwarmEvent::ConnectionEstablished { connection_id, .. } if *connection_id == connection => {
            Some(Ok(()))
        }
        SwarmEvent::OutgoingConnectionError {
            connection_id,
            error,
            ..
        } if *connection_id == connection => Some(Err(format!("{error:?}"))),
        _ => None,
    }
}

/// The library has types for a refusal and shows only their text: a variant's name, or the status in quotes.
fn status_in(error: &str) -> Option<String> {
    let names = [
        ("PermissionDenied", "PERMISSION_DENIED"),
        ("PERMISSION_DENIED", "PERMISSION_DENIED"),
        ("NoReservation", "NO_RESERVATION"),
        ("ResourceLimitExceeded", "RESOURCE_LIMIT_EXCEEDED"),
        ("Reservation(Refused", "RESERVATION_REFUSED"),
        ("ConnectionFailed", "CONNECTION_FAILED"),
    ];
    names
        .into_iter()
        .find(|(text, _)| error.contains(text))
        .map(|(_, status)| status.to_owned())
}

async fn echo_back(mut accepted: UnboundedReceiver<plain::Accepted>) {
    while let Some(plain::Accepted { stream, .. }) = accepted.recv().await {
        tokio::spawn(async move {
            let (reader, mut writer) = stream.split();
            // A reset ends it; the other end is the one to complain.
            if futures::io::copy(reader, &mut writer).await.is_ok() {
                let _ = writer.close().await;
            }
        });
    }
}

async fn send_and_receive(stream: Stream, sent: &[u8]) -> std::io::Result<Vec<u8>> {
    let (mut reader, mut writer) = stream.split();
    let mut received = Vec::new();
    let sending = async {
        writer.write_all(sent).await?;
        writer.close().await
    };
    let (sent, read) = join(sending, reader.read_to_end(&mut received)).await;
    sent.and(read)?;
    Ok(received)
}

fn parse(address: &str) -> Result<Multiaddr, String> {
    address
        .parse()
        .map_err(|error| format!("{address}: {error}"))
}
