//! Nodes that fall silent, and nodes that read nothing: by a virtual clock.

use bytes::Bytes;
use http_body_util::{BodyExt as _, channel};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tokio::time::{Instant, sleep};

use super::*;
use crate::{
    istiod::{
        Kind,
        fake::{FastClock, Relay},
    },
    wire::envoy::service::discovery::v3::DeltaDiscoveryRequest,
};

/// How long until no stream is open any more.
async fn ended(running: &Running) -> Duration {
    let start = Instant::now();
    let looking = async {
        while running.counts.streams() > 0 {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(600), looking).await.expect("it ends");
    start.elapsed()
}

#[tokio::test]
async fn a_node_that_is_there_no_more_is_let_go() {
    let running = Running::start().await;
    let relay = Relay::to(([127, 0, 0, 1], running.port).into()).await;
    let endpoint = Endpoint {
        address: format!("127.0.0.1:{}", relay.port),
        ..running.endpoint("node-1")
    };
    let mut state = running.state(endpoint, "node-1");
    while !next(&mut state).await.synced {}
    assert_eq!(running.counts.streams(), 1);
    let _clock = FastClock::begin();
    relay.is_silent(true);
    // A ping, and how long its answer may take.
    let after = ended(&running).await;
    assert!((Duration::from_secs(49)..Duration::from_secs(52)).contains(&after), "{after:?}");
}

/// A connection as a client of any make has it, and what moves it.
pub(super) async fn connect(running: &Running) -> (http2::SendRequest<Body>, JoinHandle<hyper::Result<()>>) {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(running.root.as_bytes()).flatten());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = tokio::net::TcpStream::connect(("127.0.0.1", running.port)).await.unwrap();
    let tls = tokio_rustls::TlsConnector::from(Arc::new(tls));
    let stream = tls.connect("127.0.0.1".try_into().unwrap(), tcp).await.unwrap();
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(16 * 1024)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    (sender, tokio::spawn(connection))
}

pub(super) type Body = channel::Channel<Bytes>;

pub(super) fn framed(message: &impl prost::Message) -> Bytes {
    let message = message.encode_to_vec();
    [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), &message]
        .concat()
        .into()
}

fn call(running: &Running, path: &str, token: Option<&str>, body: Body) -> http::Request<Body> {
    let request = http::Request::post(format!("https://localhost:{}{path}", running.port)).header("content-type", "application/grpc");
    let request = match token {
        Some(token) => request.header("authorization", format!("Bearer {token}")),
        None => request,
    };
    request.body(body).unwrap()
}

/// Sends as much of something as is taken within a second without any, and gives how much that is.
async fn push(requests: &mut channel::Sender<Bytes>, of: &mut Bytes) -> usize {
    let before = of.len();
    while !of.is_empty() {
        let part = of.slice(..of.len().min(PART));
        match timeout(Duration::from_secs(1), requests.send_data(part.clone())).await {
            Ok(sent) => sent.unwrap(),
            Err(_) => break,
        }
        drop(of.split_to(part.len()));
    }
    before - of.len()
}

const PART: usize = 4 * 1024;

/// Nodes that come back say what they have, and there may be nothing to compare it with for long: what they say stays with them.
#[tokio::test]
async fn what_cannot_be_read_yet_is_not_taken_and_holds_up_nothing_else() {
    let running = Running::unsynced(|ca| Arc::new(ca)).await;
    let token = running.token("node-1", Duration::from_secs(600), Use::Always);
    let (mut sender, _connection) = connect(&running).await;
    let claims = (0..20_000).map(|n| (format!("Kubernetes//Pod/shop/{n:060}"), "1".to_owned()));
    let mut said = framed(&DeltaDiscoveryRequest {
        type_url: Kind::Address.type_url().into(),
        initial_resource_versions: claims.collect(),
        ..DeltaDiscoveryRequest::default()
    });
    assert!(said.len() > 1_500_000);
    let (mut requests, body) = Body::new(1);
    let mut response = sender
        .send_request(call(&running, streams::PATH, Some(&token), body))
        .await
        .unwrap()
        .into_body();
    let taken = push(&mut requests, &mut said).await;
    // What waits at this end is in it.
    assert!((60 * 1024..96 * 1024).contains(&taken), "{taken}");

    // On the same connection others are answered.
    let (mut report, body) = Body::new(1);
    let path = "/ambient.control.v1.CaptureService/Report";
    let answer = sender.send_request(call(&running, path, Some(&token), body));
    report
        .send_data(framed(&crate::wire::ambient::control::v1::CaptureReport {
            pod_uid: "uid-gone".into(),
            ..Default::default()
        }))
        .await
        .unwrap();
    drop(report);
    let answer = timeout(Duration::from_secs(5), answer).await.expect("nothing holds it up").unwrap();
    assert_eq!(answer.status(), 200);

    running.sync().await;
    push(&mut requests, &mut said).await;
    assert!(said.is_empty(), "{} of it are not taken", said.len());
    let told = timeout(Duration::from_secs(10), response.frame()).await.expect("an answer");
    assert!(!told.unwrap().unwrap().into_data().unwrap().is_empty());
}

