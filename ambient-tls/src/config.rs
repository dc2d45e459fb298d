//! rustls configurations for the two ends.

use std::sync::Arc;

use ambient_core::{Credential, Identity, TrustBundles};
use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    crypto::CryptoProvider,
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::{Accepted, Trust, Verifier, credential::own_leaf, peer_id};

/// The configuration of a client that presents `credential` and accepts a server among `accepted`.
///
/// Short for [`Verifier::client_config`] with the system's clock.
///
/// # Errors
/// When the credential's key or chain cannot be used with this provider, or its certificate names somebody else.
pub fn client_config(
    provider: &Arc<CryptoProvider>,
    credential: &Credential,
    trust: &TrustBundles,
    accepted: Accepted,
) -> Result<Arc<ClientConfig>, ConfigError> {
    Verifier::new(&Arc::new(Trust::new(provider, trust)), accepted).client_config(credential)
}

/// The configuration of a server that presents `credential` and demands the certificate of a client among `accepted`.
///
/// Short for [`Verifier::server_config`] with the system's clock.
///
/// # Errors
/// When the credential's key or chain cannot be used with this provider, or its certificate names somebody else.
pub fn server_config(
    provider: &Arc<CryptoProvider>,
    credential: &Credential,
    trust: &TrustBundles,
    accepted: Accepted,
) -> Result<Arc<ServerConfig>, ConfigError> {
    Verifier::new(&Arc::new(Trust::new(provider, trust)), accepted).server_config(credential)
}

impl Verifier {
    /// The configuration of a client whose peers this verifies. rustls gives out the keys of its connections to whoever holds
    /// them (`enable_secret_extraction`), for [`Records`](crate::Records) go on with them.
    ///
    /// # Errors
    /// When the credential's key or chain cannot be used with this provider, or its certificate names somebody else.
    pub fn client_config(&self, credential: &Credential) -> Result<Arc<ClientConfig>, ConfigError> {
        let key = certified_key(&self.trust.provider, credential)?;
        self.client_config_of(&credential.identity, key)
    }

    /// The configuration of a server whose peers this verifies. rustls gives out the keys of its connections as for
    /// [`Verifier::client_config`].
    ///
    /// # Errors
    /// When the credential's key or chain cannot be used with this provider, or its certificate names somebody else.
    pub fn server_config(&self, credential: &Credential) -> Result<Arc<ServerConfig>, ConfigError> {
        let key = certified_key(&self.trust.provider, credential)?;
        self.server_config_of(&credential.identity, key)
    }

    pub(crate) fn client_config_of(&self, identity: &Identity, key: Arc<CertifiedKey>) -> Result<Arc<ClientConfig>, ConfigError> {
        let mut config = ClientConfig::builder_with_details(Arc::clone(&self.trust.provider), Arc::clone(&self.time))
            .with_protocol_versions(&[&TLS13])
            .map_err(|source| ConfigError::new(identity, source.into()))?
            .dangerous() // rustls' word for any verifier but its own
            .with_custom_certificate_verifier(Arc::new(self.clone()))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_sni = false;
        config.enable_secret_extraction = true;
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }

    pub(crate) fn server_config_of(&self, identity: &Identity, key: Arc<CertifiedKey>) -> Result<Arc<ServerConfig>, ConfigError> {
        let mut config = ServerConfig::builder_with_details(Arc::clone(&self.trust.provider), Arc::clone(&self.time))
            .with_protocol_versions(&[&TLS13])
            .map_err(|source| ConfigError::new(identity, source.into()))?
            .with_client_cert_verifier(Arc::new(self.clone()))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.alpn_protocols = vec![ALPN.to_vec()];
        // A resumed session would go on with a certificate that was verified under older roots.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.enable_secret_extraction = true;
        Ok(Arc::new(config))
    }
}

/// A credential as rustls signs with it: the dearest part of a configuration to make.
pub(crate) fn certified_key(provider: &CryptoProvider, credential: &Credential) -> Result<Arc<CertifiedKey>, ConfigError> {
    let chain: Vec<_> = credential.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let unfit = |source| ConfigError::new(&credential.identity, source);
    // Our own peers would be shown somebody else, and refuse the one or believe the other.
    let named = peer_id(&chain).map_err(|e| unfit(Unfit::Certificate(own_leaf(&e))))?;
    if named != *credential.identity.spiffe_id() {
        return Err(unfit(Unfit::Certificate(format!("its certificate is that of {named}"))));
    }
    let key = PrivatePkcs8KeyDer::from(credential.key.der().to_vec()).into();
    CertifiedKey::from_der(chain, key, provider)
        .map(Arc::new)
        .map_err(|e| unfit(e.into()))
}

/// A credential that cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the credential of {identity} cannot be used: {source}; it must be issued anew")]
pub struct ConfigError {
    identity: Identity,
    source: Unfit,
}

#[derive(Debug, Clone, thiserror::Error)]
enum Unfit {
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error("{0}")]
    Certificate(String),
}

impl ConfigError {
    fn new(identity: &Identity, source: Unfit) -> Self {
        Self {
            identity: identity.clone(),
            source,
        }
    }

    /// Whose credential it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }
}

/// HTTP/2 over TLS (RFC 9113 3.3).
const ALPN: &[u8] = b"h2";
