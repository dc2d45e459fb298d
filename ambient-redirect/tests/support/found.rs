//! Namespaces that have no name, and those that are said to be a pod's.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
};

use ambient_redirect::{
    Config, PodSpec,
    find::Place,
    linux::{FindError, Netns, Processes, namespace_of},
    pods::{Cause, PodState, State, Unpaired},
};
use ambient_testkit::{World, harness::Outcome};
use rustix::{
    io::Errno,
    mount::{MountFlags, UnmountFlags, mount, unmount},
    thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities},
};

use crate::{
    ask,
    mesh::{Log, Running, is_in, namespace_of as paired},
    node::{Node, spec},
};

const UID: &str = "2f4b1c3a-0d51-4a5e-9a2b-6a7c8d9e0f10";
const OTHER: &str = "11111111-2222-3333-4444-555555555555";

/// A process as `/proc` shows it.
fn process(proc: &Path, pid: u32, started: u64, namespace: &Arc<Netns>, cgroup: &str) {
    let dir = proc.join(pid.to_string());
    fs::create_dir_all(dir.join("ns")).unwrap();
    fs::write(
        dir.join("stat"),
        format!("{pid} (a (b) c) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {started} 0"),
    )
    .unwrap();
    fs::write(dir.join("cgroup"), cgroup).unwrap();
    symlink(namespace.path(), dir.join("ns/net")).unwrap();
}

fn of_pod(uid: &str) -> String {
    let slice = format!("kubepods-burstable-pod{}.slice", uid.replace('-', "_"));
    format!("0::/kubepods.slice/kubepods-burstable.slice/{slice}/cri-containerd-0af1.scope\n")
}

fn scratch(world: &World, name: &str) -> PathBuf {
    let dir = world.scratch_dir().join(name);
    fs::create_dir_all(&dir).unwrap();
    dir
}

pub(crate) fn namespaces_are_found_by_the_processes_in_them(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    // Another that has given itself the same address, and one of a node's own process with a pod's name.
    let thief = world.namespace("thief")?;
    thief.add_address("lo", "10.0.0.2/32".parse::<ipnet::IpNet>()?)?;
    let thief = Arc::new(Netns::open(thief.path())?);
    let (proc, empty) = (scratch(world, "proc"), scratch(world, "no-names"));
    process(&proc, 1, 1, &node.netns, "0::/init.scope\n");
    process(&proc, 50, 10, &thief, &of_pod(OTHER));
    process(&proc, 60, 11, &node.netns, &of_pod(UID));
    fs::create_dir(proc.join("sys"))?;
    fs::create_dir(proc.join("77"))?; // one that has ended while it was looked at
    node.run(async {
        let config = Config {
            netns_dir: empty.clone(),
            proc: Some(proc.clone()),
            ..node.config()
        };
        let mut running = Running::start(config, &Log::default());
        let stranger = spec(OTHER, &["10.0.0.9"]);
        running.want(&[spec(UID, &["10.0.0.2"]), stranger.clone()]);
        running
            .until("a reason", |states| {
                let why = |s: &State| {
                    matches!(
                        s,
                        State::Pairing {
                            why: Unpaired::Anothers { .. }
                        }
                    )
                };
                states.iter().any(|s| s.spec.uid.as_str() == UID && why(&s.state))
            })
            .await;
        process(&proc, 100, 20, &pod, &of_pod(UID));
        running.until_in(&[UID]).await;
        assert_eq!(paired(&running.states.borrow(), UID), Some(pod.id()));
        assert_eq!(ask(&pod, "198.51.100.7:80").await.unwrap(), "out 198.51.100.7:80 from 10.0.0.2");
        // From one container to the next no process need be there; when none is any more, the pod is gone.
        fs::remove_dir_all(proc.join("100")).unwrap();
        process(&proc, 101, 30, &pod, &of_pod(UID));
        tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
        assert!(is_in(&running.states.borrow(), UID));
        fs::remove_dir_all(proc.join("101")).unwrap();
        running.until("its end", |states| !is_in(states, UID)).await;
        running.stop().await;
    })
}

/// A process is read once, and may make itself another namespace after that; the number of the one that it has left is another's then.
pub(crate) fn a_process_that_has_left_its_namespace_does_not_stand_for_it(world: &World) -> Outcome {
    let namespace =
        |name: &str| -> Result<Arc<Netns>, Box<dyn std::error::Error>> { Ok(Arc::new(Netns::open(world.namespace(name)?.path())?)) };
    let (node, first, second) = (namespace("node")?, namespace("first")?, namespace("second")?);
    let proc = scratch(world, "moving");
    let moves = |pid: u32, to: &Netns| {
        let path = proc.join(format!("{pid}/ns/net"));
        fs::remove_file(&path).unwrap();
        symlink(to.path(), path).unwrap();
    };
    process(&proc, 1, 1, &node, "0::/init.scope\n");
    process(&proc, 100, 10, &first, &of_pod(OTHER));
    process(&proc, 101, 11, &first, &of_pod(OTHER));
    let mut processes = Processes::new(&proc);
    let mut whose = || {
        let found = processes.look().unwrap();
        found.into_iter().map(|(id, (whose, _))| (id, whose.pid)).collect::<Vec<_>>()
    };
    assert_eq!(whose(), [(first.id(), 100)]);
    moves(100, &second);
    let mut both = vec![(first.id(), 101), (second.id(), 100)];
    both.sort_unstable();
    assert_eq!(whose(), both);
    // Both have left it, and it may be anybody's.
    moves(101, &second);
    assert_eq!(whose(), [(second.id(), 100)]);
    process(&proc, 200, 30, &first, &of_pod(UID));
    let mut both = vec![(first.id(), 200), (second.id(), 100)];
    both.sort_unstable();
    assert_eq!(whose(), both);
    Ok(())
}

