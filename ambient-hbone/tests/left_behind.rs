//! Thousands of tunnels come and go, each in another way, and leave nothing behind. Alone in its process, whose descriptors
//! it counts.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{fs, io, net::SocketAddr, sync::Arc, time::Duration};

use ambient_core::Identity;
use ambient_hbone::{BoxFuture, BoxedIo, Destination, Dial, Pool, Server, Speaker};
use http::HeaderMap;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Handle,
    time::{sleep, timeout},
};

struct Tcp;

impl Dial for Tcp {
    fn dial<'a>(&'a self, _: &'a Speaker, peer: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
        Box::pin(async move {
            let io = TcpStream::connect(peer).await?;
            io.set_nodelay(true)?;
            Ok(Box::new(io) as BoxedIo)
        })
    }
}

/// Serves the nth tunnel with echoes; every fifth it ends itself behind its first request.
async fn serve(server: Server, stock: Identity, listener: TcpListener) {
    for n in 0.. {
        let (io, _) = listener.accept().await.unwrap();
        io.set_nodelay(true).unwrap();
        let (server, stock) = (server.clone(), stock.clone());
        tokio::spawn(async move {
            let Ok(mut session) = server.accept(io, &stock).await else { return };
            while let Some(request) = session.next().await {
                let Ok(mut stream) = request.accept(HeaderMap::new()) else {
                    continue;
                };
                tokio::spawn(async move {
                    let mut byte = [0; 1];
                    while stream.read_exact(&mut byte).await.is_ok() && stream.write_all(&byte).await.is_ok() {}
                });
                if n % 5 == 4 {
                    return session.abort();
                }
            }
        });
    }
}

/// A tunnel, and an end of it.
async fn come_and_go(n: usize, pool: &Pool, speaker: &Speaker, destination: &Destination) {
    if n % 7 == 6 {
        // Somebody who is no peer at all, and goes at once.
        let mut io = TcpStream::connect(destination.peer).await.unwrap();
        let _ = io.write_all(&[0x16, 3, 1]).await;
        return;
    }
    let Ok(mut stream) = pool.connect(speaker, destination).await else {
        // The server had ended it before it answered.
        return;
    };
    match n % 3 {
        0 => {
            let _ = stream.write_all(b"x").await;
            let _ = stream.read(&mut [0; 1]).await;
            let _ = stream.shutdown().await;
        }
        1 => drop(stream.write_all(&[7; 10_000]).await),
        _ => {}
    }
    if n.is_multiple_of(2) {
        // With the stream in it.
        pool.forget(&speaker.key);
    }
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

#[tokio::test]
async fn tunnels_that_come_and_go_leave_nothing_behind() {
    let (cart, stock, held, provider) = support::pair();
    let server = Server::builder(held.clone(), provider.clone()).build();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (peer, authority) = (listener.local_addr().unwrap(), "10.0.2.2:8080".parse().unwrap());
    let destination = Destination::new(peer, authority, [stock.clone()]);
    let serving = tokio::spawn(serve(server.clone(), stock, listener));
    let shared = Pool::builder(Arc::new(Tcp), held.clone(), provider.clone()).build();
    let before = (descriptors(), tasks());
    for n in 0..TUNNELS {
        // One speaker each, so that each has a tunnel of its own; in a pool of its own, or in one that stays.
        let speaker = Speaker::new(format!("cart-{n}"), cart.clone());
        let own = (n % 4 == 3).then(|| Pool::builder(Arc::new(Tcp), held.clone(), provider.clone()).build());
        let pool = own.as_ref().unwrap_or(&shared);
        timeout(DEADLINE, come_and_go(n, pool, &speaker, &destination)).await.unwrap();
        shared.forget(&speaker.key);
    }
    let settled = async {
        let sessions = || format!("{server:?} {shared:?}");
        while (descriptors(), tasks()) != before || !sessions().contains("sessions: 0") || !sessions().contains("tunnels: 0") {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let outcome = timeout(DEADLINE, settled).await;
    let after = (descriptors(), tasks());
    assert!(
        outcome.is_ok(),
        "{before:?} descriptors and tasks before, {after:?} after: {server:?} {shared:?}"
    );
    serving.abort();
}

/// Ten thousand, but where nothing is optimised.
const TUNNELS: usize = if cfg!(debug_assertions) { 2_000 } else { 10_000 };

/// For one of them, and for all to be gone.
const DEADLINE: Duration = Duration::from_secs(20);
