//! Pools and servers, end to end over pipes in memory.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ambient_core::{Identity, Observer, observe::Event};
use ambient_hbone::{
    AcceptError, BoxFuture, BoxedIo, ConnectError, Destination, Dial, Limits, Phase, Pool, Server, Session, Speaker, SpeakerKey, Stream,
    StreamError, TunnelLost,
};
use ambient_tls::PeerError;
use http::{HeaderMap, StatusCode};
use support::{Ca, Held, identity, provider};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What the far end does with each session.
type Serve = Arc<dyn Fn(Session) -> BoxFuture<'static, ()> + Send + Sync>;

/// A server at the other end of pipes.
struct Pipes {
    server: Server,
    identity: Identity,
    serve: Serve,
    /// Bytes that a pipe holds.
    size: AtomicUsize,
    dials: AtomicUsize,
    refusals: Arc<Mutex<Vec<AcceptError>>>,
}

impl Dial for Pipes {
    fn dial<'a>(&'a self, _: &'a Speaker, _: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
        Box::pin(async move {
            self.dials.fetch_add(1, Ordering::Relaxed);
            let (near, far) = tokio::io::duplex(self.size.load(Ordering::Relaxed));
            let (server, identity, serve, refusals) = (
                self.server.clone(),
                self.identity.clone(),
                self.serve.clone(),
                self.refusals.clone(),
            );
            tokio::spawn(async move {
                match server.accept(far, &identity).await {
                    Ok(session) => serve(session).await,
                    Err(e) => refusals.lock().unwrap().push(e),
                }
            });
            Ok(Box::new(near) as BoxedIo)
        })
    }
}

/// A pair of ends with one CA.
struct Pair {
    pool: Pool,
    pipes: Arc<Pipes>,
    ca: Ca,
    held: Arc<Held>,
    speaker: Speaker,
    destination: Destination,
}

impl Pair {
    fn new(limits: &Limits, serve: impl Fn(Session) -> BoxFuture<'static, ()> + Send + Sync + 'static) -> Self {
        let (cart, stock, held) = (identity("cart"), identity("stock"), Arc::new(Held::default()));
        let ca = Ca::new("cluster.local");
        held.trust_in(&ca);
        held.hold(ca.issue(&cart));
        held.hold(ca.issue(&stock));
        let server = Server::builder(held.clone(), provider()).limits(limits.clone()).build();
        let pipes = Arc::new(Pipes {
            server,
            identity: stock.clone(),
            serve: Arc::new(serve),
            size: AtomicUsize::new(256 << 10),
            dials: AtomicUsize::new(0),
            refusals: Arc::default(),
        });
        let pool = Pool::builder(pipes.clone(), held.clone(), provider())
            .limits(limits.clone())
            .build();
        let destination = Destination {
            peer: "10.0.2.2:15008".parse().unwrap(),
            authority: "10.0.2.2:8080".parse().unwrap(),
            accepted: vec![stock],
            headers: HeaderMap::new(),
            early_data: true,
            ample: false,
        };
        let speaker = Speaker {
            key: SpeakerKey::new("cart-0"),
            identity: cart,
        };
        Self {
            pool,
            pipes,
            ca,
            held,
            speaker,
            destination,
        }
    }

    async fn connect(&self) -> Result<Stream, ConnectError> {
        self.pool.connect(&self.speaker, &self.destination).await
    }

    fn dials(&self) -> usize {
        self.pipes.dials.load(Ordering::Relaxed)
    }
}

