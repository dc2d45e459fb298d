//! A control plane and its clients, over real TLS on loopback.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use ambient_core::{Identity, Mesh, TrustDomain, Workload, mesh::Update};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

use super::*;
use crate::{
    Batch, Change, IssueError, Issuer, Source,
    ca::{DirectoryCa, Signer},
    istiod::{self, Asker, Certificates, CertificatesConfig, Endpoint, Reports, Roots, State, StateConfig, Token, now},
};

mod deadlines;
mod joining;
mod log;
mod silence;
mod trust;

/// Bounds that a test reaches.
pub(super) const TIGHT: limits::Limits = limits::Limits {
    signed_at_once: 100,
    reported_at_once: 50,
    of_a_place: 8,
    of_a_node: 24,
    introducing: Duration::from_secs(2),
    signing: Duration::from_secs(1),
    keeping: Duration::from_secs(1),
    remembered: 64,
    one_by_one: 8,
};

struct Fed(mpsc::Receiver<Batch>);

impl Source for Fed {
    fn next(&mut self) -> BoxFuture<'_, Option<Batch>> {
        Box::pin(self.0.recv())
    }
}

#[derive(Default)]
struct Kept(
    Mutex<Vec<(String, PodUid, bool)>>,
    std::sync::atomic::AtomicBool,
    std::sync::atomic::AtomicBool,
);

impl Captures for Kept {
    fn report<'a>(&'a self, node: &'a str, pod: &'a PodUid, _: &'a [IpAddr], captured: bool) -> BoxFuture<'a, io::Result<()>> {
        if self.1.load(std::sync::atomic::Ordering::Relaxed) {
            return Box::pin(std::future::ready(Err(io::ErrorKind::StorageFull.into())));
        }
        if self.2.load(std::sync::atomic::Ordering::Relaxed) {
            return Box::pin(std::future::pending());
        }
        self.0.lock().unwrap().push((node.into(), pod.clone(), captured));
        Box::pin(std::future::ready(Ok(())))
    }
}

struct Running {
    feed: mpsc::Sender<Batch>,
    nodes: Nodes,
    counts: Arc<Counts>,
    kept: Arc<Kept>,
    port: u16,
    root: String,
    serving: JoinHandle<()>,
    scratch: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(ambient_tls::provider())
}

fn pod(name: &str, node: &str) -> Change {
    let mut pod = Workload::new(&format!("Kubernetes//Pod/shop/{name}"), "shop", name);
    pod.pod = Some(format!("uid-{name}").as_str().into());
    pod.node = node.into();
    pod.service_account = name.into();
    Change::Mesh(Update::Workload(pod.into()))
}

impl Running {
    async fn start() -> Self {
        Self::signed_by(|ca| Arc::new(ca)).await
    }

    /// With whoever signs by an authority.
    async fn signed_by(signer: impl FnOnce(DirectoryCa) -> Arc<dyn Signer>) -> Self {
        let running = Self::unsynced(signer).await;
        running.sync().await;
        running
    }

    /// The first whole state: until it is there nothing is served.
    async fn sync(&self) {
        let batch = Batch {
            changes: vec![pod("cart", "node-1"), pod("stock", "node-2")],
            synced: true,
            ..Batch::default()
        };
        self.feed.send(batch).await.unwrap();
    }

