//! Ways that a connection may take besides the plain ones: waypoints, gateways, other endpoints, and this very process.

use std::{
    fs,
    io::{self, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use ambient_core::{
    ApplicationProtocol, ApplicationTunnel, Endpoint, GatewayAddress, GatewayTarget, Health, NetworkAddress, PortMap, Service, ServicePort,
    TunnelProtocol, Workload, mesh::Update, ports,
};
use ambient_testkit::{World, harness::Outcome};

use crate::mesh::{ALLOW_NOTHING, Family, LABELLED, Listener, Mesh, Pair, Place, Way, ending, reset, until};

pub(crate) const VIP: &str = "10.96.0.1:80";

pub(crate) fn service(endpoints: &[(&Workload, u16)]) -> Service {
    let mut service = Service::new(LABELLED, "web.shop.svc.cluster.local");
    let vip: SocketAddr = VIP.parse().unwrap();
    service.vips = vec![NetworkAddress::local(vip.ip())];
    service.ports = vec![ServicePort { port: 80, target: 0 }];
    let endpoint = |workload: &Workload, port| Endpoint {
        ports: [(80, port)].into_iter().collect::<PortMap>(),
        health: workload.health,
        ..Endpoint::default()
    };
    service.endpoints = Arc::new(endpoints.iter().map(|(w, port)| (w.uid.clone(), endpoint(w, *port))).collect());
    service
}

pub(crate) fn at(network: &str, ip: IpAddr) -> GatewayAddress {
    GatewayAddress {
        target: GatewayTarget::Address(NetworkAddress::new(network.into(), ip)),
        hbone_port: 15008,
    }
}

pub(crate) fn vip() -> SocketAddr {
    VIP.parse().unwrap()
}

/// Connects again until the connection arrives: what was told may not be in force yet.
pub(crate) fn arrive(from: &Place, to: SocketAddr, at: &Listener) -> Pair {
    until("a connection to arrive by the new way", || {
        let mut client = from.connect(to).ok()?;
        client.set_read_timeout(Some(Duration::from_millis(200))).ok()?;
        let server = at.accept_unless(|| !matches!(client.read(&mut [0]), Err(error) if is_late(&error)))?;
        client.set_read_timeout(Some(crate::mesh::PATIENCE)).ok()?;
        Some(Pair { client, server })
    })
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Makes b the waypoint of a service, whose application listens for nobody of the pod's own address and is told who speaks.
pub(crate) fn through_a_waypoint(mesh: &Mesh) -> Result<(Pair, SocketAddr), Box<dyn std::error::Error>> {
    let listener = mesh.b.listen_at("127.0.0.1:0".parse()?);
    let gate = Workload {
        application_tunnel: Some(ApplicationTunnel {
            protocol: ApplicationProtocol::Proxy,
            port: Some(listener.address().port()),
        }),
        ..Mesh::workload("b", &mesh.b)
    };
    let mut web = service(&[]);
    web.waypoint = Some(at("", mesh.b.v4));
    mesh.tell(vec![Update::Workload(gate.into()), Update::Service(web.into())]);
    Ok((arrive(&mesh.a, vip(), &listener), listener.address()))
}

pub(crate) fn a_waypoint_is_told_who_speaks_and_to_whom(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    let (mut pair, _) = through_a_waypoint(&mesh)?;
    let mut header = [0; 28];
    pair.server.read_exact(&mut header)?;
    assert_eq!(&header[..14], b"\r\n\r\n\0\r\nQUIT\n\x21\x11");
    let ip = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(_) => panic!("of IPv4"),
    };
    assert_eq!(header[16..20], ip(mesh.a.v4), "the client");
    assert_eq!(header[20..24], ip(vip().ip()), "what it asked for");
    assert_eq!(header[26..28], 80_u16.to_be_bytes());
    let mut values = vec![0; usize::from(u16::from_be_bytes([header[14], header[15]])) - 12];
    pair.server.read_exact(&mut values)?;
    let id = b"spiffe://cluster.local/ns/shop/sa/a";
    assert_eq!(values[..3], [0xd0, 0, id.len() as u8]);
    assert_eq!(values[3..], id[..]);
    pair.converse()?;
    assert!(has_tunnel(&mesh.b)?, "it came by tunnel");
    Ok(())
}

pub(crate) fn another_endpoint_takes_what_one_cannot(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    let listener = mesh.b.listen(Family::V4);
    let lives = Mesh::workload("b", &mesh.b);
    // One that refuses in plaintext, and two that are to be reached by tunnel and have no proxy.
    let dead = |name: &str, tunnel| Workload {
        pod: None,
        ambient: false,
        tunnel,
        ..Mesh::workload(name, &mesh.c)
    };
    let all = [dead("dead-1", TunnelProtocol::None), dead("dead-2", TunnelProtocol::Hbone)];
    let deserted = mesh.c.deserted(Family::V4).port();
    let [one, two] = &all;
    let web = service(&[(&lives, listener.address().port()), (one, deserted), (two, deserted)]);
    let mut updates: Vec<_> = all.iter().map(|w| Update::Workload(w.clone().into())).collect();
    updates.push(Update::Service(web.into()));
    mesh.tell(updates);
    arrive(&mesh.a, vip(), &listener).converse()?;
    let failed = || mesh.metric("istio_tcp_connections_failed_total", &[("reporter", "source")]);
    let before = failed();
    for _ in 0..20 {
        let mut client = mesh.a.connect(vip())?;
        // What was said before the other end was found arrives there, once.
        client.write_all(b"early")?;
        let mut server = listener.accept();
        let mut heard = [0; 5];
        server.read_exact(&mut heard)?;
        assert_eq!(&heard, b"early");
        Pair { client, server }.converse()?;
    }
    assert_eq!(failed(), before, "a connection that found its way is no failure");
    // Where all are dead, it ends as it would have with one.
    mesh.tell(vec![Update::Service(service(&[(one, deserted), (two, deserted)]).into())]);
    until("the living endpoint to be gone", || {
        // One that still goes to it is not accepted, and hears nothing.
        let mut client = mesh.a.connect(vip()).ok()?;
        client.set_read_timeout(Some(Duration::from_millis(200))).ok()?;
        (ending(&mut client) == "reset").then_some(())
    });
    Ok(())
}

/// From a to a service of another network. The gateway is an application of b that passes bytes on; behind it, a pod that is an
/// endpoint of the service too: a itself, whose node's proxy does not know its client again. What a's node says of a is so of the
/// pod behind the gateway where its owner is `a`. Gives where b and a listen, too.
pub(crate) fn by_a_tunnel_in_a_tunnel(mesh: &Mesh, owner: &str) -> Result<(Pair, [SocketAddr; 2]), Box<dyn std::error::Error>> {
    let (gate, served) = (mesh.b.listen(Family::V4), mesh.a.listen(Family::V4));
    let sick = |name, place| Workload {
        health: Health::Unhealthy,
        ..Mesh::workload(name, place)
    };
    let gateway = Workload {
        pod: None,
        ambient: false,
        network: "far".into(),
        ..Workload {
            uid: "far//Pod/gate".into(),
            ..Mesh::workload("b", &mesh.b)
        }
    };
    let behind = Workload {
        pod: None,
        ambient: false,
        network: "far".into(),
        addresses: vec![],
        network_gateway: Some(at("far", mesh.b.v4)),
        ..Workload {
            uid: "far//Pod/web".into(),
            service_account: "a".into(),
            workload_name: owner.into(),
            canonical_name: "a".into(),
            canonical_revision: "latest".into(),
            ..Mesh::workload("web", &mesh.a)
        }
    };
    let (a, b) = (sick("a", &mesh.a), sick("b", &mesh.b));
    let mut web = service(&[(&a, served.address().port()), (&b, gate.address().port()), (&behind, 1)]);
    web.subject_alt_names = vec![a.identity()?];
    mesh.tell(vec![
        Update::Workload(gateway.into()),
        Update::Workload(behind.into()),
        Update::Service(web.into()),
    ]);
    // From where nothing is captured, as the gateway of a network is no pod of this node.
    let inner = SocketAddr::new(mesh.a.v4, 15008);
    let pair = until("a connection through both tunnels", || {
        let mut client = mesh.a.connect(vip()).ok()?;
        client.set_read_timeout(Some(Duration::from_millis(200))).ok()?;
        let outer = gate.accept_unless(|| !matches!(client.read(&mut [0]), Err(error) if is_late(&error)))?;
        pass_on(outer, mesh.c.connect(inner).ok()?);
        let server = served.accept();
        client.set_read_timeout(Some(crate::mesh::PATIENCE)).ok()?;
        Some(Pair { client, server })
    });
    Ok((pair, [gate.address(), served.address()]))
}

pub(crate) fn another_network_is_reached_by_a_tunnel_in_a_tunnel(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    let (mut pair, _) = by_a_tunnel_in_a_tunnel(&mesh, "a")?;
    pair.converse()?;
    // Whom the gateway has chosen is known by what it says and proves, as far as the mesh knows one of which that is so.
    let chosen = [
        ("reporter", "source"),
        ("source_workload", "a"),
        ("destination_workload", "a"),
        ("destination_canonical_service", "a"),
        ("destination_principal", "spiffe://cluster.local/ns/shop/sa/a"),
        ("destination_service_name", "web"),
    ];
    until("the connection to be counted", || {
        (mesh.metric("istio_tcp_connections_opened_total", &chosen) > 0).then_some(())
    });
    // The address is the gateway's.
    assert_eq!(pair.server.peer_addr()?.ip(), mesh.c.v4);
    pair.client.write_all(&vec![7; 1 << 20])?;
    pair.client.shutdown(Shutdown::Write)?;
    let mut all = Vec::new();
    pair.server.read_to_end(&mut all)?;
    assert_eq!(all.len(), 1 << 20);
    pair.server.write_all(b"the end")?;
    drop(pair.server);
    let mut last = String::new();
    pair.client.read_to_string(&mut last)?;
    assert_eq!(last, "the end", "both directions end in order, through both tunnels");
    who_is_behind_a_gateway_is_told_as_far_as_it_is_known(&mesh)
}

/// Somebody of whom the mesh has not heard what they say, as where it has one workload for all of a service in a network; and
/// nobody, as the gateway refuses.
fn who_is_behind_a_gateway_is_told_as_far_as_it_is_known(mesh: &Mesh) -> Outcome {
    let counted = |metric: &str, labels: &[(&str, &str)]| {
        let labels = [&[("reporter", "source"), ("destination_service_name", "web")], labels].concat();
        until("the connection to be counted", || (mesh.metric(metric, &labels) > 0).then_some(()));
    };
    let a = "spiffe://cluster.local/ns/shop/sa/a";
    drop(by_a_tunnel_in_a_tunnel(mesh, "")?);
    counted(
        "istio_tcp_connections_opened_total",
        &[
            ("destination_workload", "unknown"),
            ("destination_workload_namespace", LABELLED),
            ("destination_principal", a),
        ],
    );
    let mut web = service(&[(&Workload::new("far//Pod/web", LABELLED, "web"), 1)]);
    web.subject_alt_names = vec![a.parse()?];
    mesh.tell(vec![Update::Service(web.into())]);
    until("the gateway to refuse", || {
        let mut client = mesh.a.connect(vip()).ok()?;
        client.set_read_timeout(Some(Duration::from_millis(200))).ok()?;
        (ending(&mut client) == "reset").then_some(())
    });
    let gate = [
        ("destination_workload", "b"),
        ("destination_principal", "spiffe://cluster.local/ns/shop/sa/b"),
    ];
    counted("istio_tcp_connections_failed_total", &gate);
    Ok(())
}

/// Both ways, each until its end.
fn pass_on(one: TcpStream, other: TcpStream) {
    for (mut from, mut to) in [(one.try_clone().unwrap(), other.try_clone().unwrap()), (other, one)] {
        from.set_read_timeout(None).unwrap();
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    }
}

pub(crate) fn an_endpoint_with_a_name_alone_is_reached(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    // The one name that every resolver knows: the pod's own loopback, as the dial is made there.
    let listener = mesh.a.listen_at("127.0.0.1:0".parse()?);
    let outside = with_a_name_alone(&mesh);
    let web = service(&[(&outside, listener.address().port())]);
    mesh.tell(vec![Update::Workload(outside.clone().into()), Update::Service(web.into())]);
    arrive(&mesh.a, vip(), &listener).converse()?;
    let asked = [
        ("source_workload_namespace", LABELLED),
        ("source_principal", "spiffe://cluster.local/ns/shop/sa/a"),
        ("hostname", "localhost"),
    ];
    assert_eq!(mesh.metric("istio_on_demand_dns_total", &asked), 1);

    // Who asks what would become of it is told the same, and is no connection.
    let explained = || mesh.page(ports::ADMIN, &format!("/explain?from=shop/a&to={}", vip())).unwrap().1;
    let told = explained();
    let way = format!(
        "route: direct: shop/outside is not captured: {} is dialled in plaintext",
        listener.address()
    );
    assert!(
        told.contains("lookup: localhost: ") && told.contains("127.0.0.1") && told.contains(&way),
        "{told}"
    );
    assert_eq!(mesh.metric("istio_on_demand_dns_total", &asked), 1);
    // No resolver asks anybody for such a name.
    let nowhere = Workload {
        hostname: "no..where".into(),
        ..outside
    };
    mesh.tell(vec![Update::Workload(nowhere.into())]);
    let told = until("the name to be another", || {
        Some(explained()).filter(|told| told.contains("no..where"))
    });
    assert!(
        told.contains("lookup: no..where: no address") && told.contains("route: refused: ") && told.contains("policy: not asked"),
        "{told}"
    );
    Ok(())
}

fn with_a_name_alone(mesh: &Mesh) -> Workload {
    Workload {
        pod: None,
        ambient: false,
        addresses: vec![],
        hostname: "localhost".into(),
        tunnel: TunnelProtocol::None,
        ..Mesh::workload("outside", &mesh.c)
    }
}

/// What explains has threads of its own, which are few, and on which connections must not hang.
pub(crate) fn what_is_explained_is_found_out_where_connections_find_out(world: &World) -> Outcome {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let asking = asked.clone();
    let mesh = Mesh::start_on_demand(world, move |name| {
        let thread = thread::current().name().unwrap_or_default().to_owned();
        asking.lock().unwrap().push((name.to_owned(), thread));
        Vec::new()
    })?;
    let outside = with_a_name_alone(&mesh);
    let web = service(&[(&outside, 80)]);
    mesh.tell(vec![Update::Workload(outside.into()), Update::Service(web.into())]);
    let explained = |to: &str| mesh.page(ports::ADMIN, &format!("/explain?from=shop/a&to={to}"));
    // Nobody connects: it is for the page alone that the name is looked up.
    until("a thread of look-ups", || {
        let (_, told) = explained(VIP).ok()?;
        let is_one = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "lookup\n");
        let looks_up = fs::read_dir("/proc/self/task").ok()?.flatten().any(is_one);
        (told.contains("lookup: localhost: ") && looks_up).then_some(())
    });
    // Who is at an address, and which service a name means.
    for (to, asked_for) in [("192.0.2.1:80", "/192.0.2.1"), ("nobody:80", "shop/nobody.shop.svc.cluster.local")] {
        explained(to)?;
        let asked = asked.lock().unwrap();
        let by = asked.iter().find(|(name, _)| name == asked_for).map(|(_, by)| by);
        assert!(by.is_some_and(|by| by.starts_with("worker-")), "{to}: {asked:?}");
    }
    Ok(())
}

pub(crate) fn within_the_process_all_is_as_on_the_wire(world: &World) -> Outcome {
    let mesh = Mesh::start_with(world, |config| config.local_shortcut = true)?;
    for family in [Family::V4, Family::V6] {
        let mut pair = mesh.open(Way::Tunnel, family);
        pair.converse()?;
        assert_eq!(pair.server.peer_addr()?.ip(), mesh.a.ip(family), "the application sees the client");
        assert!(!has_tunnel(&mesh.b)?, "no tunnel comes to the pod");
        // Each end finishes for itself.
        pair.client.write_all(b"last")?;
        pair.client.shutdown(Shutdown::Write)?;
        let mut heard = String::new();
        pair.server.read_to_string(&mut heard)?;
        assert_eq!(heard, "last");
        pair.server.write_all(&vec![7; 3 << 20])?;
        drop(pair.server);
        let mut all = Vec::new();
        pair.client.read_to_end(&mut all)?;
        assert_eq!(all.len(), 3 << 20);
        // A reset is one, both ways.
        let mut pair = mesh.open(Way::Tunnel, family);
        reset(pair.client);
        assert_eq!(ending(&mut pair.server), "reset");
        let mut pair = mesh.open(Way::Tunnel, family);
        reset(pair.server);
        assert_eq!(ending(&mut pair.client), "reset");
        assert_eq!(mesh.a.attempt(mesh.b.deserted(family)), "reset", "nobody listens");
    }
    // Counted by both reporters, under the labels of the wire.
    for reporter in ["source", "destination"] {
        let labels = [
            ("reporter", reporter),
            ("source_principal", "spiffe://cluster.local/ns/shop/sa/a"),
            ("destination_principal", "spiffe://cluster.local/ns/shop/sa/b"),
            ("connection_security_policy", "mutual_tls"),
            ("response_flags", "-"),
        ];
        until("the bytes to be counted", || {
            (mesh.metric("istio_tcp_sent_bytes_total", &labels) >= 6 << 20).then_some(())
        });
    }
    // Policies hold, for what is open too.
    let mut open = mesh.open(Way::Tunnel, Family::V4);
    open.converse()?;
    mesh.apply("policy", ALLOW_NOTHING);
    assert_eq!(ending(&mut open.client), "reset");
    assert_eq!(ending(&mut open.server), "reset");
    let listener = mesh.b.listen(Family::V4);
    let mut refused = mesh.a.connect(listener.address())?;
    assert_eq!(ending(&mut refused), "end", "an empty reply");
    assert!(listener.is_lonely());
    assert!(!has_tunnel(&mesh.b)?, "no tunnel comes to the pod");
    Ok(())
}

/// Whether a connection stands at a place's port of tunnels.
pub(crate) fn has_tunnel(place: &Place) -> io::Result<bool> {
    let tables = place.namespace.run(|| {
        let read = |file| fs::read_to_string(file).unwrap_or_default();
        read("/proc/thread-self/net/tcp") + &read("/proc/thread-self/net/tcp6")
    });
    let tables = tables.map_err(io::Error::other)?;
    let mut lines = tables.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // 15008, and the state in which a connection stands.
    Ok(lines.any(|parts| matches!(parts[..], [_, local, _, "01", ..] if local.ends_with(":3AA0"))))
}
