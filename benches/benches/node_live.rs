//! A change of policy while 10,000 connections stand open to a node: how long those that it refuses go on, and what the others
//! notice. The node is embedded, its peer speaks from the same process through tunnels, the applications are a process of
//! their own.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]

use std::{
    env,
    error::Error,
    io::{self, Write as _},
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use ambient_authz::{Action, Match, Policy, Rule, Scope, StringMatch, policy};
use ambient_benches::{Certs, report};
use ambient_control::{Batch, Change, IssueError, Issuer, Source};
use ambient_core::{Capture, Credential, Credentials as _, Identity, PolicyKey, TrustBundles, Workload, mesh::Update};
use ambient_hbone::{BoxFuture, BoxedIo, Destination, Dial, Limits, Pool, Speaker, Stream};
use ambient_node::{Arrival, Config, Listener, Node, Page, PodSpec};
use ambient_testkit::{World, world};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::mpsc,
    task::JoinSet,
    time,
};

type Failure = Box<dyn Error + Send + Sync>;

/// Who has the connections that a change refuses, and who has those that stand by.
const REFUSED: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);
const BESIDE: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 2);
const PORT: u16 = 8080;
const HBONE: u16 = 15008;
/// Connections that a change refuses.
const CUT: usize = 100;
const APPLICATION: &str = "AMBIENT_BENCH_APPLICATION";
const PATIENCE: Duration = Duration::from_secs(60);
/// Descriptors of a process besides one for each connection that stands.
const OTHERS: u64 = 1_000;

fn main() -> Result<(), Box<dyn Error>> {
    if env::args().any(|arg| arg == "--list") || !report::is_asked_for("live") {
        return Ok(());
    }
    if env::var_os(APPLICATION).is_some() {
        return Ok(answer_all()?);
    }
    // While this is the only thread.
    match world::enter_or_skip("node_live")? {
        Some(world) => run(&world),
        None => Ok(()),
    }
}

fn run(world: &World) -> Result<(), Box<dyn Error>> {
    let (standing, rounds) = if report::is_whole_run() { (10_000, 7) } else { (200, 1) };
    let standing = allowed(standing)?;
    let here = world.namespace("here")?;
    here.run(|| -> Result<(), Failure> {
        let mut application = start_application()?;
        let measured = measure(standing, rounds);
        application.kill()?;
        application.wait()?;
        measured
    })?
    .map_err(|error| error as Box<dyn Error>)
}

/// As many as there are descriptors for, of which a connection takes one in this process and one in the applications'.
fn allowed(standing: usize) -> io::Result<usize> {
    let most = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: most,
        maximum: most,
    };
    setrlimit(Resource::Nofile, limit)?;
    let room = most.map_or(standing, |most| usize::try_from(most.saturating_sub(OTHERS)).unwrap_or(standing));
    if room < standing {
        println!("the limit of open files leaves room for {room} connections");
    }
    Ok(standing.min(room))
}

fn single_threaded() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// What a change is, and what takes it back.
struct Turn {
    name: &'static str,
    change: Vec<Change>,
    back: Vec<Change>,
}

fn measure(standing: usize, rounds: usize) -> Result<(), Failure> {
    let certs = Arc::new(Certs::new());
    let (changes, told) = mpsc::unbounded_channel();
    changes.send(batch(mesh(&[])))?;
    let node = {
        let certs = certs.clone();
        // On a thread of its own, as in a program that is a node.
        thread::spawn(move || single_threaded()?.block_on(serve(certs, told)))
    };
    let client = single_threaded()?;
    let measured = client.block_on(client_of(&certs, &changes, standing, rounds));
    // A source that ends stops its node.
    drop(changes);
    let _ = node.join().map_err(|_| "the node has panicked")?;
    measured
}

async fn client_of(certs: &Arc<Certs>, changes: &mpsc::UnboundedSender<Batch>, standing: usize, rounds: usize) -> Result<(), Failure> {
    let peer = Peer::new(certs);
    let mut beside = peer.open(BESIDE, standing).await?;
    println!(
        "{CUT} connections are refused by a change, {} others stand; medians of {rounds} rounds",
        beside.len()
    );
    println!(
        "{:<12} {:>12} {:>12} {:>14} {:>14}",
        "change", "first cut", "last cut", "p99 without", "p99 with"
    );
    for Turn { name, change, back } in turns(certs) {
        let mut seen = [const { Vec::new() }; 4];
        for _ in 0..rounds {
            let refused = peer.open(REFUSED, CUT).await?;
            let without = asked(&mut beside, Duration::from_secs(1)).await?;
            let begun = Instant::now();
            changes.send(batch(change.clone()))?;
            let cutting = tokio::spawn(all_cut(refused, begun));
            let with = asked(&mut beside, Duration::from_millis(500)).await?;
            let (first, last) = time::timeout(PATIENCE, cutting).await??;
            for (samples, sample) in seen.iter_mut().zip([first, last, without, with]) {
                samples.push(sample);
            }
            changes.send(batch(back.clone()))?;
        }
        let [first, last, without, with] = seen.map(median);
        println!("{name:<12} {first:>12.2?} {last:>12.2?} {without:>14.2?} {with:>14.2?}");
    }
    for stream in &mut beside {
        there_and_back(stream).await?;
    }
    println!("all {} others are open still", beside.len());
    Ok(())
}

