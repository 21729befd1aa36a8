//! The ledger at work: one task that merges what peers say, says what this node has to say, and publishes who is a member.
//!
//! ```text
//! gossip, exchange → Heard → Book (ledger, on a thread that may block) → frames, verdicts → exchange, gossip
//!                                       └→ Membership → relay service, gossip, discovery
//! ```
//!
//! A panic in here is counted and the task begins anew from the state on disk; what was lost comes back from the neighbours.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use libp2p::identity::Keypair;
use tokio::sync::{mpsc, oneshot, watch};

use super::bootstrap::Bootstrap;
use crate::{
    acl::Membership,
    config::Snapshot,
    id::PeerId,
    net::{self, Heard},
    task::{self, Task},
};
use pump::Pump;
pub use report::Report;

mod book;
mod budget;
mod complaints;
mod keeper;
mod networks;
mod publish;
mod pump;
mod report;
mod schedule;

/// Questions waiting for the task; the node asks one at a time.
const QUESTIONS: usize = 16;

/// After a panic.
const BREATH: Duration = Duration::from_secs(1);

/// The task, as the node sees it. It ends when this is dropped.
pub struct Handle {
    questions: mpsc::Sender<Question>,
    task: Task,
}

/// Addresses in the overlay, each with the member that has it.
pub type Machines = BTreeMap<IpAddr, PeerId>;

/// What the task lives on.
pub struct Inputs {
    pub keypair: Keypair,
    pub state_dir: PathBuf,
    pub net: net::Handle,
    pub heard: mpsc::Receiver<Heard>,
    pub live: watch::Receiver<Arc<Snapshot>>,
    pub members: watch::Sender<Arc<Membership>>,
    pub machines: watch::Sender<Arc<Machines>>,
}

enum Question {
    Report(oneshot::Sender<Option<Report>>),
    Why(PeerId, oneshot::Sender<String>),
    Leave(oneshot::Sender<()>),
}

impl Handle {
    pub fn start(inputs: Inputs) -> Handle {
        let (questions, asked) = mpsc::channel(QUESTIONS);
        Handle {
            questions,
            task: task::spawn("ledger", supervise(inputs, asked)),
        }
    }

    /// How the network stands, and what does not work as it should. `None`: the node is in none.
    pub async fn report(&self) -> Option<Report> {
        self.ask(Question::Report).await.flatten()
    }

    /// What a peer is to the network, in words.
    pub async fn why(&self, peer: PeerId) -> String {
        let answer = self.ask(|reply| Question::Why(peer, reply)).await;
        answer.unwrap_or_else(|| "the ledger does not answer".to_owned())
    }

    /// Withdraws what this node has written and keeps the ledger for the next start.
    pub async fn leave(self) {
        if self.ask(Question::Leave).await.is_some() {
            self.task.ended().await;
        }
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.questions.send(question(reply)).await.ok()?;
        answer.await.ok()
    }
}

/// Runs the pump for as long as the node lives, again after each fault.
async fn supervise(mut inputs: Inputs, mut asked: mpsc::Receiver<Question>) {
    let mut bootstrap = Bootstrap::of(&inputs.state_dir);
    loop {
        let pump = Pump::new(&mut inputs, &mut bootstrap);
        if task::contained("ledger", pump.run(&mut asked))
            .await
            .is_ok()
        {
            return;
        }
        tokio::time::sleep(BREATH).await;
    }
}
