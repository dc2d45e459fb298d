//! What a mesh costs that comes from a control plane: over TLS and HTTP/2, decoded, applied and remembered; then single
//! changes of it; and what a tunnel's traffic notices of that.
//!
//! The control plane is this program again, in a process of its own: what it costs is not what is measured. What is measured
//! happens on one thread.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use ambient_benches::{Sides, Warmth, Way, app::Work, node, report, state};
use ambient_control::{
    Batch, BoxFuture, Change, Source,
    ca::DirectoryCa,
    istiod::{Asker, Endpoint, MemoryConfig, Roots, State, StateConfig, Token},
    serve::{Config, ControlPlane, Nodes, Use},
};
use ambient_core::{
    Mesh, TrustDomain,
    mesh::{Sharing, Update},
};
use ambient_testkit::allocations::{self, Counting};
use criterion::{Criterion, criterion_group};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    runtime::Runtime,
    sync::mpsc,
    task::JoinSet,
    time,
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Workloads: a few where it is only asked whether the bench runs. The control plane is told how many.
fn size() -> usize {
    let told = env::var(SERVES).ok().and_then(|size| size.parse().ok());
    told.unwrap_or_else(|| if report::is_whole_run() { 100_000 } else { 1000 })
}

/// Single changes, after all of them have come.
fn changes() -> usize {
    size() / 100
}

/// Connections beside which the mesh comes, and how long they are watched.
const CONNECTIONS: usize = 32;
const WATCHED: Duration = Duration::from_secs(4);
const ROUNDS: usize = 7;
/// Says to this program that it is the control plane.
const SERVES: &str = "AMBIENT_BENCH_SERVES";
const NODE: &str = "node-1";

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(ambient_tls::provider())
}

#[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
fn now() -> Instant {
    Instant::now()
}

/// How long this thread has been on a processor.
fn on_cpu() -> Duration {
    let told = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(told.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or_default())
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// What the control plane serves: the mesh, and each change that it is told to make.
struct Fed(mpsc::Receiver<Batch>);

impl Source for Fed {
    fn next(&mut self) -> BoxFuture<'_, Option<Batch>> {
        Box::pin(self.0.recv())
    }
}

fn batch(updates: Vec<Update>) -> Batch {
    Batch {
        changes: updates.into_iter().map(Change::Mesh).collect(),
        synced: true,
        ..Batch::default()
    }
}

/// The control plane: says where it is and what to show it, then makes so many single changes as each line of its input
/// says.
fn serve() {
    // It is on another machine by rights: it takes what nobody else wants of this one.
    let _ = rustix::process::nice(19);
    let scratch = tempfile::tempdir().expect("a directory");
    let trust_domain = TrustDomain::default();
    let ca = DirectoryCa::open(scratch.path(), trust_domain.clone(), DirectoryCa::DEFAULT_TTL).expect("an authority");
    let nodes = Nodes::new(scratch.path(), provider());
    #[expect(clippy::disallowed_methods, reason = "tokens end by the time of day")]
    let token = nodes
        .create_token(NODE, Duration::from_secs(3600), Use::Always, SystemTime::now())
        .expect("a token");
    let root = ca.roots_pem().to_string();
    let (feed, fed) = mpsc::channel(changes());
    runtime().block_on(async move {
        feed.send(batch(state::updates(size()))).await.expect("room");
        let config = Config {
            listen: "127.0.0.1:0".parse().expect("an address"),
            names: vec!["127.0.0.1".into()],
            trust_domain,
            source: Box::new(Fed(fed)),
            ca: Arc::new(ca),
            nodes,
            captures: None,
            provider: provider(),
        };
        let plane = ControlPlane::bind(config).await.expect("a port");
        let at = plane.local_addr().expect("an address");
        println!("{at} {token}\n{}", root.trim_end());
        let told = thread::spawn(move || {
            let mut n = 0;
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                for _ in 0..line.parse().unwrap_or(0) {
                    n += 1;
                    let mut workload = state::workload((n * 7919) % size());
                    // One that none has had yet.
                    workload.canonical_revision = format!("changed-{n}").into();
                    if feed.blocking_send(batch(vec![Update::Workload(workload.into())])).is_err() {
                        return;
                    }
                }
            }
        });
        plane
            .run(async move {
                // The first look at whether to end comes after the first batch, which takes a while to write down.
                time::sleep(Duration::from_millis(1)).await;
                println!("done");
                while !told.is_finished() {
                    time::sleep(Duration::from_millis(50)).await;
                }
            })
            .await;
    });
}

/// The control plane, as its clients know it.
struct Plane {
    process: Child,
    input: Option<ChildStdin>,
    endpoint: Endpoint,
}

