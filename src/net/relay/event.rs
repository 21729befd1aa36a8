//! What the relay service tells the rest of the program, as it happens.

use super::{end::End, handler::Fault};
use crate::{
    acl::Operation,
    id::Generation,
    relay::{
        Bytes, CircuitId, Refusal,
        admission::{Ended, Settled},
    },
};
use libp2p::PeerId;

#[derive(Clone, Debug)]
pub enum Event {
    Reserved {
        peer: PeerId,
        renewed: bool,
    },
    ReservationEnded {
        peer: PeerId,
        why: Ended,
    },
    Refused {
        peer: PeerId,
        operation: Operation,
        refusal: Refusal,
    },
    /// A hop stream that brought no request.
    Faulty {
        peer: PeerId,
        fault: Fault,
    },
    CircuitOpened {
        circuit: CircuitId,
        source: PeerId,
        destination: PeerId,
    },
    CircuitEnded {
        circuit: CircuitId,
        source: PeerId,
        destination: PeerId,
        end: End,
        bytes: Bytes,
    },
    /// From here on requests are judged by this generation, and what it no longer allows has been told to stop.
    PolicyApplied {
        generation: Generation,
        settled: Settled,
    },
}
