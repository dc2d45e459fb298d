//! What somebody notices of what others on its node do: how many of its requests are answered, and how late.

use std::{
    error::Error,
    fmt::Write as _,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream as StdStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ipnet::Ipv4Net;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time,
};

use crate::{
    app::{self, Work},
    mesh::{Mesh, NODES},
    node::{self, Node, Place},
};

/// What somebody saw within a time.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Requests that were answered, a second.
    pub rate: f64,
    /// How late the latest hundredth of the answers were, at the least.
    pub p99: Duration,
}

/// A client that minds its own business: messages there and back over connections that stand, or a connection for each.
#[derive(Debug)]
pub struct Bystander {
    client: Place,
    app: Node,
    work: Work,
    connections: usize,
}

impl Bystander {
    /// In the pod of the client, with an application of its own.
    ///
    /// # Panics
    /// When the machine refuses.
    pub fn new(mesh: &Mesh, work: Work, connections: usize) -> Self {
        Self {
            client: mesh.sides().near.clone(),
            app: app::start(&mesh.sides().far),
            work,
            connections,
        }
    }

    /// What it sees for so long.
    ///
    /// # Panics
    /// When a connection does not stay open.
    pub fn look(&self, span: Duration) -> Seen {
        let (work, entrance, connections) = (self.work, self.app.address, self.connections);
        let look = || {
            self.client.enter();
            node::runtime().block_on(async {
                let end = now() + span;
                let mut all = JoinSet::new();
                for _ in 0..connections {
                    all.spawn(requests(work, entrance, end));
                }
                all.join_all().await.concat()
            })
        };
        let pod = self.client.elsewhere().expect("the client's pod has a namespace");
        let mut took = pod.run(look).expect("the namespace can be entered");
        took.sort();
        Seen {
            rate: took.len() as f64 / span.as_secs_f64(),
            p99: took[(took.len() - 1) * 99 / 100],
        }
    }
}

/// One after the other, and how long each took.
async fn requests(work: Work, entrance: SocketAddr, end: Instant) -> Vec<Duration> {
    let mut connection = match work {
        Work::Touch => None,
        _ => Some(node::connect(entrance).await.expect("the application listens")),
    };
    let mut took = Vec::new();
    loop {
        let begun = now();
        if begun >= end && !took.is_empty() {
            return took;
        }
        work.carry_out(entrance, &mut connection, 1).await.expect("the way stays open");
        took.push(begun.elapsed());
    }
}

/// What a bad pod does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ill {
    /// Connects, says a byte, is answered and closes, and all of it again, as fast as it can.
    Connects,
    /// Connects to where nobody listens, as fast as it can.
    IsRefused,
    /// Sends as much as is taken.
    Sends,
}

/// What the processes of a bad pod, and of whom it talks to, may take of the machine's processors themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// What others leave: then what the others lose is what is done for the storm on the way.
    Leavings,
    /// As much as any.
    Equal,
}

/// A storm out of the other client's pod, until it is dropped.
#[derive(Debug)]
pub struct Storm {
    over: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
    _app: Node,
}

impl Storm {
    /// So many at once; with an application of its own, so that the other's has nothing to do with it.
    ///
    /// # Panics
    /// When the mesh has no pod for it.
    pub fn begin(mesh: &Mesh, ill: Ill, means: Means, at_once: usize) -> Self {
        let bad = mesh.other().expect("a mesh with another client").clone();
        let app = app::start(&mesh.sides().far);
        if means == Means::Leavings {
            app.step_back();
        }
        let to = match ill {
            Ill::IsRefused => SocketAddr::new(app.address.ip(), 1),
            Ill::Connects | Ill::Sends => app.address,
        };
        let (over, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (until, count, near) = (over.clone(), done.clone(), mesh.sides().near.clone());
        let storm = move || {
            near.enter();
            if means == Means::Leavings {
                node::step_back();
            }
            node::runtime().block_on(async {
                let mut all = JoinSet::new();
                for _ in 0..at_once {
                    let (until, count) = (until.clone(), count.clone());
                    all.spawn(async move {
                        while !until.load(Ordering::Relaxed) {
                            // Whatever comes of it, there is a next one.
                            let _ = time::timeout(Duration::from_secs(5), one(ill, to, &until, &count)).await;
                        }
                    });
                }
                all.join_all().await;
            });
        };
        let thread = thread::spawn(move || bad.run(storm).expect("the namespace can be entered"));
        Self {
            over,
            done,
            thread: Some(thread),
            _app: app,
        }
    }

    /// Connections, or messages of 256 KiB, so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // A panic has been printed where it happened.
        self.thread.take().map(JoinHandle::join);
    }
}

