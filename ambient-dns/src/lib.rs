//! The mesh's DNS: names of services are answered from a snapshot of the mesh, everything else is forwarded as it came.
//!
//! This crate makes no sockets, chooses no nameserver, caches nothing and answers nothing that it cannot answer exactly:
//! what asks upstream is a value that implements [`Upstream`], sockets to serve on are given, and a type, a class, a
//! signature or a name that is not the mesh's goes upstream byte for byte. The one entry is [`answer()`], a pure
//! function from a snapshot and a query to an [`Answer`]; [`Server`] is the loop around it. [`resolv`] reads a
//! `resolv.conf`, for whoever implements [`Upstream`] with the node's own nameservers.
//!
//! ```
//! use std::sync::Arc;
//! use ambient_core::{mesh::Update, Mesh, Network, NetworkAddress, Service};
//! use ambient_dns::{answer, Answer, Client, Transport, Zone};
//!
//! let mut web = Service::new("shop", "web.shop.svc.cluster.local");
//! web.vips.push(NetworkAddress::local("10.96.0.7".parse()?));
//! let mesh = Mesh::default().apply([Update::Service(Arc::new(web))]);
//! let client = Client { namespace: "shop", network: &Network::default() };
//!
//! // ID 7, recursion desired, one question: `web`, type A, class IN.
//! let query = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x03web\0\0\x01\0\x01";
//! let Answer::Reply(reply) = answer(&mesh, &Zone::default(), &client, query, Transport::Udp) else {
//!     panic!("a service of the mesh is answered")
//! };
//! assert!(reply.ends_with(&[10, 96, 0, 7]));
//!
//! // The same for type MX: not ours to answer.
//! let query = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x03web\0\0\x0f\0\x01";
//! assert_eq!(answer(&mesh, &Zone::default(), &client, query, Transport::Udp), Answer::Forward);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

use std::{future::Future, pin::Pin};

pub mod resolv;

mod answer;
mod server;
mod wire;

pub use answer::{Answer, Client, Zone, answer};
pub use server::{Limits, Server};

/// What a query came by, and an answer goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// One datagram each way; an answer that is too long is cut, and says so ([RFC 1035 4.2.1]).
    ///
    /// [RFC 1035 4.2.1]: https://www.rfc-editor.org/rfc/rfc1035#section-4.2.1
    Udp,
    /// A stream, each message after its length in two bytes ([RFC 7766]).
    ///
    /// [RFC 7766]: https://www.rfc-editor.org/rfc/rfc7766
    Tcp,
}

/// A future on the heap, as a trait with `dyn` needs it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Whoever asks the real nameservers: makes the sockets, chooses the server, tries the next one.
pub trait Upstream: Send + Sync {
    /// Asks, and gives the answer's bytes.
    ///
    /// The query is sent as it is, without the length that TCP puts before it; the answer is given likewise. Over UDP the
    /// port should be a random one for each query. The [`Server`] checks that the answer is one to this query and ends
    /// the exchange, by dropping it, at its own deadline ([`Limits::forward`]).
    ///
    /// # Errors
    /// When no nameserver gave an answer; the client is then told SERVFAIL at once.
    ///
    /// # Cancel safety
    /// Dropping the future must abandon the exchange and release its sockets.
    fn exchange<'a>(&'a self, query: &'a [u8], transport: Transport) -> BoxFuture<'a, Result<Vec<u8>, UpstreamError>>;
}

/// Why a query was not answered upstream.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpstreamError {
    /// No nameserver could be asked, or none was willing to answer.
    #[error("no nameserver answered: {0}; look at the nameservers that the node was given and at the way to them")]
    Unavailable(String),
    /// Time was up.
    #[error("no nameserver answered in time; look at the nameservers that the node was given and at the way to them")]
    Timeout,
    /// What came back is not an answer to the query: another ID, another question, or no answer at all.
    #[error("what came back is not an answer to the query: {0}; look at what stands between the node and its nameservers")]
    Mismatch(&'static str),
    /// So many queries wait for nameservers already that one more is refused ([`Limits::forwards`]).
    #[error("{0} queries wait for nameservers already; look for a client that floods, or for nameservers that do not answer")]
    Busy(usize),
}
