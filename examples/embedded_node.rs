//! A node within another program: its state comes from memory, its pod's connections from a listener of ours, and an observer
//! of ours is told of each.
//!
//! ```text
//! cargo run --example embedded_node
//! ```
//!
//! It takes no rights: the node runs in a user namespace and a network of its own.

#[path = "shared/embedder.rs"]
#[allow(dead_code, reason = "of what peers need only the certificates are used here")]
mod embedder;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use ambient_control::{Batch, BoxFuture, Change, IssueError, Issuer, Source};
use ambient_core::{
    Capture, Credential, Credentials as _, Identity, Membership, NamespacedHostname, NetworkAddress, Observer, Service, ServicePort,
    TrustBundles, TrustDomain, Workload, credential::Fixed, mesh::Update, observe::Event,
};
use ambient_node::{Arrival, Config, Listener, Node, Page, PodSpec};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};

/// The virtual address of a service that one endpoint serves.
const SHOP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(240, 0, 0, 1)), 80);

/// The state of the mesh: told once, and never changed.
struct InMemory(Option<Batch>);

impl Source for InMemory {
    fn next(&mut self) -> BoxFuture<'_, Option<Batch>> {
        let batch = self.0.take();
        Box::pin(async {
            match batch {
                Some(batch) => Some(batch),
                // It ends with the program: a source that ends stops its node.
                None => std::future::pending().await,
            }
        })
    }
}

/// Certificates of a CA made here.
struct Authority(Fixed);

impl Issuer for Authority {
    fn issue<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Arc<Credential>, IssueError>> {
        let refused = || IssueError::Refused {
            identity: identity.clone(),
            why: "it is nobody of ours".into(),
        };
        Box::pin(async move { self.0.credential(identity).ok_or_else(refused) })
    }

    fn trust(&self) -> Arc<TrustBundles> {
        self.0.trust()
    }
}

/// Whatever connects here wants to the shop.
struct Door(TcpListener);

impl Listener for Door {
    fn accept(&self) -> BoxFuture<'_, Option<io::Result<Arrival>>> {
        Box::pin(async {
            let accepted = self.0.accept().await;
            Some(accepted.and_then(|(stream, peer)| Ok(Arrival::outbound(stream.into_std()?, peer, SHOP))))
        })
    }
}

/// Passes on what ended, and how many bytes went each way.
struct Ended(mpsc::UnboundedSender<(SocketAddr, u64, u64)>);

impl Observer for Ended {
    fn observe(&self, event: &Event<'_>) {
        if let Event::ConnectionEnded {
            destination,
            requested,
            answered,
            ..
        } = event
        {
            // Nobody may be listening any more.
            let _ = self.0.send((*destination, *requested, *answered));
        }
    }
}

/// A pod that is ours, and a service with one endpoint.
fn mesh(pod: &PodSpec, endpoint: SocketAddr) -> Batch {
    let mut client = Workload::new("ours//client", &pod.namespace, &pod.name);
    client.pod = Some(pod.uid.clone());
    client.service_account = pod.service_account.clone();
    client.addresses = pod.addresses.clone();
    let mut server = Workload::new("ours//server", "shop", "server");
    server.addresses = vec![endpoint.ip()];
    let name = NamespacedHostname::new("shop", "shop.example");
    server.services = vec![Membership {
        service: name.clone(),
        ports: [(SHOP.port(), endpoint.port())].into_iter().collect(),
    }];
    let mut shop = Service::new(&name.namespace, &name.hostname);
    shop.vips = vec![NetworkAddress::local(SHOP.ip())];
    shop.ports = vec![ServicePort {
        port: SHOP.port(),
        target: 0,
    }];
    let updates = [
        Update::Workload(client.into()),
        Update::Workload(server.into()),
        Update::Service(shop.into()),
    ];
    Batch {
        changes: updates.into_iter().map(Change::Mesh).collect(),
        synced: true,
        ..Batch::default()
    }
}

async fn run() -> anyhow::Result<()> {
    let door = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let entrance = door.local_addr()?;
    let application = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let endpoint = application.local_addr()?;
    tokio::spawn(echo(application));

    let pod = PodSpec {
        uid: "the-only-one".into(),
        namespace: "shop".into(),
        name: "client".into(),
        service_account: "client".into(),
        addresses: vec![Ipv4Addr::new(10, 0, 0, 1).into()],
        capture: Capture::default(),
        has_run: true,
    };
    let domain = TrustDomain::default();
    let identity = Identity::new(&domain, &pod.namespace, &pod.service_account)?;
    let (ended, mut told) = mpsc::unbounded_channel();
    let node = Node::builder(Config::new("here", "/nowhere"))
        .source(InMemory(Some(mesh(&pod, endpoint))))
        .issuer(Authority(embedder::issue(&domain, &[&identity])?))
        .observer(Ended(ended))
        .page(Page::Metrics, std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)
        .page(Page::Readiness, std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)
        .page(Page::Admin, std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)
        .pod(pod, Door(door))
        .build()
        .await?;
    let metrics = node.page(Page::Metrics);
    let node = node.spawn();
    timeout(PATIENCE, node.ready()).await?;
    anyhow::ensure!(node.is_ready(), "the node is not ready: {}", node.condition());

    let mut connection = TcpStream::connect(entrance).await?;
    connection.write_all(b"hello").await?;
    connection.shutdown().await?;
    let mut heard = String::new();
    timeout(PATIENCE, connection.read_to_string(&mut heard)).await??;
    anyhow::ensure!(heard == "hello", "the shop has answered {heard:?}");
    let (destination, requested, answered) = timeout(PATIENCE, told.recv()).await?.unwrap_or((SHOP, 0, 0));
    println!("a connection to {SHOP} went to {destination}: {requested} bytes there, {answered} back");
    anyhow::ensure!(
        (destination, requested, answered) == (endpoint, 5, 5),
        "the observer was told of something else"
    );
    println!(
        "metrics are at {}",
        metrics.map_or_else(|| "no address".into(), |at| at.to_string())
    );

    node.drain();
    timeout(PATIENCE, node.join()).await??;
    let refused = TcpStream::connect(entrance).await.is_err();
    anyhow::ensure!(refused, "the listener that was given is open still");
    println!("the node has ended");
    Ok(())
}

async fn echo(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        });
    }
}

/// The most that anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Enters namespaces of its own first, which only a process with one thread can.
pub(crate) fn main() -> ExitCode {
    let world = match ambient_testkit::world::enter_or_skip("embedded_node") {
        Ok(Some(world)) => world,
        Ok(None) => return ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("{failed}");
            return ExitCode::FAILURE;
        }
    };
    let ran = world.namespace("here").map_err(anyhow::Error::from).and_then(|here| {
        let ran = here.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(run())
        });
        ran.map_err(anyhow::Error::from).and_then(|ran| ran)
    });
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
