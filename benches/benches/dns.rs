//! A DNS query: what deciding on it takes, and what it takes through a server on loopback, answered here and forwarded.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ambient_core::{Mesh, Network, NetworkAddress, Service, mesh::Update};
use ambient_dns::{BoxFuture, Client, Server, Transport, Upstream, View, Zone, answer};
use criterion::{Criterion, criterion_group, criterion_main};
use tokio::{
    net::{TcpStream, UdpSocket},
    runtime::{Builder, Runtime},
};

/// A mesh of so many services.
fn mesh(services: u32) -> Mesh {
    let service = |n: u32| {
        let mut service = Service::new("shop", &format!("web-{n}.shop.svc.cluster.local"));
        service.vips.push(NetworkAddress::local((0x0a60_0000 + n).to_be_bytes().into()));
        Update::Service(service.into())
    };
    Mesh::default().apply((0..services).map(service))
}

fn query(name: &str) -> Vec<u8> {
    let mut bytes = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0".to_vec();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a label"));
        bytes.extend(label.as_bytes());
    }
    bytes.extend(b"\0\0\x01\0\x01");
    bytes
}

const OURS: &str = "web-7.shop.svc.cluster.local";
const OTHERS: &str = "www.example.com.shop.svc.cluster.local";

fn decide(c: &mut Criterion) {
    let (mesh, zone, network) = (mesh(10_000), Zone::default(), Network::default());
    let client = Client {
        namespace: "shop",
        network: &network,
        search: &[],
    };
    let mut group = c.benchmark_group("dns_decide");
    for (name, query) in [("answered", query(OURS)), ("forwarded", query(OTHERS))] {
        group.bench_function(name, |b| b.iter(|| answer(&mesh, &zone, &client, &query, Transport::Udp, 7)));
    }
    group.finish();
}

/// The way to one nameserver on loopback.
struct Way(SocketAddr, AtomicU64);

impl Upstream for Way {
    fn draw(&self) -> u64 {
        self.1.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed) >> 8
    }

    fn for_datagram(&self, _: SocketAddr, _: SocketAddr) -> BoxFuture<'_, Arc<[SocketAddr]>> {
        Box::pin(async { [self.0].into() })
    }

    fn for_stream<'a>(&'a self, _: &'a TcpStream) -> BoxFuture<'a, Arc<[SocketAddr]>> {
        Box::pin(async { [self.0].into() })
    }

    fn udp(&self, server: SocketAddr) -> BoxFuture<'_, io::Result<UdpSocket>> {
        Box::pin(async move {
            let socket = UdpSocket::bind("127.0.0.1:0").await?;
            socket.connect(server).await?;
            Ok(socket)
        })
    }

    fn tcp(&self, server: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(TcpStream::connect(server))
    }
}

/// A server, a nameserver that repeats what it hears, and a client, all on one thread.
fn serve(runtime: &Runtime) -> UdpSocket {
    runtime.block_on(async {
        let nameserver = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let at = nameserver.local_addr().expect("its address");
        tokio::spawn(async move {
            let mut buffer = [0; 1024];
            while let Ok((length, from)) = nameserver.recv_from(&mut buffer).await {
                buffer[2] |= 0x80;
                let _ = nameserver.send_to(&buffer[..length], from).await;
            }
        });
        let view = View {
            mesh: mesh(10_000),
            network: Network::default(),
            search: Arc::default(),
        };
        let way = Arc::new(Way(at, AtomicU64::new(1)));
        let server = Server::builder(Zone::default(), "shop", Arc::new(move || Some(view.clone())), way).build();
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let client = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        client.connect(socket.local_addr().expect("its address")).await.expect("loopback");
        tokio::spawn(async move { server.serve_udp(socket).await });
        client
    })
}

fn through(c: &mut Criterion) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let client = serve(&runtime);
    let mut group = c.benchmark_group("dns_through_a_server");
    for (name, query) in [("answered", query(OURS)), ("forwarded", query(OTHERS))] {
        let ask = || async {
            client.send(&query).await.expect("it is sent");
            let mut reply = [0; 1024];
            client.recv(&mut reply).await.expect("it is answered")
        };
        group.bench_function(name, |b| b.iter(|| runtime.block_on(ask())));
    }
    group.finish();
}

criterion_group!(benches, decide, through);
criterion_main!(benches);
