use super::*;
use crate::{ApplicationProtocol, ApplicationTunnel, Network, NetworkBlock, Visibility};

fn arrive(mesh: &Mesh, pod: &Workload, authority: &str) -> Result<Delivery, Refusal> {
    let authority = &authority.parse().unwrap();
    let at = pod.addresses[0];
    inbound(mesh, &Inbound { pod, at, authority })
}

fn to(mesh: &Mesh, pod: &Workload, authority: &str) -> Result<String, u16> {
    arrive(mesh, pod, authority)
        .map(|d| d.to.to_string())
        .map_err(|refusal| refusal.status())
}

#[test]
fn a_connect_reaches_only_the_pod_that_accepted_it() {
    let server = captured("server", &["10.0.0.2", "fd00::2"]);
    let other = captured("other", &["10.0.0.3"]);
    let web = service("web", "10.96.0.1", &[(80, 8080)], &[(&server, &[])]);
    let mesh = mesh(&[&server, &other], &[&web]);
    for (pod, authority, expected) in [
        (&server, "10.0.0.2:8080", Ok("10.0.0.2:8080")),
        (&server, "[fd00::2]:8080", Ok("[fd00::2]:8080")),
        (&server, "[::ffff:10.0.0.2]:8080", Ok("10.0.0.2:8080")),
        (&server, "web.shop.svc.cluster.local:80", Ok("10.0.0.2:8080")),
        (&server, "10.0.0.3:8080", Err(400)),
        (&server, "10.96.0.1:80", Err(400)),
        (&server, "127.0.0.1:8080", Err(400)),
        (&server, "10.0.0.2:15008", Err(503)),
        (&server, "10.0.0.2:15001", Err(503)),
        (&server, "web.shop.svc.cluster.local:81", Err(503)),
        (&server, "nobody.shop.svc.cluster.local:80", Err(503)),
        (&other, "web.shop.svc.cluster.local:80", Err(503)),
    ] {
        assert_eq!(to(&mesh, pod, authority), expected.map(String::from), "{authority}");
    }
    let at = "fd00::2".parse().unwrap();
    let authority = &"web.shop.svc.cluster.local:80".parse().unwrap();
    let delivery = inbound(
        &mesh,
        &Inbound {
            pod: &server,
            at,
            authority,
        },
    )
    .unwrap();
    assert_eq!(
        delivery.to,
        "[fd00::2]:8080".parse().unwrap(),
        "a name is delivered at the address that it came to"
    );
    assert_eq!(delivery.service.as_deref(), Some(&web));
}

/// As sockets that listen on both families tell addresses.
#[test]
fn an_ipv4_mapped_address_is_the_ipv4_address_that_it_is() {
    let server = captured("server", &["::ffff:10.0.0.2"]);
    let mesh = mesh(&[&server], &[]);
    for pod in [&server, mesh.workload(&server.uid).unwrap()] {
        assert!(pod.has_address("10.0.0.2".parse().unwrap()) && pod.has_address("::ffff:10.0.0.2".parse().unwrap()));
        for authority in ["10.0.0.2:8080", "[::ffff:10.0.0.2]:8080"] {
            assert_eq!(to(&mesh, pod, authority).as_deref(), Ok("10.0.0.2:8080"));
        }
    }
    assert_eq!(
        mesh.workload(&server.uid).unwrap().addresses,
        ["10.0.0.2".parse::<IpAddr>().unwrap()]
    );
}

#[test]
fn a_pod_on_its_nodes_address_receives_nothing() {
    let host = Workload {
        network_mode: NetworkMode::HostNetwork,
        ..captured("host", &["10.0.0.2"])
    };
    assert_eq!(to(&mesh(&[&host], &[]), &host, "10.0.0.2:80"), Err(400));
}

