//! A device without a kernel behind it: what one end sends the other receives.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixDatagram,
    },
};

use super::{Device, End};
use crate::overlay::coalesce::Takes;

/// Room for some super-packets in each direction.
const BUFFER: usize = 4 << 20;

pub(super) struct Near(UnixDatagram);

/// The machine's side: sends and receives what a kernel would, virtio headers included. Blocks.
pub struct Far(pub UnixDatagram);

/// A device and the machine behind it.
pub fn pair(name: &str, takes: Takes) -> io::Result<(Device, Far)> {
    let (near, far) = UnixDatagram::pair()?;
    near.set_nonblocking(true)?;
    for end in [&near, &far] {
        let end = socket2::SockRef::from(end);
        end.set_send_buffer_size(BUFFER)?;
        end.set_recv_buffer_size(BUFFER)?;
    }
    let device = Device {
        end: End::Memory(Near(near)),
        name: name.to_owned(),
        takes,
    };
    Ok((device, Far(far)))
}

impl AsFd for Near {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::MOST;
    use std::io::IoSlice;

    #[test]
    fn packets_cross_whole_and_one_by_one() {
        let takes = Takes {
            tcp: true,
            udp: true,
        };
        let (device, far) = pair("memory0", takes).expect("sockets");
        let mut buffer = vec![0; MOST];
        let empty = device.receive(&mut buffer).expect_err("nothing there");
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        for length in [1, 60_000] {
            far.0.send(&vec![7; length]).expect("sent");
        }
        assert_eq!(device.receive(&mut buffer).expect("the first"), 1);
        assert_eq!(device.receive(&mut buffer).expect("the second"), 60_000);
        device
            .send(&[IoSlice::new(&[1; 10]), IoSlice::new(&[2; 50_000])])
            .expect("sent");
        assert_eq!(far.0.recv(&mut buffer).expect("received"), 50_010);
    }
}
