//! The two halves of a node apart, with ZDS between them: an enrolment whose proxy is somebody else's, and a proxy whose pods
//! somebody else enrols.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ambient_control::Source;
use ambient_core::PodUid;
use ambient_redirect::{
    Announce, BoxFuture, Enrolment, PodSpec, Proxy, ProxyError,
    linux::{self, Netns, preflight},
    zds::{
        Client, ClientState, Connected, Server, ServerConfig,
        workloads::{Readiness, Unserved},
    },
};
use tokio::{
    sync::{Notify, watch},
    time,
};

use crate::{
    StartError,
    admin::{At, Doors, Given, Pages, Standing, Stop, Urgency},
    announce::ByState,
    certificates::Certificates,
    clock,
    cni::{self, Porter},
    feed::{Feed, News},
    host_probes, kept,
    meant::{pods_of, tell_of_pods},
    node::{Told, open_to_plugins, read_namespaces},
    policies,
    state::State,
    supervise::supervised,
    tasks::{PODS, RunError, SOURCE, Tasks},
    telemetry::Metrics,
};

/// Settings of an [`Enrol`].
#[derive(Clone, Debug)]
pub struct EnrolConfig {
    /// What is captured, where, and how. With [`Options::probes`](ambient_redirect::plan::Options::probes) the node's own rules
    /// for the kubelet's probes are made too.
    pub redirect: ambient_redirect::Config,
    /// The socket that proxies connect to; made by this, for the own user and root alone.
    pub socket: PathBuf,
    /// A socket at which CNI plugins hand over the network namespaces of new pods; none by default.
    pub cni: Option<PathBuf>,
    /// Where `/metrics` is served; beside a node proxy's in the same network namespace, as the others.
    pub metrics: SocketAddr,
    /// Where `/healthz/ready` is served.
    pub readiness: SocketAddr,
    /// Where the admin pages are served, `/pods` among them: a loopback address.
    pub admin: SocketAddr,
}

impl EnrolConfig {
    /// Pages on the ports 15014, 15024 and 15004, no socket for CNI plugins.
    pub fn new(redirect: ambient_redirect::Config, socket: impl Into<PathBuf>) -> Self {
        let any = |port| SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        Self {
            redirect,
            socket: socket.into(),
            cni: None,
            metrics: any(15014),
            readiness: any(15024),
            admin: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 15004),
        }
    }
}

