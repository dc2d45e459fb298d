//! Names of namespaces come and go, and are somebody's else at once; a namespace is what it is.

use std::{os::unix::fs::symlink, path::Path};

use ambient_redirect::{
    Config,
    linux::Netns,
    netlink::{Batch, Family, Nftables},
    pods::{PodState, State, Unpaired},
};
use ambient_testkit::{World, harness::Outcome};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::{
    ask,
    mesh::{Log, Running, is_in, namespace_of},
    node::{Node, spec},
};

fn named(namespace: &Netns, at: &Path) {
    use std::os::fd::AsRawFd;
    std::fs::File::create_new(at).unwrap();
    let descriptor = std::os::fd::AsFd::as_fd(namespace).as_raw_fd();
    mount_bind(format!("/proc/self/fd/{descriptor}"), at).unwrap();
}

fn unnamed(at: &Path) {
    unmount(at, UnmountFlags::DETACH).unwrap();
    std::fs::remove_file(at).unwrap();
}

async fn told(log: &Log, line: &str) {
    for _ in 0..3000 {
        if log.count(line) > 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{line}: {:#?}", log.lines());
}

/// Captured as it was: nothing was told of, and what is damaged is put back.
async fn goes_on(running: &Running, pods: &[(&str, &Netns)], repairs: usize) {
    for _ in 0..50 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        for (uid, pod) in pods {
            let states = running.states.borrow();
            assert!(
                is_in(&states, uid) && namespace_of(&states, uid) == Some(pod.id()),
                "{uid} is elsewhere: {states:#?}"
            );
        }
    }
    for (uid, pod) in pods {
        pod.run(|| {
            let mut batch = Batch::default();
            batch.flush_table(Family::Inet, "ambient-nat");
            Nftables::open().unwrap().commit(batch, None).unwrap();
        })
        .unwrap();
        for _ in 0..500 {
            if running.log.count(&format!("repaired {uid}")) == repairs {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
    let log = &running.log;
    let told = ["withdrawn", "refused", "released", "remove"].map(|line| log.count(line));
    let repaired = log.count("repaired");
    assert_eq!((told, repaired), ([0; 4], repairs * pods.len()), "{:#?}", log.lines());
}

/// Renamed, and then exchanged with another pod's: whose a namespace is does not hang on its name.
pub(crate) fn a_name_is_not_the_namespace(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let (a, b) = (node.pod("a", "10.0.0.2", "fd00::2")?, node.pod("b", "10.0.0.3", "fd00::3")?);
    let at = |name: &str| world.netns_dir().join(name);
    node.run(async {
        let mut running = Running::start(node.config(), &Log::default());
        running.want(&[spec("a", &["10.0.0.2", "fd00::2"]), spec("b", &["10.0.0.3", "fd00::3"])]);
        running.until_in(&["a", "b"]).await;
        let pods = [("a", &*a), ("b", &*b)];
        // It has another name for a moment, and then that alone.
        named(&a, &at("renamed"));
        unnamed(&at("a"));
        goes_on(&running, &pods, 1).await;
        assert_eq!(ask(&a, "198.51.100.7:80").await.unwrap(), "out 198.51.100.7:80 from 10.0.0.2");
        // What was one's name is the other's.
        named(&b, &at("meanwhile"));
        unnamed(&at("b"));
        named(&a, &at("b"));
        named(&b, &at("a"));
        unnamed(&at("renamed"));
        unnamed(&at("meanwhile"));
        goes_on(&running, &pods, 2).await;
        for (pod, ip) in [(&a, "10.0.0.2"), (&b, "10.0.0.3")] {
            assert_eq!(ask(pod, "198.51.100.7:80").await.unwrap(), format!("out 198.51.100.7:80 from {ip}"));
        }
        running.stop().await;
    })
}

/// Among names that lead nowhere, or to what is no namespace, pods are found as ever, and none is lost.
pub(crate) fn a_name_that_leads_nowhere_hides_no_other(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let first = node.pod("first", "10.0.0.2", "fd00::2")?;
    let at = |name: &str| world.netns_dir().join(name);
    node.run(async {
        let mut running = Running::capturing(node.config(), &Log::default(), &[spec("first", &["10.0.0.2", "fd00::2"])]).await;
        symlink("loop", at("loop")).unwrap();
        symlink("gone", at("dangling")).unwrap();
        symlink("/dev/null/none", at("under")).unwrap();
        symlink("x".repeat(300), at("long")).unwrap();
        symlink("/proc/self/ns/mnt", at("mounts")).unwrap();
        std::fs::create_dir(at("directory")).unwrap();
        std::fs::write(at("file"), "no namespace").unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        let second = node.pod("second", "10.0.0.3", "fd00::3").unwrap();
        running.want(&[spec("first", &["10.0.0.2", "fd00::2"]), spec("second", &["10.0.0.3", "fd00::3"])]);
        running.until_in(&["second"]).await;
        goes_on(&running, &[("first", &first), ("second", &second)], 1).await;
        running.stop().await;
    })
}

/// Where the directory is empty at once, its mount has gone and not each pod: all stay as they are. One that is lost by itself is told
/// of, as its TCP is refused.
pub(crate) fn names_that_are_all_gone_at_once_are_not_believed(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let (a, b) = (node.pod("a", "10.0.0.2", "fd00::2")?, node.pod("b", "10.0.0.3", "fd00::3")?);
    let [names, empty] = ["names", "empty"].map(|name| world.scratch_dir().join(name));
    std::fs::create_dir(&empty)?;
    let lead_to = |where_to: &Path| {
        let fresh = names.with_extension("new");
        symlink(where_to, &fresh).unwrap();
        std::fs::rename(fresh, &names).unwrap();
    };
    lead_to(&world.netns_dir());
    node.run(async {
        let config = Config {
            netns_dir: names.clone(),
            ..node.config()
        };
        let mut running = Running::start(config, &Log::default());
        running.want(&[spec("a", &["10.0.0.2", "fd00::2"]), spec("b", &["10.0.0.3", "fd00::3"])]);
        running.until_in(&["a", "b"]).await;
        lead_to(&empty);
        let unseen = format!(
            "unseen: {}: no network namespace has a name there any more, where pods had theirs",
            names.display()
        );
        told(&running.log, &unseen).await;
        goes_on(&running, &[("a", &*a), ("b", &*b)], 1).await;
        // Who is not meant any more is let go all the same.
        running.want(&[spec("a", &["10.0.0.2", "fd00::2"])]);
        told(&running.log, "released b").await;
        lead_to(&world.netns_dir());
        told(&running.log, "seen").await;
        assert_eq!(ask(&a, "198.51.100.7:80").await.unwrap(), "out 198.51.100.7:80 from 10.0.0.2");
        lead_to(&empty);
        told(&running.log, "released a: lost").await;
        assert_eq!(running.log.count("unseen"), 1, "{:#?}", running.log.lines());
        lead_to(&world.netns_dir());
        running.until_in(&["a"]).await;
        running.stop().await;
    })
}

/// What shows namespaces cannot be read for a while: pods that are captured stay so, of others it is said why none is found, and what
/// shows some is believed although another does not.
pub(crate) fn what_cannot_be_read_is_told_and_hides_no_other(world: &World) -> Outcome {
    let node = Node::new(world)?;
    node.pod("first", "10.0.0.2", "fd00::2")?;
    let [names, processes] = ["names", "processes"].map(|name| world.scratch_dir().join(name));
    symlink(world.netns_dir(), &names)?;
    symlink("/proc", &processes)?;
    let tells = |states: &[PodState], uid: &str, place: &Path| {
        let why = states.iter().find(|s| s.spec.uid.as_str() == uid).map(|s| &s.state);
        matches!(why, Some(State::Pairing { why: Unpaired::Unseen(why) }) if why.to_string().contains(&*place.to_string_lossy()))
    };
    node.run(async {
        let config = Config {
            netns_dir: names.clone(),
            proc: Some(processes.clone()),
            ..node.config()
        };
        let [first, second, third] =
            [("first", "10.0.0.2"), ("second", "10.0.0.3"), ("third", "10.0.0.4")].map(|(uid, ip)| spec(uid, &[ip]));
        let mut running = Running::start(config, &Log::default());
        running.want(std::slice::from_ref(&first));
        running.until_in(&["first"]).await;

        std::fs::remove_file(&processes).unwrap();
        node.pod("second", "10.0.0.3", "fd00::3").unwrap();
        running.want(&[first.clone(), second.clone(), third.clone()]);
        running.until_in(&["second"]).await;
        running.until("the reason", |states| tells(states, "third", &processes)).await;

        symlink("/proc", &processes).unwrap();
        std::fs::remove_file(&names).unwrap();
        running.until("the other reason", |states| tells(states, "third", &names)).await;
        assert!(["first", "second"].iter().all(|uid| is_in(&running.states.borrow(), uid)));
        running.kill().await;

        // Nothing could be looked at from the start.
        let config = Config {
            netns_dir: names.clone(),
            ..node.config()
        };
        let mut running = Running::start(config, &Log::default());
        running.want(&[first, second, third]);
        running
            .until("the reason at the start", |states| tells(states, "first", &names))
            .await;
        symlink(world.netns_dir(), &names).unwrap();
        node.pod("third", "10.0.0.4", "fd00::4").unwrap();
        running.until_in(&["first", "second", "third"]).await;
        let log = running.stop().await;
        assert_eq!(log.count("withdrawn"), 0, "{:#?}", log.lines());
    })
}
