//! What the source of state brings, and when what it has not brought is waited for no longer.

use std::time::Duration;

use ambient_control::{Batch, Source};
use tokio::time::{self, Instant};

#[cfg(test)]
mod tests;

/// How long after the first whole state a policy that a workload lists may still come; and how long a connection that was let in
/// goes on where its workload lists a policy that is not there.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// The batches of a source, and between them the end of [`GRACE`], and whatever else is due.
pub(crate) struct Feed {
    source: Box<dyn Source>,
    grace: Grace,
    due: Option<Instant>,
}

/// Drawn once from left to right.
#[derive(Clone, Copy)]
enum Grace {
    /// The first whole state has not come.
    NotBegun,
    EndsAt(Instant),
    Over,
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum News {
    Batch(Batch),
    /// Once: policies that are listed and have not come count as never coming.
    GraceIsOver,
    /// The time that [`Feed::wake_at`] was told.
    Due,
}

impl Feed {
    pub(crate) fn new(source: Box<dyn Source>) -> Self {
        Self {
            source,
            grace: Grace::NotBegun,
            due: None,
        }
    }

    /// Something is to be looked at then, once; in the place of what was told before.
    pub(crate) fn wake_at(&mut self, due: Option<Instant>) {
        self.due = due;
    }

    /// Waits for what comes next; `None` when there will be no more. Cancel safe, as [`Source::next`] is.
    pub(crate) async fn next(&mut self) -> Option<News> {
        let over = async |grace| match grace {
            Grace::EndsAt(end) => time::sleep_until(end).await,
            Grace::NotBegun | Grace::Over => std::future::pending().await,
        };
        let due = async |due| match due {
            Some(due) => time::sleep_until(due).await,
            None => std::future::pending().await,
        };
        tokio::select! {
            // A source that is never silent must not put the end off.
            biased;
            () = over(self.grace) => {
                self.grace = Grace::Over;
                Some(News::GraceIsOver)
            }
            () = due(self.due) => {
                self.due = None;
                Some(News::Due)
            }
            batch = self.source.next() => {
                let batch = batch?;
                if let (Grace::NotBegun, true) = (self.grace, batch.synced) {
                    self.grace = Grace::EndsAt(Instant::now() + GRACE);
                }
                Some(News::Batch(batch))
            }
        }
    }
}
