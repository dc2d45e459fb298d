//! Gathers what one poll of an HTTP/2 connection writes, so that it becomes one TLS record and one system call.
//!
//! HTTP/2 flushes after nearly every frame. Below it stands a [`Cork`]: a flush from above does nothing, and whoever
//! polls the connection calls [`Cork::poll_drain`] after each poll. That always flushes *through* to TLS, even when
//! nothing is gathered here: TLS may hold bytes of a write that went past this buffer while the socket was full, and
//! nobody else would ever ask for them.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{Duplex, TunnelLost, tunnel::Line};

/// Two handles to one stream: HTTP/2 holds one, its driver the other.
pub(crate) struct Cork<IO> {
    inner: Arc<Mutex<Inner<IO>>>,
}

struct Inner<IO> {
    io: IO,
    out: BytesMut,
    /// Flushes from above are left to the driver.
    corked: bool,
    /// A write from above waits for room here.
    blocked: bool,
    reads: u64,
    /// Where the first failure of the stream is noted: HTTP/2 passes on no more than its text.
    line: Arc<Line>,
}

impl<IO: Duplex> Cork<IO> {
    /// Above `io`; flushes pass until [`Cork::cork`].
    pub(crate) fn new(io: IO, line: Arc<Line>) -> Self {
        let inner = Inner {
            io,
            out: BytesMut::new(),
            corked: false,
            blocked: false,
            reads: 0,
            line,
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    /// From now on somebody drains after each poll.
    pub(crate) fn cork(&self) {
        self.lock().corked = true;
    }

    /// How many reads have brought something.
    pub(crate) fn reads(&self) -> u64 {
        self.lock().reads
    }

    /// Sends all that is gathered, through TLS to the socket. To be called after each poll of the connection, by the same
    /// task.
    pub(crate) fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        let drained = inner.poll_through(cx);
        if inner.blocked && inner.out.is_empty() {
            inner.blocked = false;
            cx.waker().wake_by_ref();
        }
        drained
    }

    fn lock(&self) -> MutexGuard<'_, Inner<IO>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<IO: Duplex> Inner<IO> {
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.out))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_through(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = match self.poll_out(cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.io).poll_flush(cx),
            other => other,
        };
        result.map_err(|e| self.line.fail(e))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        if self.out.len() + total > GATHERED {
            self.blocked = true;
            ready!(self.poll_out(cx))?;
            self.blocked = false;
        }
        if total > GATHERED {
            return Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        }
        for buf in bufs {
            self.out.extend_from_slice(buf);
        }
        Poll::Ready(Ok(total))
    }
}

impl<IO: Duplex> AsyncRead for Cork<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        let before = buf.filled().len();
        match ready!(Pin::new(&mut inner.io).poll_read(cx, buf)) {
            Ok(()) => {
                if buf.filled().len() > before {
                    inner.reads += 1;
                } else if buf.remaining() > 0 {
                    // The peer has closed in good order: that what is still written then fails is no loss.
                    inner.line.lose(TunnelLost::Closed);
                }
                Poll::Ready(Ok(()))
            }
            Err(e) => Poll::Ready(Err(inner.line.fail(e))),
        }
    }
}

impl<IO: Duplex> AsyncWrite for Cork<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut inner = self.lock();
        inner.poll_write(cx, bufs).map_err(|e| inner.line.fail(e))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        if inner.corked {
            Poll::Ready(Ok(()))
        } else {
            inner.poll_through(cx)
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        ready!(inner.poll_out(cx))?;
        Pin::new(&mut inner.io).poll_shutdown(cx)
    }
}

impl<IO> Clone for Cork<IO> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

/// What is gathered at most; a larger write goes past the buffer.
const GATHERED: usize = 64 << 10;

#[cfg(test)]
mod tests;