/// Who is nobody is told so before it has said anything, and a node cannot send what no request of its kind can be.
#[tokio::test]
async fn nothing_is_read_of_who_is_nobody_nor_what_is_too_long() {
    let running = Running::start().await;
    let (mut sender, _connection) = connect(&running).await;
    let paths = [
        "/istio.v1.auth.IstioCertificateService/CreateCertificate",
        "/ambient.control.v1.CaptureService/Report",
        "/ambient.control.v1.NodeService/Join",
        streams::PATH,
    ];
    let status = |of: &http::HeaderMap| of.get("grpc-status").map(|status| status.to_str().unwrap().to_owned());
    for path in paths {
        let (_open, body) = Body::new(1);
        let answer = timeout(Duration::from_secs(5), sender.send_request(call(&running, path, None, body))).await;
        let answer = answer.expect("it is not waited for what it says").unwrap();
        assert_eq!(status(answer.headers()).as_deref(), Some("16"), "{path}");
    }
    let token = running.token("node-1", Duration::from_secs(600), Use::Always);
    for path in &paths[..3] {
        let (mut requests, body) = Body::new(1);
        // So long will it be, and it ends when that is known.
        requests.send_data(Bytes::from_static(&[0, 0, 1, 0, 1])).await.unwrap();
        let answer = timeout(
            Duration::from_secs(5),
            sender.send_request(call(&running, path, Some(&token), body)),
        )
        .await;
        let answer = answer.expect("it is not waited for the rest").unwrap();
        assert_eq!(status(answer.headers()).as_deref(), Some("11"), "{path}");
    }
}

/// One that takes part, and does not read what it asked for: it is not kept for it for ever.
#[tokio::test]
async fn whoever_reads_nothing_is_let_go() {
    let running = Running::start().await;
    let many = Batch {
        changes: (0..1000).map(|n| pod(&format!("many-{n}"), "node-2")).collect(),
        synced: true,
        ..Batch::default()
    };
    running.feed.send(many).await.unwrap();
    let (mut sender, connection) = connect(&running).await;
    let (mut requests, body) = Body::new(4);
    let message = DeltaDiscoveryRequest {
        type_url: Kind::Address.type_url().into(),
        ..DeltaDiscoveryRequest::default()
    };
    requests.send_data(framed(&message)).await.unwrap();
    let token = running.token("node-1", Duration::from_secs(600), Use::Always);
    let request = call(&running, streams::PATH, Some(&token), body);
    let mut response = sender.send_request(request).await.unwrap().into_body();
    // Something has come.
    assert!(!response.frame().await.unwrap().unwrap().into_data().unwrap().is_empty());
    let clock = FastClock::begin();
    // It reads on, a little, and then nothing more: from then on it counts.
    sleep(Duration::from_secs(30)).await;
    for _ in 0..2 {
        assert!(!response.frame().await.unwrap().unwrap().into_data().unwrap().is_empty());
    }
    let after = ended(&running).await;
    drop(clock);
    assert!((Duration::from_secs(59)..Duration::from_secs(62)).contains(&after), "{after:?}");
    // Its connection too, and with it what waits.
    timeout(Duration::from_secs(5), connection)
        .await
        .expect("it is cut")
        .unwrap()
        .unwrap_err();
}

/// Calls once, with a whole report, and gives the status of the answer.
async fn report(running: &Running, sender: &mut http2::SendRequest<Body>, token: &str) -> Option<String> {
    let message = framed(&crate::wire::ambient::control::v1::CaptureReport {
        pod_uid: "uid-gone".into(),
        ..Default::default()
    });
    ask(running, sender, token, "/ambient.control.v1.CaptureService/Report", message).await
}

