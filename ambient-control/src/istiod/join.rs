//! A node's own certificate, which `ambient control` gives for a join token and renews for the certificate before.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use ambient_core::{PrivateKey, SpiffeId, SpiffeIdError, TrustBundles, TrustDomain};
use ambient_tls::{Accepted, Role, Trust, Verifier};
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tonic::Code;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    identity::{dates, now, request},
    transport::{Endpoint, EndpointError},
};
use crate::{
    backoff::Backoff,
    wire::ambient::control::v1::{JoinRequest, JoinResponse, node_service_client::NodeServiceClient},
};

/// What a node shows to its control plane in the place of a token.
#[derive(Clone)]
pub struct NodeCredential {
    /// DER, the leaf first, then intermediates. The leaf names the node.
    pub chain: Vec<Vec<u8>>,
    /// Its key, DER in PKCS#8.
    pub key: Arc<PrivateKey>,
    /// It is valid from here …
    pub not_before: SystemTime,
    /// … until here.
    pub not_after: SystemTime,
    /// The roots that came with it, in DER: they vouch for the control plane as well.
    pub roots: Vec<Vec<u8>>,
}

impl fmt::Debug for NodeCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeCredential")
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl NodeCredential {
    fn is_valid_at(&self, now: SystemTime) -> bool {
        self.not_before <= now && now < self.not_after
    }
}

/// Where a node's certificate outlives the process: in memory alone, for it has a key.
pub trait KeepNode: Send + Sync {
    /// What was kept last; nothing that was damaged.
    fn load(&self) -> Option<NodeCredential>;

    /// Keeps one in the place of the one before.
    ///
    /// # Errors
    /// When it cannot; then a restart needs the token again.
    fn put(&self, credential: &NodeCredential) -> std::io::Result<()>;

    /// Wipes what is kept.
    fn wipe(&self);
}

/// How a node becomes one of a control plane's.
pub struct MembershipConfig {
    /// Where, and the token that is exchanged. Without one only a certificate that was kept helps.
    pub endpoint: Endpoint,
    /// The node, as it names itself: a token of another's is refused.
    pub node: String,
    /// How long a certificate is to be valid, at most; 24 hours by default, which is the most that is given.
    pub ttl: Duration,
    /// Where the certificate outlives the process; nowhere by default.
    pub keep: Option<Box<dyn KeepNode>>,
}

impl MembershipConfig {
    /// With the defaults.
    pub fn new(endpoint: Endpoint, node: &str) -> Self {
        Self {
            endpoint,
            node: node.into(),
            ttl: Duration::from_secs(24 * 60 * 60),
            keep: None,
        }
    }
}

impl fmt::Debug for MembershipConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MembershipConfig")
            .field("endpoint", &self.endpoint)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// A node among those of a control plane: an [`Endpoint`] that [has it](Endpoint::membership) shows its certificate, and no
/// token.
///
/// The key is made here and never leaves the process but for [`KeepNode`]. The certificate is renewed by itself at half its
/// life, by a call that shows it; where it has ended, or is refused, the token is exchanged again. A task of the runtime that
/// made it does so until it is dropped.
pub struct Membership {
    inner: Arc<Inner>,
    task: JoinHandle<()>,
}

