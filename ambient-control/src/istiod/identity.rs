//! Certificates that istiod signs for the pods of a node.

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use ambient_core::{Credential, Identity, PrivateKey, TrustBundles};
use ambient_tls::{Accepted, ChainError, PeerError, Role, Trust, Verifier, pem_in_words};
use prost_types::{Struct, Value, value};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::Code;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    kept_roots::KeptRoots,
    state::ConnectError,
    transport::{Endpoint, LOOKING, Line},
};
use crate::{
    BoxFuture, IssueError, Issuer, LastHeard, Told,
    disk::trust::{Root, TrustFile},
    wire::istio::v1::auth::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient},
};

#[cfg(test)]
mod tests;

/// How certificates are asked for.
#[derive(Clone, Debug)]
pub struct CertificatesConfig {
    /// Where.
    pub endpoint: Endpoint,
    /// How long a certificate is to be valid; 24 hours by default. Istiod may shorten it.
    pub ttl: Duration,
    /// Whether the identity asked for is one of the node's pods and not the caller's own: istiod then looks whether a pod of
    /// that account runs on the caller's node.
    pub impersonate: bool,
    /// A directory of the process's own where the roots that came are kept for a restart while istiod is away; nowhere by
    /// default. Never keys, nor certificates.
    pub memory: Option<PathBuf>,
}

impl CertificatesConfig {
    /// For a node's pods, with the defaults.
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            ttl: Duration::from_secs(24 * 60 * 60),
            impersonate: true,
            memory: None,
        }
    }
}

/// Istiod as an issuer: `istio.v1.auth.IstioCertificateService`.
///
/// Each certificate has a new ECDSA P-256 key that never leaves this process. What comes back is believed only where it is
/// what was asked for: the identity, the key, a chain that leads to the roots sent along, and dates that hold now.
///
/// Roots are those that came with certificates. One that comes no more is trusted until the last certificate that came with it
/// ends, so that a change of roots refuses no handshake.
pub struct Certificates {
    line: Line,
    ttl: Duration,
    impersonate: bool,
    roots: RwLock<Roots>,
    kept: Option<KeptRoots>,
    last_heard: LastHeard,
    /// Whether it was told that certificates are valid for a shorter time than is asked for.
    cut_short: AtomicBool,
    /// When the endpoint's files are looked at next: whoever listens may begin anew at any time.
    look_at: Mutex<Instant>,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("line", &self.line).finish_non_exhaustive()
    }
}

impl Certificates {
    /// Prepares to ask; connects with the first request.
    ///
    /// # Errors
    /// When the endpoint cannot be understood, or [`CertificatesConfig::memory`] names no place that can be kept. A file that
    /// is damaged there is told in the log, removed, and begun anew.
    pub fn new(config: CertificatesConfig) -> Result<Self, ConnectError> {
        config.endpoint.check()?;
        let (mut roots, last_heard) = (Roots::default(), LastHeard::default());
        let mut kept = None;
        if let Some(directory) = &config.memory {
            let (file, remembered) = TrustFile::open_of(directory, "istiod.roots", Some(&config.endpoint.origin()))?;
            if let Some(remembered) = remembered {
                last_heard.at(remembered.heard);
                roots.known = remembered.roots;
                roots.renew(now());
            }
            kept = Some(KeptRoots::new(file));
        }
        Ok(Self {
            line: Line::new(config.endpoint),
            ttl: config.ttl,
            impersonate: config.impersonate,
            roots: RwLock::new(roots),
            kept,
            last_heard,
            cut_short: AtomicBool::new(false),
            look_at: Mutex::new(Instant::now() + LOOKING),
        })
    }

