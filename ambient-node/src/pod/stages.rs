//! How far a pod is on its way out, and who waits for that.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

/// How far a pod, or the node, is on its way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// It serves.
    #[default]
    Serving,
    /// It is captured no more: it takes what still comes until nothing comes, and what is open goes on.
    Leaving,
    /// It takes nothing new; what is open goes on.
    Draining,
    /// What is open is reset; names are answered still.
    Cut,
    /// Nothing of it is served any more.
    Stopped,
}

/// Who waits is in one of so many lists, as each look at one's place in a list takes its lock: every connection waits, and looks
/// whenever something of it moves.
const LISTS: usize = 8;

/// The stage of a pod. Each of its connections waits for one, so that little is kept of who waits: a third of what a channel would.
#[derive(Debug, Default)]
pub(super) struct Stages {
    now: Mutex<Stage>,
    changed: [Notify; LISTS],
    next: AtomicUsize,
}

impl Stages {
    pub(super) fn now(&self) -> Stage {
        *self.lock()
    }

    /// Waits until it is at least this one. Cancel safe.
    pub(super) fn reach(&self, stage: Stage) -> impl Future<Output = ()> + Send + use<'_> {
        let list = &self.changed[self.next.fetch_add(1, Ordering::Relaxed) % LISTS];
        async move {
            loop {
                // In the list before the look: what changes after that wakes it.
                let changed = pin!(list.notified());
                if self.now() >= stage {
                    return;
                }
                changed.await;
            }
        }
    }

    /// Goes to another stage, or stays.
    pub(super) fn change(&self, to: impl FnOnce(Stage) -> Stage) {
        let mut now = self.lock();
        let before = *now;
        *now = to(before);
        let changes = *now != before;
        drop(now);
        if changes {
            self.changed.iter().for_each(Notify::notify_waiters);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Stage> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Waker},
    };

    use super::*;

    fn waits_on(waits: &mut Pin<Box<impl Future<Output = ()>>>) -> bool {
        waits.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    #[tokio::test]
    async fn who_waits_for_a_stage_hears_of_it_or_of_a_later_one() {
        let stages = Stages::default();
        stages.reach(Stage::Serving).await;
        let mut waiting: Vec<_> = (0..3 * LISTS).map(|_| Box::pin(stages.reach(Stage::Draining))).collect();
        assert!(waiting.iter_mut().all(waits_on));
        stages.change(|_| Stage::Leaving);
        assert!(waiting.iter_mut().all(waits_on));
        // Nobody is polled between the two.
        stages.change(|_| Stage::Serving);
        stages.change(|now| now.max(Stage::Cut));
        for waits in waiting {
            waits.await;
        }
        stages.change(|now| now.max(Stage::Leaving));
        assert_eq!(stages.now(), Stage::Cut);
    }
}
