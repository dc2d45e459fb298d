//! What a server says last is heard, whatever it wants to hear itself.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod raw;
mod support;
#[allow(dead_code, reason = "a player of vectors stands there too")]
mod wire;

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use ambient_core::Identity;
use ambient_hbone::{
    BoxFuture, BoxedIo, ConnectError, Dial, Pool, RelayLimits, Server, Speaker, Stream, Tally,
    relay::{End, Phase, Side, relay},
};
use ambient_tls::Accepted;
use http::HeaderMap;
use raw::{Raw, World, answer, frame, request};
use rustls::{AlertDescription, Error};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    time::timeout,
};
use wire::{DATA, END_STREAM, HEADERS, RST_STREAM};

/// Whatever is to happen has happened by then.
const DEADLINE: Duration = Duration::from_secs(20);

/// A stream that a server has accepted.
async fn stream(world: &World) -> (Stream, Raw) {
    let (servers, mut dialled) = world.servers();
    let pool = Pool::builder(Arc::new(servers), world.held.clone(), world.provider.clone()).build();
    let (speaker, destination) = (world.speaker(), world.destination());
    let answered = async {
        let mut raw = dialled.recv().await.unwrap();
        assert_eq!(raw.heard.next_of(HEADERS).await.unwrap().stream, 1);
        raw.send(&answer(1, "200")).await;
        raw
    };
    let (stream, raw) = tokio::join!(pool.connect(&speaker, &destination), answered);
    (stream.unwrap(), raw)
}

/// An answer of 100,000 bytes, its end, and that nothing more is wanted.
fn refuses(code: u32) -> Vec<u8> {
    let text = frame(DATA, 0, 1, &[b'n'; 10_000]).repeat(10);
    [text, frame(DATA, END_STREAM, 1, b""), frame(RST_STREAM, 0, 1, &code.to_be_bytes())].concat()
}

fn relayed(mut app: DuplexStream, mut stream: Stream) -> tokio::task::JoinHandle<Tally> {
    tokio::spawn(async move { relay(&mut app, &mut stream, &RelayLimits::default()).await })
}

fn assert_refused(tally: &Tally) {
    let refused = matches!(
        tally.end,
        End::Failed {
            side: Side::B,
            phase: Phase::Write,
            ..
        }
    );
    assert!(refused && tally.b_to_a == 100_000, "{tally:?}");
}

#[tokio::test]
async fn an_answer_that_comes_before_all_was_said_comes_whole() {
    for code in [0, 10] {
        let world = World::new();
        let (stream, mut raw) = stream(&world).await;
        // Little of either waits beside.
        let (mut app, inside) = duplex(1000);
        let relayed = relayed(inside, stream);
        let upload = async {
            let mut sent = 0;
            while sent < 70_000 {
                sent += app.write(&[b'u'; 1000]).await.unwrap();
            }
        };
        timeout(DEADLINE, upload).await.unwrap();
        // All of its window, and more waits.
        let mut heard = 0;
        while heard < 65_535 {
            heard += raw.heard.next_of(DATA).await.unwrap().payload.len();
        }
        raw.send(&refuses(code)).await;
        let mut got = Vec::new();
        timeout(DEADLINE, app.read_to_end(&mut got)).await.unwrap().unwrap();
        assert!(got == [b'n'; 100_000], "{} bytes", got.len());
        assert_refused(&timeout(DEADLINE, relayed).await.unwrap().unwrap());
    }
}

#[tokio::test]
async fn what_is_said_to_one_who_wants_no_more_is_lost_and_not_forgotten() {
    let world = World::new();
    let (stream, mut raw) = stream(&world).await;
    let (mut app, inside) = duplex(1000);
    let relayed = relayed(inside, stream);
    // Nothing of it waits when the server ends.
    raw.send(&refuses(0)).await;
    let mut got = vec![0; 10];
    timeout(DEADLINE, app.read_exact(&mut got)).await.unwrap().unwrap();
    timeout(DEADLINE, app.write_all(b"more")).await.unwrap().unwrap();
    app.shutdown().await.unwrap();
    timeout(DEADLINE, app.read_to_end(&mut got)).await.unwrap().unwrap();
    assert_eq!(got.len(), 100_000);
    assert_refused(&timeout(DEADLINE, relayed).await.unwrap().unwrap());
}

/// An application that sends `much` before it reads anything, and ends then; what it got.
async fn write_then_read(mut app: DuplexStream, much: usize) -> io::Result<Vec<u8>> {
    app.write_all(&vec![b'u'; much]).await?;
    app.shutdown().await?;
    let mut got = Vec::new();
    app.read_to_end(&mut got).await?;
    Ok(got)
}

#[tokio::test]
async fn an_application_that_writes_all_before_it_reads_gets_the_answer_that_came_before() {
    let world = World::new();
    let (stream, mut raw) = stream(&world).await;
    let (app, inside) = duplex(1000);
    let relayed = relayed(inside, stream);
    raw.send(&refuses(0)).await;
    let got = timeout(DEADLINE, write_then_read(app, 1_000_000)).await.unwrap().unwrap();
    assert!(got == [b'n'; 100_000], "{} bytes", got.len());
    assert_refused(&timeout(DEADLINE, relayed).await.unwrap().unwrap());
}

