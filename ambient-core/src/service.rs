//! Services: names and virtual addresses for sets of workloads.

use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr, sync::Arc};

use crate::{Health, Identity, NetworkAddress, NetworkBlock, WorkloadUid};

/// The name of a service: its namespace and its DNS name.
///
/// It is made by [`NamespacedHostname::new`] or [`from_shared`](NamespacedHostname::from_shared) alone, as what is looked up
/// by it is found in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct NamespacedHostname {
    /// The Kubernetes namespace.
    pub namespace: Arc<str>,
    /// The DNS name in lower case, such as `web.shop.svc.cluster.local`.
    pub hostname: Arc<str>,
}

impl NamespacedHostname {
    /// A name from its parts; the DNS name in lower case.
    pub fn new(namespace: &str, hostname: &str) -> Self {
        Self {
            namespace: namespace.into(),
            hostname: hostname.to_ascii_lowercase().into(),
        }
    }

    /// A name from parts that are shared; the DNS name in lower case, the same text if it is so already.
    pub fn from_shared(namespace: Arc<str>, hostname: Arc<str>) -> Self {
        let hostname = match hostname.bytes().any(|b| b.is_ascii_uppercase()) {
            true => hostname.to_ascii_lowercase().into(),
            false => hostname,
        };
        Self { namespace, hostname }
    }
}

impl fmt::Display for NamespacedHostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

impl FromStr for NamespacedHostname {
    type Err = ();

    /// Reads `NAMESPACE/HOSTNAME`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (namespace, hostname) = text.split_once('/').ok_or(())?;
        Ok(Self::new(namespace, hostname))
    }
}

/// A service of the mesh. More may be known of one some day: [`Service::new`] and `..` stand for what is not said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: NamespacedHostname,
    /// Its Kubernetes name, or that of the resource that it comes from; empty where it is the first label of its DNS name.
    pub resource: Arc<str>,
    /// Its virtual addresses; none for a headless service.
    pub vips: Vec<NetworkAddress>,
    /// Whole blocks of virtual addresses.
    pub vip_blocks: Vec<NetworkBlock>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// The workloads behind it that do not name it [themselves](crate::Workload::services). All of them are told by
    /// [`Mesh::endpoints`](crate::Mesh::endpoints).
    pub endpoints: Endpoints,
    /// Identities that its endpoints may prove besides their own.
    pub subject_alt_names: Vec<Identity>,
    /// The proxy that speaks for it, if it has one.
    pub waypoint: Option<GatewayAddress>,
    /// Proxies that speak for it, each in proportion to its weight; where there are none, or none has a weight, the one
    /// [`waypoint`](Self::waypoint).
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// Whether the mesh's ingress gateways go through the waypoint too; the data plane of nodes has no use for it.
    pub ingress_use_waypoint: bool,
    /// Which endpoints are preferred; none is as [`LoadBalancer::default`].
    pub load_balancer: Option<LoadBalancer>,
    /// The families of address that its endpoints are reached in.
    pub ip_families: IpFamilies,
    /// Whether it is what its name means everywhere, as a Service of Kubernetes is and a ServiceEntry need not be: it comes
    /// before others of the same address or name.
    pub canonical: bool,
    /// Who sees it.
    pub visibility: Visibility,
}

impl Service {
    /// A service without addresses, ports or endpoints, that everybody sees.
    pub fn new(namespace: &str, hostname: &str) -> Self {
        Self {
            name: NamespacedHostname::new(namespace, hostname),
            resource: "".into(),
            vips: Vec::new(),
            vip_blocks: Vec::new(),
            ports: Vec::new(),
            endpoints: Endpoints::default(),
            subject_alt_names: Vec::new(),
            waypoint: None,
            weighted_waypoints: Vec::new(),
            ingress_use_waypoint: false,
            load_balancer: None,
            ip_families: IpFamilies::default(),
            canonical: false,
            visibility: Visibility::default(),
        }
    }

    /// Every waypoint that it names.
    pub(crate) fn waypoints(&self) -> impl Iterator<Item = &GatewayAddress> {
        let weighted = self.weighted_waypoints.iter().map(|weighted| &weighted.destination);
        weighted.chain(&self.waypoint)
    }

    /// The port of the service with a number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|p| p.port == number)
    }

    /// The Kubernetes name: that of its resource, else the first label of the DNS name.
    pub fn short_name(&self) -> &str {
        match &*self.resource {
            "" => self.name.hostname.split('.').next().unwrap_or_default(),
            resource => resource,
        }
    }

    /// Whether somebody in a namespace sees it.
    pub fn is_visible_from(&self, namespace: &str) -> bool {
        self.visibility == Visibility::Public || *self.name.namespace == *namespace
    }
}