/// Each row of the sandwich: who is the waypoint of what, and how it is named.
#[test]
fn a_waypoint_receives_for_whom_it_speaks() {
    let other = captured("other", &["10.0.0.7"]);
    let gate = captured("gate", &["10.0.0.9"]);
    let gates = service("gate", "10.96.0.9", &[(15008, 15008)], &[(&gate, &[])]);
    for waypoint in [at_address("10.0.0.9"), at_address("10.96.0.9"), at_name(&gates.name)] {
        let server = Workload {
            waypoint: Some(waypoint.clone()),
            ..captured("server", &["10.0.0.2"])
        };
        let plain = captured("plain", &["10.0.0.3"]);
        let mut web = service("web", "10.96.0.1", &[(80, 8080)], &[(&plain, &[])]);
        web.waypoint = Some(waypoint.clone());
        let mut shared = service("shared", "10.96.0.2", &[(80, 8080)], &[(&plain, &[])]);
        shared.weighted_waypoints = vec![
            WeightedWaypoint {
                destination: at_address("10.0.0.7"),
                weight: 9,
            },
            WeightedWaypoint {
                destination: waypoint,
                weight: 1,
            },
        ];
        let mesh = mesh(&[&server, &plain, &gate, &other], &[&web, &gates, &shared]);
        for (pod, authority, expected) in [
            (&gate, "10.0.0.2:8080", Ok("10.0.0.9:8080")),
            (&gate, "10.96.0.1:80", Ok("10.0.0.9:80")),
            (&gate, "web.shop.svc.cluster.local:80", Ok("10.0.0.9:80")),
            (&gate, "10.96.0.2:80", Ok("10.0.0.9:80")),
            (&other, "10.96.0.2:80", Ok("10.0.0.7:80")),
            // It speaks for the service, and not for who is behind it; and nobody else does.
            (&gate, "10.0.0.3:8080", Err(400)),
            (&other, "10.0.0.2:8080", Err(400)),
            (&other, "10.96.0.1:80", Err(400)),
            (&other, "web.shop.svc.cluster.local:80", Err(503)),
            (&gate, "10.0.0.2:15008", Err(503)),
        ] {
            assert_eq!(to(&mesh, pod, authority), expected.map(String::from), "{authority}");
        }
    }
}

/// Whom a client means by an address hangs on its namespace, which is not the waypoint's.
#[test]
fn a_waypoint_receives_for_services_that_its_own_namespace_does_not_mean() {
    let gate = captured("gate", &["10.0.0.9"]);
    let gate = Workload {
        namespace: "infra".into(),
        ..gate
    };
    let through = |name: &str, vip: &str| Service {
        waypoint: Some(at_address("10.0.0.9")),
        ..service(name, vip, &[(80, 8080)], &[])
    };
    let mut hidden = through("hidden", "10.96.0.1");
    hidden.visibility = Visibility::Namespace;
    let shared = through("shared", "10.96.0.2");
    let mut own = service("shared", "10.96.0.2", &[(80, 8080)], &[]);
    own.name = NamespacedHostname::new("infra", "shared.infra.svc.cluster.local");
    let mut block = through("block", "10.96.0.3");
    block.vips.clear();
    block.vip_blocks = vec![NetworkBlock::new(Network::default(), "10.97.0.0".parse().unwrap(), 16).unwrap()];
    // A service comes before a workload, as for who comes.
    let both = Workload {
        waypoint: Some(at_address("10.0.0.7")),
        ..captured("both", &["10.96.0.4"])
    };
    let of_both = through("of-both", "10.96.0.4");
    let mesh = mesh(&[&gate, &both], &[&hidden, &shared, &own, &block, &of_both]);
    for (vip, service) in [
        ("10.96.0.1", &hidden),
        ("10.96.0.2", &shared),
        ("10.97.3.4", &block),
        ("10.96.0.4", &of_both),
    ] {
        let delivery = arrive(&mesh, &gate, &format!("{vip}:80"));
        let delivery = delivery.unwrap_or_else(|refusal| panic!("{vip}: {refusal}"));
        assert_eq!(delivery.to, "10.0.0.9:80".parse().unwrap(), "{vip}");
        assert_eq!(delivery.service.map(|of| of.name.clone()).as_ref(), Some(&service.name), "{vip}");
    }
    let other = captured("other", &["10.0.0.7"]);
    assert_eq!(
        to(&mesh, &other, "10.96.0.4:80"),
        Ok("10.0.0.7:80".into()),
        "it is the workload's waypoint"
    );
    assert_eq!(to(&mesh, &other, "10.96.0.1:80"), Err(400), "and of no service");
}

