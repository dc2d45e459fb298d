//! `ambient control`: a directory of manifests and a certificate authority, served to nodes elsewhere.

use std::{
    io::IsTerminal as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ambient_control::{
    ca::{Authority, CONTROL, DirectoryCa, Whom},
    manifests::{self, Manifests, Statuses},
    serve::{Config, ControlPlane, Nodes, ServeError, Use, serve_metrics},
};
use ambient_core::TrustDomain;
use ambient_node::telemetry::log;
use anyhow::Context as _;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use crate::{
    descriptors,
    node::mesh::{Mesh, Said, keys_apart},
    owned::owned,
    say,
    settings::{self, Setting},
};

/// Serve, or see to the tokens of nodes.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Make a token for a node, and print it: the only time that it is seen.
    ///
    /// `ambient node --control` exchanges it for a certificate that names the node, again after each reboot; ztunnel shows it
    /// with each call.
    Token {
        /// The node that it is for, whatever else that says.
        node: String,
        #[command(flatten)]
        ca: CaDir,
        /// How long it is good for, in days.
        #[arg(long, value_name = "DAYS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=LONGEST))]
        days: u64,
        /// Have the first that exchanges it be the only one. A node whose machine was started anew needs another token then,
        /// and ztunnel cannot use it.
        #[arg(long)]
        once: bool,
    },
    /// List the tokens and the certificates of nodes that are good now.
    Tokens {
        #[command(flatten)]
        ca: CaDir,
        /// Answer in JSON; moments are seconds since 1970.
        #[arg(long)]
        json: bool,
    },
    /// End a token at once; or all that a node is known by, and its streams.
    Revoke {
        /// The token's id, as `ambient control tokens` lists it.
        #[arg(required_unless_present = "node", conflicts_with = "node")]
        id: Option<String>,
        /// A node: its tokens and certificates end. A new token lets it come back.
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
        #[command(flatten)]
        ca: CaDir,
    },
}

#[derive(Debug, clap::Args)]
struct CaDir {
    /// The directory of the certificate authority; tokens stand beside its root.
    #[arg(long, env = "AMBIENT_CA_DIR", value_name = "DIR")]
    ca: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// The directory of Kubernetes manifests that is served.
    // Required unless there is a verb: a setting that the environment has for it makes nothing else wanted then.
    #[arg(long, env = "AMBIENT_MANIFESTS", value_name = "DIR", required = true)]
    mesh: Option<PathBuf>,
    /// The directory of the certificate authority; made on first use.
    #[arg(long, env = "AMBIENT_CA_DIR", value_name = "DIR", required = true)]
    ca: Option<PathBuf>,
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:15012")]
    listen: SocketAddr,
    /// Where /metrics is served; nowhere by default.
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
    /// A host name or address by which nodes call: its certificate is for these. May be given several times.
    #[arg(long = "name", value_name = "HOST", default_values = ["localhost", "127.0.0.1", "::1", "istiod.istio-system.svc"])]
    names: Vec<String>,
    /// The trust domain of the mesh. By default what the ConfigMap istio of the manifests says, else cluster.local.
    #[arg(long, env = "TRUST_DOMAIN", value_name = "DOMAIN")]
    trust_domain: Option<TrustDomain>,
    /// The namespace whose policies apply to the whole mesh. By default what the ConfigMap istio of the manifests says, else
    /// istio-system.
    #[arg(long, env = "AMBIENT_ROOT_NAMESPACE", value_name = "NAMESPACE", value_parser = settings::namespace)]
    root_namespace: Option<Arc<str>>,
    /// The revision of this control plane: of the policies that are labelled with one (istio.io/rev) only those of this one
    /// count. Without it all count.
    #[arg(long, env = "REVISION", value_name = "NAME", value_parser = settings::label)]
    revision: Option<Arc<str>>,
    /// A node whose proxy is Istio's ztunnel. It reports nothing itself, so a pod there counts as captured if it has the
    /// annotation ambient.istio.io/redirection: enabled. On any other node the annotation means nothing. May be given several
    /// times.
    #[arg(long = "ztunnel-node", value_name = "NODE", value_parser = settings::node_name)]
    ztunnel_nodes: Vec<String>,
    /// The DNS domain of the cluster.
    #[arg(long, env = "CLUSTER_DOMAIN", default_value = "cluster.local", value_parser = settings::domain)]
    cluster_domain: String,
    /// The longest that a certificate is valid.
    #[arg(long, env = "SECRET_TTL_SECONDS", value_name = "TIME", default_value = "24h", value_parser = settings::patience)]
    secret_ttl: Duration,
    /// What is logged.
    #[arg(long, env = "RUST_LOG", default_value = "info", value_parser = settings::log_filter)]
    log: String,
    /// What has named the directories of manifests and of the authority.
    #[arg(skip)]
    named_by: [String; 2],
}