/// Enrolment alone: this node's pods are captured for a proxy that is another process, such as Istio's ztunnel, which is
/// told of them over ZDS.
pub struct Enrol {
    config: EnrolConfig,
    source: Box<dyn Source>,
    state: Arc<State>,
    server: Arc<Server>,
    enrolment: Enrolment,
    probes: Option<host_probes::Prepared>,
    doors: Doors,
    plugins: Option<cni::Door>,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Enrol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Enrol").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What the pages of an enrolment look at whose proxy is another process.
#[derive(Debug)]
pub(crate) struct Apart {
    pub(crate) standing: Standing,
    proxies: watch::Receiver<Arc<[Connected]>>,
    socket: PathBuf,
}

impl Apart {
    /// Whether it is ready, and what is wrong. Without a proxy it is: what can be captured waits for one, and one is started
    /// once this is.
    pub(crate) fn readiness(&self) -> (bool, String) {
        let Standing { state, stop, .. } = &self.standing;
        if stop.is_told() {
            return (false, "not ready, pending: the enrolment stops\n".into());
        }
        let now = state.current();
        let (ready, mut text) = policies::readiness(now.as_deref().map(|now| &now.policies), &state.faults());
        if self.proxies.borrow().is_empty() {
            let path = self.socket.display();
            text.push_str(&format!(
                "no proxy is connected at {path}: until one is, no pod joins, and new ones are refused\n"
            ));
        }
        (ready, text)
    }
}

impl Enrol {
    /// Checks what it needs, and listens for proxies. Touches no pod.
    ///
    /// # Errors
    /// When something that it needs is missing; the error says what to do.
    ///
    /// # Panics
    /// Outside of a runtime of tokio that has time and I/O (`enable_all`).
    pub async fn start(mut config: EnrolConfig, source: Box<dyn Source>, announce: Arc<dyn Announce>) -> Result<Self, StartError> {
        read_namespaces(&config.redirect.netns_dir)?;
        preflight(&config.redirect.options).await?;
        let at = At {
            metrics: config.metrics,
            readiness: config.readiness,
            admin: config.admin,
            ipv6: config.redirect.options.ipv6,
        };
        let doors = Doors::open(at, Given::default())?;
        let plugins = open_to_plugins(config.cni.as_deref())?;
        let server = Server::bind(ServerConfig {
            patience: PATIENCE,
            ..ServerConfig::new(&config.socket, config.redirect.options.clone())
        })?;
        let sockets = linux::Sockets::new()?;
        let options = &mut config.redirect.options;
        let probes = host_probes::prepare(&config.redirect.node, options.ipv6, options.probes).await;
        options.probes = probes.is_some();
        let metrics = Arc::new(Metrics::of_enrolment());
        metrics.ask_ages(source.last_heard(), None);
        let told = Arc::new(Told(Some(metrics.clone())));
        let state = Arc::new(State::default());
        let announce = ByState::over(announce, &config.redirect.node, &state, &metrics);
        let enrolment = Enrolment::new(config.redirect.clone(), sockets, server.clone(), announce, told)?;
        Ok(Self {
            config,
            source,
            state,
            server,
            enrolment,
            probes,
            doors,
            plugins,
            metrics,
        })
    }

    /// Enrols pods until `stop` is done. Rules stay then, and the proxy goes on with what it has.
    ///
    /// # Errors
    /// When a part has failed, so that going on would uphold an old state as if it were the present one.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), RunError> {
        let Self {
            config,
            source,
            state,
            server,
            enrolment,
            probes,
            doors,
            plugins,
            metrics,
        } = self;
        let (node, told) = (config.redirect.node.clone(), Stop::default());
        let (captures, served) = (enrolment.states(), server.clone());
        let apart = Apart {
            standing: Standing {
                node: node.clone(),
                state: state.clone(),
                metrics: metrics.clone(),
                capture: config.redirect.options.clone(),
                captures: Some(captures.clone()),
                agent: None,
                probes: probes.as_ref().map(host_probes::Prepared::states),
                proxied: false,
                named: Box::new(|_| None),
                namespace: Box::new(move |uid| served.namespace(uid)),
                doubt: Box::new(|_| None),
                unannounced: enrolment.remedy(),
                stop: told.clone(),
            },
            proxies: server.proxies(),
            socket: config.socket.clone(),
        };
        let pages = Pages::start(doors, apart).map_err(RunError::Pages)?;
        let (desired, wanted) = watch::channel(None);
        let changed = Arc::new(Notify::new());
        let mut tasks = Tasks::default();
        tasks.spawn(SOURCE, follow(node.clone(), source, state.clone(), desired, changed.clone()));
        let (counts, states) = (metrics.clone(), captures.clone());
        tasks.spawn(
            "pods",
            supervised("pods", &metrics, move || tell_of_pods(counts.clone(), states.clone())),
        );
        let proxies = server.proxies();
        tasks.spawn("proxies", supervised("proxies", &metrics, move || tell_of_proxies(proxies.clone())));
        let held = (state.clone(), metrics.clone(), captures.clone(), enrolment.kept(), changed);
        tasks.spawn(
            "kept connections",
            supervised("kept connections", &metrics, move || {
                let (state, metrics, captures, kept, changed) = held.clone();
                kept::hold_to_policy(state, metrics, captures, kept, changed)
            }),
        );
        if let Some(probes) = probes {
            let of = (node.clone(), config.redirect.options.ipv6);
            tasks.spawn("probes", host_probes::uphold(of, metrics.clone(), probes, captures.clone()));
        }
        if let Some(door) = plugins {
            let porter = Porter {
                register: cni::Register::new(node, state),
                netns_dir: config.redirect.netns_dir.clone(),
                captures: captures.clone(),
                hand_over: enrolment.hand_over(),
                no_dns: None,
                open_when_unproven: config.redirect.open_when_unproven,
            };
            tasks.spawn("the CNI plugin's socket", cni::serve(door, porter, metrics));
        }
        let serving = server.clone();
        tasks.spawn("the proxies' socket", async move { serving.run().await });
        let (following, pods) = (server.clone(), wanted.clone());
        tasks.spawn("what proxies are told", async move { following.follow(pods, captures).await });
        let (stop_enrolling, stopped) = tokio::sync::oneshot::channel::<()>();
        let mut enrolling = tokio::spawn(enrolment.run(wanted, async move {
            let _ = stopped.await;
        }));
        tracing::info!(socket = %server.path().display(), "waiting for proxies");
        let ran = tokio::select! {
            () = stop => Ok(()),
            () = told.told(Urgency::Graceful) => Ok(()),
            // None of them ends by itself.
            ended = tasks.ended() => Err(ended),
            ended = &mut enrolling => Err(RunError::of(PODS, ended.err())),
        };
        // For readiness, however it was told.
        told.tell(Urgency::Graceful);
        tracing::info!("stopping: rules stay, and the proxy goes on with what it has");
        drop(stop_enrolling);
        if !enrolling.is_finished() {
            let _ = enrolling.await;
        }
        tasks.shutdown().await;
        pages.stop().await;
        ran
    }
}

