//! A duplex byte stream in a tunnel.

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll, ready},
};

use ambient_core::SpiffeId;
use bytes::Bytes;
use http::HeaderMap;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    TunnelLost,
    pool::Lease,
    proto::{
        code::Code,
        engine::{Cut, Pieces},
    },
    tunnel::{Held, Line},
};

/// A duplex byte stream in a tunnel, after its CONNECT was accepted.
///
/// - Shutting the write side sends END_STREAM, as FIN does for TCP; the other direction goes on. Reading ends (0 bytes)
///   only when the peer did the same.
/// - What else ends it is an [`io::Error`] of the kind `ConnectionReset` that holds a [`StreamError`]: see
///   [`StreamError::of`].
/// - Dropped after its write side was shut, it is still sent what it took, as a socket is that is closed, for as long as the peer takes
///   some of it within two minutes. What then is not sent is lost and the stream reset, and the observer alone is told:
///   [`Event::StreamsGivenUp`](ambient_core::observe::Event::StreamsGivenUp).
/// - Dropped before its write side was shut, it is reset with CONNECT_ERROR ([RFC 9113 8.5]) and what was not sent yet
///   is discarded, so that a truncated transfer never looks complete. Not with CANCEL, which there are peers that pass
///   on as an orderly end.
/// - Bytes wait here up to its window, which [grows](crate::Limits::stream_window_max) while they are read as fast as
///   they come; the peer may send more only as they are read.
///
/// An empty write succeeds, registers, and fails once the peer has reset the stream: [`relay`](crate::relay()) uses that
/// while it waits for its other side, and hands the bytes of a `Stream` on without copying them.
///
/// [RFC 9113 8.5]: https://www.rfc-editor.org/rfc/rfc9113#section-8.5
#[derive(Debug)]
pub struct Stream {
    read: ReadHalf,
    write: WriteHalf,
    /// Apart, and only where there are any: most streams stand idle.
    headers: Option<Box<HeaderMap>>,
    early: u64,
}

impl Stream {
    /// One that was accepted here.
    pub(crate) fn accepted(held: Held) -> Self {
        Self::new(held, None)
    }

    /// One that was opened here: `early` bytes have gone along with the request, and perhaps the end.
    pub(crate) fn opened(held: Held, headers: HeaderMap, early: u64, finished: bool, lease: Lease) -> Self {
        let mut stream = Self::new(held, Some(lease));
        stream.headers = (!headers.is_empty()).then(|| Box::new(headers));
        stream.early = early;
        stream.write.finished = finished;
        stream
    }

    fn new(held: Held, lease: Option<Lease>) -> Self {
        let lease = lease.map(Arc::new);
        let read = ReadHalf {
            held: held.clone(),
            taken: None,
            lease: lease.clone(),
        };
        let write = WriteHalf {
            held,
            finished: false,
            _lease: lease,
        };
        Self {
            read,
            write,
            headers: None,
            early: 0,
        }
    }

    /// The headers that the other end sent with its answer. None of a stream that was accepted here:
    /// [`Request::headers`](crate::Request::headers) tells what came with its CONNECT.
    pub fn headers(&self) -> &HeaderMap {
        self.headers.as_deref().unwrap_or(&NO_HEADERS)
    }

    /// Gives the headers away: they may be hundreds of bytes, which a stream holds as long as it stands.
    pub fn take_headers(&mut self) -> HeaderMap {
        self.headers.take().map(|headers| *headers).unwrap_or_default()
    }

    /// Whom the peer has proven to be: of the identities that were accepted the one that it is. `None` of a stream that was
    /// accepted here, whose [`Session`](crate::Session) tells it.
    pub fn peer(&self) -> Option<&SpiffeId> {
        self.read.lease.as_ref().map(|lease| lease.peer())
    }

    /// The two directions, to be used by two tasks.
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        (self.read, self.write)
    }

    /// Bytes that went along with the request, for whoever counts; once.
    pub(crate) fn take_early(&mut self) -> u64 {
        std::mem::take(&mut self.early)
    }

    pub(crate) fn halves(&mut self) -> (&mut ReadHalf, &mut WriteHalf) {
        (&mut self.read, &mut self.write)
    }
}

static NO_HEADERS: LazyLock<HeaderMap> = LazyLock::new(HeaderMap::new);

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
    held: Held,
    /// What was taken from the tunnel and did not fit into the last read. Apart, since a relay takes all that there is.
    taken: Option<Box<Pieces>>,
    lease: Option<Arc<Lease>>,
}

