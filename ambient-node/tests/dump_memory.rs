//! What `/config_dump` of a large mesh costs while it is read: a node without captures, in a world of its own.
#![allow(clippy::unwrap_used, reason = "a test; what clippy.toml allows it in has a harness")]

use std::{
    env, io,
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use ambient_control::{Batch, BoxFuture, Change, IssueError, Issuer, Source};
use ambient_core::{Capture, Credential, Identity, Membership, NamespacedHostname, Service, TrustBundles, Workload, mesh::Update};
use ambient_node::{Arrival, Config, Listener, Node, Page, PodSpec};
use ambient_testkit::{
    World,
    allocations::{self, Counting},
    harness::{self, Outcome},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time,
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How many workloads, unless `AMBIENT_DUMP_WORKLOADS` says otherwise, and for so many there is one service.
const WORKLOADS: usize = 20_000;
const TO_A_SERVICE: usize = 10;
/// Two pieces of 32 KiB that wait, the one that is written, and what an HTTP server and a client hold besides.
const MOST: usize = 512 << 10;
const PATIENCE: Duration = Duration::from_secs(100);

fn main() -> ExitCode {
    harness::main(&[(
        "a_dump_of_a_large_mesh_takes_no_memory_that_grows_with_it",
        a_dump_of_a_large_mesh_takes_no_memory_that_grows_with_it,
    )])
}

fn a_dump_of_a_large_mesh_takes_no_memory_that_grows_with_it(world: &World) -> Outcome {
    world.namespace("here")?.run(|| -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(read_one()).map_err(io::Error::other)
    })??;
    Ok(())
}

async fn read_one() -> Result<(), String> {
    let fail = |error: &dyn std::error::Error| error.to_string();
    let asked_for = env::var("AMBIENT_DUMP_WORKLOADS").ok().and_then(|text| text.parse().ok());
    let workloads = asked_for.unwrap_or(WORKLOADS);
    let services = workloads / TO_A_SERVICE;
    let page = || std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|e| fail(&e));
    let node = Node::builder(Config::new("here", "/nowhere"))
        .source(Told(Some(mesh(workloads, services))))
        .issuer(Nobody)
        .page(Page::Metrics, page()?)
        .page(Page::Readiness, page()?)
        .page(Page::Admin, page()?)
        .pod(pod(), Quiet)
        .build()
        .await
        .map_err(|e| fail(&e))?;
    let admin = node.page(Page::Admin).ok_or("no admin pages")?;
    let running = node.spawn();
    time::timeout(PATIENCE, running.ready()).await.map_err(|_| running.condition())?;

    // What is made once, for any page.
    asked(admin, "/").await?;
    let before = allocations::held();
    allocations::forget_peak();
    let (length, lines) = asked(admin, "/config_dump").await?;
    let more = allocations::peak().saturating_sub(before);
    println!("{length} bytes, with {more} more allocated at the peak");
    // Each object has a line of its own.
    assert!(lines > workloads + services && length > 8 * MOST, "{lines} lines, {length} bytes");
    assert!(more < MOST, "{more} bytes more were allocated while {length} were read");
    is_in_order(admin, workloads).await?;
    running.shutdown();
    time::timeout(PATIENCE, running.join())
        .await
        .map_err(|e| fail(&e))?
        .map_err(|e| fail(&e))
}

async fn asked(from: SocketAddr, path: &str) -> Result<(usize, usize), String> {
    let read = time::timeout(PATIENCE, read(from, path))
        .await
        .map_err(|_| format!("{path} takes too long"))?;
    read.map_err(|error| format!("{path}: {error}"))
}

