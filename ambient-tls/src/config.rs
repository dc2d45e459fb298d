//! rustls configurations for the two ends.

use std::sync::Arc;

use ambient_core::{Credential, Identity, TrustBundles};
use rustls::{ClientConfig, ServerConfig, client::Resumption, crypto::CryptoProvider, server::NoServerSessionStorage, version::TLS13};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::{Accepted, Verifier};

/// The configuration of a client that presents `credential` and accepts a server among `accepted`.
///
/// Short for [`Verifier::client_config`] with the system's clock.
///
/// # Errors
/// When the credential's key or chain cannot be used with this provider.
pub fn client_config(
    provider: &Arc<CryptoProvider>,
    credential: &Credential,
    trust: &Arc<TrustBundles>,
    accepted: Accepted,
) -> Result<Arc<ClientConfig>, ConfigError> {
    Verifier::new(provider, trust, accepted).client_config(credential)
}

/// The configuration of a server that presents `credential` and demands the certificate of a client among `accepted`.
///
/// Short for [`Verifier::server_config`] with the system's clock.
///
/// # Errors
/// When the credential's key or chain cannot be used with this provider.
pub fn server_config(
    provider: &Arc<CryptoProvider>,
    credential: &Credential,
    trust: &Arc<TrustBundles>,
    accepted: Accepted,
) -> Result<Arc<ServerConfig>, ConfigError> {
    Verifier::new(provider, trust, accepted).server_config(credential)
}

impl Verifier {
    /// The configuration of a client whose peers this verifies.
    ///
    /// # Errors
    /// When the credential's key or chain cannot be used with this provider.
    pub fn client_config(&self, credential: &Credential) -> Result<Arc<ClientConfig>, ConfigError> {
        let refuse = |source| ConfigError {
            identity: credential.identity.clone(),
            source,
        };
        let (chain, key) = proof(credential);
        let mut config = ClientConfig::builder_with_details(Arc::clone(&self.provider), Arc::clone(&self.time))
            .with_protocol_versions(&[&TLS13])
            .map_err(refuse)?
            .dangerous() // rustls' word for any verifier but its own
            .with_custom_certificate_verifier(Arc::new(self.clone()))
            .with_client_auth_cert(chain, key)
            .map_err(refuse)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }

    /// The configuration of a server whose peers this verifies.
    ///
    /// # Errors
    /// When the credential's key or chain cannot be used with this provider.
    pub fn server_config(&self, credential: &Credential) -> Result<Arc<ServerConfig>, ConfigError> {
        let refuse = |source| ConfigError {
            identity: credential.identity.clone(),
            source,
        };
        let (chain, key) = proof(credential);
        let mut config = ServerConfig::builder_with_details(Arc::clone(&self.provider), Arc::clone(&self.time))
            .with_protocol_versions(&[&TLS13])
            .map_err(refuse)?
            .with_client_cert_verifier(Arc::new(self.clone()))
            .with_single_cert(chain, key)
            .map_err(refuse)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // A resumed session would go on with a certificate that was verified under older roots.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

/// A credential that rustls cannot use.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the credential of {identity} cannot be used: {source}; it must be issued anew")]
pub struct ConfigError {
    identity: Identity,
    source: rustls::Error,
}

impl ConfigError {
    /// Whose credential it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }
}

fn proof(credential: &Credential) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = credential.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    (chain, PrivatePkcs8KeyDer::from(credential.key.der().to_vec()).into())
}

/// HTTP/2 over TLS (RFC 9113 3.3).
const ALPN: &[u8] = b"h2";
