//! What Kubernetes itself does for a mesh, on one machine: a directory of manifests for the API server, a scheduler, a
//! kubelet, kube-proxy and cluster DNS, over two nodes that are network namespaces joined by a link.
//!
//! Nothing here knows the mesh, except for one courtesy that a CNI plugin pays in a real cluster: what runs in a pod
//! that is meant to be in the mesh is started only once its node says that it has captured the pod.

pub mod clock;

mod dns;
mod kubelet;
mod node;
mod object;
mod plan;
mod pod;
mod residue;
mod services;
mod status;
mod store;
mod yaml;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use ambient_redirect::netlink::Nftables;

use self::{dns::ClusterDns, store::Store};
pub use self::{
    node::{NODE_INTERFACE, Node},
    object::{DATAPLANE_MODE, Key, Object, ObjectError, is_meant_for_mesh},
    plan::{CLUSTER_DNS, Families, Pair},
    pod::Pod,
    residue::residue,
};
use crate::{Namespace, NamespaceError, Program, SpawnError, World};

/// The programs that stand for container images, by image name. A container's `args` are added to them.
pub type Images = BTreeMap<String, Program>;

/// A cluster of two nodes in a [`World`]. Everything of it dies with the world.
#[derive(Debug)]
pub struct Cluster {
    world: World,
    dir: PathBuf,
    store: Store,
    nodes: Vec<Node>,
    pods: BTreeMap<Key, Pod>,
    images: Images,
    dns: ClusterDns,
    /// Keeps the cluster DNS's network.
    _dns_namespace: Namespace,
}

impl Cluster {
    /// Makes the nodes, the link between them and the cluster DNS. Files go to a directory of the cluster's own.
    ///
    /// # Errors
    /// When the machine does not allow it; what was made ends with the world.
    pub fn build(world: &World, dir: PathBuf, images: Images) -> Result<Self, ClusterError> {
        Self::build_of(world, Families::Both, dir, images)
    }

    /// The same, of the families that are named.
    ///
    /// # Errors
    /// As [`Cluster::build`].
    pub fn build_of(world: &World, families: Families, dir: PathBuf, images: Images) -> Result<Self, ClusterError> {
        let store = Store::create(dir.join("manifests")).map_err(ClusterError::io("making the manifests directory"))?;
        let logs = dir.join("logs");
        fs::create_dir_all(&logs).map_err(ClusterError::io("making the log directory"))?;
        let nodes = vec![Node::new(world, 1, families, &logs)?, Node::new(world, 2, families, &logs)?];
        node::join(&nodes[0], &nodes[1])?;
        let dns = ClusterDns::default();
        let dns_namespace = world.namespace("cluster-dns")?;
        let server = families.cluster_dns();
        nodes[0].attach(&dns_namespace, "dns", &[server])?;
        let way = nodes[0].ips().into_iter().find(|ip| ip.is_ipv4() == server.is_ipv4());
        nodes[1].namespace().add_route(server, way, NODE_INTERFACE)?;
        let sockets = dns_namespace.run(|| Ok((UdpSocket::bind((server, 53))?, TcpListener::bind((server, 53))?)))?;
        let serving = sockets.and_then(|(udp, tcp)| dns.serve(udp, tcp));
        serving.map_err(ClusterError::io("starting the cluster DNS"))?;
        Ok(Self {
            world: world.clone(),
            dir,
            store,
            nodes,
            pods: BTreeMap::new(),
            images,
            dns,
            _dns_namespace: dns_namespace,
        })
    }

    /// The directory of manifests, which stands for the API server.
    pub fn manifests(&self) -> &Path {
        self.store.dir()
    }

