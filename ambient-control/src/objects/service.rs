//! Services: what a Service or a host of a ServiceEntry is.

use std::net::IpAddr;

use ambient_authz::kubernetes::Labels;
use ambient_core::{
    BalancerMode, HealthPolicy, IpFamilies, LoadBalancer, NamespacedHostname, NetworkAddress, NetworkBlock, Scope, Service, ServicePort,
    WeightedWaypoint,
};

use super::{
    Kind, Name, ObjectKey, Objects, Problem,
    kinds::{self, Invalid, Metadata, Resolution, ServiceEntry, TargetPort, block},
    membership::{Holder, age, is_tcp},
    tell::Made,
    uses::Need,
    vips,
    waypoints::{CANARY, CANARY_WEIGHT, Traffic, USE_WAYPOINT, Use, is_managed, used},
};

/// What is being made, and what is found out meanwhile.
struct Making {
    source: ObjectKey,
    needs: Vec<Need>,
    problems: Vec<Problem>,
}

impl Making {
    fn problem(&mut self, path: impl Into<String>, why: impl Into<String>) {
        self.problems.push(Problem {
            object: self.source.clone(),
            what: Invalid::new(path, why),
        });
    }
}

impl Objects {
    /// The service of a name.
    pub(super) fn service_of(&self, name: &NamespacedHostname) -> Made<Option<Service>> {
        let Some(holder) = self.holder(name) else { return Made::default() };
        let (kind, meta) = match holder {
            Holder::Service(object) => (Kind::Service, &object.metadata),
            Holder::Entry(object) => (Kind::ServiceEntry, &object.metadata),
        };
        let mut making = Making {
            source: kind.key(&name.namespace, &meta.name),
            needs: Vec::new(),
            problems: Vec::new(),
        };
        let mut service = match holder {
            Holder::Service(object) => self.of_service(name, object, &mut making),
            Holder::Entry(object) => self.of_entry(name, object, &mut making),
        };
        let bare = Labels::new();
        let space = self.spaces.get(&name.namespace);
        if let Some(waypoint) = self.waypoint_of_service(&service, meta, &mut making) {
            let address = self.gateways.waypoint(&waypoint).map(|w| w.address(&self.network));
            service.waypoint = address;
            service.weighted_waypoints = self.weighted(&service, meta, &waypoint, &mut making);
            let namespace = space.map_or(&bare, |space| &space.labels);
            service.ingress_use_waypoint = ingress(meta, namespace, &mut making);
        }
        Made {
            now: Some(service),
            needs: making.needs,
            problems: making.problems,
        }
    }

    fn of_service(&self, name: &NamespacedHostname, object: &kinds::Service, making: &mut Making) -> Service {
        let spec = &object.spec;
        let mut service = Service::new(&name.namespace, &name.hostname);
        // What a Service of Kubernetes names is what that name means.
        service.canonical = true;
        service.load_balancer = self.balancer(name, spec.traffic_distribution.as_deref(), &object.metadata, making);
        if spec.internal_traffic_policy.as_deref() == Some("Local") {
            service.load_balancer = Some(LoadBalancer {
                preferences: vec![Scope::Node],
                mode: BalancerMode::Strict,
                ..LoadBalancer::default()
            });
        }
        if spec.publish_not_ready_addresses {
            service.load_balancer.get_or_insert_default().health_policy = HealthPolicy::AllowAll;
        }
        service.ip_families = match &spec.ip_families[..] {
            [only] if only == "IPv4" => IpFamilies::Ipv4Only,
            [only] if only == "IPv6" => IpFamilies::Ipv6Only,
            [_, _] => IpFamilies::Dual,
            _ => IpFamilies::Automatic,
        };
        for ip in object.ips() {
            let vip = NetworkAddress::new(self.network.clone(), ip);
            if !service.vips.contains(&vip) {
                service.vips.push(vip);
            }
        }
        let ports = object.tcp_ports().map(|port| ServicePort {
            port: port.port,
            target: match port.target_port {
                Some(TargetPort::Name(_)) => 0,
                _ => port.number(),
            },
        });
        service.ports = ports.collect();
        service
    }

