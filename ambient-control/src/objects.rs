//! Kubernetes objects into mesh state and policies: pure, and incremental.
//!
//! [`Objects`] holds what is known of a cluster. Objects are [set](Objects::set) and [removed](Objects::remove), nodes
//! [report](Objects::report) what they have captured, and [`Objects::changes`] tells what that makes other than what it
//! told before. It reads no file and asks no server: whoever watches either can use it.
//!
//! The meaning of labels, selectors and policies is that of Istio's ambient mode.
//!
//! ```
//! use ambient_control::{objects::{Bare, Metadata, Object, Objects, Settings}};
//!
//! let mut objects = Objects::new(Settings::default());
//! objects.set(Object::Namespace(Bare { metadata: Metadata { name: "shop".into(), ..Metadata::default() } }));
//! assert!(objects.changes().is_empty(), "a namespace alone is nothing to the data plane");
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ambient_authz::{
    kubernetes::{self, Labels, ReadError, Reading, Selector, Warning, peer_authentication},
    policy::{self, Unreadable},
};
use ambient_core::{PodUid, PolicyKey, Service, TrustDomain, Workload, mesh};

use crate::Change;

mod kinds;
mod selection;
mod service;
#[cfg(test)]
mod tests;
mod versions;
mod workload;

use versions::{Authorization, Told, Versions};

