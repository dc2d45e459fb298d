//! A tunnel of a pool, and the task that drives it.

use std::{
    future::poll_fn,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use ambient_core::{Credential, Observer, SpiffeId, observe::Event};
use ambient_tls::{Peer, Trust};
use tokio::time::{MissedTickBehavior, interval_at};

use super::{Key, Shared};
use crate::{
    Limits, TunnelLost,
    driver::Driver,
    keepalive::Keepalive,
    limits::after,
    proto::{choice::Load, liveness::Idleness},
    term::Term,
    tunnel::Line,
};

/// A tunnel that stands.
pub(crate) struct Tunnel {
    key: Arc<Key>,
    credential: Arc<Credential>,
    peer: Peer,
    line: Arc<Line>,
    open: AtomicUsize,
    opened: AtomicU64,
}

impl Tunnel {
    pub(super) fn new(key: Arc<Key>, credential: Arc<Credential>, peer: Peer, line: Arc<Line>) -> Self {
        Self {
            key,
            credential,
            peer,
            line,
            open: AtomicUsize::new(0),
            opened: AtomicU64::new(0),
        }
    }

    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    pub(super) fn peer(&self) -> &Peer {
        &self.peer
    }

    pub(super) fn line(&self) -> &Arc<Line> {
        &self.line
    }

    /// How it stands for one more stream of a speaker with this credential. One made with an older credential retires, and so does one
    /// that carries nothing and is to carry nothing.
    pub(super) fn load(&self, credential: &Credential, most: usize) -> Load {
        if self.credential.chain != credential.chain {
            self.retire();
        }
        let open = self.open.load(Ordering::Relaxed);
        let mut engine = self.line.engine();
        let (allowed, orphans) = (engine.most_streams(), engine.orphans());
        if allowed == 0 && open == 0 {
            // Its peer takes no streams, and it has none: of no use to anybody.
            engine.retire();
        }
        drop(engine);
        Load {
            usable: allowed > 0 && self.line.lost().is_none(),
            open: open + orphans,
            limit: allowed.min(most),
        }
    }

    /// No new streams: it ends with the last one.
    pub(super) fn retire(&self) {
        self.line.engine().retire();
    }

    /// Ends it now, with all its streams.
    pub(super) fn end(&self) {
        self.line.lose(TunnelLost::Ended);
    }

    /// Ends it now, as nobody vouches for its speaker any more.
    pub(super) fn withdraw(&self) {
        self.line.lose(TunnelLost::IdentityWithdrawn);
    }

    /// Ends it now if its peer is revoked; whether it did.
    pub(super) fn end_if_revoked(&self, trust: &Trust) -> bool {
        self.line.end_if_revoked(trust, &self.peer)
    }
}

/// A stream's place in a tunnel, given back when dropped.
pub(crate) struct Lease {
    tunnel: Arc<Tunnel>,
}

impl Lease {
    pub(super) fn new(tunnel: &Arc<Tunnel>) -> Self {
        tunnel.open.fetch_add(1, Ordering::Relaxed);
        tunnel.opened.fetch_add(1, Ordering::Relaxed);
        Self {
            tunnel: Arc::clone(tunnel),
        }
    }

    pub(super) fn tunnel(&self) -> &Tunnel {
        &self.tunnel
    }

    /// Whom the peer of the tunnel has proven to be.
    pub(crate) fn peer(&self) -> &SpiffeId {
        self.tunnel.peer().id()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.tunnel.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Drives a tunnel to its end, then takes it out of the pool.
pub(super) async fn drive(mut out: OutOfPool, driver: Driver, term: Term, observer: Arc<dyn Observer>, limits: Limits) {
    let tunnel = Arc::clone(&out.tunnel);
    let (peer, speaker) = (tunnel.key.peer, tunnel.key.speaker.identity.clone());
    observer.observe(&Event::TunnelOpened { peer, speaker: &speaker });
    run(&tunnel, driver, term, &*observer, &limits).await;
    out.leave();
    observer.observe(&Event::TunnelClosed {
        peer,
        speaker: &speaker,
        reason: &tunnel.line.reason(),
    });
}

/// Drives it until it is lost.
async fn run(tunnel: &Tunnel, mut driver: Driver, mut term: Term, observer: &dyn Observer, limits: &Limits) {
    let mut keepalive = Keepalive::new(limits.dead_peer);
    let mut idleness = Idleness::default();
    let half = limits.idle / 2;
    let peer = tunnel.peer().id();
    let tell = |streams| observer.observe(&Event::StreamsGivenUp { peer, streams });
    let mut idle = interval_at(after(half), half.max(std::time::Duration::from_millis(1)));
    idle.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let lost = poll_fn(|cx| {
        if let Poll::Ready(reason) = poll(cx, tunnel, &mut driver, &mut keepalive, &mut term, tell) {
            tunnel.line.lose(reason);
        }
        // Or another task has lost it: looked at last, when the driver is known to be woken.
        if tunnel.line.lost().is_some() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    });
    tokio::pin!(lost);
    loop {
        tokio::select! {
            () = &mut lost => return,
            _ = idle.tick() => {
                if idleness.on_tick(tunnel.open.load(Ordering::Relaxed), tunnel.opened.load(Ordering::Relaxed)) {
                    tunnel.retire();
                }
            }
        }
    }
}

fn poll(
    cx: &mut Context<'_>,
    tunnel: &Tunnel,
    driver: &mut Driver,
    keepalive: &mut Keepalive,
    term: &mut Term,
    tell: impl Fn(usize),
) -> Poll<TunnelLost> {
    while let Poll::Ready(told) = term.poll(cx) {
        match told {
            Some(reason) => return Poll::Ready(reason),
            None => tunnel.retire(),
        }
    }
    match driver.poll(cx) {
        Poll::Pending => keepalive.poll(cx, &tunnel.line, driver.reads(), tell),
        lost => lost,
    }
}

/// Ends a tunnel and takes it out of its pool however its task ends.
pub(super) struct OutOfPool {
    tunnel: Arc<Tunnel>,
    pool: Weak<Shared>,
}

impl OutOfPool {
    /// Of a tunnel that was just put in.
    pub(super) fn new(tunnel: Arc<Tunnel>, pool: &Arc<Shared>) -> Self {
        pool.standing.send_modify(|count| *count += 1);
        Self {
            tunnel,
            pool: Arc::downgrade(pool),
        }
    }

    pub(super) fn tunnel(&self) -> &Tunnel {
        &self.tunnel
    }

    fn leave(&mut self) {
        // Where that is not known yet, nobody drives it any more, for whatever reason.
        self.tunnel.line.lose(TunnelLost::Ended);
        let Some(pool) = std::mem::take(&mut self.pool).upgrade() else {
            return;
        };
        let mut slots = pool.slots();
        if let Some(slot) = slots.get_mut(&self.tunnel.key) {
            slot.tunnels.retain(|tunnel| !Arc::ptr_eq(tunnel, &self.tunnel));
            if slot.is_empty() {
                slots.remove(&self.tunnel.key);
            }
        }
        drop(slots);
        pool.standing.send_modify(|count| *count -= 1);
    }
}

impl Drop for OutOfPool {
    fn drop(&mut self) {
        self.leave();
    }
}
