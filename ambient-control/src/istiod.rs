//! istiod as the control plane: state by delta xDS, certificates by its certificate service.
//!
//! The two are apart, and either may be used without the other:
//!
//! * [`State`] is a [`Source`](crate::Source): workloads and services (`istio.workload.Address`) and policies
//!   (`istio.security.Authorization`), all of the mesh or what is asked for. It acknowledges what it can read and refuses the
//!   rest by name; what was known of a refused resource stays in force.
//! * [`Certificates`] is an [`Issuer`](crate::Issuer).
//!
//! [`Reports`] tells a control plane of this project's own ([`serve`](crate)) what a node has captured; istiod knows no such
//! thing, and learns it from a pod's annotation.
//!
//! All reach it through an [`Endpoint`]: TLS 1.3, roots and token read anew whenever they are used, since both files are
//! replaced while the process runs. Of such a control plane a node becomes a [`Membership`] first: its token is exchanged for
//! a certificate, which the endpoint shows from then on.
//!
//! ```no_run
//! use std::sync::Arc;
//! use ambient_control::{Source, istiod::{Asker, Endpoint, State, StateConfig}};
//!
//! # async fn f(provider: Arc<rustls::crypto::CryptoProvider>) -> Result<(), Box<dyn std::error::Error>> {
//! let endpoint = Endpoint::new("https://istiod.istio-system.svc:15012", provider);
//! let asker = Asker { node: "worker-1".into(), ..Asker::default() };
//! let mut state = State::connect(StateConfig::new(endpoint, asker))?;
//! while let Some(batch) = state.next().await {
//!     println!("{} changes; whole: {}", batch.changes.len(), batch.synced);
//! }
//! # Ok(()) }
//! ```

mod asker;
mod dial;
#[cfg(test)]
pub(crate) mod fake;
mod files;
mod identity;
mod join;
mod keeper;
mod kept_roots;
mod memory;
pub(crate) mod pieces;
pub(crate) mod read;
mod reports;
pub(crate) mod session;
mod state;
mod transport;

/// What of it the fuzz targets reach.
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz {
    pub(crate) use super::{identity::fuzz_answer as answer, memory::fuzz as memory, pieces::fuzz as pieces};
}

#[cfg(feature = "serve")]
pub(crate) use identity::{dates, now};
#[cfg(feature = "serve")]
pub(crate) use join::{is_node_name, node_id, node_of};
#[cfg(feature = "serve")]
pub(crate) use read::{POD, REFUSAL, WHY, brief};
#[cfg(feature = "serve")]
pub(crate) use session::Kind;

pub use crate::disk::{MemoryConfig, MemoryError};
pub use asker::{Asker, Metadata};
pub use files::Files;
pub use identity::{Certificates, CertificatesConfig};
pub use join::{KeepNode, Membership, MembershipConfig, NodeCredential};
pub use reports::{ReportError, Reports};
pub use state::{ConnectError, State, StateConfig};
pub use transport::{Endpoint, EndpointError, Roots, Token};
