//! The parts of a node that never end, and what it is called where one has.

use std::{collections::HashMap, io};

use tokio::task::{Id, JoinError, JoinSet};

/// Why a node has stopped without being told to: going on would serve an old state as if it were the present one. Until it runs
/// again the traffic of its pods is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The source of the mesh's state has none any more: [`Source::next`](ambient_control::Source::next) gave nothing.
    #[error(
        "the source of the mesh's state has ended; start the node again, with one that goes on: until then its pods' traffic is refused"
    )]
    SourceEnded,
    /// A part has ended that never should.
    #[error("a part of the node has ended ({part}); start it again: until then its pods' traffic is refused")]
    Ended {
        /// Which, in words for people.
        part: &'static str,
    },
    /// A part has panicked that is not begun anew.
    #[error("a part of the node has panicked ({part}: {why}); start it again: until then its pods' traffic is refused")]
    Panicked {
        /// Which, in words for people.
        part: &'static str,
        /// What it said.
        why: String,
    },
    /// The thread that serves the pages cannot be started.
    #[error("the thread that serves metrics, readiness and the admin page cannot be started")]
    Pages(#[source] io::Error),
}

impl RunError {
    /// A task of one's own has ended.
    pub(crate) fn of(part: &'static str, error: Option<JoinError>) -> Self {
        match error {
            None if part == SOURCE => Self::SourceEnded,
            None => Self::Ended { part },
            Some(error) => Self::Panicked {
                part,
                why: error.to_string(),
            },
        }
    }
}

/// The name of the part that follows the source.
pub(crate) const SOURCE: &str = "the mesh's state";
/// The name of the part that captures pods, or is told which there are.
pub(crate) const PODS: &str = "the pods";

/// Tasks with names. Dropped, they end.
#[derive(Default)]
pub(crate) struct Tasks {
    tasks: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    pub(crate) fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let id = self.tasks.spawn(task).id();
        self.names.insert(id, name);
    }

    /// Waits for one to end. Cancel safe.
    pub(crate) async fn ended(&mut self) -> RunError {
        let (id, error) = match self.tasks.join_next_with_id().await {
            None => return RunError::of("all of it", None),
            Some(Ok((id, ()))) => (id, None),
            Some(Err(error)) => (error.id(), Some(error)),
        };
        RunError::of(self.names.get(&id).copied().unwrap_or("one without a name"), error)
    }

    /// Ends them.
    pub(crate) async fn shutdown(mut self) {
        self.tasks.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn who_has_ended_is_named_and_why() {
        let mut tasks = Tasks::default();
        tasks.spawn("one that goes on", pending());
        tasks.spawn(SOURCE, async {});
        assert!(matches!(tasks.ended().await, RunError::SourceEnded));
        tasks.spawn("one that ends", async {});
        assert!(matches!(tasks.ended().await, RunError::Ended { part: "one that ends" }));
        tasks.spawn("one that panics", async { panic!("on purpose") });
        match tasks.ended().await {
            RunError::Panicked { part, why } => assert!(part == "one that panics" && why.contains("on purpose"), "{part}: {why}"),
            other => panic!("{other}"),
        }
        tasks.shutdown().await;
    }
}
