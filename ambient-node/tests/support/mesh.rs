//! A node that serves two pods, and somebody outside of the mesh, each in a network namespace of its own.

use std::{
    fmt, fs,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ambient_control::{
    AskError, Batch, BoxFuture, Change, IssueError, Issuer, OnDemand, Source,
    ca::DirectoryCa,
    manifests::{self, Manifests, Status},
    spiffe::{DelegatedConfig, DelegatedIdentity, Socket},
};
use ambient_core::{Credential, Identity, TrustBundles, TunnelProtocol, Workload, mesh::Update};
use ambient_node::{AnnounceInDirectory, Config, Node, telemetry::log};
use ambient_testkit::{End, Namespace, World, harness::Outcome, link};
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};

/// The most that anything may take: on a machine where it takes moments, and on one that has no time for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Everything in this namespace of the cluster is in the mesh.
pub(crate) const LABELLED: &str = "shop";

pub(crate) const NODE: &str = "node-1";

/// Refuses every connection to a pod of the mesh.
pub(crate) const ALLOW_NOTHING: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow-nothing, namespace: shop}
spec: {}
";

/// Somewhere with an address of each family.
pub(crate) struct Place {
    pub(crate) namespace: Arc<Namespace>,
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
}

impl Place {
    pub(crate) fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    /// Listens at a free port of one of its addresses.
    pub(crate) fn listen(&self, family: Family) -> Listener {
        self.listen_at(SocketAddr::new(self.ip(family), 0))
    }

    pub(crate) fn listen_at(&self, at: SocketAddr) -> Listener {
        let listener = self.namespace.run(|| TcpListener::bind(at)).unwrap().unwrap();
        // Many tests ask again and again before they accept: the standard library's 128 are full then on a slow machine,
        // and the node dials in vain.
        rustix::net::listen(&listener, 4096).unwrap();
        listener.set_nonblocking(true).unwrap();
        Listener(listener)
    }

    /// A port where nobody listens.
    pub(crate) fn deserted(&self, family: Family) -> SocketAddr {
        self.listen(family).address()
    }

    /// Opens a connection; every wait on it has a deadline.
    pub(crate) fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let connected = self.namespace.run(|| TcpStream::connect_timeout(&to, PATIENCE));
        connected.map_err(io::Error::other)?.and_then(patient)
    }

    /// How a connection ends on which nothing is sent. A reset may come so fast that the connecting itself tells of it.
    pub(crate) fn attempt(&self, to: SocketAddr) -> String {
        match self.connect(to) {
            Ok(mut stream) => ending(&mut stream),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => "reset".into(),
            Err(error) => error.to_string(),
        }
    }
}

pub(crate) struct Listener(TcpListener);

impl Listener {
    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    pub(crate) fn accept(&self) -> TcpStream {
        let (stream, _) = until("a connection to arrive", || self.0.accept().ok());
        stream.set_nonblocking(false).and_then(|()| patient(stream)).unwrap()
    }

    /// The same, unless something else happens first.
    pub(crate) fn accept_unless(&self, mut otherwise: impl FnMut() -> bool) -> Option<TcpStream> {
        let accepted = until("a connection to arrive, or not", || match self.0.accept() {
            Ok((stream, _)) => Some(Some(stream)),
            Err(_) => otherwise().then_some(None),
        });
        accepted.map(|stream| stream.set_nonblocking(false).and_then(|()| patient(stream)).unwrap())
    }