/// Serves each stream with a function of its own task.
fn each<F>(serve: impl Fn(Stream) -> F + Clone + Send + Sync + 'static) -> impl Fn(Session) -> BoxFuture<'static, ()> + Send + Sync
where
    F: Future<Output = ()> + Send + 'static,
{
    move |mut session| {
        let serve = serve.clone();
        Box::pin(async move {
            while let Some(request) = session.next().await {
                let stream = request.accept(HeaderMap::new()).unwrap();
                tokio::spawn(serve(stream));
            }
        })
    }
}

async fn echo(stream: Stream) {
    let (mut from, mut to) = stream.into_split();
    if tokio::io::copy(&mut from, &mut to).await.is_ok() {
        to.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn bytes_come_back_and_both_sides_half_close() {
    let pair = Pair::new(&Limits::default(), each(echo));
    let mut stream = pair.connect().await.unwrap();
    let data: Vec<u8> = (0..3_000_000_u32).map(|i| i as u8).collect();
    let (mut from, mut to) = stream_parts(&mut stream);
    let sent = async {
        to.write_all(&data).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let (_, read) = tokio::join!(sent, from.read_to_end(&mut back));
    read.unwrap();
    assert!(back == data);
    assert_eq!(pair.dials(), 1);
}

fn stream_parts(stream: &mut Stream) -> (tokio::io::ReadHalf<&mut Stream>, tokio::io::WriteHalf<&mut Stream>) {
    tokio::io::split(stream)
}

#[tokio::test]
async fn narrow_pipes_only_slow_it_down() {
    let pair = Pair::new(&Limits::default(), each(echo));
    for size in [50, 1000, 20_000] {
        pair.pool.forget(&pair.speaker.key);
        pair.pipes.size.store(size, Ordering::Relaxed);
        let mut all = tokio::task::JoinSet::new();
        for n in 0..8 {
            let stream = pair.connect().await.unwrap();
            all.spawn(async move {
                let data: Vec<u8> = (0..5_000 * (n + 1)).map(|i| (i * n) as u8).collect();
                let (mut from, mut to) = stream.into_split();
                let mut back = Vec::new();
                let sent = async {
                    to.write_all(&data).await.unwrap();
                    to.shutdown().await.unwrap();
                };
                let (_, read) = tokio::join!(sent, from.read_to_end(&mut back));
                read.unwrap();
                assert!(back == data);
            });
        }
        tokio::time::timeout(Duration::from_secs(60), all.join_all()).await.unwrap();
    }
}

#[tokio::test]
async fn the_server_may_end_first() {
    let pair = Pair::new(
        &Limits::default(),
        each(|mut stream: Stream| async move {
            stream.write_all(b"all I have to say").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"and I");
        }),
    );
    let mut stream = pair.connect().await.unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "all I have to say");
    stream.write_all(b"and I").await.unwrap();
    stream.shutdown().await.unwrap();
}

#[tokio::test]
async fn headers_and_authority_arrive_both_ways() {
    let mut pair = Pair::new(&Limits::default(), |mut session| {
        Box::pin(async move {
            assert_eq!(session.peer().as_str(), "spiffe://cluster.local/ns/shop/sa/cart");
            while let Some(request) = session.next().await {
                assert_eq!(request.authority().to_string(), "web.shop.svc:80");
                assert_eq!(request.headers()["baggage"], "k8s.namespace.name=shop");
                let mut headers = HeaderMap::new();
                headers.insert("baggage", "service.name=web".parse().unwrap());
                tokio::spawn(echo(request.accept(headers).unwrap()));
            }
        })
    });
    pair.destination.authority = "web.shop.svc:80".parse().unwrap();
    pair.destination
        .headers
        .insert("baggage", "k8s.namespace.name=shop".parse().unwrap());
    let stream = pair.connect().await.unwrap();
    assert_eq!(stream.headers()["baggage"], "service.name=web");
}

#[tokio::test]
async fn a_refusal_is_passed_up_as_it_is() {
    for (status, elsewhere) in [(401, false), (503, true), (400, false), (418, false)] {
        let pair = Pair::new(&Limits::default(), move |mut session| {
            Box::pin(async move {
                while let Some(request) = session.next().await {
                    request.refuse(StatusCode::from_u16(status).unwrap());
                }
            })
        });
        let refused = pair.connect().await.unwrap_err();
        assert_eq!(refused.refused_status().unwrap().as_u16(), status);
        assert_eq!(refused.may_retry_elsewhere(), elsewhere, "{status}");
        assert!(pair.connect().await.is_err());
        assert_eq!(pair.dials(), 1, "a refusal does not end the tunnel");
    }
}

#[tokio::test]
async fn a_peer_who_is_somebody_else_is_refused() {
    let mut pair = Pair::new(&Limits::default(), each(echo));
    pair.destination.accepted = vec![identity("till")];
    let refused = pair.connect().await.unwrap_err();
    let ConnectError::WrongPeer {
        source: PeerError::WrongPeer { id, expected },
        ..
    } = &refused
    else {
        panic!("{refused:?}")
    };
    assert_eq!(id.as_str(), "spiffe://cluster.local/ns/shop/sa/stock");
    assert_eq!(&expected[..], [identity("till")]);
    assert!(
        refused.to_string().contains("sa/stock") && refused.to_string().contains("sa/till"),
        "{refused}"
    );
    pair.destination.accepted = vec![];
    assert!(matches!(pair.connect().await, Err(ConnectError::WrongPeer { .. })));
}

#[tokio::test]
async fn a_speaker_of_a_foreign_ca_is_refused() {
    let pair = Pair::new(&Limits::default(), each(echo));
    let foreign = Ca::new("cluster.local");
    pair.held.hold(foreign.issue(&pair.speaker.identity));
    let refused = pair.connect().await.unwrap_err();
    assert!(matches!(refused, ConnectError::Handshake { .. }), "{refused:?}");
    assert!(refused.to_string().contains("alert"), "{refused}");
    let refusals = pair.pipes.refusals.lock().unwrap();
    assert!(matches!(refusals[0], AcceptError::Peer(PeerError::Chain { .. })), "{refusals:?}");
}

#[tokio::test]
async fn without_a_credential_nobody_speaks() {
    let mut pair = Pair::new(&Limits::default(), each(echo));
    pair.speaker.identity = identity("till");
    assert!(matches!(pair.connect().await, Err(ConnectError::NoCredential { .. })));
    let mut old = pair.ca.issue(&identity("till"));
    old.not_after = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    pair.held.hold(old);
    assert!(matches!(pair.connect().await, Err(ConnectError::NoCredential { .. })));
    assert_eq!(pair.dials(), 0);
}

#[tokio::test]
async fn a_dropped_stream_is_a_reset_and_never_an_end() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let pair = Pair::new(
        &Limits::default(),
        each(move |mut stream: Stream| {
            let tell = tell.clone();
            async move {
                let mut got = Vec::new();
                tell.send(stream.read_to_end(&mut got).await.map(|_| got)).unwrap();
            }
        }),
    );
    let mut stream = pair.connect().await.unwrap();
    stream.write_all(b"half of it").await.unwrap();
    drop(stream);
    let error = told.recv().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(
        matches!(StreamError::of(&error), Some(StreamError::Reset { code: 10 })),
        "{error:?}"
    );

    let mut stream = pair.connect().await.unwrap();
    stream.write_all(b"all of it").await.unwrap();
    stream.shutdown().await.unwrap();
    let _read = stream; // what was shut arrives whole
    assert_eq!(told.recv().await.unwrap().unwrap(), b"all of it");
}

#[tokio::test]
async fn who_waits_no_more_for_an_answer_is_known_before_one_is_given() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let pair = Arc::new(Pair::new(&Limits::default(), move |mut session| {
        let tell = tell.clone();
        Box::pin(async move {
            while let Some(mut request) = session.next().await {
                let tell = tell.clone();
                tokio::spawn(async move {
                    tell.send(None).unwrap();
                    let why = request.gone().await;
                    tell.send(Some((why, request.accept(HeaderMap::new()).is_err()))).unwrap();
                });
            }
        })
    }));
    let waiting = pair.clone();
    let waiting = tokio::spawn(async move { waiting.connect().await });
    assert!(told.recv().await.unwrap().is_none());
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(told.try_recv().is_err(), "it waits still");
    waiting.abort();
    let (why, refused) = told.recv().await.unwrap().unwrap();
    assert!(matches!(why, StreamError::Reset { .. }) && refused, "{why:?}");
}

