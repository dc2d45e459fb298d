//! The node proxy of an ambient service mesh, as a library.
//!
//! It composes the rooms below it and decides nothing itself: where a connection goes is said by
//! [`ambient_core::route`], whether it may by [`ambient_authz::decide`], how it is carried by [`ambient_hbone`], how it
//! is captured by [`ambient_redirect`], and what the mesh is by a [`Source`](ambient_control::Source). It reads no
//! flags and no environment, and installs nothing process-wide but, when a binary asks for it, [`telemetry::log`].
//!
//! The one entry type is [`Node`]: [`Node::builder`] composes it of what a [`Config`] says, a source of state and an issuer
//! of certificates, and whatever else is to be other than by default; then [`Node::spawn`] or [`Node::run`] it.
//!
//! ```no_run
//! use std::sync::Arc;
//! use ambient_control::{ca::DirectoryCa, manifests::{self, Manifests, Status}};
//! use ambient_node::{AnnounceInDirectory, Config, Node};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let config = Config::new("node-1", "/run/netns");
//! let issuer = DirectoryCa::open("/etc/ambient/ca", config.trust_domain.clone(), DirectoryCa::DEFAULT_TTL)?;
//! let node = Node::builder(config)
//!     .source(Manifests::open(manifests::Config::new("/etc/ambient/manifests")).await?)
//!     .issuer(issuer)
//!     .announce(Arc::new(AnnounceInDirectory::new(Status::open("/etc/ambient/manifests", "node-1")?)))
//!     .build()
//!     .await?;
//! let running = node.spawn();
//! running.ready().await;
//! tokio::signal::ctrl_c().await?;
//! running.drain();
//! running.join().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Pods need not be captured by the node: [`Builder::pod`] serves one whose connections a [`Listener`] of the embedder's brings.
//!
//! It is for Linux, and needs Rust 1.89 or later and a runtime of tokio with time and I/O (`enable_all`). It has no features; those of
//! `ambient-control` that are not needed here (`local-xds`, `spiffe`, `serve`) are turned on by depending on that crate.
#![forbid(unsafe_code)]

mod accept;
mod acks;
mod admin;
mod afar;
mod announce;
mod assumed;
mod bounds;
mod builder;
mod busy_poll;
mod certificates;
mod clock;
mod cni;
mod config;
mod demand;
mod dial;
mod dns;
mod drain;
mod embed;
mod entropy;
mod feed;
mod handle;
mod host_probes;
mod inbound;
mod inner;
mod kept;
mod local;
mod lookup;
mod meant;
mod node;
mod outbound;
mod outliers;
mod plaintext;
mod pod;
mod pods;
mod policies;
mod readiness;
mod session;
mod shares;
mod slices;
mod state;
mod supervise;
mod tasks;
pub mod telemetry;
mod text;
mod trust;
mod unread;
mod watch;
mod workers;
mod zds;

pub use ambient_redirect::{Announce, ExistingConnections, PodSpec};
pub use announce::{AnnounceInDirectory, AnnounceNothing, AnnounceToControl};
pub use builder::{Builder, Page, Unset};
pub use certificates::{KeysError, NodeKeys};
pub use config::{Assumed, Config, ControlPlane, KeepAlive, Keys, OwnPod, Sources, Vouchers, workers_of};
pub use embed::{Arrival, Kind, Listener};
pub use handle::Running;
pub use node::{Ground, Node, StartError};
pub use tasks::RunError;
pub use zds::{Enrol, EnrolConfig};

pub(crate) use node::Shared;

/// The DNS servers that a `resolv.conf` names, each on port 53.
pub fn nameservers(resolv_conf: &str) -> Vec<std::net::SocketAddr> {
    let named = ambient_dns::resolv::parse(resolv_conf).nameservers;
    named.into_iter().map(|ip| std::net::SocketAddr::new(ip, 53)).collect()
}
