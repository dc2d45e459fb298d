//! Peers that mean harm, over real TLS: they get a deadline or a bound, whoever embeds this learns why, and nobody else
//! notices.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod raw;
mod support;
#[allow(dead_code, reason = "a player of vectors stands there too")]
mod wire;

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use ambient_core::Identity;
use ambient_hbone::{
    AcceptError, BoxFuture, BoxedIo, ConnectError, Dial, Limits, Phase, Pool, Server, Session, Speaker, Stream, StreamError, TunnelLost,
};
use http::HeaderMap;
use raw::{Raw, World, answer, block, frame, request};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use wire::{ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE};

const PROTOCOL_ERROR: u32 = 0x1;
const ENHANCE_YOUR_CALM: u32 = 0xb;

/// For a CONNECT to be answered.
const ANSWER: Duration = Duration::from_secs(50);

/// Whatever is to happen has happened by then.
const DEADLINE: Duration = Duration::from_secs(60);

fn is_calm(lost: Option<&TunnelLost>) -> bool {
    let code = ENHANCE_YOUR_CALM;
    matches!(lost, Some(TunnelLost::Protocol { by_peer: false, code: lost }) if *lost == code)
}

/// Serves a session to its end with echoes, and counts the requests. Gives why it ended.
async fn echo(mut session: Session, requests: Arc<AtomicUsize>) -> Option<TunnelLost> {
    while let Some(request) = session.next().await {
        requests.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let Ok(stream) = request.accept(HeaderMap::new()) else { return };
            let (mut from, mut to) = stream.into_split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
            let _ = to.shutdown().await;
        });
    }
    session.lost().cloned()
}

/// Reaches a server over a pipe.
struct Pipe(Server, Identity);

impl Dial for Pipe {
    fn dial<'a>(&'a self, _: &'a Speaker, _: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
        let (near, far) = duplex(64 << 10);
        let (server, identity) = (self.0.clone(), self.1.clone());
        tokio::spawn(async move { echo(server.accept(far, &identity).await.unwrap(), Arc::default()).await });
        Box::pin(async move { Ok(Box::new(near) as BoxedIo) })
    }
}

/// A client by hand, and what serves it.
async fn client_of(world: &World, server: &Server) -> (Raw, JoinHandle<Option<TunnelLost>>, Arc<AtomicUsize>) {
    // Room for all answers of a turn, as a socket has it, so that what is said last is heard.
    let (near, far) = duplex(1 << 20);
    let (server, stock, requests) = (server.clone(), world.stock.clone(), Arc::new(AtomicUsize::new(0)));
    let count = requests.clone();
    let served = tokio::spawn(async move { echo(server.accept(far, &stock).await.unwrap(), count).await });
    let mut raw = world.client(near).await;
    raw.greet().await;
    (raw, served, requests)
}

async fn ask_and_hear(stream: &mut Stream) {
    let said = vec![7; 40_000];
    stream.write_all(&said).await.unwrap();
    let mut heard = vec![0; said.len()];
    stream.read_exact(&mut heard).await.unwrap();
    assert!(heard == said);
}

fn word(kind: u8, stream: u32, value: u32) -> Vec<u8> {
    frame(kind, 0, stream, &value.to_be_bytes())
}

// Clients.

