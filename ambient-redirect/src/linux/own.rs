//! What this process has in a namespace: sockets that a proxy listens on, and connections that are a proof's.

use std::{
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use tokio::sync::{Notify, oneshot};

use super::Netns;
use crate::plan::IpFamily;
pub(super) use crate::plan::PROBE_PORT;

/// Kept with a [`Netns`].
#[derive(Debug, Default)]
pub(crate) struct Own {
    /// Inodes of the sockets that were made to listen, those that were closed among them, oldest first.
    listeners: Mutex<Vec<u32>>,
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
    /// told that it has arrived; without that answer the pod's capture is not proven. Those of another process are known by
    /// their destination, to which nothing else is ever sent ([RFC 1112 4], 240/4; [RFC 6666], 100::/64).
    ///
    /// [RFC 1112 4]: https://www.rfc-editor.org/rfc/rfc1112#section-4
    /// [RFC 6666]: https://www.rfc-editor.org/rfc/rfc6666
    pub fn is_probe(&self, direction: Direction, peer: SocketAddr, destination: SocketAddr) -> bool {
        if destination.port() != PROBE_PORT {
            return false;
        }
        let destination = canonical(destination);
        let mut probes = self.own().probes.lock().unwrap_or_else(PoisonError::into_inner);
        let expected = |p: &Expected| p.source_port == peer.port() && p.destination == destination;
        if let Some(at) = probes.iter().position(expected) {
            // Nobody waits any more where the proof has run out of time: it is one all the same.
            let _ = probes.swap_remove(at).arrived.send(direction);
            return true;
        }
        direction == Direction::Outbound && (destination == outbound_probe(IpFamily::V4) || destination == outbound_probe(IpFamily::V6))
    }
}

impl Own {
    /// Takes note of a socket that is made to listen.
    pub(super) fn listens(&self, inode: u32) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        if listeners.len() >= LISTENERS {
            listeners.remove(0);
        }
        listeners.push(inode);
    }

    /// The inodes of the sockets that were made to listen; empty where the proxy is another process.
    pub(super) fn listeners(&self) -> Vec<u32> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets sockets that are closed: the kernel gives their numbers to others one day.
    pub(super) fn closed(&self, inodes: &[u32]) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        // Not all of them: that the proxy is in this process stays known when all its listeners are gone.
        if let Some(last) = listeners.last().copied() {
            listeners.retain(|inode| *inode == last || !inodes.contains(inode));
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

    #[test]
    fn what_comes_late_is_a_proof_all_the_same() {
        let namespace = Netns::current().unwrap();
        let (peer, to): (SocketAddr, SocketAddr) = ("10.0.0.1:4711".parse().unwrap(), "10.0.0.2:15001".parse().unwrap());
        drop(namespace.own().expect(peer.port(), to));
        drop(namespace.own().expect(4712, to));
        assert!(namespace.is_probe(Direction::Inbound, peer, to));
    }

    #[test]
    fn what_never_comes_is_forgotten() {
        let own = Own::default();
        for port in 0..1000 {
            drop(own.expect(port, outbound_probe(IpFamily::V4)));
        }
        assert_eq!(own.probes.lock().unwrap().len(), PROBES);
        for inode in 0..2000 {
            own.listens(inode);
        }
        assert_eq!(own.listeners().len(), LISTENERS);
        assert_eq!(own.listeners().last(), Some(&1999));
        own.closed(&own.listeners());
        assert_eq!(own.listeners(), [1999], "that there was one is not forgotten");
        assert!(own.has_listeners());
    }
}
