//! Clusters that have addresses of one IP family alone: nodes, pods, services, the cluster's DNS and `ambient control`.

use std::{
    ffi::OsString,
    io::Read as _,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    process::ExitCode,
    time::Duration,
};

use ambient_testkit::{Output, Program, World, cluster::Families, harness::Outcome};

use super::{
    ground::{Failure, Ground, NODES, until},
    identities::{by_tunnel, call},
    peer::{self, FIRST_PORT},
};

const PATIENCE: Duration = Duration::from_secs(20);
const PODS: [(&str, &str); 3] = [("node-1", "front"), ("node-1", "other"), ("node-2", "back")];

pub(crate) fn a_mesh_of_ipv6_alone_is_a_mesh(world: &World) -> Outcome {
    of(world, Families::V6, "fd00:10:96::20")
}

pub(crate) fn a_mesh_where_ipv6_is_switched_off_is_a_mesh(world: &World) -> Outcome {
    of(world, Families::V4, "10.96.0.20")
}

fn of(world: &World, families: Families, service: &str) -> Outcome {
    let mut ground = Ground::on_control_of(world, families, &[], &[])?;
    let lived = live(&mut ground, families, service.parse()?);
    if lived.is_err() {
        println!("{}", ground.logs());
    }
    lived
}

fn live(ground: &mut Ground, families: Families, service: IpAddr) -> Outcome {
    for node in NODES {
        ground.ready(node)?;
    }
    for (node, pod) in PODS {
        ground.idle(node, pod, true)?;
        let addresses = ground.cluster.pod("demo", pod)?.addresses();
        assert!(addresses.len() == 1 && families.has(addresses[0]), "{addresses:?}");
    }
    for pod in ["front", "other"] {
        until(PATIENCE, || call(ground, pod))?;
        by_tunnel(ground, "node-1", pod)?;
    }
    by_service(ground, service)?;
    by_name(ground, service)?;
    policies(ground)?;
    for (node, pod) in PODS {
        let told = ground.told(node, pod)?;
        assert!(told["state"] == "in" && told["rules"] == "in force", "{told:#}");
        for way in ["outbound", "inbound"] {
            let proof = told["proof"][way].as_str().unwrap_or_default();
            assert!(proof.ends_with("by a connection that the proxy knew"), "{told:#}");
        }
    }
    for (_, pod) in PODS {
        ground.mean(pod, false)?;
    }
    until(PATIENCE, || {
        let left = ground.left_behind()?;
        Ok(if left.is_empty() {
            Ok(())
        } else {
            Err(format!("left behind: {left:#?}"))
        })
    })
}

/// By the address of a service, which no wire ever carries: it goes by tunnel to the pod behind it.
fn by_service(ground: &mut Ground, service: IpAddr) -> Outcome {
    ground.cluster.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: back, namespace: demo}}\nspec: {{clusterIP: \"{service}\", clusterIPs: \
         [\"{service}\"], selector: {{app: back}}, ports: [{{port: 80, targetPort: {FIRST_PORT}}}]}}\n"
    ))?;
    let to = SocketAddr::new(service, 80);
    until(PATIENCE, || {
        let heard = ground.pod_namespace("front")?.run(move || peer::ask(to, "front"))?;
        assert!(heard.as_ref().is_ok_and(|name| name == "back") || heard.is_err(), "{heard:?}");
        let metrics = ground.page("node-1", 15020, "/metrics")?;
        let counted = metrics.lines().any(|line| {
            line.starts_with("istio_tcp_connections_opened_total{")
                && line.contains("connection_security_policy=\"mutual_tls\"")
                && line.contains("destination_service=\"back.demo.svc.cluster.local\"")
        });
        Ok(if counted {
            Ok(())
        } else {
            Err(format!("not heard through a tunnel: {heard:?}"))
        })
    })
}

/// By its name, as a pod's C library asks for it: the node answers in the place of the cluster's DNS.
fn by_name(ground: &Ground, service: IpAddr) -> Outcome {
    let pod = ground.cluster.pod("demo", "front")?;
    let program = Program::actor("resolve").arg("back").view(pod.view()).stdout(Output::Pipe);
    let mut process = ground.pod_namespace("front")?.spawn(&program)?;
    let mut found = String::new();
    process.take_stdout().ok_or("no output")?.read_to_string(&mut found)?;
    process.wait(PATIENCE)?.ok_or("it does not end")?;
    assert_eq!(found, format!("{}\n", SocketAddr::new(service, 80)));
    let metrics = ground.page("node-1", 15020, "/metrics")?;
    let asked = metrics.lines().any(|line| line.starts_with("istio_dns_requests_total{"));
    assert!(asked, "nobody has asked the node");
    Ok(())
}

/// `resolve NAME`: the addresses that the C library finds for it, each of a TCP port 80.
pub(crate) fn resolve(args: Vec<OsString>) -> ExitCode {
    let name = args.first().and_then(|name| name.to_str()).unwrap_or_default();
    match (name, 80).to_socket_addrs() {
        Ok(found) => {
            found.for_each(|address| println!("{address}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One caller alone, by tunnel alone; and the kubelet all the same.
fn policies(ground: &mut Ground) -> Outcome {
    ground.cluster.apply(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: front-alone, namespace: demo}\nspec: {selector: \
         {matchLabels: {app: back}}, rules: [{from: [{source: {principals: [cluster.local/ns/demo/sa/front]}}]}]}\n---\napiVersion: \
         security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: demo}\nspec: {mtls: {mode: STRICT}}\n",
    )?;
    until(PATIENCE, || {
        Ok(match call(ground, "other")? {
            Ok(name) => Err(format!("{name} answers whom it must not")),
            Err(_) => Ok(()),
        })
    })?;
    assert_eq!(call(ground, "front")?, Ok("back".into()));
    let to = SocketAddr::from((ground.address("back")?, FIRST_PORT));
    let ask = |node: &str| -> Result<Result<String, String>, Failure> {
        let heard = ground.node_namespace(node)?.run(move || peer::ask(to, "kubelet"))?;
        Ok(heard.map_err(|error| error.to_string()))
    };
    until(PATIENCE, || ask("node-2"))?;
    let elsewhere = ask("node-1")?;
    assert!(elsewhere.is_err(), "{elsewhere:?}");
    Ok(())
}
