//! A mesh as a control plane tells it: a workload of every application's ten, and a service to each application.

use std::net::{IpAddr, Ipv4Addr};

use ambient_core::{
    GatewayAddress, GatewayTarget, Membership, NamespacedHostname, NetworkAddress, Service, ServicePort, TunnelProtocol, Workload,
    WorkloadKind, mesh::Update,
};

/// Workloads to a service.
pub const OF_ONE_SERVICE: usize = 10;

/// The workload of a number; no text of it is shared with another.
#[must_use]
pub fn workload(n: usize) -> Workload {
    let service = n / OF_ONE_SERVICE;
    let namespace = format!("namespace-{}", service % 200);
    let name = format!("application-{service}-6c9f7d9b8-{n:05x}");
    let mut workload = Workload::new(&format!("Kubernetes//Pod/{namespace}/{name}"), &namespace, &name);
    workload.pod = Some(format!("0f3f5a2e-8a1d-4a2b-9c3d-{n:012x}").into());
    workload.addresses = vec![pod_ip(n)];
    workload.service_account = format!("application-{service}").into();
    workload.node = format!("node-{}", n % 1000).into();
    workload.cluster = "Kubernetes".into();
    workload.tunnel = TunnelProtocol::Hbone;
    workload.kind = WorkloadKind::Deployment;
    workload.workload_name = format!("application-{service}").into();
    workload.canonical_name = format!("application-{service}").into();
    workload.canonical_revision = "v1".into();
    workload.locality = ["region-1".into(), format!("zone-{}", n % 3).into(), "".into()];
    workload.services = vec![Membership {
        service: name_of(service),
        ports: [(80, 8080)].into_iter().collect(),
    }];
    if service.is_multiple_of(10) {
        workload.waypoint = Some(GatewayAddress {
            target: GatewayTarget::Hostname(NamespacedHostname::new(
                &namespace,
                &format!("waypoint.{namespace}.svc.cluster.local"),
            )),
            hbone_port: 15008,
        });
    }
    workload
}

/// The service of a number.
#[must_use]
pub fn service(n: usize) -> Service {
    let name = name_of(n);
    let mut service = Service::new(&name.namespace, &name.hostname);
    service.vips = vec![NetworkAddress::local(vip(n))];
    service.ports = vec![ServicePort { port: 80, target: 8080 }];
    service
}

/// Its name.
#[must_use]
pub fn name_of(service: usize) -> NamespacedHostname {
    let namespace = format!("namespace-{}", service % 200);
    NamespacedHostname::new(&namespace, &format!("application-{service}.{namespace}.svc.cluster.local"))
}

/// The address of the workload of a number.
#[must_use]
pub fn pod_ip(n: usize) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 + n as u32).into()
}

/// The virtual address of the service of a number.
#[must_use]
pub fn vip(n: usize) -> IpAddr {
    Ipv4Addr::from_bits(0xac10_0000 + n as u32).into()
}

/// All of a mesh of so many workloads, services first.
#[must_use]
pub fn updates(size: usize) -> Vec<Update> {
    let services = (0..size / OF_ONE_SERVICE).map(|n| Update::Service(service(n).into()));
    services.chain((0..size).map(|n| Update::Workload(workload(n).into()))).collect()
}