#[test]
fn an_application_may_want_another_port_and_be_told_where_it_went() {
    let tunnel = |protocol, port| Some(ApplicationTunnel { protocol, port });
    let (none, proxy) = (ApplicationProtocol::None, ApplicationProtocol::Proxy);
    for (application_tunnel, authority, expected) in [
        (tunnel(none, None), "10.0.0.2:80", Ok(("10.0.0.9:80", None))),
        (tunnel(none, Some(90)), "10.0.0.2:80", Ok(("10.0.0.9:90", None))),
        (tunnel(proxy, None), "10.0.0.2:80", Ok(("10.0.0.9:80", Some("10.0.0.2:80")))),
        (
            tunnel(proxy, Some(15088)),
            "10.0.0.2:80",
            Ok(("10.0.0.9:15088", Some("10.0.0.2:80"))),
        ),
        (
            tunnel(proxy, Some(15088)),
            "10.0.0.9:80",
            Ok(("10.0.0.9:15088", Some("10.0.0.9:80"))),
        ),
        (
            tunnel(proxy, Some(15088)),
            "10.96.0.1:80",
            Ok(("10.0.0.9:15088", Some("10.96.0.1:80"))),
        ),
        (
            tunnel(proxy, Some(15088)),
            "web.shop.svc.cluster.local:80",
            Ok(("10.0.0.9:15088", Some("10.96.0.1:80"))),
        ),
        // What it is not a waypoint of, it is told of too: Istio's rule.
        (
            tunnel(proxy, Some(15088)),
            "192.0.2.7:80",
            Ok(("10.0.0.9:15088", Some("192.0.2.7:80"))),
        ),
        (tunnel(none, Some(90)), "192.0.2.7:80", Ok(("10.0.0.9:90", None))),
        (tunnel(none, Some(15008)), "10.0.0.2:80", Err(Refusal::OwnPort(15008))),
        (tunnel(proxy, Some(15088)), "10.0.0.9:15001", Err(Refusal::OwnPort(15001))),
    ] {
        let gate = Workload {
            application_tunnel,
            ..captured("gate", &["10.0.0.9"])
        };
        let server = Workload {
            waypoint: Some(at_address("10.0.0.9")),
            ..captured("server", &["10.0.0.2"])
        };
        let mut web = service("web", "fd00:96::1", &[(80, 8080)], &[]);
        web.vips.push(NetworkAddress::new("far".into(), "10.96.9.9".parse().unwrap()));
        web.vips.push(NetworkAddress::local("10.96.0.1".parse().unwrap()));
        web.waypoint = Some(at_address("10.0.0.9"));
        let mesh = mesh(&[&gate, &server], &[&web]);
        let delivery = arrive(&mesh, &gate, authority).map(|d| (d.to, d.told));
        let parsed = |at: &str| at.parse::<SocketAddr>().unwrap();
        assert_eq!(delivery, expected.map(|(to, told)| (parsed(to), told.map(parsed))), "{authority}");
    }
}

#[test]
fn an_application_cannot_be_told_of_a_service_without_an_address() {
    let gate = Workload {
        application_tunnel: Some(ApplicationTunnel {
            protocol: ApplicationProtocol::Proxy,
            port: None,
        }),
        ..captured("gate", &["10.0.0.9"])
    };
    let mut web = service("web", "10.96.0.1", &[(80, 80)], &[(&gate, &[])]);
    web.vips.clear();
    let refused = arrive(&mesh(&[&gate], &[&web]), &gate, "web.shop.svc.cluster.local:80");
    assert_eq!(refused, Err(Refusal::NoAddress(web.name)));
}
