//! `ambient node`: flags and environment into a [`Config`], and a [`Node`] that runs until it is told to stop.

use std::{
    ffi::OsString,
    net::SocketAddr,
    num::{NonZeroU32, NonZeroUsize},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use ambient_control::{
    Issuer, Source,
    ca::DirectoryCa,
    crls::WithCrls,
    istiod::Membership,
    local_xds::{self, LocalXds, Place},
    manifests::{self, Manifests, Status},
    objects::{Enablement, Selection},
};
use ambient_core::TrustDomain;
use ambient_node::{
    AnnounceInDirectory, AnnounceNothing, AnnounceToControl, Assumed, Config, ExistingConnections, Ground, KeepAlive, Keys, KeysError,
    Node, Sources, StartError, telemetry::log,
};
use ambient_redirect::Announce;
use anyhow::Context as _;
use clap::Args as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{cluster_local::ClusterLocal, descriptors, given, owned::owned, say};

mod istiod;
pub(crate) mod mesh;
mod proxy_config;
pub(crate) mod settings;
mod spiffe;
mod ztunnel;

use mesh::{Mesh, Said};
use settings::Setting;

/// Flags. `CONFIGURATION.md` lists them, and what else they can come from.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A file of settings: a YAML map whose fields are named as these flags. Flags and the environment count before it.
    // An empty variable names none; another kind of text is not taken if it is empty.
    #[arg(long, env = "AMBIENT_CONFIG", value_name = "FILE", value_parser = clap::builder::OsStringValueParser::new())]
    config: Option<OsString>,
    /// Print every setting that has a value, and where it comes from, and do nothing else.
    #[arg(long)]
    print_config: bool,
    /// What has said each of these.
    #[arg(skip)]
    settings: Vec<Setting>,
    /// The name of this Kubernetes node: pods with this `spec.nodeName` are served.
    #[arg(long, env = "NODE_NAME", value_parser = settings::node_name)]
    node: String,
    /// A directory of Kubernetes manifests that is the control plane; every node of the mesh watches the same one.
    #[arg(long, env = "AMBIENT_MANIFESTS", value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// A file of workloads, services and policies in the form of ztunnel's, where state comes from; watched. In the
    /// place of --manifests.
    #[arg(long, env = "LOCAL_XDS_PATH", value_name = "FILE")]
    local_xds_path: Option<PathBuf>,
    /// The same, itself: YAML or JSON. It does not change as long as this runs.
    #[arg(long, env = "LOCAL_XDS", value_name = "YAML", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    local_xds: Option<String>,
    /// A directory that is the certificate authority; made on first use, shared by every node of the mesh.
    #[arg(long, env = "AMBIENT_CA_DIR", value_name = "DIR")]
    ca_dir: Option<PathBuf>,
    #[command(flatten)]
    istiod: istiod::Istiod,
    #[command(flatten)]
    spiffe: spiffe::Spiffe,
    /// Where the container runtime keeps network namespaces.
    #[arg(long, env = "AMBIENT_NETNS_DIR", value_name = "DIR", default_value = "/run/netns")]
    netns_dir: PathBuf,
    /// Serve the pods that another's node agent names over this socket, as Istio's istio-cni does at
    /// /var/run/ztunnel/ztunnel.sock, and capture none: the agent makes the rules. --netns-dir and the settings of capture
    /// have no effect then.
    #[arg(long, env = "INPOD_UDS", value_name = "SOCKET")]
    zds: Option<PathBuf>,
    /// Have CNI plugins hand the namespaces of new pods over at this socket, before anything runs in them: `ambient-cni`, or
    /// Istio's with this as its pluginevent.sock. A plugin is answered once the pod is captured and that is proven. It is made
    /// for the own user and root alone.
    #[arg(long, env = "AMBIENT_CNI_SOCKET", value_name = "SOCKET")]
    cni: Option<PathBuf>,
    /// Find namespaces by the processes of pods as well, in this /proc: it must show the whole machine's, which takes CAP_SYS_PTRACE
    /// and a mount without hidepid.
    #[arg(long, env = "AMBIENT_PROC", value_name = "DIR")]
    proc: Option<PathBuf>,
    /// Which pods are meant to be in the mesh: a YAML list of {podSelector, namespaceSelector}, any of which takes a pod, and
    /// an empty selector takes all. By default pods labelled istio.io/dataplane-mode=ambient, and those of a namespace
    /// so labelled that are not labelled none. The same for every node of the mesh.
    #[arg(long, env = "AMBIENT_ENABLEMENT_SELECTOR", value_name = "YAML", value_parser = enablement)]
    enablement_selector: Option<Selectors>,
    /// Namespaces whose pods are never in the mesh; commas separate several.
    #[arg(
        long,
        env = "EXCLUDE_NAMESPACES",
        value_name = "NAMESPACE",
        value_delimiter = ',',
        default_value = "kube-system",
        value_parser = settings::namespace_or_none
    )]
    exclude_namespaces: Vec<Arc<str>>,
    /// The trust domain of the mesh. By default what the ConfigMap istio of the manifests says; where state and certificates are a
    /// control plane's, what that says of each workload; else cluster.local.
    #[arg(long, env = "TRUST_DOMAIN", value_name = "DOMAIN")]
    trust_domain: Option<TrustDomain>,
    /// Another name of the trust domain: a policy that names one of them means all. May be given several times; commas
    /// separate several in the environment.
    #[arg(
        long = "trust-domain-alias",
        env = "TRUST_DOMAIN_ALIASES",
        value_name = "DOMAIN",
        value_delimiter = ','
    )]
    trust_domain_aliases: Vec<TrustDomain>,
    /// What cluster.local in a policy means where the trust domain has another name. By default own for manifests, and literal
    /// for what comes over xDS or in its form, and with --istio-exact.
    #[arg(long, env = "AMBIENT_CLUSTER_LOCAL", value_name = "MEANING")]
    cluster_local: Option<ClusterLocal>,
    /// The namespace whose policies apply to the whole mesh. By default what the ConfigMap istio of the manifests says, else
    /// istio-system.
    #[arg(long, env = "AMBIENT_ROOT_NAMESPACE", value_name = "NAMESPACE", value_parser = settings::namespace)]
    root_namespace: Option<Arc<str>>,
    /// Read and decide exactly as Istio does, also where Istio lets through more than is written.
    #[arg(long, env = "ISTIO_EXACT")]
    istio_exact: bool,
    /// The revision of the control plane whose place the manifests take: of the policies there that are labelled with one
    /// (istio.io/rev) only those of this one count. Without it all count.
    #[arg(long, env = "REVISION", value_name = "NAME", value_parser = settings::label)]
    revision: Option<Arc<str>>,
    /// Ignore a policy that cannot be read and of which no good version is known; without this, everything in its scope is
    /// refused.
    #[arg(long, env = "AMBIENT_LET_UNREADABLE_POLICIES_GO")]
    let_unreadable_policies_go: bool,
    /// Relay connections between pods of this node in this process. The CNI's NetworkPolicy does not see them then; policies,
    /// log and metrics are the same.
    #[arg(long, env = "AMBIENT_LOCAL_SHORTCUT")]
    local_shortcut: bool,
    /// The network that this node's pods are assumed to be in. If the mesh says another of a pod, that counts, and the log
    /// says so.
    #[arg(long, env = "NETWORK", value_name = "NETWORK", value_parser = settings::word)]
    network: Option<Arc<str>>,
    /// The DNS domain of the cluster.
    #[arg(long, env = "CLUSTER_DOMAIN", default_value = "cluster.local", value_parser = settings::domain)]
    cluster_domain: String,
    /// The namespace whose service a DNS name means if several namespaces have a service of that name, and neither is the
    /// client's own namespace among them nor is one of the services canonical. (The name of the variable is Istio's.)
    #[arg(long, env = "PREFERED_SERVICE_NAMESPACE", value_name = "NAMESPACE", value_parser = settings::namespace_or_none)]
    preferred_service_namespace: Option<Arc<str>>,
    /// How long a certificate is valid; it is renewed at half of that. No authority of this project gives more than 24 hours,
    /// nor more than its own setting. If less is given than was asked for, the log says so once.
    #[arg(long, env = "SECRET_TTL", value_name = "TIME", default_value = "24h", value_parser = settings::patience)]
    secret_ttl: Duration,
    /// A file of revocations (CRLs, PEM or DER), watched. It is for the trust domain of the mesh, or for every domain that
    /// has roots if no trust domain was told. Nobody but its owner may be able to write to it. Until the file is first there
    /// it revokes nobody, and readiness says so. If it goes, is emptied or cannot be read, whoever it revoked stays revoked
    /// until a restart. `ambient control` and --ca-dir have their own revocations.
    #[arg(long, env = "CRL_PATH", value_name = "FILE", value_parser = settings::path_or_none())]
    crl_path: Option<PathBuf>,
    /// Where keys and certificates are kept for a restart while the authority is away, in a directory of the node's name: in
    /// memory (tmpfs or ramfs), never on a disk. If the default cannot be used a line in the log says so; `none` keeps none.
    #[arg(long, env = "AMBIENT_KEYS_DIR", value_name = "DIR", default_value = KEYS)]
    keys_dir: PathBuf,
    /// A resolv.conf that says where names outside the mesh are asked for, if the pod's own is not known.
    #[arg(long, value_name = "FILE", default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
    /// Whether what this node's own processes send to its pods reaches them whatever policies say, as the kubelet's probes
    /// must: `on` or `off`.
    #[arg(long, env = "AMBIENT_PROBES", value_enum, default_value_t = Switch::On)]
    probes: Switch,
    /// Whether captured TCP uses the large segments of the loopback device instead of those of the pod's link (`on` or
    /// `off`): it stays on that device between application and proxy, and less is done for each byte of a transfer. A routing
    /// rule in the pods' namespaces (priority 32765, table 65520) does it. It is left out for an address family of a pod if
    /// something of that family goes around the proxy, or if its routing has more than plain routes, or rules of others in
    /// between. What an application has the kernel hold back until a segment is full (TCP_CORK, MSG_MORE) is held back up to
    /// 64 KiB, for at most 200 ms.
    #[arg(long, env = "AMBIENT_LOOPBACK_SEGMENTS", value_enum, default_value_t = Switch::On)]
    loopback_segments: Switch,
    /// Whether pods' DNS is captured; a pod may ask for the opposite by the annotation ambient.istio.io/dns-capture.
    #[arg(long, env = "ISTIO_META_DNS_CAPTURE", value_name = "BOOL", default_value = "true", value_parser = settings::truth, action = clap::ArgAction::Set)]
    dns_capture: bool,
    /// Leave pods' DNS alone: the same as --dns-capture false.
    #[arg(long)]
    no_dns_capture: bool,
    /// What cryptography must be. `pqc` speaks only with those, other nodes and control planes alike, that agree on keys by
    /// X25519MLKEM768, which quantum computers cannot undo. Without this setting that is preferred.
    #[arg(long, env = "COMPLIANCE_POLICY", value_name = "POLICY", value_parser = compliance)]
    compliance_policy: Option<Compliance>,
    /// Whether pods' IPv6 is captured. If it is not, no name of the mesh has an IPv6 address for them.
    #[arg(long, env = "IPV6_ENABLED", value_name = "BOOL", default_value = "true", action = clap::ArgAction::Set)]
    ipv6: bool,
    /// Where /metrics is served.
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:15020")]
    metrics: SocketAddr,
    /// Where /healthz/ready is served.
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:15021")]
    readiness: SocketAddr,
    /// Where the admin pages are served, such as /config_dump: a loopback address.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15000")]
    admin: SocketAddr,
    /// Threads that move bytes: a number, a share of the cores such as 50%, 0 for as many as there are cores, or auto: a
    /// quarter of the cores, but two at least if there are two.
    #[arg(long, env = "ZTUNNEL_WORKER_THREADS", value_name = "N", default_value = settings::AUTO, value_parser = settings::workers)]
    workers: usize,
    /// How long, at most, such a thread looks for new work before it falls asleep when it has nothing to do. It offers its
    /// processor to others of its cgroup meanwhile, stops when looking is of no use, and looks in all no longer than twice
    /// the time it works. `0` is never; auto is 200us, and 0 if a cgroup limits the process's time. The sockets' own busy
    /// polling (SO_BUSY_POLL) is not used.
    #[arg(long, env = "AMBIENT_BUSY_POLL", value_name = "TIME", default_value = settings::AUTO, value_parser = settings::busy_poll)]
    busy_poll: Duration,
    /// How long open connections may go on after SIGTERM. By default five seconds; with --termination-grace-period, that time
    /// less five seconds, or less one second if it is ten seconds or less.
    #[arg(long, env = "CONNECTION_TERMINATION_DEADLINE", value_name = "TIME", value_parser = settings::time)]
    drain: Option<Duration>,
    /// How long after SIGTERM the process will be killed: what Kubernetes is told, in seconds, as
    /// terminationGracePeriodSeconds.
    #[arg(long, env = "TERMINATION_GRACE_PERIOD_SECONDS", value_name = "TIME", value_parser = settings::time)]
    termination_grace_period: Option<Duration>,
    /// Whether the pods' ports are shared with another node proxy of the same user, so that a successor takes new connections
    /// before this one has ended. On by default with --zds. Not for a node that captures pods itself: two such nodes would
    /// contend for the rules.
    #[arg(long, env = "INPOD_PORT_REUSE", value_name = "BOOL", action = clap::ArgAction::Set)]
    share_ports: Option<bool>,
    /// Whether an application that is told by a PROXY protocol header who the client is, as a waypoint may be, is reached on
    /// its pod's loopback address; otherwise on the pod's own address.
    #[arg(long, env = "LOCALHOST_APP_TUNNEL", value_name = "BOOL", default_value = "true", action = clap::ArgAction::Set)]
    localhost_app_tunnel: bool,
    /// How long connecting to an application or to another node's proxy may take.
    #[arg(long, env = "AMBIENT_CONNECT_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = settings::patience)]
    connect_timeout: Duration,
    /// Connections that one pod may have open in one direction; never more than a quarter of what the process may have.
    #[arg(long, env = "AMBIENT_CONNECTIONS_PER_POD", value_name = "N", default_value = "20000")]
    connections_per_pod: NonZeroUsize,
    /// Whether TCP keepalive probes ask on a silent connection whether its other end is still there.
    #[arg(long, env = "KEEPALIVE_ENABLED", value_name = "BOOL", default_value = "true", action = clap::ArgAction::Set)]
    keepalive: bool,
    /// How long a connection must be silent before the first probe.
    #[arg(long, env = "KEEPALIVE_TIME", value_name = "TIME", default_value = "180s", value_parser = settings::kernel_seconds)]
    keepalive_time: Duration,
    /// How long between two probes.
    #[arg(long, env = "KEEPALIVE_INTERVAL", value_name = "TIME", default_value = "180s", value_parser = settings::kernel_seconds)]
    keepalive_interval: Duration,
    /// How many unanswered probes end a connection.
    #[arg(long, env = "KEEPALIVE_RETRIES", value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=127))]
    keepalive_retries: u32,
    /// Whether a connection also ends if data that was sent is not acknowledged within the time that all probes together
    /// take.
    #[arg(long, env = "USER_TIMEOUT_ENABLED", value_name = "BOOL", default_value = "false", action = clap::ArgAction::Set)]
    user_timeout: bool,
    /// Streams that are opened in one tunnel, at most.
    #[arg(long, env = "POOL_MAX_STREAMS_PER_CONNECTION", value_name = "N", default_value = "100")]
    pool_streams: NonZeroU32,
    /// A tunnel to a peer is closed once it has had no stream for this time; at the latest after twice this time.
    #[arg(long, env = "POOL_UNUSED_RELEASE_TIMEOUT", value_name = "TIME", default_value = "5m", value_parser = settings::time)]
    pool_idle: Duration,
    /// What becomes of the connections that a pod has open when it joins: `keep` leaves them open outside of the mesh,
    /// `close` resets them.
    #[arg(long, env = "AMBIENT_EXISTING_CONNECTIONS", value_name = "WHAT", value_enum, default_value_t = Existing::Keep)]
    existing_connections: Existing,
    /// How long captured connections of a pod that leaves the mesh may go on before they are reset.
    #[arg(long, env = "AMBIENT_LEAVE_SECONDS", value_name = "TIME", default_value = "30s", value_parser = settings::time)]
    leave: Duration,
    /// Let a pod's TCP go around the mesh, in plaintext and without any policy, if its capture cannot be upheld, or if rules
    /// of others in its namespace send it elsewhere; without this, it is refused.
    #[arg(long, env = "AMBIENT_OPEN_WHEN_UNPROVEN")]
    open_when_unproven: bool,
    /// What is logged.
    #[arg(long, env = "RUST_LOG", default_value = "info", value_parser = settings::log_filter)]
    log: String,
    /// How it is logged: text or json.
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

