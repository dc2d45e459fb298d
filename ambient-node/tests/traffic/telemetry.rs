//! What the node says of itself and of what it carries.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener},
    time::Duration,
};

use ambient_core::{TunnelProtocol, Workload, mesh::Update, ports};
use ambient_testkit::{World, harness::Outcome};

use crate::{
    mesh::{Family, Listener, Mesh, PATIENCE, Way, ending, until},
    ways,
};

const SENT: &str = "istio_tcp_sent_bytes_total";
const RECEIVED: &str = "istio_tcp_received_bytes_total";
const OPENED: &str = "istio_tcp_connections_opened_total";
const CLOSED: &str = "istio_tcp_connections_closed_total";
const FAILED: &str = "istio_tcp_connections_failed_total";

pub(crate) fn metrics_have_the_bytes(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    for (way, asked, answered) in [
        (Way::Tunnel, 12_345, 67_890),
        (Way::Inbound, 1_111, 222_222),
        (Way::Outbound, 33_333, 444),
    ] {
        let (a, b) = (
            ("spiffe://cluster.local/ns/shop/sa/a", "a"),
            ("spiffe://cluster.local/ns/shop/sa/b", "b"),
        );
        let unknown = ("unknown", "unknown");
        let (reporters, source, destination, security): (&[&str], _, _, _) = match way {
            Way::Tunnel => (&["source", "destination"], a, b, "mutual_tls"),
            // Without mutual TLS nobody has proven who they are; of a destination it is told who it is meant to be.
            Way::Inbound => (&["destination"], unknown, b, "unknown"),
            Way::Outbound => (&["source"], ("unknown", "a"), unknown, "unknown"),
        };
        let labels = |reporter| {
            vec![
                ("reporter", reporter),
                ("source_workload", source.1),
                ("source_principal", source.0),
                ("destination_workload", destination.1),
                ("connection_security_policy", security),
                ("response_flags", "-"),
                ("request_protocol", "tcp"),
                ("destination_principal", destination.0),
            ]
        };
        let counts = |reporter| {
            let labels: Vec<_> = labels(reporter);
            [OPENED, CLOSED, FAILED, RECEIVED, SENT].map(|name| mesh.metric(name, &labels))
        };
        // What the start has opened is told of once it has ended.
        until("what was opened before to end", || {
            (mesh.metric(OPENED, &[]) == mesh.metric(CLOSED, &[])).then_some(())
        });
        let before: Vec<[u64; 5]> = reporters.iter().map(|reporter| counts(reporter)).collect();
        transfer(&mesh, way, asked, answered)?;
        for (reporter, before) in reporters.iter().zip(before) {
            let after = until("the connection to be told of", || {
                let now = counts(reporter);
                (now[1] > before[1]).then_some(now)
            });
            let new: Vec<u64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
            assert_eq!(new, [1, 1, 0, asked as u64, answered as u64], "{way}, {reporter}");
        }
        for name in [RECEIVED, SENT] {
            let others = ["source", "destination"].into_iter().filter(|other| !reporters.contains(other));
            for other in others {
                assert_eq!(mesh.metric(name, &labels(other)), 0, "{way}, {other}");
            }
        }
    }
    assert_eq!(mesh.metric("workload_manager_active_proxy_count", &[]), 2);
    assert_eq!(mesh.metric("tokio_num_workers", &[]), 2);
    for worker in ["0", "1"] {
        assert!(mesh.metric("tokio_worker_park_count_total", &[("worker", worker)]) > 0, "{worker}");
    }
    assert_eq!(mesh.page(ports::METRICS, "/elsewhere")?.0, 404);
    Ok(())
}

pub(crate) fn readiness_names_what_is_wrong(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    let readiness = || mesh.page(ports::READINESS, "/healthz/ready").unwrap();
    assert_eq!(readiness(), (200, "ready\n".into()));

    mesh.apply("broken", "kind: [");
    let (_, text) = until("the fault to be named", || Some(readiness()).filter(|(status, _)| *status == 500));
    assert!(text.contains("broken.yaml"), "{text}");
    // Nobody knows what stands in there: nothing is let in.
    for way in [Way::Tunnel, Way::Inbound] {
        let (from, to) = mesh.ends(way);
        let listener = to.listen(Family::V4);
        let mut refused = from.connect(listener.address())?;
        let _ = refused.shutdown(Shutdown::Write);
        let seen = ending(&mut refused);
        assert!(matches!(&*seen, "end" | "reset"), "{way}: {seen}");
        assert!(listener.is_lonely(), "{way}: a connection arrived");
    }

    mesh.delete("broken");
    until("the node to be ready again", || {
        (readiness() == (200, "ready\n".into())).then_some(())
    });
    for way in Way::ALL {
        mesh.open(way, Family::V4).converse()?;
    }
    Ok(())
}

