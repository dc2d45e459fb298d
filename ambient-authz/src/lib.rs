//! May this peer talk to this workload, and which policy says so: Istio's L4 authorization as a pure engine.
//!
//! This crate does no I/O, reads no clock, spawns nothing, logs nothing and knows no protobuf: who the peer is was
//! proven elsewhere, and policies are given as values. It never lets through what it cannot judge: a policy that cannot
//! be read or has not come refuses what it applies to. The one entry type is [`Policies`], an immutable snapshot;
//! [`Policies::apply`] makes the next one, and [`decide()`] answers from it.
//!
//! # Cost
//!
//! A decision costs a few look-ups, however many policies there are, takes no lock and allocates nothing; see [`decide()`].
//! A change costs what it changes, and [`Policies::advance`] says whose decisions it can turn, so that live connections can be
//! [decided again](decide_again()). Who speaks is looked up
//! among the names of the policies once, with [`Policies::resolve`], and stands in a [`Peer`]. What a workload lists is
//! looked up at each decision, unless it stands in a [`Target`]. Where there are hundreds of thousands of rules that one connection
//! nearly matches, a peer keeps which of them its names let through.
//!
//! # Kubernetes
//!
//! With the feature `kubernetes` the module `kubernetes` reads AuthorizationPolicy and PeerAuthentication resources
//! into policies. It is off by default.
//!
//! # Platform
//!
//! The crate is checked on Linux and on `wasm32-unknown-unknown`, and needs Rust 1.89 or later.
//!
//! ```
//! use ambient_authz::{decide, policy::Update, Action, Conn, Match, Peer, Policies, Policy, Rule, Scope, StringMatch};
//! use ambient_core::{Identity, Workload};
//!
//! let from_cart = Match {
//!     principals: vec![StringMatch::Exact("cluster.local/ns/shop/sa/cart".into())],
//!     ..Match::default()
//! };
//! let mut policy = Policy::new("shop/stock-from-cart", "shop", Scope::Namespace, Action::Allow);
//! policy.rules.push(Rule { clauses: vec![from_cart.into()] });
//! let policies = Policies::default().apply([Update::Set(policy.into())]);
//!
//! let stock = Workload::new("cluster//Pod/shop/stock-0", "shop", "stock-0");
//! let cart: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse()?;
//! let cart = policies.resolve(Some(&cart)); // once for all connections of a peer
//! let mut conn = Conn { peer: &cart, source: "10.0.1.2".parse()?, destination: "10.0.2.2:8080".parse()? };
//! assert_eq!(decide(&policies, &stock, &conn).to_string(), "allowed by: shop/stock-from-cart");
//!
//! let somebody = Peer::plaintext();
//! conn.peer = &somebody;
//! assert_eq!(decide(&policies, &stock, &conn).to_string(), "allow policies exist, but none allowed");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

pub mod explain;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod policy;
pub mod wire;

mod decide;
mod index;
mod peer;
mod policies;
mod target;
mod trust;

pub use decide::{Allowed, Conn, Decision, Denial, DryRun, decide, decide_again, dry_run};
pub use explain::{Explanation, explain, explain_all};
pub use peer::Peer;
pub use policies::{Affected, Policies};
pub use policy::{Action, Clause, Match, Policy, Rule, Scope, ServiceAccount, StringMatch};
pub use target::Target;
