//! What does not change from one handshake to the next.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use ambient_core::{Credential, TrustBundles};
use rustls::{
    ClientConfig, ServerConfig,
    crypto::CryptoProvider,
    sign::CertifiedKey,
    time_provider::{DefaultTimeProvider, TimeProvider},
};

use crate::{Accepted, ConfigError, Trust, Verifier, config::certified_key};

/// Makes configurations for many handshakes, and keeps what they have in common.
///
/// Trust is read once for each `Arc<TrustBundles>` and a key once for each `Arc<Credential>`, told apart by their
/// addresses: so it pays to give the same `Arc` while nothing has changed. Keys of at most 256 credentials are kept, and
/// none longer than its credential lives elsewhere and the next handshake. Several threads may share one.
pub struct Configs {
    provider: Arc<CryptoProvider>,
    time: Arc<dyn TimeProvider>,
    /// Held for moments: nothing is parsed under it.
    kept: Mutex<Kept>,
}

struct Kept {
    bundles: Arc<TrustBundles>,
    trust: Arc<Trust>,
    keys: Vec<Key>,
}

struct Key {
    /// Not a strong one, or a pod's key would outlive the pod. While this lives its address is nobody else's.
    credential: Weak<Credential>,
    key: Arc<CertifiedKey>,
    /// The last configuration of a server, and for whom; it holds the trust it was made with.
    server: Option<(Accepted, Arc<ServerConfig>)>,
}

impl Configs {
    /// Nothing is kept yet. The clock is the system's.
    pub fn new(provider: Arc<CryptoProvider>) -> Self {
        let bundles = Arc::default();
        let trust = Arc::new(Trust::new(&provider, &bundles));
        let kept = Kept {
            bundles,
            trust,
            keys: Vec::new(),
        };
        Self {
            provider,
            time: Arc::new(DefaultTimeProvider),
            kept: Mutex::new(kept),
        }
    }

    /// The same with another clock.
    #[must_use]
    pub fn with_time(mut self, time: Arc<dyn TimeProvider>) -> Self {
        self.time = time;
        self
    }

    /// What these bundles say, read if they are others than the last ones. What was in force before stays so where they
    /// have faults: see [`Trust::renew`].
    pub fn trust(&self, bundles: &Arc<TrustBundles>) -> Arc<Trust> {
        let before = {
            let kept = self.kept();
            if Arc::ptr_eq(&kept.bundles, bundles) {
                return Arc::clone(&kept.trust);
            }
            Arc::clone(&kept.trust)
        };
        let trust = Arc::new(before.renew(bundles));
        let mut kept = self.kept();
        if Arc::ptr_eq(&kept.bundles, bundles) {
            // Somebody else was faster.
            return Arc::clone(&kept.trust);
        }
        kept.bundles = Arc::clone(bundles);
        kept.trust = Arc::clone(&trust);
        kept.keys.iter_mut().for_each(|key| key.server = None);
        trust
    }

    /// The configuration of a client that presents a credential and accepts servers by `trust`.
    ///
    /// # Errors
    /// When the credential's key or chain cannot be used, or its certificate names somebody else.
    pub fn client(&self, credential: &Arc<Credential>, trust: &Arc<Trust>, accepted: Accepted) -> Result<Arc<ClientConfig>, ConfigError> {
        let known = self.kept().key(credential).map(|kept| Arc::clone(&kept.key));
        let key = known.map_or_else(|| self.read_key(credential), Ok)?;
        self.verifier(trust, accepted).client_config_of(&credential.identity, key)
    }

    /// The configuration of a server that presents a credential and accepts clients by `trust`.
    ///
    /// # Errors
    /// When the credential's key or chain cannot be used, or its certificate names somebody else.
    pub fn server(&self, credential: &Arc<Credential>, trust: &Arc<Trust>, accepted: &Accepted) -> Result<Arc<ServerConfig>, ConfigError> {
        let known = {
            let mut kept = self.kept();
            let present = Arc::ptr_eq(&kept.trust, trust);
            let key = kept.key(credential);
            if let Some((whom, config)) = key.as_ref().and_then(|key| key.server.as_ref())
                && present
                && whom == accepted
            {
                return Ok(Arc::clone(config));
            }
            key.map(|kept| Arc::clone(&kept.key))
        };
        let key = known.map_or_else(|| self.read_key(credential), Ok)?;
        let config = self.verifier(trust, accepted.clone()).server_config_of(&credential.identity, key)?;
        let mut kept = self.kept();
        if Arc::ptr_eq(&kept.trust, trust)
            && let Some(key) = kept.key(credential)
        {
            key.server = Some((accepted.clone(), Arc::clone(&config)));
        }
        Ok(config)
    }

    fn read_key(&self, credential: &Arc<Credential>) -> Result<Arc<CertifiedKey>, ConfigError> {
        let key = certified_key(&self.provider, credential)?;
        let mut kept = self.kept();
        if kept.key(credential).is_none() {
            if kept.keys.len() == KEYS {
                kept.keys.remove(0);
            }
            kept.keys.push(Key {
                credential: Arc::downgrade(credential),
                key: Arc::clone(&key),
                server: None,
            });
        }
        Ok(key)
    }

    fn verifier(&self, trust: &Arc<Trust>, accepted: Accepted) -> Verifier {
        Verifier::new(trust, accepted).with_time(Arc::clone(&self.time))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// What is kept of a credential; whatever nobody else holds any more goes.
    fn key(&mut self, credential: &Arc<Credential>) -> Option<&mut Key> {
        self.keys.retain(|key| key.credential.strong_count() > 0);
        let same = |key: &&mut Key| std::ptr::eq(key.credential.as_ptr(), Arc::as_ptr(credential));
        self.keys.iter_mut().find(same)
    }
}

impl fmt::Debug for Configs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = self.kept();
        f.debug_struct("Configs")
            .field("trust", &kept.trust)
            .field("keys", &kept.keys.len())
            .finish_non_exhaustive()
    }
}

/// More than the pods of a node; with more credentials than this the oldest key is read again.
const KEYS: usize = 256;

#[cfg(test)]
mod tests;
