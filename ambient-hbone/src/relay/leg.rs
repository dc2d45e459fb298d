//! The ends of a relay: a stream of a tunnel or a pipe, whose bytes change hands, or anything else, whose bytes are copied.

use std::{
    any::Any,
    future::Future,
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::RelayLimits;
use crate::{Pipe, Stream, proto::engine::Pieces};

/// One end, for a moment.
pub(super) enum Leg<'l, T> {
    Stream(&'l mut Stream),
    Pipe(&'l mut Pipe),
    Io(&'l mut T),
}

impl<'l, T: AsyncRead + AsyncWrite + Unpin + 'static> Leg<'l, T> {
    pub(super) fn of(end: &'l mut T) -> Self {
        let whole = &*end as &dyn Any;
        match (whole.is::<Stream>(), whole.is::<Pipe>()) {
            (true, _) => Self::Stream(cast(end)),
            (_, true) => Self::Pipe(cast(end)),
            _ => Self::Io(end),
        }
    }

    /// Bytes that went to it before it was a stream, counted once.
    pub(super) fn take_early(&mut self) -> u64 {
        match self {
            Self::Stream(stream) => stream.take_early(),
            Self::Pipe(_) | Self::Io(_) => 0,
        }
    }

    /// Reads on into `pieces`, no more than `most` bytes unless they are there already; none says that it has ended.
    pub(super) fn poll_fetch(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &mut Pieces,
        buffer: &mut Buffer,
        most: usize,
        limits: &RelayLimits,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Stream(stream) => {
                *pieces = ready!(stream.halves().0.poll_take(cx))?;
                Poll::Ready(Ok(pieces.len()))
            }
            Self::Pipe(pipe) => {
                *pieces = ready!(pipe.poll_take(cx))?;
                Poll::Ready(Ok(pieces.len()))
            }
            Self::Io(io) => {
                let read = ready!(buffer.poll_read(cx, io, most, limits))?;
                let n = read.len();
                pieces.push(read);
                Poll::Ready(Ok(n))
            }
        }
    }

    /// `n` bytes that were fetched have found their reader.
    pub(super) fn give_back(&mut self, n: usize) {
        if let Self::Stream(stream) = self {
            stream.halves().0.give_back(n);
        }
    }

    /// Whether reading would fail, where that can be told without reading.
    pub(super) fn poll_read_failed(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match self {
            Self::Stream(stream) => stream.halves().0.poll_failed(cx).map(io::Error::from),
            Self::Pipe(pipe) => pipe.poll_read_failed(cx),
            Self::Io(io) => match Pin::new(io).poll_read(cx, &mut ReadBuf::new(&mut [])) {
                Poll::Ready(Err(e)) => Poll::Ready(e),
                _ => Poll::Pending,
            },
        }
    }

    /// Why what it has taken to its end did not all go on from there, as far as it is known to have not.
    pub(super) fn lost(&mut self, cx: &mut Context<'_>) -> Option<io::Error> {
        match self {
            Self::Stream(stream) => match stream.halves().1.poll_failed(cx) {
                Poll::Ready(error) => Some(error.into()),
                Poll::Pending => None,
            },
            Self::Pipe(_) | Self::Io(_) => None,
        }
    }

    /// Whether nothing can be written to it any more, and yet all of it can be read, to its end.
    pub(super) fn has_last_words(&mut self) -> bool {
        match self {
            Self::Stream(stream) => stream.halves().0.has_last_words(),
            Self::Pipe(_) | Self::Io(_) => false,
        }
    }

    /// How many bytes may be put, once any may.
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match self {
            Self::Stream(stream) => stream.halves().1.poll_room(cx).map_err(io::Error::from),
            Self::Pipe(pipe) => pipe.poll_room(cx),
            Self::Io(_) => Poll::Ready(Ok(usize::MAX)),
        }
    }

    /// Takes bytes away from the front of `pieces`, which has some, and says how many.
    pub(super) fn poll_put(&mut self, cx: &mut Context<'_>, pieces: &mut Pieces) -> Poll<io::Result<usize>> {
        match self {
            Self::Stream(stream) => {
                let (_, write) = stream.halves();
                let n = ready!(write.poll_room(cx))?.min(pieces.len());
                let mut sent = Ok(());
                pieces.take(n, |piece| {
                    sent = std::mem::replace(&mut sent, Ok(())).and_then(|()| write.send(piece))
                });
                sent?;
                Poll::Ready(Ok(n))
            }
            Self::Pipe(pipe) => {
                let n = ready!(pipe.poll_room(cx))?.min(pieces.len());
                pipe.put(pieces, n)?;
                Poll::Ready(Ok(n))
            }
            Self::Io(io) if !pieces.is_single() && io.is_write_vectored() => {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let count = pieces.slices(&mut slices);
                let n = ready!(Pin::new(io).poll_write_vectored(cx, &slices[..count]))?;
                put(pieces, n)
            }
            Self::Io(io) => {
                let n = ready!(Pin::new(io).poll_write(cx, pieces.front()))?;
                put(pieces, n)
            }
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Stream(_) | Self::Pipe(_) => Poll::Ready(Ok(())),
            Self::Io(io) => Pin::new(io).poll_flush(cx),
        }
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Stream(stream) => Poll::Ready(stream.halves().1.finish().map_err(io::Error::from)),
            Self::Pipe(pipe) => Poll::Ready(pipe.finish()),
            Self::Io(io) => Pin::new(io).poll_shutdown(cx),
        }
    }

    /// Whether writing would fail, where that can be told without writing.
    pub(super) fn poll_write_failed(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match self {
            Self::Stream(stream) => stream.halves().1.poll_failed(cx).map(io::Error::from),
            Self::Pipe(pipe) => pipe.poll_write_failed(cx),
            Self::Io(io) => match Pin::new(io).poll_write(cx, &[]) {
                Poll::Ready(Err(e)) => Poll::Ready(e),
                _ => Poll::Pending,
            },
        }
    }
}

