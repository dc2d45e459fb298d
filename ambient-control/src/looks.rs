//! What is looked at again and again, for what became different: files that are a source of changes.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    task::{self, JoinHandle},
    time::{self, Interval, MissedTickBehavior},
};

use crate::{Batch, BoxFuture};

/// Something that is looked at.
pub(crate) trait Looked: Send + Sized + 'static {
    /// Looks again; may block.
    fn look(&mut self);

    /// What became different since the last batch, if something has.
    fn news(&mut self) -> Option<Batch>;

    /// What is done before each look; nothing, unless said.
    fn before(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// The batches of something that a task of its own looks at; it ends when this is dropped. While nobody asks for batches it
/// waits with one that is ready, and looks no further.
#[derive(Debug)]
pub(crate) struct Batches {
    first: Option<Batch>,
    later: mpsc::Receiver<Batch>,
    task: JoinHandle<()>,
}

impl Batches {
    /// Goes on looking where the first batch was taken.
    pub(crate) fn after(first: Batch, mut looked: impl Looked + Sync, mut looks: Interval) -> Self {
        let (sender, later) = mpsc::channel(1);
        let task = task::spawn(async move {
            // Room first, so that what is sent is what was just seen.
            while let Ok(room) = sender.reserve().await {
                let batch = loop {
                    tokio::select! {
                        _ = looks.tick() => {}
                        () = sender.closed() => return,
                    }
                    looked.before().await;
                    let Some(again) = look(looked).await else { return };
                    looked = again;
                    if let Some(batch) = looked.news() {
                        break batch;
                    }
                };
                room.send(batch);
            }
        });
        Self {
            first: Some(first),
            later,
            task,
        }
    }

    /// There is one, and nothing to look at.
    #[cfg(feature = "local-xds")]
    pub(crate) fn only(first: Batch) -> Self {
        let (sender, later) = mpsc::channel(1);
        Self {
            first: Some(first),
            later,
            // Whoever asks for more waits, as for a file that does not change.
            task: task::spawn(async move { sender.closed().await }),
        }
    }

    /// The next; `None` where the task has ended. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Batch> {
        match self.first.take() {
            Some(first) => Some(first),
            None => self.later.recv().await,
        }
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// When to look. Must be called within a tokio runtime that has its timer.
pub(crate) fn looks() -> Interval {
    let mut looks = time::interval(INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks
}

/// One look, off the runtime's own threads; `None` when the runtime is ending.
pub(crate) async fn look<L: Looked>(mut looked: L) -> Option<L> {
    let again = task::spawn_blocking(move || {
        looked.look();
        looked
    });
    again.await.ok()
}

/// Between two looks: half of the 200 ms that are promised, as a file needs two.
const INTERVAL: Duration = Duration::from_millis(100);
/// How often to look for something to hold still, at the start: 5 s.
pub(crate) const OPEN_LOOKS: u32 = 50;
