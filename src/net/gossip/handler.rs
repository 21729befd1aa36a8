//! One connection as gossip sees it: holds the library's handler and can put a fresh one in its place.
//!
//! The library's handler serves one stream each way and counts: at the fifth it stops for good. Here a handler lives as long
//! as the router on the other side. A stream that comes in is parked until the behaviour says who takes it: the handler that
//! is there, or a new one that starts from nothing. What was opened for an earlier handler and arrives late is dropped.
#![allow(
    clippy::disallowed_methods,
    reason = "how fast a peer talks is measured here"
)]

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::future::{self, BoxFuture, Either, FutureExt};
use libp2p::{
    StreamProtocol,
    core::upgrade::{InboundUpgrade, UpgradeInfo},
    swarm::{
        ConnectionHandler, ConnectionHandlerEvent, Stream, SubstreamProtocol, THandler,
        handler::{
            ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
            ProtocolsChange,
        },
    },
};
use tokio::time::Sleep;

use super::{
    pace::{CONNECTION, Debt, Weight},
    router::Router,
};

/// The library's handler and what it exchanges with its behaviour.
pub type Inner = THandler<Router>;
pub type InnerEvent = <Inner as ConnectionHandler>::ToBehaviour;
type InnerOrder = <Inner as ConnectionHandler>::FromBehaviour;

/// How the library negotiates a stream: its protocol ids, its codec and its limits.
pub type Speech = <Inner as ConnectionHandler>::OutboundProtocol;
type Negotiated = <Speech as InboundUpgrade<Stream>>::Output;

/// Streams one handler of the library takes each way before it is replaced; at the fifth it would stop for good.
const STREAMS: u32 = 4;

/// A stream that could not be opened is tried again after this, doubled each time up to the second.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// After the last words a connection has this long to get rid of them.
const FAREWELL: Duration = Duration::from_secs(1);

/// What the behaviour tells a connection.
pub enum Order {
    /// Speak and understand gossip, in this way.
    Offer(Offer),
    /// Speak nothing any more, beyond what is queued.
    Withdraw,
    /// A handler that starts from nothing.
    Renew {
        handler: Box<Inner>,
        role: Role,
        /// It takes the parked stream. Otherwise that waits for an answer of its own.
        take: bool,
    },
    /// The handler that is there takes the parked stream.
    Take,
    /// A listener becomes the speaker.
    Speak,
    /// Drop the handler and its streams; another connection of this peer has taken over.
    Rest,
    /// The stream the handler asked for may be opened: its first words are a new hello.
    Reopen,
    /// Whether gossip alone is a reason to keep the connection.
    Keep(bool),
    Inner(InnerOrder),
}

/// Of several connections to one peer, one opens a stream; the others only listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Speaker,
    Listener,
}

/// What a connection tells the behaviour.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "nearly every report is the large one"
)]
pub enum Report {
    /// Identify has said what the peer speaks.
    Speaks {
        gossip: bool,
        ours: bool,
    },
    /// A stream has come in and is parked.
    Arrived {
        /// The handler can take it beside what it had before.
        room: bool,
    },
    /// The stream to the peer has ended and another is wanted.
    Lost {
        /// The handler can take it.
        room: bool,
    },
    Inner(InnerEvent),
}

pub struct Handler {
    /// The protocol by which nodes of this program know each other.
    ours: StreamProtocol,
    offer: Offer,
    inner: Option<Box<Inner>>,
    role: Role,
    /// Counts handlers, so that what an earlier one asked for is known when it arrives.
    epoch: u64,
    /// Streams this handler was given, each way.
    taken: u32,
    opened: u32,
    /// The handler may open a stream without asking: its first words are a hello.
    granted: bool,
    parked: Option<Box<Negotiated>>,
    /// The behaviour has been asked about the parked stream; until it answers, the old handler rests.
    asked: bool,
    /// The handler waits for a stream that it may not open yet.
    wants: bool,
    failures: u32,
    retry: Option<Pin<Box<Sleep>>>,
    /// Runs from the last words to silence.
    leaving: Option<Pin<Box<Sleep>>>,
    keep: bool,
    /// What the peer has said faster than it may.
    debt: Debt,
    /// Until it has paid, nothing of it is read.
    pause: Option<Pin<Box<Sleep>>>,
    reports: VecDeque<Report>,
}

impl Handler {
    pub fn new(ours: StreamProtocol, offer: Offer) -> Self {
        Self {
            ours,
            offer,
            inner: None,
            role: Role::Listener,
            epoch: 0,
            taken: 0,
            opened: 0,
            granted: false,
            parked: None,
            asked: false,
            wants: false,
            failures: 0,
            retry: None,
            leaving: None,
            keep: false,
            debt: Debt::default(),
            pause: None,
            reports: VecDeque::new(),
        }
    }

