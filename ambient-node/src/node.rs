//! The composition: everything below, started in order, fed from one queue, and stopped gently.

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use ambient_authz::Policies;
use ambient_control::{Batch, Change, Issuer, LastHeard, Source};
use ambient_core::Observer;
use ambient_hbone::{Limits, Pool, Server};
use ambient_redirect::{
    Announce, Enrolment, PodSpec,
    linux::{self, PreflightError, preflight},
    plan::Options,
    pods::PodState,
    zds::{Client, ClientConfig, ClientState},
};
use ambient_tls::Configs;
use tokio::{
    sync::{Notify, watch},
    task::{self, JoinHandle, JoinSet},
    time,
};

use crate::{
    Config, Keys, Page,
    admin::{self, Context, Doors, Given, OpenError, Pages, Standing, Stop, Urgency},
    announce::ByState,
    assumed,
    bounds::Bounds,
    certificates::{Certificates, Keep, Memory},
    clock,
    cni::{self, Porter},
    demand::{self, Demand},
    dial::Dialler,
    dns, drain,
    embed::Listener,
    feed::{Feed, News},
    host_probes,
    inner::InnerTunnels,
    kept,
    local::Locals,
    lookup::{Lookups, Places},
    meant,
    pods::Pods,
    policies::Oversight,
    readiness::Readiness,
    state::{Changed, Snapshot, State},
    supervise,
    tasks::{PODS, RunError, SOURCE, Tasks},
    telemetry::Metrics,
    trust,
    watch::Watch,
    workers::Workers,
    zds,
};

pub(crate) use told::Told;

#[cfg(test)]
mod tests;
mod told;

/// What every connection needs to see.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) state: Arc<State>,
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) watch: Arc<Watch>,
    pub(crate) workers: Workers,
    pub(crate) sockets: linux::Sockets,
    pub(crate) server: Server,
    pub(crate) dialler: Arc<Dialler>,
    pub(crate) bounds: Bounds,
    /// What the DNS of all pods together may use.
    pub(crate) names: ambient_dns::Budget,
    pub(crate) lookups: Lookups,
    /// Where the mesh does not come whole.
    pub(crate) demand: Option<Demand>,
    pub(crate) locals: Arc<Locals>,
    /// How it stands with the agent that enrols the node's pods, where that is another's.
    pub(crate) agent: Option<watch::Receiver<ClientState>>,
    /// What is captured, of pods that ask nothing else.
    pub(crate) capture: Options,
}

/// Why a node did not start. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The process lacks a right, or the kernel a feature.
    #[error("this node cannot capture pods: {0}")]
    Preflight(#[from] PreflightError),
    /// A port of the node's own pages cannot be had.
    #[error("cannot listen on {address} for {what}: {source}{}", admin::otherwise(source, flag))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The page.
        what: &'static str,
        /// The flag that moves it.
        flag: &'static str,
        /// The system's word.
        source: io::Error,
    },
    /// The admin pages change the node, and tell all of it: they are for who is on it.
    #[error("the admin pages are served on a loopback address alone, and {0} is none; choose one with --admin")]
    AdminNotLoopback(SocketAddr),
    /// A [`Ground`] has its pages open, at the addresses that it was prepared with.
    #[error("a listener was given for {0}, which the ground has opened already: give it to a builder of Node::builder")]
    OpenedAlready(&'static str),
    /// Keys cannot be kept where that is asked for.
    #[error(transparent)]
    Keys(#[from] crate::KeysError),
    /// A thread or a descriptor could not be had.
    #[error("cannot start the node's threads: {0}")]
    Threads(io::Error),
    /// The process cannot move between network namespaces.
    #[error(transparent)]
    Enter(#[from] linux::NetnsError),
    /// The process cannot make sockets as a proxy needs them.
    #[error("this node cannot make its sockets in pods' namespaces: {0} (CAP_SYS_ADMIN and CAP_NET_ADMIN are needed)")]
    Sockets(io::Error),
    /// CNI plugins cannot hand namespaces over.
    #[error("cannot listen for CNI plugins at {path}: {source} (its directory must be there and writable; name another path with --cni)")]
    Cni {
        /// The path.
        path: String,
        /// The system's word.
        source: io::Error,
    },
    /// Proxies cannot connect.
    #[error(transparent)]
    Zds(#[from] ambient_redirect::zds::BindError),
    /// The directory of network namespaces is not there.
    #[error("cannot read the directory of network namespaces {path}: {source}; name the container runtime's with --netns-dir")]
    Namespaces {
        /// The directory.
        path: String,
        /// The system's word.
        source: io::Error,
    },
}

impl From<OpenError> for StartError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Listen {
                address,
                what,
                flag,
                source,
            } => Self::Listen {
                address,
                what,
                flag,
                source,
            },
            OpenError::NotLoopback(address) => Self::AdminNotLoopback(address),
        }
    }
}

