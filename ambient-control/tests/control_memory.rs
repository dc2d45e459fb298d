//! What a node costs the control plane that serves it: the mesh is there once, whoever is told of it.
//!
//! All is in this process, and the clients keep nothing: what is held more with them is the control plane's, and their
//! connections'.
#![cfg(feature = "serve")]

use std::{
    env,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ambient_control::{
    Batch, BoxFuture, Change, Source,
    ca::DirectoryCa,
    serve::{Config, ControlPlane, Nodes, Use},
};
use ambient_core::{
    Membership, NamespacedHostname, NetworkAddress, Service, ServicePort, TrustDomain, TunnelProtocol, Workload, mesh::Update,
};
use ambient_testkit::allocations::{self, Counting};
use bytes::Bytes;
use http_body_util::{BodyExt as _, channel};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tokio::{
    net::TcpStream,
    sync::{Barrier, mpsc},
    task::JoinSet,
    time::timeout,
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Fed(mpsc::Receiver<Batch>);

impl Source for Fed {
    fn next(&mut self) -> BoxFuture<'_, Option<Batch>> {
        Box::pin(self.0.recv())
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(ambient_tls::provider())
}

/// Workloads; more where it is asked what they cost.
fn size() -> usize {
    let told = env::var("AMBIENT_TEST_WORKLOADS").ok().and_then(|size| size.parse().ok());
    told.unwrap_or(10_000)
}

fn service_of(n: usize) -> NamespacedHostname {
    let namespace = format!("namespace-{}", n % 200);
    NamespacedHostname::new(&namespace, &format!("application-{n}.{namespace}.svc.cluster.local"))
}

fn workload(n: usize, revision: usize) -> Update {
    let name = service_of(n / 10);
    let pod = format!("application-{}-6c9f7d9b8-{n:05x}", n / 10);
    let mut workload = Workload::new(&format!("Kubernetes//Pod/{}/{pod}", name.namespace), &name.namespace, &pod);
    workload.pod = Some(format!("0f3f5a2e-8a1d-4a2b-9c3d-{n:012x}").into());
    workload.addresses = vec![std::net::Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(n).unwrap_or(0)).into()];
    workload.node = format!("node-{}", n % 1000).into();
    workload.service_account = format!("application-{}", n / 10).into();
    workload.tunnel = TunnelProtocol::Hbone;
    workload.canonical_revision = revision.to_string().into();
    workload.services = vec![Membership {
        service: name,
        ports: [(80, 8080)].into_iter().collect(),
    }];
    Update::Workload(workload.into())
}

fn service(n: usize) -> Update {
    let name = service_of(n);
    let mut service = Service::new(&name.namespace, &name.hostname);
    let vip = std::net::Ipv4Addr::from_bits(0xac00_0000 + u32::try_from(n).unwrap_or(0));
    service.vips = vec![NetworkAddress::local(vip.into())];
    service.ports = vec![ServicePort { port: 80, target: 8080 }];
    Update::Service(service.into())
}

fn batch(updates: impl Iterator<Item = Update>) -> Batch {
    Batch {
        changes: updates.map(Change::Mesh).collect(),
        synced: true,
        ..Batch::default()
    }
}

/// A node that reads what it is told, and keeps nothing of it.
struct Reader {
    requests: channel::Sender<Bytes>,
    responses: hyper::body::Incoming,
    /// What has come of the message that comes: all of its length, then so much less with each part.
    left: Option<usize>,
    head: Vec<u8>,
}

/// A message as gRPC frames it.
fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("it is short");
    [&[0][..], &length.to_be_bytes(), message].concat().into()
}

/// A field of text, shorter than 128 bytes, or of a message.
fn field(number: u8, of: &[u8]) -> Vec<u8> {
    let length = u8::try_from(of.len()).expect("it is short");
    assert!(length < 128, "it is short");
    [&[number << 3 | 2, length][..], of].concat()
}

const ADDRESS: &[u8] = b"type.googleapis.com/istio.workload.Address";

