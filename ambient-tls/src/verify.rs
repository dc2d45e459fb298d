//! Who may be at the other end.

use std::{fmt, sync::Arc};

use ambient_core::{Identity, SpiffeId, TrustBundles};
use rustls::{
    DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls13_signature},
    server::danger::{ClientCertVerified, ClientCertVerifier},
    time_provider::{DefaultTimeProvider, TimeProvider},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use crate::{
    PeerError,
    error::{ChainError, MAX_CHAIN},
    peer_id,
};

/// Whom a verified peer may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// One of these, compared as a whole; an empty list accepts nobody.
    AnyOf(Arc<[Identity]>),
    /// Whoever a trusted domain vouches for, in any form of SPIFFE ID.
    AnyTrusted,
}

impl Accepted {
    /// One of these.
    pub fn any_of(identities: impl IntoIterator<Item = Identity>) -> Self {
        Self::AnyOf(identities.into_iter().collect())
    }

    fn accepts(&self, id: &SpiffeId) -> Result<(), PeerError> {
        match self {
            Self::AnyTrusted => Ok(()),
            Self::AnyOf(expected) if expected.iter().any(|identity| identity.spiffe_id() == id) => Ok(()),
            Self::AnyOf(expected) => Err(PeerError::WrongPeer {
                id: id.clone(),
                expected: Arc::clone(expected),
            }),
        }
    }
}

/// The part that the peer plays in the handshake, which its certificate must allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The peer is the TLS server: `serverAuth`.
    Server,
    /// The peer is the TLS client: `clientAuth`.
    Client,
}

/// Verifies a peer: its chain against the roots of the domain it names, then its ID against those accepted.
///
/// It holds the roots of one moment. Make a new one, which is cheap, when they have changed.
#[derive(Clone)]
pub struct Verifier {
    pub(crate) provider: Arc<CryptoProvider>,
    trust: Arc<TrustBundles>,
    accepted: Accepted,
    pub(crate) time: Arc<dyn TimeProvider>,
}

impl Verifier {
    /// A verifier that reads the system's clock.
    pub fn new(provider: &Arc<CryptoProvider>, trust: &Arc<TrustBundles>, accepted: Accepted) -> Self {
        Self {
            provider: Arc::clone(provider),
            trust: Arc::clone(trust),
            accepted,
            time: Arc::new(DefaultTimeProvider),
        }
    }

    /// The same with another clock, for both the verification and the configurations made of it.
    #[must_use]
    pub fn with_time(mut self, time: Arc<dyn TimeProvider>) -> Self {
        self.time = time;
        self
    }

    /// Verifies a chain, the leaf first, and says whom it names.
    ///
    /// # Errors
    /// Whatever [`PeerError`] names; nothing is accepted in doubt.
    pub fn verify(&self, chain: &[CertificateDer<'_>], role: Role) -> Result<SpiffeId, PeerError> {
        let now = self.time.current_time().ok_or(PeerError::NoTime)?;
        self.verify_at(chain, role, now)
    }

    fn verify_at(&self, chain: &[CertificateDer<'_>], role: Role, now: UnixTime) -> Result<SpiffeId, PeerError> {
        if chain.len() > MAX_CHAIN {
            return Err(PeerError::LongChain { certificates: chain.len() });
        }
        let id = peer_id(chain)?;
        let roots = self.trust.roots(id.trust_domain());
        if roots.is_empty() {
            let domain = id.trust_domain().clone();
            return Err(PeerError::UntrustedDomain { id, domain });
        }
        if let Err(source) = self.verify_chain(chain, roots, role, now) {
            return Err(PeerError::Chain { id, source });
        }
        self.accepted.accepts(&id)?;
        Ok(id)
    }

    fn verify_chain(&self, chain: &[CertificateDer<'_>], roots: &[Vec<u8>], role: Role, now: UnixTime) -> Result<(), ChainError> {
        let roots: Vec<CertificateDer<'_>> = roots.iter().map(|root| CertificateDer::from(root.as_slice())).collect();
        // A root that cannot be read vouches for nobody; the others still do.
        let anchors: Vec<_> = roots.iter().filter_map(|root| anchor_from_trusted_cert(root).ok()).collect();
        let (leaf, intermediates) = chain.split_first().ok_or(ChainError::UnknownIssuer)?;
        let usage = match role {
            Role::Server => KeyUsage::server_auth(),
            Role::Client => KeyUsage::client_auth(),
        };
        let algorithms = self.provider.signature_verification_algorithms.all;
        EndEntityCert::try_from(leaf)?.verify_for_usage(algorithms, &anchors, intermediates, now, usage, None, None)?;
        Ok(())
    }

    fn verify_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let domains: Vec<_> = self.trust.domains().collect();
        f.debug_struct("Verifier")
            .field("domains", &domains)
            .field("accepted", &self.accepted)
            .finish_non_exhaustive()
    }
}

/// The client's side: the name dialled is not compared, since a mesh knows its peers by ID.
impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify_at(&chain(leaf, intermediates), Role::Server, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The server's side: a certificate is mandatory.
impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A hint would tell strangers whom we trust, and choose nothing: a workload has one certificate.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify_at(&chain(leaf, intermediates), Role::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn chain<'c>(leaf: &CertificateDer<'c>, intermediates: &[CertificateDer<'c>]) -> Vec<CertificateDer<'c>> {
    // One more than is read suffices to see that there are too many.
    std::iter::once(leaf).chain(intermediates.iter().take(MAX_CHAIN)).cloned().collect()
}

/// Never reached: the configurations offer TLS 1.3 alone.
fn no_tls12() -> rustls::Error {
    rustls::PeerIncompatible::Tls12NotOffered.into()
}

#[cfg(test)]
mod tests;
