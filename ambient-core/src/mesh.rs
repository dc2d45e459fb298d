//! The mesh at one moment: workloads and services, found by every name that the data plane knows them by.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use crate::{
    Endpoint, Identity, Membership, NamespacedHostname, NetworkAddress, NetworkBlock, NetworkMode, PodUid, Service, ServicePort, Shards,
    TunnelProtocol, Workload, WorkloadUid, headers::Baggage,
};

mod afar;
mod circles;
mod few;
mod members;
mod sharing;
#[cfg(test)]
mod tests;
mod workloads;

use afar::Afar;
use few::Few;
pub(crate) use members::{Members, Near, Places, spot};
use workloads::Workloads;

pub use circles::WaypointUser;
pub use sharing::Sharing;

/// One change of the mesh. It is exhaustive on purpose: whoever passes changes on must know each.
#[derive(Clone, Debug)]
pub enum Update {
    /// A workload is new or has changed; it replaces the one of the same UID.
    Workload(Arc<Workload>),
    /// A workload is gone.
    RemoveWorkload(WorkloadUid),
    /// A service is new or has changed; it replaces the one of the same name.
    Service(Arc<Service>),
    /// A service is gone.
    RemoveService(NamespacedHostname),
}

/// An immutable snapshot of the mesh.
///
/// Cloning is one reference count. [`Mesh::apply`] makes the next snapshot and shares with this one all that did not
/// change, so that its cost follows the change and not the mesh: also where one endpoint of a large service changes.
#[derive(Clone, Default)]
pub struct Mesh(Arc<Indexes>);

#[derive(Clone, Default)]
struct Indexes {
    workloads: Workloads,
    /// Whoever claims an address: two may do so while one pod takes over the address of another.
    claims: Shards<NetworkAddress, Few<Workload>>,
    pods: Shards<PodUid, Arc<Workload>>,
    nodes: Shards<Arc<str>, Shards<WorkloadUid, Arc<Workload>>>,
    /// Workloads that are reached by a name.
    named: Shards<NamespacedHostname, Few<Workload>>,
    afar: Afar,
    services: Shards<NamespacedHostname, Arc<Service>>,
    vips: Shards<NetworkAddress, Few<Service>>,
    blocks: Shards<NetworkBlock, Few<Service>>,
    lengths: Lengths,
    hostnames: Shards<Arc<str>, Few<Service>>,
    /// Of every service, known or not, that lists endpoints or that workloads name.
    endpoints: Shards<NamespacedHostname, Members>,
}

/// A workload as an endpoint of a service that it names.
fn named_endpoint(workload: &Workload, membership: &Membership) -> Endpoint {
    Endpoint {
        ports: membership.ports.clone(),
        health: workload.health,
        capacity: workload.capacity,
    }
}

/// How many blocks there are of each length of prefix, of either family: a look-up tries those that there are.
#[derive(Clone, Debug, Default)]
struct Lengths {
    v4: Arc<[(u8, u32)]>,
    v6: Arc<[(u8, u32)]>,
}

impl Mesh {
    /// The snapshot after some updates, in their order.
    #[must_use]
    pub fn apply(&self, updates: impl IntoIterator<Item = Update>) -> Self {
        let mut next = self.clone();
        next.update(updates);
        next
    }

    /// Becomes the snapshot after some updates, in their order.
    ///
    /// What no other snapshot shares is changed where it stands: many updates cost the same part by part as at once.
    pub fn update(&mut self, updates: impl IntoIterator<Item = Update>) {
        let next = Arc::make_mut(&mut self.0);
        for update in updates {
            match update {
                Update::Workload(workload) => next.put_workload(workload),
                Update::RemoveWorkload(uid) => next.remove_workload(&uid),
                Update::Service(service) => next.put_service(service),
                Update::RemoveService(name) => next.remove_service(&name),
            }
        }
    }