    /// Whose source has said nothing yet.
    async fn unsynced(signer: impl FnOnce(DirectoryCa) -> Arc<dyn Signer>) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("ca");
        let ca = DirectoryCa::open(&directory, TrustDomain::default(), DirectoryCa::DEFAULT_TTL).unwrap();
        let root = ca.roots_pem();
        let (feed, fed) = mpsc::channel(16);
        let kept = Arc::new(Kept::default());
        let config = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            names: vec!["localhost".into(), "127.0.0.1".into()],
            trust_domain: TrustDomain::default(),
            source: Box::new(Fed(fed)),
            ca: signer(ca),
            nodes: Nodes::new(&directory, provider()),
            captures: Some(kept.clone()),
            provider: provider(),
        };
        let plane = ControlPlane::bind_within(TIGHT, config).await.unwrap();
        let port = plane.local_addr().unwrap().port();
        Self {
            feed,
            nodes: Nodes::new(&directory, provider()),
            counts: plane.counts(),
            kept,
            port,
            root,
            serving: tokio::spawn(plane.run(std::future::pending())),
            scratch,
        }
    }

    /// Where it is, for whoever shows a token with each call.
    fn endpoint(&self, node: &str) -> Endpoint {
        self.showing(&self.token(node, Duration::from_secs(600), Use::Always))
    }

    fn token(&self, node: &str, life: Duration, how: Use) -> String {
        self.nodes.create_token(node, life, how, now()).unwrap()
    }

    fn showing(&self, token: &str) -> Endpoint {
        Endpoint {
            roots: Roots::Pem(self.root.clone()),
            token: Some(Token::Literal(token.into())),
            ..Endpoint::new(&format!("127.0.0.1:{}", self.port), provider())
        }
    }

    fn state(&self, endpoint: Endpoint, node: &str) -> State {
        let asker = Asker {
            node: node.into(),
            ..Asker::default()
        };
        State::connect(StateConfig::new(endpoint, asker)).unwrap()
    }
}

async fn next(state: &mut State) -> Batch {
    timeout(Duration::from_secs(20), state.next())
        .await
        .expect("a batch in time")
        .expect("a batch")
}

fn identity(name: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{name}").parse().unwrap()
}

#[tokio::test]
async fn a_node_learns_the_mesh_and_each_change_of_it() {
    let running = Running::start().await;
    let mut state = running.state(running.endpoint("node-1"), "node-1");
    let mut mesh = Mesh::default();
    let mut synced = false;
    while !synced {
        let batch = next(&mut state).await;
        synced = batch.synced;
        mesh = mesh.apply(batch.changes.into_iter().filter_map(|c| match c {
            Change::Mesh(update) => Some(update),
            _ => None,
        }));
    }
    assert_eq!(mesh.workloads().count(), 2);
    let cart = mesh.workload_by_pod(&"uid-cart".into()).expect("known by its pod's UID");
    assert_eq!(cart.identity().unwrap(), identity("cart"));
    let change = Batch {
        changes: vec![Change::Mesh(Update::RemoveWorkload("Kubernetes//Pod/shop/cart".into()))],
        synced: true,
        ..Batch::default()
    };
    running.feed.send(change).await.unwrap();
    let batch = next(&mut state).await;
    assert!(matches!(&batch.changes[..], [Change::Mesh(Update::RemoveWorkload(_))]), "{batch:?}");
}

