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
//! Everything without this crate's driver, and with whatever proxy listens on the plan's ports. It is for a namespace in which nothing runs
//! yet: connections that are open are reset when the plan is applied, as only [`Enrolment`] has them go on.
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
//! # Whose a namespace is
//!
//! A pod's is the one that has all of its addresses, and the only one that has any. Processes with the right to may give themselves any
//! address, so that it must be read after the pod was told to have it: by then its network plugin has given it to its own namespace, and
//! whoever else claims it is the second, who leaves both without. A pairing that stands is never questioned. When a namespace goes that was
//! a pod's, or had an address of a pod that has none yet, and the pod is meant still, none that was there beside it gets the pod while
//! that has the same addresses ([`pods::Unpaired::Doubtful`]); a namespace whose network is taken down, so that it has no address any more,
//! counts as gone. Nor does any get a pod whose address is in a namespace that a pod of the same address has, until it has let that go. What
//! was there as a namespace went is known to this process alone, and not to the next. Where processes can
//! be seen ([`Config::proc`]), those of a pod tell its own from others, and a namespace in which those of another run is never given away,
//! whether or not that other is in the mesh. Where a plugin hands a namespace over ([`HandOver::take`]) nothing is asked of addresses.
//!
//! # What becomes of connections
//!
//! *A new pod*, in which nothing has run, is refused until it is captured and that is proven: what its processes open, and what
//! is opened to it, gets a reset. A pod is new if its namespace was handed over ([`HandOver::take`]), or if its status says so when it
//! is found ([`PodSpec::has_run`]) and no TCP socket is in its namespace; if one is, the status is late. All that a kubelet has to
//! do for a pod that is found by its status is to start its containers only once it is announced.
//!
//! *When a pod joins* that ran before, new connections go as before until the one transaction that puts the rules in force,
//! and through the proxy after it; none is refused, as the proxy listens by then. Connections that are open go on, idle ones
//! too: before anything is translated the kernel begins to track connections, and is told of every one that is open.
//! They are outside of the mesh, unencrypted and asked of no policy, until they end; they are listed
//! ([`pods::PodState::kept`]), and can be closed ([`KeptConnections::close`]), which the embedder does whose policies would
//! refuse them. By choice they are all reset instead ([`ExistingConnections`]). Kept as well is one that is being opened in that
//! moment, though a packet of its handshake be lost and come again later. What the kernel remembers of connections that ended
//! before is forgotten. What was opened to a pod that had asked to be left alone ([`PodSpec::capture`]) is open in the same sense when it
//! asks that no longer.
//!
//! *While it is in*, every new TCP connection is redirected, exempt by what the plan says, or refused with a reset. Refused
//! is one whose addresses and ports are those of a kept connection that has ended, until that is seen at the next verification;
//! a client that takes another port, as it does unless told otherwise, does not see it. While the proxy is away its ports
//! refuse. Where a process of the pod listens on one of them meanwhile, what is redirected there would end at it: the pod is refused as soon as that
//! is found, which is when the proxy cannot listen. Where rules were damaged they are put back at once, and connections that went around the proxy meanwhile are reset
//! and counted. Where they cannot be put back, or the proof fails, a table of its own refuses everything but what was captured
//! or kept before ([`Config::open_when_unproven`] has it go around instead).
//!
//! Others may have rules in the pod's namespace too, and those may be asked before ours. What they translate does not reach the
//! proxy: where it would leave the pod by another device than the loopback one, or come to another of its ports, it is refused, and
//! where it goes to a loopback address it goes on ([`plan::Options::yields`] has all of it go on). Their rules are never touched; which
//! they are is told ([`linux::Stranger`], [`pods::PodState::strangers`]). So is told which of their routing rules, or routes of theirs in the
//! proxy's table, take some of the answers that go back to the proxy, as those from one port or to one network: nothing of that leaves
//! unseen, but whoever waits for such an answer waits in vain. Where all answers are taken the capture is not proven.
//!
//! What is captured goes no further than to the proxy in the pod's own namespace. If it is asked for
//! ([`plan::Options::loopback_segments`]) it is cut into segments as large as the loopback device takes them, where nothing of
//! the pod's but answers to probes goes around the proxy, of each family by itself: a routing rule and a table of ours for what the pod sends by TCP, which capture
//! nothing, and are no part of what is proven.
//!
//! What an earlier process has announced ([`Announce::announced`]) is *in* too: whatever is left of its capture is put right
//! before anything else is done, and what went around meanwhile is reset. Where that does not come about the pod is refused, and
//! what was announced is taken back after half a minute.
//!
//! *When it leaves*, the announcement is taken back first; then, in one transaction, nothing new is redirected, and goes as it
//! would without a mesh; none is refused, as the proxy listens until nothing has come for 100 ms. What is captured goes on, as
//! what translates it stays, until it ends or the time is up ([`Config::drain`]); then the proxy resets what is left, and all of
//! ours goes, with all that the kernel remembers of connections in the namespace, so that addresses and ports are free for
//! what comes later. What was never redirected lives on. A pod that is wanted again meanwhile stays.
//!
//! # What is used of the kernel
//!
//! The crate is for Linux alone, and needs Rust 1.89 or later and a runtime of tokio with time and I/O. Of the kernel it uses nothing newer
//! than 5.10. [`linux::preflight`] asks the running kernel for each of these, in a namespace made for the
//! question, and names what is missing:
//!
//! | part | since | from |
//! |---|---|---|
//! | tables of family inet | 3.14 | nf_tables, CONFIG_NF_TABLES_INET |
//! | filter chains | 3.13 | nf_tables |
//! | nat chains in tables of family inet | 5.2 | nft_chain_nat |
//! | route chains in tables of family inet | 5.2 | nf_tables |
//! | meta, payload, bitwise and cmp | 3.14 | nf_tables |
//! | counter | 3.13 | nft_counter, later nf_tables |
//! | redir in tables of family inet | 5.2 | nft_redir |
//! | ct status and ct mark | 3.14 | nft_ct, nf_conntrack |
//! | ct zone | 4.12 | nft_ct, CONFIG_NF_CONNTRACK_ZONES |
//! | reject with a TCP reset | 3.14 | nft_reject_inet |
//! | IPv4 routing rules by masked mark | 2.6.19 | CONFIG_IP_MULTIPLE_TABLES |
//! | IPv6 routing rules by masked mark | 2.6.19 | CONFIG_IPV6_MULTIPLE_TABLES |
//! | IPv4 routes in tables of their own | 2.6.19 | CONFIG_IP_MULTIPLE_TABLES |
//! | IPv6 routes in tables of their own | 2.6.19 | CONFIG_IPV6_MULTIPLE_TABLES |
//! | listings of what conntrack knows | 2.6.14 | nf_conntrack_netlink |
//! | listings of TCP sockets with marks | 4.10 | inet_diag, tcp_diag |
//! | listings of UDP sockets with marks | 4.10 | inet_diag, udp_diag |
//!
//! Asked by the sockets themselves: SO_MARK (2.6.25), IP_TRANSPARENT (2.6.28) and IPV6_TRANSPARENT (2.6.37), SO_ORIGINAL_DST (2.4)
//! and its like for IPv6 (3.7), IP_BIND_ADDRESS_NO_PORT (4.2), SO_COOKIE (4.12), setns (3.0); where ports are shared SO_REUSEPORT (3.9) and
//! SO_ATTACH_REUSEPORT_CBPF (4.5); of a namespace that comes as a descriptor NS_GET_NSTYPE (4.11). Every kernel that has the above has: transactions
//! of nf_tables that name the generation they are meant for (4.12), the events of nf_tables (3.14) and of routing, and routes that
//! are asked for by a mark, a user (4.10), a protocol and ports (4.18), and rules of routing for a protocol (4.17).
//!
//! What a kernel may lack: the counters of bytes sent in what it tells of a socket (4.19): without them who opened a connection is told
//! by its port where conntrack has not seen it begin; the words of NETLINK_EXT_ACK in errors (4.12); comments on tables (5.10), which hold the mark of the
//! node and the pod: an earlier kernel drops them, and then takes our own tables for somebody else's, so that 5.10 is the
//! least. They are what `nft` writes and reads as a table's `comment` since 0.9.7, and nothing else is written beside a table, a
//! chain or a rule, so that no `nft` meets what it cannot read. SOCK_DESTROY (4.5, INET_DIAG_DESTROY): without it connections are
//! forgotten rather than closed, and reset at their next packet.
//!
//! # How a capture is watched
//!
//! A capture is verified whenever the kernel tells of a change in the pod's namespace (nf_tables, routing rules, routes, and the
//! devices and addresses that take routes along), when a proxy in the same process says that a listener has ended, and every
//! [`Config::verify_every`]: the namespace is the one that was paired, tables, chains and rules are as they were put there, routing
//! rules and routes too, what answers the proxy goes back to it as the kernel routes it, whatever rules others have, and the listeners
//! are the proxy's own. What the kernel tells of is listed again only if it has told of
//! something, or lost count, since it was listed last, and every second [`Config::prove_every`]. Listeners, of which it does not
//! tell, are looked at each time: those of this process by their descriptors, others' as the kernel lists them. Connections prove a capture
//! when it begins, after a repair, when the kernel has told of a change (which may be somebody else's rules, in the way of ours),
//! and every [`Config::prove_every`], in turn by IPv4 and by IPv6 ([`linux::Proof`]). What differs is put back at once;
//! [`pods::Repair`] says until when it held, when that was noticed and when it was proven again. What went
//! around meanwhile is looked for right after the rules are back: connections that stand between the pod's processes and
//! elsewhere, and have none of the proxy's sockets for their other end. They are counted and reset. Not seen are connections
//! that began and ended meanwhile, datagrams, and DNS.

mod enrolment;
pub mod find;
mod later;
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
