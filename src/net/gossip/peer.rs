//! What gossip knows of one peer and its connections, and what a new stream from it means.

use std::{collections::HashSet, time::Duration};

use libp2p::{gossipsub::TopicHash, swarm::ConnectionId};
use std::time::Instant;

use crate::relay::{Bucket, Limit, Rate};

/// How often a peer may make us forget it and say hello anew. A router is restarted once in a window; what restarts more
/// often is broken or hostile and waits.
const HELLOS: Limit<Rate> = Limit::At(Rate {
    count: 32,
    per: Duration::from_secs(160),
});

/// Lines in the log about one peer, so that it cannot fill a disk.
const MENTIONS: Limit<Rate> = Limit::At(Rate {
    count: 10,
    per: Duration::from_secs(60),
});

/// Between two nodes of this program a new stream within this after our own is the answer to ours, and is not answered.
/// Longer than a negotiation over the slowest path; a node of ours has no other reason for two new streams in ten seconds.
const ECHO: Duration = Duration::from_secs(10);

/// One peer. The library knows it by one connection only, the speaker: one queue, one stream out.
#[derive(Default)]
pub struct Peer {
    pub links: Vec<Link>,
    pub speaker: Option<ConnectionId>,
    /// It speaks gossip.
    pub gossip: bool,
    /// It is a node of this program: it keeps what it knows of us when a stream ends.
    pub ours: bool,
    /// A stream from it has arrived since the library knows it.
    pub heard: bool,
    /// When we last opened a stream to it.
    pub opened: Option<Instant>,
    /// Those of our topics that it is subscribed to.
    pub topics: HashSet<TopicHash>,
    /// What has to wait for `hellos`.
    pub waiting: Option<Waiting>,
    hellos: Bucket,
    mentions: Bucket,
}

pub struct Link {
    pub id: ConnectionId,
    pub relayed: bool,
    pub dialled: bool,
    /// Its handler holds one of the library.
    pub active: bool,
    /// It may bring messages of any size.
    pub full: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    Restart(ConnectionId, Parked),
    Reopen(ConnectionId),
}

/// What becomes of a stream that is parked when a new handler comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parked {
    IsTaken,
    /// It will be asked about, and answered for, by itself.
    Stays,
}

/// What to do with a stream that has come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The handler of that connection takes it.
    Take,
    /// A handler that only listens takes it.
    Listen,
    /// The peer has forgotten us: begin anew on that connection.
    Restart,
    /// The same, but not yet.
    Wait,
}

