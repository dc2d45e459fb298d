//! An istiod that does as it is told, over real TLS on loopback.

use std::{
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use ambient_core::Identity;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Notify, mpsc, watch},
    time::Instant,
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::{Endpoint, Roots, Token};
use crate::wire::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
    },
    istio::v1::auth::{
        IstioCertificateRequest, IstioCertificateResponse,
        istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer},
    },
};

pub(super) const TOKEN: &str = "let-me-in";

/// A stream that a client has opened.
pub(super) struct Opened {
    pub(super) requests: Streaming<DeltaDiscoveryRequest>,
    pub(super) responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    pub(super) headers: tonic::metadata::MetadataMap,
}

impl Opened {
    pub(super) async fn request(&mut self) -> DeltaDiscoveryRequest {
        let request = tokio::time::timeout(Duration::from_secs(20), self.requests.message()).await;
        request.expect("a request in time").expect("no error").expect("a request")
    }
}

pub(super) type Sign = Arc<dyn Fn(&Authority, &IstioCertificateRequest) -> Result<Vec<String>, Status> + Send + Sync>;

pub(super) struct Fake {
    pub(super) address: SocketAddr,
    pub(super) streams: mpsc::Receiver<Opened>,
    pub(super) signed: Arc<Mutex<Vec<IstioCertificateRequest>>>,
    pub(super) sign: Arc<Mutex<Sign>>,
    pub(super) scratch: tempfile::TempDir,
    /// Has every connection take no more calls: GOAWAY.
    pub(super) leaves: Arc<Notify>,
    /// What the next stream is answered with, to the byte; then it ends.
    pub(super) raw: Arc<Mutex<Option<Vec<u8>>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A root that signs.
pub(super) struct Authority {
    root: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(super) fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self {
            root: CertifiedIssuer::self_signed(params, key).unwrap(),
        }
    }

    pub(super) fn pem(&self) -> String {
        self.root.pem()
    }

    /// What is asked for, as istiod does: for the name in the metadata, whatever the request names.
    pub(super) fn sign(&self, request: &IstioCertificateRequest, identity: &str, change: impl Fn(&mut CertificateParams)) -> String {
        let mut csr = CertificateSigningRequestParams::from_pem(&request.csr).unwrap();
        csr.params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
        csr.params.not_before = (super::identity::now() - Duration::from_secs(60)).into();
        csr.params.not_after = (super::identity::now() + Duration::from_secs(u64::try_from(request.validity_duration).unwrap())).into();
        change(&mut csr.params);
        csr.signed_by(&self.root).unwrap().pem()
    }

    fn server(&self, name: &str, change: impl Fn(&mut CertificateParams)) -> ServerConfig {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut params);
        let leaf = params.signed_by(&key, &self.root).unwrap();
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }
}

pub(super) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(ambient_tls::provider())
}

impl Fake {
    /// An istiod whose certificate is for a name.
    pub(super) async fn start(name: &str) -> Self {
        Self::changed(name, |_| {}).await
    }

