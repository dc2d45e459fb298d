//! Events of the kernel, waited for.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    sync::{Mutex, PoisonError},
};

use tokio::io::{Interest, unix::AsyncFd};

use crate::netlink::Events;

/// Tells of changes in the namespace in which its events were subscribed to.
#[derive(Debug)]
pub(crate) struct Told(AsyncFd<Source>);

#[derive(Debug)]
struct Source {
    /// And how often they told of something.
    events: Mutex<(Events, u64)>,
    /// Theirs.
    number: RawFd,
}

impl AsRawFd for Source {
    fn as_raw_fd(&self) -> RawFd {
        self.number
    }
}

impl Source {
    fn take(&self) -> io::Result<()> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = events.0.take().map_err(io::Error::from);
        // An error says that events were lost: all the more reason to look.
        let nothing = taken.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock);
        events.1 += u64::from(!nothing);
        if nothing { taken.map(drop) } else { Ok(()) }
    }
}

impl Told {
    /// Must be called within a runtime.
    #[allow(unsafe_code, reason = "tokio trusts that the descriptor stays what it is")]
    pub(crate) fn new(events: Events) -> io::Result<Self> {
        let source = Source {
            number: events.as_raw_fd(),
            events: Mutex::new((events, 0)),
        };
        // SAFETY: the value owns its descriptor, which it opened, never closes before it is dropped and never exchanges; and
        // nothing outside this type can reach the value any more.
        let registered = unsafe { AsyncFd::register_with_interest(source, Interest::READABLE) };
        Ok(Self(registered?))
    }

    /// Waits until something has changed, or changes were lost. To be waited for by one at a time.
    ///
    /// # Errors
    /// When the runtime is ending.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            if ready.try_io(|source| source.get_ref().take()).is_ok() {
                return Ok(());
            }
        }
    }

    /// How often something was told so far: where that is the same as before, nothing has changed in between. `None` where the
    /// kernel has told of more, which nobody has heard yet; then what there is must be looked at, as that changes were lost is
    /// said once.
    pub(crate) fn heard(&self) -> Option<u64> {
        let events = self.0.get_ref().events.lock().unwrap_or_else(PoisonError::into_inner);
        events.0.is_quiet().then_some(events.1)
    }
}
