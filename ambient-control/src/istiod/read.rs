//! What istiod's resources mean: from the bytes of one to one change, or to the name of the field that cannot be read.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr, sync::Arc};

use ambient_authz::{policy, wire as authz};
use ambient_core::{
    ApplicationProtocol, ApplicationTunnel, BalancerMode, Capture, GatewayAddress, GatewayTarget, Health, HealthPolicy, Identity,
    IpFamilies, LoadBalancer, Membership, NamespacedHostname, Network, NetworkAddress, NetworkBlock, NetworkMode, PolicyKey, Scope,
    Service, ServicePort, TrustBundles, TrustDomain, TunnelProtocol, Visibility, WeightedWaypoint, Workload, WorkloadKind, WorkloadUid,
    mesh::Update,
};
use prost::Message;

use crate::{
    Change,
    wire::{
        ambient::control::v1 as own,
        istio::{
            security as policies,
            workload::{self as wire, address, gateway_address},
        },
    },
};

#[cfg(test)]
mod tests;

/// The name of the extension that says more of a pod: of this project's own, and passed over by whoever does not know it.
pub(crate) const POD: &str = "ambient.control.v1.Pod";

/// The name of the extension that says that a policy stands for what cannot be read; the same holds of it.
pub(crate) const REFUSAL: &str = "ambient.control.v1.Refusal";

/// The services that are kept of what is refused.
const MOST_SERVICES: usize = 64;

/// The longest text of why a resource is refused, in bytes.
pub(crate) const WHY: usize = 1024;

/// What a resource is known by in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Workload(WorkloadUid),
    /// Apart: most of what is known are workloads.
    Service(Box<NamespacedHostname>),
    Policy(PolicyKey),
    Trust(TrustDomain),
}

/// A resource that was read.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) key: Key,
    pub(crate) change: Change,
}

/// A resource that cannot be read.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Which field, and why.
    pub(crate) why: String,
    /// What stands in the place of a policy.
    pub(crate) unreadable: Option<Change>,
    /// Of a workload: the services that it is an endpoint of, and its node, as far as it says.
    pub(crate) endpoint: Option<Endpoint>,
}

/// Why a workload is sent to who has not asked for it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) services: Vec<NamespacedHostname>,
    pub(crate) node: String,
}

impl Refused {
    /// The policy that it is.
    pub(crate) fn policy(&self) -> Option<PolicyKey> {
        match &self.unreadable {
            Some(Change::Policy(update)) => Some(update.key().clone()),
            _ => None,
        }
    }
}

impl<T: Into<String>> From<T> for Refused {
    fn from(why: T) -> Self {
        Self {
            why: why.into(),
            unreadable: None,
            endpoint: None,
        }
    }
}

/// As much of a text of somebody else's as is told, or is kept to be told.
pub(crate) fn brief(text: &str, most: usize) -> Cow<'_, str> {
    match text.len() <= most {
        true => text.into(),
        false => {
            let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            format!("{}…", &text[..end]).into()
        }
    }
}

/// Reads an `istio.workload.Address`. A resource is taken back by its name: one that bears another's could never be.
pub(crate) fn address(name: &str, body: &[u8]) -> Result<Read, Refused> {
    read_address(name, body).map_err(|refused| Refused {
        endpoint: endpoint(body),
        ..refused
    })
}

/// What can be read of a workload that cannot be read as a whole.
fn endpoint(body: &[u8]) -> Option<Endpoint> {
    let Some(address::Type::Workload(sent)) = wire::Address::decode(body).ok()?.r#type else {
        return None;
    };
    let services = sent.services.keys().filter_map(|service| service.parse().ok());
    Some(Endpoint {
        services: services.take(MOST_SERVICES).collect(),
        node: sent.node,
    })
}

