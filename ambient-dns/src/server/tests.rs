//! The server between a client and nameservers, over loopback.

mod datagrams;
mod fixed;
mod lines;
mod nameserver;
mod streams;

use std::{net::SocketAddr, sync::Mutex};

use ambient_core::{NetworkAddress, Service, mesh::Update};
use tokio::{net::TcpStream, time::Instant};

use super::*;
use crate::BoxFuture;
use nameserver::{Nameserver, Say};

/// The way to nameservers, as loopback has it.
struct Way {
    servers: Arc<[SocketAddr]>,
    draws: Mutex<u64>,
    /// Sockets that cannot be had.
    broken: bool,
    hangs: bool,
}

impl Way {
    async fn servers(&self) -> Arc<[SocketAddr]> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        self.servers.clone()
    }
}

impl Upstream for Way {
    fn draw(&self) -> u64 {
        let mut draws = self.draws.lock().unwrap();
        *draws = draws.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *draws >> 16
    }

    fn for_datagram(&self, _: SocketAddr, _: SocketAddr) -> BoxFuture<'_, Arc<[SocketAddr]>> {
        Box::pin(self.servers())
    }

    fn for_stream<'a>(&'a self, _: &'a TcpStream) -> BoxFuture<'a, Arc<[SocketAddr]>> {
        Box::pin(self.servers())
    }

    fn udp(&self, server: SocketAddr) -> BoxFuture<'_, io::Result<UdpSocket>> {
        Box::pin(async move {
            if self.broken {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            let socket = UdpSocket::bind("127.0.0.1:0").await?;
            socket.connect(server).await?;
            Ok(socket)
        })
    }

    fn tcp(&self, server: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(TcpStream::connect(server))
    }
}

/// Keeps what it is told.
#[derive(Default)]
struct Told(Mutex<Vec<Event>>);

impl Observer for Told {
    fn observe(&self, event: &Event) {
        self.0.lock().unwrap().push(*event);
    }
}

struct Bench {
    told: Arc<Told>,
    server: tokio::task::JoinHandle<()>,
    udp: SocketAddr,
    tcp: SocketAddr,
}

impl Bench {
    fn count(&self, what: impl Fn(&Event) -> bool) -> usize {
        self.told.0.lock().unwrap().iter().filter(|event| what(event)).count()
    }

    async fn until(&self, many: usize, what: impl Fn(&Event) -> bool) {
        let seen = async {
            while self.count(&what) < many {
                time::sleep(Duration::from_millis(5)).await;
            }
        };
        time::timeout(PATIENCE, seen).await.expect("it does not come about");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A server with a service `web` in `shop`.
async fn bench(servers: &[SocketAddr], limits: Limits) -> Bench {
    Setup {
        servers,
        limits,
        ..Setup::default()
    }
    .start()
    .await
}

struct Setup<'a> {
    servers: &'a [SocketAddr],
    limits: Limits,
    budget: Budget,
    known: bool,
    broken: bool,
    /// It never becomes known whom the client means.
    hangs: bool,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self {
            servers: &[],
            limits: Limits::default(),
            budget: Budget::default(),
            known: true,
            broken: false,
            hangs: false,
        }
    }
}

impl Setup<'_> {
    async fn start(self) -> Bench {
        let mut web = Service::new("shop", "web.shop.svc.cluster.local");
        web.vips.push(NetworkAddress::local("10.96.0.7".parse().unwrap()));
        let view = self.known.then(|| View::new(Mesh::default().apply([Update::Service(web.into())])));
        let told = Arc::new(Told::default());
        let way = Way {
            servers: self.servers.into(),
            draws: Mutex::new(7),
            broken: self.broken,
            hangs: self.hangs,
        };
        let server = Server::builder(Zone::default(), "shop", Arc::new(move || view.clone()), Arc::new(way));
        let server = server.limits(self.limits).budget(self.budget).observer(told.clone()).build();
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (udp, tcp) = (socket.local_addr().unwrap(), listener.local_addr().unwrap());
        let server = tokio::spawn(async move { tokio::join!(server.serve_udp(socket), server.serve_tcp(listener)).0 });
        Bench { told, server, udp, tcp }
    }
}

/// A query with an ID, for a name of labels.
fn query(id: u16, name: &[&str], kind: u16) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend(b"\x01\0\0\x01\0\0\0\0\0\0");
    for label in name {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    bytes
}

fn web(id: u16) -> Vec<u8> {
    query(id, &["web"], 1)
}

fn example(id: u16) -> Vec<u8> {
    query(id, &["example", "com"], 1)
}

/// The answer that the mesh gives to [`web`].
fn webs_answer(id: u16) -> Vec<u8> {
    let mut bytes = web(id);
    bytes[2] = 0x85;
    bytes[3] = 0x80;
    bytes[7] = 1;
    bytes.extend(b"\xc0\x0c\0\x01\0\x01\0\0\0\x1e\0\x04\x0a\x60\0\x07");
    bytes
}

async fn client(bench: &Bench) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(bench.udp).await.unwrap();
    socket
}

async fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; LONGEST_MESSAGE];
    let length = time::timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
    buffer.truncate(length);
    buffer
}

/// What comes within a short while.
async fn heard(socket: &UdpSocket, within: Duration) -> Option<Vec<u8>> {
    let mut buffer = vec![0; LONGEST_MESSAGE];
    let length = time::timeout(within, socket.recv(&mut buffer)).await.ok()?.unwrap();
    buffer.truncate(length);
    Some(buffer)
}

async fn by_udp(bench: &Bench, query: &[u8]) -> Vec<u8> {
    let socket = client(bench).await;
    socket.send(query).await.unwrap();
    receive(&socket).await
}

fn code(reply: &[u8]) -> u8 {
    Header::read(reply).unwrap().code()
}

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn the_log_has_ztunnels_words_for_what_became_of_a_query() {
    for (source, code, answers, word) in [
        (Source::Mesh, "NOERROR", 2, "success"),
        (Source::Mesh, "NOERROR", 0, "no records"),
        (Source::Mesh, "NXDOMAIN", 0, "NXDOMAIN"),
        (Source::Upstream, "NXDOMAIN", 0, "forwarded"),
        (Source::Server, "SERVFAIL", 0, "forwarding failed"),
    ] {
        assert_eq!(result(source, code, answers), word, "{source:?} {code}");
    }
}
