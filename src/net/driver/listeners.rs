//! The listeners of the swarm, by the address of `transport.listen` each was asked for.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    time::Duration,
};

use libp2p::{
    Multiaddr, Swarm, TransportError, core::transport::ListenerId, swarm::NetworkBehaviour,
};
use tokio::{sync::oneshot, time::Instant};

use super::{ListenError, now, port};

/// How long a new listener may take to learn the addresses of its interfaces. It is bound already; what comes later is
/// only not in the first answer.
const ADDRESS_WAIT: Duration = Duration::from_secs(1);

/// How long the socket of a closed QUIC listener may take to let go of its port. It does so when its task has seen the
/// end, which is a matter of milliseconds.
const RELEASE_WAIT: Duration = Duration::from_secs(2);

/// How often a port that is being released is tried.
const RELEASE_STEP: Duration = Duration::from_millis(5);

pub type Reply = oneshot::Sender<Result<(), ListenError>>;

#[derive(Default)]
pub struct Listeners {
    bound: HashMap<ListenerId, Bound>,
    /// Waiting for a port that another listener of ours still holds.
    opening: Vec<Opening>,
}

/// A listener and the addresses it turned out to have.
struct Bound {
    asked: Multiaddr,
    addresses: BTreeSet<Multiaddr>,
    /// What must come back if this one is undone.
    instead_of: InsteadOf,
    /// Answered when the first address is known, or at the latest then.
    waiting: Option<(Reply, Instant)>,
}

#[derive(Default)]
enum InsteadOf {
    #[default]
    Nothing,
    /// These were closed because one port cannot have both.
    Displaced(Vec<Multiaddr>),
    /// The same socket, asked for in other words before.
    Renamed(Multiaddr),
}

struct Opening {
    address: Multiaddr,
    displaced: Vec<Multiaddr>,
    /// `None` for a listener that comes back.
    reply: Option<Reply>,
    until: Instant,
    next: Instant,
}

impl Listeners {
    /// Binds `address`. Of the listeners asked for by `replaces`, those in its way are taken over or make way for it.
    pub fn open(
        &mut self,
        swarm: &mut Swarm<impl NetworkBehaviour>,
        address: Multiaddr,
        replaces: &[Multiaddr],
        quic_connections: usize,
        reply: Reply,
    ) {
        let in_the_way: Vec<ListenerId> = self
            .bound
            .iter()
            .filter(|(_, bound)| bound.overlaps(&address))
            .map(|(id, _)| *id)
            .collect();
        let makes_way = |id: &ListenerId| {
            self.bound
                .get(id)
                .is_some_and(|bound| replaces.contains(&bound.asked))
        };
        if !in_the_way.iter().all(makes_way) {
            return answer(reply, Err(ListenError::InUse { address }));
        }
        if let [only] = in_the_way[..]
            && let Some(bound) = self.bound.get_mut(&only)
            && port::only_leaves_open(&bound.asked, &address)
            && bound.addresses.contains(&address)
        {
            bound.instead_of = InsteadOf::Renamed(std::mem::replace(&mut bound.asked, address));
            return answer(reply, Ok(()));
        }
        if in_the_way.is_empty() {
            if let Err(error) = port::probe(&address) {
                return answer(reply, Err(error));
            }
        } else if !port::can_be_shared(&address) {
            if quic_connections > 0 {
                return answer(
                    reply,
                    Err(ListenError::HeldByConnections {
                        address,
                        connections: quic_connections,
                    }),
                );
            }
            let displaced = in_the_way
                .iter()
                .filter_map(|id| self.remove(swarm, *id))
                .map(|bound| bound.asked)
                .collect();
            self.opening
                .push(Opening::new(address, displaced, Some(reply)));
            return;
        }
        match swarm.listen_on(address.clone()) {
            Ok(id) => drop(
                self.bound
                    .insert(id, Bound::new(address, InsteadOf::Nothing, Some(reply))),
            ),
            Err(error) => answer(reply, Err(listen_error(&address, error))),
        }
    }

    pub fn close(&mut self, swarm: &mut Swarm<impl NetworkBehaviour>, asked: &Multiaddr) {
        if let Some(id) = self.id_of(asked) {
            self.remove(swarm, id);
        }
    }

    /// Takes [`Self::open`] back.
    pub fn undo(&mut self, swarm: &mut Swarm<impl NetworkBehaviour>, asked: &Multiaddr) {
        if let Some(at) = self
            .opening
            .iter()
            .position(|opening| opening.address == *asked)
        {
            let opening = self.opening.swap_remove(at);
            self.come_back(opening.displaced);
        }
        let Some(id) = self.id_of(asked) else { return };
        let Some(bound) = self.bound.get_mut(&id) else {
            return;
        };
        match std::mem::take(&mut bound.instead_of) {
            InsteadOf::Renamed(before) => bound.asked = before,
            InsteadOf::Displaced(before) => {
                self.remove(swarm, id);
                self.come_back(before);
            }
            InsteadOf::Nothing => drop(self.remove(swarm, id)),
        }
    }

    pub fn has_address(
        &mut self,
        swarm: &mut Swarm<impl NetworkBehaviour>,
        id: ListenerId,
        address: Multiaddr,
    ) {
        let Some(bound) = self.bound.get_mut(&id) else {
            return;
        };
        bound.addresses.insert(address);
        if let Some((reply, _)) = bound.waiting.take() {
            self.tell(swarm, id, reply);
        }
    }

    pub fn lost_address(&mut self, id: ListenerId, address: &Multiaddr) {
        if let Some(bound) = self.bound.get_mut(&id) {
            bound.addresses.remove(address);
        }
    }

