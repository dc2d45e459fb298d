//! What this process has in a namespace: sockets that a proxy listens on, and connections that are a proof's.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, RawFd},
    sync::{Mutex, PoisonError},
};

use tokio::sync::{Notify, oneshot};

use super::{Netns, option};
pub(super) use crate::plan::PROBE_PORT;
use crate::{
    netlink::{Listener, Transport},
    plan::{IpFamily, Port},
};

/// Kept with a [`Netns`].
#[derive(Debug, Default)]
pub(crate) struct Own {
    /// The sockets that were made to listen, those that were closed among them, oldest first.
    listeners: Mutex<Vec<Made>>,
    probes: Mutex<Vec<Expected>>,
    /// A listener has ended unasked.
    pub(super) lost: Notify,
}

/// By which of a proxy's listeners a redirected connection came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// That for what the pod sends (port 15001).
    Outbound,
    /// That for what comes to it (port 15006).
    Inbound,
}

/// A socket that was made to listen, and the number of its descriptor then. That is whoever has the socket's, who may close
/// it at any time.
#[derive(Clone, Debug)]
struct Made {
    number: RawFd,
    cookie: u64,
    /// As the kernel lists it; of the mark nothing is said.
    as_listed: Listener,
    /// Others may listen on the port as well.
    shared: bool,
}

#[derive(Debug)]
struct Expected {
    source_port: u16,
    destination: SocketAddr,
    /// Hears by which listener it came: where it was not redirected, by another than it should.
    arrived: oneshot::Sender<Direction>,
}

impl Netns {
    /// Whether a redirected connection is a proof's: the proxy closes it and tells nobody, neither log nor metrics.
    ///
    /// Asked by a proxy for every connection that it accepts, before it counts it anywhere: by which listener, from where, and
    /// where it was [going](super::original_destination). A proof of this process is known by namespace and source port, and is
    /// told that it has arrived; without that answer the pod's capture is not proven. From inside it is known by its destination
    /// as well, to which nothing else is ever sent ([RFC 1112 4], 240/4; [RFC 6666], 100::/64): that of another process, and one
    /// whose port the kernel has changed, as it does where it remembers the port as another redirected connection's.
    ///
    /// [RFC 1112 4]: https://www.rfc-editor.org/rfc/rfc1112#section-4
    /// [RFC 6666]: https://www.rfc-editor.org/rfc/rfc6666
    pub fn is_probe(&self, direction: Direction, peer: SocketAddr, destination: SocketAddr) -> bool {
        if destination.port() != PROBE_PORT {
            return false;
        }
        let destination = canonical(destination);
        let reserved = [IpFamily::V4, IpFamily::V6].map(outbound_probe).contains(&destination);
        let outbound = reserved && direction == Direction::Outbound;
        let mut probes = self.own().probes.lock().unwrap_or_else(PoisonError::into_inner);
        let exact = probes
            .iter()
            .position(|p| p.source_port == peer.port() && p.destination == destination);
        let expected = exact.or_else(|| {
            let waits = |p: &Expected| p.destination == destination && !p.arrived.is_closed();
            probes.iter().rposition(waits).filter(|_| outbound)
        });
        if let Some(at) = expected {
            // Nobody waits any more where the proof has run out of time: it is one all the same.
            let _ = probes.remove(at).arrived.send(direction);
        }
        outbound || expected.is_some()
    }
}

impl Own {
    /// Takes note of a socket that is made to listen.
    pub(super) fn listens(&self, socket: &impl AsFd, transport: Transport, shared: bool) -> io::Result<()> {
        let of = socket2::SockRef::from(socket);
        let local = of.local_addr()?.as_socket();
        let local = local.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it has no address of IP"))?;
        let made = Made {
            number: socket.as_fd().as_raw_fd(),
            cookie: option::cookie(socket.as_fd())?,
            as_listed: Listener {
                transport,
                local,
                only_v6: local.is_ipv6() && of.only_v6()?,
                inode: option::inode(socket.as_fd())?,
                mark: None,
            },
            shared,
        };
        self.take_note(made);
        Ok(())
    }

