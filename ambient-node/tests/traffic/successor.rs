//! A node hands over to another process that serves the same pods, as at an upgrade.

use std::{
    error::Error,
    ffi::OsString,
    io::{Read as _, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ambient_control::{ca::DirectoryCa, manifests::Status};
use ambient_core::ports;
use ambient_node::{AnnounceInDirectory, AnnounceNothing, Config, Enrol, EnrolConfig, Node, telemetry::log};
use ambient_redirect::netlink::{Sockets, Transport};
use ambient_testkit::{Output, Process, Program, Signal, World, harness::Outcome};
use serde_json::Value;
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
};

use crate::mesh::{Family, Listener, Mesh, NODE, Place, Way, source, until};

/// Longer than anything takes: what is open is not cut.
const DRAIN: Duration = Duration::from_secs(60);
/// Where the successor has its pages: those of the first node are there still.
const READINESS: u16 = 25021;
const ADMIN: u16 = 25000;

pub(crate) fn a_successor_takes_over_and_nobody_is_refused(world: &World) -> Outcome {
    let socket = world.scratch_dir().join("zds.sock");
    let mut mesh = sharing(world, &socket)?;
    let mut open = Way::ALL.map(|way| (way, mesh.open(way, Family::V4)));
    let load = Load::start(&mesh);
    load.goes_on();

    // Both serve, and share what comes.
    let mut successor = succeed(&mesh, &socket)?;
    load.goes_on();

    let asked = Instant::now();
    let stopping = mesh.stop();
    load.goes_on();
    // What is open goes on at the first, and new connections at the second.
    while asked.elapsed() < Duration::from_secs(2) {
        for (way, pair) in &mut open {
            pair.converse()
                .map_err(|error| format!("{way}, after {:?}: {error}", asked.elapsed()))?;
        }
        thread::sleep(Duration::from_millis(50));
    }
    assert!(!stopping.is_over());
    drop(open);
    until("the first to end", || stopping.is_over().then_some(()));
    stopping.result()?;
    load.goes_on();
    // Every connection since then is the successor's.
    let mut pair = mesh.open(Way::Tunnel, Family::V6);
    pair.converse()?;
    let state = state_of_a(&mesh, ADMIN).ok_or("the successor tells of no pod")?;
    let to = pair.server.local_addr()?;
    assert!(goes_to(&state, to), "{to} is not in {state}");
    assert_eq!(state["state"], "Up");

    drop(pair);
    assert_eq!(load.stop(), Vec::<String>::new());
    successor.signal(Signal::TERM)?;
    let ended = successor.wait(Duration::from_secs(20))?;
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
    Ok(())
}

/// The newer one is taken back, as at a return to the former version: what comes goes to the one that was there first.
pub(crate) fn a_successor_that_is_taken_back_leaves_all_to_the_first(world: &World) -> Outcome {
    let socket = world.scratch_dir().join("zds.sock");
    let mesh = sharing(world, &socket)?;
    let load = Load::start(&mesh);
    let mut successor = succeed(&mesh, &socket)?;
    load.goes_on();
    // One that stands keeps the process, and its pages, where they are.
    let state = |port| until("a dump", || state_of_a(&mesh, port));
    let held = until("the successor to have a connection that stands", || {
        let mut pair = mesh.open(Way::Tunnel, Family::V4);
        pair.converse().ok()?;
        goes_to(&state(ADMIN), pair.server.local_addr().ok()?).then_some(pair)
    });
    successor.signal(Signal::TERM)?;
    until("the successor to listen no more", || (listeners(&mesh) == 1).then_some(()));
    for _ in 0..20 {
        let mut pair = mesh.open(Way::Tunnel, Family::V4);
        pair.converse()?;
        let to = pair.server.local_addr()?;
        let (of_first, of_successor) = (state(ports::ADMIN), state(ADMIN));
        assert!(!goes_to(&of_successor, to), "{to} is with who has stopped: {of_successor}");
        assert!(goes_to(&of_first, to), "{to} is not with the first: {of_first}");
    }
    load.goes_on();
    assert_eq!(load.stop(), Vec::<String>::new());
    drop(held);
    let ended = successor.wait(Duration::from_secs(20))?;
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
    Ok(())
}

/// How many listen for what a pod sends.
fn listeners(mesh: &Mesh) -> usize {
    let listed = mesh.a.namespace.run(|| Sockets::open().unwrap().listeners(Transport::Tcp).unwrap());
    let at = listed.unwrap().into_iter().map(|listener| listener.local.port());
    at.filter(|port| *port == ports::OUTBOUND).count()
}

/// What a node's dump says of a pod that connects; `None` where it cannot be had now.
fn state_of_a(mesh: &Mesh, port: u16) -> Option<Value> {
    let (status, text) = mesh.page(port, "/config_dump").ok()?;
    let mut dump: Value = serde_json::from_str(&text).ok()?;
    (status == 200).then(|| dump["workloadState"]["uid-of-a"].take())
}

/// Whether it has a connection to an address that nothing else goes to. Not by where it is from: under load the kernel remembers most
/// ports as those of others that were redirected, and the proxy sees another than the application has.
fn goes_to(state: &Value, to: SocketAddr) -> bool {
    let outbound = state["connections"]["outbound"].as_array();
    outbound.into_iter().flatten().any(|open| open["originalDst"] == to.to_string())
}

/// A mesh whose node shares its ports with whoever serves the same pods.
fn sharing(world: &World, socket: &Path) -> Result<Mesh, Box<dyn Error>> {
    let told = |config: &mut Config| {
        config.zds = Some(socket.to_owned());
        config.share_ports = true;
        config.drain = DRAIN;
    };
    Mesh::start_told(world, told, |mesh| enrol(world, mesh, socket.to_owned()))
}

/// Another process beside the mesh's node, once it serves.
fn succeed(mesh: &Mesh, socket: &Path) -> Result<Process, Box<dyn Error>> {
    let program = Program::actor("node")
        .args([&mesh.manifests, &mesh.ca, socket])
        .stdout(Output::Inherit);
    let successor = mesh.node.spawn(&program)?;
    until("the successor to serve", || {
        (mesh.page(READINESS, "/healthz/ready").ok()?.0 == 200).then_some(())
    });
    Ok(successor)
}

/// Connections that are made all the while, each of which must be served.
pub(crate) struct Load {
    /// Of those that connect, and of those that answer, in this order.
    stop: [Arc<AtomicBool>; 2],
    served: Arc<[AtomicU32; 3]>,
    threads: Vec<thread::JoinHandle<Vec<String>>>,
    answering: Vec<thread::JoinHandle<()>>,
}

impl Load {
    pub(crate) fn start(mesh: &Mesh) -> Self {
        let (stop, served) = (<[Arc<AtomicBool>; 2]>::default(), Arc::<[AtomicU32; 3]>::default());
        let (mut threads, mut answering) = (Vec::new(), Vec::new());
        for (index, way) in Way::ALL.into_iter().enumerate() {
            let (from, to) = mesh.ends(way);
            let listener = to.listen(Family::V4);
            let at = listener.address();
            let stopped = stop[1].clone();
            answering.push(thread::spawn(move || echo(&listener, &stopped)));
            // As a connection of its own process: a place is the mesh's.
            let from = Place {
                namespace: from.namespace.clone(),
                ..*from
            };
            let (stopped, served) = (stop[0].clone(), served.clone());
            threads.push(thread::spawn(move || {
                let (mut failed, begun) = (Vec::new(), Instant::now());
                while !stopped.load(Ordering::Relaxed) {
                    match ask(&from, at) {
                        Ok(()) => drop(served[index].fetch_add(1, Ordering::Relaxed)),
                        Err(error) => failed.push(format!("{way}, {:?} after its start: {error}", begun.elapsed())),
                    }
                }
                failed
            }));
        }
        Self {
            stop,
            served,
            threads,
            answering,
        }
    }

    /// Waits until some more are served in every way.
    pub(crate) fn goes_on(&self) {
        let before: Vec<u32> = self.served.iter().map(|served| served.load(Ordering::Relaxed)).collect();
        until("connections to be served", || {
            let now = self.served.iter().map(|served| served.load(Ordering::Relaxed));
            now.zip(&before).all(|(now, before)| now >= before + 20).then_some(())
        });
    }

    /// What has failed.
    pub(crate) fn stop(self) -> Vec<String> {
        self.stop[0].store(true, Ordering::Relaxed);
        let failed = self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        self.stop[1].store(true, Ordering::Relaxed);
        self.answering.into_iter().for_each(|thread| thread.join().unwrap());
        failed
    }
}

fn ask(from: &Place, at: SocketAddr) -> std::io::Result<()> {
    let mut client = from.connect(at)?;
    client.write_all(b"?")?;
    let mut heard = [0];
    client.read_exact(&mut heard)?;
    assert_eq!(&heard, b"?");
    Ok(())
}

fn echo(listener: &Listener, stop: &AtomicBool) {
    while let Some(mut server) = listener.accept_patiently(|| stop.load(Ordering::Relaxed)) {
        let mut heard = [0];
        // One that has failed is its client's to tell.
        if server.read_exact(&mut heard).is_ok() {
            let _ = server.write_all(&heard);
        }
    }
}

/// The node agent: it captures the pods, and hands them over to every proxy that connects.
fn enrol(world: &World, mesh: &Mesh, socket: PathBuf) {
    let (node, manifests) = (mesh.node.clone(), mesh.manifests.clone());
    let redirect = ambient_redirect::Config {
        options: ambient_redirect::plan::Options {
            dns: false,
            ..Default::default()
        },
        ..ambient_redirect::Config::new(NODE, world.netns_dir())
    };
    // It ends with the test's process.
    thread::spawn(move || {
        node.run(|| {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let own = Status::open(&manifests, NODE).unwrap();
                let source = source(&manifests, &own).await.unwrap();
                let config = EnrolConfig::new(redirect, socket);
                let enrol = Enrol::start(config, Box::new(source), Arc::new(AnnounceNothing)).await.unwrap();
                enrol.run(std::future::pending()).await.unwrap();
            });
        })
        .unwrap();
    });
}

