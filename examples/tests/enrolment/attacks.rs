//! What an operator, a machine or a mishap does to a process of a node: it says what is wrong, loses nothing, and goes on.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use ambient_testkit::{World, harness::Outcome};
use rustix::process::Signal;

use super::{
    ground::{Failure, Ground, NODES, path, until},
    needed::call,
    peer::FIRST_PORT,
};

const PATIENCE: Duration = Duration::from_secs(30);
const PATIENT_PORT: u16 = 7000;

/// Two nodes with a pod each.
fn ground(world: &World) -> Result<Ground, Failure> {
    let mut ground = Ground::new(world)?;
    for node in NODES {
        ground.ready(node)?;
    }
    ground.idle("node-1", "front", true)?;
    ground.idle("node-2", "back", true)?;
    answers(&ground)?;
    Ok(ground)
}

/// `back` answers `front`.
fn answers(ground: &Ground) -> Outcome {
    let to = SocketAddr::from((ground.address("back")?, FIRST_PORT));
    until(PATIENCE, || {
        Ok(call(ground, to)?.and_then(|name| if name == "back" { Ok(()) } else { Err(name) }))
    })
}

/// Listens in `back`, where everybody waits for as long as it takes.
fn listening(ground: &Ground) -> Result<TcpListener, Failure> {
    let at = SocketAddr::from((ground.address("back")?, PATIENT_PORT));
    Ok(ground.pod_namespace("back")?.run(move || TcpListener::bind(at))??)
}