/// What follows from a policy of the pods' namespace that is written like this: readiness names it, and counts it so.
fn policy_is_named(mesh: &Mesh, rules: &str, effect: &str, instead: &str) {
    let policy = format!(
        "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: one, namespace: shop}}, spec: {{rules: {rules}}}}}"
    );
    mesh.apply("policy", &policy);
    let (status, text) = until("the policy to be named", || {
        let (status, text) = mesh.page(ports::READINESS, "/healthz/ready").unwrap();
        text.contains(effect).then_some((status, text))
    });
    assert_eq!(status, 200, "one policy takes no node out: {text}");
    assert!(
        text.starts_with("ready\n") && text.contains("policy.yaml:1: spec.rules[0]"),
        "{text}"
    );
    until("the policy to be counted", || {
        (mesh.metric("ambient_policies_unreadable", &[("instead", instead)]) == 1).then_some(())
    });
}

const UNREADABLE: &str = "[{from: [{source: {ipBlocks: [10.0.0.0/99]}}]}]";

pub(crate) fn a_policy_that_breaks_keeps_its_last_good_version(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    policy_is_named(&mesh, UNREADABLE, "everything in its scope is refused", "refusal");
    for way in [Way::Tunnel, Way::Inbound] {
        let (from, to) = mesh.ends(way);
        let listener = to.listen(Family::V4);
        let mut refused = from.connect(listener.address())?;
        assert_eq!(ending(&mut refused), "end", "{way}");
        assert!(listener.is_lonely(), "{way}: a connection arrived");
    }
    // What it says once it can be read: the pods of the mesh may come in, and nobody else.
    mesh.apply(
        "policy",
        "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: one, namespace: shop}, spec: {rules: [{from: [{source: {namespaces: [shop]}}]}]}}",
    );
    until("the node to be content", || {
        (mesh.page(ports::READINESS, "/healthz/ready").unwrap() == (200, "ready\n".into())).then_some(())
    });
    let mut open = mesh.open(Way::Tunnel, Family::V4);
    policy_is_named(&mesh, UNREADABLE, "its last good version stays in force", "last_good");
    open.converse()?;
    mesh.open(Way::Tunnel, Family::V4).converse()?;
    let (from, to) = mesh.ends(Way::Inbound);
    let listener = to.listen(Family::V4);
    assert_eq!(ending(&mut from.connect(listener.address())?), "end");
    assert!(listener.is_lonely(), "a connection arrived");
    Ok(())
}

pub(crate) fn what_could_never_be_read_is_let_go_where_asked(world: &World) -> Outcome {
    unreadable_is_let_go(&Mesh::start_with(world, |config| config.let_unreadable_policies_go = true)?)
}

pub(crate) fn a_node_that_is_exactly_istio_lets_it_go_too(world: &World) -> Outcome {
    unreadable_is_let_go(&Mesh::start_with(world, |config| config.istio_exact = true)?)
}

fn unreadable_is_let_go(mesh: &Mesh) -> Outcome {
    policy_is_named(mesh, UNREADABLE, "it is in dry run or let go, and refuses nothing", "nothing");
    for way in Way::ALL {
        mesh.open(way, Family::V4).converse()?;
    }
    Ok(())
}