struct Inner {
    config: MembershipConfig,
    present: watch::Sender<Option<Arc<NodeCredential>>>,
    /// Why there is none.
    why: RwLock<String>,
    /// Roots that the control plane has told of since.
    told: RwLock<Arc<[Vec<u8>]>>,
    doubted: Notify,
    /// Somebody waits for one.
    wanted: Notify,
    /// Attempts that have failed.
    failures: watch::Sender<u64>,
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership")
            .field("config", &self.inner.config)
            .finish_non_exhaustive()
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Membership {
    /// Takes up what was kept, and begins to join where that is nothing.
    ///
    /// # Errors
    /// When the endpoint cannot be understood.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(mut config: MembershipConfig) -> Result<Self, EndpointError> {
        config.endpoint.check()?;
        config.endpoint.membership = None;
        let kept = config.keep.as_ref().and_then(|keep| keep.load());
        let kept = kept.filter(|kept| match node_named(kept) {
            // One that begins later is good then: the clock is behind, as before it is set.
            Ok(node) => node == config.node && now() < kept.not_after,
            Err(_) => false,
        });
        if let (None, Some(keep)) = (&kept, &config.keep) {
            keep.wipe();
        }
        let inner = Arc::new(Inner {
            config,
            present: watch::Sender::new(kept.map(Arc::new)),
            why: RwLock::new("it was not given one yet".into()),
            told: RwLock::default(),
            doubted: Notify::new(),
            wanted: Notify::new(),
            failures: watch::Sender::new(0),
        });
        let task = tokio::spawn(inner.clone().keep_fresh());
        Ok(Self { inner, task })
    }

    /// The certificate of now; where there is none, what comes of the next attempt at one.
    pub(super) async fn credential(&self) -> Result<Arc<NodeCredential>, EndpointError> {
        let (mut present, mut failures) = (self.inner.present.subscribe(), self.inner.failures.subscribe());
        if self.inner.valid().is_none() {
            self.inner.wanted.notify_one();
        }
        let given = async {
            tokio::select! {
                biased;
                given = present.wait_for(is_valid) => given.ok().and_then(|present| present.clone()),
                _ = failures.changed() => None,
            }
        };
        timeout(WAITING, given).await.ok().flatten().ok_or_else(|| self.none())
    }

    /// Waits until there is a certificate, where there is none now; for ever where there is.
    pub(super) async fn comes(&self) {
        if self.inner.valid().is_some() {
            return std::future::pending().await;
        }
        let mut present = self.inner.present.subscribe();
        // The sender lives as long as this does.
        let _ = present.wait_for(is_valid).await;
    }

    /// Until when the certificate of now is valid; `None` before the first.
    pub fn not_after(&self) -> Option<SystemTime> {
        self.inner.present.borrow().as_ref().map(|present| present.not_after)
    }

    /// Whether another certificate has taken the place of one.
    pub(super) fn is_present(&self, credential: &Arc<NodeCredential>) -> bool {
        self.inner
            .present
            .borrow()
            .as_ref()
            .is_some_and(|present| Arc::ptr_eq(present, credential))
    }

    /// Waits until another certificate takes the place of one.
    pub(super) async fn replaced(&self, credential: &Arc<NodeCredential>) {
        let mut present = self.inner.present.subscribe();
        let another = |present: &Option<Arc<NodeCredential>>| !present.as_ref().is_some_and(|one| Arc::ptr_eq(one, credential));
        // The sender lives as long as this does.
        let _ = present.wait_for(another).await;
    }

    /// The control plane has refused the certificate: another is asked for soon.
    pub(super) fn doubt(&self) {
        self.inner.doubted.notify_one();
    }

    /// The control plane says whom to trust: it may be known by the roots of its own trust domain from now on.
    pub(super) fn learn(&self, trust: &TrustBundles) {
        let present = self.inner.present.borrow().clone();
        let domain = match present.and_then(|present| named(&present.chain).ok()) {
            Some((domain, _)) => Some(domain),
            // What was remembered, before this node has a certificate: of several domains none is known to be its own.
            None => trust.domains().next().cloned().filter(|_| trust.domains().count() == 1),
        };
        let roots = domain.as_ref().map_or(&[][..], |domain| trust.roots(domain));
        if !roots.is_empty() {
            *self.inner.told.write().unwrap_or_else(PoisonError::into_inner) = roots.into();
        }
    }

    /// Roots by which the control plane may be known, besides those of the endpoint.
    pub(super) fn roots(&self) -> Vec<Vec<u8>> {
        self.inner.roots()
    }

    /// Waits until it was asked for a certificate so often in vain.
    #[cfg(all(test, feature = "serve"))]
    pub(crate) async fn has_failed(&self, times: u64) {
        let mut failures = self.inner.failures.subscribe();
        let _ = failures.wait_for(|failures| *failures >= times).await;
    }

