//! One circuit, one task: asks the destination, answers the source, carries bytes both ways until something ends it.
#![allow(clippy::disallowed_methods, reason = "measures durations and stalls")]

use super::{
    end::End,
    handler::Answer,
    lane::{At, Lane, Turn},
    proto,
    terms::{Limits, Terms},
};
use crate::relay::{Bytes, CircuitId, Status};
use futures::{FutureExt, future, task::AtomicWaker};
use libp2p::{PeerId, Stream};
use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Sleep, sleep_until, timeout_at},
};

/// A circuit that the admission has let in.
pub struct Opening {
    pub circuit: CircuitId,
    pub source: PeerId,
    /// The source's hop stream.
    pub answer: Box<Answer>,
    /// The destination's stop stream, once its connection has opened it.
    pub stop: oneshot::Receiver<Stream>,
    /// What both ends are told.
    pub limit: Option<proto::Limit>,
    pub control: Arc<Control>,
    pub terms: Arc<Terms>,
    /// Asked once, when the destination agrees. Unbounded because a circuit writes at most one message.
    pub consented: mpsc::UnboundedSender<Consent>,
}

/// The destination of a circuit agrees. The circuit waits for the verdict before it tells the source.
pub struct Consent {
    pub circuit: CircuitId,
    /// The status for the source unless the circuit may open.
    pub verdict: oneshot::Sender<Result<(), Status>>,
}

/// What the behaviour may do to a circuit, and see of it.
#[derive(Debug, Default)]
pub struct Control {
    cut: OnceLock<Status>,
    waker: AtomicWaker,
    to_destination: AtomicU64,
    to_source: AtomicU64,
}

impl Control {
    /// Ends the circuit and resets both streams. One whose source waits for an answer is answered with `status`.
    pub fn cut(&self, status: Status) {
        let _ = self.cut.set(status);
        self.waker.wake();
    }

    /// Makes the circuit look at the limits in force.
    pub fn look_again(&self) {
        self.waker.wake();
    }

    /// Bytes carried so far.
    pub fn carried(&self) -> Bytes {
        Bytes {
            to_destination: self.to_destination.load(Ordering::Relaxed),
            to_source: self.to_source.load(Ordering::Relaxed),
        }
    }

    fn poll_cut(&self, cx: &Context<'_>) -> Poll<Status> {
        self.waker.register(cx.waker());
        match self.cut.get() {
            Some(status) => Poll::Ready(*status),
            None => Poll::Pending,
        }
    }
}

/// Runs the circuit from the admission to its end, whatever happens.
pub async fn run(opening: Opening) -> (CircuitId, End) {
    let circuit = opening.circuit;
    (circuit, contain(open_and_carry(opening)).await)
}

/// A panic is the end of one circuit. What it held is dropped with it: streams are reset, bytes given back.
async fn contain(circuit: impl Future<Output = End>) -> End {
    let end = AssertUnwindSafe(circuit).catch_unwind();
    end.await.unwrap_or(End::Panicked)
}

async fn open_and_carry(opening: Opening) -> End {
    let Opening {
        circuit,
        source,
        answer,
        stop,
        limit,
        control,
        terms,
        consented,
    } = opening;

    let consent = timeout_at(answer.consent_by(), consent(stop, source, limit));
    let agreed = async {
        let destination = consent.await.ok().flatten();
        let destination = destination.ok_or((Status::ConnectionFailed, End::NoConsent))?;
        let (verdict, decided) = oneshot::channel();
        let _ = consented.send(Consent { circuit, verdict });
        match decided.await {
            Ok(Ok(())) => Ok(destination),
            Ok(Err(status)) => Err((status, End::Cut)),
            // The relay is gone.
            Err(_) => Err((Status::ConnectionFailed, End::Cut)),
        }
    };
    let agreed = tokio::select! {
        biased;
        status = future::poll_fn(|cx| control.poll_cut(cx)) => Err((status, End::Cut)),
        agreed = agreed => agreed,
    };
    let destination = match agreed {
        Ok(destination) => destination,
        Err((status, end)) => {
            // A source that does not take its answer has lost nothing but the answer.
            let _ = answer.tell(proto::status_frame(status, None)).await;
            return end;
        }
    };
    let granted = tokio::select! {
        biased;
        _ = future::poll_fn(|cx| control.poll_cut(cx)) => return End::Cut,
        granted = answer.grant(proto::status_frame(Status::Ok, limit)) => granted,
    };
    match granted {
        Ok(source) => Circuit::new(source, destination, control, terms).await,
        Err(_) => End::Broken,
    }
}

/// The stop stream, if the destination agrees. Whatever else it says is a no.
async fn consent(
    stop: oneshot::Receiver<Stream>,
    source: PeerId,
    limit: Option<proto::Limit>,
) -> Option<Stream> {
    let mut stream = stop.await.ok()?;
    proto::write_frame(&mut stream, &proto::stop_connect_frame(&source, limit))
        .await
        .ok()?;
    let body = proto::read_frame(&mut stream).await.ok()?;
    let status = proto::decode_stop_answer(&body).ok()?;
    (status == Status::Ok as i32).then_some(stream)
}

