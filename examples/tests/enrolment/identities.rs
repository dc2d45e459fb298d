//! Two nodes whose certificates come from agents of one SPIRE: identities that are taken back, and roots that change.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use ambient_testkit::{World, harness::Outcome, spire};

use super::{
    ground::{Failure, Ground, NODES, until},
    peer::{self, FIRST_PORT},
};

const PATIENCE: Duration = Duration::from_secs(20);
const PORT: u16 = 7001;

pub(crate) fn spire_says_who_is_who_on_both_nodes(world: &World) -> Outcome {
    let server = spire::Server::new();
    let dir = world.scratch_dir();
    let socket = |node: &str| dir.join(format!("{node}.sock"));
    let _agents = NODES.map(|node| server.start(&socket(node)));
    let agent = |node: &str| vec!["--spire-admin-socket".into(), format!("unix:{}", socket(node).display())];
    let mut ground = Ground::on_spire(world, agent)?;
    let lived = live(&mut ground, &server);
    if lived.is_err() {
        println!("{}", ground.logs());
    }
    lived
}

fn live(ground: &mut Ground, server: &spire::Server) -> Outcome {
    for node in NODES {
        ground.ready(node)?;
    }
    for (node, pod) in [("node-1", "front"), ("node-1", "other"), ("node-2", "back")] {
        ground.idle(node, pod, true)?;
    }
    // Until each node has heard of the other's captures, and has its certificates.
    for pod in ["front", "other"] {
        until(PATIENCE, || call(ground, pod))?;
        by_tunnel(ground, "node-1", pod)?;
    }
    roots_change(ground, server)?;
    withdrawn(ground, server)
}

/// Whether what a pod has called went by tunnel in the end.
pub(crate) fn by_tunnel(ground: &Ground, node: &str, pod: &str) -> Outcome {
    until(PATIENCE, || {
        call(ground, pod)?.map_err(|error| format!("{pod} was refused: {error}"))?;
        let metrics = ground.page(node, 15020, "/metrics")?;
        let tunnelled = metrics.lines().any(|line| {
            line.starts_with("istio_tcp_connections_opened_total{")
                && line.contains("connection_security_policy=\"mutual_tls\"")
                && line.contains(&format!("source_workload=\"{pod}\""))
        });
        Ok(if tunnelled {
            Ok(())
        } else {
            Err(format!("{pod} was not heard through a tunnel"))
        })
    })
}

/// A new root beside the old one, then a new signer, then the old root is gone: at each stage somebody new shakes hands, while
/// others call all the time. Nobody is refused.
fn roots_change(ground: &mut Ground, server: &spire::Server) -> Outcome {
    let to = SocketAddr::from((ground.address("back")?, FIRST_PORT));
    let (stop, calls) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let mut callers = Vec::new();
    for pod in ["front", "other"] {
        let (stop, calls) = (stop.clone(), calls.clone());
        // A thread stays where it was begun.
        let caller = ground.pod_namespace(pod)?.run(move || {
            thread::spawn(move || -> Result<(), String> {
                while !stop.load(Ordering::Relaxed) {
                    peer::ask(to, pod).map_err(|e| format!("a call of {pod} was refused: {e}"))?;
                    calls.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(5));
                }
                Ok(())
            })
        })?;
        callers.push(caller);
    }
    for stage in ["beside", "signs", "alone"] {
        match stage {
            "beside" => server.prepare_authority(),
            "signs" => server.activate_authority(),
            _ => server.forget_authorities(),
        }
        // SPIRE waits for much longer between them.
        thread::sleep(Duration::from_secs(1));
        let before = calls.load(Ordering::Relaxed);
        for node in NODES {
            let name = format!("{stage}-{node}");
            ground.idle(node, &name, true)?;
            assert_eq!(call(ground, &name)?, Ok("back".into()), "{name}");
            by_tunnel(ground, node, &name)?;
        }
        assert!(calls.load(Ordering::Relaxed) > before, "{stage}: nobody calls any more");
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.join().map_err(|_| "a caller panicked")??;
    }
    Ok(())
}

fn withdrawn(ground: &Ground, server: &spire::Server) -> Outcome {
    let to = SocketAddr::from((ground.address("back")?, PORT));
    let listener = ground.pod_namespace("back")?.run(|| TcpListener::bind(("::", PORT)))??;
    let open = |pod: &str| -> Result<(TcpStream, TcpStream), Failure> {
        let mut client = ground.pod_namespace(pod)?.run(move || TcpStream::connect(to))??;
        client.write_all(b"x")?;
        let (mut far, _) = listener.accept()?;
        for end in [&client, &far] {
            end.set_read_timeout(Some(PATIENCE))?;
        }
        far.read_exact(&mut [0])?;
        Ok((client, far))
    };
    let (mut front, mut front_far) = open("front")?;
    let (mut other, mut other_far) = open("other")?;
    server.withdraw("front");
    for end in [&mut front, &mut front_far] {
        let read = end.read(&mut [0]);
        assert!(
            read.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset),
            "{read:?}"
        );
    }
    let refused = call(ground, "front")?;
    assert!(refused.is_err(), "{refused:?}");
    let readiness = ground.page("node-1", 15021, "/healthz/ready")?;
    assert!(readiness.contains("spiffe://cluster.local/ns/demo/sa/front"), "{readiness}");
    // What others have goes on.
    other.write_all(b"y")?;
    other_far.read_exact(&mut [0])?;
    server.give("front");
    until(PATIENCE, || call(ground, "front"))?;
    // At the end that is called it is the same.
    server.withdraw("back");
    for end in [&mut other, &mut other_far] {
        let read = end.read(&mut [0]);
        assert!(
            read.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset),
            "{read:?}"
        );
    }
    let refused = call(ground, "other")?;
    assert!(refused.is_err(), "{refused:?}");
    server.give("back");
    until(PATIENCE, || call(ground, "other"))?;
    Ok(())
}

/// The name of who answers a pod that calls `back`; why nobody does, otherwise.
pub(crate) fn call(ground: &Ground, pod: &str) -> Result<Result<String, String>, Failure> {
    let to = SocketAddr::from((ground.address("back")?, FIRST_PORT));
    let name = pod.to_owned();
    let heard = ground.pod_namespace(pod)?.run(move || peer::ask(to, &name))?;
    Ok(heard.map_err(|error| error.to_string()))
}