    fn none(&self) -> EndpointError {
        EndpointError::NotJoined {
            node: self.inner.config.node.clone(),
            why: self.inner.why.read().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// Why a node is given no certificate.
#[derive(Debug, thiserror::Error)]
enum JoinError {
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error("the control plane says {code:?}: {message}")]
    Refused { code: Code, message: String },
    #[error("the control plane did not answer within {ANSWERING:?}")]
    Silent,
    #[error("the control plane's answer is refused: {0}")]
    Answer(String),
    #[error("{by_certificate}; by its token: {by_token}")]
    Neither { by_certificate: Box<Self>, by_token: Box<Self> },
    #[error("there is no token to join with, and no certificate that is valid: --auth-token names one")]
    NoToken,
}

impl JoinError {
    /// Whether it is not taken for a member's certificate.
    fn is_of_the_certificate(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                code: Code::Unauthenticated,
                ..
            }
        )
    }
}

impl Inner {
    async fn keep_fresh(self: Arc<Self>) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        // One for as long as it takes: a token that is good for one key is tried again with that one.
        let mut key = None;
        loop {
            let began = Instant::now();
            self.until_due().await;
            // A certificate that is in doubt again and again is not asked for again and again.
            if began.elapsed() > LONGEST_WAIT {
                backoff.reset();
            }
            match self.join(&mut key).await {
                Ok(credential) => {
                    key = None;
                    let life = credential.not_after.duration_since(credential.not_before).unwrap_or_default();
                    self.take(credential);
                    // However short it lives, the next one is not late for that.
                    sleep(backoff.next().min(life / 4)).await;
                }
                Err(error) => {
                    let wait = backoff.next();
                    let ends_in = self.valid().map(|one| one.not_after.duration_since(now()).unwrap_or_default());
                    let node = &self.config.node;
                    match ends_in {
                        Some(ends_in) => {
                            tracing::warn!(node, %error, ?wait, ?ends_in, "this node's certificate was not renewed; the present one stays")
                        }
                        None => tracing::error!(node, %error, ?wait, "this node has no certificate for its control plane"),
                    }
                    *self.why.write().unwrap_or_else(PoisonError::into_inner) = error.to_string();
                    self.failures.send_modify(|failures| *failures += 1);
                    self.rest(wait).await;
                }
            }
        }
    }

    /// After a failure; for a shorter time where somebody waits for a certificate meanwhile.
    async fn rest(&self, wait: Duration) {
        sleep(wait.min(LEAST_REST)).await;
        tokio::select! {
            () = sleep(wait.saturating_sub(LEAST_REST)) => {}
            () = self.wanted.notified() => {}
        }
    }

    /// Until the present certificate is at half its life, or in doubt.
    async fn until_due(&self) {
        let Some(present) = self.valid() else { return };
        let life = present.not_after.duration_since(present.not_before).unwrap_or_default();
        let due = present.not_before + life / 2;
        loop {
            let Ok(wait) = due.duration_since(now()) else { return };
            // By the wall clock, which may be set: never long.
            tokio::select! {
                () = sleep(wait.clamp(LEAST_SLEEP, LONGEST_SLEEP)) => {}
                () = self.doubted.notified() => return,
            }
        }
    }

    fn valid(&self) -> Option<Arc<NodeCredential>> {
        self.present.borrow().clone().filter(|one| one.is_valid_at(now()))
    }

    fn roots(&self) -> Vec<Vec<u8>> {
        let mut roots = self.told.read().unwrap_or_else(PoisonError::into_inner).to_vec();
        if let Some(present) = &*self.present.borrow() {
            roots.extend(present.roots.iter().cloned());
        }
        roots
    }

    fn take(&self, credential: NodeCredential) {
        if let Some(keep) = &self.config.keep
            && let Err(error) = keep.put(&credential)
        {
            keep.wipe();
            tracing::warn!(%error, "this node's certificate for its control plane is not kept: a restart needs its token again");
        }
        let valid_for = credential.not_after.duration_since(now()).unwrap_or_default();
        let valid_for = Duration::from_secs(valid_for.as_secs());
        tracing::info!(
            node = self.config.node,
            ?valid_for,
            "this node has a certificate for its control plane"
        );
        self.present.send_replace(Some(Arc::new(credential)));
    }

    /// By the present certificate; where there is none, or it is not the one of a member any more, by the token. What stands in the
    /// way for now does so for both, and nothing is wrong with a token that has ended since it was used.
    async fn join(&self, key: &mut Option<(KeyPair, String)>) -> Result<NodeCredential, JoinError> {
        if let Some(present) = self.valid() {
            let by_certificate = match self.ask(Some(&present), &mut None).await {
                Err(error) if error.is_of_the_certificate() && self.config.endpoint.token.is_some() => error,
                answer => return answer,
            };
            tracing::debug!(error = %by_certificate, "by its certificate this node is given no other: its token is tried");
            return self.ask(None, key).await.map_err(|by_token| JoinError::Neither {
                by_certificate: by_certificate.into(),
                by_token: by_token.into(),
            });
        }
        if self.config.endpoint.token.is_none() {
            return Err(JoinError::NoToken);
        }
        self.ask(None, key).await
    }

    async fn ask(&self, shown: Option<&Arc<NodeCredential>>, key: &mut Option<(KeyPair, String)>) -> Result<NodeCredential, JoinError> {
        let endpoint = &self.config.endpoint;
        let made = |e: rcgen::Error| JoinError::Answer(e.to_string());
        if key.is_none() {
            *key = Some(request(None).map_err(made)?);
        }
        let Some((_, csr)) = key.as_ref() else {
            return Err(JoinError::NoToken);
        };
        let message = JoinRequest {
            csr: csr.clone(),
            validity_duration: self.config.ttl.as_secs(),
        };
        let request = match shown {
            Some(_) => endpoint.bare_request(message)?,
            None => endpoint.request(message).await?,
        };
        let channel = endpoint.connect_as(shown.map(|shown| &**shown), &self.roots()).await?;
        let answered = timeout(ANSWERING, NodeServiceClient::new(channel).join(request)).await;
        let answer = match answered {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => {
                let (code, mut message) = (status.code(), status.message().to_owned());
                if let (Code::Unauthenticated, None, Some(shown)) = (code, shown, endpoint.token_shown()) {
                    message = format!("{message}; {shown}");
                }
                return Err(JoinError::Refused { code, message });
            }
            Err(_) => return Err(JoinError::Silent),
        };
        let Some((key, _)) = key.as_ref() else {
            return Err(JoinError::NoToken);
        };
        self.read(answer, key).map_err(JoinError::Answer)
    }

    /// What came, where it is what was asked for.
    fn read(&self, answer: JoinResponse, key: &KeyPair) -> Result<NodeCredential, String> {
        let leaf = answer.chain.first().ok_or("there is no certificate in it")?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|e| format!("its certificate cannot be read: {e}"))?;
        if *parsed.public_key().subject_public_key.data != *key.public_key_raw() {
            return Err("its certificate is for another key".into());
        }
        let (not_before, not_after) = dates(&parsed);
        let (domain, node) = named(&answer.chain)?;
        if node != self.config.node {
            return Err(format!("the token is for the node {node}, and not for {}", self.config.node));
        }
        let mut bundles = TrustBundles::default();
        for root in &answer.roots {
            bundles.add(domain.clone(), root.clone());
        }
        let chain: Vec<_> = answer.chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let trust = Arc::new(Trust::new(&self.config.endpoint.provider, &bundles));
        let verifier = Verifier::new(&trust, Accepted::AnyTrusted);
        verifier.verify(&chain, Role::Client).map_err(|e| e.to_string())?;
        Ok(NodeCredential {
            not_before,
            not_after,
            key: Arc::new(PrivateKey::from(key.serialize_der())),
            roots: answer.roots,
            chain: answer.chain,
        })
    }
}

