//! The hop protocol as one connection offers it: announced only while the relay serves, understood always.
//!
//! With `relay.service = false` the protocol must vanish from what identify announces, and yet a request that comes all the
//! same is to be answered with PERMISSION_DENIED instead of failing in negotiation. The swarm takes both from
//! `listen_protocol`: for the announcement it reads the names at once, for a negotiation only when the stream is polled,
//! which is after the handler's next turn. So the turn in which the names are read tells the two apart.

use super::proto;
use futures::future::{Ready, ready};
use libp2p::{InboundUpgrade, Stream, StreamProtocol, core::UpgradeInfo};
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

/// Counts the turns of one handler.
#[derive(Clone, Debug, Default)]
pub struct Turn(Arc<AtomicU32>);

impl Turn {
    pub fn advance(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn now(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

pub struct Offer {
    announced: bool,
    turn: Turn,
}

impl Offer {
    pub fn new(announced: bool, turn: Turn) -> Self {
        Self { announced, turn }
    }
}

impl UpgradeInfo for Offer {
    type Info = StreamProtocol;
    type InfoIter = Names;

    fn protocol_info(&self) -> Names {
        Names {
            announced: self.announced,
            asked_in: self.turn.now(),
            turn: self.turn.clone(),
            read: false,
        }
    }
}

impl InboundUpgrade<Stream> for Offer {
    type Output = Stream;
    type Error = Infallible;
    type Future = Ready<Result<Stream, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok(stream))
    }
}

/// The hop protocol, or nothing when a relay that does not serve is asked what it announces.
pub struct Names {
    announced: bool,
    asked_in: u32,
    turn: Turn,
    read: bool,
}

impl Iterator for Names {
    type Item = StreamProtocol;

    fn next(&mut self) -> Option<StreamProtocol> {
        let negotiating = self.turn.now() != self.asked_in;
        let first = !std::mem::replace(&mut self.read, true);
        (first && (self.announced || negotiating)).then_some(proto::HOP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(announced: bool, turns: u32) -> Vec<StreamProtocol> {
        let turn = Turn::default();
        let names = Offer::new(announced, turn.clone()).protocol_info();
        (0..turns).for_each(|_| turn.advance());
        names.collect()
    }

    #[test]
    fn a_relay_that_does_not_serve_announces_nothing_but_still_negotiates() {
        assert!(names(false, 0).is_empty());
        assert_eq!(names(false, 1), [proto::HOP]);
    }

    #[test]
    fn a_relay_that_serves_does_both() {
        assert_eq!(names(true, 0), [proto::HOP]);
        assert_eq!(names(true, 1), [proto::HOP]);
    }
}
