//! The ground that the steps stand on: the cluster, the capture, and the few things that steps do with them.

use std::{
    collections::BTreeSet,
    fmt, fs,
    io::{self, Read},
    net::IpAddr,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use ambient_testkit::{
    Capture, Namespace, Output, Process, Program, View, World,
    capture::{CaptureError, Connection, Seen, Speech},
    cluster::{Cluster, ClusterError, Images, Key, NODE_INTERFACE, Node, Pod, clock},
};
use serde_json::Value;

use super::{
    app::{self, Outcome},
    evidence::{self, Entry, Sample},
};

/// The lab, as the steps see it.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) cluster: Cluster,
    /// Everything that passes between the nodes.
    pub(crate) capture: Capture,
    ca: PathBuf,
    netns: PathBuf,
    control: Option<Control>,
}

/// `ambient control`, where nodes are to live on it.
#[derive(Debug)]
struct Control {
    address: String,
    /// Ends with the lab.
    _process: Process,
}

/// Why a step did not see what was expected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unmet {
    /// It saw something else.
    #[error("{0}")]
    Saw(String),
    /// The cluster failed.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The capture failed.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// Something of the machine failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl Unmet {
    pub(crate) fn saw(what: impl fmt::Display) -> Self {
        Self::Saw(what.to_string())
    }

    pub(crate) fn io(doing: impl fmt::Display) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.to_string();
        move |source| Self::Io { doing, source }
    }
}

/// A call to make from a pod.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    args: Vec<String>,
    deadline: Duration,
}

impl Ask {
    /// One GET.
    pub(crate) fn get(uri: impl fmt::Display) -> Self {
        Self {
            args: vec!["call".into(), uri.to_string()],
            deadline: CALL_DEADLINE,
        }
    }

    /// So many HEADs, one after the other.
    pub(crate) fn heads(uri: impl fmt::Display, count: u32) -> Self {
        let more = ["--method", "HEAD", "--count"].map(str::to_owned);
        let mut ask = Self::get(uri);
        ask.args.extend(more.into_iter().chain([count.to_string()]));
        Self {
            deadline: MANY_DEADLINE,
            ..ask
        }
    }

    /// With a text to look for on the wire.
    pub(crate) fn marked(self, marker: &str) -> Self {
        self.with("--marker", marker)
    }

    /// With another `Host`.
    pub(crate) fn host(self, host: &str) -> Self {
        self.with("--host", host)
    }

    /// Over one family of addresses alone: `4` or `6`.
    pub(crate) fn family(mut self, family: u8) -> Self {
        self.args.push(format!("-{family}"));
        self
    }

    fn with(mut self, flag: &str, value: &str) -> Self {
        self.args.extend([flag.to_owned(), value.to_owned()]);
        self
    }
}

impl Lab {
    /// Brings everything up as it is before the namespace gets its label: two nodes with their processes, every pod.
    ///
    /// With `control` the nodes know of the mesh and get their certificates from `ambient control`, which runs on the first of
    /// them; without, each from the directories themselves.
    pub(crate) fn bring_up(world: &World, dir: &Path, control: bool) -> Result<Self, Unmet> {
        let images = Images::from([("ambient-lab-app".to_owned(), this().arg("lab-app"))]);
        let mut cluster = Cluster::build(world, dir.into(), images)?;
        let ca = dir.join("ca");
        let capture = Capture::start(cluster.node("node-1")?.namespace(), NODE_INTERFACE)?;
        for text in [manifests::NAMESPACES, manifests::ACCOUNTS, manifests::SERVICES] {
            cluster.apply(text)?;
        }
        let mut lab = Self {
            cluster,
            capture,
            ca,
            netns: world.netns_dir(),
            control: None,
        };
        if control {
            lab.start_control()?;
        }
        lab.start_node("node-1")?;
        lab.start_node("node-2")?;
        lab.cluster.apply(manifests::PODS)?;
        Ok(lab)
    }