/// A connection from `front` to there.
fn opened(ground: &Ground, to: &TcpListener) -> io::Result<TcpStream> {
    let to = to.local_addr()?;
    let front = ground.pod_namespace("front").map_err(|error| io::Error::other(error.to_string()))?;
    let stream = front
        .run(move || TcpStream::connect_timeout(&to, PATIENCE))
        .map_err(io::Error::other)??;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Both ends of one.
fn pair(ground: &Ground, to: &TcpListener) -> Result<[TcpStream; 2], Failure> {
    let mut ends = [opened(ground, to)?, to.accept()?.0];
    ends[1].set_read_timeout(Some(PATIENCE))?;
    converse(&mut ends)?;
    Ok(ends)
}

fn converse(ends: &mut [TcpStream; 2]) -> Outcome {
    for (from, to) in [(0, 1), (1, 0)] {
        ends[from].write_all(b"word")?;
        let mut heard = [0; 4];
        ends[to].read_exact(&mut heard)?;
        assert_eq!(&heard, b"word");
    }
    Ok(())
}

fn with_logs(mut ground: Ground, test: impl FnOnce(&mut Ground) -> Outcome) -> Outcome {
    let ended = test(&mut ground);
    if ended.is_err() {
        println!("{}", ground.logs());
    }
    ended
}

/// Sends a signal to a node's process.
fn tell(ground: &mut Ground, node: &str, signal: Signal) -> Outcome {
    Ok(ground.cluster.node(node)?.process().ok_or("it does not run")?.signal(signal)?)
}

/// How a node's process ends, and how long that takes.
fn ends(ground: &mut Ground, node: &str, within: Duration) -> Result<(Option<i32>, Duration), Failure> {
    let begun = Instant::now();
    let process = ground.cluster.node(node)?.process().ok_or("it does not run")?;
    let status = process.wait(within)?.ok_or_else(|| format!("it runs still after {within:?}"))?;
    Ok((status.code(), begun.elapsed()))
}

pub(crate) fn a_node_that_is_told_twice_ends_now(world: &World) -> Outcome {
    with_logs(ground(world)?, |ground| {
        let listener = listening(ground)?;
        let mut open = pair(ground, &listener)?;
        tell(ground, "node-1", Signal::TERM)?;
        until(PATIENCE, || {
            let log = fs::read_to_string(ground.cluster.node("node-1")?.log())?;
            Ok(if log.contains("open connections go on") {
                Ok(())
            } else {
                Err("it does not stop".to_owned())
            })
        })?;
        converse(&mut open)?;
        tell(ground, "node-1", Signal::TERM)?;
        let (code, took) = ends(ground, "node-1", PATIENCE)?;
        assert_eq!(code, Some(0));
        // Five seconds is what open connections have otherwise.
        assert!(took < Duration::from_secs(4), "{took:?}");
        for end in &mut open {
            let cut = end.read(&mut [0]).map_err(|error| error.kind());
            assert_eq!(cut, Err(io::ErrorKind::ConnectionReset));
        }
        let log = fs::read_to_string(ground.cluster.node("node-1")?.log())?;
        assert!(log.contains("told to stop once more"), "the last words are missing");
        ground.start("node-1")?;
        ground.ready("node-1")?;
        answers(ground)
    })
}

pub(crate) fn a_start_is_ended_at_any_moment(world: &World) -> Outcome {
    with_logs(ground(world)?, |ground| {
        for wait in [0, 5, 15, 30, 50, 80, 120, 200, 400] {
            ground.cluster.node("node-1")?.kill()?;
            ground.start("node-1")?;
            thread::sleep(Duration::from_millis(wait));
            tell(ground, "node-1", Signal::TERM)?;
            let (code, took) = ends(ground, "node-1", PATIENCE)?;
            // Before it listens for signals it is simply killed by them.
            assert!(
                matches!(code, Some(0 | 1) | None) && took < Duration::from_secs(8),
                "{code:?} after {took:?}"
            );
        }
        ground.start("node-1")?;
        ground.ready("node-1")?;
        answers(ground)
    })
}

pub(crate) fn a_second_process_says_that_there_is_one(world: &World) -> Outcome {
    with_logs(ground(world)?, |ground| {
        let arguments = ground.arguments("node-1");
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (code, _, said) = ground.ambient("node-1", &arguments)?;
        assert_eq!((code, said.lines().count()), (1, 1), "{said}");
        assert!(
            said.contains("15000") && said.contains("another node proxy") && said.contains("--admin"),
            "{said}"
        );
        answers(ground)
    })
}

pub(crate) fn a_mesh_that_vanishes_is_gone_by_until_it_is_back(world: &World) -> Outcome {
    with_logs(ground(world)?, |ground| {
        let manifests = ground.cluster.manifests().to_owned();
        let aside = manifests.with_extension("aside");
        let listener = listening(ground)?;
        let mut open = pair(ground, &listener)?;
        fs::rename(&manifests, &aside)?;
        until(PATIENCE, || {
            let page = ground.page("node-1", 15021, "/healthz/ready")?;
            let name = manifests.display().to_string();
            Ok(if page.contains(&name) { Ok(()) } else { Err(page) })
        })?;
        answers(ground)?;
        converse(&mut open)?;
        // It comes back as it was, and changes of it count again.
        fs::rename(&aside, &manifests)?;
        ground.idle("node-2", "late", true)?;
        let late = SocketAddr::from((ground.address("late")?, FIRST_PORT));
        until(PATIENCE, || Ok(call(ground, late)?.map(drop)))?;
        until(PATIENCE, || {
            let page = ground.page("node-1", 15021, "/healthz/ready")?;
            Ok(if page == "ready\n" { Ok(()) } else { Err(page) })
        })
    })
}

pub(crate) fn without_a_log_everything_goes_on(world: &World) -> Outcome {
    with_logs(ground(world)?, |ground| {
        // A disk without room, nothing at all, and somebody who does not read.
        let unread = path(&world.scratch_dir().join("unread"));
        let stalled = format!("mkfifo {unread}; sleep 600 <{unread} & exec \"$0\" \"$@\" >{unread} 2>&1");
        for (line, calls) in [
            ("exec \"$0\" \"$@\" >/dev/full 2>/dev/full", 10),
            ("exec \"$0\" \"$@\" >&- 2>&-", 10),
            // More than a pipe holds.
            (&*stalled, 200),
        ] {
            ground.cluster.node("node-1")?.kill()?;
            ground.start_by("node-1", line)?;
            ground.ready("node-1")?;
            for _ in 0..calls {
                answers(ground)?;
            }
            tell(ground, "node-1", Signal::TERM)?;
            ends(ground, "node-1", PATIENCE)?;
        }
        ground.start("node-1")?;
        Ok(())
    })
}

pub(crate) fn with_few_descriptors_it_says_so_and_never_spins(world: &World) -> Outcome {
    with_logs(ground(world)?, |ground| {
        // With the fewest there is room for a pod, and for hardly more.
        [512, 128].into_iter().try_for_each(|descriptors| with_so_few(ground, descriptors))
    })
}

fn with_so_few(ground: &mut Ground, descriptors: usize) -> Outcome {
    ground.cluster.node("node-1")?.kill()?;
    ground.start_by("node-1", &format!("ulimit -n {descriptors}; exec \"$0\" \"$@\""))?;
    ground.ready("node-1")?;
    let said = format!("descriptors={descriptors}");
    until(PATIENCE, || {
        let log = fs::read_to_string(ground.cluster.node("node-1")?.log())?;
        let is_said = log.lines().any(|line| line.contains("LimitNOFILE") && line.contains(&said));
        Ok(if is_said { Ok(()) } else { Err(format!("it does not say {said}")) })
    })?;
    answers(ground)?;
    let listener = listening(ground)?;
    let mut first = pair(ground, &listener)?;
    let mut open = Vec::new();
    for _ in 0..100 {
        // Those over the bound are reset, or wait.
        open.extend(opened(ground, &listener).ok());
    }
    let before = on_cpu(ground.pid("node-1")?)?;
    thread::sleep(Duration::from_secs(2));
    let used = on_cpu(ground.pid("node-1")?)? - before;
    assert!(
        used < 100,
        "{used} hundredths of a second on a processor within two seconds of nothing, with {descriptors} descriptors"
    );
    converse(&mut first)?;
    // What nobody has accepted stands until whoever would have goes.
    drop((open, listener));
    answers(ground)
}

/// How long a process has been on a processor, in hundredths of a second.
fn on_cpu(pid: u32) -> Result<u64, Failure> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(") ").ok_or("no name")?.1.split(' ').collect();
    // proc_pid_stat(5): utime and stime are the fields 14 and 15, and the third is the first here.
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}
