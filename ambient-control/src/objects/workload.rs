//! Workloads: what pods, WorkloadEntries, and the endpoints of ServiceEntries and EndpointSlices are.

use std::{borrow::Cow, collections::BTreeSet, net::IpAddr, sync::Arc};

use ambient_authz::kubernetes::Labels;
use ambient_core::{Capture, Health, Membership, NamespacedHostname, Network, NetworkMode, PodUid, TunnelProtocol, Workload, WorkloadKind};

use super::{
    Locality, Name, ObjectKey, Objects, Problem, Settings,
    kinds::{ContainerStatus, Invalid, Pod, PodStatus, Resolution, ServiceEntry, WorkloadEntry, WorkloadEntrySpec},
    membership::{Memberships, Ports, slice_ports},
    selection::{self, Candidate},
    tell::Made,
    uses::Need,
    waypoints::{INSTANCE_OF, Place, Traffic, USE_WAYPOINT, faults},
};

impl Objects {
    /// The workload that a pod is; none before it has a node or an address, and once it has ended. Of one without an address
    /// its node alone makes something: it may be told any moment that the pod is about to start.
    pub(super) fn of_pod(&self, source: &ObjectKey) -> Made<Vec<Workload>> {
        let mut made = Made::default();
        let Some(space) = self.spaces.get(&source.namespace) else {
            return made;
        };
        let Some(pod) = space.pods.get(&source.name) else { return made };
        let Some(mut workload) = workload(&self.settings, pod, &space.labels) else {
            return made;
        };
        let name = (source.namespace.clone(), source.name.clone());
        let owner = workload.pod.as_ref().and_then(|uid| self.by_uid.get(uid)?.first());
        if owner.is_none_or(|first| *first != name) {
            workload.pod = None;
        }
        let report = self.reports.get(&workload.node);
        let annotated = self.settings.ztunnel_nodes.contains(&workload.node) && pod.metadata.annotation(REDIRECTION) == Some("enabled");
        let captured = |uid: &PodUid| annotated || report.is_some_and(|report| report.holds(uid, workload.ambient));
        // Also where it is no longer meant to be: until its node has let it go its own rules refuse plaintext.
        if workload.network_mode == NetworkMode::Standard && workload.pod.as_ref().is_some_and(captured) {
            workload.tunnel = TunnelProtocol::Hbone;
        }
        if let Some(locality) = self.nodes.get(&workload.node) {
            workload.locality = locality.clone();
        }
        workload.network = self.network.clone();
        let labels = &pod.metadata.labels;
        let mut memberships = Memberships::new();
        if !workload.addresses.is_empty() {
            self.selecting(space, labels, Ports::Pod(pod), &mut memberships);
            self.in_slices(&name, pod, &mut memberships);
        }
        self.finish(&mut workload, source, labels, labels, memberships, &mut made);
        made.now.push(workload);
        made
    }

    /// The workload that a WorkloadEntry is.
    pub(super) fn of_workload_entry(&self, source: &ObjectKey) -> Made<Vec<Workload>> {
        let mut made = Made::default();
        let Some(space) = self.spaces.get(&source.namespace) else {
            return made;
        };
        let Some(entry) = space.workload_entries.get(&source.name) else {
            return made;
        };
        let meta = &entry.metadata;
        let uid = format!(
            "{}/networking.istio.io/WorkloadEntry/{}/{}",
            self.settings.cluster_id, source.namespace, meta.name
        );
        let mut workload = self.entry(&uid, source, &entry.spec);
        let labels = entry.labels();
        let group = meta.annotation("istio.io/autoRegistrationGroup");
        if let Some(name) = group.or_else(|| labels.get(WORKLOAD_NAME).map(String::as_str)) {
            workload.workload_name = name.into();
        }
        workload.health = match entry.status.conditions.iter().find(|c| c.kind == "Healthy") {
            Some(condition) if condition.status == "False" => Health::Unhealthy,
            _ => Health::Healthy,
        };
        let mut memberships = Memberships::new();
        self.selecting(space, &labels, Ports::Entry(&entry.spec.ports), &mut memberships);
        self.finish(&mut workload, source, &labels, &labels, memberships, &mut made);
        made.now.push(workload);
        made
    }

