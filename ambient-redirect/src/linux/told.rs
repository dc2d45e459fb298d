//! Events of the kernel, waited for.

use std::io;

use tokio::io::{Interest, unix::AsyncFd};

use crate::netlink::Events;

/// Tells of changes in the namespace in which its events were subscribed to.
#[derive(Debug)]
pub(crate) struct Told(AsyncFd<Events>);

impl Told {
    /// Must be called within a runtime.
    #[allow(unsafe_code, reason = "tokio trusts that the descriptor stays what it is")]
    pub(crate) fn new(events: Events) -> io::Result<Self> {
        // SAFETY: the value owns its descriptor, which it opened, never closes before it is dropped and never exchanges; and
        // nothing outside this type can reach the value any more.
        let registered = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) };
        Ok(Self(registered?))
    }

    /// Waits until something has changed, or changes were lost.
    ///
    /// # Errors
    /// When the runtime is ending.
    pub(crate) async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable_mut().await?;
            // An error says that events were lost: all the more reason to look.
            if ready.try_io(|events| events.get_mut().take().map_err(io::Error::from)).is_ok() {
                return Ok(());
            }
        }
    }
}
