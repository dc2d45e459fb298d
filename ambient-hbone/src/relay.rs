//! Bytes between two duplex streams, both ways, with exact ends.

use std::{
    fmt,
    future::poll_fn,
    io,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::{Instant, timeout},
};

/// Copies from `a` to `b` and from `b` to `a` until both have ended or one has failed, and says what it did.
///
/// By convention `a` is who opened the connection. The end of one direction is passed on by shutting the other stream's
/// write side, and the other direction goes on. After [`End::Failed`] both streams are for the caller to reset: bytes may
/// be missing on either side, so that an orderly close would be a lie.
///
/// # Cancel safety
/// Dropping the future leaves both streams with the caller; bytes that were read and not yet written are lost, so that
/// both should be reset.
pub async fn relay<A, B>(a: &mut A, b: &mut B, limits: &RelayLimits) -> Tally
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    relay_counted(a, b, limits, &Progress::default()).await
}

/// The same, and counts into `progress` as bytes go: for whoever wants to know while it runs, or after dropping it.
pub async fn relay_counted<A, B>(a: &mut A, b: &mut B, limits: &RelayLimits, progress: &Progress) -> Tally
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let start = Instant::now();
    let mut forth = Way::new(limits);
    let mut back = Way::new(limits);
    let mut first = None;
    let mut first_byte = None;
    let end = poll_fn(|cx| {
        // A failure of either direction ends both, before anything else is done: TCP tells of a reset once, and to whoever
        // asks after that it looks like an end.
        let ahead = forth.poll(cx, a, b, back.eof);
        progress.a_to_b.store(forth.moved, Ordering::Relaxed);
        if let Poll::Ready(Err((phase, error))) = ahead {
            return Poll::Ready(End::failed(Side::A, phase, error));
        }
        if forth.eof {
            first.get_or_insert(Side::A);
        }
        let behind = back.poll(cx, b, a, forth.eof);
        progress.b_to_a.store(back.moved, Ordering::Relaxed);
        if let Poll::Ready(Err((phase, error))) = behind {
            return Poll::Ready(End::failed(Side::B, phase, error));
        }
        if back.eof {
            first.get_or_insert(Side::B);
        }
        if first_byte.is_none() && back.moved > 0 {
            first_byte = Some(start.elapsed());
        }
        if ahead.is_pending() || behind.is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(End::Orderly {
            first: first.unwrap_or(Side::A),
        })
    })
    .await;
    Tally {
        a_to_b: forth.moved,
        b_to_a: back.moved,
        first_byte,
        first_closed: first,
        end,
    }
}

/// The bounds of a relay. There is no limit on its duration, nor on silence: a connection may be idle for days.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RelayLimits {
    /// Bytes of the buffer of each direction, at most: it starts at 4 KiB, grows for those who fill it, and becomes small
    /// again when they no longer come near. 256 KiB.
    pub buffer: usize,
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self { buffer: 256 << 10 }
    }
}

/// What a relay has moved so far.
#[derive(Debug, Default)]
pub struct Progress {
    a_to_b: AtomicU64,
    b_to_a: AtomicU64,
}

impl Progress {
    /// Bytes that `b` has taken.
    pub fn a_to_b(&self) -> u64 {
        self.a_to_b.load(Ordering::Relaxed)
    }

    /// Bytes that `a` has taken.
    pub fn b_to_a(&self) -> u64 {
        self.b_to_a.load(Ordering::Relaxed)
    }
}

/// What a relay did.
#[derive(Debug)]
#[non_exhaustive]
pub struct Tally {
    /// Bytes that `b` took.
    pub a_to_b: u64,
    /// Bytes that `a` took.
    pub b_to_a: u64,
    /// From the start until `a` took a first byte; none if it never did.
    pub first_byte: Option<Duration>,
    /// Which side ended its direction first in good order, if any did.
    pub first_closed: Option<Side>,
    /// How it ended.
    pub end: End,
}

/// How a relay ended.
#[derive(Debug)]
pub enum End {
    /// Both sides ended their directions, and every byte was passed on.
    Orderly {
        /// Which ended first.
        first: Side,
    },
    /// One side failed: bytes may be missing.
    Failed {
        /// Which.
        side: Side,
        /// Whether it failed while it was read from or written to.
        phase: Phase,
        /// How.
        error: io::Error,
    },
}

impl End {
    /// Of the direction from `reader`, which is also what a failed read fails on.
    fn failed(reader: Side, phase: Phase, error: io::Error) -> Self {
        let side = match phase {
            Phase::Read => reader,
            Phase::Write => reader.other(),
        };
        Self::Failed { side, phase, error }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Orderly { .. } => f.write_str("both sides ended in good order"),
            Self::Failed {
                phase: Phase::Read, error, ..
            } => write!(f, "receive: {error}"),
            Self::Failed {
                phase: Phase::Write,
                error,
                ..
            } => write!(f, "send: {error}"),
        }
    }
}