    /// Starts a node's mesh process, the very command that a real node runs.
    pub(crate) fn start_node(&mut self, name: &str) -> Result<(), Unmet> {
        let program = this()
            .env("RUST_LOG", "info")
            .env("LOG_FORMAT", "text")
            .args(["node", "--node", name])
            .arg("--netns-dir")
            .arg(&self.netns)
            // Several labs may run on a machine, and share its memory.
            .args(["--keys-dir", "none"]);
        let program = match &self.control {
            Some(control) => program
                .args(["--control", &control.address])
                .arg("--xds-root-ca")
                .arg(self.ca.join("root.pem"))
                .arg("--auth-token")
                .arg(self.token(name)?),
            None => program
                .arg("--manifests")
                .arg(self.cluster.manifests())
                .arg("--ca-dir")
                .arg(&self.ca),
        };
        Ok(self.cluster.node(name)?.start(program)?)
    }

    /// Starts `ambient control` on the first node, and waits until it has made its authority.
    fn start_control(&mut self) -> Result<(), Unmet> {
        let (mesh, ca) = (self.cluster.manifests().to_owned(), self.ca.clone());
        let node = self.cluster.node("node-1")?;
        let host = node.addresses().v4.to_string();
        let log = node.log().with_file_name("control.log");
        let program = this()
            .args(["control", "--listen", &format!("{host}:{CONTROL_PORT}"), "--name", &host, "--mesh"])
            .arg(mesh)
            .arg("--ca")
            .arg(&ca)
            .stdout(Output::File(log.clone()))
            .stderr(Output::File(log.clone()));
        let process = node.namespace().spawn(&program).map_err(|e| Unmet::Cluster(e.into()))?;
        let made = until(CHANGE_DEADLINE, || Ok(ca.join("root.pem").exists().then_some(())))?;
        let said = || fs::read_to_string(&log).unwrap_or_default();
        made.ok_or_else(|| Unmet::saw(format!("ambient control has made no authority: {}", said().trim_end())))?;
        self.control = Some(Control {
            address: format!("https://{host}:{CONTROL_PORT}"),
            _process: process,
        });
        Ok(())
    }

    /// The file with a node's token; made when it is asked for first.
    fn token(&mut self, node: &str) -> Result<PathBuf, Unmet> {
        let file = self.ca.join(format!("{node}.token"));
        if file.exists() {
            return Ok(file);
        }
        let program = this()
            .args(["control", "token", node, "--ca"])
            .arg(&self.ca)
            .stdout(Output::Pipe)
            .stderr(Output::Pipe);
        let of = self.cluster.node(node)?;
        let mut process = of.namespace().spawn(&program).map_err(|e| Unmet::Cluster(e.into()))?;
        let doing = || format!("making a token for {node}");
        // What it says is less than a pipe holds, so it never waits for a reader.
        let ended = process.wait(CHANGE_DEADLINE).map_err(Unmet::io(doing()))?;
        let Some(ended) = ended else {
            return Err(Unmet::saw(format!("{} did not end within {CHANGE_DEADLINE:?}", doing())));
        };
        let (mut token, mut said) = (String::new(), String::new());
        if let (Some(mut out), Some(mut err)) = (process.take_stdout(), process.take_stderr()) {
            out.read_to_string(&mut token)
                .and_then(|_| err.read_to_string(&mut said))
                .map_err(Unmet::io(doing()))?;
        }
        if !ended.success() {
            return Err(Unmet::saw(format!("{}: {}", doing(), said.trim_end())));
        }
        fs::write(&file, token).map_err(Unmet::io(doing()))?;
        Ok(file)
    }

    /// A pod by its name, which is unique in the lab.
    pub(crate) fn pod(&self, name: &str) -> Result<&Pod, Unmet> {
        let found = self.cluster.pods().values().find(|pod| pod.key().name == name);
        found.ok_or_else(|| Unmet::saw(format!("there is no pod {name}")))
    }

