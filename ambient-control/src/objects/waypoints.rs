//! Gateways: waypoints by name and by address, and the gateways of other networks.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ambient_authz::kubernetes::Labels;
use ambient_core::{
    ApplicationProtocol, ApplicationTunnel, GatewayAddress, GatewayTarget, NamespacedHostname, Network, NetworkAddress, Workload,
};

use super::{
    Name,
    kinds::{Bare, Gateway, Invalid, Metadata},
    selection::LabelSelector,
};

/// Every gateway.
#[derive(Debug, Default)]
pub(super) struct Gateways {
    all: BTreeMap<Name, Known>,
    classes: BTreeMap<Arc<str>, Bare>,
    /// Waypoints by the service that they are.
    at_host: BTreeMap<NamespacedHostname, BTreeSet<Name>>,
    at_ip: BTreeMap<IpAddr, BTreeSet<Name>>,
    /// Gateways of other networks, by the network.
    networks: BTreeMap<Network, BTreeSet<Name>>,
}

#[derive(Debug)]
struct Known {
    object: Box<Gateway>,
    waypoint: Option<Waypoint>,
    remotes: Vec<Remote>,
}

/// A gateway that services and workloads may use as their waypoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waypoint {
    pub(super) place: Place,
    serves: Serves,
    /// How it is handed what comes for it, where that is not as HBONE.
    pub(super) binding: Option<ApplicationTunnel>,
    from: From,
}

/// Where a gateway is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Host(NamespacedHostname),
    Ip(IpAddr),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum From {
    Same,
    All,
    Selector(LabelSelector),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Serves {
    services: bool,
    workloads: bool,
}

/// What a waypoint speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Traffic {
    Service,
    Workload,
}

/// The gateway of another network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remote {
    pub(super) network: Network,
    place: Place,
    port: u16,
    namespace: Arc<str>,
    account: Arc<str>,
}

/// What has changed with a gateway.
#[derive(Debug, Default)]
pub(super) struct Moved {
    /// Services that are, or were, a waypoint.
    pub(super) hosts: Vec<NamespacedHostname>,
    /// Whether the address of a waypoint is, or was, an address and no name.
    pub(super) ip: bool,
    /// Networks whose gateways are others.
    pub(super) networks: Vec<Network>,
}

impl Gateways {
    pub(super) fn waypoint(&self, name: &Name) -> Option<&Waypoint> {
        self.all.get(name)?.waypoint.as_ref()
    }

    /// Whose own service a name is.
    pub(super) fn at_host(&self, host: &NamespacedHostname) -> impl Iterator<Item = &Name> {
        self.at_host.get(host).into_iter().flatten()
    }

    /// The gateways of other networks that an object is.
    pub(super) fn remotes(&self, name: &Name) -> &[Remote] {
        self.all.get(name).map_or(&[], |known| &known.remotes)
    }

    /// Where a network is reached from outside: the first of its gateways.
    pub(super) fn of_network(&self, network: &Network) -> Option<GatewayAddress> {
        let first = self.networks.get(network)?.first()?;
        let remote = self.remotes(first).iter().find(|remote| remote.network == *network)?;
        Some(GatewayAddress {
            target: remote.place.target(network),
            hbone_port: remote.port,
        })
    }

    /// The first of the Gateways that are this very gateway of a network.
    pub(super) fn first_with(&self, remote: &Remote) -> Option<&Name> {
        let mut names = self.networks.get(&remote.network)?.iter();
        let same = |other: &Remote| other.place == remote.place && other.port == remote.port;
        names.find(|name| self.remotes(name).iter().any(same))
    }