impl Plane {
    fn start() -> Self {
        let program = env::current_exe().expect("this program");
        let mut command = Command::new(program);
        let mut process = command
            .env(SERVES, size().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program starts");
        let input = process.stdin.take();
        let mut said = BufReader::new(process.stdout.take().expect("its output"))
            .lines()
            .map_while(Result::ok);
        let first = said.next().expect("where it is");
        let (at, token) = first.split_once(' ').expect("where, and what to show");
        let root: Vec<String> = said.take_while(|line| line != "done").collect();
        let endpoint = Endpoint {
            roots: Roots::Pem(root.join("\n")),
            token: Some(Token::Literal(token.into())),
            ..Endpoint::new(at, provider())
        };
        Self { process, input, endpoint }
    }

    fn change(&mut self, times: usize) {
        let input = self.input.as_mut().expect("it listens");
        writeln!(input, "{times}").and_then(|()| input.flush()).expect("it listens");
    }

    /// A client that has nothing yet.
    fn state(&self, memory: Option<MemoryConfig>) -> State {
        let asker = Asker {
            node: NODE.into(),
            ..Asker::default()
        };
        let config = StateConfig {
            memory,
            ..StateConfig::new(self.endpoint.clone(), asker)
        };
        State::connect(config).expect("an endpoint")
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        // It ends with its input.
        self.input.take();
        let _ = self.process.wait();
    }
}

/// Applies what comes, as a node does, until that many changes have come and the whole is known.
async fn follow(state: &mut State, mesh: &mut Mesh, sharing: &mut Sharing, changes: usize) {
    let (mut come, mut synced) = (0, false);
    while come < changes || !synced {
        let batch = time::timeout(Duration::from_secs(120), state.next())
            .await
            .expect("in time")
            .expect("a batch");
        come += batch.changes.len();
        synced = batch.synced;
        let updates = batch.changes.into_iter().filter_map(|change| match change {
            Change::Mesh(update) => Some(sharing.share(update)),
            _ => None,
        });
        *mesh = mesh.apply(updates);
    }
}

fn all_at_once(_: &mut Criterion) {
    let mut plane = Plane::start();
    let (size, changes) = (size(), changes());
    let whole = size + size / state::OF_ONE_SERVICE;
    for remembering in [false, true] {
        let scratch = tempfile::tempdir().expect("a directory");
        let memory = remembering.then(|| MemoryConfig::new(scratch.path()));
        let word = if remembering { "remembered" } else { "applied" };
        runtime().block_on(async {
            let before = allocations::held();
            allocations::forget_peak();
            let (start, begun) = (now(), on_cpu());
            let (mut mesh, mut sharing) = (Mesh::default(), Sharing::default());
            let mut state = plane.state(memory);
            follow(&mut state, &mut mesh, &mut sharing, whole).await;
            let (took, worked) = (start.elapsed(), on_cpu() - begun);
            assert_eq!(mesh.workloads().count(), size);
            let (settled, peak) = (allocations::held() - before, allocations::peak() - before);
            println!(
                "{word}/{size}: {took:.2?}, of it {worked:.2?} on a processor; at the peak {} MiB, settled {} MiB",
                peak >> 20,
                settled >> 20
            );
            let (start, begun) = (now(), on_cpu());
            plane.change(changes);
            follow(&mut state, &mut mesh, &mut sharing, changes).await;
            let (took, worked) = (start.elapsed(), on_cpu() - begun);
            println!("{word}/{size}, {changes} single changes: {took:.2?}, of it {worked:.2?} on a processor");
        });
    }
}

/// Echoes of 1 KiB over tunnels at a tenth of the rate that they can have, while nothing comes and while the mesh does.
fn beside_requests(_: &mut Criterion) {
    let (size, rounds) = (size(), if report::is_whole_run() { ROUNDS } else { 1 });
    let plane = Plane::start();
    let sides = Sides::loopback();
    let way = Way::hbone(&sides, Warmth::Warm);
    let runtime = node::runtime();
    let full = runtime.block_on(echoes(&way, None));
    let rate = full.len() as f64 / WATCHED.as_secs_f64();
    let pause = Duration::from_secs_f64(CONNECTIONS as f64 / (rate / 10.0));
    println!("beside/capacity: {rate:.0} echoes a second over {CONNECTIONS} connections");
    let mut ratios = Vec::new();
    for _ in 0..rounds {
        let quiet = p99(runtime.block_on(echoes(&way, Some(pause))));
        let stop = AtomicBool::new(false);
        let (busy, times) = thread::scope(|scope| {
            let applying = scope.spawn(|| {
                let mut times = 0;
                while !stop.load(Ordering::Relaxed) {
                    self::runtime().block_on(async {
                        let (mut mesh, mut sharing) = (Mesh::default(), Sharing::default());
                        let mut state = plane.state(None);
                        follow(&mut state, &mut mesh, &mut sharing, size).await;
                    });
                    times += 1;
                }
                times
            });
            let busy = p99(runtime.block_on(echoes(&way, Some(pause))));
            stop.store(true, Ordering::Relaxed);
            (busy, applying.join().expect("it is applied"))
        });
        let ratio = busy.as_secs_f64() / quiet.as_secs_f64();
        println!("beside/p99: {quiet:.0?} while nothing comes, {busy:.0?} while the mesh of {size} does ({times} times): {ratio:.2}");
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    println!("beside/p99, median of {rounds}: {:.2}", ratios[rounds / 2]);
}

/// How long each echo took; on each connection one at a time, with a pause from the beginning of one to that of the next.
async fn echoes(way: &Way, pause: Option<Duration>) -> Vec<Duration> {
    let mut all = JoinSet::new();
    let start = time::Instant::now();
    for n in 0..CONNECTIONS {
        let entrance = way.entrance();
        all.spawn(async move {
            let mut stream = node::connect(entrance).await.expect("the way is open");
            stream.write_all(&Work::Echo.order(u32::MAX)).await.expect("the way is open");
            let mut buffer = vec![7; Work::Echo.bytes()];
            let mut took = Vec::new();
            let mut next = start + pause.unwrap_or_default() * u32::try_from(n).unwrap_or(0) / CONNECTIONS as u32;
            while start.elapsed() < WATCHED {
                if let Some(pause) = pause {
                    time::sleep_until(next).await;
                    next += pause;
                }
                let begun = time::Instant::now();
                stream.write_all(&buffer).await.expect("the way stays open");
                stream.read_exact(&mut buffer).await.expect("the way stays open");
                took.push(begun.elapsed());
            }
            took
        });
    }
    all.join_all().await.concat()
}

fn p99(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    took.get(took.len() * 99 / 100).copied().unwrap_or_default()
}

criterion_group!(benches, all_at_once, beside_requests);

fn main() {
    if env::var_os(SERVES).is_some() {
        return serve();
    }
    benches();
}
