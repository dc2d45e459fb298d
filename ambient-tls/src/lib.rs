//! SPIFFE over rustls: what two workloads of a mesh need to prove to each other who they are.
//!
//! This crate opens no socket, runs no task, speaks no HTTP/2 and chooses no cryptography library by itself: it turns a
//! [`Credential`](ambient_core::Credential) and the roots of the trusted domains, which [`read_credential`] and [`read_roots`] read
//! from PEM, into rustls configurations. The one
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
//! Two workloads that meet in memory; what lies between them is the caller's:
//!
//! ```
//! # #[cfg(feature = "aws-lc-rs")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (key, mut params) = (rcgen::KeyPair::generate()?, rcgen::CertificateParams::default());
//! # params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
//! # let root = params.self_signed(&key)?.pem();
//! # let issuer = rcgen::Issuer::new(params, key);
//! # let issue = |account: &str| {
//! #     let (key, mut params) = (rcgen::KeyPair::generate()?, rcgen::CertificateParams::default());
//! #     let uri = format!("spiffe://cluster.local/ns/shop/sa/{account}");
//! #     params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into()?)];
//! #     Ok::<_, rcgen::Error>((params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
//! # };
//! # let ((cart_chain, cart_key), (stock_chain, stock_key)) = (issue("cart")?, issue("stock")?);
//! use std::{net::Ipv4Addr, sync::Arc};
//! use ambient_core::TrustBundles;
//! use ambient_tls::{
//!     Accepted, Handshake, Opened, Sealed, client_config, peer_id, read_credential, read_roots, rustls::pki_types::ServerName, server_config,
//! };
//!
//! // Certificates and keys in PEM, as they lie in files.
//! let provider = Arc::new(ambient_tls::provider());
//! let cart = read_credential(&provider, cart_chain.as_bytes(), cart_key.as_bytes())?;
//! let stock = read_credential(&provider, stock_chain.as_bytes(), stock_key.as_bytes())?;
//! let mut trust = TrustBundles::default();
//! for root in read_roots(root.as_bytes())? {
//!     trust.add("cluster.local".parse()?, root);
//! }
//!
//! // `cart` calls `stock` and nobody else, who lets anybody in whom the roots vouch for. No name is sent or compared.
//! let nobody = ServerName::from(std::net::IpAddr::from(Ipv4Addr::LOCALHOST));
//! let only_stock = Accepted::any_of([stock.identity.clone()]);
//! let mut near = Handshake::client(client_config(&provider, &cart, &trust, only_stock)?, nobody)?;
//! let mut far = Handshake::server(server_config(&provider, &stock, &trust, Accepted::AnyTrusted)?)?;
//! let (mut to_near, mut to_far) = (Vec::new(), Vec::new());
//! while !(near.advance(&mut to_near, &mut to_far)? & far.advance(&mut to_far, &mut to_near)?) {}
//! let (mut near, mut far) = (near.finish()?, far.finish()?);
//! assert_eq!(peer_id(&near.peer_certificates)?, *stock.identity.spiffe_id());
//! assert_eq!(peer_id(&far.peer_certificates)?, *cart.identity.spiffe_id());
//!
//! let mut sealed = Sealed::new();
//! near.records.seal(&b"hello"[..].into(), &mut sealed)?;
//! let mut bytes = sealed.pop_front().expect("a record was sealed");
//! let Opened::Record { data, .. } = far.records.open(&mut bytes, &mut sealed)? else { panic!("a whole record has come") };
//! assert_eq!(&bytes[data], b"hello");
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "aws-lc-rs"))]
//! # fn main() {}
//! ```
//!
//! [X.509-SVID standard]: https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md
#![forbid(unsafe_code)]

mod config;
mod configs;
mod credential;
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

// Part of the API: configurations, providers, errors and names.
pub use rustls;

pub use config::{ConfigError, client_config, server_config};
pub use configs::Configs;
pub use credential::{CredentialError, RootsError, read_credential, read_roots};
pub use crl::{Crl, CrlError, read_crls};
pub use error::{ChainError, PeerError, Revoked};
pub use handshake::{Established, Handshake};
pub use moment::Moment;
pub use peer::{Peer, peer_id};
#[doc(hidden)] // the words of this crate, for those beside it that read PEM
pub use pem::pem_in_words;
#[cfg(feature = "aws-lc-rs")]
pub use provider::{post_quantum_provider, provider};
pub use records::{Opened, Records, Sealed};
pub use trust::{Trust, TrustFault};
pub use verify::{Accepted, Role, Verifier};
