//! The scaffolding alone, without a mesh: pods that reach each other by address, by service and by name.

use std::{
    error::Error,
    ffi::OsString,
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    process::ExitCode,
    thread,
    time::Duration,
};

use ambient_redirect::{
    netlink::{LeadsTo, Policy, Route, Routing},
    plan::{MARK_MASK, REPLY_MARK, ROUTE_TABLE, RULE_PRIORITY, SEGMENTS_PRIORITY, SEGMENTS_TABLE},
};
use ambient_testkit::{
    Program, World,
    cluster::{Cluster, ClusterError, Images, Key, residue},
    harness::{self, Outcome},
};
use ipnet::IpNet;
use serde_json::Value;

fn main() -> ExitCode {
    harness::main_with_actors(
        &[
            ("pods_reach_each_other", pods_reach_each_other),
            ("services_have_names_and_addresses", services_have_names_and_addresses),
            ("an_address_comes_back", an_address_comes_back),
            (
                "whatever_a_capture_leaves_behind_is_found",
                whatever_a_capture_leaves_behind_is_found,
            ),
            (
                "nothing_starts_in_a_pod_that_is_not_captured",
                nothing_starts_in_a_pod_that_is_not_captured,
            ),
        ],
        &[("look-up", look_up), ("idle", idle)],
    )
}

const MANIFESTS: &str = r#"
kind: Namespace
metadata: {name: demo}
---
kind: Service
metadata: {name: web, namespace: demo}
spec: {clusterIPs: ["10.96.7.7", "fd00:10:96::77"], selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
kind: Pod
metadata: {name: client, namespace: demo}
spec: {nodeSelector: {kubernetes.io/hostname: node-1}, containers: [{image: idle}]}
---
kind: Pod
metadata: {name: web, namespace: demo, labels: {app: web}}
spec: {nodeSelector: {kubernetes.io/hostname: node-2}, containers: [{image: idle}]}
---
kind: Pod
metadata: {name: on-host, namespace: demo}
spec: {hostNetwork: true, nodeSelector: {kubernetes.io/hostname: node-1}, containers: [{image: idle}]}
"#;

fn cluster(world: &World) -> Result<Cluster, Box<dyn Error>> {
    let images = Images::from([("idle".to_owned(), Program::actor("idle"))]);
    let mut cluster = Cluster::build(world, world.scratch_dir(), images)?;
    cluster.apply(MANIFESTS)?;
    Ok(cluster)
}

/// A server in `web` that says once to each caller where the caller comes from.
fn serve(cluster: &Cluster) -> Outcome {
    let listener = cluster
        .namespace_of(cluster.pod("demo", "web")?)?
        .run(|| TcpListener::bind("[::]:8080"))??;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            if let Ok(from) = stream.peer_addr() {
                let _ = write!(stream, "{}", from.ip().to_canonical());
            }
        }
    });
    Ok(())
}

