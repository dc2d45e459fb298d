//! Telling the other nodes which pods are captured here: in a mesh directory, through a control plane, or not at all.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ambient_control::{
    istiod::{ReportError, Reports},
    manifests::Status,
};
use ambient_core::{NetworkMode, PodUid, TunnelProtocol, Workload};
use ambient_redirect::{Announce, BoxFuture, PodSpec};
use tokio::time;

use crate::{clock, state::State, supervise::supervised, telemetry::Metrics};

#[cfg(test)]
mod tests;

/// How long a withdrawal is given to reach every node that watches the directory: they look every 100 ms.
///
/// Until then the pod goes on being served as captured, so that nobody who has not heard is refused.
const HEARD: Duration = Duration::from_millis(400);

/// Announces captured pods in the directory's `status/NODE.json`.
#[derive(Debug)]
pub struct AnnounceInDirectory(Status);

impl AnnounceInDirectory {
    /// Announces through a node's status file.
    pub fn new(status: Status) -> Self {
        Self(status)
    }
}

impl Announce for AnnounceInDirectory {
    fn announced(&self) -> Option<Vec<PodUid>> {
        Some(self.0.pods())
    }

    fn captured<'a>(&'a self, pod: &'a PodSpec) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move { self.0.captured(&pod.uid, &pod.addresses, clock::wall()).await })
    }

    fn withdrawn<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            self.0.withdrawn(uid).await?;
            time::sleep(HEARD).await;
            Ok(())
        })
    }

    fn remedy(&self) -> &'static str {
        "see that the node can write its status in the directory of manifests"
    }
}

/// Announces captured pods through `ambient control`.
#[derive(Debug)]
pub struct AnnounceToControl(Reports);

/// How long a withdrawal takes to reach every node from there: the directory is looked at first, twice.
const TOLD: Duration = Duration::from_secs(1);

impl AnnounceToControl {
    /// Announces through reports to a control plane.
    pub fn new(reports: Reports) -> Self {
        Self(reports)
    }
}

impl Announce for AnnounceToControl {
    /// The control plane tells that of every pod to every node alike.
    fn announced(&self) -> Option<Vec<PodUid>> {
        None
    }

    fn captured<'a>(&'a self, pod: &'a PodSpec) -> BoxFuture<'a, io::Result<()>> {
        let told = self.0.report(&pod.uid, &pod.addresses, true);
        Box::pin(async move { told.await.map_err(of_report) })
    }

    fn withdrawn<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            self.0.report(uid, &[], false).await.map_err(of_report)?;
            time::sleep(TOLD).await;
            Ok(())
        })
    }

    fn remedy(&self) -> &'static str {
        "see that `ambient control` runs and is reached from here: it keeps which pods are captured, and is asked again by itself"
    }
}

fn of_report(error: ReportError) -> io::Error {
    match error.is_absence() {
        true => io::Error::new(io::ErrorKind::HostUnreachable, error),
        false => io::Error::other(error),
    }
}

/// Announces as is said, and knows from the mesh's state what an earlier process has announced, where that is told nowhere else. There
/// what the state tells of a pod counts while nobody can be told, as after a restart without the control plane: its peers go by it too. It
/// also says again what the state does not tell: a control plane that has lost what it knew would have peers speak in plaintext.
pub(crate) struct ByState {
    announce: Arc<dyn Announce>,
    /// The name of this node.
    node: Arc<str>,
    state: Arc<State>,
    said: Mutex<BTreeMap<PodUid, Arc<Said>>>,
}

/// What this process has announced.
struct Said {
    pod: PodSpec,
    /// When somebody heard it or refused it, or was not there to although nobody else tells it. `None` where none of that has been.
    at: Mutex<Option<time::Instant>>,
    /// Nobody has heard it yet; an earlier process has said so.
    owed: AtomicBool,
    /// It is being taken back, or something else is said of the pod since.
    over: AtomicBool,
    /// One thing of a pod is said at a time: so what is said last is what is so.
    turn: tokio::sync::Mutex<()>,
}

impl ByState {
    /// Within a tokio runtime: a task of it says things again, until this is dropped.
    pub(crate) fn over(announce: Arc<dyn Announce>, node: &Arc<str>, state: &Arc<State>, metrics: &Arc<Metrics>) -> Arc<Self> {
        let by_state = Arc::new(Self {
            announce,
            node: node.clone(),
            state: state.clone(),
            said: Mutex::default(),
        });
        if by_state.announce.announced().is_none() {
            let of = Arc::downgrade(&by_state);
            tokio::spawn(supervised("announcements", metrics, move || Self::insist(of.clone())));
        }
        by_state
    }

    async fn insist(of: Weak<Self>) {
        loop {
            time::sleep(GLANCE).await;
            let Some(this) = of.upgrade() else { return };
            this.say_again().await;
        }
    }