/// A node proxy: started, and not yet running.
pub struct Node {
    shared: Arc<Shared>,
    source: Box<dyn Source>,
    pods: Arc<Pods>,
    probes: Option<host_probes::Prepared>,
    enrolling: Enrolling,
    doors: Doors,
    stop: Stop,
}

/// Who says which pods are served.
enum Enrolling {
    /// The node itself, with a socket for CNI plugins where there is to be one.
    Own(Box<Enrolment>, Option<cni::Door>),
    /// An agent of others.
    Told(Box<Client>, Arc<dyn Announce>),
    /// Whoever embeds the node.
    Given(Vec<(PodSpec, Arc<dyn Listener>)>),
}

impl Enrolling {
    /// The pods of whoever embeds the node.
    fn given(&self) -> Vec<PodSpec> {
        match self {
            Self::Given(given) => given.iter().map(|(pod, _)| pod.clone()).collect(),
            Self::Own(..) | Self::Told(..) => Vec::new(),
        }
    }
}

/// What a node is composed of.
pub(crate) struct Parts {
    pub(crate) source: Box<dyn Source>,
    pub(crate) issuer: Arc<dyn Issuer>,
    pub(crate) announce: Arc<dyn Announce>,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) metrics: Arc<Metrics>,
    /// If there are any, no others are served.
    pub(crate) pods: Vec<(PodSpec, Arc<dyn Listener>)>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

/// What a node stands on: what it needs is there, and its ports are its own. Nothing on disk is touched yet, and no pod.
#[derive(Debug)]
pub struct Ground {
    config: Config,
    options: Options,
    probes: Option<host_probes::Prepared>,
    doors: Doors,
    plugins: Option<cni::Door>,
}

impl Ground {
    /// Checks what a node needs, and takes its ports. Panics outside of a runtime of tokio that has time and I/O (`enable_all`).
    ///
    /// # Errors
    /// When something that it needs is missing; the error says what to do.
    pub async fn prepare(config: Config) -> Result<Self, StartError> {
        Self::with_pages(config, Given::default()).await
    }

    /// The same; pages are served at listeners that were given.
    pub(crate) async fn with_pages(config: Config, pages: Given) -> Result<Self, StartError> {
        if let Keys::Below(directory) = &config.keys {
            Memory::check(directory)?;
        }
        let mut options = options_of(&config);
        match &config.zds {
            None => {
                read_namespaces(&config.netns_dir)?;
                preflight(&options).await?;
            }
            Some(_) => try_sockets().await?,
        }
        let doors = Doors::open(config.pages(), pages)?;
        // Whoever makes the rules makes the node's too.
        let probes = match &config.zds {
            None => host_probes::prepare(&config.node, config.ipv6, config.probes).await,
            Some(_) => None,
        };
        options.probes = probes.is_some();
        let plugins = match &config.zds {
            None => open_to_plugins(config.cni.as_deref())?,
            Some(_) => None,
        };
        Ok(Self {
            config,
            options,
            probes,
            doors,
            plugins,
        })
    }

