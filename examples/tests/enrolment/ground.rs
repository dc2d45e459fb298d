//! Two nodes, and the pods on them.

use std::{
    collections::BTreeSet,
    error::Error,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use ambient_testkit::{
    Namespace, Output, Program, World,
    cluster::{Cluster, DATAPLANE_MODE, Images, Key, residue},
};
use serde_json::Value;

/// The binary itself.
pub(crate) const AMBIENT: &str = env!("CARGO_BIN_EXE_ambient");
const READINESS: &str = "127.0.0.1:15021";
pub(crate) const NODES: [&str; 2] = ["node-1", "node-2"];

pub(crate) type Failure = Box<dyn Error>;

pub(crate) struct Ground {
    pub(crate) cluster: Cluster,
    ca: PathBuf,
    /// Where namespaces have names.
    pub(crate) netns: PathBuf,
    /// Whom the pods call: a line for each, with its name and addresses.
    pub(crate) peers: PathBuf,
}

impl Ground {
    /// A namespace `demo`, and both nodes, which run.
    pub(crate) fn new(world: &World) -> Result<Self, Failure> {
        let images = Images::from([("peer".to_owned(), Program::actor("peer"))]);
        let dir = world.scratch_dir();
        let peers = dir.join("peers");
        fs::write(&peers, "")?;
        let mut cluster = Cluster::build(world, dir.join("cluster"), images)?;
        cluster.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: demo}\n")?;
        let mut ground = Self {
            cluster,
            ca: dir.join("ca"),
            netns: world.netns_dir(),
            peers,
        };
        for node in NODES {
            ground.start(node)?;
        }
        Ok(ground)
    }

    /// Starts the process of a node.
    pub(crate) fn start(&mut self, node: &str) -> Result<(), Failure> {
        let program = Program::new(AMBIENT)
            .args(["node", "--log", "info", "--log-format", "text", "--node", node, "--leave", "1"])
            .arg("--netns-dir")
            .arg(&self.netns)
            .arg("--manifests")
            .arg(self.cluster.manifests())
            .arg("--ca-dir")
            .arg(&self.ca);
        Ok(self.cluster.node(node)?.start(program)?)
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
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: demo, labels: {{{DATAPLANE_MODE}: {mode}}}}}\nspec: {{serviceAccountName: \
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

    /// The ends of the nodes' logs.
    pub(crate) fn logs(&self) -> String {
        let tail = |path: &Path| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().filter(|line| !line.contains("\taccess\t")).collect();
            lines[lines.len().saturating_sub(60)..].join("\n")
        };
        self.cluster
            .nodes()
            .iter()
            .map(|node| format!("{}:\n{}\n", node.name(), tail(node.log())))
            .collect()
    }
}

pub(crate) fn key(name: &str) -> Key {
    Key::new("Pod", "demo", name)
}

/// Looks until something is so; gives what was seen last where it never was.
pub(crate) fn until<T>(patience: Duration, mut look: impl FnMut() -> Result<Result<T, String>, Failure>) -> Result<T, Failure> {
    let end = Instant::now() + patience;
    loop {
        match look()? {
            Ok(found) => return Ok(found),
            Err(seen) if Instant::now() > end => return Err(format!("after {patience:?}: {seen}").into()),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}
