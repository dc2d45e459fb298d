//! What a kubelet asks of its pods, where nobody else may ask anything.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use ambient_redirect::{
    netlink::{Batch, Family, Nftables},
    plan::PROBE_SOURCES,
};
use ambient_testkit::{Namespace, World, harness::Outcome};
use socket2::{Domain, Socket, Type};

use super::{
    ground::{Failure, Ground, until},
    peer::{self, FIRST_PORT},
};

const PATIENCE: Duration = Duration::from_secs(20);
const NOTHING: &str = r"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow-nothing, namespace: demo}
spec: {}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: demo}
spec: {mtls: {mode: STRICT}}
";

pub(crate) fn the_kubelet_reaches_its_pods_and_nobody_gains_by_it(world: &World) -> Outcome {
    let mut ground = Ground::new(world)?;
    let asked = ask_all(&mut ground);
    if asked.is_err() {
        println!("{}", ground.logs());
    }
    asked
}

fn ask_all(ground: &mut Ground) -> Outcome {
    let sources = [IpAddr::from(PROBE_SOURCES.0), IpAddr::from(PROBE_SOURCES.1)];
    ground.idle("node-1", "web", true)?;
    ground.idle("node-1", "neighbour", false)?;
    // Who could have answers for a probe's address, if anybody gave them: another node, and a pod of the same one.
    let [own, other] = ["node-1", "node-2"].map(|name| ground.cluster.nodes().iter().find(|n| n.name() == name).unwrap());
    for (source, via) in sources.into_iter().zip(other.addresses().both()) {
        other.namespace().add_address("eth0", source)?;
        own.namespace().add_route(source, Some(via), "eth0")?;
        ground.pod_namespace("neighbour")?.add_address("eth0", source)?;
    }
    let servers: Vec<SocketAddr> = ground
        .cluster
        .pod("demo", "web")?
        .addresses()
        .iter()
        .map(|ip| (*ip, FIRST_PORT).into())
        .collect();
    ground.cluster.apply(NOTHING)?;
    for (server, source) in servers.iter().zip(sources) {
        // Once those are refused that have no right, the policies are in force.
        until(PATIENCE, || match ask(ground.node_namespace("node-2")?, *server)? {
            Ok(name) => Ok(Err(format!("{name} still answers"))),
            Err(_) => Ok(Ok(())),
        })?;
        until(PATIENCE, || {
            Ok(ask(ground.node_namespace("node-1")?, *server)?.map_err(|e| format!("the kubelet is refused: {e}")))
        })?;
        assert!(ask(ground.pod_namespace("neighbour")?, *server)?.is_err(), "{server}");
        for spoofing in [ground.node_namespace("node-2")?, ground.pod_namespace("neighbour")?] {
            let heard = spoofing.run(|| ask_as(source, *server))?;
            assert!(heard.is_err(), "{} as {source}: {heard:?}", spoofing.name());
        }
    }
    // Somebody deletes it, or what is in it.
    for whole in [true, false] {
        let damage = || {
            let mut batch = Batch::default();
            match whole {
                true => batch.delete_table(Family::Inet, "ambient-probes"),
                false => batch.flush_table(Family::Inet, "ambient-probes"),
            }
            Nftables::open().unwrap().commit(batch, None).unwrap();
        };
        ground.node_namespace("node-1")?.run(damage)?;
        for server in &servers {
            until(PATIENCE, || {
                Ok(ask(ground.node_namespace("node-1")?, *server)?.map_err(|e| format!("the kubelet is refused: {e}")))
            })?;
        }
    }
    let (_, out, _) = ground.ambient("node-1", &["pods"])?;
    assert!(
        out.contains("probes of the kubelet are let through to 2 addresses; mended 2 times"),
        "{out}"
    );
    Ok(())
}

fn ask(from: &Namespace, to: SocketAddr) -> Result<io::Result<String>, Failure> {
    Ok(from.run(|| peer::ask(to, "kubelet"))?)
}

/// From an address that need not be the caller's by rights.
fn ask_as(source: IpAddr, to: SocketAddr) -> io::Result<String> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.connect_timeout(&to.into(), peer::PATIENCE)?;
    peer::hear(TcpStream::from(socket), "kubelet")
}
