//! When a name of a namespace may have come or gone.

use std::{fs::File, io};

use tokio::io::{Interest, unix::AsyncFd};

/// Tells of changes of the mount table that this process sees: a name of a namespace is a mount.
#[derive(Debug)]
pub(crate) struct Names(AsyncFd<File>);

impl Names {
    /// Must be called within a runtime.
    #[allow(unsafe_code, reason = "tokio trusts that the descriptor stays what it is")]
    pub(crate) fn new() -> io::Result<Self> {
        let table = File::open(MOUNTS)?;
        // SAFETY: the value owns its descriptor, never closes it before it is dropped and never exchanges it; and nothing
        // outside this type can reach the value any more.
        let registered = unsafe { AsyncFd::register_with_interest(table, Interest::PRIORITY) };
        Ok(Self(registered?))
    }

    /// Waits until the table has changed.
    ///
    /// # Errors
    /// When the runtime is ending.
    ///
    /// # Cancel safety
    /// Nothing that changes is missed when the future is dropped.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        // The kernel says so once for each change ([proc_pid_mounts(5)]).
        //
        // [proc_pid_mounts(5)]: https://man7.org/linux/man-pages/man5/proc_pid_mounts.5.html
        self.0.ready(Interest::PRIORITY).await?.clear_ready();
        Ok(())
    }
}

const MOUNTS: &str = "/proc/thread-self/mountinfo";
