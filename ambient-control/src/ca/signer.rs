//! Whoever else signs: an embedder's own authority.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ambient_core::{Credential, Identity, PrivateKey, SpiffeId, TrustBundles};
use ambient_tls::{Accepted, Role, Trust, Verifier};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls_pki_types::{CertificateDer, DnsName};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{DirectoryCa, ENDED, RequestError, requests::crypto};
use crate::{BoxFuture, IssueError, Issuer};

/// Who signs what it is asked to: a [`DirectoryCa`], or an authority of an embedder's own, such as one behind a KMS.
///
/// Whether the caller may have the certificate was decided before it is asked. What it waits for has the deadline of whoever
/// asks: dropping the future gives up.
pub trait Signer: Send + Sync {
    /// Signs the key of a request for a name. Whatever else the request asks for is to be left out. Gives the chain in DER,
    /// the leaf first, then intermediates; no root.
    ///
    /// # Errors
    /// When it does not, or cannot now.
    fn sign<'a>(&'a self, request: Request<'a>) -> BoxFuture<'a, Result<Vec<Vec<u8>>, RequestError>>;

    /// The present roots and CRLs. While nothing has changed give the same `Arc`.
    fn bundles(&self) -> Arc<TrustBundles>;

    /// What is wrong with it now, though it may still sign: a sentence each. Nothing, unless said.
    fn faults(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What is to be signed.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Whom the certificate names.
    pub whom: Whom<'a>,
    /// A certificate request (PKCS#10) in PEM.
    pub csr: &'a str,
    /// How long it is to be valid, at most.
    pub life: Duration,
    /// The node that asks for it: what was signed for a node is revoked with it.
    pub node: Option<&'a str>,
}

/// Whom a certificate names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom<'a> {
    /// A workload, or a node.
    Id(&'a SpiffeId),
    /// A server, by its host names and addresses.
    Hosts(&'a [String]),
}

impl Whom<'_> {
    /// Looks whether a certificate can name it.
    ///
    /// # Errors
    /// With [`RequestError::Name`], when it cannot.
    pub fn check(&self) -> Result<(), RequestError> {
        self.names().map(drop)
    }

    /// As a certificate bears it.
    pub(super) fn names(&self) -> Result<Vec<SanType>, RequestError> {
        let wrong = |name: &str| RequestError::Name { name: name.into() };
        match self {
            Self::Id(id) => {
                let uri = id.as_str().try_into().map_err(|_| wrong(id.as_str()))?;
                Ok(vec![SanType::URI(uri)])
            }
            Self::Hosts(names) => {
                let san = |name: &String| match name.parse() {
                    Ok(ip) => Ok(SanType::IpAddress(ip)),
                    Err(_) if !is_host(name) => Err(wrong(name)),
                    Err(_) => name.as_str().try_into().map(SanType::DnsName).map_err(|_| wrong(name)),
                };
                names.iter().map(san).collect()
            }
        }
    }
}

/// A certificate for anything else would be one that nobody accepts.
fn is_host(name: &str) -> bool {
    DnsName::try_from(name.strip_prefix("*.").unwrap_or(name)).is_ok()
}

impl fmt::Display for Whom<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => f.write_str(id.as_str()),
            Self::Hosts(names) => f.write_str(&names.join(",")),
        }
    }
}

/// Whom a certificate names, for another thread.
enum Owned {
    Id(SpiffeId),
    Hosts(Vec<String>),
}

impl Owned {
    fn of(whom: Whom<'_>) -> Self {
        match whom {
            Whom::Id(id) => Self::Id(id.clone()),
            Whom::Hosts(names) => Self::Hosts(names.to_vec()),
        }
    }

    fn whom(&self) -> Whom<'_> {
        match self {
            Self::Id(id) => Whom::Id(id),
            Self::Hosts(names) => Whom::Hosts(names),
        }
    }
}