    /// The same, with something else about its certificate.
    pub(super) async fn changed(name: &str, change: impl Fn(&mut CertificateParams)) -> Self {
        let authority = Arc::new(Authority::new());
        let tls = TlsAcceptor::from(Arc::new(authority.server(name, change)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (opened, streams) = mpsc::channel(16);
        let signed = Arc::<Mutex<Vec<_>>>::default();
        let sign: Arc<Mutex<Sign>> = Arc::new(Mutex::new(Arc::new(|authority, request| {
            let impersonated = request.metadata.as_ref().and_then(|m| m.fields.get("ImpersonatedIdentity"));
            let Some(prost_types::value::Kind::StringValue(identity)) = impersonated.and_then(|v| v.kind.clone()) else {
                return Err(Status::invalid_argument("for whom?"));
            };
            Ok(vec![authority.sign(request, &identity, |_| {}), authority.pem()])
        })));
        let service = Service {
            opened,
            authority: authority.clone(),
            signed: signed.clone(),
            sign: sign.clone(),
        };
        let raw = Arc::<Mutex<Option<Vec<u8>>>>::default();
        let answering = raw.clone();
        let leaves = Arc::<Notify>::default();
        let leaving = leaves.clone();
        let serving = tokio::spawn(async move {
            // Connections end with it.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((tcp, _)) = listener.accept().await else { return };
                let (tls, service, leaving, raw) = (tls.clone(), service.clone(), leaving.clone(), answering.clone());
                connections.spawn(async move {
                    let Ok(stream) = tls.accept(tcp).await else { return };
                    let both = Both {
                        state: AggregatedDiscoveryServiceServer::new(service.clone()),
                        signing: IstioCertificateServiceServer::new(service),
                        raw,
                    };
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let mut connection = std::pin::pin!(server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(both)));
                    tokio::select! {
                        _ = &mut connection => {}
                        () = leaving.notified() => {
                            connection.as_mut().graceful_shutdown();
                            let _ = connection.await;
                        }
                    }
                });
            }
        });
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("root.pem"), authority.pem()).unwrap();
        std::fs::write(scratch.path().join("token"), format!("{TOKEN}\n")).unwrap();
        Self {
            address,
            streams,
            signed,
            sign,
            scratch,
            leaves,
            raw,
            serving,
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        Endpoint {
            roots: Roots::File(self.path("root.pem")),
            token: Some(Token::File(self.path("token"))),
            headers: vec![("X-Extra".into(), "1".into())],
            ..Endpoint::new(&format!("https://localhost:{}", self.address.port()), provider())
        }
    }

    pub(super) async fn opened(&mut self) -> Opened {
        let opened = tokio::time::timeout(Duration::from_secs(20), self.streams.recv()).await;
        opened.expect("a stream in time").expect("a stream")
    }

    pub(super) fn signs(&self, how: impl Fn(&Authority, &IstioCertificateRequest) -> Result<Vec<String>, Status> + Send + Sync + 'static) {
        *self.sign.lock().unwrap() = Arc::new(how);
    }
}

pub(super) fn identity() -> Identity {
    "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()
}

#[derive(Clone)]
struct Service {
    opened: mpsc::Sender<Opened>,
    authority: Arc<Authority>,
    signed: Arc<Mutex<Vec<IstioCertificateRequest>>>,
    sign: Arc<Mutex<Sign>>,
}