/// As the type that it was found to be.
fn cast<T: 'static, U: 'static>(end: &mut T) -> &mut U {
    match (end as &mut dyn Any).downcast_mut() {
        Some(end) => end,
        None => unreachable!("its type was asked for just before"),
    }
}

fn put(pieces: &mut Pieces, n: usize) -> Poll<io::Result<usize>> {
    if n == 0 {
        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
    }
    pieces.advance(n);
    Poll::Ready(Ok(n))
}

/// What a connection is read into: while it has little to say, a place on the stack, so that an idle one holds nothing;
/// while it fills that, larger and larger buffers of its own, which it gives away filled.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    /// Apart, and only for those who fill the place on the stack: each relay has room for two of these.
    large: Option<Box<Large>>,
}

/// A buffer of one that has much to say.
#[derive(Debug)]
struct Large {
    bytes: BytesMut,
    /// There is one, be it that all of it was given away: it can be had again then.
    held: bool,
    /// Of the next buffer.
    size: usize,
    /// Reads in a row that the stack would have held.
    small: u32,
}

impl Buffer {
    /// Reads at most `most` bytes, within the bounds of `limits`, which are the same each time; none says that `io` has ended.
    pub(crate) fn poll_read<T: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut T,
        most: usize,
        limits: &RelayLimits,
    ) -> Poll<io::Result<Bytes>> {
        let largest = limits.largest();
        let most = most.min(largest);
        let Some(large) = &mut self.large else {
            let mut place = [MaybeUninit::uninit(); FIRST];
            let mut place = ReadBuf::uninit(&mut place[..most.min(FIRST)]);
            ready!(Pin::new(io).poll_read(cx, &mut place))?;
            if place.remaining() == 0 {
                self.large = Some(Box::new(Large {
                    bytes: BytesMut::new(),
                    held: false,
                    size: (FIRST * GROWTH).min(largest),
                    small: 0,
                }));
            }
            return Poll::Ready(Ok(Bytes::copy_from_slice(place.filled())));
        };
        let read = ready!(large.poll_read(cx, io, most, limits));
        if large.small == SMALL_READS {
            large.rest(limits);
            self.large = None;
        }
        Poll::Ready(read)
    }
}

