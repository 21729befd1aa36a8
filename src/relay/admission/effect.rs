//! What happens to reservations, circuits and connections without anybody asking for it.

use super::CircuitId;
use crate::{acl::RuleRef, id::PeerId};

/// What the caller has to carry out. The state here is already without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    EndReservation {
        peer: PeerId,
        why: Ended,
    },
    /// Reset both ends, whether the circuit is established or in its handshake.
    CutCircuit {
        circuit: CircuitId,
        why: Cut,
    },
    /// Close what connections the peer has, once, so that it learns. It may come back.
    CloseConnections {
        peer: PeerId,
    },
}

/// Why a reservation ended before the peer gave it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    Expired,
    /// The peer's last direct connection is gone.
    Disconnected,
    /// A guest, and the bootstrap window has closed.
    WindowClosed,
    /// A member that withdrew its heartbeat.
    Withdrawn,
    Denied(RuleRef),
    ServiceOff,
    /// Surplus over a lowered cap, with `on_shrink = "evict"`.
    Evicted,
}

/// Why a circuit is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// One of the two connections it runs over is gone.
    Disconnected,
    /// One of its ends is a guest, and the bootstrap window has closed.
    WindowClosed,
    Denied(RuleRef),
    ServiceOff,
    /// Surplus over a lowered cap, with `on_shrink = "evict"`.
    Evicted,
}
