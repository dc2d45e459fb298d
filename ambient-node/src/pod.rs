//! A pod that this node serves: who it is, how far it is, and what listens for it.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ambient_authz::Target;
use ambient_core::{Health, Identity, PodUid, Workload, ports};
use ambient_hbone::Speaker;
use ambient_redirect::{
    PodSpec,
    linux::{Netns, NetnsId},
};
use arc_swap::ArcSwapOption;
use tokio::{sync::watch, task::JoinHandle, time};

use crate::{
    bounds::Room,
    certificates::Held,
    outliers::Outliers,
    shares::Whose,
    state::{Snapshot, State},
    telemetry::Reason,
    watch::Server,
};

pub(crate) use self::stages::{Stage, Stages};

mod stages;
#[cfg(test)]
mod tests;

/// A pod that this node serves, in one network namespace.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) spec: PodSpec,
    pub(crate) namespace: Arc<Netns>,
    pub(crate) identity: Identity,
    /// Which pod it is, and who: for those who watch its connections.
    pub(crate) server: Arc<Server>,
    /// Whom its tunnels speak for: never shared with another pod, of whatever identity.
    pub(crate) speaker: Speaker,
    pub(crate) room: Room,
    /// Endpoints that it could not reach a moment ago; what keeps it from one may be its own NetworkPolicy.
    pub(crate) outliers: Outliers,
    /// Whether it is the one that this process runs in: nothing of it is captured.
    pub(crate) is_own: bool,
    /// What policies were last asked about.
    target: ArcSwapOption<Target>,
    stages: Stages,
    /// How often its peers were told to look for somebody else.
    turned: watch::Sender<u64>,
    well: AtomicBool,
    listening: Mutex<HashMap<Listening, JoinHandle<()>>>,
    _certificate: Held,
}

impl Pod {
    /// A pod that begins to be served.
    pub(crate) fn new(spec: PodSpec, namespace: Arc<Netns>, speaker: Speaker, room: Room, certificate: Held) -> Self {
        let server = Server {
            pod: spec.uid.clone(),
            identity: speaker.identity.clone(),
        };
        Self {
            spec,
            namespace,
            identity: speaker.identity.clone(),
            server: Arc::new(server),
            speaker,
            room,
            outliers: Outliers::default(),
            is_own: false,
            target: ArcSwapOption::empty(),
            stages: Stages::default(),
            turned: watch::Sender::new(0),
            well: AtomicBool::new(true),
            listening: Mutex::default(),
            _certificate: certificate,
        }
    }

    /// The one that this process runs in: it takes tunnels, and nothing else of it is this node's.
    pub(crate) fn own(self) -> Self {
        Self { is_own: true, ..self }
    }

    /// On whose behalf its connections are served, where it opens them.
    pub(crate) fn whose(&self) -> Whose {
        Whose::Pod(self.speaker.key.clone())
    }

    /// Its workload in a version of the mesh, as long as that is who the pod has a certificate for.
    pub(crate) fn workload<'a>(&self, snapshot: &'a Snapshot) -> Result<&'a Arc<Workload>, UnknownPod> {
        local_workload(snapshot, &self.spec.uid, &self.identity)
    }

    /// The same as policies see it: what it lists is looked up when those change, or it.
    pub(crate) fn target(&self, snapshot: &Snapshot) -> Result<Arc<Target>, UnknownPod> {
        let workload = self.workload(snapshot)?;
        let fits = |target: &Arc<Target>| Arc::ptr_eq(target.workload(), workload) && snapshot.policies.fits(target);
        if let Some(target) = self.target.load_full().filter(fits) {
            return Ok(target);
        }
        let target = Arc::new(snapshot.policies.target(workload));
        self.target.store(Some(target.clone()));
        Ok(target)
    }

    /// The present version of the mesh, once it knows the pod; waited for as [`await_local`] does. Cancel safe.
    pub(crate) async fn known(&self, state: &State) -> Result<Arc<Snapshot>, UnknownPod> {
        await_local(state, &self.spec.uid, &self.identity).await
    }

    /// Waits until it is at least at a stage. Cancel safe.
    pub(crate) fn reaches(&self, stage: Stage) -> impl Future<Output = ()> + Send + use<'_> {
        self.stages.reach(stage)
    }

    /// Takes note of its health. Where it has ceased to be well, as a pod does at the start of its termination, the tunnels to it
    /// are told: what is open goes on, and what comes next asks anew who there is.
    pub(crate) fn is_told(&self, health: Health) {
        let well = health == Health::Healthy;
        if self.well.swap(well, Ordering::Relaxed) && !well {
            self.turned.send_modify(|turned| *turned += 1);
        }
    }

    /// Told each time that it ceases to be well.
    pub(crate) fn turns(&self) -> watch::Receiver<u64> {
        self.turned.subscribe()
    }

    /// Whether it serves, and is on no way out.
    pub(crate) fn serves(&self) -> bool {
        self.stages.now() == Stage::Serving
    }

    /// Whether what is open is reset.
    pub(crate) fn is_cut(&self) -> bool {
        self.stages.now() >= Stage::Cut
    }

    /// Whether a connection may still be accepted.
    pub(crate) fn accepts(&self) -> bool {
        let listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
        let mut accepting = listening.iter().filter(|(at, _)| at.address.port() != ports::DNS);
        accepting.any(|(_, serving)| !serving.is_finished())
    }

    /// Whether it is the pod that a spec speaks of, in a namespace.
    pub(crate) fn is(&self, spec: &PodSpec, namespace: NetnsId) -> bool {
        let same = self.spec.namespace == spec.namespace && self.spec.service_account == spec.service_account;
        same && self.namespace.id() == namespace
    }

    /// Waits until its listeners are closed, once it was told to stop.
    pub(crate) async fn let_go(&self) {
        let listening: Vec<_> = {
            let mut listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
            listening.drain().map(|(_, serving)| serving).collect()
        };
        for serving in listening {
            // A task that panicked has let go too.
            let _ = serving.await;
        }
    }

    /// Takes note of the task that serves a listener.
    pub(crate) fn listens(&self, at: Listening, serving: JoinHandle<()>) {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner).insert(at, serving);
    }

    /// Whether a listener is there and served.
    pub(crate) fn has(&self, at: Listening) -> bool {
        let listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
        listening.get(&at).is_some_and(|serving| !serving.is_finished())
    }

    /// Has it serve again although it was leaving; no if it is further than that.
    pub(crate) fn resume(&self) -> bool {
        self.stages.change(|now| if now == Stage::Leaving { Stage::Serving } else { now });
        self.serves()
    }

    /// Brings it to a stage; back only by [`Pod::resume`].
    pub(crate) fn advance(&self, stage: Stage) {
        self.stages.change(|now| now.max(stage));
    }
}

