//! Whole nodes, as they run in production: a process in a network namespace for each, a client's pod on the one, an
//! application's on the other, and rules that bring what they say to each other to the nodes.

use std::{
    error::Error,
    ffi::OsStr,
    fs,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use ambient_core::PodUid;
use ambient_redirect::{
    linux::{Inside, Mark, Netns},
    plan::{Options, Plan},
};
use ambient_testkit::{Capture, End, Namespace, Output, Process, Program, World, link};
use ipnet::Ipv4Net;
use rustix::{
    process::Pid,
    thread::{CpuSet, sched_setaffinity},
};

use crate::{Load, Sides, Way, app::Work, load::Contender, node::Place};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// What carries the traffic of a mesh.
#[derive(Clone, Debug)]
pub enum Proxy {
    /// `ambient node`, which enrols pods itself and is its own authority.
    Ambient(PathBuf),
    /// Another node proxy, started as Istio starts its ztunnel, beside `ambient enrol`, which enrols the pods for it, and
    /// `ambient control`, from which it has the mesh and its certificates.
    Ztunnel {
        /// The binary `ambient`.
        ambient: PathBuf,
        /// The proxy's.
        ztunnel: PathBuf,
    },
}

/// Where the client's and the application's pods are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pods {
    /// On a node each.
    Apart,
    /// On one node, which relays between them in its process.
    Together,
    /// On a node each, and on the client's node the pod of another client; each node with all its pods has a core of its own.
    Beside,
}

/// A mesh of two nodes, with a client's pod and an application's; dropping it ends all of it.
#[derive(Debug)]
pub struct Mesh {
    /// Its name in reports.
    pub name: &'static str,
    sides: Sides,
    ground: Ground,
    dir: PathBuf,
    /// What runs on each node; that of the client first.
    nodes: [Vec<Process>; 2],
    /// Which of them carry traffic.
    proxies: Vec<Carrier>,
}

/// A process that carries traffic, and on which node.
#[derive(Debug)]
struct Carrier {
    node: usize,
    pid: u32,
}

impl Mesh {
    /// Starts a mesh, and waits until traffic between the pods is carried, and no longer in plaintext.
    ///
    /// `number` tells it from the other meshes of the world.
    ///
    /// # Errors
    /// When a part of it does not start, or traffic is not carried within a minute.
    pub fn start(world: &World, name: &'static str, number: u8, proxy: &Proxy, pods: Pods) -> Result<Self> {
        let ground = Ground::build(world, number, pods)?;
        let capture = Capture::start(&ground.nodes[0], LINK)?;
        let dir = world.scratch_dir().join(format!("mesh-{number}"));
        let mesh_dir = dir.join("manifests");
        fs::create_dir_all(&mesh_dir)?;
        fs::write(mesh_dir.join("bench.yaml"), ground.manifests())?;
        let mut mesh = Self {
            name,
            sides: ground.sides(),
            ground,
            dir: mesh_dir.clone(),
            nodes: Default::default(),
            proxies: Vec::new(),
        };
        let ground = mesh.ground.clone();
        // What a node enrols is in a directory of its own: it takes the rules out of namespaces in it that no pod of its has.
        for node in NODES {
            fs::create_dir_all(dir.join(node))?;
        }
        for (pod, node) in ground.pods().map(|(_, pod, node)| (pod, node)) {
            symlink(pod.path(), dir.join(NODES[node]).join(pod.name()))?;
        }
        match proxy {
            Proxy::Ambient(ambient) => mesh.start_ambient(&ground, ambient, &dir, pods)?,
            Proxy::Ztunnel { ambient, ztunnel } => mesh.start_ztunnel(&ground, ambient, ztunnel, &dir)?,
        }
        for (uid, _, node) in ground.pods() {
            let status = mesh_dir.join("status").join(format!("{}.json", NODES[node]));
            let said = || fs::read_to_string(&status).is_ok_and(|status| status.contains(uid));
            until(&format!("{name}: {uid} is captured"), said)?;
        }
        mesh.prove(&ground, &capture, pods)?;
        Ok(mesh)
    }

    /// `ambient` that was built beside the bench that runs (for `cargo bench` by `cargo build --release`), unless `BENCH_AMBIENT` names another.
    ///
    /// # Errors
    /// When there is none.
    pub fn binary() -> Result<PathBuf> {
        let path = match std::env::var_os("BENCH_AMBIENT") {
            Some(path) => path.into(),
            None => {
                let here = std::env::current_exe()?;
                let profile = here.parent().and_then(Path::parent);
                profile.ok_or("this bench stands in no target directory")?.join("ambient")
            }
        };
        if path.is_file() {
            return Ok(path);
        }
        let path = path.display();
        Err(format!("there is no {path}: `cargo build --release` makes it, or BENCH_AMBIENT names another").into())
    }

