//! One attempt to apply the file, and its outcome.

pub mod read;
pub mod sight;
pub mod watcher;