/// Where nobody has named a service, as who dials a pod does not, the port tells which it is: dashboards expect that.
pub(crate) fn a_port_says_which_service_was_meant(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    mesh.apply(
        "service",
        "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.7, clusterIPs: \
         [10.96.0.7], ports: [{port: 80, targetPort: 8080}], selector: {app: b}}}",
    );
    let [served, beside] = [8080, 8081].map(|port| mesh.b.listen_at(SocketAddr::new(mesh.b.v4, port)));
    let counted = |security: &str, service: &str| {
        let labels = [
            ("reporter", "destination"),
            ("destination_workload", "b"),
            ("destination_service_name", service),
            ("connection_security_policy", security),
        ];
        mesh.metric(CLOSED, &labels)
    };
    for (from, security) in [(&mesh.a, "mutual_tls"), (&mesh.c, "unknown")] {
        let through = |listener: &Listener| -> Outcome {
            let mut client = from.connect(listener.address())?;
            drop(listener.accept());
            client.read_to_end(&mut Vec::new())?;
            Ok(())
        };
        until("the service to be known", || {
            through(&served).ok()?;
            (counted(security, "web") > 0).then_some(())
        });
        let before = [counted(security, "web"), counted(security, "unknown")];
        through(&beside)?;
        until("the other port to be counted", || {
            (counted(security, "unknown") > before[1]).then_some(())
        });
        assert_eq!(counted(security, "web"), before[0], "{security}: it is no port of the service");
    }
    Ok(())
}

/// A service that nobody serves is known all the same.
pub(crate) fn where_there_is_no_way_it_is_told_to_what(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    mesh.apply(
        "service",
        "{apiVersion: v1, kind: Service, metadata: {name: empty, namespace: shop}, spec: {clusterIP: 10.96.0.9, clusterIPs: \
         [10.96.0.9], ports: [{port: 80}], selector: {app: nobody}}}",
    );
    let to: SocketAddr = "10.96.0.9:80".parse()?;
    until("the refusal to be counted for the service", || {
        mesh.a.attempt(to);
        let labels = [
            ("reporter", "source"),
            ("source_workload", "a"),
            ("destination_service", "empty.shop.svc.cluster.local"),
            ("destination_service_namespace", "shop"),
            ("destination_workload", "unknown"),
            ("response_flags", "CONNECT"),
        ];
        (mesh.metric(FAILED, &labels) > 0).then_some(())
    });
    Ok(())
}

/// One endpoint after another is tried, and before the second the mesh knows who asks as somebody else.
pub(crate) fn who_is_another_while_it_connects_is_told_of_once(world: &World) -> Outcome {
    // The first is given up when it refuses, as it does from when the mesh knows.
    let mesh = Mesh::start_with(world, |config| config.connect_timeout = PATIENCE)?;
    let silent = mesh.c.namespace.run(|| TcpListener::bind((mesh.c.v4, 0)))??;
    let at = silent.local_addr()?;
    // Nobody accepts, and there is room for one: the kernel is silent to whoever comes then.
    rustix::net::listen(&silent, 0)?;
    let _first = mesh.c.connect(at)?;
    let endpoint = |name: &str| Workload {
        pod: None,
        ambient: false,
        tunnel: TunnelProtocol::None,
        ..Mesh::workload(name, &mesh.c)
    };
    let all = ["silent-1", "silent-2"].map(endpoint);
    let web = ways::service(&all.each_ref().map(|workload| (workload, at.port())));
    let mut updates: Vec<_> = all.iter().map(|w| Update::Workload(w.clone().into())).collect();
    updates.push(Update::Service(web.into()));
    mesh.tell(updates);
    until("the service to be known", || {
        mesh.page(ports::ADMIN, "/config_dump").ok()?.1.contains("silent-2").then_some(())
    });
    let failed = |reason| mesh.metric("ambient_connections_failed_total", &[("reporter", "source"), ("reason", reason)]);
    let before = ["drain", "unknown_workload"].map(failed);
    let mut client = mesh.a.connect(ways::vip())?;
    until("the first endpoint to be tried", || {
        let dump = mesh.page(ports::ADMIN, "/config_dump").ok()?.1;
        dump.contains(&format!("\"originalDst\":\"{}\"", ways::VIP)).then_some(())
    });
    let other = Workload {
        trust_domain: "other.example".parse()?,
        ..Mesh::workload("a", &mesh.a)
    };
    mesh.tell(vec![Update::Workload(other.into())]);
    until("the other to be known", || {
        mesh.page(ports::ADMIN, "/config_dump")
            .ok()?
            .1
            .contains("other.example")
            .then_some(())
    });
    // The kernel asks again each second, and is refused then.
    drop(silent);
    assert_eq!(ending(&mut client), "reset");
    until("it to be told of", || (failed("unknown_workload") > before[1]).then_some(()));
    assert_eq!(["drain", "unknown_workload"].map(failed), [before[0], before[1] + 1]);
    Ok(())
}

