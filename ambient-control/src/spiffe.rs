//! Certificates from SPIRE, or from another agent of SPIFFE.
//!
//! SPIFFE gives identities and roots; where the state of the mesh comes from is another matter, and any
//! [`Source`](crate::Source) will do. There are two ways to ask, and both are an [`Issuer`](crate::Issuer):
//!
//! * [`DelegatedIdentity`]: for the many pods of a node, by SPIRE's Delegated Identity API;
//! * [`WorkloadApi`]: for this process alone, by the SPIFFE Workload API.
//!
//! Both are streams: the agent renews certificates by itself, and says so ([`Told`](crate::Told)). What it gives is believed
//! only where it is the identity that was asked for, keeps the X.509-SVID standard, has its own key, counts now, and leads to
//! the roots that the agent tells. What it takes back is withdrawn at once; what merely fails, such as an agent that is away,
//! takes nothing away, and what is valid stays so until its own end.
//!
//! Roots are kept apart for each trust domain, also for federated ones: a root of one vouches for no ID of another. Where a
//! [`MemoryConfig`] says so, they are remembered on disk for a restart while the agent is away; keys and certificates never are.
//!
//! ```no_run
//! use std::sync::Arc;
//! use ambient_control::{Issuer, spiffe::{DelegatedConfig, DelegatedIdentity, Socket}};
//!
//! # async fn f(provider: Arc<rustls::crypto::CryptoProvider>) -> Result<(), Box<dyn std::error::Error>> {
//! let socket = Socket::new("unix:///run/spire/agent-sockets/admin.sock")?;
//! let config = DelegatedConfig::new(socket, "example.org".parse()?, provider);
//! let spire = DelegatedIdentity::new(config)?;
//! let cart = spire.issue(&"spiffe://example.org/ns/shop/sa/cart".parse()?).await?;
//! println!("{} until {:?}", cart.identity, cart.not_after);
//! # Ok(()) }
//! ```

mod account;
mod bundles;
mod delegated;
mod desk;
#[cfg(test)]
mod fake;
mod kept;
mod socket;
mod subscription;
mod svid;
mod workload;

pub use crate::disk::{MemoryConfig, MemoryError};
pub use delegated::{DelegatedConfig, DelegatedIdentity, Describe, Selector, SelectorError, Subject};
pub use socket::{Socket, SocketError};
pub use workload::{WorkloadApi, WorkloadConfig};
