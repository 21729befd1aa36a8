//! Harnesses, one per edge.

pub mod dialogue;
pub mod engine;
pub mod files;
pub mod net;
pub mod node;
pub mod relay;
pub mod skip;
pub mod status;
