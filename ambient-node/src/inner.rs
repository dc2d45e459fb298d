//! Tunnels within tunnels: through the gateway of another network to whoever it chooses.
//!
//! An inner tunnel is one connection's alone. Its bytes are a stream of an outer one, which the pool shares as any other.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use ambient_core::Identity;
use ambient_hbone::{BoxFuture, BoxedIo, Destination, Dial, NotConnected, Pool, PoolBuilder, Rechecked, Speaker, SpeakerKey, Stream};

use crate::unread::Unread;

/// The inner tunnels of one worker.
#[derive(Debug)]
pub(crate) struct InnerTunnels {
    pool: Pool,
    outer: Arc<Outer>,
    next: AtomicU64,
}

impl InnerTunnels {
    /// `pool` makes a pool that dials with what it is given.
    pub(crate) fn new(pool: impl FnOnce(Arc<dyn Dial>) -> PoolBuilder) -> Self {
        let outer = Arc::new(Outer::default());
        Self {
            pool: pool(outer.clone()).build(),
            outer,
            next: AtomicU64::new(0),
        }
    }

    /// A stream in a tunnel of its own within `outer`.
    ///
    /// # Errors
    /// As [`Pool::connect_with`] has them; nothing of the tunnel is left then.
    ///
    /// # Cancel safety
    /// Dropping the future ends the tunnel and `outer`; what was read of `from` is lost.
    pub(crate) async fn connect_with(
        self: &Arc<Self>,
        speaker: &Speaker,
        outer: Stream,
        destination: &Destination,
        from: &mut Unread,
    ) -> Result<(Stream, Within), NotConnected> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let own = Speaker::new(format!("{} within {number}", speaker.key), speaker.identity.clone());
        self.outer.put(own.key.clone(), outer);
        let mut within = Within {
            of: self.clone(),
            key: own.key.clone(),
            ends_well: false,
        };
        let stream = self.pool.connect_with(&own, destination, from).await?;
        // From now on the tunnel ends with its stream, whichever way that ends.
        within.ends_well = true;
        Ok((stream, within))
    }

    /// As [`Pool::recheck`].
    pub(crate) fn recheck(&self) -> Rechecked {
        self.pool.recheck()
    }

    /// As [`Pool::withdraw`].
    pub(crate) fn withdraw(&self, identity: &Identity) -> usize {
        self.pool.withdraw(identity)
    }
}

/// An inner tunnel; to be dropped after its stream.
#[derive(Debug)]
pub(crate) struct Within {
    of: Arc<InnerTunnels>,
    key: SpeakerKey,
    ends_well: bool,
}

impl Drop for Within {
    fn drop(&mut self) {
        match self.ends_well {
            // What is still to be said on it is said.
            true => self.of.pool.retire(&self.key),
            false => {
                self.of.outer.take(&self.key);
                self.of.pool.forget(&self.key);
            }
        }
    }
}

/// Streams of outer tunnels, until the inner ones are made on them.
#[derive(Debug, Default)]
struct Outer(Mutex<HashMap<SpeakerKey, Stream>>);

impl Outer {
    fn put(&self, key: SpeakerKey, stream: Stream) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, stream);
    }

    fn take(&self, key: &SpeakerKey) -> Option<Stream> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key)
    }
}

impl Dial for Outer {
    fn dial<'a>(&'a self, speaker: &'a Speaker, _: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
        Box::pin(async move {
            // One tunnel for each: a second would have nothing to stand on.
            let stream = self.take(&speaker.key);
            let stream = stream.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the outer tunnel's stream is used up"))?;
            Ok(Box::new(stream) as BoxedIo)
        })
    }
}
