//! Bytes from one task of a process to another, both ways, with exact ends: what ends without a word is a reset.

use std::{
    error::Error,
    io, mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::proto::engine::Pieces;

/// Two ends of a connection within this process: for a peer that could be called through a tunnel and need not be.
///
/// ```
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let (mut near, mut far) = ambient_hbone::pipe();
/// near.write_all(b"last words").await?;
/// near.shutdown().await?; // the other direction goes on
/// let mut got = String::new();
/// far.read_to_string(&mut got).await?;
/// assert_eq!(got, "last words");
/// drop(far); // without an end of its own
/// assert_eq!(near.read(&mut [0]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
/// # Ok(())
/// # }
/// ```
pub fn pipe() -> (Pipe, Pipe) {
    let ways = Arc::new(Ways::default());
    let end = |side| Pipe { ways: ways.clone(), side };
    (end(0), end(1))
}

/// One end of a [`pipe`].
///
/// - Shutting the write side ends that direction, as FIN does for TCP; the other goes on.
/// - What else ends it is an [`io::Error`] of the kind `ConnectionReset` that holds a [`PipeLost`]. Dropped before its write side
///   was shut, the other end reads one; and it is told when it writes to an end that was dropped.
/// - In each direction 256 KiB wait at most, and the writer waits then. An idle one holds no bytes.
///
/// An empty write succeeds, registers, and fails once the other end is gone: [`relay`](crate::relay()) uses that while it waits for
/// its other side, and hands the bytes of a `Pipe` on without copying them. Large pieces wait in the buffers that they were
/// read to: those of 64 KiB and more, and a smaller one that nothing waits before.
#[derive(Debug)]
pub struct Pipe {
    ways: Arc<Ways>,
    side: usize,
}

/// Cuts a [`Pipe`] from elsewhere. Cheap to clone; it keeps no end alive.
#[derive(Clone, Debug)]
pub struct PipeCutter(Weak<Ways>);

/// Why a [`Pipe`] carries nothing any more.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipeLost {
    /// The other end was dropped before it had ended its direction.
    #[error("the other end was closed before its end")]
    Closed,
    /// The other end was dropped, and is still written to.
    #[error("the other end reads no more")]
    Unread,
    /// It was [cut](PipeCutter::cut).
    #[error("{reason}")]
    Cut {
        /// Why, in the words of whoever did it.
        reason: Arc<dyn Error + Send + Sync>,
    },
}

