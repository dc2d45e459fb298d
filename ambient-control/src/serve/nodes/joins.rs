//! Those who join at the same time: they are noted with one write, and each is answered after that.

use std::{
    sync::{Arc, MutexGuard, PoisonError},
    time::SystemTime,
};

use tokio::sync::oneshot;

use super::{NodeCertificate, Nodes, NodesError, Proof};

/// A certificate that is about to be given, for a key and to whoever is known by a proof.
#[derive(Debug)]
pub(in crate::serve) struct Join {
    pub(in crate::serve) proof: Proof,
    /// The public key.
    pub(in crate::serve) key: Vec<u8>,
    pub(in crate::serve) given: NodeCertificate,
    /// When it is asked for.
    pub(in crate::serve) now: SystemTime,
}

/// Who waits to be noted.
#[derive(Debug, Default)]
pub(super) struct Joins {
    pub(super) waiting: Vec<(Join, oneshot::Sender<Noted>)>,
    /// Somebody is writing, and will write these next.
    pub(super) writes: bool,
}

/// As [`Nodes::note`] says; of one failure all hear who were to be noted with that write.
type Noted = Result<bool, Arc<NodesError>>;

impl Nodes {
    /// Takes note of a certificate, with whatever else waits to be noted; `false` where nobody is known by its proof any more, or its
    /// token was used for another key. What is not noted here is not accepted.
    ///
    /// # Cancel safety
    /// Whoever gives up may be noted all the same.
    pub(in crate::serve) async fn enrol(self: &Arc<Self>, join: Join) -> Noted {
        let (answer, noted) = oneshot::channel();
        let begins = {
            let mut joins = self.joins();
            joins.waiting.push((join, answer));
            !std::mem::replace(&mut joins.writes, true)
        };
        if begins {
            let nodes = self.clone();
            // The lock of the directory, and the disk, may be waited for.
            tokio::task::spawn_blocking(move || nodes.write_joins());
        }
        noted.await.unwrap_or_else(|_| Err(Arc::new(NodesError::Ended)))
    }

    fn write_joins(&self) {
        let _ended = Ended(self);
        loop {
            let waiting = {
                let mut joins = self.joins();
                joins.writes = !joins.waiting.is_empty();
                std::mem::take(&mut joins.waiting)
            };
            if waiting.is_empty() {
                return;
            }
            let (joins, answers): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
            let noted: Vec<Noted> = match self.note(&joins) {
                Ok(noted) => noted.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(Arc::new(error)); answers.len()],
            };
            for (answer, noted) in answers.into_iter().zip(noted) {
                // Whoever has given up asks again.
                let _ = answer.send(noted);
            }
        }
    }

    pub(super) fn joins(&self) -> MutexGuard<'_, Joins> {
        self.joins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A writer that ends in whatever way leaves nobody waiting for it.
struct Ended<'a>(&'a Nodes);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            *self.0.joins() = Joins::default();
        }
    }
}
