use std::collections::BTreeMap;

use super::*;
use crate::{Endpoint, NamespacedHostname, ServicePort, mesh::Update};

fn pod(name: &str, ips: &[&str]) -> Workload {
    let mut pod = Workload::new(&format!("c//Pod/shop/{name}"), "shop", name);
    pod.addresses = ips.iter().map(|ip| ip.parse().unwrap()).collect();
    pod.service_account = name.into();
    pod
}

fn captured(name: &str, ips: &[&str]) -> Workload {
    Workload {
        tunnel: TunnelProtocol::Hbone,
        ..pod(name, ips)
    }
}

fn service(name: &str, vip: &str, ports: &[(u16, u16)], endpoints: &[(&Workload, &[(u16, u16)])]) -> Service {
    let mut service = Service::new("shop", &format!("{name}.shop.svc.cluster.local"));
    service.vips = vec![NetworkAddress::local(vip.parse().unwrap())];
    service.ports = ports.iter().map(|&(port, target)| ServicePort { port, target }).collect();
    let endpoint = |ports: &[(u16, u16)]| Endpoint {
        ports: ports.iter().copied().collect(),
        health: Health::Healthy,
    };
    service.endpoints = Arc::new(endpoints.iter().map(|(w, ports)| (w.uid.clone(), endpoint(ports))).collect());
    service
}

fn mesh(workloads: &[&Workload], services: &[&Service]) -> Mesh {
    let workloads = workloads.iter().map(|&w| Update::Workload(Arc::new(w.clone())));
    Mesh::default().apply(workloads.chain(services.iter().map(|&s| Update::Service(Arc::new(s.clone())))))
}

fn route(mesh: &Mesh, source: &Workload, to: &str) -> Route {
    outbound(
        mesh,
        &Outbound {
            source,
            destination: to.parse().unwrap(),
        },
        &Hints::default(),
    )
}

fn tunnel(route: Route) -> Tunnel {
    match route {
        Route::Go(Plan::Tunnel(tunnel)) => tunnel,
        other => panic!("no tunnel: {other:?}"),
    }
}

#[test]
fn strangers_pass_through() {
    let source = pod("client", &["10.0.0.1"]);
    assert_eq!(
        route(&mesh(&[&source], &[]), &source, "192.0.2.1:443"),
        Route::Go(Plan::Passthrough("192.0.2.1:443".parse().unwrap()))
    );
    // The same address in another network is a stranger.
    let far = Workload {
        network: "far".into(),
        ..captured("server", &["10.0.0.2"])
    };
    let mapped = route(&mesh(&[&source, &far], &[]), &source, "[::ffff:10.0.0.2]:80");
    assert_eq!(mapped, Route::Go(Plan::Passthrough("10.0.0.2:80".parse().unwrap())));
}

#[test]
fn a_workload_is_tunnelled_to_once_it_is_captured() {
    let source = pod("client", &["10.0.0.1"]);
    let server = pod("server", &["10.0.0.2"]);
    let Route::Go(Plan::Direct(direct)) = route(&mesh(&[&server], &[]), &source, "10.0.0.2:80") else {
        panic!()
    };
    assert_eq!((direct.to, &direct.destination.uid), ("10.0.0.2:80".parse().unwrap(), &server.uid));
    let server = captured("server", &["10.0.0.2"]);
    let to = tunnel(route(&mesh(&[&server], &[]), &source, "10.0.0.2:80"));
    assert_eq!(to.peer, "10.0.0.2:15008".parse().unwrap());
    assert_eq!(to.authority.to_string(), "10.0.0.2:80");
    assert_eq!(to.accepted, [server.identity().unwrap()]);
    assert!(!to.waypoint && to.service.is_none());
}

