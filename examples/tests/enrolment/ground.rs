//! Two nodes, and the pods on them.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    ffi::OsStr,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use ambient_testkit::{
    Namespace, Output, Process, Program, World,
    cluster::{Cluster, DATAPLANE_MODE, Families, Images, Key, residue},
    harness::{self, Outcome},
};
use serde_json::Value;

/// The binary itself.
pub(crate) const AMBIENT: &str = env!("CARGO_BIN_EXE_ambient");
/// `NET_ADMIN`, `NET_RAW` and `SYS_ADMIN`: what Istio's chart leaves its node proxy.
const CHART: u64 = 1 << 12 | 1 << 13 | 1 << 21;
const READINESS: &str = "127.0.0.1:15021";
pub(crate) const NODES: [&str; 2] = ["node-1", "node-2"];

pub(crate) type Failure = Box<dyn Error>;

pub(crate) struct Ground {
    pub(crate) cluster: Cluster,
    pub(crate) ca: PathBuf,
    /// Where namespaces have names.
    pub(crate) netns: PathBuf,
    /// Whom the pods call: a line for each, with its name and addresses.
    pub(crate) peers: PathBuf,
    /// Where each node has the mesh's state and its certificates from, in flags.
    sources: BTreeMap<String, Vec<String>>,
    control: Option<Process>,
    /// What it is told besides.
    control_flags: Vec<String>,
    /// The proxy of somebody else on the second node.
    other: Option<Process>,
}

impl Ground {
    /// A namespace `demo`, and both nodes, which run: each has its state and its certificates from directories.
    pub(crate) fn new(world: &World) -> Result<Self, Failure> {
        let mut ground = Self::without_nodes(world, Families::Both)?;
        let (manifests, ca) = (path(ground.cluster.manifests()), path(&ground.ca));
        ground.start_all(|_| vec!["--manifests".into(), manifests.clone(), "--ca-dir".into(), ca.clone()])?;
        Ok(ground)
    }

    /// The same, of nodes that live on `ambient control`, which runs on the first of them; with more flags for that, and for
    /// the nodes, in which `{node}` stands for the node's name.
    pub(crate) fn on_control(world: &World, control: &[&str], more: &[&str]) -> Result<Self, Failure> {
        Self::on_control_of(world, Families::Both, control, more)
    }

    /// The same, in a cluster of these families.
    pub(crate) fn on_control_of(world: &World, families: Families, control: &[&str], more: &[&str]) -> Result<Self, Failure> {
        let mut ground = Self::without_nodes(world, families)?;
        ground.control_flags = control.iter().map(ToString::to_string).collect();
        let at = ground.start_control()?;
        let own: BTreeMap<&str, Vec<String>> = NODES
            .into_iter()
            .map(|node| Ok((node, ground.joining(node, &at)?)))
            .collect::<Result<_, Failure>>()?;
        ground.start_all(|node| {
            let more = more.iter().map(|flag| flag.replace("{node}", node));
            own[node].iter().cloned().chain(more).collect()
        })?;
        Ok(ground)
    }

    /// The same, of nodes whose certificates come from SPIRE, as the flags of each say, and state from a directory.
    pub(crate) fn on_spire(world: &World, agent: impl Fn(&str) -> Vec<String>) -> Result<Self, Failure> {
        let mut ground = Self::without_nodes(world, Families::Both)?;
        let manifests = path(ground.cluster.manifests());
        ground.start_all(|node| [vec!["--manifests".into(), manifests.clone()], agent(node)].concat())?;
        Ok(ground)
    }

    /// The same on `ambient control` with more flags, where the second node has `ambient enrol` alone: its proxy is for
    /// [`Self::start_other`].
    pub(crate) fn beside_another(world: &World, socket: &Path, control: &[&str]) -> Result<Self, Failure> {
        let mut ground = Self::without_nodes(world, Families::Both)?;
        ground.control_flags = control.iter().map(ToString::to_string).collect();
        let at = ground.start_control()?;
        let flags = ground.joining(NODES[0], &at)?;
        ground.sources.insert(NODES[0].into(), flags);
        ground.start(NODES[0])?;
        let enrol = Program::new(AMBIENT)
            .args(["enrol", "--node", NODES[1], "--log-format", "text", "--leave", "1", "--manifests"])
            .arg(ground.cluster.manifests())
            .args([
                OsStr::new("--zds"),
                socket.as_os_str(),
                OsStr::new("--netns-dir"),
                ground.netns.as_os_str(),
            ]);
        ground.cluster.node(NODES[1])?.start(enrol)?;
        Ok(ground)
    }

