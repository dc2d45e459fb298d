//! Whole meshes, and where each connection in them goes: what other tables ask of one rule is asked here of several at once.

use super::*;

/// A way in one line.
fn way(route: Route) -> String {
    let name = |workload: &Workload| workload.name.to_string();
    match route {
        Route::Refuse(refusal) => format!("refused: {refusal}"),
        Route::Need(Lookup(name)) => format!("look up {name}"),
        Route::Go(Plan::Passthrough(to)) => format!("pass {to}"),
        Route::Go(Plan::Direct(direct)) => format!("direct {} {}", name(&direct.destination), direct.to),
        Route::Go(Plan::Tunnel(tunnel)) => {
            let kind = match (&tunnel.inner, tunnel.waypoint) {
                (Some(inner), _) => format!("gateway to {}", inner.network.as_str()),
                (None, true) => "waypoint".into(),
                (None, false) => "tunnel".into(),
            };
            format!("{kind} {} {} {}", name(&tunnel.destination), tunnel.peer, tunnel.authority)
        }
    }
}

/// Each row in a hundred draws: all of them go one of the ways that are named, and each of those is gone.
fn check(mesh: &Mesh, rows: &[(&str, &Workload, &str, &[&str])]) {
    for (what, source, to, expected) in rows {
        let seen: std::collections::BTreeSet<String> = (0..100)
            .map(|draw| way(ask(mesh, source, to, &Hints { draw, ..Hints::default() })))
            .collect();
        let expected: std::collections::BTreeSet<String> = expected.iter().map(|&way| way.to_owned()).collect();
        assert_eq!(seen, expected, "{what}");
    }
}

fn named(name: &str, vip: &str, ports: &[(u16, u16)], endpoints: &[&Workload]) -> Service {
    let endpoints: Vec<(&Workload, &[(u16, u16)])> = endpoints.iter().map(|w| (*w, &[][..])).collect();
    service(name, vip, ports, &endpoints)
}

fn far(workload: Workload) -> Workload {
    Workload {
        network: "far".into(),
        ..workload
    }
}

#[test]
fn pods_and_services_of_one_network() {
    let client = captured("client", &["10.0.0.1", "fd00::1"]);
    let (one, other) = (captured("one", &["10.0.0.2"]), captured("other", &["10.0.0.3", "10.0.0.33"]));
    let away = Workload {
        namespace: "away".into(),
        ..captured("away", &["10.0.0.4"])
    };
    let host = Workload {
        network_mode: NetworkMode::HostNetwork,
        ..pod("host", &["192.168.0.1"])
    };
    let web = named("web", "10.96.0.1", &[(80, 8080)], &[&one, &other]);
    let own = named("own", "10.96.0.2", &[(80, 8080)], &[&client]);
    let none = named("none", "10.96.0.3", &[(80, 8080)], &[]);
    let others = named("others", "10.96.0.4", &[(80, 8080)], &[&away, &host]);
    // Of a headless service the pods are asked for by their own addresses, past its ports and its waypoint.
    let mut headless = named("headless", "10.96.0.5", &[(80, 8080)], &[&one]);
    headless.vips.clear();
    headless.waypoint = Some(at_address("10.0.0.99"));
    // A service whose address is the second one of a pod of its own.
    let at_pod = named("at-pod", "10.0.0.33", &[(80, 8080)], &[&other]);
    let mesh = mesh(
        &[&client, &one, &other, &away, &host],
        &[&web, &own, &none, &others, &headless, &at_pod],
    );
    check(
        &mesh,
        &[
            (
                "a service",
                &client,
                "10.96.0.1:80",
                &[
                    "tunnel one 10.0.0.2:15008 10.0.0.2:8080",
                    "tunnel other 10.0.0.3:15008 10.0.0.3:8080",
                ],
            ),
            (
                "a port that it has not",
                &client,
                "10.96.0.1:8080",
                &["refused: service shop/web.shop.svc.cluster.local has no port 8080"],
            ),
            (
                "a pod's own service, by which it reaches itself",
                &client,
                "10.96.0.2:80",
                &["tunnel client 10.0.0.1:15008 10.0.0.1:8080"],
            ),
            (
                "a pod itself",
                &client,
                "[fd00::1]:80",
                &["tunnel client [fd00::1]:15008 [fd00::1]:80"],
            ),
            (
                "no endpoints",
                &client,
                "10.96.0.3:80",
                &["refused: no healthy upstream: shop/none.shop.svc.cluster.local"],
            ),
            (
                "pods of another namespace, and one on its node's address",
                &client,
                "10.96.0.4:80",
                &["direct host 192.168.0.1:8080", "tunnel away 10.0.0.4:15008 10.0.0.4:8080"],
            ),
            ("the node's address", &client, "192.168.0.1:8080", &["pass 192.168.0.1:8080"]),
            (
                "a pod of a headless service, on any port",
                &client,
                "10.0.0.2:81",
                &["tunnel one 10.0.0.2:15008 10.0.0.2:81"],
            ),
            (
                "the very address that was asked for",
                &client,
                "10.0.0.33:80",
                &["tunnel other 10.0.0.33:15008 10.0.0.33:8080"],
            ),
            ("its loopback", &client, "127.0.0.1:80", &["pass 127.0.0.1:80"]),
        ],
    );
}

