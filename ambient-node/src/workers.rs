//! Threads that move bytes: one single-threaded runtime each, and on each its own tunnels.
//!
//! A tunnel and the sockets that it serves stay on one core; measured, that is a fifth faster than one runtime over
//! all cores.

use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use ambient_hbone::Pool;
use tokio::{runtime, sync::oneshot};

/// A thread, its runtime and its tunnels.
#[derive(Debug)]
pub(crate) struct Worker {
    runtime: runtime::Handle,
    pub(crate) tunnels: Pool,
    load: AtomicUsize,
    /// Dropped to end the thread.
    _stop: oneshot::Sender<()>,
}

impl Worker {
    /// Runs a future on this thread; it counts as load until it ends.
    pub(crate) fn spawn(self: &Arc<Self>, future: impl Future<Output = ()> + Send + 'static) {
        self.load.fetch_add(1, Ordering::Relaxed);
        let load = Load(self.clone());
        self.runtime.spawn(async move {
            future.await;
            drop(load);
        });
    }
}

/// Gives the load back also when the future is dropped before its end.
struct Load(Arc<Worker>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.load.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All of them.
#[derive(Clone, Debug)]
pub(crate) struct Workers(Arc<[Arc<Worker>]>);

impl Workers {
    /// Starts `count` threads; each makes its tunnels with `tunnels`, inside its runtime.
    pub(crate) fn start(count: usize, tunnels: impl Fn() -> Pool) -> io::Result<Self> {
        let start = |index| {
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            let pool = {
                let _inside = handle.enter();
                tunnels()
            };
            let (stop, stopped) = oneshot::channel::<()>();
            thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                // Ends when the other half is dropped: that error is the signal.
                let _ = runtime.block_on(stopped);
            })?;
            Ok(Arc::new(Worker {
                runtime: handle,
                tunnels: pool,
                load: AtomicUsize::new(0),
                _stop: stop,
            }))
        };
        (0..count.max(1)).map(start).collect::<io::Result<_>>().map(Self)
    }

    /// The one with the least to do.
    pub(crate) fn least_loaded(&self) -> &Arc<Worker> {
        // Never empty: `start` makes at least one.
        self.0
            .iter()
            .min_by_key(|worker| worker.load.load(Ordering::Relaxed))
            .unwrap_or(&self.0[0])
    }

    /// Every one of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Worker>> {
        self.0.iter()
    }
}