/// Nobody is dialled on for a client that has gone: both ends tell of it, as of one who breaks off a moment later. Where the server's
/// pod is cut meanwhile, that is the reason.
pub(crate) fn who_breaks_off_before_an_answer_is_told_as_who_broke_off(world: &World) -> Outcome {
    let mesh = Mesh::start_with(world, |config| {
        config.connect_timeout = PATIENCE;
        config.leave = Duration::from_millis(100);
    })?;
    let silent = Silent::start(&mesh)?;
    let told = |reason| failed_at_both(&mesh, reason);
    let dialling = || silent.dialled(&mesh);
    let client = dialling()?;
    assert_eq!(told("client_reset"), [0, 0]);
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
    drop(client);
    until("it to be told of", || (told("client_reset") == [1, 1]).then_some(()));
    assert_eq!(["connect_failed", "connect_timeout"].map(told), [[0, 0]; 2]);
    let _client = dialling()?;
    mesh.delete("pod-b");
    until("the cut to be told of", || (told("drain")[1] == 1).then_some(()));
    assert_eq!(told("client_reset"), [1, 1]);
    Ok(())
}

/// An application of the server's pod that answers nobody.
pub(crate) struct Silent {
    port: u16,
    _silent: TcpListener,
    _first: std::net::TcpStream,
}

impl Silent {
    pub(crate) fn start(mesh: &Mesh) -> Result<Self, Box<dyn std::error::Error>> {
        let silent = mesh.b.namespace.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
        let port = silent.local_addr()?.port();
        // Nobody accepts, and there is room for one: the kernel is silent to whoever comes then.
        rustix::net::listen(&silent, 0)?;
        let first = mesh.b.connect((Ipv4Addr::LOCALHOST, port).into())?;
        Ok(Self {
            port,
            _silent: silent,
            _first: first,
        })
    }

    pub(crate) fn address(&self, mesh: &Mesh) -> SocketAddr {
        (mesh.b.v4, self.port).into()
    }

    /// Waits until it is dialled for somebody.
    pub(crate) fn is_dialled(&self, mesh: &Mesh) {
        until("the application to be dialled", || {
            let dump = mesh.page(ports::ADMIN, "/config_dump").ok()?.1;
            dump.contains(&format!("\"actualDst\":\"{}\"", self.address(mesh))).then_some(())
        });
    }

    /// A connection of the other pod's to it, that is being opened.
    pub(crate) fn dialled(&self, mesh: &Mesh) -> std::io::Result<std::net::TcpStream> {
        let client = mesh.a.connect(self.address(mesh))?;
        self.is_dialled(mesh);
        Ok(client)
    }
}

/// Connections that failed for a reason, at the source's end and at the destination's.
fn failed_at_both(mesh: &Mesh, reason: &str) -> [u64; 2] {
    ["source", "destination"].map(|reporter| {
        let labels = [("reporter", reporter), ("reason", reason)];
        mesh.metric("ambient_connections_failed_total", &labels)
    })
}