    /// The IPv4 address of a pod.
    pub(crate) fn address(&self, name: &str) -> Result<IpAddr, Unmet> {
        self.pod(name)?
            .addresses()
            .first()
            .copied()
            .ok_or_else(|| Unmet::saw(format!("{name} has no address")))
    }

    /// The namespace in which a pod's programs run.
    pub(crate) fn namespace(&self, name: &str) -> Result<&Namespace, Unmet> {
        Ok(self.cluster.namespace_of(self.pod(name)?)?)
    }

    /// Starts a program of the application in a pod, with its standard output in a pipe.
    pub(crate) fn start(&self, pod: &str, args: &[String]) -> Result<Process, Unmet> {
        let program = this().arg("lab-app").args(args).view(self.pod(pod)?.view()).stdout(Output::Pipe);
        self.namespace(pod)?.spawn(&program).map_err(|e| Unmet::Cluster(e.into()))
    }

    /// Makes calls from a pod and gives what each came to.
    pub(crate) fn calls(&self, pod: &str, ask: &Ask) -> Result<Vec<Outcome>, Unmet> {
        let mut process = self.start(pod, &ask.args)?;
        let doing = || format!("a client in {pod}");
        // Its output is less than a pipe holds, so it never waits for a reader.
        if process.wait(ask.deadline).map_err(Unmet::io(doing()))?.is_none() {
            return Err(Unmet::saw(format!("the client in {pod} did not end within {:?}", ask.deadline)));
        }
        let mut text = String::new();
        if let Some(mut out) = process.take_stdout() {
            out.read_to_string(&mut text).map_err(Unmet::io(doing()))?;
        }
        let outcomes: Result<Vec<Outcome>, _> = text.lines().map(serde_json::from_str).collect();
        outcomes.map_err(|e| Unmet::saw(format!("the client in {pod} printed {text:?}: {e}")))
    }

    /// Makes one call from a pod.
    pub(crate) fn call(&self, pod: &str, ask: &Ask) -> Result<Outcome, Unmet> {
        self.calls(pod, ask)?
            .pop()
            .ok_or_else(|| Unmet::saw(format!("the client in {pod} printed nothing")))
    }

    /// Repeats a call until it comes to what is wanted.
    pub(crate) fn call_until(&self, pod: &str, ask: &Ask, wanted: impl Fn(&Outcome) -> bool) -> Result<Outcome, Unmet> {
        let mut last = String::from("nothing");
        until(CHANGE_DEADLINE, || {
            let outcome = self.call(pod, ask)?;
            last = described(&outcome);
            Ok(wanted(&outcome).then_some(outcome))
        })?
        .ok_or_else(|| Unmet::saw(format!("{pod} still saw {last} after {CHANGE_DEADLINE:?}")))
    }

    fn node(&self, name: &str) -> Result<&Node, Unmet> {
        self.cluster
            .nodes()
            .iter()
            .find(|node| node.name() == name)
            .ok_or_else(|| Unmet::saw(format!("there is no node {name}")))
    }

    /// The whole log of a node.
    pub(crate) fn log(&self, node: &str) -> Result<String, Unmet> {
        let path = self.node(node)?.log();
        fs::read(path)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .map_err(Unmet::io(format!("reading {}", path.display())))
    }

    /// Where a node's log ends now, for [`Lab::find_entry`].
    pub(crate) fn mark(&self, node: &str) -> Result<usize, Unmet> {
        Ok(self.log(node)?.len())
    }

    /// Waits for a connection of a kind in a node's access log, after a mark.
    pub(crate) fn find_entry(&self, node: &str, mark: usize, what: &str, wanted: impl Fn(&Entry) -> bool) -> Result<Entry, Unmet> {
        let found = until(LOG_DEADLINE, || {
            let log = self.log(node)?;
            Ok(evidence::connections(log.get(mark..).unwrap_or_default())
                .into_iter()
                .rev()
                .find(|entry| wanted(entry)))
        })?;
        found.ok_or_else(|| Unmet::saw(format!("no line in the log of {node} reports {what}")))
    }

