//! The clock's side of [`Liveness`].

use std::{
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Interval, MissedTickBehavior, interval_at};

use crate::{
    TunnelLost,
    limits::after,
    proto::liveness::{Beat, Liveness, TICKS},
    tunnel::Line,
};

/// Asks a silent peer whether it lives.
pub(crate) struct Keepalive {
    ticks: Interval,
    liveness: Liveness,
}

impl Keepalive {
    pub(crate) fn new(dead_peer: Duration) -> Self {
        let tick = (dead_peer / TICKS).max(Duration::from_millis(1));
        let mut ticks = interval_at(after(tick), tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            ticks,
            liveness: Liveness::default(),
        }
    }

    /// Ready when the peer, from whom `reads` reads have brought something so far, is to be given up. `tell` is told how many streams
    /// were given up that nobody held, if any were.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, line: &Line, reads: u64, tell: impl Fn(usize)) -> Poll<TunnelLost> {
        while self.ticks.poll_tick(cx).is_ready() {
            let given_up = line.engine().tick();
            if given_up > 0 {
                tell(given_up);
            }
            match self.liveness.on_tick(reads) {
                Beat::Rest => {}
                Beat::Ping => line.engine().ping(),
                Beat::Dead => return Poll::Ready(TunnelLost::PeerSilent),
            }
        }
        Poll::Pending
    }
}
