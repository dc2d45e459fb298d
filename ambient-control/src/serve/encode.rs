//! The mesh in istiod's words: the inverse of what its clients read.

use std::net::IpAddr;

use ambient_authz::{
    Action, Policy, Scope, StringMatch,
    policy::{Match, Rule, Unreadable},
};
use ambient_core::{
    ApplicationProtocol, BalancerMode, GatewayAddress, GatewayTarget, Health, HealthPolicy, IpFamilies, NetworkAddress, NetworkMode,
    Scope as Shared, Service, TunnelProtocol, Visibility, Workload, WorkloadKind,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prost::Message;

use crate::{
    istiod::{POD, REFUSAL, WHY, brief},
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

/// The aliases and the body of a workload's resource.
pub(crate) fn workload(of: &Workload) -> (Vec<String>, Vec<u8>) {
    let aliases = of.addresses.iter().map(|ip| format!("{}/{ip}", of.network.as_str())).collect();
    let body = wire::Workload {
        name: of.name.to_string(),
        namespace: of.namespace.to_string(),
        addresses: of.addresses.iter().map(octets).collect(),
        network: of.network.as_str().into(),
        tunnel_protocol: match of.tunnel {
            TunnelProtocol::None => wire::TunnelProtocol::None,
            TunnelProtocol::Hbone => wire::TunnelProtocol::Hbone,
        }
        .into(),
        trust_domain: of.trust_domain.as_str().into(),
        service_account: of.service_account.to_string(),
        waypoint: of.waypoint.as_ref().map(gateway),
        node: of.node.to_string(),
        canonical_name: of.canonical_name.to_string(),
        canonical_revision: of.canonical_revision.to_string(),
        workload_type: match of.kind {
            WorkloadKind::Deployment => wire::WorkloadType::Deployment,
            WorkloadKind::CronJob => wire::WorkloadType::Cronjob,
            WorkloadKind::Pod => wire::WorkloadType::Pod,
            WorkloadKind::Job => wire::WorkloadType::Job,
        }
        .into(),
        workload_name: of.workload_name.to_string(),
        native_tunnel: of.native_tunnel,
        authorization_policies: of.policies.iter().map(ToString::to_string).collect(),
        status: match of.health {
            Health::Healthy => wire::WorkloadStatus::Healthy,
            Health::Unhealthy => wire::WorkloadStatus::Unhealthy,
        }
        .into(),
        cluster_id: of.cluster.to_string(),
        network_gateway: of.network_gateway.as_ref().map(gateway),
        uid: of.uid.to_string(),
        hostname: of.hostname.to_string(),
        services: of
            .services
            .iter()
            .map(|membership| {
                let port = |(service_port, target_port): (u16, u16)| port(service_port, target_port);
                let ports = membership.ports.iter().map(port).collect();
                (membership.service.to_string(), wire::PortList { ports })
            })
            .collect(),
        application_tunnel: of.application_tunnel.map(|tunnel| wire::ApplicationTunnel {
            protocol: match tunnel.protocol {
                ApplicationProtocol::None => wire::application_tunnel::Protocol::None,
                ApplicationProtocol::Proxy => wire::application_tunnel::Protocol::Proxy,
            }
            .into(),
            port: tunnel.port.unwrap_or(0).into(),
        }),
        locality: of.locality.iter().any(|part| !part.is_empty()).then(|| {
            let [region, zone, subzone] = of.locality.clone().map(|part| part.to_string());
            wire::Locality { region, zone, subzone }
        }),
        network_mode: match of.network_mode {
            NetworkMode::Standard => wire::NetworkMode::Standard,
            NetworkMode::HostNetwork => wire::NetworkMode::HostNetwork,
        }
        .into(),
        extensions: of.pod.iter().map(|uid| pod(of, uid.as_str())).collect(),
        capacity: Some(of.capacity),
    };
    (aliases, encoded(address::Type::Workload(body)))
}

/// What istiod's words leave out of a pod, and its node has to know.
fn pod(of: &Workload, uid: &str) -> wire::Extension {
    let capture = of.capture.as_deref().cloned().unwrap_or_default();
    let pod = own::Pod {
        uid: uid.into(),
        ambient: of.ambient,
        bypass_inbound_capture: capture.bypass_inbound,
        dns_capture: capture.dns,
        virtual_interfaces: capture.virtual_interfaces.iter().map(ToString::to_string).collect(),
        nothing_has_run: !of.has_run,
    };
    wire::Extension {
        name: POD.into(),
        config: Some(prost_types::Any {
            type_url: format!("type.googleapis.com/{POD}"),
            value: pod.encode_to_vec(),
        }),
    }
}

/// The body of a trust domain's resource.
pub(crate) fn trust(roots: &[Vec<u8>], crls: &[Vec<u8>]) -> Vec<u8> {
    let trust = own::Trust {
        roots: roots.to_vec(),
        crls: crls.to_vec(),
    };
    trust.encode_to_vec()
}

/// The aliases and the body of a service's resource. Its endpoints are not in it: they name it themselves.
pub(crate) fn service(of: &Service) -> (Vec<String>, Vec<u8>) {
    let aliases = of.vips.iter().map(|vip| format!("{}/{}", vip.network.as_str(), vip.ip)).collect();
    let vips = of.vips.iter().map(network_address);
    let blocks = of.vip_blocks.iter().map(|block| wire::NetworkAddress {
        network: block.network().as_str().into(),
        address: octets(&block.first()),
        length: Some(block.length().into()),
    });
    let body = wire::Service {
        name: of.short_name().into(),
        namespace: of.name.namespace.to_string(),
        hostname: of.name.hostname.to_string(),
        addresses: vips.chain(blocks).collect(),
        ports: of.ports.iter().map(|p| port(p.port, p.target)).collect(),
        subject_alt_names: of.subject_alt_names.iter().map(|id| id.as_str().to_owned()).collect(),
        waypoint: of.waypoint.as_ref().map(gateway),
        load_balancing: of.load_balancer.as_ref().map(|balancer| wire::LoadBalancing {
            routing_preference: balancer.preferences.iter().map(|scope| preference(*scope).into()).collect(),
            mode: match balancer.mode {
                BalancerMode::Standard => wire::load_balancing::Mode::UnspecifiedMode,
                BalancerMode::Strict => wire::load_balancing::Mode::Strict,
                BalancerMode::Failover => wire::load_balancing::Mode::Failover,
                BalancerMode::Passthrough => wire::load_balancing::Mode::Passthrough,
            }
            .into(),
            health_policy: match balancer.health_policy {
                HealthPolicy::OnlyHealthy => wire::load_balancing::HealthPolicy::OnlyHealthy,
                HealthPolicy::AllowAll => wire::load_balancing::HealthPolicy::AllowAll,
            }
            .into(),
        }),
        ip_families: match of.ip_families {
            IpFamilies::Automatic => wire::IpFamilies::Automatic,
            IpFamilies::Ipv4Only => wire::IpFamilies::Ipv4Only,
            IpFamilies::Ipv6Only => wire::IpFamilies::Ipv6Only,
            IpFamilies::Dual => wire::IpFamilies::Dual,
        }
        .into(),
        extensions: Vec::new(),
        canonical: of.canonical,
        ingress_use_waypoint: of.ingress_use_waypoint,
        weighted_waypoints: of
            .weighted_waypoints
            .iter()
            .map(|waypoint| wire::WeightedWaypoint {
                destination: Some(gateway(&waypoint.destination)),
                weight: waypoint.weight,
            })
            .collect(),
        visibility: match of.visibility {
            Visibility::Public => wire::service::Visibility::Public,
            Visibility::Namespace => wire::service::Visibility::Namespace,
        }
        .into(),
    };
    (aliases, encoded(address::Type::Service(body)))
}

fn encoded(of: address::Type) -> Vec<u8> {
    wire::Address { r#type: Some(of) }.encode_to_vec()
}

fn preference(scope: Shared) -> wire::load_balancing::Scope {
    match scope {
        Shared::Region => wire::load_balancing::Scope::Region,
        Shared::Zone => wire::load_balancing::Scope::Zone,
        Shared::Subzone => wire::load_balancing::Scope::Subzone,
        Shared::Node => wire::load_balancing::Scope::Node,
        Shared::Cluster => wire::load_balancing::Scope::Cluster,
        Shared::Network => wire::load_balancing::Scope::Network,
    }
}

fn gateway(of: &GatewayAddress) -> wire::GatewayAddress {
    let destination = match &of.target {
        GatewayTarget::Address(address) => gateway_address::Destination::Address(network_address(address)),
        GatewayTarget::Hostname(name) => gateway_address::Destination::Hostname(wire::NamespacedHostname {
            namespace: name.namespace.to_string(),
            hostname: name.hostname.to_string(),
        }),
    };
    wire::GatewayAddress {
        destination: Some(destination),
        hbone_mtls_port: of.hbone_port.into(),
    }
}

fn network_address(of: &NetworkAddress) -> wire::NetworkAddress {
    wire::NetworkAddress {
        network: of.network.as_str().into(),
        address: octets(&of.ip),
        length: None,
    }
}

fn port(service_port: u16, target_port: u16) -> wire::Port {
    wire::Port {
        service_port: service_port.into(),
        target_port: target_port.into(),
        app_protocol: 0,
    }
}

fn octets(ip: &IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().into(),
        IpAddr::V6(ip) => ip.octets().into(),
    }
}

/// The body of a policy's resource.
///
/// Trust domains are no field of the wire: they are said as beginnings of principals. Where even that cannot be, an ALLOW
/// policy admits less by it and a DENY policy refuses more, never the other way.
pub(super) fn policy(of: &Policy) -> Vec<u8> {
    authorization(of).encode_to_vec()
}

fn authorization(of: &Policy) -> policies::Authorization {
    let name = of
        .key
        .as_str()
        .strip_prefix(&format!("{}/", of.namespace))
        .unwrap_or(of.key.as_str());
    policies::Authorization {
        name: name.into(),
        namespace: of.namespace.to_string(),
        scope: match of.scope {
            Scope::Global => policies::Scope::Global,
            Scope::Namespace => policies::Scope::Namespace,
            Scope::Selector => policies::Scope::WorkloadSelector,
        }
        .into(),
        action: match of.action {
            Action::Allow => policies::Action::Allow,
            Action::Deny => policies::Action::Deny,
        }
        .into(),
        rules: of.rules.iter().map(|r| rule(r, of.action)).collect(),
        dry_run: of.dry_run,
        extensions: Vec::new(),
    }
}

/// What stands for everything in the scope of a policy that cannot be read: nobody is let in. Nodes of this project are told
/// that it is one, and why.
pub(super) fn refusal(of: &Unreadable) -> Vec<u8> {
    // Who reads it takes it for nothing but what its resource is named. Such as a file has no namespace in its name, and refuses
    // everywhere.
    let (namespace, _) = of.key.as_str().split_once('/').unwrap_or_default();
    let scope = if *namespace == *of.namespace { of.scope } else { Scope::Global };
    let said = own::Refusal {
        error: brief(&of.error, WHY).into(),
        only_new: of.only_new,
    };
    let mut refusal = authorization(&Policy {
        key: of.key.clone(),
        namespace: namespace.into(),
        scope,
        action: Action::Deny,
        rules: vec![Rule::default()],
        dry_run: false,
    });
    refusal.extensions.push(policies::Extension {
        name: REFUSAL.into(),
        config: Some(prost_types::Any {
            type_url: format!("type.googleapis.com/{REFUSAL}"),
            value: said.encode_to_vec(),
        }),
    });
    refusal.encode_to_vec()
}

fn rule(of: &Rule, action: Action) -> policies::Rule {
    let mut clauses = Vec::with_capacity(of.clauses.len());
    for clause in &of.clauses {
        match &clause.matches[..] {
            // Both of its conditions on the peer's name can be said, one after the other.
            [one] if !one.trust_domains.is_empty() && !one.principals.is_empty() => {
                let mut rest = one.clone();
                let domains = Match {
                    trust_domains: std::mem::take(&mut rest.trust_domains),
                    ..Match::default()
                };
                clauses.push(said(&[rest], action));
                clauses.push(said(&[domains], action));
            }
            matches => clauses.push(said(matches, action)),
        }
    }
    policies::Rule { clauses }
}

fn said(matches: &[Match], action: Action) -> policies::Clause {
    if matches.is_empty() {
        return policies::Clause::default();
    }
    let said: Vec<_> = matches.iter().filter_map(|m| one_match(m, action)).collect();
    policies::Clause {
        // A clause without matches would be true: one match without a field is not.
        matches: if said.is_empty() { vec![policies::Match::default()] } else { said },
    }
}

/// A match; `None` for one that an ALLOW policy had better do without.
fn one_match(of: &Match, action: Action) -> Option<policies::Match> {
    let mut principals: Vec<_> = of.principals.iter().map(text).collect();
    let mut not_principals: Vec<_> = of.not_principals.iter().map(text).collect();
    let domains = of.trust_domains.iter().map(domain).collect::<Option<Vec<_>>>();
    match (domains, action) {
        (Some(domains), _) if principals.is_empty() => principals = domains,
        (Some(domains), _) if domains.is_empty() => {}
        (_, Action::Allow) => return None,
        // Left out, so that it refuses more; but never so that nothing is left to be true.
        (_, Action::Deny) if principals.is_empty() => principals = vec![text(&StringMatch::Presence)],
        (_, Action::Deny) => {}
    }
    for not in &of.not_trust_domains {
        match (domain(not), action) {
            (Some(not), _) => not_principals.push(not),
            (None, Action::Allow) => return None,
            (None, Action::Deny) => {}
        }
    }
    let accounts = |list: &[ambient_authz::policy::ServiceAccount]| {
        let account = |account: &ambient_authz::policy::ServiceAccount| policies::ServiceAccountMatch {
            namespace: account.namespace.to_string(),
            service_account: account.name.to_string(),
        };
        list.iter().map(account).collect()
    };
    let said = policies::Match {
        namespaces: of.namespaces.iter().map(text).collect(),
        not_namespaces: of.not_namespaces.iter().map(text).collect(),
        principals,
        not_principals,
        source_ips: of.source_ips.iter().map(block).collect(),
        not_source_ips: of.not_source_ips.iter().map(block).collect(),
        destination_ips: of.destination_ips.iter().map(block).collect(),
        not_destination_ips: of.not_destination_ips.iter().map(block).collect(),
        destination_ports: of.destination_ports.iter().copied().map(Into::into).collect(),
        not_destination_ports: of.not_destination_ports.iter().copied().map(Into::into).collect(),
        service_accounts: accounts(&of.service_accounts),
        not_service_accounts: accounts(&of.not_service_accounts),
        extensions: Vec::new(),
    };
    // A negative that was left out may have been all there was: without a field it would match nothing any more.
    if said == policies::Match::default() && !of.is_empty() {
        return Some(policies::Match {
            destination_ips: [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())]
                .iter()
                .map(block)
                .collect(),
            ..said
        });
    }
    Some(said)
}

/// A trust domain as the beginning of a principal, `DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
fn domain(of: &StringMatch) -> Option<policies::StringMatch> {
    match of {
        StringMatch::Exact(domain) => Some(text(&StringMatch::Prefix(format!("{domain}/").into()))),
        StringMatch::Prefix(start) if !start.contains('/') => Some(text(of)),
        StringMatch::Presence => Some(text(of)),
        StringMatch::Prefix(_) | StringMatch::Suffix(_) => None,
    }
}

fn text(of: &StringMatch) -> policies::StringMatch {
    use policies::string_match::MatchType;
    policies::StringMatch {
        match_type: Some(match of {
            StringMatch::Exact(text) => MatchType::Exact(text.to_string()),
            StringMatch::Prefix(text) => MatchType::Prefix(text.to_string()),
            StringMatch::Suffix(text) => MatchType::Suffix(text.to_string()),
            StringMatch::Presence => MatchType::Presence(()),
        }),
    }
}

fn block(of: &IpNet) -> policies::Address {
    policies::Address {
        address: octets(&of.network()),
        length: of.prefix_len().into(),
    }
}
