//! The relay service: the hop side of circuit relay v2, on libp2p-swarm.
//!
//! Who gets what is decided by [`crate::relay::admission`], which knows no sockets. Here its decisions are carried out:
//!
//! request → [`handler`] → [`behaviour`] → admission → answer, or [`circuit`] → two [`lane`]s
//!
//! <https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md>

mod addresses;
mod behaviour;
mod circuit;
mod end;
mod event;
mod grant;
mod handler;
mod lane;
mod links;
mod offer;
mod pace;
pub mod proto;
mod terms;
pub mod voucher;

pub use behaviour::Behaviour;
pub use end::End;
pub use event::Event;
pub use handler::{Fault, Timeouts};
