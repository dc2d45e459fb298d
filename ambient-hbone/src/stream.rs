//! A duplex byte stream in a tunnel.

use std::{
    collections::VecDeque,
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{TunnelLost, pool::Lease, tunnel::Line};

/// A duplex byte stream in a tunnel, after its CONNECT was accepted.
///
/// - Shutting the write side sends END_STREAM, as FIN does for TCP; the other direction goes on. Reading ends (0 bytes)
///   only when the peer did the same.
/// - What else ends it is an [`io::Error`] of the kind `ConnectionReset` that holds a [`StreamError`]: see
///   [`StreamError::of`].
/// - Dropped before its write side was shut, it is reset with CONNECT_ERROR ([RFC 9113 8.5]) and what was not sent yet
///   is discarded, so that a truncated transfer never looks complete. Not with CANCEL, which there are peers that pass
///   on as an orderly end.
/// - Bytes wait here up to the [window](crate::Limits::stream_window); the peer may send more only as they are read.
///
/// A read into an empty buffer takes in what has come, without giving credit back, and registers for more; an empty write
/// succeeds, registers, and fails once the peer has reset the stream. [`relay`](crate::relay()) uses both while it waits
/// for its other side.
///
/// [RFC 9113 8.5]: https://www.rfc-editor.org/rfc/rfc9113#section-8.5
#[derive(Debug)]
pub struct Stream {
    read: ReadHalf,
    write: WriteHalf,
    headers: HeaderMap,
}

impl Stream {
    pub(crate) fn new(recv: RecvStream, send: SendStream<Bytes>, headers: HeaderMap, line: Arc<Line>, lease: Option<Lease>) -> Self {
        let lease = lease.map(Arc::new);
        let read = ReadHalf {
            recv,
            queue: VecDeque::new(),
            tail: BytesMut::new(),
            waiting: 0,
            ended: None,
            line: Arc::clone(&line),
            _lease: lease.clone(),
        };
        let write = WriteHalf {
            send,
            finished: false,
            line,
            _lease: lease,
        };
        Self { read, write, headers }
    }

    /// The headers that the other end sent with its CONNECT or with its answer.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The two directions, to be used by two tasks.
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        (self.read, self.write)
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.read).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.write).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_shutdown(cx)
    }
}

/// The direction from the peer. Dropped early, it takes nothing more: the peer may send its window full and then waits.
pub struct ReadHalf {
    recv: RecvStream,
    /// Larger frames as they came; smaller ones gathered, so that many of them cost no more than their bytes …
    queue: VecDeque<Bytes>,
    /// … of which the last are still open for more.
    tail: BytesMut,
    /// Bytes in both, for which no credit was given back.
    waiting: usize,
    ended: Option<Result<(), StreamError>>,
    line: Arc<Line>,
    _lease: Option<Arc<Lease>>,
}

impl ReadHalf {
    /// Takes in what has come, up to `enough` bytes; registers for more unless it stops there.
    fn fill(&mut self, cx: &mut Context<'_>, enough: usize) {
        while self.ended.is_none() && self.waiting < enough {
            match self.recv.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => self.push(data),
                Poll::Ready(Some(Err(e))) => self.ended = Some(Err(StreamError::new(&e, &self.line))),
                Poll::Ready(None) => self.ended = Some(Ok(())),
                Poll::Pending => return,
            }
        }
    }

    fn push(&mut self, data: Bytes) {
        self.waiting += data.len();
        if data.len() < SMALL {
            self.tail.extend_from_slice(&data);
            return;
        }
        if !self.tail.is_empty() {
            self.queue.push_back(self.tail.split().freeze());
        }
        self.queue.push_back(data);
    }

    fn take(&mut self, buf: &mut ReadBuf<'_>) -> usize {
        let before = buf.remaining();
        while buf.remaining() > 0 {
            if let Some(front) = self.queue.front_mut() {
                let n = front.len().min(buf.remaining());
                buf.put_slice(&front[..n]);
                front.advance(n);
                if front.is_empty() {
                    self.queue.pop_front();
                }
            } else if !self.tail.is_empty() {
                let n = self.tail.len().min(buf.remaining());
                buf.put_slice(&self.tail[..n]);
                self.tail.advance(n);
                if self.tail.is_empty() {
                    // An idle stream keeps no memory.
                    self.tail = BytesMut::new();
                }
            } else {
                break;
            }
        }
        let taken = before - buf.remaining();
        self.waiting -= taken;
        taken
    }
}

