//! Namespaces of new pods, handed over by a CNI plugin before anything runs in them.
//!
//! The plugin is answered once the pod is captured and that is proven, or with the reason why it is not: a runtime then starts
//! nothing in it. It asks as Istio's plugin asks its agent: HTTP over a Unix socket, `POST /cmdadd`.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::poll_fn,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ambient_core::{PodUid, Workload};
use ambient_redirect::{
    BoxFuture, HandOver, HandOverError, PodSpec,
    linux::{Inside, Netns, StreamListener},
    pods::{PodState, State as PodStage},
};
use http::{Method, Request, Response, StatusCode};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use tokio::{
    net::UnixStream,
    sync::{Semaphore, watch},
    task::spawn_blocking,
    time::{self, Instant},
};

use crate::{
    meant::{is_meant, spec_of},
    state::State,
    supervise::supervise,
    telemetry::Metrics,
};

#[cfg(test)]
mod tests;

/// How long a plugin waits at most: Istio's gives up after 5 s, and its runtime tries again with another sandbox.
const PATIENCE: Duration = Duration::from_millis(4500);
/// Between two looks whether a pod is known, or its former namespace let go.
const GLANCE: Duration = Duration::from_millis(20);
/// How long a pod is not taken for one that goes by its name and has other addresses: longer than news take. A runtime tries again.
const DOUBTED: Duration = Duration::from_secs(20);
/// When that is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// How long a plugin may take to say what it wants.
const SAYING: Duration = Duration::from_secs(2);
/// What a plugin says is some hundred bytes.
const MOST: usize = 64 << 10;
/// Plugins that wait at once: more than a node starts pods.
const PLUGINS: usize = 256;
/// How long to wait when the process has no descriptor left.
const BREATH: Duration = Duration::from_millis(50);

/// The socket, for the own user and root alone.
#[derive(Debug)]
pub(crate) struct Door(StreamListener);

impl Door {
    /// Must be called within a runtime.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        StreamListener::bind(path).map(Self)
    }
}

/// The pods of the node as the mesh knows them.
pub(crate) struct Register {
    node: Arc<str>,
    state: Arc<State>,
    /// Those that have not been taken for the ones that plugins name.
    doubts: Mutex<HashMap<PodUid, Doubt>>,
}

/// That what is known of a pod is of a former one. It is of this alone: once its addresses are others, it is for news to show anew.
struct Doubt {
    since: Instant,
    known: Vec<IpAddr>,
}

impl Doubt {
    fn begin(known: Vec<IpAddr>) -> Self {
        let since = Instant::now();
        Self { since, known }
    }
}

/// What answers plugins.
pub(crate) struct Porter {
    pub(crate) register: Register,
    /// Where namespaces have names here, in case the plugin knows another path to them.
    pub(crate) netns_dir: PathBuf,
    pub(crate) captures: watch::Receiver<Arc<[PodState]>>,
    pub(crate) hand_over: HandOver,
    /// Why no pod's DNS can be captured, if it cannot.
    pub(crate) no_dns: Option<&'static str>,
    /// What cannot be captured is let go around the mesh.
    pub(crate) open_when_unproven: bool,
}

/// What a plugin says of a pod, under the names that Istio's has for it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Said {
    netns: PathBuf,
    pod_name: String,
    pod_namespace: String,
    /// Istio's plugin does not say it: then a pod goes by its name.
    #[serde(default, rename = "PodUID")]
    pod_uid: Option<String>,
    #[serde(default, rename = "IPs")]
    ips: Option<Vec<SaidAddress>>,
}

