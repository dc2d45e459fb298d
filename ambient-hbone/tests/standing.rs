//! Which tunnels stand, how many, and until when, with servers that say what they like.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod raw;
mod support;
#[allow(dead_code, reason = "a player of vectors stands there too")]
mod wire;

use std::{
    future::Future,
    io::{self, Write},
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Waker},
    time::Duration,
};

use ambient_core::{Credentials, Observer, observe::Event};
use ambient_hbone::{BoxFuture, BoxedIo, ConnectError, Dial, Limits, Phase, Pool, Server, Speaker, Stream};
use ambient_tls::{Accepted, server_config};
use http::HeaderMap;
use raw::{Raw, Servers, World, answer, frame, request};
use rustls::version::TLS13;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    sync::mpsc::UnboundedReceiver,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use wire::{END_STREAM, GOAWAY, HEADERS, PING, SETTINGS, WINDOW_UPDATE};

/// Whatever is to happen has happened by then.
const DEADLINE: Duration = Duration::from_secs(60);

const STREAMS: u16 = 3;
const WINDOW: u16 = 4;

fn setting(id: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

/// No streams beyond this one.
fn goaway(last: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), [0; 4]].concat())
}

fn pool(world: &World, dial: impl Dial) -> Pool {
    Pool::builder(Arc::new(dial), world.held.clone(), world.provider.clone()).build()
}

fn connecting(world: &World, pool: &Pool) -> JoinHandle<Result<Stream, ConnectError>> {
    let (pool, speaker, destination) = (pool.clone(), world.speaker(), world.destination());
    tokio::spawn(async move { pool.connect(&speaker, &destination).await })
}

async fn connect(world: &World, pool: &Pool) -> Result<Stream, ConnectError> {
    timeout(DEADLINE, connecting(world, pool)).await.unwrap().unwrap()
}

/// The next tunnel of a server, behind settings and with an answer to its first request.
async fn answering(dialled: &mut UnboundedReceiver<Raw>, words: &[u8]) -> Raw {
    let mut raw = timeout(DEADLINE, dialled.recv()).await.unwrap().unwrap();
    assert_eq!(raw.heard.next_of(HEADERS).await.unwrap().stream, 1);
    raw.send(&[words, &answer(1, "200")].concat()).await;
    raw
}