    /// Starts a proxy on the second node as Istio's chart starts its own, beside the `ambient enrol` that has this socket: by arguments
    /// and variables alone, with three capabilities, on files that it can only read. What it writes goes to the node's log.
    pub(crate) fn start_other(&mut self, proxy: &Path, socket: &Path) -> Outcome {
        let host = *self.cluster.node(NODES[0])?.ips().first().ok_or("it has no address")?;
        let control = format!("https://{}", SocketAddr::new(host, 15012));
        let token = self.ca.with_file_name("other.token");
        fs::write(&token, self.token(NODES[1])?)?;
        let root = self.ca.join("root.pem");
        let node = self.cluster.node(NODES[1])?;
        let log = Output::File(node.log().to_owned());
        let program = Program::new(proxy)
            .args(["proxy", "ztunnel"])
            .env("NODE_NAME", NODES[1])
            .env("INPOD_UDS", socket)
            .env("XDS_ADDRESS", &control)
            .env("CA_ADDRESS", &control)
            .env("XDS_ROOT_CA", &root)
            .env("CA_ROOT_CA", &root)
            .env("AUTH_TOKEN", &token)
            .view(node.view())
            .confined(CHART)
            .stdout(log.clone())
            .stderr(log);
        self.other = Some(node.namespace().spawn(&program)?);
        Ok(())
    }

    /// The flags with which a node joins the control plane.
    fn joining(&mut self, node: &str, at: &str) -> Result<Vec<String>, Failure> {
        let (root, token) = (path(&self.ca.join("root.pem")), self.token(node)?);
        let flags = [
            "--control",
            at,
            "--xds-root-ca",
            &root,
            "--ca-root-ca",
            &root,
            "--auth-token",
            &token,
        ];
        Ok(flags.map(str::to_owned).into())
    }

    fn token(&mut self, node: &str) -> Result<String, Failure> {
        let (code, token, err) = self.ambient(node, &["control", "token", node, "--ca", &path(&self.ca)])?;
        if code == 0 { Ok(token) } else { Err(err.into()) }
    }

    /// Kills the proxy of somebody else.
    pub(crate) fn kill_other(&mut self) -> Outcome {
        self.other.take().ok_or("it does not run")?.kill()?;
        Ok(())
    }

    fn start_all(&mut self, source: impl Fn(&str) -> Vec<String>) -> Result<(), Failure> {
        for node in NODES {
            self.sources.insert(node.into(), source(node));
            self.start(node)?;
        }
        Ok(())
    }

