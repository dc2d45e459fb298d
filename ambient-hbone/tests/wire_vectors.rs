//! Both ends against the frames in `tests/vectors`, byte by byte above TLS: the other end is played by hand.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;
mod wire;

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use ambient_core::Identity;
use ambient_hbone::{
    BoxFuture, BoxedIo, ConnectError, Destination, Dial, NotConnected, Pool, Request, Server, Session, Speaker, Stream, StreamError,
    TunnelLost,
};
use ambient_tls::Accepted;
use http::{HeaderMap, StatusCode};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use wire::{
    CONTINUATION, HEADERS,
    hpack::{Decoder, is_plain},
    player::Player,
    vector::{self, Speaker as Says},
};

/// Plays a client against our server, of which `app` is the part above.
async fn serve<F: Future>(name: &str, app: impl FnOnce(Session) -> F) -> F::Output {
    let (cart, stock, held, provider) = support::pair();
    let (near, far) = tokio::io::duplex(256 << 10);
    let server = Server::builder(held.clone(), provider.clone()).build();
    let credential = ambient_core::Credentials::credential(&*held, &cart).unwrap();
    let accepted = Accepted::any_of([stock.clone()]);
    let trust = ambient_core::Credentials::trust(&*held);
    let config = ambient_tls::client_config(&provider, &credential, &trust, accepted).unwrap();
    let played = async {
        let nobody = "10.0.2.2".try_into().unwrap();
        let tls = TlsConnector::from(config).connect(nobody, near).await.unwrap();
        let mut player = Player::new(tls, Says::Client);
        player.play("preface").await;
        player.play(name).await;
        player
    };
    let served = async {
        let session = server.accept(far, &stock).await.unwrap();
        app(session).await
    };
    // The player's connection stays until the app has seen what it wants to see.
    let (_player, outcome) = timeout(DEADLINE, async { tokio::join!(played, served) }).await.expect("an end");
    outcome
}

/// Plays a server against our pool, which `app` uses.
async fn ask<F: Future>(name: &str, app: impl FnOnce(Asker) -> F) -> F::Output {
    let (cart, stock, held, provider) = support::pair();
    let (near, far) = tokio::io::duplex(256 << 10);
    let credential = ambient_core::Credentials::credential(&*held, &stock).unwrap();
    let trust = ambient_core::Credentials::trust(&*held);
    let config = ambient_tls::server_config(&provider, &credential, &trust, Accepted::AnyTrusted).unwrap();
    let once = Arc::new(Once(Mutex::new(Some(near))));
    let asker = Asker {
        pool: Pool::builder(once, held.clone(), provider).build(),
        speaker: Speaker::new("cart-0", cart),
        stock,
    };
    let played = async {
        let tls = TlsAcceptor::from(config).accept(far).await.unwrap();
        let mut player = Player::new(tls, Says::Server);
        player.play("preface").await;
        player.play(name).await;
        player
    };
    let (mut player, outcome) = timeout(DEADLINE, async { tokio::join!(played, app(asker)) }).await.expect("an end");
    player.close().await;
    outcome
}

/// Reaches the player once; whoever dials again reaches nobody.
struct Once(Mutex<Option<DuplexStream>>);

impl Dial for Once {
    fn dial<'a>(&'a self, _: &'a Speaker, _: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
        let near = self.0.lock().unwrap().take();
        Box::pin(async move { Ok(Box::new(near.ok_or(io::ErrorKind::ConnectionRefused)?) as BoxedIo) })
    }
}

/// A pool, and who speaks.
#[derive(Clone)]
struct Asker {
    pool: Pool,
    speaker: Speaker,
    stock: Identity,
}

impl Asker {
    async fn connect(&self) -> Result<Stream, ConnectError> {
        self.connect_with("10.0.2.2:8080", &[]).await
    }

    async fn connect_saying(&self, words: &mut (impl AsyncRead + Unpin)) -> Result<Stream, NotConnected> {
        let peer = "10.0.2.2:15008".parse().unwrap();
        let destination = Destination::new(peer, "10.0.2.2:8080".parse().unwrap(), [self.stock.clone()]);
        self.pool.connect_with(&self.speaker, &destination, words).await
    }