/// The workload that a pod is, if it is known and bears an identity.
pub(crate) fn local_workload<'a>(snapshot: &'a Snapshot, pod: &PodUid, identity: &Identity) -> Result<&'a Arc<Workload>, UnknownPod> {
    let workload = snapshot.mesh.workload_by_pod(pod).ok_or(UnknownPod::Absent)?;
    match workload.bears(identity) {
        true => Ok(workload),
        false => Err(UnknownPod::Renamed(identity.clone())),
    }
}

/// The present version of the mesh, once it knows a pod: one that has just begun may speak a moment before its node is told of
/// it, and at its own start the node may be told of nothing yet. Cancel safe.
pub(crate) async fn await_local(state: &State, pod: &PodUid, identity: &Identity) -> Result<Arc<Snapshot>, UnknownPod> {
    let look = || -> Result<Arc<Snapshot>, UnknownPod> {
        let snapshot = state.current().ok_or(UnknownPod::NoState)?;
        local_workload(&snapshot, pod, identity)?;
        Ok(snapshot)
    };
    let mut found = look();
    if matches!(found, Err(UnknownPod::NoState | UnknownPod::Absent)) {
        let mut news = state.news();
        let known = async {
            loop {
                found = look();
                if !matches!(found, Err(UnknownPod::NoState | UnknownPod::Absent)) {
                    return;
                }
                // An error says that there will be no more, and then there is nothing to wait for either.
                if news.changed().await.is_err() {
                    return;
                }
            }
        };
        // What was found last counts.
        let _ = time::timeout(LATENESS, known).await;
    }
    found
}

/// How long whoever speaks for a pod waits for the mesh to know it: ztunnel's.
const LATENESS: Duration = Duration::from_secs(5);

/// Why nothing is decided for a pod.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnknownPod {
    /// Nothing is known.
    #[error("the mesh's state has not arrived")]
    NoState,
    /// It is not in the mesh's state.
    #[error("failed to fetch information about local workload: it is not in the mesh's state")]
    Absent,
    /// Its service account or trust domain is another than the one it was captured with.
    #[error("failed to fetch information about local workload: it is {0} no longer")]
    Renamed(Identity),
}

impl UnknownPod {
    /// The word for it in the log and the metrics.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::NoState => Reason::NoState,
            Self::Absent | Self::Renamed(_) => Reason::UnknownWorkload,
        }
    }
}

/// A listener that a pod has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Listening {
    pub(crate) address: SocketAddr,
    pub(crate) udp: bool,
}

impl Listening {
    /// Where tunnels come.
    pub(crate) fn tunnels(ipv6: bool) -> Self {
        Self {
            address: SocketAddr::new(any(ipv6), ports::HBONE),
            udp: false,
        }
    }

    /// All that a captured pod has.
    pub(crate) fn all(ipv6: bool, dns: bool) -> impl Iterator<Item = Self> {
        let tcp = [ports::OUTBOUND, ports::INBOUND_PLAINTEXT].map(|port| SocketAddr::new(any(ipv6), port));
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let names = loopback
            .into_iter()
            .filter(move |ip| dns && (ipv6 || ip.is_ipv4()))
            .map(|ip| SocketAddr::new(ip, ports::DNS));
        let names = names.flat_map(|address| [true, false].map(|udp| Self { address, udp }));
        let tcp = tcp.map(|address| Self { address, udp: false });
        tcp.into_iter().chain([Self::tunnels(ipv6)]).chain(names)
    }
}

fn any(ipv6: bool) -> IpAddr {
    match ipv6 {
        true => Ipv6Addr::UNSPECIFIED.into(),
        false => Ipv4Addr::UNSPECIFIED.into(),
    }
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} port {}", if self.udp { "UDP" } else { "TCP" }, self.address.port())
    }
}