#[test]
fn a_service_goes_to_its_endpoints_own_port() {
    let source = pod("client", &["10.0.0.1"]);
    let (a, b) = (captured("a", &["10.0.0.2", "fd00::2"]), captured("b", &["10.0.0.3", "fd00::3"]));
    let web = service(
        "web",
        "10.96.0.1",
        &[(80, 8080), (443, 0)],
        &[(&a, &[]), (&b, &[(80, 9090), (443, 9443)])],
    );
    let mesh = mesh(&[&a, &b], &[&web]);
    let mut seen = BTreeMap::new();
    for draw in 0..10 {
        let hints = Hints { draw, avoid: vec![] };
        let to = tunnel(outbound(
            &mesh,
            &Outbound {
                source: &source,
                destination: "10.96.0.1:80".parse().unwrap(),
            },
            &hints,
        ));
        *seen.entry(to.authority.to_string()).or_insert(0) += 1;
        assert_eq!(to.service.as_deref(), Some(&web));
    }
    assert_eq!(seen, BTreeMap::from([("10.0.0.2:8080".into(), 5), ("10.0.0.3:9090".into(), 5)]));
    // Only b says what 443 is.
    assert_eq!(
        tunnel(route(&mesh, &source, "10.96.0.1:443")).authority.to_string(),
        "10.0.0.3:9443"
    );
    assert_eq!(
        route(&mesh, &source, "10.96.0.1:81"),
        Route::Refuse(Refusal::NoPort(web.name.clone(), 81))
    );
    // What was found dead is left out, until nothing else is left.
    for (avoid, expected) in [
        (vec![a.uid.clone()], "10.0.0.3:9090"),
        (vec![a.uid.clone(), b.uid.clone()], "10.0.0.2:8080"),
    ] {
        let hints = Hints { draw: 0, avoid };
        let to = tunnel(outbound(
            &mesh,
            &Outbound {
                source: &source,
                destination: "10.96.0.1:80".parse().unwrap(),
            },
            &hints,
        ));
        assert_eq!(to.authority.to_string(), expected);
    }
}

#[test]
fn a_service_without_endpoints_refuses_and_never_passes_through() {
    let source = pod("client", &["10.0.0.1"]);
    let sick = Workload {
        health: Health::Unhealthy,
        ..captured("sick", &["10.0.0.2"])
    };
    let far = Workload {
        network: "far".into(),
        ..captured("far", &["10.0.0.4"])
    };
    let nowhere = captured("nowhere", &[]);
    let gone = captured("gone", &["10.0.0.3"]);
    let web = service(
        "web",
        "10.96.0.1",
        &[(80, 80)],
        &[(&sick, &[]), (&gone, &[]), (&far, &[]), (&nowhere, &[])],
    );
    let mesh = mesh(&[&sick, &far, &nowhere], &[&web]);
    assert_eq!(
        route(&mesh, &source, "10.96.0.1:80"),
        Route::Refuse(Refusal::NoEndpoint(web.name.clone()))
    );
}

#[test]
fn families_are_kept_where_both_are_there() {
    let source = pod("client", &["10.0.0.1", "fd00::1"]);
    let server = captured("server", &["10.0.0.2", "fd00::2"]);
    let mut web = service("web", "10.96.0.1", &[(80, 80)], &[(&server, &[])]);
    web.vips.push(NetworkAddress::local("fd00:96::1".parse().unwrap()));
    let mesh = mesh(&[&server], &[&web]);
    assert_eq!(
        tunnel(route(&mesh, &source, "[fd00:96::1]:80")).peer,
        "[fd00::2]:15008".parse().unwrap()
    );
    assert_eq!(
        tunnel(route(&mesh, &source, "10.96.0.1:80")).peer,
        "10.0.0.2:15008".parse().unwrap()
    );
}