impl Said {
    fn addresses(&self) -> Vec<IpAddr> {
        self.ips.iter().flatten().map(|ip| ip.address.ip.to_canonical()).collect()
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SaidAddress {
    address: SaidNet,
}

#[derive(Debug, Deserialize)]
struct SaidNet {
    #[serde(rename = "IP")]
    ip: IpAddr,
}

/// Why a namespace is not taken, or not yet.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("this is not what a CNI plugin says: {0}")]
    Unreadable(serde_json::Error),
    #[error("{pod}: {what}")]
    Wrong { pod: String, what: String },
    #[error(
        "{pod}: no pod of this name and UID is known on node {node} within {} s; it is not started, as it could be meant to be in \
         the mesh", PATIENCE.as_secs_f32()
    )]
    Unknown { pod: String, node: Arc<str> },
    #[error("{pod}: the mesh's state has not arrived, so that it is not known whether the pod is meant to be in the mesh")]
    Ignorant { pod: String },
    #[error(transparent)]
    Taking(#[from] HandOverError),
    #[error("{pod}: it is not captured within {} s: {why}", PATIENCE.as_secs_f32())]
    Unproven { pod: String, why: String },
}

impl Refusal {
    /// Below 500 where to ask again is of no use.
    fn status(&self) -> StatusCode {
        match self {
            Self::Unreadable(_) | Self::Wrong { .. } => StatusCode::BAD_REQUEST,
            Self::Unknown { .. } | Self::Ignorant { .. } | Self::Taking(HandOverError::Passing { .. }) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Taking(HandOverError::Refused { .. }) => StatusCode::CONFLICT,
            Self::Taking(_) | Self::Unproven { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// What has become of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    Captured,
    /// It is none of the mesh's, and nothing was done.
    NotMeant,
    /// It could not be captured in time, and is let go around the mesh, as that is asked for.
    Open,
}

impl Taken {
    fn text(self) -> &'static str {
        match self {
            Self::Captured => "captured\n",
            Self::NotMeant => "not meant to be in the mesh: nothing was done\n",
            Self::Open => "not captured yet, and let go around the mesh meanwhile\n",
        }
    }
}

/// Serves plugins until it is dropped; what is under way ends with it. Cancel safe.
pub(crate) async fn serve(door: Door, porter: Porter, metrics: Arc<Metrics>) {
    tracing::info!(socket = %door.0.path().display(), "CNI plugins may hand namespaces over");
    let porter = Arc::new(porter);
    let answer: Answer = Arc::new(move |stream| {
        let exchanged = exchange(stream, porter.clone());
        // Who does not speak HTTP is told nothing.
        Box::pin(async move { drop(exchanged.await) })
    });
    uphold(door, &metrics, answer).await;
}

/// Answers a plugin.
type Answer = Arc<dyn Fn(UnixStream) -> BoxFuture<'static, ()> + Send + Sync>;

/// Takes plugins in, and begins anew where that panics: who asks meanwhile waits in the socket.
async fn uphold(door: Door, metrics: &Metrics, answer: Answer) {
    let door = Arc::new(door);
    supervise("the socket for CNI plugins", metrics, || accept(door.clone(), answer.clone())).await;
}

async fn accept(door: Arc<Door>, answer: Answer) {
    let places = Arc::new(Semaphore::new(PLUGINS));
    let mut plugins = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = door.0.accept() => accepted.and_then(UnixStream::from_std),
            Some(_) = plugins.join_next() => continue,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                // No descriptor left, or a plugin that went away: neither ends the listener. That its path did is said once.
                if error.kind() == io::ErrorKind::NotFound {
                    tracing::error!("the socket for CNI plugins, without which no pod starts: {error}");
                }
                time::sleep(BREATH).await;
                continue;
            }
        };
        let own = rustix::process::geteuid().as_raw();
        if !stream.peer_cred().is_ok_and(|peer| [0, own].contains(&peer.uid())) {
            continue;
        }
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let answered = answer(stream);
        plugins.spawn(async move {
            let _ = time::timeout(SAYING + PATIENCE * 2, answered).await;
            drop(place);
        });
    }
}