/// What is wrong with the source is counted for as long as it is.
#[tokio::test]
async fn what_is_wrong_with_the_source_is_counted() {
    let running = Running::start().await;
    for wrong in [2, 1, 0] {
        let batch = Batch {
            synced: true,
            faults: (0..wrong).map(|n| crate::Fault::from(format!("{n}"))).collect(),
            ..Batch::default()
        };
        running.feed.send(batch).await.unwrap();
        let counted = async {
            while running.counts.faults() != wrong {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(20), counted).await.expect("it is counted");
    }
}

/// And so is what is wrong with the authority.
#[tokio::test]
async fn what_is_wrong_with_the_authority_is_counted() {
    let running = Running::start().await;
    let file = running.scratch.path().join("ca/root.pem");
    let whole = std::fs::read(&file).unwrap();
    for (content, wrong) in [(b"torn".to_vec(), 1), (whole, 0)] {
        std::fs::write(&file, content).unwrap();
        let counted = async {
            while running.counts.authority_faults() != wrong {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(20), counted).await.expect("it is counted");
    }
}

/// Whoever has a node's key has no more of the authority than the node can need, and takes nothing from others.
#[tokio::test]
async fn a_node_that_asks_for_certificates_without_end_is_refused() {
    let running = Running::start().await;
    let asking = |node: &str| Arc::new(Certificates::new(CertificatesConfig::new(running.endpoint(node))).unwrap());
    let (storming, other) = (asking("node-1"), asking("node-2"));
    let mut storm = tokio::task::JoinSet::new();
    for _ in 0..4 * TIGHT.signed_at_once {
        let storming = storming.clone();
        storm.spawn(async move { storming.issue(&identity("cart")).await });
    }
    let (given, refused): (Vec<_>, Vec<_>) = storm.join_all().await.into_iter().partition(Result::is_ok);
    assert!(given.len() >= TIGHT.signed_at_once as usize, "{}", given.len());
    let often = |why: &str| why.contains("than it can need: ask again in");
    let error = refused.into_iter().filter_map(Result::err).find(|error| often(&error.to_string()));
    assert!(matches!(error, Some(IssueError::Unavailable { .. })), "{error:?}");
    assert!(running.counts.refused(Refusal::Often) >= 1);
    other.issue(&identity("stock")).await.unwrap();
    // What is needed little by little is had.
    tokio::time::sleep(Duration::from_millis(200)).await;
    storming.issue(&identity("cart")).await.unwrap();
}

#[tokio::test]
async fn a_node_that_asks_one_by_one_is_told_what_it_asks_for_and_its_own_pods() {
    let running = Running::start().await;
    let mut web = ambient_core::Service::new("shop", "web.shop.svc.cluster.local");
    web.vips = vec![ambient_core::NetworkAddress::local("10.9.0.1".parse().unwrap())];
    let mut stock = Workload::new("Kubernetes//Pod/shop/stock", "shop", "stock");
    stock.node = "node-2".into();
    stock.services = vec![ambient_core::Membership {
        service: web.name.clone(),
        ports: [(80, 8080)].into_iter().collect(),
    }];
    let endpoint = Change::Mesh(Update::Workload(stock.into()));
    let service = Change::Mesh(Update::Service(web.into()));
    let feed = async |changes: Vec<Change>| {
        let batch = Batch {
            changes,
            synced: true,
            ..Batch::default()
        };
        running.feed.send(batch).await.unwrap();
    };
    let asker = Asker {
        node: "node-1".into(),
        ..Asker::default()
    };
    let config = StateConfig {
        on_demand: true,
        ..StateConfig::new(running.endpoint("node-1"), asker)
    };
    let mut state = State::connect(config).unwrap();
    let demand = state.on_demand().expect("it is asked one by one");
    let mut mesh = Mesh::default();
    let mut until = async |done: &dyn Fn(&Mesh, &Batch) -> bool| loop {
        let mut batch = next(&mut state).await;
        let changes = std::mem::take(&mut batch.changes).into_iter();
        mesh = mesh.apply(changes.filter_map(|change| match change {
            Change::Mesh(update) => Some(update),
            _ => None,
        }));
        if done(&mesh, &batch) {
            return;
        }
    };
    let name = "shop/web.shop.svc.cluster.local".parse().unwrap();
    until(&|mesh, batch| batch.synced && mesh.workload_by_pod(&"uid-cart".into()).is_some()).await;
    assert!(demand.is_there());
    demand.ask("/10.9.0.1").unwrap();
    until(&|mesh, batch| batch.answered == ["/10.9.0.1".into()] && mesh.services().count() == 0).await;
    // It appears: whoever has asked is told, and of its endpoints with it.
    feed(vec![endpoint, service]).await;
    until(&|mesh, _| mesh.service(&name).is_some() && mesh.workloads().count() == 2).await;
    // What is known already is answered at once.
    demand.ask("/10.9.0.1").unwrap();
    until(&|_, batch| batch.answered == ["/10.9.0.1".into()]).await;
    demand.give_back(vec!["/10.9.0.1".into()]);
    until(&|mesh, _| mesh.service(&name).is_none() && mesh.workloads().count() == 1).await;
}

#[tokio::test]
async fn a_node_is_who_its_token_says_and_nobody_else() {
    let running = Running::start().await;
    let refused = async |endpoint: Endpoint, says: &str, why: &str| {
        let mut state = running.state(endpoint, says);
        let batch = next(&mut state).await;
        assert!(batch.faults.iter().any(|fault| fault.what.contains(why)), "{batch:?}");
    };
    refused(
        running.endpoint("node-1"),
        "node-2",
        "its credential is for the node node-1, and not for node-2",
    )
    .await;
    let endpoint = running.endpoint("node-1");
    let listed = running.nodes.tokens(now()).unwrap();
    running.nodes.revoke_token(&listed.last().unwrap().id, now()).unwrap();
    refused(endpoint, "node-1", "this token is none, has ended, or was revoked").await;
    let without = Endpoint {
        token: None,
        ..running.endpoint("node-1")
    };
    refused(without, "node-1", "a node's certificate is wanted, or").await;
    assert!(running.counts.refused(Refusal::Node) >= 1);
    assert!(running.counts.refused(Refusal::Credential) >= 2);
}

/// Passes bytes on to a port, slowly, and breaks the first connections off after ever other numbers of bytes.
async fn unreliable(to: u16, breaks: usize) -> (u16, JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let passing = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        for n in 0.. {
            let (mut client, _) = listener.accept().await.unwrap();
            let budget = if n < breaks { 1500 + n * 7919 % 6000 } else { usize::MAX };
            connections.spawn(async move {
                let mut server = tokio::net::TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                let (mut passed, mut up, mut down) = (0, [0; 700], [0; 700]);
                while passed < budget {
                    let end = tokio::select! {
                        read = tokio::io::AsyncReadExt::read(&mut client, &mut up) => match read {
                            Ok(length @ 1..) => tokio::io::AsyncWriteExt::write_all(&mut server, &up[..length]).await.is_err(),
                            _ => true,
                        },
                        read = tokio::io::AsyncReadExt::read(&mut server, &mut down) => match read {
                            Ok(length @ 1..) => {
                                passed += length;
                                tokio::time::sleep(Duration::from_micros(200)).await;
                                tokio::io::AsyncWriteExt::write_all(&mut client, &down[..length]).await.is_err()
                            }
                            _ => true,
                        },
                    };
                    if end {
                        return;
                    }
                }
            });
        }
    });
    (port, passing)
}