    fn start_ambient(&mut self, ground: &Ground, ambient: &Path, dir: &Path, pods: Pods) -> Result<()> {
        for (at, node) in ground.nodes.iter().enumerate() {
            let mut program = Program::new(ambient)
                .args([
                    "node",
                    "--node",
                    NODES[at],
                    "--ipv6",
                    "false",
                    "--no-dns-capture",
                    "--probes",
                    "off",
                ])
                .args([OsStr::new("--manifests"), dir.join("manifests").as_os_str()])
                .args([OsStr::new("--ca-dir"), dir.join("ca").as_os_str()])
                .args([OsStr::new("--netns-dir"), dir.join(NODES[at]).as_os_str()]);
            if pods == Pods::Together {
                program = program.arg("--local-shortcut");
            }
            if let Some(switch) = std::env::var_os("BENCH_SEGMENTS") {
                program = program.args([OsStr::new("--loopback-segments"), &switch]);
            }
            let pid = self.spawn(at, node, program, NODES[at])?;
            self.proxies.push(Carrier { node: at, pid });
        }
        Ok(())
    }

    fn start_ztunnel(&mut self, ground: &Ground, ambient: &Path, ztunnel: &Path, dir: &Path) -> Result<()> {
        let (mesh, ca) = (dir.join("manifests"), dir.join("ca"));
        let host = ground.node_address(0).to_string();
        let control = Program::new(ambient)
            .args(["control", "--listen", &format!("{host}:{CONTROL_PORT}"), "--name", &host])
            .args([OsStr::new("--mesh"), mesh.as_os_str()])
            .args([OsStr::new("--ca"), ca.as_os_str()]);
        self.spawn(0, &ground.nodes[0], control, "control")?;
        let root = ca.join("root.pem");
        until("ambient control has made its authority", || root.exists())?;
        for (at, node) in ground.nodes.iter().enumerate() {
            let socket = dir.join(format!("{}.sock", NODES[at]));
            let enrol = Program::new(ambient)
                .args(["enrol", "--node", NODES[at], "--no-ipv6", "--no-dns-capture", "--probes", "off"])
                .args([OsStr::new("--manifests"), mesh.as_os_str()])
                .args([OsStr::new("--zds"), socket.as_os_str()])
                .args([OsStr::new("--netns-dir"), dir.join(NODES[at]).as_os_str()]);
            self.spawn(at, node, enrol, &format!("{}-enrol", NODES[at]))?;
            let token = dir.join(format!("{}.token", NODES[at]));
            let make = Program::new(ambient)
                .args(["control", "token", NODES[at], "--ca"])
                .arg(&ca)
                .stdout(Output::File(token.clone()));
            if !node.spawn(&make)?.wait(PATIENCE)?.is_some_and(|status| status.success()) {
                return Err(format!("ambient control token {} failed", NODES[at]).into());
            }
            let control = format!("https://{host}:{CONTROL_PORT}");
            let proxy = Program::new(ztunnel)
                .args(["proxy", "ztunnel"])
                .env("NODE_NAME", NODES[at])
                .env("INPOD_UDS", &socket)
                .env("ISTIO_META_DNS_CAPTURE", "false")
                .env("IPV6_ENABLED", "false")
                .env("XDS_ADDRESS", &control)
                .env("CA_ADDRESS", &control)
                .env("XDS_ROOT_CA", &root)
                .env("CA_ROOT_CA", &root)
                .env("AUTH_TOKEN", &token)
                .env("POD_NAME", format!("ztunnel-{at}"))
                .env("POD_NAMESPACE", "istio-system")
                .env("INSTANCE_IP", ground.node_address(at).to_string());
            let pid = self.spawn(at, node, proxy, NODES[at])?;
            self.proxies.push(Carrier { node: at, pid });
        }
        Ok(())
    }

    fn spawn(&mut self, at: usize, node: &Namespace, program: Program, log: &str) -> Result<u32> {
        // Logged as in production, and thrown away, but for who looks for a mistake.
        let output = match std::env::var_os("BENCH_LOGS") {
            Some(dir) => Output::File(Path::new(&dir).join(format!("{}-{log}.log", self.name.replace(' ', "-")))),
            None => Output::Null,
        };
        let process = node.spawn(&program.stdout(output.clone()).stderr(output))?;
        let pid = process.pid();
        // Before it looks how many it has, and makes threads accordingly.
        bind(pid, &[&self.sides.near, &self.sides.far][at].cores());
        self.nodes[at].push(process);
        Ok(pid)
    }

