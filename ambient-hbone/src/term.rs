//! How long a tunnel may live: until the first of its two certificates ends.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use ambient_core::Credential;
use ambient_tls::Peer;
use rustls::time_provider::TimeProvider;
use tokio::time::{Instant, Sleep, sleep};

use crate::{
    TunnelLost,
    proto::lifetime::{Lifetime, Stage},
};

/// The clock's side of [`Lifetime`].
///
/// Dates are the wall clock's, which may be set; timers are not. So the clock is looked at again at least once a minute.
pub(crate) struct Term {
    lifetime: Lifetime,
    /// Whether it is the peer's certificate that ends first.
    of_peer: bool,
    time: Arc<dyn TimeProvider>,
    look: Pin<Box<Sleep>>,
    closing: bool,
}

impl Term {
    pub(crate) fn new(own: &Credential, peer: &Peer, time: Arc<dyn TimeProvider>) -> Self {
        let of_peer = peer.not_after() < own.not_after;
        let end = own.not_after.min(peer.not_after());
        Self {
            lifetime: Lifetime::new(now(&*time), end),
            of_peer,
            time,
            look: Box::pin(sleep(Duration::ZERO)),
            closing: false,
        }
    }

    /// Ready once when new streams should go elsewhere, with nothing; and when the tunnel must end, with the reason.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<TunnelLost>> {
        while self.look.as_mut().poll(cx).is_ready() {
            let (stage, wait) = self.lifetime.at(now(&*self.time));
            self.look.as_mut().reset(Instant::now() + wait);
            match stage {
                Stage::Over => return Poll::Ready(Some(TunnelLost::CertificateExpired { of_peer: self.of_peer })),
                Stage::Closing if !std::mem::replace(&mut self.closing, true) => return Poll::Ready(None),
                Stage::Closing | Stage::Open => {}
            }
        }
        Poll::Pending
    }
}

/// The wall clock, in whole seconds; nothing while it is not known.
fn now(time: &dyn TimeProvider) -> Option<SystemTime> {
    let now = time.current_time()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs()))
}
