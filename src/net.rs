//! What the rest of the program may ask of the network.

pub mod relay;
