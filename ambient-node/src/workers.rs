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
        mpsc,
    },
    thread,
};

use ambient_hbone::{Pool, RelayLimits};
use tokio::{runtime, sync::oneshot};

use crate::inner::InnerTunnels;

/// A thread, its runtime and its tunnels.
#[derive(Debug)]
pub(crate) struct Worker {
    runtime: runtime::Handle,
    pub(crate) tunnels: Pool,
    pub(crate) inner: Arc<InnerTunnels>,
    /// For all that is relayed here: buffers go from hand to hand on one core.
    pub(crate) relays: RelayLimits,
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
    /// Starts `count` threads; each makes its tunnels with `tunnels`, inside its runtime. Blocks until they run.
    pub(crate) fn start(count: usize, tunnels: impl Fn() -> Tunnels + Send + Sync + 'static) -> io::Result<Self> {
        let tunnels = Arc::new(tunnels);
        let start = |index| {
            let (stop, stopped) = oneshot::channel::<()>();
            let (ready, started) = mpsc::channel();
            let tunnels = tunnels.clone();
            thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || run(&*tunnels, &ready, stopped))?;
            // A thread that ended without a word panicked: that is on standard error.
            let (runtime, (tunnels, inner)) = started.recv().map_err(|_| io::Error::other("a worker did not start"))??;
            let load = AtomicUsize::new(0);
            Ok(Arc::new(Worker {
                runtime,
                tunnels,
                inner: Arc::new(inner),
                relays: RelayLimits::default(),
                load,
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

/// What a worker's thread says once it runs.
type Started = io::Result<(runtime::Handle, Tunnels)>;

/// The tunnels of a worker, and those within tunnels.
pub(crate) type Tunnels = (Pool, InnerTunnels);

/// A worker's thread: its runtime lives and ends here, never inside another's.
fn run(tunnels: &dyn Fn() -> Tunnels, ready: &mpsc::Sender<Started>, stopped: oneshot::Receiver<()>) {
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(error))),
    };
    runtime.block_on(async {
        let started = Ok((runtime::Handle::current(), tunnels()));
        if ready.send(started).is_ok() {
            // Ends when the other half is dropped: that error is the signal.
            let _ = stopped.await;
        }
    });
}
