//! A mesh that does not come whole: two nodes ask `ambient control` for what their pods' connections need.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use ambient_testkit::{World, harness::Outcome};
use serde_json::Value;

use super::{
    ground::{Failure, Ground, NODES, until},
    peer::{FIRST_PORT, HELLO},
};

const PATIENCE: Duration = Duration::from_secs(20);
/// How long a connection waits for the control plane's word.
const WAITS: Duration = Duration::from_secs(5);
const VIP: &str = "10.96.7.7";
const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: demo}\nspec: {clusterIP: 10.96.7.7, \
                       selector: {app: third}, ports: [{port: 80, targetPort: 8000}]}\n";

pub(crate) fn what_is_needed_is_asked_for_and_what_nobody_answers_is_refused(world: &World) -> Outcome {
    let mut ground = Ground::on_control(world, &[], &["--xds-on-demand", "true"])?;
    let asked = ask(&mut ground);
    if asked.is_err() {
        println!("{}", ground.logs());
    }
    asked
}

fn ask(ground: &mut Ground) -> Outcome {
    for node in NODES {
        ground.ready(node)?;
    }
    ground.cluster.apply(SERVICE)?;
    ground.idle("node-1", "front", true)?;
    for pod in ["back", "third", "quiet", "later", "last"] {
        ground.idle("node-2", pod, true)?;
        knows_of_itself(ground, pod)?;
    }
    first_connections(ground)?;
    the_way_is_told(ground)?;
    without_control(ground)
}

/// Its own node is told of a pod unasked: then the control plane has heard of the capture as well.
fn knows_of_itself(ground: &mut Ground, pod: &str) -> Outcome {
    let from = format!("demo/{pod}");
    until(PATIENCE, || {
        let (_, out, err) = ground.ambient("node-2", &["explain", "--from", &from, "--to", "192.0.2.1:80", "--json"])?;
        let told: Value = serde_json::from_str(&out).unwrap_or_default();
        Ok(if told["source"]["protocol"] == "HBONE" {
            Ok(())
        } else {
            Err(out + &err)
        })
    })
}

fn first_connections(ground: &mut Ground) -> Outcome {
    // Nobody on the first node has needed any of them so far.
    let dump = ground.page("node-1", 15000, "/config_dump")?;
    assert!(dump.contains("\"front\"") && !dump.contains("\"back\""), "{dump}");
    let (back, third): (SocketAddr, _) = ((ground.address("back")?, FIRST_PORT).into(), ground.address("third")?);
    assert_eq!(
        call(ground, back)?,
        Ok("back".into()),
        "the first connection waits, and goes through"
    );
    assert_eq!(
        call(ground, format!("{VIP}:80").parse()?)?,
        Ok("third".into()),
        "a service comes with its endpoints"
    );
    let dump = ground.page("node-1", 15000, "/config_dump")?;
    assert!(
        dump.contains("\"back\"") && dump.contains(&third.to_string()) && !dump.contains("\"quiet\""),
        "{dump}"
    );
    // What is not the mesh's goes out as it is.
    outside(ground)?;
    // Who speaks is asked for by the other node, which needs nobody's way there.
    let metrics = ground.page("node-2", 15020, "/metrics")?;
    for pod in ["back", "third"] {
        let of = [
            "reporter=\"destination\"".to_owned(),
            "source_workload=\"front\"".to_owned(),
            format!("destination_workload=\"{pod}\""),
        ];
        let told = metrics.lines().any(|line| of.iter().all(|label| line.contains(label)));
        assert!(told, "{pod}: {metrics}");
    }
    let metrics = ground.page("node-1", 15020, "/metrics")?;
    let opened = metrics
        .lines()
        .filter(|line| line.starts_with("istio_tcp_connections_opened_total{") && line.contains("reporter=\"source\""));
    for line in opened {
        let to_pod = ["back", "third"]
            .iter()
            .any(|pod| line.contains(&format!("destination_workload=\"{pod}\"")));
        assert_eq!(line.contains("connection_security_policy=\"mutual_tls\""), to_pod, "{line}");
    }
    Ok(())
}

