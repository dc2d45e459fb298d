//! ZDS, by which an Istio node agent tells a proxy which pods to serve: both ends of it.
//!
//! It is spoken over a Unix socket of type `SOCK_SEQPACKET`, one message of at most 1,024 bytes to a packet; a pod's network
//! namespace goes along as a descriptor. The proxy connects and says [`Hello`](wire::Hello); the agent names every pod of the
//! node, says that these were all, and tells of changes from then on; each request is answered before the next. There is
//! nothing in it that asks whether the other is alive: a proxy that hangs is found out by the next request.
//!
//! [`Server`] is the agent's end. It is a [`Proxy`](crate::Proxy): with it an [`Enrolment`](crate::Enrolment) drives a proxy
//! that is somebody else's, such as Istio's ztunnel. [`Client`] is the proxy's end: it drives a [`Proxy`](crate::Proxy) of
//! yours as somebody else's agent says, such as Istio's `istio-cni`. Both ask who is at the other end and refuse strangers:
//! whoever speaks for an agent decides which identity serves which pod, and whoever speaks for a proxy gets every pod's
//! namespace. A packet that is not understood ends its connection and nothing else. A pod that comes with what is no pod's namespace,
//! as the node's own, is refused alone ([`workloads::Misplaced`]): the others that are named over that connection go on.
//!
//! The decisions of both are pure and can be used alone: [`agent::Agent`] and [`workloads::Workloads`].

pub mod agent;
mod client;
mod server;
pub mod wire;
pub mod workloads;

pub use client::{Client, ClientConfig, ClientState};
pub use server::{BindError, Connected, Server, ServerConfig};

use std::collections::BTreeSet;

/// Whose processes may be at the other end, by their user IDs as the own user namespace has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed(pub BTreeSet<u32>);

impl Default for Allowed {
    /// Root's and the own user's.
    fn default() -> Self {
        Self(BTreeSet::from([0, rustix::process::geteuid().as_raw()]))
    }
}

/// Where Istio has the socket.
pub const ISTIO_SOCKET: &str = "/var/run/ztunnel/ztunnel.sock";
