use std::{collections::BTreeMap, fmt};

use ambient_core::{
    BalancerMode, Endpoint, HealthPolicy, IpFamilies, LoadBalancer, Mesh, NetworkBlock, Scope, Service, ServicePort, Visibility,
    WeightedWaypoint,
};
use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::{
    order,
    workload::{Gateway, health},
};

/// A service with its endpoints; what has its default value is left out, as ztunnel leaves it out.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct View<'a> {
    name: &'a str,
    namespace: &'a str,
    hostname: &'a str,
    #[serde(serialize_with = "texts")]
    vips: &'a [ambient_core::NetworkAddress],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cidr_vips: Vec<Block<'a>>,
    #[serde(serialize_with = "ports")]
    ports: &'a [ServicePort],
    endpoints: Endpoints<'a>,
    #[serde(serialize_with = "texts")]
    subject_alt_names: &'a [ambient_core::Identity],
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<Gateway<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    weighted_waypoints: Vec<Weighted<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_balancer: Option<Balancer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_families: Option<&'static str>,
    canonical: bool,
    visibility: &'static str,
}

impl<'a> View<'a> {
    pub(super) fn new(s: &'a Service, mesh: &'a Mesh) -> Self {
        Self {
            name: s.short_name(),
            namespace: &s.name.namespace,
            hostname: &s.name.hostname,
            vips: &s.vips,
            cidr_vips: s.vip_blocks.iter().map(Block::from).collect(),
            ports: &s.ports,
            endpoints: Endpoints { of: s, mesh },
            subject_alt_names: &s.subject_alt_names,
            waypoint: s.waypoint.as_ref().map(Gateway::from),
            weighted_waypoints: s.weighted_waypoints.iter().map(Weighted::from).collect(),
            load_balancer: s.load_balancer.as_ref().map(Balancer::from),
            ip_families: match s.ip_families {
                IpFamilies::Automatic => None,
                IpFamilies::Ipv4Only => Some("IPv4"),
                IpFamilies::Ipv6Only => Some("IPv6"),
                IpFamilies::Dual => Some("Dual"),
            },
            canonical: s.canonical,
            visibility: match s.visibility {
                Visibility::Public => "Public",
                Visibility::Namespace => "Namespace",
            },
        }
    }
}

/// Each as its text.
fn texts<S: Serializer, T: fmt::Display>(list: &&[T], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(list.iter().map(ToString::to_string))
}

fn ports<S: Serializer>(list: &&[ServicePort], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(list.iter().map(|port| (port.port, port.target)))
}

#[derive(Serialize)]
struct Block<'a> {
    network: &'a str,
    cidr: String,
}

impl<'a> From<&'a NetworkBlock> for Block<'a> {
    fn from(block: &'a NetworkBlock) -> Self {
        Self {
            network: block.network().as_str(),
            cidr: format!("{}/{}", block.first(), block.length()),
        }
    }
}

#[derive(Serialize)]
struct Weighted<'a> {
    destination: Gateway<'a>,
    weight: u32,
}

impl<'a> From<&'a WeightedWaypoint> for Weighted<'a> {
    fn from(waypoint: &'a WeightedWaypoint) -> Self {
        Self {
            destination: Gateway::from(&waypoint.destination),
            weight: waypoint.weight,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Balancer {
    routing_preferences: Vec<&'static str>,
    mode: &'static str,
    health_policy: &'static str,
}

impl From<&LoadBalancer> for Balancer {
    fn from(balancer: &LoadBalancer) -> Self {
        let word = |scope: &Scope| match scope {
            Scope::Region => "Region",
            Scope::Zone => "Zone",
            Scope::Subzone => "Subzone",
            Scope::Node => "Node",
            Scope::Cluster => "Cluster",
            Scope::Network => "Network",
        };
        Self {
            routing_preferences: balancer.preferences.iter().map(word).collect(),
            mode: match balancer.mode {
                BalancerMode::Standard => "Standard",
                BalancerMode::Strict => "Strict",
                BalancerMode::Failover => "Failover",
                BalancerMode::Passthrough => "Passthrough",
            },
            health_policy: match balancer.health_policy {
                HealthPolicy::OnlyHealthy => "OnlyHealthy",
                HealthPolicy::AllowAll => "AllowAll",
            },
        }
    }
}

/// By workload: those that the service lists and those that name it.
struct Endpoints<'a> {
    of: &'a Service,
    mesh: &'a Mesh,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EndpointView<'a> {
    workload_uid: &'a str,
    port: BTreeMap<u16, u16>,
    status: &'static str,
}

impl Serialize for Endpoints<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        if let Some(all) = self.mesh.endpoints(&self.of.name) {
            for uid in order::sorted(|| all.keys()) {
                let endpoint = all.get(uid).map(|endpoint| EndpointView::new(uid.as_str(), endpoint));
                map.serialize_entry(uid.as_str(), &endpoint)?;
            }
        }
        map.end()
    }
}

impl<'a> EndpointView<'a> {
    fn new(workload_uid: &'a str, endpoint: &Endpoint) -> Self {
        Self {
            workload_uid,
            port: endpoint.ports.iter().collect(),
            status: health(endpoint.health),
        }
    }
}
