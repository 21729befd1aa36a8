//! One connection's part: opens what its lane is asked for, delivers what the peer opens.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::{Ready, ready};
use libp2p::{
    InboundUpgrade, OutboundUpgrade, StreamProtocol,
    core::UpgradeInfo,
    swarm::{
        ConnectionHandler, ConnectionHandlerEvent, StreamUpgradeError, SubstreamProtocol,
        handler::{
            ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
        },
    },
};

use super::{
    OpenError, Shared, Stream,
    inbox::Table,
    lane::{Lane, NEGOTIATION_TIMEOUT, Request},
};

pub struct Handler {
    lane: Arc<Lane>,
    shared: Arc<Shared>,
}

/// Other protocols are accepted now. It only has to be delivered: the connection compares what is announced after every
/// turn of its handler.
#[derive(Debug)]
pub struct Announce;

impl Handler {
    pub(super) fn new(lane: Arc<Lane>, shared: Arc<Shared>) -> Self {
        Self { lane, shared }
    }

    fn answer(&self, request: Request, result: Result<libp2p::Stream, OpenError>) {
        self.lane.decided();
        let stream = result.map(|stream| Stream::new(stream, self.lane.clone()));
        // Whoever asked may have given up; the stream is reset then.
        let _ = request.reply.send(stream);
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Announce;
    type ToBehaviour = Infallible;
    type InboundProtocol = Accepts;
    type OutboundProtocol = Asks;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Request;

    fn listen_protocol(&self) -> SubstreamProtocol<Accepts> {
        SubstreamProtocol::new(Accepts(self.shared.inboxes.table()), ())
            .with_timeout(NEGOTIATION_TIMEOUT)
    }

    fn on_behaviour_event(&mut self, Announce: Announce) {}

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Asks, Request, Infallible>> {
        match self.lane.next(cx) {
            Some(request) => Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(Asks(request.protocol.clone()), request)
                    .with_timeout(NEGOTIATION_TIMEOUT),
            }),
            None => Poll::Pending,
        }
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Accepts, Asks, (), Request>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (protocol, stream),
                ..
            }) => self.shared.inboxes.deliver(&protocol, stream, &self.lane),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream,
                info: request,
            }) => self.answer(request, Ok(stream)),
            ConnectionEvent::DialUpgradeError(DialUpgradeError {
                info: request,
                error,
            }) => {
                let peer = self.lane.peer;
                let error = match error {
                    StreamUpgradeError::Timeout => OpenError::TimedOut { peer },
                    StreamUpgradeError::NegotiationFailed => OpenError::Unsupported {
                        peer,
                        protocol: request.protocol.clone(),
                    },
                    StreamUpgradeError::Io(_) => OpenError::Lost { peer },
                    StreamUpgradeError::Apply(never) => match never {},
                };
                self.answer(request, Err(error));
            }
            _ => {}
        }
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        self.lane.close();
    }
}

/// Every protocol that has an inbox.
pub struct Accepts(Arc<Table>);

impl UpgradeInfo for Accepts {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.keys().cloned().collect::<Vec<_>>().into_iter()
    }
}

impl InboundUpgrade<libp2p::Stream> for Accepts {
    type Output = (StreamProtocol, libp2p::Stream);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: libp2p::Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((protocol, stream)))
    }
}

/// The one protocol that was asked for.
pub struct Asks(StreamProtocol);

impl UpgradeInfo for Asks {
    type Info = StreamProtocol;
    type InfoIter = std::iter::Once<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(self.0.clone())
    }
}

impl OutboundUpgrade<libp2p::Stream> for Asks {
    type Output = libp2p::Stream;
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: libp2p::Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok(stream))
    }
}
