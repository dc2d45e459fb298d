//! What stands in the file: from its text to workloads, services and policies, or to the line and field that cannot be read.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ambient_authz::{Scope, policy, wire as authz};
use ambient_core::{
    ApplicationProtocol, ApplicationTunnel, BalancerMode, GatewayAddress, GatewayTarget, Health, HealthPolicy, IpFamilies, LoadBalancer,
    Membership, NamespacedHostname, Network, NetworkAddress, NetworkBlock, NetworkMode, PolicyKey, PortMap, Scope as Shared, Service,
    ServicePort, TunnelProtocol, Visibility, WeightedWaypoint, Workload, WorkloadKind, WorkloadUid,
};
use ipnet::IpNet;
use serde::Deserialize;

use super::Config;
use crate::manifests::tree::{Node, TextError, Value};

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) workloads: Vec<Workload>,
    pub(super) services: Vec<Service>,
    pub(super) policies: Vec<policy::Update>,
    pub(super) broken: Vec<Broken>,
    /// Of every list, what its entries go by.
    keys: BTreeSet<(String, String)>,
}

/// An entry that cannot be read, and nothing else is affected.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) error: TextError,
    pub(super) key: Option<Key>,
}

/// What an entry goes by.
#[derive(Clone, Debug)]
pub(super) enum Key {
    Workload(WorkloadUid),
    Service(NamespacedHostname),
    Policy(PolicyKey),
}

/// Reads a file's documents. It holds one, or none.
pub(super) fn entries(documents: Vec<Node>, config: &Config) -> Result<Entries, TextError> {
    let mut entries = Entries::default();
    let mut documents = documents.into_iter();
    let Some(document) = documents.next() else { return Ok(entries) };
    if let Some(second) = documents.next() {
        return Err(error(&second, "", "one document is wanted, not several"));
    }
    let Value::Map(fields) = &document.value else {
        return Err(error(&document, "", "a map of workloads, services and policies is wanted"));
    };
    for (name, node) in fields {
        let list = match &node.value {
            Value::List(list) => &list[..],
            Value::Null => &[],
            _ => return Err(error(node, name, "a list is wanted")),
        };
        match name.as_str() {
            "workloads" => list
                .iter()
                .enumerate()
                .for_each(|(at, node)| add_workload(&mut entries, at, node, config)),
            "services" => list.iter().enumerate().for_each(|(at, node)| add_service(&mut entries, at, node)),
            "policies" => list
                .iter()
                .enumerate()
                .for_each(|(at, node)| add_policy(&mut entries, at, node, config)),
            _ => return Err(error(node, name, "is not known: workloads, services and policies are")),
        }
    }
    Ok(entries)
}

impl Entries {
    /// Takes note of an entry's key: of two with the same one the first counts.
    fn is_first(&mut self, list: &str, at: usize, node: &Node, field: &str, key: String) -> bool {
        let why = format!("{key} stands further up already; this one does not count");
        let new = self.keys.insert((list.to_owned(), key));
        if !new {
            self.broken(list, at, error(node, field, &why), None);
        }
        new
    }

    /// An entry that cannot be read counts as the first of its key, too.
    fn stands(&mut self, list: &str, key: Option<String>) {
        self.keys.extend(key.map(|key| (list.to_owned(), key)));
    }

    fn broken(&mut self, list: &str, at: usize, mut error: TextError, key: Option<Key>) {
        let dot = if error.path.is_empty() { "" } else { "." };
        error.path = format!("{list}[{at}]{dot}{}", error.path);
        self.broken.push(Broken { error, key });
    }
}

fn add_workload(entries: &mut Entries, at: usize, node: &Node, config: &Config) {
    let read = node.read::<WrittenWorkload>().and_then(|written| workload(written, node, config));
    match read {
        Ok(workload) => {
            if entries.is_first("workloads", at, node, "uid", workload.uid.to_string()) {
                entries.workloads.push(workload);
            }
        }
        Err(error) => {
            let key = node.text("uid").map(|uid| Key::Workload(uid.into()));
            entries.stands("workloads", node.text("uid").map(str::to_owned));
            entries.broken("workloads", at, error, key);
        }
    }
}