    /// The workload of a UID.
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.0.workloads.get(uid)
    }

    /// The workload that a pod is.
    pub fn workload_by_pod(&self, pod: &PodUid) -> Option<&Arc<Workload>> {
        self.0.pods.get(pod)
    }

    /// The workload at an address; never one that shares its node's address.
    ///
    /// Where several claim the address, one that is reached by tunnel comes first (so that a doubt never turns into
    /// plaintext: a wrong choice fails at the handshake), then the first by UID.
    pub fn workload_by_address(&self, address: &NetworkAddress) -> Option<&Arc<Workload>> {
        self.0.claims.get(address).and_then(preferred)
    }

    /// Every workload that claims an address, in the order of their UIDs.
    pub fn workloads_by_address(&self, address: &NetworkAddress) -> impl Iterator<Item = &Arc<Workload>> {
        self.0.claims.get(address).into_iter().flat_map(Few::iter)
    }

    /// The workload that is reached by a name; where several are, as [`Mesh::workload_by_address`] chooses.
    pub fn workload_by_hostname(&self, name: &NamespacedHostname) -> Option<&Arc<Workload>> {
        self.0.named.get(name).and_then(preferred)
    }

    /// A workload behind the gateway of a network, by what it says of itself and the identity that it has proven: one of which all
    /// that is said is so, and whose identity that is. Several of one owner may be so alike, and it is one of them.
    pub fn workload_afar(&self, said: &Baggage, proven: &Identity) -> Option<&Arc<Workload>> {
        self.0.afar.find(said, proven)
    }

    /// The workloads of a node, in no order; none of those whose node is not known.
    pub fn workloads_of_node(&self, node: &str) -> impl Iterator<Item = &Arc<Workload>> {
        self.0.nodes.get(node).into_iter().flat_map(Shards::values)
    }

    /// Every workload, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.0.workloads.values()
    }

    /// The service of a name.
    pub fn service(&self, name: &NamespacedHostname) -> Option<&Arc<Service>> {
        self.0.services.get(name)
    }

    /// The service at a virtual address, as a client in a namespace sees it.
    ///
    /// Of those that it [sees](Service::is_visible_from), with the address itself among theirs: its own namespace's, then a
    /// canonical one, then the first by name. Where there is none, of those with a block that the address is in: its own
    /// namespace's, then the longest prefix, then a canonical one, then the first by name. The order is Istio's.
    pub fn service_by_vip(&self, address: &NetworkAddress, client_namespace: &str) -> Option<&Arc<Service>> {
        let exact = self.0.vips.get(address).and_then(|services| nearest(services, client_namespace));
        exact.or_else(|| self.service_by_block(address, client_namespace))
    }

    /// Every service with the address itself among its virtual ones, in the order of their names, then every one with a block that it is in,
    /// the longest prefix first; seen or not.
    pub fn services_by_vip<'a>(&'a self, address: &'a NetworkAddress) -> impl Iterator<Item = &'a Arc<Service>> {
        let exact = self.0.vips.get(address).into_iter();
        let blocks = self.0.lengths.of(address.ip).iter().filter_map(|(length, _)| {
            let block = NetworkBlock::new(address.network.clone(), address.ip, *length)?;
            self.0.blocks.get(&block)
        });
        exact.chain(blocks).flat_map(Few::iter)
    }

    fn service_by_block(&self, address: &NetworkAddress, namespace: &str) -> Option<&Arc<Service>> {
        let mut anywhere = None;
        // From the longest prefix on.
        for (length, _) in self.0.lengths.of(address.ip).iter() {
            let Some(block) = NetworkBlock::new(address.network.clone(), address.ip, *length) else {
                continue;
            };
            let Some(service) = self.0.blocks.get(&block).and_then(|services| nearest(services, namespace)) else {
                continue;
            };
            if *service.name.namespace == *namespace {
                return Some(service);
            }
            anywhere = anywhere.or(Some(service));
        }
        anywhere
    }

    /// The service of a DNS name in lower case, as a client in a namespace sees it: of those that it
    /// [sees](Service::is_visible_from) its own namespace's, then a canonical one, then the first by name.
    pub fn service_by_hostname(&self, hostname: &str, client_namespace: &str) -> Option<&Arc<Service>> {
        nearest(self.0.hostnames.get(hostname)?, client_namespace)
    }

    /// Every service of a DNS name in lower case, in the order of their names, seen or not.
    pub fn services_by_hostname(&self, hostname: &str) -> impl Iterator<Item = &Arc<Service>> {
        self.0.hostnames.get(hostname).into_iter().flat_map(Few::iter)
    }

    /// The service that a connection to a port of a workload is for, as far as the port says: of those that the workload names the
    /// first that has it.
    pub fn service_at(&self, workload: &Workload, port: u16) -> Option<&Arc<Service>> {
        let leads_there = |membership: &&Membership, service: &Service| {
            let at = |offered: &ServicePort| membership.ports.get(offered.port).unwrap_or(offered.target);
            service.ports.iter().any(|offered| at(offered) == port)
        };
        let mut named = workload.services.iter();
        named.find_map(|membership| {
            self.service(&membership.service)
                .filter(|service| leads_there(&membership, service))
        })
    }

    /// Every service, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.0.services.values()
    }

    /// The endpoints of a service, known or not: those that it lists, and the workloads that name it. Where both are so of
    /// one workload, what the service lists counts.
    pub fn endpoints(&self, service: &NamespacedHostname) -> Option<&Shards<WorkloadUid, Endpoint>> {
        self.0.endpoints.get(service).map(|members| &members.all)
    }

    /// The endpoints of a service, with what is known of all of them.
    pub(crate) fn members(&self, service: &NamespacedHostname) -> Option<&Members> {
        self.0.endpoints.get(service)
    }

    /// A workload as an endpoint of a service.
    pub fn endpoint(&self, service: &NamespacedHostname, workload: &WorkloadUid) -> Option<&Endpoint> {
        self.endpoints(service)?.get(workload)
    }
}

