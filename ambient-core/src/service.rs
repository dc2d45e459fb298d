//! Services: names and virtual addresses for sets of workloads.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

use crate::{Health, NetworkAddress, WorkloadUid};

/// The name of a service: its namespace and its DNS name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedHostname {
    /// The Kubernetes namespace.
    pub namespace: Arc<str>,
    /// The DNS name, such as `web.shop.svc.cluster.local`.
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

/// A service of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: NamespacedHostname,
    /// Its virtual addresses; none for a headless service.
    pub vips: Vec<NetworkAddress>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// The workloads behind it.
    pub endpoints: Endpoints,
    /// The proxy that speaks for it, if it has one.
    pub waypoint: Option<GatewayAddress>,
}

impl Service {
    /// A service without addresses, ports or endpoints.
    pub fn new(namespace: &str, hostname: &str) -> Self {
        Self {
            name: NamespacedHostname::new(namespace, hostname),
            vips: Vec::new(),
            ports: Vec::new(),
            endpoints: Endpoints::default(),
            waypoint: None,
        }
    }

    /// The port of the service with a number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|p| p.port == number)
    }

    /// The Kubernetes name: the first label of the DNS name.
    pub fn short_name(&self) -> &str {
        self.name.hostname.split('.').next().unwrap_or_default()
    }
}

/// A port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The port that clients name.
    pub port: u16,
    /// The port at the endpoints; 0 where each endpoint names its own.
    pub target: u16,
}

/// The endpoints of a service, by workload; shared between snapshots.
pub type Endpoints = Arc<BTreeMap<WorkloadUid, Endpoint>>;

/// A workload behind a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Service port to the endpoint's own port, where they differ from the service's.
    pub ports: BTreeMap<u16, u16>,
    /// Whether it may be chosen.
    pub health: Health,
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
    /// A service's name.
    Hostname(NamespacedHostname),
}
