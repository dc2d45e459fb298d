//! Kubernetes objects into mesh state and policies: pure, and incremental.
//!
//! [`Objects`] holds what is known of a cluster. Objects are [set](Objects::set) and [removed](Objects::remove), nodes
//! [report](Objects::report) what they have captured, and [`Objects::changes`] tells what that makes other than what it
//! told before. It reads no file and asks no server: whoever watches either can use it.
//!
//! The meaning of labels, selectors and policies is that of Istio's ambient mode.
//!
//! What a change costs follows what it changes: a pod that becomes ready is looked at alone, however many there are; a
//! service, its own endpoints; a policy, the pods in its scope; a node, its pods; a namespace's labels, all that is in it.
//! PeerAuthentications, whose meaning hangs on each other, are looked at together.
//!
//! ```
//! use ambient_control::{objects::{Bare, Metadata, Object, Objects, Settings}};
//!
//! let mut objects = Objects::new(Settings::default());
//! objects.set(Object::Namespace(Bare { metadata: Metadata { name: "shop".into(), ..Metadata::default() } }));
//! assert!(objects.changes().is_empty(), "a namespace alone is nothing to the data plane");
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use ambient_authz::{
    kubernetes::{self, Labels, ReadError, Warning, peer_authentication},
    policy::Unreadable,
};
use ambient_core::{NamespacedHostname, Network, PodUid, PolicyKey, Service, TrustDomain, Workload};

mod kinds;
mod membership;
mod policies;
mod put;
mod selection;
mod service;
mod space;
mod tell;
#[cfg(test)]
pub(crate) mod tests;
mod uses;
mod versions;
mod vips;
mod waypoints;
mod workload;

use policies::Refusals;
use space::{Member, Space};
use uses::{Item, Uses};
use versions::Told;
use vips::Vips;
use waypoints::Gateways;
#[cfg(feature = "manifests")]
pub(crate) use workload::REDIRECTION;

pub use kinds::Service as ServiceObject;
pub use kinds::{
    AllowedRoutes, Bare, Condition, ConfigMap, Container, ContainerPort, ContainerState, ContainerStatus, EndpointConditions,
    EndpointSlice, EntryPort, Gateway, GatewaySpec, GatewayStatus, GatewayStatusAddress, HostAddress, Invalid, Kind, Listener, Metadata,
    Object, ObjectKey, OwnerReference, Pod, PodIp, PodSpec, PodStatus, RouteNamespaces, ServiceEntry, ServiceEntrySpec, ServiceEntryStatus,
    ServicePort, ServiceSpec, SliceEndpoint, SlicePort, TargetPort, TargetRef, WorkloadEntry, WorkloadEntrySpec, WorkloadEntryStatus,
    WorkloadSelector, is_name,
};
pub use selection::{Candidate, Enablement, Exclusion, LabelSelector, Operator, Requirement, Selection, SelectorError};

/// What objects alone do not say.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What names of services end in; `cluster.local` by default.
    pub cluster_domain: Arc<str>,
    /// The trust domain of every identity; `cluster.local` by default.
    pub trust_domain: TrustDomain,
    /// The namespace whose policies hold for the whole mesh; `istio-system` by default.
    pub root_namespace: Arc<str>,
    /// The name of the cluster, first in the UIDs of workloads; `Kubernetes` by default.
    pub cluster_id: Arc<str>,
    /// The network of its addresses; where there is none, the one that the label `topology.istio.io/network` of the root
    /// namespace names, else the unnamed one. None by default.
    pub network: Option<Network>,
    /// Which pods are meant to be in the mesh.
    pub selection: Selection,
    /// Other names of the trust domain: a policy that names one of them, or the domain itself, means all; not
    /// where policies are read as istiod reads them. None by default.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// Whether `cluster.local` in a policy means the trust domain, whatever its name
    /// ([`kubernetes::Settings::cluster_local`]). None by default: it does, but where policies are read as istiod reads them.
    pub cluster_local: Option<bool>,
    /// Whether policies are read as istiod reads them, also where that lets through more than is written
    /// ([`kubernetes::Settings::istio_exact`]). Off by default.
    pub istio_exact: bool,
    /// The revision of the control plane whose place this takes: policies that are labelled with another have no effect
    /// ([`kubernetes::Settings::revision`]). None by default.
    pub revision: Option<Arc<str>>,
    /// Nodes whose proxy is Istio's ztunnel, which reports nothing: their pods count as captured by the annotation
    /// `ambient.istio.io/redirection: enabled`, which Istio's agent sets, and also by a [report](Objects::report). On other
    /// nodes the annotation means nothing: whoever may change a pod could take it out of the mesh with it, or into it. None
    /// by default.
    pub ztunnel_nodes: BTreeSet<Arc<str>>,
}