    /// The same, however long it takes; `None` once something else has happened.
    pub(crate) fn accept_patiently(&self, mut otherwise: impl FnMut() -> bool) -> Option<TcpStream> {
        loop {
            match self.0.accept() {
                Ok((stream, _)) => return stream.set_nonblocking(false).and_then(|()| patient(stream)).ok(),
                Err(_) if otherwise() => return None,
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Whether nobody has come so far; whoever has is turned away.
    pub(crate) fn is_lonely(&self) -> bool {
        matches!(self.0.accept(), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

fn patient(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// The ways that a connection can take through a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From a pod to a pod of the mesh.
    Tunnel,
    /// From outside to a pod of the mesh.
    Inbound,
    /// From a pod of the mesh to outside.
    Outbound,
}

impl Way {
    pub(crate) const ALL: [Self; 3] = [Self::Tunnel, Self::Inbound, Self::Outbound];
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tunnel => "through a tunnel",
            Self::Inbound => "from outside of the mesh",
            Self::Outbound => "to outside of the mesh",
        })
    }
}

/// Both ends of a connection through the node, as the applications have them.
pub(crate) struct Pair {
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
}

impl Pair {
    /// A few bytes go each way and arrive.
    pub(crate) fn converse(&mut self) -> io::Result<()> {
        let mut heard = [0; 4];
        self.client.write_all(b"ping")?;
        self.server.read_exact(&mut heard)?;
        assert_eq!(&heard, b"ping");
        self.server.write_all(b"pong")?;
        self.client.read_exact(&mut heard)?;
        assert_eq!(&heard, b"pong");
        Ok(())
    }

    /// The server has something to say that it was not asked for.
    pub(crate) fn retort(&mut self) -> io::Result<()> {
        let mut heard = [0; 4];
        self.server.write_all(b"news")?;
        self.client.read_exact(&mut heard)?;
        assert_eq!(&heard, b"news");
        Ok(())
    }

    /// The client sends until nothing more is taken, as its server has ceased to read.
    pub(crate) fn stall(&mut self) {
        self.client.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        let begun = Instant::now();
        while self.client.write(&[7; 1 << 16]).is_ok() {
            assert!(begun.elapsed() < PATIENCE, "there is no end to what is taken");
        }
    }

    /// How the server sees the end when it reads again.
    pub(crate) fn ending_of_stalled(&mut self) -> String {
        loop {
            let seen = ending(&mut self.server);
            if !seen.ends_with("bytes") {
                return seen;
            }
        }
    }
}

/// The whole of it. What runs in it ends with the test's process.
pub(crate) struct Mesh {
    pub(crate) node: Arc<Namespace>,
    /// Two pods of the mesh.
    pub(crate) a: Place,
    pub(crate) b: Place,
    /// Somebody of whom the mesh knows nothing.
    pub(crate) c: Place,
    pub(crate) manifests: PathBuf,
    pub(crate) ca: PathBuf,
    more: mpsc::UnboundedSender<Batch>,
    running: Option<Running>,
    _log: log::Flush,
}

type Answer = Box<dyn Fn(&str) -> Vec<Change> + Send + Sync>;

/// Where a node's certificates and state come from, where that is not as usual.
struct Given {
    /// A SPIRE agent's socket; without it certificates come from a directory, and live so long.
    spire: Option<PathBuf>,
    life: Duration,
    /// What comes of a name that is asked for; without it none is.
    answer: Option<Answer>,
    /// Of a source that tells no UIDs of pods, as istiod is one; with an authority that is away for as long as this is so.
    istiod: Option<Arc<AtomicBool>>,
}

impl Default for Given {
    fn default() -> Self {
        Self {
            spire: None,
            life: DirectoryCa::DEFAULT_TTL,
            answer: None,
            istiod: None,
        }
    }
}

struct Running {
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<Result<(), String>>,
}

impl Mesh {
    /// Returns once the pods are captured and reach each other through tunnels.
    pub(crate) fn start(world: &World) -> Result<Self, Box<dyn std::error::Error>> {
        Self::start_with(world, |_| {})
    }

    /// The same, of a node that is configured otherwise.
    pub(crate) fn start_with(world: &World, configure: impl FnOnce(&mut Config)) -> Result<Self, Box<dyn std::error::Error>> {
        Self::start_told(world, configure, |_| {})
    }

    /// The same, of a node whose certificates come from a SPIRE agent.
    pub(crate) fn start_with_spire(world: &World, socket: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        let given = Given {
            spire: Some(socket.into()),
            ..Given::default()
        };
        Self::start_as(world, given, |_| {}, |_| {})
    }

    /// The same, with certificates that live so long.
    pub(crate) fn start_with_certificates(
        world: &World,
        life: Duration,
        configure: impl FnOnce(&mut Config),
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let given = Given { life, ..Given::default() };
        Self::start_as(world, given, configure, |_| {})
    }

    /// The same, of a node that must be told something once it has started.
    pub(crate) fn start_told(
        world: &World,
        configure: impl FnOnce(&mut Config),
        tell: impl FnOnce(&Self),
    ) -> Result<Self, Box<dyn std::error::Error>> {
        Self::start_as(world, Given::default(), configure, tell)
    }

    /// The same, of a node that is not told of the whole mesh and asks for what it needs: `answer` says what comes then of a name.
    pub(crate) fn start_on_demand(
        world: &World,
        answer: impl Fn(&str) -> Vec<Change> + Send + Sync + 'static,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let given = Given {
            answer: Some(Box::new(answer)),
            ..Given::default()
        };
        Self::start_as(world, given, |_| {}, |_| {})
    }

    /// The same, of a node that is told no UIDs of pods by its source, and whose authority is away while that is said.
    pub(crate) fn start_with_istiod(
        world: &World,
        away: &Arc<AtomicBool>,
        configure: impl FnOnce(&mut Config),
        tell: impl FnOnce(&Self),
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let given = Given {
            istiod: Some(away.clone()),
            ..Given::default()
        };
        Self::start_as(world, given, configure, tell)
    }

    /// Another node in the place of one that has ended; returns once the pods reach each other through tunnels.
    pub(crate) fn start_again_with_istiod(
        &mut self,
        world: &World,
        away: &Arc<AtomicBool>,
        configure: impl FnOnce(&mut Config),
        tell: impl FnOnce(&Self),
    ) {
        let given = Given {
            istiod: Some(away.clone()),
            ..Given::default()
        };
        self.begin(world, given, configure);
        tell(self);
        self.await_tunnels();
    }

    fn start_as(
        world: &World,
        given: Given,
        configure: impl FnOnce(&mut Config),
        tell: impl FnOnce(&Self),
    ) -> Result<Self, Box<dyn std::error::Error>> {
        // Shown where a test fails.
        let log = log::to_stdout("info", log::Format::Text)?;
        let node = Arc::new(world.namespace("node")?);
        node.forward()?;
        let place = |name, v4: &str, v6: &str| -> Result<Place, Box<dyn std::error::Error>> {
            let place = Place {
                namespace: world.namespace(name)?.into(),
                v4: v4.parse()?,
                v6: v6.parse()?,
            };
            join(&node, &place)?;
            Ok(place)
        };
        let mut mesh = Self {
            more: mpsc::unbounded_channel().0,
            a: place("a", "10.0.0.2", "fd00::2")?,
            b: place("b", "10.0.0.3", "fd00::3")?,
            c: place("c", "10.0.0.4", "fd00::4")?,
            node: node.clone(),
            manifests: world.scratch_dir().join("manifests"),
            ca: world.scratch_dir().join("ca"),
            running: None,
            _log: log,
        };
        fs::create_dir(&mesh.manifests)?;
        mesh.apply(
            "namespace",
            "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}",
        );
        mesh.apply("pod-a", &pod("a", &mesh.a));
        mesh.apply("pod-b", &pod("b", &mesh.b));

        mesh.begin(world, given, configure);
        tell(&mesh);
        mesh.await_tunnels();
        Ok(mesh)
    }

    fn begin(&mut self, world: &World, given: Given, configure: impl FnOnce(&mut Config)) {
        let mut config = Config::new(NODE, world.netns_dir());
        config.workers = 2;
        configure(&mut config);
        let (stop, stopped) = oneshot::channel();
        let told;
        (self.more, told) = mpsc::unbounded_channel();
        let (node, manifests, ca) = (self.node.clone(), self.manifests.clone(), self.ca.clone());
        let more = self.more.clone();
        let thread = thread::spawn(move || {
            // What it starts stays in the namespace, as a thread takes that of who made it.
            let ran = node.run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .map_err(|e| e.to_string())?;
                runtime
                    .block_on(serve(config, &manifests, &ca, given, (more, told), stopped))
                    .map_err(|e| e.to_string())
            });
            ran.map_err(|e| e.to_string())?
        });
        self.running = Some(Running { stop, thread });
    }