/// Floods, each from its own tunnel. One is cut off; a good tunnel of the same server never notices.
#[tokio::test]
async fn who_floods_is_told_to_calm_down_and_others_go_on() {
    type Flood = fn(u32) -> Vec<u8>;
    let floods: [(&str, Flood); 9] = [
        ("PING", |_| frame(PING, 0, 0, &[0; 8]).repeat(100)),
        ("SETTINGS", |_| frame(SETTINGS, 0, 0, &[]).repeat(100)),
        ("windows that change", |n| {
            frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, n as u8].repeat(600))
        }),
        ("empty DATA", |n| match n {
            0 => request(1, 0),
            _ => frame(DATA, 0, 1, &[]).repeat(100),
        }),
        ("WINDOW_UPDATE", |n| match n {
            0 => request(1, 0),
            _ => word(WINDOW_UPDATE, 1, 1).repeat(100),
        }),
        ("frames of no known type", |_| frame(99, 0, 0, b"?").repeat(100)),
        ("CONTINUATION", |n| match n {
            0 => frame(HEADERS, 0, 1, &[]),
            _ => frame(CONTINUATION, 0, 1, &[0; 1000]),
        }),
        ("streams that are reset", |n| {
            [request(2 * n + 1, 0), word(RST_STREAM, 2 * n + 1, 8)].concat()
        }),
        ("streams that are to be reset by us", |n| {
            [request(2 * n + 1, END_STREAM), frame(DATA, 0, 2 * n + 1, b"x")].concat()
        }),
    ];
    let world = World::new();
    let server = Server::builder(world.held.clone(), world.provider.clone()).build();
    let pool = Pool::builder(
        Arc::new(Pipe(server.clone(), world.stock.clone())),
        world.held.clone(),
        world.provider.clone(),
    )
    .build();
    let mut good = pool.connect(&world.speaker(), &world.destination()).await.unwrap();
    for (what, flood) in floods {
        let (Raw { mut heard, mut to }, served, requests) = client_of(&world, &server).await;
        let flooding = tokio::spawn(async move { Raw::flood(&mut to, flood, 200_000).await });
        let told = async {
            let told = heard.next_of(GOAWAY).await.unwrap_or_else(|| panic!("{what}: it is told"));
            assert_eq!(told.code(), ENHANCE_YOUR_CALM, "{what}");
            while heard.next().await.is_some() {}
        };
        timeout(DEADLINE, async { tokio::join!(told, ask_and_hear(&mut good)) })
            .await
            .expect(what);
        let said = timeout(DEADLINE, flooding).await.expect(what).unwrap();
        assert!(said < 200_000, "{what}: nobody listens any more");
        let lost = timeout(DEADLINE, served).await.expect(what).unwrap();
        assert!(is_calm(lost.as_ref()), "{what}: {lost:?}");
        assert!(requests.load(Ordering::Relaxed) <= 1001, "{what}: it costs us little");
        ask_and_hear(&mut good).await;
    }
    assert!(format!("{server:?}").contains("sessions: 1"), "{server:?}");
}

#[tokio::test(start_paused = true)]
async fn handshakes_that_are_never_finished_end_at_the_deadline() {
    let world = World::new();
    let server = Server::builder(world.held.clone(), world.provider.clone()).build();
    let limit = Limits::default().handshake;
    let hello: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    for (what, begins) in [("nothing", &[][..]), ("a part of ClientHello", hello)] {
        let (mut near, far) = duplex(64 << 10);
        near.write_all(begins).await.unwrap();
        let began = Instant::now();
        let error = server.accept(far, &world.stock).await.unwrap_err();
        assert!(matches!(error, AcceptError::Timeout { .. }), "{what}: {error:?}");
        assert!(
            began.elapsed() >= limit && began.elapsed() < limit + Duration::from_secs(1),
            "{what}"
        );
    }
    let greeting = [PREFACE, &frame(SETTINGS, 0, 0, &[0; 600])].concat();
    for said in [0, 10, PREFACE.len(), PREFACE.len() + 5, greeting.len() - 1] {
        let (near, far) = duplex(64 << 10);
        let began = Instant::now();
        let peer = async {
            let mut raw = world.client(near).await;
            raw.send(&greeting[..said]).await;
            raw
        };
        let (_raw, accepted) = tokio::join!(peer, server.accept(far, &world.stock));
        let error = accepted.unwrap_err();
        assert!(matches!(error, AcceptError::Timeout { .. }), "{said} bytes: {error:?}");
        assert!(began.elapsed() >= limit && began.elapsed() < limit + Duration::from_secs(1));
    }
    // One byte a second keeps nothing open either.
    let (near, far) = duplex(64 << 10);
    let began = Instant::now();
    let drips = async {
        let mut raw = world.client(near).await;
        for byte in &greeting {
            sleep(Duration::from_secs(1)).await;
            if raw.to.write_all(&[*byte]).await.is_err() || raw.to.flush().await.is_err() {
                return;
            }
        }
    };
    let (accepted, ()) = tokio::join!(server.accept(far, &world.stock), drips);
    assert!(matches!(accepted, Err(AcceptError::Timeout { .. })));
    assert!(began.elapsed() < limit + Duration::from_secs(3));
    assert!(format!("{server:?}").contains("sessions: 0"));
}