/// A client, a waypoint, and services and a workload behind it and behind others that are less of one.
fn behind_waypoints() -> (Mesh, Workload, Workload) {
    let client = captured("client", &["10.0.0.1"]);
    let gate = captured("gate", &["10.0.0.9"]);
    let sick = Workload {
        health: Health::Unhealthy,
        ..captured("sick", &["10.0.0.8"])
    };
    let cloud = Workload {
        hostname: "gate.example".into(),
        ..captured("cloud", &[])
    };
    let server = Workload {
        waypoint: Some(at_address("10.0.0.9")),
        ..captured("server", &["10.0.0.2"])
    };
    let gates = named("gate", "10.96.0.9", &[(15008, 15008)], &[&gate]);
    let gates_sick = named("sick", "10.96.0.8", &[(15008, 15008)], &[&sick]);
    let mut open_sick = named("open-sick", "10.96.0.7", &[(15008, 15008)], &[&sick]);
    open_sick.load_balancer = Some(LoadBalancer {
        health_policy: HealthPolicy::AllowAll,
        ..LoadBalancer::default()
    });
    let behind = |name: &str, vip: &str, waypoint: GatewayAddress| Service {
        waypoint: Some(waypoint),
        ..named(name, vip, &[(80, 8080)], &[&server])
    };
    let mut passing = behind("passing", "10.96.1.2", at_name(&gates.name));
    passing.load_balancer = Some(LoadBalancer {
        mode: BalancerMode::Passthrough,
        ..LoadBalancer::default()
    });
    let mut empty = behind("empty", "10.96.1.7", at_name(&gates.name));
    empty.endpoints = Arc::default();
    let services = [
        behind("web", "10.96.1.1", at_name(&gates.name)),
        passing,
        behind("behind-sick", "10.96.1.3", at_name(&gates_sick.name)),
        behind("behind-open", "10.96.1.4", at_name(&open_sick.name)),
        behind(
            "behind-cloud",
            "10.96.1.5",
            at_name(&NamespacedHostname::new("shop", "gate.example")),
        ),
        named("without", "10.96.1.6", &[(80, 8080)], &[&server]),
        empty,
        gates,
        gates_sick,
        open_sick,
    ];
    let mesh = mesh(&[&client, &gate, &sick, &cloud, &server], &services.iter().collect::<Vec<_>>());
    (mesh, client, gate)
}

#[test]
fn waypoints_before_all_else() {
    let (mesh, client, gate) = behind_waypoints();
    check(
        &mesh,
        &[
            ("a service", &client, "10.96.1.1:80", &["waypoint gate 10.0.0.9:15008 10.96.1.1:80"]),
            (
                "on a port that only its waypoint may know",
                &client,
                "10.96.1.1:81",
                &["waypoint gate 10.0.0.9:15008 10.96.1.1:81"],
            ),
            (
                "whatever its balancing",
                &client,
                "10.96.1.2:80",
                &["waypoint gate 10.0.0.9:15008 10.96.1.2:80"],
            ),
            (
                "without an endpoint of its own",
                &client,
                "10.96.1.7:80",
                &["waypoint gate 10.0.0.9:15008 10.96.1.7:80"],
            ),
            (
                "that is not well",
                &client,
                "10.96.1.3:80",
                &["refused: unknown waypoint: shop/sick.shop.svc.cluster.local"],
            ),
            (
                "that is taken though it is not well",
                &client,
                "10.96.1.4:80",
                &["waypoint sick 10.0.0.8:15008 10.96.1.4:80"],
            ),
            ("that has a name alone", &client, "10.96.1.5:80", &["look up gate.example"]),
            (
                "of a workload",
                &client,
                "10.0.0.2:8080",
                &["waypoint gate 10.0.0.9:15008 10.0.0.2:8080"],
            ),
            // Istio's: what is asked for by a service's address goes by the service's waypoint alone.
            (
                "of a workload, by a service without one",
                &client,
                "10.96.1.6:80",
                &["tunnel server 10.0.0.2:15008 10.0.0.2:8080"],
            ),
            (
                "from the waypoint on, to the workload",
                &gate,
                "10.0.0.2:8080",
                &["tunnel server 10.0.0.2:15008 10.0.0.2:8080"],
            ),
            (
                "from the waypoint on, to the service",
                &gate,
                "10.96.1.1:80",
                &["tunnel server 10.0.0.2:15008 10.0.0.2:8080"],
            ),
            (
                "from another's waypoint",
                &gate,
                "10.96.1.4:80",
                &["waypoint sick 10.0.0.8:15008 10.96.1.4:80"],
            ),
            (
                "to a waypoint's own service",
                &client,
                "10.96.0.9:15008",
                &["tunnel gate 10.0.0.9:15008 10.0.0.9:15008"],
            ),
        ],
    );
    // Its name, once it was looked up: in the client's family where that is among its addresses.
    let resolved = |found: &[&str]| Hints {
        resolved: Some((Lookup("gate.example".into()), found.iter().map(|ip| ip.parse().unwrap()).collect())),
        ..Hints::default()
    };
    let to = |found: &[&str]| way(ask(&mesh, &client, "10.96.1.5:80", &resolved(found)));
    assert_eq!(to(&["fd00::7", "192.0.2.7"]), "waypoint cloud 192.0.2.7:15008 10.96.1.5:80");
    assert_eq!(to(&["fd00::7"]), "waypoint cloud [fd00::7]:15008 10.96.1.5:80");
    assert_eq!(to(&[]), "refused: no ip addresses were resolved for workload: gate.example");
}

