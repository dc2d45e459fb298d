//! Words for what happens, so that lower rooms can tell without logging and without knowing who listens.

use std::{
    error::Error,
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{Identity, PodUid, SpiffeId};

/// Who caused an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Origin {
    /// This process: a bound reached, a shutdown, a fault of ours.
    Local,
    /// The application on this node's side of the connection.
    App,
    /// The other end: the peer's proxy or application.
    Peer,
    /// The way between: refused, unreachable, timed out.
    Network,
    /// Who configures the mesh: policy, certificates, missing state.
    Control,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::App => "app",
            Self::Peer => "peer",
            Self::Network => "network",
            Self::Control => "control",
        })
    }
}

/// What happened, in a room that only tells.
///
/// The errors are whole, not only their text: an observer can ask each for its type. Which it is, the room that tells says.
///
/// ```
/// use ambient_core::{Observer, observe::Event};
/// use std::io;
///
/// /// Notes which peers were not there.
/// #[derive(Default)]
/// struct Absent(std::sync::Mutex<Vec<std::net::SocketAddr>>);
///
/// impl Observer for Absent {
///     fn observe(&self, event: &Event<'_>) {
///         let Event::TunnelClosed { peer, reason, .. } = event else { return };
///         if reason.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::HostUnreachable) {
///             self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(*peer);
///         }
///     }
/// }
///
/// let absent = Absent::default();
/// let (peer, speaker) = ("10.0.2.2:15008".parse()?, "spiffe://cluster.local/ns/shop/sa/cart".parse()?);
/// let reason = io::Error::from(io::ErrorKind::HostUnreachable);
/// absent.observe(&Event::TunnelClosed { peer, speaker: &speaker, reason: &reason });
/// assert_eq!(absent.0.into_inner()?, [peer]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A tunnel to a peer stands.
    TunnelOpened {
        /// The peer's proxy.
        peer: SocketAddr,
        /// Who speaks on our side.
        speaker: &'a Identity,
    },
    /// A tunnel has ended.
    TunnelClosed {
        /// The peer's proxy.
        peer: SocketAddr,
        /// Who spoke on our side.
        speaker: &'a Identity,
        /// Why: `TunnelLost`, if `ambient-hbone` tells.
        reason: &'a (dyn Error + Send + Sync + 'static),
    },
    /// Streams of a tunnel were reset that nobody held any more: the peer took nothing of what they still had to say, which is lost after
    /// whoever said it took it for sent.
    StreamsGivenUp {
        /// The peer.
        peer: &'a SpiffeId,
        /// How many.
        streams: usize,
    },
    /// A peer's handshake was refused.
    HandshakeRefused {
        /// Why: `AcceptError`, if `ambient-hbone` tells. `ambient_tls::PeerError::of` finds in it what was wrong with the peer.
        reason: &'a (dyn Error + Send + Sync + 'static),
    },
    /// A handshake with a peer that was dialled has ended.
    HandshakeEnded {
        /// The peer's proxy.
        peer: SocketAddr,
        /// Who speaks on our side.
        speaker: &'a Identity,
        /// Why no tunnel stands, if none does: `ConnectError`, if `ambient-hbone` tells.
        error: Option<&'a (dyn Error + Send + Sync + 'static)>,
        /// How long it took, from the connection on.
        took: Duration,
    },
    /// A verified peer sent a request that could not be understood, and was told so.
    RequestRefused {
        /// The peer.
        peer: &'a SpiffeId,
        /// What was wrong with it.
        reason: &'a (dyn Error + Send + Sync + 'static),
    },
    /// A pod's capture was proven.
    PodCaptured {
        /// The pod.
        pod: &'a PodUid,
    },
    /// A pod's capture was found broken and mended.
    PodRepaired {
        /// The pod.
        pod: &'a PodUid,
        /// What differed.
        what: &'a str,
        /// Until when it was known to stand: when that was last begun to be looked at.
        held: SystemTime,
        /// When it was found broken.
        noticed: SystemTime,
        /// When it was proven again.
        repaired: SystemTime,
        /// How many connections of the pod went around the mesh then and were still open when they were looked for, right
        /// after the repair; they are reset. One that had ended by then is not counted, nor is a datagram.
        around: u64,
    },
    /// A pod's capture could not be proven; its traffic is refused.
    PodRefused {
        /// The pod.
        pod: &'a PodUid,
        /// Why.
        reason: &'a (dyn Error + Send + Sync + 'static),
    },
    /// A pod has left the mesh.
    PodReleased {
        /// The pod.
        pod: &'a PodUid,
        /// It is meant to be in the mesh, but its namespace cannot be found any more. If that is still alive, what is ours is still in
        /// it, and its TCP is refused until it is found again.
        lost: bool,
    },
    /// Namespaces cannot be looked for: pods that are captured stay so, and no other is found.
    NamespacesUnseen {
        /// Why not.
        why: &'a str,
    },
    /// Namespaces can be looked for again.
    NamespacesSeen,
    /// A connection whose both ends were known has ended, well or not.
    ConnectionEnded {
        /// Whether a pod of ours has opened it; else it came to one.
        outbound: bool,
        /// Who has opened it.
        source: SocketAddr,
        /// Where it went: the peer's proxy for what goes by tunnel.
        destination: SocketAddr,
        /// Who has opened it, if that is known for certain.
        source_identity: Option<&'a Identity>,
        /// Who has served it, if that is known for certain.
        destination_identity: Option<&'a Identity>,
        /// Bytes from who has opened it.
        requested: u64,
        /// Bytes to who has opened it.
        answered: u64,
        /// What went wrong, if anything did.
        error: Option<&'a str>,
    },
}

/// Takes note of events. Called on the data path: it must not block.
pub trait Observer: Send + Sync {
    /// Called for each event, in the order in which one room saw them.
    fn observe(&self, event: &Event<'_>);
}

impl<T: Observer + ?Sized> Observer for Arc<T> {
    fn observe(&self, event: &Event<'_>) {
        (**self).observe(event);
    }
}

/// Takes no note.
impl Observer for () {
    fn observe(&self, _: &Event<'_>) {}
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Counted(AtomicUsize);

    impl Observer for Counted {
        fn observe(&self, _: &Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn tell(observer: impl Observer) {
        observer.observe(&Event::NamespacesSeen);
    }

    #[test]
    fn an_observer_may_be_shared() {
        let counted = Arc::new(Counted::default());
        tell(counted.clone());
        tell(counted.clone() as Arc<dyn Observer>);
        assert_eq!(counted.0.load(Ordering::Relaxed), 2);
    }
}
