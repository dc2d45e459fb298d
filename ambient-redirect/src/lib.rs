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
//! What is used of the kernel, and since when: `nat` chains in tables of family `inet` (5.2), `redir` (4.0), `ct zone` (4.12),
//! comments on tables (5.10; earlier kernels ignore them, so that 5.10 is the least), routing rules with a mask (2.6.19),
//! socket listings with marks (4.10). Asked of the running kernel by [`linux::preflight`].

mod enrolment;
pub mod linux;
#[doc(hidden)]
pub mod netlink;
pub mod plan;
pub mod pods;
mod render;
mod seam;

pub use enrolment::{Config, Enrolment};
pub use seam::{Announce, BoxFuture, PodSpec, Proxy, ProxyError};
