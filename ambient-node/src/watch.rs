//! Connections that policy let in, asked again when what let them in changes.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

use ambient_authz::{Conn, Decision, Peer, Target};
use ambient_core::{Identity, PodUid, WorkloadUid};

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
    live: Mutex<HashMap<WorkloadUid, HashMap<u64, Arc<Live>>>>,
    next: AtomicU64,
}

/// One of them, as whoever looks at all and who carries it share it. Never asked for the list while it is locked.
#[derive(Debug)]
struct Live(Mutex<Watching>);

#[derive(Debug)]
struct Watching {
    subject: Subject,
    word: Word,
}

/// The word that a connection must end.
#[derive(Debug)]
enum Word {
    /// It may go on.
    None,
    /// The same, and who carries it is woken when it may not.
    Awaited(Waker),
    /// Why it may not.
    Said(String),
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
    pub(crate) fn register(self: &Arc<Self>, subject: Subject) -> Watched {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let workload = subject.workload.clone();
        let word = Word::None;
        let live = Arc::new(Live(Mutex::new(Watching { subject, word })));
        self.locked().entry(workload).or_default().insert(id, live.clone());
        Watched {
            of: self.clone(),
            live,
            id,
        }
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
            subject: live.locked().subject.clone(),
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
                let ended = connections.remove(&asked.id);
                // Whom that wakes may want the list.
                drop(live);
                if let Some(ended) = ended {
                    ended.cut(why);
                }
            }
            None => {
                if let Some(live) = connections.get(&asked.id) {
                    live.locked().subject.peer = asked.subject.peer;
                }
            }
        }
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<WorkloadUid, HashMap<u64, Arc<Live>>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    fn cut(&self, why: String) {
        let before = std::mem::replace(&mut self.locked().word, Word::Said(why));
        if let Word::Awaited(waker) = before {
            waker.wake();
        }
    }

    fn locked(&self) -> MutexGuard<'_, Watching> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection on the list, until it is dropped.
#[derive(Debug)]
pub(crate) struct Watched {
    of: Arc<Watch>,
    live: Arc<Live>,
    id: u64,
}

impl Watched {
    /// Why the connection must end, once; pending as long as it need not.
    pub(crate) fn poll_cut(&mut self, cx: &Context<'_>) -> Poll<String> {
        let mut live = self.live.locked();
        match &mut live.word {
            Word::Awaited(waker) if waker.will_wake(cx.waker()) => return Poll::Pending,
            Word::None | Word::Awaited(_) => {}
            Word::Said(why) => return Poll::Ready(std::mem::take(why)),
        }
        let before = std::mem::replace(&mut live.word, Word::Awaited(cx.waker().clone()));
        // What goes with a waker may want this.
        drop(live);
        drop(before);
        Poll::Pending
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let workload = self.live.locked().subject.workload.clone();
        let mut live = self.of.locked();
        if let Some(connections) = live.get_mut(&workload) {
            connections.remove(&self.id);
            if connections.is_empty() {
                live.remove(&workload);
            }
        }
    }
}