fn preferred(workloads: &Few<Workload>) -> Option<&Arc<Workload>> {
    // Of one alone nothing needs to be looked at, which as a rule is far away.
    if let Few::One(one) = workloads {
        return Some(one);
    }
    let mut tunnelled = workloads.iter().filter(|w| w.tunnel == TunnelProtocol::Hbone);
    tunnelled.next().or_else(|| workloads.iter().next())
}

fn nearest<'a>(services: &'a Few<Service>, namespace: &str) -> Option<&'a Arc<Service>> {
    if let Few::One(one) = services {
        return one.is_visible_from(namespace).then_some(one);
    }
    let seen = services.iter().filter(|service| service.is_visible_from(namespace));
    // The first of equals.
    seen.min_by_key(|service| (*service.name.namespace != *namespace, !service.canonical))
}

impl Indexes {
    fn put_workload(&mut self, workload: Arc<Workload>) {
        let workload = canonical(workload);
        let old = self.workloads.insert(workload.clone());
        if let Some(old) = &old {
            self.forget_names(old);
        }
        for address in indexed_addresses(&workload) {
            put(&mut self.claims, address, workload.clone());
        }
        if !workload.hostname.is_empty() {
            put(&mut self.named, name_of(&workload), workload.clone());
        }
        self.afar.put(&workload);
        if let Some(pod) = &workload.pod {
            self.pods.insert(pod.clone(), workload.clone());
        }
        if !workload.node.is_empty() {
            self.stand_on(&workload);
        }
        let left = old.iter().flat_map(|old| &old.services);
        for membership in left.filter(|old| workload.services.iter().all(|new| new.service != old.service)) {
            self.leave(&membership.service, &workload.uid, old.as_deref());
        }
        for membership in &workload.services {
            if !self.lists(&membership.service, &workload.uid) {
                let endpoint = named_endpoint(&workload, membership);
                self.join(&membership.service, &workload.uid, endpoint, old.as_deref());
            }
        }
    }

