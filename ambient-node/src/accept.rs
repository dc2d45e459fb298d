//! Accepting without a runtime's registration, so that a connection is registered only where it will be served.

use std::{io, net::SocketAddr, net::TcpListener, net::TcpStream, time::Duration};

use ambient_redirect::linux::{self, Sharer};
use prometheus_client::metrics::counter::Counter;
use rustix::{
    io::Errno,
    net::{SocketFlags, acceptfrom_with},
};
use tokio::{io::unix::AsyncFd, time};

/// How long to wait when the process has no descriptor left: the kernel's queue holds what comes meanwhile.
pub(crate) const BREATH: Duration = Duration::from_millis(50);

/// A listener whose connections are handed to other threads.
#[derive(Debug)]
pub(crate) struct Acceptor {
    listener: AsyncFd<TcpListener>,
    /// Counts the times that nothing could be accepted for want of descriptors or memory.
    failures: Counter,
}

impl Acceptor {
    /// Takes over a non-blocking listener; needs a runtime.
    pub(crate) fn new(listener: TcpListener, failures: Counter) -> io::Result<Self> {
        #[allow(deprecated, reason = "unsound only for what does not own its descriptor: a TcpListener does")]
        let listener = AsyncFd::new(listener)?;
        Ok(Self { listener, failures })
    }

    /// The next connection, non-blocking; `None` when the kernel has closed the listener. Cancel safe.
    pub(crate) async fn accept(&self) -> Option<(TcpStream, SocketAddr)> {
        loop {
            match self.try_accept().await {
                Ok(Some(accepted)) => return Some(accepted),
                Ok(None) => tokio::task::yield_now().await,
                // Shut from outside, as `ss -K` does: whoever finds it missing brings up another.
                Err(Errno::INVAL | Errno::BADF) => return None,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    self.failures.inc();
                    tracing::debug!("accept: the process or the system has no room for another connection");
                    time::sleep(BREATH).await;
                }
                // Of one connection, that ended while it waited: accept(2) gives its error.
                Err(error) => {
                    tracing::debug!(%error, "accept");
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Has what comes from now on go to another that listens at the same port, if that is there.
    pub(crate) fn leave_to(&self, to: Sharer) {
        if let Err(error) = linux::leave_port(self.listener.get_ref(), to) {
            tracing::debug!(%error, "a shared port cannot be left to another process: what comes at the very last may be reset");
        }
    }

    /// A connection that has come already; `None` where there is none. For the end: what waits in the kernel's queue is
    /// reset when the listener is closed.
    pub(crate) fn waiting(&self) -> Option<(TcpStream, SocketAddr)> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (socket, peer) = acceptfrom_with(self.listener.get_ref(), flags).ok()?;
        let peer = SocketAddr::try_from(peer?).ok()?;
        Some((socket.into(), SocketAddr::new(peer.ip().to_canonical(), peer.port())))
    }

    /// `None` for a connection that cannot be told of: its turn is over.
    async fn try_accept(&self) -> Result<Option<(TcpStream, SocketAddr)>, Errno> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        loop {
            let mut ready = self.listener.readable().await.map_err(|_| Errno::BADF)?;
            // The peer comes with the connection: asked later, one that was reset meanwhile has none.
            match ready.try_io(|listener| Ok(acceptfrom_with(listener.get_ref(), flags)?)) {
                Ok(Ok((socket, peer))) => {
                    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                    return Ok(peer.map(|peer| {
                        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                        (TcpStream::from(socket), peer)
                    }));
                }
                Ok(Err(error)) => return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
                Err(_would_block) => {}
            }
        }
    }
}

/// Whether an error says that a namespace has no IPv6.
pub(crate) fn has_no_such_address(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported)
        || error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error())
}