    /// Writes a manifest, or replaces it, at one stroke.
    pub(crate) fn apply(&self, name: &str, text: &str) {
        let whole = self.manifests.join(format!("{name}.new"));
        fs::write(&whole, text).unwrap();
        fs::rename(whole, self.manifests.join(format!("{name}.yaml"))).unwrap();
    }

    /// Tells the node what no manifest says, after all that manifests have said.
    pub(crate) fn tell(&self, updates: Vec<Update>) {
        self.change(updates.into_iter().map(Change::Mesh).collect());
    }

    /// The same, whatever it is of.
    pub(crate) fn change(&self, changes: Vec<Change>) {
        self.more.send(batch(changes)).unwrap();
    }

    /// The workload that a captured pod is, to be told otherwise.
    pub(crate) fn workload(name: &str, place: &Place) -> Workload {
        let mut workload = Workload::new(&format!("Kubernetes//Pod/{LABELLED}/{name}"), LABELLED, name);
        workload.pod = Some(format!("uid-of-{name}").into());
        workload.addresses = vec![place.v4, place.v6];
        workload.service_account = name.into();
        workload.node = NODE.into();
        workload.ambient = true;
        workload.tunnel = TunnelProtocol::Hbone;
        workload
    }

    pub(crate) fn delete(&self, name: &str) {
        fs::remove_file(self.manifests.join(format!("{name}.yaml"))).unwrap();
    }