fn add_service(entries: &mut Entries, at: usize, node: &Node) {
    match node.read::<WrittenService>().and_then(|written| service(written, node)) {
        Ok(service) => {
            if entries.is_first("services", at, node, "hostname", service.name.to_string()) {
                entries.services.push(service);
            }
        }
        Err(error) => {
            let names = node.text("namespace").zip(node.text("hostname"));
            let name = names.map(|(namespace, host)| NamespacedHostname::new(namespace, host));
            entries.stands("services", name.as_ref().map(ToString::to_string));
            let key = name.map(Key::Service);
            entries.broken("services", at, error, key);
        }
    }
}

fn add_policy(entries: &mut Entries, at: usize, node: &Node, config: &Config) {
    let settings = authz::Settings {
        istio_exact: config.istio_exact,
        root_namespace: config.root_namespace.clone(),
        trust_domain: config.trust_domain.clone(),
        trust_domain_aliases: config.trust_domain_aliases.clone(),
        cluster_local: config.cluster_local,
    };
    let written = node.read::<WrittenPolicy>();
    let read = written.and_then(|written| {
        let rules = &written.rules;
        let plain = authorization(&written).map_err(|(path, why)| error(node, &path, &why))?;
        authz::read(&plain, &settings).map_err(|e| {
            let known = !rules.is_empty();
            error(node, if known { "rules" } else { "" }, &format!("{}: {}", e.path, e.why))
        })
    });
    match read {
        Ok(policy) => {
            if entries.is_first("policies", at, node, "name", policy.key.to_string()) {
                entries.policies.push(policy::Update::Set(Arc::new(policy)));
            }
        }
        Err(error) => {
            // Where it does not even say which it is, it could be any of the whole mesh.
            let namespace = node.text("namespace").unwrap_or_default();
            let key = match node.text("name") {
                Some(name) => PolicyKey::from(format!("{namespace}/{name}")),
                None => PolicyKey::from(format!("policies//{at}")),
            };
            let of_mesh = namespace.is_empty() || *namespace == *config.root_namespace;
            let unreadable = policy::Unreadable {
                key: key.clone(),
                namespace: if of_mesh { config.root_namespace.clone() } else { namespace.into() },
                scope: if of_mesh { Scope::Global } else { Scope::Namespace },
                only_new: false,
                dry_run: matches!(node.field("dryRun").map(|field| &field.value), Some(Value::Bool(true))),
                error: error.to_string(),
            };
            // One of its name further down does not take its place: what it would have refused is not known.
            entries.stands("policies", Some(key.to_string()));
            entries.policies.push(policy::Update::Unreadable(Arc::new(unreadable)));
            entries.broken("policies", at, error, Some(Key::Policy(key)));
        }
    }
}

fn error(node: &Node, path: &str, why: &str) -> TextError {
    TextError {
        line: node.line_of(path),
        path: path.into(),
        why: why.into(),
    }
}