    async fn connect_with(&self, authority: &str, headers: &[(&'static str, &str)]) -> Result<Stream, ConnectError> {
        let peer = "10.0.2.2:15008".parse().unwrap();
        let mut destination = Destination::new(peer, authority.parse().unwrap(), [self.stock.clone()]);
        for (name, value) in headers {
            destination.headers.insert(*name, value.parse().unwrap());
        }
        self.pool.connect(&self.speaker, &destination).await
    }
}

/// Drives a session, and passes on its requests.
fn requests(mut session: Session) -> mpsc::UnboundedReceiver<Request> {
    let (tell, requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(request) = session.next().await {
            if tell.send(request).is_err() {
                // Answers are still on their way.
                while session.next().await.is_some() {}
            }
        }
    });
    requests
}

async fn accept(requests: &mut mpsc::UnboundedReceiver<Request>) -> Stream {
    requests.recv().await.unwrap().accept(HeaderMap::new()).unwrap()
}

async fn hear(stream: &mut (impl AsyncReadExt + Unpin), words: &str) {
    let mut got = vec![0; words.len()];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&got), words);
}

/// What comes until the end, which is a good one.
async fn hear_all(stream: &mut (impl AsyncReadExt + Unpin), words: &str) {
    let mut got = String::new();
    stream.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, words);
}

async fn say(stream: &mut (impl AsyncWriteExt + Unpin), words: &str) {
    stream.write_all(words.as_bytes()).await.unwrap();
}

/// Reads to an end that must be no good one, and says which.
async fn cut(stream: &mut Stream, sent: &str) -> StreamError {
    let mut got = Vec::new();
    let error = stream.read_to_end(&mut got).await.unwrap_err();
    assert!(sent.as_bytes().starts_with(&got), "{got:?}");
    StreamError::of(&error).unwrap_or_else(|| panic!("{error:?}")).clone()
}

const BAGGAGE: &str = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=cart,service.name=cart,service.version=v1";
const FORWARDED: &str = "for=\"10.0.1.7:43210\";host=web.shop.svc.cluster.local";
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
const ANSWER_BAGGAGE: &str = "k8s.namespace.name=shop,service.name=web";

#[tokio::test]
async fn connect_with_all_headers() {
    serve("connect-ipv4", |session| async {
        let mut requests = requests(session);
        let request = requests.recv().await.unwrap();
        assert_eq!(request.authority().to_string(), "10.0.2.2:8080");
        assert_eq!(request.headers()["baggage"], BAGGAGE);
        assert_eq!(request.headers()["forwarded"], FORWARDED);
        assert_eq!(request.headers()["traceparent"], TRACEPARENT);
        let mut headers = HeaderMap::new();
        headers.insert("baggage", ANSWER_BAGGAGE.parse().unwrap());
        let mut stream = request.accept(headers).unwrap();
        hear(&mut stream, "ping").await;
        say(&mut stream, "pong").await;
        hear_all(&mut stream, "").await;
        stream.shutdown().await.unwrap();
        (requests, stream)
    })
    .await;
    ask("connect-ipv4", |asker| async move {
        let headers = [("baggage", BAGGAGE), ("forwarded", FORWARDED), ("traceparent", TRACEPARENT)];
        let mut stream = asker.connect_with("10.0.2.2:8080", &headers).await.unwrap();
        assert_eq!(stream.headers()["baggage"], ANSWER_BAGGAGE);
        say(&mut stream, "ping").await;
        hear(&mut stream, "pong").await;
        stream.shutdown().await.unwrap();
        hear_all(&mut stream, "").await;
    })
    .await;
}