#[tokio::test]
async fn wherever_connections_break_both_end_with_the_same_mesh() {
    let running = Running::start().await;
    let (port, _passing) = unreliable(running.port, 7).await;
    let endpoint = Endpoint {
        address: format!("127.0.0.1:{port}"),
        ..running.endpoint("node-1")
    };
    let mut state = running.state(endpoint, "node-1");
    let (mut mesh, mut last) = (Mesh::default(), 0);
    let changes = |n: usize| {
        let mut all: Vec<Change> = (0..30).filter(|pod| pod % 7 != n % 7).map(|pod| pod_of(pod, n)).collect();
        all.extend(
            (0..30)
                .filter(|pod| pod % 7 == n % 7)
                .map(|pod| Change::Mesh(Update::RemoveWorkload(uid(pod)))),
        );
        all
    };
    let take = |mesh: &mut Mesh, batch: Batch| {
        let updates = batch.changes.into_iter().filter_map(|change| match change {
            Change::Mesh(update) => Some(update),
            _ => None,
        });
        *mesh = mesh.apply(updates);
    };
    for n in 1..20 {
        last = n;
        let batch = Batch {
            changes: changes(n),
            synced: true,
            ..Batch::default()
        };
        running.feed.send(batch).await.unwrap();
        while let Ok(batch) = timeout(Duration::from_millis(50), state.next()).await {
            take(&mut mesh, batch.unwrap());
        }
    }
    let wanted: Vec<(String, String)> = (0..30)
        .filter(|pod| pod % 7 != last % 7)
        .map(|pod| (uid(pod).to_string(), last.to_string()))
        .collect();
    loop {
        let held = mesh.workloads().filter(|workload| workload.uid.as_str().contains("/many-"));
        let mut held: Vec<_> = held.map(|w| (w.uid.to_string(), w.canonical_revision.to_string())).collect();
        held.sort();
        let mut wanted = wanted.clone();
        wanted.sort();
        if held == wanted {
            return;
        }
        take(&mut mesh, next(&mut state).await);
    }
}

fn uid(pod: usize) -> ambient_core::WorkloadUid {
    format!("Kubernetes//Pod/shop/many-{pod}").into()
}

