//! Moves a tunnel's bytes between its engine and TLS.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncBufRead, AsyncWrite},
    time::Instant,
};
use tokio_rustls::TlsStream;

use crate::{
    BoxedIo, TunnelLost,
    proto::{
        code::Code,
        engine::{Broken, Frames},
    },
    tunnel::Line,
};

/// TLS as a tunnel has it.
pub(crate) type Wire = TlsStream<BoxedIo>;

/// Drives one end of a tunnel: reads all that has come, then writes all that is to go, gathered, and through to the socket.
///
/// TLS may hold bytes of a write that was larger than what the socket took; nobody else would ever ask for them. So a
/// write counts as done only when TLS was flushed behind it.
pub(crate) struct Driver {
    wire: Wire,
    line: Arc<Line>,
    frames: Frames,
    unflushed: bool,
    reads: u64,
    began: Instant,
    /// All streams have ended and both ends know: what is left is to close TLS.
    closing: bool,
    /// Says something before the peer has: a server does not, since a client's preface comes at once (RFC 9113 3.4), and
    /// what answers it goes along with its own.
    speaks: bool,
}

impl Driver {
    pub(crate) fn new(mut wire: Wire, line: Arc<Line>) -> Self {
        // What one write may put into TLS before it is sent.
        match &mut wire {
            TlsStream::Client(tls) => tls.get_mut().1.set_buffer_limit(Some(TLS_BUFFER)),
            TlsStream::Server(tls) => tls.get_mut().1.set_buffer_limit(Some(TLS_BUFFER)),
        }
        Self {
            wire,
            line,
            frames: Frames::default(),
            unflushed: false,
            reads: 0,
            began: Instant::now(),
            closing: false,
            speaks: false,
        }
    }

    /// The same, for a client: it speaks first.
    pub(crate) fn speaking(wire: Wire, line: Arc<Line>) -> Self {
        Self {
            speaks: true,
            ..Self::new(wire, line)
        }
    }

    /// How many reads have brought something.
    pub(crate) fn reads(&self) -> u64 {
        self.reads
    }

    /// Ready once the tunnel is lost, for the reason that [`Line::lose`] is then to be told.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<TunnelLost> {
        for _ in 0..TURNS {
            match self.poll_turn(cx) {
                Ok(Poll::Ready(())) => {}
                Ok(Poll::Pending) => return Poll::Pending,
                Err(lost) => return Poll::Ready(self.because(lost)),
            }
        }
        // Others on this thread want a turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Drives it until the peer has greeted.
    pub(crate) fn poll_greeting(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelLost>> {
        if let Poll::Ready(lost) = self.poll(cx) {
            return Poll::Ready(Err(lost));
        }
        if self.line.engine().is_greeted() {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }

    /// Where the peer has said what it objects to, that is why the connection has ended, however it did.
    fn because(&self, lost: TunnelLost) -> TunnelLost {
        match self.line.engine().goaway() {
            Some(code) if code != Code::NO_ERROR => TunnelLost::Protocol {
                by_peer: true,
                code: code.0,
            },
            _ => lost,
        }
    }

    /// Ready when there is more to do at once.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, TunnelLost> {
        if self.closing {
            return match Pin::new(&mut self.wire).poll_shutdown(cx) {
                Poll::Pending => Ok(Poll::Pending),
                Poll::Ready(_) => Err(TunnelLost::Closed),
            };
        }
        let read = self.poll_read(cx)?;
        if !self.speaks && !self.line.engine().is_greeted() {
            return Ok(read);
        }
        let written = self.poll_write(cx)?;
        let mut engine = self.line.engine();
        self.closing = written.is_ready() && engine.is_finished();
        if read.is_ready() || self.closing {
            return Ok(Poll::Ready(()));
        }
        engine.set_driver(cx);
        // What was put in since must not wait for a wake that has no one to go to.
        if written.is_ready() && engine.has_something_to_send() {
            Ok(Poll::Ready(()))
        } else {
            Ok(Poll::Pending)
        }
    }

    /// Reads a bounded part of what has come; ready when there may be more.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, TunnelLost> {
        for _ in 0..READS {
            let Poll::Ready(bytes) = Pin::new(&mut self.wire).poll_fill_buf(cx)? else {
                return Ok(Poll::Pending);
            };
            let n = bytes.len();
            if n == 0 {
                return Err(TunnelLost::Closed);
            }
            let received = self.line.engine().receive(bytes, self.began.elapsed());
            Pin::new(&mut self.wire).consume(n);
            self.reads += 1;
            if let Err(broken) = received {
                return Err(self.break_off(cx, broken));
            }
        }
        Ok(Poll::Ready(()))
    }

    /// Writes what is to go, through to the socket; pending where the peer does not take it.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        loop {
            if self.frames.is_empty() {
                self.line.engine().transmit(&mut self.frames);
            }
            if self.frames.is_empty() {
                break;
            }
            while !self.frames.is_empty() {
                let written = match self.frames.contiguous() {
                    Some(all) => Pin::new(&mut self.wire).poll_write(cx, all)?,
                    None => {
                        let mut slices = [IoSlice::new(&[]); SLICES];
                        let count = self.frames.slices(&mut slices);
                        Pin::new(&mut self.wire).poll_write_vectored(cx, &slices[..count])?
                    }
                };
                let Poll::Ready(written) = written else { return Ok(Poll::Pending) };
                if written == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                self.frames.advance(written);
                self.unflushed = true;
            }
        }
        if self.unflushed {
            let Poll::Ready(()) = Pin::new(&mut self.wire).poll_flush(cx)? else {
                return Ok(Poll::Pending);
            };
            self.unflushed = false;
        }
        Ok(Poll::Ready(()))
    }

    /// Tells the peer what it did wrong, as far as it takes that at once.
    pub(crate) fn break_off(&mut self, cx: &mut Context<'_>, broken: Broken) -> TunnelLost {
        self.line.engine().break_off(broken.0);
        let _ = self.poll_write(cx);
        broken.into()
    }
}

/// Rounds of reading and writing before others get a turn.
const TURNS: u32 = 4;

/// Reads, of a TLS record each as a rule, before what they ask for is written.
const READS: u32 = 16;

/// Slices in one write.
const SLICES: usize = 64;

/// What TLS takes of a write before it goes to the socket, in bytes. TLS allocates each record; were they more together,
/// an allocator with the usual bounds would give their memory back to the system after each write, and ask for it again
/// page by page.
const TLS_BUFFER: usize = 96 << 10;
