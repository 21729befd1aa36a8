//! Streams of our own protocols, by connection: whoever opens one says over which kind of path, and whoever accepts one
//! learns over which it came.
//!
//! A peer is often connected twice, through a relay and directly; a stream on the wrong connection is slow, metered and
//! cut with its circuit. So nothing here is left to chance: [`Control::open`] takes a [`Route`], and [`Change`]s tell
//! when a better path has appeared.
//!
//! Negotiation waits for the other side's answer, one round trip. The swarm could send first and ask later (`V1Lazy`), but
//! only for all protocols of the process at once, and then a peer that says no leaves streams behind which panic when they
//! are touched again. Whoever cannot wait keeps a stream in hand.
//!
//! ```text
//! open   → registry (which connection) → lane of that connection → its handler → negotiation → Stream
//! accept ← inbox of the protocol, bounded ← handler ← negotiation
//! ```

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::channel::oneshot;
use libp2p::{PeerId, StreamProtocol, swarm::ConnectionId};
use tokio::sync::broadcast;

mod behaviour;
mod handler;
mod inbox;
mod lane;
mod registry;
mod stream;

pub use behaviour::Behaviour;
pub use inbox::{Inbound, Incoming};
pub use registry::{Change, Link, Step, Transport};
pub use stream::Stream;

use inbox::Inboxes;
use lane::Request;
use registry::Registry;

/// Opens and accepts streams. Clones are the same swarm's.
#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
}

/// Which connection of a peer a stream is opened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// A direct connection or none.
    Direct,
    /// A direct connection; through a relay only while there is none.
    PreferDirect,
    /// This connection or none.
    Via(ConnectionId),
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{peer} is not connected")]
    NotConnected { peer: PeerId },
    #[error("{peer} is connected through a relay only")]
    OnlyRelayed { peer: PeerId },
    #[error("{peer} does not speak {protocol}")]
    Unsupported {
        peer: PeerId,
        protocol: StreamProtocol,
    },
    #[error("too many streams to {peer} are being opened at once")]
    Busy { peer: PeerId },
    #[error("{peer} did not answer within {} s", lane::NEGOTIATION_TIMEOUT.as_secs())]
    TimedOut { peer: PeerId },
    #[error("the connection to {peer} was lost")]
    Lost { peer: PeerId },
}

#[derive(Debug, thiserror::Error)]
#[error("{protocol} is accepted already; drop its receiver first")]
pub struct Taken {
    pub protocol: StreamProtocol,
}

/// What streams have come to, for `status` and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub opened: u64,
    /// By [`OpenError::label`].
    pub failed: BTreeMap<&'static str, u64>,
    /// By protocol.
    pub accepted: BTreeMap<String, Accepted>,
}

/// Inbound streams of one protocol since it was registered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    pub handed_over: u64,
    /// Reset because nobody took them in time.
    pub turned_away: u64,
}

/// What the behaviour, its handlers and all controls have in common.
struct Shared {
    registry: Registry,
    inboxes: Inboxes,
    counts: lane::Counts,
}

impl Control {
    /// Opens a stream to a peer that is connected. Does not dial.
    pub async fn open(
        &self,
        peer: PeerId,
        protocol: StreamProtocol,
        route: Route,
    ) -> Result<Stream, OpenError> {
        let opened = self.try_each(peer, protocol, route).await;
        match &opened {
            Ok(_) => drop(self.shared.counts.opened.fetch_add(1, Ordering::Relaxed)),
            Err(error) => self.shared.counts.failed(error),
        }
        opened
    }

    /// A connection may be closing while it is still listed; the next best one is tried then.
    async fn try_each(
        &self,
        peer: PeerId,
        protocol: StreamProtocol,
        route: Route,
    ) -> Result<Stream, OpenError> {
        let mut lost = None;
        for lane in self.shared.registry.lanes(peer, route)? {
            let (reply, answer) = oneshot::channel();
            let asked = lane.ask(Request {
                protocol: protocol.clone(),
                reply,
            });
            let result = match asked {
                Ok(()) => answer.await.unwrap_or(Err(OpenError::Lost { peer })),
                Err(refused) => Err(refused),
            };
            match result {
                Err(error @ OpenError::Lost { .. }) => lost = Some(error),
                decided => return decided,
            }
        }
        Err(lost.unwrap_or(OpenError::NotConnected { peer }))
    }

    /// Speaks `protocol` from now on, until the receiver is dropped. At most `capacity` streams wait to be received; one
    /// more is reset and counted.
    pub fn accept(&self, protocol: StreamProtocol, capacity: usize) -> Result<Inbound, Taken> {
        inbox::register(&self.shared, protocol, capacity)
    }

    /// The connections of a peer, the best first: direct before relayed, then the newest.
    pub fn links(&self, peer: PeerId) -> Vec<Link> {
        self.shared.registry.links(peer)
    }

    /// All connections.
    pub fn all_links(&self) -> Vec<Link> {
        self.shared.registry.all()
    }

    /// Tells what appears and goes from now on. A receiver that falls behind is told so and looks at [`Self::links`].
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.shared.registry.changes()
    }

    pub fn report(&self) -> Report {
        Report {
            opened: self.shared.counts.opened.load(Ordering::Relaxed),
            failed: self.shared.counts.failures(),
            accepted: self.shared.inboxes.report(),
        }
    }

    /// Takes note of a measured round trip, for [`Link::rtt`].
    pub(super) fn measured(&self, connection: ConnectionId, rtt: Duration) {
        self.shared.registry.measured(connection, rtt);
    }
}

impl OpenError {
    /// For metrics.
    pub fn label(&self) -> &'static str {
        match self {
            OpenError::NotConnected { .. } => "not_connected",
            OpenError::OnlyRelayed { .. } => "only_relayed",
            OpenError::Unsupported { .. } => "unsupported",
            OpenError::Busy { .. } => "busy",
            OpenError::TimedOut { .. } => "timeout",
            OpenError::Lost { .. } => "lost",
        }
    }
}