    fn take_note(&self, made: Made) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        if listeners.len() >= LISTENERS {
            listeners.remove(0);
        }
        listeners.push(made);
    }

    /// The inodes of the sockets that were made to listen; empty where the proxy is another process.
    pub(super) fn listeners(&self) -> Vec<u32> {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.iter().map(|made| made.as_listed.inode).collect()
    }

    /// Whether all of these ports are taken by sockets of this process that are still open and listen, and by nobody else's: as
    /// the descriptors say, in some microseconds. No where that cannot be said, as where ports are shared, or a socket has got
    /// another descriptor: then it is for the kernel's listing to say.
    pub(crate) fn listens_at(&self, ports: &[Port], families: &[IpFamily]) -> bool {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let open: Vec<&Made> = listeners
            .iter()
            .filter(|made| option::is_still(made.number, made.cookie, made.as_listed.transport == Transport::Tcp))
            .collect();
        let taken = |port: &Port, family: &IpFamily| {
            open.iter()
                .any(|made| made.as_listed.is_at(*port) && made.as_listed.serves(*family))
        };
        !open.iter().any(|made| made.shared) && ports.iter().all(|port| families.iter().all(|family| taken(port, family)))
    }

    /// Forgets sockets that are closed: the kernel gives their numbers to others one day.
    pub(super) fn closed(&self, inodes: &[u32]) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        // Not all of them: that the proxy is in this process stays known when all its listeners are gone.
        if let Some(last) = listeners.last().map(|made| made.as_listed.inode) {
            listeners.retain(|made| made.as_listed.inode == last || !inodes.contains(&made.as_listed.inode));
        }
    }

    /// Whether a proxy of this process listens here, or did.
    pub(crate) fn has_listeners(&self) -> bool {
        !self.listeners.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Waits until a listener has ended unasked.
    pub(crate) async fn listener_lost(&self) {
        self.lost.notified().await;
    }

    /// A proof's connection is about to be made from this port; the receiver hears of its arrival.
    pub(super) fn expect(&self, source_port: u16, destination: SocketAddr) -> oneshot::Receiver<Direction> {
        let (arrived, receiver) = oneshot::channel();
        let mut probes = self.probes.lock().unwrap_or_else(PoisonError::into_inner);
        // One that nobody waits for any more may still arrive, and is one all the same.
        if probes.len() >= PROBES {
            probes.remove(0);
        }
        probes.push(Expected {
            source_port,
            destination: canonical(destination),
            arrived,
        });
        receiver
    }
}

