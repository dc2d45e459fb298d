//! Threads that move bytes: one single-threaded runtime each, and on each its own tunnels.
//!
//! A tunnel and the sockets that it serves stay on one core; measured, that is a fifth faster than one runtime over
//! all cores.

use std::{
    future::Future,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use ambient_hbone::{BoxFuture, Pool, RelayLimits, Share, Turns};
use tokio::{runtime, sync::oneshot, task::JoinHandle};

use crate::{
    acks::{self, Acks},
    busy_poll::{BusyPoll, Looked},
    inner::InnerTunnels,
    shares::{Shares, Whose},
    slices::Asking,
    supervise::supervised,
    telemetry::{Counted, Metrics},
};

/// A thread, its runtime and its tunnels.
#[derive(Debug)]
pub(crate) struct Worker {
    runtime: runtime::Handle,
    looked: Looked,
    pub(crate) tunnels: Pool,
    pub(crate) inner: Arc<InnerTunnels>,
    /// For all that is relayed here: buffers go from hand to hand on one core.
    pub(crate) relays: RelayLimits,
    /// For the sockets that are served here.
    pub(crate) acks: Acks,
    shares: Shares,
    load: AtomicUsize,
    /// Dropped to end the thread.
    _stop: oneshot::Sender<()>,
}

impl Worker {
    /// Does something as if on this thread: what it registers for readiness is this runtime's.
    pub(crate) fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        let _entered = self.runtime.enter();
        work()
    }

    /// Runs a future on this thread that is no load: it waits for some.
    pub(crate) fn keep<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.runtime.spawn(future)
    }

    fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// Somebody's share of this thread.
    pub(crate) fn share(&self, whose: &Whose) -> Share {
        self.shares.of(whose)
    }

    /// Runs on this thread, in a share of it, what `begin` gives there; it counts as load until it ends.
    pub(crate) fn spawn<F>(self: &Arc<Self>, share: &Share, begin: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.load.fetch_add(1, Ordering::Relaxed);
        self.runtime.spawn(task(Load(self.clone()), share.clone(), begin));
    }
}

/// Gives the load back also when the future is dropped before its end.
struct Load(Arc<Worker>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.load.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All that a connection's task is, in one box: the runtime rounds what it has for a task up to 128 bytes, which no more than a
/// box just fits into. The future comes into being where it stays: each that is moved into another has room in both.
fn task<L, F>(load: L, share: Share, begin: impl FnOnce() -> F + Send + 'static) -> BoxFuture<'static, ()>
where
    L: Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    Box::pin(async move {
        {
            let running = pin!(begin());
            share.run(running).await;
        }
        // It counts until nothing is left of it.
        drop(load);
    })
}

/// All of them.
#[derive(Clone, Debug)]
pub(crate) struct Workers {
    all: Arc<[Arc<Worker>]>,
    turn: Arc<AtomicUsize>,
}

impl Workers {
    /// Starts `count` threads, each of which looks for news for `busy_poll` at most; each makes its tunnels with `tunnels`, inside
    /// its runtime. Blocks until they run.
    pub(crate) fn start(
        (count, busy_poll): (usize, Duration),
        metrics: &Arc<Metrics>,
        tunnels: impl Fn() -> Tunnels + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let tunnels = Arc::new(tunnels);
        let acks = Acks::default();
        let start = |index| {
            let (stop, stopped) = oneshot::channel::<()>();
            let (ready, started) = mpsc::channel();
            let tunnels = tunnels.clone();
            let turns = Turns::new();
            let looks = BusyPoll::new(busy_poll, &turns);
            let (shared, looking) = (turns.clone(), looks.clone());
            thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || run(&*tunnels, &shared, &looking, &ready, stopped))?;
            // A thread that ended without a word panicked: that is on standard error.
            let (runtime, (tunnels, inner)) = started.recv().map_err(|_| io::Error::other("a worker did not start"))??;
            let rounds = turns.clone();
            // Without it nobody who waits for his turn would have it.
            runtime.spawn(supervised("the turns of a worker", metrics, move || rounds.clone().rounds()));
            let looked = looks.looked();
            runtime.spawn(supervised("what a worker looks for", metrics, move || looks.clone().look()));
            Ok(Arc::new(Worker {
                runtime,
                looked,
                tunnels,
                inner: Arc::new(inner),
                relays: RelayLimits::default(),
                acks: acks.beside(),
                shares: Shares::new(turns),
                load: AtomicUsize::new(0),
                _stop: stop,
            }))
        };
        let all = (0..count.max(1)).map(start).collect::<io::Result<_>>()?;
        Ok(Self { all, turn: Arc::default() })
    }

    /// The one with the least to do.
    pub(crate) fn least_loaded(&self) -> &Arc<Worker> {
        // Never empty: `start` makes at least one.
        self.all.iter().min_by_key(|worker| worker.load()).unwrap_or(&self.all[0])
    }

    /// This one, unless another has clearly less to do: to go to another thread is to wake it.
    pub(crate) fn near<'a>(&'a self, home: &'a Arc<Worker>) -> &'a Arc<Worker> {
        let least = self.least_loaded();
        if is_near(home.load(), least.load()) { home } else { least }
    }

    /// One after the other in turn.
    pub(crate) fn next(&self) -> &Arc<Worker> {
        &self.all[self.turn.fetch_add(1, Ordering::Relaxed) % self.all.len()]
    }

    /// Has no application wait for acknowledgements of their sockets; for ever.
    pub(crate) fn acknowledge(&self) -> impl Future<Output = ()> + Send + use<> {
        acks::rounds(self.iter().map(|worker| worker.acks.clone()).collect())
    }

    /// What is counted of them, in the order of their names.
    pub(crate) fn counted(&self) -> Vec<Counted> {
        let counted = |worker: &Arc<Worker>| Counted {
            runtime: worker.runtime.clone(),
            looked: worker.looked.clone(),
        };
        self.iter().map(counted).collect()
    }

    /// Every one of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Worker>> {
        self.all.iter()
    }
}

