//! The API of a running node: HTTP/1 and JSON on a unix socket, and the client that the commands use.
//!
//! It reports, plans and asks for a reload; it never sets configuration, for the file is the only truth. The server answers
//! nothing by itself: every question becomes a request on a bounded channel.

mod answer;
mod client;
mod metrics;
mod network;
mod reach;
mod report;
mod routes;
mod server;
mod vpn;

use crate::{
    acl::Operation,
    config::{Diagnostic, Summary},
    id::{Generation, PeerId},
    plan::{Acknowledgement, Plan},
};
pub use client::{Client, ClientError};
pub use network::{
    BootstrapReport, Explanation, LedgerReport, MemberReport, NetworkReport, Otherwise, Traffic,
};
pub use reach::{DhtReport, PunchReport, ReachReport, RelayReport};
pub use report::{Connections, NodeReport, ReloadCount, StatusReport, WatcherReport};
use serde::{Deserialize, Serialize};
pub use server::{BindError, Bound, Handle, Server};
use std::{net::IpAddr, path::PathBuf};
use tokio::sync::oneshot;
pub use vpn::{VpnPeer, VpnReport, VpnTraffic};

/// What a client asks of the engine. A reload is carried out even if nobody waits for its verdict any more; the others may be
/// dropped then.
#[derive(Debug)]
pub enum Request {
    Status {
        reply: oneshot::Sender<StatusReport>,
    },
    Reload {
        order: Order,
        reply: oneshot::Sender<Acknowledgement>,
    },
    Plan {
        candidate: Candidate,
        reply: oneshot::Sender<Planned>,
    },
    Explain {
        peer: PeerId,
        operation: Operation,
        /// Where it would come from; absent: where it is connected from.
        address: Option<IpAddr>,
        reply: oneshot::Sender<Explanation>,
    },
}

/// What `reload` wants done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Read the file again, as if it had changed.
    #[default]
    Read,
    /// The same, past the guard against half-written files.
    Force,
    /// Keep a change that waits for `reload.confirm`.
    Confirm,
    /// Undo a change that waits for `reload.confirm`, or go back to the generation before.
    Rollback,
}

/// A file to compare with what is applied. It travels as text, so that the node need not be able to read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// As the operator named it; diagnostics say it.
    pub name: String,
    pub text: String,
    /// Absolute path it is meant for: relative paths in it resolve against the directory of this one. Absent: the path of the
    /// node's own configuration file.
    #[serde(default)]
    pub as_path: Option<PathBuf>,
}

/// What applying a [`Candidate`] would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    /// In force now.
    pub generation: Generation,
    /// Empty if the candidate is invalid.
    pub plan: Plan,
    /// Errors and warnings.
    pub diagnostics: Vec<Diagnostic>,
    /// Why a reload would not apply it as it stands: the guard against half-written files, or `reload.max_impact`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_back: Option<String>,
    pub summary: Summary,
}
