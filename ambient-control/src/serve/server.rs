//! The listener: TLS, connections within bounds, and the source that is served.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    task::{Context, Poll},
    time::Duration,
};

use ambient_core::{TrustBundles, TrustDomain};
use ambient_tls::Configs;

use hyper::{body::Incoming, server::conn::http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustix::io::Errno;
use rustls::{ServerConfig, crypto::CryptoProvider, server::NoServerSessionStorage};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tonic::metadata::MetadataMap;

use super::{
    Captures, Nodes,
    admission::{AnyKey, Door},
    allowance::Allowance,
    board::Board,
    certificate::Certificate,
    counts::{Counts, Refusal},
    grpc::{Services, Shared},
    guest::Guest,
    limits::Limits,
    per_node::PerNode,
    seldom::Seldom,
    strangers::{Full, MOST, Stranger, Strangers},
    streams,
};
use crate::{
    Batch, Source,
    ca::{RequestError, Signer, directory::Stamp},
    wire::{
        ambient::control::v1::{capture_service_server::CaptureServiceServer, node_service_server::NodeServiceServer},
        istio::v1::auth::istio_certificate_service_server::IstioCertificateServiceServer,
    },
};

/// What is served, where, and to whom.
pub struct Config {
    /// Where to listen, such as port 15012 of every address.
    pub listen: SocketAddr,
    /// The host names and addresses by which nodes call it: its certificate is for these.
    pub names: Vec<String>,
    /// The trust domain of the mesh.
    pub trust_domain: TrustDomain,
    /// What is served. Nothing was taken from it before.
    pub source: Box<dyn Source>,
    /// Who signs: certificates of pods and of nodes, and its own. [`DirectoryCa`](crate::ca::DirectoryCa), or an embedder's own.
    pub ca: Arc<dyn Signer>,
    /// Who may call.
    pub nodes: Nodes,
    /// Where reports of what is captured go; without it they are refused.
    pub captures: Option<Arc<dyn Captures>>,
    /// How TLS is done.
    pub provider: Arc<CryptoProvider>,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("listen", &self.listen)
            .field("names", &self.names)
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address is not to be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What failed.
        source: io::Error,
    },
    /// The control plane has no certificate.
    #[error("no certificate for the control plane: {0}")]
    Certificate(#[from] RequestError),
    /// The signer does not answer.
    #[error("no certificate for the control plane: its signer did not answer within {within:?}")]
    Silent {
        /// How long it had.
        within: Duration,
    },
    /// What the signer gave is no certificate.
    #[error("no certificate for the control plane: what its signer gave is none")]
    NoCertificate,
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// A control plane that listens.
pub struct ControlPlane {
    listener: TcpListener,
    tls: TlsAcceptor,
    certificate: Arc<Certificate>,
    shared: Arc<Shared>,
    source: Box<dyn Source>,
    names: Vec<String>,
    provider: Arc<CryptoProvider>,
}

impl std::fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlPlane")
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}

impl ControlPlane {
    /// How many connections it has at a time, at most. Each is a descriptor of the process.
    pub const CONNECTIONS: usize = CONNECTIONS;

    /// Begins to listen; nobody is served before [`ControlPlane::run`].
    ///
    /// # Errors
    /// When the address is not to be had, or there is no certificate for it.
    pub async fn bind(config: Config) -> Result<Self, ServeError> {
        Self::bind_within(Limits::default(), config).await
    }

    pub(super) async fn bind_within(limits: Limits, config: Config) -> Result<Self, ServeError> {
        let listener = TcpListener::bind(config.listen).await.map_err(|source| ServeError::Listen {
            address: config.listen,
            source,
        })?;
        let certificate = Arc::new(Certificate::signed_within(limits.signing));
        certificate.renew(&*config.ca, &config.names, &config.provider).await?;
        let mut tls = ServerConfig::builder_with_provider(config.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(AnyKey(config.provider.clone())))
            .with_cert_resolver(certificate.clone());
        tls.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would go on with a certificate that was looked at when it was begun.
        tls.session_storage = Arc::new(NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
        let mut board = Board::within(limits);
        board.set_trust(&config.ca.bundles());
        let shared = Arc::new(Shared {
            board: RwLock::new(board),
            changed: watch::channel(0).0,
            door: Door {
                nodes: Arc::new(config.nodes),
                trust_domain: config.trust_domain,
                ca: config.ca,
                configs: Configs::new(config.provider.clone()),
                counts: Arc::default(),
                seldom: Seldom::default(),
            },
            admission: watch::channel(0).0,
            captures: config.captures,
            connections: PerNode::few(limits.of_a_node),
            streams: PerNode::few(streams::STREAMS),
            allowance: Allowance::of(limits.signed_at_once),
            reports: Allowance::of(limits.reported_at_once),
            limits,
        });
        Ok(Self {
            listener,
            tls: TlsAcceptor::from(Arc::new(tls)),
            certificate,
            shared,
            source: config.source,
            names: config.names,
            provider: config.provider,
        })
    }

    /// What it does and refuses, counted while it runs.
    pub fn counts(&self) -> Arc<Counts> {
        self.shared.door.counts.clone()
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` ends; then it takes nothing new, and every connection ends.
    ///
    /// # Cancel safety
    /// Dropping the future ends all connections at once.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self {
            listener,
            tls,
            certificate,
            shared,
            mut source,
            names,
            provider,
        } = self;
        let mut stop = std::pin::pin!(stop);
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let (mut connections, strangers) = (JoinSet::new(), Strangers::few(shared.limits.of_a_place));
        let mut source_lives = true;
        let trust_changed = Notify::new();
        let mut renewing = std::pin::pin!(certificate.keep(&*shared.door.ca, &names, &provider, &trust_changed));
        let mut looking = std::pin::pin!(look(&shared, &trust_changed));
        loop {
            tokio::select! {
                () = &mut stop => return,
                () = &mut renewing => {}
                () = &mut looking => {}
                batch = source.next(), if source_lives => match batch {
                    Some(batch) => take(&shared, &batch),
                    None => {
                        tracing::warn!("the source of state has ended: what is known goes on being served");
                        source_lives = false;
                    }
                },
                accepted = listener.accept() => match accepted {
                    Ok((stream, from)) => match take_in(&room, &strangers, from) {
                        Ok((place, stranger)) => {
                            let serving = serve(stream, tls.clone(), shared.clone(), stranger);
                            connections.spawn(async move {
                                if let Err(error) = serving.await {
                                    tracing::debug!(%from, %error, "a connection has ended");
                                }
                                drop(place);
                            });
                        }
                        Err((refusal, why)) => {
                            shared.door.counts.refuse(refusal);
                            if let Some(left_out) = shared.door.seldom.say(refusal.word(), Instant::now()) {
                                tracing::warn!(%from, why, left_out, "no room for another connection");
                            }
                        }
                    },
                    Err(error) => {
                        cannot_accept(&shared.door.seldom, &error);
                        sleep(BREATH).await;
                    }
                },
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
            }
        }
    }
}

/// Tells of a connection that cannot be accepted, and what to do. It is tried again ten times a second, for as long as that lasts.
pub(super) fn cannot_accept(seldom: &Seldom, error: &io::Error) {
    let remedy = match Errno::from_io_error(error) {
        Some(Errno::MFILE) => Some("let the process have more files open (LimitNOFILE of systemd, ulimit -n)"),
        Some(Errno::NFILE) => Some("let the system have more files open (fs.file-max)"),
        _ => None,
    };
    if let Some(left_out) = seldom.say("accepting", Instant::now()) {
        tracing::warn!(%error, remedy, left_out, "cannot accept a connection");
    }
}

/// A connection's places: one of all, and one of those who are not known yet.
fn take_in(room: &Arc<Semaphore>, strangers: &Strangers, from: SocketAddr) -> Result<(OwnedSemaphorePermit, Stranger), (Refusal, String)> {
    let no_room = |_| (Refusal::Room, format!("{CONNECTIONS} are open"));
    let place = room.clone().try_acquire_owned().map_err(no_room)?;
    let stranger = strangers.admit(from.ip()).map_err(|full| {
        let why = match full {
            Full::Place(most) => format!("{most} have come from there and have not shown that they are nodes"),
            Full::Everywhere => format!("{MOST} are open and have not shown that they are nodes"),
        };
        (Refusal::Strangers, why)
    })?;
    Ok((place, stranger))
}

fn take(shared: &Shared, batch: &Batch) {
    shared.door.counts.are_wrong(batch.faults.len());
    tell(shared, |board| board.apply(&batch.changes, batch.synced));
}

/// Changes what is served, and has everybody told where it became different.
fn tell(shared: &Shared, change: impl FnOnce(&mut Board) -> bool) {
    let mut board = shared.board.write().unwrap_or_else(PoisonError::into_inner);
    if change(&mut board) {
        shared.changed.send_replace(board.generation());
    }
}

/// Looks whether roots, revocations or the nodes that are known have changed, for ever.
async fn look(shared: &Shared, trust_changed: &Notify) {
    type Seen = (Arc<TrustBundles>, [Option<Stamp>; 2]);
    let mut before: Option<Seen> = None;
    loop {
        let (ca, nodes) = (shared.door.ca.clone(), shared.door.nodes.clone());
        // A disk may take its time.
        let looked = spawn_blocking(move || (ca.bundles(), nodes.stamps(), ca.faults().len())).await;
        let Ok((trust, stamps, faults)) = looked else {
            sleep(BETWEEN_LOOKS).await;
            continue;
        };
        shared.door.counts.authority_is_wrong(faults);
        let same_trust = before.as_ref().is_some_and(|(of, _)| Arc::ptr_eq(of, &trust) || **of == *trust);
        if !same_trust {
            let domain = &shared.door.trust_domain;
            let (roots, lists) = (trust.roots(domain).len(), trust.crls(domain).len());
            tracing::info!(roots, lists, "roots and revocations, as nodes are told");
            tell(shared, |board| board.set_trust(&trust));
            trust_changed.notify_one();
        }
        if !same_trust || before.as_ref().is_none_or(|(_, of)| *of != stamps) {
            shared.admission.send_modify(|changes| *changes += 1);
        }
        before = Some((trust, stamps));
        sleep(BETWEEN_LOOKS).await;
    }
}

async fn serve(
    stream: TcpStream,
    tls: TlsAcceptor,
    shared: Arc<Shared>,
    stranger: Stranger,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let stream = timeout(HANDSHAKE, tls.accept(stream)).await??;
    let shown = shared.door.look_at(stream.get_ref().1.peer_certificates());
    let introducing = shared.limits.introducing;
    let cut = Arc::<Notify>::default();
    let guest = Arc::new(Guest::new(stranger, shared.connections.clone()));
    let services = Services {
        shared: shared.clone(),
        shown: Arc::new(shown),
        cut: cut.clone(),
        guest: guest.clone(),
    };
    let all = All {
        state: services.clone(),
        signing: IstioCertificateServiceServer::new(services.clone()).max_decoding_message_size(LONGEST_MESSAGE),
        captures: CaptureServiceServer::new(services.clone()).max_decoding_message_size(LONGEST_MESSAGE),
        nodes: NodeServiceServer::new(services).max_decoding_message_size(LONGEST_MESSAGE),
    };
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(UNREAD)
        .initial_connection_window_size(UNREAD_IN_ALL)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(all));
    tokio::select! {
        served = served => Ok(served?),
        () = cut.notified() => Err("its node is known no more".into()),
        // Whoever is nobody keeps no place of those who are nodes.
        (node, why) = guest.known_no_more(&shared) => {
            tracing::info!(node, why = why.message(), "a node's connection was ended");
            Err("its node is known no more".into())
        }
        () = nobody(&guest, introducing) => Err("it has not shown in time that it is a node".into()),
    }
}

/// Ends after a while where nobody was admitted until then.
async fn nobody(guest: &Guest, introducing: Duration) {
    sleep(introducing).await;
    if !guest.is_stranger() {
        std::future::pending().await
    }
}

/// The services by their paths; tonic's own router would bring a web framework along.
#[derive(Clone)]
struct All {
    state: Services,
    signing: IstioCertificateServiceServer<Services>,
    captures: CaptureServiceServer<Services>,
    nodes: NodeServiceServer<Services>,
}

impl tower::Service<http::Request<Incoming>> for All {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Incoming>) -> Self::Future {
        let path = request.uri().path();
        if path == streams::PATH {
            return Box::pin(std::future::ready(Ok(self.state.open_stream(request))));
        }
        // Nothing is read of who is nobody: the services would have the whole message first.
        if self.state.guest.is_stranger()
            && let Err(status) = self.state.admit_to_join(&MetadataMap::from_headers(request.headers().clone()))
        {
            return Box::pin(std::future::ready(Ok(status.into_http())));
        }
        if path.starts_with("/ambient.control.v1.CaptureService/") {
            self.captures.call(request)
        } else if path.starts_with("/ambient.control.v1.NodeService/") {
            self.nodes.call(request)
        } else {
            // This one says of all others that they are not implemented.
            self.signing.call(request)
        }
    }
}

/// Connections at a time.
pub(super) const CONNECTIONS: usize = 4096;
/// Calls at a time of one connection: a stream, and certificates.
const STREAMS: u32 = 256;
/// What may wait to be read of one call, and of all calls of a connection: a node that comes back says what it has, and that is
/// not read before there is something to compare it with.
const UNREAD: u32 = 64 * 1024;
const UNREAD_IN_ALL: u32 = 2 * UNREAD;
/// A request to sign or a report, in bytes.
const LONGEST_MESSAGE: usize = 64 * 1024;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// After what cannot be helped at once.
const BREATH: Duration = Duration::from_millis(100);
/// A change of roots, of revocations or of who is a node is in force after that, at most.
const BETWEEN_LOOKS: Duration = Duration::from_millis(250);