/// What a look without any capability says to be hidden.
fn hidden_from_few(proc: &Path) -> Option<String> {
    let look = || {
        let now = capabilities(None).unwrap();
        let effective = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective, ..now }).unwrap();
        let mut processes = Processes::new(proc);
        processes.look().unwrap();
        processes.hidden().map(ToString::to_string)
    };
    std::thread::scope(|scope| scope.spawn(look).join().unwrap())
}

/// A listing that lacks processes is not taken for one of all there are: what it shows is found, and of what it does not show it is
/// said what keeps it from being seen.
pub(crate) fn processes_that_are_hidden_are_told_of(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let [proc, empty, hiding] = ["hidden", "hidden-names", "hiding"].map(|name| scratch(world, name));
    let names = |told: &str, what: &Path| told.contains(&*what.to_string_lossy()) && told.contains("CAP_SYS_PTRACE");

    // As the kernel hides them.
    let told = hidden_from_few(Path::new("/proc")).unwrap_or_default();
    assert!(names(&told, Path::new("/proc/1/ns/net")), "{told}");
    match mount("proc", &hiding, "proc", MountFlags::empty(), Some(c"hidepid=4")) {
        Ok(()) => {
            let told = hidden_from_few(&hiding);
            unmount(&hiding, UnmountFlags::DETACH)?;
            let told = told.unwrap_or_default();
            assert!(names(&told, &hiding.join("1/ns/net")) && told.contains("No such file"), "{told}");
        }
        Err(Errno::PERM) => ambient_testkit::skipped("a proc of one's own, which this user may not mount"),
        Err(e) => return Err(e.into()),
    }
    // Of one alone, which is a pod's; another's is nobody's business.
    process(&proc, 1, 1, &node.netns, "0::/init.scope\n");
    for (pid, cgroup) in [(60, "0::/system.slice\n".to_owned()), (70, of_pod(OTHER))] {
        assert_eq!(hidden_from_few(&proc), None);
        process(&proc, pid, 10, &node.netns, &cgroup);
        fs::remove_file(proc.join(format!("{pid}/ns/net")))?;
        symlink("/proc/1/ns/net", proc.join(format!("{pid}/ns/net")))?;
    }
    let told = hidden_from_few(&proc).unwrap_or_default();
    assert!(names(&told, &proc.join("70/ns/net")), "{told}");
    fs::remove_dir_all(proc.join("70"))?;

    fs::remove_dir_all(proc.join("1"))?;
    process(&proc, 100, 20, &pod, &of_pod(UID));
    node.run(async {
        let config = Config {
            netns_dir: empty.clone(),
            proc: Some(proc.clone()),
            ..node.config()
        };
        let mut running = Running::start(config, &Log::default());
        running.want(&[spec(UID, &["10.0.0.2"]), spec(OTHER, &["10.0.0.9"])]);
        running.until_in(&[UID]).await;
        let why = |states: &[PodState]| {
            let other = states.iter().find(|s| s.spec.uid.as_str() == OTHER);
            other.and_then(|s| match &s.state {
                State::Pairing { why } => Some(why.clone()),
                _ => None,
            })
        };
        let is_told = |states: &[PodState]| matches!(why(states), Some(Unpaired::Unseen(Cause::Hidden(told))) if names(&told, &proc.join("1/ns/net")));
        running.until("what is hidden", is_told).await;
        process(&proc, 1, 1, &node.netns, "0::/init.scope\n");
        running
            .until("that nothing is", |states| why(states) == Some(Unpaired::Nowhere))
            .await;
        assert!(is_in(&running.states.borrow(), UID));
        running.stop().await;
    })
}

pub(crate) fn what_is_said_to_be_a_pods_is_made_sure_of(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let dir = scratch(world, "said");
    process(&dir, 100, 20, &pod, "");
    process(&dir, 1, 1, &node.netns, "0::/init.scope\n");
    let file = dir.join("file");
    fs::write(&file, "no namespace")?;
    let a = spec("a", &["10.0.0.2", "fd00::2"]);
    let at = |path: &Path| Place::Path(path.to_owned());
    let by = |pid| Place::Process { proc: dir.clone(), pid };
    node.run(async {
        for place in [at(pod.path()), by(100)] {
            assert_eq!(namespace_of(&a, &place).unwrap().id(), pod.id(), "{place:?}");
        }
        let refused = |spec: &PodSpec, place: &Place| {
            let error: FindError = namespace_of(spec, place).unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with("shop/pod-of-a (a)"), "it names the pod: {text}");
            text
        };
        let (socket, fifo) = (dir.join("socket"), dir.join("fifo"));
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        for other in [&*file, Path::new("/proc/self/ns/mnt"), &socket, &fifo, Path::new("/dev/null")] {
            assert!(refused(&a, &at(other)).contains("is not a network namespace; a bind mount"));
        }
        assert!(refused(&a, &at(&dir.join("none"))).contains("cannot be opened"));
        assert!(refused(&a, &by(7)).contains("process 7") && refused(&a, &by(7)).contains("has ended"));
        fs::remove_dir_all(dir.join("1")).unwrap();
        assert!(!refused(&a, &by(7)).contains("has ended") && refused(&a, &by(7)).contains("CAP_SYS_PTRACE"));
        assert!(refused(&a, &at(node.netns.path())).contains("the node's own"));
        assert!(refused(&spec("a", &[]), &at(pod.path())).contains("no address yet"));
        let text = refused(&spec("a", &["10.0.0.2", "10.0.0.3"]), &at(pod.path()));
        assert!(text.contains("does not have its address 10.0.0.3"), "{text}");
    })
}