/// It opens streams, asks for much, and reads nothing of it.
#[tokio::test(start_paused = true)]
async fn who_stops_reading_makes_us_keep_no_more_than_the_bounds() {
    const STREAMS: u32 = 8;
    let world = World::new();
    let mut limits = Limits::default();
    limits.streams = STREAMS;
    let most = STREAMS as usize * limits.send_buffer + (1 << 20);
    let server = Server::builder(world.held.clone(), world.provider.clone())
        .limits(limits.clone())
        .build();
    let (near, far) = duplex(64 << 10);
    let (stock, kept) = (world.stock.clone(), Arc::new(AtomicUsize::new(0)));
    let count = kept.clone();
    let served = tokio::spawn(async move {
        let mut session = server.accept(far, &stock).await.unwrap();
        while let Some(request) = session.next().await {
            let (mut stream, count) = (request.accept(HeaderMap::new()).unwrap(), count.clone());
            tokio::spawn(async move {
                while let Ok(n) = stream.write(&[7; 10_000]).await {
                    count.fetch_add(n, Ordering::Relaxed);
                }
            });
        }
        session.lost().cloned()
    });
    let mut raw = world.client(near).await;
    raw.greet().await;
    // As wide as they go, so that only the bounds of this end count.
    let mut words = frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    words.extend(word(WINDOW_UPDATE, 0, 0x7fff_0000));
    (0..STREAMS).for_each(|n| words.extend(request(2 * n + 1, 0)));
    raw.send(&words).await;
    for _ in 0..20 {
        sleep(Duration::from_secs(1)).await;
        raw.send(&frame(PING, 0, 0, &[0; 8])).await;
    }
    let held = kept.load(Ordering::Relaxed);
    assert!(held > 1 << 20 && held <= most, "{held} of {most} bytes wait");
    // It lives, for it speaks; what it asks for has an end too.
    let mut to = raw.to;
    let said = timeout(DEADLINE, Raw::flood(&mut to, |_| frame(PING, 0, 0, &[0; 8]).repeat(100), 100_000))
        .await
        .unwrap();
    assert!(said < 1000, "{said}");
    assert!(is_calm(served.await.unwrap().as_ref()));
}

/// It goes on sending to an application that does not read, beyond every window.
#[tokio::test]
async fn who_sends_more_than_its_window_loses_the_stream() {
    let world = World::new();
    let server = Server::builder(world.held.clone(), world.provider.clone()).build();
    let (near, far) = duplex(64 << 10);
    let stock = world.stock.clone();
    let (tell, mut streams) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut session = server.accept(far, &stock).await.unwrap();
        while let Some(request) = session.next().await {
            tell.send(request.accept(HeaderMap::new()).unwrap()).unwrap();
        }
    });
    let mut raw = world.client(near).await;
    raw.greet().await;
    raw.send(&[request(1, 0), request(3, 0)].concat()).await;
    let (mut stalled, mut good) = (streams.recv().await.unwrap(), streams.recv().await.unwrap());
    let window = Limits::default().stream_window as usize;
    for _ in 0..=window / 16_000 {
        raw.send(&frame(DATA, 0, 1, &[7; 16_000])).await;
    }
    let reset = timeout(DEADLINE, raw.heard.next_of(RST_STREAM)).await.unwrap().unwrap();
    assert_eq!((reset.stream, reset.code()), (1, 0x3));
    let error = stalled.read(&mut [0; 1]).await.unwrap_err();
    assert!(
        matches!(StreamError::of(&error), Some(StreamError::Reset { code: 0x3 })),
        "{error:?}"
    );
    raw.send(&frame(DATA, 0, 3, b"good")).await;
    timeout(DEADLINE, good.read_exact(&mut [0; 4])).await.unwrap().unwrap();
}

// Servers.

/// A pool, the server that it reaches first, and a stream of it that the server has accepted.
async fn with_server(world: &World) -> (Pool, Raw, Stream, mpsc::UnboundedReceiver<Raw>) {
    let (servers, mut dialled) = world.servers();
    let mut limits = Limits::default();
    // Far from the keep-alive's.
    limits.answer = ANSWER;
    let pool = Pool::builder(Arc::new(servers), world.held.clone(), world.provider.clone())
        .limits(limits)
        .build();
    let (speaker, destination) = (world.speaker(), world.destination());
    let answered = async {
        let mut raw = dialled.recv().await.unwrap();
        assert_eq!(raw.heard.next_of(HEADERS).await.unwrap().stream, 1);
        raw.send(&answer(1, "200")).await;
        raw
    };
    let (stream, raw) = timeout(DEADLINE, async { tokio::join!(pool.connect(&speaker, &destination), answered) })
        .await
        .unwrap();
    (pool, raw, stream.unwrap(), dialled)
}

