//! Harnesses, one per edge.

pub mod node;
pub mod relay;
