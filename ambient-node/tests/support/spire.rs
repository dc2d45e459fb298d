//! A SPIRE agent's Delegated Identity API that does as it is told. Its messages are written by hand, so that both ends do not
//! share a mistake.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    thread,
};

use http_body_util::BodyExt as _;
use hyper::{
    Request, Response,
    body::{Body, Bytes, Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

/// What it knows: stays while the agent is away.
pub(crate) struct Server {
    path: PathBuf,
    authority: CertifiedIssuer<'static, KeyPair>,
    /// Accounts of whom it knows nothing.
    withdrawn: Mutex<BTreeSet<String>>,
    /// Whether nobody may ask.
    denies: AtomicBool,
    /// How often somebody was denied.
    pub(crate) denied: AtomicUsize,
    /// What every stream was opened with.
    pub(crate) asked: Mutex<Vec<Vec<String>>>,
    changes: watch::Sender<u64>,
}

impl Server {
    pub(crate) fn new(path: &Path) -> Arc<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "SPIRE");
        Arc::new(Self {
            path: path.into(),
            authority: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(),
            withdrawn: Mutex::default(),
            denies: AtomicBool::new(false),
            denied: AtomicUsize::new(0),
            asked: Mutex::default(),
            changes: watch::Sender::new(0),
        })
    }

    pub(crate) fn withdraw(&self, account: &str) {
        self.withdrawn.lock().unwrap().insert(account.into());
        self.changes.send_modify(|count| *count += 1);
    }

    /// Gives an account what it had, with a new key.
    pub(crate) fn give(&self, account: &str) {
        self.withdrawn.lock().unwrap().remove(account);
        self.changes.send_modify(|count| *count += 1);
    }

    pub(crate) fn deny(&self) {
        self.denies.store(true, Ordering::Relaxed);
    }

    /// The agent runs until it is dropped.
    pub(crate) fn start(self: &Arc<Self>) -> Agent {
        let _ = std::fs::remove_file(&self.path);
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let of = self.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = UnixListener::bind(&of.path).unwrap();
                ready.send(()).unwrap();
                tokio::select! {
                    () = of.serve(listener) => {}
                    _ = stopped => {}
                }
            });
        });
        is_ready.recv().unwrap();
        Agent {
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    async fn serve(self: Arc<Self>, listener: UnixListener) {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let of = self.clone();
            connections.spawn(async move {
                let answer = service_fn(move |request| of.clone().answer(request));
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Answers>, Infallible> {
        let response = Response::builder().header("content-type", "application/grpc");
        let (answers, incoming) = mpsc::channel(4);
        if self.denies.load(Ordering::Relaxed) {
            self.denied.fetch_add(1, Ordering::Relaxed);
            let denied = response.header("grpc-status", "7").header("grpc-message", "no delegate");
            return Ok(denied.body(Answers(incoming)).unwrap());
        }
        let bundles = request.uri().path().ends_with("/SubscribeToX509Bundles");
        let asked = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let selectors = selectors(asked.get(5..).unwrap_or_default());
        self.asked.lock().unwrap().push(selectors.clone());
        tokio::spawn(async move {
            let mut changes = self.changes.subscribe();
            loop {
                let message = match bundles {
                    true => field(1, &[field(1, b"spiffe://cluster.local"), field(2, self.authority.der())].concat()),
                    false => self.svids(&selectors),
                };
                if answers.send(framed(&message)).await.is_err() {
                    return;
                }
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = answers.closed() => return,
                }
            }
        });
        Ok(response.body(Answers(incoming)).unwrap())
    }

    fn svids(&self, selectors: &[String]) -> Vec<u8> {
        let part = |prefix: &str| selectors.iter().find_map(|s| s.strip_prefix(prefix)).unwrap_or_default();
        let (namespace, account) = (part("k8s:ns:"), part("k8s:sa:"));
        if self.withdrawn.lock().unwrap().contains(account) {
            return Vec::new();
        }
        let path = format!("/ns/{namespace}/sa/{account}");
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let uri = format!("spiffe://cluster.local{path}");
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().unwrap())];
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        let id = [field(1, b"cluster.local"), field(2, path.as_bytes())].concat();
        let svid = [field(1, certificate.der()), field(2, &id)].concat();
        field(1, &[field(1, &svid), field(2, &key.serialize_der())].concat())
    }
}

/// A running agent; it ends when it is dropped, and its socket stays behind as a killed one's does.
pub(crate) struct Agent {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Messages that come when they come.
struct Answers(mpsc::Receiver<Bytes>);

impl Body for Answers {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|answer| answer.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// A message of gRPC.
fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], &length[..], message].concat().into()
}

/// A field of bytes, in protobuf.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        field.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
        length >>= 7;
    }
    field.push(u8::try_from(length).unwrap());
    field.extend(bytes);
    field
}

/// The selectors of a request, each of less than 128 bytes: fields 1, of which 1 is the kind and 2 the value.
fn selectors(mut message: &[u8]) -> Vec<String> {
    let take = |message: &mut &[u8]| -> Vec<u8> {
        let length = usize::from(message[1]);
        let (field, rest) = message[2..].split_at(length);
        *message = rest;
        field.to_vec()
    };
    let mut found = Vec::new();
    while !message.is_empty() {
        let selector = take(&mut message);
        let mut inner = &selector[..];
        let (kind, value) = (take(&mut inner), take(&mut inner));
        found.push(format!("{}:{}", String::from_utf8_lossy(&kind), String::from_utf8_lossy(&value)));
    }
    found
}
