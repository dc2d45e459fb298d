//! A SPIFFE agent that does as it is told, on a Unix socket, and an authority whose SVIDs it gives.

use std::{
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use ambient_core::{Identity, TrustBundles};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::crypto::CryptoProvider;
use tokio::{net::UnixListener, sync::mpsc, task::JoinSet};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use super::{Socket, svid::Raw};
use crate::wire::{
    spiffe::workload::{
        X509svid, X509svidRequest, X509svidResponse,
        spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer},
    },
    spire::api::{
        agent::delegatedidentity::v1::{
            SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse, SubscribeToX509sviDsRequest, SubscribeToX509sviDsResponse,
            X509svidWithKey,
            delegated_identity_server::{DelegatedIdentity, DelegatedIdentityServer},
        },
        types,
    },
};

/// In November 2026.
pub(super) const START: u64 = 1_795_000_000;

/// A clock that is set by hand, in seconds since [`START`].
#[derive(Clone, Debug, Default)]
pub(super) struct Clock(Arc<AtomicU64>);

impl Clock {
    pub(super) fn set(&self, seconds: u64) {
        self.0.store(seconds, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> super::desk::Clock {
        let own = self.clone();
        Arc::new(move || at(own.0.load(Ordering::Relaxed)))
    }
}

/// So many seconds after the start.
pub(super) fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(START + seconds)
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ambient_tls::provider())
}

pub(super) fn cart() -> Identity {
    CART.parse().unwrap()
}

pub(super) const CART: &str = "spiffe://example.org/ns/shop/sa/cart";

/// An authority in memory.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "a root");
        Self {
            issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(),
        }
    }

    pub(super) fn root(&self) -> Vec<u8> {
        self.issuer.der().to_vec()
    }

    /// An SVID that is valid from a second after the start to another.
    pub(super) fn svid(&self, uri: &str, from: u64, until: u64) -> Given {
        self.changed(uri, |params| {
            params.not_before = at(from).into();
            params.not_after = at(until).into();
        })
    }

    /// One that is valid for a day around the start.
    pub(super) fn fresh(&self, uri: &str) -> Given {
        self.changed(uri, |_| {})
    }

    pub(super) fn changed(&self, uri: &str, change: impl FnOnce(&mut CertificateParams)) -> Given {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.not_before = (at(0) - Duration::from_secs(12 * 3600)).into();
        params.not_after = at(12 * 3600).into();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Given {
            named: uri.into(),
            chain: vec![certificate.der().to_vec()],
            key: key.serialize_der(),
        }
    }

    pub(super) fn bundles(&self) -> TrustBundles {
        let mut bundles = TrustBundles::default();
        bundles.add("example.org".parse().unwrap(), self.root());
        bundles
    }
}

/// An SVID as an agent gives it, to be damaged as a test likes.
#[derive(Clone)]
pub(super) struct Given {
    pub(super) named: String,
    pub(super) chain: Vec<Vec<u8>>,
    pub(super) key: Vec<u8>,
}

impl Given {
    pub(super) fn raw(&self) -> Raw {
        Raw {
            named: self.named.clone(),
            chain: self.chain.concat(),
            key: self.key.clone().into(),
        }
    }

    fn delegated(&self) -> X509svidWithKey {
        let rest = self.named.strip_prefix("spiffe://").unwrap_or_default();
        let (domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        X509svidWithKey {
            x509_svid: Some(types::X509svid {
                cert_chain: self.chain.clone(),
                id: (!self.named.is_empty()).then(|| types::Spiffeid {
                    trust_domain: domain.into(),
                    path: path.into(),
                }),
                expires_at: 0,
                hint: String::new(),
            }),
            x509_svid_key: self.key.clone(),
        }
    }
}

/// A stream that a client has opened.
pub(super) struct Opened<Q, R> {
    pub(super) request: Q,
    answers: mpsc::Sender<Result<R, Status>>,
}

impl<Q, R> Opened<Q, R> {
    async fn send(&self, answer: Result<R, Status>) {
        self.answers.send(answer).await.expect("the client is there");
    }

    pub(super) async fn end(self, status: Status) {
        self.send(Err(status)).await;
    }

    /// Waits until the client has gone.
    pub(super) async fn gone(&self) {
        soon(self.answers.closed()).await;
    }
}

pub(super) type Svids = Opened<SubscribeToX509sviDsRequest, SubscribeToX509sviDsResponse>;
pub(super) type Roots = Opened<SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse>;
pub(super) type Own = Opened<bool, X509svidResponse>;

impl Svids {
    pub(super) async fn gives(&self, svids: &[&Given]) {
        self.send(Ok(SubscribeToX509sviDsResponse {
            x509_svids: svids.iter().map(|svid| svid.delegated()).collect(),
            federates_with: Vec::new(),
        }))
        .await;
    }