#[tokio::test(start_paused = true)]
async fn an_application_that_takes_nothing_of_the_answer_is_waited_for_for_half_a_minute() {
    for is_endless in [false, true] {
        let world = World::new();
        let (stream, mut raw) = stream(&world).await;
        let (mut app, inside) = duplex(1000);
        let relayed = relayed(inside, stream);
        raw.send(&refuses(0)).await;
        let mut all = app.read(&mut [0; 1000]).await.unwrap();
        app.write_all(b"more").await.unwrap();
        // Slowly at first, which is no reason to be cut off.
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(25)).await;
            all += app.read(&mut [0; 1000]).await.unwrap();
        }
        assert!(all < 10_000 && !relayed.is_finished());
        let last = tokio::time::Instant::now();
        let writes = async {
            while is_endless && app.write_all(&[b'u'; 1000]).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let (tally, ()) = tokio::join!(relayed, writes);
        assert_eq!(last.elapsed().as_secs(), 30);
        let tally = tally.unwrap();
        let refused = matches!(
            tally.end,
            End::Failed {
                side: Side::B,
                phase: Phase::Write,
                ..
            }
        );
        assert!(refused && tally.b_to_a < 100_000, "{tally:?}");
    }
}

#[tokio::test]
async fn what_was_taken_and_never_sent_is_no_good_end() {
    let world = World::new();
    let (stream, mut raw) = stream(&world).await;
    let (mut app, inside) = duplex(1000);
    let relayed = relayed(inside, stream);
    // All of its window, and a little that waits in the stream for more: the relay has nothing left to do.
    app.write_all(&vec![b'u'; 65_535 + 2000]).await.unwrap();
    app.shutdown().await.unwrap();
    let mut heard = 0;
    while heard < 65_535 {
        heard += raw.heard.next_of(DATA).await.unwrap().payload.len();
    }
    raw.send(&refuses(0)).await;
    let mut got = Vec::new();
    timeout(DEADLINE, app.read_to_end(&mut got)).await.unwrap().unwrap();
    assert_eq!(got.len(), 100_000);
    assert_refused(&timeout(DEADLINE, relayed).await.unwrap().unwrap());
}

#[tokio::test]
async fn a_client_that_is_gone_holds_no_application_that_writes_before_it_reads() {
    let world = World::new();
    let server = Server::builder(world.held.clone(), world.provider.clone())
        .accepted(Accepted::any_of([world.cart.clone()]))
        .build();
    let (near, far) = duplex(256 << 10);
    let serving = async {
        let mut session = server.accept(far, &world.stock).await.unwrap();
        let request = session.next().await.unwrap();
        (session, request.accept(HeaderMap::new()).unwrap())
    };
    let ((mut session, mut stream), mut raw) = tokio::join!(serving, async {
        let mut raw = world.client(near).await;
        raw.greet().await;
        raw.send(&request(1, 0)).await;
        raw
    });
    tokio::spawn(async move { while session.next().await.is_some() {} });
    let (app, mut inside) = duplex(1000);
    let relayed = tokio::spawn(async move { relay(&mut stream, &mut inside, &RelayLimits::default()).await });
    let writing = tokio::spawn(write_then_read(app, 10_000_000));
    // It has said all, and then it goes, with an application behind it that is gone.
    raw.send(&refuses(10)).await;
    let tally = timeout(DEADLINE, relayed).await.unwrap().unwrap();
    assert!(matches!(tally.end, End::Failed { side: Side::A, .. }), "{tally:?}");
    assert_eq!(
        timeout(DEADLINE, writing).await.unwrap().unwrap().unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );
}

/// Of a connection whose peer is gone by the time that the first request is written, and of which nothing is read between the
/// handshake and that.
struct Abrupt {
    io: DuplexStream,
    writes: usize,
    last: Option<Vec<u8>>,
}

impl AsyncRead for Abrupt {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        match &mut this.last {
            Some(last) => {
                let n = last.len().min(buf.remaining());
                buf.put_slice(&last.drain(..n).collect::<Vec<_>>());
                Poll::Ready(Ok(()))
            }
            None if this.writes < 2 => Pin::new(&mut this.io).poll_read(cx, buf),
            None => Poll::Pending,
        }
    }
}

impl AsyncWrite for Abrupt {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.writes < 2 {
            self.writes += 1;
            return Pin::new(&mut self.io).poll_write(cx, bytes);
        }
        if self.last.is_none() {
            let mut place = [0; 4096];
            let mut read = ReadBuf::new(&mut place);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
            self.last = Some(read.filled().to_vec());
        }
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

struct ToAbrupt(Server, Identity);

impl Dial for ToAbrupt {
    fn dial<'a>(&'a self, _: &'a Speaker, _: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
        let (io, far) = duplex(64 << 10);
        let (server, stock) = (self.0.clone(), self.1.clone());
        tokio::spawn(async move { server.accept(far, &stock).await.unwrap_err() });
        let abrupt = Abrupt { io, writes: 0, last: None };
        Box::pin(async move { Ok(Box::new(abrupt) as BoxedIo) })
    }
}

#[tokio::test]
async fn a_refusal_is_the_reason_where_a_write_has_failed_first() {
    let world = World::new();
    let server = Server::builder(world.held.clone(), world.provider.clone())
        .accepted(Accepted::any_of([world.stock.clone()]))
        .build();
    let dial = Arc::new(ToAbrupt(server, world.stock.clone()));
    let pool = Pool::builder(dial, world.held.clone(), world.provider.clone()).build();
    let error = timeout(DEADLINE, pool.connect(&world.speaker(), &world.destination()))
        .await
        .unwrap()
        .unwrap_err();
    let ConnectError::Handshake { source, .. } = &error else {
        panic!("{error:?}")
    };
    let told = source.get_ref().and_then(|held| held.downcast_ref::<Error>());
    assert!(
        matches!(told, Some(Error::AlertReceived(alert)) if *alert != AlertDescription::CloseNotify),
        "{error:?}"
    );
}