/// Workloads here and in another network.
fn of_two_networks() -> BTreeMap<&'static str, Workload> {
    let client = captured("client", &["10.0.0.1"]);
    let gateway = |target| Some(GatewayAddress { target, hbone_port: 15009 });
    let far_address = |ip: &str| GatewayTarget::Address(NetworkAddress::new("far".into(), ip.parse().unwrap()));
    let gate = far(captured("gate", &["192.0.2.9"]));
    // As a cloud's load balancer is told of.
    let cloud = Workload {
        hostname: "gate.example".into(),
        ..far(captured("cloud", &[]))
    };
    let behind = |name: &str, ip: &[&str], gateway| Workload {
        network_gateway: gateway,
        ..far(captured(name, ip))
    };
    let by_address = behind("by-address", &["10.0.0.7"], gateway(far_address("192.0.2.9")));
    let by_name = behind(
        "by-name",
        &[],
        gateway(GatewayTarget::Hostname(NamespacedHostname::new("shop", "gate.example"))),
    );
    let cut_off = behind("cut-off", &["10.0.0.8"], None);
    // Workloads of the client's own network have its gateway as well, for others.
    let near = Workload {
        network_gateway: gateway(far_address("192.0.2.9")),
        ..captured("near", &["10.0.0.2"])
    };
    let nowhere = Workload {
        addresses: vec![],
        ..near.clone()
    };
    let nowhere = Workload {
        uid: "c//Pod/shop/nowhere".into(),
        ..nowhere
    };
    let sick = Workload {
        health: Health::Unhealthy,
        ..captured("sick", &["10.0.0.3"])
    };
    let all = [
        ("client", client),
        ("gate", gate),
        ("cloud", cloud),
        ("by_address", by_address),
        ("by_name", by_name),
        ("cut_off", cut_off),
        ("near", near),
        ("nowhere", nowhere),
        ("sick", sick),
    ];
    all.into_iter().collect()
}

