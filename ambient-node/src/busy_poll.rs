//! How long a worker that has nothing to do looks for news before it falls asleep.
//!
//! To be woken costs a thread that sleeps some microseconds, and where a processor that has nothing to do is given back to a
//! hypervisor some tens: more than all that is done for a message there and back. Where news come sooner than that the thread is better
//! off awake. So it asks the kernel for news time and again for a while, and offers its processor each time, which in its own
//! cgroup is taken by whoever waits; others take it as they wake, or when a slice is over.
//! How long, and when at all, is [`Patience`]'s matter: as long as news come meanwhile, as much as the work is worth, and never
//! where somebody else keeps the processor that was offered.

use std::{
    future::poll_fn,
    mem,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Poll, Waker},
    thread,
    time::Duration,
};

use ambient_hbone::{Turns, Work};
use tokio::{task, time::Instant};

use patience::Patience;

mod patience;
mod quota;

/// No more is looked at once, whatever is asked for: who has so long to wait may as well sleep.
const BOUND: Duration = Duration::from_millis(10);

/// How long is looked at most where nobody says otherwise: longer than most of what a pod's neighbour takes to answer.
const MOST: Duration = Duration::from_micros(200);

/// [`Config::busy_poll`](crate::Config::busy_poll) by default: nothing where a cgroup gives the process so much time and no more, as what it
/// spends on looking would be missing then.
pub(crate) fn by_default() -> Duration {
    match quota::is_limited(Path::new("/")) {
        true => Duration::ZERO,
        false => MOST,
    }
}

/// One worker's: shared by what its runtime calls before and after each sleep, and by the task that looks. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct BusyPoll {
    turns: Turns,
    shared: Arc<Mutex<Shared>>,
    looked: Looked,
}

#[derive(Debug)]
struct Shared {
    patience: Patience,
    state: State,
    /// What had been done when the wait began.
    done: Work,
    /// How much of it was spent on looking, in vain.
    looked: Duration,
    /// Pods contended of late as it began.
    contended: bool,
    /// Begins to look when it is woken; none while it looks.
    looker: Option<Waker>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Working,
    /// Since then, for so long at most.
    Looking(Instant, Duration),
    /// It looked since then, and nothing came.
    InVain(Instant),
    /// It waits since then; to look first was part of that.
    Asleep(Instant),
}

impl BusyPoll {
    /// Of the thread that has these turns, which looks for so long at most.
    pub(crate) fn new(most: Duration, turns: &Turns) -> Self {
        let shared = Shared {
            patience: Patience::new(most.min(BOUND)),
            state: State::Working,
            done: turns.work(),
            looked: Duration::ZERO,
            contended: false,
            looker: None,
        };
        Self {
            turns: turns.clone(),
            shared: Arc::new(Mutex::new(shared)),
            looked: Looked::default(),
        }
    }

    /// How long it has looked, for who counts it.
    pub(crate) fn looked(&self) -> Looked {
        self.looked.clone()
    }

    /// The thread has nothing to do. If it is to look first it has something to do when this returns.
    ///
    /// `contended`: whether pods wait for each other on it. Then it has better things to do with its part of the processor, and
    /// is better placed when it wakes than when it has offered what it had.
    pub(crate) fn before_sleep(&self, contended: bool) {
        let now = Instant::now();
        let done = self.turns.work();
        let mut shared = self.lock();
        let shared = &mut *shared;
        if let State::InVain(since) = shared.state
            && done == shared.done
        {
            return shared.state = State::Asleep(since);
        }
        let worked = done.since(mem::replace(&mut shared.done, done));
        shared.state = State::Asleep(now);
        (shared.looked, shared.contended) = (Duration::ZERO, contended);
        let span = shared.patience.before_wait(now, worked, contended);
        if let Some(span) = span
            && let Some(looker) = shared.looker.take()
        {
            shared.state = State::Looking(now, span);
            looker.wake();
        }
    }

    /// The thread is awake, if it was asleep: it may as well have been kept from that.
    pub(crate) fn after_sleep(&self) {
        let mut shared = self.lock();
        if let State::Asleep(since) = shared.state {
            let waited = since.elapsed();
            shared.state = State::Working;
            shared.patience.slept(waited);
            // What it has looked of that is told already, or not to be told. While pods contend it may have had the processor much later than it had work.
            if !shared.contended {
                self.turns.idle(waited.saturating_sub(shared.looked));
            }
        }
    }

    /// Looks when it is time to; never ends. To be spawned on the thread's runtime, or it falls asleep at once.
    pub(crate) async fn look(self) {
        let this = Forgets(&self);
        loop {
            let (since, span, done) = poll_fn(|cx| {
                let mut shared = this.0.lock();
                if let State::Looking(since, span) = shared.state {
                    return Poll::Ready((since, span, shared.done));
                }
                shared.looker = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
            let mut looked = Duration::ZERO;
            let end = loop {
                // The runtime's driver asks the kernel now, and whom it wakes has a turn before this has the next.
                task::yield_now().await;
                if self.turns.work() != done {
                    break State::Working;
                }
                let offered = Instant::now();
                self.turns.idle(offered - since - looked);
                looked = offered - since;
                if looked >= span {
                    break State::InVain(since);
                }
                if self.turns.are_waited_for() {
                    // Somebody has come, and is about to have a turn.
                    continue;
                }
                thread::yield_now();
                let now = Instant::now();
                looked = now - since;
                if now - offered >= Patience::TAKEN {
                    // News may have come meanwhile.
                    self.lock().patience.taken(now);
                    break State::InVain(since);
                }
                self.turns.idle(now - offered);
            };
            self.looked.add(looked);
            let mut shared = self.lock();
            shared.patience.looked(looked);
            if let State::InVain(_) = end {
                shared.looked = looked;
            }
            shared.state = end;
        }
    }

    /// Held for moments, and by this thread alone.
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets who looks when he goes: what the runtime calls holds this, and would be held by it for ever, as his waker holds the runtime.
struct Forgets<'b>(&'b BusyPoll);

impl Drop for Forgets<'_> {
    fn drop(&mut self) {
        self.0.lock().looker = None;
    }
}

/// How long a worker has looked in all, by the clock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Looked(Arc<AtomicU64>);

impl Looked {
    fn add(&self, time: Duration) {
        self.0
            .fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn in_all(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests;