    fn without_nodes(world: &World, families: Families) -> Result<Self, Failure> {
        let images = Images::from([("peer".to_owned(), Program::actor("peer"))]);
        let dir = world.scratch_dir();
        let peers = dir.join("peers");
        fs::write(&peers, "")?;
        let mut cluster = Cluster::build_of(world, families, dir.join("cluster"), images)?;
        cluster.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: demo}\n")?;
        Ok(Self {
            cluster,
            ca: dir.join("ca"),
            netns: world.netns_dir(),
            peers,
            sources: BTreeMap::new(),
            control: None,
            control_flags: Vec::new(),
            other: None,
        })
    }

    /// Starts `ambient control` on the first node, and gives its address once it serves.
    pub(crate) fn start_control(&mut self) -> Result<String, Failure> {
        let (manifests, ca) = (path(self.cluster.manifests()), path(&self.ca));
        let node = self.cluster.node(NODES[0])?;
        let host = *node.ips().first().ok_or("it has no address")?;
        let (at, host) = (SocketAddr::new(host, 15012).to_string(), host.to_string());
        let program = Program::new(AMBIENT)
            .args(["control", "--listen", &at, "--name", &host, "--mesh", &manifests, "--ca", &ca])
            .args(&self.control_flags)
            .stdout(Output::Null);
        self.control = Some(node.namespace().spawn(&program)?);
        let listens = |to: SocketAddr| move || TcpStream::connect(to).map_err(|e| e.to_string());
        until(Duration::from_secs(20), || {
            Ok(self.node_namespace(NODES[0])?.run(listens(at.parse()?))?.map(drop))
        })?;
        Ok(at)
    }

    /// Kills `ambient control`.
    pub(crate) fn kill_control(&mut self) -> Result<(), Failure> {
        self.control.take().ok_or("it does not run")?.kill()?;
        Ok(())
    }

    /// Starts the process of a node.
    pub(crate) fn start(&mut self, node: &str) -> Result<(), Failure> {
        let program = Program::new(AMBIENT).args(self.arguments(node));
        Ok(self.cluster.node(node)?.start(program)?)
    }

    /// The same from a line for a shell, in which `"$0" "$@"` is the command.
    pub(crate) fn start_by(&mut self, node: &str, line: &str) -> Result<(), Failure> {
        let program = Program::new("sh").args(["-c", line, AMBIENT]).args(self.arguments(node));
        Ok(self.cluster.node(node)?.start(program)?)
    }

    /// What the process of a node is started with.
    pub(crate) fn arguments(&self, node: &str) -> Vec<String> {
        let own = ["node", "--log", "info", "--log-format", "text", "--node", node, "--leave", "1"];
        let netns = ["--netns-dir".to_owned(), path(&self.netns)];
        own.into_iter()
            .map(str::to_owned)
            .chain(netns)
            .chain(self.sources[node].iter().cloned())
            .collect()
    }

    /// Waits until a node's process says that it is ready.
    pub(crate) fn ready(&mut self, node: &str) -> Result<(), Failure> {
        until(Duration::from_secs(20), || {
            let process = self.cluster.node(node)?.process().ok_or("it was never started")?;
            if !process.is_running()? {
                return Err(format!("{node} has ended").into());
            }
            Ok(match self.cluster.probe(node, READINESS.parse()?, "/healthz/ready")? {
                Ok(200) => Ok(()),
                other => Err(format!("{node} is not ready: {other:?}")),
            })
        })
    }

    /// The process of a node.
    pub(crate) fn pid(&mut self, node: &str) -> Result<u32, Failure> {
        let process = self.cluster.node(node)?.process().ok_or("it does not run")?;
        Ok(process.pid())
    }

    /// A pod that idles, in the mesh or not.
    pub(crate) fn idle(&mut self, node: &str, name: &str, meant: bool) -> Result<(), Failure> {
        let peers = self.peers.display().to_string();
        self.pod(node, name, name, &[name, "0", &peers], meant)
    }

    /// Runs the binary in a node's namespace: its exit code, and what it prints.
    pub(crate) fn ambient(&mut self, node: &str, args: &[&str]) -> Result<(i32, String, String), Failure> {
        let program = Program::new(AMBIENT).args(args).stdout(Output::Pipe).stderr(Output::Pipe);
        let mut process = self.cluster.node(node)?.namespace().spawn(&program)?;
        let (mut out, mut err) = (String::new(), String::new());
        process.take_stdout().ok_or("no output")?.read_to_string(&mut out)?;
        process.take_stderr().ok_or("no output")?.read_to_string(&mut err)?;
        let status = process.wait(Duration::from_secs(20))?.ok_or("it does not end")?;
        Ok((status.code().ok_or("it was killed")?, out, err))
    }

    /// A page of a node, on its loopback. One that does not come is told of, and asked for once more: that a machine stands is no
    /// failure of a page.
    pub(crate) fn page(&self, node: &str, port: u16, path: &str) -> Result<String, Failure> {
        self.page_once(node, port, path).or_else(|why| {
            eprintln!("{why}\n{}", harness::scene());
            self.page_once(node, port, path)
        })
    }

    fn page_once(&self, node: &str, port: u16, path: &str) -> Result<String, Failure> {
        let asked = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        let begun = Instant::now();
        let (answer, heard) = self.node_namespace(node)?.run(move || {
            let mut answer = String::new();
            let heard = TcpStream::connect(("127.0.0.1", port)).and_then(|mut stream| {
                stream.set_read_timeout(Some(Duration::from_secs(20)))?;
                stream.write_all(asked.as_bytes())?;
                stream.read_to_string(&mut answer)
            });
            (answer, heard)
        })?;
        let of = || format!("{path} of {node}, after {:?} and {} bytes", begun.elapsed(), answer.len());
        heard.map_err(|why| format!("{}: {why}", of()))?;
        let (_, page) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("{}: no HTTP", of()))?;
        Ok(page.to_owned())
    }

    /// The first address of a pod.
    pub(crate) fn address(&self, pod: &str) -> Result<IpAddr, Failure> {
        Ok(*self.cluster.pod("demo", pod)?.addresses().first().ok_or("it has no address")?)
    }

    /// What the node says of one pod, as JSON.
    pub(crate) fn told(&mut self, node: &str, pod: &str) -> Result<Value, Failure> {
        let (code, out, err) = self.ambient(node, &["pods", pod, "--json"])?;
        if code != 0 {
            return Err(err.into());
        }
        Ok(serde_json::from_str(&out)?)
    }

    /// A pod on a node that is in the mesh by its own label, or not. One that is meant to be in is captured when this ends.
    pub(crate) fn pod(&mut self, node: &str, name: &str, account: &str, args: &[&str], meant: bool) -> Result<(), Failure> {
        let mode = if meant { "ambient" } else { "none" };
        let args: Vec<String> = args.iter().map(|arg| format!("{arg:?}")).collect();
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: demo, labels: {{app: {name}, {DATAPLANE_MODE}: {mode}}}}}\nspec: {{serviceAccountName: \
             {account}, nodeSelector: {{kubernetes.io/hostname: {node}}}, containers: [{{name: peer, image: peer, args: [{}]}}]}}\n",
            args.join(", ")
        );
        Ok(self.cluster.apply(&text)?)
    }

    /// Has a pod be in the mesh, or not.
    pub(crate) fn mean(&mut self, name: &str, meant: bool) -> Result<(), Failure> {
        let mode = if meant { "ambient" } else { "none" };
        Ok(self.cluster.label(&key(name), DATAPLANE_MODE, Some(mode))?)
    }

    /// The pods that stand in a node's status, by UID.
    pub(crate) fn captured(&self) -> Result<BTreeSet<String>, Failure> {
        let mut all = BTreeSet::new();
        for node in NODES {
            all.extend(self.cluster.captured(node)?);
        }
        Ok(all)
    }

    /// What a node's mesh has in any namespace: tables, rules and routes of a pod's, and the table of a node's own.
    pub(crate) fn left_behind(&self) -> Result<Vec<String>, Failure> {
        let mut left = Vec::new();
        for (key, pod) in self.cluster.pods() {
            let found = residue(pod.namespace().ok_or("it is on the host's network")?)?;
            left.extend(found.into_iter().map(|what| format!("{}: {what}", key.name)));
        }
        for node in self.cluster.nodes() {
            let own = residue(node.namespace())?.into_iter().filter(|line| line.contains("ambient"));
            left.extend(own.map(|what| format!("{}: {what}", node.name())));
        }
        left.extend(self.captured()?.into_iter().map(|uid| format!("{uid} stands in a status")));
        Ok(left)
    }

    pub(crate) fn node_namespace(&self, name: &str) -> Result<&Namespace, Failure> {
        let node = self.cluster.nodes().iter().find(|node| node.name() == name);
        Ok(node.ok_or("there is no such node")?.namespace())
    }

    pub(crate) fn pod_namespace(&self, name: &str) -> Result<&Namespace, Failure> {
        Ok(self.cluster.pod("demo", name)?.namespace().ok_or("it is on the host's network")?)
    }

    /// The ends of the nodes' logs, of each line the beginning, and what their processes are at: so much that whoever keeps but a
    /// part of what is printed has all of it.
    pub(crate) fn logs(&self) -> String {
        let tail = |path: &Path| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().filter(|line| !line.contains("\taccess\t")).collect();
            let last = &lines[lines.len().saturating_sub(LINES)..];
            let cut = last.iter().map(|line| line.chars().take(LENGTH).collect::<String>() + "\n");
            let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
            for access in text.lines().filter(|line| line.contains("\taccess\t")) {
                *reasons
                    .entry(access.split_once(" reason=").map_or("", |(_, reason)| reason))
                    .or_default() += 1;
            }
            let of = reasons.iter().map(|(reason, count)| format!("{count} times {reason:.LENGTH$}\n"));
            cut.chain(of).collect::<String>()
        };
        let nodes = self.cluster.nodes().iter();
        let logs: String = nodes.map(|node| format!("{}:\n{}", node.name(), tail(node.log()))).collect();
        logs + &harness::scene()
    }
}

/// Of a log, and of a line.
const LINES: usize = 24;
const LENGTH: usize = 240;

pub(crate) fn path(path: &Path) -> String {
    path.display().to_string()
}

pub(crate) fn key(name: &str) -> Key {
    Key::new("Pod", "demo", name)
}

/// Looks until something is so; gives what was seen last where it never was. The last look begins after the end: one that took
/// long says nothing of that.
pub(crate) fn until<T>(patience: Duration, mut look: impl FnMut() -> Result<Result<T, String>, Failure>) -> Result<T, Failure> {
    let end = Instant::now() + patience;
    loop {
        let last = Instant::now() > end;
        match look()? {
            Ok(found) => return Ok(found),
            Err(seen) if last => return Err(format!("after {patience:?}: {seen}").into()),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}
