//! Why a relay has not granted a reservation. The client tells it in words only.

use std::{error::Error, io};

use crate::relay::upkeep::Failure;

/// Reads the whole chain of causes: each layer of the transport wraps what the one below said.
pub fn of(error: &io::Error) -> Failure {
    let said = in_full(error);
    let says = |words: &str| said.contains(words);
    if says("PERMISSION_DENIED") {
        Failure::Denied
    } else if says("Reservation refused") || says("resource limit exceeded") {
        Failure::Refused
    } else if says("does not support") {
        Failure::Unsupported
    } else if says("timed out") {
        Failure::TimedOut
    } else if says("Protocol error") {
        Failure::Unsupported
    } else {
        Failure::Lost
    }
}

fn in_full(error: &io::Error) -> String {
    let mut said = error.to_string();
    let mut cause: Option<&(dyn Error + 'static)> =
        error.get_ref().map(|inner| inner as &(dyn Error + 'static));
    // A chain of the library's own types: a dozen layers at most.
    for _ in 0..16 {
        let Some(error) = cause else { break };
        said.push_str(": ");
        said.push_str(&error.to_string());
        // An io::Error hides what it wraps from `source`.
        cause = match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("Failed to get Reservation.")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("Protocol error")]
    struct Inner(#[source] Innermost);

    #[derive(Debug, thiserror::Error)]
    #[error("Unexpected message status '{0}'")]
    struct Innermost(&'static str);

    fn wrapped(status: &'static str) -> io::Error {
        let chain = Outer(Inner(Innermost(status)));
        io::Error::other(io::Error::other(io::Error::other(chain)))
    }

    #[test]
    fn the_cause_is_found_however_deep_it_is_wrapped() {
        assert_eq!(of(&wrapped("PERMISSION_DENIED")), Failure::Denied);
        assert_eq!(of(&wrapped("CONNECTION_FAILED")), Failure::Unsupported);
    }

    #[test]
    fn what_nobody_has_named_counts_as_lost() {
        let broken = io::Error::from(io::ErrorKind::BrokenPipe);
        assert_eq!(of(&broken), Failure::Lost);
        assert_eq!(of(&io::ErrorKind::TimedOut.into()), Failure::TimedOut);
    }
}
