//! The tunnel's engine against another implementation of HTTP/2, the `h2` crate, at either end.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use ambient_core::{Credentials, Identity};
use ambient_hbone::{BoxFuture, BoxedIo, Destination, Dial, Pool, Server, Session, Speaker, Stream};
use ambient_tls::{Accepted, client_config, server_config};
use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use proptest::prelude::*;
use rustls::{crypto::CryptoProvider, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::{Notify, mpsc},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use self::support::Held;

mod support;

/// Who calls, who is called, and what both hold.
struct World {
    cart: Identity,
    stock: Identity,
    held: Arc<Held>,
    provider: Arc<CryptoProvider>,
}

impl World {
    fn new() -> Self {
        let (cart, stock, held, provider) = support::pair();
        Self {
            cart,
            stock,
            held,
            provider,
        }
    }
}

/// Both halves of a stream as `h2` has them.
struct Theirs {
    send: SendStream<Bytes>,
    recv: RecvStream,
}

async fn write_all(send: &mut SendStream<Bytes>, mut bytes: Bytes) -> Result<(), h2::Error> {
    while !bytes.is_empty() {
        send.reserve_capacity(bytes.len());
        match poll_fn(|cx| send.poll_capacity(cx)).await {
            Some(room) => send.send_data(bytes.split_to(room?.min(bytes.len())), false)?,
            None => return Err(Reason::INTERNAL_ERROR.into()),
        }
    }
    Ok(())
}

/// All that `h2` receives, and how it ended.
async fn read_all(recv: &mut RecvStream) -> (Vec<u8>, Result<(), h2::Error>) {
    let mut all = Vec::new();
    while let Some(data) = recv.data().await {
        match data {
            Ok(data) => {
                let _ = recv.flow_control().release_capacity(data.len());
                all.extend_from_slice(&data);
            }
            Err(e) => return (all, Err(e)),
        }
    }
    (all, Ok(()))
}

// Our server, their client.

async fn our_server(world: &World, io: DuplexStream) -> mpsc::Receiver<ambient_hbone::Request> {
    let server = Server::builder(world.held.clone(), world.provider.clone()).build();
    let stock = world.stock.clone();
    let (tell, requests) = mpsc::channel(16);
    tokio::spawn(async move {
        let mut session: Session = server.accept(io, &stock).await.unwrap();
        while let Some(request) = session.next().await {
            tell.send(request).await.unwrap();
        }
    });
    requests
}

async fn their_client(world: &World, io: DuplexStream, builder: &h2::client::Builder) -> h2::client::SendRequest<Bytes> {
    let credential = world.held.credential(&world.cart).unwrap();
    let config = client_config(
        &world.provider,
        &credential,
        &world.held.trust(),
        Accepted::any_of([world.stock.clone()]),
    )
    .unwrap();
    let name = ServerName::try_from("10.0.2.2").unwrap();
    let tls = TlsConnector::from(config).connect(name, io).await.unwrap();
    let (requests, connection) = builder.handshake(tls).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    requests.ready().await.unwrap()
}

fn connect() -> Request<()> {
    Request::builder().method(Method::CONNECT).uri("10.0.2.2:8080").body(()).unwrap()
}

/// A stream from their client to our server, as both have it.
async fn theirs_to_ours(world: &World, builder: &h2::client::Builder, pipe: usize) -> (Theirs, Stream, h2::client::SendRequest<Bytes>) {
    let (near, far) = duplex(pipe);
    let (mut requests, mut client) = tokio::join!(our_server(world, far), their_client(world, near, builder));
    let (response, send) = client.send_request(connect(), false).unwrap();
    let request = requests.recv().await.unwrap();
    assert_eq!(request.authority().to_string(), "10.0.2.2:8080");
    let ours = request.accept(HeaderMap::new()).unwrap();
    // Keeps taking requests, so that the session is driven.
    tokio::spawn(async move { while requests.recv().await.is_some() {} });
    let recv = response.await.unwrap().into_body();
    (Theirs { send, recv }, ours, client)
}

// Our client, their server.

struct TheirServer {
    world: Arc<World>,
    builder: h2::server::Builder,
    pipe: usize,
    requests: mpsc::Sender<(Request<RecvStream>, h2::server::SendResponse<Bytes>)>,
    leave: Arc<Notify>,
}

impl Dial for TheirServer {
    fn dial<'a>(&'a self, _: &'a Speaker, _: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
        Box::pin(async move {
            let (near, far) = duplex(self.pipe);
            let (world, builder, requests, leave) = (self.world.clone(), self.builder.clone(), self.requests.clone(), self.leave.clone());
            tokio::spawn(async move {
                let credential = world.held.credential(&world.stock).unwrap();
                let config = server_config(&world.provider, &credential, &world.held.trust(), Accepted::AnyTrusted).unwrap();
                let tls = TlsAcceptor::from(config).accept(far).await.unwrap();
                let mut connection = builder.handshake::<_, Bytes>(tls).await.unwrap();
                loop {
                    tokio::select! {
                        accepted = connection.accept() => match accepted {
                            Some(Ok(request)) => requests.send(request).await.unwrap(),
                            _ => return,
                        },
                        () = leave.notified() => connection.graceful_shutdown(),
                    }
                }
            });
            Ok(Box::new(near) as BoxedIo)
        })
    }
}

