use proptest::prelude::*;

use super::*;
use crate::wire::istio::workload::{Address, NetworkAddress as Sent, address::Type};

fn encoded(of: Type) -> Vec<u8> {
    Address { r#type: Some(of) }.encode_to_vec()
}

fn sent_workload() -> wire::Workload {
    wire::Workload {
        uid: "c1//Pod/shop/cart-0".into(),
        name: "cart-0".into(),
        namespace: "shop".into(),
        addresses: vec![
            vec![10, 1, 0, 4],
            "fd00::4".parse::<std::net::Ipv6Addr>().unwrap().octets().to_vec(),
        ],
        ..wire::Workload::default()
    }
}

fn sent_service() -> wire::Service {
    wire::Service {
        name: "cart".into(),
        namespace: "shop".into(),
        hostname: "cart.shop.svc.cluster.local".into(),
        ..wire::Service::default()
    }
}

fn read_workload(sent: wire::Workload) -> Result<Workload, String> {
    let name = sent.uid.clone();
    let read = address(&name, &encoded(Type::Workload(sent))).map_err(|e| e.why)?;
    match read.change {
        Change::Mesh(Update::Workload(workload)) => Ok((*workload).clone()),
        other => Err(format!("{other:?}")),
    }
}

fn read_service(sent: wire::Service) -> Result<Service, String> {
    let name = format!("{}/{}", sent.namespace, sent.hostname);
    let read = address(&name, &encoded(Type::Service(sent))).map_err(|e| e.why)?;
    match read.change {
        Change::Mesh(Update::Service(service)) => Ok((*service).clone()),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn what_is_not_said_has_istios_meaning() {
    let workload = read_workload(sent_workload()).unwrap();
    assert_eq!(workload.identity().unwrap().as_str(), "spiffe://cluster.local/ns/shop/sa/default");
    assert_eq!((&*workload.cluster, workload.capacity), ("Kubernetes", 1));
    assert_eq!(workload.kind, WorkloadKind::Deployment);
    assert!(!workload.ambient && workload.tunnel == TunnelProtocol::None);
    let service = read_service(sent_service()).unwrap();
    assert_eq!(
        (service.visibility, service.load_balancer, service.canonical),
        (Visibility::Public, None, false)
    );
}

#[test]
fn every_field_of_a_workload_is_read() {
    let read = read_workload(wire::Workload {
        network: "n1".into(),
        tunnel_protocol: 1,
        trust_domain: "td".into(),
        service_account: "cart".into(),
        waypoint: Some(wire::GatewayAddress {
            destination: Some(gateway_address::Destination::Hostname(wire::NamespacedHostname {
                namespace: "shop".into(),
                hostname: "wp.shop".into(),
            })),
            hbone_mtls_port: 15008,
        }),
        node: "node-a".into(),
        canonical_name: "cart".into(),
        canonical_revision: "v2".into(),
        workload_type: 3,
        workload_name: "cart-job".into(),
        native_tunnel: true,
        authorization_policies: vec!["shop/p".into()],
        status: 1,
        cluster_id: "c1".into(),
        network_gateway: Some(wire::GatewayAddress {
            destination: Some(gateway_address::Destination::Address(Sent {
                network: "n1".into(),
                address: vec![10, 9, 0, 1],
                length: None,
            })),
            hbone_mtls_port: 15009,
        }),
        hostname: "Cart.example".into(),
        services: [(
            "shop/cart.shop.svc.cluster.local".to_owned(),
            wire::PortList {
                ports: vec![wire::Port {
                    service_port: 80,
                    target_port: 8080,
                    app_protocol: 0,
                }],
            },
        )]
        .into(),
        application_tunnel: Some(wire::ApplicationTunnel { protocol: 1, port: 15088 }),
        locality: Some(wire::Locality {
            region: "r".into(),
            zone: "z".into(),
            subzone: "s".into(),
        }),
        network_mode: 1,
        capacity: Some(0),
        ..sent_workload()
    })
    .unwrap();
    let mut wanted = Workload::new("c1//Pod/shop/cart-0", "shop", "cart-0");
    wanted.addresses = vec!["10.1.0.4".parse().unwrap(), "fd00::4".parse().unwrap()];
    wanted.network = "n1".into();
    wanted.tunnel = TunnelProtocol::Hbone;
    wanted.trust_domain = "td".parse().unwrap();
    wanted.service_account = "cart".into();
    wanted.waypoint = Some(GatewayAddress {
        target: GatewayTarget::Hostname(NamespacedHostname::new("shop", "wp.shop")),
        hbone_port: 15008,
    });
    wanted.node = "node-a".into();
    wanted.canonical_name = "cart".into();
    wanted.canonical_revision = "v2".into();
    wanted.kind = WorkloadKind::Job;
    wanted.workload_name = "cart-job".into();
    wanted.native_tunnel = true;
    wanted.policies = vec!["shop/p".into()];
    wanted.health = Health::Unhealthy;
    wanted.cluster = "c1".into();
    wanted.network_gateway = Some(GatewayAddress {
        target: GatewayTarget::Address(NetworkAddress::new("n1".into(), "10.9.0.1".parse().unwrap())),
        hbone_port: 15009,
    });
    wanted.hostname = "cart.example".into();
    wanted.services = vec![Membership {
        service: NamespacedHostname::new("shop", "cart.shop.svc.cluster.local"),
        ports: [(80, 8080)].into_iter().collect(),
    }];
    wanted.application_tunnel = Some(ApplicationTunnel {
        protocol: ApplicationProtocol::Proxy,
        port: Some(15088),
    });
    wanted.locality = ["r".into(), "z".into(), "s".into()];
    wanted.network_mode = NetworkMode::HostNetwork;
    wanted.capacity = 0;
    wanted.ambient = true;
    assert_eq!(read, wanted);
}

#[test]
fn every_field_of_a_service_is_read() {
    let vip = |address: Vec<u8>, length| Sent {
        network: "n1".into(),
        address,
        length,
    };
    let gateway = wire::GatewayAddress {
        destination: Some(gateway_address::Destination::Address(vip(vec![10, 96, 0, 9], None))),
        hbone_mtls_port: 15008,
    };
    let read = read_service(wire::Service {
        addresses: vec![
            vip(vec![10, 96, 0, 7], None),
            vip(vec![10, 96, 0, 8], Some(32)),
            vip(vec![192, 0, 2, 9], Some(24)),
        ],
        ports: vec![wire::Port {
            service_port: 80,
            target_port: 0,
            app_protocol: 9,
        }],
        subject_alt_names: vec![
            "api.example.com".into(),
            "spiffe://td/ns/shop/sa/cart".into(),
            "spiffe://td/cart".into(),
        ],
        waypoint: Some(gateway.clone()),
        load_balancing: Some(wire::LoadBalancing {
            routing_preference: vec![6, 1, 2, 3, 4, 5],
            mode: 2,
            health_policy: 1,
        }),
        ip_families: 3,
        canonical: true,
        ingress_use_waypoint: true,
        weighted_waypoints: vec![wire::WeightedWaypoint {
            destination: Some(gateway),
            weight: 10,
        }],
        visibility: 1,
        ..sent_service()
    })
    .unwrap();
    let at = |ip: &str| NetworkAddress::new("n1".into(), ip.parse().unwrap());
    let waypoint = GatewayAddress {
        target: GatewayTarget::Address(at("10.96.0.9")),
        hbone_port: 15008,
    };
    let mut wanted = Service::new("shop", "cart.shop.svc.cluster.local");
    wanted.resource = "cart".into();
    wanted.vips = vec![at("10.96.0.7"), at("10.96.0.8")];
    wanted.vip_blocks = vec![NetworkBlock::new("n1".into(), "192.0.2.0".parse().unwrap(), 24).unwrap()];
    wanted.ports = vec![ServicePort { port: 80, target: 0 }];
    wanted.subject_alt_names = vec!["spiffe://td/ns/shop/sa/cart".parse().unwrap()];
    wanted.waypoint = Some(waypoint.clone());
    wanted.load_balancer = Some(LoadBalancer {
        preferences: vec![
            Scope::Network,
            Scope::Region,
            Scope::Zone,
            Scope::Subzone,
            Scope::Node,
            Scope::Cluster,
        ],
        mode: BalancerMode::Failover,
        health_policy: HealthPolicy::AllowAll,
    });
    wanted.ip_families = IpFamilies::Dual;
    wanted.canonical = true;
    wanted.ingress_use_waypoint = true;
    wanted.weighted_waypoints = vec![WeightedWaypoint {
        destination: waypoint,
        weight: 10,
    }];
    wanted.visibility = Visibility::Namespace;
    assert_eq!(read, wanted);
}

#[test]
fn what_cannot_be_read_is_named() {
    let workload = |change: fn(&mut wire::Workload)| {
        let mut sent = sent_workload();
        change(&mut sent);
        read_workload(sent).unwrap_err()
    };
    for (why, wanted) in [
        (workload(|w| w.uid.clear()), "uid: it is missing"),
        (
            workload(|w| w.addresses[1].truncate(5)),
            "addresses[1]: 5 bytes are no IP address: 4 or 16 are",
        ),
        (
            workload(|w| w.tunnel_protocol = 2),
            "tunnel_protocol: LEGACY_ISTIO_MTLS is not spoken here",
        ),
        (workload(|w| w.tunnel_protocol = 9), "tunnel_protocol: 9 is not known"),
        (workload(|w| w.status = -1), "status: -1 is not known"),
        (workload(|w| w.workload_type = 4), "workload_type: 4 is not known"),
        (workload(|w| w.network_mode = 2), "network_mode: 2 is not known"),
        (workload(|w| w.trust_domain = "a b".into()), "trust_domain: "),
        (
            workload(|w| w.waypoint = Some(wire::GatewayAddress::default())),
            "waypoint.destination: it is missing",
        ),
        (
            workload(|w| w.application_tunnel = Some(wire::ApplicationTunnel { protocol: 0, port: 70_000 })),
            "application_tunnel.port: 70000 is not a port: 0 to 65535 are",
        ),
        (
            workload(|w| drop(w.services.insert("cart".into(), wire::PortList::default()))),
            "services[\"cart\"]: a NAMESPACE/HOSTNAME is wanted",
        ),
        (
            workload(|w| {
                let ports = vec![wire::Port {
                    service_port: 80,
                    target_port: 1 << 16,
                    app_protocol: 0,
                }];
                w.services.insert("a/b".into(), wire::PortList { ports });
            }),
            "services[\"a/b\"].ports[0]: target_port: 65536 is not a port",
        ),
    ] {
        assert!(why.starts_with(wanted), "{why}, and not {wanted}");
    }
    let service = |change: fn(&mut wire::Service)| {
        let mut sent = sent_service();
        change(&mut sent);
        read_service(sent).unwrap_err()
    };
    for (why, wanted) in [
        (service(|s| s.hostname.clear()), "hostname: it is missing"),
        (
            service(|s| s.addresses = vec![Sent::default()]),
            "addresses[0].address: 0 bytes are no IP address",
        ),
        (
            service(|s| {
                s.addresses = vec![Sent {
                    address: vec![10, 0, 0, 0],
                    length: Some(33),
                    ..Sent::default()
                }];
            }),
            "addresses[0].length: 33 is no prefix length of 10.0.0.0",
        ),
        (service(|s| s.ip_families = 4), "ip_families: 4 is not known"),
        (
            service(|s| {
                s.load_balancing = Some(wire::LoadBalancing {
                    routing_preference: vec![1, 0],
                    ..wire::LoadBalancing::default()
                })
            }),
            "load_balancing.routing_preference[1]: 0 is not known",
        ),
        (
            service(|s| s.weighted_waypoints = vec![wire::WeightedWaypoint::default()]),
            "weighted_waypoints[0]: destination: it is missing",
        ),
    ] {
        assert!(why.starts_with(wanted), "{why}, and not {wanted}");
    }
    let other = address("c1//Pod/shop/other", &encoded(Type::Workload(sent_workload())))
        .unwrap_err()
        .why;
    assert_eq!(other, "it is c1//Pod/shop/cart-0 by what it says of itself");
    assert!(address("x", &[]).unwrap_err().why.starts_with("type: neither"));
}

proptest! {
    #[test]
    fn no_bytes_are_read_as_another_name(bytes in prop::collection::vec(any::<u8>(), 0..200), name in "[a-z/]{0,20}") {
        if let Ok(read) = address(&name, &bytes) {
            let said = match read.key {
                Key::Workload(uid) => uid.to_string(),
                Key::Service(name) => name.to_string(),
                Key::Policy(key) => key.to_string(),
                Key::Trust(domain) => domain.to_string(),
            };
            prop_assert!(said.eq_ignore_ascii_case(&name));
        }
        let refused = authorization(&name, &bytes, &authz::Settings::default());
        if let Err(refused) = refused {
            prop_assert_eq!(refused.policy().map(|key| key.to_string()), Some(name));
        }
    }
}
