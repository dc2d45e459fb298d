//! What runs out, and what stalls, must harm nobody for longer than it lasts.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use ambient_testkit::{World, harness::Outcome};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

use crate::mesh::{Family, Mesh, Way, until};

/// Lines that may wait for a slow reader, and some more.
const LINES: usize = 12_000;

pub(crate) fn a_log_that_nobody_reads_stalls_nobody(world: &World) -> Outcome {
    // Before anything is logged: a pipe of which nobody reads, in the place of standard output.
    let (unread, full) = rustix::pipe::pipe()?;
    let own: OwnedFd = rustix::io::dup(rustix::stdio::stdout())?;
    rustix::stdio::dup2_stdout(&full)?;
    let restore = Restore(own);
    let mesh = Mesh::start(world)?;
    for n in 0..LINES {
        tracing::info!(n, "nobody reads this");
    }
    let lost = || mesh.metric("ambient_log_lines_lost_total", &[]);
    assert!(lost() > 0, "lines are lost once too many wait");
    for family in [Family::V4, Family::V6] {
        for way in Way::ALL {
            let before = lost();
            let mut pair = mesh.open(way, family);
            pair.converse()?;
            drop(pair);
            until("its lines to be lost", || (lost() > before).then_some(()));
        }
    }
    // Whoever reads again hears of what comes.
    let reading = thread::spawn(move || {
        let (mut pipe, mut all) = (fs::File::from(unread), Vec::new());
        let mut some = vec![0; 1 << 16];
        while !String::from_utf8_lossy(&all).contains("read again") {
            let n = pipe.read(&mut some).unwrap();
            all.extend_from_slice(&some[..n]);
            let from = all.len().saturating_sub(1 << 17);
            all.drain(..from);
        }
    });
    until("a line to be read", || {
        tracing::info!("read again");
        reading.is_finished().then_some(())
    });
    drop(restore);
    Ok(())
}

/// Standard output, as it was.
struct Restore(OwnedFd);

impl Drop for Restore {
    fn drop(&mut self) {
        let _ = rustix::stdio::dup2_stdout(&self.0);
    }
}

/// What the node writes lies on a disk on which there is no room: its reports of captures, and its log.
pub(crate) fn a_full_disk_stops_no_traffic(world: &World) -> Outcome {
    let disk = world.scratch_dir();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(&disk)
        .status()?;
    assert!(mounted.success(), "{mounted}");
    let mesh = Mesh::start(world)?;
    let mut open = mesh.open(Way::Tunnel, Family::V4);
    open.converse()?;
    let report = || fs::read_to_string(mesh.manifests.join("status/node-1.json")).unwrap_or_default();
    until("both captures to be reported", || {
        (report().contains("uid-of-a") && report().contains("uid-of-b")).then_some(())
    });
    // The log goes there too.
    let before = rustix::io::dup(rustix::stdio::stdout())?;
    let log = fs::File::create(disk.join("log"))?;
    rustix::stdio::dup2_stdout(&log)?;
    let restore = Restore(before);
    let ballast = disk.join("ballast");
    let full = fs::File::create(&ballast)?;
    while (&full).write(&[0; 4096]).is_ok() {}
    assert!(fs::write(disk.join("more"), [1; 8192]).is_err(), "the disk is full");

    let lost = mesh.metric("ambient_log_lines_lost_total", &[]);
    for way in Way::ALL {
        mesh.open(way, Family::V4).converse()?;
    }
    open.converse()?;
    until("lines to be missed", || {
        // What somebody else gave back of the disk since may hold a few.
        mesh.open(Way::Tunnel, Family::V4).converse().ok()?;
        (mesh.metric("ambient_log_lines_lost_total", &[]) > lost).then_some(())
    });
    // A pod that leaves cannot be said to: it stays captured, and reached by tunnel, until there is room for that.
    mesh.delete("pod-a");
    thread::sleep(Duration::from_secs(1));
    assert!(
        report().contains("uid-of-a"),
        "nobody was told, and no report was torn: {}",
        report()
    );
    open.converse()?;
    drop(full);
    fs::remove_file(ballast)?;
    until("it to be said", || {
        (!report().contains("\"uid-of-a\": {") && report().contains("uid-of-b")).then_some(())
    });
    mesh.apply("pod-a", &crate::mesh::pod("a", &mesh.a));
    until("the pod to be reported again", || {
        report().contains("\"uid-of-a\": {").then_some(())
    });
    mesh.open(Way::Tunnel, Family::V4).converse()?;
    drop(restore);
    Ok(())
}

/// Lets in all that is asked of it.
const NOBODYS_POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: late, namespace: shop}
spec: {rules: [{}]}
";

pub(crate) fn without_descriptors_it_waits_and_goes_on(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    let mut open = mesh.open(Way::Outbound, Family::V4);
    open.converse()?;
    let outside = mesh.c.listen(Family::V4);
    let failures = || mesh.metric("ambient_accept_failures_total", &[]);
    assert_eq!(failures(), 0);
    // Their descriptors are there already; what accepts them will find none.
    let clients = (0..3).map(|_| mesh.a.namespace.run(|| Socket::new(Domain::IPV4, Type::STREAM, None)));
    let clients: Vec<Socket> = clients.collect::<Result<Result<_, _>, _>>()??;
    let fill = fs::File::open("/dev/null")?;
    let late = mesh.manifests.join("late");
    fs::write(&late, NOBODYS_POLICY)?;
    let limit = getrlimit(Resource::Nofile);
    let used = fs::read_dir("/proc/self/fd")?.filter_map(Result::ok);
    let most = used
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok())
        .max()
        .unwrap_or(0);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(most + 1),
            ..limit
        },
    )?;
    // Holes below the highest are filled, and whatever is closed meanwhile too, so that not one is left.
    let over = Arc::new(AtomicBool::new(false));
    let filling = {
        let (fill, over) = (fill, over.clone());
        thread::spawn(move || {
            let mut filled = Vec::new();
            while !over.load(Ordering::Relaxed) {
                while let Ok(more) = fill.try_clone() {
                    filled.push(more);
                }
                thread::sleep(Duration::from_millis(1));
            }
        })
    };
    thread::sleep(Duration::from_millis(50));
    for client in &clients {
        client.connect_timeout(&outside.address().into(), crate::mesh::PATIENCE)?;
    }
    // A manifest that cannot be read for want of a descriptor is not there yet.
    fs::rename(&late, mesh.manifests.join("late.yaml"))?;
    // What is open goes on meanwhile.
    for _ in 0..10 {
        open.converse()?;
        thread::sleep(Duration::from_millis(50));
    }
    over.store(true, Ordering::Relaxed);
    filling.join().unwrap();
    setrlimit(Resource::Nofile, limit)?;
    // Those that waited are taken, or were refused because nothing was left to go on with; whoever comes now is served.
    let mut later = mesh.open(Way::Tunnel, Family::V4);
    later.converse()?;
    let counted = failures();
    // Half a second and what the machine makes of it: a listener that does not wait counts hundreds of thousands.
    assert!(counted > 0 && counted < 2_000, "{counted} attempts");
    open.converse()?;
    Ok(())
}
