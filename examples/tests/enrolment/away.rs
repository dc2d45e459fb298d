//! Two nodes whose certificates come from SPIRE, the one for its pods (Delegated Identity API), the other for its only one
//! (Workload API): both are started anew while no agent is there, and serve by what they keep until that ends.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use ambient_testkit::{World, harness::Outcome, spire};

use super::{
    ground::{Failure, Ground, NODES, path, until},
    identities::{by_tunnel, call},
};

const PATIENCE: Duration = Duration::from_secs(30);
/// How long those certificates are valid whose end is waited for; all others for as long as takes any machine.
const LIFE: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) fn nodes_are_started_anew_while_spire_is_away(world: &World) -> Outcome {
    let server = spire::Server::new();
    server.is_called_by("demo", "back");
    let dir = world.scratch_dir();
    let socket = |node: &str| dir.join(format!("{node}.sock"));
    let agents = NODES.map(|node| server.start(&socket(node)));
    let mut ground = Ground::on_spire(world, |node| {
        let api = if node == NODES[0] {
            "--spire-admin-socket"
        } else {
            "--spiffe-socket"
        };
        let agent = format!("unix:{}", path(&socket(node)));
        let (state, keys) = (dir.join(format!("state-{node}")), dir.join("keys"));
        [api, &agent, "--state-dir", &path(&state), "--keys-dir", &path(&keys)]
            .map(str::to_owned)
            .into()
    })?;
    let lived = live(&mut ground, &server, agents, &socket).and_then(|()| ends(&mut ground, &server, &socket));
    if lived.is_err() {
        println!("{}", ground.logs());
    }
    lived
}

fn live(
    ground: &mut Ground,
    server: &std::sync::Arc<spire::Server>,
    agents: [spire::Agent; 2],
    socket: &dyn Fn(&str) -> std::path::PathBuf,
) -> Outcome {
    for node in NODES {
        ground.ready(node)?;
    }
    for (node, pod) in [("node-1", "front"), ("node-1", "other"), ("node-2", "back")] {
        ground.idle(node, pod, true)?;
    }
    for pod in ["front", "other"] {
        until(PATIENCE, || call(ground, pod))?;
        by_tunnel(ground, "node-1", pod)?;
    }

    // The agents are killed, and their sockets go as with a reboot of theirs; nothing is taken from who runs.
    drop(agents);
    for node in NODES {
        std::fs::remove_file(socket(node))?;
    }
    until(PATIENCE, || call(ground, "front"))?;
    anew(ground)?;
    serves_from_before(ground)?;
    // A pod of whom nothing is kept is not started, and is named.
    let late = ground.idle("node-1", "late", true).map_err(|error| error.to_string());
    assert!(late.as_ref().is_err_and(|why| why.contains("late was not started")), "{late:?}");
    let readiness = ground.page("node-1", 15021, "/healthz/ready")?;
    assert!(
        readiness.contains("waiting for a certificate") && readiness.contains("sa/late"),
        "{readiness}"
    );

    // An agent that dies in the middle of a word, again and again, and one that says half of a word and then nothing: what is
    // kept goes on being used.
    server.give_halves(usize::MAX);
    for _ in 0..3 {
        let before = server.halves();
        let halves: Vec<_> = NODES.iter().map(|node| server.start(&socket(node))).collect();
        until(PATIENCE, || {
            Ok(if server.halves() < before {
                Ok(())
            } else {
                Err("nobody asks".into())
            })
        })?;
        until(PATIENCE, || call(ground, "front"))?;
        drop(halves);
    }
    server.give_halves(0);
    for node in NODES {
        std::fs::remove_file(socket(node))?;
    }
    until(PATIENCE, || call(ground, "front"))?;
    Ok(())
}

/// Nodes that have kept what counts for a day are given what counts for less than a minute: that is what they serve by, as soon
/// as an agent is there to give it, and so they say. It is over with its end, and with that of the agent's absence.
fn ends(ground: &mut Ground, server: &std::sync::Arc<spire::Server>, socket: &dyn Fn(&str) -> std::path::PathBuf) -> Outcome {
    server.give_for(LIFE);
    // Nothing is given before, and so nothing ends before that long after it.
    let begun = Instant::now();
    let agents = NODES.map(|node| server.start(&socket(node)));
    for node in NODES {
        until(PATIENCE, || {
            let readiness = ground.page(node, 15021, "/healthz/ready")?;
            Ok(match readiness.contains("of before this start") {
                true => Err(format!("{node}: {readiness}")),
                false => Ok(()),
            })
        })?;
    }
    if begun.elapsed() < LIFE / 2 {
        until(PATIENCE, || call(ground, "front"))?;
    }
    drop(agents);
    for node in NODES {
        std::fs::remove_file(socket(node))?;
    }
    // Away for longer than what was given last lives, of each node.
    for (node, whose) in [("node-1", "sa/front"), ("node-2", "sa/back")] {
        until(LIFE + PATIENCE, || {
            let readiness = ground.page(node, 15021, "/healthz/ready")?;
            let over = readiness.contains("waiting for a certificate") && readiness.contains(whose);
            Ok(if over { Ok(()) } else { Err(readiness) })
        })?;
    }
    assert!(
        begun.elapsed() >= LIFE - Duration::from_secs(2),
        "it ended before its end: {:?}",
        begun.elapsed()
    );
    let called = call(ground, "front")?;
    assert!(called.is_err(), "it is served with a certificate that has ended: {called:?}");

    server.give_for(DAY);
    let _agents = NODES.map(|node| server.start(&socket(node)));
    let back = Instant::now();
    until(PATIENCE, || call(ground, "front"))?;
    println!("served {:?} after the agents are back", back.elapsed());
    Ok(())
}

/// Both processes are killed, and others take their place.
fn anew(ground: &mut Ground) -> Outcome {
    for node in NODES {
        ground.cluster.node(node)?.kill()?;
    }
    for node in NODES {
        ground.start(node)?;
    }
    for node in NODES {
        ground.ready(node)?;
    }
    Ok(())
}

/// Pods are heard through tunnels, and the nodes say by what: in readiness, in a metric, and in the log.
fn serves_from_before(ground: &mut Ground) -> Outcome {
    for pod in ["front", "other"] {
        until(PATIENCE, || call(ground, pod))?;
        by_tunnel(ground, "node-1", pod)?;
    }
    // So that an age is more than nothing.
    thread::sleep(Duration::from_secs(1));
    for node in NODES {
        let readiness = ground.page(node, 15021, "/healthz/ready")?;
        assert!(
            readiness.contains("served with the certificate of before this start"),
            "{node}: {readiness}"
        );
        let metrics = ground.page(node, 15020, "/metrics")?;
        let age = metrics.lines().find_map(|line| line.strip_prefix("ambient_trust_age_seconds "));
        let age: f64 = age.ok_or_else(|| format!("{node} tells no age"))?.parse()?;
        assert!(age > 0.5, "{node}: {age}");
        let log = log(ground, node)?;
        assert!(log.contains("the SPIFFE agent does not answer"), "{node} says nothing of it: {log}");
    }
    Ok(())
}

fn log(ground: &mut Ground, node: &str) -> Result<String, Failure> {
    let log: &Path = ground.cluster.node(node)?.log();
    Ok(std::fs::read_to_string(log)?)
}
