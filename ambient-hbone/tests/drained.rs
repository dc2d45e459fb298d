//! A server that is to stop: what stands, what comes, and what is left at the deadline.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    future::ready,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use ambient_core::Identity;
use ambient_hbone::{
    AcceptError, BoxFuture, BoxedIo, ConnectError, Destination, Dial, Pool, Server, Session, Speaker, Stream, StreamError, TunnelLost,
};
use http::HeaderMap;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    task::JoinHandle,
    time::Instant,
};

/// A server that echoes, in memory, and a pool that reaches it.
struct Ends {
    server: Server,
    pool: Pool,
    speaker: Speaker,
    destination: Destination,
    beside: Arc<Beside>,
}

struct Beside {
    server: Server,
    identity: Identity,
    /// The other end of a connection that is served already: the next that is dialled.
    ready: Mutex<Option<DuplexStream>>,
    /// How each of its connections ended.
    ends: Mutex<Vec<JoinHandle<Result<TunnelLost, AcceptError>>>>,
}

impl Dial for Beside {
    fn dial<'a>(&'a self, _: &'a Speaker, _: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
        Box::pin(async move {
            if let Some(near) = self.ready.lock().unwrap().take() {
                return Ok(Box::new(near) as BoxedIo);
            }
            let (near, far) = tokio::io::duplex(64 << 10);
            self.serve(far);
            Ok(Box::new(near) as BoxedIo)
        })
    }
}

impl Beside {
    fn serve(&self, io: DuplexStream) {
        let (server, identity) = (self.server.clone(), self.identity.clone());
        let serving = tokio::spawn(async move { Ok(echo(server.accept(io, &identity).await?).await) });
        self.ends.lock().unwrap().push(serving);
    }

    /// How the oldest connection ended that was not asked about.
    async fn end(&self) -> Result<TunnelLost, AcceptError> {
        let first = self.ends.lock().unwrap().remove(0);
        first.await.unwrap()
    }
}

async fn echo(mut session: Session) -> TunnelLost {
    while let Some(request) = session.next().await {
        tokio::spawn(async move {
            let (mut from, mut to) = request.accept(HeaderMap::new()).unwrap().into_split();
            if tokio::io::copy(&mut from, &mut to).await.is_ok() {
                let _ = to.shutdown().await;
            }
        });
    }
    session.lost().unwrap().clone()
}

impl Ends {
    fn new() -> Self {
        let (cart, stock, held, provider) = support::pair();
        let server = Server::builder(held.clone(), provider.clone()).build();
        let beside = Arc::new(Beside {
            server: server.clone(),
            identity: stock.clone(),
            ready: Mutex::default(),
            ends: Mutex::default(),
        });
        let destination = Destination::new("10.0.2.2:15008".parse().unwrap(), "10.0.2.2:8080".parse().unwrap(), [stock]);
        Self {
            server,
            pool: Pool::builder(beside.clone(), held, provider).build(),
            speaker: Speaker::new("cart-0", cart),
            destination,
            beside,
        }
    }

    async fn connect(&self) -> Result<Stream, ConnectError> {
        self.pool.connect(&self.speaker, &self.destination).await
    }
}

async fn exchange(stream: &mut Stream) {
    stream.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"ping");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_drained_lets_streams_end_and_takes_no_new_tunnel() {
    let ends = Ends::new();
    let mut stream = ends.connect().await.unwrap();
    exchange(&mut stream).await;
    let began = Instant::now();
    let mut drained = pin!(ends.server.drain(LONG));
    tokio::select! {
        biased;
        () = &mut drained => panic!("a stream is in progress"),
        () = ready(()) => {}
    }
    // The news goes before the answer.
    exchange(&mut stream).await;
    ends.connect().await.unwrap_err();
    exchange(&mut stream).await;
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    drop(stream);
    drained.await;
    assert!(began.elapsed() < LONG, "it waits for no deadline");
    let ended = ends.beside.end().await.unwrap();
    assert!(matches!(ended, TunnelLost::Closed), "{ended}");
    let refused = ends.beside.end().await.unwrap_err();
    assert!(matches!(refused, AcceptError::Closed), "{refused}");
    ends.server.drain(LONG).await;
}

#[tokio::test(start_paused = true)]
async fn what_stands_at_the_deadline_of_a_servers_drain_is_cut() {
    let ends = Ends::new();
    let mut stream = ends.connect().await.unwrap();
    exchange(&mut stream).await;
    let began = Instant::now();
    ends.server.drain(LONG).await;
    assert_eq!(began.elapsed(), LONG);
    let error = stream.read(&mut [0; 1]).await.unwrap_err();
    assert!(matches!(StreamError::of(&error), Some(StreamError::Lost { .. })), "{error}");
    let ended = ends.beside.end().await.unwrap();
    assert!(matches!(ended, TunnelLost::Ended), "{ended}");
}

#[tokio::test(start_paused = true)]
async fn a_handshake_under_way_does_not_outlive_the_drain() {
    let ends = Ends::new();
    let (near, far) = tokio::io::duplex(64 << 10);
    *ends.beside.ready.lock().unwrap() = Some(near);
    ends.beside.serve(far);
    tokio::task::yield_now().await;
    ends.server.drain(LONG).await;
    ends.connect().await.unwrap_err();
    let refused = ends.beside.end().await.unwrap_err();
    assert!(matches!(refused, AcceptError::Closed), "{refused}");
}

/// Longer than anything but a deadline takes.
const LONG: Duration = Duration::from_secs(60);