    fn of_entry(&self, name: &NamespacedHostname, object: &ServiceEntry, making: &mut Making) -> Service {
        let spec = &object.spec;
        let mut service = Service::new(&name.namespace, &name.hostname);
        service.resource = object.metadata.name.as_str().into();
        service.canonical = self.is_canonical(name, object);
        for (ip, length) in spec.addresses.iter().filter_map(|text| block(text)) {
            match length.and_then(|length| NetworkBlock::new(self.network.clone(), ip, length)) {
                Some(block) => service.vip_blocks.push(block),
                None => service.vips.push(NetworkAddress::new(self.network.clone(), ip)),
            }
        }
        let host = (name.namespace.clone(), name.hostname.clone());
        let wants = vips::wanting(object).any(|wanting| wanting.eq_ignore_ascii_case(&name.hostname));
        let given: Vec<IpAddr> = match wants {
            true => self.vips.of(&host),
            false if spec.addresses.is_empty() && object.resolution() != Resolution::None => vips::given(object, &name.hostname).collect(),
            false => Vec::new(),
        };
        if let (true, Some((namespace, other))) = (wants, self.vips.holder(&host)) {
            let why = format!("{other} of the namespace {namespace} has its IPv4 address already, so it has an IPv6 one alone; give one");
            making.problem("spec.addresses", why);
        }
        let given = given.into_iter().map(|ip| NetworkAddress::new(self.network.clone(), ip));
        service.vips.extend(given);
        service.ports = spec
            .ports
            .iter()
            .map(|port| ServicePort {
                port: port.number,
                target: port.target(),
            })
            .collect();
        let names = spec.subject_alt_names.iter();
        service.subject_alt_names = names.filter_map(|text| text.parse().ok()).collect();
        service.load_balancer = match object.resolution() {
            // What goes to an address goes there.
            Resolution::None => Some(LoadBalancer {
                mode: BalancerMode::Passthrough,
                health_policy: HealthPolicy::AllowAll,
                ..LoadBalancer::default()
            }),
            _ => self.balancer(name, None, &object.metadata, making),
        };
        service
    }

    /// Whether a host of a ServiceEntry is what that name means everywhere: no Service of Kubernetes has it, nor an older one.
    fn is_canonical(&self, name: &NamespacedHostname, object: &ServiceEntry) -> bool {
        let namespaces = self.hosts.get(&name.hostname).into_iter().flatten();
        let mut others = namespaces.map(|namespace| NamespacedHostname::from_shared(namespace.clone(), name.hostname.clone()));
        let first = others.all(|other| match self.holder(&other) {
            Some(Holder::Entry(other)) => age(object) <= age(other),
            _ => false,
        });
        // A Service of Kubernetes has its name in its own namespace alone, which need not be among these.
        let own = name.hostname.split('.').nth(1).unwrap_or_default();
        let elsewhere = NamespacedHostname::new(own, &name.hostname);
        first && self.service_at(&elsewhere).is_none()
    }

    /// Which endpoints are preferred: what the spec says counts before the annotation, that before the namespace's.
    fn balancer(&self, name: &NamespacedHostname, spec: Option<&str>, meta: &Metadata, making: &mut Making) -> Option<LoadBalancer> {
        let field = spec.map(|text| (text, distribution(text)));
        if let Some((text, None)) = field {
            making.problem("spec.trafficDistribution", unknown_distribution(text));
        }
        let space = self.spaces.get(&name.namespace);
        let namespace = space.and_then(|space| space.annotations.get(DISTRIBUTION).map(String::as_str));
        let own = meta.annotation(DISTRIBUTION).filter(|text| !text.is_empty());
        let preferences = match (field, own) {
            (Some((_, Some(preferences))), _) => Some(preferences),
            (_, Some(text)) => {
                let read = distribution_in_any_case(text);
                if read.is_none() {
                    making.problem(format!("metadata.annotations[{DISTRIBUTION}]"), unknown_distribution(text));
                }
                read
            }
            (_, None) => namespace.and_then(distribution_in_any_case),
        };
        preferences.map(|preferences| LoadBalancer {
            preferences: preferences.to_vec(),
            mode: BalancerMode::Failover,
            ..LoadBalancer::default()
        })
    }

