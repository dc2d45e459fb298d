//! What the source of state brings, and when what it has not brought is waited for no longer.

use std::time::Duration;

use ambient_control::{Batch, Source};
use tokio::time::{self, Instant};

#[cfg(test)]
mod tests;

/// How long after the first whole state a policy that a workload lists may still come.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// The batches of a source, and between them the end of [`GRACE`].
pub(crate) struct Feed {
    source: Box<dyn Source>,
    grace: Grace,
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
}

impl Feed {
    pub(crate) fn new(source: Box<dyn Source>) -> Self {
        Self {
            source,
            grace: Grace::NotBegun,
        }
    }

    /// Waits for what comes next; `None` when there will be no more. Cancel safe, as [`Source::next`] is.
    pub(crate) async fn next(&mut self) -> Option<News> {
        let over = async |grace| match grace {
            Grace::EndsAt(end) => time::sleep_until(end).await,
            Grace::NotBegun | Grace::Over => std::future::pending().await,
        };
        tokio::select! {
            // A source that is never silent must not put the end off.
            biased;
            () = over(self.grace) => {
                self.grace = Grace::Over;
                Some(News::GraceIsOver)
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