/// How long the first and the last of connections go on.
async fn all_cut(streams: Vec<Stream>, begun: Instant) -> (Duration, Duration) {
    let mut ends = JoinSet::new();
    for mut stream in streams {
        ends.spawn(async move {
            // However it ends.
            let _ = stream.read(&mut [0]).await;
            begun.elapsed()
        });
    }
    let all = ends.join_all().await;
    let of = |pick: fn(std::slice::Iter<'_, Duration>) -> Option<&Duration>| pick(all.iter()).copied().unwrap_or_default();
    (of(|all| all.min()), of(|all| all.max()))
}

/// The time that one message of a hundred is slower than, of messages one after the other over all connections.
async fn asked(streams: &mut [Stream], length: Duration) -> Result<Duration, Failure> {
    let (begun, mut took, mut next) = (Instant::now(), Vec::new(), 0);
    while begun.elapsed() < length {
        let asked = Instant::now();
        let count = streams.len();
        there_and_back(&mut streams[next % count]).await?;
        took.push(asked.elapsed());
        // Far from the one before.
        next += 7919;
    }
    took.sort_unstable();
    Ok(took[took.len() * 99 / 100])
}

async fn there_and_back(stream: &mut Stream) -> Result<(), Failure> {
    let mut heard = [0; 16];
    stream.write_all(&[7; 16]).await?;
    stream.flush().await?;
    time::timeout(PATIENCE, stream.read_exact(&mut heard)).await??;
    Ok(())
}

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort_unstable();
    samples[samples.len() / 2]
}

/// Three changes that refuse the same: a policy that was there, one that a workload comes to list, and one of the namespace,
/// which concerns every connection that stands.
fn turns(certs: &Certs) -> [Turn; 3] {
    let denies = |name: &str, scope, who: &str, whom: Option<Ipv4Addr>| {
        let found = Match {
            principals: vec![StringMatch::Exact(who.into())],
            destination_ips: whom.map(|ip| std::net::IpAddr::from(ip).into()).into_iter().collect(),
            ..Match::default()
        };
        Change::Policy(policy::Update::Set(Arc::new(Policy {
            key: format!("shop/{name}").as_str().into(),
            namespace: "shop".into(),
            scope,
            action: Action::Deny,
            rules: vec![Rule {
                clauses: vec![found.into()],
            }],
            dry_run: false,
        })))
    };
    let client = certs.cart.principal();
    let removed = |name: &str| Change::Policy(policy::Update::Remove(format!("shop/{name}").as_str().into()));
    let lists = |names: &[&str]| mesh(names).into_iter().take(1);
    let with = |policy: Change, names: &[&str]| lists(names).chain([policy]).collect::<Vec<_>>();
    [
        Turn {
            name: "policy",
            change: with(denies("listed", Scope::Selector, client, None), &["listed"]),
            back: with(denies("listed", Scope::Selector, "nobody", None), &["listed"]),
        },
        Turn {
            name: "workload",
            change: with(denies("attached", Scope::Selector, client, None), &["attached"]),
            back: lists(&[]).collect(),
        },
        Turn {
            name: "namespace",
            change: vec![denies("wide", Scope::Namespace, client, Some(REFUSED))],
            back: vec![removed("wide")],
        },
    ]
}

/// Both pods' workloads, the first of which lists these policies.
fn mesh(listed: &[&str]) -> Vec<Change> {
    let workload = |name: &str, ip: Ipv4Addr, listed: &[&str]| {
        let mut workload = Workload::new(&format!("c//Pod/shop/{name}"), "shop", name);
        workload.pod = Some(name.into());
        workload.service_account = "stock".into();
        workload.addresses = vec![ip.into()];
        workload.policies = listed.iter().map(|name| PolicyKey::from(&*format!("shop/{name}"))).collect();
        Change::Mesh(Update::Workload(workload.into()))
    };
    vec![workload("refused", REFUSED, listed), workload("beside", BESIDE, &[])]
}

