//! Who may be at the other end.

use std::{fmt, sync::Arc, time::SystemTime};

use ambient_core::{Identity, SpiffeId, TrustDomain};
use rustls::{
    DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::verify_tls13_signature,
    server::danger::{ClientCertVerified, ClientCertVerifier},
    time_provider::{DefaultTimeProvider, TimeProvider},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{
    PeerError, Trust,
    error::{ChainError, MAX_CHAIN},
    peer::read_leaf,
    trust::Domain,
};

/// Whom a verified peer may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// One of these, compared as a whole; an empty list accepts nobody.
    AnyOf(Arc<[Identity]>),
    /// Whoever a trusted domain vouches for, in any form of SPIFFE ID.
    AnyTrusted,
    /// Whoever a trusted domain vouches for as a workload: `spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT`, the form of Istio.
    AnyWorkload,
}

impl Accepted {
    /// One of these.
    pub fn any_of(identities: impl IntoIterator<Item = Identity>) -> Self {
        Self::AnyOf(identities.into_iter().collect())
    }

    fn accepts(&self, id: &SpiffeId) -> Result<(), PeerError> {
        match self {
            Self::AnyTrusted => Ok(()),
            Self::AnyWorkload => match Identity::try_from(id.clone()) {
                Ok(_) => Ok(()),
                Err(e) => Err(PeerError::NotWorkload {
                    id: id.clone(),
                    why: e.to_string(),
                }),
            },
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

/// Verifies a peer: its chain against the roots of the domain it names and the CRLs in force there, then its ID against
/// those accepted.
///
/// It holds the trust of one moment. Make a new one, which is cheap, when that has changed.
#[derive(Clone)]
pub struct Verifier {
    pub(crate) trust: Arc<Trust>,
    accepted: Accepted,
    pub(crate) time: Arc<dyn TimeProvider>,
}

impl Verifier {
    /// A verifier that reads the system's clock.
    pub fn new(trust: &Arc<Trust>, accepted: Accepted) -> Self {
        Self {
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

    /// The same, as at one moment.
    #[must_use]
    pub fn at(self, moment: SystemTime) -> Self {
        let since = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.with_time(Arc::new(Standing(UnixTime::since_unix_epoch(since))))
    }

    /// Verifies a chain, the leaf first, and says whom it names.
    ///
    /// # Errors
    /// Whatever [`PeerError`] names; nothing is accepted in doubt.
    pub fn verify(&self, chain: &[CertificateDer<'_>], role: Role) -> Result<SpiffeId, PeerError> {
        let now = self.time.current_time().ok_or(PeerError::NoTime)?;
        let (leaf, rest) = chain.split_first().ok_or(PeerError::NoCertificate)?;
        self.verify_at(leaf, rest, role, now)
    }

    fn verify_at(&self, leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>], role: Role, now: UnixTime) -> Result<SpiffeId, PeerError> {
        if rest.len() >= MAX_CHAIN {
            let certificates = rest.len() + 1;
            return Err(PeerError::LongChain { certificates });
        }
        let id = read_leaf(leaf)?.id;
        let domain = self.trust.domain(&id)?;
        if let Err(source) = self.verify_chain(&id, leaf, rest, domain, role, now) {
            return Err(PeerError::Chain { id, source });
        }
        if domain.has_crls()
            && let Some(revoked) = self.trust.revoked_among(domain, &self.trust.links(leaf, rest, domain)?)
        {
            return Err(PeerError::revoked(&id, revoked));
        }
        self.accepted.accepts(&id)?;
        Ok(id)
    }

    fn verify_chain(
        &self,
        id: &SpiffeId,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        domain: &Domain,
        role: Role,
        now: UnixTime,
    ) -> Result<(), ChainError> {
        let usage = match role {
            Role::Server => KeyUsage::server_auth(),
            Role::Client => KeyUsage::client_auth(),
        };
        let algorithms = self.trust.provider.signature_verification_algorithms.all;
        // Revocation is judged apart from it: webpki takes the first CRL of the issuer's name for the only one, and
        // refuses all if another key of that name has signed it.
        let leaf = EndEntityCert::try_from(leaf)?;
        let path = leaf.verify_for_usage(algorithms, &domain.anchors, rest, now, usage, None, None)?;
        // Only those that vouch for the leaf: a peer may present others besides.
        path.intermediate_certificates()
            .try_for_each(|authority| may_vouch_in(&authority.der(), id.trust_domain()))
    }
}

/// Whether an authority below a root may vouch for IDs of a trust domain: one that names a SPIFFE ID itself (X.509-SVID
/// 3.2) may only do so in that ID's domain, and one that names none is limited by its root alone.
fn may_vouch_in(authority: &[u8], domain: &TrustDomain) -> Result<(), ChainError> {
    let unreadable = || ChainError::Other(webpki::Error::BadDer);
    let (_, certificate) = X509Certificate::from_der(authority).map_err(|_| unreadable())?;
    let names = certificate.subject_alternative_name().map_err(|_| unreadable())?;
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        let of = match name {
            GeneralName::URI(uri) if uri.starts_with("spiffe:") => *uri,
            GeneralName::Invalid(..) => return Err(unreadable()),
            _ => continue,
        };
        // A path behind the domain limits nothing more; whatever else it may be, it is not this domain.
        let named = of.strip_prefix("spiffe://").and_then(|rest| rest.split('/').next());
        if named != Some(domain.as_str()) {
            return Err(ChainError::ForeignAuthority {
                authority: of.into(),
                domain: domain.clone(),
            });
        }
    }
    Ok(())
}

/// A clock that stands.
#[derive(Debug)]
struct Standing(UnixTime);

impl TimeProvider for Standing {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("trust", &self.trust)
            .field("accepted", &self.accepted)
            .finish_non_exhaustive()
    }
}

/// What rustls asks of a verifier of either side, once its chain is judged: TLS 1.3 alone.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            // Never reached: the configurations offer TLS 1.3 alone.
            Err(rustls::PeerIncompatible::Tls12NotOffered.into())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            leaf: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls13_signature(
                message,
                leaf,
                signature,
                &self.trust.provider.signature_verification_algorithms,
            )
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.trust.provider.signature_verification_algorithms.supported_schemes()
        }
    };
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
        self.verify_at(leaf, intermediates, Role::Server, now)?;
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
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
        self.verify_at(leaf, intermediates, Role::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    signatures!();
}

#[cfg(test)]
mod tests;
