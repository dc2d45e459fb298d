//! Connections that policy let in, asked again when what let them in changes.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use ambient_authz::{Conn, Decision, decide, decide_again};
use ambient_core::{Identity, PodUid, Workload, WorkloadUid};
use tokio::sync::oneshot;

use crate::{
    pod::local_workload,
    state::{Changed, Snapshot},
};

#[cfg(test)]
mod tests;

/// An inbound connection as policy sees it.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    /// The pod that serves it.
    pub(crate) pod: PodUid,
    pub(crate) workload: WorkloadUid,
    /// Who that pod is: the certificate that the connection was accepted with names it.
    pub(crate) identity: Identity,
    pub(crate) peer: Option<Identity>,
    pub(crate) source: IpAddr,
    pub(crate) destination: SocketAddr,
}

impl Subject {
    /// Whether it may come in.
    pub(crate) fn decide(&self, snapshot: &Snapshot, workload: &Workload) -> Decision {
        decide(&snapshot.policies, workload, &self.conn())
    }

    fn conn(&self) -> Conn<'_> {
        Conn {
            peer: self.peer.as_ref(),
            source: self.source,
            destination: self.destination,
        }
    }

    /// Why it may not go on; `None` if it may.
    fn refusal(&self, snapshot: &Snapshot) -> Option<String> {
        match local_workload(snapshot, &self.pod, &self.identity) {
            Ok(workload) => match decide_again(&snapshot.policies, workload, &self.conn()) {
                Decision::Allow(_) => None,
                Decision::Deny(denial) => Some(denial.to_string()),
            },
            Err(unknown) => Some(unknown.to_string()),
        }
    }
}

/// Every live inbound connection of this node.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    live: Mutex<HashMap<u64, (Subject, oneshot::Sender<String>)>>,
    next: AtomicU64,
}

impl Watch {
    /// Takes note of a connection. Must come before its first decision, so that no change falls between the two.
    pub(crate) fn register(self: &Arc<Self>, subject: Subject) -> (Registration, Cut) {
        let (cut, was_cut) = oneshot::channel();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.live.lock().unwrap_or_else(PoisonError::into_inner).insert(id, (subject, cut));
        (Registration { of: self.clone(), id }, Cut(was_cut))
    }

    /// Asks again those whom a change concerns, with the present workload, and cuts those now refused.
    pub(crate) fn recheck(&self, snapshot: &Snapshot, changed: &Changed) {
        if !changed.policies && changed.workloads.is_empty() {
            return;
        }
        let workloads: HashSet<_> = changed.workloads.iter().collect();
        let concerned = |subject: &Subject| changed.policies || workloads.contains(&subject.workload);
        // Decided outside of the lock: new connections must not wait for ten thousand old ones.
        let asked: Vec<(u64, Subject)> = {
            let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
            let concerned = live.iter().filter(|(_, (subject, _))| concerned(subject));
            concerned.map(|(id, (subject, _))| (*id, subject.clone())).collect()
        };
        let refused = asked.into_iter().filter_map(|(id, subject)| Some((id, subject.refusal(snapshot)?)));
        let refused: Vec<_> = refused.collect();
        if refused.is_empty() {
            return;
        }
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, why) in refused {
            // The connection may have ended meanwhile: then there is nobody to tell.
            if let Some((_, cut)) = live.remove(&id) {
                let _ = cut.send(why);
            }
        }
    }
}

/// Takes the connection off the list when dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    of: Arc<Watch>,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.of.live.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// The word that a connection must end.
#[derive(Debug)]
pub(crate) struct Cut(oneshot::Receiver<String>);

impl Cut {
    /// Why the connection must end; waits for ever if it need not. Cancel safe.
    pub(crate) async fn reason(&mut self) -> String {
        match (&mut self.0).await {
            Ok(reason) => reason,
            Err(_) => std::future::pending().await,
        }
    }
}