    /// The endpoints that a ServiceEntry has of its own.
    pub(super) fn endpoints_of_entry(&self, source: &ObjectKey) -> Made<Vec<Workload>> {
        let mut made = Made::default();
        let entry = self.spaces.get(&source.namespace).and_then(|space| space.entries.get(&source.name));
        let Some(entry) = entry else { return made };
        let hosts: Vec<_> = self.own_hosts(entry).collect();
        let mut seen = BTreeSet::new();
        for (at, spec) in entry.spec.endpoints.iter().enumerate().filter(|_| !hosts.is_empty()) {
            if !seen.insert(&spec.address) {
                let why = format!("{} stands further up already; this one does not count", spec.address);
                made.problems.push(problem(source, format!("spec.endpoints[{at}].address"), why));
                continue;
            }
            let ports = Ports::Entry(&spec.ports).of_entry(entry);
            let memberships = hosts.iter().map(|host| (host.clone(), ports.clone())).collect();
            let mut workload = self.endpoint(source, entry, spec);
            self.finish(&mut workload, source, &entry.metadata.labels, &spec.labels, memberships, &mut made);
            made.now.push(workload);
        }
        // A name that DNS knows is its own endpoint.
        let implied = entry.spec.endpoints.is_empty() && entry.spec.workload_selector.is_none();
        for host in hosts.iter().filter(|_| implied && entry.resolution() == Resolution::Dns) {
            let spec = WorkloadEntrySpec {
                address: host.hostname.to_string(),
                ..WorkloadEntrySpec::default()
            };
            let mut workload = self.endpoint(source, entry, &spec);
            let memberships = [(host.clone(), Ports::Entry(&spec.ports).of_entry(entry))];
            join(&mut workload, memberships.into());
            workload.policies = self.attached(&source.namespace, &entry.metadata.labels);
            made.now.push(workload);
        }
        made
    }

    fn endpoint(&self, source: &ObjectKey, entry: &ServiceEntry, spec: &WorkloadEntrySpec) -> Workload {
        let (cluster, namespace, name) = (&self.settings.cluster_id, &source.namespace, &entry.metadata.name);
        let uid = format!("{cluster}/networking.istio.io/ServiceEntry/{namespace}/{name}/{}", spec.address);
        let mut workload = self.entry(&uid, source, spec);
        speaks_hbone(&mut workload, &entry.metadata.labels);
        canonical(&mut workload, &entry.metadata.labels);
        workload
    }

    /// What a WorkloadEntry and an endpoint of a ServiceEntry have in common.
    fn entry(&self, uid: &str, source: &ObjectKey, spec: &WorkloadEntrySpec) -> Workload {
        let mut workload = Workload::new(uid, &source.namespace, &source.name);
        match spec.address.parse::<IpAddr>() {
            Ok(ip) => workload.addresses.push(ip.to_canonical()),
            Err(_) => workload.hostname = spec.address.to_ascii_lowercase().into(),
        }
        workload.trust_domain = self.settings.trust_domain.clone();
        workload.cluster = self.settings.cluster_id.clone();
        if let Some(account) = spec.service_account.as_deref().filter(|account| !account.is_empty()) {
            workload.service_account = account.into();
        }
        let network = spec.network.as_deref().filter(|network| !network.is_empty());
        workload.network = network.map_or_else(|| self.network.clone(), Network::from);
        workload.locality = locality(spec.locality.as_deref().unwrap_or_default());
        if spec.weight > 0 {
            workload.capacity = spec.weight;
        }
        workload
    }

