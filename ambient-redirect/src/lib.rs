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
//! Everything without this crate's driver, and with whatever proxy listens on the plan's ports:
//!
//! ```no_run
//! use ambient_redirect::{
//!     linux::{Inside, Mark, Netns, Watcher},
//!     plan::{Options, Plan},
//! };
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let namespace = Netns::open("/run/netns/cni-1f2e")?;
//! let (plan, mark) = (Plan::new(&Options::default()), Mark::new("node-1", &"2f4b1c3a".into()));
//! let mut inside = Inside::open(&namespace)?;
//! print!("{}", inside.dry_run(&plan, &mark)?); // what would change: + and -
//! let mut watcher = Watcher::new(&namespace)?;
//! inside.apply(&plan, &mark)?; // one transaction
//! watcher.changed().await?; // ours, or somebody's
//! if !inside.verify(&plan, &mark)?.is_empty() {
//!     inside.apply(&plan, &mark)?;
//! }
//! inside.clear()?; // nothing of ours is left
//! # Ok(())
//! # }
//! ```
//!
//! # What becomes of connections
//!
//! *A new pod*, whose namespace was handed over ([`HandOver::take`]) before anything ran in it, is refused until it is captured
//! and that is proven: what its processes open, and what is opened to it, gets a reset.
//!
//! *When a pod joins* that ran before, new connections go as before until the one transaction that puts the rules in force,
//! and through the proxy after it; none is refused, as the proxy listens by then. Connections that are open go on, idle ones
//! too: before anything is translated the kernel begins to track connections, and is told of every one that is open.
//! They are outside of the mesh, unencrypted and asked of no policy, until they end; they are listed
//! ([`pods::PodState::kept`]), and can be closed ([`KeptConnections::close`]), which the embedder does whose policies would
//! refuse them. By choice they are all reset instead ([`ExistingConnections`]). Not kept is one whose handshake loses a packet
//! in that very moment: its sender is refused.
//!
//! *While it is in*, every new TCP connection is redirected, exempt by what the plan says, or refused with a reset. Refused
//! is one whose addresses and ports are those of an earlier connection that the kernel still remembers as not redirected; a
//! client that takes another port, as it does unless told otherwise, does not see it. While the proxy is away its ports
//! refuse. Where rules were damaged they are put back at once, and connections that went around the proxy meanwhile are reset
//! and counted. Where they cannot be put back, or the proof fails, a table of its own refuses everything but what was captured
//! or kept before ([`Config::open_when_unproven`] has it go around instead).
//!
//! *When it leaves*, the announcement is taken back first; then, in one transaction, nothing new is redirected, and goes as it
//! would without a mesh; none is refused, as the proxy listens until nothing has come for 100 ms. What is captured goes on, as
//! what translates it stays, until it ends or the time is up ([`Config::drain`]); then the proxy resets what is left, and all of
//! ours goes, with all that the kernel remembers of connections in the namespace, so that addresses and ports are free for
//! what comes later. What was never redirected lives on. A pod that is wanted again meanwhile stays.
//!
//! What is used of the kernel, and since when: `nat` chains in tables of family `inet` (5.2), `redir` (4.0), `ct zone` (4.12),
//! `reject` in tables of family `inet` (3.14), comments on tables (5.10; earlier kernels ignore them, so that 5.10 is the least), routing rules with a mask (2.6.19),
//! socket listings with marks (4.10), ctnetlink with masks of marks (older than all of these), and to close connections SOCK_DESTROY (4.5; where a kernel is
//! built without INET_DIAG_DESTROY, they are forgotten instead, and reset at their next packet). Asked of the running kernel by [`linux::preflight`].

mod enrolment;
pub mod find;
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
