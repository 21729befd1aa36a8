//! One direction of a circuit: reads from one stream, writes to the other, and counts.
//!
//! Bytes go through a buffer of the thread, which stays in its cache and costs an idle circuit nothing. Only what the
//! writer does not take at once is kept, in a buffer of the lane's own, until it does.

use super::{
    end::End,
    pace::Booking,
    terms::{Limits, Terms},
};
use crate::relay::Share;
use futures::{AsyncRead, AsyncWrite};
use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

/// Most bytes moved by one read, in bytes. Against 8 KiB this gains about 5 % throughput: fewer turns, and yamux fills its
/// 16 KiB frames.
const CHUNK: usize = 64 * 1024;

/// While all circuits together hold more than `max_buffers`, one may still read so many bytes at a time, in bytes. It is
/// what an idle reader is exceeded by at most; zero would stop circuits whose readers are fast.
const CHUNK_OVER_BUDGET: usize = 4 * 1024;

/// Bytes after which a lane lets others have their turn, in bytes: a fraction of a millisecond at full speed.
const TURN: usize = 256 * 1024;

thread_local! {
    static CHUNK_BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

pub struct Lane {
    /// Bytes taken from the reader; all of them reach the writer unless the circuit ends.
    used: u64,
    /// Bytes that the writer has not taken yet, from `written` on.
    waiting: Vec<u8>,
    written: usize,
    /// The room of `waiting`, as part of what all circuits hold.
    share: Share,
    reader: Reader,
    /// Bytes were written since the last flush.
    unflushed: bool,
    closed: bool,
    /// Since when the writer takes nothing although it should.
    blocked_since: Option<Instant>,
    /// Bandwidth that is not used yet, and the version of the limits under which it was booked.
    booking: Option<(u64, Booking)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reader {
    Open,
    /// It has said its last word; the other side is told once it has all of it.
    Ended,
    /// It sent more than it may; the circuit ends once the other side has what was allowed.
    Exceeded,
}

/// What a lane waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// A stream, which will wake the task.
    Waiting,
    /// Nothing but its next turn.
    Again,
    /// The bandwidth it may use.
    Until(Instant),
    /// Nothing any more: the end of the reader has been passed on.
    Done,
}

impl Lane {
    pub fn new(share: Share) -> Self {
        Self {
            used: 0,
            waiting: Vec::new(),
            written: 0,
            share,
            reader: Reader::Open,
            unflushed: false,
            closed: false,
            blocked_since: None,
            booking: None,
        }
    }

    /// Bytes carried so far.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// When the circuit has to end if the writer still takes nothing.
    pub fn stalls_at(&self, patience: Duration) -> Option<Instant> {
        self.blocked_since?.checked_add(patience)
    }

    /// Moves what can be moved now, at most [`TURN`] bytes or so.
    pub fn poll<R: AsyncRead, W: AsyncWrite>(
        &mut self,
        turn: &mut At<'_, '_>,
        mut from: Pin<&mut R>,
        mut to: Pin<&mut W>,
    ) -> Result<Turn, End> {
        if self.used > turn.limits.max_data {
            return Err(End::MaxData);
        }
        let mut moved = 0;
        while moved < TURN {
            let drained = self.poll_drain(turn, to.as_mut())?.is_ready();
            let room = turn.limits.buffer_size.saturating_sub(self.waiting.len());
            match self.reader {
                Reader::Open if !drained && room == 0 => return Ok(Turn::Waiting),
                Reader::Open => match self.carry(turn, room, from.as_mut(), to.as_mut())? {
                    Step::Moved(bytes) => moved += bytes,
                    Step::Read(reader) => self.reader = reader,
                    Step::Blocked(turn) => return Ok(turn),
                },
                Reader::Ended | Reader::Exceeded if !drained => return Ok(Turn::Waiting),
                Reader::Ended => return self.poll_end(turn, |cx| to.as_mut().poll_close(cx)),
                Reader::Exceeded => {
                    return match self.poll_end(turn, |cx| to.as_mut().poll_flush(cx))? {
                        Turn::Done => Err(End::MaxData),
                        waiting => Ok(waiting),
                    };
                }
            }
        }
        Ok(Turn::Again)
    }

    /// Writes what waits. Ready when nothing does.
    fn poll_drain<W: AsyncWrite>(
        &mut self,
        turn: &mut At<'_, '_>,
        mut to: Pin<&mut W>,
    ) -> Result<Poll<()>, End> {
        while let Some(rest) = self
            .waiting
            .get(self.written..)
            .filter(|rest| !rest.is_empty())
        {
            match poll_write(turn.cx, to.as_mut(), rest)? {
                Poll::Ready(bytes) => {
                    self.written = self.written.saturating_add(bytes);
                    self.unflushed = true;
                    self.blocked_since = None;
                }
                Poll::Pending => {
                    self.blocked_since.get_or_insert(turn.now);
                    return Ok(Poll::Pending);
                }
            }
        }
        if self.waiting.capacity() > 0 {
            self.written = 0;
            self.resize(0);
        }
        Ok(Poll::Ready(()))
    }

    /// Reads once and passes on what came. `room` is what may still wait.
    fn carry<R: AsyncRead, W: AsyncWrite>(
        &mut self,
        turn: &mut At<'_, '_>,
        room: usize,
        from: Pin<&mut R>,
        to: Pin<&mut W>,
    ) -> Result<Step, End> {
        let allowed = turn.limits.max_data.saturating_sub(self.used);
        let mut want = CHUNK.min(room);
        if turn.terms.buffers_are_full() {
            if !self.waiting.is_empty() {
                return Ok(Step::Blocked(Turn::Waiting));
            }
            want = want.min(CHUNK_OVER_BUDGET);
        }
        // When nothing more is allowed, one byte tells whether the reader has ended or goes too far.
        want = want.min(usize::try_from(allowed).unwrap_or(CHUNK)).max(1);
        let booking = self.book(turn, want);
        let granted = match booking {
            Some(Booking { at, .. }) if at > turn.now => {
                return self.poll_pause(turn, to, Turn::Until(at));
            }
            Some(Booking { bytes, .. }) => bytes.min(want),
            None => want,
        };
        CHUNK_BUFFER.with_borrow_mut(|chunk| {
            let Some(chunk) = chunk.get_mut(..granted) else {
                return Err(End::Broken);
            };
            let read = from.poll_read(turn.cx, chunk);
            let bytes = match &read {
                Poll::Ready(Ok(bytes)) => *bytes,
                Poll::Ready(Err(_)) => return Err(End::Broken),
                Poll::Pending => 0,
            };
            if let Some(booking) = booking {
                self.booking = None;
                let unused = booking.bytes.saturating_sub(bytes);
                turn.limits.refund(unused, turn.terms);
            }
            match chunk.get(..bytes).unwrap_or_default() {
                _ if read.is_pending() => self.poll_pause(turn, to, Turn::Waiting),
                [] => Ok(Step::Read(Reader::Ended)),
                _ if allowed == 0 => Ok(Step::Read(Reader::Exceeded)),
                chunk => {
                    self.used = self.used.saturating_add(bytes as u64);
                    self.pass_on(turn, chunk, to)?;
                    Ok(Step::Moved(bytes))
                }
            }
        })
    }

    /// The bandwidth for one read, booked now or at an earlier turn. `None` when it costs nothing.
    fn book(&mut self, turn: &mut At<'_, '_>, want: usize) -> Option<Booking> {
        let version = turn.limits.version;
        match self.booking {
            Some((made_under, booking)) if made_under == version => Some(booking),
            Some(_) | None => {
                let booking = turn.limits.book(want, turn.now, turn.terms);
                self.booking = booking.map(|booking| (version, booking));
                booking
            }
        }
    }

    /// Writes as much of `chunk` as goes and keeps the rest.
    fn pass_on<W: AsyncWrite>(
        &mut self,
        turn: &mut At<'_, '_>,
        mut chunk: &[u8],
        mut to: Pin<&mut W>,
    ) -> Result<(), End> {
        while self.waiting.is_empty() && !chunk.is_empty() {
            match poll_write(turn.cx, to.as_mut(), chunk)? {
                Poll::Ready(bytes) => {
                    chunk = chunk.get(bytes..).unwrap_or_default();
                    self.unflushed = true;
                    self.blocked_since = None;
                }
                Poll::Pending => {
                    self.blocked_since.get_or_insert(turn.now);
                    break;
                }
            }
        }
        if !chunk.is_empty() {
            self.resize(self.waiting.len().saturating_add(chunk.len()));
            self.waiting.extend_from_slice(chunk);
        }
        Ok(())
    }

    /// The reader has no more just now: the other side gets what was written so far.
    fn poll_pause<W: AsyncWrite>(
        &mut self,
        turn: &mut At<'_, '_>,
        to: Pin<&mut W>,
        until: Turn,
    ) -> Result<Step, End> {
        if self.unflushed {
            match to.poll_flush(turn.cx) {
                Poll::Ready(Ok(())) => {
                    self.unflushed = false;
                    if self.waiting.is_empty() {
                        self.blocked_since = None;
                    }
                }
                Poll::Ready(Err(_)) => return Err(End::Broken),
                // Bytes wait in the writer's connection, which is no better for them than here.
                Poll::Pending => {
                    self.blocked_since.get_or_insert(turn.now);
                }
            }
        }
        Ok(Step::Blocked(until))
    }

    /// Flushes or closes the writer for good; a writer that does not let itself be closed is one that stalls.
    fn poll_end(
        &mut self,
        turn: &mut At<'_, '_>,
        end: impl FnOnce(&mut Context<'_>) -> Poll<io::Result<()>>,
    ) -> Result<Turn, End> {
        if self.closed {
            return Ok(Turn::Done);
        }
        match end(turn.cx) {
            Poll::Ready(Ok(())) => {
                self.closed = true;
                self.blocked_since = None;
                Ok(Turn::Done)
            }
            Poll::Ready(Err(_)) => Err(End::Broken),
            Poll::Pending => {
                self.blocked_since.get_or_insert(turn.now);
                Ok(Turn::Waiting)
            }
        }
    }

    /// Makes room for exactly `bytes` waiting bytes, and accounts for it.
    fn resize(&mut self, bytes: usize) {
        if bytes == 0 {
            self.waiting = Vec::new();
        } else {
            let more = bytes.saturating_sub(self.waiting.len());
            self.waiting.reserve_exact(more);
        }
        self.share.set(self.waiting.capacity() as u64);
    }
}

/// What one turn of a circuit brings along for its lanes.
pub struct At<'a, 'w> {
    pub cx: &'a mut Context<'w>,
    pub now: Instant,
    pub limits: &'a mut Limits,
    pub terms: &'a Terms,
}

/// The outcome of one read.
enum Step {
    Moved(usize),
    Read(Reader),
    Blocked(Turn),
}

fn poll_write<W: AsyncWrite>(
    cx: &mut Context<'_>,
    to: Pin<&mut W>,
    bytes: &[u8],
) -> Result<Poll<usize>, End> {
    match to.poll_write(cx, bytes) {
        Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => Err(End::Broken),
        Poll::Ready(Ok(written)) => Ok(Poll::Ready(written)),
        Poll::Pending => Ok(Poll::Pending),
    }
}

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "a start for the clock of the tests"
)]
mod tests {
    use super::*;
    use crate::relay::{Buffers, Limit, Resources};
    use futures::task::noop_waker_ref;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// Gives bytes in the pieces it was told to; a piece of none is a pause.
    struct Source {
        bytes: Vec<u8>,
        pieces: VecDeque<usize>,
    }

