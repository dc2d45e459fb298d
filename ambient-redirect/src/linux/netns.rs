//! A network namespace, held open.

use std::{
    fmt,
    fs::{File, Metadata},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use rustix::{
    fs::OFlags,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::{own::Own, source_ports::SourcePorts, stock::Stock};

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
    ports: SourcePorts,
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

impl NetnsError {
    /// Whether descriptors, memory or threads were short: another try may come through.
    pub(crate) fn is_shortage(&self) -> bool {
        match self {
            Self::Open { source, .. } | Self::Enter { source, .. } => is_shortage(source),
            Self::Thread(_) => true,
            Self::NotOne { .. } => false,
        }
    }
}

/// Whether an error says that descriptors or memory are short.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS)
    )
}

impl Netns {
    /// Opens the namespace that a path names: a bind mount of one, or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NetnsError> {
        let path = path.as_ref();
        let failed = |source| NetnsError::Open { path: path.into(), source };
        // What is none is not opened: a FIFO would wait for who writes into it, and a device may do something.
        if !is_namespace(&std::fs::metadata(path).map_err(failed)?).map_err(failed)? {
            return Err(NetnsError::NotOne { path: path.into() });
        }
        let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
        let file = File::options().read(true).custom_flags(nonblocking).open(path).map_err(failed)?;
        Self::from_file(file, path.into())
    }

    /// A namespace that somebody has passed as a descriptor; its path is told as what the kernel calls it.
    ///
    /// # Errors
    /// [`NetnsError::NotOne`] for a descriptor of anything but a network namespace.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, NetnsError> {
        // Of a namespace that is its kind and inode; of anything else it says what was passed.
        let link = std::fs::read_link(format!("/proc/thread-self/fd/{}", fd.as_raw_fd()));
        Self::from_file(fd.into(), link.unwrap_or_else(|_| "a descriptor".into()))
    }

    fn from_file(file: File, path: PathBuf) -> Result<Self, NetnsError> {
        let failed = |source| NetnsError::Open {
            path: path.clone(),
            source,
        };
        let metadata = file.metadata().map_err(failed)?;
        // Of what kind it is, only namespaces are asked.
        if !is_namespace(&metadata).map_err(failed)? || !super::option::is_network_namespace(file.as_fd()) {
            return Err(NetnsError::NotOne { path });
        }
        let id = NetnsId {
            dev: metadata.dev(),
            ino: metadata.ino(),
        };
        Ok(Self {
            fd: file.into(),
            id,
            path,
            own: Arc::default(),
            stock: Stock::default(),
            ports: SourcePorts::new(),
        })
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

    /// Ports of connections that are made there from addresses of others.
    pub(super) fn ports(&self) -> &SourcePorts {
        &self.ports
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

/// Whether it is a namespace of any kind: all of them are files of one device of the kernel's own.
fn is_namespace(metadata: &Metadata) -> io::Result<bool> {
    Ok(metadata.dev() == std::fs::metadata(CURRENT)?.dev())
}

/// The main thread's would be `/proc/self/ns/net`.
const CURRENT: &str = "/proc/thread-self/ns/net";
