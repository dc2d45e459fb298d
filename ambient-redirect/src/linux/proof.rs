//! Connections that must end at the proxy: one from inside, and one from the node.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::TcpStream,
    sync::oneshot,
    time::{Instant, timeout_at},
};

use super::{
    Netns, Sockets,
    own::{Direction, PROBE_PORT, outbound_probe},
};
use crate::plan::{IpFamily, PROXY_MARK};

/// How a pod's capture was proven, besides by rules, routes and listeners as the kernel lists them: without those there is
/// no proof at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Proof {
    /// What goes out.
    pub outbound: Ways,
    /// What comes in.
    pub inbound: Ways,
}

/// By which ways, for each family; `None` where the namespace has no address of it, or it is not captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ways {
    /// IPv4.
    pub v4: Option<Way>,
    /// IPv6.
    pub v6: Option<Way>,
}

/// How the capture of one direction and family was proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Way {
    /// By what the kernel lists, alone. Outbound: the namespace has no route that a connection could take. Inbound: none came
    /// through from the node; its policy or network plugin may not let it, or hides where it comes from.
    Listed,
    /// A connection was accepted, by a proxy that is another process: that it was the proxy, the listeners say.
    Accepted,
    /// A connection was accepted, and the proxy in this process knew it for this proof's.
    Recognised,
}

impl Proof {
    /// What holds where nothing but listings can be had.
    pub(crate) fn set(&mut self, direction: Direction, family: IpFamily, way: Way) {
        let ways = match direction {
            Direction::Outbound => &mut self.outbound,
            Direction::Inbound => &mut self.inbound,
        };
        match family {
            IpFamily::V4 => ways.v4 = Some(way),
            IpFamily::V6 => ways.v6 = Some(way),
        }
    }

    /// The same with what another says of one family.
    pub(crate) fn renewed(mut self, family: IpFamily, by: Self) -> Self {
        for (ways, by) in [(&mut self.outbound, by.outbound), (&mut self.inbound, by.inbound)] {
            match family {
                IpFamily::V4 => ways.v4 = by.v4,
                IpFamily::V6 => ways.v6 = by.v6,
            }
        }
        self
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "outbound {}; inbound {}", self.outbound, self.inbound)
    }
}

impl fmt::Display for Ways {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.v4, self.v6) {
            (None, None) => f.write_str("not captured"),
            (Some(v4), None) => write!(f, "IPv4 {v4}"),
            (None, Some(v6)) => write!(f, "IPv6 {v6}"),
            (Some(v4), Some(v6)) if v4 == v6 => write!(f, "{v4}"),
            (Some(v4), Some(v6)) => write!(f, "IPv4 {v4}, IPv6 {v6}"),
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listed => "as listed",
            Self::Accepted => "by a connection",
            Self::Recognised => "by a connection that the proxy knew",
        })
    }
}

/// What a proof is made of.
#[derive(Debug)]
pub(crate) struct Prover<'a> {
    pub(crate) sockets: &'a Sockets,
    pub(crate) namespace: &'a Arc<Netns>,
    /// That are captured, and that the namespace has.
    pub(crate) families: &'a [IpFamily],
    /// The pod's own.
    pub(crate) addresses: &'a [IpAddr],
    /// How long one from the node may take: where a policy drops it no answer ever comes.
    pub(crate) patience: Duration,
}