fn read_address(name: &str, body: &[u8]) -> Result<Read, Refused> {
    let sent = wire::Address::decode(body).map_err(|e| format!("no istio.workload.Address: {e}"))?;
    match sent.r#type {
        Some(address::Type::Workload(sent)) => {
            let workload = workload(sent)?;
            // Two names that differ in case would be one workload, and the end of one that of the other.
            if name != workload.uid.as_str() {
                return Err(format!("it is {} by what it says of itself", workload.uid).into());
            }
            Ok(Read {
                key: Key::Workload(workload.uid.clone()),
                change: Change::Mesh(Update::Workload(workload.into())),
            })
        }
        Some(address::Type::Service(sent)) => {
            let said = format!("{}/{}", sent.namespace, sent.hostname);
            let service = service(sent)?;
            if name != said {
                return Err(format!("it is {said} by what it says of itself").into());
            }
            Ok(Read {
                key: Key::Service(service.name.clone().into()),
                change: Change::Mesh(Update::Service(service.into())),
            })
        }
        None => Err("type: neither a workload nor a service".into()),
    }
}

/// Reads an `ambient.control.v1.Trust`: all of it or nothing, for a root or a list that is left out would say something else.
pub(crate) fn trust(name: &str, body: &[u8]) -> Result<Read, Refused> {
    let sent = own::Trust::decode(body).map_err(|e| format!("no ambient.control.v1.Trust: {e}"))?;
    let domain: TrustDomain = name.parse().map_err(|e| format!("its name: {e}"))?;
    if sent.roots.is_empty() {
        return Err("roots: there is none".into());
    }
    let mut bundles = TrustBundles::default();
    for (at, root) in sent.roots.into_iter().enumerate() {
        let (_, read) = x509_parser::parse_x509_certificate(&root).map_err(|e| format!("roots[{at}]: {e}"))?;
        if !read.is_ca() {
            return Err(format!("roots[{at}]: it is not the certificate of an authority").into());
        }
        bundles.add(domain.clone(), root);
    }
    for (at, crl) in sent.crls.into_iter().enumerate() {
        ambient_tls::read_crls(&crl).map_err(|e| format!("crls[{at}]: {e}"))?;
        bundles.add_crl(domain.clone(), crl);
    }
    Ok(Read {
        key: Key::Trust(domain),
        change: Change::Trust(bundles.into()),
    })
}

/// Reads an `istio.security.Authorization`.
pub(crate) fn authorization(name: &str, body: &[u8], settings: &authz::Settings) -> Result<Read, Refused> {
    // What it was meant to apply to is not known where nothing of it can be read: its name says the namespace.
    let (namespace, _) = name.split_once('/').unwrap_or(("", name));
    let of_mesh = namespace.is_empty() || *namespace == *settings.root_namespace;
    let unreadable = |why: String, of_mesh: bool| {
        let why = brief(&why, WHY).into_owned();
        let unreadable = policy::Unreadable {
            key: name.into(),
            namespace: namespace.into(),
            scope: if of_mesh {
                ambient_authz::Scope::Global
            } else {
                ambient_authz::Scope::Namespace
            },
            only_new: false,
            dry_run: false,
            error: why.clone(),
        };
        Refused {
            why,
            unreadable: Some(Change::Policy(policy::Update::Unreadable(unreadable.into()))),
            endpoint: None,
        }
    };
    let sent = policies::Authorization::decode(body).map_err(|e| unreadable(format!("no istio.security.Authorization: {e}"), of_mesh))?;
    let refusal = refusal(&sent.extensions);
    let sent = plain(sent);
    if format!("{}/{}", sent.namespace, sent.name) != name {
        // It may be either of the two, and apply wherever one of them would.
        let elsewhere = sent.namespace != namespace || sent.scope == policies::Scope::Global as i32;
        let why = format!("it is {}/{} by what it says of itself", sent.namespace, sent.name);
        return Err(unreadable(why, of_mesh || elsewhere));
    }
    match authz::read(&sent, settings) {
        Ok(policy) => Ok(Read {
            key: Key::Policy(policy.key.clone()),
            change: Change::Policy(match refusal {
                Some(refusal) => policy::Update::Unreadable(Arc::new(policy::Unreadable {
                    key: policy.key,
                    namespace: policy.namespace,
                    scope: policy.scope,
                    only_new: refusal.only_new,
                    dry_run: policy.dry_run,
                    error: brief(&refusal.error, WHY).into(),
                })),
                None => policy::Update::Set(policy.into()),
            }),
        }),
        Err(error) => Err(Refused {
            why: error.to_string(),
            unreadable: Some(Change::Policy(policy::Update::Unreadable(error.unreadable().into()))),
            endpoint: None,
        }),
    }
}