async fn exchange(stream: UnixStream, porter: Arc<Porter>) -> hyper::Result<()> {
    let service = service_fn(|request: Request<Incoming>| {
        let porter = porter.clone();
        async move { Ok::<_, Infallible>(respond(&porter, request).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(SAYING).keep_alive(false);
    http.serve_connection(TokioIo::new(stream), service).await
}

async fn respond(porter: &Porter, request: Request<Incoming>) -> Response<String> {
    let answer = |status: StatusCode, text: String| {
        let mut response = Response::new(text);
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/cmdadd" {
        return answer(StatusCode::NOT_FOUND, "nothing is here but /cmdadd\n".into());
    }
    if request.method() != Method::POST {
        return answer(
            StatusCode::METHOD_NOT_ALLOWED,
            "POST only: what a CNI plugin says of a pod\n".into(),
        );
    }
    let Ok(Some(said)) = time::timeout(SAYING, whole(request.into_body())).await else {
        return answer(StatusCode::BAD_REQUEST, "what was said has not come whole, or is too long\n".into());
    };
    match porter.take(&said).await {
        Ok(taken) => answer(StatusCode::OK, taken.text().into()),
        Err(refusal) => {
            tracing::warn!(error = %refusal, "a namespace that a CNI plugin hands over is not taken");
            answer(refusal.status(), format!("{refusal}\n"))
        }
    }
}

/// All of a body; `None` of one that breaks off or does not end.
async fn whole(mut body: Incoming) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(data) = frame.ok()?.into_data() {
            all.extend_from_slice(&data);
        }
        if all.len() > MOST {
            return None;
        }
    }
    Some(all)
}

impl Register {
    pub(crate) fn new(node: Arc<str>, state: Arc<State>) -> Self {
        Self {
            node,
            state,
            doubts: Mutex::default(),
        }
    }

    /// The pod as the mesh knows it, once it does: news of it may be on its way.
    async fn known(&self, said: &Said, pod: &str, deadline: Instant) -> Result<Arc<Workload>, Refusal> {
        let uid = said.pod_uid.as_deref().filter(|uid| !uid.is_empty()).map(PodUid::from);
        let addresses = said.addresses();
        let is_it = |w: &&Arc<Workload>| {
            let named = *w.name == *said.pod_name && *w.namespace == *said.pod_namespace;
            named
                && uid
                    .as_ref()
                    .map_or_else(|| !self.is_doubted(w, &addresses), |uid| w.pod.as_ref() == Some(uid))
        };
        loop {
            let now = self.state.current();
            let found = now
                .as_ref()
                .and_then(|now| now.mesh.workloads_of_node(&self.node).find(is_it).cloned());
            match (found, now) {
                (Some(workload), _) => return Ok(workload),
                _ if Instant::now() + GLANCE < deadline => time::sleep(GLANCE).await,
                (None, None) => return Err(Refusal::Ignorant { pod: pod.into() }),
                (None, Some(_)) => {
                    let (pod, node) = (pod.into(), self.node.clone());
                    return Err(Refusal::Unknown { pod, node });
                }
            }
        }
    }

    /// Whether one that goes by its name alone may be a former pod of that name, of whose end the news are on their way: its addresses
    /// are others. What is told of for long is so: the pod itself has got another sandbox.
    fn is_doubted(&self, workload: &Workload, addresses: &[IpAddr]) -> bool {
        let Some(pod) = workload.pod.as_ref() else { return false };
        if addresses.is_empty() {
            return false;
        }
        let mut known: Vec<IpAddr> = workload.addresses.iter().map(IpAddr::to_canonical).collect();
        known.sort_unstable();
        let mut doubts = self.doubts.lock().unwrap_or_else(PoisonError::into_inner);
        doubts.retain(|_, doubt| doubt.since.elapsed() < FORGOTTEN);
        if doubts.get(pod).is_some_and(|doubt| doubt.known != known) {
            doubts.remove(pod);
        }
        if known.is_empty() || known.iter().any(|ip| addresses.contains(ip)) {
            doubts.remove(pod);
            return false;
        }
        let doubt = doubts.entry(pod.clone()).or_insert_with(|| Doubt::begin(known));
        doubt.since.elapsed() < DOUBTED
    }
}

impl Porter {
    /// Takes the namespace of a pod, and waits until the pod is captured.
    async fn take(&self, said: &[u8]) -> Result<Taken, Refusal> {
        let deadline = Instant::now() + PATIENCE;
        let said: Said = serde_json::from_slice(said).map_err(Refusal::Unreadable)?;
        let pod = format!("{}/{}", said.pod_namespace, said.pod_name);
        let workload = self.register.known(&said, &pod, deadline).await?;
        if !is_meant(&workload) {
            return Ok(Taken::NotMeant);
        }
        let spec = spec_of(&workload, self.no_dns).ok_or_else(|| Refusal::Wrong {
            pod: pod.clone(),
            what: "where the mesh's state comes from does not tell its UID".into(),
        })?;
        let addresses = said.addresses();
        let namespace = self.open(&pod, said.netns, addresses.clone()).await?;
        let spec = PodSpec { addresses, ..spec };
        loop {
            match self.hand_over.take(spec.clone(), namespace.clone()).await {
                Ok(()) => break,
                Err(HandOverError::Passing { .. }) if Instant::now() + GLANCE < deadline => time::sleep(GLANCE).await,
                Err(error) => return Err(error.into()),
            }
        }
        let mut captures = self.captures.clone();
        let is_it = |state: &&PodState| state.spec.uid == spec.uid && state.namespace == Some(namespace.id());
        let is_in = |states: &Arc<[PodState]>| states.iter().any(|s| is_it(&s) && matches!(s.state, PodStage::In { .. }));
        let proven = time::timeout_at(deadline, captures.wait_for(is_in)).await;
        match proven.map(|waited| waited.map(drop)) {
            Ok(Ok(())) => Ok(Taken::Captured),
            Ok(Err(_)) => Err(HandOverError::Ended.into()),
            Err(_) if self.open_when_unproven => Ok(Taken::Open),
            Err(_) => {
                let why = captures.borrow().iter().find(is_it).map_or_else(|| "it has left".into(), why);
                Err(Refusal::Unproven { pod, why })
            }
        }
    }

    /// The namespace, which must have the pod's addresses.
    async fn open(&self, pod: &str, path: PathBuf, addresses: Vec<IpAddr>) -> Result<Arc<Netns>, Refusal> {
        let wrong = |what: String| Refusal::Wrong { pod: pod.into(), what };
        if addresses.is_empty() {
            return Err(wrong(
                "the plugin names no address of it: it is to be called after the one that gives addresses".into(),
            ));
        }
        // In a container the runtime's directory may be mounted elsewhere.
        let mounted = path.file_name().map(|name| self.netns_dir.join(name));
        let look = move || {
            let namespace = Netns::open(&path).or_else(|error| mounted.and_then(|path| Netns::open(path).ok()).ok_or(error));
            let namespace = namespace.map_err(|e| e.to_string())?;
            let there = Inside::open(&namespace).and_then(|mut inside| inside.addresses());
            let there: Vec<IpAddr> = there.map_err(|e| e.to_string())?.iter().map(IpAddr::to_canonical).collect();
            match addresses.iter().find(|ip| !there.contains(ip)) {
                Some(missing) => Err(format!(
                    "the network namespace {} has not its address {missing}",
                    namespace.path().display()
                )),
                None => Ok(Arc::new(namespace)),
            }
        };
        let looked = spawn_blocking(look).await.map_err(|e| wrong(e.to_string()))?;
        looked.map_err(wrong)
    }
}

/// Why a pod is not captured, as far as it is known.
fn why(state: &PodState) -> String {
    match &state.state {
        PodStage::Refused { error } => error.to_string(),
        PodStage::Pairing { why } => why.to_string(),
        PodStage::Leaving => "it is leaving".into(),
        PodStage::Waiting => "it is not meant to be in the mesh any more".into(),
        _ => "it is not proven yet".into(),
    }
}
