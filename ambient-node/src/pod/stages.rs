//! How far a pod is on its way out, and who waits for that.

use std::{
    future::Future,
    pin::pin,
    sync::atomic::{AtomicU8, AtomicUsize, Ordering},
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

impl Stage {
    fn of(number: u8) -> Self {
        match number {
            0 => Self::Serving,
            1 => Self::Leaving,
            2 => Self::Draining,
            3 => Self::Cut,
            _ => Self::Stopped,
        }
    }
}

/// Who waits is in one of so many lists, as each look at one's place in a list takes its lock: every connection waits, and looks
/// whenever something of it moves.
const LISTS: usize = 8;

/// The stage of a pod, or of them all. Each of its connections waits for one, so that little is kept of who waits: a third of what a channel would.
#[derive(Debug, Default)]
pub(crate) struct Stages {
    now: AtomicU8,
    changed: [Notify; LISTS],
    next: AtomicUsize,
}

impl Stages {
    pub(crate) fn now(&self) -> Stage {
        Stage::of(self.now.load(Ordering::Acquire))
    }

    /// Waits until it is at least this one. Of those who wait one is told before another, and may end what the other stands on: to know
    /// which came first takes a look at [`Self::now`]. Cancel safe.
    pub(crate) fn reach(&self, stage: Stage) -> impl Future<Output = ()> + Send + use<'_> {
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
    pub(crate) fn change(&self, to: impl Fn(Stage) -> Stage) {
        let other = |now| Some(to(Stage::of(now)) as u8).filter(|to| *to != now);
        if self.now.fetch_update(Ordering::AcqRel, Ordering::Acquire, other).is_ok() {
            self.changed.iter().for_each(Notify::notify_waiters);
        }
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

    #[test]
    fn stages_are_numbered_in_their_order() {
        for (number, stage) in [Stage::Serving, Stage::Leaving, Stage::Draining, Stage::Cut, Stage::Stopped]
            .into_iter()
            .enumerate()
        {
            assert_eq!((stage as usize, Stage::of(number as u8)), (number, stage));
        }
    }
}