/// What the control plane cannot read either, and so refuses by this policy, where it is one that says so.
fn refusal(extensions: &[policies::Extension]) -> Option<own::Refusal> {
    let extension = extensions.iter().find(|extension| extension.name == REFUSAL)?;
    own::Refusal::decode(&*extension.config.as_ref()?.value).ok()
}

fn plain(sent: policies::Authorization) -> authz::Authorization {
    let texts = |list: Vec<policies::StringMatch>| list.into_iter().map(text_match).collect();
    let blocks = |list: Vec<policies::Address>| {
        let block = |sent: policies::Address| authz::Address {
            address: sent.address,
            length: sent.length,
        };
        list.into_iter().map(block).collect()
    };
    let accounts = |list: Vec<policies::ServiceAccountMatch>| {
        let account = |sent: policies::ServiceAccountMatch| authz::ServiceAccount {
            namespace: sent.namespace,
            service_account: sent.service_account,
        };
        list.into_iter().map(account).collect()
    };
    let one_match = |sent: policies::Match| authz::Match {
        namespaces: texts(sent.namespaces),
        not_namespaces: texts(sent.not_namespaces),
        principals: texts(sent.principals),
        not_principals: texts(sent.not_principals),
        source_ips: blocks(sent.source_ips),
        not_source_ips: blocks(sent.not_source_ips),
        destination_ips: blocks(sent.destination_ips),
        not_destination_ips: blocks(sent.not_destination_ips),
        destination_ports: sent.destination_ports,
        not_destination_ports: sent.not_destination_ports,
        service_accounts: accounts(sent.service_accounts),
        not_service_accounts: accounts(sent.not_service_accounts),
    };
    let clause = |sent: policies::Clause| authz::Clause {
        matches: sent.matches.into_iter().map(one_match).collect(),
    };
    let rule = |sent: policies::Rule| authz::Rule {
        clauses: sent.clauses.into_iter().map(clause).collect(),
    };
    authz::Authorization {
        name: sent.name,
        namespace: sent.namespace,
        scope: sent.scope,
        action: sent.action,
        rules: sent.rules.into_iter().map(rule).collect(),
        dry_run: sent.dry_run,
    }
}

fn text_match(sent: policies::StringMatch) -> authz::StringMatch {
    use policies::string_match::MatchType;
    match sent.match_type {
        Some(MatchType::Exact(text)) => authz::StringMatch::Exact(text),
        Some(MatchType::Prefix(text)) => authz::StringMatch::Prefix(text),
        Some(MatchType::Suffix(text)) => authz::StringMatch::Suffix(text),
        Some(MatchType::Presence(())) => authz::StringMatch::Presence,
        None => authz::StringMatch::Unset,
    }
}