/// Calls once, with one message, and gives the status of the answer.
pub(super) async fn ask(
    running: &Running,
    sender: &mut http2::SendRequest<Body>,
    token: &str,
    path: &str,
    message: Bytes,
) -> Option<String> {
    let (mut requests, body) = Body::new(1);
    let answer = sender.send_request(call(running, path, Some(token), body));
    // It may be answered before it has said this.
    let _ = requests.send_data(message).await;
    drop(requests);
    let answer = timeout(Duration::from_secs(5), answer).await.expect("an answer").unwrap();
    let (head, mut body) = answer.into_parts();
    let mut trailers = head.headers;
    while let Some(Ok(frame)) = body.frame().await {
        trailers.extend(frame.into_trailers().unwrap_or_default());
    }
    trailers.get("grpc-status").map(|status| status.to_str().unwrap().to_owned())
}

/// Whatever a connection is used for, and also for nothing any more: it lives no longer than what its node was admitted by.
#[tokio::test]
async fn a_connection_without_a_stream_ends_with_what_its_node_was_admitted_by() {
    let running = Running::start().await;
    let token = |node: &str, life: u64| running.token(node, Duration::from_secs(life), Use::Always);
    let (one, other, short) = (token("node-1", 600), token("node-2", 600), token("node-3", 2));
    let mut open = Vec::new();
    for token in [&one, &other, &short] {
        let (mut sender, connection) = connect(&running).await;
        assert_eq!(report(&running, &mut sender, token).await.as_deref(), Some("0"));
        open.push((sender, connection));
    }
    running.nodes.revoke("node-1", now()).unwrap();
    let (_sender, connection) = open.remove(0);
    let ended = timeout(Duration::from_secs(2), connection).await;
    ended.expect("it is cut").unwrap().unwrap_err();
    // The token of another ends by itself.
    let (_sender, connection) = open.pop().expect("the third");
    let ended = timeout(Duration::from_secs(5), connection).await;
    ended.expect("it is cut").unwrap().unwrap_err();

    // What counts is what was shown last.
    let (mut sender, connection) = open.pop().expect("the second");
    let next = token("node-2", 600);
    assert_eq!(report(&running, &mut sender, &next).await.as_deref(), Some("0"));
    let ids: Vec<_> = running.nodes.tokens(now()).unwrap().into_iter().map(|token| token.id).collect();
    assert_eq!(ids.len(), 2);
    running.nodes.revoke_token(&ids[0], now()).unwrap();
    sleep(Duration::from_secs(2)).await;
    assert!(!connection.is_finished(), "it has shown another token since");
    assert_eq!(report(&running, &mut sender, &next).await.as_deref(), Some("0"));
    assert_eq!(running.counts.cut(), 0, "no stream was open");
}

/// Whoever has what a node is known by holds no more of the room than a node can need.
#[tokio::test]
async fn a_node_has_few_connections_and_others_have_theirs() {
    let running = Running::start().await;
    let [one, other] = ["node-1", "node-2"].map(|node| running.token(node, Duration::from_secs(600), Use::Always));
    let mut held = Vec::new();
    for n in 0..TIGHT.of_a_node {
        let (mut sender, connection) = connect(&running).await;
        assert_eq!(report(&running, &mut sender, &one).await.as_deref(), Some("0"), "{n}");
        held.push((sender, connection));
    }
    let (mut late, connection) = connect(&running).await;
    assert_eq!(report(&running, &mut late, &one).await.as_deref(), Some("8"));
    assert_eq!(running.counts.refused(Refusal::Room), 1);
    // Those that it has serve it on, and another node has its own.
    assert_eq!(report(&running, &mut held[0].0, &one).await.as_deref(), Some("0"));
    let (mut others, _connection) = connect(&running).await;
    assert_eq!(report(&running, &mut others, &other).await.as_deref(), Some("0"));
    // It has shown nothing by which it may stay.
    let ended = timeout(TIGHT.introducing + Duration::from_secs(2), connection).await;
    ended.expect("it keeps no place").unwrap().unwrap_err();
    // What is given back is had by the next.
    let (sender, connection) = held.remove(0);
    drop(sender);
    connection.await.unwrap().unwrap();
    let again = async {
        let (mut sender, _connection) = connect(&running).await;
        while report(&running, &mut sender, &one).await.as_deref() != Some("0") {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(TIGHT.introducing, again).await.expect("there is room again");
}
