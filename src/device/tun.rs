//! The TUN device of the kernel, with virtio headers: super-packets in both directions.
#![allow(
    unsafe_code,
    reason = "one ioctl the `tun` crate does not know, and its descriptor"
)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use rustix::{
    io::Errno,
    ioctl::{IntegerSetter, Opcode, ioctl},
};

use super::{Device, End};
use crate::overlay::coalesce::Takes;

/// `_IOW('T', 208, unsigned int)`, linux/if_tun.h.
const TUNSETOFFLOAD: Opcode = 0x4004_54d0;

/// `TUN_F_*`, linux/if_tun.h.
const CSUM: usize = 0x01;
const TSO4: usize = 0x02;
const TSO6: usize = 0x04;
const USO4: usize = 0x20;
const USO6: usize = 0x40;

pub(super) struct Tun(tun::Device);

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "cannot make the device {name}: CAP_NET_ADMIN is missing; run as root, or `setcap cap_net_admin+ep` on the program, or `AmbientCapabilities=CAP_NET_ADMIN` in its unit"
    )]
    Privilege { name: String },
    #[error(
        "cannot make the device {name}: /dev/net/tun is missing; load the module `tun`, or pass the device into the container"
    )]
    NoDriver { name: String },
    #[error(
        "cannot make the device {name}: another program holds it; choose another `vpn.interface`"
    )]
    Busy { name: String },
    #[error("cannot make the device {name}")]
    Other { name: String, source: io::Error },
}

/// Opens the device of this name, which is made if it is not there.
pub fn open(name: &str) -> Result<Device, OpenError> {
    let failed = |error: io::Error| {
        let name = name.to_owned();
        match error.kind() {
            io::ErrorKind::PermissionDenied => OpenError::Privilege { name },
            io::ErrorKind::NotFound => OpenError::NoDriver { name },
            io::ErrorKind::ResourceBusy => OpenError::Busy { name },
            _ => OpenError::Other {
                name,
                source: error,
            },
        }
    };
    let mut wanted = tun::Configuration::default();
    wanted.tun_name(name).platform_config(|platform| {
        platform.vnet_hdr(true);
        // Addresses and state are set by `interface`.
        platform.ensure_root_privileges(false);
    });
    let device = tun::create(&wanted).map_err(|error| {
        failed(match error {
            tun::Error::Io(error) => error,
            other => io::Error::other(other.to_string()),
        })
    })?;
    let tun = Tun(device);
    rustix::io::ioctl_fionbio(&tun, true).map_err(|error| failed(error.into()))?;
    let takes = tun.set_offloads();
    Ok(Device {
        end: End::Tun(tun),
        name: name.to_owned(),
        takes,
    })
}

impl Tun {
    /// Asks for as much as this kernel has: UDP segments since Linux 6.2.
    fn set_offloads(&self) -> Takes {
        let attempts = [
            (
                CSUM | TSO4 | TSO6 | USO4 | USO6,
                Takes {
                    tcp: true,
                    udp: true,
                },
            ),
            (
                CSUM | TSO4 | TSO6,
                Takes {
                    tcp: true,
                    udp: false,
                },
            ),
        ];
        attempts
            .into_iter()
            .find(|(flags, _)| self.set_offload(*flags).is_ok())
            .map_or(
                Takes {
                    tcp: false,
                    udp: false,
                },
                |(_, takes)| takes,
            )
    }

    fn set_offload(&self, flags: usize) -> Result<(), Errno> {
        // SAFETY: TUNSETOFFLOAD takes an integer of flags, and the descriptor is that of a TUN device.
        unsafe { ioctl(self, IntegerSetter::<TUNSETOFFLOAD>::new_usize(flags)) }
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor lives as long as the device that is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}
