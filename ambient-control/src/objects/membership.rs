//! Which services a workload is an endpoint of, and by which ports.

use std::{collections::BTreeMap, net::IpAddr};

use ambient_authz::kubernetes::Labels;
use ambient_core::{NamespacedHostname, PortMap};

use super::{
    Kind, Objects, Space,
    kinds::{EndpointSlice, Pod, Service, ServiceEntry, TargetPort},
    put::host_of,
};

/// The ports of a workload, by their names.
#[derive(Clone, Copy)]
pub(super) enum Ports<'a> {
    Pod(&'a Pod),
    Entry(&'a BTreeMap<String, u16>),
}

/// Who a host is in a namespace.
#[derive(Clone, Copy)]
pub(super) enum Holder<'a> {
    Service(&'a Service),
    Entry(&'a ServiceEntry),
}

/// Memberships of a workload, one for each service.
pub(super) type Memberships = BTreeMap<NamespacedHostname, PortMap>;

impl Objects {
    pub(super) fn host_of(&self, namespace: &str, service: &str) -> NamespacedHostname {
        host_of(service, namespace, &self.settings.cluster_domain)
    }

    /// The Service of Kubernetes that a host is, whoever claims it too.
    pub(super) fn service_at(&self, name: &NamespacedHostname) -> Option<&Service> {
        let rest = name.hostname.strip_suffix(&*self.settings.cluster_domain)?.strip_suffix(".svc.")?;
        let (service, namespace) = rest.split_once('.')?;
        let named = (*namespace == *name.namespace).then(|| self.spaces.get(namespace)).flatten();
        let service = named?.services.get(service)?;
        (!is_external(service)).then_some(service)
    }

    /// Who a host is in a namespace: a Service of Kubernetes before any ServiceEntry, the oldest of these, the first by name.
    pub(super) fn holder(&self, name: &NamespacedHostname) -> Option<Holder<'_>> {
        if let Some(service) = self.service_at(name) {
            return Some(Holder::Service(service));
        }
        let space = self.spaces.get(&name.namespace)?;
        let claims = space.hosts.get(&name.hostname).into_iter().flatten();
        let entries = claims.filter_map(|entry| space.entries.get(entry));
        entries.min_by_key(|entry| age(entry)).map(|entry| Holder::Entry(entry))
    }

    /// The hosts of a ServiceEntry that are its own.
    pub(super) fn own_hosts(&self, entry: &ServiceEntry) -> impl Iterator<Item = NamespacedHostname> {
        let meta = &entry.metadata;
        let all = entry.spec.hosts.iter();
        let all = all.map(|host| NamespacedHostname::new(meta.namespace(), host));
        all.filter(|host| matches!(self.holder(host), Some(Holder::Entry(holder)) if holder.metadata.name == meta.name))
    }

    /// The services that select somebody with these labels.
    pub(super) fn selecting(&self, space: &Space, labels: &Labels, ports: Ports<'_>, into: &mut Memberships) {
        for (kind, name) in space.selecting(labels) {
            match kind {
                Kind::Service => {
                    let Some(service) = space.services.get(name).filter(|service| !is_external(service)) else {
                        continue;
                    };
                    let host = self.host_of(service.metadata.namespace(), name);
                    into.insert(host, ports.of_service(service));
                }
                _ => {
                    if let Some(entry) = space.entries.get(name) {
                        for host in self.own_hosts(entry) {
                            into.insert(host, ports.of_entry(entry));
                        }
                    }
                }
            }
        }
    }

    /// The services without a selector whose slices name a pod, which may be of other namespaces.
    pub(super) fn in_slices(&self, name: &super::Name, pod: &Pod, into: &mut Memberships) {
        for (namespace, slice) in self.slices_with.get(name).into_iter().flatten() {
            let slice = self.spaces.get(namespace).and_then(|space| space.slices.get(slice));
            let Some((slice, service)) = slice.and_then(|slice| Some((slice, slice.service()?))) else {
                continue;
            };
            let host = self.host_of(namespace, service);
            if let Some(service) = self.service_at(&host).filter(|_| slice.names(pod)) {
                into.entry(host).or_insert_with(|| Ports::Pod(pod).of_service(service));
            }
        }
    }

    /// The waypoint that somebody behind these services is, by what it is reached as. Of its own namespace alone: in another anybody
    /// could make it one by a slice, and so strip it of its waypoint.
    pub(super) fn waypoint_among(&self, namespace: &str, memberships: &Memberships, own: &[IpAddr]) -> Option<&super::Name> {
        let mut own_services = memberships.keys().filter(|host| *host.namespace == *namespace);
        let by_service = own_services.find_map(|host| {
            let ips = self.service_at(host).into_iter().flat_map(|service| service.ips());
            self.gateways.that_is(host, ips)
        });
        by_service.or_else(|| self.gateways.at_ip(namespace, own.iter().copied()))
    }
}

impl Ports<'_> {
    fn named(self, name: &str) -> Option<u16> {
        match self {
            Self::Pod(pod) => port_of(pod, name),
            Self::Entry(ports) => ports.get(name).copied(),
        }
    }

    pub(super) fn of_service(self, service: &Service) -> PortMap {
        let ports = service.tcp_ports().filter_map(|port| {
            let target = match (&port.target_port, self) {
                // Who has no such port is no endpoint of it.
                (Some(TargetPort::Name(name)), _) => self.named(name)?,
                (Some(TargetPort::Number(_)) | None, Self::Entry(_)) => {
                    let own = port.name.as_deref().and_then(|name| self.named(name));
                    own.unwrap_or_else(|| port.number())
                }
                (Some(TargetPort::Number(_)) | None, Self::Pod(_)) => port.number(),
            };
            Some((port.port, target))
        });
        ports.collect()
    }

    pub(super) fn of_entry(self, entry: &ServiceEntry) -> PortMap {
        let ports = entry.spec.ports.iter().map(|port| {
            let own = port.name.as_deref().and_then(|name| self.named(name));
            (port.number, own.unwrap_or_else(|| port.target()))
        });
        ports.collect()
    }
}

