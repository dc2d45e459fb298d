//! What `b` takes no more, while it has said all of its own: that may be more than `a` has taken yet.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep},
};

use super::{
    RelayLimits,
    leg::Leg,
    way::{Failed, Way},
};

/// A refusal that is held back until `a` has heard the last words of `b`. It stays one, whatever comes of them.
pub(super) struct Refused {
    error: io::Error,
    /// How much `a` had taken when that was last looked at, and what it is given to take more.
    taken: u64,
    patience: Pin<Box<Sleep>>,
    /// `a` has ended its direction since.
    ended: bool,
}

impl Refused {
    #[cold]
    pub(super) fn new(error: io::Error) -> Box<Self> {
        Box::new(Self {
            error,
            taken: 0,
            patience: Box::pin(sleep(PATIENCE)),
            ended: false,
        })
    }

    /// How it was refused.
    pub(super) fn into_error(self) -> io::Error {
        self.error
    }

    /// While the last words wait for `a`, which has taken so much by now: reads away what it says meanwhile, since there are
    /// applications that read nothing before they have said all. Ready once they have waited for too long, or `a` has failed.
    pub(super) fn poll_wait<A>(
        &mut self,
        cx: &mut Context<'_>,
        forth: &mut Way,
        a: &mut Leg<'_, A>,
        taken: u64,
        limits: &RelayLimits,
    ) -> Poll<Result<(), Failed>>
    where
        A: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        if self.taken != taken {
            self.taken = taken;
            self.patience.as_mut().reset(Instant::now() + PATIENCE);
        }
        if self.patience.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        if !self.ended {
            ready!(forth.poll_read_away(cx, a, limits))?;
            self.ended = true;
        }
        Poll::Pending
    }
}

/// For `a` to take some more of the last words: whoever takes nothing of them for so long does not read, and may write for ever.
const PATIENCE: Duration = Duration::from_secs(30);