    /// Who connects and who is connected to.
    pub(crate) fn ends(&self, way: Way) -> (&Place, &Place) {
        match way {
            Way::Tunnel => (&self.a, &self.b),
            Way::Inbound => (&self.c, &self.b),
            Way::Outbound => (&self.a, &self.c),
        }
    }

    /// A connection that stands.
    pub(crate) fn open(&self, way: Way, family: Family) -> Pair {
        let (from, to) = self.ends(way);
        let listener = to.listen(family);
        let client = from.connect(listener.address()).unwrap();
        Pair {
            client,
            server: listener.accept(),
        }
    }

    /// A page of the node: its status and its text.
    pub(crate) fn page(&self, port: u16, path: &str) -> io::Result<(u16, String)> {
        self.ask("GET", port, path)
    }

    /// The same, also when the node has only begun to start.
    pub(crate) fn page_patiently(&self, port: u16, path: &str) -> (u16, String) {
        until("a page", || self.page(port, path).ok())
    }

    /// What a page of the node answers to a method.
    pub(crate) fn ask(&self, method: &str, port: u16, path: &str) -> io::Result<(u16, String)> {
        self.send(port, &format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\n\r\n"))
    }

    /// A connection to a page of the node.
    pub(crate) fn connect_to_page(&self, port: u16) -> io::Result<TcpStream> {
        let to = SocketAddr::from(([127, 0, 0, 1], port));
        let stream = self.node.run(|| TcpStream::connect_timeout(&to, PATIENCE));
        patient(stream.map_err(io::Error::other)??)
    }

    /// What a page of the node answers to a request as it is written.
    pub(crate) fn send(&self, port: u16, request: &str) -> io::Result<(u16, String)> {
        let mut stream = self.connect_to_page(port)?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, text) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.unwrap_or(0), text.to_owned()))
    }

    /// The sum of a metric over the series that have these labels.
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let (status, text) = self.page(ambient_core::ports::METRICS, "/metrics").unwrap();
        assert_eq!(status, 200);
        let wanted: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        let of_this = text.lines().filter_map(|line| line.strip_prefix(name));
        let of_this = of_this.filter(|rest| rest.starts_with(['{', ' ']) && wanted.iter().all(|label| has_label(rest, label)));
        of_this.filter_map(|rest| rest.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    /// Tells the node to stop.
    pub(crate) fn stop(&mut self) -> Stopping {
        let Running { stop, thread } = self.running.take().unwrap();
        let _ = stop.send(());
        Stopping(thread)
    }

    /// Waits until the node has ended, as it was told to by a page.
    pub(crate) fn ends_by_itself(&mut self) -> Result<(), String> {
        let Running { stop, thread } = self.running.take().unwrap();
        until("the node to end", || thread.is_finished().then_some(()));
        drop(stop);
        Stopping(thread).result()
    }

    /// A connection between pods is plaintext until the news of their capture have gone round.
    fn await_tunnels(&self) {
        let listener = self.b.listen(Family::V4);
        let tunnelled = [("reporter", "source"), ("connection_security_policy", "mutual_tls")];
        until("connections between pods to be tunnelled", || {
            if self.running.as_ref().is_some_and(|running| running.thread.is_finished()) {
                panic!("the node has ended");
            }
            // Refused, or not answered at all, until the pods are known and captured.
            let mut client = self.a.connect(listener.address()).ok()?;
            client.shutdown(std::net::Shutdown::Write).ok()?;
            while let Ok((server, _)) = listener.0.accept() {
                drop(server);
            }
            let _ = client.set_read_timeout(Some(Duration::from_millis(50)));
            let _ = client.read(&mut [0]);
            let (_, page) = self.page(ambient_core::ports::METRICS, "/metrics").ok()?;
            let series = page.lines().filter(|line| line.starts_with("istio_tcp_connections_opened_total{"));
            let is_tunnel = |line: &str| {
                tunnelled
                    .iter()
                    .all(|(name, value)| has_label(line, &format!("{name}=\"{value}\"")))
            };
            series.into_iter().any(is_tunnel).then_some(())
        });
        // And the news of the one that has connected, which would undo what a test tells of it.
        until("both to be told of as captured", || {
            let (_, dump) = self.page(ambient_core::ports::ADMIN, "/config_dump").ok()?;
            let dump: serde_json::Value = serde_json::from_str(&dump).ok()?;
            let mut both = dump["workloads"]
                .as_array()?
                .iter()
                .filter(|w| w["name"] == "a" || w["name"] == "b");
            both.all(|workload| workload["protocol"] == "HBONE").then_some(())
        });
    }
}

