//! Why a request was refused: one value for the answer on the wire, the metric label and the log.

use std::time::Duration;

use ipnet::IpNet;

use super::Status;
use crate::acl::{Operation, RuleRef};

/// Each has one wire status ([`status`](Self::status)) and one metric label ([`label`](Self::label)).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("denied by {0}")]
    Denied(RuleRef),
    #[error("relay.service is off")]
    ServiceOff,
    #[error("the node is stopping")]
    Stopping,
    #[error("the request came over a relayed connection")]
    Relayed,
    #[error("the peer asked for a circuit to itself")]
    ToItself,
    #[error("{cap} reservations are held (relay.resources.max_reservations)")]
    NodeFull { cap: u32 },
    #[error("{cap} reservations are held from {prefix} (relay.resources.max_reservations_per_ip)")]
    AddressFull { prefix: IpNet, cap: u32 },
    #[error("{cap} reservations are held by peers that are no members (acl.bootstrap)")]
    GuestsFull { cap: u32 },
    #[error("too many {operation} requests, the next one in {retry_after:?} (relay.resources.{key})", key = rate_key(*.operation))]
    TooFast {
        operation: Operation,
        retry_after: Duration,
    },
    #[error("the source has {cap} circuits (relay.resources.max_circuits)")]
    SourceFull { cap: u32 },
    #[error("the destination has {cap} circuits (relay.resources.max_circuits)")]
    DestinationFull { cap: u32 },
    #[error("the node has {cap} circuits (relay.resources.max_circuits_total)")]
    CircuitsFull { cap: u32 },
    #[error("circuits hold more than {cap} bytes (relay.resources.max_buffers)")]
    BuffersFull { cap: u64 },
    /// Handshakes of this source, to this destination or of the whole node that nobody has answered yet.
    #[error("{cap} circuits wait for their destination to answer")]
    HandshakesFull { cap: u32 },
    #[error("the destination holds no reservation")]
    NoReservation,
    /// The destination did not take the circuit, whatever its reason.
    #[error("the destination could not be reached")]
    Unreachable,
    /// The connection or the circuit ended before its request was decided.
    #[error("the request is over")]
    Gone,
    #[error("more requests than one connection may have in progress")]
    Busy,
    #[error("not a message of the protocol")]
    Malformed,
    #[error("a message that does not belong here")]
    Unexpected,
}

impl Refusal {
    pub fn status(&self) -> Status {
        match self {
            Refusal::Denied(_)
            | Refusal::ServiceOff
            | Refusal::Stopping
            | Refusal::Relayed
            | Refusal::ToItself => Status::PermissionDenied,
            Refusal::NodeFull { .. } | Refusal::AddressFull { .. } | Refusal::GuestsFull { .. } => {
                Status::ReservationRefused
            }
            Refusal::TooFast { .. }
            | Refusal::SourceFull { .. }
            | Refusal::DestinationFull { .. }
            | Refusal::CircuitsFull { .. }
            | Refusal::BuffersFull { .. }
            | Refusal::HandshakesFull { .. }
            | Refusal::Busy => Status::ResourceLimitExceeded,
            Refusal::NoReservation => Status::NoReservation,
            Refusal::Unreachable | Refusal::Gone => Status::ConnectionFailed,
            Refusal::Malformed => Status::MalformedMessage,
            Refusal::Unexpected => Status::UnexpectedMessage,
        }
    }

    /// For metrics; the set is fixed.
    pub fn label(&self) -> &'static str {
        match self {
            Refusal::Denied(_) => "denied",
            Refusal::ServiceOff => "service_off",
            Refusal::Stopping => "stopping",
            Refusal::Relayed => "relayed",
            Refusal::ToItself => "to_itself",
            Refusal::NodeFull { .. } => "node_full",
            Refusal::AddressFull { .. } => "address_full",
            Refusal::GuestsFull { .. } => "guests_full",
            Refusal::TooFast { .. } => "too_fast",
            Refusal::SourceFull { .. } => "source_full",
            Refusal::DestinationFull { .. } => "destination_full",
            Refusal::CircuitsFull { .. } => "circuits_full",
            Refusal::BuffersFull { .. } => "buffers_full",
            Refusal::HandshakesFull { .. } => "handshakes_full",
            Refusal::NoReservation => "no_reservation",
            Refusal::Unreachable => "unreachable",
            Refusal::Gone => "gone",
            Refusal::Busy => "busy",
            Refusal::Malformed => "malformed",
            Refusal::Unexpected => "unexpected",
        }
    }
}

fn rate_key(operation: Operation) -> &'static str {
    match operation {
        Operation::Reserve => "reservation_rate",
        Operation::Connect => "circuit_rate",
    }
}
