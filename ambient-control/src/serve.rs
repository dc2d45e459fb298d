//! A control plane of one's own: any [`Source`](crate::Source) in istiod's words, and certificates of any
//! [`Signer`](crate::ca::Signer), as which a [`DirectoryCa`](crate::ca::DirectoryCa) will do.
//!
//! [`ControlPlane`] serves, over TLS 1.3, the delta ADS that nodes ask istiod for (`istio.workload.Address`,
//! `istio.security.Authorization`) and `IstioCertificateService`. Both this project's nodes and istio's ztunnel can live on
//! it. A handful of machines get a mesh with it, and tests get a control plane without Kubernetes.
//!
//! Whoever calls is the node that its credential names, whatever else it says of itself ([`Nodes`]). A token is made for one
//! node, and is exchanged for a certificate that names it (`spiffe://DOMAIN/ambient/node/NODE`, a day's, over the same TLS);
//! from then on the node shows that, and renews it by it. Istio's ztunnel knows no such exchange: it goes on showing the
//! token. A node gets certificates only for identities of pods that the mesh has on it.
//!
//! A stream lives as long as what its node was admitted by: where that ends or is revoked, the stream ends within a second or
//! so, and so does the connection, also one without a stream; whoever was not revoked comes back with what it has then. It is so for tokens too, for a
//! token that no longer admits anybody should not let hear anybody either. What is refused is logged, and counted in
//! [`Counts`].
//!
//! Of node certificates those count that were given here and are kept in [`Nodes`]: with a stolen intermediate, or another
//! key that roots vouch for, nobody can be a node.
//!
//! Nodes also say here which of their pods are captured ([`Captures`]): only then are peers told to reach them by tunnel.
//! This is a service of this project's own; ztunnel does without.
//!
//! A resource has the same version for the same contents whoever serves it, so that clients go on where they were with the
//! next process. What a policy says that the wire has no words for makes it admit less or refuse more, never the other way.

mod admission;
mod allowance;
mod asked;
mod board;
mod certificate;
mod counts;
pub(crate) mod encode;
mod grpc;
mod guest;
mod limits;
mod metrics;
mod nodes;
mod per_node;
mod response;
mod seldom;
mod server;
mod strangers;
mod streams;
mod subscriber;
#[cfg(test)]
mod tests;

#[cfg(feature = "fuzz")]
pub(crate) use asked::fuzz as fuzz_asked;

#[cfg(test)]
pub(crate) use asked::LONGEST_REQUEST;

use std::{io, net::IpAddr};

use ambient_core::PodUid;

use crate::BoxFuture;

pub use counts::{Counts, Refusal};
pub use metrics::serve_metrics;
pub use nodes::{JoinToken, NodeCertificate, Nodes, NodesError, RevokedNode, Use};
pub use server::{Config, ControlPlane, ServeError};

/// Where nodes' reports of what they have captured go.
pub trait Captures: Send + Sync {
    /// A node has proven, or is about to give up, the capture of one of its pods. The answer says that every node will be
    /// told.
    ///
    /// # Errors
    /// When that cannot be had; the node will say it again.
    fn report<'a>(&'a self, node: &'a str, pod: &'a PodUid, addresses: &'a [IpAddr], captured: bool) -> BoxFuture<'a, io::Result<()>>;
}
