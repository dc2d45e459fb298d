//! One mesh of a node of ours and of one whose proxy is somebody else's, such as Istio's ztunnel, with `ambient enrol` beside it. Both live
//! on `ambient control`.

use std::{
    env,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    thread,
    time::Duration,
};

use ambient_testkit::{Capture, Output, Program, World, cluster::NODE_INTERFACE, harness::Outcome};

use super::{
    ground::{AMBIENT, Failure, Ground, NODES, until},
    peer::{self, FIRST_PORT, HELLO},
};

const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes that go each way.
const MUCH: usize = 5_000_011;
/// Who calls whom: from our node to the other's, and back.
const CALLS: [(&str, &str); 2] = [("front", "back"), ("caller", "front")];
/// The mesh's trust domain, which the control plane alone is told.
const DOMAIN: &str = "example.org";
/// Names the proxy.
const PROXY: &str = "AMBIENT_OTHER_PROXY";

pub(crate) fn a_node_beside_that_of_another_proxy_is_one_mesh_with_it(world: &World) -> Outcome {
    match env::var_os(PROXY) {
        Some(proxy) => beside(world, Path::new(&proxy)),
        None => {
            let why = format_args!("a node beside that of another proxy: {PROXY} would name one, such as a build of Istio's ztunnel");
            ambient_testkit::skipped(why);
            Ok(())
        }
    }
}

/// Ours, started in the same way.
pub(crate) fn a_node_beside_that_of_a_proxy_apart_is_one_mesh_with_it(world: &World) -> Outcome {
    beside(world, Path::new(AMBIENT))
}

fn beside(world: &World, proxy: &Path) -> Outcome {
    let socket = world.scratch_dir().join("zds.sock");
    let mut ground = Ground::beside_another(world, &socket, &["--trust-domain", DOMAIN])?;
    let lived = live(&mut ground, proxy, &socket);
    if lived.is_err() {
        println!("{}", ground.logs());
    }
    lived
}

fn live(ground: &mut Ground, proxy: &Path, socket: &Path) -> Outcome {
    ground.start_other(proxy, socket)?;
    for node in NODES {
        ground.ready(node)?;
    }
    for (node, pod) in [("node-1", "front"), ("node-1", "other"), ("node-2", "back"), ("node-2", "caller")] {
        ground.idle(node, pod, true)?;
    }
    let capture = Capture::start(ground.node_namespace(NODES[0])?, NODE_INTERFACE)?;
    for (from, to) in CALLS {
        hidden(ground, &capture, from, to)?;
        counted(ground, from, to)?;
        for family in 0..2 {
            carried(ground, from, to, family)?;
            ended(ground, from, to, family)?;
        }
    }
    services(ground)?;
    policies(ground)?;
    // Whoever dies, and has a successor: nothing goes around the mesh meanwhile.
    capture.clear()?;
    for node in NODES {
        match node {
            "node-1" => ground.cluster.node(node)?.kill()?,
            _ => ground.kill_other()?,
        }
        for (from, to) in CALLS {
            let heard = call(ground, from, to)?;
            assert!(heard.is_err(), "{from} hears {heard:?} from {to} without the proxy of {node}");
        }
        match node {
            "node-1" => ground.start(node)?,
            // In the place of whatever it was.
            _ => ground.start_other(Path::new(AMBIENT), socket)?,
        }
        ground.ready(node)?;
        for (from, to) in CALLS {
            until(PATIENCE, || call(ground, from, to))?;
        }
    }
    assert!(!capture.seen()?.contains(HELLO.as_bytes()), "something went around the mesh");
    Ok(())
}

fn call(ground: &Ground, from: &str, to: &str) -> Result<Result<String, String>, Failure> {
    let (at, name) = (SocketAddr::new(ground.address(to)?, FIRST_PORT), from.to_owned());
    let heard = ground.pod_namespace(from)?.run(move || peer::ask(at, &name))?;
    Ok(heard.map_err(|error| error.to_string()))
}

