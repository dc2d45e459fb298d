//! A network namespace, held open.

use std::{
    fmt, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{own::Own, stock::Stock};

/// A network namespace, held open: as long as the value lives its [`NetnsId`] belongs to no other.
///
/// The value also knows what this process has in the namespace by it: which sockets a proxy listens on, and which
/// connections are a proof's. A proxy in the same process therefore uses the very value that
/// [`Proxy::add`](crate::Proxy::add) gave it: by another its listeners are known by their mark alone.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    id: NetnsId,
    path: PathBuf,
    own: Arc<Own>,
    stock: Stock,
}

/// The identity of a network namespace: device and inode of its file. The kernel gives them again once the namespace is
/// gone, so that they mean something only while it is held open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsId {
    /// The device.
    pub dev: u64,
    /// The inode.
    pub ino: u64,
}

impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.ino)
    }
}

/// A path that is no network namespace, or one that cannot be entered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetnsError {
    /// It cannot be opened.
    #[error("the network namespace {path} cannot be opened: {source}")]
    Open {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("{path} is not a network namespace; a bind mount of /proc/PID/ns/net is needed")]
    NotOne {
        /// Its path.
        path: PathBuf,
    },
    /// It cannot be entered.
    #[error("the network namespace {path} cannot be entered: {source} (CAP_SYS_ADMIN is needed, here and in its owner)")]
    Enter {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No thread to enter it with.
    #[error("a thread cannot be made: {0}")]
    Thread(io::Error),
}

impl Netns {
    /// Opens the namespace that a path names: a bind mount of one, or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NetnsError> {
        let path = path.as_ref();
        let failed = |source| NetnsError::Open { path: path.into(), source };
        let file = std::fs::File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        // All namespaces are files of one device of the kernel's own; of what kind it is, only they are asked.
        let own = std::fs::metadata(CURRENT).map_err(failed)?;
        if metadata.dev() != own.dev() || !super::option::is_network_namespace(file.as_fd()) {
            return Err(NetnsError::NotOne { path: path.into() });
        }
        let id = NetnsId {
            dev: metadata.dev(),
            ino: metadata.ino(),
        };
        Ok(Self {
            fd: file.into(),
            id,
            path: path.into(),
            own: Arc::default(),
            stock: Stock::default(),
        })
    }

    /// A namespace that somebody has passed as a descriptor; its path is told as what the kernel calls it.
    ///
    /// # Errors
    /// [`NetnsError::NotOne`] for a descriptor of anything but a network namespace.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, NetnsError> {
        let file = std::fs::File::from(fd);
        let failed = |source| NetnsError::Open {
            path: "a descriptor".into(),
            source,
        };
        let metadata = file.metadata().map_err(failed)?;
        let id = NetnsId {
            dev: metadata.dev(),
            ino: metadata.ino(),
        };
        match super::option::is_network_namespace(file.as_fd()) {
            true => Ok(Self {
                fd: file.into(),
                id,
                path: id.to_string().into(),
                own: Arc::default(),
                stock: Stock::default(),
            }),
            false => Err(NetnsError::NotOne {
                path: "a descriptor".into(),
            }),
        }
    }

    /// The namespace that the calling thread is in.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(CURRENT)
    }

    /// Its identity.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs a function inside, on a thread of its own, and waits for it.
    ///
    /// # Errors
    /// When the namespace cannot be entered or a thread cannot be made.
    ///
    /// # Panics
    /// When the function does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        thread::scope(|scope| {
            let inside = || self.enter().map(|()| work());
            let thread = thread::Builder::new()
                .name("netns".into())
                .spawn_scoped(scope, inside)
                .map_err(NetnsError::Thread)?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A listener of a proxy in this process has ended unasked: whoever keeps the pod captured looks at once.
    pub fn listener_lost(&self) {
        self.own.lost.notify_one();
    }

    /// What this process has inside.
    pub(crate) fn own(&self) -> &Arc<Own> {
        &self.own
    }

    /// Sockets that were made there before they are asked for.
    pub(super) fn stock(&self) -> &Stock {
        &self.stock
    }

    /// Moves the calling thread inside, which must be one that does nothing else.
    pub(super) fn enter(&self) -> Result<(), NetnsError> {
        move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network)).map_err(|e| NetnsError::Enter {
            path: self.path.clone(),
            source: e.into(),
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<NetnsError> for io::Error {
    fn from(error: NetnsError) -> Self {
        let kind = match &error {
            NetnsError::Open { source, .. } | NetnsError::Enter { source, .. } | NetnsError::Thread(source) => source.kind(),
            NetnsError::NotOne { .. } => io::ErrorKind::InvalidInput,
        };
        Self::new(kind, error)
    }
}

/// The main thread's would be `/proc/self/ns/net`.
const CURRENT: &str = "/proc/thread-self/ns/net";