impl Settings {
    fn reading(&self) -> kubernetes::Settings {
        let mode = match self.istio_exact {
            true => kubernetes::Settings::istio_exact(),
            false => kubernetes::Settings::default(),
        };
        kubernetes::Settings {
            root_namespace: self.root_namespace.clone(),
            trust_domain: self.trust_domain.clone(),
            trust_domain_aliases: self.trust_domain_aliases.clone(),
            cluster_local: self.cluster_local.unwrap_or(mode.cluster_local),
            revision: self.revision.clone(),
            ..mode
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cluster_domain: "cluster.local".into(),
            trust_domain: TrustDomain::default(),
            root_namespace: "istio-system".into(),
            cluster_id: "Kubernetes".into(),
            network: None,
            selection: Selection::default(),
            trust_domain_aliases: Vec::new(),
            cluster_local: None,
            istio_exact: false,
            revision: None,
            ztunnel_nodes: BTreeSet::new(),
        }
    }
}

/// What a node has said about the pods it has captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// Exactly these.
    Captured(BTreeSet<PodUid>),
    /// It has said something, and it cannot be told what: every pod of it that is meant to be in the mesh is taken for
    /// captured, so that a doubt never turns into plaintext.
    Unknown,
}

impl Report {
    fn holds(&self, pod: &PodUid, ambient: bool) -> bool {
        match self {
            Self::Captured(pods) => pods.contains(pod),
            Self::Unknown => ambient,
        }
    }
}

/// A policy that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread<'a> {
    /// The resource.
    pub object: ObjectKey,
    /// What is wrong with it, and where.
    pub error: &'a ReadError,
    /// Whether an earlier version of it could be read, which stays in force; if not, everything in its scope is refused.
    pub last_good: bool,
}

/// Something in an object that is not followed, or cannot be; the rest of it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The object.
    pub object: ObjectKey,
    /// Where in it, and what follows.
    pub what: Invalid,
}

/// What is known of a cluster, and what was told of it.
#[derive(Debug)]
pub struct Objects {
    settings: Settings,
    reading: kubernetes::Settings,
    /// The network of addresses that say none of their own.
    network: Network,
    spaces: BTreeMap<Arc<str>, Space>,
    /// Where each node stands.
    nodes: BTreeMap<Arc<str>, Locality>,
    gateways: Gateways,
    /// The namespaces where a ServiceEntry claims a host.
    hosts: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    vips: Vips,
    /// The PeerAuthentications of all namespaces, whose meaning hangs on each other.
    peers: peer_authentication::Set,
    /// What is to be told of them.
    peer_policies: BTreeMap<PolicyKey, Told>,
    reports: BTreeMap<Arc<str>, Report>,
    by_node: BTreeMap<Arc<str>, BTreeSet<Name>>,
    /// The slices in which a pod is.
    slices_with: BTreeMap<Name, BTreeSet<Name>>,
    /// Which pods claim a UID: the first of them has it.
    by_uid: BTreeMap<PodUid, Vec<Name>>,
    refusals: Refusals,
    uses: Uses,
    told_policies: BTreeMap<PolicyKey, Told>,
    told_workloads: HashMap<ObjectKey, Vec<Arc<Workload>>>,
    told_services: HashMap<NamespacedHostname, Arc<Service>>,
    problems: BTreeMap<Item, Vec<Problem>>,
    stale: Stale,
    warnings: Vec<(ObjectKey, Warning)>,
    looked_at: u64,
}

/// Region, zone, subzone.
type Locality = [Arc<str>; 3];

/// Namespace and name.
type Name = (Arc<str>, Arc<str>);

/// What is to be looked at again before the next changes are told.
#[derive(Debug, Default)]
struct Stale {
    /// What workloads come from.
    sources: BTreeSet<ObjectKey>,
    services: BTreeSet<NamespacedHostname>,
    policies: BTreeSet<PolicyKey>,
    peers: bool,
}