struct Ours {
    pool: Pool,
    speaker: Speaker,
    destination: Destination,
    requests: mpsc::Receiver<(Request<RecvStream>, h2::server::SendResponse<Bytes>)>,
    leave: Arc<Notify>,
}

impl Ours {
    fn new(builder: h2::server::Builder, pipe: usize) -> Self {
        let world = Arc::new(World::new());
        let (tell, requests) = mpsc::channel(16);
        let leave = Arc::new(Notify::new());
        let dial = TheirServer {
            world: world.clone(),
            builder,
            pipe,
            requests: tell,
            leave: leave.clone(),
        };
        let (peer, authority) = ("10.0.2.2:15008".parse().unwrap(), "10.0.2.2:8080".parse().unwrap());
        Self {
            pool: Pool::builder(Arc::new(dial), world.held.clone(), world.provider.clone()).build(),
            speaker: Speaker::new("cart-0", world.cart.clone()),
            destination: Destination::new(peer, authority, [world.stock.clone()]),
            requests,
            leave,
        }
    }

    async fn accept(&mut self) -> Theirs {
        let (request, mut respond) = self.requests.recv().await.unwrap();
        assert_eq!(
            (request.method(), request.uri().to_string().as_str()),
            (&Method::CONNECT, "10.0.2.2:8080")
        );
        let send = respond.send_response(Response::new(()), false).unwrap();
        Theirs {
            send,
            recv: request.into_body(),
        }
    }

    async fn stream(&mut self) -> (Stream, Theirs) {
        let pool = (self.pool.clone(), self.speaker.clone(), self.destination.clone());
        let ours = tokio::spawn(async move { pool.0.connect(&pool.1, &pool.2).await.unwrap() });
        let theirs = self.accept().await;
        (ours.await.unwrap(), theirs)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    Finish,
    Reset,
}

#[derive(Clone, Debug)]
struct Script {
    chunks: [Vec<usize>; 2],
    endings: [Ending; 2],
    pipe: usize,
    window: u32,
    frame: u32,
}

fn script() -> impl Strategy<Value = Script> {
    let chunks = || proptest::collection::vec(prop_oneof![1..300_usize, 1..90_000_usize], 0..8);
    let ending = || prop_oneof![4 => Just(Ending::Finish), 1 => Just(Ending::Reset)];
    (
        chunks(),
        chunks(),
        ending(),
        ending(),
        100..200_000_usize,
        1_000..200_000_u32,
        16_384..100_000_u32,
    )
        .prop_map(|(a, b, ending_a, ending_b, pipe, window, frame)| Script {
            chunks: [a, b],
            endings: [ending_a, ending_b],
            pipe,
            window,
            frame,
        })
}

fn bytes(chunks: &[usize]) -> Vec<u8> {
    chunks
        .iter()
        .enumerate()
        .flat_map(|(value, n)| std::iter::repeat_n(value as u8, *n))
        .collect()
}

/// Both sides write, end as they are told to, and read to the end.
async fn play(script: &Script, ours: Stream, theirs: Theirs) {
    let (mut read, mut write) = ours.into_split();
    let Theirs { mut send, mut recv } = theirs;
    let we_write = async {
        for (value, n) in script.chunks[0].iter().enumerate() {
            if write.write_all(&vec![value as u8; *n]).await.is_err() {
                return;
            }
        }
        if script.endings[0] == Ending::Finish {
            let _ = write.shutdown().await;
        }
        drop(write);
    };
    let they_write = async {
        for (value, n) in script.chunks[1].iter().enumerate() {
            if write_all(&mut send, vec![value as u8; *n].into()).await.is_err() {
                return;
            }
        }
        match script.endings[1] {
            Ending::Finish => drop(send.send_data(Bytes::new(), true)),
            Ending::Reset => send.send_reset(Reason::CONNECT_ERROR),
        }
    };
    let mut all = Vec::new();
    let ((), (), ended, (received, their_end)) = tokio::join!(we_write, they_write, read.read_to_end(&mut all), read_all(&mut recv));
    let sent = [bytes(&script.chunks[0]), bytes(&script.chunks[1])];
    assert!(sent[1].starts_with(&all) && sent[0].starts_with(&received));
    match script.endings {
        [Ending::Finish, Ending::Finish] => {
            assert!(ended.is_ok() && their_end.is_ok(), "{ended:?} {their_end:?}");
            assert_eq!([received, all], sent);
        }
        _ => {
            // Whoever saw an end has all that was sent.
            assert!(ended.is_err() || all == sent[1], "{ended:?}");
            assert!(their_end.is_err() || received == sent[0], "{their_end:?}");
            assert!(ended.is_err() || their_end.is_err(), "a reset is seen");
        }
    }
}

/// A runtime for one script.
fn run<F: Future<Output = ()>>(play: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), play).await.expect("it does not hang") });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn their_client_and_our_server_agree(script in script()) {
        run(async {
            let mut builder = h2::client::Builder::new();
            builder.initial_window_size(script.window).max_frame_size(script.frame);
            let (theirs, ours, _client) = theirs_to_ours(&World::new(), &builder, script.pipe).await;
            play(&script, ours, theirs).await;
        });
    }

    #[test]
    fn our_client_and_their_server_agree(script in script()) {
        run(async {
            let mut builder = h2::server::Builder::new();
            builder.initial_window_size(script.window).max_frame_size(script.frame);
            let (ours, theirs) = Ours::new(builder, script.pipe).stream().await;
            play(&script, ours, theirs).await;
        });
    }
}