/// What selects pods; a type of its own, or clap would take a list for many values.
#[derive(Clone, Debug)]
pub(crate) struct Selectors(pub(crate) Vec<Enablement>);

pub(crate) fn enablement(text: &str) -> Result<Selectors, manifests::EnablementError> {
    manifests::read_enablement(text).map(Selectors)
}

/// What cryptography must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compliance {
    /// As an empty text says, which an empty variable is.
    Any,
    PostQuantum,
}

fn compliance(text: &str) -> Result<Compliance, String> {
    match text {
        "" => Ok(Compliance::Any),
        "pqc" => Ok(Compliance::PostQuantum),
        other => Err(format!("pqc is the one policy that this program keeps to, and {other:?} is wanted")),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum LogFormat {
    #[value(alias = "plain")]
    Text,
    Json,
}

/// What becomes of the connections that a pod has open when it joins.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Existing {
    /// They go on outside of the mesh until they end, or until a policy would refuse them.
    Keep,
    /// They are reset.
    Close,
}

impl From<Existing> for ExistingConnections {
    fn from(existing: Existing) -> Self {
        match existing {
            Existing::Keep => Self::Keep,
            Existing::Close => Self::Close,
        }
    }
}

/// Runs a node; what goes wrong is one line on standard error.
pub(crate) fn main(mut args: Args, settings: &[Setting]) -> ExitCode {
    let done = match args.print_config {
        true => say::print(&settings::print(settings)),
        false => {
            args.istiod.state_dir_by = settings::by(settings, "state-dir");
            args.settings = settings.to_vec();
            run(args)
        }
    };
    say::ended("node", done)
}

/// An error and its causes, each once: those of the crates tell their cause themselves.
pub(crate) fn in_one_line(error: &anyhow::Error) -> String {
    error
        .chain()
        .map(ToString::to_string)
        .fold(String::new(), |told, cause| match told {
            told if told.is_empty() => cause,
            told if told.contains(&cause) => told,
            told => format!("{told}: {cause}"),
        })
}

fn run(mut args: Args) -> anyhow::Result<()> {
    args.istiod.post_quantum_only = args.compliance_policy == Some(Compliance::PostQuantum);
    let format = match args.log_format {
        LogFormat::Text => log::Format::Text,
        LogFormat::Json => log::Format::Json,
    };
    let _flush = log::to_stdout(&args.log, format)?;
    let variables = variables();
    for warning in ztunnel::warnings(&variables, &known_variables()) {
        tracing::warn!("{warning}");
    }
    crate::threads::can_be_had(args.workers + BESIDE_WORKERS)?;
    let connections = descriptors::for_connections()?;
    let said = Said {
        trust_domain: args.trust_domain.clone(),
        trust_domain_aliases: args.trust_domain_aliases.clone(),
        root_namespace: args.root_namespace.clone(),
    };
    let mesh = Mesh::of(said, args.manifests.as_deref(), &args.istiod.cluster())
        .with_context(|| settings::what(&settings::by(&args.settings, "manifests")))?;
    let mut config = config(&args, &mesh, &variables)?;
    config.connections = connections;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime")?;
    runtime.block_on(serve(args, config, mesh))
}

/// All variables that are set, as far as they have names; a value that is no text is none that anything here knows.
fn variables() -> Vec<(String, String)> {
    let all = std::env::vars_os();
    all.filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
        .collect()
}

/// Those that a flag reads.
fn known_variables() -> Vec<String> {
    let command = Args::augment_args(clap::Command::new("node"));
    let names = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str().map(str::to_owned));
    names
        .chain(["INSTANCE_IP", "POD_NAME", "POD_NAMESPACE", "SERVICE_ACCOUNT"].map(str::to_owned))
        .chain(settings::OTHER_VARIABLES.map(str::to_owned))
        .collect()
}

