//! The node proxy of an ambient service mesh, as a library.
//!
//! It composes the rooms below it and decides nothing itself: where a connection goes is said by
//! [`ambient_core::route`], whether it may by [`ambient_authz::decide`], how it is carried by [`ambient_hbone`], how it
//! is captured by [`ambient_redirect`], and what the mesh is by a [`Source`](ambient_control::Source). It reads no
//! flags and no environment, and installs nothing process-wide but, when a binary asks for it, [`telemetry::log`].
//!
//! The one entry type is [`Node`]: give it the [`Ground`] that a [`Config`] describes, a source of state, an issuer of certificates, and something
//! that announces which pods are captured; then [`Node::run`] it.
//!
//! ```no_run
//! use std::sync::Arc;
//! use ambient_control::{ca::DirectoryCa, manifests::{Manifests, Status}};
//! use ambient_node::{AnnounceInDirectory, Config, Ground, Node};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let config = Config::new("node-1", "/run/netns");
//! let source = Manifests::open(ambient_control::manifests::Config::new("/etc/ambient/manifests")).await?;
//! let issuer = DirectoryCa::open("/etc/ambient/ca", config.trust_domain.clone(), DirectoryCa::DEFAULT_TTL)?;
//! let announce = AnnounceInDirectory::new(Status::open("/etc/ambient/manifests", "node-1")?);
//! let node = Node::start(Ground::prepare(config).await?, Box::new(source), Arc::new(issuer), Arc::new(announce)).await?;
//! node.run(async { tokio::signal::ctrl_c().await.unwrap_or_default() }).await?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod accept;
mod admin;
mod announce;
mod bounds;
mod certificates;
mod clock;
mod config;
mod dial;
mod dns;
mod drain;
mod entropy;
mod feed;
mod host_probes;
mod inbound;
mod inner;
mod kept;
mod local;
mod lookup;
mod node;
mod outbound;
mod outliers;
mod plaintext;
mod pod;
mod pods;
mod policies;
mod session;
mod state;
mod supervise;
pub mod telemetry;
mod text;
mod unread;
mod watch;
mod workers;
mod zds;

pub use ambient_redirect::ExistingConnections;
pub use announce::{AnnounceInDirectory, AnnounceNothing, AnnounceToControl};
pub use config::Config;
pub use node::{Ground, Node, RunError, StartError};
pub use zds::{Enrol, EnrolConfig};

pub(crate) use node::Shared;

/// The DNS servers that a `resolv.conf` names, each on port 53.
pub fn nameservers(resolv_conf: &str) -> Vec<std::net::SocketAddr> {
    let named = ambient_dns::resolv::parse(resolv_conf).nameservers;
    named.into_iter().map(|ip| std::net::SocketAddr::new(ip, 53)).collect()
}
