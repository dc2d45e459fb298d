//! How a pod's traffic reaches the proxy on its node: nftables rules, policy routing and sockets in the pod's network
//! namespace, all over netlink. This crate refuses to proxy: it moves no byte of any connection, speaks to no Kubernetes API,
//! starts no other program, and touches no table, rule or route that is not its own. It never believes that a pod is
//! captured: that is proven before it is announced, verified while it lasts, and taken back when it cannot be upheld.
//!
//! The one entry type is [`Enrolment`]: told which pods are meant to be in the mesh ([`PodSpec`]), it finds their namespaces
//! by address, has a [`Proxy`] listen in them, puts a [`plan::Plan`] in force, proves it, and [`Announce`]s it. The parts are
//! there to be used alone: the plan as data and as text, [`linux::Inside`] to apply, verify and clear it, [`linux::Sockets`]
//! for sockets in a pod's namespace, [`pods::Pods`] for the decisions without any of it.
//!
//! ```
//! use ambient_redirect::plan::{Options, Plan};
//!
//! // A dry run: what would a pod's namespace get?
//! let text = Plan::new(&Options::default()).to_string();
//! assert!(text.contains("redirect to :15001"));
//! assert!(text.contains("table inet ambient-nat"));
//! ```
//!
//! # What becomes of open connections
//!
//! *When a pod joins*, connections that are open are not carried over to the proxy, and not all of them are ended. With the
//! rules the kernel begins to track connections. The next packet of one that is open counts as a new connection's; it is
//! redirected to a proxy that knows nothing of it, and the connection is reset: an idle one when it next says something. One
//! whose packet comes in the moment between the tracking's beginning and the rules, as happens under traffic, stays as it
//! is: it goes around the proxy, unencrypted and seen by no policy, until it ends. Whoever needs certainty restarts the pod.
//!
//! *While it is in*, every new TCP connection is redirected, exempt by what the plan says, or refused with a reset. Refused
//! is one whose addresses and ports are those of an earlier connection that the kernel still remembers as not redirected; a
//! client that takes another port, as it does unless told otherwise, does not see it.
//!
//! *When it leaves*, the proxy resets what the pod has open and closes its listeners, so that what comes is refused, while the
//! rules still stand ([`Proxy::cut`]); then they go, and with them all that the kernel remembers of connections in the namespace, so that
//! addresses and ports are free for what comes later, here or when the pod joins again. What was never redirected lives on.
//! New connections go as they would without a mesh.
//!
//! What is used of the kernel, and since when: `nat` chains in tables of family `inet` (5.2), `redir` (4.0), `ct zone` (4.12),
//! `reject` in tables of family `inet` (3.14), comments on tables (5.10; earlier kernels ignore them, so that 5.10 is the least), routing rules with a mask (2.6.19),
//! socket listings with marks (4.10). Asked of the running kernel by [`linux::preflight`].

mod enrolment;
pub mod linux;
#[doc(hidden)]
pub mod netlink;
pub mod plan;
pub mod pods;
pub mod probes;
mod render;
mod seam;
pub mod zds;

pub use enrolment::{Config, Enrolment, ExistingConnections, HandOver, HandOverError, KeptConnections};
pub use seam::{Announce, BoxFuture, Drained, PodSpec, Proxy, ProxyError};
