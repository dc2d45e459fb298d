//! How much a pod may hold, and all pods together: descriptors are the node's, and no pod may take them from another.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{lookup::Places, telemetry::Direction};

/// Handshakes of one pod at a time: whoever can reach its port may begin one.
const HANDSHAKES: usize = 1024;
/// Tunnels into one pod at a time: each is of a peer that has proven who it is.
const TUNNELS: usize = 4096;

/// What all pods may hold together.
#[derive(Debug)]
pub(crate) struct Bounds {
    node: Arc<Semaphore>,
    per_pod: usize,
}

impl Bounds {
    /// `connections` for all pods; one pod at most a quarter of them, and at most `per_pod` in one direction.
    pub(crate) fn new(connections: usize, per_pod: usize) -> Self {
        let connections = connections.clamp(4, Semaphore::MAX_PERMITS);
        Self {
            node: Arc::new(Semaphore::new(connections)),
            per_pod: per_pod.clamp(1, connections / 4),
        }
    }

    /// The room of one pod.
    pub(crate) fn pod(&self) -> Room {
        let kind = |direction, most| Kind {
            direction,
            own: Arc::new(Semaphore::new(most)),
            node: self.node.clone(),
            most,
        };
        Room {
            outbound: kind(Direction::Outbound, self.per_pod),
            inbound: kind(Direction::Inbound, self.per_pod),
            handshakes: kind(Direction::Inbound, HANDSHAKES.min(self.per_pod)),
            tunnels: kind(Direction::Inbound, TUNNELS.min(self.per_pod)),
            lookups: Places::of_a_pod(),
        }
    }
}

/// What one pod may hold of each kind. They are apart so that none crowds out another.
#[derive(Debug)]
pub(crate) struct Room {
    /// Connections that the pod opens.
    pub(crate) outbound: Kind,
    /// Connections to the pod, in plaintext or as streams of tunnels.
    pub(crate) inbound: Kind,
    /// Tunnels whose peer has not proven anything yet.
    pub(crate) handshakes: Kind,
    /// Tunnels that stand.
    pub(crate) tunnels: Kind,
    /// Look-ups of endpoints' names for the pod's connections; who finds none waits.
    pub(crate) lookups: Places,
}

impl Room {
    /// Connections that are open now.
    pub(crate) fn connections(&self) -> usize {
        self.outbound.taken() + self.inbound.taken()
    }

    /// Peers by whom more of them may come: those that prove who they are, and those that have a tunnel.
    pub(crate) fn peers(&self) -> usize {
        self.handshakes.taken() + self.tunnels.taken()
    }
}

/// Places of one kind.
#[derive(Debug)]
pub(crate) struct Kind {
    /// Of what is refused for want of a place.
    pub(crate) direction: Direction,
    own: Arc<Semaphore>,
    node: Arc<Semaphore>,
    most: usize,
}

impl Kind {
    /// A place, unless the pod or the node has none left.
    pub(crate) fn take(&self) -> Option<Place> {
        let own = self.own.clone().try_acquire_owned().ok()?;
        let node = self.node.clone().try_acquire_owned().ok()?;
        Some(Place { _own: own, _node: node })
    }

    fn taken(&self) -> usize {
        self.most - self.own.available_permits()
    }
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _own: OwnedSemaphorePermit,
    _node: OwnedSemaphorePermit,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pod_leaves_room_for_others() {
        let bounds = Bounds::new(100, 1000);
        let (greedy, modest) = (bounds.pod(), bounds.pod());
        let held: Vec<_> = std::iter::from_fn(|| greedy.outbound.take()).collect();
        assert_eq!(held.len(), 25);
        let more: Vec<_> = std::iter::from_fn(|| greedy.inbound.take()).collect();
        assert_eq!((more.len(), greedy.connections()), (25, 50));
        assert!(modest.outbound.take().is_some() && greedy.tunnels.take().is_some());
        let peers = (greedy.tunnels.take(), greedy.handshakes.take());
        assert_eq!((greedy.peers(), greedy.connections()), (2, 50));
        drop(peers);
        drop((held, more));
        assert_eq!(greedy.connections(), 0);
    }

    #[test]
    fn all_together_are_bounded() {
        let bounds = Bounds::new(8, 2);
        let rooms: Vec<_> = (0..10).map(|_| bounds.pod()).collect();
        let held: Vec<_> = rooms.iter().filter_map(|room| room.outbound.take()).collect();
        assert_eq!(held.len(), 8);
        assert_eq!(rooms[9].connections(), 0, "a place that the node did not have is given back");
    }
}
