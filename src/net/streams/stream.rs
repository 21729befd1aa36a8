//! A stream that its connection knows to be alive.

use std::{
    io::{self, IoSlice, IoSliceMut},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::{PeerId, swarm::ConnectionId};

use super::lane::Lane;

/// One stream, open until dropped; dropped without `close`, it is reset. It keeps its connection alive.
pub struct Stream {
    inner: libp2p::Stream,
    /// Counts this stream among the live ones of its connection.
    lane: Arc<Lane>,
}

impl Stream {
    pub(super) fn new(inner: libp2p::Stream, lane: Arc<Lane>) -> Self {
        lane.streams.fetch_add(1, Ordering::Relaxed);
        Self { inner, lane }
    }

    pub fn peer(&self) -> PeerId {
        self.lane.peer
    }

    pub fn connection(&self) -> ConnectionId {
        self.lane.connection
    }

    /// Whether it goes through a relay.
    pub fn relayed(&self) -> bool {
        self.lane.relayed
    }

    pub(super) fn lane(&self) -> &Arc<Lane> {
        &self.lane
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.lane.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream")
            .field("peer", &self.lane.peer)
            .field("connection", &self.lane.connection)
            .field("relayed", &self.lane.relayed)
            .finish_non_exhaustive()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_read_vectored(cx, buffers)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, buffers)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}