fn workload(sent: wire::Workload) -> Result<Workload, String> {
    if sent.uid.is_empty() {
        return Err("uid: it is missing".into());
    }
    let network = Network::from(&*sent.network);
    let addresses = each(&sent.addresses, "addresses", |bytes| ip(bytes))?;
    let mut services = Vec::with_capacity(sent.services.len());
    // In the order of their names: a map of the wire has none, and what is equal should look equal.
    for (service, ports) in sent.services.into_iter().collect::<BTreeMap<_, _>>() {
        let at = format!("services[{service:?}]");
        services.push(Membership {
            service: service.parse().map_err(|()| format!("{at}: a NAMESPACE/HOSTNAME is wanted"))?,
            ports: each(&ports.ports, "ports", endpoint_port)
                .map_err(|why| format!("{at}.{why}"))?
                .into_iter()
                .flatten()
                .collect(),
        });
    }
    let locality = sent.locality.unwrap_or_default();
    let mut workload = Workload::new(&sent.uid, &sent.namespace, &sent.name);
    workload.addresses = addresses;
    workload.network = network;
    workload.tunnel = match known(sent.tunnel_protocol, "tunnel_protocol")? {
        wire::TunnelProtocol::None => TunnelProtocol::None,
        wire::TunnelProtocol::Hbone => TunnelProtocol::Hbone,
        other @ wire::TunnelProtocol::LegacyIstioMtls => {
            return Err(format!("tunnel_protocol: {} is not spoken here", other.as_str_name()));
        }
    };
    if !sent.trust_domain.is_empty() {
        workload.trust_domain = trust_domain(&sent.trust_domain)?;
    }
    if !sent.service_account.is_empty() {
        workload.service_account = sent.service_account.into();
    }
    workload.waypoint = optional(sent.waypoint, "waypoint", gateway)?;
    workload.network_gateway = optional(sent.network_gateway, "network_gateway", gateway)?;
    workload.node = sent.node.into();
    workload.canonical_name = sent.canonical_name.into();
    workload.canonical_revision = sent.canonical_revision.into();
    workload.kind = match known(sent.workload_type, "workload_type")? {
        wire::WorkloadType::Deployment => WorkloadKind::Deployment,
        wire::WorkloadType::Cronjob => WorkloadKind::CronJob,
        wire::WorkloadType::Pod => WorkloadKind::Pod,
        wire::WorkloadType::Job => WorkloadKind::Job,
    };
    workload.workload_name = sent.workload_name.into();
    workload.native_tunnel = sent.native_tunnel;
    workload.policies = sent.authorization_policies.into_iter().map(PolicyKey::from).collect();
    workload.health = match known(sent.status, "status")? {
        wire::WorkloadStatus::Healthy => Health::Healthy,
        wire::WorkloadStatus::Unhealthy => Health::Unhealthy,
    };
    if !sent.cluster_id.is_empty() {
        workload.cluster = sent.cluster_id.into();
    }
    workload.hostname = sent.hostname.to_ascii_lowercase().into();
    workload.application_tunnel = optional(sent.application_tunnel, "application_tunnel", application_tunnel)?;
    workload.locality = [locality.region, locality.zone, locality.subzone].map(Arc::from);
    workload.network_mode = match known(sent.network_mode, "network_mode")? {
        wire::NetworkMode::Standard => NetworkMode::Standard,
        wire::NetworkMode::HostNetwork => NetworkMode::HostNetwork,
    };
    workload.services = services;
    workload.capacity = sent.capacity.unwrap_or(1);
    workload.ambient = workload.tunnel == TunnelProtocol::Hbone || workload.native_tunnel;
    if let Some(pod) = pod(&sent.extensions) {
        workload.ambient = pod.ambient;
        workload.capture = capture(&pod);
        workload.has_run = !pod.nothing_has_run;
        workload.pod = Some(pod.uid.into());
    }
    Ok(workload)
}

/// What the control plane says of a workload's pod, where it is one that does.
fn pod(extensions: &[wire::Extension]) -> Option<own::Pod> {
    let extension = extensions.iter().find(|extension| extension.name == POD)?;
    let pod = own::Pod::decode(&*extension.config.as_ref()?.value).ok()?;
    (!pod.uid.is_empty()).then_some(pod)
}