    async fn ask(&self, identity: &Identity) -> Result<Arc<Credential>, IssueError> {
        let unavailable = |why: String| IssueError::Unavailable {
            identity: identity.clone(),
            why,
        };
        let (key, csr) = request(Some(identity)).map_err(|e| unavailable(format!("cannot make a request to sign: {e}")))?;
        let metadata = self.impersonate.then(|| Struct {
            fields: [("ImpersonatedIdentity".to_owned(), text(identity.as_str()))].into(),
        });
        let message = IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(self.ttl.as_secs()).unwrap_or(i64::MAX),
            metadata,
        };
        let chain = self.call(identity, message).await?;
        let answer = Answer::read(&chain).map_err(|why| unavailable(format!("the authority's answer is unusable: {why}")))?;
        let credential = answer
            .credential(identity, key, self.line.endpoint(), now())
            .map_err(|why| unavailable(format!("the authority's answer is refused: {why}")))?;
        let known = {
            let mut roots = self.roots.write().unwrap_or_else(PoisonError::into_inner);
            roots.came(identity, &answer.roots, credential.not_after, now());
            roots.known.clone()
        };
        self.last_heard.at(now());
        if let Some(kept) = &self.kept {
            kept.keep(known, now());
        }
        let given = credential.not_after.duration_since(now()).unwrap_or_default();
        if given + given / 10 < self.ttl && !self.cut_short.swap(true, Ordering::Relaxed) {
            let (asked, given) = (self.ttl, Duration::from_secs(given.as_secs()));
            tracing::warn!(
                ?asked,
                ?given,
                "certificates are valid for a shorter time than is asked for: the authority gives no more"
            );
        }
        Ok(Arc::new(credential))
    }

    /// One call, on the connection that is there; if that turns out to be dead, on a new one.
    async fn call(&self, identity: &Identity, message: IstioCertificateRequest) -> Result<Vec<String>, IssueError> {
        let unavailable = |why: String| IssueError::Unavailable {
            identity: identity.clone(),
            why,
        };
        let mut dead = None;
        loop {
            let (channel, number) = self.line.channel(dead).await.map_err(|e| unavailable(e.to_string()))?;
            let request = self.line.endpoint().request(message.clone()).await;
            let request = request.map_err(|e| unavailable(e.to_string()))?;
            let mut client = IstioCertificateServiceClient::new(channel);
            match timeout(ANSWERING, client.create_certificate(request)).await {
                Ok(Ok(response)) => return Ok(response.into_inner().cert_chain),
                Ok(Err(status)) if dead.is_none() && status.code() == Code::Unavailable => dead = Some(number),
                Ok(Err(status)) => {
                    self.line.endpoint().heard(&status);
                    let shown = self.line.endpoint().token_shown();
                    return Err(refusal(identity, &status, shown.as_deref()));
                }
                Err(_) => {
                    self.line.hang_up().await;
                    return Err(unavailable(format!("the authority did not answer within {ANSWERING:?}")));
                }
            }
        }
    }
}

impl Issuer for Certificates {
    fn issue<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Arc<Credential>, IssueError>> {
        Box::pin(self.ask(identity))
    }

    /// The roots that came with certificates; none before the first.
    fn trust(&self) -> Arc<TrustBundles> {
        let mut roots = self.roots.write().unwrap_or_else(PoisonError::into_inner);
        roots.at(now())
    }

    fn last_heard(&self) -> Option<LastHeard> {
        Some(self.last_heard.clone())
    }

    /// Of the files that the endpoint names, and of the one where roots are kept.
    fn faults(&self) -> Vec<String> {
        let mut faults = self.line.endpoint().files.faults();
        faults.extend(self.kept.as_ref().and_then(KeptRoots::fault));
        faults
    }

    /// It says nothing unasked; meanwhile its files are looked at.
    fn told(&self) -> BoxFuture<'_, Told> {
        Box::pin(async {
            let look_at = || self.look_at.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                let due = *look_at();
                sleep_until(due).await;
                self.line.endpoint().look().await;
                *look_at() = Instant::now() + LOOKING;
            }
        })
    }
}

/// A key, and the request to sign it for an identity: no subject, one critical URI name. Without one the other side knows
/// whom it is to name.
pub(super) fn request(identity: Option<&Identity>) -> Result<(KeyPair, String), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(identity) = identity {
        params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into()?)];
    }
    let csr = params.serialize_request(&key)?.pem()?;
    Ok((key, csr))
}

fn refusal(identity: &Identity, status: &tonic::Status, shown: Option<&str>) -> IssueError {
    let (identity, mut why) = (
        identity.clone(),
        format!("the authority says {:?}: {}", status.code(), status.message()),
    );
    if let (Code::Unauthenticated, Some(shown)) = (status.code(), shown) {
        why = format!("{why}; {shown}");
    }
    match status.code() {
        Code::InvalidArgument | Code::PermissionDenied | Code::FailedPrecondition | Code::Unimplemented => {
            IssueError::Refused { identity, why }
        }
        // Unauthenticated too: it is what istiod says while it does not know the pod yet, and when a token has just ended.
        _ => IssueError::Unavailable { identity, why },
    }
}

fn text(of: &str) -> Value {
    Value {
        kind: Some(value::Kind::StringValue(of.into())),
    }
}

/// What istiod answers, in DER: the leaf, then intermediates, and the roots apart.
struct Answer {
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
}

impl Answer {
    /// The first entry is the leaf, the last holds the roots, those between are intermediates. An entry may hold several.
    fn read(entries: &[String]) -> Result<Self, String> {
        let [leaf, between @ .., roots] = entries else {
            return Err(format!(
                "a certificate and its roots are wanted, {} entries have come",
                entries.len()
            ));
        };
        let mut chain = certificates(leaf, "the first entry")?;
        for entry in between {
            chain.extend(certificates(entry, "an intermediate")?);
        }
        let roots = certificates(roots, "the last entry, where the roots are,")?;
        Ok(Self { chain, roots })
    }