    /// The same, of a node that captures nothing.
    pub(crate) async fn without_capture(config: Config, pages: Given) -> Result<Self, StartError> {
        try_sockets().await?;
        Ok(Self {
            options: options_of(&config),
            probes: None,
            plugins: None,
            doors: Doors::open(config.pages(), pages)?,
            config,
        })
    }
}

fn options_of(config: &Config) -> Options {
    Options {
        ipv6: config.ipv6,
        dns: config.captures_dns(),
        probes: config.probes,
        yields: config.open_when_unproven,
        loopback_segments: config.loopback_segments,
        ..Options::default()
    }
}

/// How pods are captured.
fn redirection(config: &Config, options: Options) -> ambient_redirect::Config {
    ambient_redirect::Config {
        options,
        proc: config.proc.clone(),
        existing: config.existing_connections,
        drain: config.leave,
        open_when_unproven: config.open_when_unproven,
        ..ambient_redirect::Config::new(&config.node, &config.netns_dir)
    }
}

/// The socket for CNI plugins, if there is to be one.
pub(crate) fn open_to_plugins(path: Option<&Path>) -> Result<Option<cni::Door>, StartError> {
    let open = |path: &Path| {
        cni::Door::open(path).map_err(|source| StartError::Cni {
            path: path.display().to_string(),
            source,
        })
    };
    path.map(open).transpose()
}

/// Whether the runtime's directory of namespaces can be read.
pub(crate) fn read_namespaces(path: &Path) -> Result<(), StartError> {
    let read = std::fs::read_dir(path).map_err(|source| StartError::Namespaces {
        path: path.display().to_string(),
        source,
    });
    read.map(drop)
}

/// Whether sockets can be made as a proxy needs them in a namespace that it has entered.
async fn try_sockets() -> Result<(), StartError> {
    let own = Arc::new(linux::Netns::current()?);
    let anywhere = SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), 0);
    let made = linux::Sockets::new()?.tcp_listener(&own, anywhere, 1).await;
    made.map(drop).map_err(StartError::Sockets)
}

impl Node {
    /// Starts a node's threads on ground that was checked. Touches no pod. [`Ground::builder`] composes it of more.
    ///
    /// # Errors
    /// When a thread or a descriptor cannot be had.
    pub async fn start(
        ground: Ground,
        source: Box<dyn Source>,
        issuer: Arc<dyn Issuer>,
        announce: Arc<dyn Announce>,
    ) -> Result<Self, StartError> {
        let builder = ground.builder().source(source).issuer(issuer);
        builder.announce(announce).build().await
    }

