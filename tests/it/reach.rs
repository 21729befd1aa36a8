//! How a node is reached: streams over the right connection, reservations, direct connections.

mod bench;
mod punching;
mod reservations;
mod streams;