/// So that dumps of two nodes can be compared: each process keeps what it knows in an order of its own.
async fn is_in_order(admin: SocketAddr, workloads: usize) -> Result<(), String> {
    let mut stream = TcpStream::connect(admin).await.map_err(|e| e.to_string())?;
    stream
        .write_all(b"GET /config_dump HTTP/1.0\r\n\r\n")
        .await
        .map_err(|e| e.to_string())?;
    let mut answer = String::new();
    let read = time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await;
    read.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    let (_, dump) = answer.split_once("\r\n\r\n").ok_or("no page has come")?;
    let dump: serde_json::Value = serde_json::from_str(dump).map_err(|e| e.to_string())?;
    let texts = |list: &str, name: &str| -> Vec<String> {
        let all = dump[list].as_array().into_iter().flatten();
        all.filter_map(|one| Some(one[name].as_str()?.to_owned())).collect()
    };
    let (uids, hostnames) = (texts("workloads", "uid"), texts("services", "hostname"));
    assert_eq!((uids.len(), hostnames.len()), (workloads, workloads / TO_A_SERVICE));
    assert!(uids.is_sorted() && hostnames.is_sorted());
    Ok(())
}

/// Reads a page as somebody would who stops to think at times; gives how many bytes it has, and how many lines.
async fn read(from: SocketAddr, path: &str) -> io::Result<(usize, usize)> {
    let socket = TcpSocket::new_v4()?;
    // The kernel takes little for it, so that what it does not read waits at the server.
    socket.set_recv_buffer_size(64 << 10)?;
    let mut stream = socket.connect(from).await?;
    let asked = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(asked.as_bytes()).await?;
    let (mut buffer, mut length, mut lines, mut whole) = (vec![0; 64 << 10], 0, 0, false);
    loop {
        let got = stream.read(&mut buffer).await?;
        if got == 0 {
            return if whole {
                Ok((length, lines))
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            };
        }
        if length >> 22 != (length + got) >> 22 {
            time::sleep(Duration::from_millis(500)).await;
        }
        length += got;
        lines += buffer[..got].iter().filter(|byte| **byte == b'\n').count();
        // The last chunk is empty, and comes last.
        whole = path == "/" || buffer[..got].ends_with(b"0\r\n\r\n");
    }
}

fn mesh(workloads: usize, services: usize) -> Batch {
    let name = |n: usize| NamespacedHostname::new("shop", &format!("service-{n}.shop.svc.cluster.local"));
    let workloads = (0..workloads).map(|n| {
        let mut workload = Workload::new(&format!("Kubernetes//Pod/shop/pod-{n}"), "shop", &format!("pod-{n}"));
        workload.addresses = vec![Ipv4Addr::from_bits(0x0a00_0000 + n as u32).into()];
        workload.services = vec![Membership {
            service: name(n % services),
            ports: [(80, 8080)].into_iter().collect(),
        }];
        Update::Workload(workload.into())
    });
    let services = (0..services).map(|n| Update::Service(Service::new("shop", &name(n).hostname).into()));
    Batch {
        changes: workloads.chain(services).map(Change::Mesh).collect(),
        synced: true,
        ..Batch::default()
    }
}

/// One that opens nothing: a node that is given a pod captures none.
fn pod() -> PodSpec {
    PodSpec {
        uid: "uid".into(),
        namespace: "shop".into(),
        name: "pod-0".into(),
        service_account: "default".into(),
        addresses: Vec::new(),
        capture: Capture::default(),
        has_run: true,
    }
}

/// The state of the mesh: told once.
struct Told(Option<Batch>);

impl Source for Told {
    fn next(&mut self) -> BoxFuture<'_, Option<Batch>> {
        let batch = self.0.take();
        Box::pin(async {
            match batch {
                Some(batch) => Some(batch),
                None => std::future::pending().await,
            }
        })
    }
}

struct Nobody;

impl Issuer for Nobody {
    fn issue<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Arc<Credential>, IssueError>> {
        Box::pin(async move {
            Err(IssueError::Refused {
                identity: identity.clone(),
                why: "nobody is asked".into(),
            })
        })
    }

    fn trust(&self) -> Arc<TrustBundles> {
        Arc::default()
    }
}

struct Quiet;

impl Listener for Quiet {
    fn accept(&self) -> BoxFuture<'_, Option<io::Result<Arrival>>> {
        Box::pin(std::future::pending())
    }
}
