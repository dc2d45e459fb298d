//! One direction of a relay.

use std::{
    io,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    Phase, RelayLimits,
    leg::{Buffer, Leg},
};
use crate::{proto::engine::Pieces, turns};

/// One direction.
pub(super) struct Way {
    buffer: Buffer,
    /// What is read and not yet written.
    pieces: Pieces,
    moved: u64,
    eof: bool,
    /// It did before the other direction.
    was_first: bool,
    done: bool,
    unflushed: bool,
}

/// How a direction fails.
pub(super) type Failed = (Phase, io::Error);

impl Way {
    /// One in which `moved` bytes have gone already.
    pub(super) fn new(moved: u64) -> Self {
        Self {
            buffer: Buffer::default(),
            pieces: Pieces::default(),
            moved,
            eof: false,
            was_first: false,
            done: false,
            unflushed: false,
        }
    }

    /// Bytes that the writer has taken.
    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    /// Whether the reader has ended in good order.
    pub(super) fn eof(&self) -> bool {
        self.eof
    }

    /// Whether that was before the other direction had.
    pub(super) fn was_first(&self) -> bool {
        self.was_first
    }

    /// To be called after each [poll](Self::poll), with the other direction.
    pub(super) fn compare(&mut self, other: &Self) {
        self.was_first |= self.eof && !other.was_first;
    }

    /// `writer_eof`: whether the writer has ended its own direction, so that nobody reads from it any more.
    pub(super) fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut Leg<'_, R>,
        writer: &mut Leg<'_, W>,
        writer_eof: bool,
        limits: &RelayLimits,
    ) -> Poll<Result<(), Failed>>
    where
        R: AsyncRead + AsyncWrite + Unpin + 'static,
        W: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        let before = self.moved;
        for _ in 0..TURNS {
            let moved = self.moved - before;
            if moved >= MUCH || moved > 0 && turns::is_over() {
                break;
            }
            if !self.pieces.is_empty() {
                match writer.poll_put(cx, &mut self.pieces) {
                    Poll::Ready(Ok(n)) => self.put(n, reader),
                    Poll::Ready(Err(e)) => return Poll::Ready(Err((Phase::Write, e))),
                    Poll::Pending => return held_up(cx, reader),
                }
            } else if self.eof {
                ready!(writer.poll_shutdown(cx)).map_err(|e| (Phase::Write, e))?;
                self.done = true;
                return Poll::Ready(Ok(()));
            } else {
                // Nothing is read that could not be passed on at once.
                let room = match writer.poll_room(cx) {
                    Poll::Ready(Ok(room)) => room,
                    Poll::Ready(Err(e)) => return Poll::Ready(Err((Phase::Write, e))),
                    Poll::Pending => return held_up(cx, reader),
                };
                match reader.poll_fetch(cx, &mut self.pieces, &mut self.buffer, room, limits) {
                    Poll::Ready(Ok(n)) => self.eof = n == 0,
                    Poll::Ready(Err(e)) => return Poll::Ready(Err((Phase::Read, e))),
                    Poll::Pending => return self.wait(cx, writer, writer_eof),
                }
            }
        }
        // Others on this thread want a turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Throws away what was read, and what comes; ready once the reader has ended. Not to be [polled](Self::poll) after that.
    #[cold]
    pub(super) fn poll_read_away<R>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut Leg<'_, R>,
        limits: &RelayLimits,
    ) -> Poll<Result<(), Failed>>
    where
        R: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let mut gone = 0;
        while gone < MUCH && !(gone > 0 && turns::is_over()) {
            let n = std::mem::take(&mut self.pieces).len();
            reader.give_back(n);
            gone += n as u64;
            let more = reader.poll_fetch(cx, &mut self.pieces, &mut self.buffer, usize::MAX, limits);
            if ready!(more).map_err(|e| (Phase::Read, e))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn put<R: AsyncRead + AsyncWrite + Unpin + 'static>(&mut self, n: usize, reader: &mut Leg<'_, R>) {
        self.moved += n as u64;
        turns::moved(n);
        self.unflushed = true;
        reader.give_back(n);
    }

    /// Nothing to read for now.
    fn wait<W: AsyncRead + AsyncWrite + Unpin + 'static>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut Leg<'_, W>,
        writer_eof: bool,
    ) -> Poll<Result<(), Failed>> {
        if self.unflushed {
            match writer.poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(e)) => return Poll::Ready(Err((Phase::Write, e))),
                Poll::Pending => {}
            }
        }
        // Nobody reads from the writer any more, so this is where its reset is seen.
        match writer_eof.then(|| writer.poll_write_failed(cx)) {
            Some(Poll::Ready(e)) => Poll::Ready(Err((Phase::Write, e))),
            _ => Poll::Pending,
        }
    }
}

/// The writer takes nothing for now. That the reader fails meanwhile may be told only once.
fn held_up<R: AsyncRead + AsyncWrite + Unpin + 'static>(cx: &mut Context<'_>, reader: &mut Leg<'_, R>) -> Poll<Result<(), Failed>> {
    match reader.poll_read_failed(cx) {
        Poll::Ready(e) => Poll::Ready(Err((Phase::Read, e))),
        Poll::Pending => Poll::Pending,
    }
}

/// Reads and writes of one direction before others get a turn.
const TURNS: u32 = 32;

/// Bytes of one direction after which others get a turn: a large read, and what it takes to open or seal it is a tunnel's.
const MUCH: u64 = 256 << 10;