    /// The endpoints of a slice that are no pods. They are told of for those who send to them alone, and their addresses may
    /// be anybody's.
    pub(super) fn endpoints_of_slice(&self, source: &ObjectKey) -> Made<Vec<Workload>> {
        let mut made = Made::default();
        let slice = self.spaces.get(&source.namespace).and_then(|space| space.slices.get(&source.name));
        let Some(slice) = slice else { return made };
        let host = slice.service().map(|service| self.host_of(&source.namespace, service));
        let Some((host, service)) = host.and_then(|host| Some((host.clone(), self.service_at(&host)?))) else {
            return made;
        };
        let ports = slice_ports(service, slice);
        let mut seen = BTreeSet::new();
        for (at, endpoint) in slice.endpoints.iter().enumerate() {
            let is_pod = endpoint
                .target_ref
                .as_ref()
                .is_some_and(|target| target.kind.as_deref() == Some("Pod"));
            let Some(first) = endpoint.addresses.first().filter(|_| !is_pod) else {
                continue;
            };
            if !seen.insert(first) {
                let why = format!("{first} stands further up already; this one does not count");
                made.problems.push(problem(source, format!("endpoints[{at}].addresses"), why));
                continue;
            }
            let (cluster, namespace, name) = (&self.settings.cluster_id, &source.namespace, &source.name);
            let uid = format!("{cluster}/discovery.k8s.io/EndpointSlice/{namespace}/{name}/{first}");
            let mut workload = Workload::new(&uid, namespace, name);
            let ips = endpoint.addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok());
            workload.addresses = ips.map(|ip| ip.to_canonical()).collect();
            workload.trust_domain = self.settings.trust_domain.clone();
            workload.cluster = cluster.clone();
            workload.network = self.network.clone();
            workload.network_mode = NetworkMode::HostNetwork;
            let conditions = endpoint.conditions;
            if conditions.ready == Some(false) || conditions.terminating == Some(true) {
                workload.health = Health::Unhealthy;
            }
            join(&mut workload, [(host.clone(), ports.clone())].into());
            made.now.push(workload);
        }
        made
    }

    /// The gateways of other networks that a Gateway is.
    pub(super) fn of_gateway(&self, source: &ObjectKey) -> Made<Vec<Workload>> {
        let mut made = Made::default();
        let name: Name = (source.namespace.clone(), source.name.clone());
        let Some(object) = self.gateways.object(&name) else { return made };
        let of = |what| Problem {
            object: source.clone(),
            what,
        };
        made.problems.extend(faults(object).into_iter().map(of));
        if let Some(host) = self.missing_service(&name) {
            let why = format!(
                "it is ready, and there is no service {}/{}: what is to go by it is refused until there is one",
                host.namespace, host.hostname
            );
            made.problems.push(problem(source, "status.addresses", why));
        }
        for remote in self.gateways.remotes(&name) {
            made.needs.push(Need::Network(remote.network.clone()));
            let Some(first) = self.gateways.first_with(remote).filter(|first| **first != name) else {
                let mut workload = remote.workload();
                workload.trust_domain = self.settings.trust_domain.clone();
                made.now.push(workload);
                continue;
            };
            let why = format!("the Gateway {}/{} has this address of the network already", first.0, first.1);
            made.problems.push(problem(source, "status.addresses", why));
        }
        made
    }

    /// Where a gateway says that it is, though nothing is there. A name that is none of the cluster's, as a load balancer's, is
    /// found by whom it is meant for, unless the gateway is a waypoint by its class.
    fn missing_service(&self, name: &Name) -> Option<&NamespacedHostname> {
        let Place::Host(host) = &self.gateways.waypoint(name)?.place else {
            return None;
        };
        let rest = host.hostname.strip_suffix(&*self.settings.cluster_domain);
        let is_ours = rest.is_some_and(|rest| rest.ends_with(".svc."));
        let is_waypoint = || {
            let object = self.gateways.object(name);
            object.is_some_and(|object| object.spec.gateway_class_name == "istio-waypoint")
        };
        ((is_ours || is_waypoint()) && self.holder(host).is_none()).then_some(host)
    }

    /// What hangs on other objects: services, policies, the waypoint, the gateway of its network.
    ///
    /// Policies select by the labels `of` it, its waypoint is named by its `own`.
    fn finish(
        &self,
        workload: &mut Workload,
        source: &ObjectKey,
        of: &Labels,
        own: &Labels,
        memberships: Memberships,
        made: &mut Made<Vec<Workload>>,
    ) {
        let namespace = &source.namespace;
        speaks_hbone(workload, of);
        canonical(workload, of);
        workload.policies = self.attached(namespace, of);
        let instance = own.get(INSTANCE_OF).map(|gateway| (namespace.clone(), Arc::from(gateway.as_str())));
        let instance = instance.and_then(|name| {
            let waypoint = self.gateways.waypoint(&name);
            made.needs.push(Need::Waypoint(name));
            waypoint
        });
        match instance {
            Some(waypoint) => workload.application_tunnel = waypoint.binding,
            None => self.use_waypoint(workload, source, own, &memberships, made),
        }
        if workload.network != self.network {
            made.needs.push(Need::Network(workload.network.clone()));
        }
        workload.network_gateway = self.gateways.of_network(&workload.network);
        join(workload, memberships);
    }

    fn use_waypoint(
        &self,
        workload: &mut Workload,
        source: &ObjectKey,
        labels: &Labels,
        memberships: &Memberships,
        made: &mut Made<Vec<Workload>>,
    ) {
        let (wanted, path) = self.wanted_waypoint(labels, &source.namespace);
        let Some(name) = wanted else { return };
        made.needs.push(Need::Waypoint(name.clone()));
        // What a whole namespace asks for is meant for its services, and for those workloads that can have it.
        let is_own = labels.contains_key(USE_WAYPOINT[0]);
        if let Some((namespace, gateway)) = self.waypoint_among(&source.namespace, memberships, &workload.addresses) {
            if is_own {
                let why = format!("would go in a circle: it is of the waypoint {namespace}/{gateway} itself, and goes without");
                made.problems.push(problem(source, path, why));
            }
            return;
        }
        match self.fit_waypoint(&name, &source.namespace, Traffic::Workload) {
            Ok(()) => workload.waypoint = self.gateways.waypoint(&name).map(|w| w.address(&self.network)),
            Err(why) if is_own => made.problems.push(problem(source, path, why)),
            Err(_) => {}
        }
    }
}