/// How a pod wants to be captured; names that none can bear are left out, as the node itself would.
fn capture(pod: &own::Pod) -> Option<Arc<Capture>> {
    let capture = Capture {
        bypass_inbound: pod.bypass_inbound_capture,
        dns: pod.dns_capture,
        virtual_interfaces: pod.virtual_interfaces.iter().filter_map(|name| name.parse().ok()).collect(),
        ..Capture::default()
    };
    (!capture.is_default()).then(|| capture.into())
}

fn service(sent: wire::Service) -> Result<Service, String> {
    for (field, value) in [("namespace", &sent.namespace), ("hostname", &sent.hostname)] {
        if value.is_empty() {
            return Err(format!("{field}: it is missing"));
        }
    }
    let mut service = Service::new(&sent.namespace, &sent.hostname);
    service.resource = sent.name.into();
    for (at, address) in sent.addresses.into_iter().enumerate() {
        let field = |why: String| format!("addresses[{at}].{why}");
        let ip = ip(&address.address).map_err(|why| field(format!("address: {why}")))?;
        let network = Network::from(&*address.network);
        let whole = if ip.is_ipv4() { 32 } else { 128 };
        match address.length {
            None => service.vips.push(NetworkAddress::new(network, ip)),
            Some(length) if length == whole => service.vips.push(NetworkAddress::new(network, ip)),
            Some(length) => {
                let block = u8::try_from(length).ok().and_then(|length| NetworkBlock::new(network, ip, length));
                let block = block.ok_or_else(|| field(format!("length: {length} is no prefix length of {ip}")))?;
                service.vip_blocks.push(block);
            }
        }
    }
    service.ports = each(&sent.ports, "ports", service_port)?;
    // A ServiceEntry's stand there as they were written. Of those that are no identity of a workload nobody can be spoken to
    // here; they are for those who speak TLS to the service themselves, and are no reason to know nothing of it.
    let names = sent.subject_alt_names.iter();
    service.subject_alt_names = names.filter_map(|text| text.parse::<Identity>().ok()).collect();
    service.waypoint = optional(sent.waypoint, "waypoint", gateway)?;
    service.weighted_waypoints = each(&sent.weighted_waypoints, "weighted_waypoints", |sent| {
        let destination = sent.destination.clone().ok_or("destination: it is missing")?;
        Ok(WeightedWaypoint {
            destination: gateway(destination).map_err(|why| format!("destination.{why}"))?,
            weight: sent.weight,
        })
    })?;
    service.ingress_use_waypoint = sent.ingress_use_waypoint;
    service.load_balancer = optional(sent.load_balancing, "load_balancing", load_balancer)?;
    service.ip_families = match known(sent.ip_families, "ip_families")? {
        wire::IpFamilies::Automatic => IpFamilies::Automatic,
        wire::IpFamilies::Ipv4Only => IpFamilies::Ipv4Only,
        wire::IpFamilies::Ipv6Only => IpFamilies::Ipv6Only,
        wire::IpFamilies::Dual => IpFamilies::Dual,
    };
    service.canonical = sent.canonical;
    // The one number that Istio lets be what it is not: a service of a newer kind stays seen.
    service.visibility = match wire::service::Visibility::try_from(sent.visibility) {
        Ok(wire::service::Visibility::Namespace) => Visibility::Namespace,
        _ => Visibility::Public,
    };
    Ok(service)
}