#[test]
fn other_networks() {
    let all = of_two_networks();
    let [client, cloud, by_address, by_name, cut_off, near, nowhere, sick] =
        ["client", "cloud", "by_address", "by_name", "cut_off", "near", "nowhere", "sick"].map(|name| &all[name]);
    let sans = vec![near.identity().unwrap()];
    let failover = |preferences: &[Scope]| {
        Some(LoadBalancer {
            preferences: preferences.to_vec(),
            mode: BalancerMode::Failover,
            health_policy: HealthPolicy::OnlyHealthy,
        })
    };
    let of = |name: &str, vip: &str, endpoints: &[&Workload]| Service {
        subject_alt_names: sans.clone(),
        ..named(name, vip, &[(80, 8080)], endpoints)
    };
    let mut only_near = of("only-near", "10.96.0.7", &[near, by_address]);
    only_near.load_balancer = Some(LoadBalancer {
        preferences: vec![Scope::Network],
        mode: BalancerMode::Strict,
        health_policy: HealthPolicy::OnlyHealthy,
    });
    let mut afar = of("afar", "10.96.0.8", &[by_address]);
    afar.vips = vec![NetworkAddress::new("far".into(), "10.96.0.8".parse().unwrap())];
    let services = [
        of("one", "10.96.0.1", &[by_address]),
        of("cloud", "10.96.0.2", &[by_name]),
        of("cut-off", "10.96.0.3", &[cut_off]),
        of("both", "10.96.0.4", &[near, by_address, cut_off, nowhere]),
        Service {
            load_balancer: failover(&[Scope::Network]),
            ..of("near-first", "10.96.0.5", &[near, by_address])
        },
        Service {
            load_balancer: failover(&[Scope::Network]),
            ..of("near-sick", "10.96.0.6", &[sick, by_address])
        },
        only_near,
        afar,
    ];
    let mesh = mesh(&all.values().collect::<Vec<_>>(), &services.iter().collect::<Vec<_>>());
    let gate_to = |name: &str| format!("gateway to far gate 192.0.2.9:15009 {name}.shop.svc.cluster.local:80");
    let here = "tunnel near 10.0.0.2:15008 10.0.0.2:8080";
    check(
        &mesh,
        &[
            ("by its gateway's address", client, "10.96.0.1:80", &[&gate_to("one")]),
            ("by its gateway's name", client, "10.96.0.2:80", &["look up gate.example"]),
            (
                "without a gateway",
                client,
                "10.96.0.3:80",
                &["refused: no healthy upstream: shop/cut-off.shop.svc.cluster.local"],
            ),
            ("here and there, and nowhere", client, "10.96.0.4:80", &[here, &gate_to("both")]),
            ("here while it can", client, "10.96.0.5:80", &[here]),
            ("there where nobody is well here", client, "10.96.0.6:80", &[&gate_to("near-sick")]),
            ("here only", client, "10.96.0.7:80", &[here]),
            ("an address of another network", client, "10.96.0.8:80", &["pass 10.96.0.8:80"]),
            ("a pod's address of another network", client, "10.0.0.7:80", &["pass 10.0.0.7:80"]),
            (
                "the same address, from there",
                &far(client.clone()),
                "10.96.0.8:80",
                &["tunnel by-address 10.0.0.7:15008 10.0.0.7:8080"],
            ),
        ],
    );
    let hints = Hints {
        resolved: Some((Lookup("gate.example".into()), vec!["198.51.100.9".parse().unwrap()])),
        ..Hints::default()
    };
    let plan = tunnel(ask(&mesh, client, "10.96.0.2:80", &hints));
    assert_eq!(
        (plan.peer, &plan.accepted[..]),
        ("198.51.100.9:15009".parse().unwrap(), &[cloud.identity().unwrap()][..])
    );
    assert_eq!(plan.inner.unwrap().accepted, sans);
}

/// The families of a gateway's own service hold for its instances.
#[test]
fn a_waypoint_is_reached_in_the_families_of_its_service() {
    let client = captured("client", &["10.0.0.1", "fd00::1"]);
    let gate = captured("gate", &["10.0.0.9", "fd00::9"]);
    let server = captured("server", &["fd00::2"]);
    for (families, expected) in [
        (IpFamilies::Automatic, "waypoint gate [fd00::9]:15008 [fd00:96::1]:80"),
        (IpFamilies::Ipv4Only, "waypoint gate 10.0.0.9:15008 [fd00:96::1]:80"),
    ] {
        let mut gates = named("gate", "10.96.0.9", &[(15008, 15008)], &[&gate]);
        gates.ip_families = families;
        let mut web = named("web", "fd00:96::1", &[(80, 8080)], &[&server]);
        web.waypoint = Some(at_name(&gates.name));
        let mesh = mesh(&[&gate, &server], &[&web, &gates]);
        check(&mesh, &[("by family", &client, "[fd00:96::1]:80", &[expected])]);
    }
}

/// A workload in another network may have an address that is somebody else's here.
#[test]
fn a_gateway_that_is_a_workload_is_dialled_in_its_own_network_alone() {
    let client = captured("client", &["10.0.0.1"]);
    let at = GatewayAddress {
        target: GatewayTarget::Address(NetworkAddress::new("far".into(), "10.0.0.9".parse().unwrap())),
        hbone_port: 15008,
    };
    for (network, expected) in [("far", None), ("", Some("waypoint gate 10.0.0.9:15008 10.0.0.2:80"))] {
        let gate = Workload {
            network: network.into(),
            ..captured("gate", &["10.0.0.9"])
        };
        let waypoint = match expected {
            Some(_) => at_address("10.0.0.9"),
            None => at.clone(),
        };
        let server = Workload {
            waypoint: Some(waypoint),
            ..captured("server", &["10.0.0.2"])
        };
        let expected = expected.unwrap_or("refused: unknown waypoint: far/10.0.0.9");
        check(
            &mesh(&[&gate, &server], &[]),
            &[("a waypoint", &client, "10.0.0.2:80", &[expected])],
        );
    }
}
