//! May this peer talk to this workload, and which policy says so: Istio's L4 authorization as a pure engine.
//!
//! This crate does no I/O, reads no clock, spawns nothing, logs nothing and knows no protobuf: who the peer is was
//! proven elsewhere, and policies are given as values. It never lets through what it cannot judge: a policy that cannot
//! be read or has not come refuses what it applies to. The one entry type is [`Policies`], an immutable snapshot;
//! [`Policies::apply`] makes the next one, and [`decide()`] answers from it.
//!
//! With the feature `kubernetes` the module `kubernetes` reads AuthorizationPolicy and PeerAuthentication resources
//! into policies.
//!
//! ```
//! use ambient_authz::{decide, policy::Update, Action, Conn, Match, Policies, Policy, Rule, Scope, StringMatch};
//! use ambient_core::{Identity, Workload};
//!
//! let from_cart = Match {
//!     principals: vec![StringMatch::Exact("cluster.local/ns/shop/sa/cart".into())],
//!     ..Match::default()
//! };
//! let policy = Policy {
//!     key: "shop/stock-from-cart".into(),
//!     namespace: "shop".into(),
//!     scope: Scope::Namespace,
//!     action: Action::Allow,
//!     rules: vec![Rule { clauses: vec![from_cart.into()] }],
//!     dry_run: false,
//! };
//! let policies = Policies::default().apply([Update::Set(policy.into())]);
//!
//! let stock = Workload::new("cluster//Pod/shop/stock-0", "shop", "stock-0");
//! let cart: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse()?;
//! let mut conn = Conn { peer: Some(&cart), source: "10.0.1.2".parse()?, destination: "10.0.2.2:8080".parse()? };
//! assert_eq!(decide(&policies, &stock, &conn).to_string(), "allowed by: shop/stock-from-cart");
//!
//! conn.peer = None;
//! assert_eq!(decide(&policies, &stock, &conn).to_string(), "allow policies exist, but none allowed");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod policy;

mod decide;
mod policies;

pub use decide::{Allowed, Conn, Decision, Denial, DryRun, decide, decide_again, dry_run};
pub use policies::Policies;
pub use policy::{Action, Clause, Match, Policy, Rule, Scope, ServiceAccount, StringMatch};
