//! Objects that come, change and go, and what is to be looked at again for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ambient_authz::kubernetes::Labels;
use ambient_core::{NamespacedHostname, Network, PodUid};

use super::{
    Item, Kind, Name, ObjectKey, Objects, Space,
    kinds::{Bare, EndpointSlice, Gateway, Metadata, Pod, Service, ServiceEntry, WorkloadEntry},
    uses::Need,
    vips,
    waypoints::NETWORK,
};

impl Objects {
    pub(super) fn put_namespace(&mut self, name: &Arc<str>, labels: Labels, annotations: Labels) {
        let space = self.spaces.entry(name.clone()).or_default();
        if space.labels != labels || space.annotations != annotations {
            (space.labels, space.annotations) = (labels, annotations);
            touch_space(&mut self.stale, name, space, &self.settings.cluster_domain);
        }
        if *name == self.settings.root_namespace && self.settings.network.is_none() {
            let network = self.spaces.get(name).and_then(|space| space.labels.get(NETWORK));
            let network = network.map_or_else(Network::default, |network| Network::from(network.as_str()));
            if network != self.network {
                self.network = network;
                for (name, space) in &self.spaces {
                    touch_space(&mut self.stale, name, space, &self.settings.cluster_domain);
                }
            }
        }
        self.forget_if_empty(name);
    }

    pub(super) fn put_node(&mut self, name: &Arc<str>, meta: Option<&Metadata>) {
        let said = meta.map(|meta| LOCALITY.map(|label| Arc::<str>::from(meta.label(label).unwrap_or_default())));
        let said = said.filter(|locality| locality.iter().any(|part| !part.is_empty()));
        let before = match said.clone() {
            Some(locality) => self.nodes.insert(name.clone(), locality),
            None => self.nodes.remove(name),
        };
        if before != said {
            let pods = self.by_node.get(name).into_iter().flatten();
            let keys = pods.map(|(namespace, pod)| ObjectKey::new(Kind::Pod, namespace, pod));
            self.stale.sources.extend(keys);
        }
    }

    pub(super) fn put_pod(&mut self, key: &ObjectKey, pod: Option<Box<Pod>>) {
        let name = (key.namespace.clone(), key.name.clone());
        let space = self.spaces.entry(key.namespace.clone()).or_default();
        let before = match &pod {
            Some(pod) => space.pods.insert(key.name.clone(), pod.clone()),
            None => space.pods.remove(&key.name),
        };
        let labels = |pod: &Option<Box<Pod>>| pod.as_ref().map(|p| p.metadata.labels.clone()).unwrap_or_default();
        relabel(space, Kind::Pod, &key.name, &labels(&before), &labels(&pod));
        let node_of = |pod: &Option<Box<Pod>>| pod.as_ref().and_then(|p| p.spec.node_name.as_deref().map(Arc::<str>::from));
        let uid_of = |pod: &Option<Box<Pod>>| pod.as_ref().and_then(|p| p.metadata.uid.as_deref().map(PodUid::from));
        let (old, new) = (node_of(&before), node_of(&pod));
        if old != new {
            if let Some(old) = old {
                unmark(&mut self.by_node, &old, &name);
            }
            if let Some(node) = new {
                self.by_node.entry(node).or_default().insert(name.clone());
            }
        }
        let uids = (uid_of(&before), uid_of(&pod));
        if uids.0 != uids.1 {
            self.move_uid(&name, uids.0, uids.1);
        }
        self.stale.sources.insert(key.clone());
        self.forget_if_empty(&key.namespace);
    }

    fn move_uid(&mut self, name: &Name, old: Option<PodUid>, new: Option<PodUid>) {
        if let Some(old) = old
            && let Some(claims) = self.by_uid.get_mut(&old)
        {
            claims.retain(|claim| claim != name);
            match claims.first() {
                Some((namespace, heir)) => drop(self.stale.sources.insert(ObjectKey::new(Kind::Pod, namespace, heir))),
                None => drop(self.by_uid.remove(&old)),
            }
        }
        if let Some(new) = new {
            self.by_uid.entry(new).or_default().push(name.clone());
        }
    }

    pub(super) fn put_workload_entry(&mut self, key: &ObjectKey, entry: Option<Box<WorkloadEntry>>) {
        let labels = |entry: Option<&WorkloadEntry>| entry.map(|e| e.labels().into_owned()).unwrap_or_default();
        let new = labels(entry.as_deref());
        let space = self.spaces.entry(key.namespace.clone()).or_default();
        let before = match entry {
            Some(entry) => space.workload_entries.insert(key.name.clone(), entry),
            None => space.workload_entries.remove(&key.name),
        };
        relabel(space, Kind::WorkloadEntry, &key.name, &labels(before.as_deref()), &new);
        self.stale.sources.insert(key.clone());
        self.forget_if_empty(&key.namespace);
    }