    /// Shows that what a client says to an application arrives, and is not seen on the link.
    fn prove(&self, ground: &Ground, capture: &Capture, pods: Pods) -> Result<()> {
        let way = Way::direct(&self.sides);
        let hidden = || -> Result<bool> {
            capture.clear()?;
            if !ground.client.run(|| said(way.entrance()))? {
                return Ok(false);
            }
            let seen = capture.seen()?;
            let tunnelled = seen.connections.iter().any(|c| c.server.port() == HBONE_PORT);
            Ok(!seen.contains(MARKER) && (pods == Pods::Together || tunnelled))
        };
        until(&format!("{}: traffic is carried in tunnels", self.name), || {
            hidden().unwrap_or(false)
        })
    }

    /// The sides, as a load wants them, and the nodes' processes placed beside them.
    fn placed(&self, load: &Load) -> Sides {
        let sides = load.sides(&self.sides);
        for carrier in &self.proxies {
            let place = if carrier.node == 0 { &sides.near } else { &sides.far };
            bind(carrier.pid, &place.cores());
        }
        sides
    }

    /// A load over this mesh, compared with the contender of that number.
    pub fn contender(self: &Arc<Self>, load: &Load, name: &'static str, against: usize, stalled: usize) -> Contender {
        let sides = self.placed(load);
        Contender::new(load, &sides, name, Way::over(self, &sides), against, stalled)
    }

    /// The same from pod to pod without any mesh on the way: of a world's pods that nobody enrols.
    ///
    /// # Errors
    /// When the world refuses.
    pub fn none(world: &World, number: u8) -> Result<Sides> {
        Ok(Ground::build(world, number, Pods::Apart)?.sides())
    }

    /// The same with the rules of enrolled pods in them, for proxies of the bench's own.
    ///
    /// # Errors
    /// When the world refuses, or the kernel the rules.
    pub fn rules_alone(world: &World, number: u8) -> Result<Sides> {
        let ground = Ground::build(world, number, Pods::Apart)?;
        let options = Options {
            ipv6: false,
            dns: false,
            // As the nodes that they are compared with.
            loopback_segments: std::env::var_os("BENCH_SEGMENTS").is_none_or(|switch| switch != "off"),
            ..Options::default()
        };
        for (uid, pod, at) in ground.pods() {
            let namespace = pod.run(Netns::current)??;
            Inside::open(&namespace)?.apply(&Plan::new(&options), &Mark::new(NODES[at], &PodUid::from(uid)))?;
        }
        Ok(Sides {
            redirected: true,
            ..ground.sides()
        })
    }

    /// Pods that nobody enrols, as a mesh without a proxy.
    ///
    /// # Errors
    /// When the world refuses.
    pub fn bare(world: &World, name: &'static str, number: u8, pods: Pods) -> Result<Self> {
        let ground = Ground::build(world, number, pods)?;
        Ok(Self {
            name,
            sides: ground.sides(),
            ground,
            dir: PathBuf::new(),
            nodes: Default::default(),
            proxies: Vec::new(),
        })
    }

    /// Where the client's and the application's pods are.
    pub(crate) fn sides(&self) -> &Sides {
        &self.sides
    }

    /// The pod of the other client, if there is one.
    pub(crate) fn other(&self) -> Option<&Arc<Namespace>> {
        self.ground.other.as_ref()
    }

    /// Where the client's node is.
    pub(crate) fn client_node(&self) -> &Namespace {
        &self.ground.nodes[0]
    }

