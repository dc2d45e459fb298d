use ambient_core::{
    ApplicationProtocol, ApplicationTunnel, GatewayAddress, GatewayTarget, Health, Membership, NetworkMode, PolicyKey, TunnelProtocol,
    Workload,
};
use serde::{Serialize, Serializer};

/// A workload; what has its default value is left out, as ztunnel leaves it out.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct View<'a> {
    workload_ips: &'a [std::net::IpAddr],
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<Gateway<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network_gateway: Option<Gateway<'a>>,
    protocol: &'static str,
    network_mode: &'static str,
    uid: &'a str,
    name: &'a str,
    namespace: &'a str,
    trust_domain: &'a str,
    service_account: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    network: &'a str,
    workload_name: &'a str,
    workload_type: &'static str,
    canonical_name: &'a str,
    canonical_revision: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    hostname: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    node: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    native_tunnel: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    application_tunnel: Option<Tunnel>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    authorization_policies: &'a [PolicyKey],
    status: &'static str,
    cluster_id: &'a str,
    #[serde(skip_serializing_if = "Locality::is_empty")]
    locality: Locality<'a>,
    #[serde(skip_serializing_if = "<[_]>::is_empty", serialize_with = "services")]
    services: &'a [Membership],
    capacity: u32,
}

#[derive(Serialize)]
struct Locality<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    region: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    zone: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    subzone: &'a str,
}

impl Locality<'_> {
    fn is_empty(&self) -> bool {
        self.region.is_empty() && self.zone.is_empty() && self.subzone.is_empty()
    }
}

impl<'a> From<&'a Workload> for View<'a> {
    fn from(w: &'a Workload) -> Self {
        let [region, zone, subzone] = &w.locality;
        Self {
            workload_ips: &w.addresses,
            waypoint: w.waypoint.as_ref().map(Gateway::from),
            network_gateway: w.network_gateway.as_ref().map(Gateway::from),
            protocol: match w.tunnel {
                TunnelProtocol::Hbone => "HBONE",
                TunnelProtocol::None => "TCP",
            },
            network_mode: match w.network_mode {
                NetworkMode::Standard => "Standard",
                NetworkMode::HostNetwork => "HostNetwork",
            },
            uid: w.uid.as_str(),
            name: &w.name,
            namespace: &w.namespace,
            trust_domain: w.trust_domain.as_str(),
            service_account: &w.service_account,
            network: w.network.as_str(),
            workload_name: &w.workload_name,
            workload_type: w.kind.as_str(),
            canonical_name: &w.canonical_name,
            canonical_revision: &w.canonical_revision,
            hostname: &w.hostname,
            node: &w.node,
            native_tunnel: w.native_tunnel.then_some(true),
            application_tunnel: w.application_tunnel.as_ref().map(Tunnel::from),
            authorization_policies: &w.policies,
            status: health(w.health),
            cluster_id: &w.cluster,
            locality: Locality { region, zone, subzone },
            services: &w.services,
            capacity: w.capacity,
        }
    }
}

pub(super) fn health(health: Health) -> &'static str {
    match health {
        Health::Healthy => "Healthy",
        Health::Unhealthy => "Unhealthy",
    }
}

/// A waypoint or a network gateway.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Gateway<'a> {
    #[serde(serialize_with = "target")]
    destination: &'a GatewayTarget,
    hbone_mtls_port: u16,
}

impl<'a> From<&'a GatewayAddress> for Gateway<'a> {
    fn from(gateway: &'a GatewayAddress) -> Self {
        Self {
            destination: &gateway.target,
            hbone_mtls_port: gateway.hbone_port,
        }
    }
}

#[derive(Serialize)]
struct Tunnel {
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

impl From<&ApplicationTunnel> for Tunnel {
    fn from(tunnel: &ApplicationTunnel) -> Self {
        Self {
            protocol: match tunnel.protocol {
                ApplicationProtocol::None => "NONE",
                ApplicationProtocol::Proxy => "PROXY",
            },
            port: tunnel.port,
        }
    }
}

fn services<S: Serializer>(list: &&[Membership], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(list.iter().map(|membership| membership.service.to_string()))
}

/// `NETWORK/IP` or `NAMESPACE/HOSTNAME`.
fn target<S: Serializer>(target: &&GatewayTarget, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(target)
}