/// Where a proof's connection from inside goes.
pub(super) fn outbound_probe(family: IpFamily) -> SocketAddr {
    SocketAddr::new(family.probe(), PROBE_PORT)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Four make a proof, and one that is dropped on its way never arrives.
const PROBES: usize = 64;
/// A pod has seven, and what was closed is forgotten at the next verification.
const LISTENERS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Protocol;

    #[tokio::test]
    async fn a_proof_is_known_by_its_source_port_and_where_it_arrives() {
        let namespace = Netns::current().unwrap();
        let (peer, to): (SocketAddr, SocketAddr) = ("10.0.0.2:4711".parse().unwrap(), "10.0.0.2:15001".parse().unwrap());
        assert!(!namespace.is_probe(Direction::Inbound, peer, to), "nothing is expected");
        let mut arrival = namespace.own().expect(peer.port(), to);
        assert!(
            !namespace.is_probe(Direction::Inbound, "10.0.0.2:4712".parse().unwrap(), to),
            "from another port"
        );
        assert!(arrival.try_recv().is_err());
        assert!(namespace.is_probe(Direction::Inbound, peer, "[::ffff:10.0.0.2]:15001".parse().unwrap()));
        assert_eq!(arrival.await, Ok(Direction::Inbound));
        assert!(!namespace.is_probe(Direction::Inbound, peer, to), "it comes once");
    }

    #[test]
    fn a_proof_of_another_process_is_known_by_where_it_goes() {
        let namespace = Netns::current().unwrap();
        let peer = "10.0.0.2:4711".parse().unwrap();
        for to in ["240.0.0.1:15001", "[::ffff:240.0.0.1]:15001", "[100::1]:15001"] {
            assert!(namespace.is_probe(Direction::Outbound, peer, to.parse().unwrap()), "{to}");
            assert!(!namespace.is_probe(Direction::Inbound, peer, to.parse().unwrap()), "{to}");
        }
        for other in ["240.0.0.1:80", "240.0.0.2:15001", "10.0.0.1:15001", "[100::2]:15001"] {
            assert!(!namespace.is_probe(Direction::Outbound, peer, other.parse().unwrap()), "{other}");
        }
    }

    #[tokio::test]
    async fn a_proof_from_inside_is_known_where_its_port_was_changed() {
        let namespace = Netns::current().unwrap();
        let peer = "10.0.0.2:4711".parse().unwrap();
        let to = outbound_probe(IpFamily::V4);
        drop(namespace.own().expect(4712, to));
        let waits = namespace.own().expect(4713, to);
        let mut other = namespace.own().expect(4714, outbound_probe(IpFamily::V6));
        assert!(
            !namespace.is_probe(Direction::Inbound, peer, to),
            "nothing that comes in goes there"
        );
        assert!(namespace.is_probe(Direction::Outbound, peer, to));
        assert_eq!(waits.await, Ok(Direction::Outbound));
        assert!(other.try_recv().is_err());
    }

    #[test]
    fn what_comes_late_is_a_proof_all_the_same() {
        let namespace = Netns::current().unwrap();
        let (peer, to): (SocketAddr, SocketAddr) = ("10.0.0.1:4711".parse().unwrap(), "10.0.0.2:15001".parse().unwrap());
        drop(namespace.own().expect(peer.port(), to));
        drop(namespace.own().expect(4712, to));
        assert!(namespace.is_probe(Direction::Inbound, peer, to));
    }

    #[test]
    fn a_listener_is_known_by_its_descriptor_while_it_is_open_and_listens() {
        let own = Own::default();
        let tcp = std::net::TcpListener::bind("[::]:0").unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        own.listens(&tcp, Transport::Tcp, false).unwrap();
        own.listens(&udp, Transport::Udp, false).unwrap();
        let port = |protocol, address: SocketAddr| Port {
            protocol,
            port: address.port(),
        };
        let both = [IpFamily::V4, IpFamily::V6];
        let (at, names) = (
            port(Protocol::Tcp, tcp.local_addr().unwrap()),
            port(Protocol::Udp, udp.local_addr().unwrap()),
        );
        assert!(own.listens_at(&[at], &both));
        assert!(!own.listens_at(&[Port { port: 1, ..at }], &both));
        assert!(!own.listens_at(
            &[Port {
                protocol: Protocol::Udp,
                ..at
            }],
            &both
        ));
        // Of a loopback address only DNS is.
        assert!(!own.listens_at(&[names], &[IpFamily::V4]));
        // It is open, and listens no more.
        socket2::SockRef::from(&tcp).shutdown(std::net::Shutdown::Both).unwrap();
        assert!(!own.listens_at(&[at], &both));
        drop(tcp);
        let another = std::net::TcpListener::bind("[::]:0").unwrap();
        assert!(!own.listens_at(&[at], &both), "{another:?} may have its number");
    }

    #[test]
    fn where_ports_are_shared_descriptors_do_not_tell() {
        let own = Own::default();
        let tcp = std::net::TcpListener::bind("[::]:0").unwrap();
        own.listens(&tcp, Transport::Tcp, true).unwrap();
        let at = Port {
            protocol: Protocol::Tcp,
            port: tcp.local_addr().unwrap().port(),
        };
        assert!(!own.listens_at(&[at], &[IpFamily::V4]));
    }

    #[test]
    fn what_never_comes_is_forgotten() {
        let own = Own::default();
        for port in 0..1000 {
            drop(own.expect(port, outbound_probe(IpFamily::V4)));
        }
        assert_eq!(own.probes.lock().unwrap().len(), PROBES);
        for inode in 0..2000 {
            own.take_note(Made {
                number: -1,
                cookie: 0,
                as_listed: Listener {
                    transport: Transport::Tcp,
                    local: "[::]:15001".parse().unwrap(),
                    only_v6: false,
                    inode,
                    mark: None,
                },
                shared: false,
            });
        }
        assert_eq!(own.listeners().len(), LISTENERS);
        assert_eq!(own.listeners().last(), Some(&1999));
        own.closed(&own.listeners());
        assert_eq!(own.listeners(), [1999], "that there was one is not forgotten");
        assert!(own.has_listeners());
    }
}