impl Prover<'_> {
    /// Connects from inside as the pod's own processes would, and from the node as its neighbours do.
    ///
    /// # Errors
    /// When a connection from inside does not reach the proxy. One from the node that does not come through is no error: it
    /// may be meant so, and is told.
    pub(crate) async fn prove(&self) -> io::Result<Proof> {
        let (v4, v6) = tokio::join!(self.of(IpFamily::V4), self.of(IpFamily::V6));
        let mut proof = Proof {
            outbound: Ways::default(),
            inbound: Ways::default(),
        };
        for (family, (outbound, inbound)) in [(IpFamily::V4, v4?), (IpFamily::V6, v6?)] {
            for (direction, way) in [(Direction::Outbound, outbound), (Direction::Inbound, inbound)] {
                if let Some(way) = way {
                    proof.set(direction, family, way);
                }
            }
        }
        Ok(proof)
    }

    /// Of one family: what goes out, and what comes in; `None` of what is not captured.
    async fn of(&self, family: IpFamily) -> io::Result<(Option<Way>, Option<Way>)> {
        if !self.families.contains(&family) {
            return Ok((None, None));
        }
        let inbound = async {
            let mut addresses = self.addresses.iter().map(IpAddr::to_canonical);
            let address = addresses.find(|ip| ip.is_ipv6() == (family == IpFamily::V6));
            Some(self.inbound(address?).await)
        };
        let (outbound, inbound) = tokio::join!(self.outbound(family), inbound);
        Ok((Some(outbound?), inbound))
    }

    async fn outbound(&self, family: IpFamily) -> io::Result<Way> {
        let to = outbound_probe(family);
        let socket = self.sockets.unmarked(self.namespace, Domain::for_address(to), Type::STREAM).await?;
        match self.connect(socket, Direction::Outbound, to, PATIENCE).await {
            Ok(arrival) => self.recognised(arrival).await.map_err(|e| named(to, &e)),
            // An answer at once is the routing table's; one from the network comes later.
            Err(Failed::AtOnce(e)) if e.raw_os_error().is_some_and(|n| NO_ROUTE.contains(&n)) => Ok(Way::Listed),
            Err(Failed::AtOnce(e) | Failed::Later(e)) => Err(named(to, &e)),
        }
    }

    async fn inbound(&self, pod: IpAddr) -> Way {
        let to = SocketAddr::new(pod, PROBE_PORT);
        let arrived = async {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_nonblocking(true)?;
            // In the node's namespace the mark says that this is no probe of the kubelet's; it does not leave it. Without the
            // privilege it goes as one.
            let _ = socket.set_mark(PROXY_MARK);
            match self.connect(socket, Direction::Inbound, to, self.patience).await {
                Ok(arrival) => self.recognised(arrival).await,
                Err(Failed::AtOnce(e) | Failed::Later(e)) => Err(e),
            }
        };
        arrived.await.unwrap_or(Way::Listed)
    }

    /// Connects, and gives what hears of the arrival.
    async fn connect(&self, socket: Socket, direction: Direction, to: SocketAddr, patience: Duration) -> Result<Arriving, Failed> {
        let unspecified: IpAddr = if to.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let deadline = Instant::now() + patience;
        // The port must be known before the proxy can ask for it.
        socket.bind(&SocketAddr::new(unspecified, 0).into()).map_err(Failed::Later)?;
        let port = socket.local_addr().map_err(Failed::Later)?.as_socket().map_or(0, |a| a.port());
        let heard = self.namespace.own().expect(port, to);
        match socket.connect(&to.into()) {
            Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => return Err(Failed::AtOnce(e)),
            _ => (),
        }
        let stream = TcpStream::from_std(socket.into()).map_err(Failed::Later)?;
        let waited = timeout_at(deadline, stream.writable()).await;
        waited
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(Failed::Later)?;
        match stream.take_error() {
            // It stood, and who took it has closed it already, as a proxy does with a proof's. Who refuses one says so otherwise.
            Ok(Some(e)) if e.kind() != io::ErrorKind::ConnectionReset => Err(Failed::Later(e)),
            Err(e) => Err(Failed::Later(e)),
            Ok(_) => Ok(Arriving {
                stream,
                heard,
                direction,
                deadline,
            }),
        }
    }

    /// Who accepted it.
    async fn recognised(&self, arriving: Arriving) -> io::Result<Way> {
        let Arriving {
            stream,
            heard,
            direction,
            deadline,
        } = arriving;
        if !self.namespace.own().has_listeners() {
            return Ok(Way::Accepted);
        }
        let heard = timeout_at(deadline, heard).await;
        drop(stream);
        match heard {
            Ok(Ok(by)) if by == direction => Ok(Way::Recognised),
            Ok(Ok(_)) => Err(io::Error::other("it was not redirected")),
            _ => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "it was accepted, and the proxy has not seen it",
            )),
        }
    }
}

/// A connection that stands.
struct Arriving {
    stream: TcpStream,
    heard: oneshot::Receiver<Direction>,
    direction: Direction,
    deadline: Instant,
}

enum Failed {
    AtOnce(io::Error),
    Later(io::Error),
}

fn named(to: SocketAddr, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("a connection from inside to {to} did not reach the proxy: {error}"),
    )
}

/// The handshake stays within the kernel; its first repetition would come after a second.
const PATIENCE: Duration = Duration::from_secs(2);
const NO_ROUTE: [i32; 5] = [
    libc::ENETUNREACH,
    libc::EHOSTUNREACH,
    libc::EADDRNOTAVAIL,
    libc::EACCES,
    libc::EINVAL,
];
