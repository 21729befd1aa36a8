//! One connection's part of the relay: hears requests on hop streams, sends the answers, opens stop streams.
//!
//! It decides nothing. A request goes to the behaviour together with the means to answer it.
#![allow(clippy::disallowed_methods, reason = "starts the time of requests")]

use super::{
    offer::{Offer, Turn},
    proto::{self, BadMessage, FrameError, Request},
};
use crate::relay::Status;
use futures::{AsyncWriteExt, FutureExt, future::BoxFuture};
use libp2p::{
    Stream, StreamProtocol,
    core::upgrade::ReadyUpgrade,
    swarm::{
        ConnectionHandler, ConnectionHandlerEvent, SubstreamProtocol,
        handler::{ConnectionEvent, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};
use std::{
    collections::VecDeque,
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

/// Requests of one connection that may be in progress, from the opening of the stream to the answer. A client has one
/// RESERVE and a few CONNECTs under way; ten is what other implementations allow, so that no honest client meets it.
const MAX_REQUESTS: usize = 10;

/// How long the parts of a request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From the opening of a hop stream to the last byte of the request. Ten seconds are several round trips over the
    /// worst satellite path; a peer that sends its bytes one by one holds one of the ten places of its own connection.
    pub header: Duration,
    /// From the opening of a hop stream to the last byte of the answer, the destination's consent included. Thirty
    /// seconds are what clients wait at least; longer would keep places for those that have given up.
    pub request: Duration,
    /// Bytes that wait this long for a reader that takes none end the circuit. Longer than any pause of a living peer's
    /// flow control (yamux and QUIC acknowledge within seconds), short enough that dead readers do not add up.
    pub stall: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            header: Duration::from_secs(10),
            request: Duration::from_secs(30),
            stall: Duration::from_secs(30),
        }
    }
}

/// What all connections share.
#[derive(Debug, Default)]
pub struct Common {
    /// `relay.service`: whether the hop protocol is announced.
    pub serving: AtomicBool,
    pub timeouts: Timeouts,
}

/// From the behaviour.
pub enum Order {
    /// Send this frame and close the stream.
    Answer(Box<Answer>, Vec<u8>),
    /// The same, and keep the connection open: the frame grants a reservation.
    Reserve(Box<Answer>, Vec<u8>),
    /// Open a stop stream. Dropping the sender says that it failed.
    OpenStop(oneshot::Sender<Stream>),
    /// Keep the connection open although nothing runs on it, or no longer.
    Hold(bool),
    /// `relay.service` has changed: look at [`Common::serving`] again.
    Announce,
}

/// To the behaviour.
#[derive(Debug)]
pub enum Event {
    /// Boxed, for every connection keeps room for a few events.
    Asked(Request, Box<Answer>),
    /// So many requests did not become one.
    Faulty(Fault, u32),
}

/// Why a hop stream brought no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Answered with 400.
    Malformed,
    /// Answered with 401.
    Unexpected,
    /// Not within [`Timeouts::header`]; reset.
    Slow,
    /// Beyond [`MAX_REQUESTS`]; reset without an answer, since to write one could take as long as what it waits for.
    TooMany,
    /// Closed by the peer, or its connection broke.
    Gone,
}

/// The means to answer a request: once, and before its time is up.
pub struct Answer {
    stream: Stream,
    deadline: Instant,
    /// The part of the time that belongs to telling the source.
    telling: Duration,
    place: Place,
}

impl Answer {
    /// When a destination that has not answered will not be waited for any longer, so that the source can be told in time.
    pub fn consent_by(&self) -> Instant {
        self.deadline - self.telling
    }

    /// Sends a last word and closes the stream.
    pub async fn tell(mut self, frame: Vec<u8>) -> io::Result<()> {
        timeout_at(self.deadline, async {
            proto::write_frame(&mut self.stream, &frame).await?;
            self.stream.close().await
        })
        .await?
    }

    /// Sends the word that opens the circuit. The stream is the circuit's from here on.
    pub async fn grant(mut self, frame: Vec<u8>) -> io::Result<Stream> {
        timeout_at(self.deadline, proto::write_frame(&mut self.stream, &frame)).await??;
        drop(self.place);
        Ok(self.stream)
    }
}

pub struct Handler {
    common: Arc<Common>,
    turn: Turn,
    places: Arc<AtomicUsize>,
    /// Requests being heard and answers being sent, at most [`MAX_REQUESTS`]: so few that all are polled at every turn.
    work: Vec<BoxFuture<'static, Option<Event>>>,
    /// Stop streams to open. The handshake budget of the admission bounds it.
    stops: VecDeque<oneshot::Sender<Stream>>,
    /// Streams that found no place since the last turn.
    turned_away: u32,
    held: bool,
}

impl Handler {
    pub fn new(common: Arc<Common>) -> Self {
        Self {
            common,
            turn: Turn::default(),
            places: Arc::default(),
            work: Vec::new(),
            stops: VecDeque::new(),
            turned_away: 0,
            held: false,
        }
    }

    fn handle_hop(&mut self, stream: Stream) {
        match Place::take(&self.places) {
            Some(place) => {
                let request = hear(stream, place, self.common.timeouts);
                self.work.push(request.boxed());
            }
            None => self.turned_away = self.turned_away.saturating_add(1),
        }
    }

