//! Gossip as the ledger uses it: publish, judge, and see where the others are.

use std::sync::Arc;

use libp2p::{PeerId, gossipsub::MessageId};
use tokio::sync::{mpsc, oneshot, watch};

use super::rooms::Outlets;
use crate::wire::{Fingerprint, Window};

/// Verdicts and messages on their way to the network task. As many verdicts as messages may wait for the ledger.
const COMMANDS: usize = 1024;

/// What became of a message, as the ledger sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Passed on to others.
    Accept,
    /// Not passed on, and nobody's fault.
    Ignore,
    /// Not passed on; no honest node forwards it.
    Reject,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unpublished {
    #[error("the room of network {0} in that window is not one we are in")]
    NotInRoom(Fingerprint),
    #[error("{size} bytes are more than the {max} that the token of network {network} allows")]
    TooLarge {
        network: Fingerprint,
        size: usize,
        max: u64,
    },
    #[error("nobody is in the room")]
    NobodyThere,
    #[error("every peer in the room is behind with what was sent before")]
    QueuesFull,
    #[error("it could not be signed")]
    Unsigned,
    #[error("the network task has stopped")]
    Stopped,
}

/// Gossip, as the ledger uses it.
#[derive(Clone)]
pub struct Control {
    commands: mpsc::Sender<Command>,
    outlets: watch::Receiver<Arc<Outlets>>,
}

pub enum Command {
    Publish {
        network: Fingerprint,
        window: Window,
        data: Vec<u8>,
        reply: oneshot::Sender<Result<(), Unpublished>>,
    },
    Judge {
        id: MessageId,
        forwarder: PeerId,
        verdict: Verdict,
    },
}

impl Control {
    pub fn new(outlets: watch::Receiver<Arc<Outlets>>) -> (Self, mpsc::Receiver<Command>) {
        let (commands, received) = mpsc::channel(COMMANDS);
        (Self { commands, outlets }, received)
    }

    /// Where to publish, network by network. Empty without `[network]`.
    pub fn outlets(&self) -> watch::Receiver<Arc<Outlets>> {
        self.outlets.clone()
    }

    /// Signs `data`, sealed for `window`, and sends it to everybody in the room of that window.
    pub async fn publish(
        &self,
        network: Fingerprint,
        window: Window,
        data: Vec<u8>,
    ) -> Result<(), Unpublished> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Publish {
            network,
            window,
            data,
            reply,
        };
        let sent = self.commands.send(command).await;
        sent.map_err(|_| Unpublished::Stopped)?;
        answer.await.unwrap_or(Err(Unpublished::Stopped))
    }

    /// Says what to do with a message that was heard. One that is never judged, or whose verdict finds no room, is not
    /// passed on.
    pub fn judge(&self, id: MessageId, forwarder: PeerId, verdict: Verdict) {
        let command = Command::Judge {
            id,
            forwarder,
            verdict,
        };
        if self.commands.try_send(command).is_err() {
            tracing::debug!("a verdict on a message is lost: the network task is behind");
        }
    }
}