impl ReadHalf {
    /// The next pieces, whole; none when the peer has ended its direction. [Credit](Self::give_back) is the caller's to
    /// give back.
    pub(crate) fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<Result<Pieces, StreamError>> {
        if let Some(taken) = &mut self.taken
            && !taken.is_empty()
        {
            return Poll::Ready(Ok(std::mem::take(&mut **taken)));
        }
        let Held { line, key } = &self.held;
        let taken = ready!(line.engine().poll_take(*key, cx));
        Poll::Ready(taken.map_err(|cut| StreamError::new(cut, line)))
    }

    /// `n` bytes have found their reader.
    pub(crate) fn give_back(&mut self, n: usize) {
        self.held.line.engine().give_back(self.held.key, n);
    }

    /// Ready once reading fails, which it may not where writing does.
    pub(crate) fn poll_failed(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let Held { line, key } = &self.held;
        let cut = ready!(line.engine().poll_unreadable(*key, cx));
        Poll::Ready(StreamError::new(cut, line))
    }

    /// Whether the peer, a server, has reset the stream behind its end: all that it said is there to be read.
    pub(crate) fn has_last_words(&self) -> bool {
        self.held.line.engine().has_last_words(self.held.key)
    }
}

impl AsyncRead for ReadHalf {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut pieces = ready!(self.poll_take(cx))?;
        let n = buf.remaining().min(pieces.len());
        pieces.take(n, |piece| buf.put_slice(&piece));
        if !pieces.is_empty() {
            // There is a place from the first time on.
            **self.taken.get_or_insert_default() = pieces;
        }
        if n > 0 {
            self.give_back(n);
        }
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for ReadHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadHalf").field("stream", &self.held.key).finish_non_exhaustive()
    }
}

/// The direction to the peer. Dropped before it was shut, it resets the stream.
pub struct WriteHalf {
    held: Held,
    finished: bool,
    _lease: Option<Arc<Lease>>,
}

impl WriteHalf {
    /// How much may be [sent](Self::send), once anything may.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, StreamError>> {
        let Held { line, key } = &self.held;
        let room = ready!(line.engine().poll_room(*key, cx));
        Poll::Ready(room.map_err(|cut| StreamError::new(cut, line)))
    }

    /// Sends bytes as they are; no more than there is [room](Self::poll_room) for.
    pub(crate) fn send(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        let Held { line, key } = &self.held;
        let sent = line.engine().send(*key, bytes);
        sent.map_err(|cut| StreamError::new(cut, line))
    }

    /// Ends this direction behind all that was sent.
    pub(crate) fn finish(&mut self) -> Result<(), StreamError> {
        if self.finished {
            return Ok(());
        }
        let Held { line, key } = &self.held;
        let finished = line.engine().finish(*key);
        finished.map_err(|cut| StreamError::new(cut, line))?;
        self.finished = true;
        Ok(())
    }

    /// Ready once the stream has been reset.
    pub(crate) fn poll_failed(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let Held { line, key } = &self.held;
        let cut = ready!(line.engine().poll_cut(*key, cx));
        Poll::Ready(StreamError::new(cut, line))
    }
}

impl AsyncWrite for WriteHalf {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.finished {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "the write side was shut")));
        }
        if buf.is_empty() {
            return match self.poll_failed(cx) {
                Poll::Pending => Poll::Ready(Ok(0)),
                Poll::Ready(e) => Poll::Ready(Err(e.into())),
            };
        }
        let room = ready!(self.poll_room(cx))?.min(buf.len());
        self.send(Bytes::copy_from_slice(&buf[..room]))?;
        Poll::Ready(Ok(room))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The tunnel's own task sends what was written, as soon as windows allow.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.finish().map_err(io::Error::from))
    }
}

impl Drop for WriteHalf {
    fn drop(&mut self) {
        if !self.finished {
            self.held.cut(Code::CONNECT_ERROR);
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
    #[error("the stream was reset with HTTP/2 code {}", Code(*.code))]
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

    pub(crate) fn new(cut: Cut, line: &Line) -> Self {
        let code = match cut {
            Cut::ByPeer(code) | Cut::Here(code) => code,
            Cut::Unprocessed => Code::REFUSED_STREAM,
            Cut::Lost => return Self::Lost { source: line.reason() },
        };
        Self::Reset { code: code.0 }
    }
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        Self::new(io::ErrorKind::ConnectionReset, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::Relaying;

    /// Most stand idle, with a relay each.
    #[test]
    fn a_stream_and_its_relay_are_small() {
        assert!(size_of::<Stream>() <= 80, "{}", size_of::<Stream>());
        assert!(size_of::<Relaying>() <= 184, "{}", size_of::<Relaying>());
    }
}