    fn answer(&mut self, answer: Answer, frame: Vec<u8>) {
        let told = async move {
            // A peer that does not take its answer has lost nothing but the answer.
            let _ = answer.tell(frame).await;
            None
        };
        self.work.push(told.boxed());
    }

    fn poll_work(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let mut at = 0;
        while let Some(work) = self.work.get_mut(at) {
            match work.poll_unpin(cx) {
                Poll::Pending => at += 1,
                Poll::Ready(event) => {
                    drop(self.work.swap_remove(at));
                    if let Some(event) = event {
                        return Poll::Ready(event);
                    }
                }
            }
        }
        // An idle connection is held for hours; it keeps no room for the requests it once made.
        if self.work.is_empty() {
            self.work = Vec::new();
        }
        Poll::Pending
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Order;
    type ToBehaviour = Event;
    type InboundProtocol = Offer;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = oneshot::Sender<Stream>;

    fn listen_protocol(&self) -> SubstreamProtocol<Offer> {
        let announced = self.common.serving.load(Ordering::Relaxed);
        SubstreamProtocol::new(Offer::new(announced, self.turn.clone()), ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.held
    }

    fn on_behaviour_event(&mut self, order: Order) {
        match order {
            Order::Answer(answer, frame) => self.answer(*answer, frame),
            Order::Reserve(answer, frame) => {
                self.held = true;
                self.answer(*answer, frame);
            }
            Order::OpenStop(reply) => self.stops.push_back(reply),
            Order::Hold(hold) => self.held = hold,
            // The connection compares what is announced after every turn, and this order has brought one about.
            Order::Announce => {}
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<
            Self::InboundProtocol,
            Self::OutboundProtocol,
            Self::InboundOpenInfo,
            Self::OutboundOpenInfo,
        >,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: stream,
                ..
            }) => self.handle_hop(stream),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream,
                info: reply,
            }) => {
                // Nobody waits for it when the circuit was cut meanwhile; the stream is reset then.
                let _ = reply.send(stream);
            }
            // A failed stop stream: dropping the sender inside the event tells the circuit.
            ConnectionEvent::DialUpgradeError(_) => {}
            _ => {}
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<
        ConnectionHandlerEvent<Self::OutboundProtocol, Self::OutboundOpenInfo, Self::ToBehaviour>,
    > {
        self.turn.advance();
        if let Some(reply) = self.stops.pop_front() {
            let protocol = SubstreamProtocol::new(ReadyUpgrade::new(proto::STOP), reply)
                .with_timeout(self.common.timeouts.request);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        if self.turned_away > 0 {
            let event = Event::Faulty(Fault::TooMany, std::mem::take(&mut self.turned_away));
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(event));
        }
        self.poll_work(cx)
            .map(ConnectionHandlerEvent::NotifyBehaviour)
    }
}

/// Reads the request of a stream; answers by itself what is none.
async fn hear(mut stream: Stream, place: Place, timeouts: Timeouts) -> Option<Event> {
    let opened = Instant::now();
    let answer = |stream, place| Answer {
        stream,
        deadline: opened + timeouts.request,
        telling: timeouts.request / 10,
        place,
    };
    let read = timeout_at(opened + timeouts.header, proto::read_frame(&mut stream)).await;
    let request = match read {
        Err(_elapsed) => return Some(Event::Faulty(Fault::Slow, 1)),
        Ok(Ok(body)) => proto::decode_request(&body),
        Ok(Err(FrameError::Malformed)) => Err(BadMessage::Malformed),
        Ok(Err(FrameError::Silent | FrameError::Io(_))) => {
            return Some(Event::Faulty(Fault::Gone, 1));
        }
    };
    match request {
        Ok(request) => Some(Event::Asked(request, Box::new(answer(stream, place)))),
        Err(bad) => {
            let frame = proto::status_frame(bad.status(), None);
            let _ = answer(stream, place).tell(frame).await;
            let fault = match bad {
                BadMessage::Malformed => Fault::Malformed,
                BadMessage::Unexpected => Fault::Unexpected,
            };
            Some(Event::Faulty(fault, 1))
        }
    }
}

/// One of the [`MAX_REQUESTS`] places of a connection, free again when dropped.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(places: &Arc<AtomicUsize>) -> Option<Place> {
        places
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                (taken < MAX_REQUESTS).then_some(taken + 1)
            })
            .ok()
            .map(|_| Place(places.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").finish_non_exhaustive()
    }
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Order::Answer(..) => "Answer",
            Order::Reserve(..) => "Reserve",
            Order::OpenStop(_) => "OpenStop",
            Order::Hold(true) => "Hold",
            Order::Hold(false) => "LetGo",
            Order::Announce => "Announce",
        })
    }
}

impl Fault {
    pub fn label(self) -> &'static str {
        match self {
            Fault::Malformed => "malformed",
            Fault::Unexpected => "unexpected",
            Fault::Slow => "header_timeout",
            Fault::TooMany => "busy",
            Fault::Gone => "gone",
        }
    }

    /// The status that the peer got, if it got one.
    pub fn status(self) -> Option<Status> {
        match self {
            Fault::Malformed => Some(Status::MalformedMessage),
            Fault::Unexpected => Some(Status::UnexpectedMessage),
            Fault::Slow | Fault::TooMany | Fault::Gone => None,
        }
    }
}
