//! What pods are announced as is known by `ambient control` alone: the next process of a node, and of that.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use ambient_redirect::linux::{Inside, Netns};
use ambient_testkit::{World, cluster::residue, harness::Outcome};
use serde_json::Value;

use super::ground::{Failure, Ground, NODES, until};

const PATIENCE: Duration = Duration::from_secs(30);
const NODE: &str = "node-1";

pub(crate) fn what_an_earlier_process_announced_is_known_from_control(world: &World) -> Outcome {
    let mut ground = Ground::on_control(world, &[], &[])?;
    let known = restart(&mut ground);
    if known.is_err() {
        println!("{}", ground.logs());
    }
    known
}

/// As where its machine was made anew, or what it keeps was put back from before.
pub(crate) fn what_control_has_lost_of_captures_is_told_again(world: &World) -> Outcome {
    let mut ground = Ground::on_control(world, &[], &[])?;
    let again = lose(&mut ground);
    if again.is_err() {
        println!("{}", ground.logs());
    }
    again
}

fn lose(ground: &mut Ground) -> Outcome {
    for (node, pod) in NODES.into_iter().zip(["here", "afar"]) {
        ground.ready(node)?;
        ground.idle(node, pod, true)?;
    }
    let captured = ground.captured()?;
    assert_eq!(captured.len(), 2);
    ground.kill_control()?;
    fs::remove_dir_all(ground.cluster.manifests().join("status"))?;
    ground.start_control()?;
    // It takes time for either half: that the stream is there again, and that nothing is told.
    until(3 * PATIENCE, || {
        let told = ground.captured()?;
        Ok(if told == captured {
            Ok(())
        } else {
            Err(format!("{told:?} of {captured:?}"))
        })
    })
}

fn restart(ground: &mut Ground) -> Outcome {
    for node in NODES {
        ground.ready(node)?;
    }
    for pod in ["stays", "leaves"] {
        ground.idle(NODE, pod, true)?;
    }
    ground.idle("node-2", "afar", true)?;
    let uids: Vec<String> = ["stays", "leaves", "afar"]
        .into_iter()
        .map(|pod| {
            Ok(ground.told(if pod == "afar" { "node-2" } else { NODE }, pod)?["uid"]
                .as_str()
                .ok_or("no UID")?
                .to_owned())
        })
        .collect::<Result<_, Failure>>()?;
    let [stays, leaves, afar] = &uids[..] else {
        return Err("three pods".into());
    };
    assert_eq!(ground.captured()?, uids.iter().cloned().collect::<BTreeSet<_>>());
    ground.cluster.node(NODE)?.kill()?;
    // Nothing is left in either but what was announced, as after a boot.
    for pod in ["stays", "leaves"] {
        let namespace = Netns::open(ground.pod_namespace(pod)?.path())?;
        Inside::open(&namespace)?.clear()?;
    }
    ground.mean("leaves", false)?;
    // What is opened meanwhile goes around the mesh.
    let (to, listener) = outside(ground)?;
    let mut around = ground.pod_namespace("stays")?.run(move || TcpStream::connect(to))??;
    let (mut served, _) = listener.accept()?;
    served.write_all(b"plain")?;
    let mut heard = [0; 5];
    around.set_read_timeout(Some(PATIENCE))?;
    around.read_exact(&mut heard)?;

    ground.start(NODE)?;
    until(PATIENCE, || {
        let captured = ground.captured()?;
        Ok(match captured.contains(leaves) {
            true => Err(format!("it is announced still: {captured:?}")),
            false => Ok(()),
        })
    })?;
    until(PATIENCE, || {
        let told = match ground.told(NODE, "stays") {
            Ok(told) => told,
            Err(error) => return Ok(Err(error.to_string())),
        };
        Ok(if told["state"] == "in" { Ok(told) } else { Err(told.to_string()) })
    })
    .and_then(|told| was_captured(&told))?;
    // It was captured all the while, by whatever was known to others: what went around that does not go on.
    let ended = around.read(&mut heard);
    assert_eq!(
        ended.map_err(|error| error.kind()),
        Err(io::ErrorKind::ConnectionAborted),
        "closed here, as a stray"
    );
    assert_eq!(
        ground.captured()?,
        BTreeSet::from([stays.clone(), afar.clone()]),
        "of others nothing is taken back"
    );
    assert_eq!(residue(ground.pod_namespace("leaves")?)?, [""; 0]);
    Ok(())
}

/// One whose capture was broken, and not one that joins with what it has open.
fn was_captured(told: &Value) -> Outcome {
    assert_eq!(told["kept"], serde_json::json!([]), "{told}");
    assert_eq!(told["strays"], 1, "{told}");
    Ok(())
}

fn outside(ground: &mut Ground) -> Result<(SocketAddr, TcpListener), Failure> {
    let node = ground.cluster.node("node-2")?;
    let to = SocketAddr::from((node.addresses().v4, 7000));
    let listener = node.namespace().run(move || TcpListener::bind(to))??;
    Ok((to, listener))
}