fn admit(headers: &tonic::metadata::MetadataMap) -> Result<(), Status> {
    let shown = headers.get("authorization").and_then(|v| v.to_str().ok());
    match shown == Some(&format!("Bearer {TOKEN}")) {
        true => Ok(()),
        false => Err(Status::unauthenticated("who are you?")),
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type DeltaAggregatedResourcesStream = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        admit(request.metadata())?;
        let headers = request.metadata().clone();
        let (responses, outgoing) = mpsc::channel(16);
        let requests = request.into_inner();
        let opened = Opened {
            requests,
            responses,
            headers,
        };
        self.opened.send(opened).await.map_err(|_| Status::unavailable("nobody is there"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(&self, request: Request<IstioCertificateRequest>) -> Result<Response<IstioCertificateResponse>, Status> {
        admit(request.metadata())?;
        let request = request.into_inner();
        let sign = self.sign.lock().unwrap().clone();
        let cert_chain = sign(&self.authority, &request)?;
        self.signed.lock().unwrap().push(request);
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

#[derive(Clone)]
struct Both {
    state: AggregatedDiscoveryServiceServer<Service>,
    signing: IstioCertificateServiceServer<Service>,
    raw: Arc<Mutex<Option<Vec<u8>>>>,
}

impl tower::Service<http::Request<hyper::body::Incoming>> for Both {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<hyper::body::Incoming>) -> Self::Future {
        if request.uri().path().starts_with("/istio.v1.auth.") {
            return self.signing.call(request);
        }
        match self.raw.lock().unwrap().take() {
            Some(raw) => {
                let body = http_body_util::Full::new(bytes::Bytes::from(raw));
                Box::pin(std::future::ready(Ok(http::Response::new(tonic::body::Body::new(body)))))
            }
            None => self.state.call(request),
        }
    }
}

/// The clock of the runtime, a hundred times as fast as others and no faster: what goes over real sockets meanwhile has time to
/// arrive. A clock that is only stopped leaps to the next timer whenever nothing is ready, also where the kernel has yet to
/// deliver what was sent.
pub(crate) struct FastClock {
    /// While something blocks the clock leaps nowhere.
    _held: std::sync::mpsc::Sender<()>,
    ticking: tokio::task::JoinHandle<()>,
}

impl FastClock {
    /// How much the clock goes on at a time: no timer is later than that.
    pub(crate) const STEP: Duration = Duration::from_millis(250);

    /// From now on, until it is dropped.
    pub(crate) fn begin() -> Self {
        tokio::time::pause();
        let (held, holds) = std::sync::mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || {
            let _ = holds.recv();
        });
        let ticking = tokio::spawn(async {
            loop {
                let real = tokio::task::spawn_blocking(|| std::thread::sleep(Self::STEP / 100)).await;
                real.expect("it only sleeps");
                tokio::time::advance(Self::STEP).await;
            }
        });
        Self { _held: held, ticking }
    }
}

impl Drop for FastClock {
    fn drop(&mut self) {
        self.ticking.abort();
        tokio::time::resume();
    }
}

/// A way to a server that can be slow, and fall silent: then nothing comes through any more, and nothing is closed either, as where a
/// machine has lost its power or a firewall its memory.
pub(crate) struct Relay {
    pub(crate) port: u16,
    silent: watch::Sender<bool>,
    late: watch::Sender<Duration>,
    /// When each connection was made.
    pub(crate) made: Arc<Mutex<Vec<Instant>>>,
    relaying: tokio::task::JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.relaying.abort();
    }
}

impl Relay {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (silent, late) = (watch::Sender::new(false), watch::Sender::new(Duration::ZERO));
        let made = Arc::<Mutex<Vec<_>>>::default();
        let (is_silent, is_late, times) = (silent.subscribe(), late.subscribe(), made.clone());
        let mut dice = 88_172_645_463_325_252_u64;
        let relaying = tokio::spawn(async move {
            let mut ways = tokio::task::JoinSet::new();
            loop {
                let Ok((near, _)) = listener.accept().await else { return };
                times.lock().unwrap().push(Instant::now());
                let Ok(far) = TcpStream::connect(server).await else { continue };
                let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                for (from, to) in [(near_in, far_out), (far_in, near_out)] {
                    dice = dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
                    let (sender, receiver) = mpsc::unbounded_channel();
                    ways.spawn(arriving(receiver, to));
                    ways.spawn(one_way(from, sender, is_silent.clone(), (is_late.clone(), dice)));
                }
            }
        });
        Self {
            port,
            silent,
            late,
            made,
            relaying,
        }
    }

    /// Nothing comes through, also of new connections, or it does. What is silent once stays so.
    pub(crate) fn is_silent(&self, silent: bool) {
        self.silent.send_replace(silent);
    }

    /// Whatever comes from now on arrives in pieces, in its order, each later than it came by any time up to this.
    pub(crate) fn is_late(&self, by: Duration) {
        self.late.send_replace(by);
    }
}

/// Takes what comes in pieces of any length, and has each arrive after what came before it.
async fn one_way(
    mut from: OwnedReadHalf,
    to: mpsc::UnboundedSender<(Instant, Vec<u8>)>,
    mut silent: watch::Receiver<bool>,
    (late, mut dice): (watch::Receiver<Duration>, u64),
) {
    let mut bytes = vec![0; 16 * 1024];
    let mut last = Instant::now();
    loop {
        // Marsaglia's xorshift.
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        let most = *late.borrow();
        let (length, by) = match most.is_zero() {
            true => (bytes.len(), most),
            false => (1 + dice as usize % 3000, most.mul_f64((dice >> 32) as f64 / f64::from(u32::MAX))),
        };
        let read = tokio::select! {
            biased;
            _ = silent.wait_for(|silent| *silent) => None,
            read = from.read(&mut bytes[..length]) => Some(read.unwrap_or(0)),
        };
        let Some(read) = read else {
            return std::future::pending().await;
        };
        last = last.max(Instant::now() + by);
        if read == 0 || to.send((last, bytes[..read].to_vec())).is_err() {
            return;
        }
    }
}

async fn arriving(mut from: mpsc::UnboundedReceiver<(Instant, Vec<u8>)>, mut to: OwnedWriteHalf) {
    while let Some((at, bytes)) = from.recv().await {
        if at > Instant::now() {
            tokio::time::sleep_until(at).await;
        }
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}