/// Takes what the source brings: which pods are here, and what policies say of connections that were kept.
async fn follow(
    node: Arc<str>,
    source: Box<dyn Source>,
    state: Arc<State>,
    desired: watch::Sender<Option<Arc<[PodSpec]>>>,
    told: Arc<Notify>,
) {
    let mut feed = Feed::new(source);
    while let Some(news) = feed.next().await {
        let changed = match news {
            News::Batch(batch) => state.apply_in_turns(batch, clock::steady()).await,
            News::GraceIsOver => state.stop_waiting(),
            News::Due => continue,
        };
        let Some(now) = state.current() else { continue };
        if !changed.policies.is_empty() || !changed.workloads.is_empty() {
            told.notify_one();
        }
        if !changed.workloads.is_empty() || desired.borrow().is_none() {
            desired.send_replace(Some(pods_of(&node, None, &now)));
        }
    }
    tracing::error!("the source of the mesh's state has ended: nothing new is taken, so the enrolment stops");
}

async fn tell_of_proxies(mut proxies: watch::Receiver<Arc<[Connected]>>) {
    let mut told: Arc<[Connected]> = Arc::from([]);
    loop {
        let now = proxies.borrow_and_update().clone();
        for proxy in now.iter() {
            let (id, pid, uid) = (proxy.state.proxy, proxy.peer.pid, proxy.peer.uid);
            let before = told.iter().find(|before| before.state.proxy == id);
            if before.is_none() {
                tracing::info!(%id, pid, uid, "a proxy has connected");
            }
            if proxy.state.synced && !before.is_some_and(|before| before.state.synced) {
                tracing::info!(%id, pid, pods = proxy.state.served, "the proxy has been told of every pod");
            }
            for (pod, why) in &proxy.state.refused {
                if !before.is_some_and(|before| before.state.refused.iter().any(|(p, w)| p == pod && w == why)) && why != UNANSWERED {
                    tracing::warn!(%id, uid = %pod, why, "the proxy does not serve a pod");
                }
            }
        }
        for gone in told
            .iter()
            .filter(|gone| !now.iter().any(|proxy| proxy.state.proxy == gone.state.proxy))
        {
            tracing::warn!(id = %gone.state.proxy, pid = gone.peer.pid, "a proxy is gone");
        }
        told = now;
        if proxies.changed().await.is_err() {
            // Whoever serves them has gone, with all of this; its end is told elsewhere.
            return std::future::pending().await;
        }
    }
}