#[tokio::test]
async fn the_peers_reset_is_read_as_one() {
    let pair = Pair::new(&Limits::default(), each(|stream: Stream| async move { drop(stream) }));
    let mut stream = pair.connect().await.unwrap();
    let error = stream.read(&mut [0; 10]).await.unwrap_err();
    assert!(matches!(StreamError::of(&error), Some(StreamError::Reset { .. })), "{error:?}");
    let error = stream.write_all(b"x").await.unwrap_err();
    assert!(matches!(StreamError::of(&error), Some(StreamError::Reset { .. })), "{error:?}");
}

#[tokio::test]
async fn a_lost_tunnel_ends_its_streams_with_the_reason() {
    let pair = Pair::new(&Limits::default(), |mut session| {
        Box::pin(async move {
            let mut stream = session.next().await.unwrap().accept(HeaderMap::new()).unwrap();
            let mut byte = [0; 1];
            tokio::select! {
                _ = session.next() => {}
                _ = stream.read(&mut byte) => {}
            }
            session.abort();
        })
    });
    let mut stream = pair.connect().await.unwrap();
    stream.write_all(b"x").await.unwrap();
    let error = stream.read(&mut [0; 10]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(matches!(StreamError::of(&error), Some(StreamError::Lost { .. })), "{error:?}");
}

#[tokio::test]
async fn two_speakers_never_share_a_tunnel() {
    let pair = Pair::new(&Limits::default(), each(echo));
    let _first = pair.connect().await.unwrap();
    let _again = pair.connect().await.unwrap();
    assert_eq!(pair.dials(), 1);
    // The same identity, another pod.
    let other = Speaker {
        key: SpeakerKey::new("cart-1"),
        identity: pair.speaker.identity.clone(),
    };
    let _second = pair.pool.connect(&other, &pair.destination).await.unwrap();
    assert_eq!(pair.dials(), 2);
    // The same pod, another identity.
    pair.held.hold(pair.ca.issue(&identity("till")));
    let other = Speaker {
        key: pair.speaker.key.clone(),
        identity: identity("till"),
    };
    let _third = pair.pool.connect(&other, &pair.destination).await.unwrap();
    assert_eq!(pair.dials(), 3);
    // The same speaker, another list.
    let mut destination = pair.destination.clone();
    destination.accepted.push(identity("till"));
    let _fourth = pair.pool.connect(&pair.speaker, &destination).await.unwrap();
    assert_eq!(pair.dials(), 4);
    destination.accepted.reverse();
    let _same = pair.pool.connect(&pair.speaker, &destination).await.unwrap();
    assert_eq!(pair.dials(), 4, "the order of the list does not matter");
}

#[tokio::test]
async fn a_new_credential_makes_a_new_tunnel_and_the_old_one_goes_on() {
    let pair = Pair::new(&Limits::default(), each(echo));
    let mut old = pair.connect().await.unwrap();
    pair.held.hold(pair.ca.issue(&pair.speaker.identity));
    let mut new = pair.connect().await.unwrap();
    assert_eq!(pair.dials(), 2);
    for stream in [&mut old, &mut new] {
        stream.write_all(b"still here").await.unwrap();
        let mut back = [0; 10];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"still here");
    }
}