async fn serve(args: Args, config: Config, mesh: Mesh) -> anyhow::Result<()> {
    // From the first moment on, and also while the start takes long.
    let mut signals = Signals::listen()?;
    let node = tokio::select! {
        node = start(args, config, mesh) => node?,
        signal = signals.next() => anyhow::bail!("told to stop by {signal} before it had started"),
    };
    tokio::spawn(keep_little_mapped());
    let mut running = node.spawn();
    tokio::select! {
        ended = running.ended() => return Ok(ended?),
        _ = signals.next() => running.drain(),
    }
    tokio::select! {
        ended = running.ended() => return Ok(ended?),
        signal = signals.next() => {
            // Who asks twice does not want to wait for open connections.
            tracing::warn!(signal, "told to stop once more: what is open is reset now");
            running.shutdown();
        }
    }
    tokio::select! {
        ended = running.ended() => Ok(ended?),
        _ = signals.next() => std::process::exit(1),
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        say::survive_full_files()?;
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?,
        })
    }

    /// Waits for one of them, and gives its name. Cancel safe.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Most of the binary that is in memory was looked at once, by the start, or by what happens seldom.
async fn keep_little_mapped() {
    let mut pause = START;
    loop {
        tokio::time::sleep(pause).await;
        match ambient_redirect::linux::unmap_binary() {
            Ok(bytes) => tracing::debug!(bytes, "pages of the binary are unmapped; what is in use is mapped again"),
            Err(error) => return tracing::debug!(%error, "pages of the binary stay mapped"),
        }
        pause = BETWEEN;
    }
}