/// Puts into the log how the node stands with its agent, when that changes, and counts.
pub(crate) async fn tell_of_agent(metrics: Arc<Metrics>, mut state: watch::Receiver<ClientState>) {
    let mut told: Option<ClientState> = None;
    loop {
        let now = state.borrow_and_update().clone();
        if now.trouble.is_some() && told.as_ref().map(|told| &told.trouble) != Some(&now.trouble) {
            tracing::warn!(trouble = now.trouble, "not connected to the node agent; what is served goes on");
        }
        let before = told.as_ref().map(|told| &told.readiness);
        match &now.readiness {
            Readiness::Ready => metrics.uncovered_pods(0),
            Readiness::Pending(_, count) => metrics.uncovered_pods(*count),
            // What was not served is not, as long as nobody takes it back.
            Readiness::Alone | Readiness::Naming => {}
        }
        match &now.readiness {
            Readiness::Ready if before != Some(&now.readiness) => {
                tracing::info!(pods = now.served, "all pods that the node agent names are served");
            }
            Readiness::Pending(pods, _) => {
                for (pod, why) in newly_unserved(before, pods) {
                    tracing::warn!(uid = %pod, %why, "a pod is not served; it is tried again");
                }
            }
            Readiness::Ready | Readiness::Alone | Readiness::Naming => {}
        }
        told = Some(now);
        if state.changed().await.is_err() {
            return;
        }
    }
}

/// What is to be told of pods that are not served: each reason once, and not that a pod is being begun, as each is for a moment.
fn newly_unserved<'a>(before: Option<&'a Readiness>, now: &'a [(PodUid, Unserved)]) -> impl Iterator<Item = &'a (PodUid, Unserved)> {
    let before: &[_] = match before {
        Some(Readiness::Pending(pods, _)) => pods,
        _ => &[],
    };
    now.iter().filter(move |told| told.1 != Unserved::Begun && !before.contains(told))
}

/// What readiness says of it; `None` when there is nothing to say.
pub(crate) fn unready(state: &ClientState) -> Option<String> {
    let trouble = state.trouble.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
    match &state.readiness {
        Readiness::Ready => None,
        Readiness::Alone => Some(format!("no node agent is connected{trouble}")),
        Readiness::Naming => Some("the node agent has not named all pods yet".into()),
        Readiness::Pending(pods, count) => {
            let named: Vec<String> = pods.iter().map(|(pod, why)| format!("{pod} ({why})")).collect();
            Some(format!("{count} pods are not served: {}", named.join(", ")))
        }
    }
}

/// Wipes what a process before has kept of pods that are here no more, once the agent has named all that are and each was begun: the
/// mesh may tell no UIDs, so that nobody else knows. Never ends.
pub(crate) async fn wipe_left(certificates: Arc<Certificates>, mut state: watch::Receiver<ClientState>) {
    // An error says that nobody will name any.
    if state.wait_for(|now| were_begun(&now.readiness)).await.is_ok() {
        certificates.wipe_left();
    }
    std::future::pending().await
}

/// Whether the agent has named all pods, and each of them was begun, well or not.
fn were_begun(readiness: &Readiness) -> bool {
    match readiness {
        Readiness::Ready => true,
        Readiness::Pending(told, count) => told.len() == *count && told.iter().all(|(_, why)| *why != Unserved::Begun),
        Readiness::Alone | Readiness::Naming => false,
    }
}

/// Serves pods as an agent says, until it is dropped.
pub(crate) async fn obey(client: Client, pods: Arc<dyn Proxy>, announce: Arc<dyn Announce>, state: Arc<State>) {
    let (agent, obeying) = (client.state(), Arc::new(Obeying::new(pods, announce)));
    tokio::select! {
        () = client.run(obeying.clone()) => {}
        () = obeying.announce_all(&state, agent) => {}
    }
}

