//! Changes of one namespace, for those who keep it themselves.

use std::io;

use super::{Netns, Told};
use crate::netlink::Events;

/// Tells when rules, routing rules or routes of a namespace change, whoever changes them; the caller's own changes too.
#[derive(Debug)]
pub struct Watcher {
    nftables: Told,
    routing: Told,
}

impl Watcher {
    /// Subscribes. What changes from here on is told.
    ///
    /// # Panics
    /// Outside of a runtime of tokio that has I/O.
    ///
    /// # Errors
    /// When the namespace cannot be entered or descriptors are short.
    pub fn new(namespace: &Netns) -> io::Result<Self> {
        let open = || Ok::<_, crate::netlink::Error>((Events::nftables()?, Events::routing()?));
        let (nftables, routing) = namespace.run(open)??;
        Ok(Self {
            nftables: Told::new(nftables)?,
            routing: Told::new(routing)?,
        })
    }

    /// Waits until something has changed, or changes were lost: what it is now is to be looked at
    /// ([`Inside::verify`](super::Inside::verify)).
    ///
    /// # Errors
    /// When the runtime is ending.
    ///
    /// # Cancel safety
    /// Nothing that changes is missed when the future is dropped.
    pub async fn changed(&mut self) -> io::Result<()> {
        tokio::select! {
            changed = self.nftables.changed() => changed,
            changed = self.routing.changed() => changed,
        }
    }
}
