//! Moves a tunnel's bytes between its engine and TLS.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};

use crate::{
    TunnelLost,
    proto::{
        code::Code,
        engine::{Broken, Frames},
    },
    tunnel::Line,
    turns,
    wire::{Next, Wire},
};

/// Drives one end of a tunnel: reads what has come, then writes all that is to go, gathered, and through to the socket.
///
/// The socket may have taken a part of what was sealed; nobody else would ever ask for the rest. So a write counts as done only
/// when all has gone.
pub(crate) struct Driver {
    wire: Wire,
    line: Arc<Line>,
    frames: Frames,
    reads: u64,
    began: Instant,
    /// All streams have ended and both ends know: what is left is to close TLS.
    closing: bool,
    /// That is done, and until then the peer may take what is on its way to it.
    lingers: Option<Pin<Box<Sleep>>>,
    /// Says something before the peer has: a server does not, since a client's preface comes at once (RFC 9113 3.4), and
    /// what answers it goes along with its own.
    speaks: bool,
}

impl Driver {
    pub(crate) fn new(mut wire: Wire, line: Arc<Line>) -> Self {
        wire.share(line.engine().reads());
        Self {
            wire,
            line,
            frames: Frames::default(),
            reads: 0,
            began: Instant::now(),
            closing: false,
            lingers: None,
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
                Ok(Poll::Ready(much)) if much => break,
                Ok(Poll::Ready(_)) if turns::is_over() => break,
                Ok(Poll::Ready(_)) => {}
                Ok(Poll::Pending) => return Poll::Pending,
                Err(lost) => return Poll::Ready(self.because(lost)),
            }
        }
        // Others on this thread want a turn: those who read what has come first of all, while it is in a cache.
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

    /// Ready when there is more to do at once, and whether much has come or gone.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Result<Poll<bool>, TunnelLost> {
        if self.closing {
            self.line.engine().set_driver(cx);
            return match self.poll_close(cx) {
                Poll::Ready(()) => Err(TunnelLost::Closed),
                Poll::Pending => Ok(Poll::Pending),
            };
        }
        let read = self.poll_read(cx)?;
        if !self.speaks && !self.line.engine().is_greeted() {
            return Ok(read);
        }
        let written = match self.poll_write(cx) {
            Ok(written) => written,
            Err(e) => return Err(self.after_failed_write(cx, e)),
        };
        if written == Poll::Ready(Written::Much) {
            return Ok(Poll::Ready(true));
        }
        let mut engine = self.line.engine();
        self.closing = written.is_ready() && engine.is_finished();
        if read.is_ready() {
            return Ok(read);
        }
        if self.closing {
            return Ok(Poll::Ready(false));
        }
        engine.set_driver(cx);
        // What was put in since must not wait for a wake that has no one to go to.
        if written.is_ready() && engine.has_something_to_send() {
            Ok(Poll::Ready(false))
        } else {
            Ok(Poll::Pending)
        }
    }

    /// Reads once, and takes in all that it brings; ready when there may be more, with whether it was much. That may be nothing but
    /// records that concern TLS alone: they end a turn as others do.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<Poll<bool>, TunnelLost> {
        let (mut came, mut has_read, now) = (0, false, self.began.elapsed());
        loop {
            match self.wire.open() {
                Ok(Next::Data(bytes)) => {
                    came += bytes.len();
                    let received = self.line.engine().receive(&bytes, now);
                    self.reads += 1;
                    if let Err(broken) = received {
                        return Err(self.break_off(cx, broken));
                    }
                }
                Ok(Next::Nothing) if came > 0 || has_read => return Ok(Poll::Ready(came >= MUCH)),
                Ok(Next::Nothing) => match self.wire.poll_fill(cx)? {
                    Poll::Ready(0) => {
                        let why = "the peer has ended the connection without TLS's close_notify";
                        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why).into());
                    }
                    Poll::Ready(_) => {
                        self.line.engine().begin_read();
                        has_read = true;
                    }
                    Poll::Pending => return Ok(Poll::Pending),
                },
                Ok(Next::End) => return Err(TunnelLost::Closed),
                Err(e) => {
                    // The alert that goes with it, as far as the peer takes that at once.
                    let _ = self.wire.poll_send(cx);
                    return Err(e.into());
                }
            }
        }
    }

    /// Writes what is to go, through to the socket; pending where the peer does not take it. Ready as well once it was much and
    /// there is more: there may always be.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<Written>> {
        let mut went = 0;
        loop {
            if self.wire.poll_send(cx)?.is_pending() {
                return Ok(Poll::Pending);
            }
            if self.frames.is_empty() {
                let mut engine = self.line.engine();
                if (went >= BATCH || went > 0 && turns::is_over()) && engine.has_something_to_send() {
                    return Ok(Poll::Ready(Written::Much));
                }
                engine.transmit(&mut self.frames);
                went += self.frames.len();
            }
            if self.frames.is_empty() {
                return Ok(self.wire.poll_flush(cx)?.map(|()| Written::All));
            }
            self.wire.seal(&mut self.frames)?;
        }
    }

    /// A write has failed; but a peer that refuses us says why before it goes, and that may have come since it was last looked for.
    fn after_failed_write(&mut self, cx: &mut Context<'_>, error: io::Error) -> TunnelLost {
        match self.poll_read(cx) {
            Err(lost) => lost,
            Ok(_) => error.into(),
        }
    }

    /// Says that this was all, and waits for the peer to say the same, but not for ever.
    ///
    /// What it says meanwhile is read away: a connection that is closed before the peer has ended is reset as soon as anything
    /// of the peer's stands or comes there unread, a WINDOW_UPDATE for one, and what the peer had not taken yet of the last stream
    /// is lost, after all was said to be well.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let lingers = match &mut self.lingers {
            Some(lingers) => lingers,
            none => {
                if ready!(self.wire.poll_close(cx)).is_err() {
                    return Poll::Ready(());
                }
                none.insert(Box::pin(sleep(LINGER)))
            }
        };
        if lingers.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        self.wire.poll_read_away(cx)
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

/// For the peer to take what is left on its way to it, and to end the connection as well.
const LINGER: Duration = Duration::from_secs(10);

/// What writing came to.
#[derive(PartialEq, Eq)]
enum Written {
    /// All has gone.
    All,
    /// Enough for now.
    Much,
}

/// Bytes of one read from which on others get it at once.
const MUCH: usize = 64 << 10;

/// Bytes after which writing is enough for now: the engine gives up to twice as many at once.
const BATCH: usize = 128 << 10;
