use std::os::unix::fs::symlink;

use super::*;

/// A directory of its own, which goes with the value.
struct Root(std::path::PathBuf);

impl Root {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ambient-own-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("etc")).unwrap();
        Self(path)
    }

    fn read(&self) -> io::Result<String> {
        read(self.0.to_str().unwrap())
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_pods_file_is_read_as_the_pod_reads_it() {
    let root = Root::new("plain");
    let text = "search shop.svc.cluster.local Corp.Example.\nnameserver 10.96.0.10\nnameserver fd00::10\n";
    fs::create_dir_all(root.0.join("run")).unwrap();
    fs::write(root.0.join("run/real"), text).unwrap();
    // An absolute link means the pod's root, not ours.
    symlink("/run/real", root.0.join("etc/resolv.conf")).unwrap();
    assert_eq!(root.read().unwrap(), text);
    let known = known(text);
    assert_eq!(
        *known.nameservers,
        ["10.96.0.10:53".parse().unwrap(), "[fd00::10]:53".parse().unwrap()]
    );
    assert_eq!(*known.search, ["shop.svc.cluster.local", "corp.example"]);
}

#[test]
fn what_a_pod_puts_in_its_place_is_no_way_out() {
    let outside = Root::new("outside");
    fs::write(outside.0.join("secret"), "nameserver 192.0.2.1").unwrap();
    let secret = outside.0.join("secret");
    let root = Root::new("hostile");
    let file = root.0.join("etc/resolv.conf");
    let up = format!("../../../../../../../../{}", secret.display());
    for target in [
        secret.to_str().unwrap(),
        up.as_str(),
        "/proc/self/cwd/Cargo.toml",
        "resolv.conf",
        "/etc",
    ] {
        symlink(target, &file).unwrap();
        assert!(root.read().is_err(), "{target}");
        fs::remove_file(&file).unwrap();
    }
    rustix::fs::mknodat(rustix::fs::CWD, &file, FileType::Fifo, Mode::RUSR, 0).unwrap();
    assert!(root.read().is_err(), "a pipe that nobody writes to is not waited for");
    fs::remove_file(&file).unwrap();
    // However long it is, and whatever is in it.
    let mut long = b"nameserver 10.96.0.10\n\xff\xfe\n".to_vec();
    long.resize(1_000_000, b'#');
    fs::write(&file, long).unwrap();
    let text = root.read().unwrap();
    assert!(text.len() < 20_000, "{}", text.len());
    assert_eq!(known(&text).nameservers.len(), 1);
}

#[test]
fn a_process_of_ones_own_mount_namespace_is_not_the_pods() {
    let own = fs::metadata("/proc/self/ns/net").unwrap();
    let here = NetnsId {
        dev: own.dev(),
        ino: own.ino(),
    };
    let ours = fs::metadata("/proc/self/ns/mnt").unwrap().ino();
    // This test's processes share the namespace with it: none of them is looked into, as their file is the node's.
    let others = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        let of = |name: &str| fs::metadata(path.join("ns").join(name)).ok();
        Some((of("net")?.ino() == own.ino()) && of("mnt")?.ino() != ours)
    });
    if others.filter(|other| *other).count() == 0 {
        assert_eq!(find(here), None);
    }
    assert_eq!(find(NetnsId { dev: 0, ino: 1 }), None);
}

#[tokio::test]
async fn it_is_not_looked_for_all_the_time() {
    let own = Own::new(NetnsId { dev: 0, ino: 1 });
    assert_eq!(own.fresh().await, Known::default());
    assert!(own.look().is_none());
    assert_eq!(own.present(), Known::default());
}

/// Where reading never ends, as a file system that the pod itself answers for may have it.
#[tokio::test(start_paused = true)]
async fn files_that_are_never_read_leave_their_turns_to_others() {
    static TURNS: Semaphore = Semaphore::const_new(2);
    static STUCK: Semaphore = Semaphore::const_new(3);
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let held = Arc::new(Mutex::new(held));
    let mut hanging: Vec<_> = (0..5)
        .map(|_| {
            let held = held.clone();
            tokio::spawn(in_turn(&TURNS, &STUCK, move || {
                let _ = held.lock().unwrap().recv();
            }))
        })
        .collect();
    for hangs in &mut hanging[..3] {
        // By hand, as threads that do something hold the clock.
        while !hangs.is_finished() {
            time::advance(LONG).await;
            tokio::task::yield_now().await;
        }
        hangs.await.unwrap();
    }
    assert_eq!((STUCK.available_permits(), TURNS.available_permits()), (0, 0));
    drop(hold);
    for hangs in hanging.split_off(3) {
        hangs.await.unwrap();
    }
    in_turn(&TURNS, &STUCK, || ()).await;
    assert_eq!(TURNS.available_permits(), 2);
    while STUCK.available_permits() < 3 {
        tokio::task::yield_now().await;
    }
}