impl Objects {
    /// A cluster of which nothing is known.
    pub fn new(settings: Settings) -> Self {
        let reading = settings.reading();
        Self {
            peers: peer_authentication::Set::new(&reading, []),
            peer_policies: BTreeMap::new(),
            network: settings.network.clone().unwrap_or_default(),
            settings,
            reading,
            spaces: BTreeMap::new(),
            nodes: BTreeMap::new(),
            gateways: Gateways::default(),
            hosts: BTreeMap::new(),
            vips: Vips::default(),
            reports: BTreeMap::new(),
            by_node: BTreeMap::new(),
            slices_with: BTreeMap::new(),
            by_uid: BTreeMap::new(),
            refusals: BTreeMap::new(),
            uses: Uses::default(),
            told_policies: BTreeMap::new(),
            told_workloads: HashMap::new(),
            told_services: HashMap::new(),
            problems: BTreeMap::new(),
            stale: Stale::default(),
            warnings: Vec::new(),
            looked_at: 0,
        }
    }

    /// An object is new or has changed; it replaces the one of the same key. It must have passed [`Object::check`].
    pub fn set(&mut self, object: Object) {
        let key = object.key();
        if object.policy_metadata().is_some_and(|metadata| !self.reading.concerns(metadata)) {
            self.warnings.push((key.clone(), self.reading.other_revision()));
            return self.remove(&key);
        }
        match object {
            Object::Namespace(object) => self.put_namespace(&key.name, object.metadata.labels, object.metadata.annotations),
            Object::Node(object) => self.put_node(&key.name, Some(&object.metadata)),
            Object::ServiceAccount(_) | Object::ConfigMap(_) => {}
            Object::Pod(pod) => self.put_pod(&key, Some(pod)),
            Object::Service(service) => self.put_service(&key, Some(service)),
            Object::EndpointSlice(slice) => self.put_slice(&key, Some(slice)),
            Object::ServiceEntry(entry) => self.put_entry(&key, Some(entry)),
            Object::WorkloadEntry(entry) => self.put_workload_entry(&key, Some(entry)),
            Object::Gateway(gateway) => self.put_gateway(&key, Some(gateway)),
            Object::GatewayClass(class) => self.put_class(&key, Some(class)),
            Object::AuthorizationPolicy(policy) => {
                let read = kubernetes::read(&policy, &self.reading);
                self.put_authorization(key, Some(read));
            }
            Object::PeerAuthentication(policy) => {
                let read = peer_authentication::read(&policy, &self.reading).map(|reading| {
                    let warnings = reading.warnings.into_iter();
                    self.warnings.extend(warnings.map(|w| (key.clone(), w)));
                    reading.object
                });
                self.put_peer(&key, Some(read));
            }
            Object::Misshapen { envelope, path, why } => {
                let mut error = ReadError::of_shape(&envelope, &why, &self.reading);
                error.path = path.into();
                match key.kind {
                    Kind::PeerAuthentication => self.put_peer(&key, Some(Err(error))),
                    _ => self.put_authorization(key, Some(Err(error))),
                }
            }
        }
    }

    /// An object is gone.
    pub fn remove(&mut self, key: &ObjectKey) {
        match key.kind {
            Kind::Namespace => self.put_namespace(&key.name, Labels::new(), Labels::new()),
            Kind::Node => self.put_node(&key.name, None),
            Kind::ServiceAccount | Kind::ConfigMap => {}
            Kind::Pod => self.put_pod(key, None),
            Kind::Service => self.put_service(key, None),
            Kind::EndpointSlice => self.put_slice(key, None),
            Kind::ServiceEntry => self.put_entry(key, None),
            Kind::WorkloadEntry => self.put_workload_entry(key, None),
            Kind::Gateway => self.put_gateway(key, None),
            Kind::GatewayClass => self.put_class(key, None),
            Kind::AuthorizationPolicy => self.put_authorization(key.clone(), None),
            Kind::PeerAuthentication => self.put_peer(key, None),
        }
    }

