//! SPIFFE over rustls: what two workloads of a mesh need to prove to each other who they are.
//!
//! This crate opens no socket, runs no task, speaks no HTTP/2 and chooses no cryptography library by itself: it turns a
//! [`Credential`](ambient_core::Credential) and the roots of the trusted domains into rustls configurations. The one
//! entry type is [`Verifier`], the question "who may be at the other end"; [`client_config`] and [`server_config`] are
//! its short forms.
//!
//! The rules, from the [X.509-SVID standard] and HBONE's practice:
//!
//! - TLS 1.3 only, ALPN `h2`, no server name, no resumption (a resumed session would skip the check of the certificate);
//! - both sides present a certificate; its leaf bears exactly one URI SAN, and that is a SPIFFE ID;
//! - a chain is verified only against the roots of the trust domain that this ID names;
//! - the leaf's extended key usage, where it is present, allows the role the peer plays;
//! - what the caller accepts is compared as a whole ID, never as a pattern.
//!
//! Why a peer was refused is a [`PeerError`], which [`PeerError::of`] finds again in what rustls or an I/O error carries.
//!
//! ```
//! # #[cfg(feature = "aws-lc-rs")] {
//! use std::sync::Arc;
//! use ambient_core::TrustBundles;
//! use ambient_tls::{Accepted, Verifier};
//!
//! let provider = Arc::new(ambient_tls::provider());
//! let trust = Arc::new(TrustBundles::default());
//! let stock = "spiffe://cluster.local/ns/shop/sa/stock".parse::<ambient_core::Identity>().expect("well formed");
//! let verifier = Verifier::new(&provider, &trust, Accepted::any_of([stock]));
//! // No root of any domain is trusted yet: whatever certificate comes is refused.
//! assert!(verifier.verify(&[], ambient_tls::Role::Server).is_err());
//! # }
//! ```
//!
//! [X.509-SVID standard]: https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md
#![forbid(unsafe_code)]

mod config;
mod error;
mod peer;
#[cfg(feature = "aws-lc-rs")]
mod provider;
mod verify;

pub use config::{ConfigError, client_config, server_config};
pub use error::{ChainError, PeerError};
pub use peer::peer_id;
#[cfg(feature = "aws-lc-rs")]
pub use provider::provider;
pub use verify::{Accepted, Role, Verifier};
