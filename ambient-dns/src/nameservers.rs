//! The plainest way to nameservers.

use std::{fmt, io, net::SocketAddr, sync::Arc};

use tokio::net::{TcpStream, UdpSocket};

use crate::{BoxFuture, Upstream};

/// An [`Upstream`] of the same nameservers for every client, asked from the network namespace of whoever polls.
///
/// ```
/// use std::hash::{BuildHasher as _, Hasher as _, RandomState};
/// use ambient_dns::Nameservers;
///
/// // Any source of words that nobody outside can foresee.
/// let draw = || RandomState::new().build_hasher().finish();
/// let upstream = Nameservers::new(["10.96.0.10:53".parse()?], draw);
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
pub struct Nameservers {
    servers: Arc<[SocketAddr]>,
    draw: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl Nameservers {
    /// The way to nameservers, the first to be asked first. `draw` gives a random word at each call that nobody outside can
    /// foresee: who can foresee the IDs of queries can answer them.
    pub fn new(servers: impl Into<Arc<[SocketAddr]>>, draw: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self {
            servers: servers.into(),
            draw: Box::new(draw),
        }
    }
}

impl Upstream for Nameservers {
    fn draw(&self) -> u64 {
        (self.draw)()
    }

    fn for_datagram(&self, _: SocketAddr, _: SocketAddr) -> BoxFuture<'_, Arc<[SocketAddr]>> {
        Box::pin(std::future::ready(self.servers.clone()))
    }

    fn for_stream<'a>(&'a self, _: &'a TcpStream) -> BoxFuture<'a, Arc<[SocketAddr]>> {
        Box::pin(std::future::ready(self.servers.clone()))
    }

    fn udp(&self, server: SocketAddr) -> BoxFuture<'_, io::Result<UdpSocket>> {
        Box::pin(async move {
            let unspecified = if server.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
            let socket = UdpSocket::bind(SocketAddr::new(unspecified, 0)).await?;
            socket.connect(server).await?;
            Ok(socket)
        })
    }

    fn tcp(&self, server: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(TcpStream::connect(server))
    }
}

impl fmt::Debug for Nameservers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nameservers")
            .field("servers", &self.servers)
            .finish_non_exhaustive()
    }
}