impl WorkloadEntry {
    /// Its labels: those of the metadata before those of the spec.
    pub(super) fn labels(&self) -> Cow<'_, Labels> {
        if self.spec.labels.is_empty() {
            return Cow::Borrowed(&self.metadata.labels);
        }
        let mut labels = self.spec.labels.clone();
        labels.extend(self.metadata.labels.clone());
        Cow::Owned(labels)
    }
}

fn problem(source: &ObjectKey, path: impl Into<String>, why: impl Into<String>) -> Problem {
    Problem {
        object: source.clone(),
        what: Invalid::new(path, why),
    }
}

fn join(workload: &mut Workload, memberships: Memberships) {
    let memberships = memberships.into_iter();
    workload.services = memberships.map(|(service, ports)| Membership { service, ports }).collect();
}

/// What says of itself that it speaks HBONE, with no node to capture it.
fn speaks_hbone(workload: &mut Workload, labels: &Labels) {
    let said = labels.get(TUNNEL).into_iter().flat_map(|text| text.split(','));
    if said.into_iter().any(|protocol| protocol == "http") {
        workload.tunnel = TunnelProtocol::Hbone;
        workload.native_tunnel = true;
        workload.ambient = true;
    }
}

fn canonical(workload: &mut Workload, labels: &Labels) {
    workload.canonical_name = label(labels, &["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"])
        .unwrap_or_else(|| workload.workload_name.clone());
    workload.canonical_revision = label(
        labels,
        &["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"],
    )
    .unwrap_or_else(|| "latest".into());
}

/// Where Istio's agent says that it has captured a pod.
pub(crate) const REDIRECTION: &str = "ambient.istio.io/redirection";

/// `REGION/ZONE/SUBZONE`, of which the last may be absent.
fn locality(text: &str) -> Locality {
    let mut parts = text.split('/').map(Arc::from);
    std::array::from_fn(|_| parts.next().unwrap_or_else(|| "".into()))
}

/// The workload that a pod is by itself: not captured, and of no service.
fn workload(settings: &Settings, pod: &Pod, namespace_labels: &Labels) -> Option<Workload> {
    let addresses = addresses(pod);
    let node = pod.spec.node_name.as_deref().unwrap_or_default();
    if is_terminal(pod) || (addresses.is_empty() && node.is_empty()) {
        return None;
    }
    let meta = &pod.metadata;
    let uid = format!("{}//Pod/{}/{}", settings.cluster_id, meta.namespace(), meta.name);
    let mut workload = Workload::new(&uid, meta.namespace(), &meta.name);
    workload.pod = meta.uid.as_deref().map(PodUid::from);
    workload.addresses = addresses;
    workload.trust_domain = settings.trust_domain.clone();
    if let Some(account) = &pod.spec.service_account_name {
        workload.service_account = account.as_str().into();
    }
    workload.node = node.into();
    workload.cluster = settings.cluster_id.clone();
    workload.ambient = is_ambient(settings, pod, namespace_labels);
    let capture = Capture::read(|key| meta.annotations.get(key).map(String::as_str));
    workload.capture = (!capture.is_default()).then(|| Arc::new(capture));
    workload.has_run = has_run(&pod.status);
    if pod.spec.host_network {
        workload.network_mode = NetworkMode::HostNetwork;
    }
    workload.health = match workload.addresses.is_empty() {
        true => Health::Unhealthy,
        false => health(pod),
    };
    (workload.kind, workload.workload_name) = owner(pod);
    if let Some(name) = meta.label(WORKLOAD_NAME) {
        workload.workload_name = name.into();
    }
    Some(workload)
}

