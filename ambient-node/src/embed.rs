//! What whoever embeds a node may bring besides state and certificates: pods whose connections come from elsewhere than
//! captured ports.

use std::{fmt, io, net::SocketAddr};

use ambient_redirect::BoxFuture;

/// Where connections of one pod come from, in the place of the ports that its traffic is redirected to.
///
/// The node takes them in as it does captured ones: they are routed, decided on, bounded, logged and counted alike, and they
/// are ended with the node.
pub trait Listener: Send + Sync + 'static {
    /// Waits for the next connection; `None` when there will be no more.
    ///
    /// An error is counted, and asked again after 50 ms. A panic is logged and counted, and the listener is asked again
    /// after a pause. Not called any more once the node drains.
    ///
    /// # Cancel safety
    /// Must be cancel safe: a connection is given by the call that returns it, or by a later one.
    fn accept(&self) -> BoxFuture<'_, Option<io::Result<Arrival>>>;
}

/// A connection that has come.
#[derive(Debug)]
#[non_exhaustive]
pub struct Arrival {
    /// The connection. It is made non-blocking.
    pub stream: std::net::TcpStream,
    /// Who has opened it.
    pub peer: SocketAddr,
    /// Whom it was meant for; `None` where the kernel knows, as of one that was redirected or came to its very destination.
    pub destination: Option<SocketAddr>,
    /// What it is.
    pub kind: Kind,
}

impl Arrival {
    /// A connection that the pod opens.
    pub fn outbound(stream: std::net::TcpStream, peer: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            stream,
            peer,
            destination: Some(destination),
            kind: Kind::Outbound,
        }
    }

    /// A connection to the pod that is no tunnel: it has no identity.
    pub fn plaintext(stream: std::net::TcpStream, peer: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            stream,
            peer,
            destination: Some(destination),
            kind: Kind::Plaintext,
        }
    }

    /// A tunnel of another node's proxy to the pod; what it was accepted at is the pod's address.
    pub fn tunnel(stream: std::net::TcpStream, peer: SocketAddr) -> Self {
        Self {
            stream,
            peer,
            destination: None,
            kind: Kind::Tunnel,
        }
    }
}

/// What a connection is that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The pod has opened it.
    Outbound,
    /// Somebody has opened it to the pod, without a tunnel.
    Plaintext,
    /// A tunnel to the pod (HBONE).
    Tunnel,
}

impl fmt::Debug for dyn Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}
