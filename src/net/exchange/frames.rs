//! Frames on one stream: read with a bound on size and time, written one after the other.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::PeerId;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{Frame, LARGEST_FRAME, Receipt, Shared, Verdict};
use crate::net::heard::{Ears, Heard};

/// Bytes of a frame of a peer that has not yet shown that it holds the token: a greeting is below 200.
const LARGEST_FIRST_FRAME: usize = 4 * 1024;

/// The first frame must be there within this, and each later one within this from its first byte. A member far away on a
/// line of 256 kbit/s needs eight seconds for the largest.
const FRAME_TIMEOUT: Duration = Duration::from_secs(10);

/// A written frame must have left within this; a neighbour that reads more slowly is none.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Bad frames in a row after which a stream is ended. Around a change of the window a neighbour whose clock differs sends
/// one or two that cannot be opened.
const MOST_BAD: u32 = 3;

/// Why reading from a peer has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The stream is closed or broken.
    Gone,
    TooLarge,
    TooSlow,
    /// It sent what could not be opened.
    Bad,
}

impl End {
    /// For metrics; `None` for an end that is nobody's fault.
    pub fn label(self) -> Option<&'static str> {
        match self {
            End::Gone => None,
            End::TooLarge => Some("frame_too_large"),
            End::TooSlow => Some("frame_too_slow"),
            End::Bad => Some("not_ours"),
        }
    }
}

/// Reads frames until something ends it, handing each over and waiting until it is dealt with.
pub async fn read(
    mut stream: impl AsyncRead + Unpin,
    peer: PeerId,
    shared: Arc<Shared>,
    ears: Ears,
) -> End {
    let (mut proved, mut bad) = (false, 0);
    loop {
        let frame = match next(&mut stream, proved).await {
            Ok(frame) => frame,
            Err(end) => return end,
        };
        shared.counts.frames_in.fetch_add(1, Ordering::Relaxed);
        let length = u64::try_from(frame.len()).unwrap_or(u64::MAX);
        shared.counts.bytes_in.fetch_add(length, Ordering::Relaxed);
        let (receipt, dealt_with) = oneshot::channel();
        let frame = Frame {
            peer,
            bytes: frame,
            receipt: Receipt(receipt),
        };
        ears.hear_in_turn(Heard::Exchange(frame)).await;
        match dealt_with.await {
            Ok(Verdict::Good) => (proved, bad) = (true, 0),
            Ok(Verdict::Bad) => bad += 1,
            Err(_) => {}
        }
        if bad >= if proved { MOST_BAD } else { 1 } {
            return End::Bad;
        }
    }
}

/// One frame. The first of a stream has to come soon; between later ones there is all the time in the world, within one
/// there is not.
async fn next(stream: &mut (impl AsyncRead + Unpin), proved: bool) -> Result<Vec<u8>, End> {
    let mut length = [0; 4];
    let [first, rest @ ..] = &mut length;
    let first = stream.read_exact(std::slice::from_mut(first));
    if proved {
        first.await.map_err(gone)?;
    } else {
        in_time(first).await?;
    }
    in_time(stream.read_exact(rest)).await?;
    let most = if proved {
        LARGEST_FRAME
    } else {
        LARGEST_FIRST_FRAME
    };
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > most {
        return Err(End::TooLarge);
    }
    let mut frame = vec![0; length];
    in_time(stream.read_exact(&mut frame)).await?;
    Ok(frame)
}

async fn in_time(reading: impl Future<Output = io::Result<()>>) -> Result<(), End> {
    timeout(FRAME_TIMEOUT, reading)
        .await
        .map_err(|_| End::TooSlow)?
        .map_err(gone)
}

fn gone(_: io::Error) -> End {
    End::Gone
}

/// Writes what is queued until the queue is gone or the stream takes nothing any more. `Err`: the stream failed.
pub async fn write(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    queue: mpsc::Receiver<Vec<u8>>,
    behind: Arc<AtomicUsize>,
    shared: Arc<Shared>,
) -> io::Result<()> {
    let (mut answers, stream) = stream.split();
    // Nothing is ever said on this half; that it ends says that the other side has gone.
    let mut nothing = [0; 1];
    tokio::select! {
        written = write_queued(stream, queue, behind, shared) => written,
        ended = answers.read(&mut nothing) => match ended {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Err(io::ErrorKind::InvalidData.into()),
            Err(error) => Err(error),
        },
    }
}