/// Serves or sees to tokens; what goes wrong is one line on standard error.
pub(crate) fn main(args: Args, settings: &[Setting]) -> ExitCode {
    let Args { verb, mut serve } = args;
    serve.named_by = ["mesh", "ca"].map(|name| settings::by(settings, name));
    let done = match (verb, serve.mesh.take(), serve.ca.take()) {
        (Some(verb), ..) => owned(verb.ca(), &serve.named_by[1])
            .and_then(|()| tokens(&verb))
            .and_then(|text| match &verb {
                Verb::Token { ca, .. } => say::hand_over(&text).map_err(|error| unseen(&ca.ca, &text, error)),
                _ => say::print(&text),
            }),
        (None, Some(mesh), Some(ca)) => run(serve, &mesh, &ca),
        (None, ..) => Err(anyhow::anyhow!("--mesh and --ca name what is served")),
    };
    say::ended("control", done)
}

impl Verb {
    fn ca(&self) -> &Path {
        match self {
            Self::Token { ca, .. } | Self::Tokens { ca, .. } | Self::Revoke { ca, .. } => &ca.ca,
        }
    }
}

/// Sees to tokens; what is said of it.
fn tokens(verb: &Verb) -> anyhow::Result<String> {
    // Where there is no authority a token would be good for nothing.
    let of = |ca: &CaDir| Authority::open(&ca.ca).map(|_| nodes(&ca.ca));
    Ok(match verb {
        Verb::Token { node, ca, days, once } => {
            let life = Duration::from_secs(days * 24 * 60 * 60);
            let how = if *once { Use::Once } else { Use::Always };
            let token = of(ca)?.create_token(node, life, how, now())?;
            // Into a file without a line's end: ztunnel takes every byte of it for the token.
            let end = if std::io::stdout().is_terminal() { "\n" } else { "" };
            format!("{token}{end}")
        }
        Verb::Tokens { ca, json: true } => {
            let nodes = of(ca)?;
            let tokens = nodes.tokens(now())?;
            let tokens = tokens
                .iter()
                .map(|token| serde_json::json!({ "id": token.id, "node": token.node, "expires": token.expires, "once": token.once }));
            let certificates = nodes.certificates(now())?;
            let certificates = certificates
                .iter()
                .map(|one| serde_json::json!({ "serial": one.serial, "node": one.node, "expires": one.expires }));
            let all = serde_json::json!({
                "tokens": tokens.collect::<Vec<_>>(),
                "certificates": certificates.collect::<Vec<_>>(),
            });
            format!("{all:#}\n")
        }
        Verb::Tokens { ca, .. } => {
            let nodes = of(ca)?;
            let mut text = format!("{:<14} {:<32} {:<20} USE\n", "TOKEN", "NODE", "GOOD FOR");
            for token in nodes.tokens(now())? {
                let how = if token.once { "once" } else { "always" };
                text += &format!("{:<14} {:<32} {:<20} {how}\n", token.id, token.node, good_for(token.expires));
            }
            text += &format!("\n{:<34} {:<32} GOOD FOR\n", "CERTIFICATE", "NODE");
            for one in nodes.certificates(now())? {
                text += &format!("{:<34} {:<32} {}\n", one.serial, one.node, good_for(one.expires));
            }
            text
        }
        Verb::Revoke { ca, id: Some(id), .. } => {
            of(ca)?.revoke_token(id, now())?;
            format!("{id}: revoked; a certificate that a node was given for it stays: --node ends that\n")
        }
        Verb::Revoke { ca, node, .. } => {
            let node = node.as_deref().unwrap_or_default();
            let revoked = of(ca)?.revoke(node, now())?;
            let (tokens, certificates) = (revoked.tokens, revoked.certificates);
            anyhow::ensure!(
                tokens + certificates > 0,
                "no node {node} is known: `ambient control tokens` lists those that are"
            );
            format!("{node}: {tokens} tokens and {certificates} certificates revoked; a new token lets it come back\n")
        }
    })
}

/// What could not be printed: a token that nobody has seen is to be good for nobody.
fn unseen(ca: &Path, text: &str, error: anyhow::Error) -> anyhow::Error {
    let Some(id) = text.strip_prefix("ambient-").and_then(|rest| rest.split('.').next()) else {
        return error;
    };
    match nodes(ca).revoke_token(id, now()) {
        Ok(()) => anyhow::anyhow!("{error:#}: nobody has seen the token, and it is taken back"),
        Err(why) => anyhow::anyhow!("{error:#}: nobody has seen the token, and it stays ({why}): `ambient control revoke {id}` ends it"),
    }
}