impl Large {
    fn poll_read<T: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut T,
        most: usize,
        limits: &RelayLimits,
    ) -> Poll<io::Result<Bytes>> {
        if self.bytes.capacity() < self.size / GROWTH && !self.bytes.try_reclaim(self.size) {
            self.rest(limits);
            (self.bytes, self.held) = (limits.buffers.take(self.size), true);
        }
        let room = self.bytes.capacity().min(most);
        let mut limited = (&mut self.bytes).limit(room);
        let Poll::Ready(read) = pin!(io.read_buf(&mut limited)).poll(cx) else {
            self.rest(limits);
            return Poll::Pending;
        };
        let n = read?;
        let bytes = self.bytes.split().freeze();
        if n == self.size {
            self.size = (self.size * GROWTH).min(limits.largest());
        }
        self.small = if n <= FIRST { self.small + 1 } else { 0 };
        Poll::Ready(Ok(bytes))
    }

    /// Nothing comes for now, or ever: an idle connection keeps no memory.
    fn rest(&mut self, limits: &RelayLimits) {
        let bytes = std::mem::take(&mut self.bytes);
        if std::mem::take(&mut self.held) {
            limits.buffers.keep(bytes);
        }
    }
}

/// The place on the stack: most connections never need more.
pub(super) const FIRST: usize = 4 << 10;

/// By how much buffers grow.
const GROWTH: usize = 4;

/// So many small reads in a row say that a connection has little to carry for now.
const SMALL_READS: u32 = 64;

/// Slices in one write: what a tunnel reads at once comes in pieces of a record each.
const SLICES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives as much as is asked for, up to so much.
    struct Source(usize);

    impl AsyncRead for Source {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            if self.0 == 0 {
                return Poll::Pending;
            }
            let n = buf.remaining().min(self.0);
            buf.put_slice(&vec![7; n]);
            Poll::Ready(Ok(()))
        }
    }

    fn read(limits: &RelayLimits, buffer: &mut Buffer, most: usize, source: usize) -> Option<usize> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match buffer.poll_read(&mut cx, &mut Source(source), most, limits) {
            Poll::Ready(bytes) => Some(bytes.unwrap().len()),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_buffer_grows_for_those_who_fill_it_and_is_gone_when_they_rest() {
        let (mut buffer, limits) = (Buffer::default(), RelayLimits::default());
        let sizes: Vec<_> = (0..6)
            .map(|_| read(&limits, &mut buffer, usize::MAX, usize::MAX).unwrap())
            .collect();
        assert_eq!(sizes, [4 << 10, 16 << 10, 64 << 10, 256 << 10, 256 << 10, 256 << 10]);
        assert_eq!(read(&limits, &mut buffer, usize::MAX, 0), None);
        let resting = buffer.large.as_ref().unwrap();
        assert_eq!((resting.bytes.capacity(), resting.size), (0, 256 << 10));
        for _ in 0..SMALL_READS {
            assert_eq!(read(&limits, &mut buffer, usize::MAX, 100), Some(100));
        }
        assert!(buffer.large.is_none());
    }

    #[test]
    fn a_buffer_of_nothing_has_room_all_the_same() {
        for buffer in [0, 1, 3, 4, 1000] {
            let limits = RelayLimits {
                buffer,
                ..RelayLimits::default()
            };
            let mut buffer = Buffer::default();
            for _ in 0..5 {
                assert_eq!(read(&limits, &mut buffer, usize::MAX, usize::MAX), Some(FIRST));
            }
        }
    }

    #[test]
    fn no_more_is_read_than_there_is_room_for() {
        let (mut buffer, limits) = (Buffer::default(), RelayLimits::default());
        for most in [1, 5000, 100_000, 1] {
            for _ in 0..3 {
                assert!(read(&limits, &mut buffer, most, usize::MAX).unwrap() <= most);
            }
        }
    }
}
