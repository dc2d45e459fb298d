//! A transfer that was cut anywhere below HTTP/2 never looks complete.
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

use ambient_hbone::{BoxFuture, BoxedIo, Dial, Pool, Server, Speaker, Stream, StreamError, TunnelLost};
use http::HeaderMap;
use proptest::prelude::*;
use raw::{World, answer, frame};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    time::timeout,
};
use wire::{DATA, GOAWAY, HEADERS};

/// Where the bytes towards a reader stop.
#[derive(Clone, Copy, Debug)]
enum At {
    /// Behind so many bytes.
    Byte(usize),
    /// Behind so many whole TLS records: nothing but the missing close_notify tells it from an end.
    Record(usize),
}

/// How they stop.
#[derive(Clone, Copy, Debug)]
enum How {
    Eof,
    Reset,
}

/// The reader's end of a transport which is cut.
struct Severed {
    io: DuplexStream,
    at: At,
    how: How,
    bytes: usize,
    records: usize,
    /// The record that goes by: its head as far as it has come, and what its body has left.
    head: Vec<u8>,
    body: usize,
}

impl Severed {
    fn new(io: DuplexStream, at: At, how: How) -> Self {
        Self {
            io,
            at,
            how,
            bytes: 0,
            records: 0,
            head: Vec::new(),
            body: 0,
        }
    }

    /// How many of the next bytes belong together, as far as that is known.
    fn part(&self) -> usize {
        let part = if self.body > 0 { self.body } else { HEAD - self.head.len() };
        match self.at {
            At::Byte(at) => part.min(at.saturating_sub(self.bytes)),
            At::Record(at) if self.records >= at => 0,
            At::Record(_) => part,
        }
    }

    fn pass(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        if self.body > 0 {
            self.body -= bytes.len();
        } else {
            self.head.extend(bytes);
            if let [_, _, _, high, low] = self.head[..] {
                self.body = usize::from(u16::from_be_bytes([high, low]));
                self.head.clear();
            } else {
                return;
            }
        }
        self.records += usize::from(self.body == 0);
    }
}

impl AsyncRead for Severed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while buf.remaining() > 0 {
            let part = self.part().min(buf.remaining());
            if part == 0 && buf.filled().is_empty() {
                return Poll::Ready(match self.how {
                    How::Eof => Ok(()),
                    How::Reset => Err(io::ErrorKind::ConnectionReset.into()),
                });
            }
            let mut bytes = vec![0; part];
            let mut part = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.io).poll_read(cx, &mut part) {
                Poll::Ready(read) => read?,
                Poll::Pending if buf.filled().is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
            let got = part.filled();
            if got.is_empty() {
                break;
            }
            self.pass(got);
            buf.put_slice(got);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Severed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
        Poll::Ready(Ok(()))
    }
}

/// Reaches a server, with the way to one of the ends cut.
struct Way {
    server: Server,
    world: Arc<World>,
    /// Which end reads.
    down: bool,
    at: At,
    how: How,
    /// What is sent, and where it is told how reading ended.
    length: usize,
    tell: tokio::sync::mpsc::UnboundedSender<Read>,
}

/// How many bytes came, and how that ended.
type Read = (usize, io::Result<()>);

impl Dial for Way {
    fn dial<'a>(&'a self, _: &'a Speaker, _: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
        let (near, far) = duplex(64 << 10);
        let cut = |io| Box::new(Severed::new(io, self.at, self.how)) as BoxedIo;
        let (near, far) = if self.down {
            (cut(near), Box::new(far) as BoxedIo)
        } else {
            (Box::new(near) as BoxedIo, cut(far))
        };
        let (server, world, tell) = (self.server.clone(), self.world.clone(), self.tell.clone());
        let (down, length) = (self.down, self.length);
        tokio::spawn(async move {
            let Ok(mut session) = server.accept(far, &world.stock).await else {
                return;
            };
            while let Some(request) = session.next().await {
                let Ok(stream) = request.accept(HeaderMap::new()) else { continue };
                let tell = tell.clone();
                tokio::spawn(async move {
                    if down {
                        send(stream, length).await;
                    } else {
                        let _ = tell.send(read(stream).await);
                    }
                });
            }
        });
        Box::pin(async move { Ok(near) })
    }
}

async fn send(mut stream: Stream, length: usize) {
    if stream.write_all(&vec![7; length]).await.is_ok() {
        let _ = stream.shutdown().await;
    }
    // It stays until the other end has it, or nothing goes any more.
    let _ = stream.read(&mut [0; 1]).await;
}

async fn read(mut stream: Stream) -> Read {
    let mut all = Vec::new();
    let end = stream.read_to_end(&mut all).await;
    let _ = stream.shutdown().await;
    (all.len(), end.map(drop))
}

