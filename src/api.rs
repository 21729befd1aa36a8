//! The API of a running node: HTTP/1 and JSON on a unix socket, and the client that the commands use.
//!
//! It reports, plans and asks for a reload; it never sets configuration, for the file is the only truth. The server answers
//! nothing by itself: every question becomes a request on a bounded channel.

mod report;

pub use report::{Connections, NodeReport, ReloadCount, WatcherReport};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What `reload` wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Read the file again, as if it had changed.
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
pub struct Candidate {
    /// As the operator named it; diagnostics say it.
    pub name: String,
    pub text: String,
    /// Absolute path it is meant for: relative paths in it resolve against the directory of this one.
    pub as_path: PathBuf,
}
