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

use hyper::{body::Incoming, server::conn::http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{
    Captures, Tokens,
    grpc::{Services, Shared},
};
use crate::{
    Source,
    ca::{DirectoryCa, RequestError},
    wire::{
        ambient::control::v1::capture_service_server::CaptureServiceServer,
        envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer,
        istio::v1::auth::istio_certificate_service_server::IstioCertificateServiceServer,
    },
};

/// What is served, where, and to whom.
pub struct Config {
    /// Where to listen, such as port 15012 of every address.
    pub listen: SocketAddr,
    /// The host names and addresses by which nodes call it: its certificate is for these.
    pub names: Vec<String>,
    /// What is served.
    pub source: Box<dyn Source>,
    /// Who signs: certificates of pods, and its own.
    pub ca: DirectoryCa,
    /// Who may call.
    pub tokens: Tokens,
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
            .field("ca", &self.ca)
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
    /// Begins to listen; nobody is served before [`ControlPlane::run`].
    ///
    /// # Errors
    /// When the address is not to be had, or there is no certificate for it.
    pub async fn bind(config: Config) -> Result<Self, ServeError> {
        let listener = TcpListener::bind(config.listen).await.map_err(|source| ServeError::Listen {
            address: config.listen,
            source,
        })?;
        let certificate = Arc::new(Certificate::default());
        certificate.renew(&config.ca, &config.names, &config.provider)?;
        let mut tls = ServerConfig::builder_with_provider(config.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(certificate.clone());
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let shared = Arc::new(Shared {
            board: RwLock::default(),
            changed: watch::channel(0).0,
            ca: config.ca,
            tokens: config.tokens,
            captures: config.captures,
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
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        let mut source_lives = true;
        let mut renewal = Box::pin(sleep(self.certificate.until_renewal()));
        loop {
            tokio::select! {
                () = &mut stop => return,
                batch = self.source.next(), if source_lives => match batch {
                    Some(batch) => self.take(&batch),
                    None => {
                        tracing::warn!("the source of state has ended: what is known goes on being served");
                        source_lives = false;
                    }
                },
                accepted = self.listener.accept() => match (accepted, room.clone().try_acquire_owned()) {
                    (Ok((stream, from)), Ok(place)) => {
                        let serving = serve(stream, self.tls.clone(), Services(self.shared.clone()));
                        connections.spawn(async move {
                            if let Err(error) = serving.await {
                                tracing::debug!(%from, %error, "a connection has ended");
                            }
                            drop(place);
                        });
                    }
                    (Ok((_, from)), Err(_)) => tracing::warn!(%from, "no room for another connection ({CONNECTIONS} are open)"),
                    (Err(error), _) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        sleep(BREATH).await;
                    }
                },
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                () = &mut renewal => {
                    if let Err(error) = self.certificate.renew(&self.shared.ca, &self.names, &self.provider) {
                        tracing::error!(%error, "the control plane's own certificate was not renewed");
                    }
                    renewal = Box::pin(sleep(self.certificate.until_renewal()));
                }
            }
        }
    }

    fn take(&self, batch: &crate::Batch) {
        for fault in &*batch.faults {
            tracing::warn!(%fault, "the source of state");
        }
        let mut board = self.shared.board.write().unwrap_or_else(PoisonError::into_inner);
        if board.apply(&batch.changes, batch.synced) {
            self.shared.changed.send_replace(board.generation());
        }
    }
}

async fn serve(stream: TcpStream, tls: TlsAcceptor, services: Services) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let stream = timeout(HANDSHAKE, tls.accept(stream)).await??;
    let all = All {
        state: AggregatedDiscoveryServiceServer::new(services.clone()).max_decoding_message_size(LONGEST_REQUEST),
        signing: IstioCertificateServiceServer::new(services.clone()),
        captures: CaptureServiceServer::new(services),
    };
    http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_concurrent_streams(STREAMS)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(all))
        .await?;
    Ok(())
}

/// The services by their paths; tonic's own router would bring a web framework along.
#[derive(Clone)]
struct All {
    state: AggregatedDiscoveryServiceServer<Services>,
    signing: IstioCertificateServiceServer<Services>,
    captures: CaptureServiceServer<Services>,
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
        if path.starts_with("/istio.v1.auth.IstioCertificateService/") {
            self.signing.call(request)
        } else if path.starts_with("/ambient.control.v1.CaptureService/") {
            self.captures.call(request)
        } else {
            // This one says of all others that they are not implemented.
            self.state.call(request)
        }
    }
}

/// The control plane's own certificate, as it is now.
#[derive(Debug, Default)]
struct Certificate(RwLock<Option<(Arc<CertifiedKey>, Duration)>>);

impl Certificate {
    fn renew(&self, ca: &DirectoryCa, names: &[String], provider: &CryptoProvider) -> Result<(), ServeError> {
        let new = ca.server(names)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(new.key.der()));
        let key = provider.key_provider.load_private_key(key.clone_key())?;
        let life = new.not_after.duration_since(crate::istiod::now()).unwrap_or_default();
        let certified = CertifiedKey::new(new.chain.into_iter().map(CertificateDer::from).collect(), key);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some((Arc::new(certified), life));
        Ok(())
    }

    fn until_renewal(&self) -> Duration {
        let life = self
            .0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map(|(_, life)| *life);
        (life.unwrap_or_default() / 2).max(BREATH)
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let present = self.0.read().unwrap_or_else(PoisonError::into_inner);
        present.as_ref().map(|(certified, _)| certified.clone())
    }
}

/// Connections at a time.
const CONNECTIONS: usize = 4096;
/// Calls at a time of one connection: a stream, and certificates.
const STREAMS: u32 = 256;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// After what cannot be helped at once.
const BREATH: Duration = Duration::from_millis(100);
/// The longest request: a client that knows a mesh of 100,000 says so by name.
const LONGEST_REQUEST: usize = 64 * 1024 * 1024;