/// What a server tells to a pod.
fn ask(cluster: &Cluster, pod: &str, to: SocketAddr) -> Result<String, Box<dyn Error>> {
    let dial = || TcpStream::connect_timeout(&to, Duration::from_secs(5));
    let mut stream = cluster.namespace_of(cluster.pod("demo", pod)?)?.run(dial)??;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn pods_reach_each_other(world: &World) -> Outcome {
    let mut cluster = cluster(world)?;
    serve(&cluster)?;
    let client = cluster.pod("demo", "client")?.addresses().to_vec();
    for (to, from) in cluster.pod("demo", "web")?.addresses().iter().zip(&client) {
        assert_eq!(ask(&cluster, "client", SocketAddr::new(*to, 8080))?, from.to_string());
    }
    assert_eq!(client, ["10.244.1.5".parse::<IpAddr>()?, "fd00:10:244:1::5".parse()?]);
    let node = cluster.nodes()[0].addresses().both();
    assert_eq!(cluster.pod("demo", "on-host")?.addresses(), node);
    assert!(cluster.pids().values().all(|pids| pids.len() == 1));

    // The object is what an API server would show.
    let text = fs::read_to_string(cluster.manifests().join("pod.demo.client.yaml"))?;
    let object: Value = serde_saphyr::from_str(&text)?;
    assert_eq!(object["metadata"]["uid"], cluster.pod("demo", "client")?.uid());
    assert_eq!(object["spec"]["nodeName"], "node-1");
    assert_eq!(object["status"]["podIPs"][1]["ip"], "fd00:10:244:1::5");
    assert_eq!(object["status"]["hostIP"], node[0].to_string());
    Ok(())
}

fn services_have_names_and_addresses(world: &World) -> Outcome {
    let cluster = cluster(world)?;
    serve(&cluster)?;
    for service in ["10.96.7.7:80", "[fd00:10:96::77]:80"] {
        let service: SocketAddr = service.parse()?;
        for pod in ["client", "on-host"] {
            let own = cluster.pod("demo", pod)?.addresses();
            let same_family = own.iter().find(|a| a.is_ipv4() == service.is_ipv4()).map(IpAddr::to_string);
            assert_eq!(Some(ask(&cluster, pod, service)?), same_family);
        }
    }
    let client = cluster.pod("demo", "client")?;
    for (name, found) in [("web", 0), ("web.demo", 0), ("web.demo.svc.cluster.local", 0), ("nobody", 1)] {
        let program = Program::actor("look-up").args([name]).view(client.view());
        let mut process = cluster.namespace_of(client)?.spawn(&program)?;
        let status = process.wait(Duration::from_secs(20))?.ok_or("the look-up did not end")?;
        assert_eq!(status.code(), Some(found), "{name}");
    }
    Ok(())
}

/// Succeeds if the name has both addresses of the service.
fn look_up(args: Vec<OsString>) -> ExitCode {
    let name = args.first().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut found: Vec<String> = (name, 80)
        .to_socket_addrs()
        .map(|a| a.map(|a| a.ip().to_string()).collect())
        .unwrap_or_default();
    found.sort();
    ExitCode::from(u8::from(found != ["10.96.7.7", "fd00:10:96::77"]))
}

fn idle(_: Vec<OsString>) -> ExitCode {
    loop {
        thread::park();
    }
}

fn an_address_comes_back(world: &World) -> Outcome {
    let mut cluster = cluster(world)?;
    serve(&cluster)?;
    let (uid, addresses) = (
        cluster.pod("demo", "client")?.uid().to_owned(),
        cluster.pod("demo", "client")?.addresses().to_vec(),
    );
    cluster.delete(&Key::new("Pod", "demo", "client"))?;
    assert!(!cluster.manifests().join("pod.demo.client.yaml").exists());
    cluster.apply(&MANIFESTS.replace("name: client", "name: another"))?;
    assert_eq!(cluster.pod("demo", "another")?.addresses(), addresses);
    assert_ne!(cluster.pod("demo", "another")?.uid(), uid);
    let web = cluster.pod("demo", "web")?.addresses()[0];
    assert_eq!(ask(&cluster, "another", SocketAddr::new(web, 8080))?, addresses[0].to_string());
    Ok(())
}

/// Each alone, as what takes a capture back may forget one of them.
fn whatever_a_capture_leaves_behind_is_found(world: &World) -> Outcome {
    let pod = world.namespace("pod")?;
    assert_eq!(residue(&pod)?, [""; 0], "the kernel's own is nobody's");
    let segments = |ipv6| Policy {
        ipv6,
        priority: SEGMENTS_PRIORITY,
        leads_to: LeadsTo::Table(SEGMENTS_TABLE),
        mask: MARK_MASK,
        input: Some("lo".to_owned()),
        protocol: 6,
        ..Policy::default()
    };
    let replies = Policy {
        priority: RULE_PRIORITY,
        leads_to: LeadsTo::Table(ROUTE_TABLE),
        mark: REPLY_MARK,
        mask: MARK_MASK,
        ..Policy::default()
    };
    for policy in [segments(false), segments(true), replies] {
        pod.run(|| Routing::open()?.add_policy(&policy))??;
        let found = residue(&pod)?;
        assert!(
            found.len() == 1 && found[0].contains(&policy.priority.to_string()),
            "{policy:?}: {found:?}"
        );
        pod.run(|| Routing::open()?.delete_policy(&policy))??;
    }
    for table in [ROUTE_TABLE, SEGMENTS_TABLE] {
        let route = Route {
            table,
            ..Route::to("10.9.0.0/16".parse::<IpNet>()?).dev(1)
        };
        pod.run(|| Routing::open()?.add_route(&route))??;
        assert_eq!(residue(&pod)?, [format!("route to 10.9.0.0/16 in table {table}")]);
        pod.run(|| Routing::open()?.delete_route(&route))??;
    }
    assert_eq!(residue(&pod)?, [""; 0]);
    Ok(())
}

fn nothing_starts_in_a_pod_that_is_not_captured(world: &World) -> Outcome {
    let images = Images::from([("idle".to_owned(), Program::actor("idle"))]);
    let mut cluster = Cluster::build(world, world.scratch_dir(), images)?;
    let text = MANIFESTS.replace(
        "{name: client, namespace: demo}",
        "{name: client, namespace: demo, labels: {istio.io/dataplane-mode: ambient}}",
    );
    // There is no mesh process that could capture it.
    match cluster.apply(&text) {
        Err(ClusterError::NotCaptured { pod, .. }) => assert_eq!(pod, Key::new("Pod", "demo", "client")),
        other => return Err(format!("{other:?}").into()),
    }
    let running = cluster.pids();
    assert!(running[&Key::new("Pod", "demo", "client")].is_empty());
    assert_eq!(running[&Key::new("Pod", "demo", "web")].len(), 1);
    Ok(())
}
