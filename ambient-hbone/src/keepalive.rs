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

    /// Ready when the peer, from whom `reads` reads have brought something so far, is to be given up.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, line: &Line, reads: u64) -> Poll<TunnelLost> {
        while self.ticks.poll_tick(cx).is_ready() {
            line.engine().tick();
            match self.liveness.on_tick(reads) {
                Beat::Rest => {}
                Beat::Ping => line.engine().ping(),
                Beat::Dead => return Poll::Ready(TunnelLost::PeerSilent),
            }
        }
        Poll::Pending
    }
}
