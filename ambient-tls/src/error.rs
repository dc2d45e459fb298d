//! Why a peer is not who it should be.

use std::{error::Error, sync::Arc};

use ambient_core::{Identity, Origin, SpiffeId, TrustDomain};

use crate::{CrlError, Moment};

/// Why a peer's certificate was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// The peer presented no certificate.
    #[error("the peer presented no certificate; HBONE asks both sides for one")]
    NoCertificate,
    /// The chain is longer than any mesh issues.
    #[error("the peer's chain has {certificates} certificates; at most {MAX_CHAIN} are read")]
    LongChain {
        /// How many came.
        certificates: usize,
    },
    /// The leaf is not a readable X.509 certificate.
    #[error("the peer's leaf certificate cannot be read: {why}")]
    Unreadable {
        /// What a parser says.
        why: String,
    },
    /// The leaf does not bear exactly one URI SAN.
    #[error("the peer's leaf certificate bears {count} URI names; an X.509-SVID bears exactly one")]
    UriNames {
        /// How many it bears.
        count: usize,
    },
    /// The URI SAN is not a SPIFFE ID.
    #[error("the peer's certificate does not name a SPIFFE ID: {why}")]
    NotSpiffe {
        /// What is wrong with it.
        why: String,
    },
    /// No root of the peer's trust domain is known.
    #[error("the peer says to be {id}, but no root of the trust domain {domain} is trusted here")]
    UntrustedDomain {
        /// Who the peer says to be.
        id: SpiffeId,
        /// The domain that its ID names.
        domain: TrustDomain,
    },
    /// Who is revoked in the peer's trust domain is not known: see [`Trust`](crate::Trust).
    #[error("the peer says to be {id}, and who is revoked in that trust domain is not known: {source}")]
    UnusableCrl {
        /// Who the peer says to be.
        id: SpiffeId,
        /// What is wrong with the domain's CRLs.
        source: CrlError,
    },
    /// The chain does not lead to a root of the peer's trust domain, or is not valid now, or not for this use, or revoked.
    #[error("the certificate of {id} does not hold: {source}")]
    Chain {
        /// Who the peer says to be.
        id: SpiffeId,
        /// What the verification says.
        source: ChainError,
    },
    /// The certificate holds, but for somebody else.
    #[error("the peer is {id}, expected {}", list(expected))]
    WrongPeer {
        /// Who the peer is.
        id: SpiffeId,
        /// Who was accepted.
        expected: Arc<[Identity]>,
    },
    /// The certificate holds, but not for a workload, and only workloads are accepted.
    #[error("the peer is {id}, expected an ID of the form spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT: {why}")]
    NotWorkload {
        /// Who the peer is.
        id: SpiffeId,
        /// What is not of that form.
        why: String,
    },
    /// The present time is not known, so that no certificate can be verified.
    #[error("the present time is not known, so no certificate can be verified")]
    NoTime,
}

impl PeerError {
    pub(crate) fn revoked(id: &SpiffeId, certificate: Revoked) -> Self {
        Self::Chain {
            id: id.clone(),
            source: ChainError::Revoked(certificate),
        }
    }

    /// Who is to blame: the peer, or who configures the mesh.
    pub fn origin(&self) -> Origin {
        match self {
            Self::UntrustedDomain { .. } | Self::UnusableCrl { .. } => Origin::Control,
            Self::NoTime => Origin::Local,
            _ => Origin::Peer,
        }
    }

    /// The refusal of a peer that lies within an error of rustls or of I/O, however deep.
    pub fn of<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(found);
            }
            // rustls and io::Error pass the source of what they hold, not what they hold.
            let shared = error.downcast_ref::<Arc<std::io::Error>>().map(|shared| &**shared);
            let held = match (
                error.downcast_ref::<rustls::Error>(),
                error.downcast_ref::<std::io::Error>().or(shared),
            ) {
                (Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))), _)
                | (Some(rustls::Error::Other(other)), _) => Some(&*other.0 as &(dyn Error + 'static)),
                (_, Some(io)) => io.get_ref().map(|held| held as &(dyn Error + 'static)),
                _ => None,
            };
            next = held.or_else(|| error.source());
        }
        None
    }
}