    /// The waypoint that speaks for a service.
    fn waypoint_of_service(&self, service: &Service, meta: &Metadata, making: &mut Making) -> Option<Name> {
        // What a waypoint is, or an east-west gateway, has none.
        if is_managed(meta) {
            return None;
        }
        let (wanted, path) = self.wanted_waypoint(&meta.labels, &service.name.namespace);
        let name = wanted?;
        making.needs.push(Need::Waypoint(name.clone()));
        if let Some(itself) = self.gateways.that_is(&service.name, service.vips.iter().map(|vip| vip.ip)) {
            // Inherited from its namespace, it was not meant for it.
            if meta.labels.contains_key(USE_WAYPOINT[0]) {
                let (namespace, gateway) = itself;
                let why = format!("would go in a circle: it is the waypoint {namespace}/{gateway} itself, and goes without");
                making.problem(path, why);
            }
            return None;
        }
        match self.fit_waypoint(&name, &service.name.namespace, Traffic::Service) {
            Ok(()) => Some(name),
            Err(why) => {
                making.problem(path, why);
                None
            }
        }
    }

    /// Two waypoints in proportion, where one is on trial.
    fn weighted(&self, service: &Service, meta: &Metadata, primary: &Name, making: &mut Making) -> Vec<WeightedWaypoint> {
        let namespace = &service.name.namespace;
        let space = self.spaces.get(namespace);
        let own = matches!(used(&meta.labels, namespace, USE_WAYPOINT), Use::Of(_));
        let inherited = space.filter(|_| !own);
        let canary = match (used(&meta.labels, namespace, CANARY), inherited) {
            (Use::Unsaid, Some(space)) => used(&space.labels, namespace, CANARY),
            (said, _) => said,
        };
        let Use::Of(canary) = canary else { return Vec::new() };
        if canary.1.is_empty() {
            return Vec::new();
        }
        making.needs.push(Need::Waypoint(canary.clone()));
        let path = format!("metadata.labels[{}]", CANARY[0]);
        if canary == *primary {
            making.problem(path, "names the waypoint that is used already; it has no effect");
            return Vec::new();
        }
        let weight = meta.annotation(CANARY_WEIGHT);
        let weight = weight.or_else(|| inherited?.annotations.get(CANARY_WEIGHT).map(String::as_str));
        let Some(weight) = weight.map_or(Some(0), |text| text.parse::<u32>().ok().filter(|weight| *weight <= 100)) else {
            let why = "a number from 0 to 100 is wanted; the waypoint on trial is not used";
            making.problem(format!("metadata.annotations[{CANARY_WEIGHT}]"), why);
            return Vec::new();
        };
        if let Err(why) = self.fit_waypoint(&canary, namespace, Traffic::Service) {
            making.problem(path, why);
            return Vec::new();
        }
        let shares = [(primary, 100 - weight), (&canary, weight)];
        let shares = shares.into_iter().filter_map(|(name, weight)| {
            Some(WeightedWaypoint {
                destination: self.gateways.waypoint(name)?.address(&self.network),
                weight,
            })
        });
        shares.collect()
    }

    /// The waypoint that labels name, an object's own before its namespace's, and where they say so.
    pub(super) fn wanted_waypoint(&self, labels: &Labels, namespace: &str) -> (Option<Name>, String) {
        let path = format!("metadata.labels[{}]", USE_WAYPOINT[0]);
        match used(labels, namespace, USE_WAYPOINT) {
            Use::Of(name) => (Some(name), path),
            Use::None => (None, path),
            Use::Unsaid => {
                let space = self.spaces.get(namespace);
                let name = match space.map(|space| used(&space.labels, namespace, USE_WAYPOINT)) {
                    Some(Use::Of(name)) => Some(name),
                    _ => None,
                };
                (name, format!("{path} of its namespace"))
            }
        }
    }