/// What can fail without a trace comes first: a start that fails leaves nothing behind.
async fn start(args: Args, config: Config, mesh: Mesh) -> anyhow::Result<Node> {
    let besides = [
        ("manifests", args.manifests.is_some()),
        ("local-xds-path", args.local_xds_path.is_some()),
        ("local-xds", args.local_xds.is_some()),
        ("ca-dir", args.ca_dir.is_some()),
    ];
    args.istiod.has_control_alone(&args.settings, &besides)?;
    for (directory, name) in [
        (&args.manifests, "manifests"),
        (&args.local_xds_path, "local-xds-path"),
        (&args.ca_dir, "ca-dir"),
    ] {
        if let Some(directory) = directory {
            owned(directory, &settings::by(&args.settings, name))?;
        }
    }
    if let (Some(manifests), Some(authority)) = (&args.manifests, &args.ca_dir) {
        mesh::keys_apart(manifests, authority)?;
    }
    let places = [
        args.ca_dir.is_some(),
        // `--control` says where state comes from as well, and leaves certificates to whoever else gives them.
        args.istiod.names_an_authority(),
        args.spiffe.gives_certificates(),
    ];
    anyhow::ensure!(
        places.iter().filter(|given| **given).count() < 2,
        "certificates come from one place: leave out all but one of --ca-dir, --ca-address, and --spire-admin-socket or --spiffe-socket"
    );
    anyhow::ensure!(
        places.contains(&true) || args.istiod.gives_certificates(),
        "nothing says where certificates come from: give --control, or one of --ca-dir, --ca-address, --spire-admin-socket and --spiffe-socket"
    );
    if args.istiod.remembers_nothing() && !args.spiffe.gives_certificates() {
        tracing::warn!("--state-dir has no effect: nobody is named who could be away, and what is read of files here is read again");
    }
    args.istiod.tell_of_names(config.dns_capture);
    let keys = |error: anyhow::Error| match error.is::<KeysError>() {
        true => error.context(settings::what(&settings::by(&args.settings, "keys-dir"))),
        false => error,
    };
    let membership = args.istiod.membership(&config).map_err(keys)?;
    let (source, announce) = source(&args, &config, &mesh, membership.as_ref()).await?;
    let (trust_domain, node) = (config.trust_domain.clone(), config.node.clone());
    let revoked_in = (!config.trust_domain_of_mesh).then(|| trust_domain.clone());
    let ground = Ground::prepare(config).await.map_err(|error| match error {
        StartError::Keys(error) => keys(error.into()),
        other => other.into(),
    })?;
    let issuer: Arc<dyn Issuer> = match &args.ca_dir {
        Some(directory) => Arc::new(
            DirectoryCa::open_for(directory, trust_domain.clone(), args.secret_ttl, &node)
                .with_context(|| settings::what(&settings::by(&args.settings, "ca-dir")))?,
        ),
        None => match args
            .spiffe
            .certificates(&trust_domain, args.istiod.memory(), |error| args.istiod.not_kept(error))?
        {
            Some(issuer) => issuer,
            None => args.istiod.certificates(args.secret_ttl, membership.as_ref())?,
        },
    };
    let issuer = with_crls(&args, issuer, source.gives_trust(), revoked_in)?;
    let builder = ground.builder().source(source).issuer(issuer);
    Ok(builder.announce(announce).build().await?)
}

