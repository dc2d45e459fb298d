//! The mesh at one moment: workloads and services, found by every name that the data plane knows them by.

use std::{collections::BTreeMap, fmt, sync::Arc};

use crate::{NamespacedHostname, NetworkAddress, NetworkMode, PodUid, Service, Shards, Workload, WorkloadUid};

#[cfg(test)]
mod tests;

/// One change of the mesh.
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
/// change, so that its cost follows the change and not the mesh.
#[derive(Clone, Default)]
pub struct Mesh(Arc<Indexes>);

#[derive(Clone, Default)]
struct Indexes {
    workloads: Shards<WorkloadUid, Arc<Workload>>,
    /// Whoever claims an address, by UID: two may do so while one pod takes over the address of another.
    claims: Shards<NetworkAddress, BTreeMap<WorkloadUid, Arc<Workload>>>,
    pods: Shards<PodUid, Arc<Workload>>,
    services: Shards<NamespacedHostname, Arc<Service>>,
    vips: Shards<NetworkAddress, BTreeMap<NamespacedHostname, Arc<Service>>>,
    hostnames: Shards<Arc<str>, BTreeMap<NamespacedHostname, Arc<Service>>>,
}

impl Mesh {
    /// The snapshot after some updates, in their order.
    #[must_use]
    pub fn apply(&self, updates: impl IntoIterator<Item = Update>) -> Self {
        let mut next = Indexes::clone(&self.0);
        for update in updates {
            match update {
                Update::Workload(workload) => next.put_workload(workload),
                Update::RemoveWorkload(uid) => next.remove_workload(&uid),
                Update::Service(service) => next.put_service(service),
                Update::RemoveService(name) => next.remove_service(&name),
            }
        }
        Self(Arc::new(next))
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
        let claims = self.0.claims.get(address)?;
        claims
            .values()
            .find(|w| w.tunnel == crate::TunnelProtocol::Hbone)
            .or_else(|| claims.values().next())
    }

    /// Every workload that claims an address.
    pub fn workloads_by_address(&self, address: &NetworkAddress) -> impl Iterator<Item = &Arc<Workload>> {
        self.0.claims.get(address).into_iter().flat_map(BTreeMap::values)
    }

    /// Every workload, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.0.workloads.values()
    }

    /// The service of a name.
    pub fn service(&self, name: &NamespacedHostname) -> Option<&Arc<Service>> {
        self.0.services.get(name)
    }

    /// The service at a virtual address, as a client in a namespace sees it: its own namespace's first, then the
    /// first by name.
    pub fn service_by_vip(&self, address: &NetworkAddress, client_namespace: &str) -> Option<&Arc<Service>> {
        nearest(self.0.vips.get(address)?, client_namespace)
    }

    /// The service of a DNS name in lower case, as a client in a namespace sees it: its own namespace's first, then
    /// the first by name.
    pub fn service_by_hostname(&self, hostname: &str, client_namespace: &str) -> Option<&Arc<Service>> {
        nearest(self.0.hostnames.get(hostname)?, client_namespace)
    }

    /// Every service, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.0.services.values()
    }
}

fn nearest<'a>(services: &'a BTreeMap<NamespacedHostname, Arc<Service>>, namespace: &str) -> Option<&'a Arc<Service>> {
    services
        .iter()
        .find(|(name, _)| &*name.namespace == namespace)
        .or_else(|| services.iter().next())
        .map(|(_, service)| service)
}

impl Indexes {
    fn put_workload(&mut self, workload: Arc<Workload>) {
        self.remove_workload(&workload.uid);
        for address in indexed_addresses(&workload) {
            self.claims.entry(address).insert(workload.uid.clone(), workload.clone());
        }
        if let Some(pod) = &workload.pod {
            self.pods.insert(pod.clone(), workload.clone());
        }
        self.workloads.insert(workload.uid.clone(), workload);
    }

    fn remove_workload(&mut self, uid: &WorkloadUid) {
        let Some(old) = self.workloads.remove(uid) else { return };
        for address in indexed_addresses(&old) {
            self.claims.remove_from(&address, |claims| claims.remove(uid));
        }
        // The pod's entry is another's if the pod was since announced under another name.
        if let Some(pod) = &old.pod
            && self.pods.get(pod).is_some_and(|w| w.uid == *uid)
        {
            self.pods.remove(pod);
        }
    }

    fn put_service(&mut self, service: Arc<Service>) {
        self.remove_service(&service.name);
        for vip in &service.vips {
            self.vips.entry(vip.clone()).insert(service.name.clone(), service.clone());
        }
        self.hostnames
            .entry(service.name.hostname.clone())
            .insert(service.name.clone(), service.clone());
        self.services.insert(service.name.clone(), service);
    }

    fn remove_service(&mut self, name: &NamespacedHostname) {
        let Some(old) = self.services.remove(name) else { return };
        for vip in &old.vips {
            self.vips.remove_from(vip, |services| services.remove(name));
        }
        self.hostnames.remove_from(&old.name.hostname, |services| services.remove(name));
    }
}

fn indexed_addresses(workload: &Workload) -> impl Iterator<Item = NetworkAddress> {
    let own = workload.network_mode == NetworkMode::Standard;
    workload
        .addresses
        .iter()
        .filter(move |_| own)
        .map(|ip| NetworkAddress::new(workload.network.clone(), *ip))
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh")
            .field("workloads", &self.0.workloads.len())
            .field("services", &self.0.services.len())
            .finish()
    }
}