    /// Whether a waypoint may be used by what is in a namespace, and why not.
    pub(super) fn fit_waypoint(&self, name: &Name, namespace: &str, traffic: Traffic) -> Result<(), String> {
        let (space, gateway) = name;
        let without = "; it goes without";
        let Some(waypoint) = self.gateways.waypoint(name) else {
            return Err(match self.gateways.object(name) {
                Some(_) => format!("the Gateway {space}/{gateway} is not ready: it has no status.addresses{without}"),
                None => format!("there is no Gateway {space}/{gateway}{without}"),
            });
        };
        let bare = Labels::new();
        let labels = self.spaces.get(namespace).map_or(&bare, |space| &space.labels);
        if !waypoint.admits(name, namespace, labels) {
            let why = format!("the Gateway {space}/{gateway} admits nobody of this namespace: see allowedRoutes of its listener{without}");
            return Err(why);
        }
        match waypoint.serves(traffic) {
            true => Ok(()),
            false => {
                let what = match traffic {
                    Traffic::Service => "services",
                    Traffic::Workload => "workloads",
                };
                Err(format!(
                    "the Gateway {space}/{gateway} does not speak for {what}: see its label istio.io/waypoint-for{without}"
                ))
            }
        }
    }
}

impl kinds::Service {
    pub(super) fn tcp_ports(&self) -> impl Iterator<Item = &kinds::ServicePort> {
        self.spec.ports.iter().filter(|p| is_tcp(p.protocol.as_deref()))
    }

    /// Its addresses, the first one last.
    pub(super) fn ips(&self) -> impl Iterator<Item = IpAddr> {
        let all = self.spec.cluster_ips.iter().chain(&self.spec.cluster_ip);
        all.filter_map(|text| text.parse::<IpAddr>().ok()).map(|ip| ip.to_canonical())
    }
}

impl kinds::ServicePort {
    /// The port of the endpoints, unless each names its own.
    pub(super) fn number(&self) -> u16 {
        match self.target_port {
            Some(TargetPort::Number(number)) => number,
            _ => self.port,
        }
    }
}

impl kinds::EntryPort {
    pub(super) fn target(&self) -> u16 {
        if self.target_port == 0 { self.number } else { self.target_port }
    }
}

/// Whether the ingress goes through the waypoint too; values of truth are Go's.
fn ingress(meta: &Metadata, namespace: &Labels, making: &mut Making) -> bool {
    let own = meta.label(INGRESS);
    let Some(text) = own.or_else(|| namespace.get(INGRESS).map(String::as_str)) else {
        return false;
    };
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
        "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
        _ => {
            let why = format!("{text:?} is not followed: true or false is wanted");
            making.problem(format!("metadata.labels[{INGRESS}]"), why);
            false
        }
    }
}

fn unknown_distribution(text: &str) -> String {
    format!("{text:?} is not known: PreferSameZone, PreferClose or PreferSameNode is wanted; no endpoint is preferred")
}

/// What `trafficDistribution` prefers.
fn distribution(text: &str) -> Option<&'static [Scope]> {
    match text {
        "PreferClose" | "PreferSameZone" => Some(&[Scope::Network, Scope::Region, Scope::Zone]),
        "PreferSameNode" => Some(&[Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node]),
        _ => None,
    }
}

/// The annotation's values count in any case, as Istio reads them.
fn distribution_in_any_case(text: &str) -> Option<&'static [Scope]> {
    let known = ["PreferClose", "PreferSameZone", "PreferSameNode"];
    known
        .iter()
        .find(|known| known.eq_ignore_ascii_case(text))
        .and_then(|text| distribution(text))
}

const DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";
const INGRESS: &str = "istio.io/ingress-use-waypoint";