async fn write_queued(
    mut stream: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<Vec<u8>>,
    behind: Arc<AtomicUsize>,
    shared: Arc<Shared>,
) -> io::Result<()> {
    while let Some(frame) = queue.recv().await {
        let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
        let writing = async {
            stream.write_all(&length.to_be_bytes()).await?;
            stream.write_all(&frame).await?;
            // The next one goes into the same packet if it is there already.
            if queue.is_empty() {
                stream.flush().await?;
            }
            Ok::<(), io::Error>(())
        };
        timeout(WRITE_TIMEOUT, writing)
            .await
            .map_err(|_| io::ErrorKind::TimedOut)??;
        behind.fetch_sub(frame.len(), Ordering::Relaxed);
        shared.counts.frames_out.fetch_add(1, Ordering::Relaxed);
        shared
            .counts
            .bytes_out
            .fetch_add(length.into(), Ordering::Relaxed);
        shared.written.notify_waiters();
    }
    timeout(WRITE_TIMEOUT, stream.close())
        .await
        .map_err(|_| io::ErrorKind::TimedOut)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::io::Cursor;

    fn framed(frames: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for frame in frames {
            bytes.extend(u32::try_from(frame.len()).unwrap().to_be_bytes());
            bytes.extend(*frame);
        }
        bytes
    }

    /// Reads `bytes` as a peer's stream; `judge` answers each frame.
    async fn read_all(
        bytes: Vec<u8>,
        judge: impl Fn(&[u8]) -> Option<Verdict>,
    ) -> (Vec<Vec<u8>>, End) {
        let (ears, mut heard) = Ears::new();
        let shared = Arc::new(Shared::default());
        let reading = read(Cursor::new(bytes), PeerId::random(), shared, ears);
        let judging = async {
            let mut frames = Vec::new();
            while let Some(heard) = heard.recv().await {
                let Heard::Exchange(frame) = heard else {
                    continue;
                };
                if let Some(verdict) = judge(&frame.bytes) {
                    frame.receipt.give(verdict);
                }
                frames.push(frame.bytes);
            }
            frames
        };
        let (end, frames) = futures::join!(reading, judging);
        (frames, end)
    }

    #[tokio::test]
    async fn frames_are_handed_over_in_order_until_the_stream_ends() {
        let bytes = framed(&[b"one", b"", b"three"]);
        let (frames, end) = read_all(bytes, |_| Some(Verdict::Good)).await;
        assert_eq!(frames, [&b"one"[..], b"", b"three"]);
        assert_eq!(end, End::Gone);
    }

    #[tokio::test]
    async fn one_bad_frame_ends_a_stream_that_has_proved_nothing() {
        let bytes = framed(&[b"junk", b"more"]);
        let (frames, end) = read_all(bytes, |_| Some(Verdict::Bad)).await;
        assert_eq!(frames.len(), 1);
        assert_eq!(end, End::Bad);
    }

    #[tokio::test]
    async fn a_proved_stream_survives_two_bad_frames_in_a_row_and_not_three() {
        let judge = |frame: &[u8]| match frame {
            b"bad" => Some(Verdict::Bad),
            _ => Some(Verdict::Good),
        };
        let bytes = framed(&[
            b"good", b"bad", b"bad", b"good", b"bad", b"bad", b"bad", b"good",
        ]);
        let (frames, end) = read_all(bytes, judge).await;
        assert_eq!(frames.len(), 7);
        assert_eq!(end, End::Bad);
    }

    #[tokio::test]
    async fn whoever_has_proved_nothing_sends_small_frames_only() {
        let large = vec![0; LARGEST_FIRST_FRAME + 1];
        let (frames, end) = read_all(framed(&[&large]), |_| Some(Verdict::Good)).await;
        assert_eq!((frames.len(), end), (0, End::TooLarge));
        let (frames, _) = read_all(framed(&[b"good", &large]), |_| Some(Verdict::Good)).await;
        assert_eq!(frames.len(), 2);
        let huge = u32::MAX.to_be_bytes().to_vec();
        let (_, end) = read_all(huge, |_| None).await;
        assert_eq!(end, End::TooLarge);
    }
}
