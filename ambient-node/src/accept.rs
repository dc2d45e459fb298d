//! Accepting without a runtime's registration, so that a connection is registered only where it will be served.

use std::{io, net::SocketAddr, net::TcpListener, net::TcpStream, time::Duration};

use rustix::net::{SocketFlags, accept_with};
use tokio::{io::unix::AsyncFd, time};

/// How long to wait when the process has no descriptor left: the kernel's queue holds what comes meanwhile.
const BREATH: Duration = Duration::from_millis(50);

/// A listener whose connections are handed to other threads.
#[derive(Debug)]
pub(crate) struct Acceptor(AsyncFd<TcpListener>);

impl Acceptor {
    /// Takes over a non-blocking listener; needs a runtime.
    pub(crate) fn new(listener: TcpListener) -> io::Result<Self> {
        #[allow(deprecated, reason = "unsound only for what does not own its descriptor: a TcpListener does")]
        AsyncFd::new(listener).map(Self)
    }

    /// The next connection, non-blocking; `None` when the kernel has closed the listener. Cancel safe.
    pub(crate) async fn accept(&self) -> Option<(TcpStream, SocketAddr)> {
        loop {
            match self.try_accept().await {
                Ok((stream, peer)) => return Some((stream, SocketAddr::new(peer.ip().to_canonical(), peer.port()))),
                // Shut from outside, as `ss -K` does: whoever finds it missing brings up another.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return None,
                // Of a connection that ended in the queue, or of a full table: neither ends the listener.
                Err(error) => {
                    tracing::debug!(%error, "accept");
                    time::sleep(BREATH).await;
                }
            }
        }
    }

    async fn try_accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|listener| Ok(accept_with(listener.get_ref(), flags)?)) {
                Ok(Ok(socket)) => {
                    let stream = TcpStream::from(socket);
                    let peer = stream.peer_addr()?;
                    return Ok((stream, peer));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}