    /// The metrics of a node, as Prometheus would scrape them.
    pub(crate) fn metrics(&self, node: &str) -> Result<Vec<Sample>, Unmet> {
        let page = self.node(node)?.namespace().run(app::scrape).map_err(ClusterError::from)?;
        page.map(|page| evidence::samples(&page))
            .map_err(|e| Unmet::saw(format!("the metrics of {node}: {e}")))
    }

    /// Waits until exactly the pods that are meant to be in the mesh are captured; gives their names.
    pub(crate) fn all_captured(&self) -> Result<BTreeSet<String>, Unmet> {
        let meant = self.cluster.pods().values().filter(|pod| self.cluster.is_meant_for_mesh(pod));
        let expected: BTreeSet<String> = meant.map(|pod| pod.key().name.clone()).collect();
        let mut captured = BTreeSet::new();
        let equal = until(CHANGE_DEADLINE, || {
            captured = self.captured()?;
            Ok((captured == expected).then_some(()))
        })?;
        equal
            .map(|()| expected.clone())
            .ok_or_else(|| Unmet::saw(format!("captured are {captured:?}, not {expected:?}")))
    }

    /// Where programs can be run: every pod and every node, with its namespace and what its programs see.
    pub(crate) fn places(&self) -> Result<Vec<(&str, &Namespace, &View)>, Unmet> {
        let nodes = self
            .cluster
            .nodes()
            .iter()
            .map(|node| Ok((node.name(), node.namespace(), node.view())));
        let pods = self
            .cluster
            .pods()
            .values()
            .map(|pod| Ok((pod.key().name.as_str(), self.cluster.namespace_of(pod)?, pod.view())));
        pods.chain(nodes).collect()
    }

    /// The pods whose UIDs stand in their nodes' status, by name.
    pub(crate) fn captured(&self) -> Result<BTreeSet<String>, Unmet> {
        let mut names = BTreeSet::new();
        for node in self.cluster.nodes() {
            let uids = self.cluster.captured(node.name())?;
            names.extend(
                self.cluster
                    .pods()
                    .values()
                    .filter(|pod| uids.contains(pod.uid()))
                    .map(|pod| pod.key().name.clone()),
            );
        }
        Ok(names)
    }

    /// The addresses of the pods that are meant to be in the mesh.
    pub(crate) fn mesh_addresses(&self) -> BTreeSet<IpAddr> {
        let meant = self.cluster.pods().values().filter(|pod| self.cluster.is_meant_for_mesh(pod));
        meant.flat_map(|pod| pod.addresses().iter().copied()).collect()
    }

    /// That no capture was found broken: in the lab nobody breaks one.
    pub(crate) fn nothing_was_repaired(&self) -> Result<(), Unmet> {
        for node in ["node-1", "node-2"] {
            if let Some(line) = self.log(node)?.lines().find(|line| line.contains("pod repaired")) {
                return Err(Unmet::saw(format!("{node} had to mend a capture: {line}")));
            }
        }
        Ok(())
    }

    /// Checks that the pods of the mesh have spoken TLS on port 15008 with each other and nothing else; gives the
    /// number of their connections and bytes.
    pub(crate) fn only_tls(&self, seen: &Seen) -> Result<(usize, usize), Unmet> {
        let mesh = self.mesh_addresses();
        let between = |c: &&Connection| mesh.contains(&c.client.ip()) && mesh.contains(&c.server.ip());
        let all: Vec<&Connection> = seen.connections.iter().filter(between).collect();
        match all.iter().find(|c| !is_tls(c)) {
            Some(open) => Err(Unmet::saw(format!(
                "{} -> {} is not TLS on port 15008 ({:?})",
                open.client, open.server, open.speech
            ))),
            None => Ok((all.len(), all.iter().map(|c| c.to_server.len() + c.to_client.len()).sum())),
        }
    }