    fn put(&mut self, handler: Option<Box<Inner>>, role: Role) {
        self.inner = handler;
        self.role = role;
        self.epoch = self.epoch.wrapping_add(1);
        self.taken = 0;
        self.opened = 0;
        self.granted = role == Role::Speaker;
        self.wants = false;
        self.failures = 0;
        self.retry = None;
        self.leaving = None;
    }

    fn take_parked(&mut self) {
        self.asked = false;
        let Some(inner) = &mut self.inner else {
            return;
        };
        if let Some(stream) = self.parked.take() {
            self.taken = self.taken.saturating_add(1);
            inner.on_connection_event(ConnectionEvent::FullyNegotiatedInbound(
                FullyNegotiatedInbound {
                    protocol: Either::Left(*stream),
                    info: (),
                },
            ));
        }
    }

    fn learn(&mut self, change: ProtocolsChange<'_>) {
        let ProtocolsChange::Added(added) = change else {
            return;
        };
        let (mut gossip, mut ours) = (false, false);
        for protocol in added {
            ours |= *protocol == self.ours;
            gossip |= is_gossip(protocol);
        }
        if gossip || ours {
            self.reports.push_back(Report::Speaks { gossip, ours });
        }
        if gossip && self.retry.is_some() {
            self.retry = Some(Box::pin(tokio::time::sleep(Duration::ZERO)));
        }
    }

    fn negotiated(&mut self, mut stream: Negotiated, epoch: u64) {
        if epoch != self.epoch {
            return;
        }
        let Some(inner) = &mut self.inner else {
            return;
        };
        stream.0.ignore_for_keep_alive();
        self.failures = 0;
        self.opened = self.opened.saturating_add(1);
        inner.on_connection_event(ConnectionEvent::FullyNegotiatedOutbound(
            FullyNegotiatedOutbound {
                protocol: stream,
                info: (),
            },
        ));
    }

    /// The handler of the library is not told: it would count, and give up.
    fn failed(&mut self, epoch: u64) {
        if epoch != self.epoch {
            return;
        }
        let doubled = FIRST_RETRY.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        self.retry = Some(Box::pin(tokio::time::sleep(doubled.min(LAST_RETRY))));
    }

    fn charge(&mut self, event: &InnerEvent) {
        let now = Instant::now();
        self.debt.add(CONNECTION.cost(Weight::of(event)), now);
        if let Some(over) = self.debt.over(&CONNECTION, now) {
            self.pause = Some(Box::pin(tokio::time::sleep(over)));
        }
    }

    /// The stream that is granted and wanted, or whose time to be tried again has come.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let due = match &mut self.retry {
            Some(retry) => retry.poll_unpin(cx).is_ready(),
            None => self.wants && self.granted,
        };
        let Some(terms) = self.offer.0.as_ref().filter(|_| due) else {
            return Poll::Pending;
        };
        self.retry = None;
        self.wants = false;
        self.granted = false;
        Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
            protocol: SubstreamProtocol::new(terms.outbound.clone(), self.epoch),
        })
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if let Some(pause) = &mut self.pause {
            if pause.poll_unpin(cx).is_pending() {
                return Poll::Pending;
            }
            self.pause = None;
        }
        while let Some(inner) = &mut self.inner {
            let Poll::Ready(event) = inner.poll(cx) else {
                break;
            };
            match event {
                ConnectionHandlerEvent::NotifyBehaviour(event) => {
                    self.charge(&event);
                    return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(Report::Inner(
                        event,
                    )));
                }
                ConnectionHandlerEvent::OutboundSubstreamRequest { .. } => {
                    self.wants = true;
                    if self.role == Role::Speaker && !self.granted {
                        let room = self.opened < STREAMS;
                        self.reports.push_back(Report::Lost { room });
                    }
                }
                _ => {}
            }
        }
        Poll::Pending
    }
}

type Event = ConnectionHandlerEvent<Speech, u64, Report>;

impl ConnectionHandler for Handler {
    type FromBehaviour = Order;
    type ToBehaviour = Report;
    type InboundProtocol = Offer;
    type OutboundProtocol = Speech;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = u64;