    /// The nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node by its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&mut self, name: &str) -> Result<&mut Node, ClusterError> {
        self.nodes
            .iter_mut()
            .find(|n| n.name() == name)
            .ok_or_else(|| ClusterError::Unknown(Key::new("Node", "", name)))
    }

    /// The pods, by key.
    pub fn pods(&self) -> &BTreeMap<Key, Pod> {
        &self.pods
    }

    /// A pod by its namespace and name.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<&Pod, ClusterError> {
        let key = Key::new("Pod", namespace, name);
        self.pods.get(&key).ok_or(ClusterError::Unknown(key))
    }

    /// The process numbers of all containers, by pod.
    pub fn pids(&mut self) -> BTreeMap<Key, Vec<u32>> {
        self.pods.iter_mut().map(|(key, pod)| (key.clone(), pod.pids())).collect()
    }

    /// An object in force.
    pub fn object(&self, key: &Key) -> Option<&Object> {
        self.store.find(key)
    }

    /// Whether a pod is meant to be in the mesh, by its labels and its namespace's.
    pub fn is_meant_for_mesh(&self, pod: &Pod) -> bool {
        let namespace = self.store.find(&Key::new("Namespace", "", &pod.key().namespace));
        self.store
            .find(pod.key())
            .is_some_and(|object| is_meant_for_mesh(object, namespace))
    }

    /// The namespace in which a pod's programs run, its node's if it is on the host's network.
    ///
    /// # Errors
    /// When its node is unknown.
    pub fn namespace_of<'a>(&'a self, pod: &'a Pod) -> Result<&'a Namespace, ClusterError> {
        let node = || self.nodes.iter().find(|n| n.name() == pod.node()).map(Node::namespace);
        pod.namespace()
            .or_else(node)
            .ok_or_else(|| ClusterError::Unknown(Key::new("Node", "", pod.node())))
    }

    /// Puts every object of a YAML text in force, as `kubectl apply` does, in the order of the text; pods are started
    /// when all stand. Pods that are there already are left as they are.
    ///
    /// # Errors
    /// When the text holds something that is not an object, or a pod cannot be started: one that is meant to be in the
    /// mesh is waited for, [`CAPTURE_DEADLINE`] at most.
    pub fn apply(&mut self, text: &str) -> Result<(), ClusterError> {
        let mut started = Vec::new();
        for object in Object::parse_all(text)? {
            if object.key().kind != "Pod" {
                self.store.put(object).map_err(ClusterError::io("writing a manifest"))?;
            } else if !self.pods.contains_key(object.key()) {
                started.push(self.create_pod(object)?);
            }
        }
        self.sync_services()?;
        // Those that need not wait for their capture go first.
        let (waiting, ready): (Vec<Key>, Vec<Key>) = started
            .into_iter()
            .partition(|key| self.pods.get(key).is_some_and(|pod| self.is_meant_for_mesh(pod)));
        let until = clock::now() + CAPTURE_DEADLINE;
        for key in ready {
            self.start_pod(&key)?;
        }
        for key in waiting {
            self.wait_captured(&key, until)?;
            self.start_pod(&key)?;
        }
        Ok(())
    }

    /// Takes an object out of force; a pod ends with it.
    ///
    /// # Errors
    /// When there is no such object, or it cannot be removed.
    pub fn delete(&mut self, key: &Key) -> Result<(), ClusterError> {
        if let Some(pod) = self.pods.remove(key) {
            let node = self.node(pod.node())?;
            pod.remove(node)?;
        }
        if !self.store.remove(key).map_err(ClusterError::io("removing a manifest"))? {
            return Err(ClusterError::Unknown(key.clone()));
        }
        self.sync_services()
    }

    /// Sets a label of an object, or takes it away, as `kubectl label` does.
    ///
    /// # Errors
    /// When there is no such object, or its file cannot be written.
    pub fn label(&mut self, key: &Key, label: &str, value: Option<&str>) -> Result<(), ClusterError> {
        let Some(object) = self.store.find(key) else {
            return Err(ClusterError::Unknown(key.clone()));
        };
        let mut object = object.clone();
        object.set_label(label, value);
        self.store.put(object).map_err(ClusterError::io("writing a manifest"))
    }

    /// The UIDs of pods that a node says it has captured.
    ///
    /// # Errors
    /// When its status is not readable.
    pub fn captured(&self, node: &str) -> Result<BTreeSet<String>, ClusterError> {
        status::captured(self.store.dir(), node).map_err(ClusterError::io("reading a node's status"))
    }

    /// Asks as a node's kubelet does for an HTTP probe: plainly, from the node's own namespace. Gives the status, or how it
    /// was refused.
    ///
    /// # Errors
    /// When the node is unknown.
    pub fn probe(&self, node: &str, to: SocketAddr, path: &str) -> Result<io::Result<u16>, ClusterError> {
        let known = self.nodes.iter().find(|n| n.name() == node);
        let node = known.ok_or_else(|| ClusterError::Unknown(Key::new("Node", "", node)))?;
        Ok(node.namespace().run(|| kubelet::http_get(to, path))?)
    }

    fn create_pod(&mut self, object: Object) -> Result<Key, ClusterError> {
        let load: Vec<_> = self
            .nodes
            .iter()
            .map(|n| (n.name().to_owned(), self.pods.values().filter(|p| p.node() == n.name()).count()))
            .collect();
        let name = pod::schedule(&object, &load)?;
        let (world, logs) = (self.world.clone(), self.dir.join("logs"));
        let node = self.node(&name)?;
        let pod = Pod::prepare(&world, &object, node, &logs)?;
        let described = pod.describe(object, node, false);
        let key = pod.key().clone();
        self.pods.insert(key.clone(), pod);
        self.store.put(described).map_err(ClusterError::io("writing a manifest"))?;
        Ok(key)
    }

    fn start_pod(&mut self, key: &Key) -> Result<(), ClusterError> {
        let unknown = || ClusterError::Unknown(key.clone());
        let object = self.store.find(key).ok_or_else(unknown)?;
        let pod = self.pods.get_mut(key).ok_or_else(unknown)?;
        let node = self.nodes.iter().find(|n| n.name() == pod.node()).ok_or_else(unknown)?;
        pod.start(object, &self.images, node)?;
        let started = pod.describe(object.clone(), node, true);
        self.store.put(started).map_err(ClusterError::io("writing a manifest"))
    }

    fn wait_captured(&mut self, key: &Key, until: Instant) -> Result<(), ClusterError> {
        let Some(pod) = self.pods.get(key) else {
            return Err(ClusterError::Unknown(key.clone()));
        };
        let (uid, name) = (pod.uid().to_owned(), pod.node().to_owned());
        while !self.captured(&name)?.contains(&uid) {
            let node = self.node(&name)?;
            let runs = node.process().is_some_and(|p| p.is_running().unwrap_or(false));
            if !runs || clock::now() > until {
                let now = if runs {
                    format!("after {CAPTURE_DEADLINE:?}")
                } else {
                    "and its mesh process does not run".into()
                };
                let log = pod::tail(node.log()).unwrap_or_default();
                let why = format!("it does not stand in the status of {name}, {now}; the end of the node's log:\n{log}");
                return Err(ClusterError::NotCaptured { pod: key.clone(), why });
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Brings kube-proxy's rules and the cluster DNS up to date.
    fn sync_services(&self) -> Result<(), ClusterError> {
        self.dns.publish(services::zone(self.store.of_kind("Service")));
        let pods: Vec<&Object> = self.store.of_kind("Pod").collect();
        let forwards = services::forwards(self.store.of_kind("Service"), &pods);
        for node in &self.nodes {
            let commit = || Nftables::open().and_then(|mut nftables| nftables.commit(services::rules(&forwards), None));
            node.namespace()
                .run(commit)?
                .map_err(|e| ClusterError::io("writing kube-proxy's rules")(io::Error::other(e)))?;
        }
        Ok(())
    }
}

/// Something that the cluster could not do.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A namespace, an interface or a route.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// A program.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// A manifest.
    #[error("manifest: {0}")]
    Object(#[from] ObjectError),
    /// A file, a socket or a rule.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// There is no such object.
    #[error("{0} does not exist")]
    Unknown(Key),
    /// A pod that cannot be run.
    #[error("{pod}: {problem}")]
    Pod {
        /// The pod.
        pod: Key,
        /// Why not.
        problem: String,
    },
    /// A pod of the mesh whose node has not captured it: nothing was started in it.
    #[error("{pod} was not started: {why}")]
    NotCaptured {
        /// The pod.
        pod: Key,
        /// Why it was not waited for any longer, and the end of its node's log.
        why: String,
    },
}

impl ClusterError {
    pub(crate) fn io(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

/// How long the capture of new pods is waited for.
pub const CAPTURE_DEADLINE: Duration = Duration::from_secs(10);
/// How often a node's status is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(20);