#[tokio::test]
async fn their_limit_of_streams_makes_others_wait_or_go_elsewhere() {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(2);
    let mut ours = Ours::new(builder, 64 << 10);
    let (first, mut one) = ours.stream().await;
    let (_second, _two) = ours.stream().await;
    // The tunnel is full, and the pool makes another.
    let (mut third, mut three) = ours.stream().await;
    third.write_all(b"x").await.unwrap();
    assert_eq!(three.recv.data().await.unwrap().unwrap(), "x");
    drop(first);
    let end = one.recv.data().await.unwrap().unwrap_err();
    assert_eq!(end.reason(), Some(Reason::CONNECT_ERROR));
}

#[tokio::test]
async fn their_goaway_lets_streams_finish_and_new_ones_go_elsewhere() {
    let mut ours = Ours::new(h2::server::Builder::new(), 64 << 10);
    let (mut first, mut one) = ours.stream().await;
    ours.leave.notify_one();
    // Once the leave has come, the next stream is in another tunnel; until then either serves.
    let (mut second, mut two) = ours.stream().await;
    for (ours, theirs) in [(&mut first, &mut one), (&mut second, &mut two)] {
        ours.write_all(b"still here").await.unwrap();
        ours.shutdown().await.unwrap();
        assert_eq!(read_all(&mut theirs.recv).await.0, b"still here");
        theirs.send.send_data(Bytes::from_static(b"good"), true).unwrap();
        let mut answer = String::new();
        ours.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "good");
    }
}

#[tokio::test]
async fn their_answers_are_passed_up_as_they_are() {
    for status in [400, 401, 403, 404, 429, 503, 599] {
        let mut ours = Ours::new(h2::server::Builder::new(), 64 << 10);
        let (pool, speaker, destination) = (ours.pool.clone(), ours.speaker.clone(), ours.destination.clone());
        let connecting = tokio::spawn(async move { pool.connect_with(&speaker, &destination, &mut &b"early"[..]).await });
        let (_request, mut respond) = ours.requests.recv().await.unwrap();
        let status = StatusCode::from_u16(status).unwrap();
        respond
            .send_response(Response::builder().status(status).body(()).unwrap(), true)
            .unwrap();
        let refused = connecting.await.unwrap().unwrap_err();
        assert_eq!((refused.reason.refused_status(), &refused.early[..]), (Some(status), &b"early"[..]));
        assert_eq!(refused.reason.may_retry_elsewhere(), status == 503);
    }
}

