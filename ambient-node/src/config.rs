//! What a node is told at its start.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use ambient_core::{TrustDomain, WorkloadUid};
use ambient_redirect::ExistingConnections;

use crate::admin::At;

/// Where a node's certificates and keys outlive its process, so that a restart while the authority is away serves from them
/// until their ends. Directories must be in memory (tmpfs or ramfs): keys never touch a disk, and a reboot leaves none.
/// Memory that is swapped out does reach a disk, unless swap is off or encrypted; ramfs is never swapped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Keys {
    /// They end with it.
    #[default]
    Nowhere,
    /// In a directory of the node's name below this one; where that cannot be, a line in the log says so and they end with
    /// the process.
    IfPossible(PathBuf),
    /// In a directory of the node's name below this one, or the node does not start.
    Below(PathBuf),
}

/// How the kernel notices that the other end of a connection has gone without a word. The defaults are ztunnel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    /// Whether silence is asked about; on by default.
    pub enabled: bool,
    /// After so long a silence; 180 s by default. The kernel counts in seconds.
    pub time: Duration,
    /// So long after the question before; 180 s by default.
    pub interval: Duration,
    /// So many questions without an answer end the connection; 9 by default.
    pub retries: u32,
    /// Whether what was sent and is not acknowledged within the time of all questions ends it too; off by default.
    pub user_timeout: bool,
}

impl Default for KeepAlive {
    fn default() -> Self {
        Self {
            enabled: true,
            time: Duration::from_secs(180),
            interval: Duration::from_secs(180),
            retries: 9,
            user_timeout: false,
        }
    }
}

/// Where a node's state and certificates come from, for who asks: `/config_dump` tells it, and nothing else depends on it, as
/// sources and issuers are given to the builder. It holds no secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// Where state is asked for, over the network.
    pub state: Option<ControlPlane>,
    /// Where certificates are asked for, over the network.
    pub certificates: Option<ControlPlane>,
    /// Where both come from else: what says so, such as `manifests`, and what it names.
    pub others: Vec<(&'static str, String)>,
    /// Whether state is asked for as it is needed.
    pub on_demand: bool,
    /// How long certificates are asked for.
    pub certificate_life: Option<Duration>,
    /// A file of revocations.
    pub crls: Option<PathBuf>,
    /// What a control plane is told of the node, but for what it is told as JSON.
    pub metadata: BTreeMap<String, String>,
    /// How the process was started, without flags.
    pub arguments: String,
}

/// Somebody whom a node believes, and asks over the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPlane {
    /// Its address, such as `https://istiod.istio-system.svc:15012`.
    pub address: String,
    /// Who vouches for it.
    pub roots: Vouchers,
    /// Another name that its certificate may bear.
    pub other_name: Option<String>,
    /// The names of the headers that it is sent besides.
    pub headers: Vec<String>,
}

/// Who vouches for somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vouchers {
    /// Whose certificates are in a file.
    File(PathBuf),
    /// Whom the system trusts.
    System,
    /// Whose certificates were given.
    Given,
}

/// What whoever starts a node takes the mesh to say of it. Nothing depends on it: where the mesh says otherwise that counts, and
/// the log says so once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assumed {
    /// The network that the node's pods are in.
    pub network: Option<Arc<str>>,
}

/// The pod that a node's process runs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnPod {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name there.
    pub name: Arc<str>,
    /// The service account that it runs as.
    pub service_account: Arc<str>,
}