/// The issuer with the revocations of a file, where one is named: of one trust domain, or of all that there are roots of.
fn with_crls(args: &Args, issuer: Arc<dyn Issuer>, from_control: bool, domain: Option<TrustDomain>) -> anyhow::Result<Arc<dyn Issuer>> {
    match args.crl_path.as_ref().filter(|path| !path.as_os_str().is_empty()) {
        None => Ok(issuer),
        Some(_) if from_control => {
            tracing::warn!("--crl-path has no effect: `ambient control` says who is revoked");
            Ok(issuer)
        }
        Some(path) => {
            let with = WithCrls::open(issuer, path, domain);
            Ok(Arc::new(
                with.with_context(|| settings::what(&settings::by(&args.settings, "crl-path")))?,
            ))
        }
    }
}

/// Where state comes from, and who is told what is captured here.
async fn source(
    args: &Args,
    config: &Config,
    mesh: &Mesh,
    membership: Option<&Arc<Membership>>,
) -> anyhow::Result<(Box<dyn Source>, Arc<dyn Announce>)> {
    let (file, inline) = (&args.local_xds_path, &args.local_xds);
    let places = [
        args.manifests.is_some(),
        file.is_some(),
        inline.is_some(),
        args.istiod.gives_state(),
    ];
    anyhow::ensure!(
        places.contains(&true),
        "nothing says where state comes from: give one of --manifests, --control, --xds-address, --local-xds-path and --local-xds"
    );
    anyhow::ensure!(
        places.iter().filter(|is| **is).count() == 1,
        "state comes from one place: --manifests, --local-xds-path, --local-xds, or --control or --xds-address"
    );
    let place = file.clone().map(Place::File).or_else(|| inline.clone().map(Place::Inline));
    if let Some(place) = place {
        let source = LocalXds::open(local_xds::Config {
            trust_domain: config.trust_domain.clone(),
            trust_domain_aliases: mesh.trust_domain_aliases.clone(),
            root_namespace: mesh.root_namespace.clone(),
            cluster_local: args.cluster_local.is_some_and(ClusterLocal::is_own),
            istio_exact: config.istio_exact,
            ..local_xds::Config::of(place)
        });
        let name = if file.is_some() { "local-xds-path" } else { "local-xds" };
        let source = source.await.with_context(|| settings::what(&settings::by(&args.settings, name)))?;
        return Ok((Box::new(source), Arc::new(AnnounceNothing)));
    }
    let Some(manifests) = &args.manifests else {
        let policies = istiod::policies(
            &config.trust_domain,
            &mesh.trust_domain_aliases,
            &mesh.root_namespace,
            args.cluster_local,
            config.istio_exact,
        );
        let announce: Arc<dyn Announce> = match args.istiod.reports(membership)? {
            Some(reports) => Arc::new(AnnounceToControl::new(reports)),
            None => Arc::new(AnnounceNothing),
        };
        // Whoever else gives certificates says whom to trust, too.
        let trust = membership.is_some() && !args.spiffe.gives_certificates();
        return Ok((args.istiod.state(&config.node, policies, membership, trust)?, announce));
    };
    let by = || settings::by(&args.settings, "manifests");
    let status = Status::open(manifests, &config.node)
        .with_context(|| format!("cannot keep this node's status in {}, which {} names", manifests.display(), by()))?;
    let source = Manifests::open(source_config(args, config, mesh, manifests, status.clone()))
        .await
        .with_context(|| settings::what(&by()))?;
    Ok((Box::new(source), Arc::new(AnnounceInDirectory::new(status))))
}

