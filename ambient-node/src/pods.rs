//! The pods that this node serves, as redirect says which there are.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ambient_core::{PodUid, Workload};
use ambient_hbone::{Speaker, SpeakerKey};
use ambient_redirect::{BoxFuture, Drained, PodSpec, Proxy, ProxyError, linux::Netns};
use tokio::{sync::Notify, task::JoinSet, time};

use crate::{
    Shared,
    accept::has_no_such_address,
    assumed::{self, Contradictions},
    certificates::Flaw,
    dns,
    embed::Listener,
    pod::{self, Listening, Pod, Stage, Stages},
    state::Snapshot,
    supervise::supervise,
};

mod listener;
mod own;

/// All of them. Implements [`Proxy`]: redirect says which pods there are.
#[derive(Debug)]
pub(crate) struct Pods {
    node: Arc<Shared>,
    served: Mutex<HashMap<PodUid, Arc<Pod>>>,
    /// Those that an agent of others names and that are not served, until it takes that back: of its own the enrolment tells.
    unserved: Mutex<BTreeMap<PodUid, PodSpec>>,
    /// How far the node is on its way out; changed while what is served is locked.
    stages: Stages,
    /// What the mesh says otherwise than it is taken to.
    contradictions: Mutex<Contradictions>,
    /// A listener has ended, unasked or not.
    lost: Arc<Notify>,
}