#[tokio::test]
async fn a_full_tunnel_gets_a_second_and_is_used_again() {
    let mut limits = Limits::default();
    limits.streams = 2;
    limits.tunnels = 2;
    let pair = Pair::new(&limits, each(echo));
    let streams = [pair.connect().await.unwrap(), pair.connect().await.unwrap()];
    let _third = pair.connect().await.unwrap();
    assert_eq!(pair.dials(), 2);
    let _fourth = pair.connect().await.unwrap();
    assert!(matches!(pair.connect().await, Err(ConnectError::Full { tunnels: 2, .. })));
    drop(streams);
    let _fifth = pair.connect().await.unwrap();
    assert_eq!(pair.dials(), 2);
}

#[tokio::test]
async fn a_busy_pair_spreads_over_tunnels_before_one_is_full() {
    let mut limits = Limits::default();
    limits.spread_from = 2;
    let pair = Pair::new(&limits, each(echo));
    let mut streams = vec![pair.connect().await.unwrap()];
    assert_eq!(pair.dials(), 1);
    // Waits for nobody, and makes a tunnel for those who come later.
    streams.push(pair.connect().await.unwrap());
    while pair.dials() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for _ in 0..20 {
        streams.push(pair.connect().await.unwrap());
    }
    assert_eq!(pair.dials(), 2, "and no third");
    for mut stream in streams {
        stream.write_all(b"still here").await.unwrap();
        stream.read_exact(&mut [0; 10]).await.unwrap();
    }
}

