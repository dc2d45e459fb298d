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

use ambient_authz::{Conn, Decision, Denial, Peer, Target};
use ambient_core::{Identity, PodUid, WorkloadUid};
use tokio::time::Instant;

use crate::{
    feed::GRACE,
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
    fn refusal(&self, snapshot: &Snapshot, before: &mut Option<Target>) -> Option<Refusal> {
        let workload = match local_workload(snapshot, &self.server.pod, &self.server.identity) {
            Ok(workload) => workload,
            Err(unknown) => return Some(Refusal::Certain(unknown.to_string())),
        };
        let same = before.take().filter(|target| Arc::ptr_eq(target.workload(), workload));
        let target = before.insert(same.unwrap_or_else(|| snapshot.policies.target(workload)));
        match target.decide_again(&snapshot.policies, &self.conn()) {
            Decision::Allow(_) => None,
            Decision::Deny(denial @ Denial::NotArrived(_)) => Some(Refusal::NotArrived(denial.to_string())),
            Decision::Deny(denial) => Some(Refusal::Certain(denial.to_string())),
        }
    }
}

/// Why a connection may not go on.
enum Refusal {
    Certain(String),
    /// A policy that its workload lists is not there: it may be on its way, or gone and soon listed no more, as policies and
    /// workloads come one after the other.
    NotArrived(String),
}

/// Every live inbound connection of this node, by the workload that serves it.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Each apart: a table has places for more than there are.
    live: Mutex<HashMap<WorkloadUid, HashMap<u64, Arc<Live>>>>,
    next: AtomicU64,
    /// Workloads that list a policy which is not there, and until when their connections may go on all the same.
    unsure: Mutex<HashMap<WorkloadUid, Instant>>,
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
    /// asked. Those whose workload lists a policy that is not there are let on until [`Watch::settles_at`]; nobody new is let in
    /// meanwhile.
    pub(crate) fn recheck(&self, snapshot: &Snapshot, changed: &Changed) -> usize {
        if changed.policies.is_empty() && changed.workloads.is_empty() {
            return 0;
        }
        // Decided outside of the lock: new connections must not wait for ten thousand old ones.
        let asked = self.concerned(snapshot, changed);
        self.ask(snapshot, asked, &HashSet::new())
    }

    /// When it is long enough that a policy was waited for, of any workload.
    pub(crate) fn settles_at(&self) -> Option<Instant> {
        self.unsure().values().min().copied()
    }

    /// Asks those again whose policies were waited for long enough, and cuts those that are refused still. Gives how many it asked.
    pub(crate) fn settle(&self, snapshot: &Snapshot) -> usize {
        let now = Instant::now();
        let due: HashSet<WorkloadUid> = self.unsure().extract_if(|_, until| *until <= now).map(|(uid, _)| uid).collect();
        let asked = self.of(|uid| due.contains(uid));
        self.ask(snapshot, asked, &due)
    }

    fn ask(&self, snapshot: &Snapshot, asked: Vec<Asked>, due: &HashSet<WorkloadUid>) -> usize {
        let (count, mut target) = (asked.len(), None);
        let mut is_unsure: HashMap<WorkloadUid, bool> = HashMap::new();
        for mut asked in asked {
            if !snapshot.policies.knows(&asked.subject.peer) {
                asked.subject.peer = Arc::new(snapshot.policies.resolve(asked.subject.peer.identity()));
                asked.resolved = true;
            }
            let workload = &asked.subject.workload;
            let mut is_let_on = false;
            let refused = match asked.subject.refusal(snapshot, &mut target) {
                Some(Refusal::NotArrived(_)) if !due.contains(workload) => {
                    is_let_on = true;
                    None
                }
                Some(Refusal::Certain(why) | Refusal::NotArrived(why)) => Some(why),
                None => None,
            };
            match is_unsure.get_mut(workload) {
                Some(is_unsure) => *is_unsure |= is_let_on,
                None => drop(is_unsure.insert(workload.clone(), is_let_on)),
            }
            self.answer(asked, refused);
        }
        let (mut unsure, until) = (self.unsure(), Instant::now() + GRACE);
        for (workload, is_unsure) in is_unsure {
            match is_unsure {
                true => drop(unsure.entry(workload).or_insert(until)),
                false => drop(unsure.remove(&workload)),
            }
        }
        count
    }

    fn concerned(&self, snapshot: &Snapshot, changed: &Changed) -> Vec<Asked> {
        // A batch may hold the whole mesh.
        let workloads: HashSet<&WorkloadUid> = changed.workloads.iter().collect();
        self.of(|uid| {
            let of_policies = || match snapshot.mesh.workload(uid) {
                Some(workload) => changed.policies.concerns(workload),
                // It is gone, and will be refused.
                None => true,
            };
            workloads.contains(uid) || of_policies()
        })
    }

    /// The connections of some workloads.
    fn of(&self, is_one: impl Fn(&WorkloadUid) -> bool) -> Vec<Asked> {
        let live = self.locked();
        let concerned = live.iter().filter(|(uid, _)| is_one(uid));
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

    fn unsure(&self) -> MutexGuard<'_, HashMap<WorkloadUid, Instant>> {
        self.unsure.lock().unwrap_or_else(PoisonError::into_inner)
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