impl Pods {
    pub(crate) fn new(node: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self {
            node,
            served: Mutex::default(),
            unserved: Mutex::default(),
            stages: Stages::default(),
            contradictions: Mutex::default(),
            lost: Arc::default(),
        })
    }

    /// Brings every pod to a stage: also one that is about to be served, and none is begun any more.
    pub(crate) fn advance(&self, stage: Stage) {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        self.stages.change(|now| now.max(stage));
        for pod in served.values() {
            pod.advance(stage);
        }
    }

    /// Takes note of how those of the pods are that have changed.
    pub(crate) fn look(&self, now: &Snapshot) {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        for pod in served.values() {
            if let Some(workload) = now.mesh.workload_by_pod(&pod.spec.uid) {
                pod.is_told(workload.health);
            }
        }
        let mut contradictions = self.contradictions.lock().unwrap_or_else(PoisonError::into_inner);
        for told in contradictions.new_of(&self.node.config, served.values().map(|pod| (&pod.spec, &pod.identity)), &now.mesh) {
            tracing::warn!("{told}");
        }
    }

    /// Those that are served now, but for the one that this process runs in.
    pub(crate) fn specs(&self) -> Vec<PodSpec> {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        captured(&served).map(|pod| pod.spec.clone()).collect()
    }

    /// Those that an agent of others has named, and that are not served.
    pub(crate) fn unserved(&self) -> Vec<PodSpec> {
        let unserved = self.unserved.lock().unwrap_or_else(PoisonError::into_inner);
        unserved.values().cloned().collect()
    }

    /// The UID by which a workload is to be served: its source may not tell it.
    pub(crate) fn named(&self, workload: &Workload) -> Option<PodUid> {
        let is_it = |pod: &PodSpec| pod.name == workload.name && pod.namespace == workload.namespace;
        let pods = self.unserved().into_iter().chain(self.specs());
        pods.into_iter().find(is_it).map(|pod| pod.uid)
    }

    /// Connections that are open now.
    pub(crate) fn open_connections(&self) -> usize {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.values().map(|pod| pod.room.connections()).sum()
    }

    /// Whether a connection may still come: as long as a listener takes what was on its way.
    pub(crate) fn any_accepts(&self) -> bool {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.values().any(|pod| pod.accepts())
    }

    /// Peers that have a tunnel, or are about to: whatever they have not heard yet, they may ask for a connection.
    pub(crate) fn peers(&self) -> usize {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.values().map(|pod| pod.room.peers()).sum()
    }

    /// Ends what a pod has open, and the tunnels that speak for it.
    fn end(&self, pod: &Pod) {
        pod.advance(Stage::Stopped);
        self.node.dialler.remove(&pod.speaker.key);
        for worker in self.node.workers.iter() {
            worker.tunnels.forget(&pod.speaker.key);
        }
    }

    /// The namespace that a pod is served in.
    pub(crate) fn namespace(&self, uid: &PodUid) -> Option<Arc<Netns>> {
        Some(self.present(uid)?.namespace.clone())
    }

    /// What is wrong with the certificate that a pod is served with.
    pub(crate) fn flaw(&self, uid: &PodUid) -> Option<Flaw> {
        self.node.certificates.flaw(&self.present(uid)?.identity)
    }

    fn take(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = served.remove(uid);
        self.node.metrics.serve_pods(captured(&served).count());
        taken
    }

    fn present(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    /// Begins to serve a pod, and ends without that once the node stops: whoever serves it next is told of it, and not this one.
    async fn begin(&self, spec: &PodSpec, namespace: Arc<Netns>) -> Result<(), ProxyError> {
        let begun = async {
            if let Some(present) = self.present(&spec.uid) {
                if present.is(spec, namespace.id()) && present.resume() {
                    return self.listen(&present, spec).await;
                }
                // Somebody else now, or elsewhere: its ports must be free before they are bound anew.
                self.take(&spec.uid);
                self.end(&present);
                present.let_go().await;
            }
            let new = Arc::new(self.admit(spec, namespace).await?);
            self.listen(&new, spec).await?;
            self.enter(new);
            Ok(())
        };
        tokio::select! {
            biased;
            () = self.stages.reach(Stage::Draining) => Err(refuse("serving the pod", io::Error::other("the node stops"))),
            begun = begun => begun,
        }
    }

    /// A pod that may be served from now on, at no listener yet.
    async fn admit(&self, spec: &PodSpec, namespace: Arc<Netns>) -> Result<Pod, ProxyError> {
        let node = &self.node;
        assumed::settled(&node.config, spec, &node.state).await;
        let now = node.state.current();
        let identity = assumed::identity(&node.config, spec, now.as_deref().map(|now| &now.mesh));
        let identity = identity.map_err(|e| refuse("naming the pod", io::Error::new(io::ErrorKind::InvalidInput, e)))?;
        let certificate = node.certificates.hold(&identity, &spec.uid).await;
        let certificate = certificate.map_err(|e| refuse("asking for the pod's certificate", io::Error::other(e)))?;
        let key = SpeakerKey::new(format!("{} in {}", spec.uid, namespace.id()));
        let speaker = Speaker {
            key,
            identity: identity.clone(),
        };
        let room = node.bounds.pod(&format!("{}/{}", spec.namespace, spec.name));
        let pod = Pod::new(spec.clone(), namespace, speaker, room, certificate);
        let named = node.config.workload_of_pod(&spec.namespace, &spec.name);
        node.state.serve(named, &spec.uid, &spec.service_account);
        Ok(pod)
    }

    /// Brings up every listener of the pod that is not there. All are bound before one is served: a port that is taken must
    /// not leave half a proxy behind.
    async fn listen(&self, pod: &Arc<Pod>, spec: &PodSpec) -> Result<(), ProxyError> {
        let node = &self.node;
        // What the pod asks may have changed since it is served; a listener that nothing is redirected to any more may stay.
        let dns = spec.capture.dns.unwrap_or_else(|| node.config.captures_dns());
        // All at once: each is made by a thread that enters the namespace for it, and waited for.
        let mut binding = JoinSet::new();
        let all: Vec<_> = match pod.is_own {
            true => vec![Listening::tunnels(node.config.ipv6)],
            false => Listening::all(node.config.ipv6, dns).collect(),
        };
        for at in all.into_iter().filter(|at| !pod.has(*at)) {
            let (node, pod) = (node.clone(), pod.clone());
            binding.spawn(async move { (at, listener::bind(at, &node, &pod).await) });
        }
        let mut bound = Vec::new();
        while let Some(ended) = binding.join_next().await {
            let (at, socket) = ended.map_err(|e| refuse("listening in the pod's namespace", io::Error::other(e)))?;
            match socket {
                Ok(socket) => bound.push((at, socket)),
                // A namespace without IPv6 has no query to redirect to its loopback.
                Err(error) if at.address.ip() == IpAddr::V6(Ipv6Addr::LOCALHOST) && has_no_such_address(&error) => {}
                Err(source) => return Err(refuse(&format!("listening on {at} in the pod's namespace"), source)),
            }
        }
        let names = dns::server(node, pod);
        self.let_out(pod);
        for (at, socket) in bound {
            let told = Told {
                namespace: pod.namespace.clone(),
                lost: self.lost.clone(),
            };
            let home = socket.home();
            let begin = socket.begin(node, pod, &names);
            let home = home.as_deref().map(|worker| (worker, pod.whose()));
            pod.listens(at, listener::keep(home, node.metrics.clone(), told, begin));
        }
        Ok(())
    }

    /// Serves a pod at a listener of somebody else's, until it stops or no more will come; its certificate is asked for until
    /// there is one. Cancel safe.
    pub(crate) async fn embed(&self, spec: PodSpec, listener: Arc<dyn Listener>) {
        let Ok(namespace) = Netns::current().map(Arc::new) else {
            return tracing::error!(pod = %spec, "a pod is not served: the namespace of this process cannot be opened");
        };
        let mut pause = FIRST_AGAIN;
        let pod = loop {
            match self.admit(&spec, namespace.clone()).await {
                Ok(pod) => break Arc::new(pod),
                Err(error) => tracing::warn!(pod = %spec, %error, again_in = ?pause, "a pod is not served yet"),
            }
            time::sleep(pause).await;
            pause = (pause * 2).min(LAST_AGAIN);
        };
        self.let_out(&pod);
        self.enter(pod.clone());
        let node = self.node.clone();
        let looked_for = {
            let (node, uid, identity) = (node.clone(), spec.uid.clone(), pod.identity.clone());
            async move {
                if let Err(error) = pod::await_local(&node.state, &uid, &identity).await {
                    tracing::warn!(pod = %spec, %error, "the connections of a pod are refused until the mesh has the workload that it is");
                }
            }
        };
        let begin = move || -> BoxFuture<'static, ()> { Box::pin(listener::accept_from(node.clone(), pod.clone(), listener.clone())) };
        tokio::join!(supervise("a listener that was given", &self.node.metrics, begin), looked_for);
        // What came goes on until the node ends.
    }

    /// Brings up again what has ended unasked, for as long as it is polled: where nobody else keeps the pods captured.
    pub(crate) async fn mend(self: Arc<Self>) {
        loop {
            self.lost.notified().await;
            loop {
                time::sleep(FIRST_AGAIN).await;
                if self.mend_all().await {
                    break;
                }
            }
        }
    }

    /// Whether all is there that should be.
    async fn mend_all(&self) -> bool {
        let pods: Vec<_> = {
            let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
            served.values().filter(|pod| pod.serves()).cloned().collect()
        };
        let mut well = true;
        for pod in pods {
            if let Err(error) = self.listen(&pod, &pod.spec).await {
                tracing::error!(pod = %pod.spec, %error, "a listener has ended and cannot be brought up again; it is tried again");
                well = false;
            }
        }
        well
    }

    /// A pod may be spoken for, and reached within this process. Before anything is accepted for it: whose connections come at once, as
    /// where the port was somebody else's too, would be told that it has left.
    fn let_out(&self, pod: &Arc<Pod>) {
        // What was begun for one that has ended meanwhile must not keep its namespace.
        if pod.serves() {
            self.node.dialler.add(&pod.speaker.key, pod.namespace.clone());
            self.node.locals.add(pod);
            if !pod.serves() {
                self.node.dialler.remove(&pod.speaker.key);
            }
        }
    }

    /// As one that was begun in the very moment in which the node stops.
    #[cfg(test)]
    pub(crate) async fn begun_late(&self, spec: &PodSpec, namespace: Arc<Netns>) -> Arc<Pod> {
        let pod = Arc::new(self.admit(spec, namespace).await.expect("a certificate"));
        self.advance(Stage::Draining);
        self.enter(pod.clone());
        pod
    }

    fn enter(&self, pod: Arc<Pod>) {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        pod.advance(self.stages.now());
        served.insert(pod.spec.uid.clone(), pod);
        self.node.metrics.serve_pods(captured(&served).count());
    }
}

