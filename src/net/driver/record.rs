//! What the relay does, as log lines. One peer's doings are DEBUG: an operator counts them in `status` and the metrics.

use tracing::debug;

use crate::net::relay::Event;

pub fn relay(event: &Event) {
    match event {
        Event::Reserved { peer, renewed } => debug!(%peer, renewed, "reservation held"),
        Event::ReservationEnded { peer, why } => debug!(%peer, ?why, "reservation ended"),
        Event::Refused {
            peer,
            operation,
            refusal,
        } => {
            debug!(%peer, ?operation, reason = refusal.label(), cause = %refusal, "request refused");
        }
        Event::Faulty { peer, fault } => debug!(%peer, ?fault, "no request on a hop stream"),
        Event::CircuitOpened {
            circuit,
            source,
            destination,
        } => {
            debug!(circuit = circuit.0, %source, %destination, "circuit opened");
        }
        Event::CircuitEnded {
            circuit,
            source,
            destination,
            end,
            bytes,
        } => debug!(
            circuit = circuit.0,
            %source,
            %destination,
            ?end,
            to_destination = bytes.to_destination,
            to_source = bytes.to_source,
            "circuit ended"
        ),
        Event::PolicyApplied {
            generation,
            settled,
        } => debug!(
            %generation,
            reservations_ended = settled.impact.reservations_ended,
            circuits_cut = settled.impact.circuits_cut,
            circuits_draining = settled.impact.circuits_draining,
            "relay policy in force"
        ),
    }
}
