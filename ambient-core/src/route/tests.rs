use std::collections::BTreeMap;

use super::*;
use crate::{
    Endpoint, GatewayAddress, Health, HealthPolicy, IpFamilies, LoadBalancer, Membership, NetworkMode, PortMap, Scope, ServicePort,
    WeightedWaypoint, mesh::Update,
};

mod balancing;
mod delivering;
mod ways;

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
    let endpoint = |w: &Workload, ports: &[(u16, u16)]| Endpoint {
        ports: ports.iter().copied().collect(),
        health: w.health,
        capacity: w.capacity,
    };
    service.endpoints = Arc::new(endpoints.iter().map(|(w, ports)| (w.uid.clone(), endpoint(w, ports))).collect());
    service
}

fn mesh(workloads: &[&Workload], services: &[&Service]) -> Mesh {
    let workloads = workloads.iter().map(|&w| Update::Workload(Arc::new(w.clone())));
    Mesh::default().apply(workloads.chain(services.iter().map(|&s| Update::Service(Arc::new(s.clone())))))
}

fn route(mesh: &Mesh, source: &Workload, to: &str) -> Route {
    ask(mesh, source, to, &Hints::default())
}

fn ask(mesh: &Mesh, source: &Workload, to: &str, hints: &Hints) -> Route {
    let destination = to.parse().unwrap();
    outbound(mesh, &Outbound { source, destination }, hints)
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
    for draw in 0..1000 {
        let hints = Hints { draw, ..Hints::default() };
        let to = tunnel(ask(&mesh, &source, "10.96.0.1:80", &hints));
        *seen.entry(to.authority.to_string()).or_insert(0) += 1;
        assert_eq!(to.service.as_deref(), Some(&web));
    }
    assert_eq!(seen.keys().collect::<Vec<_>>(), ["10.0.0.2:8080", "10.0.0.3:9090"]);
    assert!(seen.values().all(|count| (400..600).contains(count)), "{seen:?}");
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
    let avoiding = |avoid: &[&Workload], draw| {
        let hints = Hints {
            draw,
            avoid: avoid.iter().map(|w| w.uid.clone()).collect(),
            ..Hints::default()
        };
        tunnel(ask(&mesh, &source, "10.96.0.1:80", &hints)).authority.to_string()
    };
    for draw in 0..100 {
        assert_eq!(avoiding(&[&a], draw), "10.0.0.3:9090");
        assert_eq!(avoiding(&[&b], draw), "10.0.0.2:8080");
    }
    assert!((0..100).any(|draw| avoiding(&[&a, &b], draw) == "10.0.0.2:8080"));
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
fn a_waypoint_that_leads_back_is_refused_and_nothing_else_is() {
    let client = captured("client", &["10.0.0.1"]);
    let through = |name: &str, ip: &str, waypoint: &str| Workload {
        waypoint: Some(at_address(waypoint)),
        ..captured(name, &[ip])
    };
    // The first is its own waypoint, the next two are each other's, and the last uses one of those.
    let own = through("own", "10.0.0.2", "10.0.0.2");
    let (one, other) = (through("one", "10.0.0.3", "10.0.0.4"), through("other", "10.0.0.4", "10.0.0.3"));
    let user = through("user", "10.0.0.5", "10.0.0.3");
    let all = [&client, &own, &one, &other, &user];
    // In whatever order they came.
    for turn in 0..all.len() {
        let mut all = all;
        all.rotate_left(turn);
        let mesh = mesh(&all, &[]);
        for (to, user, by) in [("10.0.0.3:80", &one, &other), ("10.0.0.4:80", &other, &one)] {
            let [user, by] = [user, by].map(|workload| WaypointUser::Workload(workload.uid.clone()));
            let refusal = Refusal::WaypointCircle { user, by };
            assert_eq!((refusal.origin(), refusal.status()), (Origin::Control, 503));
            assert_eq!(route(&mesh, &client, to), Route::Refuse(refusal));
        }
        for (to, peer) in [("10.0.0.2:80", "10.0.0.2"), ("10.0.0.5:80", "10.0.0.3")] {
            let plan = tunnel(route(&mesh, &client, to));
            assert_eq!((plan.peer.ip(), plan.waypoint), (peer.parse().unwrap(), true));
        }
        // Each goes on to the other as its waypoint, and never to itself.
        assert!(!tunnel(route(&mesh, &other, "10.0.0.3:80")).waypoint);
    }
    // Whoever is not named by the other any more is gone to.
    let mesh = mesh(&[&client, &one, &captured("other", &["10.0.0.4"])], &[]);
    assert_eq!(tunnel(route(&mesh, &client, "10.0.0.3:80")).peer.ip(), other.addresses[0]);
}

/// Services of two namespaces at one address, of which one leads back: what is gone to is what is looked at.
#[test]
fn whether_a_shared_address_leads_back_hangs_on_who_goes_there() {
    let client = captured("client", &["10.0.0.1"]);
    let stranger = Workload {
        namespace: "away".into(),
        ..captured("stranger", &["10.0.0.2"])
    };
    let server = Workload {
        waypoint: Some(at_address("10.9.0.9")),
        ..captured("server", &["10.0.0.3"])
    };
    let (near, far) = (captured("near", &["10.0.0.4"]), captured("far", &["10.0.0.5"]));
    let mut web = service("web", "10.9.0.1", &[(80, 8080)], &[(&server, &[])]);
    web.waypoint = server.waypoint.clone();
    for circular in ["shop", "away"] {
        let gates = |gate: &Workload, namespace: &str| {
            let mut gates = service("gates", "10.9.0.9", &[], &[(gate, &[])]);
            gates.name.namespace = namespace.into();
            gates.waypoint = (namespace == circular).then(|| at_address("10.9.0.1"));
            gates
        };
        let (ours, theirs) = (gates(&near, "shop"), gates(&far, "away"));
        let mesh = mesh(&[&client, &stranger, &server, &near, &far], &[&web, &ours, &theirs]);
        for (source, gates, gate) in [(&client, &ours, &near), (&stranger, &theirs, &far)] {
            let web = WaypointUser::Service(web.name.clone());
            for (to, user) in [("10.9.0.1:80", web), ("10.0.0.3:80", WaypointUser::Workload(server.uid.clone()))] {
                match route(&mesh, source, to) {
                    Route::Refuse(refusal) if gates.waypoint.is_some() => {
                        let by = WaypointUser::Service(gates.name.clone());
                        assert_eq!(refusal, Refusal::WaypointCircle { user, by });
                    }
                    other => assert_eq!((tunnel(other).peer.ip(), &gates.waypoint), (gate.addresses[0], &None)),
                }
            }
        }
    }
}

#[test]
fn of_a_services_waypoints_the_one_that_leads_back_is_refused() {
    let client = captured("client", &["10.0.0.1"]);
    let pods = ["web", "good", "back"].map(|name| captured(name, &[&format!("10.0.0.{}", name.len())]));
    let [web_pod, good_pod, back_pod] = &pods;
    let by = |service: &Service| GatewayAddress {
        target: GatewayTarget::Hostname(service.name.clone()),
        hbone_port: 15008,
    };
    let good = service("good", "10.9.0.2", &[(80, 80)], &[(good_pod, &[])]);
    let mut back = service("back", "10.9.0.3", &[(80, 80)], &[(back_pod, &[])]);
    let mut web = service("web", "10.9.0.1", &[(80, 80)], &[(web_pod, &[])]);
    let weighted = |service: &Service| WeightedWaypoint {
        destination: by(service),
        weight: 1,
    };
    web.weighted_waypoints = vec![weighted(&good), weighted(&back)];
    back.waypoint = Some(by(&web));
    let all: Vec<_> = pods.iter().chain([&client]).collect();
    let mesh = mesh(&all, &[&web, &good, &back]);
    let draws = (0..32).map(|draw| Hints { draw, ..Hints::default() });
    let [mut gone, mut refused] = [0; 2];
    for hints in draws {
        match ask(&mesh, &client, "10.9.0.1:80", &hints) {
            Route::Refuse(Refusal::WaypointCircle { user, by }) => {
                assert_eq!([user, by], [&web, &back].map(|service| WaypointUser::Service(service.name.clone())));
                refused += 1;
            }
            other => {
                assert_eq!(tunnel(other).destination.uid, good_pod.uid);
                gone += 1;
            }
        }
    }
    assert!(gone > 0 && refused > 0, "{gone} {refused}");
    let refusal = route(&mesh, &client, "10.9.0.3:80");
    assert!(matches!(refusal, Route::Refuse(Refusal::WaypointCircle { .. })), "{refusal:?}");
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

fn at_address(ip: &str) -> GatewayAddress {
    GatewayAddress {
        target: GatewayTarget::Address(NetworkAddress::local(ip.parse().unwrap())),
        hbone_port: 15008,
    }
}

fn at_name(name: &NamespacedHostname) -> GatewayAddress {
    GatewayAddress {
        target: GatewayTarget::Hostname(name.clone()),
        hbone_port: 15008,
    }
}

#[test]
fn several_waypoints_share_by_weight() {
    let source = pod("client", &["10.0.0.1"]);
    let (a, b, c) = (
        captured("a", &["10.0.0.7"]),
        captured("b", &["10.0.0.8"]),
        captured("c", &["10.0.0.9"]),
    );
    let weighted = |ip, weight| WeightedWaypoint {
        destination: at_address(ip),
        weight,
    };
    for (weights, fallback, expected) in [
        (&[1, 3][..], None, &[("a", 250), ("b", 750)][..]),
        (&[0, 1], Some("10.0.0.9"), &[("b", 1000)]),
        // None has a weight: the one waypoint, and where there is none, no waypoint.
        (&[0, 0], Some("10.0.0.9"), &[("c", 1000)]),
        (&[], Some("10.0.0.9"), &[("c", 1000)]),
        (&[0, 0], None, &[("server", 1000)]),
    ] {
        let server = captured("server", &["10.0.0.2"]);
        let mut web = service("web", "10.96.0.1", &[(80, 8080)], &[(&server, &[])]);
        web.weighted_waypoints = ["10.0.0.7", "10.0.0.8"]
            .into_iter()
            .zip(weights)
            .map(|(ip, w)| weighted(ip, *w))
            .collect();
        web.waypoint = fallback.map(at_address);
        let mesh = mesh(&[&server, &a, &b, &c], &[&web]);
        let mut seen: BTreeMap<String, i32> = BTreeMap::new();
        for draw in 0..1000 {
            let hints = Hints { draw, ..Hints::default() };
            *seen
                .entry(tunnel(ask(&mesh, &source, "10.96.0.1:80", &hints)).destination.name.to_string())
                .or_default() += 1;
        }
        assert_eq!(seen.len(), expected.len(), "{seen:?}");
        for (name, count) in expected {
            assert!((seen[*name] - count).abs() < 60, "{seen:?}");
        }
    }
}

#[test]
fn one_of_several_waypoints_goes_on_whichever_the_draw_falls_on() {
    let (a, b) = (captured("a", &["10.0.0.7"]), captured("b", &["10.0.0.8"]));
    let (server, old) = (captured("server", &["10.0.0.2"]), captured("old", &["10.0.0.9"]));
    let mut web = service("web", "10.96.0.1", &[(80, 8080)], &[(&server, &[])]);
    web.waypoint = Some(at_address("10.0.0.9"));
    web.weighted_waypoints = ["10.0.0.7", "10.0.0.8"]
        .map(|ip| WeightedWaypoint {
            destination: at_address(ip),
            weight: 1,
        })
        .into();
    let mesh = mesh(&[&server, &a, &b, &old], &[&web]);
    for gate in [&a, &b, &old] {
        for draw in 0..20 {
            let hints = Hints { draw, ..Hints::default() };
            let plan = tunnel(ask(&mesh, gate, "10.96.0.1:80", &hints));
            assert_eq!((plan.waypoint, &plan.destination.uid), (false, &server.uid), "{} {draw}", gate.name);
        }
    }
}

#[test]
fn a_waypoint_may_be_a_workload_with_a_name_or_a_service_of_another_port() {
    let source = pod("client", &["10.0.0.1"]);
    let named = Workload {
        hostname: "gate.example".into(),
        ..captured("named", &["10.0.0.8"])
    };
    let gate = captured("gate", &["10.0.0.9"]);
    let mapped = service("mapped", "10.96.0.9", &[(15008, 16008)], &[(&gate, &[])]);
    for (waypoint, peer) in [
        (at_name(&NamespacedHostname::new("shop", "gate.example")), "10.0.0.8:15008"),
        (at_name(&mapped.name), "10.0.0.9:16008"),
    ] {
        let server = Workload {
            waypoint: Some(waypoint),
            ..captured("server", &["10.0.0.2"])
        };
        let mesh = mesh(&[&server, &named, &gate], &[&mapped]);
        let plan = tunnel(route(&mesh, &source, "10.0.0.2:80"));
        assert_eq!((plan.peer, plan.waypoint), (peer.parse().unwrap(), true));
        for behind in [&named, &gate] {
            let plan = tunnel(route(&mesh, behind, "10.0.0.2:80"));
            assert_eq!(plan.waypoint, *plan.destination.name != *"server");
        }
    }
}

/// Which instance of a waypoint, and at which of its addresses: each row is how it is named, what the client asked for, and the
/// health of its two instances.
#[test]
fn of_a_waypoints_instances_one_that_is_well_in_the_clients_family() {
    use Health::{Healthy, Unhealthy};
    let source = pod("client", &["10.0.0.1", "fd00::1"]);
    let by_name = at_name(&NamespacedHostname::new("shop", "gate.shop.svc.cluster.local"));
    for (waypoint, to, health, expected) in [
        (&by_name, "10.96.0.1:80", [Healthy, Unhealthy], Some("10.0.0.7:15008")),
        (&by_name, "10.96.0.1:80", [Unhealthy, Healthy], Some("10.0.0.8:15008")),
        (&by_name, "[fd00:96::1]:80", [Unhealthy, Healthy], Some("[fd00::8]:15008")),
        (
            &at_address("10.96.0.9"),
            "[fd00:96::1]:80",
            [Healthy, Unhealthy],
            Some("[fd00::7]:15008"),
        ),
        // An instance that is named by its address is meant, and reached there.
        (
            &at_address("10.0.0.8"),
            "[fd00:96::1]:80",
            [Healthy, Unhealthy],
            Some("10.0.0.8:15008"),
        ),
        (
            &at_address("fd00::8"),
            "10.96.0.1:80",
            [Healthy, Unhealthy],
            Some("[fd00::8]:15008"),
        ),
        (&by_name, "10.96.0.1:80", [Unhealthy, Unhealthy], None),
    ] {
        let instance = |name, ips: &[&str], health| Workload {
            health,
            ..captured(name, ips)
        };
        let (one, other) = (
            instance("one", &["10.0.0.7", "fd00::7"], health[0]),
            instance("other", &["10.0.0.8", "fd00::8"], health[1]),
        );
        let gates = service("gate", "10.96.0.9", &[(15008, 15008)], &[(&one, &[]), (&other, &[])]);
        let server = captured("server", &["10.0.0.2", "fd00::2"]);
        let mut web = service("web", "10.96.0.1", &[(80, 8080)], &[(&server, &[])]);
        web.vips.push(NetworkAddress::local("fd00:96::1".parse().unwrap()));
        web.waypoint = Some(waypoint.clone());
        let mesh = mesh(&[&server, &one, &other], &[&web, &gates]);
        for draw in 0..20 {
            let hints = Hints { draw, ..Hints::default() };
            match (ask(&mesh, &source, to, &hints), expected) {
                (Route::Go(Plan::Tunnel(plan)), Some(peer)) => {
                    assert_eq!(
                        (plan.peer, plan.authority.to_string(), plan.waypoint),
                        (peer.parse().unwrap(), to.to_owned(), true)
                    );
                }
                // Around it would be around its policies.
                (Route::Refuse(Refusal::NoWaypoint(target)), None) => assert_eq!(target, waypoint.target),
                (route, _) => panic!("{to} by {waypoint:?}: {route:?}"),
            }
        }
    }
}

/// Endpoints of a service in another network: each row is who the gateway is, and what the service says of itself.
#[test]
fn another_network_is_reached_through_its_gateway() {
    let source = pod("client", &["10.0.0.1"]);
    let sans = vec![
        Workload {
            service_account: "web".into(),
            ..pod("web", &[])
        }
        .identity()
        .unwrap(),
    ];
    let gate = Workload {
        network: "far".into(),
        ..captured("gate", &["192.0.2.9"])
    };
    let mut gates = service("gate", "10.96.0.9", &[(15008, 15008)], &[(&gate, &[])]);
    gates.vips[0].network = "far".into();
    let far_address = |ip: &str| GatewayAddress {
        target: GatewayTarget::Address(NetworkAddress::new("far".into(), ip.parse().unwrap())),
        hbone_port: 15008,
    };
    let no_gateway = |gateway: &GatewayAddress| Err(Refusal::NoGateway(gateway.target.clone()));
    let web_name = NamespacedHostname::new("shop", "web.shop.svc.cluster.local");
    for (gateway, sans, expected) in [
        (Some(far_address("192.0.2.9")), &sans[..], Ok("192.0.2.9:15008")),
        (Some(far_address("10.96.0.9")), &sans, Ok("192.0.2.9:15008")),
        (Some(at_name(&gates.name)), &sans, Ok("192.0.2.9:15008")),
        (Some(far_address("192.0.2.1")), &sans, no_gateway(&far_address("192.0.2.1"))),
        (
            Some(far_address("192.0.2.9")),
            &[],
            Err(Refusal::NoServiceIdentity(web_name.clone())),
        ),
        (None, &sans, Err(Refusal::NoEndpoint(web_name))),
    ] {
        // It is behind its gateway: that it has no address that anybody knows does not matter.
        let far = Workload {
            network: "far".into(),
            network_gateway: gateway,
            ..captured("server", &[])
        };
        let mut web = service("web", "10.96.0.1", &[(80, 8080)], &[(&far, &[])]);
        web.subject_alt_names = sans.to_vec();
        let mesh = mesh(&[&far, &gate], &[&web, &gates]);
        match (route(&mesh, &source, "10.96.0.1:80"), expected) {
            (Route::Refuse(refusal), Err(expected)) => assert_eq!(refusal, expected),
            (Route::Go(Plan::Tunnel(plan)), Ok(peer)) => {
                assert_eq!((plan.peer, plan.waypoint), (peer.parse().unwrap(), false));
                assert_eq!(plan.authority.to_string(), "web.shop.svc.cluster.local:80");
                // Whoever serves the service has no business to be taken for the gateway.
                assert_eq!(plan.accepted, [gate.identity().unwrap()]);
                let inner = plan.inner.unwrap();
                assert_eq!((inner.accepted, inner.network.as_str()), (sans.to_vec(), "far"));
                assert_eq!(plan.destination.uid, gate.uid);
            }
            (route, _) => panic!("{route:?}"),
        }
    }
}

/// A waypoint of a service whose endpoints, or some of them, are in another network: the gateway of that is asked for the
/// service, and the waypoint proves to be one.
#[test]
fn a_waypoint_in_another_network_is_reached_through_its_gateway() {
    let source = pod("client", &["10.0.0.1"]);
    let gate = Workload {
        network: "far".into(),
        ..captured("gate", &["192.0.2.9"])
    };
    let far = Workload {
        network: "far".into(),
        network_gateway: Some(GatewayAddress {
            target: GatewayTarget::Address(NetworkAddress::new("far".into(), "192.0.2.9".parse().unwrap())),
            hbone_port: 15008,
        }),
        ..captured("far-waypoint", &[])
    };
    let near = captured("near-waypoint", &["10.0.0.9"]);
    let cut_off = Workload {
        network_gateway: None,
        ..far.clone()
    };
    let server = captured("server", &["10.0.0.2"]);
    let id = near.identity().unwrap();
    let through_gate = |inner: &[Identity]| Ok((gate.uid.clone(), "192.0.2.9:15008", false, Some(inner.to_vec())));
    let here = || Ok((near.uid.clone(), "10.0.0.9:15008", true, None));
    let ids = std::slice::from_ref(&id);
    for (instances, sans, expected) in [
        (&[&far][..], ids, through_gate(ids)),
        (&[&far], &[], Err("names no identity")),
        (&[&cut_off], ids, Err("unknown waypoint")),
        (&[&near], ids, here()),
        (&[&near, &cut_off], ids, here()),
    ] {
        let endpoints: Vec<_> = instances.iter().map(|one| (*one, &[][..])).collect();
        let mut waypoints = service("waypoint", "10.96.0.9", &[(15008, 15008)], &endpoints);
        waypoints.subject_alt_names = sans.to_vec();
        let mut web = service("web", "10.96.0.1", &[(80, 8080)], &[(&server, &[])]);
        web.waypoint = Some(at_name(&waypoints.name));
        let all: Vec<_> = instances.iter().copied().chain([&gate, &server]).collect();
        let mesh = mesh(&all, &[&web, &waypoints]);
        for draw in 0..20 {
            let hints = Hints { draw, ..Hints::default() };
            match (ask(&mesh, &source, "10.96.0.1:80", &hints), &expected) {
                (Route::Refuse(refusal), Err(why)) => assert!(refusal.to_string().contains(why), "{refusal}"),
                (Route::Go(Plan::Tunnel(plan)), Ok((uid, peer, waypoint, inner))) => {
                    assert_eq!(
                        (&plan.destination.uid, plan.peer.to_string(), plan.waypoint),
                        (uid, peer.to_string(), *waypoint)
                    );
                    assert_eq!(plan.inner.map(|inner| inner.accepted), *inner);
                    let authority = if inner.is_some() {
                        "web.shop.svc.cluster.local:80"
                    } else {
                        "10.96.0.1:80"
                    };
                    assert_eq!(plan.authority.to_string(), authority);
                }
                (route, _) => panic!("{route:?}"),
            }
        }
    }
    // Only services are reached across networks: a workload's own waypoint is in its network.
    let behind = Workload {
        waypoint: Some(at_name(&NamespacedHostname::new("shop", "waypoint.shop.svc.cluster.local"))),
        ..server
    };
    let waypoints = service("waypoint", "10.96.0.9", &[(15008, 15008)], &[(&far, &[])]);
    let mesh = mesh(&[&far, &gate, &behind], &[&waypoints]);
    assert!(matches!(
        route(&mesh, &source, "10.0.0.2:80"),
        Route::Refuse(Refusal::NoWaypoint(_))
    ));
}

#[test]
fn an_endpoint_with_a_name_alone_is_looked_up() {
    let source = pod("client", &["10.0.0.1"]);
    let outside = Workload {
        hostname: "api.example.com".into(),
        ..pod("outside", &[])
    };
    let web = service("web", "10.96.0.1", &[(443, 443)], &[(&outside, &[])]);
    let only_six = Service {
        ip_families: IpFamilies::Ipv6Only,
        ..web.clone()
    };
    let lookup = Lookup("api.example.com".into());
    for (service, found, expected) in [
        (&web, None, None),
        (&web, Some(&["fd00::5", "192.0.2.5"][..]), Some("192.0.2.5:443")),
        (&web, Some(&["fd00::5"]), Some("[fd00::5]:443")),
        (&only_six, Some(&["fd00::5", "192.0.2.5"]), Some("[fd00::5]:443")),
        (&web, Some(&[]), Some("refused")),
        (&only_six, Some(&["192.0.2.5"]), Some("refused")),
    ] {
        let mesh = mesh(&[&outside], &[service]);
        let resolved = found.map(|found| (lookup.clone(), found.iter().map(|ip| ip.parse().unwrap()).collect()));
        let hints = Hints {
            resolved,
            ..Hints::default()
        };
        let said = match ask(&mesh, &source, "10.96.0.1:443", &hints) {
            Route::Need(needed) => {
                assert_eq!(needed, lookup);
                None
            }
            Route::Go(Plan::Direct(direct)) => Some(direct.to.to_string()),
            Route::Refuse(refusal) => {
                assert_eq!(refusal, Refusal::Unresolved(lookup.0.clone()));
                Some("refused".into())
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(said.as_deref(), expected);
    }
}

#[test]
fn families_that_a_service_is_not_reached_in_are_not_used() {
    let source = pod("client", &["10.0.0.1", "fd00::1"]);
    let server = captured("server", &["10.0.0.2", "fd00::2"]);
    for (families, to, expected) in [
        (IpFamilies::Automatic, "10.96.0.1:80", "10.0.0.2:80"),
        (IpFamilies::Dual, "[fd00:96::1]:80", "[fd00::2]:80"),
        (IpFamilies::Ipv4Only, "[fd00:96::1]:80", "10.0.0.2:80"),
        (IpFamilies::Ipv6Only, "10.96.0.1:80", "[fd00::2]:80"),
    ] {
        let mut web = service("web", "10.96.0.1", &[(80, 80)], &[(&server, &[])]);
        web.vips.push(NetworkAddress::local("fd00:96::1".parse().unwrap()));
        web.ip_families = families;
        let plan = tunnel(route(&mesh(&[&server], &[&web]), &source, to));
        assert_eq!(plan.authority.to_string(), expected);
    }
}

#[test]
fn a_service_may_name_who_answers_for_it() {
    let source = pod("client", &["10.0.0.1"]);
    let server = captured("server", &["10.0.0.2"]);
    let mut web = service("web", "10.96.0.1", &[(80, 80)], &[(&server, &[])]);
    let other = captured("other", &[]).identity().unwrap();
    web.subject_alt_names = vec![other.clone(), server.identity().unwrap()];
    let plan = tunnel(route(&mesh(&[&server], &[&web]), &source, "10.96.0.1:80"));
    assert_eq!(plan.accepted, [server.identity().unwrap(), other]);
}

#[test]
fn blocks_and_private_services() {
    let source = pod("client", &["10.0.0.1"]);
    let server = captured("server", &["10.0.0.2"]);
    let mut web = service("web", "10.96.0.1", &[(80, 80)], &[(&server, &[])]);
    web.vip_blocks = vec![crate::NetworkBlock::new(Network::default(), "198.51.100.0".parse().unwrap(), 24).unwrap()];
    let open = mesh(&[&server], &[&web]);
    assert_eq!(
        tunnel(route(&open, &source, "198.51.100.77:80")).authority.to_string(),
        "10.0.0.2:80"
    );
    web.visibility = crate::Visibility::Namespace;
    let closed = mesh(&[&server], &[&web]);
    assert_eq!(tunnel(route(&closed, &source, "10.96.0.1:80")).authority.to_string(), "10.0.0.2:80");
    let stranger = Workload {
        namespace: "away".into(),
        ..source
    };
    let to = "10.96.0.1:80";
    assert_eq!(route(&closed, &stranger, to), Route::Go(Plan::Passthrough(to.parse().unwrap())));
}

#[test]
fn a_pod_on_its_nodes_address_is_reached_in_plaintext_through_its_service_only() {
    let source = pod("client", &["10.0.0.1"]);
    let host = Workload {
        network_mode: NetworkMode::HostNetwork,
        ..pod("host", &["10.0.0.2"])
    };
    let web = service("web", "10.96.0.1", &[(80, 8080)], &[(&host, &[])]);
    let mesh = mesh(&[&host], &[&web]);
    let Route::Go(Plan::Direct(direct)) = route(&mesh, &source, "10.96.0.1:80") else {
        panic!()
    };
    assert_eq!(direct.to, "10.0.0.2:8080".parse().unwrap());
    let to = "10.0.0.2:8080";
    assert_eq!(route(&mesh, &source, to), Route::Go(Plan::Passthrough(to.parse().unwrap())));
}
