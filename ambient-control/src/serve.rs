//! A control plane of one's own: any [`Source`](crate::Source) in istiod's words, and certificates of a [`DirectoryCa`](crate::ca::DirectoryCa).
//!
//! [`ControlPlane`] serves, over TLS 1.3, the delta ADS that nodes ask istiod for (`istio.workload.Address`,
//! `istio.security.Authorization`) and `IstioCertificateService`. Both this project's nodes and istio's ztunnel can live on
//! it. A handful of machines get a mesh with it, and tests get a control plane without Kubernetes.
//!
//! Whoever calls shows a token ([`Tokens`]) that was made for one node, and is that node whatever else it says of itself. It
//! gets certificates only for identities of pods that the mesh has on that node.
//!
//! Nodes also say here which of their pods are captured ([`Captures`]): only then are peers told to reach them by tunnel.
//! This is a service of this project's own; ztunnel does without.
//!
//! A resource has the same version for the same contents whoever serves it, so that clients go on where they were with the
//! next process. What a policy says that the wire has no words for makes it admit less or refuse more, never the other way.

mod board;
pub(crate) mod encode;
mod grpc;
mod server;
mod subscriber;
#[cfg(test)]
mod tests;
mod tokens;

use std::{io, net::IpAddr};

use ambient_core::PodUid;

use crate::BoxFuture;

pub use server::{Config, ControlPlane, ServeError};
pub use tokens::{Entry, TokenError, Tokens};

/// Where nodes' reports of what they have captured go.
pub trait Captures: Send + Sync {
    /// A node has proven, or is about to give up, the capture of one of its pods. The answer says that every node will be
    /// told.
    ///
    /// # Errors
    /// When that cannot be had; the node will say it again.
    fn report<'a>(&'a self, node: &'a str, pod: &'a PodUid, addresses: &'a [IpAddr], captured: bool) -> BoxFuture<'a, io::Result<()>>;
}
