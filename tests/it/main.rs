//! One binary for all integration tests: one link, shared harnesses.

#![allow(clippy::disallowed_methods, reason = "tests are the edge")]

mod support;

mod admission;
mod api;
mod cli;
mod discovery;
mod forward;
mod gossip;
mod house;
mod invalid;
mod lab;
mod ledger;
mod mdns;
mod members;
mod node;
mod peers;
mod reach;
mod relay_hostile;
mod relay_limits;
mod relay_wire;
mod reload;
mod schema;
mod watcher;
mod wire;