#[tokio::test]
async fn stalled_readers_slow_nobody() {
    let pair = Pair::new(
        &Limits::default(),
        each(|stream: Stream| async move {
            let (mut from, mut to) = stream.into_split();
            let mut word = [0; 4];
            from.read_exact(&mut word).await.unwrap();
            if &word == b"pour" {
                let _ = tokio::io::copy(&mut tokio::io::repeat(7), &mut to).await;
            } else {
                to.write_all(&word).await.unwrap();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            }
        }),
    );
    let mut stalled = Vec::new();
    for _ in 0..40 {
        let mut stream = pair.connect().await.unwrap();
        stream.write_all(b"pour").await.unwrap();
        stalled.push(stream);
    }
    let mut stream = pair.connect().await.unwrap();
    stream.write_all(b"echo").await.unwrap();
    let mut back = [0; 4];
    let all = async {
        stream.read_exact(&mut back).await.unwrap();
        for _ in 0..200 {
            stream.write_all(b"ping").await.unwrap();
            stream.read_exact(&mut back).await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.unwrap();
    assert_eq!(pair.dials(), 1);
    // A stalled stream was only waiting.
    stalled[0].read_exact(&mut back).await.unwrap();
    assert_eq!(back, [7; 4]);
}

#[tokio::test]
async fn a_tunnel_survives_small_frames_that_nobody_reads() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let pair = Pair::new(
        &Limits::default(),
        each(move |stream: Stream| {
            let tell = tell.clone();
            async move { tell.send(stream).unwrap() }
        }),
    );
    let mut stream = pair.connect().await.unwrap();
    for _ in 0..20_000 {
        stream.write_all(b"x").await.unwrap();
        tokio::task::yield_now().await;
    }
    stream.shutdown().await.unwrap();
    let mut far = told.recv().await.unwrap();
    let mut got = Vec::new();
    far.read_to_end(&mut got).await.unwrap();
    assert_eq!(got.len(), 20_000);
}

#[tokio::test]
async fn forgetting_a_speaker_ends_its_tunnels_only() {
    let pair = Pair::new(&Limits::default(), each(echo));
    let mut gone = pair.connect().await.unwrap();
    let other = Speaker {
        key: SpeakerKey::new("cart-1"),
        identity: pair.speaker.identity.clone(),
    };
    let mut stays = pair.pool.connect(&other, &pair.destination).await.unwrap();
    pair.pool.forget(&pair.speaker.key);
    let error = gone.read(&mut [0; 1]).await.unwrap_err();
    assert!(
        matches!(StreamError::of(&error), Some(StreamError::Lost { source: TunnelLost::Ended })),
        "{error:?}"
    );
    stays.write_all(b"x").await.unwrap();
    stays.read_exact(&mut [0; 1]).await.unwrap();
}

#[tokio::test]
async fn retiring_a_speaker_lets_its_streams_finish_and_no_more() {
    let pair = Pair::new(&Limits::default(), each(echo));
    let mut first = pair.connect().await.unwrap();
    assert_eq!(first.peer(), Some(identity("stock").spiffe_id()));
    pair.pool.retire(&pair.speaker.key);
    let mut second = pair.connect().await.unwrap();
    assert_eq!(pair.dials(), 2, "a tunnel that retires takes nothing new");
    for stream in [&mut first, &mut second] {
        stream.write_all(b"x").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut back = String::new();
        stream.read_to_string(&mut back).await.unwrap();
        assert_eq!(back, "x");
    }
}

#[tokio::test(start_paused = true)]
async fn draining_lets_streams_finish_and_cuts_at_the_deadline() {
    let pair = Pair::new(&Limits::default(), each(echo));
    let mut stream = pair.connect().await.unwrap();
    let pool = pair.pool.clone();
    let drained = tokio::spawn(async move { pool.drain(Duration::from_secs(30)).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(matches!(pair.connect().await, Err(ConnectError::Closed)));
    stream.write_all(b"x").await.unwrap();
    stream.read_exact(&mut [0; 1]).await.unwrap();
    assert!(!drained.is_finished());
    drop(stream);
    tokio::time::timeout(Duration::from_secs(2), drained).await.unwrap().unwrap();

    let pair = Pair::new(&Limits::default(), each(echo));
    let mut stream = pair.connect().await.unwrap();
    pair.pool.drain(Duration::from_secs(3)).await;
    assert!(stream.read(&mut [0; 1]).await.is_err());
}

/// Reaches nobody, and never says so.
struct Blackhole(AtomicUsize);

impl Dial for Blackhole {
    fn dial<'a>(&'a self, _: &'a Speaker, _: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::pending())
    }
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_for_a_dead_address_fail_by_one_deadline() {
    let pair = Pair::new(&Limits::default(), each(echo));
    let blackhole = Arc::new(Blackhole(AtomicUsize::new(0)));
    let pool = Pool::builder(blackhole.clone(), pair.held.clone(), provider()).build();
    let start = tokio::time::Instant::now();
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let (pool, speaker, destination) = (pool.clone(), pair.speaker.clone(), pair.destination.clone());
        waiting.spawn(async move { pool.connect(&speaker, &destination).await });
    }
    while let Some(outcome) = waiting.join_next().await {
        let error = outcome.unwrap().unwrap_err();
        assert!(matches!(error, ConnectError::Timeout { phase: Phase::Dial, .. }), "{error:?}");
        assert!(error.may_retry_elsewhere());
    }
    assert!(start.elapsed() < Duration::from_secs(11));
    assert_eq!(blackhole.0.load(Ordering::Relaxed), 1);
    assert!(!format!("{pool:?}").contains("tunnels: 1"));
}

#[tokio::test(start_paused = true)]
async fn every_silence_has_a_deadline() {
    // Connected, but says nothing: the handshake.
    struct Mute(Mutex<Vec<tokio::io::DuplexStream>>);
    impl Dial for Mute {
        fn dial<'a>(&'a self, _: &'a Speaker, _: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
            let (near, far) = tokio::io::duplex(1 << 20);
            self.0.lock().unwrap().push(far);
            Box::pin(async move { Ok(Box::new(near) as BoxedIo) })
        }
    }
    let pair = Pair::new(&Limits::default(), each(echo));
    let pool = Pool::builder(Arc::new(Mute(Mutex::default())), pair.held.clone(), provider()).build();
    let error = pool.connect(&pair.speaker, &pair.destination).await.unwrap_err();
    assert!(
        matches!(
            error,
            ConnectError::Timeout {
                phase: Phase::Handshake,
                ..
            }
        ),
        "{error:?}"
    );

    // A server's side of the same.
    let (near, far) = tokio::io::duplex(1 << 20);
    let error = pair.pipes.server.accept(far, &pair.destination.accepted[0]).await.unwrap_err();
    assert!(matches!(error, AcceptError::Timeout { .. }), "{error:?}");
    drop(near);

    // CONNECT without an answer.
    let pair = Pair::new(&Limits::default(), |mut session| {
        Box::pin(async move {
            let mut kept = Vec::new();
            while let Some(request) = session.next().await {
                kept.push(request);
            }
        })
    });
    let error = pair.connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::Timeout { phase: Phase::Answer, .. }), "{error:?}");
    assert!(!error.may_retry_elsewhere());
}