impl Reader {
    async fn open(at: std::net::SocketAddr, tls: &tokio_rustls::TlsConnector, token: &str, first: Bytes) -> Self {
        let tcp = TcpStream::connect(at).await.expect("it listens");
        let name = "127.0.0.1".try_into().expect("a name");
        let stream = tls.connect(name, tcp).await.expect("it is trusted");
        // What it has not read yet is on its own account: let that be little.
        let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(65_535)
            .initial_connection_window_size(65_535)
            .handshake(TokioIo::new(stream))
            .await
            .expect("it speaks HTTP/2");
        tokio::spawn(connection);
        let (mut requests, body) = channel::Channel::<Bytes>::new(4);
        requests.send_data(first).await.expect("it is open");
        let request =
            http::Request::post("https://localhost/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources")
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .header("authorization", format!("Bearer {token}"))
                .body(body)
                .expect("a request");
        let response = sender.send_request(request).await.expect("an answer");
        assert_eq!(response.headers().get("grpc-status"), None, "{response:?}");
        Self {
            requests,
            responses: response.into_body(),
            left: None,
            head: Vec::new(),
        }
    }

    /// Reads a message to its end; gives how long it was. What comes of it is shown to whoever looks.
    async fn read(&mut self, mut look: impl FnMut(&[u8])) -> usize {
        let mut length = 0;
        loop {
            let frame = timeout(Duration::from_secs(60), self.responses.frame())
                .await
                .expect("something comes");
            let frame = frame.expect("it goes on").expect("it goes on").into_data();
            let mut data = frame.expect("it goes on");
            while !data.is_empty() {
                match &mut self.left {
                    None => {
                        let head = data.split_to(data.len().min(5 - self.head.len()));
                        self.head.extend_from_slice(&head);
                        if let [0, length_of @ ..] = &self.head[..]
                            && let Ok(length_of) = <[u8; 4]>::try_from(length_of)
                        {
                            length = u32::from_be_bytes(length_of) as usize;
                            self.left = Some(length);
                            self.head.clear();
                        }
                    }
                    Some(left) => {
                        let part = data.split_to(data.len().min(*left));
                        look(&part);
                        *left -= part.len();
                    }
                }
            }
            if self.left == Some(0) {
                self.left = None;
                return length;
            }
        }
    }

    async fn acknowledge(&mut self, nonce: &str) {
        let answer = [field(2, ADDRESS), field(6, nonce.as_bytes())].concat();
        self.requests.send_data(framed(&answer)).await.expect("it is open");
    }
}

/// Says of each resource of a first answer that it is there: the first request of whoever comes back with it.
fn known(mut message: &[u8]) -> Bytes {
    let mut request = field(2, ADDRESS);
    while let Some((number, value, rest)) = split(message) {
        message = rest;
        let (mut resource, mut version, mut name) = (value, None, None);
        while let Some((of, value, rest)) = split(resource).filter(|_| number == 2) {
            resource = rest;
            match of {
                1 => version = Some(value),
                3 => name = Some(value),
                _ => {}
            }
        }
        if let (Some(version), Some(name)) = (version, name) {
            request.extend(field(5, &[field(1, name), field(2, version)].concat()));
        }
    }
    framed(&request)
}

/// The first field of a message, and what is behind it.
fn split(message: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (key, mut rest) = message.split_first()?;
    let (mut length, mut shift) = (0, 0);
    loop {
        let (byte, behind) = rest.split_first()?;
        rest = behind;
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if *byte < 0x80 {
            break;
        }
    }
    let (value, rest) = rest.split_at_checked(length)?;
    Some((key >> 3, value, rest))
}

/// What so many nodes cost at once: at most while they are told, and after it.
#[derive(Debug)]
struct Cost {
    peak: usize,
    settled: usize,
}

#[derive(Clone)]
struct Place {
    at: std::net::SocketAddr,
    tls: tokio_rustls::TlsConnector,
    token: Arc<str>,
}

impl Place {
    /// So many nodes come at once, each with the same first request, and are told at most so much.
    async fn many(&self, count: usize, first: &Bytes, longest: usize) -> (Cost, Vec<Reader>) {
        let before = allocations::held();
        allocations::forget_peak();
        let together = Arc::new(Barrier::new(count));
        let mut all = JoinSet::new();
        for n in 0..count {
            let (place, first, together) = (self.clone(), first.clone(), together.clone());
            all.spawn(async move {
                together.wait().await;
                // A node may have a few streams open.
                let token = place.token.split(' ').nth(n % NODES).expect("a token");
                let mut reader = Reader::open(place.at, &place.tls, token, first).await;
                assert!(reader.read(|_| {}).await <= longest, "it is told more than it has not");
                reader.acknowledge("1").await;
                reader
            });
        }
        let readers = all.join_all().await;
        // What was sent last is let go.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let cost = Cost {
            peak: allocations::peak().saturating_sub(before) / count,
            settled: allocations::held().saturating_sub(before) / count,
        };
        (cost, readers)
    }
}

