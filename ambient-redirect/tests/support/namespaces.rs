//! A world of namespaces for tests: the process leaves the machine's network before it has a second thread.

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    thread,
    time::Duration,
};

use ambient_core::PodUid;
use ambient_redirect::{
    PodSpec,
    linux::Netns,
    netlink::{Route, Routing},
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// A test of a name.
pub(crate) type Test = (&'static str, fn());

/// Runs the tests that the command line names, as libtest would, each in a network namespace of its own.
pub(crate) fn main(tests: &[Test]) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let exact = arguments.iter().any(|a| a == "--exact");
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let wanted = |name: &str| {
        filters.is_empty()
            || filters
                .iter()
                .any(|f| if exact { name == f.as_str() } else { name.contains(f.as_str()) })
    };
    let tests: Vec<Test> = tests.iter().copied().filter(|(name, _)| wanted(name)).collect();
    if arguments.iter().any(|a| a == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let entered = enter();
    let mut failed = 0;
    for (name, test) in &tests {
        if let Err(why) = &entered {
            println!("test {name} ... skipped: {why}");
            continue;
        }
        let passed = thread::scope(|scope| scope.spawn(|| isolated(*test)).join().unwrap_or(false));
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    println!(
        "\ntest result: {}. {} run; {failed} failed",
        if failed == 0 { "ok" } else { "FAILED" },
        tests.len()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn isolated(test: fn()) -> bool {
    if let Err(e) = unshare(UnshareFlags::NEWNET) {
        println!("no network namespace: {e}");
        return false;
    }
    catch_unwind(AssertUnwindSafe(test)).is_ok()
}

fn enter() -> io::Result<()> {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    match unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET) {
        Ok(()) => {
            fs::write("/proc/self/setgroups", "deny")?;
            fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
            fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
        }
        Err(_) if uid == 0 => unshare(UnshareFlags::NEWNET)?,
        Err(e) => return Err(e),
    }
    // Some kernels grant the namespace and take its rights.
    Routing::open()?.set_loopback_up()?;
    Ok(())
}

#[allow(
    unsafe_code,
    reason = "rustix calls unshare unsafe for the sake of CLONE_FILES, which is not asked for"
)]
fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: descriptors stay shared, as CLONE_FILES is not among the flags of any caller.
    unsafe { unshare_unsafe(flags) }.map_err(Into::into)
}

/// A node's namespace, in which the calling thread is, with pods that hang on it by veths.
pub(crate) struct World {
    pub(crate) names: tempfile::TempDir,
    pub(crate) node: Arc<Netns>,
    pods: BTreeMap<String, Arc<Netns>>,
    links: u32,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut routing = Routing::open().unwrap();
        routing.set_loopback_up().unwrap();
        let _ = fs::write("/proc/sys/net/ipv4/ip_forward", "1");
        Self {
            names: tempfile::tempdir().unwrap(),
            node: Arc::new(Netns::current().unwrap()),
            pods: BTreeMap::new(),
            links: 0,
        }
    }

    /// A pod's namespace with a name, an IPv4 and an IPv6 address, and default routes to the node.
    pub(crate) fn pod(&mut self, name: &str, v4: &str, v6: &str) -> Arc<Netns> {
        let pod = self.namespace();
        self.links += 1;
        let link = format!("pod{}", self.links);
        let mut routing = self.node.run(Routing::open).unwrap().unwrap();
        routing.add_veth(&link, "eth0", Some(pod.as_fd())).unwrap();
        let index = routing.link(&link).unwrap().index;
        for (ip, prefix) in [("10.0.0.1", 32), ("fd00::1", 128)] {
            routing.add_address(index, ip.parse().unwrap(), prefix).unwrap();
        }
        routing.set_up(index).unwrap();
        for net in [format!("{v4}/32"), format!("{v6}/128")] {
            routing.add_route(&Route::to(net.parse().unwrap()).dev(index)).unwrap();
        }
        pod.run(|| {
            let mut routing = Routing::open().unwrap();
            routing.set_loopback_up().unwrap();
            let eth0 = routing.link("eth0").unwrap().index;
            for (ip, prefix) in [(v4, 32), (v6, 128)] {
                routing.add_address(eth0, ip.parse().unwrap(), prefix).unwrap();
            }
            routing.set_up(eth0).unwrap();
            while !routing.link("eth0").unwrap().running {
                thread::sleep(Duration::from_millis(1));
            }
            for (net, via) in [("0.0.0.0/0", "10.0.0.1"), ("::/0", "fd00::1")] {
                routing
                    .add_route(&Route::to(net.parse().unwrap()).via(via.parse().unwrap()).dev(eth0).onlink())
                    .unwrap();
            }
        })
        .unwrap();
        while !routing.link(&link).unwrap().running {
            thread::sleep(Duration::from_millis(1));
        }
        self.name(name, pod.clone());
        pod
    }

    /// An empty namespace without a name.
    pub(crate) fn namespace(&self) -> Arc<Netns> {
        thread::spawn(|| {
            unshare(UnshareFlags::NEWNET).unwrap();
            Arc::new(Netns::current().unwrap())
        })
        .join()
        .unwrap()
    }

    pub(crate) fn name(&mut self, name: &str, pod: Arc<Netns>) {
        let target = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), pod.as_fd().as_raw_fd()));
        std::os::unix::fs::symlink(target, self.names.path().join(name)).unwrap();
        self.pods.insert(name.into(), pod);
    }

    pub(crate) fn unname(&mut self, name: &str) {
        fs::remove_file(self.names.path().join(name)).unwrap();
        self.pods.remove(name);
    }
}

pub(crate) fn spec(uid: &str, addresses: &[&str]) -> PodSpec {
    PodSpec {
        uid: PodUid::from(uid),
        namespace: "shop".into(),
        name: format!("pod-of-{uid}").into(),
        service_account: "default".into(),
        addresses: addresses.iter().map(|a| a.parse::<IpAddr>().unwrap()).collect(),
    }
}
