//! Bytes between two duplex streams, both ways, with exact ends.

use std::{
    fmt,
    future::poll_fn,
    io,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, timeout},
};

use self::{leg::Leg, refused::Refused, way::Way};

use crate::proto::engine::Buffers;

mod leg;
mod refused;
mod way;

pub(crate) use leg::Buffer;

/// Copies from `a` to `b` and from `b` to `a` until both have ended or one has failed, and says what it did.
///
/// By convention `a` is who opened the connection. The end of one direction is passed on by shutting the other stream's
/// write side, and the other direction goes on. After [`End::Failed`] both streams are for the caller to reset: bytes may
/// be missing on either side, so that an orderly close would be a lie.
///
/// Where `b` is a stream whose server has said all and takes no more, as one does that answers before it was told all, what it said goes
/// to `a` first, for as long as `a` takes some of it within 30 s; what `a` says meanwhile is read away.
///
/// Where an end is a [`Stream`](crate::Stream) or a [`Pipe`](crate::Pipe) itself, and not something around it, its bytes are handed
/// on without a copy, and a stream's credit is given back only when the other end has taken them.
///
/// # Cancel safety
/// Dropping the future leaves both streams with the caller; bytes that were read and not yet written are lost, so that
/// both should be reset.
pub async fn relay<A, B>(a: &mut A, b: &mut B, limits: &RelayLimits) -> Tally
where
    A: AsyncRead + AsyncWrite + Unpin + 'static,
    B: AsyncRead + AsyncWrite + Unpin + 'static,
{
    relay_counted(a, b, limits, &Progress::default()).await
}

/// The same, and counts into `progress` as bytes go: for whoever wants to know while it runs, or after dropping it.
pub async fn relay_counted<A, B>(a: &mut A, b: &mut B, limits: &RelayLimits, progress: &Progress) -> Tally
where
    A: AsyncRead + AsyncWrite + Unpin + 'static,
    B: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut relaying = Relaying::new(a, b);
    poll_fn(|cx| relaying.poll(cx, a, b, limits, progress)).await
}

/// A relay for those who poll: all that one has of its own, and no more, as long as it stands.
pub struct Relaying {
    forth: Way,
    back: Way,
    start: Instant,
    first_byte: Option<Duration>,
    /// Apart: hardly any ever has one.
    refused: Option<Box<Refused>>,
}