    fn remove_workload(&mut self, uid: &WorkloadUid) {
        let Some(old) = self.workloads.remove(uid) else { return };
        self.forget_names(&old);
        for membership in &old.services {
            self.leave(&membership.service, uid, Some(&old));
        }
    }

    fn forget_names(&mut self, old: &Workload) {
        self.afar.take(old);
        for address in indexed_addresses(old) {
            take(&mut self.claims, &address, &old.uid);
        }
        if !old.hostname.is_empty() {
            take(&mut self.named, &name_of(old), &old.uid);
        }
        if let Some(workloads) = self.nodes.value_mut(&old.node) {
            workloads.remove(&old.uid);
            if workloads.is_empty() {
                self.nodes.remove(&old.node);
            }
        }
        // The pod's entry is another's if the pod was since announced under another name.
        if let Some(pod) = &old.pod
            && self.pods.get(pod).is_some_and(|w| w.uid == old.uid)
        {
            self.pods.remove(pod);
        }
    }

    fn stand_on(&mut self, workload: &Arc<Workload>) {
        let (uid, node) = (workload.uid.clone(), &workload.node);
        match self.nodes.value_mut(node) {
            Some(workloads) => drop(workloads.insert(uid, workload.clone())),
            None => {
                let mut workloads = Shards::default();
                workloads.insert(uid, workload.clone());
                self.nodes.insert(node.clone(), workloads);
            }
        }
    }

    fn put_service(&mut self, service: Arc<Service>) {
        let old = self.services.insert(service.name.clone(), service.clone());
        if let Some(old) = &old {
            self.forget_service(old);
        }
        for vip in &service.vips {
            put(&mut self.vips, vip.clone(), service.clone());
        }
        for block in &service.vip_blocks {
            put(&mut self.blocks, block.clone(), service.clone());
            self.lengths.count(block, 1);
        }
        put(&mut self.hostnames, service.name.hostname.clone(), service.clone());
        let before = old.map(|old| old.endpoints.clone()).unwrap_or_default();
        self.list(&service, &before);
        if let Some(members) = self.endpoints.value_mut(&service.name) {
            members.serve(Some(&service), &self.workloads);
        }
    }

    fn list(&mut self, service: &Service, before: &Arc<BTreeMap<WorkloadUid, Endpoint>>) {
        if Arc::ptr_eq(before, &service.endpoints) {
            return;
        }
        for uid in before.keys().filter(|uid| !service.endpoints.contains_key(*uid)) {
            self.unlist(&service.name, uid);
        }
        for (uid, endpoint) in service.endpoints.iter().filter(|(uid, now)| before.get(*uid) != Some(now)) {
            self.join(&service.name, uid, endpoint.clone(), None);
        }
    }

    fn remove_service(&mut self, name: &NamespacedHostname) {
        let Some(old) = self.services.remove(name) else { return };
        self.forget_service(&old);
        for uid in old.endpoints.keys() {
            self.unlist(name, uid);
        }
        if let Some(members) = self.endpoints.value_mut(name) {
            members.serve(None, &self.workloads);
        }
    }

    fn forget_service(&mut self, old: &Service) {
        for vip in &old.vips {
            take(&mut self.vips, vip, &old.name);
        }
        for block in &old.vip_blocks {
            take(&mut self.blocks, block, &old.name);
            self.lengths.count(block, -1);
        }
        take(&mut self.hostnames, &old.name.hostname, &old.name);
    }

    fn lists(&self, service: &NamespacedHostname, uid: &WorkloadUid) -> bool {
        self.services.get(service).is_some_and(|s| s.endpoints.contains_key(uid))
    }