fn connecting(world: &World, pool: &Pool) -> JoinHandle<Result<Stream, ConnectError>> {
    let (pool, speaker, destination) = (pool.clone(), world.speaker(), world.destination());
    tokio::spawn(async move { pool.connect(&speaker, &destination).await })
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_is_given_up() {
    for lives in [true, false] {
        let world = World::new();
        let (pool, mut raw, mut first, _dialled) = with_server(&world).await;
        let began = Instant::now();
        let waiting = connecting(&world, &pool);
        let server = tokio::spawn(async move {
            while let Some(heard) = raw.heard.next().await {
                if lives && heard.kind == PING && !heard.has(ACK) {
                    raw.send(&frame(PING, ACK, 0, &heard.payload)).await;
                }
            }
        });
        let error = waiting.await.unwrap().unwrap_err();
        assert!(!error.may_retry_elsewhere(), "{error:?}");
        let limit = if lives { ANSWER } else { Limits::default().dead_peer };
        assert!(began.elapsed() <= limit + Duration::from_secs(1), "{:?}", began.elapsed());
        if lives {
            assert!(matches!(error, ConnectError::Timeout { phase: Phase::Answer, .. }), "{error:?}");
            first.write_all(b"goes on").await.unwrap();
        } else {
            let silent = |lost: &TunnelLost| matches!(lost, TunnelLost::PeerSilent);
            assert!(matches!(&error, ConnectError::Lost { source, .. } if silent(source)), "{error:?}");
        }
        server.abort();
    }
}

#[tokio::test]
async fn an_answer_of_a_megabyte_is_not_read() {
    let world = World::new();
    let (pool, mut raw, mut first, _dialled) = with_server(&world).await;
    // A list that is too large for us, and is whole: that stream fails, and no other.
    let waiting = connecting(&world, &pool);
    assert_eq!(raw.heard.next_of(HEADERS).await.unwrap().stream, 3);
    let large = "x".repeat(10_000);
    let fields = block(&[(":status", "200"), ("a", &large), ("b", &large)]);
    let (head, rest) = fields.split_at(16_000);
    raw.send(&[frame(HEADERS, 0, 3, head), frame(CONTINUATION, END_HEADERS, 3, rest)].concat())
        .await;
    let error = timeout(DEADLINE, waiting).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, ConnectError::Reset { code: PROTOCOL_ERROR, .. }), "{error:?}");
    raw.send(&frame(DATA, 0, 1, b"good")).await;
    timeout(DEADLINE, first.read_exact(&mut [0; 4])).await.unwrap().unwrap();

    // One without an end: the tunnel is over long before a megabyte has come.
    let waiting = connecting(&world, &pool);
    assert_eq!(raw.heard.next_of(HEADERS).await.unwrap().stream, 5);
    let Raw { mut heard, mut to } = raw;
    let endless = |n| match n {
        0 => frame(HEADERS, 0, 5, &block(&[(":status", "200"), ("a", &"x".repeat(10_000))])),
        _ => frame(CONTINUATION, 0, 5, &block(&[("a", &"x".repeat(10_000))])),
    };
    let (said, told) = timeout(DEADLINE, async {
        tokio::join!(Raw::flood(&mut to, endless, 1000), heard.next_of(GOAWAY))
    })
    .await
    .unwrap();
    assert!(said < 100, "{said}");
    assert_eq!(told.unwrap().code(), ENHANCE_YOUR_CALM);
    let error = timeout(DEADLINE, waiting).await.unwrap().unwrap().unwrap_err();
    assert!(
        matches!(&error, ConnectError::Lost { source, .. } if is_calm(Some(source))),
        "{error:?}"
    );
    assert!(first.read(&mut [0; 1]).await.is_err(), "and so is its other stream");
}

