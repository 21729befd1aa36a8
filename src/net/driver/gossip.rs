//! What gossip brings goes to the ledger.

use super::Driver;
use crate::net::gossip::{Event, Verdict};

impl Driver {
    pub fn gossip_event(&mut self, event: Event) {
        let Event::Heard(message) = event;
        let (id, forwarder) = (message.id.clone(), message.forwarder);
        if !self.ears.hear_broadcast(message) {
            // Unread, it is not passed on either.
            let gossip = &mut self.swarm.behaviour_mut().gossip;
            gossip.judge(&id, &forwarder, Verdict::Ignore);
        }
    }
}