/// Announces what is served: that its rules are in force is the agent's care, and it puts them in force before it asks.
struct Obeying {
    pods: Arc<dyn Proxy>,
    announce: Arc<dyn Announce>,
    /// One thing is told at a time, and what is to be told is looked at first: so what is told last is what is so.
    telling: tokio::sync::Mutex<()>,
    untold: Mutex<Untold>,
}

#[derive(Default)]
struct Untold {
    /// What the agent has named and not removed.
    named: BTreeSet<PodUid>,
    /// Served, and not announced as long as it is not known what its addresses are.
    waiting: BTreeMap<PodUid, PodSpec>,
    /// Announced, by this process or an earlier one, and to be so no more.
    owed: BTreeSet<PodUid>,
}

impl Obeying {
    fn new(pods: Arc<dyn Proxy>, announce: Arc<dyn Announce>) -> Self {
        Self {
            pods,
            announce,
            telling: tokio::sync::Mutex::default(),
            untold: Mutex::default(),
        }
    }

    async fn announce_all(&self, state: &State, agent: watch::Receiver<ClientState>) {
        let mut glances = time::interval(GLANCE);
        let (mut knows_earlier, mut withdrawals) = (false, time::Instant::now());
        loop {
            glances.tick().await;
            if !knows_earlier && let Some(earlier) = self.earlier(&agent.borrow()) {
                knows_earlier = true;
                self.untold().owed.extend(earlier);
            }
            if withdrawals <= time::Instant::now() {
                let owed = self.untold().owed.clone();
                for uid in owed {
                    if !self.withdraw(&uid).await {
                        withdrawals = time::Instant::now() + AGAIN;
                    }
                }
            }
            let waiting: Vec<PodSpec> = self.untold().waiting.values().cloned().collect();
            for pod in waiting {
                let addresses = state
                    .current()
                    .and_then(|now| Some(now.mesh.workload_by_pod(&pod.uid)?.addresses.clone()));
                let Some(addresses) = addresses.filter(|addresses| !addresses.is_empty()) else {
                    continue;
                };
                let _telling = self.telling.lock().await;
                if !self.untold().waiting.contains_key(&pod.uid) {
                    continue;
                }
                let known = PodSpec { addresses, ..pod };
                match self.announce.captured(&known).await {
                    Ok(()) => drop(self.untold().waiting.remove(&known.uid)),
                    Err(error) => tracing::error!(uid = %known.uid, %error, "a pod cannot be announced; it is tried again"),
                }
            }
        }
    }

    /// What an earlier process has announced of pods that the agent does not name; `None` before it is known whom it names.
    fn earlier(&self, agent: &ClientState) -> Option<Vec<PodUid>> {
        let pending = match &agent.readiness {
            Readiness::Ready => &[][..],
            Readiness::Pending(told, count) if told.len() == *count => told,
            Readiness::Pending(..) | Readiness::Naming | Readiness::Alone => return None,
        };
        let mut earlier = self.announce.announced()?;
        let untold = self.untold();
        earlier.retain(|uid| !untold.named.contains(uid) && pending.iter().all(|(pending, _)| pending != uid));
        Some(earlier)
    }

    /// Takes an announcement back if that is owed; what fails is owed still.
    async fn withdraw(&self, uid: &PodUid) -> bool {
        let _telling = self.telling.lock().await;
        if !self.untold().owed.contains(uid) {
            return true;
        }
        match self.announce.withdrawn(uid).await {
            Ok(()) => {
                self.untold().owed.remove(uid);
                true
            }
            Err(error) => {
                tracing::error!(%uid, %error, "a pod's announcement cannot be taken back; it is tried again");
                false
            }
        }
    }

