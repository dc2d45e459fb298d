//! A connection from inside that must end at the proxy.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use socket2::{Domain, Type};
use tokio::{net::TcpStream, time::timeout};

use super::{Netns, Sockets};
use crate::plan::IpFamily;

/// How a pod's capture was proven. What comes in is proven by the rules, routes and listeners that the kernel lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// What goes out by IPv4.
    pub outbound_v4: Outbound,
    /// What goes out by IPv6; `None` where the namespace has none, or it is not captured.
    pub outbound_v6: Option<Outbound>,
}

/// How the capture of what goes out was proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outbound {
    /// A connection from inside to an address that exists nowhere was accepted.
    Connected,
    /// The namespace has no route that such a connection could take, so that rules and listeners as the kernel lists them
    /// must do.
    Listed,
}

/// Whether a redirected connection is a proof's: the proxy closes it, and tells nobody.
///
/// Addresses of [RFC 1112 4] (240/4) and [RFC 6666] (100::/64), to which nothing else is ever sent.
///
/// [RFC 1112 4]: https://www.rfc-editor.org/rfc/rfc1112#section-4
/// [RFC 6666]: https://www.rfc-editor.org/rfc/rfc6666
pub fn is_probe(destination: SocketAddr) -> bool {
    let destination = SocketAddr::new(destination.ip().to_canonical(), destination.port());
    destination == probe(IpFamily::V4) || destination == probe(IpFamily::V6)
}

/// Connects from inside as the pod's own processes would.
pub(crate) async fn prove(sockets: &Sockets, namespace: &Arc<Netns>, families: &[IpFamily]) -> io::Result<Proof> {
    let mut proof = Proof {
        outbound_v4: Outbound::Listed,
        outbound_v6: None,
    };
    for family in families {
        let outbound = outbound(sockets, namespace, probe(*family)).await?;
        match family {
            IpFamily::V4 => proof.outbound_v4 = outbound,
            IpFamily::V6 => proof.outbound_v6 = Some(outbound),
        }
    }
    Ok(proof)
}

async fn outbound(sockets: &Sockets, namespace: &Arc<Netns>, to: SocketAddr) -> io::Result<Outbound> {
    let socket = sockets.unmarked(namespace, Domain::for_address(to), Type::STREAM).await?;
    match socket.connect(&to.into()) {
        Ok(()) => return Ok(Outbound::Connected),
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => (),
        // An answer at once is the routing table's; one from the network comes later.
        Err(e) if e.raw_os_error().is_some_and(|n| NO_ROUTE.contains(&n)) => return Ok(Outbound::Listed),
        Err(e) => return Err(named(to, &e)),
    }
    let stream = TcpStream::from_std(socket.into())?;
    let waited = timeout(PATIENCE, stream.writable()).await;
    waited
        .map_err(|_| named(to, &io::ErrorKind::TimedOut.into()))?
        .map_err(|e| named(to, &e))?;
    match stream.take_error()? {
        None => Ok(Outbound::Connected),
        Some(e) => Err(named(to, &e)),
    }
}

fn named(to: SocketAddr, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("a connection from inside to {to} did not reach the proxy: {error}"),
    )
}

fn probe(family: IpFamily) -> SocketAddr {
    let ip: IpAddr = match family {
        IpFamily::V4 => Ipv4Addr::new(240, 0, 0, 1).into(),
        IpFamily::V6 => Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1).into(),
    };
    SocketAddr::new(ip, PROBE_PORT)
}

const PROBE_PORT: u16 = 15001;
/// The handshake stays within the kernel; its first repetition would come after a second.
const PATIENCE: Duration = Duration::from_secs(2);
const NO_ROUTE: [i32; 5] = [
    libc::ENETUNREACH,
    libc::EHOSTUNREACH,
    libc::EADDRNOTAVAIL,
    libc::EACCES,
    libc::EINVAL,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_known_in_either_clothes() {
        assert!(is_probe("240.0.0.1:15001".parse().unwrap()));
        assert!(is_probe("[::ffff:240.0.0.1]:15001".parse().unwrap()));
        assert!(is_probe("[100::1]:15001".parse().unwrap()));
        for other in ["240.0.0.1:80", "240.0.0.2:15001", "10.0.0.1:15001", "[100::2]:15001"] {
            assert!(!is_probe(other.parse().unwrap()), "{other}");
        }
    }
}