    /// Starts the threads of a node.
    pub(crate) async fn compose(ground: Ground, parts: Parts) -> Result<Self, StartError> {
        let Ground {
            config,
            options,
            probes,
            doors,
            plugins,
        } = ground;
        let Parts {
            source,
            issuer,
            announce,
            observer,
            metrics,
            pods: given,
        } = parts;
        metrics.ask(&*source, trust_heard(&*source, &*issuer));
        let keep = keep(&config.keys, &config.node)?;
        let sockets = linux::Sockets::new()?.sharing_ports(config.share_ports);
        let provider = Arc::new(match config.post_quantum_only {
            true => ambient_tls::post_quantum_provider(),
            false => ambient_tls::provider(),
        });
        // One for all: a CRL is read once, however many threads there are.
        let configs = Arc::new(Configs::new(provider.clone()));
        let certificates = Certificates::keeping(issuer, configs.clone(), keep, metrics.certificate_requests());
        let dialler = Arc::new(Dialler::new(sockets.clone(), config.connect_timeout));
        let locals = Arc::new(Locals::new(certificates.clone(), configs.clone()));
        let (start, capture, counts) = ((config.workers, config.busy_poll), options.clone(), metrics.clone());
        // One for all, so that windows grow within one budget.
        let limits = Limits::default();
        let tunnels = {
            let (dialler, certificates, provider, observer) = (dialler.clone(), certificates.clone(), provider.clone(), observer.clone());
            let configs = configs.clone();
            let mut limits = limits.clone();
            limits.streams = config.pool_streams;
            // What bounds a pod is its connections: a tunnel is made only where all others to that peer are full, and a peer may
            // allow one stream in each.
            limits.tunnels = config.connections_per_pod.max(1);
            limits.idle = config.pool_idle;
            move || {
                let pool = |dial| {
                    let pool = Pool::builder(dial, certificates.clone(), provider.clone());
                    pool.configs(configs.clone()).limits(limits.clone()).observer(observer.clone())
                };
                (pool(dialler.clone()).build(), InnerTunnels::new(pool))
            }
        };
        let workers = task::spawn_blocking(move || Workers::start(start, &counts, tunnels)).await;
        let workers = workers
            .map_err(io::Error::other)
            .and_then(|started| started)
            .map_err(StartError::Threads)?;
        let server = Server::builder(certificates.clone(), provider.clone())
            .configs(configs.clone())
            .limits(limits)
            .observer(observer.clone())
            .build();
        let redirect = redirection(&config, options);
        let client = config.zds.as_ref().map(|path| Client::new(ClientConfig::new(path)));
        let bounds = Bounds::new(config.connections, config.connections_per_pod);
        let shared = Arc::new(Shared {
            names: dns::budget(config.connections),
            state: Arc::new(State::new(no_policies(&config))),
            config,
            certificates,
            metrics,
            watch: Arc::default(),
            workers,
            sockets,
            server,
            dialler,
            bounds,
            lookups: Lookups::default(),
            demand: source.on_demand().map(Demand::new),
            locals,
            agent: client.as_ref().map(Client::state),
            capture,
        });
        let pods = Pods::new(shared.clone());
        let announce = ByState::over(announce, &shared.config.node, &shared.state, &shared.metrics);
        let enrolling = match client {
            _ if !given.is_empty() => Enrolling::Given(given),
            Some(client) => Enrolling::Told(Box::new(client), announce),
            None => {
                let enrolment = Enrolment::new(redirect, shared.sockets.clone(), pods.clone(), announce, observer)?;
                Enrolling::Own(Box::new(enrolment), plugins)
            }
        };
        Ok(Self {
            shared,
            source,
            pods,
            probes,
            enrolling,
            doors,
            stop: Stop::default(),
        })
    }

    /// How it stands, for who asks.
    pub(crate) fn readiness(&self) -> Readiness {
        Readiness {
            node: self.shared.clone(),
            stop: self.stop.clone(),
        }
    }

    /// The word that it is to stop.
    pub(crate) fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Where a page is served: for who left its port to the system, as port 0 does. `None` where the system does not say.
    pub fn page(&self, page: Page) -> Option<SocketAddr> {
        let listener = match page {
            Page::Metrics => &self.doors.metrics,
            Page::Readiness => &self.doors.readiness,
            Page::Admin => self.doors.admin.first()?,
        };
        listener.local_addr().ok()
    }