    pub(super) fn put_service(&mut self, key: &ObjectKey, service: Option<Box<Service>>) {
        let member = (Kind::Service, key.name.clone());
        let host = self.host_of(&key.namespace, &key.name);
        let space = self.spaces.entry(key.namespace.clone()).or_default();
        let old = space.selector_of(&member).cloned();
        let before = match service {
            Some(service) => space.services.insert(key.name.clone(), service),
            None => space.services.remove(&key.name),
        };
        let now = space.services.get(&key.name);
        let new = space.selector_of(&member).cloned();
        // What its endpoints are told of it hangs on nothing else.
        let others = before.as_ref().map(|s| &s.spec) != now.map(|s| &s.spec);
        reselect(space, &member, old.as_ref(), new.as_ref());
        if others {
            let both = [&old, &new].into_iter().flatten();
            let selected: BTreeSet<_> = both.flat_map(|labels| space.selected(labels)).cloned().collect();
            let slices = space.slices_of.get(&key.name).into_iter().flatten();
            let slices = slices.map(|slice| ObjectKey::new(Kind::EndpointSlice, &key.namespace, slice));
            self.stale.sources.extend(slices.chain(space.sliced(&key.name).map(pod_key)));
            let keys = selected.into_iter();
            let keys = keys.map(|(kind, name)| ObjectKey::new(kind, &key.namespace, &name));
            self.stale.sources.extend(keys);
        }
        self.touch_host(&host);
        self.forget_if_empty(&key.namespace);
    }

    pub(super) fn put_slice(&mut self, key: &ObjectKey, slice: Option<Box<EndpointSlice>>) {
        let space = self.spaces.entry(key.namespace.clone()).or_default();
        let service_of = |slice: Option<&EndpointSlice>| slice.and_then(|s| s.service()).map(Arc::<str>::from);
        let (service, targets) = (service_of(slice.as_deref()), targets_of(slice.as_deref()));
        let before = match slice {
            Some(slice) => space.slices.insert(key.name.clone(), slice),
            None => space.slices.remove(&key.name),
        };
        let (old_service, old_targets) = (service_of(before.as_deref()), targets_of(before.as_deref()));
        let touched: BTreeSet<Name> = match old_service == service {
            true => old_targets.symmetric_difference(&targets).map(|(pod, _)| pod.clone()).collect(),
            false => old_targets.union(&targets).map(|(pod, _)| pod.clone()).collect(),
        };
        if let Some(service) = old_service {
            unmark(&mut space.slices_of, &service, &key.name);
        }
        if let Some(service) = service {
            space.slices_of.entry(service).or_default().insert(key.name.clone());
        }
        let name = (key.namespace.clone(), key.name.clone());
        for (pod, _) in &old_targets {
            unmark(&mut self.slices_with, pod, &name);
        }
        for (pod, _) in targets {
            self.slices_with.entry(pod).or_default().insert(name.clone());
        }
        let touched = touched.iter().map(|(namespace, pod)| ObjectKey::new(Kind::Pod, namespace, pod));
        self.stale.sources.extend(touched);
        self.stale.sources.insert(key.clone());
        self.forget_if_empty(&key.namespace);
    }

