//! The clock's side of [`Liveness`].

use std::{
    task::{Context, Poll},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::{
    TunnelLost,
    proto::liveness::{Beat, Liveness, TICKS},
};

/// Asks a silent peer whether it lives.
pub(crate) struct Keepalive {
    pings: Option<PingPong>,
    ticks: Interval,
    liveness: Liveness,
}

impl Keepalive {
    pub(crate) fn new(pings: Option<PingPong>, dead_peer: Duration) -> Self {
        let tick = (dead_peer / TICKS).max(Duration::from_millis(1));
        let mut ticks = interval_at(Instant::now() + tick, tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            pings,
            ticks,
            liveness: Liveness::default(),
        }
    }

    /// Ready when the peer is to be given up. `reads` is asked for at ticks only.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, reads: impl Fn() -> u64) -> Poll<TunnelLost> {
        while self.ticks.poll_tick(cx).is_ready() {
            match self.liveness.on_tick(reads()) {
                Beat::Rest => {}
                Beat::Ping => {
                    if let Some(pings) = &mut self.pings {
                        // Takes the last answer in, or another PING could not be sent.
                        let _ = pings.poll_pong(cx);
                        let _ = pings.send_ping(Ping::opaque());
                        // HTTP/2 sends it when it is polled next.
                        cx.waker().wake_by_ref();
                    }
                }
                Beat::Dead => return Poll::Ready(TunnelLost::PeerSilent),
            }
        }
        Poll::Pending
    }
}