#[test]
fn waypoints_speak_for_services_and_workloads() {
    let source = pod("client", &["10.0.0.1"]);
    let gate = captured("gate", &["10.0.0.9"]);
    let gates = service("gate", "10.96.0.9", &[(15008, 15008)], &[(&gate, &[])]);
    let by_address = |ip: &str| GatewayAddress {
        target: GatewayTarget::Address(NetworkAddress::local(ip.parse().unwrap())),
        hbone_port: 15008,
    };
    let by_name = GatewayAddress {
        target: GatewayTarget::Hostname(gates.name.clone()),
        hbone_port: 15008,
    };
    for waypoint in [by_address("10.0.0.9"), by_address("10.96.0.9"), by_name] {
        let server = Workload {
            waypoint: Some(waypoint.clone()),
            ..captured("server", &["10.0.0.2"])
        };
        let mut web = service("web", "10.96.0.1", &[(80, 8080)], &[(&server, &[])]);
        web.waypoint = Some(waypoint);
        let mesh = mesh(&[&server, &gate], &[&web, &gates]);
        for to in ["10.96.0.1:80", "10.0.0.2:8080"] {
            let plan = tunnel(route(&mesh, &source, to));
            assert!(plan.waypoint);
            assert_eq!(
                (plan.peer, plan.authority.to_string().as_str()),
                ("10.0.0.9:15008".parse().unwrap(), to)
            );
            assert_eq!(plan.accepted, [gate.identity().unwrap()]);
            // The waypoint itself goes on to the destination.
            let plan = tunnel(route(&mesh, &gate, to));
            assert!(!plan.waypoint);
            assert_eq!(plan.peer, "10.0.0.2:15008".parse().unwrap());
        }
    }
}

#[test]
fn a_missing_waypoint_refuses() {
    let source = pod("client", &["10.0.0.1"]);
    let target = GatewayTarget::Hostname(NamespacedHostname::new("shop", "gone"));
    let waypoint = Some(GatewayAddress {
        target: target.clone(),
        hbone_port: 15008,
    });
    let server = Workload {
        waypoint,
        ..captured("server", &["10.0.0.2"])
    };
    assert_eq!(
        route(&mesh(&[&server], &[]), &source, "10.0.0.2:80"),
        Route::Refuse(Refusal::NoWaypoint(target))
    );
}

#[test]
fn loops_are_refused() {
    let source = pod("client", &["10.0.0.1"]);
    for port in [15001, 15006, 15008, 15053] {
        let to = SocketAddr::new("127.0.0.1".parse().unwrap(), port);
        assert_eq!(route(&Mesh::default(), &source, &to.to_string()), Route::Refuse(Refusal::Loop(to)));
    }
}

#[test]
fn a_destination_without_identity_is_refused() {
    let source = pod("client", &["10.0.0.1"]);
    let server = Workload {
        service_account: "a/b".into(),
        ..captured("server", &["10.0.0.2"])
    };
    assert_eq!(
        route(&mesh(&[&server], &[]), &source, "10.0.0.2:80"),
        Route::Refuse(Refusal::NoIdentity(server.uid.clone()))
    );
}

#[test]
fn a_connect_reaches_only_the_pod_that_accepted_it() {
    let server = captured("server", &["10.0.0.2", "fd00::2"]);
    let other = captured("other", &["10.0.0.3"]);
    let web = service("web", "10.96.0.1", &[(80, 8080)], &[(&server, &[])]);
    let mesh = mesh(&[&server, &other], &[&web]);
    let arrive = |pod, authority: &str| {
        inbound(
            &mesh,
            &Inbound {
                pod,
                authority: &authority.parse().unwrap(),
            },
        )
        .map(|to| to.to_string())
    };
    assert_eq!(arrive(&server, "10.0.0.2:8080").unwrap(), "10.0.0.2:8080");
    assert_eq!(arrive(&server, "[fd00::2]:8080").unwrap(), "[fd00::2]:8080");
    assert_eq!(arrive(&server, "[::ffff:10.0.0.2]:8080").unwrap(), "10.0.0.2:8080");
    assert_eq!(arrive(&server, "web.shop.svc.cluster.local:80").unwrap(), "10.0.0.2:8080");
    for (pod, authority, status) in [
        (&server, "10.0.0.3:8080", 400),
        (&server, "10.96.0.1:80", 400),
        (&server, "127.0.0.1:8080", 400),
        (&server, "10.0.0.2:15008", 503),
        (&server, "10.0.0.2:15001", 503),
        (&server, "web.shop.svc.cluster.local:81", 503),
        (&server, "nobody.shop.svc.cluster.local:80", 503),
        (&other, "web.shop.svc.cluster.local:80", 503),
    ] {
        assert_eq!(arrive(pod, authority).unwrap_err().status(), status, "{authority}");
    }
}