    pub(super) fn put_entry(&mut self, key: &ObjectKey, entry: Option<Box<ServiceEntry>>) {
        let member = (Kind::ServiceEntry, key.name.clone());
        let hosts_of = |entry: Option<&ServiceEntry>| -> BTreeSet<Arc<str>> {
            let hosts = entry.into_iter().flat_map(|e| &e.spec.hosts);
            hosts.map(|host| host.to_ascii_lowercase().into()).collect()
        };
        let wanting = |entry: Option<&ServiceEntry>| -> BTreeSet<Arc<str>> {
            let hosts = entry.into_iter().flat_map(vips::wanting);
            hosts.map(|host| host.to_ascii_lowercase().into()).collect()
        };
        let labels_of = |entry: Option<&ServiceEntry>| entry.map(|e| e.metadata.labels.clone()).unwrap_or_default();
        let (new_hosts, new_wanting) = (hosts_of(entry.as_deref()), wanting(entry.as_deref()));
        let new_labels = labels_of(entry.as_deref());
        let space = self.spaces.entry(key.namespace.clone()).or_default();
        let old = space.selector_of(&member).cloned();
        let before = match entry {
            Some(entry) => space.entries.insert(key.name.clone(), entry),
            None => space.entries.remove(&key.name),
        };
        let new = space.selector_of(&member).cloned();
        reselect(space, &member, old.as_ref(), new.as_ref());
        relabel(space, Kind::ServiceEntry, &key.name, &labels_of(before.as_deref()), &new_labels);
        let (old_hosts, old_wanting) = (hosts_of(before.as_deref()), wanting(before.as_deref()));
        for host in &old_hosts {
            unmark(&mut space.hosts, host, &key.name);
            if !space.hosts.contains_key(host) {
                unmark(&mut self.hosts, host, &key.namespace);
            }
        }
        for host in &new_hosts {
            space.hosts.entry(host.clone()).or_default().insert(key.name.clone());
            self.hosts.entry(host.clone()).or_default().insert(key.namespace.clone());
        }
        let both = [&old, &new].into_iter().flatten();
        let selected: BTreeSet<_> = both.flat_map(|labels| space.selected(labels)).cloned().collect();
        let keys = selected.into_iter();
        self.stale
            .sources
            .extend(keys.map(|(kind, name)| ObjectKey::new(kind, &key.namespace, &name)));
        let mut moved = Vec::new();
        for (hosts, there) in [
            (old_wanting.difference(&new_wanting), false),
            (new_wanting.difference(&old_wanting), true),
        ] {
            for host in hosts {
                moved.extend(self.vips.claim(&(key.namespace.clone(), host.clone()), &key.name, there));
            }
        }
        for (namespace, host) in moved {
            self.stale.services.insert(NamespacedHostname::from_shared(namespace, host));
        }
        self.stale.sources.insert(key.clone());
        for host in old_hosts.union(&new_hosts) {
            self.touch_host(&NamespacedHostname::from_shared(key.namespace.clone(), host.clone()));
        }
        self.forget_if_empty(&key.namespace);
    }

    /// Who a host is in a namespace may be another now: a service, and whoever claims it.
    fn touch_host(&mut self, name: &NamespacedHostname) {
        self.stale.services.insert(name.clone());
        let gateways = self.gateways.at_host(name);
        self.stale
            .sources
            .extend(gateways.map(|(namespace, gateway)| ObjectKey::new(Kind::Gateway, namespace, gateway)));
        // Which of all is what the name means hangs on each of them.
        for namespace in self.hosts.get(&name.hostname).into_iter().flatten() {
            let name = NamespacedHostname::from_shared(namespace.clone(), name.hostname.clone());
            self.stale.services.insert(name);
        }
        let Some(space) = self.spaces.get(&name.namespace) else { return };
        for entry in space.hosts.get(&name.hostname).into_iter().flatten() {
            self.stale
                .sources
                .insert(ObjectKey::new(Kind::ServiceEntry, &name.namespace, entry));
            let selector = space.entries.get(entry).and_then(|entry| entry.selector());
            let selected = selector.into_iter().flat_map(|labels| space.selected(labels));
            let keys = selected.map(|(kind, member)| ObjectKey::new(*kind, &name.namespace, member));
            self.stale.sources.extend(keys);
        }
    }

    pub(super) fn put_gateway(&mut self, key: &ObjectKey, gateway: Option<Box<Gateway>>) {
        let name = (key.namespace.clone(), key.name.clone());
        self.stale.sources.insert(key.clone());
        let Some(moved) = self.gateways.put(&name, gateway) else { return };
        self.touch_users(&Need::Waypoint(name));
        for network in moved.networks {
            if network == self.network {
                for (name, space) in &self.spaces {
                    touch_space(&mut self.stale, name, space, &self.settings.cluster_domain);
                }
            }
            self.touch_users(&Need::Network(network));
        }
        // A service that is a waypoint has none, nor has whoever is behind it.
        let space = self.spaces.get(&key.namespace);
        if moved.ip
            && let Some(space) = space
        {
            touch_space(&mut self.stale, &key.namespace, space, &self.settings.cluster_domain);
        }
        for host in moved.hosts {
            self.touch_host(&host);
            let Some(space) = self.spaces.get(&host.namespace) else { continue };
            let Some(service) = self.service_at(&host) else { continue };
            let selected = space.selected(&service.spec.selector);
            let selected = selected.map(|(kind, member)| ObjectKey::new(*kind, &host.namespace, member));
            let keys: Vec<_> = selected.chain(space.sliced(&service.metadata.name).map(pod_key)).collect();
            self.stale.sources.extend(keys);
        }
    }

    pub(super) fn put_class(&mut self, key: &ObjectKey, class: Option<Bare>) {
        for ((namespace, name), gateway) in self.gateways.put_class(&key.name, class) {
            self.put_gateway(&ObjectKey::new(Kind::Gateway, &namespace, &name), Some(gateway));
        }
    }