    /// A node has said what it has captured; it replaces what it said before. A pod counts as captured only by the
    /// report of the node that it is on, unless that is one of [`Settings::ztunnel_nodes`].
    pub fn report(&mut self, node: &str, report: Report) {
        if self.reports.get(node) == Some(&report) {
            return;
        }
        let pods = self.by_node.get(node).into_iter().flatten();
        let keys = pods.map(|(namespace, name)| ObjectKey::new(Kind::Pod, namespace, name));
        self.stale.sources.extend(keys);
        self.reports.insert(node.into(), report);
    }

    /// What a node has said last.
    pub fn reported(&self, node: &str) -> Option<&Report> {
        self.reports.get(node)
    }

    /// What every node has said last.
    pub fn reports(&self) -> impl Iterator<Item = (&str, &Report)> {
        self.reports.iter().map(|(node, report)| (&**node, report))
    }

    /// Whether there may be a pod with this UID: there is, or no pod is known yet.
    pub fn may_have_pod(&self, uid: &PodUid) -> bool {
        self.by_uid.is_empty() || self.has_pod(uid)
    }

    /// Whether there is a pod with this UID, whatever has become of it.
    pub fn has_pod(&self, uid: &PodUid) -> bool {
        self.by_uid.contains_key(uid)
    }

    /// Refuses what is in the scope of something that cannot be read, such as a whole file, until it is
    /// [readmitted](Objects::readmit).
    pub fn refuse(&mut self, unreadable: Unreadable) {
        self.stale.policies.insert(unreadable.key.clone());
        self.refusals.insert(unreadable.key.clone(), Arc::new(unreadable));
    }

    /// Ends a refusal.
    pub fn readmit(&mut self, key: &PolicyKey) {
        if self.refusals.remove(key).is_some() {
            self.stale.policies.insert(key.clone());
        }
    }

    /// The policies whose present version cannot be read.
    pub fn unread(&self) -> impl Iterator<Item = Unread<'_>> {
        self.spaces.iter().flat_map(|(namespace, space)| {
            let unread = |kind, name: &str, error, last_good| Unread {
                object: ObjectKey::new(kind, namespace, name),
                error,
                last_good,
            };
            let authorizations = space.authorizations.iter().filter_map(move |(name, a)| {
                let error = a.error.as_ref()?;
                Some(unread(Kind::AuthorizationPolicy, name, error, a.good.is_some()))
            });
            let peers = space.peers.iter().filter_map(move |(name, p)| {
                let error = p.error.as_ref()?;
                Some(unread(Kind::PeerAuthentication, name, error, p.good.is_some()))
            });
            authorizations.chain(peers)
        })
    }

    /// The pods that claim a UID which another had first, and that other. They are workloads, but no pod of a node is
    /// taken for them.
    pub fn shared_uids(&self) -> impl Iterator<Item = (ObjectKey, ObjectKey)> {
        let key = |(namespace, name): &Name| ObjectKey::new(Kind::Pod, namespace, name);
        let claims = self.by_uid.values().filter_map(|claims| claims.split_first());
        claims.flat_map(move |(first, others)| others.iter().map(move |other| (key(other), key(first))))
    }

    /// What is in objects, as of the last [changes](Self::changes), and is not followed: a waypoint that is not ready or
    /// would go in a circle, a value that is not known.
    pub fn problems(&self) -> BTreeSet<&Problem> {
        self.problems.values().flatten().collect()
    }

    /// What stands in policies that were set since the last call, and is not in force as it is written.
    pub fn warnings(&mut self) -> Vec<(ObjectKey, Warning)> {
        std::mem::take(&mut self.warnings)
    }

    /// How often a source of workloads, a service or a policy was looked at so far: what changes have cost.
    pub fn looked_at(&self) -> u64 {
        self.looked_at
    }

    /// Whether nothing is known, told or kept, but for what nodes have reported.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn is_empty(&self) -> bool {
        let known = self.spaces.is_empty() && self.nodes.is_empty() && self.gateways.is_empty() && self.refusals.is_empty();
        let found = self.hosts.is_empty()
            && self.vips.is_empty()
            && self.by_node.is_empty()
            && self.by_uid.is_empty()
            && self.slices_with.is_empty();
        let told = self.told_policies.is_empty() && self.told_workloads.is_empty() && self.told_services.is_empty();
        let kept = self.peer_policies.is_empty() && self.uses.is_empty() && self.problems.is_empty();
        known && found && told && kept
    }
}