/// One of the two streams of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The first: who opened the connection.
    A,
    /// The second.
    B,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// What was done when a side failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It was read from.
    Read,
    /// It was written to, or its write side shut.
    Write,
}

/// One direction.
struct Way {
    buffer: Vec<u8>,
    most: usize,
    /// What of the buffer is read and not yet written.
    from: usize,
    to: usize,
    moved: u64,
    eof: bool,
    done: bool,
    unflushed: bool,
    /// Reads in a row that would not have filled the smallest buffer.
    small: u32,
}

impl Way {
    fn new(limits: &RelayLimits) -> Self {
        let most = limits.buffer.max(1);
        Self {
            buffer: vec![0; most.min(FIRST)],
            most,
            from: 0,
            to: 0,
            moved: 0,
            eof: false,
            done: false,
            unflushed: false,
            small: 0,
        }
    }

    fn poll<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W, writer_eof: bool) -> Poll<Result<(), (Phase, io::Error)>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..TURNS {
            if self.from < self.to {
                match Pin::new(&mut *writer).poll_write(cx, &self.buffer[self.from..self.to]) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err((Phase::Write, io::ErrorKind::WriteZero.into()))),
                    Poll::Ready(Ok(n)) => {
                        self.from += n;
                        self.moved += n as u64;
                        self.unflushed = true;
                    }
                    Poll::Ready(Err(e)) => return Poll::Ready(Err((Phase::Write, e))),
                    Poll::Pending => {
                        // Lets a stream of a tunnel take in its small frames, which cost the whole tunnel while they
                        // wait outside; to others it is nothing, but for an error, which may be told only once.
                        return match Pin::new(&mut *reader).poll_read(cx, &mut ReadBuf::new(&mut [])) {
                            Poll::Ready(Err(e)) => Poll::Ready(Err((Phase::Read, e))),
                            _ => Poll::Pending,
                        };
                    }
                }
            } else if self.eof {
                let shut = ready!(Pin::new(&mut *writer).poll_shutdown(cx));
                self.done = true;
                // An idle direction keeps no memory.
                self.buffer = Vec::new();
                return Poll::Ready(shut.map_err(|e| (Phase::Write, e)));
            } else {
                let mut buf = ReadBuf::new(&mut self.buffer);
                match Pin::new(&mut *reader).poll_read(cx, &mut buf) {
                    Poll::Ready(Ok(())) => {
                        let n = buf.filled().len();
                        self.filled(n);
                    }
                    Poll::Ready(Err(e)) => return Poll::Ready(Err((Phase::Read, e))),
                    Poll::Pending => return self.wait(cx, writer, writer_eof),
                }
            }
        }
        // Others on this thread want a turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// `n` bytes were read; the buffer holds none that are not written.
    fn filled(&mut self, n: usize) {
        (self.from, self.to) = (0, n);
        self.eof = n == 0;
        self.small = if n < FIRST { self.small.saturating_add(1) } else { 0 };
        if n == self.buffer.len() && n < self.most {
            self.buffer.resize((n * 4).min(self.most), 0);
        } else if self.small >= SMALL_READS && self.buffer.len() > FIRST {
            self.buffer.truncate(FIRST);
            self.buffer.shrink_to_fit();
        }
    }

    /// Nothing to read for now.
    fn wait<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
        writer_eof: bool,
    ) -> Poll<Result<(), (Phase, io::Error)>> {
        if self.unflushed {
            match Pin::new(&mut *writer).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(e)) => return Poll::Ready(Err((Phase::Write, e))),
                Poll::Pending => {}
            }
        }
        // Nobody reads from the writer any more, so this is where its reset is seen.
        match writer_eof.then(|| Pin::new(writer).poll_write(cx, &[])) {
            Some(Poll::Ready(Err(e))) => Poll::Ready(Err((Phase::Write, e))),
            _ => Poll::Pending,
        }
    }
}

/// Ends a connection as an empty reply: shuts the write side, then reads away what comes, at most 64 KiB within 1 s or
/// until the other end's FIN. Bytes left unread would turn the close into a reset.
pub async fn refuse_quietly<S>(stream: &mut S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let read_away = async {
        // Whoever has gone already needs no reply.
        if stream.shutdown().await.is_ok() {
            let _ = tokio::io::copy(&mut stream.take(64 << 10), &mut tokio::io::sink()).await;
        }
    };
    let _ = timeout(Duration::from_secs(1), read_away).await;
}

/// Reads and writes of one direction before others get a turn.
const TURNS: u32 = 32;

/// So many small reads in a row say that a connection has little to carry for now.
const SMALL_READS: u32 = 64;

/// The first size of a buffer: most connections never need more.
const FIRST: usize = 4 << 10;

#[cfg(test)]
mod tests;