#[tokio::test]
async fn their_reset_instead_of_an_answer_says_whether_others_may_be_asked() {
    for (reason, elsewhere) in [
        (Reason::REFUSED_STREAM, true),
        (Reason::CANCEL, false),
        (Reason::INTERNAL_ERROR, false),
    ] {
        let mut ours = Ours::new(h2::server::Builder::new(), 64 << 10);
        let (pool, speaker, destination) = (ours.pool.clone(), ours.speaker.clone(), ours.destination.clone());
        let connecting = tokio::spawn(async move { pool.connect_with(&speaker, &destination, &mut &b"early"[..]).await });
        // What was refused is asked once more, of the same peer.
        for _ in 0..=u32::from(elsewhere) {
            let (mut request, mut respond) = ours.requests.recv().await.unwrap();
            assert_eq!(request.body_mut().data().await.unwrap().unwrap(), "early");
            respond.send_reset(reason);
        }
        let failed = connecting.await.unwrap().unwrap_err();
        assert_eq!(
            (failed.reason.may_retry_elsewhere(), &failed.early[..]),
            (elsewhere, &b"early"[..]),
            "{failed}"
        );
    }
}

#[tokio::test]
async fn early_data_is_delivered_once_and_in_order() {
    let mut ours = Ours::new(h2::server::Builder::new(), 64 << 10);
    let (mut app, mut client) = duplex(1 << 20);
    let (pool, speaker, destination) = (ours.pool.clone(), ours.speaker.clone(), ours.destination.clone());
    let early: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
    app.write_all(&early).await.unwrap();
    let connecting = tokio::spawn(async move {
        let mut stream = pool.connect_with(&speaker, &destination, &mut client).await.unwrap();
        ambient_hbone::relay(&mut client, &mut stream, &ambient_hbone::RelayLimits::default()).await
    });
    let (request, mut respond) = ours.requests.recv().await.unwrap();
    let mut recv = request.into_body();
    let mut seen = 0;
    while seen < 64 << 10 {
        let data = recv.data().await.unwrap().unwrap();
        assert!(early[seen..].starts_with(&data));
        seen += data.len();
        recv.flow_control().release_capacity(data.len()).unwrap();
    }
    assert_eq!(seen, 64 << 10, "no more before the answer");
    let mut send = respond.send_response(Response::new(()), false).unwrap();
    app.shutdown().await.unwrap();
    let (rest, end) = read_all(&mut recv).await;
    assert!(end.is_ok() && rest == early[seen..]);
    send.send_data(Bytes::new(), true).unwrap();
    let tally = connecting.await.unwrap();
    assert_eq!((tally.a_to_b, tally.b_to_a), (early.len() as u64, 0), "{tally:?}");
}

/// As Envoy ends a connection whose application has ended first: nothing is missing, and the client has its end.
#[tokio::test]
async fn their_end_with_nothing_more_wanted_is_an_end() {
    for more in [false, true] {
        let mut ours = Ours::new(h2::server::Builder::new(), 64 << 10);
        let (mut stream, mut theirs) = ours.stream().await;
        let (mut app, mut client) = duplex(64 << 10);
        let relaying =
            tokio::spawn(async move { ambient_hbone::relay(&mut client, &mut stream, &ambient_hbone::RelayLimits::default()).await });
        app.write_all(b"question").await.unwrap();
        assert_eq!(theirs.recv.data().await.unwrap().unwrap(), "question");
        theirs.send.send_data(Bytes::from_static(b"the answer"), true).unwrap();
        let mut heard = [0; 10];
        app.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"the answer");
        // What `h2` has not sent by then it throws away.
        theirs.send.send_reset(Reason::NO_ERROR);
        assert_eq!(app.read(&mut heard).await.unwrap(), 0);
        // Longer than a reset takes.
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!relaying.is_finished(), "who was told the end has not ended itself");
        if more {
            app.write_all(b"more").await.unwrap();
        } else {
            app.shutdown().await.unwrap();
        }
        let tally = relaying.await.unwrap();
        assert_eq!((tally.a_to_b, tally.b_to_a), (8, 10), "{tally:?}");
        match tally.end {
            ambient_hbone::relay::End::Orderly { first } => assert!(!more && first == ambient_hbone::relay::Side::B, "{more} {first:?}"),
            // Bytes that nobody takes are no good end.
            failed => assert!(more && failed.to_string().contains("NO_ERROR"), "{more} {failed}"),
        }
    }
}
