//! Each field that istioctl reads, and that ztunnel writes, under its name and in its form.

use std::sync::Arc;

use ambient_authz::{
    Action, Match, Policy, Rule, Scope, StringMatch,
    policy::{Clause, ServiceAccount},
};
use ambient_core::{
    ApplicationProtocol, ApplicationTunnel, BalancerMode, Endpoint, GatewayAddress, GatewayTarget, Health, HealthPolicy, IpFamilies,
    LoadBalancer, Membership, Mesh, NamespacedHostname, NetworkAddress, NetworkBlock, NetworkMode, Service, ServicePort, TunnelProtocol,
    Visibility, WeightedWaypoint, Workload, WorkloadKind, mesh::Update,
};
use serde_json::{Value, json};

use super::{policy, service, workload};

fn written(view: impl serde::Serialize) -> Value {
    serde_json::to_value(view).unwrap()
}

fn at_address(ip: &str) -> GatewayAddress {
    GatewayAddress {
        target: GatewayTarget::Address(NetworkAddress::new("net1".into(), ip.parse().unwrap())),
        hbone_port: 15008,
    }
}

fn at_name(name: &str) -> GatewayAddress {
    GatewayAddress {
        target: GatewayTarget::Hostname(NamespacedHostname::new("istio-system", name)),
        hbone_port: 15008,
    }
}

fn full_workload() -> Workload {
    Workload {
        addresses: vec!["10.1.0.4".parse().unwrap(), "fd00::4".parse().unwrap()],
        network: "net1".into(),
        service_account: "cart".into(),
        node: "node-a".into(),
        cluster: "c1".into(),
        tunnel: TunnelProtocol::Hbone,
        network_mode: NetworkMode::HostNetwork,
        health: Health::Unhealthy,
        kind: WorkloadKind::Deployment,
        workload_name: "cart".into(),
        canonical_name: "cart".into(),
        canonical_revision: "v1".into(),
        locality: ["r1".into(), "z1".into(), "s1".into()],
        policies: vec!["shop/cart-allow".into()],
        waypoint: Some(at_name("wp.istio-system.svc.cluster.local")),
        network_gateway: Some(at_address("10.9.0.1")),
        hostname: "cart.example".into(),
        native_tunnel: true,
        application_tunnel: Some(ApplicationTunnel {
            protocol: ApplicationProtocol::Proxy,
            port: Some(15088),
        }),
        services: vec![Membership {
            service: NamespacedHostname::new("shop", "cart.shop.svc.cluster.local"),
            ports: [(80, 8080)].into_iter().collect(),
        }],
        capacity: 2,
        ..Workload::new("c1//Pod/shop/cart-0", "shop", "cart-0")
    }
}

#[test]
fn a_workload_has_every_field() {
    let full = full_workload();
    assert_eq!(
        written(workload::View::from(&full)),
        json!({
            "workloadIps": ["10.1.0.4", "fd00::4"],
            "waypoint": {"destination": "istio-system/wp.istio-system.svc.cluster.local", "hboneMtlsPort": 15008},
            "networkGateway": {"destination": "net1/10.9.0.1", "hboneMtlsPort": 15008},
            "protocol": "HBONE",
            "networkMode": "HostNetwork",
            "uid": "c1//Pod/shop/cart-0",
            "name": "cart-0",
            "namespace": "shop",
            "trustDomain": "cluster.local",
            "serviceAccount": "cart",
            "network": "net1",
            "workloadName": "cart",
            "workloadType": "deployment",
            "canonicalName": "cart",
            "canonicalRevision": "v1",
            "hostname": "cart.example",
            "node": "node-a",
            "nativeTunnel": true,
            "applicationTunnel": {"protocol": "PROXY", "port": 15088},
            "authorizationPolicies": ["shop/cart-allow"],
            "status": "Unhealthy",
            "clusterId": "c1",
            "locality": {"region": "r1", "zone": "z1", "subzone": "s1"},
            "services": ["shop/cart.shop.svc.cluster.local"],
            "capacity": 2,
        })
    );
}

/// What ztunnel writes also where it is the default, istioctl prints.
#[test]
fn a_workload_of_defaults_has_what_is_always_there() {
    let plain = Workload::new("c//Pod/shop/a", "shop", "a");
    let written = written(workload::View::from(&plain));
    for (name, value) in [
        ("workloadIps", json!([])),
        ("protocol", json!("TCP")),
        ("networkMode", json!("Standard")),
        ("name", json!("a")),
        ("namespace", json!("shop")),
        ("status", json!("Healthy")),
        ("clusterId", json!("Kubernetes")),
        ("capacity", json!(1)),
    ] {
        assert_eq!(written[name], value, "{name}");
    }
    for name in [
        "waypoint",
        "networkGateway",
        "network",
        "hostname",
        "node",
        "nativeTunnel",
        "applicationTunnel",
        "locality",
        "services",
    ] {
        assert!(written.get(name).is_none(), "{name}: {written}");
    }
}