impl AsyncRead for ReadHalf {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            self.fill(cx, usize::MAX);
            return Poll::Ready(Ok(()));
        }
        self.fill(cx, buf.remaining());
        let taken = self.take(buf);
        if taken > 0 {
            // Only a stream that is over refuses credit, and then nobody needs it.
            let _ = self.recv.flow_control().release_capacity(taken);
            return Poll::Ready(Ok(()));
        }
        match &self.ended {
            None => Poll::Pending,
            Some(Ok(())) => Poll::Ready(Ok(())),
            Some(Err(e)) => Poll::Ready(Err(e.clone().into())),
        }
    }
}

impl Drop for ReadHalf {
    fn drop(&mut self) {
        // What was taken in and never read would be missing from the connection's window for ever.
        let _ = self.recv.flow_control().release_capacity(self.waiting);
    }
}

impl fmt::Debug for ReadHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadHalf")
            .field("waiting", &self.waiting)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

/// The direction to the peer. Dropped before it was shut, it resets the stream.
pub struct WriteHalf {
    send: SendStream<Bytes>,
    finished: bool,
    line: Arc<Line>,
    _lease: Option<Arc<Lease>>,
}

impl WriteHalf {
    /// Why the stream takes no more.
    fn closed(&mut self, cx: &mut Context<'_>) -> io::Error {
        match self.send.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => StreamError::Reset { code: reason.into() }.into(),
            Poll::Ready(Err(e)) => StreamError::new(&e, &self.line).into(),
            Poll::Pending => StreamError::Lost {
                source: self.line.reason(),
            }
            .into(),
        }
    }
}

impl AsyncWrite for WriteHalf {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.finished {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "the write side was shut")));
        }
        if buf.is_empty() {
            // An empty DATA frame is never sent: peers count them against the whole tunnel.
            return match self.send.poll_reset(cx) {
                Poll::Pending => Poll::Ready(Ok(0)),
                Poll::Ready(_) => Poll::Ready(Err(self.closed(cx))),
            };
        }
        let want = buf.len().min(LARGEST_WRITE);
        self.send.reserve_capacity(want);
        loop {
            let room = self.send.capacity().min(want);
            if room > 0 {
                let sent = self.send.send_data(Bytes::copy_from_slice(&buf[..room]), false);
                return Poll::Ready(match sent {
                    Ok(()) => Ok(room),
                    Err(_) => Err(self.closed(cx)),
                });
            }
            match self.send.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Err(self.closed(cx))),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The tunnel's own task sends what was written, as soon as windows allow.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        if self.send.poll_reset(cx).is_ready() {
            return Poll::Ready(Err(self.closed(cx)));
        }
        match self.send.send_data(Bytes::new(), true) {
            Ok(()) => {
                self.finished = true;
                Poll::Ready(Ok(()))
            }
            Err(_) => Poll::Ready(Err(self.closed(cx))),
        }
    }
}

impl Drop for WriteHalf {
    fn drop(&mut self) {
        if !self.finished {
            self.send.send_reset(Reason::CONNECT_ERROR);
        }
    }
}

impl fmt::Debug for WriteHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteHalf")
            .field("finished", &self.finished)
            .finish_non_exhaustive()
    }
}

/// Why a stream ended otherwise than in good order.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The stream was reset: what it was relayed from or to has failed at the other end.
    #[error("the stream was reset with HTTP/2 code {code}: {}", Reason::from(*.code).description())]
    Reset {
        /// The HTTP/2 error code (RFC 9113 7).
        code: u32,
    },
    /// The whole tunnel is lost.
    #[error("{source}")]
    Lost {
        /// Why.
        source: TunnelLost,
    },
}

impl StreamError {
    /// The reason that an error of a [`Stream`] holds.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    pub(crate) fn new(error: &h2::Error, line: &Line) -> Self {
        match error.reason() {
            Some(reason) if error.is_reset() => Self::Reset { code: reason.into() },
            _ => Self::Lost {
                source: line.lost().cloned().unwrap_or_else(|| TunnelLost::from_h2(error)),
            },
        }
    }
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        Self::new(io::ErrorKind::ConnectionReset, error)
    }
}

/// Frames below this are gathered: kept one by one, each would hold a share of the buffer it was read into.
const SMALL: usize = 1 << 10;

/// The most that one write takes, so that a stream with much to say leaves room for others in the same poll.
const LARGEST_WRITE: usize = 256 << 10;