/// The nodes of an authority's directory.
pub(crate) fn nodes(ca: &Path) -> Nodes {
    Nodes::new(ca, Arc::new(ambient_tls::provider()))
}

fn good_for(expires: u64) -> String {
    let present = now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let hours = expires.saturating_sub(present) / 3600;
    format!("{} days {} hours", hours / 24, hours % 24)
}

fn run(args: Serve, mesh: &Path, ca: &Path) -> anyhow::Result<()> {
    let _flush = log::to_stdout(&args.log, log::Format::Text)?;
    // One for each processor, and of what is read and written.
    let workers = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    crate::threads::can_be_had(workers + 4)?;
    let descriptors = descriptors::raise();
    let connections = connections_within(descriptors);
    if connections < ControlPlane::CONNECTIONS {
        tracing::warn!(
            descriptors,
            connections,
            "this process may have few files open, and more connections than that allows are not accepted: raise its limit (LimitNOFILE of systemd, ulimit -n)"
        );
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("no runtime")?;
    runtime.block_on(serve(args, mesh, ca))
}

async fn serve(args: Serve, directory: &Path, ca_directory: &Path) -> anyhow::Result<()> {
    say::survive_full_files()?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let said = Said {
        trust_domain: args.trust_domain,
        root_namespace: args.root_namespace,
        ..Said::default()
    };
    let [mesh_by, ca_by] = &args.named_by;
    owned(directory, mesh_by)?;
    owned(ca_directory, ca_by)?;
    let mesh = Mesh::of(said, Some(directory), "Kubernetes").with_context(|| settings::what(mesh_by))?;
    keys_apart(directory, ca_directory)?;
    let statuses = Statuses::new(directory, now);
    let source = Manifests::open(manifests::Config {
        kept: Some(statuses.clone()),
        revision: args.revision,
        ztunnel_nodes: args.ztunnel_nodes.into_iter().map(Arc::from).collect(),
        cluster_domain: args.cluster_domain.into(),
        ..mesh.manifests(directory)
    })
    .await
    .with_context(|| settings::what(mesh_by))?;
    let provider = Arc::new(ambient_tls::provider());
    let trust_domain = mesh.trust_domain;
    // Before an authority is made: a start that is refused leaves none behind.
    Whom::Hosts(&args.names)
        .check()
        .context("--name says what the certificate is for")?;
    let metrics = match args.metrics {
        Some(address) => {
            let listener = TcpListener::bind(address).await;
            Some(listener.with_context(|| format!("cannot listen on {address} for /metrics: --metrics names another address"))?)
        }
        None => None,
    };
    let elsewhere = |error: ServeError| match error {
        ServeError::Listen { .. } => anyhow::anyhow!("{error}: --listen names another address"),
        other => other.into(),
    };
    let can_listen = TcpListener::bind(args.listen).await.map(drop);
    can_listen.map_err(|source| {
        elsewhere(ServeError::Listen {
            address: args.listen,
            source,
        })
    })?;
    let ca = DirectoryCa::open_for(ca_directory, trust_domain.clone(), args.secret_ttl, CONTROL).with_context(|| settings::what(ca_by))?;
    let plane = ControlPlane::bind(Config {
        listen: args.listen,
        names: args.names,
        trust_domain,
        source: Box::new(source),
        ca: Arc::new(ca),
        nodes: Nodes::new(ca_directory, provider.clone()),
        captures: Some(statuses),
        provider,
    })
    .await
    .map_err(elsewhere)?;
    if let Some(listener) = metrics {
        tracing::info!(address = %listener.local_addr()?, "/metrics");
        tokio::spawn(serve_metrics(listener, plane.counts()));
    }
    tracing::info!(address = %plane.local_addr()?, "serving; `ambient control token NODE` makes a node's token");
    plane
        .run(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await;
    Ok(())
}

/// How many connections there may be with so many descriptors: each is one, and some are left for everything else.
fn connections_within(descriptors: usize) -> usize {
    (descriptors - BESIDE_CONNECTIONS.min(descriptors / 2)).min(ControlPlane::CONNECTIONS)
}

#[expect(clippy::disallowed_methods, reason = "tokens and reports bear the time of day")]
fn now() -> SystemTime {
    SystemTime::now()
}

/// Ten years, in days.
const LONGEST: u64 = 10 * 365;

/// Descriptors besides those of connections: of files that are read and written, of `/metrics`, and of the runtime.
const BESIDE_CONNECTIONS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_all_connections_or_it_is_known_for_how_many() {
        let all = ControlPlane::CONNECTIONS;
        assert_eq!(
            [usize::MAX, 4096 + 256, 4096, 1024, 64].map(connections_within),
            [all, all, all - 256, 768, 32]
        );
    }
}