    pub(super) fn selectors(&self) -> Vec<String> {
        let selectors = self.request.selectors.iter();
        selectors.map(|s| format!("{}:{}", s.r#type, s.value)).collect()
    }
}

impl Roots {
    pub(super) async fn gives(&self, bundles: &[(&str, Vec<u8>)]) {
        self.send(Ok(SubscribeToX509BundlesResponse {
            ca_certificates: bundles.iter().map(|(name, der)| ((*name).to_owned(), der.clone())).collect(),
        }))
        .await;
    }
}

impl Own {
    pub(super) async fn gives(&self, svids: &[&Given], bundle: &[u8], federated: &[(&str, Vec<u8>)]) {
        let svids = svids.iter().map(|svid| X509svid {
            spiffe_id: svid.named.clone(),
            x509_svid: svid.chain.concat(),
            x509_svid_key: svid.key.clone(),
            bundle: bundle.to_vec(),
            hint: String::new(),
        });
        self.send(Ok(X509svidResponse {
            svids: svids.collect(),
            crl: Vec::new(),
            federated_bundles: federated.iter().map(|(name, der)| ((*name).to_owned(), der.clone())).collect(),
        }))
        .await;
    }
}

/// The agent. It ends when it is dropped, with all its connections.
pub(super) struct Fake {
    directory: Arc<tempfile::TempDir>,
    svids: mpsc::Receiver<Svids>,
    roots: mpsc::Receiver<Roots>,
    own: mpsc::Receiver<Own>,
    /// What every call is answered with at once, if anything.
    pub(super) refuses: Arc<Mutex<Option<Status>>>,
    _serving: JoinSet<()>,
}

impl Fake {
    pub(super) fn start() -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().unwrap()))
    }

    /// In a directory where a client may look already.
    pub(super) fn start_in(directory: Arc<tempfile::TempDir>) -> Self {
        let path = directory.path().join("agent.sock");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(path).unwrap();
        let (svids_in, svids) = mpsc::channel(64);
        let (roots_in, roots) = mpsc::channel(64);
        let (own_in, own) = mpsc::channel(64);
        let refuses = Arc::default();
        let service = Service {
            svids: svids_in,
            roots: roots_in,
            own: own_in,
            refuses: Arc::clone(&refuses),
        };
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let both = Both {
                    delegated: DelegatedIdentityServer::new(service.clone()),
                    workload: SpiffeWorkloadApiServer::new(service.clone()),
                };
                connections.spawn(async move {
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(both)).await;
                });
            }
        });
        Self {
            directory,
            svids,
            roots,
            own,
            refuses,
            _serving: serving,
        }
    }

    /// Goes, and leaves the directory.
    pub(super) async fn stop(mut self) -> Arc<tempfile::TempDir> {
        self._serving.shutdown().await;
        self.directory.clone()
    }

    pub(super) fn socket(&self) -> Socket {
        socket_in(&self.directory)
    }

    pub(super) async fn svids(&mut self) -> Svids {
        soon(self.svids.recv()).await.expect("a stream")
    }

    pub(super) async fn roots(&mut self) -> Roots {
        soon(self.roots.recv()).await.expect("a stream")
    }

    pub(super) async fn own(&mut self) -> Own {
        soon(self.own.recv()).await.expect("a stream")
    }

    pub(super) fn nothing_is_asked(&mut self) -> bool {
        self.svids.try_recv().is_err()
    }
}

pub(super) fn socket_in(directory: &tempfile::TempDir) -> Socket {
    let path: PathBuf = directory.path().join("agent.sock");
    Socket::new(path.to_str().unwrap()).unwrap()
}

/// What must come, and would otherwise hang the test.
pub(super) async fn soon<T>(of: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), of).await.expect("in time")
}

#[derive(Clone)]
struct Service {
    svids: mpsc::Sender<Svids>,
    roots: mpsc::Sender<Roots>,
    own: mpsc::Sender<Own>,
    refuses: Arc<Mutex<Option<Status>>>,
}

type Answers<R> = Pin<Box<dyn Stream<Item = Result<R, Status>> + Send>>;

impl Service {
    async fn open<Q: Send, R: Send + 'static>(&self, to: &mpsc::Sender<Opened<Q, R>>, request: Q) -> Result<Response<Answers<R>>, Status> {
        if let Some(status) = self.refuses.lock().unwrap().clone() {
            return Err(status);
        }
        let (answers, outgoing) = mpsc::channel(16);
        to.send(Opened { request, answers })
            .await
            .map_err(|_| Status::unavailable("nobody is there"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

#[tonic::async_trait]
impl DelegatedIdentity for Service {
    type SubscribeToX509SVIDsStream = Answers<SubscribeToX509sviDsResponse>;
    type SubscribeToX509BundlesStream = Answers<SubscribeToX509BundlesResponse>;

    async fn subscribe_to_x509svi_ds(
        &self,
        request: Request<SubscribeToX509sviDsRequest>,
    ) -> Result<Response<Self::SubscribeToX509SVIDsStream>, Status> {
        self.open(&self.svids, request.into_inner()).await
    }

    async fn subscribe_to_x509_bundles(
        &self,
        request: Request<SubscribeToX509BundlesRequest>,
    ) -> Result<Response<Self::SubscribeToX509BundlesStream>, Status> {
        self.open(&self.roots, request.into_inner()).await
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Service {
    type FetchX509SVIDStream = Answers<X509svidResponse>;

    async fn fetch_x509svid(&self, request: Request<X509svidRequest>) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let shown = request.metadata().get("workload.spiffe.io").is_some_and(|v| v == "true");
        self.open(&self.own, shown).await
    }
}

#[derive(Clone)]
struct Both {
    delegated: DelegatedIdentityServer<Service>,
    workload: SpiffeWorkloadApiServer<Service>,
}

impl tower::Service<http::Request<hyper::body::Incoming>> for Both {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<hyper::body::Incoming>) -> Self::Future {
        match request.uri().path().starts_with("/SpiffeWorkloadAPI/") {
            true => self.workload.call(request),
            false => self.delegated.call(request),
        }
    }
}