/// Nothing is said either way.
async fn empty(name: &str, authority: &str, headers: &[(&'static str, &str)]) {
    serve(name, |session| async {
        let mut requests = requests(session);
        let request = requests.recv().await.unwrap();
        assert_eq!(request.authority().to_string(), authority);
        for (name, value) in headers {
            assert_eq!(request.headers()[*name], value);
        }
        let mut stream = request.accept(HeaderMap::new()).unwrap();
        hear_all(&mut stream, "").await;
        stream.shutdown().await.unwrap();
        (requests, stream)
    })
    .await;
}

#[tokio::test]
async fn connect_to_other_forms_of_authority() {
    for (name, authority, headers) in [
        ("connect-ipv6", "[fd00:10::2]:8080", &[][..]),
        (
            "connect-hostname",
            "web.shop.svc.cluster.local:80",
            &[("x-forwarded-network", "west")],
        ),
    ] {
        empty(name, authority, headers).await;
        ask(name, |asker| async move {
            let mut stream = asker.connect_with(authority, headers).await.unwrap();
            stream.shutdown().await.unwrap();
            hear_all(&mut stream, "").await;
        })
        .await;
    }
}

#[tokio::test]
async fn what_http2_allows_between_is_understood() {
    empty("continuation", "10.0.2.2:8080", &[("traceparent", TRACEPARENT)]).await;
    empty("extension-frame", "10.0.2.2:8080", &[]).await;
    serve("ping", |session| async { requests(session) }).await;
}

#[tokio::test]
async fn refusals() {
    for (name, status, elsewhere) in [
        ("refused-401", StatusCode::UNAUTHORIZED, false),
        ("refused-503", StatusCode::SERVICE_UNAVAILABLE, true),
        ("refused-418", StatusCode::IM_A_TEAPOT, false),
    ] {
        serve(name, |session| async move {
            let mut requests = requests(session);
            requests.recv().await.unwrap().refuse(status);
            requests
        })
        .await;
        let error = ask(name, |asker| async move { asker.connect().await.unwrap_err() }).await;
        assert_eq!(error.refused_status(), Some(status), "{error:?}");
        assert_eq!(error.may_retry_elsewhere(), elsewhere, "{error:?}");
    }
}

#[tokio::test]
async fn a_refusal_may_have_a_body() {
    let error = ask("refused-with-body", |asker| async move { asker.connect().await.unwrap_err() }).await;
    assert_eq!(error.refused_status(), Some(StatusCode::SERVICE_UNAVAILABLE), "{error:?}");
}

#[tokio::test]
async fn malformed_requests() {
    for name in ["malformed-method", "malformed-no-port", "malformed-port-zero"] {
        let mut requests = serve(name, |session| async { requests(session) }).await;
        assert!(requests.try_recv().is_err(), "{name}: nobody is asked");
    }
    // This one is followed by a good one, which finds the tunnel as it was.
    empty("malformed-scheme-and-path", "10.0.2.2:8080", &[]).await;
}

#[tokio::test]
async fn data_and_padding() {
    serve("data", |session| async {
        let mut requests = requests(session);
        let mut stream = accept(&mut requests).await;
        hear(&mut stream, "one two three").await;
        say(&mut stream, "one two three").await;
        hear_all(&mut stream, " four").await;
        say(&mut stream, " four").await;
        stream.shutdown().await.unwrap();
        (requests, stream)
    })
    .await;
}

#[tokio::test]
async fn each_side_may_end_first() {
    serve("half-close-by-client", |session| async {
        let mut requests = requests(session);
        let mut stream = accept(&mut requests).await;
        hear_all(&mut stream, "question").await;
        say(&mut stream, "answer").await;
        say(&mut stream, ", and the end").await;
        stream.shutdown().await.unwrap();
        (requests, stream)
    })
    .await;
    ask("half-close-by-client", |asker| async move {
        let mut stream = asker.connect().await.unwrap();
        say(&mut stream, "question").await;
        stream.shutdown().await.unwrap();
        hear_all(&mut stream, "answer, and the end").await;
    })
    .await;
    serve("half-close-by-server", |session| async {
        let mut requests = requests(session);
        let mut stream = accept(&mut requests).await;
        say(&mut stream, "all of it").await;
        stream.shutdown().await.unwrap();
        hear_all(&mut stream, "thanks, and the end").await;
        requests
    })
    .await;
    ask("half-close-by-server", |asker| async move {
        let mut stream = asker.connect().await.unwrap();
        hear_all(&mut stream, "all of it").await;
        say(&mut stream, "thanks").await;
        say(&mut stream, ", and the end").await;
        stream.shutdown().await.unwrap();
        (asker, stream)
    })
    .await;
}

#[tokio::test]
async fn other_ways_to_end_in_good_order() {
    ask("stop-sending", |asker| async move {
        let mut stream = asker.connect().await.unwrap();
        // The reset has come before anything is read.
        tokio::time::sleep(Duration::from_millis(50)).await;
        hear_all(&mut stream, "all of it").await;
        assert!(stream.write_all(b"more").await.is_err(), "nobody wants it");
    })
    .await;
    serve("trailers-of-client", |session| async {
        let mut requests = requests(session);
        let mut stream = accept(&mut requests).await;
        hear_all(&mut stream, "question").await;
        say(&mut stream, "answer").await;
        stream.shutdown().await.unwrap();
        (requests, stream)
    })
    .await;
    ask("trailers-of-server", |asker| async move {
        let mut stream = asker.connect().await.unwrap();
        say(&mut stream, "question").await;
        stream.shutdown().await.unwrap();
        hear_all(&mut stream, "answer").await;
    })
    .await;
    ask("informational", |asker| async move {
        let mut stream = asker.connect().await.unwrap();
        hear_all(&mut stream, "").await;
        stream.shutdown().await.unwrap();
        (asker, stream)
    })
    .await;
}

#[tokio::test]
async fn no_reset_looks_like_an_end() {
    serve("reset-by-client", |session| async {
        let mut requests = requests(session);
        for expected in RESETS {
            let error = cut(&mut accept(&mut requests).await, "half of it").await;
            assert!(matches!(error, StreamError::Reset { code } if code == expected), "{error:?}");
        }
    })
    .await;
    ask("reset-by-server", |asker| async move {
        for expected in RESETS {
            let error = cut(&mut asker.connect().await.unwrap(), "half of it").await;
            assert!(matches!(error, StreamError::Reset { code } if code == expected), "{error:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn what_fails_is_reset_with_connect_error() {
    serve("failed-by-server", |session| async {
        let mut requests = requests(session);
        let mut stream = accept(&mut requests).await;
        say(&mut stream, "half of it").await;
        // What was not sent yet may go with the stream.
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(stream);
        requests
    })
    .await;
    ask("failed-by-client", |asker| async move {
        let mut stream = asker.connect().await.unwrap();
        say(&mut stream, "half of it").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(stream);
        asker
    })
    .await;
    serve("failed-by-client", |session| async {
        let mut requests = requests(session);
        let error = cut(&mut accept(&mut requests).await, "half of it").await;
        assert!(matches!(error, StreamError::Reset { code: 10 }), "{error:?}");
    })
    .await;
}

#[tokio::test]
async fn resets_instead_of_an_answer() {
    let error = ask("reset-before-answer", |asker| async move { asker.connect().await.unwrap_err() }).await;
    assert!(matches!(error, ConnectError::Reset { code: 2, .. }), "{error:?}");
    assert!(!error.may_retry_elsewhere(), "the request may have been served");
    ask("refused-stream", |asker| async move {
        // The pool may have asked again by itself already.
        let mut stream = match asker.connect().await {
            Ok(stream) => stream,
            Err(error) => {
                assert!(error.may_retry_elsewhere(), "{error:?}");
                asker.connect().await.unwrap()
            }
        };
        stream.shutdown().await.unwrap();
        hear_all(&mut stream, "").await;
    })
    .await;
}

#[tokio::test]
async fn a_graceful_end() {
    serve("goaway-graceful", |mut session| async move {
        let mut stream = session.next().await.unwrap().accept(HeaderMap::new()).unwrap();
        // The answer leaves while somebody drives the session.
        assert!(timeout(Duration::from_millis(50), session.next()).await.is_err());
        session.graceful_shutdown();
        let requests = requests(session);
        hear(&mut stream, "still here").await;
        say(&mut stream, "so am I").await;
        hear_all(&mut stream, "").await;
        stream.shutdown().await.unwrap();
        (requests, stream)
    })
    .await;
    ask("goaway-graceful", |asker| async move {
        let mut stream = asker.connect().await.unwrap();
        say(&mut stream, "still here").await;
        hear(&mut stream, "so am I").await;
        // New streams go elsewhere, and here there is nothing else.
        let error = asker.connect().await.unwrap_err();
        assert!(error.may_retry_elsewhere(), "{error:?}");
        stream.shutdown().await.unwrap();
        hear_all(&mut stream, "").await;
    })
    .await;
}

#[tokio::test]
async fn streams_beyond_a_goaway_were_not_looked_at() {
    ask("goaway-immediate", |asker| async move {
        let mut stream = asker.connect().await.unwrap();
        let error = asker.connect().await.unwrap_err();
        assert!(error.may_retry_elsewhere(), "{error:?}");
        hear(&mut stream, "goes on").await;
        stream.shutdown().await.unwrap();
        hear_all(&mut stream, "").await;
    })
    .await;
}

#[tokio::test]
async fn a_goaway_with_an_error_loses_the_tunnel() {
    let mut stream = ask("goaway-error", |asker| async move { asker.connect().await.unwrap() }).await;
    let error = timeout(DEADLINE, cut(&mut stream, "")).await.unwrap();
    let StreamError::Lost { source } = &error else {
        panic!("{error:?}")
    };
    assert!(matches!(source, TunnelLost::Protocol { by_peer: true, code: 11 }), "{error:?}");
}

#[tokio::test]
async fn data_before_the_answer() {
    serve("optimistic-data", |session| async {
        let mut requests = requests(session);
        let request = requests.recv().await.unwrap();
        // It came before anything was decided, and waits.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut stream = request.accept(HeaderMap::new()).unwrap();
        hear_all(&mut stream, "early bird").await;
        say(&mut stream, "early bird").await;
        stream.shutdown().await.unwrap();
        (requests, stream)
    })
    .await;
    serve("optimistic-data-refused", |session| async {
        let mut requests = requests(session);
        requests.recv().await.unwrap().refuse(StatusCode::UNAUTHORIZED);
        requests
    })
    .await;
    ask("optimistic-data", |asker| async move {
        let mut stream = asker.connect_saying(&mut &b"early bird"[..]).await.unwrap();
        hear_all(&mut stream, "early bird").await;
    })
    .await;
    ask("optimistic-data-refused", |asker| async move {
        let (mut app, mut client) = tokio::io::duplex(64);
        say(&mut app, "early bird").await;
        let refused = asker.connect_saying(&mut client).await.unwrap_err();
        assert_eq!(refused.reason.refused_status(), Some(StatusCode::UNAUTHORIZED));
        assert!(!refused.reason.may_retry_elsewhere() && refused.early == "early bird");
    })
    .await;
}

#[test]
fn every_vector_is_well_formed_specified_and_used() {
    let (this, specification) = (include_str!("wire_vectors.rs"), include_str!("../SPEC.md"));
    let names = vector::names();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        assert!(this.contains(&format!("\"{name}\"")) || name == "preface", "{name} is not used");
        assert!(specification.contains(&format!("`{name}`")), "SPEC.md does not name {name}");
        for step in vector::read(&name) {
            let Some(frame) = step.frame() else { continue };
            if matches!(frame.kind, HEADERS | CONTINUATION) {
                assert!(
                    is_plain(&frame.payload),
                    "{name}: {}: its headers are not plain literals",
                    step.title
                );
                for (field, value) in Decoder::default().decode(&frame.payload) {
                    assert!(!field.is_empty() && !value.is_empty(), "{name}: {}", step.title);
                }
            }
        }
    }
}

/// The codes of `reset-by-client` and `reset-by-server`, in order.
const RESETS: [u32; 4] = [0, 2, 8, 10];

/// For each vector.
const DEADLINE: Duration = Duration::from_secs(20);