fn source_config(args: &Args, config: &Config, mesh: &Mesh, manifests: &Path, own: Status) -> manifests::Config {
    let mut selection = Selection {
        // An empty text, as an empty variable gives it, names none.
        excluded_namespaces: args.exclude_namespaces.iter().filter(|ns| !ns.is_empty()).cloned().collect(),
        system_namespace: mesh.root_namespace.clone(),
        ..Selection::default()
    };
    if let Some(Selectors(enablement)) = &args.enablement_selector {
        selection.enablement = enablement.clone();
    }
    manifests::Config {
        own: Some(own),
        cluster_domain: config.cluster_domain.clone(),
        istio_exact: config.istio_exact,
        cluster_local: args.cluster_local.map(ClusterLocal::is_own),
        revision: args.revision.clone(),
        selection,
        cluster_id: args.istiod.cluster(),
        ..mesh.manifests(manifests)
    }
}

fn config(args: &Args, mesh: &Mesh, variables: &[(String, String)]) -> anyhow::Result<Config> {
    let mut config = Config::new(&args.node, &args.netns_dir);
    config.zds = args.zds.clone();
    config.trust_domain = mesh.trust_domain.clone();
    // Manifests say it, and who has an authority of its own is told of it; a control plane says it of each workload.
    let told = args.trust_domain.is_some() || args.manifests.is_some() || args.ca_dir.is_some() || args.spiffe.gives_certificates();
    config.trust_domain_of_mesh = !told;
    config.keys = match &args.keys_dir {
        none if none == Path::new("none") => Keys::Nowhere,
        default if default == Path::new(KEYS) => Keys::IfPossible(KEYS.into()),
        other => Keys::Below(other.clone()),
    };
    config.cluster_id = args.istiod.cluster();
    config.istio_exact = args.istio_exact;
    config.let_unreadable_policies_go = args.let_unreadable_policies_go;
    config.local_shortcut = args.local_shortcut;
    config.cluster_domain = args.cluster_domain.as_str().into();
    // An empty text, as an empty variable gives it, names none.
    config.preferred_service_namespace = args.preferred_service_namespace.clone().filter(|ns| !ns.is_empty());
    config.proc = args.proc.clone();
    config.cni = args.cni.clone();
    config.probes = args.probes == Switch::On;
    config.loopback_segments = args.loopback_segments == Switch::On;
    config.metrics = args.metrics;
    config.readiness = args.readiness;
    config.admin = args.admin;
    config.drain = args.drain.unwrap_or_else(|| drain_within(args.termination_grace_period));
    config.post_quantum_only = args.istiod.post_quantum_only;
    config.ipv6 = args.ipv6;
    config.connect_timeout = args.connect_timeout;
    config.connections_per_pod = args.connections_per_pod.get();
    config.share_ports = args.share_ports.unwrap_or_else(|| args.zds.is_some());
    config.keep_alive = KeepAlive {
        enabled: args.keepalive,
        time: args.keepalive_time,
        interval: args.keepalive_interval,
        retries: args.keepalive_retries,
        user_timeout: args.user_timeout,
    };
    config.localhost_app_tunnel = args.localhost_app_tunnel;
    config.pool_streams = args.pool_streams.get();
    config.pool_idle = args.pool_idle;
    config.workers = args.workers;
    config.busy_poll = args.busy_poll;
    config.sources = sources(args);
    config.assumed = Assumed {
        // An empty one is none that was named.
        network: args.network.clone().filter(|network| !network.is_empty()),
    };
    config.own_pod = istiod::own_pod(variables)?;
    config.existing_connections = args.existing_connections.into();
    config.leave = args.leave;
    config.open_when_unproven = args.open_when_unproven;
    config.dns_capture = args.dns_capture && !args.no_dns_capture;
    if !config.dns_capture {
        // Only for pods that ask for it: those are told where there is none.
        let text = given::text(&args.resolv_conf).unwrap_or_default();
        config.nameservers = ambient_node::nameservers(&text);
    } else {
        let file = args.resolv_conf.display();
        let text = given::text(&args.resolv_conf).with_context(|| {
            format!("cannot read {file}, which names the DNS servers; --resolv-conf names another, --no-dns-capture goes without")
        })?;
        config.nameservers = ambient_node::nameservers(&text);
        anyhow::ensure!(
            !config.nameservers.is_empty(),
            "{file} names no DNS server; --no-dns-capture goes without"
        );
    }
    Ok(config)
}