pub use kinds::Service as ServiceObject;
pub use kinds::{
    Bare, Condition, Container, ContainerPort, ContainerState, ContainerStatus, Invalid, Kind, Metadata, Object, ObjectKey, OwnerReference,
    Pod, PodIp, PodSpec, PodStatus, ServicePort, ServiceSpec, TargetPort,
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
    /// Which pods are meant to be in the mesh.
    pub selection: Selection,
    /// Other names of the trust domain: a policy that names one of them, or the domain itself, means all; not
    /// where policies are read as istiod reads them. None by default.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// Whether policies are read as istiod reads them, also where that lets through more than is written
    /// ([`kubernetes::Settings::istio_exact`]). Off by default.
    pub istio_exact: bool,
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
            selection: Selection::default(),
            trust_domain_aliases: Vec::new(),
            istio_exact: false,
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

/// What is known of a cluster, and what was told of it.
#[derive(Debug)]
pub struct Objects {
    settings: Settings,
    reading: kubernetes::Settings,
    spaces: BTreeMap<Arc<str>, Space>,
    /// The PeerAuthentications of all namespaces, whose meaning hangs on each other.
    peers: peer_authentication::Set,
    reports: BTreeMap<Arc<str>, Report>,
    by_node: BTreeMap<Arc<str>, BTreeSet<Name>>,
    /// Which pods claim a UID: the first of them has it.
    by_uid: BTreeMap<PodUid, Vec<Name>>,
    refusals: BTreeMap<PolicyKey, Arc<Unreadable>>,
    told_policies: BTreeMap<PolicyKey, Told>,
    stale: Stale,
    warnings: Vec<(ObjectKey, Warning)>,
}

/// Namespace and name.
type Name = (Arc<str>, Arc<str>);

/// What is known of a namespace.
#[derive(Debug, Default)]
struct Space {
    labels: Labels,
    pods: BTreeMap<Arc<str>, PodEntry>,
    services: BTreeMap<Arc<str>, ServiceEntry>,
    authorizations: BTreeMap<Arc<str>, Versions<Authorization>>,
    peers: BTreeMap<Arc<str>, Versions<peer_authentication::Object>>,
}

#[derive(Debug, Default)]
struct PodEntry {
    /// `None` once it is gone, until that has been told.
    pod: Option<Box<Pod>>,
    told: Option<Arc<Workload>>,
}

#[derive(Debug, Default)]
struct ServiceEntry {
    /// `None` once it is gone, until that has been told.
    object: Option<Box<kinds::Service>>,
    told: Option<Arc<Service>>,
}

/// What is to be looked at again before the next changes are told.
#[derive(Debug, Default)]
struct Stale {
    pods: BTreeSet<Name>,
    services: BTreeSet<Name>,
    policies: bool,
    peers: bool,
}

impl Objects {
    /// A cluster of which nothing is known.
    pub fn new(settings: Settings) -> Self {
        let reading = settings.reading();
        Self {
            peers: peer_authentication::Set::new(&reading, []),
            settings,
            reading,
            spaces: BTreeMap::new(),
            reports: BTreeMap::new(),
            by_node: BTreeMap::new(),
            by_uid: BTreeMap::new(),
            refusals: BTreeMap::new(),
            told_policies: BTreeMap::new(),
            stale: Stale::default(),
            warnings: Vec::new(),
        }
    }

    /// An object is new or has changed; it replaces the one of the same key. It must have passed [`Object::check`].
    pub fn set(&mut self, object: Object) {
        let key = object.key();
        match object {
            Object::Namespace(object) => self.put_labels(key.name, object.metadata.labels),
            Object::ServiceAccount(_) => {}
            Object::Pod(pod) => self.put_pod(&key, Some(pod)),
            Object::Service(service) => self.put_service(&key, Some(service)),
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
            Kind::Namespace => self.put_labels(key.name.clone(), Labels::new()),
            Kind::ServiceAccount => {}
            Kind::Pod => self.put_pod(key, None),
            Kind::Service => self.put_service(key, None),
            Kind::AuthorizationPolicy => self.put_authorization(key.clone(), None),
            Kind::PeerAuthentication => self.put_peer(key, None),
        }
    }

    /// A node has said what it has captured; it replaces what it said before. A pod counts as captured only by the
    /// report of the node that it is on.
    pub fn report(&mut self, node: &str, report: Report) {
        if self.reports.get(node) != Some(&report) {
            self.stale.pods.extend(self.by_node.get(node).into_iter().flatten().cloned());
            self.reports.insert(node.into(), report);
        }
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
        self.by_uid.is_empty() || self.by_uid.contains_key(uid)
    }

    /// Refuses what is in the scope of something that cannot be read, such as a whole file, until it is
    /// [readmitted](Objects::readmit).
    pub fn refuse(&mut self, unreadable: Unreadable) {
        self.refusals.insert(unreadable.key.clone(), Arc::new(unreadable));
        self.stale.policies = true;
    }

    /// Ends a refusal.
    pub fn readmit(&mut self, key: &PolicyKey) {
        if self.refusals.remove(key).is_some() {
            self.stale.policies = true;
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

    /// What stands in policies that were set since the last call, and is not in force as it is written.
    pub fn warnings(&mut self) -> Vec<(ObjectKey, Warning)> {
        std::mem::take(&mut self.warnings)
    }

    /// What is other than what was told before, in the order in which it is to be applied. Looks only at what may have
    /// changed.
    pub fn changes(&mut self) -> Vec<Change> {
        let stale = std::mem::take(&mut self.stale);
        if stale.peers {
            let objects = self.spaces.values().flat_map(|space| space.peers.values());
            self.peers = peer_authentication::Set::new(&self.reading, objects.filter_map(|o| o.good.clone()));
        }
        let (mut changes, removals) = if stale.policies || stale.peers {
            self.policy_changes()
        } else {
            Default::default()
        };
        let mut services = stale.services;
        for (namespace, name) in &stale.pods {
            let Some(change) = self.pod_change(namespace, name) else { continue };
            changes.push(Change::Mesh(change));
            // Endpoints hang on whether a workload is, and on its health.
            let space = self.spaces.get(namespace);
            services.extend(
                space
                    .into_iter()
                    .flat_map(|s| s.services.keys())
                    .map(|s| (namespace.clone(), s.clone())),
            );
        }
        for (namespace, name) in &services {
            changes.extend(self.service_change(namespace, name).map(Change::Mesh));
        }
        changes.extend(removals.into_iter().map(|key| Change::Policy(policy::Update::Remove(key))));
        changes
    }

    fn put_labels(&mut self, namespace: Arc<str>, labels: Labels) {
        let space = self.spaces.entry(namespace.clone()).or_default();
        if space.labels != labels {
            space.labels = labels;
            self.stale
                .pods
                .extend(space.pods.keys().map(|name| (namespace.clone(), name.clone())));
        }
    }

    fn put_pod(&mut self, key: &ObjectKey, pod: Option<Box<Pod>>) {
        let name = (key.namespace.clone(), key.name.clone());
        let space = self.spaces.entry(key.namespace.clone()).or_default();
        let entry = space.pods.entry(key.name.clone()).or_default();
        let node_of = |pod: &Option<Box<Pod>>| pod.as_ref().and_then(|p| p.spec.node_name.as_deref().map(Arc::<str>::from));
        let uid_of = |pod: &Option<Box<Pod>>| pod.as_ref().and_then(|p| p.metadata.uid.as_deref().map(PodUid::from));
        let nodes = (node_of(&entry.pod), node_of(&pod));
        let uids = (uid_of(&entry.pod), uid_of(&pod));
        // A pod's labels and ports count for services without its workload being another.
        self.stale.services.extend(space.services.iter().filter_map(|(service, s)| {
            let selector = &s.object.as_ref()?.spec.selector;
            let selected = [&entry.pod, &pod]
                .into_iter()
                .flatten()
                .any(|p| kinds::selects(selector, &p.metadata.labels));
            selected.then(|| (key.namespace.clone(), service.clone()))
        }));
        entry.pod = pod;
        if let (old, new) = nodes
            && old != new
        {
            if let Some(old) = old
                && let Some(pods) = self.by_node.get_mut(&old)
            {
                pods.remove(&name);
                if pods.is_empty() {
                    self.by_node.remove(&old);
                }
            }
            if let Some(node) = new {
                self.by_node.entry(node).or_default().insert(name.clone());
            }
        }
        if uids.0 != uids.1 {
            self.move_uid(&name, uids.0, uids.1);
        }
        self.stale.pods.insert(name);
    }

    fn move_uid(&mut self, name: &Name, old: Option<PodUid>, new: Option<PodUid>) {
        if let Some(old) = old
            && let Some(claims) = self.by_uid.get_mut(&old)
        {
            claims.retain(|claim| claim != name);
            match claims.first() {
                Some(heir) => {
                    self.stale.pods.insert(heir.clone());
                }
                None => {
                    self.by_uid.remove(&old);
                }
            }
        }
        if let Some(new) = new {
            self.by_uid.entry(new).or_default().push(name.clone());
        }
    }

    fn put_service(&mut self, key: &ObjectKey, object: Option<Box<kinds::Service>>) {
        let space = self.spaces.entry(key.namespace.clone()).or_default();
        space.services.entry(key.name.clone()).or_default().object = object;
        self.stale.services.insert((key.namespace.clone(), key.name.clone()));
    }

    fn put_authorization(&mut self, key: ObjectKey, read: Option<Result<Reading, ReadError>>) {
        let read = read.map(|read| {
            read.map(|reading| {
                self.warnings.extend(reading.warnings.into_iter().map(|w| (key.clone(), w)));
                Authorization {
                    policy: reading.policy.map(Arc::new),
                    selector: reading.selector,
                }
            })
        });
        let everywhere = *key.namespace == *self.settings.root_namespace;
        let space = self.spaces.entry(key.namespace.clone()).or_default();
        let selector_of = |versions: &Versions<Authorization>| versions.attached().map(|(_, selector)| selector.clone());
        let before = space.authorizations.remove(&key.name);
        let mut selectors: Vec<Selector> = before.iter().filter_map(selector_of).collect();
        if let Some(read) = read {
            let now = Versions::after(before, read);
            selectors.extend(selector_of(&now));
            space.authorizations.insert(key.name, now);
        }
        self.stale.policies = true;
        self.touch_pods(&key.namespace, everywhere, |labels| selectors.iter().any(|s| s.selects(labels)));
    }

    fn put_peer(&mut self, key: &ObjectKey, read: Option<Result<peer_authentication::Object, ReadError>>) {
        let space = self.spaces.entry(key.namespace.clone()).or_default();
        let before = space.peers.remove(&key.name);
        if let Some(read) = read {
            space.peers.insert(key.name.clone(), Versions::after(before, read));
        }
        self.stale.peers = true;
        let everywhere = *key.namespace == *self.settings.root_namespace;
        self.touch_pods(&key.namespace, everywhere, |_| true);
    }

    fn touch_pods(&mut self, namespace: &str, everywhere: bool, selected: impl Fn(&Labels) -> bool) {
        let spaces = self.spaces.iter().filter(|(ns, _)| everywhere || ***ns == *namespace);
        let pods = spaces.flat_map(|(ns, space)| space.pods.iter().map(move |(name, entry)| (ns, name, entry)));
        let pods = pods.filter(|(_, _, entry)| entry.pod.as_ref().is_some_and(|p| selected(&p.metadata.labels)));
        self.stale.pods.extend(pods.map(|(ns, name, _)| (ns.clone(), name.clone())));
    }

    /// The policies that are new or others, and the keys of those that are gone.
    fn policy_changes(&mut self) -> (Vec<Change>, Vec<PolicyKey>) {
        let mut wanted: BTreeMap<PolicyKey, Told> = BTreeMap::new();
        for space in self.spaces.values() {
            wanted.extend(space.authorizations.values().filter_map(Versions::told));
            let unread = space.peers.values().filter_map(|p| Some((p, p.error.as_ref()?)));
            wanted.extend(unread.map(|(p, error)| (error.key.clone(), p.told_unreadable(error))));
        }
        let converted = peer_authentication::policies(&self.peers).into_iter();
        wanted.extend(converted.map(|p| (p.key.clone(), Told::Policy(Arc::new(p)))));
        wanted.extend(self.refusals.iter().map(|(key, u)| (key.clone(), Told::Unreadable(u.clone()))));

        let mut changes = Vec::new();
        for (key, told) in &wanted {
            let before = self.told_policies.get(key);
            if before != Some(told) {
                changes.extend(told.updates(before));
            }
        }
        let gone = self.told_policies.keys().filter(|key| !wanted.contains_key(key)).cloned().collect();
        self.told_policies = wanted;
        (changes.into_iter().map(Change::Policy).collect(), gone)
    }

    fn pod_change(&mut self, namespace: &Arc<str>, name: &Arc<str>) -> Option<mesh::Update> {
        let space = self.spaces.get(namespace)?;
        let pod = space.pods.get(name)?.pod.as_deref();
        let workload = pod.and_then(|pod| {
            let mut workload = workload::workload(&self.settings, pod, &space.labels)?;
            let owner = workload.pod.as_ref().and_then(|uid| self.by_uid.get(uid)?.first());
            if owner.is_none_or(|(ns, first)| (ns, first) != (namespace, name)) {
                workload.pod = None;
            }
            let report = self.reports.get(&workload.node);
            if let (Some(report), Some(uid)) = (report, &workload.pod)
                && report.holds(uid, workload.ambient)
            {
                workload::capture(&mut workload);
            }
            workload.policies = self.attached(namespace, &pod.metadata.labels);
            Some(workload)
        });
        let gone = pod.is_none();
        let space = self.spaces.get_mut(namespace)?;
        let entry = space.pods.get_mut(name)?;
        let before = entry.told.take();
        let update = match (&before, workload) {
            (Some(before), Some(now)) if **before == now => {
                entry.told = Some(before.clone());
                None
            }
            (_, Some(now)) => Some(mesh::Update::Workload(entry.told.insert(Arc::new(now)).clone())),
            (Some(before), None) => Some(mesh::Update::RemoveWorkload(before.uid.clone())),
            (None, None) => None,
        };
        if gone {
            space.pods.remove(name);
        }
        update
    }

    fn service_change(&mut self, namespace: &Arc<str>, name: &Arc<str>) -> Option<mesh::Update> {
        let space = self.spaces.get(namespace)?;
        let object = space.services.get(name)?.object.as_deref();
        let pods = space
            .pods
            .values()
            .filter_map(|entry| Some((entry.pod.as_deref()?, entry.told.as_ref()?)));
        let now = object.and_then(|object| service::service(&self.settings, object, pods));
        let gone = object.is_none();
        let space = self.spaces.get_mut(namespace)?;
        let entry = space.services.get_mut(name)?;
        let before = entry.told.take();
        let update = match (&before, now) {
            (Some(before), Some(now)) if **before == now => {
                entry.told = Some(before.clone());
                None
            }
            (_, Some(now)) => Some(mesh::Update::Service(entry.told.insert(Arc::new(now)).clone())),
            (Some(before), None) => Some(mesh::Update::RemoveService(before.name.clone())),
            (None, None) => None,
        };
        if gone {
            space.services.remove(name);
        }
        update
    }

    /// The policies that a workload lists: those of authorization, then those of authentication, each in order.
    fn attached(&self, namespace: &str, labels: &Labels) -> Vec<PolicyKey> {
        let root = &*self.settings.root_namespace;
        let selecting: BTreeSet<&str> = [namespace, root].into();
        let spaces = || selecting.iter().filter_map(|ns| self.spaces.get(*ns));
        let authorizations = spaces().flat_map(|space| space.authorizations.values());
        let authorizations = authorizations.filter_map(Versions::attached);
        let unread = spaces().flat_map(|space| space.peers.values()).filter_map(Versions::unread);
        kubernetes::attached(authorizations, unread, &self.peers, namespace, labels)
    }
}