async fn until_none_stands(pool: &Pool) {
    let none = async {
        while !format!("{pool:?}").contains("tunnels: 0") {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(DEADLINE, none).await.unwrap();
}

/// Reaches servers that say this along with the end of their handshake.
struct Early {
    acceptor: TlsAcceptor,
    words: Vec<u8>,
    dials: Arc<AtomicUsize>,
}

impl Early {
    fn new(world: &World, words: Vec<u8>) -> (Self, Arc<AtomicUsize>) {
        let credential = world.held.credential(&world.stock).unwrap();
        let asking = server_config(&world.provider, &credential, &world.held.trust(), Accepted::AnyTrusted).unwrap();
        // Whoever asks for no certificate may speak first.
        let mut config = rustls::ServerConfig::builder_with_provider(world.provider.clone())
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(asking.cert_resolver.clone());
        config.alpn_protocols = asking.alpn_protocols.clone();
        config.send_half_rtt_data = true;
        let dials = Arc::new(AtomicUsize::new(0));
        let early = Self {
            acceptor: Arc::new(config).into(),
            words,
            dials: dials.clone(),
        };
        (early, dials)
    }
}

impl Dial for Early {
    fn dial<'a>(&'a self, _: &'a Speaker, _: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
        self.dials.fetch_add(1, Ordering::Relaxed);
        let (near, far) = duplex(256 << 10);
        let words = self.words.clone();
        let accepting = self.acceptor.accept_with(far, move |tls| tls.writer().write_all(&words).unwrap());
        tokio::spawn(async move {
            let mut tls = accepting.await.unwrap();
            // To its end, or to ours.
            let _ = tls.read_to_end(&mut Vec::new()).await;
        });
        Box::pin(async move { Ok(Box::new(near) as BoxedIo) })
    }
}

#[tokio::test]
async fn a_server_that_takes_no_streams_is_dialled_once() {
    let world = World::new();
    for words in [
        setting(STREAMS, 0),
        [frame(SETTINGS, 0, 0, &[]), goaway(0)].concat(),
        [frame(SETTINGS, 0, 0, &[]), goaway(0x7fff_ffff)].concat(),
    ] {
        let (early, dials) = Early::new(&world, words);
        let pool = pool(&world, early);
        for asked in 1..4 {
            let error = connect(&world, &pool).await.unwrap_err();
            assert!(matches!(error, ConnectError::Unprocessed { .. }), "{error:?}");
            assert!(error.may_retry_elsewhere());
            assert_eq!(dials.load(Ordering::Relaxed), asked);
        }
        until_none_stands(&pool).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_whose_server_has_said_goaway_ends_with_its_last_stream() {
    let world = World::new();
    let (servers, mut dialled) = world.servers();
    let pool = pool(&world, servers);
    let (stream, mut raw) = tokio::join!(connect(&world, &pool), answering(&mut dialled, &[]));
    let mut stream = stream.unwrap();
    raw.send(&[goaway(1), frame(0, END_STREAM, 1, b"bye")].concat()).await;
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    assert!(format!("{pool:?}").contains("tunnels: 1"));
    let began = Instant::now();
    stream.shutdown().await.unwrap();
    drop(stream);
    assert!(raw.heard.next_of(GOAWAY).await.is_some());
    assert!(
        raw.heard.next().await.is_none(),
        "and it ends the connection, which the server did not"
    );
    drop(raw);
    until_none_stands(&pool).await;
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_is_of_no_use_any_more_ends_when_another_is_made() {
    let world = World::new();
    let (servers, mut dialled) = world.servers();
    let pool = pool(&world, servers);
    let (stream, mut first) = tokio::join!(connect(&world, &pool), answering(&mut dialled, &[]));
    drop(stream);
    first.send(&[setting(STREAMS, 0), frame(PING, 0, 0, &[0; 8])].concat()).await;
    while first.heard.next().await.is_none_or(|heard| heard.kind != PING) {}
    assert!(format!("{pool:?}").contains("tunnels: 1"));
    let began = Instant::now();
    let (stream, _second) = tokio::join!(connect(&world, &pool), answering(&mut dialled, &[]));
    let _stands = stream.unwrap();
    assert!(first.heard.next_of(GOAWAY).await.is_some());
    assert!(first.heard.next().await.is_none() && began.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_connection_stands_until_its_server_has_taken_what_was_said_last() {
    for closes in [true, false] {
        let world = World::new();
        let (servers, mut dialled) = world.servers();
        let pool = pool(&world, servers);
        let (stream, mut raw) = tokio::join!(connect(&world, &pool), answering(&mut dialled, &[]));
        let mut stream = stream.unwrap();
        raw.send(&frame(0, END_STREAM, 1, b"")).await;
        stream.write_all(&[7; 60_000]).await.unwrap();
        stream.shutdown().await.unwrap();
        drop(stream);
        pool.retire(&world.speaker().key);
        while raw.heard.next().await.is_some() {}
        let began = Instant::now();
        // What it still says meets nobody, and no reset.
        for _ in 0..3 {
            sleep(Duration::from_secs(1)).await;
            raw.send(&frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1, 0])).await;
        }
        assert!(format!("{pool:?}").contains("tunnels: 1"));
        if closes {
            raw.to.shutdown().await.unwrap();
        }
        until_none_stands(&pool).await;
        let stood = began.elapsed().as_secs();
        assert_eq!(stood, if closes { 3 } else { 10 }, "closes: {closes}");
    }
}

/// Ends at once while it waits for its server.
#[tokio::test(start_paused = true)]
async fn whose_speaker_is_forgotten_waits_for_nobody() {
    let world = World::new();
    let (servers, mut dialled) = world.servers();
    let pool = pool(&world, servers);
    let (stream, mut raw) = tokio::join!(connect(&world, &pool), answering(&mut dialled, &[]));
    drop(stream);
    pool.retire(&world.speaker().key);
    while raw.heard.next().await.is_some() {}
    let began = Instant::now();
    pool.forget(&world.speaker().key);
    until_none_stands(&pool).await;
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_nobody_holds_keeps_its_place_until_it_has_ended() {
    let world = World::new();
    let (servers, mut dialled) = world.servers();
    let given_up = Arc::new(GivenUp::default());
    let pool = Pool::builder(Arc::new(servers), world.held.clone(), world.provider.clone())
        .observer(given_up.clone())
        .build();
    // One stream at a time, and not a byte in it.
    let narrow = [setting(STREAMS, 1), setting(WINDOW, 0)].concat();
    let (stream, mut first) = tokio::join!(connect(&world, &pool), answering(&mut dialled, &narrow));
    let mut stream = stream.unwrap();
    // Heard by then.
    first
        .send(&[frame(PING, 0, 0, &[0; 8]), frame(0, END_STREAM, 1, b"")].concat())
        .await;
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    stream.write_all(b"last words").await.unwrap();
    stream.shutdown().await.unwrap();
    drop(stream);
    let (stream, second) = tokio::join!(connect(&world, &pool), answering(&mut dialled, &[]));
    let _stands = (stream.unwrap(), second);
    // A server that lives and takes nothing: in the end it is reset.
    let began = Instant::now();
    loop {
        if let Ok(heard) = timeout(Duration::from_secs(3), first.heard.next_of(wire::RST_STREAM)).await {
            assert_eq!(heard.unwrap().stream, 1);
            break;
        }
        first.send(&frame(PING, wire::ACK, 0, &[0; 8])).await;
    }
    let took = began.elapsed();
    assert!(took > Duration::from_secs(110) && took < Duration::from_secs(130), "{took:?}");
    assert_eq!(*given_up.0.lock().unwrap(), [(world.stock.to_string(), 1)], "and it is told of");
}

#[tokio::test(start_paused = true)]
async fn a_server_tells_of_what_nobody_took_of_it_too() {
    let world = World::new();
    let given_up = Arc::new(GivenUp::default());
    let server = Server::builder(world.held.clone(), world.provider.clone())
        .observer(given_up.clone())
        .build();
    let (near, far) = duplex(256 << 10);
    let serving = async {
        let mut session = server.accept(far, &world.stock).await.unwrap();
        let mut stream = session.next().await.unwrap().accept(HeaderMap::new()).unwrap();
        stream.write_all(b"last words").await.unwrap();
        stream.shutdown().await.unwrap();
        drop(stream);
        session.next().await.is_none()
    };
    let client = async {
        let mut raw = world.client(near).await;
        raw.greet().await;
        raw.send(&[setting(WINDOW, 0), request(1, 0)].concat()).await;
        let mut reset = false;
        while let Some(heard) = raw.heard.next().await {
            reset |= heard.kind == wire::RST_STREAM;
            if heard.kind == PING {
                raw.send(&frame(PING, wire::ACK, 0, &heard.payload)).await;
            }
            if reset {
                return;
            }
        }
    };
    tokio::join!(serving, client);
    assert_eq!(*given_up.0.lock().unwrap(), [(world.cart.to_string(), 1)]);
}

/// Of whom it was told that they take nothing, and of how many streams.
#[derive(Default)]
struct GivenUp(Mutex<Vec<(String, usize)>>);

impl Observer for GivenUp {
    fn observe(&self, event: &Event<'_>) {
        if let Event::StreamsGivenUp { peer, streams } = event {
            self.0.lock().unwrap().push((peer.to_string(), *streams));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_never_left_may_be_made_elsewhere() {
    let world = World::new();
    let (servers, mut dialled) = world.servers();
    let pool = pool(&world, servers);
    let (stream, raw) = tokio::join!(connect(&world, &pool), answering(&mut dialled, &[]));
    let _stands = stream.unwrap();
    // It lives, and reads nothing.
    let Raw { heard, mut to } = raw;
    tokio::spawn(async move {
        loop {
            to.write_all(&frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])).await.unwrap();
            to.flush().await.unwrap();
            sleep(Duration::from_secs(3)).await;
        }
    });
    let (speaker, destination) = (world.speaker(), world.destination());
    for _ in 0..20 {
        for _ in 0..1000 {
            // Asked for, and taken back.
            let mut connecting = pin!(pool.connect(&speaker, &destination));
            assert!(connecting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        sleep(Duration::from_millis(1)).await;
    }
    let error = connect(&world, &pool).await.unwrap_err();
    assert!(matches!(error, ConnectError::Timeout { phase: Phase::Place, .. }), "{error:?}");
    assert!(error.may_retry_elsewhere());
    assert!(format!("{pool:?}").contains("tunnels: 1"), "nobody is broken off for that");
    drop(heard);
}

/// Panics at first, and reaches servers later.
struct Panics(Servers, AtomicBool);

impl Dial for Panics {
    fn dial<'a>(&'a self, speaker: &'a Speaker, peer: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
        assert!(self.1.swap(true, Ordering::Relaxed), "the first dial panics");
        self.0.dial(speaker, peer)
    }
}

/// Panics when it hears of the first tunnel.
#[derive(Default)]
struct Startles(AtomicBool);

impl Observer for Startles {
    fn observe(&self, event: &Event<'_>) {
        if let Event::TunnelOpened { .. } = event {
            assert!(self.0.swap(true, Ordering::Relaxed), "the first tunnel startles");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_panics_leaves_nothing_in_the_pool() {
    let world = World::new();
    for dial in [true, false] {
        let (servers, mut dialled) = world.servers();
        let panics = Panics(servers, AtomicBool::new(!dial));
        let observer = Arc::new(Startles(AtomicBool::new(dial)));
        let pool = Pool::builder(Arc::new(panics), world.held.clone(), world.provider.clone())
            .observer(observer)
            .build();
        let began = Instant::now();
        connect(&world, &pool).await.unwrap_err();
        until_none_stands(&pool).await;
        // The first of them met nobody, and is not told of.
        let (stream, _raw) = tokio::join!(connect(&world, &pool), answering(&mut dialled, &[]));
        stream.unwrap();
        assert!(began.elapsed() < Duration::from_secs(1), "dial: {dial}");
    }
}

#[tokio::test]
async fn limits_may_be_endless() {
    let world = World::new();
    let (servers, mut dialled) = world.servers();
    let mut limits = Limits::default();
    (limits.dial, limits.handshake, limits.answer) = (Duration::MAX, Duration::MAX, Duration::MAX);
    (limits.idle, limits.dead_peer) = (Duration::MAX, Duration::MAX);
    let pool = Pool::builder(Arc::new(servers), world.held.clone(), world.provider.clone())
        .limits(limits)
        .build();
    let (stream, _raw) = tokio::join!(connect(&world, &pool), answering(&mut dialled, &[]));
    stream.unwrap();
}
