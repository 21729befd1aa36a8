//! Two stock libp2p clients that meet on a relay: one reserves, the other dials it through the relay and pings it over
//! the circuit. They say what happens to them while you edit the relay's file.
//!
//! ```sh
//! cargo run --release --example circuit -- /ip4/127.0.0.1/tcp/4501/p2p/12D3KooW…
//! ```
//!
//! Nothing of edgevpn is used here: this is the relay client that comes with libp2p.

#![allow(clippy::disallowed_methods, reason = "a program of its own")]

use std::{env, error::Error, process::ExitCode, time::Duration};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, identify,
    multiaddr::Protocol,
    noise, ping, relay,
    swarm::{DialError, NetworkBehaviour, SwarmEvent, dial_opts::DialOpts},
    tcp, yamux,
};
use tokio::time::{Instant, sleep_until};

/// After a refusal or a cut, try again this soon.
const TRY_AGAIN: Duration = Duration::from_secs(2);

#[derive(NetworkBehaviour)]
struct Client {
    relay: relay::client::Behaviour,
    ping: ping::Behaviour,
    identify: identify::Behaviour,
}

#[tokio::main]
async fn main() -> ExitCode {
    let argument = env::args().nth(1);
    let Some(Ok(relay)) = argument.map(|argument| argument.parse::<Multiaddr>()) else {
        eprintln!("usage: circuit RELAY-ADDRESS, as the relay prints it: /ip4/…/tcp/…/p2p/…");
        return ExitCode::from(2);
    };
    match meet(relay.with(Protocol::P2pCircuit)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn meet(through: Multiaddr) -> Result<(), Box<dyn Error>> {
    let (mut host, mut guest) = (client()?, client()?);
    let host_id = *host.local_peer_id();
    println!("host   {host_id}   holds the reservation");
    println!("guest  {}   opens the circuit", guest.local_peer_id());

    let mut reserve_at = Some(Instant::now());
    let mut dial_at = None;
    loop {
        tokio::select! {
            event = host.select_next_some() => match event {
                SwarmEvent::Behaviour(ClientEvent::Relay(
                    relay::client::Event::ReservationReqAccepted { renewal, limit, .. },
                )) => {
                    let how = if renewal { "renewed" } else { "reserved" };
                    let lasts = limit.as_ref().and_then(|limit| limit.duration());
                    let bytes = limit.as_ref().and_then(|limit| limit.data_in_bytes());
                    println!("host   {how}: {}", in_words(lasts, bytes));
                    dial_at.get_or_insert_with(Instant::now);
                }
                SwarmEvent::ListenerClosed { reason, .. } => {
                    let cause = reason.err().map_or("closed".to_owned(), |error| error.to_string());
                    println!("host   no reservation: {cause}");
                    reserve_at = Some(Instant::now() + TRY_AGAIN);
                }
                _ => {}
            },
            event = guest.select_next_some() => match event {
                SwarmEvent::ConnectionEstablished { peer_id, .. } if peer_id == host_id => {
                    println!("guest  circuit opened");
                }
                SwarmEvent::Behaviour(ClientEvent::Ping(ping::Event { peer, result: Ok(rtt), .. }))
                    if peer == host_id =>
                {
                    println!("guest  ping over the circuit: {:.1} ms", rtt.as_secs_f64() * 1e3);
                }
                SwarmEvent::ConnectionClosed { peer_id, cause, .. } if peer_id == host_id => {
                    let cause = cause.map_or("closed".to_owned(), |cause| cause.to_string());
                    println!("guest  circuit ended: {cause}");
                    dial_at = Some(Instant::now() + TRY_AGAIN);
                }
                SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), error, .. } if peer == host_id => {
                    println!("guest  no circuit: {}", plainly(&error));
                    dial_at = Some(Instant::now() + TRY_AGAIN);
                }
                _ => {}
            },
            () = until(reserve_at) => {
                reserve_at = None;
                host.listen_on(through.clone())?;
            }
            () = until(dial_at) => {
                dial_at = None;
                dial(&mut guest, host_id, &through);
            }
        }
    }
}

fn client() -> Result<Swarm<Client>, Box<dyn Error>> {
    let often = ping::Config::new().with_interval(Duration::from_secs(1));
    let client = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(
            tcp::Config::default(),
            noise::Config::new,
            yamux::Config::default,
        )?
        .with_quic()
        .with_relay_client(noise::Config::new, yamux::Config::default)?
        .with_behaviour(|key, relay| Client {
            relay,
            ping: ping::Behaviour::new(often),
            identify: identify::Behaviour::new(identify::Config::new(
                "ipfs/0.1.0".to_owned(),
                key.public(),
            )),
        })?
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(3600)))
        .build();
    Ok(client)
}

fn dial(guest: &mut Swarm<Client>, host: PeerId, through: &Multiaddr) {
    let address = through.clone().with(Protocol::P2p(host));
    let options = DialOpts::peer_id(host).addresses(vec![address]).build();
    if let Err(error) = guest.dial(options) {
        println!("guest  no circuit: {}", plainly(&error));
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

fn in_words(lasts: Option<Duration>, bytes: Option<u64>) -> String {
    let lasts = lasts.map_or("as long as it likes".to_owned(), |lasts| {
        format!("{} s", lasts.as_secs())
    });
    let bytes = bytes.map_or("any number of bytes".to_owned(), |bytes| {
        format!("{bytes} bytes")
    });
    format!("a circuit may last {lasts} and carry {bytes} each way")
}

/// The innermost cause says what the relay answered.
fn plainly(error: &DialError) -> String {
    match error {
        DialError::Transport(attempts) => attempts
            .iter()
            .map(|(_, error)| innermost(error))
            .collect::<Vec<_>>()
            .join("; "),
        other => other.to_string(),
    }
}

fn innermost(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => innermost(source),
        None => error.to_string(),
    }
}