    /// The waypoint that a service is, by its name or one of its addresses.
    pub(super) fn that_is<'a>(&'a self, service: &NamespacedHostname, ips: impl Iterator<Item = IpAddr>) -> Option<&'a Name> {
        let by_name = self.at_host.get(service).and_then(BTreeSet::first);
        by_name.or_else(|| self.at_ip(&service.namespace, ips))
    }

    /// The waypoint that has one of some addresses. It is looked for where its own service is.
    pub(super) fn at_ip(&self, namespace: &str, mut ips: impl Iterator<Item = IpAddr>) -> Option<&Name> {
        if self.at_ip.is_empty() {
            return None;
        }
        ips.find_map(|ip| self.at_ip.get(&ip)?.iter().find(|(space, _)| **space == *namespace))
    }

    /// Puts a gateway in, or takes it out; `None` where that changes nothing.
    pub(super) fn put(&mut self, name: &Name, object: Option<Box<Gateway>>) -> Option<Moved> {
        let before = self.all.remove(name);
        let now = object.map(|object| {
            let class = self.classes.get(object.spec.gateway_class_name.as_str());
            Known {
                waypoint: Waypoint::of(&object, class),
                remotes: remotes(&object),
                object,
            }
        });
        let same = |a: &Known, b: &Known| a.waypoint == b.waypoint && a.remotes == b.remotes;
        let unchanged = matches!((&before, &now), (Some(before), Some(now)) if same(before, now));
        let mut moved = Moved::default();
        if let Some(before) = &before {
            self.index(name, before, false, &mut moved);
        }
        if let Some(now) = now {
            self.index(name, &now, true, &mut moved);
            self.all.insert(name.clone(), now);
        }
        (!unchanged).then_some(moved)
    }

    /// Puts a class in, or takes it out; the gateways of it are to be put again.
    pub(super) fn put_class(&mut self, name: &Arc<str>, class: Option<Bare>) -> Vec<(Name, Box<Gateway>)> {
        match class {
            Some(class) => drop(self.classes.insert(name.clone(), class)),
            None => drop(self.classes.remove(name)),
        }
        let of_class = self.all.iter().filter(|(_, known)| *known.object.spec.gateway_class_name == **name);
        of_class.map(|(name, known)| (name.clone(), known.object.clone())).collect()
    }

    fn index(&mut self, name: &Name, known: &Known, there: bool, moved: &mut Moved) {
        match known.waypoint.as_ref().map(|waypoint| &waypoint.place) {
            Some(Place::Host(host)) => {
                mark(&mut self.at_host, host.clone(), name, there);
                moved.hosts.push(host.clone());
            }
            Some(Place::Ip(ip)) => {
                mark(&mut self.at_ip, *ip, name, there);
                moved.ip = true;
            }
            None => {}
        }
        for remote in &known.remotes {
            mark(&mut self.networks, remote.network.clone(), name, there);
            moved.networks.push(remote.network.clone());
        }
    }
}

fn mark<K: Ord>(index: &mut BTreeMap<K, BTreeSet<Name>>, key: K, name: &Name, there: bool) {
    if there {
        index.entry(key).or_default().insert(name.clone());
    } else if let Some(names) = index.get_mut(&key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(&key);
        }
    }
}

impl Waypoint {
    /// The waypoint that a gateway is; `None` while nobody has said where it is reached.
    fn of(object: &Gateway, class: Option<&Bare>) -> Option<Self> {
        let meta = &object.metadata;
        let reached = &object.status.addresses;
        let host = reached.iter().find(|a| a.is_hostname());
        let host = host.map(|a| Place::Host(NamespacedHostname::new(meta.namespace(), &a.value)));
        let ip = || reached.iter().filter(|a| a.is_ip()).find_map(|a| a.value.parse::<IpAddr>().ok());
        let place = host.or_else(|| ip().map(|ip| Place::Ip(ip.to_canonical())))?;
        let said = |key: &str| meta.label(key).or_else(|| class?.metadata.label(key));
        let binding = meta
            .annotation(INBOUND_BINDING)
            .or_else(|| class?.metadata.annotation(INBOUND_BINDING))
            .and_then(|text| binding(text).ok());
        Some(Self {
            serves: Serves::read(said(WAYPOINT_FOR).unwrap_or("service")),
            from: From::of(object, binding.as_ref()),
            binding,
            place,
        })
    }

