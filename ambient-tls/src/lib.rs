//! SPIFFE over rustls: what two workloads of a mesh need to prove to each other who they are.
//!
//! This crate opens no socket, runs no task, speaks no HTTP/2 and chooses no cryptography library by itself: it turns a
//! [`Credential`](ambient_core::Credential) and the roots of the trusted domains into rustls configurations. The one
//! entry type is [`Verifier`], the question "who may be at the other end", asked of the [`Trust`] of one moment;
//! [`client_config`] and [`server_config`] are its short forms, and [`Configs`] makes configurations for many handshakes.
//!
//! The feature `aws-lc-rs`, on by default, adds `provider()` and `post_quantum_provider()`, rustls providers with the mesh's
//! cipher suites. Without it no cryptography library is among the dependencies, and any provider of rustls can be given. The crate is for
//! Linux, and needs Rust 1.89 or later.
//!
//! The rules, from the [X.509-SVID standard] and HBONE's practice:
//!
//! - TLS 1.3 only, ALPN `h2`, no server name, no resumption (a resumed session would skip the check of the certificate);
//! - both sides present a certificate; its leaf bears exactly one URI SAN, and that is a SPIFFE ID;
//! - a chain is verified only against the roots of the trust domain that this ID names;
//! - an authority between root and leaf that bears a SPIFFE ID (X.509-SVID 3.2) vouches for that ID's trust domain alone.
//!   This is how an intermediate is held to its domain: constraints on URI names (RFC 5280 4.2.1.10), which would say the
//!   same, speak of hosts that are DNS names, and webpki, ztunnel's verifier as well as ours, refuses every chain that has
//!   them; those on DNS names and addresses it enforces;
//! - the leaf's extended key usage, where it is present, allows the role the peer plays;
//! - no certificate of it, whichever the peer presents, is listed in a CRL of that domain which its issuer has signed:
//!   [`Trust`] says what is decided where CRLs are old, unreadable or silent;
//! - what the caller accepts is compared as a whole ID, never as a pattern; [`Accepted::AnyWorkload`] demands the form
//!   `spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
//!
//! A connection outlives the handshake that made it. [`Trust::peer`] gives what is to be remembered of a verified peer, and
//! [`Trust::revoked`] answers for it whenever CRLs have changed: the end of its certificate is [`Peer::not_after`].
//!
//! [`Handshake`] and [`Records`] are the two parts of a connection for those who do its I/O: rustls does the handshake and makes the
//! keys, [`Records`] open what comes where it lies.
//!
//! Why a peer was refused is a [`PeerError`], which [`PeerError::of`] finds again in what rustls or an I/O error carries.
//!
//! ```
//! # #[cfg(feature = "aws-lc-rs")] {
//! use std::sync::Arc;
//! use ambient_core::TrustBundles;
//! use ambient_tls::{Accepted, Trust, Verifier};
//!
//! let provider = Arc::new(ambient_tls::provider());
//! let trust = Arc::new(Trust::new(&provider, &TrustBundles::default()));
//! let stock = "spiffe://cluster.local/ns/shop/sa/stock".parse::<ambient_core::Identity>().expect("well formed");
//! let verifier = Verifier::new(&trust, Accepted::any_of([stock]));
//! // No root of any domain is trusted yet: whatever certificate comes is refused.
//! assert!(verifier.verify(&[], ambient_tls::Role::Server).is_err());
//! # }
//! ```
//!
//! [X.509-SVID standard]: https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md
#![forbid(unsafe_code)]

mod config;
mod configs;
mod crl;
mod error;
mod handshake;
mod moment;
mod peer;
mod pem;
#[cfg(feature = "aws-lc-rs")]
mod provider;
mod records;
mod signed;
#[cfg(test)]
mod test_ca;
mod trust;
mod verify;

pub use config::{ConfigError, client_config, server_config};
pub use configs::Configs;
pub use crl::{Crl, CrlError, read_crls};
pub use error::{ChainError, PeerError, Revoked};
pub use handshake::{Established, Handshake};
pub use moment::Moment;
pub use peer::{Peer, peer_id};
pub use pem::pem_in_words;
#[cfg(feature = "aws-lc-rs")]
pub use provider::{post_quantum_provider, provider};
pub use records::{Opened, Records, Sealed};
pub use trust::{Trust, TrustFault};
pub use verify::{Accepted, Role, Verifier};