    /// Serves until `stop` is done, then takes nothing new, lets what is open go on for a while, and ends.
    ///
    /// The rules in the pods' namespaces stay: until a node runs again their traffic is refused, and never sent in
    /// plaintext.
    ///
    /// # Errors
    /// When a part of the node has failed, so that going on would serve an old state as if it were the present one.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), RunError> {
        let Self {
            shared,
            source,
            pods,
            probes,
            enrolling,
            doors,
            stop: told,
        } = self;
        let (captures, unannounced) = match &enrolling {
            Enrolling::Own(enrolment, _) => (Some(enrolment.states()), enrolment.remedy()),
            // Of pods that others enrol nothing is proven here.
            Enrolling::Told(..) | Enrolling::Given(_) => (None, ""),
        };
        let (named, served, doubted) = (pods.clone(), pods.clone(), pods.clone());
        shared.metrics.ask_runtimes(shared.workers.counted());
        let context = Context {
            node: shared.clone(),
            pods: pods.clone(),
            lookups: Arc::new(Places::of_a_pod()),
            standing: Standing {
                node: shared.config.node.clone(),
                state: shared.state.clone(),
                metrics: shared.metrics.clone(),
                capture: shared.capture.clone(),
                captures: captures.clone(),
                agent: shared.agent.clone(),
                probes: probes.as_ref().map(host_probes::Prepared::states),
                proxied: true,
                named: Box::new(move |workload| named.named(workload)),
                namespace: Box::new(move |uid| served.namespace(uid)),
                doubt: Box::new(move |uid| doubted.flaw(uid)),
                unannounced,
                stop: told.clone(),
            },
        };
        let captures = captures.unwrap_or_else(|| watch::channel(Arc::from([])).1);
        let pages = Pages::start(doors, context).map_err(RunError::Pages)?;
        if shared.config.local_shortcut {
            tracing::warn!(
                "connections between pods of this node are relayed in this process: no packet of them crosses a pod's interface, so that NetworkPolicy does not see them"
            );
        }
        let (desired, wanted) = watch::channel(None);
        let mut tasks = Tasks::default();
        tasks.spawn(
            "certificates",
            supervised(&shared, "certificates", |shared| shared.certificates.clone().keep_fresh()),
        );
        let changed = Arc::new(Notify::new());
        let served = (shared.clone(), pods.clone(), enrolling.given());
        tasks.spawn(SOURCE, follow(served, source, desired, changed.clone()));
        tasks.spawn("trust", supervised(&shared, "trust", trust::follow));
        tasks.spawn("series", supervised(&shared, "series", let_series_go));
        tasks.spawn(
            "acknowledgements",
            supervised(&shared, "acknowledgements", |shared| shared.workers.acknowledge()),
        );
        tasks.spawn("demand", supervised(&shared, "demand", demand::give_back));
        if let Some(probes) = probes {
            let of = (shared.config.node.clone(), shared.config.ipv6);
            tasks.spawn("probes", host_probes::uphold(of, shared.metrics.clone(), probes, captures.clone()));
        }
        let (stop_enrolling, stopped) = tokio::sync::oneshot::channel::<()>();
        let mut enrolling = enrol(enrolling, &shared, &pods, &mut tasks, (wanted, captures, changed), stopped);
        let ran = tokio::select! {
            () = stop => Ok(()),
            () = told.told(Urgency::Graceful) => Ok(()),
            // None of them ends by itself.
            ended = tasks.ended() => Err(ended),
            ended = &mut enrolling => Err(RunError::of(PODS, ended.err())),
        };
        // For readiness, however it was told.
        told.tell(Urgency::Graceful);
        drop(stop_enrolling);
        drain::drain(&shared, &pods, &told, enrolling).await;
        tasks.shutdown().await;
        pages.stop().await;
        ran
    }
}

/// What enrolment follows: the pods that are meant to be in the mesh, how their captures stand, and that policies or workloads
/// have changed.
type Followed = (
    watch::Receiver<Option<Arc<[PodSpec]>>>,
    watch::Receiver<Arc<[PodState]>>,
    Arc<Notify>,
);