    fn credential(&self, identity: &Identity, key: KeyPair, endpoint: &Endpoint, now: SystemTime) -> Result<Credential, String> {
        let leaf = self.chain.first().ok_or("it holds no certificate")?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|e| format!("its certificate cannot be read: {e}"))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err("its certificate is for another key".into());
        }
        let (not_before, not_after) = dates(&parsed);
        let early = not_before.duration_since(now).unwrap_or_default();
        if early > SKEW {
            let why = ChainError::NotYetValid {
                begins: not_before.into(),
                now: now.into(),
            };
            return Err(format!("its certificate: {why}"));
        }
        if !early.is_zero() {
            tracing::warn!(%identity, ?early, "the authority's certificates begin in the future: the clock of this node is behind, or the authority's ahead");
        }
        if not_after <= now {
            let why = ChainError::Expired {
                ended: not_after.into(),
                now: now.into(),
            };
            return Err(format!("its certificate: {why}"));
        }
        let mut bundles = TrustBundles::default();
        for root in &self.roots {
            bundles.add(identity.trust_domain().clone(), root.to_vec());
        }
        let trust = Arc::new(Trust::new(&endpoint.provider, &bundles));
        // Peers whose clocks are right take it already.
        Verifier::new(&trust, Accepted::any_of([identity.clone()]))
            .at(now + early)
            .verify(&self.chain, Role::Server)
            .map_err(|e: PeerError| e.to_string())?;
        Ok(Credential {
            identity: identity.clone(),
            chain: self.chain.iter().map(|c| c.to_vec()).collect(),
            key: Arc::new(PrivateKey::from(key.serialize_der())),
            not_before: not_before.min(now),
            not_after,
        })
    }
}

/// From when to when a certificate is valid.
pub(crate) fn dates(certificate: &X509Certificate<'_>) -> (SystemTime, SystemTime) {
    let date = |time: x509_parser::time::ASN1Time| {
        let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    };
    (date(certificate.validity().not_before), date(certificate.validity().not_after))
}

/// What would be made of an answer's entries.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz_answer(entries: &[String], identity: &Identity, key: KeyPair, now: SystemTime) -> Result<Credential, String> {
    let endpoint = Endpoint::new("istiod:15012", Arc::new(ambient_tls::provider()));
    Answer::read(entries)?.credential(identity, key, &endpoint, now)
}

fn certificates(pem: &str, what: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(format!("{what} holds no certificate")),
        Err(error) => Err(format!("{what} is no PEM: {}", pem_in_words(&error))),
    }
}

/// The roots that came, and until when each is trusted.
#[derive(Debug, Default)]
struct Roots {
    known: Vec<Root>,
    present: Arc<TrustBundles>,
}

impl Roots {
    /// These came with a certificate that ends at `until`.
    fn came(&mut self, identity: &Identity, roots: &[CertificateDer<'_>], until: SystemTime, now: SystemTime) {
        let domain = identity.trust_domain();
        for root in roots {
            if let Some(known) = self.known.iter_mut().find(|known| known.of == *domain && known.der == **root) {
                known.until = known.until.max(until);
            } else if self.known.len() < ROOTS {
                let (of, der) = (domain.clone(), root.to_vec());
                self.known.push(Root { of, der, until });
            } else {
                tracing::warn!(%domain, "the authority sends more roots than are kept ({ROOTS})");
            }
        }
        self.renew(now);
    }

    fn at(&mut self, now: SystemTime) -> Arc<TrustBundles> {
        if self.known.iter().any(|root| root.until <= now) {
            self.renew(now);
        }
        self.present.clone()
    }

    /// Whoever asks gets the same value for as long as it is the same: what is read of it is kept by its address.
    fn renew(&mut self, now: SystemTime) {
        self.known.retain(|root| root.until > now);
        let mut bundles = TrustBundles::default();
        for root in &self.known {
            bundles.add(root.of.clone(), root.der.clone());
        }
        if bundles != *self.present {
            self.present = Arc::new(bundles);
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the dates of what istiod signs are compared with the time of day"
)]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

/// How much later than now a certificate may begin: so far apart clocks are that are set, but not well.
const SKEW: Duration = Duration::from_secs(300);
/// How long istiod may take to sign.
const ANSWERING: Duration = Duration::from_secs(10);
/// Roots that are trusted at a time: a mesh has one, or two while they change.
const ROOTS: usize = 32;
