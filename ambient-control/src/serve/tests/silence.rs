//! Nodes that fall silent, and nodes that read nothing: by a virtual clock.

use bytes::Bytes;
use http_body_util::{BodyExt as _, channel};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message as _;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tokio::time::{Instant, sleep};

use super::*;
use crate::{
    istiod::{Kind, fake::Relay},
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
    tokio::time::pause();
    relay.is_silent(true);
    // A ping, and how long its answer may take.
    let after = ended(&running).await;
    assert!((Duration::from_secs(49)..Duration::from_secs(52)).contains(&after), "{after:?}");
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
    let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(16 * 1024)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let (mut requests, body) = channel::Channel::<Bytes>::new(4);
    let message = DeltaDiscoveryRequest {
        type_url: Kind::Address.type_url().into(),
        ..DeltaDiscoveryRequest::default()
    }
    .encode_to_vec();
    let framed = [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), &message].concat();
    requests.send_data(framed.into()).await.unwrap();
    let token = running.token("node-1", Duration::from_secs(600), Use::Always);
    let request = http::Request::post(format!("https://localhost{}", streams::PATH))
        .header("authorization", format!("Bearer {token}"))
        .body(body)
        .unwrap();
    let mut response = sender.send_request(request).await.unwrap().into_body();
    // Something has come.
    assert!(!response.frame().await.unwrap().unwrap().into_data().unwrap().is_empty());
    tokio::time::pause();
    let after = ended(&running).await;
    assert!((Duration::from_secs(59)..Duration::from_secs(62)).contains(&after), "{after:?}");
    // Its connection too, and with it what waits.
    timeout(Duration::from_secs(5), connection)
        .await
        .expect("it is cut")
        .unwrap()
        .unwrap_err();
}