    pub(super) fn address(&self, network: &Network) -> GatewayAddress {
        GatewayAddress {
            target: self.place.target(network),
            hbone_port: HBONE_PORT,
        }
    }

    pub(super) fn serves(&self, traffic: Traffic) -> bool {
        match traffic {
            Traffic::Service => self.serves.services,
            Traffic::Workload => self.serves.workloads,
        }
    }

    /// Whether what is in a namespace may use it.
    pub(super) fn admits(&self, name: &Name, namespace: &str, labels: &Labels) -> bool {
        match &self.from {
            From::All => true,
            From::Same => *name.0 == *namespace,
            From::Selector(selector) => selector.selects(labels),
        }
    }
}

impl Place {
    fn target(&self, network: &Network) -> GatewayTarget {
        match self {
            Self::Host(name) => GatewayTarget::Hostname(name.clone()),
            Self::Ip(ip) => GatewayTarget::Address(NetworkAddress::new(network.clone(), *ip)),
        }
    }
}

impl Serves {
    fn read(text: &str) -> Self {
        Self {
            services: matches!(text, "service" | "all"),
            workloads: matches!(text, "workload" | "all"),
        }
    }
}

impl From {
    /// What the listener says that others come in by: the one that it is bound to, else the one for HBONE.
    fn of(object: &Gateway, binding: Option<&ApplicationTunnel>) -> Self {
        let listeners = &object.spec.listeners;
        let bound = listeners.iter().find(|l| match binding {
            Some(ApplicationTunnel { port: Some(port), .. }) => l.port == *port,
            Some(ApplicationTunnel {
                protocol: ApplicationProtocol::Proxy,
                ..
            }) => l.protocol == "istio.io/PROXY",
            _ => false,
        });
        let hbone = || listeners.iter().find(|l| l.protocol == "HBONE" && l.port == HBONE_PORT);
        let Some(listener) = bound.or_else(hbone) else { return Self::Same };
        let namespaces = &listener.allowed_routes.namespaces;
        match (namespaces.from.as_deref(), &namespaces.selector) {
            (Some("All"), _) => Self::All,
            (Some("Selector"), Some(selector)) => Self::Selector(selector.clone()),
            _ => Self::Same,
        }
    }
}

impl Remote {
    /// The workload that stands for it.
    pub(super) fn workload(&self) -> Workload {
        let address = match &self.place {
            Place::Host(host) => host.hostname.to_string(),
            Place::Ip(ip) => ip.to_string(),
        };
        let uid = format!("NetworkGateway/{}/{address}/{}", self.network.as_str(), self.port);
        let mut workload = Workload::new(&uid, &self.namespace, &uid);
        workload.service_account = self.account.clone();
        workload.network = self.network.clone();
        match &self.place {
            Place::Host(host) => workload.hostname = host.hostname.clone(),
            Place::Ip(ip) => workload.addresses.push(*ip),
        }
        workload
    }
}

/// The gateways of another network that an object of the class `istio-remote` is.
fn remotes(object: &Gateway) -> Vec<Remote> {
    let meta = &object.metadata;
    let network = meta.label(NETWORK).filter(|network| !network.is_empty());
    let listener = object.spec.listeners.iter().find(|l| l.protocol == "HBONE");
    let (Some(network), Some(listener), "istio-remote") = (network, listener, object.spec.gateway_class_name.as_str()) else {
        return Vec::new();
    };
    let account = meta.annotation(SERVICE_ACCOUNT).filter(|account| !account.is_empty());
    let account = account.map_or_else(|| format!("{}-istio-remote", meta.name), str::to_owned);
    let reached = object.status.addresses.iter().filter_map(|a| match a.value.parse::<IpAddr>() {
        Ok(ip) if a.is_ip() => Some(Place::Ip(ip.to_canonical())),
        _ if a.is_hostname() => Some(Place::Host(NamespacedHostname::new(meta.namespace(), &a.value))),
        _ => None,
    });
    reached
        .map(|place| Remote {
            network: network.into(),
            place,
            port: listener.port,
            namespace: meta.namespace().into(),
            account: account.as_str().into(),
        })
        .collect()
}

