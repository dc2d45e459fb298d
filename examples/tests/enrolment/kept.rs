//! What two nodes on `ambient control` keep for a restart: it is whole after any kill, and what there is no room for is kept as
//! soon as there is.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use ambient_testkit::{
    Capture, World,
    capture::{CaptureError, Seen, Speech},
    cluster::NODE_INTERFACE,
    harness::Outcome,
};

use super::{
    ground::{Failure, Ground, NODES, until},
    identities::by_tunnel,
    needed::call,
    peer::{FIRST_PORT, HELLO, now},
};

const PATIENCE: Duration = Duration::from_secs(30);
/// How often a node is killed, unless `AMBIENT_KILLS` says otherwise; `AMBIENT_KILLS_SEED` repeats a run.
const KILLS: u64 = 6;

/// Two nodes that keep what they know below a directory, each with a pod.
fn keeping(world: &World, below: &Path) -> Result<Ground, Failure> {
    let (state, keys) = (below.join("state-{node}"), below.join("keys"));
    let flags = [
        "--state-dir",
        &state.display().to_string(),
        "--keys-dir",
        &keys.display().to_string(),
    ];
    let mut ground = Ground::on_control(world, &[], &flags)?;
    for node in NODES {
        ground.ready(node)?;
    }
    ground.idle("node-1", "front", true)?;
    ground.idle("node-2", "back", true)?;
    answers(&ground, "back")?;
    // Until the client's node has heard of the capture it may go past the mesh, and whoever was to say so may be killed.
    by_tunnel(&ground, "node-1", "front")?;
    Ok(ground)
}

/// A pod answers `front`, whose connections are carried by tunnels.
fn answers(ground: &Ground, pod: &str) -> Outcome {
    let to = SocketAddr::from((ground.address(pod)?, FIRST_PORT));
    until(PATIENCE, || {
        Ok(call(ground, to)?.and_then(|name| if name == pod { Ok(()) } else { Err(name) }))
    })
}

fn judged(mut ground: Ground, test: impl FnOnce(&mut Ground) -> Outcome) -> Outcome {
    let ended = test(&mut ground);
    if ended.is_err() {
        println!("{}", ground.logs());
    }
    ended
}

pub(crate) fn what_a_killed_node_keeps_is_whole(world: &World) -> Outcome {
    judged(keeping(world, &world.scratch_dir())?, |ground| {
        kill_at_random(ground)?;
        // All that they know from now on is what they have kept.
        ground.kill_control()?;
        for node in NODES {
            ground.cluster.node(node)?.kill()?;
            ground.start(node)?;
        }
        for node in NODES {
            ground.ready(node)?;
        }
        answers(ground, "back")?;
        let page = ground.page("node-1", 15021, "/healthz/ready")?;
        assert!(
            page.contains("the rest is as remembered") && page.contains("certificate of before this start"),
            "{page}"
        );
        // What was announced stands, although nobody is there to hear it again.
        for (node, pod) in [("node-1", "front"), ("node-2", "back")] {
            until(PATIENCE, || {
                let told = ground.told(node, pod)?;
                let metrics = ground.page(node, 15020, "/metrics")?;
                let counted = metrics.lines().any(|line| line == "ambient_pods_not_captured 0");
                Ok(if told["state"] == "in" && counted {
                    Ok(())
                } else {
                    Err(format!("{told}\n{metrics}"))
                })
            })?;
        }
        for node in NODES {
            let log = fs::read_to_string(ground.cluster.node(node)?.log())?;
            let lost = ["is damaged", "was dropped", "not remembered", "not kept"];
            let told = log.lines().find(|line| lost.iter().any(|lost| line.contains(lost)));
            assert_eq!(told, None, "{node}");
        }
        Ok(())
    })
}