/// A node that was told to stop.
pub(crate) struct Stopping(thread::JoinHandle<Result<(), String>>);

impl Stopping {
    pub(crate) fn is_over(&self) -> bool {
        self.0.is_finished()
    }

    pub(crate) fn result(self) -> Result<(), String> {
        self.0.join().unwrap()
    }
}

async fn serve(
    config: Config,
    manifests: &Path,
    ca: &Path,
    given: Given,
    (more, told): (mpsc::UnboundedSender<Batch>, mpsc::UnboundedReceiver<Batch>),
    stopped: oneshot::Receiver<()>,
) -> Outcome {
    let domain = config.trust_domain.clone();
    let issuer: Arc<dyn Issuer> = match given.spire.as_deref().and_then(Path::to_str) {
        Some(socket) => {
            let provider = Arc::new(ambient_tls::provider());
            Arc::new(DelegatedIdentity::new(DelegatedConfig::new(
                Socket::new(socket)?,
                domain,
                provider,
            ))?)
        }
        None => Arc::new(DirectoryCa::open(ca, domain, given.life)?),
    };
    let (issuer, unnamed) = match given.istiod {
        Some(away) => (Arc::new(Far { issuer, away }) as Arc<dyn Issuer>, true),
        None => (issuer, false),
    };
    let status = Status::open(manifests, NODE)?;
    let source = source(manifests, &status).await?;
    let node = Node::builder(config)
        .source(Both {
            manifests: source,
            more: told,
            unnamed,
            demand: given.answer.map(|answer| Arc::new(Asked { answer, more })),
        })
        .issuer(issuer)
        .announce(Arc::new(AnnounceInDirectory::new(status)))
        .build()
        .await?;
    let stop = async {
        let _ = stopped.await;
    };
    Ok(node.run(stop).await?)
}

pub(crate) async fn source(manifests: &Path, own: &Status) -> Result<Manifests, Box<dyn std::error::Error>> {
    let config = manifests::Config {
        own: Some(own.clone()),
        ..manifests::Config::new(manifests)
    };
    Ok(Manifests::open(config).await?)
}