    /// Says again what the state has not told for a while, and what nobody has heard.
    async fn say_again(&self) {
        let Some(now) = self.state.current() else { return };
        let untold = |said: &Arc<Said>| {
            let workload = now.mesh.workload_by_pod(&said.pod.uid);
            workload.is_some_and(|workload| *workload.node == *self.node && could_be_announced(workload) && !is_announced(workload))
        };
        let due: Vec<_> = {
            let said = lock(&self.said);
            let is_due = |said: &Arc<Said>| lock(&said.at).is_none_or(|at| at.elapsed() >= TO_BE_TOLD);
            let wanted = |said: &Arc<Said>| is_due(said) && (said.owed.load(Ordering::Relaxed) || untold(said));
            said.values().filter(|said| wanted(said)).cloned().collect()
        };
        let pods = due.iter().filter(|said| untold(said)).count();
        if pods > 0 {
            tracing::warn!(
                pods,
                "the control plane does not tell of pods that are captured here: it is told again"
            );
        }
        let mut refused = None;
        for said in due {
            let _turn = said.turn.lock().await;
            if said.over.load(Ordering::Relaxed) {
                continue;
            }
            let Err(error) = self.announce.captured(&said.pod).await else {
                *lock(&said.at) = Some(time::Instant::now());
                said.owed.store(false, Ordering::Relaxed);
                continue;
            };
            let is_absence = error.kind() == io::ErrorKind::HostUnreachable;
            if is_absence && said.owed.load(Ordering::Relaxed) && self.tells(&said.pod) {
                tracing::debug!(pod = %said.pod, %error, "it cannot be told yet");
                break;
            }
            *lock(&said.at) = Some(time::Instant::now());
            let (_, _, pods) = refused.get_or_insert_with(|| (said.pod.clone(), error, 0));
            *pods += 1;
            // Who is not there for one pod is not there for the next; what is refused may be so of one alone.
            if is_absence {
                break;
            }
        }
        if let Some((pod, error, pods)) = refused {
            tracing::warn!(%pod, %error, pods, "that pods are captured here cannot be told, as of this one: it is tried again");
        }
    }

    /// Says that a pod is captured; gives whether somebody was told. Where the mesh tells it already, nobody need be there to be.
    async fn say(&self, pod: &PodSpec) -> io::Result<bool> {
        let saying = self.announce.captured(pod);
        if !self.tells(pod) {
            return saying.await.map(|()| true);
        }
        let why = match time::timeout(BRIEFLY, saying).await {
            Ok(Ok(())) => return Ok(true),
            Ok(Err(error)) if error.kind() == io::ErrorKind::HostUnreachable => error.to_string(),
            Ok(Err(error)) => return Err(error),
            Err(_) => format!("no answer within {BRIEFLY:?}"),
        };
        tracing::info!(%pod, why, "the capture stays announced as an earlier process has said it: it is said again once somebody hears it");
        Ok(false)
    }

    /// Whether the mesh's state tells that a pod is captured here, where nothing else does.
    fn tells(&self, pod: &PodSpec) -> bool {
        let Some(now) = self.state.current().filter(|_| self.announce.announced().is_none()) else {
            return false;
        };
        let workload = now.mesh.workload_by_pod(&pod.uid);
        workload.is_some_and(|workload| *workload.node == *self.node && is_announced(workload))
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Announce for ByState {
    fn announced(&self) -> Option<Vec<PodUid>> {
        self.announce.announced().or_else(|| {
            let now = self.state.current()?;
            let ours = now.mesh.workloads_of_node(&self.node).filter(|workload| is_announced(workload));
            Some(ours.filter_map(|workload| workload.pod.clone()).collect())
        })
    }

    fn captured<'a>(&'a self, pod: &'a PodSpec) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let before = lock(&self.said).get(&pod.uid).cloned();
            let _turn = match &before {
                Some(before) => Some(before.turn.lock().await),
                None => None,
            };
            let heard = self.say(pod).await?;
            if let Some(before) = &before {
                before.over.store(true, Ordering::Relaxed);
            }
            let said = Said {
                pod: pod.clone(),
                at: Mutex::new(heard.then(time::Instant::now)),
                owed: AtomicBool::new(!heard),
                over: AtomicBool::new(false),
                turn: tokio::sync::Mutex::default(),
            };
            lock(&self.said).insert(pod.uid.clone(), said.into());
            Ok(())
        })
    }

    fn withdrawn<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let said = lock(&self.said).get(uid).cloned();
            let Some(said) = said else {
                return self.announce.withdrawn(uid).await;
            };
            said.over.store(true, Ordering::Relaxed);
            let _turn = said.turn.lock().await;
            self.announce.withdrawn(uid).await?;
            lock(&self.said).remove(uid);
            Ok(())
        })
    }

    fn remedy(&self) -> &'static str {
        self.announce.remedy()
    }
}

/// How often it is looked whether the state tells what was announced.
const GLANCE: Duration = Duration::from_secs(10);
/// How long that may take after it was said: longer than a stream of the control plane is away as a rule.
const TO_BE_TOLD: Duration = Duration::from_secs(30);

/// How long who is to be told of what the mesh tells already may take.
const BRIEFLY: Duration = Duration::from_secs(3);

/// Whether a pod is reached by tunnel because its node has said so: what speaks HBONE itself, as a waypoint does, is so by its
/// own word.
fn is_announced(workload: &Workload) -> bool {
    workload.tunnel == TunnelProtocol::Hbone && could_be_announced(workload)
}

fn could_be_announced(workload: &Workload) -> bool {
    !workload.native_tunnel && workload.network_mode == NetworkMode::Standard
}

/// Announces nothing: who is captured is told by somebody else, as Istio's istio-cni does by an annotation.
#[derive(Clone, Copy, Debug)]
pub struct AnnounceNothing;

impl Announce for AnnounceNothing {
    fn captured<'a>(&'a self, _: &'a PodSpec) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn withdrawn<'a>(&'a self, _: &'a PodUid) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