const NODES: usize = 8;
/// What a node may cost, in bytes; its own end of the connection included, which is here as well.
const SETTLED: usize = 256 << 10;
const PEAK: usize = 768 << 10;

#[tokio::test]
async fn a_node_costs_the_same_however_large_the_mesh_is() {
    let scratch = tempfile::tempdir().unwrap();
    let ca = DirectoryCa::open(scratch.path(), TrustDomain::default(), DirectoryCa::DEFAULT_TTL).unwrap();
    let nodes = Nodes::new(scratch.path(), provider());
    #[expect(clippy::disallowed_methods, reason = "tokens end by the time of day")]
    let token = |n| {
        nodes
            .create_token(&format!("node-{n}"), Duration::from_secs(3600), Use::Always, SystemTime::now())
            .unwrap()
    };
    let tokens: Vec<String> = (0..NODES).map(token).collect();
    let mut roots = rustls::RootCertStore::empty();
    let pem = ca.roots_pem();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem.as_bytes()).flatten());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let (feed, fed) = mpsc::channel(4);
    let plane = ControlPlane::bind(Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        names: vec!["127.0.0.1".into()],
        trust_domain: TrustDomain::default(),
        source: Box::new(Fed(fed)),
        ca: Arc::new(ca),
        nodes,
        captures: None,
        provider: provider(),
    })
    .await
    .unwrap();
    let place = Place {
        at: plane.local_addr().unwrap(),
        tls: Arc::new(tls).into(),
        token: tokens.join(" ").into(),
    };
    let serving = tokio::spawn(plane.run(std::future::pending()));
    let before = allocations::held();
    let updates = (0..size() / 10).map(service).chain((0..size()).map(|n| workload(n, 0)));
    feed.send(batch(updates)).await.unwrap();

    let first = framed(&field(2, ADDRESS));
    let (mut message, mut reader) = (Vec::new(), Reader::open(place.at, &place.tls, &tokens[0], first.clone()).await);
    let whole = reader.read(|part| message.extend_from_slice(part)).await;
    drop(reader);
    let again = known(&message);
    drop(message);
    let mesh = allocations::held() - before;
    println!(
        "{} workloads: {} KiB in one message, {} KiB held of it",
        size(),
        whole >> 10,
        mesh >> 10
    );

    for count in [1, 10, 50] {
        let (cost, readers) = place.many(count, &first, whole + 1000).await;
        println!(
            "{count} that know nothing, each: {} KiB at the peak, {} KiB settled",
            cost.peak >> 10,
            cost.settled >> 10
        );
        // A few allocations of the process itself go to the account of one.
        assert!(cost.peak < PEAK && cost.settled < SETTLED, "{count}: {cost:?}");
        drop(readers);
        let (cost, mut readers) = place.many(count, &again, 100_000).await;
        println!(
            "{count} that come back, each: {} KiB at the peak, {} KiB settled",
            cost.peak >> 10,
            cost.settled >> 10
        );
        assert!(cost.peak < PEAK + COME_BACK * size() && cost.settled < SETTLED, "{count}: {cost:?}");

        // Every change is told to each.
        let held = allocations::held();
        for n in 0..100 {
            feed.send(batch([workload(n, count)].into_iter())).await.unwrap();
        }
        for reader in &mut readers {
            let (mut told, mut nonce) = (0, 1);
            while told < 100 {
                let mut message = Vec::new();
                reader.read(|part| message.extend_from_slice(part)).await;
                told += message.windows(8).filter(|text| text == b"-4a2b-9c").count();
                nonce += 1;
                reader.acknowledge(&nonce.to_string()).await;
            }
            assert_eq!(told, 100, "each of them once");
        }
        let more = allocations::held().saturating_sub(held) / count;
        println!("{count} after 100 changes, each: {} KiB more", more >> 10);
        assert!(more < SETTLED, "{count}: {more}");
    }
    serving.abort();
}

/// What is held for a moment of each resource that a client says to have.
const COME_BACK: usize = 64;
