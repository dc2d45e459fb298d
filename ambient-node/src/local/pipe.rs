//! Bytes from one task of this process to another, both ways, with exact ends: what ends without a word is a reset.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker},
};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that wait in one direction.
const MOST: usize = 256 << 10;
/// Memory that a direction keeps while nothing waits in it.
const KEPT: usize = 4 << 10;

/// Two ends of one connection.
pub(super) fn pair() -> (Pipe, Pipe) {
    let ways = Arc::new(Ways::default());
    let end = |side| Pipe { ways: ways.clone(), side };
    (end(0), end(1))
}

/// One end. Dropped before it has ended its direction, the other end reads a reset.
#[derive(Debug)]
pub(crate) struct Pipe {
    ways: Arc<Ways>,
    side: usize,
}

/// Why a connection was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Cut {
    /// An end was dropped before it had ended its direction.
    #[error("the other end was closed before its end")]
    Closed,
    /// An end was dropped that was still written to.
    #[error("the other end reads no more")]
    Unread,
    /// A certificate of one of the two was revoked.
    #[error("peer certificate revoked by CRL")]
    Revoked,
    /// Nobody vouches for one of the two any more.
    #[error("the identity of one of the two was withdrawn")]
    Withdrawn,
    /// A certificate of one of the two has ended.
    #[error("a certificate that the connection was made with has expired")]
    Expired,
}

impl Cut {
    /// The reason that an error of a [`Pipe`] holds.
    pub(crate) fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

/// What each end has written.
#[derive(Debug, Default)]
pub(super) struct Ways([Mutex<Way>; 2]);

#[derive(Debug, Default)]
struct Way {
    bytes: BytesMut,
    ended: bool,
    /// Why nothing goes this way any more.
    cut: Option<Cut>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Ways {
    fn way(&self, of: usize) -> MutexGuard<'_, Way> {
        self.0[of].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends both directions at once, as a reset.
    pub(super) fn cut(&self, why: Cut) {
        for of in [0, 1] {
            self.way(of).cut(why);
        }
    }
}

impl Way {
    fn cut(&mut self, why: Cut) {
        self.cut.get_or_insert(why);
        self.bytes = BytesMut::new();
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }

    fn check(&self) -> io::Result<()> {
        match self.cut {
            None => Ok(()),
            Some(why) => Err(io::Error::new(io::ErrorKind::ConnectionReset, why)),
        }
    }
}

impl Pipe {
    pub(super) fn ways(&self) -> Weak<Ways> {
        Arc::downgrade(&self.ways)
    }
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut way = self.ways.way(1 - self.side);
        way.check()?;
        if way.bytes.is_empty() && !way.ended {
            way.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let n = way.bytes.len().min(buf.remaining());
        buf.put_slice(&way.bytes[..n]);
        way.bytes.advance(n);
        if way.bytes.is_empty() {
            // What was a burst is not kept for ever.
            way.bytes = match way.bytes.capacity() {
                capacity if capacity > KEPT => BytesMut::new(),
                _ => std::mem::take(&mut way.bytes),
            };
        }
        if let Some(writer) = way.writer.take() {
            writer.wake();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut way = self.ways.way(self.side);
        way.check()?;
        if way.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = MOST.saturating_sub(way.bytes.len());
        if room == 0 && !buf.is_empty() {
            way.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let n = room.min(buf.len());
        way.bytes.extend_from_slice(&buf[..n]);
        if let Some(reader) = way.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut way = self.ways.way(self.side);
        way.check()?;
        way.ended = true;
        if let Some(reader) = way.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let mut own = self.ways.way(self.side);
        if !own.ended {
            own.cut(Cut::Closed);
        }
        drop(own);
        let mut other = self.ways.way(1 - self.side);
        if !other.ended {
            other.cut(Cut::Unread);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn bytes_arrive_in_order_and_the_end_after_them() {
        let (mut near, mut far) = pair();
        let sent: Vec<u8> = (0..3 * MOST).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        let writing = async move {
            near.write_all(&sent).await.unwrap();
            near.shutdown().await.unwrap();
            let mut back = String::new();
            near.read_to_string(&mut back).await.unwrap();
            assert_eq!(back, "done");
        };
        let reading = async move {
            let mut got = Vec::new();
            far.read_to_end(&mut got).await.unwrap();
            assert!(got == expected);
            far.write_all(b"done").await.unwrap();
            far.shutdown().await.unwrap();
        };
        tokio::join!(writing, reading);
    }

    #[tokio::test]
    async fn who_does_not_read_holds_the_writer_up() {
        let (mut near, far) = pair();
        let written = tokio::time::timeout(std::time::Duration::from_millis(20), near.write_all(&[0; MOST + 1]));
        assert!(written.await.is_err());
        assert_eq!(far.ways.way(0).bytes.len(), MOST);
    }

    #[tokio::test]
    async fn what_ends_without_a_word_is_a_reset_for_reader_and_writer() {
        let (mut near, far) = pair();
        drop(far);
        for error in [near.read(&mut [0]).await.unwrap_err(), near.write(&[0]).await.unwrap_err()] {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        // Also for one that waits.
        let (mut near, far) = pair();
        let waiting = tokio::spawn(async move { near.read(&mut [0]).await });
        tokio::task::yield_now().await;
        drop(far);
        assert_eq!(waiting.await.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn after_its_own_end_nothing_is_lost() {
        let (mut near, mut far) = pair();
        far.write_all(b"last words").await.unwrap();
        far.shutdown().await.unwrap();
        near.shutdown().await.unwrap();
        drop(far);
        let mut got = String::new();
        near.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "last words");
    }

    #[tokio::test]
    async fn both_ends_are_told_of_a_cut() {
        let (mut near, mut far) = pair();
        near.ways.cut(Cut::Revoked);
        for error in [near.read(&mut [0]).await.unwrap_err(), far.read(&mut [0]).await.unwrap_err()] {
            assert_eq!(Cut::of(&error), Some(Cut::Revoked));
        }
    }
}
