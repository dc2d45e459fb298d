//! Connections that are outside of the mesh although their pod is in it.

use std::{fmt, net::SocketAddr, time::SystemTime};

/// A connection that was open when its pod joined: it goes on as it was, unencrypted, and asked of no policy when it was
/// opened.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kept {
    /// Who opened it.
    pub direction: Direction,
    /// The pod's end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Since when it is kept: when its pod joined, or when the process began that found it kept.
    pub since: SystemTime,
    /// The device that its socket is bound to, or 0.
    pub(crate) device: u32,
    /// Which socket it is, in the kernel's words: one after it with the same addresses is another.
    pub(crate) cookie: u64,
}

/// Who opened a connection: as the kernel has seen it begin, or, of one that was open before it was tracked, as its socket has counted
/// (the first packet of who opens one is acknowledged as a byte is). Where that is not told, as of one that is just being closed, its
/// port in the pod tells: it is the pod's own only where it is one that the namespace gives to clients (`ip_local_port_range`, without
/// `ip_local_reserved_ports`) and nobody listens on it; what is in doubt counts as inbound, and is asked of the pod's policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// The other end.
    Inbound,
    /// The pod.
    Outbound,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.direction {
            Direction::Inbound => write!(f, "from {} to {}", self.remote, self.local),
            Direction::Outbound => write!(f, "from {} to {}", self.local, self.remote),
        }
    }
}