/// Sends `length` bytes over a way that is cut. None if no stream came of it.
async fn transfer(world: Arc<World>, down: bool, length: usize, at: At, how: How) -> Option<Read> {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let way = Way {
        server: Server::builder(world.held.clone(), world.provider.clone()).build(),
        world: world.clone(),
        down,
        at,
        how,
        length,
        tell,
    };
    let pool = Pool::builder(Arc::new(way), world.held.clone(), world.provider.clone()).build();
    let stream = pool.connect(&world.speaker(), &world.destination()).await.ok()?;
    if down {
        return Some(read(stream).await);
    }
    let sending = tokio::spawn(send(stream, length));
    drop(pool);
    let read = told.recv().await;
    sending.abort();
    read
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_cut_anywhere_is_an_error(
        down: bool,
        length in 1..150_000_usize,
        // Handshakes included, a transfer takes a tenth and some kilobytes more than its bytes.
        part in 0.0..1.2_f64,
        records: bool,
        reset: bool,
    ) {
        let at = match records {
            // Of up to 16 KiB each, behind half a dozen for the handshake.
            true => At::Record((part * (8.0 + length as f64 / 8192.0)) as usize),
            false => At::Byte((part * (4000.0 + length as f64)) as usize),
        };
        let how = if reset { How::Reset } else { How::Eof };
        let world = Arc::new(World::new());
        let outcome = runtime().block_on(async { timeout(DEADLINE, transfer(world, down, length, at, how)).await });
        let Ok(outcome) = outcome else {
            return Err(TestCaseError::fail("it hangs"));
        };
        let Some((got, end)) = outcome else { return Ok(()) };
        prop_assert!(got <= length);
        if let At::Byte(at) = at {
            prop_assert!(at > length || end.is_err(), "{got} of {length} bytes look complete");
        }
        match end {
            Ok(()) => prop_assert_eq!(got, length, "a truncated transfer looks complete"),
            Err(e) => prop_assert!(StreamError::of(&e).is_some(), "{e:?} says why"),
        }
    }
}

/// Every record's end of one transfer, and the last of them is where it is complete.
#[test]
fn a_cut_between_records_is_an_error_until_the_last() {
    for down in [true, false] {
        let mut complete = 0;
        for records in 0..40 {
            let world = Arc::new(World::new());
            let cut = transfer(world, down, 100_000, At::Record(records), How::Eof);
            let outcome = runtime().block_on(async { timeout(DEADLINE, cut).await.unwrap() });
            match outcome {
                Some((got, Ok(()))) => {
                    assert_eq!(got, 100_000, "behind {records} records");
                    complete += 1;
                }
                Some((_, Err(e))) => {
                    assert!(
                        matches!(
                            StreamError::of(&e),
                            Some(StreamError::Lost {
                                source: TunnelLost::Io { .. }
                            })
                        ),
                        "{e:?}"
                    );
                    assert_eq!(complete, 0, "{records} records are not enough, but fewer were");
                }
                None => assert_eq!(complete, 0),
            }
        }
        assert!((10..35).contains(&complete), "{complete}");
    }
}

/// TLS ends in good order, and HTTP/2 says goodbye: the stream has not ended for all that.
#[tokio::test]
async fn an_orderly_end_of_the_tunnel_is_none_of_its_streams() {
    for goodbye in [false, true] {
        let world = World::new();
        let (servers, mut dialled) = world.servers();
        let pool = Pool::builder(Arc::new(servers), world.held.clone(), world.provider.clone()).build();
        let (speaker, destination) = (world.speaker(), world.destination());
        let served = async {
            let mut raw = dialled.recv().await.unwrap();
            raw.heard.next_of(HEADERS).await.unwrap();
            raw.send(&[answer(1, "200"), frame(DATA, 0, 1, b"some")].concat()).await;
            if goodbye {
                raw.send(&frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0])).await;
            }
            raw.to.shutdown().await.unwrap();
            raw
        };
        let (stream, _raw) = timeout(DEADLINE, async { tokio::join!(pool.connect(&speaker, &destination), served) })
            .await
            .unwrap();
        let (mut stream, mut all) = (stream.unwrap(), Vec::new());
        let error = timeout(DEADLINE, stream.read_to_end(&mut all)).await.unwrap().unwrap_err();
        assert_eq!(all, b"some");
        let lost = StreamError::of(&error);
        assert!(
            matches!(
                lost,
                Some(StreamError::Lost {
                    source: TunnelLost::Closed
                })
            ),
            "{error:?}"
        );
    }
}

/// Bytes before a TLS record's body.
const HEAD: usize = 5;

/// For a transfer to end, one way or the other.
const DEADLINE: Duration = Duration::from_secs(60);
