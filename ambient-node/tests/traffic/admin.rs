//! The admin pages of a node that runs.

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::{SocketAddr, TcpStream},
};

use ambient_core::{mesh::Update, ports};
use ambient_testkit::{World, harness::Outcome};
use serde::Deserialize;
use socket2::{Domain, Socket, Type};

use crate::{
    mesh::{Family, Mesh, Pair, Way, until},
    ways,
};

/// What `istioctl ztunnel-config` reads of a dump, and what else stands in ztunnel's.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Dump {
    workloads: Vec<Workload>,
    services: Vec<Service>,
    policies: Vec<Policy>,
    certificates: Vec<Certificates>,
    workload_state: BTreeMap<String, WorkloadState>,
    version: BTreeMap<String, String>,
    config: serde_json::Value,
    staged_services: BTreeMap<String, serde_json::Value>,
    static_config: BTreeMap<String, serde_json::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Workload {
    uid: String,
    workload_ips: Vec<std::net::IpAddr>,
    protocol: String,
    network_mode: String,
    name: String,
    namespace: String,
    service_account: String,
    workload_name: String,
    workload_type: String,
    canonical_name: String,
    canonical_revision: String,
    cluster_id: String,
    trust_domain: String,
    node: String,
    status: String,
    capacity: u32,
    #[serde(default)]
    authorization_policies: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Service {
    name: String,
    namespace: String,
    hostname: String,
    vips: Vec<String>,
    ports: BTreeMap<String, u16>,
    endpoints: BTreeMap<String, Endpoint>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    workload_uid: String,
    port: BTreeMap<u16, u16>,
    status: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Policy {
    name: String,
    namespace: String,
    scope: String,
    action: String,
    rules: Vec<Vec<Vec<Match>>>,
    dry_run: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Match {
    namespaces: Vec<Text>,
    principals: Vec<Text>,
    source_ips: Vec<String>,
    destination_ports: Vec<u16>,
    not_destination_ports: Vec<u16>,
    service_accounts: Vec<serde_json::Value>,
    not_principals: Vec<Text>,
}

#[derive(Debug, PartialEq, Deserialize)]
enum Text {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Presence([u8; 0]),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Certificates {
    identity: String,
    state: String,
    cert_chain: Vec<Certificate>,
    root_certs: Vec<Certificate>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Certificate {
    pem: String,
    serial_number: String,
    valid_from: String,
    expiration_time: String,
}

#[derive(Debug, Deserialize)]
struct WorkloadState {
    state: String,
    connections: Connections,
    info: Info,
}

#[derive(Debug, Deserialize)]
struct Connections {
    inbound: Vec<Connection>,
    outbound: Vec<Connection>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Connection {
    src: String,
    original_dst: Option<String>,
    actual_dst: String,
    protocol: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    name: String,
    namespace: String,
    trust_domain: String,
    service_account: String,
}

const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: all-but-one, namespace: shop}
spec:
  action: DENY
  rules:
  - from: [{source: {principals: ['*/sa/evil'], namespaces: [web]}}]
    to: [{operation: {ports: ['9999']}}]
";

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: b, namespace: shop}
spec: {clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7], ports: [{port: 80, targetPort: 8080}], selector: {app: b}}
";

pub(crate) fn the_dump_is_what_istioctl_reads(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    mesh.apply("policy", POLICY);
    mesh.apply("service", SERVICE);
    let mut pair = mesh.open(Way::Tunnel, Family::V4);
    pair.converse()?;
    let dump = until("policy, service and connection to be told of", || {
        let (status, text) = mesh.page(ports::ADMIN, "/config_dump").ok()?;
        assert_eq!(status, 200, "{text}");
        let dump: Dump = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert!(!text.contains("PRIVATE KEY"));
        let whole = !dump.policies.is_empty() && dump.services.iter().any(|s| !s.endpoints.is_empty());
        (whole && dump.workload_state.len() == 2).then_some(dump)
    });

    let b = dump.workloads.iter().find(|w| w.name == "b").ok_or("b is not in the dump")?;
    assert!(b.workload_ips.contains(&mesh.b.v4) && b.workload_ips.contains(&mesh.b.v6));
    assert_eq!(
        (&*b.uid, &*b.protocol, &*b.network_mode),
        ("Kubernetes//Pod/shop/b", "HBONE", "Standard")
    );
    assert_eq!((&*b.namespace, &*b.service_account, &*b.node), ("shop", "b", "node-1"));
    assert_eq!((&*b.status, b.capacity, &*b.cluster_id), ("Healthy", 1, "Kubernetes"));
    assert_eq!((&*b.workload_name, &*b.workload_type), ("b", "pod"));
    assert_eq!(
        (&*b.canonical_name, &*b.canonical_revision, &*b.trust_domain),
        ("b", "latest", "cluster.local")
    );
    assert!(b.authorization_policies.is_empty());

    let service = &dump.services[0];
    assert_eq!((&*service.name, &*service.namespace), ("b", "shop"));
    assert_eq!(service.hostname, "b.shop.svc.cluster.local");
    assert_eq!(service.vips, ["/10.96.0.7"]);
    assert_eq!(service.ports["80"], 8080);
    let endpoint = &service.endpoints[&b.uid];
    assert_eq!((&endpoint.workload_uid, &*endpoint.status), (&b.uid, "Healthy"));
    assert!(endpoint.port.iter().all(|(service, own)| (*service, *own) == (80, 8080)));

    let policy = &dump.policies[0];
    assert_eq!((&*policy.name, &*policy.namespace), ("all-but-one", "shop"));
    assert_eq!((&*policy.scope, &*policy.action, policy.dry_run), ("Namespace", "Deny", false));
    let matches: Vec<&Match> = policy.rules.iter().flatten().flatten().collect();
    assert!(
        matches.iter().any(|m| m.principals == [Text::Suffix("/sa/evil".into())]),
        "{matches:?}"
    );
    assert!(matches.iter().any(|m| m.namespaces == [Text::Exact("web".into())]));
    assert!(matches.iter().any(|m| m.destination_ports == [9999]));

    certificates(&dump)?;
    connections(&mesh, &dump)?;
    for key in [
        "version",
        "gitRevision",
        "rustVersion",
        "buildProfile",
        "buildStatus",
        "istioVersion",
        "cryptoProvider",
    ] {
        assert!(dump.version.contains_key(key), "{key}");
    }
    assert_eq!(dump.config["localNode"], "node-1");
    assert!(dump.staged_services.is_empty() && dump.static_config.contains_key("workloads"));
    Ok(())
}

fn certificates(dump: &Dump) -> Outcome {
    let identities: Vec<_> = dump.certificates.iter().map(|c| &*c.identity).collect();
    assert_eq!(
        identities,
        ["spiffe://cluster.local/ns/shop/sa/a", "spiffe://cluster.local/ns/shop/sa/b"]
    );
    for of in &dump.certificates {
        assert_eq!((&*of.state, of.root_certs.len()), ("Available", 1));
        for certificate in of.cert_chain.iter().chain(&of.root_certs) {
            assert!(
                certificate.pem.starts_with("LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t"),
                "{}",
                certificate.pem
            );
            assert!(!certificate.serial_number.is_empty() && certificate.serial_number.bytes().all(|b| b.is_ascii_digit()));
            assert!(certificate.valid_from < certificate.expiration_time);
            assert!(certificate.valid_from.ends_with('Z') && certificate.valid_from.len() == "2026-01-01T00:00:00Z".len());
        }
        assert!(!of.cert_chain.is_empty());
    }
    Ok(())
}

/// The connection that stands is there from both sides, as whoever has opened it dialled.
fn connections(mesh: &Mesh, dump: &Dump) -> Outcome {
    let (a, b) = (&dump.workload_state["uid-of-a"], &dump.workload_state["uid-of-b"]);
    assert_eq!((&*a.state, &*b.state), ("Up", "Up"));
    assert_eq!((&*a.info.name, &*a.info.namespace), ("a", "shop"));
    assert_eq!((&*a.info.service_account, &*a.info.trust_domain), ("a", "cluster.local"));
    let outbound = a.connections.outbound.iter().next_back().ok_or("a has nothing open")?;
    let inbound = b.connections.inbound.iter().next_back().ok_or("b has nothing open")?;
    assert_eq!((&*outbound.protocol, &*inbound.protocol), ("HBONE", "HBONE"));
    assert_eq!(outbound.actual_dst, format!("{}:15008", mesh.b.v4));
    assert_eq!(outbound.original_dst.as_ref(), Some(&inbound.actual_dst));
    assert!(outbound.src.starts_with(&format!("{}:", mesh.a.v4)) && inbound.src.starts_with(&format!("{}:", mesh.a.v4)));
    assert_eq!(inbound.original_dst, None);
    Ok(())
}

/// What came by a name, or for somebody else than the pod, is told of by where it arrived, as istioctl looks that up.
pub(crate) fn the_dump_tells_where_what_came_is_delivered(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    let states = || -> Result<BTreeMap<String, WorkloadState>, Box<dyn std::error::Error>> {
        Ok(serde_json::from_str::<Dump>(&mesh.page(ports::ADMIN, "/config_dump")?.1)?.workload_state)
    };
    let last = |all: &[Connection]| -> Option<[String; 4]> {
        let Connection {
            src,
            original_dst,
            actual_dst,
            protocol,
        } = all.last()?;
        let source = src.rsplit_once(':')?.0.to_owned();
        Some([source, original_dst.clone()?, actual_dst.clone(), protocol.clone()])
    };
    let told = |of: [&dyn std::fmt::Display; 4]| Some(of.map(|part| part.to_string()));
    let (a, b, host) = (mesh.a.v4, mesh.b.v4, "web.shop.svc.cluster.local");

    let (pair, at) = ways::through_a_waypoint(&mesh)?;
    let states_now = states()?;
    let of = |pod: &str| &states_now[pod].connections;
    let proxy = format!("{b}:15008");
    assert_eq!(last(&of("uid-of-a").outbound), told([&a, &ways::VIP, &proxy, &"HBONE"]));
    let port = at.port();
    assert_eq!(last(&of("uid-of-b").inbound), told([&a, &host, &format!("{b}:{port}"), &"HBONE"]));
    drop(pair);

    // The waypoint is none any more.
    mesh.tell(vec![Update::Workload(Mesh::workload("b", &mesh.b).into())]);
    let (mut pair, [gate, served]) = ways::by_a_tunnel_in_a_tunnel(&mesh, "a")?;
    pair.converse()?;
    let states_now = states()?;
    let of = |pod: &str| &states_now[pod].connections;
    assert_eq!(last(&of("uid-of-a").outbound), told([&a, &ways::VIP, &proxy, &"DOUBLEHBONE"]));
    assert_eq!(last(&of("uid-of-b").inbound), told([&a, &host, &gate, &"HBONE"]));
    assert_eq!(last(&of("uid-of-a").inbound), told([&mesh.c.v4, &host, &served, &"HBONE"]));
    Ok(())
}

/// A pod may have a port of its own for each destination, and the proxy's is one: the kernel gives the second another, and all that is
/// told is told of that.
pub(crate) fn a_port_that_two_connections_have_is_told_of_once(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    let from = |port| -> std::io::Result<Socket> {
        let socket = mesh.a.namespace.run(|| Socket::new(Domain::IPV4, Type::STREAM, None));
        let socket = socket.map_err(std::io::Error::other)??;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(mesh.a.v4, port).into())?;
        Ok(socket)
    };
    let mut clients = Vec::new();
    let mut port = 0;
    for listener in [mesh.b.listen(Family::V4), mesh.b.listen(Family::V4)] {
        let socket = from(port)?;
        socket.connect(&listener.address().into())?;
        let client = TcpStream::from(socket);
        port = client.local_addr()?.port();
        let mut pair = Pair {
            client,
            server: listener.accept(),
        };
        pair.converse()?;
        clients.push(pair);
    }
    let dump: Dump = serde_json::from_str(&mesh.page(ports::ADMIN, "/config_dump")?.1)?;
    let open = &dump.workload_state["uid-of-a"].connections.outbound;
    let sources = clients.iter().map(|pair| {
        assert_eq!(pair.client.local_addr().unwrap().port(), port);
        let to = pair.server.local_addr().unwrap().to_string();
        let told = open.iter().find(|told| told.original_dst.as_ref() == Some(&to));
        told.unwrap_or_else(|| panic!("{to} is not among {open:?}")).src.clone()
    });
    let [first, second] = &sources.collect::<Vec<_>>()[..] else {
        unreachable!("two were opened")
    };
    assert_eq!(*first, format!("{}:{port}", mesh.a.v4));
    assert!(second.starts_with(&format!("{}:", mesh.a.v4)) && first != second, "{second}");
    Ok(())
}

pub(crate) fn what_changes_the_node_takes_post_alone(world: &World) -> Outcome {
    let mut mesh = Mesh::start(world)?;
    assert_eq!(mesh.page(ports::ADMIN, "/nothing")?.0, 404);
    assert_eq!(mesh.ask("POST", ports::ADMIN, "/config_dump")?.0, 405);
    assert_eq!(mesh.page(ports::ADMIN, "/quitquitquit")?.0, 405);
    assert_eq!(mesh.ask("DELETE", ports::ADMIN, "/logging")?.0, 405);
    let (status, text) = mesh.page(ports::ADMIN, "/debug/pprof/heap")?;
    assert_eq!(status, 501, "{text}");
    let (status, text) = mesh.page(ports::ADMIN, "/")?;
    assert!(status == 200 && text.contains("/config_dump"), "{text}");

    let level = |method, query: &str| mesh.ask(method, ports::ADMIN, &format!("/logging{query}"));
    let told =
        |method, query: &str| level(method, query).map(|(status, text)| (status, text.lines().next().unwrap_or_default().to_owned()));
    assert_eq!(told("GET", "")?, (200, "current log level is info".into()));
    assert_eq!(
        told("POST", "?level=access=warn")?,
        (200, "current log level is info,access=warn".into())
    );
    assert_eq!(level("POST", "?level=loud")?.0, 400);
    // What GET is asked for it does not do.
    assert_eq!(told("GET", "?level=debug")?, (200, "current log level is info,access=warn".into()));
    assert_eq!(told("POST", "?reset")?, (200, "current log level is info".into()));

    // A page of somebody else's in a browser on this node.
    let by_name = "POST /quitquitquit HTTP/1.0\r\nHost: evil.example\r\n\r\n";
    let by_form = "POST /quitquitquit HTTP/1.0\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\r\n";
    for request in [by_name, by_form] {
        assert_eq!(mesh.send(ports::ADMIN, request)?.0, 403, "{request}");
    }

    let (status, text) = mesh.ask("POST", ports::ADMIN, "/quitquitquit?immediate=perhaps")?;
    assert_eq!(status, 400, "{text}");
    let pair = mesh.open(Way::Tunnel, Family::V4);
    let (status, text) = mesh.ask("POST", ports::ADMIN, "/quitquitquit")?;
    assert_eq!((status, &*text), (200, "shutdown now\n"));
    drop(pair);
    mesh.ends_by_itself()?;
    Ok(())
}

/// As many as come, and also those that begin to ask and never end.
pub(crate) fn who_says_nothing_keeps_nobody_from_a_page(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    for (port, path) in [
        (ports::ADMIN, "/"),
        (ports::METRICS, "/metrics"),
        (ports::READINESS, "/healthz/ready"),
    ] {
        let mut silent = Vec::new();
        for _ in 0..10 {
            for _ in 0..20 {
                let mut stream = mesh.connect_to_page(port)?;
                stream.write_all(b"GET ")?;
                silent.push(stream);
            }
            let (status, text) = mesh.page(port, path)?;
            assert_eq!(status, 200, "port {port}: {text}");
        }
    }
    Ok(())
}

/// Nothing that it carries holds up its end, which could be over before the answer has gone.
pub(crate) fn who_ends_an_idle_node_is_answered(world: &World) -> Outcome {
    let mut mesh = Mesh::start(world)?;
    let (status, text) = mesh.ask("POST", ports::ADMIN, "/quitquitquit?immediate")?;
    assert_eq!((status, &*text), (200, "shutdown now\n"));
    mesh.ends_by_itself()?;
    Ok(())
}

pub(crate) fn a_node_that_is_to_end_at_once_does(world: &World) -> Outcome {
    let mut mesh = Mesh::start_with(world, |config| config.drain = std::time::Duration::from_secs(3600))?;
    let mut pair = mesh.open(Way::Tunnel, Family::V4);
    pair.converse()?;
    let (status, _) = mesh.ask("POST", ports::ADMIN, "/quitquitquit?immediate")?;
    assert_eq!(status, 200);
    mesh.ends_by_itself()?;
    assert_eq!(crate::mesh::ending(&mut pair.client), "reset");
    Ok(())
}

pub(crate) fn a_connection_is_explained_as_it_is_decided(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    mesh.apply("service", SERVICE);
    let ask = |to: &str| mesh.page(ports::ADMIN, &format!("/explain?from=shop/a&to={to}"));
    let to_b = format!("{}:8080", mesh.b.v4);
    let (status, text) = ask(&to_b)?;
    assert_eq!(status, 200, "{text}");
    assert!(
        text.contains(&format!("route: tunnel: CONNECT {to_b} at {}:15008, shop/b on node-1", mesh.b.v4)),
        "{text}"
    );
    assert!(
        text.contains("spiffe://cluster.local/ns/shop/sa/a: the source's, here and valid until 20"),
        "{text}"
    );
    assert!(
        text.contains("spiffe://cluster.local/ns/shop/sa/b: what the peer may prove"),
        "{text}"
    );
    assert!(text.contains("policy: it may pass"), "{text}");
    // By the name of a service, as the pod's search domains complete it.
    let by_name = until("the service to be known", || {
        let (status, text) = ask("b:80").ok()?;
        (status == 200 && text.contains("route: tunnel")).then_some(text)
    });
    assert!(by_name.contains("10.96.0.7:80 (shop/b.shop.svc.cluster.local)"), "{by_name}");
    assert!(
        by_name.contains(&format!("CONNECT {}:8080", mesh.b.v4)) || by_name.contains("CONNECT [fd00::3]:8080"),
        "{by_name}"
    );

    mesh.apply("deny", crate::mesh::ALLOW_NOTHING);
    let refused = until("the policy to be known", || {
        let (_, text) = mesh
            .page(ports::ADMIN, &format!("/explain?format=json&from=shop/a&to={to_b}"))
            .ok()?;
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        (answer["policy"]["explanation"]["allowed"] == false).then_some(answer)
    });
    assert_eq!(refused["policy"]["explanation"]["policies"][0]["key"], "shop/allow-nothing");
    assert_eq!(refused["route"]["kind"], "tunnel");
    assert_eq!(
        mesh.a.attempt(mesh.b.deserted(Family::V4)),
        "end",
        "what is explained is what is done"
    );

    let (status, text) = ask(&format!("{}:80", mesh.c.v4))?;
    assert!(status == 200 && text.contains("route: passthrough"), "{text}");
    for (from, to) in [
        ("shop/nobody", &*to_b),
        ("a", &*to_b),
        ("shop/a", "nowhere:80"),
        ("shop/a", "b"),
        ("shop/a", "b:x"),
    ] {
        let (status, text) = mesh.page(ports::ADMIN, &format!("/explain?from={from}&to={to}"))?;
        assert_eq!(status, 404, "{from} {to}: {text}");
    }
    assert_eq!(mesh.page(ports::ADMIN, "/explain?from=shop/a")?.0, 400);
    assert_eq!(ask(&format!("{to_b}&all=perhaps"))?.0, 400);
    // More policies than a page tells of.
    let many = (0..12).map(|i| crate::mesh::ALLOW_NOTHING.replace("allow-nothing", &format!("none-{i}")));
    mesh.apply("many", &many.collect::<Vec<_>>().join("\n---\n"));
    let told = |more: &str| -> Option<usize> {
        let (_, text) = mesh
            .page(ports::ADMIN, &format!("/explain?format=json&from=shop/a&to={to_b}{more}"))
            .ok()?;
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        Some(answer["policy"]["explanation"]["policies"].as_array()?.len())
    };
    until("all policies to be told", || (told("&all=true") == Some(13)).then_some(()));
    assert_eq!((told(""), told("&all"), told("&all=false")), (Some(10), Some(13), Some(10)));
    Ok(())
}

pub(crate) fn how_pods_stand_is_told(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    let ask = |query: &str| mesh.page(ports::ADMIN, &format!("/pods{query}"));
    // That they are served does not mean that they are proven yet.
    let (status, text) = until("both to be captured", || {
        ask("").ok().filter(|(_, text)| text.matches("in force").count() == 2)
    });
    assert_eq!(status, 200, "{text}");
    let row = text.lines().find(|l| l.starts_with("shop/a ")).unwrap_or_else(|| panic!("{text}"));
    assert!(
        row.contains(" yes ") && row.contains("in force") && row.contains("connection") && row.contains("15001 15006 15008  "),
        "{text}"
    );
    assert!(text.contains("probes of the kubelet are let through to"), "{text}");

    let (status, text) = ask("?format=json")?;
    let all: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!((status, &all["probes"]["letThrough"]), (200, &true.into()));
    let pods = all["pods"].as_array().unwrap();
    let a = pods.iter().find(|p| p["name"] == "a").unwrap();
    assert_eq!(
        (&a["captured"], &a["desired"], &a["repairs"]),
        (&true.into(), &true.into(), &0.into())
    );
    // What asked for the pods before they had joined may be open still.
    assert!(a["kept"].is_array());
    let listeners = a["listeners"].as_array().unwrap();
    assert!(
        listeners.len() == 3 && listeners.iter().all(|l| l["state"] == "up"),
        "{listeners:?}"
    );

    for name in ["a", "shop/a"] {
        let (status, text) = ask(&format!("?pod={name}"))?;
        assert_eq!(status, 200, "{text}");
        assert!(text.contains("captured             yes, since 20"), "{text}");
        assert!(text.contains("  what goes out      by a connection that the proxy knew"), "{text}");
    }
    let (status, text) = ask("?pod=nobody")?;
    assert!(status == 404 && text.contains("it knows of") && text.contains("shop/a"), "{text}");
    Ok(())
}