/// `PROTOCOL` or `PROTOCOL/PORT`.
pub(super) fn binding(text: &str) -> Result<ApplicationTunnel, String> {
    let (protocol, port) = text.split_once('/').map_or((text, None), |(protocol, port)| (protocol, Some(port)));
    let wrong = || format!("{text:?} is not followed: NONE or PROXY is wanted, or PROXY/15088");
    let protocol = match protocol {
        "NONE" => ApplicationProtocol::None,
        "PROXY" => ApplicationProtocol::Proxy,
        _ => return Err(wrong()),
    };
    let port: Option<u16> = port.map(|port| port.parse().map_err(|_| wrong())).transpose()?;
    Ok(ApplicationTunnel {
        protocol,
        port: port.filter(|port| *port != 0),
    })
}

/// What is wrong with what a gateway says of itself, and is not followed.
pub(super) fn faults(object: &Gateway) -> Vec<Invalid> {
    let meta = &object.metadata;
    let mut faults = Vec::new();
    if let Some(Err(why)) = meta.annotation(INBOUND_BINDING).map(binding) {
        faults.push(Invalid::new(format!("metadata.annotations[{INBOUND_BINDING}]"), why));
    }
    if let Some(text) = meta.label(WAYPOINT_FOR)
        && !matches!(text, "service" | "workload" | "all" | "none")
    {
        let why = format!("{text:?} is not known: service, workload, all or none is wanted; it speaks for nothing");
        faults.push(Invalid::new(format!("metadata.labels[{WAYPOINT_FOR}]"), why));
    }
    faults
}

impl Gateways {
    pub(super) fn object(&self, name: &Name) -> Option<&Gateway> {
        self.all.get(name).map(|known| &*known.object)
    }

    #[cfg(any(test, feature = "fuzz"))]
    pub(super) fn is_empty(&self) -> bool {
        let none = self.all.is_empty() && self.classes.is_empty();
        none && self.at_host.is_empty() && self.at_ip.is_empty() && self.networks.is_empty()
    }
}

/// What labels say of a waypoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Unsaid,
    None,
    Of(Name),
}

/// Which waypoint labels name: of an object or of a namespace, for what is in a namespace.
pub(super) fn used(labels: &Labels, namespace: &str, [name, of]: [&str; 2]) -> Use {
    match labels.get(name).map(String::as_str) {
        None => Use::Unsaid,
        Some("none") => Use::None,
        Some(name) => Use::Of((labels.get(of).map_or(namespace, String::as_str).into(), name.into())),
    }
}

/// Whether a service is one that Istio has made for a waypoint or an east-west gateway.
pub(super) fn is_managed(meta: &Metadata) -> bool {
    matches!(
        meta.label("gateway.istio.io/managed"),
        Some("istio.io-mesh-controller" | "istio.io-eastwest-controller")
    )
}

/// The label that names a waypoint, and the one that names its namespace.
pub(super) const USE_WAYPOINT: [&str; 2] = ["istio.io/use-waypoint", "istio.io/use-waypoint-namespace"];
/// The same for a waypoint that is on trial beside it.
pub(super) const CANARY: [&str; 2] = ["istio.io/use-waypoint-canary", "istio.io/use-waypoint-canary-namespace"];
/// The annotation with its share, of a hundred.
pub(super) const CANARY_WEIGHT: &str = "istio.io/use-waypoint-canary-weight";
/// The label of a pod that names the gateway it is an instance of.
pub(super) const INSTANCE_OF: &str = "gateway.networking.k8s.io/gateway-name";
/// The label that names a network.
pub(super) const NETWORK: &str = "topology.istio.io/network";

const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
const INBOUND_BINDING: &str = "ambient.istio.io/waypoint-inbound-binding";
const SERVICE_ACCOUNT: &str = "gateway.istio.io/service-account";
const HBONE_PORT: u16 = 15008;