/// An open circuit: two lanes, and a clock for what must not last. Dropping it resets both streams.
/// Over QUIC libp2p has no reset to send: the far end reads an end of stream, and its writes fail.
struct Circuit {
    source: Stream,
    destination: Stream,
    to_destination: Lane,
    to_source: Lane,
    control: Arc<Control>,
    terms: Arc<Terms>,
    limits: Limits,
    opened: Instant,
    /// Wakes the task for the earliest thing that can fall due; often too early, never too late.
    alarm: Pin<Box<Sleep>>,
}

impl Circuit {
    fn new(source: Stream, destination: Stream, control: Arc<Control>, terms: Arc<Terms>) -> Self {
        let opened = Instant::now();
        let limits = terms.limits(opened);
        Self {
            source,
            destination,
            to_destination: Lane::new(terms.share()),
            to_source: Lane::new(terms.share()),
            control,
            terms,
            limits,
            opened,
            alarm: Box::pin(sleep_until((opened + NEVER).into())),
        }
    }

    fn ends_at(&self) -> Option<Instant> {
        self.opened.checked_add(self.limits.max_duration?)
    }

    fn poll_lanes(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<[Turn; 2], End> {
        let mut at = At {
            cx,
            now,
            limits: &mut self.limits,
            terms: &self.terms,
        };
        let mut source = Pin::new(&mut self.source);
        let mut destination = Pin::new(&mut self.destination);
        let to_destination =
            self.to_destination
                .poll(&mut at, source.as_mut(), destination.as_mut());
        let to_source = self.to_source.poll(&mut at, destination, source);
        self.count();
        Ok([to_destination?, to_source?])
    }

    fn count(&self) {
        let Control {
            to_destination,
            to_source,
            ..
        } = &*self.control;
        let (forth, back) = (self.to_destination.used(), self.to_source.used());
        let (forth_before, back_before) = (
            to_destination.swap(forth, Ordering::Relaxed),
            to_source.swap(back, Ordering::Relaxed),
        );
        self.terms.add_carried(
            forth.saturating_sub(forth_before),
            back.saturating_sub(back_before),
        );
    }

    /// Sees to it that the task wakes at `due` or earlier.
    fn poll_alarm(&mut self, cx: &mut Context<'_>, due: Option<Instant>) {
        let Some(due) = due else { return };
        let due = tokio::time::Instant::from_std(due);
        if due < self.alarm.deadline() || self.alarm.is_elapsed() {
            self.alarm.as_mut().reset(due);
        }
        if self.alarm.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }
}

impl Future for Circuit {
    type Output = End;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let this = self.get_mut();
        if this.control.poll_cut(cx).is_ready() {
            return Poll::Ready(End::Cut);
        }
        let now = Instant::now();
        this.terms.refresh(&mut this.limits, now);
        let ends_at = this.ends_at();
        if ends_at.is_some_and(|at| at <= now) {
            return Poll::Ready(End::MaxDuration);
        }
        let turns = match this.poll_lanes(cx, now) {
            Ok(turns) => turns,
            Err(end) => return Poll::Ready(end),
        };
        if turns == [Turn::Done, Turn::Done] {
            return Poll::Ready(End::Closed);
        }
        let mut due = ends_at;
        for turn in turns {
            match turn {
                Turn::Done | Turn::Waiting => {}
                Turn::Again => cx.waker().wake_by_ref(),
                Turn::Until(at) => due = earliest(due, Some(at)),
            }
        }
        for lane in [&this.to_destination, &this.to_source] {
            let stalls_at = lane.stalls_at(this.terms.stall());
            if stalls_at.is_some_and(|at| at <= now) {
                return Poll::Ready(End::Stalled);
            }
            due = earliest(due, stalls_at);
        }
        this.poll_alarm(cx, due);
        Poll::Pending
    }
}

/// Far enough away that nobody waits for it, near enough that no clock overflows.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::Buffers;
    use futures::executor::block_on;

    #[test]
    fn a_panic_ends_one_circuit_and_gives_back_what_it_held() {
        let buffers = Buffers::default();
        let mut share = buffers.share();
        let circuit = async move {
            share.set(1000);
            panic!("as planned");
        };
        assert_eq!(block_on(contain(circuit)), End::Panicked);
        assert_eq!(buffers.held(), 0);
    }

    #[test]
    fn a_circuit_that_is_cut_learns_it_whether_it_waits_or_not() {
        let control = Control::default();
        let cx = &mut Context::from_waker(futures::task::noop_waker_ref());
        assert!(control.poll_cut(cx).is_pending());
        control.cut(Status::PermissionDenied);
        control.cut(Status::ConnectionFailed);
        assert_eq!(control.poll_cut(cx), Poll::Ready(Status::PermissionDenied));
    }
}