/// What a node is told at its start. Values only: reading flags and the environment is the binary's work.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of the Kubernetes node; pods with this `spec.nodeName` are this node's.
    pub node: Arc<str>,
    /// Where the container runtime keeps network namespaces, one file each; `/run/netns` as a rule.
    pub netns_dir: PathBuf,
    /// The socket of another's node agent, such as Istio's `istio-cni`: it then says which pods are served, and makes the rules
    /// in their namespaces, and `netns_dir` is not looked at. Without it the node enrols its pods itself.
    pub zds: Option<PathBuf>,
    /// A socket at which CNI plugins hand over the network namespaces of new pods, before anything runs in them; none by
    /// default. Without it they are found by their names, and what runs in them joins.
    pub cni: Option<PathBuf>,
    /// A `/proc` in which pods' processes are seen, to find network namespaces that have no file there; none by default.
    pub proc: Option<PathBuf>,
    /// Where certificates and keys outlive this process; nowhere by default.
    pub keys: Keys,
    /// The trust domain of this mesh.
    pub trust_domain: TrustDomain,
    /// Whether a pod is of the trust domain that the mesh says its workload is of, and of `trust_domain` only where it says nothing:
    /// for a mesh of which nobody has told this node. Off by default: a pod that the mesh says to be of another is refused.
    pub trust_domain_of_mesh: bool,
    /// The cluster that this node belongs to, as the names of its workloads say; `Kubernetes` by default.
    pub cluster_id: Arc<str>,
    /// The DNS domain of the cluster.
    pub cluster_domain: Arc<str>,
    /// Where names that are not the mesh's are asked for, if neither the kernel remembers whom a pod has asked nor its own
    /// `resolv.conf` can be read; at least one, or DNS is not captured.
    pub nameservers: Vec<SocketAddr>,
    /// Whose service a name means that several namespaces have one of, if neither the client's has one nor one is canonical:
    /// ztunnel's `PREFERED_SERVICE_NAMESPACE`. None, unless said.
    pub preferred_service_namespace: Option<Arc<str>>,
    /// Whether pods' DNS queries are captured, of pods that do not say by `ambient.istio.io/dns-capture`; on by default.
    pub dns_capture: bool,
    /// Whether connections are decided on exactly as Istio decides, also where that lets through more than is written; off
    /// by default. How policies are read is the source's matter.
    pub istio_exact: bool,
    /// Whether a policy that cannot be read, and of which no good version is known, is let go as if it were not there; else
    /// everything in its scope is refused. Off by default.
    pub let_unreadable_policies_go: bool,
    /// Whether tunnels are made with nobody who does not agree on keys by X25519MLKEM768, which quantum computers cannot undo;
    /// else that is preferred. Off by default. How a control plane is spoken to is its source's and issuer's matter.
    pub post_quantum_only: bool,
    /// Whether pods' IPv6 is captured. Where it is not, no name of the mesh has an IPv6 address for them.
    pub ipv6: bool,
    /// Whether what processes of the node's own namespace send to its pods reaches them under any policy, as the kubelet's
    /// probes must; on by default, where the rules for it can be had.
    pub probes: bool,
    /// Whether what is captured has the segments of the loopback device, on which it stays between application and proxy, and
    /// not those of the pod's link ([`Options::loopback_segments`](ambient_redirect::plan::Options::loopback_segments)). On by
    /// default.
    pub loopback_segments: bool,
    /// Where `/metrics` is served, in the node's own namespace.
    pub metrics: SocketAddr,
    /// Where `/healthz/ready` is served, in the node's own namespace.
    pub readiness: SocketAddr,
    /// Where the admin pages are served, in the node's own namespace; a loopback address. For 127.0.0.1 the same port of
    /// `::1` too, where there is one.
    pub admin: SocketAddr,
    /// Threads that move bytes; by default a quarter of the cores, and two at least where there are as many: most of a machine is
    /// its pods'.
    pub workers: usize,
    /// How long such a thread that has nothing to do looks for news, with its processor offered to others of its cgroup, before it
    /// falls asleep: at most, as it goes by what that was good for before, and twice as long as it works in all. By default 200 µs, and
    /// zero, with which it never looks, where a cgroup limits the process's time; 10 ms at most.
    pub busy_poll: Duration,
    /// Connections that all pods may have open together; more are reset at once. Each takes two descriptors of the process.
    pub connections: usize,
    /// Connections that one pod may have open in one direction, and at most a quarter of all; more are reset at once.
    pub connections_per_pod: usize,
    /// Whether connections between pods of this node are relayed in this process, where the CNI's NetworkPolicy does not see
    /// them, as no packet of them crosses a pod's interface. They are decided on, logged and counted as on the wire, without TLS;
    /// both pods' certificates must be valid and not revoked when one begins. Off by default, and logged at the start if on.
    pub local_shortcut: bool,
    /// Whether an application that is told who speaks by a PROXY protocol header is reached on its pod's loopback address, else
    /// on the pod's own. On by default.
    pub localhost_app_tunnel: bool,
    /// How long connecting to an application or to another node's proxy may take.
    pub connect_timeout: Duration,
    /// How it is noticed that the other end of a connection is gone.
    pub keep_alive: KeepAlive,
    /// Whether the pods' ports are shared with a node proxy of the same user that shares them too, so that a successor takes
    /// new connections before this one has ended. Off by default: a port that is taken is an error then, and is named.
    pub share_ports: bool,
    /// Streams that are opened in one tunnel, at most.
    pub pool_streams: u32,
    /// A tunnel to a peer without a stream is closed after between once and twice this time.
    pub pool_idle: Duration,
    /// How long open connections may go on after the node was told to stop.
    pub drain: Duration,
    /// What becomes of the connections that a pod has open when it joins.
    pub existing_connections: ExistingConnections,
    /// How long what is captured of a pod that leaves the mesh may go on; it is reset then.
    pub leave: Duration,
    /// Whether a pod's TCP goes around the mesh, in plaintext and asked of no policy, where its capture cannot be upheld; else
    /// it is refused with a reset. Off by default.
    pub open_when_unproven: bool,
    /// Where state and certificates come from, as far as that is to be told.
    pub sources: Sources,
    /// What the mesh is taken to say.
    pub assumed: Assumed,
    /// The pod that the process runs in, to be a workload of the mesh itself: as long as the mesh says that it takes tunnels, as to
    /// the node's metrics, they are taken on port 15008 of the namespace of this process; where it says so no longer, that is closed
    /// and what is open has [`Config::leave`]. Policies of that workload decide on them; nothing of the pod is captured, and what it
    /// is sent otherwise comes as it is. Of a node that serves the pods of another's agent ([`Config::zds`]); none by default.
    pub own_pod: Option<OwnPod>,
}