#[tokio::test]
async fn data_before_an_answer_is_nobodys() {
    let world = World::new();
    let (pool, mut raw, mut first, _dialled) = with_server(&world).await;
    let waiting = connecting(&world, &pool);
    assert_eq!(raw.heard.next_of(HEADERS).await.unwrap().stream, 3);
    raw.send(&[frame(DATA, 0, 3, b"early"), answer(3, "200"), frame(DATA, 0, 1, b"good")].concat())
        .await;
    let error = timeout(DEADLINE, waiting).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, ConnectError::Reset { code: PROTOCOL_ERROR, .. }), "{error:?}");
    assert!(!error.may_retry_elsewhere());
    timeout(DEADLINE, first.read_exact(&mut [0; 4])).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_that_leaves_and_goes_on_serves_what_it_took() {
    let world = World::new();
    let (pool, mut raw, mut first, mut dialled) = with_server(&world).await;
    let waiting = connecting(&world, &pool);
    assert_eq!(raw.heard.next_of(HEADERS).await.unwrap().stream, 3);
    // It says that it will not look at the second, and then answers it all the same.
    let leave = frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]);
    let goes_on = [
        leave.clone(),
        answer(3, "200"),
        frame(DATA, 0, 3, b"nobody's"),
        frame(DATA, 0, 1, b"good"),
    ];
    raw.send(&goes_on.concat()).await;
    // Nobody has seen the request: it is asked for in another tunnel.
    let mut other = timeout(DEADLINE, dialled.recv()).await.unwrap().unwrap();
    assert_eq!(other.heard.next_of(HEADERS).await.unwrap().stream, 1);
    other
        .send(&[answer(1, "200"), frame(DATA, END_STREAM, 1, b"second")].concat())
        .await;
    let mut second = timeout(DEADLINE, waiting).await.unwrap().unwrap().unwrap();
    let mut text = String::new();
    second.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "second");
    timeout(DEADLINE, first.read_exact(&mut [0; 4])).await.unwrap().unwrap();
    // And it leaves for ever.
    let Raw { mut heard, mut to } = raw;
    let left = Raw::flood(&mut to, |_| leave.repeat(100), 10_000);
    let (said, told) = timeout(DEADLINE, async { tokio::join!(left, heard.next_of(GOAWAY)) })
        .await
        .unwrap();
    assert!(said < 10_000 && told.unwrap().code() == ENHANCE_YOUR_CALM);
    let error = first.read(&mut [0; 1]).await.unwrap_err();
    let lost = StreamError::of(&error);
    assert!(
        matches!(lost, Some(StreamError::Lost { source }) if is_calm(Some(source))),
        "{error:?}"
    );
}

/// Gives what has come a byte at a time, as a peer may have it come, and counts.
struct ByteByByte {
    io: DuplexStream,
    held: VecDeque<u8>,
    reads: Arc<AtomicUsize>,
}

impl AsyncRead for ByteByByte {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.held.is_empty() {
            let mut place = [0; 64 << 10];
            let mut some = ReadBuf::new(&mut place);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut some))?;
            self.held.extend(some.filled());
        }
        self.reads.fetch_add(1, Ordering::Relaxed);
        buf.put_slice(self.held.pop_front().as_slice());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ByteByByte {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn reads_that_bring_no_data_end_a_turn_as_others_do() {
    let world = World::new();
    let server = Server::builder(world.held.clone(), world.provider.clone()).build();
    let (near, io) = duplex(64 << 10);
    let reads = Arc::new(AtomicUsize::new(0));
    let slow = ByteByByte {
        io,
        held: VecDeque::new(),
        reads: reads.clone(),
    };
    let (stock, (tell, mut streams)) = (world.stock.clone(), mpsc::unbounded_channel());
    tokio::spawn(async move {
        let mut session = server.accept(slow, &stock).await.unwrap();
        while let Some(request) = session.next().await {
            tell.send(request.accept(HeaderMap::new()).unwrap()).unwrap();
        }
    });
    let mut raw = world.client(near).await;
    raw.greet().await;
    raw.send(&request(1, 0)).await;
    let mut stream = streams.recv().await.unwrap();
    // Another task has a turn at the latest when the runtime looks for events, which is after 61 turns.
    reads.store(0, Ordering::Relaxed);
    let others = tokio::spawn(async move {
        let mut most = 0;
        loop {
            let now = reads.swap(0, Ordering::Relaxed);
            assert!(now <= 500, "{now} reads in 61 turns");
            most = most.max(now);
            if now == 0 && most > 0 {
                return;
            }
            tokio::task::yield_now().await;
        }
    });
    // All of a record must have come before there is any data in it.
    raw.send(&frame(DATA, 0, 1, &[7; 16_000])).await;
    timeout(DEADLINE, stream.read_exact(&mut [0; 16_000])).await.unwrap().unwrap();
    timeout(DEADLINE, others).await.unwrap().unwrap();
}