#[test]
fn a_service_has_every_field() {
    let member = full_workload();
    let mut full = Service::new("shop", "cart.shop.svc.cluster.local");
    full.vips = vec![
        NetworkAddress::new("net1".into(), "10.96.0.7".parse().unwrap()),
        NetworkAddress::local("fd00::7".parse().unwrap()),
    ];
    full.vip_blocks = vec![NetworkBlock::new("net1".into(), "192.0.2.0".parse().unwrap(), 24).unwrap()];
    full.ports = vec![ServicePort { port: 80, target: 8080 }, ServicePort { port: 443, target: 0 }];
    full.endpoints = Arc::new(
        [(
            member.uid.clone(),
            Endpoint {
                ports: [(80, 8080), (443, 8443)].into_iter().collect(),
                health: Health::Healthy,
                ..Endpoint::default()
            },
        )]
        .into(),
    );
    full.subject_alt_names = vec![member.identity().unwrap()];
    full.waypoint = Some(at_address("10.96.0.9"));
    full.weighted_waypoints = vec![WeightedWaypoint {
        destination: at_address("10.96.0.9"),
        weight: 10,
    }];
    full.load_balancer = Some(LoadBalancer {
        preferences: vec![ambient_core::Scope::Network, ambient_core::Scope::Region, ambient_core::Scope::Zone],
        mode: BalancerMode::Failover,
        health_policy: HealthPolicy::AllowAll,
    });
    full.ip_families = IpFamilies::Dual;
    full.canonical = true;
    full.visibility = Visibility::Namespace;
    let mesh = Mesh::default().apply([Update::Workload(member.into()), Update::Service(full.clone().into())]);
    assert_eq!(
        written(service::View::new(&full, &mesh)),
        json!({
            "name": "cart",
            "namespace": "shop",
            "hostname": "cart.shop.svc.cluster.local",
            "vips": ["net1/10.96.0.7", "/fd00::7"],
            "cidrVips": [{"network": "net1", "cidr": "192.0.2.0/24"}],
            "ports": {"80": 8080, "443": 0},
            "endpoints": {"c1//Pod/shop/cart-0": {
                "workloadUid": "c1//Pod/shop/cart-0",
                "port": {"80": 8080, "443": 8443},
                "status": "Healthy",
            }},
            "subjectAltNames": ["spiffe://cluster.local/ns/shop/sa/cart"],
            "waypoint": {"destination": "net1/10.96.0.9", "hboneMtlsPort": 15008},
            "weightedWaypoints": [{"destination": {"destination": "net1/10.96.0.9", "hboneMtlsPort": 15008}, "weight": 10}],
            "loadBalancer": {"routingPreferences": ["Network", "Region", "Zone"], "mode": "Failover", "healthPolicy": "AllowAll"},
            "ipFamilies": "Dual",
            "canonical": true,
            "visibility": "Namespace",
        })
    );
}

/// In each process the mesh has them in another order.
#[test]
fn endpoints_are_sorted() {
    let uids: Vec<String> = (10..60).map(|n| format!("c1//Pod/shop/cart-{n}")).collect();
    let mut service = Service::new("shop", "cart.shop.svc.cluster.local");
    service.endpoints = Arc::new(uids.iter().map(|uid| (uid.as_str().into(), Endpoint::default())).collect());
    let mesh = Mesh::default().apply([Update::Service(service.clone().into())]);
    let text = serde_json::to_string(&service::View::new(&service, &mesh)).unwrap();
    let named = text.split("\"workloadUid\":\"").skip(1).filter_map(|rest| rest.split('"').next());
    assert_eq!(named.collect::<Vec<_>>(), uids);
}

#[test]
fn a_service_of_defaults_has_what_is_always_there() {
    let plain = Service::new("shop", "a.shop.svc.cluster.local");
    assert_eq!(
        written(service::View::new(&plain, &Mesh::default())),
        json!({
            "name": "a",
            "namespace": "shop",
            "hostname": "a.shop.svc.cluster.local",
            "vips": [],
            "ports": {},
            "endpoints": {},
            "subjectAltNames": [],
            "canonical": false,
            "visibility": "Public",
        })
    );
}

#[test]
fn a_policy_has_every_field() {
    let account = ServiceAccount {
        namespace: "shop".into(),
        name: "front".into(),
    };
    let texts = || {
        vec![
            StringMatch::Exact("a".into()),
            StringMatch::Prefix("b".into()),
            StringMatch::Suffix("c".into()),
            StringMatch::Presence,
        ]
    };
    let (block, blocks) = ("10.0.0.0/8".parse::<ipnet::IpNet>().unwrap(), ["10.0.0.0/8"]);
    let all = Match {
        namespaces: texts(),
        not_namespaces: texts(),
        principals: texts(),
        not_principals: texts(),
        service_accounts: vec![account.clone()],
        not_service_accounts: vec![account],
        source_ips: vec![block],
        not_source_ips: vec![block],
        destination_ips: vec![block],
        not_destination_ips: vec![block],
        destination_ports: vec![8080],
        not_destination_ports: vec![9090],
        ..Match::default()
    };
    let full = Policy {
        key: "shop/cart-allow".into(),
        namespace: "shop".into(),
        scope: Scope::Selector,
        action: Action::Deny,
        rules: vec![Rule {
            clauses: vec![Clause { matches: vec![all] }],
        }],
        dry_run: true,
    };
    let words = json!([{"Exact": "a"}, {"Prefix": "b"}, {"Suffix": "c"}, {"Presence": []}]);
    let accounts = json!([{"namespace": "shop", "serviceAccount": "front"}]);
    assert_eq!(
        written(policy::View::from(&full)),
        json!({
            "name": "cart-allow",
            "namespace": "shop",
            "scope": "WorkloadSelector",
            "action": "Deny",
            "dryRun": true,
            "rules": [[[{
                "namespaces": words,
                "notNamespaces": words,
                "principals": words,
                "notPrincipals": words,
                "serviceAccounts": accounts,
                "notServiceAccounts": accounts,
                "sourceIps": blocks,
                "notSourceIps": blocks,
                "destinationIps": blocks,
                "notDestinationIps": blocks,
                "destinationPorts": [8080],
                "notDestinationPorts": [9090],
            }]]],
        })
    );
}