/// What manifests say, and what a test says besides.
struct Both {
    manifests: Manifests,
    more: mpsc::UnboundedReceiver<Batch>,
    /// Whether the UIDs of pods are kept back.
    unnamed: bool,
    demand: Option<Arc<Asked>>,
}

impl Source for Both {
    fn next(&mut self) -> BoxFuture<'_, Option<Batch>> {
        Box::pin(async move {
            let mut batch = tokio::select! {
                batch = self.manifests.next() => batch?,
                Some(batch) = self.more.recv() => batch,
            };
            for change in batch.changes.iter_mut().filter(|_| self.unnamed) {
                if let Change::Mesh(Update::Workload(workload)) = change {
                    Arc::make_mut(workload).pod = None;
                }
            }
            Some(batch)
        })
    }

    fn on_demand(&self) -> Option<Arc<dyn OnDemand>> {
        let demand = self.demand.clone()?;
        Some(demand)
    }
}

/// An authority that may be away; whom to trust is known.
struct Far {
    issuer: Arc<dyn Issuer>,
    away: Arc<AtomicBool>,
}

impl Issuer for Far {
    fn issue<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Arc<Credential>, IssueError>> {
        if self.away.load(Ordering::Relaxed) {
            let error = IssueError::Unavailable {
                identity: identity.clone(),
                why: "it is away".into(),
            };
            return Box::pin(std::future::ready(Err(error)));
        }
        self.issuer.issue(identity)
    }

    fn trust(&self) -> Arc<TrustBundles> {
        self.issuer.trust()
    }
}

fn batch(changes: Vec<Change>) -> Batch {
    Batch {
        changes,
        synced: true,
        ..Batch::default()
    }
}

/// Answers each name with what a test says.
struct Asked {
    answer: Answer,
    more: mpsc::UnboundedSender<Batch>,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asked")
    }
}

impl OnDemand for Asked {
    fn ask(&self, name: &str) -> Result<(), AskError> {
        let answered = Batch {
            answered: vec![name.into()],
            ..batch((self.answer)(name))
        };
        self.more.send(answered).map_err(|_| AskError::Ended)
    }

    fn give_back(&self, _: Vec<String>) {}

    fn is_there(&self) -> bool {
        true
    }
}

/// Joins a place to the node by a wire, and lets it reach everything through the node.
fn join(node: &Namespace, place: &Place) -> Outcome {
    let (v4, v6) = (IpNet::from(place.v4), IpNet::from(place.v6));
    let (via4, via6) = ("10.0.0.1".parse::<IpAddr>()?, "fd00::1".parse::<IpAddr>()?);
    link(
        &End::new(&place.namespace, "eth0").address(v4).address(v6),
        &End::new(node, place.namespace.name()).address(via4).address(via6),
    )?;
    for (own, every, via) in [(v4, "0.0.0.0/0", via4), (v6, "::/0", via6)] {
        node.add_route(own, None, place.namespace.name())?;
        place.namespace.add_route(every.parse::<IpNet>()?, Some(via), "eth0")?;
    }
    Ok(())
}

/// A pod with a service account of its own name.
pub(crate) fn pod(name: &str, place: &Place) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {LABELLED}, uid: uid-of-{name}, labels: {{app: {name}}}}}
spec: {{nodeName: {NODE}, serviceAccountName: {name}, containers: [{{name: {name}, image: none}}]}}
status: {{phase: Running, podIP: '{v4}', podIPs: [{{ip: '{v4}'}}, {{ip: '{v6}'}}]}}
",
        v4 = place.v4,
        v6 = place.v6,
    )
}

fn has_label(series: &str, label: &str) -> bool {
    series
        .match_indices(label)
        .any(|(at, _)| at > 0 && matches!(series.as_bytes()[at - 1], b'{' | b','))
}

/// Asks again until there is an answer.
pub(crate) fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "waited for {what} in vain");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What a read finds, in a word.
pub(crate) fn ending(stream: &mut TcpStream) -> String {
    match stream.read(&mut [0; 1024]) {
        Ok(0) => "end".into(),
        Ok(n) => format!("{n} bytes"),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => "reset".into(),
        Err(error) => error.to_string(),
    }
}

/// Closes a connection as a reset.
pub(crate) fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}
