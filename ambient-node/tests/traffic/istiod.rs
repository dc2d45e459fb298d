//! A node as in the place of Istio's proxy: its source tells no UIDs of pods, and an agent says over ZDS which pods are here.

use std::{
    cell::RefCell,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use ambient_core::ports;
use ambient_node::{Config, Keys};
use ambient_testkit::{World, harness::Outcome};
use serde_json::Value;

use crate::{
    mesh::{Family, Mesh, Way, until},
    told::{Agent, make_rules},
};

/// What a node says of itself in JSON.
fn said(mesh: &Mesh, path: &str) -> Option<Value> {
    let (status, text) = mesh.page(ports::ADMIN, path).ok()?;
    (status == 200).then(|| serde_json::from_str(&text).ok())?
}

/// Whose certificates are there, in their order.
fn certificates(mesh: &Mesh) -> Option<Vec<String>> {
    let mut dump = said(mesh, "/config_dump")?;
    let Value::Array(held) = dump["certificates"].take() else {
        return None;
    };
    let is_held = |one: &&Value| one["state"] == "Available";
    let names = held.iter().filter(is_held).map(|one| one["identity"].as_str().map(str::to_owned));
    names.collect()
}

/// What is wrong with a pod, by its code and in words.
fn wrong(mesh: &Mesh, pod: &str) -> Option<(String, String)> {
    let view = said(mesh, &format!("/pods?pod={pod}&format=json"))?;
    let text = |name: &str| Some(view["wrong"][0][name].as_str()?.to_owned());
    Some((text("code")?, text("what")?))
}

pub(crate) fn a_restart_goes_on_while_the_authority_is_away_though_no_uid_is_told(world: &World) -> Outcome {
    let (socket, keys) = (world.scratch_dir().join("zds.sock"), world.scratch_dir().join("keys"));
    let Some(agent) = Agent::start(&socket) else { return Ok(()) };
    let (agent, away) = (RefCell::new(agent), Arc::new(AtomicBool::new(false)));
    let configure = |config: &mut Config| {
        config.zds = Some(socket.clone());
        config.keys = Keys::Below(keys.clone());
    };
    let first = |config: &mut Config| {
        configure(config);
        ["a", "b"].into_iter().for_each(|pod| make_rules(world, pod));
    };
    let mut mesh = Mesh::start_with_istiod(world, &away, first, |mesh| {
        until("certificates of pods that nobody has named yet", || {
            (certificates(mesh)?.len() == 2).then_some(())
        });
        assert_eq!(wrong(mesh, "a").unwrap().0, "not-named");
        name_all(world, &mut agent.borrow_mut());
    })?;
    let kept = files(&keys);
    assert!(kept.iter().filter(|name| name.contains("~sa~")).count() == 2, "{kept:?}");

    // One that the agent has named is told of as long as it is not served, and why.
    away.store(true, Ordering::Relaxed);
    mesh.apply("pod-c", &crate::mesh::pod("c", &mesh.c));
    until("the pod to be known", || wrong(&mesh, "c"));
    let refused = agent.borrow_mut().add(world, "c", "c");
    assert!(refused.contains("away"), "{refused}");
    let (code, what) = wrong(&mesh, "c").ok_or("nothing is wrong")?;
    assert!(code == "not-served" && what.contains("away"), "{code}: {what}");
    let pending = said(&mesh, "/config_dump").ok_or("no dump")?["workloadState"]["uid-of-c"].take();
    assert_eq!(pending["state"], "Pending", "{pending}");
    until("the pod to be counted", || {
        (mesh.metric("workload_manager_pending_proxy_count", &[]) == 1).then_some(())
    });
    assert_eq!(agent.borrow_mut().say("del uid-of-c"), "ok");
    until("none to be counted", || {
        (mesh.metric("ambient_pods_not_captured", &[]) == 0).then_some(())
    });
    let served = said(&mesh, "/config_dump").ok_or("no dump")?["workloadState"].take();
    assert_eq!(served.as_object().ok_or("no pods")?.len(), 2, "{served}");
    mesh.delete("pod-c");

    let stopping = mesh.stop();
    until("the node to end", || stopping.is_over().then_some(()));
    stopping.result()?;
    assert_eq!(files(&keys), kept);
    mesh.start_again_with_istiod(world, &away, configure, |_| name_all(world, &mut agent.borrow_mut()));
    for way in Way::ALL {
        mesh.open(way, Family::V4).converse()?;
    }
    let (_, text) = mesh.page(ports::READINESS, "/healthz/ready")?;
    assert!(text.contains("2 served with the certificate of before this start"), "{text}");
    Ok(())
}

fn name_all(world: &World, agent: &mut Agent) {
    assert_eq!(agent.say("accept"), "ok");
    for pod in ["a", "b"] {
        assert_eq!(agent.add(world, pod, pod), "ok");
    }
    assert_eq!(agent.say("snapshot"), "ok");
}

/// The files of a node below a directory, in their order.
fn files(directory: &Path) -> Vec<String> {
    let names = std::fs::read_dir(directory.join(crate::mesh::NODE)).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}
