//! The vocabulary of circuit relay v2, as the domain sees it: settings, statuses and refusals. No libp2p types but the peer id.

use std::time::Duration;

pub mod admission;
mod bucket;
mod buffers;
mod refusal;
mod report;
pub mod upkeep;

pub use admission::{Admission, CircuitId, ConnectionKey};
pub use bucket::Bucket;
pub use buffers::{Buffers, Share};
pub use refusal::Refusal;
pub use report::{Bytes, PeerReport, Report};

/// `[relay]` after resolution.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Offer circuit-relay-v2 to others.
    pub service: bool,
    pub on_shrink: OnShrink,
    pub resources: Resources,
}

/// What happens to load above a lowered cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnShrink {
    /// Nobody new is admitted until the load fits.
    Drain,
    /// The newest surplus is closed.
    Evict,
}

/// `[relay.resources]` after resolution.
#[derive(Clone, Debug, PartialEq)]
pub struct Resources {
    /// Bytes per circuit and direction.
    pub max_data: Limit<u64>,
    /// Per circuit, from the OK.
    pub max_duration: Limit<Duration>,
    /// Circuits per peer, counted as source and as destination.
    pub max_circuits: u32,
    pub reservation_ttl: Duration,
    /// Bytes per circuit and direction that may wait for a slow reader.
    pub buffer_size: u32,
    pub max_reservations: u32,
    /// Per IPv4 address or IPv6 /64.
    pub max_reservations_per_ip: u32,
    pub max_circuits_total: u32,
    /// Per peer.
    pub reservation_rate: Limit<Rate>,
    /// Per source peer.
    pub circuit_rate: Limit<Rate>,
    /// Bytes per second, whole node.
    pub bandwidth: Limit<u64>,
    /// Bytes per second, one circuit, both directions together.
    pub bandwidth_per_circuit: Limit<u64>,
    /// Bytes really held by all circuits together; above it new circuits are refused.
    pub max_buffers: u64,
}

impl Resources {
    /// What a reservation's and a circuit's answer say a circuit may use.
    pub fn circuit(&self) -> CircuitLimits {
        CircuitLimits {
            data: self.max_data,
            duration: self.max_duration,
        }
    }
}

/// What one circuit may use. With both unlimited the answer carries no limit at all: clients treat a circuit with any
/// limit as one for little use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitLimits {
    /// Bytes, in each direction.
    pub data: Limit<u64>,
    /// From the OK on.
    pub duration: Limit<Duration>,
}

/// A bound that can be absent on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit<T> {
    Unlimited,
    At(T),
}

/// So many events in so much time, as a token bucket: `count` may come at once, then one every `per / count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub count: u32,
    pub per: Duration,
}

/// Status codes of the circuit v2 specification, section "Status codes and their meaning".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Status {
    Ok = 100,
    ReservationRefused = 200,
    ResourceLimitExceeded = 201,
    PermissionDenied = 202,
    ConnectionFailed = 203,
    NoReservation = 204,
    MalformedMessage = 400,
    UnexpectedMessage = 401,
}

impl Status {
    /// As the specification calls it.
    pub fn name(self) -> &'static str {
        match self {
            Status::Ok => "OK",
            Status::ReservationRefused => "RESERVATION_REFUSED",
            Status::ResourceLimitExceeded => "RESOURCE_LIMIT_EXCEEDED",
            Status::PermissionDenied => "PERMISSION_DENIED",
            Status::ConnectionFailed => "CONNECTION_FAILED",
            Status::NoReservation => "NO_RESERVATION",
            Status::MalformedMessage => "MALFORMED_MESSAGE",
            Status::UnexpectedMessage => "UNEXPECTED_MESSAGE",
        }
    }
}