/// The ports of a service at the endpoints of a slice: joined by their names.
pub(super) fn slice_ports(service: &Service, slice: &EndpointSlice) -> PortMap {
    let tcp = slice.ports.iter().filter(|p| is_tcp(p.protocol.as_deref()));
    let numbered = tcp.filter_map(|p| Some((p.name.as_deref().unwrap_or_default(), p.port?)));
    let joined = numbered.filter_map(|(name, target)| {
        let mut of_service = service.tcp_ports();
        let port = of_service.find(|port| port.name.as_deref().unwrap_or_default() == name)?;
        Some((port.port, target))
    });
    joined.collect()
}

/// What tells the older of two ServiceEntries.
pub(super) fn age(entry: &ServiceEntry) -> (&str, &str, &str) {
    let meta = &entry.metadata;
    let created = meta.creation_timestamp.as_deref().unwrap_or_default();
    (created, meta.namespace(), &meta.name)
}

/// Whether a service is only another name.
pub(super) fn is_external(service: &Service) -> bool {
    service.spec.kind.as_deref() == Some("ExternalName")
}

fn port_of(pod: &Pod, name: &str) -> Option<u16> {
    let lasting = pod.spec.init_containers.iter();
    let lasting = lasting.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = pod.spec.containers.iter().chain(lasting).flat_map(|c| &c.ports);
    ports
        .filter(|p| is_tcp(p.protocol.as_deref()) && p.name.as_deref() == Some(name))
        .map(|p| p.container_port)
        .find(|port| *port != 0)
}

pub(super) fn is_tcp(protocol: Option<&str>) -> bool {
    matches!(protocol, None | Some("" | "TCP"))
}
