//! The ledger at work: what peers say is merged, what follows from it is published.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::{
    acl::Membership,
    net::Heard,
    task::{self, Task},
};

/// Starts the task that owns the ledger. It ends with the network.
pub fn start(heard: mpsc::Receiver<Heard>, members: watch::Sender<Arc<Membership>>) -> Task {
    task::spawn("ledger", run(heard, members))
}

async fn run(mut heard: mpsc::Receiver<Heard>, members: watch::Sender<Arc<Membership>>) {
    while heard.recv().await.is_some() {}
    drop(members);
}
