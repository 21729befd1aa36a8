//! How bytes travel: TCP, WebSocket and QUIC, authenticated with Noise or TLS 1.3, plus circuits through other relays.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{TryFutureExt, future::BoxFuture};
use libp2p::{
    Multiaddr, PeerId, Transport,
    core::{
        muxing::StreamMuxerBox,
        transport::{
            Boxed, DialOpts, ListenerId, TransportError, TransportEvent, dummy::DummyTransport,
            timeout::TransportTimeout,
        },
        upgrade::Version,
    },
    dns,
    identity::Keypair,
    noise, quic, relay, tcp, websocket, yamux,
};
use tokio::sync::watch;

use super::{gate::dials::Dials, ip_of};
use crate::config::Snapshot;

/// An inbound connection must be authenticated within this. The same ten seconds as most libp2p nodes, so that neither
/// side waits for one that has given up.
const INBOUND_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest WebSocket message taken in. Noise frames are at most 64 KiB; the library's default of 256 MiB would let
/// a stranger make us buffer that much.
const MAX_WEBSOCKET_MESSAGE: usize = 1024 * 1024;

/// Bytes that may be on their way on one QUIC connection: the worst case of memory a connection can pin. One stream
/// may use half of it, so that a saturated circuit does not starve the others.
const QUIC_CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;

pub type Connections = Boxed<(PeerId, StreamMuxerBox)>;

/// Builds every transport the node listens and dials with, and the behaviour that belongs to the relay transport.
pub fn build(
    keypair: &Keypair,
    live: &watch::Receiver<Arc<Snapshot>>,
    dials: Dials,
) -> Result<(Connections, relay::client::Behaviour), noise::Error> {
    let (circuits, relay_client) = relay::client::new(keypair.public().to_peer_id());
    let circuits = circuits
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(keypair)?)
        .multiplex(yamux::Config::default())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));

    let governed_tcp = || {
        Governed::new(
            tcp::tokio::Transport::new(tcp::Config::default().nodelay(true)),
            live,
        )
    };
    let mut websockets = websocket::Config::new(resolve(governed_tcp().boxed()));
    websockets.set_max_data_size(MAX_WEBSOCKET_MESSAGE);
    let websockets = websockets
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(keypair)?)
        .multiplex(yamux::Config::default())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let tcp = governed_tcp()
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(keypair)?)
        .multiplex(yamux::Config::default())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let quic = Governed::new(quic::tokio::Transport::new(quic_config(keypair)), live)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));

    let resolved = resolve(
        tcp.or_transport(quic)
            .map(|either, _| either.into_inner())
            .boxed(),
    );
    let all = circuits
        .or_transport(websockets)
        .map(|either, _| either.into_inner())
        .or_transport(resolved)
        .map(|either, _| either.into_inner())
        .boxed();
    let governed = Governed {
        dials: Some(dials),
        ..Governed::new(all, live)
    };
    let bounded = TransportTimeout::with_ingoing_timeout(governed, INBOUND_TIMEOUT);
    Ok((bounded.boxed(), relay_client))
}

fn quic_config(keypair: &Keypair) -> quic::Config {
    let mut config = quic::Config::new(keypair);
    config.max_connection_data = QUIC_CONNECTION_WINDOW;
    config.max_stream_data = QUIC_CONNECTION_WINDOW / 2;
    config
}

/// Names are looked up as the system says; a host without resolver settings still dials addresses.
fn resolve<T: Send + Unpin + 'static>(inner: Boxed<T>) -> Boxed<T> {
    if let Err(cause) = dns::tokio::Transport::system(DummyTransport::<()>::new()) {
        tracing::warn!(%cause, "no resolver settings: peers can be dialled by address only");
        return inner;
    }
    match dns::tokio::Transport::system(inner) {
        Ok(resolved) => resolved.boxed(),
        Err(_) => DummyTransport::<T>::new().boxed(),
    }
}

/// A transport whose dials follow the file: `transport.dial_timeout` and `transport.block` as they are when a dial
/// begins. Below the resolver it sees the addresses a name stands for.
struct Governed<T> {
    inner: T,
    live: watch::Receiver<Arc<Snapshot>>,
    /// Asked once, above the resolver: below it nobody knows who has named the address.
    dials: Option<Dials>,
}

impl<T> Governed<T> {
    fn new(inner: T, live: &watch::Receiver<Arc<Snapshot>>) -> Self {
        Self {
            inner,
            live: live.clone(),
            dials: None,
        }
    }
}

impl<T> Transport for Governed<T>
where
    T: Transport + Unpin,
    T::Dial: Send + 'static,
    T::Output: 'static,
    T::Error: Send + Sync + 'static,
{
    type Output = T::Output;
    type Error = io::Error;
    type ListenerUpgrade = MapErr<T::ListenerUpgrade>;
    type Dial = BoxFuture<'static, Result<T::Output, io::Error>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        self.inner
            .listen_on(id, address)
            .map_err(|error| error.map(io::Error::other))
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        let (timeout, blocked) = {
            let snapshot = self.live.borrow();
            let transport = &snapshot.config.transport;
            let blocked = ip_of(&address).is_some_and(|ip| transport.block.holds_address(ip));
            (transport.dial_timeout, blocked)
        };
        if blocked {
            let cause = format!("{address} is in `transport.block`");
            return Err(TransportError::Other(io::Error::new(
                io::ErrorKind::PermissionDenied,
                cause,
            )));
        }
        if self
            .dials
            .as_ref()
            .is_some_and(|dials| !dials.permit(&address))
        {
            let cause = format!("{address} is not public, and nobody has named it who may");
            return Err(TransportError::Other(io::Error::new(
                io::ErrorKind::PermissionDenied,
                cause,
            )));
        }
        let dial = self
            .inner
            .dial(address, options)
            .map_err(|error| error.map(io::Error::other))?;
        Ok(Box::pin(async move {
            match tokio::time::timeout(timeout, dial).await {
                Ok(reached) => reached.map_err(io::Error::other),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            }
        }))
    }

    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Pin::new(&mut self.inner).poll(context).map(|event| {
            event
                .map_upgrade(|upgrade| upgrade.map_err(io::Error::other as fn(_) -> _))
                .map_err(io::Error::other)
        })
    }
}

type MapErr<F> = futures::future::MapErr<F, fn(<F as futures::TryFuture>::Error) -> io::Error>;
