//! The packet plane as decisions and codecs: what an IP packet says, where it goes, whether its source may send it, and how
//! packets are cut, joined and framed.
//!
//! The unit everywhere is what the kernel hands over: a virtio header and up to 64 KiB of packet. Crossing into the kernel
//! once for many packets is what makes an overlay fast.

pub mod checksum;
pub mod coalesce;
pub mod frame;
pub mod icmp;
pub mod packet;
pub mod queue;
pub mod replay;
pub mod router;
pub mod routes;
pub mod segment;
pub mod session;
pub mod virtio;

/// The largest IP packet, and so the largest super-packet.
pub const MOST_PACKET: usize = 65_535;