#[tokio::test(start_paused = true)]
async fn a_dead_peer_is_noticed_and_a_silent_living_one_is_not_cut() {
    let pair = Pair::new(&Limits::default(), each(echo));
    let mut stream = pair.connect().await.unwrap();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    stream.write_all(b"x").await.unwrap();
    stream.read_exact(&mut [0; 1]).await.unwrap();

    let pair = Pair::new(&Limits::default(), |mut session| {
        Box::pin(async move {
            let _stream = session.next().await.unwrap().accept(HeaderMap::new()).unwrap();
            // Nobody drives the session any more; one turn for the answer to leave.
            let _ = tokio::time::timeout(Duration::from_millis(10), session.next()).await;
            std::future::pending::<()>().await;
        })
    });
    let mut stream = pair.connect().await.unwrap();
    let start = tokio::time::Instant::now();
    let error = stream.read(&mut [0; 1]).await.unwrap_err();
    assert!(
        matches!(
            StreamError::of(&error),
            Some(StreamError::Lost {
                source: TunnelLost::PeerSilent
            })
        ),
        "{error:?}"
    );
    assert!(start.elapsed() <= Duration::from_secs(20), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn idle_tunnels_close() {
    #[derive(Default)]
    struct Seen(Mutex<Vec<String>>);
    impl Observer for Seen {
        fn observe(&self, event: &Event<'_>) {
            let text = match event {
                Event::TunnelOpened { peer, .. } => format!("opened {peer}"),
                Event::TunnelClosed { reason, .. } => format!("closed: {reason}"),
                _ => return,
            };
            self.0.lock().unwrap().push(text);
        }
    }
    let pair = Pair::new(&Limits::default(), each(echo));
    let seen = Arc::new(Seen::default());
    let pool = Pool::builder(pair.pipes.clone(), pair.held.clone(), provider())
        .observer(seen.clone())
        .build();
    let stream = pool.connect(&pair.speaker, &pair.destination).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1000)).await;
    drop(stream);
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(seen.0.lock().unwrap().len(), 1, "in use, then idle for less than the limit");
    tokio::time::sleep(Duration::from_secs(500)).await;
    assert_eq!(*seen.0.lock().unwrap(), ["opened 10.0.2.2:15008", "closed: the tunnel was closed"]);
}

