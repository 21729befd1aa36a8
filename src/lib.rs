//! A declarative overlay network that reloads while it runs.
//!
//! # Map
//!
//! Imports go down only, and a test (`tests/it/house.rs`) holds them to it:
//!
//! `main` → [`cli`] → [`reload`] → [`node`] → { [`net`], [`task`], [`telemetry`], [`api`] } → [`plan`] → [`config`] → { [`relay`], [`acl`] } → [`id`]
//!
//! From [`plan`] on everything is pure: no tokio, no files, no sockets, no clock (`now` is an argument), no randomness.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests are the edge"))]

pub mod acl;
pub mod api;
pub mod cli;
pub mod config;
pub mod id;
pub mod net;
pub mod node;
pub mod plan;
pub mod relay;
pub mod reload;
pub mod task;
pub mod telemetry;