/// Begins to serve pods, until `stopped`.
fn enrol(
    enrolling: Enrolling,
    shared: &Arc<Shared>,
    pods: &Arc<Pods>,
    tasks: &mut Tasks,
    (wanted, captures, changed): Followed,
    stopped: tokio::sync::oneshot::Receiver<()>,
) -> JoinHandle<()> {
    // An error says that the other half is gone: stop then too.
    let stopped = async move { drop(stopped.await) };
    match enrolling {
        Enrolling::Own(enrolment, plugins) => {
            if let Some(door) = plugins {
                let porter = Porter {
                    register: cni::Register::new(shared.config.node.clone(), shared.state.clone()),
                    netns_dir: shared.config.netns_dir.clone(),
                    captures: captures.clone(),
                    hand_over: enrolment.hand_over(),
                    no_dns: shared.config.nameservers.is_empty().then_some(meant::NO_DNS),
                    open_when_unproven: shared.config.open_when_unproven,
                };
                tasks.spawn("the CNI plugin's socket", cni::serve(door, porter, shared.metrics.clone()));
            }
            let states = captures.clone();
            tasks.spawn(
                "pods",
                supervised(shared, "pods", move |shared| {
                    meant::tell_of_pods(shared.metrics.clone(), states.clone())
                }),
            );
            let kept = enrolment.kept();
            tasks.spawn(
                "kept connections",
                supervised(shared, "kept connections", move |shared| {
                    let (state, metrics) = (shared.state.clone(), shared.metrics.clone());
                    kept::hold_to_policy(state, metrics, captures.clone(), kept.clone(), changed.clone())
                }),
            );
            tokio::spawn(enrolment.run(wanted, stopped))
        }
        Enrolling::Told(client, announce) => {
            let state = client.state();
            let (told, named) = (state.clone(), state);
            tasks.spawn(
                "the node agent",
                supervised(shared, "the node agent", move |shared| {
                    zds::tell_of_agent(shared.metrics.clone(), told.clone())
                }),
            );
            tasks.spawn(
                "certificates of before",
                supervised(shared, "certificates of before", move |shared| {
                    zds::wipe_left(shared.certificates.clone(), named.clone())
                }),
            );
            let mended = pods.clone();
            tasks.spawn("listeners", supervised(shared, "listeners", move |_| mended.clone().mend()));
            let serving = pods.clone();
            let own = supervised(shared, "its own pod", move |_| serving.clone().serve_own());
            let (pods, shared) = (pods.clone(), shared.clone());
            let obeying = async move {
                // Who listens before it knows the mesh refuses what a predecessor would have served.
                shared.state.arrival().await;
                zds::obey(*client, pods, announce, shared.state.clone()).await;
            };
            tokio::spawn(async move {
                tokio::select! {
                    () = obeying => {}
                    () = own => {}
                    () = stopped => {}
                }
            })
        }
        Enrolling::Given(given) => {
            let mut serving = JoinSet::new();
            for (spec, listener) in given {
                let (pods, shared) = (pods.clone(), shared.clone());
                serving.spawn(async move {
                    shared.state.arrival().await;
                    pods.embed(spec, listener).await;
                });
            }
            tokio::spawn(async move {
                stopped.await;
                drop(serving);
            })
        }
    }
}

/// A task that is begun anew where it panics. What follows the source is none: it would go on with an old state.
fn supervised<F: Future<Output = ()> + Send + 'static>(
    shared: &Arc<Shared>,
    what: &'static str,
    begin: impl Fn(Arc<Shared>) -> F + Send + Sync + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    let node = shared.clone();
    supervise::supervised(what, &shared.metrics, move || begin(node.clone()))
}

/// When whoever says whom to trust was heard of last.
fn trust_heard(source: &dyn Source, issuer: &dyn Issuer) -> Option<LastHeard> {
    match source.gives_trust() {
        true => source.last_heard(),
        false => issuer.last_heard(),
    }
}

/// Where certificates outlive this process.
fn keep(keys: &Keys, node: &str) -> Result<Option<Box<dyn Keep>>, StartError> {
    let (directory, must) = match keys {
        Keys::Nowhere => return Ok(None),
        Keys::IfPossible(directory) => (directory, false),
        Keys::Below(directory) => (directory, true),
    };
    match Memory::open(directory, node) {
        Ok(memory) => Ok(Some(Box::new(memory))),
        Err(error) if must => Err(error.into()),
        Err(error) => {
            tracing::warn!(%error, "certificates end with this process: a restart while the authority is away serves nothing");
            Ok(None)
        }
    }
}

