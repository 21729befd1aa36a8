//! A declarative overlay network that reloads while it runs.
//!
//! # Map
//!
//! Imports go down only, and a test (`tests/it/house.rs`) holds them to it:
//!
//! ```text
//! main      arguments → exit code
//! cli       the commands; prints diagnostics, plans and reports
//! reload    one attempt: read → config → plan → node; its outcome. The watcher that says "look again"
//! node      start, prepare, commit, stop; owns every task and socket
//! net       the swarm and what it speaks; net::relay is the hop service     ┐
//! device    where packets enter and leave this machine: TUN, addresses, routes │ side by side, joined by node
//! api       the unix-socket API and its client                              │
//! telemetry logs and how they follow the file                               │
//! task      named tasks whose end is noticed                                ┘
//! ───────── from here on pure: no tokio, files, sockets, clock, randomness; `now` is an argument
//! plan      what differs between two configurations, what it costs, how an attempt ended
//! config    text → Config, or all diagnostics at once; the schema comes from the same types
//! relay     circuit v2 as decisions: who is admitted, how much of it, what a new policy ends
//! acl       the access decision
//! overlay   the packet plane: what a packet says, how packets are cut, joined and framed
//! ledger    the shared ledger: merge rules, own entries, who is alive, what to tell whom
//! wire      the EdgeVPN wire format: tokens, derived values, sealed messages, blocks, entries
//! id        peers, generations, origins
//! ```
//!
//! # Three flows
//!
//! *Configuration*: bytes → [`config::Draft`] → [`config::Config`] → [`plan::Plan`] → [`node::Node::prepare`], which may fail
//! without effect → [`node::Node::commit`], which may not. Start-up is the plan from [`config::Config::empty`].
//!
//! *A hop request*: RESERVE or CONNECT → [`relay::admission::Admission`] (access, then caps, then rate) → a decision, which
//! [`net::relay`] carries out.
//!
//! *What a member says*: gossip or exchange → [`net::Heard`] → the ledger task (`node::sync`) merges it by the rules of
//! [`ledger`] → [`acl::Membership`] → admission, discovery, `status`. Own writes go the other way.
//!
//! *A packet*: device → [`overlay::router`] names the peer → sealed datagrams where a direct path is proven, else the peer's bounded
//! queue and its stream → the other side's router: whose source, for us? → device. One table judges a whole batch.
//!
//! *A circuit*: two streams and one task; each turn of its pumps reads the limits that are in force then.
//!
//! # Invariants
//!
//! - Everything that decides reads one immutable [`config::Snapshot`] behind one `watch`. After a commit no request is judged by
//!   the generation before.
//! - A failed attempt consumes nothing: the next one is compared with what is applied.
//! - Nothing that arrives from a file, a peer, the API or a disk can panic, and everything a peer can feed has a bound.
//! - Errors never widen access.
//!
//! # Decisions
//!
//! **The hop server is our own, the relay client is libp2p's.** The server in libp2p-relay has no access hook, and its limits
//! are frozen when a connection is made; both are what this project is for. The client does all we need.
//!
//! **Changes are found by comparing keys, not fields.** `config::Keys` holds every effective key with its canonical value and its
//! origin. A new key is part of plans, of `status` and of the guard against half-written files without a line of code.
//!
//! **Values are published, resources are changed.** ACL, limits and peers are read from the snapshot by whoever needs them;
//! only what must be opened (listeners, sockets) has a prepare step. So most reloads cannot half apply: there is one write.
//!
//! **List files are read between parsing and resolving.** The pure pipeline names the files it wants and gets their bytes, so
//! `validate`, `plan` and the engine share it, and tests need no disk.
//!
//! **Ports are probed before they are bound.** libp2p listens with `SO_REUSEPORT`, which makes "new before old" possible and lets
//! a second node steal half of the connections in silence. A bind without that option comes first.

//!
//! **Gossip is libp2p's, inside a wrapper that restarts it per peer.** The library never repeats its subscriptions and counts five
//! streams for a connection's whole life; EdgeVPN's nodes begin anew at each rotation and need both. The wrapper lets the
//! library see a fresh connection; there is no fork to keep up.
//!
//! **Our own nodes compare and send differences.** EdgeVPN's nodes broadcast everything every ten seconds; they still get that, sealed
//! and only while there are any. Two of ours exchange sums over a stream, so a network at rest says next to nothing.
//!
//! **Membership is data, not configuration.** It is published beside the snapshot, and what is lost by silence is given back by the
//! next heartbeat: a flicker never cuts anything. Only the file and a withdrawal do.
//!
//! **Streams of ours name their connection.** A peer is often connected twice, directly and through a relay, and picking one by
//! chance puts half of the traffic on the metered path.

#![allow(
    rustdoc::private_intra_doc_links,
    reason = "the documentation is for those who work on the program too"
)]
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests are the edge"))]

pub mod acl;
pub mod api;
pub mod cli;
pub mod config;
pub mod device;
pub mod id;
pub mod ledger;
pub mod net;
pub mod node;
pub mod overlay;
pub mod plan;
pub mod relay;
pub mod reload;
pub mod task;
pub mod telemetry;
pub mod wire;