/// A connection to somebody of whom the mesh knows nothing.
fn outside(ground: &Ground) -> Outcome {
    let node = ground
        .cluster
        .nodes()
        .iter()
        .find(|node| node.name() == "node-2")
        .ok_or("no node")?;
    let to = SocketAddr::from((node.addresses().v4, 7000));
    let listener = node.namespace().run(move || TcpListener::bind(to))??;
    let mut client = ground.pod_namespace("front")?.run(move || TcpStream::connect(to))??;
    client.write_all(b"plain")?;
    let (mut server, _) = listener.accept()?;
    server.set_read_timeout(Some(PATIENCE))?;
    let mut heard = [0; 5];
    server.read_exact(&mut heard)?;
    assert_eq!(&heard, b"plain");
    Ok(())
}

/// As a connection would, whoever explains one asks for what is not known.
fn the_way_is_told(ground: &mut Ground) -> Outcome {
    let quiet = format!("{}:{FIRST_PORT}", ground.address("quiet")?);
    let told = explained(ground, &quiet)?;
    assert!(
        told.contains("route: tunnel: CONNECT ") && told.contains("policy: it may pass"),
        "{told}"
    );
    let told = explained(ground, "web:80")?;
    assert!(told.contains("demo/third on node-2"), "{told}");
    let told = explained(ground, "192.0.2.9:80")?;
    assert!(told.contains("route: passthrough: nobody of the mesh is there"), "{told}");
    Ok(())
}

fn without_control(ground: &mut Ground) -> Outcome {
    ground.kill_control()?;
    until(PATIENCE, || {
        let readiness = ground.page("node-1", 15021, "/healthz/ready")?;
        Ok(if readiness.contains("no stream from") {
            Ok(())
        } else {
            Err(readiness)
        })
    })?;
    let (back, later): (SocketAddr, SocketAddr) = (
        (ground.address("back")?, FIRST_PORT).into(),
        (ground.address("later")?, FIRST_PORT).into(),
    );
    assert_eq!(call(ground, back)?, Ok("back".into()), "what is known goes on");
    let begun = Instant::now();
    let refused = call(ground, later)?;
    assert!(refused.is_err(), "it went somewhere: {refused:?}");
    assert!(begun.elapsed() >= WAITS && begun.elapsed() < 2 * WAITS, "{:?}", begun.elapsed());
    let why = format!("the control plane has not said within 5s whether /{} is in the mesh", later.ip());
    until(PATIENCE, || {
        let log = std::fs::read_to_string(ground.cluster.node("node-1")?.log())?;
        let told = log.lines().rfind(|line| line.contains(&later.ip().to_string())).unwrap_or_default();
        Ok(if told.contains(&why) {
            Ok(())
        } else {
            Err(format!("the reason is not in the log: {told}"))
        })
    })?;
    let last = format!("{}:{FIRST_PORT}", ground.address("last")?);
    let told = explained(ground, &last)?;
    assert!(
        told.contains("route: refused: the control plane has not said within 5s whether /"),
        "{told}"
    );
    assert!(told.contains("policy: not asked"), "{told}");
    // It is back, and so is the answer.
    ground.start_control()?;
    until(PATIENCE, || call(ground, later))?;
    Ok(())
}

fn explained(ground: &mut Ground, to: &str) -> Result<String, Failure> {
    let (code, out, err) = ground.ambient("node-1", &["explain", "--from", "demo/front", "--to", to])?;
    if code == 0 { Ok(out) } else { Err(err.into()) }
}

/// The name of who answers `front`; why nobody does, otherwise. More patient than the pods are with each other.
pub(crate) fn call(ground: &Ground, to: SocketAddr) -> Result<Result<String, String>, Failure> {
    let ask = move || -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("{HELLO}front\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let name = answer.strip_suffix('\n').ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(name.to_owned())
    };
    Ok(ground.pod_namespace("front")?.run(ask)?.map_err(|error| error.to_string()))
}
