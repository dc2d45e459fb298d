//! dnspython on both sides of our server: as its clients, and as the nameserver that it forwards to. Where there is no
//! dnspython, that is said in a line that begins with SKIPPED.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    env, io,
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ambient_core::{Mesh, Network, NetworkAddress, Service, mesh::Update};
use ambient_dns::{BoxFuture, Server, Upstream, View, Zone};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::{TcpListener, TcpStream, UdpSocket},
    process::{Child, Command},
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(120);

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

/// A Python that has dnspython: that of the directory of others' programs, else the machine's.
async fn python() -> Option<PathBuf> {
    let own = env::var_os("AMBIENT_PEERS").map(|peers| PathBuf::from(peers).join("venv/bin/python"));
    for python in own.into_iter().chain([PathBuf::from("python3")]) {
        let tried = Command::new(&python)
            .args(["-c", "import dns.query"])
            .stderr(Stdio::null())
            .status()
            .await;
        if tried.is_ok_and(|status| status.success()) {
            return Some(python);
        }
    }
    None
}

fn peer(python: &PathBuf, arguments: &[&str]) -> Child {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/dnspython_peer.py");
    let mut command = Command::new(python);
    command.arg(script).args(arguments).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

fn view() -> View {
    let service = |namespace, hostname, vip: &str| {
        let mut service = Service::new(namespace, hostname);
        service.vips.push(NetworkAddress::local(vip.parse().unwrap()));
        Update::Service(service.into())
    };
    let services = [
        service("shop", "web.shop.svc.cluster.local", "10.96.0.7"),
        service("ops", "api.example.com", "240.0.0.1"),
    ];
    View {
        mesh: Mesh::default().apply(services),
        network: Network::default(),
        search: Arc::default(),
    }
}

#[tokio::test]
async fn dnspython_sees_the_mesh_and_everything_else_as_it_is() {
    let Some(python) = python().await else {
        ambient_testkit::skipped("dnspython as client and nameserver: there is none here; `pip install dnspython` would allow it");
        return;
    };
    let mut nameserver = peer(&python, &["nameserver"]);
    let mut said = BufReader::new(nameserver.stdout.take().unwrap()).lines();
    let direct = timeout(PATIENCE, said.next_line()).await.unwrap().unwrap().unwrap();
    let at = SocketAddr::from(([127, 0, 0, 1], direct.parse().unwrap()));

    let view = view();
    let way = Arc::new(Way(at, AtomicU64::new(1)));
    let server = Server::builder(Zone::default(), "shop", Arc::new(move || Some(view.clone())), way).build();
    let (socket, listener) = loop {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        if let Ok(listener) = TcpListener::bind(socket.local_addr().unwrap()).await {
            break (socket, listener);
        }
    };
    let ours = socket.local_addr().unwrap().port().to_string();
    let serving = tokio::spawn(async move { tokio::join!(server.serve_udp(socket), server.serve_tcp(listener)).0 });

    let mut client = peer(&python, &["client", &ours, &direct]);
    let mut said = BufReader::new(client.stdout.take().unwrap()).lines();
    let mut count = 0;
    while let Some(line) = timeout(PATIENCE, said.next_line()).await.unwrap().unwrap() {
        assert!(line.starts_with("ok "), "{line}");
        count += 1;
    }
    assert!(timeout(PATIENCE, client.wait()).await.unwrap().unwrap().success());
    assert_eq!(count, 2 * 4 + 4 + 11 * 3 * 2 + 1 + 2 * 3 + 1, "nothing was passed over");
    serving.abort();
}