impl Config {
    /// What the mesh calls the workload of a pod.
    pub(crate) fn workload_of_pod(&self, namespace: &str, name: &str) -> WorkloadUid {
        format!("{}//Pod/{namespace}/{name}", self.cluster_id).into()
    }

    /// Whether DNS queries of pods that do not say are captured.
    pub(crate) fn captures_dns(&self) -> bool {
        self.dns_capture && !self.nameservers.is_empty()
    }

    /// Where its pages are to be served.
    pub(crate) fn pages(&self) -> At {
        At {
            metrics: self.metrics,
            readiness: self.readiness,
            admin: self.admin,
            ipv6: self.ipv6,
        }
    }

    /// The defaults, which are ztunnel's where it has them.
    pub fn new(node: &str, netns_dir: impl Into<PathBuf>) -> Self {
        let any = |port| SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), port);
        Self {
            node: node.into(),
            netns_dir: netns_dir.into(),
            zds: None,
            cni: None,
            proc: None,
            keys: Keys::Nowhere,
            trust_domain: TrustDomain::default(),
            trust_domain_of_mesh: false,
            cluster_id: "Kubernetes".into(),
            cluster_domain: "cluster.local".into(),
            nameservers: Vec::new(),
            preferred_service_namespace: None,
            dns_capture: true,
            istio_exact: false,
            let_unreadable_policies_go: false,
            post_quantum_only: false,
            ipv6: true,
            probes: true,
            loopback_segments: true,
            metrics: any(ambient_core::ports::METRICS),
            readiness: any(ambient_core::ports::READINESS),
            admin: SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), ambient_core::ports::ADMIN),
            workers: workers_of(std::thread::available_parallelism().map_or(2, std::num::NonZero::get)),
            busy_poll: crate::busy_poll::by_default(),
            connections: 100_000,
            connections_per_pod: 20_000,
            local_shortcut: false,
            localhost_app_tunnel: true,
            connect_timeout: Duration::from_secs(10),
            keep_alive: KeepAlive::default(),
            share_ports: false,
            pool_streams: 100,
            pool_idle: Duration::from_secs(300),
            drain: Duration::from_secs(5),
            existing_connections: ExistingConnections::default(),
            leave: Duration::from_secs(30),
            open_when_unproven: false,
            sources: Sources::default(),
            assumed: Assumed::default(),
            own_pod: None,
        }
    }
}

/// How many threads [`Config::workers`] is by default, of so many cores: as ztunnel reckons, but for a machine of one.
pub fn workers_of(cores: usize) -> usize {
    cores.div_ceil(4).max(2).min(cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_of_a_machine_is_its_pods() {
        let counts = [1, 2, 3, 8, 9, 64].map(workers_of);
        assert_eq!(counts, [1, 2, 2, 2, 3, 16]);
    }
}