/// Where state and certificates come from, for who looks at the admin pages.
fn sources(args: &Args) -> Sources {
    let shown = |path: &Path| path.display().to_string();
    let others = [
        ("manifests", args.manifests.as_deref().map(shown)),
        ("localXdsPath", args.local_xds_path.as_deref().map(shown)),
        ("localXds", args.local_xds.as_ref().map(|_| "(inline)".to_owned())),
        ("caDir", args.ca_dir.as_deref().map(shown)),
    ];
    let words = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    let words = words.take_while(|word| !word.starts_with('-'));
    Sources {
        others: others
            .into_iter()
            .filter_map(|(by, what)| Some((by, what?)))
            .chain(args.spiffe.sources())
            .collect(),
        certificate_life: Some(args.secret_ttl),
        crls: args.crl_path.clone().filter(|path| !path.as_os_str().is_empty()),
        arguments: words.collect::<Vec<_>>().join(" "),
        ..args.istiod.sources()
    }
}

/// What is left of the time until the process is killed, less what it takes to end: as ztunnel reckons, and never nothing.
fn drain_within(grace_period: Option<Duration>) -> Duration {
    match grace_period {
        None => Duration::from_secs(5),
        Some(time) if time > Duration::from_secs(10) => time - Duration::from_secs(5),
        Some(time) => time.saturating_sub(Duration::from_secs(1)).max(Duration::from_secs(1)),
    }
}

/// Threads besides those that move bytes: of pages, of sockets and namespaces, of what is read from disks.
const BESIDE_WORKERS: usize = 8;

/// A start is over by then, as a rule.
const START: Duration = Duration::from_secs(10);

/// Often enough that what was needed once does not stay, and so seldom that to map the rest again costs nothing that counts.
const BETWEEN: Duration = Duration::from_secs(10);

/// Where keys are kept, unless said otherwise.
const KEYS: &str = "/run/ambient";

#[cfg(test)]
mod tests;