fn pod_of(pod: usize, revision: usize) -> Change {
    let mut workload = Workload::new(uid(pod).as_str(), "shop", &format!("many-{pod}"));
    workload.canonical_revision = revision.to_string().into();
    Change::Mesh(Update::Workload(workload.into()))
}

#[tokio::test]
async fn certificates_are_for_pods_of_the_callers_node() {
    let running = Running::start().await;
    let certificates = Certificates::new(CertificatesConfig::new(running.endpoint("node-1"))).unwrap();
    // The first batch may not be in force yet.
    let mut issued = certificates.issue(&identity("cart")).await;
    for _ in 0..100 {
        if issued.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        issued = certificates.issue(&identity("cart")).await;
    }
    let issued = issued.unwrap();
    assert_eq!((&issued.identity, issued.chain.len()), (&identity("cart"), 2));
    let roots = certificates.trust();
    assert_eq!(roots.roots(&"cluster.local".parse().unwrap()).len(), 1);
    for other in ["stock", "nobody"] {
        let error = certificates.issue(&identity(other)).await.unwrap_err();
        assert!(
            matches!(&error, IssueError::Refused { why, .. } if why.contains("no pod of spiffe://")),
            "{error}"
        );
    }
    assert_eq!(running.counts.refused(Refusal::Identity), 2);
    // Once its last pod has gone the node gets none any more.
    let gone = Batch {
        changes: vec![Change::Mesh(Update::RemoveWorkload("Kubernetes//Pod/shop/cart".into()))],
        synced: true,
        ..Batch::default()
    };
    running.feed.send(gone).await.unwrap();
    let refused = async { while certificates.issue(&identity("cart")).await.is_ok() {} };
    timeout(Duration::from_secs(20), refused).await.expect("a refusal in time");
    let own = Certificates::new(CertificatesConfig {
        impersonate: false,
        ..CertificatesConfig::new(running.endpoint("node-1"))
    })
    .unwrap();
    let error = own.issue(&identity("cart")).await.unwrap_err().to_string();
    assert!(error.contains("metadata.ImpersonatedIdentity: it is missing"), "{error}");
}

#[tokio::test]
async fn a_report_that_cannot_be_kept_is_counted() {
    let running = Running::start().await;
    let reports = Reports::new(running.endpoint("node-1")).unwrap();
    running.kept.1.store(true, std::sync::atomic::Ordering::Relaxed);
    let error = reports.report(&"uid-gone".into(), &[], false).await.unwrap_err();
    assert!(!error.is_absence(), "whoever says so is there: {error}");
    assert_eq!(running.counts.refused(Refusal::Keeping), 1);
    running.kept.1.store(false, std::sync::atomic::Ordering::Relaxed);
    reports.report(&"uid-gone".into(), &[], false).await.unwrap();
}

/// What is kept of a pod that nobody knows is little, whatever a node says.
#[tokio::test]
async fn a_report_is_short() {
    let running = Running::start().await;
    let reports = Reports::new(running.endpoint("node-1")).unwrap();
    let addresses: Vec<IpAddr> = (0..17).map(|n| [10, 0, 0, n].into()).collect();
    let longest = "u".repeat(253);
    for (pod, addresses, captured) in [
        (format!("{longest}u"), &addresses[..1], false),
        (String::new(), &[], false),
        ("uid-cart".into(), &addresses, true),
    ] {
        let error = reports.report(&pod.as_str().into(), addresses, captured).await.unwrap_err();
        let invalid = matches!(
            &error,
            istiod::ReportError::Refused {
                code,
                ..
            } if *code == tonic::Code::InvalidArgument as i32
        );
        assert!(invalid && error.to_string().contains("pod_uid has"), "{error}");
    }
    assert_eq!(running.counts.refused(Refusal::Request), 3);
    reports.report(&longest.as_str().into(), &[], false).await.unwrap();
    reports.report(&"uid-cart".into(), &addresses[..16], true).await.unwrap();
}

