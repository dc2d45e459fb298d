//! What the caller brings: connections, and who speaks on them.

use std::{fmt, future::Future, io, net::SocketAddr, pin::Pin, sync::Arc};

use ambient_core::{Authority, Identity};
use http::HeaderMap;
use tokio::io::{AsyncRead, AsyncWrite};

/// A future on the heap, as a trait object's methods return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Any duplex byte stream.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// A duplex byte stream on the heap.
pub type BoxedIo = Box<dyn Duplex>;

/// Makes connections to peers. This crate opens no socket: whoever embeds it decides from where, and with which options
/// (`TCP_NODELAY` should be among them: without it a tunnel has a third of its throughput).
pub trait Dial: Send + Sync + 'static {
    /// A connection to a peer's tunnel port, made on behalf of a speaker.
    ///
    /// # Cancel safety
    /// The future is dropped when the [`dial` limit](crate::Limits::dial) has passed, or when the pool gives the dial up: what was
    /// begun must go with it.
    fn dial<'a>(&'a self, speaker: &'a Speaker, peer: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>>;
}

/// The caller's own name for one who speaks, such as a pod's UID. Opaque here; two speakers differ when these differ.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpeakerKey(Arc<str>);

impl SpeakerKey {
    /// A key of this text.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SpeakerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who speaks in a tunnel. Two speakers never share one, even with the same identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Speaker {
    /// Which workload, in the caller's words.
    pub key: SpeakerKey,
    /// The identity whose credential is presented.
    pub identity: Identity,
}

impl Speaker {
    /// One who bears this identity, and this name of the caller's.
    pub fn new(key: impl Into<Arc<str>>, identity: Identity) -> Self {
        Self {
            key: SpeakerKey::new(key),
            identity,
        }
    }
}

/// Where a stream is to go.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The peer's tunnel port, usually 15008.
    pub peer: SocketAddr,
    /// What the peer is asked to connect to.
    pub authority: Authority,
    /// The identities that the peer may have; none accepts nobody.
    pub accepted: Vec<Identity>,
    /// Headers of the CONNECT request, such as `baggage`.
    pub headers: HeaderMap,
    /// Whether [`Pool::connect_with`](crate::Pool::connect_with) may send data before the peer has answered.
    pub early_data: bool,
    /// Whether the peer may send [`Limits::ample_window`](crate::Limits::ample_window) before any of it is read. For a peer that loses
    /// what it cannot send at once when its server ends first, as Envoy does: so for waypoints and gateways.
    pub ample: bool,
}

impl Destination {
    /// `authority` as seen from `peer`, who must be one of `accepted`; without headers, with early data, and with windows as all have
    /// them.
    pub fn new(peer: SocketAddr, authority: Authority, accepted: impl IntoIterator<Item = Identity>) -> Self {
        Self {
            peer,
            authority,
            accepted: accepted.into_iter().collect(),
            headers: HeaderMap::new(),
            early_data: true,
            ample: false,
        }
    }
}
