//! How connections end through a whole tunnel, TCP to TCP, against a model: whatever both applications do, nothing that
//! was cut looks complete, and nothing that was ended in good order is lost.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use ambient_hbone::{
    BoxFuture, BoxedIo, Destination, Dial, Pool, RelayLimits, Server, Speaker, SpeakerKey, Tally,
    relay::{End, relay},
};
use http::{HeaderMap, StatusCode};
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

#[derive(Clone, Copy, Debug)]
enum Step {
    Write(usize),
    Fin,
    Reset,
    Wait,
}

fn step() -> impl Strategy<Value = (bool, Step)> {
    let step = prop_oneof![
        6 => prop_oneof![1..100_usize, 1..150_000_usize].prop_map(Step::Write),
        2 => Just(Step::Fin),
        1 => Just(Step::Reset),
        3 => Just(Step::Wait),
    ];
    (any::<bool>(), step)
}

struct Tcp;

impl Dial for Tcp {
    fn dial<'a>(&'a self, _: &'a Speaker, peer: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
        Box::pin(async move { Ok(Box::new(TcpStream::connect(peer).await?) as BoxedIo) })
    }
}

/// What a relay's owner does with its socket, having set it to be reset: not so after an orderly end.
fn settle(socket: &TcpStream, tally: &Tally) {
    if let End::Orderly { .. } = tally.end {
        socket2::SockRef::from(socket).set_linger(None).unwrap();
    }
}

/// Both proxies and a listening application; where the client connects, and the application's listener.
async fn start() -> (SocketAddr, TcpListener) {
    let (cart, stock, held, provider) = support::pair();
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = app.local_addr().unwrap();
    let far = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = far.local_addr().unwrap();
    let server = Server::builder(held.clone(), provider.clone()).build();
    let identity = stock.clone();
    tokio::spawn(async move {
        loop {
            let (io, _) = far.accept().await.unwrap();
            let mut session = server.accept(io, &identity).await.unwrap();
            tokio::spawn(async move {
                while let Some(request) = session.next().await {
                    tokio::spawn(async move {
                        let Ok(mut upstream) = TcpStream::connect(to).await else {
                            return request.refuse(StatusCode::SERVICE_UNAVAILABLE);
                        };
                        upstream.set_zero_linger().unwrap();
                        let Ok(mut stream) = request.accept(HeaderMap::new()) else { return };
                        let tally = relay(&mut stream, &mut upstream, &RelayLimits::default()).await;
                        settle(&upstream, &tally);
                    });
                }
            });
        }
    });
    let near = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let entrance = near.local_addr().unwrap();
    let pool = Pool::builder(Arc::new(Tcp), held, provider).build();
    tokio::spawn(async move {
        let speaker = Speaker {
            key: SpeakerKey::new("cart-0"),
            identity: cart,
        };
        let destination = Destination {
            peer,
            authority: to.into(),
            accepted: vec![stock],
            headers: HeaderMap::new(),
            early_data: true,
            ample: false,
        };
        loop {
            let (mut client, _) = near.accept().await.unwrap();
            client.set_zero_linger().unwrap();
            let (pool, speaker, destination) = (pool.clone(), speaker.clone(), destination.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = pool.connect(&speaker, &destination).await else {
                    return;
                };
                let tally = relay(&mut client, &mut stream, &RelayLimits::default()).await;
                settle(&client, &tally);
            });
        }
    });
    (entrance, app)
}

/// What one application has done, and what it saw.
struct App {
    socket: Option<Arc<TcpStream>>,
    reads: tokio::task::JoinHandle<(Vec<u8>, io::Result<()>)>,
    sent: Vec<u8>,
    fin: bool,
    reset: bool,
    /// A write has failed: the kernel tells of a reset once, so the reader may hear nothing but an end.
    told: bool,
}

impl App {
    fn new(socket: TcpStream) -> Self {
        let socket = Arc::new(socket);
        let reader = Arc::clone(&socket);
        let reads = tokio::spawn(async move {
            let mut got = Vec::new();
            loop {
                reader.readable().await.unwrap();
                match reader.try_read_buf(&mut got) {
                    Ok(0) => return (got, Ok(())),
                    Ok(_) => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => return (got, Err(e)),
                }
            }
        });
        Self {
            socket: Some(socket),
            reads,
            sent: Vec::new(),
            fin: false,
            reset: false,
            told: false,
        }
    }