/// A port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// The port that clients name.
    pub port: u16,
    /// The port at the endpoints; 0 where each endpoint names its own.
    pub target: u16,
}

/// The endpoints that a service lists, by workload; shared between snapshots.
pub type Endpoints = Arc<BTreeMap<WorkloadUid, Endpoint>>;

/// A workload behind a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Service port to the endpoint's own port, where they differ from the service's.
    pub ports: PortMap,
    /// Whether it may be chosen.
    pub health: Health,
    /// Its weight among the others; 0 is never chosen.
    pub capacity: u32,
}

impl Default for Endpoint {
    /// Healthy, on the service's own ports, of weight 1.
    fn default() -> Self {
        Self {
            ports: PortMap::default(),
            health: Health::default(),
            capacity: 1,
        }
    }
}

/// Ports of a service and the ports at an endpoint that they mean. Cloning is one reference count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortMap(pub(crate) Arc<[(u16, u16)]>);

impl PortMap {
    /// The endpoint's port for a port of the service.
    pub fn get(&self, port: u16) -> Option<u16> {
        let at = self.0.binary_search_by_key(&port, |(port, _)| *port).ok()?;
        Some(self.0[at].1)
    }

    /// Every pair, in the order of the service's ports.
    pub fn iter(&self) -> impl Iterator<Item = (u16, u16)> {
        self.0.iter().copied()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(u16, u16)> for PortMap {
    /// Of two pairs of one port the last counts.
    fn from_iter<I: IntoIterator<Item = (u16, u16)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect())
    }
}

/// Where a waypoint or a network gateway stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GatewayAddress {
    /// The address or name.
    pub target: GatewayTarget,
    /// The port that speaks HBONE there.
    pub hbone_port: u16,
}

/// The address or name of a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GatewayTarget {
    /// A workload's address or a service's.
    Address(NetworkAddress),
    /// The name of a service, or of a workload that has one.
    Hostname(NamespacedHostname),
}

impl fmt::Display for GatewayTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Hostname(name) => name.fmt(f),
        }
    }
}

/// One of several waypoints of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WeightedWaypoint {
    /// Where it stands.
    pub destination: GatewayAddress,
    /// Its share, in proportion to the sum of all.
    pub weight: u32,
}

/// Which endpoints of a service are preferred (`LoadBalancing` of Istio's workload API).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LoadBalancer {
    /// What an endpoint should share with the client, the most important first.
    pub preferences: Vec<Scope>,
    /// What follows where it does not.
    pub mode: BalancerMode,
    /// Whether health counts.
    pub health_policy: HealthPolicy,
}

/// Something that a client and an endpoint may share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The region.
    Region,
    /// The zone.
    Zone,
    /// The subzone.
    Subzone,
    /// The node.
    Node,
    /// The cluster.
    Cluster,
    /// The network.
    Network,
}

/// What the preferences of a [`LoadBalancer`] mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BalancerMode {
    /// Nothing: all endpoints are equal.
    #[default]
    Standard,
    /// Only an endpoint that shares all of them is chosen.
    Strict,
    /// Those that share the most of them, from the first on, are chosen.
    Failover,
    /// No endpoint is chosen: what goes to the virtual address goes there.
    Passthrough,
}

/// Whether the health of endpoints counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HealthPolicy {
    /// Only healthy ones are chosen.
    #[default]
    OnlyHealthy,
    /// It does not count.
    AllowAll,
}

/// The families of address that a service's endpoints are reached in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IpFamilies {
    /// Either; nothing is said of it.
    #[default]
    Automatic,
    /// IPv4 only.
    Ipv4Only,
    /// IPv6 only.
    Ipv6Only,
    /// IPv4 and IPv6.
    Dual,
}

impl IpFamilies {
    /// Whether an address is of them.
    pub fn accepts(self, ip: IpAddr) -> bool {
        match self {
            Self::Automatic | Self::Dual => true,
            Self::Ipv4Only => ip.is_ipv4(),
            Self::Ipv6Only => ip.is_ipv6(),
        }
    }
}

/// Who sees a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Visibility {
    /// Everybody.
    #[default]
    Public,
    /// Its own namespace.
    Namespace,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_however_they_are_made() {
        let written = NamespacedHostname::new("shop", "Web.Shop");
        assert_eq!(written, NamespacedHostname::from_shared("shop".into(), "WEB.shop".into()));
        assert_eq!("shop/web.SHOP".parse(), Ok(written));
        let shared: Arc<str> = "web.shop".into();
        assert!(Arc::ptr_eq(
            &NamespacedHostname::from_shared("shop".into(), shared.clone()).hostname,
            &shared
        ));
    }
}