impl Peer {
    pub fn link(&mut self, id: ConnectionId) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.id == id)
    }

    fn is_relayed(&self, id: ConnectionId) -> bool {
        self.links.iter().any(|link| link.id == id && link.relayed)
    }

    fn is_active(&self, id: ConnectionId) -> bool {
        self.links.iter().any(|link| link.id == id && link.active)
    }

    /// The connection to speak on when there is a choice: a direct one before a relayed one, one that listens already
    /// before others.
    pub fn best_link(&self) -> Option<ConnectionId> {
        let best = self
            .links
            .iter()
            .min_by_key(|link| (link.relayed, !link.active));
        best.map(|link| link.id)
    }

    /// Judges a new stream on the connection `id`; `room` says that its handler can take one more.
    pub fn arrived(&mut self, id: ConnectionId, room: bool, now: Instant) -> Arrival {
        let replaces = std::mem::replace(&mut self.heard, true);
        let Some(speaker) = self.speaker else {
            return self.restart(now);
        };
        let to_better_path = self.is_relayed(speaker) && !self.is_relayed(id);
        let echo = self.ours
            && self
                .opened
                .is_some_and(|opened| now.duration_since(opened) < ECHO);
        let keeps_memory = !replaces || echo;
        if !keeps_memory || (to_better_path && !replaces) {
            return self.restart(now);
        }
        match (self.is_active(id), room) {
            (true, true) => Arrival::Take,
            (true, false) => self.restart(now),
            (false, _) => Arrival::Listen,
        }
    }

    fn restart(&mut self, now: Instant) -> Arrival {
        if self.may_say_hello(now) {
            Arrival::Restart
        } else {
            Arrival::Wait
        }
    }

    /// Puts something off. A parked stream that waits for its answer is not forgotten over a lesser thing.
    pub fn wait(&mut self, waiting: Waiting) {
        if !matches!(self.waiting, Some(Waiting::Restart(_, Parked::IsTaken))) {
            self.waiting = Some(waiting);
        }
    }

    /// Whether the log may say something about this peer.
    pub fn may_be_mentioned(&mut self, now: Instant) -> bool {
        self.mentions.take(MENTIONS, now).is_ok()
    }

    pub fn may_say_hello(&mut self, now: Instant) -> bool {
        self.hellos.take(HELLOS, now).is_ok()
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // Tests start their own clock.
mod tests {
    use super::*;

    fn link(id: usize, relayed: bool) -> Link {
        Link {
            id: ConnectionId::new_unchecked(id),
            relayed,
            dialled: false,
            active: false,
            full: true,
        }
    }

    /// A peer we speak to on connection 1, a moment ago.
    fn peer(ours: bool, now: Instant) -> Peer {
        let mut links = vec![link(1, false), link(2, false)];
        links[0].active = true;
        Peer {
            links,
            speaker: Some(ConnectionId::new_unchecked(1)),
            ours,
            opened: Some(now),
            ..Peer::default()
        }
    }

    const ONE: fn() -> ConnectionId = || ConnectionId::new_unchecked(1);
    const TWO: fn() -> ConnectionId = || ConnectionId::new_unchecked(2);

    #[test]
    fn the_first_stream_is_taken_and_a_second_means_that_we_are_forgotten() {
        let now = Instant::now();
        let mut peer = peer(false, now);
        assert_eq!(peer.arrived(ONE(), true, now), Arrival::Take);
        assert_eq!(peer.arrived(ONE(), true, now), Arrival::Restart);
        assert_eq!(
            peer.arrived(TWO(), true, now),
            Arrival::Restart,
            "on any connection"
        );
    }

    #[test]
    fn nodes_of_ours_do_not_answer_an_answer() {
        let now = Instant::now();
        let mut peer = peer(true, now);
        assert_eq!(peer.arrived(ONE(), true, now), Arrival::Take);
        let soon = now + Duration::from_secs(3);
        assert_eq!(
            peer.arrived(ONE(), true, soon),
            Arrival::Take,
            "the answer to ours"
        );
        assert_eq!(peer.arrived(TWO(), true, soon), Arrival::Listen);
        let later = now + ECHO;
        assert_eq!(peer.arrived(ONE(), true, later), Arrival::Restart);
    }

    #[test]
    fn a_handler_is_replaced_before_it_has_taken_too_many() {
        let now = Instant::now();
        let mut peer = peer(true, now);
        peer.heard = true;
        assert_eq!(peer.arrived(ONE(), false, now), Arrival::Restart);
    }

    #[test]
    fn a_first_stream_on_a_direct_connection_is_answered_there() {
        let now = Instant::now();
        let mut peer = peer(false, now);
        peer.links = vec![link(1, true), link(2, false)];
        assert_eq!(peer.arrived(TWO(), true, now), Arrival::Restart);
    }

    #[test]
    fn who_restarts_too_often_waits_and_is_not_forgotten() {
        let now = Instant::now();
        let mut peer = peer(false, now);
        peer.heard = true;
        let answered = (0..100).take_while(|_| peer.arrived(ONE(), true, now) == Arrival::Restart);
        assert_eq!(answered.count(), 32);
        peer.wait(Waiting::Restart(ONE(), Parked::IsTaken));
        peer.wait(Waiting::Reopen(ONE()));
        assert_eq!(peer.waiting, Some(Waiting::Restart(ONE(), Parked::IsTaken)));
        assert!(peer.may_say_hello(now + Duration::from_secs(5)));
    }
}