fn batch(changes: Vec<Change>) -> Batch {
    Batch {
        changes,
        synced: true,
        ..Batch::default()
    }
}

async fn serve(certs: Arc<Certs>, told: mpsc::UnboundedReceiver<Batch>) -> io::Result<()> {
    let page = || std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let mut builder = Node::builder(Config::new("here", "/nowhere"))
        .source(Told(told))
        .issuer(Issued(certs))
        .page(Page::Metrics, page()?)
        .page(Page::Readiness, page()?)
        .page(Page::Admin, page()?);
    for (name, ip) in [("refused", REFUSED), ("beside", BESIDE)] {
        let pod = PodSpec {
            uid: name.into(),
            namespace: "shop".into(),
            name: name.into(),
            service_account: "stock".into(),
            addresses: vec![ip.into()],
            capture: Capture::default(),
            has_run: true,
        };
        builder = builder.pod(pod, Door(TcpListener::bind((ip, HBONE)).await?));
    }
    let node = builder.build().await.map_err(io::Error::other)?;
    // Ends with its source, which is what it is told to end by.
    let _ = node.spawn().join().await;
    Ok(())
}

struct Told(mpsc::UnboundedReceiver<Batch>);

impl Source for Told {
    fn next(&mut self) -> BoxFuture<'_, Option<Batch>> {
        Box::pin(self.0.recv())
    }
}

struct Issued(Arc<Certs>);

impl Issuer for Issued {
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

/// Where a pod's tunnels come.
struct Door(TcpListener);

impl Listener for Door {
    fn accept(&self) -> BoxFuture<'_, Option<io::Result<Arrival>>> {
        Box::pin(async {
            let accepted = self.0.accept().await;
            Some(accepted.and_then(|(stream, peer)| Ok(Arrival::tunnel(stream.into_std()?, peer))))
        })
    }
}

/// Who speaks to both pods.
struct Peer {
    pool: Pool,
    speaker: Speaker,
    server: Identity,
}

impl Peer {
    fn new(certs: &Arc<Certs>) -> Self {
        let mut limits = Limits::default();
        // Enough for all of them.
        limits.tunnels = 64;
        let pool = Pool::builder(Arc::new(Tcp), certs.clone(), Arc::new(ambient_tls::provider()));
        Self {
            pool: pool.limits(limits).build(),
            speaker: Speaker::new("cart-0", certs.cart.clone()),
            server: certs.stock.clone(),
        }
    }

    /// So many connections to a pod, over each of which something has gone there and back.
    async fn open(&self, pod: Ipv4Addr, count: usize) -> Result<Vec<Stream>, Failure> {
        let to = SocketAddr::from((pod, PORT));
        let destination = Destination::new((pod, HBONE).into(), to.into(), [self.server.clone()]);
        let begun = Instant::now();
        let mut streams = Vec::with_capacity(count);
        while streams.len() < count {
            match self.pool.connect(&self.speaker, &destination).await {
                Ok(mut stream) => match there_and_back(&mut stream).await {
                    Ok(()) => streams.push(stream),
                    Err(error) if begun.elapsed() > PATIENCE => return Err(error),
                    Err(_) => {}
                },
                Err(error) if begun.elapsed() > PATIENCE => return Err(error.into()),
                // The node has only begun, or what was refused is not let in again yet.
                Err(_) => time::sleep(Duration::from_millis(10)).await,
            }
        }
        Ok(streams)
    }
}

struct Tcp;

impl Dial for Tcp {
    fn dial<'a>(&'a self, _: &'a Speaker, peer: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
        Box::pin(async move {
            let stream = TcpStream::connect(peer).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as BoxedIo)
        })
    }
}

/// Starts the applications, and waits until they listen.
fn start_application() -> io::Result<Child> {
    let mut child = Command::new(env::current_exe()?)
        .args(env::args_os().skip(1))
        .env(APPLICATION, "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let mut ready = [0];
    if let Some(stdout) = &mut child.stdout {
        io::Read::read_exact(stdout, &mut ready)?;
    }
    Ok(child)
}

/// Gives back what comes, as an application of either pod.
fn answer_all() -> io::Result<()> {
    single_threaded()?.block_on(async {
        let mut listeners = JoinSet::new();
        for ip in [REFUSED, BESIDE] {
            let listener = TcpListener::bind((ip, PORT)).await?;
            listeners.spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    tokio::spawn(async move {
                        let mut message = [0; 16];
                        while stream.read_exact(&mut message).await.is_ok() && stream.write_all(&message).await.is_ok() {}
                    });
                }
            });
        }
        io::stdout().write_all(b"!")?;
        io::stdout().flush()?;
        while listeners.join_next().await.is_some() {}
        Ok(())
    })
}
