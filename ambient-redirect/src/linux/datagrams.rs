//! Where redirected datagrams were going.

use std::{
    io,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use super::Netns;
use crate::netlink::Redirected;

/// What the kernel remembers of the datagrams that were redirected in one namespace.
#[derive(Debug)]
pub struct Datagrams(Mutex<Redirected>);

impl Datagrams {
    /// Opens what is needed to ask about a namespace. Takes a thread for a moment, and blocks that long.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the kernel gives no socket.
    pub fn open(namespace: &Netns) -> io::Result<Self> {
        let opened = namespace.run(Redirected::open)?;
        Ok(Self(Mutex::new(opened?)))
    }

    /// Where a datagram was going that came from `client` to a local socket bound to `at`; `None` where the kernel has
    /// forgotten, or the datagram was meant for that very socket. Some microseconds; does not wait.
    ///
    /// # Errors
    /// When the kernel cannot be asked: it has no ctnetlink, or the process no right to it.
    pub fn original_destination(&self, client: SocketAddr, at: SocketAddr) -> io::Result<Option<SocketAddr>> {
        let mut redirected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let origin = redirected.origin(client, at)?;
        Ok(origin.filter(|origin| *origin != at))
    }
}