/// Whether so much load is not clearly more than the least: of few each counts, as it may be a long transfer; of many an eighth
/// is nothing.
fn is_near(load: usize, least: usize) -> bool {
    load <= least + 1 + least / 8
}

/// What a worker's thread says once it runs.
type Started = io::Result<(runtime::Handle, Tunnels)>;

/// The tunnels of a worker, and those within tunnels.
pub(crate) type Tunnels = (Pool, InnerTunnels);

/// A worker's thread: its runtime lives and ends here, never inside another's.
fn run(tunnels: &dyn Fn() -> Tunnels, turns: &Turns, looks: &BusyPoll, ready: &mpsc::Sender<Started>, stopped: oneshot::Receiver<()>) {
    let mut builder = runtime::Builder::new_current_thread();
    let asking = Asking::new(&mut builder, turns);
    let (wakes, woken) = (asking.clone(), looks.clone());
    let looks = looks.clone();
    builder.on_thread_park(move || looks.before_sleep(asking.before_sleep()));
    builder.on_thread_unpark(move || {
        wakes.after_sleep();
        woken.after_sleep();
    });
    // What blocks here are look-ups of names alone: their threads are told from those of the other runtimes by this.
    let runtime = match builder.enable_all().thread_name("lookup").build() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_goes_elsewhere_when_there_is_clearly_less_to_do() {
        for (load, least, near) in [
            (0, 0, true),
            (1, 0, true),
            (2, 0, false),
            (9, 8, true),
            (10, 8, true),
            (11, 8, false),
        ] {
            assert_eq!(is_near(load, least), near, "{load} beside {least}");
        }
        assert!(is_near(1120, 1000) && !is_near(1130, 1000));
    }

    /// What each connection holds beside what it needs itself, in bytes.
    #[test]
    fn a_task_holds_little_beside_its_future() {
        let waits = || async {
            let held = [const { String::new() }; 30];
            std::future::pending::<()>().await;
            drop(held);
        };
        let (future, share) = (size_of_val(&waits()), Turns::new().share());
        let task = task(Arc::new(()), share, waits);
        assert!(size_of_val(&*task) <= future + 72, "{} {future}", size_of_val(&*task));
        // Beside a header and a trailer, in the 128 bytes of the runtime's.
        assert!(size_of_val(&task) <= 24);
    }

    #[tokio::test]
    async fn a_task_is_load_until_nothing_is_left_of_it() {
        struct Part(&'static str, mpsc::Sender<&'static str>);
        impl Drop for Part {
            fn drop(&mut self) {
                self.1.send(self.0).unwrap();
            }
        }
        impl Future for Part {
            type Output = ();
            fn poll(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<()> {
                std::task::Poll::Ready(())
            }
        }
        let (tell, told) = mpsc::channel();
        let (load, running) = (Part("load", tell.clone()), Part("running", tell));
        task(load, Turns::new().share(), || running).await;
        assert_eq!(told.try_iter().collect::<Vec<_>>(), ["running", "load"]);
    }

    /// What a listener does with bursts of connections that stay: both threads have about half of them.
    #[test]
    fn connections_that_stay_are_shared_out() {
        let mut loads = [0_usize, 0];
        for _ in 0..1000 {
            let least = loads[0].min(loads[1]);
            let to = usize::from(!is_near(loads[0], least));
            loads[to] += 1;
        }
        assert!(loads[0].abs_diff(loads[1]) < 80, "{loads:?}");
    }
}
