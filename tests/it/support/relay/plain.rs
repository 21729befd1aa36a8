//! Streams without manners: opens any protocol, accepts any, and leaves what is said on them to the test.

use futures::future::{Ready, ready};
use libp2p::{
    InboundUpgrade, Multiaddr, PeerId, Stream, StreamProtocol,
    core::{Endpoint, UpgradeInfo, transport::PortUse, upgrade::ReadyUpgrade},
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, NotifyHandler, StreamUpgradeError, SubstreamProtocol, ToSwarm,
        handler::{
            ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
        },
    },
};
use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt, io,
    task::{Context, Poll},
};
use tokio::sync::{mpsc, oneshot};

/// Where to send a stream, or why there is none.
pub type Reply = oneshot::Sender<io::Result<Stream>>;

pub struct Behaviour {
    accepts: Vec<StreamProtocol>,
    inbound: mpsc::UnboundedSender<Accepted>,
    orders: VecDeque<(PeerId, Option<ConnectionId>, Open)>,
}

/// A stream that the other side has opened.
pub struct Accepted {
    pub protocol: StreamProtocol,
    pub stream: Stream,
}

pub struct Open {
    protocol: StreamProtocol,
    reply: Reply,
}

impl Behaviour {
    pub fn new(accepts: &[StreamProtocol]) -> (Self, mpsc::UnboundedReceiver<Accepted>) {
        let (inbound, accepted) = mpsc::unbounded_channel();
        let behaviour = Self {
            accepts: accepts.to_vec(),
            inbound,
            orders: VecDeque::new(),
        };
        (behaviour, accepted)
    }

    /// Opens a stream on this connection, or on any.
    pub fn open(
        &mut self,
        peer: PeerId,
        connection: Option<ConnectionId>,
        protocol: StreamProtocol,
        reply: Reply,
    ) {
        self.orders
            .push_back((peer, connection, Open { protocol, reply }));
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        Ok(Handler::new(self))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        Ok(Handler::new(self))
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: Infallible) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, Open>> {
        match self.orders.pop_front() {
            Some((peer_id, connection, event)) => Poll::Ready(ToSwarm::NotifyHandler {
                peer_id,
                handler: connection.map_or(NotifyHandler::Any, NotifyHandler::One),
                event,
            }),
            None => Poll::Pending,
        }
    }
}

pub struct Handler {
    accepts: Vec<StreamProtocol>,
    inbound: mpsc::UnboundedSender<Accepted>,
    orders: VecDeque<Open>,
}

impl Handler {
    fn new(behaviour: &Behaviour) -> Self {
        Self {
            accepts: behaviour.accepts.clone(),
            inbound: behaviour.inbound.clone(),
            orders: VecDeque::new(),
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Open;
    type ToBehaviour = Infallible;
    type InboundProtocol = AnyOf;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Reply;

    fn listen_protocol(&self) -> SubstreamProtocol<AnyOf> {
        SubstreamProtocol::new(AnyOf(self.accepts.clone()), ())
    }

    fn on_behaviour_event(&mut self, order: Open) {
        self.orders.push_back(order);
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, AnyOf, ReadyUpgrade<StreamProtocol>, (), Reply>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (protocol, stream),
                ..
            }) => {
                let _ = self.inbound.send(Accepted { protocol, stream });
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream,
                info: reply,
            }) => {
                let _ = reply.send(Ok(stream));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: reply, error }) => {
                let error = match error {
                    StreamUpgradeError::Io(error) => error,
                    StreamUpgradeError::Timeout => io::ErrorKind::TimedOut.into(),
                    StreamUpgradeError::NegotiationFailed => io::ErrorKind::Unsupported.into(),
                    StreamUpgradeError::Apply(never) => match never {},
                };
                let _ = reply.send(Err(error));
            }
            _ => {}
        }
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<ReadyUpgrade<StreamProtocol>, Reply, Infallible>> {
        match self.orders.pop_front() {
            Some(Open { protocol, reply }) => {
                Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                    protocol: SubstreamProtocol::new(ReadyUpgrade::new(protocol), reply),
                })
            }
            None => Poll::Pending,
        }
    }
}

/// Takes every one of these protocols.
pub struct AnyOf(Vec<StreamProtocol>);

impl UpgradeInfo for AnyOf {
    type Info = StreamProtocol;
    type InfoIter = Vec<StreamProtocol>;

    fn protocol_info(&self) -> Vec<StreamProtocol> {
        self.0.clone()
    }
}

impl InboundUpgrade<Stream> for AnyOf {
    type Output = (StreamProtocol, Stream);
    type Error = Infallible;
    type Future = Ready<Result<(StreamProtocol, Stream), Infallible>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((protocol, stream)))
    }
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open")
            .field("protocol", &self.protocol)
            .finish_non_exhaustive()
    }
}
