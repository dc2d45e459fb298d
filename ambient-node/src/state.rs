//! Mesh and policies at one moment, behind one pointer: a connection is routed and decided on the same version.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ambient_authz::{Affected, Policies};
use ambient_control::{Batch, Change, Fault};
use ambient_core::{Mesh, PodUid, TunnelProtocol, Workload, WorkloadUid, mesh};
use arc_swap::ArcSwapOption;
use tokio::{sync::watch, task};

mod circles;
#[cfg(test)]
mod tests;

use circles::Circles;

/// A refused dial is taken for the news of a change that is still under way within this time of the change.
pub(crate) const SETTLING: Duration = Duration::from_secs(2);

/// Changes that are taken in at a time: some 5 ms of work. A whole mesh at once would keep this thread from all else, as
/// answering DNS, for half a second.
const AT_ONCE: usize = 1_000;

/// One version of all that decisions are made on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) mesh: Mesh,
    pub(crate) policies: Policies,
}

/// What has changed: whom to ask again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changed {
    /// Those whose policies are others than they were.
    pub(crate) policies: Affected,
    /// These workloads are new, different or gone.
    pub(crate) workloads: Vec<WorkloadUid>,
}

/// What has come of the next version.
#[derive(Debug, Default)]
struct Coming {
    snapshot: Snapshot,
    changed: Changed,
    /// Texts that many workloads share are held once.
    sharing: mesh::Sharing,
    /// The pods that this node serves, and their service accounts, by what a source calls them that does not know pods' UIDs.
    pods: HashMap<WorkloadUid, (PodUid, Arc<str>)>,
    /// Those of which it was so that the pod's UID came to be known.
    named: HashSet<WorkloadUid>,
    /// Waypoints that lead in circles.
    circles: Circles,
    /// More of the same batch is to come: nobody is to see it before.
    is_half: bool,
}

/// The present [`Snapshot`], and what of the next has come.
#[derive(Debug)]
pub(crate) struct State {
    /// `None` until the first whole state is here: every connection is refused until then.
    current: ArcSwapOption<Snapshot>,
    /// What has come so far, whole or not; only [`State::apply`] touches it.
    coming: Mutex<Coming>,
    faults: watch::Sender<Arc<[Fault]>>,
    /// Whether there has been a whole state.
    arrived: watch::Sender<bool>,
    /// Told with each version that is published.
    news: watch::Sender<()>,
    /// Workloads whose way of being reached has changed within [`SETTLING`].
    settling: Mutex<HashMap<WorkloadUid, Instant>>,
}

impl Default for State {
    fn default() -> Self {
        Self::new(Policies::default())
    }
}

impl State {
    /// Nothing has come yet; `policies` are none, and decide as they are to.
    pub(crate) fn new(policies: Policies) -> Self {
        let snapshot = Snapshot {
            policies,
            ..Snapshot::default()
        };
        let coming = Coming {
            snapshot,
            ..Coming::default()
        };
        Self {
            current: ArcSwapOption::empty(),
            coming: Mutex::new(coming),
            faults: watch::Sender::new(Arc::from([])),
            arrived: watch::Sender::new(false),
            news: watch::Sender::new(()),
            settling: Mutex::default(),
        }
    }

    /// The present version; `None` before the first whole state, and where the source says that it is too old to go by.
    pub(crate) fn current(&self) -> Option<Arc<Snapshot>> {
        self.current.load_full()
    }

    /// What is wrong with the state of now, as its source says or as is seen of it here.
    pub(crate) fn faults(&self) -> Arc<[Fault]> {
        self.faults.borrow().clone()
    }

    /// Takes a batch in, and publishes the version that it makes once the source is in sync. Gives what has changed since
    /// the version before.
    pub(crate) fn apply(&self, batch: Batch, now: Instant) -> Changed {
        let mut coming = self.coming();
        coming.take_in(batch.changes, now, &self.settling);
        coming.settle();
        let faults = coming.circles.beside(&batch.faults);
        self.faults
            .send_if_modified(|present| std::mem::replace(present, faults.clone()) != faults);
        if !batch.synced {
            // Not yet, or no longer: what was known is too old to go by.
            self.current.store(None);
            return Changed::default();
        }
        self.publish(&coming.snapshot);
        self.arrived.send_replace(true);
        std::mem::take(&mut coming.changed)
    }

    /// [Applies](Self::apply) a batch, a large one part by part, with turns for others on this thread in between. Nobody sees a
    /// part of it. Not cancel safe: what was taken in of it would be published with the next batch.
    pub(crate) async fn apply_in_turns(&self, mut batch: Batch, now: Instant) -> Changed {
        let mut changes = std::mem::take(&mut batch.changes).into_iter();
        while changes.len() > AT_ONCE {
            let part = changes.by_ref().take(AT_ONCE).collect();
            self.coming().take_in(part, now, &self.settling);
            task::yield_now().await;
        }
        batch.changes = changes.collect();
        self.apply(batch, now)
    }

    fn coming(&self) -> MutexGuard<'_, Coming> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the first whole state is here. Cancel safe.
    pub(crate) async fn arrival(&self) {
        // The sender is held here, so that this never fails.
        let _ = self.arrived.subscribe().wait_for(|arrived| *arrived).await;
    }