    /// Makes every address of a block one of the application's pod, reached from the client's node.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn serve_block(&self, block: Ipv4Net) -> Result<()> {
        self.ground.app.add_address("lo", block)?;
        self.ground.nodes[0].add_route(block, Some(self.ground.node_address(1).into()), LINK)?;
        // By the pod's one address: a neighbour for each of thousands is more than the kernel keeps, and what goes to the others is
        // lost then.
        self.ground.nodes[1].add_route(block, Some(self.ground.app_address().into()), "app")?;
        Ok(())
    }

    /// More manifests, in a file of that name.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn apply(&self, name: &str, text: &str) -> io::Result<()> {
        let whole = self.dir.join(format!("{name}.new"));
        fs::write(&whole, text)?;
        fs::rename(whole, self.dir.join(format!("{name}.yaml")))
    }

    /// The CPU time that what carries traffic has taken.
    pub(crate) fn cpu(&self) -> Duration {
        self.proxies.iter().map(|carrier| cpu(carrier.pid)).sum()
    }

    /// Bytes in memory of what carries traffic, the client's node first.
    ///
    /// # Errors
    /// When a process has ended.
    pub fn resident(&self) -> io::Result<Vec<Resident>> {
        self.proxies.iter().map(|carrier| Resident::of(carrier.pid)).collect()
    }

    /// So many connections from the client's pod to the application's on each of which a message has gone there and back,
    /// and how much more memory each process had then, for each of them.
    ///
    /// # Errors
    /// When a connection cannot be made.
    pub fn idle_connections(self: &Arc<Self>, connections: u32) -> Result<Vec<f64>> {
        let way = Way::over(self, &self.sides);
        let near = self.sides.near.elsewhere().ok_or("the client's pod has a namespace")?;
        let open = |count| near.run(|| (0..count).map(|_| echo(way.entrance())).collect::<io::Result<Vec<_>>>());
        // What is needed anyhow is there with the first ones.
        let warm = open(64)??;
        thread::sleep(Duration::from_secs(1));
        let before = self.resident()?;
        let held = open(connections)??;
        thread::sleep(Duration::from_secs(1));
        let after = self.resident()?;
        drop((warm, held));
        let each = |(before, after): (&Resident, Resident)| (after.all as f64 - before.all as f64) / f64::from(connections);
        Ok(before.iter().zip(after).map(each).collect())
    }
}

/// The namespaces of a mesh, before anything runs in them.
#[derive(Clone, Debug)]
struct Ground {
    number: u8,
    nodes: [Arc<Namespace>; 2],
    client: Arc<Namespace>,
    app: Arc<Namespace>,
    other: Option<Arc<Namespace>>,
    app_node: usize,
}

impl Ground {
    fn build(world: &World, number: u8, pods: Pods) -> Result<Self> {
        let named = |name: &str| world.namespace(&format!("mesh-{number}-{name}")).map(Arc::new);
        let nodes = [named(NODES[0])?, named(NODES[1])?];
        let app_node = usize::from(pods != Pods::Together);
        let ground = Self {
            number,
            nodes,
            client: named("client")?,
            app: named("app")?,
            other: (pods == Pods::Beside).then(|| named("other")).transpose()?,
            app_node,
        };
        let end =
            |at: usize| -> Result<End<'_>> { Ok(End::new(&ground.nodes[at], LINK).address(Ipv4Net::new(ground.node_address(at), 24)?)) };
        link(&end(0)?, &end(1)?)?;
        for at in [0, 1] {
            ground.nodes[at].forward()?;
        }
        for (_, pod, _) in ground.pods() {
            // Thousands of short connections a second, each of which would keep its port for a minute: what is measured would
            // soon be how long the kernel looks for a free one.
            pod.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
            pod.sysctl("net/ipv4/ip_local_port_range", "2000 65000")?;
        }
        ground.attach(0, &ground.client, "client", ground.client_address())?;
        ground.attach(app_node, &ground.app, "app", ground.app_address())?;
        if let Some(other) = &ground.other {
            ground.attach(0, other, "other", ground.other_address())?;
        }
        if app_node == 1 {
            let to = |at: usize, pod: Ipv4Addr, via: Ipv4Addr| ground.nodes[at].add_route(IpAddr::from(pod), Some(via.into()), LINK);
            to(0, ground.app_address(), ground.node_address(1))?;
            to(1, ground.client_address(), ground.node_address(0))?;
            to(1, ground.other_address(), ground.node_address(0))?;
        }
        Ok(ground)
    }

    fn attach(&self, at: usize, pod: &Namespace, interface: &str, address: Ipv4Addr) -> Result<()> {
        let node = &self.nodes[at];
        link(
            &End::new(pod, LINK).address(IpAddr::from(address)),
            &End::new(node, interface).address(IpAddr::from(GATEWAY)),
        )?;
        node.add_route(IpAddr::from(address), None, interface)?;
        pod.add_route(Ipv4Net::new(Ipv4Addr::UNSPECIFIED, 0)?, Some(GATEWAY.into()), LINK)?;
        Ok(())
    }