impl Signer for DirectoryCa {
    /// Signs beside the runtime's threads, as a disk may take its time.
    fn sign<'a>(&'a self, request: Request<'a>) -> BoxFuture<'a, Result<Vec<Vec<u8>>, RequestError>> {
        Box::pin(async move {
            let (whom, csr, node) = (Owned::of(request.whom), request.csr.to_owned(), request.node.map(str::to_owned));
            let life = request.life;
            let signed = self.aside(move |ca| {
                let request = Request {
                    whom: whom.whom(),
                    csr: &csr,
                    life,
                    node: node.as_deref(),
                };
                ca.sign_pem(&request)
            });
            let ended = || RequestError::Directory { why: ENDED.into() };
            signed.await.ok_or_else(ended)?.map(|signed| signed.chain)
        })
    }

    fn bundles(&self) -> Arc<TrustBundles> {
        self.trust()
    }

    fn faults(&self) -> Vec<String> {
        self.faults()
    }
}

/// An [`Issuer`] that makes keys and has a [`Signer`] sign them. What comes back is verified: it must be for that key and
/// that identity, valid now, and lead to the signer's roots.
pub struct SignedBy {
    signer: Arc<dyn Signer>,
    ttl: Duration,
}

impl SignedBy {
    /// `ttl` is how long a certificate is to be valid, at most.
    pub fn new(signer: Arc<dyn Signer>, ttl: Duration) -> Self {
        Self { signer, ttl }
    }

    async fn ask(&self, identity: &Identity) -> Result<Arc<Credential>, IssueError> {
        let unavailable = |why: String| IssueError::Unavailable {
            identity: identity.clone(),
            why,
        };
        let whom = Whom::Id(identity.spiffe_id());
        let (key, csr) = request(&whom).map_err(|e| unavailable(e.to_string()))?;
        let request = Request {
            whom,
            csr: &csr,
            life: self.ttl,
            node: None,
        };
        let chain = self.signer.sign(request).await.map_err(|e| match e {
            RequestError::Barred { .. } | RequestError::Foreign { .. } | RequestError::Name { .. } => IssueError::Refused {
                identity: identity.clone(),
                why: e.to_string(),
            },
            other => unavailable(other.to_string()),
        })?;
        let credential = credential(identity, key, chain, &self.signer.bundles());
        credential
            .map(Arc::new)
            .map_err(|why| unavailable(format!("what the signer gave is refused: {why}")))
    }
}

impl Issuer for SignedBy {
    fn issue<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Arc<Credential>, IssueError>> {
        Box::pin(self.ask(identity))
    }

    fn trust(&self) -> Arc<TrustBundles> {
        self.signer.bundles()
    }
}

impl fmt::Debug for SignedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedBy").field("ttl", &self.ttl).finish_non_exhaustive()
    }
}

/// A key, and the request to sign it for whom it names.
pub(crate) fn request(whom: &Whom<'_>) -> Result<(KeyPair, String), RequestError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = whom.names()?;
    let csr = params.serialize_request(&key).and_then(|csr| csr.pem()).map_err(crypto)?;
    Ok((key, csr))
}

/// What was signed, once it is verified.
fn credential(identity: &Identity, key: KeyPair, chain: Vec<Vec<u8>>, trust: &TrustBundles) -> Result<Credential, String> {
    let leaf = chain.first().ok_or("there is no certificate in it")?;
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|e| format!("its certificate cannot be read: {e}"))?;
    if *parsed.public_key().subject_public_key.data != *key.public_key_raw() {
        return Err("its certificate is for another key".into());
    }
    let date = |time: x509_parser::time::ASN1Time| UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0));
    let (not_before, not_after): (SystemTime, SystemTime) = (date(parsed.validity().not_before), date(parsed.validity().not_after));
    let trust = Arc::new(Trust::new(&Arc::new(ambient_tls::provider()), trust));
    let ders: Vec<_> = chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    Verifier::new(&trust, Accepted::any_of([identity.clone()]))
        .verify(&ders, Role::Server)
        .map_err(|e| e.to_string())?;
    Ok(Credential {
        identity: identity.clone(),
        chain,
        key: Arc::new(PrivateKey::from(key.serialize_der())),
        not_before,
        not_after,
    })
}