    /// The listener has ended without being asked to.
    pub fn lost(&mut self, id: ListenerId, reason: Result<(), io::Error>) {
        let Some(bound) = self.bound.remove(&id) else {
            return;
        };
        let cause = reason
            .err()
            .map_or_else(|| "closed".to_owned(), |error| error.to_string());
        match bound.waiting {
            Some((reply, _)) => answer(
                reply,
                Err(ListenError::Bind {
                    address: bound.asked,
                    cause,
                }),
            ),
            None => tracing::error!(address = %bound.asked, cause, "listener lost"),
        }
    }

    pub fn addresses(&self) -> BTreeSet<Multiaddr> {
        self.bound
            .values()
            .flat_map(|bound| bound.addresses.iter().cloned())
            .collect()
    }

    /// When [`Self::look_again`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        let waiting = self
            .bound
            .values()
            .filter_map(|bound| bound.waiting.as_ref())
            .map(|(_, due)| *due);
        waiting
            .chain(self.opening.iter().map(|opening| opening.next))
            .min()
    }

    pub fn look_again(&mut self, swarm: &mut Swarm<impl NetworkBehaviour>) {
        let now = now();
        let is_due = |bound: &Bound| bound.waiting.as_ref().is_some_and(|(_, due)| *due <= now);
        let due: Vec<ListenerId> = self
            .bound
            .iter()
            .filter(|(_, bound)| is_due(bound))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            if let Some((reply, _)) = self
                .bound
                .get_mut(&id)
                .and_then(|bound| bound.waiting.take())
            {
                self.tell(swarm, id, reply);
            }
        }
        for mut opening in std::mem::take(&mut self.opening) {
            if opening.next > now {
                self.opening.push(opening);
                continue;
            }
            match (port::probe(&opening.address), opening.reply.take()) {
                (Ok(()), reply) => self.reopen(swarm, opening.address, opening.displaced, reply),
                (Err(_), reply) if now < opening.until => {
                    self.opening.push(Opening {
                        next: now + RELEASE_STEP,
                        reply,
                        ..opening
                    });
                }
                (Err(error), Some(reply)) => {
                    self.come_back(opening.displaced);
                    answer(reply, Err(error));
                }
                (Err(error), None) => tracing::error!(cause = %error, "listener lost"),
            }
        }
    }

    fn reopen(
        &mut self,
        swarm: &mut Swarm<impl NetworkBehaviour>,
        address: Multiaddr,
        displaced: Vec<Multiaddr>,
        reply: Option<Reply>,
    ) {
        match (swarm.listen_on(address.clone()), reply) {
            (Ok(id), reply) => {
                let instead_of = if displaced.is_empty() {
                    InsteadOf::Nothing
                } else {
                    InsteadOf::Displaced(displaced)
                };
                self.bound
                    .insert(id, Bound::new(address, instead_of, reply));
            }
            (Err(error), Some(reply)) => {
                self.come_back(displaced);
                answer(reply, Err(listen_error(&address, error)));
            }
            (Err(error), None) => tracing::error!(%address, cause = %error, "listener lost"),
        }
    }

    fn come_back(&mut self, addresses: Vec<Multiaddr>) {
        self.opening.extend(
            addresses
                .into_iter()
                .map(|address| Opening::new(address, Vec::new(), None)),
        );
    }

    /// Answers who asked for a listener; one that nobody waits for any more would never be closed.
    fn tell(&mut self, swarm: &mut Swarm<impl NetworkBehaviour>, id: ListenerId, reply: Reply) {
        if reply.send(Ok(())).is_err()
            && let Some(asked) = self.bound.get(&id).map(|bound| bound.asked.clone())
        {
            self.undo(swarm, &asked);
        }
    }

    fn id_of(&self, asked: &Multiaddr) -> Option<ListenerId> {
        self.bound
            .iter()
            .find(|(_, bound)| bound.asked == *asked)
            .map(|(id, _)| *id)
    }

    fn remove(
        &mut self,
        swarm: &mut Swarm<impl NetworkBehaviour>,
        id: ListenerId,
    ) -> Option<Bound> {
        swarm.remove_listener(id);
        self.bound.remove(&id)
    }
}

impl Bound {
    fn new(asked: Multiaddr, instead_of: InsteadOf, reply: Option<Reply>) -> Self {
        let waiting = reply.map(|reply| (reply, now() + ADDRESS_WAIT));
        Self {
            asked,
            addresses: BTreeSet::new(),
            instead_of,
            waiting,
        }
    }

    /// Whether a socket on `address` would want the port of this one, as asked for or as it turned out.
    fn overlaps(&self, address: &Multiaddr) -> bool {
        port::overlap(&self.asked, address)
            || self
                .addresses
                .iter()
                .any(|bound| port::overlap(bound, address))
    }
}

impl Opening {
    fn new(address: Multiaddr, displaced: Vec<Multiaddr>, reply: Option<Reply>) -> Self {
        let now = now();
        Self {
            address,
            displaced,
            reply,
            until: now + RELEASE_WAIT,
            next: now,
        }
    }
}

fn answer(reply: Reply, result: Result<(), ListenError>) {
    // Whoever asked may have given up; there is nothing to undo.
    let _ = reply.send(result);
}

fn listen_error(address: &Multiaddr, error: TransportError<io::Error>) -> ListenError {
    let cause = match error {
        TransportError::MultiaddrNotSupported(_) => {
            "no transport of this node understands it".to_owned()
        }
        TransportError::Other(error) => error.to_string(),
    };
    ListenError::Bind {
        address: address.clone(),
        cause,
    }
}