    fn node_address(&self, at: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, 0, 1 + u8::from(at == 1))
    }

    fn client_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, 1, 2)
    }

    fn other_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, 1, 3)
    }

    /// Each by its UID, with the number of its node.
    fn pods(&self) -> impl Iterator<Item = (&'static str, &Arc<Namespace>, usize)> {
        let both = [(CLIENT, &self.client, 0), (APP, &self.app, self.app_node)];
        both.into_iter().chain(self.other.iter().map(|other| (OTHER, other, 0)))
    }

    fn app_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, 2, 2)
    }

    fn sides(&self) -> Sides {
        let sides = Sides {
            near: Place::namespace(&self.client, self.client_address().into()),
            far: Place::namespace(&self.app, self.app_address().into()),
            redirected: false,
        };
        // What one pod leaves another is a matter of their node: two that take each other's cores away would hide it.
        if self.other.is_some() { sides.apart() } else { sides }
    }

    fn manifests(&self) -> String {
        let mut text =
            String::from("apiVersion: v1\nkind: Namespace\nmetadata: {name: bench, labels: {istio.io/dataplane-mode: ambient}}\n");
        let mut pods = vec![
            (CLIENT, "client", 0, self.client_address()),
            (APP, "app", self.app_node, self.app_address()),
        ];
        if self.other.is_some() {
            pods.push((OTHER, "other", 0, self.other_address()));
        }
        for (uid, name, node, address) in pods {
            text += &format!(
                "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: bench}}\n---\n\
                 apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: bench, uid: {uid}}}\n\
                 spec: {{nodeName: {node}, serviceAccountName: {name}, containers: [{{name: {name}, image: {name}}}]}}\n\
                 status: {{phase: Running, podIP: {address}, podIPs: [{{ip: {address}}}], \
                 conditions: [{{type: Ready, status: \"True\"}}]}}\n",
                node = NODES[node],
            );
        }
        text
    }
}

/// Whether the application answers what only it can, after the marker went there and back.
fn said(to: SocketAddr) -> bool {
    let say = || -> io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut message = [0; 1 << 10];
        message[..MARKER.len()].copy_from_slice(MARKER);
        stream.write_all(&Work::Echo.order(1))?;
        stream.write_all(&message)?;
        stream.read_exact(&mut message)
    };
    say().is_ok()
}

fn echo(to: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut message = [7; 1 << 10];
    stream.write_all(&Work::Echo.order(1))?;
    stream.write_all(&message)?;
    stream.read_exact(&mut message)?;
    Ok(stream)
}

fn until(what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
    for _ in 0..PATIENCE.as_millis() / LOOK.as_millis() {
        if done() {
            return Ok(());
        }
        thread::sleep(LOOK);
    }
    Err(format!("after {PATIENCE:?} it is not so that {what}").into())
}

/// All threads of a process to some cores.
fn bind(pid: u32, cores: &CpuSet) {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    for task in tasks {
        let number = task.file_name().to_str().and_then(|number| number.parse().ok());
        // A thread that has ended meanwhile is no loss.
        number.and_then(Pid::from_raw).map(|thread| sched_setaffinity(Some(thread), cores));
    }
}

/// The CPU time of a process, with that of its ended threads.
fn cpu(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the node runs");
    // After the name, which may hold anything: the 14th and the 15th field of all.
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let ticks = |at: usize| -> u64 {
        fields
            .split_whitespace()
            .nth(at)
            .and_then(|ticks| ticks.parse().ok())
            .expect("a number")
    };
    Duration::from_secs(ticks(11) + ticks(12)) / u32::try_from(rustix::param::clock_ticks_per_second()).expect("100 mostly")
}

/// What a process has in memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Resident {
    /// All of it, the pages of its binary and of libraries among them.
    pub all: u64,
    /// What is in no file.
    pub own: u64,
}

impl Resident {
    fn of(pid: u32) -> io::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            let kib: u64 = line.trim().trim_end_matches(" kB").parse().map_err(io::Error::other)?;
            io::Result::Ok(kib << 10)
        };
        Ok(Self {
            all: bytes("VmRSS:")?,
            own: bytes("RssAnon:")?,
        })
    }
}

pub(crate) const NODES: [&str; 2] = ["node-1", "node-2"];
const LINK: &str = "eth0";
/// The same for every pod: it knows only this one next hop.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const HBONE_PORT: u16 = 15008;
const CONTROL_PORT: u16 = 15012;
const CLIENT: &str = "0c11e17e-0000-4000-8000-000000000001";
const OTHER: &str = "00711e17-0000-4000-8000-000000000003";
const APP: &str = "0a550000-0000-4000-8000-000000000002";
const MARKER: &[u8] = b"what nobody on the way may read";
/// How long anything may take that has to happen before something is measured, and how often it is looked for.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);
