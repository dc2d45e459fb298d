//! What the kernel refused, and its words for it.

use std::io;

/// A request that the kernel refused, or that could not be brought to it.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}{}", self.said())]
pub struct Error {
    what: String,
    message: Option<String>,
    source: io::Error,
}

impl Error {
    pub(super) fn new(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self {
            what: what.into(),
            message: None,
            source: source.into(),
        }
    }

    pub(super) fn refused(what: impl Into<String>, errno: i32, message: Option<String>) -> Self {
        Self {
            what: what.into(),
            message,
            source: io::Error::from_raw_os_error(errno),
        }
    }

    /// Bytes that do not hold what the protocol says they hold.
    pub(super) fn malformed(what: &str) -> Self {
        Self::new(
            what,
            io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer cannot be read"),
        )
    }

    /// A listing with more bytes than are taken.
    pub(super) fn excessive(what: &str, most: usize) -> Self {
        Self::new(
            what,
            io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("there is more than the {} KiB that are read of it: leave less there", most / 1024),
            ),
        )
    }

    /// A listing with more of something than is known of it.
    pub(crate) fn too_many(what: &str, of: &str, most: usize) -> Self {
        Self::new(
            what,
            io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("there are more than {most} {of}: leave less there"),
            ),
        )
    }

    /// There is more of it than is read.
    pub fn too_large(&self) -> bool {
        self.source.kind() == io::ErrorKind::FileTooLarge
    }

    /// The errno, where it was the kernel that refused.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// The thing to be made exists already.
    pub fn exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// The thing named does not exist.
    pub fn missing(&self) -> bool {
        matches!(self.errno(), Some(libc::ENOENT | libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL))
    }

    /// The rules have changed since the generation that was named: read again and try again.
    pub fn stale(&self) -> bool {
        self.errno() == Some(ERESTART)
    }

    /// A listing was overtaken by a change: ask again.
    pub fn interrupted(&self) -> bool {
        self.source.kind() == io::ErrorKind::Interrupted
    }

    /// The privilege is missing: CAP_NET_ADMIN in the user namespace that owns the network namespace.
    pub fn forbidden(&self) -> bool {
        matches!(self.errno(), Some(libc::EPERM | libc::EACCES))
    }

    fn said(&self) -> String {
        match &self.message {
            Some(words) => format!(" (the kernel says: {words})"),
            None if self.forbidden() => " (CAP_NET_ADMIN is needed, in the user namespace that owns the network namespace)".into(),
            None => String::new(),
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.source.kind(), error)
    }
}

/// Not in libc's list of errors that programs are meant to see, yet nf_tables answers it for a stale generation.
const ERESTART: i32 = 85;