/// Each node has to hear of the other's captures first.
fn hidden(ground: &Ground, capture: &Capture, from: &str, to: &str) -> Outcome {
    until(PATIENCE, || {
        capture.clear()?;
        let heard = call(ground, from, to)?;
        let seen = capture.seen()?;
        let plain = seen.contains(HELLO.as_bytes());
        Ok(match heard {
            Ok(name) if name == to && !plain => Ok(()),
            other => Err(format!("{from} to {to}: {other:?}, in plaintext: {plain}")),
        })
    })
}

/// Both proxies count it as what it is, the other end's identity among it.
fn counted(ground: &Ground, from: &str, to: &str) -> Outcome {
    for node in NODES {
        until(PATIENCE, || {
            let metrics = ground.page(node, 15020, "/metrics")?;
            let labels = [
                "connection_security_policy=\"mutual_tls\"".to_owned(),
                format!("source_workload=\"{from}\""),
                format!("source_principal=\"spiffe://{DOMAIN}/ns/demo/sa/{from}\""),
                format!("destination_workload=\"{to}\""),
                format!("destination_principal=\"spiffe://{DOMAIN}/ns/demo/sa/{to}\""),
            ];
            let mut lines = metrics
                .lines()
                .filter(|line| line.starts_with("istio_tcp_connections_opened_total{"));
            Ok(match lines.any(|line| labels.iter().all(|label| line.contains(label))) {
                true => Ok(()),
                false => Err(format!("{node} does not tell of {from} and {to}:\n{metrics}")),
            })
        })?;
    }
    Ok(())
}

/// Who listens in a pod, and how another reaches it.
fn listen(ground: &Ground, to: &str, family: usize) -> Result<(TcpListener, SocketAddr), Failure> {
    let ip = *ground.cluster.pod("demo", to)?.addresses().get(family).ok_or("no such address")?;
    let any: IpAddr = if ip.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let listener = ground.pod_namespace(to)?.run(move || TcpListener::bind((any, 0)))??;
    let at = SocketAddr::new(ip, listener.local_addr()?.port());
    Ok((listener, at))
}

fn open(ground: &Ground, from: &str, listener: &TcpListener, to: SocketAddr) -> Result<(TcpStream, TcpStream), Failure> {
    let mut client = ground
        .pod_namespace(from)?
        .run(move || TcpStream::connect_timeout(&to, PATIENCE))??;
    client.write_all(b"!")?;
    let (mut server, _) = listener.accept()?;
    for end in [&client, &server] {
        end.set_read_timeout(Some(PATIENCE))?;
        end.set_write_timeout(Some(PATIENCE))?;
    }
    server.read_exact(&mut [0])?;
    Ok((client, server))
}

/// Much, both ways at once and whole; then one end says that it has no more, and hears the other out.
fn carried(ground: &Ground, from: &str, to: &str, family: usize) -> Outcome {
    let (listener, at) = listen(ground, to, family)?;
    let (client, server) = open(ground, from, &listener, at)?;
    let text = |seed: usize| -> Vec<u8> { (0..MUCH).map(|n| (n * 31 + seed + n / 251) as u8).collect() };
    let say = |mut end: TcpStream, seed: usize| {
        thread::spawn(move || {
            end.write_all(&text(seed))?;
            end.shutdown(Shutdown::Write)
        })
    };
    let hear = |mut end: TcpStream| -> io::Result<Vec<u8>> {
        let mut heard = Vec::new();
        end.read_to_end(&mut heard).map(|_| heard)
    };
    let said = [say(client.try_clone()?, 1), say(server.try_clone()?, 2)];
    let at_server = thread::spawn(move || hear(server));
    assert!(hear(client)? == text(2), "{from} has not heard all of {to}");
    assert!(
        at_server.join().map_err(|_| "a panic")?? == text(1),
        "{to} has not heard all of {from}"
    );
    for said in said {
        said.join().map_err(|_| "a panic")??;
    }
    Ok(())
}

fn is_over(read: &io::Result<usize>) -> bool {
    read.as_ref()
        .map_or_else(|e| e.kind() == io::ErrorKind::ConnectionReset, |n| *n == 0)
}