/// The successor's process.
pub(crate) fn node(args: Vec<OsString>) -> ExitCode {
    let [manifests, ca, socket] = &args[..] else {
        return ExitCode::FAILURE;
    };
    let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let mut config = Config::new(NODE, "/nowhere");
    config.workers = 2;
    config.zds = Some(socket.into());
    config.share_ports = true;
    config.drain = DRAIN;
    config.metrics = local(0);
    config.readiness = local(READINESS);
    config.admin = local(ADMIN);
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ran = runtime.block_on(async {
        // Shown where a test fails, among the lines of the first.
        let _log = log::to_stdout("info", log::Format::Text)?;
        let mut terminated = signal(SignalKind::terminate())?;
        let (manifests, ca) = (Path::new(manifests), Path::new(ca));
        let issuer = DirectoryCa::open(ca, config.trust_domain.clone(), DirectoryCa::DEFAULT_TTL)?;
        let status = Status::open(manifests, NODE)?;
        let node = Node::builder(config)
            .source(source(manifests, &status).await?)
            .issuer(issuer)
            .announce(Arc::new(AnnounceInDirectory::new(status)))
            .build()
            .await?;
        node.run(async move { terminated.recv().await.unwrap_or_default() }).await?;
        Outcome::Ok(())
    });
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