/// Ports of a service and what they are at the endpoints; YAML's keys are texts.
type Ports = BTreeMap<String, u16>;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenWorkload {
    uid: String,
    workload_ips: Vec<String>,
    #[serde(default)]
    name: String,
    namespace: String,
    #[serde(default)]
    trust_domain: Option<String>,
    #[serde(default)]
    service_account: Option<String>,
    #[serde(default)]
    network: String,
    #[serde(default)]
    node: String,
    #[serde(default)]
    cluster_id: Option<String>,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    protocol: Protocol,
    #[serde(default)]
    network_mode: Mode,
    #[serde(default)]
    status: Status,
    #[serde(default)]
    capacity: Option<u32>,
    #[serde(default)]
    workload_name: Option<String>,
    #[serde(default)]
    workload_type: Type,
    #[serde(default)]
    canonical_name: Option<String>,
    #[serde(default)]
    canonical_revision: Option<String>,
    #[serde(default)]
    native_tunnel: bool,
    #[serde(default)]
    application_tunnel: Option<WrittenTunnel>,
    #[serde(default)]
    authorization_policies: Vec<String>,
    #[serde(default)]
    locality: WrittenLocality,
    #[serde(default)]
    waypoint: Option<WrittenGateway>,
    #[serde(default)]
    network_gateway: Option<WrittenGateway>,
    services: BTreeMap<String, Ports>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Protocol {
    #[default]
    Tcp,
    Hbone,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum Mode {
    #[default]
    Standard,
    HostNetwork,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum Status {
    #[default]
    Healthy,
    Unhealthy,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Type {
    Deployment,
    CronJob,
    #[default]
    Pod,
    Job,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenTunnel {
    protocol: TunnelWord,
    #[serde(default)]
    port: Option<u16>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum TunnelWord {
    None,
    Proxy,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenLocality {
    region: String,
    zone: String,
    subzone: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenGateway {
    destination: String,
    hbone_mtls_port: u16,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenService {
    name: String,
    namespace: String,
    hostname: String,
    vips: Vec<String>,
    #[serde(default)]
    cidr_vips: Vec<WrittenBlock>,
    ports: Ports,
    #[serde(default)]
    subject_alt_names: Vec<String>,
    #[serde(default)]
    waypoint: Option<WrittenGateway>,
    #[serde(default)]
    weighted_waypoints: Vec<WrittenShare>,
    #[serde(default)]
    load_balancer: Option<WrittenBalancer>,
    #[serde(default)]
    ip_families: Option<Families>,
    #[serde(default)]
    canonical: bool,
    #[serde(default)]
    visibility: Seen,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenBlock {
    #[serde(default)]
    network: String,
    cidr: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenShare {
    destination: WrittenGateway,
    weight: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenBalancer {
    routing_preferences: Vec<Place>,
    mode: Balance,
    health_policy: Healths,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Place {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Balance {
    Standard,
    Strict,
    Failover,
    Passthrough,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Healths {
    OnlyHealthy,
    AllowAll,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Families {
    #[serde(rename = "IPv4")]
    V4,
    #[serde(rename = "IPv6")]
    V6,
    Dual,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum Seen {
    #[default]
    Public,
    Namespace,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenPolicy {
    name: String,
    namespace: String,
    scope: Reach,
    action: Verdict,
    rules: Vec<Vec<Vec<WrittenMatch>>>,
    dry_run: bool,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Reach {
    Global,
    Namespace,
    WorkloadSelector,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Verdict {
    Allow,
    Deny,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct WrittenMatch {
    namespaces: Vec<Text>,
    not_namespaces: Vec<Text>,
    principals: Vec<Text>,
    not_principals: Vec<Text>,
    source_ips: Vec<String>,
    not_source_ips: Vec<String>,
    destination_ips: Vec<String>,
    not_destination_ips: Vec<String>,
    destination_ports: Vec<u16>,
    not_destination_ports: Vec<u16>,
    service_accounts: Vec<Account>,
    not_service_accounts: Vec<Account>,
}

#[derive(Clone, Debug, Deserialize)]
enum Text {
    #[serde(alias = "exact")]
    Exact(String),
    #[serde(alias = "prefix")]
    Prefix(String),
    #[serde(alias = "suffix")]
    Suffix(String),
    #[serde(alias = "presence")]
    Presence(serde::de::IgnoredAny),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Account {
    namespace: String,
    service_account: String,
}

fn workload(written: WrittenWorkload, node: &Node, config: &Config) -> Result<Workload, TextError> {
    let wrong = |path: &str, why: &str| error(node, path, why);
    let mut workload = Workload::new(&written.uid, &written.namespace, &written.name);
    if written.uid.is_empty() {
        return Err(wrong("uid", "is empty"));
    }
    for (at, text) in written.workload_ips.iter().enumerate() {
        workload.addresses.push(ip(node, &format!("workloadIps[{at}]"), text)?);
    }
    workload.network = written.network.as_str().into();
    workload.trust_domain = match written.trust_domain.as_deref() {
        None | Some("") => config.trust_domain.clone(),
        Some(text) => text
            .parse()
            .map_err(|e: ambient_core::TrustDomainError| wrong("trustDomain", &e.to_string()))?,
    };
    let given = |text: Option<String>| text.filter(|text| !text.is_empty()).map(Arc::<str>::from);
    workload.service_account = given(written.service_account).unwrap_or(workload.service_account);
    workload.node = written.node.into();
    workload.cluster = given(written.cluster_id).unwrap_or(workload.cluster);
    workload.hostname = written.hostname.to_ascii_lowercase().into();
    workload.tunnel = match written.protocol {
        Protocol::Tcp => TunnelProtocol::None,
        Protocol::Hbone => TunnelProtocol::Hbone,
    };
    workload.native_tunnel = written.native_tunnel;
    workload.ambient = workload.tunnel == TunnelProtocol::Hbone || workload.native_tunnel;
    workload.network_mode = match written.network_mode {
        Mode::Standard => NetworkMode::Standard,
        Mode::HostNetwork => NetworkMode::HostNetwork,
    };
    workload.health = match written.status {
        Status::Healthy => Health::Healthy,
        Status::Unhealthy => Health::Unhealthy,
    };
    workload.capacity = written.capacity.unwrap_or(1);
    workload.kind = match written.workload_type {
        Type::Deployment => WorkloadKind::Deployment,
        Type::CronJob => WorkloadKind::CronJob,
        Type::Pod => WorkloadKind::Pod,
        Type::Job => WorkloadKind::Job,
    };
    workload.workload_name = given(written.workload_name).unwrap_or(workload.workload_name);
    workload.canonical_name = given(written.canonical_name).unwrap_or_else(|| workload.workload_name.clone());
    workload.canonical_revision = given(written.canonical_revision).unwrap_or(workload.canonical_revision);
    workload.application_tunnel = written.application_tunnel.map(|tunnel| ApplicationTunnel {
        protocol: match tunnel.protocol {
            TunnelWord::None => ApplicationProtocol::None,
            TunnelWord::Proxy => ApplicationProtocol::Proxy,
        },
        port: tunnel.port.filter(|port| *port != 0),
    });
    workload.policies = written.authorization_policies.into_iter().map(PolicyKey::from).collect();
    let WrittenLocality { region, zone, subzone } = written.locality;
    workload.locality = [region, zone, subzone].map(Arc::from);
    let network = &workload.network;
    workload.waypoint = optional_gateway(node, "waypoint", written.waypoint, network)?;
    workload.network_gateway = optional_gateway(node, "networkGateway", written.network_gateway, network)?;
    for (name, numbers) in written.services {
        let path = format!("services[{name}]");
        let service = name
            .parse()
            .map_err(|()| wrong("services", &format!("{name:?}: NAMESPACE/HOSTNAME is wanted")))?;
        let pairs = ports(node, &path, &numbers)?;
        let ports: PortMap = pairs.into_iter().filter(|(_, target)| *target != 0).collect();
        workload.services.push(Membership { service, ports });
    }
    Ok(workload)
}

fn service(written: WrittenService, node: &Node) -> Result<Service, TextError> {
    let wrong = |path: &str, why: &str| error(node, path, why);
    let mut service = Service::new(&written.namespace, &written.hostname);
    service.resource = written.name.into();
    for (at, text) in written.vips.iter().enumerate() {
        let (network, address) = text.split_once('/').unwrap_or(("", text));
        let ip = ip(node, &format!("vips[{at}]"), address)?;
        service.vips.push(NetworkAddress::new(network.into(), ip));
    }
    for (at, block) in written.cidr_vips.iter().enumerate() {
        let read = block.cidr.parse::<IpNet>().ok();
        let read = read.and_then(|net| NetworkBlock::new(Network::from(block.network.as_str()), net.addr(), net.prefix_len()));
        let path = format!("cidrVips[{at}].cidr");
        let why = format!("{:?} is no block of addresses such as 192.0.2.0/24", block.cidr);
        service.vip_blocks.push(read.ok_or_else(|| wrong(&path, &why))?);
    }
    let pairs = ports(node, "ports", &written.ports)?;
    service.ports = pairs.into_iter().map(|(port, target)| ServicePort { port, target }).collect();
    for (at, text) in written.subject_alt_names.iter().enumerate() {
        let path = format!("subjectAltNames[{at}]");
        let identity = text
            .parse()
            .map_err(|e: ambient_core::IdentityError| wrong(&path, &e.to_string()))?;
        service.subject_alt_names.push(identity);
    }
    let network = Network::default();
    service.waypoint = optional_gateway(node, "waypoint", written.waypoint, &network)?;
    for (at, share) in written.weighted_waypoints.into_iter().enumerate() {
        let path = format!("weightedWaypoints[{at}].destination");
        service.weighted_waypoints.push(WeightedWaypoint {
            destination: gateway(node, &path, share.destination, &network)?,
            weight: share.weight,
        });
    }
    service.load_balancer = written.load_balancer.map(balancer);
    service.ip_families = match written.ip_families {
        None => IpFamilies::Automatic,
        Some(Families::V4) => IpFamilies::Ipv4Only,
        Some(Families::V6) => IpFamilies::Ipv6Only,
        Some(Families::Dual) => IpFamilies::Dual,
    };
    service.canonical = written.canonical;
    service.visibility = match written.visibility {
        Seen::Public => Visibility::Public,
        Seen::Namespace => Visibility::Namespace,
    };
    Ok(service)
}

fn balancer(written: WrittenBalancer) -> LoadBalancer {
    let scope = |place| match place {
        Place::Region => Shared::Region,
        Place::Zone => Shared::Zone,
        Place::Subzone => Shared::Subzone,
        Place::Node => Shared::Node,
        Place::Cluster => Shared::Cluster,
        Place::Network => Shared::Network,
    };
    LoadBalancer {
        preferences: written.routing_preferences.into_iter().map(scope).collect(),
        mode: match written.mode {
            Balance::Standard => BalancerMode::Standard,
            Balance::Strict => BalancerMode::Strict,
            Balance::Failover => BalancerMode::Failover,
            Balance::Passthrough => BalancerMode::Passthrough,
        },
        health_policy: match written.health_policy {
            Healths::OnlyHealthy => HealthPolicy::OnlyHealthy,
            Healths::AllowAll => HealthPolicy::AllowAll,
        },
    }
}

fn optional_gateway(
    node: &Node,
    path: &str,
    written: Option<WrittenGateway>,
    network: &Network,
) -> Result<Option<GatewayAddress>, TextError> {
    written.map(|written| gateway(node, path, written, network)).transpose()
}

/// `NETWORK/ADDRESS`, an address alone, or `NAMESPACE/HOSTNAME`.
fn gateway(node: &Node, path: &str, written: WrittenGateway, network: &Network) -> Result<GatewayAddress, TextError> {
    let text = &written.destination;
    let target = match text.rsplit_once('/') {
        Some((first, rest)) => match rest.parse::<IpAddr>() {
            Ok(ip) => GatewayTarget::Address(NetworkAddress::new(first.into(), ip)),
            Err(_) if !first.is_empty() && !rest.is_empty() => GatewayTarget::Hostname(NamespacedHostname::new(first, rest)),
            Err(_) => return Err(no_gateway(node, path, text)),
        },
        None => {
            let ip = text.parse::<IpAddr>().map_err(|_| no_gateway(node, path, text))?;
            GatewayTarget::Address(NetworkAddress::new(network.clone(), ip))
        }
    };
    Ok(GatewayAddress {
        target,
        hbone_port: written.hbone_mtls_port,
    })
}

fn no_gateway(node: &Node, path: &str, text: &str) -> TextError {
    let why = format!("{text:?} is neither NETWORK/ADDRESS nor NAMESPACE/HOSTNAME");
    error(node, &format!("{path}.destination"), &why)
}

fn ip(node: &Node, path: &str, text: &str) -> Result<IpAddr, TextError> {
    let parsed = text.parse::<IpAddr>().map(|ip| ip.to_canonical());
    parsed.map_err(|_| error(node, path, &format!("{text:?} is not an IP address")))
}

fn ports(node: &Node, path: &str, written: &Ports) -> Result<BTreeMap<u16, u16>, TextError> {
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
    let pair = |(text, target): (&String, &u16)| {
        let port = number(text).ok_or_else(|| error(node, path, &format!("{text:?} is not a port: must be in 1..=65535")))?;
        Ok((port, *target))
    };
    written.iter().map(pair).collect()
}

/// The policy in the words of the wire; if not, where and why.
fn authorization(written: &WrittenPolicy) -> Result<authz::Authorization, (String, String)> {
    let mut rules = Vec::with_capacity(written.rules.len());
    for (at, rule) in written.rules.iter().enumerate() {
        let mut clauses = Vec::with_capacity(rule.len());
        for (n, clause) in rule.iter().enumerate() {
            let matches = clause.iter().enumerate();
            let matches = matches.map(|(m, one)| one_match(one, &format!("rules[{at}][{n}][{m}]")));
            clauses.push(authz::Clause {
                matches: matches.collect::<Result<_, _>>()?,
            });
        }
        rules.push(authz::Rule { clauses });
    }
    Ok(authz::Authorization {
        name: written.name.clone(),
        namespace: written.namespace.clone(),
        scope: match written.scope {
            Reach::Global => 0,
            Reach::Namespace => 1,
            Reach::WorkloadSelector => 2,
        },
        action: match written.action {
            Verdict::Allow => 0,
            Verdict::Deny => 1,
        },
        rules,
        dry_run: written.dry_run,
    })
}

fn one_match(written: &WrittenMatch, path: &str) -> Result<authz::Match, (String, String)> {
    let texts = |list: &[Text]| {
        let text = |text: &Text| match text {
            Text::Exact(text) => authz::StringMatch::Exact(text.clone()),
            Text::Prefix(text) => authz::StringMatch::Prefix(text.clone()),
            Text::Suffix(text) => authz::StringMatch::Suffix(text.clone()),
            Text::Presence(_) => authz::StringMatch::Presence,
        };
        list.iter().map(text).collect()
    };
    let blocks = |list: &[String], field: &str| -> Result<Vec<authz::Address>, (String, String)> {
        let block = |(at, text): (usize, &String)| {
            let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            let net = net.map_err(|_| (format!("{path}.{field}[{at}]"), format!("{text:?} is no block of addresses")))?;
            Ok(authz::Address {
                address: match net.addr() {
                    IpAddr::V4(ip) => ip.octets().into(),
                    IpAddr::V6(ip) => ip.octets().into(),
                },
                length: net.prefix_len().into(),
            })
        };
        list.iter().enumerate().map(block).collect()
    };
    let accounts = |list: &[Account]| {
        let account = |account: &Account| authz::ServiceAccount {
            namespace: account.namespace.clone(),
            service_account: account.service_account.clone(),
        };
        list.iter().map(account).collect()
    };
    Ok(authz::Match {
        namespaces: texts(&written.namespaces),
        not_namespaces: texts(&written.not_namespaces),
        principals: texts(&written.principals),
        not_principals: texts(&written.not_principals),
        source_ips: blocks(&written.source_ips, "sourceIps")?,
        not_source_ips: blocks(&written.not_source_ips, "notSourceIps")?,
        destination_ips: blocks(&written.destination_ips, "destinationIps")?,
        not_destination_ips: blocks(&written.not_destination_ips, "notDestinationIps")?,
        destination_ports: written.destination_ports.iter().map(|port| u32::from(*port)).collect(),
        not_destination_ports: written.not_destination_ports.iter().map(|port| u32::from(*port)).collect(),
        service_accounts: accounts(&written.service_accounts),
        not_service_accounts: accounts(&written.not_service_accounts),
    })
}