/// Prometheus says which forms it reads, and takes what comes for what it is called.
pub(crate) fn metrics_are_called_what_the_client_reads(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    for (accept, kind) in [
        ("", "text/plain; charset=utf-8"),
        ("Accept: text/plain;version=0.0.4\r\n", "text/plain; charset=utf-8"),
        ("Accept: application/json, */*;q=0.1\r\n", "text/plain; charset=utf-8"),
        (
            "Accept: application/vnd.google.protobuf;q=0.7,Application/OpenMetrics-Text;version=1.0.0;q=0.6,text/plain\r\n",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
        (
            "Accept: text/plain\r\nAccept: application/openmetrics-text\r\n",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
    ] {
        let mut stream = mesh.connect_to_page(ports::METRICS)?;
        stream.write_all(format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\n{accept}\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let head = answer.split("\r\n\r\n").next().unwrap_or_default().to_ascii_lowercase();
        assert!(head.contains(&format!("content-type: {kind}\r\n")), "{accept:?}: {head}");
        assert!(answer.contains("# EOF\n"));
    }
    Ok(())
}

/// What is sent to the proxy's own ports of a pod is refused before it is anybody's connection, as Istio's node proxy has it.
pub(crate) fn who_calls_the_proxy_itself_is_counted_for_no_pod(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    let refused = || {
        let labels = [("reporter", "destination"), ("reason", "bad_request")];
        mesh.metric("ambient_connections_failed_total", &labels)
    };
    until("what was opened before to end", || {
        (mesh.metric(OPENED, &[]) == mesh.metric(CLOSED, &[])).then_some(())
    });
    let before = mesh.metric(OPENED, &[]);
    assert_eq!(mesh.c.attempt(SocketAddr::new(mesh.b.v4, ports::OUTBOUND)), "reset");
    until("the refusal to be counted", || (refused() > 0).then_some(()));
    assert_eq!(mesh.metric(OPENED, &[]), before);
    Ok(())
}

/// Who counts what is open subtracts one from the other, series by series.
pub(crate) fn opened_and_closed_have_the_same_labels(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    transfer(&mesh, Way::Tunnel, 1, 1)?;
    for reporter in ["source", "destination"] {
        let labels = [
            ("reporter", reporter),
            ("connection_security_policy", "mutual_tls"),
            ("destination_principal", "spiffe://cluster.local/ns/shop/sa/b"),
        ];
        until("as many to be closed as were opened", || {
            let closed = mesh.metric(CLOSED, &labels);
            (closed > 0 && closed == mesh.metric(OPENED, &labels)).then_some(())
        });
    }
    Ok(())
}

/// A connection may stand for days: what it carries is told of at every look, and once.
pub(crate) fn what_is_open_is_counted_as_it_is_carried(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    for (way, reporters) in [
        (Way::Tunnel, &["source", "destination"][..]),
        (Way::Inbound, &["destination"]),
        (Way::Outbound, &["source"]),
    ] {
        until("what was opened before to end", || {
            (mesh.metric(OPENED, &[]) == mesh.metric(CLOSED, &[])).then_some(())
        });
        let counts = || -> Vec<[u64; 2]> {
            let of = |reporter| [RECEIVED, SENT].map(|name| mesh.metric(name, &[("reporter", reporter)]));
            reporters.iter().map(|reporter| of(*reporter)).collect()
        };
        let before = counts();
        let mut pair = mesh.open(way, Family::V4);
        let mut heard = [0; 1_000];
        for round in 1..=2 {
            pair.client.write_all(&[1; 1_000])?;
            pair.server.read_exact(&mut heard)?;
            pair.server.write_all(&[2; 300])?;
            pair.client.read_exact(&mut heard[..300])?;
            let told = until("what was carried to be told of", || {
                let now = counts();
                let new: Vec<_> = now
                    .iter()
                    .zip(&before)
                    .map(|(now, before)| [now[0] - before[0], now[1] - before[1]])
                    .collect();
                new.iter().all(|new| *new >= [round * 1_000, round * 300]).then_some(new)
            });
            assert!(told.iter().all(|new| *new == [round * 1_000, round * 300]), "{way}, {told:?}");
        }
        drop(pair);
        until("the connection to end", || {
            (mesh.metric(OPENED, &[]) == mesh.metric(CLOSED, &[])).then_some(())
        });
        let all: Vec<_> = before.iter().map(|[received, sent]| [received + 2_000, sent + 600]).collect();
        assert_eq!(counts(), all, "{way}: its end counts nothing twice");
    }
    Ok(())
}

/// What nobody can read refuses what is new.
pub(crate) fn a_broken_manifest_leaves_alone_what_is_open(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    let mut open = [Way::Tunnel, Way::Inbound].map(|way| mesh.open(way, Family::V4));
    mesh.apply("broken", "kind: [");
    until("the fault to be named", || {
        let (status, _) = mesh.page(ports::READINESS, "/healthz/ready").unwrap();
        (status == 500).then_some(())
    });
    for pair in &mut open {
        pair.converse()?;
    }
    Ok(())
}

/// Asks and is answered so many bytes, and ends in good order.
fn transfer(mesh: &Mesh, way: Way, asked: usize, answered: usize) -> Outcome {
    let mut pair = mesh.open(way, Family::V4);
    pair.client.write_all(&vec![1; asked])?;
    pair.client.shutdown(Shutdown::Write)?;
    let mut heard = Vec::new();
    pair.server.read_to_end(&mut heard)?;
    assert_eq!(heard.len(), asked);
    pair.server.write_all(&vec![2; answered])?;
    drop(pair.server);
    heard.clear();
    pair.client.read_to_end(&mut heard)?;
    assert_eq!(heard.len(), answered);
    Ok(())
}
