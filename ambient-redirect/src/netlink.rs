//! The kernel's netlink protocols, as much of them as a pod's redirection and its tests need: links, addresses, routes
//! and rules ([`Routing`]), nf_tables ([`Nftables`]), sockets ([`Sockets`]), tracked connections
//! ([`Conntrack`]) and events ([`Events`]).
//!
//! Hidden from the documentation: a tool of this workspace, not a promise to others.
//!
//! Each of the five owns one blocking netlink socket, opened in the network namespace in which the calling *thread* is
//! at that moment; it stays in that namespace, whichever thread uses it later. Every wait ends after [`TIMEOUT`].
//!
//! ```no_run
//! use ambient_redirect::netlink::{Batch, BaseChain, Expr, Family, Nftables, Route, Routing};
//!
//! # fn example(peer_namespace: std::os::fd::OwnedFd) -> Result<(), ambient_redirect::netlink::Error> {
//! // Links, addresses, routes, rules.
//! let mut routing = Routing::open()?;
//! routing.add_veth("web", "eth0", Some(std::os::fd::AsFd::as_fd(&peer_namespace)))?; // the peer is born in there
//! let web = routing.link("web")?.index;
//! routing.add_address(web, "10.0.0.1".parse().expect("an address"), 32)?;            // IPv6: without duplicate detection
//! routing.set_up(web)?;
//! routing.add_route(&Route::to("10.0.0.2/32".parse().expect("a network")).dev(web))?;
//! routing.add_route(&Route::to("0.0.0.0/0".parse().expect("a network")).via("169.254.1.1".parse().expect("an address")).dev(web).onlink())?;
//!
//! // nf_tables: one batch is one transaction. Here: dnat what comes for 10.96.0.10:80 to 10.0.0.2:8080.
//! let mut batch = Batch::default();
//! batch.add_table(Family::Inet, "services", b"");
//! batch.add_base_chain(Family::Inet, "services", "prerouting", &BaseChain::nat_prerouting());
//! let mut rule = Expr::tcp_to("10.96.0.10".parse().expect("an address"), 80);
//! rule.extend(Expr::dnat("10.0.0.2:8080".parse().expect("an address")));
//! batch.add_rule(Family::Inet, "services", "prerouting", &rule);
//! Nftables::open()?.commit(batch, None)?;
//! # Ok(())
//! # }
//! ```
#![allow(missing_docs, reason = "names and values here are the kernel's; what is not obvious is documented")]

mod codec;
mod conntrack;
mod diag;
mod error;
mod events;
#[cfg(any(test, feature = "fuzz"))]
#[allow(unreachable_pub, reason = "for the fuzz target alone")]
pub mod fuzz;
mod nftables;
mod page;
mod redirected;
mod routing;
mod socket;

pub use conntrack::{Conntrack, Entry, KnownBy, Refused, STATUS_ANSWERED, STATUS_DNAT, STATUS_SNAT, Tracked};
pub(crate) use diag::Asked;
pub use diag::{Connection, Listener, Progress, Sockets, Transport};
pub use error::Error;
pub use events::{Events, Notice};
pub use nftables::{
    BaseChain, Batch, Chain, ChainKind, Cmp, CtKey, Does, Expr, Family, Generation, Hook, MetaKey, Nftables, PayloadBase, Reading,
    Rule as NftRule, Set, SetKey, Table, Verdict,
};
pub(crate) use page::Pages;
pub use redirected::Redirected;
#[cfg(test)]
pub(crate) use routing::kernel;
pub use routing::{Address, LeadsTo, Link, Packet, Policy, Route, RouteKind, Routing, Rule};
pub(crate) use routing::{LOOPBACK, MAIN, TCP};

/// How long any answer of the kernel is waited for.
pub const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);