    fn listen_protocol(&self) -> SubstreamProtocol<Offer, ()> {
        SubstreamProtocol::new(self.offer.clone(), ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.keep
            || self
                .inner
                .as_ref()
                .is_some_and(|inner| inner.connection_keep_alive())
    }

    fn on_behaviour_event(&mut self, order: Order) {
        match order {
            Order::Offer(offer) => self.offer = offer,
            Order::Withdraw => {
                self.offer = Offer::default();
                self.parked = None;
                self.asked = false;
                self.keep = false;
                self.wants = false;
                self.retry = None;
                self.leaving = Some(Box::pin(tokio::time::sleep(FAREWELL)));
            }
            Order::Renew {
                handler,
                role,
                take,
            } => {
                self.put(Some(handler), role);
                if take {
                    self.take_parked();
                }
            }
            Order::Take => self.take_parked(),
            Order::Speak => {
                self.role = Role::Speaker;
                self.granted = true;
            }
            Order::Rest => self.put(None, Role::Listener),
            Order::Reopen => self.granted = true,
            Order::Keep(keep) => self.keep = keep,
            Order::Inner(order) => {
                if let Some(inner) = &mut self.inner {
                    inner.on_behaviour_event(order);
                }
            }
        }
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Offer, Speech, (), u64>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: mut stream,
                ..
            }) => {
                stream.0.ignore_for_keep_alive();
                // A peer has one stream to us: the newest.
                self.parked = Some(Box::new(stream));
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol,
                info,
            }) => self.negotiated(protocol, info),
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, .. }) => self.failed(info),
            ConnectionEvent::RemoteProtocolsChange(change) => self.learn(change),
            _ => {}
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if let Some(report) = self.reports.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(report));
        }
        if let Some(leaving) = &mut self.leaving {
            if leaving.poll_unpin(cx).is_pending() {
                // It writes what it has; what it hears or wants no longer counts.
                if self
                    .inner
                    .as_mut()
                    .is_some_and(|inner| inner.poll(cx).is_ready())
                {
                    cx.waker().wake_by_ref();
                }
                return Poll::Pending;
            }
            self.put(None, Role::Listener);
        }
        if !self.asked {
            if let Poll::Ready(event) = self.poll_inner(cx) {
                return Poll::Ready(event);
            }
            if let Poll::Ready(event) = self.poll_open(cx) {
                return Poll::Ready(event);
            }
            // Everything the old stream has brought so far is read: now the new one.
            if self.parked.is_some() {
                self.asked = true;
                let room = self.taken < STREAMS;
                self.reports.push_back(Report::Arrived { room });
            }
        }
        if let Some(report) = self.reports.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(report));
        }
        Poll::Pending
    }
}

/// The protocols a connection takes streams for: those of gossip, or none at all.
#[derive(Clone, Default)]
pub struct Offer(Option<Arc<Terms>>);

struct Terms {
    inbound: Speech,
    outbound: Speech,
    protocols: Vec<Protocol>,
}

type Protocol = <Speech as UpgradeInfo>::Info;

impl Offer {
    /// Takes streams by the terms of `inbound` and opens them by those of `outbound`.
    pub fn new(inbound: Speech, outbound: Speech) -> Self {
        let protocols = inbound.protocol_info();
        Self(Some(Arc::new(Terms {
            inbound,
            outbound,
            protocols,
        })))
    }
}

/// The swarm asks for the protocols at each turn of a connection, so that asking must cost nothing.
pub struct Protocols {
    offer: Offer,
    next: usize,
}

impl Iterator for Protocols {
    type Item = Protocol;

    fn next(&mut self) -> Option<Protocol> {
        let protocol = self.offer.0.as_ref()?.protocols.get(self.next)?.clone();
        self.next = self.next.saturating_add(1);
        Some(protocol)
    }
}

impl UpgradeInfo for Offer {
    type Info = Protocol;
    type InfoIter = Protocols;

    fn protocol_info(&self) -> Protocols {
        Protocols {
            offer: self.clone(),
            next: 0,
        }
    }
}

impl InboundUpgrade<Stream> for Offer {
    type Output = Negotiated;
    type Error = <Speech as InboundUpgrade<Stream>>::Error;
    type Future = BoxFuture<'static, Result<Negotiated, Self::Error>>;

    fn upgrade_inbound(self, stream: Stream, protocol: Protocol) -> Self::Future {
        match self.0 {
            Some(terms) => Box::pin(terms.inbound.clone().upgrade_inbound(stream, protocol)),
            // Nothing was offered, so nothing can have been agreed on.
            None => Box::pin(future::pending()),
        }
    }
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Order::Offer(_) => "Offer",
            Order::Withdraw => "Withdraw",
            Order::Renew { .. } => "Renew",
            Order::Take => "Take",
            Order::Speak => "Speak",
            Order::Rest => "Rest",
            Order::Reopen => "Reopen",
            Order::Keep(_) => "Keep",
            Order::Inner(_) => "Inner",
        })
    }
}

fn is_gossip(protocol: &StreamProtocol) -> bool {
    protocol.as_ref().starts_with("/meshsub/")
}