#[cfg(all(test, feature = "serve"))]
impl Endpoint {
    /// What a control plane says to whoever wants to join by a certificate.
    pub(crate) async fn join_as(&self, shown: &NodeCredential) -> String {
        let channel = match self.connect_as(Some(shown), &[]).await {
            Ok(channel) => channel,
            Err(error) => return error.to_string(),
        };
        let request = JoinRequest {
            csr: request(None).map_or_else(|e| e.to_string(), |(_, csr)| csr),
            validity_duration: 0,
        };
        match NodeServiceClient::new(channel).join(request).await {
            Ok(_) => "welcome".into(),
            Err(status) => status.message().into(),
        }
    }
}

fn is_valid(present: &Option<Arc<NodeCredential>>) -> bool {
    present.as_ref().is_some_and(|one| one.is_valid_at(now()))
}

/// The node that a credential names.
fn node_named(credential: &NodeCredential) -> Result<String, String> {
    named(&credential.chain).map(|(_, node)| node)
}

fn named(chain: &[Vec<u8>]) -> Result<(TrustDomain, String), String> {
    let chain: Vec<_> = chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let id = ambient_tls::peer_id(&chain).map_err(|e| e.to_string())?;
    let node = node_of(&id, id.trust_domain()).ok_or_else(|| format!("it names {id}, which is no node"))?;
    Ok((id.trust_domain().clone(), node.to_owned()))
}

