//! Where packets enter and leave this machine: a TUN device, or its stand-in for tests.
//!
//! Both are one file descriptor that gives and takes a virtio header and a packet at a time, so the threads that move
//! packets poll it beside their sockets.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd},
};

use crate::overlay::{coalesce::Takes, virtio};

pub mod interface;
mod memory;
mod tun;

pub use memory::{Far, pair};
pub use tun::{OpenError, open};

/// The largest thing a device gives or takes.
pub const MOST: usize = virtio::HEADER + crate::overlay::MOST_PACKET;

/// An open device. It disappears when the last holder is gone.
pub struct Device {
    end: End,
    name: String,
    takes: Takes,
}

enum End {
    Tun(tun::Tun),
    Memory(memory::Near),
}

impl Device {
    /// As the kernel calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The super-packets it takes; it gives the same.
    pub fn takes(&self) -> Takes {
        self.takes
    }

    /// The next packet with its virtio header. Never waits: `WouldBlock` when there is none.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self, buffer)?)
    }

    /// Hands over one packet: its virtio header first, then its parts. Never waits.
    pub fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let expected: usize = parts.iter().map(|part| part.len()).sum();
        let written = rustix::io::writev(self, parts)?;
        if written == expected {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.end {
            End::Tun(tun) => tun.as_fd(),
            End::Memory(near) => near.as_fd(),
        }
    }
}
