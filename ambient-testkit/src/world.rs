//! A private world on one machine: mounts and networks that nobody outside sees, made without root.

mod etc;
mod refused;

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::Mode;

pub use self::refused::{Failed, NoWorld, Refused};
use crate::{namespace, process::Spawner, sys};

/// Enters a private world: fresh mount and network namespaces, and, without root, a user namespace around them in
/// which the caller is root.
///
/// To be called first thing in `main`: a user namespace can be made only by a single thread, and threads that were
/// there before would stay outside. Afterwards the process (and every thread and child of it) is inside for good.
///
/// What the process makes from then on its owner alone may write to, unless it says otherwise (`umask` 022).
///
/// Nothing outside is touched: no host mount, name in `/run/netns`, sysctl or rule. The world ends with its last
/// process.
///
/// # Errors
/// [`NoWorld::Refused`] says in one line why this machine does not allow it and what to do; [`NoWorld::Failed`] is everything
/// else, and a machine whose variable `AMBIENT_WORLDS` is `required` refuses nothing. The process may then stand half inside: it
/// should print the line and end.
pub fn enter() -> Result<World, NoWorld> {
    enter_if_allowed().map_err(|e| e.held_to(std::env::var_os(WORLDS).is_some_and(|worlds| worlds == REQUIRED)))
}

/// [Enters](enter) a world, or says in a line that begins with `SKIPPED:` that the machine refuses one.
///
/// # Errors
/// As [`enter`], where it is not the machine that refuses.
pub fn enter_or_skip(what: &str) -> Result<Option<World>, Failed> {
    match enter() {
        Ok(world) => Ok(Some(world)),
        Err(NoWorld::Refused(refused)) => {
            crate::skipped(format_args!("{what}: {refused}"));
            Ok(None)
        }
        Err(NoWorld::Failed(failed)) => Err(failed),
    }
}

fn enter_if_allowed() -> Result<World, NoWorld> {
    let threads = fs::read_dir("/proc/self/task").map_err(|e| NoWorld::at("counting threads in /proc", e))?;
    let threads = threads.count();
    if threads != 1 {
        let why = format!("there are {threads} already; a world is entered first thing in main");
        return Err(Failed::new("entering a world with one thread", io::Error::other(why)).into());
    }
    let outer_uid = rustix::process::geteuid().as_raw();
    let rootless = unshare()?;
    let home = settle(outer_uid).map_err(|(what, e)| NoWorld::at(what, e))?;
    // Whether the right was really given: AppArmor may grant namespaces and take it, and a container may hold `/proc/sys` read-only.
    let sysctl = fs::write("/proc/sys/net/ipv4/ip_forward", "1");
    sysctl.map_err(|e| NoWorld::at("writing a sysctl of a network namespace of its own", e))?;
    // These go through what is tested in worlds.
    namespace::loopback_up().map_err(|e| NoWorld::asking("bringing the loopback device up", e))?;
    namespace::prove_nftables().map_err(|e| NoWorld::asking("writing an nftables table", e))?;
    let spawner = Spawner::start().map_err(|e| Failed::new("starting the thread that starts programs", e))?;
    Ok(World {
        shared: Arc::new(Shared {
            home,
            rootless,
            outer_uid,
            spawner,
        }),
    })
}

/// The private world that [`enter`] made. Cheap to clone.
///
/// Programs started in it die when its last clone, and every [`crate::Namespace`] and [`crate::Process`] of it, is
/// gone, or when the process that entered dies, however it dies.
#[derive(Clone, Debug)]
pub struct World {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    /// A tmpfs of the world's own.
    pub(crate) home: PathBuf,
    rootless: bool,
    outer_uid: u32,
    pub(crate) spawner: Spawner,
}

impl Shared {
    pub(crate) fn netns_dir(&self) -> PathBuf {
        self.home.join("netns")
    }

    pub(crate) fn views_dir(&self) -> PathBuf {
        self.home.join("views")
    }
}

impl World {
    /// The directory of the world's named network namespaces: a bind mount for each. It exists only in the world's
    /// mount namespace and those of programs started from it.
    pub fn netns_dir(&self) -> PathBuf {
        self.shared.netns_dir()
    }

    /// A directory in memory (tmpfs) for files that are to end with the world, and that nobody outside can see.
    pub fn scratch_dir(&self) -> PathBuf {
        self.shared.home.join("scratch")
    }