    fn touch_users(&mut self, need: &Need) {
        for item in self.uses.of(need) {
            match item {
                Item::Workloads(source) => drop(self.stale.sources.insert(source.clone())),
                Item::Service(name) => drop(self.stale.services.insert(name.clone())),
            }
        }
    }

    /// Nothing is kept of a namespace where nothing is.
    pub(super) fn forget_if_empty(&mut self, namespace: &Arc<str>) {
        if self.spaces.get(namespace).is_some_and(Space::is_empty) {
            self.spaces.remove(namespace);
        }
    }
}

impl EndpointSlice {
    /// The pods that are endpoints of it, each by its namespace and name.
    pub(super) fn pods(&self) -> impl Iterator<Item = (&str, &str)> {
        self.targets().map(|(pod, _)| pod)
    }

    /// Whether it means a pod, and not another that had its name before.
    pub(super) fn names(&self, pod: &Pod) -> bool {
        let (name, own) = ((pod.metadata.namespace(), &*pod.metadata.name), pod.metadata.uid.as_deref());
        self.targets().any(|(of, uid)| of == name && uid.is_none_or(|uid| own == Some(uid)))
    }

    /// Pods, and their UIDs where it has them.
    fn targets(&self) -> impl Iterator<Item = ((&str, &str), Option<&str>)> {
        let targets = self.endpoints.iter().filter_map(|e| e.target_ref.as_ref());
        targets.filter_map(|target| Some((target.pod(self.metadata.namespace())?, target.uid.as_deref())))
    }
}

fn targets_of(slice: Option<&EndpointSlice>) -> BTreeSet<(Name, Option<String>)> {
    let of_service = slice.filter(|slice| slice.service().is_some()).into_iter();
    let targets = of_service.flat_map(EndpointSlice::targets);
    let owned = |((namespace, pod), uid): ((&str, &str), Option<&str>)| ((namespace.into(), pod.into()), uid.map(str::to_owned));
    targets.map(owned).collect()
}

fn pod_key((namespace, name): (&str, &str)) -> ObjectKey {
    ObjectKey::new(Kind::Pod, namespace, name)
}

fn touch_space(stale: &mut super::Stale, name: &Arc<str>, space: &Space, domain: &str) {
    let mut sources = |kind, names: &mut dyn Iterator<Item = &Arc<str>>| {
        stale.sources.extend(names.map(|object| ObjectKey::new(kind, name, object)));
    };
    sources(Kind::Pod, &mut space.pods.keys());
    sources(Kind::WorkloadEntry, &mut space.workload_entries.keys());
    sources(Kind::ServiceEntry, &mut space.entries.keys());
    sources(Kind::EndpointSlice, &mut space.slices.keys());
    // Which may be of other namespaces.
    let sliced = space.services.keys().flat_map(|service| space.sliced(service));
    stale.sources.extend(sliced.map(pod_key));
    let services = space.services.keys().map(|service| host_of(service, name, domain));
    let hosts = space
        .hosts
        .keys()
        .map(|host| NamespacedHostname::from_shared(name.clone(), host.clone()));
    stale.services.extend(services.chain(hosts));
}

/// The name of a Service of Kubernetes.
pub(super) fn host_of(service: &str, namespace: &str, domain: &str) -> NamespacedHostname {
    NamespacedHostname::new(namespace, &format!("{service}.{namespace}.svc.{domain}"))
}

fn relabel(space: &mut Space, kind: Kind, name: &Arc<str>, old: &Labels, new: &Labels) {
    if old == new {
        return;
    }
    let member = (kind, name.clone());
    for label in old.iter().filter(|(key, value)| new.get(*key) != Some(value)) {
        space.labelled.remove(label, &member);
    }
    for label in new.iter().filter(|(key, value)| old.get(*key) != Some(value)) {
        space.labelled.insert(label, &member);
    }
}

fn reselect(space: &mut Space, member: &super::Member, old: Option<&Labels>, new: Option<&Labels>) {
    if old == new {
        return;
    }
    if let Some(label) = old.and_then(|labels| labels.first_key_value()) {
        space.selecting.remove(label, member);
    }
    if let Some(label) = new.and_then(|labels| labels.first_key_value()) {
        space.selecting.insert(label, member);
    }
}

fn unmark<K: Ord, V: Ord>(index: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(all) = index.get_mut(key) {
        all.remove(value);
        if all.is_empty() {
            index.remove(key);
        }
    }
}

/// The labels of a node that say where it stands: region, zone, subzone.
const LOCALITY: [&str; 3] = [
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.istio.io/subzone",
];
