//! Whom a certificate names, and what is remembered of a peer.

use std::{fmt, sync::Arc, time::SystemTime};

use ambient_core::SpiffeId;
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use webpki::EndEntityCert;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{PeerError, crl::moment, signed::Signed, trust::Domain};

/// The SPIFFE ID that a chain's leaf names by its single URI SAN. The chain is **not** verified.
///
/// # Errors
/// When there is no leaf, when it cannot be read, or when it does not bear exactly one URI SAN that is a SPIFFE ID. A
/// name that is not text counts as unreadable, so that it cannot hide beside a good one.
pub fn peer_id(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, PeerError> {
    let leaf = chain.first().ok_or(PeerError::NoCertificate)?;
    read_leaf(leaf).map(|leaf| leaf.id)
}

/// What a leaf says of itself.
pub(crate) struct Leaf<'c> {
    /// Whom it names.
    pub(crate) id: SpiffeId,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    /// Its public key: DER of a SubjectPublicKeyInfo.
    pub(crate) key: &'c [u8],
}

/// Reads a leaf; whether it holds is another question.
pub(crate) fn read_leaf<'c>(leaf: &'c CertificateDer<'_>) -> Result<Leaf<'c>, PeerError> {
    let (rest, certificate) = X509Certificate::from_der(leaf).map_err(|e| unreadable(&e))?;
    if !rest.is_empty() {
        return Err(unreadable(&"bytes follow the certificate"));
    }
    // Refuses a certificate that bears the extension twice.
    let names = certificate.subject_alternative_name().map_err(|e| unreadable(&e))?;
    let mut uris = Vec::new();
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::Invalid(..) => return Err(unreadable(&"a subject alternative name is not text")),
            _ => {}
        }
    }
    let [uri] = uris[..] else {
        return Err(PeerError::UriNames { count: uris.len() });
    };
    let id = uri
        .parse()
        .map_err(|e: ambient_core::SpiffeIdError| PeerError::NotSpiffe { why: e.to_string() })?;
    let validity = certificate.validity();
    Ok(Leaf {
        id,
        not_before: moment(validity.not_before.timestamp()),
        not_after: moment(validity.not_after.timestamp()),
        key: certificate.tbs_certificate.subject_pki.raw,
    })
}

/// A verified peer: who it is, until when, and what must be known to tell later whether it was revoked meanwhile.
///
/// It costs a few hundred bytes, holds no certificate, and does not depend on the roots that vouched for it: so a root
/// may go while connections that it made possible live on, and a CRL that comes later still ends them.
#[derive(Clone)]
pub struct Peer {
    id: SpiffeId,
    not_after: SystemTime,
    links: Arc<[Link]>,
}

/// One certificate that a peer presents.
pub(crate) struct Link {
    /// The content of its issuer's name.
    pub(crate) issuer: Vec<u8>,
    pub(crate) serial: Vec<u8>,
    /// The issuer's key, from what the peer presents or from the roots. None for what the peer has added to its chain and
    /// nobody known has signed; several if a key is there twice.
    pub(crate) keys: Vec<SubjectPublicKeyInfoDer<'static>>,
}

impl Peer {
    /// Who it is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The end of its certificate.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    pub(crate) fn links(&self) -> &[Link] {
        &self.links
    }

    pub(crate) fn new(id: SpiffeId, not_after: SystemTime, links: Vec<Link>) -> Self {
        let links = links.into();
        Self { id, not_after, links }
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("id", &self.id)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// What a CRL might list of a verified chain.
pub(crate) fn links(
    leaf: &CertificateDer<'_>,
    rest: &[CertificateDer<'_>],
    domain: &Domain,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
) -> Result<Vec<Link>, PeerError> {
    let presented = std::iter::once(leaf).chain(rest).map(EndEntityCert::try_from);
    let presented: Vec<_> = presented.collect::<Result<_, _>>().map_err(|e| unreadable(&e))?;
    let link = |certificate: &EndEntityCert<'_>| {
        let issuer = certificate.issuer();
        // The leaf is nobody's issuer: the chain was verified.
        let among = presented.iter().skip(1).filter(|other| other.subject() == issuer);
        let among = among.map(|other| other.subject_public_key_info());
        let mut keys: Vec<_> = among.chain(domain.keys_of(issuer)).collect();
        if keys.len() > 1 {
            // As when a mesh changes its root and keeps the name; then serial numbers may be the same, too.
            let der = certificate.der();
            let signed = Signed::read(&der);
            keys.retain(|key| signed.as_ref().is_some_and(|signed| signed.is_by(&der, key, algorithms)));
        }
        Link {
            issuer: issuer.to_vec(),
            serial: certificate.serial().to_vec(),
            keys,
        }
    };
    Ok(presented.iter().map(link).collect())
}

fn unreadable(why: &dyn ToString) -> PeerError {
    PeerError::Unreadable { why: why.to_string() }
}