fn load_balancer(sent: wire::LoadBalancing) -> Result<LoadBalancer, String> {
    use wire::load_balancing::{HealthPolicy as Health, Mode, Scope as Sent};
    Ok(LoadBalancer {
        preferences: each(&sent.routing_preference, "routing_preference", |scope| {
            Ok(match Sent::try_from(*scope) {
                Ok(Sent::Region) => Scope::Region,
                Ok(Sent::Zone) => Scope::Zone,
                Ok(Sent::Subzone) => Scope::Subzone,
                Ok(Sent::Node) => Scope::Node,
                Ok(Sent::Cluster) => Scope::Cluster,
                Ok(Sent::Network) => Scope::Network,
                Ok(Sent::UnspecifiedScope) | Err(_) => return Err(format!("{scope} is not known")),
            })
        })?,
        mode: match known(sent.mode, "mode")? {
            Mode::UnspecifiedMode => BalancerMode::Standard,
            Mode::Strict => BalancerMode::Strict,
            Mode::Failover => BalancerMode::Failover,
            Mode::Passthrough => BalancerMode::Passthrough,
        },
        health_policy: match known(sent.health_policy, "health_policy")? {
            Health::OnlyHealthy => HealthPolicy::OnlyHealthy,
            Health::AllowAll => HealthPolicy::AllowAll,
        },
    })
}

fn application_tunnel(sent: wire::ApplicationTunnel) -> Result<ApplicationTunnel, String> {
    let number = port(sent.port).map_err(|why| format!("port: {why}"))?;
    Ok(ApplicationTunnel {
        protocol: match known(sent.protocol, "protocol")? {
            wire::application_tunnel::Protocol::None => ApplicationProtocol::None,
            wire::application_tunnel::Protocol::Proxy => ApplicationProtocol::Proxy,
        },
        port: (number != 0).then_some(number),
    })
}

fn gateway(sent: wire::GatewayAddress) -> Result<GatewayAddress, String> {
    let target = match sent.destination {
        Some(gateway_address::Destination::Hostname(name)) => {
            GatewayTarget::Hostname(NamespacedHostname::new(&name.namespace, &name.hostname))
        }
        Some(gateway_address::Destination::Address(address)) => {
            let ip = ip(&address.address).map_err(|why| format!("address.address: {why}"))?;
            GatewayTarget::Address(NetworkAddress::new(Network::from(&*address.network), ip))
        }
        None => return Err("destination: it is missing".into()),
    };
    let hbone_port = port(sent.hbone_mtls_port).map_err(|why| format!("hbone_mtls_port: {why}"))?;
    Ok(GatewayAddress { target, hbone_port })
}

fn service_port(sent: &wire::Port) -> Result<ServicePort, String> {
    Ok(ServicePort {
        port: port(sent.service_port).map_err(|why| format!("service_port: {why}"))?,
        target: port(sent.target_port).map_err(|why| format!("target_port: {why}"))?,
    })
}

/// A pair of ports; none where the endpoint names no port of its own.
fn endpoint_port(sent: &wire::Port) -> Result<Option<(u16, u16)>, String> {
    let read = service_port(sent)?;
    Ok((read.target != 0).then_some((read.port, read.target)))
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    text.parse().map_err(|e| format!("trust_domain: {e}"))
}

fn ip(bytes: &[u8]) -> Result<IpAddr, String> {
    let ip = match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).map(IpAddr::from),
    };
    let ip = ip.map_err(|_| format!("{} bytes are no IP address: 4 or 16 are", bytes.len()))?;
    Ok(ip.to_canonical())
}

fn port(number: u32) -> Result<u16, String> {
    u16::try_from(number).map_err(|_| format!("{number} is not a port: 0 to 65535 are"))
}

fn known<T: TryFrom<i32>>(number: i32, field: &str) -> Result<T, String> {
    T::try_from(number).map_err(|_| format!("{field}: {number} is not known"))
}

fn optional<S, T>(sent: Option<S>, field: &str, read: impl Fn(S) -> Result<T, String>) -> Result<Option<T>, String> {
    sent.map(read).transpose().map_err(|why| format!("{field}.{why}"))
}

fn each<S, T>(sent: &[S], field: &str, read: impl Fn(&S) -> Result<T, String>) -> Result<Vec<T>, String> {
    let one = |(at, value)| read(value).map_err(|why| format!("{field}[{at}]: {why}"));
    sent.iter().enumerate().map(one).collect()
}
