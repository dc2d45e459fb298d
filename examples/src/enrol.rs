//! `ambient enrol`: enrolment alone, for a proxy that is somebody else's.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use ambient_control::{
    manifests::{self, Manifests, Status},
    objects::Selection,
};
use ambient_node::{AnnounceInDirectory, Enrol, EnrolConfig, telemetry::log};
use ambient_redirect::plan::Options;
use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    descriptors,
    node::{
        Existing, LogFormat, Selectors, Switch, enablement,
        mesh::{Mesh, Said},
    },
    owned::owned,
    say,
    settings::{self, Setting},
};

/// Flags, each of which can come from the environment.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The name of this Kubernetes node: pods with this `spec.nodeName` are enrolled.
    #[arg(long, env = "NODE_NAME", value_parser = settings::node_name)]
    node: String,
    /// A directory of Kubernetes manifests that is the control plane; every node of the mesh watches the same one.
    #[arg(long, visible_alias = "mesh", env = "AMBIENT_MANIFESTS", value_name = "DIR")]
    manifests: PathBuf,
    /// Where the container runtime keeps network namespaces.
    #[arg(long, env = "AMBIENT_NETNS_DIR", value_name = "DIR", default_value = "/run/netns")]
    netns_dir: PathBuf,
    /// The socket that the proxy connects to; it speaks ZDS as Istio's ztunnel does (its INPOD_UDS). Only processes of the
    /// own user and of root are let in.
    #[arg(long, env = "ZTUNNEL_UDS_ADDRESS", value_name = "SOCKET", default_value = ambient_redirect::zds::ISTIO_SOCKET)]
    zds: PathBuf,
    /// Have CNI plugins hand the namespaces of new pods over at this socket, which it makes for its own user and root alone; see
    /// `ambient node --help`.
    #[arg(long, env = "AMBIENT_CNI_SOCKET", value_name = "SOCKET")]
    cni: Option<PathBuf>,
    /// Find namespaces by the processes of pods as well, in this /proc: it must show the whole machine's, which takes CAP_SYS_PTRACE
    /// and a mount without hidepid.
    #[arg(long, env = "AMBIENT_PROC", value_name = "DIR")]
    proc: Option<PathBuf>,
    /// Which pods are meant to be in the mesh; see `ambient node --help`.
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
    /// Leave pods' DNS alone, unless a pod asks for it by the annotation ambient.istio.io/dns-capture; the proxy must be told
    /// the same.
    #[arg(long)]
    no_dns_capture: bool,
    /// Whether what this node's own processes send to its pods reaches them whatever policies say, as the kubelet's probes
    /// must: `on` or `off`.
    #[arg(long, env = "AMBIENT_PROBES", value_enum, default_value_t = Switch::On)]
    probes: Switch,
    /// Whether captured TCP uses the large segments of the loopback device instead of those of the pod's link (`on` or
    /// `off`): it stays on that device between application and proxy, and less is done for each byte of a transfer. A routing
    /// rule in the pods' namespaces (priority 32765, table 65520) does it. It is left out for an address family of a pod if
    /// something of that family goes around the proxy, or if its routing has more than plain routes, or rules of others in
    /// between. It is for a proxy that does not delay acknowledgements: behind any other, applications that write twice
    /// before they read, and have left Nagle's algorithm on, wait 40 ms for what is smaller than 64 KiB. What an application
    /// has the kernel hold back until a segment is full (TCP_CORK, MSG_MORE) is held back up to 64 KiB, for at most 200 ms.
    #[arg(long, env = "AMBIENT_LOOPBACK_SEGMENTS", value_enum, default_value_t = Switch::Off)]
    loopback_segments: Switch,
    /// Capture IPv4 alone.
    #[arg(long)]
    no_ipv6: bool,
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
    /// Where /metrics is served.
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:15014")]
    metrics: SocketAddr,
    /// Where /healthz/ready is served.
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:15024")]
    readiness: SocketAddr,
    /// Where the admin pages are served, which `ambient pods --admin` asks: a loopback address.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15004")]
    admin: SocketAddr,
    /// What is logged.
    #[arg(long, env = "RUST_LOG", default_value = "info", value_parser = settings::log_filter)]
    log: String,
    /// How it is logged: text or json.
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// What has named the directory of manifests.
    #[arg(skip)]
    manifests_by: String,
}

/// Enrols pods; what goes wrong is one line on standard error.
pub(crate) fn main(mut args: Args, settings: &[Setting]) -> ExitCode {
    args.manifests_by = settings::by(settings, "manifests");
    say::ended("enrol", run(args))
}

fn run(args: Args) -> anyhow::Result<()> {
    let format = match args.log_format {
        LogFormat::Text => log::Format::Text,
        LogFormat::Json => log::Format::Json,
    };
    let _flush = log::to_stdout(&args.log, format)?;
    // Of pages, namespaces, and of what is read.
    crate::threads::can_be_had(8)?;
    // Each pod takes some.
    descriptors::raise();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime")?;
    runtime.block_on(serve(args))
}

async fn serve(args: Args) -> anyhow::Result<()> {
    say::survive_full_files()?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let told = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let mut told = std::pin::pin!(told);
    let enrol = tokio::select! {
        enrol = start(args) => enrol?,
        () = &mut told => anyhow::bail!("told to stop before it had started"),
    };
    Ok(enrol.run(told).await?)
}

async fn start(args: Args) -> anyhow::Result<Enrol> {
    let by = &args.manifests_by;
    owned(&args.manifests, by)?;
    let status = Status::open(&args.manifests, &args.node)
        .with_context(|| format!("cannot keep this node's status in {}, which {by} names", args.manifests.display()))?;
    let mesh = Mesh::of(Said::default(), Some(&args.manifests), "Kubernetes").with_context(|| settings::what(by))?;
    let mut selection = Selection {
        excluded_namespaces: args.exclude_namespaces.iter().filter(|ns| !ns.is_empty()).cloned().collect(),
        system_namespace: mesh.root_namespace.clone(),
        ..Selection::default()
    };
    if let Some(Selectors(enablement)) = args.enablement_selector {
        selection.enablement = enablement;
    }
    let source = Manifests::open(manifests::Config {
        own: Some(status.clone()),
        selection,
        ..mesh.manifests(&args.manifests)
    })
    .await
    .with_context(|| settings::what(by))?;
    let redirect = ambient_redirect::Config {
        options: Options {
            ipv6: !args.no_ipv6,
            dns: !args.no_dns_capture,
            probes: args.probes == Switch::On,
            loopback_segments: args.loopback_segments == Switch::On,
            yields: args.open_when_unproven,
            ..Options::default()
        },
        existing: args.existing_connections.into(),
        drain: args.leave,
        open_when_unproven: args.open_when_unproven,
        proc: args.proc,
        ..ambient_redirect::Config::new(&args.node, &args.netns_dir)
    };
    let config = EnrolConfig {
        cni: args.cni,
        metrics: args.metrics,
        readiness: args.readiness,
        admin: args.admin,
        ..EnrolConfig::new(redirect, args.zds)
    };
    let announce = Arc::new(AnnounceInDirectory::new(status));
    Ok(Enrol::start(config, Box::new(source), announce).await?)
}