    /// Whether a user namespace stands around the world, so that only one uid exists and cgroups cannot be written.
    pub fn is_rootless(&self) -> bool {
        self.shared.rootless
    }

    /// The effective uid of the caller before it entered.
    pub fn outer_uid(&self) -> u32 {
        self.shared.outer_uid
    }
}

/// Leaves the host's namespaces; says whether a user namespace was needed.
fn unshare() -> Result<bool, NoWorld> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    const PRIVATE: libc::c_int = libc::CLONE_NEWNS | libc::CLONE_NEWNET;
    // Asking is surer than reading capabilities: a container's root may have them, some, or none.
    match sys::unshare(PRIVATE) {
        Ok(()) => return Ok(false),
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => {}
        Err(e) => return Err(NoWorld::at("making a mount and a network namespace", e)),
    }
    sys::unshare(libc::CLONE_NEWUSER).map_err(|e| NoWorld::at("making a user namespace", e))?;
    let map = |what: &'static str, file: &str, line: String| fs::write(file, line).map_err(|e| NoWorld::at(what, e));
    // Without this the group map of an unprivileged process is refused (user_namespaces(7)).
    map("giving up setgroups", "/proc/self/setgroups", "deny".into())?;
    map("mapping the user", "/proc/self/uid_map", format!("0 {uid} 1")).map_err(|e| match e {
        NoWorld::Refused(_) if uid == 0 => Refused::powerless_root().into(),
        other => other,
    })?;
    map("mapping the group", "/proc/self/gid_map", format!("0 {gid} 1"))?;
    sys::unshare(PRIVATE).map_err(|e| NoWorld::at("making a mount and a network namespace inside the user namespace", e))?;
    Ok(true)
}

/// Makes the mounts private and lays out the world's own directory.
fn settle(outer_uid: u32) -> Result<PathBuf, (&'static str, io::Error)> {
    sys::enslave_mounts().map_err(|e| ("making the mounts private", e))?;
    // What others than its owner may write to is trusted by nobody; whoever enters may have any other mask.
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    let home = mount_point(outer_uid).map_err(|e| ("finding a directory to mount on", e))?;
    let target = sys::c_path(&home).map_err(|e| ("naming the world's directory", e))?;
    let tmpfs = |e| ("mounting a tmpfs", e);
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    sys::mount(Some(c"ambient"), &target, Some(c"tmpfs"), flags, Some(c"mode=0755,size=1g")).map_err(tmpfs)?;
    // Shared, so that names added and removed here are so in the mount namespaces of programs, which are its slaves.
    sys::mount(None, &target, None, libc::MS_SHARED, None).map_err(tmpfs)?;
    for dir in ["netns", "views", "scratch"] {
        fs::create_dir(home.join(dir)).map_err(tmpfs)?;
    }
    etc::complete(&home).map_err(|e| ("completing /etc", e))?;
    Ok(home)
}

/// A directory that nobody misses when it is covered: an empty one that every Linux has, so that nothing need be made
/// on the host; else a temporary one.
fn mount_point(outer_uid: u32) -> io::Result<PathBuf> {
    let empty = |dir: &&&str| fs::read_dir(Path::new(dir)).is_ok_and(|mut entries| entries.next().is_none());
    if let Some(dir) = MOUNT_POINTS.iter().find(empty) {
        // A symbolic link here would make paths under it differ from what the kernel lists.
        return fs::canonicalize(dir);
    }
    // One for each user, used again: an empty directory is all that a world that was killed leaves behind. Others are
    // tried for a world inside of a world, which sees the same names and is another user.
    let mut refused = io::Error::from(io::ErrorKind::PermissionDenied);
    for attempt in 0..16 {
        let dir = std::env::temp_dir().join(format!("ambient-world-{outer_uid}-{attempt}"));
        match fs::create_dir(&dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let found = fs::symlink_metadata(&dir)?;
        if found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() {
            return fs::canonicalize(dir);
        }
        refused = io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("{} belongs to somebody else", dir.display()),
        );
    }
    Err(refused)
}

/// Says whether a machine may refuse worlds, as one may where a person tests; whoever relies on what is tested in them says `required`.
const WORLDS: &str = "AMBIENT_WORLDS";
const REQUIRED: &str = "required";
const MOUNT_POINTS: &[&str] = &["/mnt", "/media", "/srv", "/opt", "/var/empty", "/var/opt", "/var/local"];