/// Those whose traffic is this node's.
fn captured(served: &HashMap<PodUid, Arc<Pod>>) -> impl Iterator<Item = &Arc<Pod>> {
    served.values().filter(|pod| !pod.is_own)
}

/// Tells, when it is dropped, that a listener has ended.
#[derive(Debug)]
pub(crate) struct Told {
    namespace: Arc<Netns>,
    lost: Arc<Notify>,
}

impl Drop for Told {
    fn drop(&mut self) {
        self.namespace.listener_lost();
        self.lost.notify_one();
    }
}

fn refuse(what: &str, source: io::Error) -> ProxyError {
    ProxyError { what: what.into(), source }
}

/// How long what a pod has open may take to end once it is cut.
const CUTTING: Duration = Duration::from_millis(500);
/// How long a connection takes from its accept to its worker, generously.
const HANDOVER: Duration = Duration::from_millis(20);
/// How often to look whether it has ended.
const GLANCE: Duration = Duration::from_millis(2);
/// Before the next attempt to serve a pod, doubled up to [`LAST_AGAIN`].
const FIRST_AGAIN: Duration = Duration::from_millis(100);
const LAST_AGAIN: Duration = Duration::from_secs(15);

impl Proxy for Pods {
    fn add<'a>(&'a self, pod: &'a PodSpec, namespace: Arc<Netns>) -> BoxFuture<'a, Result<(), ProxyError>> {
        Box::pin(async move {
            let unserved = || self.unserved.lock().unwrap_or_else(PoisonError::into_inner);
            if self.node.agent.is_some() {
                unserved().insert(pod.uid.clone(), pod.clone());
            }
            self.begin(pod, namespace).await?;
            unserved().remove(&pod.uid);
            Ok(())
        })
    }

    fn drain<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, Drained> {
        Box::pin(async move {
            let Some(pod) = self.present(uid) else { return Drained::Done };
            pod.advance(Stage::Leaving);
            while pod.accepts() {
                time::sleep(GLANCE).await;
            }
            time::sleep(HANDOVER).await;
            while pod.room.connections() > 0 {
                time::sleep(GLANCE).await;
            }
            Drained::Done
        })
    }

    fn cut<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let Some(pod) = self.present(uid) else { return };
            pod.advance(Stage::Cut);
            let idle = async {
                while pod.accepts() {
                    time::sleep(GLANCE).await;
                }
                // What was accepted last may still be on its way to its worker, and is not counted until it is there.
                time::sleep(HANDOVER).await;
                while pod.room.connections() > 0 {
                    time::sleep(GLANCE).await;
                }
            };
            let _ = time::timeout(CUTTING, idle).await;
        })
    }

    fn remove<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            self.node.state.let_go(uid);
            self.unserved.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
            if let Some(old) = self.take(uid) {
                self.end(&old);
            }
        })
    }
}
