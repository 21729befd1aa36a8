//! How a node is reached: streams over the right connection, reservations, direct connections.

mod streams;