    /// A pod is served here from now on: istiod tells of workloads by their names alone (`CLUSTER//Pod/NAMESPACE/NAME`), and
    /// whoever hands the pod over knows its UID. One that is told with another service account is a former pod of that name.
    pub(crate) fn serve(&self, workload: WorkloadUid, pod: &PodUid, account: &Arc<str>) {
        let mut guard = self.coming();
        let Coming {
            snapshot: coming,
            pods,
            named: by_name,
            is_half,
            ..
        } = &mut *guard;
        pods.insert(workload.clone(), (pod.clone(), account.clone()));
        let known = coming.mesh.workload(&workload).filter(|known| known.service_account == *account);
        let Some(known) = known else { return };
        // One whose UID is told by its source is known by that alone.
        if known.pod.as_ref() == Some(pod) || known.pod.is_some() && !by_name.contains(&workload) {
            return;
        }
        let unnamed = Workload {
            pod: None,
            ..Workload::clone(known)
        };
        let update = named(mesh::Update::Workload(unnamed.into()), pods, by_name);
        coming.mesh.update([update]);
        // What is there of half a batch is published with the rest of it.
        if self.current.load().is_some() && !*is_half {
            self.publish(coming);
        }
    }

    /// A pod is served no more.
    pub(crate) fn let_go(&self, pod: &PodUid) {
        let mut guard = self.coming();
        guard.pods.retain(|_, (served, _)| served != pod);
    }

    /// Policies that workloads list and that have not come count as never coming from now on. Gives whom that concerns.
    pub(crate) fn stop_waiting(&self) -> Changed {
        let mut guard = self.coming();
        let Coming {
            snapshot: coming, changed, ..
        } = &mut *guard;
        let affected;
        (coming.policies, affected) = coming.policies.stop_waiting();
        changed.policies.extend(affected);
        if self.current.load().is_none() {
            return Changed::default();
        }
        self.publish(coming);
        std::mem::take(changed)
    }

    fn publish(&self, snapshot: &Snapshot) {
        self.current.store(Some(Arc::new(snapshot.clone())));
        self.news.send_replace(());
    }

    /// Told of each version that is published from now on.
    pub(crate) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// Until when a refused dial to a workload may be the news of a change: route again until then.
    pub(crate) fn settles_at(&self, workload: &WorkloadUid) -> Option<Instant> {
        let settling = self.settling.lock().unwrap_or_else(PoisonError::into_inner);
        settling.get(workload).map(|changed| *changed + SETTLING)
    }
}

impl Coming {
    /// The batch is there whole.
    fn settle(&mut self) {
        self.is_half = false;
        self.circles.settle(&self.snapshot.mesh);
    }

    /// Takes some changes in, which nobody sees yet.
    fn take_in(&mut self, changes: Vec<Change>, now: Instant, settling: &Mutex<HashMap<WorkloadUid, Instant>>) {
        self.is_half = true;
        let (mut meshes, mut policies) = (Vec::new(), Vec::new());
        for change in changes {
            match change {
                Change::Mesh(update) => {
                    match &update {
                        mesh::Update::Workload(workload) => self.changed.workloads.push(workload.uid.clone()),
                        mesh::Update::RemoveWorkload(uid) => self.changed.workloads.push(uid.clone()),
                        mesh::Update::Service(_) | mesh::Update::RemoveService(_) => {}
                    }
                    meshes.push(self.sharing.share(named(update, &self.pods, &mut self.named)));
                }
                Change::Policy(update) => policies.push(update),
                // Handshakes look it up where they look up certificates; no decision depends on it.
                Change::Trust(_) => {}
            }
        }
        note_settling(settling, &self.snapshot.mesh, &meshes, now);
        self.snapshot.mesh.update(meshes.iter().cloned());
        self.circles.look(&self.snapshot.mesh, &meshes);
        if policies.is_empty() {
            return;
        }
        let affected;
        (self.snapshot.policies, affected) = self.snapshot.policies.advance(policies);
        self.changed.policies.extend(affected);
    }
}

fn note_settling(settling: &Mutex<HashMap<WorkloadUid, Instant>>, before: &Mesh, updates: &[mesh::Update], now: Instant) {
    let mut settling = settling.lock().unwrap_or_else(PoisonError::into_inner);
    settling.retain(|_, changed| now.duration_since(*changed) < SETTLING);
    for update in updates {
        let mesh::Update::Workload(workload) = update else { continue };
        let was = before.workload(&workload.uid).map_or(TunnelProtocol::None, |old| old.tunnel);
        if was != workload.tunnel {
            settling.insert(workload.uid.clone(), now);
        }
    }
}

/// A workload of which its source does not tell the pod's UID, with that of the pod that is served by its name.
fn named(update: mesh::Update, pods: &HashMap<WorkloadUid, (PodUid, Arc<str>)>, by_name: &mut HashSet<WorkloadUid>) -> mesh::Update {
    let mut workload = match update {
        mesh::Update::Workload(workload) => workload,
        mesh::Update::RemoveWorkload(uid) => {
            by_name.remove(&uid);
            return mesh::Update::RemoveWorkload(uid);
        }
        other => return other,
    };
    let is_it = |account: &Arc<str>| workload.pod.is_none() && workload.service_account == *account;
    match pods.get(&workload.uid).filter(|(_, account)| is_it(account)) {
        Some((pod, _)) => {
            by_name.insert(workload.uid.clone());
            Arc::make_mut(&mut workload).pod = Some(pod.clone());
        }
        None => {
            by_name.remove(&workload.uid);
        }
    }
    mesh::Update::Workload(workload)
}