/// Whether a pod is meant to be in the mesh.
fn is_ambient(settings: &Settings, pod: &Pod, namespace_labels: &Labels) -> bool {
    let meta = &pod.metadata;
    let candidate = Candidate {
        namespace_labels,
        host_network: pod.spec.host_network,
        phase: pod.status.phase.as_deref(),
        ..Candidate::new(meta.namespace(), &meta.labels, &meta.annotations)
    };
    settings.selection.decide(&candidate).is_ok()
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let status = &pod.status;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for text in status.pod_ips.iter().map(|ip| &ip.ip).chain(&status.pod_ip) {
        if let Ok(ip) = text.parse::<IpAddr>().map(|ip| ip.to_canonical())
            && !addresses.contains(&ip)
        {
            addresses.push(ip);
        }
    }
    addresses
}

fn is_terminal(pod: &Pod) -> bool {
    pod.status.phase.as_deref().is_some_and(selection::is_terminal)
}

/// Whether something may have run in a pod. A kubelet says `Pending` until a container runs, but while one of those runs that
/// come before them.
fn has_run(status: &PodStatus) -> bool {
    if status.phase.as_deref() != Some("Pending") {
        // Also where nobody keeps a status of it.
        return true;
    }
    let ran = |c: &ContainerStatus| {
        let seen = [&c.state, &c.last_state].iter().any(|s| s.running || s.terminated);
        seen || c.started || c.restart_count > 0
    };
    let lists = [
        &status.container_statuses,
        &status.init_container_statuses,
        &status.ephemeral_container_statuses,
    ];
    lists.into_iter().flatten().any(ran)
}

fn health(pod: &Pod) -> Health {
    let ready = pod.status.conditions.iter().find(|c| c.kind == "Ready");
    let healthy = match (ready, pod.status.phase.as_deref()) {
        (Some(ready), _) => ready.status == "True",
        (None, Some(phase)) => phase == "Running",
        // Nobody keeps a status of it, as in a file that was written by hand.
        (None, None) => true,
    };
    if healthy && pod.metadata.deletion_timestamp.is_none() {
        Health::Healthy
    } else {
        Health::Unhealthy
    }
}

/// What owns a pod, and the name that it goes by in telemetry: Istio's rules.
fn owner(pod: &Pod) -> (WorkloadKind, Arc<str>) {
    let meta = &pod.metadata;
    // Who was named by somebody goes by that: a static pod, whose owner is its node.
    let mut owners = meta.owner_references.iter().filter(|_| !meta.generate_name.is_empty());
    let owner = owners.find(|o| o.controller == Some(true));
    let alone = || (WorkloadKind::Pod, meta.name.as_str().into());
    let Some(owner) = owner else { return alone() };
    let stripped = |label: &str| {
        let hash = meta.label(label).filter(|hash| !hash.is_empty())?;
        let name = owner.name.strip_suffix(hash)?.strip_suffix('-')?;
        (!name.is_empty()).then(|| Arc::<str>::from(name))
    };
    let its_own = (WorkloadKind::Pod, Arc::from(owner.name.as_str()));
    match owner.kind.as_str() {
        "ReplicaSet" => match (stripped("pod-template-hash"), stripped("rollouts-pod-template-hash")) {
            (Some(name), _) => (WorkloadKind::Deployment, name),
            // One of an Argo Rollout; and one that nothing else has made.
            (None, Some(name)) => (WorkloadKind::Pod, name),
            (None, None) => its_own,
        },
        "ReplicationController" => match meta.label("deploymentconfig") {
            Some(name) if !name.is_empty() => (WorkloadKind::Pod, name.into()),
            _ => its_own,
        },
        "Job" => match owner.name.rsplit_once('-') {
            // A CronJob's are named after the minute they were made for.
            Some((name, minute)) if (8..=10).contains(&minute.len()) && minute.bytes().all(|b| b.is_ascii_digit()) => {
                (WorkloadKind::CronJob, name.into())
            }
            _ => (WorkloadKind::Job, owner.name.as_str().into()),
        },
        _ => its_own,
    }
}

fn label(labels: &Labels, keys: &[&str]) -> Option<Arc<str>> {
    keys.iter().find_map(|key| labels.get(*key)).map(|value| value.as_str().into())
}

/// The label that names what a workload is a part of.
const WORKLOAD_NAME: &str = "service.istio.io/workload-name";
/// The label of what speaks HBONE itself.
const TUNNEL: &str = "networking.istio.io/tunnel";
