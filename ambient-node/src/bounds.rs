//! How much a pod may hold, and all pods together: descriptors are the node's, and no pod may take them from another.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

use crate::{clock, lookup::Places, telemetry::Direction};

/// Handshakes of one pod at a time: whoever can reach its port may begin one.
const HANDSHAKES: usize = 1024;
/// Tunnels into one pod at a time: each is of a peer that has proven who it is.
const TUNNELS: usize = 4096;
/// Between two lines in the log about one kind of one pod.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// What all pods may hold together.
#[derive(Debug)]
pub(crate) struct Bounds {
    node: Arc<Semaphore>,
    per_pod: usize,
    /// What would let a pod have more.
    remedy: &'static str,
}

impl Bounds {
    /// `connections` for all pods; one pod at most a quarter of them, and at most `per_pod` in one direction.
    pub(crate) fn new(connections: usize, per_pod: usize) -> Self {
        let connections = connections.clamp(4, Semaphore::MAX_PERMITS);
        Self {
            node: Arc::new(Semaphore::new(connections)),
            per_pod: per_pod.clamp(1, connections / 4),
            remedy: if per_pod <= connections / 4 { SETTING } else { FILES },
        }
    }

    /// The room of one pod, of that name.
    pub(crate) fn pod(&self, name: &str) -> Room {
        let name: Arc<str> = name.into();
        let kind = |direction, what, most, remedy| Kind {
            direction,
            pod: name.clone(),
            what,
            own: Arc::new(Semaphore::new(most)),
            node: self.node.clone(),
            most,
            remedy,
            refusals: Mutex::default(),
        };
        let of_peers = |most: usize| if most <= self.per_pod { PATIENCE } else { self.remedy };
        Room {
            outbound: kind(Direction::Outbound, "connections that it opens", self.per_pod, self.remedy),
            inbound: kind(Direction::Inbound, "connections to it", self.per_pod, self.remedy),
            handshakes: kind(
                Direction::Inbound,
                "peers that begin a tunnel to it",
                HANDSHAKES.min(self.per_pod),
                of_peers(HANDSHAKES),
            ),
            tunnels: kind(Direction::Inbound, "tunnels to it", TUNNELS.min(self.per_pod), of_peers(TUNNELS)),
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
    pod: Arc<str>,
    what: &'static str,
    own: Arc<Semaphore>,
    node: Arc<Semaphore>,
    most: usize,
    remedy: &'static str,
    refusals: Mutex<Refusals>,
}

impl Kind {
    /// A place, unless the pod or the node has none left: then the log says so, now and again.
    pub(crate) fn take(&self) -> Option<Place> {
        let Ok(own) = self.own.try_acquire() else {
            self.tell("a pod has as many as it may, and more are refused", self.most, self.remedy);
            return None;
        };
        let Ok(node) = self.node.try_acquire() else {
            self.tell(
                "the node's pods have as many as all may, and more are refused",
                self.taken() - 1,
                FILES,
            );
            return None;
        };
        // Given back by the place itself, which is half as large without them.
        own.forget();
        node.forget();
        Some(Place([self.own.clone(), self.node.clone()]))
    }

    fn tell(&self, trouble: &'static str, has: usize, remedy: &'static str) {
        let refused = self
            .refusals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .one_more(clock::steady());
        if let Some(refused) = refused {
            let (pod, what) = (&*self.pod, self.what);
            tracing::warn!(pod, what, has, refused, remedy, "{trouble}");
        }
    }

    fn taken(&self) -> usize {
        self.most - self.own.available_permits()
    }
}

/// What was refused for want of a place.
#[derive(Debug, Default)]
struct Refusals {
    untold: u64,
    told: Option<Instant>,
}

impl Refusals {
    /// How many to tell of now, if it is time.
    fn one_more(&mut self, now: Instant) -> Option<u64> {
        self.untold += 1;
        if self.told.is_some_and(|told| now < told + TOLD_EVERY) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

const SETTING: &str = "let each have more (--connections-per-pod), or see why it has so many";
const FILES: &str = "let the process have more files open (LimitNOFILE of systemd, ulimit -n), or see why there are so many";
const PATIENCE: &str = "more are taken as those end: see who they are";

/// A place, until it is dropped: one among the pod's, and one among the node's.
#[derive(Debug)]
pub(crate) struct Place([Arc<Semaphore>; 2]);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.iter().for_each(|places| places.add_permits(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::log::{Format, kept};

    #[test]
    fn one_pod_leaves_room_for_others() {
        let bounds = Bounds::new(100, 1000);
        let (greedy, modest) = (bounds.pod("greedy"), bounds.pod("modest"));
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
        let rooms: Vec<_> = (0..10).map(|_| bounds.pod("one")).collect();
        let held: Vec<_> = rooms.iter().filter_map(|room| room.outbound.take()).collect();
        assert_eq!(held.len(), 8);
        assert_eq!(rooms[9].connections(), 0, "a place that the node did not have is given back");
    }

    #[test]
    fn refusals_are_told_now_and_again() {
        let (mut refusals, begun) = (Refusals::default(), clock::steady());
        assert_eq!(refusals.one_more(begun), Some(1), "the first at once");
        for _ in 0..1000 {
            assert_eq!(refusals.one_more(begun + TOLD_EVERY / 2), None);
        }
        assert_eq!(refusals.one_more(begun + TOLD_EVERY), Some(1001));
        assert_eq!(refusals.one_more(begun + TOLD_EVERY), None);
    }

    #[test]
    fn whose_connections_are_refused_is_told() {
        let bounds = Bounds::new(12, 3);
        let (greedy, late) = (bounds.pod("shop/cart-0"), bounds.pod("shop/late-0"));
        let mut held = Vec::new();
        let lines = kept::logged(Format::Text, || {
            held.extend((0..5).filter_map(|_| greedy.inbound.take()));
            held.extend((0..3).filter_map(|_| greedy.outbound.take()));
            held.extend((0..3).filter_map(|_| greedy.tunnels.take()));
            held.extend((0..3).filter_map(|_| greedy.handshakes.take()));
            assert!(late.outbound.take().is_none());
        });
        let lines: Vec<_> = lines
            .lines()
            .map(|line| line.split_once("\twarn\tambient_node::bounds\t").unwrap().1)
            .collect();
        let of_pod = "a pod has as many as it may, and more are refused\tpod=\"shop/cart-0\" what=\"connections to it\" has=3 refused=1";
        let of_all =
            "the node's pods have as many as all may, and more are refused\tpod=\"shop/late-0\" what=\"connections that it opens\" has=0";
        assert!(
            matches!(&lines[..], [one, all] if one.starts_with(of_pod) && all.starts_with(of_all)),
            "{lines:?}"
        );
    }

    #[test]
    fn what_is_told_is_what_would_help() {
        for (connections, per_pod, remedy) in [(100, 25, SETTING), (100, 26, FILES), (1 << 20, 20_000, SETTING)] {
            let room = Bounds::new(connections, per_pod).pod("one");
            assert_eq!(
                (room.outbound.remedy, room.inbound.remedy),
                (remedy, remedy),
                "{connections} {per_pod}"
            );
        }
        let room = Bounds::new(1 << 20, 20_000).pod("one");
        assert_eq!((room.handshakes.remedy, room.tunnels.remedy), (PATIENCE, PATIENCE));
        let few = Bounds::new(1 << 20, 2_000).pod("one");
        assert_eq!((few.handshakes.remedy, few.tunnels.remedy), (PATIENCE, SETTING));
    }
}