/// An end by one side is an end at the other, and so is an abort.
fn ended(ground: &Ground, from: &str, to: &str, family: usize) -> Outcome {
    let (listener, at) = listen(ground, to, family)?;
    for client_ends in [true, false] {
        let (client, server) = open(ground, from, &listener, at)?;
        let (ends, mut stays) = if client_ends { (client, server) } else { (server, client) };
        drop(ends);
        assert_eq!(stays.read(&mut [0])?, 0, "{from} to {to}");
        let (client, server) = open(ground, from, &listener, at)?;
        let (aborts, mut stays) = if client_ends { (client, server) } else { (server, client) };
        socket2::SockRef::from(&aborts).set_linger(Some(Duration::ZERO))?;
        drop(aborts);
        // ztunnel passes an abort on as an end.
        let read = stays.read(&mut [0]);
        assert!(is_over(&read), "{from} to {to}: {read:?}");
    }
    Ok(())
}

/// By the addresses of services.
fn services(ground: &mut Ground) -> Outcome {
    for (n, (from, to)) in CALLS.into_iter().enumerate() {
        let ip: IpAddr = format!("10.96.0.{}", 30 + n).parse()?;
        ground.cluster.apply(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {to}, namespace: demo}}\nspec: {{clusterIP: {ip}, selector: {{app: {to}}}, \
             ports: [{{port: 80, targetPort: {FIRST_PORT}}}]}}\n"
        ))?;
        let at = SocketAddr::new(ip, 80);
        // By its name too, as a pod's C library asks for it: the node's proxy answers.
        let pod = ground.cluster.pod("demo", from)?;
        let program = Program::actor("resolve").arg(to).view(pod.view()).stdout(Output::Pipe);
        until(PATIENCE, || {
            let mut process = ground.pod_namespace(from)?.spawn(&program)?;
            let mut found = String::new();
            process.take_stdout().ok_or("no output")?.read_to_string(&mut found)?;
            process.wait(PATIENCE)?.ok_or("it does not end")?;
            Ok(if found == format!("{at}\n") { Ok(()) } else { Err(found) })
        })?;
        until(PATIENCE, || {
            let heard = ground.pod_namespace(from)?.run(move || peer::ask(at, from))?;
            let metrics = ground.page(if from == "front" { NODES[0] } else { NODES[1] }, 15020, "/metrics")?;
            let counted = metrics.lines().any(|line| {
                line.starts_with("istio_tcp_connections_opened_total{")
                    && line.contains("connection_security_policy=\"mutual_tls\"")
                    && line.contains(&format!("destination_service=\"{to}.demo.svc.cluster.local\""))
            });
            Ok(match heard {
                Ok(name) if name == to && counted => Ok(()),
                other => Err(format!("{from} to the service {to}: {other:?}, counted: {counted}")),
            })
        })?;
    }
    Ok(())
}

/// What each proxy refuses is refused, and what is open is cut.
fn policies(ground: &mut Ground) -> Outcome {
    let refused = [("other", "back"), ("back", "front")];
    let mut opened = Vec::new();
    for (from, to) in refused {
        until(PATIENCE, || call(ground, from, to))?;
        let (listener, at) = listen(ground, to, 0)?;
        opened.push((from, to, open(ground, from, &listener, at)?));
    }
    // Of the whole namespace: ztunnel asks what is open again where a policy comes, and not where a workload comes to list one.
    ground.cluster.apply(&format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: callers, namespace: demo}}\nspec: {{rules: [{{from: \
         [{{source: {{principals: [{DOMAIN}/ns/demo/sa/front, {DOMAIN}/ns/demo/sa/caller]}}}}]}}]}}\n",
    ))?;
    for (from, to, (mut client, mut server)) in opened {
        for end in [&mut server, &mut client] {
            let read = end.read(&mut [0]);
            assert!(is_over(&read), "{from} to {to} was not cut: {read:?}");
        }
    }
    for (from, to) in refused {
        let heard = call(ground, from, to)?;
        assert!(heard.is_err(), "{to} answers {from}, whom it must not: {heard:?}");
    }
    for (from, to) in CALLS {
        assert_eq!(call(ground, from, to)?, Ok(to.into()));
    }
    Ok(())
}