impl PipeLost {
    /// What an error of a [`Pipe`] holds.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

/// What each end has written.
#[derive(Debug, Default)]
struct Ways([Mutex<Way>; 2]);

/// One direction.
#[derive(Debug, Default)]
struct Way {
    pieces: Pieces,
    /// What comes after them, still open for more.
    tail: BytesMut,
    ended: bool,
    /// Why nothing goes this way any more.
    lost: Option<PipeLost>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Ways {
    fn way(&self, of: usize) -> MutexGuard<'_, Way> {
        self.0[of].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Way {
    /// Gives who is to be woken once it is let go.
    #[must_use]
    fn lose(&mut self, why: PipeLost) -> [Option<Waker>; 2] {
        self.lost.get_or_insert(why);
        (self.pieces, self.tail) = Default::default();
        [self.reader.take(), self.writer.take()]
    }

    fn check(&self) -> io::Result<()> {
        match &self.lost {
            None => Ok(()),
            Some(why) => Err(io::Error::new(io::ErrorKind::ConnectionReset, why.clone())),
        }
    }

    fn len(&self) -> usize {
        self.pieces.len() + self.tail.len()
    }

    /// How much the writer may put, once it may.
    fn poll_room(&mut self, cx: &Context<'_>) -> Poll<io::Result<usize>> {
        self.check()?;
        if self.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        match MOST.saturating_sub(self.len()) {
            0 => {
                wait(&mut self.writer, cx);
                Poll::Pending
            }
            room => Poll::Ready(Ok(room)),
        }
    }

    /// Many small pieces are one, or each would cost more than its bytes; a large one stays where it lies, unless it would keep far
    /// more memory than it needs while its reader is slow.
    fn put(&mut self, piece: Bytes) {
        if piece.len() >= LARGE || piece.len() >= AS_IT_LIES && self.len() == 0 {
            self.close_tail();
            self.pieces.push(piece);
        } else {
            self.tail.extend_from_slice(&piece);
        }
    }

    fn close_tail(&mut self) {
        self.pieces.push(mem::take(&mut self.tail).freeze());
    }

    /// Ready once nothing goes this way any more; else whoever waits at `end` is woken then.
    fn poll_lost(&mut self, end: fn(&mut Self) -> &mut Option<Waker>, cx: &Context<'_>) -> Poll<io::Error> {
        match self.check() {
            Ok(()) => {
                wait(end(self), cx);
                Poll::Pending
            }
            Err(error) => Poll::Ready(error),
        }
    }

    /// Ready once there is something to read, or the end.
    fn poll_filled(&mut self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        if self.len() == 0 && !self.ended {
            wait(&mut self.reader, cx);
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

/// The waker of whoever polled last.
fn wait(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Pipe {
    /// What cuts it from elsewhere.
    pub fn cutter(&self) -> PipeCutter {
        PipeCutter(Arc::downgrade(&self.ways))
    }

    fn written(&self) -> MutexGuard<'_, Way> {
        self.ways.way(self.side)
    }

    fn coming(&self) -> MutexGuard<'_, Way> {
        self.ways.way(1 - self.side)
    }

    /// All that waits to be read; none once the other end has ended its direction.
    pub(crate) fn poll_take(&mut self, cx: &Context<'_>) -> Poll<io::Result<Pieces>> {
        let mut way = self.coming();
        ready!(way.poll_filled(cx))?;
        way.close_tail();
        let (pieces, writer) = (mem::take(&mut way.pieces), way.writer.take());
        drop(way);
        wake(writer);
        Poll::Ready(Ok(pieces))
    }

    /// How much may be [put](Self::put), once anything may.
    pub(crate) fn poll_room(&mut self, cx: &Context<'_>) -> Poll<io::Result<usize>> {
        self.written().poll_room(cx)
    }

    /// Writes the first `n` bytes of `pieces`, as they are; no more than there is [room](Self::poll_room) for.
    pub(crate) fn put(&mut self, pieces: &mut Pieces, n: usize) -> io::Result<()> {
        let mut way = self.written();
        way.check()?;
        pieces.take(n, |piece| way.put(piece));
        let reader = way.reader.take();
        drop(way);
        wake(reader);
        Ok(())
    }

    /// Ends its direction behind all that was written.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        let mut way = self.written();
        way.check()?;
        way.ended = true;
        let reader = way.reader.take();
        drop(way);
        wake(reader);
        Ok(())
    }

    /// Ready once reading fails.
    pub(crate) fn poll_read_failed(&mut self, cx: &Context<'_>) -> Poll<io::Error> {
        self.coming().poll_lost(|way| &mut way.reader, cx)
    }

    /// Ready once writing fails.
    pub(crate) fn poll_write_failed(&mut self, cx: &Context<'_>) -> Poll<io::Error> {
        self.written().poll_lost(|way| &mut way.writer, cx)
    }
}

impl PipeCutter {
    /// Ends both directions at once, as a reset; what waits to be read is lost. Where something has ended it before, that stays
    /// the reason.
    pub fn cut(&self, reason: impl Into<Box<dyn Error + Send + Sync>>) {
        let Some(ways) = self.0.upgrade() else { return };
        let lost = PipeLost::Cut {
            reason: Arc::from(reason.into()),
        };
        for of in [0, 1] {
            let waiting = ways.way(of).lose(lost.clone());
            waiting.into_iter().for_each(wake);
        }
    }
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut way = self.coming();
        ready!(way.poll_filled(cx))?;
        if way.pieces.is_empty() {
            way.close_tail();
        }
        let n = way.pieces.len().min(buf.remaining());
        way.pieces.take(n, |piece| buf.put_slice(&piece));
        let writer = way.writer.take();
        drop(way);
        wake(writer);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return match self.poll_write_failed(cx) {
                Poll::Ready(error) => Poll::Ready(Err(error)),
                Poll::Pending => Poll::Ready(Ok(0)),
            };
        }
        let mut way = self.written();
        let n = ready!(way.poll_room(cx))?.min(buf.len());
        way.tail.extend_from_slice(&buf[..n]);
        let reader = way.reader.take();
        drop(way);
        wake(reader);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.finish())
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        for (of, why) in [(self.side, PipeLost::Closed), (1 - self.side, PipeLost::Unread)] {
            let mut way = self.ways.way(of);
            let waiting = if way.ended { [None, None] } else { way.lose(why) };
            drop(way);
            waiting.into_iter().for_each(wake);
        }
    }
}

/// Bytes that wait in one direction.
const MOST: usize = 256 << 10;

/// From this size on a piece stays where it lies, whatever waits before it: it keeps four times its length of a reader's buffer at most.
const LARGE: usize = 64 << 10;

/// The same for a piece before which nothing waits: its reader keeps up.
const AS_IT_LIES: usize = 8 << 10;

#[cfg(test)]
mod tests;
