//! Network namespaces of the world, and the wires between them.

mod delay;
mod wire;

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

pub(crate) use self::wire::{loopback_up, prove_nftables};
pub use self::{
    delay::{DelayedLink, link_delayed},
    wire::{End, link},
};
use crate::{World, sys, view::plain_name, world::Shared};

/// A network namespace of the world, with a name in its [`World::netns_dir`].
///
/// It lives on while anything holds it: this value, its name, a process, a socket. Dropping this value leaves the
/// name; [`Namespace::delete`] removes it.
#[derive(Debug)]
pub struct Namespace {
    shared: Arc<Shared>,
    name: String,
    path: PathBuf,
    file: fs::File,
    id: NamespaceId,
}

/// What identifies a namespace on this machine for as long as something holds it; afterwards the kernel may give the
/// number to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct NamespaceId {
    /// The device of the kernel's namespace file system.
    pub device: u64,
    /// The number in it, as `readlink /proc/PID/ns/net` shows it.
    pub inode: u64,
}

impl World {
    /// Makes a network namespace, its loopback device up, and gives it a name.
    ///
    /// # Errors
    /// When the name is taken or not a file name, or the kernel refuses.
    pub fn namespace(&self, name: &str) -> Result<Namespace, NamespaceError> {
        let wrap = |doing| {
            move |source| NamespaceError {
                namespace: name.into(),
                doing,
                source,
            }
        };
        let path = self.shared.netns_dir().join(plain_name(name).map_err(wrap("naming it"))?);
        fs::File::create_new(&path).map_err(wrap("naming it"))?;
        let made = apart(|| {
            sys::unshare(libc::CLONE_NEWNET)?;
            without_waiting()?;
            loopback_up()?;
            sys::bind(c"/proc/thread-self/ns/net", &sys::c_path(&path)?)
        });
        let opened = made.and_then(|()| Namespace::open(Arc::clone(&self.shared), name, path.clone()));
        opened.map_err(|e| {
            remove(&path).unwrap_or_else(|_| drop(fs::remove_file(&path)));
            wrap("making it")(e)
        })
    }
}

impl Namespace {
    fn open(shared: Arc<Shared>, name: &str, path: PathBuf) -> io::Result<Self> {
        let file = fs::File::open(&path)?;
        let id = NamespaceId::of(&file)?;
        Ok(Self {
            shared,
            name: name.into(),
            path,
            file,
            id,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its name is: valid in the world's mount namespace and in those of the world's programs.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What identifies it.
    pub fn id(&self) -> NamespaceId {
        self.id
    }

    /// Runs a closure on a thread of its own inside, and gives its result. Sockets made there stay there, whatever
    /// thread uses them later. Blocks the caller.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    ///
    /// # Panics
    /// With the panic of the closure.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        self.inside("entering it", || Ok(work()))
    }

    /// Writes a sysctl of this namespace, named by its path below `/proc/sys`: `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// When the name is not one of `net/…`, or the kernel refuses.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<(), NamespaceError> {
        self.inside("writing a sysctl", || {
            // Everything else under /proc/sys belongs to the whole machine.
            if !name.starts_with("net/") || name.split('/').any(|part| matches!(part, "" | "." | "..")) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("{name:?} is not a sysctl of a network namespace"),
                ));
            }
            fs::write(Path::new("/proc/sys").join(name), value).map_err(|e| io::Error::new(e.kind(), format!("{name} = {value}: {e}")))
        })
    }

    /// Lets it forward packets of both families between its interfaces, as a router does, asymmetric ways included.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forward(&self) -> Result<(), NamespaceError> {
        for (name, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ] {
            self.sysctl(name, value)?;
        }
        Ok(())
    }

    /// Takes its name away, everywhere. What runs in it goes on, and keeps it alive, until it ends.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete(self) -> Result<(), NamespaceError> {
        remove(&self.path).map_err(|source| NamespaceError {
            namespace: self.name.clone(),
            doing: "removing its name",
            source,
        })
    }

    /// A descriptor of it, to be joined by setns(2) or to be passed on.
    ///
    /// # Errors
    /// When the process has too many open files.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.file.try_clone().map(OwnedFd::from)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn inside<T: Send>(&self, doing: &'static str, work: impl FnOnce() -> io::Result<T> + Send) -> Result<T, NamespaceError> {
        apart(|| {
            sys::join(self.file.as_fd(), libc::CLONE_NEWNET)?;
            work()
        })
        .map_err(|source| NamespaceError {
            namespace: self.name.clone(),
            doing,
            source,
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl NamespaceId {
    fn of(file: &fs::File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self {
            device: found.dev(),
            inode: found.ino(),
        })
    }
}

/// Something that could not be done to a namespace.
#[derive(Debug, thiserror::Error)]
#[error("network namespace {namespace:?}: {doing} failed: {source}")]
pub struct NamespaceError {
    namespace: String,
    doing: &'static str,
    source: io::Error,
}

/// Runs on a thread that ends with it, so that no other work ever finds itself in another namespace.
fn apart<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("namespace".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Lets interfaces of the calling thread's namespace be used at once: nobody else can have their addresses, and there
/// is no router that announces itself.
fn without_waiting() -> io::Result<()> {
    for (name, value) in [
        ("all/accept_dad", "0"),
        ("default/accept_dad", "0"),
        ("default/router_solicitations", "0"),
    ] {
        match fs::write(Path::new("/proc/sys/net/ipv6/conf").join(name), value) {
            // A kernel without IPv6.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            written => written?,
        }
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    sys::detach(&sys::c_path(path)?)?;
    fs::remove_file(path)
}
