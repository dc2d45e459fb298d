//! Which slices of a processor a worker's thread asks for, while pods contend for it.
//!
//! A kernel with ticks of some milliseconds gives a processor to somebody else when a slice is over, and looks for that at a tick, or when
//! somebody wakes. Where one pod's storm keeps a worker and its own processes busy, the slowest of another pod's connections wait
//! for just that: a worker behind a process of the storm, and then their own process behind the worker. So a worker that pods contend for
//! falls asleep with a short slice, for which it has the processor as soon as it wakes, and works with a long one, so that those
//! whom it wakes have it next. Long slices cost a twentieth of what a worker gets done where nobody waits for others, so that they
//! are asked for only while somebody does time and again. A worker that never sleeps asks for nothing new.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use ambient_hbone::Turns;
use ambient_redirect::linux::{Slice, Slices};
use tokio::runtime;

/// What the calling thread asks for as it falls asleep and wakes. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Asking {
    /// None where there are none to ask for: then it is known who contends, and nothing is asked.
    slices: Option<Slices>,
    habit: Arc<Habit>,
    turns: Turns,
}

impl Asking {
    /// That goes by these turns of the calling thread's. The threads that the runtime has beside that one have what it has now.
    pub(crate) fn new(runtime: &mut runtime::Builder, turns: &Turns) -> Self {
        let slices = Slices::of_this_thread().unwrap_or_else(|error| {
            tracing::debug!(%error, "workers have the kernel's own slices");
            None
        });
        if let Some(slices) = slices {
            // Those that look up names, and whatever else a runtime does beside its thread: they have what the thread had that began them.
            runtime.on_thread_start(move || drop(slices.ask(Slice::Own)));
        }
        Self {
            slices,
            habit: Arc::default(),
            turns: turns.clone(),
        }
    }

    /// Whether pods have contended for it of late.
    pub(crate) fn before_sleep(&self) -> bool {
        let slice = self.habit.before_sleep(self.turns.were_contended());
        self.ask(slice);
        self.habit.is_warm()
    }

    pub(crate) fn after_sleep(&self) {
        self.ask(self.habit.after_sleep());
    }

    fn ask(&self, slice: Option<Slice>) {
        if let (Some(slices), Some(slice)) = (self.slices, slice) {
            // An error leaves the thread with the slice that it has: all it may lose is what it would have gained.
            let _ = slices.ask(slice);
        }
    }
}

/// Whether a thread asks: it goes by how often somebody had to wait for somebody else between two of its sleeps.
#[derive(Debug, Default)]
struct Habit {
    /// More with each such time, less with each other. Only its own thread looks at it.
    heat: AtomicU32,
    asks: AtomicBool,
}

impl Habit {
    /// As much more where somebody had to wait: one time in sixteen is often.
    const MORE: u32 = 16;
    /// From here on it asks, and then until nothing is left. One who comes once a second beside a busy one does not make it so hot.
    const HOT: u32 = 4 * Self::MORE;
    const MOST: u32 = 1000;

    fn before_sleep(&self, contended: bool) -> Option<Slice> {
        let heat = self.heat.load(Ordering::Relaxed);
        let heat = if contended {
            (heat + Self::MORE).min(Self::MOST)
        } else {
            heat.saturating_sub(1)
        };
        self.heat.store(heat, Ordering::Relaxed);
        let asked = self.asks.load(Ordering::Relaxed);
        let asks = heat >= Self::HOT || asked && heat > 0;
        self.asks.store(asks, Ordering::Relaxed);
        match (asked, asks) {
            (_, true) => Some(Slice::Short),
            (true, false) => Some(Slice::Own),
            (false, false) => None,
        }
    }

    /// Whether somebody had to wait so lately that it counts.
    fn is_warm(&self) -> bool {
        self.heat.load(Ordering::Relaxed) > 0
    }

    fn after_sleep(&self) -> Option<Slice> {
        self.asks.load(Ordering::Relaxed).then_some(Slice::Long)
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use tokio::time::{self, Instant};

    use super::*;

    /// Work without a sleep, as the kernel sees it.
    fn use_up(span: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < span {}
    }

    /// Asked each millisecond, between which the thread sleeps.
    async fn comes_to(has: &impl Fn() -> Option<Slice>, slice: Slice) {
        let comes = async {
            while has() != Some(slice) {
                time::sleep(Duration::from_millis(1)).await;
            }
        };
        time::timeout(Duration::from_secs(60), comes).await.expect("it comes to that slice");
    }

    #[test]
    fn a_worker_has_long_slices_while_two_contend_and_its_own_when_one_is_alone() {
        let thread = thread::spawn(|| {
            let Some(slices) = Slices::of_this_thread().unwrap_or_default() else {
                return ambient_testkit::skipped("slices of workers: this kernel knows none that a thread asks for");
            };
            let turns = Turns::new();
            let mut builder = runtime::Builder::new_current_thread();
            let asking = Asking::new(&mut builder, &turns);
            let wakes = asking.clone();
            builder.on_thread_park(move || {
                asking.before_sleep();
            });
            builder.on_thread_unpark(move || wakes.after_sleep());
            let runtime = builder.enable_all().build().unwrap();
            let has = || slices.has().unwrap();
            runtime.block_on(async {
                tokio::spawn(turns.clone().rounds());
                let shares = [turns.share(), turns.share()];
                let begin = |share: usize| {
                    tokio::spawn(shares[share].run(Box::pin(async {
                        loop {
                            use_up(2 * Turns::QUANTUM);
                            time::sleep(Duration::from_millis(1)).await;
                        }
                    })))
                };
                let one = begin(0);
                for _ in 0..4 * Habit::HOT {
                    time::sleep(Duration::from_millis(1)).await;
                }
                assert_eq!(has(), Some(Slice::Own), "one who is alone waits for nobody");
                let other = begin(1);
                comes_to(&has, Slice::Long).await;
                let elsewhere = tokio::task::spawn_blocking(move || slices.has().unwrap());
                assert_eq!(elsewhere.await.unwrap(), Some(Slice::Own), "a thread of the runtime's beside it");
                one.abort();
                other.abort();
                comes_to(&has, Slice::Own).await;
            });
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_thread_asks_while_pods_contend_for_it_and_for_a_while_after() {
        let habit = Habit::default();
        let sleep = |contended| (habit.before_sleep(contended), habit.after_sleep());
        let (asks, leaves) = ((Some(Slice::Short), Some(Slice::Long)), (None, None));
        assert_eq!(sleep(false), leaves, "nobody waits");
        assert!(!habit.is_warm());
        for _ in 0..10 {
            assert_eq!((sleep(true), sleep(true)), (leaves, leaves), "now and then");
            for _ in 0..2 * Habit::MORE {
                assert_eq!(sleep(false), leaves);
            }
        }
        for _ in 1..Habit::HOT / Habit::MORE {
            assert_eq!(sleep(true), leaves);
        }
        for _ in 0..Habit::MOST {
            assert_eq!(sleep(true), asks);
            assert!(habit.is_warm());
        }
        for _ in 1..Habit::MOST {
            assert_eq!(sleep(false), asks);
        }
        assert_eq!(sleep(false), (Some(Slice::Own), None), "as it was");
        assert!(!habit.is_warm());
        assert_eq!(sleep(false), leaves, "and no call for nothing");
    }
}
