//! A service and the pods behind it.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ambient_core::{
    BalancerMode, Endpoint, Health, HealthPolicy, IpFamilies, LoadBalancer, NetworkAddress, Scope, Service, ServicePort, Workload,
};

use super::{
    Settings,
    kinds::{self, Pod, TargetPort},
};

/// The service of the mesh that an object is, with those of its namespace's pods that it selects and that are
/// workloads; `None` for an ExternalName, which is only a name.
pub(super) fn service<'a>(
    settings: &Settings,
    object: &kinds::Service,
    pods: impl Iterator<Item = (&'a Pod, &'a Arc<Workload>)>,
) -> Option<Service> {
    let spec = &object.spec;
    if spec.kind.as_deref() == Some("ExternalName") {
        return None;
    }
    let meta = &object.metadata;
    let hostname = format!("{}.{}.svc.{}", meta.name, meta.namespace(), settings.cluster_domain);
    let mut service = Service::new(meta.namespace(), &hostname);
    // What a Service of Kubernetes names is what that name means.
    service.canonical = true;
    service.load_balancer = load_balancer(object);
    service.ip_families = match &spec.ip_families[..] {
        [only] if only == "IPv4" => IpFamilies::Ipv4Only,
        [only] if only == "IPv6" => IpFamilies::Ipv6Only,
        [_, _] => IpFamilies::Dual,
        _ => IpFamilies::Automatic,
    };
    for text in spec.cluster_ips.iter().chain(&spec.cluster_ip) {
        if let Ok(vip) = text.parse::<IpAddr>().map(NetworkAddress::local)
            && !service.vips.contains(&vip)
        {
            service.vips.push(vip);
        }
    }
    let ports = || spec.ports.iter().filter(|p| is_tcp(p.protocol.as_deref()));
    service.ports = ports()
        .map(|p| ServicePort {
            port: p.port,
            target: match p.target_port {
                None => p.port,
                Some(TargetPort::Number(target)) => target,
                Some(TargetPort::Name(_)) => 0,
            },
        })
        .collect();
    let mut endpoints = BTreeMap::new();
    for (pod, workload) in pods.filter(|(pod, _)| kinds::selects(&spec.selector, &pod.metadata.labels)) {
        let mut named = BTreeMap::new();
        let mut reachable = service.ports.is_empty();
        for port in ports() {
            match &port.target_port {
                Some(TargetPort::Name(name)) => {
                    if let Some(target) = port_of(pod, name) {
                        named.insert(port.port, target);
                        reachable = true;
                    }
                }
                _ => reachable = true,
            }
        }
        if reachable {
            let health = if spec.publish_not_ready_addresses {
                Health::Healthy
            } else {
                workload.health
            };
            endpoints.insert(
                workload.uid.clone(),
                Endpoint {
                    ports: named.into_iter().collect(),
                    health,
                    ..Endpoint::default()
                },
            );
        }
    }
    service.endpoints = Arc::new(endpoints);
    Some(service)
}

/// Which endpoints are preferred. What the spec says counts before what the older annotation does; `Local` before both.
fn load_balancer(object: &kinds::Service) -> Option<LoadBalancer> {
    let spec = &object.spec;
    let written = spec.traffic_distribution.as_deref().filter(|text| distribution(text).is_some());
    let written = written.or_else(|| object.metadata.annotations.get(DISTRIBUTION).map(String::as_str));
    let mut balancer = written.and_then(distribution).map(|preferences| LoadBalancer {
        preferences: preferences.to_vec(),
        mode: BalancerMode::Failover,
        ..LoadBalancer::default()
    });
    if spec.internal_traffic_policy.as_deref() == Some("Local") {
        balancer = Some(LoadBalancer {
            preferences: vec![Scope::Node],
            mode: BalancerMode::Strict,
            ..LoadBalancer::default()
        });
    }
    if spec.publish_not_ready_addresses {
        balancer.get_or_insert_default().health_policy = HealthPolicy::AllowAll;
    }
    balancer
}

/// What `trafficDistribution` prefers; Istio's reading of it, which takes the annotation's values in any case.
fn distribution(text: &str) -> Option<&'static [Scope]> {
    match text.to_ascii_lowercase().as_str() {
        "preferclose" | "prefersamezone" => Some(&[Scope::Network, Scope::Region, Scope::Zone]),
        "prefersamenode" => Some(&[Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node]),
        _ => None,
    }
}

const DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

fn port_of(pod: &Pod, name: &str) -> Option<u16> {
    let ports = pod.spec.containers.iter().flat_map(|c| &c.ports);
    ports
        .filter(|p| is_tcp(p.protocol.as_deref()) && p.name.as_deref() == Some(name))
        .map(|p| p.container_port)
        .find(|port| *port != 0)
}

fn is_tcp(protocol: Option<&str>) -> bool {
    matches!(protocol, None | Some("" | "TCP"))
}