    impl AsyncRead for Source {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            into: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            let piece = self.pieces.pop_front().unwrap_or(usize::MAX);
            let size = piece.min(into.len()).min(self.bytes.len());
            if piece == 0 {
                return Poll::Pending;
            }
            into[..size].copy_from_slice(&self.bytes[..size]);
            self.bytes.drain(..size);
            Poll::Ready(Ok(size))
        }
    }

    /// Takes bytes in the pieces it was told to.
    #[derive(Default)]
    struct Sink {
        bytes: Vec<u8>,
        pieces: VecDeque<usize>,
        flushed: usize,
        /// Its connection takes nothing.
        stuck: bool,
        closed: bool,
    }

    impl AsyncWrite for Sink {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let piece = self.pieces.pop_front().unwrap_or(usize::MAX);
            let size = piece.min(bytes.len());
            if piece == 0 {
                return Poll::Pending;
            }
            self.bytes.extend_from_slice(&bytes[..size]);
            Poll::Ready(Ok(size))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            if self.stuck {
                return Poll::Pending;
            }
            self.flushed = self.bytes.len();
            Poll::Ready(Ok(()))
        }

        fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.closed = true;
            self.poll_flush(cx)
        }
    }

    fn terms(max_data: Limit<u64>, buffer_size: u32) -> (Terms, Buffers) {
        let resources = Resources {
            max_data,
            max_duration: Limit::Unlimited,
            max_circuits: 1,
            reservation_ttl: Duration::from_secs(1),
            buffer_size,
            max_reservations: 1,
            max_reservations_per_ip: 1,
            max_circuits_total: 1,
            reservation_rate: Limit::Unlimited,
            circuit_rate: Limit::Unlimited,
            bandwidth: Limit::Unlimited,
            bandwidth_per_circuit: Limit::Unlimited,
            max_buffers: 1 << 30,
        };
        let buffers = Buffers::default();
        let stall = Duration::from_secs(30);
        let terms = Terms::new(&resources, buffers.clone(), stall, Instant::now());
        (terms, buffers)
    }

    struct Ride {
        lane: Lane,
        source: Source,
        sink: Sink,
        terms: Terms,
        buffers: Buffers,
    }

    impl Ride {
        fn new(bytes: Vec<u8>, max_data: Limit<u64>, buffer_size: u32) -> Self {
            let (terms, buffers) = terms(max_data, buffer_size);
            Self {
                lane: Lane::new(terms.share()),
                source: Source {
                    bytes,
                    pieces: VecDeque::new(),
                },
                sink: Sink::default(),
                terms,
                buffers,
            }
        }

        fn turn(&mut self, now: Instant) -> Result<Turn, End> {
            let mut limits = self.terms.limits(now);
            let mut at = At {
                cx: &mut Context::from_waker(noop_waker_ref()),
                now,
                limits: &mut limits,
                terms: &self.terms,
            };
            let Self { source, sink, .. } = self;
            self.lane.poll(&mut at, Pin::new(source), Pin::new(sink))
        }
    }

    fn pieces() -> impl Strategy<Value = VecDeque<usize>> {
        let piece = prop_oneof![Just(0), 1..20_usize, 1..200_000_usize];
        prop::collection::vec(piece, 0..60).prop_map(VecDeque::from)
    }

    proptest! {
        #[test]
        fn what_is_allowed_arrives_in_order_however_it_is_cut(
            size in 0..300_000_usize,
            limit in prop_oneof![0..300_000_u64, Just(u64::MAX)],
            buffer_size in 1..100_000_u32,
            reads in pieces(),
            writes in pieces(),
        ) {
            let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            let mut ride = Ride::new(bytes.clone(), Limit::At(limit), buffer_size);
            ride.source.pieces = reads;
            ride.sink.pieces = writes;
            let now = Instant::now();
            let end = loop {
                match ride.turn(now) {
                    Ok(Turn::Done) => break None,
                    Ok(_) => prop_assert!(ride.buffers.held() <= u64::from(buffer_size)),
                    Err(end) => break Some(end),
                }
            };
            let allowed = size.min(usize::try_from(limit).unwrap_or(size));
            prop_assert!(ride.sink.bytes == bytes[..allowed]);
            prop_assert_eq!(ride.sink.flushed, allowed);
            prop_assert_eq!(end, (size > allowed).then_some(End::MaxData));
            prop_assert_eq!(ride.sink.closed, size <= allowed);
            prop_assert_eq!(ride.buffers.held(), 0);
        }
    }

    #[test]
    fn bytes_are_flushed_when_the_source_pauses() {
        let mut ride = Ride::new(vec![1; 10], Limit::Unlimited, 1024);
        ride.source.pieces = [10, 0].into();
        assert_eq!(ride.turn(Instant::now()), Ok(Turn::Waiting));
        assert_eq!(ride.sink.flushed, 10);
    }

    #[test]
    fn a_writer_that_takes_nothing_stalls_and_any_progress_starts_anew() {
        let mut ride = Ride::new(vec![1; 10], Limit::Unlimited, 1024);
        ride.source.pieces = [10, 0, 0, 0].into();
        ride.sink.pieces = [0, 0, 1, 0].into();
        let start = Instant::now();
        let (patience, second) = (ride.terms.stall(), Duration::from_secs(1));
        assert_eq!(ride.lane.stalls_at(patience), None);
        ride.turn(start).unwrap();
        assert_eq!(ride.lane.stalls_at(patience), Some(start + patience));
        ride.turn(start + second).unwrap();
        let later = start + second + patience;
        assert_eq!(ride.lane.stalls_at(patience), Some(later));
    }

    #[test]
    fn bytes_that_cannot_be_flushed_stall_until_they_are() {
        let mut ride = Ride::new(vec![1; 10], Limit::Unlimited, 1024);
        ride.source.pieces = [10, 0, 0, 0].into();
        ride.sink.stuck = true;
        let start = Instant::now();
        let (patience, second) = (ride.terms.stall(), Duration::from_secs(1));
        ride.turn(start).unwrap();
        ride.turn(start + second).unwrap();
        assert_eq!(ride.lane.stalls_at(patience), Some(start + patience));
        ride.sink.stuck = false;
        ride.turn(start + second).unwrap();
        assert_eq!(ride.lane.stalls_at(patience), None);
    }

    #[test]
    fn a_lane_that_has_used_more_than_a_lowered_limit_ends_at_once() {
        let mut ride = Ride::new(vec![1; 10], Limit::At(10), 1024);
        ride.source.pieces = [10, 0].into();
        ride.turn(Instant::now()).unwrap();
        ride.terms = terms(Limit::At(9), 1024).0;
        assert_eq!(ride.turn(Instant::now()), Err(End::MaxData));
    }

    #[test]
    fn a_saturated_lane_lets_others_have_their_turn() {
        let mut ride = Ride::new(vec![1; 10 * TURN], Limit::Unlimited, 1024);
        assert_eq!(ride.turn(Instant::now()), Ok(Turn::Again));
        assert!(ride.lane.used() < 2 * TURN as u64);
    }
}