impl From<PeerError> for rustls::Error {
    fn from(error: PeerError) -> Self {
        match error {
            PeerError::NoCertificate => Self::NoCertificatesPresented,
            error => Self::InvalidCertificate(rustls::CertificateError::Other(rustls::OtherError(Arc::new(error)))),
        }
    }
}

/// Why a chain does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// It is not valid any more.
    #[error("it was valid until {ended}, and here it is {now}: its owner must renew it, or a clock is wrong: check those of both machines")]
    Expired {
        /// Its last moment.
        ended: Moment,
        /// The present, by this machine's clock.
        now: Moment,
    },
    /// It is not valid yet.
    #[error("it is valid from {begins}, and here it is {now}: a clock is wrong: check those of both machines")]
    NotYetValid {
        /// Its first moment.
        begins: Moment,
        /// The present, by this machine's clock.
        now: Moment,
    },
    /// It does not lead to a root of its trust domain.
    #[error("no root of its trust domain has issued it")]
    UnknownIssuer,
    /// Its extended key usage does not allow the role the peer plays.
    #[error("its extended key usage does not allow this use")]
    WrongUsage,
    /// An authority between it and the root vouches for another trust domain.
    #[error("its issuer is {authority}, which vouches for nobody of the trust domain {domain}")]
    ForeignAuthority {
        /// The SPIFFE ID that the authority's certificate bears.
        authority: Arc<str>,
        /// The domain that the leaf names.
        domain: TrustDomain,
    },
    /// Name constraints of an authority above it do not permit its names.
    #[error("the name constraints of its issuer do not permit it; those on URIs are not read, and permit none")]
    NameConstraints,
    /// The peer presents a certificate that its issuer has revoked.
    #[error("{0}")]
    Revoked(Revoked),
    /// Anything else that X.509 asks for.
    #[error("{0}")]
    Other(webpki::Error),
}

impl ChainError {
    /// That a certificate is refused for its dates, as rustls says it of one that it verifies itself.
    pub fn of_dates(error: &rustls::Error) -> Option<Self> {
        match error {
            rustls::Error::InvalidCertificate(rustls::CertificateError::ExpiredContext { time, not_after }) => Some(Self::Expired {
                ended: (*not_after).into(),
                now: (*time).into(),
            }),
            rustls::Error::InvalidCertificate(rustls::CertificateError::NotValidYetContext { time, not_before }) => {
                Some(Self::NotYetValid {
                    begins: (*not_before).into(),
                    now: (*time).into(),
                })
            }
            _ => None,
        }
    }
}

impl From<webpki::Error> for ChainError {
    fn from(error: webpki::Error) -> Self {
        match error {
            webpki::Error::CertExpired { time, not_after } => Self::Expired {
                ended: not_after.into(),
                now: time.into(),
            },
            webpki::Error::CertNotValidYet { time, not_before } => Self::NotYetValid {
                begins: not_before.into(),
                now: time.into(),
            },
            webpki::Error::UnknownIssuer => Self::UnknownIssuer,
            webpki::Error::NameConstraintViolation => Self::NameConstraints,
            webpki::Error::RequiredEkuNotFoundContext(_) => Self::WrongUsage,
            other => Self::Other(other),
        }
    }
}

/// A certificate that its issuer has revoked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the certificate with serial number {serial} is revoked by its issuer ({issuer})")]
pub struct Revoked {
    serial: Arc<str>,
    issuer: Arc<str>,
}

impl Revoked {
    pub(crate) fn new(serial: &[u8], issuer: &str) -> Self {
        let serial: Vec<_> = serial.iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            serial: serial.join(":").into(),
            issuer: issuer.into(),
        }
    }

    /// Its serial number, in hexadecimal octets with colons between.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The name of its issuer, as in the CRL.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }
}

fn list(expected: &[Identity]) -> String {
    match expected {
        [] => "nobody: the list of accepted identities is empty".into(),
        several => several.iter().map(Identity::as_str).collect::<Vec<_>>().join(" or "),
    }
}

/// A bound on what an unauthenticated peer can make us parse; a mesh issues two or three.
pub(crate) const MAX_CHAIN: usize = 8;