    /// The same, and that not a byte of the marker passed between the nodes, whoever spoke.
    pub(crate) fn sealed(&self, seen: &Seen, marker: &str) -> Result<(usize, usize), Unmet> {
        let counted = self.only_tls(seen)?;
        if seen.contains(marker.as_bytes()) {
            return Err(Unmet::saw("the marker text passed between the nodes in plaintext"));
        }
        Ok(counted)
    }
}

/// This program as one of the lab's, which none of its caller's variables says anything to: several are settings of nodes.
fn this() -> Program {
    Program::this().own_environment()
}

/// Waits until something is there, looking every few milliseconds; `None` when the deadline has passed.
pub(crate) fn until<T>(deadline: Duration, mut look: impl FnMut() -> Result<Option<T>, Unmet>) -> Result<Option<T>, Unmet> {
    let end = clock::now() + deadline;
    loop {
        if let Some(found) = look()? {
            return Ok(Some(found));
        }
        if clock::now() >= end {
            return Ok(None);
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// A random text that stands nowhere else.
pub(crate) fn marker() -> Result<String, Unmet> {
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(Unmet::io("making a marker"))?;
    Ok(format!("marker-{}", uuid.trim().replace('-', "")))
}

/// The names in a call chain, outermost first.
pub(crate) fn chain(outcome: &Outcome) -> Vec<String> {
    let mut names = Vec::new();
    let mut at = Some(&outcome.body);
    while let Some(level) = at {
        let Some(name) = level.get("name").and_then(Value::as_str) else {
            break;
        };
        names.push(name.to_owned());
        at = level
            .get("upstream_calls")
            .and_then(Value::as_object)
            .and_then(|calls| calls.values().next());
    }
    names
}

/// Whether the whole chain has answered.
pub(crate) fn is_whole(outcome: &Outcome) -> bool {
    outcome.status == Some(200) && chain(outcome) == ["web-api", "recommendation", "purchase-history"]
}

/// What a call came to, in a few words.
pub(crate) fn described(outcome: &Outcome) -> String {
    match (outcome.status, outcome.failure) {
        (Some(status), _) => {
            let names = chain(outcome);
            if names.is_empty() {
                format!("status {status}")
            } else {
                format!("status {status} from {}", names.join(" -> "))
            }
        }
        (None, Some(failure)) => format!("{failure} ({})", outcome.detail),
        (None, None) => "nothing".into(),
    }
}

fn is_tls(connection: &Connection) -> bool {
    connection.server.port() == HBONE && matches!(connection.speech, Speech::Tls | Speech::Silent)
}

/// The key of an object of the application's namespace.
pub(crate) fn in_demo(kind: &str, name: &str) -> Key {
    Key::new(kind, "demo", name)
}

/// The manifests, as they stand in `examples/lab`.
pub(crate) mod manifests {
    pub(crate) const NAMESPACES: &str = include_str!("../../lab/namespaces.yaml");
    pub(crate) const ACCOUNTS: &str = include_str!("../../lab/accounts.yaml");
    pub(crate) const SERVICES: &str = include_str!("../../lab/services.yaml");
    pub(crate) const PODS: &str = include_str!("../../lab/pods.yaml");
    pub(crate) const IMPOSTOR: &str = include_str!("../../lab/impostor.yaml");
    pub(crate) const ALLOW_NOTHING: &str = include_str!("../../lab/allow-nothing.yaml");
    pub(crate) const ALLOW_CHAIN: &str = include_str!("../../lab/allow-chain.yaml");
    pub(crate) const ALLOW_GATEWAY_ONLY: &str = include_str!("../../lab/allow-gateway-only.yaml");
    pub(crate) const STRICT: &str = include_str!("../../lab/strict.yaml");
}

const HBONE: u16 = ambient_core::ports::HBONE;
const CALL_DEADLINE: Duration = Duration::from_secs(8);
const MANY_DEADLINE: Duration = Duration::from_secs(15);
/// istiod's.
const CONTROL_PORT: u16 = 15012;
/// For a change of the manifests to show, far above what it takes.
pub(crate) const CHANGE_DEADLINE: Duration = Duration::from_secs(6);
const LOG_DEADLINE: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests;