    fn untold(&self) -> std::sync::MutexGuard<'_, Untold> {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Proxy for Obeying {
    fn add<'a>(&'a self, pod: &'a PodSpec, namespace: Arc<Netns>) -> BoxFuture<'a, Result<(), ProxyError>> {
        Box::pin(async move {
            self.untold().named.insert(pod.uid.clone());
            self.pods.add(pod, namespace).await?;
            let mut untold = self.untold();
            untold.owed.remove(&pod.uid);
            untold.waiting.insert(pod.uid.clone(), pod.clone());
            Ok(())
        })
    }

    fn cut<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            {
                let mut untold = self.untold();
                untold.named.remove(uid);
                untold.waiting.remove(uid);
                untold.owed.insert(uid.clone());
            }
            // What takes longer is told later; the agent waits for what is open to be cut.
            let _ = time::timeout(TELLING, self.withdraw(uid)).await;
            self.pods.cut(uid).await;
        })
    }

    fn remove<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, ()> {
        self.pods.remove(uid)
    }
}

/// What a proxy that has been asked is said to say until it does.
const UNANSWERED: &str = ambient_redirect::zds::agent::UNANSWERED;
/// How long a pod waits for a proxy at a time: less than a CNI plugin, which is then told why.
const PATIENCE: Duration = Duration::from_secs(4);
/// How often it is looked whether a pod's addresses are known.
const GLANCE: Duration = Duration::from_millis(200);
/// How long a removal waits for the announcement to be taken back: an agent gives an answer up after 5 s.
const TELLING: Duration = Duration::from_secs(3);
/// Between two attempts to take announcements back.
const AGAIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pods_that_the_agent_names_and_that_are_not_served_are_counted() {
        let metrics = Arc::new(Metrics::default());
        let of = |readiness| ClientState {
            readiness,
            served: 1,
            trouble: None,
        };
        let pending = Readiness::Pending(vec![("a".into(), Unserved::Failed("no listener".into()))], 40);
        let (state, told) = watch::channel(of(pending));
        let telling = tokio::spawn(tell_of_agent(metrics.clone(), told));
        let count = async |wanted: usize| {
            let line = format!("\nambient_pods_not_captured {wanted}\n");
            let told = async {
                while !metrics.text().unwrap().contains(&line) {
                    time::sleep(Duration::from_millis(5)).await;
                }
            };
            time::timeout(Duration::from_secs(20), told).await.expect("in time");
        };
        count(40).await;
        // As long as it is away nothing more is known.
        state.send_replace(of(Readiness::Alone));
        tokio::task::yield_now().await;
        count(40).await;
        state.send_replace(of(Readiness::Ready));
        count(0).await;
        drop(state);
        telling.await.unwrap();
    }

    #[test]
    fn pods_are_known_once_each_that_the_agent_names_was_begun() {
        let of = |why: Unserved, count| Readiness::Pending(vec![("a".into(), why)], count);
        assert!(
            [Readiness::Ready, of(Unserved::Failed("no listener".into()), 1)]
                .iter()
                .all(were_begun)
        );
        let not_yet = [
            Readiness::Alone,
            Readiness::Naming,
            of(Unserved::Begun, 1),
            of(Unserved::Taken("b".into()), 2),
        ];
        assert!(!not_yet.iter().any(were_begun));
    }

    #[test]
    fn what_is_wrong_with_a_pod_is_told_once_and_that_it_is_being_begun_never() {
        let (a, b, c) = (PodUid::from("a"), PodUid::from("b"), PodUid::from("c"));
        let first = [(a.clone(), Unserved::Begun), (b.clone(), Unserved::Taken(a.clone()))];
        assert!(newly_unserved(None, &first).eq([&first[1]]));
        // Another goes wrong, one gets another reason, and one is as before.
        let second = [
            (a.clone(), Unserved::Failed("no listener".into())),
            first[1].clone(),
            (c, Unserved::Begun),
        ];
        let before = Readiness::Pending(first.to_vec(), 2);
        assert!(newly_unserved(Some(&before), &second).eq([&second[0]]));
        // All was well meanwhile.
        assert!(newly_unserved(Some(&Readiness::Ready), &first).eq([&first[1]]));
    }
}