#[tokio::test]
async fn nodes_report_what_they_have_captured_and_nothing_of_others() {
    let running = Running::start().await;
    let reports = Reports::new(running.endpoint("node-1")).unwrap();
    let mut state = running.state(running.endpoint("node-1"), "node-1");
    while !next(&mut state).await.synced {}
    let address = ["10.0.0.1".parse().unwrap()];
    reports.report(&"uid-cart".into(), &address, true).await.unwrap();
    reports.report(&"uid-cart".into(), &address, false).await.unwrap();
    // One that is gone may be withdrawn.
    reports.report(&"uid-gone".into(), &[], false).await.unwrap();
    for other in ["uid-stock", "uid-nobody"] {
        let error = reports.report(&other.into(), &address, true).await.unwrap_err();
        assert!(
            matches!(
                error,
                istiod::ReportError::Refused {
                    code,
                    ..
                } if code == tonic::Code::PermissionDenied as i32
            ),
            "{error}"
        );
    }
    assert_eq!(running.counts.refused(Refusal::Pod), 2);
    let kept = running.kept.0.lock().unwrap().clone();
    let wanted = [("uid-cart", true), ("uid-cart", false), ("uid-gone", false)];
    assert_eq!(
        kept,
        wanted.map(|(pod, captured)| ("node-1".to_owned(), PodUid::from(pod), captured))
    );
}

#[tokio::test]
async fn whoever_is_no_node_keeps_no_place() {
    let running = Running::start().await;
    let mut node = running.state(running.endpoint("node-1"), "node-1");
    while !next(&mut node).await.synced {}
    // It comes by TLS, says nothing more, and is gone before long; the node stays.
    use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(running.root.as_bytes()).unwrap()).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = tokio::net::TcpStream::connect(("127.0.0.1", running.port)).await.unwrap();
    let connecting = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stranger = connecting.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap();
    let mut said = Vec::new();
    let ended = timeout(
        Duration::from_secs(10),
        tokio::io::AsyncReadExt::read_to_end(&mut stranger, &mut said),
    );
    let _ = ended.await.expect("an end in time");
    running.change("later").await;
    let batch = next(&mut node).await;
    assert!(batch.faults.is_empty() && batch.changes.len() == 1, "{batch:?}");
}

/// One address that opens all it can has few places, however it goes on; nodes come all the same, from there too, once what
/// was held has ended.
#[tokio::test]
async fn strangers_from_one_address_leave_room_for_nodes() {
    use tokio::io::AsyncReadExt as _;
    let running = Running::start().await;
    let mut node = running.state(running.endpoint("node-1"), "node-1");
    while !next(&mut node).await.synced {}
    let mut strangers = Vec::new();
    for _ in 0..40 {
        strangers.push(tokio::net::TcpStream::connect(("127.0.0.1", running.port)).await.unwrap());
    }
    let refused = async {
        while running.counts.refused(Refusal::Strangers) < 30 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(20), refused).await.expect("most are refused");
    // A node that is known is not disturbed, and one that comes from elsewhere has room.
    running.change("later").await;
    let batch = next(&mut node).await;
    assert!(batch.faults.is_empty() && batch.changes.len() == 1, "{batch:?}");
    let tcp = tokio::net::TcpSocket::new_v4().unwrap();
    tcp.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = tcp.connect(([127, 0, 0, 1], running.port).into()).await.unwrap();
    let read = timeout(Duration::from_millis(300), other.read(&mut [0])).await;
    assert!(read.is_err(), "it is not hung up on: {read:?}");
    drop(strangers);
    let mut late = running.state(running.endpoint("node-2"), "node-2");
    while !next(&mut late).await.synced {}
    assert_eq!(running.counts.refused(Refusal::Room), 0);
}

#[tokio::test]
async fn what_is_no_tls_or_no_call_of_ours_ends_alone() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let running = Running::start().await;
    let mut garbage = tokio::net::TcpStream::connect(("127.0.0.1", running.port)).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(Duration::from_secs(20), garbage.read_to_end(&mut answer))
        .await
        .expect("an end in time");
    let mut state = running.state(running.endpoint("node-1"), "node-1");
    next(&mut state).await;
}