#[tokio::test]
async fn without_its_pool_a_tunnel_ends_with_its_last_stream() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let mut pair = Pair::new(&Limits::default(), move |mut session| {
        let tell = tell.clone();
        Box::pin(async move {
            while let Some(request) = session.next().await {
                tokio::spawn(echo(request.accept(HeaderMap::new()).unwrap()));
            }
            tell.send(session.lost().cloned()).unwrap();
        })
    });
    let mut stream = pair.connect().await.unwrap();
    pair.pool = Pool::builder(pair.pipes.clone(), pair.held.clone(), provider()).build();
    stream.write_all(b"x").await.unwrap();
    stream.read_exact(&mut [0; 1]).await.unwrap();
    assert!(told.try_recv().is_err());
    drop(stream);
    let lost = tokio::time::timeout(Duration::from_secs(5), told.recv()).await.unwrap().unwrap();
    assert!(matches!(lost, Some(TunnelLost::Closed)), "{lost:?}");
}

#[tokio::test]
async fn after_goaway_streams_finish_and_new_ones_go_elsewhere() {
    let pair = Pair::new(&Limits::default(), |mut session| {
        Box::pin(async move {
            let mut first = true;
            while let Some(request) = session.next().await {
                tokio::spawn(echo(request.accept(HeaderMap::new()).unwrap()));
                if std::mem::take(&mut first) {
                    session.graceful_shutdown();
                }
            }
        })
    });
    let mut old = pair.connect().await.unwrap();
    for round in 0..20 {
        let mut new = pair.connect().await.unwrap();
        for stream in [&mut old, &mut new] {
            stream.write_all(b"x").await.unwrap();
            stream.read_exact(&mut [0; 1]).await.unwrap();
        }
        assert!(round < 2 || pair.dials() > 1);
    }
}

#[tokio::test]
async fn a_tunnel_in_a_tunnel() {
    // The inner server listens at the end of a stream of the outer one.
    let (inner_held, till) = (Arc::new(Held::default()), identity("till"));
    let ca = Ca::new("cluster.local");
    inner_held.trust_in(&ca);
    inner_held.hold(ca.issue(&till));
    inner_held.hold(ca.issue(&identity("cart")));
    let inner = Server::builder(inner_held.clone(), provider()).build();
    let outer = Pair::new(
        &Limits::default(),
        each(move |stream: Stream| {
            let (inner, till) = (inner.clone(), identity("till"));
            async move {
                let mut session = inner.accept(stream, &till).await.unwrap();
                while let Some(request) = session.next().await {
                    tokio::spawn(echo(request.accept(HeaderMap::new()).unwrap()));
                }
            }
        }),
    );
    struct Through(Pool, Speaker, Destination);
    impl Dial for Through {
        fn dial<'a>(&'a self, _: &'a Speaker, _: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
            Box::pin(async move {
                let stream = self.0.connect(&self.1, &self.2).await.map_err(io::Error::other)?;
                Ok(Box::new(stream) as BoxedIo)
            })
        }
    }
    let through = Through(outer.pool.clone(), outer.speaker.clone(), outer.destination.clone());
    let pool = Pool::builder(Arc::new(through), inner_held, provider()).build();
    let destination = Destination {
        accepted: vec![till],
        ..outer.destination.clone()
    };
    let mut stream = pool.connect(&outer.speaker, &destination).await.unwrap();
    stream.write_all(b"through two").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = String::new();
    stream.read_to_string(&mut back).await.unwrap();
    assert_eq!(back, "through two");
}
