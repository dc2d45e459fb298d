//! A SPIRE that does as it is told: agents with the Delegated Identity API and the Workload API, for nodes whose certificates
//! come from there. Its messages are written by hand, so that both ends do not share a mistake.
#![allow(
    clippy::unwrap_used,
    reason = "it stands in for another process: what goes wrong in it fails the test"
)]

use std::{
    collections::BTreeSet,
    convert::Infallible,
    path::Path,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    thread,
    time::{Duration, SystemTime},
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

/// What SPIRE knows, for all its agents: stays while they are away. Every account of a namespace has an entry.
#[derive(Debug)]
pub struct Server {
    authorities: Mutex<Authorities>,
    /// Accounts of whom it knows nothing.
    withdrawn: Mutex<BTreeSet<String>>,
    /// Whether nobody may ask.
    denies: AtomicBool,
    denied: AtomicUsize,
    /// How many more calls are answered with half of a message, and then with nothing.
    halves: AtomicUsize,
    /// For how long what is given is valid from then on.
    life: Mutex<Duration>,
    /// The account whose process calls the Workload API.
    caller: Mutex<(String, String)>,
    asked: Mutex<Vec<Vec<String>>>,
    changes: watch::Sender<u64>,
}

/// Whose certificates a bundle holds, and which of them signs.
struct Authorities {
    all: Vec<CertifiedIssuer<'static, KeyPair>>,
    signs: usize,
}

impl std::fmt::Debug for Authorities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorities").field("signs", &self.signs).finish_non_exhaustive()
    }
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "SPIRE");
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