async fn one(ill: Ill, to: SocketAddr, until: &AtomicBool, count: &AtomicU64) -> io::Result<()> {
    let mut connection = match TcpStream::connect(to).await {
        Ok(connection) => connection,
        Err(error) => {
            count.fetch_add(1, Ordering::Relaxed);
            return Err(error);
        }
    };
    match ill {
        Ill::Connects => {
            connection.write_u8(Work::Touch as u8).await?;
            connection.read_u8().await?;
        }
        // Its node has accepted it, and tells of the refusal by a reset.
        Ill::IsRefused => drop(connection.read_u8().await),
        Ill::Sends => {
            connection.write_all(&Work::Upload.order(u32::MAX)).await?;
            let chunk = vec![7; Work::Upload.bytes()];
            while !until.load(Ordering::Relaxed) {
                connection.write_all(&chunk).await?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            return Ok(());
        }
    }
    count.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Has the client's node tell of so many workloads, each under labels of its own.
///
/// # Errors
/// When the mesh does not come to know them.
pub fn meet_many(mesh: &Mesh, count: u16) -> Result<(), Box<dyn Error>> {
    let address = |n: u16| Ipv4Addr::new(10, 200, (n >> 8) as u8, n as u8);
    mesh.serve_block(Ipv4Net::new(Ipv4Addr::new(10, 200, 0, 0), 16)?)?;
    let mut text = String::new();
    for n in 1..=count {
        let address = address(n);
        write!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: met-{n}, namespace: outside, uid: met-{n}}}\n\
             spec: {{nodeName: {}, containers: [{{name: a, image: a}}]}}\n\
             status: {{phase: Running, podIP: {address}, podIPs: [{{ip: {address}}}], conditions: [{{type: Ready, status: \"True\"}}]}}\n",
            NODES[1],
        )?;
    }
    mesh.apply("met", &text)?;
    let app = app::start(&Place::namespace(
        &mesh.sides().far.elsewhere().ok_or("the application's pod has a namespace")?,
        Ipv4Addr::UNSPECIFIED.into(),
    ));
    let client = mesh.sides().near.elsewhere().ok_or("the client's pod has a namespace")?;
    let to = |n| SocketAddr::new(address(n).into(), app.address.port());
    let meet = || {
        (1..=count).try_for_each(|n| {
            let mut connection = StdStream::connect_timeout(&to(n), Duration::from_secs(5))?;
            connection.set_read_timeout(Some(Duration::from_secs(5)))?;
            connection.write_all(&[Work::Touch as u8])?;
            connection.read_exact(&mut [0])
        })
    };
    // Those that are met before they are known are all one: then all are met again.
    for _ in 0..30 {
        client.run(meet)??;
        let known = scrape(mesh)?
            .lines()
            .filter(|line| line.contains("destination_workload=\"met-"))
            .count();
        if known >= usize::from(count) * 4 {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(500));
    }
    Err("the mesh does not come to know all workloads".into())
}

/// The client's node's metrics.
///
/// # Errors
/// When the page is not whole.
pub fn scrape(mesh: &Mesh) -> Result<String, Box<dyn Error>> {
    let ask = || -> io::Result<String> {
        let mut stream = StdStream::connect((Ipv4Addr::LOCALHOST, 15020))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    };
    let page = mesh.client_node().run(ask)??;
    if page.ends_with("# EOF\n") {
        Ok(page)
    } else {
        Err("the page is cut off".into())
    }
}

/// Whoever scrapes again and again, until it is dropped.
#[derive(Debug)]
pub struct Scrapes {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<u32>>,
}

impl Scrapes {
    /// A page each time that so much time has passed, or as soon as the one before is read.
    pub fn begin(mesh: &Arc<Mesh>, every: Duration) -> Self {
        let over = Arc::<AtomicBool>::default();
        let (mesh, until) = (mesh.clone(), over.clone());
        let thread = thread::spawn(move || {
            let mut pages = 0;
            while !until.load(Ordering::Relaxed) {
                let begun = now();
                scrape(&mesh).expect("the page is served");
                pages += 1;
                thread::sleep(every.saturating_sub(begun.elapsed()));
            }
            pages
        });
        Self {
            over,
            thread: Some(thread),
        }
    }

    /// Ends them; how many there were.
    ///
    /// # Panics
    /// When one has failed.
    pub fn end(mut self) -> u32 {
        self.over.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it is ended once");
        thread.join().expect("each page was whole")
    }
}

#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
fn now() -> Instant {
    Instant::now()
}
