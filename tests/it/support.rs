//! Harnesses, one per edge.

pub mod engine;
pub mod node;
pub mod relay;