/// None yet, and how they are to decide.
fn no_policies(config: &Config) -> Policies {
    let policies = match config.istio_exact {
        true => Policies::istio_exact(),
        false => Policies::default(),
    };
    match config.let_unreadable_policies_go {
        true => policies.letting_unreadable_go(),
        false => policies,
    }
}

/// Has a certificate ready for each pod of the node, and keeps those of before this start for them.
fn expect(shared: &Shared, now: &Snapshot, pods: &[PodSpec], given: &[PodSpec]) {
    let certificates = &shared.certificates;
    // Of an agent's pods the mesh may tell no UIDs, and it is the agent who says which are here.
    let unnamed = match shared.agent.is_some() && !certificates.go_by_pods() {
        true => meant::unnamed(&shared.config.node, now),
        false => Vec::new(),
    };
    let identity = |pod: &PodSpec| assumed::identity(&shared.config, pod, Some(&now.mesh)).ok();
    let borne = pods
        .iter()
        .chain(given)
        .chain(&unnamed)
        .filter_map(|pod| Some((identity(pod)?, pod.uid.clone())));
    certificates.expect(borne);
    if shared.agent.is_none() {
        certificates.wipe_left();
    }
}

/// Takes what the source brings, one batch after the other, and passes on what each has changed. `given` are pods that are served
/// whatever it says.
async fn follow(
    (shared, pods, given): (Arc<Shared>, Arc<Pods>, Vec<PodSpec>),
    source: Box<dyn Source>,
    desired: watch::Sender<Option<Arc<[PodSpec]>>>,
    told: Arc<Notify>,
) {
    let (mut feed, mut oversight) = (Feed::new(source), Oversight::default());
    while let Some(news) = feed.next().await {
        let changed = match news {
            News::Batch(mut batch) => {
                let answered = std::mem::take(&mut batch.answered);
                let changed = take(&shared, batch).await;
                if let Some(demand) = &shared.demand {
                    demand.answered(&answered);
                }
                changed
            }
            News::GraceIsOver => shared.state.stop_waiting(),
            News::Due => Changed::default(),
        };
        let Some(now) = shared.state.current() else { continue };
        shared.watch.recheck(&now, &changed);
        shared.watch.settle(&now);
        feed.wake_at(shared.watch.settles_at());
        if !changed.policies.is_empty() || !changed.workloads.is_empty() {
            told.notify_one();
        }
        if !changed.workloads.is_empty() {
            pods.look(&now);
        }
        oversight.look(&shared.config.node, &now, &shared.metrics);
        if !changed.workloads.is_empty() || desired.borrow().is_none() {
            let no_dns = shared.config.nameservers.is_empty().then_some(meant::NO_DNS);
            let pods = meant::pods_of(&shared.config.node, no_dns, &now);
            expect(&shared, &now, &pods, &given);
            desired.send_replace(Some(pods));
        }
    }
    tracing::error!("the source of the mesh's state has ended: nothing new is taken, so the node stops");
}

async fn take(shared: &Shared, batch: Batch) -> Changed {
    let mut trust = batch.changes.iter().filter_map(|change| match change {
        Change::Trust(trust) => Some(trust),
        _ => None,
    });
    if let Some(trust) = trust.next_back() {
        shared.certificates.set_trust(trust.clone());
        trust::recheck(shared);
    }
    shared.state.apply_in_turns(batch, clock::steady()).await
}

/// Lets go the series of workloads that have gone.
async fn let_series_go(shared: Arc<Shared>) {
    loop {
        time::sleep(BETWEEN_SWEEPS).await;
        if let Some(now) = shared.state.current() {
            let metrics = shared.metrics.clone();
            // Not for the thread that accepts connections.
            let _ = task::spawn_blocking(move || metrics.sweep(&now)).await;
        }
    }
}

/// Well below the time that a series stays.
const BETWEEN_SWEEPS: Duration = Duration::from_secs(30);