/// Kills a node again and again, at any moment of its life, while its pod calls and is called, and policies change.
fn kill_at_random(ground: &mut Ground) -> Outcome {
    let from_env = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let mut random = from_env("AMBIENT_KILLS_SEED").unwrap_or_else(now) | 1;
    println!("seed {random}");
    let mut dice = move |sides: u64| {
        // Marsaglia's xorshift.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % sides
    };
    // Each pod calls the other all the while.
    let line = |pod: &str| Ok::<_, Failure>(format!("{pod} {}\n", ground.address(pod)?));
    fs::write(&ground.peers, line("front")? + &line("back")?)?;
    let capture = Capture::start(ground.node_namespace("node-1")?, NODE_INTERFACE)?;
    let (mut tunnels, mut missed) = (0, 0);
    for kill in 0..from_env("AMBIENT_KILLS").unwrap_or(KILLS) {
        let node = NODES[dice(2) as usize];
        // Half of them while it has only begun to start.
        if dice(2) == 0 {
            ground.cluster.node(node)?.kill()?;
            ground.start(node)?;
        }
        let mut left = dice(700);
        while left > 0 {
            let policy = format!(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: changing, namespace: demo}}\nspec: \
                 {{action: DENY, rules: [{{from: [{{source: {{namespaces: [nobody-{kill}-{left}]}}}}]}}]}}\n"
            );
            ground.cluster.apply(&policy)?;
            let pause = left.min(20);
            thread::sleep(Duration::from_millis(pause));
            left -= pause;
        }
        ground.cluster.node(node)?.kill()?;
        thread::sleep(Duration::from_millis(dice(300)));
        ground.start(node)?;
        for node in NODES {
            ground.ready(node)?;
        }
        answers(ground, "back")?;
        match capture.seen() {
            Ok(seen) => tunnels += no_plaintext(&seen)?,
            Err(CaptureError::Lossy(_)) => missed += 1,
            Err(error) => return Err(error.into()),
        }
        capture.clear()?;
    }
    println!("{tunnels} connections between the nodes, {missed} windows missed");
    assert!(tunnels > 0, "nothing was seen");
    Ok(())
}

/// Both pods are captured all the time, so that nothing of what they say passes; gives how many connections were TLS.
fn no_plaintext(seen: &Seen) -> Result<usize, Failure> {
    if seen.contains(HELLO.as_bytes()) {
        let said = seen.connections.iter().find(|open| open.contains(HELLO.as_bytes()));
        return Err(format!("in plaintext: {said:?}").into());
    }
    Ok(seen.connections.iter().filter(|open| open.speech == Speech::Tls).count())
}

pub(crate) fn a_disk_without_room_stops_nothing_and_is_told(world: &World) -> Outcome {
    let disk = world.scratch_dir().join("disk");
    fs::create_dir(&disk)?;
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs"])
        .arg(&disk)
        .status()?;
    assert!(mounted.success(), "{mounted}");
    judged(keeping(world, &disk)?, |ground| {
        let ballast = fill(&disk)?;
        // Another policy, of more than a page, and the certificate of another pod.
        let nobodies: Vec<String> = (0..1000).map(|n| format!("nobody-{n}")).collect();
        ground.cluster.apply(&format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: nobody, namespace: demo}}\nspec: \
             {{action: DENY, rules: [{{from: [{{source: {{namespaces: [{}]}}}}]}}]}}\n",
            nobodies.join(", ")
        ))?;
        ground.idle("node-2", "late", true)?;
        answers(ground, "late")?;
        told(
            ground,
            &[
                "not remembered: a restart without it begins with nothing",
                "No space left on device",
            ],
        )?;
        let file = format!("as {}/", disk.display());
        told(
            ground,
            &["not kept for a restart: 1 certificate, ", &file, ".kept: No space left on device"],
        )?;
        let faults = ground.page("node-2", 15020, "/metrics")?;
        assert!(faults.lines().any(|line| line == "ambient_state_faults 1"), "{faults}");
        // One that starts meanwhile serves as well.
        ground.cluster.node("node-2")?.kill()?;
        ground.start("node-2")?;
        ground.ready("node-2")?;
        answers(ground, "late")?;
        answers(ground, "back")?;

        fs::remove_file(ballast)?;
        until(PATIENCE, || {
            let page = ground.page("node-2", 15021, "/healthz/ready")?;
            let lacks = ["not remembered", "not kept"].iter().any(|lack| page.contains(lack));
            Ok(if page.starts_with("ready\n") && !lacks { Ok(()) } else { Err(page) })
        })?;
        // By now all of it is there.
        ground.kill_control()?;
        ground.cluster.node("node-2")?.kill()?;
        ground.start("node-2")?;
        ground.ready("node-2")?;
        answers(ground, "late")?;
        answers(ground, "back")
    })
}

/// Leaves no room on a disk; gives the file that takes it.
fn fill(disk: &Path) -> Result<PathBuf, Failure> {
    let path = disk.join("ballast");
    let mut ballast = fs::File::create(&path)?;
    while ballast.write(&[0; 4096]).is_ok() {}
    Ok(path)
}

/// The second node's readiness says all of this.
fn told(ground: &Ground, words: &[&str]) -> Outcome {
    until(PATIENCE, || {
        let page = ground.page("node-2", 15021, "/healthz/ready")?;
        Ok(if words.iter().all(|word| page.contains(word)) {
            Ok(())
        } else {
            Err(page)
        })
    })
}