impl Server {
    /// One with an authority of its own, for the trust domain `cluster.local`.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            authorities: Mutex::new(Authorities {
                all: vec![authority()],
                signs: 0,
            }),
            withdrawn: Mutex::default(),
            denies: AtomicBool::new(false),
            denied: AtomicUsize::new(0),
            halves: AtomicUsize::new(0),
            life: Mutex::new(Duration::from_secs(24 * 60 * 60)),
            caller: Mutex::default(),
            asked: Mutex::default(),
            changes: watch::Sender::new(0),
        })
    }

    /// Deletes an account's entry.
    pub fn withdraw(&self, account: &str) {
        self.withdrawn.lock().unwrap().insert(account.into());
        self.tell();
    }

    /// Gives an account what it had, with a new key.
    pub fn give(&self, account: &str) {
        self.withdrawn.lock().unwrap().remove(account);
        self.tell();
    }

    /// Lets nobody ask any more.
    pub fn deny(&self) {
        self.denies.store(true, Ordering::Relaxed);
    }

    /// How often somebody was denied.
    pub fn denied(&self) -> usize {
        self.denied.load(Ordering::Relaxed)
    }

    /// Has the next calls be answered with half of a message, after which the agent says nothing more.
    pub fn give_halves(&self, calls: usize) {
        self.halves.store(calls, Ordering::Relaxed);
    }

    /// How many such calls there will be yet.
    pub fn halves(&self) -> usize {
        self.halves.load(Ordering::Relaxed)
    }

    /// Has what is given from now on be valid for so long.
    pub fn give_for(&self, life: Duration) {
        *self.life.lock().unwrap() = life;
        self.tell();
    }

    /// Says whose process it is that calls the Workload API.
    pub fn is_called_by(&self, namespace: &str, account: &str) {
        *self.caller.lock().unwrap() = (namespace.into(), account.into());
    }

    /// The selectors that every stream was opened with.
    pub fn asked(&self) -> Vec<Vec<String>> {
        self.asked.lock().unwrap().clone()
    }

    /// Makes the next authority and tells of it, beside the one that signs.
    pub fn prepare_authority(&self) {
        self.authorities.lock().unwrap().all.push(authority());
        self.tell();
    }

    /// Has the last authority sign: every certificate is another now.
    pub fn activate_authority(&self) {
        let mut authorities = self.authorities.lock().unwrap();
        authorities.signs = authorities.all.len() - 1;
        drop(authorities);
        self.tell();
    }

    /// Tells no more of any authority but the one that signs.
    pub fn forget_authorities(&self) {
        let mut authorities = self.authorities.lock().unwrap();
        let signs = authorities.signs;
        authorities.all.drain(..signs);
        authorities.all.truncate(1);
        authorities.signs = 0;
        drop(authorities);
        self.tell();
    }

    fn tell(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// An agent at a socket; it runs until it is dropped.
    pub fn start(self: &Arc<Self>, path: &Path) -> Agent {
        let _ = std::fs::remove_file(path);
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (of, path) = (self.clone(), path.to_owned());
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = UnixListener::bind(&path).unwrap();
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
        let own = request.uri().path().ends_with("/FetchX509SVID");
        let asked = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let selectors = selectors(asked.get(5..).unwrap_or_default());
        self.asked.lock().unwrap().push(selectors.clone());
        tokio::spawn(async move {
            let mut changes = self.changes.subscribe();
            loop {
                let message = match (bundles, own) {
                    (true, _) => field(1, &[field(1, b"spiffe://cluster.local"), field(2, &self.bundle())].concat()),
                    (_, true) => self.own_svid(),
                    (false, false) => self.svids(&selectors),
                };
                let less = |calls: usize| calls.checked_sub(1);
                if self.halves.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok() {
                    let mut half = framed(&message);
                    half.truncate(half.len() / 2);
                    let _ = answers.send(half).await;
                    return answers.closed().await;
                }
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

    /// Every authority, one behind the other.
    fn bundle(&self) -> Vec<u8> {
        let authorities = self.authorities.lock().unwrap();
        let all: Vec<&[u8]> = authorities.all.iter().map(|authority| authority.der().as_ref()).collect();
        all.concat()
    }

    /// What the Workload API says to the process of an account.
    fn own_svid(&self) -> Vec<u8> {
        let (namespace, account) = self.caller.lock().unwrap().clone();
        let Some((uri, certificate, key)) = self.sign(&namespace, &account) else {
            return Vec::new();
        };
        let svid = [
            field(1, uri.as_bytes()),
            field(2, &certificate),
            field(3, &key),
            field(4, &self.bundle()),
        ];
        field(1, &svid.concat())
    }

    fn svids(&self, selectors: &[String]) -> Vec<u8> {
        let part = |prefix: &str| selectors.iter().find_map(|s| s.strip_prefix(prefix)).unwrap_or_default();
        let (namespace, account) = (part("k8s:ns:"), part("k8s:sa:"));
        let Some((_, certificate, key)) = self.sign(namespace, account) else {
            return Vec::new();
        };
        let path = format!("/ns/{namespace}/sa/{account}");
        let id = [field(1, b"cluster.local"), field(2, path.as_bytes())].concat();
        let svid = [field(1, &certificate), field(2, &id)].concat();
        field(1, &[field(1, &svid), field(2, &key)].concat())
    }

    /// The SPIFFE ID, the certificate and the key of an account, unless it was taken out.
    fn sign(&self, namespace: &str, account: &str) -> Option<(String, Vec<u8>, Vec<u8>)> {
        if self.withdrawn.lock().unwrap().contains(account) {
            return None;
        }
        let path = format!("/ns/{namespace}/sa/{account}");
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let uri = format!("spiffe://cluster.local{path}");
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().unwrap())];
        #[expect(clippy::disallowed_methods, reason = "certificates bear the time of day")]
        let now = SystemTime::now();
        params.not_before = (now - Duration::from_secs(10)).into();
        params.not_after = (now + *self.life.lock().unwrap()).into();
        let authorities = self.authorities.lock().unwrap();
        let certificate = params.signed_by(&key, &authorities.all[authorities.signs]).unwrap();
        Some((uri, certificate.der().to_vec(), key.serialize_der()))
    }
}

/// A running agent; it ends when it is dropped, and its socket stays behind as a killed one's does.
#[derive(Debug)]
pub struct Agent {
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