/// What a node's certificate bears.
#[cfg_attr(not(any(feature = "serve", test)), expect(dead_code, reason = "for who gives them"))]
pub(crate) fn node_id(domain: &TrustDomain, node: &str) -> Result<SpiffeId, SpiffeIdError> {
    format!("spiffe://{domain}{NODES}{node}").parse()
}

/// The node that a SPIFFE ID of a domain names, if it is one.
pub(crate) fn node_of<'i>(id: &'i SpiffeId, domain: &TrustDomain) -> Option<&'i str> {
    let node = id.path().strip_prefix(NODES)?;
    (id.trust_domain() == domain && is_node_name(node)).then_some(node)
}

/// Whether a text can be a node's name.
pub(crate) fn is_node_name(node: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    !node.is_empty() && node.len() <= 253 && node.chars().all(fits) && !node.starts_with('.')
}

/// The path of a node's ID, before its name.
const NODES: &str = "/ambient/node/";
/// How long whoever connects waits for a certificate.
const WAITING: Duration = Duration::from_secs(5);
/// How long the control plane may take.
const ANSWERING: Duration = Duration::from_secs(10);
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Between two attempts: nothing else that a node asks of its control plane is found sooner than this is.
const LONGEST_WAIT: Duration = Duration::from_secs(12);
/// The same where somebody waits, who is not to wait in vain: shorter than that is.
const LEAST_REST: Duration = Duration::from_secs(2);
const LEAST_SLEEP: Duration = Duration::from_millis(10);
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_named_by_its_own_form_of_id_alone() {
        let domain: TrustDomain = "cluster.local".parse().unwrap();
        let id = node_id(&domain, "node-1.example").unwrap();
        assert_eq!(id.as_str(), "spiffe://cluster.local/ambient/node/node-1.example");
        assert_eq!(node_of(&id, &domain), Some("node-1.example"));
        assert_eq!(node_of(&id, &"other".parse().unwrap()), None);
        assert!(ambient_core::Identity::try_from(id).is_err(), "no workload bears a node's ID");
        for other in [
            "spiffe://cluster.local/ns/shop/sa/cart",
            "spiffe://cluster.local/ambient/node/a/b",
            "spiffe://cluster.local/ambient/nodes/a",
            "spiffe://cluster.local",
        ] {
            assert_eq!(node_of(&other.parse().unwrap(), &domain), None, "{other}");
        }
    }
}