    async fn step(&mut self, step: Step) {
        let Some(socket) = &self.socket else { return };
        match step {
            Step::Write(n) if !self.fin => {
                let data = vec![self.sent.len() as u8; n];
                let mut at = 0;
                while at < n {
                    socket.writable().await.unwrap();
                    match socket.try_write(&data[at..]) {
                        Ok(n) => at += n,
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                        Err(_) => {
                            self.told = true;
                            break;
                        }
                    }
                }
                self.sent.extend(&data[..at]);
            }
            Step::Write(_) => {}
            Step::Fin => {
                self.fin = true;
                let _ = socket2::SockRef::from(&**socket).shutdown(std::net::Shutdown::Write);
            }
            Step::Reset => {
                self.reset = true;
                let _ = socket.set_zero_linger();
                self.reads.abort();
                let _ = (&mut self.reads).await;
                self.socket = None;
            }
            Step::Wait => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}

async fn run(entrance: SocketAddr, app: &TcpListener, steps: &[(bool, Step)]) -> Result<(), TestCaseError> {
    let client = TcpStream::connect(entrance).await.unwrap();
    let (server, _) = timeout(Duration::from_secs(10), app.accept()).await.unwrap().unwrap();
    let mut apps = [App::new(client), App::new(server)];
    for &(side, step) in steps {
        let acted = timeout(Duration::from_secs(20), apps[usize::from(side)].step(step)).await;
        prop_assert!(acted.is_ok(), "{step:?} never ended");
    }
    // A side that did nothing to end goes on for ever: end it in good order.
    for app in &mut apps {
        if !app.fin && !app.reset {
            app.step(Step::Fin).await;
        }
    }
    let cut = apps[0].reset || apps[1].reset;
    for (reader, writer) in [(0, 1), (1, 0)] {
        if apps[reader].reset {
            continue;
        }
        let seen = timeout(Duration::from_secs(20), &mut apps[reader].reads).await;
        let Ok(seen) = seen else {
            return Err(TestCaseError::fail(format!("side {reader} waits for ever")));
        };
        let (got, end) = seen.unwrap();
        let writer = &apps[writer];
        prop_assert!(writer.sent.starts_with(&got), "what came was never written");
        if end.is_ok() && !apps[reader].told {
            prop_assert!(writer.fin, "an end that nobody made");
            prop_assert!(
                got.len() == writer.sent.len(),
                "a truncated transfer looks complete: {} of {}",
                got.len(),
                writer.sent.len()
            );
        } else {
            prop_assert!(cut, "an error without a reset: {end:?}");
        }
    }
    Ok(())
}

#[test]
fn ends_are_exact() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (entrance, app) = runtime.block_on(start());
    let config = ProptestConfig {
        cases: 150,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    runner
        .run(&proptest::collection::vec(step(), 0..14), |steps| {
            runtime.block_on(run(entrance, &app, &steps))
        })
        .unwrap();
}

#[tokio::test]
async fn an_idle_end_hears_of_a_reset() {
    let (entrance, app) = start().await;
    for server_first in [false, true] {
        let client = TcpStream::connect(entrance).await.unwrap();
        let (server, _) = app.accept().await.unwrap();
        let (mut stays, goes) = if server_first { (client, server) } else { (server, client) };
        goes.set_zero_linger().unwrap();
        drop(goes);
        let end = timeout(Duration::from_secs(5), stays.read(&mut [0; 1])).await.unwrap();
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn much_data_behind_an_early_end_arrives() {
    let (entrance, app) = start().await;
    let mut client = TcpStream::connect(entrance).await.unwrap();
    let (mut server, _) = app.accept().await.unwrap();
    client.shutdown().await.unwrap();
    let data = vec![7; 5_000_000];
    let sent = tokio::spawn(async move {
        server.write_all(&data).await.unwrap();
        server.shutdown().await.unwrap();
        server.read(&mut [0; 1]).await.unwrap()
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut got = Vec::new();
    timeout(Duration::from_secs(20), client.read_to_end(&mut got))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(got.len(), 5_000_000);
    assert_eq!(sent.await.unwrap(), 0);
}