    /// `before` is the workload as it was.
    fn join(&mut self, service: &NamespacedHostname, uid: &WorkloadUid, endpoint: Endpoint, before: Option<&Workload>) {
        match self.endpoints.value_mut(service) {
            Some(members) => members.put(uid.clone(), endpoint, before, &self.workloads),
            None => {
                let mut members = Members::of(self.services.get(service));
                members.put(uid.clone(), endpoint, before, &self.workloads);
                self.endpoints.insert(service.clone(), members);
            }
        }
    }

    /// A workload no longer names a service; it may be listed there still.
    fn leave(&mut self, service: &NamespacedHostname, uid: &WorkloadUid, before: Option<&Workload>) {
        if !self.lists(service, uid) {
            self.part(service, uid, before);
        }
    }

    /// A service no longer lists a workload; it may name the service still.
    fn unlist(&mut self, service: &NamespacedHostname, uid: &WorkloadUid) {
        let workload = self.workloads.get(uid);
        let named = workload.and_then(|w| Some((w, w.services.iter().rfind(|m| m.service == *service)?)));
        match named {
            None => self.part(service, uid, None),
            Some((workload, membership)) => {
                let endpoint = named_endpoint(workload, membership);
                self.join(service, uid, endpoint, None);
            }
        }
    }

    fn part(&mut self, service: &NamespacedHostname, uid: &WorkloadUid, before: Option<&Workload>) {
        let Some(endpoints) = self.endpoints.value_mut(service) else {
            return;
        };
        endpoints.take(uid, before);
        if endpoints.all.is_empty() {
            self.endpoints.remove(service);
        }
    }
}

fn put<K: Clone + Eq + std::hash::Hash, V: few::Named>(index: &mut Shards<K, Few<V>>, key: K, value: Arc<V>) {
    match index.value_mut(&key) {
        Some(few) => few.put(value),
        None => drop(index.insert(key, Few::from(value))),
    }
}

fn take<K: Clone + Eq + std::hash::Hash, V: few::Named>(index: &mut Shards<K, Few<V>>, key: &K, name: &V::Name) {
    if let Some(few) = index.value_mut(key)
        && few.take(name)
    {
        index.remove(key);
    }
}

fn name_of(workload: &Workload) -> NamespacedHostname {
    NamespacedHostname::new(&workload.namespace, &workload.hostname)
}

/// The same, with addresses as they are looked for and connected to.
fn canonical(mut workload: Arc<Workload>) -> Arc<Workload> {
    if workload.addresses.iter().any(|ip| *ip != ip.to_canonical()) {
        for ip in &mut Arc::make_mut(&mut workload).addresses {
            *ip = ip.to_canonical();
        }
    }
    workload
}

fn indexed_addresses(workload: &Workload) -> impl Iterator<Item = NetworkAddress> {
    let own = workload.network_mode == NetworkMode::Standard;
    workload
        .addresses
        .iter()
        .filter(move |_| own)
        .map(|ip| NetworkAddress::new(workload.network.clone(), *ip))
}

impl Lengths {
    fn of(&self, ip: IpAddr) -> &Arc<[(u8, u32)]> {
        match ip {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        }
    }

    fn count(&mut self, block: &NetworkBlock, by: i32) {
        let lengths = match block.first() {
            IpAddr::V4(_) => &mut self.v4,
            IpAddr::V6(_) => &mut self.v6,
        };
        let mut next: Vec<_> = lengths.to_vec();
        match next.iter_mut().find(|(length, _)| *length == block.length()) {
            Some((_, count)) => *count = count.saturating_add_signed(by),
            None => next.push((block.length(), by.try_into().unwrap_or(0))),
        }
        next.retain(|(_, count)| *count > 0);
        next.sort_unstable_by(|(a, _), (b, _)| b.cmp(a));
        *lengths = next.into();
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh")
            .field("workloads", &self.0.workloads.len())
            .field("services", &self.0.services.len())
            .finish()
    }
}
