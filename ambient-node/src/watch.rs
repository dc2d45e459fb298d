//! Connections that policy let in, asked again when what let them in changes.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use ambient_authz::{Conn, Decision, Peer, Target};
use ambient_core::{Identity, PodUid, WorkloadUid};
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
    pub(crate) server: Arc<Server>,
    pub(crate) workload: WorkloadUid,
    /// Who speaks, as far as the policies ask: the same for all streams of a tunnel.
    pub(crate) peer: Arc<Peer>,
    pub(crate) source: IpAddr,
    pub(crate) destination: SocketAddr,
}

/// Who serves a connection: the same for all of a pod.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) pod: PodUid,
    /// Who that pod is: the certificate that the connection was accepted with names it.
    pub(crate) identity: Identity,
}

impl Subject {
    /// Whether it may come in.
    pub(crate) fn decide(&self, snapshot: &Snapshot, target: &Target) -> Decision {
        target.decide(&snapshot.policies, &self.conn())
    }

    fn conn(&self) -> Conn<'_> {
        Conn {
            peer: &self.peer,
            source: self.source,
            destination: self.destination,
        }
    }

    /// Why it may not go on; `None` if it may. Whom the one before went to is known still, and is as a rule the same.
    fn refusal(&self, snapshot: &Snapshot, before: &mut Option<Target>) -> Option<String> {
        let workload = match local_workload(snapshot, &self.server.pod, &self.server.identity) {
            Ok(workload) => workload,
            Err(unknown) => return Some(unknown.to_string()),
        };
        let same = before.take().filter(|target| Arc::ptr_eq(target.workload(), workload));
        let target = before.insert(same.unwrap_or_else(|| snapshot.policies.target(workload)));
        match target.decide_again(&snapshot.policies, &self.conn()) {
            Decision::Allow(_) => None,
            Decision::Deny(denial) => Some(denial.to_string()),
        }
    }
}

/// Every live inbound connection of this node, by the workload that serves it.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Each apart: a table has places for more than there are.
    live: Mutex<HashMap<WorkloadUid, HashMap<u64, Box<Live>>>>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Live {
    subject: Subject,
    cut: oneshot::Sender<String>,
}

/// A connection that is asked again.
struct Asked {
    id: u64,
    subject: Subject,
    /// Whether its peer was resolved anew, as the names that policies ask for have changed.
    resolved: bool,
}

impl Watch {
    /// Takes note of a connection. Must come before its first decision, so that no change falls between the two.
    pub(crate) fn register(self: &Arc<Self>, subject: Subject) -> (Registration, Cut) {
        let (cut, was_cut) = oneshot::channel();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let workload = subject.workload.clone();
        self.locked()
            .entry(workload.clone())
            .or_default()
            .insert(id, Box::new(Live { subject, cut }));
        let registration = Registration {
            of: self.clone(),
            workload,
            id,
        };
        (registration, Cut(was_cut))
    }

    /// Asks again those whom a change concerns, with the present workload, and cuts those now refused. Gives how many it
    /// asked.
    pub(crate) fn recheck(&self, snapshot: &Snapshot, changed: &Changed) -> usize {
        if changed.policies.is_empty() && changed.workloads.is_empty() {
            return 0;
        }
        // Decided outside of the lock: new connections must not wait for ten thousand old ones.
        let asked = self.concerned(snapshot, changed);
        let (count, mut target) = (asked.len(), None);
        for mut asked in asked {
            if !snapshot.policies.knows(&asked.subject.peer) {
                asked.subject.peer = Arc::new(snapshot.policies.resolve(asked.subject.peer.identity()));
                asked.resolved = true;
            }
            let refused = asked.subject.refusal(snapshot, &mut target);
            self.answer(asked, refused);
        }
        count
    }

    fn concerned(&self, snapshot: &Snapshot, changed: &Changed) -> Vec<Asked> {
        let is_concerned = |uid: &WorkloadUid| match snapshot.mesh.workload(uid) {
            Some(workload) => changed.policies.concerns(workload),
            // It is gone, and will be refused.
            None => true,
        };
        // A batch may hold the whole mesh.
        let workloads: HashSet<&WorkloadUid> = changed.workloads.iter().collect();
        let live = self.locked();
        let concerned = live.iter().filter(|(uid, _)| workloads.contains(uid) || is_concerned(uid));
        let connections = concerned.flat_map(|(_, connections)| connections);
        let asked = connections.map(|(id, live)| Asked {
            id: *id,
            subject: live.subject.clone(),
            resolved: false,
        });
        asked.collect()
    }

    fn answer(&self, asked: Asked, refused: Option<String>) {
        if refused.is_none() && !asked.resolved {
            return;
        }
        let mut live = self.locked();
        // The connection may have ended meanwhile: then there is nobody to tell.
        let Some(connections) = live.get_mut(&asked.subject.workload) else {
            return;
        };
        match refused {
            Some(why) => {
                if let Some(live) = connections.remove(&asked.id) {
                    let _ = live.cut.send(why);
                }
            }
            None => {
                if let Some(live) = connections.get_mut(&asked.id) {
                    live.subject.peer = asked.subject.peer;
                }
            }
        }
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<WorkloadUid, HashMap<u64, Box<Live>>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the connection off the list when dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    of: Arc<Watch>,
    workload: WorkloadUid,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut live = self.of.locked();
        if let Some(connections) = live.get_mut(&self.workload) {
            connections.remove(&self.id);
            if connections.is_empty() {
                live.remove(&self.workload);
            }
        }
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
