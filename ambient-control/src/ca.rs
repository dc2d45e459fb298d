//! A certificate authority in a directory, **for one machine under one administrator**.
//!
//! Whoever can read the directory is the authority: every process that opens it signs with the root key itself. That is
//! right where all nodes of a mesh run on one machine for one person, and nowhere else; machines apart want an authority
//! that they ask.
//!
//! The directory holds `root.pem`, the root certificate, for anyone to trust, and `root-key.pem`, its key (mode 0600).
//! Both are made on the first use, once, however many processes start together.
//!
//! ```
//! use std::time::Duration;
//! use ambient_control::{ca::DirectoryCa, Issuer};
//! # let scratch = tempfile::tempdir()?;
//! # let directory = scratch.path().join("ca");
//!
//! let ca = DirectoryCa::open(&directory, "cluster.local".parse()?, DirectoryCa::DEFAULT_TTL)?;
//! let identity = "spiffe://cluster.local/ns/shop/sa/cart".parse()?;
//! # let runtime = tokio::runtime::Builder::new_current_thread().build()?;
//! # let credential = runtime.block_on(async {
//! let credential = ca.issue(&identity).await?;
//! # Ok::<_, ambient_control::IssueError>(credential) })?;
//! assert_eq!(credential.identity, identity);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::{
    fmt, future,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ambient_core::{Credential, Identity, PrivateKey, TrustBundles, TrustDomain};
use rcgen::{CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType};

use crate::{BoxFuture, IssueError, Issuer};

#[cfg(feature = "serve")]
pub(crate) mod directory;
#[cfg(not(feature = "serve"))]
mod directory;
mod requests;
#[cfg(test)]
mod tests;

pub use requests::{RequestError, ServerCredential};

/// An authority whose root key lies in a directory.
pub struct DirectoryCa {
    trust_domain: TrustDomain,
    ttl: Duration,
    issuer: rcgen::Issuer<'static, KeyPair>,
    root_ends: SystemTime,
    root_pem: String,
    trust: Arc<TrustBundles>,
}

impl DirectoryCa {
    /// How long a workload's certificate is valid, unless said otherwise: 24 hours.
    pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 60 * 60);

    /// Opens the authority in a directory; makes the directory (mode 0700) and the root (ECDSA P-256, 10 years) where
    /// there are none. `ttl` is how long a workload's certificate is valid, to the second.
    ///
    /// It reads and writes files and may wait for another process that makes the root, at most 10 s: call it before
    /// serving anything.
    ///
    /// # Errors
    /// When the directory or the key can be written or read by others or belongs to another user, when a file in it is
    /// not what it must be, is of another trust domain or is out of date, or when the file system refuses; each error
    /// says what to do. What is there is never overwritten.
    pub fn open(directory: impl AsRef<Path>, trust_domain: TrustDomain, ttl: Duration) -> Result<Self, OpenError> {
        let ttl = Duration::from_secs(ttl.as_secs());
        if ttl.is_zero() || ttl > MAX_TTL {
            return Err(OpenError::Ttl { ttl });
        }
        let root = directory::open(directory.as_ref(), &trust_domain, now())?;
        let mut trust = TrustBundles::default();
        trust.add(trust_domain.clone(), root.certificate);
        Ok(Self {
            trust_domain,
            ttl,
            issuer: root.issuer,
            root_ends: root.not_after,
            root_pem: root.pem,
            trust: Arc::new(trust),
        })
    }

    fn sign(&self, identity: &Identity, now: SystemTime) -> Result<Credential, IssueError> {
        if identity.trust_domain() != &self.trust_domain {
            return Err(IssueError::Refused {
                identity: identity.clone(),
                why: format!("this authority is that of the trust domain {}", self.trust_domain),
            });
        }
        let unavailable = |why: String| IssueError::Unavailable {
            identity: identity.clone(),
            why,
        };
        let (not_before, not_after) = self.life(self.ttl, now).map_err(|e| unavailable(e.to_string()))?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| unavailable(format!("cannot make a key: {e}")))?;
        let uri = identity
            .as_str()
            .try_into()
            .map_err(|e| unavailable(format!("cannot write its name: {e}")))?;
        let certificate = leaf(vec![SanType::URI(uri)], not_before, not_after)
            .signed_by(&key, &self.issuer)
            .map_err(|e| unavailable(format!("cannot sign: {e}")))?;
        Ok(Credential {
            identity: identity.clone(),
            chain: vec![certificate.der().to_vec()],
            key: Arc::new(PrivateKey::from(key.serialize_der())),
            not_before,
            not_after,
        })
    }
}

/// What every certificate of this authority is, but for the authority's own.
fn leaf(names: Vec<SanType>, not_before: SystemTime, not_after: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    // Without a subject the name is critical (RFC 5280 4.2.1.6): who does not know it cannot accept the certificate.
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names;
    params.not_before = not_before.into();
    params.not_after = not_after.into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params
}

impl Issuer for DirectoryCa {
    /// Makes a key and signs at once, in about a tenth of a millisecond: nothing is waited for.
    fn issue<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Arc<Credential>, IssueError>> {
        Box::pin(future::ready(self.sign(identity, now()).map(Arc::new)))
    }

    fn trust(&self) -> Arc<TrustBundles> {
        self.trust.clone()
    }
}

impl fmt::Debug for DirectoryCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectoryCa")
            .field("trust_domain", &self.trust_domain)
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

/// Why an authority cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The life of certificates makes no sense.
    #[error("certificates cannot be valid for {ttl:?}: choose from one second to one year")]
    Ttl {
        /// What was asked for.
        ttl: Duration,
    },
    /// The file system refuses.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// The refusal.
        source: std::io::Error,
    },
    /// Somebody else could be the authority.
    #[error("{}: {why}", path.display())]
    Unsafe {
        /// The directory, or a file in it.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// What is there cannot be used.
    #[error("{}: {why}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// Another process holds the directory.
    #[error("{}: another process has held this lock for 10 s: end it, or choose another directory", path.display())]
    Locked {
        /// The lock.
        path: PathBuf,
    },
    /// The crypto library refuses.
    #[error("cannot make the root of the authority: {why}")]
    Crypto {
        /// Its words.
        why: String,
    },
}

/// Certificates hold whole seconds.
fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

#[expect(
    clippy::disallowed_methods,
    reason = "an authority dates what it signs; all else takes the time as an argument"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

const MAX_TTL: Duration = Duration::from_secs(366 * 24 * 60 * 60);
