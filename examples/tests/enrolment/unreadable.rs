//! Two nodes on `ambient control`, of whose manifests something cannot be read: new connections are refused everywhere until it is mended
//! or removed, also where that is while control does not run. And an identity that is revoked: each page of its node tells it.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use ambient_testkit::{World, harness::Outcome};
use serde_json::Value;

use super::{
    ground::{Failure, Ground, NODES, path, until},
    identities::{by_tunnel, call},
};

const PATIENCE: Duration = Duration::from_secs(20);
/// For so long nobody is let in.
const STEADY: Duration = Duration::from_secs(1);

pub(crate) fn what_control_cannot_read_refuses_on_every_node_and_is_taken_back(world: &World) -> Outcome {
    judged(world, |ground| {
        let manifests = ground.cluster.manifests().to_owned();
        let broken = manifests.join("x.yaml");
        fs::write(&broken, "garbage: [")?;
        refused(ground, "x.yaml")?;
        fs::remove_file(&broken)?;
        served(ground, "x.yaml")?;

        // It goes while nobody looks.
        fs::write(&broken, "garbage: [")?;
        refused(ground, "x.yaml")?;
        ground.kill_control()?;
        fs::remove_file(&broken)?;
        ground.start_control()?;
        served(ground, "x.yaml")?;
        loses_a_link(ground, &manifests)
    })
}

/// A policy is a link, as in a volume of Kubernetes, and what it leads to goes: it stays in force.
fn loses_a_link(ground: &mut Ground, manifests: &Path) -> Outcome {
    let data = manifests.join("..data");
    let write = |text: &str| -> Outcome {
        fs::create_dir(&data)?;
        Ok(fs::write(data.join("policy.yaml"), text)?)
    };
    write(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: denied, namespace: demo}\nspec: {action: DENY, rules: \
         [{from: [{source: {principals: [cluster.local/ns/demo/sa/denied]}}]}]}\n",
    )?;
    ground.idle("node-1", "denied", true)?;
    until(PATIENCE, || call(ground, "denied"))?;
    symlink("..data/policy.yaml", manifests.join("policy.yaml"))?;
    until(PATIENCE, || is_refused(ground, "denied"))?;
    fs::remove_dir_all(&data)?;
    let begun = Instant::now();
    while begun.elapsed() < STEADY {
        is_refused(ground, "denied")??;
        call(ground, "front")??;
        thread::sleep(Duration::from_millis(50));
    }
    // It says that nothing is meant.
    write("apiVersion: v1\nkind: List\nitems: []\n")?;
    until(PATIENCE, || call(ground, "denied"))?;
    Ok(())
}

fn is_refused(ground: &Ground, pod: &str) -> Result<Result<(), String>, Failure> {
    Ok(match call(ground, pod)? {
        Ok(name) => Err(format!("{name} answers {pod}")),
        Err(_) => Ok(()),
    })
}

pub(crate) fn an_identity_that_is_revoked_is_told_by_every_page(world: &World) -> Outcome {
    judged(world, |ground| {
        let (ca, whom) = (path(&ground.ca), "spiffe://cluster.local/ns/demo/sa/front");
        let (code, _, err) = ground.ambient("node-1", &["ca", "revoke", "--identity", whom, "--ca", &ca])?;
        assert_eq!(code, 0, "{err}");
        until(PATIENCE, || is_refused(ground, "front"))?;
        until(PATIENCE, || {
            let told = ground.told("node-1", "front")?;
            let doubt = doubt(&told);
            let says = doubt.is_some_and(|wrong| wrong["what"].as_str().is_some_and(|what| what.contains("revoked")));
            Ok(if says { Ok(()) } else { Err(told.to_string()) })
        })?;
        assert_eq!(doubt(&ground.told("node-2", "back")?), None);
        let back = format!("{}:7000", ground.address("back")?);
        let explained = ground.page("node-1", 15000, &format!("/explain?from=demo/front&to={back}"))?;
        assert!(
            explained.contains("peers refuse it") && !explained.contains("valid until"),
            "{explained}"
        );
        let dump = ground.page("node-1", 15000, "/config_dump")?;
        assert!(dump.contains("Unavailable: peers refuse it: "), "{dump}");
        let readiness = ground.page("node-1", 15021, "/healthz/ready")?;
        assert!(
            readiness.contains("with a certificate that peers refuse") && readiness.contains(whom),
            "{readiness}"
        );
        Ok(())
    })
}

/// What is told to be wrong with a pod's certificate.
fn doubt(told: &Value) -> Option<&Value> {
    let mut wrong = told["wrong"].as_array().into_iter().flatten();
    wrong.find(|one| one["code"] == "certificate-refused")
}

fn judged(world: &World, test: impl FnOnce(&mut Ground) -> Outcome) -> Outcome {
    let mut ground = Ground::on_control(world, &[], &[])?;
    let ended = begin(&mut ground).and_then(|()| test(&mut ground));
    if ended.is_err() {
        println!("{}", ground.logs());
    }
    ended
}

fn begin(ground: &mut Ground) -> Outcome {
    for node in NODES {
        ground.ready(node)?;
    }
    ground.idle("node-1", "front", true)?;
    ground.idle("node-2", "back", true)?;
    until(PATIENCE, || call(ground, "front"))?;
    by_tunnel(ground, "node-1", "front")
}

/// Nobody is let in, and both nodes say for which file.
fn refused(ground: &Ground, file: &str) -> Outcome {
    until(PATIENCE, || is_refused(ground, "front"))?;
    let begun = Instant::now();
    while begun.elapsed() < STEADY {
        is_refused(ground, "front")??;
        thread::sleep(Duration::from_millis(50));
    }
    told(ground, file, true)
}

/// All is as it was, and nobody says otherwise.
fn served(ground: &Ground, file: &str) -> Outcome {
    until(PATIENCE, || call(ground, "front"))?;
    told(ground, file, false)
}

fn told(ground: &Ground, file: &str, wrong: bool) -> Outcome {
    for node in NODES {
        until(PATIENCE, || {
            let readiness = ground.page(node, 15021, "/healthz/ready")?;
            let unreadable = unreadable(ground, node)?;
            Ok(match readiness.contains(file) == wrong && (unreadable > 0.) == wrong {
                true => Ok(()),
                false => Err(format!("{node}: {unreadable} policies that cannot be read, and\n{readiness}")),
            })
        })?;
    }
    Ok(())
}

/// Policies that a node cannot read, whatever is in force instead.
fn unreadable(ground: &Ground, node: &str) -> Result<f64, Failure> {
    let metrics = ground.page(node, 15020, "/metrics")?;
    let counted = metrics.lines().filter(|line| line.starts_with("ambient_policies_unreadable{"));
    let counts = counted.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(counts.sum())
}