impl Relaying {
    /// Begins one between two streams, which are given to it each time that it is [polled](Self::poll).
    pub fn new<A, B>(a: &mut A, b: &mut B) -> Self
    where
        A: AsyncRead + AsyncWrite + Unpin + 'static,
        B: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        Self {
            // What went along with a request has been delivered since.
            forth: Way::new(Leg::of(b).take_early()),
            back: Way::new(Leg::of(a).take_early()),
            start: Instant::now(),
            first_byte: None,
            refused: None,
        }
    }

    /// Moves what can be moved now, always with the same limits and progress, and says what it did once that is all; not to be polled
    /// after that. As [`relay_counted`], which does nothing else.
    pub fn poll<A, B>(&mut self, cx: &mut Context<'_>, a: &mut A, b: &mut B, limits: &RelayLimits, progress: &Progress) -> Poll<Tally>
    where
        A: AsyncRead + AsyncWrite + Unpin + 'static,
        B: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let end = ready!(self.poll_end(cx, a, b, limits, progress));
        Poll::Ready(Tally {
            a_to_b: self.forth.moved(),
            b_to_a: self.back.moved(),
            first_byte: self.first_byte,
            first_closed: self.first(),
            end,
        })
    }

    fn poll_end<A, B>(&mut self, cx: &mut Context<'_>, a: &mut A, b: &mut B, limits: &RelayLimits, progress: &Progress) -> Poll<End>
    where
        A: AsyncRead + AsyncWrite + Unpin + 'static,
        B: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let Self { forth, back, refused, .. } = self;
        // A failure of either direction ends both, before anything else is done: TCP tells of a reset once, and to whoever
        // asks after that it looks like an end. But what a stream's peer has said to its end before it would take no more, as a
        // server does that answers before it was told all, is passed on first.
        let mut is_pending = true;
        if refused.is_none() {
            let ahead = forth.poll(cx, &mut Leg::of(a), &mut Leg::of(b), back.eof(), limits);
            progress.a_to_b.store(forth.moved(), Ordering::Relaxed);
            is_pending = ahead.is_pending();
            match ahead {
                Poll::Ready(Err((Phase::Write, error))) if Leg::of(b).has_last_words() => *refused = Some(Refused::new(error)),
                Poll::Ready(Err((phase, error))) => return Poll::Ready(End::failed(Side::A, phase, error)),
                _ => {}
            }
            forth.compare(back);
        }
        let behind = back.poll(cx, &mut Leg::of(b), &mut Leg::of(a), forth.eof(), limits);
        progress.b_to_a.store(back.moved(), Ordering::Relaxed);
        let is_behind = behind.is_pending();
        if let Poll::Ready(Err((phase, error))) = behind {
            return Poll::Ready(End::failed(Side::B, phase, error));
        }
        back.compare(forth);
        if self.first_byte.is_none() && back.moved() > 0 {
            self.first_byte = Some(self.start.elapsed());
        }
        if self.refused.is_some() {
            return self.poll_refused(cx, &mut Leg::of(a), is_behind, limits);
        }
        if is_pending || is_behind {
            return Poll::Pending;
        }
        // A stream takes more than it has sent, and may have been reset since.
        let end = match (Leg::of(b).lost(cx), Leg::of(a).lost(cx)) {
            (Some(error), _) => End::failed(Side::A, Phase::Write, error),
            (None, Some(error)) => End::failed(Side::B, Phase::Write, error),
            (None, None) => End::Orderly {
                first: self.first().unwrap_or(Side::A),
            },
        };
        Poll::Ready(end)
    }

    /// Nothing more goes to `b`, whose last words may still wait for `a`.
    #[cold]
    fn poll_refused<A>(&mut self, cx: &mut Context<'_>, a: &mut Leg<'_, A>, is_behind: bool, limits: &RelayLimits) -> Poll<End>
    where
        A: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let Self { forth, back, refused, .. } = self;
        let waited = match refused {
            Some(refused) if is_behind => ready!(refused.poll_wait(cx, forth, a, back.moved(), limits)),
            _ => Ok(()),
        };
        let (phase, error) = match (waited, refused.take()) {
            (Ok(()), Some(refused)) => (Phase::Write, refused.into_error()),
            (Ok(()), None) => (Phase::Write, io::ErrorKind::ConnectionReset.into()),
            (Err(failed), _) => failed,
        };
        Poll::Ready(End::failed(Side::A, phase, error))
    }

    /// Which side ended its direction first.
    fn first(&self) -> Option<Side> {
        match (self.forth.was_first(), self.back.was_first()) {
            (true, _) => Some(Side::A),
            (false, true) => Some(Side::B),
            (false, false) => None,
        }
    }
}

impl fmt::Debug for Relaying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relaying")
            .field("a_to_b", &self.forth.moved())
            .field("b_to_a", &self.back.moved())
            .finish_non_exhaustive()
    }
}

/// The bounds of a relay, and the buffers that relays with clones of it hand on to each other: at most 16 of them are kept.
/// One for all relays of a thread serves best.
///
/// There is no limit on its duration, nor on silence: a connection may be idle for days. Only what `b` has said to its end before it
/// would take no more waits no longer than 30 s for `a` to take some of it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RelayLimits {
    /// Bytes of one read, at most; taken as 4 KiB where it is less. A connection reads 4 KiB at first, more while it fills what it is given, and holds no
    /// buffer while it is idle. 256 KiB.
    pub buffer: usize,
    /// Where buffers come from and go to; clones share it.
    pub(crate) buffers: Buffers,
}

impl RelayLimits {
    /// The largest buffer. There is room in it whatever was asked for: a read into none looks like an end.
    fn largest(&self) -> usize {
        self.buffer.max(leg::FIRST)
    }
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            buffer: 256 << 10,
            buffers: Buffers::default(),
        }
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
    /// Both sides ended their directions, and every byte was handed on. A stream has not sent all that it took, perhaps; what is known by
    /// then to be lost is a failure.
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

/// Ends a connection as an empty reply: shuts the write side, then reads away what comes, at most 64 KiB within 1 s or
/// until the other end's FIN. Bytes left unread would turn the close into a reset.
///
/// # Panics
/// Outside of a runtime of tokio that has time (`enable_time`).
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

#[cfg(test)]
mod tests;
